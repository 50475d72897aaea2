/* cluster/cluster.h: rows of a head into K clusters of equal size.
 *
 * A start (k-means through the FAISS C API into coarse groups that are cut into balanced clusters; FAISS k-means with all K and greedy
 * balancing; or random), then exact pairwise swaps (facts: the only method that went on improving).  Sizes are exact at every
 * moment.  The result depends on rows, parameters and seed alone, never on the number of threads.
 */
#ifndef FH_CLUSTER_H
#define FH_CLUSTER_H

#include "format/format.h"

#include <limits.h>

typedef enum fh_cluster_start { FH_START_COARSE, FH_START_FAISS, FH_START_RANDOM } fh_cluster_start;
typedef enum fh_cluster_metric {
    FH_METRIC_EUCLIDEAN, /* rows as they are: sum over clusters of |sum of members|^2, closed-form swap gain */
    FH_METRIC_COSINE     /* unit rows: sum over clusters of |sum of members| */
} fh_cluster_metric;

typedef struct fh_round { /* of the refinement */
    unsigned round;
    double objective;  /* mean cosine of live rows to their centroids_mean */
    double gain;       /* of the metric's own objective this round, relative */
    uint64_t swaps; double seconds, tokens_per_second;
} fh_round;
/* Which clusters are near which rows, asked of something other than this CPU's kernels.  Rows are of eight bits, as the CPU rounded them, so that products are
 * sums of integers; score = (float)(row . centre) * scale [centre] * by [row] + bias [centre], each step rounded to float32: whoever computes it, the answers
 * are the same. */
typedef struct fh_cluster_search {
    const uint32_t *rows;      /* [n] numbers of rows; NULL: first, first + 1, ... */
    size_t first, n, want;     /* want is at most 64 */
    const uint32_t *but;       /* [n] a cluster that is left out; NULL: none */
    int32_t *out;              /* [n, want] clusters of the largest scores, best first, ties to the smaller number; -1 where no more are above -INFINITY */
    float *score;              /* [n, want]; NULL: not wanted */
} fh_cluster_search;
typedef struct fh_cluster_device {
    void *ctx;
    size_t at_once;            /* rows of one search, at most */
    /* rows [n, ld], by [n]: numbers first and up; they stay.  ld is a multiple of 16. */
    fh_status (*put_rows)(void *ctx, size_t first, size_t n, size_t ld, const int8_t *rows, const float *by, fh_err *err);
    /* centres [k, ld], scale, bias [k]: in place of those that were there.  Everything is copied before either returns. */
    fh_status (*put_centres)(void *ctx, size_t k, size_t ld, const int8_t *centres, const float *scale, const float *bias, fh_err *err);
    fh_status (*search)(void *ctx, const fh_cluster_search *s, fh_err *err);
} fh_cluster_device;
#define FH_NO_HOME UINT32_MAX   /* for fh_cluster_params.init: anywhere */
#define FH_ROUNDS_NONE UINT_MAX /* for fh_cluster_params.rounds: the start as it is */
typedef struct fh_cluster_params {
    uint32_t k;                /* 2..V */
    uint64_t seed;
    fh_cluster_start start;
    fh_cluster_metric metric;
    unsigned rounds, sweeps;   /* at most; 0: the defaults */
    unsigned candidates;       /* clusters tried for each token; 0: the default, 24 */
    const float *map;          /* [D, D], 0 left of the diagonal, or NULL.  Euclidean: row w is compared as (w . map [0], w . map [1], ...) */
    const uint32_t *init;      /* [V] or NULL: begin where this assignment is instead of with `start`; tokens that do not fit (FH_NO_HOME, no such
                                * cluster, a cluster that would be too large) go where there is room */
    unsigned restarts;         /* starts tried, with seed, seed + 1, ...; the first of the best by the metric is kept.  0: one */
    double budget;             /* seconds, or 0: no further round and no further start are begun after them */
    const fh_cluster_device *device; /* that looks for candidates; NULL: this CPU.  The same clusters */
    void (*on_round)(void *ctx, const fh_round *r); void *ctx;
} fh_cluster_params;

typedef struct fh_clustering {
    uint32_t v, d, k, cap;
    uint32_t *assignment;      /* [V] token -> cluster; every cluster holds at most cap, live and dead rows dealt evenly */
    float *centroids;          /* [K, D] best without states */
    float *mean;               /* [K, D] normalised sums of the unit rows of live members */
    float *raw;                /* [K, D] means of the rows of live members */
    double objective;          /* mean cosine of live rows to `mean` */
    unsigned rounds; uint64_t swaps;
    uint64_t seed;             /* of the start that was kept */
    bool spent;                /* the budget ended it: `rounds` rounds from `seed` give the same */
    bool interrupted;          /* stopped early: the best so far */
} fh_clustering;

/* Memory that fh_cluster will need at its peak beyond the rows themselves, in bytes: known before the work starts.  Most of it is one
 * float32 copy of the live rows (less their mean, or at unit length), which goes before the centroids are made. */
