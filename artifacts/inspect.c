/* artifacts/inspect.c: what is in an artifact, and whether it is sound. */
#include "artifacts/artifacts.h"

#include <math.h>
#include <stdio.h>

static void add_sections(fh_json *to, const fh_fhead *f)
{
    fh_json *list = fh_json_add_array(to, "sections");
    for (size_t i = 0; i < fh_fhead_sections(f); i++) {
        const fh_section *s = fh_fhead_section(f, i);
        fh_json *e = fh_json_add_object(list, NULL);
        char hex[65];
        fh_sha256_hex(hex, s->sha256);
        fh_json_add_string(e, "name", s->name);
        fh_json_add_u64(e, "offset", s->offset);
        fh_json_add_u64(e, "bytes", s->bytes);
        fh_json_add_u64(e, "raw_bytes", s->raw_bytes);
        fh_json_add_string(e, "codec", s->codec == FH_CODEC_ZSTD ? "zstd" : "raw");
        fh_json_add_bool(e, "required", s->flags & FH_SECTION_REQUIRED);
        fh_json_add_string(e, "digest", hex);
    }
}

fh_status fh_artifact_info(fh_fhead *f, fh_json **out, fh_err *err)
{
    fh_head_layout h;
    const fh_section *last = fh_fhead_section(f, fh_fhead_sections(f) - 1);
    const fh_json *requires = fh_json_get(fh_fhead_header(f), "requires");
    const char *runtime = fh_json_string(fh_json_get(fh_json_get(fh_fhead_header(f), "calibration"), "runtime"));
    fh_json *j, *list;
    char version[16];
    char *text;
    fh_status rc = fh_fhead_check_head(f, &h, err);
    if (rc < 0) return rc;
    /* what calibration saw, where it is of this threshold */
    const fh_json *calibration = fh_json_get(fh_fhead_header(f), "calibration");
    bool seen = h.threshold > 0 && (float)fh_member_double(calibration, "threshold", 0) == h.threshold;
    double mean = seen ? fh_member_double(fh_json_get(calibration, "probed"), "mean", NAN) : NAN;
    j = fh_json_object();
    snprintf(version, sizeof version, "%u.%u", fh_fhead_major(f), fh_fhead_minor(f));
    fh_json_add_string(j, "format", version);
    list = fh_json_add_array(j, "requires");
    for (const fh_json *r = fh_json_first(requires); r; r = fh_json_next(r)) fh_json_add_copy(list, NULL, r);
    fh_json_add_string(j, "model_type", h.model_type);
    fh_json_add_u64(j, "vocab", h.vocab);
    fh_json_add_u64(j, "hidden", h.hidden);
    fh_json_add_string(j, "dtype", fh_dtype_name(h.dtype));
    fh_json_add_bool(j, "tied", h.tied);
    fh_json_add_u64(j, "k", h.k);
    fh_json_add_u64(j, "cap", h.cap);
    fh_json_add_u64(j, "probes", h.probes);
    if (h.threshold > 0) fh_json_add_double(j, "threshold", (double)h.threshold), fh_json_add_double(j, "mean_probes", mean);
    fh_json_add_u64(j, "hot", h.n_hot);
    fh_json_add_u64(j, "always", h.n_always);
    fh_json_add_u64(j, "dead_rows", h.n_dead);
    fh_json_add_string(j, "routing", h.routing);
    fh_json_add_string(j, "centroids", fh_dtype_name(h.centroids.dtype));
    fh_json_add_string(j, "tokens", fh_dtype_name(h.tokens.dtype));
    fh_json_add_bool(j, "exact", h.exact.data || h.tokens_exact);
    fh_json_add_u64(j, "rerank", h.rerank);
    fh_json_add_double(j, "step_bytes", fh_head_layout_step_bytes(&h, isfinite(mean) ? mean : 0, h.n_hot));
    if (h.threshold > 0) fh_json_add_double(j, "most_step_bytes", fh_head_layout_step_bytes(&h, 0, h.n_hot));
    fh_json_add_bool(j, "bundled", h.has_body);
    fh_json_add_bool(j, "tokenizer", h.has_tokenizer);
    fh_json_add_bool(j, "calibrated", h.calibrated);
    if (runtime) fh_json_add_string(j, "runtime", runtime); /* that the promise is about, where it is not fhtool */
    fh_json_add_string(j, "fingerprint", h.fingerprint);
    fh_json_add_string(j, "digest", fh_fhead_digest(f));
    fh_json_add_u64(j, "bytes", last->offset + last->bytes);
    add_sections(j, f);
    text = j ? fh_json_print(j, false) : NULL; /* says whether any addition failed */
    if (!text) {
        fh_json_free(j);
        return fh_fail(err, FH_ENOMEM, "%s: out of memory", fh_fhead_path(f));
    }
    fh_free(text);
    *out = j;
    return FH_OK;
}

/* The bundled body: its config and its tensors' table, against the head. */
static fh_status verify_body(fh_fhead *f, const fh_head_layout *h, const fh_job *job, fh_err *err)
{
    fh_config config = {0};
    fh_tensors *tensors = NULL;
    const void *text, *more = NULL, *image;
    char *generation = NULL, *name = fh_sprintf("%s: section body.config", fh_fhead_path(f));
    char *place = fh_sprintf("%s: section body.tensors", fh_fhead_path(f));
    size_t len, more_len = 0, image_bytes;
    fh_status rc;
    if (!name || !place) {
        rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", fh_fhead_path(f));
        goto out;
    }
    if ((rc = fh_fhead_data(f, "body.config", &text, &len, err)) < 0) goto out;
    if (fh_fhead_find(f, "body.generation")) {
        if ((rc = fh_fhead_data(f, "body.generation", &more, &more_len, err)) < 0) goto out;
        generation = fh_strndup(more, more_len);
        if (!generation) {
            rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", name);
            goto out;
        }
    }
    if ((rc = fh_config_parse(&config, text, len, generation, name, job, err)) < 0) goto out;
    if (config.vocab != h->vocab || config.hidden != h->hidden) {
        rc = fh_fail(err, FH_ECHECK, "%s: a vocabulary of %u and width %u, the head has %u and %u", name, config.vocab, config.hidden,
                     h->vocab, h->hidden);
        goto out;
    }
    if ((rc = fh_fhead_data(f, "body.tensors", &image, &image_bytes, err)) < 0) goto out;
    rc = fh_tensors_open_memory(&tensors, image, image_bytes, place, err);
out:
    fh_tensors_close(tensors);
    fh_config_free(&config);
    fh_free(generation);
    fh_free(name);
    fh_free(place);
    return rc;
}

fh_status fh_artifact_verify(fh_fhead *f, const fh_job *job, fh_err *err)
{
    fh_head_layout h;
    fh_status rc;
    if ((rc = fh_fhead_verify(f, job, err)) < 0 || (rc = fh_fhead_check_head(f, &h, err)) < 0) return rc;
    return h.has_body ? verify_body(f, &h, job, err) : FH_OK;
}
