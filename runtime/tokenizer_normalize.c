/* Normalizers: text in, text out, before anything is cut. */
#include "runtime/tokenizer_private.h"

#include <string.h>

static fh_status written(fh_tok_call *c, fh_tok_view *io, fh_buf *out)
{
    if (!fh_tok_room(out, 0)) return fh_tok_nomem(c->t->name, c->err);
    *io = (fh_tok_view){out->data, out->len};
    return FH_OK;
}

static fh_status normal_form(fh_tok_call *c, const fh_tok_step *s, fh_tok_view *io, fh_buf *out)
{
    if (fh_tok_is_normal(s->form, io->text, io->len)) return FH_OK;
    if (!fh_tok_normal_form(out, s->form, io->text, io->len)) return fh_tok_nomem(c->t->name, c->err);
    return written(c, io, out);
}

static fh_status prepend(fh_tok_call *c, const fh_tok_step *s, fh_tok_view *io, fh_buf *out)
{
    if (!io->len) return FH_OK;
    fh_buf_add(out, s->content, s->content_len);
    fh_buf_add(out, io->text, io->len);
    return written(c, io, out);
}

fh_status fh_tok_replace(fh_tok_call *c, const fh_tok_step *s, const char *text, size_t len, fh_buf *out, bool *changed)
{
    fh_tok_scan scan;
    size_t last = 0;
    bool found;
    *changed = false;
    fh_status rc = fh_tok_scan_begin(&scan, c, &s->pattern, text, len);
    while (rc == FH_OK && (rc = fh_tok_scan_next(&scan, c, &found)) == FH_OK && found) {
        fh_buf_add(out, text + last, scan.start - last);
        fh_buf_add(out, s->content, s->content_len);
        last = scan.end;
        *changed = true;
        if (out->failed) return fh_tok_nomem(c->t->name, c->err);
    }
    if (rc == FH_OK && *changed) fh_buf_add(out, text + last, len - last);
    return rc;
}

static fh_status replace(fh_tok_call *c, const fh_tok_step *s, fh_tok_view *io, fh_buf *out)
{
    bool changed;
    fh_status rc = fh_tok_replace(c, s, io->text, io->len, out, &changed);
    return rc < 0 || !changed ? rc : written(c, io, out);
}

static fh_status strip(fh_tok_call *c, const fh_tok_step *s, fh_tok_view *io, fh_buf *out)
{
    size_t n;
    while (s->left && io->len && fh_tok_is_space(fh_tok_char(io->text, &n))) io->text += n, io->len -= n;
    while (s->right && io->len && fh_tok_is_space(fh_tok_last_char(io->text, io->len, &n))) io->len -= n;
    return FH_OK;
}

static fh_status lowercase(fh_tok_call *c, const fh_tok_step *s, fh_tok_view *io, fh_buf *out)
{
    size_t room, n;
    char *to = fh_mul(io->len, 2, &room) ? fh_tok_room(out, room) : NULL; /* the longest growth is U+0130, from 2 bytes to 3 */
    if (!to) return fh_tok_nomem(c->t->name, c->err);
    for (size_t i = 0; i < io->len; i += n) {
        uint32_t lower[2];
        size_t k = fh_tok_lower(fh_tok_char(io->text + i, &n), lower);
        for (size_t m = 0; m < k; m++) to += fh_tok_put_char(to, lower[m]);
    }
    out->len = (size_t)(to - out->data);
    return written(c, io, out);
}

static fh_status strip_accents(fh_tok_call *c, const fh_tok_step *s, fh_tok_view *io, fh_buf *out)
{
    size_t n, kept = 0;
    for (size_t i = 0; i < io->len; i += n) {
        if (!fh_tok_is_mark(fh_tok_char(io->text + i, &n))) continue;
        fh_buf_add(out, io->text + kept, i - kept);
        kept = i + n;
    }
    if (!kept) return FH_OK;
    fh_buf_add(out, io->text + kept, io->len - kept);
    return written(c, io, out);
}

static fh_status byte_level(fh_tok_call *c, const fh_tok_step *s, fh_tok_view *io, fh_buf *out)
{
    size_t room;
    char *to = fh_mul(io->len, 2, &room) ? fh_tok_room(out, room) : NULL;
    if (!to) return fh_tok_nomem(c->t->name, c->err);
    for (size_t i = 0; i < io->len; i++) {
        fh_tok_image image = c->t->images[(unsigned char)io->text[i]];
        memcpy(to, image.utf8, image.len);
        to += image.len;
    }
    out->len = (size_t)(to - out->data);
    return written(c, io, out);
}

