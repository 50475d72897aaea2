/* kernels_q8.c: dot products of FH_Q8_0 rows, on every instruction set.
 *
 * A block is 34 bytes: a float16 scale and 32 int8.  Scale times int8 is a float32 exactly (11 bits times 8), so that a row is its decoded
 * self: the sums are those of float rows (kernels.h), bit for bit those of a float32 row with the decoded values.
 *
 * A state that comes alone, as in decoding, may be rounded to 16 bits in each block instead (fh_state_blocks): a block is then one product of integers, one
 * conversion and one fma, 3 cycles of a Zen 4 instead of 5, which is what is slower than memory (docs/decisions/0013).
 *
 * Two rows side by side, four where rows are long: a block gives each lane two fma that wait for each other, 8 cycles for 34 bytes, which alone is slower than
 * memory.  What comes after the two is prefetched meanwhile in the order of its addresses, which is how memory is fastest.
 */
#include "runtime/kernels.h"
#include "runtime/kernels_lanes.h"

#include <math.h>
#include <string.h>


enum { LANES = 16 };

/* What every table does with its block of R rows and S states: pairs of rows with `many` states; four long rows (FH_LONG) with one; what is left
 * one by one. */
#define ROWS_AND_STATES(block, many)                                                                                            \
    do {                                                                                                                         \
        size_t r = 0, s;                                                                                                         \
        for (; d > FH_LONG && m < (many) && r + 4 <= n; r += 4)                                                                  \
            for (s = 0; s < m; s++) block(4, 1, rows + r, d, states + s, out + s * ldo + r, ldo);                                \
        for (; r + 2 <= n; r += 2) {                                                                                             \
            for (s = 0; s + (many) <= m; s += (many)) block(2, (many), rows + r, d, states + s, out + s * ldo + r, ldo);         \
            for (; s < m; s++) block(2, 1, rows + r, d, states + s, out + s * ldo + r, ldo);                                     \
        }                                                                                                                        \
        for (s = 0; r < n && s < m; s++) block(1, 1, rows + r, d, states + s, out + s * ldo + r, ldo);                           \
    } while (0)

static inline uint16_t scale_of(const uint8_t *block)
{
    uint16_t half;
    memcpy(&half, block, sizeof half);
    return half;
}

static float dot_ref(const uint8_t *row, size_t d, const float *x)
{
    float lane[LANES] = {0}, v[FH_Q8_VALUES];
    for (size_t i = 0; i < d; i += FH_Q8_VALUES, row += FH_Q8_BYTES) {
        fh_dec_row(FH_Q8_0, row, NULL, FH_Q8_VALUES, v);
        for (size_t j = 0; j < FH_Q8_VALUES; j++) lane[j % LANES] = fmaf(v[j], x[i + j], lane[j % LANES]);
    }
    for (size_t half = LANES / 2; half > 0; half /= 2)
        for (size_t j = 0; j < half; j++) lane[j] += lane[j + half];
    return lane[0];
}

void fh_dot_q8_ref(const void *const *rows, const float *scales, size_t n, size_t d, const fh_state *const *states, size_t m,
                          float *out, size_t ldo)
{
    for (size_t s = 0; s < m; s++)
        for (size_t r = 0; r < n; r++) out[s * ldo + r] = dot_ref(rows[r], d, states[s]->f);
}

static float rounded_ref(const uint8_t *row, size_t d, const fh_state *x)
{
    float lane[LANES] = {0};
    for (size_t b = 0; b < d / FH_Q8_VALUES; b++, row += FH_Q8_BYTES) {
        const int8_t *w = (const int8_t *)row + 2;
        const int16_t *q = x->block_q + b * FH_Q8_VALUES;
        float scale = fh_f16_to_f32(scale_of(row)) * x->block_scale[b];
        for (size_t j = 0; j < LANES; j++) lane[j] = fmaf((float)(w[2 * j] * q[2 * j] + w[2 * j + 1] * q[2 * j + 1]), scale, lane[j]);
    }
    for (size_t half = LANES / 2; half > 0; half /= 2)
        for (size_t j = 0; j < half; j++) lane[j] += lane[j + half];
    return lane[0];
}

void fh_dot_q8_rounded_ref(const void *const *rows, const float *scales, size_t n, size_t d, const fh_state *const *states, size_t m,
                           float *out, size_t ldo)
{
    for (size_t r = 0; r < n; r++) out[r] = rounded_ref(rows[r], d, states[0]);
}

#if defined(__x86_64__)

