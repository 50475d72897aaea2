/* head_topk.c: both stages in one call, for many states; and the dense head's best tokens by the same way.
 *
 * Up to FH_BLOCK states are worked on together, so that a row is read once for all states that probe its cluster; which do is one
 * word a cluster.  Tasks are stretches of rows.  Each worker keeps the k best it has seen of each state; since results have a
 * strict order, the k best of all of these do not depend on who saw what.
 */
#include "runtime/head.h"

#include <math.h>

enum { RUN = 64 }; /* rows scored together */

typedef struct stage2 {
    const fh_head *head;
    const fh_rows *rows;             /* in slot order */
    const void *scales;
    const fh_state *const *states;   /* [m] */
    size_t m;
    const uint32_t *list;            /* clusters, ascending; NULL: all */
    size_t positions;                /* rows of these clusters, padding counted */
    size_t step, tasks;              /* positions a task takes, tasks they make */
    const uint32_t *extras; size_t n_extras;
    const uint32_t *probed;          /* [K] which states probe a cluster */
    const uint8_t *excluded;         /* [V] or NULL */
    size_t k;
    uint64_t *heaps;                 /* [threads, m] of k + 1: how many, then that many keys, the worst first */
} stage2;

/* ---- the k best ----------------------------------------------------------------------------------------------------------- */

/* Take the rows at slots[] (NULL: from `first` on) as candidates of one state. */
static void consume(const stage2 *t, uint64_t *heap, const uint32_t *slots, size_t first, size_t n, const float *dots)
{
    const fh_head_parts *p = &t->head->parts;
    bool plain = !p->bias && !(p->softcap > 0);
    for (size_t i = 0; i < n; i++) {
        /* Most rows end here, before their id is looked up. */
        if (plain && heap[0] == t->k && dots[i] < fh_key_value(heap[1])) continue;
        uint32_t id = p->permutation[slots ? slots[i] : first + i];
        if (id == FH_NO_TOKEN || t->head->dead_map[id] || (t->excluded && t->excluded[id])) continue;
        fh_heap_offer(heap, t->k, fh_key(fh_head_logit(p, id, dots[i]), id));
    }
}

/* ---- tasks ----------------------------------------------------------------------------------------------------------------- */

static void score_run(const stage2 *t, uint64_t *heaps, uint32_t which, const uint32_t *slots, size_t first, size_t n)
{
    const fh_state *state[FH_BLOCK];
    size_t number[FH_BLOCK], m = 0;
    float dots[FH_BLOCK * RUN];
    for (size_t s = 0; s < t->m; s++)
        if (which >> s & 1) state[m] = t->states[s], number[m++] = s;
    if (!m) return;
    fh_dots(t->head->kernels, t->rows, t->scales, slots, first, n, state, m, dots, RUN);
    for (size_t s = 0; s < m; s++) consume(t, heaps + number[s] * (t->k + 1), slots, first, n, dots + s * RUN);
}

static uint32_t everybody(const stage2 *t) { return t->m == 32 ? UINT32_MAX : (1u << t->m) - 1; }

static void run_extras(const stage2 *t, uint64_t *heaps, size_t begin)
{
    size_t cap = t->head->parts.cap, n = 0;
    uint32_t slots[RUN];
    for (size_t i = begin; i < fh_min(begin + RUN, t->n_extras); i++) {
        uint32_t slot = t->head->slot_of[t->extras[i]], left = everybody(t) & ~t->probed[slot / cap];
        if (t->m == 1 && left) slots[n++] = slot;
        else score_run(t, heaps, left, &slot, 0, 1);
    }
    if (n) score_run(t, heaps, 1, slots, 0, n);
}

static size_t probed_slot(const stage2 *t, size_t at)
{
    size_t cap = t->head->parts.cap;
    return (size_t)t->list[at / cap] * cap + at % cap;
}

