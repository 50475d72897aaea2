/* calib/learn_math.c: one set of loops compiled for each instruction set, and which of them is used.
 *
 * Square roots and quotients are rounded correctly everywhere, so float32 Adam has one answer; compilers keep from taking several roots at once
 * since sqrtf may set errno, hence the intrinsics. */
#include "calib/learn.h"

#include <math.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define FN(name) name##_ref
#define TARGET
#define WIDTH 16
#if defined(__x86_64__)
#define ROOT(x) _mm_sqrt_ps((__m128)x)
#elif defined(__aarch64__)
#define ROOT(x) vsqrtq_f32((float32x4_t)x)
#else
#define ROOT(x) ((f32_ref){sqrtf(x[0]), sqrtf(x[1]), sqrtf(x[2]), sqrtf(x[3])})
#endif
#include "calib/learn_math_impl.h"
#undef FN
#undef TARGET
#undef WIDTH
#undef ROOT

#if defined(__x86_64__)
#define FN(name) name##_avx2
#define TARGET __attribute__((target("avx2")))
#define WIDTH 32
#define ROOT(x) _mm256_sqrt_ps((__m256)x)
#include "calib/learn_math_impl.h"
#undef FN
#undef TARGET
#undef WIDTH
#undef ROOT

#define FN(name) name##_avx512
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#define WIDTH 64
#define ROOT(x) _mm512_sqrt_ps((__m512)x)
#include "calib/learn_math_impl.h"
#undef FN
#undef TARGET
#undef WIDTH
#undef ROOT
#endif

const fh_learn_math *fh_learn_math_choose(const char *isa)
{
#if defined(__x86_64__)
    if (!strncmp(isa, "avx512", 6)) return &table_avx512;
    if (!strncmp(isa, "avx2", 4)) return &table_avx2;
#endif
    return &table_ref;
}
