/* Tokenizers: the reference's ids and texts, merging, added tokens, the post-processor, threads and memory. */
#include "tokenizer_cases.h"
#include "base/fault.h"

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

/* ---- merging ----------------------------------------------------------------------------------------------------------- */

static void the_lowest_rank_is_merged_first_and_of_equals_the_leftmost(void **state)
{
    fh_tokenizer *t = open_text(MODEL("", "\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"bc\":4,\"aa\":5,\"aab\":6,\"abc\":7",
                                      "\"b c\",\"a b\",[\"a\",\"a\"],\"aa b\",\"a bc\"") "}", NULL);
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
    fh_tokenizer *t = open_text(MODEL("", "\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"bc\":4", "\"#version: 0.2\",\"a b\",\"b c\",\"a b\"") "}",
                                NULL);
    IDS(t, "abc", true, 0, 4);
    fh_tokenizer_close(t);
}

static void characters_without_a_token_become_bytes_or_unk(void **state)
{
    fh_tokenizer *t = open_text(MODEL("\"byte_fallback\":true,\"unk_token\":\"?\",\"fuse_unk\":true,",
                                      "\"?\":0,\"a\":1,\"<0xC3>\":2,\"<0xA9>\":3,\"<0x0A>\":4", "") "}", NULL);
    IDS(t, "a\xC3\xA9\na", true, 1, 2, 3, 4, 1);
    IDS(t, "\xC3\xA8xya", true, 0, 1); /* A8 has no token: unk, and its neighbours join it */
    fh_tokenizer_close(t);
    t = open_text(MODEL("\"unk_token\":\"?\",", "\"?\":0,\"a\":1", "") "}", NULL);
    IDS(t, "xya", true, 0, 0, 1);
    fh_tokenizer_close(t);
    /* Both may take part in merges. */
    t = open_text(MODEL("\"byte_fallback\":true,", "\"a\":0,\"<0xC3>\":1,\"<0xA9>\":2,\"<0xC3><0xA9>\":3", "\"<0xC3> <0xA9>\"") "}", NULL);
    IDS(t, "a\xC3\xA9" "a", true, 0, 3, 0);
    fh_tokenizer_close(t);
    t = open_text(MODEL("\"unk_token\":\"?\",", "\"?\":0,\"a\":1,\"?a\":2", "\"? a\"") "}", NULL);
    IDS(t, "xa", true, 2);
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
    fh_tokenizer *t = open_text(MODEL("", LETTERS, "") ADDED(TOKEN(5, "ab", "") "," TOKEN(6, "abc", "") "," TOKEN(7, "cc",
        "") "," TOKEN(8, "bcca", "")), NULL);
    IDS(t, "abcc", true, 6, 2);
    IDS(t, "abbcca", true, 5, 8);
    IDS(t, "bccc", true, 1, 7, 2);
    IDS(t, "aab", true, 0, 5);
    assert_ids(t, "", true, 0, NULL);
    fh_tokenizer_close(t);
    t = open_text(MODEL("", LETTERS, "") ADDED(TOKEN(5, "ab", "") "," TOKEN(6, "cabb", "")), NULL);
        /* the one inside what the other begins */
    IDS(t, "abb", true, 5, 1);
    IDS(t, "cabc", true, 2, 5, 2);
    fh_tokenizer_close(t);
}

static void strip_and_single_word_look_around_a_match(void **state)
{
    fh_tokenizer *t = open_text(MODEL("", LETTERS, "") ADDED(TOKEN(5, "<l>", ",\"lstrip\":true") "," TOKEN(6, "<r>",
        ",\"rstrip\":true") "," TOKEN(7, "cc", ",\"single_word\":true")), NULL);
    IDS(t, "a  <l> b", true, 0, 5, 3, 1);
    IDS(t, "a <r>  b", true, 0, 3, 6, 1);
    IDS(t, "<r>  <l>", true, 6, 5);
    IDS(t, "cc cc", true, 7, 3, 7);
    IDS(t, "acc cc_ _cc", true, 0, 2, 2, 3, 2, 2, 4, 3, 4, 2, 2);
    fh_tokenizer_close(t);
    /* White space that one token took along is still looked at for others; lstrip does not take it twice. */
    t = open_text(MODEL("", LETTERS, "") ADDED(TOKEN(5, "<r>", ",\"rstrip\":true") "," TOKEN(3, " ", "")), NULL);
    IDS(t, "<r>  b", true, 5, 3, 3, 1);
    fh_tokenizer_close(t);
    t = open_text(MODEL("", LETTERS, "") ADDED(TOKEN(5, "<r>", ",\"rstrip\":true") "," TOKEN(6, "  ", ",\"lstrip\":true")), NULL);
    IDS(t, "<r>  b", true, 5, 1);
    fh_tokenizer_close(t);
}

