/* The heads that calibration may take: routings times encodings, each made once and kept. */
#include "artifacts/stages_private.h"

#include <math.h>
#include <string.h>

#include "validate/validate.h"

/* Rows lie as tokens are assigned, as quantized or as another routing has it: only a learned one moves tokens. */
static void add_routing(fh_candidates *c, const fh_routing *r)
{
    size_t i = 0;
    while (i < c->n_orders && c->order[i].assignment != r->assignment) i++;
    if (i == c->n_orders) c->order[c->n_orders++].assignment = r->assignment;
    c->routing[c->n_routings].of = *r, c->routing[c->n_routings++].order = i;
}

/* The routing that was asked for, else all of them, one that was learned already as it is. */
static fh_status find_routings(fh_candidates *c, const fh_parted *parted, const fh_states *s, fh_err *err)
{
    static const char *const names[] = {"learned", "weighted", "raw", "mean"};
    fh_json *record = NULL;
    bool learned = !strcmp(c->q->routing, "learned");
    fh_routing r;
    char *path = fh_work_path(c->e->work, FH_FILE_ROUTING);
    fh_status rc = path ? fh_work_record(c->e->work, FH_FILE_ROUTING, &record, err) : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc < 0) goto out;
    fh_json_bool(fh_json_get(fh_json_get(record, "params"), "asked"), &c->asked);
    c->how = fh_route_params_of(fh_json_get(record, "params"));
    if ((rc = fh_tensors_open(&c->used, path, err)) < 0 || (rc = fh_routing_read(&r, c->used, parted, err)) < 0) goto out;
    r.name = c->q->routing, c->order[c->n_orders++].assignment = r.assignment;
    if (c->asked || learned) add_routing(c, &r);
    for (size_t i = learned; i < sizeof names / sizeof *names && !c->asked; i++) {
        c->how.routing = names[i];
        rc = fh_routing_of(&r, &c->how, c->f, parted, s, c->e->job, NULL, err);
        if (rc == FH_ECHECK && i == 0) { rc = FH_OK; continue; } /* too few states to learn from */
        if (rc < 0) goto out;
        add_routing(c, &r);
    }
out:
    c->how.routing = NULL; /* the record's */
    fh_json_free(record);
    fh_free(path);
    return rc;
}

fh_status fh_candidates_load(fh_candidates *c, fh_stage_env *e, const fh_facts *f, const fh_parted *parted, const fh_encoded *q, const fh_states *s,
                             int64_t rerank, const fh_encodings *encodings, fh_err *err)
{
    *c = (fh_candidates){.e = e, .f = f, .q = q, .rerank = rerank};
    fh_status rc = find_routings(c, parted, s, err);
    const fh_encodings own = {.centroids = {q->parts.centroids.dtype}, .n_centroids = 1, .tokens = {q->parts.tokens.dtype}, .n_tokens = 1};
    if (!encodings) encodings = &own;
    for (size_t r = 0; rc == FH_OK && r < c->n_routings; r++)
        for (size_t i = 0; i < encodings->n_centroids; i++)
            for (size_t j = 0; j < encodings->n_tokens; j++) { /* rows vary fastest: ranks are of the centroids alone */
                c->choice[c->n] = (fh_choice){c->routing[r].of.name, fh_dtype_name(encodings->centroids[i]), fh_dtype_name(encodings->tokens[j])};
                c->of[c->n].routing = r, c->of[c->n].centroids = encodings->centroids[i], c->of[c->n++].tokens = encodings->tokens[j];
            }
    if (rc < 0) fh_candidates_free(c);
    return rc;
}

uint32_t fh_candidates_rerank(const fh_candidates *c, size_t i)
{
    fh_dtype tokens = c->of[i].tokens;
    return tokens == c->f->head.dtype ? 0 : c->rerank >= 0 ? (uint32_t)c->rerank : fh_rerank_default(tokens);
}

static fh_status encode(fh_kept_rows *to, fh_dtype encoding, const fh_rows *from, const uint32_t *order, size_t n, const fh_job *job, fh_err *err)
{
    size_t stride = fh_enc_stride(encoding, from->cols), bytes;
    fh_quant_error q;
    if (to->data) return FH_OK;
    if (!fh_mul(n, stride, &bytes)) return fh_fail(err, FH_ENOMEM, "the encoded rows pass the address space");
    to->data = fh_aligned(bytes), to->scales = fh_malloc(n * fh_scale_bytes(encoding, from->cols) + 1);
    if (!to->data || !to->scales) return fh_fail(err, FH_ENOMEM, "out of memory for %zu bytes of encoded rows", bytes);
    fh_status rc = order ? fh_encode_rows(encoding, from, order, n, NULL, job, to->data, to->scales, &q, err)
                         : fh_encode_centroids(encoding, from, job, to->data, to->scales, &q, err);
    if (rc < 0) fh_free(to->data), to->data = NULL;
    return rc;
}

