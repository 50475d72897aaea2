/* What part A finds: P, or a threshold, and a hot list.
 *
 * A hot token costs one row a step, a probe a cluster of them.  At a given setting every token has a number of misses that it takes part in; the list takes
 * tokens in falling order of these, which is the order of misses per byte, as all rows cost the same.  So for every setting there is a
 * list that is just long enough, and the cheapest of these pairs is taken.  A token that is missed by chance on the text it was fitted on looks free there: lists are
 * made on one half of the documents, and how long they must be is judged on the other.
 */
#include "calib/promise.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LEAST_SHARE = 4 }; /* a list never takes the place of three probes in four */
enum { MOST_HOT = 1024 }; /* where calibration chooses: what is in the list beyond was seen too seldom to be sure of */

typedef struct worth { uint32_t id; double misses; } worth;
static int by_worth(const void *a, const void *b)
{
    const worth *x = a, *y = b;
    return x->misses != y->misses ? (x->misses < y->misses) - (x->misses > y->misses) : (x->id > y->id) - (x->id < y->id);
}

typedef struct fitter {
    const fh_view *a;
    const fh_fit_params *p;
    worth *worth;         /* [V] */
    uint32_t *place;      /* [V] place in the list, from 1; UINT32_MAX: not in it */
    size_t *count;        /* [V + 2] positions by how long the list must be */
    size_t *hard, n_hard; /* positions that are missed at the least setting that is looked at: all others are at none */
    size_t odd;           /* positions of the half by which lists are judged */
    double aim;
} fitter;

static bool is_odd(const fitter *f, size_t i) { return f->a->document[i] & 1; }

/* The tokens of a position that are no candidates at this setting; how many they are. */
static uint32_t lacking(uint32_t lacks[FH_MAX_TOP], const fitter *f, size_t i, uint32_t rung)
{
    const fh_view *a = f->a;
    uint32_t n = 0;
    for (size_t j = 0; j < f->p->k; j++) {
        uint32_t id = a->ids[i * a->k + j];
        if (id != FH_NO_TOKEN && !f->p->always[id] && a->rungs[i * a->k + j] >= rung) lacks[n++] = id;
    }
    return n;
}

/* The list at this setting, from the even documents or all: every token that is missed, most worth having first; how many they are.  A position that lacks several
 * tokens is won only with all of them, so that each has its share of it. */
static size_t list_at(fitter *f, uint32_t rung, bool both)
{
    uint32_t lacks[FH_MAX_TOP];
    size_t n = 0;
    for (uint32_t t = 0; t < f->p->vocab; t++) f->worth[t] = (worth){t, 0}, f->place[t] = UINT32_MAX;
    for (size_t h = 0; h < f->n_hard; h++) {
        if (!both && is_odd(f, f->hard[h])) continue;
        uint32_t m = lacking(lacks, f, f->hard[h], rung);
        for (uint32_t j = 0; j < m; j++) f->worth[lacks[j]].misses += 1 / (double)m;
    }
    for (uint32_t t = 0; t < f->p->vocab; t++)
        if (f->worth[t].misses > 0) f->worth[n++] = f->worth[t];
    qsort(f->worth, n, sizeof *f->worth, by_worth);
    for (size_t i = 0; i < n; i++) f->place[f->worth[i].id] = (uint32_t)i + 1;
    return n;
}

/* How many tokens of a list of n the odd documents need at this setting; n + 1: more than there are. */
static size_t length_at(fitter *f, uint32_t rung, size_t n)
{
    uint32_t lacks[FH_MAX_TOP];
    size_t kept = f->odd;
    memset(f->count, 0, (n + 2) * sizeof *f->count);
    for (size_t h = 0; h < f->n_hard; h++) {
        if (!is_odd(f, f->hard[h])) continue;
        size_t need = 0;
        uint32_t m = lacking(lacks, f, f->hard[h], rung);
        for (uint32_t j = 0; j < m; j++) need = fh_max(need, fh_min((size_t)f->place[lacks[j]], n + 1));
        f->count[need]++, kept--;
    }
    for (size_t q = 0; q <= n; q++)
        if ((double)(kept += f->count[q]) >= f->aim * (double)f->odd) return q;
    return n + 1;
}

