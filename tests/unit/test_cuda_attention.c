/* Attention of a decoding step on the emulated device, against softmax in double. */
#include "base/fault.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "tests/unit/cuda_there.h"

static fh_rng rng;
static double uniform(void) { return 2 * fh_rng_double(&rng) - 1; }

typedef struct shape { size_t n, heads, kv_heads, d; uint32_t lengths[4], window; fh_dtype dtype; float scale, softcap; } shape;
typedef struct caches { fh_cuda_attention a; void **pages; float *q; uint32_t lengths[4]; } caches;

static void set(void *page, fh_dtype t, size_t i, float x)
{
    uint16_t h = t == FH_F16 ? fh_f32_to_f16(x) : fh_f32_to_bf16(x);
    if (t == FH_F32) memcpy((char *)page + 4 * i, &x, 4);
    else memcpy((char *)page + 2 * i, &h, 2);
}

static double get(const caches *c, size_t sequence, bool value, size_t kv_head, size_t key, size_t j)
{
    const fh_cuda_attention *a = &c->a;
    const char *page = c->pages[sequence * a->most_pages + key / 16];
    size_t i = ((value * a->kv_heads + kv_head) * 16 + key % 16) * a->d + j, size = a->dtype == FH_F32 ? 4 : 2;
    float x;
    fh_to_f32(&x, a->dtype, page + i * size, 1);
    return (double)x;
}

static caches make(shape is, float keys)
{
    caches c = {.a = {.n = is.n, .heads = is.heads, .kv_heads = is.kv_heads, .d = is.d, .window = is.window, .dtype = is.dtype, .scale = is.scale,
                      .softcap = is.softcap}};
    size_t values = 2 * is.kv_heads * 16 * is.d;
    for (size_t i = 0; i < is.n; i++) c.lengths[i] = is.lengths[i], c.a.most_pages = fh_max(c.a.most_pages, (is.lengths[i] + 15) / 16);
    c.pages = calloc(is.n * c.a.most_pages, sizeof *c.pages);
    for (size_t i = 0; i < is.n; i++)
        for (size_t p = 0; p * 16 < is.lengths[i]; p++) {
            void *page = c.pages[i * c.a.most_pages + p] = malloc(values * 4);
            for (size_t k = 0; k < values; k++) set(page, is.dtype, k, (k < values / 2 ? keys : 1) * (float)uniform());
        }
    c.q = malloc(is.n * is.heads * is.d * sizeof *c.q);
    for (size_t i = 0; i < is.n * is.heads * is.d; i++) c.q[i] = (float)uniform();
    return c;
}

static void drop(caches *c)
{
    for (size_t i = 0; i < c->a.n * c->a.most_pages; i++) free(c->pages[i]);
    free(c->pages), free(c->q);
}

static void attend(fh_cuda_device *d, const caches *c, float *out, uint64_t *recomputed, uint64_t *parts)
{
    fh_err err = {0};
    fh_cuda_attention a = c->a;
    a.q = c->q, a.pages = (const void *const *)c->pages, a.lengths = c->lengths;
    emu.seed = fh_rng_u64(&rng);
    memset(out, 0x5a, a.n * a.heads * a.d * sizeof *out);
    if (fh_cuda_backend()->attend(d, &a, out, recomputed, parts, 0, NULL, &err) < 0) fail_msg("%s", err.text);
}

/* Score of one key in double, and how far float32 may be from it: a rounding a product and a sum, of the sum of magnitudes; the soft cap adds a few. */
static double score_of(const caches *c, size_t i, size_t h, size_t key, double *error)
{
    const fh_cuda_attention *a = &c->a;
    double sum = 0, magnitude = 0;
    for (size_t j = 0; j < a->d; j++) {
        double x = (double)c->q[(i * a->heads + h) * a->d + j] * (double)a->scale * get(c, i, false, h / (a->heads / a->kv_heads), key, j);
        sum += x, magnitude += fabs(x);
    }
    if (a->softcap > 0) sum = (double)a->softcap * tanh(sum / (double)a->softcap);
    *error = ((double)a->d + 3) * 0x1p-24 * magnitude + 4 * 0x1p-24 * (double)a->softcap;
    return sum;
}

