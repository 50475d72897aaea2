/* product.cu: rows of float32 times the weights of a body.
 *
 *   y [n, out] = x [n, in] W^T + b       W in f32, bf16, f16 or Q8_0; sums in float32; then = y, += y, = act(y) or = act(gate x) * y
 *
 *   few    one to eight rows: a warp takes some rows of W, its lanes 8 weights each at a time, which are multiplied with all rows of x. One row is the vector
 *          kernel; 2 to 8 are padded to 2, 4 or 8, not to a tile's 64: reading W is what takes the time, and it is read once
 *   tile   any number: 64 x 64 results a block, 4 x 4 a thread; 16 columns of x and of W in shared memory, while the next 16 come from memory into registers
 *
 *   blas   any number, W in bf16 or f32: cuBLAS, whose operands are of one type. For bf16 each x is the sum of two of them, which is within 2^-18 of it
 *
 * Sums of the tile go in the order of columns; those of a warp by lane, then by a tree: the same numbers whatever else a launch computes. */
#include "runtime/cuda/body.cuh"

enum : uint32_t {
    FEW_THREADS = 128, FEW_WARPS = FEW_THREADS / 32,
    TILE = 64, TILE_DEEP = 16, TILE_THREADS = 256, TILE_WIDE = TILE + 4, /* 4 more: columns that are written at once lie in other banks */
    CHUNK = 8                                                            /* weights that a lane loads */
};

/* ---- weights ------------------------------------------------------------------------------------------------------- */

static __device__ __forceinline__ void two_bf16(uint32_t w, float *to) { to[0] = __uint_as_float(w << 16), to[1] = __uint_as_float(w & 0xffff0000u); }
static __device__ __forceinline__ void two_f16(uint32_t w, float *to) { to[0] = fh_f16_value(w & 0xffffu), to[1] = fh_f16_value(w >> 16); }

/* Weights 8 chunk to 8 chunk + 7 of a row. */
template <fh_dtype T> static __device__ __forceinline__ void load_weights(const device_linear &w, uint32_t row, uint32_t chunk, float *to)
{
    const unsigned char *at = w.data + static_cast<size_t>(row) * w.stride;
    if (T == FH_F32) {
        const float4 *f = reinterpret_cast<const float4 *>(at) + 2 * chunk;
        float4 a = __ldg(f), b = __ldg(f + 1);
        to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w, to[4] = b.x, to[5] = b.y, to[6] = b.z, to[7] = b.w;
    } else if (T == FH_Q8_0) {
        uint2 q = __ldg(reinterpret_cast<const uint2 *>(at) + chunk);
        float scale = fh_f16_value(__ldg(w.scales + static_cast<size_t>(row) * (w.in / FH_Q8_VALUES) + chunk / 4));
        for (uint32_t i = 0; i < 4; i++) {
            to[i] = static_cast<float>(static_cast<int8_t>(q.x >> 8 * i)) * scale;
            to[4 + i] = static_cast<float>(static_cast<int8_t>(q.y >> 8 * i)) * scale;
        }
    } else {
        uint4 q = __ldg(reinterpret_cast<const uint4 *>(at) + chunk);
        const uint32_t words[4] = {q.x, q.y, q.z, q.w};
        FH_UNROLL(4)
        for (uint32_t i = 0; i < 4; i++) {
            if (T == FH_BF16) two_bf16(words[i], to + 2 * i);
            else two_f16(words[i], to + 2 * i);
        }
    }
}

/* ---- what becomes of a result ------------------------------------------------------------------------------------------ */

static __device__ float activated(fh_act act, float x)
{
    switch (act) {
    case FH_ACT_SILU: return x / (1.0f + expf(-x));
    case FH_ACT_QUICK_GELU: return x / (1.0f + expf(-1.702f * x));
    case FH_ACT_GELU_TANH: return x / (1.0f + expf(-1.59576912f * (x + 0.044715f * x * x * x))); /* 0.5 (1 + tanh u) = 1 / (1 + exp(-2 u)) */
    case FH_ACT_GELU: return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    default: return x < 0 ? 0 : x; /* NaN stays */
    }
}

