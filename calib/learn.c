/* Routing learned from states: the dense head's cluster masses (targets.c) distilled into the centroids.
 *
 * With q_k(h) the dense softmax's mass in cluster k, minimise -sum_k q_k log softmax(C h)_k over C [K, D] by Adam on minibatches: a softmax head
 * of K classes taught by the dense one, convex in C.  Scores are products of eight bits, gradients sums of the few states that matter to a
 * cluster, all in one order: the same centroids for any number of threads and any instruction set (docs/decisions/0035).
 */
#include "calib/learn.h"

#include <math.h>
#include <string.h>

enum { ROWS_A_TASK = 16 };

/* What is smaller in a state's softmax less target is left out or becomes as large, by chance: right on average.  The sizes are 2 together at most, so that of a
 * state 2 / BOUND entries remain, whatever K is. */
#define BOUND (1.0f / 256)

/* What routing is learned from. */
typedef struct lesson {
    const fh_dense *dense; const float *states; const size_t *positions;
    size_t n, taught;       /* the last tenth, whole documents but one, is not taught: it says when to stop and what to keep */
    uint32_t k; size_t d;
    fh_sparse masses;       /* index is the cluster: the targets */
    fh_sparse likely;       /* index is the token; kept where tokens may move */
} lesson;

/* ---- learning ----------------------------------------------------------------------------------------------------- */

typedef struct learner {
    uint32_t k; size_t d, batch;
    float *c, *best, *m, *v;          /* [K, D] centroids, the best so far, Adam's moments */
    float *mean;                      /* [D] of the centroids at the start: they are learned less that, which changes no softmax and leaves more digits; zeros
                                       * for rows of unit length */
    float *h, *s;                     /* [batch, D]; [strips, K, 16], or [batch, K] of states held out */
    double *loss;                     /* [batch] */
    float *grad; const float **rows_of; float *shares; /* of each worker [D], [batch], [batch] */
    fh_strips scores;
    const fh_learn_math *math;
    const fh_sparse *t;
    const size_t *rows; size_t n;     /* of this batch: indices into the targets */
    double rate, correct_m, correct_v, *entries; /* entries: of each worker, in gradients so far */
    uint64_t seed, done;
    bool unit;
} learner;

static void round_task(void *ctx, size_t task, unsigned worker)
{
    learner *l = ctx;
    for (size_t c = task * ROWS_A_TASK; c < fh_min(l->k, (task + 1) * ROWS_A_TASK); c++) fh_strips_row(&l->scores, c, l->c + c * l->d, NULL, worker);
}

/* Scores of a strip of states into what of softmax less target remains. */
static void error_task(void *ctx, size_t strip, unsigned worker)
{
    learner *l = ctx;
    float *s = l->s + strip * l->k * FH_STRIP, most[FH_STRIP], sum[FH_STRIP], by[FH_STRIP], start[FH_STRIP];
    size_t states = fh_min(FH_STRIP, l->n - strip * FH_STRIP);
    fh_rng rng;
    fh_rng_seed(&rng, l->seed, (l->done << 16) + strip);
    l->math->largest(s, l->k, most);
    l->math->exponents(s, l->k, most, sum);
    for (size_t i = 0; i < FH_STRIP; i++) by[i] = i < states ? 1 / sum[i] : 0, start[i] = (float)(fh_rng_double(&rng) * BOUND);
    for (size_t i = 0; i < states; i++) {
        size_t row = l->rows[strip * FH_STRIP + i];
        for (size_t j = l->t->first[row]; j < l->t->first[row + 1]; j++) s[l->t->index[j] * (size_t)FH_STRIP + i] -= l->t->value[j] * sum[i];
    }
    l->math->thin(s, l->k, by, start, BOUND);
    (void)worker;
}

