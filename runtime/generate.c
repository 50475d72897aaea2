/* Generation: body, head, choice, one token at a time, on a sequence whose cache is kept. */
#include "runtime/generate_private.h"

#include <string.h>

enum { PREFILL = 512 }; /* tokens of a prompt at a time */

struct fh_session {
    const fh_model *m;
    fh_generate_params p;
    fh_chooser chooser;
    fh_kv *kv;
    uint32_t *tokens; size_t n, room; /* the sequence; the cache holds fh_kv_length of them */
    float *hidden;                    /* [PREFILL, D] */
    bool stays;                       /* states stay on the device that has body and head */
};

/* The longest sequence. */
static uint32_t limit_of(const fh_model *m) { return m->config->max_position ? m->config->max_position : UINT32_MAX; }

fh_status fh_session_new(fh_session **out, const fh_model *m, const fh_generate_params *p, const fh_job *job, fh_err *err)
{
    fh_status rc;
    fh_session *s = fh_calloc(1, sizeof *s);
    if (!s) return fh_fail(err, FH_ENOMEM, "out of memory");
    s->m = m, s->p = *p;
    if (!(s->hidden = fh_malloc(PREFILL * (size_t)m->config->hidden * sizeof *s->hidden))) {
        rc = fh_fail(err, FH_ENOMEM, "out of memory");
        goto out;
    }
    if ((rc = fh_chooser_open(&s->chooser, m, &s->p, job, err)) < 0 || (rc = fh_kv_new_of(&s->kv, m->body, s->p.kv_type, err)) < 0) goto out;
    s->stays = fh_chooser_is_there(&s->chooser);
    *out = s, s = NULL;
out:
    fh_session_free(s);
    return rc;
}

void fh_session_free(fh_session *s)
{
    if (!s) return;
    fh_chooser_close(&s->chooser);
    fh_kv_free(s->kv);
    fh_free(s->tokens);
    fh_free(s->hidden);
    fh_free(s);
}

static bool is_end(const fh_session *s, uint32_t id)
{
    const fh_config *c = s->m->config;
    for (size_t i = 0; !s->p.ignore_eos && i < c->n_eos; i++)
        if (c->eos[i] == id) return true;
    for (size_t i = 0; i < s->p.n_ends; i++)
        if (s->p.ends[i] == id) return true;
    return false;
}

static fh_status room_for(fh_session *s, size_t n, fh_err *err)
{
    size_t bytes;
    if (n <= s->room) return FH_OK;
    size_t room = fh_max(n, s->room + s->room / 2);
    uint32_t *more = fh_mul(room, sizeof *more, &bytes) ? fh_realloc(s->tokens, bytes) : NULL;
    if (!more) return fh_fail(err, FH_ENOMEM, "out of memory for %zu tokens", n);
    s->tokens = more, s->room = room;
    return FH_OK;
}

fh_status fh_generate_check(const fh_model *m, const uint32_t *prompt, size_t n, fh_err *err)
{
    uint32_t limit = limit_of(m);
    if (!n) return fh_fail(err, FH_EUSAGE, "the prompt is empty: nothing can be continued");
    if (n > limit) return fh_fail(err, FH_EUSAGE, "the prompt has %zu tokens, the model takes %u", n, limit);
    for (size_t i = 0; i < n; i++)
        if (prompt[i] >= m->config->vocab)
            return fh_fail(err, FH_ECHECK, "token %u of the prompt is past the head's %u rows", prompt[i], m->config->vocab);
    return FH_OK;
}

/* n tokens on; the last one's state, NULL where it stays on the device. */
static fh_status forward(fh_session *s, const uint32_t *ids, uint32_t n, const float **state, fh_err *err)
{
    *state = s->stays ? NULL : s->hidden + (n - 1) * (size_t)s->m->config->hidden;
    return fh_body_forward(s->m->body, s->chooser.pool, 1, &s->kv, &n, ids, s->stays ? NULL : s->hidden, err);
}

/* The prompt into the cache, less what is there of it; *state is that of its last token. */
static fh_status prefill(fh_session *s, const uint32_t *prompt, size_t n, const fh_job *job, const float **state, size_t *reused, fh_err *err)
{
    size_t at = 0, have = fh_min(fh_kv_length(s->kv), s->n);
    fh_status rc = room_for(s, n, err);
    if (rc < 0) return rc;
    while (at < have && at + 1 < n && s->tokens[at] == prompt[at]) at++; /* the last token is run again: its state is needed */
    fh_kv_truncate(s->kv, (uint32_t)at);
    memcpy(s->tokens, prompt, n * sizeof *prompt);
    s->n = n, *reused = at;
    while (at < n) {
        uint32_t len = (uint32_t)fh_min(PREFILL, n - at);
        if (fh_job_stopped(job)) return fh_fail(err, FH_EINTERRUPTED, "interrupted");
        if ((rc = forward(s, prompt + at, len, state, err)) < 0) return rc;
        at += len;
    }
    fh_chooser_context(&s->chooser, s->tokens, s->n);
    return FH_OK;
}

