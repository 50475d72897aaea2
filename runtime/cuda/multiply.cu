/* multiply.cu: all rows of a matrix times many states, for measuring what a head keeps.
 *
 *   dots [n, rows] = states [n, D] times rows [rows, D], of any encoding
 *
 * The sums are the head's (head_dots.cuh), so they are the definition's bit for bit, and calibration on a device writes the bytes of one on the CPU. A block
 * holds some states in shared memory and walks over rows, 4 a warp; a row is read from memory once for all states that a block holds, and from the first
 * cache for every 4 of them. Of bf16 rows of 2048 an octet's step is 8 multiplications a lane by 5 loads, which is what bounds it: at 32 loads a clock some
 * 40 % of the multiplications that a device can do, 1.5 ms for 64 states and 128256 rows by an H200's figures. What comes back is in pinned memory: 33 MB of
 * products, or what was looked for in them (seek.cu). */
#include "runtime/cuda/head_dots.cuh"

enum : size_t { MULTIPLY_STATES = 72 << 10 }; /* bytes of states that a block may hold: three blocks a multiprocessor */

struct multiply_params { head_params c; head_rows m; uint32_t rows; float *dots; }; /* of c what `prepare` and `each_dot` read */

static __global__ void __launch_bounds__(HEAD_THREADS) multiply(multiply_params p)
{
    float *partial = reinterpret_cast<float *>(fh_shared());
    unsigned char *tile = fh_shared() + 4 * HEAD_WARPS * head_up(p.c.tile, 2);
    uint32_t octet = threadIdx.x % 32 / LANES, t = threadIdx.x % LANES;
    for (uint32_t first = 0; first < p.c.batch; first += p.c.tile) {
        uint32_t n = min(p.c.tile, p.c.batch - first);
        prepare(p.c, p.c.layout, first, n, partial, tile);
        for (uint32_t four = warp_number(); ROWS * four < p.rows; four += gridDim.x * HEAD_WARPS) {
            uint32_t row = ROWS * four + octet;
            bool there = row < p.rows;
            each_dot(p.c, p.m, there ? row : 0, tile, everybody(n), t, [&](uint32_t s, float dot) {
                if (there && t == 0) p.dots[static_cast<size_t>(first + s) * p.rows + row] = dot;
            });
        }
    }
}

/* ---- on the host's side ------------------------------------------------------------------------------------------------- */

struct fh_cuda_multiplier {
    fh_cuda_device *device;
    buffer states, dots, keys, found, pinned_in, pinned_out;
    uint64_t bytes;
};

/* What was put there; ids and bias once it was marked. */
struct matrix { head_rows rows; uint32_t n, hidden; buffer data, scales, ids, bias; };

static size_t shared_bytes(const head_params *c)
{
    return 4 * HEAD_WARPS * static_cast<size_t>(head_up(c->tile, 2)) + c->tile * static_cast<size_t>(c->layout.bytes);
}

/* How many states a block holds: as many as fit the room for them, whole readings of a row; one in any case. */
static head_params plan(uint32_t hidden, fh_dtype dtype, size_t batch)
{
    head_params c = {};
    c.hidden = hidden, c.batch = static_cast<uint32_t>(batch);
    c.layout = layout_for(hidden, fh_dtype_is_float(dtype), fh_dtype_is_integer(dtype), dtype == FH_I4);
    size_t fit = MULTIPLY_STATES / c.layout.bytes;
    c.tile = static_cast<uint32_t>(fh_min(batch, fh_max(fit / SEVERAL * SEVERAL, 1)));
    return c;
}

static fh_status check_rows(const fh_cuda_device *d, const fh_rows *m, fh_err *err)
{
    if (!fh_dtype_is_encoding(m->dtype))
        return d->host->fail(err, FH_EUNSUPPORTED, "CUDA device %d (%s): rows of %s are not multiplied there: use --device cpu", d->ordinal, d->info.name,
                             fh_dtype_name(m->dtype));
    if (!m->rows || !m->cols || m->rows > INT32_MAX || m->cols > INT32_MAX / 8)
        return d->host->fail(err, FH_EUSAGE, "a matrix of %zu rows of %zu: no such shape", m->rows, m->cols);
    head_params one = plan(static_cast<uint32_t>(m->cols), m->dtype, 1);
    return shared_bytes(&one) > d->shared ? fh_cuda_too_wide(d, "a hidden size of", one.hidden, shared_bytes(&one), err) : FH_OK;
}

void fh_cuda_multiplier_free(fh_cuda_multiplier *m)
{
    if (!m) return;
    cudaSetDevice(m->device->ordinal);
    cudaFree(m->states.p);
    cudaFree(m->dots.p);
    cudaFree(m->keys.p);
    cudaFree(m->found.p);
    cudaFreeHost(m->pinned_in.p);
    cudaFreeHost(m->pinned_out.p);
    m->device->host->release(m);
}

