/* Patterns: literal strings, and regexes through PCRE2 (this file alone includes it).
 *
 * A tokenizer.json's regex comes from outside, and so does the text: both are bounded.  The match limit stops an attempt that backtracks
 * without end; it holds for each place where a match may begin, so that one search tries a few places only, and a clock is looked at
 * between searches.  The heap limit bounds the interpreter's memory.
 */
#include "runtime/tokenizer_private.h"

#include <string.h>
#include <time.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

enum {
    /* Steps of one attempt.  A run of n spaces takes the published patterns n; a million take 1.5 ms just-in-time compiled, 13 ms
     * interpreted. */
    MATCH_LIMIT = 1000000, MATCH_LIMIT_PER_BYTE = 4,
    HEAP_KIB = 48 << 10,
    WINDOW = 16 /* bytes in which a search may begin a match: what runs to the step limit comes back to the clock within 0.2 s */
};
/* For all searches of one call.  The published patterns take 0.01e-6 s a byte; a sanitizer and a busy machine take their share. */
static const double SECONDS = 1, SECONDS_PER_BYTE = 1e-6;

struct fh_tok_regex {
    pcre2_code *code;
    pcre2_general_context *memory;
    char *source;         /* as the file spells it, for messages */
    bool names_u180e;
};
struct fh_tok_matcher {
    const fh_tok_regex *regex;
    pcre2_match_data *data;
    pcre2_match_context *limits;
    fh_buf cured;
};

/* It goes forward in steps of some milliseconds, which is right on average, and is read in 5 ns; fh_now takes 28, a match 54. */
static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void fh_tok_call_clock(fh_tok_call *c, size_t len)
{
    c->searched = 0;
    c->may_search = SECONDS + SECONDS_PER_BYTE * (double)len;
}

static void *take(PCRE2_SIZE n, void *unused) { return fh_malloc(n); }
static void give(void *p, void *unused) { fh_free(p); }

fh_status fh_tok_regex_new(fh_tok_regex **out, const char *pattern, const char *name, const char *place, fh_err *err)
{
    fh_status rc = FH_OK;
    char *translated = NULL, shown[200];
    pcre2_compile_context *how = NULL;
    fh_tok_regex *r = fh_calloc(1, sizeof *r);
    if (!r || !(r->memory = pcre2_general_context_create(take, give, NULL)) || !(how = pcre2_compile_context_create(r->memory)) ||
        !(r->source = fh_strdup(pattern))) {
        rc = fh_tok_nomem(name, err);
        goto out;
    }
    pcre2_set_newline(how, PCRE2_NEWLINE_LF);
    pcre2_set_max_pattern_length(how, 1 << 16);
    r->names_u180e = strstr(pattern, "\xE1\xA0\x8E") || strstr(pattern, "180e") || strstr(pattern, "180E");
    if ((rc = fh_tok_translate(&translated, pattern, name, place, err)) < 0) goto out;
    int code;
    PCRE2_SIZE where;
    r->code = pcre2_compile((PCRE2_SPTR)translated, strlen(translated),
                            PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C | PCRE2_USE_OFFSET_LIMIT,
                            &code, &where, how);
    if (!r->code) {
        PCRE2_UCHAR why[128];
        if (pcre2_get_error_message(code, why, sizeof why) < 0) why[0] = 0;
        rc = code == PCRE2_ERROR_HEAP_FAILED
                 ? fh_tok_nomem(name, err)
                 : fh_fail(err, FH_EFORMAT, "%s: %s: the regex '%s' is not understood: %s", name, place,
                           fh_show(shown, sizeof shown, pattern, strlen(pattern)), (const char *)why);
        goto out;
    }
    pcre2_jit_compile(r->code, PCRE2_JIT_COMPLETE); /* where it cannot, the interpreter gives the same matches, slower */
    *out = r, r = NULL;
out:
    fh_free(translated);
    pcre2_compile_context_free(how);
    fh_tok_regex_free(r);
    return rc;
}

void fh_tok_regex_free(fh_tok_regex *r)
{
    if (!r) return;
    pcre2_code_free(r->code);
    pcre2_general_context_free(r->memory);
    fh_free(r->source);
    fh_free(r);
}

static fh_tok_matcher *matcher_new(const fh_tok_regex *r)
{
    fh_tok_matcher *m = fh_calloc(1, sizeof *m);
    if (!m) return NULL;
    m->regex = r;
    m->data = pcre2_match_data_create(1, r->memory);
    m->limits = pcre2_match_context_create(r->memory);
    if (m->data && m->limits) {
        pcre2_set_heap_limit(m->limits, HEAP_KIB);
        return m;
    }
    fh_tok_matcher_free(m);
    return NULL;
}

void fh_tok_matcher_free(fh_tok_matcher *m)
{
    if (!m) return;
    pcre2_match_data_free(m->data);
    pcre2_match_context_free(m->limits);
    fh_buf_free(&m->cured);
    fh_free(m);
}

/* PCRE2's \s has U+180E, the reference's has not.  In what is matched, U+200B stands for it: as long, and neither space, letter nor
 * number.  The offsets are the original's.  (Not where the pattern names the character itself.) */
