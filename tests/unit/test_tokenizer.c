/* Tokenizers: the reference's ids and texts, the steps one by one, added tokens, streams, and text that is not UTF-8. */
#include "runtime/runtime.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/fault.h"

/* ---- small tokenizers -------------------------------------------------------------------------------------------- */

static void json_text(fh_buf *b, const char *s, size_t n)
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
static void image(fh_buf *b, unsigned char byte)
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
static char *byte_level(const char *const *pieces, const char *rest)
{
    fh_buf b = {0};
    unsigned id = 256;
    fh_buf_puts(&b, "{\"version\":\"1.0\",\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"ignore_merges\":true,\"merges\":[],\"vocab\":{");
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

static fh_tokenizer *open_text(const char *text, const char *config)
{
    fh_tokenizer *t = NULL;
    fh_err err;
    if (fh_tokenizer_open(&t, text, strlen(text), config, "t.json", NULL, &err) < 0) fail_msg("%s", err.text);
    return t;
}

static fh_tokenizer *open_file(const char *path)
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
static void assert_pieces(const fh_tokenizer *t, const char *text, size_t len, const char *expected)
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
static void assert_cut(const char *rest, const char *text, const char *expected)
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

static void assert_ids(const fh_tokenizer *t, const char *text, bool special, size_t n, const uint32_t *expected)
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

static char *decode(const fh_tokenizer *t, const uint32_t *ids, size_t n, bool skip, size_t *len)
{
    char *text;
    fh_err err;
    if (fh_tokenizer_decode(t, ids, n, skip, &text, len, &err) < 0) fail_msg("%s", err.text);
    assert_int_equal(text[*len], 0);
    assert_int_equal(fh_utf8_valid(text, *len), *len);
    return text;
}

/* A stream gives, in parts that are whole characters, what decoding gives at once. */
static void assert_stream_equals_decode(const fh_tokenizer *t, const uint32_t *ids, size_t n, bool skip)
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

/* ---- the reference ----------------------------------------------------------------------------------------------- */

/* The texts hold U+0000, which our JSON has no room for: U+F8FE stands for it while the file is read. */
static fh_json *read_expected(const char *path)
{
    char *text;
    size_t len;
    fh_err err;
    fh_json *j;
    if (fh_file_read(&text, &len, path, 64 << 20, &err) < 0) fail_msg("%s", err.text);
    assert_null(strstr(text, "\\uf8fe"));
    for (char *s = text; (s = strstr(s, "\\u0000")); s += 6) memcpy(s, "\\uf8fe", 6);
    if (fh_json_parse(&j, text, len, path, &err) < 0) fail_msg("%s", err.text);
    fh_free(text);
    return j;
}

static char *text_of(const fh_json *j, size_t *len)
{
    char *s = strdup(fh_json_string(j)), *to = s;
    for (const char *from = s; *from;) {
        if (!strncmp(from, "\xEF\xA3\xBE", 3)) *to++ = 0, from += 3;
        else *to++ = *from++;
    }
    *len = (size_t)(to - s);
    return s;
}

static size_t ids_of(const fh_json *list, uint32_t **out)
{
    size_t n = fh_json_count(list), i = 0;
    *out = calloc(n + 1, sizeof **out);
    for (const fh_json *j = fh_json_first(list); j; j = fh_json_next(j), i++) {
        uint64_t id;
        assert_true(fh_json_u64(j, &id));
        (*out)[i] = (uint32_t)id;
    }
    return n;
}

static void assert_row(const fh_tokenizer *t, const fh_json *row, const char *name)
{
    size_t len, n, want, bytes;
    uint32_t *ids, *expected;
    fh_err err;
    char *text = text_of(fh_json_get(row, "text"), &len);
    for (int special = 0; special < 2; special++) {
        want = ids_of(fh_json_get(row, special ? "ids" : "ids_no_special"), &expected);
        if (fh_tokenizer_encode(t, text, len, special, &ids, &n, &err) < 0) fail_msg("%s: %s", name, err.text);
        if (n != want || (n && memcmp(ids, expected, 4 * n) != 0)) fail_msg("%s: other ids for '%s'", name, text);
        fh_free(ids);
        if (!special)
            for (int skip = 0; skip < 2; skip++) {
                size_t wanted;
                char *reference = text_of(fh_json_get(row, skip ? "decoded_skip" : "decoded"), &wanted);
                char *got = decode(t, expected, n, skip, &bytes);
                if (bytes != wanted || memcmp(got, reference, bytes) != 0) fail_msg("%s: '%s' decoded as '%s'", name, reference, got);
                assert_stream_equals_decode(t, expected, n, skip);
                fh_free(got);
                free(reference);
            }
        free(expected);
    }
    free(text);
}

static void assert_reference(const char *tokenizer, const char *expected)
{
    fh_tokenizer *t = open_file(tokenizer);
    fh_json *rows = read_expected(expected);
    size_t n = 0;
    for (const fh_json *row = fh_json_first(rows); row; row = fh_json_next(row), n++) assert_row(t, row, tokenizer);
    assert_true(n >= 193);
    fh_json_free(rows);
    fh_tokenizer_close(t);
}

static void every_kind_gives_the_ids_and_texts_of_the_reference(void **state)
{
    static const char *const kinds[] = {"digits", "gemma", "gpt2", "gpt2-prefix", "llama2", "llama3", "metaspace", "neox", "qwen"};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        char tokenizer[100], expected[100];
        snprintf(tokenizer, sizeof tokenizer, "tests/golden/tok-%s/tokenizer.json", kinds[i]);
        snprintf(expected, sizeof expected, "tests/golden/tok-%s/expected.json", kinds[i]);
        assert_reference(tokenizer, expected);
    }
}

