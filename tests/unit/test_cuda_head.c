/* The CUDA head's own sources, run thread by thread on an emulated device, against the head's definition: the same bits. */
#include "base/fault.h"
#include "runtime/head.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "tests/unit/cuda_there.h"
#include "tests/unit/head_world.h"

/* ---- a head of random rows, here and there -------------------------------------------------------------------------- */

typedef struct pair {
    world w;
    fh_cuda_device *device;
    fh_cuda_head *there;
    fh_head_device does;
    fh_scratch *here, *scratch; /* by the plain C kernels; by the device */
} pair;

static fh_status topk_there(void *ctx, const fh_head_call *call, uint32_t *ids, float *logits, fh_err *err)
{
    return fh_cuda_backend()->head_topk(ctx, call, ids, logits, err);
}

static fh_status copy_there(pair *p, fh_err *err)
{
    const fh_head *h = p->w.head;
    fh_cuda_source source = {.parts = &h->parts, .dense = h->exact, .slot_of = h->slot_of, .dead = h->dead_map, .always = h->always, .forced = h->forced,
                             .n_always = h->n_always, .n_forced = h->n_forced};
    fh_status rc = device_there(&p->device, err);
    if (rc == FH_OK) rc = fh_cuda_backend()->head_new(&p->there, p->device, &source, err);
    return rc;
}

static void pair_open(pair *p, shape is)
{
    fh_err err = {0};
    memset(p, 0, sizeof *p);
    setenv("FH_ISA", "ref", 1);
    world_open(&p->w, is);
    unsetenv("FH_ISA");
    assert_int_equal(fh_scratch_new(&p->here, p->w.head, 1, &err), FH_OK);
    assert_int_equal(fh_scratch_new(&p->scratch, p->w.head, 1, &err), FH_OK);
    if (copy_there(p, &err) < 0) fail_msg("%s", err.text);
    p->does = (fh_head_device){p->there, FH_CUDA_KEPT, topk_there};
    p->scratch->device = &p->does;
}

static void pair_close(pair *p)
{
    fh_cuda_backend()->head_free(p->there);
    fh_cuda_backend()->device_close(p->device);
    fh_scratch_free(p->here);
    fh_scratch_free(p->scratch);
    world_close(&p->w);
    assert_int_equal(emu_allocated(), 0);
}

/* Values that no result has, one past the end too. */
static void *poisoned(size_t n) { void *p = malloc(4 * (n + 1)); memset(p, 0x5a, 4 * (n + 1)); return p; }
static void unharmed(const void *p, size_t n) { uint32_t last; memcpy(&last, (const char *)p + 4 * n, 4); assert_int_equal(last, 0x5a5a5a5a); }

/* A soft-capped logit goes through tanhf, of which each library has its own: 4 units in the last place of the cap.  Everything else has one value. */
static void same(const pair *p, const uint32_t *want, const float *want_logits, const uint32_t *got, const float *got_logits, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (p->w.is.softcap > 0 && isfinite(want_logits[i])) {
            assert_true(fabsf(want_logits[i] - got_logits[i]) <= 4 * p->w.is.softcap * 0x1p-24f);
            continue; /* ids may change places where capped logits tie */
        }
        if (want[i] != got[i] || !(want_logits[i] == got_logits[i]))
            fail_msg("result %zu: token %u at %a, not %u at %a", i, got[i], (double)got_logits[i], want[i], (double)want_logits[i]);
    }
}

static void compare(pair *p, const float *x, size_t batch, const fh_query *q, size_t k, bool dense)
{
    size_t n = batch * k;
    uint32_t *want = poisoned(n), *got = poisoned(n);
    float *want_logits = poisoned(n), *got_logits = poisoned(n);
    fh_err err = {0};
    fh_status a = dense ? fh_head_dense_topk(p->w.head, p->here, x, batch, k, want, want_logits,
                                             &err) : fh_head_topk(p->w.head, p->here, x, batch, q, k, want, want_logits, &err);
    assert_int_equal(a, FH_OK);
    fh_status b = dense ? fh_head_dense_topk(p->w.head, p->scratch, x, batch, k, got, got_logits,
                                             &err) : fh_head_topk(p->w.head, p->scratch, x, batch, q, k, got, got_logits, &err);
    if (b < 0) fail_msg("%s", err.text);
    unharmed(got, n), unharmed(got_logits, n);
    same(p, want, want_logits, got, got_logits, n);
    if (!dense && k == 1 && !(p->w.is.softcap > 0)) {
        memset(got, 0x5a, 4 * n);
        assert_int_equal(fh_head_greedy(p->w.head, p->scratch, x, batch, q, got, &err), FH_OK);
        assert_memory_equal(want, got, 4 * n);
    }
    free(want), free(got), free(want_logits), free(got_logits);
}

