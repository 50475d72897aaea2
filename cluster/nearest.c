/* cluster/nearest.c: the best clusters of every row, from tiles of a dense product that are searched while they are in the cache.
 *
 * Rows of eight bits, K 8016, D 2048: see docs/measurements/large-heads.md.
 */
#include "cluster/cluster_private.h"

#include <math.h>
#include <string.h>

/* 128 x 1024 scores are 512 KiB: they stay in the second-level cache between product and search. */
enum { TILE_ROWS = 128, TILE_CLUSTERS = 1024, TASKS_AT_ONCE = 64 };

struct search {
    const fh_nearest *q;
    const fh_job *job;
    size_t begin, want;
    float *tile, *best, *gathered; /* of each worker: [TILE_ROWS, TILE_CLUSTERS], [TILE_ROWS, want], [TILE_ROWS, ld] */
    int32_t *which;                /* [TILE_ROWS, want] */
    /* Of eight bits: */
    const fh_int8_dots *dots;
    fh_turn turn;
    size_t panels;
    int8_t *packed;                /* [panels, ld, FH_PANEL] */
    float *scale, *bias;           /* [panels, FH_PANEL] */
    int8_t *rows;                  /* of each worker [TILE_ROWS, ld] */
    float *room;                   /* of each worker [ld] */
    int32_t *dot;                  /* of each worker [TILE_ROWS, FH_PANEL] */
};

/* Scores [n] of clusters from `base` into a row's list, which is sorted, best first.  Clusters come in ascending order, so an equal
 * score goes behind. */
static void select_from(float *best, int32_t *which, size_t want, const float *score, size_t n, size_t base, size_t not)
{
    float bar = best[want - 1];
    for (size_t j = 0; j < n; j += 16) {
        size_t m = fh_min(16, n - j);
        int any = 0;
        if (m == 16) {
            for (size_t i = 0; i < 16; i++) any |= score[j + i] > bar;
        } else {
            any = 1;
        }
        if (!any) continue;
        for (size_t i = j; i < j + m; i++) {
            float s = score[i];
            if (!(s > bar) || base + i == not) continue;
            size_t at = want - 1;
            for (; at && best[at - 1] < s; at--) best[at] = best[at - 1], which[at] = which[at - 1];
            best[at] = s, which[at] = (int32_t)(base + i);
            bar = best[want - 1];
        }
    }
}

static void one_tile(void *ctx, size_t task, unsigned worker)
{
    const struct search *s = ctx;
    const fh_nearest *q = s->q;
    if (fh_job_stopped(s->job)) return;
    size_t row = s->begin + task * TILE_ROWS, n = fh_min(TILE_ROWS, q->n - row);
    float *tile = s->tile + (size_t)worker * TILE_ROWS * TILE_CLUSTERS, *best = s->best + (size_t)worker * TILE_ROWS * s->want;
    int32_t *which = s->which + (size_t)worker * TILE_ROWS * s->want;
    const float *x = q->x + (q->rows ? 0 : row * q->ld);
    if (q->rows) {
        float *gathered = s->gathered + (size_t)worker * TILE_ROWS * q->ld;
        for (size_t i = 0; i < n; i++) memcpy(gathered + i * q->ld, q->x + q->rows[row + i] * q->ld, q->ld * sizeof *gathered);
        x = gathered;
    }
    for (size_t i = 0; i < n * s->want; i++) best[i] = -INFINITY, which[i] = FH_NO_CLUSTER;
    for (size_t c = 0; c < q->k; c += TILE_CLUSTERS) {
        size_t m = fh_min(TILE_CLUSTERS, q->k - c);
        fh_gemm_nt_here(n, m, q->ld, x, q->ld, q->c + c * q->ld, q->ld, tile, TILE_CLUSTERS);
        for (size_t i = 0; i < n; i++) {
            float *score = tile + i * TILE_CLUSTERS;
            if (q->scale) {
                for (size_t j = 0; j < m; j++) score[j] *= q->scale[c + j];
            }
            if (q->bias) {
                for (size_t j = 0; j < m; j++) score[j] += q->bias[c + j];
            }
            select_from(best + i * s->want, which + i * s->want, s->want, score, m, c, q->not ? q->not[row + i] : SIZE_MAX);
        }
    }
    memcpy(q->out + row * s->want, which, n * s->want * sizeof *which);
    if (q->score) memcpy(q->score + row * s->want, best, n * s->want * sizeof *best);
}

