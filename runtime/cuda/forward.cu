/* forward.cu: some rows through all layers of a body: run_layer of runtime/body.c in launches.
 *
 * Everything that a call brings (embeddings, angles, positions, tables of pages) is one copy to the device, its states are one copy back, and nothing is
 * waited for in between. Rows that stand alone (decoding) attend by splits of their keys, runs of rows (prompts) by tiles. A step of which every row stands
 * alone is captured in a graph the second time its shape is met (the first loads whatever is loaded once); the tables' width is rounded up, so that a shape
 * lasts for many steps. */
#include "runtime/cuda/body_state.cuh"

enum : uint32_t { GRAPH_ROWS = 64 };

/* A call's arrays, at the same offsets of pinned and of device memory. */
struct call_parts {
    uint32_t ld, most_pages, decodes, tiles, longest;
    size_t x, angles, strange, position, sequence, lengths, rows, tables, tile, pages, bytes;
};

static size_t part(size_t *at, size_t bytes)
{
    size_t here = *at;
    *at += fh_round_up(bytes, 64);
    return here;
}

/* Pages of a table: rounded up to a quarter of a power of two. */
static uint32_t table_width(size_t pages)
{
    size_t step = 4;
    while (8 * step <= pages) step *= 2;
    return static_cast<uint32_t>((pages + step - 1) / step * step);
}

static call_parts plan(const fh_cuda_body *c, const fh_body_call *call)
{
    const fh_body *b = c->b;
    uint32_t positions = prefill_positions(static_cast<uint32_t>(b->heads / b->kv_heads));
    call_parts p = {};
    size_t longest = 0;
    for (size_t i = 0; i < call->n; i++) {
        const fh_run *r = &call->runs[i];
        longest = fh_max(longest, r->first + r->rows);
        if (r->rows == 1) p.decodes++;
        else p.tiles += static_cast<uint32_t>((r->rows - 1) / positions + 1);
    }
    p.ld = body_pad(b->d), p.most_pages = table_width((longest - 1) / ATT_PAGE + 1);
    p.x = part(&p.bytes, call->rows * p.ld * sizeof(float));
    p.angles = part(&p.bytes, call->rows * 4 * call->half * sizeof(float));
    p.strange = part(&p.bytes, sizeof(uint32_t));
    p.position = part(&p.bytes, call->rows * sizeof(uint32_t)), p.sequence = part(&p.bytes, call->rows * sizeof(uint32_t));
    p.lengths = part(&p.bytes, p.decodes * sizeof(uint32_t)), p.rows = part(&p.bytes, p.decodes * sizeof(uint32_t)),
    p.tables = part(&p.bytes, p.decodes * sizeof(uint32_t));
    p.tile = part(&p.bytes, p.tiles * sizeof(prefill_tile));
    p.pages = part(&p.bytes, call->n * p.most_pages * sizeof(void *));
    return p;
}

template <class T> static T *at(const buffer &b, size_t offset) { return reinterpret_cast<T *>(static_cast<unsigned char *>(b.p) + offset); }

static void fill(const fh_cuda_body *c, const fh_body_call *call, const call_parts &p)
{
    const fh_body *b = c->b;
    const buffer &to = c->pinned;
    uint32_t positions = prefill_positions(static_cast<uint32_t>(b->heads / b->kv_heads)), decode = 0, tile = 0;
    for (size_t r = 0; r < call->rows; r++) {
        float *x = at<float>(to, p.x) + r * p.ld;
        memcpy(x, call->x + r * b->d, b->d * sizeof *x);
        memset(x + b->d, 0, (p.ld - b->d) * sizeof *x);
    }
    memcpy(at<float>(to, p.angles), call->angles, call->rows * 4 * call->half * sizeof(float));
    *at<uint32_t>(to, p.strange) = 0;
    memset(at<void *>(to, p.pages), 0, call->n * p.most_pages * sizeof(void *));
    for (uint32_t i = 0; i < call->n; i++) {
        const fh_run *run = &call->runs[i];
        uint32_t row = static_cast<uint32_t>(run->row), first = static_cast<uint32_t>(run->first), rows = static_cast<uint32_t>(run->rows);
        memcpy(at<void *>(to, p.pages) + i * p.most_pages, run->pages, ((run->first + run->rows - 1) / ATT_PAGE + 1) * sizeof(void *));
        for (uint32_t r = 0; r < rows; r++) at<uint32_t>(to, p.position)[row + r] = first + r, at<uint32_t>(to, p.sequence)[row + r] = i;
        if (rows == 1) {
            at<uint32_t>(to, p.lengths)[decode] = first + 1, at<uint32_t>(to, p.rows)[decode] = row, at<uint32_t>(to, p.tables)[decode] = i;
            decode++;
            continue;
        }
        for (uint32_t r = 0; r < rows; r += positions)
            at<prefill_tile>(to, p.tile)[tile++] = {row + r, static_cast<uint32_t>(fh_min(positions, rows - r)), first + r, i};
    }
}

