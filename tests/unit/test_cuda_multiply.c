/* Products for measuring on the emulated device, its own sources thread by thread, against the definition: the same bits. */
#include "base/fault.h"
#include "runtime/head.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "tests/unit/cuda_products.h"
#include "tests/unit/head_world.h"

/* The same bits, or neither is a number. */
static void same_floats(const float *want, const float *got, size_t n, const char *what)
{
    for (size_t i = 0; i < n; i++)
        if (memcmp(&want[i], &got[i], sizeof *want) && !(isnan(want[i]) && isnan(got[i])))
            fail_msg("%s: number %zu of %zu is %a, not %a", what, i, n, (double)got[i], (double)want[i]);
}

static const fh_dtype encodings[] = {FH_F32, FH_BF16, FH_F16, FH_I8, FH_I4};
enum { ENCODINGS = sizeof encodings / sizeof *encodings };

/* ---- products ------------------------------------------------------------------------------------------------------- */

typedef struct encoded { fh_rows rows; void *data, *scales; } encoded;

/* What no encoding takes, into rows of floats that were encoded. */
static void poke(const encoded *m, size_t row, size_t column, float x)
{
    uint8_t *at = (uint8_t *)m->data + row * m->rows.stride;
    uint16_t half = m->rows.dtype == FH_F16 ? fh_f32_to_f16(x) : fh_f32_to_bf16(x);
    if (m->rows.dtype == FH_F32) memcpy(at + 4 * column, &x, sizeof x);
    else memcpy(at + 2 * column, &half, sizeof half);
}

static encoded make_rows(fh_dtype e, size_t n, size_t d, bool strange)
{
    float *x = malloc(n * d * sizeof *x);
    size_t stride = fh_enc_stride(e, d);
    encoded m = {{NULL, e, n, d, stride}, fh_aligned(n * stride), malloc(n * fh_scale_bytes(e, d) + 1)};
    for (size_t i = 0; i < n * d; i++) x[i] = small(false);
    if (n > 2) memset(x + d, 0, d * sizeof *x);                                     /* a dead row */
    fh_rows from = {x, FH_F32, n, d, d * sizeof *x};
    assert_int_equal(fh_encode_rows(e, &from, NULL, n, NULL, NULL, m.data, m.scales, NULL, NULL), FH_OK);
    free(x);
    m.rows.data = m.data;
    if (!strange) return m;
    poke(&m, 2, 0, NAN), poke(&m, n - 1, d - 1, INFINITY), poke(&m, 3, 0, -INFINITY), poke(&m, 3, 1, INFINITY);
    for (size_t i = 0; i < d; i++) poke(&m, 4, i, 3e38f); /* sums that overflow */
    return m;
}

static void by_definition(float *out, const encoded *m, const float *states, size_t n)
{
    size_t d = m->rows.cols;
    uint8_t *room = fh_aligned(fh_state_bytes(d));
    for (size_t s = 0; s < n; s++) {
        fh_state state = {.f = states + s * d};
        const fh_state *at = &state;
        if (fh_dtype_is_integer(m->rows.dtype)) fh_state_quantize(&state, states + s * d, d, room);
        fh_dots(&fh_kernels_ref, &m->rows, m->scales, NULL, 0, m->rows.rows, &at, 1, out + s * m->rows.rows, m->rows.rows);
    }
    fh_free(room);
}

