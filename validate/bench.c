/* bench: what a head costs in time, beside the dense head, the machine's own speed, and others at the same work.
 *
 * Cold: before every call a stretch of memory larger than the last-level cache is read, so that the call finds its rows in memory, as after a
 * model's body; calls take turns through the states.  Warm: the same state again and again, nothing in between, the best that
 * caches can do. */
#include "validate/bench.h"
#include "validate/judge.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { STATES = 64, LEAST_RUNS = 5, MOST_BATCH = 64, BLOCKS = 1024, BLOCK_BYTES = 64 << 10 };
#define MOST_SECONDS 3.0 /* that one figure may take, once it has its least runs */

/* ---- timing --------------------------------------------------------------------------------------------------- */

static int by_value(const void *a, const void *b) { const double *x = a, *y = b; return (*x > *y) - (*x < *y); }

fh_timing fh_bench_timing(double *seconds, size_t n, double bytes)
{
    qsort(seconds, n, sizeof *seconds, by_value);
    fh_timing t = {.median = seconds[n / 2], .low = seconds[n / 10], .high = seconds[n - 1 - n / 10], .samples = n, .bytes = bytes};
    for (size_t i = 0; i < n; i++) t.mean += seconds[i] / (double)n;
    t.gigabytes_per_second = t.median > 0 ? bytes / t.median / 1e9 : 0;
    return t;
}

fh_status fh_bench_time(fh_timing *out, fh_bench_env *e, const char *what, bool warm, double bytes, fh_bench_call *call, void *ctx, fh_err *err)
{
    double began = fh_now();
    size_t n = 0;
    for (size_t run = 0; run <= e->runs; run++) { /* the first warms up: pages are there, threads run */
        fh_status rc;
        if (fh_job_stopped(e->job)) return fh_fail(err, FH_EINTERRUPTED, "interrupted");
        if (!warm) fh_bench_sweep(e);
        double t = fh_now();
        if ((rc = call(ctx, run, err)) < 0) return rc;
        if (run) e->seconds[n++] = fh_now() - t;
        fh_job_progress(e->job, what, (double)run, (double)e->runs, "runs");
        if (n >= LEAST_RUNS && fh_now() - began > MOST_SECONDS) break;
    }
    fh_job_progress(e->job, what, (double)e->runs, (double)e->runs, "runs");
    *out = fh_bench_timing(e->seconds, n, bytes);
    return FH_OK;
}

fh_bench_row *fh_bench_add(fh_bench_list *list, const char *what, const fh_bench_env *e, uint32_t batch, bool warm, const fh_timing *t, double roof)
{
    fh_bench_row *r = &list->row[list->n < FH_BENCH_ROWS ? list->n++ : FH_BENCH_ROWS - 1];
    *r = (fh_bench_row){.what = what, .threads = e->threads, .batch = batch, .warm = warm, .time = *t, .roof = roof, .share = NAN};
    for (int i = 0; i < FH_STEPS; i++) r->steps[i] = NAN;
    return r;
}

const fh_bench_row *fh_bench_find(const fh_bench_list *list, const char *what, unsigned threads, uint32_t batch, bool warm)
{
    for (size_t i = 0; i < list->n; i++) {
        const fh_bench_row *r = &list->row[i];
        if (!strcmp(r->what, what) && r->threads == threads && r->batch == batch && r->warm == warm) return r;
    }
    return NULL;
}

/* ---- the heads ------------------------------------------------------------------------------------------------ */

void fh_bench_states(float *out, size_t n)
{
    fh_rng r;
    fh_rng_seed(&r, 1, 0x62);
    for (size_t i = 0; i < n; i += 2) {
        double u = 1 - fh_rng_double(&r), v = fh_rng_double(&r), m = sqrt(-2 * log(u));
        out[i] = (float)(m * cos(6.283185307179586 * v));
        if (i + 1 < n) out[i + 1] = (float)(m * sin(6.283185307179586 * v));
    }
}

typedef enum which { DENSE, ALL, FLASH, KINDS } which;

typedef struct asking {
    const fh_head *head;
    fh_scratch *scratch;
    const float *states; size_t n_states; /* a whole number of batches */
    size_t apart;                         /* batches from one call to the next, so that calls see all of the states, not the first */
    uint32_t probes, batch;               /* probes of flash; 0: the head's own, with its threshold */
    which kind;
    bool warm;                            /* one batch only */
    uint32_t ids[MOST_BATCH];
    float logits[MOST_BATCH];
    double watch[FH_STEPS], *steps[FH_STEPS]; size_t n_steps;
} asking;

