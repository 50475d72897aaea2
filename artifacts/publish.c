/* artifacts/publish.c: an artifact becomes a release in a registry.
 *
 * All of it is made in memory first but the artifact itself, so that --dry-run says exactly what would be written; then it is written beside its
 * final name and renamed, and only then listed.  Nothing in it says when or where: two releases of one artifact are the same bytes.
 */
#include "artifacts/release_private.h"

#include <stdlib.h>
#include <unistd.h>

enum { CONTENTS = 64 };

typedef struct publishing {
    const fh_publish_params *p;
    const fh_job *job;
    fh_fhead *artifact;
    fh_json *info;             /* fh_artifact_info */
    char *artifact_name;       /* NAME.fhead */
    fh_content contents[CONTENTS]; size_t n;
    fh_arena *arena;           /* paths of the OCI layout */
    char *release, *sums; char release_sha256[65];
    uint64_t bytes;            /* of all files */
    fh_index index;
} publishing;

static fh_status no_memory(const publishing *w, fh_err *err) { return fh_fail(err, FH_ENOMEM, "%s: out of memory", w->p->artifact); }

/* ---- what goes in -------------------------------------------------------------------------------------------------------- */

/* Takes `text` over. */
static fh_status add_text(publishing *w, const char *path, char *text, size_t len, fh_err *err)
{
    uint8_t digest[32];
    if (!text || w->n == CONTENTS) { fh_free(text); return no_memory(w, err); }
    fh_content *c = &w->contents[w->n++];
    *c = (fh_content){.path = path, .data = text, .len = len, .bytes = len};
    fh_sha256_of(digest, text, len);
    fh_sha256_hex(c->sha256, digest);
    return FH_OK;
}

static fh_status add_string(publishing *w, const char *path, char *text, fh_err *err) { return add_text(w, path, text, text ? strlen(text) : 0, err); }

static fh_status gather(publishing *w, fh_err *err)
{
    const fh_publish_params *p = w->p;
    const fh_json *header = fh_fhead_header(w->artifact);
    fh_content *c = &w->contents[w->n++];
    char *recipe, *carried, *text = NULL;
    size_t carried_bytes, len;
    *c = (fh_content){.path = w->artifact_name, .copy_of = p->artifact};
    fh_status rc = fh_file_sha256(c->sha256, &c->bytes, p->artifact, w->job, err);
    if (rc < 0 || (rc = fh_recipe_text(&recipe, &carried, &carried_bytes, w->artifact, p, w->job, err)) < 0) return rc;
    if ((rc = add_string(w, FH_RELEASE_RECIPE, recipe, err)) < 0) { fh_free(carried); return rc; }
    if ((rc = add_text(w, FH_RELEASE_CARRIED, carried, carried_bytes, err)) < 0 ||
        (rc = add_string(w, "README.md", fh_card_text(p, w->info, header), err)) < 0 || (rc = add_string(w, "NOTICE", fh_card_notice(p, w->info), err)) < 0)
        return rc;
    char *eval = fh_card_eval(p, header);
    if (eval && !*eval) fh_free(eval); /* nothing was measured */
    else if ((rc = add_string(w, FH_RELEASE_EVAL, eval, err)) < 0) return rc;
    if (p->license_file && ((rc = fh_file_read(&text, &len, p->license_file, 4 << 20, err)) < 0 || (rc = add_text(w, "LICENSE", text, len, err)) < 0))
        return rc;
    return p->oci ? fh_oci_contents(w->contents, &w->n, CONTENTS, w->arena, p, w->info, err) : FH_OK;
}

static int by_path(const void *a, const void *b) { return strcmp(((const fh_content *)a)->path, ((const fh_content *)b)->path); }

