/* The number types: every half-precision value both ways, and rounding against exact arithmetic. */
#include "format_files.h"

#include <math.h>

static uint32_t bits_of(float x)
{
    uint32_t b;
    memcpy(&b, &x, sizeof b);
    return b;
}

static float float_of(uint32_t b)
{
    float x;
    memcpy(&x, &b, sizeof x);
    return x;
}

static void every_f16_reads_as_its_value(void **state)
{
    for (uint32_t x = 0; x <= 0xFFFF; x++) {
        unsigned exponent = x >> 10 & 31, fraction = x & 0x3FF;
        double magnitude = exponent == 31 ? INFINITY : exponent ? ldexp(1024 + fraction, (int)exponent - 25) : ldexp(fraction, -24);
        float got = fh_f16_to_f32((uint16_t)x);
        if (exponent == 31 && fraction) assert_true(isnan(got));
        else assert_true(fabs(got) == magnitude);
        assert_int_equal(bits_of(got) >> 31, x >> 15);
    }
}

static void every_half_value_survives_the_way_there_and_back(void **state)
{
    for (uint32_t x = 0; x <= 0xFFFF; x++) {
        uint16_t f16 = fh_f32_to_f16(fh_f16_to_f32((uint16_t)x)), bf16 = fh_f32_to_bf16(fh_bf16_to_f32((uint16_t)x));
        assert_int_equal(f16, (x & 0x7C00) == 0x7C00 && (x & 0x3FF) ? x | 0x200 : x); /* a NaN becomes quiet */
        assert_int_equal(bf16, (x & 0x7F80) == 0x7F80 && (x & 0x7F) ? x | 0x40 : x);
    }
}

/* The nearest of all values, the even one of two: by search, not by the method under test. */
static uint16_t nearest(float x, float (*up)(uint16_t), uint16_t infinity, double limit)
{
    if (fabs(x) >= limit) return (uint16_t)(infinity | (signbit(x) ? 0x8000 : 0));
    uint32_t low = 0, high = infinity; /* up(low) <= |x| < up(high) */
    while (high - low > 1) {
        uint32_t middle = (low + high) / 2;
        if (up((uint16_t)middle) <= fabsf(x)) low = middle;
        else high = middle;
    }
    double next = high == infinity ? limit + (limit - up((uint16_t)low)) : up((uint16_t)high);
    double below = fabs(x) - up((uint16_t)low), above = next - fabs(x);
    uint32_t best = below < above || (below == above && low % 2 == 0) ? low : high;
    return (uint16_t)(best | (signbit(x) ? 0x8000 : 0));
}

static void rounding_is_to_nearest_even_everywhere(void **state)
{
    /* Around every f16 value and every midpoint, and for random floats. */
    fh_rng r;
    fh_rng_seed(&r, 1, 0);
    for (uint32_t i = 0; i < 400000; i++) {
        static const uint32_t steps[] = {UINT32_MAX, 0, 1, 0x1000, 0x1001};
        uint32_t b = i < 0x7C00 * 5 ? bits_of(fh_f16_to_f32((uint16_t)(i / 5))) + steps[i % 5] : (uint32_t)fh_rng_u64(&r);
        if (i % 2) b ^= 0x80000000u;
        float x = float_of(b);
        if (isnan(x)) continue;
        assert_int_equal(fh_f32_to_f16(x), nearest(x, fh_f16_to_f32, 0x7C00, 65520));
        assert_int_equal(fh_f32_to_bf16(x), nearest(x, fh_bf16_to_f32, 0x7F80, 0x1.ffp127));
    }
}

