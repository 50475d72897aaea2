/* Artifacts that are sound and artifacts that are not, packed here from random heads; spreads and gates. */
#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "artifacts/artifacts.h"
#include "base/fault.h"
#include "tests/unit/head_world.h"
#include "validate/validate.h"

static fh_err err;
static char dir[] = "/tmp/fh-validate-XXXXXX", path[100], page[100];
enum { STATES = 600 };

static int make_dir(void **state)
{
    (void)state;
    if (!mkdtemp(dir)) return -1;
    snprintf(path, sizeof path, "%s/m.fhead", dir);
    snprintf(page, sizeof page, "%s/m.html", dir);
    return 0;
}

static int remove_dir(void **state)
{
    (void)state;
    unlink(path), unlink(page);
    return rmdir(dir);
}

/* ---- artifacts ---------------------------------------------------------------------------------------------------- */

typedef struct artifact { world w; float *states; fh_json *calibration; fh_pack_params pack; char fingerprint[65]; } artifact;

static void artifact_open(artifact *a, bool bias)
{
    fh_rng_seed(&rng, 11, 0);
    world_open(&a->w, (shape){.v = 120, .d = 24, .k = 16, .centroids = FH_I8, .tokens = FH_I8, .exact = FH_F32, .bias = bias, .hot = true, .rerank = 4});
    a->states = make_states(&a->w, STATES);
    fh_rows rows = {a->w.rows, FH_F32, 120, 24, 24 * sizeof(float)}, bias_row = {a->w.bias, FH_F32, 1, 120, 120 * sizeof(float)};
    fh_fingerprint(a->fingerprint, &rows, bias ? &bias_row : NULL, 0);
    a->w.parts.probes = 8;
    a->calibration = fh_json_object();
    fh_json_add_u64(a->calibration, "probes", 8);
    fh_json_add_array(a->calibration, "hot_ids");
    fh_json_add_string(a->calibration, "routing", "mean");
    fh_json_add_double(a->calibration, "target", 0.3);
    fh_json_add_double(a->calibration, "confidence", 0.95);
    fh_json_add_u64(a->calibration, "containment_k", 1);
    fh_json_add_double(a->calibration, "bound", 0.31);
    fh_json_add_string(a->calibration, "text", "<script>");
    a->pack = (fh_pack_params){.path = path,
                               .input = {.name = "test",
                                         .model_type = "llama",
                                         .dtype = FH_F32,
                                         .fingerprint = a->fingerprint,
                                         .head = &a->w.parts,
                                         .routing = "mean",
                                         .exact = rows,
                                         .calibration = a->calibration}};
}

static void artifact_pack(const artifact *a) { if (fh_pack(&a->pack, NULL, NULL, &err) < 0) fail_msg("%s", err.text); }

static void artifact_close(artifact *a)
{
    world_close(&a->w);
    free(a->states);
    fh_json_free(a->calibration);
}

/* The one check that fails, or -1; `detail` has to be in what it says. */
static int the_failed(const fh_validate_params *p, const char *detail)
{
    fh_validation v;
    int failed = -1;
    if (fh_validate(&v, path, p, NULL, &err) < 0) fail_msg("%s", err.text);
    for (int i = 0; i < FH_CHECKS; i++) {
        if (v.check[i].verdict != FH_FAILED) continue;
        if (failed >= 0) fail_msg("two checks fail: %s and %s", v.check[failed].name, v.check[i].name);
        failed = i;
        if (!strstr(v.check[i].detail, detail)) fail_msg("%s: '%s' does not say '%s'", v.check[i].name, v.check[i].detail, detail);
    }
    assert_int_equal(fh_validation_failed(&v), failed >= 0);
    fh_validation_free(&v);
    return failed;
}

