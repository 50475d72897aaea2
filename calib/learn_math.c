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

#define FOR_EACH_ISA "calib/learn_math_impl.h"
#include "base/each_isa.h"

const fh_learn_math *fh_learn_math_choose(const char *isa) { return OF_ISA(table, isa); }
