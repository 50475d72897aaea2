/* The .fhead container: the golden files, and files written by the writer and then damaged in every way. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/fault.h"
#include "format/fhead_private.h"

#define GOLDEN "tests/golden/fhead-1.0/"

/* ---- helpers ---------------------------------------------------------------------------------------------------- */

static char scratch[4096];

static const char *place(const char *name)
{
    static char path[4200];
    snprintf(path, sizeof path, "%s/%s", scratch, name);
    return path;
}

static int make_scratch(void **state)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(scratch, sizeof scratch, "%s/fhead-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    return mkdtemp(scratch) ? 0 : -1;
}

static int drop_scratch(void **state)
{
    char command[4300];
    snprintf(command, sizeof command, "rm -rf '%s'", scratch);
    return system(command);
}

/* How far a reader gets: 0 open, 1 check, 2 verify refuses; 3 nothing does. */
static int stage_of(const void *data, size_t size, fh_status *status, fh_err *err)
{
    fh_fhead *f = NULL;
    fh_head_layout h;
    int stage = 3;
    uint8_t *copy = fh_aligned(size ? size : 1);
    assert_non_null(copy);
    memcpy(copy, data, size);
    if ((*status = fh_fhead_open_memory(&f, copy, size, "test.fhead", err)) < 0) stage = 0;
    else if ((*status = fh_fhead_check_head(f, &h, err)) < 0) stage = 1;
    else if ((*status = fh_fhead_verify(f, NULL, err)) < 0) stage = 2;
    fh_fhead_close(f);
    fh_free(copy);
    return stage;
}

static void seal(uint8_t *b, size_t size)
{
    uint64_t end = fh_le(b + 24, 8) + 128 * fh_le(b + 12, 4);
    memset(b + 64, 0, 32);
    if (end <= size) {
        uint8_t digest[32];
        fh_sha256_of(digest, b, (size_t)end);
        memcpy(b + 64, digest, 32);
    }
}

static char *load(const char *path, size_t *size)
{
    char *data = NULL;
    fh_err err = {0};
    if (fh_file_read(&data, size, path, 64 << 20, &err) < 0) fail_msg("%s", err.text);
    return data;
}

static const char header_text[] =
    "{\"format\":\"fhead\",\"requires\":[],\"tool\":\"test\","
    "\"model\":{\"type\":\"llama\",\"vocab\":5,\"hidden\":2,\"dtype\":\"bf16\",\"tied\":true,"
    "\"softcap\":30.0,\"fingerprint\":\"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\",\"tokenizer_size\":0},"
    "\"head\":{\"k\":2,\"cap\":3,\"probes\":2,\"routing\":\"learned\","
    "\"centroids\":{\"encoding\":\"int8\",\"group\":2,\"stride\":64,\"layout\":\"rows\",\"transform\":\"none\"},"
    "\"tokens\":{\"encoding\":\"int8\",\"group\":2,\"stride\":64,\"layout\":\"rows\",\"transform\":\"none\"},\"hot\":[4,0],\"always\":[]},"
    "\"calibration\":{\"probes\":2},\"bundle\":{\"body\":false,\"tokenizer\":true},\"provenance\":{}}";

/* What goes into the head below; a test changes one thing in it. */
typedef struct parts {
    const char *header;
    uint32_t permutation[6], dead[2];
    size_t n_dead;
    float bias[5], centroid_scales[2], token_scales[6];
    int8_t centroids[2][64], tokens[6][64];
} parts;

static parts sound(void)
{
    return (parts){.header = header_text,
                   .permutation = {0, 3, UINT32_MAX, 1, 2, 4},
                   .dead = {1, 3},
                   .n_dead = 2,
                   .bias = {0, 1, 2, 3, 4},
                   .centroid_scales = {1, 0.5f},
                   .token_scales = {1, 2, 1, 4, 5, 6},
                   .centroids = {{1, 2}, {-127, 0}},
                   .tokens = {{1, 1}, {2, 2}, {0, 0}, {127, -127}, {0, 0}, {5, 6}}};
}

