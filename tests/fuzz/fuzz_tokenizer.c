/* Tokenizers: any bytes as tokenizer.json, one put together from parts, and the golden ones, with any bytes as text.
 *
 * The first byte chooses.  What opens must encode without reading past anything, give ids that it has, decode to valid UTF-8, and
 * stream to the same; a byte-level tokenizer that changes nothing gives valid text back.
 */
#include "runtime/runtime.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define LEN(list) (sizeof(list) / sizeof *(list))

static void check_decode(const fh_tokenizer *t, const uint32_t *ids, size_t n, bool skip, const char *expected, size_t expected_len)
{
    fh_err err;
    fh_stream *s;
    fh_buf parts = {0};
    char *whole;
    const char *part;
    size_t len, bytes;
    fh_status rc = fh_tokenizer_decode(t, ids, n, skip, &whole, &len, &err), streamed = FH_OK;
    if (rc == FH_OK && (fh_utf8_valid(whole, len) != len || whole[len])) abort();
    if (rc == FH_OK && expected && (len != expected_len || memcmp(whole, expected, len) != 0)) abort();
    if (fh_stream_new(&s, t, skip, &err) < 0) abort();
    for (size_t i = 0; i <= n && streamed == FH_OK; i++) {
        streamed = i < n ? fh_stream_push(s, ids[i], &part, &bytes, &err) : fh_stream_flush(s, &part, &bytes, &err);
        if (streamed != FH_OK) break;
        if (fh_utf8_valid(part, bytes) != bytes) abort();
        fh_buf_add(&parts, part, bytes);
    }
    if (rc == FH_OK && streamed == FH_OK && (parts.len != len || (len && memcmp(parts.data, whole, len) != 0))) abort();
    if (rc == FH_OK) fh_free(whole);
    fh_stream_free(s);
    fh_buf_free(&parts);
}

/* `lossless`: decoding gives the text back. */
static void use(const fh_tokenizer *t, const char *text, size_t len, bool lossless)
{
    fh_err err = {FH_OK, ""};
    uint32_t *ids;
    size_t n;
    const uint32_t *prefix, *suffix;
    size_t n_prefix, n_suffix;
    fh_tokenizer_affixes(t, &prefix, &n_prefix, &suffix, &n_suffix);
    for (int special = 0; special < 2; special++) {
        if (fh_tokenizer_encode(t, text, len, special, &ids, &n, &err) < 0) {
            if (!err.text[0]) abort();
            return;
        }
        if (special && n < n_prefix + n_suffix) abort();
        for (size_t i = 0; i < n; i++) {
            size_t bytes;
            if (ids[i] >= fh_tokenizer_size(t) || !fh_tokenizer_piece(t, ids[i], &bytes)) abort();
        }
        bool same = lossless && !special && fh_utf8_valid(text, len) == len;
        check_decode(t, ids, n, special, same ? text : NULL, len);
        fh_free(ids);
    }
    /* Any ids at all: the text's bytes, some past the end. */
    uint32_t some[256];
    for (n = 0; n < len && n < LEN(some); n++) some[n] = (unsigned char)text[n] * 3u;
    check_decode(t, some, n, false, NULL, 0);
}

static void use_json(const char *json, size_t json_len, const char *text, size_t len)
{
    fh_tokenizer *t = NULL;
    fh_err err = {FH_OK, ""};
    if (fh_tokenizer_open(&t, json, json_len, NULL, "fuzz.json", NULL, &err) < 0) {
        if (t || !err.text[0]) abort();
        return;
    }
    use(t, text, len, false);
    fh_tokenizer_close(t);
}

/* ---- put together from parts ------------------------------------------------------------------------------------------ */

static const char *const NORMALIZERS[] = {
    "{\"type\":\"NFC\"}", "{\"type\":\"NFD\"}", "{\"type\":\"NFKC\"}", "{\"type\":\"NFKD\"}", "{\"type\":\"Lowercase\"}",
    "{\"type\":\"StripAccents\"}", "{\"type\":\"Strip\"}", "{\"type\":\"Prepend\",\"prepend\":\"_\"}", "{\"type\":\"ByteLevel\"}",
    "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"_\"}",
    "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"%\"},\"content\":\"a\"}",
};
static const char *const SPLITTERS[] = {
    "{\"type\":\"ByteLevel\"}", "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}",
    "{\"type\":\"Digits\",\"individual_digits\":true}", "{\"type\":\"Digits\"}", "{\"type\":\"Whitespace\"}",
    "{\"type\":\"WhitespaceSplit\"}", "{\"type\":\"Metaspace\",\"replacement\":\"_\"}",
    "{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"first\",\"split\":false}",
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"%\"},\"behavior\":\"Isolated\"}",
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"%\"},\"behavior\":\"Removed\"}",
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"%\"},\"behavior\":\"MergedWithNext\",\"invert\":true}",
    "{\"type\":\"Split\",\"pattern\":{\"String\":\"%\"},\"behavior\":\"MergedWithPrevious\"}",
    "{\"type\":\"Split\",\"pattern\":{\"String\":\"%\"},\"behavior\":\"Contiguous\"}",
};
static const char *const DECODERS[] = {
    "{\"type\":\"ByteLevel\"}", "{\"type\":\"ByteFallback\"}", "{\"type\":\"Fuse\"}",
    "{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}", "{\"type\":\"Strip\",\"content\":\"a\",\"start\":2,\"stop\":1}",
    "{\"type\":\"Metaspace\",\"replacement\":\"_\"}", "{\"type\":\"Replace\",\"pattern\":{\"String\":\"_\"},\"content\":\" \"}",
    "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"%\"},\"content\":\"b\"}",
};
static const char VOCAB[] =
    "\"vocab\":{\"?\":0,\"a\":1,\"b\":2,\" \":3,\"_\":4,\"ab\":5,\"ba\":6,\"aba\":7,\"aa\":8,\"\\u00e9\":9,\"e\":10,\"\\u0301\":11,"
    "\"<0xC3>\":12,\"<0xA9>\":13,\"\\u0120\":14,\"\\u0120a\":15,\"__\":16,\"1\":17,\"12\":18,\"2\":19},"
    "\"merges\":[\"a b\",\"b a\",\"ab a\",[\"a\",\"a\"],\"\\u0120 a\",\"_ _\",\"1 2\"]}";
