/* cluster/cluster.c: a head into balanced clusters: start, refinement, centroids. */
#include "cluster/cluster_private.h"

#include <string.h>

void fh_clustering_free(fh_clustering *c)
{
    if (!c) return;
    fh_free(c->assignment);
    fh_free(c->centroids);
    fh_free(c->mean);
    fh_free(c->raw);
    *c = (fh_clustering){0};
}

uint64_t fh_cluster_memory(size_t v, size_t d, const fh_cluster_params *p)
{
    size_t k = p->k ? p->k : 1, ld = fh_round_up(d, FH_LANES), want = fh_min(p->candidates ? p->candidates : 24, FH_MAX_CANDIDATES);
    /* Tiles of scores and lists of 16 threads, rows of eight bits, FAISS's own block of scores. */
    uint64_t row = ld * sizeof(float), fixed = 16 * (640 * 1024 + 128 * ld + row) + 16 * 1024 * 1024;
    uint64_t all = fixed + v * (row + 2 * sizeof(double) + 6 * sizeof(uint32_t)) + k * 2 * sizeof(uint32_t);
    uint64_t coarse = fh_max(fh_min(v, fh_max(k, 4096)), 1) * row + v * 4 * sizeof(uint32_t);
    uint64_t full = 4 * k * row + v * 2 * FH_MAX_CANDIDATES * sizeof(float); /* centroids here, twice in FAISS, in its index */
    uint64_t refine = k * (row + 12) + fh_round_up(k, FH_PANEL) * (ld + 2 * sizeof(float)) + v * (2 * want * sizeof(int32_t) + 5 * sizeof(uint32_t) + sizeof(bool));
    uint64_t after = 3 * k * d * sizeof(float) + v * 3 * sizeof(double); /* the rows' copy is gone by then */
    uint64_t start = p->start == FH_START_COARSE ? coarse : p->start == FH_START_FAISS ? full : full / 2;
    if (p->map) start = fh_max(start, 4096 * row), all += d * row;
    uint64_t during = all + (start > refine ? start : refine);
    return during > after ? during : after;
}

/* Of n things in k shares as even as can be, the larger shares first: what share c gets. */
static size_t share(size_t n, size_t k, size_t c)
{
    return n / k + (c < n % k);
}

static void work_free(fh_work *w)
{
    fh_free(w->norm);
    fh_free(w->size);
    fh_free(w->ids);
    fh_free(w->x);
    fh_free(w->square);
    fh_free(w->shift);
    fh_free(w->centre);
    fh_free(w->length);
    fh_free(w->home);
    fh_free(w->first);
    fh_free(w->members);
    fh_free(w->place);
    *w = (fh_work){0};
}

static fh_status usage(const fh_rows *head, const fh_cluster_params *p, fh_err *err)
{
    if (!fh_dtype_is_float(head->dtype))
        return fh_fail(err, FH_EUNSUPPORTED, "clustering of %s rows: only f32, bf16 and f16 are known", fh_dtype_name(head->dtype));
    if (head->rows < 2 || head->rows > INT32_MAX || !head->cols || head->cols > INT32_MAX / 2)
        return fh_fail(err, FH_EUSAGE, "clustering: a head of [%zu, %zu] cannot be clustered", head->rows, head->cols);
    if (p->k < 2 || p->k > head->rows)
        return fh_fail(err, FH_EUSAGE, "k is %u: it must be 2 to %zu (the number of tokens)", p->k, head->rows);
    if (p->map && p->metric != FH_METRIC_EUCLIDEAN) return fh_fail(err, FH_EUSAGE, "clustering: mapped rows are compared by distance only");
    if (p->init && p->restarts > 1) return fh_fail(err, FH_EUSAGE, "clustering: from a given assignment there is only one start, and restarts is %u", p->restarts);
    if (p->candidates > FH_MAX_CANDIDATES)
        return fh_fail(err, FH_EUSAGE, "candidates is %u: it must be 1 to %d, or 0 for the default", p->candidates, FH_MAX_CANDIDATES);
    return FH_OK;
}

