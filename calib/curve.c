/* What a head holds of the dense head, position by position. */
#include "calib/promise.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum { BLOCK = 64, TOP = 10 };

/* ---- gathering states --------------------------------------------------------------------------------------- */

static void gather(float *to, const float *states, const size_t *positions, size_t from, size_t n, size_t d)
{
    for (size_t i = 0; i < n; i++) memcpy(to + i * d, states + (positions ? positions[from + i] : from + i) * d, d * sizeof *to);
}

/* ---- the dense head's best ------------------------------------------------------------------------------------ */

/* The k best of n logits, dead ones and what is no number left out; equal logits: the smaller id.  k is small: an insertion into a sorted list. */
static void best_of(const float *z, size_t n, const uint8_t *dead, size_t k, uint32_t *ids, float *logits)
{
    size_t have = 0;
    for (size_t t = 0; t < n; t++) {
        if ((have == k && !(z[t] > logits[k - 1])) || isnan(z[t]) || (dead && dead[t])) continue;
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
    fh_matrix rows = {0};
    float *h = NULL, *z = NULL;
    if ((rc = fh_matrix_of_dense(&rows, dense, err)) < 0) goto out;
    bool there = fh_matrix_seeks(&rows, k);
    h = fh_malloc(BLOCK * d * sizeof *h), z = there ? NULL : fh_malloc((size_t)BLOCK * dense->vocab * sizeof *z);
    if (!h || (!z && !there)) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    for (size_t at = 0; at < n; at += BLOCK) {
        size_t m = fh_min(BLOCK, n - at);
        if (fh_job_stopped(job)) { rc = fh_fail(err, FH_EINTERRUPTED, "interrupted"); goto out; }
        gather(h, states, positions, at, m, d);
        best_job b = {dense, z, k, ids + at * k};
        if (there) rc = fh_matrix_best(&rows, h, m, k, b.ids, err);
        else if ((rc = fh_matrix_multiply(&rows, fh_job_pool(job), h, m, z, err)) == FH_OK) fh_pool_run(fh_job_pool(job), m, best_task, &b);
        if (rc < 0) goto out;
        fh_job_progress(job, "the dense head", (double)(at + m), (double)n, "positions");
    }
out:
    fh_matrix_close(&rows);
    fh_free(h);
    fh_free(z);
    return rc;
}

/* ---- ranks ------------------------------------------------------------------------------------------------- */

/* What fh_matrix_ranks says, from scores [m, K]. */
typedef struct rank_job { const float *scores; size_t clusters; bool through_bf16; fh_cluster_ranks_of of; } rank_job;
static void rank_task(void *ctx, size_t i, unsigned worker)
{
    rank_job *r = ctx;
    const float *s = r->scores + i * r->clusters;
    float best = s[0];
    for (size_t c = 1; c < r->clusters; c++) if (s[c] > best) best = s[c];
    r->of.top[i] = best;
    bool unsure = r->through_bf16; /* scores are often equal there, and which of equals is probed is not said: count the worst */
    for (size_t j = i * r->of.k; j < (i + 1) * r->of.k; j++) {
        uint32_t own = r->of.of[j], rank = 0;
        r->of.ranks[j] = 0, r->of.scores[j] = -INFINITY;
        if (own == FH_NO_TOKEN) continue;
        for (uint32_t c = 0; c < own; c++) rank += s[c] >= s[own];
        for (uint32_t c = own + 1; c < r->clusters; c++) rank += unsure ? s[c] >= s[own] : s[c] > s[own];
        r->of.ranks[j] = rank, r->of.scores[j] = s[own];
    }
    (void)worker;
}

/* What a block of positions is ranked with. */
typedef struct ranking { fh_matrix centroids; float *h, *s, *scores, top[BLOCK]; uint32_t *own; size_t k; bool there; } ranking; /* own, scores [BLOCK, k] */

static fh_status ranking_open(ranking *r, const fh_head *head, const fh_dots_device *device, size_t k, fh_err *err)
{
    const fh_head_parts *p = fh_head_get_parts(head);
    fh_status rc = fh_matrix_of_head(&r->centroids, head, false, device, err);
    if (rc < 0) return rc;
    r->k = k, r->there = fh_matrix_seeks(&r->centroids, k);
    r->h = fh_malloc(BLOCK * (size_t)p->hidden * sizeof *r->h), r->s = r->there ? NULL : fh_malloc((size_t)BLOCK * p->clusters * sizeof *r->s);
    r->own = fh_malloc(BLOCK * k * sizeof *r->own), r->scores = fh_malloc(BLOCK * k * sizeof *r->scores);
    return r->h && (r->s || r->there) && r->own && r->scores ? FH_OK : fh_fail(err, FH_ENOMEM, "out of memory");
}

static void ranking_close(ranking *r)
{
    fh_matrix_close(&r->centroids);
    fh_free(r->h);
    fh_free(r->s);
    fh_free(r->own);
    fh_free(r->scores);
}

/* ranks [m, k] of the clusters r->own, with r->scores and r->top. */
static fh_status rank_block(ranking *r, size_t m, uint32_t *ranks, fh_pool *pool, fh_err *err)
{
    rank_job j = {.scores = r->s, .of = {.k = r->k, .of = r->own, .ranks = ranks, .scores = r->scores, .top = r->top}};
    if (r->there) return fh_matrix_ranks(&r->centroids, r->h, m, &j.of, err);
    const fh_head_parts *p = fh_head_get_parts(r->centroids.head);
    fh_status rc = fh_matrix_multiply(&r->centroids, pool, r->h, m, r->s, err);
    j.clusters = p->clusters, j.through_bf16 = p->through_bf16;
    if (rc == FH_OK) fh_pool_run(pool, m, rank_task, &j);
    return rc;
}

fh_status fh_cluster_ranks(const fh_head *head, const fh_dots_device *device, const fh_ladder *ladder, const float *states, const size_t *positions, size_t n,
                           size_t k, const uint32_t *ids, uint32_t *ranks, uint32_t *steps, const fh_job *job, fh_err *err)
{
    ranking r = {0};
    const fh_head_parts *p = fh_head_get_parts(head);
    const uint32_t *slots = fh_head_slots(head);
    fh_status rc = ranking_open(&r, head, device, k, err);
    for (size_t at = 0; rc == FH_OK && at < n; at += BLOCK) {
        size_t m = fh_min(BLOCK, n - at), first = at * k;
        if (fh_job_stopped(job)) { rc = fh_fail(err, FH_EINTERRUPTED, "interrupted"); break; }
        gather(r.h, states, positions, at, m, p->hidden);
        for (size_t i = 0; i < m * k; i++) r.own[i] = ids[first + i] == FH_NO_TOKEN ? FH_NO_TOKEN : slots[ids[first + i]] / p->cap;
        if ((rc = rank_block(&r, m, ranks + first, fh_job_pool(job), err)) < 0) break;
        for (size_t i = 0; steps && i < m * k; i++) steps[first + i] = ranks[first + i] ? fh_ladder_step(ladder, r.top[i / k] - r.scores[i]) : 0;
        fh_job_progress(job, "ranking clusters", (double)(at + m), (double)n, "positions");
    }
    ranking_close(&r);
    return rc;
}

/* ---- measuring ---------------------------------------------------------------------------------------------- */

/* A stable radix sort on the bits of the score, 11 at a time. */
void fh_order_clusters(const float *score, uint32_t n, uint32_t *order, uint32_t *key, uint32_t *order2, uint32_t *key2)
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

/* The dense head at one position. */
typedef struct truth { double lse, entropy; float margin; bool bad; } truth;

typedef struct observing {
    const fh_dense *dense;
    const fh_lens *lenses; size_t n_lenses;
    size_t top, seen_each;        /* of the dense head's best; sum of n_probes over lenses */
    double backoff;
    float *h, *z, *s, *f;         /* [BLOCK, D], [BLOCK, V], [BLOCK, most K], [BLOCK, most slots] */
    uint32_t *best, *need;        /* [BLOCK, top], [BLOCK, lenses, top] */
    truth *truth;                 /* [BLOCK] */
    fh_seen *seen;                /* [BLOCK, seen_each] */
    fh_matrix rows;               /* of the dense head */
    struct lens_rows { fh_matrix centroids, slots; } *seen_by; /* [lenses]; what a lens has no use for is left empty */
    uint8_t **fixed;              /* [lenses] -> [V] 1: a candidate whatever the probes are */
    size_t most_clusters, most_again;
    uint32_t *work;               /* [workers, 4 K] */
    again *again;                 /* [workers, R] */
    size_t lens, seen_at;         /* the one under way, and where its results begin */
} observing;

enum { EXPS = 128 }; /* at a time */

static void truth_task(void *ctx, size_t i, unsigned worker)
{
    observing *c = ctx;
    size_t vocab = c->dense->vocab;
    const float *z = c->z + i * vocab;
    const uint8_t *dead = c->dense->dead;
    float logits[FH_MAX_TOP];
    double sum = 0, first = 0;
    best_of(z, vocab, dead, c->top, c->best + i * c->top, logits);
    for (size_t from = 0, n; from < vocab; from += n) {
        double e[EXPS];
        n = fh_min(EXPS, vocab - from);
        fh_exp_each(e, z + from, n, logits[0]);
        for (size_t t = 0; t < n; t++) {
            if (dead && dead[from + t]) continue;
            sum += e[t], first += e[t] * ((double)z[from + t] - logits[0]);
        }
    }
    c->truth[i] = (truth){.lse = log(sum) + logits[0], .entropy = fmax(log(sum) - first / sum, 0), .margin = c->top > 1 ? logits[0] - logits[1] : 0};
    c->truth[i].bad = !isfinite(c->truth[i].lse);
    (void)worker;
}

/* What the candidates so far hold, by their own logits f: e = sum exp(f - m), ed = sum exp(f - m)(f - z), pf = sum p f with p of the dense head. */
typedef struct tally {
    double mass, e, ed, pf;
    size_t count;
    again *again; size_t n, most; /* the R best, best first */
    float best; uint32_t best_id; /* of the others */
} tally;

static bool better(float a, uint32_t a_id, float b, uint32_t b_id) { return a > b || (a == b && a_id < b_id); }

/* e = exp(f - m), p of the dense head. */
static void count_token(tally *t, uint32_t id, float f, float z, double e, double p)
{
    if (f == -INFINITY) return;
    t->mass += p, t->pf += p * (double)f, t->count++;
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

/* Tokens ids [n], n <= EXPS, with f [n]; FH_NO_TOKEN is none, and those of `but` [V] (or NULL) are not counted. */
static void count_tokens(tally *t, const uint32_t *ids, const float *f, size_t n, const uint8_t *but, const float *z, double lse, float m)
{
    double e[EXPS], p[EXPS];
    float dense[EXPS];
    for (size_t i = 0; i < n; i++) dense[i] = ids[i] == FH_NO_TOKEN ? -INFINITY : z[ids[i]];
    fh_exp_each(e, f, n, m);
    fh_exp_each(p, dense, n, lse);
    for (size_t i = 0; i < n; i++)
        if (ids[i] != FH_NO_TOKEN && !(but && but[ids[i]])) count_token(t, ids[i], f[i], dense[i], e[i], p[i]);
}

/* The answer with these candidates, exact logits in the place of encoded ones where they are scored again. */
static fh_seen answer(tally *t, const observing *c, const fh_head *head, const float *state, const float *z, const truth *is, float m, size_t live)
{
    fh_seen seen = {.best = t->best_id};
    float best = t->best;
    double e = t->e, ed = t->ed, pf = t->pf;
    for (size_t i = 0; i < t->n; i++) {
        again *a = &t->again[i];
        if (!a->known) fh_head_exact_logits(head, state, &a->id, 1, &a->exact), a->known = true;
        double now = exp((double)a->exact - m), was = exp((double)a->logit - m);
        e += now - was, ed += now * ((double)a->exact - z[a->id]) - was * ((double)a->logit - z[a->id]);
        pf += exp((double)z[a->id] - is->lse) * ((double)a->exact - (double)a->logit);
        if (better(a->exact, a->id, best, seen.best)) best = a->exact, seen.best = a->id;
    }
    double lse = log(e) + m, others = (double)(live - fh_min(t->count, live)), rest = fmax(1 - t->mass, 0), log_q = pf - t->mass * lse;
    if (others > 0) log_q += t->mass * log1p(-c->backoff) + rest * log(c->backoff / others);
    seen.mass = fmin(t->mass, 1);
    seen.kl = e > 0 ? fmax(ed / e - lse + is->lse, 0) : INFINITY;
    seen.kl_dense = e > 0 ? fmax(-is->entropy - log_q, 0) : INFINITY;
    return seen;
}

/* Clusters scored by the probability that the dense head gives to their tokens. */
static void score_by_mass(float *s, const fh_head_parts *p, const uint8_t *dead, const float *z, double lse)
{
    for (uint32_t k = 0; k < p->clusters; k++) {
        double mass = 0;
        for (size_t j = (size_t)k * p->cap; j < ((size_t)k + 1) * p->cap; j++)
            if (p->permutation[j] != FH_NO_TOKEN && !dead[p->permutation[j]]) mass += exp((double)z[p->permutation[j]] - lse);
        s[k] = (float)mass;
    }
}

static void lens_task(void *ctx, size_t i, unsigned worker)
{
    observing *c = ctx;
    const fh_lens *v = &c->lenses[c->lens];
    const fh_head_parts *p = fh_head_get_parts(v->head);
    const uint32_t *slots = fh_head_slots(v->head), *perm = p->permutation, *top = c->best + i * c->top;
    const uint8_t *fixed = c->fixed[c->lens], *dead = fh_head_dead_map(v->head);
    size_t n_slots = (size_t)p->clusters * p->cap;
    const float *z = c->z + i * p->vocab, *h = c->h + i * p->hidden;
    truth *is = &c->truth[i];
    float *s = c->s + i * p->clusters, *f = c->f + i * n_slots, m = -INFINITY;
    uint32_t *order = c->work + (size_t)worker * 4 * c->most_clusters, *key = order + p->clusters, *order2 = key + p->clusters, *key2 = order2 + p->clusters;
    uint32_t *need = c->need + (i * c->n_lenses + c->lens) * c->top;
    if (is->bad) return;
    if (v->by_mass) score_by_mass(s, p, dead, z, is->lse);
    for (size_t j = 0; j < n_slots && v->exact_rows; j++) f[j] = perm[j] != FH_NO_TOKEN && !dead[perm[j]] ? z[perm[j]] : -INFINITY;
    for (size_t j = 0; j < n_slots; j++) if (f[j] > m) m = f[j];
    if ((is->bad = !isfinite(m))) return;
    fh_order_clusters(s, p->clusters, order, key, order2, key2);
    for (uint32_t r = 0; r < p->clusters; r++) key[order[r]] = r;
    for (size_t j = 0, most = 0; j < c->top; j++) {
        most = fh_max(most, top[j] == FH_NO_TOKEN || fixed[top[j]] ? 0 : key[slots[top[j]] / p->cap] + 1);
        need[j] = (uint32_t)most;
    }
    tally t = {.again = c->again + worker * c->most_again, .most = v->exact_rows || v->no_rerank ? 0 : p->rerank, .best = -INFINITY, .best_id = FH_NO_TOKEN};
    for (uint32_t id = 0; id < p->vocab; id++)
        if (fixed[id]) count_tokens(&t, &id, f + slots[id], 1, NULL, z, is->lse, m);
    uint32_t done = 0;
    for (size_t q = 0; q < v->n_probes; q++) {
        uint32_t probes = v->probes[q] < p->clusters ? v->probes[q] : p->clusters;
        float threshold = v->thresholds ? v->thresholds[q] : 0;
        for (; done < probes; done++) {
            if (threshold > 0 && done && !fh_is_close(s[order[0]], s[order[done]], threshold)) break;
            size_t slot = (size_t)order[done] * p->cap;
            for (size_t j = slot; j < slot + p->cap; j += EXPS)
                count_tokens(&t, perm + j, f + j, fh_min(EXPS, slot + p->cap - j), fixed, z, is->lse, m);
        }
        fh_seen *seen = &c->seen[i * c->seen_each + c->seen_at + q];
        *seen = answer(&t, c, v->head, h, z, is, m, p->vocab - p->n_dead), seen->probed = done;
    }
}

static fh_status observing_open(observing *c, unsigned workers, fh_err *err)
{
    size_t slots = 1, d = c->dense->rows.cols, vocab = c->dense->vocab;
    c->most_clusters = c->most_again = 1;
    if (c->top < 1 || c->top > FH_MAX_TOP) return fh_fail(err, FH_EUSAGE, "top-k %zu is out of range (1..%d)", c->top, FH_MAX_TOP);
    for (size_t i = 0; i < c->n_lenses; i++) {
        const fh_lens *v = &c->lenses[i];
        const fh_head_parts *p = fh_head_get_parts(v->head);
        for (size_t q = 1; q < v->n_probes; q++) /* walking the clusters once needs rising P */
            if (v->probes[q - 1] > v->probes[q] ||
                (v->thresholds && (!(v->thresholds[q - 1] <= v->thresholds[q]) || (v->thresholds[q - 1] > 0) != (v->thresholds[q] > 0))))
                return fh_fail(err, FH_EUSAGE, "the numbers of probes of a curve, and its thresholds, must rise, these all or none above 0");
        if (p->vocab != vocab || p->hidden != d)
            return fh_fail(err, FH_EUSAGE, "a head of %u tokens and width %u beside a dense head of %zu and %zu", p->vocab, p->hidden, vocab, d);
        slots = fh_max(slots, (size_t)p->clusters * p->cap);
        c->most_clusters = fh_max(c->most_clusters, p->clusters), c->most_again = fh_max(c->most_again, p->rerank);
        c->seen_each += v->n_probes;
    }
    c->h = fh_malloc(BLOCK * d * sizeof *c->h), c->z = fh_malloc(BLOCK * vocab * sizeof *c->z);
    c->s = fh_malloc(BLOCK * c->most_clusters * sizeof *c->s), c->f = fh_malloc(BLOCK * slots * sizeof *c->f);
    c->best = fh_malloc(BLOCK * c->top * sizeof *c->best), c->need = fh_malloc((BLOCK * c->n_lenses * c->top + 1) * sizeof *c->need);
    c->truth = fh_malloc(BLOCK * sizeof *c->truth), c->seen = fh_malloc((BLOCK * c->seen_each + 1) * sizeof *c->seen);
    c->work = fh_malloc(workers * 4 * c->most_clusters * sizeof *c->work), c->again = fh_malloc(workers * c->most_again * sizeof *c->again);
    c->fixed = fh_calloc(c->n_lenses + 1, sizeof *c->fixed), c->seen_by = fh_calloc(c->n_lenses + 1, sizeof *c->seen_by);
    if (!c->h || !c->z || !c->s || !c->f || !c->best || !c->need || !c->truth || !c->seen || !c->work || !c->again || !c->fixed || !c->seen_by)
        return fh_fail(err, FH_ENOMEM, "out of memory");
    fh_status rc = fh_matrix_of_dense(&c->rows, c->dense, err);
    for (size_t i = 0; i < c->n_lenses && rc == FH_OK; i++) {
        const fh_lens *v = &c->lenses[i];
        if (!v->by_mass) rc = fh_matrix_of_head(&c->seen_by[i].centroids, v->head, false, c->dense->device, err);
        if (rc == FH_OK && !v->exact_rows) rc = fh_matrix_of_head(&c->seen_by[i].slots, v->head, true, c->dense->device, err);
    }
    if (rc < 0) return rc;
    for (size_t i = 0; i < c->n_lenses; i++) {
        const fh_head_parts *p = fh_head_get_parts(c->lenses[i].head);
        if (!(c->fixed[i] = fh_calloc(vocab, 1))) return fh_fail(err, FH_ENOMEM, "out of memory");
        for (size_t j = 0; j < p->n_always; j++) c->fixed[i][p->always[j]] = 1;
        for (size_t j = 0; j < p->n_hot && !c->lenses[i].no_hot; j++) c->fixed[i][p->hot[j]] = 1;
    }
    return FH_OK;
}

static void observing_close(observing *c)
{
    for (size_t i = 0; c->fixed && i < c->n_lenses; i++) fh_free(c->fixed[i]);
    for (size_t i = 0; c->seen_by && i < c->n_lenses; i++) fh_matrix_close(&c->seen_by[i].centroids), fh_matrix_close(&c->seen_by[i].slots);
    fh_matrix_close(&c->rows);
    fh_free(c->seen_by);
    fh_free(c->h);
    fh_free(c->z);
    fh_free(c->s);
    fh_free(c->f);
    fh_free(c->best);
    fh_free(c->need);
    fh_free(c->truth);
    fh_free(c->seen);
    fh_free(c->work);
    fh_free(c->again);
    fh_free(c->fixed);
}

static fh_status measure_block(observing *c, size_t m, const fh_job *job, fh_err *err)
{
    fh_pool *pool = fh_job_pool(job);
    fh_status rc = fh_matrix_multiply(&c->rows, pool, c->h, m, c->z, err);
    if (rc < 0) return rc;
    fh_pool_run(pool, m, truth_task, c);
    for (c->lens = c->seen_at = 0; c->lens < c->n_lenses; c->seen_at += c->lenses[c->lens++].n_probes) {
        const fh_lens *v = &c->lenses[c->lens];
        if (!v->by_mass && (rc = fh_matrix_multiply(&c->seen_by[c->lens].centroids, pool, c->h, m, c->s, err)) < 0) return rc;
        if (!v->exact_rows && (rc = fh_matrix_multiply(&c->seen_by[c->lens].slots, pool, c->h, m, c->f, err)) < 0) return rc;
        fh_pool_run(pool, m, lens_task, c);
    }
    return FH_OK;
}

fh_status fh_observe(const fh_dense *dense, const fh_lens *lenses, size_t n_lenses, const fh_observe_params *params, const float *states,
                     const size_t *positions, size_t n, fh_on_sight *on_sight, void *ctx, const fh_job *job, fh_err *err)
{
    observing c = {.dense = dense, .lenses = lenses, .n_lenses = n_lenses, .top = params->top ? params->top : TOP,
                   .backoff = params->backoff > 0 ? params->backoff : FH_BACKOFF};
    fh_status rc = observing_open(&c, fh_pool_threads(fh_job_pool(job)), err);
    for (size_t at = 0; rc == FH_OK && at < n; at += BLOCK) {
        size_t m = fh_min(BLOCK, n - at);
        if (fh_job_stopped(job)) { rc = fh_fail(err, FH_EINTERRUPTED, "interrupted"); break; }
        gather(c.h, states, positions, at, m, dense->rows.cols);
        if ((rc = measure_block(&c, m, job, err)) < 0) break;
        for (size_t i = 0; i < m && rc == FH_OK; i++) {
            const truth *is = &c.truth[i];
            if (is->bad) { rc = fh_fail(err, FH_ECHECK, "the logits of position %zu are not finite", at + i); break; }
            fh_sight s = {.number = at + i, .position = positions ? positions[at + i] : at + i, .top = c.best + i * c.top,
                          .margin = is->margin, .entropy = is->entropy,
                          .need = c.need + i * n_lenses * c.top, .seen = c.seen + i * c.seen_each};
            on_sight(ctx, &s);
        }
        if (rc == FH_OK && !params->silent) fh_job_progress(job, "measuring", (double)(at + m), (double)n, "positions");
    }
    observing_close(&c);
    return rc;
}

/* ---- curves ------------------------------------------------------------------------------------------------ */

size_t fh_curve_grid(fh_point *points, uint32_t clusters, uint32_t chosen)
{
    size_t n = 0;
    for (uint64_t p = 1; p < clusters; p = p & (p - 1) ? p / 3 * 4 : p < 4 ? p * 2 : p + p / 2) {
        if (n && points[n - 1].probes < chosen && chosen < p) points[n++] = (fh_point){.probes = chosen};
        points[n++] = (fh_point){.probes = (uint32_t)p};
    }
    if (n && points[n - 1].probes < chosen && chosen < clusters) points[n++] = (fh_point){.probes = chosen};
    points[n++] = (fh_point){.probes = clusters};
    return n;
}

typedef struct rows { size_t n; fh_curve_row *row; void *ctx; double *values; } rows;

static void make_row(void *ctx, const fh_sight *s)
{
    rows *r = ctx;
    for (size_t q = 0; q < r->n; q++) {
        const fh_seen *seen = &s->seen[q];
        uint32_t probes = seen->probed;
        double *o = r->values + q * FH_MEASURES;
        o[FH_TOP1] = s->need[0] <= probes, o[FH_TOP3] = s->need[2] <= probes, o[FH_TOP5] = s->need[4] <= probes, o[FH_TOP10] = s->need[9] <= probes;
        o[FH_AGREES] = seen->best == s->top[0], o[FH_COVERS] = seen->mass, o[FH_DIVERGES] = seen->kl, o[FH_PROBES] = probes;
    }
    r->row(r->ctx, s->number, r->values);
}

fh_status fh_curve_each(const fh_head *head, const fh_dense *dense, const float *states, const size_t *positions, size_t n, bool no_hot,
                        const fh_point *points, size_t n_points, fh_curve_row *row, void *ctx, const fh_job *job, fh_err *err)
{
    fh_status rc;
    rows r = {n_points, row, ctx, fh_malloc((n_points * FH_MEASURES + 1) * sizeof(double))};
    uint32_t *probes = fh_malloc((n_points + 1) * sizeof *probes);
    float *thresholds = fh_malloc((n_points + 1) * sizeof *thresholds);
    if (!r.values || !probes || !thresholds) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    for (size_t q = 0; q < n_points; q++) probes[q] = points[q].probes, thresholds[q] = points[q].threshold;
    fh_lens lens = {.head = head, .no_hot = no_hot, .probes = probes, .thresholds = thresholds, .n_probes = n_points};
    rc = fh_observe(dense, &lens, 1, &(fh_observe_params){0}, states, positions, n, make_row, &r, job, err);
out:
    fh_free(r.values);
    fh_free(probes);
    fh_free(thresholds);
    return rc;
}

typedef struct sums { double *of; size_t n; } sums; /* [n_points, FH_MEASURES] */
static void add_row(void *ctx, size_t i, const double *values)
{
    sums *s = ctx;
    for (size_t j = 0; j < s->n; j++) s->of[j] += values[j];
    (void)i;
}

fh_status fh_curve(const fh_head *head, const fh_dense *dense, const float *states, const size_t *positions, size_t n, bool no_hot,
                   fh_point *points, size_t n_points, const fh_job *job, fh_err *err)
{
    sums s = {fh_calloc(n_points * FH_MEASURES + 1, sizeof *s.of), n_points * FH_MEASURES};
    if (!s.of) return fh_fail(err, FH_ENOMEM, "out of memory");
    fh_status rc = fh_curve_each(head, dense, states, positions, n, no_hot, points, n_points, add_row, &s, job, err);
    for (size_t q = 0; rc == FH_OK && q < n_points; q++) {
        double *o = s.of + q * FH_MEASURES;
        for (size_t j = 0; j < FH_MEASURES; j++) o[j] /= n ? (double)n : 1; /* divided, not multiplied by a share of 1: all of them are 1 */
        points[q] = (fh_point){.probes = points[q].probes, .top1 = o[FH_TOP1], .top3 = o[FH_TOP3], .top5 = o[FH_TOP5], .top10 = o[FH_TOP10],
                               .agreement = o[FH_AGREES], .mass = o[FH_COVERS], .kl = o[FH_DIVERGES], .threshold = points[q].threshold,
                               .mean_probes = o[FH_PROBES]};
    }
    fh_free(s.of);
    return rc;
}

/* ---- what plain runtimes answer --------------------------------------------------------------------------------- */

typedef struct plain_job { const fh_head *head; const float *s, *f; uint32_t probes, *work, *ids; float *logits; } plain_job; /* work [workers, 4 K] */

static void plain_task(void *ctx, size_t i, unsigned worker)
{
    plain_job *j = ctx;
    const fh_head_parts *p = fh_head_get_parts(j->head);
    const uint32_t *slots = fh_head_slots(j->head);
    const float *f = j->f + i * p->clusters * p->cap;
    uint32_t *order = j->work + (size_t)worker * 4 * p->clusters, best_id = FH_NO_TOKEN;
    float best = -INFINITY;
    fh_order_clusters(j->s + i * p->clusters, p->clusters, order, order + p->clusters, order + 2 * p->clusters, order + 3 * p->clusters);
    for (uint32_t q = 0; q < j->probes; q++)
        for (size_t slot = (size_t)order[q] * p->cap, end = slot + p->cap; slot < end; slot++) {
            uint32_t id = p->permutation[slot];
            if (id != FH_NO_TOKEN && (f[slot] > best || (f[slot] == best && p->n_always && id < best_id))) best = f[slot], best_id = id;
        }
    for (size_t a = 0; a < p->n_always; a++) {
        uint32_t id = p->always[a];
        if (better(f[slots[id]], id, best, best_id)) best = f[slots[id]], best_id = id;
    }
    j->ids[i] = best_id, j->logits[i] = best;
}

fh_status fh_plain_greedy(const fh_head *head, const float *states, size_t n, uint32_t probes, uint32_t *ids, float *logits, const fh_job *job, fh_err *err)
{
    fh_status rc = FH_OK;
    const fh_head_parts *p = fh_head_get_parts(head);
    size_t slots = (size_t)p->clusters * p->cap;
    plain_job j = {.head = head, .probes = probes ? (uint32_t)fh_min(probes, p->clusters) : p->probes};
    float *s = fh_malloc((size_t)BLOCK * p->clusters * sizeof *s), *f = fh_malloc(BLOCK * slots * sizeof *f);
    j.work = fh_malloc((size_t)fh_pool_threads(fh_job_pool(job)) * 4 * p->clusters * sizeof *j.work);
    j.s = s, j.f = f;
    if (!s || !f || !j.work) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    for (size_t at = 0; at < n; at += BLOCK) {
        size_t m = fh_min(BLOCK, n - at);
        if (fh_job_stopped(job)) { rc = fh_fail(err, FH_EINTERRUPTED, "interrupted"); goto out; }
        if ((rc = fh_head_cluster_scores(head, fh_job_pool(job), states + at * p->hidden, m, s, err)) < 0) goto out;
        if ((rc = fh_head_slot_logits(head, fh_job_pool(job), states + at * p->hidden, m, f, err)) < 0) goto out;
        j.ids = ids + at, j.logits = logits + at;
        fh_pool_run(fh_job_pool(job), m, plain_task, &j);
        fh_job_progress(job, "scoring", (double)(at + m), (double)n, "states");
    }
out:
    fh_free(s);
    fh_free(f);
    fh_free(j.work);
    return rc;
}
