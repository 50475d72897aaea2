/* cluster/turn_impl.h: turning and rounding, for each instruction set (base/each_isa.h).
 * Sums and differences of the same pairs in the same order everywhere, the same bits. */

#include "base/lanes.h"

/* x0 + x1, x2 + x3, ..., then x0 - x1, x2 - x3, ...: four times over it is the Hadamard matrix of 16 lanes. */
TARGET static inline void FN(mix16)(float *x)
{
    v16 v;
    memcpy(&v, x, sizeof v);
    for (int times = 0; times < 4; times++) {
        v16 even = __builtin_shufflevector(v, v, 0, 2, 4, 6, 8, 10, 12, 14, 0, 2, 4, 6, 8, 10, 12, 14);
        v16 odd = __builtin_shufflevector(v, v, 1, 3, 5, 7, 9, 11, 13, 15, 1, 3, 5, 7, 9, 11, 13, 15);
        v16u turned = (v16u)odd ^ (v16u){0, 0, 0, 0, 0, 0, 0, 0, SIGN, SIGN, SIGN, SIGN, SIGN, SIGN, SIGN, SIGN};
        v = even + (v16)turned;
    }
    memcpy(x, &v, sizeof v);
}

/* room = sign * x. */
TARGET static void FN(negate)(float *room, const float *x, const float *sign, size_t n)
{
    for (size_t j = 0; j < n; j += FH_LANES) {
        v16 v, by;
        memcpy(&v, x + j, sizeof v);
        memcpy(&by, sign + j, sizeof by);
        v = v * by;
        memcpy(room + j, &v, sizeof v);
    }
}

/* v [n] times the Hadamard matrix of n, a power of two, at least FH_LANES.  Two of its stages at a time while there are two: half the loads and stores. */
TARGET static void FN(hadamard)(float *v, size_t n)
{
    const size_t lanes = WIDTH / sizeof *v;
    size_t half = FH_LANES;
    for (size_t at = 0; at < n; at += FH_LANES) FN(mix16)(v + at);
    for (; 4 * half <= n; half *= 4)
        for (size_t at = 0; at < n; at += 4 * half)
            for (size_t j = at; j < at + half; j += lanes) {
                FN(f32) a, b, c, d, ab, cd, a_b, c_d;
                memcpy(&a, v + j, sizeof a), memcpy(&b, v + j + half, sizeof b), memcpy(&c, v + j + 2 * half, sizeof c), memcpy(&d, v + j + 3 * half, sizeof d);
                ab = a + b, a_b = a - b, cd = c + d, c_d = c - d;
                a = ab + cd, b = a_b + c_d, c = ab - cd, d = a_b - c_d;
                memcpy(v + j, &a, sizeof a), memcpy(v + j + half, &b, sizeof b), memcpy(v + j + 2 * half, &c, sizeof c), memcpy(v + j + 3 * half, &d, sizeof d);
            }
    for (size_t j = 0; half < n && j < half; j += lanes) {
        FN(f32) a, b, sum, difference;
        memcpy(&a, v + j, sizeof a), memcpy(&b, v + j + half, sizeof b);
        sum = a + b, difference = a - b;
        memcpy(v + j, &sum, sizeof sum), memcpy(v + j + half, &difference, sizeof difference);
    }
}

/* x *= by; the largest size among them, compared by its bits: NaN is above infinity. */
TARGET static float FN(scale)(float *x, size_t n, float by)
{
    FN(f32) v;
    FN(i32) most = {0};
    for (size_t j = 0; j < n; j += sizeof v / sizeof *x) {
        memcpy(&v, x + j, sizeof v);
        v = v * by;
        memcpy(x + j, &v, sizeof v);
        FN(i32) size = (FN(i32))((FN(u32))v & ~SIGN), more = size > most;
        most = (size & more) | (most & ~more);
    }
    int32_t lane[WIDTH / sizeof *x], best = 0;
    float largest;
    memcpy(lane, &most, sizeof lane);
    for (size_t j = 0; j < WIDTH / sizeof *x; j++) best = lane[j] > best ? lane[j] : best;
    memcpy(&largest, &best, sizeof largest);
    return largest;
}

/* x * by to the nearest integer, halves away from zero; their sum. */
TARGET static int32_t FN(round)(int8_t *out, const float *x, size_t n, float by)
{
    int32_t lane[FH_LANES], all = 0;
    v16i sum = {0};
    for (size_t j = 0; j < n; j += FH_LANES) {
        v16 v;
        memcpy(&v, x + j, sizeof v);
        v = v * by;
        v = v + (v16)(((v16u)v & SIGN) | HALF);
        v16i whole = __builtin_convertvector(v, v16i);
        v16b byte = __builtin_convertvector(whole, v16b);
        memcpy(out + j, &byte, sizeof byte);
        sum += whole;
    }
    memcpy(lane, &sum, sizeof lane);
    for (size_t j = 0; j < FH_LANES; j++) all += lane[j];
    return all;
}

static const kernels FN(turning) = {FN(negate), FN(hadamard), FN(scale), FN(round)};
