/* SHA-256 against FIPS 180-4 and Python's hashlib; random numbers against an independent implementation of the definition. */
#include "base/base.h"
#include "base/sha256_blocks.h"

#include <setjmp.h>
#include <string.h>

#include <cmocka.h>

static void expect_hex(const uint8_t digest[32], const char *want)
{
    char hex[65];
    fh_sha256_hex(hex, digest);
    assert_string_equal(hex, want);
}

static void sha256_gives_the_standard_s_examples(void **state)
{
    (void)state;
    static const struct { const char *text, *hex; } table[] = {
        {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
    };
    uint8_t digest[32];
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        fh_sha256_of(digest, table[i].text, strlen(table[i].text));
        expect_hex(digest, table[i].hex);
    }
    fh_sha256 s;
    fh_sha256_init(&s);
    char ten[10];
    memset(ten, 'a', sizeof ten);
    for (int i = 0; i < 100000; i++) fh_sha256_update(&s, ten, sizeof ten);
    fh_sha256_final(&s, digest);
    expect_hex(digest, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

static void sha256_pads_every_length_right(void **state)
{
    (void)state;
    uint8_t text[300], digest[32];
    for (size_t i = 0; i < sizeof text; i++) text[i] = (uint8_t)(i * 7 + 3);
    fh_sha256 all;
    fh_sha256_init(&all);
    for (size_t n = 0; n <= sizeof text; n++) {
        fh_sha256_of(digest, text, n);
        fh_sha256_update(&all, digest, 32);
    }
    fh_sha256_final(&all, digest);
    expect_hex(digest, "7d917fbd2cf49ddff9ad0a8706bba32d204e92e71d2e369c5a03d6af29278c9f");
}

static void sha256_does_not_care_how_the_bytes_come(void **state)
{
    (void)state;
    uint8_t text[1000], whole[32], parts[32];
    fh_rng rng;
    fh_rng_seed(&rng, 1, 0);
    for (size_t i = 0; i < sizeof text; i++) text[i] = (uint8_t)fh_rng_u64(&rng);
    fh_sha256_of(whole, text, sizeof text);
    for (int round = 0; round < 200; round++) {
        fh_sha256 s;
        fh_sha256_init(&s);
        for (size_t at = 0; at < sizeof text;) {
            size_t n = fh_min(sizeof text - at, (size_t)fh_rng_below(&rng, 150));
            fh_sha256_update(&s, text + at, n);
            at += n;
        }
        fh_sha256_final(&s, parts);
        assert_memory_equal(whole, parts, 32);
    }
}

static void sha_instructions_agree_with_plain_c(void **state)
{
    (void)state;
    if (!fh_sha256_has_shani()) skip();
    static uint8_t text[64 * 33];
    fh_rng rng;
    fh_rng_seed(&rng, 2, 0);
    for (size_t i = 0; i < sizeof text; i++) text[i] = (uint8_t)fh_rng_u64(&rng);
    for (size_t n = 0; n <= 32; n++) {
        for (size_t shift = 0; shift < 3; shift++) {
            uint32_t a[8], b[8];
            for (int i = 0; i < 8; i++) a[i] = b[i] = (uint32_t)fh_rng_u64(&rng);
            fh_sha256_blocks_ref(a, text + shift, n);
            fh_sha256_blocks_shani(b, text + shift, n);
            assert_memory_equal(a, b, sizeof a);
        }
    }
}

static void xoshiro_follows_its_definition(void **state)
{
    (void)state;
    static const uint64_t want[6] = {11520, 0, 1509978240, 1215971899390074240, 1216172134540287360, 607988272756665600};
    fh_rng rng = {{1, 2, 3, 4}};
    for (int i = 0; i < 6; i++) assert_true(fh_rng_u64(&rng) == want[i]);
}

static void seeds_and_streams_give_the_numbers_they_always_gave(void **state)
{
    (void)state;
    static const struct { uint64_t seed, stream, want[4]; } table[] = {
        {0, 0, {0xfb5405f7bd79c540, 0x780c98e26cea5883, 0x2a146e0980febc66, 0x4851477db8791fca}},
        {1, 0, {0xef75d62a19ba94ed, 0x8e9490536375f270, 0xc05630b1c614195d, 0x66daa2d5136a8f29}},
        {0, 1, {0xee127fe613436e33, 0xd6dad8d34a1874ea, 0x2a52c16cec1116a9, 0x9af9091d9f77d551}},
        {1234, 7, {0xb08ec938804ededa, 0x9e357def8838859d, 0x63fd71f8d544853a, 0xcc80fa3ac7ca6775}},
        {UINT64_MAX, UINT64_MAX, {0x5a24625849aef5fa, 0x177bf4162305fac, 0x97359f05bc75e24d, 0x390cadc886fddf32}},
    };
    fh_rng rng;
    for (size_t t = 0; t < sizeof table / sizeof *table; t++) {
        fh_rng_seed(&rng, table[t].seed, table[t].stream);
        for (int i = 0; i < 4; i++) assert_true(fh_rng_u64(&rng) == table[t].want[i]);
    }
    static const double doubles[3] = {0x1.12b4a3d129700p-2, 0x1.52c4bef6ea22fp-1, 0x1.426fdb3752f96p-2};
    fh_rng_seed(&rng, 42, 3);
    for (int i = 0; i < 3; i++) assert_true(fh_rng_double(&rng) == doubles[i]);
    static const uint64_t below[7][2] = {
        {1, 0}, {2, 1}, {6, 3}, {1000, 697}, {1000000000000, 334245536190},
        {((uint64_t)1 << 63) + 1, 542838382832050935}, {UINT64_MAX, 11045088307261666871u},
    };
    fh_rng_seed(&rng, 42, 4);
    for (int i = 0; i < 7; i++) assert_true(fh_rng_below(&rng, below[i][0]) == below[i][1]);
}

static void numbers_below_n_are_evenly_spread(void **state)
{
    (void)state;
    fh_rng rng;
    fh_rng_seed(&rng, 5, 5);
    size_t count[7] = {0};
    for (int i = 0; i < 70000; i++) {
        uint64_t x = fh_rng_below(&rng, 7);
        assert_true(x < 7);
        count[x]++;
    }
    double chi2 = 0;
    for (int i = 0; i < 7; i++) chi2 += ((double)count[i] - 10000) * ((double)count[i] - 10000) / 10000;
    assert_true(chi2 < 22.46); /* 6 degrees of freedom, p = 0.001; the seed is fixed */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sha256_gives_the_standard_s_examples),
        cmocka_unit_test(sha256_pads_every_length_right),
        cmocka_unit_test(sha256_does_not_care_how_the_bytes_come),
        cmocka_unit_test(sha_instructions_agree_with_plain_c),
        cmocka_unit_test(xoshiro_follows_its_definition),
        cmocka_unit_test(seeds_and_streams_give_the_numbers_they_always_gave),
        cmocka_unit_test(numbers_below_n_are_evenly_spread),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
