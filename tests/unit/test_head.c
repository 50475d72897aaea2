/* The head against its definition: every logit by hand, every answer by sorting all candidates. */
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
#include "tests/unit/head_world.h"

/* ---- the definition --------------------------------------------------------------------------------------------------------- */

typedef struct result { float logit; uint32_t id; } result;

static int better_first(const void *a, const void *b)
{
    const result *x = a, *y = b;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* One dot product as the encodings are defined. */
static float define_dot(const fh_rows *rows, const void *scales, size_t r, const float *x)
{
    size_t d = rows->cols;
    if (!fh_dtype_is_integer(rows->dtype)) {
        float lane[16] = {0}, *row = malloc(d * sizeof *row);
        fh_to_f32(row, rows->dtype, fh_row(rows, r), d);
        for (size_t i = 0; i < fh_round_up(d, 16); i++) lane[i % 16] = fmaf(i < d ? row[i] : 0, i < d ? x[i] : 0, lane[i % 16]);
        for (int half = 8; half; half /= 2)
            for (int j = 0; j < half; j++) lane[j] += lane[j + half];
        free(row);
        return lane[0] + 0.0f;
    }
    double max = 0;
    for (size_t i = 0; i < d; i++) max = fmax(max, (double)fabsf(x[i]));
    int64_t total = 0;
    const int8_t *q = fh_row(rows, r);
    if (rows->dtype == FH_I4) {
        float lane[32] = {0};
        for (size_t i = 0; i < d; i += 4) {
            int32_t four = 0;
            for (size_t j = i; j < fh_min(i + 4, d) && max > 0; j++) {
                int bits = (uint8_t)q[j / 128 * 64 + j % 64] >> (j % 128 < 64 ? 0 : 4) & 15;
                four += (bits > 7 ? bits - 16 : bits) * (int32_t)nearbyint((double)x[j] * (32639 / max));
            }
            lane[i / 4 % 32] = fmaf((float)four, fh_scale_at(FH_I4, scales, r * ((d + 31) / 32) + i / 32), lane[i / 4 % 32]);
        }
        for (int half = 16; half; half /= 2)
            for (int j = 0; j < half; j++) lane[j] += lane[j + half];
        return (float)((double)lane[0] * (max / 32639)) + 0.0f;
    }
    for (size_t i = 0; i < d && max > 0; i++) total += q[i] * (int64_t)nearbyint((double)x[i] * (32639 / max));
    return (float)((double)total * (double)((const float *)scales)[r] * (max / 32639)) + 0.0f;
}

static float define_logit(const world *w, const fh_rows *rows, const void *scales, size_t slot, const float *x)
{
    float y = define_dot(rows, scales, slot, x);
    if (w->bias) y += w->bias[w->permutation[slot]];
    if (w->is.softcap > 0) y = w->is.softcap * tanhf(y / w->is.softcap);
    return y + 0.0f;
}

/* Clusters best first. */
static void define_route(const world *w, const float *x, result *clusters)
{
    for (uint32_t c = 0; c < w->is.k; c++) clusters[c] = (result){define_dot(&w->parts.centroids, w->centroid_scales, c, x), c};
    qsort(clusters, w->is.k, sizeof *clusters, better_first);
}

static bool is_among(const uint32_t *ids, size_t n, uint32_t id)
{
    for (size_t i = 0; i < n; i++)
        if (ids[i] == id) return true;
    return false;
}

static bool is_candidate(const world *w, const fh_query *q, const result *clusters, uint32_t probes, size_t slot)
{
    uint32_t id = w->permutation[slot], c = (uint32_t)(slot / w->cap);
    if (id == FH_NO_TOKEN || w->is_dead[id] || is_among(q->exclude, q->n_exclude, id)) return false;
    if (is_among(q->include, q->n_include, id) || is_among(w->always, w->parts.n_always, id)) return true;
    if (!q->no_hot && is_among(w->hot, w->parts.n_hot, id)) return true;
    for (uint32_t i = 0; i < probes; i++)
        if (clusters[i].id == c) return true;
    return false;
}

/* clusters: best first. */
static uint32_t define_probes(const world *w, uint32_t asked, const result *clusters)
{
    uint32_t p = fh_min(asked ? asked : w->parts.probes, w->is.k), n = 1;
    if (asked || !(w->is.threshold > 0)) return p;
    while (n < p && clusters[0].logit - clusters[n].logit <= w->is.threshold) n++;
    return n;
}

/* All candidates of a state, best first, once the `again` best by their encoded rows have the logits of the exact ones. */
static size_t define_candidates(const world *w, const fh_query *q, const float *x, size_t again, result *out)
{
    result *clusters = malloc(w->is.k * sizeof *clusters);
    size_t n = 0;
    define_route(w, x, clusters);
    uint32_t probes = define_probes(w, q->probes, clusters);
    for (size_t s = 0; s < (size_t)w->is.k * w->cap; s++)
        if (is_candidate(w, q, clusters, probes, s))
            out[n++] = (result){define_logit(w, &w->parts.tokens, w->token_scales, s, x), w->permutation[s]};
    qsort(out, n, sizeof *out, better_first);
    for (size_t i = 0; i < fh_min(n, again); i++) out[i].logit = define_logit(w, &w->parts.exact, NULL, fh_head_slots(w->head)[out[i].id], x);
    if (again) qsort(out, n, sizeof *out, better_first);
    free(clusters);
    return n;
}

static void same_best(const result *want, size_t n, const uint32_t *ids, const float *logits, size_t k)
{
    for (size_t i = 0; i < k; i++) {
        assert_int_equal(ids[i], i < n ? want[i].id : UINT32_MAX);
        if (!(logits[i] == (i < n ? want[i].logit : -INFINITY))) fail_msg("result %zu of %zu: logit %a, not %a", i, n, (double)logits[i],
            (double)want[i].logit);
    }
}

/* ---- agreement with the definition --------------------------------------------------------------------------------------------- */

static void check_route(const world *w, fh_scratch *s, const float *x, size_t batch, uint32_t probes)
{
    uint32_t p = probes ? fh_min(probes, w->is.k) : w->parts.probes, *clusters = malloc(batch * p * sizeof *clusters);
    float *scores = malloc(batch * p * sizeof *scores);
    result *want = malloc(w->is.k * sizeof *want);
    assert_int_equal(fh_head_route(w->head, s, x, batch, probes, clusters, scores, NULL), FH_OK);
    for (size_t b = 0; b < batch; b++) {
        define_route(w, x + b * w->is.d, want);
        uint32_t n = define_probes(w, probes, want);
        assert_int_equal(fh_head_routed(clusters + b * p, p), n);
        for (uint32_t i = 0; i < p; i++) {
            assert_int_equal(clusters[b * p + i], i < n ? want[i].id : UINT32_MAX);
            assert_true(scores[b * p + i] == (i < n ? want[i].logit : -INFINITY));
        }
    }
    free(clusters), free(scores), free(want);
}

static void check_topk(const world *w, fh_scratch *s, const float *x, size_t batch, const fh_query *q, size_t k)
{
    uint32_t *ids = malloc(batch * k * sizeof *ids), *best = malloc(batch * sizeof *best);
    float *logits = malloc(batch * k * sizeof *logits);
    result *want = malloc(((size_t)w->is.k * w->cap + 1) * sizeof *want);
    assert_int_equal(fh_head_topk(w->head, s, x, batch, q, k, ids, logits, NULL), FH_OK);
    assert_int_equal(fh_head_greedy(w->head, s, x, batch, q, best, NULL), FH_OK);
    for (size_t b = 0; b < batch; b++) {
        size_t r = w->is.rerank, n = define_candidates(w, q, x + b * w->is.d, r ? r + k - 1 : 0, want);
        same_best(want, n, ids + b * k, logits + b * k, k);
        n = define_candidates(w, q, x + b * w->is.d, r, want);
        assert_int_equal(best[b], n ? want[0].id : UINT32_MAX);
    }
    free(ids), free(best), free(logits), free(want);
}

/* route, then score; the candidates in the order that the header states. */
static void check_score(const world *w, fh_scratch *s, const float *x, const fh_query *q)
{
    uint32_t p = fh_min(q->probes ? q->probes : w->parts.probes, w->is.k), *clusters = malloc(p * sizeof *clusters);
    size_t room = fh_head_max_candidates(w->head, q), n, at = 0, wanted, cap = w->cap;
    uint32_t *ids = malloc((room + 1) * sizeof *ids);
    float *logits = malloc((room + 1) * sizeof *logits), *again = malloc((room + 1) * sizeof *again);
    result *want = malloc((size_t)w->is.k * cap * sizeof *want);
    assert_int_equal(fh_head_route(w->head, s, x, 1, q->probes, clusters, NULL, NULL), FH_OK);
    ids[room] = 12345, logits[room] = 12345;
    assert_int_equal(fh_head_score(w->head, s, x, clusters, p, q, ids, logits, &n, NULL), FH_OK);
    assert_true(ids[room] == 12345 && logits[room] == 12345 && n <= room);
    for (uint32_t c = 0; c < fh_head_routed(clusters, p); c++)
        for (size_t i = 0; i < cap; i++) {
            uint32_t id = w->permutation[clusters[c] * cap + i];
            if (id != FH_NO_TOKEN && !w->is_dead[id] && !is_among(q->exclude, q->n_exclude, id)) assert_int_equal(ids[at++], id);
        }
    for (; at + 1 < n; at++) assert_true(at == 0 || ids[at] < ids[at + 1]);
    assert_int_equal(fh_head_score_ids(w->head, s, x, ids, n, again, NULL), FH_OK);
    result *got = malloc((n + 1) * sizeof *got);
    for (size_t i = 0; i < n; i++) {
        assert_true(w->is.rerank || again[i] == logits[i]);
        assert_true(again[i] == define_logit(w, &w->parts.tokens, w->token_scales, fh_head_slots(w->head)[ids[i]], x));
        got[i] = (result){logits[i], ids[i]};
    }
    wanted = define_candidates(w, q, x, w->is.rerank, want);
    assert_int_equal(n, wanted);
    qsort(got, n, sizeof *got, better_first);
    for (size_t i = 0; i < n; i++) assert_true(got[i].id == want[i].id && got[i].logit == want[i].logit);
    free(clusters), free(ids), free(logits), free(again), free(want), free(got);
}

static void check_dense(const world *w, fh_scratch *s, const float *x, size_t batch, size_t k)
{
    uint32_t *ids = malloc(batch * k * sizeof *ids);
    float *logits = malloc(batch * k * sizeof *logits), *all = malloc(w->is.v * sizeof *all);
    result *want = malloc(w->is.v * sizeof *want);
    fh_err err;
    fh_status rc = fh_head_dense_topk(w->head, s, x, batch, k, ids, logits, &err);
    if (w->is.exact == FH_I8) {
        assert_int_equal(rc, FH_ENOTFOUND);
        assert_int_equal(fh_head_dense_logits(w->head, s, x, all, &err), FH_ENOTFOUND);
        assert_null(fh_head_exact_row(w->head, 0));
        assert_null(fh_head_get_info(w->head)->exact);
    } else {
        assert_int_equal(rc, FH_OK);
        for (size_t b = 0; b < batch; b++) {
            size_t n = 0;
            assert_int_equal(fh_head_dense_logits(w->head, s, x + b * w->is.d, all, &err), FH_OK);
            for (size_t slot = 0; slot < (size_t)w->is.k * w->cap; slot++) {
                uint32_t id = w->permutation[slot];
                if (id == FH_NO_TOKEN) continue;
                float y = w->is_dead[id] ? -INFINITY : define_logit(w, &w->parts.exact, NULL, slot, x + b * w->is.d);
                assert_true(all[id] == y);
                if (!w->is_dead[id]) want[n++] = (result){y, id};
            }
            qsort(want, n, sizeof *want, better_first);
            same_best(want, n, ids + b * k, logits + b * k, k);
        }
        for (uint32_t id = 0; id < w->is.v; id++) {
            float a = w->rows[(size_t)id * w->is.d], b;
            fh_to_f32(&b, w->is.exact, fh_head_exact_row(w->head, id), 1);
            assert_true(fabsf(a - b) <= fabsf(a) * 0.01f);
        }
        assert_null(fh_head_exact_row(w->head, w->is.v));
    }
    free(ids), free(logits), free(all), free(want);
}

static void check_measures(const world *w, const float *x, size_t batch)
{
    size_t slots = (size_t)w->is.k * w->cap;
    float *logits = malloc(batch * slots * sizeof *logits), *scores = malloc(batch * w->is.k * sizeof *scores);
    assert_int_equal(fh_head_slot_logits(w->head, NULL, x, batch, logits, NULL), FH_OK);
    assert_int_equal(fh_head_cluster_scores(w->head, NULL, x, batch, scores, NULL), FH_OK);
    for (size_t b = 0; b < batch; b++) {
        for (size_t s = 0; s < slots; s++) {
            uint32_t id = w->permutation[s];
            float y = id == FH_NO_TOKEN || w->is_dead[id] ? -INFINITY : define_logit(w, &w->parts.tokens, w->token_scales, s,
                x + b * w->is.d);
            assert_true(logits[b * slots + s] == y);
        }
        for (uint32_t c = 0; c < w->is.k; c++) assert_true(scores[b * w->is.k + c] == define_dot(&w->parts.centroids, w->centroid_scales,
                                                           c, x + b * w->is.d));
    }
    free(logits), free(scores);
}

static const shape shapes[] = {
    {100, 24, 10, FH_F32, FH_F32, FH_I8, .hot = true},
    {101, 33, 10, FH_BF16, FH_F16, FH_F32, .bias = true, .dead = true},
    {257, 70, 16, FH_I8, FH_I8, FH_BF16, .hot = true, .dead = true, .ties = true},
    {97, 5, 2, FH_F16, FH_BF16, FH_F16, .bias = true, .hot = true, .dead = true, .softcap = 1.5f},
    {64, 17, 64, FH_F32, FH_I8, FH_F32, .ties = true, .hot = true},
    {300, 16, 299, FH_I8, FH_F32, FH_I8, .dead = true, .hot = true, .softcap = 30},
    {40, 1, 8, FH_F32, FH_BF16, FH_I8, .ties = true, .dead = true},
    {700, 64, 20, FH_BF16, FH_I8, FH_F32, .bias = true, .ties = true, .hot = true},
    {5000, 8, 40, FH_I8, FH_BF16, FH_BF16, .hot = true, .dead = true},
    {2, 3, 2, FH_F32, FH_F32, FH_F32, .hot = false},
    {400, 70, 21, FH_I4, FH_I4, FH_BF16, .hot = true, .dead = true, .rerank = 5},
    {150, 33, 9, FH_I4, FH_F32, FH_I8, .bias = true, .ties = true},
    {260, 200, 7, FH_BF16, FH_I4, FH_F32, .hot = true},
    {500, 40, 25, FH_I8, FH_I8, FH_BF16, .hot = true, .dead = true, .rerank = 16},
    {300, 9, 20, FH_F32, FH_I8, FH_F32, .bias = true, .ties = true, .rerank = 3},
    {200, 33, 12, FH_I8, FH_BF16, FH_F32, .hot = true, .softcap = 2, .rerank = 1},
    {90, 20, 9, FH_I8, FH_I8, FH_F16, .dead = true, .rerank = 65536},
    {4000, 12, 30, FH_BF16, FH_I8, FH_F32, .hot = true, .rerank = 100},
    {700, 24, 70, FH_I8, FH_I8, FH_BF16, .hot = true, .rerank = 8, .threshold = 1.5f, .probes = 20},
    {300, 16, 30, FH_F32, FH_F32, FH_I8, .ties = true, .threshold = 2, .probes = 30},
    {300, 16, 30, FH_BF16, FH_I4, FH_F32, .dead = true, .bias = true, .threshold = 1e-30f, .probes = 7},
    {260, 33, 20, FH_I4, FH_I8, FH_F32, .hot = true, .softcap = 3, .threshold = 1e30f, .probes = 9},
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

static void answers_are_what_the_method_defines(void **state)
{
    static const char *const isas[] = {"", "ref", "avx2", "avx512", "neon"};
    for (size_t i = 0; i < SHAPES; i++)
        for (size_t isa = 0; isa < sizeof isas / sizeof *isas; isa++) {
            world w;
            const fh_kernels *kernels;
            if (fh_kernels_choose(&kernels, isas[isa], NULL) < 0) continue; /* not on this CPU */
            setenv("FH_ISA", isas[isa], 1);
            world_open(&w, shapes[i]);
            unsetenv("FH_ISA");
            uint32_t v = w.is.v;
            uint32_t include[] = {v - 1, 0, v / 2, v / 2, v / 3, 0}, exclude[] = {v / 2, 1, v - 1, 1};
            const fh_query queries[] = {
                {0}, {.probes = 1}, {.probes = w.is.k}, {.probes = UINT32_MAX}, {.probes = (w.is.k + 1) / 2, .no_hot = true},
                {.include = include, .n_include = 6}, {.probes = 2, .include = include, .n_include = 6, .exclude = exclude, .n_exclude = 4},
                {.probes = w.is.k, .exclude = exclude, .n_exclude = 4}};
            fh_scratch *s;
            assert_int_equal(fh_scratch_new(&s, w.head, 1 + (unsigned)i % 3, NULL), FH_OK);
            size_t batch = isa == 0 ? 67 : 3;
            if (w.is.v > 1000) batch = 3;
            float *x = make_states(&w, batch);
            memset(x, 0, w.is.d * sizeof *x); /* the first state ties everything */
            for (size_t q = 0; q < sizeof queries / sizeof *queries; q++) {
                check_topk(&w, s, x, q == 0 ? batch : fh_min(batch, 3 + q), &queries[q], 1 + (q * 5) % 13);
                check_score(&w, s, x + w.is.d, &queries[q]);
            }
            check_topk(&w, s, x, 2, &queries[2], v + 5); /* more than there are */
            check_route(&w, s, x, batch, 0);
            check_route(&w, s, x, 3, w.is.k);
            check_dense(&w, s, x, fh_min(batch, 35), 1 + i % 12);
            check_measures(&w, x, fh_min(batch, 34));
            free(x);
            fh_scratch_free(s);
            world_close(&w);
        }
}

static void any_number_of_threads_and_any_neighbours_give_the_same_bits(void **state)
{
    enum { BATCH = 64, K = 12 };
    world w;
    world_open(&w, (shape){60000, 48, 3000, FH_I8, FH_I8, FH_BF16, .hot = true, .dead = true, .ties = true, .rerank = 16});
    float *x = make_states(&w, BATCH);
    uint32_t want[BATCH * K], got[BATCH * K];
    float want_logits[BATCH * K], got_logits[BATCH * K];
    fh_query q = {.probes = 200};
    for (unsigned threads = 1; threads <= 3; threads++) {
        fh_scratch *s;
        assert_int_equal(fh_scratch_new(&s, w.head, threads, NULL), FH_OK);
        for (size_t batch = 1; batch <= BATCH; batch *= 4) {
            for (size_t at = 0; at < BATCH; at += batch)
                assert_int_equal(fh_head_topk(w.head, s, x + at * w.is.d, batch, &q, K, got + at * K, got_logits + at * K, NULL), FH_OK);
            if (threads == 1 && batch == 1) memcpy(want, got, sizeof got), memcpy(want_logits, got_logits, sizeof got_logits);
            assert_memory_equal(want, got, sizeof got);
            assert_memory_equal(want_logits, got_logits, sizeof got_logits);
        }
        size_t room = fh_head_max_candidates(w.head, &q), n;
        uint32_t *ids = malloc(room * sizeof *ids), *clusters = malloc(200 * sizeof *clusters);
        float *logits = malloc(room * sizeof *logits);
        assert_int_equal(fh_head_route(w.head, s, x, 1, 200, clusters, NULL, NULL), FH_OK);
        assert_int_equal(fh_head_score(w.head, s, x, clusters, 200, &q, ids, logits, &n, NULL), FH_OK);
        result best = {-INFINITY, UINT32_MAX};
        for (size_t i = 0; i < n; i++)
            if (logits[i] > best.logit || (logits[i] == best.logit && ids[i] < best.id)) best = (result){logits[i], ids[i]};
        assert_true(best.id == want[0] && best.logit == want_logits[0]);
        free(ids), free(logits), free(clusters);
        fh_scratch_free(s);
    }
    free(x);
    world_close(&w);
}

/* ---- misuse ----------------------------------------------------------------------------------------------------------------------- */

static void a_threshold_counts_what_it_probes_and_a_number_of_probes_lifts_it(void **state)
{
    world w;
    fh_scratch *s;
    uint32_t ids[40], clusters[40 * 25], fixed[40];
    uint64_t sum = 0;
    bool less = false, more = false;
    world_open(&w, (shape){500, 24, 50, FH_I8, FH_I8, FH_F32, .threshold = 1.2f, .probes = 25});
    float *x = make_states(&w, 40);
    assert_true(fh_head_get_info(w.head)->threshold == 1.2f && fh_head_get_info(w.head)->probes == 25);
    assert_int_equal(fh_scratch_new(&s, w.head, 2, NULL), FH_OK);
    assert_int_equal(fh_head_greedy(w.head, s, x, 40, NULL, ids, NULL), FH_OK);
    fh_probed probed = fh_scratch_probed(s);
    assert_int_equal(fh_head_route(w.head, s, x, 40, 0, clusters, NULL, NULL), FH_OK);
    for (size_t i = 0; i < 40; i++) {
        uint32_t n = fh_head_routed(clusters + i * 25, 25);
        fh_query q = {.probes = n};
        less = less || n < 5, more = more || n > 5, sum += n;
        assert_int_equal(fh_head_greedy(w.head, s, x + i * w.is.d, 1, &q, &fixed[i], NULL), FH_OK);
        assert_int_equal(fixed[i], ids[i]);
    }
    assert_true(probed.states == 40 && probed.clusters == sum && less && more);
    assert_int_equal(fh_head_route(w.head, s, x, 1, 25, clusters, NULL, NULL), FH_OK);
    assert_int_equal(fh_head_routed(clusters, 25), 25);
    free(x);
    fh_scratch_free(s);
    world_close(&w);
}

/* Scores that are infinite or all no numbers, as damaged centroids give: the best cluster is probed all the same, and nothing else that is not close. */
static void a_threshold_takes_the_best_of_any_scores(void **state)
{
    static const float scores[][4] = {{-INFINITY, -INFINITY, -INFINITY, -INFINITY}, {INFINITY, 1, INFINITY, 2}, {0, -INFINITY, 0, 5}, {-3, -3, -2.5f, -4}};
    static const size_t few[] = {1, 1, 1, 3};
    uint64_t out[4], room[4];
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(fh_select_close(out, scores[i], 4, 4, 0.75f, room), few[i]);
        if (i < 3) assert_int_equal(fh_key_id(out[0]), i == 2 ? 3 : 0);
    }
    assert_int_equal(fh_select_close(out, scores[3], 4, 2, 0.75f, room), 2); /* three are close: the two best of them */
    fh_sort_keys(out, 2, room);
    assert_true(fh_key_id(out[0]) == 2 && fh_key_id(out[1]) == 0);
}

static void misuse_is_refused_and_leaves_the_scratch_usable(void **state)
{
    world w, other;
    fh_scratch *s;
    fh_err err;
    uint32_t ids[1000], clusters[40];
    float logits[1000];
    size_t n;
    world_open(&w, (shape){100, 24, 10, FH_I8, FH_F32, FH_F32, .hot = true});
    world_open(&other, (shape){100, 24, 10, FH_F32, FH_F32, FH_I8, .hot = true});
    assert_int_equal(fh_scratch_new(&s, w.head, 1, NULL), FH_OK);
    float *x = make_states(&w, 40);
    x[33 * 24 + 5] = NAN;
    assert_int_equal(fh_head_topk(w.head, s, x, 40, NULL, 1, ids, logits, &err), FH_EUSAGE);
    assert_non_null(strstr(err.text, "state 33: element 5"));
    x[33 * 24 + 5] = INFINITY;
    assert_int_equal(fh_head_route(w.head, s, x, 40, 1, clusters, NULL, &err), FH_EUSAGE);
    assert_non_null(strstr(err.text, "state 33: element 5"));
    assert_int_equal(fh_head_dense_topk(w.head, s, x, 40, 1, ids, logits, &err), FH_EUSAGE);
    assert_int_equal(fh_head_dense_logits(w.head, s, x + 33 * 24, logits, &err), FH_EUSAGE);
    assert_int_equal(fh_head_topk(w.head, s, x, 1, NULL, 0, ids, logits, &err), FH_EUSAGE);
    assert_int_equal(fh_head_topk(other.head, s, x, 1, NULL, 1, ids, logits, &err), FH_EUSAGE);
    assert_int_equal(fh_head_topk(w.head, s, x, 0, NULL, 1, ids, logits, &err), FH_OK);
    uint32_t past[] = {3, 100};
    assert_int_equal(fh_head_topk(w.head, s, x, 1, &(fh_query){.include = past, .n_include = 2}, 1, ids, logits, &err), FH_EUSAGE);
    assert_non_null(strstr(err.text, "entry 1 is 100"));
    assert_int_equal(fh_head_topk(w.head, s, x, 1, &(fh_query){.exclude = past, .n_exclude = 2}, 1, ids, logits, &err), FH_EUSAGE);
    assert_int_equal(fh_head_topk(w.head, s, x, 1, &(fh_query){.n_exclude = 2}, 1, ids, logits, &err), FH_EUSAGE);
    assert_int_equal(fh_head_score_ids(w.head, s, x, past, 2, logits, &err), FH_EUSAGE);
    uint32_t twice[] = {4, 2, 4}, beyond[] = {4, 10};
    assert_int_equal(fh_head_score(w.head, s, x, twice, 3, NULL, ids, logits, &n, &err), FH_EUSAGE);
    assert_non_null(strstr(err.text, "cluster 4 is there twice"));
    assert_int_equal(fh_head_score(w.head, s, x, beyond, 2, NULL, ids, logits, &n, &err), FH_EUSAGE);
    assert_int_equal(fh_head_score(w.head, s, x, twice, 3, &(fh_query){.probes = 2}, ids, logits, &n, &err), FH_EUSAGE);
    check_topk(&w, s, x, 20, &(fh_query){.probes = 3}, 7);
    check_score(&w, s, x, &(fh_query){.probes = 3});
    fh_scratch_free(s);
    fh_scratch_free(NULL);
    fh_head_close(NULL);
    free(x);
    world_close(&w);
    world_close(&other);
}

static void parts_that_do_not_fit_are_refused(void **state)
{
    world w;
    fh_err err;
    fh_head *h = NULL;
    world_open(&w, (shape){100, 24, 10, FH_I8, FH_BF16, FH_F32, .hot = true, .dead = true});
    fh_head_parts p;
#define REFUSED(change) do { p = w.parts; change; assert_true(fh_head_from_parts(&h, &p, "parts", &err) < 0); assert_null(h); \
        assert_non_null(strstr(err.text, "parts")); } while (0)
    REFUSED(p.hidden = 25);
    REFUSED(p.hidden = 0);
    REFUSED(p.clusters = 9);
    REFUSED(p.cap = 9);
    REFUSED(p.probes = 11);
    REFUSED(p.centroids.rows--);
    REFUSED(p.centroids.data = NULL);
    REFUSED(p.centroid_scales = NULL);
    REFUSED(p.token_scales = w.token_scales);
    REFUSED(p.tokens.stride = 47);
    REFUSED(p.tokens.dtype = FH_I32);
    REFUSED(p.exact.dtype = FH_I8);
    REFUSED(p.exact.cols = 5);
    REFUSED(p.permutation = NULL);
    REFUSED(p.rerank = 65537);
    REFUSED((p.rerank = 1, p.exact.data = NULL));
    REFUSED((p.exact_by_token = true, p.exact.rows = 99));
    REFUSED(p.softcap = NAN);
    REFUSED(p.softcap = -1);
    uint32_t past = 100;
    REFUSED((p.hot = &past, p.n_hot = 1));
    REFUSED((p.always = &past, p.n_always = 1));
    uint32_t swap = w.permutation[0];
    w.permutation[0] = w.permutation[1];
    REFUSED((void)0);
    w.permutation[0] = swap;
    setenv("FH_ISA", "sse9", 1);
    p = w.parts;
    assert_int_equal(fh_head_from_parts(&h, &p, "parts", &err), FH_EUSAGE);
    assert_non_null(strstr(err.text, "sse9"));
    unsetenv("FH_ISA");
    p.probes = 0;
    assert_int_equal(fh_head_from_parts(&h, &p, "parts", &err), FH_OK);
    assert_int_equal(fh_head_get_info(h)->probes, 1);
    fh_head_close(h);
    world_close(&w);
}

