/* The .fhead container: the golden files, what the writer writes, and what is no .fhead. */
#include "tests/unit/fhead_files.h"

#define GOLDEN "tests/golden/fhead-1.0/"

/* ---- golden ------------------------------------------------------------------------------------------------------- */

/* Every file of a directory's expected.json; returns how many. */
static size_t judge_golden(const char *dir)
{
    static const char *const stages[] = {"open", "check", "verify", "none"};
    fh_json *all = NULL;
    fh_err err = {0};
    size_t count = 0;
    char list[100];
    snprintf(list, sizeof list, "%sexpected.json", dir);
    if (fh_json_read(&all, list, 1 << 20, &err) < 0) fail_msg("%s", err.text);
    for (const fh_json *c = fh_json_first(all); c; c = fh_json_next(c), count++) {
        const char *file = fh_json_string(fh_json_get(c, "file")), *want = fh_json_string(fh_json_get(c, "stage"));
        const char *name = fh_json_string(fh_json_get(c, "status")), *says = fh_json_string(fh_json_get(c, "says"));
        char path[300];
        size_t size;
        char *data;
        fh_status status;
        int stage;
        snprintf(path, sizeof path, "%s%s", dir, file);
        data = load(path, &size);
        err.text[0] = 0;
        stage = stage_of(data, size, &status, &err);
        if (strcmp(stages[stage], want) != 0 || strcmp(fh_status_name(status), name) != 0 || !strstr(err.text, says) ||
            strchr(err.text, '\n'))
            fail_msg("%s: wanted %s %s with '%s', got %s %s: %s", file, want, name, says, stages[stage], fh_status_name(status), err.text);
        fh_free(data);
    }
    fh_json_free(all);
    return count;
}

static void every_golden_file_is_judged_as_its_maker_expected(void **state)
{
    assert_true(judge_golden(GOLDEN) > 50);
    assert_true(judge_golden("tests/golden/fhead-1.1/") == 28);
}

/* tests/fhead_reader.py knows docs/fhead-format.md alone. */
static void the_independent_reader_judges_the_golden_files_alike(void **state)
{
    fh_json *all = NULL;
    fh_err err = {0};
    fh_buf command = {0};
    char line[20000];
    FILE *pipe;
    if (system("python3 -c '' >/dev/null 2>&1") != 0) {
        print_message("skipped: no python3 here\n");
        skip();
    }
    if (fh_json_read(&all, GOLDEN "expected.json", 1 << 20, &err) < 0) fail_msg("%s", err.text);
    fh_buf_puts(&command, "python3 tests/fhead_reader.py --verify");
    for (const fh_json *c = fh_json_first(all); c; c = fh_json_next(c))
        fh_buf_printf(&command, " " GOLDEN "%s", fh_json_string(fh_json_get(c, "file")));
    assert_false(command.failed);
    pipe = popen(command.data, "r");
    assert_non_null(pipe);
    for (const fh_json *c = fh_json_first(all); c; c = fh_json_next(c)) {
        const char *file = fh_json_string(fh_json_get(c, "file"));
        bool sound = !strcmp(fh_json_string(fh_json_get(c, "stage")), "none");
        /* without the zstd program it cannot look into compressed sections */
        bool blind = !strncmp(file, "zstd-", 5) && system("zstd --version >/dev/null 2>&1") != 0;
        if (!fgets(line, sizeof line, pipe)) fail_msg("%s: the reader said nothing", file);
        if (!blind && sound == !strncmp(line, "{\"file\"", 7)) fail_msg("%s: %s", file, line);
    }
    assert_true(pclose(pipe) != 0);
    fh_buf_free(&command);
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
    assert_true(fabsf(fh_scale_at(FH_I8, h.token_scales, 1) * 127 - 4.0f) <= 4.0f * 1.2e-7f);
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

/* ---- what is not taken ------------------------------------------------------------------------------------------- */

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
        cmocka_unit_test(the_independent_reader_judges_the_golden_files_alike),
        cmocka_unit_test(a_golden_file_opens_with_the_numbers_its_maker_put_in),
        cmocka_unit_test(compressed_sections_come_out_as_they_went_in),
        cmocka_unit_test(what_is_written_reads_back),
        cmocka_unit_test(writing_twice_gives_equal_bytes),
        cmocka_unit_test(bytes_do_not_depend_on_how_they_came),
        cmocka_unit_test(an_existing_file_is_kept_where_asked_and_when_writing_is_given_up),
        cmocka_unit_test(the_writer_refuses_what_readers_would),
        cmocka_unit_test(a_section_that_compresses_too_well_is_not_written),
        cmocka_unit_test(a_file_that_is_something_else_is_told_what_it_looks_like),
        cmocka_unit_test(a_missing_file_and_a_directory_are_refused),
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
