/* Kernels: every table this CPU runs gives the bits of the definition, and reads nothing it was not given. */
#include "runtime/kernels.h"
#include "runtime/runtime.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>

static fh_rng rng;

static float number(int kind)
{
    double u = 2 * fh_rng_double(&rng) - 1;
    uint32_t bits;
    float f;
    switch (kind) {
    case 0: return (float)u;
    case 1: return (float)(u * 1e-38);                         /* subnormal, and products that underflow */
    case 2: return (float)ldexp(u, (int)fh_rng_below(&rng, 40) - 20);
    case 3: return fh_rng_below(&rng, 2) ? 0.0f : -0.0f;
    case 4: return (float)(u * 60000);
    default:
        do {
            bits = (uint32_t)fh_rng_u64(&rng);
            memcpy(&f, &bits, 4);
        } while (!(fabsf(f) < 1e17f)); /* any bits whose products stay finite */
        return f;
    }
}

static void fill_row(fh_dtype t, uint8_t *row, size_t d, int kind)
{
    for (size_t i = 0; i < d; i++) {
        float f = number(kind);
        uint16_t h = t == FH_BF16 ? fh_f32_to_bf16(f) : fh_f32_to_f16(kind >= 4 ? fmodf(f, 60000) : f);
        if (t == FH_F32) memcpy(row + 4 * i, &f, 4);
        else if (t == FH_I8) row[i] = kind == 3 ? (fh_rng_below(&rng, 2) ? 127 : 0x80) : (uint8_t)fh_rng_u64(&rng);
        else memcpy(row + 2 * i, &h, 2);
    }
}

static bool same_bits(float a, float b)
{
    return memcmp(&a, &b, sizeof a) == 0;
}

typedef enum order { USELESS, FOLLOWS, LAST, MIXED } order; /* of rows, and what the hint after them is */

/* n rows of d elements, the first at an odd address, `stride` apart, against `ref`. */
static void compare(fh_dtype t, size_t n, size_t m, size_t d, size_t stride, int kind, order lie)
{
    size_t bytes = n * stride + 1, size = fh_dtype_size(t);
    uint8_t *data = malloc(bytes + d * size);
    float *scales = malloc(n * sizeof *scales), *x = malloc((m * d + 1) * sizeof *x);
    float *want = malloc(n * m * sizeof *want), *got = malloc(n * m * sizeof *got);
    void *room = fh_aligned(m * fh_state_bytes(d));
    fh_state *states = malloc(m * sizeof *states);
    const fh_state **each = malloc(m * sizeof *each);
    const void **rows = calloc(n + 1, sizeof *rows); /* the last one is a hint */
    memset(data, 0xff, bytes + d * size); /* NaN between the rows: it must not be seen */
    for (size_t r = 0; r < n; r++) {
        rows[r] = data + 1 + r * stride;
        fill_row(t, data + 1 + r * stride, d, kind);
        scales[r] = (float)ldexp(1 + fh_rng_double(&rng), (int)fh_rng_below(&rng, 20) - 15);
    }
    rows[n] = lie == USELESS ? NULL : lie == LAST ? rows[n - 1] : data + 1 + n * stride;
    if (lie == MIXED) /* what kernels make of the first and the last must not be believed of those between */
        for (size_t r = 1; r + 1 < n; r++) {
            size_t other = 1 + fh_rng_below(&rng, n - 2);
            const void *row = rows[r];
            rows[r] = rows[other], rows[other] = row;
        }
    for (size_t s = 0; s < m; s++) {
        for (size_t i = 0; i < d; i++) x[s * d + i] = number(kind == 3 && s % 2 ? 0 : kind);
        fh_state_quantize(&states[s], x + s * d, d, (uint8_t *)room + s * fh_state_bytes(d));
        each[s] = &states[s];
    }
    x[m * d] = NAN;
    fh_kernels_ref.dot[t](rows, scales, n, d, each, m, want, n);
    const fh_kernels *k;
    for (size_t i = 0; (k = fh_kernels_at(i)) != NULL; i++) {
        for (const fh_kernels *which = k; which; which = which->cached) {
            memset(got, 0xee, n * m * sizeof *got);
            which->dot[t](rows, scales, n, d, each, m, got, n);
            for (size_t j = 0; j < n * m; j++)
                if (!same_bits(want[j], got[j])) fail_msg("%s%s%s, %s, n %zu, m %zu, d %zu, kind %d: result %zu is %a, not %a", k->name, k->variant,
                                                          which == k ? "" : " for cached rows", fh_dtype_name(t), n, m, d, kind, j, (double)got[j],
                                                          (double)want[j]);
        }
    }
    free(data), free(scales), free(x), free(want), free(got), free(states), free(rows), fh_free(room), free(each);
}