static void rows_of_nonsense_never_win(void **state)
{
    world w;
    fh_scratch *s;
    uint32_t ids[100];
    float logits[100];
    world_open(&w, (shape){100, 24, 10, FH_F32, FH_F32, FH_I8, .hot = false});
    float *rows = w.tokens, *centroids = w.centroids;
    size_t stride = w.parts.tokens.stride / 4;
    for (int j = 0; j < 24; j++) rows[5 * stride + (size_t)j] = NAN, rows[6 * stride + (size_t)j] = j % 2 ? INFINITY : -INFINITY,
        centroids[3 * stride + (size_t)j] = NAN;
    assert_int_equal(fh_scratch_new(&s, w.head, 1, NULL), FH_OK);
    float *x = make_states(&w, 1);
    assert_int_equal(fh_head_topk(w.head, s, x, 1, &(fh_query){.probes = 10}, 100, ids, logits, NULL), FH_OK);
    assert_true(logits[99] == -INFINITY && logits[98] == -INFINITY && logits[97] > -INFINITY);
    assert_true(ids[98] < ids[99]);
    uint32_t clusters[10];
    float scores[10];
    assert_int_equal(fh_head_route(w.head, s, x, 1, 10, clusters, scores, NULL), FH_OK);
    assert_int_equal(clusters[9], 3);
    assert_true(scores[9] == -INFINITY);
    free(x);
    fh_scratch_free(s);
    world_close(&w);
}

