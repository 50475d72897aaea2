/* Tokenizers that are wrong or hostile, and text that is: clear refusals, bounded work. */
#include "runtime/runtime.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MODEL(vocab, merges) "{\"model\":{\"type\":\"BPE\",\"vocab\":{" vocab "},\"merges\":[" merges "]}"
#define AB "\"a\":0,\"b\":1"
#define PLAIN MODEL(AB, "")

/* The message names all of `says`, parted by '|'. */
static void assert_refused(const char *text, size_t len, fh_status code, const char *says)
{
    fh_tokenizer *t = NULL;
    fh_err err = {FH_OK, ""};
    fh_status rc = fh_tokenizer_open(&t, text, len, NULL, "t.json", NULL, &err);
    if (rc != code || err.code != code) fail_msg("%.200s: %s: %s", text, fh_status_name(rc), err.text);
    assert_null(t);
    char *copy = strdup(says), *rest = NULL;
    for (char *word = strtok_r(copy, "|", &rest); word; word = strtok_r(NULL, "|", &rest))
        if (!strstr(err.text, word)) fail_msg("'%s' is not in '%s'", word, err.text);
    assert_non_null(strstr(err.text, "t.json"));
    free(copy);
}

static fh_tokenizer *opened(const char *text, const fh_job *job)
{
    fh_tokenizer *t = NULL;
    fh_err err;
    if (fh_tokenizer_open(&t, text, strlen(text), NULL, "t.json", job, &err) < 0) fail_msg("%s", err.text);
    return t;
}

typedef struct heard { char text[1000]; int n; } heard;
static void hear(void *ctx, fh_level level, const char *text)
{
    heard *h = ctx;
    snprintf(h->text, sizeof h->text, "%s", text);
    h->n += level == FH_WARN;
}

/* ---- the file ----------------------------------------------------------------------------------------------------- */

static void files_that_are_no_tokenizer_are_refused(void **state)
{
    static const struct { const char *text; fh_status code; const char *says; } cases[] = {
        {"", FH_EFORMAT, ""},
        {"version https://git-lfs.github.com/spec/v1", FH_EFORMAT, ""},
        {"[]", FH_EFORMAT, "tokenizer.json"},
        {"{}", FH_EFORMAT, "model|tokenizer.json"},
        {"{\"model\":3}", FH_EFORMAT, "model"},
        {"{\"version\":\"2.0\",\"model\":{}}", FH_EUNSUPPORTED, "version|2.0"},
        {"{\"version\":1.0,\"model\":{}}", FH_EFORMAT, "version"},
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}", FH_EUNSUPPORTED, "Unigram|BPE"},
        {"{\"model\":{\"type\":\"WordPiece\",\"vocab\":{}}}", FH_EUNSUPPORTED, "WordPiece"},
        {"{\"model\":{\"vocab\":{\"a\":0}}}", FH_EUNSUPPORTED, "model.type"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[]}}", FH_EFORMAT, "model.vocab|no token"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":[],\"merges\":[]}}", FH_EFORMAT, "model.vocab"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0}}}", FH_EFORMAT, "model.merges"},
        {"{\"model\":{\"type\":\"BPE\",\"end_of_word_suffix\":\"</w>\",\"vocab\":{\"a\":0},\"merges\":[]}}", FH_EUNSUPPORTED,
            "end_of_word_suffix|</w>"},
        {"{\"model\":{\"type\":\"BPE\",\"continuing_subword_prefix\":\"##\",\"vocab\":{\"a\":0},\"merges\":[]}}", FH_EUNSUPPORTED, "##"},
        {"{\"model\":{\"type\":\"BPE\",\"fuse_unk\":1,\"vocab\":{\"a\":0},\"merges\":[]}}", FH_EFORMAT, "fuse_unk"},
        {"{\"model\":{\"type\":\"BPE\",\"unk_token\":1,\"vocab\":{\"a\":0},\"merges\":[]}}", FH_EFORMAT, "unk_token"},
        {MODEL("\"a\":-1", "") "}", FH_EFORMAT, "'a'|whole number"},
        {MODEL("\"a\":1.0", "") "}", FH_EFORMAT, "'a'"},
        {MODEL("\"a\":4194304", "") "}", FH_EFORMAT, "4194304"},
        {MODEL("\"a\":1e300", "") "}", FH_EFORMAT, "'a'"},
        {MODEL("\"a\":\"0\"", "") "}", FH_EFORMAT, "'a'"},
        {MODEL("\"a\":0,\"a\":1", "") "}", FH_EFORMAT, "a"},
        {MODEL("\"a\\u0000\":0", "") "}", FH_EFORMAT, ""},
        {MODEL("\"\\ud800\":0", "") "}", FH_EFORMAT, ""},
        {MODEL("\"\xED\xA0\x80\":0", "") "}", FH_EFORMAT, ""},
        {PLAIN ",\"added_tokens\":{}}", FH_EFORMAT, "added_tokens"},
        {PLAIN ",\"added_tokens\":[3]}", FH_EFORMAT, "added_tokens|content"},
        {PLAIN ",\"added_tokens\":[{\"content\":\"x\"}]}", FH_EFORMAT, "'x'"},
        {PLAIN ",\"added_tokens\":[{\"id\":2,\"content\":\"x\",\"special\":\"yes\"}]}", FH_EFORMAT, "special"},
        {PLAIN ",\"added_tokens\":[{\"id\":2,\"content\":\"x\",\"lstrip\":2}]}", FH_EFORMAT, "added_tokens[0]|lstrip"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) assert_refused(cases[i].text, strlen(cases[i].text), cases[i].code,
        cases[i].says);
}

