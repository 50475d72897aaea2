#include "tests/unit/body_cases.h"

#include "runtime/body_private.h"

static void near(float got, double wanted)
{
    if (!(fabs(got - wanted) <= 4e-7 * fabs(wanted))) fail_msg("%.9g is not %.9g", got, wanted);
}

static const fh_rope plain = {.type = FH_ROPE_DEFAULT, .theta = 10000, .factor = 1, .partial = 1};

static void plain_frequencies_fall_geometrically(void **state)
{
    float f[32];
    assert_int_equal(fh_rope_dims(&plain, 64), 64);
    fh_rope_frequencies(&plain, 64, 4096, 1, f);
    for (int i = 0; i < 32; i++) near(f[i], pow(10000, -i / 32.0));
}

static void linear_scaling_divides(void **state)
{
    fh_rope r = plain;
    float f[32];
    r.type = FH_ROPE_LINEAR;
    r.factor = 4;
    fh_rope_frequencies(&r, 64, 4096, 1, f);
    for (int i = 0; i < 32; i++) near(f[i], pow(10000, -i / 32.0) / 4);
}

static void llama3_frequencies_are_those_of_llama_3_2_1b(void **state)
{
    static const struct {
        int i;
        double f;
    } wanted[] = {{0, 1},
                  {1, 0.663601238},
                  {14, 0.00321144599},
                  {15, 0.00129054793},
                  {16, 0.000429556797},
                  {17, 9.7082878e-05},
                  {18, 1.94616382e-05},
                  {31, 9.41830673e-08}};
    fh_rope r = {.type = FH_ROPE_LLAMA3,
                 .theta = 5e5,
                 .factor = 32,
                 .partial = 1,
                 .low_freq_factor = 1,
                 .high_freq_factor = 4,
                 .original_max_position = 8192};
    float f[32];
    fh_rope_frequencies(&r, 64, 131072, 1, f);
    for (size_t k = 0; k < sizeof wanted / sizeof *wanted; k++) near(f[wanted[k].i], wanted[k].f);
}

static void yarn_blends_between_its_two_dimensions(void **state)
{
    static const struct {
        int i;
        double f;
    } wanted[] = {{0, 1}, {1, 0.805842188}, {20, 0.0133352143}, {30, 0.00106436098}, {40, 4.44569853e-05}, {63, 3.1023444e-07}};
    fh_rope r = {.type = FH_ROPE_YARN,
                 .theta = 1e6,
                 .factor = 4,
                 .partial = 1,
                 .beta_fast = 32,
                 .beta_slow = 1,
                 .truncate = true,
                 .original_max_position = 32768};
    float f[64];
    fh_rope_frequencies(&r, 128, 131072, 1, f);
    for (size_t k = 0; k < sizeof wanted / sizeof *wanted; k++) near(f[wanted[k].i], wanted[k].f);
    near(fh_rope_attention_factor(&r), 1.13862944);
    r.attention_factor = 2;
    near(fh_rope_attention_factor(&r), 2);
    r.attention_factor = 0, r.mscale = 1, r.mscale_all_dim = 2;
    near(fh_rope_attention_factor(&r), (0.1 * log(4) + 1) / (0.2 * log(4) + 1));
    near(fh_rope_attention_factor(&plain), 1);
}

static void dynamic_scaling_begins_past_the_trained_length(void **state)
{
    fh_rope r = {.type = FH_ROPE_DYNAMIC, .theta = 1e4, .factor = 2, .partial = 1};
    float f[64], g[64];
    fh_rope_frequencies(&r, 128, 4096, 4096, f);
    fh_rope_frequencies(&plain, 128, 4096, 4096, g);
    assert_memory_equal(f, g, sizeof f);
    fh_rope_frequencies(&r, 128, 4096, 8192, f);
    for (int i = 0; i < 64; i++) near(f[i], pow(30527.7367, -i / 64.0));
}