/* Rows without a gap, as a matrix has them: kernels may take them so, from 64 KiB on or always. */
static void rows_one_behind_the_other_give_the_bits_of_the_definition(void **state)
{
    static const size_t lengths[] = {33, 256, 576, 2048, FH_LONG_STRAIGHT, FH_LONG_STRAIGHT + 1, FH_LONG_STRAIGHT + 32, 8192 + 16};
    for (fh_dtype t = FH_F32; t <= FH_F16; t++)
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
            for (order o = FOLLOWS; o <= MIXED; o++) {
                size_t d = lengths[i], size = fh_dtype_size(t), n = 3 + fh_rng_below(&rng, 80);
                compare(t, n, 1, d, d * size, 0, o);
                compare(t, 64, 1 + fh_rng_below(&rng, 3), d, d * size, (int)(i % 3), o);
            }
}

static void every_table_gives_the_bits_of_the_definition(void **state)
{
    for (fh_dtype t = FH_F32; t <= FH_I8; t++)
        for (size_t d = 1; d <= 300; d++) {
            size_t n = 1 + fh_rng_below(&rng, 19), m = 1 + fh_rng_below(&rng, 9);
            compare(t, n, m, d, d * fh_dtype_size(t) + fh_rng_below(&rng, 70), (int)(d % 6), USELESS);
        }
    for (fh_dtype t = FH_F32; t <= FH_I8; t++)
        for (size_t m = 1; m <= 9; m++) compare(t, 64, m, 77, 77 * 4, 0, USELESS);
    static const size_t lengths[] = {FH_LONG - 1, FH_LONG, FH_LONG + 1, FH_LONG + 16, 8192, 14336 + 5}; /* long ones are read side by side */
    for (fh_dtype t = FH_F32; t <= FH_I8; t++)
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
            for (size_t m = 1; m <= 6; m++) compare(t, 1 + fh_rng_below(&rng, 13), m, lengths[i], lengths[i] * fh_dtype_size(t) + 3, 0, USELESS);
}

