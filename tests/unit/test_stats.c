/* Bounds of shares against their definitions and against numbers of scipy 1.16 (beta.ppf, t.ppf). */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "calib/calib.h"

/* The chance of `misses` or fewer in n, added up term by term in long double. */
static double tail(uint64_t n, uint64_t misses, double keep)
{
    long double total = 0, term = powl((long double)keep, (long double)n);
    for (uint64_t j = 0; j <= misses; j++) {
        total += term;
        term *= (long double)(n - j) / (long double)(j + 1) * (1 - (long double)keep) / (long double)keep;
    }
    return (double)total;
}

static void the_lower_bound_is_where_the_tail_is_one_minus_the_confidence(void **state)
{
    static const uint64_t n[] = {1, 10, 100, 1000, 5000}, misses[] = {0, 1, 5, 30};
    (void)state;
    for (size_t i = 0; i < 5; i++)
        for (size_t j = 0; j < 4; j++) {
            if (misses[j] >= n[i]) continue;
            double b = fh_share_lower((double)n[i], (double)misses[j], 0.95);
            assert_true(b > 0 && b < 1 - (double)misses[j] / (double)n[i] + 1e-12);
            assert_true(fabs(tail(n[i], misses[j], b) - 0.05) < 1e-9);
        }
}

static void a_bound_on_nothing_or_on_misses_alone_is_zero_and_without_a_miss_below_one(void **state)
{
    (void)state;
    assert_true(fh_share_lower(0, 0, 0.95) == 0);
    assert_true(fh_share_lower(10, 10, 0.95) == 0);
    assert_true(fh_share_lower(NAN, 1, 0.95) == 0);
    assert_true(fabs(fh_share_lower(1000, 0, 0.95) - pow(0.05, 1e-3)) < 1e-15);
}

static void counts_that_are_not_whole_have_the_bound_of_the_beta_distribution(void **state)
{
    static const struct { double n, misses, lower; } known[] = {
        {1000, 3.5, 0.9915614697988722}, {2500.5, 0.25, 0.99861555180907}, {41.7, 7.2, 0.7021963914747194}, {1e6, 990.5, 0.9989561722976114}};
    (void)state;
    for (size_t i = 0; i < 4; i++)
        if (!(fabs(fh_share_lower(known[i].n, known[i].misses, 0.95) - known[i].lower) < 1e-10))
            fail_msg("n %g misses %g: %.12g", known[i].n, known[i].misses, fh_share_lower(known[i].n, known[i].misses, 0.95));
}

static void the_positions_needed_are_the_fewest_whose_bound_reaches_the_target(void **state)
{
    static const double targets[] = {0.9, 0.99, 0.995, 0.999};
    (void)state;
    for (size_t i = 0; i < 4; i++) {
        double n = (double)fh_share_needed(targets[i], 0.95);
        assert_true(fh_share_lower(n, 0, 0.95) >= targets[i]);
        assert_true(fh_share_lower(n - 1, 0, 0.95) < targets[i]);
    }
}

static void students_quantiles_are_those_of_the_tables(void **state)
{
    static const struct { double p, degrees, t; } known[] = {
        {0.95, 1, 6.313751514675037}, {0.95, 2, 2.9199855803537242}, {0.95, 6, 1.9431802805153042}, {0.95, 30, 1.697260886593957},
            {0.95, 1e6, 1.6448551507220404},
        {0.95, INFINITY, 1.6448536269514722}, {0.2, 5, -0.9195437802408267}, {0.999, 3, 10.214531852407383}};
    (void)state;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!(fabs(fh_student_quantile(known[i].p, known[i].degrees) - known[i].t) < 1e-8))
            fail_msg("p %g degrees %g: %.12g", known[i].p, known[i].degrees,
            fh_student_quantile(known[i].p, known[i].degrees));
    assert_true(isinf(fh_student_quantile(0.95, 0)));
}

static void a_share_reaches_a_target_where_its_bound_does(void **state)
{
    static const double n[] = {20, 333.3, 5000}, misses[] = {0, 0.4, 3, 19}, targets[] = {0.3, 0.9, 0.95, 0.99, 0.9991};
    (void)state;
    for (size_t i = 0; i < 3; i++)
        for (size_t j = 0; j < 4; j++)
            for (size_t k = 0; k < 5; k++) assert_int_equal(fh_share_reaches(n[i], misses[j], targets[k], 0.95),
                                                            fh_share_lower(n[i], misses[j], 0.95) >= targets[k]);
    assert_false(fh_share_reaches(NAN, 0, 0.5, 0.95));
    assert_false(fh_share_reaches(0, 0, 0.5, 0.95));
}

/* Ten documents of 50 positions; the misses of each. */
static fh_tally tally_of(const double *misses)
{
    fh_tally t = {0};
    for (int i = 0; i < 10; i++) fh_tally_add(&t, 50, misses[i]);
    return t;
}

static const double spread[10] = {0, 0, 0, 0, 20, 0, 0, 0, 0, 0}, even[10] = {2, 2, 2, 2, 2, 2, 2, 2, 2, 2}, none[10] = {0};

static void a_design_effect_is_the_variance_between_documents_over_that_of_independent_positions(void **state)
{
    fh_tally t = tally_of(spread);
    (void)state;
    /* p = 0.04; sum of (x - 2)^2 = 18^2 + 9 * 4 = 360; 10/9 * 360 / 500 / (0.04 * 0.96); equal lengths: 9 degrees */
    assert_true(fabs(fh_tally_design(&t).effect - 10 / 9.0 * 360 / 500 / (0.04 * 0.96)) < 1e-9);
    assert_true(fabs(fh_tally_design(&t).degrees - 9) < 1e-9);
    t = tally_of(even);
    assert_true(fh_tally_design(&t).effect < 1e-9);
    t = tally_of(none);
    assert_true(fh_tally_design(&t).effect == 0 && fabs(fh_tally_design(&t).degrees - 9) < 1e-9);
    fh_tally one = {0};
    fh_tally_add(&one, 500, 20);
    assert_true(isinf(fh_tally_design(&one).effect) && fh_tally_design(&one).degrees == 0);
}

