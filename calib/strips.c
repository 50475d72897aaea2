/* calib/strips.c: what many rows give with a block of states, both rounded to eight bits.
 *
 * Sums of integers by the kernels of the clustering, with states in the place of clusters: rows then lie as they are, and only the block is packed.
 * Scores come in strips of 16 states, [rows, 16] one after the other, so that softmaxes run over 16 states at once and what one cluster gets
 * from all states lies in a few lines. */
#include "calib/learn.h"

#include <string.h>

enum { ROWS_A_TASK = 64, STRIPS = FH_PANEL / FH_STRIP };

struct states_job { fh_strips *s; const float *states; };

fh_status fh_strips_make(fh_strips *s, size_t rows, size_t block, size_t d, fh_pool *pool, fh_err *err)
{
    size_t workers = fh_pool_threads(pool), bytes, packed, scratch;
    *s = (fh_strips){.pool = pool, .rows = rows, .d = d, .dots = fh_int8_dots_pick(), .math = fh_learn_math_choose(fh_isa_name())};
    if (d > FH_INT8_LONGEST) return fh_fail(err, FH_EUNSUPPORTED, "learned routing: rows of %zu values are too long (%d at most)", d, FH_INT8_LONGEST);
    s->ld = fh_round_up(d, FH_LANES), s->panels = (block + FH_PANEL - 1) / FH_PANEL;
    if (!fh_mul(rows, s->ld, &bytes) || !fh_mul(s->panels * FH_PANEL, s->ld, &packed) || !fh_mul(workers, s->ld, &scratch))
        return fh_fail(err, FH_ENOMEM, "learned routing: %zu rows of %zu pass the address space", rows, d);
    s->row = fh_aligned(bytes), s->by = fh_malloc(rows * sizeof *s->by), s->less = fh_malloc(rows * sizeof *s->less);
    s->packed = fh_aligned(packed), s->scale = fh_malloc(s->panels * FH_PANEL * sizeof *s->scale);
    s->padded = fh_malloc(scratch * sizeof *s->padded), s->room = fh_malloc(scratch * sizeof *s->room), s->bytes = fh_aligned(scratch);
    s->dot = fh_aligned(workers * ROWS_A_TASK * FH_PANEL * sizeof *s->dot);
    if (!s->row || !s->by || !s->less || !s->packed || !s->scale || !s->padded || !s->room || !s->bytes || !s->dot)
        return fh_fail(err, FH_ENOMEM, "out of memory for learned routing: rows of eight bits");
    return fh_turn_make(&s->turn, s->ld, false, err);
}

void fh_strips_free(fh_strips *s)
{
    fh_turn_free(&s->turn);
    fh_free(s->row);
    fh_free(s->by);
    fh_free(s->less);
    fh_free(s->packed);
    fh_free(s->scale);
    fh_free(s->padded);
    fh_free(s->room);
    fh_free(s->bytes);
    fh_free(s->dot);
    *s = (fh_strips){0};
}

static float rounded(const fh_strips *s, int8_t *out, int32_t *sum, const float *x, const float *mean, unsigned worker)
{
    float *padded = s->padded + worker * s->ld;
    if (!mean && s->d == s->ld) return fh_turn_int8(&s->turn, out, sum, x, s->room + worker * s->ld);
    if (mean) for (size_t j = 0; j < s->d; j++) padded[j] = x[j] - mean[j];
    else memcpy(padded, x, s->d * sizeof *x);
    memset(padded + s->d, 0, (s->ld - s->d) * sizeof *padded);
    return fh_turn_int8(&s->turn, out, sum, padded, s->room + worker * s->ld);
}

void fh_strips_row(fh_strips *s, size_t r, const float *x, const float *mean, unsigned worker)
{
    int32_t sum;
    s->by[r] = rounded(s, s->row + r * s->ld, &sum, x, mean, worker);
    s->less[r] = s->dots->offset ? 128 * sum : 0;
}

static void panel_task(void *ctx, size_t panel, unsigned worker)
{
    const struct states_job *j = ctx;
    fh_strips *s = j->s;
    int8_t *byte = s->bytes + worker * s->ld;
    for (size_t i = 0; i < FH_PANEL; i++) {
        size_t state = panel * FH_PANEL + i;
        if (state < s->states) {
            s->scale[state] = rounded(s, byte, NULL, j->states + state * s->d, NULL, worker);
        } else {
            s->scale[state] = 1;
            memset(byte, 0, s->ld);
        }
        fh_pack_int8(s->dots, s->packed + panel * s->ld * FH_PANEL, byte, i, s->ld);
    }
}

void fh_strips_states(fh_strips *s, const float *states, size_t n)
{
    struct states_job j = {s, states};
    s->states = n;
    fh_pool_run(s->pool, (n + FH_PANEL - 1) / FH_PANEL, panel_task, &j);
}

struct score_job { const fh_strips *s; float *out; };

static void score_task(void *ctx, size_t task, unsigned worker)
{
    const struct score_job *j = ctx;
    const fh_strips *s = j->s;
    size_t first = task * ROWS_A_TASK, n = fh_min(ROWS_A_TASK, s->rows - first), strips = (s->states + FH_STRIP - 1) / FH_STRIP;
    int32_t *dot = s->dot + worker * ROWS_A_TASK * FH_PANEL;
    for (size_t p = 0; p * FH_PANEL < s->states; p++) {
        s->dots->tile(dot, s->row + first * s->ld, n, s->ld, s->packed + p * s->ld * FH_PANEL);
        for (size_t r = 0; r < n; r++)
            s->math->scores(j->out + (p * STRIPS * s->rows + first + r) * FH_STRIP, s->rows * FH_STRIP, fh_min(STRIPS, strips - p * STRIPS), dot + r * FH_PANEL,
                            s->scale + p * FH_PANEL, s->by[first + r], s->less[first + r]);
    }
}

void fh_strips_scores(const fh_strips *s, float *out)
{
    struct score_job j = {s, out};
    fh_pool_run(s->pool, (s->rows + ROWS_A_TASK - 1) / ROWS_A_TASK, score_task, &j);
}