/* ---- launches ------------------------------------------------------------------------------------------------------------- */

struct step {
    fh_cuda_body *c;
    const fh_body_call *call;
    call_parts p;
    attention_params decode; prefill_params prefill; place_params place;
    float *x;
};

static fh_status norm(const step *s, const device_norm &n, const float *from, float *to, bool add, fh_err *err)
{
    const fh_body *b = s->c->b;
    norm_params p = {from, to, n.weight, n.bias, static_cast<uint32_t>(s->call->rows), static_cast<uint32_t>(b->d), s->p.ld, b->eps, b->layer_norm, add,
                     &n == &s->c->final_norm ? at<uint32_t>(s->c->in, s->p.strange) : nullptr};
    return fh_cuda_norm(s->c->device, &p, err);
}

static fh_status multiply(const step *s, const device_linear &w, const device_linear *gate, const buffer &x, float *out, uint32_t ld, fh_then then, bool onto,
                          fh_err *err)
{
    product_params p = {w, {}, static_cast<float *>(x.p), body_pad(w.in), static_cast<uint32_t>(s->call->rows), out, ld, then, s->c->b->config->act, onto,
                        static_cast<uint16_t *>(s->c->halves.p), static_cast<float *>(s->c->results.p)};
    if (gate) p.gate = *gate;
    return fh_cuda_product(s->c->device, fh_cuda_product_kind(s->c, w, gate, p.n), &p, err);
}

static fh_status attend(step *s, size_t index, fh_err *err)
{
    fh_cuda_device *d = s->c->device;
    const fh_body *b = s->c->b;
    const fh_layer *l = &b->layers[index];
    size_t offset = index * 2 * b->kv_heads * s->call->layout.block_bytes;
    fh_status rc;
    s->place.offset = s->decode.offset = s->prefill.offset = offset;
    s->place.q_norm = s->c->layers[index].q_norm, s->place.k_norm = s->c->layers[index].k_norm;
    s->place.dims = s->call->dims[l->local];
    s->place.cos = at<float>(s->c->in, s->p.angles) + (l->local ? 2 * s->call->half : 0), s->place.sin = s->place.cos + s->call->half;
    s->decode.window = s->prefill.window = l->window, s->decode.scale = s->prefill.scale = l->scale;
    s->decode.constant = l->unified.constant, s->decode.unified = !l->unified.wide;
    if ((rc = fh_cuda_place(d, &s->place, err)) < 0 || (s->p.decodes && (rc = fh_cuda_decode(d, &s->decode, err)) < 0)) return rc;
    return s->p.tiles ? fh_cuda_prefill(d, &s->prefill, err) : FH_OK;
}

/* act(gate h) * (up h): at once, where both are of one type. */
static fh_status multiply_gated(const step *s, const device_layer &l, fh_err *err)
{
    const fh_body *b = s->c->b;
    float *ff = static_cast<float *>(s->c->ff.p);
    uint32_t ld = body_pad(b->ffn);
    if (!l.gate.data) return multiply(s, l.up, nullptr, s->c->h, ff, ld, FH_THEN_ACT, false, err);
    if (l.gate.dtype == l.up.dtype) return multiply(s, l.up, &l.gate, s->c->h, ff, ld, FH_THEN_GATE, false, err);
    fh_status rc = multiply(s, l.up, nullptr, s->c->h, ff, ld, FH_THEN_STORE, false, err);
    return rc < 0 ? rc : multiply(s, l.gate, nullptr, s->c->h, ff, ld, FH_THEN_ACT, true, err);
}

