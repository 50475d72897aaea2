#include "cmd/device.h"

#include <math.h>
#include <string.h>

typedef struct args { fh_common common; fh_uint probes, runs; fh_str hidden, against; fh_pick device, kv_type; bool brief, no_batches, no_rivals, body, products; } args;
static const fh_opt options[] = {
    {"probes", FH_OPT_UINT, offsetof(args, probes), "P", "clusters probed (default: the artifact's, with its threshold if it has one)", 1, 1e9, NULL},
    {"runs", FH_OPT_UINT, offsetof(args, runs), "N", "timed calls for each figure, fewer where they are long (default 50)", 10, 100000, NULL},
    {"hidden", FH_OPT_STR, offsetof(args, hidden), "STATES", "states to ask with (default: Gaussian ones)", 0, 0, NULL},
    {"brief", FH_OPT_FLAG, offsetof(args, brief), NULL, "cold caches and all threads alone, the body in whole tokens alone", 0, 0, NULL},
    {"no-batches", FH_OPT_FLAG, offsetof(args, no_batches), NULL, "batch 1 alone", 0, 0, NULL},
    {"against-estimate", FH_OPT_STR, offsetof(args, against), "FILE", "what 'estimate --json' said of it beforehand: compare", 0, 0, NULL},
    {"no-rivals", FH_OPT_FLAG, offsetof(args, no_rivals), NULL, "without OpenBLAS and FAISS, which take the head in float32", 0, 0, NULL},
    {"body", FH_OPT_FLAG, offsetof(args, body), NULL, "body and whole tokens alone", 0, 0, NULL},
    FH_KV_OPT(offsetof(args, kv_type)),
    FH_DEVICE_OPT(args),
    {"products", FH_OPT_FLAG, offsetof(args, products), NULL, "with --device: the fastest kernel of each product; kept beside FILE for 'run'", 0, 0, NULL},
    FH_COMMON_OPTS, FH_OPT_END,
};

static void spread(fh_json *j, const fh_timing *t)
{
    fh_json_add_double(j, "microseconds", 1e6 * t->median);
    fh_json_add_double(j, "p10", 1e6 * t->low);
    fh_json_add_double(j, "p90", 1e6 * t->high);
    fh_json_add_u64(j, "samples", t->samples);
}

static void bytes(fh_json *j, const fh_timing *t, double roof)
{
    fh_json_add_double(j, "megabytes", t->bytes / 1e6);
    fh_json_add_double(j, "gigabytes_per_second", t->gigabytes_per_second);
    fh_json_add_double(j, "share_of_roofline", roof > 0 && t->median > 0 ? roof / t->median : NAN);
}

static void peak_row(fh_json *list, const char *what, unsigned threads, const fh_timing *t, bool multiplies)
{
    fh_json *j = fh_json_add_object(list, NULL);
    fh_json_add_string(j, "what", what);
    fh_json_add_u64(j, "threads", threads);
    spread(j, t);
    fh_json_add_double(j, "megabytes", multiplies ? NAN : t->bytes / 1e6);
    fh_json_add_double(j, "gigabytes_per_second", multiplies ? NAN : t->gigabytes_per_second);
    fh_json_add_double(j, "gflops", multiplies ? t->gigabytes_per_second : NAN);
}

static void body_row(fh_json *list, const fh_bench_row *r)
{
    bool prefill = !strcmp(r->what, "prefill");
    double tokens = prefill ? r->batch : 1;
    fh_json *j = fh_json_add_object(list, NULL);
    fh_json_add_string(j, "what", r->what);
    fh_json_add_u64(j, "tokens", (uint64_t)tokens);
    fh_json_add_u64(j, "cached_tokens", prefill ? 0 : r->batch);
    fh_json_add_u64(j, "threads", r->threads);
    spread(j, &r->time);
    fh_json_add_double(j, "tokens_per_second", tokens / r->time.median);
    fh_json_add_double(j, "megabytes", prefill ? NAN : r->time.bytes / 1e6);
    fh_json_add_double(j, "gigabytes_per_second", prefill ? NAN : r->time.gigabytes_per_second);
    fh_json_add_double(j, "gflops", prefill ? r->time.gigabytes_per_second : NAN);
    fh_json_add_double(j, "share_of_roofline", r->roof > 0 && r->time.median > 0 ? r->roof / r->time.median : NAN);
}

/* How many times as long another row takes. */
static double over(const fh_bench_row *baseline, const fh_bench_row *r)
{
    return baseline && r && r->time.median > 0 ? baseline->time.median / r->time.median : NAN;
}

