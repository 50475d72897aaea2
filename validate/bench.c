/* bench: what a head costs in time, beside the dense head, the machine's own memory speed, and the whole model. */
#include "validate/validate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- the machine ---------------------------------------------------------------------------------------------- */

enum { LINE = 64, TASKS = 64 };
typedef struct stream { const uint64_t *data; size_t words; uint64_t sums[TASKS]; } stream;

static void stream_task(void *ctx, size_t task, unsigned worker)
{
    stream *s = ctx;
    size_t n = s->words / TASKS;
    const uint64_t *p = s->data + task * n;
    uint64_t a = 0, b = 0, c = 0, d = 0;
    for (size_t i = 0; i + 32 <= n; i += 32) /* wide enough for the compiler's vectors and the prefetchers */
        for (size_t j = 0; j < 32; j += 4) a += p[i + j], b += p[i + j + 1], c += p[i + j + 2], d += p[i + j + 3];
    s->sums[task] = a + b + c + d;
    (void)worker;
}

/* Reading `buffer` evicts what the caches held: every timed call begins with its rows in memory, not in a cache. */
static uint64_t sweep(fh_pool *pool, const uint64_t *buffer, size_t words)
{
    stream s = {.data = buffer, .words = words};
    uint64_t sum = 0;
    fh_pool_run(pool, TASKS, stream_task, &s);
    for (int i = 0; i < TASKS; i++) sum += s.sums[i];
    return sum;
}

static int by_value(const void *a, const void *b) { const double *x = a, *y = b; return (*x > *y) - (*x < *y); }

static fh_timing timing_of(double *seconds, size_t n, double bytes)
{
    qsort(seconds, n, sizeof *seconds, by_value);
    fh_timing t = {.median = seconds[n / 2], .low = seconds[n / 10], .high = seconds[n - 1 - n / 10], .samples = n, .bytes = bytes};
    t.gigabytes_per_second = t.median > 0 ? bytes / t.median / 1e9 : 0;
    return t;
}

/* ---- the heads ------------------------------------------------------------------------------------------------ */

/* States to ask with: those given, else Gaussian ones of the width that rows have norm 1 against. */
static void random_states(float *out, size_t n, size_t d)
{
    fh_rng r;
    fh_rng_seed(&r, 1, 0x62);
    for (size_t i = 0; i < n * d; i += 2) {
        double u = 1 - fh_rng_double(&r), v = fh_rng_double(&r), m = sqrt(-2 * log(u));
        out[i] = (float)(m * cos(6.283185307179586 * v));
        if (i + 1 < n * d) out[i + 1] = (float)(m * sin(6.283185307179586 * v));
    }
}

fh_status fh_bench(const fh_model *m, const fh_bench_params *p, const fh_job *job, fh_bench_report *out, fh_err *err)
{
    enum { STATES = 64 };
    fh_status rc = FH_OK;
    fh_pool *pool = fh_job_pool(job);
    const fh_head_info *info = fh_head_get_info(m->head);
    size_t d = info->hidden, runs = p->runs ? p->runs : 50, n_states = p->n_states ? p->n_states : STATES, words = ((size_t)256 << 20) / 8;
    fh_scratch *scratch = NULL;
    fh_query q = {.probes = p->probes ? p->probes : info->probes};
    uint64_t *buffer = fh_malloc(words * sizeof *buffer), kept = 0;
    double *seconds = fh_malloc(runs * sizeof *seconds);
    float *own = p->states ? NULL : fh_malloc(n_states * d * sizeof *own), logit;
    const float *states = p->states ? p->states : own;
    uint32_t id;
    *out = (fh_bench_report){.threads = fh_pool_threads(pool), .probes = q.probes, .isa = info->isa};
    if (!buffer || !seconds || !states) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    if (own) random_states(own, n_states, d);
    for (size_t i = 0; i < words; i++) buffer[i] = i; /* touched, so that reading it is reading memory */
    if ((rc = fh_scratch_new(&scratch, m->head, out->threads, err)) < 0) goto out;

    for (size_t i = 0; i < 9; i++) {
        double t = fh_now();
        kept += sweep(pool, buffer, words);
        seconds[i < runs ? i : 0] = fh_now() - t;
    }
    out->memory = timing_of(seconds, fh_min(9, runs), (double)(words * sizeof *buffer));

    for (size_t i = 0; i < runs + 1; i++) { /* the first warms up */
        if (fh_job_stopped(job)) { rc = fh_fail(err, FH_EINTERRUPTED, "interrupted"); goto out; }
        kept += sweep(pool, buffer, words);
        double t = fh_now();
        if ((rc = fh_head_greedy(m->head, scratch, states + i % n_states * d, 1, &q, &id, err)) < 0) goto out;
        if (i) seconds[i - 1] = fh_now() - t;
        fh_job_progress(job, "FlashHead", (double)i, (double)runs, "runs");
    }
    out->flash = timing_of(seconds, runs, fh_head_step_bytes(m->head, q.probes, info->n_hot));

    q.probes = info->clusters;
    for (size_t i = 0; i < runs + 1; i++) {
        kept += sweep(pool, buffer, words);
        double t = fh_now();
        if ((rc = fh_head_greedy(m->head, scratch, states + i % n_states * d, 1, &q, &id, err)) < 0) goto out;
        if (i) seconds[i - 1] = fh_now() - t;
    }
    out->all_probes = timing_of(seconds, runs, fh_head_step_bytes(m->head, q.probes, info->n_hot));

    if (info->exact)
        for (size_t i = 0; i < runs + 1; i++) {
            if (fh_job_stopped(job)) { rc = fh_fail(err, FH_EINTERRUPTED, "interrupted"); goto out; }
            kept += sweep(pool, buffer, words);
            double t = fh_now();
            if ((rc = fh_head_dense_topk(m->head, scratch, states + i % n_states * d, 1, 1, &id, &logit, err)) < 0) goto out;
            if (i) seconds[i - 1] = fh_now() - t;
            fh_job_progress(job, "the dense head", (double)i, (double)runs, "runs");
        }
    if (info->exact) out->dense = timing_of(seconds, runs, fh_head_dense_bytes(m->head));

    if (m->body) { /* whole tokens, caches as they are when a model runs alone */
        uint32_t prompt[8] = {0};
        for (uint32_t i = 0; i < 8; i++) prompt[i] = i % m->config->vocab;
        fh_generate_params g = {.tokens = 129, .ignore_eos = true, .query = {.probes = out->probes}};
        if (m->config->max_position && m->config->max_position < 140) g.tokens = m->config->max_position - 9;
        for (int head = 0; head < 2; head++) {
            fh_generate_stats s;
            double best = INFINITY;
            if (head == FH_HEAD_DENSE && !info->exact) break;
            g.head = (fh_head_kind)head;
            for (int i = 0; i < 5; i++) {
                if ((rc = fh_generate(m, prompt, 8, &g, job, &s, err)) < 0) goto out;
                if (s.tpot_seconds < best) best = s.tpot_seconds, out->tpot[head] = s.tpot_seconds, out->share[head] = s.head_share;
            }
        }
        out->body_bytes = (double)fh_body_bytes(m->body);
    }
    out->checksum = kept;
out:
    fh_scratch_free(scratch);
    fh_free(buffer);
    fh_free(seconds);
    fh_free(own);
    return rc;
}
