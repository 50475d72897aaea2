/* format/dtype.c: the number types of tensors, and the way from one to another. */
#include "format/format.h"

#include <assert.h>
#include <string.h>

/* Sizes in bits as the safetensors format fixes them; C64 is two 32-bit floats. */
static const struct { const char *name, *st_name; unsigned bits; } types[FH_DTYPES] = {
    [FH_F32] = {"f32", "F32", 32},
    [FH_BF16] = {"bf16", "BF16", 16},
    [FH_F16] = {"f16", "F16", 16},
    [FH_I8] = {"int8", "I8", 8},
    [FH_I4] = {"int4", "I4", 4},
    [FH_F64] = {"f64", "F64", 64},
    [FH_I64] = {"int64", "I64", 64},
    [FH_I32] = {"int32", "I32", 32},
    [FH_I16] = {"int16", "I16", 16},
    [FH_U64] = {"uint64", "U64", 64},
    [FH_U32] = {"uint32", "U32", 32},
    [FH_U16] = {"uint16", "U16", 16},
    [FH_U8] = {"uint8", "U8", 8},
    [FH_BOOL] = {"bool", "BOOL", 8},
    [FH_C64] = {"c64", "C64", 64},
    [FH_F8_E5M2] = {"f8_e5m2", "F8_E5M2", 8},
    [FH_F8_E4M3] = {"f8_e4m3", "F8_E4M3", 8},
    [FH_F8_E8M0] = {"f8_e8m0", "F8_E8M0", 8},
    [FH_F8_E4M3FNUZ] = {"f8_e4m3fnuz", "F8_E4M3FNUZ", 8},
    [FH_F8_E5M2FNUZ] = {"f8_e5m2fnuz", "F8_E5M2FNUZ", 8},
    [FH_F6_E2M3] = {"f6_e2m3", "F6_E2M3", 6},
    [FH_F6_E3M2] = {"f6_e3m2", "F6_E3M2", 6},
    [FH_F4] = {"f4", "F4", 4},
};

const char *fh_dtype_name(fh_dtype t)
{
    if (t == FH_Q8_0) return "q8_0";
    return (unsigned)t < FH_DTYPES ? types[t].name : "unknown";
}

const char *fh_dtype_st_name(fh_dtype t)
{
    return (unsigned)t < FH_DTYPES ? types[t].st_name : "unknown";
}

unsigned fh_dtype_bits(fh_dtype t)
{
    return (unsigned)t < FH_DTYPES ? types[t].bits : 0;
}

bool fh_dtype_parse(fh_dtype *out, const char *name)
{
    static const fh_dtype encodings[] = {FH_F32, FH_BF16, FH_F16, FH_I8, FH_I4};
    for (size_t i = 0; i < sizeof encodings / sizeof *encodings; i++) {
        if (strcmp(name, types[encodings[i]].name) == 0) {
            *out = encodings[i];
            return true;
        }
    }
    return false;
}

size_t fh_row_bytes(fh_dtype encoding, size_t cols)
{
    if (encoding == FH_Q8_0) return cols / FH_Q8_VALUES * FH_Q8_BYTES;
    return encoding == FH_I4 ? fh_round_up(cols, 128) / 2 : cols * fh_dtype_size(encoding);
}

size_t fh_scale_bytes(fh_dtype encoding, size_t cols)
{
    if (encoding == FH_I8) return sizeof(float);
    return encoding == FH_I4 ? (cols + FH_GROUP - 1) / FH_GROUP * sizeof(uint16_t) : 0;
}

static inline float float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float bf16_to_f32(uint16_t x)
{
    return float_of((uint32_t)x << 16);
}

static inline float f16_to_f32(uint16_t x)
{
    uint32_t sign = (uint32_t)(x & 0x8000u) << 16, exponent = (x >> 10) & 31u, fraction = x & 0x3FFu;
    if (exponent == 31) return float_of(sign | 0x7F800000u | fraction << 13); /* infinity, or the same NaN */
    if (exponent != 0) return float_of(sign | (exponent + 112) << 23 | fraction << 13);
    /* Zero and subnormals count in steps of 2^-24; float32 holds every such product exactly. */
    float magnitude = (float)fraction * 0x1p-24f;
    return sign ? -magnitude : magnitude;
}

float fh_bf16_to_f32(uint16_t x) { return bf16_to_f32(x); }
float fh_f16_to_f32(uint16_t x) { return f16_to_f32(x); }

uint16_t fh_f32_to_bf16(float x)
{
    uint32_t bits = bits_of(x);
    /* Rounding could carry a NaN's fraction into infinity: keep its upper bits and make it quiet. */
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

uint16_t fh_f32_to_f16(float x)
{
    uint32_t bits = bits_of(x), magnitude = bits & 0x7FFFFFFFu;
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    if (magnitude > 0x7F800000u) return (uint16_t)(sign | 0x7E00u | (magnitude >> 13 & 0x3FFu));
    if (magnitude >= 0x477FF000u) return (uint16_t)(sign | 0x7C00u); /* 65520 and up round to infinity */
    if (magnitude < 0x38800000u) {
        /* Below 2^-14: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits of the sum, since 0.5's own last bit is 2^-24. */
        return (uint16_t)(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3F000000u));
    }
    uint32_t rounded = magnitude + 0xFFFu + (magnitude >> 13 & 1u);
    return (uint16_t)(sign | (rounded - 0x38000000u) >> 13);
}

void fh_to_f32(float *dst, fh_dtype from, const void *src, size_t n)
{
    const uint8_t *s = src;
    uint16_t half;
    assert(fh_dtype_is_float(from)); /* the callers have checked the file's dtype */
    if (from == FH_F32) {
        if (n) memcpy(dst, src, n * sizeof *dst);
    } else if (from == FH_BF16) {
        for (size_t i = 0; i < n; i++) {
            memcpy(&half, s + 2 * i, sizeof half);
            dst[i] = bf16_to_f32(half);
        }
    } else {
        for (size_t i = 0; i < n; i++) {
            memcpy(&half, s + 2 * i, sizeof half);
            dst[i] = f16_to_f32(half);
        }
    }
}

float fh_scale_at(fh_dtype encoding, const void *scales, size_t i)
{
    return encoding == FH_I4 ? bf16_to_f32(((const uint16_t *)scales)[i]) : ((const float *)scales)[i];
}

void fh_dec_row(fh_dtype encoding, const void *src, const void *scales, size_t cols, float *dst)
{
    const int8_t *q = src;
    const uint8_t *bytes = src;
    if (encoding == FH_Q8_0) {
        for (size_t at = 0; at < cols; at += FH_Q8_VALUES, bytes += FH_Q8_BYTES) {
            float scale = f16_to_f32((uint16_t)(bytes[0] | bytes[1] << 8));
            for (size_t i = 0; i < FH_Q8_VALUES; i++) dst[at + i] = scale * (float)(int8_t)bytes[2 + i];
        }
        return;
    }
    if (!fh_dtype_is_integer(encoding)) fh_to_f32(dst, encoding, src, cols);
    for (size_t i = 0; encoding == FH_I8 && i < cols; i++) dst[i] = (float)q[i] * *(const float *)scales;
    for (size_t i = 0; encoding == FH_I4 && i < cols; i++) {
        int v = bytes[i / 128 * 64 + i % 64] >> (i % 128 < 64 ? 0 : 4) & 15;
        dst[i] = (float)((v ^ 8) - 8) * fh_scale_at(FH_I4, scales, i / FH_GROUP);
    }
}
