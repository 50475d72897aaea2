/* validate/validate.h: the checks and measurements that say whether an artifact may ship. */
#ifndef FH_VALIDATE_H
#define FH_VALIDATE_H

#include "calib/calib.h"
#include "runtime/runtime.h"

/* ---- perplexity -------------------------------------------------------------------------------------------- */

/* Windows of `window` tokens begin at 0, stride, 2 * stride, ... until one reaches the end of the text.  Each is a sequence of its own and
 * scores the tokens that no earlier window did, never the text's first.  perplexity = exp(sum of -ln p / tokens), logits in float32,
 * log-sum-exp and the sum in double.
 *
 * FlashHead gives candidates only, so that the mass outside them needs a back-off to be a probability: a share `backoff` of the
 * mass is spread evenly over the live tokens that are no candidates, the softmax over the candidates gets the rest.  Where no live
 * token is left out (P = K) the share is 0 and the result is the dense head's on the encoded rows.  A next token that is dead counts
 * like a live one that is no candidate. */
typedef struct fh_perplexity_params {
    uint32_t window, stride;  /* 1 <= stride < window <= the model's longest sequence */
    bool flash;               /* by the model's FlashHead instead of its dense head */
    uint32_t probes;          /* of flash; 0: the head's own */
    bool no_hot;              /* of flash: without the hot list */
    double backoff;           /* of flash; (0, 1); 0: FH_BACKOFF */
    fh_dtype kv_type;         /* of the key-value cache */
} fh_perplexity_params;
typedef struct fh_perplexity_report {
    uint64_t tokens;          /* scored */
    double perplexity;
    uint64_t missed;          /* tokens that were no candidates; 0 with the dense head */
    double missed_share;
    double backoff;           /* as used; 0 with the dense head */
    uint32_t probes;          /* as used, at most where the head has a threshold; 0 with the dense head */
    double mean_probes;
    double seconds;
} fh_perplexity_report;
/* ids: the whole text, encoded once.  FH_EUSAGE: window or stride out of range, fewer than two tokens, or a head that the model has not.
 * FH_ECHECK: an id that the head has no row for. */
fh_status fh_perplexity(const fh_model *m, const uint32_t *ids, size_t n, const fh_perplexity_params *p, const fh_job *job,
                        fh_perplexity_report *out, fh_err *err);

/* What llama-perplexity prints of a divergence; percentiles are linear between neighbours. */
typedef struct fh_spread { double mean, max, p99_9, p99, p95, p90, median, p10, p5, p1, p0_1, min; } fh_spread;
fh_spread fh_spread_of(double *values, size_t n); /* sorts values [n], n > 0 */

/* ---- bench ---------------------------------------------------------------------------------------------------- */

typedef struct fh_timing { double median, low, high, mean; size_t samples; double bytes, gigabytes_per_second; } fh_timing; /* seconds; low, high: 10 % and 90 % */

/* What the machine does with `threads` threads. */
typedef struct fh_bench_peak {
    unsigned threads;
    fh_timing stream;      /* reading memory in order */
    fh_timing blocks;      /* reading blocks as long as a cluster's rows, here and there among as many as there are clusters */
    fh_timing gemm;        /* OpenBLAS, 256 states against 4096 rows of the head's width; bytes are operations, gigabytes_per_second GFLOP/s */
} fh_bench_peak;
typedef struct fh_bench_row {
    const char *what;      /* "flash", "dense bf16", "route": static */
    unsigned threads; uint32_t batch;
    bool warm;             /* the same state again and again; else the caches are swept before every call */
    fh_timing time;        /* of a call, whatever its batch */
    double roof;           /* seconds that reading its bytes takes at the machine's own speeds; 0 where it reads none to speak of */
    uint32_t probes;       /* of "flash", else 0 */
    double steps[FH_STEPS]; /* of "flash" at batch 1: the median seconds of its steps; else NAN */
    double share;          /* batches: of the clusters, that are read; rivals: of the states, that get FlashHead's token; else NAN */
} fh_bench_row;
enum { FH_BENCH_ROWS = 64 };
typedef struct fh_bench_list { fh_bench_row row[FH_BENCH_ROWS]; size_t n; } fh_bench_list;

