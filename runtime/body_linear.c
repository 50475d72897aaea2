/* runtime/body_linear.c: products of a few rows, or many, with weights where they lie.
 *
 * One task computes one tile: at most FH_TILE_M rows times some columns of the result, into its worker's scratch, and then does with
 * it what the product asks for, so that biases, activations, gates and residuals cost no pass over memory of their own.  For
 * more than FH_FEW_ROWS rows the weights of the tile are widened to float32 and OpenBLAS multiplies; up to there the
 * kernels of the head read the weights as they are, and FH_Q8_0 ones, for a single row, multiply integers by that row rounded to 16 bits in each block of 32
 * (docs/decisions/0013) (measured on 256-wide bf16 layers, one thread of a Zen 4: 8 rows 650 us by the
 * kernels and 810 us by OpenBLAS, which packs both sides; at 16 rows they are equal).  So a token's numbers may differ
 * in their last bits (of FH_Q8_0 in 1e-4 of their deviation, where a row is alone) with how many rows the call has;
 * they never differ with the number of threads.
 */
#include "runtime/body_private.h"

#include <stdint.h>
#include <string.h>

/* Weights below this are read faster than another thread is called and waited for.  Measured with 256-wide bf16 layers, two threads: a token of
 * four layers takes 145 us with 512 KiB here, 108 with 128 or 32. */
enum { ALONE_BYTES = 128 << 10 };

/* A widened tile of weights stays within 1 MiB, an L2 cache of today: fewer columns where rows are long. */
enum { WIDE_FLOATS = 1 << 18 };

static size_t tile_columns(size_t in)
{
    size_t n = WIDE_FLOATS / fh_max(in, 1) / 16 * 16;
    return fh_min(fh_max(n, 16), FH_TILE_N);
}

static size_t tile_rows(size_t n) { return fh_min(n, FH_TILE_M); }

/* Room for a state rounded by blocks, at the end of the first worker's scratch. */
static size_t rounded_floats(size_t in) { return fh_state_blocks_bytes(fh_round_up(in, FH_Q8_VALUES)) / sizeof(float); }

size_t fh_linear_scratch(size_t n, size_t in)
{
    size_t results = 2 * tile_rows(n) * FH_TILE_N; /* of a product and of its gate */
    /* [in, out] weights of few rows are widened 16 rows at a time. */
    size_t wide = n > FH_FEW_ROWS ? fh_max(WIDE_FLOATS, 16 * in) : (size_t)FH_PAGE_TOKENS * FH_TILE_N;
    return results + wide + rounded_floats(in);
}

typedef struct run {
    const fh_body *body;
    const float *x;
    size_t ldx, n, scratch_each;
    float *scratch;
    const fh_product *products;
    size_t count;
    fh_state rounded;       /* x of a single row, where weights are FH_Q8_0 */
} run;

/* Weights of columns [first, first + count) of the result as [count, in] float32: where they lie if they are that already. */
static const float *widen(const fh_body *b, const fh_linear *w, size_t first, size_t count, float *wide)
{
    size_t size = fh_dtype_size(w->dtype);
    const uint8_t *data = w->data;
    if (w->transposed) {
        float row[FH_TILE_N];
        for (size_t i = 0; i < w->in; i++) {
            fh_body_widen(b->math, row, w->dtype, data + (i * w->out + first) * size, count);
            for (size_t o = 0; o < count; o++) wide[o * w->in + i] = row[o];
        }
        return wide;
    }
    data += first * fh_row_bytes(w->dtype, w->in);
    if (w->dtype == FH_F32 && (uintptr_t)data % _Alignof(float) == 0) return (const float *)(const void *)data;
    fh_body_widen(b->math, wide, w->dtype, data, count * w->in);
    return wide;
}

