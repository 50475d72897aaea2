/* artifacts/pack.c: everything that a model needs, in one .fhead.
 *
 * Small arrays that opening reads come first, then the rows in the order in which a step reads them, then the body.
 */
#include "artifacts/artifacts.h"

#include <math.h>
#include <string.h>

enum { PIECE = 4 << 20 }; /* bytes between looks at the stop flag */

typedef struct packer {
    const fh_pack_params *params;
    const fh_pack_input *in;
    const fh_head_parts *head;
    const fh_job *job;
    size_t slots;
    bool exact;               /* head.exact is written */
    fh_fhead_writer *w;
    const fh_tensor **tensors; fh_st_spec *specs; size_t n_tensors; /* of the body, in file order */
    char *tensors_header; size_t tensors_header_bytes;
    double done, total;       /* bytes, for progress */
} packer;

/* ---- judging the input ----------------------------------------------------------------------------------------- */

static fh_status misfit(const packer *p, const char *what, fh_err *err)
{
    return fh_fail(err, FH_EUSAGE, "%s: %s", p->in->name, what);
}

static bool fits(const fh_rows *m, size_t rows, size_t cols, const void *scales)
{
    return m->data && m->rows == rows && m->cols == cols && fh_dtype_is_encoding(m->dtype) && m->stride >= fh_row_bytes(m->dtype, cols) &&
           fh_dtype_is_integer(m->dtype) == (scales != NULL);
}

static fh_head_layout layout_of(const fh_head_parts *head)
{
    return (fh_head_layout){.vocab = head->vocab, .hidden = head->hidden, .k = head->clusters, .cap = head->cap, .probes = head->probes, .threshold = head->threshold,
                            .centroids = head->centroids, .centroid_scales = head->centroid_scales, .tokens = head->tokens,
                            .token_scales = head->token_scales, .permutation = head->permutation, .dead = head->dead,
                            .n_dead = head->n_dead, .bias = head->bias, .hot = head->hot, .n_hot = head->n_hot,
                            .always = head->always, .n_always = head->n_always};
}

static fh_status judge(packer *p, fh_err *err)
{
    const fh_pack_input *in = p->in;
    const fh_head_parts *head = p->head;
    fh_head_layout layout = {0};
    fh_status rc;
    if (!head->hidden || !fh_mul(head->clusters, head->cap, &p->slots)) return misfit(p, "a head needs clusters of rows", err);
    if (!fits(&head->centroids, head->clusters, head->hidden, head->centroid_scales))
        return misfit(p, "centroids are not [K, D] of an encoding, with scales where they are integers", err);
    if (!fits(&head->tokens, p->slots, head->hidden, head->token_scales))
        return misfit(p, "token rows are not [K * cap, D] of an encoding, with scales where they are integers", err);
    if (!fh_dtype_is_float(in->dtype)) return misfit(p, "the checkpoint's dtype is not f32, bf16 or f16", err);
    if (in->exact.data && (!fits(&in->exact, head->vocab, head->hidden, NULL) || in->exact.dtype != in->dtype))
        return misfit(p, "exact rows are not [V, D] of the checkpoint's dtype", err);
    if (!in->fingerprint || strlen(in->fingerprint) != 64 || strspn(in->fingerprint, "0123456789abcdef") != 64)
        return misfit(p, "the fingerprint is not 64 lower-case hex digits", err);
    if (!in->model_type || !*in->model_type || !in->routing) return misfit(p, "model type or routing is not said", err);
    if (!(in->softcap >= 0) || !isfinite((float)in->softcap)) return misfit(p, "the soft-cap is not a number from 0 up", err);
    p->exact = in->exact.data && head->tokens.dtype != in->dtype;
    if (head->rerank > FH_MAX_RERANK || (head->rerank && !p->exact)) return misfit(p, "rows are to be scored again, but from what is not packed, or too many", err);
    if (in->body && !in->config.text) return misfit(p, "a body needs its config.json", err);
    if (in->n_leave_out && !p->exact && head->tokens.dtype != in->dtype)
        return misfit(p, "tensors equal to the head are left out of the body, but the exact rows are not packed", err);

    layout = layout_of(head);
    if ((rc = fh_head_layout_check(&layout, in->name, err)) < 0) return rc;
    return fh_head_layout_check_rows(&layout, in->name, p->job, err);
}

static bool left_out(const fh_pack_input *in, const char *name)
{
    for (size_t i = 0; i < in->n_leave_out; i++)
        if (!strcmp(in->leave_out[i], name)) return true;
    return false;
}

