/* What a head holds of the dense head, position by position. */
#include "calib/calib.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum { BLOCK = 64, TOP = 10, FIELDS = 7 };

/* ---- gathering states --------------------------------------------------------------------------------------- */

static void gather(float *to, const float *states, const size_t *positions, size_t from, size_t n, size_t d)
{
    for (size_t i = 0; i < n; i++) memcpy(to + i * d, states + (positions ? positions[from + i] : from + i) * d, d * sizeof *to);
}

/* ---- the dense head's best ------------------------------------------------------------------------------------ */

/* The k best of n logits, dead ones left out; equal logits: the smaller id.  k is small: an insertion into a sorted list. */
static void best_of(const float *z, size_t n, const uint8_t *dead, size_t k, uint32_t *ids, float *logits)
{
    size_t have = 0;
    for (size_t t = 0; t < n; t++) {
        if ((have == k && !(z[t] > logits[k - 1])) || (dead && dead[t])) continue;
        size_t at = have < k ? have++ : k - 1;
        for (; at && z[t] > logits[at - 1]; at--) logits[at] = logits[at - 1], ids[at] = ids[at - 1];
        logits[at] = z[t], ids[at] = (uint32_t)t;
    }
    for (; have < k; have++) logits[have] = -INFINITY, ids[have] = FH_NO_TOKEN;
}

typedef struct best_job { const fh_dense *dense; const float *z; size_t k; uint32_t *ids; } best_job;
static void best_task(void *ctx, size_t i, unsigned worker)
{
    best_job *b = ctx;
    float logits[FH_MAX_TOP];
    best_of(b->z + i * b->dense->vocab, b->dense->vocab, b->dense->dead, b->k, b->ids + i * b->k, logits);
    (void)worker;
}

fh_status fh_dense_best(const fh_dense *dense, const float *states, const size_t *positions, size_t n, size_t k, uint32_t *ids, const fh_job *job, fh_err *err)
{
    fh_status rc = FH_OK;
    size_t d = dense->rows.cols;
    if (k < 1 || k > FH_MAX_TOP) return fh_fail(err, FH_EUSAGE, "top-k %zu is out of range (1..%d)", k, FH_MAX_TOP);
    float *h = fh_malloc(BLOCK * d * sizeof *h), *z = fh_malloc((size_t)BLOCK * dense->vocab * sizeof *z);
    if (!h || !z) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    for (size_t at = 0; at < n; at += BLOCK) {
        size_t m = fh_min(BLOCK, n - at);
        if (fh_job_stopped(job)) { rc = fh_fail(err, FH_EINTERRUPTED, "interrupted"); goto out; }
        gather(h, states, positions, at, m, d);
        if ((rc = fh_dense_logits(dense, fh_job_pool(job), h, m, z, err)) < 0) goto out;
        best_job b = {dense, z, k, ids + at * k};
        fh_pool_run(fh_job_pool(job), m, best_task, &b);
        fh_job_progress(job, "the dense head", (double)(at + m), (double)n, "positions");
    }
out:
    fh_free(h);
    fh_free(z);
    return rc;
}

/* ---- ranks ------------------------------------------------------------------------------------------------- */

typedef struct rank_job { const fh_head *head; const float *scores; size_t k; const uint32_t *ids; uint32_t *ranks; } rank_job;
static void rank_task(void *ctx, size_t i, unsigned worker)
{
    rank_job *r = ctx;
    const fh_head_parts *p = fh_head_get_parts(r->head);
    const uint32_t *slots = fh_head_slots(r->head);
    const float *s = r->scores + i * p->clusters;
    for (size_t j = 0; j < r->k; j++) {
        uint32_t id = r->ids[i * r->k + j], rank = 0;
        if (id == FH_NO_TOKEN) { r->ranks[i * r->k + j] = 0; continue; }
        uint32_t own = slots[id] / p->cap;
        for (uint32_t c = 0; c < own; c++) rank += s[c] >= s[own];
        for (uint32_t c = own + 1; c < p->clusters; c++) rank += s[c] > s[own];
        r->ranks[i * r->k + j] = rank;
    }
    (void)worker;
}

