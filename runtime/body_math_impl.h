/* runtime/body_math_impl.h: the arithmetic of the body between its matrix products, for each instruction set (base/each_isa.h).
 *
 * 16 lanes everywhere, one order of sums: every instruction set gives the same bits (base/lanes.h).
 */

#include "base/lanes.h"

typedef double FN(f64) __attribute__((vector_size(WIDTH)));
typedef int64_t FN(i64) __attribute__((vector_size(WIDTH)));
typedef uint64_t FN(u64) __attribute__((vector_size(WIDTH)));

/* Sum of the lanes: j + (j + 8), + 4, + 2, + 1. */
TARGET static inline float FN(lanes)(const v16 *v)
{
    float s[16];
    memcpy(s, v, sizeof s);
    for (int w = 8; w; w /= 2) {
        for (int j = 0; j < w; j++) s[j] += s[j + w];
    }
    return s[0];
}

/* n < 16 values, the other lanes `fill`. */
TARGET static inline void FN(load_some)(v16 *v, const float *x, size_t n, float fill)
{
    float s[16];
    for (size_t i = 0; i < 16; i++) s[i] = i < n ? x[i] : fill;
    memcpy(v, s, sizeof s);
}

TARGET static void FN(widen_bf16)(float *dst, const void *src, size_t n)
{
    const uint8_t *s = src;
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        v16h h;
        memcpy(&h, s + 2 * i, sizeof h);
        v16u w = __builtin_convertvector(h, v16u) << 16;
        memcpy(dst + i, &w, sizeof w);
    }
    if (i < n) fh_to_f32(dst + i, FH_BF16, s + 2 * i, n - i);
}

/* The half's exponent and fraction moved into a float's place and multiplied by 2^112: exact, subnormals too; infinity and NaN get
 * the float's highest exponent. */
TARGET static void FN(widen_f16)(float *dst, const void *src, size_t n)
{
    const uint8_t *s = src;
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        v16h h;
        memcpy(&h, s + 2 * i, sizeof h);
        v16u w = __builtin_convertvector(h, v16u), sign = (w & 0x8000u) << 16, rest = (w & 0x7fffu) << 13;
        v16u special = 0u - (((w & 0x7c00u) + 0x400u) >> 15); /* all ones where the exponent is */
        v16u value = (v16u)((v16)rest * 0x1p112f);
        value = (value & ~special) | ((rest | 0x7f800000u) & special);
        value |= sign;
        memcpy(dst + i, &value, sizeof value);
    }
    if (i < n) fh_to_f32(dst + i, FH_F16, s + 2 * i, n - i);
}

/* Blocks of 32: a float16 scale and 32 int8, of which float32 holds every product. */
TARGET static void FN(widen_q8)(float *dst, const void *src, size_t n)
{
    const uint8_t *s = src;
    for (size_t i = 0; i < n; i += FH_Q8_VALUES, s += FH_Q8_BYTES) {
        uint16_t half;
        memcpy(&half, s, sizeof half);
        float scale = fh_f16_to_f32(half);
        for (size_t j = 0; j < FH_Q8_VALUES; j += 16) {
            v16b b;
            memcpy(&b, s + 2 + j, sizeof b);
            v16 w = __builtin_convertvector(__builtin_convertvector(b, v16i), v16) * scale;
            memcpy(dst + i + j, &w, sizeof w);
        }
    }
}

/* q times the scale of its 32. */
TARGET static void FN(widen_i8)(float *dst, const int8_t *q, const float *scales, size_t n)
{
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        v16b b;
        memcpy(&b, q + i, sizeof b);
        v16 w = __builtin_convertvector(__builtin_convertvector(b, v16i), v16) * scales[i / 32];
        memcpy(dst + i, &w, sizeof w);
    }
    for (; i < n; i++) dst[i] = (float)q[i] * scales[i / 32];
}

TARGET static float FN(max)(const float *x, size_t n)
{
    v16 m;
    FN(load_some)(&m, x, n < 16 ? n : 0, -INFINITY);
    for (size_t part = 0; part < sizeof m; part += WIDTH) {
        FN(f32) most, v;
        memcpy(&most, (const char *)&m + part, sizeof most);
        for (size_t i = 0; i + 16 <= n; i += 16) {
            memcpy(&v, (const char *)(x + i) + part, sizeof v);
            FN(i32) more = v > most;
            most = (FN(f32))(((FN(i32))v & more) | ((FN(i32))most & ~more));
        }
        memcpy((char *)&m + part, &most, sizeof most);
    }
    float s[16], best = -INFINITY;
    memcpy(s, &m, sizeof s);
    for (int j = 0; j < 16; j++) best = s[j] > best ? s[j] : best;
    for (size_t i = n & ~(size_t)15; i < n; i++) best = x[i] > best ? x[i] : best;
    return best;
}