static void check_products(fh_dtype e, size_t rows, size_t d, size_t n, bool strange)
{
    there t;
    fh_err err = {0};
    void *put = NULL;
    encoded m = make_rows(e, rows, d, strange);
    fh_rows like = m.rows;
    float *states = malloc(n * d * sizeof *states), *want = malloc(n * rows * sizeof *want), *got = NULL;
    for (size_t i = 0; i < n * d; i++) states[i] = small(i % 7 == 0);
    for (size_t i = 0; n > 2 && i < d; i++) states[d + i] = 0;
    by_definition(want, &m, states, n);
    like.data = NULL; /* only its shape is looked at */
    if (there_open(&t, &like, 1, &err) < 0 || t.does.put(t.does.ctx, &put, &m.rows, m.scales, &err) < 0) fail_msg("%s", err.text);
    assert_true(fh_cuda_backend()->multiplier_bytes(t.multiplier) >= rows * fh_row_bytes(e, d) + 64 * 4 * (rows + d));
    for (size_t some = n; some; some /= 3) { /* fewer too, after what was there before */
        if (t.does.multiply(t.does.ctx, put, states + (n - some) * d, some, &got, &err) < 0) fail_msg("%s", err.text);
        same_floats(want + (n - some) * rows, got, some * rows, fh_dtype_name(e));
    }
    t.does.take(t.does.ctx, put);
    there_close(&t);
    fh_free(m.data);
    free(m.scales), free(states), free(want);
}

static void products_of_every_encoding_are_those_of_the_definition_bit_for_bit(void **state)
{
    static const struct { size_t rows, d, n; } shapes[] = {{1, 1, 1}, {5, 2, 3}, {33, 47, 9}, {130, 129, 33}, {31, 600, 64}, {9, 4097, 5}, {300, 64, 6}};
    for (size_t e = 0; e < ENCODINGS; e++)
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) check_products(encodings[e], shapes[i].rows, shapes[i].d, shapes[i].n, false);
}

static void rows_that_are_not_numbers_are_not_numbers_there(void **state)
{
    for (size_t e = 0; e < 3; e++) check_products(encodings[e], 12, 37, 5, true); /* what is encoded in integers is finite */
}

/* ---- matrices: logits and scores ---------------------------------------------------------------------------------------- */

static void compare(const fh_matrix *here, const fh_matrix *other, const float *states, size_t n, size_t width, const char *what)
{
    float *want = malloc(n * width * sizeof *want), *got = malloc(n * width * sizeof *got);
    fh_err err = {0};
    memset(want, 0x5a, n * width * sizeof *want), memset(got, 0x5a, n * width * sizeof *got);
    assert_int_equal(fh_matrix_multiply(here, NULL, states, n, want, &err), FH_OK);
    uint64_t before = emu_launches();
    if (fh_matrix_multiply(other, NULL, states, n, got, &err) < 0) fail_msg("%s: %s", what, err.text);
    assert_true(emu_launches() > before);
    same_floats(want, got, n * width, what);
    for (size_t i = 0; i < n * width; i++) assert_true(want[i] != (float)0x1.b4b4b4p+53f); /* what was poisoned was written */
    free(want), free(got);
}

static void check_matrices(shape is, bool through_bf16, size_t n)
{
    world w;
    there t;
    fh_err err = {0};
    world_open(&w, is);
    w.head->parts.through_bf16 = through_bf16;
    size_t slots = (size_t)is.k * w.cap;
    float *states = make_states(&w, n);
    fh_dense by_slot = {.rows = w.parts.exact, .token_of = w.permutation, .bias = w.bias, .softcap = is.softcap, .vocab = is.v, .dead = w.is_dead};
    fh_dense by_token = {.rows = {w.rows, FH_F32, is.v, is.d, is.d * sizeof(float)}, .bias = w.bias, .softcap = is.softcap, .vocab = is.v};
    const fh_rows shapes[] = {w.parts.centroids, w.parts.tokens, {NULL, FH_F32, slots, is.d, 0}, {NULL, FH_F32, slots, is.d, 0}};
    if (there_open(&t, shapes, 4, &err) < 0) fail_msg("%s", err.text);
    fh_dense moved[2] = {by_slot, by_token};
    for (int slot = 0; slot < 2; slot++) {
        fh_matrix here, other;
        assert_int_equal(fh_matrix_of_head(&here, w.head, slot, NULL, &err), FH_OK);
        if (fh_matrix_of_head(&other, w.head, slot, &t.does, &err) < 0) fail_msg("%s", err.text);
        compare(&here, &other, states, n, slot ? slots : is.k, slot ? "slots" : "centroids");
        fh_matrix_close(&other), fh_matrix_close(&here);
        moved[slot].device = &t.does;
        assert_int_equal(fh_matrix_of_dense(&here, slot ? &by_token : &by_slot, &err), FH_OK);
        if (fh_matrix_of_dense(&other, &moved[slot], &err) < 0) fail_msg("%s", err.text);
        compare(&here, &other, states, n, is.v, slot ? "rows by token" : "rows by slot");
        fh_matrix_close(&other), fh_matrix_close(&here);
    }
    there_close(&t);
    world_close(&w);
    free(states);
}

