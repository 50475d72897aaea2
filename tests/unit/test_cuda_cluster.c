/* The search of near clusters on the emulated device: the CPU's answers bit for bit, and so the same clusters. */
#include "base/fault.h"
#include "cluster/cluster_private.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "tests/unit/cluster_world.h"
#include "tests/unit/cuda_there.h"

static fh_rng rng;

typedef struct there { fh_cuda_device *device; fh_cuda_clusterer *clusterer; fh_cluster_device does; } there;

static fh_status there_open(there *t, size_t n, size_t ld, size_t k, fh_err *err)
{
    *t = (there){0};
    fh_status rc = device_there(&t->device, err);
    if (rc == FH_OK) rc = fh_cuda_backend()->clusterer_new(&t->clusterer, t->device, n, ld, k, err);
    if (rc == FH_OK) t->does = fh_cuda_backend()->clusterer_use(t->clusterer);
    return rc;
}

static void there_close(there *t)
{
    fh_cuda_backend()->clusterer_free(t->clusterer);
    device_gone(t->device);
}

/* ---- candidates --------------------------------------------------------------------------------------------------- */

static const near_shape shapes[] = {
    {1, 16, 1, 1, .but = false},                                    /* one of everything */
    {5, 16, 2, 1, .ties = true, .but = true},
    {3, 32, 7, 64, .but = true},                                    /* more wanted than there are */
    {130, 48, 129, 24, .ties = true},                               /* a row and a cluster more than a tile */
    {128, 80, 128, 32, .but = true, .subset = true},
    {129, 64, 300, 33, .ties = true, .but = true, .subset = true},
    {260, 272, 131, 64, .but = true},
    {70, 1040, 257, 24, .subset = true},
};

static void near_clusters_are_those_of_the_definition_bit_for_bit(void **state)
{
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (size_t at_once = 1000; at_once; at_once = at_once == 1000 && shapes[i].ld < 100 ? 51 : 0) {
            there t;
            fh_err err = {0};
            near_world w = near_make(shapes[i], &rng);
            assert_int_equal(there_open(&t, w.is.n, w.is.ld, w.is.k, &err), FH_OK);
            if (near_send(&w, &t.does, &err) < 0 || near_search(&w, &t.does, at_once, &err) < 0) fail_msg("%s", err.text);
            if (near_different(&w, 1)) fail_msg("shape %zu: %zu of %zu are different", i, near_different(&w, 1), w.is.n * w.is.want);
            assert_true(fh_cuda_backend()->clusterer_bytes(t.clusterer) >= w.is.n * w.is.ld + w.is.k * w.is.ld);
            near_free(&w);
            there_close(&t);
        }
}

/* fh_nearest_run itself, rows and centres of floats: here and there. */
static void the_search_of_a_clustering_is_the_same_there(void **state)
{
    enum { N = 150, K = 140, LD = 48, WANT = 10 };
    float *x = fh_aligned(N * LD * sizeof *x), *c = fh_aligned(K * LD * sizeof *c), score[2][N * WANT], scale[K], bias[K];
    int32_t out[2][N * WANT];
    uint32_t rows[N], not[N];
    there t;
    fh_err err = {0};
    for (size_t i = 0; i < N * LD; i++) x[i] = (float)(fh_rng_double(&rng) - 0.5);
    for (size_t i = 0; i < K * LD; i++) c[i] = (float)(fh_rng_double(&rng) - 0.5);
    memset(x + 7 * LD, 0, LD * sizeof *x), memcpy(c + 90 * LD, c + 3 * LD, LD * sizeof *c); /* a row of zeros; two centres that tie */
    for (size_t k = 0; k < K; k++) scale[k] = (float)(0.5 + fh_rng_double(&rng)), bias[k] = k % 11 ? (float)-fh_rng_double(&rng) : -INFINITY;
    scale[90] = scale[3], bias[90] = bias[3];
    for (size_t i = 0; i < N; i++) rows[i] = (uint32_t)((i * 7 + 3) % N), not[i] = (uint32_t)fh_rng_below(&rng, K);
    assert_int_equal(there_open(&t, N, LD, K, &err), FH_OK);
    t.does.at_once = 64;
    for (int i = 0; i < 8; i++) {
        fh_elsewhere elsewhere = {&t.does, x, N, i > 0}; /* the rows stay from the first time on */
        for (int on = 0; on < 2; on++) {
            fh_nearest q = {.x = x, .ld = LD, .rows = i & 1 ? rows : NULL, .n = i & 1 ? N - 20 : N, .c = c, .scale = i & 2 ? scale : NULL,
                            .bias = i & 4 ? bias : NULL, .k = K, .want = WANT, .not = i & 2 ? not : NULL, .int8 = true,
                            .elsewhere = on ? &elsewhere : NULL, .out = out[on], .score = score[on]};
            memset(out[on], 0x5a, sizeof out[on]), memset(score[on], 0, sizeof score[on]);
            if (fh_nearest_run(&q, "test", NULL, &err) < 0) fail_msg("%s", err.text);
        }
        assert_true(elsewhere.sent);
        assert_memory_equal(out[0], out[1], sizeof out[0]);
        for (size_t j = 0; j < N * WANT; j++) assert_true(score[0][j] == score[1][j]);
    }
    fh_free(x);
    fh_free(c);
    there_close(&t);
}

