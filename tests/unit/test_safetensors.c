/* safetensors: every rule of the format, every way in which files go wrong, the writer. */
#include "format_files.h"

#include <errno.h>
#include <fcntl.h>

#define EIGHT "[[[[[[[["
#define DEEP EIGHT EIGHT EIGHT EIGHT EIGHT EIGHT EIGHT EIGHT
#define ONE "{\"a\":{\"dtype\":\"I32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}"

/* ---- good files --------------------------------------------------------------------------------------------------- */

static void a_file_gives_its_tensors_by_name(void **state)
{
    files *f = *state;
    fh_tensors *t;
    fh_err err;
    const char *path = files_tensors(f, "m.safetensors",
        "{\"__metadata__\":{\"format\":\"pt\",\"note\":\"x\"},"
        "\"b\":{\"dtype\":\"BF16\",\"shape\":[2,2],\"data_offsets\":[4,12],\"extra\":[1]},"
        "\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]},"
        "\"\\u00e9\":{\"dtype\":\"F16\",\"shape\":[0,5],\"data_offsets\":[12,12]}}   ", 12);
    assert_int_equal(fh_tensors_open(&t, path, &err), FH_OK);
    assert_int_equal(fh_tensors_count(t), 3);
    const fh_tensor *a = fh_tensors_at(t, 0), *b = fh_tensors_find(t, "b"), *e = fh_tensors_find(t, "\xC3\xA9");
    assert_string_equal(a->name, "a");
    assert_int_equal(a->rank, 0);
    assert_int_equal(a->bytes, 4);
    assert_memory_equal(a->data, "\1\2\3\4", 4);
    assert_int_equal(b->dtype, FH_BF16);
    assert_int_equal(b->rank, 2);
    assert_memory_equal(b->data, "\5\6\7\10\11\12\13\14", 8);
    assert_string_equal(b->file, path);
    assert_int_equal(fh_tensor_rows(b).stride, 4);
    assert_non_null(e);
    assert_int_equal(e->bytes, 0);
    assert_null(fh_tensors_find(t, "c"));
    assert_null(fh_tensors_find(t, ""));
    assert_string_equal(fh_tensors_metadata(t, "note"), "x");
    assert_null(fh_tensors_metadata(t, "nothing"));
    fh_tensors_close(t);
    fh_tensors_close(NULL);
}

static void the_smallest_files_are_read(void **state)
{
    static const char *const headers[] = {"{}", "{}      ", "{\"__metadata__\":{}}",
        "{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}"};
    for (size_t i = 0; i < 4; i++) {
        size_t size;
        fh_tensors *t;
        fh_err err;
        uint8_t *image = files_image(headers[i], 0, &size);
        assert_int_equal(fh_tensors_open_memory(&t, image, size, "x", &err), FH_OK);
        fh_tensors_close(t);
        free(image);
    }
}

/* ---- bad files ---------------------------------------------------------------------------------------------------- */

static void refused(const char *name, const uint8_t *data, size_t size, const char *says)
{
    fh_tensors *t;
    fh_err err;
    uint8_t *copy = malloc(size ? size : 1); /* so that the sanitizer sees a step past the end */
    if (size) memcpy(copy, data, size);
    fh_status rc = fh_tensors_open_memory(&t, copy, size, "x.safetensors", &err);
    free(copy);
    if (rc != FH_EFORMAT) print_error("%s: %s\n", name, fh_status_name(rc));
    assert_int_equal(rc, FH_EFORMAT);
    assert_null(t);
    assert_says(&err, "x.safetensors");
    assert_says(&err, says);
}