static void head_row(fh_json *list, const fh_bench_row *r, const fh_bench_report *b, const char *dense, const char *all)
{
    fh_json *j = fh_json_add_object(list, NULL);
    fh_json_add_string(j, "what", r->what);
    fh_json_add_u64(j, "threads", r->threads);
    fh_json_add_string(j, "caches", r->warm ? "warm" : "cold");
    spread(j, &r->time);
    if (b->threshold > 0) fh_json_add_double(j, "mean", 1e6 * r->time.mean); /* of steps that differ in what they read */
    bytes(j, &r->time, r->roof);
    fh_json_add_double(j, "speedup_over_dense", dense ? over(fh_bench_find(&b->heads, dense, r->threads, 1, r->warm), r) : NAN);
    fh_json_add_double(j, "speedup_over_all", over(fh_bench_find(&b->heads, all, r->threads, 1, r->warm), r));
}

static void rival_row(fh_json *list, const fh_bench_row *r, const fh_bench_report *b)
{
    fh_json *j = fh_json_add_object(list, NULL);
    fh_json_add_string(j, "what", r->what);
    fh_json_add_u64(j, "threads", r->threads);
    spread(j, &r->time);
    bytes(j, &r->time, r->roof);
    fh_json_add_double(j, "flash_is_faster", over(r, fh_bench_find(&b->heads, "flash", r->threads, 1, false)));
    fh_json_add_double(j, "same_tokens", r->share);
}

static void batch_row(fh_json *list, const fh_bench_row *r)
{
    fh_json *j = fh_json_add_object(list, NULL);
    fh_json_add_u64(j, "batch", r->batch);
    fh_json_add_string(j, "what", r->what);
    spread(j, &r->time);
    fh_json_add_double(j, "microseconds_per_state", 1e6 * r->time.median / r->batch);
    fh_json_add_double(j, "clusters_read", r->share);
}

/* From which batch on a head that reads everything takes less time than FlashHead; null: up to 64 it does not. */
static void wins_from(fh_json *j, const fh_bench_list *batches, const char *what, unsigned threads)
{
    for (uint32_t batch = 1; batch <= 64; batch *= 2) {
        double ratio = over(fh_bench_find(batches, what, threads, batch, false), fh_bench_find(batches, "flash", threads, batch, false));
        if (ratio < 1) { fh_json_add_u64(j, what, batch); return; }
    }
    fh_json_add_null(j, what);
}

static void scaling(fh_json *j, const fh_bench_report *b)
{
    const fh_bench_peak *many = &b->peaks[0], *one = &b->peaks[b->n_peaks - 1];
    fh_json_add_double(j, "memory", one->stream.median / many->stream.median);
    for (size_t i = 0; i < b->heads.n; i++) {
        const fh_bench_row *r = &b->heads.row[i];
        if (r->threads == many->threads && !r->warm) fh_json_add_double(j, r->what, over(fh_bench_find(&b->heads, r->what, 1, 1, false), r));
    }
}

static void token_row(fh_json *list, const char *what, double seconds, double share, double read, double baseline)
{
    fh_json *j = fh_json_add_object(list, NULL);
    fh_json_add_string(j, "what", what);
    fh_json_add_double(j, "milliseconds_per_token", 1e3 * seconds);
    fh_json_add_double(j, "tokens_per_second", 1 / seconds);
    fh_json_add_double(j, "head_share", share);
    fh_json_add_double(j, "megabytes_per_token", read / 1e6);
    fh_json_add_double(j, "speedup_over_dense", baseline > 0 ? baseline / seconds : NAN);
}

/* How the states differ in what they probe: clusters, or with a head the bytes of a step. */
static void add_probed(fh_json *to, const char *key, const fh_bench_report *b, const fh_head *head)
{
    const fh_spread *p = &b->probed;
    const struct { const char *name; double v; } of[] = {{"mean", p->mean}, {"p10", p->p10}, {"median", p->median},
                                                         {"p90", p->p90},   {"p99", p->p99}, {"max", p->max}};
    fh_json *j = fh_json_add_object(to, key);
    for (size_t i = 0; i < sizeof of / sizeof *of; i++)
        fh_json_add_double(j, of[i].name, head ? fh_head_step_bytes(head, of[i].v, fh_head_get_info(head)->n_hot) : of[i].v);
}