static const char ADDED[] =
    "\"added_tokens\":[{\"id\":20,\"content\":\"<s>\",\"special\":true,\"lstrip\":true},"
    "{\"id\":21,\"content\":\"aab\",\"normalized\":true,\"single_word\":true},"
    "{\"id\":22,\"content\":\"  \",\"normalized\":false,\"rstrip\":true},"
    "{\"id\":23,\"content\":\"\\u00c9\",\"normalized\":true},{\"id\":16,\"content\":\"__\"}]";

typedef struct source { const uint8_t *data; size_t left; } source;
static unsigned byte(source *s) { return s->left ? (s->left--, *s->data++) : 0; }

/* A regex or string of up to 24 bytes, as JSON spells it. */
static void add_pattern(fh_buf *b, source *s)
{
    unsigned n = byte(s) % 25;
    for (unsigned i = 0; i < n && s->left; i++) {
        unsigned c = byte(s);
        if (c == '"' || c == '\\') fh_buf_printf(b, "\\%c", c);
        else if (c < 0x20 || c >= 0x7F) fh_buf_printf(b, "\\u%04x", c ? c : 0x4E2D);
        else fh_buf_printf(b, "%c", c);
    }
}

static void add_stage(fh_buf *b, source *s, const char *stage, const char *list, const char *const *parts, size_t n_parts)
{
    unsigned n = byte(s) % 5;
    if (!n) return;
    fh_buf_printf(b, ",\"%s\":{\"type\":\"Sequence\",\"%s\":[", stage, list);
    for (unsigned i = 0; i < n; i++) {
        const char *part = parts[byte(s) % n_parts], *mark = strchr(part, '%');
        if (i) fh_buf_puts(b, ",");
        fh_buf_add(b, part, mark ? (size_t)(mark - part) : strlen(part));
        if (!mark) continue;
        add_pattern(b, s);
        fh_buf_puts(b, mark + 1);
    }
    fh_buf_puts(b, "]}");
}

static void from_parts(source s)
{
    fh_buf b = {0};
    unsigned flags = byte(&s);
    fh_buf_printf(&b, "{\"model\":{\"type\":\"BPE\",%s%s%s%s", flags & 1 ? "\"byte_fallback\":true," : "",
    flags & 2 ? "\"fuse_unk\":true," : "",
                  flags & 4 ? "\"unk_token\":\"?\"," : "", flags & 8 ? "\"ignore_merges\":true," : "");
    fh_buf_puts(&b, VOCAB);
    add_stage(&b, &s, "normalizer", "normalizers", NORMALIZERS, LEN(NORMALIZERS));
    add_stage(&b, &s, "pre_tokenizer", "pretokenizers", SPLITTERS, LEN(SPLITTERS));
    add_stage(&b, &s, "decoder", "decoders", DECODERS, LEN(DECODERS));
    if (flags & 16) fh_buf_printf(&b, ",%s", ADDED);
    fh_buf_puts(&b, "}");
    use_json(b.data, b.len, (const char *)s.data, s.left);
    fh_buf_free(&b);
}

/* ---- the golden ones ------------------------------------------------------------------------------------------------------ */

static void golden(unsigned which, const char *text, size_t len)
{
    static const struct { const char *name; bool lossless; } files[] = {
        {"gpt2", true}, {"llama3", true}, {"digits", true}, {"qwen", false}, {"neox", false}, {"llama2", false}, {"gemma", false},
        {"metaspace", false},
    };
    static fh_tokenizer *opened[LEN(files)];
    static char *json[LEN(files)];
    which %= LEN(files);
    if (!opened[which]) {
        char path[100];
        size_t n;
        fh_err err;
        snprintf(path, sizeof path, "tests/golden/tok-%s/tokenizer.json", files[which].name);
        if (fh_file_read(&json[which], &n, path, 1 << 20, &err) < 0) return; /* run somewhere else */
        if (fh_tokenizer_open(&opened[which], json[which], n, NULL, path, NULL, &err) < 0) abort();
    }
    use(opened[which], text, len, files[which].lossless);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    source s = {data, size};
    unsigned how = byte(&s);
    if (size > 1 << 16) return 0;
    if (how < 8) {
        golden(how, (const char *)s.data, s.left);
    } else if (how < '{') {
        from_parts(s);
    } else { /* '{': the input is the JSON itself, up to a NUL; the text follows */
        const uint8_t *end = memchr(data, 0, size);
        size_t json_len = end ? (size_t)(end - data) : size;
        use_json((const char *)data, json_len, end ? (const char *)end + 1 : "a ab", end ? size - json_len - 1 : 4);
    }
    return 0;
}