static void a_new_seed(void) { emu.seed = fh_rng_u64(&rng); }

/* ---- the same answers ------------------------------------------------------------------------------------------------- */

static void every_encoding_of_centroids_and_rows_gives_the_same_bits(void **state)
{
    static const fh_dtype all[] = {FH_F32, FH_BF16, FH_F16, FH_I8, FH_I4};
    for (size_t c = 0; c < 5; c++)
        for (size_t t = 0; t < 5; t++) {
            pair p;
            fh_dtype exact = all[(c + t) % 4] == FH_I8 ? FH_BF16 : all[(c + t) % 4];
            pair_open(&p, (shape){300, 33 + 47 * (uint32_t)t, 24, all[c], all[t], exact, .hot = true, .dead = true, .ties = c == 2, .rerank = (uint32_t)t * 3});
            float *x = make_states(&p.w, 9);
            memset(x, 0, p.w.is.d * sizeof *x); /* the first state ties everything */
            for (uint32_t probes = 1; probes <= 24; probes += 23)
                for (size_t k = 1; k <= 7; k += 6) compare(&p, x, 9, &(fh_query){.probes = probes}, k, false);
            compare(&p, x, 1, &(fh_query){.probes = 5}, 1, false);
            compare(&p, x, 2, NULL, 3, true);
            a_new_seed();
            free(x);
            pair_close(&p);
        }
}

static void odd_shapes_give_the_same_bits(void **state)
{
    static const shape shapes[] = {
        {2, 3, 2, FH_F32, FH_F32, FH_F32, .hot = false},                                                  /* K = 2, V = K: cap 1 */
        {40, 1, 8, FH_F32, FH_BF16, FH_I8, .ties = true, .dead = true},                                  /* D = 1 */
        {41, 1, 8, FH_I8, FH_I4, FH_F32, .hot = true, .rerank = 2},
        {64, 17, 64, FH_F32, FH_I8, FH_F32, .ties = true, .hot = true},                                  /* every token a cluster */
        {97, 17, 2, FH_F16, FH_BF16, FH_F16, .bias = true, .hot = true, .dead = true, .softcap = 1.5f},
        {300, 16, 299, FH_I8, FH_F32, FH_I8, .dead = true, .hot = true, .softcap = 30},
        {70, 4096, 5, FH_I8, FH_I8, FH_BF16, .hot = true, .rerank = 16},
        {70, 4096, 5, FH_BF16, FH_I4, FH_F32, .hot = true},
        {33, 4097, 3, FH_F32, FH_F16, FH_BF16, .rerank = 4},
        {5000, 8, 2500, FH_I8, FH_BF16, FH_BF16, .hot = true, .dead = true},                             /* more clusters than bins */
        {500, 40, 25, FH_I8, FH_I8, FH_BF16, .bias = true, .hot = true, .dead = true, .ties = true, .rerank = 16},
        {90, 20, 9, FH_I8, FH_I8, FH_F16, .dead = true, .rerank = 1000},                                  /* everything is reranked */
        {1, 5, 1, FH_I8, FH_I8, FH_F32, .rerank = 1},                                                     /* a head of one token */
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        pair p;
        pair_open(&p, shapes[i]);
        size_t batch = p.w.is.d > 1000 ? 4 : 6;
        float *x = make_states(&p.w, batch);
        uint32_t v = p.w.is.v, include[] = {v - 1, 0, v / 2, v / 2, v / 3, 0}, exclude[] = {v / 2, v > 1, v - 1, v > 1};
        const fh_query queries[] = {{0}, {.probes = 1}, {.probes = UINT32_MAX}, {.probes = (p.w.is.k + 1) / 2, .no_hot = true},
                                    {.include = include, .n_include = 6},
                                    {.probes = 2, .include = include, .n_include = 6, .exclude = exclude, .n_exclude = 4},
                                        {.probes = UINT32_MAX, .exclude = exclude, .n_exclude = 4}};
        for (size_t q = 0; q < sizeof queries / sizeof *queries; q++) {
            fh_cuda_backend()->head_apart(p.there, q % 3 == 2);
            compare(&p, x, 1 + q % batch, &queries[q], q % 2 ? 1 : 5, false);
            a_new_seed();
        }
        if (fh_head_get_info(p.w.head)->exact) compare(&p, x, batch, NULL, 1 + i % 3, true);
        free(x);
        pair_close(&p);
    }
}

