/* kernels_avx2.c: AVX2 with FMA and F16C.
 *
 * The 16 lanes of a float sum are two registers.  As in kernels_avx512.c, one state takes row after row, because that is how memory
 * is fastest; two states and more take two rows times two states.  int8 rows are widened to 16 bits and multiplied in pairs.  Tails go
 * through a zero-filled copy, so that nothing past the row is read.
 */
#include "runtime/kernels.h"
#include "runtime/kernels_lanes.h"

#if defined(__x86_64__)
#include <string.h>

#define TARGET TARGET_256

/* ---- float rows -------------------------------------------------------------------------------------------------- */

INLINE TARGET __m256 load8(fh_dtype t, const uint8_t *p, size_t i)
{
    if (t == FH_F32) return _mm256_loadu_ps((const float *)(const void *)(p + 4 * i));
    __m128i h = _mm_loadu_si128((const __m128i *)(const void *)(p + 2 * i));
    return t == FH_BF16 ? _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16)) : _mm256_cvtph_ps(h);
}

/* Row elements from `full` on and zeros after them, as 16 values. */
INLINE TARGET void load_tail(fh_dtype t, const uint8_t *row, size_t full, size_t d, __m256 *lo, __m256 *hi)
{
    uint8_t tail[64] = {0};
    size_t size = t == FH_F32 ? 4 : 2;
    memcpy(tail, row + full * size, (d - full) * size);
    *lo = load8(t, tail, 0);
    *hi = load8(t, tail, 8);
}

INLINE TARGET void prefetch_next(const uint8_t *p, bool far)
{
    if (far) _mm_prefetch((const char *)p, _MM_HINT_T1);
    else _mm_prefetch((const char *)p, _MM_HINT_T0);
}

/* One row from begin to end times one state.  fetch: its own next bytes, and at last those of `next`, which comes after it. */
INLINE TARGET float float_row(fh_dtype t, bool fetch, const uint8_t *row, const void *next, size_t d, const float *x)
{
    size_t size = t == FH_F32 ? 4 : 2, full = d & ~(size_t)15, turn = full * size > FH_AHEAD ? full - FH_AHEAD / size : 0;
    uintptr_t ahead = (uintptr_t)row + FH_AHEAD;
    __m256 lo = _mm256_setzero_ps(), hi = lo;
    for (size_t i = 0, end = turn; i < full; end = full, ahead = (uintptr_t)next - turn * size)
        for (; i < end; i += 16) {
            if (fetch && (t == FH_F32 || i % 32 == 0)) _mm_prefetch((const char *)(ahead + i * size), _MM_HINT_T0);
            lo = _mm256_fmadd_ps(load8(t, row, i), _mm256_loadu_ps(x + i), lo);
            hi = _mm256_fmadd_ps(load8(t, row, i + 8), _mm256_loadu_ps(x + i + 8), hi);
        }
    if (full < d) {
        __m256 r_lo, r_hi, x_lo, x_hi;
        load_tail(t, row, full, d, &r_lo, &r_hi);
        load_tail(FH_F32, (const uint8_t *)x, full, d, &x_lo, &x_hi);
        lo = _mm256_fmadd_ps(r_lo, x_lo, lo);
        hi = _mm256_fmadd_ps(r_hi, x_hi, hi);
    }
    return sum_256(lo, hi);
}

