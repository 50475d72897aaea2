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
} fh_perplexity_params;
typedef struct fh_perplexity_report {
    uint64_t tokens;          /* scored */
    double perplexity;
    uint64_t missed;          /* tokens that were no candidates; 0 with the dense head */
    double missed_share;
    double backoff;           /* as used; 0 with the dense head */
    uint32_t probes;          /* as used; 0 with the dense head */
    double seconds;
} fh_perplexity_report;
/* ids: the whole text, encoded once.  FH_EUSAGE: window or stride out of range, fewer than two tokens, or a head that the model has not. */
fh_status fh_perplexity(const fh_model *m, const uint32_t *ids, size_t n, const fh_perplexity_params *p, const fh_job *job,
                        fh_perplexity_report *out, fh_err *err);

/* ---- bench ---------------------------------------------------------------------------------------------------- */

typedef struct fh_timing { double median, low, high; size_t samples; double bytes, gigabytes_per_second; } fh_timing; /* seconds; low, high: 10 % and 90 % */

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
    double share;          /* batches: of the clusters, that are read; rivals: of the states, that get FlashHead's token; else NAN */
} fh_bench_row;
enum { FH_BENCH_ROWS = 32 };
typedef struct fh_bench_list { fh_bench_row row[FH_BENCH_ROWS]; size_t n; } fh_bench_list;

typedef struct fh_bench_params { /* zeros: the artifact's P, 50 runs, Gaussian states, everything is measured */
    uint32_t probes; size_t runs;
    const float *states; size_t n_states;
    bool no_batches, no_rivals;
    size_t memory_bytes;   /* to sweep caches with; 0: 256 MiB, or four times the last-level cache where that is more */
} fh_bench_params;
typedef struct fh_bench_report {
    unsigned threads; uint32_t probes; const char *isa;
    size_t block_bytes, memory_bytes;
    fh_bench_peak peaks[2]; size_t n_peaks; /* with the job's threads, and with one where that is another number */
    fh_bench_list heads;   /* a greedy token at batch 1: "dense T" from the exact rows of type T, "all T" from the encoded ones (P = K), "flash" */
    fh_bench_list parts;   /* of "flash": "route", "select", "score", "rerank" */
    fh_bench_list batches; /* the same heads at batch 1, 2, 4 ... 64, cold */
    fh_bench_list rivals;  /* "OpenBLAS f32", "FAISS IVF f32" */
    double tpot[2], share[2]; /* seconds a token of the whole model and the head's share of it, by fh_head_kind: the best of 5 runs of 129 tokens */
    double body_bytes;
    uint64_t checksum;     /* of what was read, so that it cannot be left out */
} fh_bench_report;
/* Time the heads of an artifact (opened with FH_MODEL_HEAD; with FH_MODEL_BODY also whole tokens).  Calls take turns through the states. */
fh_status fh_bench(const fh_model *m, const fh_bench_params *p, const fh_job *job, fh_bench_report *out, fh_err *err);
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
    FH_CHECK_PARITY,      /* the kernels give what they are defined to give */
    FH_CHECK_CALIBRATION, /* the promise was made on this very head */
    FH_CHECK_STATES,      /* what the head reads is finite */
    FH_CHECK_PROMISE,     /* what was measured does not contradict it */
    FH_CHECKS
} fh_check_kind;
typedef struct fh_check { const char *name; fh_verdict verdict; char detail[700]; } fh_check;

/* What llama-perplexity prints of a divergence; percentiles are linear between neighbours. */
typedef struct fh_spread { double mean, max, p99_9, p99, p95, p90, median, p10, p5, p1, p0_1, min; } fh_spread;
fh_spread fh_spread_of(double *values, size_t n); /* sorts values [n], n > 0 */

/* Positions at which all of the dense head's best k are candidates; the bounds are one-sided, each at the confidence. */
typedef struct fh_kept { size_t misses; double share, lower, upper; } fh_kept;
enum { FH_TOPS = 4, FH_BANDS = 7, FH_WORST = 20, FH_COSTS = 12 }; /* FH_TOPS: k = 1, 3, 5, 10 */
typedef struct fh_curve_point { uint32_t probes; fh_kept top[FH_TOPS]; double agreement, mass, kl, kl_dense, step_bytes; } fh_curve_point;
typedef struct fh_band { const char *name; size_t positions, misses; double agreement, mass, kl; } fh_band; /* misses of the dense head's best token */
typedef struct fh_bands { fh_band band[FH_BANDS]; size_t n; } fh_bands;
/* A token that the dense head would have said `times` times; need: how many probes it would have taken where it was missed, on average. */
typedef struct fh_worst { uint32_t id, cluster; size_t times, misses; double need; char text[80]; } fh_worst;
typedef struct fh_quality { /* of the artifact as it is, at its own P; positions 0: not measured */
    size_t positions, documents;
    uint32_t probes, containment_k;
    double confidence;
    fh_kept kept, top[FH_TOPS];   /* of the best containment_k; of 1, 3, 5, 10 */
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
    fh_part_cost cost[FH_COSTS]; size_t n;
} fh_anatomy;
typedef struct fh_divergence { size_t prompts, tokens, identical; double mean, median; size_t min; } fh_divergence; /* tokens that both heads say alike, greedily */
typedef struct fh_last_words { size_t words, dense, flash, same; } fh_last_words; /* said rightly; by both heads or by neither */
typedef struct fh_parity_row { const char *isa, *variant; fh_parity found; } fh_parity_row;
enum { FH_PARITIES = 8 };

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
} fh_validate_params;

typedef struct fh_validation {
    fh_fhead *file;                    /* the artifact, open */
    fh_head_layout layout;
    fh_check check[FH_CHECKS];
    fh_parity_row parity[FH_PARITIES]; size_t n_parity;
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

#endif
