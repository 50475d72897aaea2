/* runtime/cuda/attention.cuh: one query position of each sequence over its paged keys and values.
 *
 *   out [heads, d] = softmax(scale q k^T) v       q [heads, d]; k, v [length, d] of each of kv_heads heads, in pages of 16 positions
 *
 * The keys of a sequence are split among blocks. Usually partial softmaxes wait for each other's largest score, or rescale what they summed whenever a
 * larger one comes. Here all splits share one constant instead (the unified maximum of FlashDecoding++, arXiv 2311.01282): exp(score - constant) is summed
 * as it comes, and partial sums are added as they are. That is good while a split's largest score lies within SAFE of the constant. A split whose does not
 * is done again with its own maximum, running, and counted; partial results therefore carry the maximum that they are relative to, and what is put together
 * is right whichever way they were made.
 *
 * SAFE = 60: exp(60) times 2^17 keys times values up to 2^20 stays below the largest float; and of a split whose largest is exp(-60), what counts beside it,
 * down to 2^-24 of it, is still a normal number (exp(-87)).
 *
 * A block takes one sequence, one key head, one split: its four warps take pages in turn, an octet of lanes a key; the queries that share the key head read
 * it together.  Heads of more than 256 values have a kernel of their own, so that what a lane sums is registers in both (of sm_90: 255 of them and 8 bytes of
 * stack up to 256, as when there was one kernel; 160 and none above). */
#ifndef FH_ATTENTION_CUH
#define FH_ATTENTION_CUH

#include "runtime/cuda/body.cuh"

enum : uint32_t {
    ATT_THREADS = 128, ATT_WARPS = ATT_THREADS / 32,
    ATT_TOGETHER = 4       /* queries of one key head that a pass takes: their sums are registers */
};
#define ATT_SAFE FH_UNIFIED_SAFE

/* What one warp, then one block, knows of ATT_TOGETHER queries.  EACH: values of a head that a lane sums; heads of up to 32 * EACH. */
template <uint32_t EACH> struct softmax_part { float top[ATT_TOGETHER], sum[ATT_TOGETHER], value[ATT_TOGETHER][EACH]; };

/* Keys [first, last) of a page, by one warp.  q [ATT_TOGETHER, d] in shared memory, scaled. */
template <bool UNIFIED, uint32_t EACH> static __device__ void attend_page(const attention_params &c, const void *page, uint32_t kv_head, uint32_t first,
                                                                          uint32_t last, const float *q, softmax_part<EACH> &s)
{
    uint32_t lane = threadIdx.x % 32, octet = lane / 8, t = lane % 8;
    const unsigned char *keys = block_at(c.layout, page, c.offset, kv_head), *values = block_at(c.layout, page, c.offset, c.kv_heads + kv_head);
    for (uint32_t four = first / 4 * 4; four < last; four += 4) {
        uint32_t key = four + octet;
        bool there = key >= first && key < last;
        float score[ATT_TOGETHER] = {};
        for (uint32_t j = t; j < c.d; j += 8) {
            float k = there ? block_value(c.layout, keys, c.d, key, j) : 0;
            FH_UNROLL(4)
            for (uint32_t i = 0; i < ATT_TOGETHER; i++) score[i] = fmaf(k, q[i * c.d + j], score[i]);
        }
        FH_UNROLL(4)
        for (uint32_t i = 0; i < ATT_TOGETHER; i++) {
            for (int step = 4; step; step /= 2) score[i] += __shfl_xor_sync(0xffffffffu, score[i], step);
            if (c.softcap > 0) score[i] = c.softcap * tanhf(score[i] / c.softcap);
            float top = there ? score[i] : __uint_as_float(0xff800000u);
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 8));
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 16)); /* of the four keys */
            if (!UNIFIED && top > s.top[i]) {
                float keep = expf(s.top[i] - top); /* 0 the first time */
                s.sum[i] *= keep;
                for (uint32_t e = 0; e < EACH; e++) s.value[i][e] *= keep;
            }
            s.top[i] = fmaxf(s.top[i], top);
            float weight = there ? expf(score[i] - (UNIFIED ? c.constant : s.top[i])) : 0;
            for (uint32_t k = 0; k < 4; k++) {
                float w = __shfl_sync(0xffffffffu, weight, 8 * k);
                s.sum[i] += w;
                if (four + k < first || four + k >= last) continue;
                FH_UNROLL(16)
                for (uint32_t e = 0; e < EACH; e++)
                    if (lane + 32 * e < c.d) s.value[i][e] = fmaf(w, block_value(c.layout, values, c.d, four + k, lane + 32 * e), s.value[i][e]);
            }
        }
    }
}

