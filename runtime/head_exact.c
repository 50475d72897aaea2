/* head_exact.c: a draw from the softmax of all live tokens that reads few of their exact rows.
 *
 * Adding independent Gumbel noise g to logits / T and taking the best is a draw from softmax(logits / T).  Noise is drawn from the top
 * down: a cluster of n live tokens gets its largest noise (Gumbel around log n), and only a cluster that may hold the winner gets its
 * members' (the largest at one of them, the others cut off at it).  A logit is bounded from above by its encoded row:
 *
 *     w . h <= w' . h' + |w - w'| |h| + |w'| |h - h'| + rounding
 *
 * with w' the encoded row and h' the state as the kernels read it.  Clusters are looked into best bound first, rows are read exactly
 * best bound first, and what cannot pass the best found is never read.  docs/measurements/exact-sampling.md compares this bound with
 * others: on the demo model balls around the clusters' means rule out 5 % of the rows, prefixes of rotated rows half, 8-bit rows all
 * but one or two.
 */
#include "runtime/head.h"

#include <float.h>
#include <math.h>

enum {
    RUN = 64,    /* rows scored together */
    DENSE = 8    /* a draw that has read a DENSEth of all rows one by one reads all of them in a row */
};

struct fh_bounds {
    const fh_head *head;
    float *error; /* [K * cap] at least |w - w'|; NULL: the rows that are scored are the exact ones, so nothing is cheaper */
    float *norm;  /* [K * cap] at least |w| and |w'| */
};

/* ---- bounds ----------------------------------------------------------------------------------------------------- */

/* A float not below x; infinite where x is not a number (rows of a damaged file may hold anything). */
static float at_least(double x) { return x <= (double)FLT_MAX / 2 ? nextafterf((float)(x * (1 + 0x1p-40)), INFINITY) : INFINITY; }

typedef struct bound_job { fh_bounds *b; float *room; size_t step; } bound_job;

static void bound_task(void *ctx, size_t task, unsigned worker)
{
    const bound_job *j = ctx;
    const fh_head *head = j->b->head;
    const fh_head_parts *p = &head->parts;
    size_t d = p->hidden, end = fh_min((task + 1) * j->step, (size_t)p->clusters * p->cap);
    float *exact = j->room + 2 * worker * d, *encoded = exact + d;
    for (size_t slot = task * j->step; slot < end; slot++) {
        double error = 0, own = 0, other = 0;
        const uint8_t *scales = p->token_scales;
        fh_to_f32(exact, head->exact.dtype, fh_row(&head->exact, slot), d);
        fh_dec_row(p->tokens.dtype, fh_row(&p->tokens, slot), scales ? scales + slot * fh_scale_bytes(p->tokens.dtype, d) : NULL, d, encoded);
        for (size_t i = 0; i < d; i++) {
            double w = (double)exact[i], v = (double)encoded[i];
            error += (w - v) * (w - v), own += w * w, other += v * v;
        }
        /* An encoded value is the float nearest to integer times scale, the kernels take the product itself. */
        j->b->norm[slot] = at_least(sqrt(own > other ? own : other));
        j->b->error[slot] = at_least(sqrt(error) + sqrt(other) * 0x1p-23);
        if (!(own == own && other == other)) j->b->norm[slot] = j->b->error[slot] = INFINITY;
    }
}

fh_status fh_bounds_new(fh_bounds **out, const fh_head *head, fh_scratch *scratch, fh_err *err)
{
    fh_status rc;
    if ((rc = fh_scratch_check(head, scratch, err)) < 0 || (rc = fh_head_need_exact(head, err)) < 0) return rc;
    size_t slots = (size_t)head->parts.clusters * head->parts.cap, room;
    float *work = NULL;
    fh_bounds *b = fh_calloc(1, sizeof *b);
    if (!b) goto no_memory;
    b->head = head;
    if (head->exact.data != head->parts.tokens.data) {
        if (!fh_mul(2 * (size_t)scratch->threads * sizeof *work, head->parts.hidden, &room)) goto no_memory;
        work = fh_malloc(room);
        b->error = fh_malloc(slots * sizeof *b->error);
        b->norm = fh_malloc(slots * sizeof *b->norm);
        if (!work || !b->error || !b->norm) goto no_memory;
        bound_job j = {b, work, fh_max(RUN, FH_TASK_BYTES / head->exact.stride)};
        fh_pool_run(fh_pool_for(scratch->pool, slots * head->exact.stride), (slots + j.step - 1) / j.step, bound_task, &j);
    }
    *out = b, b = NULL;
    goto out;
no_memory:
    rc = fh_fail(err, FH_ENOMEM, "bounds of %zu rows: out of memory", slots);
out:
    fh_bounds_free(b);
    fh_free(work);
    return rc;
}