static fh_json *report_of(const fh_bench_report *b, const fh_head *head, bool given)
{
    fh_json *report = fh_json_object(), *list;
    const char *dense = NULL, *all = NULL;
    for (size_t i = 0; i < b->heads.n; i++) {
        if (!strncmp(b->heads.row[i].what, "dense", 5)) dense = b->heads.row[i].what;
        if (!strncmp(b->heads.row[i].what, "all", 3)) all = b->heads.row[i].what;
    }
    fh_json_add_string(report, "isa", b->isa);
    fh_json_add_u64(report, "threads", b->threads);
    fh_json_add_u64(report, "probes", b->probes);
    if (b->threshold > 0) {
        fh_json_add_double(report, "threshold", (double)b->threshold);
        add_probed(report, "probed", b, NULL);
        add_probed(report, "step_bytes", b, head);
    }
    fh_json_add_string(report, "states", given ? "given" : "Gaussian");
    fh_json_add_u64(report, "block_bytes", b->block_bytes);
    fh_json_add_u64(report, "swept_bytes", b->memory_bytes);
    fh_json_add_string(report, "blas", fh_gemm_library());
    list = fh_json_add_array(report, "machine");
    for (size_t i = 0; i < b->n_peaks; i++) {
        peak_row(list, "memory", b->peaks[i].threads, &b->peaks[i].stream, false);
        peak_row(list, "blocks", b->peaks[i].threads, &b->peaks[i].blocks, false);
        peak_row(list, "sgemm", b->peaks[i].threads, &b->peaks[i].gemm, true);
    }
    if (b->body.n) {
        list = fh_json_add_array(report, "body");
        for (size_t i = 0; i < b->body.n; i++) body_row(list, &b->body.row[i]);
    }
    if (b->heads.n) list = fh_json_add_array(report, "heads");
    for (size_t i = 0; i < b->heads.n; i++) head_row(list, &b->heads.row[i], b, dense, all);
    if (b->parts.n) list = fh_json_add_array(report, "parts");
    for (size_t i = 0; i < b->parts.n; i++) {
        const fh_bench_row *r = &b->parts.row[i];
        fh_json *j = fh_json_add_object(list, NULL);
        fh_json_add_string(j, "what", r->what);
        fh_json_add_u64(j, "threads", r->threads);
        fh_json_add_string(j, "caches", r->warm ? "warm" : "cold");
        spread(j, &r->time);
        bytes(j, &r->time, r->roof);
    }
    if (b->n_peaks > 1 && b->heads.n) scaling(fh_json_add_object(report, "scaling"), b);
    if (b->rivals.n) {
        list = fh_json_add_array(report, "rivals");
        for (size_t i = 0; i < b->rivals.n; i++) rival_row(list, &b->rivals.row[i], b);
    }
    if (b->batches.n) {
        list = fh_json_add_array(report, "batches");
        for (size_t i = 0; i < b->batches.n; i++) batch_row(list, &b->batches.row[i]);
        list = fh_json_add_object(report, "faster_from_batch");
        if (dense) wins_from(list, &b->batches, dense, b->threads);
        if (all) wins_from(list, &b->batches, all, b->threads);
    }
    if (b->tpot[0] > 0 || b->tpot[1] > 0) {
        const fh_bench_row *flash = fh_bench_find(&b->heads, "flash", b->threads, 1, false);
        const fh_bench_row *exact = dense ? fh_bench_find(&b->heads, dense, b->threads, 1, false) : NULL;
        list = fh_json_add_array(report, "whole_model");
        if (b->tpot[1] > 0) token_row(list, "dense", b->tpot[1], b->share[1], b->body_bytes + (exact ? exact->time.bytes : b->dense_bytes), b->tpot[1]);
        if (b->tpot[0] > 0) token_row(list, "flash", b->tpot[0], b->share[0], b->body_bytes + (flash ? flash->time.bytes : NAN), b->tpot[1]);
    }
    return report;
}

/* ---- beside what was expected ---------------------------------------------------------------------------------------- */

/* An estimate of another head says nothing of this one; P alone may differ. */
static fh_status same_head(const fh_json *e, const fh_head *head, unsigned threads, const char *file, fh_err *err)
{
    const fh_head_info *info = fh_head_get_info(head);
    const struct { const char *key; uint64_t here; } numbers[] = {
        {"vocab", info->vocab}, {"hidden", info->hidden}, {"k", info->clusters}, {"cap", info->cap}, {"rerank", info->rerank}};
    const struct { const char *key, *here; } words[] = {{"centroids", info->centroids}, {"tokens", info->tokens}};
    uint64_t there;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        const char *key = numbers[i].key;
        if (!fh_json_u64(fh_json_get(e, key), &there))
            return fh_fail(err, FH_EFORMAT, "%s: has no \"%s\": is it what 'fhtool estimate --json' printed?", file, key);
        if (there != numbers[i].here)
            return fh_fail(err, FH_EUSAGE, "%s: estimated with %s %llu, the artifact has %llu: estimate it with the artifact's own settings", file, key,
                           (unsigned long long)there, (unsigned long long)numbers[i].here);
    }
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        const char *said = fh_json_string(fh_json_get(e, words[i].key));
        if (!said || strcmp(said, words[i].here))
            return fh_fail(err, FH_EUSAGE, "%s: estimated with %s in %s, the artifact has them in %s: estimate it with the artifact's own settings", file,
                           words[i].key, said ? said : "?", words[i].here);
    }
    if (!fh_json_u64(fh_json_get(fh_json_get(e, "machine"), "threads"), &there))
        return fh_fail(err, FH_EUSAGE, "%s: was made with --no-measure: nothing to compare", file);
    if (there != threads)
        return fh_fail(err, FH_EUSAGE, "%s: estimated for %llu threads, not %u: give the same --threads", file, (unsigned long long)there, threads);
    return FH_OK;
}

