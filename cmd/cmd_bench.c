#include "cmd/cmd.h"
#include "validate/validate.h"

typedef struct args { fh_common common; fh_uint probes, runs; fh_str hidden; } args;
static const fh_opt options[] = {
    {"probes", FH_OPT_UINT, offsetof(args, probes), "P", "clusters probed (default: the artifact's)", 1, 1e9, NULL},
    {"runs", FH_OPT_UINT, offsetof(args, runs), "N", "timed calls of each head (default 50)", 10, 100000, NULL},
    {"hidden", FH_OPT_STR, offsetof(args, hidden), "STATES", "states to ask with (default: Gaussian ones)", 0, 0, NULL},
    FH_COMMON_OPTS, FH_OPT_END,
};

static void row(fh_json *list, const char *what, const fh_timing *t, const fh_timing *memory, double baseline)
{
    fh_json *j = fh_json_add_object(list, NULL);
    fh_json_add_string(j, "what", what);
    fh_json_add_double(j, "microseconds", 1e6 * t->median);
    fh_json_add_double(j, "p10", 1e6 * t->low);
    fh_json_add_double(j, "p90", 1e6 * t->high);
    fh_json_add_u64(j, "samples", t->samples);
    fh_json_add_double(j, "megabytes", t->bytes / 1e6);
    fh_json_add_double(j, "gigabytes_per_second", t->gigabytes_per_second);
    fh_json_add_double(j, "share_of_memory_speed", t->gigabytes_per_second / memory->gigabytes_per_second);
    fh_json_add_double(j, "speedup_over_dense", baseline > 0 ? baseline / t->median : 0);
}

static void token_row(fh_json *list, const char *what, double seconds, double share, double bytes, double baseline)
{
    fh_json *j = fh_json_add_object(list, NULL);
    fh_json_add_string(j, "what", what);
    fh_json_add_double(j, "milliseconds_per_token", 1e3 * seconds);
    fh_json_add_double(j, "tokens_per_second", 1 / seconds);
    fh_json_add_double(j, "head_share", share);
    fh_json_add_double(j, "megabytes_per_token", bytes / 1e6);
    fh_json_add_double(j, "speedup_over_dense", baseline > 0 ? baseline / seconds : 0);
}

static fh_status run(void *p, const fh_job *job, fh_err *err)
{
    args *a = p;
    fh_model m = {0};
    fh_tensors *file = NULL;
    float *owned = NULL;
    fh_json *report = NULL;
    fh_bench_params how = {.probes = (uint32_t)a->probes.v, .runs = (size_t)a->runs.v};
    fh_bench_report b;
    fh_fhead *f = NULL;
    fh_status rc = fh_fhead_open(&f, a->common.args[0], err);
    bool bundled = rc == FH_OK && fh_fhead_find(f, "body.tensors");
    fh_fhead_close(f);
    if (rc == FH_OK) rc = fh_model_open(&m, a->common.args[0], NULL, FH_MODEL_HEAD | (bundled ? FH_MODEL_BODY : 0), job, err);
    if (rc == FH_OK && a->hidden.set) rc = fh_read_states(&file, &how.states, &owned, &how.n_states, a->hidden.v, fh_head_get_info(m.head)->hidden, err);
    if (rc == FH_OK) rc = fh_bench(&m, &how, job, &b, err);
    if (rc == FH_OK) {
        double dense = b.dense.median;
        fh_json *heads, *tokens;
        report = fh_json_object();
        fh_json_add_string(report, "isa", b.isa);
        fh_json_add_u64(report, "threads", b.threads);
        fh_json_add_u64(report, "probes", b.probes);
        heads = fh_json_add_array(report, "heads");
        row(heads, "memory", &b.memory, &b.memory, 0);
        if (b.dense.samples) row(heads, "dense", &b.dense, &b.memory, dense);
        row(heads, "all probes", &b.all_probes, &b.memory, dense);
        row(heads, "flash", &b.flash, &b.memory, dense);
        if (b.tpot[0] > 0) {
            tokens = fh_json_add_array(report, "whole_model");
            if (b.tpot[1] > 0) token_row(tokens, "dense", b.tpot[1], b.share[1], b.body_bytes + b.dense.bytes, b.tpot[1]);
            token_row(tokens, "flash", b.tpot[0], b.share[0], b.body_bytes + b.flash.bytes, b.tpot[1]);
        }
    }
    rc = fh_finish(report, &a->common, rc, err);
    fh_free(owned);
    fh_tensors_close(file);
    fh_model_close(&m);
    return rc;
}

const fh_command fh_cmd_bench = {"bench", "time the heads of an artifact on this machine", "FILE", 1, 1, options, sizeof(args), run,
    "One greedy token at batch 1; the caches are swept before every call.  memory: reading 256 MiB, the roofline.  dense: the exact rows.  all probes: P = K.", "fhtool bench model.fhead"};
