/* .fhead files damaged in every way: bits, lengths, numbers of the table, facts of the header, arrays. */
#include "tests/unit/fhead_files.h"

static void any_flipped_bit_is_found(void **state)
{
    parts p = sound();
    size_t size;
    uint8_t *data = (uint8_t *)written(&p, &size), *copy = fh_aligned(size);
    fh_err err;
    assert_non_null(copy);
    memcpy(copy, data, size);
    for (size_t bit = 0; bit < size * 8; bit++) {
        fh_fhead *f = NULL;
        fh_status rc;
        size_t byte = bit / 8;
        copy[byte] ^= (uint8_t)(1u << bit % 8);
        rc = fh_fhead_open_memory(&f, copy, size, "t.fhead", &err);
        /* Behind the header, bits of zero padding are all alike to the code: one a byte there, and each bit of what is not zero. */
        if (rc >= 0) rc = fh_fhead_verify(f, NULL, &err);
        fh_fhead_close(f);
        if (rc >= 0) fail_msg("bit %zu of byte %zu flipped: not found", bit % 8, byte);
        copy[byte] = data[byte];
        if (byte >= 4096 && !data[byte]) bit |= 7;
    }
    fh_free(copy);
    fh_free(data);
}

static void truncation_at_any_byte_and_any_padding_is_found(void **state)
{
    parts p = sound();
    size_t size;
    char *data = written(&p, &size), *copy = fh_aligned(size + 4096);
    fh_fhead *f = NULL;
    fh_err err;
    assert_non_null(copy);
    memcpy(copy, data, size);
    for (size_t n = 0; n < size; n++) {
        fh_status rc = fh_fhead_open_memory(&f, copy, n, "t.fhead", &err);
        if (rc >= 0) fail_msg("cut to %zu bytes: not found", n);
        assert_int_equal(rc, FH_EFORMAT);
        assert_non_null(strstr(err.text, "download complete"));
    }
    for (size_t n = size + 1; n <= size + 4096; n += 5) assert_true(fh_fhead_open_memory(&f, copy, n, "t.fhead", &err) < 0);
    fh_free(copy);
    fh_free(data);
}

static void hostile_table_numbers_are_refused_with_a_right_digest(void **state)
{
    static const uint64_t numbers[] = {0,
                                       1,
                                       63,
                                       64,
                                       4095,
                                       4096,
                                       8192,
                                       1u << 20,
                                       0x7fffffff,
                                       0x80000000u,
                                       0xffffffffu,
                                       1ull << 62,
                                       1ull << 63,
                                       UINT64_MAX - 4095,
                                       UINT64_MAX - 63,
                                       UINT64_MAX};
    static const struct { size_t at; unsigned bytes; } fixed[] = {{8, 2}, {12, 4}, {16, 8}, {24, 8}, {32, 8}},
                                                       entry[] = {{32, 4}, {36, 4}, {40, 8}, {48, 8}, {56, 8}, {64, 4}};
    parts p = sound();
    size_t size, tried = 0;
    uint8_t *data = (uint8_t *)written(&p, &size), *copy = malloc(size);
    size_t table = (size_t)fh_le(data + 24, 8), n = (size_t)fh_le(data + 12, 4);
    assert_non_null(copy);
    for (size_t k = 0; k < sizeof numbers / sizeof *numbers; k++)
        for (size_t i = 0; i < 5 + n * 6; i++) {
            size_t at = i < 5 ? fixed[i].at : table + (i - 5) / 6 * 128 + entry[(i - 5) % 6].at;
            unsigned width = i < 5 ? fixed[i].bytes : entry[(i - 5) % 6].bytes;
            fh_err err;
            fh_status status;
            memcpy(copy, data, size);
            fh_le_put(copy + at, width, numbers[k]);
            if (!memcmp(copy, data, size)) continue;
            seal(copy, size);
            if (i >= 5 && (i - 5) % 6 == 1 && (uint32_t)numbers[k] == 0) continue; /* a known section that is not marked required is fine */
            if (stage_of(copy, size, &status, &err) == 3) fail_msg("%llu at byte %zu was accepted", (unsigned long long)numbers[k], at);
            tried++;
        }
    assert_true(tried > 500);
    free(copy);
    fh_free(data);
}

