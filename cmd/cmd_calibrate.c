#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/text_opts.h"

typedef struct args { fh_common common; fh_text_args text; fh_promise_args promise; fh_str caps; fh_pick device; bool plan; } args;
static const fh_opt options[] = {
    {"plan", FH_OPT_FLAG, offsetof(args, plan), NULL, "only say what settings cost, in int8 and int4, for the targets and some other containments", 0, 0, NULL},
    FH_CAPS_OPT(offsetof(args, caps)),
    FH_PROMISE_OPTS(offsetof(args, promise)), FH_TEXT_OPTS(offsetof(args, text)),
    {"device", FH_OPT_PICK, offsetof(args, device), "D", "where states are multiplied (default cpu; the same result); auto: a GPU if there is one", 0, 0,
     "cpu,cuda,auto"},
    FH_DIR_OPT, FH_COMMON_OPTS, FH_OPT_END,
};

fh_status fh_promise_of(fh_calibrate_params *out, const fh_promise_args *a, const char *command, fh_err *err)
{
    bool other = a->target_agreement.set || a->target_mass.set;
    *out = (fh_calibrate_params){.targets = {a->target.set ? a->target.v : other ? 0 : 0.99, a->target_agreement.v, a->target_mass.v}, .confidence = a->confidence.set ? a->confidence.v : 0.95,
                                 .max_cost = a->max_cost.set ? a->max_cost.v : 0.5, .containment_k = a->containment_k.set ? (uint32_t)a->containment_k.v : 1, .hot = -1,
                                 .rerank = a->rerank.set ? (int64_t)a->rerank.v : -1, .adaptive = a->probing.v == 1, .by_time = a->cheapest.v == 1, .vllm = a->runtime.v == 1};
    if (out->vllm) {
        if (a->hot.set && strcmp(a->hot.v, "0"))
            return fh_fail(err, FH_EUSAGE, "%s: --hot: that runtime has no hot list: leave it out with --for vllm", command);
        if (a->rerank.set && a->rerank.v)
            return fh_fail(err, FH_EUSAGE, "%s: --rerank: that runtime does not score rows again: leave it out with --for vllm", command);
        if (out->adaptive)
            return fh_fail(err, FH_EUSAGE, "%s: --probing adaptive: that runtime probes a fixed number of clusters: leave it out with --for vllm", command);
        out->hot = out->rerank = 0;
        return FH_OK;
    }
    if (!a->hot.set || !strcmp(a->hot.v, "auto")) return FH_OK;
    size_t n = strlen(a->hot.v);
    if (!n || n > 6 || strspn(a->hot.v, "0123456789") != n) return fh_fail(err, FH_EUSAGE, "%s: --hot: '%.60s' is neither auto nor a whole number from 0 to 999999", command, a->hot.v);
    out->hot = atol(a->hot.v);
    return FH_OK;
}

fh_status fh_caps_of(uint32_t **out, size_t *n, const char *text, const fh_calibrate_params *how, const char *command, fh_err *err)
{
    char flag[40];
    snprintf(flag, sizeof flag, "%s: --caps", command);
    if (how->vllm) return fh_fail(err, FH_EUSAGE, "%s: does not go with --for vllm: give one --cap", flag);
    fh_status rc = fh_parse_list(out, n, text, flag, 1, 1000000, err);
    if (rc < 0 || *n <= FH_MOST_CAPS) return rc;
    fh_free(*out), *out = NULL;
    return fh_fail(err, FH_EUSAGE, "%s: %zu sizes, the most is %d", flag, *n, FH_MOST_CAPS);
}

static fh_status run(void *p, const fh_job *job, fh_err *err)
{
    args *a = p;
    uint32_t *caps = NULL;
    fh_stage_env e;
    fh_json *report = NULL;
    fh_stage_calibrate_params how = {.text = fh_text_of(&a->text), .device = (fh_device_kind)a->device.v};
    fh_status rc = fh_promise_of(&how.how, &a->promise, "calibrate", err);
    if (rc < 0) return rc;
    fh_stage_plan_params over = {.cluster = {.seed = a->text.seed.v}, .calibrate = how};
    if (a->caps.set && !a->plan) return fh_fail(err, FH_EUSAGE, "calibrate: --caps: goes with --plan; 'fhtool build --caps' takes the cheapest");
    if (a->caps.set && a->text.text.n)
        return fh_fail(err, FH_EUSAGE, "calibrate: --caps: plans on the states that are there ('fhtool hidden' collects them): leave --text out");
    if (a->caps.set && (rc = fh_caps_of(&caps, &over.n_caps, a->caps.v, &how.how, "calibrate", err)) < 0) return rc;
    over.caps = caps;
    rc = fh_open_work(&e, &a->common, false, job, err);
    if (rc == FH_OK && caps) rc = fh_stage_plan_caps(&e, &over, &report, NULL, err);
    else if (rc == FH_OK) rc = a->plan ? fh_stage_plan(&e, &how, &report, err) : fh_stage_calibrate(&e, &how, &report, err);
    rc = fh_finish(report, &a->common, rc, err);
    fh_work_close(e.work);
    fh_free(caps);
    return rc;
}

const fh_command fh_cmd_calibrate = {"calibrate", "choose P and the hot list, with a guarantee", "", 0, 0, options, sizeof(args), run,
    "The text is split by documents: part A fits routing and hot list, part B decides P (exact binomial lower bound), part C is only reported.\n"
    "--probing adaptive: a threshold on scores takes the place of P; steps that are sure read less, others up to --max-cost.\n"
    "--plan --caps 8,16,32: over other sizes of clusters too, each in a work directory of its own below.\n"
    "Exit status 3 where the target cannot be promised.  --for vllm: as the vLLM plugin flash-head computes; needs 'route --unit' and\n"
    "'quantize --centroids bf16 --tokens bf16'.",
    "fhtool calibrate -C work --target-containment 0.99 --text wiki.valid.tokens"};
