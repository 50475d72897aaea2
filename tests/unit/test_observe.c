/* What is seen of a position through a lens, against its definition in double, written out here; and a head's products against theirs. */
#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/fault.h"
#include "calib/calib.h"
#include "runtime/head.h"
#include "tests/unit/head_world.h"

static fh_err err;
enum { STATES = 70, TOP = 12 }; /* more than a block of states */

static fh_dense dense_of(const world *w)
{
    return (fh_dense){.rows = {w->rows, FH_F32, w->is.v, w->is.d, w->is.d * sizeof(float)},
                      .bias = w->bias,
                      .softcap = w->is.softcap,
                      .vocab = w->is.v,
                      .dead = w->is_dead};
}

/* ---- the definition ----------------------------------------------------------------------------------------------- */

typedef struct truth { uint32_t top[TOP], need[TOP], best; double mass, kl, kl_dense, entropy; float margin; } truth;

static bool in_list(const uint32_t *ids, size_t n, uint32_t id)
{
    for (size_t i = 0; i < n; i++) if (ids[i] == id) return true;
    return false;
}

static void define(truth *t, const world *w, const fh_dense *dense, const fh_lens *lens, uint32_t probes, const float *state)
{
    const fh_head_parts *p = fh_head_get_parts(lens->head);
    uint32_t v = p->vocab, slots = p->clusters * p->cap, *home = malloc(v * sizeof *home), *rank = calloc(p->clusters, sizeof *rank);
    float *z = malloc(v * sizeof *z), *f = malloc(slots * sizeof *f), *s = malloc(p->clusters * sizeof *s), *mine = malloc(v * sizeof *mine);
    bool *candidate = calloc(v, 1), *taken = calloc(v, 1);
    double lse = 0, flse = 0, most = -INFINITY;
    assert_int_equal(fh_dense_logits(dense, NULL, state, 1, z, &err), FH_OK);
    assert_int_equal(fh_head_slot_logits(lens->head, NULL, state, 1, f, &err), FH_OK);
    assert_int_equal(fh_head_cluster_scores(lens->head, NULL, state, 1, s, &err), FH_OK);
    for (uint32_t i = 0; i < slots; i++)
        if (p->permutation[i] != FH_NO_TOKEN)
            home[p->permutation[i]] = i / p->cap, mine[p->permutation[i]] = lens->exact_rows ? z[p->permutation[i]] : f[i];
    for (uint32_t i = 0; i < v; i++) if (!w->is_dead[i]) most = fmax(most, (double)z[i]);
    for (uint32_t i = 0; i < v; i++) if (!w->is_dead[i]) lse += exp(z[i] - most);
    lse = log(lse) + most;
    if (lens->by_mass) {
        for (uint32_t c = 0; c < p->clusters; c++) {
            double sum = 0;
            for (uint32_t i = 0; i < v; i++) if (!w->is_dead[i] && home[i] == c) sum += exp(z[i] - lse);
            s[c] = (float)sum;
        }
    }
    for (uint32_t c = 0; c < p->clusters; c++) for (uint32_t o = 0; o < p->clusters; o++) rank[c] += s[o] > s[c] || (s[o] == s[c] && o < c);
    for (uint32_t i = 0; i < v; i++) {
        bool fixed = in_list(p->always, p->n_always, i) || (!lens->no_hot && in_list(p->hot, p->n_hot, i));
        candidate[i] = !w->is_dead[i] && (fixed || rank[home[i]] < probes);
    }
    t->entropy = 0;
    for (uint32_t i = 0; i < v; i++) if (!w->is_dead[i]) t->entropy -= exp(z[i] - lse) * (z[i] - lse);
    for (size_t j = 0, need = 0; j < TOP; j++) {
        uint32_t best = FH_NO_TOKEN;
        for (uint32_t i = 0; i < v; i++) if (!w->is_dead[i] && !taken[i] && (best == FH_NO_TOKEN || z[i] > z[best])) best = i;
        t->top[j] = best, taken[best] = true;
        bool fixed = in_list(p->always, p->n_always, best) || (!lens->no_hot && in_list(p->hot, p->n_hot, best));
        if (!fixed && rank[home[best]] + 1 > need) need = rank[home[best]] + 1;
        t->need[j] = (uint32_t)need;
    }
    t->margin = z[t->top[0]] - z[t->top[1]];
    if (p->rerank && !lens->no_rerank && !lens->exact_rows) { /* the best R candidates get their exact logits */
        bool *again = calloc(v, 1);
        for (uint32_t r = 0; r < p->rerank; r++) {
            uint32_t best = FH_NO_TOKEN;
            for (uint32_t i = 0; i < v; i++) if (candidate[i] && !again[i] && (best == FH_NO_TOKEN || mine[i] > mine[best])) best = i;
            if (best == FH_NO_TOKEN) break;
            again[best] = true;
        }
        for (uint32_t i = 0; i < v; i++) if (again[i]) fh_head_exact_logits(lens->head, state, &i, 1, &mine[i]);
        free(again);
    }
    size_t live = 0, count = 0;
    t->best = FH_NO_TOKEN, t->mass = 0, t->kl = 0, t->kl_dense = 0;
    for (uint32_t i = 0; i < v; i++) {
        live += !w->is_dead[i], count += candidate[i];
        if (candidate[i] && (t->best == FH_NO_TOKEN || mine[i] > mine[t->best])) t->best = i;
    }
    for (uint32_t i = 0; i < v; i++) if (candidate[i]) t->mass += exp(z[i] - lse), flse += exp(mine[i] - most);
    flse = log(flse) + most;
    double share = live > count ? FH_BACKOFF : 0;
    for (uint32_t i = 0; i < v; i++) {
        if (w->is_dead[i]) continue;
        double q = candidate[i] ? exp(mine[i] - flse) : 0, log_p = z[i] - lse;
        if (candidate[i]) t->kl += q * (mine[i] - flse - log_p);
        t->kl_dense += exp(log_p) * (log_p - (candidate[i] ? mine[i] - flse + log1p(-share) : log(share / (double)(live - count))));
    }
    free(home), free(rank), free(z), free(f), free(s), free(mine), free(candidate), free(taken);
}

