/* One head, eight callers at once: what flashhead.h promises of threads.  Run under the thread sanitizer by `make tsan`. */
#include "runtime/flashhead.h"
#include "runtime/runtime.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define GOLDEN "tests/golden/fhead-1.0/ok-int8-exact-bias-dead.fhead"
enum { CALLERS = 8, BATCH = 5, TOP = 4, ROUNDS = 12 };

typedef struct answers { uint32_t ids[BATCH * TOP], dense[TOP], drawn, cluster; float logits[BATCH * TOP], dense_logits[TOP], score, row0; size_t count; } answers;

/* Everything that a caller may ask; in `a` is every number that came back. */
static fh_status ask(const fh_head *head, fh_scratch *s, const float *states, answers *a, fh_err *err)
{
    static const uint32_t forced[] = {1, 0};
    const fh_head_info *info = fh_head_get_info(head);
    fh_query q = {.probes = info->clusters / 2 + 1, .include = forced, .n_include = 2, .exclude = forced, .n_exclude = 1};
    fh_sampling how = {.temperature = 1, .top_p = 0.9f};
    size_t room = fh_head_max_candidates(head, &q);
    uint32_t *ids = malloc(room * sizeof *ids), *clusters = malloc(info->clusters * sizeof *clusters);
    float *logits = malloc(room * sizeof *logits), *scores = malloc(info->clusters * sizeof *scores);
    fh_status rc = ids && clusters && logits && scores ? FH_OK : FH_ENOMEM;
    memset(a, 0, sizeof *a); /* so that whole structures compare */
    if (rc == FH_OK) rc = fh_head_topk(head, s, states, BATCH, &q, TOP, a->ids, a->logits, err);
    if (rc == FH_OK) rc = fh_head_dense_topk(head, s, states, 1, TOP, a->dense, a->dense_logits, err);
    if (rc == FH_OK) rc = fh_head_route(head, s, states, 1, q.probes, clusters, scores, err);
    if (rc == FH_OK) a->cluster = clusters[0], a->score = scores[0];
    if (rc == FH_OK) rc = fh_head_score(head, s, states, clusters, 1, &q, ids, logits, &a->count, err);
    if (rc == FH_OK) rc = fh_head_score_ids(head, s, states, forced, 1, &a->row0, err);
    if (rc == FH_OK) rc = fh_sample(&how, a->ids, a->logits, TOP, 0.7, &a->drawn, err);
    free(ids), free(clusters), free(logits), free(scores);
    return rc;
}

typedef struct caller { const fh_head *head; const float *states; const answers *want; unsigned threads; bool own; const char *wrong; } caller;

static void *call(void *arg)
{
    caller *c = arg;
    fh_head *own = NULL;
    for (int i = 0; i < ROUNDS && !c->wrong; i++) {
        fh_scratch *s = NULL;
        answers got;
        if (c->own && fh_head_open(&own, GOLDEN, NULL) < 0) c->wrong = "opening failed";
        else if (fh_scratch_new(&s, c->own ? own : c->head, c->threads, NULL) < 0) c->wrong = "no scratch";
        for (int j = 0; j < 3 && !c->wrong; j++) {
            if (ask(c->own ? own : c->head, s, c->states, &got, NULL) < 0) c->wrong = "a call failed";
            else if (memcmp(&got, c->want, sizeof got) != 0) c->wrong = "an answer differs";
        }
        fh_scratch_free(s);
        if (c->own) fh_head_close(own);
        own = NULL;
    }
    return NULL;
}

/* own: each caller opens the file itself, too. */
static void eight_callers(const fh_head *head, bool own)
{
    size_t d = fh_head_get_info(head)->hidden;
    float *states = malloc(BATCH * d * sizeof *states);
    fh_rng rng;
    fh_err err = {0};
    fh_scratch *s;
    answers want;
    caller callers[CALLERS];
    pthread_t threads[CALLERS];
    fh_rng_seed(&rng, 3, 0);
    for (size_t i = 0; i < BATCH * d; i++) states[i] = (float)(2 * fh_rng_double(&rng) - 1);
    assert_int_equal(fh_scratch_new(&s, head, 1, &err), FH_OK);
    if (ask(head, s, states, &want, &err) < 0) fail_msg("%s", err.text);
    fh_scratch_free(s);
    for (unsigned i = 0; i < CALLERS; i++) {
        callers[i] = (caller){head, states, &want, 1 + i % 3, own && i % 2, NULL};
        assert_int_equal(pthread_create(&threads[i], NULL, call, &callers[i]), 0);
    }
    for (unsigned i = 0; i < CALLERS; i++) pthread_join(threads[i], NULL);
    for (unsigned i = 0; i < CALLERS; i++)
        if (callers[i].wrong) fail_msg("caller %u: %s", i, callers[i].wrong);
    free(states);
}

static void eight_threads_share_a_head_from_a_file(void **state)
{
    fh_head *head;
    fh_err err = {0};
    if (fh_head_open(&head, GOLDEN, &err) < 0) fail_msg("%s", err.text);
    eight_callers(head, true);
    fh_head_close(head);
}

/* Large enough that callers with threads of their own hand out tasks. */
static void eight_threads_share_a_head_in_memory(void **state)
{
    enum { V = 4096, D = 64, K = 256, CAP = V / K };
    float *rows = malloc(V * D * sizeof *rows), *centroids = calloc(K * D, sizeof *centroids);
    uint32_t *permutation = malloc(V * sizeof *permutation);
    fh_rng rng;
    fh_rng_seed(&rng, 9, 0);
    for (size_t i = 0; i < V * D; i++) centroids[i / D / CAP * D + i % D] += rows[i] = (float)(2 * fh_rng_double(&rng) - 1);
    for (uint32_t i = 0; i < V; i++) permutation[i] = i;
    fh_head_parts parts = {.vocab = V, .hidden = D, .clusters = K, .cap = CAP, .centroids = {centroids, FH_F32, K, D, D * 4},
                           .tokens = {rows, FH_F32, V, D, D * 4}, .tokens_exact = true, .permutation = permutation};
    fh_head *head;
    fh_err err = {0};
    if (fh_head_from_parts(&head, &parts, "parts", &err) < 0) fail_msg("%s", err.text);
    eight_callers(head, false);
    fh_head_close(head);
    free(rows), free(centroids), free(permutation);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(eight_threads_share_a_head_from_a_file),
        cmocka_unit_test(eight_threads_share_a_head_in_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
