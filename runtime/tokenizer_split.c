/* Pre-tokenizers: each maps the pieces it is given to smaller ones, or rewrites them. */
#include "runtime/tokenizer_private.h"

#include <string.h>

static const char GPT2[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/* ---- cutting --------------------------------------------------------------------------------------------------- */

static fh_status add_span(fh_tok_call *c, fh_tok_pieces *p, size_t start, size_t end)
{
    if (start == end) return FH_OK;
    if (end > UINT32_MAX)
        return fh_fail(c->err, FH_EUSAGE, "%s: more than 4 GiB of text in one call: encode it in parts", c->t->name);
    if (p->n == p->cap) {
        size_t cap = fh_max(64, p->cap + p->cap / 2), bytes;
        fh_tok_span *spans = fh_mul(cap, sizeof *spans, &bytes) ? fh_realloc(p->spans, bytes) : NULL;
        if (!spans) return fh_tok_nomem(c->t->name, c->err);
        p->spans = spans;
        p->cap = cap;
    }
    p->spans[p->n++] = (fh_tok_span){(uint32_t)start, (uint32_t)end};
    return FH_OK;
}

/* Matches and the gaps between them come from left to right and leave as pieces; one is held back, because the next may join it. */
typedef struct cutter { fh_tok_call *c; const fh_tok_step *s; fh_tok_pieces *out; size_t start, end; bool held, held_match; } cutter;

static fh_status cut_flush(cutter *k)
{
    bool held = k->held;
    k->held = false;
    return held ? add_span(k->c, k->out, k->start, k->end) : FH_OK;
}

static fh_status cut_add(cutter *k, size_t start, size_t end, bool match)
{
    bool join = false;
    match = match != k->s->invert;
    switch (k->s->behavior) {
    case FH_TOK_ISOLATED: break;
    case FH_TOK_REMOVED:
        if (match) return cut_flush(k);
        break;
    case FH_TOK_MERGED_PREVIOUS: join = match && !k->held_match; break; /* a match behind a match stays alone */
    case FH_TOK_MERGED_NEXT: join = !match && k->held_match; break;     /* and so does one before a match */
    case FH_TOK_CONTIGUOUS: join = match == k->held_match; break;
    }
    if (join && k->held) {
        k->end = end;
    } else {
        fh_status rc = cut_flush(k);
        if (rc < 0) return rc;
        k->start = start, k->end = end, k->held = true;
    }
    k->held_match = match;
    return FH_OK;
}

static fh_status cut_by_pattern(cutter *k, const char *text, fh_tok_span span)
{
    fh_tok_scan scan;
    size_t base = span.start, last = 0, len = span.end - span.start;
    bool found;
    fh_status rc = fh_tok_scan_begin(&scan, k->c, &k->s->pattern, text + base, len);
    while (rc == FH_OK && (rc = fh_tok_scan_next(&scan, k->c, &found)) == FH_OK && found) {
        if (scan.start > last) rc = cut_add(k, base + last, base + scan.start, false);
        if (rc == FH_OK) rc = cut_add(k, base + scan.start, base + scan.end, true);
        last = scan.end;
    }
    if (rc == FH_OK && last < len) rc = cut_add(k, base + last, span.end, false);
    return rc;
}

static fh_status cut_by_class(cutter *k, const char *text, fh_tok_span span)
{
    fh_status rc = FH_OK;
    size_t gap = span.start, n;
    for (size_t i = span.start; i < span.end && rc == FH_OK; i += n) {
        if (!k->s->is(fh_tok_char(text + i, &n))) continue;
        if (i > gap) rc = cut_add(k, gap, i, false);
        if (rc == FH_OK) rc = cut_add(k, i, i + n, true);
        gap = i + n;
    }
    return rc == FH_OK && gap < span.end ? cut_add(k, gap, span.end, false) : rc;
}

/* Whitespace: runs of word characters, and runs of what is neither that nor white space. */
static fh_status cut_words(cutter *k, const char *text, fh_tok_span span)
{
    fh_status rc = FH_OK;
    int before = -1;
    size_t start = span.start, n;
    for (size_t i = span.start; rc == FH_OK; i += n) {
        uint32_t c = i < span.end ? fh_tok_char(text + i, &n) : ' ';
        int kind = fh_tok_is_space(c) ? 0 : fh_tok_is_word(c) ? 1 : 2;
        if (kind != before) {
            if (before > 0) rc = cut_add(k, start, i, false);
            start = i;
            before = kind;
        }
        if (i >= span.end) break;
    }
    return rc;
}

static fh_status cut_all(fh_tok_call *c, const fh_tok_step *s, const fh_tok_pieces *in, fh_tok_pieces *out,
                         fh_status (*cut)(cutter *k, const char *text, fh_tok_span span))
{
    fh_status rc = FH_OK;
    out->text = in->text;
    for (size_t i = 0; i < in->n && rc == FH_OK; i++) {
        cutter k = {.c = c, .s = s, .out = out};
        rc = cut(&k, in->text, in->spans[i]);
        if (rc == FH_OK) rc = cut_flush(&k);
    }
    out->first = in->first && out->n && out->spans[0].start == in->spans[0].start;
    return rc;
}

static fh_status split_pattern(fh_tok_call *c, const fh_tok_step *s, const fh_tok_pieces *in, fh_tok_pieces *out)
{
    return cut_all(c, s, in, out, cut_by_pattern);
}
static fh_status split_class(fh_tok_call *c, const fh_tok_step *s, const fh_tok_pieces *in, fh_tok_pieces *out)
{
    return cut_all(c, s, in, out, cut_by_class);
}
static fh_status split_words(fh_tok_call *c, const fh_tok_step *s, const fh_tok_pieces *in, fh_tok_pieces *out)
{
    return cut_all(c, s, in, out, cut_words);
}

/* ---- rewriting --------------------------------------------------------------------------------------------------- */

static fh_status rewritten(fh_tok_call *c, fh_tok_pieces *out, size_t start)
{
    if (out->own.failed) return fh_tok_nomem(c->t->name, c->err);
    out->text = out->own.data;
    return add_span(c, out, start, out->own.len);
}

static fh_status prefix_space(fh_tok_call *c, const fh_tok_step *s, const fh_tok_pieces *in, fh_tok_pieces *out)
{
    for (size_t i = 0; i < in->n; i++) {
        const char *text = in->text + in->spans[i].start;
        size_t start = out->own.len;
        if (text[0] != ' ') fh_buf_add(&out->own, " ", 1);
        fh_buf_add(&out->own, text, in->spans[i].end - in->spans[i].start);
        fh_status rc = rewritten(c, out, start);
        if (rc < 0) return rc;
    }
    out->first = in->first;
    return FH_OK;
}

static fh_status map_bytes(fh_tok_call *c, const fh_tok_step *s, const fh_tok_pieces *in, fh_tok_pieces *out)
{
    for (size_t i = 0; i < in->n; i++) {
        const unsigned char *text = (const unsigned char *)in->text + in->spans[i].start;
        size_t len = in->spans[i].end - in->spans[i].start, start = out->own.len;
        char *to = fh_tok_room(&out->own, 2 * len);
        if (!to) return fh_tok_nomem(c->t->name, c->err);
        for (size_t k = 0; k < len; k++) {
            fh_tok_image image = c->t->images[text[k]];
            memcpy(to, image.utf8, 2);
            to += image.len;
        }
        out->own.len = (size_t)(to - out->own.data);
        fh_status rc = rewritten(c, out, start);
        if (rc < 0) return rc;
    }
    out->first = in->first;
    return FH_OK;
}

static fh_status metaspace(fh_tok_call *c, const fh_tok_step *s, const fh_tok_pieces *in, fh_tok_pieces *out)
{
    for (size_t i = 0; i < in->n; i++) {
        const char *text = in->text + in->spans[i].start, *end = in->text + in->spans[i].end;
        size_t start = out->own.len, len = (size_t)(end - text);
        bool has = text[0] == ' ' || (len >= s->content_len && !memcmp(text, s->content, s->content_len));
        if (!has && (s->scheme == FH_TOK_ALWAYS || (s->scheme == FH_TOK_FIRST && i == 0 && in->first)))
            fh_buf_add(&out->own, s->content, s->content_len);
        while (text < end) {
            const char *space = memchr(text, ' ', (size_t)(end - text));
            fh_buf_add(&out->own, text, (size_t)((space ? space : end) - text));
            if (space) fh_buf_add(&out->own, s->content, s->content_len);
            text = space ? space + 1 : end;
        }
        fh_status rc = rewritten(c, out, start);
        if (rc < 0) return rc;
    }
    out->first = in->first;
    return FH_OK;
}

/* ---- the table ------------------------------------------------------------------------------------------------------- */

static fh_status parse_byte_level(fh_tok_load *l, const fh_json *j, fh_tok_steps *to)
{
    bool prefix, regex;
    fh_tok_step *s;
    fh_status rc;
    if ((rc = fh_tok_get_bool(l, j, "add_prefix_space", true, &prefix)) < 0) return rc;
    if ((rc = fh_tok_get_bool(l, j, "use_regex", true, &regex)) < 0) return rc;
    if (prefix) {
        if ((rc = fh_tok_step_add(l, to, &s)) < 0) return rc;
        s->split = prefix_space;
    }
    if (regex) {
        if ((rc = fh_tok_step_add(l, to, &s)) < 0) return rc;
        s->split = split_pattern;
        if ((rc = fh_tok_set_regex(l, &s->pattern, GPT2)) < 0) return rc;
    }
    if ((rc = fh_tok_step_add(l, to, &s)) < 0) return rc;
    s->split = map_bytes;
    return FH_OK;
}

static fh_status parse_split(fh_tok_load *l, const fh_json *j, fh_tok_steps *to)
{
    static const char *const names[] = {"Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
    const char *behavior;
    fh_tok_step *s;
    fh_status rc = fh_tok_step_add(l, to, &s);
    if (rc < 0) return rc;
    s->split = split_pattern;
    if ((rc = fh_tok_get_string(l, j, "behavior", NULL, &behavior)) < 0) return rc;
    size_t i = 0;
    while (i < 5 && strcmp(names[i], behavior)) i++;
    if (i == 5) return fh_tok_bad(l, "'behavior' must be Isolated, Removed, MergedWithPrevious, MergedWithNext or Contiguous");
    s->behavior = (fh_tok_behavior)i;
    if ((rc = fh_tok_get_bool(l, j, "invert", false, &s->invert)) < 0) return rc;
    return fh_tok_get_pattern(l, j, &s->pattern);
}

static fh_status parse_digits(fh_tok_load *l, const fh_json *j, fh_tok_steps *to)
{
    bool each;
    fh_tok_step *s;
    fh_status rc = fh_tok_step_add(l, to, &s);
    if (rc < 0 || (rc = fh_tok_get_bool(l, j, "individual_digits", false, &each)) < 0) return rc;
    s->split = split_class;
    s->is = fh_tok_is_number;
    s->behavior = each ? FH_TOK_ISOLATED : FH_TOK_CONTIGUOUS;
    return FH_OK;
}

static fh_status parse_whitespace_split(fh_tok_load *l, const fh_json *j, fh_tok_steps *to)
{
    fh_tok_step *s;
    fh_status rc = fh_tok_step_add(l, to, &s);
    if (rc < 0) return rc;
    s->split = split_class;
    s->is = fh_tok_is_space;
    s->behavior = FH_TOK_REMOVED;
    return FH_OK;
}

static fh_status parse_whitespace(fh_tok_load *l, const fh_json *j, fh_tok_steps *to)
{
    fh_tok_step *s;
    fh_status rc = fh_tok_step_add(l, to, &s);
    if (rc < 0) return rc;
    s->split = split_words;
    return FH_OK;
}

fh_status fh_tok_parse_metaspace(fh_tok_load *l, const fh_json *j, fh_tok_step *s)
{
    static const char *const names[] = {"always", "first", "never"};
    const char *replacement, *scheme;
    bool prefix;
    size_t i = 0, n;
    fh_status rc;
    if ((rc = fh_tok_get_string(l, j, "replacement", "\xE2\x96\x81", &replacement)) < 0) return rc;
    if ((rc = fh_tok_get_string(l, j, "prepend_scheme", "always", &scheme)) < 0) return rc;
    if ((rc = fh_tok_get_bool(l, j, "add_prefix_space", true, &prefix)) < 0) return rc;
    while (i < 3 && strcmp(names[i], scheme)) i++;
    if (i == 3) return fh_tok_bad(l, "'prepend_scheme' must be always, first or never");
    if (!*replacement || (fh_tok_char(replacement, &n), replacement[n])) return fh_tok_bad(l, "'replacement' must be one character");
    s->scheme = prefix ? (fh_tok_scheme)i : FH_TOK_NEVER; /* add_prefix_space: the older spelling */
    return fh_tok_set_content(l, s, replacement);
}

static fh_status parse_metaspace(fh_tok_load *l, const fh_json *j, fh_tok_steps *to)
{
    bool split;
    fh_tok_step *s, *cut;
    fh_status rc = fh_tok_step_add(l, to, &s);
    if (rc < 0) return rc;
    s->split = metaspace;
    if ((rc = fh_tok_parse_metaspace(l, j, s)) < 0) return rc;
    if ((rc = fh_tok_get_bool(l, j, "split", true, &split)) < 0 || !split) return rc;
    if ((rc = fh_tok_step_add(l, to, &cut)) < 0) return rc;
    cut->split = split_pattern;
    cut->behavior = FH_TOK_MERGED_NEXT;
    cut->pattern.literal_len = s->content_len;
    cut->pattern.literal = fh_strdup(s->content);
    return cut->pattern.literal ? FH_OK : fh_tok_nomem(l->name, l->err);
}

const fh_tok_kind fh_tok_splitters[] = {
    {"ByteLevel", parse_byte_level}, {"Split", parse_split}, {"Digits", parse_digits}, {"Metaspace", parse_metaspace},
    {"Whitespace", parse_whitespace}, {"WhitespaceSplit", parse_whitespace_split}, {NULL, NULL},
};