static void too_many_sections_are_refused_without_reading_them(void **state)
{
    size_t size = 4096 + 128 * 5000;
    uint8_t *b = fh_aligned(size);
    fh_fhead *f = NULL;
    fh_err err;
    assert_non_null(b);
    memcpy(b, fh_fhead_magic, 8);
    fh_le_put(b + 8, 2, 1);
    fh_le_put(b + 12, 4, 4097);
    fh_le_put(b + 16, 8, 2);
    fh_le_put(b + 24, 8, 192);
    fh_le_put(b + 32, 8, size);
    assert_int_equal(fh_fhead_open_memory(&f, b, size, "t.fhead", &err), FH_EFORMAT);
    assert_non_null(strstr(err.text, "4097 sections"));
    fh_free(b);
}

static void each_array_is_judged_and_the_first_offender_named(void **state)
{
    parts p = sound();
    p.token_scales[3] = NAN;
    refused(&p, 1, FH_ECHECK, "head.token_scales: the scale of row 3");
    p = sound(), p.token_scales[5] = -1;
    refused(&p, 1, FH_ECHECK, "row 5");
    p = sound(), p.centroid_scales[1] = 0;
    refused(&p, 1, FH_ECHECK, "head.centroid_scales: the scale of row 1");
    p = sound(), p.centroid_scales[0] = INFINITY;
    refused(&p, 1, FH_ECHECK, "row 0");
    p = sound(), p.bias[2] = NAN;
    refused(&p, 1, FH_ECHECK, "bias of token 2");
    p = sound(), p.dead[1] = 5;
    refused(&p, 1, FH_ECHECK, "head.dead: entry 1");
    p = sound(), p.dead[1] = 1;
    refused(&p, 1, FH_ECHECK, "head.dead: entry 1");
    p = sound(), p.permutation[5] = 3;
    refused(&p, 1, FH_ECHECK, "slot 5 (cluster 1): token 3 has a slot already");
    p = sound(), p.permutation[4] = UINT32_MAX;
    refused(&p, 1, FH_ECHECK, "token 4 after an empty slot");
    p = sound(), p.permutation[1] = UINT32_MAX;
    refused(&p, 1, FH_ECHECK, "token 3 has no slot");
    p = sound(), p.permutation[0] = UINT32_MAX - 1;
    refused(&p, 1, FH_ECHECK, "slot 0 (cluster 0): token 4294967294");
    p = sound(), memset(p.centroids, 0, 64);
    refused(&p, 2, FH_ECHECK, "centroid of cluster 0 is zero");
    p = sound(), p.centroids[1][1] = -128;
    refused(&p, 2, FH_ECHECK, "cluster 1: value 1");
    p = sound(), p.tokens[3][0] = -128;
    refused(&p, 2, FH_ECHECK, "row 3 (token 1): value 0");
    p = sound(), p.tokens[3][2] = 1;
    refused(&p, 2, FH_EFORMAT, "row 3: its padding");
    p = sound(), p.tokens[2][0] = 1;
    refused(&p, 2, FH_EFORMAT, "row 2: this empty slot");
    p = sound(), p.token_scales[2] = 2;
    refused(&p, 2, FH_ECHECK, "empty slot 2");
}

static void a_bad_value_is_found_wherever_it_stands_and_no_good_one_is_taken_for_it(void **state)
{
    static const struct { fh_dtype dtype; uint32_t bad[4], good[4]; } kinds[] = {
        {FH_F32, {0x7f800000, 0xff800000, 0x7fc00000, 0xffffffff}, {0x7f7fffff, 0xff7fffff, 0x00000001, 0x80000001}},
        {FH_BF16, {0x7f80, 0xff80, 0x7fc0, 0xff81}, {0x7f7f, 0xff7f, 0x0001, 0x8001}},
        {FH_F16, {0x7c00, 0xfc00, 0x7e00, 0xfc01}, {0x7bff, 0xfbff, 0x0001, 0x8001}},
        {FH_I8, {0x80, 0x80, 0x80, 0x80}, {0x81, 0x7f, 0x01, 0xff}},
    };
    for (size_t k = 0; k < 4; k++)
        for (size_t cols = 1; cols < 40; cols++)
            for (size_t at = 0; at < cols; at++)
                for (int v = 0; v < 4; v++) {
                    size_t size = fh_dtype_size(kinds[k].dtype);
                    uint8_t row[160] = {0};
                    char want[60];
                    fh_err err = {0};
                    fh_head_layout h = {.centroids = {row, kinds[k].dtype, 1, cols, 160}};
                    assert_int_equal(fh_head_layout_check_rows(&h, "x", NULL, &err), FH_ECHECK);
                    assert_non_null(strstr(err.text, "is zero"));
                    memcpy(row + at * size, &kinds[k].good[v], size);
                    if (fh_head_layout_check_rows(&h, "x", NULL, &err) < 0) fail_msg("%x: %s", kinds[k].good[v], err.text);
                    memcpy(row + (cols - 1) * size, &kinds[k].bad[0], size);
                    memcpy(row + at * size, &kinds[k].bad[v], size);
                    snprintf(want, sizeof want, "cluster 0: value %zu is", at);
                    assert_int_equal(fh_head_layout_check_rows(&h, "x", NULL, &err), FH_ECHECK);
                    if (!strstr(err.text, want)) fail_msg("%s: %s", want, err.text);
                }
}

