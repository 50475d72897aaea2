/* runtime/body.c: the forward pass of every family.
 *
 * The rows of a call are taken in chunks of whole sequences or parts of them, each through all layers: a long prompt is a
 * sequence of chunks on top of one another's cache, so that scratch is bounded whatever the length.  The result's own rows carry the
 * residual stream.  A device (body_device.h) is given each chunk's embeddings and angles and does the layers.
 */
#include "runtime/body_private.h"

#include <math.h>
#include <string.h>

enum {
    CHUNK_ROWS = FH_CALL_ROWS, /* tokens through the layers at a time */
    BLOCK_ROWS = 16            /* rows of a task between products */
};

typedef struct forward {
    const fh_body *b;
    fh_pool *pool;
    size_t n_pieces, rows, attention_tasks;
    fh_piece *pieces;            /* of this chunk */
    float *h, *qkv, *att, *ff;   /* [rows, d], [rows, qkv_width], [rows, heads * head_dim], [rows, ffn] */
    float *angles;               /* [rows][global, local][cos, sin][half] */
    float *frequency;            /* [global, local][half]: of the sequence being prepared */
    size_t half;                 /* pairs rotated, the larger of global and local */
    float *scratch; size_t scratch_each;
    float *partials;             /* of attention */
    fh_run *runs; void **pages;  /* the same pieces for a device, and all their pages */
    float *embedded;             /* [rows, d] where the states stay there, else NULL */
    float *x;                    /* [rows, d] the residual stream: rows of the result */
} forward;

/* ---- norms ----------------------------------------------------------------------------------------------------- */

static void norm_row(const fh_body *b, const fh_norm *n, const float *x, float *y, size_t d)
{
    const fh_body_math *m = b->math;
    float mean = b->layer_norm ? m->sum(x, d) / (float)d : 0;
    float variance = m->sum_squares(x, d, mean) / (float)d;
    m->scale(y, x, n->weight, d, mean, 1.0f / sqrtf(variance + b->eps));
    if (n->bias) m->add(y, n->bias, d);
}

typedef struct norming { const forward *f; const fh_norm *n; const float *from; float *to; bool add; } norming;

static void norm_block(void *ctx, size_t task, unsigned worker)
{
    const norming *c = ctx;
    const fh_body *b = c->f->b;
    size_t d = b->d, end = fh_min((task + 1) * BLOCK_ROWS, c->f->rows);
    for (size_t r = task * BLOCK_ROWS; r < end; r++) {
        const float *from = c->from + r * d;
        float *to = c->to + r * d;
        if (!c->add) {
            norm_row(b, c->n, from, to, d);
            continue;
        }
        norm_row(b, c->n, from, (float *)from, d); /* what a block put out is not needed any more */
        b->math->add(to, from, d);
    }
}

static size_t blocks(const forward *f) { return (f->rows - 1) / BLOCK_ROWS + 1; }

static void norm_rows(const forward *f, const fh_norm *n, const float *from, float *to)
{
    norming c = {f, n, from, to, false};
    fh_pool_run(f->pool, blocks(f), norm_block, &c);
}

/* x += norm(from); `from` is overwritten. */
static void add_normed(const forward *f, const fh_norm *n, float *from, float *x)
{
    norming c = {f, n, from, x, true};
    fh_pool_run(f->pool, blocks(f), norm_block, &c);
}

/* ---- positions and the cache -------------------------------------------------------------------------------------- */

/* Where row r of the chunk lies: its piece, and its position. */
static const fh_piece *piece_of(const forward *f, size_t r, size_t *position)
{
    size_t low = 0, high = f->n_pieces;
    while (high - low > 1) {
        size_t mid = low + (high - low) / 2;
        if (f->pieces[mid].row <= r) low = mid;
        else high = mid;
    }
    *position = f->pieces[low].first + (r - f->pieces[low].row);
    return &f->pieces[low];
}

static uint32_t turned(const fh_body *b, const fh_rope *rope) { return rope ? fh_rope_dims(rope, (uint32_t)b->head_dim) : 0; }

