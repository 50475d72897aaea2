/* What learned routing is taught: the dense head's softmax over states, summed by cluster.
 *
 * Logits of all rows are products of eight bits (strips.c): rows less their mean row, which is what they have in common and would take most of the digits; the
 * mean row's own logit is added in double.  That leaves an error of a few hundredths of a nat in each, independent from row to row (docs/decisions/0035), and
 * the rows that hold most of the mass are scored again in the checkpoint's dtype.  Integers and one order of sums: the same masses on every
 * instruction set and for any number of threads.  Masses below KEEP are dropped (they hold under 1 % together and would make the targets of a large
 * head dense).
 */
#include "calib/learn.h"

#include <math.h>
#include <string.h>

#define KEEP 1e-5f
/* Of a token's shares the ones from LIKELY on are kept for moving tokens, and of those of one state as many as MOST. */
#define LIKELY 1e-3f
enum { MOST = 128 };
/* Rows within REACH nats of a state's best are scored again; where that is more than AGAIN rows, half as far. */
#define REACH 6.0f
enum { AGAIN = 64 };
enum { LOGITS_BYTES = 64 << 20, BLOCK_MOST = 6 * FH_PANEL, ROWS_A_TASK = 64 };

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

typedef struct teach {
    const fh_dense *dense;
    const fh_learn_math *math;
    size_t rows, d, n;             /* n: states of this block */
    uint32_t k;
    double *mean;                  /* [D] */
    float *common;                 /* [D] the same in float32 */
    fh_strips scores;
    uint8_t *out;                  /* [rows] dead, or of no token */
    uint32_t *into;                /* [rows] cluster */
    float *bias;                   /* [rows] or NULL */
    float *h, *z, *q;              /* [block, D], [strips, rows, 16], [strips, K, 16] */
    float *wide;                   /* of each worker [D] */
    uint32_t *list;                /* of each worker [rows] */
    uint32_t *tokens, *n_likely; float *shares; /* [block, MOST], [block], [block, MOST]; NULL: not wanted */
} teach;

static void rows_task(void *ctx, size_t task, unsigned worker)
{
    teach *t = ctx;
    float *wide = t->wide + worker * t->d;
    for (size_t r = task * ROWS_A_TASK; r < fh_min(t->rows, (task + 1) * ROWS_A_TASK); r++) {
        if (t->out[r]) memset(wide, 0, t->d * sizeof *wide);
        else fh_to_f32(wide, t->dense->rows.dtype, fh_row(&t->dense->rows, r), t->d);
        fh_strips_row(&t->scores, r, wide, t->out[r] ? NULL : t->common, worker);
    }
}

/* The best rows of one state again, as they are; the largest logit.  No other row is larger by more than rounding. */
static float score_again(const teach *t, float *z, const float *h, const uint32_t *list, size_t listed, float most, size_t lane)
{
    uint32_t rows[AGAIN];
    float logits[AGAIN];
    size_t n = AGAIN + 1;
    for (float reach = REACH; n > AGAIN; reach /= 2) {
        n = 0;
        for (size_t i = 0; i < listed && n <= AGAIN; i++) {
            if (!(z[list[i] * (size_t)FH_STRIP + lane] >= most - reach)) continue;
            if (n < AGAIN) rows[n] = list[i];
            n++;
        }
        if (n > AGAIN && reach < 1e-3f) n = AGAIN; /* as many as that are equal */
    }
    fh_dense_some(t->dense, h, rows, n, logits);
    most = -INFINITY;
    for (size_t i = 0; i < n; i++) z[rows[i] * (size_t)FH_STRIP + lane] = logits[i], most = fmaxf(most, logits[i]);
    return most;
}

static void find_likely(teach *t, size_t state, const float *z, size_t lane, const uint32_t *list, size_t listed, double sum)
{
    uint32_t n = MOST + 1, *tokens = t->tokens + state * MOST;
    for (double bar = LIKELY * sum; n > MOST; bar *= 2) { /* no more than MOST can have a share of 1 / MOST */
        n = 0;
        for (size_t i = 0; i < listed && n <= MOST; i++) {
            uint32_t r = list[i];
            float share = z[r * (size_t)FH_STRIP + lane];
            if (!(share >= bar)) continue;
            if (n < MOST) tokens[n] = t->dense->token_of ? t->dense->token_of[r] : r, t->shares[state * MOST + n] = (float)(share / sum);
            n++;
        }
    }
    t->n_likely[state] = n;
}

