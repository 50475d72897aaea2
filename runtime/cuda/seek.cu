/* seek.cu: what is looked for in products, so that they need not go to the host.
 *
 *   best [batch, k]     the tokens of the k largest of dots [batch, rows], a bias a row added; equal ones by the smaller token
 *   ranks [batch, k]    how many of a state's scores are before that of row of[batch, k]; with that score, and the largest
 *
 * Both are exact: nothing is summed but one bias. The best are found in two steps, so that a state is more than one block's work: of each SEEK_ROWS rows the k
 * best, by as many turns as there are to be found, in which all threads compare the best that each has left; then the same of those. One turn is a pass over
 * the products and a reduction; each further one a reduction, and for the thread that had the best a pass over its own 16. */
#include "runtime/cuda/private.cuh"

enum : uint32_t { SEEK_THREADS = 256, SEEK_WARPS = SEEK_THREADS / 32, SEEK_SHARED = 2 * SEEK_WARPS * sizeof(fh_u64) };

/* The k least of n keys, all different but for FH_NO_KEY, to `put` in order; by all threads of the block. */
template <class Keys, class Put> static __device__ void least_keys(const Keys &key, uint32_t n, uint32_t k, const Put &put)
{
    fh_u64 *room = reinterpret_cast<fh_u64 *>(fh_shared()), mine = FH_NO_KEY;
    for (uint32_t i = threadIdx.x; i < n; i += SEEK_THREADS) mine = key(i) < mine ? key(i) : mine;
    for (uint32_t at = 0; at < k; at++) {
        fh_u64 *warps = room + at % 2 * SEEK_WARPS, best = mine; /* in turn: the other half may still be read */
        for (int step = 16; step; step /= 2) {
            fh_u64 other = __shfl_xor_sync(EVERY_LANE, best, step);
            best = other < best ? other : best;
        }
        if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = best;
        __syncthreads();
        for (uint32_t w = 0; w < SEEK_WARPS; w++) best = warps[w] < best ? warps[w] : best;
        if (threadIdx.x == 0) put(at, best);
        if (mine != best || best == FH_NO_KEY) continue;
        mine = FH_NO_KEY;
        for (uint32_t i = threadIdx.x; i < n; i += SEEK_THREADS)
            if (key(i) > best && key(i) < mine) mine = key(i);
    }
}

static __global__ void __launch_bounds__(SEEK_THREADS) best_of_rows(best_params c)
{
    uint32_t s = blockIdx.x / c.parts, first = blockIdx.x % c.parts * SEEK_ROWS;
    const float *dots = c.dots + static_cast<size_t>(s) * c.rows;
    fh_u64 *keys = c.keys + static_cast<size_t>(blockIdx.x) * c.k;
    auto key = [&](uint32_t i) {
        uint32_t row = first + i, id = c.ids[row];
        float z = c.bias ? dots[row] + c.bias[row] : dots[row];
        return id == FH_NO_TOKEN || !(z == z) ? FH_NO_KEY : key_of(settle(z), id);
    };
    least_keys(key, min(static_cast<uint32_t>(SEEK_ROWS), c.rows - first), c.k, [=](uint32_t at, fh_u64 k) { keys[at] = k; });
}

static __global__ void __launch_bounds__(SEEK_THREADS) best_of_parts(best_params c)
{
    const fh_u64 *keys = c.keys + static_cast<size_t>(blockIdx.x) * c.parts * c.k;
    uint32_t *best = c.best + static_cast<size_t>(blockIdx.x) * c.k;
    static_assert(static_cast<uint32_t>(FH_NO_KEY) == FH_NO_TOKEN, "where there is no key there is no token");
    least_keys([=](uint32_t i) { return keys[i]; }, c.parts * c.k, c.k, [=](uint32_t at, fh_u64 k) { best[at] = static_cast<uint32_t>(k); });
}

/* A score as fh_head_measure gives it. */
static __device__ float score_of(const rank_params &c, float dot)
{
    float s = settle(dot);
    return c.through_bf16 ? __uint_as_float(static_cast<uint32_t>(fh_bf16_of(s)) << 16) : s;
}

/* One block a state and one of its rows. */
static __global__ void __launch_bounds__(SEEK_THREADS) rank_rows(rank_params c)
{
    uint32_t s = blockIdx.x / c.k, own = c.of[blockIdx.x], lane = threadIdx.x % 32, warp = threadIdx.x / 32, before = 0;
    uint32_t *counts = reinterpret_cast<uint32_t *>(fh_shared());
    float *tops = reinterpret_cast<float *>(counts + SEEK_WARPS), top = __uint_as_float(0xff800000u);
    const float *dots = c.dots + static_cast<size_t>(s) * c.rows;
    float mine = own == FH_NO_TOKEN ? top : score_of(c, dots[own]);
    for (uint32_t i = threadIdx.x; i < c.rows; i += SEEK_THREADS) {
        float x = score_of(c, dots[i]);
        before += x > mine || (x == mine && i != own && (i < own || c.through_bf16));
        top = fmaxf(top, x);
    }
    for (int step = 16; step; step /= 2) {
        before += __shfl_xor_sync(EVERY_LANE, before, step);
        top = fmaxf(top, __shfl_xor_sync(EVERY_LANE, top, step));
    }
    if (lane == 0) counts[warp] = before, tops[warp] = top;
    __syncthreads();
    if (threadIdx.x) return;
    for (uint32_t w = 1; w < SEEK_WARPS; w++) before += counts[w], top = fmaxf(top, tops[w]);
    c.ranks[blockIdx.x] = own == FH_NO_TOKEN ? 0 : before, c.scores[blockIdx.x] = mine;
    if (blockIdx.x % c.k == 0) c.top[s] = top;
}

fh_status fh_cuda_best(fh_cuda_device *d, const best_params *p, fh_err *err)
{
    TRY(fh_launch(best_of_rows, p->batch * p->parts, SEEK_THREADS, SEEK_SHARED, d->stream, *p, false), "looking for the best tokens");
    TRY(fh_launch(best_of_parts, p->batch, SEEK_THREADS, SEEK_SHARED, d->stream, *p, false), "looking for the best tokens");
    return FH_OK;
}

fh_status fh_cuda_ranks(fh_cuda_device *d, const rank_params *p, fh_err *err)
{
    TRY(fh_launch(rank_rows, p->batch * p->k, SEEK_THREADS, SEEK_SHARED, d->stream, *p, false), "ranking scores");
    return FH_OK;
}