static size_t parts_of(size_t rows) { return (rows + SEEK_ROWS - 1) / SEEK_ROWS; }

/* Room for every call is made now, and that matrices will have theirs is looked after. */
static fh_status make_room(fh_cuda_multiplier *m, const fh_rows *shapes, size_t n, fh_err *err)
{
    fh_cuda_device *d = m->device;
    uint64_t need = 0;
    size_t rows = 0, cols = 0;
    fh_status rc = FH_OK;
    for (size_t i = 0; i < n; i++) {
        if ((rc = check_rows(d, &shapes[i], err)) < 0) return rc;
        rows = fh_max(rows, shapes[i].rows), cols = fh_max(cols, shapes[i].cols);
        need += shapes[i].rows * (device_stride(&shapes[i]) + fh_scale_bytes(shapes[i].dtype, shapes[i].cols) + sizeof(uint32_t) + sizeof(float));
    }
    size_t in = FH_CUDA_BATCH * cols * sizeof(float), out = FH_CUDA_BATCH * rows * sizeof(float);
    size_t keys = FH_CUDA_BATCH * parts_of(rows) * FH_CUDA_FOUND * sizeof(fh_u64), of = FH_CUDA_BATCH * FH_CUDA_FOUND * sizeof(uint32_t);
    if ((rc = fh_cuda_fits(d, "the calibration", need + in + out + keys + 4 * of, err)) < 0 || (rc = fh_cuda_room(d, &m->bytes, &m->states, in, err)) < 0 ||
        (rc = fh_cuda_room(d, &m->bytes, &m->dots, out, err)) < 0 || (rc = fh_cuda_room(d, &m->bytes, &m->keys, keys, err)) < 0 ||
        (rc = fh_cuda_room(d, &m->bytes, &m->found, 4 * of, err)) < 0 || (rc = fh_cuda_pin(d, &m->pinned_in, in + of, err)) < 0) return rc;
    return fh_cuda_pin(d, &m->pinned_out, fh_max(out, 4 * of), err);
}

fh_status fh_cuda_multiplier_new(fh_cuda_multiplier **out, fh_cuda_device *d, const fh_rows *shapes, size_t n, fh_err *err)
{
    fh_cuda_multiplier *m = static_cast<fh_cuda_multiplier *>(d->host->allocate(1, sizeof *m));
    if (!m) return d->host->fail(err, FH_ENOMEM, "out of memory");
    m->device = d;
    fh_status rc = make_room(m, shapes, n, err);
    if (rc < 0) fh_cuda_multiplier_free(m);
    else *out = m;
    return rc;
}

uint64_t fh_cuda_multiplier_bytes(const fh_cuda_multiplier *m) { return m->bytes; }

static void take(void *ctx, void *there)
{
    fh_cuda_multiplier *m = static_cast<fh_cuda_multiplier *>(ctx);
    matrix *x = static_cast<matrix *>(there);
    if (!x) return;
    cudaSetDevice(m->device->ordinal);
    m->bytes -= x->data.bytes + x->scales.bytes + x->ids.bytes + x->bias.bytes;
    cudaFree(x->data.p);
    cudaFree(x->scales.p);
    cudaFree(x->ids.p);
    cudaFree(x->bias.p);
    m->device->host->release(x);
}

static fh_status copy(fh_cuda_multiplier *m, matrix *x, const fh_rows *rows, const void *scales, fh_err *err)
{
    fh_cuda_device *d = m->device;
    TRY(cudaSetDevice(d->ordinal), "choosing it");
    fh_status rc = fh_cuda_copy_rows(d, &m->bytes, &x->rows, &x->data, &x->scales, rows, scales, err);
    cudaError_t e = cudaStreamSynchronize(d->stream); /* whatever came of it: the rows are the caller's again */
    if (rc < 0) return rc;
    TRY(e, "copying rows");
    return FH_OK;
}

static fh_status put(void *ctx, void **there, const fh_rows *rows, const void *scales, fh_err *err)
{
    fh_cuda_multiplier *m = static_cast<fh_cuda_multiplier *>(ctx);
    fh_status rc = check_rows(m->device, rows, err);
    if (rc < 0) return rc;
    matrix *x = static_cast<matrix *>(m->device->host->allocate(1, sizeof *x));
    if (!x) return m->device->host->fail(err, FH_ENOMEM, "out of memory");
    x->n = static_cast<uint32_t>(rows->rows), x->hidden = static_cast<uint32_t>(rows->cols);
    rc = copy(m, x, rows, scales, err);
    if (rc < 0) take(m, x);
    else *there = x;
    return rc;
}