static void two_tokens_with_one_id_are_named(void **state)
{
    static const char vocab[] = MODEL("\"a\":0,\"b\":0", "") "}";
    static const char added[] = PLAIN ",\"added_tokens\":[{\"id\":1,\"content\":\"<s>\"}]}";
    assert_refused(vocab, sizeof vocab - 1, FH_ECHECK, "id 0|'a'|'b'");
    assert_refused(added, sizeof added - 1, FH_ECHECK, "id 1|'b'|'<s>'");
    /* What a token says is shown harmlessly. */
    static const char escapes[] = MODEL("\"\\u001b[31m\":0,\"\\u202eb\":0", "") "}";
    assert_refused(escapes, sizeof escapes - 1, FH_ECHECK, "\\x1b[31m|\\u{202e}b");
}

static void ids_without_a_token_and_ids_that_disagree_are_told(void **state)
{
    heard h = {.n = 0};
    fh_job job = {.message = hear, .ctx = &h};
    size_t len;
    fh_tokenizer *t = opened(MODEL("\"a\":0,\"b\":5,\"c\":9", "") "}", &job);
    assert_int_equal(h.n, 1);
    assert_non_null(strstr(h.text, "7 of the ids below 10"));
    assert_non_null(strstr(h.text, "first: 1"));
    assert_int_equal(fh_tokenizer_size(t), 10);
    assert_null(fh_tokenizer_piece(t, 3, &len));
    fh_tokenizer_close(t);
    t = opened(PLAIN ",\"added_tokens\":[{\"id\":7,\"content\":\"b\"}]}", &job);
    assert_int_equal(h.n, 2);
    assert_non_null(strstr(h.text, "says id 7"));
    assert_int_equal(fh_tokenizer_size(t), 2);
    fh_tokenizer_close(t);
}