/* As run_layer of runtime/body.c. */
static fh_status run_layer(step *s, size_t index, fh_err *err)
{
    fh_cuda_body *c = s->c;
    const fh_body *b = c->b;
    const device_layer &l = c->layers[index];
    uint32_t qkv_ld = body_pad(b->qkv_width);
    float *h = static_cast<float *>(c->h.p), *qkv = static_cast<float *>(c->qkv.p);
    fh_status rc;
    if ((rc = norm(s, l.attn_norm, s->x, h, false, err)) < 0) return rc;
    for (unsigned i = 0; i < l.n_qkv; qkv += l.qkv[i++].out)
        if ((rc = multiply(s, l.qkv[i], nullptr, c->h, qkv, qkv_ld, FH_THEN_STORE, false, err)) < 0) return rc;
    if ((rc = attend(s, index, err)) < 0) return rc;
    if (b->parallel && (rc = norm(s, l.mlp_norm, s->x, h, false, err)) < 0) return rc; /* before attention is added */
    if ((rc = multiply(s, l.o, nullptr, c->att, l.attn_post.weight ? h : s->x, s->p.ld, l.attn_post.weight ? FH_THEN_STORE : FH_THEN_ADD, false, err)) < 0)
        return rc;
    if (l.attn_post.weight && (rc = norm(s, l.attn_post, h, s->x, true, err)) < 0) return rc;
    if (!b->parallel && (rc = norm(s, l.mlp_norm, s->x, h, false, err)) < 0) return rc;
    if ((rc = multiply_gated(s, l, err)) < 0 ||
        (rc = multiply(s, l.down, nullptr, c->ff, l.mlp_post.weight ? h : s->x, s->p.ld, l.mlp_post.weight ? FH_THEN_STORE : FH_THEN_ADD, false, err)) < 0)
        return rc;
    return l.mlp_post.weight ? norm(s, l.mlp_post, h, s->x, true, err) : FH_OK;
}

static fh_status run_layers(step *s, fh_err *err)
{
    fh_status rc = FH_OK;
    for (size_t i = 0; rc == FH_OK && i < s->c->b->n_layers; i++) rc = run_layer(s, i, err);
    return rc < 0 ? rc : norm(s, s->c->final_norm, s->x, s->x, false, err);
}

/* ---- a graph of them ---------------------------------------------------------------------------------------------------------- */

void fh_cuda_body_forget(fh_cuda_body *c)
{
    if (c->has_exec) cudaGraphExecDestroy(c->exec);
    if (c->has_graph) cudaGraphDestroy(c->graph);
    c->has_exec = c->has_graph = false;
    c->captured.rows = 0;
}

static bool same_shape(const step_shape &a, const step_shape &b) { return a.rows == b.rows && a.most_pages == b.most_pages && a.type == b.type; }

static fh_status capture(step *s, const step_shape &shape, fh_err *err)
{
    fh_cuda_body *c = s->c;
    fh_cuda_device *d = c->device;
    fh_cuda_body_forget(c);
    TRY(cudaStreamBeginCapture(d->stream, cudaStreamCaptureModeThreadLocal), "capturing a step");
    fh_status rc = run_layers(s, err);
    cudaError_t e = cudaStreamEndCapture(d->stream, &c->graph);
    c->has_graph = e == cudaSuccess;
    if (rc < 0) return rc;
    TRY(e, "capturing a step");
    TRY(cudaGraphInstantiate(&c->exec, c->graph, 0), "making a graph of a step");
    c->has_exec = true, c->captured = shape;
    return FH_OK;
}

static fh_status launch(step *s, fh_err *err)
{
    fh_cuda_body *c = s->c;
    fh_cuda_device *d = c->device;
    fh_status rc;
    step_shape shape = {static_cast<uint32_t>(s->call->rows), s->p.most_pages, s->call->layout.type};
    bool again = same_shape(shape, c->last);
    c->last = shape;
    if (s->p.tiles || shape.rows > GRAPH_ROWS) c->last.rows = 0;
    if (!c->last.rows || !again) return run_layers(s, err);
    if (!same_shape(shape, c->captured) && (rc = capture(s, shape, err)) < 0) {
        fh_cuda_body_forget(c);
        return rc;
    }
    TRY(cudaGraphLaunch(c->exec, d->stream), "running a step");
    return FH_OK;
}

