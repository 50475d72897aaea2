/* calibrate against a calibration written out here. */
#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/fault.h"
#include "tests/unit/calib_world.h"

static fh_err err;

static fh_status same_head(void *ctx, size_t i, fh_head **out, fh_err *e)
{
    world *x = ctx;
    (void)i;
    return fh_head_from_parts(out, &x->parts, "test", e);
}

static const fh_choice only[] = {{"raw", "f32", "f32"}};

static fh_status calibrate(fh_calibration *c, world *x, const fh_calibrate_params *p)
{
    fh_choices choices = {.choice = only, .n = 1, .open = same_head, .ctx = x};
    x->parts.n_hot = 0;
    fh_status rc = fh_states_split(&x->states, 1, &err);
    return rc < 0 ? rc : fh_calibrate(c, &x->states, &x->dense, &choices, p, NULL, &err);
}

/* A setting: so many probes, with a threshold (above 0) those that close to the best. */
typedef struct setting { uint32_t probes; float threshold; } setting;

/* What a position loses at a setting: the best k not all candidates; another answer; mass not covered. */
static void lose(double out[FH_PROMISES], const world *x, size_t i, setting at, uint32_t k, const fh_calibration *c)
{
    double z[V], s[K], all = 0, covered = 0, best = -INFINITY, closest = -INFINITY;
    bool in[V] = {false}, ok = true;
    int answer = -1, top = -1;
    for (int j = 0; j < K; j++) s[j] = dot(x->h[i], x->c[j]), closest = fmax(closest, s[j]);
    for (int j = 0; j < K; j++) {
        unsigned before = 0;
        for (int o = 0; o < K; o++) before += s[o] > s[j];
        bool close = !(at.threshold > 0) || closest - s[j] <= (double)at.threshold;
        if (before < at.probes && close) for (int m = 0; m < CAP; m++) in[x->perm[j * CAP + m]] = true;
    }
    for (size_t j = 0; j < c->n_hot; j++) in[c->hot[j]] = true;
    in[x->always[0]] = true;
    for (int t = 0; t < V; t++) {
        z[t] = x->dead_map[t] ? -1e9 : dot(x->h[i], x->w[t]);
        all += exp(z[t]);
        if (!x->dead_map[t] && in[t]) {
            covered += exp(z[t]);
            if (z[t] > best) best = z[t], answer = t;
        }
    }
    for (uint32_t j = 0; j < k; j++) {
        int b = 0;
        for (int t = 1; t < V; t++) if (z[t] > z[b]) b = t;
        ok = ok && in[b];
        if (j == 0) top = b;
        z[b] = -1e9;
    }
    out[FH_CONTAINED] = !ok, out[FH_AGREED] = answer != top, out[FH_COVERED] = 1 - covered / all;
}

static fh_tally tally_at(const world *x, uint8_t part, setting at, uint32_t k, const fh_calibration *c, int which)
{
    fh_tally t = {0};
    for (size_t i = 0; i < N;) { /* documents lie together */
        double positions = 0, misses = 0;
        uint32_t document = x->document[i];
        for (; i < N && x->document[i] == document; i++) {
            double lost[FH_PROMISES];
            if (x->part[i] != part) continue;
            lose(lost, x, i, at, k, c);
            positions++, misses += lost[which];
        }
        if (positions > 0) fh_tally_add(&t, positions, misses);
    }
    return t;
}

/* All settings, the least first. */
typedef struct ladder { setting at[FH_RUNGS]; size_t n; } ladder;

/* The most generous setting that misses no less than this share of a part. */
static fh_tally tally_where(const world *x, const ladder *l, uint8_t part, double share, uint32_t k, const fh_calibration *c, int which)
{
    fh_tally t = {0};
    for (size_t r = l->n; r-- > 0;) {
        t = tally_at(x, part, l->at[r], k, c, which);
        if (t.misses >= share * t.n) break;
    }
    return t;
}

