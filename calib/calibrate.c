/* calibrate: the cheapest setting that keeps the targets, with its certainty (DESIGN 7).
 *
 * A fits: which head, which tokens are always scored, and so the order of settings by cost (fit.c).  B decides: P is lowered from the most
 * generous setting until the lower bound of something that was asked for misses its target (decide.c).  C is only reported.
 */
#include "calib/promise.h"

#include <math.h>
#include <string.h>

enum { MOST_SAMPLED = 4096 }; /* positions of A on which agreement and mass are looked at beforehand */

/* ---- cost ----------------------------------------------------------------------------------------------------- */

typedef struct price { const fh_head *head; fh_step_times times; } price;

static double bytes_of(void *ctx, double probes, size_t hot) { return fh_head_step_bytes(((price *)ctx)->head, probes, hot); }

/* Straight lines between what was measured. */
static double seconds_of(void *ctx, double probes, size_t hot)
{
    const fh_step_times *t = &((price *)ctx)->times;
    size_t i = 1;
    while (i + 1 < t->n && t->probes[i] < probes) i++;
    double share = (probes - t->probes[i - 1]) / (double)(t->probes[i] - t->probes[i - 1]);
    return t->seconds[i - 1] + share * (t->seconds[i] - t->seconds[i - 1]) + (double)hot * t->hot;
}

static fh_status price_of(fh_cost *cost, price *p, const fh_choices *choices, bool by_time, const fh_head *head, fh_err *err)
{
    *p = (price){.head = head};
    *cost = (fh_cost){bytes_of, p};
    if (!choices->time) return FH_OK;
    fh_status rc = choices->time(choices->ctx, head, &p->times, err);
    if (rc < 0 || p->times.n < 2) return rc;
    /* a larger P is never cheaper: what says so is noise */
    for (size_t i = 1; i < p->times.n; i++) p->times.seconds[i] = fmax(p->times.seconds[i], p->times.seconds[i - 1]);
    if (by_time) cost->of = seconds_of;
    return FH_OK;
}

/* ---- what is measured through the head -------------------------------------------------------------------------- */

/* Agreement and mass, summed by document at each P of a rising sequence. */
typedef struct losses {
    const fh_view *v;
    fh_tally *agreed, *covered;   /* [n_points] */
    double *sum;                  /* [n_points, 2] of the document under way */
    size_t n_points;
} losses;

static void end_document(losses *l, double positions)
{
    for (size_t q = 0; q < l->n_points; q++) {
        fh_tally_add(&l->agreed[q], positions, l->sum[2 * q]);
        fh_tally_add(&l->covered[q], positions, l->sum[2 * q + 1]);
        l->sum[2 * q] = l->sum[2 * q + 1] = 0;
    }
}

static void add_losses(void *ctx, size_t i, const double *values)
{
    losses *l = ctx;
    const uint32_t *document = l->v->document;
    for (size_t q = 0; q < l->n_points; q++) {
        l->sum[2 * q] += 1 - values[q * FH_MEASURES + FH_AGREES];
        l->sum[2 * q + 1] += 1 - values[q * FH_MEASURES + FH_COVERS];
    }
    if (i + 1 < l->v->n && document[i + 1] == document[i]) return;
    size_t first = i;
    while (first && document[first - 1] == document[i]) first--;
    end_document(l, (double)(i + 1 - first));
}

/* A head with this hot list; the list is borrowed. */
static fh_status with_list(fh_head **out, const fh_head *head, const fh_setting *s, fh_err *err)
{
    fh_head_parts p = *fh_head_get_parts(head);
    p.hot = s->hot, p.n_hot = s->n_hot;
    return fh_head_from_parts(out, &p, "calibration", err);
}

static fh_status measure_losses(losses *l, const fh_point *points, const fh_view *v, const fh_head *head, const fh_setting *s, const fh_states *states,
                                const fh_dense *dense, const fh_job *job,
                                fh_err *err)
{
    fh_head *whole = NULL;
    fh_status rc = with_list(&whole, head, s, err);
    l->v = v;
    l->agreed = fh_calloc(l->n_points + 1, sizeof *l->agreed), l->covered = fh_calloc(l->n_points + 1, sizeof *l->covered);
    l->sum = fh_calloc(2 * l->n_points + 1, sizeof *l->sum);
    if (rc == FH_OK && (!l->agreed || !l->covered || !l->sum)) rc = fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc == FH_OK) rc = fh_curve_each(whole, dense, states->hidden, v->positions, v->n, false, points, l->n_points, add_losses, l, job, err);
    fh_head_close(whole);
    return rc;
}

