/* Tokens go where the learned router expects them.
 *
 * With r(c|h) the router's softmax and p(t|h) the dense head's, what learning lowers is -sum_h sum_t p(t|h) log r(cluster of t|h).  For centroids as they
 * are that is linear in where tokens are: log r(c|h) is c . h less a number that no cluster changes, so that a token is drawn to cluster c by c . m with
 * m = sum_h p(t|h) h, whatever the number of states, and two tokens change places when the sum over both rises.  Seldom seen tokens have
 * little in m; to it comes the state in which a token stands out: states that are normal with covariance S, weighted by exp(w . h), have their mean moved by
 * S w.  The mean of all rows and that of all states favour no swap and are left out.
 *
 * Summed as it stands, frequent tokens that are found well already push rare ones to where no number of probes finds them: the mean of the loss falls, and the
 * last misses become more (docs/decisions/0005).  A token therefore counts as often as it was seen to the power of 1 - RARE.
 *
 * A token is tried in its NEAR best clusters.  Everything has one order: the same assignment for any number of threads.
 */
#include "calib/learn.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { NEAR = 16, BLOCK = 128, TOKENS_A_TASK = 16, SWEEPS = 4, LANES = 16 };
#define RARE 0.75
#define LEAST 1e-3    /* nats, of both tokens over all states: a swap is worth that */
#define ROUNDING 1e-6 /* relative: scores are float32 */

/* ---- what draws a token ------------------------------------------------------------------------------------------- */

typedef struct drawing {
    const fh_dense *dense;
    const float *states; const size_t *positions; size_t d;
    const double *mean;                                /* [D] of the live rows */
    const size_t *first; const uint32_t *state; const float *share; /* token t: entries first[t] .. first[t + 1) */
    float *rows, *pull; size_t at, n;                  /* tokens at .. at + n of this block; rows [BLOCK, D] */
    double *sum;                                       /* of each worker, [D] */
} drawing;

static bool live(const uint8_t *dead, size_t t) { return !(dead && dead[t]); }

static void rows_task(void *ctx, size_t i, unsigned worker)
{
    drawing *w = ctx;
    float *row = w->rows + i * w->d;
    size_t t = w->at + i;
    if (live(w->dense->dead, t)) fh_to_f32(row, w->dense->rows.dtype, fh_row(&w->dense->rows, t), w->d);
    for (size_t j = 0; j < w->d; j++) row[j] = live(w->dense->dead, t) ? (float)(row[j] - w->mean[j]) : 0;
    (void)worker;
}

static void shares_task(void *ctx, size_t task, unsigned worker)
{
    drawing *w = ctx;
    double *sum = w->sum + worker * w->d;
    for (size_t t = task * TOKENS_A_TASK; t < fh_min(w->dense->vocab, (task + 1) * TOKENS_A_TASK); t++) {
        float *pull = w->pull + t * w->d;
        double seen = 1;
        for (size_t j = 0; j < w->d; j++) sum[j] = pull[j];
        for (size_t e = w->first[t]; e < w->first[t + 1]; e++) {
            const float *h = w->states + w->positions[w->state[e]] * w->d;
            double share = w->share[e];
            for (size_t j = 0; j < w->d; j++) sum[j] += share * h[j];
            seen += share;
        }
        double by = pow(seen, -RARE);
        for (size_t j = 0; j < w->d; j++) pull[j] = (float)(sum[j] * by);
    }
}

void fh_mean_row(double *mean, const fh_dense *dense, float *row)
{
    size_t d = dense->rows.cols, n = 0;
    memset(mean, 0, d * sizeof *mean);
    for (size_t t = 0; t < dense->vocab; t++) {
        if (!live(dense->dead, t)) continue;
        fh_to_f32(row, dense->rows.dtype, fh_row(&dense->rows, t), d);
        for (size_t j = 0; j < d; j++) mean[j] += row[j];
        n++;
    }
    for (size_t j = 0; j < d; j++) mean[j] /= (double)fh_max(n, 1);
}

