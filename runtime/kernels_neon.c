/* kernels_neon.c: AArch64 Advanced SIMD, with and without the dot product instructions (SDOT).
 *
 * The 16 lanes of a float sum are four registers.  As on the other instruction sets, one state takes row after row, because that is how
 * memory is fastest; two states and more take two rows times two states (int8 with SDOT: four rows), for which 32 registers are enough.
 * Tails go through a zero-filled copy, so that nothing past the row is read.  Checked bit for bit under emulation; not yet timed on
 * hardware, so that the distance of the prefetch is the one that was measured on x86.
 */
#include "runtime/kernels.h"
#include "runtime/kernels_lanes.h"

#if defined(__aarch64__)

#include <string.h>


enum { LINE = 64 };

/* ---- float rows -------------------------------------------------------------------------------------------------- */

/* By bytes: rows lie anywhere, and a float pointer would promise more. */
INLINE float32x4_t load4(const void *p) { return vreinterpretq_f32_u8(vld1q_u8(p)); }

/* Sixteen elements of a row, from element i on, widened. */
INLINE void load16(float32x4_t v[4], fh_dtype t, const uint8_t *p, size_t i)
{
    if (t == FH_F32) {
        UNROLL for (int q = 0; q < 4; q++) v[q] = load4(p + 4 * i + 16 * q);
        return;
    }
    UNROLL for (int q = 0; q < 2; q++) {
        uint16x8_t h = vreinterpretq_u16_u8(vld1q_u8(p + 2 * i + 16 * q)), zero = vdupq_n_u16(0);
        if (t == FH_BF16) {
            v[2 * q] = vreinterpretq_f32_u16(vzip1q_u16(zero, h)); /* the high half of a float, the low half zero */
            v[2 * q + 1] = vreinterpretq_f32_u16(vzip2q_u16(zero, h));
        } else {
            v[2 * q] = vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(h)));
            v[2 * q + 1] = vcvt_high_f32_f16(vreinterpretq_f16_u16(h));
        }
    }
}

/* Row elements from `full` on and zeros after them. */
INLINE void load_tail(float32x4_t v[4], fh_dtype t, const uint8_t *row, size_t full, size_t d)
{
    uint8_t tail[64] = {0};
    size_t size = t == FH_F32 ? 4 : 2;
    memcpy(tail, row + full * size, (d - full) * size);
    load16(v, t, tail, 0);
}

/* One row times one state; `next` is what comes after the row. */
INLINE float float_row(fh_dtype t, const uint8_t *row, const void *next, size_t d, const float *x)
{
    size_t size = t == FH_F32 ? 4 : 2, full = d & ~(size_t)15, turn = full * size > FH_AHEAD ? full - FH_AHEAD / size : 0;
    uintptr_t ahead = (uintptr_t)row + FH_AHEAD;
    float32x4_t acc[4], v[4], w[4];
    UNROLL for (int q = 0; q < 4; q++) acc[q] = vdupq_n_f32(0);
    for (size_t i = 0, end = turn; i < full; end = full, ahead = (uintptr_t)next - turn * size)
        for (; i < end; i += 16) {
            if (t == FH_F32 || i % 32 == 0) __builtin_prefetch((const char *)(ahead + i * size));
            load16(v, t, row, i);
            UNROLL for (int q = 0; q < 4; q++) acc[q] = vfmaq_f32(acc[q], v[q], load4(x + i + 4 * q));
        }
    if (full < d) {
        load_tail(v, t, row, full, d);
        load_tail(w, FH_F32, (const uint8_t *)x, full, d);
        UNROLL for (int q = 0; q < 4; q++) acc[q] = vfmaq_f32(acc[q], v[q], w[q]);
    }
    return sum_neon(acc);
}

