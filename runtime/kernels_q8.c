/* kernels_q8.c: dot products of FH_Q8_0 rows, on every instruction set.
 *
 * A block is 34 bytes: a float16 scale and 32 int8.  Scale times int8 is a float32 exactly (11 bits times 8), so that a row is its decoded
 * self: the sums are those of float rows (kernels.h), bit for bit those of a float32 row with the decoded values.  Rounding the state to
 * integers instead, as for int8 rows, would save a multiplication and cost that equality; both wait for memory.
 *
 * Two rows side by side, four where rows are long: a block gives each lane two fma that wait for each other, 8 cycles for 34 bytes, which alone is slower than
 * memory.  What comes after the two is prefetched meanwhile in the order of its addresses, which is how memory is fastest.
 */
#include "runtime/kernels.h"

#include <math.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include "base/neon.h"
#endif

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

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

#if defined(__x86_64__)

/* ---- AVX-512 ----------------------------------------------------------------------------------------------------- */

#define TARGET_512 __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")))

INLINE TARGET_512 float sum_512(__m512 a)
{
    __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}

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

/* ---- AVX2 -------------------------------------------------------------------------------------------------------- */

#define TARGET_256 __attribute__((target("avx2,fma,f16c")))

INLINE TARGET_256 float sum_256(__m256 lo, __m256 hi)
{
    __m256 b = _mm256_add_ps(lo, hi);
    __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}

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
        UNROLL for (int r = 0; r < R; r++) {
            const float32x4_t *a = acc[s][r];
            float32x4_t four = vaddq_f32(vaddq_f32(a[0], a[2]), vaddq_f32(a[1], a[3]));
            float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            out[(size_t)s * ldo + (size_t)r] = vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
        }
    }
}

void fh_dot_q8_neon(const void *const *rows, const float *scales, size_t n, size_t d, const fh_state *const *states, size_t m,
                           float *out, size_t ldo)
{
    ROWS_AND_STATES(block_neon, 2);
}

#endif
