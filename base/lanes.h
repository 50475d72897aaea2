/* base/lanes.h: sixteen lanes, and exp on them, for loops that are compiled once for each instruction set and give the same bits on each.
 * Included by every such set of loops (base/each_isa.h).  No fma (the build forbids contraction).  Vectors are locals only, handed on by
 * pointer, since passing them by value would depend on the ABI of the instruction set.
 */
#ifndef FH_LANES_H
#define FH_LANES_H
#include <stdint.h>
#include <string.h>

typedef float v16 __attribute__((vector_size(64)));
typedef int32_t v16i __attribute__((vector_size(64)));
typedef uint32_t v16u __attribute__((vector_size(64)));
typedef int8_t v16b __attribute__((vector_size(16)));
#endif

/* One register.  Sums, products and moves of longer vectors gcc takes apart well; comparisons it makes number by number. */
typedef float FN(f32) __attribute__((vector_size(WIDTH)));
typedef int32_t FN(i32) __attribute__((vector_size(WIDTH)));
typedef uint32_t FN(u32) __attribute__((vector_size(WIDTH)));

/* exp(x): 2^n e^r, |r| <= ln 2 / 2, Taylor to the seventh power (the next term is below 6e-9), worst seen 1.3e-7 relative over [-87, 88].
 * Below -87.33: 0.  Above 88.37: what it is there.  NaN stays NaN: it passes every comparison as false and scales a NaN. */
TARGET static inline void FN(exp_register)(FN(f32) *io)
{
    const FN(f32) zero = {0}, low = zero - 87.33f, high = zero + 88.37f,
                  magic = zero + 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    FN(f32) x = *io;
    FN(i32) over = x > high, under = x < low;
    x = (FN(f32))(((FN(i32))x & ~over) | ((FN(i32))high & over));
    FN(f32) t = x * 1.44269504f + magic, n = t - magic;
    FN(f32) r = x - n * 0.693359375f; /* ln 2 in two parts, the first with 9 bits: n times it is exact */
    r = r + n * 2.12194440e-4f;
    FN(f32) p = r * (1.0f / 5040) + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    FN(u32) scale = ((FN(u32))t << 23) + 0x3f800000u; /* the low bits of t are n; those of the magic number are shifted out */
    p = p * (FN(f32))scale;
    *io = (FN(f32))((FN(i32))p & ~under);
}

TARGET static inline void FN(exp16)(v16 *io)
{
    for (size_t i = 0; i < sizeof *io; i += WIDTH) {
        FN(f32) x;
        memcpy(&x, (char *)io + i, sizeof x);
        FN(exp_register)(&x);
        memcpy((char *)io + i, &x, sizeof x);
    }
}
