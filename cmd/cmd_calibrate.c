#include <stdlib.h>
#include <string.h>

#include "cmd/text_opts.h"

typedef struct args { fh_common common; fh_text_args text; fh_promise_args promise; bool plan; } args;
static const fh_opt options[] = {
    {"plan", FH_OPT_FLAG, offsetof(args, plan), NULL, "only say what settings cost, in int8 and int4, for the targets and some other containments", 0, 0, NULL},
    FH_PROMISE_OPTS(offsetof(args, promise)), FH_TEXT_OPTS(offsetof(args, text)), FH_DIR_OPT, FH_COMMON_OPTS, FH_OPT_END,
};

fh_status fh_promise_of(fh_calibrate_params *out, const fh_promise_args *a, const char *command, fh_err *err)
{
    bool other = a->target_agreement.set || a->target_mass.set;
    *out = (fh_calibrate_params){.targets = {a->target.set ? a->target.v : other ? 0 : 0.99, a->target_agreement.v, a->target_mass.v}, .confidence = a->confidence.set ? a->confidence.v : 0.95,
                                 .max_cost = a->max_cost.set ? a->max_cost.v : 0.5, .containment_k = a->containment_k.set ? (uint32_t)a->containment_k.v : 1, .hot = -1,
                                 .rerank = a->rerank.set ? (int64_t)a->rerank.v : -1, .by_time = a->cheapest.v == 1, .vllm = a->runtime.v == 1};
    if (out->vllm) {
        if (a->hot.set && strcmp(a->hot.v, "0"))
            return fh_fail(err, FH_EUSAGE, "%s: --hot: that runtime has no hot list: leave it out with --for vllm", command);
        if (a->rerank.set && a->rerank.v)
            return fh_fail(err, FH_EUSAGE, "%s: --rerank: that runtime does not score rows again: leave it out with --for vllm", command);
        out->hot = out->rerank = 0;
        return FH_OK;
    }
    if (!a->hot.set || !strcmp(a->hot.v, "auto")) return FH_OK;
    size_t n = strlen(a->hot.v);
    if (!n || n > 6 || strspn(a->hot.v, "0123456789") != n) return fh_fail(err, FH_EUSAGE, "%s: --hot: '%.60s' is neither auto nor a whole number from 0 to 999999", command, a->hot.v);
    out->hot = atol(a->hot.v);
    return FH_OK;
}

static fh_status run(void *p, const fh_job *job, fh_err *err)
{
    args *a = p;
    fh_stage_env e;
    fh_json *report = NULL;
    fh_stage_calibrate_params how = {.text = fh_text_of(&a->text)};
    fh_status rc = fh_promise_of(&how.how, &a->promise, "calibrate", err);
    if (rc < 0) return rc;
    rc = fh_open_work(&e, &a->common, false, job, err);
    if (rc == FH_OK) rc = a->plan ? fh_stage_plan(&e, &how, &report, err) : fh_stage_calibrate(&e, &how, &report, err);
    rc = fh_finish(report, &a->common, rc, err);
    fh_work_close(e.work);
    return rc;
}

const fh_command fh_cmd_calibrate = {"calibrate", "choose P and the hot list, with a guarantee", "", 0, 0, options, sizeof(args), run,
    "The text is split by documents: part A fits routing and hot list, part B decides P (exact binomial lower bound), part C is only reported.\n"
    "Exit status 3 where the target cannot be promised.  --for vllm: as the vLLM plugin flash-head computes; needs 'route --unit' and\n"
    "'quantize --centroids bf16 --tokens bf16'.",
    "fhtool calibrate -C work --target-containment 0.99 --text wiki.valid.tokens"};
