/* backend.cu: what libfhcuda.so does on the host's side: devices, a head's arrays in device memory, launches.
 *
 * Each array has an allocation of its own, so that a step past its end is seen by compute-sanitizer and, under the host emulation, by
 * address sanitizer. */
#include "runtime/cuda/head_kernels.cuh"

#ifndef FH_CUDA_ARCHS
#define FH_CUDA_ARCHS "none"
#endif

/* ---- errors ---------------------------------------------------------------------------------------------------- */

fh_status fh_cuda_failed(const fh_cuda_device *d, fh_err *err, cudaError_t e, const char *doing)
{
    cudaGetLastError(); /* what is not sticky is not met again by the next call */
    if (e == cudaErrorMemoryAllocation)
        return d->host->fail(err, FH_ENOMEM, "CUDA device %d (%s): out of memory while %s", d->ordinal, d->info.name, doing);
    return d->host->fail(err, FH_EFAIL, "CUDA device %d (%s): %s while %s (%s)", d->ordinal, d->info.name, cudaGetErrorString(e), doing, cudaGetErrorName(e));
}

/* ---- devices ----------------------------------------------------------------------------------------------------- */

static fh_status no_devices(const fh_cuda_host *host, cudaError_t e, fh_err *err)
{
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    cudaGetLastError();
    if (e == cudaErrorInsufficientDriver && !driver) return host->fail(err, FH_ENOTFOUND, "there is no NVIDIA driver on this machine");
    if (e == cudaErrorInsufficientDriver)
        return host->fail(err, FH_EUNSUPPORTED, "the NVIDIA driver is for CUDA %d.%d, this build needs %d.%d: update the driver", driver / 1000,
                          driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    if (e == cudaErrorNoDevice || e == cudaSuccess)
        return host->fail(err, FH_ENOTFOUND, "the NVIDIA driver is there, but no GPU that it sees (CUDA_VISIBLE_DEVICES hides some)");
    return host->fail(err, FH_EFAIL, "the NVIDIA driver does not work: %s (%s): does nvidia-smi?", cudaGetErrorString(e), cudaGetErrorName(e));
}

static void device_close(fh_cuda_device *d)
{
    if (!d) return;
    fh_cuda_blas_close(d);
    for (unsigned i = 0; i < d->n_events; i++) cudaEventDestroy(d->events[i]);
    if (d->has_stream) cudaStreamDestroy(d->stream);
    d->host->release(d);
}

static fh_status learn(fh_cuda_device *d, fh_err *err)
{
    cudaDeviceProp p;
    cudaFuncAttributes code;
    int together = 0, shared = 0;
    size_t free_bytes = 0, total = 0;
    TRY(cudaSetDevice(d->ordinal), "choosing it");
    TRY(cudaGetDeviceProperties(&p, d->ordinal), "asking what it is");
    for (size_t i = 0; i + 1 < sizeof d->info.name && p.name[i]; i++) d->info.name[i] = p.name[i];
    d->info.major = p.major, d->info.minor = p.minor, d->info.multiprocessors = p.multiProcessorCount, d->info.memory_bytes = p.totalGlobalMem;
    cudaError_t e = cudaFuncGetAttributes(&code, head_stage1);
    if (e == cudaErrorNoKernelImageForDevice || e == cudaErrorInvalidDeviceFunction || e == cudaErrorUnsupportedPtxVersion || e == cudaErrorInvalidPtx) {
        cudaGetLastError();
        return d->host->fail(err, FH_EUNSUPPORTED, "CUDA device %d (%s) is of compute capability %d.%d, this build has code for %s: %s", d->ordinal,
                             d->info.name, p.major, p.minor, FH_CUDA_ARCHS, cudaGetErrorString(e));
    }
    TRY(e, "loading the head's code");
    TRY(cudaDeviceGetAttribute(&together, cudaDevAttrCooperativeLaunch, d->ordinal), "asking what it can do");
    TRY(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, d->ordinal), "asking what it can do");
    TRY(cudaMemGetInfo(&free_bytes, &total), "asking for its free memory");
    cudaDriverGetVersion(&d->info.driver);
    cudaRuntimeGetVersion(&d->info.runtime);
    d->info.together = together, d->info.free_bytes = free_bytes, d->shared = static_cast<size_t>(shared);
    TRY(cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking), "making a stream");
    d->has_stream = true;
    for (; d->n_events < 3; d->n_events++) TRY(cudaEventCreate(&d->events[d->n_events]), "making a clock");
    return FH_OK;
}

