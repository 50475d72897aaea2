/* artifacts/fetch.c: a release out of a registry, whole or not at all.
 *
 * It grows in ".NAME.RELEASE.part" beside its final name, RELEASE being the digest of its release.json: what a killed run left is of
 * exactly this release, and the next one goes on in it.  A flock on that directory says that somebody is at work there.
 */
#include "artifacts/release_private.h"

#include <unistd.h>

/* ---- what there is ------------------------------------------------------------------------------------------------------ */

static fh_status read_index(fh_index *out, fh_source *s, fh_err *err)
{
    char *text = NULL, *name = fh_path_join(fh_source_name(s), FH_REGISTRY_INDEX);
    size_t len = 0;
    fh_status rc = name ? fh_source_text(s, FH_REGISTRY_INDEX, FH_INDEX_BYTES, &text, &len, err) : fh_fail(err, FH_ENOMEM, "out of memory");
    *out = (fh_index){0};
    if (rc == FH_ENOTFOUND) rc = fh_fail(err, rc, "%s: holds no " FH_REGISTRY_INDEX ": is it a registry?", fh_source_name(s));
    if (rc == FH_OK) rc = fh_index_parse(out, text, len, name, err);
    fh_free(text);
    fh_free(name);
    return rc;
}

fh_status fh_registry_list(const fh_source_params *from, const fh_job *job, fh_json **report, fh_err *err)
{
    fh_source *s = NULL;
    fh_index index = {0};
    fh_status rc = fh_source_connect(&s, from, job, err);
    *report = NULL;
    if (rc < 0 || (rc = read_index(&index, s, err)) < 0) goto out;
    fh_json *r = fh_json_object(), *list;
    fh_json_add_string(r, "registry", from->registry);
    list = fh_json_add_array(r, "releases");
    for (size_t i = 0; i < index.n; i++) {
        const fh_index_entry *e = &index.entries[i];
        fh_json *j = fh_json_add_object(list, NULL);
        fh_json_add_string(j, "name", e->name);
        fh_json_add_string(j, "version", e->version);
        fh_json_add_u64(j, "bytes", e->bytes);
        fh_json_add_string(j, "digest", e->digest);
        fh_json_add_string(j, "fingerprint", e->fingerprint);
    }
    *report = r;
out:
    fh_index_free(&index);
    fh_source_close(s);
    return rc;
}

/* NAME[@VERSION] */
static fh_status find_release(const fh_index_entry **out, char **name, const fh_index *index, const char *what, const char *registry, fh_err *err)
{
    const char *at = strchr(what, '@'), *version = at ? at + 1 : NULL;
    if (!(*name = fh_strndup(what, at ? (size_t)(at - what) : strlen(what)))) return fh_fail(err, FH_ENOMEM, "out of memory");
    if (!fh_release_name_ok(*name) || (version && !fh_release_name_ok(version)))
        return fh_fail(err, FH_EUSAGE, "'%.120s' is no NAME or NAME@VERSION (A-Z a-z 0-9 . _ -)", what);
    if ((*out = fh_index_find(index, *name, version))) return FH_OK;
    const fh_index_entry *newest = fh_index_find(index, *name, NULL);
    if (newest) return fh_fail(err, FH_ENOTFOUND, "%s: has no version %s of %s; the newest is %s (fhtool list)", registry, version, *name, newest->version);
    return fh_fail(err, FH_ENOTFOUND, "%s: has no release %s (fhtool list shows what there is)", registry, *name);
}

/* ---- its files --------------------------------------------------------------------------------------------------------------- */

typedef struct fetching {
    fh_source *s;
    const fh_index_entry *entry;
    fh_outdir *grows;
    const char *dir;       /* that it grows in */
    fh_release release;
    const fh_job *job;
} fetching;

static fh_status write_in(const fetching *f, const char *name, const char *text, size_t len, fh_err *err)
{
    char *path = fh_path_join(f->dir, name);
    fh_status rc = path ? fh_file_write(path, text, len, FH_OWNER_READS, err) : fh_fail(err, FH_ENOMEM, "%s: out of memory", f->dir);
    fh_free(path);
    return rc;
}

static fh_status in_registry(char **out, const fetching *f, const char *path, fh_err *err)
{
    *out = fh_sprintf("%s/%s/%s", f->entry->name, f->entry->version, path);
    return *out ? FH_OK : fh_fail(err, FH_ENOMEM, "out of memory");
}

static fh_status fetch_text(const fetching *f, const char *name, size_t limit, char **text, size_t *len, fh_err *err)
{
    char *path;
    fh_status rc = in_registry(&path, f, name, err);
    if (rc == FH_OK) rc = fh_source_text(f->s, path, limit, text, len, err);
    fh_free(path);
    return rc;
}

