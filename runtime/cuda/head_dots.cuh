/* runtime/cuda/head_dots.cuh: rows of a head times states, as the definition (runtime/kernels.h) has it bit for bit: see head_kernels.cuh. */
#ifndef FH_HEAD_DOTS_CUH
#define FH_HEAD_DOTS_CUH

#include "runtime/cuda/private.cuh"

enum : uint32_t {
    HEAD_THREADS = 256, HEAD_WARPS = HEAD_THREADS / 32,
    ROWS = 4, LANES = 8,          /* rows a warp takes at once, lanes that share one */
    SEVERAL = 4                   /* states that are multiplied with one reading of a row */
};

/* This warp's number among all, neighbours in different blocks, so that a little work is spread over all multiprocessors. */
static __device__ uint32_t warp_number(void) { return threadIdx.x / 32 * gridDim.x + blockIdx.x; }

static __device__ fh_u64 everybody(uint32_t n) { return n >= 64 ? ~0ull : (1ull << n) - 1; }

/* ---- states -------------------------------------------------------------------------------------------------------- */

static __device__ int packed(const int *q) { return static_cast<int>((q[0] & 255u) | (q[1] & 255u) << 8 | (q[2] & 255u) << 16 | (q[3] & 255u) << 24); }

/* Four elements of a state as integers: fh_state_quantize. */
static __device__ void quantize_four(const float *x, double inverse, const state_layout &l, uint32_t quad, unsigned char *to)
{
    int hi[4], lo[4], sum = 0;
    for (int j = 0; j < 4; j++) {
        int v = __double2int_rn(static_cast<double>(x[j]) * inverse);
        hi[j] = (v + 128) >> 8;
        lo[j] = v - 256 * hi[j];
        sum += v;
    }
    reinterpret_cast<int *>(to + l.hi)[quad] = packed(hi);
    reinterpret_cast<int *>(to + l.lo)[quad] = packed(lo);
    if (l.quads) reinterpret_cast<int *>(to + l.quads)[quad] = -8 * sum;
}

/* n states from number `first` on into shared memory, by all threads of the block. */
static __device__ void prepare(const head_params &c, const state_layout &l, uint32_t first, uint32_t n, float *partial, unsigned char *to)
{
    uint32_t tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
    __syncthreads(); /* nobody reads what was there before */
    if (l.hi) {
        for (uint32_t s = 0; s < n; s++) {
            const float *x = c.states + static_cast<size_t>(first + s) * c.hidden;
            float max = 0;
            for (uint32_t i = tid; i < c.hidden; i += HEAD_THREADS) max = fmaxf(max, fabsf(x[i]));
            for (int step = 16; step; step /= 2) max = fmaxf(max, __shfl_xor_sync(EVERY_LANE, max, step));
            if (lane == 0) partial[s * HEAD_WARPS + warp] = max;
        }
        __syncthreads();
    }
    for (uint32_t s = 0; s < n; s++) {
        const float *x = c.states + static_cast<size_t>(first + s) * c.hidden;
        unsigned char *state = to + static_cast<size_t>(s) * l.bytes;
        float max = 0;
        for (uint32_t w = 0; l.hi && w < HEAD_WARPS; w++) max = fmaxf(max, partial[s * HEAD_WARPS + w]);
        double inverse = max > 0 ? 32639 / static_cast<double>(max) : 0;
        if (tid == 0) *reinterpret_cast<double *>(state) = static_cast<double>(max) / 32639;
        for (uint32_t quad = tid; quad < head_up(c.hidden, 128) / 4; quad += HEAD_THREADS) {
            float v[4];
            for (uint32_t j = 0; j < 4; j++) v[j] = 4 * quad + j < c.hidden ? x[4 * quad + j] : 0;
            for (uint32_t j = 0; l.floats && j < 4; j++) reinterpret_cast<float *>(state + l.floats)[4 * quad + j] = v[j];
            if (l.hi) quantize_four(v, inverse, l, quad, state);
        }
    }
    __syncthreads();
}

/* ---- dot products --------------------------------------------------------------------------------------------------- */

