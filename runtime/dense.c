/* runtime/dense.c: all logits of many states, from rows in the checkpoint's dtype wherever they lie.
 *
 * A task is a tile of rows, widened to float32 once, against up to 256 states, multiplied by OpenBLAS; of few states the kernels read the
 * rows where they lie, which is all that a decoding step waits for.  Fixed tiles, so the same numbers for any number of threads; how many
 * states a call has may show in their last bits, and of FH_Q8_0 rows in 1e-4 of their deviation, where a state is alone (docs/decisions/0013).
 * Where a head is measured it does not: there the kernels, or a device that sums as they do, multiply however many states (docs/decisions/0034).
 */
#include "runtime/body_private.h"
#include "runtime/head.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

enum { ROWS = 128, STATES = 256, WIDE_FLOATS = 1 << 18 };
enum { MEASURED = FH_BLOCK }; /* states at a time by the kernels: [16384, 576] bf16 by 64 states took 12.7 ms so, by OpenBLAS 16.3 (AVX-512; AVX2: 25 and 17) */
/* Where there is nothing but plain C, fmaf is a call of the library, a hundred times as slow: there OpenBLAS multiplies, and results are of that machine. */
static bool kernels_will_do(void) { return fh_kernels_at(1) != NULL; }

typedef struct run {
    const fh_dense *head;
    const fh_body_math *math;
    const fh_kernels *kernels;
    const float *states;
    float *dots;                /* [n, rows] that a device made; NULL: they are made here */
    float *logits, *scratch;
    size_t n, columns, across, each;
    bool measured;              /* by the kernels, however many states */
    bool round;                 /* a state that is alone, where rows are FH_Q8_0 */
    fh_state rounded;           /* that state */
} run;

/* Rows of a tile: what widens to 1 MiB, an L2 cache. */
static size_t tile_rows(size_t d) { return fh_min(fh_max(WIDE_FLOATS / fh_max(d, 1) / 16 * 16, 16), ROWS); }

static const float *widen(const run *c, size_t first, size_t count, float *wide)
{
    const fh_rows *rows = &c->head->rows;
    size_t d = rows->cols;
    if (rows->dtype == FH_F32 && rows->stride == d * sizeof *wide && (uintptr_t)rows->data % _Alignof(float) == 0)
        return (const float *)fh_row(rows, first);
    for (size_t r = 0; r < count; r++) fh_body_widen(c->math, wide + r * d, rows->dtype, fh_row(rows, first + r), d);
    return wide;
}

/* A row's product as its token's logit. */
static float finished(const fh_dense *head, size_t row, float z)
{
    size_t token = head->token_of ? head->token_of[row] : row;
    if (head->bias && token < head->vocab) z += head->bias[token];
    return head->softcap > 0 ? head->softcap * tanhf(z / head->softcap) : z;
}

/* The tile y [n, columns] of all products. */
static void multiply(const run *c, size_t first, size_t count, const float *x, size_t n, float *y)
{
    const fh_rows *rows = &c->head->rows;
    size_t d = rows->cols;
    if (n > FH_FEW_ROWS && !c->measured) {
        fh_gemm_nt_here(n, count, d, x, d, widen(c, first, count, y + STATES * c->columns), d, y, c->columns);
        return;
    }
    fh_state states[MEASURED] = {{0}};
    const fh_state *at[MEASURED];
    for (size_t i = 0; i < n; i++) states[i].f = x + i * d, at[i] = &states[i];
    if (c->rounded.block_q) at[0] = &c->rounded;
    fh_dots(c->kernels, rows, NULL, NULL, first, count, at, n, y, c->columns);
}

static void one_tile(void *ctx, size_t task, unsigned worker)
{
    const run *c = ctx;
    const fh_dense *head = c->head;
    size_t d = head->rows.cols, first = task % c->across * c->columns, state = task / c->across * STATES;
    size_t count = fh_min(c->columns, head->rows.rows - first), n = fh_min(STATES, c->n - state);
    float *y = c->dots ? c->dots + first : c->scratch + worker * c->each;
    if (!c->dots) multiply(c, first, count, c->states + state * d, n, y);
    for (size_t s = 0; s < n; s++) {
        float *from = y + s * (c->dots ? head->rows.rows : c->columns), *to = c->logits + (state + s) * head->vocab;
        for (size_t r = 0; r < count && (head->bias || head->softcap > 0); r++) from[r] = finished(head, first + r, from[r]);
        if (!head->token_of) {
            memcpy(to + first, from, fh_min(count, head->vocab - fh_min(first, head->vocab)) * sizeof *to);
            continue;
        }
        for (size_t r = 0; r < count; r++) {
            uint32_t token = head->token_of[first + r];
            if (token < head->vocab) to[token] = from[r]; /* padding belongs to none */
        }
    }
}

static fh_status run_tiles(run *c, fh_pool *pool, fh_err *err)
{
    const fh_rows *rows = &c->head->rows;
    if (!c->n || !rows->rows) return FH_OK;
    c->math = fh_body_math_choose(fh_isa_name());
    c->kernels = fh_kernels_for(fh_kernels_shared(), rows->rows * rows->stride);
    c->columns = tile_rows(rows->cols);
    c->across = (rows->rows - 1) / c->columns + 1;
    size_t wide, bytes, state = c->round && rows->dtype == FH_Q8_0 && c->n == 1 ? fh_state_blocks_bytes(rows->cols) : 0;
    if (!fh_mul(c->columns, rows->cols, &wide) || !fh_add(wide, STATES * c->columns, &c->each) ||
        !fh_mul(c->each, sizeof(float), &bytes) || !fh_mul(bytes, fh_pool_threads(pool), &bytes) || !fh_add(bytes, state, &bytes) ||
        (!c->dots && !(c->scratch = fh_malloc(bytes))))
        return fh_fail(err, FH_ENOMEM, "dense head: out of memory for tiles of %zu x %zu", c->columns, rows->cols);
    if (state) fh_state_blocks(&c->rounded, c->states, rows->cols, c->scratch + c->each * fh_pool_threads(pool));
    fh_pool_run(pool, ((c->n - 1) / STATES + 1) * c->across, one_tile, c);
    fh_free(c->scratch);
    return FH_OK;
}