static void published(const char *name)
{
    const char *shared = getenv("FH_SHARED");
    char *tokenizer = fh_sprintf("%s/data/tokenizers/%s/tokenizer.json", shared ? shared : "../shared", name);
    char *expected = fh_sprintf("%s/golden/real-%s/expected.json", shared ? shared : "../shared", name);
    bool there = fh_file_exists(tokenizer) && fh_file_exists(expected);
    if (there) assert_reference(tokenizer, expected);
    else print_message("%s is not there: skipped\n", tokenizer);
    fh_free(tokenizer);
    fh_free(expected);
    if (!there) skip();
}
static void the_published_gpt2_gives_the_ids_and_texts_of_the_reference(void **state) { published("gpt2"); }
static void the_published_mistral_gives_the_ids_and_texts_of_the_reference(void **state) { published("mistral"); }

/* ---- cutting -------------------------------------------------------------------------------------------------------- */

#define SPLIT(regex) ",\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" regex "\"}," \
                     "\"behavior\":\"Isolated\"},{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}]}"
#define CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|"
#define OTHERS "| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+"
static const char GPT2[] = ",\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false}";
static const char LLAMA3[] = SPLIT(CONTRACTIONS "\\\\p{N}{1,3}" OTHERS);
static const char QWEN2[] = SPLIT(CONTRACTIONS "\\\\p{N}" OTHERS);

