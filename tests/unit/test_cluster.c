/* Balanced clustering: sizes, quality against exhaustive search, and what holds whatever happens. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "base/fault.h"
#include "cluster/cluster_private.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- heads ------------------------------------------------------------------------------------------------------- */

static double normal(fh_rng *r)
{
    double s = 0;
    for (int i = 0; i < 12; i++) s += fh_rng_double(r);
    return s - 6;
}

static fh_rows rows_of(const float *x, size_t v, size_t d)
{
    return (fh_rows){x, FH_F32, v, d, d * sizeof *x};
}

/* `kinds` directions, each row near one of them, all around a common mean, of different lengths: what a trained head looks like. */
static float *make_head(size_t v, size_t d, size_t kinds, double spread, uint64_t seed)
{
    fh_rng r;
    fh_rng_seed(&r, seed, 0);
    float *x = fh_malloc(v * d * sizeof *x), *centre = fh_malloc(kinds * d * sizeof *centre);
    assert_non_null(x);
    assert_non_null(centre);
    for (size_t i = 0; i < kinds * d; i++) centre[i] = (float)normal(&r);
    for (size_t t = 0; t < v; t++) {
        double length = 0.5 + fh_rng_double(&r);
        for (size_t j = 0; j < d; j++) x[t * d + j] = (float)(length * (1 + centre[t % kinds * d + j] + spread * normal(&r)));
    }
    fh_free(centre);
    return x;
}

/* ---- what every clustering must be --------------------------------------------------------------------------------- */

static bool is_live(const fh_rows *head, const uint8_t *dead, size_t t)
{
    const float *x = fh_row(head, t);
    double s = 0;
    for (size_t j = 0; j < head->cols; j++) s += (double)x[j] * x[j];
    return !(dead && dead[t]) && s > 0;
}

/* Sizes, centroids and objective of a clustering of f32 rows, by computing them again. */
static void check_clustering(const fh_clustering *c, const fh_rows *head, const uint8_t *dead, uint32_t k)
{
    size_t v = head->rows, d = head->cols, live = 0;
    assert_int_equal(c->v, v);
    assert_int_equal(c->d, d);
    assert_int_equal(c->k, k);
    assert_int_equal(c->cap, (v + k - 1) / k);
    size_t *size = fh_calloc(k, sizeof *size), *alive = fh_calloc(k, sizeof *alive);
    double *unit = fh_calloc(k * d, sizeof *unit), *sum = fh_calloc(k * d, sizeof *sum), cosines = 0;
    for (size_t t = 0; t < v; t++) {
        const float *x = fh_row(head, t);
        uint32_t a = c->assignment[t];
        assert_true(a < k);
        size[a]++;
        if (!is_live(head, dead, t)) continue;
        live++, alive[a]++;
        double norm = 0;
        for (size_t j = 0; j < d; j++) norm += (double)x[j] * x[j];
        norm = sqrt(norm);
        for (size_t j = 0; j < d; j++) unit[a * d + j] += x[j] / norm, sum[a * d + j] += x[j];
    }
    for (size_t a = 0; a < k; a++) {
        size_t fillers = size[a] - alive[a], dead_rows = v - live;
        assert_true(size[a] == v / k || size[a] == (v + k - 1) / k);
        assert_true(alive[a] == live / k || alive[a] == (live + k - 1) / k);
        assert_true(fillers + 1 >= dead_rows / k && fillers <= dead_rows / k + 1);
        double norm = 0, most = 0;
        for (size_t j = 0; j < d; j++) {
            norm += unit[a * d + j] * unit[a * d + j];
            most = fmax(most, fabs(sum[a * d + j] / (double)alive[a]));
        }
        norm = sqrt(norm);
        cosines += norm;
        double best = 0;
        for (size_t j = 0; j < d; j++) {
            assert_true(fabs(c->mean[a * d + j] - unit[a * d + j] / norm) <= 1e-6);
            assert_true(fabs(c->raw[a * d + j] - sum[a * d + j] / (double)alive[a]) <= 1e-6 * fabs(most));
            best += (double)c->centroids[a * d + j] * c->centroids[a * d + j];
        }
        assert_true(best > 0 && isfinite(best));
    }
    assert_true(fabs(c->objective - cosines / (double)live) <= 1e-6);
    fh_free(size);
    fh_free(alive);
    fh_free(unit);
    fh_free(sum);
}

/* What the metric maximises, in double, from the assignment: Euclidean minus the sum of squared distances, cosine the sum of |sums|. */
static double metric_of(const uint32_t *assignment, const float *x, size_t v, size_t d, size_t k, fh_cluster_metric metric)
{
    double *sum = fh_calloc(k * d, sizeof *sum), result = 0;
    size_t *n = fh_calloc(k, sizeof *n);
    for (size_t t = 0; t < v; t++) {
        double norm = 0, by = 1;
        for (size_t j = 0; j < d; j++) norm += (double)x[t * d + j] * x[t * d + j];
        if (metric == FH_METRIC_COSINE) by = 1 / sqrt(norm);
        else result -= norm;
        for (size_t j = 0; j < d; j++) sum[assignment[t] * d + j] += by * x[t * d + j];
        n[assignment[t]]++;
    }
    for (size_t c = 0; c < k; c++) {
        double square = 0;
        for (size_t j = 0; j < d; j++) square += sum[c * d + j] * sum[c * d + j];
        result += metric == FH_METRIC_COSINE ? sqrt(square) : square / (double)n[c];
    }
    fh_free(sum);
    fh_free(n);
    return result;
}