/* Two rows times S states, the rows after them prefetched meanwhile: into the second cache where the first has no room (far). */
INLINE TARGET void float_block(fh_dtype t, int S, bool far, const void *const *rows, size_t d, const fh_state *const *states, float *out,
                               size_t ldo, const uint8_t *next)
{
    const uint8_t *row[2];
    const float *x[2];
    __m256 lo[2][2], hi[2][2], r_lo[2], r_hi[2], x_lo, x_hi;
    size_t full = d & ~(size_t)15, size = t == FH_F32 ? 4 : 2;
    UNROLL for (int r = 0; r < 2; r++) row[r] = rows[r];
    UNROLL for (int s = 0; s < S; s++) x[s] = states[s]->f;
    UNROLL for (int s = 0; s < S; s++) {
        UNROLL for (int r = 0; r < 2; r++) lo[s][r] = hi[s][r] = _mm256_setzero_ps();
    }
    for (size_t i = 0; i < full; i += 16) {
        if (next) prefetch_next(next + 2 * i * size, far);
        if (next && t == FH_F32) prefetch_next(next + 2 * i * size + 64, far);
        UNROLL for (int r = 0; r < 2; r++) r_lo[r] = load8(t, row[r], i), r_hi[r] = load8(t, row[r], i + 8);
        UNROLL for (int s = 0; s < S; s++) {
            x_lo = _mm256_loadu_ps(x[s] + i), x_hi = _mm256_loadu_ps(x[s] + i + 8);
            UNROLL for (int r = 0; r < 2; r++) lo[s][r] = _mm256_fmadd_ps(r_lo[r], x_lo, lo[s][r]);
            UNROLL for (int r = 0; r < 2; r++) hi[s][r] = _mm256_fmadd_ps(r_hi[r], x_hi, hi[s][r]);
        }
    }
    if (full < d) {
        UNROLL for (int r = 0; r < 2; r++) load_tail(t, row[r], full, d, &r_lo[r], &r_hi[r]);
        UNROLL for (int s = 0; s < S; s++) {
            load_tail(FH_F32, (const uint8_t *)x[s], full, d, &x_lo, &x_hi);
            UNROLL for (int r = 0; r < 2; r++) lo[s][r] = _mm256_fmadd_ps(r_lo[r], x_lo, lo[s][r]);
            UNROLL for (int r = 0; r < 2; r++) hi[s][r] = _mm256_fmadd_ps(r_hi[r], x_hi, hi[s][r]);
        }
    }
    UNROLL for (int s = 0; s < S; s++) {
        UNROLL for (int r = 0; r < 2; r++) out[(size_t)s * ldo + (size_t)r] = sum_256(lo[s][r], hi[s][r]);
    }
}

INLINE TARGET void float_rows(fh_dtype t, bool far, const void *const *rows, size_t n, size_t d, const fh_state *const *states, size_t m,
                              float *out, size_t ldo)
{
    size_t blocked = n & ~(size_t)1, m2 = m & ~(size_t)1, beyond = far && d <= FH_LONG ? FH_CACHED_AHEAD : 0;
    for (size_t r = 0; r < blocked; r += 2) {
        const uint8_t *next = (const uint8_t *)((uintptr_t)rows[r + 2] + beyond);
        for (size_t s = 0; s < m2; s += 2) float_block(t, 2, far, rows + r, d, states + s, out + s * ldo + r, ldo, s == 0 ? next : NULL);
        if (far && m2 < m) float_block(t, 1, far, rows + r, d, states + m2, out + m2 * ldo + r, ldo, m2 == 0 ? next : NULL);
    }
    for (size_t r = 0; r < n; r++)
        for (size_t s = r >= blocked ? 0 : far ? m : m2; s < m; s++) out[s * ldo + r] = float_row(t, true, rows[r], rows[r + 1], d, states[s]->f);
}

/* n rows that lie one behind the other (fh_straight), times one state. */
INLINE TARGET void float_straight(fh_dtype t, bool cached, const void *const *rows, size_t n, size_t d, const fh_state *const *states, float *out)
{
    if (cached || d > FH_LONG_STRAIGHT) float_rows(t, true, rows, n, d, states, 1, out, n);
    else
        for (size_t r = 0; r < n; r++) out[r] = float_row(t, false, rows[r], NULL, d, states[0]->f);
}

FH_FLOAT_DOT(TARGET, fh_dot_f32_avx2, FH_F32, FH_LONG)
FH_FLOAT_DOT(TARGET, fh_dot_bf16_avx2, FH_BF16, FH_LONG)
FH_FLOAT_DOT(TARGET, fh_dot_f16_avx2, FH_F16, FH_LONG)
FH_FLOAT_DOT(TARGET, dot_f32_cached, FH_F32, 0)
FH_FLOAT_DOT(TARGET, dot_bf16_cached, FH_BF16, 0)
FH_FLOAT_DOT(TARGET, dot_f16_cached, FH_F16, 0)

