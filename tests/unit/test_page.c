/* The writer of HTML pages: what is text stays text, what is drawn can be drawn, and every allocation may fail. */
#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/fault.h"
#include "validate/page.h"

static fh_err err;

static size_t count(const char *text, const char *what)
{
    size_t n = 0;
    for (const char *at = text; (at = strstr(at, what)); at += strlen(what)) n++;
    return n;
}

/* Every element that is opened is closed, in order; returns how many there were. */
static size_t balanced(const char *text)
{
    static const char *const alone[] = {"meta", "!doctype", "circle", "line", "polygon", "polyline"};
    char stack[64][16];
    size_t depth = 0, n = 0;
    for (const char *at = text; (at = strchr(at, '<')); at++) {
        char name[16];
        bool closing = at[1] == '/', single = false;
        snprintf(name, sizeof name, "%.*s", (int)fh_min(strcspn(at + 1 + closing, " >/"), sizeof name - 1), at + 1 + closing);
        for (size_t i = 0; i < sizeof alone / sizeof *alone; i++) single = single || !strcmp(alone[i], name);
        if (single) continue;
        if (!closing) {
            assert_true(depth < 64);
            memcpy(stack[depth++], name, sizeof name), n++;
            continue;
        }
        if (!depth || strcmp(stack[depth - 1], name)) fail_msg("</%s> closes <%s>", name, depth ? stack[depth - 1] : "nothing");
        depth--;
    }
    assert_int_equal(depth, 0);
    return n;
}

static void draw(fh_page *p)
{
    static const double x[] = {1, 2, 4, 8, 16}, y[] = {0.5, 0.25, NAN, 0.01, 0}, low[] = {0.4, 0.2, 0.05, 0.005, 0}, high[] = {0.6, 0.3, 0.2, 0.02, 0.004};
    static const char *const labels[] = {NULL, "<here>", NULL, NULL, NULL}, *const names[] = {"one & two", "three"};
    static const double bars[] = {3, NAN};
    static const fh_column columns[] = {{"word", true}, {"number", false}};
    const fh_series series[] = {{.name = "a<b", .x = x, .y = y, .n = 5, .low = low, .high = high, .labels = labels, .line = true, .dots = true},
                                {.x = x, .y = y, .n = 0, .line = true}};
    const fh_mark marks[] = {{"P", 4, true}, {"far", 1e9, true}, {"limit", 0.01, false}};
    fh_page_fact(p, FH_GOOD, "name", "%d", 7);
    fh_page_section(p, "Sec & tion");
    fh_page_text(p, "%s", "a \"quoted\" 'text'\n\x1b[31m \xff <script>alert(1)</script>");
    fh_page_table(p, "caption", columns, 2);
    fh_page_cell(p, FH_BAD, "%s", "</td>");
    fh_page_cell(p, FH_PLAIN, "%g", 1.5);
    fh_page_cell(p, FH_PLAIN, "half a row");
    fh_page_plot(
        p,
        &(fh_plot){.title = "t<", .x = {"x", 2, false, 0, 0}, .y = {"y", 10, true, 0, 0}, .series = series, .n_series = 2, .marks = marks, .n_marks = 3});
    fh_page_plot(p, &(fh_plot){.title = "linear", .x = {"x", 0, false, 0, 20}, .y = {"y", 0, false, 0, 0}, .series = series, .n_series = 1});
    fh_page_plot(p, &(fh_plot){.title = "empty", .x = {"x", 10, false, 0, 0}, .y = {"y", 0, false, 0, 0}, .series = series + 1, .n_series = 1});
    fh_page_bars(p, "bars", names, bars, 2, "%.1f");
    fh_page_section(p, "End");
}

