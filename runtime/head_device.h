/* runtime/head_device.h: how a head's work is handed to something other than this CPU's kernels.  Plain C that C++ reads too. */
#ifndef FH_HEAD_DEVICE_H
#define FH_HEAD_DEVICE_H

#include "format/format.h"
#include "runtime/flashhead.h"

/* The best candidates of some states; what is asked has been checked. */
typedef struct fh_head_call {
    const float *states; size_t batch;       /* [batch, D], finite; NULL: the one that a body left on the device */
    uint32_t probes;                         /* 1..K; K without a threshold: every cluster is scored, nothing is routed */
    float threshold;                         /* of these clusters those that close to the best one (flashhead.h); 0: all */
    uint64_t *probed;                        /* where clusters are routed: += how many all states probed */
    bool dense;                              /* the dense rows, all of them; nothing is reranked */
    bool no_hot;
    const uint32_t *extras; size_t n_extras; /* live ids that are candidates wherever they lie, each once; NULL: the head's own */
    const uint8_t *excluded;                 /* [V] 1: forced out; NULL: none */
    const double *random;                    /* [batch] of [0, 1): draw one a state (k is 1, temperature above 0), as fh_sample does; NULL: the best */
    fh_sampling sampling;
    uint32_t kept, rerank, k;                /* best candidates looked at; of these, scored again; results a state, maybe more than kept */
} fh_head_call;

typedef struct fh_head_device {
    void *ctx;
    uint32_t most;                           /* kept of a call; what asks for more is computed here, which gives the same */
    /* ids, logits [batch, k] as fh_head_topk gives them; logits may be NULL. */
    fh_status (*topk)(void *ctx, const fh_head_call *call, uint32_t *ids, float *logits, fh_err *err);
} fh_head_device;

/* Products of many states with all rows of a matrix, as fh_dots (kernels.h) gives them bit for bit: of the encodings of fh_dtype up to FH_I8, and FH_I4; and
 * what is looked for in them, which needs no products to be brought here.  States are finite, [n, cols], n at most `most`. */
typedef struct fh_dots_device {
    void *ctx;
    size_t most;                             /* states of a call */
    size_t found;                            /* k of `best` and `ranks` at most */
    /* The rows are copied; scales as fh_dots has them.  *there is taken away before the device is closed. */
    fh_status (*put)(void *ctx, void **there, const fh_rows *rows, const void *scales, fh_err *err);
    void (*take)(void *ctx, void *there);    /* accepts NULL */
    /* Which token each row is of (ids [rows], copied; FH_NO_TOKEN: of none that counts), and what is added to its products (bias [rows], or NULL). */
    fh_status (*mark)(void *ctx, void *there, const uint32_t *ids, const float *bias, fh_err *err);
    /* *dots [n, rows], without a bias: borrowed, and may be written to, until the next call. */
    fh_status (*multiply)(void *ctx, void *there, const float *states, size_t n, float **dots, fh_err *err);
    /* ids [n, k]: the tokens of the k largest, best first, what is no number left out; equal ones by the smaller token; FH_NO_TOKEN where there are fewer.
     * Of rows that were marked. */
    fh_status (*best)(void *ctx, void *there, const float *states, size_t n, size_t k, uint32_t *ids, fh_err *err);
    /* Products as scores: -INFINITY where they are no number, rounded to bf16 if asked for.  Of row of[i, j] its score, and its rank: how many of state i's
     * are larger, or equal and of a smaller row (through bf16: of any other); and the largest of all.  of, ranks, scores [n, k]; top [n].  FH_NO_TOKEN has
     * rank 0. */
    fh_status (*ranks)(void *ctx, void *there, const float *states, size_t n, size_t k, const uint32_t *of, bool through_bf16, uint32_t *ranks, float *scores,
                       float *top, fh_err *err);
} fh_dots_device;

#endif