/* The shapes that heads have (docs: fact sheet of the field), a 64th of their tokens, with their widths, caps and encodings. */
static void the_shapes_of_real_heads_give_the_same_bits(void **state)
{
    static const struct { uint32_t v, d; } shapes[] = {{128256, 2048}, {151936, 1024}, {262144, 640}, {262144, 1152}, {50304, 2560}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        pair p;
        uint32_t v = shapes[i].v / 64, k = v / 16;
        pair_open(&p, (shape){v, shapes[i].d, k, i % 2 ? FH_I4 : FH_I8, i == 3 ? FH_I4 : FH_I8, FH_BF16, .hot = true, .rerank = 16});
        float *x = make_states(&p.w, 2);
        compare(&p, x, 1, &(fh_query){.probes = 16}, 1, false);
        compare(&p, x, 2, &(fh_query){.probes = 7}, 4, false);
        free(x);
        pair_close(&p);
        a_new_seed();
    }
}

static void any_batch_any_number_of_blocks_and_any_order_give_the_same_bits(void **state)
{
    enum { BATCH = 67, K = 3 };
    pair p;
    pair_open(&p, (shape){900, 20, 90, FH_I8, FH_I8, FH_BF16, .hot = true, .dead = true, .ties = true, .rerank = 5});
    float *x = make_states(&p.w, BATCH);
    uint32_t want[BATCH * K], got[BATCH * K];
    fh_query q = {.probes = 11};
    assert_int_equal(fh_head_topk(p.w.head, p.here, x, BATCH, &q, K, want, NULL, NULL), FH_OK);
    static const int processors[] = {1, 2, 5};
    for (size_t i = 0; i < 3; i++) {
        fh_cuda_backend()->head_free(p.there), fh_cuda_backend()->device_close(p.device);
        emu.multiprocessors = processors[i];
        assert_int_equal(copy_there(&p, NULL), FH_OK);
        p.does.ctx = p.there;
        for (size_t batch = 1; batch <= BATCH; batch += i == 0 ? 33 : 22)
            for (int apart = 0; apart < 2; apart++) {
                fh_cuda_backend()->head_apart(p.there, apart);
                memset(got, 0x5a, sizeof got);
                a_new_seed();
                assert_int_equal(fh_head_topk(p.w.head, p.scratch, x, batch, &q, K, got, NULL, NULL), FH_OK);
                assert_memory_equal(want, got, batch * K * sizeof *got);
            }
    }
    emu.multiprocessors = 3;
    free(x);
    pair_close(&p);
}

/* How many clusters each state probes, here and there. */
static void same_probed(pair *p, const float *x, size_t batch)
{
    fh_probed was = fh_scratch_probed(p->here), were = fh_scratch_probed(p->scratch);
    compare(p, x, batch, NULL, 2, false);
    fh_probed here = fh_scratch_probed(p->here), there = fh_scratch_probed(p->scratch);
    assert_true(here.states - was.states == batch && there.states - were.states == batch);
    assert_true(here.clusters - was.clusters == there.clusters - were.clusters && here.clusters - was.clusters >= batch);
}

