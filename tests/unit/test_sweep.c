/* sweep: the frontier, its three names, and what is written of them. */
#include "validate/validate.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

static fh_sweep_point point(uint32_t k, uint32_t probes, double seconds, double agreement)
{
    fh_sweep_point p = {.setting = {.k = k, .cap = 16, .probes = probes, .centroids = FH_I8, .tokens = FH_I8},
                        .head = {.median = seconds, .low = seconds, .high = seconds},
                        .quality = {.probes = probes, .top1 = agreement, .agreement = agreement}, .dense_head = 1, .step_bytes = 1000.0 * probes};
    return p;
}

static const char *name_of(const fh_sweep_point *p) { return p->name ? p->name : ""; }

static void the_frontier_is_what_nothing_beats(void **state)
{
    fh_sweep_point p[] = {
        point(8, 1, 5, 0.90), point(8, 2, 6, 0.98), point(8, 4, 7, 0.97), /* slower and worse than the one before */
        point(16, 1, 6, 0.95), point(16, 2, 8, 0.995), point(16, 4, 9, 0.995), point(16, 8, 12, 0.9995), point(16, 16, 20, 1),
        point(32, 1, NAN, 1), point(32, 2, 4, NAN),
    };
    static const bool frontier[] = {true, true, false, false, true, false, true, true, false, false};
    fh_sweep_judge(p, 10);
    for (size_t i = 0; i < 10; i++) if (p[i].frontier != frontier[i]) fail_msg("point %zu", i);
    assert_string_equal(name_of(&p[1]), "fast");
    assert_string_equal(name_of(&p[4]), "balanced");
    assert_string_equal(name_of(&p[6]), "high accuracy");
    for (size_t i = 0; i < 10; i++) if (i != 1 && i != 4 && i != 6) assert_null(p[i].name);
}

static void each_name_is_given_once_and_the_best_there_is_takes_it_where_none_is_good_enough(void **state)
{
    fh_sweep_point good[] = {point(8, 1, 1, 0.9991), point(8, 2, 2, 0.9995), point(8, 4, 3, 0.9999)}; /* all would do for all: one is left for each */
    fh_sweep_judge(good, 3);
    assert_string_equal(name_of(&good[0]), "high accuracy");
    assert_null(good[1].name), assert_null(good[2].name);
    fh_sweep_point poor[] = {point(8, 1, 1, 0.1), point(8, 2, 2, 0.2), point(8, 4, 3, 0.3), point(8, 8, 4, 0.4)};
    fh_sweep_judge(poor, 4);
    assert_string_equal(name_of(&poor[3]), "high accuracy");
    assert_string_equal(name_of(&poor[2]), "balanced");
    assert_string_equal(name_of(&poor[1]), "fast");
    fh_sweep_judge(poor, 1);
    assert_string_equal(name_of(&poor[0]), "high accuracy");
    fh_sweep_judge(NULL, 0);
    /* Equal times: the better one; equal in everything: the first. */
    fh_sweep_point same[] = {point(8, 1, 1, 0.5), point(8, 2, 1, 0.6), point(16, 2, 1, 0.6)};
    fh_sweep_judge(same, 3);
    assert_false(same[0].frontier), assert_true(same[1].frontier), assert_false(same[2].frontier);
}

static fh_sweep some(fh_sweep_point *p, size_t n)
{
    fh_sweep_judge(p, n);
    return (fh_sweep){.shape = {.model_type = "llama", .vocab = 800, .hidden = 96, .dtype = FH_BF16}, .name = "a <model> & \"more\"", .text = "self",
                      .positions = 123, .threads = 2, .isa = "ref", .prompt = 4, .tokens = 8, .points = p, .n = n};
}