static const char *cure(fh_tok_matcher *m, const char *text, size_t len)
{
    const char *at = m->regex->names_u180e ? NULL : memmem(text, len, "\xE1\xA0\x8E", 3);
    if (!at) return text;
    m->cured.len = 0;
    fh_buf_add(&m->cured, text, len);
    if (m->cured.failed) return NULL;
    for (char *s = m->cured.data; (s = memmem(s, (size_t)(m->cured.data + len - s), "\xE1\xA0\x8E", 3)); s += 3)
        memcpy(s, "\xE2\x80\x8B", 3);
    return m->cured.data;
}

fh_status fh_tok_scan_begin(fh_tok_scan *s, fh_tok_call *c, const fh_tok_pattern *pattern, const char *text, size_t len)
{
    *s = (fh_tok_scan){.pattern = pattern, .text = text, .subject = text, .len = len};
    if (!pattern->regex) return FH_OK;
    fh_tok_matcher **m = &c->matchers[pattern->index];
    if (!*m && !(*m = matcher_new(pattern->regex))) return fh_tok_nomem(c->t->name, c->err);
    s->matcher = *m;
    size_t limit = len > (UINT32_MAX - MATCH_LIMIT) / MATCH_LIMIT_PER_BYTE ? UINT32_MAX : MATCH_LIMIT + len * MATCH_LIMIT_PER_BYTE;
    pcre2_set_match_limit(s->matcher->limits, (uint32_t)limit);
    if (!(s->subject = cure(s->matcher, text, len))) return fh_tok_nomem(c->t->name, c->err);
    return FH_OK;
}

static fh_status too_long(fh_tok_scan *s, fh_tok_call *c, const char *why)
{
    char shown[200];
    const char *source = s->pattern->regex->source;
    return fh_fail(c->err, FH_EFAIL, "%s: the regex '%s' backtracks too much on this text (%s): check where the file comes from",
                   c->t->name, fh_show(shown, sizeof shown, source, strlen(source)), why);
}

static fh_status match_regex(fh_tok_scan *s, fh_tok_call *c, bool *found)
{
    fh_tok_matcher *m = s->matcher;
    for (;;) {
        *found = false;
        if (s->at > s->len) return FH_OK;
        size_t last = fh_min(s->len, s->at + WINDOW);
        while (last < s->len && ((unsigned char)s->subject[last] & 0xC0) == 0x80) last++;
        pcre2_set_offset_limit(m->limits, last);
        double before = now();
        int rc = pcre2_match(m->regex->code, (PCRE2_SPTR)s->subject, s->len, s->at, PCRE2_NO_UTF_CHECK, m->data, m->limits);
        if (rc == PCRE2_ERROR_JIT_STACKLIMIT) /* the interpreter has more room */
            rc = pcre2_match(m->regex->code, (PCRE2_SPTR)s->subject, s->len, s->at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, m->data, m->limits);
        c->searched += now() - before;
        if (c->searched > c->may_search) return too_long(s, c, "time limit");
        if (rc == PCRE2_ERROR_NOMATCH) {
            if (last == s->len) return FH_OK;
            s->at = last;
            continue;
        }
        if (rc == PCRE2_ERROR_NOMEMORY) return fh_tok_nomem(c->t->name, c->err);
        if (rc == PCRE2_ERROR_MATCHLIMIT || rc == PCRE2_ERROR_DEPTHLIMIT) return too_long(s, c, "step limit");
        if (rc == PCRE2_ERROR_HEAPLIMIT) return too_long(s, c, "memory limit");
        if (rc < 0) return fh_fail(c->err, FH_EFAIL, "%s: the regex '%s' failed (PCRE2 error %d)", c->t->name, m->regex->source, rc);
        PCRE2_SIZE *v = pcre2_get_ovector_pointer(m->data);
        s->start = v[0];
        s->end = v[1];
        if (s->start > s->end) s->start = s->end; /* \K in a lookahead */
        if (s->start == s->end && s->any && s->last_end == s->end) { /* an empty match behind another */
            size_t n = 1;
            if (s->at < s->len) fh_tok_char(s->text + s->at, &n);
            s->at += n;
            continue;
        }
        if (s->any && s->start < s->last_end) s->start = s->last_end; /* \K again: never back over what was given */
        s->at = s->last_end = s->end;
        *found = s->any = true;
        return FH_OK;
    }
}

fh_status fh_tok_scan_next(fh_tok_scan *s, fh_tok_call *c, bool *found)
{
    const fh_tok_pattern *p = s->pattern;
    if (p->regex) return match_regex(s, c, found);
    const char *at = NULL;
    if (p->literal_len == 1) at = memchr(s->text + s->at, p->literal[0], s->len - s->at);
    else if (p->literal_len) at = memmem(s->text + s->at, s->len - s->at, p->literal, p->literal_len);
    *found = at != NULL;
    if (!at) return FH_OK;
    s->start = (size_t)(at - s->text);
    s->at = s->end = s->start + p->literal_len;
    return FH_OK;
}