static __device__ void store(const product_params &c, uint32_t row, uint32_t o, float y, float gate)
{
    float *to = c.out + static_cast<size_t>(row) * c.ld + o;
    if (c.w.bias) y += c.w.bias[o];
    switch (c.then) {
    case FH_THEN_ADD: *to += y; break;
    case FH_THEN_ACT: *to = c.onto ? activated(c.act, y) * *to : activated(c.act, y); break;
    case FH_THEN_GATE: *to = activated(c.act, c.gate.bias ? gate + c.gate.bias[o] : gate) * y; break;
    default: *to = y; break;
    }
}

/* ---- few rows ------------------------------------------------------------------------------------------------------------ */

/* Rows of W that a warp takes at once, of W and of the gate each: so many that a group of x is used some times once it is read. */
template <uint32_t N, bool GATED> struct few { enum : uint32_t { ROWS = (N == 1 ? 2 : 4) / (GATED ? 2 : 1), STREAMS = ROWS * (GATED ? 2 : 1) }; };

template <fh_dtype T, uint32_t N, bool GATED> static __global__ void __launch_bounds__(FEW_THREADS) product_few(product_params c)
{
    enum : uint32_t { ROWS = few<N, GATED>::ROWS, STREAMS = few<N, GATED>::STREAMS };
    uint32_t lane = threadIdx.x % 32, first = (blockIdx.x * FEW_WARPS + threadIdx.x / 32) * ROWS, chunks = (c.w.in + CHUNK - 1) / CHUNK;
    float sum[STREAMS][N] = {};
    if (first >= c.w.out) return;
    FH_UNROLL(2)
    for (uint32_t chunk = lane; chunk < chunks; chunk += 32) {
        float w[STREAMS][CHUNK];
        FH_UNROLL(4)
        for (uint32_t s = 0; s < STREAMS; s++) load_weights<T>(s < ROWS ? c.w : c.gate, min(first + s % ROWS, c.w.out - 1), chunk, w[s]);
        FH_UNROLL(8)
        for (uint32_t i = 0; i < N; i++) {
            const float4 *x = reinterpret_cast<const float4 *>(c.x + static_cast<size_t>(min(i, c.n - 1)) * c.ldx) + 2 * chunk;
            float4 a = x[0], b = x[1];
            FH_UNROLL(4)
            for (uint32_t s = 0; s < STREAMS; s++) {
                float y = fmaf(w[s][3], a.w, fmaf(w[s][2], a.z, fmaf(w[s][1], a.y, fmaf(w[s][0], a.x, sum[s][i]))));
                sum[s][i] = fmaf(w[s][7], b.w, fmaf(w[s][6], b.z, fmaf(w[s][5], b.y, fmaf(w[s][4], b.x, y))));
            }
        }
    }
    FH_UNROLL(4)
    for (uint32_t s = 0; s < STREAMS; s++)
        FH_UNROLL(8)
        for (uint32_t i = 0; i < N; i++)
            for (int step = 16; step; step /= 2) sum[s][i] += __shfl_xor_sync(0xffffffffu, sum[s][i], step);
    if (lane != 0) return;
    FH_UNROLL(4)
    for (uint32_t s = 0; s < ROWS; s++)
        FH_UNROLL(8)
        for (uint32_t i = 0; i < N; i++)
            if (first + s < c.w.out && i < c.n) store(c, i, first + s, sum[s][i], GATED ? sum[s + STREAMS - ROWS][i] : 0);
}

/* ---- tiles ----------------------------------------------------------------------------------------------------------------- */

/* A thread's share of the next columns: 4 of one row of x; 8 of one row of W, or of the gate, which the other half of the threads loads. */
struct tile_next { float x[4], w[CHUNK]; };
struct tile_buffer { float x[TILE_DEEP][TILE_WIDE], w[2][TILE_DEEP][TILE_WIDE]; };