/* ---- int8 rows ------------------------------------------------------------------------------------------------------ */

/* A lane takes two products of at most 128 * 32639 each every 16 elements: 256 times fit an int32. */
enum { MADD_BLOCK = 256 * 16 };

INLINE TARGET int64_t sum_i32(__m256i a)
{
    __m256i wide = _mm256_add_epi64(_mm256_cvtepi32_epi64(_mm256_castsi256_si128(a)), _mm256_cvtepi32_epi64(_mm256_extracti128_si256(a,
                                    1)));
    __m128i two = _mm_add_epi64(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    return _mm_cvtsi128_si64(two) + _mm_extract_epi64(two, 1);
}

INLINE TARGET __m256i load_i8(const void *p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128(p)); }
INLINE TARGET __m256i load_q(const fh_state *s, size_t i) { return _mm256_loadu_si256((const __m256i *)(const void *)(s->q + i)); }

/* R rows times S states; next: what to prefetch meanwhile, or NULL. */
INLINE TARGET void madd_block(int R, int S, const void *const *rows, const float *scales, size_t d, const fh_state *const *states,
                              float *out, size_t ldo, const uint8_t *next)
{
    const uint8_t *row[2];
    int64_t total[2][2];
    UNROLL for (int r = 0; r < R; r++) row[r] = rows[r];
    UNROLL for (int s = 0; s < S; s++) {
        UNROLL for (int r = 0; r < R; r++) total[s][r] = 0;
    }
    for (size_t begin = 0; begin < d; begin += MADD_BLOCK) {
        size_t end = fh_min(d, begin + MADD_BLOCK), i = begin;
        __m256i acc[2][2];
        UNROLL for (int s = 0; s < S; s++) {
            UNROLL for (int r = 0; r < R; r++) acc[s][r] = _mm256_setzero_si256();
        }
        for (; i + 16 <= end; i += 16) {
            if (next && (size_t)R * i % 64 == 0) _mm_prefetch((const char *)next + (size_t)R * i, _MM_HINT_T0);
            UNROLL for (int r = 0; r < R; r++) {
                __m256i v = load_i8(row[r] + i);
                UNROLL for (int s = 0; s < S; s++) acc[s][r] = _mm256_add_epi32(acc[s][r], _mm256_madd_epi16(v, load_q(states[s], i)));
            }
        }
        if (i < end) {
            UNROLL for (int r = 0; r < R; r++) {
                uint8_t tail[16] = {0};
                memcpy(tail, row[r] + i, end - i);
                __m256i v = load_i8(tail);
                UNROLL for (int s = 0; s < S; s++) acc[s][r] = _mm256_add_epi32(acc[s][r], _mm256_madd_epi16(v, load_q(states[s], i)));
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

TARGET static void fh_dot_i8_avx2(const void *const *rows, const float *scales, size_t n, size_t d, const fh_state *const *states, size_t m,
                               float *out, size_t ldo)
{
    size_t blocked = n & ~(size_t)1, m2 = m & ~(size_t)1;
    for (size_t r = 0; r < blocked; r += 2)
        for (size_t s = 0; s < m2; s += 2) madd_block(2, 2, rows + r, scales + r, d, states + s, out + s * ldo + r, ldo, s == 0 ?
                                                      rows[r + 2] : NULL);
    for (size_t r = 0; r < n; r++)
        for (size_t s = r < blocked ? m2 : 0; s < m; s++)
            madd_block(1, 1, rows + r, scales + r, d, states + s, out + s * ldo + r, ldo, s == 0 ? rows[r + 1] : NULL);
}

/* ---- int4 rows ------------------------------------------------------------------------------------------------------- */

/* The scales of line l's four groups; no more are read than there are. */
INLINE TARGET __m128 line_scales(const uint8_t *scales, size_t l, size_t groups)
{
    uint64_t four = 0;
    memcpy(&four, scales + 8 * l, groups - 4 * l >= 4 ? 8 : 2 * (groups - 4 * l));
    return _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(_mm_cvtsi64_si128((int64_t)four)), 16));
}

/* 32 values + 8 times 32 elements of the state from i on, summed in fours, and the 8 taken off again. */
INLINE TARGET __m256i quads(__m256i v, const fh_state *state, size_t i)
{
    __m256i hi = _mm256_loadu_si256((const __m256i *)(const void *)(state->hi + i)), lo = _mm256_loadu_si256((const __m256i *)(const void *)(state->lo + i));
    __m256i high = _mm256_madd_epi16(_mm256_maddubs_epi16(v, hi), _mm256_set1_epi16(256)); /* of two products at most 15 * 128: 16 bits hold them */
    __m256i low = _mm256_madd_epi16(_mm256_maddubs_epi16(v, lo), _mm256_set1_epi16(1));
    return _mm256_add_epi32(_mm256_add_epi32(high, low), _mm256_loadu_si256((const __m256i *)(const void *)(state->quads + i / 4)));
}

TARGET void fh_dot_i4_avx2(const void *const *rows, const void *const *scales, size_t n, size_t d, const fh_state *const *states, size_t m,
                           float *out, size_t ldo)
{
    const __m256i low = _mm256_set1_epi8(15), eights = _mm256_set1_epi8((char)0x88);
    size_t lines = (d + FH_LINE_VALUES - 1) / FH_LINE_VALUES, groups = (d + FH_GROUP - 1) / FH_GROUP;
    for (size_t r = 0; r < n; r++)
        for (size_t s = 0; s < m; s++) {
            const uint8_t *row = rows[r], *next = rows[r + 1];
            __m256 acc[4];
            UNROLL for (int h = 0; h < 4; h++) acc[h] = _mm256_setzero_ps();
            for (size_t l = 0; l < lines; l++) {
                __m128 four = line_scales(scales[r], l, groups);
                if (s == 0) _mm_prefetch((const char *)next + 64 * l, _MM_HINT_T0);
                UNROLL for (int h = 0; h < 4; h++) { /* low halves of the bytes, then high ones */
                    __m256i v = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(const void *)(row + 64 * l + 32 * (h % 2))), eights);
                    v = _mm256_and_si256(h < 2 ? v : _mm256_srli_epi16(v, 4), low);
                    __m256 sums = _mm256_cvtepi32_ps(quads(v, states[s], FH_LINE_VALUES * l + 32 * (size_t)h));
                    __m256 scale = _mm256_permutevar8x32_ps(_mm256_castps128_ps256(four), _mm256_set1_epi32(h));
                    acc[h] = _mm256_fmadd_ps(sums, scale, acc[h]);
                }
            }
            float sum = sum_256(_mm256_add_ps(acc[0], acc[2]), _mm256_add_ps(acc[1], acc[3]));
            out[s * ldo + r] = (float)((double)sum * states[s]->scale);
        }
}

static const fh_kernels cached = {
    "avx2", "", {[FH_F32] = dot_f32_cached, [FH_BF16] = dot_bf16_cached, [FH_F16] = dot_f16_cached, [FH_I8] = fh_dot_i8_avx2},
    fh_dot_q8_avx2, fh_dot_q8_rounded_avx2, fh_dot_i4_avx2, NULL};
const fh_kernels fh_kernels_avx2 = {
    "avx2", "", {[FH_F32] = fh_dot_f32_avx2, [FH_BF16] = fh_dot_bf16_avx2, [FH_F16] = fh_dot_f16_avx2, [FH_I8] = fh_dot_i8_avx2},
    fh_dot_q8_avx2, fh_dot_q8_rounded_avx2, fh_dot_i4_avx2, &cached};
#else
typedef int fh_kernels_avx2_not_here; /* ISO C wants a declaration */
#endif
