/* artifacts/release_verify.c: is a release what it says it is?  Every file is read; what is missing, extra, renamed or altered is named. */
#include "artifacts/release_private.h"

#include <errno.h>
#include <fts.h>
#include <string.h>
#include <sys/stat.h>

enum { ENTRIES_MOST = 1 << 16, LISTED_MOST = 1000 };

typedef struct checker {
    const char *dir;
    const fh_job *job;
    fh_release release;
    bool *seen;            /* [release.n] */
    char **extra; size_t n_extra, room;
    fh_json *problems;
    size_t n;
    fh_err first;
} checker;

bool fh_is_release(const char *path) { return fh_dir_has(path, FH_RELEASE_JSON); }

/* A problem is noted and the search goes on; the first is the message in the end. */
static void note(checker *c, const char *problem, const char *file, const char *detail)
{
    if (!c->n++) fh_fail(&c->first, FH_ECHECK, "%s: %s: %s: %s", c->dir, problem, file, detail);
    if (c->n > LISTED_MOST) return;
    fh_json *j = fh_json_add_object(c->problems, NULL);
    fh_json_add_string(j, "problem", problem);
    fh_json_add_string(j, "file", file);
    fh_json_add_string(j, "detail", detail);
}

static fh_status no_memory(const checker *c, fh_err *err) { return fh_fail(err, FH_ENOMEM, "%s: out of memory", c->dir); }

/* ---- files ------------------------------------------------------------------------------------------------------------ */

static fh_status check_file(checker *c, size_t i, const char *path, fh_err *err)
{
    const fh_release_file *f = &c->release.files[i];
    char hex[65];
    uint64_t bytes;
    struct stat st;
    c->seen[i] = true;
    if (!stat(path, &st) && (uint64_t)st.st_size != f->bytes) {
        char *detail = fh_sprintf("has %llu bytes, not %llu", (unsigned long long)st.st_size, (unsigned long long)f->bytes);
        if (!detail) return no_memory(c, err);
        note(c, "altered", f->path, detail);
        fh_free(detail);
        return FH_OK;
    }
    fh_status rc = fh_file_sha256(hex, &bytes, path, c->job, err);
    if (rc < 0) return rc;
    if (bytes != f->bytes || strcmp(hex, f->sha256)) note(c, "altered", f->path, "its SHA-256 is not the one in release.json");
    return FH_OK;
}

static fh_status keep_extra(checker *c, const char *path, fh_err *err)
{
    if (c->n_extra == c->room) {
        size_t room = c->room ? 2 * c->room : 16;
        char **grown = fh_realloc(c->extra, room * sizeof *grown);
        if (!grown) return no_memory(c, err);
        c->extra = grown, c->room = room;
    }
    if (!(c->extra[c->n_extra] = fh_strdup(path))) return no_memory(c, err);
    c->n_extra++;
    return FH_OK;
}

static bool describes(const char *path) { return !strcmp(path, FH_RELEASE_JSON) || !strcmp(path, FH_RELEASE_SUMS) || !strcmp(path, FH_RELEASE_SIGNATURE); }

static fh_status visit(checker *c, const FTSENT *e, fh_err *err)
{
    const char *path = e->fts_path + strlen(c->dir);
    path += strspn(path, "/");
    switch (e->fts_info) {
    case FTS_D: case FTS_DP: return FH_OK;
    case FTS_F: {
        if (describes(path)) return FH_OK;
        const fh_release_file *f = fh_release_find(&c->release, path);
        return f ? check_file(c, (size_t)(f - c->release.files), e->fts_path, err) : keep_extra(c, path, err);
    }
    case FTS_SL: case FTS_SLNONE: case FTS_DEFAULT: {
        const fh_release_file *f = fh_release_find(&c->release, path);
        note(c, f ? "altered" : "extra", path, e->fts_info == FTS_DEFAULT ? "is no regular file" : "is a link, not a file");
        if (f) c->seen[f - c->release.files] = true;
        return FH_OK;
    }
    default: return fh_fail(err, FH_EIO, "%s: cannot look at it: %s", e->fts_path, strerror(e->fts_errno ? e->fts_errno : EIO));
    }
}

