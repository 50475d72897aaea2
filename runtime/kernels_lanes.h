/* runtime/kernels_lanes.h: what the tables of kernels (kernels.h) share: inlining, and the end of a sum of 16 lanes: 8 apart, 4 apart, 2 apart, 1 apart. */
#ifndef FH_KERNELS_LANES_H
#define FH_KERNELS_LANES_H

#define INLINE static inline __attribute__((always_inline))
/* Loops over the rows and states of a block must vanish, or the sums live in memory: -O2 alone does not do it. */
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

#if defined(__x86_64__)
#include <immintrin.h>

#define TARGET_256 __attribute__((target("avx2,fma,f16c")))
#define TARGET_512 __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")))

/* lo: lanes 0 to 7. */
INLINE TARGET_256 float sum_256(__m256 lo, __m256 hi)
{
    __m256 b = _mm256_add_ps(lo, hi);
    __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}

INLINE TARGET_512 float sum_512(__m512 a) { return sum_256(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1)); }

#elif defined(__aarch64__)
#include "base/neon.h"

INLINE float sum_neon(const float32x4_t a[4])
{
    float32x4_t four = vaddq_f32(vaddq_f32(a[0], a[2]), vaddq_f32(a[1], a[3]));
    float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
#endif

#endif
