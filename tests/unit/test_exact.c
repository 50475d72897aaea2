/* Exact draws: the same token as noise on all exact logits gives, whatever the bound leaves out; and a fit to the dense softmax. */
#include "base/fault.h"

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

/* ---- the definition ---------------------------------------------------------------------------------------------- */

static double log_uniform(fh_rng *r) { return log(((double)(fh_rng_u64(r) >> 12) + 0.5) * 0x1p-52); }

/* The best of logits / T + noise over all live tokens: noise of a cluster's tokens is its largest, at one of them, and others below it. */
static uint32_t define_draw(const world *w, const float *logits, float temperature, const fh_penalty *penalty, uint64_t noise)
{
    double best = -INFINITY;
    uint32_t id = UINT32_MAX;
    for (uint32_t c = 0; c < w->is.k; c++) {
        size_t n = 0, i = 0;
        for (size_t m = 0; m < w->cap; m++) {
            uint32_t t = w->permutation[(size_t)c * w->cap + m];
            n += t != FH_NO_TOKEN && !w->is_dead[t];
        }
        if (!n) continue;
        fh_rng r;
        fh_rng_seed(&r, noise, c);
        double top = log((double)n) - log(-log_uniform(&r));
        size_t which = (size_t)fh_rng_below(&r, n);
        for (size_t m = 0; m < w->cap; m++) {
            uint32_t t = w->permutation[(size_t)c * w->cap + m];
            if (t == FH_NO_TOKEN || w->is_dead[t]) continue;
            double g = top;
            if (i++ != which) g = fmin(top, -log(exp(-top) - log_uniform(&r)));
            float x = logits[t];
            if (penalty && penalty->seen[t]) x = x > 0 ? x / penalty->factor : x * penalty->factor;
            double value = (double)x / (double)temperature + g;
            if (value > best || (value == best && t < id)) best = value, id = t;
        }
    }
    return id;
}

static const shape shapes[] = {
    {257, 70, 16, FH_I8, FH_I8, FH_BF16, .dead = true},
    {256, 64, 16, FH_I8, FH_I8, FH_F32, .bias = true},
    {300, 33, 20, FH_F32, FH_I8, FH_F16, .softcap = 3, .bias = true, .dead = true},
    {300, 48, 20, FH_F32, FH_BF16, FH_F32, .hot = true},
    {260, 200, 13, FH_I8, FH_I4, FH_F32, .bias = true, .dead = true},
    {90, 16, 90, FH_F32, FH_I8, FH_F32, .ties = true},
    {90, 16, 1, FH_I8, FH_I8, FH_BF16, .bias = false},
};

static void draws_are_what_noise_on_all_exact_logits_gives(void **state)
{
    size_t bounded = 0, rows = 0, of = 0;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        world w;
        fh_scratch *one, *three;
        fh_bounds *bounds, *again;
        world_open(&w, shapes[i]);
        assert_int_equal(fh_scratch_new(&one, w.head, 1, NULL), FH_OK);
        assert_int_equal(fh_scratch_new(&three, w.head, 3, NULL), FH_OK);
        assert_int_equal(fh_bounds_new(&bounds, w.head, one, NULL), FH_OK);
        assert_int_equal(fh_bounds_new(&again, w.head, three, NULL), FH_OK);
        float *x = make_states(&w, 8), *logits = malloc(w.is.v * sizeof *logits);
        uint8_t *seen = calloc(w.is.v, 1);
        for (uint32_t t = 0; t < w.is.v; t += 3) seen[t] = 1;
        for (uint64_t n = 0; n < 400; n++) {
            const float temperatures[] = {1, 0.3f, 2, 0.05f};
            float t = temperatures[n / 8 % 4], *s = x + n % 8 * w.is.d;
            if (n % 8 == 7) memset(s, 0, w.is.d * sizeof *s);
            fh_penalty penalty = {n % 3 == 1 ? 1.3f : 0.7f, seen}, *p = n % 3 ? &penalty : NULL;
            fh_draw got, same;
            fh_err err;
            assert_int_equal(fh_head_dense_logits(w.head, one, s, logits, NULL), FH_OK);
            if (fh_head_draw(w.head, one, bounds, s, t, p, n, &got, &err) < 0) fail_msg("%s", err.text);
            assert_int_equal(fh_head_draw(w.head, three, again, s, t, p, n, &same, NULL), FH_OK);
            assert_int_equal(got.id, define_draw(&w, logits, t, p, n));
            assert_true(got.id == same.id && got.rows == same.rows && got.clusters == same.clusters && got.dense == same.dense);
            bounded += !got.dense, rows += got.dense ? 0 : got.rows, of += got.dense ? 0 : w.is.v;
        }
        free(x), free(logits), free(seen);
        fh_bounds_free(bounds), fh_bounds_free(again);
        fh_scratch_free(one), fh_scratch_free(three);
        world_close(&w);
    }
    assert_true(bounded > 1500); /* four bits bound little: those may all go dense */
    assert_true((double)rows < 0.1 * (double)of);
}

