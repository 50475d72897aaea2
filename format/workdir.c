/* The work directory: one file a stage, each with the record of what made it. */
#include "format/format.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

typedef struct remembered { char name[64]; char hex[65]; struct remembered *next; } remembered;
struct fh_work {
    char *dir;
    fh_lock *lock;
    remembered *digests;
};

fh_status fh_work_open(fh_work **out, const char *dir, bool create, fh_err *err)
{
    fh_status rc = FH_OK;
    char *lock = NULL;
    struct stat st;
    fh_work *w = fh_calloc(1, sizeof *w);
    if (!w || !(w->dir = fh_strdup(dir))) { rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", dir); goto out; }
    if (stat(dir, &st) < 0) {
        if (errno != ENOENT || !create) {
            rc = errno == ENOENT ? fh_fail(err, FH_ENOTFOUND, "%s: there is no such work directory: run 'fhtool convert MODEL -C %s' first", dir, dir)
                                 : fh_fail(err, FH_EIO, "%s: %s", dir, strerror(errno));
            goto out;
        }
        if ((rc = fh_mkdirs(dir, err)) < 0) goto out;
    } else if (!S_ISDIR(st.st_mode)) {
        rc = fh_fail(err, FH_EIO, "%s: is not a directory: name another work directory with -C", dir);
        goto out;
    }
    if (!(lock = fh_path_join(dir, "lock"))) { rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", dir); goto out; }
    if ((rc = fh_lock_take(&w->lock, lock, err)) < 0) goto out;
    fh_out_sweep(dir); /* nobody else writes here while the lock is held */
    *out = w, w = NULL;
out:
    fh_free(lock);
    fh_work_close(w);
    return rc;
}

void fh_work_close(fh_work *w)
{
    if (!w) return;
    for (remembered *r = w->digests, *next; r; r = next) next = r->next, fh_free(r);
    fh_lock_release(w->lock);
    fh_free(w->dir);
    fh_free(w);
}

const char *fh_work_dir(const fh_work *w) { return w->dir; }
char *fh_work_path(const fh_work *w, const char *name) { return fh_path_join(w->dir, name); }

fh_status fh_work_log(fh_work *w, const char *stage, double seconds, unsigned threads, fh_json *more, fh_err *err)
{
    fh_status rc = FH_OK;
    char *path = fh_work_path(w, "log.jsonl"), *line = NULL, when[40] = "", host[256] = "";
    fh_json *j = fh_json_object();
    time_t now = time(NULL);
    struct tm tm;
    int fd = -1;
    if (gmtime_r(&now, &tm)) strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &tm);
    if (gethostname(host, sizeof host - 1) < 0) host[0] = 0;
    fh_json_add_string(j, "time", when);
    fh_json_add_string(j, "host", host);
    fh_json_add_string(j, "tool", FH_TOOL_VERSION);
    fh_json_add_string(j, "stage", stage);
    fh_json_add_double(j, "seconds", seconds);
    fh_json_add_u64(j, "threads", threads);
    if (more) fh_json_add(j, "more", more);
    line = fh_json_print(j, false);
    char *whole = line ? fh_sprintf("%s\n", line) : NULL;
    if (!path || !whole) { rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", w->dir); goto out; }
    fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK, 0666);
    if (fd < 0 || write(fd, whole, strlen(whole)) != (ssize_t)strlen(whole)) rc = fh_fail(err, FH_EIO, "%s: %s", path, strerror(errno));
out:
    if (fd >= 0) close(fd);
    fh_free(whole);
    fh_free(line);
    fh_json_free(j);
    fh_free(path);
    return rc;
}

fh_json *fh_record_new(const char *stage, fh_json *params)
{
    fh_json *r = fh_json_object();
    fh_json_add_string(r, "stage", stage);
    fh_json_add_string(r, "tool", "fhtool " FH_TOOL_VERSION);
    fh_json_add_object(r, "inputs");
    bool ok = params && fh_json_add(r, "params", params);
    if (!ok) { fh_json_free(r); return NULL; }
    return r;
}

bool fh_record_input_digest(fh_json *record, const char *name, const char *hex)
{
    return fh_json_add_string((fh_json *)fh_json_get(record, "inputs"), name, hex);
}

fh_status fh_record_input(fh_json *record, fh_work *w, const char *name, fh_err *err)
{
    char hex[65];
    fh_status rc = fh_work_digest(w, name, hex, err);
    if (rc < 0) return rc;
    return fh_record_input_digest(record, name, hex) ? FH_OK : fh_fail(err, FH_ENOMEM, "%s: out of memory", w->dir);
}

fh_status fh_work_digest(fh_work *w, const char *name, char hex[65], fh_err *err)
{
    for (const remembered *r = w->digests; r; r = r->next)
        if (!strcmp(r->name, name)) { memcpy(hex, r->hex, 65); return FH_OK; }
    char *path = fh_work_path(w, name);
    if (!path) return fh_fail(err, FH_ENOMEM, "%s: out of memory", w->dir);
    fh_status rc = fh_file_sha256(hex, NULL, path, NULL, err);
    fh_free(path);
    if (rc < 0) return rc;
    remembered *r = fh_calloc(1, sizeof *r); /* forgetting costs time, not truth */
    if (r && strlen(name) < sizeof r->name) {
        memcpy(r->name, name, strlen(name) + 1);
        memcpy(r->hex, hex, 65);
        r->next = w->digests, w->digests = r;
    } else {
        fh_free(r);
    }
    return FH_OK;
}

void fh_work_changed(fh_work *w, const char *name)
{
    for (remembered **at = &w->digests; *at;) {
        remembered *r = *at;
        if (!strcmp(r->name, name)) { *at = r->next; fh_free(r); } else at = &r->next;
    }
}

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), m = strlen(end);
    return n >= m && !strcmp(s + n - m, end);
}