static const char tokenizer[] =
    "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"c\":2},\"merges\":[]},\"aaaaaaaaaaaaaaaaaaaaaaaa\":0}";

static fh_status write_parts(const parts *p, const char *path, unsigned flags, char digest[65], fh_err *err)
{
    fh_fhead_writer *w = NULL;
    fh_status rc = fh_fhead_create(&w, path, flags, p->header, 8, err);
    if (rc < 0) return rc;
#define ADD(name, codec, data, bytes) \
    if (rc >= 0) rc = fh_fhead_add(w, name, codec, FH_SECTION_REQUIRED, data, bytes, err)
    ADD("head.permutation", FH_CODEC_RAW, p->permutation, sizeof p->permutation);
    ADD("head.dead", FH_CODEC_RAW, p->dead, p->n_dead * sizeof *p->dead);
    ADD("head.bias", FH_CODEC_RAW, p->bias, sizeof p->bias);
    ADD("head.centroid_scales", FH_CODEC_RAW, p->centroid_scales, sizeof p->centroid_scales);
    ADD("head.token_scales", FH_CODEC_RAW, p->token_scales, sizeof p->token_scales);
    ADD("head.centroids", FH_CODEC_RAW, p->centroids, sizeof p->centroids);
    ADD("body.tokenizer", FH_CODEC_ZSTD, tokenizer, sizeof tokenizer - 1);
    ADD("head.tokens", FH_CODEC_RAW, p->tokens, sizeof p->tokens);
#undef ADD
    if (rc >= 0) rc = fh_fhead_commit(w, digest, err);
    else fh_fhead_abandon(w);
    return rc;
}

/* The bytes of an artifact; *digest is its name. */
static char *written(const parts *p, size_t *size)
{
    char digest[65];
    fh_err err = {0};
    if (write_parts(p, place("t.fhead"), 0, digest, &err) < 0) fail_msg("%s", err.text);
    return load(place("t.fhead"), size);
}

static void refused(const parts *p, int stage, fh_status status, const char *says)
{
    fh_err err = {0};
    fh_status got;
    size_t size;
    char *data = written(p, &size);
    int at = stage_of(data, size, &got, &err);
    if (at != stage || got != status || !strstr(err.text, says))
        fail_msg("wanted stage %d %s with '%s', got %d %s: %s", stage, fh_status_name(status), says, at, fh_status_name(got), err.text);
    fh_free(data);
}

/* ---- golden ------------------------------------------------------------------------------------------------------- */

static void every_golden_file_is_judged_as_its_maker_expected(void **state)
{
    static const char *const stages[] = {"open", "check", "verify", "none"};
    fh_json *all = NULL;
    fh_err err = {0};
    size_t count = 0;
    if (fh_json_read(&all, GOLDEN "expected.json", 1 << 20, &err) < 0) fail_msg("%s", err.text);
    for (const fh_json *c = fh_json_first(all); c; c = fh_json_next(c), count++) {
        const char *file = fh_json_string(fh_json_get(c, "file")), *want = fh_json_string(fh_json_get(c, "stage"));
        const char *name = fh_json_string(fh_json_get(c, "status")), *says = fh_json_string(fh_json_get(c, "says"));
        char path[300];
        size_t size;
        char *data;
        fh_status status;
        int stage;
        snprintf(path, sizeof path, GOLDEN "%s", file);
        data = load(path, &size);
        err.text[0] = 0;
        stage = stage_of(data, size, &status, &err);
        if (strcmp(stages[stage], want) != 0 || strcmp(fh_status_name(status), name) != 0 || !strstr(err.text, says) ||
            strchr(err.text, '\n'))
            fail_msg("%s: wanted %s %s with '%s', got %s %s: %s", file, want, name, says, stages[stage], fh_status_name(status), err.text);
        fh_free(data);
    }
    assert_true(count > 50);
    fh_json_free(all);
}