static fh_status walk(checker *c, fh_err *err)
{
    char *dir = fh_strdup(c->dir);
    fh_status rc = FH_OK;
    if (!dir) return no_memory(c, err);
    FTS *fts = fts_open((char *const[]){dir, NULL}, FTS_PHYSICAL | FTS_NOCHDIR, NULL);
    if (!fts) { fh_free(dir); return fh_fail(err, FH_EIO, "%s: cannot look at it: %s", c->dir, strerror(errno)); }
    size_t n = 0;
    for (FTSENT *e; rc == FH_OK && (e = fts_read(fts));) {
        if (++n > ENTRIES_MOST) rc = fh_fail(err, FH_ECHECK, "%s: more than %d files lie in it: is it a release?", c->dir, ENTRIES_MOST);
        else rc = visit(c, e, err);
    }
    fts_close(fts);
    fh_free(dir);
    return rc;
}

/* One that is missing under its name and there under another was renamed. */
static fh_status match_extras(checker *c, fh_err *err)
{
    for (size_t x = 0; x < c->n_extra; x++) {
        char *path = fh_path_join(c->dir, c->extra[x]), hex[65];
        const fh_release_file *was = NULL;
        uint64_t bytes;
        if (!path) return no_memory(c, err);
        fh_status rc = fh_file_sha256(hex, &bytes, path, c->job, err);
        fh_free(path);
        if (rc < 0) return rc;
        for (size_t i = 0; i < c->release.n && !was; i++)
            if (!c->seen[i] && c->release.files[i].bytes == bytes && !strcmp(c->release.files[i].sha256, hex)) was = &c->release.files[i];
        if (was) {
            char *detail = fh_sprintf("lies there as %s", c->extra[x]);
            if (!detail) return no_memory(c, err);
            c->seen[was - c->release.files] = true;
            note(c, "renamed", was->path, detail);
            fh_free(detail);
        } else {
            note(c, "extra", c->extra[x], "is not of this release");
        }
    }
    for (size_t i = 0; i < c->release.n; i++)
        if (!c->seen[i]) note(c, "missing", c->release.files[i].path, "is of this release and not there");
    return FH_OK;
}

/* ---- what describes it --------------------------------------------------------------------------------------------------- */

/* release.json and the one SHA256SUMS that belongs to it: a change in either shows in the other. */
static fh_status check_descriptions(checker *c, fh_err *err)
{
    char *json = fh_path_join(c->dir, FH_RELEASE_JSON), *sums = fh_path_join(c->dir, FH_RELEASE_SUMS), *text = NULL, *said = NULL, *want = NULL, hex[65];
    size_t len = 0, said_len = 0;
    uint8_t digest[32];
    fh_status rc = json && sums ? FH_OK : no_memory(c, err);
    if (rc < 0 || (rc = fh_file_read(&text, &len, json, FH_RELEASE_BYTES, err)) < 0 || (rc = fh_release_parse(&c->release, text, len, json, err)) < 0) goto out;
    fh_sha256_of(digest, text, len);
    fh_sha256_hex(hex, digest);
    if (!(want = fh_release_sums(&c->release, hex)) || !(c->seen = fh_calloc(c->release.n, sizeof *c->seen))) { rc = no_memory(c, err); goto out; }
    if (!fh_file_exists(sums)) {
        note(c, "missing", FH_RELEASE_SUMS, "is of every release and not there");
    } else {
        if ((rc = fh_file_read(&said, &said_len, sums, FH_RELEASE_BYTES, err)) < 0) goto out;
        const char *own = strstr(said, "  " FH_RELEASE_JSON "\n");
        bool other = said_len != strlen(want) || memcmp(said, want, said_len);
        if (other && own && own - said >= 64 && strncmp(own - 64, hex, 64))
            note(c, "altered", FH_RELEASE_JSON, "its SHA-256 is not the one in " FH_RELEASE_SUMS ", or that was altered");
        else if (other) note(c, "altered", FH_RELEASE_SUMS, "is not the list that release.json gives");
    }
out:
    fh_free(json);
    fh_free(sums);
    fh_free(text);
    fh_free(said);
    fh_free(want);
    return rc;
}

/* The artifact is sound in itself and the one that release.json names. */
static fh_status check_artifact(checker *c, fh_err *err)
{
    char *path = fh_path_join(c->dir, c->release.artifact);
    fh_fhead *f = NULL;
    fh_head_layout h;
    fh_err mine = {FH_OK, ""};
    fh_status rc = path ? FH_OK : no_memory(c, err);
    if (rc < 0) return rc;
    if ((rc = fh_fhead_open(&f, path, &mine)) < 0 || (rc = fh_artifact_verify(f, c->job, &mine)) < 0 || (rc = fh_fhead_check_head(f, &h, &mine)) < 0) {
        if (rc == FH_ENOMEM || rc == FH_EINTERRUPTED || rc == FH_EIO) { fh_fail(err, rc, "%s", mine.text); goto out; }
        note(c, "altered", c->release.artifact, mine.text);
        rc = FH_OK;
    } else if (strcmp(fh_fhead_digest(f), c->release.digest)) {
        note(c, "altered", c->release.artifact, "is another artifact than release.json names");
    } else if (strcmp(h.fingerprint, c->release.fingerprint)) {
        note(c, "altered", c->release.artifact, "is of another model than release.json names");
    }
out:
    fh_fhead_close(f);
    fh_free(path);
    return rc;
}

