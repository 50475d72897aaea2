/* Tokens that move to where learned centroids expect them: what draws them, that changing places is exact, and what is left of the masses. */
#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/fault.h"
#include "calib/learn.h"

enum { V = 150, D = 20, K = 12, N = 1200, LIVE = V - 2 };
static fh_err err;
static float w[V][D], h[N][D];
static uint32_t right[V], wrong[V]; /* clusters: as rows are alike, and with some pairs in each other's place */
static size_t positions[N];
static uint8_t dead[V];
static fh_dense dense;

/* Rows in K groups around directions of their own, states near rows. */
static int make_world(void **state)
{
    static float middle[K][D];
    fh_rng r;
    (void)state;
    fh_rng_seed(&r, 5, 3);
    for (int k = 0; k < K; k++) for (int i = 0; i < D; i++) middle[k][i] = (float)(3 * fh_rng_double(&r) - 1.5);
    for (int t = 0; t < V; t++) {
        right[t] = wrong[t] = (uint32_t)t % K;
        for (int i = 0; i < D; i++) w[t][i] = (float)(middle[t % K][i] + 0.6 * fh_rng_double(&r) - 0.3);
    }
    dead[17] = dead[90] = 1;
    for (int t = 0; t < 40; t += 5) wrong[t] = right[t + 1], wrong[t + 1] = right[t];
    for (int n = 0; n < N; n++) {
        const float *near = w[fh_rng_below(&r, V)];
        positions[n] = (size_t)(N - 1 - n);
        for (int i = 0; i < D; i++) h[n][i] = (float)(0.5 * (double)near[i] + fh_rng_double(&r) - 0.5);
    }
    dense = (fh_dense){.rows = {w, FH_F32, V, D, sizeof w[0]}, .vocab = V, .dead = dead};
    return 0;
}

static void start(float *c, const uint32_t *assignment)
{
    memset(c, 0, K * D * sizeof *c);
    for (int t = 0; t < V; t++) for (int i = 0; i < D; i++) c[assignment[t] * D + (unsigned)i] += w[t][i] * K / V;
}

/* The softmax of the dense head at position n, in double. */
static void shares(double *p, size_t n)
{
    double sum = 0;
    for (int t = 0; t < V; t++) {
        double z = 0;
        for (int i = 0; i < D; i++) z += (double)w[t][i] * h[positions[n]][i];
        sum += p[t] = dead[t] ? 0 : exp(z);
    }
    for (int t = 0; t < V; t++) p[t] /= sum;
}

/* Every share of every state: nothing is left out. */
static fh_sparse all_shares(size_t n)
{
    fh_sparse s = {.first = fh_calloc(n + 1, sizeof *s.first)};
    double p[V];
    assert_int_equal(fh_sparse_grow(&s, 0, n * V, &err), FH_OK);
    for (size_t i = 0; i < n; i++) {
        shares(p, i);
        s.first[i + 1] = s.first[i];
        for (uint32_t t = 0; t < V; t++) if (!dead[t]) s.index[s.first[i + 1]] = t, s.value[s.first[i + 1]++] = (float)p[t];
    }
    return s;
}

static void each_size_is(const uint32_t *assignment, const uint32_t *as)
{
    int size[K][2] = {{0}};
    for (int t = 0; t < V; t++) size[assignment[t]][dead[t]]++, size[as[t]][dead[t]]--;
    for (int k = 0; k < K; k++) assert_true(size[k][0] == 0 && size[k][1] == 0);
    for (int t = 0; t < V; t++) if (dead[t]) assert_int_equal(assignment[t], as[t]);
}

static void what_draws_a_token_is_the_sum_that_defines_it(void **state)
{
    enum { SOME = 300 };
    static float pull[V][D];
    static double mean[D], row[D], s[D][D], p[V];
    (void)state;
    fh_sparse likely = all_shares(SOME);
    assert_int_equal(fh_token_pull(&pull[0][0], &dense, &likely, &h[0][0], positions, SOME, NULL, &err), FH_OK);
    for (int n = 0; n < SOME; n++) for (int i = 0; i < D; i++) mean[i] += (double)h[positions[n]][i] / SOME;
    for (int n = 0; n < SOME; n++)
        for (int i = 0; i < D; i++) for (int j = 0; j < D; j++) s[i][j] += (h[positions[n]][i] - mean[i]) * (h[positions[n]][j] - mean[j]) / SOME;
    for (int t = 0; t < V; t++) for (int i = 0; i < D; i++) row[i] += dead[t] ? 0 : (double)w[t][i] / LIVE;
    for (int t = 0; t < V; t += 7) {
        double want[D] = {0}, seen = 1;
        for (int i = 0; i < D; i++) for (int j = 0; j < D; j++) want[i] += dead[t] ? 0 : s[i][j] * (w[t][j] - row[j]);
        for (size_t n = 0; n < SOME; n++) {
            shares(p, n);
            for (int i = 0; i < D; i++) want[i] += p[t] * h[positions[n]][i];
            seen += p[t];
        }
        for (int i = 0; i < D; i++) want[i] /= pow(seen, 0.75);
        for (int i = 0; i < D; i++)
            if (!(fabs(pull[t][i] - want[i]) <= 1e-4)) fail_msg("token %d, %d: %g, by definition %g", t, i, (double)pull[t][i], want[i]);
    }
    fh_sparse_free(&likely);
}