static void a_threshold_takes_the_same_clusters(void **state)
{
    static const shape shapes[] = {
        {700, 24, 70, FH_I8, FH_I8, FH_BF16, .hot = true, .rerank = 8, .threshold = 1.5f, .probes = 20},
        {300, 16, 30, FH_F32, FH_F32, FH_F32, .ties = true, .threshold = 2, .probes = 30},              /* P = K */
        {300, 16, 30, FH_BF16, FH_I4, FH_F32, .dead = true, .bias = true, .threshold = 1e-30f, .probes = 7}, /* the best one alone */
        {260, 33, 20, FH_I4, FH_I8, FH_F32, .hot = true, .threshold = 1e30f, .probes = 9},              /* all of the P best */
        {5000, 8, 2500, FH_F16, FH_I8, FH_BF16, .threshold = 0.4f, .probes = 600},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        enum { BATCH = 35 };
        pair p;
        pair_open(&p, shapes[i]);
        float *x = make_states(&p.w, BATCH);
        memset(x, 0, p.w.is.d * sizeof *x); /* all clusters score the same */
        for (int apart = 0; apart < 2; apart++) {
            fh_cuda_backend()->head_apart(p.there, apart);
            same_probed(&p, x, BATCH);
            compare(&p, x, BATCH, NULL, 1, false);
            compare(&p, x, 4, &(fh_query){.no_hot = true}, 6, false);
            compare(&p, x + p.w.is.d, 1, &(fh_query){.probes = 0}, 50, false);
            compare(&p, x, 3, &(fh_query){.probes = 3}, 2, false); /* a number of probes lifts it */
            compare(&p, x, 3, NULL, 2, true);
            a_new_seed();
        }
        fh_probed all = fh_scratch_probed(p.scratch);
        if (i == 0) assert_true(all.clusters > all.states && all.clusters < 20 * all.states);
        free(x);
        pair_close(&p);
    }
}

static void a_threshold_takes_the_best_of_any_scores_there_too(void **state)
{
    pair p;
    pair_open(&p, (shape){60, 8, 6, FH_F32, FH_F32, FH_F32, .hot = false, .threshold = 0.5f, .probes = 6});
    float *x = make_states(&p.w, 3), *centroids = (float *)p.w.centroids;
    size_t ld = p.w.parts.centroids.stride / sizeof *centroids;
    static const float strange[4][6] = {{NAN, NAN, NAN, NAN, NAN, NAN}, {1, INFINITY, 2, INFINITY, 1, 0},
                                        {-INFINITY, 0, -INFINITY, 1, 1, NAN}, {-0.0f, 0, 0, -0.0f, 0, 0}};
    for (size_t i = 0; i < 4; i++) {
        fh_cuda_backend()->head_free(p.there), fh_cuda_backend()->device_close(p.device);
        for (size_t c = 0; c < 6; c++) memset(centroids + c * ld, 0, 8 * sizeof *centroids), centroids[c * ld] = strange[i][c];
        for (size_t s = 0; s < 3; s++) x[s * 8] = 1;
        assert_int_equal(copy_there(&p, NULL), FH_OK);
        p.does.ctx = p.there;
        compare(&p, x, 3, NULL, 20, false);
        compare(&p, x, 3, NULL, 1, false);
    }
    free(x);
    pair_close(&p);
}

static void rows_of_nonsense_never_win(void **state)
{
    pair p;
    pair_open(&p, (shape){60, 8, 6, FH_F32, FH_F32, FH_F32, .hot = false});
    float *x = make_states(&p.w, 3), *rows = (float *)p.w.tokens;
    fh_cuda_backend()->head_free(p.there), fh_cuda_backend()->device_close(p.device);
    for (size_t i = 0; i < 10; i++) rows[i * p.w.parts.tokens.stride / 4] = i % 2 ? NAN : -INFINITY;
    ((float *)p.w.centroids)[3] = NAN;
    assert_int_equal(copy_there(&p, NULL), FH_OK);
    p.does.ctx = p.there;
    compare(&p, x, 3, &(fh_query){.probes = 4}, 9, false);
    compare(&p, x, 3, &(fh_query){.probes = 6}, 60, false);
    free(x);
    pair_close(&p);
}

