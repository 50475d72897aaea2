/* cluster/cluster_private.h: what the files of this module share.
 *
 * The work is done on live rows only, numbered 0..n-1 in the order of their token ids; dead rows are dealt as fillers at the end.
 */
#ifndef FH_CLUSTER_PRIVATE_H
#define FH_CLUSTER_PRIVATE_H

#include "cluster/cluster.h"

enum {
    FH_MAX_CANDIDATES = 64, /* a mask of 64 bits remembers which of a row's candidates are new; fh_cluster_search.want */
    FH_NO_CLUSTER = -1
};

/* ---- dot products (cluster_dot.c) -------------------------------------------------------------------------- */

/* Every instruction set gives the same bits: 16 lanes, each summed in ascending order with one rounding for the product and one
 * for the sum, then lane i + lane i+8, i + 4, i + 2, i + 1.  n is a multiple of FH_LANES; no alignment is asked. */
typedef struct fh_dots {
    const char *isa;
    float (*one)(const float *a, const float *b, size_t n);
    /* out[i] = z . row rows[i] of x, for i < count; rows lie ld floats apart */
    void (*many)(float *out, const float *z, const float *x, size_t ld, const uint32_t *rows, size_t count, size_t n);
} fh_dots;
/* The best that the machine has, or what FH_ISA (ref, avx2, avx512, neon) asks for where the machine has it. */
const fh_dots *fh_dots_pick(void);

/* Bits of the widest registers that FH_ISA permits, 0 where it asks for plain C; a name of other parts' kernels permits all. */
unsigned fh_bits_permitted(void);

/* ---- the state of one clustering ----------------------------------------------------------------------------- */

/* Where candidates are looked for, and whether the n rows of x are there already. */
typedef struct fh_elsewhere { const fh_cluster_device *device; const float *x; size_t n; bool sent; } fh_elsewhere;

/* Cluster c holds the live rows members[first[c] .. first[c + 1]); sizes never change.  Euclidean: x are rows less their mean,
 * scaled by a power of two, centre [c] the mean of its members.  Cosine: x are unit rows, centre [c] the sum of its members. */
typedef struct fh_work {
    const fh_rows *head;
    size_t v, d, k, n, ld;   /* n: live rows; ld: floats from row to row, d rounded up to FH_LANES */
    fh_cluster_metric metric;
    const fh_dots *dots;
    const fh_job *job;
    const float *map;        /* [D, D] or NULL, as in fh_cluster_params */
    double *norm;            /* [V] lengths of the rows; 0 for dead ones */
    double *size;            /* [n] lengths of the live rows as they are compared, before shift and scale */
    uint32_t *ids;           /* [n] live row -> token */
    float *x;                /* [n, ld] */
    float *square;           /* [n] |x|^2 */
    double *shift;           /* [ld] what was subtracted from every row, before the scale; zeros for cosine */
    double scale;            /* a power of two */
    float *centre;           /* [K, ld] */
    float *length;           /* [K] of centre */
    uint32_t *home;          /* [n] row -> cluster */
    uint32_t *first;         /* [K + 1] */
    uint32_t *members;       /* [n] */
    uint32_t *place;         /* [n] row -> index in members */
    fh_elsewhere elsewhere;  /* device NULL: here */
} fh_work;

/* Lengths of all rows, 0 for those that count nowhere: flagged in `dead` (may be NULL; these are not even looked at), zero, or shorter
 * than 1e-6 of the median live row.  *live: how many are left.  FH_EFORMAT names a live row that is not finite, or absurdly long. */
fh_status fh_row_lengths(double *norm, size_t *live, const fh_rows *head, const uint8_t *dead, const fh_job *job, fh_err *err);

/* fh_centroids for lengths that are known. */
fh_status fh_centroids_of(fh_clustering *c, const fh_rows *head, const double *norm, const fh_job *job, fh_err *err);

