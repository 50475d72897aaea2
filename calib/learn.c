/* Routing learned from states: the dense head's cluster masses distilled into the centroids.
 *
 * With q_k(h) the dense softmax's mass in cluster k, minimise -sum_k q_k log softmax(C h)_k over C [K, D] by Adam on minibatches: a softmax head
 * of K classes taught by the dense one, convex in C.  Masses below KEEP are dropped from the targets (they hold under 1 % together
 * and would make the targets of a large head dense).  All products go through fixed tiles and all sums through a fixed order: the
 * same centroids for any number of threads.
 */
#include "calib/calib.h"

#include <math.h>
#include <string.h>

#define KEEP 1e-5f
enum { BLOCK = 64, ROWS_A_TASK = 16 };

/* Sparse targets: state i has entries first[i] .. first[i + 1). */
typedef struct targets { size_t *first; uint32_t *cluster; float *mass; size_t cap; } targets;

static void targets_free(targets *t) { fh_free(t->first); fh_free(t->cluster); fh_free(t->mass); *t = (targets){0}; }

/* ---- what the dense head says ------------------------------------------------------------------------------------ */

typedef struct teach { const fh_dense *dense; const uint32_t *assignment; uint32_t k; const float *z; float *q; } teach;

static void teach_task(void *ctx, size_t i, unsigned worker)
{
    teach *t = ctx;
    const float *z = t->z + i * t->dense->vocab;
    float *q = t->q + i * t->k, most = -INFINITY;
    double sum = 0;
    memset(q, 0, t->k * sizeof *q);
    for (uint32_t v = 0; v < t->dense->vocab; v++)
        if (!(t->dense->dead && t->dense->dead[v]) && z[v] > most) most = z[v];
    for (uint32_t v = 0; v < t->dense->vocab; v++) {
        if (t->dense->dead && t->dense->dead[v]) continue;
        float e = expf(z[v] - most);
        q[t->assignment[v]] += e, sum += e;
    }
    for (uint32_t c = 0; c < t->k; c++) q[c] = (float)(q[c] / sum);
    (void)worker;
}

static fh_status add_targets(targets *t, size_t at, const float *q, uint32_t k, fh_err *err)
{
    size_t n = t->first[at];
    double kept = 0;
    if (n + k > t->cap) {
        size_t cap = fh_max(t->cap * 2, n + k + (1 << 20));
        uint32_t *c = fh_realloc(t->cluster, cap * sizeof *c);
        if (c) t->cluster = c;
        float *m = c ? fh_realloc(t->mass, cap * sizeof *m) : NULL;
        if (m) t->mass = m;
        if (!m) return fh_fail(err, FH_ENOMEM, "out of memory for the targets of learned routing: use fewer states (--tokens)");
        t->cap = cap;
    }
    for (uint32_t c = 0; c < k; c++)
        if (q[c] >= KEEP) t->cluster[n] = c, t->mass[n++] = q[c], kept += q[c];
    for (size_t j = t->first[at]; j < n; j++) t->mass[j] = (float)(t->mass[j] / kept);
    t->first[at + 1] = n;
    return FH_OK;
}

static fh_status make_targets(targets *t, const fh_dense *dense, const uint32_t *assignment, uint32_t k, const float *states, const size_t *positions, size_t n,
                              const fh_job *job, fh_err *err)
{
    fh_status rc = FH_OK;
    size_t d = dense->rows.cols;
    float *h = fh_malloc(BLOCK * d * sizeof *h), *z = fh_malloc((size_t)BLOCK * dense->vocab * sizeof *z), *q = fh_malloc((size_t)BLOCK * k * sizeof *q);
    t->first = fh_calloc(n + 1, sizeof *t->first);
    if (!h || !z || !q || !t->first) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    for (size_t at = 0; at < n; at += BLOCK) {
        size_t m = fh_min(BLOCK, n - at);
        if (fh_job_stopped(job)) { rc = fh_fail(err, FH_EINTERRUPTED, "interrupted"); goto out; }
        for (size_t i = 0; i < m; i++) memcpy(h + i * d, states + positions[at + i] * d, d * sizeof *h);
        if ((rc = fh_dense_logits(dense, fh_job_pool(job), h, m, z, err)) < 0) goto out;
        teach say = {dense, assignment, k, z, q};
        fh_pool_run(fh_job_pool(job), m, teach_task, &say);
        for (size_t i = 0; i < m; i++) if ((rc = add_targets(t, at + i, q + i * k, k, err)) < 0) goto out;
        fh_job_progress(job, "routing targets", (double)(at + m), (double)n, "states");
    }
out:
    fh_free(h);
    fh_free(z);
    fh_free(q);
    return rc;
}

/* ---- learning ----------------------------------------------------------------------------------------------------- */

