/* cluster/refine.c: exact pairwise swaps.
 *
 * Lloyd steps with balanced assignment freeze early: with 16 members a row is a tenth of its own centroid, so its home always looks
 * too good.  An exact swap test counts that.  For row x in cluster a and row u in cluster b, with n members each and
 * w = 1/n_a + 1/n_b, the gains are
 *   Euclidean, centres M = means:  2 (x - u).(M_b - M_a) + w |x - u|^2 = [2 x.(M_b - M_a) + w |x|^2] + [2 u.(M_a - M_b - w x) + w |u|^2]
 *   cosine, centres S = sums:      |S_a - x + u| + |S_b - u + x| - |S_a| - |S_b|
 * so that after one product of x with M_b, all members of b cost one product each with a vector made for the pair (two for cosine).
 * b is skipped unless moving x there alone would gain.
 *
 * Proposals are made in parallel from frozen centres, in fixed batches, and committed in the order of the rows: a proposal whose clusters
 * changed within the batch is judged again with the centres as they are.  Centres follow each swap in float32 and are made anew
 * from the members before every sweep; a swap has to gain more than what rounding can feign, so the objective never falls.
 */
#include "cluster/cluster_private.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    BATCH = 512, ROWS_A_TASK = 8,
    MAX_TRIED = 128,   /* members of a cluster tried for one row; larger clusters are gone through in windows that move with the sweep */
    DEFAULT_CANDIDATES = 24, DEFAULT_ROUNDS = 6, DEFAULT_SWEEPS = 4
};
/* Swaps of a sweep, and of a round, as shares of the rows: too few for another.  Where the last round swapped less than 2 % of the
 * rows, the next gained 1e-5 of the objective (50304 x 768, K 3144). */
static const double few_of_sweep = 0.002, few_of_round = 0.02;
/* Of the lengths that enter a gain.  Sums of 16 lanes over D = 8192 are good to 1e-6 of them. */
static const float noise = 4e-6f;

struct proposal { uint32_t row, with; float gain; bool found; };

struct scratch { float *z, *dot; };

struct swaps {
    fh_work *w;
    size_t want;
    int32_t *list, *found;   /* [n, want] candidates; those of a round before they are compared with the ones before */
    uint32_t *rows, *homes;  /* [n] of a round: the rows that get new candidates, and their clusters */
    bool *swapped;           /* [n] since the last candidates */
    uint64_t *fresh;         /* [n] bit i: candidate i was not on the list before, and not tried since */
    uint32_t *checked;       /* [n] time when the row was tried last without finding anything; 0: never */
    uint32_t *changed;       /* [K] time of the last swap of a cluster */
    uint32_t now;            /* batches so far, from 1 */
    size_t begin, end;       /* of the batch */
    unsigned sweep;
    struct proposal batch[BATCH];
    float *z, *dot;          /* of each worker: [2, ld], [2, MAX_TRIED] */
};

/* ---- the gain of one swap ------------------------------------------------------------------------------------------ */

static float inverse_size(const fh_work *w, uint32_t c)
{
    return 1 / (float)(w->first[c + 1] - w->first[c]);
}

/* |S'| - |S| where |S'|^2 = |S|^2 + more, without cancellation. */
static float longer_by(float length, float more)
{
    float sum = sqrtf(fmaxf(length * length + more, 0)) + length;
    return sum > 0 ? more / sum : 0;
}

/* What rounding can feign in the gain of swapping rows i and j of clusters a and b. */
static float noise_of(const fh_work *w, uint32_t i, uint32_t j, uint32_t a, uint32_t b)
{
    if (w->metric == FH_METRIC_COSINE) return noise * 8;
    float x = sqrtf(w->square[i]), u = sqrtf(w->square[j]);
    return noise * ((x + u) * (w->length[a] + w->length[b]) + (inverse_size(w, a) + inverse_size(w, b)) * (x + u) * (x + u));
}

static float gain_now(const fh_work *w, uint32_t i, uint32_t j)
{
    uint32_t a = w->home[i], b = w->home[j];
    const float *x = w->x + i * w->ld, *u = w->x + j * w->ld, *ca = w->centre + a * w->ld, *cb = w->centre + b * w->ld;
    float xa = w->dots->one(x, ca, w->ld), xb = w->dots->one(x, cb, w->ld), ua = w->dots->one(u, ca, w->ld);
    float ub = w->dots->one(u, cb, w->ld), xu = w->dots->one(x, u, w->ld), apart = w->square[i] + w->square[j] - 2 * xu;
    if (w->metric == FH_METRIC_EUCLIDEAN) return 2 * ((xb - xa) + (ua - ub)) + (inverse_size(w, a) + inverse_size(w, b)) * apart;
    return longer_by(w->length[a], 2 * (ua - xa) + apart) + longer_by(w->length[b], 2 * (xb - ub) + apart);
}

