/* Sampling: what is kept, and how often each is drawn. */
#include "base/base.h"
#include "base/fault.h"
#include "runtime/flashhead.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static uint32_t draw(fh_sampling how, const uint32_t *ids, const float *logits, size_t n, double random)
{
    uint32_t id = UINT32_MAX;
    fh_err err;
    if (fh_sample(&how, ids, logits, n, random, &id, &err) < 0) fail_msg("%s", err.text);
    return id;
}

/* Bit i: id i can come out, found by walking [0, 1). */
static unsigned support(fh_sampling how, const float *logits, size_t n)
{
    static const uint32_t ids[] = {0, 1, 2, 3, 4, 5, 6, 7};
    unsigned seen = 0;
    for (int i = 0; i < 20000; i++) seen |= 1u << draw(how, ids, logits, n, i / 20000.0);
    return seen;
}

static void temperature_zero_takes_the_best_and_the_smaller_id_of_equals(void **state)
{
    const uint32_t ids[] = {9, 4, 7, 5};
    const float logits[] = {1, 3, 3, -INFINITY};
    for (double r = 0; r < 1; r += 0.1) assert_int_equal(draw((fh_sampling){.temperature = 0}, ids, logits, 4, r), 4);
    const float zeros[] = {-0.0f, -1, 0.0f, -0.0f};
    assert_int_equal(draw((fh_sampling){.temperature = 0, .top_p = 1}, ids, zeros, 4, 0.5), 5);
    assert_int_equal(draw((fh_sampling){.temperature = 1, .top_p = 1, .top_k = 1}, ids, zeros, 4, 0.999), 5);
}

static void draws_run_through_the_candidates_best_first(void **state)
{
    const uint32_t ids[] = {30, 10, 20};
    const float logits[] = {logf(1), logf(2), logf(1)};
    fh_sampling how = {.temperature = 1, .top_p = 1};
    assert_int_equal(draw(how, ids, logits, 3, 0), 10);
    assert_int_equal(draw(how, ids, logits, 3, 0.499), 10);
    assert_int_equal(draw(how, ids, logits, 3, 0.501), 20);
    assert_int_equal(draw(how, ids, logits, 3, 0.749), 20);
    assert_int_equal(draw(how, ids, logits, 3, 0.751), 30);
    assert_int_equal(draw(how, ids, logits, 3, nextafter(1, 0)), 30);
}

static void filters_keep_what_they_say(void **state)
{
    /* Probabilities 1/2, 1/4, 1/8, 1/16, 1/16. */
    const float p[] = {logf(8), logf(4), logf(2), 0, 0};
    assert_int_equal(support((fh_sampling){.temperature = 1, .top_p = 1}, p, 5), 31);
    assert_int_equal(support((fh_sampling){.temperature = 1, .top_p = 1, .top_k = 2}, p, 5), 3);
    assert_int_equal(support((fh_sampling){.temperature = 1, .top_p = 1, .top_k = 4}, p, 5), 15); /* 3 and 4 tie: the smaller id */
    assert_int_equal(support((fh_sampling){.temperature = 1, .top_p = 1, .top_k = 99}, p, 5), 31);
    assert_int_equal(support((fh_sampling){.temperature = 1, .top_p = 0}, p, 5), 1);
    assert_int_equal(support((fh_sampling){.temperature = 1, .top_p = 0.49f}, p, 5), 1);
    assert_int_equal(support((fh_sampling){.temperature = 1, .top_p = 0.51f}, p, 5), 3);
    assert_int_equal(support((fh_sampling){.temperature = 1, .top_p = 0.76f}, p, 5), 7);
    /* top_p looks at what top_k left: 2/3 and 1/3. */
    assert_int_equal(support((fh_sampling){.temperature = 1, .top_p = 0.6f, .top_k = 2}, p, 5), 1);
    assert_int_equal(support((fh_sampling){.temperature = 1, .top_p = 0.7f, .top_k = 2}, p, 5), 3);
    assert_int_equal(support((fh_sampling){.temperature = 1, .top_p = 1, .min_p = 0.2f}, p, 5), 7);
    assert_int_equal(support((fh_sampling){.temperature = 1, .top_p = 1, .min_p = 1}, p, 5), 1);
    /* Temperature comes first: at 1/2 the probabilities are squared, 64 : 16 : 4 : 1 : 1. */
    assert_int_equal(support((fh_sampling){.temperature = 0.5f, .top_p = 1, .min_p = 0.2f}, p, 5), 3);
    assert_int_equal(support((fh_sampling){.temperature = 0.5f, .top_p = 0.73f}, p, 5), 1);
    assert_int_equal(support((fh_sampling){.temperature = 0.5f, .top_p = 0.75f}, p, 5), 3);
}