template <fh_dtype T, bool GATED> static __device__ void tile_load(const product_params &c, uint32_t row, uint32_t o, uint32_t column, tile_next &next)
{
    uint32_t t = threadIdx.x, in = head_up(c.w.in, CHUNK), x_row = row + t / 4, x_column = column + t % 4 * 4;
    bool inside = x_row < c.n && x_column < in;
    float4 x = {0, 0, 0, 0};
    if (inside) x = *reinterpret_cast<const float4 *>(c.x + static_cast<size_t>(x_row) * c.ldx + x_column);
    next.x[0] = x.x, next.x[1] = x.y, next.x[2] = x.z, next.x[3] = x.w;
    uint32_t half = t / 128, w_row = o + t % 128 / 2, w_column = column + t % 2 * CHUNK;
    FH_UNROLL(8)
    for (uint32_t i = 0; i < CHUNK; i++) next.w[i] = 0;
    if ((GATED || !half) && w_row < c.w.out && w_column < in) load_weights<T>(half ? c.gate : c.w, w_row, w_column / CHUNK, next.w);
}

template <bool GATED> static __device__ void tile_keep(tile_buffer &b, const tile_next &next)
{
    uint32_t t = threadIdx.x, half = t / 128;
    FH_UNROLL(4)
    for (uint32_t i = 0; i < 4; i++) b.x[t % 4 * 4 + i][t / 4] = next.x[i];
    FH_UNROLL(8)
    for (uint32_t i = 0; i < CHUNK; i++)
        if (GATED || !half) b.w[half][t % 2 * CHUNK + i][t % 128 / 2] = next.w[i];
}

template <fh_dtype T, bool GATED> static __global__ void __launch_bounds__(TILE_THREADS) product_tile(product_params c)
{
    tile_buffer *buffers = reinterpret_cast<tile_buffer *>(fh_shared());
    uint32_t across = (c.w.out + TILE - 1) / TILE, o = blockIdx.x % across * TILE, row = blockIdx.x / across * TILE;
    uint32_t mine_x = threadIdx.x / 16 * 4, mine_o = threadIdx.x % 16 * 4, at = 0;
    float sum[GATED ? 2 : 1][4][4] = {};
    tile_next next;
    tile_load<T, GATED>(c, row, o, 0, next);
    tile_keep<GATED>(buffers[0], next);
    for (uint32_t column = 0; column < c.w.in; column += TILE_DEEP, at ^= 1) {
        __syncthreads();
        bool more = column + TILE_DEEP < c.w.in;
        if (more) tile_load<T, GATED>(c, row, o, column + TILE_DEEP, next);
        const tile_buffer &b = buffers[at];
        FH_UNROLL(16)
        for (uint32_t k = 0; k < TILE_DEEP; k++)
            FH_UNROLL(2)
            for (uint32_t g = 0; g < (GATED ? 2 : 1); g++)
                FH_UNROLL(4)
                for (uint32_t i = 0; i < 4; i++)
                    FH_UNROLL(4)
                    for (uint32_t j = 0; j < 4; j++) sum[g][i][j] = fmaf(b.x[k][mine_x + i], b.w[g][k][mine_o + j], sum[g][i][j]);
        if (more) tile_keep<GATED>(buffers[at ^ 1], next);
    }
    FH_UNROLL(4)
    for (uint32_t i = 0; i < 4; i++)
        FH_UNROLL(4)
        for (uint32_t j = 0; j < 4; j++)
            if (row + mine_x + i < c.n && o + mine_o + j < c.w.out) store(c, row + mine_x + i, o + mine_o + j, sum[0][i][j], GATED ? sum[1][i][j] : 0);
}

/* ---- a library's --------------------------------------------------------------------------------------------------------------- */

enum : uint32_t { EACH_THREADS = 256 };

static __global__ void __launch_bounds__(EACH_THREADS) split_rows(product_params c)
{
    size_t i = static_cast<size_t>(blockIdx.x) * EACH_THREADS + threadIdx.x, n = static_cast<size_t>(c.n) * c.ldx;
    if (i >= n) return;
    uint16_t high = fh_bf16_of(c.x[i]);
    c.halves[i] = high;
    c.halves[n + i] = fh_bf16_of(c.x[i] - __uint_as_float(static_cast<uint32_t>(high) << 16));
}

static __global__ void __launch_bounds__(EACH_THREADS) store_results(product_params c)
{
    size_t i = static_cast<size_t>(blockIdx.x) * EACH_THREADS + threadIdx.x, n = static_cast<size_t>(c.n) * c.w.out;
    if (i < n) store(c, static_cast<uint32_t>(i / c.w.out), static_cast<uint32_t>(i % c.w.out), c.results[i], c.then == FH_THEN_GATE ? c.results[n + i] : 0);
}