static fh_clustering run(const fh_rows *head, const uint8_t *dead, fh_cluster_params p, unsigned threads)
{
    fh_err err = {0};
    fh_pool *pool = NULL;
    fh_clustering c;
    assert_int_equal(fh_pool_new(&pool, threads, &err), FH_OK);
    fh_job job = {.pool = pool};
    if (fh_cluster(&c, head, dead, &p, &job, &err) != FH_OK) fail_msg("%s", err.text);
    fh_pool_free(pool);
    return c;
}

static const fh_cluster_start starts[] = {FH_START_COARSE, FH_START_FAISS, FH_START_RANDOM};
static const fh_cluster_metric metrics[] = {FH_METRIC_EUCLIDEAN, FH_METRIC_COSINE};

/* ---- sizes ------------------------------------------------------------------------------------------------------- */

static void every_cluster_gets_its_share_of_live_and_dead_tokens(void **state)
{
    static const struct { size_t v, k, dead; } cases[] = {
        {2, 2, 0}, {3, 2, 0}, {3, 3, 0}, {16, 2, 0}, {17, 2, 5}, {100, 100, 0}, {100, 99, 0}, {100, 51, 0}, {100, 50, 0}, {100, 49, 1},
        {100, 7, 0}, {100, 7, 3}, {100, 7, 50}, {100, 7, 93}, {100, 16, 20}, {100, 33, 67}, {257, 16, 0}, {257, 16, 1}, {257, 16, 15},
        {257, 16, 17}, {1000, 62, 40}, {1000, 63, 437}, {1500, 400, 100},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t v = cases[i].v, d = 5 + i, k = cases[i].k;
        float *x = make_head(v, d, 10, 0.5, i);
        uint8_t *dead = fh_calloc(v, 1);
        for (size_t j = 0; j < cases[i].dead; j++) dead[j * 7919 % v] = 1;
        size_t marked = 0;
        for (size_t t = 0; t < v; t++) marked += dead[t];
        assert_int_equal(marked, cases[i].dead);
        fh_rows head = rows_of(x, v, d);
        for (size_t s = 0; s < 3; s++) {
            fh_cluster_params p = {.k = (uint32_t)k, .start = starts[s], .metric = metrics[(i + s) % 2]};
            fh_clustering c = run(&head, dead, p, 2);
            check_clustering(&c, &head, dead, (uint32_t)k);
            fh_clustering_free(&c);
        }
        fh_free(x);
        fh_free(dead);
    }
}

static void zero_rows_are_dealt_evenly_even_when_nobody_called_them_dead(void **state)
{
    size_t v = 8000, d = 24;
    float *x = make_head(v, d, 60, 0.7, 3);
    memset(x + 5000 * d, 0, 1000 * d * sizeof *x);
    fh_rows head = rows_of(x, v, d);
    for (size_t m = 0; m < 2; m++) {
        fh_clustering c = run(&head, NULL, (fh_cluster_params){.k = 500, .metric = metrics[m]}, 2);
        check_clustering(&c, &head, NULL, 500); /* 2 fillers a cluster */
        fh_clustering_free(&c);
    }
    fh_free(x);
}

static void a_number_of_clusters_out_of_range_is_refused_with_the_range(void **state)
{
    float *x = make_head(20, 4, 3, 1, 1);
    fh_rows head = rows_of(x, 20, 4);
    fh_err err = {0};
    fh_clustering c;
    static const uint32_t bad[] = {0, 1, 21, UINT32_MAX};
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(fh_cluster(&c, &head, NULL, &(fh_cluster_params){.k = bad[i]}, NULL, &err), FH_EUSAGE);
        assert_non_null(strstr(err.text, "2 to 20"));
        assert_null(c.assignment);
    }
    uint8_t dead[20] = {[3] = 1, [9] = 1};
    assert_int_equal(fh_cluster(&c, &head, dead, &(fh_cluster_params){.k = 19}, NULL, &err), FH_EUSAGE);
    assert_non_null(strstr(err.text, "2 to 18"));
    assert_int_equal(fh_cluster(&c, &head, NULL, &(fh_cluster_params){.k = 4, .candidates = 65}, NULL, &err), FH_EUSAGE);
    memset(dead, 1, sizeof dead);
    assert_int_equal(fh_cluster(&c, &head, dead, &(fh_cluster_params){.k = 4}, NULL, &err), FH_EFORMAT);
    head.dtype = FH_I8;
    assert_int_equal(fh_cluster(&c, &head, NULL, &(fh_cluster_params){.k = 4}, NULL, &err), FH_EUNSUPPORTED);
    fh_free(x);
}

