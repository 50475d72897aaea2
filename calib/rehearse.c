/* Calibrating again and again on documents drawn at random, and looking at all the others: does a promise hold as often as it says?
 *
 * What the head's best tokens and their clusters' ranks are does not depend on the draw: they are found once.  The rest, from dealing the drawn
 * documents to parts to the choice of P, is what calibrate does, by the same functions.
 */
#include "calib/promise.h"

#include <math.h>
#include <string.h>

typedef struct rehearsal {
    const fh_states *s;
    const fh_rehearse_params *p;
    const fh_head *head;
    const uint32_t *ids, *ranks, *steps; /* [n, k] of s; steps NULL: probing is fixed */
    fh_ladder ladder;                 /* of thresholds, for s as a whole: which are looked at is not what is tested */
    const fh_view *other;             /* another text; NULL: what was not drawn */
    const size_t *sizes; uint32_t documents; /* positions of each document of s */
    size_t k;                         /* the largest */
    double dense_bytes;
    fh_rehearsed *out;                /* [draws, cells] */
} rehearsal;

static double bytes_of(void *ctx, double probes, size_t hot) { return fh_head_step_bytes(ctx, probes, hot); }

static fh_status view_of(fh_view *v, const rehearsal *r, const uint8_t *part, uint8_t which, fh_err *err)
{
    fh_status rc = fh_view_of(v, r->s, part, which, r->k, err);
    if (rc == FH_OK && r->steps) rc = fh_view_adapt(v, err);
    for (size_t i = 0; rc == FH_OK && i < v->n; i++) {
        memcpy(v->ids + i * r->k, r->ids + v->positions[i] * r->k, r->k * sizeof *v->ids);
        memcpy(v->ranks + i * r->k, r->ranks + v->positions[i] * r->k, r->k * sizeof *v->ranks);
        if (r->steps) memcpy(v->steps + i * r->k, r->steps + v->positions[i] * r->k, r->k * sizeof *v->steps);
    }
    return rc;
}

/* v may be looked at by other draws too: its rungs are not of this ladder. */
static double contained(const fh_view *v, uint32_t k, const uint8_t *fixed, const fh_ladder *l, uint32_t rung)
{
    size_t kept = 0;
    for (size_t i = 0; i < v->n; i++) {
        bool in = true;
        for (size_t at = i * v->k, j = 0; j < k; j++, at++)
            in = in && (v->ids[at] == FH_NO_TOKEN || fixed[v->ids[at]] || (v->steps ? v->steps[at] < rung && v->ranks[at] < l->most : v->ranks[at] < rung));
        kept += in;
    }
    return v->n ? (double)kept / (double)v->n : NAN;
}

/* The settings of the head with so many hot tokens, for both views. */
static fh_ladder climb(const rehearsal *r, size_t hot, fh_view *a, fh_view *b)
{
    fh_ladder l = r->ladder;
    l.most = fh_most_probes(r->head, hot, r->p->max_cost * r->dense_bytes);
    if (!r->steps) l.n = l.most;
    fh_view_climb(a, l.n, l.most);
    fh_view_climb(b, l.n, l.most);
    return l;
}