/* A pull of random numbers: what is gained is what the sum over tokens gains, and of all swaps none is left that gains. */
static void places_are_changed_until_no_change_gains(void **state)
{
    static float pull[V][D], c[K][D];
    uint32_t to[V];
    size_t swaps;
    fh_rng r;
    (void)state;
    fh_rng_seed(&r, 8, 1);
    for (int t = 0; t < V; t++) for (int i = 0; i < D; i++) pull[t][i] = (float)(2 * fh_rng_double(&r) - 1);
    for (int k = 0; k < K; k++) for (int i = 0; i < D; i++) c[k][i] = (float)(2 * fh_rng_double(&r) - 1);
    memcpy(to, right, sizeof to);
    for (int again = 0; again < 20; again++) {
        double was = 0, is = 0;
        uint32_t before[V];
        memcpy(before, to, sizeof to);
        assert_int_equal(fh_move_tokens(to, &swaps, &pull[0][0], dead, V, &c[0][0], K, D, NULL, &err), FH_OK);
        if (!swaps) break;
        for (int t = 0; t < V; t++) for (int i = 0; i < D; i++) was += (double)pull[t][i] * c[before[t]][i], is += (double)pull[t][i] * c[to[t]][i];
        assert_true(is >= was + 1e-3 * (double)swaps);
        each_size_is(to, right);
    }
    assert_int_equal(swaps, 0);
    for (int t = 0; t < V; t++)
        for (int u = 0; u < t; u++) {
            double gain = 0;
            if (dead[t] || dead[u] || to[t] == to[u]) continue;
            for (int i = 0; i < D; i++) gain += ((double)pull[t][i] - pull[u][i]) * ((double)c[to[u]][i] - c[to[t]][i]);
            if (!(gain <= 2e-3)) fail_msg("tokens %d and %d would gain %g", t, u, gain);
        }
}

/* More clusters than a token is tried in, and of different sizes: both that gain by far less than others and those that are far away change places. */
static void a_token_goes_to_one_of_its_best_clusters_and_another_comes_from_there(void **state)
{
    enum { MANY = 40, BEST = 16 };
    static float pull[V][D], c[MANY][D];
    static double score[V][MANY];
    uint32_t to[V];
    size_t swaps;
    fh_rng r;
    (void)state;
    fh_rng_seed(&r, 21, 1);
    for (uint32_t t = 0; t < V; t++) {
        to[t] = t % MANY;
        double much = t % 3 ? 1 : 20;
        for (int i = 0; i < D; i++) pull[t][i] = (float)(much * (2 * fh_rng_double(&r) - 1));
    }
    for (int k = 0; k < MANY; k++) for (int i = 0; i < D; i++) c[k][i] = (float)(2 * fh_rng_double(&r) - 1);
    for (int t = 0; t < V; t++) for (int k = 0; k < MANY; k++) for (int i = 0; i < D; i++) score[t][k] += (double)pull[t][i] * c[k][i];
    for (int again = 0; again < 40; again++) {
        double was = 0, is = 0;
        uint32_t before[V];
        memcpy(before, to, sizeof to);
        assert_int_equal(fh_move_tokens(to, &swaps, &pull[0][0], dead, V, &c[0][0], MANY, D, NULL, &err), FH_OK);
        for (int t = 0; t < V; t++) was += score[t][before[t]], is += score[t][to[t]];
        assert_true(is >= was + 1e-3 * (double)swaps);
        if (!swaps) break;
    }
    assert_int_equal(swaps, 0);
    for (int t = 0; t < V; t++)
        for (int u = 0; u < V; u++) {
            int better = 0;
            if (dead[t] || dead[u] || to[t] == to[u]) continue;
            for (int k = 0; k < MANY; k++) better += score[t][k] > score[t][to[u]];
            double own = score[t][to[u]] - score[t][to[t]], gain = own + score[u][to[t]] - score[u][to[u]];
            if (better < BEST && own > 0.01 && !(gain <= 0.01)) fail_msg("tokens %d and %d would gain %g", t, u, gain);
        }
}