/* ---- rows that are not rows ---------------------------------------------------------------------------------------- */

static void a_live_row_that_is_not_finite_is_named_and_a_dead_one_is_not_looked_at(void **state)
{
    float *x = make_head(64, 8, 8, 0.5, 1);
    fh_rows head = rows_of(x, 64, 8);
    uint8_t dead[64] = {[17] = 1};
    static const float bad[] = {NAN, INFINITY, -INFINITY, 1e30f};
    for (size_t i = 0; i < 4; i++) {
        fh_err err = {0};
        fh_clustering c;
        float keep = x[17 * 8 + 3];
        x[17 * 8 + 3] = bad[i];
        assert_int_equal(fh_cluster(&c, &head, NULL, &(fh_cluster_params){.k = 8}, NULL, &err), FH_EFORMAT);
        assert_non_null(strstr(err.text, "row 17 "));
        c = run(&head, dead, (fh_cluster_params){.k = 8}, 1);
        check_clustering(&c, &head, dead, 8);
        fh_clustering_free(&c);
        x[17 * 8 + 3] = keep;
    }
    fh_free(x);
}

static void equal_rows_are_clustered_without_a_zero_or_endless_work(void **state)
{
    size_t v = 3000, d = 17;
    float *x = make_head(v, d, 30, 0.5, 4);
    fh_rows head = rows_of(x, v, d);
    for (size_t same = 1500; same <= v; same += 1500) { /* half of them, all of them */
        for (size_t t = 1; t < same; t++) memcpy(x + t * d, x, d * sizeof *x);
        for (size_t s = 0; s < 3; s++) {
            fh_clustering c = run(&head, NULL, (fh_cluster_params){.k = 190, .start = starts[s], .metric = metrics[s % 2]}, 2);
            check_clustering(&c, &head, NULL, 190);
            if (same == v) assert_true(c.objective > 1 - 1e-6);
            fh_clustering_free(&c);
        }
    }
    fh_free(x);
}

static void members_that_cancel_leave_the_direction_of_the_first(void **state)
{
    static const float x[] = {1, 2, 0, /**/ -1, -2, 0, /**/ 0, 3, 4, /**/ 0, 3, 4, /**/ 9, 9, 9};
    uint32_t assignment[] = {0, 0, 1, 1, 0};
    uint8_t dead[] = {0, 0, 0, 0, 1};
    double weights[] = {2, 2, 1, 3, 1};
    float out[6];
    fh_rows head = rows_of(x, 5, 3);
    fh_err err = {0};
    fh_clustering c = {.v = 5, .d = 3, .k = 2, .cap = 3, .assignment = assignment};
    assert_int_equal(fh_centroids(&c, &head, dead, NULL, &err), FH_OK);
    static const float mean[] = {0.4472136f, 0.8944272f, 0, 0, 0.6f, 0.8f}, raw[] = {0.5f, 1, 0, 0, 3, 4};
    assert_int_equal(fh_weighted_centroids(out, &c, &head, dead, weights, NULL, &err), FH_OK);
    for (size_t i = 0; i < 6; i++) {
        assert_true(fabsf(c.mean[i] - mean[i]) <= 1e-6f);
        assert_true(fabsf(c.raw[i] - raw[i]) <= 1e-6f);
        assert_true(fabsf(out[i] - raw[i]) <= 1e-6f);
    }
    c.assignment = NULL;
    fh_clustering_free(&c);
}

/* Pairs x, -x and K = V / 2: the best cosine partition must not fall into the trap, whatever it finds is valid. */
static void opposite_rows_are_clustered(void **state)
{
    size_t v = 200, d = 6;
    float *x = make_head(v, d, 200, 1, 8);
    for (size_t t = 0; t < v; t += 2) {
        for (size_t j = 0; j < d; j++) x[(t + 1) * d + j] = -x[t * d + j];
    }
    fh_rows head = rows_of(x, v, d);
    for (size_t m = 0; m < 2; m++) {
        fh_clustering c = run(&head, NULL, (fh_cluster_params){.k = 100, .metric = metrics[m]}, 2);
        check_clustering(&c, &head, NULL, 100);
        fh_clustering_free(&c);
    }
    fh_free(x);
}

/* ---- quality ----------------------------------------------------------------------------------------------------- */

/* The best of all partitions of v tokens into clusters of `cap`, by trying every one: token t, the first without a home, opens or joins. */
struct exhaustive { const float *x; size_t v, d, k, cap; fh_cluster_metric metric; uint32_t assignment[12]; size_t room[12]; double best; };

static void try_all(struct exhaustive *e, size_t t, size_t opened)
{
    if (t == e->v) {
        e->best = fmax(e->best, metric_of(e->assignment, e->x, e->v, e->d, e->k, e->metric));
        return;
    }
    for (size_t c = 0; c < opened + (opened < e->k); c++) {
        if (!e->room[c]) continue;
        e->room[c]--;
        e->assignment[t] = (uint32_t)c;
        try_all(e, t + 1, c == opened ? opened + 1 : opened);
        e->room[c]++;
    }
}

