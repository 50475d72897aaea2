/* Sharded safetensors: the index, links, and directories that hold something else. */
#include "format_files.h"

#define A "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}"
#define B "{\"b\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]}}"
#define AB "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},\"b\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[2,5]}}"
#define INDEX "model.safetensors.index.json"

static fh_status open_dir(files *f, fh_err *err)
{
    fh_tensors *t = NULL;
    f->said[0] = '\0';
    fh_status rc = fh_tensors_open_dir(&t, f->dir, &f->job, err);
    if (rc < 0) assert_null(t);
    fh_tensors_close(t);
    return rc;
}

static void a_sharded_set_is_one(void **state)
{
    files *f = *state;
    fh_tensors *t;
    fh_err err;
    files_tensors(f, "one.safetensors", A, 2);
    files_tensors(f, "two.safetensors", B, 3);
    files_text(f, INDEX, "{\"metadata\":{\"total_size\":5},\"weight_map\":{\"b\":\"two.safetensors\",\"a\":\"one.safetensors\"}}");
    assert_int_equal(fh_tensors_open_dir(&t, f->dir, &f->job, &err), FH_OK);
    assert_string_equal(f->said, "");
    assert_int_equal(fh_tensors_count(t), 2);
    assert_memory_equal(fh_tensors_find(t, "a")->data, "\1\2", 2);
    assert_memory_equal(fh_tensors_find(t, "b")->data, "\1\2\3", 3);
    assert_non_null(strstr(fh_tensors_find(t, "b")->file, "two.safetensors"));
    fh_tensors_close(t);
    /* One whole file wins over an index. */
    files_tensors(f, "model.safetensors", A, 2);
    assert_int_equal(fh_tensors_open_dir(&t, f->dir, NULL, &err), FH_OK);
    assert_int_equal(fh_tensors_count(t), 1);
    fh_tensors_close(t);
}

static void an_index_names_plain_files_only(void **state)
{
    files *f = *state;
    fh_err err;
    static const char *const bad[] = {"\"../x\"", "\"/etc/passwd\"", "\"\"", "\".\"", "\"..\"", "\"a/b\"", "\"a\\\\b\"", "7", "null", "{}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char text[200];
        snprintf(text, sizeof text, "{\"weight_map\":{\"tensor\":%s}}", bad[i]);
        files_text(f, INDEX, text);
        assert_int_equal(open_dir(f, &err), FH_EFORMAT);
        assert_says(&err, INDEX "|'tensor'|plain name");
    }
    files_text(f, INDEX, "{\"weight_map\":{\"t\":\"a\\u0000b\"}}");
    assert_int_equal(open_dir(f, &err), FH_EFORMAT);
    assert_says(&err, "NUL");
    static const struct { const char *text, *says; } shapes[] = {
        {"{}", "weight_map"}, {"{\"weight_map\":[]}", "weight_map"}, {"{\"weight_map\":{}}", "empty"}, {"[]", "weight_map"},
        {"{\"weight_map\":{\"a\":\"x\",}}", "trailing comma"}, {"{\"weight_map\":{\"a\":\"x\",\"a\":\"y\"}}", "twice"},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        files_text(f, INDEX, shapes[i].text);
        assert_int_equal(open_dir(f, &err), FH_EFORMAT);
        assert_says(&err, INDEX);
        assert_says(&err, shapes[i].says);
    }
}