static fh_status device_open(fh_cuda_device **out, int ordinal, const fh_cuda_host *host, fh_err *err)
{
    int n = 0;
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e != cudaSuccess || n <= 0) return no_devices(host, e, err);
    if (ordinal < 0 || ordinal >= n) return host->fail(err, FH_ENOTFOUND, "CUDA device %d: the driver sees %d, counted from 0", ordinal, n);
    fh_cuda_device *d = static_cast<fh_cuda_device *>(host->allocate(1, sizeof *d));
    if (!d) return host->fail(err, FH_ENOMEM, "out of memory");
    d->host = host, d->ordinal = ordinal;
    fh_status rc = learn(d, err);
    if (rc < 0) device_close(d);
    else *out = d;
    return rc;
}

static const fh_cuda_info *device_info(const fh_cuda_device *d) { return &d->info; }
static void device_times(const fh_cuda_device *d, double *body, double *head) { *body = d->body_seconds, *head = d->head_seconds; }

/* ---- a head's arrays ----------------------------------------------------------------------------------------------- */

fh_status fh_cuda_room(fh_cuda_device *d, uint64_t *total, buffer *b, size_t bytes, fh_err *err)
{
    if (bytes <= b->bytes) return FH_OK;
    cudaFree(b->p);
    *total -= b->bytes;
    *b = {nullptr, 0};
    TRY(cudaMalloc(&b->p, bytes), "making room for a call");
    b->bytes = bytes;
    *total += bytes;
    return FH_OK;
}

fh_status fh_cuda_grow(fh_cuda_head *h, buffer *b, size_t bytes, fh_err *err) { return fh_cuda_room(h->device, &h->bytes, b, bytes, err); }

fh_status fh_cuda_fits(fh_cuda_device *d, const char *what, uint64_t bytes, fh_err *err)
{
    size_t free_bytes = 0, total = 0;
    TRY(cudaSetDevice(d->ordinal), "choosing it");
    TRY(cudaMemGetInfo(&free_bytes, &total), "asking for its free memory");
    if (bytes <= free_bytes) return FH_OK;
    return d->host->fail(err, FH_ENOMEM, "CUDA device %d (%s): %s needs %.0f MiB of device memory, %.0f MiB are free", d->ordinal, d->info.name, what,
                         static_cast<double>(bytes) / (1 << 20), static_cast<double>(free_bytes) / (1 << 20));
}

fh_status fh_cuda_pin(fh_cuda_device *d, buffer *b, size_t bytes, fh_err *err)
{
    if (bytes <= b->bytes) return FH_OK;
    cudaFreeHost(b->p);
    *b = {nullptr, 0};
    TRY(cudaMallocHost(&b->p, bytes), "making room for what goes there and back");
    b->bytes = bytes;
    return FH_OK;
}

static fh_status copy_bytes(fh_cuda_device *d, uint64_t *total, buffer *b, const void *from, size_t bytes, fh_err *err)
{
    if (!from || !bytes) return FH_OK;
    fh_status rc = fh_cuda_room(d, total, b, bytes, err);
    if (rc < 0) return rc;
    TRY(cudaMemcpyAsync(b->p, from, bytes, cudaMemcpyHostToDevice, d->stream), "copying the head");
    return FH_OK;
}

static fh_status copy_array(fh_cuda_head *h, buffer *b, const void *from, size_t bytes, fh_err *err)
{
    return copy_bytes(h->device, &h->bytes, b, from, bytes, err);
}

static size_t rows_bytes(const fh_rows *m) { return m->data ? m->rows * device_stride(m) : 0; }

fh_status fh_cuda_copy_rows(fh_cuda_device *d, uint64_t *total, head_rows *out, buffer *b, buffer *scales, const fh_rows *m, const void *from_scales,
                            fh_err *err)
{
    if (!m->data) return FH_OK;
    fh_status rc = fh_cuda_room(d, total, b, rows_bytes(m), err);
    if (rc < 0) return rc;
    TRY(cudaMemsetAsync(b->p, 0, rows_bytes(m), d->stream), "copying the head");
    TRY(cudaMemcpy2DAsync(b->p, device_stride(m), m->data, m->stride, fh_row_bytes(m->dtype, m->cols), m->rows, cudaMemcpyHostToDevice, d->stream),
        "copying the head");
    if (scales && (rc = copy_bytes(d, total, scales, from_scales, m->rows * fh_scale_bytes(m->dtype, m->cols), err)) < 0) return rc;
    out->data = static_cast<const unsigned char *>(b->p), out->scales = scales ? scales->p : nullptr;
    out->stride = device_stride(m), out->groups = static_cast<uint32_t>(fh_scale_bytes(FH_I4, m->cols) / 2), out->dtype = m->dtype;
    return FH_OK;
}

