/* kernels_avx512.c: AVX-512 (F, BW, VL, DQ), with and without VNNI.
 *
 * Few states: one row after the other, each from its begin to its end, because that is how memory is fastest: 27 to 30 GB/s where
 * eight rows side by side, which would hide the latency of fma better, got 8 to 14 (plain reading 35; Zen 4, rows of 640 to 2048,
 * best tenth of 2 MB stretches).  The out-of-order window reaches into the next row, so that latency costs little.  Only the
 * horizontal sums are taken for eight rows at once.
 *
 * Where one row follows the other from end to end of a matrix, and for one state, nothing is prefetched (float_straight); long ones, and those that come from a
 * cache, are taken eight at once.
 *
 * Many states, or rows longer than FH_LONG: four rows times four states or one in registers; the rows come from memory once, by a
 * prefetch that runs through the next four in address order.  Tails are masked loads, which do not touch what is masked out.
 */
#include "runtime/kernels.h"
#include "runtime/kernels_lanes.h"

#if defined(__x86_64__)

#define TARGET TARGET_512
#define TARGET_VNNI __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))

enum { TOGETHER = 8 }; /* rows whose sums are finished together */
enum { NEAR = 512, NEAR_CACHED = 128 }; /* bytes by which one of several rows is brought from the second cache: long ones, ones that stayed in it */

/* Some lines of what comes next, in address order; where nothing does, of what may not even be mapped, which a prefetch does not mind. */
INLINE TARGET void prefetch_lines(const uint8_t *next, size_t done, int lines)
{
    UNROLL for (int l = 0; l < lines; l++) _mm_prefetch((const char *)((uintptr_t)next + done + 64 * (size_t)l), _MM_HINT_T0);
}

INLINE TARGET void prefetch_far(const uint8_t *next, size_t done, int lines)
{
    UNROLL for (int l = 0; l < lines; l++) _mm_prefetch((const char *)((uintptr_t)next + done + 64 * (size_t)l), _MM_HINT_T1);
}

/* ---- float rows -------------------------------------------------------------------------------------------------- */

INLINE TARGET __m512 widen_bf16(__m256i h) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16)); }

INLINE TARGET __m512 load16(fh_dtype t, const uint8_t *p, size_t i)
{
    if (t == FH_F32) return _mm512_loadu_ps(p + 4 * i);
    __m256i h = _mm256_loadu_si256((const __m256i *)(const void *)(p + 2 * i));
    return t == FH_BF16 ? widen_bf16(h) : _mm512_cvtph_ps(h);
}

/* Values i .. i + 31.  From memory, one permutation puts each of 16 bf16 into the upper half of its lane: fewer operations than widening and
 * shifting, so that the window reaches further (28 to 32 GB/s, one thread, 4096 values).  From a cache the two others are sooner done (6 % of a token). */
INLINE TARGET void load32(fh_dtype t, bool cached, const uint8_t *p, size_t i, __m512 *lo, __m512 *hi)
{
    if (t != FH_BF16 || cached) { *lo = load16(t, p, i), *hi = load16(t, p, i + 16); return; }
    __m512i first = _mm512_slli_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), 16);
    __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(16 << 16)), v = _mm512_loadu_si512(p + 2 * i);
    *lo = _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, first, v));
    *hi = _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, second, v));
}

INLINE TARGET __m512 load_tail(fh_dtype t, const uint8_t *p, size_t i, __mmask16 mask)
{
    if (t == FH_F32) return _mm512_maskz_loadu_ps(mask, p + 4 * i);
    __m256i h = _mm256_maskz_loadu_epi16(mask, p + 2 * i);
    return t == FH_BF16 ? widen_bf16(h) : _mm512_cvtph_ps(h);
}

INLINE __mmask16 upto16(size_t n) { return n < 16 ? (__mmask16)((1u << n) - 1) : 0xffff; }

