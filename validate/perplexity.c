/* validate/perplexity.c: how well the model says a text, with the dense head or with FlashHead. */
#include "validate/validate.h"

#include <math.h>
#include <string.h>

/* Tokens that go through the body in one call, and bytes of logits at a time (measured on 2 cores: from 16 MiB on nothing is
 * gained, below 4 MiB the widening of the head's rows shows). */
enum { BATCH_TOKENS = 4096, LOGIT_BYTES = 32 << 20, MOST_STATES = 1024 };

typedef struct window { size_t begin, end, from; } window; /* tokens [begin, end), scored from `from` on */

typedef struct run {
    const fh_model *m;
    const uint32_t *ids;
    size_t n, d, v;
    fh_perplexity_params p;
    fh_pool *pool;
    /* One batch: at most `batch` windows. */
    size_t batch;
    window *windows;
    fh_kv **kv;
    uint32_t *lens, *tokens;   /* [batch], [batch * window] */
    float *hidden;             /* [batch * window, D] */
    /* States to score, and the tokens that came next. */
    size_t states;             /* at a time */
    const float *state;        /* the first of them in `hidden` */
    const uint32_t *next;
    float *logits;             /* [states, V] dense, or [workers, room] of candidates */
    double *nll;               /* [states] */
    uint8_t *missed;           /* [states] */
    /* FlashHead. */
    fh_scratch **scratch;      /* [workers], and one for routing after them */
    uint32_t *clusters;        /* [states, P] */
    uint32_t *candidates;      /* [workers, room] */
    fh_query query;
    uint32_t probes;
    size_t room, live;
    fh_status *status;         /* [workers]: of the tasks */
    fh_err *errors;
    double sum;
    uint64_t scored, misses;
} run;

static fh_status check(const run *r, fh_err *err)
{
    const fh_perplexity_params *p = &r->p;
    if (!r->m->body) return fh_fail(err, FH_EUSAGE, "%s: perplexity needs a model with its body", r->m->name);
    uint32_t most = fh_body_max_position(r->m->body);
    if (p->window < 2 || p->window > most)
        return fh_fail(err, FH_EUSAGE, "a window of %u tokens: must be between 2 and the model's longest sequence, %u", p->window, most);
    if (p->stride < 1 || p->stride >= p->window)
        return fh_fail(err, FH_EUSAGE,
                       "a stride of %u tokens: must be between 1 and %u, below the window, so that every token has something before it",
                       p->stride, p->window - 1);
    if (r->n < 2) return fh_fail(err, FH_EUSAGE, "a text of %zu tokens: perplexity needs at least 2", r->n);
    if (p->flash && !r->m->head)
        return fh_fail(err, FH_EUSAGE, "%s: has no FlashHead: give a .fhead, or ask for the dense head", r->m->name);
    if (!p->flash && !r->m->dense.rows.data)
        return fh_fail(err, FH_EUSAGE, "%s: has no exact rows for the dense head: pack it with --exact, or ask for FlashHead", r->m->name);
    if (!(p->backoff >= 0 && p->backoff < 1)) return fh_fail(err, FH_EUSAGE, "a back-off of %g: must be between 0 and 1", p->backoff);
    return FH_OK;
}

