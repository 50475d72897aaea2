/* calibrate: the cheapest setting that keeps the target, with its certainty (DESIGN 7).
 *
 * A fits: which routing, which tokens are always scored, and so the order of settings by cost.  B decides: P is lowered from the most generous
 * setting until the lower bound of the containment misses the target (fixed-sequence testing: one test may fail, so no test pays
 * for the others).  Candidate sets are nested in P, hence the containment is monotone and the last P that passes is the smallest that does.  C is
 * only reported.
 */
#include "calib/calib.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct part { size_t *positions, n; uint32_t *ids, *ranks; } part; /* ids, ranks [n, k] */

static void part_free(part *p) { fh_free(p->positions); fh_free(p->ids); fh_free(p->ranks); *p = (part){0}; }

static fh_status part_fill(part *p, const fh_states *s, int which, const fh_dense *dense, size_t k, const fh_job *job, fh_err *err)
{
    for (size_t i = 0; i < s->n; i++) p->n += s->part[i] == which;
    size_t n = fh_max(p->n, 1);
    p->positions = fh_malloc(n * sizeof *p->positions);
    p->ids = fh_malloc(n * k * sizeof *p->ids);
    p->ranks = fh_malloc(n * k * sizeof *p->ranks);
    if (!p->positions || !p->ids || !p->ranks) return fh_fail(err, FH_ENOMEM, "out of memory");
    for (size_t i = 0, j = 0; i < s->n; i++) if (s->part[i] == which) p->positions[j++] = i;
    return fh_dense_best(dense, s->hidden, p->positions, p->n, k, p->ids, job, err);
}

/* Probes until every one of the position's k best is a candidate. */
static uint32_t need_of(const part *p, size_t i, size_t k, const uint8_t *fixed)
{
    uint32_t need = 0;
    for (size_t j = 0; j < k; j++) {
        uint32_t id = p->ids[i * k + j], r = p->ranks[i * k + j] + 1;
        if (id != FH_NO_TOKEN && !fixed[id] && r > need) need = r;
    }
    return need;
}

/* A share of the positions, told apart by document: hot lists are fitted on one half and judged on the other. */
typedef enum half { EVEN, ODD, BOTH } half;
static bool in_half(const fh_states *s, size_t position, half h) { return h == BOTH || (s->document[position] & 1) == (h == ODD); }

/* The smallest P that keeps `target` of the positions; clusters + 1 when none does. */
static uint32_t needed_probes(const fh_states *s, const part *p, half h, size_t k, const uint8_t *fixed, uint32_t clusters, double target, uint32_t *histogram)
{
    size_t n = 0, hit = 0;
    memset(histogram, 0, ((size_t)clusters + 2) * sizeof *histogram);
    for (size_t i = 0; i < p->n; i++)
        if (in_half(s, p->positions[i], h)) histogram[need_of(p, i, k, fixed)]++, n++;
    for (uint32_t q = 0; q <= clusters; q++)
        if ((double)(hit += histogram[q]) >= target * (double)n) return q ? q : 1;
    return clusters + 1;
}

typedef struct miss { uint32_t id, count; } miss;
static int by_count(const void *a, const void *b)
{
    const miss *x = a, *y = b;
    return x->count != y->count ? (x->count < y->count) - (x->count > y->count) : (x->id > y->id) - (x->id < y->id);
}

/* Mark in `fixed` the `want` tokens that are missed most at the P which they themselves bring about: P falls as the list takes effect, so
 * the list is made again at the new P until it falls no further.  Returns how many tokens the list holds; list (may be NULL) gets them. */
