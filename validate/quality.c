/* What an artifact's head holds of the dense head, over many positions. */
#include "validate/judge.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const size_t tops[FH_TOPS] = {1, 3, 5, 10};
enum { TOP = 10 };

/* What is kept of a position: enough for every question that is asked of all of them together. */
typedef struct seen {
    uint32_t top, best, document;
    uint32_t need[FH_TOPS], need_k; /* probes until the best 1, 3, 5, 10 and containment_k are candidates */
    uint32_t probed;                /* by the artifact as it is */
    float margin, entropy;
    double mass, kl, kl_dense;
} seen;

typedef struct sums { double agreement, mass, kl, kl_dense; } sums;

struct fh_gatherer {
    const fh_model *m;
    uint32_t k, *probes;          /* probes: of the curve */
    fh_lens lens[2];              /* the curve; the artifact's own threshold, where it has one */
    size_t n_probes, n_lenses, own; /* own: where the artifact as it is stands among what is seen */
    sums own_sums;
    double confidence;
    seen *seen; size_t n, room;
    sums *sums;                   /* of each point */
    const uint32_t *document;     /* of the states under way */
    double *in_document, *lost; size_t documents; /* positions of each document, and what is lost of them */
};

fh_status fh_gather_open(fh_gatherer **out, const fh_model *m, uint32_t containment_k, double confidence, fh_err *err)
{
    const fh_head_info *info = fh_head_get_info(m->head);
    fh_gatherer *g = fh_calloc(1, sizeof *g);
    if (!g) return fh_fail(err, FH_ENOMEM, "out of memory");
    *g = (fh_gatherer){.m = m, .k = containment_k, .confidence = confidence};
    fh_point points[FH_CURVE_POINTS];
    g->probes = fh_malloc(FH_CURVE_POINTS * sizeof *g->probes);
    g->sums = fh_calloc(FH_CURVE_POINTS, sizeof *g->sums);
    if (!g->probes || !g->sums) { fh_gather_close(g); return fh_fail(err, FH_ENOMEM, "out of memory"); }
    g->n_probes = fh_curve_grid(points, info->clusters, info->probes);
    for (size_t q = 0; q < g->n_probes; q++) g->probes[q] = points[q].probes;
    g->lens[0] = (fh_lens){.head = m->head, .probes = g->probes, .n_probes = g->n_probes};
    g->lens[1] = (fh_lens){.head = m->head, .probes = &info->probes, .thresholds = &info->threshold, .n_probes = 1};
    g->n_lenses = info->threshold > 0 ? 2 : 1;
    if (info->threshold > 0) g->own = g->n_probes;
    else while (g->probes[g->own] != info->probes) g->own++;
    *out = g;
    return FH_OK;
}

void fh_gather_close(fh_gatherer *g)
{
    if (!g) return;
    fh_free(g->probes);
    fh_free(g->seen);
    fh_free(g->sums);
    fh_free(g->in_document);
    fh_free(g->lost);
    fh_free(g);
}

static void add_seen(sums *to, const fh_seen *at, uint32_t top)
{
    to->agreement += at->best == top, to->mass += at->mass, to->kl += at->kl, to->kl_dense += at->kl_dense;
}

static void on_sight(void *ctx, const fh_sight *s)
{
    fh_gatherer *g = ctx;
    const fh_seen *own = &s->seen[g->own];
    seen *to = &g->seen[g->n++];
    *to = (seen){.top = s->top[0], .best = own->best, .document = g->document[s->number], .need_k = s->need[g->k - 1], .probed = own->probed, .margin = s->margin,
                 .entropy = (float)s->entropy, .mass = own->mass, .kl = own->kl, .kl_dense = own->kl_dense};
    for (size_t t = 0; t < FH_TOPS; t++) to->need[t] = s->need[tops[t] - 1];
    for (size_t q = 0; q < g->n_probes; q++) add_seen(&g->sums[q], &s->seen[q], s->top[0]);
    add_seen(&g->own_sums, own, s->top[0]);
}

fh_status fh_gather_states(fh_gatherer *g, const float *states, size_t n, const uint32_t *document, const fh_job *job, fh_err *err)
{
    if (g->n + n > g->room) {
        size_t room = fh_max(g->n + n, g->room + g->room / 2), bytes;
        seen *more = fh_mul(room, sizeof *more, &bytes) ? fh_realloc(g->seen, bytes) : NULL;
        if (!more) return fh_fail(err, FH_ENOMEM, "out of memory for %zu positions: ask for fewer with --tokens", room);
        g->seen = more, g->room = room;
    }
    g->document = document;
    return fh_observe(&g->m->dense, g->lens, g->n_lenses, &(fh_observe_params){.top = fh_max(TOP, g->k), .silent = true}, states, NULL, n, on_sight, g, job, err);
}

/* ---- shares and spreads ----------------------------------------------------------------------------------------------- */

static int rising(const void *a, const void *b) { const double *x = a, *y = b; return (*x > *y) - (*x < *y); }