static void tiny_cases_come_close_to_the_best_of_all_partitions(void **state)
{
    static const struct { size_t v, k; } cases[] = {{8, 4}, {9, 3}, {10, 2}, {8, 2}};
    for (size_t m = 0; m < 2; m++) {
        double lost = 0, total = 0;
        unsigned optimal = 0, runs = 0;
        for (size_t i = 0; i < 4; i++) {
            for (uint64_t seed = 0; seed < 12; seed++) {
                size_t v = cases[i].v, k = cases[i].k;
                float *x = make_head(v, 3, v, 1, seed);
                fh_rows head = rows_of(x, v, 3);
                struct exhaustive e = {.x = x, .v = v, .d = 3, .k = k, .cap = v / k, .metric = metrics[m], .best = -INFINITY};
                for (size_t c = 0; c < k; c++) e.room[c] = e.cap;
                try_all(&e, 0, 0);
                fh_clustering c = run(&head, NULL, (fh_cluster_params){.k = (uint32_t)k, .metric = metrics[m], .rounds = 20}, 1);
                double mine = metric_of(c.assignment, x, v, 3, k, metrics[m]);
                assert_true(mine <= e.best + 1e-4 * fabs(e.best));
                lost += e.best - mine, total += fabs(e.best), runs++;
                optimal += mine >= e.best - 1e-4 * fabs(e.best);
                fh_clustering_free(&c);
                fh_free(x);
            }
        }
        assert_true(lost <= 0.05 * total);
        assert_true(optimal * 2 >= runs);
    }
}

static void planted_clusters_are_found(void **state)
{
    size_t k = 64, cap = 8, d = 32, v = k * cap;
    float *x = make_head(v, d, k, 0.05, 11);
    /* Lengths differ, which a Euclidean partition is meant to see: here every row gets the length of its kind. */
    for (size_t t = 0; t < v; t++) {
        double s = 0;
        for (size_t j = 0; j < d; j++) s += (double)x[t * d + j] * x[t * d + j];
        for (size_t j = 0; j < d; j++) x[t * d + j] = (float)(x[t * d + j] / sqrt(s));
    }
    fh_rows head = rows_of(x, v, d);
    for (size_t s = 0; s < 3; s++) {
        for (size_t m = 0; m < 2; m++) {
            fh_clustering c = run(&head, NULL, (fh_cluster_params){.k = (uint32_t)k, .start = starts[s], .metric = metrics[m]}, 2);
            size_t astray = 0;
            for (size_t t = k; t < v; t++) astray += c.assignment[t] != c.assignment[t % k];
            assert_true(starts[s] == FH_START_COARSE ? astray == 0 : astray * 20 <= v); /* swaps of pairs cannot undo every tangle */
            fh_clustering_free(&c);
        }
    }
    fh_free(x);
}

static void not_worse(void *ctx, const fh_round *r)
{
    unsigned *rounds = ctx;
    assert_int_equal(r->round, ++*rounds);
    assert_true(r->gain >= 0);
    assert_true(r->objective > 0 && r->objective <= 1);
    assert_true(r->seconds >= 0 && r->tokens_per_second >= 0);
}

static void no_round_and_no_sweep_lowers_the_objective(void **state)
{
    size_t v = 1237, d = 40, k = 77;
    float *x = make_head(v, d, 120, 1, 5);
    fh_rows head = rows_of(x, v, d);
    for (size_t s = 0; s < 3; s++) {
        for (size_t m = 0; m < 2; m++) {
            double last = -INFINITY, begun = 0;
            for (unsigned steps = 0; steps < 6; steps++) { /* runs of one sweep, two, ... are the beginnings of the same run */
                unsigned rounds = 0;
                fh_cluster_params p = {.k = (uint32_t)k, .start = starts[s], .metric = metrics[m], .rounds = steps ? steps : FH_ROUNDS_NONE,
                                       .sweeps = 1, .on_round = not_worse, .ctx = &rounds};
                fh_clustering c = run(&head, NULL, p, 2);
                double now = metric_of(c.assignment, x, v, d, k, metrics[m]);
                assert_int_equal(c.rounds, rounds);
                assert_true(now >= last - 1e-9 * fabs(last));
                if (!steps) begun = now;
                last = now;
                fh_clustering_free(&c);
            }
            assert_true(last > begun);
        }
    }
    fh_free(x);
}

static void large_clusters_are_refined_through_windows(void **state)
{
    size_t v = 1200, d = 16;
    float *x = make_head(v, d, 3, 1.5, 6);
    fh_rows head = rows_of(x, v, d);
    for (uint32_t k = 2; k < 5; k++) {
        fh_clustering c = run(&head, NULL, (fh_cluster_params){.k = k, .rounds = FH_ROUNDS_NONE, .start = FH_START_RANDOM}, 1);
        double before = metric_of(c.assignment, x, v, d, k, FH_METRIC_EUCLIDEAN);
        fh_clustering_free(&c);
        c = run(&head, NULL, (fh_cluster_params){.k = k, .start = FH_START_RANDOM}, 2);
        check_clustering(&c, &head, NULL, k);
        assert_true(metric_of(c.assignment, x, v, d, k, FH_METRIC_EUCLIDEAN) > before);
        fh_clustering_free(&c);
    }
    fh_free(x);
}