/* Fill x, square, shift and scale for w->metric; elsewhere, x has to be sent again. */
fh_status fh_work_fill(fh_work *w, fh_err *err);
/* centre and length from the members. */
fh_status fh_work_centres(fh_work *w, fh_err *err);
/* members, place from home, which must hold the sizes that `first` says. */
void fh_work_members(fh_work *w);
/* What the metric maximises, of the present centres: Euclidean sum n |mean|^2, cosine sum |sum|. */
double fh_work_gain(const fh_work *w);
/* Mean cosine of rows to their normalised sum of unit rows, whatever the metric. */
fh_status fh_work_objective(double *out, fh_work *w, fh_err *err);

/* ---- the best clusters of every row (nearest.c) ----------------------------------------------------------------- */

/* For each of n rows the `want` clusters of largest x . c * scale + bias, best first, ties to the smaller number; FH_NO_CLUSTER
 * where there are no more.  Products come from OpenBLAS in fixed tiles: the same for any number of threads, on one type of CPU;
 * or, four times as fast, from rows of eight bits: the same everywhere, and good enough for candidates that are judged again. */
typedef struct fh_nearest {
    const float *x; size_t ld;
    const uint32_t *rows;    /* [n] rows of x; NULL: 0..n-1 */
    size_t n;
    const float *c;          /* [k, ld] */
    const float *scale;      /* [k]; NULL: ones */
    const float *bias;       /* [k], -INFINITY: never; NULL: zeros */
    size_t k, want;          /* want <= FH_MAX_CANDIDATES */
    const uint32_t *not;     /* [n] a cluster that is left out; NULL: none */
    bool int8;               /* rows of eight bits, where ld is at most FH_INT8_LONGEST */
    fh_elsewhere *elsewhere; /* of x; where int8 rows may be multiplied instead; NULL, or its device NULL: here */
    int32_t *out;            /* [n, want] */
    float *score;            /* [n, want]; may be NULL */
} fh_nearest;
/* FH_EINTERRUPTED when stopped: `out` is then not to be used. */
fh_status fh_nearest_run(const fh_nearest *q, const char *what, const fh_job *job, fh_err *err);
/* Centre c of q in eight bits, row [ld]; what its products are multiplied by, and what is added.  room [ld]. */
void fh_turn_centre(const fh_turn *t, const fh_nearest *q, size_t c, int8_t *row, float *scale, float *bias, float *room);
/* The same search by q's device (elsewhere.c); q->out and q->score as fh_nearest_run fills them. */
fh_status fh_nearest_elsewhere(const fh_nearest *q, const char *what, const fh_job *job, fh_err *err);

/* ---- starts (start.c, greedy.c) and refinement (refine.c) -------------------------------------------------------- */

/* Fill home; FH_EINTERRUPTED when stopped: home is then not to be used. */
fh_status fh_start_coarse(fh_work *w, uint64_t seed, fh_err *err);
fh_status fh_start_faiss(fh_work *w, uint64_t seed, fh_err *err);
fh_status fh_start_random(fh_work *w, uint64_t seed, fh_err *err);
/* Rows to centres c [K, ld] at the sizes of `first`: rows in falling order of their best score, each to the best with room.
 * squares: subtract |c|^2 / 2 from scores (the nearest by distance instead of by product). */
fh_status fh_start_greedy(fh_work *w, const float *c, bool squares, fh_err *err);

typedef struct fh_refined { unsigned rounds; uint64_t swaps; bool stopped, spent; } fh_refined;
/* began: when the budget of p began to run. */
fh_status fh_refine(fh_work *w, const fh_cluster_params *p, double began, fh_refined *out, fh_err *err);

/* ---- FAISS (faiss.c) ---------------------------------------------------------------------------------------------- */

/* k-means over n rows of x [n, d], one iteration a call into the library, so that it can be watched and stopped between.
 * spherical: by product, with normalised centroids; else by distance.  centroids [k, d].  FH_EINTERRUPTED when stopped. */
fh_status fh_kmeans(float *centroids, const float *x, size_t n, size_t d, size_t k, unsigned iterations, bool spherical, uint64_t seed,
                    const fh_job *job, fh_err *err);

#endif
