/* Releases: names and versions, what indexes, releases and recipes may say, every changed byte, and every failing step. */
#include "tests/unit/fhead_files.h"

#include <dirent.h>

#include "artifacts/recipe.h"

/* ---- names and versions -------------------------------------------------------------------------------------------- */

static void names_are_plain_words(void **state)
{
    static const char *const good[] = {"a", "A-b_c.9", "0", "1.0-rc1", "_x"};
    static const char *const bad[] = {"", ".", "..", "...", ".a", "-a", "a/b", "a b", "a\n", "\xC3\xA4", "a\\b", "index.json", "a:b", "~", "a%2fb"};
    char longest[FH_NAME_MOST + 2];
    memset(longest, 'n', sizeof longest);
    longest[sizeof longest - 1] = 0;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        if (!fh_release_name_ok(good[i])) fail_msg("'%s' is refused", good[i]);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (fh_release_name_ok(bad[i])) fail_msg("'%s' is accepted", bad[i]);
    assert_false(fh_release_name_ok(longest));
    longest[FH_NAME_MOST] = 0;
    assert_true(fh_release_name_ok(longest));
}

static void paths_stay_inside_a_release(void **state)
{
    static const char *const good[] = {"a", ".eval_results/fhtool.yaml", "oci/blobs/sha256/00", "a/b/c/d/e/f"};
    static const char *const bad[] = {
        "",    "/a",  "a/", "a//b", "../a", "a/../b", "a/.", "./a", "a/..", "-a", "a/-b", "release.json", "SHA256SUMS", "SHA256SUMS.minisig", "a/b/c/d/e/f/g",
        "a b", "a\\b"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        if (!fh_release_path_ok(good[i])) fail_msg("'%s' is refused", good[i]);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (fh_release_path_ok(bad[i])) fail_msg("'%s' is accepted", bad[i]);
}

static void versions_have_one_order(void **state)
{
    static const char *const ascending[] = {"0.9",
                                            "0.10",
                                            "1-rc1",
                                            "1",
                                            "1.0-alpha",
                                            "1.0-rc1",
                                            "1.0-rc2",
                                            "1.0-rc10",
                                            "1.0",
                                            "1.0.1",
                                            "1.1",
                                            "1.10",
                                            "1.10a",
                                            "1.10b",
                                            "2",
                                            "10",
                                            "99999999999999999999999",
                                            "100000000000000000000000",
                                            "a",
                                            "v1",
                                            "v2"};
    size_t n = sizeof ascending / sizeof *ascending;
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < n; k++) {
            int c = fh_version_order(ascending[i], ascending[k]);
            if ((i < k) != (c < 0) || (i > k) != (c > 0)) fail_msg("%s and %s: %d", ascending[i], ascending[k], c);
        }
    assert_int_not_equal(fh_version_order("1.0", "1.00"), 0); /* two names are two versions */
}

/* ---- what they may say ------------------------------------------------------------------------------------------------ */

#define HEX "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
#define ENTRY(name, version)                                                                                                                                   \
    "{\"name\":\"" name "\",\"version\":\"" version "\",\"digest\":\"" HEX "\",\"fingerprint\":\"" HEX                                                         \
    "\",\"bytes\":5,\"release\":{\"bytes\":3,\"sha256\":\"" HEX "\"}}"
#define INDEX(entries) "{\"format\":\"fhtool registry 1\",\"releases\":[" entries "]}"