static void headers_that_break_a_rule_are_refused(void **state)
{
    static const struct { const char *header; size_t bytes; const char *says; } bad[] = {
        {" {}", 0, "begins with byte 0x20"},
        {"\xEF\xBB\xBF{}", 0, "begins with byte 0xEF"},
        {"[]", 0, "begins with byte 0x5B"},
        {"{ ", 0, "line 1, column 3"},
        {"{}\xFF", 0, "UTF-8"},
        {"{} x", 0, "more text"},
        {"{\"a\":1}", 0, "'a'|no object"},
        {"{\"a\":{\"shape\":[],\"data_offsets\":[0,4]}}", 4, "'a'|'dtype'"},
        {"{\"a\":{\"dtype\":7,\"shape\":[],\"data_offsets\":[0,4]}}", 4, "'dtype'"},
        {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "'shape'"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":{},\"data_offsets\":[0,4]}}", 4, "'shape'"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[]}}", 4, "'data_offsets'"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0]}}", 4, "two whole numbers"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4,4]}}", 4, "two whole numbers"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4.0]}}", 4, "two whole numbers"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[-4,0]}}", 4, "two whole numbers"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[4,0]}}", 4, "end before they begin"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4, "dimension 0"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1.0],\"data_offsets\":[0,4]}}", 4, "dimension 1"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[\"1\"],\"data_offsets\":[0,4]}}", 4, "dimension 0"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1e0],\"data_offsets\":[0,4]}}", 4, "dimension 0"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[null],\"data_offsets\":[0,4]}}", 4, "dimension 0"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[18446744073709551616],\"data_offsets\":[0,4]}}", 4, "dimension 0"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2,18446744073709551614],\"data_offsets\":[0,4]}}", 4, "dimension 1"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4503599627370496,4503599627370496],\"data_offsets\":[0,4]}}", 4, "64 bits"},
        {"{\"a\":{\"dtype\":\"F64\",\"shape\":[4503599627370496,128],\"data_offsets\":[0,0]}}", 0, "64 bits"},
        {"{\"a\":{\"dtype\":\"??\",\"shape\":[4503599627370496,4503599627370496],\"data_offsets\":[0,4]}}", 4, "64 bits"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4, "9 dimensions"},
        {"{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]}}", 1, "12 bits"},
        {"{\"a\":{\"dtype\":\"I32\",\"shape\":[2,2],\"data_offsets\":[0,4]}}", 4, "I32 make 16 bytes, its data_offsets 4"},
        {"{\"a\":{\"dtype\":\"I32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 7, "[0, 8]|past the end|complete"},
        {"{\"a\":{\"dtype\":\"I32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 9, "1 bytes too many"},
        {"{}", 1, "1 bytes too many"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[1,5]}}", 5, "'a' begins at 1|ends at 0|hole"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[3,5]}}",
         5, "'b'|hole"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]},\"b\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[2,5]}}",
         5, "'a' and 'b' overlap"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}",
         2, "overlap"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
         2, "'a'|twice"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"\\u0061\":{\"dtype\":\"U8\",\"shape\":[1],"
         "\"data_offsets\":[1,2]}}", 2, "twice"},
        {"{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "twice"},
        {"{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", 0, "'k'|twice"},
        {"{\"__metadata__\":{\"k\":1}}", 0, "'k'|no string"},
        {"{\"__metadata__\":{\"k\":null}}", 0, "'k'|no string"},
        {"{\"__metadata__\":[]}", 0, "__metadata__"},
        {"{\"a\\u0000\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "NUL"},
        {"{\"a\":" DEEP "}", 0, "64 levels"},
        {"{\"a\\u001b[31m\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,2]}}", 2, "\\x1b|make 1 bytes"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        size_t size;
        uint8_t *image = files_image(bad[i].header, bad[i].bytes, &size);
        refused(bad[i].header, image, size, bad[i].says);
        free(image);
    }
}

static void length_fields_that_lie_are_refused_without_allocating(void **state)
{
    static const struct { uint64_t n; const char *says; } bad[] = {
        {0, "shortest is {}"}, {1, "shortest is {}"}, {11, "a header of 11 bytes needs 19, the file has 18"}, {100000001,
         "limit is 100000000"},
        {1ull << 63, "limit"}, {UINT64_MAX, "limit"}, {UINT64_MAX - 7, "limit"}, {100000000, "needs 100000008"},
    };
    size_t size;
    uint8_t *image = files_image("{}        ", 0, &size);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        for (unsigned b = 0; b < 8; b++) image[b] = (uint8_t)(bad[i].n >> 8 * b);
        refused("length", image, size, bad[i].says);
    }
    free(image);
}

static void a_sparse_file_with_a_huge_header_is_refused(void **state)
{
    files *f = *state;
    fh_tensors *t;
    fh_err err;
    for (int i = 0; i < 2; i++) {
        uint64_t n = i ? 100000000 : 100000001;
        int fd = open(files_path(f, "sparse.safetensors"), O_RDWR | O_CREAT | O_TRUNC, 0600);
        assert_true(fd >= 0);
        assert_int_equal(write(fd, &n, 8), 8);
        assert_int_equal(ftruncate(fd, (off_t)(n + 8)), 0);
        close(fd);
        assert_int_equal(fh_tensors_open(&t, f->path, &err), FH_EFORMAT);
        assert_says(&err, i ? "begins with byte 0x00" : "limit is 100000000");
    }
}