/* Two rows times two states, the rows after them prefetched meanwhile. */
INLINE void float_block(fh_dtype t, const void *const *rows, size_t d, const fh_state *const *states, float *out, size_t ldo,
                        const uint8_t *next)
{
    const uint8_t *row[2];
    const float *x[2];
    float32x4_t acc[2][2][4], v[2][4], w[4];
    size_t full = d & ~(size_t)15, size = t == FH_F32 ? 4 : 2;
    UNROLL for (int i = 0; i < 2; i++) row[i] = rows[i], x[i] = states[i]->f;
    UNROLL for (int i = 0; i < 16; i++) acc[i / 8][i / 4 % 2][i % 4] = vdupq_n_f32(0);
    for (size_t i = 0; i < full; i += 16) {
        if (next) __builtin_prefetch((const char *)next + 2 * i * size);
        if (next && t == FH_F32) __builtin_prefetch((const char *)next + 2 * i * size + LINE);
        UNROLL for (int r = 0; r < 2; r++) load16(v[r], t, row[r], i);
        UNROLL for (int s = 0; s < 2; s++) {
            UNROLL for (int q = 0; q < 4; q++) {
                float32x4_t xs = load4(x[s] + i + 4 * q);
                UNROLL for (int r = 0; r < 2; r++) acc[s][r][q] = vfmaq_f32(acc[s][r][q], v[r][q], xs);
            }
        }
    }
    if (full < d) {
        UNROLL for (int r = 0; r < 2; r++) load_tail(v[r], t, row[r], full, d);
        UNROLL for (int s = 0; s < 2; s++) {
            load_tail(w, FH_F32, (const uint8_t *)x[s], full, d);
            UNROLL for (int i = 0; i < 8; i++) acc[s][i / 4][i % 4] = vfmaq_f32(acc[s][i / 4][i % 4], v[i / 4][i % 4], w[i % 4]);
        }
    }
    UNROLL for (int s = 0; s < 2; s++) {
        UNROLL for (int r = 0; r < 2; r++) out[(size_t)s * ldo + (size_t)r] = sum_neon(acc[s][r]);
    }
}

INLINE void float_rows(fh_dtype t, const void *const *rows, size_t n, size_t d, const fh_state *const *states, size_t m, float *out,
                       size_t ldo)
{
    size_t blocked = n & ~(size_t)1, m2 = m & ~(size_t)1;
    for (size_t r = 0; r < blocked; r += 2)
        for (size_t s = 0; s < m2; s += 2) float_block(t, rows + r, d, states + s, out + s * ldo + r, ldo, s == 0 ? rows[r + 2] : NULL);
    for (size_t r = 0; r < n; r++)
        for (size_t s = r < blocked ? m2 : 0; s < m; s++) out[s * ldo + r] = float_row(t, rows[r], rows[r + 1], d, states[s]->f);
}

static void fh_dot_f32_neon(const void *const *rows, const float *scales, size_t n, size_t d, const fh_state *const *states, size_t m,
                            float *out, size_t ldo)
{
    float_rows(FH_F32, rows, n, d, states, m, out, ldo);
}

static void fh_dot_bf16_neon(const void *const *rows, const float *scales, size_t n, size_t d, const fh_state *const *states, size_t m,
                             float *out, size_t ldo)
{
    float_rows(FH_BF16, rows, n, d, states, m, out, ldo);
}

static void fh_dot_f16_neon(const void *const *rows, const float *scales, size_t n, size_t d, const fh_state *const *states, size_t m,
                            float *out, size_t ldo)
{
    float_rows(FH_F16, rows, n, d, states, m, out, ldo);
}

/* ---- int8 rows ------------------------------------------------------------------------------------------------------ */

/* SDOT multiplies signed bytes: the row times both halves of q, sums[0] of the high ones, sums[1] of the low.  A lane takes four products
 * of at most 2^14 every 16 elements: 2^18 elements fit an int32.  Without it q is taken whole: sums[0..3] take one product each of
 * at most 128 * 32639 every 16 elements: 512 times fit. */
enum { SDOT_BLOCK = 1 << 18, MADD_BLOCK = 512 * 16 };

INLINE void take16(bool dot, int32x4_t sums[4], int8x16_t v, const fh_state *s, size_t i)
{
    if (dot) {
        sums[0] = fh_sdot(sums[0], v, vld1q_s8(s->hi + i));
        sums[1] = fh_sdot(sums[1], v, vld1q_s8(s->lo + i));
    } else {
        int16x8_t low = vmovl_s8(vget_low_s8(v)), high = vmovl_high_s8(v), q0 = vld1q_s16(s->q + i), q1 = vld1q_s16(s->q + i + 8);
        sums[0] = vmlal_s16(sums[0], vget_low_s16(low), vget_low_s16(q0));
        sums[1] = vmlal_high_s16(sums[1], low, q0);
        sums[2] = vmlal_s16(sums[2], vget_low_s16(high), vget_low_s16(q1));
        sums[3] = vmlal_high_s16(sums[3], high, q1);
    }
}

/* R rows times S states, U times 16 elements at a time with sums of their own, since a sum waits for the one before; next: what to
 * prefetch meanwhile, or NULL. */