/* ---- proposals --------------------------------------------------------------------------------------------------- */

/* The members of b that are tried: from *begin, count of them, going round at the end. */
static size_t window(const struct swaps *s, uint32_t row, uint32_t b, size_t *begin)
{
    size_t size = s->w->first[b + 1] - s->w->first[b];
    *begin = size > MAX_TRIED ? ((size_t)s->sweep * MAX_TRIED + row * (size_t)37) % size : 0;
    return fh_min(size, MAX_TRIED);
}

/* out[i] = z . member i of the window */
static void dot_members(const fh_work *w, float *out, const float *z, uint32_t b, size_t begin, size_t count)
{
    size_t size = w->first[b + 1] - w->first[b], straight = fh_min(count, size - begin);
    const uint32_t *members = w->members + w->first[b];
    w->dots->many(out, z, w->x, w->ld, members + begin, straight, w->ld);
    w->dots->many(out + straight, z, w->x, w->ld, members, count - straight, w->ld);
}

static void try_euclidean(const struct swaps *s, struct proposal *p, uint32_t a, uint32_t b, float xa, float xb, struct scratch t)
{
    const fh_work *w = s->w;
    const float *x = w->x + p->row * w->ld, *ca = w->centre + a * w->ld, *cb = w->centre + b * w->ld;
    float weight = inverse_size(w, a) + inverse_size(w, b), base = 2 * (xb - xa) + weight * w->square[p->row];
    if (!(base > 0)) return;
    for (size_t j = 0; j < w->ld; j++) t.z[j] = ca[j] - cb[j] - weight * x[j];
    size_t begin, size = w->first[b + 1] - w->first[b], count = window(s, p->row, b, &begin);
    dot_members(w, t.dot, t.z, b, begin, count);
    for (size_t m = 0; m < count; m++) {
        uint32_t u = w->members[w->first[b] + (begin + m) % size];
        float gain = base + (2 * t.dot[m] + weight * w->square[u]);
        if (gain > p->gain) p->gain = gain, p->with = u, p->found = true;
    }
}

static void try_cosine(const struct swaps *s, struct proposal *p, uint32_t a, uint32_t b, float xa, float xb, struct scratch t)
{
    const fh_work *w = s->w;
    const float *x = w->x + p->row * w->ld, *ca = w->centre + a * w->ld, *cb = w->centre + b * w->ld;
    float xx = w->square[p->row], less = xx - 2 * xa, more = xx + 2 * xb;
    if (!(longer_by(w->length[b], more) + longer_by(w->length[a], less) > 0)) return;
    float *za = t.z, *zb = t.z + w->ld, *da = t.dot, *db = t.dot + MAX_TRIED;
    for (size_t j = 0; j < w->ld; j++) za[j] = ca[j] - x[j], zb[j] = cb[j] + x[j];
    size_t begin, size = w->first[b + 1] - w->first[b], count = window(s, p->row, b, &begin);
    dot_members(w, da, za, b, begin, count);
    dot_members(w, db, zb, b, begin, count);
    for (size_t m = 0; m < count; m++) {
        uint32_t u = w->members[w->first[b] + (begin + m) % size];
        float uu = w->square[u];
        float gain = longer_by(w->length[a], less + (uu + 2 * da[m])) + longer_by(w->length[b], more + (uu - 2 * db[m]));
        if (gain > p->gain) p->gain = gain, p->with = u, p->found = true;
    }
}

static void propose(const struct swaps *s, struct proposal *p, uint32_t row, struct scratch t)
{
    const fh_work *w = s->w;
    uint32_t a = w->home[row], b[FH_MAX_CANDIDATES];
    float xb[FH_MAX_CANDIDATES];
    size_t n = 0;
    bool everything = !s->checked[row] || s->changed[a] >= s->checked[row];
    *p = (struct proposal){.row = row};
    for (size_t i = 0; i < s->want; i++) {
        int32_t c = s->list[row * s->want + i];
        if (c < 0) break;
        if ((uint32_t)c == a) continue;
        bool large = w->first[c + 1] - w->first[c] > MAX_TRIED; /* another window every time */
        if (everything || large || s->fresh[row] >> i & 1 || s->changed[c] >= s->checked[row]) b[n++] = (uint32_t)c;
    }
    if (!n) return;
    const float *x = w->x + row * w->ld;
    float xa = w->dots->one(x, w->centre + a * w->ld, w->ld);
    w->dots->many(xb, x, w->centre, w->ld, b, n, w->ld);
    for (size_t i = 0; i < n; i++) {
        if (w->metric == FH_METRIC_COSINE) try_cosine(s, p, a, b[i], xa, xb[i], t);
        else try_euclidean(s, p, a, b[i], xa, xb[i], t);
    }
    if (p->found && !(p->gain > noise_of(w, row, p->with, a, w->home[p->with]))) p->found = false;
}