static fh_status mark(void *ctx, void *there, const uint32_t *ids, const float *bias, fh_err *err)
{
    fh_cuda_multiplier *m = static_cast<fh_cuda_multiplier *>(ctx);
    matrix *x = static_cast<matrix *>(there);
    fh_cuda_device *d = m->device;
    size_t bytes = x->n * sizeof *ids;
    TRY(cudaSetDevice(d->ordinal), "choosing it");
    fh_status rc = fh_cuda_room(d, &m->bytes, &x->ids, bytes, err);
    if (rc == FH_OK && bias) rc = fh_cuda_room(d, &m->bytes, &x->bias, bytes, err);
    if (rc < 0) return rc;
    cudaError_t e = cudaMemcpyAsync(x->ids.p, ids, bytes, cudaMemcpyHostToDevice, d->stream), waited;
    if (e == cudaSuccess && bias) e = cudaMemcpyAsync(x->bias.p, bias, bytes, cudaMemcpyHostToDevice, d->stream);
    waited = cudaStreamSynchronize(d->stream); /* whatever came of it: ids and biases are the caller's again */
    TRY(e, "copying which tokens rows are of");
    TRY(waited, "copying which tokens rows are of");
    return FH_OK;
}

/* What is launched: nothing is allocated, copied or waited for. */
struct launch { fh_cuda_device *device; multiply_params p; size_t shared; unsigned blocks; };

static fh_status prepare_launch(launch *l, const fh_cuda_multiplier *m, const matrix *x, size_t n, fh_err *err)
{
    fh_cuda_device *d = m->device;
    int each = 0;
    l->device = d;
    l->p.c = plan(x->hidden, x->rows.dtype, n), l->p.m = x->rows, l->p.rows = x->n;
    l->p.c.states = static_cast<float *>(m->states.p), l->p.dots = static_cast<float *>(m->dots.p);
    l->shared = shared_bytes(&l->p.c);
    TRY(cudaFuncSetAttribute(multiply, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(l->shared)), "asking for shared memory");
    TRY(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, multiply, HEAD_THREADS, l->shared), "planning a launch");
    l->blocks = static_cast<unsigned>(fh_max(each, 1)) * static_cast<unsigned>(d->info.multiprocessors);
    return FH_OK;
}

static fh_status start(void *ctx, fh_err *err)
{
    const launch *l = static_cast<const launch *>(ctx);
    fh_cuda_device *d = l->device;
    TRY(fh_launch(multiply, l->blocks, HEAD_THREADS, l->shared, d->stream, l->p, false), "multiplying states");
    return FH_OK;
}

static fh_status check_call(const fh_cuda_multiplier *m, const matrix *x, size_t n, fh_err *err)
{
    bool room = x && x->hidden * sizeof(float) * n <= m->states.bytes && x->n * sizeof(float) * n <= m->dots.bytes;
    if (n >= 1 && n <= FH_CUDA_BATCH && room) return FH_OK;
    return m->device->host->fail(err, FH_EUSAGE, "%zu states by a matrix: more than there is room for on the device", n);
}

/* The products, under way to where they stay; *dots. */
static fh_status begin(fh_cuda_multiplier *m, const matrix *x, const float *states, size_t n, fh_err *err)
{
    fh_cuda_device *d = m->device;
    launch l = {};
    size_t in = n * x->hidden * sizeof(float);
    TRY(cudaSetDevice(d->ordinal), "choosing it");
    fh_status rc = prepare_launch(&l, m, x, n, err);
    if (rc < 0) return rc;
    memcpy(m->pinned_in.p, states, in);
    TRY(cudaMemcpyAsync(m->states.p, m->pinned_in.p, in, cudaMemcpyHostToDevice, d->stream), "copying states");
    return start(&l, err);
}

/* What was made of them, once it is in pinned memory. */
static fh_status end(fh_cuda_multiplier *m, const void *from, size_t bytes, fh_err *err)
{
    fh_cuda_device *d = m->device;
    TRY(cudaMemcpyAsync(m->pinned_out.p, from, bytes, cudaMemcpyDeviceToHost, d->stream), "copying what became of products");
    TRY(cudaStreamSynchronize(d->stream), "multiplying states");
    return FH_OK;
}

static fh_status multiply_states(void *ctx, void *there, const float *states, size_t n, float **dots, fh_err *err)
{
    fh_cuda_multiplier *m = static_cast<fh_cuda_multiplier *>(ctx);
    const matrix *x = static_cast<const matrix *>(there);
    fh_status rc = check_call(m, x, n, err);
    if (rc < 0 || (rc = begin(m, x, states, n, err)) < 0 || (rc = end(m, m->dots.p, n * x->n * sizeof(float), err)) < 0) return rc;
    *dots = static_cast<float *>(m->pinned_out.p);
    return FH_OK;
}