static void everything_forced_out_leaves_nothing(void **state)
{
    world w;
    fh_scratch *s;
    uint32_t all[64], ids[3];
    float logits[3];
    world_open(&w, (shape){64, 17, 8, FH_F32, FH_F32, FH_I8, .hot = true});
    assert_int_equal(fh_scratch_new(&s, w.head, 1, NULL), FH_OK);
    float *x = make_states(&w, 1);
    for (uint32_t i = 0; i < 64; i++) all[i] = i;
    assert_int_equal(fh_head_topk(w.head, s, x, 1, &(fh_query){.exclude = all, .n_exclude = 64}, 3, ids, logits, NULL), FH_OK);
    assert_true(ids[0] == UINT32_MAX && logits[0] == -INFINITY);
    assert_int_equal(fh_head_greedy(w.head, s, x, 1, &(fh_query){.exclude = all, .n_exclude = 64}, ids, NULL), FH_OK);
    assert_true(ids[0] == UINT32_MAX);
    check_topk(&w, s, x, 1, &(fh_query){.probes = 8}, 64);
    free(x);
    fh_scratch_free(s);
    world_close(&w);
}

/* ---- merging
 * -------------------------------------------------------------------------------------------------------------------------- */

static void two_halves_of_a_head_merge_into_the_whole(void **state)
{
    enum { K = 9 };
    world w;
    fh_scratch *s;
    world_open(&w, (shape){257, 16, 16, FH_F32, FH_BF16, FH_BF16, .hot = true, .ties = true});
    assert_int_equal(fh_scratch_new(&s, w.head, 1, NULL), FH_OK);
    float *x = make_states(&w, 1);
    uint32_t even[257], odd[257], ids_a[K], ids_b[K], ids[K], want[K];
    float a[K], b[K], got[K], logits[K];
    size_t n_even = 0, n_odd = 0;
    for (uint32_t i = 0; i < 257; i++) {
        if (i % 2) odd[n_odd++] = i;
        if (i % 2 == 0) even[n_even++] = i;
    }
    assert_int_equal(fh_head_topk(w.head, s, x, 1, &(fh_query){.probes = 16, .exclude = odd, .n_exclude = n_odd - 20}, K, ids_a, a,
                                  NULL), FH_OK);
    assert_int_equal(fh_head_topk(w.head, s, x, 1, &(fh_query){.probes = 16, .exclude = even, .n_exclude = n_even}, K, ids_b, b, NULL),
                     FH_OK);
    assert_int_equal(fh_head_topk(w.head, s, x, 1, &(fh_query){.probes = 16}, K, want, logits, NULL), FH_OK);
    fh_merge_topk(ids_a, a, K, ids_b, b, K, K, ids, got);
    assert_memory_equal(ids, want, sizeof ids);
    assert_memory_equal(got, logits, sizeof got);
    fh_merge_topk(ids_a, a, K, ids_a, a, K, K, ids, got);
    assert_memory_equal(ids, ids_a, sizeof ids);
    fh_merge_topk(NULL, NULL, 0, ids_b, b, 2, K, ids, got);
    assert_true(ids[1] == ids_b[1] && ids[2] == UINT32_MAX && got[2] == -INFINITY);
    free(x);
    fh_scratch_free(s);
    world_close(&w);
}

