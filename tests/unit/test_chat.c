/* Conversations: what published templates write, byte for byte, and what is done about templates that are not known. */
#include "base/fault.h"
#include "runtime/runtime.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static void ok(fh_status rc, const fh_err *err)
{
    if (rc < 0) fail_msg("%s", err->text);
}

/* The tokenizer_config.json of a model with these tokens. */
static char *config_of(const char *bos, const char *eos)
{
    fh_json *j = fh_json_object();
    fh_json_add_string(fh_json_add_object(j, "bos_token"), "content", bos);
    fh_json_add_string(j, "eos_token", eos);
    char *text = fh_json_print(j, false);
    fh_json_free(j);
    return text;
}

static const fh_json *at(const fh_json *list, size_t i)
{
    const fh_json *j = fh_json_first(list);
    while (i--) j = fh_json_next(j);
    return j;
}

static const char *string_of(const fh_json *j, const char *key) { return fh_json_string(fh_json_get(j, key)); }

static fh_message message(fh_role role, const char *text) { return (fh_message){role, text, strlen(text)}; }

/* One conversation of the recorded ones; `want` NULL: the template refuses it. */
static void same_text(const fh_chat *c, const fh_json *system, const fh_json *talk, const char *date, const char *want)
{
    fh_message m[16];
    size_t n = 0, len;
    fh_role role = FH_USER;
    char *text = NULL;
    fh_err err;
    if (fh_json_string(system)) m[n++] = message(FH_SYSTEM, fh_json_string(system));
    for (const fh_json *t = fh_json_first(talk); t; t = fh_json_next(t), role = role == FH_USER ? FH_ASSISTANT : FH_USER)
        m[n++] = message(role, fh_json_string(t));
    fh_status rc = fh_chat_render(c, m, n, date, &text, &len, &err);
    if (!want) {
        assert_int_equal(rc, FH_EUNSUPPORTED);
        assert_non_null(strstr(err.text, fh_chat_style(c)));
        return;
    }
    ok(rc, &err);
    assert_string_equal(text, want);
    assert_int_equal(len, strlen(want));
    fh_free(text);
}

static void every_known_template_is_written_as_the_reference_writes_it(void **state)
{
    fh_json *all;
    fh_err err;
    size_t texts = 0, refused = 0;
    ok(fh_json_read(&all, "tests/golden/chat/expected.json", 1 << 24, &err), &err);
    for (const fh_json *t = fh_json_first(fh_json_get(all, "templates")); t; t = fh_json_next(t)) {
        uint64_t which;
        fh_chat *c;
        char *config = config_of(string_of(t, "bos"), string_of(t, "eos"));
        assert_string_equal(fh_chat_style_of(string_of(t, "sha256")), string_of(t, "style"));
        ok(fh_chat_open(&c, config, NULL, "model", &err), &err);
        ok(fh_chat_use(c, string_of(t, "style"), &err), &err);
        assert_true(fh_json_u64(fh_json_get(t, "texts"), &which));
        const fh_json *want = fh_json_first(at(fh_json_get(all, "texts"), which));
        for (const fh_json *s = fh_json_first(fh_json_get(all, "systems")); s; s = fh_json_next(s))
            for (const fh_json *talk = fh_json_first(fh_json_get(all, "talks")); talk; talk = fh_json_next(talk), want = fh_json_next(want)) {
                same_text(c, s, talk, string_of(all, "date"), fh_json_string(want));
                texts++, refused += !fh_json_string(want);
            }
        assert_null(want);
        fh_chat_close(c);
        fh_free(config);
    }
    assert_true(texts > 1000 && refused > 100);
    fh_json_free(all);
}