static void a_golden_file_opens_with_the_numbers_its_maker_put_in(void **state)
{
    fh_fhead *f = NULL;
    fh_head_layout h;
    fh_err err = {0};
    if (fh_fhead_open(&f, GOLDEN "ok-int8-exact-bias-dead.fhead", &err) < 0) fail_msg("%s", err.text);
    if (fh_fhead_check_head(f, &h, &err) < 0) fail_msg("%s", err.text);
    assert_int_equal(h.vocab, 7);
    assert_int_equal(h.hidden, 3);
    assert_int_equal(h.k, 2);
    assert_int_equal(h.cap, 4);
    assert_int_equal(h.dtype, FH_BF16);
    assert_int_equal(h.tokens.dtype, FH_I8);
    assert_int_equal(h.exact.dtype, FH_BF16);
    assert_false(h.tokens_exact);
    assert_int_equal(h.permutation[7], UINT32_MAX);
    assert_int_equal(h.permutation[3], 6);
    assert_int_equal(h.n_dead, 2);
    assert_int_equal(h.dead[1], 6);
    assert_true(h.bias && h.bias[6] == 6.0f);
    assert_int_equal(h.n_hot, 2);
    assert_int_equal(h.hot[0], 5);
    assert_int_equal(h.n_always, 1);
    assert_false(h.calibrated);
    /* token 4 is in slot 1: its row is (2.25, -4, 0.125), in bf16 exactly */
    assert_true(fh_bf16_to_f32(((const uint16_t *)fh_row(&h.exact, 1))[1]) == -4.0f);
    assert_int_equal(((const int8_t *)fh_row(&h.tokens, 1))[1], -127);
    assert_true(fabsf(h.token_scales[1] * 127 - 4.0f) <= 4.0f * 1.2e-7f);
    fh_fhead_close(f);
}

static void compressed_sections_come_out_as_they_went_in(void **state)
{
    fh_fhead *f = NULL;
    const void *data, *again;
    size_t bytes;
    fh_err err = {0};
    if (fh_fhead_open(&f, GOLDEN "ok-zstd-tokenizer.fhead", &err) < 0) fail_msg("%s", err.text);
    assert_int_equal(fh_fhead_find(f, "body.tokenizer")->codec, FH_CODEC_ZSTD);
    if (fh_fhead_data(f, "body.tokenizer", &data, &bytes, &err) < 0) fail_msg("%s", err.text);
    assert_int_equal(bytes, fh_fhead_find(f, "body.tokenizer")->raw_bytes);
    assert_memory_equal(data, "{\"model\": {\"type\": \"BPE\"", 24);
    assert_int_equal(fh_fhead_data(f, "body.tokenizer", &again, &bytes, &err), FH_OK);
    assert_ptr_equal(data, again);
    assert_int_equal(fh_fhead_data(f, "body.nothing", &again, &bytes, &err), FH_ENOTFOUND);
    fh_fhead_close(f);
}

/* ---- writing ------------------------------------------------------------------------------------------------------- */