void fh_bounds_free(fh_bounds *b)
{
    if (!b) return;
    fh_free(b->error);
    fh_free(b->norm);
    fh_free(b);
}

/* ---- noise -------------------------------------------------------------------------------------------------------- */

static double log_uniform(fh_rng *r) { return log(((double)(fh_rng_u64(r) >> 12) + 0.5) * 0x1p-52); }

/* The largest noise of n >= 1 tokens, and which of them has it. */
static double noise_top(fh_rng *r, uint64_t noise, uint32_t cluster, size_t n, size_t *which)
{
    fh_rng_seed(r, noise, cluster);
    double top = log((double)n) - log(-log_uniform(r));
    *which = (size_t)fh_rng_below(r, n);
    return top;
}

/* The noise of another one; never above the largest, by rounding either. */
static double noise_below(fh_rng *r, double top)
{
    double g = -log(exp(-top) - log_uniform(r));
    return g < top ? g : top;
}

/* ---- a draw --------------------------------------------------------------------------------------------------------- */

typedef struct drawing {
    const fh_head *head;
    const fh_bounds *bounds;
    const fh_state *state;
    const fh_penalty *penalty;
    uint64_t noise;
    double temperature, norm, off; /* |h|; |h - h'| and rounding, times the row's norm */
    double *best;                  /* [K] of each cluster: its bound; in a dense draw its best token */
    uint32_t *ids;                 /* [K] dense: which token that is */
    float *upper;                  /* [K * cap] bounds of the logits; dense: the logits */
    size_t step;                   /* clusters a task takes */
} drawing;

static bool lives(const fh_head *head, uint32_t id) { return id != FH_NO_TOKEN && !head->dead_map[id]; }

static size_t count_live(const fh_head *head, uint32_t cluster)
{
    size_t n = 0, cap = head->parts.cap;
    for (size_t i = 0; i < cap; i++) n += lives(head, head->parts.permutation[cluster * cap + i]);
    return n;
}

/* The largest logit that the exact row can have where the encoded one has this dot product. */
static float upper_logit(const drawing *d, size_t slot, uint32_t id, float dot)
{
    const fh_head_parts *p = &d->head->parts;
    double x = (double)dot + (double)d->bounds->error[slot] * d->norm + (double)d->bounds->norm[slot] * d->off;
    if (p->bias) x += (double)p->bias[id] + (fabs(x) + fabs((double)p->bias[id])) * 0x1p-22;
    if (p->softcap > 0) x = (double)p->softcap * (tanh(x / (double)p->softcap) + 0x1p-20);
    if (!(x <= (double)FLT_MAX / 2)) return INFINITY;
    return fh_penalize(d->penalty, id, nextafterf((float)x, INFINITY));
}

static void upper_task(void *ctx, size_t task, unsigned worker)
{
    const drawing *d = ctx;
    const fh_head_parts *p = &d->head->parts;
    size_t cap = p->cap, first = task * d->step, end = fh_min(first + d->step, p->clusters);
    for (size_t at = first * cap, n; at < end * cap; at += n) {
        n = fh_min(RUN, end * cap - at);
        fh_dots(d->head->kernels, &p->tokens, p->token_scales, NULL, at, n, &d->state, 1, d->upper + at, 0);
    }
    for (size_t c = first; c < end; c++) {
        float most = -INFINITY;
        size_t n = 0, which;
        for (size_t slot = c * cap; slot < (c + 1) * cap; slot++) {
            uint32_t id = p->permutation[slot];
            if (!lives(d->head, id)) continue;
            float x = d->upper[slot] = upper_logit(d, slot, id, d->upper[slot]);
            if (n++ == 0 || x > most) most = x;
        }
        fh_rng rng;
        d->best[c] = n ? (double)most / d->temperature + noise_top(&rng, d->noise, (uint32_t)c, n, &which) : -INFINITY;
    }
}