fh_status fh_cluster_ranks(const fh_head *head, const float *states, const size_t *positions, size_t n, size_t k, const uint32_t *ids, uint32_t *ranks,
                           const fh_job *job, fh_err *err)
{
    fh_status rc = FH_OK;
    const fh_head_parts *p = fh_head_get_parts(head);
    size_t d = p->hidden;
    float *h = fh_malloc(BLOCK * d * sizeof *h), *s = fh_malloc((size_t)BLOCK * p->clusters * sizeof *s);
    if (!h || !s) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    for (size_t at = 0; at < n; at += BLOCK) {
        size_t m = fh_min(BLOCK, n - at);
        if (fh_job_stopped(job)) { rc = fh_fail(err, FH_EINTERRUPTED, "interrupted"); goto out; }
        gather(h, states, positions, at, m, d);
        if ((rc = fh_head_cluster_scores(head, fh_job_pool(job), h, m, s, err)) < 0) goto out;
        rank_job r = {head, s, k, ids + at * k, ranks + at * k};
        fh_pool_run(fh_job_pool(job), m, rank_task, &r);
        fh_job_progress(job, "ranking clusters", (double)(at + m), (double)n, "positions");
    }
out:
    fh_free(h);
    fh_free(s);
    return rc;
}

/* ---- curves ------------------------------------------------------------------------------------------------ */

/* Clusters by falling score, equal scores by rising number: a stable radix sort on the bits of the score, 11 at a time. */
static void order_clusters(const float *score, uint32_t n, uint32_t *order, uint32_t *key, uint32_t *order2, uint32_t *key2)
{
    uint32_t count[3][2049] = {{0}};
    for (uint32_t i = 0; i < n; i++) {
        uint32_t u;
        float s = score[i] + 0.0f; /* -0 ranks with 0, as comparing says */
        memcpy(&u, &s, 4);
        u = u & 0x80000000u ? u : ~u & 0x7fffffffu; /* falling order of the numbers as rising order of the keys */
        key[i] = u, order[i] = i;
        for (int b = 0; b < 3; b++) count[b][(u >> (11 * b) & 2047) + 1]++;
    }
    for (int b = 0; b < 3; b++) {
        for (int j = 0; j < 2048; j++) count[b][j + 1] += count[b][j];
        for (uint32_t i = 0; i < n; i++) {
            uint32_t to = count[b][key[i] >> (11 * b) & 2047]++;
            key2[to] = key[i], order2[to] = order[i];
        }
        uint32_t *t = key; key = key2; key2 = t;
        t = order; order = order2; order2 = t;
    }
    memcpy(order2, order, n * sizeof *order); /* three passes end in the other pair: bring the answer back */
}

/* A candidate that is scored again: one that drops out of the R best as P grows never comes back. */
typedef struct again { float logit, exact; uint32_t id; bool known; } again;
typedef struct curve_job {
    const fh_head *head;
    const fh_dense *dense;
    bool no_hot;
    const float *h, *z, *s, *f;   /* [BLOCK, D], [BLOCK, V], [BLOCK, K], [BLOCK, slots] */
    const fh_point *points; size_t n_points;
    const uint8_t *fixed;         /* [V] 1: a candidate whatever the probes are */
    uint32_t *work;               /* [workers, 4 K] */
    again *again;                 /* [workers, R] */
    double *out;                  /* [BLOCK, n_points, FIELDS] */
    bool bad[BLOCK];
} curve_job;

/* What the candidates so far hold, by their encoded logits f: e = sum exp(f - m), ed = sum exp(f - m)(f - z). */
typedef struct tally {
    double mass, e, ed;
    again *again; size_t n, most; /* the R best, best first */
    float best; uint32_t best_id; /* of the others */
} tally;

static bool better(float a, uint32_t a_id, float b, uint32_t b_id) { return a > b || (a == b && a_id < b_id); }