static fh_status ask(void *ctx, size_t run, fh_err *err)
{
    asking *a = ctx;
    const fh_head_info *info = fh_head_get_info(a->head);
    const float *x = a->states + (a->warm ? 0 : run * a->apart * a->batch % a->n_states) * info->hidden;
    fh_query q = {.probes = a->kind == FLASH ? a->probes : info->clusters};
    if (a->kind == DENSE) return fh_head_dense_topk(a->head, a->scratch, x, a->batch, 1, a->ids, a->logits, err);
    memset(a->watch, 0, sizeof a->watch);
    fh_status rc = fh_head_greedy(a->head, a->scratch, x, a->batch, &q, a->ids, err);
    if (a->steps[0] && run) {
        for (int s = 0; s < FH_STEPS; s++) a->steps[s][a->n_steps] = a->watch[s];
        a->n_steps++;
    }
    return rc;
}

/* Bytes that the steps read: centroids in order, rows of clusters here and there, rows that are scored again. */
static void step_bytes(double bytes[FH_STEPS], const fh_head *head, double probes)
{
    const fh_head_parts *p = fh_head_get_parts(head);
    bytes[FH_STEP_ROUTE] = (double)p->clusters * ((double)p->centroids.stride + (p->centroid_scales ? sizeof(float) : 0));
    bytes[FH_STEP_SELECT] = 0;
    bytes[FH_STEP_RERANK] = (double)p->rerank * (double)p->exact.stride;
    bytes[FH_STEP_SCORE] = fh_head_step_bytes(head, probes, p->n_hot) - bytes[FH_STEP_ROUTE] - bytes[FH_STEP_RERANK];
}

typedef struct bench {
    const fh_head *head;         /* NULL: a checkpoint */
    const fh_head_info *info;
    size_t width;
    const fh_bench_params *p;
    fh_bench_report *out;
    const float *states; size_t n_states;
    uint32_t asked;              /* of flash; 0: the head's threshold, on states that are given */
    fh_bench_env env[2]; size_t n_envs;
    const char *names[KINDS]; /* NULL: there is no such head */
    double *steps[FH_STEPS];
} bench;