static void losses_free(losses *l) { fh_free(l->agreed); fh_free(l->covered); fh_free(l->sum); *l = (losses){0}; }

enum { GRID = 256 };
/* Some of a ladder's settings, up to the last; rungs [GRID]: which these are. */
static size_t grid(fh_point *points, uint32_t *rungs, const fh_ladder *l)
{
    size_t n = 0;
    for (uint32_t r = 1; r <= l->n; r++) {
        bool near = n && (l->threshold ? l->mean[r - 1] < 1.08 * l->mean[rungs[n - 1] - 1] : r < fh_next_probes(rungs[n - 1]));
        if (near && r < l->n) continue;
        points[n] = (fh_point){.probes = fh_ladder_most(l, r), .threshold = fh_ladder_threshold(l, r)}, rungs[n++] = r;
    }
    return n;
}

/* ---- part A ---------------------------------------------------------------------------------------------------- */

typedef struct work {
    const fh_states *s;
    const fh_dense *dense;
    const fh_choices *choices;
    const fh_calibrate_params *p;
    const fh_job *job;
    fh_view part[FH_PARTS];
    uint8_t *fixed;               /* [V] candidates whatever the probes are */
    double dense_bytes;
    const void *ranked;           /* the centroids by which A was ranked */
    fh_ladder ladder;             /* of the head under way */
} work;

/* The ladder of a head that may probe so many clusters. */
static fh_status climb(work *w, const fh_head *head, uint32_t most, fh_err *err)
{
    const fh_view *a = &w->part[FH_PART_A];
    fh_ladder_free(&w->ladder);
    if (w->p->adaptive) return fh_ladder_new(&w->ladder, head, w->dense->device, most, w->s->hidden, a->positions, a->n, w->job, err);
    w->ladder = (fh_ladder){.n = most, .most = most};
    return FH_OK;
}

static fh_status rank(work *w, const fh_head *head, int part, fh_err *err)
{
    fh_view *v = &w->part[part];
    fh_status rc = fh_cluster_ranks(head, w->dense->device, &w->ladder, w->s->hidden, v->positions, v->n, v->k, v->ids, v->ranks, v->steps, w->job, err);
    if (rc == FH_OK) fh_view_climb(v, w->ladder.n, w->ladder.most);
    return rc;
}

/* The least setting at which a sample of A keeps agreement and mass; 0: none does. */
static fh_status look(uint32_t *rung, const work *w, const fh_head *head, const fh_setting *s, fh_err *err)
{
    const fh_view *a = &w->part[FH_PART_A];
    const double *targets = w->p->targets;
    fh_view sample = {0};
    fh_point points[GRID];
    uint32_t rungs[GRID];
    losses l = {.n_points = grid(points, rungs, &w->ladder)};
    size_t n = fh_min(a->n, MOST_SAMPLED);
    double aim[2] = {fh_aim(targets[FH_AGREED], s->effective, w->p->confidence), fh_aim(targets[FH_COVERED], s->effective, w->p->confidence)};
    fh_status rc = fh_view_new(&sample, n, 1, err);
    for (size_t i = 0; rc == FH_OK && i < n; i++) {
        size_t from = (size_t)((double)i * (double)a->n / (double)n);
        sample.positions[i] = a->positions[from], sample.document[i] = a->document[from];
    }
    if (rc == FH_OK) rc = measure_losses(&l, points, &sample, head, s, w->s, w->dense, w->job, err);
    *rung = 0;
    for (size_t q = l.n_points; rc == FH_OK && q-- > 0;) { /* from above, as B will try them */
        if (l.agreed[q].misses > (1 - aim[0]) * (double)n || l.covered[q].misses > (1 - aim[1]) * (double)n) break;
        *rung = rungs[q];
    }
    losses_free(&l);
    fh_view_free(&sample);
    return rc;
}

static bool through_head(const fh_calibrate_params *p) { return p->targets[FH_AGREED] > 0 || p->targets[FH_COVERED] > 0; }

