/* Messages, text for terminals, UTF-8, strings that grow, arenas, and memory that runs out. */
#include "base/base.h"
#include "base/fault.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void a_message_is_one_printable_line(void **state)
{
    (void)state;
    fh_err err;
    assert_int_equal(fh_fail(&err, FH_EFORMAT, "%s: tensor '%s'", "a\nb", "\x1b[31mred\x7f\xc2\x9b\xe2\x80\xae\xff"), FH_EFORMAT);
    assert_int_equal(err.code, FH_EFORMAT);
    assert_string_equal(err.text, "a\\x0ab: tensor '\\x1b[31mred\\x7f\\u{9b}\\u{202e}\\xff'");
    assert_int_equal(fh_fail(NULL, FH_EIO, "nobody listens"), FH_EIO);
}

static void a_message_may_quote_the_message_before_it(void **state)
{
    (void)state;
    fh_err err;
    fh_fail(&err, FH_EIO, "inner");
    fh_fail(&err, FH_EIO, "outer: %s", err.text);
    assert_string_equal(err.text, "outer: inner");
}

static void a_message_that_is_too_long_is_cut(void **state)
{
    (void)state;
    fh_err err;
    char *name = fh_malloc(100001);
    assert_non_null(name);
    memset(name, 'x', 100000);
    name[100000] = 0;
    fh_fail(&err, FH_EFORMAT, "tensor %s: is bad", name);
    assert_int_equal(strlen(err.text), sizeof err.text - 1);
    assert_string_equal(err.text + sizeof err.text - 4, "...");
    fh_free(name);
}

static void every_status_has_its_name(void **state)
{
    (void)state;
    assert_string_equal(fh_status_name(FH_OK), "FH_OK");
    assert_string_equal(fh_status_name(FH_ENOTFOUND), "FH_ENOTFOUND");
    for (int code = FH_ENOTFOUND; code <= FH_OK; code++) assert_memory_equal(fh_status_name((fh_status)code), "FH_", 3);
    assert_string_equal(fh_status_name((fh_status)5), "unknown status");
}

static void shown_text_is_escaped_and_cut_where_it_must(void **state)
{
    (void)state;
    static const struct { size_t size; const char *in; size_t len; const char *want; } table[] = {
        {100, "plain", 5, "plain"},
        {100, "", 0, ""},
        {100, "gr\xc3\xbc\xc3\x9f \xe6\xbc\xa2 \xf0\x9f\x98\x80", 15, "gr\xc3\xbc\xc3\x9f \xe6\xbc\xa2 \xf0\x9f\x98\x80"},
        {100, "a\0b", 3, "a\\x00b"},
        {100, "\t\r\n", 3, "\\x09\\x0d\\x0a"},
        {100, "\xe2\x80\xa8\xe2\x80\xa9", 6, "\\u{2028}\\u{2029}"},
        {100, "\xe2\x81\xa6\xe2\x81\xa9\xd8\x9c\xe2\x80\x8f", 11, "\\u{2066}\\u{2069}\\u{61c}\\u{200f}"},
        {100, "\xc2\x80\xc2\x9f\xc2\xa0", 6, "\\u{80}\\u{9f}\xc2\xa0"},
        {100, "\xc0\x80\xed\xa0\x80", 5, "\\xc0\\x80\\xed\\xa0\\x80"},
        {100, "\xe6\xbc", 2, "\\xe6\\xbc"},
        {6, "abcde", 5, "abcde"},
        {6, "abcdef", 6, "ab..."},
        {6, "abcd\n", 5, "ab..."},
        {6, "\n\n", 2, "..."},
        {6, "ab\xe6\xbc\xa2", 5, "ab\xe6\xbc\xa2"},
        {6, "a\xe6\xbc\xa2z\n", 6, "a..."},
        {4, "abcd", 4, "..."},
        {3, "abc", 3, ".."},
        {1, "abc", 3, ""},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        char out[101];
        memset(out, '#', sizeof out);
        assert_ptr_equal(fh_show(out, table[i].size, table[i].in, table[i].len), out);
        assert_string_equal(out, table[i].want);
        assert_int_equal(out[table[i].size], '#');
    }
    char untouched = '#';
    fh_show(&untouched, 0, "abc", 3);
    assert_int_equal(untouched, '#');
}

