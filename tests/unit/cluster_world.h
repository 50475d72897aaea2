/* tests/unit/cluster_world.h: rows and centres of eight bits by chance, and the clusters that are nearest to a row by the definition of fh_cluster_search. */
#ifndef FH_CLUSTER_WORLD_H
#define FH_CLUSTER_WORLD_H

#include "cluster/cluster.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct near_shape { size_t n, ld, k, want; bool ties, but, subset; } near_shape;
typedef struct near_world {
    near_shape is;
    int8_t *rows, *centres;
    float *by, *scale, *bias, *score;
    uint32_t *which, *but; /* [n] */
    int32_t *out;          /* [n, want] */
} near_world;

static near_world near_make(near_shape is, fh_rng *r)
{
    near_world w = {.is = is};
    w.rows = malloc(is.n * is.ld), w.centres = malloc(is.k * is.ld);
    w.by = malloc(is.n * sizeof *w.by), w.scale = malloc(is.k * sizeof *w.scale), w.bias = malloc(is.k * sizeof *w.bias);
    w.which = malloc(is.n * sizeof *w.which), w.but = malloc(is.n * sizeof *w.but);
    w.out = malloc(is.n * is.want * sizeof *w.out), w.score = malloc(is.n * is.want * sizeof *w.score);
    int most = is.ties ? 2 : 255; /* of few values many products are equal */
    for (size_t i = 0; i < is.n * is.ld; i++) w.rows[i] = (int8_t)((int)fh_rng_below(r, (uint64_t)most) - most / 2);
    for (size_t i = 0; i < is.k * is.ld; i++) w.centres[i] = (int8_t)((int)fh_rng_below(r, (uint64_t)most) - most / 2);
    for (size_t i = 0; i < is.n; i++) {
        w.by[i] = is.ties ? 1 : (float)(0.01 + fh_rng_double(r));
        w.which[i] = (uint32_t)fh_rng_below(r, is.n);
        w.but[i] = fh_rng_below(r, 3) ? (uint32_t)fh_rng_below(r, is.k) : FH_NO_HOME;
    }
    for (size_t c = 0; c < is.k; c++) {
        w.scale[c] = is.ties ? 1 : (float)(0.01 + fh_rng_double(r));
        w.bias[c] = fh_rng_below(r, 20) ? is.ties ? -0.0f : (float)(-1e3 * fh_rng_double(r)) : -INFINITY; /* some are full */
    }
    if (is.k > 2) w.bias[is.k / 2] = -INFINITY; /* one at least */
    memset(w.rows, 127, is.ld), memset(w.centres, -127, is.ld); /* the largest sums there can be */
    return w;
}

static void near_free(near_world *w)
{
    free(w->rows), free(w->centres), free(w->by), free(w->scale), free(w->bias), free(w->which), free(w->but), free(w->out), free(w->score);
}

/* The nearest of entry i by looking at all of them, each better one put where it belongs. */
static void near_plain(const near_world *w, size_t i, int32_t *out, float *score)
{
    size_t ld = w->is.ld, want = w->is.want, row = w->is.subset ? w->which[i] : i;
    for (size_t e = 0; e < want; e++) out[e] = -1, score[e] = -INFINITY;
    for (size_t c = 0; c < w->is.k; c++) {
        int32_t dot = 0;
        for (size_t j = 0; j < ld; j++) dot += w->rows[row * ld + j] * w->centres[c * ld + j];
        float s = (float)dot * w->scale[c] * w->by[row] + w->bias[c];
        if (!(s > score[want - 1]) || (w->is.but && w->but[i] == c)) continue;
        size_t at = want - 1;
        for (; at && score[at - 1] < s; at--) score[at] = score[at - 1], out[at] = out[at - 1];
        score[at] = s, out[at] = (int32_t)c;
    }
}

static fh_status near_send(const near_world *w, const fh_cluster_device *d, fh_err *err)
{
    size_t some = w->is.n / 2 + 1;
    fh_status rc = d->put_rows(d->ctx, 0, some, w->is.ld, w->rows, w->by, err);
    if (rc == FH_OK) rc = d->put_rows(d->ctx, some, w->is.n - some, w->is.ld, w->rows + some * w->is.ld, w->by + some, err);
    return rc < 0 ? rc : d->put_centres(d->ctx, w->is.k, w->is.ld, w->centres, w->scale, w->bias, err);
}

/* All entries, so many at once; results are poisoned first. */
static fh_status near_search(near_world *w, const fh_cluster_device *d, size_t at_once, fh_err *err)
{
    fh_status rc = FH_OK;
    size_t want = w->is.want;
    memset(w->out, 0x5a, w->is.n * want * sizeof *w->out), memset(w->score, 0x5a, w->is.n * want * sizeof *w->score);
    for (size_t i = 0; rc == FH_OK && i < w->is.n; i += at_once) {
        fh_cluster_search s = {.rows = w->is.subset ? w->which + i : NULL, .first = i, .n = fh_min(at_once, w->is.n - i), .want = want,
                               .but = w->is.but ? w->but + i : NULL, .out = w->out + i * want, .score = w->score + i * want};
        rc = d->search(d->ctx, &s, err);
    }
    return rc;
}

/* How many entries of those looked at (each `step`-th) are not what the definition says. */
static size_t near_different(const near_world *w, size_t step)
{
    size_t want = w->is.want, different = 0;
    int32_t out[64];
    float score[64];
    for (size_t i = 0; i < w->is.n; i += step) {
        near_plain(w, i, out, score);
        for (size_t e = 0; e < want; e++) different += w->out[i * want + e] != out[e] || !(w->score[i * want + e] == score[e]);
    }
    return different;
}

#endif
