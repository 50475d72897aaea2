/* query: the head alone, on recorded states. */
#include <math.h>
#include <stdlib.h>

#include "cmd/cmd.h"

typedef struct args { fh_common common; fh_str hidden, curve; fh_uint probes, top_k; fh_pick device, runtime; bool dense, no_hot; } args;
static const fh_opt options[] = {
    {"hidden", FH_OPT_STR, offsetof(args, hidden), "STATES", "safetensors with hidden [N, D] or [B, T, D] float32", 0, 0, NULL},
    {"probes", FH_OPT_UINT, offsetof(args, probes), "P", "clusters probed (default: the artifact's, with its threshold if it has one)", 1, 1e9, NULL},
    {"top-k", FH_OPT_UINT, offsetof(args, top_k), "N", "tokens a state (default 1)", 1, 100000, NULL},
    {"dense", FH_OPT_FLAG, offsetof(args, dense), NULL, "the dense head, from the exact rows", 0, 0, NULL},
    {"no-hot", FH_OPT_FLAG, offsetof(args, no_hot), NULL, "leave out the hot list", 0, 0, NULL},
    {"curve", FH_OPT_STR, offsetof(args, curve), "P,P,...", "containment, agreement, mass and KL at these P instead", 0, 0, NULL},
    FH_DEVICE_OPT(args),
    {"for", FH_OPT_PICK, offsetof(args, runtime), "R", "vllm: the greedy token as the vLLM plugin computes it (bf16, no hot list, no reranking)", 0, 0,
     "fhtool,vllm"},
    FH_COMMON_OPTS, FH_OPT_END,
};

static int rising(const void *a, const void *b) { const uint32_t *x = a, *y = b; return (*x > *y) - (*x < *y); }

static fh_status curve(const args *a, const fh_model *m, const float *states, size_t n, const fh_job *job, fh_json **report, fh_err *err)
{
    uint32_t *list = NULL;
    size_t count;
    fh_point *points = NULL;
    fh_status rc = fh_parse_list(&list, &count, a->curve.v, "query: --curve", 1, fh_head_get_info(m->head)->clusters, err);
    if (rc < 0) return rc;
    if (!(points = fh_calloc(count, sizeof *points))) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    qsort(list, count, sizeof *list, rising);
    for (size_t i = 0; i < count; i++) points[i].probes = list[i];
    if ((rc = fh_curve(m->head, &m->dense, states, NULL, n, a->no_hot, points, count, job, err)) < 0) goto out;
    fh_json *r = fh_json_object(), *rows;
    fh_json_add_u64(r, "positions", n);
    rows = fh_json_add_array(r, "curve");
    for (size_t i = 0; i < count; i++) {
        fh_json *j = fh_add_point(rows, &points[i]);
        fh_json_add_double(j, "step_bytes", fh_head_step_bytes(m->head, points[i].probes, a->no_hot ? 0 : fh_head_get_info(m->head)->n_hot));
    }
    *report = r;
out:
    fh_free(list);
    fh_free(points);
    return rc;
}

/* The head as that runtime has it; borrows from `head`. */
static fh_status as_vllm(fh_head **out, const fh_head *head, fh_err *err)
{
    fh_head_parts p = *fh_head_get_parts(head);
    if (p.centroids.dtype != FH_BF16 || p.tokens.dtype != FH_BF16)
        return fh_fail(err, FH_EUSAGE, "query: --for vllm: that runtime works in bf16, the artifact holds %s and %s: make it with 'fhtool build --for vllm'",
                       fh_dtype_name(p.centroids.dtype), fh_dtype_name(p.tokens.dtype));
    p.through_bf16 = true, p.hot = NULL, p.n_hot = p.rerank = 0, p.dead = NULL, p.n_dead = 0; /* it knows no dead rows either */
    return fh_head_from_parts(out, &p, "query: --for vllm", err);
}

