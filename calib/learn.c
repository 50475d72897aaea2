/* Routing learned from states: the dense head's cluster masses distilled into the centroids.
 *
 * With q_k(h) the dense softmax's mass in cluster k, minimise -sum_k q_k log softmax(C h)_k over C [K, D] by Adam on minibatches: a softmax head
 * of K classes taught by the dense one, convex in C.  Masses below KEEP are dropped from the targets (they hold under 1 % together
 * and would make the targets of a large head dense).  All products go through fixed tiles and all sums through a fixed order: the
 * same centroids for any number of threads.
 */
#include "calib/learn.h"

#include <math.h>
#include <string.h>

#define KEEP 1e-5f
enum { BLOCK = 64, ROWS_A_TASK = 16 };

/* Of a token's shares the ones from LIKELY on are kept for moving tokens, and of those of one state as many as MOST. */
#define LIKELY 1e-3f
enum { MOST = 128 };

fh_status fh_sparse_grow(fh_sparse *s, size_t n, size_t more, fh_err *err)
{
    if (n + more <= s->room) return FH_OK;
    size_t room = fh_max(s->room * 2, n + more + (1 << 16));
    uint32_t *index = fh_realloc(s->index, room * sizeof *index);
    if (index) s->index = index;
    float *value = index ? fh_realloc(s->value, room * sizeof *value) : NULL;
    if (value) s->value = value;
    if (!value) return fh_fail(err, FH_ENOMEM, "out of memory for the targets of learned routing: use fewer states (--tokens)");
    s->room = room;
    return FH_OK;
}

void fh_sparse_free(fh_sparse *s) { fh_free(s->first); fh_free(s->index); fh_free(s->value); *s = (fh_sparse){0}; }

/* ---- what the dense head says ------------------------------------------------------------------------------------ */

/* What routing is learned from. */
typedef struct lesson {
    const fh_dense *dense; const float *states; const size_t *positions;
    size_t n, taught;       /* the last tenth, whole documents but one, is not taught: it says when to stop and what to keep */
    uint32_t k; size_t d;
    fh_sparse masses;       /* index is the cluster: the targets */
    fh_sparse likely;       /* index is the token; kept where tokens may move */
} lesson;

typedef struct teach { const lesson *s; const uint32_t *assignment; float *z, *q; uint32_t *tokens; float *shares; uint32_t *n_likely; } teach;

static void teach_task(void *ctx, size_t i, unsigned worker)
{
    teach *t = ctx;
    const fh_dense *dense = t->s->dense;
    float *z = t->z + i * dense->vocab, *q = t->q + i * t->s->k, most = -INFINITY;
    double sum = 0;
    memset(q, 0, t->s->k * sizeof *q);
    for (uint32_t v = 0; v < dense->vocab; v++)
        if (!(dense->dead && dense->dead[v]) && z[v] > most) most = z[v];
    for (uint32_t v = 0; v < dense->vocab; v++) {
        z[v] = dense->dead && dense->dead[v] ? 0 : expf(z[v] - most);
        q[t->assignment[v]] += z[v], sum += z[v];
    }
    for (uint32_t c = 0; c < t->s->k; c++) q[c] = (float)(q[c] / sum);
    (void)worker;
    if (!t->tokens) return;
    uint32_t n = MOST + 1, *tokens = t->tokens + i * MOST;
    for (double bar = LIKELY * sum; n > MOST; bar *= 2) { /* no more than MOST can have a share of 1 / MOST */
        n = 0;
        for (uint32_t v = 0; v < dense->vocab && n <= MOST; v++) {
            if (!(z[v] >= bar)) continue;
            if (n < MOST) tokens[n] = v, t->shares[i * MOST + n] = (float)(z[v] / sum);
            n++;
        }
    }
    t->n_likely[i] = n;
}

static fh_status add_masses(fh_sparse *t, size_t at, const float *q, uint32_t k, fh_err *err)
{
    size_t n = t->first[at];
    double kept = 0;
    fh_status rc = fh_sparse_grow(t, n, k, err);
    if (rc < 0) return rc;
    for (uint32_t c = 0; c < k; c++)
        if (q[c] >= KEEP) t->index[n] = c, t->value[n++] = q[c], kept += q[c];
    for (size_t j = t->first[at]; j < n; j++) t->value[j] = (float)(t->value[j] / kept);
    t->first[at + 1] = n;
    return FH_OK;
}