/* The covariance of states as float32: their second moment less the product of their mean. */
static fh_status covariance(float *s, const float *states, const size_t *positions, size_t n, size_t d, const fh_job *job, fh_err *err)
{
    double *moment = fh_malloc(d * d * sizeof *moment), *mean = fh_calloc(d, sizeof *mean);
    fh_status rc = moment && mean ? fh_second_moment(moment, states, positions, n, d, job, err) : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc < 0) goto out;
    for (size_t i = 0; i < n; i++) for (size_t j = 0; j < d; j++) mean[j] += states[positions[i] * d + j] / (double)n;
    for (size_t i = 0; i < d; i++) for (size_t j = 0; j < d; j++) s[i * d + j] = (float)(moment[i * d + j] - mean[i] * mean[j]);
out:
    fh_free(moment);
    fh_free(mean);
    return rc;
}

fh_status fh_token_pull(float *pull, const fh_dense *dense, const fh_sparse *likely, const float *states, const size_t *positions, size_t n,
                        const fh_job *job, fh_err *err)
{
    fh_pool *pool = fh_job_pool(job);
    size_t d = dense->rows.cols, v = dense->vocab, entries = likely->first[n];
    float *s = fh_malloc(d * d * sizeof *s), *rows = fh_malloc(BLOCK * d * sizeof *rows), *share = fh_malloc(fh_max(entries, 1) * sizeof *share);
    uint32_t *state = fh_malloc(fh_max(entries, 1) * sizeof *state);
    size_t *first = fh_calloc(v + 2, sizeof *first);
    double *mean = fh_malloc(d * sizeof *mean), *sum = fh_malloc(fh_pool_threads(pool) * d * sizeof *sum);
    fh_status rc = s && rows && share && state && first && mean && sum ? FH_OK : fh_fail(err, FH_ENOMEM, "out of memory for moving tokens");
    if (rc < 0 || (rc = covariance(s, states, positions, n, d, job, err)) < 0) goto out;
    fh_mean_row(mean, dense, rows);
    drawing w = {.dense = dense, .states = states, .positions = positions, .d = d, .mean = mean, .first = first, .state = state, .share = share, .rows = rows,
                 .pull = pull, .sum = sum};
    for (w.at = 0; w.at < v; w.at += BLOCK) {
        w.n = fh_min(BLOCK, v - w.at);
        if (fh_job_stopped(job)) { rc = fh_fail(err, FH_EINTERRUPTED, "interrupted"); goto out; }
        fh_pool_run(pool, w.n, rows_task, &w);
        fh_gemm_nt(pool, w.n, d, d, rows, d, s, d, pull + w.at * d, d);
    }
    for (size_t e = 0; e < entries; e++) first[likely->index[e] + 2]++; /* one too far: filling moves them back */
    for (size_t t = 1; t <= v; t++) first[t + 1] += first[t];
    for (size_t i = 0; i < n; i++)
        for (size_t e = likely->first[i]; e < likely->first[i + 1]; e++) {
            size_t at = first[likely->index[e] + 1]++;
            state[at] = (uint32_t)i, share[at] = likely->value[e];
        }
    fh_pool_run(pool, (v + TOKENS_A_TASK - 1) / TOKENS_A_TASK, shares_task, &w);
out:
    fh_free(s);
    fh_free(rows);
    fh_free(share);
    fh_free(state);
    fh_free(first);
    fh_free(mean);
    fh_free(sum);
    return rc;
}

/* ---- changing places ---------------------------------------------------------------------------------------------- */

typedef struct wish { float gain; uint32_t token; } wish;

typedef struct mover {
    const float *pull, *centroids;
    const uint8_t *dead;
    uint32_t v, k, near; size_t d;
    uint32_t *home;                /* [V] */
    uint32_t *first, *member, *at; /* [K + 1], [V], [V]: member[at[t]] is t, cluster c has member[first[c]] .. member[first[c + 1] - 1] */
    uint32_t *cluster; float *score; /* [V, near] the best clusters of each token, best first */
    float *own;                    /* [V] its score where it is */
    float *scores; size_t begin;   /* [BLOCK, K] of the tokens from `begin` on */
    wish *wishes;
} mover;

static void near_task(void *ctx, size_t i, unsigned worker)
{
    mover *m = ctx;
    size_t t = m->begin + i;
    uint32_t n = 0, *cluster = m->cluster + t * m->near;
    float *score = m->score + t * m->near;
    const float *s = m->scores + i * m->k;
    for (uint32_t c = 0; c < m->k; c++) {
        if (n == m->near && !(s[c] > score[n - 1])) continue;
        uint32_t at = n < m->near ? n++ : n - 1;
        for (; at && s[c] > score[at - 1]; at--) score[at] = score[at - 1], cluster[at] = cluster[at - 1];
        score[at] = s[c], cluster[at] = c;
    }
    m->own[t] = s[m->home[t]];
    (void)worker;
}