/* The cheapest setting of the head under way. */
static fh_status fit_choice(fh_setting *out, const work *w, const fh_calibrate_params *p, const fh_head *head, const fh_cost *cost, fh_err *err)
{
    uint32_t rung;
    /* Agreement is little else than containment of the best token: the list is fitted for the one that asks most.  Mass says nothing of single tokens. */
    fh_fit_params f = {.vocab = w->dense->vocab, .ladder = &w->ladder, .always = w->fixed, .k = p->containment_k,
                       .target = fmax(p->targets[FH_CONTAINED], p->targets[FH_AGREED]), .confidence = p->confidence, .tested = w->part[FH_PART_B].n,
                       .fresh = w->s->n, .hot = p->hot, .cost = *cost};
    fh_status rc = fh_fit(out, &w->part[FH_PART_A], &f, err);
    if (rc < 0 || !through_head(p) || !out->rung) return rc;
    if ((rc = look(&rung, w, head, out, err)) < 0) return rc;
    out->rung = rung ? (uint32_t)fh_max(rung, out->rung) : 0;
    out->cost = rung ? cost->of(cost->ctx, fh_ladder_probes(&w->ladder, out->rung), out->n_hot) : INFINITY;
    return rc;
}

/* A choice with its price, its ladder, and part A ranked by it. */
static fh_status open_choice(fh_head **head, price *pr, fh_cost *cost, work *w, size_t i, fh_err *err)
{
    fh_status rc = w->choices->open(w->choices->ctx, i, head, err);
    if (rc < 0) return rc;
    const void *centroids = fh_head_get_parts(*head)->centroids.data;
    fh_mark(w->fixed, *head, NULL);
    rc = price_of(cost, pr, w->choices, w->p->by_time, *head, err);
    if (rc == FH_OK) rc = climb(w, *head, fh_most_probes(*head, 0, w->p->max_cost * w->dense_bytes), err);
    if (rc == FH_OK && (w->ranked != centroids || w->p->adaptive)) rc = rank(w, *head, FH_PART_A, err);
    w->ranked = centroids;
    return rc;
}

static fh_status choose(fh_setting *best, size_t *choice, work *w, fh_err *err)
{
    fh_status rc = FH_OK;
    *choice = 0, *best = (fh_setting){.cost = INFINITY};
    for (size_t i = 0; rc == FH_OK && i < w->choices->n; i++) {
        fh_head *head = NULL;
        fh_setting s = {.cost = INFINITY};
        price pr;
        fh_cost cost;
        if ((rc = open_choice(&head, &pr, &cost, w, i, err)) == FH_OK) rc = fit_choice(&s, w, w->p, head, &cost, err);
        if (rc == FH_OK) fh_job_say(w->job, FH_DEBUG, "routing %s, %s %s: P = %.4g and %zu hot on the other half of A, cost %.6g", w->choices->choice[i].routing,
                                    w->choices->choice[i].centroids, w->choices->choice[i].tokens,
                                    s.rung ? fh_ladder_probes(&w->ladder, s.rung) : 0, s.n_hot, s.cost);
        if (rc == FH_OK && (s.cost < best->cost || i == 0)) {
            fh_free(best->hot);
            *best = s, *choice = i, s.hot = NULL;
        }
        fh_free(s.hot);
        fh_head_close(head);
    }
    return rc;
}

/* ---- parts B and C ---------------------------------------------------------------------------------------------- */

static void keep(fh_calibration *c, const fh_bound *bounds, const fh_trial *trials, size_t n_trials, size_t at)
{
    for (size_t i = 0; i < n_trials; i++) c->promise[i].bound = bounds[i], c->promise[i].misses = trials[i].b[at].misses;
}

