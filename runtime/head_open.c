/* head_open.c: a head from a file or from arrays, what it says of itself, and the scratch of its callers. */
#include "runtime/head.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- opening -------------------------------------------------------------------------------------------------------- */

static fh_status check_rows(const fh_rows *r, const void *scales, size_t rows, size_t cols, const char *name, const char *what,
                            fh_err *err)
{
    if (!r->data) return fh_fail(err, FH_EUSAGE, "%s: %s are missing", name, what);
    if (!fh_dtype_is_encoding(r->dtype))
        return fh_fail(err, FH_EUSAGE, "%s: %s are %s; a head's rows are f32, bf16, f16, int8 or int4", name, what, fh_dtype_name(r->dtype));
    if (r->rows != rows || r->cols != cols)
        return fh_fail(err, FH_EUSAGE, "%s: %s are [%zu, %zu], not [%zu, %zu]", name, what, r->rows, r->cols, rows, cols);
    if (r->stride < fh_row_bytes(r->dtype, cols))
        return fh_fail(err, FH_EUSAGE, "%s: %s lie %zu bytes apart, but are %zu long", name, what, r->stride,
                       fh_row_bytes(r->dtype, cols));
    if (fh_dtype_is_integer(r->dtype) != (scales != NULL))
        return fh_fail(err, FH_EUSAGE, "%s: %s are %s: %s", name, what, fh_dtype_name(r->dtype), scales ?
                       "scales belong to int8 and int4 only" : "scales are missing");
    return FH_OK;
}

static fh_head_layout layout_of(const fh_head_parts *p)
{
    return (fh_head_layout){
        .vocab = p->vocab, .hidden = p->hidden, .k = p->clusters, .cap = p->cap, .probes = p->probes, .rerank = p->rerank, .threshold = p->threshold,
        .centroids = p->centroids, .centroid_scales = p->centroid_scales, .tokens = p->tokens, .token_scales = p->token_scales,
        .exact = p->exact, .tokens_exact = p->tokens_exact, .permutation = p->permutation, .dead = p->dead, .n_dead = p->n_dead,
        .bias = p->bias, .hot = p->hot, .n_hot = p->n_hot, .always = p->always, .n_always = p->n_always};
}

static fh_status check_parts(const fh_head_parts *p, const char *name, fh_err *err)
{
    size_t slots;
    fh_status rc;
    if (!p->hidden) return fh_fail(err, FH_EUSAGE, "%s: a hidden size of 0", name);
    if (!fh_mul(p->clusters, p->cap, &slots)) return fh_fail(err, FH_EUSAGE, "%s: K * cap is out of range", name);
    if (!p->permutation) return fh_fail(err, FH_EUSAGE, "%s: the permutation is missing", name);
    if ((rc = check_rows(&p->centroids, p->centroid_scales, p->clusters, p->hidden, name, "centroids", err)) < 0) return rc;
    if ((rc = check_rows(&p->tokens, p->token_scales, slots, p->hidden, name, "token rows", err)) < 0) return rc;
    if (p->exact.data && (rc = check_rows(&p->exact, NULL, p->exact_by_token ? p->vocab : slots, p->hidden, name, "exact rows", err)) < 0) return rc;
    if (p->exact.data && !fh_dtype_is_float(p->exact.dtype)) return fh_fail(err, FH_EUSAGE, "%s: exact rows are %s", name, fh_dtype_name(p->exact.dtype));
    if (p->rerank && !p->exact.data) return fh_fail(err, FH_EUSAGE, "%s: %u rows to score again, but there are no exact ones", name, p->rerank);
    if (p->rerank > FH_MAX_RERANK) return fh_fail(err, FH_EUSAGE, "%s: %u rows to score again, %d are the most", name, p->rerank, FH_MAX_RERANK);
    if (!p->exact.data && p->tokens_exact && fh_dtype_is_integer(p->tokens.dtype))
        return fh_fail(err, FH_EUSAGE, "%s: int8 or int4 token rows cannot be the exact ones", name);
    if (!(p->softcap >= 0) || !isfinite(p->softcap)) return fh_fail(err, FH_EUSAGE, "%s: a soft-cap of %g", name, (double)p->softcap);
    fh_head_layout layout = layout_of(p);
    return fh_head_layout_check(&layout, name, err);
}

/* Live ids of two lists, ascending, each once.  *out holds a + b + 1: an empty list is no failed allocation. */
static bool live_ids(uint32_t **out, size_t *n, const fh_head *head, const uint32_t *a, size_t n_a, const uint32_t *b, size_t n_b)
{
    size_t kept = 0;
    uint32_t *ids = fh_malloc((n_a + n_b + 1) * sizeof *ids);
    if (!ids) return false;
    for (size_t i = 0; i < n_a; i++)
        if (!head->dead_map[a[i]]) ids[kept++] = a[i];
    for (size_t i = 0; i < n_b; i++)
        if (!head->dead_map[b[i]]) ids[kept++] = b[i];
    *n = fh_sort_ids(ids, kept);
    *out = ids;
    return true;
}