static void every_truncation_is_refused(void **state)
{
    size_t size;
    uint8_t *image = files_image(ONE, 24, &size);
    for (size_t n = 0; n < size; n++) refused("cut", image, n,
        n == 0 ? "empty" : n < 8 ? "length field" : n < size - 24 ? "complete" : "past the end");
    free(image);
}

static void other_kinds_of_files_are_called_by_name(void **state)
{
    static const struct { const char *begin; const char *says; } kinds[] = {
        {"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git-lfs pointer|git lfs pull"},
        {"PK\3\4\24\0\10\10", "pickle|convert"},
        {"\x80\2\x8A\n\x6C\xFC\x9C\x46\xF9", "pickle|convert"},
        {"<!DOCTYPE html><html><body>404</body></html>", "HTML"},
        {"\n  <html>", "HTML"},
        {"GGUF\3\0\0\0\1\0\0\0\0\0\0\0", "GGUF"},
        {"\x1F\x8B\10\0\0\0\0\0\0\3", "gzip"},
        {"{\"weight_map\": {}}", "JSON|index"},
        {"\x89" "FHEAD\r\n", ".fhead"},
    };
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        uint8_t file[2000] = {0}; /* long enough that no length field saves it */
        memcpy(file, kinds[i].begin, i == 1 ? 8 : i == 5 ? 16 : i == 6 ? 10 : strlen(kinds[i].begin));
        refused(kinds[i].begin, file, sizeof file, kinds[i].says);
    }
    uint8_t zeros[4096] = {0};
    refused("zeros", zeros, sizeof zeros, "zeros|complete");
}

static void names_of_any_length_are_shown_short(void **state)
{
    enum { LONG = 1 << 20 };
    for (int good = 0; good < 2; good++) {
        size_t size;
        fh_tensors *t;
        fh_err err;
        fh_buf b = {0};
        fh_buf_puts(&b, "{\"");
        for (int i = 0; i < LONG / 16; i++) fh_buf_puts(&b, "nnnnnnnnnnnnnnnn");
        fh_buf_printf(&b, "\":{\"dtype\":\"U8\",\"shape\":[%d],\"data_offsets\":[0,2]}}", good ? 2 : 1);
        char *header = fh_buf_take(&b);
        uint8_t *image = files_image(header, 2, &size);
        if (good) {
            assert_int_equal(fh_tensors_open_memory(&t, image, size, "x", &err), FH_OK);
            assert_int_equal(strlen(fh_tensors_at(t, 0)->name), LONG);
            fh_tensors_close(t);
        } else {
            refused("a megabyte", image, size, "nnn...|make 1 bytes");
        }
        free(image);
        fh_free(header);
    }
}

static void many_tensors_take_linear_time_and_too_many_are_refused(void **state)
{
    for (int i = 0; i < 2; i++) {
        fh_buf b = {0};
        size_t size, n = i ? 262145 + 2 : 60000;
        fh_tensors *t;
        fh_err err;
        fh_buf_puts(&b, "{");
        for (size_t k = 0; k < n; k++) fh_buf_printf(&b, "%s\"t%zu\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}",
            k ? "," : "", k);
        fh_buf_puts(&b, "}");
        char *header = fh_buf_take(&b);
        uint8_t *image = files_image(header, 0, &size);
        double start = fh_now();
        assert_int_equal(fh_tensors_open_memory(&t, image, size, "x", &err), i ? FH_EFORMAT : FH_OK);
        assert_true(fh_now() - start < 4);
        if (i) assert_says(&err, "more than 262144 tensors");
        else assert_int_equal(fh_tensors_count(t), n);
        fh_tensors_close(t);
        free(image);
        fh_free(header);
    }
    size_t size;
    fh_buf b = {0};
    fh_buf_puts(&b, "{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1],\"shape\":[1");
    for (int i = 0; i < 100000; i++) fh_buf_puts(&b, ",1");
    fh_buf_puts(&b, "]}}");
    char *header = fh_buf_take(&b);
    uint8_t *image = files_image(header, 1, &size);
    refused("ranks", image, size, "100001 dimensions");
    free(image);
    fh_free(header);
}

