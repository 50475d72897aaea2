/* cluster/start.c: the partition that refinement begins with.
 *
 * Coarse: k-means into about K/16 groups on a sample, which costs seconds where k-means with all K costs minutes; then the groups,
 * neighbours one after the other, are cut into clusters of the exact sizes: the row farthest from its group's centre takes its
 * nearest rows with it, again and again, and what is left joins the next group.
 */
#include "cluster/cluster_private.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    CLUSTERS_A_GROUP = 16, MAX_GROUPS = 1024, MIN_SAMPLE = 4096, COARSE_ITERATIONS = 6, FULL_ITERATIONS = 15,
    POOL = 1024 /* rows cut at a time, so that one huge group (all rows alike) does not cost its square */
};

enum { STREAM_SAMPLE = 1, STREAM_CENTRES }; /* of the seed */

/* `count` of the numbers below n, by chance, the first of out [n]. */
static void pick(uint32_t *out, size_t count, size_t n, uint64_t seed, uint64_t stream)
{
    fh_rng rng;
    fh_rng_seed(&rng, seed, stream);
    for (size_t i = 0; i < n; i++) out[i] = (uint32_t)i;
    for (size_t i = 0; i < count; i++) {
        size_t j = i + (size_t)fh_rng_below(&rng, n - i);
        uint32_t t = out[i];
        out[i] = out[j], out[j] = t;
    }
}

