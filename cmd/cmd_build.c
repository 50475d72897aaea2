#include "cmd/text_opts.h"

typedef struct args {
    fh_common common;
    fh_str output, caps;
    fh_uint k, cap, rounds, moves;
    fh_pick start, metric, routing, centroids, tokens_encoding;
    fh_text_args text;
    fh_promise_args promise;
    bool unit, head_only, exact, no_clobber;
} args;
static const fh_opt options[] = {
    {"-o", FH_OPT_STR, offsetof(args, output), "FILE", "the artifact to write", 0, 0, NULL},
    {"k", FH_OPT_UINT, offsetof(args, k), "K", "clusters (default V/16)", 2, 1e9, NULL},
    {"cap", FH_OPT_UINT, offsetof(args, cap), "N", "tokens per cluster, instead of --k", 1, 1e9, NULL},
    FH_CAPS_OPT(offsetof(args, caps)),
    {"start", FH_OPT_PICK, offsetof(args, start), "S", "where clustering begins", 0, 0, "coarse,faiss,random"},
    {"metric", FH_OPT_PICK, offsetof(args, metric), "M", "what makes rows alike (default output: the logits they give)", 0, 0, "output,euclidean,cosine"},
    {"rounds", FH_OPT_UINT, offsetof(args, rounds), "N", "of refinement at most (default 6; 0: the start as it is)", 0, 1000, NULL},
    {"routing", FH_OPT_PICK, offsetof(args, routing), "R", "how centroids are made (default: what calibration finds best)", 0, 0, "mean,weighted,raw,learned"},
    FH_MOVES_OPT(offsetof(args, moves)),
    {"unit", FH_OPT_FLAG, offsetof(args, unit), NULL, "hold centroids at unit length, for runtimes that route by cosine", 0, 0, NULL},
    {"centroids", FH_OPT_PICK, offsetof(args, centroids), "E", "encoding of centroids (default int8; auto: int8 or int4, what calibration finds cheapest)", 0, 0, "int8,int4,bf16,f16,f32,auto"},
    {"rows", FH_OPT_PICK, offsetof(args, tokens_encoding), "E", "encoding of token rows (quantize --tokens; default int8; auto as for centroids)", 0, 0, "int8,int4,bf16,f16,f32,auto"},
    FH_PROMISE_OPTS(offsetof(args, promise)), FH_TEXT_OPTS(offsetof(args, text)),
    {"head-only", FH_OPT_FLAG, offsetof(args, head_only), NULL, "leave out body and tokenizer", 0, 0, NULL},
    {"exact", FH_OPT_FLAG, offsetof(args, exact), NULL, "with --head-only: keep the rows in the checkpoint's dtype too", 0, 0, NULL},
    {"no-clobber", FH_OPT_FLAG, offsetof(args, no_clobber), NULL, "refuse to replace a file that exists", 0, 0, NULL},
    FH_DIR_OPT, FH_COMMON_OPTS, FH_OPT_END,
};
static const char *const routings[] = {"mean", "weighted", "raw", "learned"};
static const fh_dtype encodings[] = {FH_I8, FH_I4, FH_BF16, FH_F16, FH_F32, FH_I8};
enum { AUTO = 5 };

static fh_status run(void *p, const fh_job *job, fh_err *err)
{
    args *a = p;
    fh_stage_env e;
    fh_json *report = NULL;
    if (!a->output.set) return fh_fail(err, FH_EUSAGE, "build: -o is missing: where shall the artifact go?");
    uint32_t *caps = NULL;
    if (a->k.set + a->cap.set + a->caps.set > 1) return fh_fail(err, FH_EUSAGE, "build: --k, --cap and --caps: give one of them");
    if (a->no_clobber && fh_file_exists(a->output.v)) return fh_fail(err, FH_EIO, "%s: exists, and --no-clobber was given: choose another name", a->output.v);
    fh_build_params how = {.model = a->common.args[0], .output = a->output.v, .no_clobber = a->no_clobber, .head_only = a->head_only, .exact = a->exact,
                           .text = fh_text_of(&a->text), .route = {.routing = a->routing.set ? routings[a->routing.v] : NULL, .unit = a->unit, .moves = (unsigned)a->moves.v},
                           .centroids = encodings[a->centroids.v], .tokens = encodings[a->tokens_encoding.v],
                           .rerank = a->promise.rerank.set ? (int64_t)a->promise.rerank.v : -1};
    how.cluster = (fh_stage_cluster_params){.k = (uint32_t)a->k.v, .cap = (uint32_t)a->cap.v, .seed = a->text.seed.v, .start = (fh_cluster_start)a->start.v,
                                            .metric = a->metric.set ? (fh_alike)(a->metric.v + 1) : FH_ALIKE_AUTO, .rounds = a->rounds.set && !a->rounds.v ? FH_ROUNDS_NONE : (unsigned)a->rounds.v};
    bool autos = a->centroids.v == AUTO, also = a->tokens_encoding.v == AUTO;
    const fh_encodings among = {.centroids = {how.centroids, FH_I4}, .n_centroids = 1u + autos, .tokens = {how.tokens, FH_I4}, .n_tokens = 1u + also};
    if (autos || also) how.encodings = &among;
    fh_status rc = fh_promise_of(&how.how, &a->promise, "build", err);
    if (rc < 0) return rc;
    if (a->head_only && !a->exact && !a->promise.rerank.set) how.how.rerank = 0; /* nothing to score them from */
    if (how.how.vllm) {
        if ((a->centroids.set && encodings[a->centroids.v] != FH_BF16) || (a->tokens_encoding.set && encodings[a->tokens_encoding.v] != FH_BF16))
            return fh_fail(err, FH_EUSAGE, "build: --centroids and --rows: that runtime works in bf16: leave them out with --for vllm");
        how.centroids = how.tokens = FH_BF16, how.route.unit = true, how.rerank = 0;
    }
    if (a->caps.set && (rc = fh_caps_of(&caps, &how.n_caps, a->caps.v, &how.how, "build", err)) < 0) return rc;
    how.caps = caps;
    rc = fh_open_work(&e, &a->common, true, job, err);
    if (rc == FH_OK) rc = fh_stage_build(&e, &how, &report, err);
    rc = fh_finish_hiding(report, &a->common, "sections", rc, err);
    fh_work_close(e.work);
    fh_free(caps);
    return rc;
}

const fh_command fh_cmd_build = {"build", "all stages: checkpoint in, calibrated artifact out", "MODEL", 1, 1, options, sizeof(args), run,
    "--caps 8,16,32: each is clustered, and the one that meets the targets at the lowest cost on part A is calibrated and packed.\n"
    "A stage whose inputs and parameters have not changed is not run again; after an interruption the same command goes on.\n"
    "--for vllm: an artifact that 'export --format vllm' takes: equal clusters, centroids at unit length, bf16, no hot list,\n"
    "calibrated as that runtime computes.",
    "fhtool build ~/models/SmolLM2-135M -o model.fhead --target-containment 0.99"};
