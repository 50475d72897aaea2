/* tests/unit/golden_families.h: a check of a body, for every family that the reference was asked about. */
#ifndef FH_TEST_GOLDEN_FAMILIES_H
#define FH_TEST_GOLDEN_FAMILIES_H

#include "tests/unit/body_cases.h"

/* The first OURS are in the repository, the others in the shared directory. */
static const char *const cases[] = {"llama",          "llama3-rope", "llama-linear-bias", "qwen3", "gemma3-softcap", "neox-sequential",
                                    "mistral-window", "qwen2",       "qwen2-yarn",        "gemma3", "pythia",        "gpt2"};
enum { CASES = sizeof cases / sizeof *cases, OURS = 6 };

static inline void open_case(golden *g, const char *name)
{
    char dir[200];
    snprintf(dir, sizeof dir, "tests/golden/%s", name);
    if (!golden_open(g, dir)) fail_msg("%s is missing", dir);
}

/* False where it is one of the shared ones and not there. */
static inline bool open_any_case(golden *g, size_t i)
{
    char dir[100];
    if (i < OURS) return open_case(g, cases[i]), true;
    snprintf(dir, sizeof dir, "golden/%s", cases[i]);
    return golden_open(g, shared(dir));
}

static inline void say_missing(size_t found, size_t of)
{
    if (found < of) print_message("skipped %zu of %zu families: set FH_SHARED to the directory that holds golden/\n", of - found, of);
}

static inline void check_families(void (*check)(golden *g, const char *name))
{
    for (size_t i = 0; i < OURS; i++) {
        golden g;
        open_case(&g, cases[i]);
        check(&g, cases[i]);
        golden_close(&g);
    }
}

/* Those that are not in the repository; skips where none is there. */
static inline void check_shared_families(void (*check)(golden *g, const char *name))
{
    size_t found = 0;
    for (size_t i = OURS; i < CASES; i++) {
        golden g;
        if (!open_any_case(&g, i)) continue;
        check(&g, cases[i]);
        golden_close(&g);
        found++;
    }
    say_missing(found, CASES - OURS);
    if (!found) skip();
}

/* ---- tokens through a body ------------------------------------------------------------------------------------------ */

static inline fh_kv *new_kv(const fh_body *b, fh_dtype type)
{
    fh_err err;
    fh_kv *kv;
    ok(fh_kv_new_of(&kv, b, type, &err), err);
    return kv;
}

/* n tokens on top of a cache, `step` at a time: their states. */
static inline void go_on(const golden *g, fh_kv *kv, const uint32_t *ids, uint32_t n, uint32_t step, float *hidden)
{
    fh_err err;
    for (uint32_t i = 0; i < n; i += step) {
        uint32_t some = n - i < step ? n - i : step;
        ok(fh_body_forward(g->body, NULL, 1, &kv, &some, ids + i, hidden + i * g->d, &err), err);
    }
}

/* The same from the beginning, on a cache of their own. */
static inline void run_in_steps(const golden *g, fh_dtype type, const uint32_t *ids, uint32_t n, uint32_t step, float *hidden)
{
    fh_kv *kv = new_kv(g->body, type);
    go_on(g, kv, ids, n, step, hidden);
    assert_int_equal(fh_kv_length(kv), n);
    fh_kv_free(kv);
}

/* The first n greedy tokens, one at a time on the cache of a prompt of eight, are the reference's.  Room: hidden [8, D], logits [V]. */
static inline void check_greedy(const golden *g, const char *name, fh_pool *pool, fh_kv *kv, size_t n, float *hidden, float *logits)
{
    const uint32_t eight = 8, one = 1;
    fh_err err;
    fh_kv_truncate(kv, 0);
    ok(fh_body_forward(g->body, pool, 1, &kv, &eight, g->ids, hidden, &err), err);
    memmove(hidden, hidden + 7 * g->d, g->d * sizeof *hidden);
    for (size_t i = 0; i < n; i++) {
        ok(fh_dense_logits(&g->dense, pool, hidden, 1, logits, &err), err);
        uint32_t best = best_of(logits, g->v);
        if (best != g->greedy[i]) fail_msg("%s: greedy token %zu is %u, the reference says %u", name, i, best, g->greedy[i]);
        ok(fh_body_forward(g->body, pool, 1, &kv, &one, &best, hidden, &err), err);
    }
}

#endif