static void the_published_patterns_cut_as_the_reference_does(void **state)
{
    static const struct { const char *text, *gpt2, *llama3, *qwen2; } cases[] = {
        {"Hello, it's 12345 items!", "[Hello][,][ it]['s][ 12345][ items][!]", "[Hello][,][ it]['s][ ][123][45][ items][!]",
         "[Hello][,][ it]['s][ ][1][2][3][4][5][ items][!]"},
        {"  two  spaces\n\n\tx", "[ ][ two][ ][ spaces][\n\n][\t][x]", "[ ][ two][ ][ spaces][\n\n][\tx]", "[ ][ two][ ][ spaces][\n\n][\tx]"},
        {"DON'T stop", "[DON]['][T][ stop]", "[DON]['T][ stop]", "[DON]['T][ stop]"},
        {"x = 10_000;  // ok\r\n", "[x][ =][ 10][_][000][;][ ][ //][ ok][\r\n]", "[x][ =][ ][10][_][000][;][ ][ //][ ok][\r\n]",
         "[x][ =][ ][1][0][_][0][0][0][;][ ][ //][ ok][\r\n]"},
        {"$HOME/foo_bar", "[$][HOME][/][foo][_][bar]", "[$HOME][/foo][_bar]", "[$HOME][/foo][_bar]"},
        {"tail   ", "[tail][   ]", "[tail][   ]", "[tail][   ]"},
        /* U+180E is no space there; U+017F is an s without case. */
        {"a \xE1\xA0\x8E b'\xC5\xBF", "[a][ \xE1\xA0\x8E][ b]['][\xC5\xBF]", "[a][ \xE1\xA0\x8E][ b]['\xC5\xBF]", "[a][ \xE1\xA0\x8E][ b]['\xC5\xBF]"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_cut(GPT2, cases[i].text, cases[i].gpt2);
        assert_cut(LLAMA3, cases[i].text, cases[i].llama3);
        assert_cut(QWEN2, cases[i].text, cases[i].qwen2);
    }
}

static void patterns_mean_what_they_mean_in_the_reference(void **state)
{
    static const struct { const char *rest, *text, *expected; } cases[] = {
        {SPLIT("\\\\w+"), "a_\xCC\x81" "1-\xE2\x92\xB6", "[a_\xCC\x81" "1][-][\xE2\x92\xB6]"}, /* marks and alphabetic symbols are word characters */
        {SPLIT("\\\\W"), "ab,c", "[ab][,][c]"},
        {SPLIT("[\\\\w-]+"), "a-b c", "[a-b][ ][c]"},
        {SPLIT("\\\\b"), "ab, c", "[ab][, ][c]"},
        {SPLIT("\\\\B"), "abc d", "[a][b][c d]"},
        {SPLIT("\\\\h+"), "xbeefx  ", "[x][beef][x  ]"},
        {SPLIT("\\\\u4e2d"), "a\xE4\xB8\xAD" "b", "[a][\xE4\xB8\xAD][b]"},
        {SPLIT("(ab){2}+c"), "ababababc", "[ababababc]"}, /* a repeat of a repeat: possessive would find the last two alone */
        {SPLIT("x{2}?y"), "xxy", "[xxy]"},                /* optional, not lazy */
        {SPLIT("a{,2}b"), "aaab", "[a][aab]"},
        {SPLIT("x(?i)a|b"), "xAbxB", "[xA][b][xB]"},
        {SPLIT("(?m:a.b)"), "a\nb.", "[a\nb][.]"},
        {SPLIT("^."), "ab\ncd", "[a][b\n][c][d]"},
        {SPLIT("\\\\p{Han}+"), "a\xE4\xB8\xAD\xE3\x80\x81", "[a][\xE4\xB8\xAD][\xE3\x80\x81]"}, /* U+3001 is used with Han, but is not */
        {SPLIT("\\\\p{^L}+"), "a12b", "[a][12][b]"},
        {SPLIT("[[:punct:]]"), "a+b", "[a][+][b]"},
        {SPLIT("{"), "a{b", "[a][{][b]"},
        {SPLIT(""), "abc", "[a][b][c]"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) assert_cut(cases[i].rest, cases[i].text, cases[i].expected);
}

#define STEP(step) ",\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[" step ",{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}]}"
#define BEHAVE(how, invert) STEP("{\"type\":\"Split\",\"pattern\":{\"String\":\"-\"},\"behavior\":\"" how "\",\"invert\":" invert "}")

static void every_behaviour_joins_matches_as_it_says(void **state)
{
    static const struct { const char *rest, *expected; } cases[] = {
        {BEHAVE("Isolated", "false"), "[the][-][final][-][-][countdown][-]"},
        {BEHAVE("Isolated", "true"), "[the][-][final][-][-][countdown][-]"},
        {BEHAVE("Removed", "false"), "[the][final][countdown]"},
        {BEHAVE("Removed", "true"), "[-][-][-][-]"},
        {BEHAVE("MergedWithPrevious", "false"), "[the-][final-][-][countdown-]"},
        {BEHAVE("MergedWithNext", "false"), "[the][-final][-][-countdown][-]"},
        {BEHAVE("Contiguous", "false"), "[the][-][final][--][countdown][-]"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) assert_cut(cases[i].rest, "the-final--countdown-", cases[i].expected);
}

static void the_other_pre_tokenizers_cut_where_they_should(void **state)
{
    assert_cut(STEP("{\"type\":\"Digits\",\"individual_digits\":true}"), "a12\xC2\xBD" "b", "[a][1][2][\xC2\xBD][b]");
    assert_cut(STEP("{\"type\":\"Digits\"}"), "a12\xC2\xBD" "b", "[a][12\xC2\xBD][b]");
    assert_cut(STEP("{\"type\":\"WhitespaceSplit\"}"), " a,b\xC2\xA0 c\n", "[a,b][c]");
    assert_cut(STEP("{\"type\":\"Whitespace\"}"), " ab,;c d\n", "[ab][,;][c][d]");
    assert_cut(",\"pre_tokenizer\":{\"type\":\"ByteLevel\"}", "ab cd", "[ ab][ cd]");
    assert_cut(",\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"use_regex\":false}", " ab cd", "[ ab cd]");
    assert_cut(STEP("{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"always\"}"), "ab cd", "[_ab][_cd]");
    assert_cut(STEP("{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"never\",\"split\":false}"), "ab cd", "[ab_cd]");
    assert_cut(STEP("{\"type\":\"Metaspace\",\"replacement\":\"_\",\"add_prefix_space\":false}"), "ab  c", "[ab][_][_c]");
    assert_cut(STEP("{\"type\":\"Digits\"},{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"first\"}"), "ab1", "[_ab][1]");
}

/* ---- normalizing ------------------------------------------------------------------------------------------------------ */

static void assert_normal(const char *normalizer, const char *text, const char *expected)
{
    char *rest = fh_sprintf(",\"normalizer\":%s,\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false}", normalizer);
    char *json = byte_level(NULL, rest);
    fh_tokenizer *t = open_text(json, NULL);
    uint32_t *ids;
    size_t n, len;
    fh_err err;
    if (fh_tokenizer_encode(t, text, strlen(text), true, &ids, &n, &err) < 0) fail_msg("%s", err.text);
    char *got = decode(t, ids, n, false, &len);
    assert_string_equal(got, expected);
    fh_free(got);
    fh_free(ids);
    fh_tokenizer_close(t);
    fh_free(json);
    fh_free(rest);
}

static void normalizers_change_the_text_as_unicode_says(void **state)
{
    static const char nfc[] = "{\"type\":\"NFC\"}", nfd[] = "{\"type\":\"NFD\"}", nfkc[] = "{\"type\":\"NFKC\"}", nfkd[] = "{\"type\":\"NFKD\"}";
    assert_normal(nfc, "e\xCC\x81", "\xC3\xA9");
    assert_normal(nfc, "\xE2\x84\xAB", "\xC3\x85");
    assert_normal(nfc, "\xEF\xAC\x81", "\xEF\xAC\x81");
    assert_normal(nfc, "\xE1\x84\x80\xE1\x85\xA1", "\xEA\xB0\x80");
    assert_normal(nfc, "a\xCC\x81\xCC\x96z", "\xC3\xA1\xCC\x96z"); /* the marks change places first */
    assert_normal(nfd, "\xC3\xA9\xEA\xB0\x81", "e\xCC\x81\xE1\x84\x80\xE1\x85\xA1\xE1\x86\xA8");
    assert_normal(nfkc, "\xEF\xAC\x81\xC2\xB2\xEF\xBC\xA1", "fi2A");
    assert_normal(nfkd, "\xEF\xAC\x81\xC3\xA9", "fie\xCC\x81");
    assert_normal("{\"type\":\"Lowercase\"}", "\xC4\xB0\xC3\x89\xCE\xA3", "i\xCC\x87\xC3\xA9\xCF\x83");
    assert_normal("{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFD\"},{\"type\":\"StripAccents\"},{\"type\":\"Lowercase\"}]}", "\xC3\x89tude", "etude");
    assert_normal("{\"type\":\"Strip\",\"strip_left\":true,\"strip_right\":false}", " \xE3\x80\x80 a ", "a ");
    assert_normal("{\"type\":\"Strip\"}", " \t", "");
    assert_normal("{\"type\":\"Prepend\",\"prepend\":\">\"}", "a", ">a");
    assert_normal("{\"type\":\"Prepend\",\"prepend\":\">\"}", "", "");
    assert_normal("{\"type\":\"Replace\",\"pattern\":{\"String\":\"aa\"},\"content\":\"b\"}", "aaaac", "bbc");
    assert_normal("{\"type\":\"Replace\",\"pattern\":{\"Regex\":\" {2,}\"},\"content\":\"_\"}", "a  b   c d", "a_b_c d");
}

static void long_runs_of_marks_are_ordered_like_short_ones(void **state)
{
    /* 40 marks of class 230 and 40 of class 220 behind them: the order of equals is kept. */
    fh_buf in = {0}, out = {0};
    fh_buf_puts(&in, "q"), fh_buf_puts(&out, "q");
    for (int i = 0; i < 40; i++) fh_buf_puts(&in, i % 2 ? "\xCC\x81" : "\xCC\x80");
    for (int i = 0; i < 40; i++) fh_buf_puts(&in, i % 2 ? "\xCC\x96" : "\xCC\x97"), fh_buf_puts(&out, i % 2 ? "\xCC\x96" : "\xCC\x97");
    for (int i = 0; i < 40; i++) fh_buf_puts(&out, i % 2 ? "\xCC\x81" : "\xCC\x80");
    assert_normal("{\"type\":\"NFD\"}", in.data, out.data);
    fh_buf_free(&in);
    fh_buf_free(&out);
}

/* ---- merging ----------------------------------------------------------------------------------------------------------- */

#define MODEL(rest, vocab, merges) "{\"model\":{\"type\":\"BPE\"," rest "\"vocab\":{" vocab "},\"merges\":[" merges "]}"

static void the_lowest_rank_is_merged_first_and_of_equals_the_leftmost(void **state)
{
    fh_tokenizer *t = open_text(MODEL("", "\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"bc\":4,\"aa\":5,\"aab\":6,\"abc\":7", "\"b c\",\"a b\",[\"a\",\"a\"],\"aa b\",\"a bc\"") "}", NULL);
    IDS(t, "abc", true, 7);
    IDS(t, "ab", true, 3);
    IDS(t, "aaa", true, 5, 0);
    IDS(t, "aab", true, 0, 3); /* a b before a a */
    IDS(t, "aaaa", true, 5, 5);
    IDS(t, "xabx", true, 3);   /* no unk: dropped, and what is left meets */
    IDS(t, "axb", true, 3);
    fh_tokenizer_close(t);
    /* One occurrence at a time: the first merge of (a, a) makes a pair of lower rank, which goes before the second. */
    t = open_text(MODEL("", "\"a\":0,\"aa\":1,\"aaa\":2", "[\"aa\",\"a\"],[\"a\",\"a\"]") "}", NULL);
    IDS(t, "aaaa", true, 2, 0);
    fh_tokenizer_close(t);
}

static void a_repeated_merge_counts_where_it_stands_last(void **state)
{
    fh_tokenizer *t = open_text(MODEL("", "\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"bc\":4", "\"#version: 0.2\",\"a b\",\"b c\",\"a b\"") "}", NULL);
    IDS(t, "abc", true, 0, 4);
    fh_tokenizer_close(t);
}

static void characters_without_a_token_become_bytes_or_unk(void **state)
{
    fh_tokenizer *t = open_text(MODEL("\"byte_fallback\":true,\"unk_token\":\"?\",\"fuse_unk\":true,", "\"?\":0,\"a\":1,\"<0xC3>\":2,\"<0xA9>\":3,\"<0x0A>\":4", "") "}", NULL);
    IDS(t, "a\xC3\xA9\na", true, 1, 2, 3, 4, 1);
    IDS(t, "\xC3\xA8xya", true, 0, 1); /* A8 has no token: unk, and its neighbours join it */
    fh_tokenizer_close(t);
    t = open_text(MODEL("\"unk_token\":\"?\",", "\"?\":0,\"a\":1", "") "}", NULL);
    IDS(t, "xya", true, 0, 0, 1);
    fh_tokenizer_close(t);
    t = open_text(MODEL("\"unk_token\":\"?\",", "\"a\":1", "") "}", NULL);
    fh_err err;
    uint32_t *ids;
    size_t n;
    IDS(t, "aa", true, 1, 1);
    assert_int_equal(fh_tokenizer_encode(t, "ab", 2, true, &ids, &n, &err), FH_EFORMAT);
    assert_non_null(strstr(err.text, "U+0062"));
    fh_tokenizer_close(t);
}

/* ---- added tokens -------------------------------------------------------------------------------------------------------- */

#define LETTERS "\"a\":0,\"b\":1,\"c\":2,\" \":3,\"_\":4"
#define ADDED(list) ",\"added_tokens\":[" list "]}"
#define TOKEN(id, text, more) "{\"id\":" #id ",\"content\":\"" text "\"" more "}"

static void added_tokens_are_found_leftmost_and_longest(void **state)
{
    fh_tokenizer *t = open_text(MODEL("", LETTERS, "") ADDED(TOKEN(5, "ab", "") "," TOKEN(6, "abc", "") "," TOKEN(7, "cc", "") "," TOKEN(8, "bcca", "")), NULL);
    IDS(t, "abcc", true, 6, 2);
    IDS(t, "abbcca", true, 5, 8);
    IDS(t, "bccc", true, 1, 7, 2);
    IDS(t, "aab", true, 0, 5);
    assert_ids(t, "", true, 0, NULL);
    fh_tokenizer_close(t);
}

static void strip_and_single_word_look_around_a_match(void **state)
{
    fh_tokenizer *t = open_text(MODEL("", LETTERS, "") ADDED(TOKEN(5, "<l>", ",\"lstrip\":true") "," TOKEN(6, "<r>", ",\"rstrip\":true") "," TOKEN(7, "cc", ",\"single_word\":true")), NULL);
    IDS(t, "a  <l> b", true, 0, 5, 3, 1);
    IDS(t, "a <r>  b", true, 0, 3, 6, 1);
    IDS(t, "<r>  <l>", true, 6, 5);
    IDS(t, "cc cc", true, 7, 3, 7);
    IDS(t, "acc cc_ _cc", true, 0, 2, 2, 3, 2, 2, 4, 3, 4, 2, 2);
    fh_tokenizer_close(t);
}

static void tokens_are_looked_for_before_or_after_normalizing(void **state)
{
    fh_tokenizer *t = open_text(MODEL("", LETTERS, "") ",\"normalizer\":{\"type\":\"Lowercase\"}"
                                ADDED(TOKEN(5, "ABC", ",\"normalized\":true") "," TOKEN(6, "BB", ",\"normalized\":false") "," TOKEN(7, "CC", ",\"special\":true")), NULL);
    IDS(t, "aBcABC", true, 5, 5);
    IDS(t, "BBbb", true, 6, 1, 1);
    IDS(t, "CCcc", true, 7, 2, 2); /* special: not normalized, unless it says so */
    assert_true(fh_tokenizer_is_special(t, 7));
    assert_false(fh_tokenizer_is_special(t, 5));
    assert_false(fh_tokenizer_is_special(t, 1000));
    fh_tokenizer_close(t);
}

static void specials_typed_in_the_text_are_recognised_without_the_post_processor_too(void **state)
{
    fh_tokenizer *t = open_file("tests/golden/tok-llama2/tokenizer.json");
    IDS(t, "<s>", false, 1);
    IDS(t, "<s>", true, 1, 1);
    fh_tokenizer_close(t);
}

/* ---- the post-processor ------------------------------------------------------------------------------------------------------ */

#define SPECIALS TOKEN(5, "<s>", ",\"special\":true") "," TOKEN(6, "</s>", ",\"special\":true")
#define TEMPLATE ",\"post_processor\":{\"type\":\"Sequence\",\"processors\":[{\"type\":\"ByteLevel\"},{\"type\":\"TemplateProcessing\",\"single\":" \
    "[{\"SpecialToken\":{\"id\":\"<s>\",\"type_id\":0}},{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],\"special_tokens\":{\"<s>\":{\"id\":\"<s>\",\"ids\":[5],\"tokens\":[\"<s>\"]}}}]}"

static void the_configuration_overrides_the_template(void **state)
{
    static const char with[] = MODEL("", LETTERS, "") TEMPLATE ADDED(SPECIALS), without[] = MODEL("", LETTERS, "") ADDED(SPECIALS);
    static const struct { const char *text, *config; uint32_t ids[3]; size_t n; } cases[] = {
        {with, NULL, {5, 0}, 2},
        {with, "{}", {5, 0}, 2},
        {with, "{\"add_bos_token\":null,\"bos_token\":\"<s>\"}", {5, 0}, 2},
        {with, "{\"add_bos_token\":true,\"bos_token\":\"<s>\"}", {5, 0}, 2},
        {with, "{\"add_bos_token\":false,\"bos_token\":\"<s>\"}", {0}, 1},
        {with, "{\"add_eos_token\":true,\"eos_token\":{\"content\":\"</s>\",\"special\":true}}", {5, 0, 6}, 3},
        {without, NULL, {0}, 1},
        {without, "{\"add_bos_token\":false}", {0}, 1},
        {without, "{\"add_bos_token\":true,\"bos_token\":\"<s>\",\"add_eos_token\":true,\"eos_token\":\"</s>\"}", {5, 0, 6}, 3},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const uint32_t *prefix, *suffix;
        size_t n_prefix, n_suffix;
        fh_tokenizer *t = open_text(cases[i].text, cases[i].config);
        assert_ids(t, "a", true, cases[i].n, cases[i].ids);
        IDS(t, "a", false, 0);
        assert_int_equal(fh_tokenizer_affixes(t, &prefix, &n_prefix, &suffix, &n_suffix), FH_OK);
        assert_int_equal(n_prefix + 1 + n_suffix, cases[i].n);
        fh_tokenizer_close(t);
    }
}

/* ---- decoding ------------------------------------------------------------------------------------------------------------------- */

static void assert_decoded(const fh_tokenizer *t, const char *expected, size_t n, const uint32_t *ids)
{
    size_t len;
    char *got = decode(t, ids, n, false, &len);
    assert_string_equal(got, expected);
    fh_free(got);
    assert_stream_equals_decode(t, ids, n, false);
}
#define TEXT(t, expected, ...) assert_decoded(t, expected, sizeof((uint32_t[]){__VA_ARGS__}) / 4, (uint32_t[]){__VA_ARGS__})
#define BAD "\xEF\xBF\xBD"

static void bytes_that_are_no_character_decode_as_the_replacement(void **state)
{
    char *json = byte_level(NULL, "");
    fh_tokenizer *t = open_text(json, NULL);
    TEXT(t, "a" BAD "b", 'a', 0xE4, 0xBD, 'b'); /* one for the part of a character */
    TEXT(t, BAD BAD BAD, 0xFF, 0xFE, 0xED);
    TEXT(t, "\xE4\xBD\xA0", 0xE4, 0xBD, 0xA0);
    TEXT(t, "a", 'a', 256, UINT32_MAX); /* ids without a string are skipped */
    fh_tokenizer_close(t);
    fh_free(json);
    t = open_text(MODEL("\"byte_fallback\":true,", "\"a\":0,\"<0xE4>\":1,\"<0xBD>\":2,\"<0xA0>\":3", "")
                  ",\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"}]}}", NULL);
    TEXT(t, "a\xE4\xBD\xA0" "a", 0, 1, 2, 3, 0);
    TEXT(t, "a" BAD BAD "a", 0, 1, 2, 0);                /* one a byte */
    TEXT(t, BAD BAD BAD BAD, 1, 2, 3, 1);                /* a run is judged whole */
    fh_tokenizer_close(t);
}