/* One split for some queries: every warp's part. */
template <bool UNIFIED, uint32_t EACH> static __device__ void attend_split(const attention_params &c, void *const *pages, uint32_t kv_head, uint32_t first,
                                                                           uint32_t last, const float *q, softmax_part<EACH> &s)
{
    for (uint32_t i = 0; i < ATT_TOGETHER; i++) {
        s.top[i] = __uint_as_float(0xff800000u), s.sum[i] = 0;
        for (uint32_t e = 0; e < EACH; e++) s.value[i][e] = 0;
    }
    for (uint32_t page = first / ATT_PAGE + threadIdx.x / 32; page * ATT_PAGE < last; page += ATT_WARPS) {
        uint32_t begin = page * ATT_PAGE;
        attend_page<UNIFIED, EACH>(c, pages[page], kv_head, first > begin ? first - begin : 0, min(last - begin, static_cast<uint32_t>(ATT_PAGE)), q, s);
    }
}

/* The warps' parts of query i put together and stored: relative to the constant, where nothing was rescaled, else to the largest score. Says whether the
 * split left the safe range. room [ATT_WARPS * (d + 2)]. */
template <bool UNIFIED, uint32_t EACH> static __device__ bool store_part(const attention_params &c, const softmax_part<EACH> &s, uint32_t i, float *room,
                                                                         float *to, bool store)
{
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, each = c.d + 2;
    float *mine = room + warp * each;
    __syncthreads();
    if (lane == 0) mine[0] = s.top[i], mine[1] = s.sum[i];
    FH_UNROLL(16)
    for (uint32_t e = 0; e < EACH; e++)
        if (lane + 32 * e < c.d) mine[2 + lane + 32 * e] = s.value[i][e];
    __syncthreads();
    float top = room[0];
    for (uint32_t w = 1; w < ATT_WARPS; w++) top = fmaxf(top, room[w * each]);
    bool outside = UNIFIED && !(fabsf(top - c.constant) <= ATT_SAFE);
    if (store && !outside) {
        for (uint32_t j = threadIdx.x + 1; j < each; j += ATT_THREADS) {
            float sum = 0;
            for (uint32_t w = 0; w < ATT_WARPS; w++) {
                float keep = UNIFIED ? 1.0f : room[w * each] == top ? 1.0f : expf(room[w * each] - top);
                sum = fmaf(room[w * each + j], keep, sum);
            }
            to[j] = sum;
        }
        if (threadIdx.x == 0) to[0] = UNIFIED ? c.constant : top;
    }
    return outside;
}