/* The fixed tree for eight rows: 8 apart, 4 apart, 2 apart, 1 apart. */
INLINE TARGET __m256 sums8(const __m512 *a)
{
    __m512 pair[4], four[2], two, lo, hi;
    UNROLL for (int i = 0; i < 4; i++) {
        lo = _mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0x44);
        hi = _mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0xee);
        pair[i] = _mm512_add_ps(lo, hi);
    }
    UNROLL for (int i = 0; i < 2; i++) {
        lo = _mm512_shuffle_f32x4(pair[2 * i], pair[2 * i + 1], 0x88);
        hi = _mm512_shuffle_f32x4(pair[2 * i], pair[2 * i + 1], 0xdd);
        four[i] = _mm512_add_ps(lo, hi);
    }
    two = _mm512_add_ps(_mm512_shuffle_ps(four[0], four[1], 0x44), _mm512_shuffle_ps(four[0], four[1], 0xee));
    two = _mm512_add_ps(_mm512_shuffle_ps(two, two, 0x88), _mm512_shuffle_ps(two, two, 0xdd)); /* rows 0 4 . . 1 5 . . 2 6 . . 3 7 . . */
    return _mm512_castps512_ps256(_mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 0, 0, 0, 0, 0, 0, 0, 0), two));
}

/* n <= TOGETHER rows, one after the other, times S states. */
INLINE TARGET void float_stream(fh_dtype t, int S, const void *const *rows, size_t n, size_t d, const fh_state *const *states,
                                float *out, size_t ldo)
{
    __m512 sum[2][TOGETHER];
    const float *x[2];
    size_t size = t == FH_F32 ? 4 : 2, full = d & ~(size_t)31, turn = full * size > FH_AHEAD ? full - FH_AHEAD / size : 0;
    UNROLL for (int s = 0; s < S; s++) x[s] = states[s]->f;
    for (size_t r = 0; r < TOGETHER; r++) {
        __m512 acc[2];
        UNROLL for (int s = 0; s < S; s++) acc[s] = _mm512_setzero_ps();
        if (r < n) {
            const uint8_t *row = rows[r];
            uintptr_t ahead = (uintptr_t)row + FH_AHEAD;
            for (size_t i = 0, end = turn; i < full; end = full, ahead = (uintptr_t)rows[r + 1] - turn * size)
                for (; i < end; i += 32) {
                    __m512 lo, hi;
                    UNROLL for (size_t line = 0; line < size / 2; line++) _mm_prefetch((const char *)(ahead + i * size + 64 * line), _MM_HINT_T0);
                    load32(t, false, row, i, &lo, &hi);
                    UNROLL for (int s = 0; s < S; s++) acc[s] = _mm512_fmadd_ps(lo, _mm512_loadu_ps(x[s] + i), acc[s]);
                    UNROLL for (int s = 0; s < S; s++) acc[s] = _mm512_fmadd_ps(hi, _mm512_loadu_ps(x[s] + i + 16), acc[s]);
                }
            for (size_t i = full; i < d; i += 16) {
                __mmask16 mask = upto16(d - i);
                __m512 v = load_tail(t, row, i, mask);
                UNROLL for (int s = 0; s < S; s++) acc[s] = _mm512_fmadd_ps(v, _mm512_maskz_loadu_ps(mask, x[s] + i), acc[s]);
            }
        }
        UNROLL for (int s = 0; s < S; s++) sum[s][r] = acc[s];
    }
    UNROLL for (int s = 0; s < S; s++) _mm256_mask_storeu_ps(out + (size_t)s * ldo, (__mmask8)((1u << n) - 1), sums8(sum[s]));
}

/* Four rows times S states.  next: what to prefetch meanwhile, or NULL.  far: into the second cache, from where each row fetches its own
 * next bytes: four long rows and a long state do not fit the first.  cached: they are there already. */