static void merges_that_fit_no_vocabulary_are_refused(void **state)
{
    static const struct { const char *merges, *says; } cases[] = {
        {"\"a b\",\"a c\"", "model.merges[1]|'c'"}, {"\"a b\",\"a a\"", "model.merges[1]|'aa'"}, {"[\"c\",\"a\"]", "'c'"}, {"\"ab\"",
            "model.merges[0]"},
        {"\"a b c\"", "model.merges[0]"}, {"[\"a\"]", "model.merges[0]"}, {"[\"a\",\"b\",\"c\"]", "model.merges[0]"}, {"[\"a\",1]",
            "model.merges[0]"},
        {"7", "model.merges[0]"}, {"null", "model.merges[0]"}, {"\" b\"", "model.merges[0]"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *text = fh_sprintf("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[%s]}}", cases[i].merges);
        assert_refused(text, strlen(text), FH_EFORMAT, cases[i].says);
        fh_free(text);
    }
}

static void more_merges_than_a_vocabulary_has_use_for_are_refused(void **state)
{
    fh_buf b = {0};
    fh_buf_puts(&b, "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[");
    for (int i = 0; i < 100000; i++) fh_buf_puts(&b, "\"a b\",");
    fh_buf_puts(&b, "\"a b\"]}}");
    assert_refused(b.data, b.len, FH_EUNSUPPORTED, "model.merges|100001");
    fh_buf_free(&b);
}

/* ---- the steps ------------------------------------------------------------------------------------------------------- */

static void steps_that_are_not_known_are_refused_by_name(void **state)
{
    static const struct { const char *stage, *object; fh_status code; const char *says; } cases[] = {
        {"normalizer", "{\"type\":\"Precompiled\"}", FH_EUNSUPPORTED, "normalizer|Precompiled|NFC"},
        {"normalizer", "{\"type\":\"BertNormalizer\"}", FH_EUNSUPPORTED, "BertNormalizer"},
        {"normalizer", "[]", FH_EFORMAT, "normalizer"},
        {"normalizer", "{}", FH_EFORMAT, "normalizer|type"},
        {"normalizer", "{\"type\":\"Sequence\"}", FH_EFORMAT, "normalizers"},
        {"normalizer", "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},{\"type\":\"Nmt\"}]}", FH_EUNSUPPORTED,
            "normalizer.normalizers[1]|Nmt"},
        {"normalizer", "{\"type\":\"Prepend\"}", FH_EFORMAT, "prepend"},
        {"normalizer", "{\"type\":\"Replace\",\"content\":\"x\"}", FH_EFORMAT, "pattern"},
        {"normalizer", "{\"type\":\"Replace\",\"content\":\"x\",\"pattern\":{\"Regex\":\"a\",\"String\":\"b\"}}", FH_EFORMAT, "pattern"},
        {"normalizer", "{\"type\":\"Replace\",\"pattern\":{\"String\":\"b\"}}", FH_EFORMAT, "content"},
        {"pre_tokenizer", "{\"type\":\"BertPreTokenizer\"}", FH_EUNSUPPORTED, "pre_tokenizer|BertPreTokenizer|ByteLevel"},
        {"pre_tokenizer", "{\"type\":\"Punctuation\"}", FH_EUNSUPPORTED, "Punctuation"},
        {"pre_tokenizer", "{\"type\":\"Split\",\"pattern\":{\"String\":\"a\"}}", FH_EFORMAT, "behavior"},
        {"pre_tokenizer", "{\"type\":\"Split\",\"pattern\":{\"String\":\"a\"},\"behavior\":\"isolated\"}", FH_EFORMAT, "behavior|Isolated"},
        {"pre_tokenizer", "{\"type\":\"Split\",\"pattern\":\"a\",\"behavior\":\"Isolated\"}", FH_EFORMAT, "pattern"},
        {"pre_tokenizer", "{\"type\":\"ByteLevel\",\"use_regex\":\"no\"}", FH_EFORMAT, "use_regex"},
        {"pre_tokenizer", "{\"type\":\"Metaspace\",\"replacement\":\"ab\"}", FH_EFORMAT, "replacement"},
        {"pre_tokenizer", "{\"type\":\"Metaspace\",\"replacement\":\"\"}", FH_EFORMAT, "replacement"},
        {"pre_tokenizer", "{\"type\":\"Metaspace\",\"prepend_scheme\":\"sometimes\"}", FH_EFORMAT, "prepend_scheme"},
        {"decoder", "{\"type\":\"WordPiece\"}", FH_EUNSUPPORTED, "decoder|WordPiece"},
        {"decoder", "{\"type\":\"Strip\",\"content\":\"ab\",\"start\":1,\"stop\":0}", FH_EFORMAT, "content"},
        {"decoder", "{\"type\":\"Strip\",\"content\":\"a\",\"start\":-1,\"stop\":0}", FH_EFORMAT, "start"},
        {"post_processor", "{\"type\":\"RobertaProcessing\"}", FH_EUNSUPPORTED, "post_processor|RobertaProcessing"},
        {"post_processor", "{\"type\":\"TemplateProcessing\"}", FH_EFORMAT, "single"},
        {"post_processor", "{\"type\":\"TemplateProcessing\",\"single\":[]}", FH_EFORMAT, "sequence A"},
        {"post_processor", "{\"type\":\"TemplateProcessing\",\"single\":[{\"Sequence\":{\"id\":\"B\"}}]}", FH_EFORMAT, "sequence A"},
        {"post_processor", "{\"type\":\"TemplateProcessing\",\"single\":[{\"Sequence\":{\"id\":\"A\"}},{\"Sequence\":{\"id\":\"A\"}}]}",
            FH_EFORMAT, "once"},
        {"post_processor",
            "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"x\"}},{\"Sequence\":{\"id\":\"A\"}}]}", FH_EFORMAT,
                "'x'"},
        {"post_processor", "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"x\"}},{\"Sequence\":{\"id\":\"A\"}}],"
                           "\"special_tokens\":{\"x\":{\"ids\":[2]}}}", FH_EFORMAT, "'x'"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *text = fh_sprintf("%s,\"%s\":%s}", PLAIN, cases[i].stage, cases[i].object);
        assert_refused(text, strlen(text), cases[i].code, cases[i].says);
        fh_free(text);
    }
}

static void patterns_that_cannot_be_had_are_refused_by_name(void **state)
{
    static const struct { const char *regex; fh_status code; const char *says; } cases[] = {
        {"a(b", FH_EUNSUPPORTED, "a(b|parenthesis"}, {"ab)", FH_EUNSUPPORTED, "parenthesis"}, {"[ab", FH_EUNSUPPORTED, "class"},
        {"[a[bc]]", FH_EUNSUPPORTED, "class inside a class"}, {"[a-z&&[^b]]", FH_EUNSUPPORTED, "intersection"}, {"[]", FH_EUNSUPPORTED,
            "empty class"},
        {"(a)\\\\1", FH_EUNSUPPORTED, "escape"}, {"\\\\k<a>", FH_EUNSUPPORTED, "escape"}, {"(*LIMIT_MATCH=9)a", FH_EUNSUPPORTED, "verb"},
        {"(?R)", FH_EUNSUPPORTED, "group"}, {"(?1)(a)", FH_EUNSUPPORTED, "group"}, {"a\\\\", FH_EUNSUPPORTED, "backslash"},
        {"\\\\p{Klingon}", FH_EFORMAT, "Klingon"}, {"\\\\pL", FH_EUNSUPPORTED, "braces"}, {"[\\\\W]", FH_EUNSUPPORTED,
            "\\W inside a class"},
        {"\\\\xff", FH_EUNSUPPORTED, "byte"}, {"*a", FH_EFORMAT, "*a"}, {"{2}a", FH_EUNSUPPORTED, "repeat of nothing"}, {"[b-a]",
            FH_EFORMAT, "[b-a]"},
        {"(?<=a*)b", FH_EFORMAT, "lookbehind"}, {"(((a{1,1000}){1,1000}){1,1000}){1,1000}", FH_EFORMAT, "too large"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *text = fh_sprintf("%s,\"pre_tokenizer\":{\"type\":\"Split\",\"behavior\":\"Isolated\",\"pattern\":{\"Regex\":\"%s\"}}}",
                                PLAIN, cases[i].regex);
        assert_refused(text, strlen(text), cases[i].code, cases[i].says);
        fh_free(text);
    }
    fh_buf b = {0};
    fh_buf_puts(&b, PLAIN ",\"pre_tokenizer\":{\"type\":\"Split\",\"behavior\":\"Isolated\",\"pattern\":{\"Regex\":\"");
    for (int i = 0; i < 100000; i++) fh_buf_puts(&b, "(");
    fh_buf_puts(&b, "\"}}}");
    assert_refused(b.data, b.len, FH_EUNSUPPORTED, "64 groups");
    fh_buf_free(&b);
}

static void long_and_deep_sequences_are_refused(void **state)
{
    for (int deep = 0; deep < 2; deep++) {
        fh_buf b = {0};
        fh_buf_puts(&b, PLAIN ",\"pre_tokenizer\":");
        if (deep) {
            for (int i = 0; i < 20; i++) fh_buf_puts(&b, "{\"type\":\"Sequence\",\"pretokenizers\":[");
            for (int i = 0; i < 20; i++) fh_buf_puts(&b, "]}");
        } else {
            fh_buf_puts(&b, "{\"type\":\"Sequence\",\"pretokenizers\":[");
            for (int i = 0; i < 1000; i++) fh_buf_puts(&b, "{\"type\":\"Digits\"},");
            fh_buf_puts(&b, "{\"type\":\"Digits\"}]}");
        }
        fh_buf_puts(&b, "}");
        assert_refused(b.data, b.len, FH_EUNSUPPORTED, deep ? "8 deep|pretokenizers[0]" : "32 steps");
        fh_buf_free(&b);
    }
    /* Empty ones at the bottom are no trouble. */
    fh_tokenizer_close(opened(PLAIN ",\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Sequence\","
    "\"pretokenizers\":[]}]}}", NULL));
}

static void a_file_cut_off_anywhere_is_refused(void **state)
{
    static const char text[] = MODEL("\"a\":0,\"b\":1,\"ab\":2",
                                     "\"a b\"") ",\"added_tokens\":[{\"id\":3,\"content\":\"<s>\",\"special\":true}],"
        "\"normalizer\":{\"type\":\"NFC\"},\"pre_tokenizer\":{\"type\":\"Split\",\"behavior\":\"Isolated\","
        "\"pattern\":{\"Regex\":\"a+\"}}}";
    for (size_t len = 0; len < sizeof text - 1; len++) {
        fh_tokenizer *t = NULL;
        fh_err err;
        char *copy = malloc(len ? len : 1);
        memcpy(copy, text, len);
        assert_int_equal(fh_tokenizer_open(&t, copy, len, NULL, "t.json", NULL, &err), FH_EFORMAT);
        free(copy);
    }
    fh_tokenizer_close(opened(text, NULL));
}

static void a_configuration_that_does_not_fit_is_refused(void **state)
{
    static const struct { const char *config, *says; } cases[] = {
        {"{\"add_bos_token\":true}", "bos_token"}, {"{\"add_bos_token\":true,\"bos_token\":null}", "bos_token"},
        {"{\"add_eos_token\":true,\"eos_token\":\"</s>\"}", "</s>"}, {"{\"add_bos_token\":1}", "add_bos_token"}, {"{",
            "tokenizer_config.json"},
    };
    static const char text[] = PLAIN "}";
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fh_tokenizer *t = NULL;
        fh_err err;
        assert_int_equal(fh_tokenizer_open(&t, text, sizeof text - 1, cases[i].config, "t.json", NULL, &err), FH_EFORMAT);
        if (!strstr(err.text, cases[i].says)) fail_msg("%s", err.text);
        assert_null(t);
    }
}

/* ---- bounded work ------------------------------------------------------------------------------------------------------ */

static void a_pattern_that_backtracks_for_ever_is_stopped(void **state)
{
    static const char *const patterns[] = {"(x+x+)+y", "(x|x)*y", "(?:x?){30}x{30}y", "((x*)*)*y"};
    char text[3000];
    memset(text, 'x', sizeof text);
    memcpy(text + sizeof text - 2, " y", 2); /* so that no engine can say at once that there is no y */
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++) {
        char *json = fh_sprintf("%s,\"pre_tokenizer\":{\"type\":\"Split\",\"behavior\":\"Isolated\",\"pattern\":{\"Regex\":\"%s\"}}}",
                                PLAIN, patterns[i]);
        fh_tokenizer *t = opened(json, NULL);
        uint32_t *ids;
        size_t n;
        fh_err err = {FH_OK, ""};
        fh_status rc = fh_tokenizer_encode(t, text, sizeof text, true, &ids, &n, &err);
        if (rc != FH_OK) {
            assert_int_equal(rc, FH_EFAIL);
            assert_non_null(strstr(err.text, patterns[i]));
            assert_non_null(strstr(err.text, "limit"));
        } else {
            fh_free(ids); /* the engine saw through it */
        }
        if (!i) assert_int_equal(rc, FH_EFAIL);
        fh_tokenizer_close(t);
        fh_free(json);
    }
}

static size_t count_ids(const fh_tokenizer *t, const fh_buf *text)
{
    uint32_t *ids;
    size_t n;
    fh_err err;
    if (fh_tokenizer_encode(t, text->data, text->len, true, &ids, &n, &err) < 0) fail_msg("%s", err.text);
    fh_free(ids);
    return n;
}

static void repeat(fh_buf *b, const char *s, size_t bytes)
{
    b->len = 0;
    while (b->len < bytes) fh_buf_puts(b, s);
    assert_false(b->failed);
}

static void a_megabyte_of_anything_takes_linear_work(void **state)
{
    static const char *const files[] = {"gpt2", "llama2", "neox", "qwen", "gemma", "llama3", "metaspace", "digits", "gpt2-prefix"};
    static const char *const texts[] = {"x", " ", "ab", "\n ", "\xE4\xBD\xA0", "a\xCC\x81", "\xCC\x81", "<|special|>", "<|special|", "'",
        "\xFF"};
    fh_buf b = {0};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char *path = fh_sprintf("tests/golden/tok-%s/tokenizer.json", files[i]), *json;
        size_t len;
        fh_err err;
        if (fh_file_read(&json, &len, path, 1 << 20, &err) < 0) fail_msg("%s", err.text);
        fh_tokenizer *t = opened(json, NULL);
        for (size_t k = 0; k < sizeof texts / sizeof *texts; k++) {
            repeat(&b, texts[k], k < 2 ? 1 << 20 : 1 << 16);
            assert_true(count_ids(t, &b) > 100);
        }
        fh_tokenizer_close(t);
        fh_free(json);
        fh_free(path);
    }
    fh_buf_free(&b);
}

