#include "base/base.h"

#include <cblas.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

/* A tile is one library call on one thread, whatever the number of threads: the order of the sums inside it is the library's
 * own for that shape.  Measured for [512, 768] x [16384, 768] on one EPYC core with AVX-512, OpenBLAS 0.3.21: one call for all 102 GFLOP/s,
 * tiles of 128 x 256 90, of 256 x 512 97.  One row goes to the matrix-vector product: three times as fast as a matrix product of one row. */
enum { TILE_M = 256, TILE_N = 512 };

static pthread_once_t once = PTHREAD_ONCE_INIT;
static char library[128];

/* The library's own threads wait for work by yielding, for a tenth of a second after it is loaded: a CPU that nobody else gets (a token of
 * the demo model on two threads took 570 us meanwhile and 215 without).  Only the builds with threads have this. */
extern int blas_thread_shutdown_(void) __attribute__((weak));

static void start(void)
{
    openblas_set_num_threads(1);
    if (blas_thread_shutdown_) blas_thread_shutdown_();
    const char *config = openblas_get_config(); /* "OpenBLAS 0.3.21 NO_LAPACKE ..." */
    int name = (int)strcspn(config, " ");
    int both = config[name] ? name + 1 + (int)strcspn(config + name + 1, " ") : name;
    snprintf(library, sizeof library, "%.*s %s", both, config, openblas_get_corename());
}

void fh_gemm_begin(void) { pthread_once(&once, start); }

const char *fh_gemm_library(void)
{
    pthread_once(&once, start);
    return library;
}

/* Lengths beyond the library's int: no machine of today has such rows, but the answer is right. */
static void plain_nt(size_t m, size_t n, size_t k, const float *a, size_t lda, const float *b, size_t ldb, float *c, size_t ldc)
{
    for (size_t i = 0; i < m; i++) {
        for (size_t j = 0; j < n; j++) {
            float sum = 0;
            for (size_t x = 0; x < k; x++) sum += a[i * lda + x] * b[j * ldb + x];
            c[i * ldc + j] = sum;
        }
    }
}

static void tile_nt(size_t m, size_t n, size_t k, const float *a, size_t lda, const float *b, size_t ldb, float *c, size_t ldc)
{
    if (!k) {
        for (size_t i = 0; i < m; i++) memset(c + i * ldc, 0, n * sizeof *c);
        return;
    }
    /* With one row a leading dimension is never used; the library still wants it to be at least the row's length. */
    if (m == 1) lda = k, ldc = n;
    if (n == 1) ldb = k;
    if (k > INT_MAX || lda > INT_MAX || ldb > INT_MAX || ldc > INT_MAX) {
        plain_nt(m, n, k, a, lda, b, ldb, c, ldc);
        return;
    }
    if (m == 1) {
        cblas_sgemv(CblasRowMajor, CblasNoTrans, (blasint)n, (blasint)k, 1, b, (blasint)ldb, a, 1, 0, c, 1);
        return;
    }
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (blasint)m, (blasint)n, (blasint)k, 1, a, (blasint)lda, b, (blasint)ldb,
                0, c, (blasint)ldc);
}

struct product {
    size_t m, n, k, lda, ldb, ldc, across; /* across: tiles in a row of tiles */
    const float *a, *b;
    float *c;
};

static void one_tile(void *ctx, size_t task, unsigned worker)
{
    const struct product *p = ctx;
    size_t i = task / p->across * TILE_M, j = task % p->across * TILE_N;
    tile_nt(fh_min(TILE_M, p->m - i), fh_min(TILE_N, p->n - j), p->k, p->a + i * p->lda, p->lda, p->b + j * p->ldb, p->ldb,
            p->c + i * p->ldc + j, p->ldc);
}

void fh_gemm_nt(fh_pool *pool, size_t m, size_t n, size_t k, const float *a, size_t lda, const float *b, size_t ldb, float *c, size_t ldc)
{
    if (!m || !n) return;
    pthread_once(&once, start);
    struct product p = {m, n, k, lda, ldb, ldc, (n - 1) / TILE_N + 1, a, b, c};
    fh_pool_run(pool, ((m - 1) / TILE_M + 1) * p.across, one_tile, &p);
}

void fh_gemm_nt_here(size_t m, size_t n, size_t k, const float *a, size_t lda, const float *b, size_t ldb, float *c, size_t ldc)
{
    fh_gemm_nt(NULL, m, n, k, a, lda, b, ldb, c, ldc);
}