static void swaps_beat_kmeans_with_greedy_balancing(void **state)
{
    size_t v = 4000, d = 48;
    float *x = make_head(v, d, 300, 1, 7);
    fh_rows head = rows_of(x, v, d);
    fh_clustering base = run(&head, NULL, (fh_cluster_params){.k = 250, .start = FH_START_FAISS, .rounds = FH_ROUNDS_NONE}, 2);
    for (size_t s = 0; s < 3; s++) {
        fh_clustering c = run(&head, NULL, (fh_cluster_params){.k = 250, .start = starts[s], .metric = FH_METRIC_COSINE}, 2);
        assert_true(c.objective > base.objective);
        assert_true(c.swaps > 0);
        fh_clustering_free(&c);
    }
    fh_clustering_free(&base);
    fh_free(x);
}

/* ---- the same bytes ---------------------------------------------------------------------------------------------- */

static bool same(const fh_clustering *a, const fh_clustering *b)
{
    size_t bytes = (size_t)a->k * a->d * sizeof(float);
    return memcmp(a->assignment, b->assignment, a->v * sizeof *a->assignment) == 0 && memcmp(a->centroids, b->centroids, bytes) == 0 &&
           memcmp(a->mean, b->mean, bytes) == 0 && memcmp(a->raw, b->raw, bytes) == 0 && a->objective == b->objective &&
           a->swaps == b->swaps;
}

static void threads_and_instruction_sets_do_not_change_a_bit(void **state)
{
    static const char *const isa[] = {"ref", "avx2", "avx512"}; /* elsewhere the last two mean the best */
    size_t v = 3001, d = 50;
    float *x = make_head(v, d, 100, 1, 9);
    fh_rows head = rows_of(x, v, d);
    uint8_t *dead = fh_calloc(v, 1);
    for (size_t t = 0; t < v; t += 100) dead[t] = 1;
    for (size_t s = 0; s < 3; s++) {
        fh_cluster_params p = {.k = 190, .start = starts[s], .metric = metrics[s % 2], .seed = 5};
        fh_clustering first = run(&head, dead, p, 1);
        for (unsigned threads = 1; threads <= 3; threads++) {
            setenv("FH_ISA", isa[threads - 1], 1);
            fh_clustering c = run(&head, dead, p, threads);
            unsetenv("FH_ISA");
            assert_true(same(&first, &c));
            fh_clustering_free(&c);
        }
        p.seed = 6;
        fh_clustering other = run(&head, dead, p, 2);
        if (p.start == FH_START_RANDOM) assert_false(same(&first, &other));
        fh_clustering_free(&other);
        fh_clustering_free(&first);
    }
    fh_free(dead);
    fh_free(x);
}

static void half_precision_rows_are_the_rows_they_stand_for(void **state)
{
    size_t v = 300, d = 13;
    float *x = make_head(v, d, 20, 1, 2);
    uint16_t *half = fh_malloc(v * (d + 2) * sizeof *half);
    static const fh_dtype dtypes[] = {FH_BF16, FH_F16};
    for (size_t i = 0; i < 2; i++) {
        for (size_t t = 0; t < v; t++) {
            for (size_t j = 0; j < d; j++) {
                uint16_t h = i ? fh_f32_to_f16(x[t * d + j]) : fh_f32_to_bf16(x[t * d + j]);
                half[t * (d + 2) + j] = h;
                x[t * d + j] = i ? fh_f16_to_f32(h) : fh_bf16_to_f32(h);
            }
        }
        fh_rows wide = rows_of(x, v, d), narrow = {half, dtypes[i], v, d, (d + 2) * sizeof *half};
        fh_clustering a = run(&wide, NULL, (fh_cluster_params){.k = 19}, 1), b = run(&narrow, NULL, (fh_cluster_params){.k = 19}, 2);
        assert_true(same(&a, &b));
        fh_clustering_free(&a);
        fh_clustering_free(&b);
    }
    fh_free(half);
    fh_free(x);
}

/* ---- stopping ---------------------------------------------------------------------------------------------------- */

struct stopper { volatile sig_atomic_t stop; const char *at; unsigned after, times; };

static void stop_there(void *ctx, const char *what, double done, double total, const char *unit)
{
    struct stopper *s = ctx;
    assert_true(done >= 0 && done <= total);
    if (strcmp(what, s->at) == 0 && ++s->times > s->after) s->stop = 1;
}