static fh_status add_likely(fh_sparse *t, size_t at, const uint32_t *tokens, const float *shares, uint32_t n, fh_err *err)
{
    fh_status rc = fh_sparse_grow(t, t->first[at], n, err);
    if (rc < 0) return rc;
    memcpy(t->index + t->first[at], tokens, n * sizeof *tokens);
    memcpy(t->value + t->first[at], shares, n * sizeof *shares);
    t->first[at + 1] = t->first[at] + n;
    return FH_OK;
}

static fh_status make_targets(lesson *s, const uint32_t *assignment, bool moves, const fh_job *job, fh_err *err)
{
    fh_status rc = FH_OK;
    size_t d = s->d, vocab = s->dense->vocab, k = s->k;
    float *h = fh_malloc(BLOCK * d * sizeof *h), *z = fh_malloc(BLOCK * vocab * sizeof *z), *q = fh_malloc(BLOCK * k * sizeof *q);
    uint32_t *tokens = moves ? fh_malloc((size_t)BLOCK * MOST * sizeof *tokens) : NULL, n_likely[BLOCK] = {0};
    float *shares = moves ? fh_malloc((size_t)BLOCK * MOST * sizeof *shares) : NULL;
    s->masses.first = fh_calloc(s->n + 1, sizeof *s->masses.first), s->likely.first = fh_calloc(s->n + 1, sizeof *s->likely.first);
    if (!h || !z || !q || (moves && (!tokens || !shares)) || !s->masses.first || !s->likely.first) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    for (size_t at = 0; at < s->n; at += BLOCK) {
        size_t m = fh_min(BLOCK, s->n - at);
        if (fh_job_stopped(job)) { rc = fh_fail(err, FH_EINTERRUPTED, "interrupted"); goto out; }
        for (size_t i = 0; i < m; i++) memcpy(h + i * d, s->states + s->positions[at + i] * d, d * sizeof *h);
        if ((rc = fh_dense_logits(s->dense, fh_job_pool(job), h, m, z, err)) < 0) goto out;
        teach say = {s, assignment, z, q, tokens, shares, n_likely};
        fh_pool_run(fh_job_pool(job), m, teach_task, &say);
        for (size_t i = 0; i < m; i++) {
            if ((rc = add_masses(&s->masses, at + i, q + i * k, s->k, err)) < 0) goto out;
            if (moves && (rc = add_likely(&s->likely, at + i, tokens + i * MOST, shares + i * MOST, n_likely[i], err)) < 0) goto out;
        }
        fh_job_progress(job, "routing targets", (double)(at + m), (double)s->n, "states");
    }
out:
    fh_free(h);
    fh_free(z);
    fh_free(q);
    fh_free(tokens);
    fh_free(shares);
    return rc;
}

/* ---- learning ----------------------------------------------------------------------------------------------------- */

typedef struct learner {
    uint32_t k; size_t d, batch;
    float *c, *best, *m, *v;          /* [K, D] centroids, the best so far, Adam's moments */
    float *h, *ht, *s, *gt, *grad;    /* [batch, D], [D, batch], [batch, K], [K, batch], [K, D] */
    double *loss;                     /* [batch] */
    const fh_sparse *t;
    const size_t *rows; size_t n;     /* of this batch: indices into the targets */
    double rate, correct_m, correct_v;
    bool unit;
} learner;

/* Scores of one state into softmax less target; its loss. */
static void error_task(void *ctx, size_t i, unsigned worker)
{
    learner *l = ctx;
    float *s = l->s + i * l->k, most = -INFINITY;
    const fh_sparse *t = l->t;
    size_t row = l->rows[i];
    double sum = 0, loss = 0;
    for (uint32_t c = 0; c < l->k; c++) if (s[c] > most) most = s[c];
    for (size_t j = t->first[row]; j < t->first[row + 1]; j++) loss -= (double)t->value[j] * ((double)s[t->index[j]] - most);
    for (uint32_t c = 0; c < l->k; c++) s[c] = expf(s[c] - most), sum += s[c];
    l->loss[i] = loss + log(sum);
    float by = (float)(1 / (sum * (double)l->n)), one = 1 / (float)l->n;
    for (uint32_t c = 0; c < l->k; c++) s[c] *= by;
    for (size_t j = t->first[row]; j < t->first[row + 1]; j++) s[t->index[j]] -= t->value[j] * one;
    (void)worker;
}

