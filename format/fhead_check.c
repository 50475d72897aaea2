/* format/fhead_check.c: is this the head of a language model?  The JSON header's facts, the sizes of the sections, and what the
 * arrays hold.  Header facts are named by their JSON pointer, arrays by section and index. */
#include "format/fhead_private.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_COUNT = 0x7fffffff }; /* V, D, K, cap: one fits an int32, K * cap a uint64 */

/* ---- the JSON header --------------------------------------------------------------------------------------------- */

static fh_status header_fault(const fh_fhead *f, const char *object, const char *key, const char *what, fh_err *err)
{
    return fh_fail(err, FH_EFORMAT, "%s: JSON header: %s%s%s is not %s", f->name, object, *key ? "/" : "", key, what);
}

static fh_status need_object(const fh_fhead *f, const char *key, const fh_json **out, fh_err *err)
{
    *out = fh_json_get(f->header, key);
    if (!*out || fh_json_type(*out) != FH_JSON_OBJECT) return header_fault(f, "", key, "an object", err);
    return FH_OK;
}

static fh_status need_count(const fh_fhead *f, const fh_json *in, const char *object, const char *key, uint32_t low, uint32_t *out,
                            fh_err *err)
{
    uint64_t v;
    if (!fh_json_u64(fh_json_get(in, key), &v) || v < low || v > MAX_COUNT)
        return header_fault(f, object, key, low ? "an integer from 1 to 2147483647" : "an integer from 0 to 2147483647", err);
    *out = (uint32_t)v;
    return FH_OK;
}

static fh_status need_bool(const fh_fhead *f, const fh_json *in, const char *object, const char *key, bool *out, fh_err *err)
{
    return fh_json_bool(fh_json_get(in, key), out) ? FH_OK : header_fault(f, object, key, "true or false", err);
}

static fh_status need_string(const fh_fhead *f, const fh_json *in, const char *object, const char *key, const char **out, fh_err *err)
{
    *out = fh_json_string(fh_json_get(in, key));
    return *out && **out ? FH_OK : header_fault(f, object, key, "a string", err);
}

static fh_status read_model(fh_fhead *f, fh_head_layout *h, fh_err *err)
{
    const fh_json *m;
    const char *dtype;
    fh_status rc;
    if ((rc = need_object(f, "model", &m, err)) < 0 || (rc = need_string(f, m, "/model", "type", &h->model_type, err)) < 0 ||
        (rc = need_count(f, m, "/model", "vocab", 1, &h->vocab, err)) < 0 ||
        (rc = need_count(f, m, "/model", "hidden", 1, &h->hidden, err)) < 0 ||
        (rc = need_string(f, m, "/model", "dtype", &dtype, err)) < 0 || (rc = need_bool(f, m, "/model", "tied", &h->tied, err)) < 0 ||
        (rc = need_count(f, m, "/model", "tokenizer_size", 0, &h->tokenizer_size, err)) < 0 ||
        (rc = need_string(f, m, "/model", "fingerprint", &h->fingerprint, err)) < 0)
        return rc;
    if (!fh_dtype_parse(&h->dtype, dtype) || !fh_dtype_is_float(h->dtype))
        return fh_fail(err, FH_EUNSUPPORTED, "%s: JSON header: /model/dtype '%s' is not one this fhtool knows (f32, bf16, f16)", f->name,
                       dtype);
    if (!fh_json_double(fh_json_get(m, "softcap"), &h->softcap) || !(h->softcap >= 0) || !isfinite((float)h->softcap))
        return header_fault(f, "/model", "softcap", "a number from 0 up", err);
    if (strlen(h->fingerprint) != 64 || strspn(h->fingerprint, "0123456789abcdef") != 64)
        return header_fault(f, "/model", "fingerprint", "64 lower-case hex digits", err);
    return FH_OK;
}