static void nan_and_infinity_stay_what_they_are(void **state)
{
    static const uint32_t nans[] = {0x7F800001, 0x7FC00000, 0xFF800001, 0xFFFFFFFF, 0x7FFFFFFF, 0x7F801FFF};
    for (size_t i = 0; i < sizeof nans / sizeof *nans; i++) {
        assert_true(isnan(fh_f16_to_f32(fh_f32_to_f16(float_of(nans[i])))));
        assert_true(isnan(fh_bf16_to_f32(fh_f32_to_bf16(float_of(nans[i])))));
    }
    assert_int_equal(fh_f32_to_f16(INFINITY), 0x7C00);
    assert_int_equal(fh_f32_to_bf16(-INFINITY), 0xFF80);
    assert_int_equal(fh_f32_to_f16(65519.996f), 0x7BFF);
    assert_int_equal(fh_f32_to_f16(65520.0f), 0x7C00);
    assert_int_equal(fh_f32_to_bf16(3.4028235e38f), 0x7F80);
    assert_int_equal(fh_f32_to_f16(0x1p-25f), 0);
    assert_int_equal(fh_f32_to_f16(0x1.000002p-25f), 1);
    assert_int_equal(fh_f32_to_f16(-0.0f), 0x8000);
}

static void arrays_convert_from_any_address(void **state)
{
    uint8_t raw[1 + 3 * 4];
    float out[3];
    static const uint16_t bf16[] = {0x3F80, 0xC000, 0x4049}, f16[] = {0x3C00, 0xC000, 0x4248};
    static const float f32[] = {1, -2, 3.140625f};
    memcpy(raw + 1, bf16, sizeof bf16);
    fh_to_f32(out, FH_BF16, raw + 1, 3);
    assert_memory_equal(out, f32, sizeof f32);
    memcpy(raw + 1, f16, sizeof f16);
    fh_to_f32(out, FH_F16, raw + 1, 3);
    assert_memory_equal(out, f32, sizeof f32);
    memcpy(raw + 1, f32, sizeof f32);
    fh_to_f32(out, FH_F32, raw + 1, 3);
    assert_memory_equal(out, f32, sizeof f32);
    fh_to_f32(out, FH_F32, NULL, 0);
}

static void names_and_sizes_agree_with_the_format(void **state)
{
    static const struct { fh_dtype t; const char *name, *st; unsigned bits; } want[] = {
        {FH_F32, "f32", "F32", 32}, {FH_BF16, "bf16", "BF16", 16}, {FH_F16, "f16", "F16", 16}, {FH_I8, "int8", "I8", 8},
        {FH_I4, "int4", "I4", 4},
        {FH_F64, "f64", "F64", 64}, {FH_C64, "c64", "C64", 64}, {FH_BOOL, "bool", "BOOL", 8}, {FH_F8_E4M3, "f8_e4m3", "F8_E4M3", 8},
        {FH_F6_E2M3, "f6_e2m3", "F6_E2M3", 6}, {FH_F4, "f4", "F4", 4}, {FH_DTYPES, "unknown", "unknown", 0},
    };
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        assert_string_equal(fh_dtype_name(want[i].t), want[i].name);
        assert_string_equal(fh_dtype_st_name(want[i].t), want[i].st);
        assert_int_equal(fh_dtype_bits(want[i].t), want[i].bits);
    }
    for (int i = 0; i < FH_DTYPES; i++) assert_true(fh_dtype_bits((fh_dtype)i) > 0);
}

static void only_the_encodings_are_parsed(void **state)
{
    fh_dtype t = FH_DTYPES;
    assert_true(fh_dtype_parse(&t, "f32") && t == FH_F32);
    assert_true(fh_dtype_parse(&t, "bf16") && t == FH_BF16);
    assert_true(fh_dtype_parse(&t, "f16") && t == FH_F16);
    assert_true(fh_dtype_parse(&t, "int8") && t == FH_I8);
    assert_true(fh_dtype_parse(&t, "int4") && t == FH_I4);
    assert_false(fh_dtype_parse(&t, "F32"));
    assert_false(fh_dtype_parse(&t, "f64"));
    assert_false(fh_dtype_parse(&t, "int"));
    assert_false(fh_dtype_parse(&t, ""));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_f16_reads_as_its_value),
        cmocka_unit_test(every_half_value_survives_the_way_there_and_back),
        cmocka_unit_test(rounding_is_to_nearest_even_everywhere),
        cmocka_unit_test(nan_and_infinity_stay_what_they_are),
        cmocka_unit_test(arrays_convert_from_any_address),
        cmocka_unit_test(names_and_sizes_agree_with_the_format),
        cmocka_unit_test(only_the_encodings_are_parsed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