/* int4 rows at odd addresses, scales at any even one, `m` states: every table against the definition, and that against a sum in double. */
static void compare_groups(size_t n, size_t m, size_t d, int kind)
{
    size_t stride = fh_row_bytes(FH_I4, d) + 3, each = fh_scale_bytes(FH_I4, d);
    uint8_t *data = malloc(n * stride + 1), *scales = malloc(n * each);
    float *x = malloc(m * d * sizeof *x), *want = malloc(n * m * sizeof *want), *got = malloc(n * m * sizeof *got);
    void *room = fh_aligned(m * fh_state_bytes(d));
    fh_state *states = malloc(m * sizeof *states);
    const fh_state **all = malloc(m * sizeof *all);
    const void **rows = calloc(n + 1, sizeof *rows), **groups = calloc(n + 1, sizeof *groups);
    for (size_t i = 0; i < n * stride + 1; i++) data[i] = kind == 3 ? (fh_rng_below(&rng, 2) ? 0x77 : 0x88) : (uint8_t)fh_rng_u64(&rng);
    for (size_t i = 0; i < n * each / 2; i++) {
        uint16_t h = fh_f32_to_bf16((float)ldexp(1 + fh_rng_double(&rng), (int)fh_rng_below(&rng, 20) - 15));
        memcpy(scales + 2 * i, &h, 2);
    }
    for (size_t r = 0; r < n; r++) {
        rows[r] = data + 1 + r * stride, groups[r] = scales + r * each;
        for (size_t i = d; i % FH_LINE_VALUES; i++) data[1 + r * stride + i / 128 * 64 + i % 64] &= i % 128 < 64 ? 0xf0 : 0x0f;
    }
    for (size_t s = 0; s < m; s++) {
        for (size_t i = 0; i < d; i++) x[s * d + i] = number(kind);
        fh_state_quantize(&states[s], x + s * d, d, (uint8_t *)room + s * fh_state_bytes(d));
        all[s] = &states[s];
    }
    fh_dot_i4_ref(rows, groups, n, d, all, m, want, n);
    for (size_t s = 0; s < m; s++)
        for (size_t r = 0; r < n; r++) {
            double sum = 0, size = 0;
            for (size_t i = 0; i < d; i++) {
                uint16_t h;
                int bits = data[1 + r * stride + i / 128 * 64 + i % 64] >> (i % 128 < 64 ? 0 : 4) & 15;
                memcpy(&h, scales + r * each + i / 32 * 2, 2);
                double term = (bits > 7 ? bits - 16 : bits) * (double)fh_bf16_to_f32(h) * states[s].q[i] * states[s].scale;
                sum += term, size += fabs(term);
            }
            if (!(fabs((double)want[s * n + r] - sum) <= size * 1e-5 + 1e-45)) fail_msg("d %zu: %g, not %g", d, (double)want[s * n + r], sum);
        }
    const fh_kernels *k;
    for (size_t i = 0; (k = fh_kernels_at(i)) != NULL; i++) {
        memset(got, 0xee, n * m * sizeof *got);
        k->groups(rows, groups, n, d, all, m, got, n);
        for (size_t j = 0; j < n * m; j++)
            if (!same_bits(want[j], got[j])) fail_msg("%s%s, int4, n %zu, m %zu, d %zu, kind %d: result %zu is %a, not %a", k->name, k->variant, n, m, d,
                                                      kind, j, (double)got[j], (double)want[j]);
    }
    free(data), free(scales), free(x), free(want), free(got), free(states), free(rows), free(groups), fh_free(room), free(all);
}

static void every_table_gives_the_bits_of_the_definition_for_int4(void **state)
{
    for (size_t d = 1; d <= 300; d++) compare_groups(1 + fh_rng_below(&rng, 19), 1 + fh_rng_below(&rng, 6), d, d % 6 == 5 ? 2 : (int)(d % 6));
    for (size_t m = 1; m <= 5; m++) compare_groups(64, m, 576, 0);
    compare_groups(3, 3, 65536 + 33, 3);
}

/* FH_Q8_0 rows: on every table the bits of the definition for the float32 rows that they decode to. */
static void q8_rows_give_the_bits_of_what_they_decode_to(void **state)
{
    for (size_t turn = 0; turn < 120; turn++) {
        size_t n = 1 + fh_rng_below(&rng, 19), m = 1 + fh_rng_below(&rng, 9), d = 32 * (1 + fh_rng_below(&rng, 20));
        if (turn % 10 == 9) d += FH_LONG / 2 * fh_rng_below(&rng, 4);
        size_t stride = fh_row_bytes(FH_Q8_0, d);
        uint8_t *data = malloc(n * stride + 1);
        float *x = malloc(m * d * sizeof *x), *decoded = malloc(n * d * sizeof *decoded);
        float *want = malloc(n * m * sizeof *want), *got = malloc(n * m * sizeof *got);
        fh_state *states = calloc(m, sizeof *states);
        const fh_state **each = malloc(m * sizeof *each);
        const void **rows = calloc(n + 1, sizeof *rows), **floats = calloc(n + 1, sizeof *floats);
        for (size_t i = 0; i < n * stride; i++) data[1 + i] = (uint8_t)fh_rng_u64(&rng);
        for (size_t r = 0; r < n; r++) {
            rows[r] = data + 1 + r * stride, floats[r] = decoded + r * d;
            for (size_t b = 0; b < d / 32; b++) { /* scales of every size, subnormal, zero and negative ones too */
                uint16_t half = fh_f32_to_f16((float)ldexp(2 * fh_rng_double(&rng) - 1, (int)fh_rng_below(&rng, 40) - 24));
                memcpy(data + 1 + r * stride + 34 * b, &half, 2);
            }
            fh_dec_row(FH_Q8_0, rows[r], NULL, d, decoded + r * d);
        }
        for (size_t i = 0; i < m * d; i++) x[i] = number((int)(turn % 6));
        for (size_t s = 0; s < m; s++) states[s].f = x + s * d, each[s] = &states[s];
        fh_kernels_ref.dot[FH_F32](floats, NULL, n, d, each, m, want, n);
        const fh_kernels *k;
        for (size_t i = 0; (k = fh_kernels_at(i)) != NULL; i++) {
            memset(got, 0xee, n * m * sizeof *got);
            k->q8(rows, NULL, n, d, each, m, got, n);
            for (size_t j = 0; j < n * m; j++)
                if (!same_bits(want[j], got[j])) fail_msg("%s%s, n %zu, m %zu, d %zu: result %zu is %a, not %a", k->name, k->variant, n, m, d, j,
                                                          (double)got[j], (double)want[j]);
        }
        free(data), free(x), free(decoded), free(want), free(got), free(states), free(each), free(rows), free(floats);
    }
}

