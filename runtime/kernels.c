/* kernels.c: which table of kernels this CPU gets, states for int8 rows, and products over many rows. */
#include "runtime/kernels.h"

#include "runtime/runtime.h"

#include <float.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include "base/neon.h"
#endif

/* ---- choosing ------------------------------------------------------------------------------------------------ */

#if defined(__x86_64__)
static bool has_f16c(void) /* clang 14 does not know "f16c" */
{
    static atomic_int known; /* 0 not asked yet, 1 no, 2 yes: asking takes a virtual machine microseconds */
    int has = atomic_load_explicit(&known, memory_order_relaxed);
    if (!has) {
        unsigned a, b, c, d;
        has = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) ? 2 : 1;
        atomic_store_explicit(&known, has, memory_order_relaxed);
    }
    return has == 2;
}
#endif

static bool can_run(const fh_kernels *k)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                  __builtin_cpu_supports("avx512dq");
    if (k == &fh_kernels_avx2) return avx2;
    if (k == &fh_kernels_avx512) return avx512;
    if (k == &fh_kernels_avx512_vnni) return avx512 && __builtin_cpu_supports("avx512vnni");
#elif defined(__aarch64__)
    if (k == &fh_kernels_neon) return fh_has_neon();
    if (k == &fh_kernels_neon_dotprod) return fh_has_sdot();
#endif
    return k == &fh_kernels_ref;
}

static const fh_kernels *const tables[] = {
    &fh_kernels_ref,
#if defined(__x86_64__)
    &fh_kernels_avx2,
    &fh_kernels_avx512,
    &fh_kernels_avx512_vnni,
#elif defined(__aarch64__)
    &fh_kernels_neon,
    &fh_kernels_neon_dotprod,
#endif
};
enum { TABLES = sizeof tables / sizeof *tables };

const fh_kernels *fh_kernels_at(size_t i)
{
    for (size_t t = 0; t < TABLES; t++)
        if (can_run(tables[t]) && i-- == 0) return tables[t];
    return NULL;
}

static const fh_kernels *best(void)
{
    const fh_kernels *k = &fh_kernels_ref, *next;
    for (size_t i = 0; (next = fh_kernels_at(i)) != NULL; i++) k = next;
    return k;
}

fh_status fh_kernels_choose(const fh_kernels **out, const char *isa, fh_err *err)
{
    if (!isa || !*isa) {
        *out = best();
        return FH_OK;
    }
    if (strcmp(isa, "ref") != 0 && strcmp(isa, "avx2") != 0 && strcmp(isa, "avx512") != 0 && strcmp(isa, "neon") != 0)
        return fh_fail(err, FH_EUSAGE, "FH_ISA=%s: no such kernels; use ref, avx2, avx512 or neon, or leave it unset", isa);
    const fh_kernels *found = NULL, *k;
    for (size_t i = 0; (k = fh_kernels_at(i)) != NULL; i++)
        if (strcmp(k->name, isa) == 0) found = k;
    if (!found) return fh_fail(err, FH_EUNSUPPORTED, "FH_ISA=%s: this CPU cannot run these kernels; leave it unset for the best it can",
                               isa);
    *out = found;
    return FH_OK;
}

const fh_kernels *fh_kernels_for(const fh_kernels *k, uint64_t bytes) { return k->cached && bytes <= fh_last_cache() / 2 ? k->cached : k; }

/* Threads that race decide alike. */
const fh_kernels *fh_kernels_shared(void)
{
    static _Atomic(const fh_kernels *) chosen;
    const fh_kernels *k = atomic_load_explicit(&chosen, memory_order_acquire);
    if (!k) {
        if (fh_kernels_choose(&k, getenv("FH_ISA"), NULL) < 0) k = best();
        atomic_store_explicit(&chosen, k, memory_order_release);
    }
    return k;
}

const char *fh_isa_name(void) { return fh_kernels_shared()->name; }

/* ---- states --------------------------------------------------------------------------------------------------- */

void fh_state_quantize(fh_state *s, const float *x, size_t d, void *room)
{
    size_t padded = fh_round_up(d, FH_LINE_VALUES);
    int16_t *q = room;
    int8_t *hi = (int8_t *)(q + padded), *lo = hi + padded;
    int32_t *quads = (int32_t *)(void *)(lo + padded);
    float max = 0;
    for (size_t i = 0; i < d; i++) max = fmaxf(max, fabsf(x[i]));
    /* In double: max may be subnormal, and a float32 scale then too coarse to keep q in range. */
    double inverse = max > 0 ? FH_STATE_MAX / (double)max : 0;
    int64_t sum = 0;
    for (size_t i = 0; i < d; i++) {
        const double to_nearest_even = 0x1.8p52;
        int v = (int)((double)x[i] * inverse + to_nearest_even - to_nearest_even);
        int h = (v + 128) >> 8;
        q[i] = (int16_t)v;
        hi[i] = (int8_t)h;
        lo[i] = (int8_t)(v - 256 * h);
        sum += v;
    }
    memset(q + d, 0, (padded - d) * sizeof *q);
    memset(hi + d, 0, padded - d);
    memset(lo + d, 0, padded - d);
    for (size_t i = 0; i < padded; i += 4) quads[i / 4] = -8 * (q[i] + q[i + 1] + q[i + 2] + q[i + 3]);
    *s = (fh_state){x, q, hi, lo, quads, sum, (double)max / FH_STATE_MAX, NULL, NULL};
}