/* Weights are exp of a score that is `error` and, for the difference to what it is relative to (some 60 at most where that was left as it is, twice that
 * where maxima were mixed), 128 roundings off; sums over `length` keys add a rounding a key. A mean of values within [-1, 1] moves by at most twice the
 * relative error of its weights. */
static void check(const caches *c, const float *out)
{
    const fh_cuda_attention *a = &c->a;
    for (size_t i = 0; i < a->n; i++)
        for (size_t h = 0; h < a->heads; h++) {
            size_t length = c->lengths[i], first = a->window && length > a->window ? length - a->window : 0;
            double *score = malloc(length * sizeof *score), top = -INFINITY, total = 0, error = 0, e;
            for (size_t k = first; k < length; k++) score[k] = score_of(c, i, h, k, &e), top = fmax(top, score[k]), error = fmax(error, e);
            for (size_t k = first; k < length; k++) total += score[k] = exp(score[k] - top);
            double bound = 2 * (2 * error + (double)(length + 300) * 0x1p-24);
            for (size_t j = 0; j < a->d; j++) {
                double want = 0, got = (double)out[(i * a->heads + h) * a->d + j];
                for (size_t k = first; k < length; k++) want += score[k] / total * get(c, i, true, h / (a->heads / a->kv_heads), k, j);
                if (!(fabs(got - want) <= bound)) fail_msg("sequence %zu, head %zu, value %zu: %g, not %g, bound %g", i, h, j, got, want, bound);
            }
            free(score);
        }
}

static const shape shapes[] = {
    {1, 4, 1, 64, {1}, 0, FH_F32, 0.125f, 0},
    {2, 9, 3, 64, {17, 130}, 0, FH_F16, 0.125f, 0},
    {1, 2, 2, 1, {5}, 0, FH_BF16, 1, 0},
    {3, 4, 4, 80, {16, 33, 64}, 20, FH_F32, 0.3f, 0},
    {1, 10, 2, 256, {100}, 0, FH_BF16, 0.0625f, 50},
    {2, 14, 2, 20, {200, 3}, 7, FH_F16, 0.2f, 2},
    {2, 5, 1, 512, {70, 33}, 0, FH_F16, 0.0442f, 0},
    {1, 6, 2, 257, {50}, 19, FH_BF16, 0.0625f, 30},
    {2, 4, 4, 481, {17, 65}, 40, FH_F32, 0.05f, 0},
};

static void every_shape_is_softmax_whichever_maximum(void **state)
{
    fh_cuda_device *d;
    uint64_t recomputed, parts;
    assert_int_equal(fh_cuda_backend()->device_open(&d, 0, &host, NULL), FH_OK);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        caches c = make(shapes[i], 1);
        float *out = malloc(c.a.n * c.a.heads * c.a.d * sizeof *out);
        for (int unified = 0; unified < 2; unified++)
            for (c.a.splits = 0; c.a.splits < 6; c.a.splits += 2) {
                c.a.unified = unified;
                attend(d, &c, out, &recomputed, &parts);
                check(&c, out);
                assert_int_equal(recomputed, 0);
                assert_true(parts >= c.a.n * c.a.heads);
            }
        free(out);
        drop(&c);
    }
    fh_cuda_backend()->device_close(d);
    assert_int_equal(emu_allocated(), 0);
}

/* The constant is far above every score, or far below, or the scores themselves are wild: what leaves the range is done again, and counted. */
static void what_leaves_the_range_is_done_again_and_counted(void **state)
{
    static const struct { float constant, keys; bool all, none; } cases[] = {
        {0, 1, .none = true}, {200, 1, .all = true}, {-200, 1, .all = true}, {1e30f, 1, .all = true}, {-1e30f, 1, .all = true}, {0, 300, .all = false},
            {90, 40, .all = false}};
    fh_cuda_device *d;
    uint64_t recomputed, parts;
    assert_int_equal(fh_cuda_backend()->device_open(&d, 0, &host, NULL), FH_OK);
    for (size_t i = 0; i < 2 * sizeof cases / sizeof *cases; i++) {
        bool wide = i >= sizeof cases / sizeof *cases; /* once more with heads of 16 times the values, scores of the same size */
        size_t k = i % (sizeof cases / sizeof *cases);
        caches c = make((shape){2, 6, 2, wide ? 512 : 32, {150, 70}, 0, FH_F32, wide ? 0.25f : 1, 0}, cases[k].keys);
        float *out = malloc(c.a.n * c.a.heads * c.a.d * sizeof *out);
        c.a.unified = true, c.a.constant = cases[k].constant, c.a.splits = 4;
        attend(d, &c, out, &recomputed, &parts);
        check(&c, out);
        if (cases[k].all) assert_true(recomputed >= parts - 6 * 3); /* the shorter sequence has empty splits, which are none */
        else if (cases[k].none) assert_int_equal(recomputed, 0);
        else assert_true(recomputed > 0 && recomputed < parts);
        free(out);
        drop(&c);
    }
    fh_cuda_backend()->device_close(d);
}