/* release.json is the one the index names, and says of itself what the index says. */
static fh_status fetch_release(fetching *f, fh_err *err)
{
    const fh_index_entry *e = f->entry;
    char *text = NULL, *sums = NULL, *want = NULL, hex[65];
    size_t len = 0, sums_len = 0;
    uint8_t digest[32];
    fh_status rc = fetch_text(f, FH_RELEASE_JSON, FH_RELEASE_BYTES, &text, &len, err);
    if (rc < 0) goto out;
    fh_sha256_of(digest, text, len);
    fh_sha256_hex(hex, digest);
    if (len != e->release_bytes) {
        rc = fh_fail(err, FH_EFORMAT, "%s: %s/%s/" FH_RELEASE_JSON " has %zu bytes, the index says %llu", fh_source_name(f->s), e->name, e->version, len,
                     (unsigned long long)e->release_bytes);
        goto out;
    }
    if (strcmp(hex, e->release_sha256)) {
        rc = fh_fail(err, FH_ECHECK, "%s: %s/%s/" FH_RELEASE_JSON " is not the one the index names (SHA-256): refused", fh_source_name(f->s), e->name,
                     e->version);
        goto out;
    }
    if ((rc = fh_release_parse(&f->release, text, len, FH_RELEASE_JSON, err)) < 0) goto out;
    if (strcmp(f->release.name, e->name) || strcmp(f->release.version, e->version) || strcmp(f->release.digest, e->digest) ||
        strcmp(f->release.fingerprint, e->fingerprint)) {
        rc = fh_fail(err, FH_ECHECK, "%s: under %s@%s lies %s@%s (artifact %.12s): refused", fh_source_name(f->s), e->name, e->version, f->release.name,
                     f->release.version, f->release.digest);
        goto out;
    }
    if (!(want = fh_release_sums(&f->release, hex))) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    if ((rc = fetch_text(f, FH_RELEASE_SUMS, FH_RELEASE_BYTES, &sums, &sums_len, err)) < 0) goto out;
    if (sums_len != strlen(want) || memcmp(sums, want, sums_len)) {
        rc = fh_fail(err, FH_ECHECK, "%s: " FH_RELEASE_SUMS " of %s@%s is not the list that its release.json gives: refused", fh_source_name(f->s), e->name,
                     e->version);
        goto out;
    }
    if ((rc = write_in(f, FH_RELEASE_JSON, text, len, err)) == FH_OK) rc = write_in(f, FH_RELEASE_SUMS, sums, sums_len, err);
out:
    fh_free(text);
    fh_free(sums);
    fh_free(want);
    return rc;
}

/* Of a release that is refused nothing stays. */
static void take_back(const fetching *f)
{
    static const char *const names[] = {FH_RELEASE_JSON, FH_RELEASE_SUMS, FH_RELEASE_SIGNATURE};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char *path = fh_path_join(f->dir, names[i]);
        if (path) unlink(path);
        fh_free(path);
    }
}

/* Before anything large is fetched. */
static fh_status fetch_signature(fetching *f, const fh_pubkey *key, fh_err *err)
{
    char *text = NULL, *signature = NULL, *sums = NULL, *comment = NULL, *want = NULL;
    size_t len = 0;
    fh_status rc = fetch_text(f, FH_RELEASE_SIGNATURE, 16 << 10, &text, &len, err);
    if (rc == FH_ENOTFOUND) {
        rc = key ? fh_fail(err, FH_ECHECK, "%s: nobody signed %s@%s, and a key was given: refused", fh_source_name(f->s), f->entry->name, f->entry->version)
                 : FH_OK;
        goto out;
    }
    if (rc < 0 || (rc = write_in(f, FH_RELEASE_SIGNATURE, text, len, err)) < 0 || !key) goto out;
    signature = fh_path_join(f->dir, FH_RELEASE_SIGNATURE), sums = fh_path_join(f->dir, FH_RELEASE_SUMS);
    if (!signature || !sums || !(want = fh_release_comment(f->entry->name, f->entry->version, f->entry->digest))) {
        rc = fh_fail(err, FH_ENOMEM, "out of memory");
        goto out;
    }
    if ((rc = fh_sign_check(key, sums, signature, &comment, f->job, err)) < 0) goto out;
    if (strcmp(comment, want)) rc = fh_fail(err, FH_ECHECK, "%s: what was signed is '%.300s', not '%s': refused", fh_source_name(f->s), comment, want);
out:
    if (rc == FH_ECHECK) take_back(f);
    fh_free(text);
    fh_free(signature);
    fh_free(sums);
    fh_free(comment);
    fh_free(want);
    return rc;
}

