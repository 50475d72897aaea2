/* JSON strings as texts with a length: the one place where a NUL may stand in a string, because a tokenizer is asked about any text.
 *
 * Everything else is left to the strict parser: a string is cut at its NULs, and each piece between them is a document. */
#include "format/format.h"

#include <string.h>

static fh_status add_piece(fh_buf *to, const char *s, size_t n, const char *file, fh_err *err)
{
    fh_buf piece = {0};
    fh_json *j = NULL;
    fh_buf_puts(&piece, "\"");
    fh_buf_add(&piece, s, n);
    fh_buf_puts(&piece, "\"");
    fh_status rc = piece.failed ? fh_fail(err, FH_ENOMEM, "%s: out of memory", file) : fh_json_parse(&j, piece.data, piece.len, file, err);
    if (rc == FH_OK) {
        const char *text = fh_json_string(j);
        if (text) fh_buf_puts(to, text);
        else rc = fh_fail(err, FH_EFORMAT, "%s: is not a JSON string", file);
    }
    fh_json_free(j);
    fh_buf_free(&piece);
    return rc;
}

fh_status fh_json_text_parse(char **out, size_t *out_len, const char *s, size_t len, const char *file, fh_err *err)
{
    fh_buf b = {0};
    fh_status rc = FH_OK;
    while (len && strchr(" \t\r\n", *s)) s++, len--;
    while (len && strchr(" \t\r\n", s[len - 1])) len--;
    if (len < 2 || s[0] != '"' || s[len - 1] != '"') return fh_fail(err, FH_EFORMAT, "%s: is not a JSON string", file);
    size_t from = 1, at = 1, end = len - 1;
    while (at < end) {
        if (s[at] != '\\') { at++; continue; }
        if (end - at >= 6 && !memcmp(s + at, "\\u0000", 6)) {
            if ((rc = add_piece(&b, s + from, at - from, file, err)) < 0) goto out;
            fh_buf_add(&b, "", 1);
            at += 6, from = at;
        } else {
            at += 2;
        }
    }
    if (at != end) { rc = fh_fail(err, FH_EFORMAT, "%s: a JSON string without its end", file); goto out; }
    if ((rc = add_piece(&b, s + from, end - from, file, err)) < 0) goto out;
    *out_len = b.len;
    fh_buf_add(&b, "", 1);
    if (!(*out = fh_buf_take(&b))) rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", file);
out:
    fh_buf_free(&b);
    return rc;
}

char *fh_json_text_print(const char *s, size_t len)
{
    fh_buf b = {0};
    fh_buf_puts(&b, "\"");
    for (size_t at = 0; at <= len;) {
        const char *nul = at < len ? memchr(s + at, 0, len - at) : NULL;
        size_t n = nul ? (size_t)(nul - s) - at : len - at;
        char *piece = fh_strndup(n ? s + at : "", n);
        fh_json *holder = fh_json_array();
        char *printed = piece && fh_json_add_string(holder, NULL, piece) ? fh_json_print(holder, false) : NULL;
        size_t m = printed ? strlen(printed) : 0;
        if (m >= 4) fh_buf_add(&b, printed + 2, m - 4); /* without [" and "] */
        else b.failed = true;
        fh_free(piece);
        fh_free(printed);
        fh_json_free(holder);
        if (!nul || b.failed) break;
        fh_buf_puts(&b, "\\u0000");
        at += n + 1;
    }
    fh_buf_puts(&b, "\"");
    if (b.failed) { fh_buf_free(&b); return NULL; }
    return fh_buf_take(&b);
}
