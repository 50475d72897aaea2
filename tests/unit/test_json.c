/* JSON: what is accepted, what is refused and where, exact integers, printing that reads back the same. */
#include "format_files.h"

#include <locale.h>
#include <math.h>

static fh_status parse(fh_json **out, const char *text, fh_err *err)
{
    /* Without a NUL behind it, so that a reader past the end shows under the sanitizer. */
    size_t n = strlen(text);
    char *copy = malloc(n ? n : 1);
    memcpy(copy, text, n);
    fh_status rc = fh_json_parse(out, copy, n, "t.json", err);
    free(copy);
    return rc;
}

static fh_json *parsed(const char *text)
{
    fh_json *j;
    fh_err err;
    if (parse(&j, text, &err) < 0) fail_msg("%s: %s", text, err.text);
    return j;
}

static void documents_that_are_json_are_read(void **state)
{
    static const char *const good[] = {
        "{}", "[]", "0", "-0", "true", "null", "\"\"", " \t\r\n[ 1 , 2 ] \n", "[[[]]]", "{\"\":{\"\":0}}", "[1e5,1E+5,1.5e-5,-1.25]",
        "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9\\ud83d\\ude00\"", "\"\xF0\x9F\x98\x80\x7F\"", "[4e-400]", "{\"a\":1,\"A\":2,\"a \":3}",
        "[-0.000000000000000000000000000000000000000000000000000000000000000000000000000001]", "[1e308,-1e308]",
        "[123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890]",
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) fh_json_free(parsed(good[i]));
}

