/* What learned routing is taught, beside the softmax that defines it. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/fault.h"
#include "calib/learn.h"

enum { V = 190, ROWS = 200, MOST_D = 144, N = 130, K = 19 };
static fh_err err;
static float w[ROWS * MOST_D], h[N * MOST_D], bias[V];
static uint32_t assignment[V], token_of[ROWS];
static size_t positions[N];
static uint8_t dead[V];

/* Rows alike in much, as real ones are, in no order, ten of no token; logits spread over some nats. */
static fh_dense make_world(size_t d)
{
    fh_rng r;
    fh_rng_seed(&r, 23, d);
    for (size_t i = 0; i < ROWS; i++) {
        token_of[i] = (uint32_t)(i * 7 % ROWS);
        for (size_t j = 0; j < d; j++) w[i * d + j] = (float)(0.4 + (2 * fh_rng_double(&r) - 1));
    }
    for (size_t i = 0; i < N; i++) {
        positions[i] = N - 1 - i;
        for (size_t j = 0; j < d; j++) h[i * d + j] = (float)((6 * fh_rng_double(&r) - 2.5) / sqrt((double)d));
    }
    for (uint32_t t = 0; t < V; t++) assignment[t] = t % K, bias[t] = (float)fh_rng_double(&r), dead[t] = t == 8 || t == 77;
    return (fh_dense){.rows = {w, FH_F32, ROWS, d, d * sizeof *w}, .token_of = token_of, .vocab = V, .dead = dead};
}

static void shares_of(double *p, const fh_dense *dense, const float *x)
{
    double sum = 0;
    for (size_t r = 0; r < ROWS; r++) {
        uint32_t t = token_of[r];
        double z = 0;
        if (t >= V) continue;
        for (size_t j = 0; j < dense->rows.cols; j++) z += (double)w[r * dense->rows.cols + j] * x[j];
        if (dense->bias) z += dense->bias[t];
        if (dense->softcap > 0) z = dense->softcap * tanh(z / dense->softcap);
        p[t] = dead[t] ? 0 : exp(z);
        sum += p[t];
    }
    for (size_t t = 0; t < V; t++) p[t] /= sum;
}

static void compare(const fh_dense *dense, const char *what)
{
    fh_sparse masses = {0}, likely = {0};
    double operations;
    size_t d = dense->rows.cols;
    assert_int_equal(fh_learn_targets(&masses, &likely, dense, h, positions, N, assignment, K, &operations, NULL, &err), FH_OK);
    assert_true(operations == 2.0 * N * ROWS * (double)d);
    for (size_t i = 0; i < N; i++) {
        double p[V], q[K] = {0}, is[K] = {0}, off = 0, all = 0;
        shares_of(p, dense, h + positions[i] * d);
        for (size_t t = 0; t < V; t++) q[assignment[t]] += p[t];
        for (size_t j = masses.first[i]; j < masses.first[i + 1]; j++) is[masses.index[j]] = masses.value[j], all += masses.value[j];
        for (size_t c = 0; c < K; c++) off += fabs(q[c] - is[c]) / 2;
        if (!(fabs(all - 1) <= 1e-5)) fail_msg("%s, D %zu: the masses of state %zu are %g together", what, d, i, all);
        if (!(off <= 0.01)) fail_msg("%s, D %zu: the masses of state %zu are %g off", what, d, i, off);
        for (size_t j = likely.first[i]; j < likely.first[i + 1]; j++)
            if (!(fabs(likely.value[j] - p[likely.index[j]]) <= 0.01))
                fail_msg("%s: token %u of state %zu has %g, by definition %g", what, likely.index[j], i, likely.value[j], p[likely.index[j]]);
        for (size_t t = 0; t < V; t++) {
            bool there = false;
            for (size_t j = likely.first[i]; j < likely.first[i + 1]; j++) there |= likely.index[j] == t;
            if (p[t] > 0.05) assert_true(there);
        }
    }
    fh_sparse_free(&masses);
    fh_sparse_free(&likely);
}

static void masses_are_the_softmax_summed_by_cluster(void **state)
{
    static const size_t widths[] = {1, 2, 17, 64, 144};
    (void)state;
    for (size_t k = 0; k < sizeof widths / sizeof *widths; k++) {
        fh_dense dense = make_world(widths[k]);
        compare(&dense, "plain");
        dense.bias = bias;
        compare(&dense, "with a bias");
        dense.softcap = 5;
        compare(&dense, "with a bias, capped");
    }
}