/* ---- rows of eight bits ---------------------------------------------------------------------------------------------- */

void fh_turn_centre(const fh_turn *t, const fh_nearest *q, size_t c, int8_t *row, float *scale, float *bias, float *room)
{
    *scale = fh_turn_int8(t, row, NULL, q->c + c * q->ld, room) * (q->scale ? q->scale[c] : 1);
    *bias = q->bias ? q->bias[c] : 0;
}

static void pack_task(void *ctx, size_t panel, unsigned worker)
{
    const struct search *s = ctx;
    const fh_nearest *q = s->q;
    int8_t *row = s->rows + (size_t)worker * TILE_ROWS * q->ld, *packed = s->packed + panel * q->ld * FH_PANEL;
    for (size_t j = 0; j < FH_PANEL; j++) {
        size_t c = panel * FH_PANEL + j;
        float *scale = s->scale + c, *bias = s->bias + c;
        if (c < q->k) {
            fh_turn_centre(&s->turn, q, c, row, scale, bias, s->room + (size_t)worker * q->ld);
        } else {
            *scale = 1, *bias = -INFINITY;
            memset(row, 0, q->ld);
        }
        fh_pack_int8(s->dots, packed, row, j, q->ld);
    }
}

static void one_tile_int8(void *ctx, size_t task, unsigned worker)
{
    const struct search *s = ctx;
    const fh_nearest *q = s->q;
    if (fh_job_stopped(s->job)) return;
    size_t row = s->begin + task * TILE_ROWS, n = fh_min(TILE_ROWS, q->n - row);
    float *best = s->best + (size_t)worker * TILE_ROWS * s->want, by[TILE_ROWS], score[FH_PANEL];
    int32_t *which = s->which + (size_t)worker * TILE_ROWS * s->want, *dot = s->dot + (size_t)worker * TILE_ROWS * FH_PANEL, less[TILE_ROWS];
    int8_t *rows = s->rows + (size_t)worker * TILE_ROWS * q->ld;
    for (size_t i = 0; i < n; i++) {
        int32_t sum;
        by[i] = fh_turn_int8(&s->turn, rows + i * q->ld, &sum, q->x + (q->rows ? q->rows[row + i] : row + i) * q->ld, s->room + (size_t)worker * q->ld);
        less[i] = s->dots->offset ? 128 * sum : 0;
    }
    for (size_t i = 0; i < n * s->want; i++) best[i] = -INFINITY, which[i] = FH_NO_CLUSTER;
    for (size_t p = 0; p < s->panels; p++) {
        const float *scale = s->scale + p * FH_PANEL, *bias = s->bias + p * FH_PANEL;
        s->dots->tile(dot, rows, n, q->ld, s->packed + p * q->ld * FH_PANEL);
        for (size_t i = 0; i < n; i++) {
            float *mine = best + i * s->want;
            if (!s->dots->score(score, dot + i * FH_PANEL, scale, bias, by[i], less[i], mine[s->want - 1])) continue;
            select_from(mine, which + i * s->want, s->want, score, FH_PANEL, p * FH_PANEL, q->not ? q->not[row + i] : SIZE_MAX);
        }
    }
    memcpy(q->out + row * s->want, which, n * s->want * sizeof *which);
    if (q->score) memcpy(q->score + row * s->want, best, n * s->want * sizeof *best);
}

