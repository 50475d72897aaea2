#include <stdio.h>
#include <unistd.h>

#include "cmd/cmd.h"

typedef struct args { fh_common common; fh_uint k, cap, seed, rounds, restarts; fh_num budget; fh_str init; fh_pick start, metric, device; } args;
static const fh_opt options[] = {
    {"k", FH_OPT_UINT, offsetof(args, k), "K", "clusters (default V/16)", 2, 1e9, NULL},
    {"cap", FH_OPT_UINT, offsetof(args, cap), "N", "tokens per cluster, instead of --k", 1, 1e9, NULL},
    {"seed", FH_OPT_UINT, offsetof(args, seed), "N", "of the start", 0, 9e15, NULL},
    {"start", FH_OPT_PICK, offsetof(args, start), "S", "where refinement begins", 0, 0, "coarse,faiss,random"},
    {"metric", FH_OPT_PICK, offsetof(args, metric), "M", "what makes rows alike (default: output where there are states, else euclidean)", 0, 0, "output,euclidean,cosine"},
    {"rounds", FH_OPT_UINT, offsetof(args, rounds), "N", "of refinement at most (default 6; 0: the start as it is)", 0, 1000, NULL},
    {"init", FH_OPT_STR, offsetof(args, init), "OLD", "begin from the clusters of an artifact or of a clusters.safetensors, in place of --start", 0, 0, NULL},
    {"restarts", FH_OPT_UINT, offsetof(args, restarts), "N", "starts tried, with seeds from --seed on; the best is kept (default 1)", 1, 1000, NULL},
    {"budget", FH_OPT_NUM, offsetof(args, budget), "SECONDS", "begin no further round or start after this time; what was done is recorded and can be replayed", 0, 1e9, NULL},
    {"device", FH_OPT_PICK, offsetof(args, device), "D", "where near clusters are looked for (default cpu; the same result); auto: a GPU if there is one", 0, 0,
     "cpu,cuda,auto"},
    FH_DIR_OPT, FH_COMMON_OPTS, FH_OPT_END,
};

static void on_round(void *ctx, const fh_round *r)
{
    const fh_job *job = ctx;
    fh_job_say(job, FH_INFO, "round %u: objective %.4f, %llu swaps, %.1f s, %.3g tokens/s, peak %.0f MiB", r->round, r->objective, (unsigned long long)r->swaps, r->seconds,
               r->tokens_per_second, (double)fh_peak_bytes() / (1 << 20));
}

static fh_status run(void *p, const fh_job *job, fh_err *err)
{
    args *a = p;
    fh_stage_env e;
    fh_json *report = NULL;
    if (a->k.set && a->cap.set) return fh_fail(err, FH_EUSAGE, "cluster: --k and --cap: give one of them");
    if (a->init.set && (a->restarts.set || a->start.set)) return fh_fail(err, FH_EUSAGE, "cluster: --init takes the place of --start and --restarts: give one of them");
    fh_stage_cluster_params how = {.k = (uint32_t)a->k.v, .cap = (uint32_t)a->cap.v, .seed = a->seed.v, .start = (fh_cluster_start)a->start.v,
                                   .metric = a->metric.set ? (fh_alike)(a->metric.v + 1) : FH_ALIKE_AUTO, .rounds = a->rounds.set && !a->rounds.v ? FH_ROUNDS_NONE : (unsigned)a->rounds.v, .restarts = (unsigned)a->restarts.v, .budget = a->budget.v, .init = a->init.v, .device = (fh_device_kind)a->device.v, .on_round = on_round, .ctx = (void *)(uintptr_t)job};
    fh_status rc = fh_open_work(&e, &a->common, false, job, err);
    if (rc == FH_OK) rc = fh_stage_cluster(&e, &how, &report, err);
    rc = fh_finish(report, &a->common, rc, err);
    fh_work_close(e.work);
    return rc;
}

const fh_command fh_cmd_cluster = {"cluster", "cut the rows into clusters of equal size", "", 0, 0, options, sizeof(args), run,
    "k-means (FAISS) gives the start, exact pairwise swaps refine it.  output: by the logits that rows give over the\nwork directory's states (part A of them).  Ctrl-C keeps the best so far (exit status 130).", "fhtool cluster -C work --k 8192"};