typedef struct fh_bench_params { /* zeros: the artifact's P, 50 runs, Gaussian states, everything is measured */
    uint32_t probes; size_t runs;
    const uint32_t *curve; size_t n_curve; /* further P at which "flash" is timed; at most FH_BENCH_ROWS */
    const float *states; size_t n_states;
    bool no_batches, no_rivals;
    bool brief;            /* the job's threads alone, caches cold: not with one thread as well, not warm; the body in whole tokens alone */
    bool no_tokens;        /* no whole tokens */
    bool body_only;        /* body and whole tokens alone */
    fh_dtype kv_type;      /* of the body's key-value cache */
    size_t memory_bytes;   /* to sweep caches with; 0: 256 MiB, or four times the last-level cache where that is more */
} fh_bench_params;
typedef struct fh_bench_report {
    unsigned threads; uint32_t probes; const char *isa; /* probes: at most, with a threshold */
    float threshold;       /* 0: none, or no states to look at with it */
    fh_spread probed;      /* clusters a state, with a threshold */
    size_t block_bytes, memory_bytes;
    fh_bench_peak peaks[2]; size_t n_peaks; /* with the job's threads, and with one where that is another number */
    fh_bench_list heads;   /* a greedy token at batch 1: "dense T" from the exact rows of type T, "all T" from the encoded ones (P = K), "flash" */
    fh_bench_list parts;   /* of "flash": "route", "select", "score", "rerank" */
    fh_bench_list curve;   /* "flash" at each P of the curve, cold, with the job's threads */
    fh_bench_list batches; /* the same heads at batch 1, 2, 4 ... 64, cold */
    fh_bench_list rivals;  /* "OpenBLAS f32", "FAISS IVF f32" */
    fh_bench_list body;    /* "decode", `batch` the length of the cache; "prefill", `batch` the tokens, its bytes are operations */
    double tpot[2], share[2]; /* seconds a token of the whole model and the head's share of it, by fh_head_kind: the best of 5 runs of 129 tokens,
                               * of fewer where they take more than a few seconds */
    double body_bytes, dense_bytes; /* that a token reads; dense_bytes: of the dense head */
    uint64_t checksum;     /* of what was read, so that it cannot be left out */
} fh_bench_report;
/* Time the heads of an artifact (opened with FH_MODEL_HEAD; with FH_MODEL_BODY also body and whole tokens), or the body of a checkpoint and
 * whole tokens with its dense head.  Calls take turns through the states. */
fh_status fh_bench(const fh_model *m, const fh_bench_params *p, const fh_job *job, fh_bench_report *out, fh_err *err);
/* The same on a GPU that holds the head, timed by its own clock: "flash" (one kernel), "flash apart" (several), "dense", "fused dense bf16" (the fastest that reading everything
 * can be), "cuBLAS dense bf16", "copy" (the dense rows' bytes, there and back), at batch 1 and some more.  What cannot be had is left out and the job told.  share: of the states,
 * that get the CPU's token (bf16 rivals round otherwise). p->states is set; p->no_rivals and p->memory_bytes are not looked at. */
fh_status fh_bench_device(const fh_device *d, const fh_head *head, const fh_bench_params *p, const fh_job *job, fh_bench_list *out, fh_err *err);
/* Gaussian states [n], always the same. */
void fh_bench_states(float *out, size_t n);
/* Whole tokens as a model runs alone, the best of `passes` runs (of two where they take more than a few seconds): a prompt of `prompt` tokens, then
 * `tokens` greedy ones. */
typedef struct fh_token_timing { double ttft, tpot, head_share; } fh_token_timing; /* seconds; as fh_generate_stats has them */
void fh_json_add_tokens(fh_json *to, const fh_token_timing *t);
fh_status fh_bench_tokens(fh_token_timing *out, const fh_model *m, fh_head_kind head, fh_dtype kv_type, uint32_t probes, uint32_t prompt, uint32_t tokens,
                          unsigned passes, const fh_job *job, fh_err *err);