/* B: settings fall while the bounds hold. */
static fh_status decide(fh_calibration *c, work *w, const fh_head *head, const fh_setting *s, fh_err *err)
{
    const fh_calibrate_params *p = w->p;
    const fh_view *a = &w->part[FH_PART_A], *b = &w->part[FH_PART_B];
    fh_point points[GRID];
    uint32_t rungs[GRID], most = w->ladder.n;
    losses l = {0};
    size_t n = most;
    fh_tally *of[FH_PROMISES + 1] = {0}; /* the last: containment on A */
    fh_bound bounds[FH_PROMISES] = {{0}};
    fh_status rc = rank(w, head, FH_PART_B, err);
    if (rc == FH_OK) rc = rank(w, head, FH_PART_A, err); /* where another head was looked at last */
    for (int i = 0; i <= FH_PROMISES; i++) if (!(of[i] = fh_calloc((size_t)most + 1, sizeof *of[i]))) rc = fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc < 0 || (rc = fh_view_tallies(of[FH_CONTAINED], most, b, p->containment_k, w->fixed, err)) < 0 ||
        (rc = fh_view_tallies(of[FH_PROMISES], most, a, p->containment_k, w->fixed, err)) < 0) goto out;
    if (through_head(p)) { /* at some P only */
        n = l.n_points = grid(points, rungs, &w->ladder);
        if ((rc = measure_losses(&l, points, b, head, s, w->s, w->dense, w->job, err)) < 0) goto out;
        for (size_t q = 0; q < n; q++) {
            uint32_t rung = rungs[n - 1 - q];
            /* never from further up than where to */
            of[FH_CONTAINED][q] = of[FH_CONTAINED][most - rung], of[FH_PROMISES][q] = of[FH_PROMISES][most - rung];
            of[FH_AGREED][q] = l.agreed[n - 1 - q], of[FH_COVERED][q] = l.covered[n - 1 - q];
        }
    }
    fh_trial trials[FH_PROMISES] = {{p->targets[FH_CONTAINED], of[FH_CONTAINED], of[FH_PROMISES]}, {p->targets[FH_AGREED], of[FH_AGREED], NULL},
                                    {p->targets[FH_COVERED], of[FH_COVERED], NULL}};
    size_t n_trials = through_head(p) ? FH_PROMISES : 1;
    ptrdiff_t at = fh_decide(bounds, trials, n_trials, n, (double)w->s->n, p->confidence);
    size_t q = at < 0 ? 0 : (size_t)at;
    c->reached = at >= 0;
    uint32_t rung = !n ? 0 : through_head(p) ? rungs[n - 1 - q] : most - (uint32_t)q;
    c->probes = rung ? fh_ladder_most(&w->ladder, rung) : 0, c->threshold = rung ? fh_ladder_threshold(&w->ladder, rung) : 0, c->rung = rung;
    keep(c, bounds, trials, n_trials, q);
    for (int i = 0; i < FH_PROMISES; i++) {
        double effect = c->promise[i].bound.effect, need = (double)fh_share_needed(p->targets[i], p->confidence);
        need *= (isfinite(effect) ? fmax(effect, 1) : 1) * (1 + (double)b->n / (double)w->s->n);
        if (p->targets[i] > 0) c->needed = (uint64_t)fmax((double)c->needed, ceil(need));
    }
out:
    for (int i = 0; i <= FH_PROMISES; i++) fh_free(of[i]);
    losses_free(&l);
    return rc;
}

/* Positions by how many clusters they probe. */
typedef struct at_setting { size_t *count; double sum[FH_MEASURES]; } at_setting; /* count [K + 1] */
static void add_at_setting(void *ctx, size_t i, const double *values)
{
    at_setting *a = ctx;
    a->count[(size_t)values[FH_PROBES]]++;
    for (int m = 0; m < FH_MEASURES; m++) a->sum[m] += values[m];
    (void)i;
}

/* The setting itself on C, where it is on no curve of fixed P. */
static fh_status report_setting(fh_calibration *c, const work *w, const fh_head *whole, fh_err *err)
{
    const fh_view *v = &w->part[FH_PART_C];
    uint32_t clusters = fh_head_get_parts(whole)->clusters;
    const fh_point at = {.probes = c->probes, .threshold = c->threshold};
    at_setting of = {.count = fh_calloc((size_t)clusters + 1, sizeof *of.count)};
    fh_status rc = of.count ? FH_OK : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc == FH_OK) rc = fh_curve_each(whole, w->dense, w->s->hidden, v->positions, v->n, false, &at, 1, add_at_setting, &of, w->job, err);
    if (rc < 0 || !v->n) goto out;
    double n = (double)v->n;
    c->mean_probes = of.sum[FH_PROBES] / n;
    c->promise[FH_AGREED].heldout = of.sum[FH_AGREES] / n, c->promise[FH_COVERED].heldout = of.sum[FH_COVERS] / n;
    size_t seen = 0;
    for (uint32_t q = 0; q <= clusters; q++) {
        if (!of.count[q]) continue;
        if (seen < (v->n + 1) / 2) c->probes_p50 = q;
        if ((double)seen < 0.99 * n) c->probes_p99 = q;
        c->probes_max = q, seen += of.count[q];
    }
out:
    fh_free(of.count);
    return rc;
}