static void teach_task(void *ctx, size_t strip, unsigned worker)
{
    teach *t = ctx;
    float *z = t->z + strip * t->rows * FH_STRIP, *q = t->q + strip * t->k * FH_STRIP, base[FH_STRIP] = {0}, most[FH_STRIP], bar[FH_STRIP], sums[FH_STRIP];
    uint32_t *list = t->list + worker * t->rows;
    size_t states = fh_min(FH_STRIP, t->n - strip * FH_STRIP), listed;
    const float *h = t->h + strip * FH_STRIP * t->d;
    for (size_t i = 0; i < states; i++) {
        double dot = 0;
        for (size_t j = 0; j < t->d; j++) dot += t->mean[j] * h[i * t->d + j];
        base[i] = (float)dot;
    }
    t->math->finish(z, t->rows, base, t->bias, t->dense->softcap, t->out, most);
    for (size_t i = 0; i < FH_STRIP; i++) bar[i] = i < states ? most[i] - REACH : INFINITY;
    listed = t->math->above(list, z, t->rows, bar);
    for (size_t i = 0; i < states; i++) most[i] = score_again(t, z, h + i * t->d, list, listed, most[i], i);
    t->math->exponents(z, t->rows, most, sums);
    memset(q, 0, t->k * FH_STRIP * sizeof *q);
    t->math->gather(q, z, t->rows, t->into);
    double total[FH_STRIP] = {0};
    for (uint32_t c = 0; c < t->k; c++) for (size_t i = 0; i < FH_STRIP; i++) total[i] += q[c * (size_t)FH_STRIP + i];
    for (uint32_t c = 0; c < t->k; c++) for (size_t i = 0; i < states; i++) q[c * (size_t)FH_STRIP + i] = (float)(q[c * (size_t)FH_STRIP + i] / total[i]);
    if (!t->tokens) return;
    for (size_t i = 0; i < FH_STRIP; i++) bar[i] = i < states ? (float)(LIKELY * total[i]) : INFINITY;
    listed = t->math->above(list, z, t->rows, bar);
    for (size_t i = 0; i < states; i++) find_likely(t, strip * FH_STRIP + i, z, i, list, listed, total[i]);
}