/* ---- AVX-512 ----------------------------------------------------------------------------------------------------- */

INLINE TARGET_512 __m512 half_block_512(const uint8_t *block, int half, __m512 scale)
{
    __m128i q = _mm_loadu_si128((const __m128i *)(const void *)(block + 2 + 16 * half));
    return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q)), scale);
}

INLINE TARGET_512 void block_512(int R, int S, const void *const *rows, size_t d, const fh_state *const *states, float *out, size_t ldo)
{
    const uint8_t *row[4];
    const float *x[4];
    __m512 acc[4][4];
    uintptr_t ahead = (uintptr_t)rows[R];
    UNROLL for (int r = 0; r < R; r++) row[r] = rows[r];
    UNROLL for (int s = 0; s < S; s++) {
        x[s] = states[s]->f;
        UNROLL for (int r = 0; r < R; r++) acc[s][r] = _mm512_setzero_ps();
    }
    for (size_t i = 0; i < d; i += FH_Q8_VALUES) {
        UNROLL for (int r = 0; r < R; r++) {
            if (R == 4) _mm_prefetch((const char *)ahead, _MM_HINT_T1); /* four long rows more do not fit the first cache */
            else _mm_prefetch((const char *)ahead, _MM_HINT_T0);
            ahead += FH_Q8_BYTES;
            __m512 scale = _mm512_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(scale_of(row[r]))));
            __m512 lo = half_block_512(row[r], 0, scale), hi = half_block_512(row[r], 1, scale);
            UNROLL for (int s = 0; s < S; s++) {
                acc[s][r] = _mm512_fmadd_ps(lo, _mm512_loadu_ps(x[s] + i), acc[s][r]);
                acc[s][r] = _mm512_fmadd_ps(hi, _mm512_loadu_ps(x[s] + i + 16), acc[s][r]);
            }
            row[r] += FH_Q8_BYTES;
        }
    }
    UNROLL for (int s = 0; s < S; s++) {
        UNROLL for (int r = 0; r < R; r++) out[(size_t)s * ldo + (size_t)r] = sum_512(acc[s][r]);
    }
}

TARGET_512 void fh_dot_q8_avx512(const void *const *rows, const float *scales, size_t n, size_t d, const fh_state *const *states,
                                        size_t m, float *out, size_t ldo)
{
    ROWS_AND_STATES(block_512, 4);
}

/* far: into the second cache. */
INLINE TARGET_512 void rounded_512(int R, bool far, const void *const *rows, size_t d, const fh_state *state, float *out)
{
    const uint8_t *row[4];
    __m512 acc[4];
    uintptr_t ahead = (uintptr_t)rows[R];
    const int16_t *q = state->block_q;
    UNROLL for (int r = 0; r < R; r++) row[r] = rows[r], acc[r] = _mm512_setzero_ps();
    for (size_t b = 0; b < d / FH_Q8_VALUES; b++, q += FH_Q8_VALUES) {
        __m512i x = _mm512_loadu_si512(q);
        __m128 x_scale = _mm_load_ss(state->block_scale + b);
        UNROLL for (int r = 0; r < R; r++) {
            if (far) _mm_prefetch((const char *)ahead, _MM_HINT_T1);
            else _mm_prefetch((const char *)ahead, _MM_HINT_T0);
            ahead += FH_Q8_BYTES;
            __m512i w = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)(row[r] + 2)));
            __m512 scale = _mm512_broadcastss_ps(_mm_mul_ss(_mm_cvtph_ps(_mm_cvtsi32_si128(scale_of(row[r]))), x_scale));
            acc[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_madd_epi16(w, x)), scale, acc[r]);
            row[r] += FH_Q8_BYTES;
        }
    }
    UNROLL for (int r = 0; r < R; r++) out[r] = sum_512(acc[r]);
}

TARGET_512 void fh_dot_q8_rounded_avx512(const void *const *rows, const float *scales, size_t n, size_t d, const fh_state *const *states, size_t m,
                                         float *out, size_t ldo)
{
    size_t r = 0;
    for (; d > FH_LONG && r + 4 <= n; r += 4) rounded_512(4, true, rows + r, d, states[0], out + r);
    for (; r + 2 <= n; r += 2) rounded_512(2, false, rows + r, d, states[0], out + r);
    if (r < n) rounded_512(1, false, rows + r, d, states[0], out + r);
}