INLINE TARGET void float_block(fh_dtype t, int S, bool far, bool cached, const void *const *rows, size_t d, const fh_state *const *states, float *out,
                               size_t ldo, const uint8_t *next)
{
    const uint8_t *row[4];
    const float *x[4];
    __m512 acc[4][4];
    const int size = t == FH_F32 ? 4 : 2;
    UNROLL for (int r = 0; r < 4; r++) row[r] = rows[r];
    UNROLL for (int s = 0; s < S; s++) x[s] = states[s]->f;
    UNROLL for (int s = 0; s < S; s++) {
        UNROLL for (int r = 0; r < 4; r++) acc[s][r] = _mm512_setzero_ps();
    }
    size_t i = 0;
    for (; i + 32 <= d; i += 32) {
        __m512 v[2][4];
        if (next && far) prefetch_far(next, (size_t)(4 * size) * i + (cached ? FH_CACHED_AHEAD : 0), 2 * size);
        if (next && !far) prefetch_lines(next, (size_t)(4 * size) * i, 2 * size);
        UNROLL for (int r = 0; r < 4; r++) {
            if (next && far) prefetch_lines(row[r], i * (size_t)size + (cached ? NEAR_CACHED : NEAR), size / 2);
            load32(t, cached, row[r], i, &v[0][r], &v[1][r]);
        }
        UNROLL for (int half = 0; half < 2; half++) {
            UNROLL for (int s = 0; s < S; s++) {
                __m512 xs = _mm512_loadu_ps(x[s] + i + 16 * half);
                UNROLL for (int r = 0; r < 4; r++) acc[s][r] = _mm512_fmadd_ps(v[half][r], xs, acc[s][r]);
            }
        }
    }
    for (; i < d; i += 16) {
        __mmask16 mask = upto16(d - i);
        UNROLL for (int s = 0; s < S; s++) {
            __m512 xs = _mm512_maskz_loadu_ps(mask, x[s] + i);
            UNROLL for (int r = 0; r < 4; r++) acc[s][r] = _mm512_fmadd_ps(load_tail(t, row[r], i, mask), xs, acc[s][r]);
        }
    }
    UNROLL for (int s = 0; s < S; s += 2) {
        __m512 eight[8];
        UNROLL for (int r = 0; r < 4; r++) eight[r] = acc[s][r], eight[4 + r] = acc[s + 1 < S ? s + 1 : s][r];
        __m256 sums = sums8(eight);
        _mm_storeu_ps(out + (size_t)s * ldo, _mm256_castps256_ps128(sums));
        if (s + 1 < S) _mm_storeu_ps(out + (size_t)(s + 1) * ldo, _mm256_extractf128_ps(sums, 1));
    }
}

INLINE TARGET void float_blocks(fh_dtype t, bool far, bool cached, const void *const *rows, size_t n, size_t d, const fh_state *const *states,
                                size_t m, float *out, size_t ldo)
{
    for (size_t r = 0; r < n; r += 4) {
        size_t s = 0;
        for (; s + 4 <= m; s += 4) float_block(t, 4, far, cached, rows + r, d, states + s, out + s * ldo + r, ldo, s == 0 ? rows[r + 4] : NULL);
        for (; far && s < m; s++) float_block(t, 1, far, cached, rows + r, d, states + s, out + s * ldo + r, ldo, s == 0 ? rows[r + 4] : NULL);
    }
}

/* Eight rows times one state; the eight after them, or what comes later of rows that are in the last cache, are brought into the
 * second meanwhile. */
INLINE TARGET void float_eight(fh_dtype t, bool cached, const void *const *rows, size_t d, const float *x, float *out)
{
    const uint8_t *row[8], *next = rows[8];
    __m512 acc[8], lo, hi;
    const size_t size = t == FH_F32 ? 4 : 2;
    size_t i = 0;
    UNROLL for (int r = 0; r < 8; r++) row[r] = rows[r], acc[r] = _mm512_setzero_ps();
    for (; i + 32 <= d; i += 32) {
        __m512 x_lo = _mm512_loadu_ps(x + i), x_hi = _mm512_loadu_ps(x + i + 16);
        prefetch_far(next, 8 * size * i + (cached ? FH_CACHED_AHEAD : 0), 4 * (int)size);
        UNROLL for (int r = 0; r < 8; r++) {
            load32(t, false, row[r], i, &lo, &hi);
            acc[r] = _mm512_fmadd_ps(lo, x_lo, acc[r]);
            acc[r] = _mm512_fmadd_ps(hi, x_hi, acc[r]);
        }
    }
    for (; i < d; i += 16) {
        __mmask16 mask = upto16(d - i);
        __m512 xs = _mm512_maskz_loadu_ps(mask, x + i);
        UNROLL for (int r = 0; r < 8; r++) acc[r] = _mm512_fmadd_ps(load_tail(t, row[r], i, mask), xs, acc[r]);
    }
    _mm256_storeu_ps(out, sums8(acc));
}

