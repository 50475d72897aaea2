/* kernels_ref.c: the dot products in plain C.  They are the definition, the fallback, and what the others are tested against. */
#include "runtime/kernels.h"

#include <math.h>
#include <string.h>

enum { LANES = 16 };

static float load_one(fh_dtype t, const uint8_t *row, size_t i)
{
    float f;
    uint16_t h;
    if (t == FH_F32) {
        memcpy(&f, row + 4 * i, sizeof f);
        return f;
    }
    memcpy(&h, row + 2 * i, sizeof h);
    return t == FH_BF16 ? fh_bf16_to_f32(h) : fh_f16_to_f32(h);
}

static float dot_float(fh_dtype t, const uint8_t *row, size_t d, const float *x)
{
    float lane[LANES] = {0};
    for (size_t i = 0; i < d; i += LANES)
        for (size_t j = 0; j < LANES; j++) {
            bool past = i + j >= d; /* fma with zeros is not nothing: it turns a lane of -0 into +0 */
            lane[j] = fmaf(past ? 0.0f : load_one(t, row, i + j), past ? 0.0f : x[i + j], lane[j]);
        }
    for (size_t half = LANES / 2; half > 0; half /= 2)
        for (size_t j = 0; j < half; j++) lane[j] += lane[j + half];
    return lane[0];
}

static void dots_float(fh_dtype t, const void *const *rows, size_t n, size_t d, const fh_state *const *states, size_t m, float *out,
                       size_t ldo)
{
    for (size_t s = 0; s < m; s++)
        for (size_t r = 0; r < n; r++) out[s * ldo + r] = dot_float(t, rows[r], d, states[s]->f);
}

static void fh_dot_f32_ref(const void *const *rows, const float *scales, size_t n, size_t d, const fh_state *const *states, size_t m,
                           float *out, size_t ldo)
{
    dots_float(FH_F32, rows, n, d, states, m, out, ldo);
}

static void fh_dot_bf16_ref(const void *const *rows, const float *scales, size_t n, size_t d, const fh_state *const *states, size_t m,
                            float *out, size_t ldo)
{
    dots_float(FH_BF16, rows, n, d, states, m, out, ldo);
}

static void fh_dot_f16_ref(const void *const *rows, const float *scales, size_t n, size_t d, const fh_state *const *states, size_t m,
                           float *out, size_t ldo)
{
    dots_float(FH_F16, rows, n, d, states, m, out, ldo);
}

static void fh_dot_i8_ref(const void *const *rows, const float *scales, size_t n, size_t d, const fh_state *const *states, size_t m,
                          float *out, size_t ldo)
{
    for (size_t s = 0; s < m; s++)
        for (size_t r = 0; r < n; r++) {
            const int8_t *row = rows[r];
            int64_t total = 0;
            for (size_t i = 0; i < d; i++) total += (int32_t)row[i] * states[s]->q[i];
            out[s * ldo + r] = fh_i8_result(total, scales[r], states[s]->scale);
        }
}

/* Bits 0 to 3 as two's complement. */
static int32_t nibble(unsigned bits) { return (int32_t)((bits & 15) ^ 8) - 8; }

static float dot_groups(const uint8_t *row, const uint8_t *scales, size_t d, const fh_state *state)
{
    float lane[2 * LANES] = {0};
    for (size_t i = 0; i < d; i += 4) { /* no group, line or half of one ends within four */
        int32_t total = 0;
        size_t at = i / FH_LINE_VALUES * 64 + i % 64, lanes = i % FH_LINE_VALUES / 4;
        unsigned shift = i % FH_LINE_VALUES < 64 ? 0 : 4;
        uint16_t scale;
        memcpy(&scale, scales + i / FH_GROUP * sizeof scale, sizeof scale);
        for (size_t j = 0; j < 4; j++) total += nibble(row[at + j] >> shift) * state->q[i + j];
        lane[lanes] = fmaf((float)total, fh_bf16_to_f32(scale), lane[lanes]);
    }
    for (size_t half = LANES; half > 0; half /= 2)
        for (size_t j = 0; j < half; j++) lane[j] += lane[j + half];
    return (float)((double)lane[0] * state->scale);
}

void fh_dot_i4_ref(const void *const *rows, const void *const *scales, size_t n, size_t d, const fh_state *const *states, size_t m,
                   float *out, size_t ldo)
{
    for (size_t s = 0; s < m; s++)
        for (size_t r = 0; r < n; r++) out[s * ldo + r] = dot_groups(rows[r], scales[r], d, states[s]);
}

const fh_kernels fh_kernels_ref = {
    "ref", "", {[FH_F32] = fh_dot_f32_ref, [FH_BF16] = fh_dot_bf16_ref, [FH_F16] = fh_dot_f16_ref, [FH_I8] = fh_dot_i8_ref},
    fh_dot_q8_ref, fh_dot_q8_rounded_ref, fh_dot_i4_ref, NULL};