static void a_model_that_thinks_is_asked_not_to_as_the_reference_asks_it(void **state)
{
    fh_json *all, *quiet;
    fh_err err;
    size_t texts = 0;
    ok(fh_json_read(&all, "tests/golden/chat/expected.json", 1 << 24, &err), &err);
    ok(fh_json_read(&quiet, "tests/golden/chat/no_think.json", 1 << 24, &err), &err);
    for (const fh_json *t = fh_json_first(quiet); t; t = fh_json_next(t)) {
        fh_chat *c;
        char *config = config_of("", "<|im_end|>");
        assert_string_equal(fh_chat_style_of(string_of(t, "sha256")), string_of(t, "style"));
        ok(fh_chat_open(&c, config, NULL, "model", &err), &err);
        ok(fh_chat_use(c, string_of(t, "style"), &err), &err);
        ok(fh_chat_no_think(c, &err), &err);
        const fh_json *want = fh_json_first(fh_json_get(t, "texts"));
        for (const fh_json *s = fh_json_first(fh_json_get(all, "systems")); s; s = fh_json_next(s))
            for (const fh_json *talk = fh_json_first(fh_json_get(all, "talks")); talk; talk = fh_json_next(talk), want = fh_json_next(want), texts++)
                same_text(c, s, talk, string_of(all, "date"), fh_json_string(want));
        assert_null(want);
        fh_chat_close(c);
        fh_free(config);
    }
    assert_true(texts > 200);
    fh_chat *c;
    ok(fh_chat_open(&c, NULL, NULL, "model", &err), &err);
    ok(fh_chat_use(c, "chatml", &err), &err);
    assert_int_equal(fh_chat_no_think(c, &err), FH_EUSAGE);
    assert_non_null(strstr(err.text, "chatml"));
    fh_chat_close(c);
    fh_json_free(all);
    fh_json_free(quiet);
}

static void a_template_is_known_by_its_digest_wherever_it_stands(void **state)
{
    char *text;
    size_t text_len;
    fh_err err;
    ok(fh_file_read(&text, &text_len, "tests/golden/chat/chatml.jinja", 1 << 16, &err), &err);
    for (int form = 0; form < 5; form++) {
        fh_chat *c;
        fh_json *j = fh_json_object(), *list;
        char *shorter = fh_strndup(text, text_len - 1); /* less its last line break */
        if (form == 0) fh_json_add_string(j, "chat_template", text);
        if (form == 1) fh_json_add_string(j, "chat_template", shorter);
        if (form == 2) {
            list = fh_json_add_array(j, "chat_template");
            fh_json *other = fh_json_add_object(list, NULL), *own = fh_json_add_object(list, NULL);
            fh_json_add_string(other, "name", "tool_use"), fh_json_add_string(other, "template", "{{ tools }}");
            fh_json_add_string(own, "name", "default"), fh_json_add_string(own, "template", text);
        }
        if (form == 4) fh_json_add_string(j, "chat_template", "{{ other }}"); /* the file goes before it */
        char *config = fh_json_print(j, false);
        ok(fh_chat_open(&c, config, form >= 3 ? text : NULL, "model", &err), &err);
        ok(fh_chat_use(c, NULL, &err), &err);
        assert_string_equal(fh_chat_style(c), "chatml");
        assert_string_equal(fh_chat_end(c), "<|im_end|>");
        assert_false(fh_chat_is_raw(c));
        fh_chat_close(c);
        fh_free(config);
        fh_free(shorter);
        fh_json_free(j);
    }
    fh_free(text);
}