/* FH_Q8_0 rows and a state rounded a block at a time: what kernels.h says, in the same bits on every table, and near the exact product. */
static void q8_rows_and_a_rounded_state_give_the_bits_of_the_definition(void **state)
{
    size_t checked = 0;
    for (size_t turn = 0; turn < 240; turn++) {
        size_t n = 1 + fh_rng_below(&rng, 19), d = 32 * (1 + fh_rng_below(&rng, 20));
        if (turn % 10 == 9) d += FH_LONG / 2 * fh_rng_below(&rng, 4);
        size_t stride = fh_row_bytes(FH_Q8_0, d), blocks = d / 32;
        uint8_t *data = malloc(n * stride + 1);
        float *x = malloc(d * sizeof *x), *w = malloc(d * sizeof *w), *want = malloc(n * sizeof *want), *got = malloc(n * sizeof *got);
        void *room = malloc(fh_state_blocks_bytes(d));
        const void **rows = calloc(n + 1, sizeof *rows);
        fh_state s = {0};
        const fh_state *one = &s;
        for (size_t i = 0; i < n * stride; i++) data[1 + i] = turn % 8 == 7 ? 0x80 : (uint8_t)fh_rng_u64(&rng);
        for (size_t r = 0; r < n; r++) {
            rows[r] = data + 1 + r * stride;
            for (size_t b = 0; b < blocks; b++) {
                uint16_t half = fh_f32_to_f16((float)ldexp(2 * fh_rng_double(&rng) - 1, (int)fh_rng_below(&rng, 40) - 24));
                memcpy(data + 1 + r * stride + 34 * b, &half, 2);
            }
        }
        for (size_t i = 0; i < d; i++) x[i] = turn % 8 == 7 ? -3e20f : number((int)(turn % 6));
        if (turn % 16 == 3) memset(x, 0, 32 * sizeof *x);
        fh_state_blocks(&s, x, d, room);
        for (size_t b = 0; b < blocks; b++) {
            float most = 0;
            for (size_t i = 0; i < 32; i++) most = fmaxf(most, fabsf(x[32 * b + i]));
            for (size_t i = 0; i < 32; i++) {
                int q = s.block_q[32 * b + i];
                assert_in_range(q + FH_BLOCK_MAX, 0, 2 * FH_BLOCK_MAX);
                double off = fabs((double)x[32 * b + i] - q * (double)s.block_scale[b]);
                if (!(off <= most / 32767.0 * 0.51 + (most < 3.9e-34 ? most : 0)))
                    fail_msg("%a became %d times %a", (double)x[32 * b + i], q, (double)s.block_scale[b]);
            }
        }
        const fh_kernels *k;
        for (size_t i = 0; (k = fh_kernels_at(i)) != NULL; i++) {
            for (const fh_kernels *each = k; each; each = each->cached) {
                memset(got, 0xee, n * sizeof *got);
                each->q8_rounded(rows, NULL, n, d, &one, 1, i ? got : want, n);
                for (size_t j = 0; i && j < n; j++)
                    if (!same_bits(want[j], got[j])) fail_msg("%s%s, n %zu, d %zu: result %zu is %a, not %a", k->name, k->variant, n, d, j, (double)got[j],
                                                              (double)want[j]);
            }
        }
        for (size_t r = 0; r < n; r++) {
            double sum = 0, bound = 0;
            fh_dec_row(FH_Q8_0, rows[r], NULL, d, w);
            for (size_t b = 0; b < blocks; b++) {
                double most = 0, weight = 0;
                for (size_t i = 32 * b; i < 32 * b + 32; i++) {
                    sum += (double)w[i] * x[i], most = fmax(most, fabs((double)x[i])), weight += fabs((double)w[i]);
                }
                bound += weight * (most * (0.51 / 32767 + (double)d * 1e-8) + 3.9e-34);
            }
            checked += bound > 0;
            if (!(fabs((double)want[r] - sum) <= bound)) fail_msg("d %zu: row %zu is %a, exactly %a, bound %g", d, r, (double)want[r], sum, bound);
        }
        free(data), free(x), free(w), free(want), free(got), free(room), free(rows);
    }
    assert_true(checked > 1000);
}

