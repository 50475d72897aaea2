/* format/json_scan.c: a strict judge of JSON text, one pass, no recursion.
 *
 * cJSON is lax where a file can hide something: it takes 01, 1e400, text after the value, bytes that are not UTF-8, and it ends
 * strings at \u0000.  Version 1.7.15 also reads past a buffer that is cut in some places.  So it only ever sees text
 * that has passed here.
 */
#include "format/json_scan.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* cJSON copies a number into 64 bytes and cuts what is longer. */
enum { LONGEST_NUMBER = 63 };

typedef struct scanner {
    const char *text;
    size_t len, pos;
    const char *file;
    fh_err *err;
    fh_json_scan *found; /* NULL when only a key's place is looked for */
    size_t keys, wanted_key, key_at;
} scanner;

static void place_of(const char *text, size_t pos, size_t *line, size_t *column)
{
    *line = *column = 1;
    for (size_t i = 0; i < pos; i++) {
        if (text[i] == '\n') {
            ++*line;
            *column = 1;
        } else if (((uint8_t)text[i] & 0xC0) != 0x80) {
            ++*column;
        }
    }
}

static fh_status wrong_at(scanner *s, size_t pos, const char *what)
{
    size_t line, column;
    place_of(s->text, pos, &line, &column);
    return fh_fail(s->err, FH_EFORMAT, "%s: line %zu, column %zu: %s", s->file, line, column, what);
}

static fh_status wrong(scanner *s, const char *what)
{
    return wrong_at(s, s->pos, what);
}

static bool at(const scanner *s, const char *word)
{
    size_t n = strlen(word);
    return s->len - s->pos >= n && memcmp(s->text + s->pos, word, n) == 0;
}

/* The next character, or -1 at the end. */
static int peek(const scanner *s)
{
    return s->pos < s->len ? (uint8_t)s->text[s->pos] : -1;
}

static int skip_space(scanner *s)
{
    while (s->pos < s->len) {
        char c = s->text[s->pos];
        if (c != ' ' && c != '\n' && c != '\r' && c != '\t') break;
        s->pos++;
    }
    return peek(s);
}

/* What stands at s->pos instead of what was expected. */
static fh_status unexpected(scanner *s, const char *expected)
{
    char what[160];
    int c = peek(s);
    if (c < 0) return wrong(s, "the text ends in the middle: is the file complete?");
    if (c == 0) return wrong(s, "a NUL byte: the file is damaged, or padded");
    if (at(s, "//") || at(s, "/*") || c == '#') return wrong(s, "a comment, which JSON does not have: remove it");
    if (at(s, "NaN") || at(s, "nan") || at(s, "Infinity") || at(s, "-Infinity") || at(s, "inf") || at(s, "-inf"))
        return wrong(s, "NaN and Infinity are no JSON numbers: write null, or a number");
    if (at(s, "True") || at(s, "False") || at(s, "None")) return wrong(s, "True, False and None are Python: write true, false and null");
    if (c == '\'') return wrong(s, "a single quote: JSON strings stand in double quotes");
    snprintf(what, sizeof what, c > 0x20 && c < 0x7F ? "expected %s, found '%c'" : "expected %s, found byte 0x%02X", expected, c);
    return wrong(s, what);
}

/* The 4 hexadecimal digits at `pos`, or -1. */
static int hex4(const scanner *s, size_t pos)
{
    int value = 0;
    if (s->len < 4 || pos > s->len - 4) return -1;
    for (size_t i = 0; i < 4; i++) {
        char c = s->text[pos + i];
        int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (digit < 0) return -1;
        value = value * 16 + digit;
    }
    return value;
}

/* At a backslash. */
static fh_status scan_escape(scanner *s)
{
    if (s->len - s->pos < 2) return wrong(s, "the text ends inside a string: is the file complete?");
    char c = s->text[s->pos + 1];
    if (c != 'u') {
        if (c == '\0' || !strchr("\"\\/bfnrt", c))
            return wrong(s, "an escape that JSON does not have: it has \\\" \\\\ \\/ \\b \\f \\n \\r \\t and \\uXXXX");
        s->pos += 2;
        return FH_OK;
    }
    int unit = hex4(s, s->pos + 2);
    if (unit < 0) return wrong(s, "\\u needs four hexadecimal digits");
    if (unit == 0) return wrong(s, "\\u0000 (NUL) in a string, which is refused");
    if (unit >= 0xDC00 && unit <= 0xDFFF) return wrong(s, "a lone surrogate: a low half without its high half");
    if (unit >= 0xD800 && unit <= 0xDBFF) {
        int low = s->len - s->pos >= 12 && s->text[s->pos + 6] == '\\' && s->text[s->pos + 7] == 'u' ? hex4(s, s->pos + 8) : -1;
        if (low < 0xDC00 || low > 0xDFFF) return wrong(s, "a lone surrogate: a high half without its low half");
        s->pos += 6;
    }
    s->pos += 6;
    return FH_OK;
}