/* ---- a call --------------------------------------------------------------------------------------------------------------------- */

/* Zeros past a row's end are made once; no kernel writes there. */
fh_status fh_cuda_body_room(fh_cuda_body *c, buffer *b, size_t rows, size_t width, fh_err *err)
{
    fh_cuda_device *d = c->device;
    size_t bytes = rows * body_pad(width) * sizeof(float);
    if (bytes <= b->bytes) return FH_OK;
    fh_cuda_body_forget(c);
    fh_status rc = fh_cuda_room(d, &c->bytes, b, bytes, err);
    if (rc < 0) return rc;
    TRY(cudaMemsetAsync(b->p, 0, bytes, d->stream), "making room for a call");
    return FH_OK;
}

/* Of the widest product of more than a few rows. */
fh_status fh_cuda_body_room_for_blas(fh_cuda_body *c, size_t rows, fh_err *err)
{
    const fh_body *b = c->b;
    size_t width = b->heads * b->head_dim, in = fh_max(b->ffn, fh_max(b->d, width)), out = fh_max(2 * b->ffn, fh_max(b->d, b->qkv_width));
    if (!c->blas || rows <= PRODUCT_FEW_ROWS) return FH_OK;
    fh_status rc = fh_cuda_body_room(c, &c->halves, rows, in, err); /* two halves of a float32's size */
    return rc < 0 ? rc : fh_cuda_body_room(c, &c->results, rows, out, err);
}

static fh_status prepare(step *s, fh_err *err)
{
    fh_cuda_body *c = s->c;
    fh_cuda_device *d = c->device;
    const fh_body *b = c->b;
    const fh_body_call *call = s->call;
    uint32_t heads = static_cast<uint32_t>(b->heads), kv_heads = static_cast<uint32_t>(b->kv_heads), head_dim = static_cast<uint32_t>(b->head_dim);
    size_t rows = call->rows, width = b->heads * b->head_dim;
    fh_status rc;
    s->p = plan(c, call);
    s->decode = {};
    s->decode.n = s->p.decodes, s->decode.heads = heads, s->decode.kv_heads = kv_heads, s->decode.d = head_dim, s->decode.most_pages = s->p.most_pages;
    if (s->p.decodes) fh_cuda_cut(d, &s->decode, 0, static_cast<size_t>(s->p.most_pages) * ATT_PAGE);
    size_t partials = static_cast<size_t>(s->p.decodes) * b->heads * s->decode.splits * (b->head_dim + 2) * sizeof(float);
    if (s->p.bytes > c->in.bytes || partials > c->partial.bytes) fh_cuda_body_forget(c);
    if ((rc = fh_cuda_room(d, &c->bytes, &c->in, s->p.bytes, err)) < 0 || (rc = fh_cuda_room(d, &c->bytes, &c->partial, partials, err)) < 0 ||
        (rc = fh_cuda_body_room(c, &c->h, rows, b->d, err)) < 0 || (rc = fh_cuda_body_room(c, &c->qkv, rows, b->qkv_width, err)) < 0 ||
        (rc = fh_cuda_body_room(c, &c->q, rows, width, err)) < 0 || (rc = fh_cuda_body_room(c, &c->att, rows, width, err)) < 0 ||
        (rc = fh_cuda_body_room(c, &c->ff, rows, b->ffn, err)) < 0 || (rc = fh_cuda_body_room_for_blas(c, rows, err)) < 0 ||
        (rc = fh_cuda_pin(d, &c->pinned, s->p.bytes, err)) < 0) return rc;
    s->x = at<float>(c->in, s->p.x);
    void *const *pages = at<void *>(c->in, s->p.pages);
    s->decode.q = static_cast<float *>(c->q.p), s->decode.pages = pages, s->decode.lengths = at<uint32_t>(c->in, s->p.lengths),
    s->decode.rows = at<uint32_t>(c->in, s->p.rows), s->decode.tables = at<uint32_t>(c->in, s->p.tables), s->decode.layout = call->layout,
    s->decode.softcap = b->attn_softcap, s->decode.partial = static_cast<float *>(c->partial.p), s->decode.recomputed = static_cast<fh_u64 *>(c->recomputed.p),
    s->decode.out = static_cast<float *>(c->att.p), s->decode.ld = body_pad(width);
    s->prefill = {s->decode.q, pages, s->p.most_pages, at<prefill_tile>(c->in, s->p.tile), s->p.tiles, heads, kv_heads, head_dim, 0, 0, call->layout, 1,
                  b->attn_softcap,
                  s->decode.out, s->decode.ld};
    s->place = {};
    s->place.qkv = static_cast<float *>(c->qkv.p), s->place.ld = body_pad(b->qkv_width), s->place.n = static_cast<uint32_t>(rows), s->place.heads = heads,
    s->place.kv_heads = kv_heads, s->place.d = head_dim, s->place.q_first = static_cast<uint32_t>(b->q_first),
        s->place.q_step = static_cast<uint32_t>(b->q_step),
    s->place.k_first = static_cast<uint32_t>(b->k_first), s->place.k_step = static_cast<uint32_t>(b->k_step),
        s->place.v_first = static_cast<uint32_t>(b->v_first),
    s->place.v_step = static_cast<uint32_t>(b->v_step), s->place.eps = b->eps, s->place.angle_step = static_cast<uint32_t>(4 * call->half),
    s->place.position = at<uint32_t>(c->in, s->p.position), s->place.sequence = at<uint32_t>(c->in, s->p.sequence), s->place.pages = pages,
    s->place.most_pages = s->p.most_pages, s->place.layout = call->layout, s->place.q = static_cast<float *>(c->q.p);
    return FH_OK;
}

