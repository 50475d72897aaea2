/* cluster/cluster_dot.c: dot products that have the same bits on every machine.
 *
 * From the assignment on a result may not depend on the instruction set, so the order of the sums is fixed (cluster_private.h) and
 * products and sums are rounded separately: that needs no fma, which plain x86-64 would have to emulate.  The refinement waits for
 * memory more than for arithmetic: 4 rows at once hide the latency of the adds.
 */
#include "cluster/cluster_private.h"

#include <stdlib.h>
#include <string.h>

static float one_ref(const float *a, const float *b, size_t n)
{
    float s[FH_LANES] = {0};
    for (size_t i = 0; i < n; i += FH_LANES) {
        for (size_t j = 0; j < FH_LANES; j++) s[j] += a[i + j] * b[i + j];
    }
    for (size_t half = FH_LANES / 2; half; half /= 2) {
        for (size_t j = 0; j < half; j++) s[j] += s[j + half];
    }
    return s[0];
}

static void many_ref(float *out, const float *z, const float *x, size_t ld, const uint32_t *rows, size_t count, size_t n)
{
    for (size_t i = 0; i < count; i++) out[i] = one_ref(z, x + rows[i] * ld, n);
}

static const fh_dots ref = {"ref", one_ref, many_ref};

#if defined(__x86_64__)
#include <immintrin.h>

#define AVX2 __attribute__((target("avx2")))
#define AVX512 __attribute__((target("avx512f")))

AVX2 static inline float tree_avx2(__m256 lo, __m256 hi)
{
    __m256 eight = _mm256_add_ps(lo, hi);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

AVX2 static inline __m256 step_avx2(__m256 sum, __m256 a, const float *b)
{
    return _mm256_add_ps(sum, _mm256_mul_ps(a, _mm256_loadu_ps(b)));
}

AVX2 static float one_avx2(const float *a, const float *b, size_t n)
{
    __m256 lo = _mm256_setzero_ps(), hi = lo;
    for (size_t i = 0; i < n; i += FH_LANES) {
        lo = step_avx2(lo, _mm256_loadu_ps(a + i), b + i);
        hi = step_avx2(hi, _mm256_loadu_ps(a + i + 8), b + i + 8);
    }
    return tree_avx2(lo, hi);
}

AVX2 static void many_avx2(float *out, const float *z, const float *x, size_t ld, const uint32_t *rows, size_t count, size_t n)
{
    size_t r = 0;
    for (; r + 4 <= count; r += 4) {
        const float *a = x + rows[r] * ld, *b = x + rows[r + 1] * ld, *c = x + rows[r + 2] * ld, *d = x + rows[r + 3] * ld;
        __m256 a0 = _mm256_setzero_ps(), a1 = a0, b0 = a0, b1 = a0, c0 = a0, c1 = a0, d0 = a0, d1 = a0;
        for (size_t i = 0; i < n; i += FH_LANES) {
            __m256 lo = _mm256_loadu_ps(z + i), hi = _mm256_loadu_ps(z + i + 8);
            a0 = step_avx2(a0, lo, a + i), a1 = step_avx2(a1, hi, a + i + 8);
            b0 = step_avx2(b0, lo, b + i), b1 = step_avx2(b1, hi, b + i + 8);
            c0 = step_avx2(c0, lo, c + i), c1 = step_avx2(c1, hi, c + i + 8);
            d0 = step_avx2(d0, lo, d + i), d1 = step_avx2(d1, hi, d + i + 8);
        }
        out[r] = tree_avx2(a0, a1), out[r + 1] = tree_avx2(b0, b1), out[r + 2] = tree_avx2(c0, c1), out[r + 3] = tree_avx2(d0, d1);
    }
    for (; r < count; r++) out[r] = one_avx2(z, x + rows[r] * ld, n);
}

static const fh_dots avx2 = {"avx2", one_avx2, many_avx2};

AVX512 static inline float tree_avx512(__m512 s)
{
    __m256 lo = _mm512_castps512_ps256(s), hi = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(s), 1));
    __m256 eight = _mm256_add_ps(lo, hi);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

AVX512 static inline __m512 step_avx512(__m512 sum, __m512 a, const float *b)
{
    return _mm512_add_ps(sum, _mm512_mul_ps(a, _mm512_loadu_ps(b)));
}

AVX512 static float one_avx512(const float *a, const float *b, size_t n)
{
    __m512 s = _mm512_setzero_ps();
    for (size_t i = 0; i < n; i += FH_LANES) s = step_avx512(s, _mm512_loadu_ps(a + i), b + i);
    return tree_avx512(s);
}