static float dot(const float *a, const float *b, size_t d)
{
    float sum[LANES] = {0};
    size_t j = 0;
    for (; j + LANES <= d; j += LANES) for (size_t l = 0; l < LANES; l++) sum[l] += a[j + l] * b[j + l];
    for (; j < d; j++) sum[0] += a[j] * b[j];
    for (size_t l = LANES / 2; l; l /= 2) for (size_t i = 0; i < l; i++) sum[i] += sum[i + l];
    return sum[0];
}

/* What token u gains by going to cluster c, or less than `enough` where it is no more than that. */
static double gain_of(const mover *m, uint32_t u, uint32_t c, double enough)
{
    const uint32_t *cluster = m->cluster + (size_t)u * m->near;
    const float *score = m->score + (size_t)u * m->near;
    double own = m->own[u], most = (double)score[m->near - 1] - own; /* of clusters that are not among its near ones */
    if (!((double)score[0] - own > enough)) return -INFINITY;
    for (uint32_t j = 0; j < m->near; j++) if (cluster[j] == c) return (double)score[j] - own;
    return most > enough ? (double)dot(m->pull + u * m->d, m->centroids + c * m->d, m->d) - own : -INFINITY;
}

static double least(const mover *m, uint32_t t, uint32_t u) { return LEAST + ROUNDING * (fabs((double)m->own[t]) + fabs((double)m->own[u])); }

static void change(mover *m, uint32_t t, uint32_t u)
{
    uint32_t home = m->home[t], at = m->at[t];
    m->home[t] = m->home[u], m->home[u] = home;
    m->at[t] = m->at[u], m->at[u] = at;
    m->member[m->at[t]] = t, m->member[m->at[u]] = u;
}

/* The best cluster that it gains to go to, and has a token that can go where it comes from. */
static bool grant(mover *m, uint32_t t)
{
    const uint32_t *cluster = m->cluster + (size_t)t * m->near;
    const float *score = m->score + (size_t)t * m->near;
    uint32_t a = m->home[t];
    for (uint32_t j = 0; j < m->near; j++) {
        double gain = (double)score[j] - (double)m->own[t], best = 0, its = 0;
        uint32_t b = cluster[j], partner = FH_NO_TOKEN;
        if (!(gain > LEAST)) break;
        for (uint32_t i = m->first[b]; b != a && i < m->first[b + 1]; i++) {
            uint32_t u = m->member[i];
            if (!live(m->dead, u)) continue;
            double needed = fmax(best, least(m, t, u)), other = gain_of(m, u, a, needed - gain);
            if (gain + other > needed) best = gain + other, its = other, partner = u;
        }
        if (partner == FH_NO_TOKEN) continue;
        m->own[t] = score[j], m->own[partner] = (float)((double)m->own[partner] + its);
        change(m, t, partner);
        return true;
    }
    return false;
}

static int most_first(const void *l, const void *r)
{
    const wish *x = l, *y = r;
    if (x->gain != y->gain) return x->gain > y->gain ? -1 : 1;
    return (x->token > y->token) - (x->token < y->token);
}

static size_t sweep(mover *m)
{
    size_t n = 0, swaps = 0;
    for (uint32_t t = 0; t < m->v; t++) {
        float gain = m->score[(size_t)t * m->near] - m->own[t];
        if (live(m->dead, t) && gain > (float)LEAST) m->wishes[n++] = (wish){gain, t};
    }
    qsort(m->wishes, n, sizeof *m->wishes, most_first);
    for (size_t i = 0; i < n; i++) swaps += grant(m, m->wishes[i].token);
    return swaps;
}

static fh_status find_near(mover *m, const fh_job *job, fh_err *err)
{
    for (m->begin = 0; m->begin < m->v; m->begin += BLOCK) {
        size_t n = fh_min(BLOCK, m->v - m->begin);
        if (fh_job_stopped(job)) return fh_fail(err, FH_EINTERRUPTED, "interrupted");
        fh_gemm_nt(fh_job_pool(job), n, m->k, m->d, m->pull + m->begin * m->d, m->d, m->centroids, m->d, m->scores, m->k);
        fh_pool_run(fh_job_pool(job), n, near_task, m);
        fh_job_progress(job, "moving tokens", (double)(m->begin + n), (double)m->v, "tokens");
    }
    return FH_OK;
}