static void stage2_task(void *ctx, size_t task, unsigned worker)
{
    const stage2 *t = ctx;
    size_t cap = t->head->parts.cap;
    uint64_t *heaps = t->heaps + worker * t->m * (t->k + 1);
    if (task >= t->tasks) {
        run_extras(t, heaps, (task - t->tasks) * RUN);
        return;
    }
    for (size_t at = task * t->step, end = fh_min(at + t->step, t->positions), n; at < end; at += n) {
        n = fh_min(RUN, end - at);
        if (!t->list) {
            score_run(t, heaps, everybody(t), NULL, at, n);
            continue;
        }
        if (t->m > 1) n = fh_min(n, cap - at % cap);
        if (at + n < end) fh_dots_next(t->rows, probed_slot(t, at + n));
        if (t->m == 1) { /* one state: clusters in a row, whatever their size */
            uint32_t slots[RUN];
            for (size_t i = 0; i < n; i++) slots[i] = (uint32_t)probed_slot(t, at + i);
            score_run(t, heaps, 1, slots, 0, n);
        } else {
            score_run(t, heaps, t->probed[t->list[at / cap]], NULL, probed_slot(t, at), n);
        }
    }
}

static void run_stage2(stage2 *t, fh_pool *pool, unsigned threads)
{
    t->step = fh_max(RUN, FH_TASK_BYTES / t->rows->stride / RUN * RUN);
    t->tasks = (t->positions + t->step - 1) / t->step;
    for (size_t i = 0; i < threads * t->m; i++) t->heaps[i * (t->k + 1)] = 0;
    size_t bytes = (t->positions + t->n_extras * t->m) * t->rows->stride;
    fh_pool_run(fh_pool_for(pool, bytes), t->tasks + (t->n_extras + RUN - 1) / RUN, stage2_task, t);
}

/* ---- results ----------------------------------------------------------------------------------------------------------------- */

/* Heaps for m states, and behind them room to gather and sort one state's: *m falls where they would pass a few tens of megabytes. */
static fh_status room_for(fh_scratch *scratch, size_t k, size_t *m, fh_err *err)
{
    enum { KEYS = 4 << 20 };
    void *heaps = scratch->heaps;
    size_t keys, bytes;
    *m = fh_min(*m, fh_max(1, KEYS / (k + 1) / scratch->threads));
    if (!fh_mul((*m + 2) * scratch->threads, k + 1, &keys) || !fh_mul(keys, sizeof(uint64_t), &bytes))
        return fh_fail(err, FH_EUSAGE, "the best %zu of each state: out of range", k);
    fh_status rc = fh_scratch_grow(&heaps, &scratch->heaps_bytes, bytes, err);
    scratch->heaps = heaps;
    return rc;
}

typedef struct results {
    const stage2 *t;
    size_t k, rerank;                /* results a state, candidates of it that are scored again */
    uint32_t *ids; float *logits;    /* [m, k] */
    uint64_t *room;                  /* [threads, t->k] */
} results;

/* The best of state s over all workers, best first, in the first worker's heap. */
static void gather(const stage2 *t, unsigned threads, size_t s)
{
    uint64_t *all = t->heaps + threads * t->m * (t->k + 1), *room = all + threads * (t->k + 1), *best = t->heaps + s * (t->k + 1);
    size_t n = 0;
    for (unsigned w = 0; w < threads; w++) {
        const uint64_t *heap = t->heaps + (w * t->m + s) * (t->k + 1);
        for (size_t i = 1; i <= heap[0]; i++) all[n++] = heap[i];
    }
    fh_sort_keys(all, n, room);
    best[0] = fh_min(n, t->k);
    for (size_t i = 0; i < best[0]; i++) best[i + 1] = all[i];
}

/* The exact logits of the first keys, then k of all of them go out, padded. */
static void finish_task(void *ctx, size_t s, unsigned worker)
{
    const results *r = ctx;
    uint64_t *keys = r->t->heaps + s * (r->t->k + 1);
    size_t n = (size_t)*keys++, again = fh_min(n, r->rerank), count;
    for (size_t at = 0; at < again; at += count) {
        uint32_t id[RUN];
        float logit[RUN];
        count = fh_min(RUN, again - at);
        for (size_t i = 0; i < count; i++) id[i] = fh_key_id(keys[at + i]);
        fh_head_exact_logits(r->t->head, r->t->states[s]->f, id, count, logit);
        for (size_t i = 0; i < count; i++) keys[at + i] = fh_key(logit[i], id[i]);
    }
    if (again) fh_sort_keys(keys, n, r->room + worker * r->t->k);
    for (size_t i = 0; i < r->k; i++) {
        r->ids[s * r->k + i] = i < n ? fh_key_id(keys[i]) : UINT32_MAX;
        if (r->logits) r->logits[s * r->k + i] = i < n ? fh_key_value(keys[i]) : -INFINITY;
    }
}