static fh_status add_masses(fh_sparse *t, size_t at, const float *q, uint32_t k, size_t position, fh_err *err)
{
    size_t n = t->first[at];
    double kept = 0, all = 0;
    fh_status rc = fh_sparse_grow(t, n, k, err);
    if (rc < 0) return rc;
    for (uint32_t c = 0; c < k; c++, q += FH_STRIP) {
        all += *q;
        if (*q >= KEEP) t->index[n] = c, t->value[n++] = *q, kept += *q;
    }
    if (!isfinite(all))
        return fh_fail(err, FH_ECHECK, "learned routing: the logits of position %zu pass what float32 holds: are head and states of one model?", position);
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

/* Which rows count, where their tokens belong, and what they have in common. */
static void know_rows(teach *t, const uint32_t *assignment)
{
    const fh_dense *dense = t->dense;
    for (size_t r = 0; r < t->rows; r++) {
        size_t token = dense->token_of ? dense->token_of[r] : r;
        t->out[r] = token >= dense->vocab || (dense->dead && dense->dead[token]);
        t->into[r] = token < dense->vocab ? assignment[token] : 0;
        if (t->bias) t->bias[r] = token < dense->vocab ? dense->bias[token] : 0;
    }
    fh_mean_row(t->mean, dense, t->wide);
    for (size_t j = 0; j < t->d; j++) t->common[j] = (float)t->mean[j];
    for (size_t j = 0; j < t->d; j++) t->mean[j] = t->common[j]; /* what was taken off is what is added */
    fh_pool_run(t->scores.pool, (t->rows + ROWS_A_TASK - 1) / ROWS_A_TASK, rows_task, t);
}

fh_status fh_learn_targets(fh_sparse *masses, fh_sparse *likely, const fh_dense *dense, const float *states, const size_t *positions, size_t n,
                           const uint32_t *assignment, uint32_t k, double *operations, const fh_job *job, fh_err *err)
{
    fh_pool *pool = fh_job_pool(job);
    teach t = {.dense = dense, .math = fh_learn_math_choose(fh_isa_name()), .rows = dense->rows.rows, .d = dense->rows.cols, .k = k};
    size_t workers = fh_pool_threads(pool), d = t.d, logits = 0;
    size_t block = fh_max(fh_min(LOGITS_BYTES / (sizeof(float) * fh_max(t.rows, 1)) / FH_PANEL * FH_PANEL, BLOCK_MOST), FH_PANEL);
    fh_status rc = fh_mul(block * sizeof *t.z, t.rows, &logits) ? fh_strips_make(&t.scores, t.rows, block, d, pool, err)
                                                                 : fh_fail(err, FH_ENOMEM, "learned routing: logits of %zu rows pass the address space", t.rows);
    *operations = 2.0 * (double)n * (double)t.rows * (double)d;
    if (rc < 0) goto out;
    t.mean = fh_malloc(d * sizeof *t.mean), t.common = fh_malloc(d * sizeof *t.common), t.out = fh_malloc(t.rows), t.into = fh_malloc(t.rows * sizeof *t.into);
    t.bias = dense->bias ? fh_malloc(t.rows * sizeof *t.bias) : NULL;
    t.h = fh_malloc(block * d * sizeof *t.h), t.z = fh_aligned(logits), t.q = fh_aligned(block * k * sizeof *t.q);
    t.wide = fh_malloc(workers * d * sizeof *t.wide), t.list = fh_malloc(workers * t.rows * sizeof *t.list);
    t.tokens = likely ? fh_malloc(block * MOST * sizeof *t.tokens) : NULL, t.n_likely = fh_calloc(block, sizeof *t.n_likely);
    t.shares = likely ? fh_malloc(block * MOST * sizeof *t.shares) : NULL;
    masses->first = fh_calloc(n + 1, sizeof *masses->first);
    if (likely) likely->first = fh_calloc(n + 1, sizeof *likely->first);
    if (!t.mean || !t.common || !t.out || !t.into || (dense->bias && !t.bias) || !t.h || !t.z || !t.q || !t.wide || !t.list || !t.n_likely ||
        (likely && (!t.tokens || !t.shares || !likely->first)) || !masses->first) {
        rc = fh_fail(err, FH_ENOMEM, "out of memory for the targets of learned routing");
        goto out;
    }
    know_rows(&t, assignment);
    for (size_t at = 0; at < n; at += block) {
        t.n = fh_min(block, n - at);
        if (fh_job_stopped(job)) { rc = fh_fail(err, FH_EINTERRUPTED, "interrupted"); goto out; }
        for (size_t i = 0; i < t.n; i++) memcpy(t.h + i * d, states + positions[at + i] * d, d * sizeof *t.h);
        fh_strips_states(&t.scores, t.h, t.n);
        fh_strips_scores(&t.scores, t.z);
        fh_pool_run(pool, (t.n + FH_STRIP - 1) / FH_STRIP, teach_task, &t);
        for (size_t i = 0; i < t.n; i++) {
            if ((rc = add_masses(masses, at + i, t.q + i / FH_STRIP * k * FH_STRIP + i % FH_STRIP, k, positions[at + i], err)) < 0) goto out;
            if (likely && (rc = add_likely(likely, at + i, t.tokens + i * MOST, t.shares + i * MOST, t.n_likely[i], err)) < 0) goto out;
        }
        fh_job_progress(job, "routing targets", (double)(at + t.n), (double)n, "states");
    }
out:
    fh_strips_free(&t.scores);
    fh_free(t.mean);
    fh_free(t.common);
    fh_free(t.out);
    fh_free(t.into);
    fh_free(t.bias);
    fh_free(t.h);
    fh_free(t.z);
    fh_free(t.q);
    fh_free(t.wide);
    fh_free(t.list);
    fh_free(t.tokens);
    fh_free(t.n_likely);
    fh_free(t.shares);
    return rc;
}