static void what_is_written_reads_back(void **state)
{
    parts p = sound();
    char digest[65];
    fh_fhead *f = NULL;
    fh_head_layout h;
    const void *text;
    size_t bytes;
    fh_err err = {0};
    assert_int_equal(write_parts(&p, place("a.fhead"), 0, digest, &err), FH_OK);
    if (fh_fhead_open(&f, place("a.fhead"), &err) < 0) fail_msg("%s", err.text);
    assert_string_equal(fh_fhead_digest(f), digest);
    if (fh_fhead_verify(f, NULL, &err) < 0) fail_msg("%s", err.text);
    if (fh_fhead_check_head(f, &h, &err) < 0) fail_msg("%s", err.text);
    assert_memory_equal(h.permutation, p.permutation, sizeof p.permutation);
    assert_memory_equal(h.tokens.data, p.tokens, sizeof p.tokens);
    assert_memory_equal(h.token_scales, p.token_scales, sizeof p.token_scales);
    assert_memory_equal(h.bias, p.bias, sizeof p.bias);
    assert_int_equal(h.n_dead, 2);
    assert_int_equal(h.hot[0], 4);
    assert_true(h.calibrated && h.has_tokenizer && !h.has_body);
    assert_true(h.softcap == 30.0);
    assert_string_equal(h.routing, "learned");
    for (size_t i = 0; i < fh_fhead_sections(f); i++) assert_int_equal(fh_fhead_section(f, i)->offset % 4096, 0);
    assert_int_equal(fh_fhead_data(f, "body.tokenizer", &text, &bytes, &err), FH_OK);
    assert_int_equal(bytes, sizeof tokenizer - 1);
    assert_memory_equal(text, tokenizer, bytes);
    fh_fhead_close(f);
}

static void writing_twice_gives_equal_bytes(void **state)
{
    parts p = sound();
    size_t a_size, b_size;
    char *a = written(&p, &a_size), *b = written(&p, &b_size);
    assert_int_equal(a_size, b_size);
    assert_memory_equal(a, b, a_size);
    fh_free(a);
    fh_free(b);
}

/* The same sections in pieces of other sizes. */
static void bytes_do_not_depend_on_how_they_came(void **state)
{
    enum { N = 300000 };
    uint8_t *data = malloc(N);
    char *files[2];
    size_t sizes[2];
    fh_err err = {0};
    for (size_t i = 0; i < N; i++) data[i] = (uint8_t)("the quick brown fox"[i % 19] + i / 1000 % 3);
    for (int k = 0; k < 2; k++) {
        fh_fhead_writer *w = NULL;
        char digest[65];
        assert_int_equal(fh_fhead_create(&w, place("p.fhead"), 0, "{}", 2, &err), FH_OK);
        for (int s = 0; s < 2; s++) {
            assert_int_equal(fh_fhead_begin(w, s ? "b" : "a", s ? FH_CODEC_ZSTD : FH_CODEC_RAW, 0, &err), FH_OK);
            for (size_t at = 0; at < N; at += k ? 777 : N)
                assert_int_equal(fh_fhead_write(w, data + at, fh_min(k ? 777 : N, N - at), &err), FH_OK);
        }
        assert_int_equal(fh_fhead_commit(w, digest, &err), FH_OK);
        files[k] = load(place("p.fhead"), &sizes[k]);
    }
    assert_int_equal(sizes[0], sizes[1]);
    assert_memory_equal(files[0], files[1], sizes[0]);
    fh_free(files[0]);
    fh_free(files[1]);
    free(data);
}

static void an_existing_file_is_kept_where_asked_and_when_writing_is_given_up(void **state)
{
    parts p = sound();
    char digest[65];
    fh_err err = {0};
    fh_fhead_writer *w = NULL;
    char *data;
    size_t size;
    assert_int_equal(fh_file_write(place("old.fhead"), "old", 3, 0, &err), FH_OK);
    assert_true(write_parts(&p, place("old.fhead"), FH_NO_CLOBBER, digest, &err) < 0);
    assert_int_equal(fh_fhead_create(&w, place("old.fhead"), 0, "{}", 1, &err), FH_OK);
    assert_int_equal(fh_fhead_begin(w, "a", FH_CODEC_RAW, 0, &err), FH_OK);
    fh_fhead_abandon(w);
    data = load(place("old.fhead"), &size);
    assert_string_equal(data, "old");
    fh_free(data);
}