/* n rows that probably lie one behind the other (fh_straight), times one state: one by one, eight at once if they are long. */
INLINE TARGET void float_straight(fh_dtype t, bool cached, const void *const *rows, size_t n, size_t d, const fh_state *const *states, float *out)
{
    const size_t full = d & ~(size_t)31;
    const float *x = states[0]->f;
    size_t r = 0;
    for (; (cached || d > FH_LONG_STRAIGHT) && r + 8 <= n; r += 8) float_eight(t, cached, rows + r, d, x, out + r);
    for (; r < n; r++) {
        const uint8_t *row = rows[r];
        __m512 acc = _mm512_setzero_ps(), lo, hi;
        for (size_t i = 0; i < full; i += 32) {
            load32(t, false, row, i, &lo, &hi);
            acc = _mm512_fmadd_ps(lo, _mm512_loadu_ps(x + i), acc);
            acc = _mm512_fmadd_ps(hi, _mm512_loadu_ps(x + i + 16), acc);
        }
        for (size_t i = full; i < d; i += 16) {
            __mmask16 mask = upto16(d - i);
            acc = _mm512_fmadd_ps(load_tail(t, row, i, mask), _mm512_maskz_loadu_ps(mask, x + i), acc);
        }
        out[r] = sum_512(acc);
    }
}

/* far: see float_block. */
INLINE TARGET void float_rows(fh_dtype t, bool far, const void *const *rows, size_t n, size_t d, const fh_state *const *states, size_t m,
                              float *out, size_t ldo)
{
    size_t blocked = m < 4 && !far ? 0 : n & ~(size_t)3, m4 = far ? m : m & ~(size_t)3;
    if (far && d <= FH_LONG) float_blocks(t, true, true, rows, blocked, d, states, m, out, ldo);
    else float_blocks(t, far, false, rows, blocked, d, states, m, out, ldo);
    for (size_t r = 0, count; r < n; r += count) {
        size_t s = r < blocked ? m4 : 0;
        count = fh_min(TOGETHER, (r < blocked ? blocked : n) - r);
        for (; s + 2 <= m; s += 2) float_stream(t, 2, rows + r, count, d, states + s, out + s * ldo + r, ldo);
        if (s < m) float_stream(t, 1, rows + r, count, d, states + s, out + s * ldo + r, ldo);
    }
}

/* Four float16 rows at once are slower than one after the other up to 4096 values (24 and 28 GB/s): widening them takes two operations. */
FH_FLOAT_DOT(TARGET, fh_dot_f32_avx512, FH_F32, FH_LONG)
FH_FLOAT_DOT(TARGET, fh_dot_bf16_avx512, FH_BF16, FH_LONG)
FH_FLOAT_DOT(TARGET, fh_dot_f16_avx512, FH_F16, 2 * FH_LONG)
FH_FLOAT_DOT(TARGET, dot_f32_cached, FH_F32, 0)
FH_FLOAT_DOT(TARGET, dot_bf16_cached, FH_BF16, 0)
FH_FLOAT_DOT(TARGET, dot_f16_cached, FH_F16, 0)

/* ---- int8 rows ------------------------------------------------------------------------------------------------------- */

/* Four totals to four results, as fh_i8_result does it. */
INLINE TARGET void store_results(float *out, size_t n, __m256i totals, const float *scales, double state_scale)
{
    __mmask8 mask = (__mmask8)((1u << n) - 1);
    __m256d y = _mm256_mul_pd(_mm256_cvtepi64_pd(totals), _mm256_cvtps_pd(_mm_maskz_loadu_ps(mask, scales)));
    _mm_mask_storeu_ps(out, mask, _mm256_cvtpd_ps(_mm256_mul_pd(y, _mm256_set1_pd(state_scale))));
}