typedef struct held { const world *w; const fh_dense *dense; const fh_lens *lenses; size_t n, seen; const float *states; } held;

static void compare(void *ctx, const fh_sight *s)
{
    held *h = ctx;
    const fh_seen *seen = s->seen;
    assert_int_equal(s->number, h->seen++);
    for (size_t i = 0; i < h->n; i++) {
        const fh_lens *lens = &h->lenses[i];
        for (size_t q = 0; q < lens->n_probes; q++, seen++) {
            truth t;
            define(&t, h->w, h->dense, lens, lens->probes[q], h->states + s->position * h->w->is.d);
            assert_memory_equal(s->top, t.top, sizeof t.top);
            assert_memory_equal(s->need + i * TOP, t.need, sizeof t.need);
            assert_true(fabs((double)(s->margin - t.margin)) <= 1e-5); /* a library's products of one state and of many differ in their last bits */
            assert_int_equal(seen->best, t.best);
            if (!(fabs(s->entropy - t.entropy) <= 1e-5 && fabs(seen->mass - t.mass) <= 1e-5 && fabs(seen->kl - t.kl) <= 1e-5 &&
                  fabs(seen->kl_dense - t.kl_dense) <= 1e-5))
                fail_msg("lens %zu, P = %u: mass %.12g for %.12g, kl %.12g for %.12g, kl_dense %.12g for %.12g, entropy %.12g for %.12g", i,
                         lens->probes[q], seen->mass, t.mass, seen->kl, t.kl, seen->kl_dense, t.kl_dense, s->entropy, t.entropy);
        }
    }
}

static const shape shapes[] = {
    {.v = 60, .d = 20, .k = 12, .centroids = FH_F32, .tokens = FH_F32, .exact = FH_I8},
    {.v = 61, .d = 33, .k = 9, .centroids = FH_I8, .tokens = FH_I8, .exact = FH_F32, .hot = true, .dead = true, .rerank = 5},
    {.v = 64, .d = 40, .k = 8, .centroids = FH_I4, .tokens = FH_I4, .exact = FH_BF16, .bias = true, .hot = true, .softcap = 3, .rerank = 4},
};

static void what_is_seen_is_what_the_definitions_say(void **state)
{
    static const uint32_t some[] = {1, 2, 5, 1000}, one[] = {3};
    (void)state;
    fh_rng_seed(&rng, 3, 0);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        world w;
        world_open(&w, shapes[i]);
        float *states = make_states(&w, STATES);
        fh_dense dense = dense_of(&w);
        fh_lens lenses[] = {{.head = w.head, .probes = some, .n_probes = 4},
                            {.head = w.head, .no_hot = true, .no_rerank = true, .probes = one, .n_probes = 1},
                            {.head = w.head, .by_mass = true, .exact_rows = true, .probes = some, .n_probes = 3},
                            {.head = w.head, .exact_rows = true, .probes = one, .n_probes = 1}};
        held h = {&w, &dense, lenses, 4, 0, states};
        assert_int_equal(fh_observe(&dense, lenses, 4, &(fh_observe_params){.top = TOP}, states, NULL, STATES, compare, &h, NULL, &err), FH_OK);
        assert_int_equal(h.seen, STATES);
        size_t positions[] = {5, 3, 69};
        held some_of = {&w, &dense, lenses, 4, 0, states};
        assert_int_equal(fh_observe(&dense, lenses, 4, &(fh_observe_params){.top = TOP}, states, positions, 3, compare, &some_of, NULL, &err), FH_OK);
        assert_int_equal(some_of.seen, 3);
        free(states);
        world_close(&w);
    }
}