/* Of documents of A and B together where containment is asked, of B's alone where the head is. */
static fh_design design_at(const world *x, const ladder *l, double share, uint32_t k, const fh_calibration *c, int which)
{
    fh_tally b = tally_where(x, l, FH_PART_B, share, k, c, which), a = tally_where(x, l, FH_PART_A, share, k, c, which);
    return which == FH_CONTAINED ? fh_design_pool(&b, &a) : fh_tally_design(&b);
}

/* Numbers of probes; or the thresholds of part A. */
static void make_ladder(ladder *l, const world *x, const fh_calibrate_params *p)
{
    size_t a[N], n = 0;
    fh_ladder found;
    fh_head *head = NULL;
    for (l->n = 0; l->n < K && !p->adaptive; l->n++) l->at[l->n] = (setting){(uint32_t)l->n + 1, 0};
    if (!p->adaptive) return;
    for (size_t i = 0; i < N; i++) if (x->part[i] == FH_PART_A) a[n++] = i;
    assert_int_equal(fh_head_from_parts(&head, &x->parts, "test", &err), FH_OK);
    assert_int_equal(fh_ladder_new(&found, head, NULL, K, &x->h[0][0], a, n, NULL, &err), FH_OK);
    for (; l->n < found.n; l->n++) {
        double probed = 0;
        l->at[l->n] = (setting){K, found.threshold[l->n]};
        for (size_t i = 0; i < n; i++) {
            double s[K], best = -INFINITY;
            for (int j = 0; j < K; j++) s[j] = dot(x->h[a[i]], x->c[j]), best = fmax(best, s[j]);
            for (int j = 0; j < K; j++) probed += best - s[j] <= (double)found.threshold[l->n];
        }
        assert_true(fabs(probed / (double)n - found.mean[l->n]) < 1e-9);
        if (l->n) assert_true(found.threshold[l->n] > found.threshold[l->n - 1] && found.mean[l->n] > found.mean[l->n - 1]);
    }
    assert_true(found.mean[0] >= 1 && found.mean[0] < 1.1 && found.mean[found.n - 1] == K && found.n > 20);
    fh_ladder_free(&found);
    fh_head_close(head);
}

/* What part C probes. */
static void check_probed(const fh_calibration *c, const world *x)
{
    double sum = 0, n = 0;
    uint32_t most = 0;
    for (size_t i = 0; i < N; i++) {
        double s[K], best = -INFINITY;
        uint32_t probed = 0;
        if (x->part[i] != FH_PART_C) continue;
        for (int j = 0; j < K; j++) s[j] = dot(x->h[i], x->c[j]), best = fmax(best, s[j]);
        for (int j = 0; j < K; j++) probed += !(c->threshold > 0) || best - s[j] <= (double)c->threshold;
        if (!(c->threshold > 0)) probed = c->probes;
        sum += probed, n++, most = (uint32_t)fh_max(most, probed);
    }
    assert_true(fabs(c->mean_probes - sum / n) < 1e-9 && c->probes_max == most);
    assert_true(c->probes_p50 <= c->probes_p99 && c->probes_p99 <= c->probes_max);
}