static void propose_task(void *ctx, size_t task, unsigned worker)
{
    struct swaps *s = ctx;
    struct scratch t = {s->z + (size_t)worker * 2 * s->w->ld, s->dot + (size_t)worker * 2 * MAX_TRIED};
    size_t begin = s->begin + task * ROWS_A_TASK, end = fh_min(begin + ROWS_A_TASK, s->end);
    for (size_t i = begin; i < end; i++) propose(s, &s->batch[i - s->begin], (uint32_t)i, t);
}

/* ---- commits ----------------------------------------------------------------------------------------------------- */

static void swap(struct swaps *s, uint32_t i, uint32_t j)
{
    fh_work *w = s->w;
    uint32_t a = w->home[i], b = w->home[j], at = w->place[i];
    const float *x = w->x + i * w->ld, *u = w->x + j * w->ld;
    float *ca = w->centre + a * w->ld, *cb = w->centre + b * w->ld;
    float na = w->metric == FH_METRIC_COSINE ? 1 : inverse_size(w, a), nb = w->metric == FH_METRIC_COSINE ? 1 : inverse_size(w, b);
    for (size_t d = 0; d < w->ld; d++) {
        float step = u[d] - x[d];
        ca[d] += step * na;
        cb[d] -= step * nb;
    }
    w->length[a] = sqrtf(w->dots->one(ca, ca, w->ld));
    w->length[b] = sqrtf(w->dots->one(cb, cb, w->ld));
    w->place[i] = w->place[j], w->place[j] = at;
    w->members[w->place[i]] = i, w->members[w->place[j]] = j;
    w->home[i] = b, w->home[j] = a;
    s->changed[a] = s->changed[b] = s->now;
}

static uint64_t commit(struct swaps *s)
{
    const fh_work *w = s->w;
    uint64_t swaps = 0;
    for (size_t i = s->begin; i < s->end; i++) {
        const struct proposal *p = &s->batch[i - s->begin];
        s->fresh[i] = 0;
        s->checked[i] = s->now;
        if (!p->found) continue;
        uint32_t a = w->home[p->row], b = w->home[p->with];
        bool stale = s->changed[a] == s->now || s->changed[b] == s->now;
        if (stale && (a == b || !(gain_now(w, p->row, p->with) > noise_of(w, p->row, p->with, a, b)))) {
            s->checked[i] = 0; /* another candidate may have gained too: try them all again */
            continue;
        }
        swap(s, p->row, p->with);
        s->swapped[p->row] = s->swapped[p->with] = true;
        swaps++;
    }
    return swaps;
}

/* ---- rounds ------------------------------------------------------------------------------------------------------ */

/* Every row gets candidates once.  After that the product with all clusters is for rows that swapped in the round before: 99.7, 90 and
 * 77 % of the swaps of rounds 2, 3 and 4 had one of them on a side, and they are 84, 30 and 13 % of the rows (262144 x 640, K 16384; decision
 * 0033). */
static fh_status candidates(struct swaps *s, bool all, fh_err *err)
{
    fh_work *w = s->w;
    /* Nearest by distance, or by angle. */
    bool cosine = w->metric == FH_METRIC_COSINE;
    float *by = fh_malloc(w->k * sizeof *by);
    size_t n = 0;
    if (!by) return fh_fail(err, FH_ENOMEM, "clustering: out of memory");
    for (size_t c = 0; c < w->k; c++) by[c] = cosine ? 1 / fmaxf(w->length[c], 1e-6f) : -w->length[c] * w->length[c] / 2;
    for (size_t i = 0; i < w->n; i++) {
        if (all || s->swapped[i]) s->rows[n] = (uint32_t)i, s->homes[n++] = w->home[i];
        s->swapped[i] = false;
    }
    fh_nearest q = {.x = w->x, .ld = w->ld, .rows = s->rows, .n = n, .c = w->centre, .scale = cosine ? by : NULL, .bias = cosine ? NULL : by,
                    .k = w->k, .want = s->want, .not = s->homes, .int8 = true, .elsewhere = &w->elsewhere, .out = s->found};
    fh_status rc = fh_nearest_run(&q, "candidates", w->job, err);
    fh_free(by);
    if (rc < 0) return rc;
    for (size_t i = 0; i < n; i++) {
        int32_t *mine = s->list + s->rows[i] * s->want, *now = s->found + i * s->want;
        for (size_t c = 0; c < s->want; c++) {
            bool known = false;
            for (size_t o = 0; o < s->want; o++) known |= mine[o] == now[c];
            if (!known) s->fresh[s->rows[i]] |= (uint64_t)1 << c;
        }
        memcpy(mine, now, s->want * sizeof *mine);
    }
    return FH_OK;
}

