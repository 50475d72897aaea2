/* runtime/body_device.h: a body's weights and switches, and how its layers are handed to something other than this CPU's kernels.  Plain C that C++ reads
 * too. */
#ifndef FH_BODY_DEVICE_H
#define FH_BODY_DEVICE_H

#include "runtime/runtime.h"

/* ---- weights ----------------------------------------------------------------------------------------------- */

/* y = W x + b, W in place: [out, in], or [in, out] where `transposed`; data may be unaligned. */
typedef struct fh_linear { const void *data; fh_dtype dtype; size_t out, in; bool transposed; const float *bias; } fh_linear;
typedef struct fh_norm { const float *weight, *bias; } fh_norm; /* weight as it multiplies: Gemma's has its 1 added; bias: layer norms */
/* What becomes of a product: = y, += y, = act(y), = act(gate x) * y. */
typedef enum fh_then { FH_THEN_STORE, FH_THEN_ADD, FH_THEN_ACT, FH_THEN_GATE } fh_then;

typedef struct fh_layer {
    fh_norm attn_norm, mlp_norm, attn_post, mlp_post; /* post: of what a block puts out, before it is added */
    const float *q_norm, *k_norm;                     /* [head_dim] or NULL */
    fh_linear qkv[3]; unsigned n_qkv;                 /* 3: q, k, v; 1: fused */
    fh_linear o, gate, up, down;                      /* gate.data NULL: act(up x) */
    bool local;                                       /* rotated by rope_local */
    uint32_t window;                                  /* keys that a query sees, itself counted; 0: all before it */
    float scale;                                      /* of the scores */
    fh_unified unified;                               /* for decode attention on a device */
} fh_layer;

enum { FH_PAGE_TOKENS = 16 };

typedef struct fh_body_device fh_body_device;
struct fh_body_math;
struct fh_kernels;

struct fh_body {
    const fh_config *config;
    const struct fh_body_math *math;
    const struct fh_kernels *kernels;
    const fh_body_device *device;      /* who runs the layers and keeps the caches; NULL: the kernels here */
    const void *(*embedding_row)(void *ctx, uint32_t id); void *ctx;
    fh_rows embedding;                 /* data NULL: embedding_row is asked */
    fh_dtype embedding_dtype;
    fh_rows positions;                 /* learned; data NULL: none */
    fh_layer *layers; fh_norm final_norm;
    size_t d, heads, kv_heads, head_dim, ffn, n_layers;
    size_t qkv_width;                  /* of one row of q, k and v */
    size_t q_first, q_step, k_first, k_step, v_first, v_step; /* where head h of each lies in it: first + h * step */
    bool layer_norm, parallel;         /* layer norm, not RMS; both blocks read the same x */
    float eps, embed_scale, attn_softcap;
    const fh_rope *rope, *rope_local;  /* of config; NULL: none */
    uint32_t max_position;
    uint64_t bytes, weights;           /* that a token reads; that it is multiplied by */
    fh_arena *arena;
    char *name;
};

/* ---- the layers of some rows, elsewhere -------------------------------------------------------------------------- */

/* How a cache's pages are laid out: 16 tokens of all layers, [layer][k, v][kv_head] blocks of [16, head_dim] values; of int8 each block begins with its scales,
 * float32 [16, groups of 32]. */
typedef struct fh_pages { fh_dtype type; size_t block_bytes, scale_bytes, page_bytes; } fh_pages;

/* A run of rows of one sequence: row `row` of the call stands at position `first`; its pages, those of its own keys and values too. */
typedef struct fh_run { size_t row, rows, first; void *const *pages; } fh_run;

/* Rows of at most FH_CALL_ROWS tokens through all layers and the final norm. x [rows, D] comes with the tokens' embeddings and goes back as what the head
 * reads; angles [rows][global, local][cos, sin][half] as the rope has them, dims: how many elements of a head it turns. stay: x is not written, nothing is
 * waited for, and the last row's state stays there: the device's head takes it where it is given none (fh_head_call). A failure leaves the keys and values
 * of these rows undefined, and nothing else. */
typedef struct fh_body_call {
    const fh_run *runs; size_t n, rows;
    fh_pages layout;
    const float *angles; size_t half; uint32_t dims[2];
    float *x; bool stay;
} fh_body_call;
enum { FH_CALL_ROWS = 1024 };

struct fh_body_device {
    void *ctx;
    fh_status (*pages_new)(void *ctx, size_t bytes, void **pages, fh_err *err);
    void (*pages_free)(void *ctx, void *pages);
    fh_status (*pages_copy)(void *ctx, void *to, const void *from, size_t bytes, bool from_here, fh_err *err); /* from_here: `from` is memory of this CPU's */
    fh_status (*forward)(void *ctx, const fh_body_call *call, fh_err *err);
};

#endif