/* Sums of eight vectors of int32; whatever the order, nothing here overflows. */
INLINE TARGET __m256i sums8_i32(const __m512i *a)
{
    __m512i pair[4], four[2], two;
    UNROLL for (int i = 0; i < 4; i++)
        pair[i] = _mm512_add_epi32(_mm512_shuffle_i32x4(a[2 * i], a[2 * i + 1], 0x44), _mm512_shuffle_i32x4(a[2 * i], a[2 * i + 1], 0xee));
    UNROLL for (int i = 0; i < 2; i++)
        four[i] = _mm512_add_epi32(_mm512_shuffle_i32x4(pair[2 * i], pair[2 * i + 1], 0x88), _mm512_shuffle_i32x4(pair[2 * i],
                                   pair[2 * i + 1], 0xdd));
    two = _mm512_add_epi32(_mm512_unpacklo_epi64(four[0], four[1]), _mm512_unpackhi_epi64(four[0], four[1]));
    two = _mm512_add_epi32(_mm512_shuffle_epi32(two, _MM_PERM_CACA), _mm512_shuffle_epi32(two, _MM_PERM_DBDB));
    return _mm512_castsi512_si256(_mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 0, 0, 0, 0, 0, 0, 0, 0), two));
}

/* VNNI multiplies unsigned by signed bytes: the row + 128 times both halves of q, less 128 times the sum of q.  Each product is at most
 * 255 * 128 in size, so that the sum of 65536 of them still fits an int32, in one lane or all together. */
enum { VNNI_BLOCK = 65536 };

INLINE TARGET_VNNI __m512i vnni_row(const uint8_t *row, size_t i, __mmask64 mask)
{
    return _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, row + i), _mm512_set1_epi8((char)0x80));
}

/* 256 * high + low for four rows; eight: their high sums, then their low ones. */
INLINE TARGET_VNNI __m256i vnni_totals(const __m512i *eight)
{
    __m256i sums = sums8_i32(eight);
    __m256i high = _mm256_cvtepi32_epi64(_mm256_castsi256_si128(sums)), low = _mm256_cvtepi32_epi64(_mm256_extracti128_si256(sums, 1));
    return _mm256_add_epi64(_mm256_slli_epi64(high, 8), low);
}

/* n <= 4 rows, one after the other, times one state. */
INLINE TARGET_VNNI void vnni_stream(const void *const *rows, const float *scales, size_t n, size_t d, const fh_state *state, float *out)
{
    __m256i total = _mm256_set1_epi64x(-128 * state->sum);
    for (size_t begin = 0; begin < d; begin += VNNI_BLOCK) {
        size_t end = fh_min(d, begin + VNNI_BLOCK);
        __mmask64 tail = ((__mmask64)1 << (end & 63)) - 1;
        __m512i sum[8];
        for (size_t r = 0; r < 4; r++) {
            __m512i high = _mm512_setzero_si512(), low = high;
            if (r < n) {
                const uint8_t *row = rows[r];
                size_t i = begin, full = end & ~(size_t)63, turn = fh_max(begin, full > FH_AHEAD ? full - FH_AHEAD : 0);
                uintptr_t ahead = (uintptr_t)row + FH_AHEAD;
                for (size_t stop = turn; i < full; stop = full, ahead = (uintptr_t)rows[r + 1] - turn)
                    for (; i < stop; i += 64) {
                        _mm_prefetch((const char *)(ahead + i), _MM_HINT_T0);
                        __m512i v = _mm512_xor_si512(_mm512_loadu_si512(row + i), _mm512_set1_epi8((char)0x80));
                        high = _mm512_dpbusd_epi32(high, v, _mm512_loadu_si512(state->hi + i));
                        low = _mm512_dpbusd_epi32(low, v, _mm512_loadu_si512(state->lo + i));
                    }
                if (tail) { /* past the row come zeros, + 128 like all, times the state's own zeros */
                    __m512i v = vnni_row(row, i, tail);
                    high = _mm512_dpbusd_epi32(high, v, _mm512_loadu_si512(state->hi + i));
                    low = _mm512_dpbusd_epi32(low, v, _mm512_loadu_si512(state->lo + i));
                }
            }
            sum[r] = high;
            sum[4 + r] = low;
        }
        total = _mm256_add_epi64(total, vnni_totals(sum));
    }
    store_results(out, n, total, scales, state->scale);
}