static void special_files_are_refused_at_once(void **state)
{
    files *f = *state;
    fh_tensors *t;
    fh_err err;
    assert_int_equal(mkfifo(files_path(f, "fifo"), 0600), 0);
    assert_true(fh_tensors_open(&t, f->path, &err) < 0);
    assert_says(&err, "fifo");
    assert_true(fh_tensors_open(&t, f->dir, &err) < 0);
    assert_true(fh_tensors_open(&t, "/dev/zero", &err) < 0);
    assert_true(fh_tensors_open(&t, files_path(f, "absent"), &err) < 0);
    assert_says(&err, "absent");
}

/* ---- asking --------------------------------------------------------------------------------------------------------- */

static void asking_for_a_tensor_names_both_sides_of_a_mismatch(void **state)
{
    size_t size;
    fh_tensors *t;
    const fh_tensor *found;
    fh_err err;
    uint8_t *image = files_image("{\"a\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[0,12]},"
                                 "\"odd\":{\"dtype\":\"F7_X\",\"shape\":[3],\"data_offsets\":[12,13]}}", 13, &size);
    assert_int_equal(fh_tensors_open_memory(&t, image, size, "x.st", &err), FH_OK);
    unsigned floats = 1u << FH_F32 | 1u << FH_BF16;
    assert_int_equal(fh_tensors_need(&found, t, "a", floats, 2, (uint64_t[]){2, 3}, &err), FH_OK);
    assert_ptr_equal(found, fh_tensors_find(t, "a"));
    assert_int_equal(fh_tensors_need(&found, t, "a", floats, 2, (uint64_t[]){UINT64_MAX, 3}, &err), FH_OK);
    assert_int_equal(fh_tensors_need(&found, t, "a", floats, 2, (uint64_t[]){3, 3}, &err), FH_EFORMAT);
    assert_says(&err, "x.st|'a'|[2, 3]|[3, 3]");
    assert_null(found);
    assert_int_equal(fh_tensors_need(&found, t, "a", floats, 1, (uint64_t[]){UINT64_MAX}, &err), FH_EFORMAT);
    assert_says(&err, "[2, 3]|[any]");
    assert_int_equal(fh_tensors_need(&found, t, "a", 1u << FH_F32, 2, (uint64_t[]){2, 3}, &err), FH_EUNSUPPORTED);
    assert_says(&err, "'a'|BF16|F32");
    assert_int_equal(fh_tensors_need(&found, t, "b", floats, 0, NULL, &err), FH_ENOTFOUND);
    assert_says(&err, "x.st|'b'|missing");
    /* A dtype we do not know hurts only who needs it. */
    assert_int_equal(fh_tensors_need(&found, t, "odd", ~0u, 1, (uint64_t[]){3}, &err), FH_EUNSUPPORTED);
    assert_says(&err, "'odd'|F7_X");
    fh_tensors_close(t);
    free(image);
}

/* ---- writing -------------------------------------------------------------------------------------------------------- */

static const float weights[6] = {1, 2, 3, 4, 5, 6};
static const uint8_t bytes3[3] = {7, 8, 9};

static fh_status save(files *f, const char *name)
{
    static const fh_st_spec specs[] = {{"weight", FH_F32, 2, {2, 3}}, {"name \"\xC3\xA9\"", FH_U8, 1, {3}}, {"none", FH_F16, 2, {0, 3}}};
    static const void *const data[] = {weights, bytes3, NULL};
    fh_err err;
    fh_json *metadata = fh_json_object();
    fh_json_add_string(metadata, "made_by", "a \"test\"");
    fh_status rc = metadata ? fh_st_save(files_path(f, name), 0, specs, data, 3, metadata, &err) : FH_ENOMEM;
    fh_json_free(metadata);
    return rc;
}