static void a_sound_artifact_passes_and_is_measured(void **state)
{
    (void)state;
    for (int bias = 0; bias < 2; bias++) {
        artifact a;
        fh_validation v;
        artifact_open(&a, bias);
        artifact_pack(&a);
        fh_validate_params p = {.states = a.states, .n_states = STATES, .anatomy_positions = 100};
        assert_int_equal(fh_validate(&v, path, &p, NULL, &err), FH_OK);
        for (int i = 0; i < FH_CHECKS; i++)
            if (v.check[i].verdict != FH_PASSED) fail_msg("%s: %s (%s)", v.check[i].name, fh_verdict_name(v.check[i].verdict), v.check[i].detail);
        const fh_quality *q = &v.quality;
        assert_true(q->positions == STATES && q->documents >= 9 && q->probes == 8 && q->containment_k == 1);
        assert_true(q->kept[0].misses == q->top[0].misses && q->kept[0].lower < q->kept[0].share && q->kept[0].share < q->kept[0].upper);
        assert_true(q->top[0].share >= q->top[1].share && q->top[1].share >= q->top[2].share && q->top[2].share >= q->top[3].share);
        size_t in_bands = 0, own = 0;
        for (size_t i = 0; i < q->by_margin.n; i++) in_bands += q->by_margin.band[i].positions;
        assert_int_equal(in_bands, STATES);
        assert_int_equal(q->by_frequency.n, 0); /* there is no text */
        for (size_t i = 0; i < q->n_curve; i++) {
            own += q->curve[i].probes == 8;
            if (i) assert_true(q->curve[i].probes > q->curve[i - 1].probes && q->curve[i].top[0].misses <= q->curve[i - 1].top[0].misses);
        }
        assert_true(own == 1 && q->curve[q->n_curve - 1].probes == 16 && q->curve[q->n_curve - 1].top[3].misses == 0);
        for (size_t i = 1; i < q->n_worst; i++) assert_true(q->worst[i].misses <= q->worst[i - 1].misses && q->worst[i].misses <= q->worst[i].times);
        const fh_anatomy *n = &v.anatomy;
        assert_true(n->positions == 100 && n->by_clustering + n->by_routing + n->by_encoding == n->misses && !n->sources);
        assert_true(v.n_parity >= 1 && v.parity[0].found.differ == 0);
        assert_int_equal(fh_validate_page(&v, NULL, 0, page, &err), FH_OK);
        char *text;
        size_t len;
        assert_int_equal(fh_file_read(&text, &len, page, 1 << 22, &err), FH_OK);
        assert_true(strstr(text, "&lt;script&gt;") && !strstr(text, "<script"));
        fh_free(text);
        fh_validation_free(&v);
        artifact_close(&a);
    }
}