static void rows_that_are_exact_already_are_all_read(void **state)
{
    world w;
    fh_scratch *s;
    fh_bounds *bounds;
    fh_draw got;
    world_open(&w, (shape){100, 24, 10, FH_I8, FH_F32, FH_I8, .bias = false});
    fh_head_parts parts = w.parts;
    parts.tokens_exact = true;
    fh_head_close(w.head);
    assert_int_equal(fh_head_from_parts(&w.head, &parts, "exact", NULL), FH_OK);
    assert_int_equal(fh_scratch_new(&s, w.head, 2, NULL), FH_OK);
    assert_int_equal(fh_bounds_new(&bounds, w.head, s, NULL), FH_OK);
    float *x = make_states(&w, 1), logits[100];
    assert_int_equal(fh_head_dense_logits(w.head, s, x, logits, NULL), FH_OK);
    for (uint64_t n = 0; n < 100; n++) {
        assert_int_equal(fh_head_draw(w.head, s, bounds, x, 1, NULL, n, &got, NULL), FH_OK);
        assert_true(got.dense && got.rows == 100 && got.clusters == 10);
        assert_int_equal(got.id, define_draw(&w, logits, 1, NULL, n));
    }
    free(x);
    fh_bounds_free(bounds);
    fh_scratch_free(s);
    world_close(&w);
}

static void a_bound_that_decides_nothing_ends_in_the_same_draw(void **state)
{
    /* One number of every row is large and the rest of them drowned by it when encoded. */
    world w;
    fh_scratch *s;
    fh_bounds *bounds;
    fh_draw got;
    size_t dense = 0;
    world_open(&w, (shape){200, 32, 20, FH_F32, FH_I8, FH_F32, .bias = false});
    for (size_t slot = 0; slot < 200; slot++) {
        ((float *)w.exact)[slot * (w.parts.exact.stride / sizeof(float))] = 3000;
        memset((uint8_t *)w.tokens + slot * w.parts.tokens.stride, 0, 32);
        *((int8_t *)w.tokens + slot * w.parts.tokens.stride) = 127, ((float *)w.token_scales)[slot] = 3000.f / 127;
    }
    assert_int_equal(fh_scratch_new(&s, w.head, 1, NULL), FH_OK);
    assert_int_equal(fh_bounds_new(&bounds, w.head, s, NULL), FH_OK);
    float *x = make_states(&w, 1), logits[200];
    x[0] = 0.001f;
    assert_int_equal(fh_head_dense_logits(w.head, s, x, logits, NULL), FH_OK);
    for (uint64_t n = 0; n < 100; n++) {
        assert_int_equal(fh_head_draw(w.head, s, bounds, x, 1, NULL, n, &got, NULL), FH_OK);
        assert_int_equal(got.id, define_draw(&w, logits, 1, NULL, n));
        dense += got.dense;
    }
    assert_true(dense > 50);
    free(x);
    fh_bounds_free(bounds);
    fh_scratch_free(s);
    world_close(&w);
}