static void transpose_task(void *ctx, size_t task, unsigned worker)
{
    learner *l = ctx;
    for (size_t c = task * ROWS_A_TASK; c < fh_min(l->k, (task + 1) * ROWS_A_TASK); c++)
        for (size_t i = 0; i < l->n; i++) l->gt[c * l->batch + i] = l->s[i * l->k + c];
    (void)worker;
}

static void adam_task(void *ctx, size_t task, unsigned worker)
{
    learner *l = ctx;
    for (size_t c = task * ROWS_A_TASK; c < fh_min(l->k, (task + 1) * ROWS_A_TASK); c++) {
        float *x = l->c + c * l->d, *m = l->m + c * l->d, *v = l->v + c * l->d, *g = l->grad + c * l->d;
        if (l->unit) { /* only what turns the row counts */
            double along = 0;
            for (size_t j = 0; j < l->d; j++) along += (double)g[j] * x[j];
            for (size_t j = 0; j < l->d; j++) g[j] -= (float)(along * x[j]);
        }
        for (size_t j = 0; j < l->d; j++) {
            m[j] = 0.9f * m[j] + 0.1f * g[j];
            v[j] = 0.999f * v[j] + 0.001f * g[j] * g[j];
            x[j] -= (float)(l->rate * ((double)m[j] * l->correct_m) / (sqrt((double)v[j] * l->correct_v) + 1e-12));
        }
        if (l->unit) {
            double square = 0;
            for (size_t j = 0; j < l->d; j++) square += (double)x[j] * x[j];
            for (size_t j = 0; j < l->d; j++) x[j] = (float)(x[j] / sqrt(square));
        }
    }
    (void)worker;
}

/* One batch forward; its summed loss.  `learn`: and backward, one Adam step. */
static double step(learner *l, const float *states, const size_t *positions, bool learn, const fh_job *job)
{
    fh_pool *pool = fh_job_pool(job);
    double loss = 0;
    for (size_t i = 0; i < l->n; i++) memcpy(l->h + i * l->d, states + positions[l->rows[i]] * l->d, l->d * sizeof *l->h);
    fh_gemm_nt(pool, l->n, l->k, l->d, l->h, l->d, l->c, l->d, l->s, l->k);
    fh_pool_run(pool, l->n, error_task, l);
    for (size_t i = 0; i < l->n; i++) loss += l->loss[i];
    if (!learn) return loss;
    for (size_t i = 0; i < l->n; i++) for (size_t j = 0; j < l->d; j++) l->ht[j * l->batch + i] = l->h[i * l->d + j];
    size_t tasks = (l->k + ROWS_A_TASK - 1) / ROWS_A_TASK;
    fh_pool_run(pool, tasks, transpose_task, l);
    fh_gemm_nt(pool, l->k, l->d, l->n, l->gt, l->batch, l->ht, l->batch, l->grad, l->d);
    fh_pool_run(pool, tasks, adam_task, l);
    return loss;
}

static double rms(const float *x, size_t n)
{
    double square = 0;
    for (size_t i = 0; i < n; i++) square += (double)x[i] * x[i];
    return sqrt(square / (double)n);
}

/* The loss on the states held out, with the centroids as they are. */
static double held_loss(learner *l, const lesson *s, const size_t *order, const fh_job *job)
{
    double loss = 0;
    for (size_t at = s->taught; at < s->n; at += l->batch) {
        l->rows = order + at, l->n = fh_min(l->batch, s->n - at);
        loss += step(l, s->states, s->positions, false, job);
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
        for (size_t at = 0; at < taught; at += l->batch, done++) {
            if (fh_job_stopped(job)) { rc = fh_fail(err, FH_EINTERRUPTED, "interrupted"); goto out; }
            m_power *= 0.9, v_power *= 0.999;
            l->correct_m = 1 / (1 - m_power), l->correct_v = 1 / (1 - v_power);
            l->rate = p->rate * scale * (1 - (double)done / (double)(steps * p->passes));
            l->rows = order + at, l->n = fh_min(l->batch, taught - at);
            step(l, s->states, s->positions, true, job);
            fh_job_progress(job, "learning routing", (double)(pass * taught + at + l->n), (double)(p->passes * taught), "states");
        }
    }
    fh_job_progress(job, "learning routing", 1, 1, "states");
    memcpy(centroids, l->best, cells * sizeof *centroids);
    out->loss = least, out->states = s->n;
out:
    fh_free(order);
    return rc;
}