static void an_id_in_both_lists_is_kept_once_with_its_better_logit(void **state)
{
    const uint32_t a[] = {9, 262144 + 9, 4}, b[] = {262144 + 9, 9, 4, UINT32_MAX};
    const float x[] = {5, 3, 1}, y[] = {4, 3, 1, -INFINITY};
    uint32_t ids[5];
    float logits[5];
    fh_merge_topk(a, x, 3, b, y, 4, 5, ids, logits);
    const uint32_t want[] = {9, 262144 + 9, 4, UINT32_MAX, UINT32_MAX};
    assert_memory_equal(ids, want, sizeof want);
    assert_true(logits[0] == 5 && logits[1] == 4 && logits[2] == 1 && logits[3] == -INFINITY);
}

static void log_sum_exps_merge_exactly_at_infinity(void **state)
{
    assert_true(fabs(fh_merge_lse(1, 2) - log(exp(1) + exp(2))) < 1e-15);
    assert_true(fabs(fh_merge_lse(1000, 1000) - (1000 + log(2))) < 1e-12);
    assert_true(fh_merge_lse(-INFINITY, -INFINITY) == -INFINITY);
    assert_true(fh_merge_lse(-INFINITY, 3) == 3 && fh_merge_lse(3, -INFINITY) == 3);
    assert_true(fh_merge_lse(INFINITY, 3) == INFINITY && fh_merge_lse(INFINITY, INFINITY) == INFINITY);
    assert_true(fh_merge_lse(INFINITY, -INFINITY) == INFINITY);
    assert_true(isnan(fh_merge_lse(NAN, 3)) && isnan(fh_merge_lse(3, NAN)));
}