static fh_status copy_rows(fh_cuda_head *h, head_rows *out, buffer *b, buffer *scales, const fh_rows *m, const void *from_scales, fh_err *err)
{
    return fh_cuda_copy_rows(h->device, &h->bytes, out, b, scales, m, from_scales, err);
}

/* Tokens of slots, dead ones left out; in host memory, freed by the caller. */
static uint32_t *live_tokens(const fh_cuda_host *host, const fh_cuda_source *s, size_t slots)
{
    uint32_t *to = static_cast<uint32_t *>(host->allocate(slots, sizeof *to));
    for (size_t i = 0; to && i < slots; i++) {
        uint32_t id = s->parts->permutation[i];
        to[i] = id == FH_NO_TOKEN || s->dead[id] ? FH_NO_TOKEN : id;
    }
    return to;
}

static size_t source_bytes(const fh_cuda_source *s)
{
    const fh_head_parts *p = s->parts;
    size_t slots = static_cast<size_t>(p->clusters) * p->cap, v = p->vocab;
    size_t rows = rows_bytes(&p->centroids) + rows_bytes(&p->tokens) + rows_bytes(&p->exact);
    size_t a_slot = 4 + fh_scale_bytes(p->tokens.dtype, p->hidden), a_cluster = 16 + fh_scale_bytes(p->centroids.dtype, p->hidden);
    if (s->dense.data != p->exact.data) rows += rows_bytes(&s->dense);
    return rows + slots * a_slot + p->clusters * a_cluster + v * (p->bias ? 8 : 4) + FH_CUDA_BATCH * 4ull * (p->clusters + p->hidden);
}

/* Shared memory of a block, in bytes, and how many states it holds at a time.  48 KiB need no leave; one state may. */
static size_t plan_shared(head_params *c)
{
    enum : size_t { PLAIN = 48 << 10 };
    bool routed = !c->all;
    fh_dtype t[2] = {c->rows.dtype, routed ? c->centroids.dtype : c->rows.dtype};
    bool integers = fh_dtype_is_integer(t[0]) || fh_dtype_is_integer(t[1]), floats = fh_dtype_is_float(t[0]) || fh_dtype_is_float(t[1]);
    c->layout = layout_for(c->hidden, floats, integers, t[0] == FH_I4 || t[1] == FH_I4);
    size_t fit = (PLAIN - SHARED_FIXED) / c->layout.bytes;
    c->tile = static_cast<uint32_t>(fh_min(c->batch, fh_max(fit, 1)));
    return SHARED_FIXED + fh_max(static_cast<size_t>(c->tile) * c->layout.bytes, finish_bytes(c->kept, c->hidden));
}

fh_status fh_cuda_too_wide(const fh_cuda_device *d, const char *what, uint32_t n, size_t shared, fh_err *err)
{
    return d->host->fail(err, FH_EUNSUPPORTED, "CUDA device %d (%s): %s %u takes %zu bytes of shared memory, it has %zu: use --device cpu",
                         d->ordinal, d->info.name, what, n, shared, d->shared);
}

/* One state and what its reranking keeps have to fit. */
static fh_status check_width(const fh_cuda_device *d, const fh_cuda_source *s, fh_err *err)
{
    head_params c = {};
    c.hidden = s->parts->hidden, c.batch = 1, c.kept = static_cast<uint32_t>(fh_min(FH_CUDA_KEPT, s->parts->rerank + 1ull));
    c.rows.dtype = s->parts->tokens.dtype, c.centroids.dtype = s->parts->centroids.dtype;
    size_t shared = plan_shared(&c);
    return shared > d->shared ? fh_cuda_too_wide(d, "a hidden size of", c.hidden, shared, err) : FH_OK;
}

