/* What states teach: learned routing, output-aware rows, and corpora thinned evenly. */
#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/fault.h"
#include "calib/calib.h"

enum { V = 96, D = 12, K = 8, N = 1500 };
static fh_err err;
static float w[V][D], h[N][D];
static uint32_t assignment[V];
static size_t positions[N];
static uint8_t dead[V];
static fh_dense dense;

static int make_world(void **state)
{
    fh_rng r;
    (void)state;
    fh_rng_seed(&r, 11, 2);
    for (int t = 0; t < V; t++) {
        assignment[t] = (uint32_t)t % K;
        for (int i = 0; i < D; i++) w[t][i] = (float)(2 * fh_rng_double(&r) - 1);
    }
    for (int n = 0; n < N; n++) {
        positions[n] = (size_t)n;
        for (int i = 0; i < D; i++) h[n][i] = (float)(4 * fh_rng_double(&r) - 2);
    }
    dead[7] = 1;
    dense = (fh_dense){.rows = {w, FH_F32, V, D, sizeof w[0]}, .vocab = V, .dead = dead};
    return 0;
}

static void start(float *c)
{
    memset(c, 0, K * D * sizeof *c);
    for (int t = 0; t < V; t++) for (int i = 0; i < D; i++) c[assignment[t] * D + (unsigned)i] += w[t][i] / (V / K);
}

/* Cross-entropy of softmax(C h) against the dense head's cluster masses, over the states that learning holds out, in double. */
static double loss_of(const float *c)
{
    double total = 0;
    for (int n = N - N / 10; n < N; n++) {
        double q[K] = {0}, s[K], sum = 0, lse = 0;
        for (int t = 0; t < V; t++) {
            double z = 0;
            for (int i = 0; i < D; i++) z += (double)w[t][i] * h[n][i];
            if (!dead[t]) q[assignment[t]] += exp(z), sum += exp(z);
        }
        for (int k = 0; k < K; k++) {
            s[k] = 0;
            for (int i = 0; i < D; i++) s[k] += (double)c[k * D + i] * h[n][i];
            lse += exp(s[k]);
        }
        for (int k = 0; k < K; k++) total -= q[k] / sum * (s[k] - log(lse));
    }
    return total / (N / 10);
}

static void learning_lowers_the_loss_it_reports(void **state)
{
    float c[K * D];
    fh_learn_params p = {.passes = 12};
    fh_learn_report r;
    (void)state;
    start(c);
    double before = loss_of(c);
    assert_int_equal(fh_learn_routing(c, K, assignment, &dense, &h[0][0], positions, N, &p, NULL, &r, &err), FH_OK);
    assert_true(fabs(r.loss_before - before) < 1e-3); /* targets below 1e-5 are dropped */
    assert_true(fabs(r.loss - loss_of(c)) < 1e-3);
    if (!(r.loss < r.loss_before - 0.005)) fail_msg("loss %g, before %g", r.loss, r.loss_before);
    assert_int_equal(r.states, N);
}

static void any_number_of_threads_and_any_instruction_set_learns_the_same(void **state)
{
    static const struct { unsigned threads; const char *isa; } ways[] = {{2, "best"}, {3, "best"}, {7, "best"}, {2, "ref"}, {3, "avx2"}};
    float one[K * D], two[K * D];
    fh_learn_params p = {.passes = 3};
    fh_learn_report r;
    (void)state;
    start(one);
    assert_int_equal(fh_learn_routing(one, K, assignment, &dense, &h[0][0], positions, N, &p, NULL, &r, &err), FH_OK);
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) { /* products of eight bits look at FH_ISA every time, the loops between them once: test_learn_math */
        fh_pool *pool = NULL;
        setenv("FH_ISA", ways[i].isa, 1);
        assert_int_equal(fh_pool_new(&pool, ways[i].threads, &err), FH_OK);
        fh_job job = {.pool = pool};
        start(two);
        assert_int_equal(fh_learn_routing(two, K, assignment, &dense, &h[0][0], positions, N, &p, &job, &r, &err), FH_OK);
        assert_memory_equal(one, two, sizeof one);
        fh_pool_free(pool);
    }
    unsetenv("FH_ISA");
}