/* Calibration again, naively: everything counted anew at every setting, from the most generous downwards. */
static void check(const fh_calibration *c, const world *x, const fh_calibrate_params *p)
{
    fh_design least[FH_PROMISES] = {{0}};
    setting expected = {0};
    static ladder l;
    make_ladder(&l, x, p);
    for (int i = 0; i < FH_PROMISES; i++) {
        double share = 1 - p->targets[i];
        if (!(p->targets[i] > 0)) continue;
        fh_design at = design_at(x, &l, share, p->containment_k, c, i), rich = design_at(x, &l, fmax(share, fmin(0.5, 5 * share)), p->containment_k, c, i);
        least[i] = (fh_design){fmax(at.effect, rich.effect), fmin(at.degrees, rich.degrees)};
    }
    for (size_t r = l.n; r-- > 0;) {
        bool pass = true;
        for (int i = 0; i < FH_PROMISES; i++) {
            if (!(p->targets[i] > 0)) continue;
            fh_tally t = tally_at(x, FH_PART_B, l.at[r], p->containment_k, c, i);
            fh_bound b = fh_tally_bound(&t, &least[i], N, p->confidence);
            assert_true(t.n == (double)c->positions[FH_PART_B] && t.documents == c->documents[FH_PART_B]);
            if (!(b.lower >= p->targets[i])) pass = false;
            if (l.at[r].probes == c->probes && l.at[r].threshold == c->threshold) assert_true(fabs(t.misses - c->promise[i].misses) <= 1e-4);
        }
        if (!pass) break;
        expected = l.at[r];
    }
    assert_true(c->reached);
    assert_int_equal(c->probes, expected.probes);
    assert_true(c->threshold == expected.threshold);
    check_probed(c, x);
    for (int i = 0; i < FH_PROMISES; i++) {
        if (!(p->targets[i] > 0)) continue;
        assert_true(c->promise[i].bound.lower >= p->targets[i] && c->promise[i].bound.effect >= 1 && c->promise[i].heldout > 0);
        assert_true(c->promise[i].target == p->targets[i]);
    }
    for (size_t i = 1; i < c->n_curve; i++) assert_true(c->curve[i].probes > c->curve[i - 1].probes && c->curve[i].top1 >= c->curve[i - 1].top1);
}

static void calibration_takes_the_fewest_probes_whose_bounds_hold_all_the_way_down(void **state)
{
    static const fh_calibrate_params asked[] = {
        {.targets = {0.7}, .confidence = 0.9, .max_cost = 10, .containment_k = 3, .hot = 4},
        {.targets = {0.8}, .confidence = 0.8, .max_cost = 10, .containment_k = 1, .hot = -1},
        {.targets = {0, 0.8}, .confidence = 0.9, .max_cost = 10, .containment_k = 1, .hot = -1},
        {.targets = {0, 0, 0.7}, .confidence = 0.9, .max_cost = 10, .containment_k = 1, .hot = 0},
        {.targets = {0.5, 0.8, 0.6}, .confidence = 0.9, .max_cost = 10, .containment_k = 5, .hot = 2},
        {.targets = {0.7}, .confidence = 0.9, .max_cost = 10, .containment_k = 3, .hot = 4, .adaptive = true},
        {.targets = {0.8}, .confidence = 0.8, .max_cost = 10, .containment_k = 1, .hot = -1, .adaptive = true},
        {.targets = {0.5}, .confidence = 0.9, .max_cost = 10, .containment_k = 5, .hot = 0, .adaptive = true},
    };
    (void)state;
    for (size_t i = 0; i < sizeof asked / sizeof *asked; i++) {
        world *x = make_world(5);
        fh_calibration c = {0};
        assert_int_equal(calibrate(&c, x, &asked[i]), FH_OK);
        if (asked[i].hot >= 0) assert_true(c.n_hot <= (size_t)asked[i].hot);
        check(&c, x, &asked[i]);
        fh_calibration_free(&c);
        free(x);
    }
}

/* Through the head thresholds are looked at further apart: not each is tested, but the one that is taken keeps all targets. */
static void a_threshold_keeps_agreement_and_mass(void **state)
{
    fh_calibrate_params p = {.targets = {0.5, 0.8, 0.6}, .confidence = 0.9, .max_cost = 10, .containment_k = 5, .hot = 2, .adaptive = true};
    (void)state;
    world *x = make_world(5);
    fh_calibration c = {0};
    assert_int_equal(calibrate(&c, x, &p), FH_OK);
    assert_true(c.reached && c.threshold > 0 && c.probes == K && c.mean_probes < K);
    for (int i = 0; i < FH_PROMISES; i++) {
        setting taken = {c.probes, c.threshold};
        fh_tally b = tally_at(x, FH_PART_B, taken, 5, &c, i), held = tally_at(x, FH_PART_C, taken, 5, &c, i);
        assert_true(c.promise[i].bound.lower >= p.targets[i] && fabs(b.misses - c.promise[i].misses) <= 1e-4);
        assert_true(fabs(1 - held.misses / held.n - c.promise[i].heldout) <= 1e-6);
    }
    check_probed(&c, x);
    fh_calibration_free(&c);
    free(x);
}