/* How the rows of a section are stored: everything is said, nothing implied, and what is not known is refused. */
static fh_status read_encoding(fh_fhead *f, const fh_head_layout *h, const fh_json *head, const char *key, size_t rows, fh_rows *out,
                               fh_err *err)
{
    const fh_json *e = fh_json_get(head, key);
    const char *encoding, *layout, *transform;
    uint64_t group, stride, want;
    char at[40];
    fh_status rc;
    snprintf(at, sizeof at, "/head/%s", key);
    if (!e || fh_json_type(e) != FH_JSON_OBJECT) return header_fault(f, at, "", "an object", err);
    if ((rc = need_string(f, e, at, "encoding", &encoding, err)) < 0 || (rc = need_string(f, e, at, "layout", &layout, err)) < 0 ||
        (rc = need_string(f, e, at, "transform", &transform, err)) < 0)
        return rc;
    if (!fh_json_u64(fh_json_get(e, "group"), &group)) return header_fault(f, at, "group", "a whole number", err);
    if (!fh_json_u64(fh_json_get(e, "stride"), &stride)) return header_fault(f, at, "stride", "a whole number", err);
    if (!fh_dtype_parse(&out->dtype, encoding))
        return fh_fail(err, FH_EUNSUPPORTED, "%s: JSON header: %s/encoding '%s' is not one this fhtool knows (f32, bf16, f16, int8, int4)",
                       f->name, at, encoding);
    if (strcmp(layout, "rows") != 0)
        return fh_fail(err, FH_EUNSUPPORTED, "%s: JSON header: %s/layout '%s' is not one this fhtool knows (rows)", f->name, at, layout);
    if (strcmp(transform, "none") != 0)
        return fh_fail(err, FH_EUNSUPPORTED, "%s: JSON header: %s/transform '%s' is not one this fhtool knows (none)", f->name, at,
                       transform);
    want = out->dtype == FH_I4 ? FH_GROUP : h->hidden;
    if (group != want)
        return fh_fail(err, FH_EUNSUPPORTED, "%s: JSON header: %s/group %llu: this fhtool knows groups of %llu in rows of %s", f->name, at,
                       (unsigned long long)group, (unsigned long long)want, encoding);
    want = fh_round_up(fh_row_bytes(out->dtype, h->hidden), 64);
    if (stride != want)
        return fh_fail(err, FH_EFORMAT, "%s: JSON header: %s/stride is %llu, %u values of %s take %llu", f->name, at,
                       (unsigned long long)stride, h->hidden, encoding, (unsigned long long)want);
    out->rows = rows;
    out->cols = h->hidden;
    out->stride = (size_t)stride;
    return FH_OK;
}

/* Ids of an array of the header, into the room that `ids` has for them. */
static fh_status read_ids(fh_fhead *f, const fh_json *head, const char *key, uint32_t *ids, size_t *n, fh_err *err)
{
    uint64_t v;
    *n = 0;
    for (const fh_json *c = fh_json_first(fh_json_get(head, key)); c; c = fh_json_next(c)) {
        if (!fh_json_u64(c, &v) || v >= UINT32_MAX) return header_fault(f, "/head", key, "an array of token ids", err);
        ids[(*n)++] = (uint32_t)v;
    }
    return FH_OK;
}

/* It is there exactly when `requires` names it: a reader that passed over it would probe other clusters. */
static fh_status read_threshold(fh_fhead *f, const fh_json *head, float *out, fh_err *err)
{
    double v;
    bool there = fh_json_has(head, "threshold"), named = false;
    for (const fh_json *r = fh_json_first(fh_json_get(f->header, "requires")); r; r = fh_json_next(r))
        named = named || !strcmp(fh_json_string(r), FH_FEATURE_THRESHOLD);
    if (there != named)
        return fh_fail(err, FH_EFORMAT, "%s: JSON header: /head/threshold is %s, /requires says otherwise", f->name, there ? "there" : "missing");
    if (!there) return FH_OK;
    if (!fh_json_double(fh_json_get(head, "threshold"), &v) || !((float)v > 0) || !isfinite((float)v))
        return header_fault(f, "/head", "threshold", "a number above 0", err);
    *out = (float)v;
    return FH_OK;
}

