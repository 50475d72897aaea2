/* artifacts/index.c: the list of a registry's releases. */
#include "artifacts/release_private.h"

#include <stdio.h>
#include <string.h>

#define FORMAT "fhtool registry 1"

static fh_status bad(const char *file, size_t i, const char *what, fh_err *err)
{
    return fh_fail(err, FH_EFORMAT, "%s: /releases/%zu: %s: is it an index that fhtool wrote?", file, i, what);
}

static int entry_order(const fh_index_entry *a, const fh_index_entry *b)
{
    int c = strcmp(a->name, b->name);
    return c ? c : fh_version_order(a->version, b->version);
}

static fh_status read_entry(fh_index_entry *e, const fh_json *j, const fh_index_entry *before, const char *file, size_t i, fh_err *err)
{
    const char *name = fh_json_string(fh_json_get(j, "name")), *version = fh_json_string(fh_json_get(j, "version"));
    const char *digest = fh_json_string(fh_json_get(j, "digest")), *print = fh_json_string(fh_json_get(j, "fingerprint"));
    const fh_json *release = fh_json_get(j, "release");
    const char *sha = fh_json_string(fh_json_get(release, "sha256"));
    if (!name || !fh_release_name_ok(name)) return bad(file, i, "\"name\" is no name (A-Z a-z 0-9 . _ -, at most 100, not beginning with '.' or '-')", err);
    if (!version || !fh_release_name_ok(version)) return bad(file, i, "\"version\" is no version (as names: A-Z a-z 0-9 . _ -)", err);
    if (!fh_hex64_ok(digest) || !fh_hex64_ok(print) || !fh_hex64_ok(sha)) return bad(file, i, "a digest is not 64 lower-case hex digits", err);
    if (!fh_json_u64(fh_json_get(j, "bytes"), &e->bytes) || !fh_json_u64(fh_json_get(release, "bytes"), &e->release_bytes))
        return bad(file, i, "\"bytes\" is no size", err);
    if (e->release_bytes > FH_RELEASE_BYTES) return bad(file, i, "its release.json is said to be longer than 4 MiB, the most that is read", err);
    memcpy(e->digest, digest, 65), memcpy(e->fingerprint, print, 65), memcpy(e->release_sha256, sha, 65);
    e->name = fh_strdup(name), e->version = fh_strdup(version);
    if (!e->name || !e->version) return fh_fail(err, FH_ENOMEM, "%s: out of memory", file);
    if (before && entry_order(before, e) >= 0) return bad(file, i, "releases repeat or are out of order (by name, then version)", err);
    return FH_OK;
}

fh_status fh_index_parse(fh_index *out, const char *text, size_t len, const char *file, fh_err *err)
{
    fh_index x = {0};
    fh_json *json = NULL;
    *out = x;
    fh_status rc = fh_json_parse(&json, text, len, file, err);
    if (rc < 0) return rc;
    const char *format = fh_json_string(fh_json_get(json, "format"));
    const fh_json *list = fh_json_get(json, "releases");
    if (!format || strncmp(format, "fhtool registry ", 16)) {
        rc = fh_fail(err, FH_EFORMAT, "%s: /format: is not \"" FORMAT "\": is it a registry of fhtool?", file);
        goto out;
    }
    if (strcmp(format, FORMAT)) { rc = fh_fail(err, FH_EUNSUPPORTED, "%s: '%.40s' is of a newer fhtool than this one", file, format); goto out; }
    if (fh_json_type(list) != FH_JSON_ARRAY) { rc = fh_fail(err, FH_EFORMAT, "%s: /releases: is no list", file); goto out; }
    size_t n = fh_json_count(list);
    if (n > FH_INDEX_MOST) { rc = fh_fail(err, FH_EFORMAT, "%s: /releases: %zu releases, more than the %d that are read", file, n, FH_INDEX_MOST); goto out; }
    if (!(x.entries = fh_calloc(fh_max(n, 1), sizeof *x.entries))) { rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", file); goto out; }
    for (const fh_json *j = fh_json_first(list); j; j = fh_json_next(j)) {
        size_t i = x.n++;
        if ((rc = read_entry(&x.entries[i], j, i ? &x.entries[i - 1] : NULL, file, i, err)) < 0) goto out;
    }
    *out = x, x = (fh_index){0};
out:
    fh_index_free(&x);
    fh_json_free(json);
    return rc;
}

void fh_index_free(fh_index *i)
{
    for (size_t e = 0; e < i->n; e++) {
        fh_free(i->entries[e].name);
        fh_free(i->entries[e].version);
    }
    fh_free(i->entries);
    *i = (fh_index){0};
}

const fh_index_entry *fh_index_find(const fh_index *i, const char *name, const char *version)
{
    const fh_index_entry *found = NULL;
    for (size_t e = 0; e < i->n; e++)
        if (!strcmp(i->entries[e].name, name) && (!version || !strcmp(i->entries[e].version, version))) found = &i->entries[e];
    return found;
}

static void add_entry(fh_json *list, const fh_index_entry *e)
{
    fh_json *j = fh_json_add_object(list, NULL), *r;
    fh_json_add_string(j, "name", e->name);
    fh_json_add_string(j, "version", e->version);
    fh_json_add_string(j, "digest", e->digest);
    fh_json_add_string(j, "fingerprint", e->fingerprint);
    fh_json_add_u64(j, "bytes", e->bytes);
    r = fh_json_add_object(j, "release");
    fh_json_add_u64(r, "bytes", e->release_bytes);
    fh_json_add_string(r, "sha256", e->release_sha256);
}

char *fh_index_print_with(const fh_index *i, const fh_index_entry *e)
{
    fh_json *j = fh_json_object(), *list;
    size_t at = 0;
    fh_json_add_string(j, "format", FORMAT);
    list = fh_json_add_array(j, "releases");
    while (at < i->n && entry_order(&i->entries[at], e) < 0) add_entry(list, &i->entries[at++]);
    add_entry(list, e);
    for (; at < i->n; at++) add_entry(list, &i->entries[at]);
    char *text = j ? fh_json_print(j, true) : NULL, *line = text ? fh_sprintf("%s\n", text) : NULL;
    fh_free(text);
    fh_json_free(j);
    return line;
}
