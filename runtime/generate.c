/* Generation: body, head, choice, one token at a time. */
#include "runtime/runtime.h"

#include <math.h>
#include <string.h>

typedef struct chooser {
    const fh_model *m;
    const fh_generate_params *p;
    fh_pool *pool;
    fh_scratch *scratch;
    fh_rng rng;
    uint32_t *ids, *clusters;
    float *logits;
    size_t room;
    uint32_t probes;
} chooser;

static bool dense(const chooser *c) { return c->p->head == FH_HEAD_DENSE || !c->m->head; }
/* The artifact's own exact rows where it has them; a head-only one leaves the dense head to its base model. */
static bool dense_in_file(const chooser *c) { return c->m->head && fh_head_get_info(c->m->head)->exact; }

static fh_status open_chooser(chooser *c, fh_err *err)
{
    const fh_model *m = c->m;
    if (m->head) {
        fh_status rc = fh_scratch_on(&c->scratch, m->head, c->pool, err);
        if (rc < 0) return rc;
        const fh_head_info *info = fh_head_get_info(m->head);
        c->probes = c->p->query.probes ? c->p->query.probes : info->probes;
        if (c->probes > info->clusters) c->probes = info->clusters;
        c->room = fh_head_max_candidates(m->head, &c->p->query);
        if (!(c->clusters = fh_malloc(fh_max(c->probes, 1) * sizeof *c->clusters))) return fh_fail(err, FH_ENOMEM, "out of memory");
    }
    c->room = fh_max(c->room, m->config->vocab);
    c->ids = fh_malloc(c->room * sizeof *c->ids);
    c->logits = fh_malloc(c->room * sizeof *c->logits);
    return c->ids && c->logits ? FH_OK : fh_fail(err, FH_ENOMEM, "out of memory");
}

/* Live tokens and their logits from the dense head. */
static fh_status dense_candidates(chooser *c, const float *state, size_t *count, fh_err *err)
{
    const fh_model *m = c->m;
    fh_status rc = dense_in_file(c) ? fh_head_dense_logits(m->head, c->scratch, state, c->logits, err) : fh_dense_logits(&m->dense, c->pool, state, 1, c->logits, err);
    if (rc < 0) return rc;
    size_t n = 0;
    for (uint32_t t = 0; t < m->config->vocab; t++)
        if (!m->dense.dead || !m->dense.dead[t]) c->ids[n] = t, c->logits[n++] = c->logits[t];
    *count = n;
    return FH_OK;
}

static fh_status choose(chooser *c, const float *state, uint32_t *id, fh_err *err)
{
    fh_status rc;
    size_t n;
    bool greedy = !(c->p->sampling.temperature > 0);
    if (!dense(c) && greedy) {
        if ((rc = fh_head_greedy(c->m->head, c->scratch, state, 1, &c->p->query, id, err)) < 0) return rc;
        return *id == UINT32_MAX ? fh_fail(err, FH_ECHECK, "no token is left to choose from") : FH_OK;
    }
    if (dense(c) && greedy && dense_in_file(c)) {
        float best;
        return fh_head_dense_topk(c->m->head, c->scratch, state, 1, 1, id, &best, err);
    }
    if (dense(c)) {
        if ((rc = dense_candidates(c, state, &n, err)) < 0) return rc;
    } else {
        if ((rc = fh_head_route(c->m->head, c->scratch, state, 1, c->probes, c->clusters, NULL, err)) < 0) return rc;
        if ((rc = fh_head_score(c->m->head, c->scratch, state, c->clusters, c->probes, &c->p->query, c->ids, c->logits, &n, err)) < 0) return rc;
    }
    return fh_sample(&c->p->sampling, c->ids, c->logits, n, greedy ? 0 : fh_rng_double(&c->rng), id, err);
}

static bool is_eos(const fh_config *c, uint32_t id)
{
    for (size_t i = 0; i < c->n_eos; i++) if (c->eos[i] == id) return true;
    return false;
}

fh_status fh_generate(const fh_model *m, const uint32_t *prompt, size_t n, const fh_generate_params *p, const fh_job *job, fh_generate_stats *stats, fh_err *err)
{
    enum { PREFILL = 512 };
    fh_status rc;
    fh_kv *kv = NULL;
    chooser c = {.m = m, .p = p, .pool = fh_job_pool(job)};
    size_t d = m->config->hidden;
    float *hidden = fh_malloc(fh_min(n, PREFILL) * d * sizeof *hidden);
    uint32_t id = 0, limit = m->config->max_position ? m->config->max_position : UINT32_MAX;
    double began = fh_now(), head_time = 0;
    *stats = (fh_generate_stats){.prompt_tokens = n, .body_bytes = (double)fh_body_bytes(m->body)};
    if (!hidden) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    if (n > limit) { rc = fh_fail(err, FH_EUSAGE, "the prompt has %zu tokens, the model takes %u", n, limit); goto out; }
    for (size_t i = 0; i < n; i++)
        if (prompt[i] >= m->config->vocab) { rc = fh_fail(err, FH_ECHECK, "token %u of the prompt is past the head's %u rows", prompt[i], m->config->vocab); goto out; }
    if ((rc = open_chooser(&c, err)) < 0 || (rc = fh_kv_new(&kv, m->body, err)) < 0) goto out;
    fh_rng_seed(&c.rng, p->seed, 0x67);
    const float *state = hidden;
    for (size_t at = 0; at < n;) { /* the prompt, in pieces */
        uint32_t len = (uint32_t)fh_min(PREFILL, n - at);
        if (fh_job_stopped(job)) { rc = fh_fail(err, FH_EINTERRUPTED, "interrupted"); goto out; }
        if ((rc = fh_body_forward(m->body, c.pool, 1, &kv, &len, prompt + at, hidden, err)) < 0) goto out;
        at += len, state = hidden + (len - 1) * d;
    }
    double first = 0;
    for (size_t i = 0; i < p->tokens; i++) {
        double t0 = fh_now();
        if ((rc = choose(&c, state, &id, err)) < 0) goto out;
        double t1 = fh_now();
        if (i == 0) first = t1, stats->ttft_seconds = t1 - began; else head_time += t1 - t0;
        stats->ended = !p->ignore_eos && is_eos(m->config, id);
        if (stats->ended) break;
        stats->tokens++;
        if (p->on_token && !p->on_token(p->ctx, id)) break;
        if (fh_job_stopped(job)) { rc = fh_fail(err, FH_EINTERRUPTED, "interrupted"); goto out; }
        if (i + 1 == p->tokens) break;
        if (fh_kv_length(kv) >= limit) { stats->full = true; break; }
        uint32_t one = 1;
        if ((rc = fh_body_forward(m->body, c.pool, 1, &kv, &one, &id, hidden, err)) < 0) goto out;
        state = hidden;
    }
    double spent = fh_now() - first;
    if (stats->tokens > 1) stats->tpot_seconds = spent / (double)(stats->tokens - 1 + stats->ended), stats->head_share = head_time / spent;
    if (dense(&c)) stats->step_bytes = (double)m->config->vocab * (double)d * (double)fh_dtype_size(m->dense.rows.dtype);
    else stats->step_bytes = fh_head_step_bytes(m->head, c.probes, p->query.no_hot ? 0 : fh_head_get_info(m->head)->n_hot);
out:
    fh_kv_free(kv);
    fh_scratch_free(c.scratch);
    fh_free(c.ids);
    fh_free(c.clusters);
    fh_free(c.logits);
    fh_free(hidden);
    return rc;
}