fh_status fh_move_tokens(uint32_t *assignment, size_t *swaps, const float *pull, const uint8_t *dead, uint32_t vocab, const float *centroids, uint32_t k,
                         size_t d, const fh_job *job, fh_err *err)
{
    mover m = {.pull = pull, .centroids = centroids, .dead = dead, .v = vocab, .k = k, .near = (uint32_t)fh_min(NEAR, k), .d = d, .home = assignment};
    size_t v = vocab, done;
    fh_status rc = FH_ENOMEM;
    *swaps = 0;
    m.first = fh_calloc((size_t)k + 2, sizeof *m.first), m.member = fh_malloc(v * sizeof *m.member), m.at = fh_malloc(v * sizeof *m.at);
    m.cluster = fh_malloc(v * m.near * sizeof *m.cluster), m.score = fh_malloc(v * m.near * sizeof *m.score), m.own = fh_malloc(v * sizeof *m.own);
    m.scores = fh_malloc((size_t)BLOCK * k * sizeof *m.scores), m.wishes = fh_malloc(v * sizeof *m.wishes);
    if (!m.first || !m.member || !m.at || !m.cluster || !m.score || !m.own || !m.scores || !m.wishes) {
        fh_fail(err, FH_ENOMEM, "out of memory for moving tokens");
        goto out;
    }
    for (uint32_t t = 0; t < vocab; t++) m.first[assignment[t] + 2]++;
    for (uint32_t c = 1; c <= k; c++) m.first[c + 1] += m.first[c];
    for (uint32_t t = 0; t < vocab; t++) m.at[t] = m.first[assignment[t] + 1]++, m.member[m.at[t]] = t;
    if ((rc = find_near(&m, job, err)) < 0) goto out;
    for (unsigned i = 0; i < SWEEPS; i++) {
        *swaps += done = sweep(&m);
        if (done * 50 <= *swaps) break;
    }
out:
    fh_free(m.first);
    fh_free(m.member);
    fh_free(m.at);
    fh_free(m.cluster);
    fh_free(m.score);
    fh_free(m.own);
    fh_free(m.scores);
    fh_free(m.wishes);
    return rc;
}

/* ---- what the clusters hold then ------------------------------------------------------------------------------------ */

static float *mass_of(fh_sparse *s, size_t begin, size_t *end, uint32_t cluster)
{
    for (size_t e = begin; e < *end; e++) if (s->index[e] == cluster) return &s->value[e];
    s->index[*end] = cluster, s->value[*end] = 0;
    return &s->value[(*end)++];
}

fh_status fh_move_masses(fh_sparse *out, const fh_sparse *masses, const fh_sparse *likely, size_t n, const uint32_t *from, const uint32_t *to, fh_err *err)
{
    size_t more = 0, at = 0;
    fh_sparse s = {.first = fh_calloc(n + 1, sizeof *s.first)};
    for (size_t e = 0; e < likely->first[n]; e++) more += 2 * (from[likely->index[e]] != to[likely->index[e]]);
    fh_status rc = s.first ? fh_sparse_grow(&s, 0, masses->first[n] + more, err) : fh_fail(err, FH_ENOMEM, "out of memory for moving tokens");
    if (rc < 0) { fh_sparse_free(&s); return rc; }
    for (size_t i = 0; i < n; i++) {
        size_t begin = at, had = masses->first[i + 1] - masses->first[i];
        memcpy(s.index + at, masses->index + masses->first[i], had * sizeof *s.index);
        memcpy(s.value + at, masses->value + masses->first[i], had * sizeof *s.value);
        at += had;
        for (size_t e = likely->first[i]; e < likely->first[i + 1]; e++) {
            uint32_t t = likely->index[e];
            if (from[t] == to[t]) continue;
            float *left = mass_of(&s, begin, &at, from[t]), share = fminf(likely->value[e], *left);
            *left -= share;
            *mass_of(&s, begin, &at, to[t]) += share;
        }
        s.first[i + 1] = at;
    }
    *out = s;
    return FH_OK;
}
