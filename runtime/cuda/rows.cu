/* rows.cu: what is done to rows of a body between its products.
 *
 *   norm    to = (from - mean) / sqrt(variance + eps) * weight + bias     layer norm; RMS: mean 0, no bias.  One block a row
 *   place   q, k = rotate(norm(q)), rotate(norm(k)); k and v into the cache.  One warp a head at a time
 *
 * Element i of a head is rotated with element i + dims / 2; a lane reads both from memory, where they stay as they were. */
#include "runtime/cuda/body.cuh"

enum : uint32_t { NORM_THREADS = 256, NORM_WARPS = NORM_THREADS / 32, PLACE_THREADS = 128, PLACE_WARPS = PLACE_THREADS / 32 };

static __device__ float warp_sum(float x)
{
    for (int step = 16; step; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

/* The same sum in every thread; room [NORM_WARPS]. */
static __device__ float block_sum(float x, float *room)
{
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0;
    for (uint32_t w = 0; w < NORM_WARPS; w++) sum += room[w];
    return sum;
}

static __global__ void __launch_bounds__(NORM_THREADS) norm_row(norm_params c)
{
    float *room = reinterpret_cast<float *>(fh_shared());
    const float *from = c.from + static_cast<size_t>(blockIdx.x) * c.ld;
    float *to = c.to + static_cast<size_t>(blockIdx.x) * c.ld, mean = 0, part = 0;
    if (c.layer_norm) {
        for (uint32_t j = threadIdx.x; j < c.d; j += NORM_THREADS) part += from[j];
        mean = block_sum(part, room) / static_cast<float>(c.d);
        part = 0;
    }
    for (uint32_t j = threadIdx.x; j < c.d; j += NORM_THREADS) part = fmaf(from[j] - mean, from[j] - mean, part);
    float scale = 1.0f / sqrtf(block_sum(part, room) / static_cast<float>(c.d) + c.eps);
    for (uint32_t j = threadIdx.x; j < c.d; j += NORM_THREADS) {
        float y = (from[j] - mean) * scale * c.weight[j];
        if (c.bias) y += c.bias[j];
        to[j] = c.add ? to[j] + y : y;
        if (c.strange && !fh_finite(y)) atomicOr(c.strange, 1u);
    }
}

/* Value i of a head, normed and rotated. */
static __device__ float turned(const place_params &c, const float *head, const float *weight, float scale, const float *cs, const float *sn, uint32_t i)
{
    uint32_t half = c.dims / 2, pair = i < half ? i + half : i - half;
    float x = weight ? head[i] * scale * weight[i] : head[i];
    if (i >= c.dims) return x;
    float y = weight ? head[pair] * scale * weight[pair] : head[pair];
    return i < half ? x * cs[i] - y * sn[i] : x * cs[pair] + y * sn[pair];
}

/* To the nearest, ties to even; what is too large is infinite; NaN stays NaN. */
static __device__ uint32_t f16_of(float x)
{
    uint32_t u = __float_as_uint(x), sign = u >> 16 & 0x8000u, size = u & 0x7fffffffu;
    if (size > 0x7f800000u) return sign | 0x7e00u;
    if (size >= 0x47800000u) return sign | 0x7c00u;
    if (size < 0x38800000u) return sign | (__float_as_uint(__uint_as_float(size) + 0.5f) - 0x3f000000u); /* subnormal: 2^-24 is the last bit of 0.5 */
    return sign | ((size + 0xfffu + (size >> 13 & 1u) - 0x38000000u) >> 13);
}

/* Values lane, lane + 32, ... of a warp into slot `slot` of a block: as fh_kv_write. */
static __device__ void keep_value(const fh_pages &is, unsigned char *block, uint32_t d, uint32_t slot, uint32_t i, float x)
{
    size_t at = static_cast<size_t>(slot) * d + i;
    if (is.type == FH_I8) { /* 32 lanes are a group; those past the head's end have 0 */
        float most = fabsf(x);
        bool finite = fh_finite(x);
        for (int step = 16; step; step /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
        finite = __ballot_sync(0xffffffffu, finite) == 0xffffffffu;
        double inverse = finite && most > 0 ? 127 / static_cast<double>(most) : 0;
        if (i < d) reinterpret_cast<int8_t *>(block + is.scale_bytes)[at] = static_cast<int8_t>(finite ? __double2int_rn(static_cast<double>(x) * inverse) : 0);
        if (i % FH_GROUP == 0 && i < d)
            reinterpret_cast<float *>(block)[slot * ((d + FH_GROUP - 1) / FH_GROUP) + i / FH_GROUP] = finite ? most / 127 : __uint_as_float(0x7fc00000u);
    } else if (i < d) {
        if (is.type == FH_F32) reinterpret_cast<float *>(block)[at] = x;
        else reinterpret_cast<uint16_t *>(block)[at] = static_cast<uint16_t>(f16_of(x));
    }
}

static __global__ void __launch_bounds__(PLACE_THREADS) place_heads(place_params c)
{
    uint32_t r = blockIdx.x, lane = threadIdx.x % 32, position = c.position[r], slot = position % ATT_PAGE;
    const float *row = c.qkv + static_cast<size_t>(r) * c.ld;
    const float *cs = c.cos + static_cast<size_t>(r) * c.angle_step, *sn = c.sin + static_cast<size_t>(r) * c.angle_step;
    void *page = c.pages[static_cast<size_t>(c.sequence[r]) * c.most_pages + position / ATT_PAGE];
    for (uint32_t unit = threadIdx.x / 32; unit < c.heads + 2 * c.kv_heads; unit += PLACE_WARPS) {
        uint32_t block = unit - c.heads; /* of the layer's in a page: keys, then values */
        bool query = unit < c.heads, value = !query && block >= c.kv_heads;
        const float *head = row + (query ? c.q_first + unit * c.q_step : value ? c.v_first + (block - c.kv_heads) * c.v_step : c.k_first + block * c.k_step);
        const float *weight = query ? c.q_norm : value ? nullptr : c.k_norm;
        float scale = 1;
        if (weight) {
            float squares = 0;
            for (uint32_t i = lane; i < c.d; i += 32) squares = fmaf(head[i], head[i], squares);
            scale = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(c.d) + c.eps);
        }
        for (uint32_t i = lane; i < head_up(c.d, 32); i += 32) {
            float x = i >= c.d ? 0 : value ? head[i] : turned(c, head, weight, scale, cs, sn, i);
            if (!query) keep_value(c.layout, const_cast<unsigned char *>(block_at(c.layout, page, c.offset, block)), c.d, slot, i, x);
            else if (i < c.d) c.q[(static_cast<size_t>(r) * c.heads + unit) * c.d + i] = x;
        }
    }
}

struct take_params { const float *from; float *to; uint32_t n; };
static __global__ void __launch_bounds__(NORM_THREADS) take_state(take_params c)
{
    uint32_t i = blockIdx.x * NORM_THREADS + threadIdx.x;
    if (i < c.n) c.to[i] = fh_finite(c.from[i]) ? c.from[i] : 0;
}

fh_status fh_cuda_take(fh_cuda_device *d, const float *from, float *to, uint32_t n, fh_err *err)
{
    TRY(fh_launch(take_state, (n + NORM_THREADS - 1) / NORM_THREADS, NORM_THREADS, 0, d->stream, take_params{from, to, n}, false), "copying states");
    return FH_OK;
}

fh_status fh_cuda_norm(fh_cuda_device *d, const norm_params *p, fh_err *err)
{
    TRY(fh_launch(norm_row, p->n, NORM_THREADS, NORM_WARPS * sizeof(float), d->stream, *p, false), "starting a norm");
    return FH_OK;
}

fh_status fh_cuda_place(fh_cuda_device *d, const place_params *p, fh_err *err)
{
    TRY(fh_launch(place_heads, p->n, PLACE_THREADS, 0, d->stream, *p, false), "placing keys and values");
    return FH_OK;
}