/* cos and sin of every row: float32 frequency times float32 position, as the reference has it. */
static void set_angles(forward *f)
{
    const fh_body *b = f->b;
    const fh_rope *ropes[2] = {b->rope, b->rope_local};
    for (size_t i = 0; i < f->n_pieces; i++) {
        const fh_piece *p = &f->pieces[i];
        for (size_t k = 0; k < 2; k++) {
            size_t half = turned(b, ropes[k]) / 2;
            if (!half) continue;
            float *frequency = f->frequency, factor = fh_rope_attention_factor(ropes[k]);
            fh_rope_frequencies(ropes[k], (uint32_t)b->head_dim, b->config->max_position, p->length, frequency);
            for (size_t r = 0; r < p->rows; r++) {
                float *cs = f->angles + ((p->row + r) * 2 + k) * 2 * f->half, *sn = cs + f->half;
                for (size_t j = 0; j < half; j++) {
                    float angle = frequency[j] * (float)(p->first + r);
                    cs[j] = cosf(angle) * factor;
                    sn[j] = sinf(angle) * factor;
                }
            }
        }
    }
}

typedef struct placing { const forward *f; const fh_layer *layer; size_t layer_index; } placing;

static void norm_head(const fh_body *b, const float *weight, float *head)
{
    float squares = b->math->sum_squares(head, b->head_dim, 0) / (float)b->head_dim;
    b->math->scale(head, head, weight, b->head_dim, 0, 1.0f / sqrtf(squares + b->eps));
}

/* Norm and rotate the queries and keys of some rows; keys and values go to the cache. */
static void place_block(void *ctx, size_t task, unsigned worker)
{
    const placing *c = ctx;
    const forward *f = c->f;
    const fh_body *b = f->b;
    uint32_t dims = turned(b, c->layer->local ? b->rope_local : b->rope);
    size_t end = fh_min((task + 1) * BLOCK_ROWS, f->rows);
    for (size_t r = task * BLOCK_ROWS; r < end; r++) {
        size_t position;
        const fh_piece *p = piece_of(f, r, &position);
        float *row = f->qkv + r * b->qkv_width;
        const float *cs = f->angles + (r * 2 + c->layer->local) * 2 * f->half, *sn = cs + f->half;
        for (size_t h = 0; h < b->heads; h++) {
            float *q = row + b->q_first + h * b->q_step;
            if (c->layer->q_norm) norm_head(b, c->layer->q_norm, q);
            if (dims) fh_rope_rotate(q, cs, sn, dims);
        }
        for (size_t h = 0; h < b->kv_heads; h++) {
            float *k = row + b->k_first + h * b->k_step;
            if (c->layer->k_norm) norm_head(b, c->layer->k_norm, k);
            if (dims) fh_rope_rotate(k, cs, sn, dims);
            fh_kv_write(p->kv, position, c->layer_index, false, h, k);
            fh_kv_write(p->kv, position, c->layer_index, true, h, row + b->v_first + h * b->v_step);
        }
    }
}

/* ---- layers -------------------------------------------------------------------------------------------------------- */

static void products(const forward *f, const float *x, size_t ldx, const fh_product *p, size_t count)
{
    fh_linear_run(f->b, f->pool, f->scratch, f->scratch_each, x, ldx, f->rows, p, count);
}

static void run_layer(const forward *f, size_t index)
{
    const fh_body *b = f->b;
    const fh_layer *l = &b->layers[index];
    size_t d = b->d, qd = b->heads * b->head_dim;

    norm_rows(f, &l->attn_norm, f->x, f->h);
    fh_product qkv[3];
    size_t at = 0;
    for (unsigned i = 0; i < l->n_qkv; i++) {
        qkv[i] = (fh_product){.w = &l->qkv[i], .out = f->qkv + at, .ld = b->qkv_width, .then = FH_THEN_STORE};
        at += l->qkv[i].out;
    }
    products(f, f->h, d, qkv, l->n_qkv);
    placing place = {f, l, index};
    fh_pool_run(f->pool, blocks(f), place_block, &place);
    fh_attention_run(b, f->pool, f->scratch, f->scratch_each, l, index, f->pieces, f->n_pieces, f->attention_tasks, f->qkv, f->att);
    if (b->parallel) norm_rows(f, &l->mlp_norm, f->x, f->h); /* before attention is added */

    if (l->attn_post.weight) {
        fh_product o = {.w = &l->o, .out = f->h, .ld = d, .then = FH_THEN_STORE};
        products(f, f->att, qd, &o, 1);
        add_normed(f, &l->attn_post, f->h, f->x);
    } else {
        fh_product o = {.w = &l->o, .out = f->x, .ld = d, .then = FH_THEN_ADD};
        products(f, f->att, qd, &o, 1);
    }

    if (!b->parallel) norm_rows(f, &l->mlp_norm, f->x, f->h);
    fh_product up = {.w = &l->up, .gate = &l->gate, .out = f->ff, .ld = b->ffn, .then = l->gate.data ? FH_THEN_GATE : FH_THEN_ACT};
    products(f, f->h, d, &up, 1);
    fh_product down = {
        .w = &l->down, .out = l->mlp_post.weight ? f->h : f->x, .ld = d, .then = l->mlp_post.weight ? FH_THEN_STORE : FH_THEN_ADD};
    products(f, f->ff, b->ffn, &down, 1);
    if (l->mlp_post.weight) add_normed(f, &l->mlp_post, f->h, f->x);
}

