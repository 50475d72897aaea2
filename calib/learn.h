/* calib/learn.h: what the files of learned routing share.  Not for others: see calib.h. */
#ifndef FH_LEARN_H
#define FH_LEARN_H

#include "calib/calib.h"

/* Numbers of states, those that matter: state i has entries first[i] .. first[i + 1). */
typedef struct fh_sparse { size_t *first; uint32_t *index; float *value; size_t room; } fh_sparse;
/* Room for `more` entries behind the `n` there are. */
fh_status fh_sparse_grow(fh_sparse *s, size_t n, size_t more, fh_err *err);
void fh_sparse_free(fh_sparse *s); /* accepts a zeroed one */

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