static void misuse_is_refused(void **state)
{
    world w, without;
    fh_scratch *s, *other;
    fh_bounds *bounds, *none;
    fh_draw got;
    fh_err err;
    world_open(&w, (shape){100, 24, 10, FH_I8, FH_I8, FH_F32, .bias = false});
    world_open(&without, (shape){100, 24, 10, FH_I8, FH_I8, FH_I8, .bias = false});
    assert_int_equal(fh_scratch_new(&s, w.head, 1, NULL), FH_OK);
    assert_int_equal(fh_scratch_new(&other, without.head, 1, NULL), FH_OK);
    assert_int_equal(fh_bounds_new(&none, without.head, other, &err), FH_ENOTFOUND);
    assert_non_null(strstr(err.text, "no exact rows"));
    assert_int_equal(fh_bounds_new(&none, w.head, other, &err), FH_EUSAGE);
    assert_int_equal(fh_bounds_new(&bounds, w.head, s, &err), FH_OK);
    float *x = make_states(&w, 1);
    const float bad[] = {0, -1, NAN, INFINITY};
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(fh_head_draw(w.head, s, bounds, x, bad[i], NULL, 0, &got, &err), FH_EUSAGE);
        fh_penalty p = {bad[i], NULL};
        assert_int_equal(fh_head_draw(w.head, s, bounds, x, 1, &p, 0, &got, &err), FH_EUSAGE);
        assert_non_null(strstr(err.text, "repetition penalty"));
    }
    assert_int_equal(fh_head_draw(w.head, other, bounds, x, 1, NULL, 0, &got, &err), FH_EUSAGE);
    assert_int_equal(fh_head_draw(without.head, other, bounds, x, 1, NULL, 0, &got, &err), FH_EUSAGE);
    x[3] = NAN;
    assert_int_equal(fh_head_draw(w.head, s, bounds, x, 1, NULL, 0, &got, &err), FH_EUSAGE);
    free(x);
    fh_bounds_free(bounds), fh_bounds_free(NULL);
    fh_scratch_free(s), fh_scratch_free(other);
    world_close(&w), world_close(&without);
}

static void rows_of_nonsense_are_never_drawn(void **state)
{
    world w;
    fh_scratch *s;
    fh_bounds *bounds;
    fh_draw got;
    fh_err err;
    world_open(&w, (shape){64, 16, 8, FH_I8, FH_I8, FH_F32, .bias = false});
    for (size_t slot = 0; slot < 64; slot += 2) ((float *)w.exact)[slot * (w.parts.exact.stride / sizeof(float)) + 3] = NAN;
    ((float *)w.token_scales)[1] = NAN;
    assert_int_equal(fh_scratch_new(&s, w.head, 1, NULL), FH_OK);
    assert_int_equal(fh_bounds_new(&bounds, w.head, s, NULL), FH_OK);
    float *x = make_states(&w, 1), logits[64];
    assert_int_equal(fh_head_dense_logits(w.head, s, x, logits, NULL), FH_OK);
    for (uint64_t n = 0; n < 200; n++) {
        assert_int_equal(fh_head_draw(w.head, s, bounds, x, 1, NULL, n, &got, &err), FH_OK);
        assert_int_equal(got.id, define_draw(&w, logits, 1, NULL, n));
        assert_true(logits[got.id] > -INFINITY);
    }
    for (size_t slot = 0; slot < 64; slot++) ((float *)w.exact)[slot * (w.parts.exact.stride / sizeof(float))] = NAN;
    fh_bounds_free(bounds);
    assert_int_equal(fh_bounds_new(&bounds, w.head, s, NULL), FH_OK);
    assert_int_equal(fh_head_draw(w.head, s, bounds, x, 1, NULL, 0, &got, &err), FH_EUSAGE);
    assert_non_null(strstr(err.text, "nothing to draw from"));
    free(x);
    fh_bounds_free(bounds);
    fh_scratch_free(s);
    world_close(&w);
}

/* ---- a real model ------------------------------------------------------------------------------------------------- */

/* The upper normal deviate of a chi-square value with `freedom` degrees (Wilson and Hilferty 1931). */
static double deviate(double chi, double freedom)
{
    double a = 2 / (9 * freedom);
    return (cbrt(chi / freedom) - (1 - a)) / sqrt(a);
}