static void logits_and_scores_are_the_same_there(void **state)
{
    for (size_t e = 0; e < ENCODINGS; e++) {
        fh_dtype c = encodings[e], t = encodings[(e * 2 + 1) % ENCODINGS];
        check_matrices((shape){101, 40, 7, c, t, encodings[e % 3], .bias = e % 2, .hot = true, .dead = true, .ties = e == 1,
                               .softcap = e == 3 ? 5 : 0}, e == 1, 35);
    }
    check_matrices((shape){7, 1, 7, FH_I8, FH_I8, FH_F32, .bias = true, .softcap = 30}, false, 1);
    check_matrices((shape){64, 130, 2, FH_BF16, FH_BF16, FH_BF16, .dead = true}, true, 70);
}

static void logits_depend_on_no_other_state(void **state)
{
    enum { MANY = 70 };
    world w;
    fh_matrix m;
    fh_err err = {0};
    if (!fh_kernels_at(1)) skip(); /* OpenBLAS multiplies */
    world_open(&w, (shape){90, 53, 9, FH_I8, FH_I8, FH_BF16, .bias = true});
    fh_dense dense = {.rows = w.parts.exact, .token_of = w.permutation, .bias = w.bias, .vocab = 90};
    float *states = make_states(&w, MANY), all[MANY * 90], one[90];
    assert_int_equal(fh_matrix_of_dense(&m, &dense, &err), FH_OK);
    assert_int_equal(fh_matrix_multiply(&m, NULL, states, MANY, all, &err), FH_OK);
    for (size_t i = 0; i < MANY; i++) {
        assert_int_equal(fh_matrix_multiply(&m, NULL, states + i * 53, 1, one, &err), FH_OK);
        same_floats(one, all + i * 90, 90, "a state by itself");
    }
    fh_matrix_close(&m);
    world_close(&w);
    free(states);
}

/* ---- what is looked for in products ---------------------------------------------------------------------------------------- */

/* The k best of a state's logits by looking at all of them k times. */
static void plain_best(const float *z, const uint8_t *dead, uint32_t v, size_t k, uint32_t *ids)
{
    for (size_t j = 0; j < k; j++) {
        ids[j] = FH_NO_TOKEN;
        for (uint32_t t = 0; t < v; t++) {
            bool taken = (dead && dead[t]) || isnan(z[t]);
            for (size_t i = 0; i < j; i++) taken = taken || ids[i] == t;
            if (!taken && (ids[j] == FH_NO_TOKEN || z[t] > z[ids[j]])) ids[j] = t;
        }
    }
}