static void infinities_and_nonsense_are_left_out(void **state)
{
    const float none[] = {-INFINITY, NAN}, some[] = {-INFINITY, 2, NAN, 2}, high[] = {1, INFINITY, 5, INFINITY};
    const uint32_t ids[] = {0, 1, 2, 3};
    fh_sampling how = {.temperature = 1, .top_p = 1};
    fh_err err;
    uint32_t id = 77;
    assert_int_equal(fh_sample(&how, ids, none, 2, 0.5, &id, &err), FH_EUSAGE);
    assert_int_equal(fh_sample(&how, ids, none, 0, 0.5, &id, &err), FH_EUSAGE);
    how.temperature = 0;
    assert_int_equal(fh_sample(&how, ids, none, 2, 0.5, &id, &err), FH_EUSAGE);
    assert_int_equal(id, 77);
    how.temperature = 1;
    assert_int_equal(support(how, some, 4), 10);
    assert_int_equal(support(how, high, 4), 10);
    how.temperature = 1e-30f;
    assert_int_equal(support(how, some, 4), 10);
}

static void settings_out_of_range_are_refused_by_name(void **state)
{
    static const struct { fh_sampling how; double random; const char *word; } bad[] = {
        {{-1, 1, 0, 0}, 0.5, "temperature"}, {{NAN, 1, 0, 0}, 0.5, "temperature"}, {{INFINITY, 1, 0, 0}, 0.5, "temperature"},
        {{1, 1.5f, 0, 0}, 0.5, "top_p"}, {{1, NAN, 0, 0}, 0.5, "top_p"}, {{1, -0.1f, 0, 0}, 0.5, "top_p"},
        {{1, 1, -0.1f, 0}, 0.5, "min_p"}, {{1, 1, 1.1f, 0}, 0.5, "min_p"}, {{1, 1, NAN, 0}, 0.5, "min_p"},
        {{1, 1, 0, 0}, 1, "random"}, {{1, 1, 0, 0}, -0.1, "random"}, {{1, 1, 0, 0}, NAN, "random"}};
    const uint32_t ids[] = {0};
    const float logits[] = {0};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        fh_err err;
        uint32_t id;
        assert_int_equal(fh_sample(&bad[i].how, ids, logits, 1, bad[i].random, &id, &err), FH_EUSAGE);
        assert_non_null(strstr(err.text, bad[i].word));
    }
}

static void draws_follow_the_softmax(void **state)
{
    enum { N = 50, DRAWS = 200000 };
    uint32_t ids[N];
    float logits[N];
    double p[N], total = 0, chi = 0;
    unsigned count[N] = {0};
    fh_rng rng;
    fh_rng_seed(&rng, 3, 1);
    for (uint32_t i = 0; i < N; i++) {
        ids[i] = N - 1 - i;
        logits[i] = (float)(4 * fh_rng_double(&rng));
        total += p[ids[i]] = exp((double)logits[i] / 0.8f);
    }
    for (int i = 0; i < DRAWS; i++) count[draw((fh_sampling){.temperature = 0.8f, .top_p = 1}, ids, logits, N, fh_rng_double(&rng))]++;
    for (int i = 0; i < N; i++) {
        double expected = DRAWS * p[i] / total;
        chi += (count[i] - expected) * (count[i] - expected) / expected;
    }
    /* 49 degrees of freedom: 0.1 % of honest samplers are above 85.4, 0.1 % below 23.98; the seed is fixed. */
    if (!(chi < 85.4 && chi > 23.9)) fail_msg("chi-square %g", chi);
}

#ifdef FH_FAULTS
static void running_out_of_memory_is_a_clean_error(void **state)
{
    const uint32_t ids[] = {0, 1};
    const float logits[] = {0, 1};
    fh_sampling how = {.temperature = 1, .top_p = 1};
    uint32_t id = 9;
    fh_fault_set(FH_FAULT_ALLOC, 1);
    fh_status rc = fh_sample(&how, ids, logits, 2, 0.1, &id, NULL);
    fh_fault_set(FH_FAULT_ALLOC, 0);
    assert_int_equal(rc, FH_ENOMEM);
    assert_int_equal(id, 9);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(temperature_zero_takes_the_best_and_the_smaller_id_of_equals),
        cmocka_unit_test(draws_run_through_the_candidates_best_first),
        cmocka_unit_test(filters_keep_what_they_say),
        cmocka_unit_test(infinities_and_nonsense_are_left_out),
        cmocka_unit_test(settings_out_of_range_are_refused_by_name),
        cmocka_unit_test(draws_follow_the_softmax),
#ifdef FH_FAULTS
        cmocka_unit_test(running_out_of_memory_is_a_clean_error),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