static void a_stopped_run_gives_the_best_so_far(void **state)
{
    static const struct { const char *at; unsigned after; } cases[] = {
        {"never", 0}, {"k-means", 0}, {"k-means", 2}, {"start", 0}, {"start", 3}, {"balancing", 0}, {"candidates", 0},
        {"swaps", 0}, {"swaps", 9}, {"candidates", 3},
    };
    size_t v = 2500, d = 20;
    float *x = make_head(v, d, 100, 1, 12);
    fh_rows head = rows_of(x, v, d);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (size_t s = 0; s < 3; s++) {
            struct stopper stopper = {.at = cases[i].at, .after = cases[i].after, .stop = i == 0};
            fh_job job = {.stop = &stopper.stop, .progress = stop_there, .ctx = &stopper};
            fh_err err = {0};
            fh_clustering c;
            assert_int_equal(fh_cluster(&c, &head, NULL, &(fh_cluster_params){.k = 155, .start = starts[s]}, &job, &err), FH_OK);
            assert_int_equal(c.interrupted, stopper.stop != 0);
            check_clustering(&c, &head, NULL, 155);
            fh_clustering_free(&c);
        }
    }
    fh_free(x);
}

/* ---- where it begins, how often and for how long ---------------------------------------------------------------------- */

static bool same_homes(const fh_clustering *a, const fh_clustering *b)
{
    return a->v == b->v && memcmp(a->assignment, b->assignment, a->v * sizeof *a->assignment) == 0;
}

static void an_earlier_clustering_is_gone_on_with(void **state)
{
    size_t v = 1237, d = 24, k = 90;
    float *x = make_head(v, d, 100, 1, 21);
    fh_rows head = rows_of(x, v, d);
    fh_clustering early = run(&head, NULL, (fh_cluster_params){.k = (uint32_t)k, .rounds = 1, .sweeps = 1}, 1);
    fh_clustering same = run(&head, NULL, (fh_cluster_params){.k = (uint32_t)k, .rounds = FH_ROUNDS_NONE, .init = early.assignment}, 1);
    assert_true(same_homes(&early, &same));
    fh_clustering on = run(&head, NULL, (fh_cluster_params){.k = (uint32_t)k, .init = early.assignment}, 2);
    assert_true(metric_of(on.assignment, x, v, d, k, FH_METRIC_EUCLIDEAN) > metric_of(early.assignment, x, v, d, k, FH_METRIC_EUCLIDEAN));
    assert_true(on.swaps > 0);
    check_clustering(&on, &head, NULL, (uint32_t)k);
    /* Homes that cannot be: none, beyond K, all in one cluster. */
    for (int i = 0; i < 3; i++) {
        for (size_t t = 0; t < v; t++) early.assignment[t] = i == 0 ? FH_NO_HOME : i == 1 ? (uint32_t)(k + t) : 7;
        fh_clustering c = run(&head, NULL, (fh_cluster_params){.k = (uint32_t)k, .init = early.assignment}, 2);
        check_clustering(&c, &head, NULL, (uint32_t)k);
        fh_clustering_free(&c);
    }
    fh_err err = {0};
    fh_clustering c;
    assert_int_equal(fh_cluster(&c, &head, NULL, &(fh_cluster_params){.k = (uint32_t)k, .init = early.assignment, .restarts = 2}, NULL, &err), FH_EUSAGE);
    fh_clustering_free(&early);
    fh_clustering_free(&same);
    fh_clustering_free(&on);
    fh_free(x);
}

static void of_several_starts_the_best_is_kept_and_its_seed_gives_it_again(void **state)
{
    size_t v = 800, d = 12, k = 50;
    float *x = make_head(v, d, 60, 1.5, 22);
    fh_rows head = rows_of(x, v, d);
    bool another = false;
    for (size_t m = 0; m < 2; m++) {
        fh_cluster_params p = {.k = (uint32_t)k, .start = FH_START_RANDOM, .metric = metrics[m], .seed = 5, .rounds = 1, .sweeps = 2};
        double most = -INFINITY;
        for (uint64_t seed = 5; seed < 9; seed++) {
            p.seed = seed;
            fh_clustering one = run(&head, NULL, p, 1);
            most = fmax(most, metric_of(one.assignment, x, v, d, k, metrics[m]));
            fh_clustering_free(&one);
        }
        p.seed = 5, p.restarts = 4;
        fh_clustering best = run(&head, NULL, p, 2);
        assert_true(fabs(metric_of(best.assignment, x, v, d, k, metrics[m]) - most) <= 1e-6 * fabs(most));
        another |= best.seed != 5;
        p.seed = best.seed, p.restarts = 1;
        fh_clustering again = run(&head, NULL, p, 1);
        assert_true(same_homes(&best, &again));
        assert_int_equal(best.rounds, again.rounds);
        assert_int_equal(best.swaps, again.swaps);
        fh_clustering_free(&best);
        fh_clustering_free(&again);
    }
    assert_true(another); /* or the first was the best of both by chance: then these seeds show nothing */
    fh_free(x);
}

