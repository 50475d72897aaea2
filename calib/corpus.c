/* Text in, documents of token ids out. */
#include "calib/calib.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

enum { MAX_DOCUMENT = 1 << 20, MAX_LINE = 1 << 26 };

/* ---- reading bytes -------------------------------------------------------------------------------------- */

typedef struct input {
    FILE *file;
    const char *path;
    char *data; size_t at, len, cap; /* unread bytes are data[at..len) */
    bool ended, first;
    fh_sha256 *sha;
    uint64_t offset;                 /* of data[at] in the file */
} input;

static fh_status input_open(input *in, const char *path, fh_sha256 *sha, fh_err *err)
{
    struct stat st;
    *in = (input){.path = path, .first = true, .sha = sha};
    if (!strcmp(path, "-")) { in->file = stdin; in->path = "standard input"; return FH_OK; }
    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode)) return fh_fail(err, FH_EIO, "%s: is a directory: name a text file", path);
    in->file = fopen(path, "rbe");
    if (in->file) return FH_OK;
    if (errno == EINTR) return fh_fail(err, FH_EINTERRUPTED, "%s: interrupted while waiting for it to open", path);
    return fh_fail(err, FH_EIO, "%s: cannot be opened for reading: %s", path, strerror(errno));
}

static void input_close(input *in)
{
    if (in->file && in->file != stdin) fclose(in->file);
    fh_free(in->data);
    in->file = NULL, in->data = NULL;
}

/* What is no text says so in its first bytes. */
static fh_status judge_first(input *in, fh_err *err)
{
    static const struct { const char *magic; size_t n; const char *what; const char *remedy; } known[] = {
        {"\x1f\x8b", 2, "gzip-compressed", "decompress it first (gunzip)"},
        {"\x28\xb5\x2f\xfd", 4, "zstd-compressed", "decompress it first (zstd -d)"},
        {"BZh", 3, "bzip2-compressed", "decompress it first (bunzip2)"},
        {"\xfd" "7zXZ", 5, "xz-compressed", "decompress it first (unxz)"},
        {"PK\x03\x04", 4, "a zip archive", "unpack it first"},
        {"PAR1", 4, "a Parquet file", "export its text column as plain text or JSON lines"},
        {"\xff\xfe", 2, "UTF-16", "convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"},
        {"\xfe\xff", 2, "UTF-16", "convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"},
    };
    const char *s = in->data + in->at;
    size_t n = in->len - in->at;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (n >= known[i].n && !memcmp(s, known[i].magic, known[i].n))
            return fh_fail(err, FH_EFORMAT, "%s: is %s, not UTF-8 text: %s", in->path, known[i].what, known[i].remedy);
    if (n >= 3 && !memcmp(s, "\xef\xbb\xbf", 3)) in->at += 3, in->offset += 3;
    return FH_OK;
}

/* Read on; false at the end. */
static fh_status fill(input *in, fh_err *err)
{
    if (in->at) memmove(in->data, in->data + in->at, in->len - in->at), in->len -= in->at, in->at = 0;
    if (in->cap - in->len < (1 << 16)) {
        size_t cap = in->cap ? in->cap * 2 : 1 << 18;
        char *p = fh_realloc(in->data, cap);
        if (!p) return fh_fail(err, FH_ENOMEM, "%s: out of memory while reading", in->path);
        in->data = p, in->cap = cap;
    }
    size_t got = fread(in->data + in->len, 1, in->cap - in->len, in->file);
    if (got == 0) {
        if (ferror(in->file) && errno == EINTR) return fh_fail(err, FH_EINTERRUPTED, "%s: interrupted", in->path);
        if (ferror(in->file)) return fh_fail(err, FH_EIO, "%s: reading failed after %llu bytes", in->path, (unsigned long long)(in->offset + in->len));
        in->ended = true;
    }
    if (in->sha) fh_sha256_update(in->sha, in->data + in->len, got);
    in->len += got;
    if (in->first && (in->len >= 8 || in->ended || feof(in->file))) {
        in->first = false;
        fh_status rc = judge_first(in, err);
        if (rc < 0) return rc;
    }
    const char *nul = memchr(in->data + in->len - got, 0, got);
    if (nul)
        return fh_fail(err, FH_EFORMAT, "%s: has a zero byte at offset %llu: is it a text file in UTF-8?", in->path,
                       (unsigned long long)(in->offset + (uint64_t)(nul - in->data)));
    return FH_OK;
}