static void a_target_beyond_the_text_is_not_reached_and_says_what_it_needs(void **state)
{
    world *x = make_world(6);
    fh_calibration c = {0};
    fh_calibrate_params p = {.targets = {0.9999}, .confidence = 0.95, .max_cost = 10, .containment_k = 1, .hot = -1};
    (void)state;
    assert_int_equal(calibrate(&c, x, &p), FH_OK);
    assert_false(c.reached);
    assert_true(c.promise[FH_CONTAINED].bound.lower < 0.9999 && c.promise[FH_CONTAINED].bound.lower > 0.8);
    assert_true(c.needed >= fh_share_needed(0.9999, 0.95));
    fh_calibration_free(&c);
    p.targets[FH_CONTAINED] = 0.5, p.max_cost = 1e-6;
    assert_int_equal(calibrate(&c, x, &p), FH_OK);
    assert_false(c.reached);
    assert_int_equal(c.probes, 0);
    fh_calibration_free(&c);
    free(x);
}

/* ---- plans ----------------------------------------------------------------------------------------------------------- */

static fh_status fake_time(void *ctx, const fh_head *head, fh_step_times *out, fh_err *e)
{
    *out = (fh_step_times){.probes = {1, 4, K}, .seconds = {1, 2, 8}, .n = 3, .hot = 0.01};
    return FH_OK;
}

static fh_status plan(fh_plan_row *rows, size_t *n, world *x, bool by_time, bool adaptive)
{
    static const fh_choice two[] = {{"raw", "f32", "f32"}, {"same", "f32", "f32"}};
    fh_choices choices = {.choice = two, .n = 2, .open = same_head, .time = fake_time, .ctx = x};
    fh_calibrate_params p = {.targets = {0.5, 0, 0.3}, .confidence = 0.9, .max_cost = 10, .containment_k = 1, .hot = 0, .by_time = by_time, .adaptive = adaptive};
    x->parts.n_hot = 0;
    fh_status rc = fh_states_split(&x->states, 1, &err);
    return rc < 0 ? rc : fh_plan(rows, n, &x->states, &x->dense, &choices, &p, NULL, &err);
}

static void a_plan_costs_more_the_more_it_keeps_and_marks_what_meets_the_targets(void **state)
{
    (void)state;
    for (int way = 0; way < 4; way++) {
        bool by_time = way & 1, adaptive = way & 2;
        world *x = make_world(5);
        fh_plan_row rows[FH_PLAN_ROWS];
        size_t n, meets = 0;
        assert_int_equal(plan(rows, &n, x, by_time, adaptive), FH_OK);
        assert_true(n >= 2 && n <= FH_PLAN_ROWS);
        for (size_t i = 0; i < n; i++) {
            double p = adaptive ? rows[i].mean_probes : rows[i].probes, t = p <= 4 ? 1 + (p - 1) / 3.0 : 2 + (p - 4); /* lines between 1, 4 and K = 10 */
            assert_true(fabs(rows[i].seconds - t) < 1e-9 && rows[i].n_hot == 0 && rows[i].choice == 0);
            assert_true(rows[i].bytes > 0 && rows[i].agreement > 0 && rows[i].agreement <= 1 && rows[i].mass > 0 && rows[i].mass <= 1 && rows[i].kl >= 0);
            assert_true((rows[i].threshold > 0) == adaptive);
            if (i) assert_true(rows[i].bytes >= rows[i - 1].bytes && rows[i].probes >= rows[i - 1].probes && rows[i].threshold >= rows[i - 1].threshold);
            meets += rows[i].meets;
        }
        assert_int_equal(meets, 1);
        free(x);
    }
}

/* ---- rehearsals ---------------------------------------------------------------------------------------------------- */