static float exact_logit(const drawing *d, size_t slot)
{
    uint32_t at = (uint32_t)slot, id = d->head->parts.permutation[slot];
    float dot;
    fh_dots(d->head->kernels, &d->head->exact, NULL, &at, 0, 1, &d->state, 1, &dot, 0);
    return fh_penalize(d->penalty, id, fh_head_logit(&d->head->parts, id, dot));
}

/* The better of two perturbed logits; equal ones by the smaller id.  Minus infinity never wins. */
static bool wins(double value, uint32_t id, double best, uint32_t best_id) { return value > best || (value == best && value > -INFINITY && id < best_id); }

/* Look into a cluster: noise of its members, exact rows of those whose bound still passes the best.  upper [slots of the cluster] is
 * overwritten with what has been dealt with. */
static void visit(const drawing *d, uint32_t c, double *room, fh_draw *out, double *best)
{
    const fh_head_parts *p = &d->head->parts;
    size_t cap = p->cap, which, i = 0, base = c * cap;
    fh_rng rng;
    double top = noise_top(&rng, d->noise, c, count_live(d->head, c), &which);
    for (size_t m = 0; m < cap; m++) {
        if (!lives(d->head, p->permutation[base + m])) {
            room[m] = -INFINITY;
            continue;
        }
        room[m] = i++ == which ? top : noise_below(&rng, top);
    }
    out->clusters++;
    for (;;) {
        size_t next = cap;
        double most = -INFINITY;
        for (size_t m = 0; m < cap; m++) {
            double bound = room[m] > -INFINITY ? (double)d->upper[base + m] / d->temperature + room[m] : -INFINITY;
            if (bound > most) most = bound, next = m;
        }
        if (next == cap || most < *best) return;
        double value = (double)exact_logit(d, base + next) / d->temperature + room[next];
        uint32_t id = p->permutation[base + next];
        if (wins(value, id, *best, out->id)) *best = value, out->id = id;
        room[next] = -INFINITY;
        out->rows++;
    }
}

/* Every exact row, every noise: what the draw is by definition. */
static void dense_task(void *ctx, size_t task, unsigned worker)
{
    const drawing *d = ctx;
    const fh_head_parts *p = &d->head->parts;
    size_t cap = p->cap, first = task * d->step, end = fh_min(first + d->step, p->clusters);
    for (size_t at = first * cap, n; at < end * cap; at += n) {
        n = fh_min(RUN, end * cap - at);
        fh_dots(d->head->kernels, &d->head->exact, NULL, NULL, at, n, &d->state, 1, d->upper + at, 0);
    }
    for (size_t c = first; c < end; c++) {
        size_t n = count_live(d->head, (uint32_t)c), which, i = 0;
        fh_rng rng;
        d->best[c] = -INFINITY, d->ids[c] = UINT32_MAX;
        double top = n ? noise_top(&rng, d->noise, (uint32_t)c, n, &which) : 0;
        for (size_t slot = c * cap; n && slot < (c + 1) * cap; slot++) {
            uint32_t id = p->permutation[slot];
            if (!lives(d->head, id)) continue;
            double g = i++ == which ? top : noise_below(&rng, top);
            double value = (double)fh_penalize(d->penalty, id, fh_head_logit(p, id, d->upper[slot])) / d->temperature + g;
            if (wins(value, id, d->best[c], d->ids[c])) d->best[c] = value, d->ids[c] = id;
        }
    }
}