/* Choice number i as a head; its arrays live as long as the candidates. */
fh_status fh_candidates_open(void *ctx, size_t i, fh_head **out, fh_err *err)
{
    fh_candidates *c = ctx;
    fh_head_parts p = c->q->parts;
    fh_dtype centroids = c->of[i].centroids, tokens = c->of[i].tokens;
    size_t slots = (size_t)p.clusters * p.cap, r = c->of[i].routing, order = c->routing[r].order;
    fh_rows from = {c->routing[r].of.centroids, FH_F32, p.clusters, p.hidden, p.hidden * sizeof(float)};
    fh_kept_rows *kept = &c->routing[r].encoded[centroids], *rows = &c->order[order].tokens[tokens];
    fh_status rc = encode(kept, centroids, &from, NULL, p.clusters, c->e->job, err);
    if (rc < 0) return rc;
    p.centroids = (fh_rows){kept->data, centroids, p.clusters, p.hidden, fh_enc_stride(centroids, p.hidden)},
        p.centroid_scales = fh_dtype_is_integer(centroids) ? kept->scales : NULL;
    if (order) {
        const fh_clustering parted = {.v = p.vocab, .d = p.hidden, .k = p.clusters, .cap = p.cap, .assignment = (uint32_t *)(uintptr_t)c->order[order].assignment};
        if (!c->order[order].permutation && (rc = fh_permutation_of(&c->order[order].permutation, &parted, err)) < 0) return rc;
        p.permutation = c->order[order].permutation;
    }
    if (order || tokens != p.tokens.dtype) {
        if ((rc = encode(rows, tokens, &c->f->head, p.permutation, slots, c->e->job, err)) < 0) return rc;
        p.tokens = (fh_rows){rows->data, tokens, slots, p.hidden, fh_enc_stride(tokens, p.hidden)},
            p.token_scales = fh_dtype_is_integer(tokens) ? rows->scales : NULL;
        p.tokens_exact = tokens == c->f->head.dtype;
    }
    p.rerank = fh_candidates_rerank(c, i), p.through_bf16 = c->through_bf16;
    if (p.rerank) p.exact = c->f->head, p.exact_by_token = true;
    return fh_head_from_parts(out, &p, "calibrate", err);
}

/* Steps at 1, 4, 16 ... probes, caches swept before each, as bench has it; the price of hot tokens from steps with many of them. */
fh_status fh_candidates_time(void *ctx, const fh_head *head, fh_step_times *out, fh_err *err)
{
    enum { HOT = 256, RUNS = 20 };
    fh_candidates *c = ctx;
    fh_head_parts p = *fh_head_get_parts(head);
    fh_bench_params how = {.curve = out->probes, .runs = RUNS, .brief = true, .no_batches = true, .no_rivals = true, .no_tokens = true};
    uint32_t hot[HOT], n_hot = 0;
    fh_step_times *known = &c->times[p.centroids.dtype][p.tokens.dtype]; /* routing does not enter */
    fh_bench_report *r = fh_calloc(1, sizeof *r);
    fh_head *with = NULL;
    fh_status rc = r ? FH_OK : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc < 0 || known->n) { *out = *known; goto out; }
    *out = (fh_step_times){.n = 0};
    for (uint32_t q = 1; q < p.clusters && out->n + 1 < FH_STEP_TIMES; q *= 4) out->probes[out->n++] = q;
    out->probes[out->n++] = p.clusters; /* not P = K, where nothing is routed */
    out->probes[out->n - 1] -= p.clusters > 2;
    how.n_curve = out->n;
    fh_model m = {.head = (fh_head *)(uintptr_t)head};
    if ((rc = fh_bench(&m, &how, c->e->job, r, err)) < 0) goto out;
    for (size_t i = 0; i < out->n; i++) out->seconds[i] = r->curve.row[i].time.median;
    for (uint32_t t = 0; t < p.vocab && n_hot < HOT; t += fh_max(p.vocab / HOT, 1)) hot[n_hot++] = t;
    p.hot = hot, p.n_hot = n_hot;
    if ((rc = fh_head_from_parts(&with, &p, "calibrate", err)) < 0) goto out;
    m.head = with, how.n_curve = 1;
    if ((rc = fh_bench(&m, &how, c->e->job, r, err)) < 0) goto out;
    out->hot = fmax(0, (r->curve.row[0].time.median - out->seconds[0]) / n_hot);
    *known = *out;
out:
    fh_head_close(with);
    fh_free(r);
    return rc;
}

void fh_candidates_free(fh_candidates *c)
{
    for (size_t i = 0; i < FH_ROUTINGS; i++) {
        fh_routing_free(&c->routing[i].of);
        for (size_t j = 0; j < FH_ENCODINGS; j++) fh_free(c->routing[i].encoded[j].data), fh_free(c->routing[i].encoded[j].scales);
    }
    for (size_t i = 0; i < c->n_orders; i++) {
        fh_free(c->order[i].permutation);
        for (size_t j = 0; j < FH_ENCODINGS; j++) fh_free(c->order[i].tokens[j].data), fh_free(c->order[i].tokens[j].scales);
    }
    fh_tensors_close(c->used);
    *c = (fh_candidates){0};
}
