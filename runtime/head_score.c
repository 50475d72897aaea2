/* head_score.c: what a query asks for, and stage 2 as calls of its own: candidates with logits, logits of any ids. */
#include "runtime/head.h"

#include <string.h>

enum { RUN = 64 }; /* rows scored together */

/* ---- queries ------------------------------------------------------------------------------------------------------------ */

static fh_status check_ids(const fh_head *head, const uint32_t *ids, size_t n, const char *what, fh_err *err)
{
    if (n && !ids) return fh_fail(err, FH_EUSAGE, "%s: %zu ids, but no list", what, n);
    for (size_t i = 0; i < n; i++)
        if (ids[i] >= head->parts.vocab)
            return fh_fail(err, FH_EUSAGE, "%s: entry %zu is %u, but the vocabulary has %u tokens", what, i, ids[i], head->parts.vocab);
    return FH_OK;
}

fh_status fh_query_begin(const fh_head *head, fh_scratch *scratch, const fh_query *query, size_t *n_extras, fh_err *err)
{
    static const fh_query none;
    const fh_query *q = query ? query : &none;
    const uint32_t *own = q->no_hot ? head->always : head->forced;
    size_t n_own = q->no_hot ? head->n_always : head->n_forced, n = 0, kept = 0, bytes;
    fh_status rc;
    void *room = scratch->extras;
    if ((rc = check_ids(head, q->include, q->n_include, "ids forced in", err)) < 0) return rc;
    if ((rc = check_ids(head, q->exclude, q->n_exclude, "ids forced out", err)) < 0) return rc;
    if (!fh_add(n_own, q->n_include, &bytes) || !fh_mul(bytes, sizeof(uint32_t), &bytes))
        return fh_fail(err, FH_EUSAGE, "ids forced in: %zu of them", q->n_include);
    if ((rc = fh_scratch_grow(&room, &scratch->extras_bytes, bytes, err)) < 0) return rc;
    uint32_t *ids = scratch->extras = room;

    for (size_t i = 0; i < n_own; i++) ids[n++] = own[i];
    for (size_t i = 0; i < q->n_include; i++)
        if (!head->dead_map[q->include[i]]) ids[n++] = q->include[i];
    if (q->n_include) n = fh_sort_ids(ids, n);
    if (q->n_exclude) {
        for (size_t i = 0; i < q->n_exclude; i++) scratch->excluded[q->exclude[i]] = 1;
        for (size_t i = 0; i < n; i++)
            if (!scratch->excluded[ids[i]]) ids[kept++] = ids[i];
        n = kept;
    }
    *n_extras = n;
    return FH_OK;
}

void fh_query_end(fh_scratch *scratch, const fh_query *query)
{
    for (size_t i = 0; query && i < query->n_exclude; i++) scratch->excluded[query->exclude[i]] = 0;
}

/* ---- scoring ---------------------------------------------------------------------------------------------------------------- */

/* Logits of rows in the order of: the slots of clusters[], or slot_of[ids[]]. */
typedef struct rows_job {
    const fh_head *head;
    const fh_state *state;
    const uint32_t *clusters, *ids; /* one of them */
    size_t n, step;
    float *logits;
} rows_job;

static uint32_t slot_at(const rows_job *j, size_t at)
{
    size_t cap = j->head->parts.cap;
    return j->ids ? j->head->slot_of[j->ids[at]] : (uint32_t)(j->clusters[at / cap] * cap + at % cap);
}

static void rows_task(void *ctx, size_t task, unsigned worker)
{
    const rows_job *j = ctx;
    const fh_head_parts *p = &j->head->parts;
    for (size_t begin = task * j->step, end = fh_min(begin + j->step, j->n); begin < end; begin += RUN) {
        uint32_t slots[RUN];
        size_t n = fh_min(RUN, end - begin);
        for (size_t i = 0; i < n; i++) slots[i] = slot_at(j, begin + i);
        if (begin + n < end) fh_dots_next(&p->tokens, slot_at(j, begin + n));
        fh_dots(j->head->kernels, &p->tokens, p->token_scales, slots, 0, n, &j->state, 1, j->logits + begin, 0);
        for (size_t i = 0; i < n; i++) {
            uint32_t id = p->permutation[slots[i]];
            if (id != FH_NO_TOKEN) j->logits[begin + i] = fh_head_logit(p, id, j->logits[begin + i]);
        }
    }
}

static void score_rows(const fh_head *head, fh_pool *pool, const fh_state *state, const uint32_t *clusters, const uint32_t *ids,
                       size_t n, float *logits)
{
    size_t stride = head->parts.tokens.stride, step = fh_max(RUN, FH_TASK_BYTES / stride / RUN * RUN);
    rows_job j = {head, state, clusters, ids, n, step, logits};
    fh_pool_run(fh_pool_for(pool, n * stride), (n + step - 1) / step, rows_task, &j);
}

