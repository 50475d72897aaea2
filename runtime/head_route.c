/* head_route.c: stage 1.  Score all centroids, choose the P best clusters. */
#include "runtime/head.h"

#include <float.h>
#include <math.h>

bool fh_head_has_integers(const fh_head *head) 
{
    return fh_dtype_is_integer(head->parts.centroids.dtype) || fh_dtype_is_integer(head->parts.tokens.dtype);
}

fh_status fh_head_states(const fh_head *head, fh_state *out, const float *states, size_t first, size_t m, void *room, fh_err *err)
{
    size_t d = head->parts.hidden;
    for (size_t s = 0; s < m; s++) {
        const float *x = states + s * d;
        for (size_t i = 0; i < d; i++)
            if (!(fabsf(x[i]) <= FLT_MAX))
                return fh_fail(err, FH_EUSAGE, "state %zu: element %zu is %g; states have to be finite numbers", first + s, i,
                               (double)x[i]);
        if (room && fh_head_has_integers(head)) fh_state_quantize(&out[s], x, d, (uint8_t *)room + s * fh_state_bytes(d));
        else out[s] = (fh_state){.f = x};
    }
    return FH_OK;
}

uint32_t fh_head_probes(const fh_head *head, uint32_t asked)
{
    uint32_t probes = asked ? asked : head->parts.probes;
    return probes < head->parts.clusters ? probes : head->parts.clusters;
}

typedef struct score_job { const fh_head *head; const fh_state *const *states; size_t m, step; float *out; } score_job;

static void score_task(void *ctx, size_t task, unsigned worker)
{
    const score_job *j = ctx;
    const fh_head_parts *p = &j->head->parts;
    size_t k = p->clusters, first = task * j->step, n = fh_min(j->step, k - first);
    fh_dots(j->head->kernels, &p->centroids, p->centroid_scales, NULL, first, n, j->states, j->m, j->out + first, k);
    for (size_t s = 0; s < j->m; s++)
        for (size_t i = 0; i < n; i++) j->out[s * k + first + i] = fh_settle(j->out[s * k + first + i]);
}

void fh_head_centroid_scores(const fh_head *head, fh_pool *pool, const fh_state *const *states, size_t m, float *out)
{
    const fh_head_parts *p = &head->parts;
    size_t k = p->clusters, step = fh_max(64, FH_TASK_BYTES / p->centroids.stride / 64 * 64);
    score_job j = {head, states, m, step, out};
    fh_pool_run(fh_pool_for(pool, k * p->centroids.stride * m), (k + step - 1) / step, score_task, &j);
}

float fh_head_threshold(const fh_head *head, uint32_t asked) { return asked ? 0 : head->parts.threshold; }

typedef struct choose_job { fh_scratch *scratch; size_t k, probes; float threshold; } choose_job;

static void choose_task(void *ctx, size_t s, unsigned worker)
{
    const choose_job *j = ctx;
    fh_scratch *w = j->scratch;
    uint64_t *chosen = w->chosen + s * j->probes, *room = w->room + worker * j->k;
    const float *scores = w->scores + s * j->k;
    if (j->threshold > 0) {
        w->n_chosen[s] = (uint32_t)fh_select_close(chosen, scores, j->k, j->probes, j->threshold, room);
    } else {
        fh_select(chosen, scores, j->k, j->probes, room);
        w->n_chosen[s] = (uint32_t)j->probes;
    }
}

void fh_head_choose(const fh_head *head, fh_scratch *scratch, const fh_state *const *states, size_t m, uint32_t asked)
{
    size_t k = head->parts.clusters;
    fh_head_centroid_scores(head, scratch->pool, states, m, scratch->scores);
    fh_step_done(scratch, FH_STEP_ROUTE);
    choose_job j = {scratch, k, fh_head_probes(head, asked), fh_head_threshold(head, asked)};
    fh_pool_run(fh_pool_for(scratch->pool, m * k * 16), m, choose_task, &j);
    for (size_t s = 0; s < m; s++) scratch->probed_so_far.clusters += scratch->n_chosen[s];
    scratch->probed_so_far.states += m;
}

uint32_t fh_head_routed(const uint32_t *clusters, uint32_t probes)
{
    while (probes && clusters[probes - 1] == UINT32_MAX) probes--;
    return probes;
}

fh_status fh_head_route(const fh_head *head, fh_scratch *scratch, const float *states, size_t batch, uint32_t probes, uint32_t *clusters,
                        float *scores, fh_err *err)
{
    fh_status rc = fh_scratch_check(head, scratch, err);
    size_t d = head->parts.hidden, p = fh_head_probes(head, probes);
    for (size_t first = 0; rc == FH_OK && first < batch; first += scratch->block) {
        fh_state state[FH_BLOCK];
        const fh_state *all[FH_BLOCK];
        size_t m = fh_min(scratch->block, batch - first);
        for (size_t s = 0; s < m; s++) all[s] = &state[s];
        if ((rc = fh_head_states(head, state, states + first * d, first, m, scratch->quantized, err)) < 0) break;
        fh_head_choose(head, scratch, all, m, probes);
        for (size_t s = 0; s < m; s++) {
            uint64_t *keys = scratch->chosen + s * p;
            size_t n = scratch->n_chosen[s];
            fh_sort_keys(keys, n, scratch->room);
            for (size_t i = 0; i < p; i++) {
                clusters[(first + s) * p + i] = i < n ? fh_key_id(keys[i]) : UINT32_MAX;
                if (scores) scores[(first + s) * p + i] = i < n ? fh_key_value(keys[i]) : -INFINITY;
            }
        }
    }
    return rc;
}