static void each_fault_fails_its_own_check(void **state)
{
    artifact a;
    (void)state;
    artifact_open(&a, false);
    fh_validate_params none = {0}, measured = {.states = a.states, .n_states = STATES, .no_anatomy = true};
    artifact_pack(&a);
    assert_int_equal(the_failed(&none, ""), -1);

    /* a bit */
    char *bytes;
    size_t len;
    assert_int_equal(fh_file_read(&bytes, &len, path, 1 << 24, &err), FH_OK);
    bytes[len - 100] ^= 1;
    assert_int_equal(fh_file_write(path, bytes, len, 0, &err), FH_OK);
    fh_free(bytes);
    assert_int_equal(the_failed(&measured, "do not have the digest"), FH_CHECK_INTEGRITY);

    /* another fingerprint */
    char other[65];
    memset(other, 'a', 64), other[64] = 0;
    a.pack.input.fingerprint = other;
    artifact_pack(&a);
    assert_int_equal(the_failed(&measured, "rows or permutation are not what was packed"), FH_CHECK_BELONGING);
    a.pack.input.fingerprint = a.fingerprint;

    /* encoded rows of another token */
    int8_t *row = (int8_t *)a.w.tokens, kept[24];
    memcpy(kept, row, 24);
    for (int i = 0; i < 24; i++) row[i] = (int8_t)-row[i];
    artifact_pack(&a);
    assert_int_equal(the_failed(&measured, "1 of 120 rows are not those of its exact rows"), FH_CHECK_ROWS);
    memcpy(row, kept, 24);

    /* a calibration of more probes, of another routing, of another hot list, of a larger head */
    static const char *const stale[][2] = {{"{\"probes\":9,\"target\":0.3}", "P = 8"},
                                           {"{\"probes\":8,\"routing\":\"raw\"}", "routing 'raw'"},
                                           {"{\"probes\":8,\"hot_ids\":[1,50]}", "hot list"},
                                           {"{\"probes\":8,\"curve\":[{\"probes\":1},{\"probes\":32}]}", "32 clusters"},
                                           {"{\"probes\":8,\"rerank\":4,\"step_bytes\":123.0}", "other shape"},
                                           {"{\"probes\":8,\"dense_bytes\":99}", "other shape"}};
    for (size_t i = 0; i < sizeof stale / sizeof *stale; i++) {
        fh_json *j;
        assert_int_equal(fh_json_parse(&j, stale[i][0], strlen(stale[i][0]), "test", &err), FH_OK);
        a.pack.input.calibration = j;
        artifact_pack(&a);
        assert_int_equal(the_failed(&measured, stale[i][1]), FH_CHECK_CALIBRATION);
        fh_json_free(j);
    }
    a.pack.input.calibration = a.calibration;
    artifact_pack(&a);

    /* a state that is not finite; a promise that is not kept */
    a.states[300 * 24 + 5] = NAN;
    assert_int_equal(the_failed(&measured, "the state at position 300"), FH_CHECK_STATES);
    a.states[300 * 24 + 5] = -INFINITY;
    assert_int_equal(the_failed(&measured, "the state at position 300"), FH_CHECK_STATES);
    a.states[300 * 24 + 5] = 0.5f;
    none.states_fault = "no good";
    assert_int_equal(the_failed(&none, "no good"), FH_CHECK_STATES);
    fh_json *bold;
    static const char text[] = "{\"probes\":8,\"target\":0.999,\"confidence\":0.95,\"containment_k\":1}";
    assert_int_equal(fh_json_parse(&bold, text, strlen(text), "test", &err), FH_OK);
    a.pack.input.calibration = bold;
    artifact_pack(&a);
    assert_int_equal(the_failed(&measured, "0.999 is promised"), FH_CHECK_PROMISE);
    fh_json_free(bold);
    artifact_close(&a);
}

/* ---- numbers -------------------------------------------------------------------------------------------------------- */

static void percentiles_are_linear_between_neighbours(void **state)
{
    double v[1001], one[] = {3}, two[] = {5, 1};
    (void)state;
    for (int i = 0; i < 1001; i++) v[i] = (double)((i * 10) % 1001); /* 0 .. 1000 in another order */
    fh_spread s = fh_spread_of(v, 1001);
    assert_true(s.mean == 500 && s.max == 1000 && s.min == 0 && s.median == 500);
    assert_true(fabs(s.p99_9 - 999) < 1e-9 && fabs(s.p99 - 990) < 1e-9 && fabs(s.p95 - 950) < 1e-9 && fabs(s.p90 - 900) < 1e-9);
    assert_true(fabs(s.p10 - 100) < 1e-9 && fabs(s.p5 - 50) < 1e-9 && fabs(s.p1 - 10) < 1e-9 && fabs(s.p0_1 - 1) < 1e-9);
    s = fh_spread_of(one, 1);
    assert_true(s.mean == 3 && s.max == 3 && s.p99_9 == 3 && s.min == 3);
    s = fh_spread_of(two, 2);
    assert_true(s.mean == 3 && s.median == 3 && fabs(s.p90 - 4.6) < 1e-12 && s.min == 1);
}