/* `checked`: the arrays come from a container that has judged them. */
static fh_status make(fh_head **out, const fh_head_parts *parts, bool checked, const char *name, fh_err *err)
{
    fh_status rc = FH_OK;
    fh_head *head = fh_calloc(1, sizeof *head);
    if (!head) return fh_fail(err, FH_ENOMEM, "%s: out of memory", name);
    fh_head_parts *p = &head->parts;
    *p = *parts;
    if (!p->probes) p->probes = p->clusters >= 16 ? p->clusters / 16 : 1;
    if (!checked && (rc = check_parts(p, name, err)) < 0) goto out;
    if ((rc = fh_kernels_choose(&head->kernels, getenv("FH_ISA"), err)) < 0) goto out;
    head->exact = p->exact.data && !p->exact_by_token ? p->exact : p->tokens_exact ? p->tokens : (fh_rows){0};
    head->rerank = p->rerank;
    head->kernels = fh_kernels_for(head->kernels, head->exact.rows * head->exact.stride);

    head->slot_of = fh_malloc((size_t)p->vocab * sizeof *head->slot_of);
    head->dead_map = fh_calloc(p->vocab, 1);
    if (!head->slot_of || !head->dead_map) goto no_memory;
    size_t slots = (size_t)p->clusters * p->cap;
    for (size_t s = 0; s < slots; s++)
        if (p->permutation[s] != FH_NO_TOKEN) head->slot_of[p->permutation[s]] = (uint32_t)s;
    for (size_t i = 0; i < p->n_dead; i++) head->dead_map[p->dead[i]] = 1;
    if (!live_ids(&head->always, &head->n_always, head, p->always, p->n_always, NULL, 0) ||
        !live_ids(&head->forced, &head->n_forced, head, p->always, p->n_always, p->hot, p->n_hot))
        goto no_memory;

    head->info = (fh_head_info){
        .vocab = p->vocab, .hidden = p->hidden, .clusters = p->clusters, .cap = p->cap, .probes = p->probes, .threshold = p->threshold,
        .centroids = fh_dtype_name(p->centroids.dtype), .tokens = fh_dtype_name(p->tokens.dtype),
        .exact = head->exact.data ? fh_dtype_name(head->exact.dtype) : NULL, .rerank = p->rerank,
        .hot = p->hot, .n_hot = p->n_hot, .always = p->always, .n_always = p->n_always, .dead = p->n_dead,
        .fingerprint = "", .digest = "", .isa = head->kernels->name};
    *out = head, head = NULL;
    goto out;
no_memory:
    rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", name);
out:
    fh_head_close(head);
    return rc;
}

fh_status fh_head_from_parts(fh_head **out, const fh_head_parts *parts, const char *name, fh_err *err)
{
    return make(out, parts, false, name, err);
}

fh_status fh_head_open(fh_head **out, const char *path, fh_err *err)
{
    fh_status rc;
    fh_fhead *file = NULL;
    fh_head_layout h;
    if ((rc = fh_fhead_open(&file, path, err)) < 0 || (rc = fh_fhead_check_head(file, &h, err)) < 0) goto out;
    fh_head_parts p = {
        .vocab = h.vocab, .hidden = h.hidden, .clusters = h.k, .cap = h.cap, .probes = h.probes, .threshold = h.threshold,
        .centroids = h.centroids, .centroid_scales = h.centroid_scales, .tokens = h.tokens, .token_scales = h.token_scales,
        .exact = h.exact, .tokens_exact = h.tokens_exact, .rerank = h.rerank, .permutation = h.permutation, .dead = h.dead, .n_dead = h.n_dead,
        .bias = h.bias, .softcap = (float)h.softcap, .hot = h.hot, .n_hot = h.n_hot, .always = h.always, .n_always = h.n_always};
    if ((rc = make(out, &p, true, path, err)) < 0) goto out;
    (*out)->info.calibrated = h.calibrated;
    (*out)->info.fingerprint = h.fingerprint;
    (*out)->info.digest = fh_fhead_digest(file);
    (*out)->file = file, file = NULL;
out:
    fh_fhead_close(file);
    return rc;
}

void fh_head_close(fh_head *head)
{
    if (!head) return;
    fh_fhead_close(head->file);
    fh_free(head->slot_of);
    fh_free(head->dead_map);
    fh_free(head->always);
    fh_free(head->forced);
    fh_free(head);
}

/* ---- what it is ------------------------------------------------------------------------------------------------------- */