/* release.json and SHA256SUMS, of all the others. */
static fh_status describe(publishing *w, fh_err *err)
{
    const fh_publish_params *p = w->p;
    fh_content sorted[CONTENTS];
    fh_release r = {0};
    uint8_t digest[32];
    memcpy(sorted, w->contents, sizeof sorted);
    qsort(sorted, w->n, sizeof *sorted, by_path);
    fh_json *j = fh_json_object(), *o, *list;
    fh_json_add_string(j, "format", "fhtool release 1");
    fh_json_add_string(j, "name", p->name);
    fh_json_add_string(j, "version", p->version);
    fh_json_add_string(j, "tool", "fhtool " FH_TOOL_VERSION);
    if (p->base_model) fh_json_add_string(j, "base_model", p->base_model);
    fh_json_add_string(j, "license", p->license ? p->license : "other");
    o = fh_json_add_object(j, "artifact");
    fh_json_add_string(o, "file", w->artifact_name);
    fh_json_add_copy(o, "digest", fh_json_get(w->info, "digest"));
    fh_json_add_copy(o, "fingerprint", fh_json_get(w->info, "fingerprint"));
    fh_json_add_copy(o, "sections", fh_json_get(w->info, "sections"));
    list = fh_json_add_array(j, "files");
    for (size_t i = 0; i < w->n; i++) {
        fh_json *f = fh_json_add_object(list, NULL);
        fh_json_add_string(f, "path", sorted[i].path);
        fh_json_add_u64(f, "bytes", sorted[i].bytes);
        fh_json_add_string(f, "sha256", sorted[i].sha256);
        w->bytes += sorted[i].bytes;
    }
    char *text = j ? fh_json_print(j, true) : NULL;
    fh_json_free(j);
    if (text) w->release = fh_sprintf("%s\n", text);
    fh_free(text);
    if (!w->release) return no_memory(w, err);
    fh_sha256_of(digest, w->release, strlen(w->release));
    fh_sha256_hex(w->release_sha256, digest);
    fh_status rc = fh_release_parse(&r, w->release, strlen(w->release), FH_RELEASE_JSON, err); /* as everybody will judge it */
    if (rc == FH_OK && !(w->sums = fh_release_sums(&r, w->release_sha256))) rc = no_memory(w, err);
    fh_release_free(&r);
    return rc;
}

/* ---- where it goes ----------------------------------------------------------------------------------------------------------- */

static fh_status write_text(const char *dir, const char *name, const char *text, size_t len, fh_err *err)
{
    char *path = fh_path_join(dir, name);
    fh_status rc = path ? fh_file_write(path, text, len, FH_OWNER_READS, err) : fh_fail(err, FH_ENOMEM, "%s: out of memory", dir);
    fh_free(path);
    return rc;
}

/* Blobs of the OCI layout are links to the release's own files where the file system has links. */
static fh_status write_content(const publishing *w, const fh_content *c, const char *dir, fh_err *err)
{
    char *path = fh_path_join(dir, c->path), *parent = NULL, *from = NULL;
    const char *slash;
    fh_status rc = path ? FH_OK : no_memory(w, err);
    if (rc < 0) goto out;
    if ((slash = strrchr(path, '/')) && !(parent = fh_strndup(path, (size_t)(slash - path)))) { rc = no_memory(w, err); goto out; }
    if (parent && (rc = fh_mkdirs(parent, err)) < 0) goto out;
    if (c->data) { rc = fh_file_write(path, c->data, c->len, FH_OWNER_READS, err); goto out; }
    bool own = c->copy_of != w->p->artifact;
    if (own && !(from = fh_path_join(dir, c->copy_of))) { rc = no_memory(w, err); goto out; }
    if (!own || link(from, path)) rc = fh_file_copy(own ? from : c->copy_of, path, FH_OWNER_READS, w->job, err);
out:
    fh_free(path);
    fh_free(parent);
    fh_free(from);
    return rc;
}

static fh_status write_release(const publishing *w, const char *final, fh_err *err)
{
    fh_outdir *o = NULL;
    char *sums = NULL, *signature = NULL, *comment = NULL;
    fh_status rc = fh_outdir_open(&o, final, FH_NO_CLOBBER, err);
    if (rc < 0) return rc;
    const char *dir = fh_outdir_path(o), *digest = fh_json_string(fh_json_get(w->info, "digest"));
    for (size_t i = 0; i < w->n; i++)
        if ((rc = write_content(w, &w->contents[i], dir, err)) < 0) goto out;
    if ((rc = write_text(dir, FH_RELEASE_JSON, w->release, strlen(w->release), err)) < 0 ||
        (rc = write_text(dir, FH_RELEASE_SUMS, w->sums, strlen(w->sums), err)) < 0)
        goto out;
    if (w->p->key) {
        sums = fh_path_join(dir, FH_RELEASE_SUMS), signature = fh_path_join(dir, FH_RELEASE_SIGNATURE),
        comment = fh_release_comment(w->p->name, w->p->version, digest);
        if (!sums || !signature || !comment) { rc = no_memory(w, err); goto out; }
        if ((rc = fh_sign_file(w->p->key, sums, signature, comment, w->job, err)) < 0) goto out;
    }
    rc = fh_outdir_commit(o, FH_NO_CLOBBER, err);
    o = NULL;
out:
    fh_outdir_abandon(o);
    fh_free(sums);
    fh_free(signature);
    fh_free(comment);
    return rc;
}

