/* runtime/head.h: what the files of the head share.  Not for others: see flashhead.h and runtime.h. */
#ifndef FH_HEAD_H
#define FH_HEAD_H

#include "runtime/head_device.h"
#include "runtime/kernels.h"
#include "runtime/runtime.h"

struct fh_head {
    fh_head_parts parts;
    fh_head_info info;
    const fh_kernels *kernels;
    fh_fhead *file;              /* NULL: from parts */
    fh_rows exact;               /* what fh_head_dense_* reads, slot order; data NULL: nothing */
    uint32_t rerank;             /* candidates scored again from parts.exact */
    uint32_t *slot_of;           /* [V] */
    uint8_t *dead_map;           /* [V] */
    uint32_t *always, *forced;   /* live ids, ascending, each once: `always`, and `always` with `hot` */
    size_t n_always, n_forced;
};

/* States that are worked on together: as many as a word has bits, because a word a cluster says which of them probe it. */
enum { FH_BLOCK = 32 };

struct fh_scratch {
    const fh_head *head;
    const fh_head_device *device; /* who does fh_head_topk and its like; NULL: the kernels here */
    fh_pool *pool, *own;         /* NULL: the calling thread alone; own: freed with the scratch */
    unsigned threads;
    size_t block;                /* 1..FH_BLOCK: states at a time, so that `scores` stays within a few megabytes */
    float *scores;               /* [block, K] */
    uint64_t *chosen;            /* [block, K]: the P best as keys, or with a threshold those of them that are close */
    uint32_t n_chosen[FH_BLOCK]; /* of each state: P, or fewer */
    fh_probed probed_so_far;
    uint64_t *room;              /* [threads, K]: for selecting */
    uint32_t *probed;            /* [K] bit s: state s probes this cluster; zero between calls */
    uint32_t *list;              /* [K] */
    uint8_t *excluded;           /* [V]; zero between calls */
    void *quantized;             /* [block] rooms of fh_state_quantize; NULL where no rows are integers */
    uint64_t *heaps; size_t heaps_bytes;   /* grown by need: see head_topk.c */
    uint32_t *extras; size_t extras_bytes; /* grown by need: see fh_query_begin */
    double *watch, last;         /* [FH_STEPS] or NULL: fh_scratch_watch; and when the step under way began */
    void *draw; size_t draw_bytes;         /* grown by need: see fh_head_draw */
};

/* ---- order ------------------------------------------------------------------------------------------------------ */

/* A key orders results best first: smaller key, better result; equal values by the smaller id.  Values are not NaN and not -0. */
static inline uint64_t fh_key(float value, uint32_t id)
{
    union { float f; uint32_t u; } x = {.f = value};
    uint32_t falling = x.u >> 31 ? x.u : ~x.u & 0x7fffffffu;
    return (uint64_t)falling << 32 | id;
}

static inline uint32_t fh_key_id(uint64_t key) { return (uint32_t)key; }

static inline float fh_key_value(uint64_t key)
{
    uint32_t falling = (uint32_t)(key >> 32);
    union { uint32_t u; float f; } x = {.u = falling >> 31 ? falling : ~falling & 0x7fffffffu};
    return x.f;
}

/* No result is NaN (rows of a damaged file may hold anything; NaN ranks last, as -INFINITY) and none is -0 (it equals +0). */
static inline float fh_settle(float x) { return x == x ? x + 0.0f : -__builtin_inff(); }
/* The logit of a token from its row's dot product. */
float fh_head_logit(const fh_head_parts *p, uint32_t id, float dot);

/* The p best of values [n], in no order, 0 < p <= n.  room [n].  O(n). */
void fh_select(uint64_t *out, const float *values, size_t n, size_t p, uint64_t *room);
/* Those of the p best that are close to the best one; returns how many, at least 1. */
size_t fh_select_close(uint64_t *out, const float *values, size_t n, size_t p, float threshold, uint64_t *room);
/* A heap of the k > 0 best keys offered: heap[0] how many there are, 0 at first, then these, the worst first.  heap [k + 1]. */
void fh_heap_offer(uint64_t *heap, size_t k, uint64_t key);
/* Ascending.  room [n]. */
void fh_sort_keys(uint64_t *keys, size_t n, uint64_t *room);
/* Ascending, each once; returns how many. */
size_t fh_sort_ids(uint32_t *ids, size_t n);

/* ---- steps ------------------------------------------------------------------------------------------------------ */

/* Rows a task takes so that handing it out costs little beside it; below FH_ALONE_BYTES in all, threads are not woken. */
enum { FH_TASK_BYTES = 128 << 10, FH_ALONE_BYTES = 256 << 10 };
static inline fh_pool *fh_pool_for(fh_pool *pool, size_t bytes) { return bytes < FH_ALONE_BYTES ? NULL : pool; }

/* The time since the last call of either goes to a step, where the scratch is watched. */
static inline void fh_step_begins(fh_scratch *s) { if (s->watch) s->last = fh_now(); }
static inline void fh_step_done(fh_scratch *s, fh_step step)
{
    if (!s->watch) return;
    double now = fh_now();
    s->watch[step] += now - s->last, s->last = now;
}

/* Make m states ready, the first of which is number `first` of the caller's.  room: m of fh_state_bytes, where int8 rows are read (or
 * NULL).  FH_EUSAGE names a number that is not finite. */
fh_status fh_head_states(const fh_head *head, fh_state *out, const float *states, size_t first, size_t m, void *room, fh_err *err);
bool fh_head_has_integers(const fh_head *head);
/* All centroid scores of m states: out [m, K]. */
void fh_head_centroid_scores(const fh_head *head, fh_pool *pool, const fh_state *const *states, size_t m, float *out);
/* fh_head_slot_logits, or fh_head_cluster_scores, by products that a device makes with what was put there (NULL: here). */
fh_status fh_head_measure(const fh_head *head, bool slots, const fh_dots_device *device, void *there, fh_pool *pool, const float *states, size_t batch,
                          float *out, fh_err *err);
/* fh_matrix_ranks, by a device. */
fh_status fh_head_ranks(const fh_head *head, const fh_dots_device *device, void *there, const float *states, size_t batch, const fh_cluster_ranks_of *of,
                        fh_err *err);
uint32_t fh_head_probes(const fh_head *head, uint32_t asked);
float fh_head_threshold(const fh_head *head, uint32_t asked); /* 0: none */
/* scratch->chosen [m, P], n_chosen [m]: the best clusters of each state, as a query of so many probes has them. */
void fh_head_choose(const fh_head *head, fh_scratch *scratch, const fh_state *const *states, size_t m, uint32_t asked);

/* FH_EUSAGE: what fh_sample refuses. */
fh_status fh_sampling_check(const fh_sampling *how, const double *random, size_t n, fh_err *err);
fh_status fh_head_need_exact(const fh_head *head, fh_err *err); /* FH_ENOTFOUND where there are none */
fh_status fh_scratch_check(const fh_head *head, const fh_scratch *scratch, fh_err *err);
/* Make *p hold at least `bytes`; what it held is lost. */
fh_status fh_scratch_grow(void **p, size_t *have, size_t bytes, fh_err *err);

/* Check a query and set up what it asks for in the scratch: `excluded`, and `extras` = live ids that are candidates wherever they lie
 * (always, hot, include, less exclude), ascending, each once.  A query of NULL is the default one.  Every successful begin is ended. */
fh_status fh_query_begin(const fh_head *head, fh_scratch *scratch, const fh_query *query, size_t *n_extras, fh_err *err);
void fh_query_end(fh_scratch *scratch, const fh_query *query);

#endif