static void embed(const forward *f, const uint32_t *tokens)
{
    const fh_body *b = f->b;
    for (size_t i = 0; i < f->n_pieces; i++) {
        const fh_piece *p = &f->pieces[i];
        for (size_t r = 0; r < p->rows; r++) {
            float *x = f->x + (p->row + r) * b->d;
            uint32_t id = tokens[p->row + r];
            fh_dec_row(b->embedding_dtype, b->embedding_row ? b->embedding_row(b->ctx, id) : fh_row(&b->embedding, id), NULL, b->d, x);
            if (b->embed_scale != 1) {
                for (size_t j = 0; j < b->d; j++) x[j] *= b->embed_scale;
            }
            if (b->positions.data) {
                fh_dec_row(b->positions.dtype, fh_row(&b->positions, p->first + r), NULL, b->d, f->h);
                b->math->add(x, f->h, b->d);
            }
        }
    }
}

/* ---- a call -------------------------------------------------------------------------------------------------------- */

/* Room for everything in one allocation: rows of a chunk, scratch of each worker, pieces.  Where a device does the layers: what it is given. */
static fh_status carve(forward *f, void **memory, size_t rows, size_t pieces, size_t partials, size_t pages, bool stay, fh_err *err)
{
    const fh_body *b = f->b;
    bool here = !b->device;
    size_t workers = fh_pool_threads(f->pool);
    size_t widest = fh_max(b->ffn, fh_max(b->d, b->heads * b->head_dim));
    f->scratch_each = here ? fh_round_up(fh_max(fh_linear_scratch(rows, widest), fh_attention_scratch(b)), 16) : 0;
    f->half = b->head_dim / 2;
    size_t sizes[] = {here ? rows * b->d : b->d, here ? rows * b->qkv_width : 0, here ? rows * b->heads * b->head_dim : 0, here ? rows * b->ffn : 0,
                      rows * 4 * f->half, f->half, workers * f->scratch_each, here ? partials : 0, stay ? rows * b->d : 0};
    enum { PARTS = sizeof sizes / sizeof *sizes };
    size_t total = 0, bytes, list = 0, runs = 0, table = 0;
    bool fits = true;
    for (size_t i = 0; i < PARTS; i++) {
        sizes[i] = fh_round_up(sizes[i], 16);
        fits = fits && fh_add(total, sizes[i], &total);
    }
    fits = fits && fh_mul(total, sizeof(float), &bytes) && fh_mul(pieces, sizeof *f->pieces, &list) && fh_add(bytes, list, &bytes);
    if (!here) fits = fits && fh_mul(pieces, sizeof *f->runs, &runs) && fh_add(bytes, runs, &bytes);
    if (!here) fits = fits && fh_mul(pages, sizeof *f->pages, &table) && fh_add(bytes, table, &bytes);
    if (!fits || !(*memory = fh_malloc(bytes)))
        return fh_fail(err, FH_ENOMEM, "%s: out of memory for the forward pass of %zu tokens", b->name, rows);
    float *at = *memory, **parts[] = {&f->h, &f->qkv, &f->att, &f->ff, &f->angles, &f->frequency, &f->scratch, &f->partials, &f->embedded};
    for (size_t i = 0; i < PARTS; i++) *parts[i] = at, at += sizes[i];
    if (!stay) f->embedded = NULL;
    f->pieces = (fh_piece *)(void *)at;
    f->runs = (fh_run *)(void *)((char *)f->pieces + list);
    f->pages = (void **)((char *)f->runs + runs);
    return FH_OK;
}