/* As many clusters as tokens, two of them, and rows of one value. */
static void odd_shapes_learn_too(void **state)
{
    static const struct { size_t d; uint32_t k; } shapes[] = {{1, 2}, {1, V}, {D, V}, {D, 2}};
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        static float rows[V * D], few[N * D], c[V * D];
        size_t d = shapes[i].d;
        uint32_t k = shapes[i].k, at[V];
        fh_learn_params p = {.passes = 4, .batch = 50};
        fh_learn_report r;
        for (uint32_t t = 0; t < V; t++) at[t] = t % k;
        for (size_t n = 0; n < V * d; n++) rows[n] = w[n / d][n % d];
        for (size_t n = 0; n < N * d; n++) few[n] = h[n / d][n % d];
        memset(c, 0, sizeof c);
        c[0] = 0.1f, c[k * d - 1] = -0.1f;
        fh_dense small = {.rows = {rows, FH_F32, V, d, d * sizeof *rows}, .vocab = V, .dead = dead};
        assert_int_equal(fh_learn_routing(c, k, at, &small, few, positions, N, &p, NULL, &r, &err), FH_OK);
        if (!(r.loss < r.loss_before)) fail_msg("D %zu, K %u: loss %g, before %g", d, k, r.loss, r.loss_before);
    }
}

static void rows_held_at_unit_length_stay_there_and_still_learn(void **state)
{
    float c[K * D];
    fh_learn_params p = {.passes = 6, .unit = true};
    fh_learn_report r;
    (void)state;
    start(c);
    assert_int_equal(fh_learn_routing(c, K, assignment, &dense, &h[0][0], positions, N, &p, NULL, &r, &err), FH_OK);
    assert_true(r.loss < r.loss_before);
    for (int k = 0; k < K; k++) {
        double square = 0;
        for (int i = 0; i < D; i++) square += (double)c[k * D + i] * c[k * D + i];
        assert_true(fabs(square - 1) < 1e-5);
    }
}

static void too_few_states_are_said_to_be(void **state)
{
    float c[K * D];
    fh_learn_params p = {0};
    fh_learn_report r;
    (void)state;
    start(c);
    assert_int_equal(fh_learn_routing(c, K, assignment, &dense, &h[0][0], positions, FH_LEARN_STATES - 1, &p, NULL, &r, &err), FH_ECHECK);
    assert_non_null(strstr(err.text, "511"));
}

static void centroids_whose_scores_pass_float32_are_refused(void **state)
{
    float c[K * D];
    fh_learn_params p = {0};
    fh_learn_report r;
    (void)state;
    for (int i = 0; i < K * D; i++) c[i] = i / D % 2 ? 3e38f : -3e38f;
    assert_int_equal(fh_learn_routing(c, K, assignment, &dense, &h[0][0], positions, N, &p, NULL, &r, &err), FH_ECHECK);
    assert_non_null(strstr(err.text, "first centroids"));
}

static void distance_between_mapped_rows_is_the_difference_of_logits_and_a_ridge(void **state)
{
    static float y[V][D], map[D][D];
    (void)state;
    assert_int_equal(fh_output_map(&map[0][0], D, &h[0][0], positions, N, NULL, &err), FH_OK);
    for (int j = 0; j < D; j++) {
        for (int i = 0; i < j; i++) assert_true(map[j][i] == 0);
        for (int a = 0; a < V; a++) {
            y[a][j] = 0;
            for (int i = 0; i < D; i++) y[a][j] += w[a][i] * map[j][i];
        }
    }
    double square = 0; /* of a coordinate of a state, in the mean */
    for (int n = 0; n < N; n++) for (int i = 0; i < D; i++) square += (double)h[n][i] * h[n][i] / N / D;
    for (int a = 0; a < V; a += 5)
        for (int b = a + 1; b < V; b += 7) {
            double distance = 0, mean = 0;
            for (int i = 0; i < D; i++) distance += pow((double)y[a][i] - y[b][i], 2), mean += FH_OUTPUT_RIDGE * square * pow((double)w[a][i] - w[b][i], 2);
            for (int n = 0; n < N; n++) {
                double z = 0;
                for (int i = 0; i < D; i++) z += ((double)w[a][i] - w[b][i]) * h[n][i];
                mean += z * z / N;
            }
            if (!(fabs(distance - mean) <= 1e-4 * mean)) fail_msg("rows %d, %d: %g, by definition %g", a, b, distance, mean);
        }
}