/* ---- facts
 * ------------------------------------------------------------------------------------------------------------------------------ */

static void bytes_of_a_step_count_rows_and_scales(void **state)
{
    world w;
    world_open(&w, (shape){257, 70, 16, FH_I8, FH_I8, FH_BF16, .hot = true});
    assert_true(fh_head_step_bytes(w.head, 2, 5) == 16 * 132 + (2 * 17 + 5 + 3) * 132);
    assert_true(fh_head_step_bytes(w.head, 99, 0) == 16 * 132 + (16 * 17 + 3) * 132);
    assert_true(fh_head_dense_bytes(w.head) == 257.0 * 70 * 2);
    const fh_head_info *info = fh_head_get_info(w.head);
    assert_string_equal(info->centroids, "int8");
    assert_string_equal(info->exact, "bf16");
    assert_true(info->vocab == 257 && info->cap == 17 && info->n_hot == 9 && info->n_always == 3 && info->dead == 0 && !info->calibrated);
    for (uint32_t id = 0; id < 257; id++) assert_int_equal(w.permutation[fh_head_slots(w.head)[id]], id);
    assert_null(fh_head_file(w.head));
    world_close(&w);
}

static void the_bytes_of_reranking_are_those_of_the_rows_scored_again(void **state)
{
    world w;
    world_open(&w, (shape){257, 70, 16, FH_I8, FH_I8, FH_BF16, .hot = true, .rerank = 16});
    assert_int_equal(fh_head_get_info(w.head)->rerank, 16);
    assert_true(fh_head_step_bytes(w.head, 2, 5) == 16 * 132 + (2 * 17 + 5 + 3) * 132 + 16 * 192);
    fh_head_close(w.head);
    w.parts.rerank = 1000; /* more than there are candidates */
    assert_int_equal(fh_head_from_parts(&w.head, &w.parts, "test", NULL), FH_OK);
    assert_true(fh_head_step_bytes(w.head, 2, 5) == 16 * 132 + (2 * 17 + 5 + 3) * (132 + 192));
    world_close(&w);
}