/* C: only reported. */
static fh_status report(fh_calibration *c, work *w, const fh_head *head, const fh_setting *s, fh_err *err)
{
    const fh_view *v = &w->part[FH_PART_C];
    fh_head *whole = NULL;
    size_t kept = 0;
    fh_status rc = rank(w, head, FH_PART_C, err);
    if (rc < 0 || (rc = with_list(&whole, head, s, err)) < 0) goto out;
    for (size_t i = 0; i < v->n; i++) kept += fh_view_need(v, i, w->p->containment_k, w->fixed) <= c->rung;
    c->mean_probes = c->probes_p50 = c->probes_p99 = c->probes_max = c->probes;
    if (!(c->curve = fh_calloc(FH_CURVE_POINTS, sizeof *c->curve))) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    c->n_curve = fh_curve_grid(c->curve, fh_head_get_parts(head)->clusters, c->probes);
    if ((rc = fh_curve(whole, w->dense, w->s->hidden, v->positions, v->n, false, c->curve, c->n_curve, w->job, err)) < 0) goto out;
    c->promise[FH_CONTAINED].heldout = v->n ? (double)kept / (double)v->n : NAN;
    for (size_t i = 0; i < c->n_curve; i++)
        if (c->curve[i].probes == c->probes) c->promise[FH_AGREED].heldout = c->curve[i].agreement, c->promise[FH_COVERED].heldout = c->curve[i].mass;
    if (c->threshold > 0) rc = report_setting(c, w, whole, err);
    c->step_bytes = fh_head_step_bytes(head, c->mean_probes, s->n_hot);
out:
    fh_head_close(whole);
    return rc;
}

static size_t documents_of(const fh_view *v)
{
    size_t n = 0;
    for (size_t i = 0; i < v->n; i++) n += i == 0 || v->document[i] != v->document[i - 1];
    return n;
}

static void work_close(work *w)
{
    for (int i = 0; i < FH_PARTS; i++) fh_view_free(&w->part[i]);
    fh_ladder_free(&w->ladder);
    fh_free(w->fixed);
}

/* The parts, with the dense head's best tokens. */
static fh_status work_open(work *w, const fh_states *states, const fh_dense *dense, const fh_choices *choices, const fh_calibrate_params *p, const fh_job *job,
                           fh_err *err)
{
    uint8_t *part = fh_malloc(fh_max(fh_states_documents(states), 1));
    fh_status rc = part ? FH_OK : fh_fail(err, FH_ENOMEM, "out of memory");
    *w = (work){.s = states, .dense = dense, .choices = choices, .p = p, .job = job, .fixed = fh_calloc(dense->vocab, 1)};
    if (!w->fixed) rc = fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc < 0) goto out;
    w->dense_bytes = (double)dense->vocab * (double)dense->rows.cols * (double)fh_dtype_size(dense->rows.dtype);
    for (size_t i = 0; i < states->n; i++) part[states->document[i]] = states->part[i];
    for (int i = 0; i < FH_PARTS; i++) {
        fh_view *v = &w->part[i];
        if ((rc = fh_view_of(v, states, part, (uint8_t)i, p->containment_k, err)) < 0 || (p->adaptive && (rc = fh_view_adapt(v, err)) < 0)) goto out;
        if ((rc = fh_dense_best(dense, states->hidden, v->positions, v->n, v->k, v->ids, job, err)) < 0) goto out;
    }
out:
    fh_free(part);
    return rc;
}

fh_status fh_calibrate(fh_calibration *out, const fh_states *states, const fh_dense *dense, const fh_choices *choices, const fh_calibrate_params *params,
                       const fh_job *job, fh_err *err)
{
    work w;
    fh_setting s = {0};
    fh_head *head = NULL;
    fh_calibration c = {0};
    fh_status rc = work_open(&w, states, dense, choices, params, job, err);
    if (rc < 0) goto out;
    c.dense_bytes = w.dense_bytes;
    for (int i = 0; i < FH_PARTS; i++) c.positions[i] = w.part[i].n, c.documents[i] = documents_of(&w.part[i]);
    for (int i = 0; i < FH_PROMISES; i++) c.promise[i].target = params->targets[i], c.promise[i].heldout = NAN;
    if ((rc = choose(&s, &c.choice, &w, err)) < 0 || (rc = choices->open(choices->ctx, c.choice, &head, err)) < 0) goto out;
    fh_mark(w.fixed, head, &s);
    if ((rc = climb(&w, head, fh_most_probes(head, s.n_hot, params->max_cost * w.dense_bytes), err)) < 0) goto out;
    if ((rc = decide(&c, &w, head, &s, err)) < 0 || (c.reached && (rc = report(&c, &w, head, &s, err)) < 0)) goto out;
    c.hot = s.hot, c.n_hot = s.n_hot, s.hot = NULL;
    *out = c, c = (fh_calibration){0};
out:
    work_close(&w);
    fh_head_close(head);
    fh_free(s.hot);
    fh_calibration_free(&c);
    return rc;
}