fh_status fh_work_record(fh_work *w, const char *name, fh_json **out, fh_err *err)
{
    fh_status rc = FH_OK;
    char *path = fh_work_path(w, name);
    fh_tensors *t = NULL;
    fh_json *whole = NULL;
    *out = NULL;
    if (!path) return fh_fail(err, FH_ENOMEM, "%s: out of memory", w->dir);
    if (!fh_file_exists(path)) goto out;
    if (ends_with(name, ".safetensors")) {
        if ((rc = fh_tensors_open(&t, path, err)) < 0) goto out;
        const char *text = fh_tensors_metadata(t, "fhtool");
        if (!text) { rc = fh_fail(err, FH_EFORMAT, "%s: does not say what made it: was it written by something else? Remove it", path); goto out; }
        rc = fh_json_parse(out, text, strlen(text), path, err);
    } else {
        if ((rc = fh_json_read(&whole, path, (size_t)1 << 30, err)) < 0) goto out;
        const fh_json *made = fh_json_get(whole, "made_by");
        if (!made) { rc = fh_fail(err, FH_EFORMAT, "%s: does not say what made it: was it written by something else? Remove it", path); goto out; }
        fh_json *holder = fh_json_object();
        if (!fh_json_add_copy(holder, "made_by", made)) { rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", path); fh_json_free(holder); goto out; }
        char *text = fh_json_print(fh_json_get(holder, "made_by"), false);
        fh_json_free(holder);
        rc = text ? fh_json_parse(out, text, strlen(text), path, err) : fh_fail(err, FH_ENOMEM, "%s: out of memory", path);
        fh_free(text);
    }
out:
    fh_json_free(whole);
    fh_tensors_close(t);
    fh_free(path);
    return rc;
}

/* Records are printed by one printer from objects built in one order, so equal text is equality. */
static bool same_json(const fh_json *a, const fh_json *b)
{
    char *x = fh_json_print(a, false), *y = fh_json_print(b, false);
    bool same = x && y && !strcmp(x, y);
    fh_free(x);
    fh_free(y);
    return same;
}

fh_status fh_work_state(fh_work *w, const char *name, const fh_json *params, fh_stage_state *state, char why[200], fh_err *err)
{
    fh_json *record = NULL;
    fh_status rc = FH_OK;
    char none[200];
    if (!why) why = none;
    why[0] = 0;
    if ((rc = fh_work_record(w, name, &record, err)) < 0) return rc;
    *state = record ? FH_STAGE_CURRENT : FH_STAGE_MISSING;
    if (!record) { snprintf(why, 200, "not there"); return FH_OK; }
    for (const fh_json *in = fh_json_first(fh_json_get(record, "inputs")); in; in = fh_json_next(in)) {
        const char *input = fh_json_key(in), *was = fh_json_string(in);
        char hex[65];
        if (!input || !was || input[0] == '@') continue; /* "@...": something outside the directory */
        char *path = fh_work_path(w, input);
        if (!path) { rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", w->dir); goto out; }
        bool there = fh_file_exists(path);
        fh_free(path);
        if (there && (rc = fh_work_digest(w, input, hex, err)) < 0) goto out; /* not known is not the same as changed */
        if (!there || strcmp(hex, was)) {
            *state = FH_STAGE_STALE;
            snprintf(why, 200, "%s %s since", input, there ? "changed" : "went away");
            goto out;
        }
    }
    if (params && !same_json(params, fh_json_get(record, "params"))) {
        *state = FH_STAGE_STALE;
        snprintf(why, 200, "made with other parameters");
    }
out:
    fh_json_free(record);
    return rc;
}
