/* runtime/body_math.c: one set of loops compiled for each instruction set, and which of them is used. */
#include "runtime/body_private.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef uint16_t v16h __attribute__((vector_size(32)));
typedef float v8f __attribute__((vector_size(32)));
typedef double v8d __attribute__((vector_size(64)));
typedef int64_t v8l __attribute__((vector_size(64)));
typedef uint64_t v8lu __attribute__((vector_size(64)));

#define FOR_EACH_ISA "runtime/body_math_impl.h"
#include "base/each_isa.h"

const fh_body_math *fh_body_math_choose(const char *isa) { return OF_ISA(table, isa); }

void fh_body_widen(const fh_body_math *m, float *dst, fh_dtype from, const void *src, size_t n)
{
    switch (from) {
    case FH_BF16: m->widen_bf16(dst, src, n); break;
    case FH_F16: m->widen_f16(dst, src, n); break;
    case FH_Q8_0: m->widen_q8(dst, src, n); break;
    default: fh_to_f32(dst, from, src, n); break;
    }
}

void fh_body_activate(const fh_body_math *m, fh_act act, float *x, size_t n)
{
    switch (act) {
    case FH_ACT_SILU: m->sigmoid(x, n, 1.0f, false); break;
    case FH_ACT_QUICK_GELU: m->sigmoid(x, n, 1.702f, false); break;
    case FH_ACT_GELU_TANH: m->sigmoid(x, n, 0, true); break;
    case FH_ACT_GELU:
        for (size_t i = 0; i < n; i++) x[i] = 0.5f * x[i] * (1.0f + erff(x[i] * 0.70710678f));
        break;
    case FH_ACT_RELU:
        for (size_t i = 0; i < n; i++) x[i] = x[i] < 0 ? 0 : x[i]; /* NaN stays */
        break;
    }
}

double fh_log_sum_exp(const float *x, size_t n)
{
    const fh_body_math *m = fh_body_math_choose(fh_isa_name());
    double top = m->max(x, n);
    if (!isfinite(top)) { /* nothing but -inf, or +inf, or NaN: the plain sum says which */
        double sum = 0;
        for (size_t i = 0; i < n; i++) sum += exp((double)x[i]);
        return log(sum);
    }
    return top + log(m->exp_sum_double(x, n, top));
}

void fh_exp_each(double *out, const float *x, size_t n, double shift) { fh_body_math_choose(fh_isa_name())->exp_double(out, x, n, shift); }

enum { DRAW_BLOCK = 256 };

size_t fh_softmax_draw(float *x, size_t n, double random)
{
    const fh_body_math *m = fh_body_math_choose(fh_isa_name());
    float most = m->max(x, n);
    if (!isfinite(most)) return n;
    double total = 0;
    for (size_t i = 0; i < n; i += DRAW_BLOCK) total += (double)m->exp_sum(x + i, fh_min(DRAW_BLOCK, n - i), most);
    if (!isfinite(total)) return n;
    double left = random * total;
    for (size_t i = 0; i < n; i += DRAW_BLOCK) {
        size_t count = fh_min(DRAW_BLOCK, n - i), at = i;
        double block = (double)m->sum(x + i, count); /* what exp_sum gave: the same lanes */
        if (left >= block) {
            left -= block;
            continue;
        }
        for (size_t j = i; j < i + count; j++) {
            if (left < (double)x[j]) return j;
            left -= (double)x[j];
            if (x[j] > 0) at = j;
        }
        return at; /* summed one after the other they were a little less */
    }
    while (n > 1 && !(x[n - 1] > 0)) n--; /* likewise the blocks */
    return n - 1;
}