static void gates_hold_numbers_to_what_is_asked(void **state)
{
    static const struct { const char *gate; fh_status rc; fh_verdict verdict;
    } rows[] = {
        {"mass>=0.5", FH_OK, FH_PASSED},
        {"mass>=0.75", FH_OK, FH_PASSED},
        {"mass<=0.75", FH_OK, FH_PASSED},
        {"mass>=0.7500001", FH_OK, FH_FAILED},
        {"mass<=0.7", FH_OK, FH_FAILED},
        {"kl<=1e-3", FH_OK, FH_FAILED},
        {"kl>=-1", FH_OK, FH_PASSED},
        {"positions>=10", FH_OK, FH_PASSED},
        {"positions>=11", FH_OK, FH_FAILED},
        {"perplexity_ratio<=1e9", FH_OK, FH_FAILED},
        {"last_word_same>=0", FH_OK, FH_FAILED}, /* not measured */
        {"agreement>=0", FH_OK, FH_FAILED},      /* NAN */
        {"mass", FH_EUSAGE, FH_SKIPPED},
        {"mass>0.5", FH_EUSAGE, FH_SKIPPED},
        {"mass=>0.5", FH_EUSAGE, FH_SKIPPED},
        {"mass>=", FH_EUSAGE, FH_SKIPPED},
        {"mass>=0.5 ", FH_EUSAGE, FH_SKIPPED},
        {"mass>=inf", FH_EUSAGE, FH_SKIPPED},
        {"mass>=nan", FH_EUSAGE, FH_SKIPPED},
        {">=1", FH_EUSAGE, FH_SKIPPED},
        {"", FH_EUSAGE, FH_SKIPPED},
        {"mas>=0.5", FH_EUSAGE, FH_SKIPPED},
        {"masses>=0.5", FH_EUSAGE, FH_SKIPPED},
        {"Mass>=0.5", FH_EUSAGE, FH_SKIPPED},
    };
    fh_validation v = {.quality = {.positions = 10, .mass = 0.75, .agreement = NAN, .kl = {.mean = 0.25}}};
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        fh_check c;
        fh_status rc = fh_validate_gate(&c, &v, rows[i].gate, &err);
        if (rc != rows[i].rc || (rc == FH_OK && c.verdict != rows[i].verdict))
            fail_msg("'%s': %s, %s", rows[i].gate, fh_status_name(rc), fh_verdict_name(c.verdict));
    }
    size_t n = 0;
    for (double value; fh_validate_number(&v, n, &value); n++) {}
    assert_true(n >= 20);
}

static void a_file_that_is_no_artifact_is_an_error(void **state)
{
    fh_validation v;
    fh_validate_params p = {0};
    (void)state;
    assert_int_equal(fh_file_write(path, "text", 4, 0, &err), FH_OK);
    assert_int_equal(fh_validate(&v, path, &p, NULL, &err), FH_EFORMAT);
    fh_validation_free(&v);
    unlink(path);
    assert_int_equal(fh_validate(&v, path, &p, NULL, &err), FH_ENOTFOUND);
    fh_validation_free(&v);
}

#ifdef FH_FAULTS
static void every_allocation_may_fail(void **state)
{
    artifact a;
    bool fired = true;
    (void)state;
    artifact_open(&a, true);
    artifact_pack(&a);
    fh_validate_params p = {.states = a.states, .n_states = 40, .anatomy_positions = 10};
    for (long n = 1; fired; n++) {
        fh_validation v;
        fh_fault_set(FH_FAULT_ALLOC, n);
        fh_status rc = fh_validate(&v, path, &p, NULL, &err);
        if (rc == FH_OK) rc = fh_validate_page(&v, NULL, 0, page, &err);
        fired = fh_fault_fired();
        fh_fault_set(FH_FAULT_ALLOC, 0);
        bool judged = rc == FH_OK && v.check[FH_CHECK_BELONGING].verdict == FH_FAILED;
        if (rc != (fired ? FH_ENOMEM : FH_OK) || judged)
            fail_msg("allocation %ld: %s%s (%s)", n, fh_status_name(rc), judged ? ", and a verdict" : "", rc < 0 ? err.text : "");
        fh_validation_free(&v);
    }
    artifact_close(&a);
}
#else
static void every_allocation_may_fail(void **state) { (void)state; skip(); }
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_sound_artifact_passes_and_is_measured),
        cmocka_unit_test(each_fault_fails_its_own_check),
        cmocka_unit_test(percentiles_are_linear_between_neighbours),
        cmocka_unit_test(gates_hold_numbers_to_what_is_asked),
        cmocka_unit_test(a_file_that_is_no_artifact_is_an_error),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
