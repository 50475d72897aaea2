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
 * like a live one that is no candidate.  The share is stated, not fitted: whoever compares two artifacts must use one number. */
#define FH_BACKOFF 1e-3
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
typedef struct fh_bench_params { uint32_t probes; size_t runs; const float *states; size_t n_states; } fh_bench_params; /* zeros: the artifact's P, 50 runs, Gaussian states */
typedef struct fh_bench_report {
    unsigned threads; uint32_t probes; const char *isa;
    fh_timing memory;      /* reading 256 MiB: the machine's own speed */
    fh_timing flash, dense, all_probes; /* one greedy token at batch 1, caches swept before every call; all_probes: P = K on the encoded rows */
    double tpot[2], share[2]; /* seconds a token of the whole model and the head's share of it, by fh_head_kind: the best of 5 runs of 129 tokens */
    double body_bytes;
    uint64_t checksum;     /* of the sweeps, so that they cannot be left out */
} fh_bench_report;
/* Time the heads of an artifact (opened with FH_MODEL_HEAD; with FH_MODEL_BODY also whole tokens). */
fh_status fh_bench(const fh_model *m, const fh_bench_params *p, const fh_job *job, fh_bench_report *out, fh_err *err);

#endif