fh_spread fh_spread_of(double *v, size_t n)
{
    static const double at[] = {0.999, 0.99, 0.95, 0.9, 0.5, 0.1, 0.05, 0.01, 0.001};
    double sum = 0, p[9];
    qsort(v, n, sizeof *v, rising);
    for (size_t i = 0; i < n; i++) sum += v[i];
    for (size_t i = 0; i < 9; i++) {
        double place = at[i] * (double)(n - 1), whole = floor(place);
        size_t j = (size_t)whole;
        p[i] = v[j] + (place - whole) * (v[fh_min(j + 1, n - 1)] - v[j]);
    }
    return (fh_spread){sum / (double)n, v[n - 1], p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], v[0]};
}

/* What a position loses: of one of FH_TOPS at some P (0: by the artifact as it is), or of the kinds of promises. */
static double lost_top(const seen *s, size_t which, uint32_t probes) { return s->need[which] > (probes ? probes : s->probed); }
static double lost_promise(const seen *s, size_t which, uint32_t probes)
{
    (void)probes;
    return which == FH_CONTAINED ? s->need_k > s->probed : which == FH_AGREED ? s->best != s->top : 1 - s->mass;
}

/* Bounds know that the positions of a document depend on each other (calib.h); the upper one is the lower one of what is lost. */
static fh_kept kept_of(const fh_gatherer *g, double (*lost)(const seen *, size_t, uint32_t), size_t which, uint32_t probes)
{
    fh_kept k = {0};
    fh_tally hits = {0}, losses = {0};
    memset(g->lost, 0, g->documents * sizeof *g->lost);
    for (size_t i = 0; i < g->n; i++) g->lost[g->seen[i].document] += lost(&g->seen[i], which, probes);
    for (size_t d = 0; d < g->documents; d++) {
        if (!g->in_document[d]) continue;
        k.misses += g->lost[d];
        fh_tally_add(&hits, g->in_document[d], g->lost[d]);
        fh_tally_add(&losses, g->in_document[d], g->in_document[d] - g->lost[d]);
    }
    fh_bound low = fh_tally_bound(&hits, NULL, INFINITY, g->confidence), high = fh_tally_bound(&losses, NULL, INFINITY, g->confidence);
    k.share = ((double)g->n - k.misses) / (double)g->n;
    k.lower = low.lower, k.upper = 1 - high.lower, k.effect = low.effect;
    return k;
}

static fh_status count_documents(fh_gatherer *g, fh_err *err)
{
    for (size_t i = 0; i < g->n; i++) g->documents = fh_max(g->documents, (size_t)g->seen[i].document + 1);
    g->in_document = fh_calloc(g->documents, sizeof *g->in_document), g->lost = fh_calloc(g->documents, sizeof *g->lost);
    if (!g->in_document || !g->lost) return fh_fail(err, FH_ENOMEM, "out of memory");
    for (size_t i = 0; i < g->n; i++) g->in_document[g->seen[i].document]++;
    return FH_OK;
}

/* ---- bands ----------------------------------------------------------------------------------------------------------- */

typedef struct edge { const char *name; double from; } edge;

static double key_of(const seen *s, int by, const uint32_t *counts)
{
    return by == 0 ? (double)counts[s->top] : by == 1 ? (double)s->margin : (double)s->entropy;
}

static void fill_bands(fh_bands *out, const fh_gatherer *g, const edge *edges, size_t n, int by, const uint32_t *counts)
{
    out->n = n;
    for (size_t b = 0; b < n; b++) out->band[b] = (fh_band){.name = edges[b].name};
    for (size_t i = 0; i < g->n; i++) {
        const seen *s = &g->seen[i];
        size_t b = n - 1;
        double key = key_of(s, by, counts);
        while (b && key < edges[b].from) b--;
        fh_band *to = &out->band[b];
        to->positions++, to->misses += s->need[0] > s->probed;
        to->agreement += s->best == s->top, to->mass += s->mass, to->kl += s->kl;
    }
    for (size_t b = 0; b < n; b++) {
        fh_band *to = &out->band[b];
        double count = to->positions ? (double)to->positions : NAN;
        to->agreement /= count, to->mass /= count, to->kl /= count;
    }
}

/* ---- tokens ---------------------------------------------------------------------------------------------------------- */

typedef struct token { uint32_t id, times, misses; double need; } token;
static int by_misses(const void *a, const void *b)
{
    const token *x = a, *y = b;
    if (x->misses != y->misses) return x->misses < y->misses ? 1 : -1;
    if (x->times != y->times) return x->times > y->times ? 1 : -1; /* of as many misses, the one that is missed more often */
    return (x->id > y->id) - (x->id < y->id);
}