/* A state that is no number, or so small that its scale would be none: NaN, and zero. */
static void q8_rows_and_a_state_that_cannot_be_rounded(void **state)
{
    const float bad[] = {INFINITY, -INFINITY, NAN, 1e-36f, -1e-45f, 3e38f};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        uint8_t row[3 * 34];
        uint32_t room[3 * 68 / 4];
        const void *rows[] = {row, row};
        float x[96] = {0}, out;
        fh_state s = {0};
        const fh_state *one = &s;
        const fh_kernels *k;
        for (size_t j = 0; j < sizeof row; j++) row[j] = j % 34 == 0 ? 0 : j % 34 == 1 ? 0x3c : 1; /* scale 1, all 1 */
        x[40] = bad[i];
        assert_int_equal(fh_state_blocks_bytes(96), sizeof room);
        fh_state_blocks(&s, x, 96, room);
        for (size_t t = 0; (k = fh_kernels_at(t)) != NULL; t++) {
            k->q8_rounded(rows, NULL, 1, 96, &one, 1, &out, 1);
            if (i < 3) assert_true(isnan(out));
            else if (i < 5) assert_true(out == 0);
            else assert_float_equal(out, 3e38f, 1e33f);
        }
    }
}

static void long_rows_of_extremes_do_not_overflow(void **state)
{
    static const size_t lengths[] = {4095, 4097, 8192, 8193 + 16, 65535, 65536, 65537, 200000};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        size_t d = lengths[i];
        int8_t *row = malloc(d);
        float *x = malloc(d * sizeof *x), scale = 1;
        void *room = fh_aligned(fh_state_bytes(d));
        fh_state s;
        const fh_state *each = &s;
        const void *rows[] = {row, NULL};
        const fh_kernels *k;
        for (int sign = -1; sign <= 1; sign += 2) {
            memset(row, sign < 0 ? -128 : 127, d);
            for (size_t j = 0; j < d; j++) x[j] = 1e30f;
            fh_state_quantize(&s, x, d, room);
            assert_int_equal(s.sum, (int64_t)d * FH_STATE_MAX);
            double want = (double)((int64_t)d * FH_STATE_MAX * (sign < 0 ? -128 : 127)) * s.scale;
            for (size_t t = 0; (k = fh_kernels_at(t)) != NULL; t++) {
                float got;
                k->dot[FH_I8](rows, &scale, 1, d, &each, 1, &got, 1);
                if (!same_bits(got, (float)want)) fail_msg("%s%s: d %zu: %a, not %a", k->name, k->variant, d, (double)got, want);
            }
        }
        free(row), free(x), fh_free(room);
    }
    for (fh_dtype t = FH_F32; t <= FH_I8; t++) compare(t, 5, 3, 65536, 65536 * 4, 3, USELESS);
}

