/* cluster/greedy.c: rows to given centres at exact sizes, the published way: the surest rows first, each to the best centre with room. */
#include "cluster/cluster_private.h"

#include <math.h>
#include <stdlib.h>

enum { ROUNDS = 8 }; /* of rows that found all their choices full; what is left then (many equal rows) is dealt in order */

struct turn { float score; uint32_t row; };

static int surer(const void *a, const void *b)
{
    const struct turn *x = a, *y = b;
    if (x->score != y->score) return x->score > y->score ? -1 : 1;
    return (x->row > y->row) - (x->row < y->row);
}

struct greedy {
    fh_work *w;
    const float *c;
    size_t want, left;
    uint32_t *rows;      /* [left] without a home */
    uint32_t *room;      /* [K] */
    float *bias, *score; /* [K]; [n, want] */
    int32_t *list;       /* [n, want] */
    struct turn *turn;   /* [n] */
};

static fh_status one_round(struct greedy *g, fh_err *err)
{
    fh_work *w = g->w;
    for (size_t c = 0; c < w->k; c++) {
        if (!g->room[c]) g->bias[c] = -INFINITY;
    }
    fh_nearest q = {.x = w->x, .ld = w->ld, .rows = g->rows, .n = g->left, .c = g->c, .bias = g->bias, .k = w->k,
                    .want = g->want, .int8 = true, .elsewhere = &w->elsewhere, .out = g->list, .score = g->score};
    fh_status rc = fh_nearest_run(&q, "balancing", w->job, err);
    if (rc < 0) return rc;
    for (size_t i = 0; i < g->left; i++) g->turn[i] = (struct turn){g->score[i * g->want], (uint32_t)i};
    qsort(g->turn, g->left, sizeof *g->turn, surer);
    for (size_t t = 0; t < g->left; t++) {
        const int32_t *list = g->list + g->turn[t].row * g->want;
        for (size_t i = 0; i < g->want && list[i] >= 0; i++) {
            if (!g->room[list[i]]) continue;
            g->room[list[i]]--;
            w->home[g->rows[g->turn[t].row]] = (uint32_t)list[i];
            g->rows[g->turn[t].row] = UINT32_MAX;
            break;
        }
    }
    size_t left = 0;
    for (size_t i = 0; i < g->left; i++) {
        if (g->rows[i] != UINT32_MAX) g->rows[left++] = g->rows[i];
    }
    g->left = left;
    return FH_OK;
}

fh_status fh_start_greedy(fh_work *w, const float *c, bool squares, fh_err *err)
{
    fh_status rc = FH_OK;
    struct greedy g = {.w = w, .c = c, .want = fh_min(FH_MAX_CANDIDATES, w->k), .left = w->n};
    g.rows = fh_malloc(w->n * sizeof *g.rows);
    g.room = fh_malloc(w->k * sizeof *g.room);
    g.bias = fh_malloc(w->k * sizeof *g.bias);
    g.score = fh_malloc(w->n * g.want * sizeof *g.score);
    g.list = fh_malloc(w->n * g.want * sizeof *g.list);
    g.turn = fh_malloc(w->n * sizeof *g.turn);
    if (!g.rows || !g.room || !g.bias || !g.score || !g.list || !g.turn) {
        rc = fh_fail(err, FH_ENOMEM, "clustering: out of memory for the balancing of %zu tokens", w->n);
        goto out;
    }
    for (size_t i = 0; i < w->n; i++) g.rows[i] = (uint32_t)i;
    for (size_t k = 0; k < w->k; k++) {
        g.room[k] = w->first[k + 1] - w->first[k];
        g.bias[k] = squares ? -w->dots->one(c + k * w->ld, c + k * w->ld, w->ld) / 2 : 0;
    }
    for (int i = 0; i < ROUNDS && g.left; i++) {
        if ((rc = one_round(&g, err)) < 0) goto out;
    }
    for (size_t i = 0, k = 0; i < g.left; i++) {
        while (!g.room[k]) k++;
        g.room[k]--;
        w->home[g.rows[i]] = (uint32_t)k;
    }
out:
    fh_free(g.rows);
    fh_free(g.room);
    fh_free(g.bias);
    fh_free(g.score);
    fh_free(g.list);
    fh_free(g.turn);
    return rc;
}