/* Rows that 8 bits cannot tell apart: without reranking the answer is the first of them, with it the dense head's. */
static void near_ties_fall_as_in_the_dense_head(void **state)
{
    enum { V = 600, D = 96, BATCH = 40 };
    uint32_t got[BATCH], dense[BATCH], wrong = 0;
    float logits[BATCH];
    for (uint32_t r = 0; r <= 16; r += 16) {
        world w;
        fh_scratch *s;
        world_open(&w, (shape){V, D, 30, FH_F32, FH_I8, FH_F32, .rerank = r});
        for (uint32_t id = 0; id < V; id++) /* in fours, a thousandth apart */
            for (uint32_t j = 0; j < D; j++)
                w.rows[id * D + j] = w.rows[id / 4 * 4 * D + j] + (id % 4 ? 1e-3f * small(false) : 0);
        fh_rows rows = {w.rows, FH_F32, V, D, D * 4};
        size_t slots = w.parts.tokens.rows;
        assert_int_equal(fh_encode_rows(FH_I8, &rows, w.permutation, slots, NULL, NULL, w.tokens, w.token_scales, NULL, NULL), FH_OK);
        assert_int_equal(fh_encode_rows(FH_F32, &rows, w.permutation, slots, NULL, NULL, w.exact, NULL, NULL, NULL), FH_OK);
        float *x = make_states(&w, BATCH);
        assert_int_equal(fh_scratch_new(&s, w.head, 2, NULL), FH_OK);
        assert_int_equal(fh_head_greedy(w.head, s, x, BATCH, &(fh_query){.probes = 30}, got, NULL), FH_OK);
        assert_int_equal(fh_head_dense_topk(w.head, s, x, BATCH, 1, dense, logits, NULL), FH_OK);
        for (int i = 0; i < BATCH; i++) wrong += got[i] != dense[i];
        if (!r) assert_true(wrong > BATCH / 4);
        else assert_int_equal(wrong, 0);
        wrong = 0;
        free(x);
        fh_scratch_free(s);
        world_close(&w);
    }
}