/* The tile y [n, ldy] of x W.  rounded: the only row of x, for FH_Q8_0. */
static void multiply(const fh_body *b, const fh_linear *w, size_t first, size_t count, const float *x, size_t ldx, size_t n, bool few,
                     const fh_state *rounded, float *y, size_t ldy, float *wide)
{
    if (!few) {
        fh_gemm_nt_here(n, count, w->in, x, ldx, widen(b, w, first, count, wide), w->in, y, ldy);
    } else if (w->transposed) {
        size_t size = fh_dtype_size(w->dtype);
        for (size_t r = 0; r < n; r++) memset(y + r * ldy, 0, count * sizeof *y);
        for (size_t i = 0; i < w->in; i += FH_PAGE_TOKENS) {
            size_t some = fh_min(FH_PAGE_TOKENS, w->in - i);
            for (size_t t = 0; t < some; t++)
                fh_body_widen(b->math, wide + t * FH_TILE_N, w->dtype, (const uint8_t *)w->data + ((i + t) * w->out + first) * size, count);
            b->math->accumulate(y, ldy, n, x + i, ldx, some, wide, FH_TILE_N, count);
        }
    } else {
        fh_state states[FH_FEW_ROWS] = {{0}};
        const fh_state *at[FH_FEW_ROWS];
        for (size_t r = 0; r < n; r++) states[r].f = x + r * ldx, at[r] = &states[r];
        if (w->dtype == FH_Q8_0 && rounded->block_q) at[0] = rounded;
        fh_rows rows = {w->data, w->dtype, w->out, w->in, fh_row_bytes(w->dtype, w->in)};
        fh_dots(b->kernels, &rows, NULL, NULL, first, count, at, n, y, ldy);
    }
    if (!w->bias) return;
    for (size_t r = 0; r < n; r++) b->math->add(y + r * ldy, w->bias + first, count);
}

static void one_tile(void *ctx, size_t task, unsigned worker)
{
    const run *c = ctx;
    const fh_body *b = c->body;
    size_t downs = (c->n - 1) / FH_TILE_M + 1;
    const fh_product *p = c->products;
    for (;; p++) { /* at most three products */
        size_t tiles = downs * ((p->w->out - 1) / tile_columns(p->w->in) + 1);
        if (task < tiles) break;
        task -= tiles;
    }
    const fh_linear *w = p->w;
    size_t columns = tile_columns(w->in), across = (w->out - 1) / columns + 1;
    size_t row = task / across * FH_TILE_M, first = task % across * columns;
    size_t n = fh_min(FH_TILE_M, c->n - row), count = fh_min(columns, w->out - first), ldy = FH_TILE_N;
    bool few = c->n <= FH_FEW_ROWS;
    float *y = c->scratch + worker * c->scratch_each, *gate = y + tile_rows(c->n) * FH_TILE_N, *wide = gate + tile_rows(c->n) * FH_TILE_N;
    const float *x = c->x + row * c->ldx;

    multiply(b, w, first, count, x, c->ldx, n, few, &c->rounded, y, ldy, wide);
    if (p->then == FH_THEN_GATE) multiply(b, p->gate, first, count, x, c->ldx, n, few, &c->rounded, gate, ldy, wide);
    for (size_t r = 0; r < n; r++) {
        float *from = y + r * ldy, *to = p->out + (row + r) * p->ld + first;
        if (p->then == FH_THEN_ADD) {
            b->math->add(to, from, count);
            continue;
        }
        if (p->then == FH_THEN_ACT) fh_body_activate(b->math, b->config->act, from, count);
        if (p->then == FH_THEN_GATE) {
            fh_body_activate(b->math, b->config->act, gate + r * ldy, count);
            b->math->mul(from, gate + r * ldy, count);
        }
        memcpy(to, from, count * sizeof *to);
    }
}

void fh_linear_run(const fh_body *b, fh_pool *pool, float *scratch, size_t scratch_each, const float *x, size_t ldx, size_t n,
                   const fh_product *products, size_t count)
{
    if (!n) return;
    run c = {b, x, ldx, n, scratch_each, scratch, products, count, {0}};
    size_t tasks = 0, bytes = 0;
    bool rounded = false;
    for (size_t i = 0; i < count; i++) {
        const fh_linear *w = products[i].w;
        tasks += ((n - 1) / FH_TILE_M + 1) * ((w->out - 1) / tile_columns(w->in) + 1);
        rounded = rounded || w->dtype == FH_Q8_0 || (products[i].gate && products[i].gate->dtype == FH_Q8_0);
        bytes += w->out * fh_row_bytes(w->dtype, w->in) * (products[i].then == FH_THEN_GATE ? 2 : 1);
    }
    size_t in = products->w->in;
    if (rounded && n == 1) fh_state_blocks(&c.rounded, x, in, scratch + scratch_each - rounded_floats(in));
    fh_pool_run(n * bytes < ALONE_BYTES ? NULL : pool, tasks, one_tile, &c);
}