static void a_line_of_csv_is_a_point_and_what_is_not_known_is_empty(void **state)
{
    fh_sweep_point p[] = {point(8, 1, 1e-4, 0.5), point(8, 2, 2e-4, 1)};
    p[1].setting.tokens = FH_BF16, p[1].flash = p[1].dense = (fh_token_timing){0.25, 0.5, 0.5};
    fh_sweep s = some(p, 2);
    char *csv = fh_sweep_csv(&s), *line = csv;
    size_t columns[4], n = 0;
    assert_non_null(csv);
    for (char *end; (end = strstr(line, "\r\n")); line = end + 2, n++) {
        *end = 0;
        assert_true(n < 3);
        columns[n] = 1;
        for (const char *c = line; *c; c++) columns[n] += *c == ',';
        if (n == 0) assert_true(!strncmp(line, "centroids,rows,k,cap,probes,", 28));
        if (n == 1) assert_true(!strncmp(line, "int8,int8,8,16,1,0,0.5,", 23)), assert_non_null(strstr(line, ",100,100,100,1000000,10000,,,,,"));
        if (n == 2) assert_true(!strncmp(line, "int8,bf16,8,16,2,0,1,", 21)), assert_non_null(strstr(line, ",250,500,2,1,"));
        if (n == 2) assert_non_null(strstr(line, ",yes,high accuracy"));
    }
    assert_int_equal(n, 3);
    assert_int_equal(*line, 0);
    assert_int_equal(columns[0], columns[1]), assert_int_equal(columns[1], columns[2]);
    fh_free(csv);
    fh_json *j = fh_sweep_json(&s);
    assert_int_equal(fh_json_count(fh_json_get(j, "points")), 2);
    assert_int_equal(fh_json_count(fh_json_get(j, "frontier")), 2);
    fh_json_free(j);
}

static char *page_of(const fh_sweep *s)
{
    char path[] = "/tmp/fh-sweep-XXXXXX.html", *text = NULL;
    size_t len;
    fh_err err;
    int fd = mkstemps(path, 5);
    assert_true(fd >= 0);
    close(fd);
    if (fh_sweep_page(s, path, &err) < 0 || fh_file_read(&text, &len, path, 1 << 24, &err) < 0) fail_msg("%s", err.text);
    unlink(path);
    return text;
}

static void the_page_has_every_point_and_shows_names_as_text(void **state)
{
    fh_sweep_point p[40];
    for (uint32_t i = 0; i < 40; i++) p[i] = point(1u << (3 + i / 4), 1 + i % 4, 1e-4 * (1 + i), 1 - 0.5 / (1 + i)); /* ten heads: more than are drawn */
    fh_sweep s = some(p, 40);
    char *page = page_of(&s);
    assert_null(strstr(page, "<model>"));
    assert_non_null(strstr(page, "&lt;model&gt;"));
    assert_non_null(strstr(page, "high accuracy"));
    assert_non_null(strstr(page, "the table has all"));
    size_t rows = 0;
    for (const char *at = page; (at = strstr(at, "<tr")); at++) rows++;
    assert_true(rows >= 40 + 40 + 2); /* all of them are on the frontier, too */
    fh_free(page);
    s.n = 0;
    page = page_of(&s); /* nothing to show is no error */
    fh_free(page);
}

#ifdef FH_FAULTS
#include "base/fault.h"
static void running_out_of_memory_anywhere_is_a_clean_error(void **state)
{
    fh_sweep_point p[] = {point(8, 1, 1e-4, 0.5), point(8, 2, 2e-4, 1)};
    fh_sweep s = some(p, 2);
    bool done = false;
    for (long n = 1; !done; n++) {
        char path[] = "/tmp/fh-sweep-faults.html";
        fh_err err;
        assert_true(n < 2000);
        fh_fault_set(FH_FAULT_ALLOC, n);
        char *csv = fh_sweep_csv(&s);
        fh_json *j = fh_sweep_json(&s);
        char *text = fh_json_print(j, false);
        fh_status rc = fh_sweep_page(&s, path, &err);
        done = !fh_fault_fired();
        fh_fault_set(FH_FAULT_ALLOC, 0);
        assert_true(rc == FH_OK || rc == FH_ENOMEM);
        if (done) assert_true(csv && text && rc == FH_OK);
        fh_free(csv);
        fh_free(text);
        fh_json_free(j);
        unlink(path);
    }
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_frontier_is_what_nothing_beats),
        cmocka_unit_test(each_name_is_given_once_and_the_best_there_is_takes_it_where_none_is_good_enough),
        cmocka_unit_test(a_line_of_csv_is_a_point_and_what_is_not_known_is_empty),
        cmocka_unit_test(the_page_has_every_point_and_shows_names_as_text),
#ifdef FH_FAULTS
        cmocka_unit_test(running_out_of_memory_anywhere_is_a_clean_error),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