static void same_best(const fh_dense *here, const fh_dense *moved, const float *states, size_t n, size_t k, const char *what)
{
    fh_matrix a, b;
    fh_err err = {0};
    float *z = malloc(n * here->vocab * sizeof *z);
    uint32_t *want = malloc(n * k * sizeof *want), *got = malloc(n * k * sizeof *got);
    memset(got, 0x5a, n * k * sizeof *got);
    assert_int_equal(fh_matrix_of_dense(&a, here, &err), FH_OK);
    assert_false(fh_matrix_seeks(&a, 1));
    assert_int_equal(fh_matrix_multiply(&a, NULL, states, n, z, &err), FH_OK);
    for (size_t i = 0; i < n; i++) plain_best(z + i * here->vocab, here->dead, here->vocab, k, want + i * k);
    if (fh_matrix_of_dense(&b, moved, &err) < 0) fail_msg("%s: %s", what, err.text);
    assert_true(fh_matrix_seeks(&b, k));
    uint64_t before = emu_brought();
    if (fh_matrix_best(&b, states, n, k, got, &err) < 0) fail_msg("%s: %s", what, err.text);
    assert_int_equal(emu_brought() - before, n * k * sizeof *got); /* and no products */
    for (size_t i = 0; i < n * k; i++)
        if (got[i] != want[i]) fail_msg("%s: state %zu, number %zu of %zu is token %u, not %u", what, i / k, i % k, k, got[i], want[i]);
    fh_matrix_close(&b), fh_matrix_close(&a);
    free(z), free(want), free(got);
}

static void the_best_tokens_are_those_of_the_logits(void **state)
{
    static const struct { shape is; size_t n, k; } cases[] = {
        {{9001, 3, 50, FH_F32, FH_F32, FH_F32, .ties = true}, 5, 9},                    /* three parts, all but full of equal logits */
        {{8192, 2, 64, FH_F32, FH_F32, FH_BF16, .bias = true, .dead = true}, 3, 50},    /* two whole ones */
        {{4097, 5, 33, FH_F32, FH_F32, FH_F16, .dead = true, .ties = true}, 2, 64},     /* one row more than a part */
        {{300, 40, 7, FH_I8, FH_I8, FH_BF16, .bias = true, .dead = true}, 67, 1},
        {{7, 1, 7, FH_F32, FH_F32, FH_F32, .dead = true}, 3, 20},                       /* fewer than are asked for */
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        world w;
        there t;
        fh_err err = {0};
        size_t n = cases[c].n, k = cases[c].k;
        world_open(&w, cases[c].is);
        float *states = make_states(&w, n);
        memset(states + (n - 1) * w.is.d, 0, w.is.d * sizeof *states); /* all its logits are equal, but for biases */
        w.rows[1 * w.is.d] = NAN, w.rows[3 * w.is.d] = INFINITY, w.rows[5 * w.is.d] = -INFINITY;
        fh_dense here = {.rows = {w.rows, FH_F32, w.is.v, w.is.d, w.is.d * sizeof(float)}, .bias = w.bias, .vocab = w.is.v, .dead = w.is_dead}, moved;
        fh_dense slots = {.rows = w.parts.exact, .token_of = w.permutation, .bias = w.bias, .vocab = w.is.v, .dead = w.is_dead};
        const fh_rows shapes[] = {here.rows, slots.rows};
        if (there_open(&t, shapes, 2, &err) < 0) fail_msg("%s", err.text);
        moved = here, moved.device = &t.does;
        same_best(&here, &moved, states, n, k, "rows by token");
        here.dead = moved.dead = NULL;
        here.vocab = moved.vocab = w.is.v - 2; /* the last rows are padding */
        same_best(&here, &moved, states, n, k, "rows beyond the vocabulary");
        moved = slots, moved.device = &t.does;
        same_best(&slots, &moved, states, n, k, "rows by slot");
        there_close(&t);
        world_close(&w);
        free(states);
    }
}