static void count_token(tally *t, uint32_t id, float f, float z, double lse, float m)
{
    if (f == -INFINITY) return;
    double e = exp((double)f - m);
    t->mass += exp((double)z - lse);
    t->e += e, t->ed += e * ((double)f - z);
    if (t->n == t->most) { /* full: the worst of these gives way */
        again *last = t->n ? &t->again[t->n - 1] : NULL;
        bool in = last && better(f, id, last->logit, last->id);
        float out = in ? last->logit : f;
        uint32_t out_id = in ? last->id : id;
        if (better(out, out_id, t->best, t->best_id)) t->best = out, t->best_id = out_id;
        if (!in) return;
        t->n--;
    }
    size_t at = t->n++;
    for (; at && better(f, id, t->again[at - 1].logit, t->again[at - 1].id); at--) t->again[at] = t->again[at - 1];
    t->again[at] = (again){.logit = f, .id = id};
}

/* The answer with these candidates, and the sums with exact logits where they take the place of encoded ones. */
static uint32_t answer(tally *t, const fh_head *head, const float *state, const float *z, float m, double *e, double *ed)
{
    float best = t->best;
    uint32_t best_id = t->best_id;
    *e = t->e, *ed = t->ed;
    for (size_t i = 0; i < t->n; i++) {
        again *a = &t->again[i];
        if (!a->known) fh_head_exact_logits(head, state, &a->id, 1, &a->exact), a->known = true;
        double now = exp((double)a->exact - m), was = exp((double)a->logit - m);
        *e += now - was, *ed += now * ((double)a->exact - z[a->id]) - was * ((double)a->logit - z[a->id]);
        if (better(a->exact, a->id, best, best_id)) best = a->exact, best_id = a->id;
    }
    return best_id;
}

static void curve_task(void *ctx, size_t i, unsigned worker)
{
    curve_job *c = ctx;
    const fh_head_parts *p = fh_head_get_parts(c->head);
    const uint32_t *slots = fh_head_slots(c->head), *perm = p->permutation;
    const uint8_t *dead = fh_head_dead_map(c->head);
    size_t n_slots = (size_t)p->clusters * p->cap;
    const float *z = c->z + i * p->vocab, *f = c->f + i * n_slots, *s = c->s + i * p->clusters;
    uint32_t *order = c->work + (size_t)worker * 4 * p->clusters, *key = order + p->clusters, *order2 = key + p->clusters, *key2 = order2 + p->clusters;
    uint32_t top[TOP], rank[TOP], need[TOP];
    float logits[TOP], m = -INFINITY;
    best_of(z, p->vocab, dead, TOP, top, logits);
    order_clusters(s, p->clusters, order, key, order2, key2);
    double lse = 0;
    for (uint32_t t = 0; t < p->vocab; t++) if (!dead[t]) lse += exp((double)z[t] - logits[0]);
    lse = log(lse) + logits[0];
    for (size_t j = 0; j < n_slots; j++) if (f[j] > m) m = f[j];
    c->bad[i] = !(isfinite(lse) && isfinite(m));
    if (c->bad[i]) return;
    /* how many probes it takes until the first j + 1 of the dense head's best are candidates */
    for (uint32_t r = 0; r < p->clusters; r++) key[order[r]] = r;
    for (size_t j = 0, most = 0; j < TOP; j++) {
        rank[j] = top[j] == FH_NO_TOKEN || c->fixed[top[j]] ? 0 : key[slots[top[j]] / p->cap] + 1;
        most = fh_max(most, rank[j]), need[j] = (uint32_t)most;
    }
    tally t = {.again = c->again + worker * p->rerank, .most = p->rerank, .best = -INFINITY, .best_id = FH_NO_TOKEN};
    for (uint32_t id = 0; id < p->vocab; id++)
        if (c->fixed[id]) count_token(&t, id, f[slots[id]], z[id], lse, m);
    uint32_t done = 0;
    for (size_t q = 0; q < c->n_points; q++) {
        uint32_t probes = c->points[q].probes < p->clusters ? c->points[q].probes : p->clusters;
        for (; done < probes; done++) {
            size_t slot = (size_t)order[done] * p->cap;
            for (size_t j = slot; j < slot + p->cap; j++)
                if (perm[j] != FH_NO_TOKEN && !c->fixed[perm[j]]) count_token(&t, perm[j], f[j], z[perm[j]], lse, m);
        }
        double *o = c->out + (i * c->n_points + q) * FIELDS, e, ed;
        uint32_t best = answer(&t, c->head, c->h + i * p->hidden, z, m, &e, &ed);
        double kl = e > 0 ? ed / e - (log(e) + m) + lse : INFINITY;
        o[0] = need[0] <= probes, o[1] = need[2] <= probes, o[2] = need[4] <= probes, o[3] = need[9] <= probes;
        o[4] = best == top[0], o[5] = fmin(t.mass, 1), o[6] = fmax(kl, 0);
    }
}