static void finish(const stage2 *t, fh_scratch *scratch, size_t rerank, size_t k, uint32_t *ids, float *logits)
{
    results r = {t, k, rerank, ids, logits, t->heaps + scratch->threads * t->m * (t->k + 1)};
    for (size_t s = 0; s < t->m; s++) gather(t, scratch->threads, s);
    fh_pool_run(fh_pool_for(scratch->pool, rerank ? t->m * rerank * t->head->parts.exact.stride : 0), t->m, finish_task, &r);
}

/* ---- elsewhere ------------------------------------------------------------------------------------------------------------------ */

static bool goes_there(const fh_scratch *scratch, size_t kept, size_t k) { return scratch->device && kept <= scratch->device->most && k <= UINT32_MAX; }

/* What is asked goes to the scratch's device; the states are looked at here, so that a message names them. */
static fh_status topk_there(const fh_head *head, fh_scratch *scratch, fh_head_call *call, uint32_t *ids, float *logits, fh_err *err)
{
    fh_state state;
    fh_status rc;
    uint64_t clusters = 0;
    for (size_t s = 0; call->states && s < call->batch; s++)
        if ((rc = fh_head_states(head, &state, call->states + s * head->parts.hidden, s, 1, NULL, err)) < 0) return rc;
    call->probed = &clusters;
    if ((rc = scratch->device->topk(scratch->device->ctx, call, ids, logits, err)) < 0) return rc;
    scratch->probed_so_far.clusters += clusters, scratch->probed_so_far.states += clusters ? call->batch : 0;
    return FH_OK;
}

/* After fh_query_begin. */
static fh_head_call call_of(const fh_head *head, const fh_scratch *scratch, const float *states, size_t batch, const fh_query *query, size_t n_extras)
{
    bool own = !query || (!query->n_include && !query->n_exclude);
    uint32_t asked = query ? query->probes : 0;
    return (fh_head_call){.states = states, .batch = batch, .probes = fh_head_probes(head, asked), .threshold = fh_head_threshold(head, asked),
                          .no_hot = query && query->no_hot, .n_extras = n_extras,
                          .extras = own ? NULL : scratch->extras, .excluded = query && query->n_exclude ? scratch->excluded : NULL};
}

/* ---- FlashHead ----------------------------------------------------------------------------------------------------------------- */

/* Stage 1 for m states: the clusters that any of them probes, ascending, and who probes them. */
static size_t probe(const fh_head *head, fh_scratch *scratch, const fh_state *const *states, size_t m, uint32_t asked)
{
    size_t n = 0, k = head->parts.clusters, probes = fh_head_probes(head, asked);
    fh_head_choose(head, scratch, states, m, asked);
    for (size_t s = 0; s < m; s++)
        for (size_t i = 0; i < scratch->n_chosen[s]; i++) scratch->probed[fh_key_id(scratch->chosen[s * probes + i])] |= 1u << s;
    for (size_t c = 0; c < k; c++)
        if (scratch->probed[c]) scratch->list[n++] = (uint32_t)c;
    return n;
}