static void tokens_are_looked_for_before_or_after_normalizing(void **state)
{
    fh_tokenizer *t = open_text(MODEL("", LETTERS, "") ",\"normalizer\":{\"type\":\"Lowercase\"}"
                                ADDED(TOKEN(5, "ABC", ",\"normalized\":true") "," TOKEN(6, "BB", ",\"normalized\":false") "," TOKEN(7,
                                    "CC", ",\"special\":true")), NULL);
    IDS(t, "aBcABC", true, 5, 5);
    IDS(t, "BBbb", true, 6, 1, 1);
    IDS(t, "CCcc", true, 7, 2, 2); /* special: not normalized, unless it says so */
    assert_true(fh_tokenizer_is_special(t, 7));
    assert_false(fh_tokenizer_is_special(t, 5));
    assert_false(fh_tokenizer_is_special(t, 1000));
    fh_tokenizer_close(t);
    /* What follows one is not the beginning of the text. */
    t = open_text(MODEL("", LETTERS, "") ",\"normalizer\":{\"type\":\"Lowercase\"},\"pre_tokenizer\":{\"type\":\"Metaspace\","
                  "\"replacement\":\"_\",\"prepend_scheme\":\"first\"}" ADDED(TOKEN(5, "ABC", ",\"normalized\":true")), NULL);
    IDS(t, "aABCa", true, 4, 0, 5, 0);
    IDS(t, "ABCa", true, 5, 0);
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
#define TEMPLATE \
    ",\"post_processor\":{\"type\":\"Sequence\",\"processors\":[{\"type\":\"ByteLevel\"},{\"type\":\"TemplateProcessing\",\"single\":[" \
    "{\"SpecialToken\":{\"id\":\"<s>\",\"type_id\":0}},{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}]," \
    "\"special_tokens\":{\"<s>\":{\"id\":\"<s>\",\"ids\":[5],\"tokens\":[\"<s>\"]}}}]}"

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
static const char EVERYTHING[] =
    MODEL("\"byte_fallback\":true,\"unk_token\":\"?\",", LETTERS ",\"?\":7,\"ab\":8,\"<0xC3>\":9", "\"a b\"")
    ",\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFKC\"},{\"type\":\"Lowercase\"},{\"type\":\"StripAccents\"},"
    "{\"type\":\"Prepend\",\"prepend\":\" \"},{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"x+\"},\"content\":\"b\"}]}"
    ",\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":["
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\w+|\\\\W+\"},\"behavior\":\"Isolated\"},"
    "{\"type\":\"Metaspace\",\"replacement\":\"_\"},{\"type\":\"Digits\"}]}"
    ",\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"_\"},\"content\":\" \"},"
    "{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":1}]}"
    TEMPLATE ADDED(SPECIALS "," TOKEN(10, "Ca", ",\"normalized\":true"));

static fh_status all_of_it(fh_err *err)
{
    static const char text[] = "a xxab \xC3\xA9\xCC\x81 caca <s> \xE1\xA0\x8E\xFF" "1ab"; /* not UTF-8, U+180E, all kinds of tokens */
    fh_tokenizer *t = NULL;
    uint32_t *ids = NULL;
    char *back = NULL;
    size_t n, len;
    fh_status rc = fh_tokenizer_open(&t, EVERYTHING, sizeof EVERYTHING - 1, "{\"add_eos_token\":true,\"eos_token\":\"</s>\"}", "t.json",
                                     NULL, err);
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
        cmocka_unit_test(the_lowest_rank_is_merged_first_and_of_equals_the_leftmost),
        cmocka_unit_test(a_repeated_merge_counts_where_it_stands_last),
        cmocka_unit_test(characters_without_a_token_become_bytes_or_unk),
        cmocka_unit_test(added_tokens_are_found_leftmost_and_longest),
        cmocka_unit_test(strip_and_single_word_look_around_a_match),
        cmocka_unit_test(tokens_are_looked_for_before_or_after_normalizing),
        cmocka_unit_test(specials_typed_in_the_text_are_recognised_without_the_post_processor_too),
        cmocka_unit_test(the_configuration_overrides_the_template),
        cmocka_unit_test(many_threads_may_use_one_tokenizer),
#ifdef FH_FAULTS
        cmocka_unit_test(every_allocation_may_fail),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