static fh_status answers(const args *a, fh_head *head, const float *states, size_t n, const fh_job *job, fh_json **report, fh_err *err)
{
    const fh_head_info *info = fh_head_get_info(head);
    enum { BLOCK = 64 };
    size_t k = a->top_k.set ? (size_t)a->top_k.v : 1, d = info->hidden;
    fh_query q = {.probes = (uint32_t)a->probes.v, .no_hot = a->no_hot};
    fh_scratch *scratch = NULL;
    fh_device *device = NULL;
    fh_head *plain = NULL;
    fh_job quiet = {.pool = fh_job_pool(job), .stop = job->stop};
    uint32_t *ids = fh_malloc(BLOCK * k * sizeof *ids);
    float *logits = fh_malloc(BLOCK * k * sizeof *logits);
    fh_json *r = fh_json_object(), *all_ids, *all_logits;
    fh_status rc = ids && logits ? fh_scratch_new(&scratch, head, fh_pool_threads(fh_job_pool(job)), err) : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc < 0 || (a->runtime.v && (rc = as_vllm(&plain, head, err)) < 0)) goto out;
    if ((rc = fh_device_open(&device, (fh_device_kind)a->device.v, head, NULL, job, err)) < 0) goto out;
    fh_scratch_use(scratch, device);
    fh_json_add_u64(r, "positions", n);
    fh_json_add_string(r, "device", fh_device_name(device));
    fh_json_add_u64(r, "probes", a->dense ? info->clusters : q.probes ? fh_min(q.probes, info->clusters) : info->probes);
    bool adaptive = !a->dense && !plain && !q.probes && info->threshold > 0;
    if (!adaptive) fh_json_add_double(r, "step_bytes", a->dense ? fh_head_dense_bytes(head) : fh_head_step_bytes(head, q.probes, q.no_hot ? 0 : info->n_hot));
    all_ids = fh_json_add_array(r, "ids"), all_logits = fh_json_add_array(r, "logits");
    for (size_t at = 0; at < n; at += BLOCK) {
        size_t m = fh_min(BLOCK, n - at);
        if (fh_job_stopped(job)) { rc = fh_fail(err, FH_EINTERRUPTED, "interrupted"); goto out; }
        rc = plain ? fh_plain_greedy(plain, states + at * d, m, q.probes, ids, logits, &quiet, err)
             : a->dense ? fh_head_dense_topk(head, scratch, states + at * d, m, k, ids, logits, err) : fh_head_topk(head, scratch, states + at * d, m, &q, k, ids, logits, err);
        if (rc < 0) goto out;
        for (size_t i = 0; i < m; i++) {
            fh_json *x = fh_json_add_array(all_ids, NULL), *y = fh_json_add_array(all_logits, NULL);
            for (size_t j = 0; j < k && ids[i * k + j] != UINT32_MAX; j++) {
                fh_json_add_u64(x, NULL, ids[i * k + j]);
                fh_json_add_double(y, NULL, (double)logits[i * k + j]);
            }
        }
        fh_job_progress(job, "scoring", (double)(at + m), (double)n, "states");
    }
    if (adaptive) {
        fh_probed probed = fh_scratch_probed(scratch);
        double mean = probed.states ? (double)probed.clusters / (double)probed.states : 0;
        fh_json_add_double(r, "threshold", (double)info->threshold);
        fh_json_add_double(r, "mean_probes", mean);
        fh_json_add_double(r, "step_bytes", fh_head_step_bytes(head, mean, q.no_hot ? 0 : info->n_hot));
    }
    *report = r, r = NULL;
out:
    fh_json_free(r);
    fh_scratch_free(scratch);
    fh_device_close(device);
    fh_head_close(plain);
    fh_free(ids);
    fh_free(logits);
    return rc;
}

/* For people: a line a state. */
static fh_status print_lines(const fh_json *report, fh_err *err)
{
    fh_buf b = {0};
    size_t i = 0;
    const fh_json *l = fh_json_first(fh_json_get(report, "logits"));
    for (const fh_json *row = fh_json_first(fh_json_get(report, "ids")); row && l; row = fh_json_next(row), l = fh_json_next(l)) {
        fh_buf_printf(&b, "%zu", i++);
        const fh_json *y = fh_json_first(l);
        for (const fh_json *x = fh_json_first(row); x && y; x = fh_json_next(x), y = fh_json_next(y)) {
            uint64_t id = 0;
            double z = 0;
            fh_json_u64(x, &id), fh_json_double(y, &z);
            fh_buf_printf(&b, "  %llu %.4f", (unsigned long long)id, z);
        }
        fh_buf_puts(&b, "\n");
    }
    fh_status rc = b.failed ? fh_fail(err, FH_ENOMEM, "out of memory") : fh_print(b.data ? b.data : "", b.len, err);
    fh_buf_free(&b);
    return rc;
}

static fh_status run(void *p, const fh_job *job, fh_err *err)
{
    args *a = p;
    fh_model m = {0};
    fh_head *head = NULL;
    fh_tensors *file = NULL;
    const float *states = NULL;
    float *owned = NULL;
    size_t n = 0;
    fh_json *report = NULL;
    if (!a->hidden.set) return fh_fail(err, FH_EUSAGE, "query: --hidden is missing: which states?");
    if (a->curve.set && (a->dense || a->probes.set || a->top_k.set)) return fh_fail(err, FH_EUSAGE, "query: --curve stands without --dense, --probes and --top-k");
    if (a->curve.set && a->device.v != FH_DEVICE_CPU) return fh_fail(err, FH_EUSAGE, "query: --curve is measured on the CPU: leave out --device");
    if (a->dense && (a->probes.set || a->no_hot)) return fh_fail(err, FH_EUSAGE, "query: --dense scores every token: --probes and --no-hot do not apply");
    if (a->runtime.v && (a->curve.set || a->dense || a->no_hot || a->top_k.set))
        return fh_fail(err, FH_EUSAGE, "query: --for vllm: that runtime gives one token: --curve, --dense, --no-hot and --top-k do not apply");
    fh_status rc = a->curve.set ? fh_model_open(&m, a->common.args[0], NULL, FH_MODEL_HEAD, job, err) : fh_head_open(&head, a->common.args[0], err);
    if (rc == FH_OK && a->curve.set && !m.head) rc = fh_fail(err, FH_EUSAGE, "%s: is no .fhead artifact", a->common.args[0]);
    if (rc == FH_OK) rc = fh_read_states(&file, &states, &owned, &n, a->hidden.v, fh_head_get_info(head ? head : m.head)->hidden, err);
    if (rc == FH_OK) rc = a->curve.set ? curve(a, &m, states, n, job, &report, err) : answers(a, head, states, n, job, &report, err);
    if (rc == FH_OK && !a->common.json && !a->curve.set) {
        rc = print_lines(report, err);
        fh_json_free(report);
    } else {
        rc = fh_finish(report, &a->common, rc, err);
    }
    fh_free(owned);
    fh_tensors_close(file);
    fh_head_close(head);
    fh_model_close(&m);
    return rc;
}

const fh_command fh_cmd_query = {"query", "the head alone, on recorded states", "FILE", 1, 1, options, sizeof(args), run, NULL,
    "fhtool query model.fhead --hidden states.safetensors --curve 16,64,256"};