/* The row of that name, or NULL. */
const fh_bench_row *fh_bench_find(const fh_bench_list *list, const char *what, unsigned threads, uint32_t batch, bool warm);

/* ---- validate ------------------------------------------------------------------------------------------------- */

typedef enum fh_verdict { FH_SKIPPED, FH_PASSED, FH_WARNED, FH_FAILED } fh_verdict;
const char *fh_verdict_name(fh_verdict v); /* "skipped", "passed", "warning", "failed" */
/* What is checked, in this order.  A check that fails makes those that rest on it be skipped, so that each fault fails its own. */
typedef enum fh_check_kind {
    FH_CHECK_INTEGRITY,   /* every byte of the file by its digests; structure, permutation, scales, rows */
    FH_CHECK_BELONGING,   /* the fingerprint is the checkpoint's, or that of the bundle's own rows where none is given */
    FH_CHECK_ROWS,        /* the token rows are that model's, encoded */
    FH_CHECK_PERMUTATION, /* each in the slot of its token */
    FH_CHECK_PARITY,      /* the kernels give what they are defined to give, and a device gives what they give */
    FH_CHECK_CALIBRATION, /* the promise was made on this very head */
    FH_CHECK_STATES,      /* what the head reads is finite */
    FH_CHECK_PROMISE,     /* what was measured does not contradict it */
    FH_CHECKS
} fh_check_kind;
typedef struct fh_check { const char *name; fh_verdict verdict; char detail[700]; } fh_check;

/* A share of positions; the bounds are one-sided, each at the confidence, with the design effect of documents (calib.h).  Of mass, misses are what is
 * not covered, added up. */
typedef struct fh_kept { double misses, share, lower, upper, effect; } fh_kept;
enum { FH_TOPS = 4, FH_BANDS = 7, FH_WORST = 20, FH_PART_COSTS = 12 }; /* FH_TOPS: k = 1, 3, 5, 10 */
typedef struct fh_curve_point { uint32_t probes; fh_kept top[FH_TOPS]; double agreement, mass, kl, kl_dense, step_bytes; } fh_curve_point;
typedef struct fh_band { const char *name; size_t positions, misses; double agreement, mass, kl; } fh_band; /* misses of the dense head's best token */
typedef struct fh_bands { fh_band band[FH_BANDS]; size_t n; } fh_bands;
/* A token that the dense head would have said `times` times; need: how many probes it would have taken where it was missed, on average. */
typedef struct fh_worst { uint32_t id, cluster; size_t times, misses; double need; char text[80]; } fh_worst;
typedef struct fh_quality { /* of the artifact as it is, at its own P; positions 0: not measured */
    size_t positions, documents;
    uint32_t probes, containment_k; /* probes: at most, with a threshold */
    float threshold;              /* 0: none */
    fh_spread probed;             /* clusters a position */
    double step_bytes;            /* in the mean */
    double confidence;
    fh_kept kept[FH_PROMISES];    /* what can be promised: all of the best containment_k are candidates; same best token; covered mass */
    fh_kept top[FH_TOPS];         /* all of the best 1, 3, 5, 10 are candidates */
    double agreement, agreement_error, mass; /* error: the standard error of a share of independent positions, as llama-perplexity prints it */
    fh_spread kl, kl_dense;       /* nats: FlashHead over its candidates || dense; dense || FlashHead with its back-off */
    fh_curve_point *curve; size_t n_curve;
    fh_bands by_frequency, by_margin, by_entropy; /* tokens of the text; nats; nats */
    fh_worst worst[FH_WORST]; size_t n_worst;
} fh_quality;

