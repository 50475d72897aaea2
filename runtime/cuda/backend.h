/* runtime/cuda/backend.h: what libfhcuda.so offers and how fhtool asks for it.
 *
 * The shared object is opened at run time (runtime/device.c), so that one binary runs with and without an NVIDIA driver.  It exports one
 * symbol, fh_cuda_backend, which gives a table of functions.  Everything here is plain C; lengths are in elements unless named otherwise.
 * The same sources are compiled against a host emulation of blocks, warps and barriers (tests/emu) and tested there.
 */
#ifndef FH_CUDA_BACKEND_H
#define FH_CUDA_BACKEND_H

#ifdef __cplusplus
extern "C" {
#endif

#ifdef __cplusplus /* our headers are C: a compound literal in one of them is no matter */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpedantic"
#endif
#include "cluster/cluster.h"
#include "runtime/body_device.h"
#include "runtime/head_device.h"
#ifdef __cplusplus
#pragma GCC diagnostic pop
#endif

/* Grows whenever this file changes what it means: a shared object of another build is refused. */
enum { FH_CUDA_ABI = 5 };
#define FH_CUDA_SHAPES \
    (1000000 * sizeof(fh_head_parts) + 1000 * sizeof(fh_head_call) + sizeof(fh_cluster_search) + 10 * sizeof(fh_dots_device) + sizeof(fh_err) + \
     1000 * sizeof(struct fh_body) + 100 * sizeof(fh_layer) + 10 * sizeof(fh_config) + sizeof(fh_body_call))
enum {
    FH_CUDA_BATCH = 64,   /* states of one launch: as many as a word has bits */
    FH_CUDA_FOUND = 64,   /* tokens of one state that are looked for in its products, or ranked */
    FH_CUDA_KEPT = 2048   /* candidates of one state that are ranked on the device: k, and R + k - 1 more where the head reranks */
};

typedef struct fh_cuda_device fh_cuda_device;
typedef struct fh_cuda_clusterer fh_cuda_clusterer; /* rows and centres of a clustering in device memory */
typedef struct fh_cuda_multiplier fh_cuda_multiplier; /* matrices in device memory, and the scratch of one caller */
typedef struct fh_cuda_head fh_cuda_head; /* a head's arrays in device memory, and the scratch of one caller */
typedef struct fh_cuda_body fh_cuda_body; /* a body's weights in device memory, and the scratch of one caller */

/* What is timed. FUSED reads the dense bf16 rows 16 bytes at a time, multiplies and keeps the best, batch 1: the fastest that a head which reads everything
 * can be; CUBLAS multiplies and looks for the largest after; COPY moves the dense rows' bytes from one place of the device's memory to another. */
typedef enum fh_cuda_what { FH_CUDA_CALL, FH_CUDA_FUSED, FH_CUDA_CUBLAS, FH_CUDA_COPY } fh_cuda_what;

/* What the shared object uses of the program. */
typedef struct fh_cuda_host {
    void *(*allocate)(size_t n, size_t size);       /* zeroed; NULL when out of memory */
    void (*release)(void *p);                       /* accepts NULL */
    fh_status (*fail)(fh_err *err, fh_status code, const char *fmt, ...) FH_PRINTF(3, 4);
} fh_cuda_host;

typedef struct fh_cuda_info {
    char name[256];
    int major, minor;             /* compute capability */
    int multiprocessors;
    int driver, runtime;          /* CUDA versions, 1000 * major + 10 * minor */
    uint64_t memory_bytes, free_bytes;
    bool together;                /* cooperative launches: the head is one kernel */
} fh_cuda_info;

/* A head to copy to the device.  Nothing is borrowed once fh_cuda_table.head_new has returned. */
typedef struct fh_cuda_source {
    const fh_head_parts *parts;
    fh_rows dense;                                  /* [K * cap, D] in slot order, float rows: the dense head; data NULL: none */
    const uint32_t *slot_of; const uint8_t *dead;   /* [V] */
    const uint32_t *always, *forced;                /* live ids, ascending: without and with the hot list */
    size_t n_always, n_forced;
} fh_cuda_source;

/* Attention of a decoding step, by itself: the kernel and the measure of it (see attention.cuh).  All pointers are of host memory. */
typedef struct fh_cuda_attention {
    const float *q;                                 /* [n, heads, d] */
    const void *const *pages;                       /* [n, most_pages]: pages [2][kv_heads][16][d], keys and then values; those past a length may be NULL */
    const uint32_t *lengths;                        /* [n] keys, the query's own the last; 1 to 16 * most_pages */
    size_t n, heads, kv_heads, d, most_pages, splits; /* heads is a multiple of kv_heads; d at most 512; splits 0: as many as fill the device */
    uint32_t window;                                /* keys that a query sees; 0: all */
    fh_dtype dtype;                                 /* of pages: f32, f16 or bf16 */
    float scale, softcap, constant;                 /* softcap 0: none; constant: what all splits of a unified maximum are relative to */
    bool unified;                                   /* else running maxima */
} fh_cuda_attention;

/* Times of one product of a body, y [rows, out] = x [rows, in] W^T, by each kernel that can (0: it cannot): weights read once for up to 8 rows; tiles;
 * cuBLAS. */
enum { FH_PRODUCT_FEW, FH_PRODUCT_TILE, FH_PRODUCT_BLAS, FH_PRODUCTS };
typedef struct fh_cuda_product_time { uint32_t out, in, rows; fh_dtype dtype; bool gated; double seconds[FH_PRODUCTS]; } fh_cuda_product_time;

typedef struct fh_cuda_table {
    uint32_t abi;
    size_t shapes;                                  /* FH_CUDA_SHAPES: of structs that others change */
    const char *version;                            /* of the program it was built with */
    /* FH_ENOTFOUND: no driver or no device; FH_EUNSUPPORTED: a device that this build has no code for.  ordinal: as the driver counts. */
    fh_status (*device_open)(fh_cuda_device **out, int ordinal, const fh_cuda_host *host, fh_err *err);
    void (*device_close)(fh_cuda_device *d);        /* accepts NULL; after its heads */
    const fh_cuda_info *(*device_info)(const fh_cuda_device *d);
    /* FH_ENOMEM says how much it needs and how much is free; FH_EUNSUPPORTED: a hidden size that shared memory does not hold. */
    fh_status (*head_new)(fh_cuda_head **out, fh_cuda_device *d, const fh_cuda_source *source, fh_err *err);
    void (*head_free)(fh_cuda_head *h);             /* accepts NULL */
    uint64_t (*head_bytes)(const fh_cuda_head *h);  /* of device memory */
    /* fh_head_device.topk.  FH_EUSAGE: kept is above FH_CUDA_KEPT. */
    fh_status (*head_topk)(fh_cuda_head *h, const fh_head_call *call, uint32_t *ids, float *logits, fh_err *err);
    /* Several kernels in place of one, even where the device takes one: for tests and measurements. */
    void (*head_apart)(fh_cuda_head *h, bool apart);
    /* Times of `runs` launches, by the device's clock, each after its L2 cache was overwritten and through a graph that was captured once.  Nothing is copied
     * within.  ids [batch] gets the last run's best tokens (k is 1).  At most FH_CUDA_BATCH states.  FH_ENOTFOUND: no cuBLAS, or no dense rows of bf16. */
    fh_status (*head_time)(fh_cuda_head *h, fh_cuda_what what, const fh_head_call *call, size_t runs, double *seconds, uint32_t *ids, fh_err *err);
    /* out [n, heads, d]. *recomputed counts the pairs of query and split that left the range of the unified maximum, of *parts. seconds [runs] (runs 0:
     * none) by the device's clock, its L2 cache overwritten before each. FH_EUSAGE: a shape out of range. */
    fh_status (*attend)(fh_cuda_device *d, const fh_cuda_attention *a, float *out, uint64_t *recomputed, uint64_t *parts, size_t runs, double *seconds,
                        fh_err *err);
    /* Room for n rows of ld bytes (a multiple of 16) and k centres.  FH_ENOMEM says how much it needs and how much is free. */
    fh_status (*clusterer_new)(fh_cuda_clusterer **out, fh_cuda_device *d, size_t n, size_t ld, size_t k, fh_err *err);
    void (*clusterer_free)(fh_cuda_clusterer *c);       /* accepts NULL */
    uint64_t (*clusterer_bytes)(const fh_cuda_clusterer *c); /* of device memory */
    fh_cluster_device (*clusterer_use)(fh_cuda_clusterer *c); /* good until it is freed; FH_EUSAGE: beyond the room there is, or want above 64 */
    /* Times of `runs` searches of the `want` nearest of all centres for rows 0..n-1, as attend times: nothing is copied within. */
    fh_status (*clusterer_time)(fh_cuda_clusterer *c, size_t n, size_t want, size_t runs, double *seconds, fh_err *err);
    /* For matrices of these shapes, n of them at most together; their data is not looked at.  FH_ENOMEM says how much it needs and how much is free;
     * FH_EUNSUPPORTED: rows of another encoding, or too wide for shared memory. */
    fh_status (*multiplier_new)(fh_cuda_multiplier **out, fh_cuda_device *d, const fh_rows *shapes, size_t n, fh_err *err);
    void (*multiplier_free)(fh_cuda_multiplier *m);     /* accepts NULL; after its matrices */
    uint64_t (*multiplier_bytes)(const fh_cuda_multiplier *m); /* of device memory */
    fh_dots_device (*multiplier_use)(fh_cuda_multiplier *m); /* good until it is freed; FH_EUSAGE: beyond the room there is */
    /* Times of `runs` products of n states, as attend times, with what its `put` put there and with whatever states are there: nothing is copied within. */
    fh_status (*multiplier_time)(fh_cuda_multiplier *m, void *there, size_t n, size_t runs, double *seconds, fh_err *err);
    /* The body is borrowed until body_free, for its switches and rope; its weights are copied. FH_ENOMEM says how much it needs and how much is free;
     * FH_EUNSUPPORTED: attention heads of more than 512 values. */
    fh_status (*body_new)(fh_cuda_body **out, fh_cuda_device *d, const fh_body *body, fh_err *err);
    void (*body_free)(fh_cuda_body *c);             /* accepts NULL; after the caches */
    uint64_t (*body_bytes)(const fh_cuda_body *c);  /* of device memory, without the caches */
    const fh_body_device *(*body_does)(const fh_cuda_body *c); /* for fh_body.device; borrowed until body_free */
    /* Of the decoding steps so far: pairs of query and split under a unified maximum, and how many of them left its range and were done again. */
    fh_status (*body_attention)(fh_cuda_body *c, uint64_t *recomputed, uint64_t *parts, fh_err *err);
    /* Every product of the body, of 1 to 256 rows, by every kernel: medians of `runs`, the L2 cache overwritten before each; at most `room` of them. */
    fh_status (*body_measure)(fh_cuda_body *c, size_t runs, fh_cuda_product_time *times, size_t room, size_t *n, fh_err *err);
    /* From now on each product takes the kernel that was fastest, of the entry with the fewest rows that are not fewer than its own. */
    fh_status (*body_prefer)(fh_cuda_body *c, const fh_cuda_product_time *times, size_t n, fh_err *err);
    /* Of all states that a body left to the head, by the device's clock: what the body took for them, and what the head took after. */
    void (*device_times)(const fh_cuda_device *d, double *body_seconds, double *head_seconds);
} fh_cuda_table;

const fh_cuda_table *fh_cuda_backend(void);
#define FH_CUDA_SYMBOL "fh_cuda_backend"

#ifdef __cplusplus
}
#endif
#endif
