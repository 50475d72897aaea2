/* artifacts/release.c: what a release says about itself: release.json, and the SHA256SUMS that follows from it. */
#include "artifacts/release_private.h"

#include <string.h>

#define FORMAT "fhtool release 1"

static fh_status bad(const char *file, const char *pointer, const char *what, fh_err *err)
{
    return fh_fail(err, FH_EFORMAT, "%s: %s: %s: is it a release.json that fhtool wrote?", file, pointer, what);
}

static fh_status read_name(char **out, const fh_json *j, const char *key, const char *file, fh_err *err)
{
    const char *s = fh_json_string(fh_json_get(j, key));
    char pointer[32] = "/";
    strncat(pointer, key, sizeof pointer - 2);
    if (!s || !fh_release_name_ok(s)) return bad(file, pointer, "is no name (A-Z a-z 0-9 . _ -, at most 100, not beginning with '.' or '-')", err);
    return (*out = fh_strdup(s)) ? FH_OK : fh_fail(err, FH_ENOMEM, "%s: out of memory", file);
}

static fh_status read_digest(char out[65], const fh_json *j, const char *key, const char *file, const char *pointer, fh_err *err)
{
    const char *s = fh_json_string(fh_json_get(j, key));
    if (!fh_hex64_ok(s)) return bad(file, pointer, "is not 64 lower-case hex digits", err);
    memcpy(out, s, 65);
    return FH_OK;
}

static fh_status read_file(fh_release_file *f, const fh_json *j, const fh_release_file *before, const char *file, size_t i, fh_err *err)
{
    char pointer[64];
    char *at = fh_sprintf("/files/%zu", i);
    if (!at) return fh_fail(err, FH_ENOMEM, "%s: out of memory", file);
    pointer[0] = 0;
    strncat(pointer, at, sizeof pointer - 1);
    fh_free(at);
    const char *path = fh_json_string(fh_json_get(j, "path"));
    if (!path || !fh_release_path_ok(path)) return bad(file, pointer, "\"path\" is no name of a file in a release (A-Z a-z 0-9 . _ - and /)", err);
    if (before && strcmp(before->path, path) >= 0) return bad(file, pointer, "paths repeat or are out of order", err);
    if (!fh_json_u64(fh_json_get(j, "bytes"), &f->bytes)) return bad(file, pointer, "\"bytes\" is no size", err);
    fh_status rc = read_digest(f->sha256, j, "sha256", file, pointer, err);
    if (rc < 0) return rc;
    return (f->path = fh_strdup(path)) ? FH_OK : fh_fail(err, FH_ENOMEM, "%s: out of memory", file);
}

fh_status fh_release_parse(fh_release *out, const char *text, size_t len, const char *file, fh_err *err)
{
    fh_release r = {0};
    *out = r;
    fh_status rc = fh_json_parse(&r.json, text, len, file, err);
    if (rc < 0) return rc;
    const char *format = fh_json_string(fh_json_get(r.json, "format"));
    const fh_json *artifact = fh_json_get(r.json, "artifact"), *files = fh_json_get(r.json, "files");
    if (!format || strncmp(format, "fhtool release ", 15)) { rc = bad(file, "/format", "is not \"" FORMAT "\"", err); goto out; }
    if (strcmp(format, FORMAT)) { rc = fh_fail(err, FH_EUNSUPPORTED, "%s: '%.40s' is of a newer fhtool than this one", file, format); goto out; }
    if ((rc = read_name(&r.name, r.json, "name", file, err)) < 0 || (rc = read_name(&r.version, r.json, "version", file, err)) < 0 ||
        (rc = read_digest(r.digest, artifact, "digest", file, "/artifact/digest", err)) < 0 ||
        (rc = read_digest(r.fingerprint, artifact, "fingerprint", file, "/artifact/fingerprint", err)) < 0) goto out;
    size_t n = fh_json_type(files) == FH_JSON_ARRAY ? fh_json_count(files) : 0;
    if (!n || n > FH_RELEASE_MOST) { rc = bad(file, "/files", "is no list of 1 to 4096 files", err); goto out; }
    if (!(r.files = fh_calloc(n, sizeof *r.files))) { rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", file); goto out; }
    for (const fh_json *j = fh_json_first(files); j; j = fh_json_next(j)) {
        rc = read_file(&r.files[r.n], j, r.n ? &r.files[r.n - 1] : NULL, file, r.n, err);
        if (rc < 0) goto out;
        r.n++;
    }
    const char *path = fh_json_string(fh_json_get(artifact, "file"));
    if (!path || !fh_release_find(&r, path)) { rc = bad(file, "/artifact/file", "is none of its files", err); goto out; }
    if (!(r.artifact = fh_strdup(path))) { rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", file); goto out; }
    *out = r, r = (fh_release){0};
out:
    fh_release_free(&r);
    return rc;
}

void fh_release_free(fh_release *r)
{
    for (size_t i = 0; i < r->n; i++) fh_free(r->files[i].path);
    fh_free(r->files);
    fh_free(r->name);
    fh_free(r->version);
    fh_free(r->artifact);
    fh_json_free(r->json);
    *r = (fh_release){0};
}

const fh_release_file *fh_release_find(const fh_release *r, const char *path)
{
    size_t from = 0, to = r->n;
    while (from < to) {
        size_t middle = from + (to - from) / 2;
        int c = strcmp(path, r->files[middle].path);
        if (!c) return &r->files[middle];
        if (c < 0) to = middle; else from = middle + 1;
    }
    return NULL;
}

char *fh_release_sums(const fh_release *r, const char release_sha256[65])
{
    fh_buf b = {0};
    bool said = false;
    for (size_t i = 0; i <= r->n; i++) {
        if (!said && (i == r->n || strcmp(FH_RELEASE_JSON, r->files[i].path) < 0)) {
            fh_buf_printf(&b, "%s  %s\n", release_sha256, FH_RELEASE_JSON);
            said = true;
        }
        if (i < r->n) fh_buf_printf(&b, "%s  %s\n", r->files[i].sha256, r->files[i].path);
    }
    return fh_buf_take(&b);
}

char *fh_release_comment(const char *name, const char *version, const char *digest)
{
    return fh_sprintf("fhtool release %s %s %s", name, version, digest);
}