/* Four rows times two states. */
INLINE TARGET_VNNI void vnni_block(const void *const *rows, const float *scales, size_t d, const fh_state *const *states, float *out,
                                   size_t ldo,
                                   const uint8_t *next)
{
    const uint8_t *row[4];
    __m256i total[2];
    UNROLL for (int r = 0; r < 4; r++) row[r] = rows[r];
    UNROLL for (int s = 0; s < 2; s++) total[s] = _mm256_set1_epi64x(-128 * states[s]->sum);
    for (size_t begin = 0; begin < d; begin += VNNI_BLOCK) {
        size_t end = fh_min(d, begin + VNNI_BLOCK), i = begin;
        __m512i sum[2][8], v[4];
        UNROLL for (int s = 0; s < 2; s++) {
            UNROLL for (int r = 0; r < 8; r++) sum[s][r] = _mm512_setzero_si512();
        }
        for (; i < end; i += 64) {
            if (next) prefetch_lines(next, 4 * i, 4);
            if (i + 64 <= end) {
                UNROLL for (int r = 0; r < 4; r++) v[r] = _mm512_xor_si512(_mm512_loadu_si512(row[r] + i), _mm512_set1_epi8((char)0x80));
            } else {
                __mmask64 tail = ((__mmask64)1 << (end - i)) - 1;
                UNROLL for (int r = 0; r < 4; r++) v[r] = vnni_row(row[r], i, tail);
            }
            UNROLL for (int s = 0; s < 2; s++) {
                __m512i hi = _mm512_loadu_si512(states[s]->hi + i), lo = _mm512_loadu_si512(states[s]->lo + i);
                UNROLL for (int r = 0; r < 4; r++) {
                    sum[s][r] = _mm512_dpbusd_epi32(sum[s][r], v[r], hi);
                    sum[s][4 + r] = _mm512_dpbusd_epi32(sum[s][4 + r], v[r], lo);
                }
            }
        }
        UNROLL for (int s = 0; s < 2; s++) total[s] = _mm256_add_epi64(total[s], vnni_totals(sum[s]));
    }
    UNROLL for (int s = 0; s < 2; s++) store_results(out + (size_t)s * ldo, 4, total[s], scales, states[s]->scale);
}

TARGET_VNNI static void fh_dot_i8_avx512_vnni(const void *const *rows, const float *scales, size_t n, size_t d,
                                              const fh_state *const *states, size_t m,
                                              float *out, size_t ldo)
{
    for (size_t r = 0; r < n; r += 4) {
        size_t count = fh_min(4, n - r), s = 0;
        for (; count == 4 && s + 2 <= m; s += 2)
            vnni_block(rows + r, scales + r, d, states + s, out + s * ldo + r, ldo, s == 0 ? rows[r + 4] : NULL);
        for (; s < m; s++) vnni_stream(rows + r, scales + r, count, d, states[s], out + s * ldo + r);
    }
}

/* Without VNNI: products of 16 bits.  A lane takes two products of at most 128 * 32639 each every 32 elements: 256 times fit an int32. */
enum { MADD_BLOCK = 256 * 32 };

INLINE TARGET int64_t sum_i32(__m512i a)
{
    __m512i wide = _mm512_add_epi64(_mm512_cvtepi32_epi64(_mm512_castsi512_si256(a)), _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(a,
                                    1)));
    return _mm512_reduce_add_epi64(wide);
}

/* R rows times S states. */
INLINE TARGET void madd_block(int R, int S, const void *const *rows, const float *scales, size_t d, const fh_state *const *states,
                              float *out, size_t ldo, const uint8_t *next)
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
        for (; i < end; i += 32) {
            if (next && (size_t)R * i % 64 == 0) prefetch_lines(next, (size_t)R * i, R > 1 ? R / 2 : 1);
            if (i + 32 <= end) {
                UNROLL for (int r = 0; r < R; r++) v[r] = _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(0xffffffff, row[r] + i));
            } else {
                __mmask32 tail = ((__mmask32)1 << (end - i)) - 1;
                UNROLL for (int r = 0; r < R; r++) v[r] = _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(tail, row[r] + i));
            }
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