/* The gradient of some clusters from what remains, and one step of Adam with it; then they are rounded for the next scores. */
static void adam_task(void *ctx, size_t task, unsigned worker)
{
    learner *l = ctx;
    size_t strips = (l->n + FH_STRIP - 1) / FH_STRIP;
    float *g = l->grad + worker * l->d, *shares = l->shares + worker * l->batch, one = 1 / (float)l->n;
    const float **of = l->rows_of + worker * l->batch;
    for (size_t c = task * ROWS_A_TASK; c < fh_min(l->k, (task + 1) * ROWS_A_TASK); c++) {
        float *x = l->c + c * l->d;
        size_t n = 0;
        for (size_t strip = 0; strip < strips; strip++) {
            const float *s = l->s + (strip * l->k + c) * FH_STRIP;
            uint64_t any[FH_STRIP / 2], all = 0;
            memcpy(any, s, sizeof any);
            for (size_t i = 0; i < FH_STRIP / 2; i++) all |= any[i];
            if (!all) continue;
            for (size_t i = 0; i < FH_STRIP; i++) if (s[i] != 0) of[n] = l->h + (strip * FH_STRIP + i) * l->d, shares[n++] = s[i] * one;
        }
        l->entries[worker] += (double)n;
        l->math->combine(g, l->d, of, shares, n);
        if (l->unit) { /* only what turns the row counts */
            double along = 0;
            for (size_t j = 0; j < l->d; j++) along += (double)g[j] * x[j];
            for (size_t j = 0; j < l->d; j++) g[j] -= (float)(along * x[j]);
        }
        l->math->adam(x, l->m + c * l->d, l->v + c * l->d, g, l->d, (float)(l->rate * l->correct_m), (float)l->correct_v);
        if (l->unit) {
            double square = 0;
            for (size_t j = 0; j < l->d; j++) square += (double)x[j] * x[j];
            for (size_t j = 0; j < l->d; j++) x[j] = (float)(x[j] / sqrt(square));
        }
        fh_strips_row(&l->scores, c, x, NULL, worker);
    }
}

static size_t tasks(const learner *l) { return (l->k + ROWS_A_TASK - 1) / ROWS_A_TASK; }

static void take(learner *l, const lesson *s)
{
    for (size_t i = 0; i < l->n; i++) memcpy(l->h + i * l->d, s->states + s->positions[l->rows[i]] * l->d, l->d * sizeof *l->h);
}

/* One batch forward and backward, one Adam step. */
static void step(learner *l, const lesson *s)
{
    fh_pool *pool = l->scores.pool;
    take(l, s);
    fh_strips_states(&l->scores, l->h, l->n);
    fh_strips_scores(&l->scores, l->s);
    fh_pool_run(pool, (l->n + FH_STRIP - 1) / FH_STRIP, error_task, l);
    fh_pool_run(pool, tasks(l), adam_task, l);
    l->done++;
}

/* The loss of one state by its scores in float32. */
static void loss_task(void *ctx, size_t i, unsigned worker)
{
    learner *l = ctx;
    const float *s = l->s + i * l->k;
    const fh_sparse *t = l->t;
    size_t row = l->rows[i];
    double loss = fh_log_sum_exp(s, l->k);
    for (size_t j = t->first[row]; j < t->first[row + 1]; j++) loss -= (double)t->value[j] * (double)s[t->index[j]];
    l->loss[i] = loss;
    (void)worker;
}

static double rms(const float *x, size_t n)
{
    double square = 0;
    for (size_t i = 0; i < n; i++) square += (double)x[i] * x[i];
    return sqrt(square / (double)n);
}

/* The loss on the states held out, with the centroids as they are, from products in float32. */
static double held_loss(learner *l, const lesson *s, const size_t *order, const fh_job *job)
{
    double loss = 0;
    for (size_t at = s->taught; at < s->n; at += l->batch) {
        l->rows = order + at, l->n = fh_min(l->batch, s->n - at);
        take(l, s);
        fh_gemm_nt(fh_job_pool(job), l->n, l->k, l->d, l->h, l->d, l->c, l->d, l->s, l->k);
        fh_pool_run(fh_job_pool(job), l->n, loss_task, l);
        for (size_t i = 0; i < l->n; i++) loss += l->loss[i];
    }
    return loss / (double)fh_max(s->n - s->taught, 1);
}

/* Tokens to where the best centroids expect them; kept where that lowers the loss on the states held out, which it does at once or not at all. */
static fh_status move(learner *l, lesson *s, uint32_t *assignment, const float *pull, const size_t *order, double *least, bool *moved, const fh_job *job,
                      fh_learn_report *out, fh_err *err)
{
    fh_sparse masses = {0};
    size_t vocab = s->dense->vocab, swaps;
    double began = fh_now();
    uint32_t *to = fh_malloc(vocab * sizeof *to);
    fh_status rc = to ? FH_OK : fh_fail(err, FH_ENOMEM, "out of memory for moving tokens");
    *moved = false;
    if (rc < 0) return rc;
    memcpy(to, assignment, vocab * sizeof *to);
    memcpy(l->c, l->best, (size_t)l->k * l->d * sizeof *l->c);
    if ((rc = fh_move_tokens(to, &swaps, pull, s->dense->dead, s->dense->vocab, l->c, l->k, l->d, job, err)) < 0) goto out;
    if ((rc = fh_move_masses(&masses, &s->masses, &s->likely, s->n, assignment, to, err)) < 0) goto out;
    l->t = &masses;
    double loss = held_loss(l, s, order, job);
    fh_job_say(job, FH_DEBUG, "moving tokens: %zu swaps, loss on held-out states %.5f, before %.5f", swaps, loss, *least);
    if (loss < *least) {
        fh_sparse before = s->masses;
        s->masses = masses, masses = before, *least = loss, *moved = true;
        memcpy(assignment, to, vocab * sizeof *to);
        out->moves++, out->swaps += swaps;
    }
    l->t = &s->masses;
    out->move_seconds += fh_now() - began;
out:
    fh_sparse_free(&masses);
    fh_free(to);
    return rc;
}