static void what_is_not_known_is_said_with_its_name_and_a_remedy(void **state)
{
    static const char *const odd[] = {"{\"chat_template\": 3}", "{\"chat_template\": []}", "{\"chat_template\": [{\"name\": \"default\"}, 7]}",
                                      "{\"chat_template\": null, \"bos_token\": 4, \"eos_token\": []}", "{}"};
    fh_chat *c;
    fh_err err;
    ok(fh_chat_open(&c, "{\"chat_template\": \"{{ messages }}\"}", NULL, "some/model", &err), &err);
    assert_null(fh_chat_style(c));
    assert_int_equal(fh_chat_use(c, NULL, &err), FH_EUNSUPPORTED);
    assert_non_null(strstr(err.text, "some/model: its chat template (SHA-256 "));
    assert_non_null(strstr(err.text, "--chat-template"));
    assert_int_equal(fh_chat_use(c, "chatlm", &err), FH_EUSAGE);
    assert_non_null(strstr(err.text, "'chatlm' is none of chatml, smollm2"));
    fh_message m[] = {message(FH_USER, "a"), message(FH_ASSISTANT, "b")};
    char *text;
    size_t len;
    assert_int_equal(fh_chat_render(c, m, 1, "", &text, &len, &err), FH_EUSAGE);
    ok(fh_chat_use(c, "raw", &err), &err);
    assert_true(fh_chat_is_raw(c));
    ok(fh_chat_render(c, m, 1, "", &text, &len, &err), &err);
    assert_string_equal(text, "a\n");
    fh_free(text);
    assert_int_equal(fh_chat_render(c, m, 0, "", &text, &len, &err), FH_EUSAGE);
    assert_int_equal(fh_chat_render(c, m, 2, "", &text, &len, &err), FH_EUSAGE);
    m[1].role = FH_USER;
    assert_int_equal(fh_chat_render(c, m, 2, "", &text, &len, &err), FH_EUSAGE);
    fh_chat_close(c);
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) {
        ok(fh_chat_open(&c, odd[i], NULL, "model", &err), &err);
        assert_int_equal(fh_chat_use(c, NULL, &err), FH_ENOTFOUND);
        ok(fh_chat_use(c, "llama2", &err), &err);
        ok(fh_chat_render(c, m, 1, "", &text, &len, &err), &err);
        assert_string_equal(text, "[INST] a [/INST]");
        fh_free(text);
        fh_chat_close(c);
    }
    ok(fh_chat_open(&c, NULL, NULL, "model", &err), &err);
    fh_chat_close(c);
    assert_int_equal(fh_chat_open(&c, "{", NULL, "model", &err), FH_EFORMAT);
    fh_chat_close(NULL);
}

static void any_bytes_pass_through(void **state)
{
    fh_chat *c;
    fh_err err;
    char *text;
    size_t len;
    ok(fh_chat_open(&c, NULL, NULL, "model", &err), &err);
    ok(fh_chat_use(c, "gemma", &err), &err);
    fh_message m = {FH_USER, " \xFF\0\xE2\x80 \xE2", 8};
    ok(fh_chat_render(c, &m, 1, "", &text, &len, &err), &err);
    assert_int_equal(len, strlen("<start_of_turn>user\n") + 7 + strlen("<end_of_turn>\n<start_of_turn>model\n"));
    assert_memory_equal(text + strlen("<start_of_turn>user\n"), "\xFF\0\xE2\x80 \xE2", 7);
    fh_free(text);
    fh_chat_close(c);
}

#ifdef FH_FAULTS
static void running_out_of_memory_anywhere_is_a_clean_error(void **state)
{
    char *config = config_of("<s>", "</s>");
    fh_message m[] = {message(FH_SYSTEM, "s"), message(FH_USER, "a")};
    for (long n = 1;; n++) {
        fh_err err = {0};
        fh_chat *c = NULL;
        char *text = NULL;
        size_t len;
        fh_fault_set(FH_FAULT_ALLOC, n);
        fh_status rc = fh_chat_open(&c, config, NULL, "model", &err);
        if (rc == FH_OK) rc = fh_chat_use(c, "llama2", &err);
        if (rc == FH_OK) rc = fh_chat_render(c, m, 2, "", &text, &len, &err);
        bool fired = fh_fault_fired();
        fh_fault_set(FH_FAULT_ALLOC, 0);
        fh_chat_close(c);
        if (rc == FH_OK) fh_free(text);
        if (!fired) {
            assert_int_equal(rc, FH_OK);
            break;
        }
        assert_int_equal(rc, FH_ENOMEM);
        assert_true(err.text[0]);
    }
    fh_free(config);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_known_template_is_written_as_the_reference_writes_it),
        cmocka_unit_test(a_model_that_thinks_is_asked_not_to_as_the_reference_asks_it),
        cmocka_unit_test(a_template_is_known_by_its_digest_wherever_it_stands),
        cmocka_unit_test(what_is_not_known_is_said_with_its_name_and_a_remedy),
        cmocka_unit_test(any_bytes_pass_through),
#ifdef FH_FAULTS
        cmocka_unit_test(running_out_of_memory_anywhere_is_a_clean_error),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