static void indexes_are_judged(void **state)
{
    static const struct { const char *text, *says;
    } bad[] = {
        {"[]", "is not \"fhtool registry 1\""},
        {"{\"format\":\"fhtool registry 2\",\"releases\":[]}", "newer fhtool"},
        {"{\"format\":\"fhtool registry 1\"}", "/releases: is no list"},
        {"{\"format\":\"fhtool registry 1\",\"releases\":{}}", "/releases: is no list"},
        {INDEX("1"), "/releases/0: \"name\""},
        {INDEX("{}"), "/releases/0: \"name\""},
        {INDEX(ENTRY("..", "1")), "/releases/0: \"name\""},
        {INDEX(ENTRY("a", "1/2")), "/releases/0: \"version\""},
        {INDEX(ENTRY("a", "1") "," ENTRY("a", "1")), "/releases/1: releases repeat"},
        {INDEX(ENTRY("a", "1.10") "," ENTRY("a", "1.9")), "/releases/1: releases repeat or are out of order"},
        {INDEX(ENTRY("b", "1") "," ENTRY("a", "2")), "/releases/1: releases repeat or are out of order"},
        {"{\"format\":\"fhtool registry 1\",\"releases\":[{\"name\":\"a\",\"version\":\"1\",\"digest\":\"" HEX "\",\"fingerprint\":\"" HEX
         "\",\"bytes\":-1,\"release\":{\"bytes\":3,\"sha256\":\"" HEX "\"}}]}",
         "\"bytes\" is no size"},
        {"{\"format\":\"fhtool registry 1\",\"releases\":[{\"name\":\"a\",\"version\":\"1\",\"digest\":\"" HEX "\",\"fingerprint\":\"" HEX
         "\",\"bytes\":1,\"release\":{\"bytes\":99999999,\"sha256\":\"" HEX "\"}}]}",
         "4 MiB"},
        {"{\"format\":\"fhtool registry 1\",\"releases\":[{\"name\":\"a\",\"version\":\"1\",\"digest\":\"" HEX "0\",\"fingerprint\":\"" HEX
         "\",\"bytes\":1,\"release\":{\"bytes\":9,\"sha256\":\"" HEX "\"}}]}",
         "64 lower-case"},
    };
    fh_index x;
    fh_err err;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        if (fh_index_parse(&x, bad[i].text, strlen(bad[i].text), "index.json", &err) >= 0) fail_msg("accepted: %s", bad[i].text);
        if (!strstr(err.text, bad[i].says)) fail_msg("wanted '%s': %s", bad[i].says, err.text);
        assert_int_equal(x.n, 0);
    }
    static const char good[] = INDEX(ENTRY("a", "1-rc1") "," ENTRY("a", "1") "," ENTRY("a", "1.10") "," ENTRY("b", "0"));
    assert_int_equal(fh_index_parse(&x, good, strlen(good), "index.json", &err), FH_OK);
    assert_string_equal(fh_index_find(&x, "a", NULL)->version, "1.10");
    assert_string_equal(fh_index_find(&x, "a", "1")->version, "1");
    assert_null(fh_index_find(&x, "c", NULL));
    assert_null(fh_index_find(&x, "a", "2"));
    fh_index_free(&x);
}

static void an_index_of_too_many_is_refused(void **state)
{
    fh_buf b = {0};
    fh_index x;
    fh_err err;
    fh_buf_puts(&b, "{\"format\":\"fhtool registry 1\",\"releases\":[0");
    for (size_t i = 0; i < FH_INDEX_MOST; i++) fh_buf_puts(&b, ",0");
    fh_buf_puts(&b, "]}");
    assert_int_equal(fh_index_parse(&x, b.data, b.len, "index.json", &err), FH_EFORMAT);
    assert_non_null(strstr(err.text, "65537 releases, more than the 65536"));
    fh_buf_free(&b);
}

#define ARTIFACT "\"artifact\":{\"file\":\"a.fhead\",\"digest\":\"" HEX "\",\"fingerprint\":\"" HEX "\"}"
#define FILE_OF(path) "{\"path\":\"" path "\",\"bytes\":5,\"sha256\":\"" HEX "\"}"
#define RELEASE(files) "{\"format\":\"fhtool release 1\",\"name\":\"n\",\"version\":\"1\"," ARTIFACT ",\"files\":[" files "]}"

