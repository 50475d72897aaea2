/* body.cu: a transformer's body copied to the device, and its caches' pages.
 *
 * The switches are those of fh_body, which the CPU's forward pass reads too; weights are kept in their own type. Rows are padded with zeros to whole groups of
 * 8 values; [in, out] weights are turned, the blocks of Q8_0 taken apart into values and scales, and q, k and v put one behind the other where they are of one
 * type, so that the kernels know one layout. The input embedding stays with the host, which reads one row of it a token. */
#include "runtime/cuda/body_state.cuh"

/* ---- sizes --------------------------------------------------------------------------------------------------------- */

static uint32_t stride_of(const fh_linear *w)
{
    size_t each = w->dtype == FH_F32 ? 4 : w->dtype == FH_Q8_0 ? 1 : 2;
    return static_cast<uint32_t>(fh_round_up(body_pad(w->in) * each, 16));
}

static uint64_t linear_bytes(const fh_linear *w)
{
    if (!w->data) return 0;
    return w->out * (static_cast<uint64_t>(stride_of(w)) + (w->dtype == FH_Q8_0 ? w->in / FH_Q8_VALUES * 2 : 0) + (w->bias ? 4 : 0));
}

static uint64_t body_need(const fh_body *b)
{
    uint64_t sum = 2 * b->d * sizeof(float);
    for (size_t i = 0; i < b->n_layers; i++) {
        const fh_layer *l = &b->layers[i];
        for (unsigned j = 0; j < l->n_qkv; j++) sum += linear_bytes(&l->qkv[j]);
        sum += linear_bytes(&l->o) + linear_bytes(&l->gate) + linear_bytes(&l->up) + linear_bytes(&l->down) + 8 * b->d * sizeof(float);
    }
    size_t row = body_pad(b->d) * 2 + body_pad(b->qkv_width) + 2 * body_pad(b->heads * b->head_dim) + body_pad(b->ffn);
    return sum + FH_CALL_ROWS * row * sizeof(float);
}

/* ---- copying ------------------------------------------------------------------------------------------------------- */

/* Memory that stays until the body is freed, zeros. */
static fh_status own(fh_cuda_body *c, void **out, size_t bytes, fh_err *err)
{
    fh_cuda_device *d = c->device;
    TRY(cudaMalloc(out, bytes), "making room for the body");
    c->owned[c->n_owned++] = *out;
    c->bytes += bytes;
    TRY(cudaMemsetAsync(*out, 0, bytes, d->stream), "copying the body");
    return FH_OK;
}

static fh_status copy_vector(fh_cuda_body *c, const float **out, const float *from, size_t n, fh_err *err)
{
    fh_cuda_device *d = c->device;
    void *to;
    *out = nullptr;
    if (!from) return FH_OK;
    fh_status rc = own(c, &to, body_pad(n) * sizeof *from, err);
    if (rc < 0) return rc;
    TRY(cudaMemcpyAsync(to, from, n * sizeof *from, cudaMemcpyHostToDevice, d->stream), "copying the body");
    *out = static_cast<float *>(to);
    return FH_OK;
}

static fh_status copy_norm(fh_cuda_body *c, device_norm *out, const fh_norm *n, fh_err *err)
{
    fh_status rc = copy_vector(c, &out->weight, n->weight, c->b->d, err);
    return rc < 0 ? rc : copy_vector(c, &out->bias, n->bias, c->b->d, err);
}

/* [in, out] of `size` bytes each as [out, in]. */
static void turn(const fh_linear *w, size_t size, unsigned char *to)
{
    const unsigned char *from = static_cast<const unsigned char *>(w->data);
    for (size_t i = 0; i < w->in; i++)
        for (size_t o = 0; o < w->out; o++) memcpy(to + (o * w->in + i) * size, from + (i * w->out + o) * size, size);
}

/* Blocks of a scale and 32 values as values [out, in] and then scales [out, in / 32]. */
static void take_apart(const fh_linear *w, unsigned char *to)
{
    const unsigned char *from = static_cast<const unsigned char *>(w->data);
    size_t blocks = w->out * w->in / FH_Q8_VALUES;
    for (size_t i = 0; i < blocks; i++, from += FH_Q8_BYTES) {
        memcpy(to + i * FH_Q8_VALUES, from + 2, FH_Q8_VALUES);
        memcpy(to + w->out * w->in + 2 * i, from, 2);
    }
}