static fh_status read_head(fh_fhead *f, fh_head_layout *h, fh_err *err)
{
    const fh_json *head, *hot, *always;
    size_t n_hot, n_always, slots;
    fh_status rc;
    if ((rc = need_object(f, "head", &head, err)) < 0 || (rc = need_count(f, head, "/head", "k", 1, &h->k, err)) < 0 ||
        (rc = need_count(f, head, "/head", "cap", 1, &h->cap, err)) < 0 ||
        (rc = need_count(f, head, "/head", "probes", 1, &h->probes, err)) < 0 ||
        (rc = need_string(f, head, "/head", "routing", &h->routing, err)) < 0)
        return rc;
    if (!fh_mul(h->k, h->cap, &slots) || slots >= UINT32_MAX)
        return fh_fail(err, FH_EFORMAT, "%s: JSON header: /head/k %u times /head/cap %u is more than a slot number holds", f->name, h->k,
                       h->cap);
    if ((rc = read_encoding(f, h, head, "centroids", h->k, &h->centroids, err)) < 0 ||
        (rc = read_encoding(f, h, head, "tokens", slots, &h->tokens, err)) < 0)
        return rc;
    h->tokens_exact = h->tokens.dtype == h->dtype;
    if (fh_json_get(head, "exact")) {
        if ((rc = read_encoding(f, h, head, "exact", slots, &h->exact, err)) < 0) return rc;
        if (h->exact.dtype != h->dtype || h->tokens_exact)
            return fh_fail(err, FH_EFORMAT,
                           "%s: JSON header: /head/exact is %s: exact rows are of /model/dtype (%s), and only where /head/tokens are not",
                           f->name, fh_dtype_name(h->exact.dtype), fh_dtype_name(h->dtype));
    }

    if (fh_json_has(head, "rerank")) {
        if ((rc = need_count(f, head, "/head", "rerank", 0, &h->rerank, err)) < 0) return rc;
        if (h->rerank > FH_MAX_RERANK || (h->rerank && !h->exact.cols))
            return fh_fail(err, FH_EFORMAT, "%s: JSON header: /head/rerank is %u: 0 to %d, and above 0 only where there is /head/exact", f->name,
                           h->rerank, FH_MAX_RERANK);
    }

    if ((rc = read_threshold(f, head, &h->threshold, err)) < 0) return rc;

    hot = fh_json_get(head, "hot");
    always = fh_json_get(head, "always");
    if (!hot || fh_json_type(hot) != FH_JSON_ARRAY) return header_fault(f, "/head", "hot", "an array", err);
    if (!always || fh_json_type(always) != FH_JSON_ARRAY) return header_fault(f, "/head", "always", "an array", err);
    n_hot = fh_json_count(hot);
    n_always = fh_json_count(always);
    fh_free(f->ids);
    f->ids = fh_calloc(n_hot + n_always + 1, sizeof *f->ids);
    if (!f->ids) return fh_fail(err, FH_ENOMEM, "%s: out of memory", f->name);
    h->hot = f->ids;
    h->always = f->ids + n_hot;
    if ((rc = read_ids(f, head, "hot", f->ids, &h->n_hot, err)) < 0) return rc;
    return read_ids(f, head, "always", f->ids + n_hot, &h->n_always, err);
}

static fh_status read_rest(fh_fhead *f, fh_head_layout *h, fh_err *err)
{
    const fh_json *bundle, *calibration = fh_json_get(f->header, "calibration"), *provenance = fh_json_get(f->header, "provenance");
    const char *tool;
    fh_status rc;
    if (!fh_json_has(f->header, "calibration") || (calibration && fh_json_type(calibration) != FH_JSON_OBJECT))
        return header_fault(f, "", "calibration", "an object or null", err);
    if (!provenance || fh_json_type(provenance) != FH_JSON_OBJECT) return header_fault(f, "", "provenance", "an object", err);
    h->calibrated = calibration != NULL;
    if ((rc = need_string(f, f->header, "", "tool", &tool, err)) < 0 || (rc = need_object(f, "bundle", &bundle, err)) < 0 ||
        (rc = need_bool(f, bundle, "/bundle", "body", &h->has_body, err)) < 0)
        return rc;
    return need_bool(f, bundle, "/bundle", "tokenizer", &h->has_tokenizer, err);
}

