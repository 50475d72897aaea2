/* runtime/dead.c: rows of a head that can never be meant. */
#include "runtime/runtime.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 256 };

typedef struct run { const fh_rows *head; double *norms; float *scratch; } run;

static void measure(void *ctx, size_t task, unsigned worker)
{
    const run *c = ctx;
    float *x = c->scratch + worker * c->head->cols;
    size_t end = fh_min((task + 1) * ROWS, c->head->rows);
    for (size_t r = task * ROWS; r < end; r++) {
        fh_dec_row(c->head->dtype, fh_row(c->head, r), NULL, c->head->cols, x);
        double sum = 0;
        for (size_t i = 0; i < c->head->cols; i++) sum += (double)x[i] * x[i];
        c->norms[r] = sqrt(sum);
    }
}

/* NaN last: the median of a head with a few broken rows is that of the others. */
static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    if (isnan(x) || isnan(y)) return isnan(x) - isnan(y);
    return (x > y) - (x < y);
}

size_t fh_dead_rows(const fh_rows *head, uint32_t tokenizer_size, fh_pool *pool, uint8_t *dead, fh_err *err, fh_status *status)
{
    size_t n = head->rows, both, scratch;
    double *norms = NULL;
    *status = FH_OK;
    if (!n) return 0;
    if (!fh_mul(n, 2 * sizeof *norms, &both) || !fh_mul(head->cols, sizeof(float) * fh_pool_threads(pool), &scratch) ||
        !fh_add(both, scratch, &both) || !(norms = fh_malloc(both))) {
        *status = fh_fail(err, FH_ENOMEM, "dead rows: out of memory for the norms of %zu rows", n);
        return 0;
    }
    run c = {head, norms, (float *)(void *)(norms + 2 * n)};
    fh_pool_run(pool, (n - 1) / ROWS + 1, measure, &c);
    double *sorted = norms + n;
    memcpy(sorted, norms, n * sizeof *norms);
    qsort(sorted, n, sizeof *sorted, ascending);
    double limit = 1e-6 * ((sorted[(n - 1) / 2] + sorted[n / 2]) / 2);
    size_t count = 0;
    for (size_t r = 0; r < n; r++) {
        dead[r] = norms[r] < limit || norms[r] == 0 || (tokenizer_size && r >= tokenizer_size);
        count += dead[r];
    }
    fh_free(norms);
    return count;
}