static void decoders_do_what_they_say(void **state)
{
#define DECODER(steps) MODEL("", "\"_a\":0,\"b\":1,\" \":2,\"_\":3,\"c\":4", "") ",\"decoder\":{\"type\":\"Sequence\",\"decoders\":[" steps "]}}"
    fh_tokenizer *t = open_text(DECODER("{\"type\":\"Replace\",\"pattern\":{\"String\":\"_\"},\"content\":\" \"},{\"type\":\"Fuse\"},"
                                        "{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}"), NULL);
    TEXT(t, "ab  a", 0, 1, 3, 0);
    TEXT(t, "  a", 3, 2, 0);
    TEXT(t, "", 3);
    fh_tokenizer_close(t);
    t = open_text(DECODER("{\"type\":\"Fuse\"},{\"type\":\"Strip\",\"content\":\"_\",\"start\":2,\"stop\":1}"), NULL);
    TEXT(t, "_b", 3, 3, 3, 1, 3);
    TEXT(t, "", 3, 3, 3);
    fh_tokenizer_close(t);
    t = open_text(DECODER("{\"type\":\"Strip\",\"content\":\"_\",\"start\":1,\"stop\":0}"), NULL);
    TEXT(t, "aba", 0, 1, 0);
    fh_tokenizer_close(t);
    t = open_text(DECODER("{\"type\":\"Metaspace\",\"replacement\":\"_\"}"), NULL);
    TEXT(t, "a a b", 0, 0, 3, 1);
    fh_tokenizer_close(t);
    t = open_text(DECODER("{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"never\"}"), NULL);
    TEXT(t, " ab", 0, 1);
    fh_tokenizer_close(t);
    t = open_text(DECODER("{\"type\":\"Fuse\"},{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"bc\"},\"content\":\"x\"}"), NULL);
    TEXT(t, "_ax", 0, 1, 4); /* across tokens */
    fh_tokenizer_close(t);
    t = open_text(MODEL("", "\"_a\":0,\"b\":1", "") "}", NULL); /* no decoder: single spaces */
    TEXT(t, "_a b _a", 0, 1, 0);
    fh_tokenizer_close(t);
}