static void a_token_that_made_way_goes_on_to_where_it_is_better_off(void **state)
{
    static const float unit[3][3] = {{1, 0, 0}, {0, 1, 0}, {0, 0, 1}}, scores[3][3] = {{0, 10, 0}, {0, 5, 4.9f}, {0, 0, 0}};
    uint32_t to[3] = {0, 1, 2};
    size_t swaps;
    (void)state;
    assert_int_equal(fh_move_tokens(to, &swaps, &scores[0][0], NULL, 3, &unit[0][0], 3, 3, NULL, &err), FH_OK);
    assert_true(swaps == 2 && to[0] == 1 && to[1] == 2 && to[2] == 0);
}

static void masses_after_a_move_are_those_of_the_new_clusters(void **state)
{
    enum { SOME = 200 };
    static double p[V];
    (void)state;
    fh_sparse likely = all_shares(SOME), masses = {.first = fh_calloc(SOME + 1, sizeof(size_t))}, moved;
    assert_int_equal(fh_sparse_grow(&masses, 0, SOME * K, &err), FH_OK);
    for (size_t n = 0; n < SOME; n++) { /* clusters that hold less than a hundredth are left out, as small ones are */
        double q[K] = {0};
        shares(p, n);
        for (int t = 0; t < V; t++) q[right[t]] += p[t];
        masses.first[n + 1] = masses.first[n];
        for (uint32_t k = 0; k < K; k++) if (q[k] >= 0.01) masses.index[masses.first[n + 1]] = k, masses.value[masses.first[n + 1]++] = (float)q[k];
    }
    assert_int_equal(fh_move_masses(&moved, &masses, &likely, SOME, right, wrong, &err), FH_OK);
    for (size_t n = 0; n < SOME; n++) {
        double q[K] = {0}, is[K] = {0};
        shares(p, n);
        for (int t = 0; t < V; t++) q[wrong[t]] += p[t];
        for (size_t e = moved.first[n]; e < moved.first[n + 1]; e++) {
            for (size_t before = moved.first[n]; before < e; before++) assert_true(moved.index[before] != moved.index[e]);
            assert_true(moved.value[e] >= 0);
            is[moved.index[e]] = moved.value[e];
        }
        for (int k = 0; k < K; k++) if (!(fabs(is[k] - q[k]) <= 0.0101)) fail_msg("state %zu, cluster %d: %g, by definition %g", n, k, is[k], q[k]);
    }
    fh_sparse_free(&likely);
    fh_sparse_free(&masses);
    fh_sparse_free(&moved);
}

static void tokens_in_the_wrong_place_go_to_the_right_one(void **state)
{
    float c[K * D], still[K * D];
    uint32_t to[V], stay[V];
    fh_learn_params p = {.passes = 6, .moves = 2}, none = {.passes = 6};
    fh_learn_report r, without;
    (void)state;
    start(c, wrong);
    start(still, wrong);
    memcpy(to, wrong, sizeof to);
    memcpy(stay, wrong, sizeof stay);
    assert_int_equal(fh_learn_routing(still, K, stay, &dense, &h[0][0], positions, N, &none, NULL, &without, &err), FH_OK);
    assert_memory_equal(stay, wrong, sizeof stay);
    assert_int_equal(fh_learn_routing(c, K, to, &dense, &h[0][0], positions, N, &p, NULL, &r, &err), FH_OK);
    for (int t = 0; t < V; t++) if (to[t] != right[t]) fail_msg("token %d is in cluster %u, not %u", t, to[t], right[t]);
    assert_true(r.moves >= 1 && r.swaps >= 8 && without.moves == 0 && without.swaps == 0);
    if (!(r.loss < without.loss - 0.01)) fail_msg("loss %g, without moving %g", r.loss, without.loss);
}

/* The states held out, the last tenth, say nothing: all tokens are alike there, and clusters of one size. */
static void a_move_that_gains_nothing_on_states_held_out_is_not_made(void **state)
{
    static float other[N][D];
    float c[K * D];
    uint32_t to[V];
    size_t order[N];
    fh_learn_params p = {.passes = 6, .moves = 3};
    fh_learn_report r;
    (void)state;
    for (size_t n = 0; n < N; n++) {
        order[n] = n;
        for (int i = 0; i < D; i++) other[n][i] = n < N - N / 10 ? h[n][i] : 0;
    }
    start(c, wrong);
    memcpy(to, wrong, sizeof to);
    assert_int_equal(fh_learn_routing(c, K, to, &dense, &other[0][0], order, N, &p, NULL, &r, &err), FH_OK);
    assert_int_equal(r.moves, 0);
    assert_int_equal(r.swaps, 0);
    assert_memory_equal(to, wrong, sizeof to);
    assert_true(r.loss == r.loss_before);
}