/* x = exp(x - shift); their sum. */
TARGET static float FN(exp_sum)(float *x, size_t n, float shift)
{
    v16 sum = {0}, v;
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        memcpy(&v, x + i, sizeof v);
        v = v - shift;
        FN(exp16)(&v);
        sum = sum + v;
        memcpy(x + i, &v, sizeof v);
    }
    if (i < n) {
        FN(load_some)(&v, x + i, n - i, -INFINITY);
        v = v - shift;
        FN(exp16)(&v);
        sum = sum + v;
        memcpy(x + i, &v, (n - i) * sizeof *x);
    }
    return FN(lanes)(&sum);
}

/* Sixteen columns of `rows` <= 4 rows of the next. */
TARGET static inline void FN(accumulate16)(float *acc, size_t ldacc, size_t rows, const float *p, size_t ldp, size_t n, const float *v, size_t ld)
{
    v16 a0 = {0}, a1 = {0}, a2 = {0}, a3 = {0}, b;
    const float *p1 = p + (rows > 1) * ldp, *p2 = p + (rows > 2) * 2 * ldp, *p3 = p + (rows > 3) * 3 * ldp;
    memcpy(&a0, acc, sizeof a0);
    if (rows > 1) memcpy(&a1, acc + ldacc, sizeof a1);
    if (rows > 2) memcpy(&a2, acc + 2 * ldacc, sizeof a2);
    if (rows > 3) memcpy(&a3, acc + 3 * ldacc, sizeof a3);
    if (rows == 1) {
        for (size_t t = 0; t < n; t++) {
            memcpy(&b, v + t * ld, sizeof b);
            a0 = a0 + b * p[t];
        }
    } else {
        for (size_t t = 0; t < n; t++) {
            memcpy(&b, v + t * ld, sizeof b);
            a0 = a0 + b * p[t];
            a1 = a1 + b * p1[t];
            a2 = a2 + b * p2[t];
            a3 = a3 + b * p3[t];
        }
    }
    memcpy(acc, &a0, sizeof a0);
    if (rows > 1) memcpy(acc + ldacc, &a1, sizeof a1);
    if (rows > 2) memcpy(acc + 2 * ldacc, &a2, sizeof a2);
    if (rows > 3) memcpy(acc + 3 * ldacc, &a3, sizeof a3);
}

/* acc[r * ldacc + j] += sum over t of p[r * ldp + t] * v[t * ld + j], t ascending.  Four rows at a time share what they read of v. */
TARGET static void FN(accumulate)(float *acc, size_t ldacc, size_t rows, const float *p, size_t ldp, size_t n, const float *v, size_t ld, size_t d)
{
    for (size_t r = 0; r < rows; r += 4) {
        size_t some = fh_min(4, rows - r), j = 0;
        for (; j + 16 <= d; j += 16) FN(accumulate16)(acc + r * ldacc + j, ldacc, some, p + r * ldp, ldp, n, v + j, ld);
        for (; j < d; j++)
            for (size_t k = r; k < r + some; k++)
                for (size_t t = 0; t < n; t++) acc[k * ldacc + j] += p[k * ldp + t] * v[t * ld + j];
    }
}

TARGET static float FN(sum)(const float *x, size_t n)
{
    v16 sum = {0}, v;
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        memcpy(&v, x + i, sizeof v);
        sum = sum + v;
    }
    if (i < n) {
        FN(load_some)(&v, x + i, n - i, 0);
        sum = sum + v;
    }
    return FN(lanes)(&sum);
}

/* The sum of (x - shift)^2. */
TARGET static float FN(sum_squares)(const float *x, size_t n, float shift)
{
    v16 sum = {0}, v;
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        memcpy(&v, x + i, sizeof v);
        v = v - shift;
        sum = sum + v * v;
    }
    if (i < n) {
        FN(load_some)(&v, x + i, n - i, shift);
        v = v - shift;
        sum = sum + v * v;
    }
    return FN(lanes)(&sum);
}

/* y = (x - shift) * scale * w. */
TARGET static void FN(scale)(float *y, const float *x, const float *w, size_t n, float shift, float scale)
{
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        v16 v, u;
        memcpy(&v, x + i, sizeof v);
        memcpy(&u, w + i, sizeof u);
        v = (v - shift) * scale * u;
        memcpy(y + i, &v, sizeof v);
    }
    for (; i < n; i++) y[i] = (x[i] - shift) * scale * w[i];
}

TARGET static void FN(add)(float *y, const float *x, size_t n)
{
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        v16 v, u;
        memcpy(&v, y + i, sizeof v);
        memcpy(&u, x + i, sizeof u);
        v = v + u;
        memcpy(y + i, &v, sizeof v);
    }
    for (; i < n; i++) y[i] += x[i];
}