static void a_piece_is_the_token_s_own_bytes(void **state)
{
    size_t len;
    fh_tokenizer *t = open_file("tests/golden/tok-llama2/tokenizer.json");
    const char *piece = fh_tokenizer_piece(t, 3 + 0xE4, &len);
    assert_int_equal(len, 1);
    assert_memory_equal(piece, "\xE4", 1);
    piece = fh_tokenizer_piece(t, 383, &len);
    assert_int_equal(len, 1);
    assert_memory_equal(piece, " ", 1);
    assert_null(fh_tokenizer_piece(t, fh_tokenizer_size(t), &len));
    fh_tokenizer_close(t);
}

static void text_that_is_not_utf8_is_read_with_replacements(void **state)
{
    char *json = byte_level((const char *const[]){BAD, NULL}, ",\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false}");
    fh_tokenizer *t = open_text(json, NULL);
    assert_pieces(t, "a\xFF" "b", 3, "[a][" BAD "][b]");
    assert_pieces(t, "a\xE4\xBD", 3, "[a][" BAD "]");
    assert_pieces(t, "\xED\xA0\x80z", 4, "[\xEF][\xBF][\xBD][\xEF][\xBF][\xBD][\xEF][\xBF][\xBD][z]");
    fh_tokenizer_close(t);
    fh_free(json);
}