static fh_status topk(const fh_head *head, fh_scratch *scratch, const float *states, size_t batch, const fh_query *query, size_t k,
                      uint32_t *ids, float *logits, fh_err *err)
{
    const fh_head_parts *p = &head->parts;
    fh_status rc;
    size_t n_extras, d = p->hidden, most = fh_head_max_candidates(head, query), rerank, kept;
    uint32_t asked = query ? query->probes : 0;
    bool all = fh_head_probes(head, asked) == p->clusters && !(fh_head_threshold(head, asked) > 0);
    if ((rc = fh_scratch_check(head, scratch, err)) < 0) return rc;
    if (!k) return fh_fail(err, FH_EUSAGE, "the best 0 of each state: ask for 1 or more");
    /* Behind those that are scored again, the k best of the others: were all of the first to fall, these would be the results. */
    kept = fh_min(k, most), rerank = head->rerank ? fh_min(head->rerank + kept - 1, most) : 0;
    if (rerank) kept = fh_min(kept + rerank, most);
    size_t block = scratch->block;
    bool there = goes_there(scratch, kept, k);
    if (!states && batch && !there) return fh_fail(err, FH_EUSAGE, "no states are given, and no device has any");
    if (!there && (rc = room_for(scratch, kept, &block, err)) < 0) return rc;
    if ((rc = fh_query_begin(head, scratch, query, &n_extras, err)) < 0) return rc;
    if (there) {
        fh_head_call call = call_of(head, scratch, states, batch, query, n_extras);
        call.kept = (uint32_t)kept, call.rerank = (uint32_t)rerank, call.k = (uint32_t)k;
        rc = topk_there(head, scratch, &call, ids, logits, err);
        fh_query_end(scratch, query);
        return rc;
    }

    for (size_t first = 0; first < batch; first += block) {
        fh_state state[FH_BLOCK];
        const fh_state *each[FH_BLOCK];
        size_t m = fh_min(block, batch - first), n_list = 0;
        for (size_t s = 0; s < m; s++) each[s] = &state[s];
        fh_step_begins(scratch);
        if ((rc = fh_head_states(head, state, states + first * d, first, m, scratch->quantized, err)) < 0) break;
        if (!all) n_list = probe(head, scratch, each, m, asked);
        if (!all) fh_step_done(scratch, FH_STEP_SELECT);
        stage2 t = {.head = head, .rows = &p->tokens, .scales = p->token_scales, .states = each, .m = m, .list = all ? NULL : scratch->list,
                    .positions = (all ? p->clusters : n_list) * p->cap, .extras = scratch->extras, .n_extras = all ? 0 : n_extras,
                    .probed = scratch->probed, .excluded = query && query->n_exclude ? scratch->excluded : NULL, .k = kept,
                    .heaps = scratch->heaps};
        run_stage2(&t, scratch->pool, scratch->threads);
        fh_step_done(scratch, FH_STEP_SCORE);
        finish(&t, scratch, rerank, k, ids + first * k, logits ? logits + first * k : NULL);
        fh_step_done(scratch, FH_STEP_RERANK);
        for (size_t i = 0; i < n_list; i++) scratch->probed[scratch->list[i]] = 0;
    }
    fh_query_end(scratch, query);
    return rc;
}

fh_status fh_head_topk(const fh_head *head, fh_scratch *scratch, const float *states, size_t batch, const fh_query *query, size_t k,
                       uint32_t *ids, float *logits, fh_err *err)
{
    return topk(head, scratch, states, batch, query, k, ids, logits, err);
}

fh_status fh_head_greedy(const fh_head *head, fh_scratch *scratch, const float *states, size_t batch, const fh_query *query,
                         uint32_t *ids, fh_err *err)
{
    return topk(head, scratch, states, batch, query, 1, ids, NULL, err);
}

/* ---- one by chance ----------------------------------------------------------------------------------------------------------- */

static fh_status sample_here(const fh_head *head, fh_scratch *scratch, const float *state, const fh_query *query, const fh_sampling *how, double random, uint32_t *id, fh_err *err)
{
    uint32_t asked = query ? query->probes : 0, probes = fh_head_probes(head, asked);
    size_t n = 0, room = fh_head_max_candidates(head, query), bytes;
    uint32_t *ids = fh_add(room, probes, &bytes) && fh_mul(bytes, 2 * sizeof *ids, &bytes) ? fh_malloc(bytes) : NULL, *clusters = ids ? ids + room : NULL;
    float *logits = ids ? (float *)(void *)(clusters + probes) : NULL;
    fh_status rc = ids ? fh_head_route(head, scratch, state, 1, asked, clusters, NULL, err) : fh_fail(err, FH_ENOMEM, "sampling of %zu candidates: out of memory", room);
    if (rc == FH_OK) rc = fh_head_score(head, scratch, state, clusters, probes, query, ids, logits, &n, err);
    if (rc == FH_OK) rc = fh_sample(how, ids, logits, n, random, id, err);
    fh_free(ids);
    return rc;
}

