/* calib/learn_math_impl.h: the arithmetic of learned routing between its products, for each instruction set (base/each_isa.h).
 * The lanes of a strip are states and never meet; every instruction set gives the same bits. */
#include "base/lanes.h"

#define FN_LANES (WIDTH / sizeof(float))
#if WIDTH == 64
#define ROOT(x) _mm512_sqrt_ps((__m512)x)
#elif WIDTH == 32
#define ROOT(x) _mm256_sqrt_ps((__m256)x)
#elif defined(__x86_64__)
#define ROOT(x) _mm_sqrt_ps((__m128)x)
#elif defined(__aarch64__)
#define ROOT(x) vsqrtq_f32((float32x4_t)x)
#else
#define ROOT(x) ((f32_ref){sqrtf(x[0]), sqrtf(x[1]), sqrtf(x[2]), sqrtf(x[3])})
#endif

/* b where the mask is set, a where it is not. */
TARGET static inline void FN(blend)(FN(f32) *a, const FN(f32) *b, const FN(i32) *mask) { *a = (FN(f32))(((FN(i32))*b & *mask) | ((FN(i32))*a & ~*mask)); }

TARGET static void FN(scores)(float *out, size_t apart, size_t strips, const int32_t *dot, const float *scale, float by, int32_t less)
{
    for (size_t i = 0; i < strips; i++) {
        v16i sum;
        v16 columns;
        memcpy(&sum, dot + i * FH_STRIP, sizeof sum);
        memcpy(&columns, scale + i * FH_STRIP, sizeof columns);
        v16 score = __builtin_convertvector(sum - less, v16) * columns * by;
        memcpy(out + i * apart, &score, sizeof score);
    }
}

TARGET static void FN(finish)(float *z, size_t n, const float *base, const float *bias, float cap, const uint8_t *out, float *most)
{
    for (size_t part = 0; part < FH_STRIP; part += FN_LANES) {
        FN(f32) zero = {0}, top = zero - INFINITY, more, v;
        memcpy(&more, base + part, sizeof more);
        for (size_t r = 0; r < n; r++) {
            memcpy(&v, z + r * FH_STRIP + part, sizeof v);
            v = v + more;
            if (bias) v = v + bias[r];
            if (cap > 0) { /* cap tanh(v / cap) */
                FN(f32) e = v * (2 / cap);
                FN(exp_register)(&e);
                v = (1 - 2 / (e + 1)) * cap;
            }
            if (out[r]) v = zero - INFINITY;
            memcpy(z + r * FH_STRIP + part, &v, sizeof v);
            FN(i32) above = v > top;
            FN(blend)(&top, &v, &above);
        }
        memcpy(most + part, &top, sizeof top);
    }
}

TARGET static void FN(largest)(const float *z, size_t n, float *most)
{
    for (size_t part = 0; part < FH_STRIP; part += FN_LANES) {
        FN(f32) zero = {0}, top = zero - INFINITY, v;
        for (size_t r = 0; r < n; r++) {
            memcpy(&v, z + r * FH_STRIP + part, sizeof v);
            FN(i32) above = v > top;
            FN(blend)(&top, &v, &above);
        }
        memcpy(most + part, &top, sizeof top);
    }
}

TARGET static void FN(exponents)(float *z, size_t n, const float *shift, float *sum)
{
    for (size_t part = 0; part < FH_STRIP; part += FN_LANES) {
        FN(f32) all = {0}, less, v;
        memcpy(&less, shift + part, sizeof less);
        for (size_t r = 0; r < n; r++) {
            memcpy(&v, z + r * FH_STRIP + part, sizeof v);
            v = v - less;
            FN(exp_register)(&v);
            all = all + v;
            memcpy(z + r * FH_STRIP + part, &v, sizeof v);
        }
        memcpy(sum + part, &all, sizeof all);
    }
}

TARGET static void FN(gather)(float *q, const float *z, size_t n, const uint32_t *into)
{
    for (size_t part = 0; part < FH_STRIP; part += FN_LANES) {
        for (size_t r = 0; r < n; r++) {
            FN(f32) v, to;
            float *at = q + (size_t)into[r] * FH_STRIP + part;
            memcpy(&v, z + r * FH_STRIP + part, sizeof v);
            memcpy(&to, at, sizeof to);
            to = to + v;
            memcpy(at, &to, sizeof to);
        }
    }
}