static void releases_are_judged(void **state)
{
    static const struct { const char *text, *says; } bad[] = {
        {"{}", "/format: is not"},
        {"{\"format\":\"fhtool release 2\"}", "newer fhtool"},
        {RELEASE(""), "/files: is no list"},
        {RELEASE(FILE_OF("b")), "/artifact/file: is none of its files"},
        {RELEASE(FILE_OF("a.fhead") "," FILE_OF("a.fhead")), "/files/1: paths repeat"},
        {RELEASE(FILE_OF("b") "," FILE_OF("a.fhead")), "/files/1: paths repeat or are out of order"},
        {RELEASE(FILE_OF("../a.fhead")), "/files/0: \"path\" is no name"},
        {RELEASE(FILE_OF("/etc/passwd")), "/files/0: \"path\" is no name"},
        {RELEASE(FILE_OF("SHA256SUMS")), "/files/0: \"path\" is no name"},
        {RELEASE("{\"path\":\"a.fhead\",\"bytes\":5.5,\"sha256\":\"" HEX "\"}"), "/files/0: \"bytes\" is no size"},
        {RELEASE("{\"path\":\"a.fhead\",\"bytes\":5,\"sha256\":\"\"}"), "/files/0: is not 64"},
        {"{\"format\":\"fhtool release 1\",\"name\":\"..\",\"version\":\"1\"," ARTIFACT ",\"files\":[" FILE_OF("a.fhead") "]}", "/name: is no name"},
    };
    fh_release r;
    fh_err err;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        if (fh_release_parse(&r, bad[i].text, strlen(bad[i].text), "release.json", &err) >= 0) fail_msg("accepted: %s", bad[i].text);
        if (!strstr(err.text, bad[i].says)) fail_msg("wanted '%s': %s", bad[i].says, err.text);
    }
    static const char good[] = RELEASE(FILE_OF("a.fhead") "," FILE_OF("s"));
    assert_int_equal(fh_release_parse(&r, good, strlen(good), "release.json", &err), FH_OK);
    char *sums = fh_release_sums(&r, HEX);
    assert_string_equal(sums, HEX "  a.fhead\n" HEX "  release.json\n" HEX "  s\n");
    fh_free(sums);
    fh_release_free(&r);
}

/* ---- a release of a small artifact --------------------------------------------------------------------------------------- */

static void write_artifact(void)
{
    parts p = sound();
    char digest[65];
    fh_err err = {FH_OK, ""};
    if (write_parts(&p, place("t.fhead"), 0, digest, &err) < 0) fail_msg("%s", err.text);
}

static fh_publish_params params_of(const char *artifact, const char *registry)
{
    return (fh_publish_params){.artifact = artifact, .registry = registry, .name = "n", .version = "1.0", .base_model = "me/base", .license = "mit"};
}

static fh_status publish_as(const char *registry, bool oci, fh_err *err)
{
    char artifact[4200], to[4200];
    fh_json *report = NULL;
    snprintf(artifact, sizeof artifact, "%s", place("t.fhead"));
    snprintf(to, sizeof to, "%s", place(registry));
    fh_publish_params p = params_of(artifact, to);
    p.oci = oci;
    fh_status rc = fh_publish(&p, NULL, &report, err);
    fh_json_free(report);
    return rc;
}

static fh_status publish(const char *registry, fh_err *err) { return publish_as(registry, true, err); }

static void clear(const char *name)
{
    char command[4300];
    snprintf(command, sizeof command, "rm -rf '%s'", place(name));
    assert_int_equal(system(command), 0);
}

static fh_status verify(const char *dir, fh_err *err)
{
    fh_json *report = NULL;
    fh_status rc = fh_release_verify(dir, NULL, NULL, &report, err);
    fh_json_free(report);
    return rc;
}

/* Files that take part in every answer are changed at every byte, large ones at some hundred. */
static void change_bytes_of(const char *dir, const char *path)
{
    char file[4500];
    size_t size;
    fh_err err = {FH_OK, ""};
    snprintf(file, sizeof file, "%s/%s", dir, path);
    char *data = load(file, &size);
    FILE *f = fopen(file, "r+b");
    assert_non_null(f);
    setvbuf(f, NULL, _IONBF, 0);
    for (size_t i = 0; i < size; i += size / 600 + 1) {
        int flipped = data[i] ^ (1 << i % 8);
        assert_true(fseek(f, (long)i, SEEK_SET) == 0 && fputc(flipped & 0xff, f) != EOF);
        fh_status rc = verify(dir, &err);
        if (rc != FH_ECHECK && rc != FH_EFORMAT && rc != FH_EUNSUPPORTED) fail_msg("%s: byte %zu changed: %s %s", path, i, fh_status_name(rc), err.text);
        assert_true(fseek(f, (long)i, SEEK_SET) == 0 && fputc(data[i] & 0xff, f) != EOF);
    }
    fclose(f);
    fh_free(data);
    if (verify(dir, &err) < 0) fail_msg("%s: put back: %s", path, err.text);
}