/* Which tensors the body keeps: wide elements first, by name among equals, so that all of them lie aligned without padding. */
static fh_status choose_tensors(packer *p, fh_err *err)
{
    static const unsigned widths[] = {64, 32, 16, 8};
    const fh_pack_input *in = p->in;
    size_t n = in->body ? fh_tensors_count(in->body) : 0;
    if (!in->body) return FH_OK;
    for (size_t i = 0; i < in->n_leave_out; i++)
        if (!fh_tensors_find(in->body, in->leave_out[i]))
            return fh_fail(err, FH_EUSAGE, "%s: tensor '%s' cannot be left out: there is none", in->name, in->leave_out[i]);
    p->tensors = fh_calloc(n + 1, sizeof *p->tensors);
    p->specs = fh_calloc(n + 1, sizeof *p->specs);
    if (!p->tensors || !p->specs) return fh_fail(err, FH_ENOMEM, "%s: out of memory", in->name);
    for (size_t pass = 0; pass < sizeof widths / sizeof *widths; pass++)
        for (size_t i = 0; i < n; i++) {
            const fh_tensor *t = fh_tensors_at(in->body, i);
            unsigned bits = fh_dtype_bits(t->dtype);
            bool last = pass + 1 == sizeof widths / sizeof *widths; /* narrower ones go there too */
            if (left_out(in, t->name) || !(last ? bits <= widths[pass] : bits == widths[pass])) continue;
            p->tensors[p->n_tensors] = t;
            p->specs[p->n_tensors] = (fh_st_spec){.name = t->name, .dtype = t->dtype, .rank = t->rank};
            memcpy(p->specs[p->n_tensors++].shape, t->shape, sizeof t->shape);
            p->total += (double)t->bytes;
        }
    p->tensors_header = fh_st_header(p->specs, p->n_tensors, NULL, &p->tensors_header_bytes);
    return p->tensors_header ? FH_OK : fh_fail(err, FH_ENOMEM, "%s: out of memory", in->name);
}

/* ---- the JSON header --------------------------------------------------------------------------------------------- */

static size_t stride_of(const packer *p, fh_dtype encoding) { return fh_round_up(fh_row_bytes(encoding, p->head->hidden), 64); }

static void add_encoding(const packer *p, fh_json *head, const char *key, fh_dtype encoding)
{
    fh_json *e = fh_json_add_object(head, key);
    fh_json_add_string(e, "encoding", fh_dtype_name(encoding));
    fh_json_add_u64(e, "group", encoding == FH_I4 ? FH_GROUP : p->head->hidden);
    fh_json_add_u64(e, "stride", stride_of(p, encoding));
    fh_json_add_string(e, "layout", "rows");
    fh_json_add_string(e, "transform", "none");
}

static void add_ids(fh_json *head, const char *key, const uint32_t *ids, size_t n)
{
    fh_json *a = fh_json_add_array(head, key);
    for (size_t i = 0; i < n; i++) fh_json_add_u64(a, NULL, ids[i]);
}

static char *header_text(const packer *p)
{
    const fh_pack_input *in = p->in;
    const fh_head_parts *h = p->head;
    fh_json *j = fh_json_object(), *model, *head, *bundle;
    char *text;
    fh_json_add_string(j, "format", "fhead");
    fh_json *requires = fh_json_add_array(j, "requires");
    if (h->threshold > 0) fh_json_add_string(requires, NULL, FH_FEATURE_THRESHOLD);
    fh_json_add_string(j, "tool", "fhtool " FLASHHEAD_VERSION);
    model = fh_json_add_object(j, "model");
    fh_json_add_string(model, "type", in->model_type);
    fh_json_add_u64(model, "vocab", h->vocab);
    fh_json_add_u64(model, "hidden", h->hidden);
    fh_json_add_string(model, "dtype", fh_dtype_name(in->dtype));
    fh_json_add_bool(model, "tied", in->tied);
    fh_json_add_double(model, "softcap", in->softcap);
    fh_json_add_string(model, "fingerprint", in->fingerprint);
    fh_json_add_u64(model, "tokenizer_size", in->tokenizer_size);
    head = fh_json_add_object(j, "head");
    fh_json_add_u64(head, "k", h->clusters);
    fh_json_add_u64(head, "cap", h->cap);
    fh_json_add_u64(head, "probes", h->probes);
    if (h->threshold > 0) fh_json_add_double(head, "threshold", (double)h->threshold);
    fh_json_add_string(head, "routing", in->routing);
    add_encoding(p, head, "centroids", h->centroids.dtype);
    add_encoding(p, head, "tokens", h->tokens.dtype);
    if (p->exact) add_encoding(p, head, "exact", in->dtype);
    if (h->rerank) fh_json_add_u64(head, "rerank", h->rerank);
    add_ids(head, "hot", h->hot, h->n_hot);
    add_ids(head, "always", h->always, h->n_always);
    if (in->calibration) {
        fh_head_layout layout = layout_of(h);
        char hex[65];
        fh_head_layout_digest(hex, &layout);
        fh_json_add_copy(j, "calibration", in->calibration);
        fh_json_add_string(j, "calibrated_head", hex);
    } else {
        fh_json_add_null(j, "calibration");
    }
    bundle = fh_json_add_object(j, "bundle");
    fh_json_add_bool(bundle, "body", in->body != NULL);
    fh_json_add_bool(bundle, "tokenizer", in->tokenizer.text != NULL);
    if (in->provenance) fh_json_add_copy(j, "provenance", in->provenance);
    else fh_json_add_object(j, "provenance");
    text = j ? fh_json_print(j, false) : NULL; /* NULL too when any of the additions failed */
    fh_json_free(j);
    return text;
}