/* What one part costs while all else is exact, and parts together.  parts: what is not exact. */
typedef struct fh_part_cost { const char *part; double top1, agreement, mass, kl, kl_dense; } fh_part_cost;
typedef struct fh_anatomy { /* positions 0: not measured */
    size_t positions, misses;
    size_t by_clustering, by_routing, by_encoding; /* misses that the clusters of most probability have too; that centroids not encoded have too; others */
    bool sources;                 /* the centroids before their encoding were there: without them by_encoding is 0, and such misses count as routing's */
    fh_part_cost cost[FH_PART_COSTS]; size_t n;
} fh_anatomy;
/* How many tokens both heads say alike, greedily, of so many asked for; identical: prompts after which all are. */
typedef struct fh_divergence { size_t prompts, tokens, identical; double mean, median; size_t min; } fh_divergence;
typedef struct fh_last_words { size_t words, dense, flash, same; } fh_last_words; /* said rightly; by both heads or by neither */
typedef struct fh_parity_row { const char *isa, *variant; fh_parity found; } fh_parity_row;
enum { FH_PARITIES = 9 };

typedef struct fh_validate_params { /* zeros: what the artifact alone allows */
    const char *base;                         /* the checkpoint it was made of, or NULL: the bundle */
    const char *const *texts; size_t n_texts; /* files, or the one word "self" */
    size_t tokens; uint32_t window, stride;   /* evenly from all of the text; 0: 20,000, 512 or the model's limit, half a window */
    uint64_t seed;                            /* of "self" */
    const float *states; size_t n_states;     /* [n, D] recorded states instead of text, or NULL */
    const char *states_fault;                 /* why recorded states cannot be used: fails the check, and nothing is measured */
    const char *prompts;                      /* a file, a line a prompt (JSON lines: "prompt" or "text"); NULL: beginnings of windows of the text */
    size_t n_prompts, say;                    /* how many of these, 0: 16; tokens to say, 0: 64 */
    const char *last_words;                   /* a file, JSON lines with "text" or plain lines; NULL: none */
    const char *routing;                      /* safetensors with the centroids before their encoding, or NULL */
    size_t anatomy_positions;                 /* 0: 2,048, evenly */
    bool no_anatomy, no_perplexity, no_divergence;
    fh_device_kind device;                    /* whose results are held to this CPU's, beside its kernels; auto: a GPU's if there is one */
} fh_validate_params;

typedef struct fh_validation {
    fh_fhead *file;                    /* the artifact, open */
    fh_head_layout layout;             /* vocab 0: there is no head in it */
    fh_check check[FH_CHECKS];
    fh_parity_row parity[FH_PARITIES]; size_t n_parity; /* the last may be "cuda", of results */
    char *device;                      /* its name; NULL: none was looked at */
    fh_quality quality;
    fh_anatomy anatomy;
    fh_perplexity_report dense, flash; /* tokens 0: not measured */
    fh_divergence divergence;          /* prompts 0 */
    fh_last_words last_words;          /* words 0 */
    char *text, text_digest[65];       /* of what was measured; NULL, "" */
    double seconds;
} fh_validation;
/* Check and measure an artifact.  A check that fails is no error: see fh_validation_failed.  An error is what keeps from checking: a file that is no
 * artifact, a text that cannot be read.  *out is freed by the caller, also after an error. */
fh_status fh_validate(fh_validation *out, const char *path, const fh_validate_params *p, const fh_job *job, fh_err *err);
void fh_validation_free(fh_validation *v);
size_t fh_validation_failed(const fh_validation *v); /* how many checks failed */
/* A requirement on a number that was measured: "containment>=0.99", "perplexity_ratio<=1.02".  out->verdict says how it went; what was not
 * measured fails.  FH_EUSAGE: not of this form, or no such number, and which there are. */
fh_status fh_validate_gate(fh_check *out, const fh_validation *v, const char *gate, fh_err *err);
/* The numbers that gates know, in order; NULL past the last.  *value is NAN where it was not measured. */
const char *fh_validate_number(const fh_validation *v, size_t i, double *value);
/* One self-contained HTML page; gates [n_gates] as judged. */
fh_status fh_validate_page(const fh_validation *v, const fh_check *gates, size_t n_gates, const char *path, fh_err *err);
/* ---- what a token costs --------------------------------------------------------------------------------------------- */

