/* The dot products of clustering: the same bits from every instruction set, in the stated order. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "cluster/cluster_private.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Lengths over many powers of two, so that another order of sums shows. */
static float number(fh_rng *r) { return (float)ldexp(2 * fh_rng_double(r) - 1, (int)fh_rng_below(r, 24)); }

static void dot_products_have_the_same_bits_on_every_instruction_set(void **state)
{
    enum { N = 208, ROWS = 7 };
    float x[ROWS * N], z[N], plain[ROWS], out[ROWS];
    static const uint32_t rows[ROWS] = {3, 0, 6, 1, 5, 2, 4};
    static const char *const isa[] = {"avx2", "avx512", "neon", "best"};
    fh_rng r;
    fh_rng_seed(&r, 1, 1);
    for (size_t i = 0; i < ROWS * N; i++) x[i] = number(&r);
    for (size_t i = 0; i < N; i++) z[i] = number(&r);
    setenv("FH_ISA", "ref", 1);
    const fh_dots *ref = fh_dots_pick();
    assert_string_equal(ref->isa, "ref");
    for (size_t n = 16; n <= N; n += 16) {
        ref->many(plain, z, x, N, rows, ROWS, n);
        for (size_t i = 0; i < ROWS; i++) {
            double exact = 0, size = 0;
            for (size_t j = 0; j < n; j++) exact += (double)z[j] * x[rows[i] * N + j], size += fabs((double)z[j] * x[rows[i] * N + j]);
            assert_true(fabs(exact - plain[i]) <= ((double)n / 16 + 5) * 6e-8 * size); /* one rounding a step, and the tree */
        }
        for (size_t k = 0; k < sizeof isa / sizeof *isa; k++) {
            setenv("FH_ISA", isa[k], 1);
            const fh_dots *dots = fh_dots_pick();
            for (size_t count = 1; count <= ROWS; count++) {
                memset(out, 0xee, sizeof out);
                dots->many(out, z, x, N, rows, count, n);
                assert_memory_equal(out, plain, count * sizeof *out);
            }
            for (size_t i = 0; i < ROWS; i++) {
                float one = dots->one(z, x + rows[i] * N, n);
                assert_memory_equal(&one, &plain[i], sizeof one);
            }
        }
    }
    unsetenv("FH_ISA");
}

static void something_better_than_plain_c_is_picked_where_there_is_any(void **state)
{
    unsetenv("FH_ISA");
#if defined(__aarch64__)
    assert_string_equal(fh_dots_pick()->isa, "neon");
#elif defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) assert_string_not_equal(fh_dots_pick()->isa, "ref");
    setenv("FH_ISA", "avx2", 1);
    assert_string_equal(fh_dots_pick()->isa, __builtin_cpu_supports("avx2") ? "avx2" : "ref");
    unsetenv("FH_ISA");
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dot_products_have_the_same_bits_on_every_instruction_set),
        cmocka_unit_test(something_better_than_plain_c_is_picked_where_there_is_any),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