static void nothing_past_a_row_is_read(void **state)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uint8_t *map = mmap(NULL, 4 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(map != MAP_FAILED);
    assert_int_equal(mprotect(map + page, page, PROT_NONE), 0);
    assert_int_equal(mprotect(map + 3 * page, page, PROT_NONE), 0);
    for (fh_dtype t = FH_F32; t <= FH_I8; t++)
        for (size_t d = 1; d <= 140; d++) {
            size_t size = fh_dtype_size(t), n = 1 + d % 9;
            if (n * d * size > page) n = 1;
            uint8_t *data = map + page - n * d * size; /* the last row ends where memory does, and so does the state */
            float *x = (float *)(void *)(map + 3 * page) - d, out[9], scales[9];
            void *room = fh_aligned(fh_state_bytes(d));
            fh_state s;
            const fh_state *each = &s;
            const void *rows[10];
            const fh_kernels *k;
            rows[n] = map + 3 * page;
            for (size_t r = 0; r < n; r++) rows[r] = data + r * d * size, scales[r] = 1, fill_row(t, data + r * d * size, d, 0);
            for (size_t i = 0; i < d; i++) x[i] = number(0);
            fh_state_quantize(&s, x, d, room);
            for (size_t i = 0; (k = fh_kernels_at(i)) != NULL; i++)
                for (; k; k = k->cached) k->dot[t](rows, scales, n, d, &each, 1, out, n);
            fh_free(room);
        }
    for (size_t d = 1; d <= 300; d++) { /* int4: rows of whole lines, scales that end where memory does */
        size_t bytes = fh_row_bytes(FH_I4, d), each = fh_scale_bytes(FH_I4, d);
        float x[300], out;
        fh_state s;
        const fh_state *one = &s;
        void *room = fh_aligned(fh_state_bytes(d));
        const void *rows[] = {map + page - bytes, map + 3 * page}, *groups[] = {map + 3 * page - each, map + 3 * page};
        memset(map + page - bytes, 0x11, bytes), memset(map + 3 * page - each, 0x3f, each);
        for (size_t i = 0; i < d; i++) x[i] = number(0);
        fh_state_quantize(&s, x, d, room);
        const fh_kernels *k;
        for (size_t i = 0; (k = fh_kernels_at(i)) != NULL; i++) k->groups(rows, groups, 1, d, &one, 1, &out, 1);
        fh_free(room);
    }
    munmap(map, 4 * page);
}

static void a_state_keeps_fifteen_bits(void **state)
{
    static const float sizes[] = {1, 1e30f, 3e38f, 1e-30f, 1e-40f, 1.4e-45f};
    enum { D = 129 };
    void *room = fh_aligned(fh_state_bytes(D));
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        float x[D];
        fh_state s;
        for (size_t j = 0; j < D; j++) x[j] = number(0) * sizes[i];
        x[D / 2] = -sizes[i];
        fh_state_quantize(&s, x, D, room);
        assert_int_equal(s.q[D / 2], -FH_STATE_MAX);
        int64_t sum = 0;
        for (size_t j = 0; j < D; j++) {
            assert_true(fabs((double)s.q[j] * s.scale - (double)x[j]) <= 0.5000001 * s.scale);
            assert_int_equal(s.q[j], 256 * s.hi[j] + s.lo[j]);
            sum += s.q[j];
        }
        assert_int_equal(sum, s.sum);
        for (size_t j = D; j < 192; j++) assert_true(s.q[j] == 0 && s.hi[j] == 0 && s.lo[j] == 0);
    }
    float zero[D] = {0};
    fh_state s;
    fh_state_quantize(&s, zero, D, room);
    assert_true(s.scale == 0 && s.sum == 0 && s.q[5] == 0);
    fh_free(room);
}

static void fh_isa_is_obeyed_or_refused_by_name(void **state)
{
    fh_err err;
    const fh_kernels *k = NULL;
    assert_int_equal(fh_kernels_choose(&k, "ref", &err), FH_OK);
    assert_string_equal(k->name, "ref");
    assert_int_equal(fh_kernels_choose(&k, NULL, &err), FH_OK);
    assert_int_equal(fh_kernels_choose(&k, "", &err), FH_OK);
    assert_int_equal(fh_kernels_choose(&k, "avx1024", &err), FH_EUSAGE);
    assert_non_null(strstr(err.text, "avx1024"));
    assert_int_equal(fh_kernels_choose(&k, "AVX2", &err), FH_EUSAGE);
    size_t tables = 0;
    for (; (k = fh_kernels_at(tables)) != NULL; tables++) {
        const fh_kernels *again;
        assert_int_equal(fh_kernels_choose(&again, k->name, &err), FH_OK);
        assert_string_equal(again->name, k->name);
    }
    assert_true(tables >= 1);
#if defined(__aarch64__)
    assert_true(tables >= 2); /* every AArch64 CPU has Advanced SIMD */
#endif
    printf("           %zu tables of kernels run on this CPU\n", tables);
}