static void a_bad_half_byte_is_found_wherever_it_stands(void **state)
{
    for (size_t cols = 1; cols < 300; cols += 7)
        for (size_t at = 0; at < cols; at++) {
            uint8_t row[192] = {0};
            char want[60];
            fh_err err = {0};
            fh_head_layout h = {.centroids = {row, FH_I4, 1, cols, 192}};
            unsigned shift = at % 128 < 64 ? 0 : 4;
            for (unsigned v = 0; v < 16; v++) {
                row[at / 128 * 64 + at % 64] = (uint8_t)(v << shift);
                fh_status rc = fh_head_layout_check_rows(&h, "x", NULL, &err);
                assert_int_equal(rc, v == 8 ? FH_ECHECK : FH_OK);
                snprintf(want, sizeof want, "cluster 0: value %zu is -8", at);
                if (v == 8 && !strstr(err.text, want)) fail_msg("%s: %s", want, err.text);
            }
        }
}

static void minus_zero_is_a_zero_centroid(void **state)
{
    uint8_t row[64] = {0, 0x80, 0, 0x80};
    fh_head_layout h = {.centroids = {row, FH_BF16, 1, 2, 64}};
    fh_err err;
    assert_int_equal(fh_head_layout_check_rows(&h, "x", NULL, &err), FH_ECHECK);
}

/* Change one piece of text in the JSON header. */
static void header_refused(const char *from, const char *to, int stage, fh_status status, const char *says)
{
    parts p = sound();
    char *text = malloc(strlen(header_text) + strlen(to) + 1);
    const char *at = strstr(header_text, from);
    if (!at) fail_msg("no %s", from);
    assert_non_null(text);
    sprintf(text, "%.*s%s%s", (int)(at - header_text), header_text, to, at + strlen(from));
    p.header = text;
    refused(&p, stage, status, says);
    free(text);
}