static size_t fit_hot(const fh_states *s, const part *p, half h, size_t k, size_t want, const uint8_t *always, uint8_t *fixed, uint32_t vocab, uint32_t clusters,
                      double target, uint32_t *histogram, miss *misses, uint32_t *list)
{
    size_t n = 0;
    memcpy(fixed, always, vocab);
    uint32_t probes = needed_probes(s, p, h, k, fixed, clusters, target, histogram);
    for (int step = 0; step < 8 && want; step++) {
        for (uint32_t t = 0; t < vocab; t++) misses[t] = (miss){t, 0};
        for (size_t i = 0; i < p->n; i++)
            if (in_half(s, p->positions[i], h))
                for (size_t j = 0; j < k; j++) {
                    uint32_t id = p->ids[i * k + j];
                    if (id != FH_NO_TOKEN && !always[id] && p->ranks[i * k + j] >= probes) misses[id].count++;
                }
        qsort(misses, vocab, sizeof *misses, by_count);
        memcpy(fixed, always, vocab);
        for (n = 0; n < want && misses[n].count; n++) {
            fixed[misses[n].id] = 1;
            if (list) list[n] = misses[n].id;
        }
        uint32_t now = needed_probes(s, p, h, k, fixed, clusters, target, histogram);
        if (now >= probes) break;
        probes = now;
    }
    return n;
}

typedef struct setting { size_t routing, hot; uint32_t probes; double bytes; } setting;

static size_t curve_grid(fh_point *points, uint32_t clusters, uint32_t chosen)
{
    size_t n = 0;
    bool had = false;
    for (uint32_t p = 1, next = 2; p <= clusters; p = next) {
        if (!had && chosen <= p) { had = true; if (chosen < p) points[n++] = (fh_point){.probes = chosen}; }
        points[n++] = (fh_point){.probes = p};
        next = (p & (p - 1)) == 0 ? (p < 4 ? p * 2 : p + p / 2) : p / 3 * 4; /* 1 2 4 6 8 12 16 24 ... */
    }
    if (!had) points[n++] = (fh_point){.probes = chosen};
    return n;
}