/* What the key signed must be this release and no other, be it newer or older. */
static fh_status check_signature(checker *c, const fh_pubkey *key, fh_err *err)
{
    char *sums = fh_path_join(c->dir, FH_RELEASE_SUMS), *signature = fh_path_join(c->dir, FH_RELEASE_SIGNATURE), *comment = NULL, *want = NULL;
    fh_err mine = {FH_OK, ""};
    fh_status rc = FH_OK;
    if (!sums || !signature || !(want = fh_release_comment(c->release.name, c->release.version, c->release.digest))) { rc = no_memory(c, err); goto out; }
    if (!fh_file_exists(signature)) { note(c, "missing", FH_RELEASE_SIGNATURE, "a key was given, and nobody signed this release"); goto out; }
    if (!fh_file_exists(sums)) goto out; /* noted already */
    if ((rc = fh_sign_check(key, sums, signature, &comment, c->job, &mine)) < 0) {
        if (rc == FH_ENOMEM || rc == FH_EINTERRUPTED) { fh_fail(err, rc, "%s", mine.text); goto out; }
        note(c, "signature", FH_RELEASE_SIGNATURE, mine.text);
        rc = FH_OK;
    } else if (strcmp(comment, want)) {
        char *detail = fh_sprintf("what was signed is '%.300s', not '%s'", comment, want);
        if (!detail) { rc = no_memory(c, err); goto out; }
        note(c, "signature", FH_RELEASE_SIGNATURE, detail);
        fh_free(detail);
    }
out:
    fh_free(sums);
    fh_free(signature);
    fh_free(comment);
    fh_free(want);
    return rc;
}

static fh_json *report_of(checker *c, const fh_pubkey *key)
{
    fh_json *j = fh_json_object();
    uint64_t bytes = 0;
    for (size_t i = 0; i < c->release.n; i++) bytes += c->release.files[i].bytes;
    fh_json_add_string(j, "name", c->release.name);
    fh_json_add_string(j, "version", c->release.version);
    fh_json_add_string(j, "artifact", c->release.artifact);
    fh_json_add_string(j, "digest", c->release.digest);
    fh_json_add_string(j, "fingerprint", c->release.fingerprint);
    fh_json_add_u64(j, "files", c->release.n);
    fh_json_add_u64(j, "bytes", bytes);
    fh_json_add_string(j, "signed_by", key && !c->n ? fh_pubkey_id(key) : "not checked");
    fh_json_add(j, "problems", c->problems), c->problems = NULL;
    fh_json_add_bool(j, "verified", !c->n);
    return j;
}

void fh_release_say_unsigned(const char *what, const fh_job *job)
{
    fh_job_say(job, FH_WARN, "%s: without a key this is integrity, not authenticity: nothing here says who made it (--pubkey)", what);
}

fh_status fh_release_verify(const char *dir, const fh_pubkey *key, const fh_job *job, fh_json **report, fh_err *err)
{
    checker c = {.dir = dir, .job = job, .problems = fh_json_array()};
    fh_status rc = c.problems ? check_descriptions(&c, err) : no_memory(&c, err);
    *report = NULL;
    if (rc < 0 || (rc = walk(&c, err)) < 0 || (rc = match_extras(&c, err)) < 0) goto out;
    if (!c.n && (rc = check_artifact(&c, err)) < 0) goto out; /* else its bytes, or what they are compared with, are known to be wrong */
    if (key && (rc = check_signature(&c, key, err)) < 0) goto out;
    if (!(*report = report_of(&c, key))) { rc = no_memory(&c, err); goto out; }
    if (c.n == 1) rc = fh_fail(err, FH_ECHECK, "%s", c.first.text);
    if (c.n > 1) rc = fh_fail(err, FH_ECHECK, "%s (and %zu more)", c.first.text, c.n - 1);
out:
    for (size_t i = 0; i < c.n_extra; i++) fh_free(c.extra[i]);
    fh_free(c.extra);
    fh_free(c.seen);
    fh_json_free(c.problems);
    fh_release_free(&c.release);
    return rc;
}