/* ---- the sections ------------------------------------------------------------------------------------------------- */

static fh_status write_bytes(packer *p, const void *data, size_t bytes, fh_err *err)
{
    fh_status rc;
    for (size_t at = 0; at < bytes; at += PIECE) {
        size_t n = fh_min(bytes - at, PIECE);
        if (fh_job_stopped(p->job)) return fh_fail(err, FH_EINTERRUPTED, "%s: interrupted", p->params->path);
        if ((rc = fh_fhead_write(p->w, (const uint8_t *)data + at, n, err)) < 0) return rc;
        p->done += (double)n;
        fh_job_progress(p->job, "pack", fmin(p->done, p->total - 1), p->total, "bytes");
    }
    return FH_OK;
}

static fh_status add(packer *p, const char *name, const void *data, size_t bytes, fh_err *err)
{
    fh_status rc = fh_fhead_begin(p->w, name, FH_CODEC_RAW, FH_SECTION_REQUIRED, err);
    return rc < 0 ? rc : write_bytes(p, data, bytes, err);
}

/* n rows with the stride of the format; row i is row order[i] of src (order NULL: i), `empty` slots are zero. */
static fh_status add_rows(packer *p, const char *name, const fh_rows *src, size_t n, const uint32_t *order, const uint32_t *empty,
                          fh_err *err)
{
    size_t used = fh_row_bytes(src->dtype, src->cols), stride = stride_of(p, src->dtype), batch = fh_max(PIECE / stride, 1), size;
    uint8_t *buffer = NULL;
    fh_status rc = fh_fhead_begin(p->w, name, FH_CODEC_RAW, FH_SECTION_REQUIRED, err);
    if (rc < 0) return rc;
    if (fh_mul(fh_min(batch, n), stride, &size)) buffer = fh_calloc(1, size);
    if (!buffer) return fh_fail(err, FH_ENOMEM, "%s: section %s: out of memory", p->params->path, name);
    for (size_t from = 0; from < n && rc >= 0; from += batch) {
        size_t count = fh_min(batch, n - from);
        for (size_t i = 0; i < count; i++) {
            if (empty && empty[from + i] == FH_NO_TOKEN) memset(buffer + i * stride, 0, used);
            else memcpy(buffer + i * stride, fh_row(src, order ? order[from + i] : from + i), used);
        }
        rc = write_bytes(p, buffer, count * stride, err);
    }
    fh_free(buffer);
    return rc;
}

/* Scales as they are, 1 for empty slots. */
static fh_status add_token_scales(packer *p, fh_err *err)
{
    fh_dtype dtype = p->head->tokens.dtype;
    size_t each = fh_scale_bytes(dtype, p->head->hidden);
    uint8_t *scales = fh_malloc(p->slots * each);
    uint16_t one16 = fh_f32_to_bf16(1);
    float one = 1;
    fh_status rc;
    if (!scales) return fh_fail(err, FH_ENOMEM, "%s: section head.token_scales: out of memory", p->params->path);
    memcpy(scales, p->head->token_scales, p->slots * each);
    for (size_t s = 0; s < p->slots; s++)
        for (size_t i = 0; p->head->permutation[s] == FH_NO_TOKEN && i < each; i += dtype == FH_I4 ? sizeof one16 : sizeof one)
            memcpy(scales + s * each + i, dtype == FH_I4 ? (const void *)&one16 : (const void *)&one, dtype == FH_I4 ? sizeof one16 : sizeof one);
    rc = add(p, "head.token_scales", scales, p->slots * each, err);
    fh_free(scales);
    return rc;
}