INLINE void i8_block(bool dot, int R, int S, int U, const void *const *rows, const float *scales, size_t d,
                     const fh_state *const *states, float *out, size_t ldo, const uint8_t *next)
{
    const size_t block = dot ? SDOT_BLOCK : MADD_BLOCK, step = 16 * (size_t)U;
    const uint8_t *row[4];
    int64_t total[2][4];
    UNROLL for (int r = 0; r < R; r++) row[r] = rows[r];
    UNROLL for (int s = 0; s < S; s++) {
        UNROLL for (int r = 0; r < R; r++) total[s][r] = 0;
    }
    for (size_t begin = 0; begin < d; begin += block) {
        size_t end = fh_min(d, begin + block), i = begin;
        int32x4_t sums[2][4][4][4]; /* by state, row, u; SDOT uses two of the last four */
        UNROLL for (int s = 0; s < S; s++) {
            UNROLL for (int r = 0; r < R; r++) {
                UNROLL for (int u = 0; u < U; u++) {
                    UNROLL for (int a = 0; a < 4; a++) sums[s][r][u][a] = vdupq_n_s32(0);
                }
            }
        }
        for (; i + step <= end; i += step) {
            if (next && (size_t)R * i % LINE == 0) {
                UNROLL for (size_t line = 0; line < (size_t)R * step; line += LINE) __builtin_prefetch((const char *)next + (size_t)R * i + line);
            }
            UNROLL for (int r = 0; r < R; r++) {
                UNROLL for (int u = 0; u < U; u++) {
                    int8x16_t v = vreinterpretq_s8_u8(vld1q_u8(row[r] + i + 16 * u));
                    UNROLL for (int s = 0; s < S; s++) take16(dot, sums[s][r][u], v, states[s], i + 16 * (size_t)u);
                }
            }
        }
        for (; i < end; i += 16) { /* past the state come its own zeros */
            UNROLL for (int r = 0; r < R; r++) {
                uint8_t tail[16] = {0};
                memcpy(tail, row[r] + i, fh_min(16, end - i));
                int8x16_t v = vreinterpretq_s8_u8(vld1q_u8(tail));
                UNROLL for (int s = 0; s < S; s++) take16(dot, sums[s][r][0], v, states[s], i);
            }
        }
        UNROLL for (int s = 0; s < S; s++) {
            UNROLL for (int r = 0; r < R; r++) {
                UNROLL for (int u = 0; u < U; u++) {
                    const int32x4_t *a = sums[s][r][u];
                    if (dot) total[s][r] += 256 * vaddlvq_s32(a[0]) + vaddlvq_s32(a[1]);
                    else total[s][r] += vaddlvq_s32(a[0]) + vaddlvq_s32(a[1]) + vaddlvq_s32(a[2]) + vaddlvq_s32(a[3]);
                }
            }
        }
    }
    UNROLL for (int s = 0; s < S; s++) {
        UNROLL for (int r = 0; r < R; r++) out[(size_t)s * ldo + (size_t)r] = fh_i8_result(total[s][r], scales[r], states[s]->scale);
    }
}

/* Blocks of R rows times two states, what is left one by one. */
INLINE void i8_rows(bool dot, int R, const void *const *rows, const float *scales, size_t n, size_t d, const fh_state *const *states,
                    size_t m, float *out, size_t ldo)
{
    size_t blocked = n - n % (size_t)R, m2 = m & ~(size_t)1;
    for (size_t r = 0; r < blocked; r += (size_t)R)
        for (size_t s = 0; s < m2; s += 2)
            i8_block(dot, R, 2, 1, rows + r, scales + r, d, states + s, out + s * ldo + r, ldo, s == 0 ? rows[r + (size_t)R] : NULL);
    for (size_t r = 0; r < n; r++)
        for (size_t s = r < blocked ? m2 : 0; s < m; s++)
            i8_block(dot, 1, 1, dot ? 4 : 2, rows + r, scales + r, d, states + s, out + s * ldo + r, ldo, s == 0 ? rows[r + 1] : NULL);
}

static void fh_dot_i8_neon(const void *const *rows, const float *scales, size_t n, size_t d, const fh_state *const *states, size_t m,
                           float *out, size_t ldo)
{
    i8_rows(false, 2, rows, scales, n, d, states, m, out, ldo);
}

FH_TARGET_SDOT static void fh_dot_i8_neon_dotprod(const void *const *rows, const float *scales, size_t n, size_t d,
                                                  const fh_state *const *states, size_t m, float *out, size_t ldo)
{
    i8_rows(true, 4, rows, scales, n, d, states, m, out, ldo);
}

/* ---- int4 rows ------------------------------------------------------------------------------------------------------ */

