/* Generation on a kept sequence: the same tokens as from the start, and every choice as it is defined. */
#include "base/fault.h"
#include "runtime/runtime.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { MOST = 64 };

static fh_model m;
static fh_err err;

static void ok(fh_status rc)
{
    if (rc < 0) fail_msg("%s", err.text);
}

typedef struct taken { uint32_t ids[MOST]; size_t n, stop_after; volatile sig_atomic_t *stop; } taken;

static bool take(void *ctx, uint32_t id)
{
    taken *t = ctx;
    t->ids[t->n++] = id;
    if (t->stop && t->n == t->stop_after) *t->stop = 1;
    return true;
}

static fh_generate_params params(taken *t, size_t n)
{
    return (fh_generate_params){.tokens = n, .head = FH_HEAD_DENSE, .sampling = {.top_p = 1}, .ignore_eos = true, .on_token = take, .ctx = t};
}

static void fresh(const fh_generate_params *how, const uint32_t *prompt, size_t n)
{
    fh_generate_stats s;
    ((taken *)how->ctx)->n = 0;
    ok(fh_generate(&m, prompt, n, how, NULL, &s, &err));
    assert_int_equal(s.reused_tokens, 0);
}

static void same(const taken *a, const taken *b)
{
    assert_int_equal(a->n, b->n);
    assert_memory_equal(a->ids, b->ids, a->n * sizeof *a->ids);
}

static void a_prompt_that_goes_on_is_run_from_where_it_differs(void **state)
{
    taken kept = {.n = 0}, anew = {.n = 0};
    fh_generate_params how = params(&kept, 6), again = params(&anew, 6);
    uint32_t prompt[MOST] = {5, 9, 2, 7, 11};
    fh_session *s;
    fh_generate_stats stats;
    ok(fh_session_new(&s, &m, &how, NULL, &err));
    ok(fh_session_run(s, prompt, 5, NULL, &stats, &err));
    fresh(&again, prompt, 5), same(&kept, &anew);
    /* What it said, and more: all but the last token it said is in the cache. */
    memcpy(prompt + 5, kept.ids, 6 * sizeof *prompt), prompt[11] = 3, prompt[12] = 8, kept.n = 0;
    ok(fh_session_run(s, prompt, 13, NULL, &stats, &err));
    assert_int_equal(stats.reused_tokens, 10);
    fresh(&again, prompt, 13), same(&kept, &anew);
    /* Another turn of words in the middle. */
    prompt[7] ^= 1, kept.n = 0;
    ok(fh_session_run(s, prompt, 13, NULL, &stats, &err));
    assert_int_equal(stats.reused_tokens, 7);
    fresh(&again, prompt, 13), same(&kept, &anew);
    /* The same again, and a beginning of it: the last token is run again. */
    kept.n = 0;
    ok(fh_session_run(s, prompt, 13, NULL, &stats, &err));
    assert_int_equal(stats.reused_tokens, 12);
    same(&kept, &anew);
    kept.n = 0;
    ok(fh_session_run(s, prompt, 4, NULL, &stats, &err));
    assert_int_equal(stats.reused_tokens, 3);
    fresh(&again, prompt, 4), same(&kept, &anew);
    fh_session_free(s);
}

static void a_session_that_was_stopped_or_refused_goes_on(void **state)
{
    volatile sig_atomic_t stop = 0;
    fh_job job = {.stop = &stop};
    taken kept = {.stop_after = 3, .stop = &stop}, anew = {.n = 0};
    fh_generate_params how = params(&kept, 8), again = params(&anew, 8);
    uint32_t prompt[] = {4, 4, 1, 9}, far[] = {1, UINT32_MAX};
    fh_session *s;
    fh_generate_stats stats;
    ok(fh_session_new(&s, &m, &how, NULL, &err));
    assert_int_equal(fh_session_run(s, prompt, 4, &job, &stats, &err), FH_EINTERRUPTED);
    assert_int_equal(stats.tokens, 3);
    assert_int_equal(fh_session_run(s, prompt, 4, &job, &stats, &err), FH_EINTERRUPTED); /* before anything is run */
    assert_int_equal(stats.tokens, 0);
    stop = 0, kept.stop = NULL;
    assert_int_equal(fh_session_run(s, prompt, 0, &job, &stats, &err), FH_EUSAGE);
    assert_int_equal(fh_session_run(s, far, 2, &job, &stats, &err), FH_ECHECK);
    uint32_t *longer = calloc((size_t)m.config->max_position + 1, sizeof *longer);
    assert_int_equal(fh_session_run(s, longer, (size_t)m.config->max_position + 1, &job, &stats, &err), FH_EUSAGE);
    assert_non_null(strstr(err.text, "the model takes"));
    free(longer);
    kept.n = 0;
    ok(fh_session_run(s, prompt, 4, &job, &stats, &err));
    fresh(&again, prompt, 4), same(&kept, &anew);
    fh_session_free(s);
}