static fh_status copy_head(fh_cuda_head *h, const fh_cuda_source *s, fh_err *err)
{
    fh_cuda_device *d = h->device;
    const fh_head_parts *p = s->parts;
    head_params *c = &h->fixed;
    size_t slots = static_cast<size_t>(p->clusters) * p->cap;
    fh_status rc;
    if ((rc = check_width(d, s, err)) < 0 || (rc = fh_cuda_fits(d, "the head", source_bytes(s), err)) < 0) return rc;
    *c = {};
    c->hidden = p->hidden, c->clusters = p->clusters, c->cap = p->cap, c->exact_by_token = p->exact_by_token, c->softcap = p->softcap;
    if ((rc = copy_rows(h, &c->centroids, &h->centroids, &h->centroid_scales, &p->centroids, p->centroid_scales, err)) < 0 ||
        (rc = copy_rows(h, &h->tokens, &h->rows, &h->row_scales, &p->tokens, p->token_scales, err)) < 0 ||
        (rc = copy_rows(h, &c->exact, &h->exact, nullptr, &p->exact, nullptr, err)) < 0) return rc;
    h->has_dense = s->dense.data;
    if (s->dense.data == p->exact.data) h->dense = c->exact;
    else if (s->dense.data == p->tokens.data) h->dense = h->tokens;
    else if ((rc = copy_rows(h, &h->dense, &h->dense_rows, nullptr, &s->dense, nullptr, err)) < 0) return rc;
    uint32_t *tokens = live_tokens(d->host, s, slots);
    if (!tokens) return d->host->fail(err, FH_ENOMEM, "out of memory");
    rc = copy_array(h, &h->token_of, tokens, slots * sizeof *tokens, err);
    cudaError_t e = cudaStreamSynchronize(d->stream);
    d->host->release(tokens);
    if (rc < 0) return rc;
    TRY(e, "copying the head");
    if ((rc = copy_array(h, &h->slot_of, s->slot_of, p->vocab * sizeof *s->slot_of, err)) < 0 ||
        (rc = copy_array(h, &h->bias, p->bias, p->vocab * sizeof *p->bias, err)) < 0 ||
        (rc = copy_array(h, &h->always, s->always, s->n_always * sizeof *s->always, err)) < 0 ||
        (rc = copy_array(h, &h->forced, s->forced, s->n_forced * sizeof *s->forced, err)) < 0 ||
        (rc = fh_cuda_grow(h, &h->probed, p->clusters * sizeof(fh_u64), err)) < 0 ||
        (rc = fh_cuda_grow(h, &h->list, p->clusters * sizeof(uint32_t), err)) < 0 ||
        (rc = fh_cuda_grow(h, &h->counters, 3 * sizeof(uint32_t), err)) < 0 || (rc = fh_cuda_grow(h, &h->counts, FH_CUDA_BATCH * sizeof(uint32_t), err)) < 0 ||
        (rc = fh_cuda_grow(h, &h->best, FH_CUDA_BATCH * sizeof(fh_u64), err)) < 0) return rc;
    c->token_of = static_cast<uint32_t *>(h->token_of.p), c->slot_of = static_cast<uint32_t *>(h->slot_of.p), c->bias = static_cast<float *>(h->bias.p);
    c->probed = static_cast<fh_u64 *>(h->probed.p), c->list = static_cast<uint32_t *>(h->list.p), c->counters = static_cast<uint32_t *>(h->counters.p);
    c->counts = static_cast<uint32_t *>(h->counts.p), c->best = static_cast<fh_u64 *>(h->best.p);
    h->vocab = p->vocab, h->n_always = static_cast<uint32_t>(s->n_always), h->n_forced = static_cast<uint32_t>(s->n_forced);
    h->unsettled = true;
    TRY(cudaStreamSynchronize(d->stream), "copying the head");
    return FH_OK;
}

static void head_free(fh_cuda_head *h)
{
    if (!h) return;
    buffer *all[] = {&h->centroids, &h->centroid_scales, &h->rows, &h->row_scales, &h->exact, &h->dense_rows, &h->token_of, &h->slot_of, &h->bias,
                     &h->always, &h->forced, &h->states, &h->falls, &h->probed, &h->list, &h->counters, &h->counts, &h->best, &h->candidates, &h->extras,
                     &h->excluded, &h->random, &h->results};
    cudaSetDevice(h->device->ordinal);
    for (buffer *b : all) cudaFree(b->p);
    cudaFreeHost(h->pinned_in.p);
    cudaFreeHost(h->pinned_out.p);
    h->device->host->release(h);
}