void fh_head_exact_logits(const fh_head *head, const float *state, const uint32_t *ids, size_t n, float *logits)
{
    const fh_head_parts *p = &head->parts;
    fh_state s = {.f = state};
    const fh_state *each = &s;
    for (size_t begin = 0; begin < n; begin += RUN) {
        uint32_t rows[RUN];
        size_t count = fh_min(RUN, n - begin);
        for (size_t i = 0; i < count; i++) rows[i] = p->exact_by_token ? ids[begin + i] : head->slot_of[ids[begin + i]];
        fh_dots(head->kernels, &p->exact, NULL, rows, 0, count, &each, 1, logits + begin, 0);
        for (size_t i = 0; i < count; i++) logits[begin + i] = fh_head_logit(p, ids[begin + i], logits[begin + i]);
    }
}

/* Exact logits for the best of n candidates.  heap [R + 1]. */
static void rerank(const fh_head *head, uint64_t *heap, const float *state, const uint32_t *ids, size_t n, float *logits)
{
    size_t at[RUN], count = 0;
    uint32_t id[RUN];
    float logit[RUN];
    heap[0] = 0;
    for (size_t i = 0; i < n; i++) fh_heap_offer(heap, head->rerank, fh_key(logits[i], ids[i]));
    uint64_t worst = heap[1]; /* keys are all different: as many as the heap holds are not above it */
    for (size_t i = 0; i < n; i++) {
        if (fh_key(logits[i], ids[i]) <= worst) at[count] = i, id[count++] = ids[i];
        if (count < RUN && i + 1 < n) continue;
        fh_head_exact_logits(head, state, id, count, logit);
        for (size_t j = 0; j < count; j++) logits[at[j]] = logit[j];
        count = 0;
    }
}

size_t fh_head_max_candidates(const fh_head *head, const fh_query *query)
{
    size_t probed = (size_t)fh_head_probes(head, query ? query->probes : 0) * head->parts.cap;
    return probed + head->parts.n_hot + head->parts.n_always + (query ? query->n_include : 0);
}

fh_status fh_head_score(const fh_head *head, fh_scratch *scratch, const float *state, const uint32_t *clusters, size_t n_clusters,
                        const fh_query *query, uint32_t *ids, float *logits, size_t *count, fh_err *err)
{
    const fh_head_parts *p = &head->parts;
    size_t n_extras, marked = 0, n = 0, most = fh_head_probes(head, query ? query->probes : 0);
    fh_state s;
    fh_status rc;
    if ((rc = fh_scratch_check(head, scratch, err)) < 0) return rc;
    while (n_clusters && clusters[n_clusters - 1] == UINT32_MAX) n_clusters--; /* as fh_head_route pads */
    if (n_clusters > most)
        return fh_fail(err, FH_EUSAGE, "%zu clusters to score, but the query asks for %zu probes; set its `probes`", n_clusters, most);
    if ((rc = fh_head_states(head, &s, state, 0, 1, scratch->quantized, err)) < 0) return rc;
    if (head->rerank) {
        void *heap = scratch->heaps;
        if ((rc = fh_scratch_grow(&heap, &scratch->heaps_bytes, ((size_t)head->rerank + 1) * sizeof *scratch->heaps, err)) < 0) return rc;
        scratch->heaps = heap;
    }
    if ((rc = fh_query_begin(head, scratch, query, &n_extras, err)) < 0) return rc;
    for (; marked < n_clusters; marked++) {
        uint32_t c = clusters[marked];
        if (c >= p->clusters) {
            rc = fh_fail(err, FH_EUSAGE, "entry %zu: cluster %u, but there are %u", marked, c, p->clusters);
            goto out;
        }
        if (scratch->probed[c]) {
            rc = fh_fail(err, FH_EUSAGE, "entry %zu: cluster %u is there twice", marked, c);
            goto out;
        }
        scratch->probed[c] = 1;
    }
    /* All slots first, where there is room for them; then close the gaps. */
    score_rows(head, scratch->pool, &s, clusters, NULL, n_clusters * p->cap, logits);
    for (size_t at = 0; at < n_clusters * p->cap; at++) {
        uint32_t id = p->permutation[(size_t)clusters[at / p->cap] * p->cap + at % p->cap];
        if (id == FH_NO_TOKEN || head->dead_map[id] || scratch->excluded[id]) continue;
        ids[n] = id;
        logits[n++] = logits[at];
    }
    size_t first = n;
    for (size_t i = 0; i < n_extras; i++)
        if (!scratch->probed[head->slot_of[scratch->extras[i]] / p->cap]) ids[n++] = scratch->extras[i];
    score_rows(head, scratch->pool, &s, NULL, ids + first, n - first, logits + first);
    if (head->rerank && n) rerank(head, scratch->heaps, s.f, ids, n, logits);
    *count = n;
out:
    while (marked > 0) scratch->probed[clusters[--marked]] = 0;
    fh_query_end(scratch, query);
    return rc;
}

fh_status fh_head_score_ids(const fh_head *head, fh_scratch *scratch, const float *state, const uint32_t *ids, size_t n, float *logits,
                            fh_err *err)
{
    fh_state s;
    fh_status rc;
    if ((rc = fh_scratch_check(head, scratch, err)) < 0) return rc;
    if ((rc = check_ids(head, ids, n, "ids to score", err)) < 0) return rc;
    if ((rc = fh_head_states(head, &s, state, 0, 1, scratch->quantized, err)) < 0) return rc;
    if (n) score_rows(head, scratch->pool, &s, NULL, ids, n, logits);
    return FH_OK;
}