/* What one token reads of the head: an exact draw all encoded rows with their scales and bounds, and some or all exact ones. */
static double step_bytes(const fh_session *s, const fh_generate_stats *stats)
{
    const fh_model *m = s->m;
    if (s->chooser.bounds) {
        const fh_head_parts *p = fh_head_get_parts(m->head);
        double slots = (double)p->clusters * p->cap, exact = fh_head_dense_bytes(m->head) / (double)p->vocab;
        double encoded = (double)p->tokens.stride + (double)fh_scale_bytes(p->tokens.dtype, p->hidden) + 2 * sizeof(float);
        double rows = stats->draws ? stats->exact_rows / (double)stats->draws : 0;
        return (stats->exact_dense == stats->draws && p->tokens_exact ? 0 : slots * encoded) + rows * exact;
    }
    if (fh_chooser_is_dense(&s->chooser)) return (double)m->config->vocab * (double)m->dense.rows.stride;
    fh_probed probed = fh_scratch_probed(s->chooser.scratch);
    double probes = s->chooser.adaptive && probed.states ? (double)probed.clusters / (double)probed.states : s->chooser.probes;
    return fh_head_step_bytes(m->head, probes, s->p.query.no_hot ? 0 : fh_head_get_info(m->head)->n_hot);
}

fh_status fh_session_run(fh_session *s, const uint32_t *prompt, size_t n, const fh_job *job, fh_generate_stats *stats, fh_err *err)
{
    const float *state = NULL;
    double began = fh_now(), first = began, head_time = 0, aside = 0; /* aside: audits, which no token waits for otherwise */
    double body_before = 0, head_before = 0, body_there, head_there;
    uint64_t again_before, parts_before;
    uint32_t id = 0;
    fh_status rc = fh_generate_check(s->m, prompt, n, err);
    *stats = (fh_generate_stats){.prompt_tokens = n, .body_bytes = (double)fh_body_bytes(s->m->body)};
    if (rc < 0 || (rc = fh_device_attention(s->m->device, &again_before, &parts_before, err)) < 0 ||
        (rc = prefill(s, prompt, n, job, &state, &stats->reused_tokens, err)) < 0) return rc;
    for (size_t i = 0; i < s->p.tokens; i++) {
        double t0 = fh_now();
        if ((rc = fh_chooser_choose(&s->chooser, state, stats, &id, err)) < 0) return rc;
        double t1 = fh_now();
        if (i == 0) first = t1, stats->ttft_seconds = t1 - began, fh_device_times(s->m->device, &body_before, &head_before);
        else head_time += t1 - t0;
        if ((rc = fh_chooser_audit(&s->chooser, state, stats, err)) < 0) return rc;
        aside += fh_now() - t1;
        if ((stats->ended = is_end(s, id))) break;
        if ((rc = room_for(s, s->n + 1, err)) < 0) return rc;
        s->tokens[s->n++] = id;
        fh_chooser_follow(&s->chooser, s->tokens, s->n);
        stats->tokens++;
        if (s->p.on_token && !s->p.on_token(s->p.ctx, id)) break;
        if (fh_job_stopped(job)) { rc = fh_fail(err, FH_EINTERRUPTED, "interrupted"); break; }
        if (i + 1 == s->p.tokens) break;
        if (fh_kv_length(s->kv) >= limit_of(s->m)) { stats->full = true; break; }
        if ((rc = forward(s, &id, 1, &state, err)) < 0) return rc;
    }
    double spent = fh_now() - first - aside;
    if (stats->tokens > 1) stats->tpot_seconds = spent / (double)(stats->tokens - 1 + stats->ended), stats->head_share = head_time / spent;
    if (s->stays && stats->tokens > 1) { /* here both are waited for in one place */
        fh_device_times(s->m->device, &body_there, &head_there);
        body_there -= body_before, head_there -= head_before;
        stats->head_share = head_there / (body_there + head_there);
    }
    fh_err why; /* what went wrong before is what is said */
    if (fh_device_attention(s->m->device, &stats->attention_again, &stats->attention_parts, &why) == FH_OK)
        stats->attention_again -= again_before, stats->attention_parts -= parts_before;
    stats->step_bytes = step_bytes(s, stats);
    stats->kv_bytes = fh_kv_bytes(s->kv);
    return rc;
}

fh_status fh_generate(const fh_model *m, const uint32_t *prompt, size_t n, const fh_generate_params *p, const fh_job *job, fh_generate_stats *stats, fh_err *err)
{
    fh_session *s = NULL;
    *stats = (fh_generate_stats){.prompt_tokens = n};
    fh_status rc = fh_session_new(&s, m, p, job, err);
    if (rc == FH_OK) rc = fh_session_run(s, prompt, n, job, stats, err);
    fh_session_free(s);
    return rc;
}