/* Rows of one matrix from row `first` of what is on the device. */
static fh_status copy_rows(fh_cuda_body *c, const device_linear *to, size_t first, const fh_linear *w, fh_err *err)
{
    fh_cuda_device *d = c->device;
    bool blocks = w->dtype == FH_Q8_0;
    size_t size = w->dtype == FH_F32 ? 4 : blocks ? 1 : 2, row = w->in * size, scales = blocks ? w->in / FH_Q8_VALUES * 2 : 0;
    unsigned char *made = nullptr;
    if (blocks || w->transposed) {
        if (!(made = static_cast<unsigned char *>(d->host->allocate(w->out, row + scales)))) return d->host->fail(err, FH_ENOMEM, "out of memory");
        if (blocks) take_apart(w, made);
        else turn(w, size, made);
    }
    unsigned char *at = const_cast<unsigned char *>(to->data) + first * to->stride;
    cudaError_t e = cudaMemcpy2DAsync(at, to->stride, made ? made : w->data, row, row, w->out, cudaMemcpyHostToDevice, d->stream);
    if (e == cudaSuccess && blocks)
        e = cudaMemcpyAsync(const_cast<uint16_t *>(to->scales) + first * (scales / 2), made + w->out * row, w->out * scales, cudaMemcpyHostToDevice, d->stream);
    if (e == cudaSuccess && w->bias)
        e = cudaMemcpyAsync(const_cast<float *>(to->bias) + first, w->bias, w->out * sizeof(float), cudaMemcpyHostToDevice, d->stream);
    cudaError_t done = cudaStreamSynchronize(d->stream); /* before what it reads is freed */
    d->host->release(made);
    TRY(e, "copying the body");
    TRY(done, "copying the body");
    return FH_OK;
}

/* n matrices of one type and width, one behind the other. */
static fh_status copy_linears(fh_cuda_body *c, device_linear *out, const fh_linear *w, unsigned n, fh_err *err)
{
    size_t rows = 0;
    bool biased = false;
    fh_status rc;
    void *data = nullptr, *scales = nullptr, *bias = nullptr;
    *out = {};
    if (!w->data) return FH_OK;
    for (unsigned i = 0; i < n; i++) rows += w[i].out, biased = biased || w[i].bias;
    out->out = static_cast<uint32_t>(rows), out->in = static_cast<uint32_t>(w->in), out->stride = stride_of(w), out->dtype = w->dtype;
    if ((rc = own(c, &data, rows * out->stride, err)) < 0 || (w->dtype == FH_Q8_0 && (rc = own(c, &scales, rows * (w->in / FH_Q8_VALUES) * 2, err)) < 0) ||
        (biased && (rc = own(c, &bias, rows * sizeof(float), err)) < 0)) return rc;
    out->data = static_cast<unsigned char *>(data), out->scales = static_cast<uint16_t *>(scales), out->bias = static_cast<float *>(bias);
    for (size_t i = 0, first = 0; i < n; first += w[i++].out)
        if ((rc = copy_rows(c, out, first, &w[i], err)) < 0) return rc;
    return FH_OK;
}

static fh_status copy_layer(fh_cuda_body *c, device_layer *to, const fh_layer *l, fh_err *err)
{
    fh_status rc;
    if ((rc = copy_norm(c, &to->attn_norm, &l->attn_norm, err)) < 0 || (rc = copy_norm(c, &to->mlp_norm, &l->mlp_norm, err)) < 0 ||
        (rc = copy_norm(c, &to->attn_post, &l->attn_post, err)) < 0 || (rc = copy_norm(c, &to->mlp_post, &l->mlp_post, err)) < 0 ||
        (rc = copy_vector(c, &to->q_norm, l->q_norm, c->b->head_dim, err)) < 0 ||
        (rc = copy_vector(c, &to->k_norm, l->k_norm, c->b->head_dim, err)) < 0) return rc;
    bool alike = true;
    for (unsigned i = 1; i < l->n_qkv; i++) alike = alike && l->qkv[i].dtype == l->qkv[0].dtype;
    to->n_qkv = alike ? 1 : l->n_qkv;
    for (unsigned i = 0; i < to->n_qkv; i++)
        if ((rc = copy_linears(c, &to->qkv[i], &l->qkv[i], alike ? l->n_qkv : 1, err)) < 0) return rc;
    if ((rc = copy_linears(c, &to->o, &l->o, 1, err)) < 0 || (rc = copy_linears(c, &to->gate, &l->gate, 1, err)) < 0 ||
        (rc = copy_linears(c, &to->up, &l->up, 1, err)) < 0) return rc;
    return copy_linears(c, &to->down, &l->down, 1, err);
}

