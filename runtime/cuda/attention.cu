/* attention.cu: attention of a decoding step on the device, as the body starts it, and by itself: what it is checked and measured with. */
#include "runtime/cuda/attention.cuh"

fh_status fh_cuda_decode(fh_cuda_device *d, const attention_params *p, fh_err *err)
{
    void (*split)(attention_params) = p->d <= 256 ? attention_split<8> : attention_split<ATT_MOST_DIM / 32>;
    TRY(fh_launch(split, p->n * p->kv_heads * p->splits, ATT_THREADS, attention_shared(p->d), d->stream, *p, false), "starting attention");
    TRY(fh_launch(attention_combine, p->n * p->heads, ATT_THREADS, 0, d->stream, *p, false), "starting attention");
    return FH_OK;
}

/* ---- by itself ------------------------------------------------------------------------------------------------------- */

struct attending { fh_cuda_device *device; attention_params params; };

static fh_status enqueue(void *ctx, fh_err *err)
{
    attending *c = static_cast<attending *>(ctx);
    return fh_cuda_decode(c->device, &c->params, err);
}

static fh_status check(const fh_cuda_device *d, const fh_cuda_attention *a, size_t *longest, fh_err *err)
{
    const fh_cuda_host *host = d->host;
    *longest = 0;
    if (!a->n || !a->kv_heads || !a->heads || a->heads % a->kv_heads)
        return host->fail(err, FH_EUSAGE, "attention: %zu sequences, %zu heads on %zu key heads", a->n, a->heads, a->kv_heads);
    if (!a->d || a->d > ATT_MOST_DIM) return host->fail(err, FH_EUSAGE, "attention: heads of %zu values: 1 to %u", a->d, ATT_MOST_DIM);
    if (!fh_dtype_is_float(a->dtype)) return host->fail(err, FH_EUSAGE, "attention: keys and values of %d: f32, f16 or bf16", static_cast<int>(a->dtype));
    for (size_t i = 0; i < a->n; i++) {
        if (!a->lengths[i] || a->lengths[i] > ATT_PAGE * a->most_pages)
            return host->fail(err, FH_EUSAGE, "attention: sequence %zu has %u keys: 1 to %zu", i, a->lengths[i], ATT_PAGE * a->most_pages);
        *longest = fh_max(*longest, a->lengths[i]);
    }
    return FH_OK;
}

void fh_cuda_cut(const fh_cuda_device *d, attention_params *c, size_t asked, size_t longest)
{
    size_t pages = (longest + ATT_PAGE - 1) / ATT_PAGE, blocks = static_cast<size_t>(c->n) * c->kv_heads;
    size_t splits = asked ? asked : fh_max(1, 4 * static_cast<size_t>(d->info.multiprocessors) / blocks);
    splits = fh_min(splits, pages);
    c->split_pages = static_cast<uint32_t>((pages + splits - 1) / splits);
    c->splits = static_cast<uint32_t>((pages + c->split_pages - 1) / c->split_pages);
}

static fh_status carve(fh_cuda_device *d, void **to, const void *from, size_t bytes, fh_err *err)
{
    TRY(cudaMalloc(to, bytes), "making room for attention");
    if (from) TRY(cudaMemcpyAsync(*to, from, bytes, cudaMemcpyHostToDevice, d->stream), "copying what attention reads");
    return FH_OK;
}

/* Pages one after another, the last first, and where each of them is. */
static fh_status copy_pages(fh_cuda_device *d, const fh_cuda_attention *a, void **table, char *to, size_t page_bytes, fh_err *err)
{
    size_t all = a->n * a->most_pages;
    for (size_t i = 0; i < all; i++) {
        bool used = i % a->most_pages * ATT_PAGE < a->lengths[i / a->most_pages];
        table[i] = used ? to + (all - 1 - i) * page_bytes : nullptr;
        if (used) TRY(cudaMemcpyAsync(to + (all - 1 - i) * page_bytes, a->pages[i], page_bytes, cudaMemcpyHostToDevice, d->stream), "copying keys and values");
    }
    return FH_OK;
}