TARGET static void fh_dot_i8_avx512(const void *const *rows, const float *scales, size_t n, size_t d, const fh_state *const *states,
                                    size_t m,
                                 float *out, size_t ldo)
{
    size_t blocked = m < 4 ? 0 : n & ~(size_t)3, m4 = m & ~(size_t)3;
    for (size_t r = 0; r < blocked; r += 4)
        for (size_t s = 0; s < m4; s += 4)
            madd_block(4, 4, rows + r, scales + r, d, states + s, out + s * ldo + r, ldo, s == 0 ? rows[r + 4] : NULL);
    for (size_t r = 0; r < n; r++)
        for (size_t s = r < blocked ? m4 : 0; s < m; s++) madd_block(1, 1, rows + r, scales + r, d, states + s, out + s * ldo + r, ldo,
                                                                     s == 0 ? rows[r + 1] : NULL);
}

/* ---- int4 rows ------------------------------------------------------------------------------------------------------- */

/* The scales of line l's four groups; no more are read than there are. */
INLINE TARGET __m512 line_scales(const uint8_t *scales, size_t l, size_t groups)
{
    __mmask8 there = groups - 4 * l >= 4 ? 15 : (__mmask8)((1u << (groups - 4 * l)) - 1);
    return _mm512_castps128_ps512(_mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(_mm_maskz_loadu_epi16(there, scales + 8 * l)), 16)));
}

/* 64 values + 8 times 64 elements of the state from i on, summed in fours, and the 8 taken off again. */
INLINE TARGET_VNNI __m512i quads_vnni(__m512i v, const fh_state *state, size_t i)
{
    __m512i high = _mm512_dpbusd_epi32(_mm512_setzero_si512(), v, _mm512_loadu_si512(state->hi + i));
    return _mm512_add_epi32(_mm512_slli_epi32(high, 8), _mm512_dpbusd_epi32(_mm512_loadu_si512(state->quads + i / 4), v, _mm512_loadu_si512(state->lo + i)));
}

INLINE TARGET __m512i quads_madd(__m512i v, const fh_state *state, size_t i)
{
    __m512i high = _mm512_madd_epi16(_mm512_maddubs_epi16(v, _mm512_loadu_si512(state->hi + i)), _mm512_set1_epi16(256)); /* 2 * 15 * 128 at most: 16 bits hold it */
    __m512i low = _mm512_madd_epi16(_mm512_maddubs_epi16(v, _mm512_loadu_si512(state->lo + i)), _mm512_set1_epi16(1));
    return _mm512_add_epi32(_mm512_add_epi32(high, low), _mm512_loadu_si512(state->quads + i / 4));
}

/* n <= TOGETHER rows, one after the other, times S states. */
#define GROUPS_STREAM(NAME, ATTRIBUTE, QUADS) \
    INLINE ATTRIBUTE void NAME(int S, const void *const *rows, const void *const *scales, size_t n, size_t d, const fh_state *const *states, \
                               float *out, size_t ldo) \
    { \
        const __m512i low = _mm512_set1_epi8(15), eights = _mm512_set1_epi8(8); \
        const __m512i first = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1), second = _mm512_add_epi32(first, _mm512_set1_epi32(2)); \
        size_t lines = (d + FH_LINE_VALUES - 1) / FH_LINE_VALUES, groups = (d + FH_GROUP - 1) / FH_GROUP; \
        __m512 sum[2][TOGETHER]; \
        for (size_t r = 0; r < TOGETHER; r++) { \
            __m512 acc[2][2]; \
            UNROLL for (int s = 0; s < S; s++) acc[s][0] = acc[s][1] = _mm512_setzero_ps(); \
            for (size_t l = 0; r < n && l < lines; l++) { \
                const uint8_t *row = rows[r], *next = rows[r + 1]; \
                _mm_prefetch((const char *)next + 64 * l, _MM_HINT_T0); \
                __m512i line = _mm512_loadu_si512(row + 64 * l); \
                __m512i v = _mm512_ternarylogic_epi32(line, low, eights, 0x6a), w = _mm512_ternarylogic_epi32(_mm512_srli_epi16(line, 4), low, eights, 0x6a); \
                __m512 four = line_scales(scales[r], l, groups); \
                __m512 scale_v = _mm512_permutexvar_ps(first, four), scale_w = _mm512_permutexvar_ps(second, four); \
                UNROLL for (int s = 0; s < S; s++) { \
                    acc[s][0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(QUADS(v, states[s], FH_LINE_VALUES * l)), scale_v, acc[s][0]); \
                    acc[s][1] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(QUADS(w, states[s], FH_LINE_VALUES * l + 64)), scale_w, acc[s][1]); \
                } \
            } \
            UNROLL for (int s = 0; s < S; s++) sum[s][r] = _mm512_add_ps(acc[s][0], acc[s][1]); \
        } \
        UNROLL for (int s = 0; s < S; s++) { \
            __m512d scaled = _mm512_mul_pd(_mm512_cvtps_pd(sums8(sum[s])), _mm512_set1_pd(states[s]->scale)); \
            _mm256_mask_storeu_ps(out + (size_t)s * ldo, (__mmask8)((1u << n) - 1), _mm512_cvtpd_ps(scaled)); \
        } \
    }