/* An OCI layout holds the artifact a second time: equal files are linked, not fetched. */
static bool link_equal(const fetching *f, size_t i, const char *to)
{
    const fh_release_file *want = &f->release.files[i];
    for (size_t k = 0; k < i; k++) {
        if (f->release.files[k].bytes != want->bytes || strcmp(f->release.files[k].sha256, want->sha256)) continue;
        char *from = fh_path_join(f->dir, f->release.files[k].path);
        bool done = from && !link(from, to);
        fh_free(from);
        if (done) return true;
    }
    return false;
}

static fh_status fetch_files(fetching *f, fh_err *err)
{
    for (size_t i = 0; i < f->release.n; i++) {
        const fh_release_file *want = &f->release.files[i];
        char *to = fh_path_join(f->dir, want->path), *parent = to ? fh_strndup(to, (size_t)(strrchr(to, '/') - to)) : NULL, *from = NULL;
        fh_status rc = parent ? fh_mkdirs(parent, err) : fh_fail(err, FH_ENOMEM, "out of memory");
        if (rc == FH_OK && (rc = in_registry(&from, f, want->path, err)) == FH_OK && (fh_file_exists(to) || !link_equal(f, i, to)))
            rc = fh_source_file(f->s, from, to, want, err);
        fh_free(to);
        fh_free(parent);
        fh_free(from);
        if (rc < 0) return rc;
    }
    return FH_OK;
}

/* ---- all of it --------------------------------------------------------------------------------------------------------------- */

/* What stands under the final name already: the same release, checked, or something that is left alone. */
static fh_status judge_there(const fetching *f, const char *final, const fh_pubkey *key, fh_json **report, fh_err *err)
{
    char *json = fh_path_join(final, FH_RELEASE_JSON), hex[65] = "";
    fh_status rc = json ? FH_OK : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc == FH_OK && fh_is_release(final)) rc = fh_file_sha256(hex, NULL, json, f->job, err);
    if (rc == FH_OK && strcmp(hex, f->entry->release_sha256))
        rc = fh_fail(err, FH_EFAIL, "%s: is there already and is not %s@%s: remove it or choose another name (-o)", final, f->entry->name, f->entry->version);
    if (rc == FH_OK) rc = fh_release_verify(final, key, f->job, report, err);
    fh_free(json);
    return rc;
}

static fh_status fetch_into(fetching *f, const char *final, const fh_pubkey *signer, fh_json **report, fh_err *err)
{
    char key[13];
    memcpy(key, f->entry->release_sha256, 12), key[12] = 0;
    fh_status rc = fh_outdir_resume(&f->grows, final, key, err);
    if (rc < 0) return rc;
    f->dir = fh_outdir_path(f->grows);
    if ((rc = fetch_release(f, err)) < 0 || (rc = fetch_signature(f, signer, err)) < 0 || (rc = fetch_files(f, err)) < 0 ||
        (rc = fh_release_verify(f->dir, signer, f->job, report, err)) < 0) {
        fh_outdir_abandon(f->grows);
        return rc;
    }
    return fh_outdir_commit(f->grows, 0, err);
}

fh_status fh_fetch(const fh_fetch_params *p, const fh_job *job, fh_json **report, fh_err *err)
{
    double began = fh_now();
    fh_index index = {0};
    fetching f = {.job = job};
    char *name = NULL, *final = NULL;
    *report = NULL;
    fh_status rc = fh_source_connect(&f.s, &p->from, job, err);
    if (rc < 0 || (rc = read_index(&index, f.s, err)) < 0 || (rc = find_release(&f.entry, &name, &index, p->what, p->from.registry, err)) < 0) goto out;
    if (!(final = p->output ? fh_strdup(p->output) : fh_sprintf("%s-%s", f.entry->name, f.entry->version))) {
        rc = fh_fail(err, FH_ENOMEM, "out of memory");
        goto out;
    }
    if (!p->key) fh_release_say_unsigned(p->what, job);
    bool there = fh_file_exists(final);
    rc = there ? judge_there(&f, final, p->key, report, err) : fetch_into(&f, final, p->key, report, err);
    if (*report) {
        fh_json_add_string(*report, "dir", final);
        fh_json_add_bool(*report, "there_already", there);
        fh_json_add_double(*report, "seconds", fh_now() - began);
    }
out:
    fh_job_progress(job, "fetch", 1, 1, "bytes");
    fh_release_free(&f.release);
    fh_index_free(&index);
    fh_source_close(f.s);
    fh_free(name);
    fh_free(final);
    return rc;
}
