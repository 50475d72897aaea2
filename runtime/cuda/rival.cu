/* rival.cu: dense heads to measure against, and the measuring.
 *
 *   best of W h, W [V, D] bf16, h [D] float32 (fused) or bf16 (cuBLAS)
 *
 * The fused one takes no order of sums upon itself: an octet of lanes reads a row 128 bytes at a time, two sums a lane. */
#include "runtime/cuda/private.cuh"

enum : uint32_t { FUSED_THREADS = 256, FUSED_WARPS = FUSED_THREADS / 32, FUSED_ROWS = 4 };

struct fused_params {
    const unsigned char *rows; uint32_t stride;
    const uint32_t *token_of;  /* [slots] */
    uint32_t slots, hidden;
    const float *bias; float softcap;
    const float *state;        /* [D] */
    fh_u64 *best;              /* [1]; smaller is better */
};

static __device__ fh_u64 fused_key(float x, uint32_t id)
{
    uint32_t u = __float_as_uint(x == x ? x + 0.0f : __uint_as_float(0xff800000u));
    return static_cast<fh_u64>(u >> 31 ? u : ~u & 0x7fffffffu) << 32 | id;
}

static __device__ float fused_pair(uint32_t w, const float *x, float sum)
{
    return fmaf(__uint_as_float(w & 0xffff0000u), x[1], fmaf(__uint_as_float(w << 16), x[0], sum));
}

static __global__ void __launch_bounds__(FUSED_THREADS) fused_clear(fused_params c) { if (threadIdx.x == 0) c.best[0] = 0xffffffffffffffffull; }

static __global__ void __launch_bounds__(FUSED_THREADS) fused_best(fused_params c)
{
    float *x = reinterpret_cast<float *>(fh_shared());
    uint32_t lane = threadIdx.x % 32, octet = lane / 8, t = lane % 8, chunks = (c.hidden + 7) / 8;
    fh_u64 best = 0xffffffffffffffffull;
    for (uint32_t i = threadIdx.x; i < 8 * chunks; i += FUSED_THREADS) x[i] = i < c.hidden ? c.state[i] : 0;
    __syncthreads();
    for (uint32_t four = threadIdx.x / 32 * gridDim.x + blockIdx.x; FUSED_ROWS * four < c.slots; four += gridDim.x * FUSED_WARPS) {
        uint32_t slot = FUSED_ROWS * four + octet, id = slot < c.slots ? c.token_of[slot] : FH_NO_TOKEN;
        const uint4 *row = reinterpret_cast<const uint4 *>(c.rows + static_cast<size_t>(slot < c.slots ? slot : 0) * c.stride);
        float even = 0, odd = 0;
        FH_UNROLL(4)
        for (uint32_t i = t; i < chunks; i += 8) {
            uint4 w = __ldg(row + i);
            even = fused_pair(w.y, x + 8 * i + 2, fused_pair(w.x, x + 8 * i, even));
            odd = fused_pair(w.w, x + 8 * i + 6, fused_pair(w.z, x + 8 * i + 4, odd));
        }
        float dot = even + odd;
        for (int step = 4; step; step /= 2) dot += __shfl_xor_sync(0xffffffffu, dot, step);
        if (id == FH_NO_TOKEN) continue;
        if (c.bias) dot += c.bias[id];
        if (c.softcap > 0) dot = c.softcap * tanhf(dot / c.softcap);
        fh_u64 key = fused_key(dot, id);
        best = key < best ? key : best;
    }
    for (int step = 16; step; step /= 2) {
        fh_u64 other = __shfl_xor_sync(0xffffffffu, best, step);
        best = other < best ? other : best;
    }
    if (lane == 0) atomicMin(c.best, best);
}

/* The id of the best, where ids are expected. */
struct store_params { const fh_u64 *best; uint32_t *ids, n; };
static __global__ void __launch_bounds__(FUSED_THREADS) store_ids(store_params c)
{
    if (threadIdx.x < c.n) c.ids[threadIdx.x] = static_cast<uint32_t>(c.best[threadIdx.x]);
}

/* ---- one of them, enqueued ------------------------------------------------------------------------------------------- */

struct timed {
    fh_cuda_what what;
    head_params params; size_t shared;
    buffer logits, halves; /* [batch, slots] float32; [batch, D] bf16 */
};

static fh_status enqueue_fused(fh_cuda_head *h, timed *t, fh_err *err)
{
    fh_cuda_device *d = h->device;
    const head_params *c = &t->params;
    fused_params p = {h->dense.data, h->dense.stride, c->token_of, c->clusters * c->cap, c->hidden, c->bias, c->softcap, c->states, c->best};
    TRY(fh_launch(fused_clear, 1, FUSED_THREADS, 0, d->stream, p, false), "starting a fused dense head");
    TRY(fh_launch(fused_best, static_cast<unsigned>(4 * d->info.multiprocessors), FUSED_THREADS, 4 * fh_round_up(c->hidden, 8), d->stream, p, false),
        "starting a fused dense head");
    TRY(fh_launch(store_ids, 1, FUSED_THREADS, 0, d->stream, store_params{c->best, c->ids, 1}, false), "starting a fused dense head");
    return FH_OK;
}