static void the_ranks_of_clusters_are_those_of_their_scores(void **state)
{
    static const struct { shape is; bool through_bf16; size_t n, k; } cases[] = {
        {{300, 16, 300, FH_F32, FH_F32, FH_F32, .ties = false}, false, 35, 3}, {{300, 16, 300, FH_BF16, FH_F32, FH_F32, .ties = true}, false, 4, 50},
        {{600, 9, 257, FH_I8, FH_F32, FH_F32, .ties = false}, false, 66, 1},   {{600, 9, 513, FH_F16, FH_F32, FH_F32, .ties = true}, true, 5, 20},
        {{64, 30, 32, FH_I4, FH_F32, FH_F32, .ties = false}, true, 2, 64},     {{5, 2, 1, FH_F32, FH_F32, FH_F32, .ties = false}, false, 1, 2},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        world w;
        there t;
        fh_err err = {0};
        fh_matrix a, b;
        size_t n = cases[c].n, k = cases[c].k, all = n * k, clusters = cases[c].is.k;
        world_open(&w, cases[c].is);
        w.head->parts.through_bf16 = cases[c].through_bf16;
        float *states = make_states(&w, n), *s = malloc(n * clusters * sizeof *s), *scores = malloc(all * sizeof *scores), *top = malloc(n * sizeof *top);
        uint32_t *of = malloc(all * sizeof *of), *ranks = malloc(all * sizeof *ranks);
        memset(states + (n - 1) * w.is.d, 0, w.is.d * sizeof *states);
        if (c == 0) ((float *)w.centroids)[2 * 16] = NAN, ((float *)w.centroids)[4 * 16] = -INFINITY;
        for (size_t i = 0; i < all; i++) of[i] = i % 11 == 5 ? FH_NO_TOKEN : (uint32_t)fh_rng_below(&rng, clusters);
        of[0] = (uint32_t)clusters - 1, of[all - 1] = 0;
        assert_int_equal(fh_matrix_of_head(&a, w.head, false, NULL, &err), FH_OK);
        assert_int_equal(fh_matrix_multiply(&a, NULL, states, n, s, &err), FH_OK);
        if (there_open(&t, &w.parts.centroids, 1, &err) < 0 || fh_matrix_of_head(&b, w.head, false, &t.does, &err) < 0) fail_msg("%s", err.text);
        assert_true(fh_matrix_seeks(&b, k) && !fh_matrix_seeks(&b, 65));
        uint64_t before = emu_brought();
        if (fh_matrix_ranks(&b, states, n, &(fh_cluster_ranks_of){k, of, ranks, scores, top}, &err) < 0) fail_msg("%s", err.text);
        assert_int_equal(emu_brought() - before, all * 8 + n * 4);
        for (size_t i = 0; i < all; i++) {
            const float *x = s + i / k * clusters;
            uint32_t rank = 0, own = of[i];
            float best = -INFINITY;
            for (uint32_t j = 0; j < clusters; j++) {
                best = fmaxf(best, x[j]);
                rank += own != FH_NO_TOKEN && j != own && (x[j] > x[own] || (x[j] == x[own] && (j < own || cases[c].through_bf16)));
            }
            if (ranks[i] != rank) fail_msg("case %zu: state %zu, number %zu has rank %u, not %u", c, i / k, i % k, ranks[i], rank);
            assert_true(top[i / k] == best && (own == FH_NO_TOKEN || scores[i] == x[own]));
        }
        fh_matrix_close(&b), fh_matrix_close(&a);
        there_close(&t);
        world_close(&w);
        free(states), free(s), free(scores), free(top), free(of), free(ranks);
    }
}

/* Its tanhf is the host's. */
static void soft_capped_logits_come_here(void **state)
{
    world w;
    there t;
    fh_err err = {0};
    fh_matrix m;
    world_open(&w, (shape){20, 3, 4, FH_F32, FH_F32, FH_F32, .softcap = 2});
    assert_int_equal(there_open(&t, &w.parts.exact, 1, &err), FH_OK);
    fh_dense dense = {.rows = w.parts.exact, .token_of = w.permutation, .softcap = 2, .vocab = 20, .device = &t.does};
    assert_int_equal(fh_matrix_of_dense(&m, &dense, &err), FH_OK);
    assert_false(fh_matrix_seeks(&m, 1));
    fh_matrix_close(&m);
    there_close(&t);
    world_close(&w);
}

/* ---- refusals and failures -------------------------------------------------------------------------------------------- */