/* Eight bits would be off by a hundredth. */
static void the_best_rows_are_scored_as_they_are(void **state)
{
    fh_dense dense = make_world(64);
    fh_sparse masses = {0};
    double operations;
    (void)state;
    uint32_t each[V];
    for (uint32_t t = 0; t < V; t++) each[t] = t; /* a cluster a token */
    assert_int_equal(fh_learn_targets(&masses, NULL, &dense, h, positions, N, each, V, &operations, NULL, &err), FH_OK);
    for (size_t i = 0; i < N; i++) {
        double p[V];
        size_t best = 0, second = 0;
        shares_of(p, &dense, h + positions[i] * 64);
        for (size_t t = 1; t < V; t++) if (p[t] > p[best]) best = t;
        second = best == 0;
        for (size_t t = 0; t < V; t++) if (t != best && p[t] > p[second]) second = t;
        double one = 0, two = 0;
        for (size_t j = masses.first[i]; j < masses.first[i + 1]; j++) {
            if (masses.index[j] == best) one = masses.value[j];
            if (masses.index[j] == second) two = masses.value[j];
        }
        if (!(fabs(one / two - p[best] / p[second]) <= 2e-5 * one / two)) fail_msg("state %zu: %.9g, by definition %.9g", i, one / two, p[best] / p[second]);
    }
    fh_sparse_free(&masses);
}

static void threads_and_instruction_sets_give_the_same_masses(void **state)
{
    static const char *const isas[] = {"ref", "avx2", "best"};
    static const unsigned threads[] = {1, 2, 3, 7};
    fh_dense dense = make_world(144);
    fh_sparse first = {0};
    double operations;
    (void)state;
    assert_int_equal(fh_learn_targets(&first, NULL, &dense, h, positions, N, assignment, K, &operations, NULL, &err), FH_OK);
    for (size_t k = 0; k < 3; k++) {
        for (size_t i = 0; i < 4; i++) {
            fh_sparse masses = {0};
            fh_pool *pool = NULL;
            setenv("FH_ISA", isas[k], 1);
            assert_int_equal(fh_pool_new(&pool, threads[i], &err), FH_OK);
            fh_job job = {.pool = pool};
            assert_int_equal(fh_learn_targets(&masses, NULL, &dense, h, positions, N, assignment, K, &operations, &job, &err), FH_OK);
            assert_int_equal(masses.first[N], first.first[N]);
            assert_memory_equal(masses.index, first.index, first.first[N] * sizeof *first.index);
            assert_memory_equal(masses.value, first.value, first.first[N] * sizeof *first.value);
            fh_sparse_free(&masses);
            fh_pool_free(pool);
        }
    }
    unsetenv("FH_ISA");
    fh_sparse_free(&first);
}

/* Rows that pass float32 when they are turned, and products that do. */
static void logits_beyond_float32_are_refused_with_their_position(void **state)
{
    static const float by_rows[] = {1e38f, 1e30f, 1}, by_states[] = {1, 1e15f, 1};
    (void)state;
    for (size_t k = 0; k < 3; k++) {
        fh_dense dense = make_world(64);
        fh_sparse masses = {0};
        double operations;
        for (size_t i = 0; i < ROWS * 64; i++) w[i] *= by_rows[k];
        for (size_t i = 0; i < 64; i++) h[positions[50] * 64 + i] *= by_states[k];
        fh_status rc = fh_learn_targets(&masses, NULL, &dense, h, positions, N, assignment, K, &operations, NULL, &err);
        assert_int_equal(rc, k < 2 ? FH_ECHECK : FH_OK);
        if (k == 0) assert_non_null(strstr(err.text, "position 129 "));
        if (k == 1) assert_non_null(strstr(err.text, "position 79 "));
        fh_sparse_free(&masses);
    }
}

#ifdef FH_FAULTS
static void every_allocation_of_the_targets_may_fail(void **state)
{
    (void)state;
    for (long n = 1;; n++) {
        fh_dense dense = make_world(17);
        fh_sparse masses = {0}, likely = {0};
        double operations;
        dense.bias = bias;
        fh_fault_set(FH_FAULT_ALLOC, n);
        fh_status rc = fh_learn_targets(&masses, &likely, &dense, h, positions, N, assignment, K, &operations, NULL, &err);
        bool fired = fh_fault_fired();
        fh_fault_set(FH_FAULT_ALLOC, 0);
        assert_int_equal(rc, fired ? FH_ENOMEM : FH_OK);
        fh_sparse_free(&masses);
        fh_sparse_free(&likely);
        if (!fired) break;
    }
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(masses_are_the_softmax_summed_by_cluster),
        cmocka_unit_test(the_best_rows_are_scored_as_they_are),
        cmocka_unit_test(threads_and_instruction_sets_give_the_same_masses),
        cmocka_unit_test(logits_beyond_float32_are_refused_with_their_position),
#ifdef FH_FAULTS
        cmocka_unit_test(every_allocation_of_the_targets_may_fail),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