static const fh_json *named(const fh_json *list, const char *what)
{
    for (const fh_json *j = list ? fh_json_first(list) : NULL; j; j = fh_json_next(j)) {
        const char *s = fh_json_string(fh_json_get(j, "what"));
        if (s && !strcmp(s, what)) return j;
    }
    return NULL;
}

static void compared(fh_json *list, const char *what, const char *unit, double expected, double measured)
{
    fh_json *j = fh_json_add_object(list, NULL);
    fh_json_add_string(j, "what", what);
    fh_json_add_string(j, "unit", unit);
    fh_json_add_double(j, "estimated", expected);
    fh_json_add_double(j, "measured", measured);
    fh_json_add_double(j, "estimated_over_measured", measured > 0 ? expected / measured : NAN);
}

static fh_status against(fh_json *report, const fh_json *e, const fh_bench_report *b, const char *file, fh_err *err)
{
    const fh_json *expected = fh_json_get(e, "expected"), *curve = fh_json_get(e, "curve");
    const fh_json *dense = named(expected, "dense"), *flash = named(expected, "flash");
    fh_head_time *times = fh_calloc(fh_max(fh_json_count(curve), 1), sizeof *times);
    const fh_bench_row *head[2] = {fh_bench_find(&b->heads, "flash", b->threads, 1, false), NULL};
    size_t n = 0;
    if (!times) return fh_fail(err, FH_ENOMEM, "bench: out of memory");
    for (size_t i = 0; i < b->heads.n; i++)
        if (!strncmp(b->heads.row[i].what, "dense", 5) && b->heads.row[i].threads == b->threads && !b->heads.row[i].warm) head[1] = &b->heads.row[i];
    for (const fh_json *j = curve ? fh_json_first(curve) : NULL; j; j = fh_json_next(j)) {
        uint64_t probes;
        double us = fh_member_double(j, "head_microseconds", NAN);
        if (fh_json_u64(fh_json_get(j, "probes"), &probes) && probes <= UINT32_MAX && isfinite(us)) times[n++] = (fh_head_time){(uint32_t)probes, us};
    }
    if (!n || !dense || !flash || !head[0]) {
        fh_free(times);
        return fh_fail(err, FH_EFORMAT, "%s: has no \"curve\" or \"expected\": is it what 'fhtool estimate --json' printed?", file);
    }
    double here = fh_head_time_at(times, n, head[0]->probes), more = here - fh_member_double(flash, "head_microseconds", NAN); /* where another P was estimated */
    double whole = fh_member_double(flash, "milliseconds_per_token", NAN) + 1e-3 * more;
    fh_json *list = fh_json_add_array(report, "against_estimate");
    /* what the machine itself did differently between the two is not the estimate's */
    compared(list, "memory", "GB/s", fh_member_double(fh_json_get(e, "machine"), "gigabytes_per_second", NAN), b->peaks[0].stream.gigabytes_per_second);
    compared(list, "flash head", "microseconds", here, 1e6 * head[0]->time.median);
    if (head[1]) {
        compared(list, "dense head", "microseconds", fh_member_double(dense, "head_microseconds", NAN), 1e6 * head[1]->time.median);
        compared(list, "head speed-up", "times", fh_member_double(dense, "head_microseconds", NAN) / here, over(head[1], head[0]));
    }
    if (b->tpot[0] > 0) compared(list, "flash model", "milliseconds", whole, 1e3 * b->tpot[0]);
    if (b->tpot[1] > 0) {
        compared(list, "dense model", "milliseconds", fh_member_double(dense, "milliseconds_per_token", NAN), 1e3 * b->tpot[1]);
        compared(list, "model speed-up", "times", fh_member_double(dense, "milliseconds_per_token", NAN) / whole, b->tpot[1] / b->tpot[0]);
    }
    fh_free(times);
    return FH_OK;
}