static void any_number_of_threads_moves_the_same(void **state)
{
    float one[K * D], two[K * D];
    uint32_t to[V], also[V];
    fh_learn_params p = {.passes = 3, .moves = 2};
    fh_learn_report r;
    fh_pool *pool = NULL;
    (void)state;
    assert_int_equal(fh_pool_new(&pool, 3, &err), FH_OK);
    fh_job job = {.pool = pool};
    start(one, wrong);
    start(two, wrong);
    memcpy(to, wrong, sizeof to);
    memcpy(also, wrong, sizeof to);
    assert_int_equal(fh_learn_routing(one, K, to, &dense, &h[0][0], positions, N, &p, NULL, &r, &err), FH_OK);
    assert_int_equal(fh_learn_routing(two, K, also, &dense, &h[0][0], positions, N, &p, &job, &r, &err), FH_OK);
    assert_true(r.swaps > 0);
    assert_memory_equal(one, two, sizeof one);
    assert_memory_equal(to, also, sizeof to);
    fh_pool_free(pool);
}

static void rows_of_unit_length_stay_so_when_tokens_move(void **state)
{
    float c[K * D];
    uint32_t to[V];
    fh_learn_params p = {.passes = 4, .moves = 1, .unit = true};
    fh_learn_report r;
    (void)state;
    start(c, wrong);
    memcpy(to, wrong, sizeof to);
    assert_int_equal(fh_learn_routing(c, K, to, &dense, &h[0][0], positions, N, &p, NULL, &r, &err), FH_OK);
    each_size_is(to, wrong);
    for (int k = 0; k < K; k++) {
        double square = 0;
        for (int i = 0; i < D; i++) square += (double)c[k * D + i] * c[k * D + i];
        assert_true(fabs(square - 1) < 1e-5);
    }
}

static void a_stop_while_tokens_move_is_an_interruption(void **state)
{
    static float pull[V][D], c[K][D];
    uint32_t to[V];
    size_t swaps;
    volatile sig_atomic_t stop = 1;
    fh_job job = {.stop = &stop};
    fh_sparse likely = all_shares(10);
    (void)state;
    memcpy(to, right, sizeof to);
    assert_int_equal(fh_move_tokens(to, &swaps, &pull[0][0], dead, V, &c[0][0], K, D, &job, &err), FH_EINTERRUPTED);
    assert_memory_equal(to, right, sizeof to);
    assert_int_equal(fh_token_pull(&pull[0][0], &dense, &likely, &h[0][0], positions, 10, &job, &err), FH_EINTERRUPTED);
    fh_sparse_free(&likely);
}

#ifdef FH_FAULTS
static void every_allocation_of_moving_may_fail(void **state)
{
    (void)state;
    for (long n = 1;; n++) {
        float c[K * D];
        uint32_t to[V];
        fh_learn_params p = {.passes = 3, .moves = 2};
        fh_learn_report r;
        start(c, wrong);
        memcpy(to, wrong, sizeof to);
        fh_fault_set(FH_FAULT_ALLOC, n);
        fh_status rc = fh_learn_routing(c, K, to, &dense, &h[0][0], positions, FH_LEARN_STATES, &p, NULL, &r, &err);
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
        cmocka_unit_test(what_draws_a_token_is_the_sum_that_defines_it),
        cmocka_unit_test(places_are_changed_until_no_change_gains),
        cmocka_unit_test(a_token_goes_to_one_of_its_best_clusters_and_another_comes_from_there),
        cmocka_unit_test(a_token_that_made_way_goes_on_to_where_it_is_better_off),
        cmocka_unit_test(masses_after_a_move_are_those_of_the_new_clusters),
        cmocka_unit_test(tokens_in_the_wrong_place_go_to_the_right_one),
        cmocka_unit_test(a_move_that_gains_nothing_on_states_held_out_is_not_made),
        cmocka_unit_test(any_number_of_threads_moves_the_same),
        cmocka_unit_test(rows_of_unit_length_stay_so_when_tokens_move),
        cmocka_unit_test(a_stop_while_tokens_move_is_an_interruption),
#ifdef FH_FAULTS
        cmocka_unit_test(every_allocation_of_moving_may_fail),
#endif
    };
    return cmocka_run_group_tests(tests, make_world, NULL);
}