static unsigned each(size_t n) { return static_cast<unsigned>((n + EACH_THREADS - 1) / EACH_THREADS); }

static fh_status multiply_blas(fh_cuda_device *d, const product_params *p, fh_err *err)
{
    bool split = p->w.dtype == FH_BF16;
    size_t rows = static_cast<size_t>(p->n) * p->ldx, results = static_cast<size_t>(p->n) * p->w.out;
    if (split) TRY(fh_launch(split_rows, each(rows), EACH_THREADS, 0, d->stream, *p, false), "starting a product");
    for (unsigned g = 0; g < (p->then == FH_THEN_GATE ? 2u : 1u); g++)
        for (unsigned half = 0; half < (split ? 2u : 1u); half++) {
            const device_linear &w = g ? p->gate : p->w;
            const void *x = split ? static_cast<const void *>(p->halves + half * rows) : p->x;
            const blas_params b = {w.data, w.stride / (split ? 2 : 4), x, p->ldx, w.dtype, w.out, w.in, p->n, p->results + g * results, w.out, half == 1};
            fh_status rc = fh_cuda_blas(d, &b, err);
            if (rc < 0) return rc;
        }
    TRY(fh_launch(store_results, each(results), EACH_THREADS, 0, d->stream, *p, false), "starting a product");
    return FH_OK;
}

/* ---- launches ------------------------------------------------------------------------------------------------------------------ */

template <fh_dtype T, uint32_t N, bool GATED> static cudaError_t launch_few(fh_cuda_device *d, const product_params *p)
{
    uint32_t each = FEW_WARPS * few<N, GATED>::ROWS;
    return fh_launch(product_few<T, N, GATED>, (p->w.out + each - 1) / each, FEW_THREADS, 0, d->stream, *p, false);
}

template <fh_dtype T, bool GATED> static cudaError_t launch_kind(fh_cuda_device *d, bool tile, const product_params *p)
{
    uint32_t tiles = (p->n + TILE - 1) / TILE * ((p->w.out + TILE - 1) / TILE);
    if (tile) return fh_launch(product_tile<T, GATED>, tiles, TILE_THREADS, 2 * sizeof(tile_buffer), d->stream, *p, false);
    return p->n == 1 ? launch_few<T, 1, GATED>(d, p) : p->n == 2 ? launch_few<T, 2, GATED>(d, p) : p->n <= 4 ? launch_few<T, 4, GATED>(d, p)
                                                                                                                        : launch_few<T, 8, GATED>(d, p);
}

template <bool GATED> static cudaError_t launch_type(fh_cuda_device *d, bool tile, const product_params *p)
{
    switch (p->w.dtype) {
    case FH_F32: return launch_kind<FH_F32, GATED>(d, tile, p);
    case FH_F16: return launch_kind<FH_F16, GATED>(d, tile, p);
    case FH_Q8_0: return launch_kind<FH_Q8_0, GATED>(d, tile, p);
    default: return launch_kind<FH_BF16, GATED>(d, tile, p);
    }
}

bool fh_cuda_product_can(product_kind kind, const product_params *p)
{
    if (kind == PRODUCT_BLAS) return p->results && (p->w.dtype == FH_BF16 || p->w.dtype == FH_F32) && (p->then != FH_THEN_GATE || p->gate.dtype == p->w.dtype);
    return kind == PRODUCT_TILE || p->n <= PRODUCT_FEW_ROWS;
}

fh_status fh_cuda_product(fh_cuda_device *d, product_kind kind, const product_params *p, fh_err *err)
{
    if (kind == PRODUCT_AUTO || !fh_cuda_product_can(kind, p))
        kind = p->n <= PRODUCT_FEW_ROWS ? PRODUCT_FEW : fh_cuda_product_can(PRODUCT_BLAS, p) ? PRODUCT_BLAS : PRODUCT_TILE;
    if (kind == PRODUCT_BLAS) return multiply_blas(d, p, err);
    bool tile = kind == PRODUCT_TILE;
    TRY(p->then == FH_THEN_GATE ? launch_type<true>(d, tile, p) : launch_type<false>(d, tile, p), "starting a product");
    return FH_OK;
}