void fh_dense_some(const fh_dense *head, const float *state, const uint32_t *rows, size_t n, float *logits)
{
    fh_state s = {.f = state};
    const fh_state *one = &s;
    fh_dots(fh_kernels_shared(), &head->rows, NULL, rows, 0, n, &one, 1, logits, n);
    for (size_t i = 0; i < n; i++) logits[i] = finished(head, rows[i], logits[i]);
}

fh_status fh_dense_logits(const fh_dense *head, fh_pool *pool, const float *states, size_t n, float *logits, fh_err *err)
{
    run c = {.head = head, .states = states, .logits = logits, .n = n, .round = true};
    return run_tiles(&c, pool, err);
}

/* ---- matrices ------------------------------------------------------------------------------------------------------ */

static fh_status put(fh_matrix *out, const fh_matrix *m, const fh_rows *rows, const void *scales, fh_err *err)
{
    *out = *m;
    return m->device ? m->device->put(m->device->ctx, &out->there, rows, scales, err) : FH_OK;
}

/* Which tokens rows are of, so that the device can find the best: live ones. */
static fh_status mark(fh_matrix *m, fh_err *err)
{
    const fh_dense *dense = m->dense;
    size_t n = dense->rows.rows;
    uint32_t *ids = fh_malloc(n * sizeof *ids);
    float *bias = dense->bias ? fh_malloc(n * sizeof *bias) : NULL;
    fh_status rc = ids && (bias || !dense->bias) ? FH_OK : fh_fail(err, FH_ENOMEM, "dense head: out of memory for %zu rows", n);
    for (size_t r = 0; rc == FH_OK && r < n; r++) {
        size_t token = dense->token_of ? dense->token_of[r] : r;
        bool counts = token < dense->vocab && !(dense->dead && dense->dead[token]);
        ids[r] = counts ? (uint32_t)token : FH_NO_TOKEN;
        if (bias) bias[r] = counts ? dense->bias[token] : 0;
    }
    if (rc == FH_OK) rc = m->device->mark(m->device->ctx, m->there, ids, bias, err);
    fh_free(ids);
    fh_free(bias);
    return rc;
}

fh_status fh_matrix_of_dense(fh_matrix *out, const fh_dense *dense, fh_err *err)
{
    fh_status rc = put(out, &(fh_matrix){.dense = dense, .device = dense->device}, &dense->rows, NULL, err);
    if (rc == FH_OK && fh_matrix_seeks(out, 1) && (rc = mark(out, err)) < 0) fh_matrix_close(out);
    return rc;
}

fh_status fh_matrix_of_head(fh_matrix *out, const fh_head *head, bool slots, const fh_dots_device *device, fh_err *err)
{
    const fh_head_parts *p = &head->parts;
    const fh_matrix m = {.head = head, .slots = slots, .device = device};
    return slots ? put(out, &m, &p->tokens, p->token_scales, err) : put(out, &m, &p->centroids, p->centroid_scales, err);
}

void fh_matrix_close(fh_matrix *m)
{
    if (m->device) m->device->take(m->device->ctx, m->there);
    *m = (fh_matrix){0};
}

bool fh_matrix_seeks(const fh_matrix *m, size_t k)
{
    if (!m->device || k > m->device->found) return false;
    return m->head ? !m->slots : !(m->dense->softcap > 0);
}

fh_status fh_matrix_best(const fh_matrix *m, const float *states, size_t n, size_t k, uint32_t *ids, fh_err *err)
{
    const fh_dots_device *device = m->device;
    size_t d = m->dense->rows.cols;
    fh_status rc = FH_OK;
    for (size_t at = 0; rc == FH_OK && at < n; at += device->most)
        rc = device->best(device->ctx, m->there, states + at * d, fh_min(device->most, n - at), k, ids + at * k, err);
    return rc;
}

fh_status fh_matrix_ranks(const fh_matrix *m, const float *states, size_t n, const fh_cluster_ranks_of *of, fh_err *err)
{
    return fh_head_ranks(m->head, m->device, m->there, states, n, of, err);
}

fh_status fh_matrix_multiply(const fh_matrix *m, fh_pool *pool, const float *states, size_t n, float *out, fh_err *err)
{
    fh_status rc = FH_OK;
    if (m->head) return fh_head_measure(m->head, m->slots, m->device, m->there, pool, states, n, out, err);
    bool measured = m->device || kernels_will_do();
    size_t block = m->device ? fh_min(MEASURED, m->device->most) : measured ? MEASURED : fh_max(n, 1);
    for (size_t at = 0; rc == FH_OK && at < n; at += block) {
        run c = {.head = m->dense, .states = states + at * m->dense->rows.cols, .logits = out + at * m->dense->vocab, .n = fh_min(block, n - at),
                 .measured = measured};
        if (m->device) rc = m->device->multiply(m->device->ctx, m->there, c.states, c.n, &c.dots, err);
        if (rc == FH_OK) rc = run_tiles(&c, pool, err);
    }
    return rc;
}