fh_status fh_learn_routing(float *centroids, uint32_t k, uint32_t *assignment, const fh_dense *dense, const float *states, const size_t *positions, size_t n,
                           const fh_learn_params *params, const fh_job *job, fh_learn_report *out, fh_err *err)
{
    fh_learn_params p = *params;
    size_t d = dense->rows.cols, cells, pulls;
    lesson s = {.dense = dense, .states = states, .positions = positions, .n = n, .taught = n - n / 10, .k = k, .d = d};
    float *pull = NULL;
    learner l = {.k = k, .d = d, .unit = p.unit};
    fh_status rc;
    if (!p.passes) p.passes = FH_LEARN_PASSES;
    p.moves = (unsigned)fh_min(p.moves, p.passes - 1);
    if (!(p.rate > 0)) p.rate = 0.013;
    if (!p.batch) p.batch = 256;
    l.batch = p.batch;
    *out = (fh_learn_report){0};
    if (n < FH_LEARN_STATES) return fh_fail(err, FH_ECHECK, "learned routing needs at least %d states, here are %zu: collect more with 'fhtool hidden --tokens'", FH_LEARN_STATES, n);
    if (!fh_mul(k, d, &cells) || !fh_mul(dense->vocab, d, &pulls)) return fh_fail(err, FH_ENOMEM, "out of memory");
    l.c = fh_malloc(cells * sizeof *l.c), l.best = fh_malloc(cells * sizeof *l.c), l.grad = fh_malloc(cells * sizeof *l.c);
    l.m = fh_calloc(cells, sizeof *l.m), l.v = fh_calloc(cells, sizeof *l.v);
    l.h = fh_malloc(l.batch * d * sizeof *l.h), l.ht = fh_malloc(l.batch * d * sizeof *l.h);
    l.s = fh_malloc(l.batch * k * sizeof *l.s), l.gt = fh_malloc(l.batch * k * sizeof *l.s), l.loss = fh_malloc(l.batch * sizeof *l.loss);
    if (!l.c || !l.best || !l.grad || !l.m || !l.v || !l.h || !l.ht || !l.s || !l.gt || !l.loss) { rc = fh_fail(err, FH_ENOMEM, "out of memory for learned routing"); goto out; }
    memcpy(l.c, centroids, cells * sizeof *l.c);
    if (p.unit)
        for (uint32_t c = 0; c < k; c++) {
            double square = 0;
            for (size_t j = 0; j < d; j++) square += (double)l.c[c * d + j] * l.c[c * d + j];
            for (size_t j = 0; j < d; j++) l.c[c * d + j] = (float)(l.c[c * d + j] / sqrt(square));
        }
    double began = fh_now(), product = 2.0 * (double)n * (double)k * (double)d;
    if ((rc = make_targets(&s, assignment, p.moves > 0, job, err)) < 0) goto out;
    out->target_seconds = fh_now() - began, began += out->target_seconds;
    out->target_operations = 2.0 * (double)n * (double)dense->rows.rows * (double)d;
    if (p.moves) {
        pull = fh_malloc(pulls * sizeof *pull);
        rc = pull ? fh_token_pull(pull, dense, &s.likely, states, positions, s.taught, job, err) : fh_fail(err, FH_ENOMEM, "out of memory for moving tokens");
        if (rc < 0) goto out;
        out->move_seconds = fh_now() - began;
    }
    rc = passes(&l, centroids, assignment, &s, pull, &p, job, out, err);
    out->pass_seconds = fh_now() - began - out->move_seconds;
    out->pass_operations = product * (1.9 * out->made + 0.1); /* nine tenths are taught, forward and backward; the tenth is asked before each pass and at the end */
out:
    fh_sparse_free(&s.masses);
    fh_sparse_free(&s.likely);
    fh_free(pull);
    fh_free(l.c);
    fh_free(l.best);
    fh_free(l.grad);
    fh_free(l.m);
    fh_free(l.v);
    fh_free(l.h);
    fh_free(l.ht);
    fh_free(l.s);
    fh_free(l.gt);
    fh_free(l.loss);
    return rc;
}
