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

#endif