/* Passes after which tokens move for the time number `round`: evenly, with some after the last time, too. */
static unsigned due(const fh_learn_params *p, unsigned round) { return (round + 1) * p->passes / (p->moves + 1); }

static fh_status passes(learner *l, float *centroids, uint32_t *assignment, lesson *s, const float *pull, const fh_learn_params *p, const fh_job *job,
                        fh_learn_report *out, fh_err *err)
{
    size_t cells = (size_t)l->k * l->d, taught = s->taught, steps = (taught + l->batch - 1) / l->batch, done = 0;
    size_t *order = fh_malloc(s->n * sizeof *order);
    double scale = rms(centroids, cells), least = INFINITY, m_power = 1, v_power = 1;
    unsigned round = 0;
    fh_status rc = FH_OK;
    fh_rng rng;
    if (!order) return fh_fail(err, FH_ENOMEM, "out of memory");
    fh_rng_seed(&rng, p->seed, 0x6c);
    for (size_t i = 0; i < s->n; i++) order[i] = i;
    l->t = &s->masses;
    for (unsigned pass = 0; pass <= p->passes; pass++) {
        double loss = held_loss(l, s, order, job);
        if (pass == 0 && !isfinite(loss)) {
            rc = fh_fail(err, FH_ECHECK, "learned routing: the scores of its first centroids pass what float32 holds: are head and states of one model?");
            goto out;
        }
        if (pass == 0) out->loss_before = loss;
        fh_job_say(job, FH_DEBUG, "learned routing: pass %u of %u, loss on held-out states %.5f", pass, p->passes, loss);
        if (loss < least) least = loss, out->passes = pass, memcpy(l->best, l->c, cells * sizeof *l->c);
        bool stale = pass >= out->passes + 2; /* no better for two passes */
        if (pass == p->passes) break;
        if (round < p->moves && (stale || pass >= due(p, round))) {
            bool moved;
            if ((rc = move(l, s, assignment, pull, order, &least, &moved, job, out, err)) < 0) goto out;
            round++;
            if (moved) out->passes = pass, stale = false;
        }
        if (stale) break;
        for (size_t i = taught; i > 1; i--) {
            size_t j = (size_t)fh_rng_below(&rng, i), swap = order[i - 1];
            order[i - 1] = order[j], order[j] = swap;
        }
        out->made++;
        fh_pool_run(fh_job_pool(job), tasks(l), round_task, l);
        for (size_t at = 0; at < taught; at += l->batch, done++) {
            if (fh_job_stopped(job)) { rc = fh_fail(err, FH_EINTERRUPTED, "interrupted"); goto out; }
            m_power *= 0.9, v_power *= 0.999;
            l->correct_m = 1 / (1 - m_power), l->correct_v = 1 / (1 - v_power);
            l->rate = p->rate * scale * (1 - (double)done / (double)(steps * p->passes));
            l->rows = order + at, l->n = fh_min(l->batch, taught - at);
            step(l, s);
            fh_job_progress(job, "learning routing", (double)(pass * taught + at + l->n), (double)(p->passes * taught), "states");
        }
    }
    fh_job_progress(job, "learning routing", 1, 1, "states");
    for (size_t c = 0; c < l->k; c++) for (size_t j = 0; j < l->d; j++) centroids[c * l->d + j] = l->best[c * l->d + j] + l->mean[j];
    out->loss = least, out->states = s->n;
out:
    fh_free(order);
    return rc;
}