static void any_changed_byte_of_a_release_is_found(void **state)
{
    static const char *const files[] = {
        "release.json", "SHA256SUMS", "README.md", "NOTICE", "recipe.json", "recipe.safetensors", ".eval_results/fhtool.yaml", "n.fhead", "oci/index.json"};
    fh_err err = {FH_OK, ""};
    char dir[4300];
    write_artifact();
    if (publish("reg", &err) < 0) fail_msg("%s", err.text);
    snprintf(dir, sizeof dir, "%s/n/1.0", place("reg"));
    assert_true(fh_is_release(dir));
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) change_bytes_of(dir, files[i]);
    clear("reg");
}

static void two_releases_of_one_artifact_are_the_same_bytes(void **state)
{
    fh_err err = {FH_OK, ""};
    char command[9000];
    write_artifact();
    assert_int_equal(publish("one", &err), FH_OK);
    assert_int_equal(publish("two", &err), FH_OK);
    int n = snprintf(command, sizeof command, "diff -r -x .lock '%s'", place("one"));
    snprintf(command + n, sizeof command - (size_t)n, " '%s'", place("two"));
    assert_int_equal(system(command), 0);
    clear("one");
    clear("two");
}

static void a_version_that_is_there_is_not_touched(void **state)
{
    fh_err err = {FH_OK, ""};
    write_artifact();
    assert_int_equal(publish("reg", &err), FH_OK);
    assert_int_equal(publish("reg", &err), FH_EFAIL);
    assert_non_null(strstr(err.text, "has n@1.0 already"));
    clear("reg");
}

/* ---- recipes -------------------------------------------------------------------------------------------------------------- */

static void recipes_are_judged(void **state)
{
    static const char provenance[] = "{\"convert\":{\"inputs\":{},\"params\":{}},\"cluster\":{\"inputs\":{},\"params\":{}},\"route\":{\"inputs\":{},\"params\":"
                                     "{}},\"quantize\":{\"inputs\":{},\"params\":{}}}";
    static const struct { const char *from, *to, *says; } changes[] = {
        {"recipe 1", "recipe 2", "newer fhtool"},
        {"fhtool recipe", "recipe", "/format is not"},
        {"\"probes\":3", "\"probes\":0", "/pack"},
        {"\"probes\":3", "\"probes\":99999999999", "/pack"},
        {"\"centroids\":\"int8\"", "\"centroids\":\"int9\"", "/pack"},
        {"\"k\":2", "\"k\":1", "/pack"},
        {"\"rerank\":16", "\"rerank\":70000", "/pack"},
        {"recipe.safetensors", "../../x", "/carried/file"},
        {"\"cluster\":", "\"clusters\":", "/provenance/cluster is no record"},
        {"\"head_only\":false", "\"head_only\":0", "/pack"},
        {"\"digest\":\"0", "\"digest\":\"x", "64 lower-case"},
    };
    fh_recipe r;
    fh_err err = {FH_OK, ""};
    char *text =
        fh_sprintf("{\"format\":\"fhtool recipe "
                   "1\",\"tool\":\"fhtool\",\"artifact\":{\"digest\":\"%s\",\"fingerprint\":\"%s\"},\"pack\":{\"k\":2,\"probes\":3,\"rerank\":16,\"routing\":\"raw\","
                   "\"centroids\":\"int8\",\"tokens\":\"int4\",\"head_only\":false,\"exact\":true},\"carried\":{\"file\":\"recipe.safetensors\",\"sha256\":\"%"
                   "s\"},\"provenance\":%s}",
                   HEX, HEX, HEX, provenance);
    if (fh_recipe_parse(&r, text, strlen(text), "recipe.json", &err) < 0) fail_msg("%s", err.text);
    assert_true(r.probes == 3 && r.rerank == 16 && r.tokens == FH_I4 && r.exact && !r.calibration);
    fh_recipe_free(&r);
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        const char *at = strstr(text, changes[i].from);
        assert_non_null(at);
        char *odd = fh_sprintf("%.*s%s%s", (int)(at - text), text, changes[i].to, at + strlen(changes[i].from));
        if (fh_recipe_parse(&r, odd, strlen(odd), "recipe.json", &err) >= 0) fail_msg("accepted: %s", changes[i].to);
        if (!strstr(err.text, changes[i].says)) fail_msg("wanted '%s': %s", changes[i].says, err.text);
        fh_free(odd);
    }
    fh_free(text);
}