/* A model as its config and the headers of its tensors describe it; no weight is looked at. */
typedef struct fh_shape {
    char model_type[64];
    uint32_t vocab, hidden, layers, heads, kv_heads, head_dim, ffn, max_position; /* layers 0: a family we do not know, its head alone is counted */
    bool gated;                /* MLPs of three matrices, else of two */
    uint32_t windowed, window; /* layers that see no more than `window` keys */
    fh_dtype dtype, body_dtype; /* of the head and of the body's matrices */
    bool tied, headers;        /* headers: the dtypes are those of the tensors; else config.json's word, or bf16 */
} fh_shape;
/* How its head is cut and encoded. */
typedef struct fh_setting {
    uint32_t k, cap, probes, rerank, extras; /* extras: tokens scored on every step, hot and always */
    fh_dtype centroids, tokens;
} fh_setting;
/* path: a checkpoint directory (config.json alone will do), a GGUF, or a .fhead.  *own: an artifact's setting; else k 0, and for extras the ids
 * that are always candidates. */
fh_status fh_shape_read(fh_shape *out, fh_setting *own, const char *path, const fh_job *job, fh_err *err);
/* Fill in what is 0: cap 16 (or from k), k from cap, P = K/16; and rows scored again where that is FH_RERANK_USUAL.  FH_EUSAGE: k or P out of range. */
#define FH_RERANK_USUAL UINT32_MAX
fh_status fh_setting_fill(fh_setting *s, const fh_shape *shape, fh_err *err);

/* The stages of one decoded token at `context` keys, the new one counted: bytes that come from memory, multiplications and additions.  The body is the first
 * five, then the dense head, then FlashHead in three steps. */
typedef enum fh_cost_stage {
    FH_COST_EMBED, FH_COST_QKV, FH_COST_ATTENTION, FH_COST_OUTPUT, FH_COST_MLP, FH_COST_DENSE, FH_COST_ROUTE, FH_COST_SCORE, FH_COST_RERANK, FH_COSTS
} fh_cost_stage;
typedef struct fh_cost { const char *what; double bytes, flops; } fh_cost;
void fh_costs(fh_cost out[FH_COSTS], const fh_shape *shape, const fh_setting *s, uint32_t context);
typedef enum fh_whole { FH_WHOLE_BODY, FH_WHOLE_DENSE, FH_WHOLE_FLASH, FH_WHOLES } fh_whole;
/* The body; the dense head alone; FlashHead alone. */
void fh_cost_sums(fh_cost out[FH_WHOLES], const fh_cost costs[FH_COSTS]);
/* Seconds that the stages from `first` to `last` take where nothing but memory and arithmetic counts: for each the longer of the two (roofline, Williams
 * 2009).  flops_per_second 0: not known, memory alone. */
double fh_cost_seconds(const fh_cost *costs, fh_cost_stage first, fh_cost_stage last, double bytes_per_second, double flops_per_second);

/* The key-value cache: bytes that a token adds to it, as this runtime keeps it (float32) and in 16 bits; and those that are in sight at a context, windows
 * counted (this runtime keeps the others too). */
typedef struct fh_kv_cost { double token_bytes, token_bytes_16, in_sight_bytes; } fh_kv_cost;
fh_kv_cost fh_kv_costs(const fh_shape *shape, uint32_t context);

/* ---- estimate -------------------------------------------------------------------------------------------------------- */

/* Machines by their makers' figures. */
typedef struct fh_machine { const char *name; double gigabytes_per_second, teraflops; const char *source; } fh_machine; /* 16-bit, dense; 0: not published */
const fh_machine *fh_machines(size_t *n);