static void divisors_divide_one_frequency_each(void **state)
{
    fh_json *list = fh_json_array();
    for (int i = 0; i < 4; i++) fh_json_add_double(list, NULL, 1 + 0.5 * i);
    fh_rope r = {.type = FH_ROPE_DIVIDED, .theta = 1e4, .partial = 1, .factor = 1, .attention_factor = 1.5, .divisors = list};
    float f[4];
    assert_int_equal(fh_rope_check(&r, 8, 2048, "config.json", NULL), FH_OK);
    fh_rope_frequencies(&r, 8, 2048, 1, f);
    for (int i = 0; i < 4; i++) near(f[i], pow(1e4, -i / 4.0) / (1 + 0.5 * i));
    near(fh_rope_attention_factor(&r), 1.5);
    fh_json_free(list);
}

static void a_share_of_a_head_has_frequencies_of_its_own_length(void **state)
{
    fh_rope r = plain;
    float f[8];
    r.partial = 0.25;
    assert_int_equal(fh_rope_dims(&r, 64), 16);
    assert_int_equal(fh_rope_dims(&r, 80), 20);
    fh_rope_frequencies(&r, 64, 2048, 1, f);
    for (int i = 0; i < 8; i++) near(f[i], pow(10000, -i / 8.0));
}

static void rotation_pairs_the_two_halves_and_leaves_the_rest(void **state)
{
    float x[6] = {1, 2, 3, 4, 5, 6}, cs[2] = {0, 1}, sn[2] = {1, 0};
    const float wanted[6] = {-3, 2, 1, 4, 5, 6};
    fh_rope_rotate(x, cs, sn, 4);
    assert_memory_equal(x, wanted, sizeof x);
}

static void parameters_that_cannot_be_meant_are_refused(void **state)
{
    const fh_rope bad[] = {
        {.type = FH_ROPE_DEFAULT, .theta = 1, .partial = 1},
        {.type = FH_ROPE_DEFAULT, .theta = NAN, .partial = 1},
        {.type = FH_ROPE_DEFAULT, .theta = 1e4, .partial = 0},
        {.type = FH_ROPE_DEFAULT, .theta = 1e4, .partial = NAN},
        {.type = FH_ROPE_DEFAULT, .theta = 1e4, .partial = 1.5},
        {.type = FH_ROPE_DEFAULT, .theta = 1e4, .partial = 0.2}, /* 12.8: 12 is even; see below for 13 */
        {.type = FH_ROPE_LINEAR, .theta = 1e4, .partial = 1, .factor = 0},
        {.type = FH_ROPE_LLAMA3,
         .theta = 1e4,
         .partial = 1,
         .factor = 8,
         .low_freq_factor = 4,
         .high_freq_factor = 4,
         .original_max_position = 32},
        {.type = FH_ROPE_YARN, .theta = 1e4, .partial = 1, .factor = 8, .beta_fast = 32, .beta_slow = 1},
        {.type = FH_ROPE_DYNAMIC, .theta = 1e4, .partial = 1, .factor = 0.5},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        fh_err err = {0};
        uint32_t head = i == 5 ? 65 : 64; /* 0.2 * 65 = 13 */
        if (fh_rope_check(&bad[i], head, 2048, "config.json", &err) != FH_EFORMAT) fail_msg("row %zu is accepted", i);
        assert_non_null(strstr(err.text, "config.json"));
    }
    assert_int_equal(fh_rope_check(&plain, 64, 2048, "config.json", NULL), FH_OK);
    assert_int_equal(fh_rope_check(&(fh_rope){.type = FH_ROPE_NONE}, 64, 2048, "config.json", NULL), FH_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_frequencies_fall_geometrically),
        cmocka_unit_test(linear_scaling_divides),
        cmocka_unit_test(llama3_frequencies_are_those_of_llama_3_2_1b),
        cmocka_unit_test(yarn_blends_between_its_two_dimensions),
        cmocka_unit_test(dynamic_scaling_begins_past_the_trained_length),
        cmocka_unit_test(divisors_divide_one_frequency_each),
        cmocka_unit_test(a_share_of_a_head_has_frequencies_of_its_own_length),
        cmocka_unit_test(rotation_pairs_the_two_halves_and_leaves_the_rest),
        cmocka_unit_test(parameters_that_cannot_be_meant_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