/* ---- every step may fail ---------------------------------------------------------------------------------------------------- */

#ifdef FH_FAULTS
static bool is_there(const char *name)
{
    return fh_file_exists(place(name));
}

/* Nothing that was made under a hidden name stays, but what the next run goes on with. */
static void no_temporaries(const char *dir)
{
    DIR *d = opendir(dir);
    for (struct dirent *e; d && (e = readdir(d));)
        if (strstr(e->d_name, ".tmp")) fail_msg("%s/%s was left", dir, e->d_name);
    if (d) closedir(d);
}

static void any_failing_step_of_publishing_leaves_a_sound_registry(void **state)
{
    char dir[4300];
    write_artifact();
    for (int kind = 0; kind < FH_FAULT_KINDS; kind++)
        for (long n = 1;; n++) {
            fh_err err = {FH_OK, ""};
            fh_fault_set(kind, n);
            fh_status rc = publish_as("reg", n % 10 == 0, &err);
            bool fired = fh_fault_fired();
            fh_fault_set(kind, 0);
            if (rc < 0 && !err.text[0]) fail_msg("no message");
            if (!fired) {
                if (rc < 0) fail_msg("%s", err.text);
                clear("reg");
                break;
            }
            assert_true(n < 20000);
            snprintf(dir, sizeof dir, "%s/n/1.0", place("reg"));
            if (fh_file_exists(dir) && verify(dir, &err) < 0) fail_msg("step %ld: half a release: %s", n, err.text);
            no_temporaries(place("reg"));
            no_temporaries(place("reg/n"));
            if (rc < 0 && n % 7 == 0) { /* and the same command completes */
                if (publish_as("reg", n % 10 == 0, &err) < 0 && !strstr(err.text, "already")) fail_msg("step %ld, again: %s", n, err.text);
            }
            clear("reg");
        }
}

static void any_failing_step_of_fetching_leaves_nothing_half_made(void **state)
{
    char registry[4200], output[4200];
    fh_err err = {FH_OK, ""};
    write_artifact();
    assert_int_equal(publish_as("reg", false, &err), FH_OK);
    snprintf(registry, sizeof registry, "%s", place("reg"));
    snprintf(output, sizeof output, "%s", place("got"));
    for (int kind = 0; kind < FH_FAULT_KINDS; kind++)
        for (long n = 1;; n++) {
            fh_json *report = NULL;
            fh_fetch_params p = {.from = {.registry = registry}, .what = "n", .output = output};
            err.text[0] = 0;
            fh_fault_set(kind, n);
            fh_status rc = fh_fetch(&p, NULL, &report, &err);
            bool fired = fh_fault_fired();
            fh_fault_set(kind, 0);
            fh_json_free(report);
            if (rc < 0 && !err.text[0]) fail_msg("no message");
            if (!fired) {
                if (rc < 0) fail_msg("%s", err.text);
                break;
            }
            assert_true(n < 20000);
            if (rc < 0) assert_false(is_there("got"));
            if (is_there("got")) clear("got");
        }
    clear("got");
    clear("reg");
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_are_plain_words),
        cmocka_unit_test(paths_stay_inside_a_release),
        cmocka_unit_test(versions_have_one_order),
        cmocka_unit_test(indexes_are_judged),
        cmocka_unit_test(an_index_of_too_many_is_refused),
        cmocka_unit_test(releases_are_judged),
        cmocka_unit_test(recipes_are_judged),
        cmocka_unit_test(any_changed_byte_of_a_release_is_found),
        cmocka_unit_test(two_releases_of_one_artifact_are_the_same_bytes),
        cmocka_unit_test(a_version_that_is_there_is_not_touched),
#ifdef FH_FAULTS
        cmocka_unit_test(any_failing_step_of_publishing_leaves_a_sound_registry),
        cmocka_unit_test(any_failing_step_of_fetching_leaves_nothing_half_made),
#endif
    };
    return cmocka_run_group_tests_name("release", tests, make_scratch, drop_scratch);
}