static void everything_forced_out_leaves_nothing(void **state)
{
    pair p;
    uint32_t all[40], ids[2 * 3];
    float logits[2 * 3];
    pair_open(&p, (shape){40, 6, 5, FH_I8, FH_I8, FH_F32, .hot = true, .rerank = 4});
    float *x = make_states(&p.w, 2);
    for (uint32_t i = 0; i < 40; i++) all[i] = i;
    for (uint32_t probes = 2; probes <= 5; probes += 3) {
        assert_int_equal(fh_head_topk(p.w.head, p.scratch, x, 2, &(fh_query){.probes = probes, .exclude = all, .n_exclude = 40}, 3, ids, logits, NULL), FH_OK);
        for (size_t i = 0; i < 6; i++) assert_true(ids[i] == UINT32_MAX && logits[i] == -INFINITY);
        assert_int_equal(fh_head_greedy(p.w.head, p.scratch, x, 2, &(fh_query){.probes = probes, .exclude = all, .n_exclude = 40}, ids, NULL), FH_OK);
        assert_true(ids[0] == UINT32_MAX && ids[1] == UINT32_MAX);
        compare(&p, x, 2, &(fh_query){.probes = probes}, 2, false); /* and nothing of it stays */
    }
    free(x);
    pair_close(&p);
}

/* ---- by chance --------------------------------------------------------------------------------------------------------------- */

static void draws_fall_as_they_do_here(void **state)
{
    static const fh_sampling how[] = {{1, 1, 0, 0}, {0.3f, 1, 0, 0}, {5, 1, 0, 0}, {1, 0.5f, 0, 0}, {1, 0, 0, 0}, {1, 0.9f, 0.2f, 0}, {2, 1, 0.9f, 0},
                                      {1, 1, 0, 3}, {1, 0.7f, 0.1f, 20}, {1, 1, 1, 1000000},
                                      {0, 1, 0, 0}, {1, 1, 0, 1}};
    static const shape shapes[] = {{700, 24, 44, FH_I8, FH_I8, FH_BF16, .hot = true, .dead = true, .rerank = 16},
                                   {300, 9, 20, FH_F32, FH_F32, FH_I8, .ties = true, .hot = true},
                                   {40, 5, 4, FH_I8, FH_I4, FH_F32, .bias = true, .rerank = 1000},
                                   {500, 24, 50, FH_I8, FH_I8, FH_BF16, .hot = true, .rerank = 16, .threshold = 1.2f, .probes = 30}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        enum { BATCH = 9 };
        pair p;
        pair_open(&p, shapes[i]);
        uint32_t exclude[] = {7, 2}, seen = 0;
        for (size_t h = 0; h < sizeof how / sizeof *how; h++) {
            fh_query q = {.probes = h % 3 ? 4 : 0, .exclude = exclude, .n_exclude = h % 2 ? 2 : 0};
            uint32_t want[BATCH], got[BATCH];
            double random[BATCH] = {0, 0.999999999999};
            float *x = make_states(&p.w, BATCH);
            fh_err err = {0};
            for (size_t s = 2; s < BATCH; s++) random[s] = fh_rng_double(&rng), memcpy(x + s * p.w.is.d, x, p.w.is.d * sizeof *x); /* one state, many draws */
            assert_int_equal(fh_head_sample(p.w.head, p.here, x, BATCH, &q, &how[h], random, want, &err), FH_OK);
            fh_cuda_backend()->head_apart(p.there, h % 2);
            memset(got, 0x5a, sizeof got);
            if (fh_head_sample(p.w.head, p.scratch, x, BATCH, &q, &how[h], random, got, &err) < 0) fail_msg("%s", err.text);
            for (size_t s = 0; s < BATCH; s++) {
                if (want[s] != got[s]) fail_msg("shape %zu, sampling %zu, draw %zu (%g): token %u, not %u", i, h, s, random[s], got[s], want[s]);
                seen |= 1u << want[s] % 32;
            }
            a_new_seed();
            free(x);
        }
        assert_true((seen & (seen - 1)) != 0); /* not always the same one */
        uint32_t all[700], id;
        for (uint32_t v = 0; v < p.w.is.v; v++) all[v] = v;
        float *x = make_states(&p.w, 1);
        double half = 0.5, one = 1;
        assert_int_equal(fh_head_sample(p.w.head, p.scratch, x, 1, &(fh_query){.exclude = all, .n_exclude = p.w.is.v}, &how[0], &half, &id, NULL), FH_EUSAGE);
        assert_int_equal(fh_head_sample(p.w.head, p.scratch, x, 1, NULL, &how[0], &one, &id, NULL), FH_EUSAGE);
        free(x);
        pair_close(&p);
    }
}