enum { DRAWS = 6, CELLS = 4 };
static const uint32_t ks[] = {1, 3};
static const double targets[] = {0.3, 0.6};
static const size_t sizes[] = {120, 0};

static fh_status rehearse(fh_rehearsed *out, world *x, const fh_states *against, int64_t hot, bool adaptive, const fh_job *job)
{
    fh_rehearse_params p = {.ks = ks, .n_ks = 2, .targets = targets, .n_targets = 2, .confidence = 0.9, .max_cost = 10, .hot = hot, .draws = DRAWS,
                            .tokens = sizes, .n_tokens = 2, .seed = 3, .adaptive = adaptive};
    fh_head *head = NULL;
    x->parts.n_hot = 0;
    fh_status rc = fh_head_from_parts(&head, &x->parts, "test", &err);
    if (rc == FH_OK) rc = fh_rehearse(out, &x->states, against, &x->dense, head, &p, job, &err);
    fh_head_close(head);
    return rc;
}

static void a_rehearsal_finds_on_another_text_what_is_there(void **state)
{
    world *x = make_world(5), *y = make_world(11);
    fh_rehearsed r[2 * DRAWS * CELLS];
    const fh_calibration none = {0};
    size_t promised = 0;
    (void)state;
    memcpy(y->w, x->w, sizeof x->w), memcpy(y->c, x->c, sizeof x->c);
    for (int adaptive = 0; adaptive < 2; adaptive++) {
        assert_int_equal(rehearse(r, x, &y->states, 0, adaptive, NULL), FH_OK);
        for (size_t i = 0; i < 2 * DRAWS * CELLS; i++) {
            uint32_t k = ks[i % CELLS / 2];
            double target = targets[i % 2], lost[FH_PROMISES], kept = 0;
            if (!r[i].promised) { assert_true(isnan(r[i].found)); continue; }
            for (size_t j = 0; j < N; j++) lose(lost, y, j, (setting){r[i].probes, r[i].threshold}, k, &none), kept += !(lost[FH_CONTAINED] > 0);
            assert_true(r[i].bound.lower >= target && r[i].n_hot == 0 && !r[i].too_little);
            assert_true(fabs(r[i].found - kept / N) < 1e-12);
            promised++;
        }
    }
    assert_true(promised > 2 * DRAWS);
    free(x);
    free(y);
}

static void a_rehearsal_is_the_same_whatever_the_threads(void **state)
{
    world *x = make_world(5);
    fh_rehearsed one[2 * DRAWS * CELLS], three[2 * DRAWS * CELLS];
    fh_pool *pool = NULL;
    bool hot = false;
    (void)state;
    assert_int_equal(fh_pool_new(&pool, 3, &err), FH_OK);
    memset(one, 0, sizeof one), memset(three, 0, sizeof three);
    for (int adaptive = 0; adaptive < 2; adaptive++) {
        assert_int_equal(rehearse(one, x, NULL, -1, adaptive, NULL), FH_OK);
        assert_int_equal(rehearse(three, x, NULL, -1, adaptive, &(fh_job){.pool = pool}), FH_OK);
        for (size_t i = 0; i < 2 * DRAWS * CELLS; i++) {
            assert_int_equal(one[i].promised, three[i].promised);
            assert_int_equal(one[i].probes, three[i].probes);
            assert_true(one[i].threshold == three[i].threshold && (one[i].threshold > 0) == (adaptive && one[i].promised));
            assert_int_equal(one[i].n_hot, three[i].n_hot);
            assert_true(one[i].bound.lower == three[i].bound.lower && (one[i].found == three[i].found || !one[i].promised));
            assert_true(!one[i].promised || (one[i].found > 0 && one[i].found <= 1));
            hot = hot || one[i].n_hot;
        }
        assert_memory_not_equal(&one[0], &one[CELLS], sizeof one[0]); /* draws differ */
    }
    assert_true(hot);
    fh_pool_free(pool);
    free(x);
}

