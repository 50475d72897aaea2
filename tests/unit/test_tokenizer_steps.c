/* The steps of tokenizers one by one: what cuts, what normalizes, what decodes. */
#include "tokenizer_cases.h"

/* ---- cutting -------------------------------------------------------------------------------------------------------- */

#define BYTES "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}"
#define STEP(step) ",\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[" step "," BYTES "]}"
#define SPLIT(regex) STEP("{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" regex "\"},\"behavior\":\"Isolated\"}")
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
        {"  two  spaces\n\n\tx", "[ ][ two][ ][ spaces][\n\n][\t][x]", "[ ][ two][ ][ spaces][\n\n][\tx]",
            "[ ][ two][ ][ spaces][\n\n][\tx]"},
        {"DON'T stop", "[DON]['][T][ stop]", "[DON]['T][ stop]", "[DON]['T][ stop]"},
        {"x = 10_000;  // ok\r\n", "[x][ =][ 10][_][000][;][ ][ //][ ok][\r\n]", "[x][ =][ ][10][_][000][;][ ][ //][ ok][\r\n]",
         "[x][ =][ ][1][0][_][0][0][0][;][ ][ //][ ok][\r\n]"},
        {"$HOME/foo_bar", "[$][HOME][/][foo][_][bar]", "[$HOME][/foo][_bar]", "[$HOME][/foo][_bar]"},
        {"tail   ", "[tail][   ]", "[tail][   ]", "[tail][   ]"},
        /* U+180E is no space there; U+017F is an s without case. */
        {"a\xE1\xA0\x8E!\xE1\xA0\x8E", "[a][\xE1\xA0\x8E!\xE1\xA0\x8E]", "[a][\xE1\xA0\x8E!\xE1\xA0\x8E]",
            "[a][\xE1\xA0\x8E!\xE1\xA0\x8E]"},
        {"a \xE1\xA0\x8E b'\xC5\xBF", "[a][ \xE1\xA0\x8E][ b]['][\xC5\xBF]", "[a][ \xE1\xA0\x8E][ b]['\xC5\xBF]",
            "[a][ \xE1\xA0\x8E][ b]['\xC5\xBF]"},
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
        {SPLIT("\\\\w+"), "a_\xCC\x81" "1-\xE2\x92\xB6", "[a_\xCC\x81" "1][-][\xE2\x92\xB6]"},
            /* marks and alphabetic symbols are word characters */
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
        /* A search looks a few bytes ahead only, but comes to the end. */
        {SPLIT("y"), "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxyxxxxxxxxxxxxxxxxxxxxxx",
            "[xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx][y][xxxxxxxxxxxxxxxxxxxxxx]"},
        {SPLIT("y"), "a\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9y",
         "[a\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9][y]"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) assert_cut(cases[i].rest, cases[i].text, cases[i].expected);
}

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
    assert_cut(STEP("{\"type\":\"Digits\"},{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"first\"}"), "ab1",
               "[_ab][1]");
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
    static const char nfc[] = "{\"type\":\"NFC\"}", nfd[] = "{\"type\":\"NFD\"}", nfkc[] = "{\"type\":\"NFKC\"}",
        nfkd[] = "{\"type\":\"NFKD\"}";
    assert_normal(nfc, "e\xCC\x81", "\xC3\xA9");
    assert_normal(nfc, "\xE2\x84\xAB", "\xC3\x85");
    assert_normal(nfc, "\xEF\xAC\x81", "\xEF\xAC\x81");
    assert_normal(nfc, "\xE1\x84\x80\xE1\x85\xA1", "\xEA\xB0\x80");
    assert_normal(nfc, "a\xCC\x81\xCC\x96z", "\xC3\xA1\xCC\x96z"); /* the marks change places first */
    assert_normal(nfd, "\xC3\xA9\xEA\xB0\x81", "e\xCC\x81\xE1\x84\x80\xE1\x85\xA1\xE1\x86\xA8");
    assert_normal(nfkc, "\xEF\xAC\x81\xC2\xB2\xEF\xBC\xA1", "fi2A");
    assert_normal(nfkd, "\xEF\xAC\x81\xC3\xA9", "fie\xCC\x81");
    assert_normal("{\"type\":\"Lowercase\"}", "\xC4\xB0\xC3\x89\xCE\xA3", "i\xCC\x87\xC3\xA9\xCF\x83");
    assert_normal("{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFD\"},{\"type\":\"StripAccents\"},{\"type\":\"Lowercase\"}]}",
                  "\xC3\x89tude", "etude");
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
#define DECODER(steps) MODEL("", "\"_a\":0,\"b\":1,\" \":2,\"_\":3,\"c\":4", "") ",\"decoder\":{\"type\":\"Sequence\"," \
    "\"decoders\":[" steps "]}}"
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
    t = open_text(DECODER("{\"type\":\"Fuse\"},{\"type\":\"Metaspace\",\"replacement\":\"_\"}"), NULL);
    TEXT(t, "aa", 0, 3, 0); /* one string, the first */
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_published_patterns_cut_as_the_reference_does),
        cmocka_unit_test(patterns_mean_what_they_mean_in_the_reference),
        cmocka_unit_test(every_behaviour_joins_matches_as_it_says),
        cmocka_unit_test(the_other_pre_tokenizers_cut_where_they_should),
        cmocka_unit_test(normalizers_change_the_text_as_unicode_says),
        cmocka_unit_test(long_runs_of_marks_are_ordered_like_short_ones),
        cmocka_unit_test(bytes_that_are_no_character_decode_as_the_replacement),
        cmocka_unit_test(decoders_do_what_they_say),
        cmocka_unit_test(a_piece_is_the_token_s_own_bytes),
        cmocka_unit_test(text_that_is_not_utf8_is_read_with_replacements),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