uint64_t fh_cluster_memory(size_t v, size_t d, const fh_cluster_params *p);
/* dead [V] (NULL: none); rows shorter than 1e-6 of the median live row count as dead too.  *out is filled also when stopped (FH_OK,
 * interrupted set).  FH_EUSAGE: K out of range, or above the number of live tokens.  FH_EFORMAT: a live row is not finite. */
fh_status fh_cluster(fh_clustering *out, const fh_rows *head, const uint8_t *dead, const fh_cluster_params *p, const fh_job *job,
                     fh_err *err);
void fh_clustering_free(fh_clustering *c);
/* The same centroids and objective from any assignment (v, d, k, assignment are given; centroids there were are freed).  FH_EFORMAT: a
 * cluster number out of range, or a cluster without a live token. */
fh_status fh_centroids(fh_clustering *c, const fh_rows *head, const uint8_t *dead, const fh_job *job, fh_err *err);
/* A routing centroid a cluster, members weighted: sum_t w_t x_t / sum_t w_t over live members; weights [V] > 0 (FH_EUSAGE; those of dead
 * rows are not read).  out [K, D]. */
fh_status fh_weighted_centroids(float *out, const fh_clustering *c, const fh_rows *head, const uint8_t *dead, const double *weights,
                                const fh_job *job, fh_err *err);

/* ---- products of rows of eight bits (turn.c, cluster_int8.c) ------------------------------------------------------ */

enum { FH_LANES = 16 }; /* rows are padded with zeros to whole multiples of this */

/* The orthogonal map that rows go through before they are rounded: room [j] = sign [j] * x [from [j]], then Hadamard matrices.  The same for both
 * sides of a product, which it does not change. */
typedef struct fh_turn { size_t ld; uint32_t *from; float *sign; const struct fh_turn_kernels *kernels; } fh_turn;
/* shuffle false: coordinates stay where they are, which is faster and spreads a large one over its own block only (powers of two that make up ld,
 * the largest first).  ld is a multiple of FH_LANES. */
fh_status fh_turn_make(fh_turn *t, size_t ld, bool shuffle, fh_err *err);
void fh_turn_free(fh_turn *t);
/* out [ld] of -127..127 and the returned scale > 0: x [ld] turned is about scale * out.  NaN where x turned passes float32, which makes every score of it
 * NaN.  room [ld]; *sum (NULL: not wanted) is that of out.  The same bits on every instruction set. */
float fh_turn_int8(const fh_turn *t, int8_t *out, int32_t *sum, const float *x, float *room);

/* A panel is FH_PANEL clusters side by side: byte j of cluster c lies at j / 4 * 4 * FH_PANEL + 4 * c + j % 4. */
enum { FH_PANEL = 48, FH_INT8_LONGEST = 65536 /* 255 * 127 * ld stays below 2^31 */ };
typedef struct fh_int8_dots {
    const char *isa;
    bool offset;  /* panels hold bytes + 128, without sign: a product is then too large by 128 times the row's sum */
    /* out [rows, FH_PANEL] = x [rows, ld] . clusters of the panel */
    void (*tile)(int32_t *out, const int8_t *x, size_t rows, size_t ld, const int8_t *panel);
    /* score [FH_PANEL] = (dot - less) * scale * by + bias; whether one is above the bar */
    bool (*score)(float *score, const int32_t *dot, const float *scale, const float *bias, float by, int32_t less, float bar);
} fh_int8_dots;
void fh_pack_int8(const fh_int8_dots *dots, int8_t *panel, const int8_t *row, size_t column, size_t ld);
/* The best that the machine has, or what FH_ISA asks for; all give the same bits. */
const fh_int8_dots *fh_int8_dots_pick(void);

/* ---- a rival ---------------------------------------------------------------------------------------------------- */

/* FAISS's own two-stage search, IndexIVFFlat by inner product, over clusters that are given: what a head is measured against.  Rows are
 * float32; the index holds copies. */
typedef struct fh_ivf fh_ivf;
fh_status fh_ivf_new(fh_ivf **out, const float *centroids, size_t k, size_t d, fh_err *err); /* centroids [K, D] */
void fh_ivf_free(fh_ivf *v); /* accepts NULL */
/* rows [n, D] with their ids [n] go to lists [n], each 0..K-1. */
fh_status fh_ivf_add(fh_ivf *v, const float *rows, const int64_t *ids, const int64_t *lists, size_t n, fh_err *err);
/* ids, scores [n, k]: the k best of each state, best first, from its `probes` best lists; id -1 where there are fewer. */
fh_status fh_ivf_search(fh_ivf *v, const float *states, size_t n, size_t probes, unsigned threads, size_t k, int64_t *ids, float *scores, fh_err *err);

/* The version of FAISS in use, "1.7.3". */
const char *fh_faiss_version(void);

#endif