fh_status fh_learn_routing(float *centroids, uint32_t k, uint32_t *assignment, const fh_dense *dense, const float *states, const size_t *positions, size_t n,
                           const fh_learn_params *params, const fh_job *job, fh_learn_report *out, fh_err *err)
{
    fh_learn_params p = *params;
    fh_pool *pool = fh_job_pool(job);
    size_t d = dense->rows.cols, workers = fh_pool_threads(pool), cells, pulls = 0, strips;
    lesson s = {.dense = dense, .states = states, .positions = positions, .n = n, .taught = n - n / 10, .k = k, .d = d};
    float *pull = NULL;
    learner l = {.k = k, .d = d, .seed = p.seed, .unit = p.unit, .math = fh_learn_math_choose(fh_isa_name())};
    fh_status rc;
    if (!p.passes) p.passes = FH_LEARN_PASSES;
    p.moves = (unsigned)fh_min(p.moves, p.passes - 1);
    if (!(p.rate > 0)) p.rate = 0.013;
    if (!p.batch) p.batch = FH_LEARN_BATCH;
    l.batch = p.batch;
    *out = (fh_learn_report){0};
    if (n < FH_LEARN_STATES)
        return fh_fail(err, FH_ECHECK, "learned routing needs at least %d states, here are %zu: collect more with 'fhtool hidden --tokens'", FH_LEARN_STATES, n);
    if (!fh_mul(k, d, &cells) || !fh_mul(dense->vocab, d, &pulls) || !fh_mul(fh_round_up(l.batch, FH_STRIP), k, &strips))
        return fh_fail(err, FH_ENOMEM, "out of memory");
    if ((rc = fh_strips_make(&l.scores, k, l.batch, d, pool, err)) < 0) goto out;
    l.c = fh_malloc(cells * sizeof *l.c), l.best = fh_malloc(cells * sizeof *l.c), l.mean = fh_calloc(d, sizeof *l.mean);
    l.m = fh_calloc(cells, sizeof *l.m), l.v = fh_calloc(cells, sizeof *l.v);
    l.h = fh_malloc(l.batch * d * sizeof *l.h), l.s = fh_aligned(strips * sizeof *l.s), l.loss = fh_malloc(l.batch * sizeof *l.loss);
    l.grad = fh_malloc(workers * d * sizeof *l.grad), l.rows_of = fh_malloc(workers * l.batch * sizeof *l.rows_of);
    l.shares = fh_malloc(workers * l.batch * sizeof *l.shares), l.entries = fh_calloc(workers, sizeof *l.entries);
    if (!l.c || !l.best || !l.mean || !l.m || !l.v || !l.h || !l.s || !l.loss || !l.grad || !l.rows_of || !l.shares || !l.entries) {
        rc = fh_fail(err, FH_ENOMEM, "out of memory for learned routing");
        goto out;
    }
    memcpy(l.c, centroids, cells * sizeof *l.c);
    if (p.unit)
        for (uint32_t c = 0; c < k; c++) {
            double square = 0;
            for (size_t j = 0; j < d; j++) square += (double)l.c[c * d + j] * l.c[c * d + j];
            for (size_t j = 0; j < d; j++) l.c[c * d + j] = (float)(l.c[c * d + j] / sqrt(square));
        }
    for (uint32_t c = 0; !p.unit && c < k; c++) for (size_t j = 0; j < d; j++) l.mean[j] += l.c[c * d + j] / (float)k;
    for (uint32_t c = 0; c < k; c++) for (size_t j = 0; j < d; j++) l.c[c * d + j] -= l.mean[j];
    double began = fh_now(), product = 2.0 * (double)k * (double)d;
    rc = fh_learn_targets(&s.masses, p.moves ? &s.likely : NULL, dense, states, positions, n, assignment, k, &out->target_operations, job, err);
    if (rc < 0) goto out;
    out->target_seconds = fh_now() - began, began += out->target_seconds;
    if (p.moves) {
        pull = fh_malloc(pulls * sizeof *pull);
        rc = pull ? fh_token_pull(pull, dense, &s.likely, states, positions, s.taught, job, err) : fh_fail(err, FH_ENOMEM, "out of memory for moving tokens");
        if (rc < 0) goto out;
        out->move_seconds = fh_now() - began;
    }
    rc = passes(&l, centroids, assignment, &s, pull, &p, job, out, err);
    out->pass_seconds = fh_now() - began - out->move_seconds;
    /* nine tenths are taught, the tenth is asked before each pass and at the end; backwards only what remains */
    out->pass_operations = product * ((double)s.taught * out->made + (double)(n - s.taught) * (out->made + 1));
    for (size_t w = 0; l.entries && w < workers; w++) out->pass_operations += 2.0 * l.entries[w] * (double)d;
out:
    fh_strips_free(&l.scores);
    fh_sparse_free(&s.masses);
    fh_sparse_free(&s.likely);
    fh_free(pull);
    fh_free(l.c);
    fh_free(l.best);
    fh_free(l.mean);
    fh_free(l.m);
    fh_free(l.v);
    fh_free(l.h);
    fh_free(l.s);
    fh_free(l.loss);
    fh_free(l.grad);
    fh_free(l.rows_of);
    fh_free(l.shares);
    fh_free(l.entries);
    return rc;
}