/* ---- the table --------------------------------------------------------------------------------------------------- */

static fh_status parse_form(fh_tok_load *l, fh_tok_steps *to, fh_tok_form form)
{
    fh_tok_step *s;
    fh_status rc = fh_tok_step_add(l, to, &s);
    if (rc < 0) return rc;
    s->normalize = normal_form;
    s->form = form;
    return FH_OK;
}
static fh_status parse_nfc(fh_tok_load *l, const fh_json *j, fh_tok_steps *to) { return parse_form(l, to, FH_TOK_NFC); }
static fh_status parse_nfd(fh_tok_load *l, const fh_json *j, fh_tok_steps *to) { return parse_form(l, to, FH_TOK_NFD); }
static fh_status parse_nfkc(fh_tok_load *l, const fh_json *j, fh_tok_steps *to) { return parse_form(l, to, FH_TOK_NFKC); }
static fh_status parse_nfkd(fh_tok_load *l, const fh_json *j, fh_tok_steps *to) { return parse_form(l, to, FH_TOK_NFKD); }

static fh_status parse_prepend(fh_tok_load *l, const fh_json *j, fh_tok_steps *to)
{
    const char *text;
    fh_tok_step *s;
    fh_status rc = fh_tok_step_add(l, to, &s);
    if (rc < 0 || (rc = fh_tok_get_string(l, j, "prepend", NULL, &text)) < 0) return rc;
    s->normalize = prepend;
    return fh_tok_set_content(l, s, text);
}

fh_status fh_tok_parse_replace(fh_tok_load *l, const fh_json *j, fh_tok_step *s)
{
    const char *content;
    fh_status rc = fh_tok_get_string(l, j, "content", NULL, &content);
    if (rc < 0 || (rc = fh_tok_get_pattern(l, j, &s->pattern)) < 0) return rc;
    return fh_tok_set_content(l, s, content);
}

static fh_status parse_replace(fh_tok_load *l, const fh_json *j, fh_tok_steps *to)
{
    fh_tok_step *s;
    fh_status rc = fh_tok_step_add(l, to, &s);
    if (rc < 0) return rc;
    s->normalize = replace;
    return fh_tok_parse_replace(l, j, s);
}

static fh_status parse_strip(fh_tok_load *l, const fh_json *j, fh_tok_steps *to)
{
    fh_tok_step *s;
    fh_status rc = fh_tok_step_add(l, to, &s);
    if (rc < 0 || (rc = fh_tok_get_bool(l, j, "strip_left", true, &s->left)) < 0) return rc;
    s->normalize = strip;
    return fh_tok_get_bool(l, j, "strip_right", true, &s->right);
}

static fh_status parse_simple(fh_tok_load *l, fh_tok_steps *to,
                              fh_status (*how)(fh_tok_call *c, const fh_tok_step *s, fh_tok_view *io, fh_buf *out))
{
    fh_tok_step *s;
    fh_status rc = fh_tok_step_add(l, to, &s);
    if (rc == FH_OK) s->normalize = how;
    return rc;
}
static fh_status parse_lowercase(fh_tok_load *l, const fh_json *j, fh_tok_steps *to) { return parse_simple(l, to, lowercase); }
static fh_status parse_strip_accents(fh_tok_load *l, const fh_json *j, fh_tok_steps *to) { return parse_simple(l, to, strip_accents); }
static fh_status parse_byte_level(fh_tok_load *l, const fh_json *j, fh_tok_steps *to) { return parse_simple(l, to, byte_level); }

const fh_tok_kind fh_tok_normalizers[] = {
    {"NFC", parse_nfc}, {"NFD", parse_nfd}, {"NFKC", parse_nfkc}, {"NFKD", parse_nfkd}, {"Prepend", parse_prepend},
    {"Replace", parse_replace}, {"Strip", parse_strip}, {"Lowercase", parse_lowercase}, {"StripAccents", parse_strip_accents},
    {"ByteLevel", parse_byte_level}, {NULL, NULL},
};

fh_status fh_tok_normalize(fh_tok_call *c, fh_tok_view *io)
{
    fh_status rc = FH_OK;
    int use = 0;
    for (size_t i = 0; i < c->t->normalizers.n && rc == FH_OK; i++) {
        const fh_tok_step *s = &c->t->normalizers.items[i];
        c->text[use].len = 0;
        rc = s->normalize(c, s, io, &c->text[use]);
        if (io->text == c->text[use].data) use = !use; /* it wrote there: the next one reads it */
    }
    return rc;
}