/* ---- measuring -------------------------------------------------------------------------------------------------------------- */

/* The rivals are measured with a graph, and what they answer is looked at.  The fused dense head adds in an order of its own: where it says another token, that
 * token's logit is the best one's within twice D roundings of the sum of magnitudes. */
static void what_is_measured_answers_too(void **state)
{
    const fh_cuda_table *t = fh_cuda_backend();
    for (uint32_t d = 5; d <= 133; d += 64) {
        pair p;
        double seconds[3];
        uint32_t want[8], got[8];
        float logits[8], all[500];
        fh_err err = {0};
        pair_open(&p, (shape){500, d, 32, FH_I8, FH_I8, FH_BF16, .bias = true, .hot = true, .dead = true, .rerank = 4});
        float *x = make_states(&p.w, 8);
        fh_head_call call = {.states = x, .batch = 8, .probes = 4, .kept = 5, .rerank = 4, .k = 1};
        assert_int_equal(fh_head_greedy(p.w.head, p.here, x, 8, &(fh_query){.probes = 4}, want, NULL), FH_OK);
        for (int apart = 0; apart < 2; apart++) {
            t->head_apart(p.there, apart);
            memset(got, 0x5a, sizeof got), memset(seconds, 0, sizeof seconds);
            assert_int_equal(t->head_time(p.there, FH_CUDA_CALL, &call, 3, seconds, got, &err), FH_OK);
            assert_memory_equal(want, got, sizeof got);
            for (int i = 0; i < 3; i++) assert_true(seconds[i] > 0);
        }
        for (size_t s = 0; s < 8; s++) {
            float magnitude = 0;
            fh_head_call one = {.states = x + s * d, .batch = 1, .probes = 32, .dense = true, .kept = 1, .k = 1};
            assert_int_equal(fh_head_dense_topk(p.w.head, p.here, x + s * d, 1, 1, want, logits, NULL), FH_OK);
            assert_int_equal(fh_head_dense_logits(p.w.head, p.here, x + s * d, all, NULL), FH_OK);
            assert_int_equal(t->head_time(p.there, FH_CUDA_FUSED, &one, 2, seconds, got, &err), FH_OK);
            for (uint32_t i = 0; i < d; i++) magnitude += fabsf(x[s * d + i]); /* rows are at most 1 */
            assert_true(got[0] < 500 && !p.w.is_dead[got[0]]);
            if (!(logits[0] - all[got[0]] <= 2 * (float)d * 0x1p-24f * (magnitude + 1))) fail_msg("token %u at %a, not %u at %a", got[0], (double)all[got[0]],
                                                                                                  want[0], (double)logits[0]);
        }
        call.dense = true, call.kept = 1;
        assert_int_equal(t->head_time(p.there, FH_CUDA_COPY, &call, 2, seconds, got, &err), FH_OK);
        assert_int_equal(t->head_time(p.there, FH_CUDA_FUSED, &call, 2, seconds, got, &err), FH_EUSAGE);
        assert_int_equal(t->head_time(p.there, FH_CUDA_CUBLAS, &call, 2, seconds, got, &err), FH_ENOTFOUND);
        compare(&p, x, 8, &(fh_query){.probes = 4}, 2, false);
        free(x);
        pair_close(&p);
    }
}

/* ---- what cannot be had ------------------------------------------------------------------------------------------------ */

static void refused(fh_status code, const char *part)
{
    fh_cuda_device *d = NULL;
    fh_err err = {0};
    assert_int_equal(device_there(&d, &err), code);
    assert_null(d);
    if (!strstr(err.text, part)) fail_msg("'%s' is not in: %s", part, err.text);
}