/* Everything that the start needs. */
static fh_status prepare(fh_work *w, const uint8_t *dead, fh_err *err)
{
    fh_status rc;
    size_t cells, bytes;
    w->norm = fh_malloc(w->v * sizeof *w->norm);
    if (!w->norm) goto nomem;
    if ((rc = fh_row_lengths(w->norm, &w->n, w->head, dead, w->job, err)) < 0) return rc;
    if (w->n < 2) return fh_fail(err, FH_EFORMAT, "the head has %zu live rows of %zu: nothing to cluster", w->n, w->v);
    if (w->k > w->n)
        return fh_fail(err, FH_EUSAGE, "k is %zu, and only %zu of %zu tokens are live: it must be 2 to %zu", w->k, w->n, w->v, w->n);
    w->ld = fh_round_up(w->d, FH_LANES);
    if (!fh_mul(w->n, w->ld, &cells) || !fh_mul(cells, sizeof *w->x, &bytes)) goto nomem;
    w->ids = fh_malloc(w->n * sizeof *w->ids);
    w->size = fh_malloc(w->n * sizeof *w->size);
    w->x = fh_aligned(bytes);
    w->square = fh_malloc(w->n * sizeof *w->square);
    w->shift = fh_calloc(w->ld, sizeof *w->shift);
    w->home = fh_malloc(w->n * sizeof *w->home);
    w->first = fh_malloc((w->k + 1) * sizeof *w->first);
    w->members = fh_malloc(w->n * sizeof *w->members);
    w->place = fh_malloc(w->n * sizeof *w->place);
    w->length = fh_malloc(w->k * sizeof *w->length);
    if (!w->ids || !w->size || !w->x || !w->square || !w->shift || !w->home || !w->first || !w->members || !w->place || !w->length) goto nomem;
    for (size_t t = 0, i = 0; t < w->v; t++) {
        if (w->norm[t] > 0) w->ids[i++] = (uint32_t)t;
    }
    w->first[0] = 0;
    for (size_t c = 0; c < w->k; c++) w->first[c + 1] = w->first[c] + (uint32_t)share(w->n, w->k, c);
    return fh_work_fill(w, err);
nomem:
    return fh_fail(err, FH_ENOMEM, "clustering: out of memory for a float32 copy of %zu rows of %zu", w->v, w->d);
}

static void deal_in_order(fh_work *w)
{
    for (size_t c = 0, i = 0; c < w->k; c++) {
        for (; i < w->first[c + 1]; i++) w->home[i] = (uint32_t)c;
    }
}

/* Where an assignment of all tokens has the live ones; what finds no room there goes where there is. */
static fh_status start_from(fh_work *w, const uint32_t *init, fh_err *err)
{
    uint32_t *room = fh_malloc(w->k * sizeof *room);
    if (!room) return fh_fail(err, FH_ENOMEM, "clustering: out of memory");
    for (size_t c = 0; c < w->k; c++) room[c] = w->first[c + 1] - w->first[c];
    for (size_t i = 0; i < w->n; i++) {
        uint32_t c = init[w->ids[i]];
        w->home[i] = c < w->k && room[c] ? c : FH_NO_HOME;
        if (w->home[i] != FH_NO_HOME) room[c]--;
    }
    for (size_t i = 0, c = 0; i < w->n; i++) {
        if (w->home[i] != FH_NO_HOME) continue;
        while (!room[c]) c++;
        w->home[i] = (uint32_t)c;
        room[c]--;
    }
    fh_free(room);
    return FH_OK;
}

static fh_status start(fh_work *w, const fh_cluster_params *p, uint64_t seed, bool *stopped, fh_err *err)
{
    fh_status rc = FH_OK;
    if (w->k == w->n) {
        deal_in_order(w); /* one live token a cluster: no partition is better than another */
        return FH_OK;
    }
    if (p->init) return start_from(w, p->init, err);
    if (fh_job_stopped(w->job)) rc = FH_EINTERRUPTED;
    else if (p->start == FH_START_FAISS) rc = fh_start_faiss(w, seed, err);
    else if (p->start == FH_START_RANDOM) rc = fh_start_random(w, seed, err);
    else rc = fh_start_coarse(w, seed, err);
    if (rc != FH_EINTERRUPTED) return rc;
    deal_in_order(w);
    *stopped = true;
    return FH_OK;
}