/* ---- the sections ------------------------------------------------------------------------------------------------ */

/* A section that is used in place: there, raw, and of n * size bytes. */
static fh_status take(fh_fhead *f, const char *name, size_t n, size_t size, const void **data, fh_err *err)
{
    const fh_section *s = fh_fhead_find(f, name);
    size_t want;
    if (!s) return fh_fail(err, FH_EFORMAT, "%s: no section %s, which its JSON header asks for", f->name, name);
    if (s->codec != FH_CODEC_RAW)
        return fh_fail(err, FH_EUNSUPPORTED, "%s: section %s: compressed, but it is to be used in place", f->name, name);
    if (!fh_mul(n, size, &want) || want != s->bytes)
        return fh_fail(err, FH_ECHECK, "%s: section %s: has %llu bytes, the header's numbers ask for %zu times %zu", f->name, name,
                       (unsigned long long)s->bytes, n, size);
    *data = f->data + s->offset;
    return FH_OK;
}

/* A section and the header's word on it must both be there, or neither. */
static fh_status agree(const fh_fhead *f, const char *section, bool said, const char *pointer, fh_err *err)
{
    bool there = fh_fhead_find(f, section) != NULL;
    if (there == said) return FH_OK;
    return fh_fail(err, FH_EFORMAT, "%s: section %s is %s, JSON header: %s says otherwise", f->name, section, there ? "there" : "missing",
                   pointer);
}

static fh_status read_sections(fh_fhead *f, fh_head_layout *h, fh_err *err)
{
    const fh_section *s;
    const void *data;
    size_t slots = h->tokens.rows;
    fh_status rc;
    size_t centroid_scales = fh_scale_bytes(h->centroids.dtype, h->hidden), token_scales = fh_scale_bytes(h->tokens.dtype, h->hidden);
    if ((rc = agree(f, "head.centroid_scales", centroid_scales != 0, "/head/centroids/encoding", err)) < 0 ||
        (rc = agree(f, "head.token_scales", token_scales != 0, "/head/tokens/encoding", err)) < 0 ||
        (rc = agree(f, "head.exact", h->exact.cols != 0, "/head/exact", err)) < 0 ||
        (rc = agree(f, "body.config", h->has_body, "/bundle/body", err)) < 0 ||
        (rc = agree(f, "body.tensors", h->has_body, "/bundle/body", err)) < 0 ||
        (rc = agree(f, "body.tokenizer", h->has_tokenizer, "/bundle/tokenizer", err)) < 0)
        return rc;
    s = fh_fhead_find(f, "body.tensors");
    if (s && s->codec != FH_CODEC_RAW)
        return fh_fail(err, FH_EUNSUPPORTED, "%s: section %s: compressed, but it is to be used in place", f->name, s->name);
    if ((rc = take(f, "head.centroids", h->k, h->centroids.stride, &h->centroids.data, err)) < 0 ||
        (rc = take(f, "head.tokens", slots, h->tokens.stride, &h->tokens.data, err)) < 0 ||
        (h->exact.cols && (rc = take(f, "head.exact", slots, h->exact.stride, &h->exact.data, err)) < 0) ||
        (rc = take(f, "head.permutation", slots, sizeof(uint32_t), &data, err)) < 0)
        return rc;
    h->permutation = data;
    if (centroid_scales && (rc = take(f, "head.centroid_scales", h->k, centroid_scales, &h->centroid_scales, err)) < 0) return rc;
    if (token_scales && (rc = take(f, "head.token_scales", slots, token_scales, &h->token_scales, err)) < 0) return rc;
    if (fh_fhead_find(f, "head.bias")) {
        if ((rc = take(f, "head.bias", h->vocab, sizeof(float), &data, err)) < 0) return rc;
        h->bias = data;
    }
    s = fh_fhead_find(f, "head.dead");
    h->n_dead = s ? (size_t)s->bytes / sizeof(uint32_t) : 0;
    if ((rc = take(f, "head.dead", h->n_dead, sizeof(uint32_t), &data, err)) < 0) return rc;
    h->dead = data;
    return FH_OK;
}