TARGET static void FN(mul)(float *y, const float *x, size_t n)
{
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        v16 v, u;
        memcpy(&v, y + i, sizeof v);
        memcpy(&u, x + i, sizeof u);
        v = v * u;
        memcpy(y + i, &v, sizeof v);
    }
    for (; i < n; i++) y[i] *= x[i];
}

/* x / (1 + exp(-a x)): silu for a = 1, quick gelu for a = 1.702.  The tanh of gelu_tanh is one too:
 * 0.5 x (1 + tanh u) = x / (1 + exp(-2u)), u = sqrt(2 / pi) (x + 0.044715 x^3). */
TARGET static inline void FN(sigmoid16)(v16 *io, float a, bool tanh_of_cubic)
{
    v16 x = *io, e = tanh_of_cubic ? (x + x * x * x * 0.044715f) * -1.59576912f : x * -a;
    FN(exp16)(&e);
    *io = x / (e + 1.0f);
}

TARGET static void FN(sigmoid)(float *x, size_t n, float a, bool tanh_of_cubic)
{
    size_t i = 0;
    v16 v;
    for (; i + 16 <= n; i += 16) {
        memcpy(&v, x + i, sizeof v);
        FN(sigmoid16)(&v, a, tanh_of_cubic);
        memcpy(x + i, &v, sizeof v);
    }
    if (i < n) {
        FN(load_some)(&v, x + i, n - i, 0);
        FN(sigmoid16)(&v, a, tanh_of_cubic);
        memcpy(x + i, &v, (n - i) * sizeof *x);
    }
}

/* x = exp(x) in double, x of 700 at most: as exp16, Taylor to the eleventh power (the next term is below 7e-15); 0 below -700. */
TARGET static inline void FN(exp8)(v8d *x)
{
    const FN(f64) zero = {0}, low = zero - 700.0, magic = zero + 6755399441055744.0; /* 1.5 * 2^52 */
    for (size_t part = 0; part < sizeof *x; part += WIDTH) {
        FN(f64) v;
        memcpy(&v, (const char *)x + part, sizeof v);
        FN(i64) under = v < low;
        FN(f64) t = v * 1.4426950408889634 + magic, k = t - magic;
        FN(f64) r = v - k * 0.693145751953125; /* ln 2 in two parts, the first with 19 bits */
        r = r - k * 1.4286068203094173e-06;
        FN(f64) p = r * (1.0 / 39916800) + 1.0 / 3628800;
        p = p * r + 1.0 / 362880;
        p = p * r + 1.0 / 40320;
        p = p * r + 1.0 / 5040;
        p = p * r + 1.0 / 720;
        p = p * r + 1.0 / 120;
        p = p * r + 1.0 / 24;
        p = p * r + 1.0 / 6;
        p = p * r + 0.5;
        p = p * r + 1.0;
        p = p * r + 1.0;
        FN(u64) scale = ((FN(u64))t << 52) + 0x3ff0000000000000u;
        p = p * (FN(f64))scale;
        p = (FN(f64))((FN(i64))p & ~under);
        memcpy((char *)x + part, &p, sizeof p);
    }
}

/* Eight values less shift; past the end -INFINITY. */
TARGET static inline void FN(load_doubles)(v8d *to, const float *x, size_t n, double shift)
{
    float s[8];
    v8f f;
    if (n < 8) {
        for (size_t j = 0; j < 8; j++) s[j] = j < n ? x[j] : -INFINITY;
        x = s;
    }
    memcpy(&f, x, sizeof f);
    *to = __builtin_convertvector(f, v8d) - shift;
}

TARGET static void FN(exp_double)(double *out, const float *x, size_t n, double shift)
{
    for (size_t i = 0; i < n; i += 8) {
        v8d v;
        FN(load_doubles)(&v, x + i, n - i, shift);
        FN(exp8)(&v);
        memcpy(out + i, &v, fh_min(8, n - i) * sizeof *out);
    }
}

TARGET static double FN(exp_sum_double)(const float *x, size_t n, double shift)
{
    v8d sum = {0}, v;
    for (size_t i = 0; i < n; i += 8) {
        FN(load_doubles)(&v, x + i, n - i, shift);
        FN(exp8)(&v);
        sum = sum + v;
    }
    double s[8];
    memcpy(s, &sum, sizeof s);
    for (int w = 4; w; w /= 2) {
        for (int j = 0; j < w; j++) s[j] += s[j + w];
    }
    return s[0];
}

static const fh_body_math FN(table) = {
    FN(widen_bf16),  FN(widen_f16), FN(widen_q8),  FN(widen_i8),   FN(max), FN(exp_sum), FN(accumulate), FN(sum),
    FN(sum_squares), FN(scale),     FN(add), FN(mul),     FN(sigmoid),    FN(exp_double), FN(exp_sum_double),
};