static fh_status fill_worst(fh_quality *out, const fh_gatherer *g, fh_err *err)
{
    const fh_head_parts *p = fh_head_get_parts(g->m->head);
    token *tokens = fh_calloc(p->vocab, sizeof *tokens);
    if (!tokens) return fh_fail(err, FH_ENOMEM, "out of memory");
    for (uint32_t t = 0; t < p->vocab; t++) tokens[t].id = t;
    for (size_t i = 0; i < g->n; i++) {
        const seen *s = &g->seen[i];
        token *t = &tokens[s->top];
        t->times++;
        if (s->need[0] > s->probed) t->misses++, t->need += s->need[0];
    }
    qsort(tokens, p->vocab, sizeof *tokens, by_misses);
    for (size_t i = 0; i < FH_WORST && i < p->vocab && tokens[i].misses; i++) {
        const token *t = &tokens[i];
        fh_worst *w = &out->worst[out->n_worst++];
        size_t len = 0;
        const char *piece = g->m->tokenizer ? fh_tokenizer_piece(g->m->tokenizer, t->id, &len) : NULL;
        *w = (fh_worst){.id = t->id, .cluster = fh_head_slots(g->m->head)[t->id] / p->cap, .times = t->times, .misses = t->misses, .need = t->need / t->misses};
        fh_show(w->text, sizeof w->text, piece ? piece : "", piece ? len : 0);
    }
    fh_free(tokens);
    return FH_OK;
}

/* ---- all of it ------------------------------------------------------------------------------------------------------- */

static fh_status fill_spreads(fh_quality *out, const fh_gatherer *g, fh_err *err)
{
    double *v = fh_malloc(g->n * sizeof *v);
    if (!v) return fh_fail(err, FH_ENOMEM, "out of memory");
    for (size_t i = 0; i < g->n; i++) v[i] = g->seen[i].kl;
    out->kl = fh_spread_of(v, g->n);
    for (size_t i = 0; i < g->n; i++) v[i] = g->seen[i].kl_dense;
    out->kl_dense = fh_spread_of(v, g->n);
    for (size_t i = 0; i < g->n; i++) v[i] = g->seen[i].probed;
    out->probed = fh_spread_of(v, g->n);
    fh_free(v);
    return FH_OK;
}

fh_status fh_gather_finish(fh_gatherer *g, const uint32_t *counts, fh_quality *out, fh_err *err)
{
    static const edge times[] = {{"never", 0}, {"once", 1}, {"2 to 9", 2}, {"10 to 99", 10}, {"100 to 999", 100}, {"1000 or more", 1000}};
    static const edge margins[] = {{"below 0.1", 0}, {"0.1 to 0.3", 0.1}, {"0.3 to 1", 0.3}, {"1 to 2", 1}, {"2 to 4", 2}, {"4 or more", 4}};
    static const edge entropies[] = {{"below 0.5", 0}, {"0.5 to 1", 0.5}, {"1 to 2", 1}, {"2 to 3", 2}, {"3 to 4", 3}, {"4 to 6", 4}, {"6 or more", 6}};
    double n = (double)g->n;
    const fh_head_info *info = fh_head_get_info(g->m->head);
    fh_status rc;
    *out = (fh_quality){.positions = g->n, .probes = info->probes, .threshold = info->threshold, .containment_k = g->k, .confidence = g->confidence};
    if (!g->n) return FH_OK;
    if ((rc = count_documents(g, err)) < 0) return rc;
    for (size_t d = 0; d < g->documents; d++) out->documents += g->in_document[d] > 0;
    for (size_t i = 0; i < FH_PROMISES; i++) out->kept[i] = kept_of(g, lost_promise, i, 0);
    for (size_t t = 0; t < FH_TOPS; t++) out->top[t] = kept_of(g, lost_top, t, 0);
    const sums *own = &g->own_sums;
    out->agreement = own->agreement / n, out->mass = own->mass / n;
    out->agreement_error = g->n > 1 ? sqrt(out->agreement * (1 - out->agreement) / (n - 1)) : NAN;
    if ((rc = fill_spreads(out, g, err)) < 0 || (rc = fill_worst(out, g, err)) < 0) return rc;
    out->step_bytes = fh_head_step_bytes(g->m->head, out->probed.mean, info->n_hot);
    if (counts) fill_bands(&out->by_frequency, g, times, sizeof times / sizeof *times, 0, counts);
    fill_bands(&out->by_margin, g, margins, sizeof margins / sizeof *margins, 1, counts);
    fill_bands(&out->by_entropy, g, entropies, sizeof entropies / sizeof *entropies, 2, counts);
    if (!(out->curve = fh_calloc(g->n_probes, sizeof *out->curve))) return fh_fail(err, FH_ENOMEM, "out of memory");
    out->n_curve = g->n_probes;
    for (size_t q = 0; q < g->n_probes; q++) {
        fh_curve_point *p = &out->curve[q];
        const sums *s = &g->sums[q];
        *p = (fh_curve_point){.probes = g->probes[q], .agreement = s->agreement / n, .mass = s->mass / n, .kl = s->kl / n, .kl_dense = s->kl_dense / n};
        p->step_bytes = fh_head_step_bytes(g->m->head, p->probes, fh_head_get_info(g->m->head)->n_hot);
        for (size_t t = 0; t < FH_TOPS; t++) p->top[t] = kept_of(g, lost_top, t, p->probes);
    }
    return FH_OK;
}
