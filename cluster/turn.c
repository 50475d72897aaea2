/* cluster/turn.c: rows rounded to eight bits.
 *
 * A row's few large coordinates would take the digits of all others, so rows are turned first by one fixed orthogonal map, the same for rows and
 * centres: coordinates are shuffled, half of them negated, and mixed in blocks by Hadamard matrices.  It changes no product but spreads
 * every coordinate over its block: what rounding adds to x . c is then about 0.014 |x| |c| / sqrt(D), whatever the rows look like.
 */
#include "cluster/cluster_private.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- one set of loops for each instruction set ----------------------------------------------------------------------- */

#define SIGN 0x80000000u
#define HALF 0x3f000000u /* 0.5f */

typedef struct fh_turn_kernels {
    void (*negate)(float *room, const float *x, const float *sign, size_t n);
    void (*hadamard)(float *v, size_t n);
    float (*scale)(float *x, size_t n, float by);
    int32_t (*round)(int8_t *out, const float *x, size_t n, float by);
} kernels;

#define FOR_EACH_ISA "cluster/turn_impl.h"
#include "base/each_isa.h"

/* ---- the map ------------------------------------------------------------------------------------------------------ */

fh_status fh_turn_make(fh_turn *t, size_t ld, bool shuffle, fh_err *err)
{
    fh_rng rng;
    const kernels *k = OF_ISA(turning, fh_int8_dots_pick()->isa);
    *t = (fh_turn){.ld = ld, .kernels = k, .from = shuffle ? fh_malloc(ld * sizeof *t->from) : NULL, .sign = fh_malloc(ld * sizeof *t->sign)};
    if ((shuffle && !t->from) || !t->sign) {
        fh_turn_free(t);
        return fh_fail(err, FH_ENOMEM, "out of memory for rows of eight bits");
    }
    fh_rng_seed(&rng, 0, ld); /* one map for each length, whatever the seed of the clustering */
    for (size_t j = 0; shuffle && j < ld; j++) t->from[j] = (uint32_t)j;
    for (size_t j = ld; shuffle && j > 1; j--) {
        size_t i = (size_t)fh_rng_below(&rng, j);
        uint32_t swap = t->from[j - 1];
        t->from[j - 1] = t->from[i], t->from[i] = swap;
    }
    for (size_t j = 0; j < ld; j++) t->sign[j] = fh_rng_below(&rng, 2) ? 1 : -1;
    return FH_OK;
}

void fh_turn_free(fh_turn *t)
{
    fh_free(t->from);
    fh_free(t->sign);
    *t = (fh_turn){0};
}

float fh_turn_int8(const fh_turn *t, int8_t *out, int32_t *sum, const float *x, float *room)
{
    const kernels *k = t->kernels;
    float most = 0;
    bool finite = true;
    if (t->from) {
        for (size_t j = 0; j < t->ld; j++) room[j] = t->sign[j] * x[t->from[j]];
    } else {
        k->negate(room, x, t->sign, t->ld);
    }
    for (size_t at = 0; at < t->ld;) {
        size_t n = FH_LANES;
        while (2 * n <= t->ld - at) n *= 2;
        k->hadamard(room + at, n);
        float largest = k->scale(room + at, n, (float)(1 / sqrt((double)n)));
        finite &= largest <= FLT_MAX, most = fmaxf(most, largest);
        at += n;
    }
    int32_t all = 0;
    bool some = finite && 127 / most <= FLT_MAX; /* below 1e-36 that quotient is infinite: such a row is as good as zero */
    if (some) all = k->round(out, room, t->ld, 127 / most);
    else memset(out, 0, t->ld);
    if (sum) *sum = all;
    return some ? most / 127 : finite ? 1 : NAN;
}
