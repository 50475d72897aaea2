/* artifacts/stages.h: the stages of a build, each from the work directory into the work directory (DESIGN 4).
 *
 * Every stage writes one result with the record of what made it, adds a line to log.jsonl, and hands back its report: an
 * object with the fields of DESIGN 9, owned by the caller.  A stage that another needs is run with its defaults where it is missing,
 * and run again with its recorded parameters where its inputs changed.
 */
#ifndef FH_STAGES_H
#define FH_STAGES_H

#include "calib/calib.h"
#include "cluster/cluster.h"
#include "quant/quant.h"

typedef struct fh_stage_env {
    fh_work *work; const fh_job *job;
    fh_device_kind device;     /* that runs the model's body while states are collected; zero: the CPU */
} fh_stage_env;

/* convert: head.safetensors and model.json from a checkpoint directory. */
fh_status fh_stage_convert(fh_stage_env *e, const char *model_dir, fh_json **report, fh_err *err);

typedef struct fh_text_params {
    const char *const *texts; size_t n_texts; /* files; none, or the one word "self": text the model says itself */
    size_t tokens;                            /* 0: 100,000 */
    uint32_t window;                          /* 0: 512, or the model's limit */
    uint64_t seed;
} fh_text_params;
/* hidden: states.safetensors. */
fh_status fh_stage_hidden(fh_stage_env *e, const fh_text_params *p, fh_json **report, fh_err *err);

/* What makes two rows alike: the logits they give over the work directory's states; the rows as they are; their directions.  AUTO: output where there are states. */
typedef enum fh_alike { FH_ALIKE_AUTO, FH_ALIKE_OUTPUT, FH_ALIKE_EUCLIDEAN, FH_ALIKE_COSINE } fh_alike;
typedef struct fh_stage_cluster_params { uint32_t k, cap; uint64_t seed; fh_cluster_start start; fh_alike metric; unsigned rounds; /* 0: defaults; k and cap 0: V/16 */
    unsigned restarts; double budget;   /* as in fh_cluster_params */
    fh_device_kind device;              /* that looks for near clusters: the same clusters */
    const char *init;                   /* an artifact or clusters.safetensors to begin from, or NULL; k and cap 0: its K */
    void (*on_round)(void *ctx, const fh_round *r); void *ctx; } fh_stage_cluster_params;
/* cluster: clusters.safetensors.  FH_EUSAGE: K, or the K of init, does not fit.  Interrupted: the best so far is written and FH_EINTERRUPTED returned with the report. */
fh_status fh_stage_cluster(fh_stage_env *e, const fh_stage_cluster_params *p, fh_json **report, fh_err *err);

typedef struct fh_stage_route_params {
    const char *routing; /* "mean", "raw", "weighted" and "learned" (both need states), or NULL: learned where there are states, else raw */
    bool unit;           /* hold rows at unit length, for runtimes that route by cosine */
    unsigned moves;      /* times that tokens go where learned centroids expect them; nothing to the others */
} fh_stage_route_params;
/* route: routing.safetensors; where tokens moved it has an assignment of its own, which goes before that of clusters.safetensors. */
fh_status fh_stage_route(fh_stage_env *e, const fh_stage_route_params *p, fh_json **report, fh_err *err);
/* quantize: quantized.safetensors. */
fh_status fh_stage_quantize(fh_stage_env *e, fh_dtype centroids, fh_dtype tokens, fh_json **report, fh_err *err);

/* Encodings to choose among, the ones that are preferred first. */
typedef struct fh_encodings { fh_dtype centroids[FH_I4 + 1], tokens[FH_I4 + 1]; size_t n_centroids, n_tokens; } fh_encodings;
typedef struct fh_stage_calibrate_params {
    fh_text_params text;
    fh_calibrate_params how;
    const fh_encodings *encodings; /* NULL: those of quantized.safetensors */
    fh_device_kind device;         /* that multiplies states with rows: the same promise */
} fh_stage_calibrate_params;
/* A point of a curve as an object of `curve`; it belongs to the list. */
fh_json *fh_add_point(fh_json *list, const fh_point *p);
/* calibrate: calibration.json; may choose the routing and, where it is let, the encodings, then routing.safetensors and quantized.safetensors are made
 * anew.  FH_ECHECK where a target cannot be reached; *report then holds the best found. */
fh_status fh_stage_calibrate(fh_stage_env *e, const fh_stage_calibrate_params *p, fh_json **report, fh_err *err);

/* What settings cost at some containments and for the targets, as part A has it, by encodings: bytes and, measured on this machine, time.  Changes nothing
 * in the work directory. */