static void shards_and_index_must_agree(void **state)
{
    files *f = *state;
    fh_err err;
    files_text(f, INDEX, "{\"weight_map\":{\"a\":\"one\",\"b\":\"two\"}}");
    files_tensors(f, "one", A, 2);
    assert_int_equal(open_dir(f, &err), FH_ENOTFOUND); /* two is missing */
    assert_says(&err, "two|'b'|complete");
    files_tensors(f, "two", "{}", 0);
    assert_int_equal(open_dir(f, &err), FH_EFORMAT); /* b is nowhere */
    assert_says(&err, "'b'|'two'|none of the files");
    files_tensors(f, "two", "{\"c\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1);
    files_tensors(f, "one", AB, 5);
    assert_int_equal(open_dir(f, &err), FH_EFORMAT); /* listed in two, stored in one */
    assert_says(&err, "'b'|'two'|/one");
    files_tensors(f, "two", B, 3);
    assert_int_equal(open_dir(f, &err), FH_EFORMAT); /* b in both */
    assert_says(&err, "'b'|two files|/one|/two");
    files_tensors(f, "one", A, 2);
    files_tensors(f, "two", "{\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"x\":{\"dtype\":\"U8\",\"shape\":[1],"
        "\"data_offsets\":[1,2]}}", 2);
    assert_int_equal(open_dir(f, &err), FH_OK); /* one more than listed */
    assert_says(&(fh_err){.text = ""}, "");
    assert_non_null(strstr(f->said, "W "));
    assert_non_null(strstr(f->said, "'x'"));
    files_tensors(f, "two", B, 2);
    assert_int_equal(open_dir(f, &err), FH_EFORMAT); /* a shard cut short */
    assert_says(&err, "/two|'b'|past the end");
}

static void shards_that_are_no_files_are_refused_at_once(void **state)
{
    files *f = *state;
    fh_err err;
    files_text(f, INDEX, "{\"weight_map\":{\"a\":\"shard\"}}");
    assert_int_equal(mkfifo(files_path(f, "shard"), 0600), 0);
    assert_true(open_dir(f, &err) < 0);
    assert_says(&err, "shard");
    unlink(f->path);
    assert_int_equal(mkdir(f->path, 0700), 0);
    assert_true(open_dir(f, &err) < 0);
    rmdir(f->path);
    assert_int_equal(symlink("/dev/zero", f->path), 0);
    assert_true(open_dir(f, &err) < 0);
    unlink(f->path);
    files_text(f, INDEX, "");
    assert_true(open_dir(f, &err) < 0);
    unlink(files_path(f, INDEX));
    assert_int_equal(mkfifo(f->path, 0600), 0); /* the index itself */
    assert_true(open_dir(f, &err) < 0);
}

static void links_may_lead_into_the_cache_but_not_out(void **state)
{
    files *f = *state;
    fh_err err;
    fh_tensors *t;
    char blobs[300], snapshots[300], commit[400], blob[400], link[500], index[500], whole[100];
    const char *digest = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    snprintf(blobs, sizeof blobs, "%s/blobs", f->dir);
    snprintf(snapshots, sizeof snapshots, "%s/snapshots", f->dir);
    snprintf(commit, sizeof commit, "%s/c0", snapshots);
    snprintf(blob, sizeof blob, "blobs/%s", digest);
    snprintf(whole, sizeof whole, "blobs/%s", digest);
    snprintf(link, sizeof link, "%s/shard", commit);
    snprintf(index, sizeof index, "snapshots/c0/%s", INDEX);
    assert_true(mkdir(blobs, 0700) == 0 && mkdir(snapshots, 0700) == 0 && mkdir(commit, 0700) == 0);
    files_tensors(f, blob, A, 2);
    files_text(f, index, "{\"weight_map\":{\"a\":\"shard\"}}");
    static const struct { const char *target; fh_status rc; const char *says; } links[] = {
        {"../../blobs/0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", FH_OK, ""},
        {"../../outside", FH_EFORMAT, "leaves the directory"},
        {"../../blobs/../outside", FH_EFORMAT, "leaves the directory"},
        {"../../blobs/fedcba9876543210", FH_EFORMAT, "leaves the directory"}, /* a blob that is a link itself */
        {"/etc/passwd", FH_EFORMAT, "leaves the directory"},
        {"../../nowhere", FH_ENOTFOUND, "cannot be reached|'a'"},
        {"real", FH_OK, ""},
    };
    files_tensors(f, "outside", A, 2);
    files_tensors(f, "snapshots/c0/real", A, 2);
    snprintf(blob, sizeof blob, "%s/blobs/fedcba9876543210", f->dir);
    assert_int_equal(symlink("../outside", blob), 0);
    for (size_t i = 0; i < sizeof links / sizeof *links; i++) {
        assert_int_equal(symlink(links[i].target, link), 0);
        fh_status rc = fh_tensors_open_dir(&t, commit, NULL, &err);
        if (rc != links[i].rc) print_error("%s: %s\n", links[i].target, err.text);
        assert_int_equal(rc, links[i].rc);
        if (rc < 0) assert_says(&err, links[i].says);
        fh_tensors_close(t);
        unlink(link);
    }
    unlink(blob);
    unlink(files_path(f, "snapshots/c0/real"));
    unlink(files_path(f, index));
    unlink(files_path(f, whole));
    rmdir(commit);
}

static void a_directory_without_tensors_says_what_is_there(void **state)
{
    files *f = *state;
    fh_err err;
    assert_int_equal(open_dir(f, &err), FH_ENOTFOUND);
    assert_says(&err, "model.safetensors");
    files_text(f, "model.gguf", "GGUF");
    assert_int_equal(open_dir(f, &err), FH_EUNSUPPORTED);
    assert_says(&err, "GGUF");
    files_text(f, "pytorch_model.bin", "PK");
    assert_int_equal(open_dir(f, &err), FH_EUNSUPPORTED);
    assert_says(&err, "pickles|convert");
    files_tensors(f, "model-00001-of-00002.safetensors", A, 2);
    assert_int_equal(open_dir(f, &err), FH_ENOTFOUND);
    assert_says(&err, "index");
    fh_tensors *t;
    assert_int_equal(fh_tensors_open_dir(&t, files_path(f, "nope"), NULL, &err), FH_ENOTFOUND);
    assert_true(fh_tensors_open_dir(&t, files_path(f, "model.gguf"), NULL, &err) < 0);
    assert_says(&err, "directory");
}

static void a_dtype_that_is_not_known_is_warned_of(void **state)
{
    files *f = *state;
    fh_err err;
    files_tensors(f, "model.safetensors", "{\"odd\":{\"dtype\":\"F7_X\",\"shape\":[3],\"data_offsets\":[0,5]}}", 5);
    assert_int_equal(open_dir(f, &err), FH_OK);
    assert_non_null(strstr(f->said, "F7_X"));
    assert_non_null(strstr(f->said, "'odd'"));
}

static void every_failing_allocation_is_told(void **state)
{
    files *f = *state;
    fh_tensors *t = NULL;
    fh_err err;
    files_text(f, INDEX, "{\"weight_map\":{\"a\":\"one\",\"b\":\"two\"}}");
    files_tensors(f, "one", A, 2);
    files_tensors(f, "two", B, 3);
    assert_survives_faults(FH_FAULT_ALLOC, fh_tensors_open_dir(&t, f->dir, NULL, &err), FH_ENOMEM, fh_tensors_close(t));
}

static void published_and_golden_files_open(void **state)
{
    static const char *const dirs[] = {"golden/qwen3", "golden/llama", "golden/gpt2", "golden/pythia", "models/prose-7m"};
    const char *shared = files_shared();
    if (!shared) skip();
    for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++) {
        fh_tensors *t;
        fh_err err;
        char *path = fh_path_join(shared, dirs[i]);
        fh_status rc = fh_tensors_open_dir(&t, path, NULL, &err);
        if (rc < 0) print_error("%s\n", err.text);
        assert_int_equal(rc, FH_OK);
        for (size_t k = 1; k < fh_tensors_count(t); k++) assert_true(strcmp(fh_tensors_at(t, k - 1)->name, fh_tensors_at(t, k)->name) < 0);
        fh_tensors_close(t);
        fh_free(path);
    }
}

#define IN_DIR(test) cmocka_unit_test_setup_teardown(test, files_setup, files_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_DIR(a_sharded_set_is_one),
        IN_DIR(an_index_names_plain_files_only),
        IN_DIR(shards_and_index_must_agree),
        IN_DIR(shards_that_are_no_files_are_refused_at_once),
        IN_DIR(links_may_lead_into_the_cache_but_not_out),
        IN_DIR(a_directory_without_tensors_says_what_is_there),
        IN_DIR(a_dtype_that_is_not_known_is_warned_of),
        IN_DIR(every_failing_allocation_is_told),
        cmocka_unit_test(published_and_golden_files_open),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