TARGET_512 void fh_dot_q8_rounded_avx512_cached(const void *const *rows, const float *scales, size_t n, size_t d, const fh_state *const *states,
                                                size_t m, float *out, size_t ldo)
{
    size_t r = 0;
    for (; r + 4 <= n; r += 4) rounded_512(4, false, rows + r, d, states[0], out + r);
    if (r < n) fh_dot_q8_rounded_avx512(rows + r, scales, n - r, d, states, m, out + r, ldo);
}

/* ---- AVX2 -------------------------------------------------------------------------------------------------------- */

/* Eight values from byte 2 + at on. */
INLINE TARGET_256 __m256 eighth_256(const uint8_t *block, int at, __m256 scale)
{
    __m128i q = _mm_loadl_epi64((const __m128i *)(const void *)(block + 2 + at));
    return _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q)), scale);
}

INLINE TARGET_256 void block_256(int R, int S, const void *const *rows, size_t d, const fh_state *const *states, float *out, size_t ldo)
{
    const uint8_t *row[4];
    const float *x[2];
    __m256 acc[2][4][2]; /* by state, row, half of the lanes */
    uintptr_t ahead = (uintptr_t)rows[R];
    UNROLL for (int r = 0; r < R; r++) row[r] = rows[r];
    UNROLL for (int s = 0; s < S; s++) {
        x[s] = states[s]->f;
        UNROLL for (int r = 0; r < R; r++) acc[s][r][0] = acc[s][r][1] = _mm256_setzero_ps();
    }
    for (size_t i = 0; i < d; i += FH_Q8_VALUES) {
        UNROLL for (int r = 0; r < R; r++) {
            if (R == 4) _mm_prefetch((const char *)ahead, _MM_HINT_T1); /* four long rows more do not fit the first cache */
            else _mm_prefetch((const char *)ahead, _MM_HINT_T0);
            ahead += FH_Q8_BYTES;
            __m256 scale = _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(scale_of(row[r]))));
            UNROLL for (int e = 0; e < 4; e++) {
                __m256 v = eighth_256(row[r], 8 * e, scale);
                UNROLL for (int s = 0; s < S; s++) acc[s][r][e % 2] = _mm256_fmadd_ps(v, _mm256_loadu_ps(x[s] + i + 8 * e), acc[s][r][e % 2]);
            }
            row[r] += FH_Q8_BYTES;
        }
    }
    UNROLL for (int s = 0; s < S; s++) {
        UNROLL for (int r = 0; r < R; r++) out[(size_t)s * ldo + (size_t)r] = sum_256(acc[s][r][0], acc[s][r][1]);
    }
}

TARGET_256 void fh_dot_q8_avx2(const void *const *rows, const float *scales, size_t n, size_t d, const fh_state *const *states,
                                      size_t m, float *out, size_t ldo)
{
    ROWS_AND_STATES(block_256, 2);
}

INLINE TARGET_256 void rounded_256(int R, const void *const *rows, size_t d, const fh_state *state, float *out)
{
    const uint8_t *row[2];
    __m256 acc[2][2];
    uintptr_t ahead = (uintptr_t)rows[R];
    const int16_t *q = state->block_q;
    UNROLL for (int r = 0; r < R; r++) row[r] = rows[r], acc[r][0] = acc[r][1] = _mm256_setzero_ps();
    for (size_t b = 0; b < d / FH_Q8_VALUES; b++, q += FH_Q8_VALUES) {
        __m128 x_scale = _mm_load_ss(state->block_scale + b);
        UNROLL for (int r = 0; r < R; r++) {
            _mm_prefetch((const char *)ahead, _MM_HINT_T0);
            ahead += FH_Q8_BYTES;
            __m256 scale = _mm256_broadcastss_ps(_mm_mul_ss(_mm_cvtph_ps(_mm_cvtsi32_si128(scale_of(row[r]))), x_scale));
            UNROLL for (int h = 0; h < 2; h++) {
                __m256i w = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)(row[r] + 2 + 16 * h)));
                __m256i x = _mm256_loadu_si256((const __m256i *)(const void *)(q + 16 * h));
                acc[r][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_madd_epi16(w, x)), scale, acc[r][h]);
            }
            row[r] += FH_Q8_BYTES;
        }
    }
    UNROLL for (int r = 0; r < R; r++) out[r] = sum_256(acc[r][0], acc[r][1]);
}

TARGET_256 void fh_dot_q8_rounded_avx2(const void *const *rows, const float *scales, size_t n, size_t d, const fh_state *const *states, size_t m,
                                       float *out, size_t ldo)
{
    size_t r = 0;
    for (; r + 2 <= n; r += 2) rounded_256(2, rows + r, d, states[0], out + r);
    if (r < n) rounded_256(1, rows + r, d, states[0], out + r);
}