/* A start and its refinement; centres are current after it. */
static fh_status one_start(fh_work *w, const fh_cluster_params *p, uint64_t seed, double began, fh_refined *out, fh_err *err)
{
    bool stopped = false;
    *out = (fh_refined){0};
    fh_status rc = start(w, p, seed, &stopped, err);
    if (rc < 0) return rc;
    fh_work_members(w);
    if (!stopped && p->rounds != FH_ROUNDS_NONE && w->k < w->n) return fh_refine(w, p, began, out, err);
    out->stopped = stopped;
    return fh_work_centres(w, err);
}

/* Live tokens where they are, dead ones as fillers: cluster sizes and numbers of live tokens are each as even as can be, and a filler
 * goes to the cluster that has received fewest. */
static void assign(uint32_t *assignment, const fh_work *w, uint32_t *fillers)
{
    size_t i = 0, c = 0;
    for (size_t k = 0; k < w->k; k++) fillers[k] = (uint32_t)(share(w->v, w->k, k) - share(w->n, w->k, k));
    for (size_t t = 0; t < w->v; t++) {
        if (i < w->n && w->ids[i] == t) {
            assignment[t] = w->home[i++];
            continue;
        }
        while (!fillers[c]) c = c + 1 < w->k ? c + 1 : 0;
        fillers[c]--;
        assignment[t] = (uint32_t)c;
        c = c + 1 < w->k ? c + 1 : 0;
    }
}

fh_status fh_cluster(fh_clustering *out, const fh_rows *head, const uint8_t *dead, const fh_cluster_params *p, const fh_job *job,
                     fh_err *err)
{
    *out = (fh_clustering){0};
    fh_status rc = usage(head, p, err);
    if (rc < 0) return rc;
    fh_refined refined = {0};
    unsigned starts = p->restarts ? p->restarts : 1;
    double began = fh_now(), most = 0;
    uint32_t *fillers = NULL, *best = NULL;
    fh_work w = {.head = head, .v = head->rows, .d = head->cols, .k = p->k, .metric = p->metric, .map = p->map, .dots = fh_dots_pick(), .job = job};
    fh_clustering c = {.v = (uint32_t)w.v, .d = (uint32_t)w.d, .k = p->k, .cap = (uint32_t)((w.v + p->k - 1) / p->k)};
    if ((rc = prepare(&w, dead, err)) < 0) goto out;
    w.elsewhere = (fh_elsewhere){p->device, w.x, w.n, false};
    if (!(w.centre = fh_aligned(w.k * w.ld * sizeof *w.centre)) || (starts > 1 && !(best = fh_malloc(w.n * sizeof *best)))) {
        rc = fh_fail(err, FH_ENOMEM, "clustering: out of memory for %zu centres of %zu", w.k, w.d);
        goto out;
    }
    for (unsigned i = 0; i < starts && !c.interrupted; i++) {
        if (i && (c.spent = p->budget > 0 && fh_now() - began >= p->budget)) break;
        if (starts > 1) fh_job_say(job, FH_INFO, "start %u of %u (seed %llu)", i + 1, starts, (unsigned long long)(p->seed + i));
        if ((rc = one_start(&w, p, p->seed + i, began, &refined, err)) < 0) goto out;
        c.interrupted = refined.stopped, c.spent = refined.spent;
        double gain = fh_work_gain(&w);
        if (i && !(gain > most)) continue;
        most = gain, c.rounds = refined.rounds, c.swaps = refined.swaps, c.seed = p->seed + i;
        if (best) memcpy(best, w.home, w.n * sizeof *best);
    }
    if (best) memcpy(w.home, best, w.n * sizeof *best);
    c.assignment = fh_malloc(w.v * sizeof *c.assignment);
    fillers = fh_malloc(w.k * sizeof *fillers);
    if (!c.assignment || !fillers) {
        rc = fh_fail(err, FH_ENOMEM, "clustering: out of memory for the assignment of %zu tokens", w.v);
        goto out;
    }
    assign(c.assignment, &w, fillers);
    fh_free(w.x); /* the large copy of the rows goes before the centroids come */
    fh_free(w.centre);
    w.x = w.centre = NULL;
    if ((rc = fh_centroids_of(&c, head, w.norm, job, err)) < 0) goto out;
    *out = c;
    c = (fh_clustering){0};
out:
    fh_free(fillers);
    fh_free(best);
    work_free(&w);
    fh_clustering_free(&c);
    return rc;
}