/* The largest of logits by slot, one block a state; and states as bf16. */
struct argmax_params { const float *logits; const uint32_t *token_of; uint32_t slots, *ids; };
static __global__ void __launch_bounds__(1024) argmax(argmax_params c)
{
    fh_u64 *all = reinterpret_cast<fh_u64 *>(fh_shared()), best = 0xffffffffffffffffull;
    const float *x = c.logits + static_cast<size_t>(blockIdx.x) * c.slots;
    for (uint32_t i = threadIdx.x; i < c.slots; i += blockDim.x) {
        uint32_t id = c.token_of[i];
        fh_u64 key = fused_key(x[i], id);
        if (id != FH_NO_TOKEN && key < best) best = key;
    }
    all[threadIdx.x] = best;
    for (uint32_t half = blockDim.x / 2; half; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half && all[threadIdx.x + half] < all[threadIdx.x]) all[threadIdx.x] = all[threadIdx.x + half];
    }
    if (threadIdx.x == 0) c.ids[blockIdx.x] = static_cast<uint32_t>(all[0]);
}

struct halve_params { const float *from; uint16_t *to; uint32_t n; };
static __global__ void __launch_bounds__(FUSED_THREADS) halve(halve_params c)
{
    uint32_t i = blockIdx.x * FUSED_THREADS + threadIdx.x;
    if (i < c.n) c.to[i] = fh_bf16_of(c.from[i]);
}

/* logits [batch, slots] = states [batch, D] W^T. */
static fh_status enqueue_cublas(fh_cuda_head *h, timed *t, fh_err *err)
{
    fh_cuda_device *d = h->device;
    const head_params *c = &t->params;
    uint32_t slots = c->clusters * c->cap, n = c->batch * c->hidden;
    TRY(fh_launch(halve, (n + FUSED_THREADS - 1) / FUSED_THREADS, FUSED_THREADS, 0, d->stream,
                  halve_params{c->states, static_cast<uint16_t *>(t->halves.p), n}, false), "starting cuBLAS");
    const blas_params p = {h->dense.data, h->dense.stride / 2, t->halves.p, c->hidden, FH_BF16, slots, c->hidden, c->batch, static_cast<float *>(t->logits.p),
                           slots, false};
    fh_status rc = fh_cuda_blas(d, &p, err);
    if (rc < 0) return rc;
    TRY(fh_launch(argmax, c->batch, 1024, 1024 * sizeof(fh_u64), d->stream, argmax_params{static_cast<float *>(t->logits.p), c->token_of, slots, c->ids},
                  false), "starting cuBLAS");
    return FH_OK;
}

/* Room, and what is not there. */
static fh_status ready(fh_cuda_head *h, timed *t, const fh_head_call *call, fh_err *err)
{
    fh_cuda_device *d = h->device;
    fh_status rc = fh_cuda_prepare(h, call, &t->params, &t->shared, err);
    size_t slots = static_cast<size_t>(t->params.clusters) * t->params.cap;
    if (rc < 0 || t->what == FH_CUDA_CALL) return rc;
    if (!h->has_dense || h->dense.dtype != FH_BF16) return d->host->fail(err, FH_ENOTFOUND, "the head has no dense rows of bf16 to measure against");
    if (t->what == FH_CUDA_COPY) return fh_cuda_grow(h, &t->logits, slots * h->dense.stride, err);
    if (t->what == FH_CUDA_FUSED) {
        if (call->batch != 1) return d->host->fail(err, FH_EUSAGE, "the fused dense head takes one state");
        return FH_OK;
    }
    if ((rc = fh_cuda_grow(h, &t->logits, call->batch * slots * sizeof(float), err)) < 0 ||
        (rc = fh_cuda_grow(h, &t->halves, call->batch * t->params.hidden * 2, err)) < 0) return rc;
    return fh_cuda_blas_open(d, err);
}

static fh_status enqueue(fh_cuda_head *h, timed *t, fh_err *err)
{
    fh_cuda_device *d = h->device;
    switch (t->what) {
    case FH_CUDA_FUSED: return enqueue_fused(h, t, err);
    case FH_CUDA_CUBLAS: return enqueue_cublas(h, t, err);
    case FH_CUDA_COPY:
        TRY(cudaMemcpyAsync(t->logits.p, h->dense.data, static_cast<size_t>(t->params.clusters) * t->params.cap * h->dense.stride, cudaMemcpyDeviceToDevice,
                            d->stream), "copying");
        return FH_OK;
    default: return fh_cuda_enqueue(h, &t->params, t->shared, err);
    }
}

/* ---- timing ------------------------------------------------------------------------------------------------------------ */

struct timing { fh_cuda_head *h; timed *t; };
static fh_status enqueue_timed(void *ctx, fh_err *err)
{
    timing *c = static_cast<timing *>(ctx);
    return enqueue(c->h, c->t, err);
}

fh_status fh_cuda_time(fh_cuda_head *h, fh_cuda_what what, const fh_head_call *call, size_t runs, double *seconds, uint32_t *ids, fh_err *err)
{
    fh_cuda_device *d = h->device;
    timed t = {};
    stopwatch k = {};
    timing c = {h, &t};
    t.what = what;
    fh_status rc = ready(h, &t, call, err);
    if (rc == FH_OK) rc = fh_cuda_clock(d, &k, enqueue_timed, &c, runs, seconds, err);
    cudaError_t e = cudaSuccess;
    if (rc == FH_OK && what != FH_CUDA_COPY) e = cudaMemcpyAsync(ids, t.params.ids, call->batch * sizeof *ids, cudaMemcpyDeviceToHost, d->stream);
    if (e == cudaSuccess) e = cudaStreamSynchronize(d->stream);
    if (rc == FH_OK && e != cudaSuccess) rc = fh_cuda_failed(d, err, e, "copying results");
    h->unsettled = rc < 0;
    fh_cuda_clock_free(&k);
    buffer *all[] = {&t.logits, &t.halves};
    for (buffer *b : all) h->bytes -= b->bytes, cudaFree(b->p);
    return rc;
}