GROUPS_STREAM(groups_stream, TARGET, quads_madd)
GROUPS_STREAM(groups_stream_vnni, TARGET_VNNI, quads_vnni)

TARGET void fh_dot_i4_avx512(const void *const *rows, const void *const *scales, size_t n, size_t d, const fh_state *const *states, size_t m,
                             float *out, size_t ldo)
{
    for (size_t r = 0, count; r < n; r += count) {
        size_t s = 0;
        count = fh_min(TOGETHER, n - r);
        for (; s + 2 <= m; s += 2) groups_stream(2, rows + r, scales + r, count, d, states + s, out + s * ldo + r, ldo);
        if (s < m) groups_stream(1, rows + r, scales + r, count, d, states + s, out + s * ldo + r, ldo);
    }
}

TARGET_VNNI void fh_dot_i4_avx512_vnni(const void *const *rows, const void *const *scales, size_t n, size_t d, const fh_state *const *states,
                                       size_t m, float *out, size_t ldo)
{
    for (size_t r = 0, count; r < n; r += count) {
        size_t s = 0;
        count = fh_min(TOGETHER, n - r);
        for (; s + 2 <= m; s += 2) groups_stream_vnni(2, rows + r, scales + r, count, d, states + s, out + s * ldo + r, ldo);
        if (s < m) groups_stream_vnni(1, rows + r, scales + r, count, d, states + s, out + s * ldo + r, ldo);
    }
}

static const fh_kernels cached = {
    "avx512", "", {[FH_F32] = dot_f32_cached, [FH_BF16] = dot_bf16_cached, [FH_F16] = dot_f16_cached, [FH_I8] = fh_dot_i8_avx512},
    fh_dot_q8_avx512, fh_dot_q8_rounded_avx512_cached, fh_dot_i4_avx512, NULL};
static const fh_kernels cached_vnni = {
    "avx512", "vnni", {[FH_F32] = dot_f32_cached, [FH_BF16] = dot_bf16_cached, [FH_F16] = dot_f16_cached, [FH_I8] = fh_dot_i8_avx512_vnni},
    fh_dot_q8_avx512, fh_dot_q8_rounded_avx512_cached, fh_dot_i4_avx512_vnni, NULL};
const fh_kernels fh_kernels_avx512 = {
    "avx512", "", {[FH_F32] = fh_dot_f32_avx512, [FH_BF16] = fh_dot_bf16_avx512, [FH_F16] = fh_dot_f16_avx512, [FH_I8] = fh_dot_i8_avx512},
    fh_dot_q8_avx512, fh_dot_q8_rounded_avx512, fh_dot_i4_avx512, &cached};
const fh_kernels fh_kernels_avx512_vnni = {
    "avx512", "vnni", {[FH_F32] = fh_dot_f32_avx512, [FH_BF16] = fh_dot_bf16_avx512, [FH_F16] = fh_dot_f16_avx512, [FH_I8] = fh_dot_i8_avx512_vnni},
    fh_dot_q8_avx512, fh_dot_q8_rounded_avx512, fh_dot_i4_avx512_vnni, &cached_vnni};
#else
typedef int fh_kernels_avx512_not_here; /* ISO C wants a declaration */
#endif