static void a_product_is_the_same_for_any_number_of_threads(void **state)
{
    enum { ROWS = 3001, COLS = 203 };
    uint8_t *data = malloc(ROWS * COLS * 4);
    float *want = malloc(ROWS * sizeof *want), *got = malloc(ROWS * sizeof *got), x[COLS];
    for (size_t i = 0; i < COLS; i++) x[i] = number(0);
    for (fh_dtype t = FH_F32; t <= FH_F16; t++) {
        fh_rows rows = {data, t, ROWS, COLS, COLS * fh_dtype_size(t)};
        for (size_t r = 0; r < ROWS; r++) fill_row(t, data + r * rows.stride, COLS, 0);
        for (size_t r = 0; r < ROWS; r++) {
            const void *row[] = {data + r * rows.stride, NULL};
            fh_state s = {.f = x};
            const fh_state *each = &s;
            fh_kernels_ref.dot[t](row, NULL, 1, COLS, &each, 1, want + r, 1);
        }
        for (unsigned threads = 1; threads <= 3; threads++) {
            fh_pool *pool;
            assert_int_equal(fh_pool_new(&pool, threads, NULL), FH_OK);
            memset(got, 0xee, ROWS * sizeof *got);
            fh_matvec(pool, &rows, x, got);
            for (size_t r = 0; r < ROWS; r++) assert_true(same_bits(want[r], got[r]));
            fh_pool_free(pool);
        }
    }
    fh_rows none = {data, FH_F32, 0, COLS, COLS * 4};
    fh_matvec(NULL, &none, x, got);
    assert_non_null(fh_isa_name());
    free(data), free(want), free(got);
}

static void the_order_of_sums_is_the_stated_one(void **state)
{
    /* Worked out beside the kernels: lanes of 16, fma, tree of 8, 4, 2, 1. */
    for (size_t d = 1; d < 70; d++) {
        float row[70], x[70], lane[16] = {0}, got;
        for (size_t i = 0; i < d; i++) row[i] = number(2), x[i] = number(2);
        for (size_t i = 0; i < fh_round_up(d, 16); i++) lane[i % 16] = fmaf(i < d ? row[i] : 0, i < d ? x[i] : 0, lane[i % 16]);
        float a[8], b[4];
        for (int j = 0; j < 8; j++) a[j] = lane[j] + lane[j + 8];
        for (int j = 0; j < 4; j++) b[j] = a[j] + a[j + 4];
        fh_rows rows = {row, FH_F32, 1, d, sizeof row};
        fh_matvec(NULL, &rows, x, &got);
        assert_true(same_bits(got, (b[0] + b[2]) + (b[1] + b[3])));
    }
}

int main(void)
{
    fh_rng_seed(&rng, 7, 0);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_table_gives_the_bits_of_the_definition),
        cmocka_unit_test(rows_one_behind_the_other_give_the_bits_of_the_definition),
        cmocka_unit_test(every_table_gives_the_bits_of_the_definition_for_int4),
        cmocka_unit_test(q8_rows_give_the_bits_of_what_they_decode_to),
        cmocka_unit_test(q8_rows_and_a_rounded_state_give_the_bits_of_the_definition),
        cmocka_unit_test(q8_rows_and_a_state_that_cannot_be_rounded),
        cmocka_unit_test(long_rows_of_extremes_do_not_overflow),
        cmocka_unit_test(nothing_past_a_row_is_read),
        cmocka_unit_test(a_state_keeps_fifteen_bits),
        cmocka_unit_test(fh_isa_is_obeyed_or_refused_by_name),
        cmocka_unit_test(a_product_is_the_same_for_any_number_of_threads),
        cmocka_unit_test(the_order_of_sums_is_the_stated_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