static void what_is_written_reads_back_and_is_the_same_twice(void **state)
{
    files *f = *state;
    fh_tensors *t;
    fh_err err;
    fh_map one, two;
    assert_int_equal(save(f, "1"), FH_OK);
    assert_int_equal(fh_tensors_open(&t, f->path, &err), FH_OK);
    assert_memory_equal(fh_tensors_find(t, "weight")->data, weights, sizeof weights);
    assert_int_equal((uintptr_t)fh_tensors_find(t, "weight")->data % 64, 0);
    assert_memory_equal(fh_tensors_find(t, "name \"\xC3\xA9\"")->data, bytes3, 3);
    assert_int_equal(fh_tensors_find(t, "none")->bytes, 0);
    assert_string_equal(fh_tensors_metadata(t, "made_by"), "a \"test\"");
    fh_tensors_close(t);
    assert_int_equal(save(f, "2"), FH_OK);
    assert_int_equal(fh_map_open(&one, files_path(f, "1"), &err), FH_OK);
    assert_int_equal(fh_map_open(&two, files_path(f, "2"), &err), FH_OK);
    assert_int_equal(one.size, two.size);
    assert_memory_equal(one.data, two.data, one.size);
    fh_map_close(&one);
    fh_map_close(&two);
}

static void a_writer_counts_its_bytes(void **state)
{
    files *f = *state;
    fh_st_writer *w;
    fh_err err;
    fh_st_spec spec = {"a", FH_F32, 1, {2}};
    const char *path = files_path(f, "w");
    assert_int_equal(fh_st_open(&w, path, 0, &spec, 1, NULL, &err), FH_OK);
    assert_int_equal(fh_st_write(w, weights, 4, &err), FH_OK);
    assert_int_equal(fh_st_write(w, weights, 8, &err), FH_EFAIL);
    assert_int_equal(fh_st_commit(w, &err), FH_EFAIL);
    assert_says(&err, "8 bytes|4 written");
    assert_false(fh_file_exists(path));
    assert_int_equal(fh_st_open(&w, path, 0, &spec, 1, NULL, &err), FH_OK);
    fh_st_abandon(w);
    fh_st_abandon(NULL);
    assert_false(fh_file_exists(path));
    spec = (fh_st_spec){"a", FH_F32, 2, {1ull << 40, 1ull << 40}};
    assert_int_equal(fh_st_open(&w, path, 0, &spec, 1, NULL, &err), FH_EFAIL);
    spec = (fh_st_spec){"a", FH_F4, 1, {3}};
    assert_int_equal(fh_st_open(&w, path, 0, &spec, 1, NULL, &err), FH_EFAIL);
    files_text(f, "w", "old");
    spec = (fh_st_spec){"a", FH_F32, 1, {2}};
    assert_true(fh_st_save(path, FH_NO_CLOBBER, &spec, (const void *const[]){weights}, 1, NULL, &err) < 0);
}

static void every_failing_step_leaves_nothing_behind(void **state)
{
    files *f = *state;
    fh_tensors *t = NULL;
    fh_err err;
    assert_survives_faults(FH_FAULT_ALLOC, save(f, "x"), FH_ENOMEM, (void)0);
    files_text(f, "x", "old");
    assert_survives_faults(FH_FAULT_WRITE, save(f, "x"), FH_EIO, (void)0);
    files_path(f, "x");
    assert_survives_faults(FH_FAULT_ALLOC, fh_tensors_open(&t, f->path, &err), FH_ENOMEM, fh_tensors_close(t));
    DIR *d = opendir(f->dir);
    for (struct dirent *e; (e = readdir(d));) assert_null(strstr(e->d_name, ".tmp"));
    closedir(d);
}

#define IN_DIR(test) cmocka_unit_test_setup_teardown(test, files_setup, files_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_DIR(a_file_gives_its_tensors_by_name),
        cmocka_unit_test(the_smallest_files_are_read),
        cmocka_unit_test(headers_that_break_a_rule_are_refused),
        cmocka_unit_test(length_fields_that_lie_are_refused_without_allocating),
        IN_DIR(a_sparse_file_with_a_huge_header_is_refused),
        cmocka_unit_test(every_truncation_is_refused),
        cmocka_unit_test(other_kinds_of_files_are_called_by_name),
        cmocka_unit_test(names_of_any_length_are_shown_short),
        cmocka_unit_test(many_tensors_take_linear_time_and_too_many_are_refused),
        IN_DIR(special_files_are_refused_at_once),
        cmocka_unit_test(asking_for_a_tensor_names_both_sides_of_a_mismatch),
        IN_DIR(what_is_written_reads_back_and_is_the_same_twice),
        IN_DIR(a_writer_counts_its_bytes),
        IN_DIR(every_failing_step_leaves_nothing_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
