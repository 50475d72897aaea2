/* artifacts/diff.c: what moved between two artifacts, as meaning: settings, promise, clusters, tokens that changed home, and who suffers from it. */
#include "artifacts/diff.h"

#include <math.h>
#include <stdlib.h>

enum { BATCH = 256 /* rows scored at a time */, SHOWN = 64 };
#define MOST_WORK 4e11 /* multiplications a side: some seconds; beyond it every n-th token is looked at */

typedef struct side {
    const char *name;
    char *path;
    fh_fhead *file;
    fh_head_layout h;
    fh_json *info;
    fh_tokenizer *tokenizer;  /* NULL: none in it */
    uint32_t *home, *slot;    /* [V] */
    uint8_t *free;            /* [V] candidates wherever they live: hot and always */
    uint32_t *rank;           /* [measured] clusters that score above its home for the token's own row */
    uint8_t *close;           /* [measured] home is within the head's threshold of the best one */
} side;

static fh_status no_memory(const side *s, fh_err *err) { return fh_fail(err, FH_ENOMEM, "%s: out of memory", s->name); }

/* ---- opening -------------------------------------------------------------------------------------------------------------- */

/* An artifact, or that of a release. */
static fh_status find_artifact(side *s, fh_err *err)
{
    char *json = NULL, *text = NULL;
    size_t len = 0;
    fh_release r = {0};
    fh_status rc = FH_OK;
    if (!fh_is_release(s->name)) return (s->path = fh_strdup(s->name)) ? FH_OK : no_memory(s, err);
    if (!(json = fh_path_join(s->name, FH_RELEASE_JSON))) return no_memory(s, err);
    if ((rc = fh_file_read(&text, &len, json, FH_RELEASE_BYTES, err)) == FH_OK && (rc = fh_release_parse(&r, text, len, json, err)) == FH_OK &&
        !(s->path = fh_path_join(s->name, r.artifact))) rc = no_memory(s, err);
    fh_release_free(&r);
    fh_free(json);
    fh_free(text);
    return rc;
}

static fh_status side_open(side *s, const char *name, const fh_job *job, fh_err *err)
{
    const void *text;
    size_t len;
    fh_err none;
    s->name = name;
    fh_status rc = find_artifact(s, err);
    if (rc < 0 || (rc = fh_fhead_open(&s->file, s->path, err)) < 0 || (rc = fh_artifact_verify(s->file, job, err)) < 0 ||
        (rc = fh_fhead_check_head(s->file, &s->h, err)) < 0 || (rc = fh_artifact_info(s->file, &s->info, err)) < 0)
        return rc;
    const fh_head_layout *h = &s->h;
    s->home = fh_calloc(h->vocab, sizeof *s->home), s->slot = fh_calloc(h->vocab, sizeof *s->slot), s->free = fh_calloc(h->vocab, 1);
    if (!s->home || !s->slot || !s->free) return no_memory(s, err);
    for (size_t i = 0; i < (size_t)h->k * h->cap; i++)
        if (h->permutation[i] != UINT32_MAX) s->home[h->permutation[i]] = (uint32_t)(i / h->cap), s->slot[h->permutation[i]] = (uint32_t)i;
    for (size_t i = 0; i < h->n_hot; i++) s->free[h->hot[i]] = 1;
    for (size_t i = 0; i < h->n_always; i++) s->free[h->always[i]] = 1;
    if (h->has_tokenizer && fh_fhead_data(s->file, "body.tokenizer", &text, &len, &none) == FH_OK &&
        fh_tokenizer_open(&s->tokenizer, text, len, NULL, s->path, NULL, &none) < 0)
        s->tokenizer = NULL; /* names of tokens are a convenience */
    return FH_OK;
}

static void side_close(side *s)
{
    fh_tokenizer_close(s->tokenizer);
    fh_json_free(s->info);
    fh_fhead_close(s->file);
    fh_free(s->path);
    fh_free(s->home);
    fh_free(s->slot);
    fh_free(s->free);
    fh_free(s->rank);
    fh_free(s->close);
}

/* ---- settings and promise -------------------------------------------------------------------------------------------------- */