static fh_status allocate(run *r, fh_err *err)
{
    size_t workers = fh_pool_threads(r->pool), window_tokens = r->p.window, rows, hidden = 0, logits = 0;
    r->batch = fh_max(BATCH_TOKENS / window_tokens, 1);
    r->states = fh_min(fh_max(LOGIT_BYTES / sizeof(float) / r->v, 16), MOST_STATES);
    bool fits = fh_mul(r->batch, window_tokens, &rows) && fh_mul(rows, r->d * sizeof(float), &hidden);
    if (r->p.flash) {
        r->query = (fh_query){.probes = r->p.probes, .no_hot = r->p.no_hot};
        r->room = fh_head_max_candidates(r->m->head, &r->query);
        fits = fits && fh_mul(workers, r->room, &logits) && fh_mul(logits, sizeof(float), &logits);
    } else {
        fits = fits && fh_mul(r->states, r->v * sizeof(float), &logits);
    }
    if (!fits) goto no_memory;
    r->windows = fh_malloc(r->batch * sizeof *r->windows);
    r->kv = fh_calloc(r->batch, sizeof *r->kv);
    r->lens = fh_malloc(r->batch * sizeof *r->lens);
    r->tokens = fh_malloc(rows * sizeof *r->tokens);
    r->hidden = fh_malloc(hidden);
    r->logits = fh_malloc(logits);
    r->nll = fh_malloc(r->states * sizeof *r->nll);
    r->missed = fh_calloc(r->states, 1);
    if (!r->windows || !r->kv || !r->lens || !r->tokens || !r->hidden || !r->logits || !r->nll || !r->missed) goto no_memory;
    for (size_t i = 0; i < r->batch; i++) {
        fh_status rc = fh_kv_new_of(&r->kv[i], r->m->body, r->p.kv_type, err);
        if (rc < 0) return rc;
    }
    if (!r->p.flash) return FH_OK;
    const fh_head_info *info = fh_head_get_info(r->m->head);
    r->probes = r->p.probes ? r->p.probes : info->probes;
    if (r->probes > info->clusters) r->probes = info->clusters;
    r->live = info->vocab - info->dead;
    r->scratch = fh_calloc(workers + 1, sizeof(fh_scratch *));
    r->clusters = fh_malloc(r->states * r->probes * sizeof *r->clusters);
    r->candidates = fh_malloc(logits); /* as many ids as logits, of the same size */
    r->status = fh_calloc(workers, sizeof *r->status);
    r->errors = fh_calloc(workers, sizeof *r->errors);
    if (!r->scratch || !r->clusters || !r->candidates || !r->status || !r->errors) goto no_memory;
    for (size_t i = 0; i <= workers; i++) {
        fh_status rc = fh_scratch_new(&r->scratch[i], r->m->head, i < workers ? 1 : (unsigned)workers, err);
        if (rc < 0) return rc;
    }
    return FH_OK;
no_memory:
    return fh_fail(err, FH_ENOMEM, "perplexity: out of memory for windows of %u tokens and %zu logits each", r->p.window, r->v);
}

static void release(run *r)
{
    for (size_t i = 0; r->kv && i < r->batch; i++) fh_kv_free(r->kv[i]);
    for (size_t i = 0; r->scratch && i <= fh_pool_threads(r->pool); i++) fh_scratch_free(r->scratch[i]);
    fh_free(r->windows);
    fh_free(r->kv);
    fh_free(r->lens);
    fh_free(r->tokens);
    fh_free(r->hidden);
    fh_free(r->logits);
    fh_free(r->nll);
    fh_free(r->missed);
    fh_free(r->scratch);
    fh_free(r->clusters);
    fh_free(r->candidates);
    fh_free(r->status);
    fh_free(r->errors);
}

static void dense_nll(void *ctx, size_t task, unsigned worker)
{
    run *r = ctx;
    const float *logits = r->logits + task * r->v;
    r->nll[task] = fh_log_sum_exp(logits, r->v) - logits[r->next[task]];
}

static void flash_nll(void *ctx, size_t task, unsigned worker)
{
    run *r = ctx;
    float *logits = r->logits + worker * r->room;
    uint32_t *ids = r->candidates + worker * r->room;
    size_t count = 0, at = 0;
    if (r->status[worker] < 0) return;
    r->status[worker] = fh_head_score(r->m->head, r->scratch[worker], r->state + task * r->d, r->clusters + task * r->probes, r->probes,
                                      &r->query, ids, logits, &count, &r->errors[worker]);
    if (r->status[worker] < 0) return;
    while (at < count && ids[at] != r->next[task]) at++;
    size_t others = r->live > count ? r->live - count : 0;
    double share = others ? r->p.backoff : 0;
    r->missed[task] = at == count;
    if (at < count) r->nll[task] = fh_log_sum_exp(logits, count) - logits[at] - log1p(-share);
    else r->nll[task] = log((double)fh_max(others, 1)) - log(r->p.backoff);
}