static fh_status copy_body(fh_cuda_body *c, fh_err *err)
{
    enum : size_t { OF_A_LAYER = 10 + 7 * 3 }; /* vectors; matrices with scales and bias */
    fh_cuda_device *d = c->device;
    const fh_body *b = c->b;
    fh_status rc;
    TRY(cudaSetDevice(d->ordinal), "choosing it");
    if ((rc = fh_cuda_prefill_prepare(d, static_cast<uint32_t>(b->head_dim), err)) < 0 || (rc = fh_cuda_fits(d, "the body", body_need(b), err)) < 0) return rc;
    fh_err why = {};
    fh_status blas = fh_cuda_blas_open(d, &why);
    if (blas < 0 && blas != FH_ENOTFOUND) return d->host->fail(err, blas, "%s", why.text);
    c->blas = blas == FH_OK;
    c->layers = static_cast<device_layer *>(d->host->allocate(b->n_layers, sizeof *c->layers));
    c->owned = static_cast<void **>(d->host->allocate(b->n_layers * OF_A_LAYER + 2, sizeof *c->owned));
    if (!c->layers || !c->owned) return d->host->fail(err, FH_ENOMEM, "out of memory");
    for (size_t i = 0; i < b->n_layers; i++)
        if ((rc = copy_layer(c, &c->layers[i], &b->layers[i], err)) < 0) return rc;
    if ((rc = copy_norm(c, &c->final_norm, &b->final_norm, err)) < 0 || (rc = fh_cuda_room(d, &c->bytes, &c->recomputed, sizeof(fh_u64), err)) < 0) return rc;
    TRY(cudaMemsetAsync(c->recomputed.p, 0, sizeof(fh_u64), d->stream), "copying the body");
    TRY(cudaStreamSynchronize(d->stream), "copying the body");
    return FH_OK;
}

/* ---- pages ----------------------------------------------------------------------------------------------------------- */

static fh_status pages_new(void *ctx, size_t bytes, void **pages, fh_err *err)
{
    fh_cuda_device *d = static_cast<fh_cuda_body *>(ctx)->device;
    TRY(cudaSetDevice(d->ordinal), "choosing it");
    TRY(cudaMalloc(pages, bytes), "making room for keys and values");
    return FH_OK;
}

static void pages_free(void *ctx, void *pages)
{
    cudaSetDevice(static_cast<fh_cuda_body *>(ctx)->device->ordinal);
    cudaFree(pages);
}

static fh_status pages_copy(void *ctx, void *to, const void *from, size_t bytes, bool from_here, fh_err *err)
{
    fh_cuda_device *d = static_cast<fh_cuda_body *>(ctx)->device;
    TRY(cudaSetDevice(d->ordinal), "choosing it");
    TRY(cudaMemcpyAsync(to, from, bytes, from_here ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToDevice, d->stream), "copying keys and values");
    TRY(cudaStreamSynchronize(d->stream), "copying keys and values");
    return FH_OK;
}

/* ---- a body ------------------------------------------------------------------------------------------------------------ */

void fh_cuda_body_free(fh_cuda_body *c)
{
    if (!c) return;
    cudaSetDevice(c->device->ordinal);
    if (c->pending) cudaStreamSynchronize(c->device->stream);
    c->device->left = nullptr;
    fh_cuda_body_forget(c);
    buffer *all[] = {&c->in, &c->h, &c->qkv, &c->q, &c->att, &c->ff, &c->partial, &c->recomputed, &c->halves, &c->results};
    for (buffer *b : all) cudaFree(b->p);
    for (size_t i = 0; i < c->n_owned; i++) cudaFree(c->owned[i]);
    cudaFreeHost(c->pinned.p);
    c->device->host->release(c->products);
    c->device->host->release(c->layers);
    c->device->host->release(c->owned);
    c->device->host->release(c);
}

fh_status fh_cuda_body_new(fh_cuda_body **out, fh_cuda_device *d, const fh_body *b, fh_err *err)
{
    fh_cuda_body *c = static_cast<fh_cuda_body *>(d->host->allocate(1, sizeof *c));
    if (!c) return d->host->fail(err, FH_ENOMEM, "out of memory");
    c->device = d, c->b = b;
    c->does = {c, pages_new, pages_free, pages_copy, fh_cuda_body_forward};
    fh_status rc = copy_body(c, err);
    if (rc < 0) fh_cuda_body_free(c);
    else *out = c;
    return rc;
}

const fh_body_device *fh_cuda_body_does(const fh_cuda_body *c) { return &c->does; }
uint64_t fh_cuda_body_bytes(const fh_cuda_body *c) { return c->bytes; }

fh_status fh_cuda_body_attention(fh_cuda_body *c, uint64_t *recomputed, uint64_t *parts, fh_err *err)
{
    fh_cuda_device *d = c->device;
    fh_u64 count = 0;
    TRY(cudaSetDevice(d->ordinal), "choosing it");
    TRY(cudaMemcpyAsync(&count, c->recomputed.p, sizeof count, cudaMemcpyDeviceToHost, d->stream), "asking what was done again");
    TRY(cudaStreamSynchronize(d->stream), "asking what was done again");
    *recomputed = count, *parts = c->parts;
    return FH_OK;
}
