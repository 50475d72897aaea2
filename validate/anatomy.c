/* What each part of a head costs: the same positions through heads of which only one part is not exact. */
#include "validate/judge.h"

#include "quant/quant.h"

#include <math.h>
#include <string.h>

/* Where the clusters come from, and the tokens' logits. */
typedef enum route { BY_MASS, BY_SOURCES, BY_STORED, BY_INT8, BY_INT4, ALL } route;
typedef enum row_kind { EXACT, STORED, INT8, INT4 } row_kind;
typedef struct part { const char *name; route route; row_kind rows; bool rerank; } part;
static const part parts[] = {
    {"clusters: the P of most probability", BY_MASS, EXACT, false},
    {"routing by centroids not encoded", BY_SOURCES, EXACT, false},
    {"routing by the stored centroids", BY_STORED, EXACT, false},
    {"routing by int8 centroids", BY_INT8, EXACT, false},
    {"routing by int4 centroids", BY_INT4, EXACT, false},
    {"int8 rows, all of them", ALL, INT8, false},
    {"int8 rows, best ones reranked", ALL, INT8, true},
    {"int4 rows, all of them", ALL, INT4, false},
    {"int4 rows, best ones reranked", ALL, INT4, true},
    {"int4 centroids and rows, reranked", BY_INT4, INT4, true},
    {"the artifact as it is", BY_STORED, STORED, true},
};
enum { PARTS = sizeof parts / sizeof *parts, TOP = 10, RERANK_INT8 = 16, RERANK_INT4 = 32 };
_Static_assert((int)PARTS <= (int)FH_PART_COSTS, "room for every part");

typedef struct coded { void *data, *scales; fh_rows rows; } coded;

struct fh_dissection {
    const fh_model *m;
    uint32_t probes, all, some;       /* some: the clusters of most probability that stand beside a threshold, as many as it probes in the mean */
    float threshold;                  /* 0: none */
    coded centroids[3], tokens[2];    /* sources, int8, int4; int8, int4 */
    fh_head *heads[PARTS];            /* NULL: the artifact's own */
    fh_lens lens[PARTS];
    const part *of[PARTS]; size_t n;
    size_t mass, sources, stored;     /* which lens tells of misses; SIZE_MAX: none */
    fh_part_cost sum[PARTS];
    size_t positions, misses, by_clustering, by_routing, by_encoding;
};

void fh_dissect_close(fh_dissection *d)
{
    if (!d) return;
    for (size_t i = 0; i < PARTS; i++) fh_head_close(d->heads[i]);
    for (size_t i = 0; i < 3; i++) fh_free(d->centroids[i].data), fh_free(d->centroids[i].scales);
    for (size_t i = 0; i < 2; i++) fh_free(d->tokens[i].data), fh_free(d->tokens[i].scales);
    fh_free(d);
}

static fh_status make_room(coded *c, fh_dtype encoding, size_t rows, size_t cols, fh_err *err)
{
    size_t stride = fh_enc_stride(encoding, cols), bytes, scales;
    if (fh_mul(rows, stride, &bytes) && fh_mul(rows, fh_scale_bytes(encoding, cols), &scales)) {
        c->data = fh_aligned(fh_max(bytes, 64)), c->scales = fh_malloc(scales + 1);
        c->rows = (fh_rows){c->data, encoding, rows, cols, stride};
        if (c->data && c->scales) return FH_OK;
    }
    return fh_fail(err, FH_ENOMEM, "out of memory for %zu rows as %s: leave the anatomy out (--no-anatomy)", rows, fh_dtype_name(encoding));
}

/* The exact rows, in the order of slots, as int8 or int4. */
static fh_status encode_tokens(coded *c, fh_dtype encoding, const fh_model *m, const fh_job *job, fh_err *err)
{
    const fh_head_parts *p = fh_head_get_parts(m->head);
    size_t slots = (size_t)p->clusters * p->cap;
    fh_quant_error error;
    uint32_t *order = fh_malloc(slots * sizeof *order);
    fh_status rc = order ? make_room(c, encoding, slots, p->hidden, err) : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc < 0) goto out;
    for (size_t s = 0; s < slots; s++) order[s] = p->permutation[s] == FH_NO_TOKEN ? FH_NO_TOKEN : m->dense.token_of ? (uint32_t)s : p->permutation[s];
    rc = fh_encode_rows(encoding, &m->dense.rows, order, slots, NULL, job, c->data, c->scales, &error, err);
out:
    fh_free(order);
    return rc;
}

/* Centroids as int8 and int4: of their sources, where there are some, else of what is stored. */
static fh_status encode_centroids(fh_dissection *d, const float *sources, const fh_job *job, fh_err *err)
{
    static const fh_dtype types[] = {FH_F32, FH_I8, FH_I4};
    const fh_head_parts *p = fh_head_get_parts(d->m->head);
    fh_quant_error error;
    fh_status rc;
    coded *wide = &d->centroids[0];
    if ((rc = make_room(wide, FH_F32, p->clusters, p->hidden, err)) < 0) return rc;
    for (size_t k = 0; k < p->clusters; k++) {
        float *to = (float *)((uint8_t *)wide->data + k * wide->rows.stride);
        const uint8_t *scales = p->centroid_scales;
        if (sources) memcpy(to, sources + k * p->hidden, p->hidden * sizeof *to);
        else
            fh_dec_row(p->centroids.dtype, fh_row(&p->centroids, k), scales ? scales + k * fh_scale_bytes(p->centroids.dtype, p->hidden) : NULL, p->hidden,
                       to);
    }
    for (size_t i = 1; i < 3; i++)
        if ((rc = make_room(&d->centroids[i], types[i], p->clusters, p->hidden, err)) < 0 ||
            (rc = fh_encode_centroids(types[i], &wide->rows, job, d->centroids[i].data, d->centroids[i].scales, &error, err)) < 0) return rc;
    return FH_OK;
}