/* One target on one draw of `drawn` positions. */
static fh_status one(fh_rehearsed *out, const rehearsal *r, fh_view *a, fh_view *b, const fh_view *rest, size_t drawn, uint8_t *fixed, uint32_t k,
                     double target, fh_err *err)
{
    const fh_rehearse_params *p = r->p;
    fh_setting s = {0};
    fh_ladder l = climb(r, 0, a, b);
    fh_fit_params f = {.vocab = fh_head_get_parts(r->head)->vocab, .ladder = &l, .always = fixed, .k = k,
                       .target = target, .confidence = p->confidence, .tested = b->n, .fresh = drawn, .hot = p->hot, .cost = {bytes_of, (void *)(uintptr_t)r->head}};
    fh_mark(fixed, r->head, NULL);
    fh_status rc = fh_fit(&s, a, &f, err);
    if (rc < 0) return rc;
    fh_mark(fixed, r->head, &s);
    l = climb(r, s.n_hot, a, b);
    uint32_t most = l.n;
    fh_tally *tb = fh_calloc((size_t)most + 1, sizeof *tb), *ta = fh_calloc((size_t)most + 1, sizeof *ta);
    if (!tb || !ta) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    if ((rc = fh_view_tallies(tb, most, b, k, fixed, err)) < 0 || (rc = fh_view_tallies(ta, most, a, k, fixed, err)) < 0) goto out;
    ptrdiff_t at = fh_decide(&out->bound, &(fh_trial){target, tb, ta}, 1, most, (double)drawn, p->confidence);
    out->promised = at >= 0, out->n_hot = s.n_hot, out->found = NAN;
    out->too_little = at < 0 && out->bound.effective < (double)fh_share_needed(target, p->confidence);
    if (at < 0) goto out;
    uint32_t rung = most - (uint32_t)at;
    out->probes = fh_ladder_most(&l, rung), out->threshold = fh_ladder_threshold(&l, rung), out->mean_probes = fh_ladder_probes(&l, rung);
    out->found = contained(rest, k, fixed, &l, rung);
out:
    fh_free(s.hot);
    fh_free(tb);
    fh_free(ta);
    return rc;
}

/* Number `number` of all draws of all sizes. */
static fh_status draw(rehearsal *r, size_t number, fh_err *err)
{
    const fh_rehearse_params *p = r->p;
    size_t tokens = p->tokens[number / p->draws] ? p->tokens[number / p->draws] : r->s->n / 2;
    fh_view v[FH_PARTS + 1] = {{0}};
    uint32_t *order = fh_malloc(fh_max(r->documents, 1) * sizeof *order);
    size_t *sizes = fh_calloc(fh_max(r->documents, 1), sizeof *sizes), drawn = 0, cell = 0; /* 0: not drawn */
    uint8_t *part = fh_malloc(fh_max(r->documents, 1)), *fixed = fh_malloc(fh_head_get_parts(r->head)->vocab);
    fh_rng rng;
    fh_status rc = order && sizes && part && fixed ? FH_OK : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc < 0) goto out;
    fh_rng_seed(&rng, p->seed, number);
    for (uint32_t i = 0; i < r->documents; i++) order[i] = i;
    fh_rng_shuffle(&rng, order, r->documents);
    for (uint32_t i = 0; i < r->documents && drawn < tokens; i++) sizes[order[i]] = r->sizes[order[i]], drawn += sizes[order[i]];
    if ((rc = fh_deal(part, sizes, r->documents, fh_rng_u64(&rng), err)) < 0) goto out;
    for (uint32_t i = 0; i < r->documents; i++) if (!sizes[i]) part[i] = FH_PARTS;
    for (int i = 0; i <= FH_PARTS; i++)
        if (i != FH_PART_C && !(i == FH_PARTS && r->other) && (rc = view_of(&v[i], r, part, (uint8_t)i, err)) < 0) goto out;
    for (size_t i = 0; i < p->n_ks; i++)
        for (size_t j = 0; j < p->n_targets; j++, cell++)
            if ((rc = one(&r->out[number * p->n_ks * p->n_targets + cell], r, &v[FH_PART_A], &v[FH_PART_B], r->other ? r->other : &v[FH_PARTS], drawn, fixed,
                          p->ks[i], p->targets[j], err)) < 0) goto out;
out:
    for (int i = 0; i <= FH_PARTS; i++) fh_view_free(&v[i]);
    fh_free(order);
    fh_free(sizes);
    fh_free(part);
    fh_free(fixed);
    return rc;
}

enum { AT_ONCE = 8 }; /* draws between two looks at whether to stop */
typedef struct draws { rehearsal *r; size_t first; fh_status rc[AT_ONCE]; fh_err err[AT_ONCE]; } draws;
static void draw_task(void *ctx, size_t i, unsigned worker)
{
    draws *d = ctx;
    d->rc[i] = draw(d->r, d->first + i, &d->err[i]);
    (void)worker;
}