void fh_calibration_free(fh_calibration *c)
{
    fh_free(c->hot);
    fh_free(c->curve);
    *c = (fh_calibration){0};
}

/* ---- plan -------------------------------------------------------------------------------------------------------- */

static fh_status see(fh_plan_row *row, const work *w, const fh_head *head, const fh_setting *s, fh_err *err) /* row has the setting */
{
    const fh_view *a = &w->part[FH_PART_A];
    size_t n = fh_min(a->n, MOST_SAMPLED / 4), *positions = fh_malloc(fh_max(n, 1) * sizeof *positions);
    fh_head *whole = NULL;
    fh_point at = {.probes = row->probes, .threshold = row->threshold};
    fh_status rc = positions ? with_list(&whole, head, s, err) : fh_fail(err, FH_ENOMEM, "out of memory");
    for (size_t i = 0; rc == FH_OK && i < n; i++) positions[i] = a->positions[(size_t)((double)i * (double)a->n / (double)n)];
    if (rc == FH_OK) rc = fh_curve(whole, w->dense, w->s->hidden, positions, n, false, &at, 1, w->job, err);
    row->agreement = at.agreement, row->mass = at.mass, row->kl = at.kl;
    fh_head_close(whole);
    fh_free(positions);
    return rc;
}

fh_status fh_plan(fh_plan_row *rows, size_t *n, const fh_states *states, const fh_dense *dense, const fh_choices *choices, const fh_calibrate_params *params,
                  const fh_job *job, fh_err *err)
{
    static const double levels[] = {0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999}; /* and, last, what is asked for */
    enum { LEVELS = sizeof levels / sizeof *levels };
    work w;
    fh_setting best[LEVELS + 1] = {{0}};
    fh_plan_row found[LEVELS + 1] = {{0}};
    fh_status rc = work_open(&w, states, dense, choices, params, job, err);
    *n = 0;
    for (size_t l = 0; l <= LEVELS; l++) best[l].cost = INFINITY;
    for (size_t i = 0; rc == FH_OK && i < choices->n; i++) {
        fh_head *head = NULL;
        price pr;
        fh_cost cost;
        rc = open_choice(&head, &pr, &cost, &w, i, err);
        for (size_t l = 0; rc == FH_OK && l <= LEVELS; l++) {
            if (l < LEVELS && levels[l] == params->targets[FH_CONTAINED] && !through_head(params)) continue; /* asked for anyway */
            fh_setting s = {.cost = INFINITY};
            fh_calibrate_params p = *params;
            if (l < LEVELS) p.targets[FH_CONTAINED] = levels[l], p.targets[FH_AGREED] = p.targets[FH_COVERED] = 0;
            if ((rc = fit_choice(&s, &w, &p, head, &cost, err)) == FH_OK && s.rung && s.cost < best[l].cost) {
                fh_free(best[l].hot);
                best[l] = s, s.hot = NULL;
                double probes = fh_ladder_probes(&w.ladder, best[l].rung);
                found[l] = (fh_plan_row){.choice = i, .probes = fh_ladder_most(&w.ladder, best[l].rung),
                                         .threshold = fh_ladder_threshold(&w.ladder, best[l].rung), .mean_probes = probes, .n_hot = best[l].n_hot, .level = p.targets[FH_CONTAINED], .meets = l == LEVELS,
                                         .bytes = bytes_of(&pr, probes, best[l].n_hot), .seconds = seconds_of(&pr, probes, best[l].n_hot)};
            }
            fh_free(s.hot);
        }
        fh_head_close(head);
    }
    for (size_t l = 0; rc == FH_OK && l <= LEVELS; l++) {
        fh_head *head = NULL;
        if (isinf(best[l].cost)) continue;
        if ((rc = choices->open(choices->ctx, found[l].choice, &head, err)) == FH_OK) rc = see(&found[l], &w, head, &best[l], err);
        size_t at = (*n)++;
        for (; at && (params->by_time ? rows[at - 1].seconds > found[l].seconds : rows[at - 1].bytes > found[l].bytes); at--) rows[at] = rows[at - 1];
        rows[at] = found[l];
        fh_head_close(head);
    }
    for (size_t l = 0; l <= LEVELS; l++) fh_free(best[l].hot);
    work_close(&w);
    return rc;
}