static void what_is_wrong_with_a_device_is_said(void **state)
{
    emu_device was = emu;
    emu.count = 0, emu.count_error = 100;
    refused(FH_ENOTFOUND, "no GPU that it sees");
    emu.count_error = 0;
    refused(FH_ENOTFOUND, "no GPU that it sees");
    emu.count_error = 35;
    refused(FH_ENOTFOUND, "there is no NVIDIA driver");
    emu.count_error = 802;
    refused(FH_EFAIL, "the NVIDIA driver does not work");
    emu = was, emu.image_error = 209, emu.major = 7, emu.minor = 5;
    refused(FH_EUNSUPPORTED, "is of compute capability 7.5, this build has code for the host emulation");
    emu = was;
    fh_cuda_device *d = NULL;
    fh_err err = {0};
    assert_int_equal(fh_cuda_backend()->device_open(&d, 3, &host, &err), FH_ENOTFOUND);
    assert_non_null(strstr(err.text, "the driver sees 1"));
}

static void too_little_memory_is_said_before_anything_is_copied(void **state)
{
    pair p;
    fh_err err = {0};
    pair_open(&p, (shape){4000, 64, 40, FH_I8, FH_I8, FH_BF16, .rerank = 4});
    fh_cuda_backend()->head_free(p.there), fh_cuda_backend()->device_close(p.device);
    p.there = NULL, p.device = NULL;
    emu.memory = 500000;
    assert_int_equal(copy_there(&p, &err), FH_ENOMEM);
    if (!strstr(err.text, "MiB of device memory, 0 MiB are free")) fail_msg("%s", err.text);
    assert_int_equal(emu_allocated(), 0);
    emu.memory = (size_t)1 << 40;
    pair_close(&p);
}

static void a_width_that_shared_memory_does_not_hold_is_refused(void **state)
{
    pair p;
    fh_err err = {0};
    pair_open(&p, (shape){20, 4096, 4, FH_F32, FH_F32, FH_F32, .hot = false});
    fh_cuda_backend()->head_free(p.there), fh_cuda_backend()->device_close(p.device);
    p.there = NULL, p.device = NULL;
    emu.shared = 20 << 10;
    assert_int_equal(copy_there(&p, &err), FH_EUNSUPPORTED);
    assert_non_null(strstr(err.text, "a hidden size of 4096 takes"));
    assert_int_equal(emu_allocated(), 0);
    emu.shared = 227 << 10;
    pair_close(&p);
}

static void what_a_device_does_not_keep_is_computed_here(void **state)
{
    pair p;
    pair_open(&p, (shape){6000, 4, 60, FH_I8, FH_I8, FH_F32, .hot = true, .rerank = 3000});
    float *x = make_states(&p.w, 2);
    uint64_t before = emu_launches();
    compare(&p, x, 2, &(fh_query){.probes = 60}, 2100, false);
    compare(&p, x, 2, NULL, 2049, true);
    double random[2] = {0.25, 0.75};
    uint32_t want[2], got[2];
    assert_int_equal(fh_head_sample(p.w.head, p.here, x, 2, NULL, &(fh_sampling){1, 1, 0, 0}, random, want, NULL), FH_OK);
    assert_int_equal(fh_head_sample(p.w.head, p.scratch, x, 2, NULL, &(fh_sampling){1, 1, 0, 0}, random, got, NULL), FH_OK);
    assert_memory_equal(want, got, sizeof got);
    assert_true(emu_launches() == before);
    free(x);
    pair_close(&p);
}

static void misuse_is_refused(void **state)
{
    pair p;
    fh_err err = {0};
    uint32_t *ids = malloc(5000 * sizeof *ids);
    float *logits = malloc(5000 * sizeof *logits);
    pair_open(&p, (shape){6000, 4, 60, FH_I8, FH_I8, FH_I8, .hot = false});
    float *x = make_states(&p.w, 2);
    p.does.most = UINT32_MAX;
    assert_int_equal(fh_head_topk(p.w.head, p.scratch, x, 1, &(fh_query){.probes = 60}, 5000, ids, logits, &err), FH_EUSAGE);
    assert_non_null(strstr(err.text, "2048 at most"));
    assert_int_equal(fh_head_dense_topk(p.w.head, p.scratch, x, 1, 1, ids, logits, &err), FH_ENOTFOUND);
    x[5] = NAN;
    assert_int_equal(fh_head_greedy(p.w.head, p.scratch, x, 2, NULL, ids, &err), FH_EUSAGE);
    assert_non_null(strstr(err.text, "state 1: element 1"));
    free(ids), free(logits), free(x);
    pair_close(&p);
}

