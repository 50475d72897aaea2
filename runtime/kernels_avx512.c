/* kernels_avx512.c: AVX-512 (F, BW, VL, DQ), with and without VNNI.
 *
 * Float rows: one accumulator of 16 lanes for each row and state, eight rows (or four rows of four states) at once, because the fixed
 * order of sums leaves only other rows to hide the latency of fma.  int8 rows: with VNNI the row + 128 (unsigned) times both halves of
 * q; without it 16-bit products of the widened row.  Tails are masked loads, which do not touch what is masked out.
 */
#include "runtime/kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define TARGET __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")))
#define TARGET_VNNI __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
#define INLINE static inline __attribute__((always_inline))
/* Loops over the rows and states of a block must vanish, or the sums live in memory: -O2 alone does not do it. */
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

/* ---- float rows -------------------------------------------------------------------------------------------------- */

INLINE TARGET __m512 widen_bf16(__m256i h) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16)); }

INLINE TARGET __m512 load16(fh_dtype t, const uint8_t *p, size_t i)
{
    if (t == FH_F32) return _mm512_loadu_ps(p + 4 * i);
    __m256i h = _mm256_loadu_si256((const __m256i *)(const void *)(p + 2 * i));
    return t == FH_BF16 ? widen_bf16(h) : _mm512_cvtph_ps(h);
}

INLINE TARGET __m512 load_tail(fh_dtype t, const uint8_t *p, size_t i, __mmask16 mask)
{
    if (t == FH_F32) return _mm512_maskz_loadu_ps(mask, p + 4 * i);
    __m256i h = _mm256_maskz_loadu_epi16(mask, p + 2 * i);
    return t == FH_BF16 ? widen_bf16(h) : _mm512_cvtph_ps(h);
}

INLINE TARGET float sum16(__m512 a)
{
    __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}

/* R rows times S states; R and S are constants where this is inlined. */
INLINE TARGET void float_block(fh_dtype t, int R, int S, const void *const *rows, size_t d, const fh_state *const *states, float *out, size_t ldo)
{
    const uint8_t *row[8];
    const float *x[4];
    __m512 acc[4][8], v[8];
    UNROLL for (int r = 0; r < R; r++) row[r] = rows[r];
    UNROLL for (int s = 0; s < S; s++) x[s] = states[s]->f;
    UNROLL for (int s = 0; s < S; s++) {
        UNROLL for (int r = 0; r < R; r++) acc[s][r] = _mm512_setzero_ps();
    }
    size_t i = 0;
    for (; i + 16 <= d; i += 16) {
        UNROLL for (int r = 0; r < R; r++) v[r] = load16(t, row[r], i);
        UNROLL for (int s = 0; s < S; s++) {
            __m512 xs = _mm512_loadu_ps(x[s] + i);
            UNROLL for (int r = 0; r < R; r++) acc[s][r] = _mm512_fmadd_ps(v[r], xs, acc[s][r]);
        }
    }
    if (i < d) {
        __mmask16 mask = (__mmask16)((1u << (d - i)) - 1);
        UNROLL for (int r = 0; r < R; r++) v[r] = load_tail(t, row[r], i, mask);
        UNROLL for (int s = 0; s < S; s++) {
            __m512 xs = _mm512_maskz_loadu_ps(mask, x[s] + i);
            UNROLL for (int r = 0; r < R; r++) acc[s][r] = _mm512_fmadd_ps(v[r], xs, acc[s][r]);
        }
    }
    UNROLL for (int s = 0; s < S; s++) {
        UNROLL for (int r = 0; r < R; r++) out[(size_t)s * ldo + (size_t)r] = sum16(acc[s][r]);
    }
}

INLINE TARGET void float_rows(fh_dtype t, const void *const *rows, size_t n, size_t d, const fh_state *const *states, size_t m, float *out, size_t ldo)
{
    size_t r = 0;
    if (m == 1)
        for (; r + 8 <= n; r += 8) float_block(t, 8, 1, rows + r, d, states, out + r, ldo);
    for (; r + 4 <= n; r += 4) {
        size_t s = 0;
        for (; s + 4 <= m; s += 4) float_block(t, 4, 4, rows + r, d, states + s, out + s * ldo + r, ldo);
        for (; s + 2 <= m; s += 2) float_block(t, 4, 2, rows + r, d, states + s, out + s * ldo + r, ldo);
        for (; s < m; s++) float_block(t, 4, 1, rows + r, d, states + s, out + s * ldo + r, ldo);
    }
    for (; r < n; r++) {
        size_t s = 0;
        for (; s + 4 <= m; s += 4) float_block(t, 1, 4, rows + r, d, states + s, out + s * ldo + r, ldo);
        for (; s < m; s++) float_block(t, 1, 1, rows + r, d, states + s, out + s * ldo + r, ldo);
    }
}