static void a_map_of_no_states_or_of_damaged_ones_is_refused(void **state)
{
    static float map[D][D], damaged[2][D];
    const size_t both[2] = {0, 1};
    (void)state;
    assert_int_equal(fh_output_map(&map[0][0], D, &h[0][0], positions, 0, NULL, &err), FH_ECHECK);
    damaged[1][D - 1] = NAN;
    assert_int_equal(fh_output_map(&map[0][0], D, &damaged[0][0], both, 2, NULL, &err), FH_EFORMAT);
}

static void a_thinned_corpus_is_taken_evenly_and_in_windows(void **state)
{
    enum { TOKENS = 10000, WINDOW = 64 };
    fh_corpus c = {.n = TOKENS, .documents = 4};
    uint32_t last = 0;
    (void)state;
    c.ids = fh_malloc(TOKENS * sizeof *c.ids);
    c.starts = fh_malloc(5 * sizeof *c.starts);
    for (uint32_t i = 0; i < TOKENS; i++) c.ids[i] = i;
    const size_t starts[5] = {0, 30, 5000, 5100, TOKENS};
    memcpy(c.starts, starts, sizeof starts);
    fh_corpus_thin(&c, TOKENS, WINDOW); /* nothing to do */
    assert_int_equal(c.n, TOKENS);
    fh_corpus_thin(&c, 2500, WINDOW);
    assert_in_range(c.n, 2200, 2500);
    assert_int_equal(c.starts[c.documents], c.n);
    for (size_t i = 0; i < c.documents; i++) {
        uint32_t origin = 0;
        for (uint32_t d = 0; d < 4; d++) if (c.ids[c.starts[i]] >= starts[d]) origin = d;
        for (size_t j = c.starts[i]; j < c.starts[i + 1]; j++) {
            assert_true(c.ids[j] >= starts[origin] && c.ids[j] < starts[origin + 1]); /* documents are not mixed */
            size_t in_window = (j - c.starts[i]) % WINDOW;
            if (in_window) assert_int_equal(c.ids[j], c.ids[j - 1] + 1);
            else assert_true(j == 0 || c.ids[j] - last < 6 * WINDOW); /* evenly: a quarter of the windows, none of the text far from one */
            last = c.ids[j];
        }
    }
    assert_true(TOKENS - last < 6 * WINDOW);
    fh_corpus_free(&c);
}

#ifdef FH_FAULTS
static void every_allocation_of_learning_may_fail(void **state)
{
    (void)state;
    for (long n = 1;; n++) {
        static float map[D][D];
        float c[K * D];
        fh_learn_params p = {.passes = 1};
        fh_learn_report r;
        start(c);
        fh_fault_set(FH_FAULT_ALLOC, n);
        fh_status rc = fh_output_map(&map[0][0], D, &h[0][0], positions, N, NULL, &err);
        if (rc == FH_OK) rc = fh_learn_routing(c, K, assignment, &dense, &h[0][0], positions, N, &p, NULL, &r, &err);
        bool fired = fh_fault_fired();
        fh_fault_set(FH_FAULT_ALLOC, 0);
        assert_int_equal(rc, fired ? FH_ENOMEM : FH_OK);
        if (!fired) break;
    }
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(learning_lowers_the_loss_it_reports),
        cmocka_unit_test(any_number_of_threads_and_any_instruction_set_learns_the_same),
        cmocka_unit_test(odd_shapes_learn_too),
        cmocka_unit_test(rows_held_at_unit_length_stay_there_and_still_learn),
        cmocka_unit_test(too_few_states_are_said_to_be),
        cmocka_unit_test(centroids_whose_scores_pass_float32_are_refused),
        cmocka_unit_test(distance_between_mapped_rows_is_the_difference_of_logits_and_a_ridge),
        cmocka_unit_test(a_map_of_no_states_or_of_damaged_ones_is_refused),
        cmocka_unit_test(a_thinned_corpus_is_taken_evenly_and_in_windows),
#ifdef FH_FAULTS
        cmocka_unit_test(every_allocation_of_learning_may_fail),
#endif
    };
    return cmocka_run_group_tests(tests, make_world, NULL);
}