void fh_state_blocks(fh_state *s, const float *x, size_t d, void *room)
{
    float *scales = room;
    int16_t *q = (int16_t *)(void *)(scales + d / FH_Q8_VALUES);
    s->f = x, s->block_q = q, s->block_scale = scales;
    for (size_t b = 0; b < d / FH_Q8_VALUES; b++, x += FH_Q8_VALUES, q += FH_Q8_VALUES) {
        uint32_t bits[FH_Q8_VALUES], most = 0; /* of numbers without a sign, the order of floats is that of their bits */
        memcpy(bits, x, sizeof bits);
        for (size_t i = 0; i < FH_Q8_VALUES; i++) most = fh_max(most, bits[i] & 0x7fffffff);
        float max, inverse;
        memcpy(&max, &most, sizeof max);
        if (!(max <= FLT_MAX)) scales[b] = NAN, inverse = 0;
        else if (max < FLT_MIN * FH_BLOCK_MAX) scales[b] = 0, inverse = 0;
        else scales[b] = max / FH_BLOCK_MAX, inverse = FH_BLOCK_MAX / max;
        const float to_nearest_even = 0x1.8p23f; /* the integer is then in the last bits */
        const uint32_t zero = 0x4b400000;
        for (size_t i = 0; i < FH_Q8_VALUES; i++) {
            float v = x[i] * inverse + to_nearest_even;
            uint32_t u;
            memcpy(&u, &v, sizeof u);
            q[i] = (int16_t)(u - zero);
        }
        if (inverse == 0) memset(q, 0, FH_Q8_VALUES * sizeof *q);
    }
}

/* ---- many rows -------------------------------------------------------------------------------------------------- */

enum { GROUP = 64 }; /* rows a call of a kernel: pointers to them fit two pages of stack, and the call costs nothing */

void fh_dots(const fh_kernels *k, const fh_rows *rows, const void *scales, const uint32_t *index, size_t first, size_t n,
             const fh_state *const *states, size_t m, float *out, size_t ldo)
{
    const void *row[GROUP + 1], *groups[GROUP + 1];
    float scale[GROUP];
    bool i4 = rows->dtype == FH_I4, i8 = rows->dtype == FH_I8;
    size_t step = fh_scale_bytes(rows->dtype, rows->cols);
    for (size_t begin = 0; begin < n; begin += GROUP) {
        size_t count = fh_min(GROUP, n - begin);
        for (size_t i = 0; i < count; i++) {
            size_t r = index ? index[begin + i] : first + begin + i;
            row[i] = fh_row(rows, r);
            if (i8) scale[i] = ((const float *)scales)[r];
            if (i4) groups[i] = (const uint8_t *)scales + r * step;
        }
        size_t next = begin + count < n ? (index ? index[begin + count] : first + begin + count) : 0;
        row[count] = next ? fh_row(rows, next) : row[count - 1];
        if (i4) {
            groups[count] = next ? (const uint8_t *)scales + next * step : groups[count - 1];
            k->groups(row, groups, count, rows->cols, states, m, out + begin, ldo);
            continue;
        }
        fh_dot *dot = rows->dtype != FH_Q8_0 ? k->dot[rows->dtype] : m == 1 && states[0]->block_q ? k->q8_rounded : k->q8;
        dot(row, scale, count, rows->cols, states, m, out + begin, ldo);
    }
}

/* ---- matrix times vector ------------------------------------------------------------------------------------------ */

typedef struct matvec { const fh_kernels *kernels; const fh_rows *rows; const fh_state *state; float *out; size_t step; } matvec;

static void matvec_task(void *ctx, size_t task, unsigned worker)
{
    const matvec *v = ctx;
    size_t first = task * v->step;
    fh_dots(v->kernels, v->rows, NULL, NULL, first, fh_min(v->step, v->rows->rows - first), &v->state, 1, v->out + first, 0);
}

enum { TASK_BYTES = 128 << 10, ALONE_BYTES = 128 << 10 };

void fh_matvec(fh_pool *pool, const fh_rows *rows, const float *x, float *out)
{
    fh_state state = {.f = x};
    size_t step = fh_max(GROUP, TASK_BYTES / fh_max(rows->stride, 1) / GROUP * GROUP);
    matvec v = {fh_kernels_shared(), rows, &state, out, step};
    bool alone = rows->rows * rows->stride < ALONE_BYTES;
    fh_pool_run(alone ? NULL : pool, (rows->rows + step - 1) / step, matvec_task, &v);
}