static void count_sights(void *ctx, const fh_sight *s) { ++*(size_t *)ctx; (void)s; }

static void nothing_is_lost_where_everything_is_a_candidate_and_exact(void **state)
{
    const uint32_t all = 12;
    fh_point p = {.probes = all};
    world w;
    (void)state;
    fh_rng_seed(&rng, 4, 0);
    world_open(&w, shapes[0]);
    float *states = make_states(&w, STATES);
    fh_dense dense = dense_of(&w);
    assert_int_equal(fh_curve(w.head, &dense, states, NULL, STATES, false, &p, 1, NULL, &err), FH_OK);
    assert_true(p.top1 == 1 && p.top10 == 1 && p.agreement == 1 && fabs(p.mass - 1) <= 1e-12); /* counts over counts: to the last bit */
    assert_true(p.kl <= 1e-7);
    free(states);
    world_close(&w);
}

static void what_does_not_fit_is_refused_and_numbers_that_are_not_finite_are_a_verdict(void **state)
{
    const uint32_t falling[] = {3, 2}, one[] = {2};
    size_t n = 0;
    world w, other;
    (void)state;
    fh_rng_seed(&rng, 5, 0);
    world_open(&w, shapes[0]);
    world_open(&other, shapes[1]);
    float *states = make_states(&w, STATES);
    fh_dense dense = dense_of(&w);
    fh_lens lens = {.head = w.head, .probes = falling, .n_probes = 2};
    assert_int_equal(fh_observe(&dense, &lens, 1, &(fh_observe_params){0}, states, NULL, STATES, count_sights, &n, NULL, &err), FH_EUSAGE);
    lens = (fh_lens){.head = other.head, .probes = one, .n_probes = 1};
    assert_int_equal(fh_observe(&dense, &lens, 1, &(fh_observe_params){0}, states, NULL, STATES, count_sights, &n, NULL, &err), FH_EUSAGE);
    lens = (fh_lens){.head = w.head, .probes = one, .n_probes = 1};
    assert_int_equal(fh_observe(&dense, &lens, 1, &(fh_observe_params){.top = FH_MAX_TOP + 1}, states, NULL, STATES, count_sights, &n, NULL, &err), FH_EUSAGE);
    assert_int_equal(n, 0);
    w.rows[5] = NAN;
    assert_int_equal(fh_observe(&dense, &lens, 1, &(fh_observe_params){0}, states, NULL, STATES, count_sights, &n, NULL, &err), FH_ECHECK);
    assert_non_null(strstr(err.text, "position 0 are not finite"));
    free(states);
    world_close(&w);
    world_close(&other);
}

/* ---- parity ------------------------------------------------------------------------------------------------------- */

static void every_kernel_of_this_machine_gives_what_is_defined(void **state)
{
    (void)state;
    fh_rng_seed(&rng, 6, 0);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        world w;
        world_open(&w, shapes[i]);
        float *states = make_states(&w, 3);
        const char *isa, *variant;
        size_t tables = 0;
        for (; fh_head_parity_name(tables, &isa, &variant); tables++) {
            fh_parity p;
            assert_int_equal(fh_head_parity(w.head, tables, NULL, states, 3, &p, &err), FH_OK);
            size_t slots = (size_t)w.is.k * w.cap;
            assert_int_equal(p.compared, 3 * (w.is.k + slots + (shapes[i].exact != FH_I8 ? slots : 0)));
            if (p.differ)
                fail_msg("shape %zu, %s %s: %llu of %llu differ, by %.3g", i, isa, variant, (unsigned long long)p.differ, (unsigned long long)p.compared,
                         p.worst);
            if (tables == 0) assert_true(strcmp(isa, "ref") == 0 && p.worst > 0 && p.worst <= 1);
            else assert_true(p.worst == 0);
        }
        assert_true(tables >= 1);
        fh_parity none;
        assert_int_equal(fh_head_parity(w.head, tables, NULL, states, 3, &none, &err), FH_EUSAGE);
        states[1] = NAN;
        assert_int_equal(fh_head_parity(w.head, 0, NULL, states, 3, &none, &err), FH_EUSAGE);
        free(states);
        world_close(&w);
    }
}

/* A device that gives what this CPU does, but for one result. */
typedef enum lie { TRUE_ALL, OTHER_TOKEN, OTHER_LOGIT, NO_NUMBER, LIES } lie;
typedef struct liar { fh_scratch *here; lie how; bool dense; size_t at, calls; } liar;