/* Bell and McCaffrey's correction with the matrix written out: A = (I - 1 w')' diag(m^2) (I - 1 w'). */
static void documents_of_unequal_length_have_fewer_degrees_and_more_variance(void **state)
{
    enum { N = 6 };
    static const double m[N] = {1000, 20, 300, 5, 300, 90}, x[N] = {30, 0, 2, 1, 20, 3};
    double a[N][N], all = 0, misses = 0, s = 0, trace = 0, square = 0, squares = 0;
    fh_tally t = {0};
    (void)state;
    for (int i = 0; i < N; i++) fh_tally_add(&t, m[i], x[i]), all += m[i], misses += x[i], s += m[i] * m[i];
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            a[i][j] = 0;
            for (int k = 0; k < N; k++) a[i][j] += ((k == i) - m[i] / all) * m[k] * m[k] * ((k == j) - m[j] / all);
        }
    for (int i = 0; i < N; i++) trace += a[i][i], squares += pow(x[i] - misses / all * m[i], 2);
    for (int i = 0; i < N; i++) for (int j = 0; j < N; j++) square += a[i][j] * a[j][i];
    fh_design d = fh_tally_design(&t);
    double p = misses / all;
    assert_true(fabs(d.degrees - trace * trace / square) < 1e-9 && d.degrees < 3);
    assert_true(fabs(d.effect - s / trace * squares / all / (p * (1 - p))) < 1e-9 && s / trace > N / (N - 1.0));
}

static void designs_are_pooled_by_their_degrees_at_the_lengths_of_the_first(void **state)
{
    fh_tally a = tally_of(spread), b = {0}, one = {0};
    (void)state;
    for (int i = 0; i < 5; i++) fh_tally_add(&b, 100, i == 0 ? 15 : 1);
    fh_design da = fh_tally_design(&a), db = fh_tally_design(&b), both = fh_design_pool(&a, &b);
    double at_50 = 1 + (db.effect - 1) / 2; /* documents half as long gather half of what is more than 1 */
    assert_true(fabs(both.degrees - 13) < 1e-9);
    assert_true(fabs(both.effect - (9 * da.effect + 4 * at_50) / 13) < 1e-9);
    fh_tally_add(&one, 500, 20);
    assert_true(fh_design_pool(&a, &one).degrees == da.degrees && fh_design_pool(&a, &one).effect == da.effect);
    assert_true(fabs(fh_design_pool(&one, &a).degrees - 9) < 1e-9);
}

static void a_bound_over_documents_counts_fewer_positions_where_misses_gather(void **state)
{
    fh_tally s = tally_of(spread), e = tally_of(even), z = tally_of(none), one = {0}, nothing = {0};
    double left = pow(1.6448536269514722 / 1.8331129326536335, 2); /* t with 9 degrees */
    fh_design three = {3, INFINITY}, two = {2, 9};
    fh_bound a = fh_tally_bound(&s, NULL, INFINITY, 0.95), b = fh_tally_bound(&e, NULL, INFINITY, 0.95), c = fh_tally_bound(&e, &three, INFINITY, 0.95),
             d = fh_tally_bound(&z, &two, INFINITY, 0.95), f = fh_tally_bound(&e, NULL, 1000, 0.95);
    (void)state;
    assert_true(fabs(a.effective - 500 / fh_tally_design(&s).effect * left) < 1e-6);
    assert_true(b.effect == 1 && fabs(b.effective - 500 * left) < 1e-6);
    assert_true(fabs(b.lower - fh_share_lower(b.effective, 0.04 * b.effective, 0.95)) < 1e-12);
    assert_true(a.lower < b.lower && c.lower < b.lower && c.effect == 3 && fabs(c.effective - 500 / 3.0) < 1e-6);
    assert_true(d.lower < 1 && d.lower > 0.9 && fabs(d.effective - 250 * left) < 1e-6); /* no miss, and still no certainty */
    assert_true(fabs(f.effective - 500 * left / 1.5) < 1e-6 && f.lower < b.lower);      /* 1000 other positions have luck of their own */
    fh_tally_add(&one, 500, 0);
    assert_true(fh_tally_bound(&one, NULL, INFINITY, 0.95).lower == 0 && fh_tally_bound(&nothing, NULL, INFINITY, 0.95).lower == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_lower_bound_is_where_the_tail_is_one_minus_the_confidence),
        cmocka_unit_test(a_bound_on_nothing_or_on_misses_alone_is_zero_and_without_a_miss_below_one),
        cmocka_unit_test(counts_that_are_not_whole_have_the_bound_of_the_beta_distribution),
        cmocka_unit_test(the_positions_needed_are_the_fewest_whose_bound_reaches_the_target),
        cmocka_unit_test(students_quantiles_are_those_of_the_tables),
        cmocka_unit_test(a_design_effect_is_the_variance_between_documents_over_that_of_independent_positions),
        cmocka_unit_test(a_share_reaches_a_target_where_its_bound_does),
        cmocka_unit_test(documents_of_unequal_length_have_fewer_degrees_and_more_variance),
        cmocka_unit_test(designs_are_pooled_by_their_degrees_at_the_lengths_of_the_first),
        cmocka_unit_test(a_bound_over_documents_counts_fewer_positions_where_misses_gather),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
