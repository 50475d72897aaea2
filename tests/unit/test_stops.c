/* Stop strings: nothing of one is given out, whatever pieces the text comes in. */
#include "base/fault.h"
#include "runtime/runtime.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static fh_stops *stops_of(const char *const *text, size_t n)
{
    fh_stops *s;
    fh_err err;
    if (fh_stops_new(&s, text, n, &err) < 0) fail_msg("%s", err.text);
    return s;
}

/* What comes out of `text` in pieces of `step` bytes; *most: the longest that was held back at once. */
static char *through(fh_stops *s, const char *text, size_t step, size_t *most)
{
    static char out[400];
    size_t n = 0, in = 0, all = strlen(text), len;
    const char *piece;
    fh_err err;
    fh_stops_reset(s);
    *most = 0;
    for (size_t at = 0; at < all; at += step) {
        size_t k = fh_min(step, all - at);
        assert_int_equal(fh_stops_push(s, text + at, k, &piece, &len, &err), FH_OK);
        memcpy(out + n, piece, len), n += len, in += k;
        if (!fh_stops_found(s) && in - n > *most) *most = in - n;
    }
    assert_int_equal(fh_stops_flush(s, &piece, &len, &err), FH_OK);
    memcpy(out + n, piece, len), n += len;
    out[n] = 0;
    return out;
}

/* By definition: the text before the stop string that is complete first, of those the longest. */
static void define(char *out, const char *text, const char *const *stops, size_t n)
{
    for (size_t end = 1; end <= strlen(text); end++)
        for (size_t from = 0; from < end; from++)
            for (size_t i = 0; i < n; i++)
                if (strlen(stops[i]) == end - from && !memcmp(text + from, stops[i], end - from)) {
                    memcpy(out, text, from), out[from] = 0;
                    return;
                }
    strcpy(out, text);
}

static void pieces_do_not_matter(void **state)
{
    static const char *const sets[][3] = {{"END"}, {"ab", "abc", "bc"}, {"aab"}, {"\n\nUser:", "\n\n\n"}, {"abab", "babb"}, {"</s>", "<"}, {"é"}};
    static const char *const texts[] = {"", "no such thing", "to the END of it", "ENEND", "EN", "xabcab", "xbcab", "aaab", "aaaab aab", "one\n\nUser: two", "one\n\n\n",
                                        "a\n\nUs", "ababb", "abbabb", "1 < 2 </s>", "caf\xC3\xA9 au lait", "\xC3\xA8\xC3\xA9", "ababababab", "</s", "E\nE\nEND"};
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++) {
        size_t n = 0, longest = 0, most;
        while (n < 3 && sets[i][n]) longest = fh_max(longest, strlen(sets[i][n])), n++;
        fh_stops *s = stops_of(sets[i], n);
        for (size_t t = 0; t < sizeof texts / sizeof *texts; t++) {
            char want[400];
            define(want, texts[t], sets[i], n);
            for (size_t step = 1; step < 12; step++) {
                assert_string_equal(through(s, texts[t], step, &most), want);
                assert_int_equal(fh_stops_found(s), strcmp(want, texts[t]) != 0);
                assert_true(most < longest); /* no more is held back than may begin one */
            }
        }
        fh_stops_free(s);
    }
}

static void nothing_comes_after_a_stop_until_it_is_reset(void **state)
{
    const char *stop = ".", *piece;
    size_t len;
    fh_stops *s = stops_of(&stop, 1);
    assert_int_equal(fh_stops_push(s, "a.b", 3, &piece, &len, NULL), FH_OK);
    assert_true(len == 1 && *piece == 'a' && fh_stops_found(s));
    assert_int_equal(fh_stops_push(s, "c", 1, &piece, &len, NULL), FH_OK);
    assert_int_equal(len, 0);
    assert_int_equal(fh_stops_flush(s, &piece, &len, NULL), FH_OK);
    assert_int_equal(len, 0);
    fh_stops_reset(s);
    assert_false(fh_stops_found(s));
    assert_int_equal(fh_stops_push(s, "c", 1, &piece, &len, NULL), FH_OK);
    assert_true(len == 1 && *piece == 'c');
    fh_stops_free(s);
    fh_stops_free(NULL);
}

static void texts_that_can_never_be_printed_are_refused(void **state)
{
    static const char *const empty[] = {"a", ""}, *const broken[] = {"caf\xE9"};
    fh_stops *s;
    fh_err err;
    assert_int_equal(fh_stops_new(&s, empty, 2, &err), FH_EUSAGE);
    assert_non_null(strstr(err.text, "--stop: an empty text"));
    assert_int_equal(fh_stops_new(&s, broken, 1, &err), FH_EUSAGE);
    assert_non_null(strstr(err.text, "not valid UTF-8"));
}

#ifdef FH_FAULTS
static void running_out_of_memory_anywhere_is_a_clean_error(void **state)
{
    static const char *const stops[] = {"one", "two"};
    for (long n = 1;; n++) {
        fh_stops *s = NULL;
        const char *piece;
        size_t len;
        fh_err err = {0};
        fh_fault_set(FH_FAULT_ALLOC, n);
        fh_status rc = fh_stops_new(&s, stops, 2, &err);
        if (rc == FH_OK) rc = fh_stops_push(s, "text tw", 7, &piece, &len, &err);
        if (rc == FH_OK) rc = fh_stops_flush(s, &piece, &len, &err);
        bool fired = fh_fault_fired();
        fh_fault_set(FH_FAULT_ALLOC, 0);
        fh_stops_free(s);
        if (!fired) {
            assert_int_equal(rc, FH_OK);
            break;
        }
        assert_int_equal(rc, FH_ENOMEM);
        assert_true(err.text[0]);
    }
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pieces_do_not_matter),
        cmocka_unit_test(nothing_comes_after_a_stop_until_it_is_reset),
        cmocka_unit_test(texts_that_can_never_be_printed_are_refused),
#ifdef FH_FAULTS
        cmocka_unit_test(running_out_of_memory_anywhere_is_a_clean_error),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