static void marks_in_the_wrong_order_take_linear_work(void **state)
{
    fh_tokenizer *t = opened(MODEL("\"\\u0301\":0,\"\\u0316\":1", "") ",\"normalizer\":{\"type\":\"NFC\"}}", NULL);
    fh_buf b = {0};
    repeat(&b, "\xCC\x81", 200000);
    for (size_t i = 0; i < 100000; i++) fh_buf_puts(&b, "\xCC\x96");
    assert_int_equal(count_ids(t, &b), 200000);
    fh_buf_free(&b);
    fh_tokenizer_close(t);
}

static void a_megabyte_token_and_ones_that_begin_like_it_are_found_in_linear_work(void **state)
{
    fh_buf a = {0}, json = {0};
    repeat(&a, "a", 1 << 20);
    fh_buf_puts(&json, PLAIN ",\"added_tokens\":[{\"id\":2,\"content\":\"");
    fh_buf_add(&json, a.data, a.len);
    fh_buf_puts(&json, "b\"},{\"id\":3,\"content\":\"aa\"}]}");
    fh_tokenizer *t = opened(json.data, NULL);
    assert_int_equal(count_ids(t, &a), a.len / 2); /* at each place the long one might begin */
    fh_buf_puts(&a, "b");
    assert_int_equal(count_ids(t, &a), 1);
    fh_tokenizer_close(t);
    /* In the vocabulary, with nothing that leads to it. */
    json.len = 0;
    fh_buf_puts(&json, "{\"model\":{\"type\":\"BPE\",\"ignore_merges\":true,\"merges\":[],\"vocab\":{\"a\":0,\"b\":1,\"");
    fh_buf_add(&json, a.data, a.len);
    fh_buf_puts(&json, "\":2}}}");
    t = opened(json.data, NULL);
    assert_int_equal(count_ids(t, &a), 1);
    fh_tokenizer_close(t);
    fh_buf_free(&json);
    fh_buf_free(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(files_that_are_no_tokenizer_are_refused),
        cmocka_unit_test(two_tokens_with_one_id_are_named),
        cmocka_unit_test(ids_without_a_token_and_ids_that_disagree_are_told),
        cmocka_unit_test(merges_that_fit_no_vocabulary_are_refused),
        cmocka_unit_test(more_merges_than_a_vocabulary_has_use_for_are_refused),
        cmocka_unit_test(steps_that_are_not_known_are_refused_by_name),
        cmocka_unit_test(patterns_that_cannot_be_had_are_refused_by_name),
        cmocka_unit_test(long_and_deep_sequences_are_refused),
        cmocka_unit_test(a_file_cut_off_anywhere_is_refused),
        cmocka_unit_test(a_configuration_that_does_not_fit_is_refused),
        cmocka_unit_test(a_pattern_that_backtracks_for_ever_is_stopped),
        cmocka_unit_test(a_megabyte_of_anything_takes_linear_work),
        cmocka_unit_test(marks_in_the_wrong_order_take_linear_work),
        cmocka_unit_test(a_megabyte_token_and_ones_that_begin_like_it_are_found_in_linear_work),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