/* Draws at one state against the dense softmax at temperature t: a cell for each token expected at least 10 times, one for the rest. */
static void fit(const fh_head *head, fh_scratch *s, const fh_bounds *b, const float *x, float t, size_t draws, uint64_t first, double *chi,
                double *freedom, fh_draw *total)
{
    const fh_head_info *info = fh_head_get_info(head);
    float *logits = malloc(info->vocab * sizeof *logits);
    size_t *seen = calloc(info->vocab, sizeof *seen);
    double sum = 0, top = -INFINITY, rest = 0, rest_seen = 0;
    assert_int_equal(fh_head_dense_logits(head, s, x, logits, NULL), FH_OK);
    for (uint32_t i = 0; i < info->vocab; i++) top = fmax(top, (double)logits[i]);
    for (uint32_t i = 0; i < info->vocab; i++) sum += exp(((double)logits[i] - top) / (double)t);
    for (size_t i = 0; i < draws; i++) {
        fh_draw got;
        assert_int_equal(fh_head_draw(head, s, b, x, t, NULL, first + i, &got, NULL), FH_OK);
        seen[got.id]++;
        total->clusters += got.clusters, total->rows += got.rows, total->id += got.dense;
    }
    for (uint32_t i = 0; i < info->vocab; i++) {
        double expected = (double)draws * exp(((double)logits[i] - top) / (double)t) / sum, off = (double)seen[i] - expected;
        if (expected >= 10) *chi += off * off / expected, *freedom += 1;
        else rest += expected, rest_seen += (double)seen[i];
    }
    if (rest >= 10) *chi += (rest_seen - rest) * (rest_seen - rest) / rest;
    else *freedom -= 1; /* the cells that are left sum up to nearly all draws */
    free(logits), free(seen);
}

/* The demo model's head with 8-bit rows, in clusters of 16 tokens by their numbers: the draw is exact for any. */
static void draws_of_the_demo_model_fit_its_softmax(void **state)
{
    enum { STATES = 20, CAP = 16 };
    const char *asked = getenv("FH_DRAWS"), *shared = getenv("FH_SHARED");
    size_t draws = asked ? (size_t)strtoull(asked, NULL, 10) : 12000;
    fh_model m;
    fh_err err;
    if (!fh_file_exists("demo/prose-7m/model.safetensors")) skip();
    if (fh_model_open(&m, "demo/prose-7m", NULL, FH_MODEL_BODY | FH_MODEL_HEAD, NULL, &err) < 0) fail_msg("%s", err.text);
    uint32_t v = m.config->vocab, d = m.config->hidden, k = v / CAP, *order = malloc(v * sizeof *order);
    for (uint32_t i = 0; i < v; i++) order[i] = i;
    size_t stride = fh_enc_stride(FH_I8, d), wide = fh_enc_stride(m.dense.rows.dtype, d);
    void *rows = fh_aligned(v * stride), *exact = fh_aligned(v * wide);
    float *scales = malloc(v * sizeof *scales), hidden[STATES * 256];
    assert_true(d == 256 && k * CAP == v);
    assert_int_equal(fh_encode_rows(FH_I8, &m.dense.rows, order, v, NULL, NULL, rows, scales, NULL, &err), FH_OK);
    assert_int_equal(fh_encode_rows(m.dense.rows.dtype, &m.dense.rows, order, v, NULL, NULL, exact, NULL, NULL, &err), FH_OK);
    fh_head_parts parts = {
        .vocab = v, .hidden = d, .clusters = k, .cap = CAP, .probes = 1, .centroids = {rows, FH_I8, k, d, stride}, .centroid_scales = scales,
        .tokens = {rows, FH_I8, v, d, stride}, .token_scales = scales, .exact = {exact, m.dense.rows.dtype, v, d, wide}, .permutation = order};
    fh_head *head;
    fh_scratch *s;
    fh_bounds *b;
    assert_int_equal(fh_head_from_parts(&head, &parts, "demo", &err), FH_OK);
    assert_int_equal(fh_scratch_new(&s, head, asked ? 0 : 1, &err), FH_OK);
    assert_int_equal(fh_bounds_new(&b, head, s, &err), FH_OK);

    /* Recorded states of a text where they are at hand; else what the model makes of some tokens. */
    char path[600];
    fh_tensors *file = NULL;
    snprintf(path, sizeof path, "%s/models/prose-7m/reference/test.safetensors", shared ? shared : "../shared");
    bool recorded = asked && fh_file_exists(path);
    if (recorded) {
        assert_int_equal(fh_tensors_open(&file, path, &err), FH_OK);
        const fh_tensor *t = fh_tensors_find(file, "hidden");
        for (size_t i = 0; i < STATES; i++) memcpy(hidden + i * d, (const uint8_t *)t->data + t->bytes / STATES / 1024 * i * 1024, d * sizeof(float));
    } else {
        fh_kv *kv;
        uint32_t n = STATES, ids[STATES];
        for (uint32_t i = 0; i < STATES; i++) ids[i] = 300 + 171 * i;
        assert_int_equal(fh_kv_new(&kv, m.body, &err), FH_OK);
        assert_int_equal(fh_body_forward(m.body, NULL, 1, &kv, &n, ids, hidden, &err), FH_OK);
        fh_kv_free(kv);
    }
    double chi = 0, freedom = 0;
    fh_draw total = {0};
    for (size_t i = 0; i < STATES; i++) fit(head, s, b, hidden + i * d, 1, draws / STATES, i * 1000003, &chi, &freedom, &total);
    size_t done = draws / STATES * STATES;
    print_message("# %zu draws at %d %s states: chi-square %.1f of %.0f degrees (%.2f deviates); a draw looks into %.2f clusters and reads %.2f of "
                  "%u exact rows; %u went dense\n", done, STATES, recorded ? "recorded" : "made", chi, freedom, deviate(chi, freedom),
                  (double)total.clusters / (double)done, (double)total.rows / (double)done, v, total.id);
    assert_true(freedom > 100);
    assert_true(fabs(deviate(chi, freedom)) < 4); /* too good a fit is no draw either */
    assert_true((double)total.rows < 8.0 * (double)done && total.id == 0);

    fh_tensors_close(file);
    fh_bounds_free(b);
    fh_scratch_free(s);
    fh_head_close(head);
    fh_free(rows), fh_free(exact), free(scales), free(order);
    fh_model_close(&m);
}