static uint64_t sweep(struct swaps *s, bool *stopped)
{
    fh_work *w = s->w;
    uint64_t swaps = 0;
    for (size_t i = 0; i < w->n && !(*stopped = fh_job_stopped(w->job)); i += BATCH) {
        fh_job_progress(w->job, "swaps", (double)i, (double)w->n, "tokens");
        s->begin = i, s->end = fh_min(i + BATCH, w->n), s->now++;
        fh_pool_run(fh_job_pool(w->job), (s->end - s->begin + ROWS_A_TASK - 1) / ROWS_A_TASK, propose_task, s);
        swaps += commit(s);
    }
    fh_job_progress(w->job, "swaps", (double)w->n, (double)w->n, "tokens");
    s->sweep++;
    return swaps;
}

static fh_status one_round(struct swaps *s, bool first, unsigned sweeps, fh_round *r, bool *stopped, fh_err *err)
{
    fh_work *w = s->w;
    double begun = fh_now(), before = fh_work_gain(w), tried = 0;
    uint64_t few = (uint64_t)(few_of_sweep * (double)w->n);
    fh_status rc = candidates(s, first, err);
    if (rc == FH_EINTERRUPTED) { *stopped = true; return FH_OK; }
    for (unsigned i = 0; rc == FH_OK && i < sweeps && !*stopped; i++) {
        uint64_t swaps = sweep(s, stopped);
        r->swaps += swaps;
        tried += (double)w->n;
        rc = fh_work_centres(w, err);
        if (swaps <= few) break;
    }
    if (rc == FH_OK) rc = fh_work_objective(&r->objective, w, err);
    r->gain = before > 0 ? (fh_work_gain(w) - before) / before : 0;
    r->seconds = fh_now() - begun;
    r->tokens_per_second = r->seconds > 0 ? tried / r->seconds : 0;
    return rc;
}

fh_status fh_refine(fh_work *w, const fh_cluster_params *p, double began, fh_refined *out, fh_err *err)
{
    unsigned rounds = p->rounds ? p->rounds : DEFAULT_ROUNDS, sweeps = p->sweeps ? p->sweeps : DEFAULT_SWEEPS;
    size_t workers = fh_pool_threads(fh_job_pool(w->job)), want = fh_min(p->candidates ? p->candidates : DEFAULT_CANDIDATES, w->k - 1);
    fh_status rc = FH_OK;
    *out = (fh_refined){0};
    struct swaps *s = fh_calloc(1, sizeof *s);
    if (!s) return fh_fail(err, FH_ENOMEM, "clustering: out of memory");
    s->w = w, s->want = want;
    s->list = fh_malloc(w->n * want * sizeof *s->list);
    s->found = fh_malloc(w->n * want * sizeof *s->found);
    s->rows = fh_malloc(w->n * sizeof *s->rows);
    s->homes = fh_malloc(w->n * sizeof *s->homes);
    s->swapped = fh_calloc(w->n, sizeof *s->swapped);
    s->fresh = fh_calloc(w->n, sizeof *s->fresh);
    s->checked = fh_calloc(w->n, sizeof *s->checked);
    s->changed = fh_calloc(w->k, sizeof *s->changed);
    s->z = fh_aligned(workers * 2 * w->ld * sizeof *s->z);
    s->dot = fh_aligned(workers * 2 * MAX_TRIED * sizeof *s->dot);
    if (!s->list || !s->found || !s->rows || !s->homes || !s->swapped || !s->fresh || !s->checked || !s->changed || !s->z || !s->dot) {
        rc = fh_fail(err, FH_ENOMEM, "clustering: out of memory for the candidates of %zu tokens", w->n);
        goto out;
    }
    for (size_t i = 0; i < w->n * want; i++) s->list[i] = FH_NO_CLUSTER;
    if ((rc = fh_work_centres(w, err)) < 0) goto out;
    for (unsigned i = 0; i < rounds && !out->stopped; i++) {
        fh_round r = {.round = i + 1};
        rc = one_round(s, i == 0, sweeps, &r, &out->stopped, err);
        out->swaps += r.swaps;
        if (rc < 0) goto out;
        if (out->stopped) break;
        out->rounds++;
        if (p->on_round) p->on_round(p->ctx, &r);
        if ((double)r.swaps <= few_of_round * (double)w->n) break;
        if (i + 1 < rounds && p->budget > 0 && fh_now() - began >= p->budget) {
            out->spent = true;
            break;
        }
    }
out:
    fh_free(s->list);
    fh_free(s->found);
    fh_free(s->rows);
    fh_free(s->homes);
    fh_free(s->swapped);
    fh_free(s->fresh);
    fh_free(s->checked);
    fh_free(s->changed);
    fh_free(s->z);
    fh_free(s->dot);
    fh_free(s);
    return rc;
}