#elif defined(__aarch64__)

/* ---- Advanced SIMD ----------------------------------------------------------------------------------------------- */

INLINE float32x4_t load4(const void *p) { return vreinterpretq_f32_u8(vld1q_u8(p)); }

INLINE void block_neon(int R, int S, const void *const *rows, size_t d, const fh_state *const *states, float *out, size_t ldo)
{
    const uint8_t *row[4];
    const float *x[2];
    float32x4_t acc[2][4][4]; /* by state, row, quarter of the lanes */
    uintptr_t ahead = (uintptr_t)rows[R];
    UNROLL for (int r = 0; r < R; r++) row[r] = rows[r];
    UNROLL for (int s = 0; s < S; s++) {
        x[s] = states[s]->f;
        UNROLL for (int r = 0; r < R; r++) {
            UNROLL for (int q = 0; q < 4; q++) acc[s][r][q] = vdupq_n_f32(0);
        }
    }
    for (size_t i = 0; i < d; i += FH_Q8_VALUES) {
        UNROLL for (int r = 0; r < R; r++) {
            __builtin_prefetch((const char *)ahead);
            ahead += FH_Q8_BYTES;
            float scale = vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(scale_of(row[r])))), 0);
            UNROLL for (int h = 0; h < 2; h++) {
                int8x16_t b = vreinterpretq_s8_u8(vld1q_u8(row[r] + 2 + 16 * h));
                int16x8_t low = vmovl_s8(vget_low_s8(b)), high = vmovl_high_s8(b);
                float32x4_t v[4] = {vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_high_s16(low)),
                                    vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_high_s16(high))};
                UNROLL for (int q = 0; q < 4; q++) {
                    v[q] = vmulq_n_f32(v[q], scale);
                    UNROLL for (int s = 0; s < S; s++) acc[s][r][q] = vfmaq_f32(acc[s][r][q], v[q], load4(x[s] + i + 16 * h + 4 * q));
                }
            }
            row[r] += FH_Q8_BYTES;
        }
    }
    UNROLL for (int s = 0; s < S; s++) {
        UNROLL for (int r = 0; r < R; r++) out[(size_t)s * ldo + (size_t)r] = sum_neon(acc[s][r]);
    }
}

void fh_dot_q8_neon(const void *const *rows, const float *scales, size_t n, size_t d, const fh_state *const *states, size_t m,
                           float *out, size_t ldo)
{
    ROWS_AND_STATES(block_neon, 2);
}

INLINE void rounded_neon(int R, const void *const *rows, size_t d, const fh_state *state, float *out)
{
    const uint8_t *row[2];
    float32x4_t acc[2][4];
    uintptr_t ahead = (uintptr_t)rows[R];
    const int16_t *q = state->block_q;
    UNROLL for (int r = 0; r < R; r++) {
        row[r] = rows[r];
        UNROLL for (int j = 0; j < 4; j++) acc[r][j] = vdupq_n_f32(0);
    }
    for (size_t b = 0; b < d / FH_Q8_VALUES; b++, q += FH_Q8_VALUES) {
        UNROLL for (int r = 0; r < R; r++) {
            __builtin_prefetch((const char *)ahead);
            ahead += FH_Q8_BYTES;
            float scale = vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(scale_of(row[r])))), 0) * state->block_scale[b];
            UNROLL for (int j = 0; j < 4; j++) { /* eight elements: four lanes */
                int16x8_t w = vmovl_s8(vreinterpret_s8_u8(vld1_u8(row[r] + 2 + 8 * j))), x = vld1q_s16(q + 8 * j);
                int32x4_t low = vmull_s16(vget_low_s16(w), vget_low_s16(x)), high = vmull_high_s16(w, x);
                acc[r][j] = vfmaq_n_f32(acc[r][j], vcvtq_f32_s32(vpaddq_s32(low, high)), scale);
            }
            row[r] += FH_Q8_BYTES;
        }
    }
    UNROLL for (int r = 0; r < R; r++) out[r] = sum_neon(acc[r]);
}

void fh_dot_q8_rounded_neon(const void *const *rows, const float *scales, size_t n, size_t d, const fh_state *const *states, size_t m, float *out,
                            size_t ldo)
{
    size_t r = 0;
    for (; r + 2 <= n; r += 2) rounded_neon(2, rows + r, d, states[0], out + r);
    if (r < n) rounded_neon(1, rows + r, d, states[0], out + r);
}

#endif
