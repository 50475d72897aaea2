/* calibrate with its products on the emulated device: the calibration of the CPU, number for number. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/fault.h"
#include "tests/unit/calib_world.h"
#include "tests/unit/cuda_products.h"

static fh_status open_there(there *t, const world *x, fh_err *err)
{
    return there_open(t, (const fh_rows[]){x->dense.rows, x->parts.centroids, x->parts.tokens}, 3, err);
}

/* Another routing and its own: with choices the head that is multiplied changes. */
typedef struct choosing { world *x; float swapped[K][16]; } choosing;

static fh_status either_head(void *ctx, size_t i, fh_head **out, fh_err *err)
{
    choosing *c = ctx;
    fh_head_parts p = c->x->parts;
    if (i) p.centroids.data = c->swapped;
    return fh_head_from_parts(out, &p, "test", err);
}

static fh_status calibrate(fh_calibration *out, world *x, const fh_dots_device *device, const fh_calibrate_params *p, fh_err *err)
{
    static const fh_choice both[] = {{"raw", "f32", "f32"}, {"mean", "f32", "f32"}};
    choosing c = {.x = x};
    fh_choices choices = {.choice = both, .n = 2, .open = either_head, .ctx = &c};
    fh_dense dense = x->dense;
    dense.device = device;
    x->parts.n_hot = 0;
    for (int k = 0; k < K; k++) memcpy(c.swapped[k], x->c[K - 1 - k], sizeof c.swapped[k]);
    fh_status rc = fh_states_split(&x->states, 1, err);
    return rc < 0 ? rc : fh_calibrate(out, &x->states, &dense, &choices, p, NULL, err);
}

static void same(const fh_calibration *a, const fh_calibration *b)
{
    assert_true(a->reached == b->reached && a->choice == b->choice && a->needed == b->needed && a->rung == b->rung && a->n_hot == b->n_hot);
    assert_true(a->probes == b->probes && a->threshold == b->threshold && a->mean_probes == b->mean_probes);
    assert_true(a->probes_p50 == b->probes_p50 && a->probes_p99 == b->probes_p99 && a->probes_max == b->probes_max && a->step_bytes == b->step_bytes);
    assert_memory_equal(a->hot, b->hot, a->n_hot * sizeof *a->hot);
    assert_memory_equal(a->promise, b->promise, sizeof a->promise); /* doubles alone */
    assert_int_equal(a->n_curve, b->n_curve);
    for (size_t i = 0; i < a->n_curve; i++) {
        const fh_point *p = &a->curve[i], *q = &b->curve[i];
        assert_true(p->probes == q->probes && p->top1 == q->top1 && p->top3 == q->top3 && p->top5 == q->top5 && p->top10 == q->top10);
        assert_true(p->agreement == q->agreement && p->mass == q->mass && p->kl == q->kl && p->threshold == q->threshold && p->mean_probes == q->mean_probes);
        assert_true(p->kl >= 0 && p->mass > 0);
    }
}

static const fh_calibrate_params asked[] = {
    {.targets = {0.7}, .confidence = 0.9, .max_cost = 10, .containment_k = 3, .hot = 4},
    {.targets = {0.8}, .confidence = 0.8, .max_cost = 10, .containment_k = 1, .hot = -1},
    {.targets = {0.5, 0.8, 0.6}, .confidence = 0.9, .max_cost = 10, .containment_k = 5, .hot = 2},
    {.targets = {0.7}, .confidence = 0.9, .max_cost = 10, .containment_k = 3, .hot = 4, .adaptive = true},
    {.targets = {0.5, 0.6, 0.6}, .confidence = 0.9, .max_cost = 10, .containment_k = 1, .hot = 0, .adaptive = true},
    {.targets = {0.9999}, .confidence = 0.99, .max_cost = 10, .containment_k = 50, .hot = 0}, /* cannot be promised */
};

static void a_calibration_is_the_same_there(void **state)
{
    for (size_t i = 0; i < sizeof asked / sizeof *asked; i++)
        for (int head = 0; head < 3; head++) { /* as it is; with biases; soft-capped, through bf16 */
            there t;
            fh_err err = {0};
            float bias[V];
            world *x = make_world(5 + i);
            fh_calibration here = {0}, moved = {0};
            for (int v = 0; v < V; v++) bias[v] = (float)(v % 7) / 8;
            if (head == 1) x->dense.bias = x->parts.bias = bias;
            if (head == 2) x->dense.softcap = x->parts.softcap = 3, x->parts.through_bf16 = true;
            assert_int_equal(calibrate(&here, x, NULL, &asked[i], &err), FH_OK);
            assert_int_equal(open_there(&t, x, &err), FH_OK);
            uint64_t before = emu_launches();
            if (calibrate(&moved, x, &t.does, &asked[i], &err) < 0) fail_msg("%s", err.text);
            assert_true(emu_launches() > before + N / 32);
            same(&here, &moved);
            fh_calibration_free(&here);
            fh_calibration_free(&moved);
            there_close(&t);
            free(x);
        }
}