/* ---- the command ---------------------------------------------------------------------------------------------------- */

static fh_status run(void *p, const fh_job *job, fh_err *err)
{
    args *a = p;
    fh_json *estimate = NULL;
    fh_model m = {0};
    fh_tensors *file = NULL;
    float *owned = NULL;
    fh_json *report = NULL;
    fh_bench_params how = {.probes = (uint32_t)a->probes.v, .runs = (size_t)a->runs.v, .no_batches = a->no_batches, .no_rivals = a->no_rivals, .brief = a->brief, .body_only = a->body, .kv_type = fh_kv_types[a->kv_type.v]};
    fh_bench_report b;
    fh_fhead *f = NULL;
    const char *path = a->common.args[0];
    bool checkpoint = fh_is_checkpoint(path);
    if (checkpoint && (a->probes.set || a->hidden.set)) return fh_fail(err, FH_EUSAGE, "bench: --%s: goes with an artifact, %s is a checkpoint", a->probes.set ? "probes" : "hidden", path);
    if (a->against.set && (checkpoint || a->body)) return fh_fail(err, FH_EUSAGE, "bench: --against-estimate: goes with the heads of an artifact");
    fh_file_uncache(path); /* else times are of the luck that its writer had with large pages (docs/decisions/0023) */
    fh_status rc = checkpoint ? FH_OK : fh_fhead_open(&f, path, err);
    bool bundled = checkpoint || (rc == FH_OK && fh_fhead_find(f, "body.tensors"));
    fh_fhead_close(f);
    if (rc == FH_OK && a->body && !bundled) rc = fh_fail(err, FH_EUSAGE, "bench: --body: %s holds a head only", path);
    if (rc == FH_OK) rc = fh_model_open(&m, path, NULL, FH_MODEL_HEAD | (bundled ? FH_MODEL_BODY : 0), job, err);
    if (rc == FH_OK && a->hidden.set) rc = fh_read_states(&file, &how.states, &owned, &how.n_states, a->hidden.v, fh_head_get_info(m.head)->hidden, err);
    if (rc == FH_OK && a->against.set && (rc = fh_json_read(&estimate, a->against.v, 16 << 20, err)) == FH_OK)
        rc = same_head(estimate, m.head, fh_pool_threads(fh_job_pool(job)), a->against.v, err);
    if (rc == FH_OK && !m.head && a->device.v == FH_DEVICE_CUDA)
        rc = fh_fail(err, FH_EUSAGE, "bench: --device: goes with an artifact, %s is a checkpoint", path);
    if (rc == FH_OK && m.head) rc = fh_model_use(&m, (fh_device_kind)a->device.v, job, err);
    if (rc == FH_OK && a->products && !fh_device_has_body(m.device))
        rc = fh_fail(err, FH_EUSAGE, "bench: --products: goes with a bundle on a GPU (--device cuda)");
    bool there = rc == FH_OK && fh_device_has_head(m.device);
    if (there && estimate) rc = fh_fail(err, FH_EUSAGE, "bench: --against-estimate: says what the CPU does: leave --device out");
    else if (there) rc = fh_bench_on_device(&report, &m, &how, a->products, job, err);
    else if (rc == FH_OK && (rc = fh_bench(&m, &how, job, &b, err)) == FH_OK) report = report_of(&b, m.head, how.states != NULL);
    if (rc == FH_OK && estimate) rc = against(report, estimate, &b, a->against.v, err);
    rc = fh_finish(report, &a->common, rc, err);
    fh_json_free(estimate);
    fh_free(owned);
    fh_tensors_close(file);
    fh_model_close(&m);
    return rc;
}

const fh_command fh_cmd_bench = {"bench", "time heads and body on this machine", "FILE-or-MODEL", 1, 1, options, sizeof(args), run,
    "A greedy token at batch 1 and at 2 to 64.  dense: the exact rows; all: every encoded row; flash: P clusters.\n"
    "decode: a token on top of a cache of so many; prefill: a prompt.  A checkpoint (a directory or a .gguf) has a body and its dense head alone.\n"
    "memory, blocks: what the machine reads in order, and in blocks as long as a cluster; share_of_roofline is of that.\n"
    "--device cuda: the head on a GPU instead, by the GPU's clock, its L2 cache overwritten before every run, beside dense heads there; and whole tokens.\n"
    "cold: a stretch larger than the last cache is read before every call; warm: nothing is.  An artifact is read from the disk afresh,\n"
    "whatever pages the system happened to keep it in.",
    "fhtool bench model.fhead --hidden states.safetensors"};