TARGET static void fh_dot_f32_avx512(const void *const *rows, const float *scales, size_t n, size_t d, const fh_state *const *states, size_t m,
                                     float *out, size_t ldo)
{
    float_rows(FH_F32, rows, n, d, states, m, out, ldo);
}

TARGET static void fh_dot_bf16_avx512(const void *const *rows, const float *scales, size_t n, size_t d, const fh_state *const *states, size_t m,
                                      float *out, size_t ldo)
{
    float_rows(FH_BF16, rows, n, d, states, m, out, ldo);
}

TARGET static void fh_dot_f16_avx512(const void *const *rows, const float *scales, size_t n, size_t d, const fh_state *const *states, size_t m,
                                     float *out, size_t ldo)
{
    float_rows(FH_F16, rows, n, d, states, m, out, ldo);
}

/* ---- int8 rows, VNNI ---------------------------------------------------------------------------------------------- */

/* Each product is at most 255 * 128 in size, so that the sum of 65536 of them still fits an int32, in one lane or all together. */
enum { VNNI_BLOCK = 65536 };

INLINE TARGET_VNNI void vnni_block(int R, int S, const void *const *rows, const float *scales, size_t d, const fh_state *const *states, float *out,
                                   size_t ldo)
{
    const __m512i offset = _mm512_set1_epi8((char)0x80);
    const uint8_t *row[4];
    int64_t total[4][4];
    UNROLL for (int r = 0; r < R; r++) row[r] = rows[r];
    UNROLL for (int s = 0; s < S; s++) {
        UNROLL for (int r = 0; r < R; r++) total[s][r] = -128 * states[s]->sum;
    }
    for (size_t begin = 0; begin < d; begin += VNNI_BLOCK) {
        size_t end = fh_min(d, begin + VNNI_BLOCK), i = begin;
        __m512i high[4][4], low[4][4], v[4];
        UNROLL for (int s = 0; s < S; s++) {
            UNROLL for (int r = 0; r < R; r++) high[s][r] = low[s][r] = _mm512_setzero_si512();
        }
        for (; i + 64 <= end; i += 64) {
            UNROLL for (int r = 0; r < R; r++) v[r] = _mm512_xor_si512(_mm512_loadu_si512(row[r] + i), offset);
            UNROLL for (int s = 0; s < S; s++) {
                __m512i hi = _mm512_loadu_si512(states[s]->hi + i), lo = _mm512_loadu_si512(states[s]->lo + i);
                UNROLL for (int r = 0; r < R; r++) {
                    high[s][r] = _mm512_dpbusd_epi32(high[s][r], v[r], hi);
                    low[s][r] = _mm512_dpbusd_epi32(low[s][r], v[r], lo);
                }
            }
        }
        if (i < end) { /* past the row come zeros, + 128 like all, times the state's own zeros */
            __mmask64 mask = ((__mmask64)1 << (end - i)) - 1;
            UNROLL for (int r = 0; r < R; r++) v[r] = _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, row[r] + i), offset);
            UNROLL for (int s = 0; s < S; s++) {
                __m512i hi = _mm512_loadu_si512(states[s]->hi + i), lo = _mm512_loadu_si512(states[s]->lo + i);
                UNROLL for (int r = 0; r < R; r++) {
                    high[s][r] = _mm512_dpbusd_epi32(high[s][r], v[r], hi);
                    low[s][r] = _mm512_dpbusd_epi32(low[s][r], v[r], lo);
                }
            }
        }
        UNROLL for (int s = 0; s < S; s++) {
            UNROLL for (int r = 0; r < R; r++)
                total[s][r] += 256 * (int64_t)_mm512_reduce_add_epi32(high[s][r]) + _mm512_reduce_add_epi32(low[s][r]);
        }
    }
    UNROLL for (int s = 0; s < S; s++) {
        UNROLL for (int r = 0; r < R; r++) out[(size_t)s * ldo + (size_t)r] = fh_i8_result(total[s][r], scales[r], states[s]->scale);
    }
}

TARGET_VNNI static void fh_dot_i8_avx512_vnni(const void *const *rows, const float *scales, size_t n, size_t d, const fh_state *const *states, size_t m,
                                              float *out, size_t ldo)
{
    size_t r = 0;
    for (; r + 4 <= n; r += 4) {
        size_t s = 0;
        for (; s + 2 <= m; s += 2) vnni_block(4, 2, rows + r, scales + r, d, states + s, out + s * ldo + r, ldo);
        for (; s < m; s++) vnni_block(4, 1, rows + r, scales + r, d, states + s, out + s * ldo + r, ldo);
    }
    for (; r < n; r++)
        for (size_t s = 0; s < m; s++) vnni_block(1, 1, rows + r, scales + r, d, states + s, out + s * ldo + r, ldo);
}