static fh_status all_draws(rehearsal *r, const fh_job *job, fh_err *err)
{
    draws d = {.r = r};
    for (size_t all = r->p->draws * r->p->n_tokens; d.first < all; d.first += AT_ONCE) {
        size_t n = fh_min(AT_ONCE, all - d.first);
        if (fh_job_stopped(job)) return fh_fail(err, FH_EINTERRUPTED, "interrupted");
        fh_pool_run(fh_job_pool(job), n, draw_task, &d);
        for (size_t i = 0; i < n; i++)
            if (d.rc[i] < 0) return fh_fail(err, d.rc[i], "%s", d.err[i].text);
        fh_job_progress(job, "rehearsing", (double)(d.first + n), (double)all, "draws");
    }
    return FH_OK;
}

/* What containment asks of all positions of a text. */
static fh_status look(fh_view *v, const fh_states *s, const fh_dense *dense, const fh_head *head, const fh_ladder *ladder, size_t k, const fh_job *job,
                      fh_err *err)
{
    fh_status rc = fh_view_new(v, s->n, k, err);
    if (rc == FH_OK && ladder->threshold) rc = fh_view_adapt(v, err);
    for (size_t i = 0; rc == FH_OK && i < s->n; i++) v->positions[i] = i, v->document[i] = s->document[i];
    if (rc == FH_OK) rc = fh_dense_best(dense, s->hidden, NULL, s->n, k, v->ids, job, err);
    if (rc == FH_OK) rc = fh_cluster_ranks(head, dense->device, ladder, s->hidden, NULL, s->n, k, v->ids, v->ranks, v->steps, job, err);
    return rc;
}

static fh_status ladder_of(rehearsal *r, const fh_states *s, const fh_dots_device *device, const fh_job *job, fh_err *err)
{
    size_t *all = fh_malloc(fh_max(s->n, 1) * sizeof *all);
    if (!all) return fh_fail(err, FH_ENOMEM, "out of memory for %zu positions", s->n);
    for (size_t i = 0; i < s->n; i++) all[i] = i;
    fh_status rc = fh_ladder_new(&r->ladder, r->head, device, fh_most_probes(r->head, 0, r->p->max_cost * r->dense_bytes), s->hidden, all, s->n, job, err);
    fh_free(all);
    return rc;
}

fh_status fh_rehearse(fh_rehearsed *out, const fh_states *states, const fh_states *against, const fh_dense *dense, const fh_head *head,
                      const fh_rehearse_params *p,
                      const fh_job *job, fh_err *err)
{
    fh_status rc;
    fh_view all = {0}, other = {0};
    rehearsal r = {.s = states, .p = p, .head = head, .documents = fh_states_documents(states), .out = out};
    size_t *sizes = fh_calloc(fh_max(r.documents, 1), sizeof *sizes);
    if (!sizes) return fh_fail(err, FH_ENOMEM, "out of memory");
    for (size_t i = 0; i < states->n; i++) sizes[states->document[i]]++;
    for (size_t i = 0; i < p->n_ks; i++) r.k = fh_max(r.k, p->ks[i]);
    r.sizes = sizes, r.dense_bytes = (double)dense->vocab * (double)dense->rows.cols * (double)fh_dtype_size(dense->rows.dtype);
    for (size_t i = 0; i < p->n_tokens && !against; i++)
        if (p->tokens[i] >= states->n) { rc = fh_fail(err, FH_EUSAGE, "draws of %zu positions leave nothing of %zu to look at: draw fewer, or name more text",
                                                      p->tokens[i], states->n); goto out; }
    if (p->adaptive && (rc = ladder_of(&r, states, dense->device, job, err)) < 0) goto out;
    if ((rc = look(&all, states, dense, head, &r.ladder, r.k, job, err)) < 0 ||
        (against && (rc = look(&other, against, dense, head, &r.ladder, r.k, job, err)) < 0)) goto out;
    r.ids = all.ids, r.ranks = all.ranks, r.steps = all.steps, r.other = against ? &other : NULL;
    rc = all_draws(&r, job, err);
out:
    fh_view_free(&all);
    fh_view_free(&other);
    fh_ladder_free(&r.ladder);
    fh_free(sizes);
    return rc;
}