static int by_number(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* Chosen rows, in ascending order, one after the other; NULL when out of memory. */
static float *sample(const fh_work *w, size_t count, uint64_t seed, uint64_t stream)
{
    uint32_t *rows = fh_malloc(w->n * sizeof *rows);
    float *out = fh_aligned(count * w->ld * sizeof *out);
    if (rows && out) {
        pick(rows, count, w->n, seed, stream);
        qsort(rows, count, sizeof *rows, by_number);
        for (size_t i = 0; i < count; i++) memcpy(out + i * w->ld, w->x + rows[i] * w->ld, w->ld * sizeof *out);
    } else {
        fh_free(out);
        out = NULL;
    }
    fh_free(rows);
    return out;
}

/* ---- coarse groups ----------------------------------------------------------------------------------------------- */

/* Groups in an order in which each is followed by the nearest that is left. */
static fh_status chain(uint32_t *order, const fh_work *w, const float *c, size_t groups, fh_err *err)
{
    float *square = fh_malloc(groups * sizeof *square), *dot = fh_malloc(groups * sizeof *dot);
    fh_status rc = FH_OK;
    if (!square || !dot) {
        rc = fh_fail(err, FH_ENOMEM, "clustering: out of memory");
        goto out;
    }
    for (size_t g = 0; g < groups; g++) {
        order[g] = (uint32_t)g;
        square[g] = w->dots->one(c + g * w->ld, c + g * w->ld, w->ld);
    }
    for (size_t at = 0; at + 1 < groups; at++) {
        w->dots->many(dot, c + order[at] * w->ld, c, w->ld, order + at + 1, groups - at - 1, w->ld);
        size_t best = at + 1;
        float least = INFINITY;
        for (size_t i = at + 1; i < groups; i++) {
            float away = square[order[i]] - 2 * dot[i - at - 1];
            if (away < least || (away == least && order[i] < order[best])) least = away, best = i;
        }
        uint32_t t = order[at + 1];
        order[at + 1] = order[best], order[best] = t;
    }
out:
    fh_free(square);
    fh_free(dot);
    return rc;
}

struct near { float away; uint32_t row; };

static int nearer(const void *a, const void *b)
{
    const struct near *x = a, *y = b;
    if (x->away != y->away) return x->away < y->away ? -1 : 1;
    return (x->row > y->row) - (x->row < y->row);
}

struct cut {
    fh_work *w;
    struct near *pool; /* rows without a cluster */
    uint32_t *rows;
    float *dot, *far;  /* far [n]: from the centre of the row's group */
    size_t count;
    uint32_t next;     /* cluster */
};

static void measure(struct cut *c, const float *from, float *out)
{
    const fh_work *w = c->w;
    for (size_t i = 0; i < c->count; i++) c->rows[i] = c->pool[i].row;
    w->dots->many(out, from, w->x, w->ld, c->rows, c->count, w->ld);
    for (size_t i = 0; i < c->count; i++) out[i] = w->square[c->rows[i]] - 2 * out[i];
}

/* Cut clusters from the pool as long as it holds one. */
static void cut_pool(struct cut *c, const float *centre)
{
    fh_work *w = c->w;
    measure(c, centre, c->dot);
    for (size_t i = 0; i < c->count; i++) c->far[c->pool[i].row] = c->dot[i];
    while (c->next < w->k && c->count >= w->first[c->next + 1] - w->first[c->next]) {
        size_t size = w->first[c->next + 1] - w->first[c->next];
        uint32_t seed = c->pool[0].row;
        for (size_t i = 1; i < c->count; i++) {
            uint32_t row = c->pool[i].row;
            if (c->far[row] > c->far[seed] || (c->far[row] == c->far[seed] && row < seed)) seed = row;
        }
        measure(c, w->x + seed * w->ld, c->dot);
        for (size_t i = 0; i < c->count; i++) c->pool[i].away = c->dot[i];
        qsort(c->pool, c->count, sizeof *c->pool, nearer);
        for (size_t i = 0; i < size; i++) w->home[c->pool[i].row] = c->next;
        c->count -= size;
        memmove(c->pool, c->pool + size, c->count * sizeof *c->pool);
        c->next++;
    }
}

/* group [n]: of each row */
static fh_status cut_groups(fh_work *w, const float *centres, const int32_t *group, size_t groups, fh_err *err)
{
    fh_status rc = FH_OK;
    size_t largest = w->first[1] - w->first[0], at_once = fh_max(POOL, 4 * largest), room = fh_min(w->n, at_once + largest);
    struct cut c = {.w = w};
    uint32_t *order = fh_malloc(groups * sizeof *order), *begin = fh_calloc(groups + 1, sizeof *begin);
    uint32_t *rows = fh_malloc(w->n * sizeof *rows);
    c.pool = fh_malloc(room * sizeof *c.pool);
    c.rows = fh_malloc(room * sizeof *c.rows);
    c.dot = fh_malloc(room * sizeof *c.dot);
    c.far = fh_malloc(w->n * sizeof *c.far);
    if (!order || !begin || !rows || !c.pool || !c.rows || !c.dot || !c.far) {
        rc = fh_fail(err, FH_ENOMEM, "clustering: out of memory for the start");
        goto out;
    }
    if ((rc = chain(order, w, centres, groups, err)) < 0) goto out;
    for (size_t i = 0; i < w->n; i++) begin[group[i] + 1]++;
    for (size_t g = 0; g < groups; g++) begin[g + 1] += begin[g];
    for (size_t i = 0; i < w->n; i++) rows[begin[group[i]]++] = (uint32_t)i; /* begin [g] is now the end of g */
    size_t done = 0;
    for (size_t o = 0; o < groups; o++) {
        uint32_t g = order[o];
        for (size_t i = g ? begin[g - 1] : 0; i < begin[g];) {
            if (fh_job_stopped(w->job)) { rc = fh_fail(err, FH_EINTERRUPTED, "clustering: interrupted"); goto out; }
            fh_job_progress(w->job, "start", (double)done, (double)w->n, "tokens");
            size_t upto = fh_min(begin[g], i + at_once);
            done += upto - i;
            for (; i < upto; i++) c.pool[c.count++].row = rows[i];
            cut_pool(&c, centres + g * w->ld);
        }
    }
    fh_job_progress(w->job, "start", (double)w->n, (double)w->n, "tokens");
out:
    fh_free(order);
    fh_free(begin);
    fh_free(rows);
    fh_free(c.pool);
    fh_free(c.rows);
    fh_free(c.dot);
    fh_free(c.far);
    return rc;
}

fh_status fh_start_coarse(fh_work *w, uint64_t seed, fh_err *err)
{
    fh_status rc = FH_OK;
    size_t groups = fh_min(fh_max(w->k / CLUSTERS_A_GROUP, 1), MAX_GROUPS), rows = fh_min(w->n, fh_max(w->k, MIN_SAMPLE));
    float *bias = NULL, *some = sample(w, rows, seed, STREAM_SAMPLE), *centres = fh_aligned(groups * w->ld * sizeof *centres);
    int32_t *group = fh_malloc(w->n * sizeof *group);
    if (!some || !centres || !group || !(bias = fh_malloc(groups * sizeof *bias))) {
        rc = fh_fail(err, FH_ENOMEM, "clustering: out of memory for the start (%zu rows of %zu)", rows, w->d);
        goto out;
    }
    rc = fh_kmeans(centres, some, rows, w->ld, groups, COARSE_ITERATIONS, w->metric == FH_METRIC_COSINE, seed, w->job, err);
    if (rc < 0) goto out;
    fh_free(some);
    some = NULL;
    for (size_t g = 0; g < groups; g++) bias[g] = -w->dots->one(centres + g * w->ld, centres + g * w->ld, w->ld) / 2;
    fh_nearest q = {.x = w->x, .ld = w->ld, .n = w->n, .c = centres, .bias = bias, .k = groups, .want = 1, .out = group};
    if ((rc = fh_nearest_run(&q, "start", w->job, err)) < 0) goto out;
    rc = cut_groups(w, centres, group, groups, err);
out:
    fh_free(some);
    fh_free(centres);
    fh_free(group);
    fh_free(bias);
    return rc;
}

/* ---- the other starts -------------------------------------------------------------------------------------------- */

fh_status fh_start_faiss(fh_work *w, uint64_t seed, fh_err *err)
{
    fh_status rc;
    fh_cluster_metric metric = w->metric;
    float *centres = fh_aligned(w->k * w->ld * sizeof *centres);
    if (!centres) return fh_fail(err, FH_ENOMEM, "clustering: out of memory for %zu centroids", w->k);
    /* The published method works on unit rows whatever the refinement does after it. */
    w->metric = FH_METRIC_COSINE;
    if (metric != w->metric && (rc = fh_work_fill(w, err)) < 0) goto out;
    if ((rc = fh_kmeans(centres, w->x, w->n, w->ld, w->k, FULL_ITERATIONS, true, seed, w->job, err)) < 0) goto out;
    rc = fh_start_greedy(w, centres, false, err);
out:
    if (metric != w->metric) {
        fh_status filled;
        w->metric = metric;
        filled = fh_work_fill(w, rc < 0 ? NULL : err);
        if (filled < 0) rc = filled;
    }
    fh_free(centres);
    return rc;
}

fh_status fh_start_random(fh_work *w, uint64_t seed, fh_err *err)
{
    float *centres = sample(w, w->k, seed, STREAM_CENTRES);
    if (!centres) return fh_fail(err, FH_ENOMEM, "clustering: out of memory for %zu centres", w->k);
    fh_status rc = fh_start_greedy(w, centres, w->metric == FH_METRIC_EUCLIDEAN, err);
    fh_free(centres);
    return rc;
}