/* ---- clusters ------------------------------------------------------------------------------------------------------- */

typedef struct head_shape { size_t v, d; uint32_t k; size_t kinds; } head_shape;

static float *make_head(head_shape is)
{
    float *x = malloc(is.v * is.d * sizeof *x), *kind = malloc(is.kinds * is.d * sizeof *kind);
    for (size_t i = 0; i < is.kinds * is.d; i++) kind[i] = (float)(fh_rng_double(&rng) - 0.5);
    for (size_t t = 0; t < is.v; t++)
        for (size_t j = 0; j < is.d; j++) x[t * is.d + j] = kind[t % is.kinds * is.d + j] + (float)(fh_rng_double(&rng) - 0.3);
    for (size_t t = 18; t < is.v; t += 19) memset(x + t * is.d, 0, is.d * sizeof *x); /* dead */
    free(kind);
    return x;
}

static void compare_clusters(const fh_rows *head, const fh_cluster_params *p, fh_cluster_device *does)
{
    fh_clustering here, other;
    fh_err err = {0};
    fh_cluster_params moved = *p;
    moved.device = does;
    uint64_t before = emu_launches();
    if (fh_cluster(&here, head, NULL, p, NULL, &err) < 0) fail_msg("%s", err.text);
    assert_true(emu_launches() == before);
    if (fh_cluster(&other, head, NULL, &moved, NULL, &err) < 0) fail_msg("%s", err.text);
    assert_true(emu_launches() > before || p->rounds == FH_ROUNDS_NONE || p->k + head->rows / 19 >= head->rows);
    assert_memory_equal(here.assignment, other.assignment, here.v * sizeof *here.assignment);
    assert_memory_equal(here.centroids, other.centroids, (size_t)here.k * here.d * sizeof *here.centroids);
    assert_true(here.objective == other.objective && here.rounds == other.rounds && here.swaps == other.swaps && here.seed == other.seed);
    fh_clustering_free(&here);
    fh_clustering_free(&other);
}

static void clusters_are_the_same_whatever_is_asked(void **state)
{
    static const head_shape heads[] = {{2, 1, 2, 1}, {61, 3, 7, 5}, {300, 40, 24, 20}, {201, 17, 130, 9}, {120, 100, 3, 40}};
    static const fh_cluster_start starts[] = {FH_START_COARSE, FH_START_FAISS, FH_START_RANDOM};
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
        float *x = make_head(heads[i]), *map = calloc(heads[i].d * heads[i].d, sizeof *map);
        fh_rows head = {x, FH_F32, heads[i].v, heads[i].d, heads[i].d * sizeof *x};
        for (size_t a = 0; a < heads[i].d; a++)
            for (size_t b = a; b < heads[i].d; b++) map[a * heads[i].d + b] = (float)(fh_rng_double(&rng) - 0.5) + 2 * (a == b);
        there t;
        assert_int_equal(there_open(&t, head.rows, fh_round_up(head.cols, 16), heads[i].k, NULL), FH_OK);
        t.does.at_once = 200;
        for (size_t s = 0; s < 3; s++) {
            fh_cluster_params p = {.k = heads[i].k, .start = starts[s], .seed = s, .rounds = 2};
            if ((i + s) % 3 == 1) p.map = map; /* alike by the logits they give */
            if ((i + s) % 3 == 2) p.metric = FH_METRIC_COSINE, p.candidates = 3;
            compare_clusters(&head, &p, &t.does);
        }
        fh_cluster_params p = {.k = heads[i].k, .start = FH_START_RANDOM, .restarts = 2, .rounds = 1, .candidates = FH_MAX_CANDIDATES};
        compare_clusters(&head, &p, &t.does);
        there_close(&t);
        free(x), free(map);
    }
}

/* ---- refusals and failures -------------------------------------------------------------------------------------------- */