static fh_status add_head(packer *p, fh_err *err)
{
    const fh_head_parts *h = p->head;
    fh_status rc;
    if ((rc = add(p, "head.permutation", h->permutation, p->slots * sizeof(uint32_t), err)) < 0 ||
        (rc = add(p, "head.dead", h->dead, h->n_dead * sizeof(uint32_t), err)) < 0 ||
        (h->bias && (rc = add(p, "head.bias", h->bias, h->vocab * sizeof(float), err)) < 0) ||
        (h->centroid_scales && (rc = add(p, "head.centroid_scales", h->centroid_scales, h->clusters * fh_scale_bytes(h->centroids.dtype, h->hidden), err)) < 0) ||
        (h->token_scales && (rc = add_token_scales(p, err)) < 0) ||
        (rc = add_rows(p, "head.centroids", &h->centroids, h->clusters, NULL, NULL, err)) < 0 ||
        (rc = add_rows(p, "head.tokens", &h->tokens, p->slots, NULL, h->permutation, err)) < 0)
        return rc;
    return p->exact ? add_rows(p, "head.exact", &p->in->exact, p->slots, h->permutation, h->permutation, err) : FH_OK;
}

static fh_status add_text(packer *p, const char *name, fh_codec codec, const fh_pack_text *t, fh_err *err)
{
    return t->text ? fh_fhead_add(p->w, name, codec, 0, t->text, t->len, err) : FH_OK;
}

/* Not marked as required: a reader of heads alone passes over them. */
static fh_status add_bundle(packer *p, fh_err *err)
{
    const fh_pack_input *in = p->in;
    fh_status rc;
    if (in->body && ((rc = add_text(p, "body.config", FH_CODEC_RAW, &in->config, err)) < 0 ||
                     (rc = add_text(p, "body.generation", FH_CODEC_RAW, &in->generation, err)) < 0))
        return rc;
    if (in->tokenizer.text && ((rc = add_text(p, "body.tokenizer", FH_CODEC_ZSTD, &in->tokenizer, err)) < 0 ||
                               (rc = add_text(p, "body.tokenizer_config", FH_CODEC_ZSTD, &in->tokenizer_config, err)) < 0 ||
                               (rc = add_text(p, "body.chat_template", FH_CODEC_ZSTD, &in->chat_template, err)) < 0))
        return rc;
    if (!in->body) return FH_OK;
    if ((rc = fh_fhead_begin(p->w, "body.tensors", FH_CODEC_RAW, 0, err)) < 0) return rc;
    if ((rc = write_bytes(p, p->tensors_header, p->tensors_header_bytes, err)) < 0) return rc;
    for (size_t i = 0; i < p->n_tensors; i++)
        if ((rc = write_bytes(p, p->tensors[i]->data, (size_t)p->tensors[i]->bytes, err)) < 0) return rc;
    return FH_OK;
}

static size_t count_sections(const packer *p)
{
    const fh_pack_input *in = p->in;
    return 4u + (p->head->bias != NULL) + (p->head->centroid_scales != NULL) + (p->head->token_scales != NULL) + p->exact +
           (in->body ? 2u + (in->generation.text != NULL) : 0) + (in->tokenizer.text ? 1u + (in->tokenizer_config.text != NULL) + (in->chat_template.text != NULL) : 0);
}

fh_status fh_pack(const fh_pack_params *params, const fh_job *job, fh_pack_report *report, fh_err *err)
{
    packer p = {.params = params, .in = &params->input, .head = params->input.head, .job = job};
    fh_pack_report done = {.bundled = p.in->body != NULL, .calibrated = p.in->calibration != NULL};
    char *header = NULL;
    fh_status rc;
    if ((rc = judge(&p, err)) < 0) goto out;
    if ((rc = choose_tensors(&p, err)) < 0) goto out;
    p.total += (double)(p.head->centroids.stride * p.head->clusters + p.head->tokens.stride * p.slots + 8 * p.slots);
    if (p.exact) p.total += (double)(stride_of(&p, p.in->dtype) * p.slots);
    header = header_text(&p);
    if (!header) {
        rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", params->path);
        goto out;
    }
    done.sections = count_sections(&p);
    if ((rc = fh_fhead_create(&p.w, params->path, params->flags, header, done.sections, err)) < 0) goto out;
    if ((rc = add_head(&p, err)) < 0) goto out;
    if ((rc = add_bundle(&p, err)) < 0) goto out;
    rc = fh_fhead_commit(p.w, done.digest, err);
    p.w = NULL;
    if (rc < 0) goto out;
    fh_job_progress(job, "pack", p.total, p.total, "bytes");
    if (report) *report = done;
out:
    fh_fhead_abandon(p.w);
    fh_free(header);
    fh_free(p.tensors_header);
    fh_free(p.tensors);
    fh_free(p.specs);
    return rc;
}
