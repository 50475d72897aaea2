/* bench_device.c: the same heads on a GPU, by its own clock: FlashHead as one kernel and as several, beside dense heads that read everything.
 *
 * Each run follows an overwriting of the GPU's L2 cache and is one launch of a graph; nothing goes to the host within. */
#include "validate/bench.h"

#include <math.h>

typedef struct asked { const char *what; fh_device_work work; bool batches; } asked;
static const asked list[] = {{"flash", FH_DEVICE_FLASH, true}, {"flash apart", FH_DEVICE_APART, true}, {"dense", FH_DEVICE_DENSE, true},
                             {"fused dense bf16", FH_DEVICE_FUSED, false}, {"cuBLAS dense bf16", FH_DEVICE_CUBLAS, true}, {"copy", FH_DEVICE_COPY, false}};

static double share_of_same(const uint32_t *a, const uint32_t *b, size_t n)
{
    size_t same = 0;
    for (size_t i = 0; i < n; i++) same += a[i] == b[i];
    return (double)same / (double)n;
}

/* What the CPU says to the same states: FlashHead's tokens, and the dense head's where there is one; and how many clusters a state probes. */
static fh_status expected(const fh_head *head, const fh_bench_params *p, size_t n, const fh_job *job, uint32_t *flash, uint32_t *dense, double *probed,
                          fh_err *err)
{
    fh_scratch *scratch = NULL;
    float *logits = fh_malloc(n * sizeof *logits);
    fh_query q = {.probes = p->probes};
    fh_status rc = logits ? fh_scratch_on(&scratch, head, fh_job_pool(job), err) : fh_fail(err, FH_ENOMEM, "bench: out of memory");
    if (rc == FH_OK) rc = fh_head_greedy(head, scratch, p->states, n, &q, flash, err);
    if (rc == FH_OK && fh_head_get_info(head)->exact) rc = fh_head_dense_topk(head, scratch, p->states, n, 1, dense, logits, err);
    fh_probed all = scratch ? fh_scratch_probed(scratch) : (fh_probed){0};
    *probed = all.states ? (double)all.clusters / (double)all.states : fh_head_get_info(head)->clusters; /* where P is K nothing is routed */
    fh_scratch_free(scratch);
    fh_free(logits);
    return rc;
}

fh_status fh_bench_device(const fh_device *d, const fh_head *head, const fh_bench_params *p, const fh_job *job, fh_bench_list *out, fh_err *err)
{
    enum { MOST = 64 };
    size_t runs = p->runs ? p->runs : 50, most = fh_min(MOST, p->n_states);
    uint32_t flash[MOST], dense[MOST], ids[MOST];
    double *seconds = fh_malloc(runs * sizeof *seconds), probed = 0;
    const fh_bench_env env = {.job = job, .threads = 1};
    *out = (fh_bench_list){.n = 0};
    if (!most) { fh_free(seconds); return fh_fail(err, FH_EUSAGE, "bench: no states to ask with"); }
    fh_status rc = seconds ? expected(head, p, most, job, flash, dense, &probed, err) : fh_fail(err, FH_ENOMEM, "bench: out of memory");
    double bytes = fh_head_step_bytes(head, probed, fh_head_get_info(head)->n_hot);
    for (size_t i = 0; rc == FH_OK && i < sizeof list / sizeof *list; i++)
        for (uint32_t batch = 1; rc == FH_OK && batch <= (list[i].batches && !p->no_batches ? most : 1); batch *= batch < 8 ? 2 : 8) {
            fh_err why = {FH_OK, ""};
            bool is_flash = list[i].work == FH_DEVICE_FLASH || list[i].work == FH_DEVICE_APART, is_copy = list[i].work == FH_DEVICE_COPY;
            if (fh_job_stopped(job)) { rc = fh_fail(err, FH_EINTERRUPTED, "interrupted"); break; }
            fh_status got = fh_device_time(d, list[i].work, p->states, batch, p->probes, runs, seconds, ids, &why);
            if (got == FH_ENOTFOUND) { fh_job_say(job, FH_INFO, "%s: left out: %s", list[i].what, why.text); break; }
            if (got < 0) { rc = fh_fail(err, got, "%s", why.text); break; }
            double read = is_flash ? bytes : is_copy ? 2 * fh_head_dense_bytes(head) : fh_head_dense_bytes(head);
            fh_timing t = fh_bench_timing(seconds, runs, read);
            fh_bench_row *row = fh_bench_add(out, list[i].what, &env, batch, false, &t, 0);
            row->share = is_copy ? NAN : share_of_same(ids, is_flash ? flash : dense, batch);
        }
    fh_free(seconds);
    return rc;
}