/* ---- threads, memory ------------------------------------------------------------------------------------------------------------- */

typedef struct crowd { fh_tokenizer *t; uint32_t *ids[8]; size_t n[8]; } crowd;

static void encode_once(void *ctx, size_t task, unsigned worker)
{
    crowd *c = ctx;
    fh_err err;
    static const char text[] = "Threads share one tokenizer: it's immutable, \xE4\xBD\xA0\xE5\xA5\xBD  12345.";
    if (fh_tokenizer_encode(c->t, text, sizeof text - 1, true, &c->ids[task], &c->n[task], &err) < 0) c->n[task] = 0;
}

static void many_threads_may_use_one_tokenizer(void **state)
{
    crowd c = {.t = open_file("tests/golden/tok-qwen/tokenizer.json")};
    fh_pool *pool;
    fh_err err;
    assert_int_equal(fh_pool_new(&pool, 4, &err), FH_OK);
    fh_pool_run(pool, 8, encode_once, &c);
    for (size_t i = 0; i < 8; i++) {
        assert_true(c.n[i] > 10);
        assert_int_equal(c.n[i], c.n[0]);
        assert_memory_equal(c.ids[i], c.ids[0], 4 * c.n[0]);
    }
    for (size_t i = 0; i < 8; i++) fh_free(c.ids[i]);
    fh_pool_free(pool);
    fh_tokenizer_close(c.t);
}

