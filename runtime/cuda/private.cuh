/* runtime/cuda/private.cuh: what the files of the backend share. */
#ifndef FH_CUDA_PRIVATE_CUH
#define FH_CUDA_PRIVATE_CUH

#include "runtime/cuda/backend.h"
#include "runtime/cuda/device.cuh"

typedef unsigned long long fh_u64; /* as CUDA's atomics have it */

/* As fh_f16_to_f32: exact, subnormals too. */
static __device__ __forceinline__ float fh_f16_value(uint32_t h)
{
    uint32_t sign = (h & 0x8000u) << 16, rest = h & 0x7fffu;
    if (rest >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
    return __uint_as_float(sign | __float_as_uint(__uint_as_float(rest << 13) * 0x1p112f));
}

static __device__ __forceinline__ bool fh_finite(float x) { return fabsf(x) <= 3.402823466e38f; }

/* To the nearest, ties to even; NaN stays NaN. */
static __device__ __forceinline__ uint16_t fh_bf16_of(float x)
{
    uint32_t u = __float_as_uint(x);
    return x != x ? 0x7fc0 : static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/* ---- keys: as runtime/head.h, the smaller the better -------------------------------------------------------------------------- */

enum : uint32_t { EVERY_LANE = 0xffffffffu };
#define FH_NO_KEY 0xffffffffffffffffull

static __device__ __forceinline__ uint32_t falling(float value)
{
    uint32_t u = __float_as_uint(value);
    return u >> 31 ? u : ~u & 0x7fffffffu;
}

static __device__ __forceinline__ float rising(uint32_t f) { return __uint_as_float(f >> 31 ? f : ~f & 0x7fffffffu); }
static __device__ __forceinline__ fh_u64 key_of(float value, uint32_t id) { return static_cast<fh_u64>(falling(value)) << 32 | id; }
static __device__ __forceinline__ float settle(float x) { return x == x ? x + 0.0f : __uint_as_float(0xff800000u); }

/* ---- what a launch of the head is given ------------------------------------------------------------------------------------ */

/* Rows in device memory, 64 bytes or a multiple apart, zeros past the last element. */
struct head_rows {
    const unsigned char *data;
    const void *scales;               /* float32 [rows] for int8, bf16 [rows, groups] for int4 */
    uint32_t stride, groups;
    fh_dtype dtype;
};

/* Where the parts of one state lie in shared memory, in bytes; 0: left out.  The scale, a double, is at 0. */
struct state_layout { uint32_t floats, hi, lo, quads, bytes; };

struct head_params {
    uint32_t hidden, clusters, cap;
    head_rows centroids, rows, exact; /* rows: those scored in stage 2, in slot order */
    bool exact_by_token;
    const uint32_t *token_of;         /* [K * cap] live token of a slot, or FH_NO_TOKEN */
    const uint32_t *slot_of;          /* [V] */
    const float *bias;                /* [V] or NULL */
    float softcap;

    const float *states;              /* [batch, D] */
    uint32_t batch, probes, kept, rerank, k;
    bool all;                         /* P = K: every row, nothing routed */
    float threshold;                  /* of the P best clusters those that close to the best one; 0: all */
    uint32_t *chosen;                 /* [batch] how many these are; counted where there is a threshold */
    const uint32_t *extras; uint32_t n_extras;
    const uint8_t *excluded;          /* [V] or NULL */
    uint32_t room;                    /* candidates a state may have */
    state_layout layout;              /* of the states of stages 1 and 2 */
    uint32_t tile;                    /* states that shared memory holds */

    uint32_t *falls;                  /* [batch, K] scores, as the upper half of a key */
    fh_u64 *probed;                   /* [K] bit s: state s probes the cluster */
    uint32_t *list;                   /* [K] clusters that some state probes */
    uint32_t *counters;               /* [0] entries of list; [1], [2] arrivals and departures of blocks */
    uint32_t *counts;                 /* [batch] candidates */
    fh_u64 *best;                     /* [batch] where one candidate is kept and none is reranked */
    fh_u64 *candidates;               /* [batch, room] keys */
    const double *random;             /* [batch] numbers of [0, 1) to draw by; NULL: the best.  Then k is 1 and kept is R */
    float temperature, top_p, min_p; uint32_t top_k;
    uint32_t *ids; float *logits;     /* [batch, k] */
};

static inline __host__ __device__ uint32_t head_up(uint32_t n, uint32_t to) { return (n + to - 1) / to * to; }

static inline __host__ __device__ state_layout layout_for(uint32_t hidden, bool floats, bool integers, bool quads)
{
    uint32_t line = head_up(hidden, 128), at = 16;
    state_layout l = {0, 0, 0, 0, 0};
    if (floats) l.floats = at, at += 4 * line;
    if (integers) l.hi = at, at += line, l.lo = at, at += line;
    if (quads) l.quads = at, at += line;
    l.bytes = at;
    return l;
}

/* ---- devices and heads -------------------------------------------------------------------------------------------- */

struct fh_cuda_device {
    fh_cuda_info info;
    const fh_cuda_host *host;
    int ordinal;
    size_t shared;            /* bytes that a block may have */
    cudaStream_t stream; bool has_stream;
    void *blas, *blas_library, *blas_gemm; /* cuBLAS once it was opened */
    /* What a body's last call left for the head: a state, and whether it is strange. NULL: nothing. */
    const float *left; const uint32_t *left_strange; uint32_t left_width;
    /* When the body began it and ended it, and the head ended; and the sums of what lay between. */
    cudaEvent_t events[3]; unsigned n_events; double body_seconds, head_seconds;
};

/* Device memory that grows by need. */
struct buffer { void *p; size_t bytes; };

struct fh_cuda_head {
    fh_cuda_device *device;
    head_params fixed;        /* what no call changes */
    head_rows tokens, dense;
    uint32_t vocab, n_always, n_forced;
    bool has_dense, apart, unsettled; /* unsettled: a call failed, counters may be anything */
    buffer centroids, centroid_scales, rows, row_scales, exact, dense_rows, token_of, slot_of, bias, always, forced;
    buffer states, falls, probed, list, counters, counts, best, candidates, extras, excluded, random, results;
    buffer pinned_in, pinned_out;
    uint64_t bytes;
    unsigned blocks; size_t blocks_for; /* the launch that fills the device, and the shared memory it is for */
};

/* An event pair, a graph, and memory to overwrite the L2 cache with.  Zeroed at first. */
struct stopwatch { cudaEvent_t begin, end; cudaGraph_t graph; cudaGraphExec_t exec; bool has_begin, has_end, has_graph, has_exec; void *flush; };
/* seconds [runs] of what enqueue(ctx) puts into the device's stream, through a graph, the L2 cache overwritten before each. */
fh_status fh_cuda_clock(fh_cuda_device *d, stopwatch *k, fh_status (*enqueue)(void *ctx, fh_err *err), void *ctx, size_t runs, double *seconds, fh_err *err);
void fh_cuda_clock_free(stopwatch *k);
fh_status fh_cuda_attend(fh_cuda_device *d, const fh_cuda_attention *a, float *out, uint64_t *recomputed, uint64_t *parts, size_t runs, double *seconds,
                         fh_err *err);
fh_status fh_cuda_clusterer_new(fh_cuda_clusterer **out, fh_cuda_device *d, size_t n, size_t ld, size_t k, fh_err *err);
void fh_cuda_clusterer_free(fh_cuda_clusterer *c);
uint64_t fh_cuda_clusterer_bytes(const fh_cuda_clusterer *c);
fh_cluster_device fh_cuda_clusterer_use(fh_cuda_clusterer *c);
fh_status fh_cuda_clusterer_time(fh_cuda_clusterer *c, size_t n, size_t want, size_t runs, double *seconds, fh_err *err);
fh_status fh_cuda_multiplier_new(fh_cuda_multiplier **out, fh_cuda_device *d, const fh_rows *shapes, size_t n, fh_err *err);
void fh_cuda_multiplier_free(fh_cuda_multiplier *m);
uint64_t fh_cuda_multiplier_bytes(const fh_cuda_multiplier *m);
fh_dots_device fh_cuda_multiplier_use(fh_cuda_multiplier *m);
fh_status fh_cuda_multiplier_time(fh_cuda_multiplier *m, void *there, size_t n, size_t runs, double *seconds, fh_err *err);
fh_status fh_cuda_failed(const fh_cuda_device *d, fh_err *err, cudaError_t e, const char *doing);
#define TRY(call, doing) \
    do { \
        cudaError_t e_ = (call); \
        if (e_ != cudaSuccess) return fh_cuda_failed(d, err, e_, doing); \
    } while (0)

/* y [n, out], or what is added to it, = x [n, in] W^T; W and x both of bf16 or both of float32, lengths of rows in elements. */
struct blas_params { const void *w; uint32_t ldw; const void *x; uint32_t ldx; fh_dtype dtype; uint32_t out, in, n; float *y; uint32_t ldy; bool add; };
fh_status fh_cuda_blas_open(fh_cuda_device *d, fh_err *err); /* FH_ENOTFOUND: there is none; once is enough */
void fh_cuda_blas_close(fh_cuda_device *d);
fh_status fh_cuda_blas(fh_cuda_device *d, const blas_params *p, fh_err *err);

/* What is looked for in dots [batch, rows] (seek.cu): nothing is allocated, copied or waited for. */
enum : uint32_t { SEEK_ROWS = 4096 };   /* of which one block finds the best */
struct best_params {
    const float *dots; uint32_t rows, batch, k, parts;  /* parts: rows / SEEK_ROWS, rounded up */
    const uint32_t *ids; const float *bias;             /* [rows]: FH_NO_TOKEN where a row does not count; or NULL */
    fh_u64 *keys;                                       /* [batch, parts, k] */
    uint32_t *best;                                     /* [batch, k]: FH_NO_TOKEN where fewer count */
};
struct rank_params {
    const float *dots; uint32_t rows, batch, k;
    bool through_bf16;                                  /* scores are rounded, and equal ones all come before */
    const uint32_t *of;                                 /* [batch, k]: FH_NO_TOKEN: rank 0 */
    uint32_t *ranks; float *scores, *top;               /* [batch, k], [batch, k], [batch] */
};
fh_status fh_cuda_best(fh_cuda_device *d, const best_params *p, fh_err *err);
fh_status fh_cuda_ranks(fh_cuda_device *d, const rank_params *p, fh_err *err);

/* to [n] = from, 0 where that is not finite: the head's integers are made of finite states, whatever becomes of its answer (rows.cu). */
fh_status fh_cuda_take(fh_cuda_device *d, const float *from, float *to, uint32_t n, fh_err *err);

/* At least so many bytes of device memory (counted in *total), or of pinned; what was there is lost. */
fh_status fh_cuda_room(fh_cuda_device *d, uint64_t *total, buffer *b, size_t bytes, fh_err *err);
fh_status fh_cuda_pin(fh_cuda_device *d, buffer *b, size_t bytes, fh_err *err);
fh_status fh_cuda_grow(fh_cuda_head *h, buffer *b, size_t bytes, fh_err *err);
static inline uint32_t device_stride(const fh_rows *m) { return static_cast<uint32_t>(fh_round_up(fh_row_bytes(m->dtype, m->cols), 64)); }
/* Rows that far apart, zeros past their last element whatever the host has there; and their scales, where they have some.  The copies are waited
 * for by the caller. */
fh_status fh_cuda_copy_rows(fh_cuda_device *d, uint64_t *total, head_rows *out, buffer *b, buffer *scales, const fh_rows *m, const void *from_scales,
                            fh_err *err);
fh_status fh_cuda_too_wide(const fh_cuda_device *d, const char *what, uint32_t n, size_t shared, fh_err *err);
/* FH_ENOMEM, saying how much `what` needs and how much is free, where that is too little. */
fh_status fh_cuda_fits(fh_cuda_device *d, const char *what, uint64_t bytes, fh_err *err);
/* Everything that a launch for `call` (at most FH_CUDA_BATCH states) needs, with the states on the device; results will be in h->results, ids and then
 * logits. */
fh_status fh_cuda_prepare(fh_cuda_head *h, const fh_head_call *call, head_params *c, size_t *shared, fh_err *err);
/* The launch itself: nothing is allocated, copied or waited for. */
fh_status fh_cuda_enqueue(fh_cuda_head *h, const head_params *c, size_t shared, fh_err *err);
/* What the table offers of a body (body.cu). */
fh_status fh_cuda_body_new(fh_cuda_body **out, fh_cuda_device *d, const fh_body *b, fh_err *err);
void fh_cuda_body_free(fh_cuda_body *c);
uint64_t fh_cuda_body_bytes(const fh_cuda_body *c);
const fh_body_device *fh_cuda_body_does(const fh_cuda_body *c);
fh_status fh_cuda_body_attention(fh_cuda_body *c, uint64_t *recomputed, uint64_t *parts, fh_err *err);
fh_status fh_cuda_body_measure(fh_cuda_body *c, size_t runs, fh_cuda_product_time *times, size_t room, size_t *n, fh_err *err);
fh_status fh_cuda_body_prefer(fh_cuda_body *c, const fh_cuda_product_time *times, size_t n, fh_err *err);
fh_status fh_cuda_time(fh_cuda_head *h, fh_cuda_what what, const fh_head_call *call, size_t runs, double *seconds, uint32_t *ids, fh_err *err);

#endif