/* ---- int8 rows, 16-bit products -------------------------------------------------------------------------------------- */

/* A lane takes two products of at most 128 * 32639 each every 32 elements: 256 times fit an int32. */
enum { MADD_BLOCK = 256 * 32 };

INLINE TARGET int64_t sum_i32(__m512i a)
{
    __m512i wide = _mm512_add_epi64(_mm512_cvtepi32_epi64(_mm512_castsi512_si256(a)), _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(a, 1)));
    return _mm512_reduce_add_epi64(wide);
}

INLINE TARGET void madd_block(int R, int S, const void *const *rows, const float *scales, size_t d, const fh_state *const *states, float *out,
                              size_t ldo)
{
    const uint8_t *row[4];
    int64_t total[4][4];
    UNROLL for (int r = 0; r < R; r++) row[r] = rows[r];
    UNROLL for (int s = 0; s < S; s++) {
        UNROLL for (int r = 0; r < R; r++) total[s][r] = 0;
    }
    for (size_t begin = 0; begin < d; begin += MADD_BLOCK) {
        size_t end = fh_min(d, begin + MADD_BLOCK), i = begin;
        __m512i acc[4][4], v[4];
        UNROLL for (int s = 0; s < S; s++) {
            UNROLL for (int r = 0; r < R; r++) acc[s][r] = _mm512_setzero_si512();
        }
        for (; i + 32 <= end; i += 32) {
            UNROLL for (int r = 0; r < R; r++) v[r] = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)(row[r] + i)));
            UNROLL for (int s = 0; s < S; s++) {
                __m512i q = _mm512_loadu_si512(states[s]->q + i);
                UNROLL for (int r = 0; r < R; r++) acc[s][r] = _mm512_add_epi32(acc[s][r], _mm512_madd_epi16(v[r], q));
            }
        }
        if (i < end) {
            __mmask32 mask = ((__mmask32)1 << (end - i)) - 1;
            UNROLL for (int r = 0; r < R; r++) v[r] = _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(mask, row[r] + i));
            UNROLL for (int s = 0; s < S; s++) {
                __m512i q = _mm512_loadu_si512(states[s]->q + i);
                UNROLL for (int r = 0; r < R; r++) acc[s][r] = _mm512_add_epi32(acc[s][r], _mm512_madd_epi16(v[r], q));
            }
        }
        UNROLL for (int s = 0; s < S; s++) {
            UNROLL for (int r = 0; r < R; r++) total[s][r] += sum_i32(acc[s][r]);
        }
    }
    UNROLL for (int s = 0; s < S; s++) {
        UNROLL for (int r = 0; r < R; r++) out[(size_t)s * ldo + (size_t)r] = fh_i8_result(total[s][r], scales[r], states[s]->scale);
    }
}

TARGET static void fh_dot_i8_avx512(const void *const *rows, const float *scales, size_t n, size_t d, const fh_state *const *states, size_t m,
                                    float *out, size_t ldo)
{
    size_t r = 0;
    for (; r + 4 <= n; r += 4) {
        size_t s = 0;
        for (; s + 4 <= m; s += 4) madd_block(4, 4, rows + r, scales + r, d, states + s, out + s * ldo + r, ldo);
        for (; s < m; s++) madd_block(4, 1, rows + r, scales + r, d, states + s, out + s * ldo + r, ldo);
    }
    for (; r < n; r++)
        for (size_t s = 0; s < m; s++) madd_block(1, 1, rows + r, scales + r, d, states + s, out + s * ldo + r, ldo);
}

const fh_kernels fh_kernels_avx512 = {
    "avx512", "", {[FH_F32] = fh_dot_f32_avx512, [FH_BF16] = fh_dot_bf16_avx512, [FH_F16] = fh_dot_f16_avx512, [FH_I8] = fh_dot_i8_avx512}};
const fh_kernels fh_kernels_avx512_vnni = {
    "avx512", "vnni", {[FH_F32] = fh_dot_f32_avx512, [FH_BF16] = fh_dot_bf16_avx512, [FH_F16] = fh_dot_f16_avx512, [FH_I8] = fh_dot_i8_avx512_vnni}};
#else
typedef int fh_kernels_avx512_not_here; /* ISO C wants a declaration */
#endif