fh_status fh_fhead_check_head(fh_fhead *f, fh_head_layout *out, fh_err *err)
{
    fh_head_layout h = {0};
    fh_status rc;
    if (!f->checked) {
        if ((rc = read_model(f, &h, err)) < 0 || (rc = read_head(f, &h, err)) < 0 || (rc = read_rest(f, &h, err)) < 0 ||
            (rc = read_sections(f, &h, err)) < 0 || (rc = fh_head_layout_check(&h, f->name, err)) < 0)
            return rc;
        f->layout = h;
        f->checked = true;
    }
    *out = f->layout;
    return FH_OK;
}

/* ---- what the arrays hold ------------------------------------------------------------------------------------------ */

static bool seen_before(uint8_t *bits, uint32_t id)
{
    uint8_t bit = (uint8_t)(1u << id % 8);
    bool was = bits[id / 8] & bit;
    bits[id / 8] |= bit;
    return was;
}

static fh_status check_scales(const fh_rows *rows, const void *scales, size_t n, const char *name, const char *section, fh_err *err)
{
    size_t each = rows->dtype == FH_I4 ? fh_scale_bytes(FH_I4, rows->cols) / sizeof(uint16_t) : 1;
    for (size_t i = 0; scales && i < n * each; i++) {
        float scale = fh_scale_at(rows->dtype, scales, i);
        if (!(scale > 0) || !isfinite(scale))
            return fh_fail(err, FH_ECHECK, "%s: section %s: the scale of row %zu is %g, not a number above 0", name, section, i / each,
                           (double)scale);
    }
    return FH_OK;
}

/* Every token below V has exactly one slot; within a cluster ids ascend, and what is left empty lies at the end. */
static fh_status check_permutation(const fh_head_layout *h, uint8_t *seen, const char *name, fh_err *err)
{
    size_t slots = (size_t)h->k * h->cap;
    for (size_t s = 0; s < slots; s++) {
        uint32_t id = h->permutation[s], before = s % h->cap ? h->permutation[s - 1] : 0;
        bool first = s % h->cap == 0;
        size_t cluster = s / h->cap;
        if (id == UINT32_MAX) continue;
        if (id >= h->vocab)
            return fh_fail(err, FH_ECHECK, "%s: section head.permutation: slot %zu (cluster %zu): token %u, but the vocabulary has %u",
                           name, s, cluster, id, h->vocab);
        if (!first && before == UINT32_MAX)
            return fh_fail(err, FH_ECHECK, "%s: section head.permutation: slot %zu (cluster %zu): token %u after an empty slot", name, s,
                           cluster, id);
        if (seen_before(seen, id))
            return fh_fail(err, FH_ECHECK, "%s: section head.permutation: slot %zu (cluster %zu): token %u has a slot already", name, s,
                           cluster, id);
        if (!first && id < before)
            return fh_fail(err, FH_ECHECK,
                           "%s: section head.permutation: slot %zu (cluster %zu): token %u after %u, ids ascend in a cluster", name, s,
                           cluster, id, before);
    }
    for (uint32_t id = 0; id < h->vocab; id++)
        if (!(seen[id / 8] >> id % 8 & 1)) return fh_fail(err, FH_ECHECK, "%s: section head.permutation: token %u has no slot", name, id);
    return FH_OK;
}