static void long_contexts_are_softmax_too(void **state)
{
    fh_cuda_device *d;
    uint64_t recomputed, parts;
    assert_int_equal(fh_cuda_backend()->device_open(&d, 0, &host, NULL), FH_OK);
    for (uint32_t length = 512; length <= 16384; length *= 32) {
        caches c = make((shape){1, 4, 1, 16, {length}, 0, FH_F16, 0.25f, 0}, 8);
        float out[4 * 16];
        c.a.unified = true;
        attend(d, &c, out, &recomputed, &parts);
        check(&c, out);
        assert_int_equal(recomputed, 0);
        drop(&c);
    }
    fh_cuda_backend()->device_close(d);
}

static void misuse_is_refused(void **state)
{
    fh_cuda_device *d;
    uint64_t recomputed, parts;
    fh_err err = {0};
    float out[8];
    assert_int_equal(fh_cuda_backend()->device_open(&d, 0, &host, NULL), FH_OK);
    caches c = make((shape){1, 4, 2, 2, {5}, 0, FH_F32, 1, 0}, 1);
    c.a.q = c.q, c.a.pages = (const void *const *)c.pages, c.a.lengths = c.lengths;
    fh_cuda_attention wrong[] = {c.a, c.a, c.a, c.a};
    wrong[0].kv_heads = 3, wrong[1].d = 513, wrong[2].dtype = FH_I8, wrong[3].most_pages = 0;
    for (size_t i = 0; i < 4; i++) assert_int_equal(fh_cuda_backend()->attend(d, &wrong[i], out, &recomputed, &parts, 0, NULL, &err), FH_EUSAGE);
    drop(&c);
    fh_cuda_backend()->device_close(d);
}

static void a_device_that_fails_anywhere_is_a_clean_error(void **state)
{
    fh_cuda_device *d;
    uint64_t recomputed, parts;
    double seconds[2];
    float out[4 * 8];
    assert_int_equal(fh_cuda_backend()->device_open(&d, 0, &host, NULL), FH_OK);
    caches c = make((shape){1, 4, 2, 8, {40}, 0, FH_F32, 1, 0}, 1);
    c.a.q = c.q, c.a.pages = (const void *const *)c.pages, c.a.lengths = c.lengths, c.a.unified = true;
    for (long n = 1;; n++) {
        fh_err err = {0};
        emu_fail_at(n);
        fh_status rc = fh_cuda_backend()->attend(d, &c.a, out, &recomputed, &parts, 2, seconds, &err);
        bool reached = emu_calls() >= n;
        emu_fail_at(0);
        assert_int_equal(emu_allocated(), 0);
        if (!reached) { assert_int_equal(rc, FH_OK); break; }
        if (rc < 0) assert_int_equal(rc, FH_EFAIL); /* the last call waits for what may still be read, and may fail */
    }
    check(&c, out);
    drop(&c);
    fh_cuda_backend()->device_close(d);
}

int main(void)
{
    fh_rng_seed(&rng, 5, 0);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_shape_is_softmax_whichever_maximum),
        cmocka_unit_test(what_leaves_the_range_is_done_again_and_counted),
        cmocka_unit_test(long_contexts_are_softmax_too),
        cmocka_unit_test(misuse_is_refused),
        cmocka_unit_test(a_device_that_fails_anywhere_is_a_clean_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
