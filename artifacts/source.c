/* artifacts/source.c: the files of a registry, wherever it is: a directory, or a web server.  Digests are checked as bytes come. */
#include "artifacts/release_private.h"

#include <ctype.h>
#include <stdio.h>

struct fh_source {
    char *base;        /* a path, or a URL without '/' at its end */
    fh_http *http;     /* NULL: a directory */
    const fh_job *job;
};

const char *fh_source_name(const fh_source *s) { return s->base; }

void fh_source_close(fh_source *s)
{
    if (!s) return;
    fh_http_free(s->http);
    fh_free(s->base);
    fh_free(s);
}

/* The path of a file:// URL. */
static fh_status path_of(char **out, const char *url, fh_err *err)
{
    const char *s = url + 7;
    fh_buf b = {0};
    if (!strncmp(s, "localhost/", 10)) s += 9;
    if (*s != '/') return fh_fail(err, FH_EUSAGE, "%s: names another machine: file:// is of this one, file:///path", url);
    for (; *s; s++) {
        unsigned byte;
        if (*s != '%') { fh_buf_add(&b, s, 1); continue; }
        if (!isxdigit((unsigned char)s[1]) || !isxdigit((unsigned char)s[2]) || sscanf(s + 1, "%2x", &byte) != 1 || !byte) {
            fh_buf_free(&b);
            return fh_fail(err, FH_EUSAGE, "%s: '%.3s' stands for no character of a path", url, s);
        }
        fh_buf_add(&b, &(char){(char)byte}, 1);
        s += 2;
    }
    return (*out = fh_buf_take(&b)) ? FH_OK : fh_fail(err, FH_ENOMEM, "%s: out of memory", url);
}

fh_status fh_source_connect(fh_source **out, const fh_source_params *p, const fh_job *job, fh_err *err)
{
    const char *r = p->registry;
    bool web = !strncmp(r, "http://", 7) || !strncmp(r, "https://", 8), file = !strncmp(r, "file://", 7);
    fh_status rc = FH_OK;
    *out = NULL;
    if (!*r) return fh_fail(err, FH_EUSAGE, "an empty name is no registry");
    if (!web && !file && strstr(r, "://"))
        return fh_fail(err, FH_EUSAGE, "%s: a registry is a directory, or an address that begins with file:// or https://", r);
    if (web && strpbrk(r, "?#")) return fh_fail(err, FH_EUSAGE, "%s: an address with '?' or '#' in it is no registry", r);
    fh_source *s = fh_calloc(1, sizeof *s);
    if (!s) return fh_fail(err, FH_ENOMEM, "%s: out of memory", r);
    s->job = job;
    if (file) rc = path_of(&s->base, r, err);
    else if (!(s->base = fh_strdup(r))) rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", r);
    size_t n = s->base ? strlen(s->base) : 0;
    while (n > 1 && s->base[n - 1] == '/') s->base[--n] = 0;
    if (rc == FH_OK && web) rc = fh_http_new(&s->http, p, job, err);
    if (rc < 0) { fh_source_close(s); return rc; }
    *out = s;
    return FH_OK;
}

/* ---- small files ------------------------------------------------------------------------------------------------------- */

static fh_status take_text(void *ctx, uint64_t offset, const void *data, size_t n, fh_err *err)
{
    fh_buf *b = ctx;
    if (!offset) b->len = 0;
    fh_buf_add(b, data, n);
    return b->failed ? fh_fail(err, FH_ENOMEM, "out of memory") : FH_OK;
}

fh_status fh_source_text(fh_source *s, const char *path, size_t limit, char **text, size_t *len, fh_err *err)
{
    char *whole = fh_path_join(s->base, path);
    fh_buf b = {0};
    fh_status rc = whole ? FH_OK : fh_fail(err, FH_ENOMEM, "%s: out of memory", s->base);
    *text = NULL;
    if (rc < 0) return rc;
    if (s->http) {
        fh_http_sink sink = {.take = take_text, .ctx = &b, .expect = UINT64_MAX, .limit = limit};
        rc = fh_http_get(s->http, whole, &sink, err);
        *len = b.len;
        if (rc == FH_OK && !(*text = fh_buf_take(&b))) rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", whole);
        fh_buf_free(&b);
    } else {
        fh_map map; /* a regular file: a FIFO that nobody writes to holds nobody up */
        if ((rc = fh_map_open(&map, whole, err)) == FH_OK) {
            fh_map_close(&map);
            rc = fh_file_read(text, len, whole, limit, err);
        }
    }
    fh_free(whole);
    return rc;
}

/* ---- large files -------------------------------------------------------------------------------------------------------- */

static fh_status take_file(void *ctx, uint64_t offset, const void *data, size_t n, fh_err *err) { return fh_partial_write(ctx, offset, data, n, err); }

static fh_status copy_file(fh_partial *to, const char *from, const fh_release_file *want, const fh_job *job, fh_err *err)
{
    enum { PIECE = 1 << 20 };
    fh_map map = {0};
    fh_status rc = fh_map_open(&map, from, err);
    if (rc < 0) return rc;
    if (map.size != want->bytes)
        rc = fh_fail(err, FH_EFORMAT, "%s: has %zu bytes where release.json says %llu: the registry is damaged, or being written", from, map.size,
                     (unsigned long long)want->bytes);
    for (uint64_t at; rc == FH_OK && (at = fh_partial_bytes(to)) < want->bytes;) {
        if (fh_job_stopped(job)) rc = fh_fail(err, FH_EINTERRUPTED, "%s: interrupted; the same command goes on from there", from);
        else rc = fh_partial_write(to, at, map.data + at, fh_min(PIECE, map.size - (size_t)at), err);
        fh_job_progress(job, "fetch", (double)at, (double)want->bytes + 1, "bytes");
    }
    fh_map_close(&map);
    return rc;
}

static fh_status fill(fh_source *s, fh_partial *p, const char *from, const fh_release_file *want, fh_err *err)
{
    for (int tries = 0;; tries++) { /* a second one where what was left here was of something else */
        uint64_t had = fh_partial_bytes(p);
        fh_http_sink sink = {.take = take_file, .ctx = p, .have = had, .expect = want->bytes, .limit = want->bytes};
        fh_status rc = had == want->bytes && had ? FH_OK : s->http ? fh_http_get(s->http, from, &sink, err) : copy_file(p, from, want, s->job, err);
        if (rc < 0 || fh_partial_is(p, want->sha256)) return rc;
        if ((rc = fh_partial_restart(p, err)) < 0) return rc;
        if (!had || tries)
            return fh_fail(err, FH_ECHECK, "%s: its %llu bytes are not those of the release (SHA-256 is not %.12s...): refused", from,
                           (unsigned long long)want->bytes, want->sha256);
    }
}

fh_status fh_source_file(fh_source *s, const char *path, const char *to, const fh_release_file *want, fh_err *err)
{
    char *from = fh_path_join(s->base, path);
    fh_partial *p = NULL;
    fh_err closing;
    fh_status rc = from ? fh_partial_open(&p, to, want->bytes, s->job, err) : fh_fail(err, FH_ENOMEM, "%s: out of memory", s->base);
    if (rc == FH_OK) rc = fill(s, p, from, want, err);
    fh_status closed = fh_partial_close(p, &closing);
    if (rc == FH_OK && closed < 0) rc = fh_fail(err, closed, "%s", closing.text);
    fh_free(from);
    return rc;
}