static void utf8_is_valid_up_to_its_first_fault(void **state)
{
    (void)state;
    static const struct { const char *s; size_t len, valid; } table[] = {
        {"", 0, 0}, {"abc", 3, 3}, {"a\0b", 3, 3}, {"0123456789abcdef\xff", 17, 16}, {"01234567\x80", 9, 8},
        {"\xc2\x80", 2, 2}, {"\xc1\xbf", 2, 0}, {"\xc0\x80", 2, 0}, {"\xdf\xbf", 2, 2}, {"\xc3", 1, 0}, {"\xc3(", 2, 0},
        {"\xe0\xa0\x80", 3, 3}, {"\xe0\x9f\xbf", 3, 0}, {"\xed\x9f\xbf", 3, 3}, {"\xed\xa0\x80", 3, 0}, {"\xee\x80\x80", 3, 3},
        {"\xef\xbf\xbf", 3, 3}, {"\xe2\x82", 2, 0}, {"\xe2\x82(", 3, 0},
        {"\xf0\x90\x80\x80", 4, 4}, {"\xf0\x8f\xbf\xbf", 4, 0}, {"\xf4\x8f\xbf\xbf", 4, 4}, {"\xf4\x90\x80\x80", 4, 0},
        {"\xf5\x80\x80\x80", 4, 0}, {"\xf0\x9f\x98", 3, 0}, {"\xf0\x9f\x98(", 4, 0},
        {"\x80", 1, 0}, {"\xfe", 1, 0}, {"ok\xf8\x88\x80\x80\x80", 7, 2},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) assert_int_equal(fh_utf8_valid(table[i].s, table[i].len), table[i].valid);
}

/* Every code point, encoded by the definition, and no surrogate. */
static void utf8_knows_every_code_point(void **state)
{
    (void)state;
    for (uint32_t c = 0; c < 0x110000; c++) {
        char s[4];
        size_t n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
        static const uint8_t lead[5] = {0, 0, 0xC0, 0xE0, 0xF0};
        for (size_t i = n; i-- > 1;) s[i] = (char)(0x80 | (c >> (6 * (n - 1 - i)) & 0x3F));
        s[0] = (char)(lead[n] | c >> (6 * (n - 1)));
        assert_int_equal(fh_utf8_valid(s, n), c >= 0xD800 && c < 0xE000 ? 0 : n);
    }
}

static void a_buffer_grows_and_gives_its_text_away(void **state)
{
    (void)state;
    fh_buf b = {0};
    for (int i = 0; i < 1000; i++) fh_buf_printf(&b, "%d,", i);
    fh_buf_puts(&b, "end");
    fh_buf_add(&b, "\0x", 2);
    fh_buf_add(&b, NULL, 0);
    assert_int_equal(b.len, 10 * 2 + 90 * 3 + 900 * 4 + 3 + 2);
    char *text = fh_buf_take(&b);
    assert_non_null(text);
    assert_memory_equal(text, "0,1,2,", 6);
    assert_null(b.data);
    fh_free(text);
    text = fh_buf_take(&b);
    assert_string_equal(text, "");
    fh_free(text);
}

static void a_buffer_that_cannot_grow_says_so_once_at_the_end(void **state)
{
    (void)state;
    fh_buf b = {0};
    fh_buf_puts(&b, "abc");
    b.len = SIZE_MAX - 2; /* as if it had grown to the end of the address space */
    fh_buf_add(&b, "xyz", 3);
    assert_true(b.failed);
    b.len = 3;
    fh_buf_puts(&b, "more");
    assert_int_equal(b.len, 3);
    assert_null(fh_buf_take(&b));
    assert_false(b.failed);
}

static void an_arena_gives_zeroed_aligned_memory(void **state)
{
    (void)state;
    fh_arena *a = fh_arena_new();
    assert_non_null(a);
    fh_rng rng;
    fh_rng_seed(&rng, 3, 0);
    enum { N = 3000 };
    static unsigned char *at[N];
    static size_t size[N];
    for (size_t i = 0; i < N; i++) {
        size[i] = (size_t)fh_rng_below(&rng, i % 100 ? 300 : 100000);
        at[i] = fh_arena_alloc(a, size[i]);
        assert_non_null(at[i]);
        assert_int_equal((uintptr_t)at[i] % 16, 0);
        for (size_t j = 0; j < size[i]; j++) assert_int_equal(at[i][j], 0);
        memset(at[i], (int)(i % 255 + 1), size[i]);
    }
    for (size_t i = 0; i < N; i++) {
        for (size_t j = 0; j < size[i]; j++) assert_int_equal(at[i][j], i % 255 + 1);
    }
    assert_string_equal(fh_arena_strndup(a, "hello", 3), "hel");
    assert_string_equal(fh_arena_strndup(a, "hello", 30), "hello");
    assert_null(fh_arena_alloc(a, SIZE_MAX));
    assert_null(fh_arena_alloc(a, SIZE_MAX - 64));
    fh_arena_free(a);
    fh_arena_free(NULL);
}

static void sizes_that_overflow_are_refused(void **state)
{
    (void)state;
    /* Kept from the compiler, which would warn of them. */
    volatile size_t huge = SIZE_MAX, half = SIZE_MAX / 2;
    assert_null(fh_calloc(half, 3));
    assert_null(fh_aligned(huge));
    assert_null(fh_aligned(huge - 100));
    size_t r = 7;
    assert_false(fh_mul(half, 3, &r));
    assert_false(fh_add(huge, 1, &r));
    assert_int_equal(r, 7);
    assert_true(fh_mul(0, huge, &r));
    assert_int_equal(r, 0);
    assert_true(fh_add(huge, 0, &r));
    assert_true(r == SIZE_MAX);
}