/* Every call of the runtime API in turn fails: an error that says so, nothing kept, and the next call is right. */
static void a_device_that_fails_anywhere_is_a_clean_error(void **state)
{
    pair p;
    pair_open(&p, (shape){200, 9, 20, FH_I8, FH_I4, FH_BF16, .bias = true, .hot = true, .rerank = 3});
    float *x = make_states(&p.w, 2);
    uint32_t exclude[] = {3}, want[4], got[4];
    fh_query q = {.exclude = exclude, .n_exclude = 1};
    assert_int_equal(fh_head_topk(p.w.head, p.here, x, 2, &q, 2, want, NULL, NULL), FH_OK);
    fh_cuda_backend()->head_free(p.there), fh_cuda_backend()->device_close(p.device);
    size_t failures = 0;
    for (long n = 1;; n++) {
        fh_err err = {0};
        p.there = NULL, p.device = NULL;
        emu_fail_at(n);
        fh_status rc = copy_there(&p, &err);
        p.does.ctx = p.there;
        if (rc == FH_OK) rc = fh_head_topk(p.w.head, p.scratch, x, 2, &q, 2, got, NULL, &err);
        bool reached = emu_calls() >= n;
        emu_fail_at(0);
        if (reached) {
            assert_int_equal(rc, FH_EFAIL);
            assert_true(err.text[0] != 0);
            failures++;
        }
        if (p.there) {
            assert_int_equal(fh_head_topk(p.w.head, p.scratch, x, 2, &q, 2, got, NULL, NULL), FH_OK);
            assert_memory_equal(want, got, sizeof got);
        }
        if (!reached) break;
        fh_cuda_backend()->head_free(p.there), device_gone(p.device);
    }
    assert_true(failures > 20);
    free(x);
    pair_close(&p);
}

#ifdef FH_FAULTS
static void running_out_of_memory_anywhere_is_a_clean_error(void **state)
{
    pair p;
    pair_open(&p, (shape){200, 9, 20, FH_I8, FH_I4, FH_BF16, .rerank = 3});
    fh_cuda_backend()->head_free(p.there), fh_cuda_backend()->device_close(p.device);
    for (long n = 1;; n++) {
        fh_err err = {0};
        p.there = NULL, p.device = NULL;
        fh_fault_set(FH_FAULT_ALLOC, n);
        fh_status rc = copy_there(&p, &err);
        fh_fault_set(FH_FAULT_ALLOC, 0);
        if (rc == FH_OK) { assert_true(n > 2); break; }
        assert_int_equal(rc, FH_ENOMEM);
        fh_cuda_backend()->head_free(p.there), device_gone(p.device);
    }
    pair_close(&p);
}
#endif

int main(void)
{
    fh_rng_seed(&rng, 11, 0);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_encoding_of_centroids_and_rows_gives_the_same_bits),
        cmocka_unit_test(odd_shapes_give_the_same_bits),
        cmocka_unit_test(the_shapes_of_real_heads_give_the_same_bits),
        cmocka_unit_test(any_batch_any_number_of_blocks_and_any_order_give_the_same_bits),
        cmocka_unit_test(a_threshold_takes_the_same_clusters),
        cmocka_unit_test(a_threshold_takes_the_best_of_any_scores_there_too),
        cmocka_unit_test(rows_of_nonsense_never_win),
        cmocka_unit_test(everything_forced_out_leaves_nothing),
        cmocka_unit_test(draws_fall_as_they_do_here),
        cmocka_unit_test(what_is_measured_answers_too),
        cmocka_unit_test(what_is_wrong_with_a_device_is_said),
        cmocka_unit_test(too_little_memory_is_said_before_anything_is_copied),
        cmocka_unit_test(a_width_that_shared_memory_does_not_hold_is_refused),
        cmocka_unit_test(what_a_device_does_not_keep_is_computed_here),
        cmocka_unit_test(misuse_is_refused),
        cmocka_unit_test(a_device_that_fails_anywhere_is_a_clean_error),
#ifdef FH_FAULTS
        cmocka_unit_test(running_out_of_memory_anywhere_is_a_clean_error),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