static void a_rehearsal_is_the_same_there(void **state)
{
    static const uint32_t ks[] = {1, 3};
    static const double targets[] = {0.6, 0.8};
    static const size_t tokens[] = {0};
    enum { DRAWS = 3, OUT = DRAWS * 4 };
    for (int adaptive = 0; adaptive < 2; adaptive++) {
        const fh_rehearse_params p = {.ks = ks, .n_ks = 2, .targets = targets, .n_targets = 2, .confidence = 0.9, .max_cost = 10, .hot = -1,
                                      .adaptive = adaptive, .draws = DRAWS, .tokens = tokens, .n_tokens = 1};
        there t;
        fh_err err = {0};
        fh_head *head = NULL;
        fh_rehearsed out[2][OUT];
        world *x = make_world(9);
        fh_dense moved = x->dense;
        assert_int_equal(fh_head_from_parts(&head, &x->parts, "test", &err), FH_OK);
        assert_int_equal(open_there(&t, x, &err), FH_OK);
        moved.device = &t.does;
        assert_int_equal(fh_rehearse(out[0], &x->states, NULL, &x->dense, head, &p, NULL, &err), FH_OK);
        uint64_t before = emu_brought();
        assert_int_equal(fh_rehearse(out[1], &x->states, NULL, &moved, head, &p, NULL, &err), FH_OK);
        if (!adaptive) assert_int_equal(emu_brought() - before, N * (3 * (4 + 8) + 4)); /* of 3 tokens ids, ranks and scores, and the best score: no products */
        for (size_t i = 0; i < OUT; i++) {
            const fh_rehearsed *a = &out[0][i], *b = &out[1][i];
            assert_true(a->promised == b->promised && a->probes == b->probes && a->n_hot == b->n_hot && a->threshold == b->threshold);
            assert_true(a->bound.lower == b->bound.lower && (a->found == b->found || (isnan(a->found) && isnan(b->found))));
        }
        fh_head_close(head);
        there_close(&t);
        free(x);
    }
}

/* A row of the dense head that is no number. */
static void what_is_no_number_is_never_the_best(void **state)
{
    there t;
    fh_err err = {0};
    world *x = make_world(7);
    uint32_t ids[2][N][10];
    for (int i = 0; i < 6; i++) x->w[i][3] = NAN;
    fh_dense moved = x->dense;
    fh_calibration c = {0};
    assert_int_equal(open_there(&t, x, &err), FH_OK);
    moved.device = &t.does;
    assert_int_equal(fh_dense_best(&x->dense, &x->h[0][0], NULL, N, 10, &ids[0][0][0], NULL, &err), FH_OK);
    assert_int_equal(fh_dense_best(&moved, &x->h[0][0], NULL, N, 10, &ids[1][0][0], NULL, &err), FH_OK);
    assert_memory_equal(ids[0], ids[1], sizeof ids[0]);
    for (size_t i = 0; i < N; i++)
        for (size_t j = 0; j < 10; j++) {
            uint32_t id = ids[0][i][j];
            assert_true(id >= 6 && id < V && !x->dead_map[id]);
            if (j) assert_true(dot(x->h[i], x->w[id]) <= dot(x->h[i], x->w[ids[0][i][j - 1]]) + 1e-4);
        }
    assert_int_equal(calibrate(&c, x, &t.does, &asked[2], &err), FH_ECHECK);
    assert_non_null(strstr(err.text, "not finite"));
    there_close(&t);
    free(x);
}

static void a_device_that_fails_anywhere_is_a_clean_error(void **state)
{
    world *x = make_world(5);
    for (long n = 1;; n += n < 40 ? 1 : 37) {
        there t;
        fh_err err = {0};
        fh_calibration c = {0};
        emu_fail_at(n);
        fh_status rc = open_there(&t, x, &err);
        if (rc == FH_OK) rc = calibrate(&c, x, &t.does, &asked[1], &err);
        bool reached = emu_calls() >= n;
        emu_fail_at(0);
        if (!reached) assert_int_equal(rc, FH_OK);
        assert_true(rc == FH_OK || err.text[0]);
        fh_calibration_free(&c);
        there_close(&t);
        if (!reached) break;
    }
    free(x);
}

static void every_allocation_may_fail(void **state)
{
#ifdef FH_FAULTS
    world *x = make_world(5);
    bool done = false;
    for (long n = 1; !done; n++) {
        there t;
        fh_err err = {0};
        fh_calibration c = {0};
        fh_fault_set(FH_FAULT_ALLOC, n);
        fh_status rc = open_there(&t, x, &err);
        if (rc == FH_OK) rc = calibrate(&c, x, &t.does, &asked[1], &err);
        done = !fh_fault_fired();
        fh_fault_set(FH_FAULT_ALLOC, 0);
        assert_int_equal(rc, done ? FH_OK : FH_ENOMEM);
        assert_true(done || err.text[0]);
        fh_calibration_free(&c);
        there_close(&t);
        assert_true(n < 10000);
    }
    free(x);
#else
    skip();
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_calibration_is_the_same_there),
        cmocka_unit_test(a_rehearsal_is_the_same_there),
        cmocka_unit_test(what_is_no_number_is_never_the_best),
        cmocka_unit_test(a_device_that_fails_anywhere_is_a_clean_error),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