/* At the opening quote; ends after the closing one. */
static fh_status scan_string(scanner *s)
{
    size_t start = s->pos++;
    for (;;) {
        while (s->pos < s->len && (uint8_t)s->text[s->pos] >= 0x20 && s->text[s->pos] != '"' && s->text[s->pos] != '\\') s->pos++;
        if (s->pos == s->len) return wrong_at(s, start, "a string that does not end: is the file complete?");
        char c = s->text[s->pos];
        if (c == '"') {
            s->pos++;
            return FH_OK;
        }
        if (c == '\0') return wrong(s, "a NUL byte inside a string");
        if (c != '\\') return wrong(s, "a raw control character inside a string: write it as an escape");
        fh_status rc = scan_escape(s);
        if (rc < 0) return rc;
    }
}

/* A number with an exponent, or too long for cJSON: its value must be finite, and a long one gets a short equal. */
static fh_status weigh_number(scanner *s, size_t start, size_t len)
{
    char text[LONGEST_NUMBER + 1];
    char *number = text;
    if (len > LONGEST_NUMBER) {
        if (!s->found->rewritten) {
            s->found->rewritten = fh_malloc(s->len + 1);
            if (!s->found->rewritten) return fh_fail(s->err, FH_ENOMEM, "%s: out of memory", s->file);
            memcpy(s->found->rewritten, s->text, s->len);
            s->found->rewritten[s->len] = '\0'; /* where strtod ends at the latest */
        }
        number = s->found->rewritten + start;
    } else {
        memcpy(text, s->text + start, len);
        text[len] = '\0';
    }
    double value = strtod(number, NULL);
    if (!isfinite(value)) return wrong_at(s, start, "a number beyond the range of a double");
    if (len > LONGEST_NUMBER) {
        int n = snprintf(text, sizeof text, "%.17g", value);
        memset(number, ' ', len);
        memcpy(number, text, (size_t)n);
    }
    return FH_OK;
}

static size_t digits(scanner *s)
{
    size_t start = s->pos;
    while (s->pos < s->len && s->text[s->pos] >= '0' && s->text[s->pos] <= '9') s->pos++;
    return s->pos - start;
}

static fh_status scan_number(scanner *s)
{
    size_t start = s->pos;
    bool integer = true, exponent = false;
    if (peek(s) == '-') s->pos++;
    bool zero = peek(s) == '0';
    size_t whole = digits(s);
    if (whole == 0) {
        if (peek(s) == 'I' || peek(s) == 'i') s->pos = start;
        return unexpected(s, "a digit");
    }
    if (zero && whole > 1) return wrong_at(s, start, "a number with leading zeros");
    if (peek(s) == '.') {
        s->pos++;
        integer = false;
        if (digits(s) == 0) return unexpected(s, "a digit after the decimal point");
    }
    if (peek(s) == 'e' || peek(s) == 'E') {
        s->pos++;
        integer = false;
        exponent = true;
        if (peek(s) == '+' || peek(s) == '-') s->pos++;
        if (digits(s) == 0) return unexpected(s, "a digit in the exponent");
    }
    if (!s->found) return FH_OK;
    if (integer) s->found->integers[s->found->numbers / 8] |= (uint8_t)(1u << s->found->numbers % 8);
    s->found->numbers++;
    if (!exponent && s->pos - start <= LONGEST_NUMBER) return FH_OK;
    return weigh_number(s, start, s->pos - start);
}

static fh_status scan_word(scanner *s)
{
    static const char *const words[] = {"true", "false", "null"};
    for (size_t i = 0; i < 3; i++) {
        if (!at(s, words[i])) continue;
        s->pos += strlen(words[i]);
        return FH_OK;
    }
    return unexpected(s, "a value");
}

