/* Rows as the head's output sees them.
 *
 * What a centroid c gets wrong about a token is (w - c).h, so the distance between rows is (w - u)' S (w - u) with S the mean of h h' over states, and a ridge.
 * With S = L L' that is the Euclidean distance between the rows of W L.
 */
#include "calib/learn.h"

#include <math.h>
#include <string.h>

enum { STATES_AT_ONCE = 4096, ROWS_A_TASK = 64 };

/* The products of states go through the library, the blocks are added in double. */
fh_status fh_second_moment(double *s, const float *states, const size_t *positions, size_t n, size_t d, const fh_job *job, fh_err *err)
{
    float *ht = fh_malloc(d * STATES_AT_ONCE * sizeof *ht), *block = fh_malloc(d * d * sizeof *block);
    fh_status rc = ht && block ? FH_OK : fh_fail(err, FH_ENOMEM, "out of memory");
    memset(s, 0, d * d * sizeof *s);
    for (size_t at = 0; at < n && rc == FH_OK; at += STATES_AT_ONCE) {
        size_t m = fh_min(STATES_AT_ONCE, n - at);
        for (size_t i = 0; i < m; i++) for (size_t j = 0; j < d; j++) ht[j * STATES_AT_ONCE + i] = states[positions[at + i] * d + j];
        fh_gemm_nt(fh_job_pool(job), d, d, m, ht, STATES_AT_ONCE, ht, STATES_AT_ONCE, block, d);
        for (size_t i = 0; i < d * d; i++) s[i] += block[i];
        if (fh_job_stopped(job)) rc = fh_fail(err, FH_EINTERRUPTED, "interrupted");
    }
    for (size_t i = 0; i < d * d; i++) s[i] /= (double)fh_max(n, 1);
    fh_free(ht);
    fh_free(block);
    return rc;
}

struct column { double *s; size_t d, j; };

static void column_task(void *ctx, size_t task, unsigned worker)
{
    const struct column *c = ctx;
    size_t d = c->d, j = c->j, begin = j + 1 + task * ROWS_A_TASK, end = fh_min(begin + ROWS_A_TASK, d);
    const double *pivot = c->s + j * d;
    for (size_t i = begin; i < end; i++) {
        double *row = c->s + i * d, sum[4] = {0}; /* four sums that do not wait for each other */
        size_t k = 0;
        for (; k + 4 <= j; k += 4) for (size_t l = 0; l < 4; l++) sum[l] += row[k + l] * pivot[k + l];
        for (; k < j; k++) sum[0] += row[k] * pivot[k];
        row[j] = (row[j] - (sum[0] + sum[1] + sum[2] + sum[3])) / pivot[j];
    }
}

/* L of S = L L', in place in the lower triangle (Cholesky), S with its ridge. */
static fh_status cholesky(double *s, size_t d, const fh_job *job, fh_err *err)
{
    double trace = 0;
    for (size_t i = 0; i < d; i++) trace += s[i * d + i];
    if (!isfinite(trace)) return fh_fail(err, FH_EFORMAT, "the states' squares are not finite: collect the states again with 'fhtool hidden'");
    double ridge = fmax(FH_OUTPUT_RIDGE * trace / (double)d, 1e-30);
    for (size_t i = 0; i < d; i++) s[i * d + i] += ridge;
    for (struct column c = {s, d, 0}; c.j < d; c.j++) {
        double *diagonal = s + c.j * d + c.j;
        for (size_t k = 0; k < c.j; k++) *diagonal -= s[c.j * d + k] * s[c.j * d + k];
        *diagonal = sqrt(fmax(*diagonal, ridge * 1e-3));
        fh_pool_run(fh_job_pool(job), (d - c.j - 1 + ROWS_A_TASK - 1) / ROWS_A_TASK, column_task, &c);
    }
    return FH_OK;
}

fh_status fh_output_map(float *map, size_t d, const float *states, const size_t *positions, size_t n, const fh_job *job, fh_err *err)
{
    if (!n) return fh_fail(err, FH_ECHECK, "output-aware clustering needs states, and part A has none: collect more with 'fhtool hidden --tokens'");
    double *s = fh_malloc(d * d * sizeof *s);
    fh_status rc = s ? fh_second_moment(s, states, positions, n, d, job, err) : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc == FH_OK) rc = cholesky(s, d, job, err);
    for (size_t j = 0; rc == FH_OK && j < d; j++) for (size_t i = 0; i < d; i++) map[j * d + i] = i < j ? 0 : (float)s[i * d + j];
    fh_free(s);
    return rc;
}
