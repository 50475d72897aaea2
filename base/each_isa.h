/* base/each_isa.h: a file of loops, compiled once for each instruction set.
 *
 *     #define FOR_EACH_ISA "calib/learn_math_impl.h"
 *     #include "base/each_isa.h"
 *
 * The file finds FN(name), a name's form in this set; TARGET, with which its functions begin; and WIDTH, the bytes of a register.  All it defines is static.
 * OF_ISA(name, isa) is then the address of `name`, an object that every set has, in that of the kernels `isa` (fh_isa_name and the like): where they have
 * 512 bits or 256, so has it.  Once in a source file.
 */
#include <string.h>

#define FN(name) name##_ref
#define TARGET
#define WIDTH 16
#include FOR_EACH_ISA
#undef FN
#undef TARGET
#undef WIDTH

#if defined(__x86_64__)
#define FN(name) name##_avx2
#define TARGET __attribute__((target("avx2")))
#define WIDTH 32
#include FOR_EACH_ISA
#undef FN
#undef TARGET
#undef WIDTH

#define FN(name) name##_avx512
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#define WIDTH 64
#include FOR_EACH_ISA
#undef FN
#undef TARGET
#undef WIDTH

static inline size_t which_isa(const char *isa) { return strncmp(isa, "avx512", 6) == 0 ? 2 : strncmp(isa, "avx2", 4) == 0; }
#define OF_ISA(name, isa) ((__typeof__(&name##_ref)[]){&name##_ref, &name##_avx2, &name##_avx512}[which_isa(isa)])
#else
#define OF_ISA(name, isa) (&name##_ref)
#endif