typedef struct learner {
    uint32_t k; size_t d, batch;
    float *c, *best, *m, *v;          /* [K, D] centroids, the best so far, Adam's moments */
    float *h, *ht, *s, *gt, *grad;    /* [batch, D], [D, batch], [batch, K], [K, batch], [K, D] */
    double *loss;                     /* [batch] */
    const targets *t;
    const size_t *rows; size_t n;     /* of this batch: indices into the targets */
    double rate, correct_m, correct_v;
    bool unit;
} learner;

/* Scores of one state into softmax less target; its loss. */
static void error_task(void *ctx, size_t i, unsigned worker)
{
    learner *l = ctx;
    float *s = l->s + i * l->k, most = -INFINITY;
    const targets *t = l->t;
    size_t row = l->rows[i];
    double sum = 0, loss = 0;
    for (uint32_t c = 0; c < l->k; c++) if (s[c] > most) most = s[c];
    for (size_t j = t->first[row]; j < t->first[row + 1]; j++) loss -= (double)t->mass[j] * ((double)s[t->cluster[j]] - most);
    for (uint32_t c = 0; c < l->k; c++) s[c] = expf(s[c] - most), sum += s[c];
    l->loss[i] = loss + log(sum);
    float by = (float)(1 / (sum * (double)l->n)), one = 1 / (float)l->n;
    for (uint32_t c = 0; c < l->k; c++) s[c] *= by;
    for (size_t j = t->first[row]; j < t->first[row + 1]; j++) s[t->cluster[j]] -= t->mass[j] * one;
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

static fh_status passes(learner *l, float *centroids, const targets *t, const float *states, const size_t *positions, size_t n, const fh_learn_params *p, const fh_job *job,
                        fh_learn_report *out, fh_err *err)
{
    size_t cells = (size_t)l->k * l->d, held = n / 10, taught = n - held, steps = (taught + l->batch - 1) / l->batch, done = 0;
    size_t *order = fh_malloc(n * sizeof *order);
    double scale = rms(centroids, cells), least = INFINITY, m_power = 1, v_power = 1;
    fh_status rc = FH_OK;
    fh_rng rng;
    if (!order) return fh_fail(err, FH_ENOMEM, "out of memory");
    fh_rng_seed(&rng, p->seed, 0x6c);
    for (size_t i = 0; i < n; i++) order[i] = i; /* the last tenth, whole documents but one, says when to stop */
    l->t = t;
    for (unsigned pass = 0; pass <= p->passes; pass++) {
        double loss = 0;
        for (size_t at = taught; at < n; at += l->batch) l->rows = order + at, l->n = fh_min(l->batch, n - at), loss += step(l, states, positions, false, job);
        loss /= (double)fh_max(held, 1);
        if (pass == 0) out->loss_before = loss;
        fh_job_say(job, FH_DEBUG, "learned routing: pass %u of %u, loss on held-out states %.5f", pass, p->passes, loss);
        if (loss < least) least = loss, out->passes = pass, memcpy(l->best, l->c, cells * sizeof *l->c);
        if (pass == p->passes || pass >= out->passes + 2) break; /* no better for two passes */
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
            step(l, states, positions, true, job);
            fh_job_progress(job, "learning routing", (double)(pass * taught + at + l->n), (double)(p->passes * taught), "states");
        }
    }
    fh_job_progress(job, "learning routing", 1, 1, "states");
    memcpy(centroids, l->best, cells * sizeof *centroids);
    out->loss = least, out->states = n;
out:
    fh_free(order);
    return rc;
}

fh_status fh_learn_routing(float *centroids, uint32_t k, const uint32_t *assignment, const fh_dense *dense, const float *states, const size_t *positions, size_t n,
                           const fh_learn_params *params, const fh_job *job, fh_learn_report *out, fh_err *err)
{
    fh_learn_params p = *params;
    size_t d = dense->rows.cols, cells;
    targets t = {0};
    learner l = {.k = k, .d = d, .unit = p.unit};
    fh_status rc;
    if (!p.passes) p.passes = 8;
    if (!(p.rate > 0)) p.rate = 0.013;
    if (!p.batch) p.batch = 256;
    l.batch = p.batch;
    *out = (fh_learn_report){0};
    if (n < FH_LEARN_STATES) return fh_fail(err, FH_ECHECK, "learned routing needs at least %d states, here are %zu: collect more with 'fhtool hidden --tokens'", FH_LEARN_STATES, n);
    if (!fh_mul(k, d, &cells)) return fh_fail(err, FH_ENOMEM, "out of memory");
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
    if ((rc = make_targets(&t, dense, assignment, k, states, positions, n, job, err)) < 0) goto out;
    out->target_seconds = fh_now() - began, began += out->target_seconds;
    out->target_operations = 2.0 * (double)n * (double)dense->rows.rows * (double)d;
    rc = passes(&l, centroids, &t, states, positions, n, &p, job, out, err);
    out->pass_seconds = fh_now() - began;
    out->pass_operations = product * (1.9 * out->made + 0.1); /* nine tenths are taught, forward and backward; the tenth is asked before each pass and at the end */
out:
    targets_free(&t);
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