static fh_status prepare_int8(struct search *s, fh_err *err)
{
    const fh_nearest *q = s->q;
    fh_pool *pool = fh_job_pool(s->job);
    size_t workers = fh_pool_threads(pool), bytes;
    s->dots = fh_int8_dots_pick();
    s->panels = (q->k + FH_PANEL - 1) / FH_PANEL;
    if (!fh_mul(s->panels * FH_PANEL, q->ld, &bytes)) return fh_fail(err, FH_ENOMEM, "clustering: %zu centres pass the address space", q->k);
    s->packed = fh_aligned(bytes);
    s->scale = fh_malloc(s->panels * FH_PANEL * sizeof *s->scale);
    s->bias = fh_malloc(s->panels * FH_PANEL * sizeof *s->bias);
    s->rows = fh_aligned(workers * TILE_ROWS * q->ld);
    s->room = fh_malloc(workers * q->ld * sizeof *s->room);
    s->dot = fh_aligned(workers * TILE_ROWS * FH_PANEL * sizeof *s->dot);
    if (!s->packed || !s->scale || !s->bias || !s->rows || !s->room || !s->dot)
        return fh_fail(err, FH_ENOMEM, "clustering: out of memory for the search of the nearest clusters");
    fh_status rc = fh_turn_make(&s->turn, q->ld, true, err);
    if (rc == FH_OK) fh_pool_run(pool, s->panels, pack_task, s);
    return rc;
}

/* ---- either ------------------------------------------------------------------------------------------------------------ */

fh_status fh_nearest_run(const fh_nearest *q, const char *what, const fh_job *job, fh_err *err)
{
    fh_status rc = FH_OK;
    fh_pool *pool = fh_job_pool(job);
    size_t workers = fh_pool_threads(pool), tiles = (q->n + TILE_ROWS - 1) / TILE_ROWS;
    bool int8 = q->int8 && q->ld <= FH_INT8_LONGEST;
    if (int8 && q->elsewhere && q->elsewhere->device) return fh_nearest_elsewhere(q, what, job, err);
    struct search s = {.q = q, .job = job, .want = q->want};
    s.tile = int8 ? NULL : fh_aligned(workers * TILE_ROWS * TILE_CLUSTERS * sizeof *s.tile);
    s.best = fh_malloc(workers * TILE_ROWS * q->want * sizeof *s.best);
    s.which = fh_malloc(workers * TILE_ROWS * q->want * sizeof *s.which);
    s.gathered = q->rows && !int8 ? fh_aligned(workers * TILE_ROWS * q->ld * sizeof *s.gathered) : NULL;
    if ((!s.tile && !int8) || !s.best || !s.which || (q->rows && !int8 && !s.gathered)) {
        rc = fh_fail(err, FH_ENOMEM, "clustering: out of memory for the search of the nearest clusters");
        goto out;
    }
    if (int8 && (rc = prepare_int8(&s, err)) < 0) goto out;
    for (size_t t = 0; t < tiles; t += TASKS_AT_ONCE) {
        fh_job_progress(job, what, (double)(t * TILE_ROWS), (double)q->n, "tokens");
        s.begin = t * TILE_ROWS;
        fh_pool_run(pool, fh_min(TASKS_AT_ONCE, tiles - t), int8 ? one_tile_int8 : one_tile, &s);
        if (fh_job_stopped(job)) { rc = fh_fail(err, FH_EINTERRUPTED, "clustering: interrupted"); goto out; }
    }
    fh_job_progress(job, what, (double)q->n, (double)q->n, "tokens");
out:
    fh_free(s.tile);
    fh_free(s.best);
    fh_free(s.which);
    fh_free(s.gathered);
    fh_free(s.packed);
    fh_free(s.scale);
    fh_free(s.bias);
    fh_free(s.rows);
    fh_free(s.room);
    fh_free(s.dot);
    fh_turn_free(&s.turn);
    return rc;
}