typedef struct fh_estimate_params {
    const uint32_t *probes; size_t n_probes; /* further P whose time is estimated, rising */
    uint32_t context;          /* of the costs; 0: 1024 or the model's limit */
    size_t tokens;             /* of text that a build learns from; 0: 100,000 */
    bool no_measure;           /* arithmetic alone */
    size_t runs, memory_bytes; /* of fh_bench_params; 0: 20, and the caches' need */
    const char *scratch_dir;   /* where the stand-in lies for a moment; NULL: $TMPDIR, or /tmp */
} fh_estimate_params;
typedef struct fh_head_time { uint32_t probes; double seconds; } fh_head_time;
typedef struct fh_estimate {
    fh_shape shape; fh_setting setting; uint32_t context;
    fh_cost costs[FH_COSTS], sums[FH_WHOLES];
    fh_kv_cost kv;
    double centroid_bytes, token_bytes, exact_bytes; /* of the artifact's head, scales counted */
    /* what was measured; zeros where it was not */
    unsigned threads; const char *isa;
    fh_bench_peak peak;
    uint32_t stand_in_clusters, stand_in_layers; /* how much of the model the stand-in had */
    double head_seconds[2];    /* by fh_head_kind: one cold call */
    fh_head_time *curve; size_t n_curve; /* flash at each P asked for, the setting's own among them, rising */
    double token_seconds[2], head_share[2];  /* of the whole model, short context */
    /* the build, rough: within a factor of two on the models it was fitted to */
    double build_seconds[4], build_bytes; /* hidden, cluster, route, calibrate; NAN where not measured */
} fh_estimate;
extern const char *const fh_build_stages[4];
/* What a model costs and how fast FlashHead will make it here, from its shape: a stand-in, the model's own shape filled with noise and cut down to what a
 * moment allows, is timed as `bench` times an artifact, and what was cut is added in proportion. */
fh_status fh_estimate_model(fh_estimate *out, const fh_shape *shape, const fh_setting *s, const fh_estimate_params *p, const fh_job *job, fh_err *err);
void fh_estimate_free(fh_estimate *e);
/* The time at any P: on the line between its neighbours, or on with the nearest two.  n >= 1. */
double fh_head_time_at(const fh_head_time *curve, size_t n, uint32_t probes);

/* ---- sweep ------------------------------------------------------------------------------------------------------------ */

/* One setting of many, all of one model. */
typedef struct fh_sweep_point {
    fh_setting setting;
    fh_point quality;          /* probes as in the setting */
    fh_timing head;            /* one cold FlashHead call */
    double dense_head;         /* seconds of the dense head's, timed beside it */
    fh_token_timing flash, dense; /* whole tokens; tpot 0: the model's body is not one we run */
    double step_bytes, token_bytes, token_flops; /* of head; of head and body */
    double peak_bytes;         /* resident at most while it spoke; 0: not known */
    bool frontier;             /* no other point is as good and faster */
    const char *name;          /* "high accuracy", "balanced", "fast", or NULL */
} fh_sweep_point;
typedef struct fh_sweep {
    fh_shape shape;
    const char *name, *text;   /* of the model; of what quality was measured on */
    size_t positions;
    unsigned threads; const char *isa;
    uint32_t prompt, tokens;   /* of the whole tokens: a prompt of so many, then so many */
    fh_sweep_point *points; size_t n;
} fh_sweep;
/* Mark the frontier of agreement against the head's time, and on it three points, each faster than the one before: the fastest of those that reach
 * FH_SWEEP_ACCURATE, FH_SWEEP_BALANCED and FH_SWEEP_FAST; where none does, the most accurate. */
#define FH_SWEEP_ACCURATE 0.999
#define FH_SWEEP_BALANCED 0.99
#define FH_SWEEP_FAST 0.97
void fh_sweep_judge(fh_sweep_point *points, size_t n);
/* A line a point, names of columns first (RFC 4180); freed by the caller, NULL when out of memory. */
char *fh_sweep_csv(const fh_sweep *s);
fh_json *fh_sweep_json(const fh_sweep *s);
/* The page, in a file. */
fh_status fh_sweep_page(const fh_sweep *s, const char *path, fh_err *err);

#endif
