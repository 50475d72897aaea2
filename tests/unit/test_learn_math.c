/* The loops of learned routing: what they compute, by definition, and the same bits on every instruction set. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "calib/learn.h"

enum { ROWS = 301, D = 283, STATES = 37 };
static const char *const isas[] = {"ref", "avx2", "avx512"};

static const fh_learn_math *table(size_t i)
{
#if defined(__x86_64__)
    if (i == 1 && !__builtin_cpu_supports("avx2")) return NULL;
    if (i == 2 && !(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vl"))) return NULL;
#endif
    return fh_learn_math_choose(isas[i]);
}

static void fill(float *x, size_t n, float by, uint64_t stream)
{
    fh_rng r;
    fh_rng_seed(&r, 17, stream);
    for (size_t i = 0; i < n; i++) x[i] = by * (float)(2 * fh_rng_double(&r) - 1);
}

static void a_strip_is_finished_with_bias_cap_and_rows_that_count_nowhere(void **state)
{
    static float z[ROWS * FH_STRIP], first[2][ROWS * FH_STRIP], bias[ROWS];
    static uint8_t out[ROWS];
    float base[FH_STRIP], most[FH_STRIP], most_first[2][FH_STRIP], largest[FH_STRIP];
    (void)state;
    out[0] = out[100] = out[ROWS - 1] = 1;
    fill(bias, ROWS, 2, 1);
    fill(base, FH_STRIP, 1, 2);
    for (size_t k = 0; k < 3; k++) {
        const fh_learn_math *m = table(k);
        for (int capped = 0; m && capped < 2; capped++) {
            fill(z, ROWS * FH_STRIP, 50, 3);
            m->finish(z, ROWS, base, bias, capped ? 30.0f : 0, out, most);
            m->largest(z, ROWS, largest);
            assert_memory_equal(most, largest, sizeof most);
            if (k == 0) {
                static float plain[ROWS * FH_STRIP];
                fill(plain, ROWS * FH_STRIP, 50, 3);
                memcpy(first[capped], z, sizeof z), memcpy(most_first[capped], most, sizeof most);
                for (size_t i = 0; i < FH_STRIP; i++) {
                    float top = -INFINITY;
                    for (size_t r = 0; r < ROWS; r++) {
                        double want = (double)plain[r * FH_STRIP + i] + base[i] + bias[r], is = z[r * FH_STRIP + i];
                        if (capped) want = 30 * tanh(want / 30);
                        if (out[r]) assert_true(is == -INFINITY);
                        else if (!(fabs(is - want) <= 2e-5)) fail_msg("row %zu, state %zu: %g, by definition %g", r, i, is, want);
                        top = fmaxf(top, z[r * FH_STRIP + i]);
                    }
                    assert_true(top == most[i]);
                }
            }
            assert_memory_equal(z, first[capped], sizeof z);
            assert_memory_equal(most, most_first[capped], sizeof most);
        }
    }
}

static void exponents_are_summed_and_gathered_by_cluster(void **state)
{
    static float z[ROWS * FH_STRIP], first[ROWS * FH_STRIP], q[7 * FH_STRIP], q_first[7 * FH_STRIP];
    static uint32_t into[ROWS], rows[ROWS];
    float shift[FH_STRIP], sum[FH_STRIP], sum_first[FH_STRIP] = {0}, bar[FH_STRIP];
    (void)state;
    for (size_t r = 0; r < ROWS; r++) into[r] = (uint32_t)(r * 5 % 7);
    for (size_t k = 0; k < 3; k++) {
        const fh_learn_math *m = table(k);
        if (!m) continue;
        fill(z, ROWS * FH_STRIP, 9, 4);
        z[3 * FH_STRIP + 1] = -INFINITY;
        fill(shift, FH_STRIP, 3, 5);
        m->exponents(z, ROWS, shift, sum);
        memset(q, 0, sizeof q);
        m->gather(q, z, ROWS, into);
        assert_true(z[3 * FH_STRIP + 1] == 0);
        for (size_t i = 0; i < FH_STRIP; i++) bar[i] = i == 5 ? 0.9f * sum[i] / ROWS : INFINITY;
        size_t n = m->above(rows, z, ROWS, bar), counted = 0;
        for (size_t r = 0; r < ROWS; r++) {
            if (!(z[r * FH_STRIP + 5] >= bar[5])) continue;
            assert_true(counted < n && rows[counted] == r);
            counted++;
        }
        assert_int_equal(counted, n);
        assert_true(n > 0 && n < ROWS);
        if (k == 0) {
            memcpy(first, z, sizeof z), memcpy(q_first, q, sizeof q), memcpy(sum_first, sum, sizeof sum);
            for (size_t i = 0; i < FH_STRIP; i++) {
                double all = 0, clusters = 0;
                for (size_t r = 0; r < ROWS; r++) all += z[r * FH_STRIP + i];
                for (size_t c = 0; c < 7; c++) clusters += q[c * FH_STRIP + i];
                assert_true(fabs(sum[i] - all) <= 1e-5 * all && fabs(clusters - all) <= 1e-5 * all);
            }
        }
        assert_memory_equal(z, first, sizeof z);
        assert_memory_equal(q, q_first, sizeof q);
        assert_memory_equal(sum, sum_first, sizeof sum);
    }
}

static void what_is_thinned_is_right_on_average_and_never_off_by_more_than_the_bound(void **state)
{
    enum { TIMES = 4000 };
    static const float bound = 1.0f / 64;
    static float z[ROWS * FH_STRIP], was[ROWS * FH_STRIP], first[ROWS * FH_STRIP];
    static double mean[ROWS * FH_STRIP];
    float by[FH_STRIP], start[FH_STRIP];
    fh_rng r;
    (void)state;
    for (size_t i = 0; i < FH_STRIP; i++) by[i] = i < 15 ? 0.5f : 0;
    fill(was, ROWS * FH_STRIP, 0.004f, 6);
    was[7 * FH_STRIP + 2] = 0.8f, was[9 * FH_STRIP + 2] = -0.9f;
    for (size_t k = 0; k < 3; k++) {
        const fh_learn_math *m = table(k);
        if (!m) continue;
        fh_rng_seed(&r, 5, 5);
        memset(mean, 0, sizeof mean);
        for (int t = 0; t < TIMES; t++) {
            for (size_t i = 0; i < FH_STRIP; i++) start[i] = (float)(fh_rng_double(&r) * bound);
            memcpy(z, was, sizeof z);
            m->thin(z, ROWS, by, start, bound);
            for (size_t i = 0; i < ROWS * FH_STRIP; i++) mean[i] += (double)z[i] / TIMES;
            if (t) continue;
            if (k == 0) memcpy(first, z, sizeof z);
            assert_memory_equal(z, first, sizeof z);
            for (size_t i = 0; i < FH_STRIP; i++) {
                double sizes = 0, kept = 0;
                for (size_t c = 0; c < ROWS; c++) {
                    float v = z[c * FH_STRIP + i], from = was[c * FH_STRIP + i] * by[i];
                    if (fabsf(from) >= bound) assert_true(v == from);
                    else assert_true(v == 0 || (fabsf(v) == bound && (v > 0) == (from > 0)));
                    sizes += fabs((double)from), kept += fabs((double)v);
                }
                assert_true(fabs(sizes - kept) <= bound * 1.001);
            }
        }
        for (size_t i = 0; i < ROWS * FH_STRIP; i++) { /* each is the bound with a chance of p: five standard deviations */
            double want = (double)was[i] * by[i % FH_STRIP], p = fabs(want) / bound, spread = p < 1 ? bound * sqrt(p * (1 - p) / TIMES) : 1e-6;
            if (!(fabs(mean[i] - want) <= 5 * spread + 1e-6)) fail_msg("number %zu: %g on average, is %g", i, mean[i], want);
        }
    }
}

