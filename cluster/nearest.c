/* cluster/nearest.c: the best clusters of every row, from tiles of a dense product that are searched while they are in the cache. */
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

fh_status fh_nearest_run(const fh_nearest *q, const char *what, const fh_job *job, fh_err *err)
{
    fh_status rc = FH_OK;
    fh_pool *pool = fh_job_pool(job);
    size_t workers = fh_pool_threads(pool), tiles = (q->n + TILE_ROWS - 1) / TILE_ROWS;
    struct search s = {.q = q, .job = job, .want = q->want};
    s.tile = fh_aligned(workers * TILE_ROWS * TILE_CLUSTERS * sizeof *s.tile);
    s.best = fh_malloc(workers * TILE_ROWS * q->want * sizeof *s.best);
    s.which = fh_malloc(workers * TILE_ROWS * q->want * sizeof *s.which);
    s.gathered = q->rows ? fh_aligned(workers * TILE_ROWS * q->ld * sizeof *s.gathered) : NULL;
    if (!s.tile || !s.best || !s.which || (q->rows && !s.gathered)) {
        rc = fh_fail(err, FH_ENOMEM, "clustering: out of memory for the search of the nearest clusters");
        goto out;
    }
    for (size_t t = 0; t < tiles; t += TASKS_AT_ONCE) {
        fh_job_progress(job, what, (double)(t * TILE_ROWS), (double)q->n, "tokens");
        s.begin = t * TILE_ROWS;
        fh_pool_run(pool, fh_min(TASKS_AT_ONCE, tiles - t), one_tile, &s);
        if (fh_job_stopped(job)) { rc = fh_fail(err, FH_EINTERRUPTED, "clustering: interrupted"); goto out; }
    }
    fh_job_progress(job, what, (double)q->n, (double)q->n, "tokens");
out:
    fh_free(s.tile);
    fh_free(s.best);
    fh_free(s.which);
    fh_free(s.gathered);
    return rc;
}