static void the_writer_refuses_what_readers_would(void **state)
{
    fh_fhead_writer *w = NULL;
    char digest[65];
    fh_err err = {0};
    static const char *const names[] = {"", "Upper", "a b", "a/b", "abcdefghijklmnopqrstuvwxyz1234567", "\xc3\xa9"};
    assert_int_equal(fh_fhead_create(&w, place("w.fhead"), 0, "{}", 0, &err), FH_EUSAGE);
    assert_int_equal(fh_fhead_create(&w, place("w.fhead"), 0, "{}", 4097, &err), FH_EUSAGE);
    assert_int_equal(fh_fhead_create(&w, place("w.fhead"), 0, "", 1, &err), FH_EUSAGE);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        assert_int_equal(fh_fhead_create(&w, place("w.fhead"), 0, "{}", 1, &err), FH_OK);
        assert_int_equal(fh_fhead_begin(w, names[i], FH_CODEC_RAW, 0, &err), FH_EUSAGE);
        assert_true(fh_fhead_commit(w, digest, &err) < 0);
    }
    assert_int_equal(fh_fhead_create(&w, place("w.fhead"), 0, "{}", 2, &err), FH_OK);
    assert_int_equal(fh_fhead_add(w, "a", FH_CODEC_RAW, 0, "x", 1, &err), FH_OK);
    assert_int_equal(fh_fhead_add(w, "a", FH_CODEC_RAW, 0, "x", 1, &err), FH_EUSAGE);
    fh_fhead_abandon(w);
    assert_int_equal(fh_fhead_create(&w, place("w.fhead"), 0, "{}", 2, &err), FH_OK);
    assert_int_equal(fh_fhead_add(w, "a", FH_CODEC_RAW, 0, "x", 1, &err), FH_OK);
    assert_int_equal(fh_fhead_commit(w, digest, &err), FH_EUSAGE);
    assert_false(fh_file_exists(place("w.fhead")));
}

static void a_section_that_compresses_too_well_is_not_written(void **state)
{
    enum { N = 24 << 20 };
    char *zeros = calloc(1, N), digest[65];
    fh_fhead_writer *w = NULL;
    fh_err err = {0};
    assert_non_null(zeros);
    assert_int_equal(fh_fhead_create(&w, place("z.fhead"), 0, "{}", 1, &err), FH_OK);
    assert_int_equal(fh_fhead_add(w, "a", FH_CODEC_ZSTD, 0, zeros, N, &err), FH_OK);
    assert_int_equal(fh_fhead_commit(w, digest, &err), FH_EUNSUPPORTED);
    free(zeros);
}

/* ---- damage ------------------------------------------------------------------------------------------------------- */

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
    header_refused("\"calibration\":{\"probes\":2}", "\"calibration\":[]", 1, FH_EFORMAT, "calibration");
    header_refused("\"body\":false", "\"body\":true", 1, FH_EFORMAT, "body.config");
    header_refused("\"tokenizer\":true", "\"tokenizer\":false", 1, FH_EFORMAT, "body.tokenizer");
    header_refused("\"provenance\":{}", "\"provenance\":{", 0, FH_EFORMAT, "JSON header");
}

static void a_file_that_is_something_else_is_told_what_it_looks_like(void **state)
{
    static const struct { const char *data; size_t size; const char *says; } foreign[] = {
        {"", 0, "empty"},
        {"\x89", 1, "download complete"},
        {"\x89" "FHEAD\r", 7, "download complete"},
        {"\x89" "FHEAD\r\n", 8, "download complete"},
        {"\x89" "FHEAD\n and more", 16, "binary"},
        {"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", 57, "git lfs pull"},
        {"GGUF\3\0\0\0", 8, "GGUF"},
        {"PK\3\4......", 10, "zip"},
        {"\x1f\x8b......", 8, "compressed"},
        {"\x28\xb5\x2f\xfd....", 8, "compressed"},
        {"\2\0\0\0\0\0\0\0{}", 10, "safetensors"},
        {"\n<!DOCTYPE html>", 16, "HTML"},
        {"{\"error\":1}", 11, "JSON"},
        {"random bytes that are nothing", 29, "not a .fhead"},
    };
    for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++) {
        fh_err err = {0};
        fh_status status;
        assert_int_equal(stage_of(foreign[i].data, foreign[i].size, &status, &err), 0);
        assert_int_equal(status, FH_EFORMAT);
        if (!strstr(err.text, foreign[i].says) || !strstr(err.text, "test.fhead")) fail_msg("case %zu: %s", i, err.text);
    }
}