/* A work directory has the checkpoint's rows by token id. */
static void exact_rows_by_token_rerank_alike(void **state)
{
    enum { BATCH = 9, K = 5 };
    world w;
    fh_head *h;
    fh_scratch *s, *t;
    uint32_t want[BATCH * K], got[BATCH * K];
    float want_logits[BATCH * K], got_logits[BATCH * K];
    world_open(&w, (shape){500, 40, 25, FH_I8, FH_I8, FH_F32, .hot = true, .dead = true, .rerank = 16});
    fh_head_parts p = w.parts;
    p.exact = (fh_rows){w.rows, FH_F32, 500, 40, 160}, p.exact_by_token = true;
    assert_int_equal(fh_head_from_parts(&h, &p, "test", NULL), FH_OK);
    assert_int_equal(fh_scratch_new(&s, w.head, 1, NULL), FH_OK);
    assert_int_equal(fh_scratch_new(&t, h, 1, NULL), FH_OK);
    float *x = make_states(&w, BATCH), logit;
    assert_int_equal(fh_head_topk(w.head, s, x, BATCH, NULL, K, want, want_logits, NULL), FH_OK);
    assert_int_equal(fh_head_topk(h, t, x, BATCH, NULL, K, got, got_logits, NULL), FH_OK);
    assert_memory_equal(want, got, sizeof got);
    assert_memory_equal(want_logits, got_logits, sizeof got_logits);
    fh_head_exact_logits(h, x, got, 1, &logit);
    assert_true(logit == got_logits[0]);
    assert_int_equal(fh_head_dense_topk(h, t, x, 1, 1, got, got_logits, NULL), FH_ENOTFOUND);
    assert_null(fh_head_exact_row(h, 0));
    free(x);
    fh_scratch_free(s), fh_scratch_free(t);
    fh_head_close(h);
    world_close(&w);
}

static void a_golden_file_opens_and_answers(void **state)
{
    fh_head *h = NULL;
    fh_scratch *s;
    fh_err err;
    uint32_t ids[7];
    float logits[7];
    const float x[3] = {1, -0.5f, 2};
    if (fh_head_open(&h, "tests/golden/fhead-1.0/ok-int8-exact-bias-dead.fhead", &err) < 0) fail_msg("%s", err.text);
    const fh_head_info *info = fh_head_get_info(h);
    assert_true(info->vocab == 7 && info->dead == 2 && info->n_hot == 2 && strlen(info->digest) == 64 && strlen(info->fingerprint) == 64);
    assert_string_equal(info->exact, "bf16");
    assert_non_null(fh_head_file(h));
    assert_int_equal(fh_scratch_new(&s, h, 1, &err), FH_OK);
    assert_int_equal(fh_head_dense_topk(h, s, x, 1, 7, ids, logits, &err), FH_OK);
    assert_true(ids[4] != UINT32_MAX && ids[5] == UINT32_MAX && ids[6] == UINT32_MAX); /* two are dead */
    for (int i = 0; i < 5; i++) { /* by hand, from the rows that embeddings would read */
        const uint16_t *row = fh_head_exact_row(h, ids[i]);
        double y = (double)fh_bf16_to_f32(row[0]) - 0.5 * (double)fh_bf16_to_f32(row[1]) + 2 * (double)fh_bf16_to_f32(row[2]);
        y += (double)fh_head_get_parts(h)->bias[ids[i]];
        float c = fh_head_get_parts(h)->softcap;
        if (c > 0) y = (double)c * tanh(y / (double)c);
        assert_true(fabs(y - (double)logits[i]) <= 1e-5);
        assert_true(i == 0 || logits[i] <= logits[i - 1]);
        assert_false(fh_head_dead_map(h)[ids[i]]);
    }
    fh_scratch_free(s);
    fh_head_close(h);
}

