/* artifacts/artifacts.h: packing a head and its model into one .fhead, and saying what is in one. */
#ifndef FH_ARTIFACTS_H
#define FH_ARTIFACTS_H

#include "runtime/runtime.h"

typedef struct fh_pack_text { const char *text; size_t len; } fh_pack_text; /* text NULL: there is none */

/* All that goes into an artifact, in memory; everything is borrowed. */
typedef struct fh_pack_input {
    const char *name;                   /* where it comes from, for messages: the work directory */
    /* the model */
    const char *model_type;             /* "llama" */
    fh_dtype dtype;                     /* of the checkpoint's head: f32, bf16 or f16 */
    bool tied;
    double softcap;                     /* 0: none */
    const char *fingerprint;            /* 64 hex digits */
    uint32_t tokenizer_size;            /* 0: unknown */
    /* the head: encoded centroids and tokens with any stride, probes, hot and always ids; its `exact` and `softcap` are not looked at */
    const fh_head_parts *head;
    const char *routing;                /* "mean", "weighted", "raw", "learned" or "centroids" */
    fh_rows exact;                      /* [V, D] the checkpoint's rows by token id, in `dtype`; data NULL: left out.  Not stored where the
                                         * token rows are of that dtype already */
    const fh_json *calibration;         /* as in calibration.json, or NULL: not calibrated */
    const fh_json *provenance;          /* an object, or NULL */
    /* the bundle; body NULL and tokenizer.text NULL: a head-only file */
    fh_pack_text config, generation;    /* config.json, needed with a body; generation_config.json */
    fh_pack_text tokenizer, tokenizer_config, chat_template; /* chat_template.jinja */
    const fh_tensors *body;             /* the checkpoint's tensors */
    const char *const *leave_out;
    size_t n_leave_out; /* names of those equal to the head: the artifact has their rows once, in slot order */
} fh_pack_input;

typedef struct fh_pack_params {
    const char *path;                   /* of the artifact */
    unsigned flags;                     /* FH_NO_CLOBBER */
    fh_pack_input input;
} fh_pack_params;

typedef struct fh_pack_report {
    char digest[65];
    size_t sections;
    bool bundled, calibrated;
} fh_pack_report;

/* Write the artifact, whole or not at all.  The head is judged first, so that what is written can be opened: FH_ECHECK names the
 * first offender, FH_EUSAGE a shape that does not fit.  Equal input gives equal bytes (with one version of zstd). */
fh_status fh_pack(const fh_pack_params *params, const fh_job *job, fh_pack_report *report, fh_err *err);

/* What `inspect` shows, the fields of DESIGN 9; *out is the caller's. */
fh_status fh_artifact_info(fh_fhead *f, fh_json **out, fh_err *err);

/* fh_fhead_verify, and that the bundled body can be read: its config agrees with the head, its tensors are where they say. */
fh_status fh_artifact_verify(fh_fhead *f, const fh_job *job, fh_err *err);

/* ---- the vLLM plugin's directories (docs/decisions/0008) ------------------------------------------------------------ */

typedef struct fh_vllm_export_params {
    const char *artifact, *model, *output; /* a .fhead, the checkpoint directory it was made from, the directory to make */
    fh_link link;                          /* how weights get there */
    uint32_t probes;                       /* 0: the artifact's, which must be calibrated for that runtime; else the directory promises nothing */
    bool no_clobber;                       /* an older export is replaced otherwise; anything else that is there never */
} fh_vllm_export_params;
/* The directory that the plugin loads, whole or not at all.  FH_EUNSUPPORTED names what that runtime cannot hold, FH_ECHECK another model or another
 * calibration.  Equal inputs give equal bytes. */
fh_status fh_vllm_export(const fh_vllm_export_params *p, const fh_job *job, fh_json **report, fh_err *err);

/* Is it a directory with a config.json, be it right or wrong? */
bool fh_vllm_is_dir(const char *path);
/* Somebody's directory against every rule of that runtime, and its clustering against its head. */
fh_status fh_vllm_verify(const char *dir, const fh_job *job, fh_json **report, fh_err *err);
/* Does the clustering belong to the checkpoint's head?  By the fingerprint that fhtool wrote into it, and by geometry: *affinity is the share of
 * other centroids that lie farther from the mean direction of a cluster's tokens than its own does, both less what all share.  1/2 by chance; 0.94
 * was measured where routing was learned, which takes centroids away from the means, 1 where they are the means.  FH_ECHECK below FH_VLLM_AFFINITY. */
#define FH_VLLM_AFFINITY 0.75
fh_status fh_vllm_belongs(const fh_vllm *v, const fh_checkpoint *c, const fh_job *job, double *affinity, fh_err *err);
/* What it is, into a report: "format", "architecture" unless NULL, "vocab", "hidden", "k", "cap", "probes". */
void fh_vllm_describe(fh_json *report, const fh_vllm *v, const char *architecture);

#endif