fh_status fh_head_sample(const fh_head *head, fh_scratch *scratch, const float *states, size_t batch, const fh_query *query, const fh_sampling *how, const double *random, uint32_t *ids,
                         fh_err *err)
{
    fh_status rc = fh_scratch_check(head, scratch, err);
    if (rc == FH_OK) rc = fh_sampling_check(how, random, batch, err);
    if (rc < 0) return rc;
    if (how->temperature == 0 || how->top_k == 1) {
        if ((rc = fh_head_greedy(head, scratch, states, batch, query, ids, err)) < 0) return rc;
    } else if (goes_there(scratch, head->rerank, 1)) {
        size_t n_extras;
        uint32_t rerank = (uint32_t)fh_min(head->rerank, fh_head_max_candidates(head, query));
        if ((rc = fh_query_begin(head, scratch, query, &n_extras, err)) < 0) return rc;
        fh_head_call call = call_of(head, scratch, states, batch, query, n_extras);
        call.random = random, call.sampling = *how, call.kept = (uint32_t)fh_max(rerank, 1), call.rerank = rerank, call.k = 1;
        rc = topk_there(head, scratch, &call, ids, NULL, err);
        fh_query_end(scratch, query);
        if (rc < 0) return rc;
    } else {
        for (size_t s = 0; rc == FH_OK && s < batch; s++) rc = sample_here(head, scratch, states + s * head->parts.hidden, query, how, random[s], &ids[s], err);
        return rc;
    }
    for (size_t s = 0; s < batch; s++)
        if (ids[s] == UINT32_MAX) return fh_fail(err, FH_EUSAGE, "state %zu: nothing to draw from: no candidate has a logit above -infinity", s);
    return FH_OK;
}

/* ---- the dense head -------------------------------------------------------------------------------------------------------------- */

fh_status fh_head_dense_topk(const fh_head *head, fh_scratch *scratch, const float *states, size_t batch, size_t k, uint32_t *ids,
                             float *logits, fh_err *err)
{
    const fh_head_parts *p = &head->parts;
    fh_status rc;
    size_t kept = fh_min(k, p->vocab), d = p->hidden, block;
    if ((rc = fh_scratch_check(head, scratch, err)) < 0) return rc;
    if ((rc = fh_head_need_exact(head, err)) < 0) return rc;
    if (!k) return fh_fail(err, FH_EUSAGE, "the best 0 of each state: ask for 1 or more");
    if (goes_there(scratch, kept, k)) {
        fh_head_call call = {.states = states, .batch = batch, .probes = p->clusters, .dense = true, .kept = (uint32_t)kept, .k = (uint32_t)k};
        return topk_there(head, scratch, &call, ids, logits, err);
    }
    if (!states && batch) return fh_fail(err, FH_EUSAGE, "no states are given, and no device has any");
    block = scratch->block;
    if ((rc = room_for(scratch, kept, &block, err)) < 0) return rc;
    for (size_t first = 0; first < batch; first += block) {
        fh_state state[FH_BLOCK];
        const fh_state *each[FH_BLOCK];
        size_t m = fh_min(block, batch - first);
        for (size_t s = 0; s < m; s++) each[s] = &state[s];
        if ((rc = fh_head_states(head, state, states + first * d, first, m, NULL, err)) < 0) return rc;
        stage2 t = {.head = head, .rows = &head->exact, .states = each, .m = m, .positions = (size_t)p->clusters * p->cap, .k = kept,
                    .heaps = scratch->heaps};
        run_stage2(&t, scratch->pool, scratch->threads);
        finish(&t, scratch, 0, k, ids + first * k, logits + first * k);
    }
    return FH_OK;
}