static void a_missing_file_and_a_directory_are_refused(void **state)
{
    fh_fhead *f = NULL;
    fh_err err;
    assert_int_equal(fh_fhead_open(&f, place("absent.fhead"), &err), FH_ENOTFOUND);
    assert_true(fh_fhead_open(&f, scratch, &err) < 0);
    assert_int_equal(mkfifo(place("fifo"), 0600), 0);
    assert_true(fh_fhead_open(&f, place("fifo"), &err) < 0);
    assert_null(f);
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

static void head_sections_are_not_taken_compressed(void **state)
{
    fh_fhead_writer *w = NULL;
    fh_fhead *f = NULL;
    fh_head_layout h;
    parts p = sound();
    char digest[65];
    fh_err err;
    assert_int_equal(fh_fhead_create(&w, place("c.fhead"), 0, header_text, 7, &err), FH_OK);
    fh_fhead_add(w, "head.permutation", FH_CODEC_RAW, 1, p.permutation, sizeof p.permutation, &err);
    fh_fhead_add(w, "head.dead", FH_CODEC_RAW, 1, NULL, 0, &err);
    fh_fhead_add(w, "head.centroid_scales", FH_CODEC_RAW, 1, p.centroid_scales, sizeof p.centroid_scales, &err);
    fh_fhead_add(w, "head.token_scales", FH_CODEC_RAW, 1, p.token_scales, sizeof p.token_scales, &err);
    fh_fhead_add(w, "head.centroids", FH_CODEC_ZSTD, 1, p.centroids, sizeof p.centroids, &err);
    fh_fhead_add(w, "head.tokens", FH_CODEC_RAW, 1, p.tokens, sizeof p.tokens, &err);
    fh_fhead_add(w, "body.tokenizer", FH_CODEC_RAW, 1, tokenizer, sizeof tokenizer, &err);
    assert_int_equal(fh_fhead_commit(w, digest, &err), FH_OK);
    assert_int_equal(fh_fhead_open(&f, place("c.fhead"), &err), FH_OK);
    assert_int_equal(fh_fhead_check_head(f, &h, &err), FH_EUNSUPPORTED);
    assert_non_null(strstr(err.text, "head.centroids: compressed"));
    fh_fhead_close(f);
}

static void verification_can_be_stopped(void **state)
{
    static const volatile sig_atomic_t stop = 1;
    const fh_job job = {.stop = &stop};
    parts p = sound();
    size_t size;
    char *data = written(&p, &size);
    fh_fhead *f = NULL;
    fh_err err;
    assert_int_equal(fh_fhead_open(&f, place("t.fhead"), &err), FH_OK);
    assert_int_equal(fh_fhead_verify(f, &job, &err), FH_EINTERRUPTED);
    fh_fhead_close(f);
    fh_free(data);
}

static void memory_to_be_opened_has_to_be_aligned(void **state)
{
    static _Alignas(64) char bytes[256];
    fh_fhead *f = NULL;
    fh_err err;
    assert_int_equal(fh_fhead_open_memory(&f, bytes + 1, 200, "t.fhead", &err), FH_EUSAGE);
}

/* ---- failures of the machine ---------------------------------------------------------------------------------------- */

#ifdef FH_FAULTS
static void any_failing_step_of_writing_leaves_the_old_file(void **state)
{
    parts p = sound();
    for (int kind = 0; kind < FH_FAULT_KINDS; kind++)
        for (long n = 1;; n++) {
            char digest[65], *old;
            fh_err err = {0};
            size_t size;
            fh_status rc;
            assert_int_equal(fh_file_write(place("old.fhead"), "old", 3, 0, &err), FH_OK);
            fh_fault_set(kind, n);
            rc = write_parts(&p, place("old.fhead"), 0, digest, &err);
            bool fired = fh_fault_fired();
            fh_fault_set(kind, 0);
            if (!fired) {
                assert_int_equal(rc, FH_OK);
                break;
            }
            if (rc >= 0) continue; /* a step whose failure does no harm */
            assert_true(err.text[0]);
            old = load(place("old.fhead"), &size);
            if (size != 3) fail_msg("fault %d at step %ld: the old file is gone: %s", kind, n, err.text);
            fh_free(old);
            assert_true(n < 10000);
        }
}

static void any_failing_allocation_of_reading_is_reported(void **state)
{
    parts p = sound();
    size_t size;
    char *data = written(&p, &size);
    for (long n = 1;; n++) {
        fh_fhead *f = NULL;
        fh_head_layout h;
        const void *text;
        fh_err err = {0};
        fh_status rc;
        fh_fault_set(FH_FAULT_ALLOC, n);
        rc = fh_fhead_open(&f, place("t.fhead"), &err);
        if (rc >= 0) rc = fh_fhead_check_head(f, &h, &err);
        if (rc >= 0) rc = fh_fhead_data(f, "body.tokenizer", &text, &size, &err);
        if (rc >= 0) rc = fh_fhead_verify(f, NULL, &err);
        fh_fhead_close(f);
        bool fired = fh_fault_fired();
        fh_fault_set(FH_FAULT_ALLOC, 0);
        if (!fired) {
            assert_int_equal(rc, FH_OK);
            break;
        }
        assert_int_equal(rc, FH_ENOMEM);
        assert_true(n < 10000);
    }
    fh_free(data);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_golden_file_is_judged_as_its_maker_expected),
        cmocka_unit_test(a_golden_file_opens_with_the_numbers_its_maker_put_in),
        cmocka_unit_test(compressed_sections_come_out_as_they_went_in),
        cmocka_unit_test(what_is_written_reads_back),
        cmocka_unit_test(writing_twice_gives_equal_bytes),
        cmocka_unit_test(bytes_do_not_depend_on_how_they_came),
        cmocka_unit_test(an_existing_file_is_kept_where_asked_and_when_writing_is_given_up),
        cmocka_unit_test(the_writer_refuses_what_readers_would),
        cmocka_unit_test(a_section_that_compresses_too_well_is_not_written),
        cmocka_unit_test(any_flipped_bit_is_found),
        cmocka_unit_test(truncation_at_any_byte_and_any_padding_is_found),
        cmocka_unit_test(hostile_table_numbers_are_refused_with_a_right_digest),
        cmocka_unit_test(too_many_sections_are_refused_without_reading_them),
        cmocka_unit_test(each_array_is_judged_and_the_first_offender_named),
        cmocka_unit_test(a_bad_value_is_found_wherever_it_stands_and_no_good_one_is_taken_for_it),
        cmocka_unit_test(minus_zero_is_a_zero_centroid),
        cmocka_unit_test(each_fact_of_the_header_is_judged),
        cmocka_unit_test(a_file_that_is_something_else_is_told_what_it_looks_like),
        cmocka_unit_test(a_missing_file_and_a_directory_are_refused),
        cmocka_unit_test(a_compressed_section_that_lies_about_its_size_is_not_inflated),
        cmocka_unit_test(head_sections_are_not_taken_compressed),
        cmocka_unit_test(verification_can_be_stopped),
        cmocka_unit_test(memory_to_be_opened_has_to_be_aligned),
#ifdef FH_FAULTS
        cmocka_unit_test(any_failing_step_of_writing_leaves_the_old_file),
        cmocka_unit_test(any_failing_allocation_of_reading_is_reported),
#endif
    };
    return cmocka_run_group_tests_name("fhead", tests, make_scratch, drop_scratch);
}