/* The next line with its line break, or as much of it as MAX_LINE; *n == 0 at the end.  Borrowed until the next call. */
static fh_status next_line(input *in, const char **line, size_t *n, fh_err *err)
{
    size_t seen = 0;
    for (;;) {
        size_t have = in->len - in->at;
        char *end = have > seen ? memchr(in->data + in->at + seen, '\n', have - seen) : NULL;
        seen = have;
        if (end || (in->ended && !in->first) || have >= MAX_LINE) {
            *line = in->data + in->at;
            *n = end ? (size_t)(end + 1 - *line) : have;
            in->at += *n, in->offset += *n;
            return FH_OK;
        }
        fh_status rc = fill(in, err);
        if (rc < 0) return rc;
        seen = fh_min(seen, in->len - in->at);
    }
}

fh_status fh_text_read(char **text, size_t *len, const char *path, const fh_job *job, fh_err *err)
{
    input in;
    fh_buf b = {0};
    const char *line;
    size_t n;
    fh_status rc = input_open(&in, path, NULL, err);
    if (rc < 0) return rc;
    do {
        if ((rc = next_line(&in, &line, &n, err)) < 0) goto out;
        fh_buf_add(&b, line, n);
    } while (n);
    fh_buf_add(&b, "", 1);
    if (b.failed) { rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", path); goto out; }
    *len = b.len - 1;
    if (*len == 0) { rc = fh_fail(err, FH_EFORMAT, "%s: is empty: name a text with something in it", path); goto out; }
    if (fh_utf8_valid(b.data, *len) != *len)
        fh_job_say(job, FH_WARN, "%s: invalid UTF-8 at byte %zu: such bytes are read as U+FFFD", path, fh_utf8_valid(b.data, *len));
    *text = fh_buf_take(&b);
    if (!*text) rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", path);
out:
    fh_buf_free(&b);
    input_close(&in);
    return rc;
}

/* ---- documents ------------------------------------------------------------------------------------------- */

/* " = Title = " : one equals sign a side; sections have more (" = = Part = = " in the token form, " == Part == " in others). */
static bool is_title(const char *s, size_t n)
{
    while (n && (s[n - 1] == '\n' || s[n - 1] == '\r' || s[n - 1] == ' ')) n--;
    if (n < 6 || s[0] != ' ' || s[1] != '=' || s[2] != ' ' || s[3] == '=') return false;
    return s[n - 1] == '=' && s[n - 2] == ' ' && s[n - 3] != '=';
}

typedef struct reader {
    fh_corpus *c;
    const fh_tokenizer *tokenizer;
    size_t cap_ids, cap_starts, limit;
    fh_buf text;              /* of the document being read */
    bool warned, whole;       /* whole: document boundaries are known */
    const fh_job *job;
    const char *path;
} reader;

static fh_status begin_document(reader *r, fh_err *err)
{
    fh_corpus *c = r->c;
    if (c->documents && c->starts[c->documents] == c->starts[c->documents - 1]) return FH_OK; /* nothing in it yet */
    if (c->documents + 2 > r->cap_starts) {
        size_t cap = r->cap_starts ? r->cap_starts * 2 : 64;
        size_t *p = fh_realloc(c->starts, cap * sizeof *p);
        if (!p) return fh_fail(err, FH_ENOMEM, "%s: out of memory", r->path);
        c->starts = p, r->cap_starts = cap;
    }
    c->starts[c->documents++] = c->n;
    c->starts[c->documents] = c->n;
    return FH_OK;
}

static bool enough(const reader *r) { return r->limit && r->c->n >= r->limit; }

/* Tokenize what was gathered and add it to the document under way. */
static fh_status flush_text(reader *r, fh_err *err)
{
    fh_corpus *c = r->c;
    uint32_t *ids = NULL;
    size_t n = 0;
    if (r->text.failed) return fh_fail(err, FH_ENOMEM, "%s: out of memory", r->path);
    if (!r->text.len || enough(r)) { r->text.len = 0; return FH_OK; }
    size_t valid = fh_utf8_valid(r->text.data, r->text.len);
    if (valid != r->text.len && !r->warned) {
        r->warned = true;
        fh_job_say(r->job, FH_WARN, "%s: holds invalid UTF-8: such bytes are read as U+FFFD", r->path);
    }
    fh_status rc = fh_tokenizer_encode(r->tokenizer, r->text.data, r->text.len, false, &ids, &n, err);
    r->text.len = 0;
    if (rc < 0) return rc;
    if (!c->documents && (rc = begin_document(r, err)) < 0) goto out;
    if (r->limit) n = fh_min(n, r->limit - c->n);
    if (c->n + n > r->cap_ids) {
        size_t cap = fh_max(r->cap_ids * 2, c->n + n + 4096);
        uint32_t *p = fh_realloc(c->ids, cap * sizeof *p);
        if (!p) { rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", r->path); goto out; }
        c->ids = p, r->cap_ids = cap;
    }
    if (n) memcpy(c->ids + c->n, ids, n * sizeof *ids);
    c->n += n;
    c->starts[c->documents] = c->n;
    if (r->limit) fh_job_progress(r->job, "reading text", (double)c->n, (double)r->limit, "tokens");
out:
    fh_free(ids);
    return rc;
}

static fh_status add_line(reader *r, const char *s, size_t n, fh_err *err)
{
    fh_status rc;
    if (is_title(s, n)) {
        r->whole = true;
        if ((rc = flush_text(r, err)) < 0 || (rc = begin_document(r, err)) < 0) return rc;
    }
    fh_buf_add(&r->text, s, n);
    return r->text.len >= MAX_DOCUMENT ? flush_text(r, err) : FH_OK;
}

/* One row of JSON lines: {"text": "..."}.  Rows of the WikiText data set are lines of it; otherwise a row is a document. */
static fh_status add_row(reader *r, const char *s, size_t n, uint64_t number, bool *lines, fh_err *err)
{
    fh_json *j = NULL;
    fh_status rc;
    char where[300];
    snprintf(where, sizeof where, "%s: row %llu", r->path, (unsigned long long)number);
    while (n && (s[n - 1] == '\n' || s[n - 1] == '\r' || s[n - 1] == ' ' || s[n - 1] == '\t')) n--;
    if (!n) return FH_OK;
    if ((rc = fh_json_parse(&j, s, n, where, err)) < 0) return rc;
    const char *text = fh_json_string(fh_json_get(j, "text"));
    if (!text) { rc = fh_fail(err, FH_EFORMAT, "%s: has no \"text\" that is a string", where); goto out; }
    size_t len = strlen(text);
    if (is_title(text, len)) *lines = true;
    if (!*lines && len) {
        r->whole = true;
        if ((rc = flush_text(r, err)) < 0 || (rc = begin_document(r, err)) < 0) goto out;
    }
    rc = add_line(r, text, len, err);
out:
    fh_json_free(j);
    return rc;
}

static fh_status read_file(reader *r, const char *path, fh_sha256 *sha, fh_err *err)
{
    input in;
    const char *line;
    size_t n;
    uint64_t number = 0;
    bool rows = false, wiki_rows = false;
    fh_status rc = input_open(&in, path, sha, err);
    if (rc < 0) return rc;
    r->path = in.path, r->warned = false;
    if ((rc = begin_document(r, err)) < 0) goto out;
    while (!enough(r)) {
        if (fh_job_stopped(r->job)) { rc = fh_fail(err, FH_EINTERRUPTED, "interrupted"); goto out; }
        if ((rc = next_line(&in, &line, &n, err)) < 0) goto out;
        if (!n) break;
        if (!number++) rows = n > 1 && line[0] == '{' && memchr(line, '"', n);
        if (rows) memcpy(r->c->form, "jsonl", 6);
        rc = rows ? add_row(r, line, n, number, &wiki_rows, err) : add_line(r, line, n, err);
        if (rc < 0) goto out;
    }
    if (!number) { rc = fh_fail(err, FH_EFORMAT, "%s: is empty: name a text with something in it", in.path); goto out; }
    if ((rc = flush_text(r, err)) < 0) goto out;
    while (!in.ended) { /* the digest is of the whole file, also where enough was read */
        in.offset += in.len - in.at, in.at = in.len;
        if ((rc = fill(&in, err)) < 0) goto out;
    }
out:
    input_close(&in);
    return rc;
}

/* Where the text does not say where its documents begin, blocks of FH_BLOCK_TOKENS stand for them (shorter ones where there would be fewer
 * than 20). */
static fh_status cut_blocks(reader *r, fh_err *err)
{
    fh_corpus *c = r->c;
    size_t block = FH_BLOCK_TOKENS;
    while (block > 64 && c->n / block < 20) block /= 2;
    size_t n = (c->n + block - 1) / block;
    size_t *starts = fh_calloc(n + 1, sizeof *starts);
    if (!starts) return fh_fail(err, FH_ENOMEM, "out of memory");
    for (size_t i = 0; i <= n; i++) starts[i] = fh_min(i * block, c->n);
    fh_free(c->starts);
    c->starts = starts, c->documents = n;
    return FH_OK;
}

fh_status fh_corpus_read(fh_corpus *out, const char *const *paths, size_t n, const fh_tokenizer *tokenizer, size_t limit, const fh_job *job, fh_err *err)
{
    fh_status rc = FH_OK;
    fh_corpus c = {.form = "plain"};
    reader r = {.c = &c, .tokenizer = tokenizer, .limit = limit, .job = job, .path = ""};
    fh_sha256 sha;
    fh_buf names = {0};
    uint8_t digest[32];
    fh_sha256_init(&sha);
    for (size_t i = 0; i < n && !enough(&r); i++) {
        const char *base = strrchr(paths[i], '/');
        if ((rc = read_file(&r, paths[i], &sha, err)) < 0) goto out;
        fh_buf_printf(&names, "%s%s", i ? "," : "", base ? base + 1 : paths[i]);
    }
    if (limit && c.n) fh_job_progress(job, "reading text", (double)c.n, (double)c.n, "tokens");
    if (!c.n) { rc = fh_fail(err, FH_EFORMAT, "%s: no tokens in it", n ? paths[0] : "text"); goto out; }
    if (c.documents && c.starts[c.documents] == c.starts[c.documents - 1]) c.documents--;
    if (r.whole && c.form[0] == 'p') memcpy(c.form, "wikitext", 9);
    c.documents_known = r.whole;
    if (!r.whole && (rc = cut_blocks(&r, err)) < 0) goto out;
    fh_sha256_final(&sha, digest);
    fh_sha256_hex(c.digest, digest);
    if (!(c.names = fh_buf_take(&names))) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    *out = c, c = (fh_corpus){0};
out:
    fh_buf_free(&names);
    fh_buf_free(&r.text);
    fh_corpus_free(&c);
    return rc;
}

fh_status fh_text_digest(char hex[65], const char *const *paths, size_t n, fh_err *err)
{
    fh_sha256 sha;
    uint8_t digest[32];
    fh_sha256_init(&sha);
    for (size_t i = 0; i < n; i++) {
        fh_map map = {0};
        fh_status rc = fh_map_open(&map, paths[i], err);
        if (rc < 0) return rc;
        fh_sha256_update(&sha, map.data, map.size);
        fh_map_close(&map);
    }
    fh_sha256_final(&sha, digest);
    fh_sha256_hex(hex, digest);
    return FH_OK;
}

void fh_corpus_thin(fh_corpus *c, size_t tokens, uint32_t window)
{
    size_t windows = 0, seen = 0, n = 0, documents = 0;
    if (c->n <= tokens) return;
    for (size_t i = 0; i < c->documents; i++) windows += (c->starts[i + 1] - c->starts[i] + window - 1) / window;
    size_t keep = fh_max(1, (size_t)((double)windows * ((double)tokens / (double)c->n)));
    for (size_t i = 0, end; i < c->documents; i++) {
        size_t first = n, at = c->starts[i];
        end = c->starts[i + 1]; /* read before the compacted starts overwrite it */
        for (; at < end; at += window, seen++) {
            if ((seen + 1) * keep / windows == seen * keep / windows) continue; /* evenly: keep of every `windows` */
            size_t len = fh_min(fh_min(window, end - at), tokens - n); /* pieces are not all of one length: never more than was asked for */
            memmove(c->ids + n, c->ids + at, len * sizeof *c->ids);
            n += len;
        }
        if (n > first) c->starts[documents++] = first;
    }
    c->starts[documents] = n;
    c->documents = documents, c->n = n;
}

void fh_corpus_free(fh_corpus *c)
{
    fh_free(c->ids);
    fh_free(c->starts);
    fh_free(c->names);
    *c = (fh_corpus){0};
}