static void sums_of_rows_and_steps_of_adam_are_those_of_the_definition(void **state)
{
    static float h[STATES][D], g[D], g_first[D], x[D], m1[D], m2[D], x_first[D];
    const float *rows[STATES];
    float by[STATES];
    (void)state;
    fill(&h[0][0], STATES * D, 2, 7);
    fill(by, STATES, 1, 8);
    for (size_t i = 0; i < STATES; i++) rows[i] = h[i * 5 % STATES];
    for (size_t k = 0; k < 3; k++) {
        const fh_learn_math *m = table(k);
        if (!m) continue;
        fill(x, D, 1, 9);
        memset(m1, 0, sizeof m1), memset(m2, 0, sizeof m2);
        for (int step = 1; step <= 3; step++) {
            size_t n = step == 2 ? 0 : STATES; /* a cluster of which no state says anything goes on by what it has */
            float was[D], first[D], second[D];
            memcpy(was, x, sizeof was), memcpy(first, m1, sizeof first), memcpy(second, m2, sizeof second);
            m->combine(g, D, rows, by, n);
            m->adam(x, m1, m2, g, D, 0.01f, 300.0f);
            for (size_t j = 0; j < D; j++) {
                double sum = 0;
                for (size_t i = 0; i < n; i++) sum += (double)rows[i][j] * by[i];
                assert_true(fabs(sum - g[j]) <= 1e-5);
                double one = 0.9 * first[j] + 0.1 * g[j], two = 0.999 * second[j] + 0.001 * g[j] * g[j], want = was[j] - 0.01 * one / (sqrt(300 * two) + 1e-12);
                if (!(fabs(x[j] - want) <= 1e-6)) fail_msg("value %zu: %.8g, by definition %.8g", j, x[j], want);
            }
        }
        if (k == 0) memcpy(x_first, x, sizeof x), memcpy(g_first, g, sizeof g);
        assert_memory_equal(x, x_first, sizeof x);
        assert_memory_equal(g, g_first, sizeof g);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_strip_is_finished_with_bias_cap_and_rows_that_count_nowhere),
        cmocka_unit_test(exponents_are_summed_and_gathered_by_cluster),
        cmocka_unit_test(what_is_thinned_is_right_on_average_and_never_off_by_more_than_the_bound),
        cmocka_unit_test(sums_of_rows_and_steps_of_adam_are_those_of_the_definition),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