#ifdef FH_FAULTS
static const char EVERYTHING[] = MODEL("\"byte_fallback\":true,\"unk_token\":\"?\",", LETTERS ",\"?\":7,\"ab\":8,\"<0xC3>\":9", "\"a b\"")
    ",\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFKC\"},{\"type\":\"Lowercase\"},{\"type\":\"StripAccents\"},"
    "{\"type\":\"Prepend\",\"prepend\":\" \"},{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"x+\"},\"content\":\"b\"}]}"
    ",\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\w+|\\\\W+\"},\"behavior\":\"Isolated\"},"
    "{\"type\":\"Metaspace\",\"replacement\":\"_\"},{\"type\":\"Digits\"}]}"
    ",\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"_\"},\"content\":\" \"},{\"type\":\"ByteFallback\"},"
    "{\"type\":\"Fuse\"},{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":1}]}" TEMPLATE
    ADDED(SPECIALS "," TOKEN(10, "Ca", ",\"normalized\":true"));

static fh_status all_of_it(fh_err *err)
{
    static const char text[] = "a xxab \xC3\xA9\xCC\x81 caca <s> \xE1\xA0\x8E\xFF" "1ab"; /* not UTF-8, U+180E, all kinds of tokens */
    fh_tokenizer *t = NULL;
    uint32_t *ids = NULL;
    char *back = NULL;
    size_t n, len;
    fh_status rc = fh_tokenizer_open(&t, EVERYTHING, sizeof EVERYTHING - 1, "{\"add_eos_token\":true,\"eos_token\":\"</s>\"}", "t.json", NULL, err);
    if (rc == FH_OK) rc = fh_tokenizer_encode(t, text, sizeof text - 1, true, &ids, &n, err);
    if (rc == FH_OK) rc = fh_tokenizer_decode(t, ids, n, false, &back, &len, err);
    fh_free(back);
    fh_free(ids);
    fh_tokenizer_close(t);
    return rc;
}