const fh_head_info *fh_head_get_info(const fh_head *head) { return &head->info; }
const fh_head_parts *fh_head_get_parts(const fh_head *head) { return &head->parts; }
const uint32_t *fh_head_slots(const fh_head *head) { return head->slot_of; }
const uint8_t *fh_head_dead_map(const fh_head *head) { return head->dead_map; }
const fh_fhead *fh_head_file(const fh_head *head) { return head->file; }

const void *fh_head_exact_row(const fh_head *head, uint32_t id)
{
    return head->exact.data && id < head->parts.vocab ? fh_row(&head->exact, head->slot_of[id]) : NULL;
}

fh_status fh_head_need_exact(const fh_head *head, fh_err *err)
{
    if (head->exact.data) return FH_OK;
    return fh_fail(err, FH_ENOTFOUND, "the head has no exact rows, which the dense head is made of: pack it as a bundle or with --exact");
}

double fh_head_step_bytes(const fh_head *head, double probes, size_t n_hot)
{
    fh_head_layout layout = layout_of(&head->parts);
    return fh_head_layout_step_bytes(&layout, probes, n_hot);
}

double fh_head_dense_bytes(const fh_head *head)
{
    const fh_head_parts *p = &head->parts;
    fh_dtype dtype = head->exact.data ? head->exact.dtype : p->tokens.dtype;
    return (double)p->vocab * p->hidden * fh_dtype_bits(dtype) / 8;
}

/* ---- scratch ------------------------------------------------------------------------------------------------------------ */

fh_status fh_scratch_new(fh_scratch **out, const fh_head *head, unsigned threads, fh_err *err)
{
    fh_pool *pool = NULL;
    fh_status rc = threads != 1 ? fh_pool_new(&pool, threads, err) : FH_OK;
    if (rc == FH_OK) rc = fh_scratch_on(out, head, pool, err);
    if (rc == FH_OK) (*out)->own = pool;
    else fh_pool_free(pool);
    return rc;
}

fh_status fh_scratch_on(fh_scratch **out, const fh_head *head, fh_pool *pool, fh_err *err)
{
    enum { SCORES = 2 << 20 }; /* floats: 8 MB of scores at most, unless one state has more */
    fh_status rc = FH_OK;
    size_t k = head->parts.clusters;
    fh_scratch *s = fh_calloc(1, sizeof *s);
    if (!s) return fh_fail(err, FH_ENOMEM, "scratch: out of memory");
    s->head = head;
    s->pool = pool;
    s->threads = fh_pool_threads(s->pool);
    s->block = fh_min(FH_BLOCK, fh_max(1, SCORES / k));
    s->scores = fh_aligned(s->block * k * sizeof *s->scores);
    s->chosen = fh_malloc(s->block * k * sizeof *s->chosen);
    s->room = fh_malloc(s->threads * k * sizeof *s->room);
    s->probed = fh_calloc(k, sizeof *s->probed);
    s->list = fh_malloc(k * sizeof *s->list);
    s->excluded = fh_calloc(head->parts.vocab, 1);
    bool integers = fh_head_has_integers(head);
    if (integers) s->quantized = fh_aligned(s->block * fh_state_bytes(head->parts.hidden));
    if (!s->scores || !s->chosen || !s->room || !s->probed || !s->list || !s->excluded || (integers && !s->quantized)) {
        rc = fh_fail(err, FH_ENOMEM, "scratch: out of memory");
        goto out;
    }
    *out = s, s = NULL;
out:
    fh_scratch_free(s);
    return rc;
}

void fh_scratch_free(fh_scratch *s)
{
    if (!s) return;
    fh_pool_free(s->own);
    fh_free(s->scores);
    fh_free(s->chosen);
    fh_free(s->room);
    fh_free(s->probed);
    fh_free(s->list);
    fh_free(s->excluded);
    fh_free(s->quantized);
    fh_free(s->heaps);
    fh_free(s->extras);
    fh_free(s->draw);
    fh_free(s);
}

void fh_scratch_watch(fh_scratch *scratch, double *seconds) { scratch->watch = seconds; }
fh_probed fh_scratch_probed(const fh_scratch *scratch) { return scratch->probed_so_far; }

fh_status fh_scratch_check(const fh_head *head, const fh_scratch *scratch, fh_err *err)
{
    if (scratch->head != head) return fh_fail(err, FH_EUSAGE, "the scratch was made for another head");
    return FH_OK;
}

fh_status fh_scratch_grow(void **p, size_t *have, size_t bytes, fh_err *err)
{
    if (bytes <= *have) return FH_OK;
    void *more = fh_malloc(bytes);
    if (!more) return fh_fail(err, FH_ENOMEM, "scratch: out of memory for %zu bytes", bytes);
    fh_free(*p);
    *p = more;
    *have = bytes;
    return FH_OK;
}
