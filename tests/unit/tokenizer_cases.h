/* tests/unit/tokenizer_cases.h: small tokenizers for the tests, and how they are asked. */
#ifndef TOKENIZER_CASES_H
#define TOKENIZER_CASES_H

#include "runtime/runtime.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* A tokenizer.json up to its model; the caller closes it. */
#define MODEL(rest, vocab, merges) "{\"model\":{\"type\":\"BPE\"," rest "\"vocab\":{" vocab "},\"merges\":[" merges "]}"

static inline void json_text(fh_buf *b, const char *s, size_t n)
{
    fh_buf_puts(b, "\"");
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];
        if (c == '"' || c == '\\') fh_buf_printf(b, "\\%c", c);
        else if (c < 0x20) fh_buf_printf(b, "\\u%04x", c);
        else fh_buf_add(b, &s[i], 1);
    }
    fh_buf_puts(b, "\"");
}

/* A byte as GPT-2's map shows it, written out here a second time. */
static inline void image(fh_buf *b, unsigned char byte)
{
    unsigned c = byte, k = 0;
    bool same = (byte > 0x20 && byte < 0x7F) || (byte > 0xA0 && byte != 0xAD);
    for (unsigned other = 0; !same && other < byte; other++) k += !((other > 0x20 && other < 0x7F) || (other > 0xA0 && other != 0xAD));
    if (!same) c = 0x100 + k;
    char two[2] = {(char)(0xC0 | c >> 6), (char)(0x80 | (c & 0x3F))}, one = (char)c;
    if (c < 0x80) fh_buf_add(b, &one, 1);
    else fh_buf_add(b, two, 2);
}

/* A byte-level tokenizer of 256 bytes and of `pieces` (after a NULL none), which it takes whole where a pre-tokenizer leaves them so:
 * the ids of a text show where it was cut.  `rest` is put behind the model: ',"pre_tokenizer":...'. */
static inline char *byte_level(const char *const *pieces, const char *rest)
{
    fh_buf b = {0};
    unsigned id = 256;
    fh_buf_puts(&b,
                "{\"version\":\"1.0\",\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"ignore_merges\":true,"
                "\"merges\":[],\"vocab\":{");
    for (unsigned byte = 0; byte < 256; byte++) {
        fh_buf word = {0};
        image(&word, (unsigned char)byte);
        json_text(&b, word.data, word.len);
        fh_buf_printf(&b, ":%u,", byte);
        fh_buf_free(&word);
    }
    for (; pieces && *pieces; pieces++) {
        fh_buf word = {0};
        for (const char *s = *pieces; *s; s++) image(&word, (unsigned char)*s);
        if (strlen(*pieces) > 1) {
            json_text(&b, word.data, word.len);
            fh_buf_printf(&b, ":%u,", id++);
        }
        fh_buf_free(&word);
    }
    b.data[--b.len] = 0;
    fh_buf_puts(&b, "}}");
    fh_buf_puts(&b, rest);
    fh_buf_puts(&b, "}");
    return fh_buf_take(&b);
}

static inline fh_tokenizer *open_text(const char *text, const char *config)
{
    fh_tokenizer *t = NULL;
    fh_err err;
    if (fh_tokenizer_open(&t, text, strlen(text), config, "t.json", NULL, &err) < 0) fail_msg("%s", err.text);
    return t;
}

static inline fh_tokenizer *open_file(const char *path)
{
    char *text;
    size_t len;
    fh_err err;
    fh_tokenizer *t = NULL;
    if (fh_file_read(&text, &len, path, 64 << 20, &err) < 0) fail_msg("%s", err.text);
    if (fh_tokenizer_open(&t, text, len, NULL, path, NULL, &err) < 0) fail_msg("%s", err.text);
    fh_free(text);
    return t;
}

/* "[Hello][,][ it]": the pieces of a text, as decoding gives them. */
static inline void assert_pieces(const fh_tokenizer *t, const char *text, size_t len, const char *expected)
{
    uint32_t *ids;
    size_t n;
    fh_err err;
    fh_buf b = {0};
    if (fh_tokenizer_encode(t, text, len, true, &ids, &n, &err) < 0) fail_msg("%s: %s", text, err.text);
    for (size_t i = 0; i < n; i++) {
        size_t bytes;
        const char *piece = fh_tokenizer_piece(t, ids[i], &bytes);
        assert_non_null(piece);
        fh_buf_puts(&b, "[");
        fh_buf_add(&b, piece, bytes);
        fh_buf_puts(&b, "]");
    }
    fh_free(ids);
    char *got = fh_buf_take(&b);
    assert_string_equal(got, expected);
    fh_free(got);
}

/* Open the small tokenizer that knows the pieces of `expected`, and see whether it finds them. */
static inline void assert_cut(const char *rest, const char *text, const char *expected)
{
    char *copy = strdup(expected), *json;
    const char *pieces[64] = {NULL};
    size_t n = 0;
    for (char *s = copy; *s; s++) {
        if (*s == '[' && (s == copy || !s[-1])) pieces[n++] = s + 1;
        if (*s == ']' && (!s[1] || s[1] == '[')) *s = 0;
    }
    json = byte_level(pieces, rest);
    fh_tokenizer *t = open_text(json, NULL);
    assert_pieces(t, text, strlen(text), expected);
    fh_tokenizer_close(t);
    fh_free(json);
    free(copy);
}

static inline void assert_ids(const fh_tokenizer *t, const char *text, bool special, size_t n, const uint32_t *expected)
{
    uint32_t *ids;
    size_t got;
    fh_err err;
    if (fh_tokenizer_encode(t, text, strlen(text), special, &ids, &got, &err) < 0) fail_msg("%s", err.text);
    assert_int_equal(got, n);
    for (size_t i = 0; i < n; i++) assert_int_equal(ids[i], expected[i]);
    fh_free(ids);
}
#define IDS(t, text, special, ...) assert_ids(t, text, special, sizeof((uint32_t[]){__VA_ARGS__}) / 4, (uint32_t[]){__VA_ARGS__})

static inline char *decode(const fh_tokenizer *t, const uint32_t *ids, size_t n, bool skip, size_t *len)
{
    char *text;
    fh_err err;
    if (fh_tokenizer_decode(t, ids, n, skip, &text, len, &err) < 0) fail_msg("%s", err.text);
    assert_int_equal(text[*len], 0);
    assert_int_equal(fh_utf8_valid(text, *len), *len);
    return text;
}

/* A stream gives, in parts that are whole characters, what decoding gives at once. */
static inline void assert_stream_equals_decode(const fh_tokenizer *t, const uint32_t *ids, size_t n, bool skip)
{
    size_t len, bytes;
    char *whole = decode(t, ids, n, skip, &len);
    const char *part;
    fh_stream *s;
    fh_buf b = {0};
    fh_err err;
    assert_int_equal(fh_stream_new(&s, t, skip, &err), FH_OK);
    for (size_t i = 0; i <= n; i++) {
        if (i < n) assert_int_equal(fh_stream_push(s, ids[i], &part, &bytes, &err), FH_OK);
        else assert_int_equal(fh_stream_flush(s, &part, &bytes, &err), FH_OK);
        assert_int_equal(fh_utf8_valid(part, bytes), bytes);
        fh_buf_add(&b, part, bytes);
    }
    assert_int_equal(b.len, len);
    if (len) assert_memory_equal(b.data, whole, len);
    fh_stream_free(s);
    fh_buf_free(&b);
    fh_free(whole);
}

#endif