/* One row against N states, by the LANES lanes of an octet, t the lane's number in it; all of them get the results. */

static __device__ int octet_sum(int x)
{
    for (int step = LANES / 2; step; step /= 2) x += __shfl_xor_sync(EVERY_LANE, x, step);
    return x;
}

/* The definition's tree: sums 2 t and 2 t + 1 of 16, in the order 8, 4, 2, 1. */
static __device__ float octet_tree(float even, float odd)
{
    for (int step = LANES / 2; step; step /= 2) {
        even += __shfl_xor_sync(EVERY_LANE, even, step);
        odd += __shfl_xor_sync(EVERY_LANE, odd, step);
    }
    return even + odd;
}

template <int N> static __device__ void dot_i8(const head_params &c, const state_layout &l, const head_rows &m, uint32_t row,
                                               const unsigned char *const *states, uint32_t t, float *out)
{
    const unsigned char *data = m.data + static_cast<size_t>(row) * m.stride;
    uint32_t chunks = (c.hidden + 15) / 16;
    int high[N] = {}, low[N] = {};
    FH_UNROLL(4)
    for (uint32_t i = t; i < chunks; i += LANES) {
        int4 w = __ldg(reinterpret_cast<const int4 *>(data) + i);
        for (int s = 0; s < N; s++) {
            int4 h = reinterpret_cast<const int4 *>(states[s] + l.hi)[i], o = reinterpret_cast<const int4 *>(states[s] + l.lo)[i];
            high[s] = __dp4a(w.w, h.w, __dp4a(w.z, h.z, __dp4a(w.y, h.y, __dp4a(w.x, h.x, high[s]))));
            low[s] = __dp4a(w.w, o.w, __dp4a(w.z, o.z, __dp4a(w.y, o.y, __dp4a(w.x, o.x, low[s]))));
        }
    }
    double scale = static_cast<double>(static_cast<const float *>(m.scales)[row]);
    for (int s = 0; s < N; s++) {
        int64_t total = 256 * static_cast<int64_t>(octet_sum(high[s])) + octet_sum(low[s]);
        out[s] = static_cast<float>(static_cast<double>(total) * scale * *reinterpret_cast<const double *>(states[s]));
    }
}

static __device__ float bf16_at(const void *p, size_t i) { return __uint_as_float(static_cast<uint32_t>(static_cast<const uint16_t *>(p)[i]) << 16); }

/* Lane t has words 2 t and 2 t + 1 of each line of 64 bytes: in their low halves the quads 2 t and 2 t + 1 of the definition, in their high halves
 * 16 more.  v = value + 8 in each byte; what 8 times the state is too much, `quads` takes off. */
template <int N> static __device__ void dot_i4(const head_params &c, const state_layout &l, const head_rows &m, uint32_t row,
                                               const unsigned char *const *states, uint32_t t, float *out)
{
    const unsigned char *data = m.data + static_cast<size_t>(row) * m.stride;
    const uint16_t *scales = static_cast<const uint16_t *>(m.scales) + static_cast<size_t>(row) * m.groups;
    uint32_t lines = (c.hidden + 127) / 128;
    float sum[N][4] = {};
    FH_UNROLL(4)
    for (uint32_t i = 0; i < lines; i++) {
        uint2 w = __ldg(reinterpret_cast<const uint2 *>(data + 64 * static_cast<size_t>(i)) + t);
        uint32_t group = 4 * i + t / 4;
        float scale[2] = {group < m.groups ? bf16_at(scales, group) : 0, group + 2 < m.groups ? bf16_at(scales, group + 2) : 0};
        for (int s = 0; s < N; s++) {
            const int *hi = reinterpret_cast<const int *>(states[s] + l.hi), *lo = reinterpret_cast<const int *>(states[s] + l.lo);
            const int *quads = reinterpret_cast<const int *>(states[s] + l.quads);
            for (uint32_t j = 0; j < 4; j++) { /* words x and y, low halves; then high halves */
                uint32_t bits = (j % 2 ? w.y : w.x) >> (j < 2 ? 0 : 4), q = 32 * i + 16 * (j / 2) + 2 * t + j % 2;
                int v = static_cast<int>((bits & 0x0f0f0f0fu) ^ 0x08080808u);
                int total = 256 * __dp4a(v, hi[q], 0) + __dp4a(v, lo[q], 0) + quads[q];
                sum[s][j] = fmaf(static_cast<float>(total), scale[j / 2], sum[s][j]);
            }
        }
    }
    for (int s = 0; s < N; s++) {
        float x = octet_tree(sum[s][0] + sum[s][2], sum[s][1] + sum[s][3]);
        out[s] = static_cast<float>(static_cast<double>(x) * *reinterpret_cast<const double *>(states[s]));
    }
}