static fh_status check(const fh_body *b, size_t n, fh_kv *const *kv, const uint32_t *lens, const uint32_t *tokens, size_t *rows,
                       fh_err *err)
{
    size_t total = 0;
    for (size_t i = 0; i < n; i++) {
        if (kv[i]->body != b || kv[i]->device != b->device) return fh_fail(err, FH_EUSAGE, "%s: the cache of sequence %zu belongs to another body", b->name, i);
        if (b->device && kv[i]->is.type != kv[0]->is.type) return fh_fail(err, FH_EUSAGE, "%s: caches of %s and %s in one call on a device", b->name,
                                                                          fh_dtype_name(kv[0]->is.type), fh_dtype_name(kv[i]->is.type));
        if (!lens[i]) return fh_fail(err, FH_EUSAGE, "%s: sequence %zu is given no tokens", b->name, i);
        if ((uint64_t)kv[i]->length + lens[i] > b->max_position)
            return fh_fail(err, FH_EUSAGE, "%s: %llu tokens in a sequence, the model's positions end at %u", b->name,
                           (unsigned long long)kv[i]->length + lens[i], b->max_position);
        for (size_t j = 0; j < lens[i]; j++) {
            if (tokens[total + j] >= b->config->vocab)
                return fh_fail(err, FH_EUSAGE, "%s: token %u is not below the vocabulary's size %u", b->name, tokens[total + j],
                               b->config->vocab);
        }
        total += lens[i];
    }
    *rows = total;
    return FH_OK;
}

/* The layers and the final norm of a chunk whose embeddings lie at f->x. */
static void run_here(forward *f)
{
    f->attention_tasks = fh_attention_tasks(f->b, f->pieces, f->n_pieces, f->partials);
    for (size_t l = 0; l < f->b->n_layers; l++) run_layer(f, l);
    norm_rows(f, &f->b->final_norm, f->x, f->x);
}

static fh_status run_there(forward *f, fh_err *err)
{
    const fh_body_device *device = f->b->device;
    fh_body_call call = {.runs = f->runs, .n = f->n_pieces, .rows = f->rows, .layout = f->pieces[0].kv->is, .angles = f->angles, .half = f->half,
                         .dims = {turned(f->b, f->b->rope), turned(f->b, f->b->rope_local)}, .x = f->x, .stay = f->embedded};
    void **pages = f->pages;
    for (size_t i = 0; i < f->n_pieces; i++) {
        const fh_piece *p = &f->pieces[i];
        size_t n = (p->first + p->rows - 1) / FH_PAGE_TOKENS + 1;
        f->runs[i] = (fh_run){p->row, p->rows, p->first, pages};
        for (size_t j = 0; j < n; j++) *pages++ = p->kv->pages[j]->there;
    }
    return device->forward(device->ctx, &call, err);
}

fh_status fh_body_forward(const fh_body *b, fh_pool *pool, size_t n, fh_kv *const *kv, const uint32_t *lens, const uint32_t *tokens,
                          float *hidden, fh_err *err)
{
    size_t rows = 0;
    fh_status rc = check(b, n, kv, lens, tokens, &rows, err);
    if (rc < 0 || !rows) return rc;
    if (!hidden && (!b->device || n != 1)) return fh_fail(err, FH_EUSAGE, "%s: states stay on a device, of one sequence", b->name);
    forward f = {.b = b, .pool = pool};
    void *memory = NULL;
    size_t partials = 0, pages = 0;
    for (size_t i = 0; i < n; i++) {
        partials += fh_attention_partials(b, (uint64_t)kv[i]->length + lens[i]);
        pages += ((size_t)kv[i]->length + lens[i] - 1) / FH_PAGE_TOKENS + 1;
    }
    if ((rc = carve(&f, &memory, fh_min(rows, CHUNK_ROWS), fh_min(n, CHUNK_ROWS), partials, pages, !hidden, err)) < 0) goto out;
    for (size_t i = 0; i < n; i++)
        if ((rc = fh_kv_reserve(kv[i], (uint64_t)kv[i]->length + lens[i], err)) < 0) goto out;

    /* From here on only a device can fail. */
    size_t sequence = 0, done = 0; /* the sequence in hand and how many of its tokens are through */
    for (size_t row = 0; row < rows; row += f.rows) {
        f.n_pieces = f.rows = 0;
        while (sequence < n && f.rows < CHUNK_ROWS) {
            size_t take = fh_min(lens[sequence] - done, CHUNK_ROWS - f.rows);
            f.pieces[f.n_pieces++] =
                (fh_piece){kv[sequence], f.rows, take, kv[sequence]->length + done, (size_t)kv[sequence]->length + lens[sequence], 0, 1, NULL};
            f.rows += take;
            done += take;
            if (done == lens[sequence]) sequence++, done = 0;
        }
        f.x = hidden ? hidden + row * b->d : f.embedded;
        embed(&f, tokens + row);
        set_angles(&f);
        if (!b->device) run_here(&f);
        else if ((rc = run_there(&f, err)) < 0) goto out;
    }
    for (size_t i = 0; i < n; i++) kv[i]->length += lens[i];
out:
    fh_free(memory);
    return rc;
}