/* Does what lies there, unlisted, hold exactly what would be written?  Then a run was killed between writing and listing. */
static fh_status same_release(bool *same, const publishing *w, const char *final, fh_err *err)
{
    fh_json *report = NULL;
    char *path = fh_path_join(final, FH_RELEASE_JSON), hex[65] = "";
    fh_status rc = path ? FH_OK : no_memory(w, err);
    if (rc == FH_OK && fh_is_release(final)) rc = fh_file_sha256(hex, NULL, path, w->job, err);
    fh_free(path);
    *same = rc == FH_OK && !strcmp(hex, w->release_sha256);
    if (*same && (rc = fh_release_verify(final, NULL, NULL, &report, err)) == FH_ECHECK) *same = false, rc = FH_OK;
    fh_json_free(report);
    return rc;
}

static fh_status read_index(publishing *w, const char *path, fh_err *err)
{
    char *text = NULL;
    size_t len = 0;
    if (!fh_file_exists(path)) return FH_OK;
    fh_status rc = fh_file_read(&text, &len, path, FH_INDEX_BYTES, err);
    if (rc == FH_OK) rc = fh_index_parse(&w->index, text, len, path, err);
    fh_free(text);
    return rc;
}

static fh_status refuse_listed(const publishing *w, fh_err *err)
{
    if (w->index.n == FH_INDEX_MOST)
        return fh_fail(err, FH_EFAIL, "%s: lists %d releases, the most that are read: begin another registry", w->p->registry, FH_INDEX_MOST);
    if (!fh_index_find(&w->index, w->p->name, w->p->version)) return FH_OK;
    return fh_fail(err, FH_EFAIL, "%s: has %s@%s already, and what was published is never changed: give it another --version", w->p->registry, w->p->name,
                   w->p->version);
}

/* Under the registry's lock: the release, then its line in the index. */
static fh_status put(publishing *w, const char *final, const char *index, bool *written, fh_err *err)
{
    char *parent = fh_path_join(w->p->registry, w->p->name), *text = NULL;
    const char *digest = fh_json_string(fh_json_get(w->info, "digest")), *print = fh_json_string(fh_json_get(w->info, "fingerprint"));
    fh_index_entry e = {
        .name = (char *)(uintptr_t)w->p->name, .version = (char *)(uintptr_t)w->p->version, .bytes = w->bytes, .release_bytes = strlen(w->release)};
    bool same = false;
    fh_status rc = parent ? fh_mkdirs(parent, err) : no_memory(w, err);
    fh_free(parent);
    if (rc < 0 || (rc = read_index(w, index, err)) < 0 || (rc = refuse_listed(w, err)) < 0) return rc;
    if (fh_file_exists(final) && (rc = same_release(&same, w, final, err)) < 0) return rc;
    *written = !same;
    if (same) fh_job_say(w->job, FH_INFO, "%s: is there already, whole and unlisted: it is listed now", final);
    else if ((rc = write_release(w, final, err)) < 0) return rc;
    memcpy(e.digest, digest, 65), memcpy(e.fingerprint, print, 65), memcpy(e.release_sha256, w->release_sha256, 65);
    if (!(text = fh_index_print_with(&w->index, &e))) return no_memory(w, err);
    rc = fh_file_write(index, text, strlen(text), FH_OWNER_READS, err);
    fh_free(text);
    return rc;
}

static fh_json *report_of(const publishing *w, const char *final, bool written)
{
    fh_json *j = fh_json_object(), *list;
    fh_json_add_string(j, "name", w->p->name);
    fh_json_add_string(j, "version", w->p->version);
    fh_json_add_string(j, "dir", final);
    fh_json_add_copy(j, "digest", fh_json_get(w->info, "digest"));
    fh_json_add_u64(j, "bytes", w->bytes);
    fh_json_add_bool(j, "written", written);
    if (w->p->key) fh_json_add_string(j, "signed_by", fh_key_id(w->p->key));
    else fh_json_add_null(j, "signed_by");
    list = fh_json_add_array(j, "files");
    for (size_t i = 0; i < w->n; i++) {
        fh_json *f = fh_json_add_object(list, NULL);
        fh_json_add_string(f, "file", w->contents[i].path);
        fh_json_add_u64(f, "bytes", w->contents[i].bytes);
        fh_json_add_string(f, "digest", w->contents[i].sha256);
    }
    return j;
}