static void misuse_and_too_little_memory_are_refused(void **state)
{
    there t;
    fh_err err = {0};
    void *put = NULL;
    float states[65 * 32] = {0}, *dots;
    encoded m = make_rows(FH_BF16, 20, 32, false);
    fh_rows q8 = {NULL, FH_Q8_0, 20, 32, 34}, none = {NULL, FH_F32, 0, 32, 128}, wide = {NULL, FH_F32, 3, 100000, 400000},
            big = {NULL, FH_F32, 100000, 64, 256};
    assert_int_equal(there_open(&t, &q8, 1, &err), FH_EUNSUPPORTED), there_close(&t);
    assert_non_null(strstr(err.text, "an emulated device"));
    assert_int_equal(there_open(&t, &none, 1, &err), FH_EUSAGE), there_close(&t);
    assert_int_equal(there_open(&t, &wide, 1, &err), FH_EUNSUPPORTED), there_close(&t);
    assert_non_null(strstr(err.text, "a hidden size of 100000 takes"));
    emu.memory = 1 << 20;
    assert_int_equal(there_open(&t, &big, 1, &err), FH_ENOMEM), there_close(&t);
    emu.memory = (size_t)1 << 40;
    assert_non_null(strstr(err.text, "the calibration needs "));
    assert_non_null(strstr(err.text, "MiB of device memory, 1 MiB are free"));

    assert_int_equal(there_open(&t, &m.rows, 1, &err), FH_OK);
    const fh_dots_device *d = &t.does;
    assert_int_equal(d->put(d->ctx, &put, &q8, NULL, &err), FH_EUNSUPPORTED);
    assert_null(put);
    assert_int_equal(d->multiply(d->ctx, put, states, 1, &dots, &err), FH_EUSAGE); /* nothing is there */
    assert_int_equal(d->put(d->ctx, &put, &m.rows, NULL, &err), FH_OK);
    assert_int_equal(d->multiply(d->ctx, put, states, 0, &dots, &err), FH_EUSAGE);
    assert_int_equal(d->multiply(d->ctx, put, states, 65, &dots, &err), FH_EUSAGE);
    assert_int_equal(d->multiply(d->ctx, put, states, 64, &dots, &err), FH_OK);
    uint32_t ids[65] = {0}, ranks[65];
    float scores[65], top[1];
    assert_int_equal(d->best(d->ctx, put, states, 1, 1, ids, &err), FH_EUSAGE); /* of what tokens? */
    assert_non_null(strstr(err.text, "not known"));
    assert_int_equal(d->mark(d->ctx, put, ids, NULL, &err), FH_OK);
    assert_int_equal(d->best(d->ctx, put, states, 1, 0, ids, &err), FH_EUSAGE);
    assert_int_equal(d->best(d->ctx, put, states, 1, 65, ids, &err), FH_EUSAGE);
    assert_int_equal(d->best(d->ctx, put, states, 65, 1, ids, &err), FH_EUSAGE);
    assert_int_equal(d->ranks(d->ctx, put, states, 1, 65, ids, false, ranks, scores, top, &err), FH_EUSAGE);
    ids[0] = 20;
    assert_int_equal(d->ranks(d->ctx, put, states, 1, 1, ids, false, ranks, scores, top, &err), FH_EUSAGE);
    assert_non_null(strstr(err.text, "row 20 of 20"));
    encoded larger = make_rows(FH_BF16, 21, 32, false);
    void *other = NULL;
    assert_int_equal(d->put(d->ctx, &other, &larger.rows, NULL, &err), FH_OK); /* it fits; its products do not */
    assert_int_equal(d->multiply(d->ctx, other, states, 64, &dots, &err), FH_EUSAGE);
    double seconds[2] = {-1, -1};
    assert_int_equal(fh_cuda_backend()->multiplier_time(t.multiplier, put, 65, 2, seconds, &err), FH_EUSAGE);
    assert_int_equal(fh_cuda_backend()->multiplier_time(t.multiplier, put, 32, 2, seconds, &err), FH_OK);
    assert_true(seconds[0] >= 0 && seconds[1] >= 0);
    d->take(d->ctx, NULL);
    d->take(d->ctx, other);
    d->take(d->ctx, put);
    there_close(&t);
    fh_free(m.data), fh_free(larger.data);
    free(m.scales), free(larger.scales);
}

