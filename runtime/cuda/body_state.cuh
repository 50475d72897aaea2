/* body_state.cuh: a body on the device: what body.cu copies there and forward.cu runs. */
#ifndef FH_BODY_STATE_CUH
#define FH_BODY_STATE_CUH

#include "runtime/cuda/body.cuh"

struct device_norm { const float *weight, *bias; };
struct device_layer {
    device_norm attn_norm, mlp_norm, attn_post, mlp_post;
    const float *q_norm, *k_norm;
    device_linear qkv[3]; unsigned n_qkv;   /* 1: they lie one behind the other, or the checkpoint has them fused */
    device_linear o, gate, up, down;
};

/* What the launches of a decoding step depend on beside the contents of memory. */
struct step_shape { uint32_t rows, most_pages; fh_dtype type; };

struct fh_cuda_body {
    fh_cuda_device *device;
    const fh_body *b;
    fh_body_device does;
    device_layer *layers; device_norm final_norm;
    void **owned; size_t n_owned, room;     /* allocations that hold weights */
    uint64_t bytes;                         /* of device memory, without pages */
    buffer in, h, qkv, q, att, ff, partial, recomputed, halves, results; /* the last two: where there is cuBLAS */
    buffer pinned;
    fh_u64 parts;                           /* pairs of query and split that had keys, under a unified maximum */
    bool blas;
    fh_cuda_product_time *products; size_t n_products; /* what body_prefer was given */
    bool pending;                           /* the last call may still run */
    step_shape last, captured;              /* of the last call and of the graph; rows 0: none */
    cudaGraph_t graph; cudaGraphExec_t exec; bool has_graph, has_exec;
};

void fh_cuda_body_forget(fh_cuda_body *c); /* the graph */
/* Rows of `width` floats, padded with zeros; and what a library's products of more than a few rows need. */
fh_status fh_cuda_body_room(fh_cuda_body *c, buffer *b, size_t rows, size_t width, fh_err *err);
fh_status fh_cuda_body_room_for_blas(fh_cuda_body *c, size_t rows, fh_err *err);
product_kind fh_cuda_product_kind(const fh_cuda_body *c, const device_linear &w, bool gated, uint32_t rows);
fh_status fh_cuda_body_forward(void *ctx, const fh_body_call *call, fh_err *err);

#endif