static void nothing_asked_for_is_not_out_of_memory(void **state)
{
    (void)state;
    void *p = fh_malloc(0), *q = fh_calloc(0, 8), *r = fh_aligned(0);
    assert_true(p && q && r);
    p = fh_realloc(p, 0);
    assert_non_null(p);
    assert_int_equal((uintptr_t)r % 64, 0);
    fh_free(p);
    fh_free(q);
    fh_free(r);
    fh_free(NULL);
}

static void copies_and_formats_are_whole(void **state)
{
    (void)state;
    char *a = fh_strdup("abc"), *b = fh_strndup("abc", 2), *c = fh_strndup("abc", 20), *d = fh_sprintf("%s-%d", "x", 5);
    assert_string_equal(a, "abc");
    assert_string_equal(b, "ab");
    assert_string_equal(c, "abc");
    assert_string_equal(d, "x-5");
    fh_free(a), fh_free(b), fh_free(c), fh_free(d);
}

static void say(void *ctx, fh_level level, const char *text)
{
    fh_buf_printf(ctx, "%d %s;", (int)level, text);
}

static void progress(void *ctx, const char *what, double done, double total, const char *unit)
{
    fh_buf_printf(ctx, "%s %g/%g %s;", what, done, total, unit);
}

static void a_job_speaks_through_its_callbacks_or_not_at_all(void **state)
{
    (void)state;
    fh_job silent = {0};
    fh_job_say(NULL, FH_WARN, "x");
    fh_job_say(&silent, FH_WARN, "x");
    fh_job_progress(NULL, "x", 1, 2, "y");
    fh_job_progress(&silent, "x", 1, 2, "y");
    assert_false(fh_job_stopped(NULL) || fh_job_stopped(&silent));
    assert_null(fh_job_pool(NULL));

    fh_buf b = {0};
    volatile sig_atomic_t stop = 0;
    fh_job job = {.stop = &stop, .progress = progress, .message = say, .ctx = &b};
    fh_job_say(&job, FH_INFO, "%s", "two\nlines");
    fh_job_progress(&job, "read", 1, 4, "rows");
    assert_false(fh_job_stopped(&job));
    stop = 1;
    assert_true(fh_job_stopped(&job));
    char *text = fh_buf_take(&b);
    assert_string_equal(text, "1 two\\x0alines;read 1/4 rows;");
    fh_free(text);
    double t = fh_now();
    assert_true(fh_now() >= t);
    assert_true(fh_peak_bytes() > 100000);
}

#ifdef FH_FAULTS
/* Everything here that allocates; NULL and a sticky failure are the only ways out. */
static bool allocate_a_little(void)
{
    bool ok = false;
    fh_buf b = {0};
    char *name = fh_strdup("name"), *text = name ? fh_sprintf("%s %d", name, 3) : NULL, *taken = NULL;
    fh_arena *a = fh_arena_new();
    void *aligned = fh_aligned(100);
    if (!text || !a || !aligned) goto out;
    for (int i = 0; i < 100; i++) {
        if (!fh_arena_alloc(a, 1000)) goto out;
        fh_buf_printf(&b, "%d and more of it", i);
    }
    taken = fh_buf_take(&b);
    if (!taken) goto out;
    ok = strlen(taken) > 1000;
out:
    fh_free(name);
    fh_free(text);
    fh_free(taken);
    fh_free(aligned);
    fh_arena_free(a);
    fh_buf_free(&b);
    return ok;
}

static void any_allocation_may_fail(void **state)
{
    (void)state;
    long n = 1;
    for (;; n++) {
        fh_fault_set(FH_FAULT_ALLOC, n);
        bool ok = allocate_a_little();
        bool fired = fh_fault_fired();
        fh_fault_set(FH_FAULT_ALLOC, 0);
        assert_int_equal(ok, !fired);
        if (!fired) break;
    }
    assert_true(n > 10);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_message_is_one_printable_line),
        cmocka_unit_test(a_message_may_quote_the_message_before_it),
        cmocka_unit_test(a_message_that_is_too_long_is_cut),
        cmocka_unit_test(every_status_has_its_name),
        cmocka_unit_test(shown_text_is_escaped_and_cut_where_it_must),
        cmocka_unit_test(utf8_is_valid_up_to_its_first_fault),
        cmocka_unit_test(utf8_knows_every_code_point),
        cmocka_unit_test(a_buffer_grows_and_gives_its_text_away),
        cmocka_unit_test(a_buffer_that_cannot_grow_says_so_once_at_the_end),
        cmocka_unit_test(an_arena_gives_zeroed_aligned_memory),
        cmocka_unit_test(sizes_that_overflow_are_refused),
        cmocka_unit_test(nothing_asked_for_is_not_out_of_memory),
        cmocka_unit_test(copies_and_formats_are_whole),
        cmocka_unit_test(a_job_speaks_through_its_callbacks_or_not_at_all),
#ifdef FH_FAULTS
        cmocka_unit_test(any_allocation_may_fail),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