#ifdef FH_FAULTS
static void running_out_of_memory_anywhere_is_a_clean_error(void **state)
{
    world w;
    fh_scratch *s;
    fh_bounds *b;
    fh_draw got;
    world_open(&w, shapes[0]);
    float *x = make_states(&w, 1);
    for (long n = 1;; n++) {
        fh_err err = {0};
        s = NULL, b = NULL;
        fh_fault_set(FH_FAULT_ALLOC, n);
        fh_status rc = fh_scratch_new(&s, w.head, 2, &err);
        if (rc == FH_OK) rc = fh_bounds_new(&b, w.head, s, &err);
        if (rc == FH_OK) rc = fh_head_draw(w.head, s, b, x, 1, NULL, 1, &got, &err);
        bool fired = fh_fault_fired();
        fh_fault_set(FH_FAULT_ALLOC, 0);
        fh_bounds_free(b);
        fh_scratch_free(s);
        if (!fired) {
            assert_int_equal(rc, FH_OK);
            break;
        }
        assert_int_equal(rc, FH_ENOMEM);
        assert_true(err.text[0]);
    }
    free(x);
    world_close(&w);
}
#endif

int main(void)
{
    fh_rng_seed(&rng, 23, 0);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(draws_are_what_noise_on_all_exact_logits_gives),
        cmocka_unit_test(rows_that_are_exact_already_are_all_read),
        cmocka_unit_test(a_bound_that_decides_nothing_ends_in_the_same_draw),
        cmocka_unit_test(misuse_is_refused),
        cmocka_unit_test(rows_of_nonsense_are_never_drawn),
        cmocka_unit_test(draws_of_the_demo_model_fit_its_softmax),
#ifdef FH_FAULTS
        cmocka_unit_test(running_out_of_memory_anywhere_is_a_clean_error),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