/* Greedy by hand: the whole sequence forward, every logit, the penalty, the best. */
static void define_penalised(uint32_t *out, const uint32_t *prompt, size_t n, size_t want, float factor, size_t last)
{
    uint32_t ids[MOST], d = m.config->hidden, v = m.config->vocab;
    float *hidden = malloc(MOST * d * sizeof *hidden), *logits = malloc(v * sizeof *logits);
    memcpy(ids, prompt, n * sizeof *ids);
    for (size_t i = 0; i < want; i++, n++) {
        fh_kv *kv;
        uint32_t len = (uint32_t)n, best = 0;
        ok(fh_kv_new(&kv, m.body, &err));
        ok(fh_body_forward(m.body, NULL, 1, &kv, &len, ids, hidden, &err));
        ok(fh_dense_logits(&m.dense, NULL, hidden + (n - 1) * d, 1, logits, &err));
        for (uint32_t t = 0; t < v; t++) {
            bool there = false;
            for (size_t j = last && n > last ? n - last : 0; j < n; j++) there = there || ids[j] == t;
            if (there) logits[t] = logits[t] > 0 ? logits[t] / factor : logits[t] * factor;
        }
        for (uint32_t t = 0; t < v; t++)
            if (!m.dense.dead[t] && (m.dense.dead[best] || logits[t] > logits[best])) best = t;
        out[i] = ids[n] = best;
        fh_kv_free(kv);
    }
    free(hidden), free(logits);
}

static void a_repetition_penalty_is_what_it_is_defined_as(void **state)
{
    const uint32_t prompt[] = {3, 17, 17, 5, 8};
    const float factors[] = {8, 0.3f, 0.05f};
    taken plain = {.n = 0}, got = {.n = 0};
    fh_generate_params how = params(&plain, 20);
    size_t different = 0;
    fresh(&how, prompt, 5);
    for (size_t f = 0; f < 3; f++)
        for (size_t last = 0; last < 8; last += 3) {
            uint32_t want[20];
            how = params(&got, 20), how.penalty = factors[f], how.repeat_last = last;
            define_penalised(want, prompt, 5, 20, factors[f], last);
            fresh(&how, prompt, 5);
            assert_memory_equal(got.ids, want, sizeof want);
            different += memcmp(got.ids, plain.ids, sizeof want) != 0;
        }
    assert_true(different > 4);
}

static void further_ends_end_it_and_are_not_given_out(void **state)
{
    const uint32_t prompt[] = {5, 9, 2, 7, 11};
    taken all = {.n = 0}, some = {.n = 0};
    fh_generate_params how = params(&all, 12);
    fh_generate_stats s;
    fresh(&how, prompt, 5);
    size_t at = 4;
    for (size_t i = 0; i < at; i++)
        if (all.ids[i] == all.ids[at]) at = i;
    how = params(&some, 12), how.ends = &all.ids[at], how.n_ends = 1;
    ok(fh_generate(&m, prompt, 5, &how, NULL, &s, &err));
    assert_true(s.ended && s.tokens == at && some.n == at);
    assert_memory_equal(some.ids, all.ids, at * sizeof *all.ids);
}

static void the_same_seed_draws_the_same_tokens(void **state)
{
    const uint32_t prompt[] = {5, 9, 2};
    taken a = {.n = 0}, b = {.n = 0};
    fh_generate_params how = params(&a, 30), again = params(&b, 30);
    how.sampling.temperature = again.sampling.temperature = 2;
    fresh(&how, prompt, 3), fresh(&again, prompt, 3), same(&a, &b);
    again.seed = 1;
    fresh(&again, prompt, 3);
    assert_true(memcmp(a.ids, b.ids, sizeof a.ids) != 0);
}

#ifdef FH_FAULTS
static void running_out_of_memory_anywhere_is_a_clean_error(void **state)
{
    const uint32_t prompt[] = {5, 9, 2};
    for (long n = 1;; n++) {
        taken t = {.n = 0};
        fh_generate_params how = params(&t, 20);
        fh_generate_stats s;
        how.penalty = 2, how.sampling.temperature = 1;
        fh_fault_set(FH_FAULT_ALLOC, n);
        fh_status rc = fh_generate(&m, prompt, 3, &how, NULL, &s, &err);
        bool fired = fh_fault_fired();
        fh_fault_set(FH_FAULT_ALLOC, 0);
        if (!fired) {
            ok(rc);
            break;
        }
        assert_int_equal(rc, FH_ENOMEM);
    }
}
#endif

static int open_model(void **state) { return fh_model_open(&m, "tests/golden/llama", NULL, FH_MODEL_BODY | FH_MODEL_HEAD, NULL, &err); }
static int close_model(void **state)
{
    fh_model_close(&m);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_prompt_that_goes_on_is_run_from_where_it_differs),
        cmocka_unit_test(a_session_that_was_stopped_or_refused_goes_on),
        cmocka_unit_test(a_repetition_penalty_is_what_it_is_defined_as),
        cmocka_unit_test(further_ends_end_it_and_are_not_given_out),
        cmocka_unit_test(the_same_seed_draws_the_same_tokens),
#ifdef FH_FAULTS
        cmocka_unit_test(running_out_of_memory_anywhere_is_a_clean_error),
#endif
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