fh_status fh_calibrate(fh_calibration *out, const fh_states *states, const fh_dense *dense, const fh_routing_choice *choices, size_t n_choices,
                       fh_make_head make_head, void *ctx, const fh_calibrate_params *params, const fh_job *job, fh_err *err)
{
    static const size_t hot_sizes[] = {0, 16, 32, 64, 128, 256, 512};
    fh_status rc = FH_OK;
    part parts[FH_PARTS] = {{0}};
    size_t k = params->containment_k;
    fh_head *head = NULL, *with_hot = NULL;
    uint8_t *always = fh_calloc(dense->vocab, 1), *fixed = fh_calloc(dense->vocab, 1);
    miss *misses = fh_malloc(dense->vocab * sizeof *misses);
    uint32_t *histogram = NULL;
    setting best = {.bytes = INFINITY};
    fh_calibration c = {0};
    if (!always || !fixed || !misses) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    for (int i = 0; i < FH_PARTS; i++) {
        if ((rc = part_fill(&parts[i], states, i, dense, k, job, err)) < 0) goto out;
        c.positions[i] = parts[i].n;
    }
    c.needed = fh_binomial_needed(params->target, params->confidence);
    const part *a = &parts[FH_PART_A], *b = &parts[FH_PART_B], *held = &parts[FH_PART_C];

    /* A: what B's bound will ask for beyond the target itself enters the comparison of settings. */
    double t = params->target, aim = fmin(1, t + 1.645 * sqrt(t * (1 - t) / (double)fh_max(b->n, 1)));
    for (size_t i = 0; i < n_choices; i++) {
        if ((rc = make_head(ctx, choices[i].centroids, &head, err)) < 0) goto out;
        const fh_head_parts *p = fh_head_get_parts(head);
        if (!histogram && !(histogram = fh_malloc(((size_t)p->clusters + 2) * sizeof *histogram))) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
        memset(always, 0, dense->vocab);
        for (size_t j = 0; j < p->n_always; j++) always[p->always[j]] = 1;
        if ((rc = fh_cluster_ranks(head, states->hidden, a->positions, a->n, k, a->ids, a->ranks, job, err)) < 0) goto out;
        size_t sizes = params->hot < 0 ? sizeof hot_sizes / sizeof *hot_sizes : 1;
        for (size_t j = 0; j < sizes; j++) {
            size_t want = params->hot < 0 ? hot_sizes[j] : (size_t)params->hot;
            if (want * 4 > dense->vocab && params->hot < 0) break;
            size_t n = fit_hot(states, a, EVEN, k, want, always, fixed, dense->vocab, p->clusters, aim, histogram, misses, NULL);
            uint32_t probes = needed_probes(states, a, ODD, k, fixed, p->clusters, aim, histogram);
            double bytes = fh_head_step_bytes(head, probes, n);
            if (probes <= p->clusters && bytes < best.bytes) best = (setting){i, want, probes, bytes};
            fh_job_say(job, FH_DEBUG, "routing %s, %zu hot: P = %u on the other half of A, %.0f bytes a step", choices[i].name, n, probes, bytes);
        }
        fh_head_close(head), head = NULL;
    }
    if (isinf(best.bytes)) best = (setting){.routing = 0, .hot = params->hot > 0 ? (size_t)params->hot : 0};
    c.routing = best.routing;
    if ((rc = make_head(ctx, choices[best.routing].centroids, &head, err)) < 0) goto out;
    const fh_head_parts *p = fh_head_get_parts(head);
    if (!histogram && !(histogram = fh_malloc(((size_t)p->clusters + 2) * sizeof *histogram))) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    if (!(c.hot = fh_malloc(fh_max(best.hot, 1) * sizeof *c.hot))) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    if ((rc = fh_cluster_ranks(head, states->hidden, a->positions, a->n, k, a->ids, a->ranks, job, err)) < 0) goto out;
    c.n_hot = fit_hot(states, a, BOTH, k, fh_min(best.hot, dense->vocab), always, fixed, dense->vocab, p->clusters, aim, histogram, misses, c.hot);

    /* B: P falls while the bound holds. */
    c.dense_bytes = (double)dense->vocab * (double)dense->rows.cols * (double)fh_dtype_size(dense->rows.dtype);
    uint32_t most = p->clusters;
    while (most && fh_head_step_bytes(head, most, c.n_hot) > params->max_cost * c.dense_bytes) most--;
    if ((rc = fh_cluster_ranks(head, states->hidden, b->positions, b->n, k, b->ids, b->ranks, job, err)) < 0) goto out;
    needed_probes(states, b, BOTH, k, fixed, p->clusters, 1, histogram); /* fills the histogram */
    uint64_t missed = 0;
    for (uint32_t q = most + 1; q <= p->clusters; q++) missed += histogram[q];
    for (uint32_t q = most; q; missed += histogram[q--]) {
        double bound = fh_binomial_lower(b->n, missed, params->confidence);
        if (q == most) c.best_bound = bound, c.probes = q, c.misses = missed;
        if (!(bound >= params->target)) break;
        c.probes = q, c.misses = missed, c.bound = bound, c.reached = true;
    }
    if (!c.reached) goto done;

    /* C: only reported. */
    if ((rc = fh_cluster_ranks(head, states->hidden, held->positions, held->n, k, held->ids, held->ranks, job, err)) < 0) goto out;
    size_t kept = 0;
    for (size_t i = 0; i < held->n; i++) kept += need_of(held, i, k, fixed) <= c.probes;
    c.heldout = held->n ? (double)kept / (double)held->n : NAN;
    c.step_bytes = fh_head_step_bytes(head, c.probes, c.n_hot);
    fh_head_parts hot_parts = *p;
    hot_parts.hot = c.hot, hot_parts.n_hot = c.n_hot, hot_parts.probes = c.probes;
    if ((rc = fh_head_from_parts(&with_hot, &hot_parts, "calibration", err)) < 0) goto out;
    if (!(c.curve = fh_calloc(80, sizeof *c.curve))) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    c.n_curve = curve_grid(c.curve, p->clusters, c.probes);
    if ((rc = fh_curve(with_hot, dense, states->hidden, held->positions, held->n, false, c.curve, c.n_curve, job, err)) < 0) goto out;
done:
    *out = c, c = (fh_calibration){0};
out:
    for (int i = 0; i < FH_PARTS; i++) part_free(&parts[i]);
    fh_head_close(with_hot);
    fh_head_close(head);
    fh_free(always);
    fh_free(fixed);
    fh_free(misses);
    fh_free(histogram);
    fh_calibration_free(&c);
    return rc;
}

void fh_calibration_free(fh_calibration *c)
{
    fh_free(c->hot);
    fh_free(c->curve);
    *c = (fh_calibration){0};
}
