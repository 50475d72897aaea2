/* Rows as the head's output sees them.
 *
 * What a centroid c gets wrong about a token is (w - c).h, so the distance between rows is (w - u)' S (w - u) with S the mean of h h' over states.
 * With S = L L' that is the Euclidean distance between the rows of W L.
 */
#include "calib/calib.h"

#include <math.h>
#include <string.h>

enum { STATES_AT_ONCE = 4096, ROWS_AT_ONCE = 1024 };

/* S [D, D] += the products of a block of states; the products of states go through the library, the blocks are added in double. */
static fh_status second_moment(double *s, const float *states, const size_t *positions, size_t n, size_t d, const fh_job *job, fh_err *err)
{
    float *ht = fh_malloc(d * STATES_AT_ONCE * sizeof *ht), *block = fh_malloc(d * d * sizeof *block);
    fh_status rc = ht && block ? FH_OK : fh_fail(err, FH_ENOMEM, "out of memory");
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

/* L of S = L L', in place in the lower triangle (Cholesky).  A ridge of 1e-6 of the mean diagonal keeps directions that no state has from being free. */
static void cholesky(double *s, size_t d)
{
    double trace = 0;
    for (size_t i = 0; i < d; i++) trace += s[i * d + i];
    double ridge = fmax(1e-6 * trace / (double)d, 1e-30);
    for (size_t i = 0; i < d; i++) s[i * d + i] += ridge;
    for (size_t j = 0; j < d; j++) {
        for (size_t i = j; i < d; i++) {
            double v = s[i * d + j];
            for (size_t k = 0; k < j; k++) v -= s[i * d + k] * s[j * d + k];
            s[i * d + j] = i == j ? sqrt(fmax(v, ridge * 1e-3)) : v / s[j * d + j];
        }
    }
}

fh_status fh_output_rows(float *out, const fh_rows *head, const float *states, const size_t *positions, size_t n, const fh_job *job, fh_err *err)
{
    size_t d = head->cols;
    double *s = fh_calloc(d * d, sizeof *s);
    float *lt = fh_calloc(d * d, sizeof *lt), *w = fh_malloc(ROWS_AT_ONCE * d * sizeof *w);
    fh_status rc = s && lt && w ? FH_OK : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc == FH_OK && !n) rc = fh_fail(err, FH_ECHECK, "output-aware clustering needs states, and part A has none: collect more with 'fhtool hidden --tokens'");
    if (rc < 0 || (rc = second_moment(s, states, positions, n, d, job, err)) < 0) goto out;
    cholesky(s, d);
    for (size_t i = 0; i < d; i++) for (size_t j = 0; j <= i; j++) lt[j * d + i] = (float)s[i * d + j];
    for (size_t at = 0; at < head->rows; at += ROWS_AT_ONCE) {
        size_t m = fh_min(ROWS_AT_ONCE, head->rows - at);
        for (size_t i = 0; i < m; i++) fh_to_f32(w + i * d, head->dtype, fh_row(head, at + i), d);
        fh_gemm_nt(fh_job_pool(job), m, d, d, w, d, lt, d, out + at * d, d);
    }
out:
    fh_free(s);
    fh_free(lt);
    fh_free(w);
    return rc;
}