/* Splits with keys that a query of each head had. */
static void count_parts(const step *s)
{
    const fh_body *b = s->c->b;
    size_t keys = static_cast<size_t>(s->decode.split_pages) * ATT_PAGE;
    for (size_t l = 0; l < b->n_layers; l++)
        for (uint32_t i = 0; !b->layers[l].unified.wide && i < s->p.decodes; i++) {
            size_t length = at<uint32_t>(s->c->pinned, s->p.lengths)[i], window = b->layers[l].window, first = window && length > window ? length - window : 0;
            s->c->parts += b->heads * ((length - 1) / keys - first / keys + 1);
        }
}

static fh_status run(step *s, fh_err *err)
{
    fh_cuda_body *c = s->c;
    fh_cuda_device *d = c->device;
    size_t row = c->b->d * sizeof(float), ld = s->p.ld * sizeof(float);
    if (s->call->stay) TRY(cudaEventRecord(d->events[0], d->stream), "timing it");
    TRY(cudaMemcpyAsync(c->in.p, c->pinned.p, s->p.bytes, cudaMemcpyHostToDevice, d->stream), "copying a call");
    fh_status rc = launch(s, err);
    if (rc < 0) return rc;
    if (s->call->stay) {
        TRY(cudaEventRecord(d->events[1], d->stream), "timing it");
        d->left = s->x + (s->call->rows - 1) * s->p.ld, d->left_width = static_cast<uint32_t>(c->b->d), d->left_strange = at<uint32_t>(c->in, s->p.strange);
        c->pending = true;
        return FH_OK;
    }
    TRY(cudaMemcpyAsync(at<float>(c->pinned, s->p.x), s->x, s->call->rows * ld, cudaMemcpyDeviceToHost, d->stream), "copying states");
    TRY(cudaStreamSynchronize(d->stream), "running the body");
    for (size_t r = 0; r < s->call->rows; r++) memcpy(s->call->x + r * c->b->d, at<float>(c->pinned, s->p.x) + r * s->p.ld, row);
    return FH_OK;
}

fh_status fh_cuda_body_forward(void *ctx, const fh_body_call *call, fh_err *err)
{
    fh_cuda_body *c = static_cast<fh_cuda_body *>(ctx);
    fh_cuda_device *d = c->device;
    step s = {c, call, {}, {}, {}, {}, nullptr};
    d->left = nullptr; /* its place is written */
    TRY(cudaSetDevice(d->ordinal), "choosing it");
    if (c->pending) TRY(cudaStreamSynchronize(d->stream), "running the body"); /* it reads what this call writes */
    c->pending = false;
    fh_status rc = prepare(&s, err);
    if (rc < 0) return rc;
    fill(c, call, s.p);
    count_parts(&s);
    if ((rc = run(&s, err)) < 0) cudaStreamSynchronize(d->stream); /* what was started reads what the next call writes */
    return rc;
}