/* Two elements of a float row: 16 i + 2 t and the next. */
template <int E> static __device__ float2 two_at(const unsigned char *data, uint32_t i, uint32_t t)
{
    if (E == FH_F32) return __ldg(reinterpret_cast<const float2 *>(data) + 8 * static_cast<size_t>(i) + t);
    uint32_t w = __ldg(reinterpret_cast<const uint32_t *>(data) + 8 * static_cast<size_t>(i) + t);
    if (E == FH_BF16) return make_float2(__uint_as_float(w << 16), __uint_as_float(w & 0xffff0000u));
    return make_float2(fh_f16_value(w & 0xffffu), fh_f16_value(w >> 16));
}

template <int E, int N> static __device__ void dot_float(const head_params &c, const state_layout &l, const head_rows &m, uint32_t row,
                                                         const unsigned char *const *states, uint32_t t, float *out)
{
    const unsigned char *data = m.data + static_cast<size_t>(row) * m.stride;
    uint32_t steps = (c.hidden + 15) / 16;
    float even[N] = {}, odd[N] = {};
    FH_UNROLL(8)
    for (uint32_t i = 0; i < steps; i++) {
        float2 w = two_at<E>(data, i, t);
        for (int s = 0; s < N; s++) {
            float2 x = reinterpret_cast<const float2 *>(states[s] + l.floats)[8 * i + t];
            even[s] = fmaf(w.x, x.x, even[s]);
            odd[s] = fmaf(w.y, x.y, odd[s]);
        }
    }
    for (int s = 0; s < N; s++) out[s] = octet_tree(even[s], odd[s]);
}

template <int N> static __device__ void dots(const head_params &c, const state_layout &l, const head_rows &m, uint32_t row, const unsigned char *const *states,
                                             uint32_t t, float *out)
{
    switch (m.dtype) {
    case FH_I8: dot_i8<N>(c, l, m, row, states, t, out); break;
    case FH_I4: dot_i4<N>(c, l, m, row, states, t, out); break;
    case FH_BF16: dot_float<FH_BF16, N>(c, l, m, row, states, t, out); break;
    case FH_F16: dot_float<FH_F16, N>(c, l, m, row, states, t, out); break;
    default: dot_float<FH_F32, N>(c, l, m, row, states, t, out);
    }
}

/* Every lane's row against the states of `which` (bits of a tile, the same for all lanes of the warp); use(s, value) for each. */
template <class Use> static __device__ void each_dot(const head_params &c, const head_rows &m, uint32_t row, const unsigned char *tile, fh_u64 which,
                                                     uint32_t t, const Use &use)
{
    while (which) {
        const unsigned char *states[SEVERAL];
        uint32_t number[SEVERAL], n = 0, last = 0; /* indexed by constants once unrolled: registers, not memory */
        float out[SEVERAL];
        FH_UNROLL(4)
        for (uint32_t i = 0; i < SEVERAL; i++) { /* past the last, the last again */
            if (which) last = static_cast<uint32_t>(__ffsll(static_cast<long long>(which)) - 1), which &= which - 1, n++;
            number[i] = last;
            states[i] = tile + static_cast<size_t>(last) * c.layout.bytes;
        }
        if (n == 1) dots<1>(c, c.layout, m, row, states, t, out);
        else dots<SEVERAL>(c, c.layout, m, row, states, t, out);
        FH_UNROLL(4)
        for (uint32_t i = 0; i < SEVERAL; i++)
            if (i < n) use(number[i], out[i]);
    }
}

#endif