/* 16 values times 16 elements of the state from i on, summed in fours; at most 4 * 8 * 32639 each, which a float holds exactly. */
INLINE float32x4_t quads(bool dot, int8x16_t v, const fh_state *s, size_t i)
{
    const int32x4_t zero = vdupq_n_s32(0);
    if (dot) return vcvtq_f32_s32(vaddq_s32(vshlq_n_s32(fh_sdot(zero, v, vld1q_s8(s->hi + i)), 8), fh_sdot(zero, v, vld1q_s8(s->lo + i))));
    int16x8_t low = vmovl_s8(vget_low_s8(v)), high = vmovl_high_s8(v), q0 = vld1q_s16(s->q + i), q1 = vld1q_s16(s->q + i + 8);
    int32x4_t a = vpaddq_s32(vmull_s16(vget_low_s16(low), vget_low_s16(q0)), vmull_high_s16(low, q0));
    int32x4_t b = vpaddq_s32(vmull_s16(vget_low_s16(high), vget_low_s16(q1)), vmull_high_s16(high, q1));
    return vcvtq_f32_s32(vpaddq_s32(a, b));
}

INLINE void i4_rows(bool dot, const void *const *rows, const void *const *scales, size_t n, size_t d, const fh_state *const *states, size_t m,
                    float *out, size_t ldo)
{
    size_t lines = (d + FH_LINE_VALUES - 1) / FH_LINE_VALUES, groups = (d + FH_GROUP - 1) / FH_GROUP;
    for (size_t r = 0; r < n; r++)
        for (size_t s = 0; s < m; s++) {
            const uint8_t *row = rows[r];
            float32x4_t acc[8], lanes[4]; /* acc: 4 lanes each of the 32 */
            UNROLL for (int k = 0; k < 8; k++) acc[k] = vdupq_n_f32(0);
            for (size_t l = 0; l < lines; l++) {
                uint16_t four[4] = {0}; /* the scales of this line's groups; no more are read than there are */
                memcpy(four, (const uint8_t *)scales[r] + 8 * l, groups - 4 * l >= 4 ? 8 : 2 * (groups - 4 * l));
                float each[4];
                vst1q_f32(each, vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(vld1_u16(four)), 16)));
                if (s == 0) __builtin_prefetch((const char *)((uintptr_t)rows[r + 1] + LINE * l));
                UNROLL for (int k = 0; k < 4; k++) {
                    int8x16_t v = vreinterpretq_s8_u8(vld1q_u8(row + LINE * l + 16 * k));
                    size_t i = FH_LINE_VALUES * l + 16 * (size_t)k;
                    acc[k] = vfmaq_n_f32(acc[k], quads(dot, vshrq_n_s8(vshlq_n_s8(v, 4), 4), states[s], i), each[k / 2]);
                    acc[4 + k] = vfmaq_n_f32(acc[4 + k], quads(dot, vshrq_n_s8(v, 4), states[s], i + 64), each[2 + k / 2]);
                }
            }
            UNROLL for (int k = 0; k < 4; k++) lanes[k] = vaddq_f32(acc[k], acc[k + 4]);
            out[s * ldo + r] = (float)((double)sum_neon(lanes) * states[s]->scale);
        }
}

void fh_dot_i4_neon(const void *const *rows, const void *const *scales, size_t n, size_t d, const fh_state *const *states, size_t m, float *out,
                    size_t ldo)
{
    i4_rows(false, rows, scales, n, d, states, m, out, ldo);
}

FH_TARGET_SDOT void fh_dot_i4_neon_dotprod(const void *const *rows, const void *const *scales, size_t n, size_t d,
                                           const fh_state *const *states, size_t m, float *out, size_t ldo)
{
    i4_rows(true, rows, scales, n, d, states, m, out, ldo);
}

const fh_kernels fh_kernels_neon = {
    "neon", "", {[FH_F32] = fh_dot_f32_neon, [FH_BF16] = fh_dot_bf16_neon, [FH_F16] = fh_dot_f16_neon, [FH_I8] = fh_dot_i8_neon},
    fh_dot_q8_neon, fh_dot_q8_rounded_neon, fh_dot_i4_neon, NULL};
const fh_kernels fh_kernels_neon_dotprod = {
    "neon", "dotprod", {[FH_F32] = fh_dot_f32_neon, [FH_BF16] = fh_dot_bf16_neon, [FH_F16] = fh_dot_f16_neon,
                        [FH_I8] = fh_dot_i8_neon_dotprod},
    fh_dot_q8_neon, fh_dot_q8_rounded_neon, fh_dot_i4_neon_dotprod, NULL};
#else
typedef int fh_kernels_neon_not_here; /* ISO C wants a declaration */
#endif
