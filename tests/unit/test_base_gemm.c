/* Dense products: right, and the same bytes from any number of threads. */
#include "base/base.h"

#include <math.h>
#include <setjmp.h>
#include <string.h>

#include <cmocka.h>

static float *numbers(size_t n, uint64_t seed)
{
    float *x = fh_aligned(n * sizeof *x);
    assert_non_null(x);
    fh_rng rng;
    fh_rng_seed(&rng, seed, 0);
    for (size_t i = 0; i < n; i++) x[i] = (float)(fh_rng_double(&rng) * 2 - 1);
    return x;
}

static void products_are_right_and_touch_nothing_else(void **state)
{
    (void)state;
    static const size_t shapes[][3] = {{1, 1, 1}, {1, 300, 64}, {3, 5, 0}, {256, 512, 32}, {257, 513, 33}, {300, 1, 17}, {2, 700, 100}};
    for (size_t t = 0; t < sizeof shapes / sizeof *shapes; t++) {
        size_t m = shapes[t][0], n = shapes[t][1], k = shapes[t][2], lda = k + 3, ldb = k + 1, ldc = n + 2;
        float *a = numbers(m * lda, 1), *b = numbers(n * ldb, 2), *c = fh_malloc(m * ldc * sizeof *c);
        assert_non_null(c);
        for (size_t i = 0; i < m * ldc; i++) c[i] = NAN; /* what was there must not count */
        fh_gemm_nt(NULL, m, n, k, a, lda, b, ldb, c, ldc);
        /* |error| <= 2 k eps sum|a||b|, whatever the order of the sums. */
        for (size_t i = 0; i < m; i++) {
            for (size_t j = 0; j < n; j++) {
                double want = 0, size = 0;
                for (size_t x = 0; x < k; x++) {
                    double p = (double)a[i * lda + x] * (double)b[j * ldb + x];
                    want += p;
                    size += fabs(p);
                }
                assert_true(fabs((double)c[i * ldc + j] - want) <= 2 * (double)(k + 1) * 0x1p-24 * size);
            }
            for (size_t j = n; j < ldc; j++) assert_true(isnan(c[i * ldc + j]));
        }
        fh_free(a), fh_free(b), fh_free(c);
    }
}

static void any_number_of_threads_gives_the_same_bytes(void **state)
{
    (void)state;
    enum { M = 600, N = 1100, K = 200 };
    fh_err err = {0};
    float *a = numbers(M * K, 3), *b = numbers((size_t)N * K, 4);
    float *one = fh_aligned(sizeof(float) * M * N), *many = fh_aligned(sizeof(float) * M * N);
    assert_true(one && many);
    fh_gemm_nt_here(M, N, K, a, K, b, K, one, N);
    for (unsigned threads = 1; threads <= 5; threads++) {
        fh_pool *pool;
        assert_int_equal(fh_pool_new(&pool, threads, &err), FH_OK);
        for (int i = 0; i < 3; i++) {
            memset(many, 0xFF, sizeof(float) * M * N);
            fh_gemm_nt(pool, M, N, K, a, K, b, K, many, N);
            assert_memory_equal(one, many, sizeof(float) * M * N);
        }
        fh_pool_free(pool);
    }
    fh_free(a), fh_free(b), fh_free(one), fh_free(many);
}

static void a_row_stride_beyond_the_library_s_int_is_still_right(void **state)
{
    (void)state;
    /* One row: its stride is never walked. */
    float a[2] = {2, 3}, b[2] = {5, 7}, c = 0;
    fh_gemm_nt(NULL, 1, 1, 2, a, (size_t)1 << 40, b, (size_t)1 << 40, &c, (size_t)1 << 40);
    assert_true(c == 31);
    fh_gemm_nt(NULL, 0, 1, 2, a, 2, b, 2, &c, 1);
    fh_gemm_nt(NULL, 1, 0, 2, a, 2, b, 2, &c, 1);
    assert_true(c == 31);
}

static void the_library_has_a_name(void **state)
{
    (void)state;
    assert_memory_equal(fh_gemm_library(), "OpenBLAS ", 9);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_are_right_and_touch_nothing_else),
        cmocka_unit_test(any_number_of_threads_gives_the_same_bytes),
        cmocka_unit_test(a_row_stride_beyond_the_library_s_int_is_still_right),
        cmocka_unit_test(the_library_has_a_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
