/* calib/learn.h: what the files of learned routing share.  Not for others: see calib.h. */
#ifndef FH_LEARN_H
#define FH_LEARN_H

#include "calib/calib.h"
#include "cluster/cluster.h"

/* Numbers of states, those that matter: state i has entries first[i] .. first[i + 1). */
typedef struct fh_sparse { size_t *first; uint32_t *index; float *value; size_t room; } fh_sparse;
/* Room for `more` entries behind the `n` there are. */
fh_status fh_sparse_grow(fh_sparse *s, size_t n, size_t more, fh_err *err);
void fh_sparse_free(fh_sparse *s); /* accepts a zeroed one */

/* ---- loops for each instruction set (learn_math.c) -------------------------------------------------------------------- */

enum { FH_STRIP = 16 }; /* states whose numbers lie side by side */
/* z is a strip [n, 16]; what is [16] is of its lanes. */
typedef struct fh_learn_math {
    /* out [strips, 16], `apart` from one to the next: (dot - less) * scale * by */
    void (*scores)(float *out, size_t apart, size_t strips, const int32_t *dot, const float *scale, float by, int32_t less);
    /* z + base [16] + bias [n] (NULL: 0), capped where cap > 0, -INFINITY where out [n]; the largest */
    void (*finish)(float *z, size_t n, const float *base, const float *bias, float cap, const uint8_t *out, float *most);
    void (*largest)(const float *z, size_t n, float *most);
    void (*exponents)(float *z, size_t n, const float *shift, float *sum);      /* z = exp(z - shift); sums */
    void (*gather)(float *q, const float *z, size_t n, const uint32_t *into);   /* q [into[r], 16] += z [r, 16] */
    size_t (*above)(uint32_t *rows, const float *z, size_t n, const float *bar); /* rows [n] in which a lane is not below its bar; how many */
    /* z * by, and what is then smaller than the bound becomes the bound with its sign or 0: sizes are added up from `start` on, and whoever fills the
     * sum up to the bound takes it.  With `start` by chance from 0 up to the bound every number is right on average. */
    void (*thin)(float *z, size_t n, const float *by, const float *start, float bound);
    void (*combine)(float *g, size_t d, const float *const *rows, const float *by, size_t n); /* g [d] = sum of by [i] rows [i] [d], in this order */
    void (*adam)(float *x, float *m, float *v, const float *g, size_t n, float rate, float correct); /* one step; correct: of the second moment */
} fh_learn_math;
const fh_learn_math *fh_learn_math_choose(const char *isa); /* fh_isa_name() */

/* ---- scores in eight bits, in strips of 16 states (strips.c) --------------------------------------------------------- */

typedef struct fh_strips {
    fh_pool *pool; const fh_int8_dots *dots; const fh_learn_math *math; fh_turn turn;
    size_t rows, d, ld;
    int8_t *row; float *by; int32_t *less; /* [rows, ld], [rows], [rows]: rounded, what a product is multiplied by, and what is taken off it before */
    size_t states, panels;                 /* of the block, and the panels there is room for */
    int8_t *packed; float *scale;          /* [panels, ld, FH_PANEL], [panels, FH_PANEL] */
    float *padded, *room; int8_t *bytes; int32_t *dot; /* of each worker [ld], [ld], [ld], a tile of products */
} fh_strips;
/* For `rows` rows and up to `block` states of d values; the pool is borrowed. */
fh_status fh_strips_make(fh_strips *s, size_t rows, size_t block, size_t d, fh_pool *pool, fh_err *err);
void fh_strips_free(fh_strips *s); /* accepts a zeroed one */
/* Row r is x [D] less mean [D] (NULL: nothing).  In any task, one for each r. */
void fh_strips_row(fh_strips *s, size_t r, const float *x, const float *mean, unsigned worker);
/* The block is n states [n, D]. */
void fh_strips_states(fh_strips *s, const float *states, size_t n);
/* out [strips, rows, 16]: all rows with all states of the block; the last strip is filled up with zeros. */
void fh_strips_scores(const fh_strips *s, float *out);

/* ---- what the dense head says (targets.c) ------------------------------------------------------------------------------ */

/* masses: of clusters, for each of n states, those that matter, 1 in all; index is the cluster.  likely: the larger shares of tokens, where it is
 * not NULL; index is the token.  Both zeroed; the caller frees them whatever comes back.  *operations: multiplications and additions in products. */
fh_status fh_learn_targets(fh_sparse *masses, fh_sparse *likely, const fh_dense *dense, const float *states, const size_t *positions, size_t n,
                           const uint32_t *assignment, uint32_t k, double *operations, const fh_job *job, fh_err *err);
/* The mean of live rows [D]; row [D] is room. */
void fh_mean_row(double *mean, const fh_dense *dense, float *row);

/* ---- tokens that move (move.c), second moments (moment.c) -------------------------------------------------------------- */

/* s [D, D]: the mean of h h' over states. */
fh_status fh_second_moment(double *s, const float *states, const size_t *positions, size_t n, size_t d, const fh_job *job, fh_err *err);

/* What draws tokens to clusters, pull [V, D]: but for a number that is the same for all clusters, centroids[c] . pull[t] is the log-probability that
 * the router gives cluster c, summed over n states, each counted with the share of token t in it (likely: index is the token), and over one
 * state more in which t stands out; and that divided by the 3/4th power of the sum of these shares, 1 for the last. */
fh_status fh_token_pull(float *pull, const fh_dense *dense, const fh_sparse *likely, const float *states, const size_t *positions, size_t n,
                        const fh_job *job, fh_err *err);
/* Live tokens change places, two at a time, while both together are drawn to where the other one is: every cluster keeps its size and its dead rows. */
fh_status fh_move_tokens(uint32_t *assignment, size_t *swaps, const float *pull, const uint8_t *dead, uint32_t vocab, const float *centroids, uint32_t k,
                         size_t d, const fh_job *job, fh_err *err);
/* The masses of clusters of n states (index is the cluster) when tokens go from the clusters `from` to `to`; shares that are not recorded stay
 * where they were. */
fh_status fh_move_masses(fh_sparse *out, const fh_sparse *masses, const fh_sparse *likely, size_t n, const uint32_t *from, const uint32_t *to, fh_err *err);

#endif