static void every_allocation_may_fail(void **state)
{
    long n = 1;
    for (;; n++) {
        fh_err err = {FH_OK, ""};
        fh_fault_set(FH_FAULT_ALLOC, n);
        fh_status rc = all_of_it(&err);
        bool fired = fh_fault_fired();
        fh_fault_set(FH_FAULT_ALLOC, 0);
        if (!fired) {
            assert_int_equal(rc, FH_OK);
            break;
        }
        /* Where PCRE2 only loses its just-in-time code, all goes on. */
        if (rc == FH_OK) continue;
        if (rc != FH_ENOMEM) fail_msg("allocation %ld: %s", n, err.text);
        assert_non_null(strstr(err.text, "memory"));
    }
    assert_true(n > 100);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_kind_gives_the_ids_and_texts_of_the_reference),
        cmocka_unit_test(the_published_gpt2_gives_the_ids_and_texts_of_the_reference),
        cmocka_unit_test(the_published_mistral_gives_the_ids_and_texts_of_the_reference),
        cmocka_unit_test(the_published_patterns_cut_as_the_reference_does),
        cmocka_unit_test(patterns_mean_what_they_mean_in_the_reference),
        cmocka_unit_test(every_behaviour_joins_matches_as_it_says),
        cmocka_unit_test(the_other_pre_tokenizers_cut_where_they_should),
        cmocka_unit_test(normalizers_change_the_text_as_unicode_says),
        cmocka_unit_test(long_runs_of_marks_are_ordered_like_short_ones),
        cmocka_unit_test(the_lowest_rank_is_merged_first_and_of_equals_the_leftmost),
        cmocka_unit_test(a_repeated_merge_counts_where_it_stands_last),
        cmocka_unit_test(characters_without_a_token_become_bytes_or_unk),
        cmocka_unit_test(added_tokens_are_found_leftmost_and_longest),
        cmocka_unit_test(strip_and_single_word_look_around_a_match),
        cmocka_unit_test(tokens_are_looked_for_before_or_after_normalizing),
        cmocka_unit_test(specials_typed_in_the_text_are_recognised_without_the_post_processor_too),
        cmocka_unit_test(the_configuration_overrides_the_template),
        cmocka_unit_test(bytes_that_are_no_character_decode_as_the_replacement),
        cmocka_unit_test(decoders_do_what_they_say),
        cmocka_unit_test(a_piece_is_the_token_s_own_bytes),
        cmocka_unit_test(text_that_is_not_utf8_is_read_with_replacements),
        cmocka_unit_test(many_threads_may_use_one_tokenizer),
#ifdef FH_FAULTS
        cmocka_unit_test(every_allocation_may_fail),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