/* A key and its colon. */
static fh_status scan_key(scanner *s)
{
    fh_status rc;
    if (peek(s) != '"') return unexpected(s, "a key in double quotes");
    if (s->keys++ == s->wanted_key) s->key_at = s->pos;
    if ((rc = scan_string(s)) < 0) return rc;
    if (skip_space(s) != ':') return unexpected(s, "':'");
    s->pos++;
    skip_space(s);
    return FH_OK;
}

static fh_status scan_document(scanner *s)
{
    char closes[FH_JSON_DEPTH]; /* the brackets that are open */
    size_t depth = 0;
    fh_status rc;
    skip_space(s);
    for (;;) {
        int c = peek(s);
        if (c == '{' || c == '[') {
            if (depth == FH_JSON_DEPTH) return wrong(s, "more than 64 levels of nesting");
            char close = c == '{' ? '}' : ']';
            s->pos++;
            if (skip_space(s) != close) {
                closes[depth++] = close;
                if (close == '}' && (rc = scan_key(s)) < 0) return rc;
                continue;
            }
            s->pos++;
        } else if (c == '"') {
            if ((rc = scan_string(s)) < 0) return rc;
        } else if (c == '-' || (c >= '0' && c <= '9')) {
            if ((rc = scan_number(s)) < 0) return rc;
        } else {
            if ((rc = scan_word(s)) < 0) return rc;
        }
        /* A value has ended; so may what it stands in. */
        while (depth > 0 && skip_space(s) == closes[depth - 1]) s->pos++, depth--;
        if (depth == 0) break;
        if (peek(s) != ',') return unexpected(s, closes[depth - 1] == '}' ? "',' or '}'" : "',' or ']'");
        size_t comma = s->pos++;
        if (skip_space(s) == closes[depth - 1]) return wrong_at(s, comma, "a trailing comma, which JSON does not have: remove it");
        if (closes[depth - 1] == '}' && (rc = scan_key(s)) < 0) return rc;
    }
    if (skip_space(s) < 0) return FH_OK;
    if (at(s, "//") || at(s, "/*") || peek(s) == '#' || peek(s) == 0) return unexpected(s, "the end");
    return wrong(s, "more text after the value");
}

/* Texts that are no JSON from the first byte on, by what they are. */
static const char *other_kind(const char *text, size_t len)
{
    const uint8_t *b = (const uint8_t *)text;
    if (len == 0) return "the file is empty";
    bool marked = len >= 2 && ((b[0] == 0xFF && b[1] == 0xFE) || (b[0] == 0xFE && b[1] == 0xFF));
    if (marked || (len >= 2 && (b[0] == 0) != (b[1] == 0))) return "the text is UTF-16: save it as UTF-8";
    if (len >= 3 && memcmp(b, "\xEF\xBB\xBF", 3) == 0) return "the text begins with a byte order mark (BOM): save it as UTF-8 without one";
    if (len >= 23 && memcmp(b, "version https://git-lfs", 23) == 0) return "this is a git-lfs pointer, not the file: run `git lfs pull`";
    if (len >= 2 && b[0] == 0x1F && b[1] == 0x8B) return "this is gzip: unpack it first";
    if (b[0] == '<') return "this is HTML or XML, perhaps an error page in place of the download";
    return NULL;
}

fh_status fh_json_scan_text(fh_json_scan *out, const char *text, size_t len, const char *file, fh_err *err)
{
    memset(out, 0, sizeof *out);
    scanner s = {.text = text, .len = len, .file = file, .err = err, .found = out, .wanted_key = SIZE_MAX};
    const char *kind = other_kind(text, len);
    if (kind) return wrong_at(&s, 0, kind);
    size_t valid = fh_utf8_valid(text, len);
    if (valid < len) return wrong_at(&s, valid, "the text is not valid UTF-8");
    /* A number takes at least two characters with what separates it from the next. */
    out->integers = fh_calloc(len / 16 + 1, 1);
    if (!out->integers) return fh_fail(err, FH_ENOMEM, "%s: out of memory", file);
    fh_status rc = scan_document(&s);
    if (rc < 0) fh_json_scan_free(out);
    return rc;
}

void fh_json_scan_free(fh_json_scan *s)
{
    fh_free(s->integers);
    fh_free(s->rewritten);
    memset(s, 0, sizeof *s);
}

void fh_json_scan_key(const char *text, size_t len, size_t n, size_t *line, size_t *column)
{
    scanner s = {.text = text, .len = len, .file = "", .wanted_key = n};
    (void)scan_document(&s);
    place_of(text, s.key_at, line, column);
}
