/* The search of the nearest clusters in rows of eight bits: exact integers on every instruction set, and nearly the floats' choice. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "cluster/cluster_private.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static fh_err err;
static const char *const isas[] = {"ref", "avx2", "best"};

static double normal(fh_rng *r)
{
    double s = 0;
    for (int i = 0; i < 12; i++) s += fh_rng_double(r);
    return s - 6;
}

static void products_are_the_sums_of_integers_on_every_instruction_set(void **state)
{
    enum { ROWS = 19, LD = 208 };
    static int8_t x[ROWS * LD], c[FH_PANEL * LD], panel[FH_PANEL * LD];
    static int32_t dot[ROWS * FH_PANEL];
    fh_rng r;
    (void)state;
    fh_rng_seed(&r, 3, 0);
    for (size_t i = 0; i < sizeof x; i++) x[i] = (int8_t)((int)fh_rng_below(&r, 255) - 127);
    for (size_t i = 0; i < sizeof c; i++) c[i] = (int8_t)((int)fh_rng_below(&r, 255) - 127);
    memset(x, 127, LD), memset(x + LD, -127, LD), memset(c, 127, LD), memset(c + LD, -127, LD); /* the largest sums there can be */
    for (size_t k = 0; k < sizeof isas / sizeof *isas; k++) {
        setenv("FH_ISA", isas[k], 1);
        const fh_int8_dots *dots = fh_int8_dots_pick();
        for (size_t rows = 1; rows <= ROWS; rows += 3) {
            for (size_t j = 0; j < FH_PANEL; j++) fh_pack_int8(dots, panel, c + j * LD, j, LD);
            dots->tile(dot, x, rows, LD, panel);
            for (size_t i = 0; i < rows; i++) {
                for (size_t j = 0; j < FH_PANEL; j++) {
                    int32_t sum = 0, all = 0;
                    for (size_t d = 0; d < LD; d++) sum += x[i * LD + d] * c[j * LD + d], all += x[i * LD + d];
                    assert_int_equal(dot[i * FH_PANEL + j] - (dots->offset ? 128 * all : 0), sum);
                }
            }
        }
    }
    unsetenv("FH_ISA");
}

static void turning_keeps_products_and_spreads_large_coordinates(void **state)
{
    static const size_t lengths[] = {16, 32, 48, 208, 640};
    (void)state;
    for (size_t k = 0; k < sizeof lengths / sizeof *lengths; k++) {
        size_t ld = lengths[k];
        float x[640], y[640], room[640];
        int8_t qx[640], qy[640];
        double exact = 0, got = 0, xx = 0, yy = 0;
        fh_turn t;
        fh_rng r;
        fh_rng_seed(&r, 5, ld);
        assert_int_equal(fh_turn_make(&t, ld, true, &err), FH_OK);
        for (size_t j = 0; j < ld; j++) x[j] = (float)normal(&r), y[j] = (float)normal(&r);
        x[3] = 40; /* rounded as it is, this would leave three bits to the others */
        float sx = fh_turn_int8(&t, qx, NULL, x, room), sy = fh_turn_int8(&t, qy, NULL, y, room);
        for (size_t j = 0; j < ld; j++) {
            exact += (double)x[j] * y[j], xx += (double)x[j] * x[j], yy += (double)y[j] * y[j];
            got += (double)qx[j] * qy[j] * (double)sx * (double)sy;
        }
        assert_true(fabs(got - exact) <= 0.1 * sqrt(xx * yy / (double)ld)); /* five times what is expected */
        fh_turn_free(&t);
    }
}

/* Shuffled or not: half of the coordinates negated, then each block of a power of two by its Hadamard matrix, as it is defined; the rounded bytes, their sum, and
 * the scale have the same bits everywhere. */
static void turning_is_its_definition_on_every_instruction_set(void **state)
{
    static const size_t lengths[] = {16, 48, 208, 640, 2048};
    (void)state;
    for (size_t k = 0; k < sizeof lengths / sizeof *lengths * 2; k++) {
        size_t ld = lengths[k / 2];
        static float x[2048], room[2048], first_room[2048];
        static int8_t q[2048], first[2048];
        float first_by = 0;
        fh_rng r;
        fh_rng_seed(&r, 6, ld);
        for (size_t j = 0; j < ld; j++) x[j] = (float)normal(&r);
        for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
            fh_turn t;
            int32_t sum, all = 0;
            setenv("FH_ISA", isas[i], 1);
            assert_int_equal(fh_turn_make(&t, ld, k % 2, &err), FH_OK);
            float by = fh_turn_int8(&t, q, &sum, x, room);
            for (size_t j = 0; j < ld; j++) {
                all += q[j];
                assert_true(fabs((double)q[j] * by - room[j]) <= 0.5001 * by);
            }
            assert_int_equal(all, sum);
            if (i == 0) {
                memcpy(first, q, sizeof q), memcpy(first_room, room, sizeof room), first_by = by;
                for (size_t at = 0, n; at < ld; at += n) {
                    for (n = 16; 2 * n <= ld - at; n *= 2) ;
                    for (size_t row = 0; row < n; row += 7) {
                        double want = 0;
                        for (size_t j = 0; j < n; j++) {
                            double v = (double)t.sign[at + j] * x[t.from ? t.from[at + j] : at + j];
                            want += __builtin_parityll(row & j) ? -v : v;
                        }
                        bool found = false; /* rows of the matrix come in an order of their own */
                        for (size_t j = 0; j < n; j++) found |= fabs(room[at + j] - want / sqrt((double)n)) <= 1e-4;
                        assert_true(found);
                    }
                }
            }
            assert_memory_equal(room, first_room, ld * sizeof *room);
            assert_memory_equal(q, first, ld);
            assert_true(by == first_by);
            fh_turn_free(&t);
        }
    }
    unsetenv("FH_ISA");
}