static void add_row(fh_json *list, const char *what, const fh_json *a, const fh_json *b)
{
    char *x = a ? fh_json_print(a, false) : fh_strdup("-"), *y = b ? fh_json_print(b, false) : fh_strdup("-");
    if (x && y && strcmp(x, y)) {
        fh_json *j = fh_json_add_object(list, NULL);
        fh_json_add_string(j, "what", what);
        fh_json_add_copy(j, "a", a);
        fh_json_add_copy(j, "b", b);
    }
    fh_free(x);
    fh_free(y);
}

static void add_settings(fh_json *r, const side *a, const side *b)
{
    static const char *const promised[] = {"target", "confidence", "containment_k", "positions", "misses", "bound", "text", "text_sha256"};
    fh_json *list = fh_json_add_array(r, "settings");
    const fh_json *ca = fh_json_get(fh_fhead_header(a->file), "calibration"), *cb = fh_json_get(fh_fhead_header(b->file), "calibration");
    for (const fh_json *m = fh_json_first(a->info); m; m = fh_json_next(m))
        if (fh_json_type(m) != FH_JSON_ARRAY) add_row(list, fh_json_key(m), m, fh_json_get(b->info, fh_json_key(m)));
    list = fh_json_add_array(r, "promise");
    for (size_t i = 0; i < sizeof promised / sizeof *promised; i++) add_row(list, promised[i], fh_json_get(ca, promised[i]), fh_json_get(cb, promised[i]));
    add_row(list, "heldout containment", fh_json_get(fh_json_get(ca, "heldout"), "containment"), fh_json_get(fh_json_get(cb, "heldout"), "containment"));
    list = fh_json_add_array(r, "curve");
    for (const fh_json *x = fh_json_first(fh_json_get(ca, "curve")); x; x = fh_json_next(x))
        for (const fh_json *y = fh_json_first(fh_json_get(cb, "curve")); y; y = fh_json_next(y)) {
            uint64_t p, q;
            if (!fh_json_u64(fh_json_get(x, "probes"), &p) || !fh_json_u64(fh_json_get(y, "probes"), &q) || p != q) continue;
            fh_json *j = fh_json_add_object(list, NULL);
            fh_json_add_u64(j, "probes", p);
            fh_json_add_copy(j, "top1_a", fh_json_get(x, "top1"));
            fh_json_add_copy(j, "top1_b", fh_json_get(y, "top1"));
            fh_json_add_copy(j, "mass_a", fh_json_get(x, "mass"));
            fh_json_add_copy(j, "mass_b", fh_json_get(y, "mass"));
        }
}