fh_status fh_cuda_attend(fh_cuda_device *d, const fh_cuda_attention *a, float *out, uint64_t *recomputed, uint64_t *parts, size_t runs, double *seconds,
                         fh_err *err)
{
    enum { Q, PAGES, TABLE, LENGTHS, PARTIAL, COUNT, OUT, ALL };
    void *at[ALL] = {};
    attending c = {};
    stopwatch k = {};
    size_t longest, rows = a->n * a->heads, page_bytes = 2 * a->kv_heads * ATT_PAGE * a->d * (a->dtype == FH_F32 ? 4 : 2), all = a->n * a->most_pages;
    fh_u64 count = 0;
    cudaError_t e;
    fh_status rc = check(d, a, &longest, err);
    if (rc < 0) return rc;
    void **table = static_cast<void **>(d->host->allocate(all, sizeof *table));
    if (!table) return d->host->fail(err, FH_ENOMEM, "out of memory");
    attention_params *p = &c.params;
    p->n = static_cast<uint32_t>(a->n), p->heads = static_cast<uint32_t>(a->heads), p->kv_heads = static_cast<uint32_t>(a->kv_heads),
        p->d = static_cast<uint32_t>(a->d);
    p->most_pages = static_cast<uint32_t>(a->most_pages), p->window = a->window, p->scale = a->scale, p->softcap = a->softcap,
        p->constant = a->constant, p->unified = a->unified;
    p->layout.type = a->dtype, p->layout.block_bytes = page_bytes / (2 * a->kv_heads), p->ld = p->heads * p->d;
    fh_cuda_cut(d, p, a->splits, longest);
    if ((rc = carve(d, &at[Q], a->q, rows * a->d * sizeof(float), err)) < 0 || (rc = carve(d, &at[PAGES], nullptr, all * page_bytes, err)) < 0 ||
        (rc = copy_pages(d, a, table, static_cast<char *>(at[PAGES]), page_bytes, err)) < 0 ||
        (rc = carve(d, &at[TABLE], table, all * sizeof *table, err)) < 0 || (rc = carve(d, &at[LENGTHS], a->lengths, a->n * sizeof *a->lengths, err)) < 0 ||
        (rc = carve(d, &at[COUNT], &count, sizeof count, err)) < 0 ||
        (rc = carve(d, &at[PARTIAL], nullptr, rows * p->splits * (a->d + 2) * sizeof(float), err)) < 0 ||
        (rc = carve(d, &at[OUT], nullptr, rows * a->d * sizeof(float), err)) < 0) goto done;
    p->q = static_cast<float *>(at[Q]), p->pages = static_cast<void **>(at[TABLE]), p->lengths = static_cast<uint32_t *>(at[LENGTHS]),
        p->partial = static_cast<float *>(at[PARTIAL]);
    p->recomputed = static_cast<fh_u64 *>(at[COUNT]), p->out = static_cast<float *>(at[OUT]);
    c.device = d;
    if ((rc = enqueue(&c, err)) < 0) goto done;
    e = cudaMemcpyAsync(out, p->out, rows * a->d * sizeof(float), cudaMemcpyDeviceToHost, d->stream);
    if (e == cudaSuccess) e = cudaMemcpyAsync(&count, p->recomputed, sizeof count, cudaMemcpyDeviceToHost, d->stream);
    if (e == cudaSuccess) e = cudaStreamSynchronize(d->stream);
    if (e != cudaSuccess) { rc = fh_cuda_failed(d, err, e, "running attention"); goto done; }
    *recomputed = count, *parts = rows * p->splits;
    if (runs) rc = fh_cuda_clock(d, &k, enqueue, &c, runs, seconds, err);
done:
    cudaStreamSynchronize(d->stream); /* before what it may still read is freed */
    fh_cuda_clock_free(&k);
    for (void *m : at) cudaFree(m);
    d->host->release(table);
    return rc;
}