static void what_a_spent_budget_leaves_is_had_again_by_its_rounds(void **state)
{
    size_t v = 1500, d = 16, k = 94;
    float *x = make_head(v, d, 100, 1.5, 23);
    fh_rows head = rows_of(x, v, d);
    fh_cluster_params p = {.k = (uint32_t)k, .start = FH_START_RANDOM, .budget = 1e-9, .restarts = 3};
    fh_clustering short_one = run(&head, NULL, p, 2);
    assert_true(short_one.spent);
    assert_int_equal(short_one.rounds, 1);
    assert_int_equal(short_one.seed, 0); /* no further start */
    p = (fh_cluster_params){.k = (uint32_t)k, .start = FH_START_RANDOM, .rounds = short_one.rounds, .seed = short_one.seed};
    fh_clustering again = run(&head, NULL, p, 1);
    assert_true(same_homes(&short_one, &again) && !again.spent);
    p = (fh_cluster_params){.k = (uint32_t)k, .start = FH_START_RANDOM, .budget = 1e9};
    fh_clustering whole = run(&head, NULL, p, 1);
    assert_true(!whole.spent && whole.rounds > 1);
    fh_clustering_free(&short_one);
    fh_clustering_free(&again);
    fh_clustering_free(&whole);
    fh_free(x);
}

static void rows_are_compared_through_the_map(void **state)
{
    size_t v = 900, d = 30, k = 60;
    float *x = make_head(v, d, 80, 1.5, 24), *map = fh_calloc(d * d, sizeof *map), *y = fh_malloc(v * d * sizeof *y);
    fh_rng r;
    fh_rng_seed(&r, 3, 0);
    for (size_t j = 0; j < d; j++) for (size_t i = j; i < d; i++) map[j * d + i] = (float)(normal(&r) * (i == j ? 3 : 1));
    for (size_t t = 0; t < v; t++) {
        for (size_t j = 0; j < d; j++) {
            double s = 0;
            for (size_t i = 0; i < d; i++) s += (double)x[t * d + i] * map[j * d + i];
            y[t * d + j] = (float)s;
        }
    }
    fh_rows head = rows_of(x, v, d), seen = rows_of(y, v, d);
    fh_cluster_params p = {.k = (uint32_t)k};
    fh_clustering by_rows = run(&head, NULL, p, 2), by_seen = run(&seen, NULL, p, 2);
    p.map = map;
    fh_clustering mapped = run(&head, NULL, p, 2), one_thread = run(&head, NULL, p, 1);
    check_clustering(&mapped, &head, NULL, (uint32_t)k); /* centroids and objective are those of the rows themselves */
    assert_true(same_homes(&mapped, &one_thread));
    double by_map = metric_of(mapped.assignment, y, v, d, k, FH_METRIC_EUCLIDEAN), direct = metric_of(by_seen.assignment, y, v, d, k, FH_METRIC_EUCLIDEAN);
    assert_true(fabs(by_map - direct) <= 0.01 * fabs(direct)); /* roundings differ, and with them a few swaps */
    assert_true(by_map > metric_of(by_rows.assignment, y, v, d, k, FH_METRIC_EUCLIDEAN));
    fh_err err = {0};
    fh_clustering c;
    p.metric = FH_METRIC_COSINE;
    assert_int_equal(fh_cluster(&c, &head, NULL, &p, NULL, &err), FH_EUSAGE);
    p.metric = FH_METRIC_EUCLIDEAN, map[d - 1] = NAN;
    assert_int_equal(fh_cluster(&c, &head, NULL, &p, NULL, &err), FH_EFORMAT);
    assert_non_null(strstr(err.text, "fhtool hidden"));
    fh_clustering_free(&by_rows);
    fh_clustering_free(&by_seen);
    fh_clustering_free(&mapped);
    fh_clustering_free(&one_thread);
    fh_free(x);
    fh_free(y);
    fh_free(map);
}

/* ---- failures ---------------------------------------------------------------------------------------------------- */

static void faiss_failures_come_back_as_messages(void **state)
{
    float x[64] = {0}, c[64];
    fh_err err = {0};
    assert_int_equal(fh_kmeans(c, x, 4, 16, 5, 3, false, 1, NULL, &err), FH_EUSAGE);
    x[20] = NAN;
    assert_int_equal(fh_kmeans(c, x, 4, 16, 2, 3, false, 1, NULL, &err), FH_EFAIL);
    assert_non_null(strstr(err.text, "NaN"));
    x[20] = 0;
    assert_int_equal(fh_kmeans(c, x, 4, 16, 2, 3, true, 1, NULL, &err), FH_OK);
    for (size_t i = 0; i < 32; i++) assert_true(isfinite(c[i]));
    assert_int_equal(strncmp(fh_faiss_version(), "1.", 2), 0);
}

