/* prefill.cu: attention of many query positions of a sequence, with all keys up to each.
 *
 *   out [n, heads, d] = softmax(scale q k^T) v       a query sees keys up to its own, the last `window` of them
 *
 * A block takes 32 queries that share a key head: positions that follow each other, and the heads of each. It walks the keys some 32 (16 for heads above
 * 128, 8 above 256) at a time, which all its queries read from shared memory; an octet of lanes has one query, its running maximum and sum, and every eighth
 * of its result's values in registers: all of them for one key, then for the next, since an index that is not known when this is compiled would put them
 * into memory (of sm_90: 40 registers and 128 bytes of stack before, for heads of 256; 64 and 8 now; 128 and 24 for heads of 512). Rows of shared memory are
 * one float longer than a head, so that the keys which the octets read at once lie in different banks; a head of 512 takes 99,520 bytes, which an sm_86
 * has just. */
#include "runtime/cuda/body.cuh"

enum : uint32_t { PREFILL_THREADS = 8 * PREFILL_ROWS };

static inline __host__ __device__ uint32_t tile_keys(uint32_t d) { return d > 256 ? 8 : d > 128 ? 16 : 32; }
static size_t shared_bytes(uint32_t d)
{
    size_t keys = tile_keys(d);
    return sizeof(float) * ((PREFILL_ROWS + 2 * keys) * (d + 1) + PREFILL_ROWS * keys);
}

/* EACH: values that a lane sums; heads of up to 8 * EACH. */
template <uint32_t EACH> static __global__ void __launch_bounds__(PREFILL_THREADS) prefill_attention(prefill_params c)
{
    uint32_t group = c.heads / c.kv_heads, heads = min(group, static_cast<uint32_t>(PREFILL_ROWS)), passes = (group + heads - 1) / heads;
    uint32_t pass = blockIdx.x % passes, kv_head = blockIdx.x / passes % c.kv_heads, keys = tile_keys(c.d), wide = c.d + 1;
    const prefill_tile tile = c.tiles[blockIdx.x / passes / c.kv_heads];
    float *q = reinterpret_cast<float *>(fh_shared()), *k = q + PREFILL_ROWS * wide, *v = k + keys * wide, *weights = v + keys * wide;
    uint32_t row = threadIdx.x / 8, t = threadIdx.x % 8, place = row / heads, in_group = pass * heads + row % heads;
    bool there = place < tile.rows && in_group < group;
    uint32_t position = tile.first + (place < tile.rows ? place : 0), end = tile.first + tile.rows;
    size_t at = static_cast<size_t>(tile.row + place) * c.heads + kv_head * group + in_group;
    void *const *pages = c.pages + static_cast<size_t>(tile.sequence) * c.most_pages;
    float *mine = q + row * wide, *weight = weights + row * keys, top = __uint_as_float(0xff800000u), sum = 0, value[EACH];
    FH_UNROLL(64)
    for (uint32_t e = 0; e < EACH; e++) value[e] = 0;
    for (uint32_t j = t; j < c.d; j += 8) mine[j] = there ? c.q[at * c.d + j] * c.scale : 0;
    for (uint32_t first = (c.window && tile.first + 1 > c.window ? tile.first + 1 - c.window : 0) / ATT_PAGE * ATT_PAGE; first < end; first += keys) {
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < keys * c.d; i += PREFILL_THREADS) {
            uint32_t key = i / c.d, j = i % c.d, slot = (first + key) % ATT_PAGE;
            bool seen = first + key < end;
            const void *page = seen ? pages[(first + key) / ATT_PAGE] : nullptr;
            k[key * wide + j] = seen ? block_value(c.layout, block_at(c.layout, page, c.offset, kv_head), c.d, slot, j) : 0;
            v[key * wide + j] = seen ? block_value(c.layout, block_at(c.layout, page, c.offset, c.kv_heads + kv_head), c.d, slot, j) : 0;
        }
        __syncthreads();
        float best = __uint_as_float(0xff800000u);
        for (uint32_t key = t; key < keys; key += 8) {
            float score = 0;
            FH_UNROLL(8)
            for (uint32_t j = 0; j < c.d; j++) score = fmaf(mine[j], k[key * wide + j], score);
            if (c.softcap > 0) score = c.softcap * tanhf(score / c.softcap);
            uint32_t p = first + key;
            if (p > position || (c.window && p + c.window <= position)) score = __uint_as_float(0xff800000u);
            weight[key] = score;
            best = fmaxf(best, score);
        }
        for (int step = 4; step; step /= 2) best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, step));
        float now = fmaxf(top, best), keep = top == now ? 1.0f : expf(top - now); /* 0 the first time; 1 while nothing is seen */
        top = now;
        sum *= keep;
        for (uint32_t key = t; key < keys; key += 8) {
            float score = weight[key], w = score == __uint_as_float(0xff800000u) ? 0 : expf(score - top);
            weight[key] = w;
            sum += w;
        }
        __syncwarp();
        FH_UNROLL(64)
        for (uint32_t e = 0; e < EACH; e++) value[e] *= keep;
        FH_UNROLL(1)
        for (uint32_t key = 0; key < keys; key++) {
            float w = weight[key];
            FH_UNROLL(64)
            for (uint32_t e = 0; e < EACH; e++)
                if (t + 8 * e < c.d) value[e] = fmaf(w, v[key * wide + t + 8 * e], value[e]);
        }
    }
    for (int step = 4; step; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (!there) return;
    float *out = c.out + static_cast<size_t>(tile.row + place) * c.ld + (kv_head * group + in_group) * c.d;
    FH_UNROLL(64)
    for (uint32_t e = 0; e < EACH; e++)
        if (t + 8 * e < c.d) out[t + 8 * e] = value[e] / sum;
}

typedef void prefill_kernel(prefill_params);
static prefill_kernel *kernel_for(uint32_t d)
{
    return d <= 64 ? prefill_attention<8> : d <= 128 ? prefill_attention<16> : d <= 256 ? prefill_attention<32> : prefill_attention<ATT_MOST_DIM / 8>;
}

fh_status fh_cuda_prefill_prepare(fh_cuda_device *d, uint32_t head_dim, fh_err *err)
{
    if (head_dim > ATT_MOST_DIM)
        return d->host->fail(err, FH_EUNSUPPORTED, "CUDA device %d (%s): attention heads of %u values (%u are the most): use --device cpu", d->ordinal,
                             d->info.name, head_dim, static_cast<uint32_t>(ATT_MOST_DIM));
    size_t shared = shared_bytes(head_dim);
    if (shared > d->shared) return fh_cuda_too_wide(d, "attention heads of", head_dim, shared, err);
    TRY(cudaFuncSetAttribute(kernel_for(head_dim), cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)), "asking for shared memory");
    return FH_OK;
}

fh_status fh_cuda_prefill(fh_cuda_device *d, const prefill_params *p, fh_err *err)
{
    uint32_t group = p->heads / p->kv_heads, passes = (group + PREFILL_ROWS - 1) / PREFILL_ROWS;
    unsigned blocks = p->n_tiles * p->kv_heads * passes;
    TRY(fh_launch(kernel_for(p->d), blocks, PREFILL_THREADS, shared_bytes(p->d), d->stream, *p, false), "starting attention");
    return FH_OK;
}