/* Rows of int4 a quarter step below the checkpoint's: which are read shows in the logits. */
static void a_golden_file_of_int4_rows_reranks(void **state)
{
    enum { V = 7, D = 130 };
    fh_err err;
    float x[D], logits[V];
    uint32_t ids[V];
    double exact[V], low[V];
    for (int i = 0; i < D; i++) x[i] = (float)((i * 5) % 11 - 5) / 4;
    for (int t = 0; t < V; t++) {
        exact[t] = low[t] = 0;
        for (int i = 0; i < D; i++) {
            double scale = ldexp(1, i / 32 - t - 3), q = (7 * i + 3 * t) % 15 - 7;
            low[t] += q * scale * (double)x[i], exact[t] += (q + 0.25) * scale * (double)x[i];
        }
    }
    for (int again = 0; again < 2; again++) {
        fh_head *h = NULL;
        fh_scratch *s;
        if (fh_head_open(&h, again ? "tests/golden/fhead-1.1/ok-int4-rerank.fhead" : "tests/golden/fhead-1.1/ok-int4-without-exact.fhead", &err) < 0)
            fail_msg("%s", err.text);
        assert_string_equal(fh_head_get_info(h)->centroids, "int4");
        assert_int_equal(fh_head_get_info(h)->rerank, again ? 2 : 0);
        assert_int_equal(fh_scratch_new(&s, h, 1, NULL), FH_OK);
        assert_int_equal(fh_head_topk(h, s, x, 1, &(fh_query){.probes = 2}, V, ids, logits, NULL), FH_OK);
        for (int i = 0; i < V; i++) { /* 2 + 7 - 1 are scored again: all */
            double want = again ? exact[ids[i]] : low[ids[i]];
            if (!(fabs((double)logits[i] - want) <= 1e-3 * (fabs(want) + 1e-3))) fail_msg("token %u: %g, not %g", ids[i], (double)logits[i], want);
            assert_true(i == 0 || logits[i] <= logits[i - 1]);
        }
        fh_scratch_free(s);
        fh_head_close(h);
    }
}

static void opening_what_is_no_head_says_so(void **state)
{
    fh_head *h = NULL;
    fh_err err;
    assert_true(fh_head_open(&h, "tests/unit/test_head.c", &err) < 0);
    assert_non_null(strstr(err.text, "test_head.c"));
    assert_true(fh_head_open(&h, "tests/no-such-file.fhead", &err) < 0);
    assert_null(h);
}

#ifdef FH_FAULTS
static fh_status open_and_ask(const fh_head_parts *parts, const float *x)
{
    fh_head *h = NULL;
    fh_scratch *s = NULL;
    uint32_t ids[40], clusters[40], best[8];
    float logits[100 * 10], all[100];
    size_t n;
    fh_err err;
    uint32_t include[] = {1, 99};
    fh_query q = {.include = include, .n_include = 2, .exclude = include, .n_exclude = 1};
    fh_status rc = fh_head_from_parts(&h, parts, "parts", &err);
    if (rc == FH_OK) rc = fh_scratch_new(&s, h, 2, &err);
    if (rc == FH_OK) rc = fh_head_topk(h, s, x, 8, &q, 5, ids, logits, &err);
    if (rc == FH_OK) rc = fh_head_greedy(h, s, x, 8, NULL, best, &err);
    if (rc == FH_OK) rc = fh_head_route(h, s, x, 8, 3, clusters, logits, &err);
    if (rc == FH_OK) rc = fh_head_score(h, s, x, clusters, 1, &(fh_query){.probes = 1}, ids, logits, &n, &err);
    if (rc == FH_OK) rc = fh_head_dense_topk(h, s, x, 8, 3, ids, logits, &err);
    if (rc == FH_OK) rc = fh_head_dense_logits(h, s, x, all, &err);
    if (rc == FH_OK) rc = fh_head_slot_logits(h, NULL, x, 8, logits, &err);
    if (rc == FH_OK) rc = fh_head_cluster_scores(h, NULL, x, 8, logits, &err);
    fh_scratch_free(s);
    fh_head_close(h);
    return rc;
}

static void running_out_of_memory_anywhere_is_a_clean_error(void **state)
{
    world w;
    world_open(&w, (shape){100, 24, 10, FH_I8, FH_BF16, FH_F32, .hot = true, .dead = true, .rerank = 4, .threshold = 0.5f});
    float *x = make_states(&w, 8);
    long n = 1;
    for (bool fired = true; fired; n++) {
        fh_fault_set(FH_FAULT_ALLOC, n);
        fh_status rc = open_and_ask(&w.parts, x);
        fired = fh_fault_fired();
        fh_fault_set(FH_FAULT_ALLOC, 0);
        assert_int_equal(rc, fired ? FH_ENOMEM : FH_OK);
    }
    assert_true(n > 10);
    free(x);
    world_close(&w);
}
#endif

int main(void)
{
    fh_rng_seed(&rng, 11, 0);
    unsetenv("FH_ISA");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_are_what_the_method_defines),
        cmocka_unit_test(any_number_of_threads_and_any_neighbours_give_the_same_bits),
        cmocka_unit_test(a_threshold_counts_what_it_probes_and_a_number_of_probes_lifts_it),
        cmocka_unit_test(a_threshold_takes_the_best_of_any_scores),
        cmocka_unit_test(misuse_is_refused_and_leaves_the_scratch_usable),
        cmocka_unit_test(parts_that_do_not_fit_are_refused),
        cmocka_unit_test(rows_of_nonsense_never_win),
        cmocka_unit_test(everything_forced_out_leaves_nothing),
        cmocka_unit_test(two_halves_of_a_head_merge_into_the_whole),
        cmocka_unit_test(an_id_in_both_lists_is_kept_once_with_its_better_logit),
        cmocka_unit_test(log_sum_exps_merge_exactly_at_infinity),
        cmocka_unit_test(bytes_of_a_step_count_rows_and_scales),
        cmocka_unit_test(the_bytes_of_reranking_are_those_of_the_rows_scored_again),
        cmocka_unit_test(near_ties_fall_as_in_the_dense_head),
        cmocka_unit_test(exact_rows_by_token_rerank_alike),
        cmocka_unit_test(a_golden_file_opens_and_answers),
        cmocka_unit_test(a_golden_file_of_int4_rows_reranks),
        cmocka_unit_test(opening_what_is_no_head_says_so),
#ifdef FH_FAULTS
        cmocka_unit_test(running_out_of_memory_anywhere_is_a_clean_error),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