AVX512 static void many_avx512(float *out, const float *z, const float *x, size_t ld, const uint32_t *rows, size_t count, size_t n)
{
    size_t r = 0;
    for (; r + 4 <= count; r += 4) {
        const float *a = x + rows[r] * ld, *b = x + rows[r + 1] * ld, *c = x + rows[r + 2] * ld, *d = x + rows[r + 3] * ld;
        __m512 as = _mm512_setzero_ps(), bs = as, cs = as, ds = as;
        for (size_t i = 0; i < n; i += FH_LANES) {
            __m512 zi = _mm512_loadu_ps(z + i);
            as = step_avx512(as, zi, a + i), bs = step_avx512(bs, zi, b + i);
            cs = step_avx512(cs, zi, c + i), ds = step_avx512(ds, zi, d + i);
        }
        out[r] = tree_avx512(as), out[r + 1] = tree_avx512(bs), out[r + 2] = tree_avx512(cs), out[r + 3] = tree_avx512(ds);
    }
    for (; r < count; r++) out[r] = one_avx512(z, x + rows[r] * ld, n);
}

static const fh_dots avx512 = {"avx512", one_avx512, many_avx512};
#elif defined(__aarch64__)
#include "base/neon.h"

static inline float tree_neon(float32x4_t a, float32x4_t b, float32x4_t c, float32x4_t d)
{
    float32x4_t four = vaddq_f32(vaddq_f32(a, c), vaddq_f32(b, d));
    float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

static inline float32x4_t step_neon(float32x4_t sum, float32x4_t a, const float *b) { return vaddq_f32(sum, vmulq_f32(a, vld1q_f32(b))); }

static float one_neon(const float *a, const float *b, size_t n)
{
    float32x4_t s0 = vdupq_n_f32(0), s1 = s0, s2 = s0, s3 = s0;
    for (size_t i = 0; i < n; i += FH_LANES) {
        s0 = step_neon(s0, vld1q_f32(a + i), b + i), s1 = step_neon(s1, vld1q_f32(a + i + 4), b + i + 4);
        s2 = step_neon(s2, vld1q_f32(a + i + 8), b + i + 8), s3 = step_neon(s3, vld1q_f32(a + i + 12), b + i + 12);
    }
    return tree_neon(s0, s1, s2, s3);
}

/* Two rows at once are eight sums in flight. */
static void many_neon(float *out, const float *z, const float *x, size_t ld, const uint32_t *rows, size_t count, size_t n)
{
    size_t r = 0;
    for (; r + 2 <= count; r += 2) {
        const float *a = x + rows[r] * ld, *b = x + rows[r + 1] * ld;
        float32x4_t a0 = vdupq_n_f32(0), a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0;
        for (size_t i = 0; i < n; i += FH_LANES) {
            float32x4_t z0 = vld1q_f32(z + i), z1 = vld1q_f32(z + i + 4), z2 = vld1q_f32(z + i + 8), z3 = vld1q_f32(z + i + 12);
            a0 = step_neon(a0, z0, a + i), a1 = step_neon(a1, z1, a + i + 4);
            a2 = step_neon(a2, z2, a + i + 8), a3 = step_neon(a3, z3, a + i + 12);
            b0 = step_neon(b0, z0, b + i), b1 = step_neon(b1, z1, b + i + 4);
            b2 = step_neon(b2, z2, b + i + 8), b3 = step_neon(b3, z3, b + i + 12);
        }
        out[r] = tree_neon(a0, a1, a2, a3), out[r + 1] = tree_neon(b0, b1, b2, b3);
    }
    if (r < count) out[r] = one_neon(z, x + rows[r] * ld, n);
}

static const fh_dots neon = {"neon", one_neon, many_neon};
#endif

unsigned fh_bits_permitted(void)
{
    const char *asked = getenv("FH_ISA");
    if (!asked) return 512;
    return strcmp(asked, "ref") == 0 ? 0 : strcmp(asked, "avx2") == 0 ? 256 : 512;
}

const fh_dots *fh_dots_pick(void)
{
#if defined(__x86_64__)
    unsigned bits = fh_bits_permitted();
    if (bits >= 512 && __builtin_cpu_supports("avx512f")) return &avx512;
    if (bits >= 256 && __builtin_cpu_supports("avx2")) return &avx2;
#elif defined(__aarch64__)
    if (fh_bits_permitted()) return &neon;
#endif
    return &ref;
}