static void draw_dense(const drawing *d, fh_pool *pool, fh_draw *out)
{
    const fh_head_parts *p = &d->head->parts;
    size_t slots = (size_t)p->clusters * p->cap;
    double best = -INFINITY;
    fh_pool_run(fh_pool_for(pool, slots * d->head->exact.stride), (p->clusters + d->step - 1) / d->step, dense_task, (void *)d);
    *out = (fh_draw){.id = UINT32_MAX, .clusters = p->clusters, .rows = slots, .dense = true};
    for (uint32_t c = 0; c < p->clusters; c++)
        if (wins(d->best[c], d->ids[c], best, out->id)) best = d->best[c], out->id = d->ids[c];
}

static void draw_bounded(const drawing *d, fh_pool *pool, double *room, fh_draw *out)
{
    const fh_head_parts *p = &d->head->parts;
    size_t slots = (size_t)p->clusters * p->cap;
    double best = -INFINITY;
    fh_pool_run(fh_pool_for(pool, slots * p->tokens.stride), (p->clusters + d->step - 1) / d->step, upper_task, (void *)d);
    while (out->rows <= slots / DENSE) {
        uint32_t next = 0;
        for (uint32_t c = 1; c < p->clusters; c++)
            if (d->best[c] > d->best[next]) next = c;
        if (!(d->best[next] > -INFINITY) || d->best[next] < best) return;
        visit(d, next, room, out, &best);
        d->best[next] = -INFINITY;
    }
    draw_dense(d, pool, out);
}

fh_status fh_head_draw(const fh_head *head, fh_scratch *scratch, const fh_bounds *bounds, const float *state, float temperature,
                       const fh_penalty *penalty, uint64_t noise, fh_draw *out, fh_err *err)
{
    const fh_head_parts *p = &head->parts;
    size_t k = p->clusters, slots = k * p->cap, bytes;
    fh_state s;
    fh_status rc;
    void *memory = scratch->draw;
    if ((rc = fh_scratch_check(head, scratch, err)) < 0) return rc;
    if (bounds->head != head) return fh_fail(err, FH_EUSAGE, "the bounds were made for another head");
    if (!(temperature > 0) || !isfinite(temperature)) return fh_fail(err, FH_EUSAGE, "temperature %g: an exact draw needs one above 0", (double)temperature);
    if ((rc = fh_penalty_check(penalty, err)) < 0) return rc;
    if ((rc = fh_head_states(head, &s, state, 0, 1, scratch->quantized, err)) < 0) return rc;
    if (!fh_mul(slots, sizeof(float), &bytes) || !fh_add(bytes, (k + p->cap) * sizeof(double) + k * sizeof(uint32_t), &bytes))
        return fh_fail(err, FH_EUSAGE, "an exact draw among %zu rows: out of range", slots);
    if ((rc = fh_scratch_grow(&memory, &scratch->draw_bytes, bytes, err)) < 0) return rc;
    scratch->draw = memory;

    drawing d = {.head = head, .bounds = bounds, .state = &s, .penalty = penalty, .noise = noise, .temperature = (double)temperature,
                 .best = memory};
    double *room = d.best + k, squares = 0, moved = 0;
    d.upper = (float *)(room + p->cap);
    d.ids = (uint32_t *)(d.upper + slots);
    d.step = fh_max(1, FH_TASK_BYTES / p->tokens.stride / p->cap);
    for (size_t i = 0; i < p->hidden; i++) {
        double x = (double)state[i], off = fh_dtype_is_integer(p->tokens.dtype) ? x - (double)s.q[i] * s.scale : 0;
        squares += x * x, moved += off * off;
    }
    d.norm = sqrt(squares) * (1 + 0x1p-40);
    /* A sum of D products in 16 lanes of float32, of the exact row and of an encoded one, and the rounding of the results. */
    d.off = sqrt(moved) * (1 + 0x1p-40) + 2 * ((double)p->hidden / 16 + 8) * 0x1p-24 * d.norm;
    *out = (fh_draw){.id = UINT32_MAX};
    if (bounds->error) draw_bounded(&d, scratch->pool, room, out);
    else draw_dense(&d, scratch->pool, out);
    return out->id == UINT32_MAX ? fh_fail(err, FH_EUSAGE, "nothing to draw from: no live token has a logit above -infinity") : FH_OK;
}