static const char *dense_name(const char *dtype, bool exact)
{
    static const char *const names[][3] = {{"f32", "dense f32", "all f32"}, {"bf16", "dense bf16", "all bf16"}, {"f16", "dense f16", "all f16"},
                                            {"int8", "dense int8", "all int8"},
                                            {"int4", "dense int4", "all int4"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) if (!strcmp(names[i][0], dtype)) return names[i][exact ? 1 : 2];
    return exact ? "dense" : "all";
}

static fh_status time_head(bench *b, size_t env, fh_bench_list *list, which kind, uint32_t probes, uint32_t batch, bool warm, fh_err *err)
{
    static const char *const step_names[FH_STEPS] = {"route", "select", "score", "rerank"};
    fh_bench_env *e = &b->env[env];
    const fh_bench_peak *peak = &b->out->peaks[env];
    asking a = {.head = b->head, .states = b->states, .n_states = b->n_states / batch * batch,
                .apart = fh_max(b->n_states / batch / (e->runs + 1), 1), .probes = probes, .batch = batch, .kind = kind,
                .warm = warm};
    double stream = 1e9 * peak->stream.gigabytes_per_second, blocks = 1e9 * peak->blocks.gigabytes_per_second, bytes[FH_STEPS], all;
    bool watched = kind == FLASH && list != &b->out->batches, parts = list == &b->out->heads;
    fh_timing t;
    fh_status rc = fh_scratch_on(&a.scratch, b->head, e->pool, err);
    if (rc < 0) return rc;
    if (watched) {
        memcpy(a.steps, b->steps, sizeof a.steps);
        fh_scratch_watch(a.scratch, a.watch);
    }
    double probed = probes ? probes : b->out->probed.mean;
    step_bytes(bytes, b->head, probed);
    double read = kind == DENSE ? fh_head_dense_bytes(b->head) : fh_head_step_bytes(b->head, kind == ALL ? b->info->clusters : probed, b->info->n_hot);
    if (kind == ALL) read -= bytes[FH_STEP_ROUTE]; /* nothing is routed where everything is scored */
    if ((rc = fh_bench_time(&t, e, b->names[kind], warm, read, ask, &a, err)) < 0) goto out;
    all = kind == FLASH ? bytes[FH_STEP_ROUTE] / stream + (bytes[FH_STEP_SCORE] + bytes[FH_STEP_RERANK]) / blocks : read / stream;
    fh_bench_row *row = fh_bench_add(list, b->names[kind], e, batch, warm, &t, all);
    row->probes = kind == FLASH ? (uint32_t)lround(probed) : 0;
    for (int s = 0; watched && s < FH_STEPS; s++) {
        t = fh_bench_timing(a.steps[s], a.n_steps, bytes[s]);
        row->steps[s] = t.median;
        if (!parts || (s == FH_STEP_RERANK && !b->info->rerank)) continue;
        fh_bench_add(&b->out->parts, step_names[s], e, 1, warm, &t, bytes[s] / (s == FH_STEP_ROUTE ? stream : blocks));
    }
out:
    fh_scratch_free(a.scratch);
    return rc;
}

/* How many clusters each of the states probes. */
static fh_status count_probes(bench *b, fh_err *err)
{
    uint32_t *clusters = fh_malloc(b->out->probes * sizeof *clusters);
    double *probed = fh_malloc(b->n_states * sizeof *probed);
    fh_scratch *scratch = NULL;
    fh_status rc = clusters && probed ? fh_scratch_on(&scratch, b->head, b->env[0].pool, err) : fh_fail(err, FH_ENOMEM, "bench: out of memory");
    for (size_t i = 0; rc == FH_OK && i < b->n_states; i++) {
        rc = fh_head_route(b->head, scratch, b->states + i * b->info->hidden, 1, b->asked, clusters, NULL, err);
        if (rc == FH_OK) probed[i] = fh_head_routed(clusters, b->out->probes);
    }
    if (rc == FH_OK) b->out->probed = fh_spread_of(probed, b->n_states);
    fh_scratch_free(scratch);
    fh_free(clusters);
    fh_free(probed);
    return rc;
}

/* The share of all clusters that a batch reads, on average. */
static fh_status clusters_read(double *share, bench *b, uint32_t batch, fh_err *err)
{
    size_t k = b->info->clusters, probes = fh_min(b->out->probes, k), union_size = 0, batches = b->n_states / batch;
    uint32_t *clusters = fh_malloc(batch * probes * sizeof *clusters);
    uint8_t *seen = fh_malloc(k);
    fh_scratch *scratch = NULL;
    fh_status rc = clusters && seen ? fh_scratch_on(&scratch, b->head, b->env[0].pool, err) : fh_fail(err, FH_ENOMEM, "bench: out of memory");
    for (size_t i = 0; rc == FH_OK && i < batches; i++) {
        rc = fh_head_route(b->head, scratch, b->states + i * batch * b->info->hidden, batch, b->asked, clusters, NULL, err);
        memset(seen, 0, k);
        for (size_t j = 0; rc == FH_OK && j < batch * probes; j++)
            if (clusters[j] != UINT32_MAX) union_size += !seen[clusters[j]], seen[clusters[j]] = 1;
    }
    *share = (double)union_size / (double)(batches * k);
    fh_scratch_free(scratch);
    fh_free(clusters);
    fh_free(seen);
    return rc;
}

static fh_status time_batches(bench *b, fh_err *err)
{
    for (uint32_t batch = 1; batch <= MOST_BATCH && batch <= b->n_states; batch *= 2) {
        double share;
        fh_status rc = clusters_read(&share, b, batch, err);
        for (int kind = 0; kind < KINDS && rc == FH_OK; kind++) {
            if (!b->names[kind]) continue;
            rc = time_head(b, 0, &b->out->batches, (which)kind, b->asked, batch, false, err);
            if (rc == FH_OK) b->out->batches.row[b->out->batches.n - 1].share = kind == FLASH ? share : 1;
        }
        if (rc < 0) return rc;
    }
    return FH_OK;
}

/* ---- whole tokens --------------------------------------------------------------------------------------------- */

void fh_json_add_tokens(fh_json *to, const fh_token_timing *t)
{
    fh_json_add_double(to, "ttft_seconds", t->ttft);
    fh_json_add_double(to, "tpot_seconds", t->tpot);
    fh_json_add_double(to, "head_share", t->head_share);
}

fh_status fh_bench_tokens(fh_token_timing *out, const fh_model *m, fh_head_kind head, fh_dtype kv_type, uint32_t probes, uint32_t prompt, uint32_t tokens,
                          unsigned passes, const fh_job *job, fh_err *err)
{
    fh_generate_params g = {.tokens = tokens, .ignore_eos = true, .kv_type = kv_type, .query = {.probes = probes}, .head = head};
    fh_status rc = FH_OK;
    uint32_t longest = m->config->max_position ? m->config->max_position : UINT32_MAX, *ids = fh_malloc(fh_max(prompt, 1) * sizeof *ids);
    if (!ids) return fh_fail(err, FH_ENOMEM, "bench: out of memory");
    if (prompt >= longest) prompt = longest / 2 + 1;
    if (g.tokens >= longest - prompt) g.tokens = fh_max(longest - prompt, 2) - 1;
    for (uint32_t i = 0; i < prompt; i++) ids[i] = i % m->config->vocab;
    *out = (fh_token_timing){INFINITY, INFINITY, NAN};
    double began = fh_now();
    for (unsigned i = 0; rc == FH_OK && i < passes && (i < 2 || fh_now() - began < MOST_SECONDS); i++) {
        fh_generate_stats s;
        if ((rc = fh_generate(m, ids, prompt, &g, job, &s, err)) < 0) break;
        out->ttft = fmin(out->ttft, s.ttft_seconds);
        if (s.tpot_seconds < out->tpot) out->tpot = s.tpot_seconds, out->head_share = s.head_share;
    }
    fh_free(ids);
    return rc;
}

/* Caches as they are when a model runs alone.  A few tokens first say how many make a few seconds. */
static fh_status time_model(fh_bench_report *out, const fh_model *m, const fh_bench_params *p, const fh_job *job, fh_err *err)
{
    enum { PROMPT = 8, FEW = 17, MANY = 129, PASSES = 5 };
    for (int head = 0; head < 2; head++) {
        fh_token_timing t;
        if (m->head ? head == FH_HEAD_DENSE && !fh_head_get_info(m->head)->exact : head == FH_HEAD_FLASH) continue;
        fh_status rc = fh_bench_tokens(&t, m, (fh_head_kind)head, p->kv_type, p->probes, PROMPT, FEW, 2, job, err); /* the first may wait for the disk */
        uint32_t tokens = rc < 0 ? FEW : (uint32_t)fmin(MANY, fmax(FEW, MOST_SECONDS / t.tpot));
        if (rc == FH_OK) rc = fh_bench_tokens(&t, m, (fh_head_kind)head, p->kv_type, p->probes, PROMPT, tokens, PASSES, job, err);
        if (rc < 0) return rc;
        out->tpot[head] = t.tpot, out->share[head] = t.head_share;
    }
    out->body_bytes = (double)fh_body_bytes(m->body);
    out->dense_bytes = (double)m->dense.rows.rows * (double)m->dense.rows.stride;
    return FH_OK;
}

/* ---- all of it ------------------------------------------------------------------------------------------------ */

static size_t sweep_bytes(const fh_bench_params *p)
{
    size_t cache = fh_min(fh_last_cache(), (size_t)1 << 28), most = (size_t)1 << 30, least = (size_t)256 << 20;
    if (p->memory_bytes) return fh_max(fh_round_up(p->memory_bytes, 1 << 16), 1 << 20);
    return fh_min(fh_max(fh_round_up(4 * cache, 1 << 16), least), most);
}

static fh_status measure(bench *b, const fh_model *m, fh_err *err)
{
    fh_status rc;
    fh_bench_report *out = b->out;
    for (size_t i = 0; i < b->n_envs; i++)
        if ((rc = fh_bench_peaks(&out->peaks[out->n_peaks++], &b->env[i], out->block_bytes, b->head ? b->info->clusters : BLOCKS, b->width, err)) < 0) return rc;
    if (m->body && !b->p->brief && (rc = fh_bench_body(&out->body, b->env, b->n_envs, out->peaks, m, b->p->kv_type, err)) < 0) return rc;
    if (b->head && !b->asked && (rc = count_probes(b, err)) < 0) return rc;
    if (!b->head || b->p->body_only) return m->body ? time_model(out, m, b->p, b->env[0].job, err) : FH_OK;
    for (size_t i = 0; i < b->n_envs; i++)
        for (int kind = 0; kind < KINDS; kind++)
            for (int warm = 0; warm < (i || b->p->brief ? 1 : 2); warm++)
                if (b->names[kind] && (rc = time_head(b, i, &out->heads, (which)kind, b->asked, 1, warm, err)) < 0) return rc;
    for (size_t i = 0; i < fh_min(b->p->n_curve, FH_BENCH_ROWS); i++)
        if ((rc = time_head(b, 0, &out->curve, FLASH, (uint32_t)fh_min(b->p->curve[i], b->info->clusters), 1, false, err)) < 0) return rc;
    if (!b->p->no_rivals &&
        (rc = fh_bench_rivals(&out->rivals, b->env, b->n_envs, out->peaks, b->head, b->asked ? b->asked : (uint32_t)lround(out->probed.mean), b->states, b->n_states, err)) < 0) return rc;
    if (!b->p->no_batches && (rc = time_batches(b, err)) < 0) return rc;
    return m->body && !b->p->no_tokens ? time_model(out, m, b->p, b->env[0].job, err) : FH_OK;
}

fh_status fh_bench(const fh_model *m, const fh_bench_params *p, const fh_job *job, fh_bench_report *out, fh_err *err)
{
    fh_status rc = FH_OK;
    const fh_head_info none = {.isa = fh_isa_name()}, *info = m->head ? fh_head_get_info(m->head) : &none;
    const fh_head_parts *parts = m->head ? fh_head_get_parts(m->head) : NULL;
    size_t width = m->head ? info->hidden : m->config->hidden, runs = p->runs ? p->runs : 50, words, n_states = p->states ? p->n_states : STATES, head_bytes;
    unsigned threads = fh_pool_threads(fh_job_pool(job));
    fh_pool *pool = threads > 1 ? fh_job_pool(job) : NULL;
    *out = (fh_bench_report){.threads = threads, .isa = info->isa, .memory_bytes = sweep_bytes(p), .block_bytes = parts ? parts->cap * parts->tokens.stride : BLOCK_BYTES};
    out->probes = p->probes ? p->probes : info->probes;
    out->probes = out->probes < info->clusters ? out->probes : info->clusters;
    bool adaptive = m->head && !p->probes && info->threshold > 0;
    if (adaptive && !p->states) { /* what noise would probe says nothing */
        out->probes = fh_probes_calibrated(m->head);
        fh_job_say(job, FH_INFO, "no states are given: timed at P = %u, the mean that calibration saw of the threshold", out->probes);
        adaptive = false;
    }
    out->threshold = adaptive ? info->threshold : 0;
    words = out->memory_bytes / sizeof(uint64_t);
    uint64_t *memory = fh_aligned(2 * out->memory_bytes);
    double *seconds = fh_malloc((1 + FH_STEPS) * (runs + 1) * sizeof *seconds);
    float *own = p->states ? NULL : fh_malloc(n_states * width * sizeof *own);
    bench b = {.head = m->head, .info = info, .width = width, .p = p, .out = out, .states = p->states ? p->states : own, .n_states = n_states, .asked = adaptive ? 0 : out->probes, .n_envs = threads > 1 && !p->brief ? 2 : 1};
    if (!memory || !seconds || !b.states) { rc = fh_fail(err, FH_ENOMEM, "bench: out of memory"); goto out; }
    if (!n_states) { rc = fh_fail(err, FH_EUSAGE, "bench: no states to ask with"); goto out; }
    if (own) fh_bench_states(own, n_states * width);
    for (size_t i = 0; i < 2 * words; i++) memory[i] = i; /* touched, so that reading it is reading memory */
    for (int s = 0; s < FH_STEPS; s++) b.steps[s] = seconds + (size_t)(s + 1) * (runs + 1);
    b.env[0] = (fh_bench_env){.job = job, .pool = pool, .threads = threads, .memory = memory, .words = words, .runs = runs, .seconds = seconds};
    b.env[1] = b.env[0], b.env[1].pool = NULL, b.env[1].threads = 1;
    b.names[DENSE] = info->exact ? dense_name(info->exact, true) : NULL;
    b.names[ALL] = parts ? dense_name(info->tokens, false) : NULL;
    b.names[FLASH] = "flash";
    head_bytes = (size_t)info->clusters * info->cap * info->hidden * sizeof(float);
    fh_job_say(job, FH_INFO, "needs about %.0f MiB beyond the head", (double)(2 * out->memory_bytes + (p->no_rivals ? 0 : head_bytes)) / (1 << 20));
    rc = measure(&b, m, err);
    out->checksum = b.env[0].kept + b.env[1].kept;
out:
    fh_free(memory);
    fh_free(seconds);
    fh_free(own);
    return rc;
}