static fh_status head_new(fh_cuda_head **out, fh_cuda_device *d, const fh_cuda_source *source, fh_err *err)
{
    fh_cuda_head *h = static_cast<fh_cuda_head *>(d->host->allocate(1, sizeof *h));
    if (!h) return d->host->fail(err, FH_ENOMEM, "out of memory");
    h->device = d;
    fh_status rc = copy_head(h, source, err);
    if (rc < 0) head_free(h);
    else *out = h;
    return rc;
}

static uint64_t head_bytes(const fh_cuda_head *h) { return h->bytes; }
static void head_apart(fh_cuda_head *h, bool apart) { h->apart = apart; }

/* ---- a call ------------------------------------------------------------------------------------------------------------ */

/* Blocks that fill the device, all there at once. */
static fh_status fill_device(fh_cuda_head *h, size_t shared, fh_err *err)
{
    fh_cuda_device *d = h->device;
    int each = 0;
    if (h->blocks && h->blocks_for == shared) return FH_OK;
    if (shared > d->shared) return fh_cuda_too_wide(d, "a hidden size of", h->fixed.hidden, shared, err);
    int bytes = static_cast<int>(shared);
    TRY(cudaFuncSetAttribute(head_together, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "asking for shared memory");
    TRY(cudaFuncSetAttribute(head_stage1, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "asking for shared memory");
    TRY(cudaFuncSetAttribute(head_choose, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "asking for shared memory");
    TRY(cudaFuncSetAttribute(head_stage2, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "asking for shared memory");
    TRY(cudaFuncSetAttribute(head_finish, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "asking for shared memory");
    TRY(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, head_together, HEAD_THREADS, shared), "planning a launch");
    if (each < 1)
        return d->host->fail(err, FH_EUNSUPPORTED, "CUDA device %d (%s): no block of the head fits a multiprocessor: use --device cpu", d->ordinal,
                             d->info.name);
    h->blocks = static_cast<unsigned>(each) * static_cast<unsigned>(d->info.multiprocessors);
    h->blocks_for = shared;
    return FH_OK;
}

fh_status fh_cuda_enqueue(fh_cuda_head *h, const head_params *c, size_t shared, fh_err *err)
{
    fh_cuda_device *d = h->device;
    if (d->info.together && !h->apart) {
        TRY(fh_launch(head_together, h->blocks, HEAD_THREADS, shared, d->stream, *c, true), "starting the head");
        return FH_OK;
    }
    TRY(fh_launch(head_stage1, h->blocks, HEAD_THREADS, shared, d->stream, *c, false), "starting the head");
    if (!c->all) TRY(fh_launch(head_choose, c->batch, HEAD_THREADS, shared, d->stream, *c, false), "starting the head");
    TRY(fh_launch(head_stage2, h->blocks, HEAD_THREADS, shared, d->stream, *c, false), "starting the head");
    TRY(fh_launch(head_finish, c->batch, HEAD_THREADS, shared, d->stream, *c, false), "starting the head");
    return FH_OK;
}

/* What the call asks for beyond the head's own. */
static fh_status copy_query(fh_cuda_head *h, const fh_head_call *call, head_params *c, fh_err *err)
{
    fh_status rc;
    c->extras = static_cast<const uint32_t *>(call->no_hot ? h->always.p : h->forced.p), c->n_extras = call->no_hot ? h->n_always : h->n_forced;
    if (call->extras) {
        if ((rc = copy_array(h, &h->extras, call->extras, call->n_extras * sizeof *call->extras, err)) < 0) return rc;
        c->extras = static_cast<const uint32_t *>(h->extras.p), c->n_extras = static_cast<uint32_t>(call->n_extras);
    }
    if (c->all) c->n_extras = 0;
    if (call->excluded) {
        if ((rc = copy_array(h, &h->excluded, call->excluded, h->vocab, err)) < 0) return rc;
        c->excluded = static_cast<const uint8_t *>(h->excluded.p);
    }
    return FH_OK;
}

/* Ids, logits and how many clusters each state probed, one after another. */
static size_t results_bytes(const head_params *c) { return c->batch * (2 * static_cast<size_t>(c->k) + 1) * sizeof(uint32_t); }

fh_status fh_cuda_prepare(fh_cuda_head *h, const fh_head_call *call, head_params *c, size_t *shared, fh_err *err)
{
    fh_cuda_device *d = h->device;
    fh_status rc;
    *c = h->fixed;
    c->batch = static_cast<uint32_t>(call->batch), c->probes = call->probes, c->all = call->dense || (call->probes >= c->clusters && !(call->threshold > 0));
    c->threshold = c->all ? 0 : call->threshold;
    c->kept = call->kept, c->rerank = call->dense ? 0 : call->rerank, c->k = call->k;
    c->rows = call->dense ? h->dense : h->tokens;
    size_t n = c->batch, in = n * c->hidden * sizeof(float);
    bool best = c->kept == 1 && !c->rerank && !call->random;
    *shared = plan_shared(c);
    if ((rc = fill_device(h, *shared, err)) < 0 || (rc = copy_query(h, call, c, err)) < 0) return rc;
    c->room = (c->all ? c->clusters : c->probes) * c->cap + c->n_extras;
    if ((rc = fh_cuda_grow(h, &h->states, in, err)) < 0 || (rc = fh_cuda_grow(h, &h->falls, c->all ? 0 : n * c->clusters * sizeof(uint32_t), err)) < 0 ||
        (rc = fh_cuda_grow(h, &h->candidates, best ? 0 : n * c->room * sizeof(fh_u64), err)) < 0 ||
        (rc = fh_cuda_grow(h, &h->results, results_bytes(c), err)) < 0 ||
        (call->random && (rc = copy_array(h, &h->random, call->random, n * sizeof *call->random, err)) < 0) ||
        (rc = fh_cuda_pin(d, &h->pinned_in, in, err)) < 0 || (rc = fh_cuda_pin(d, &h->pinned_out, results_bytes(c) + sizeof(uint32_t), err)) < 0) return rc;
    c->states = static_cast<float *>(h->states.p), c->falls = static_cast<uint32_t *>(h->falls.p), c->candidates = static_cast<fh_u64 *>(h->candidates.p);
    c->random = static_cast<double *>(call->random ? h->random.p : nullptr);
    c->temperature = call->sampling.temperature, c->top_p = call->sampling.top_p, c->min_p = call->sampling.min_p, c->top_k = call->sampling.top_k;
    c->ids = static_cast<uint32_t *>(h->results.p), c->logits = reinterpret_cast<float *>(c->ids + n * c->k), c->chosen = c->ids + 2 * n * c->k;
    if (h->unsettled) TRY(cudaMemsetAsync(h->counters.p, 0, 3 * sizeof(uint32_t), d->stream), "starting the head");
    h->unsettled = true;
    if (!call->states) return fh_cuda_take(d, d->left, static_cast<float *>(h->states.p), c->hidden, err);
    memcpy(h->pinned_in.p, call->states, in);
    TRY(cudaMemcpyAsync(h->states.p, h->pinned_in.p, in, cudaMemcpyHostToDevice, d->stream), "copying states");
    return FH_OK;
}

/* What goes with a state that a body left: is it strange, and when was it done with? */
static fh_status take_left(const fh_cuda_head *h, void *strange, fh_err *err)
{
    fh_cuda_device *d = h->device;
    TRY(cudaMemcpyAsync(strange, d->left_strange, sizeof(uint32_t), cudaMemcpyDeviceToHost, d->stream), "copying results");
    TRY(cudaEventRecord(d->events[2], d->stream), "timing it");
    return FH_OK;
}

static fh_status judge_left(const fh_cuda_head *h, const void *strange, fh_err *err)
{
    fh_cuda_device *d = h->device;
    float body = 0, head = 0;
    uint32_t is = 0;
    TRY(cudaEventElapsedTime(&body, d->events[0], d->events[1]), "timing it");
    TRY(cudaEventElapsedTime(&head, d->events[1], d->events[2]), "timing it");
    d->body_seconds += 1e-3 * static_cast<double>(body), d->head_seconds += 1e-3 * static_cast<double>(head);
    memcpy(&is, strange, sizeof is);
    return is ? d->host->fail(err, FH_EUSAGE, "a state that the body made is not of finite numbers; states have to be") : FH_OK;
}

static uint64_t clusters_probed(const head_params *c, const uint32_t *chosen)
{
    uint64_t sum = 0;
    for (uint32_t s = 0; s < c->batch && !c->all; s++) sum += c->threshold > 0 ? chosen[s] : c->probes;
    return sum;
}

static fh_status run(fh_cuda_head *h, const fh_head_call *call, uint32_t *ids, float *logits, fh_err *err)
{
    fh_cuda_device *d = h->device;
    head_params c;
    size_t shared, out = call->batch * call->k * sizeof *ids;
    fh_status rc;
    if ((rc = fh_cuda_prepare(h, call, &c, &shared, err)) < 0 || (rc = fh_cuda_enqueue(h, &c, shared, err)) < 0) return rc;
    uint8_t *results = static_cast<uint8_t *>(h->pinned_out.p), *strange = results + results_bytes(&c);
    TRY(cudaMemcpyAsync(results, h->results.p, results_bytes(&c), cudaMemcpyDeviceToHost, d->stream), "copying results");
    if (!call->states && (rc = take_left(h, strange, err)) < 0) return rc;
    TRY(cudaStreamSynchronize(d->stream), "running the head");
    h->unsettled = false;
    if (!call->states && (rc = judge_left(h, strange, err)) < 0) return rc;
    memcpy(ids, results, out);
    if (logits) memcpy(logits, results + out, out);
    if (call->probed) *call->probed += clusters_probed(&c, reinterpret_cast<const uint32_t *>(results + 2 * out));
    return FH_OK;
}

static fh_status check(const fh_cuda_head *h, const fh_head_call *call, fh_err *err)
{
    const fh_cuda_host *host = h->device->host;
    if (call->kept > FH_CUDA_KEPT)
        return host->fail(err, FH_EUSAGE, "the best %u of each state: on a CUDA device %d at most, those that are reranked counted: use --device cpu",
                          call->kept, FH_CUDA_KEPT);
    if (!call->states && (!h->device->left || h->device->left_width != h->fixed.hidden || call->batch != 1))
        return host->fail(err, FH_EUSAGE, "no body has left a state for the head on this device");
    if (call->dense && !h->has_dense)
        return host->fail(err, FH_ENOTFOUND, "the head has no exact rows, which the dense head is made of: pack it as a bundle or with --exact");
    return FH_OK;
}

static fh_status head_topk(fh_cuda_head *h, const fh_head_call *call, uint32_t *ids, float *logits, fh_err *err)
{
    fh_cuda_device *d = h->device;
    fh_status rc = check(h, call, err);
    if (rc < 0) return rc;
    TRY(cudaSetDevice(d->ordinal), "choosing it");
    for (size_t first = 0; rc == FH_OK && first < call->batch; first += FH_CUDA_BATCH) {
        fh_head_call some = *call;
        if (some.random) some.random += first;
        if (some.states) some.states += first * h->fixed.hidden;
        some.batch = fh_min(FH_CUDA_BATCH, call->batch - first);
        rc = run(h, &some, ids + first * call->k, logits ? logits + first * call->k : nullptr, err);
    }
    return rc;
}

static fh_status head_time(fh_cuda_head *h, fh_cuda_what what, const fh_head_call *call, size_t runs, double *seconds, uint32_t *ids, fh_err *err)
{
    fh_cuda_device *d = h->device;
    fh_status rc = check(h, call, err);
    if (rc < 0) return rc;
    if (call->batch > FH_CUDA_BATCH) return d->host->fail(err, FH_EUSAGE, "%zu states at a time: %d are the most of one launch", call->batch, FH_CUDA_BATCH);
    TRY(cudaSetDevice(d->ordinal), "choosing it");
    return fh_cuda_time(h, what, call, runs, seconds, ids, err);
}

extern "C" const fh_cuda_table *fh_cuda_backend(void)
{
    static const fh_cuda_table table = {FH_CUDA_ABI, FH_CUDA_SHAPES, FH_TOOL_VERSION, device_open, device_close, device_info, head_new, head_free, head_bytes,
                                        head_topk, head_apart, head_time, fh_cuda_attend, fh_cuda_clusterer_new,
                                        fh_cuda_clusterer_free, fh_cuda_clusterer_bytes, fh_cuda_clusterer_use, fh_cuda_clusterer_time,
                                        fh_cuda_multiplier_new, fh_cuda_multiplier_free, fh_cuda_multiplier_bytes, fh_cuda_multiplier_use,
                                        fh_cuda_multiplier_time,
                                        fh_cuda_body_new, fh_cuda_body_free, fh_cuda_body_bytes, fh_cuda_body_does,
                                        fh_cuda_body_attention, fh_cuda_body_measure, fh_cuda_body_prefer, device_times};
    return &table;
}