/* Zeros have a scale, and what is too small for one of its own is zeros; what passes float32 in any block while it is turned says so. */
static void rows_of_nothing_and_of_too_much_are_zeros_with_a_scale_and_without(void **state)
{
    static const struct { float size; size_t first, n; bool fits; } rows[] = {
        {0, 0, 48, true}, {1e-45f, 0, 48, true}, {1e-38f, 0, 48, true}, {1e-37f, 40, 1, true}, {3e38f, 0, 48, false}, {3e38f, 32, 16, false},
        {INFINITY, 7, 1, false}, {NAN, 47, 1, false}};
    (void)state;
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++)
        for (size_t i = 0; i < sizeof isas / sizeof *isas * 2; i++) {
            float x[48] = {0}, room[48];
            int8_t q[48];
            int32_t sum = 1;
            fh_turn t;
            setenv("FH_ISA", isas[i / 2], 1);
            for (size_t j = 0; j < rows[k].n; j++) x[rows[k].first + j] = j % 3 ? rows[k].size : -rows[k].size;
            assert_int_equal(fh_turn_make(&t, 48, i % 2, &err), FH_OK);
            float by = fh_turn_int8(&t, q, &sum, x, room);
            if (!(rows[k].fits ? by > 0 && isfinite(by) : isnan(by))) fail_msg("%zu values of %g have the scale %g", rows[k].n, rows[k].size, by);
            for (size_t j = 0; j < 48; j++) assert_int_equal(q[j], 0);
            assert_int_equal(sum, 0);
            fh_turn_free(&t);
        }
    unsetenv("FH_ISA");
}

static void eight_bits_choose_what_floats_choose_and_the_same_on_every_instruction_set(void **state)
{
    enum { N = 400, K = 150, LD = 128, WANT = 8 };
    static float x[N * LD], c[K * LD], bias[K], score[N * WANT];
    static int32_t exact[N * WANT], first[N * WANT], out[N * WANT];
    static uint32_t not[N];
    fh_rng r;
    (void)state;
    fh_rng_seed(&r, 9, 0);
    for (size_t i = 0; i < K * LD; i++) c[i] = (float)normal(&r);
    for (size_t i = 0; i < N; i++)
        for (size_t j = 0; j < LD; j++) x[i * LD + j] = 0.5f * c[i % K * LD + j] + (float)normal(&r);
    for (size_t k = 0; k < K; k++) {
        double square = 0;
        for (size_t j = 0; j < LD; j++) square += (double)c[k * LD + j] * c[k * LD + j];
        bias[k] = (float)(-square / 2);
    }
    bias[7] = -INFINITY;
    for (size_t i = 0; i < N; i++) not[i] = (uint32_t)(i * 7 % K);
    fh_nearest q = {.x = x, .ld = LD, .n = N, .c = c, .bias = bias, .k = K, .want = WANT, .not = not, .out = exact, .score = score};
    assert_int_equal(fh_nearest_run(&q, "test", NULL, &err), FH_OK);
    q.int8 = true;
    for (size_t k = 0; k < sizeof isas / sizeof *isas; k++) {
        size_t same = 0, together = 0;
        setenv("FH_ISA", isas[k], 1);
        q.out = out;
        assert_int_equal(fh_nearest_run(&q, "test", NULL, &err), FH_OK);
        if (k == 0) memcpy(first, out, sizeof first);
        assert_memory_equal(out, first, sizeof first);
        for (size_t i = 0; i < N; i++) {
            same += out[i * WANT] == exact[i * WANT];
            for (size_t a = 0; a < WANT; a++) {
                assert_true(out[i * WANT + a] >= 0 && out[i * WANT + a] < K && out[i * WANT + a] != 7 && out[i * WANT + a] != (int32_t)not[i]);
                for (size_t b = 0; b < WANT; b++) together += out[i * WANT + a] == exact[i * WANT + b];
            }
        }
        assert_true(same >= N * 97 / 100 && together >= N * WANT * 97 / 100);
    }
    unsetenv("FH_ISA");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_are_the_sums_of_integers_on_every_instruction_set),
        cmocka_unit_test(turning_keeps_products_and_spreads_large_coordinates),
        cmocka_unit_test(turning_is_its_definition_on_every_instruction_set),
        cmocka_unit_test(rows_of_nothing_and_of_too_much_are_zeros_with_a_scale_and_without),
        cmocka_unit_test(eight_bits_choose_what_floats_choose_and_the_same_on_every_instruction_set),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