static fh_status check_found(const fh_cuda_multiplier *m, const matrix *x, size_t n, size_t k, fh_err *err)
{
    fh_status rc = check_call(m, x, n, err);
    if (rc < 0 || (k >= 1 && k <= FH_CUDA_FOUND)) return rc;
    return m->device->host->fail(err, FH_EUSAGE, "%zu tokens of a state: 1 to %d are looked for on the device", k, FH_CUDA_FOUND);
}

static fh_status best(void *ctx, void *there, const float *states, size_t n, size_t k, uint32_t *ids, fh_err *err)
{
    fh_cuda_multiplier *m = static_cast<fh_cuda_multiplier *>(ctx);
    const matrix *x = static_cast<const matrix *>(there);
    fh_status rc = check_found(m, x, n, k, err);
    if (rc < 0) return rc;
    if (!x->ids.p) return m->device->host->fail(err, FH_EUSAGE, "a matrix on the device whose tokens are not known");
    best_params p = {};
    p.dots = static_cast<float *>(m->dots.p), p.rows = x->n, p.batch = static_cast<uint32_t>(n), p.k = static_cast<uint32_t>(k);
    p.parts = static_cast<uint32_t>(parts_of(x->n)), p.ids = static_cast<uint32_t *>(x->ids.p), p.bias = static_cast<float *>(x->bias.p);
    p.keys = static_cast<fh_u64 *>(m->keys.p), p.best = static_cast<uint32_t *>(m->found.p);
    if ((rc = begin(m, x, states, n, err)) < 0 || (rc = fh_cuda_best(m->device, &p, err)) < 0 || (rc = end(m, p.best, n * k * sizeof *ids, err)) < 0) return rc;
    memcpy(ids, m->pinned_out.p, n * k * sizeof *ids);
    return FH_OK;
}

static fh_status rank_rows(void *ctx, void *there, const float *states, size_t n, size_t k, const uint32_t *of, bool through_bf16, uint32_t *ranks,
                           float *scores, float *top, fh_err *err)
{
    fh_cuda_multiplier *m = static_cast<fh_cuda_multiplier *>(ctx);
    const matrix *x = static_cast<const matrix *>(there);
    fh_cuda_device *d = m->device;
    fh_status rc = check_found(m, x, n, k, err);
    if (rc < 0) return rc;
    size_t all = n * k, bytes = all * sizeof *of;
    for (size_t i = 0; i < all; i++)
        if (of[i] != FH_NO_TOKEN && of[i] >= x->n) return d->host->fail(err, FH_EUSAGE, "row %u of %u: no such row on the device", of[i], x->n);
    uint32_t *words = static_cast<uint32_t *>(m->found.p); /* of, ranks, scores [n, k]; top [n] */
    rank_params p = {};
    p.dots = static_cast<float *>(m->dots.p), p.rows = x->n, p.batch = static_cast<uint32_t>(n), p.k = static_cast<uint32_t>(k);
    p.through_bf16 = through_bf16, p.of = words, p.ranks = words + all;
    p.scores = reinterpret_cast<float *>(words + 2 * all), p.top = reinterpret_cast<float *>(words + 3 * all);
    if ((rc = begin(m, x, states, n, err)) < 0) return rc;
    unsigned char *in = static_cast<unsigned char *>(m->pinned_in.p) + n * x->hidden * sizeof(float), *out = static_cast<unsigned char *>(m->pinned_out.p);
    memcpy(in, of, bytes);
    TRY(cudaMemcpyAsync(words, in, bytes, cudaMemcpyHostToDevice, d->stream), "copying which rows are ranked");
    if ((rc = fh_cuda_ranks(d, &p, err)) < 0 || (rc = end(m, p.ranks, 2 * bytes + n * sizeof *top, err)) < 0) return rc;
    memcpy(ranks, out, bytes);
    memcpy(scores, out + bytes, bytes);
    memcpy(top, out + 2 * bytes, n * sizeof *top);
    return FH_OK;
}

fh_dots_device fh_cuda_multiplier_use(fh_cuda_multiplier *m)
{
    return {m, FH_CUDA_BATCH, FH_CUDA_FOUND, put, take, mark, multiply_states, best, rank_rows};
}

fh_status fh_cuda_multiplier_time(fh_cuda_multiplier *m, void *there, size_t n, size_t runs, double *seconds, fh_err *err)
{
    fh_cuda_device *d = m->device;
    stopwatch k = {};
    launch l = {};
    fh_status rc = check_call(m, static_cast<const matrix *>(there), n, err);
    if (rc < 0) return rc;
    TRY(cudaSetDevice(d->ordinal), "choosing it");
    if ((rc = prepare_launch(&l, m, static_cast<const matrix *>(there), n, err)) < 0) return rc;
    rc = fh_cuda_clock(d, &k, start, &l, runs, seconds, err);
    fh_cuda_clock_free(&k);
    return rc;
}
