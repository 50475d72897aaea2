/* products.cu: which kernel multiplies, by shape: measured on this device, or as someone measured before. */
#include "runtime/cuda/body_state.cuh"

/* Rows that are measured; a call takes the entry of the fewest that are not fewer than its own, or the last. */
static const uint32_t measured_rows[] = {1, 2, 4, 8, 16, 64, 256};
enum : size_t { MEASURED = sizeof measured_rows / sizeof *measured_rows, MOST_ROWS = 256 };

static bool same(const fh_cuda_product_time *t, const device_linear &w, bool gated)
{
    return t->out == w.out && t->in == w.in && t->dtype == w.dtype && t->gated == gated;
}

product_kind fh_cuda_product_kind(const fh_cuda_body *c, const device_linear &w, bool gated, uint32_t rows)
{
    const fh_cuda_product_time *best = nullptr;
    for (size_t i = 0; i < c->n_products; i++) {
        const fh_cuda_product_time *t = &c->products[i];
        if (!same(t, w, gated)) continue;
        bool better = !best || (t->rows >= rows ? best->rows < rows || t->rows < best->rows : best->rows < rows && t->rows > best->rows);
        if (better) best = t;
    }
    unsigned kind = FH_PRODUCTS;
    for (unsigned k = 0; best && k < FH_PRODUCTS; k++)
        if (best->seconds[k] > 0 && (kind == FH_PRODUCTS || best->seconds[k] < best->seconds[kind])) kind = k;
    return kind == FH_PRODUCTS ? PRODUCT_AUTO : static_cast<product_kind>(PRODUCT_FEW + kind);
}

fh_status fh_cuda_body_prefer(fh_cuda_body *c, const fh_cuda_product_time *times, size_t n, fh_err *err)
{
    const fh_cuda_host *host = c->device->host;
    fh_cuda_product_time *kept = static_cast<fh_cuda_product_time *>(host->allocate(fh_max(n, 1), sizeof *kept));
    if (!kept) return host->fail(err, FH_ENOMEM, "out of memory");
    for (size_t i = 0; i < n; i++) kept[i] = times[i];
    host->release(c->products);
    c->products = kept, c->n_products = n;
    fh_cuda_body_forget(c);
    return FH_OK;
}

/* ---- measuring ----------------------------------------------------------------------------------------------------------- */

struct measuring { fh_cuda_device *device; product_kind kind; product_params params; };

static fh_status enqueue(void *ctx, fh_err *err)
{
    measuring *m = static_cast<measuring *>(ctx);
    return fh_cuda_product(m->device, m->kind, &m->params, err);
}

static double median(double *seconds, size_t n)
{
    for (size_t i = 1; i < n; i++)
        for (size_t j = i; j && seconds[j] < seconds[j - 1]; j--) {
            double other = seconds[j];
            seconds[j] = seconds[j - 1], seconds[j - 1] = other;
        }
    return seconds[n / 2];
}

/* All kernels that can, with the weights of one matrix and states of zeros. */
static fh_status measure(fh_cuda_body *c, fh_cuda_product_time *t, const device_linear &w, const device_linear *gate, size_t runs, double *seconds, fh_err *err)
{
    measuring m = {c->device, PRODUCT_AUTO, {w, {}, static_cast<float *>(c->ff.p), body_pad(w.in), t->rows, static_cast<float *>(c->qkv.p), body_pad(w.out),
                                             gate ? FH_THEN_GATE : FH_THEN_STORE, c->b->config->act, false, static_cast<uint16_t *>(c->halves.p),
                                             static_cast<float *>(c->results.p)}};
    if (gate) m.params.gate = *gate;
    for (unsigned k = 0; k < FH_PRODUCTS; k++) {
        stopwatch watch = {};
        m.kind = static_cast<product_kind>(PRODUCT_FEW + k);
        if (!fh_cuda_product_can(m.kind, &m.params)) continue;
        fh_status rc = fh_cuda_clock(c->device, &watch, enqueue, &m, runs, seconds, err);
        fh_cuda_clock_free(&watch);
        if (rc < 0) return rc;
        double took = median(seconds, runs);
        t->seconds[k] = took > 0 ? took : 1e-9;
    }
    return FH_OK;
}

/* Matrices of a layer, each with its gate. */
struct shapes { const device_linear *w[7], *gate[7]; unsigned n; };
static shapes shapes_of(const device_layer &l)
{
    shapes s = {};
    for (unsigned i = 0; i < l.n_qkv; i++) s.w[s.n++] = &l.qkv[i];
    s.w[s.n++] = &l.o;
    if (l.gate.data && l.gate.dtype != l.up.dtype) s.w[s.n++] = &l.gate;
    else if (l.gate.data) s.gate[s.n] = &l.gate;
    s.w[s.n++] = &l.up, s.w[s.n++] = &l.down;
    return s;
}

/* The widest of each: any product reads from one and writes to the other. */
static fh_status room_for_any(fh_cuda_body *c, fh_err *err)
{
    const fh_body *b = c->b;
    size_t widest = fh_max(fh_max(b->ffn, b->d), fh_max(b->heads * b->head_dim, b->qkv_width));
    fh_status rc = fh_cuda_body_room(c, &c->ff, MOST_ROWS, widest, err);
    if (rc == FH_OK) rc = fh_cuda_body_room(c, &c->qkv, MOST_ROWS, widest, err);
    return rc < 0 ? rc : fh_cuda_body_room_for_blas(c, MOST_ROWS, err);
}

fh_status fh_cuda_body_measure(fh_cuda_body *c, size_t runs, fh_cuda_product_time *times, size_t room, size_t *n, fh_err *err)
{
    fh_cuda_device *d = c->device;
    *n = 0;
    TRY(cudaSetDevice(d->ordinal), "choosing it");
    TRY(cudaStreamSynchronize(d->stream), "running the body");
    fh_status rc = room_for_any(c, err);
    double *seconds = rc < 0 ? nullptr : static_cast<double *>(d->host->allocate(runs, sizeof *seconds));
    if (rc == FH_OK && !seconds) rc = d->host->fail(err, FH_ENOMEM, "out of memory");
    for (size_t l = 0; rc == FH_OK && l < c->b->n_layers; l++) {
        shapes s = shapes_of(c->layers[l]);
        for (unsigned i = 0; i < s.n; i++) {
            bool known = false;
            for (size_t k = 0; k < *n; k++) known = known || same(&times[k], *s.w[i], s.gate[i]);
            for (size_t k = 0; rc == FH_OK && !known && k < MEASURED && *n < room; k++) {
                fh_cuda_product_time *t = &times[(*n)++];
                *t = {s.w[i]->out, s.w[i]->in, measured_rows[k], s.w[i]->dtype, s.gate[i] != nullptr, {}};
                rc = measure(c, t, *s.w[i], s.gate[i], runs, seconds, err);
            }
        }
    }
    d->host->release(seconds);
    return rc;
}