/* A matrix of rows of integers, put there and multiplied, and what is looked for in it. */
static fh_status put_and_multiply(there *t, const encoded *m, const float *states, size_t n, fh_err *err)
{
    void *put = NULL;
    float *dots, scores[2 * 3], top[3];
    static const uint32_t of[10] = {3, 1, 4, 2, 0, 9, 8, 7, 6, 5};
    static const float bias[10] = {1, 2};
    uint32_t ids[2 * 3];
    fh_status rc = there_open(t, &m->rows, 1, err);
    if (rc == FH_OK) rc = t->does.put(t->does.ctx, &put, &m->rows, m->scales, err);
    if (rc == FH_OK) rc = t->does.multiply(t->does.ctx, put, states, n, &dots, err);
    if (rc == FH_OK) rc = t->does.mark(t->does.ctx, put, of, bias, err);
    if (rc == FH_OK) rc = t->does.best(t->does.ctx, put, states, n, 2, ids, err);
    if (rc == FH_OK) rc = t->does.ranks(t->does.ctx, put, states, n, 2, of, false, ids, scores, top, err);
    if (t->multiplier) t->does.take(t->does.ctx, put);
    return rc;
}

static void a_device_that_fails_anywhere_is_a_clean_error(void **state)
{
    encoded m = make_rows(FH_I8, 10, 20, false);
    float states[3 * 20] = {1, 2, 3};
    for (long n = 1;; n++) {
        there t;
        fh_err err = {0};
        emu_fail_at(n);
        fh_status rc = put_and_multiply(&t, &m, states, 3, &err);
        bool reached = emu_calls() >= n;
        emu_fail_at(0);
        if (!reached) assert_int_equal(rc, FH_OK);
        there_close(&t);
        if (!reached) break;
        assert_true(rc == FH_OK || err.text[0]); /* what only frees may fail unseen */
        assert_true(n < 1000);
    }
    fh_free(m.data);
    free(m.scales);
}

static void every_allocation_may_fail(void **state)
{
#ifdef FH_FAULTS
    encoded m = make_rows(FH_I4, 10, 20, false);
    float states[3 * 20] = {1, 2, 3};
    bool done = false;
    for (long n = 1; !done; n++) {
        there t;
        fh_err err = {0};
        fh_fault_set(FH_FAULT_ALLOC, n);
        fh_status rc = put_and_multiply(&t, &m, states, 3, &err);
        done = !fh_fault_fired();
        fh_fault_set(FH_FAULT_ALLOC, 0);
        assert_int_equal(rc, done ? FH_OK : FH_ENOMEM);
        assert_true(done || err.text[0]);
        there_close(&t);
        assert_true(n < 1000);
    }
    fh_free(m.data);
    free(m.scales);
#else
    skip();
#endif
}

int main(void)
{
    fh_rng_seed(&rng, 17, 0);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_of_every_encoding_are_those_of_the_definition_bit_for_bit),
        cmocka_unit_test(rows_that_are_not_numbers_are_not_numbers_there),
        cmocka_unit_test(logits_and_scores_are_the_same_there),
        cmocka_unit_test(logits_depend_on_no_other_state),
        cmocka_unit_test(the_best_tokens_are_those_of_the_logits),
        cmocka_unit_test(the_ranks_of_clusters_are_those_of_their_scores),
        cmocka_unit_test(soft_capped_logits_come_here),
        cmocka_unit_test(misuse_and_too_little_memory_are_refused),
        cmocka_unit_test(a_device_that_fails_anywhere_is_a_clean_error),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