static fh_status check_ids(const uint32_t *ids, size_t n, uint32_t vocab, uint8_t *seen, const char *name, const char *what, fh_err *err)
{
    memset(seen, 0, vocab / 8 + 1);
    for (size_t i = 0; i < n; i++) {
        if (ids[i] >= vocab)
            return fh_fail(err, FH_ECHECK, "%s: %s/%zu: token %u, but the vocabulary has %u", name, what, i, ids[i], vocab);
        if (seen_before(seen, ids[i])) return fh_fail(err, FH_ECHECK, "%s: %s/%zu: token %u is there twice", name, what, i, ids[i]);
    }
    return FH_OK;
}

fh_status fh_head_layout_check(const fh_head_layout *h, const char *name, fh_err *err)
{
    size_t slots;
    uint8_t *seen = NULL;
    fh_status rc;
    if (!h->vocab || !h->k || !fh_mul(h->k, h->cap, &slots) || slots < h->vocab || slots >= UINT32_MAX || h->k > h->vocab)
        return fh_fail(err, FH_ECHECK, "%s: %u clusters of %u tokens do not hold a vocabulary of %u (1 to V clusters, K * cap at least V)",
                       name, h->k, h->cap, h->vocab);
    if (!h->probes || h->probes > h->k) return fh_fail(err, FH_ECHECK, "%s: /head/probes is %u, not 1 to %u", name, h->probes, h->k);
    if (!(h->threshold >= 0) || !isfinite(h->threshold))
        return fh_fail(err, FH_ECHECK, "%s: /head/threshold is %g, not a number above 0", name, (double)h->threshold);
    if ((rc = check_scales(&h->centroids, h->centroid_scales, h->k, name, "head.centroid_scales", err)) < 0 ||
        (rc = check_scales(&h->tokens, h->token_scales, slots, name, "head.token_scales", err)) < 0)
        return rc;
    for (size_t i = 0; i < h->n_dead; i++)
        if (h->dead[i] >= h->vocab || (i && h->dead[i] <= h->dead[i - 1]))
            return fh_fail(err, FH_ECHECK, "%s: section head.dead: entry %zu is %u: ids ascend, below %u", name, i, h->dead[i], h->vocab);
    for (size_t i = 0; h->bias && i < h->vocab; i++)
        if (!isfinite(h->bias[i]))
            return fh_fail(err, FH_ECHECK, "%s: section head.bias: the bias of token %zu is %g", name, i, (double)h->bias[i]);
    seen = fh_calloc((size_t)h->vocab / 8 + 1, 1);
    if (!seen) return fh_fail(err, FH_ENOMEM, "%s: out of memory", name);
    if ((rc = check_permutation(h, seen, name, err)) < 0) goto out;
    if ((rc = check_ids(h->hot, h->n_hot, h->vocab, seen, name, "/head/hot", err)) < 0) goto out;
    rc = check_ids(h->always, h->n_always, h->vocab, seen, name, "/head/always", err);
out:
    fh_free(seen);
    return rc;
}

double fh_head_layout_step_bytes(const fh_head_layout *h, double probes, size_t n_hot)
{
    double centroid = (double)(h->centroids.stride + fh_scale_bytes(h->centroids.dtype, h->centroids.cols));
    double token = (double)(h->tokens.stride + fh_scale_bytes(h->tokens.dtype, h->tokens.cols));
    double exact = (double)fh_round_up(fh_row_bytes(h->exact.dtype, h->exact.cols), 64); /* with the padding, as all rows */
    double clusters = probes > 0 ? fmin(probes, h->k) : h->probes;
    double candidates = clusters * h->cap + (double)n_hot + (double)h->n_always;
    return h->k * centroid + candidates * token + (h->rerank < candidates ? h->rerank : candidates) * exact;
}

/* ---- every value ------------------------------------------------------------------------------------------------------ */