static void draws_that_leave_nothing_are_refused(void **state)
{
    world *x = make_world(5);
    fh_rehearsed r[1];
    const size_t all = N;
    fh_rehearse_params p = {.ks = ks, .n_ks = 1, .targets = targets, .n_targets = 1, .confidence = 0.9, .max_cost = 10, .draws = 1, .tokens = &all,
                            .n_tokens = 1};
    fh_head *head = NULL;
    (void)state;
    assert_int_equal(fh_head_from_parts(&head, &x->parts, "test", &err), FH_OK);
    assert_int_equal(fh_rehearse(r, &x->states, NULL, &x->dense, head, &p, NULL, &err), FH_EUSAGE);
    assert_non_null(strstr(err.text, "leave nothing"));
    assert_int_equal(fh_rehearse(r, &x->states, &x->states, &x->dense, head, &p, NULL, &err), FH_OK);
    fh_head_close(head);
    free(x);
}

#ifdef FH_FAULTS
static void every_allocation_of_a_rehearsal_may_fail(void **state)
{
    (void)state;
    for (int adaptive = 0; adaptive < 2; adaptive++) for (long n = 1;; n++) {
        world *x = make_world(5);
        fh_rehearsed r[2 * DRAWS * CELLS];
        fh_fault_set(FH_FAULT_ALLOC, n);
        fh_status rc = rehearse(r, x, n % 2 ? &x->states : NULL, -1, adaptive, NULL);
        bool fired = fh_fault_fired();
        fh_fault_set(FH_FAULT_ALLOC, 0);
        assert_int_equal(rc, fired ? FH_ENOMEM : FH_OK);
        free(x);
        if (!fired) break;
    }
}

static void every_allocation_of_a_plan_may_fail(void **state)
{
    (void)state;
    for (int adaptive = 0; adaptive < 2; adaptive++) for (long n = 1;; n++) {
        world *x = make_world(5);
        fh_plan_row rows[FH_PLAN_ROWS];
        size_t count;
        fh_fault_set(FH_FAULT_ALLOC, n);
        fh_status rc = plan(rows, &count, x, false, adaptive);
        bool fired = fh_fault_fired();
        fh_fault_set(FH_FAULT_ALLOC, 0);
        assert_int_equal(rc, fired ? FH_ENOMEM : FH_OK);
        free(x);
        if (!fired) break;
    }
}

static void every_allocation_of_a_calibration_may_fail(void **state)
{
    (void)state;
    for (int adaptive = 0; adaptive < 2; adaptive++) for (long n = 1;; n++) {
        world *x = make_world(5);
        fh_calibration c = {0};
        fh_calibrate_params p = {.targets = {0.7, 0.7, 0.5}, .confidence = 0.9, .max_cost = 10, .containment_k = 1, .hot = -1, .adaptive = adaptive};
        fh_fault_set(FH_FAULT_ALLOC, n);
        fh_status rc = calibrate(&c, x, &p);
        bool fired = fh_fault_fired();
        fh_fault_set(FH_FAULT_ALLOC, 0);
        assert_int_equal(rc, fired ? FH_ENOMEM : FH_OK);
        fh_calibration_free(&c);
        free(x);
        if (!fired) break;
    }
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(calibration_takes_the_fewest_probes_whose_bounds_hold_all_the_way_down),
        cmocka_unit_test(a_threshold_keeps_agreement_and_mass),
        cmocka_unit_test(a_target_beyond_the_text_is_not_reached_and_says_what_it_needs),
        cmocka_unit_test(a_plan_costs_more_the_more_it_keeps_and_marks_what_meets_the_targets),
        cmocka_unit_test(a_rehearsal_finds_on_another_text_what_is_there),
        cmocka_unit_test(a_rehearsal_is_the_same_whatever_the_threads),
        cmocka_unit_test(draws_that_leave_nothing_are_refused),
#ifdef FH_FAULTS
        cmocka_unit_test(every_allocation_of_a_calibration_may_fail),
        cmocka_unit_test(every_allocation_of_a_plan_may_fail),
        cmocka_unit_test(every_allocation_of_a_rehearsal_may_fail),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