fh_status fh_stage_plan(fh_stage_env *e, const fh_stage_calibrate_params *p, fh_json **report, fh_err *err);

typedef struct fh_stage_plan_params {
    const uint32_t *caps; size_t n_caps;  /* tokens per cluster */
    fh_stage_cluster_params cluster;      /* of each; k and cap are not looked at */
    fh_stage_route_params route;
    fh_stage_calibrate_params calibrate;
} fh_stage_plan_params;
/* The same over several sizes of clusters, each in a work directory of its own below this one ("k1024"), as sweep has them: what is current there is not made
 * again, plans of part A neither.  The states are those that are there, else made from calibrate.text.  *report has the cheapest of each containment.  *k (may be
 * NULL): how many clusters the cheapest setting that meets the targets has; 0: none meets them. */
fh_status fh_stage_plan_caps(fh_stage_env *e, const fh_stage_plan_params *p, fh_json **report, uint32_t *k, fh_err *err);

typedef struct fh_stage_rehearse_params {
    fh_text_params text, against; /* against: another text, or none (n_texts 0) */
    fh_rehearse_params how;
} fh_stage_rehearse_params;
/* rehearse: calibrations on draws of documents, each held against the rest of the text or another.  Keeps the states of the texts beside the stages' results, and
 * changes nothing of these. */
fh_status fh_stage_rehearse(fh_stage_env *e, const fh_stage_rehearse_params *p, fh_json **report, fh_err *err);

typedef struct fh_stage_pack_params { const char *output; bool no_clobber, head_only, exact; uint32_t probes; /* 0: calibrated, else K/16 */
    float threshold; /* that goes with `probes`; 0: none */
    int64_t rerank; /* -1: calibrated, else 16, 32 for int4; where the exact rows are not stored beside encoded ones none */ } fh_stage_pack_params;
/* What is read is not written over: FH_EIO when `output` is there and is the file `input`, or lies in the directory `input` under whatever
 * name that does not end in .fhead. */
fh_status fh_keep_input(const char *output, const char *input, fh_err *err);
fh_status fh_stage_pack(fh_stage_env *e, const fh_stage_pack_params *p, fh_json **report, fh_err *err);

typedef struct fh_build_params {
    const char *model, *output;
    bool no_clobber, head_only, exact;
    fh_text_params text;
    fh_stage_cluster_params cluster;
    fh_stage_route_params route;
    fh_dtype centroids, tokens;
    const fh_encodings *encodings; /* to choose among; NULL: `centroids` and `tokens` */
    fh_calibrate_params how;
    int64_t rerank; /* of pack; `how` has what calibration measures with */
    const uint32_t *caps; size_t n_caps; /* sizes of clusters to choose among (fh_stage_plan_caps), instead of cluster.k and cap; n_caps 0: none */
} fh_build_params;
/* All of them; a stage whose inputs and parameters have not changed is not run again. */
fh_status fh_stage_build(fh_stage_env *e, const fh_build_params *p, fh_json **report, fh_err *err);

typedef struct fh_stage_sweep_params {
    const char *model;
    const uint32_t *k, *probes; size_t n_k, n_probes;           /* those P that pass a K are left out there */
    const fh_dtype *centroids, *tokens; size_t n_encodings;     /* pairs */
    fh_text_params text;
    fh_stage_route_params route;
    uint64_t seed;            /* of clustering */
    size_t positions, runs;   /* that quality is measured on at most (0: 20,000); timed calls (0: 50) */
    uint32_t prompt, tokens_spoken; /* of whole tokens; 0: 64 and 64 */
    bool again;               /* time everything again */
    const char *output;       /* names of results begin with it: .json, .csv, .html; NULL: "sweep" in the work directory */
} fh_stage_sweep_params;
/* sweep: every combination of K, P and encodings.  The work directory holds the states, and a work directory of its own for each K ("k1024") and for each K and
 * encodings ("k1024-int8"), which later commands can go on with; quality of all P is measured in one pass, what is current is not done again. */
fh_status fh_stage_sweep(fh_stage_env *e, const fh_stage_sweep_params *p, fh_json **report, fh_err *err);

/* import: a vLLM plugin's directory, judged as fh_vllm_verify does, becomes converted head, clusters and routing of the work directory. */
fh_status fh_stage_import(fh_stage_env *e, const char *dir, fh_json **report, fh_err *err);

/* status: {"dir", "stages": [{"stage", "file", "state": missing | stale | current, "why"}]}. */
fh_status fh_stage_status(fh_stage_env *e, fh_json **report, fh_err *err);

#endif