template <uint32_t EACH> static __global__ void __launch_bounds__(ATT_THREADS) attention_split(attention_params c)
{
    float *q = reinterpret_cast<float *>(fh_shared()), *room = q + ATT_TOGETHER * c.d;
    uint32_t split = blockIdx.x % c.splits, kv_head = blockIdx.x / c.splits % c.kv_heads, n = blockIdx.x / c.splits / c.kv_heads, group = c.heads / c.kv_heads;
    uint32_t length = c.lengths[n], seen = c.window && length > c.window ? length - c.window : 0;
    uint32_t begin = split * c.split_pages * ATT_PAGE, end = min(begin + c.split_pages * ATT_PAGE, length), first = begin > seen ? begin : seen;
    void *const *pages = c.pages + static_cast<size_t>(c.tables ? c.tables[n] : n) * c.most_pages;
    const float *queries = c.q + static_cast<size_t>(c.rows ? c.rows[n] : n) * c.heads * c.d;
    for (uint32_t h = 0; h < group; h += ATT_TOGETHER) {
        uint32_t head = kv_head * group + h, some = min(static_cast<uint32_t>(ATT_TOGETHER), group - h);
        size_t step = static_cast<size_t>(c.splits) * (c.d + 2); /* from one query to the next */
        float *to = c.partial + (static_cast<size_t>(n) * c.heads + head) * step + static_cast<size_t>(split) * (c.d + 2);
        if (first >= end) { /* nothing of this split is seen */
            for (uint32_t i = threadIdx.x; i < some; i += ATT_THREADS) to[i * step] = __uint_as_float(0xff800000u), to[i * step + 1] = 0;
            continue;
        }
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < ATT_TOGETHER * c.d; i += ATT_THREADS)
            q[i] = i < some * c.d ? queries[head * c.d + i] * c.scale : 0;
        __syncthreads();
        softmax_part<EACH> s;
        bool again[ATT_TOGETHER] = {};
        bool any = !c.unified;
        if (c.unified) {
            attend_split<true, EACH>(c, pages, kv_head, first, end, q, s);
            FH_UNROLL(4)
            for (uint32_t i = 0; i < ATT_TOGETHER; i++) {
                again[i] = i < some && store_part<true, EACH>(c, s, i, room, to + i * step, i < some);
                any = any || again[i];
                if (again[i] && threadIdx.x == 0) atomicAdd(c.recomputed, static_cast<fh_u64>(1));
            }
        }
        if (!any) continue;
        __syncthreads();
        attend_split<false, EACH>(c, pages, kv_head, first, end, q, s);
        FH_UNROLL(4)
        for (uint32_t i = 0; i < ATT_TOGETHER; i++) {
            if (i < some) store_part<false, EACH>(c, s, i, room, to + i * step, again[i] || !c.unified);
        }
    }
}

/* What the splits found, put together: one block a query. */
static __global__ void __launch_bounds__(ATT_THREADS) attention_combine(attention_params c)
{
    const float *part = c.partial + static_cast<size_t>(blockIdx.x) * c.splits * (c.d + 2);
    uint32_t n = blockIdx.x / c.heads;
    float *out = c.out + static_cast<size_t>(c.rows ? c.rows[n] : n) * c.ld + blockIdx.x % c.heads * c.d, top = __uint_as_float(0xff800000u), sum = 0;
    for (uint32_t s = 0; s < c.splits; s++) top = fmaxf(top, part[static_cast<size_t>(s) * (c.d + 2)]);
    for (uint32_t s = 0; s < c.splits; s++) {
        const float *p = part + static_cast<size_t>(s) * (c.d + 2);
        if (p[1] != 0) sum = fmaf(p[1], p[0] == top ? 1.0f : expf(p[0] - top), sum);
    }
    for (uint32_t j = threadIdx.x; j < c.d; j += ATT_THREADS) {
        float value = 0;
        for (uint32_t s = 0; s < c.splits; s++) {
            const float *p = part + static_cast<size_t>(s) * (c.d + 2);
            if (p[1] != 0) value = fmaf(p[2 + j], p[0] == top ? 1.0f : expf(p[0] - top), value);
        }
        out[j] = value / sum;
    }
}

static inline size_t attention_shared(uint32_t d) { return sizeof(float) * (ATT_TOGETHER * static_cast<size_t>(d) + ATT_WARPS * (static_cast<size_t>(d) + 2)); }

#endif