static fh_status answer(void *ctx, const fh_head_call *call, uint32_t *ids, float *logits, fh_err *e)
{
    liar *l = ctx;
    fh_query q = {.probes = call->probes};
    fh_status rc = call->dense ? fh_head_dense_topk(l->here->head, l->here, call->states, call->batch, call->k, ids, logits, e)
                               : fh_head_topk(l->here->head, l->here, call->states, call->batch, &q, call->k, ids, logits, e);
    l->calls++;
    if (rc < 0 || call->dense != l->dense) return rc;
    size_t at = fh_min(l->at, call->batch * call->k - 1);
    if (l->how == OTHER_TOKEN) ids[at] ^= 1;
    if (l->how == OTHER_LOGIT) logits[at] += 2e-5f;
    if (l->how == NO_NUMBER) logits[at] = NAN;
    return rc;
}

static void what_a_device_gives_is_held_to_what_this_machine_gives(void **state)
{
    (void)state;
    fh_rng_seed(&rng, 9, 0);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        world w;
        world_open(&w, shapes[i]);
        float *states = make_states(&w, 3);
        bool exact = fh_head_get_info(w.head)->exact != NULL;
        fh_scratch *here, *there;
        fh_parity p;
        assert_int_equal(fh_scratch_on(&here, w.head, NULL, &err), FH_OK);
        assert_int_equal(fh_scratch_on(&there, w.head, NULL, &err), FH_OK);
        for (int how = 0; how < LIES; how++)
            for (int dense = 0; dense <= exact; dense++)
                for (size_t at = 0; at < 14; at += 13) {
                    liar l = {.here = here, .how = (lie)how, .dense = dense, .at = at};
                    fh_head_device device = {&l, 300, answer};
                    there->device = &device;
                    assert_int_equal(fh_scratch_parity(here, there, states, 3, &p, &err), FH_OK);
                    assert_int_equal(l.calls, exact ? 3 : 2);
                    assert_true(p.compared >= 3 * l.calls);
                    if ((p.differ != 0) != (how != TRUE_ALL))
                        fail_msg("shape %zu, lie %d, dense %d, result %zu: %llu differ", i, how, dense, at, (unsigned long long)p.differ);
                }
        there->device = NULL;
        states[0] = NAN;
        assert_int_equal(fh_scratch_parity(here, there, states, 3, &p, &err), FH_EUSAGE);
        fh_scratch_free(here), fh_scratch_free(there);
        free(states);
        world_close(&w);
    }
}

/* ---- memory ------------------------------------------------------------------------------------------------------- */

#ifdef FH_FAULTS
static void every_allocation_may_fail(void **state)
{
    static const uint32_t some[] = {1, 4};
    world w;
    (void)state;
    fh_rng_seed(&rng, 7, 0);
    world_open(&w, shapes[1]);
    float *states = make_states(&w, 4);
    fh_dense dense = dense_of(&w);
    fh_lens lenses[] = {{.head = w.head, .probes = some, .n_probes = 2}, {.head = w.head, .by_mass = true, .probes = some, .n_probes = 2}};
    fh_scratch *here, *there;
    assert_int_equal(fh_scratch_on(&here, w.head, NULL, &err), FH_OK);
    assert_int_equal(fh_scratch_on(&there, w.head, NULL, &err), FH_OK);
    for (int what = 0; what < 4; what++) {
        bool fired = true;
        for (long n = 1; fired; n++) {
            size_t seen = 0;
            fh_parity parity;
            fh_point points[] = {{.probes = 1}, {.probes = 4}};
            fh_fault_set(FH_FAULT_ALLOC, n);
            fh_status rc = what == 0   ? fh_observe(&dense, lenses, 2, &(fh_observe_params){0}, states, NULL, 4, count_sights, &seen, NULL, &err)
                           : what == 1 ? fh_curve(w.head, &dense, states, NULL, 4, false, points, 2, NULL, &err)
                           : what == 2 ? fh_head_parity(w.head, 0, NULL, states, 4, &parity, &err)
                                       : fh_scratch_parity(here, there, states, 4, &parity, &err);
            fired = fh_fault_fired();
            fh_fault_set(FH_FAULT_ALLOC, 0);
            assert_int_equal(rc, fired ? FH_ENOMEM : FH_OK);
        }
    }
    fh_scratch_free(here), fh_scratch_free(there);
    free(states);
    world_close(&w);
}
#else
static void every_allocation_may_fail(void **state) { (void)state; skip(); }
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_seen_is_what_the_definitions_say),
        cmocka_unit_test(nothing_is_lost_where_everything_is_a_candidate_and_exact),
        cmocka_unit_test(what_does_not_fit_is_refused_and_numbers_that_are_not_finite_are_a_verdict),
        cmocka_unit_test(every_kernel_of_this_machine_gives_what_is_defined),
        cmocka_unit_test(what_a_device_gives_is_held_to_what_this_machine_gives),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
