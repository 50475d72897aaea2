/* Any bytes as what a registry, a release or a key file says: the first byte chooses which, the rest is the file. */
#include "artifacts/recipe.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void refused(const fh_err *err)
{
    if (!err->text[0] || strchr(err->text, '\n')) abort();
}

/* What is accepted has judged names, in order, and prints as what is accepted again. */
static void as_index(const char *text, size_t len)
{
    fh_index x, again;
    fh_err err = {FH_OK, ""};
    fh_index_entry e = {.name = (char[]){"zzz"}, .version = (char[]){"1"}};
    memset(e.digest, '0', 64), memset(e.fingerprint, '0', 64), memset(e.release_sha256, '0', 64);
    if (fh_index_parse(&x, text, len, "index.json", &err) < 0) {
        if (x.entries) abort();
        refused(&err);
        return;
    }
    for (size_t i = 0; i < x.n; i++) {
        if (!fh_release_name_ok(x.entries[i].name) || !fh_release_name_ok(x.entries[i].version) || strchr(x.entries[i].name, '/')) abort();
        if (fh_index_find(&x, x.entries[i].name, x.entries[i].version) != &x.entries[i]) abort();
    }
    if (!fh_index_find(&x, "zzz", "1")) {
        char *printed = fh_index_print_with(&x, &e);
        if (!printed || fh_index_parse(&again, printed, strlen(printed), "again", &err) < 0 || again.n != x.n + 1) abort();
        fh_index_free(&again);
        fh_free(printed);
    }
    fh_index_free(&x);
}

static void as_release(const char *text, size_t len)
{
    static const char sha[65] = "0000000000000000000000000000000000000000000000000000000000000000";
    fh_release r;
    fh_err err = {FH_OK, ""};
    if (fh_release_parse(&r, text, len, "release.json", &err) < 0) {
        if (r.files || r.json) abort();
        refused(&err);
        return;
    }
    for (size_t i = 0; i < r.n; i++) {
        const char *path = r.files[i].path;
        size_t l = strlen(path); /* "..x" is a name like others */
        bool leaves = !strcmp(path, "..") || !strncmp(path, "../", 3) || strstr(path, "/../") || (l > 2 && !strcmp(path + l - 3, "/.."));
        if (path[0] == '/' || leaves || !fh_hex64_ok(r.files[i].sha256) || fh_release_find(&r, path) != &r.files[i]) abort();
    }
    char *sums = fh_release_sums(&r, sha);
    if (!sums || strlen(sums) < (r.n + 1) * 67) abort();
    fh_free(sums);
    fh_release_free(&r);
}

static void as_recipe(const char *text, size_t len)
{
    fh_recipe r;
    fh_err err = {FH_OK, ""};
    if (fh_recipe_parse(&r, text, len, "recipe.json", &err) < 0) {
        if (r.json) abort();
        refused(&err);
        return;
    }
    if (!fh_hex64_ok(r.digest) || !fh_hex64_ok(r.fingerprint) || !r.probes || !fh_dtype_is_encoding(r.centroids) || !r.provenance) abort();
    fh_recipe_free(&r);
}

static void as_keys(const char *text, size_t len)
{
    fh_pubkey *k;
    fh_secret s;
    fh_signature signature;
    fh_err err = {FH_OK, ""};
    if (fh_pubkey_parse(&k, text, len, "key.pub", &err) < 0) refused(&err);
    fh_pubkey_close(k);
    if (fh_secret_parse(&s, text, len, "key", &err) < 0) refused(&err);
    if (fh_signature_parse(&signature, text, len, "file.minisig", &err) < 0) refused(&err);
    else if (strlen(signature.comment) > len) abort();
    fh_signature_free(&signature);
}

/* Any order of any versions is one order. */
static void as_versions(const char *text, size_t len)
{
    char v[3][32] = {"", "", ""};
    for (size_t i = 0, at = 0; i < 3; i++) {
        size_t n = 0;
        while (at < len && text[at] && text[at] != '\n' && n < sizeof v[0] - 1) v[i][n++] = text[at++];
        at++;
    }
    int ab = fh_version_order(v[0], v[1]), bc = fh_version_order(v[1], v[2]), ac = fh_version_order(v[0], v[2]);
    if ((ab > 0) != (fh_version_order(v[1], v[0]) < 0) || (!ab) != !strcmp(v[0], v[1])) abort();
    if (ab <= 0 && bc <= 0 && ac > 0) abort();
    if (ab >= 0 && bc >= 0 && ac < 0) abort();
    (void)fh_release_name_ok(v[0]);
    (void)fh_release_path_ok(v[1]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size) return 0;
    char *text = malloc(size); /* one more than the file: NUL-terminated, as files are read */
    if (!text) return 0;
    memcpy(text, data + 1, size - 1);
    text[size - 1] = 0;
    switch (data[0]) {
    case 'i': as_index(text, size - 1); break;
    case 'r': as_release(text, size - 1); break;
    case 'c': as_recipe(text, size - 1); break;
    case 'k': as_keys(text, size - 1); break;
    case 'v': as_versions(text, size - 1); break;
    default: break;
    }
    free(text);
    return 0;
}
