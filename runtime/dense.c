/* runtime/dense.c: all logits of many states, from rows in the checkpoint's dtype wherever they lie.
 *
 * A task is a tile of rows, widened to float32 once, against up to 256 states, multiplied by OpenBLAS; of few states the kernels read the
 * rows where they lie, which is all that a decoding step waits for.  Fixed tiles, so the same numbers for any number of threads; how many
 * states a call has may show in their last bits.
 */
#include "runtime/body_private.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

enum { ROWS = 128, STATES = 256, WIDE_FLOATS = 1 << 18 };

typedef struct run {
    const fh_dense *head;
    const fh_body_math *math;
    const fh_kernels *kernels;
    const float *states;
    float *logits, *scratch;
    size_t n, columns, across, each;
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

/* The tile y [n, columns] of all products. */
static void multiply(const run *c, size_t first, size_t count, const float *x, size_t n, float *y)
{
    const fh_rows *rows = &c->head->rows;
    size_t d = rows->cols;
    if (n > FH_FEW_ROWS) {
        fh_gemm_nt_here(n, count, d, x, d, widen(c, first, count, y + STATES * c->columns), d, y, c->columns);
        return;
    }
    fh_state states[FH_FEW_ROWS] = {{0}};
    const fh_state *at[FH_FEW_ROWS];
    for (size_t i = 0; i < n; i++) states[i].f = x + i * d, at[i] = &states[i];
    fh_dots(c->kernels, rows, NULL, NULL, first, count, at, n, y, c->columns);
}

static void one_tile(void *ctx, size_t task, unsigned worker)
{
    const run *c = ctx;
    const fh_dense *head = c->head;
    size_t d = head->rows.cols, first = task % c->across * c->columns, state = task / c->across * STATES;
    size_t count = fh_min(c->columns, head->rows.rows - first), n = fh_min(STATES, c->n - state);
    float *y = c->scratch + worker * c->each;
    multiply(c, first, count, c->states + state * d, n, y);
    for (size_t s = 0; s < n; s++) {
        float *from = y + s * c->columns, *to = c->logits + (state + s) * head->vocab;
        for (size_t r = 0; r < count && (head->bias || head->softcap > 0); r++) {
            size_t token = head->token_of ? head->token_of[first + r] : first + r;
            if (head->bias && token < head->vocab) from[r] += head->bias[token];
            if (head->softcap > 0) from[r] = head->softcap * tanhf(from[r] / head->softcap);
        }
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

fh_status fh_dense_logits(const fh_dense *head, fh_pool *pool, const float *states, size_t n, float *logits, fh_err *err)
{
    if (!n || !head->rows.rows) return FH_OK;
    run c = {.head = head, .math = fh_body_math_choose(fh_isa_name()), .states = states, .logits = logits, .n = n};
    c.kernels = fh_kernels_for(fh_kernels_shared(), head->rows.rows * head->rows.stride);
    c.columns = tile_rows(head->rows.cols);
    c.across = (head->rows.rows - 1) / c.columns + 1;
    size_t wide, bytes;
    if (!fh_mul(c.columns, head->rows.cols, &wide) || !fh_add(wide, STATES * c.columns, &c.each) ||
        !fh_mul(c.each, sizeof(float), &bytes) || !fh_mul(bytes, fh_pool_threads(pool), &bytes) || !(c.scratch = fh_malloc(bytes)))
        return fh_fail(err, FH_ENOMEM, "dense head: out of memory for tiles of %zu x %zu", c.columns, head->rows.cols);
    fh_pool_run(pool, ((n - 1) / STATES + 1) * c.across, one_tile, &c);
    fh_free(c.scratch);
    return FH_OK;
}