static void misuse_and_too_little_memory_are_refused(void **state)
{
    there t;
    fh_err err = {0};
    int8_t rows[5 * 32] = {0};
    float by[5] = {0};
    uint32_t which[1] = {5};
    int32_t out[64];
    assert_int_equal(there_open(&t, 5, 17, 3, &err), FH_EUSAGE), there_close(&t);
    assert_int_equal(there_open(&t, 5, 32, 0, &err), FH_EUSAGE), there_close(&t);
    assert_int_equal(there_open(&t, SIZE_MAX, 32, 3, &err), FH_EUSAGE), there_close(&t);
    emu.memory = 1 << 20;
    assert_int_equal(there_open(&t, 100000, 64, 300, &err), FH_ENOMEM), there_close(&t);
    emu.memory = (size_t)1 << 40;
    assert_non_null(strstr(err.text, "the clustering needs "));
    assert_non_null(strstr(err.text, "MiB of device memory, 1 MiB are free"));

    assert_int_equal(there_open(&t, 5, 32, 3, &err), FH_OK);
    const fh_cluster_device *d = &t.does;
    fh_cluster_search good = {.n = 5, .want = 2, .out = out}, wrong[] = {good, good, good, good, good, good};
    assert_int_equal(d->search(d->ctx, &good, &err), FH_EUSAGE); /* no centres yet */
    assert_int_equal(d->put_rows(d->ctx, 0, 5, 16, rows, by, &err), FH_EUSAGE);
    assert_int_equal(d->put_rows(d->ctx, 1, 5, 32, rows, by, &err), FH_EUSAGE);
    assert_int_equal(d->put_rows(d->ctx, SIZE_MAX, 2, 32, rows, by, &err), FH_EUSAGE);
    assert_int_equal(d->put_centres(d->ctx, 4, 32, rows, by, by, &err), FH_EUSAGE);
    assert_int_equal(d->put_centres(d->ctx, 0, 32, rows, by, by, &err), FH_EUSAGE);
    assert_int_equal(d->put_rows(d->ctx, 0, 5, 32, rows, by, &err), FH_OK);
    assert_int_equal(d->put_centres(d->ctx, 3, 32, rows, by, by, &err), FH_OK);
    wrong[0].n = 0, wrong[1].n = 6, wrong[2].first = 1, wrong[3].want = 65, wrong[4].want = 0, wrong[5].rows = which, wrong[5].n = 1;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) assert_int_equal(d->search(d->ctx, &wrong[i], &err), FH_EUSAGE);
    assert_int_equal(d->search(d->ctx, &good, &err), FH_OK);
    double seconds[2];
    assert_int_equal(fh_cuda_backend()->clusterer_time(t.clusterer, 6, 2, 2, seconds, &err), FH_EUSAGE);
    assert_int_equal(fh_cuda_backend()->clusterer_time(t.clusterer, 5, 2, 2, seconds, &err), FH_OK);
    assert_true(seconds[0] >= 0 && seconds[1] >= 0);
    there_close(&t);
}

static void a_device_that_fails_anywhere_is_a_clean_error(void **state)
{
    head_shape is = {40, 10, 5, 4};
    float *x = make_head(is);
    fh_rows head = {x, FH_F32, is.v, is.d, is.d * sizeof *x};
    for (long n = 1;; n++) {
        there t;
        fh_err err = {0};
        fh_clustering c = {0};
        fh_cluster_params p = {.k = is.k, .start = FH_START_RANDOM, .rounds = 1, .device = &t.does};
        emu_fail_at(n);
        fh_status rc = there_open(&t, is.v, 16, is.k, &err);
        t.does.at_once = 25;
        if (rc == FH_OK) rc = fh_cluster(&c, &head, NULL, &p, NULL, &err);
        bool reached = emu_calls() >= n;
        emu_fail_at(0);
        if (!reached) assert_int_equal(rc, FH_OK);
        else assert_true(rc < 0 && err.text[0] && !c.assignment);
        if (reached && t.clusterer && n % 8 == 0) compare_clusters(&head, &(fh_cluster_params){.k = is.k, .rounds = 1}, &t.does); /* the next call is right */
        fh_clustering_free(&c);
        there_close(&t);
        if (!reached) break;
    }
    free(x);
}

static void every_allocation_may_fail(void **state)
{
#ifdef FH_FAULTS
    head_shape is = {40, 10, 5, 4};
    float *x = make_head(is);
    fh_rows head = {x, FH_F32, is.v, is.d, is.d * sizeof *x};
    bool done = false;
    for (long n = 1; !done; n++) {
        there t;
        fh_err err = {0};
        fh_clustering c = {0};
        fh_cluster_params p = {.k = is.k, .start = FH_START_RANDOM, .rounds = 1, .device = &t.does};
        fh_fault_set(FH_FAULT_ALLOC, n);
        fh_status rc = there_open(&t, is.v, 16, is.k, &err);
        if (rc == FH_OK) rc = fh_cluster(&c, &head, NULL, &p, NULL, &err);
        done = !fh_fault_fired();
        fh_fault_set(FH_FAULT_ALLOC, 0);
        assert_int_equal(rc, done ? FH_OK : FH_ENOMEM);
        assert_true(done || (err.text[0] && !c.assignment));
        fh_clustering_free(&c);
        there_close(&t);
        assert_true(n < 1000);
    }
    free(x);
#else
    skip();
#endif
}

int main(void)
{
    fh_rng_seed(&rng, 11, 0);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(near_clusters_are_those_of_the_definition_bit_for_bit),
        cmocka_unit_test(the_search_of_a_clustering_is_the_same_there),
        cmocka_unit_test(clusters_are_the_same_whatever_is_asked),
        cmocka_unit_test(misuse_and_too_little_memory_are_refused),
        cmocka_unit_test(a_device_that_fails_anywhere_is_a_clean_error),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