static void use(fh_rows *rows, const void **scales, const coded *c)
{
    *rows = c->rows, *scales = fh_dtype_is_integer(c->rows.dtype) ? c->scales : NULL;
}

static fh_status add_part(fh_dissection *d, const part *what, fh_err *err)
{
    const fh_head_parts *p = fh_head_get_parts(d->m->head);
    fh_head_parts now = *p;
    size_t i = d->n;
    if (what->route == BY_SOURCES) use(&now.centroids, &now.centroid_scales, &d->centroids[0]);
    if (what->route == BY_INT8) use(&now.centroids, &now.centroid_scales, &d->centroids[1]);
    if (what->route == BY_INT4) use(&now.centroids, &now.centroid_scales, &d->centroids[2]);
    if (what->rows == INT8 || what->rows == INT4) {
        use(&now.tokens, &now.token_scales, &d->tokens[what->rows == INT4]);
        now.exact = d->m->dense.rows, now.exact_by_token = !d->m->dense.token_of, now.tokens_exact = false;
        now.rerank = what->rerank ? (what->rows == INT4 ? RERANK_INT4 : RERANK_INT8) : 0;
    }
    bool own = what->rows != INT8 && what->rows != INT4 && (what->route == BY_MASS || what->route == BY_STORED);
    fh_status rc = own ? FH_OK : fh_head_from_parts(&d->heads[i], &now, "anatomy", err);
    if (rc < 0) return rc;
    d->of[i] = what;
    d->lens[i] = (fh_lens){.head = d->heads[i] ? d->heads[i] : d->m->head, .by_mass = what->route == BY_MASS, .exact_rows = what->rows == EXACT,
                           .no_rerank = !what->rerank, .probes = what->route == ALL ? &d->all : what->route == BY_MASS ? &d->some : &d->probes, .n_probes = 1,
                           .thresholds = what->route == ALL || what->route == BY_MASS ? NULL : &d->threshold};
    if (what->route == BY_MASS) d->mass = i;
    if (what->route == BY_SOURCES) d->sources = i;
    if (what->rows == STORED) d->stored = i;
    d->n++;
    return FH_OK;
}

fh_status fh_dissect_open(fh_dissection **out, const fh_model *m, const float *sources, const fh_job *job, fh_err *err)
{
    const fh_head_parts *p = fh_head_get_parts(m->head);
    fh_status rc;
    fh_dissection *d = fh_calloc(1, sizeof *d);
    if (!d) return fh_fail(err, FH_ENOMEM, "out of memory");
    *d = (fh_dissection){.m = m, .probes = p->probes, .all = p->clusters, .some = fh_probes_calibrated(m->head), .threshold = p->threshold, .mass = SIZE_MAX, .sources = SIZE_MAX, .stored = SIZE_MAX};
    bool coded_centroids = fh_dtype_is_integer(p->centroids.dtype);
    if ((rc = encode_centroids(d, sources, job, err)) < 0 || (rc = encode_tokens(&d->tokens[0], FH_I8, m, job, err)) < 0 ||
        (rc = encode_tokens(&d->tokens[1], FH_I4, m, job, err)) < 0) goto out;
    for (size_t i = 0; i < PARTS; i++) {
        const part *what = &parts[i];
        if (what->route == BY_SOURCES && !sources) continue;
        if (what->route == BY_INT8 && (p->centroids.dtype == FH_I8 || (coded_centroids && !sources))) continue; /* stored already, or of nothing better */
        if (what->route == BY_INT4 && what->rows == EXACT && p->centroids.dtype == FH_I4) continue;
        if ((rc = add_part(d, what, err)) < 0) goto out;
    }
    *out = d, d = NULL;
out:
    fh_dissect_close(d);
    return rc;
}

static void on_sight(void *ctx, const fh_sight *s)
{
    fh_dissection *d = ctx;
    bool in[PARTS];
    d->positions++;
    for (size_t i = 0; i < d->n; i++) {
        const fh_seen *seen = &s->seen[i]; /* one P a lens */
        fh_part_cost *sum = &d->sum[i];
        in[i] = s->need[i * TOP] <= seen->probed;
        sum->top1 += in[i], sum->agreement += seen->best == s->top[0];
        sum->mass += seen->mass, sum->kl += seen->kl, sum->kl_dense += seen->kl_dense;
    }
    if (in[d->stored]) return;
    d->misses++;
    if (!in[d->mass]) d->by_clustering++;
    else if (d->sources == SIZE_MAX || !in[d->sources]) d->by_routing++;
    else d->by_encoding++;
}

fh_status fh_dissect_states(fh_dissection *d, const float *states, const size_t *positions, size_t n, const fh_job *job, fh_err *err)
{
    return fh_observe(&d->m->dense, d->lens, d->n, &(fh_observe_params){.top = TOP, .silent = true}, states, positions, n, on_sight, d, job, err);
}

void fh_dissect_finish(const fh_dissection *d, fh_anatomy *out)
{
    double n = d->positions ? (double)d->positions : NAN;
    *out = (fh_anatomy){.positions = d->positions,
                        .misses = d->misses,
                        .by_clustering = d->by_clustering,
                        .by_routing = d->by_routing,
                        .by_encoding = d->by_encoding,
                        .sources = d->sources != SIZE_MAX,
                        .n = d->n};
    for (size_t i = 0; i < d->n; i++) {
        const fh_part_cost *s = &d->sum[i];
        out->cost[i] = (fh_part_cost){d->of[i]->name, s->top1 / n, s->agreement / n, s->mass / n, s->kl / n, s->kl_dense / n};
    }
}