/* The first bad value of a row (cols: none): a float whose exponent is all ones, or -128.  *any gathers the bits of the values, the
 * sign of floats left out.  Eight bytes at a time (65 million values: bf16 16 ms, int8 9 ms; value by value 37 ms, one core of a cloud
 * server): in `t` the top bit of each value's lane says that it is good.
 *
 *      finite:    (~w & exponent) + 0x7fff..   the sum reaches the top bit unless the exponent had no bit left
 *      not 0x80:  x = w ^ 0x80, ((x & 0x7f) + 0x7f) | x   top bit set unless x is 0
 */
static size_t bad_value(fh_dtype dtype, const void *row, size_t cols, uint64_t *any)
{
    unsigned width = (unsigned)fh_dtype_size(dtype), bits = 8 * width;
    bool i8 = dtype == FH_I8;
    uint64_t ones = UINT64_MAX / ((1ull << bits) - 1), top = ones << (bits - 1), low = top - ones;
    uint64_t exponent = ones * (dtype == FH_F32 ? 0x7f800000u : dtype == FH_BF16 ? 0x7f80u : 0x7c00u), value = i8 ? UINT64_MAX : low;
    for (size_t at = 0, bytes = cols * width; at < bytes; at += 8) {
        uint64_t w = 0, t, x;
        if (bytes - at >= 8) memcpy(&w, (const uint8_t *)row + at, 8);
        else memcpy(&w, (const uint8_t *)row + at, bytes - at);
        x = w ^ top;
        t = i8 ? ((x & low) + low) | x : (~w & exponent) + low;
        if ((t & top) != top) return at / width + (size_t)__builtin_ctzll(~t & top) / bits;
        *any |= w & value;
    }
    return cols;
}

/* The same for int4: -8 in either half of a byte. */
static size_t bad_nibble(const uint8_t *row, size_t cols)
{
    for (size_t i = 0; i < cols; i++)
        if ((row[i / 128 * 64 + i % 64] >> (i % 128 < 64 ? 0 : 4) & 15) == 8) return i;
    return cols;
}

static fh_status check_rows(const fh_head_layout *h, const fh_rows *rows, bool centroids, const char *name, const char *section,
                            const fh_job *job, fh_err *err)
{
    const char *wrong = rows->dtype == FH_I8 ? "-128, outside of -127 to 127" : rows->dtype == FH_I4 ? "-8, outside of -7 to 7" : "not a finite number";
    bool i4 = rows->dtype == FH_I4;
    for (size_t r = 0; rows->data && r < rows->rows; r++) {
        uint64_t any = 0;
        size_t at;
        if (r % 4096 == 0 && fh_job_stopped(job)) return fh_fail(err, FH_EINTERRUPTED, "%s: interrupted", name);
        if (!centroids && h->permutation[r] == UINT32_MAX) continue;
        at = i4 ? bad_nibble(fh_row(rows, r), rows->cols) : bad_value(rows->dtype, fh_row(rows, r), rows->cols, &any);
        if (at < rows->cols && centroids)
            return fh_fail(err, FH_ECHECK, "%s: section %s: the centroid of cluster %zu: value %zu is %s", name, section, r, at, wrong);
        if (at < rows->cols)
            return fh_fail(err, FH_ECHECK, "%s: section %s: row %zu (token %u): value %zu is %s", name, section, r, h->permutation[r], at,
                           wrong);
        if (centroids && !any && !i4) return fh_fail(err, FH_ECHECK, "%s: section %s: the centroid of cluster %zu is zero", name, section, r);
    }
    return FH_OK;
}

fh_status fh_head_layout_check_rows(const fh_head_layout *h, const char *name, const fh_job *job, fh_err *err)
{
    fh_status rc = check_rows(h, &h->centroids, true, name, "head.centroids", job, err);
    if (rc >= 0) rc = check_rows(h, &h->tokens, false, name, "head.tokens", job, err);
    if (rc >= 0) rc = check_rows(h, &h->exact, false, name, "head.exact", job, err);
    return rc;
}