TARGET static size_t FN(above)(uint32_t *rows, const float *z, size_t n, const float *bar)
{
    size_t found = 0;
    v16 least, v;
    memcpy(&least, bar, sizeof least);
    for (size_t r = 0; r < n; r++) {
        memcpy(&v, z + r * FH_STRIP, sizeof v);
        v16i over = v >= least;
        int64_t any[8], all = 0;
        memcpy(any, &over, sizeof any);
        for (int i = 0; i < 8; i++) all |= any[i];
        rows[found] = (uint32_t)r;
        found += all != 0;
    }
    return found;
}

TARGET static void FN(thin)(float *z, size_t n, const float *by, const float *start, float bound)
{
    for (size_t part = 0; part < FH_STRIP; part += FN_LANES) {
        FN(f32) zero = {0}, whole = zero + bound, room, scale, v;
        const FN(u32) sign = {0};
        memcpy(&room, start + part, sizeof room);
        memcpy(&scale, by + part, sizeof scale);
        for (size_t r = 0; r < n; r++) {
            memcpy(&v, z + r * FH_STRIP + part, sizeof v);
            v = v * scale;
            FN(u32) its = (FN(u32))v & (sign + 0x80000000u);
            FN(f32) size = (FN(f32))((FN(u32))v & ~(sign + 0x80000000u)), carried = room + size;
            FN(i32) large = size >= whole, full = carried >= whole;
            FN(f32) put = (FN(f32))((FN(u32))whole | its);
            put = (FN(f32))((FN(i32))put & full);          /* the bound or nothing */
            carried = carried - (FN(f32))((FN(i32))whole & full);
            FN(blend)(&carried, &room, &large);             /* large ones stay what they are and carry nothing */
            FN(blend)(&put, &v, &large);
            room = carried;
            memcpy(z + r * FH_STRIP + part, &put, sizeof put);
        }
    }
}

/* Eight registers of sums at a time: what is read is each row once. */
TARGET static void FN(combine)(float *g, size_t d, const float *const *rows, const float *by, size_t n)
{
    size_t j = 0;
    for (; j + 8 * FN_LANES <= d; j += 8 * FN_LANES) {
        FN(f32) a = {0}, b = a, c = a, e = a, f = a, h = a, k = a, l = a, x[8];
        for (size_t i = 0; i < n; i++) {
            memcpy(x, rows[i] + j, sizeof x);
            a = a + x[0] * by[i], b = b + x[1] * by[i], c = c + x[2] * by[i], e = e + x[3] * by[i];
            f = f + x[4] * by[i], h = h + x[5] * by[i], k = k + x[6] * by[i], l = l + x[7] * by[i];
        }
        const FN(f32) sums[8] = {a, b, c, e, f, h, k, l};
        memcpy(g + j, sums, sizeof sums);
    }
    for (; j < d; j++) {
        float sum = 0;
        for (size_t i = 0; i < n; i++) sum = sum + rows[i][j] * by[i];
        g[j] = sum;
    }
}

TARGET static void FN(adam)(float *x, float *m, float *v, const float *g, size_t n, float rate, float correct)
{
    size_t j = 0;
    for (; j + FN_LANES <= n; j += FN_LANES) {
        FN(f32) gradient, first, second, at;
        memcpy(&gradient, g + j, sizeof gradient), memcpy(&first, m + j, sizeof first), memcpy(&second, v + j, sizeof second), memcpy(&at, x + j, sizeof at);
        first = first * 0.9f + gradient * 0.1f;
        second = second * 0.999f + gradient * gradient * 0.001f;
        FN(f32) root = second * correct;
        root = (FN(f32))ROOT(root);
        at = at - first * rate / (root + 1e-12f);
        memcpy(m + j, &first, sizeof first), memcpy(v + j, &second, sizeof second), memcpy(x + j, &at, sizeof at);
    }
    for (; j < n; j++) {
        m[j] = m[j] * 0.9f + g[j] * 0.1f;
        v[j] = v[j] * 0.999f + g[j] * g[j] * 0.001f;
        x[j] = x[j] - m[j] * rate / (sqrtf(v[j] * correct) + 1e-12f);
    }
}

static const fh_learn_math FN(table) = {FN(scores), FN(finish), FN(largest), FN(exponents), FN(gather), FN(above), FN(thin), FN(combine), FN(adam)};
#undef FN_LANES
#undef ROOT