static void each_fact_of_the_header_is_judged(void **state)
{
    header_refused("\"format\":\"fhead\"", "\"format\":\"head\"", 0, FH_EFORMAT, "/format");
    header_refused("\"requires\":[]", "\"requires\":null", 0, FH_EFORMAT, "/requires");
    header_refused("\"requires\":[]", "\"requires\":[1]", 0, FH_EFORMAT, "/requires");
    header_refused("\"requires\":[]", "\"requires\":[\"error-norms\"]", 0, FH_EUNSUPPORTED, "error-norms");
    header_refused("\"vocab\":5", "\"vocab\":5.0", 1, FH_EFORMAT, "/model/vocab");
    header_refused("\"vocab\":5", "\"vocab\":0", 1, FH_EFORMAT, "/model/vocab");
    header_refused("\"vocab\":5", "\"vocab\":2147483648", 1, FH_EFORMAT, "/model/vocab");
    header_refused("\"vocab\":5", "\"vocab\":\"5\"", 1, FH_EFORMAT, "/model/vocab");
    header_refused("\"vocab\":5", "\"vocab\":7", 1, FH_ECHECK, "head.bias");
    header_refused("\"hidden\":2", "\"hidden\":-1", 1, FH_EFORMAT, "/model/hidden");
    header_refused("\"hidden\":2", "\"hidden\":3", 1, FH_EUNSUPPORTED, "group");
    header_refused("\"dtype\":\"bf16\"", "\"dtype\":\"int8\"", 1, FH_EUNSUPPORTED, "/model/dtype");
    header_refused("\"tied\":true", "\"tied\":1", 1, FH_EFORMAT, "/model/tied");
    header_refused("\"softcap\":30.0", "\"softcap\":-1", 1, FH_EFORMAT, "/model/softcap");
    header_refused("\"softcap\":30.0", "\"softcap\":1e300", 1, FH_EFORMAT, "/model/softcap");
    header_refused("\"fingerprint\":\"0", "\"fingerprint\":\"G", 1, FH_EFORMAT, "/model/fingerprint");
    header_refused("\"k\":2", "\"k\":2147483647", 1, FH_EFORMAT, "slot number");
    header_refused("\"k\":2", "\"k\":4", 1, FH_ECHECK, "head.centroids");
    header_refused("\"cap\":3", "\"cap\":4", 1, FH_ECHECK, "head.tokens");
    header_refused("\"probes\":2", "\"probes\":0", 1, FH_EFORMAT, "/head/probes");
    header_refused("\"probes\":2", "\"probes\":3", 1, FH_ECHECK, "probes");
    header_refused("\"hot\":[4,0]", "\"hot\":[4,4]", 1, FH_ECHECK, "/head/hot/1");
    header_refused("\"hot\":[4,0]", "\"hot\":[4,-1]", 1, FH_EFORMAT, "/head/hot");
    header_refused("\"hot\":[4,0]", "\"hot\":{}", 1, FH_EFORMAT, "/head/hot");
    header_refused("\"always\":[]", "\"always\":[5]", 1, FH_ECHECK, "/head/always/0");
    header_refused("\"always\":[]", "\"allways\":[]", 1, FH_EFORMAT, "/head/always");
    header_refused("\"encoding\":\"int8\"", "\"encoding\":\"bf16\"", 1, FH_EFORMAT, "head.centroid_scales");
    header_refused("\"encoding\":\"int8\"", "\"encoding\":\"i8\"", 1, FH_EUNSUPPORTED, "'i8'");
    header_refused("\"stride\":64", "\"stride\":18446744073709551616", 1, FH_EFORMAT, "stride");
    header_refused("\"hot\":", "\"rerank\":3,\"hot\":", 1, FH_EFORMAT, "/head/rerank is 3");
    header_refused("\"hot\":", "\"rerank\":-1,\"hot\":", 1, FH_EFORMAT, "/head/rerank");
    header_refused("\"hot\":", "\"rerank\":null,\"hot\":", 1, FH_EFORMAT, "/head/rerank");
    header_refused("\"hot\":", "\"threshold\":1.5,\"hot\":", 1, FH_EFORMAT, "/head/threshold is there");
    header_refused("\"requires\":[]", "\"requires\":[\"threshold\"]", 1, FH_EFORMAT, "/head/threshold is missing");
    header_refused("\"calibration\":{\"probes\":2}", "\"calibration\":[]", 1, FH_EFORMAT, "calibration");
    header_refused("\"body\":false", "\"body\":true", 1, FH_EFORMAT, "body.config");
    header_refused("\"tokenizer\":true", "\"tokenizer\":false", 1, FH_EFORMAT, "body.tokenizer");
    header_refused("\"provenance\":{}", "\"provenance\":{", 0, FH_EFORMAT, "JSON header");
}

static void a_compressed_section_that_lies_about_its_size_is_not_inflated(void **state)
{
    parts p = sound();
    size_t size;
    uint8_t *data = (uint8_t *)written(&p, &size), *entry = data + fh_le(data + 24, 8) + 6 * 128;
    fh_err err;
    fh_status status;
    assert_string_equal((char *)entry, "body.tokenizer");
    for (uint64_t raw = 0; raw < 200; raw++) {
        int stage;
        fh_le_put(entry + 56, 8, raw);
        seal(data, size);
        stage = stage_of(data, size, &status, &err);
        if (raw == sizeof tokenizer - 1) assert_int_equal(stage, 3);
        else assert_true(stage == 2 && status == FH_EFORMAT);
    }
    fh_free(data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_flipped_bit_is_found),
        cmocka_unit_test(truncation_at_any_byte_and_any_padding_is_found),
        cmocka_unit_test(hostile_table_numbers_are_refused_with_a_right_digest),
        cmocka_unit_test(too_many_sections_are_refused_without_reading_them),
        cmocka_unit_test(each_array_is_judged_and_the_first_offender_named),
        cmocka_unit_test(a_bad_value_is_found_wherever_it_stands_and_no_good_one_is_taken_for_it),
        cmocka_unit_test(a_bad_half_byte_is_found_wherever_it_stands),
        cmocka_unit_test(minus_zero_is_a_zero_centroid),
        cmocka_unit_test(each_fact_of_the_header_is_judged),
        cmocka_unit_test(a_compressed_section_that_lies_about_its_size_is_not_inflated),
    };
    return cmocka_run_group_tests_name("fhead damage", tests, make_scratch, drop_scratch);
}