/* Score `n` states, which lie one after another. */
static fh_status score(run *r, const float *state, const uint32_t *next, size_t n, fh_err *err)
{
    fh_status rc;
    for (size_t i = 0; i < n; i += r->states) {
        size_t some = fh_min(r->states, n - i);
        r->state = state + i * r->d;
        r->next = next + i;
        if (r->p.flash) {
            fh_scratch *router = r->scratch[fh_pool_threads(r->pool)];
            if ((rc = fh_head_route(r->m->head, router, r->state, some, r->p.probes, r->clusters, NULL, err)) < 0) return rc;
            fh_pool_run(r->pool, some, flash_nll, r);
            for (unsigned w = 0; w < fh_pool_threads(r->pool); w++) {
                if (r->status[w] == FH_OK) continue;
                if (err) *err = r->errors[w];
                return r->status[w];
            }
        } else {
            if ((rc = fh_dense_logits(&r->m->dense, r->pool, r->state, some, r->logits, err)) < 0) return rc;
            fh_pool_run(r->pool, some, dense_nll, r);
        }
        for (size_t s = 0; s < some; s++) r->sum += r->nll[s], r->misses += r->missed[s];
        r->scored += some;
    }
    return FH_OK;
}

static double mean_probes(const run *r)
{
    fh_probed all = r->scratch ? fh_scratch_probed(r->scratch[fh_pool_threads(r->pool)]) : (fh_probed){0};
    return all.states ? (double)all.clusters / (double)all.states : 0;
}

/* One batch of windows through the body; its states and next tokens are packed together in place, then scored. */
static fh_status run_batch(run *r, size_t windows, fh_err *err)
{
    size_t rows = 0, packed = 0;
    for (size_t i = 0; i < windows; i++) {
        const window *w = &r->windows[i];
        r->lens[i] = (uint32_t)(w->end - w->begin - 1); /* what the last token says is not asked */
        memcpy(r->tokens + rows, r->ids + w->begin, r->lens[i] * sizeof *r->tokens);
        rows += r->lens[i];
        fh_kv_truncate(r->kv[i], 0);
    }
    fh_status rc = fh_body_forward(r->m->body, r->pool, windows, r->kv, r->lens, r->tokens, r->hidden, err);
    if (rc < 0) return rc;
    size_t row = 0;
    for (size_t i = 0; i < windows; i++) {
        const window *w = &r->windows[i];
        size_t n = w->end - w->from, first = row + (w->from - 1 - w->begin);
        memmove(r->hidden + packed * r->d, r->hidden + first * r->d, n * r->d * sizeof *r->hidden);
        memcpy(r->tokens + packed, r->ids + w->from, n * sizeof *r->tokens); /* the tokens of this row are used up */
        packed += n;
        row += r->lens[i];
    }
    return score(r, r->hidden, r->tokens, packed, err);
}

fh_status fh_perplexity(const fh_model *m, const uint32_t *ids, size_t n, const fh_perplexity_params *p, const fh_job *job,
                        fh_perplexity_report *out, fh_err *err)
{
    run r = {.m = m,
             .ids = ids,
             .n = n,
             .d = m->config ? m->config->hidden : 0,
             .v = m->config ? m->config->vocab : 0,
             .p = *p,
             .pool = fh_job_pool(job)};
    double start = fh_now();
    *out = (fh_perplexity_report){0};
    if (r.p.flash && r.p.backoff == 0) r.p.backoff = FH_BACKOFF;
    fh_status rc = check(&r, err);
    if (rc < 0) return rc;
    for (size_t i = 0; i < n; i++)
        if (ids[i] >= r.v) return fh_fail(err, FH_ECHECK, "the text encodes to token %u, but the head has %zu rows: is this tokenizer the model's?", ids[i], r.v);
    if ((rc = allocate(&r, err)) < 0) goto out;
    size_t begin = 0, from = 1;
    while (from < n) {
        size_t windows = 0;
        while (windows < r.batch && from < n) {
            window *w = &r.windows[windows++];
            *w = (window){begin, n - begin < p->window ? n : begin + p->window, from};
            from = w->end;
            begin += p->stride;
        }
        if (fh_job_stopped(job)) {
            rc = fh_fail(err, FH_EINTERRUPTED, "perplexity: interrupted after %llu of %zu tokens", (unsigned long long)r.scored, n - 1);
            goto out;
        }
        if ((rc = run_batch(&r, windows, err)) < 0) goto out;
        fh_job_progress(job, "perplexity", (double)r.scored, (double)(n - 1), "tokens");
    }
    *out = (fh_perplexity_report){.tokens = r.scored, .perplexity = exp(r.sum / (double)r.scored), .missed = r.misses,
                                  .missed_share = (double)r.misses / (double)r.scored, .backoff = p->flash ? r.p.backoff : 0,
                                  .probes = p->flash ? r.probes : 0, .mean_probes = mean_probes(&r), .seconds = fh_now() - start};
out:
    release(&r);
    return rc;
}