static void weights_and_assignments_are_judged(void **state)
{
    float *x = make_head(6, 3, 6, 1, 1), out[6];
    uint32_t assignment[] = {0, 0, 1, 1, 0, 1};
    double weights[] = {1, 2, 3, 4, 5, 6};
    uint8_t dead[6] = {[4] = 1};
    fh_rows head = rows_of(x, 6, 3);
    fh_clustering c = {.v = 6, .d = 3, .k = 2, .cap = 3, .assignment = assignment};
    fh_err err = {0};
    assert_int_equal(fh_weighted_centroids(out, &c, &head, dead, weights, NULL, &err), FH_OK);
    for (size_t j = 0; j < 3; j++) {
        assert_true(fabs(out[j] - ((double)x[j] + 2 * (double)x[3 + j]) / 3) <= 1e-6);
        assert_true(fabs(out[3 + j] - (3 * (double)x[6 + j] + 4 * (double)x[9 + j] + 6 * (double)x[15 + j]) / 13) <= 1e-6);
    }
    weights[4] = NAN; /* of a dead row: not looked at */
    assert_int_equal(fh_weighted_centroids(out, &c, &head, dead, weights, NULL, &err), FH_OK);
    static const double bad[] = {0, -1, NAN, INFINITY};
    for (size_t i = 0; i < 4; i++) {
        weights[1] = bad[i];
        assert_int_equal(fh_weighted_centroids(out, &c, &head, dead, weights, NULL, &err), FH_EUSAGE);
    }
    assignment[2] = 2;
    assert_int_equal(fh_centroids(&c, &head, NULL, NULL, &err), FH_EFORMAT);
    assert_non_null(strstr(err.text, "token 2 is in cluster 2"));
    memset(assignment, 0, sizeof assignment);
    assert_int_equal(fh_centroids(&c, &head, NULL, NULL, &err), FH_EFORMAT);
    assert_non_null(strstr(err.text, "cluster 1 has no live token"));
    c.d = 4;
    assert_int_equal(fh_centroids(&c, &head, NULL, NULL, &err), FH_EUSAGE);
    assert_null(c.mean);
    fh_free(x);
}

static void the_memory_needed_is_known_before(void **state)
{
    for (size_t s = 0; s < 3; s++) {
        fh_cluster_params p = {.k = 8016, .start = starts[s]};
        uint64_t bytes = fh_cluster_memory(128256, 2048, &p), copy = (uint64_t)128256 * 2048 * 4;
        assert_true(bytes > copy && bytes < 2 * copy);
    }
}

static void running_out_of_memory_anywhere_is_an_error_and_no_leak(void **state)
{
#ifdef FH_FAULTS
    size_t v = 150, d = 10;
    float *x = make_head(v, d, 20, 1, 1);
    fh_rows head = rows_of(x, v, d);
    uint32_t init[150] = {0};
    float map[100] = {0};
    for (size_t j = 0; j < d; j++) map[j * d + j] = 1;
    for (size_t s = 0; s < 5; s++) {
        bool done = false;
        for (long n = 1; !done; n++) {
            fh_err err = {0};
            fh_clustering c;
            fh_fault_set(FH_FAULT_ALLOC, n);
            fh_cluster_params p = {.k = 20, .start = starts[s % 3], .metric = metrics[s % 2]};
            if (s == 3) p.init = init;
            if (s == 4) p.map = map, p.restarts = 2, p.metric = FH_METRIC_EUCLIDEAN;
            fh_status rc = fh_cluster(&c, &head, NULL, &p, NULL, &err);
            done = !fh_fault_fired();
            fh_fault_set(FH_FAULT_ALLOC, 0);
            assert_int_equal(rc, done ? FH_OK : FH_ENOMEM);
            assert_true(done || (err.text[0] && !c.assignment && !c.centroids));
            if (done) check_clustering(&c, &head, NULL, 20);
            fh_clustering_free(&c);
            assert_true(n < 1000);
        }
    }
    fh_free(x);
#else
    skip();
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_cluster_gets_its_share_of_live_and_dead_tokens),
        cmocka_unit_test(zero_rows_are_dealt_evenly_even_when_nobody_called_them_dead),
        cmocka_unit_test(a_number_of_clusters_out_of_range_is_refused_with_the_range),
        cmocka_unit_test(a_live_row_that_is_not_finite_is_named_and_a_dead_one_is_not_looked_at),
        cmocka_unit_test(equal_rows_are_clustered_without_a_zero_or_endless_work),
        cmocka_unit_test(members_that_cancel_leave_the_direction_of_the_first),
        cmocka_unit_test(opposite_rows_are_clustered),
        cmocka_unit_test(tiny_cases_come_close_to_the_best_of_all_partitions),
        cmocka_unit_test(planted_clusters_are_found),
        cmocka_unit_test(no_round_and_no_sweep_lowers_the_objective),
        cmocka_unit_test(large_clusters_are_refined_through_windows),
        cmocka_unit_test(swaps_beat_kmeans_with_greedy_balancing),
        cmocka_unit_test(threads_and_instruction_sets_do_not_change_a_bit),
        cmocka_unit_test(half_precision_rows_are_the_rows_they_stand_for),
        cmocka_unit_test(a_stopped_run_gives_the_best_so_far),
        cmocka_unit_test(an_earlier_clustering_is_gone_on_with),
        cmocka_unit_test(of_several_starts_the_best_is_kept_and_its_seed_gives_it_again),
        cmocka_unit_test(what_a_spent_budget_leaves_is_had_again_by_its_rounds),
        cmocka_unit_test(rows_are_compared_through_the_map),
        cmocka_unit_test(faiss_failures_come_back_as_messages),
        cmocka_unit_test(weights_and_assignments_are_judged),
        cmocka_unit_test(the_memory_needed_is_known_before),
        cmocka_unit_test(running_out_of_memory_anywhere_is_an_error_and_no_leak),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