static int by_probes(const fh_point *a, const fh_point *b) { return (a->probes > b->probes) - (a->probes < b->probes); }

fh_status fh_curve(const fh_head *head, const fh_dense *dense, const float *states, const size_t *positions, size_t n, bool no_hot,
                   fh_point *points, size_t n_points, const fh_job *job, fh_err *err)
{
    fh_status rc = FH_OK;
    const fh_head_parts *p = fh_head_get_parts(head);
    size_t d = p->hidden, slots = (size_t)p->clusters * p->cap;
    unsigned workers = fh_pool_threads(fh_job_pool(job));
    curve_job c = {.head = head, .dense = dense, .no_hot = no_hot, .points = points, .n_points = n_points};
    float *h = fh_malloc(BLOCK * d * sizeof *h), *z = fh_malloc((size_t)BLOCK * p->vocab * sizeof *z), *s = fh_malloc((size_t)BLOCK * p->clusters * sizeof *s);
    float *f = fh_malloc(BLOCK * slots * sizeof *f);
    uint8_t *fixed = fh_calloc(p->vocab, 1);
    double *sum = fh_calloc(n_points * FIELDS + 1, sizeof *sum);
    c.out = fh_malloc((BLOCK * n_points * FIELDS + 1) * sizeof *c.out);
    c.work = fh_malloc((size_t)workers * 4 * p->clusters * sizeof *c.work);
    c.again = fh_malloc((workers * p->rerank + 1) * sizeof *c.again);
    if (!h || !z || !s || !f || !fixed || !sum || !c.out || !c.work || !c.again) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    for (size_t q = 1; q < n_points; q++) /* walking the clusters once needs rising P */
        if (by_probes(&points[q - 1], &points[q]) > 0) { rc = fh_fail(err, FH_EUSAGE, "the numbers of probes of a curve must rise"); goto out; }
    for (size_t i = 0; i < p->n_always; i++) fixed[p->always[i]] = 1;
    for (size_t i = 0; i < p->n_hot && !no_hot; i++) fixed[p->hot[i]] = 1;
    c.h = h, c.z = z, c.s = s, c.f = f, c.fixed = fixed;
    for (size_t at = 0; at < n; at += BLOCK) {
        size_t m = fh_min(BLOCK, n - at);
        if (fh_job_stopped(job)) { rc = fh_fail(err, FH_EINTERRUPTED, "interrupted"); goto out; }
        gather(h, states, positions, at, m, d);
        if ((rc = fh_dense_logits(dense, fh_job_pool(job), h, m, z, err)) < 0) goto out;
        if ((rc = fh_head_cluster_scores(head, fh_job_pool(job), h, m, s, err)) < 0) goto out;
        if ((rc = fh_head_slot_logits(head, fh_job_pool(job), h, m, f, err)) < 0) goto out;
        fh_pool_run(fh_job_pool(job), m, curve_task, &c);
        for (size_t i = 0; i < m; i++) {
            if (c.bad[i]) { rc = fh_fail(err, FH_ECHECK, "the logits of position %zu are not finite", at + i); goto out; }
            for (size_t q = 0; q < n_points * FIELDS; q++) sum[q] += c.out[i * n_points * FIELDS + q];
        }
        fh_job_progress(job, "measuring", (double)(at + m), (double)n, "positions");
    }
    for (size_t q = 0; q < n_points; q++) {
        const double *o = sum + q * FIELDS;
        double share = n ? 1 / (double)n : 0;
        points[q] = (fh_point){points[q].probes, o[0] * share, o[1] * share, o[2] * share, o[3] * share, o[4] * share, o[5] * share, o[6] * share};
    }
out:
    fh_free(h);
    fh_free(z);
    fh_free(s);
    fh_free(f);
    fh_free(fixed);
    fh_free(sum);
    fh_free(c.out);
    fh_free(c.work);
    fh_free(c.again);
    return rc;
}
