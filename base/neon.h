/* base/neon.h: the dot product instructions of AArch64 (SDOT), for the kernels of several modules.  Apart from base.h for what it includes. */
#ifndef FH_NEON_H
#define FH_NEON_H

#if defined(__aarch64__)
#include <arm_neon.h>
#include <asm/hwcap.h>
#include <stdbool.h>
#include <sys/auxv.h>

/* Functions that call fh_sdot, and only where fh_has_sdot(). */
#if defined(__clang__)
#define FH_TARGET_SDOT __attribute__((target("dotprod")))
#else
#define FH_TARGET_SDOT __attribute__((target("arch=armv8.2-a+dotprod")))
#endif

static inline bool fh_has_neon(void) { return getauxval(AT_HWCAP) & HWCAP_ASIMD; }
static inline bool fh_has_sdot(void) { return fh_has_neon() && (getauxval(AT_HWCAP) & HWCAP_ASIMDDP); }

/* Lane l of the result: sum + a[4 l] b[4 l] + ... + a[4 l + 3] b[4 l + 3].  The intrinsic is there only where a whole file is compiled for
 * SDOT (clang 14); this is understood by all compilers. */
static inline __attribute__((always_inline)) int32x4_t fh_sdot(int32x4_t sum, int8x16_t a, int8x16_t b)
{
    __asm__("sdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(a), "w"(b));
    return sum;
}
#endif
#endif