static int by_id(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* Ids of `a` that are not in `b`, ascending. */
static fh_status add_missing(fh_json *to, const char *key, const uint32_t *a, size_t n, const uint32_t *b, size_t m, fh_err *err)
{
    fh_json *list = fh_json_add_array(to, key);
    uint32_t *x = fh_malloc((n + m + 1) * sizeof *x), *y = x ? x + n : NULL;
    if (!x) return fh_fail(err, FH_ENOMEM, "out of memory");
    if (n) memcpy(x, a, n * sizeof *x);
    if (m) memcpy(y, b, m * sizeof *y);
    qsort(x, n, sizeof *x, by_id);
    qsort(y, m, sizeof *y, by_id);
    for (size_t i = 0; i < n; i++)
        if (!bsearch(&x[i], y, m, sizeof *y, by_id)) fh_json_add_u64(list, NULL, x[i]);
    fh_free(x);
    return FH_OK;
}

/* ---- homes -------------------------------------------------------------------------------------------------------------------- */

typedef struct meeting { uint32_t count, a, b; } meeting; /* tokens that live in cluster a here and b there */

static int by_pair(const void *l, const void *r)
{
    uint64_t x = *(const uint64_t *)l, y = *(const uint64_t *)r;
    return (x > y) - (x < y);
}

static int most_first(const void *l, const void *r)
{
    const meeting *x = l, *y = r;
    if (x->count != y->count) return x->count > y->count ? -1 : 1;
    return x->a != y->a ? (x->a < y->a ? -1 : 1) : (x->b > y->b) - (x->b < y->b);
}

/* Clusters have no names of their own: one of A is the one of B that holds most of its tokens, the fullest first, each once.  A token has moved when its home
 * is not the partner of its old one.  *match [K of A] is freed by the caller. */
static fh_status match_clusters(uint32_t **match, size_t *moved, size_t *same, size_t *live, const side *a, const side *b, const uint8_t *dead, fh_err *err)
{
    uint32_t v = a->h.vocab;
    size_t n = 0, runs = 0;
    uint64_t *pairs = fh_malloc(v * sizeof *pairs);
    meeting *met = fh_malloc(v * sizeof *met);
    uint8_t *taken = fh_calloc(b->h.k, 1);
    uint32_t *size_a = fh_calloc(a->h.k, sizeof *size_a), *size_b = fh_calloc(b->h.k, sizeof *size_b);
    fh_status rc = FH_OK;
    *match = fh_malloc(a->h.k * sizeof **match);
    if (!pairs || !met || !taken || !size_a || !size_b || !*match) { rc = no_memory(a, err); goto out; }
    memset(*match, 0xff, a->h.k * sizeof **match);
    for (uint32_t t = 0; t < v; t++) {
        if (dead[t]) continue;
        pairs[n++] = (uint64_t)a->home[t] << 32 | b->home[t];
        size_a[a->home[t]]++, size_b[b->home[t]]++;
    }
    qsort(pairs, n, sizeof *pairs, by_pair);
    for (size_t i = 0, j; i < n; i = j) {
        for (j = i; j < n && pairs[j] == pairs[i]; j++) {}
        met[runs++] = (meeting){(uint32_t)(j - i), (uint32_t)(pairs[i] >> 32), (uint32_t)pairs[i]};
    }
    qsort(met, runs, sizeof *met, most_first);
    *live = n, *same = 0;
    size_t stayed = 0;
    for (size_t i = 0; i < runs; i++) {
        const meeting *m = &met[i];
        if ((*match)[m->a] != UINT32_MAX || taken[m->b]) continue;
        (*match)[m->a] = m->b, taken[m->b] = 1;
        stayed += m->count;
        *same += m->count == size_a[m->a] && m->count == size_b[m->b];
    }
    *moved = n - stayed;
out:
    fh_free(pairs);
    fh_free(met);
    fh_free(taken);
    fh_free(size_a);
    fh_free(size_b);
    return rc;
}

/* ---- who suffers ---------------------------------------------------------------------------------------------------------------- */

/* Without states, a token's own row stands for those that mean it: how many clusters come before its home then?  ids [n]. */
static fh_status measure_ranks(side *s, const uint32_t *ids, size_t n, const fh_job *job, fh_err *err)
{
    const fh_head_layout *h = &s->h;
    const fh_rows *rows = h->exact.data ? &h->exact : &h->tokens;
    const void *scales = h->exact.data ? NULL : h->token_scales;
    size_t each_row = fh_scale_bytes(rows->dtype, h->hidden), each_centroid = fh_scale_bytes(h->centroids.dtype, h->hidden), bytes;
    float *centroids = NULL, *x = NULL, *scores = NULL;
    fh_status rc = FH_OK;
    if (!fh_mul(h->k, h->hidden, &bytes) || !fh_mul(bytes, sizeof *centroids, &bytes)) return no_memory(s, err);
    centroids = fh_malloc(bytes), x = fh_malloc((size_t)BATCH * h->hidden * sizeof *x), scores = fh_malloc((size_t)BATCH * h->k * sizeof *scores);
    s->rank = fh_calloc(fh_max(n, 1), sizeof *s->rank), s->close = fh_calloc(fh_max(n, 1), 1);
    if (!centroids || !x || !scores || !s->rank || !s->close) { rc = no_memory(s, err); goto out; }
    for (size_t c = 0; c < h->k; c++)
        fh_dec_row(h->centroids.dtype, fh_row(&h->centroids, c), h->centroid_scales ? (const uint8_t *)h->centroid_scales + c * each_centroid : NULL, h->hidden,
                   centroids + c * h->hidden);
    for (size_t from = 0; from < n; from += BATCH) {
        size_t m = fh_min(BATCH, n - from);
        if (fh_job_stopped(job)) { rc = fh_fail(err, FH_EINTERRUPTED, "%s: interrupted", s->name); goto out; }
        for (size_t i = 0; i < m; i++) {
            size_t slot = s->slot[ids[from + i]];
            fh_dec_row(rows->dtype, fh_row(rows, slot), scales ? (const uint8_t *)scales + slot * each_row : NULL, h->hidden, x + i * h->hidden);
        }
        fh_gemm_nt(fh_job_pool(job), m, h->k, h->hidden, x, h->hidden, centroids, h->hidden, scores, h->k);
        for (size_t i = 0; i < m; i++) {
            const float *score = scores + i * h->k, own = score[s->home[ids[from + i]]];
            float best = own;
            for (size_t c = 0; c < h->k; c++) s->rank[from + i] += score[c] > own, best = fmaxf(best, score[c]);
            s->close[from + i] = !(h->threshold > 0) || fh_is_close(best, own, h->threshold);
        }
        fh_job_progress(job, "diff", (double)(from + m), (double)n + 1, "tokens");
    }
out:
    fh_free(centroids);
    fh_free(x);
    fh_free(scores);
    return rc;
}

typedef struct fate { uint32_t id, was, is; bool lost; } fate;

/* Found before and not now first, then by how much farther away. */
static int worst_first(const void *l, const void *r)
{
    const fate *x = l, *y = r;
    int64_t dx = (int64_t)x->is - x->was, dy = (int64_t)y->is - y->was;
    if (x->lost != y->lost) return x->lost ? -1 : 1;
    if (dx != dy) return dx > dy ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

static bool found(const side *s, uint32_t id, size_t i) { return s->free[id] || (s->rank[i] < s->h.probes && s->close[i]); }

static fh_status add_fates(fh_json *r, side *a, side *b, const uint8_t *dead, size_t live, const uint32_t *match, size_t top, const fh_job *job, fh_err *err)
{
    double work = (double)live * a->h.hidden * fmax(a->h.k, b->h.k);
    size_t step = work > MOST_WORK ? (size_t)ceil(work / MOST_WORK) : 1, n = 0, seen = 0, found_a = 0, found_b = 0;
    uint32_t *ids = fh_malloc((live / step + 1) * sizeof *ids);
    fate *fates = fh_malloc((live / step + 1) * sizeof *fates);
    const fh_tokenizer *names = b->tokenizer ? b->tokenizer : a->tokenizer;
    fh_status rc = ids && fates ? FH_OK : no_memory(a, err);
    for (uint32_t t = 0; rc == FH_OK && t < a->h.vocab; t++)
        if (!dead[t] && seen++ % step == 0) ids[n++] = t;
    if (rc < 0 || (rc = measure_ranks(a, ids, n, job, err)) < 0 || (rc = measure_ranks(b, ids, n, job, err)) < 0) goto out;
    for (size_t i = 0; i < n; i++) {
        bool before = found(a, ids[i], i), now = found(b, ids[i], i);
        found_a += before, found_b += now;
        fates[i] = (fate){ids[i], a->free[ids[i]] ? 0 : a->rank[i], b->free[ids[i]] ? 0 : b->rank[i], before && !now};
    }
    qsort(fates, n, sizeof *fates, worst_first);
    fh_json *own = fh_json_add_object(r, "found_by_own_row"), *list = fh_json_add_array(r, "worst");
    fh_json_add_u64(own, "tokens", n);
    fh_json_add_double(own, "a", n ? (double)found_a / (double)n : 0);
    fh_json_add_double(own, "b", n ? (double)found_b / (double)n : 0);
    for (size_t i = 0; i < fh_min(top, n) && (fates[i].lost || fates[i].is > fates[i].was); i++) {
        char shown[SHOWN];
        size_t len = 0;
        const char *piece = names ? fh_tokenizer_piece(names, fates[i].id, &len) : NULL;
        fh_json *j = fh_json_add_object(list, NULL);
        fh_json_add_u64(j, "id", fates[i].id);
        fh_json_add_string(j, "text", piece ? fh_show(shown, sizeof shown, piece, len) : "");
        fh_json_add_bool(j, "moved", match[a->home[fates[i].id]] != b->home[fates[i].id]);
        fh_json_add_u64(j, "clusters_before_a", fates[i].was);
        fh_json_add_u64(j, "clusters_before_b", fates[i].is);
        fh_json_add_bool(j, "lost", fates[i].lost);
    }
out:
    fh_free(ids);
    fh_free(fates);
    return rc;
}

static fh_status add_moves(fh_json *r, side *a, side *b, size_t top, const fh_job *job, fh_err *err)
{
    uint32_t *match = NULL;
    size_t moved = 0, same = 0, live = 0;
    uint8_t *dead = fh_calloc(a->h.vocab, 1);
    fh_status rc = dead ? FH_OK : no_memory(a, err);
    for (size_t i = 0; dead && i < a->h.n_dead; i++) dead[a->h.dead[i]] = 1;
    for (size_t i = 0; dead && i < b->h.n_dead; i++) dead[b->h.dead[i]] = 1;
    if (rc < 0 || (rc = match_clusters(&match, &moved, &same, &live, a, b, dead, err)) < 0) goto out;
    fh_json *j = fh_json_add_object(r, "clusters");
    fh_json_add_u64(j, "a", a->h.k);
    fh_json_add_u64(j, "b", b->h.k);
    fh_json_add_u64(j, "same_tokens", same);
    j = fh_json_add_object(r, "tokens");
    fh_json_add_u64(j, "live", live);
    fh_json_add_u64(j, "moved", moved);
    fh_json_add_double(j, "moved_share", live ? (double)moved / (double)live : 0);
    if ((rc = add_missing(r, "hot_added", b->h.hot, b->h.n_hot, a->h.hot, a->h.n_hot, err)) < 0 ||
        (rc = add_missing(r, "hot_removed", a->h.hot, a->h.n_hot, b->h.hot, b->h.n_hot, err)) < 0)
        goto out;
    rc = add_fates(r, a, b, dead, live, match, top, job, err);
out:
    fh_free(match);
    fh_free(dead);
    return rc;
}

fh_status fh_artifact_diff(const char *name_a, const char *name_b, const char *states, size_t top, const fh_job *job, fh_json **report, fh_err *err)
{
    side a = {.name = name_a}, b = {.name = name_b};
    fh_json *r = NULL;
    *report = NULL;
    fh_status rc = side_open(&a, name_a, job, err);
    if (rc < 0 || (rc = side_open(&b, name_b, job, err)) < 0) goto out;
    bool same_model = !strcmp(a.h.fingerprint, b.h.fingerprint), same_shape = a.h.vocab == b.h.vocab && a.h.hidden == b.h.hidden;
    if (!(r = fh_json_object())) { rc = no_memory(&a, err); goto out; }
    fh_json_add_string(r, "a", name_a);
    fh_json_add_string(r, "b", name_b);
    fh_json_add_bool(r, "same", !strcmp(fh_fhead_digest(a.file), fh_fhead_digest(b.file)));
    fh_json_add_bool(r, "same_model", same_model);
    add_settings(r, &a, &b);
    if (states && !same_model) {
        rc = fh_fail(err, FH_ECHECK, "--hidden: %s and %s are heads of different models: states are of one", name_a, name_b);
        goto out;
    }
    if (same_shape) rc = add_moves(r, &a, &b, top, job, err);
    if (rc == FH_OK && states) rc = fh_diff_states(r, a.path, b.path, states, top, b.tokenizer ? b.tokenizer : a.tokenizer, job, err);
    if (!same_model)
        fh_job_say(job, FH_WARN, "%s and %s are heads of different models%s", name_a, name_b,
                   same_shape ? "" : ", of different size: their clusters are not compared");
    fh_job_progress(job, "diff", 1, 1, "tokens");
    if (rc == FH_OK) *report = r, r = NULL;
out:
    fh_json_free(r);
    side_close(&a);
    side_close(&b);
    return rc;
}