/* The least setting to look at, a part of what the odd documents need without a list; and the positions that are missed there. */
static fh_status find_hard(fitter *f, uint32_t *least, fh_err *err)
{
    const fh_view *a = f->a;
    uint32_t most = f->p->ladder->n, q = 0, *need = fh_malloc(fh_max(a->n, 1) * sizeof *need);
    size_t *count = fh_calloc((size_t)most + 2, sizeof *count), kept = 0;
    fh_status rc = need && count ? FH_OK : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc < 0) goto out;
    for (size_t i = 0; i < a->n; i++) {
        need[i] = fh_view_need(a, i, f->p->k, f->p->always);
        if (is_odd(f, i)) count[fh_min(need[i], (size_t)most + 1)]++, f->odd++;
    }
    while (q <= most && (double)(kept += count[q]) < f->aim * (double)f->odd) q++;
    *least = fh_ladder_share(f->p->ladder, q, LEAST_SHARE);
    for (size_t i = 0; i < a->n; i++) f->n_hard += need[i] > *least;
    if (!(f->hard = fh_malloc(fh_max(f->n_hard, 1) * sizeof *f->hard))) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    f->n_hard = 0;
    for (size_t i = 0; i < a->n; i++) if (need[i] > *least) f->hard[f->n_hard++] = i;
out:
    fh_free(need);
    fh_free(count);
    return rc;
}

/* One margin of B beyond the target: two, one for its bound and one for its luck, would be sure but dear. */
double fh_aim(double target, double effective, double confidence)
{
    double z = fh_student_quantile(confidence, INFINITY);
    return target > 0 ? fmin(1, target + z * sqrt(target * (1 - target) / fmax(effective, 1))) : 0;
}

/* What B's positions will be worth, as A's documents have it. */
static fh_status effective_of(double *effective, const fh_view *a, const fh_fit_params *p, fh_err *err)
{
    uint32_t most = p->ladder->n;
    fh_tally *t = fh_calloc((size_t)most + 1, sizeof *t);
    fh_status rc = t ? fh_view_tallies(t, most, a, p->k, p->always, err) : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc == FH_OK) {
        fh_design d = fh_trial_design(&(fh_trial){.target = p->target, .b = t}, most);
        *effective = (double)p->tested / (fmax(1, d.effect) * (1 + (double)p->tested / (double)p->fresh)) * fh_few_left(2 * d.degrees, p->confidence); /* A's and B's degrees */
    }
    fh_free(t);
    return rc;
}

void fh_mark(uint8_t *fixed, const fh_head *head, const fh_setting *s)
{
    const fh_head_parts *p = fh_head_get_parts(head);
    memset(fixed, 0, p->vocab);
    for (size_t i = 0; i < p->n_always; i++) fixed[p->always[i]] = 1;
    for (size_t i = 0; s && i < s->n_hot; i++) fixed[s->hot[i]] = 1;
}

uint32_t fh_most_probes(const fh_head *head, size_t hot, double bytes)
{
    uint32_t most = fh_head_get_parts(head)->clusters;
    while (most && fh_head_step_bytes(head, most, hot) > bytes) most--;
    return most;
}

fh_status fh_fit(fh_setting *out, const fh_view *a, const fh_fit_params *p, fh_err *err)
{
    fh_status rc = FH_OK;
    fitter f = {.a = a, .p = p};
    fh_setting best = {.cost = INFINITY};
    const fh_ladder *l = p->ladder;
    uint32_t least;
    if ((rc = effective_of(&best.effective, a, p, err)) < 0) return rc;
    f.aim = fh_aim(p->target, best.effective, p->confidence);
    f.worth = fh_malloc(p->vocab * sizeof *f.worth);
    f.place = fh_malloc(p->vocab * sizeof *f.place);
    f.count = fh_malloc(((size_t)p->vocab + 2) * sizeof *f.count);
    if (!f.worth || !f.place || !f.count) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    if ((rc = find_hard(&f, &least, err)) < 0) goto out;
    for (uint32_t q = least; q <= l->n; q = fh_ladder_next(l, q)) {
        if (p->cost.of(p->cost.ctx, fh_ladder_probes(l, q), 0) >= best.cost) break; /* even without a list it costs more, and more probes more still */
        size_t n = list_at(&f, q, false), want = length_at(&f, q, n);
        if (want > fh_min(n, p->hot >= 0 ? (size_t)p->hot : MOST_HOT)) continue;
        if (p->hot >= 0) want = fh_min((size_t)p->hot, n);
        double cost = p->cost.of(p->cost.ctx, fh_ladder_probes(l, q), want);
        if (cost < best.cost) best.rung = q, best.n_hot = want, best.cost = cost;
    }
    size_t n = list_at(&f, best.rung ? best.rung : least, true);
    best.n_hot = fh_min(p->hot >= 0 ? (size_t)p->hot : best.n_hot, n);
    if (!(best.hot = fh_malloc(fh_max(best.n_hot, 1) * sizeof *best.hot))) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    for (size_t i = 0; i < best.n_hot; i++) best.hot[i] = f.worth[i].id;
    *out = best;
out:
    fh_free(f.worth);
    fh_free(f.place);
    fh_free(f.count);
    fh_free(f.hard);
    return rc;
}