static fh_status judge_names(const fh_publish_params *p, fh_err *err)
{
    if (!fh_release_name_ok(p->name))
        return fh_fail(err, FH_EUSAGE, "--name: '%.120s' is no name (A-Z a-z 0-9 . _ -, at most %d, not beginning with '.' or '-')", p->name, FH_NAME_MOST);
    if (!fh_release_name_ok(p->version))
        return fh_fail(err, FH_EUSAGE, "--version: '%.120s' is no version (A-Z a-z 0-9 . _ -, at most %d, not beginning with '.' or '-')", p->version,
                       FH_NAME_MOST);
    if (strstr(p->registry, "://"))
        return fh_fail(err, FH_EUSAGE, "--to: '%.200s' is an address: publish into a directory, and let a web server show it", p->registry);
    const char *texts[] = {p->base_model, p->license, p->eval_dataset}, *flags[] = {"--base-model", "--license", "--eval-dataset"};
    for (size_t i = 0; i < 3; i++)
        if (texts[i] && (!*texts[i] || strlen(texts[i]) > 200 || strpbrk(texts[i], "\r\n") || fh_utf8_valid(texts[i], strlen(texts[i])) != strlen(texts[i])))
            return fh_fail(err, FH_EUSAGE, "%s: one line of UTF-8, at most 200 bytes", flags[i]);
    return FH_OK;
}

fh_status fh_publish(const fh_publish_params *p, const fh_job *job, fh_json **report, fh_err *err)
{
    publishing *w = fh_calloc(1, sizeof *w);
    char *final = NULL, *index = NULL, *lock_path = NULL;
    fh_lock *lock = NULL;
    bool written = false;
    *report = NULL;
    fh_status rc = w ? judge_names(p, err) : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc < 0) goto out;
    w->p = p, w->job = job;
    if (!(w->arena = fh_arena_new()) || !(w->artifact_name = fh_sprintf("%s.fhead", p->name)) || !(index = fh_path_join(p->registry, FH_REGISTRY_INDEX)) ||
        !(lock_path = fh_path_join(p->registry, ".lock")) || !(final = fh_sprintf("%s/%s/%s", p->registry, p->name, p->version))) {
        rc = no_memory(w, err);
        goto out;
    }
    if ((rc = fh_fhead_open(&w->artifact, p->artifact, err)) < 0 || (rc = fh_artifact_verify(w->artifact, job, err)) < 0 ||
        (rc = fh_artifact_info(w->artifact, &w->info, err)) < 0 || (rc = gather(w, err)) < 0 || (rc = describe(w, err)) < 0)
        goto out;
    if (!p->license) fh_job_say(job, FH_WARN, "no --license: the card says \"other\"");
    if (!p->base_model) fh_job_say(job, FH_WARN, "no --base-model: the card names it by fingerprint only");
    if (p->dry_run) {
        if ((rc = read_index(w, index, err)) < 0 || (rc = refuse_listed(w, err)) < 0) goto out;
    } else {
        if ((rc = fh_mkdirs(p->registry, err)) < 0 || (rc = fh_lock_take(&lock, lock_path, err)) < 0) goto out;
        fh_out_sweep(p->registry);
        if ((rc = put(w, final, index, &written, err)) < 0) goto out;
    }
    if (!(*report = report_of(w, final, written))) rc = no_memory(w, err);
out:
    fh_lock_release(lock);
    fh_free(final);
    fh_free(index);
    fh_free(lock_path);
    if (w) {
        for (size_t i = 0; i < w->n; i++) fh_free(w->contents[i].data);
        fh_arena_free(w->arena);
        fh_index_free(&w->index);
        fh_json_free(w->info);
        fh_fhead_close(w->artifact);
        fh_free(w->artifact_name);
        fh_free(w->release);
        fh_free(w->sums);
    }
    fh_free(w);
    return rc;
}