static void documents_that_are_not_are_refused_with_their_place(void **state)
{
    static const struct { const char *text, *says; } bad[] = {
        {"", "line 1, column 1|empty"},
        {"   ", "line 1, column 4|ends"},
        {"{", "line 1, column 2|ends in the middle"},
        {"[1,2", "line 1, column 5|complete"},
        {"[1,]", "line 1, column 3|trailing comma"},
        {"{\"a\":1,\n}", "line 1, column 7|trailing comma"},
        {"[,1]", "line 1, column 2|found ','"},
        {"[1 2]", "line 1, column 4|expected ',' or ']'"},
        {"{\"a\" 1}", "line 1, column 6|expected ':'"},
        {"{a:1}", "line 1, column 2|double quotes"},
        {"{'a':1}", "line 1, column 2|quote"},
        {"{1:1}", "line 1, column 2|double quotes"},
        {"[1}", "line 1, column 3|expected ',' or ']'"},
        {"[1] x", "line 1, column 5|more text"},
        {"{}{}", "line 1, column 3|more text"},
        {"{\n  // why\n}", "line 2, column 3|comment"},
        {"{\"a\":1 /* b */}", "line 1, column 8|comment"},
        {"# x\n{}", "line 1, column 1|comment"},
        {"[1] // x", "line 1, column 5|comment"},
        {"[NaN]", "line 1, column 2|NaN"},
        {"{\"a\":\n Infinity}", "line 2, column 2|Infinity"},
        {"[-Infinity]", "line 1, column 2|Infinity"},
        {"[True]", "line 1, column 2|Python"},
        {"[nul]", "line 1, column 2|expected a value"},
        {"[truely]", "line 1, column 6|expected ','"},
        {"[01]", "line 1, column 2|leading zeros"},
        {"[-01]", "line 1, column 2|leading zeros"},
        {"[+1]", "line 1, column 2|expected a value"},
        {"[.5]", "line 1, column 2|expected a value"},
        {"[5.]", "line 1, column 4|decimal point"},
        {"[1e]", "line 1, column 4|exponent"},
        {"[-]", "line 1, column 3|digit"},
        {"[0x10]", "line 1, column 3"},
        {"[1e400]", "line 1, column 2|range"},
        {"[-1e400]", "line 1, column 2|range"},
        {"\"abc", "line 1, column 1|does not end"},
        {"\"a\tb\"", "line 1, column 3|control"},
        {"\"a\nb\"", "line 1, column 3|control"},
        {"\"\\x41\"", "line 1, column 2|escape"},
        {"\"\\u12g4\"", "line 1, column 2|hexadecimal"},
        {"\"\\u12", "line 1, column 2|hexadecimal"},
        {"\"\\u0000\"", "line 1, column 2|NUL"},
        {"\"\\ud800\"", "line 1, column 2|surrogate"},
        {"\"\\ud800\\u0041\"", "line 1, column 2|surrogate"},
        {"\"\\udc00\"", "line 1, column 2|surrogate"},
        {"\"\xC3\"", "line 1, column 2|UTF-8"},
        {"\"\xED\xA0\x80\"", "line 1, column 2|UTF-8"},
        {"\"\xC0\x80\"", "line 1, column 2|UTF-8"},
        {"\xEF\xBB\xBF{}", "line 1, column 1|BOM"},
        {"\xFF\xFE{", "line 1, column 1|UTF-16"},
        {"version https://git-lfs.github.com/spec/v1\n", "git-lfs"},
        {"<!DOCTYPE html>", "HTML"},
        {"\x1F\x8B\x08", "gzip"},
        {"{\"a\":1,\"a\":2}", "line 1, column 8|'a'|twice"},
        {"{\"a\":1,\n \"\\u0061\":2}", "line 2, column 2|twice"},
        {"[{\"k\":{\"x\":1}},{\"k\":1,\"b\":[{}],\"k\":1}]", "line 1, column 32|'k'"},
        {"{\"1\":0,\"2\":0,\"3\":0,\"4\":0,\"5\":0,\"6\":0,\"7\":0,\"8\":0,\"9\":0,\"3\":1}", "column 56|'3'"},
        {"{\"\xC3\xA9\xC3\xA9\":[}", "line 1, column 8"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        fh_json *j;
        fh_err err;
        assert_int_equal(parse(&j, bad[i].text, &err), FH_EFORMAT);
        assert_null(j);
        assert_says(&err, "t.json");
        assert_says(&err, bad[i].says);
    }
}

static void nul_bytes_and_utf16_are_refused(void **state)
{
    fh_json *j;
    fh_err err;
    assert_int_equal(fh_json_parse(&j, "{}\0", 3, "t", &err), FH_EFORMAT);
    assert_says(&err, "NUL");
    assert_int_equal(fh_json_parse(&j, "[\"a\0b\"]", 7, "t", &err), FH_EFORMAT);
    assert_says(&err, "NUL|column 4");
    assert_int_equal(fh_json_parse(&j, "{\0}\0", 4, "t", &err), FH_EFORMAT);
    assert_says(&err, "UTF-16");
    assert_int_equal(fh_json_parse(&j, "\0{\0}", 4, "t", &err), FH_EFORMAT);
    assert_says(&err, "UTF-16");
}

static void sixty_four_levels_are_read_and_one_more_is_not(void **state)
{
    char text[2 * 65 + 1];
    fh_json *j;
    fh_err err;
    for (size_t depth = 64; depth <= 65; depth++) {
        memset(text, '[', depth);
        memset(text + depth, ']', depth);
        text[2 * depth] = '\0';
        fh_status rc = parse(&j, text, &err);
        assert_int_equal(rc, depth == 64 ? FH_OK : FH_EFORMAT);
        fh_json_free(j);
    }
    assert_says(&err, "64 levels|column 65");
    size_t n = 1 << 20;
    char *deep = malloc(n);
    memset(deep, '[', n);
    assert_int_equal(fh_json_parse(&j, deep, n, "t", &err), FH_EFORMAT);
    free(deep);
}

static void integers_are_exact_or_nothing(void **state)
{
    static const struct { const char *text; bool i64, u64; int64_t value; } numbers[] = {
        {"0", true, true, 0}, {"-0", true, false, 0}, {"151936", true, true, 151936}, {"-1", true, false, -1},
        {"9007199254740991", true, true, 9007199254740991}, {"9007199254740992", false, false, 0},
        {"9007199254740993", false, false, 0},
        {"-9007199254740991", true, false, -9007199254740991}, {"-9007199254740993", false, false, 0},
        {"18446744073709551616", false, false, 0},
        {"151936.0", false, false, 0}, {"1e3", false, false, 0}, {"1E0", false, false, 0}, {"0.5", false, false, 0}, {"-0.0", false,
         false, 0},
        {"\"1\"", false, false, 0}, {"true", false, false, 0}, {"null", false, false, 0}, {"[1]", false, false, 0},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        uint64_t u = 77;
        int64_t s = 77;
        fh_json *j = parsed(numbers[i].text);
        assert_int_equal(fh_json_u64(j, &u), numbers[i].u64);
        assert_int_equal(fh_json_i64(j, &s), numbers[i].i64);
        assert_true(u == (numbers[i].u64 ? (uint64_t)numbers[i].value : 77));
        assert_true(s == (numbers[i].i64 ? numbers[i].value : 77));
        fh_json_free(j);
    }
    assert_false(fh_json_u64(NULL, &(uint64_t){0}));
}

static void which_numbers_are_integers_is_known_of_each(void **state)
{
    /* The marks are taken from the text in order; nesting and strings full of digits must not shift them. */
    fh_json *j = parsed("{\"a\":[1,1.0,\"2\",[3,{\"b\":4e0,\"1\":5}]],\"c\":6.5,\"d\":{},\"e\":[],\"f\":7}");
    static const struct { const char *key; bool integer; } want[] = {{"c", false}, {"f", true}};
    uint64_t v;
    for (size_t i = 0; i < 2; i++) assert_int_equal(fh_json_u64(fh_json_get(j, want[i].key), &v), want[i].integer);
    const fh_json *c = fh_json_first(fh_json_get(j, "a"));
    assert_true(fh_json_u64(c, &v) && v == 1);
    c = fh_json_next(c);
    assert_false(fh_json_u64(c, &v));
    c = fh_json_first(fh_json_next(fh_json_next(c)));
    assert_true(fh_json_u64(c, &v) && v == 3);
    assert_false(fh_json_u64(fh_json_get(fh_json_next(c), "b"), &v));
    assert_true(fh_json_u64(fh_json_get(fh_json_next(c), "1"), &v) && v == 5);
    fh_json_free(j);
}

static void numbers_of_any_length_have_their_value(void **state)
{
    double v;
    fh_json *j = parsed("[0.10000000000000000000000000000000000000000000000000000000000000000000000000000000001, 2,"
                        "1000000000000000000000000000000000000000000000000000000000000000000000000000000000000]");
    assert_true(fh_json_double(fh_json_first(j), &v) && v == 0.1);
    assert_true(fh_json_double(fh_json_next(fh_json_first(j)), &v) && v == 2);
    assert_true(fh_json_double(fh_json_next(fh_json_next(fh_json_first(j))), &v) && v == 1e84);
    fh_json_free(j);
    char *text = malloc(1 << 20);
    memset(text, '9', 1 << 20);
    fh_err err;
    assert_int_equal(fh_json_parse(&j, text, 1 << 20, "t", &err), FH_EFORMAT);
    assert_says(&err, "range");
    text[1] = '.';
    assert_int_equal(fh_json_parse(&j, text, 1 << 20, "t", &err), FH_OK);
    assert_true(fh_json_double(j, &v) && v == 10);
    fh_json_free(j);
    free(text);
}

static void reading_finds_members_and_elements(void **state)
{
    bool b;
    fh_json *j = parsed("{\"s\":\"x\\u00e9\",\"n\":null,\"t\":true,\"l\":[1,\"a\",null],\"o\":{\"k\":2}}");
    assert_int_equal(fh_json_type(j), FH_JSON_OBJECT);
    assert_int_equal(fh_json_count(j), 5);
    assert_string_equal(fh_json_string(fh_json_get(j, "s")), "x\xC3\xA9");
    assert_null(fh_json_get(j, "n"));
    assert_true(fh_json_has(j, "n"));
    assert_null(fh_json_get(j, "absent"));
    assert_false(fh_json_has(j, "absent"));
    assert_null(fh_json_get(j, "S"));
    assert_true(fh_json_bool(fh_json_get(j, "t"), &b) && b);
    assert_false(fh_json_bool(fh_json_get(j, "s"), &b));
    assert_null(fh_json_get(fh_json_get(j, "l"), "k"));
    assert_null(fh_json_string(fh_json_get(j, "l")));
    const fh_json *c = fh_json_first(fh_json_get(j, "l"));
    assert_null(fh_json_key(c));
    assert_int_equal(fh_json_type(fh_json_next(fh_json_next(c))), FH_JSON_NULL);
    assert_null(fh_json_next(fh_json_next(fh_json_next(c))));
    assert_string_equal(fh_json_key(fh_json_first(fh_json_get(j, "o"))), "k");
    assert_int_equal(fh_json_type(NULL), FH_JSON_NULL);
    assert_null(fh_json_get(NULL, "a"));
    assert_null(fh_json_first(NULL));
    assert_int_equal(fh_json_count(NULL), 0);
    fh_json_free(j);
    fh_json_free(NULL);
}

static fh_json *build(void)
{
    fh_json *j = fh_json_object(), *list = fh_json_add_array(j, "list"), *inner = fh_json_add_object(j, "inner");
    fh_json_add_u64(list, NULL, 1);
    fh_json_add_double(list, NULL, 1);
    fh_json_add_double(list, NULL, 0.1);
    fh_json_add_double(list, NULL, NAN);
    fh_json_add_i64(list, NULL, -5);
    fh_json_add_u64(list, NULL, UINT64_MAX);
    fh_json_add_u64(list, NULL, (1ull << 53) - 1);
    fh_json_add_u64(list, NULL, 1ull << 53);
    fh_json_add_string(inner, "text", "a\"\\\n\t\x01\x1B" "b\xFF\xC3\xA9");
    fh_json_add_bool(inner, "yes", true);
    fh_json_add_null(inner, "none");
    fh_json_add_copy(inner, "copy", list);
    fh_json_add_object(inner, "empty");
    fh_json_add_array(inner, "nothing");
    fh_json_add(inner, "bad\xFFkey", fh_json_array());
    return j;
}

#define LIST "[1,1.0,0.1,null,-5,\"18446744073709551615\",9007199254740991,\"9007199254740992\"]"

static void building_prints_as_expected(void **state)
{
    fh_json *j = build();
    char *text = fh_json_print(j, false);
    assert_string_equal(text, "{\"list\":" LIST ",\"inner\":{\"text\":\"a\\\"\\\\\\n\\t\\u0001\\u001bb\xEF\xBF\xBD\xC3\xA9\",\"yes\":true,"
                              "\"none\":null,"
                              "\"copy\":" LIST ",\"empty\":{},\"nothing\":[],\"bad\xEF\xBF\xBDkey\":[]}}");
    fh_free(text);
    fh_json_free(j);
    j = parsed("{\"a\":[1,2],\"b\":[{\"c\":[]},[3]],\"d\":{}}");
    text = fh_json_print(j, true);
    assert_string_equal(text, "{\n  \"a\": [1, 2],\n  \"b\": [\n    {\n      \"c\": []\n    },\n    [3]\n  ],\n  \"d\": {}\n}");
    fh_free(text);
    fh_json_free(j);
}

static void every_double_reads_back_as_itself(void **state)
{
    fh_rng r;
    fh_rng_seed(&r, 7, 0);
    for (int i = 0; i < 100000; i++) {
        double v, back;
        uint64_t bits = fh_rng_u64(&r);
        if (i % 4 == 0) bits = 0x3FF0000000000000u + (uint64_t)i; /* neighbours of 1 */
        memcpy(&v, &bits, sizeof v);
        if (!isfinite(v)) continue;
        fh_json *list = fh_json_array(), *again;
        fh_json_add_double(list, NULL, v);
        char *text = fh_json_print(list, false);
        assert_non_null(text);
        again = parsed(text);
        assert_true(fh_json_double(fh_json_first(again), &back));
        assert_memory_equal(&v, &back, sizeof v);
        assert_false(fh_json_i64(fh_json_first(again), &(int64_t){0}));
        fh_free(text);
        fh_json_free(list);
        fh_json_free(again);
    }
}

static void what_is_printed_reads_and_prints_the_same(void **state)
{
    fh_json *j = build();
    for (int pretty = 0; pretty < 2; pretty++) {
        char *text = fh_json_print(j, pretty);
        fh_json *again = parsed(text);
        char *second = fh_json_print(again, pretty);
        assert_string_equal(text, second);
        fh_free(text);
        fh_free(second);
        fh_json_free(again);
    }
    fh_json_free(j);
}

static void a_locale_with_a_decimal_comma_changes_nothing(void **state)
{
    static const char *const names[] = {"de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8", "de_DE"};
    bool set = false;
    for (size_t i = 0; i < 4 && !set; i++) set = setlocale(LC_ALL, names[i]) != NULL;
    if (!set) {
        print_message("skipped: no locale with a decimal comma is installed\n");
        skip();
    }
    double v;
    fh_json *j = parsed("[0.5,1.25e3]");
    assert_true(fh_json_double(fh_json_first(j), &v) && v == 0.5);
    char *text = fh_json_print(j, false);
    assert_string_equal(text, "[0.5,1250.0]");
    fh_free(text);
    fh_json_free(j);
    setlocale(LC_ALL, "C");
}

static void a_tree_that_lost_something_is_not_printed(void **state)
{
    assert_null(fh_json_print(NULL, false));
    assert_false(fh_json_add_u64(NULL, "a", 1));
    assert_null(fh_json_add_object(NULL, "a"));
    fh_json *j = fh_json_object();
    assert_false(fh_json_add(j, "a", NULL));
    assert_null(fh_json_print(j, false));
    fh_json_free(j);
}

static fh_status build_and_print(void)
{
    fh_json *j = build();
    char *text = fh_json_print(j, true);
    fh_json_free(j);
    fh_free(text);
    return text ? FH_OK : FH_ENOMEM;
}

static void every_failing_allocation_is_told(void **state)
{
    static const char text[] = "{\"1\":0,\"2\":0,\"3\":0,\"4\":0,\"5\":[1,\"x\"],\"6\":0,\"7\":0,\"8\":0,\"9\":0,"
                               "\"n\":0.1000000000000000000000000000000000000000000000000000000000000000000000000000000}";
    fh_json *j = NULL;
    fh_err err;
    assert_survives_faults(FH_FAULT_ALLOC, fh_json_parse(&j, text, sizeof text - 1, "t", &err), FH_ENOMEM, fh_json_free(j));
    assert_survives_faults(FH_FAULT_ALLOC, build_and_print(), FH_ENOMEM, (void)0);
}

static void a_file_is_read_up_to_its_limit(void **state)
{
    fh_json *j;
    fh_err err;
    files *f = *state;
    assert_int_equal(fh_json_read(&j, files_text(f, "a.json", "{\"a\":\n[1,]}"), 100, &err), FH_EFORMAT);
    assert_says(&err, f->path);
    assert_says(&err, "line 2, column 3");
    assert_int_equal(fh_json_read(&j, files_text(f, "a.json", "[1,2,3]"), 7, &err), FH_OK);
    fh_json_free(j);
    assert_true(fh_json_read(&j, f->path, 6, &err) < 0);
    assert_null(j);
    assert_true(fh_json_read(&j, files_path(f, "none.json"), 6, &err) < 0);
    assert_says(&err, "none.json");
}

static void a_large_document_takes_linear_time(void **state)
{
    fh_buf b = {0};
    fh_json *j;
    fh_err err;
    fh_buf_puts(&b, "{\"vocab\":{");
    for (int i = 0; i < 200000; i++) fh_buf_printf(&b, "%s\"token%d\":%d", i ? "," : "", i, i);
    fh_buf_puts(&b, "},\"merges\":[");
    for (int i = 0; i < 200000; i++) fh_buf_printf(&b, "%s[\"a\",\"b%d\"]", i ? "," : "", i);
    fh_buf_puts(&b, "]}");
    assert_false(b.failed);
    double start = fh_now();
    assert_int_equal(fh_json_parse(&j, b.data, b.len, "t", &err), FH_OK);
    assert_true(fh_now() - start < 4); /* 0.2 s without sanitizers */
    fh_json_free(j);
    b.len -= 2;
    for (int i = 0; i < 100000; i++) b.data[b.len / 2 + (size_t)i] = '[';
    assert_int_equal(fh_json_parse(&j, b.data, b.len, "t", &err), FH_EFORMAT);
    fh_buf_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(documents_that_are_json_are_read),
        cmocka_unit_test(documents_that_are_not_are_refused_with_their_place),
        cmocka_unit_test(nul_bytes_and_utf16_are_refused),
        cmocka_unit_test(sixty_four_levels_are_read_and_one_more_is_not),
        cmocka_unit_test(integers_are_exact_or_nothing),
        cmocka_unit_test(which_numbers_are_integers_is_known_of_each),
        cmocka_unit_test(numbers_of_any_length_have_their_value),
        cmocka_unit_test(reading_finds_members_and_elements),
        cmocka_unit_test(building_prints_as_expected),
        cmocka_unit_test(every_double_reads_back_as_itself),
        cmocka_unit_test(what_is_printed_reads_and_prints_the_same),
        cmocka_unit_test(a_locale_with_a_decimal_comma_changes_nothing),
        cmocka_unit_test(a_tree_that_lost_something_is_not_printed),
        cmocka_unit_test(every_failing_allocation_is_told),
        cmocka_unit_test_setup_teardown(a_file_is_read_up_to_its_limit, files_setup, files_teardown),
        cmocka_unit_test(a_large_document_takes_linear_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