static void text_stays_text_and_elements_close(void **state)
{
    (void)state;
    fh_page *p = fh_page_new("<title> & co", "lead");
    assert_non_null(p);
    draw(p);
    char *text = fh_page_take(p);
    assert_non_null(text);
    assert_int_equal(count(text, "<script"), 0);
    assert_int_equal(count(text, "&lt;script&gt;alert(1)&lt;/script&gt;"), 1);
    assert_int_equal(count(text, "<title>&lt;title&gt; &amp; co</title>"), 1);
    assert_int_equal(count(text, "&quot;quoted&quot; &#39;text&#39;\\x0a\\x1b[31m \\xff"), 1);
    assert_int_equal(count(text, "&lt;/td&gt;"), 1);
    assert_int_equal(count(text, "a&lt;b"), 2 + 3 + 4); /* two legends; a title for each point that can be drawn */
    assert_int_equal(fh_utf8_valid(text, strlen(text)), strlen(text));
    assert_true(balanced(text) > 60);
    fh_free(text);
}

static void nothing_is_loaded_from_anywhere(void **state)
{
    static const char *const words[] = {"http:", "https:", "src=", "href=", "url(", "@import", "<link", "<img", "<iframe", "onload", "javascript:"};
    (void)state;
    fh_page *p = fh_page_new("t", NULL);
    draw(p);
    char *text = fh_page_take(p);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) if (count(text, words[i])) fail_msg("'%s' in the page", words[i]);
    assert_int_equal(count(text, "default-src 'none'"), 1);
    assert_int_equal(count(text, "@media print"), 1);
    assert_int_equal(count(text, "prefers-color-scheme:dark"), 1);
    fh_free(text);
}

static void what_is_not_finite_or_not_on_the_axis_is_not_drawn(void **state)
{
    (void)state;
    fh_page *p = fh_page_new("t", NULL);
    draw(p);
    char *text = fh_page_take(p);
    char *plots = strstr(text, "<svg viewBox=\"0 0 480"), *end = strstr(plots, "</svg>");
    *end = 0;
    assert_int_equal(count(plots, "nan"), 0);
    assert_int_equal(count(plots, "inf"), 0);
    assert_int_equal(count(plots, "<circle"), 3); /* of five points one is NAN and one is 0 on a logarithmic axis */
    assert_int_equal(count(plots, "class=\"band\""), 1);
    assert_int_equal(count(plots, "class=\"mark\""), 2); /* one mark lies outside */
    assert_int_equal(count(plots, "&lt;here&gt;"), 1);
    for (const char *at = plots; (at = strstr(at, "cx=\"")); at++) {
        double cx = atof(at + 4);
        assert_true(cx >= 0 && cx <= 480);
    }
    fh_free(text);
}

static void a_page_is_written_whole_or_not_at_all(void **state)
{
    char path[] = "/tmp/fh-page-XXXXXX", *text = NULL;
    size_t len;
    (void)state;
    close(mkstemp(path));
    fh_page *p = fh_page_new("t", "l");
    draw(p);
    assert_int_equal(fh_page_write(p, path, &err), FH_OK);
    assert_int_equal(fh_file_read(&text, &len, path, 1 << 20, &err), FH_OK);
    assert_int_equal(strncmp(text, "<!doctype html>\n", 16), 0);
    assert_int_equal(strcmp(text + len - 8, "</html>\n"), 0);
    fh_free(text);
    assert_int_equal(fh_page_write(fh_page_new("t", NULL), "/nowhere/at/all.html", &err), FH_ENOTFOUND);
    fh_page_free(fh_page_new("t", NULL));
    fh_page_free(NULL);
    unlink(path);
}

#ifdef FH_FAULTS
static void every_allocation_may_fail(void **state)
{
    bool fired = true;
    (void)state;
    for (long n = 1; fired; n++) {
        fh_fault_set(FH_FAULT_ALLOC, n);
        fh_page *p = fh_page_new("t", "l");
        if (p) draw(p);
        char *text = p ? fh_page_take(p) : NULL;
        fired = fh_fault_fired();
        fh_fault_set(FH_FAULT_ALLOC, 0);
        assert_int_equal(text == NULL, fired);
        fh_free(text);
    }
}
#else
static void every_allocation_may_fail(void **state) { (void)state; skip(); }
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_stays_text_and_elements_close),
        cmocka_unit_test(nothing_is_loaded_from_anywhere),
        cmocka_unit_test(what_is_not_finite_or_not_on_the_axis_is_not_drawn),
        cmocka_unit_test(a_page_is_written_whole_or_not_at_all),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
