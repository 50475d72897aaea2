/* artifacts/vllm_export.c: an artifact and its checkpoint as the directory that the vLLM plugin flash-head loads. */
#include "artifacts/artifacts.h"
#include "artifacts/stages_private.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { MOST_TEXT = 256 << 20 }; /* of a file that is carried beside the weights */
#define INDEX "model.safetensors.index.json"
/* How far bf16 may take a row that had unit length: half a unit in the last place of each value. */
#define UNIT_ERROR 0.00390625

typedef struct export_job {
    const fh_vllm_export_params *p;
    const fh_job *job;
    fh_fhead *artifact;
    fh_head_layout h;
    fh_checkpoint model;
    fh_vllm v; /* what is written; special is the artifact's */
    bool promised;
    const char *temp; /* the directory being made */
    size_t files;
    uint64_t bytes;
} export_job;

/* ---- may it be done? ------------------------------------------------------------------------------------------------- */

/* Is `path`, once its links are followed, `dir` or below it? */
static bool lies_in(const char *path, const char *dir)
{
    char *p = realpath(path, NULL), *d = realpath(dir, NULL);
    size_t n = d ? strlen(d) : 0;
    bool in = p && d && !strncmp(p, d, n) && (!p[n] || p[n] == '/' || n == 1);
    free(p);
    free(d);
    return in;
}

/* What is there may be replaced where an export of ours made it, and nothing of it is read. */
static fh_status judge_output(unsigned *flags, const fh_vllm_export_params *p, fh_err *err)
{
    struct stat st;
    fh_err none;
    fh_tensors *cache = NULL;
    *flags = p->no_clobber ? FH_NO_CLOBBER : 0;
    if (p->no_clobber || stat(p->output, &st) || !S_ISDIR(st.st_mode)) return FH_OK;
    if (lies_in(p->model, p->output) || lies_in(p->artifact, p->output))
        return fh_fail(err, FH_EIO, "%s: holds what is read (%s): give the output another name", p->output,
                       lies_in(p->model, p->output) ? p->model : p->artifact);
    char *path = fh_sprintf("%s/%s/%s", p->output, FH_VLLM_ASSETS, FH_VLLM_CACHE);
    if (!path) return fh_fail(err, FH_ENOMEM, "%s: out of memory", p->output);
    if (fh_file_exists(path) && fh_tensors_open(&cache, path, &none) == FH_OK && fh_tensors_metadata(cache, "fhtool"))
        *flags |= FH_REPLACE_DIR;
    fh_tensors_close(cache);
    fh_free(path);
    return FH_OK;
}

/* Whose promise does the artifact hold? */
static fh_status judge_promise(export_job *x, fh_err *err)
{
    const fh_head_layout *h = &x->h;
    const fh_json *calibration = fh_json_get(fh_fhead_header(x->artifact), "calibration");
    const char *runtime = fh_json_string(fh_json_get(calibration, "runtime")), *path = x->p->artifact;
    if (x->p->probes > h->k) return fh_fail(err, FH_EUSAGE, "--probes: %u of %u clusters (1..%u)", x->p->probes, h->k, h->k);
    if (x->p->probes) {
        fh_job_say(x->job, FH_WARN, "--probes %u: %s", x->p->probes,
                   "what the artifact promises is left out, and the directory promises nothing");
        return FH_OK;
    }
    if (!calibration)
        return fh_fail(
            err, FH_ECHECK,
            "%s: is not calibrated: make it with 'fhtool build --for vllm', or give --probes P for a directory that promises nothing",
            path);
    if (!runtime || strcmp(runtime, "vllm"))
        return fh_fail(err, FH_ECHECK,
                       "%s: is calibrated for fhtool's own rules (hot list of %zu, %u rows scored again, routing %s), not for that "
                       "runtime's: make it with 'fhtool build --for vllm'",
                       path, h->n_hot, h->rerank, h->routing);
    if (h->n_hot || h->rerank)
        return fh_fail(err, FH_ECHECK, "%s: says it is for that runtime, but has %zu hot tokens and scores %u rows again: make it anew",
                       path, h->n_hot, h->rerank);
    x->promised = true;
    return FH_OK;
}

static fh_status judge_head(export_job *x, fh_err *err)
{
    const fh_head_layout *h = &x->h;
    const fh_checkpoint *c = &x->model;
    char print[65];
    fh_rows head = fh_tensor_rows(c->head), bias = {0};
    fh_status rc;
    if (c->bias) bias = (fh_rows){c->bias->data, c->bias->dtype, 1, (size_t)c->bias->shape[0], (size_t)c->bias->bytes};
    fh_fingerprint(print, &head, c->bias ? &bias : NULL, c->config.final_softcap);
    if (strcmp(print, h->fingerprint))
        return fh_fail(err, FH_ECHECK, "%s: was made from another model than %s (fingerprint %.12s, the model's is %.12s)", x->p->artifact,
                       x->p->model, h->fingerprint, print);
    if ((rc = fh_vllm_model_check(c, err)) < 0) return rc;
    if (h->threshold > 0 && !x->p->probes)
        return fh_fail(err, FH_EUNSUPPORTED,
                       "%s: probes adaptively, by a threshold on scores, which that runtime does not know: make it with 'fhtool build --for vllm'", x->p->artifact);
    if ((uint64_t)h->k * h->cap != h->vocab)
        return fh_fail(
            err, FH_EUNSUPPORTED,
            "%s: %u tokens in %u clusters of up to %u: that runtime needs V = K * cap exactly: make it with 'fhtool build --for vllm'",
            x->p->artifact, h->vocab, h->k, h->cap);
    if (h->centroids.dtype == FH_I4)
        return fh_fail(err, FH_EUNSUPPORTED,
                       "%s: int4 centroids are stored without their mean and have no direction of their own: take another encoding",
                       x->p->artifact);
    for (size_t i = 0; i < h->n_always; i++)
        if (h->always[i] >= h->vocab)
            return fh_fail(err, FH_ECHECK, "%s: special id %u is no token (0..%u)", x->p->artifact, h->always[i], h->vocab - 1);
    if (h->cap & (h->cap - 1)) fh_job_say(x->job, FH_WARN, "%u tokens a cluster: that runtime's fused kernel wants a power of two", h->cap);
    if (h->n_dead)
        fh_job_say(x->job, FH_WARN, "%zu dead rows (past the tokenizer, or zero): that runtime does not keep them from being answered",
                   h->n_dead);
    if (h->dtype != FH_BF16)
        fh_job_say(x->job, FH_WARN, "the head is %s: that runtime rounds it to bf16 (run it with --dtype bfloat16)",
                   fh_dtype_name(h->dtype));
    return FH_OK;
}

/* ---- the clustering ---------------------------------------------------------------------------------------------------- */

static fh_status fill_clustering(export_job *x, fh_err *err)
{
    const fh_head_layout *h = &x->h;
    fh_vllm *v = &x->v;
    size_t d = h->hidden, cells;
    if (!fh_mul(h->k, d, &cells) || !fh_mul(cells, sizeof(float), &cells))
        return fh_fail(err, FH_ENOMEM, "%s: out of memory", x->p->artifact);
    *v = (fh_vllm){.vocab = h->vocab,
                   .hidden = h->hidden,
                   .k = h->k,
                   .cap = h->cap,
                   .probes = x->p->probes ? x->p->probes : h->probes,
                   .probes_said = true};
    v->assignment = fh_malloc(h->vocab * sizeof *v->assignment);
    v->centroids = fh_malloc(cells);
    if (!v->assignment || !v->centroids) return fh_fail(err, FH_ENOMEM, "%s: out of memory", x->p->artifact);
    for (size_t slot = 0; slot < h->vocab; slot++) v->assignment[h->permutation[slot]] = (uint32_t)(slot / h->cap);
    size_t scale = fh_scale_bytes(h->centroids.dtype, d);
    for (uint32_t c = 0; c < h->k; c++) {
        float *row = v->centroids + c * d;
        fh_dec_row(h->centroids.dtype, fh_row(&h->centroids, c), scale ? (const uint8_t *)h->centroid_scales + c * scale : NULL, d, row);
        double square = 0;
        for (size_t j = 0; j < d; j++) square += (double)row[j] * row[j];
        if (!(square > 0) || !isfinite(square))
            return fh_fail(err, FH_ECHECK, "%s: centroid %u is zero or not finite: that runtime divides by its norm", x->p->artifact, c);
        /* A bf16 row of a length within half its last place of 1 comes out of that runtime's division and rounding as it went in. */
        if (fabs(sqrt(square) - 1) <= UNIT_ERROR && h->centroids.dtype == FH_BF16) continue;
        if (x->promised)
            return fh_fail(err, FH_ECHECK,
                           "%s: centroid %u has length %.4f: that runtime routes by cosine, for which it must be 1 in bf16: make it with "
                           "'fhtool build --for vllm'",
                           x->p->artifact, c, sqrt(square));
        (void)fh_unit_row(row, d);
        for (size_t j = 0; j < d; j++) row[j] = fh_bf16_to_f32(fh_f32_to_bf16(row[j]));
    }
    return FH_OK;
}

/* What the directory says about itself, beside what that runtime reads: {"tool", "artifact", "fingerprint", "promise"}. */
static char *record_text(const export_job *x)
{
    static const char *const kept[] = {"target", "confidence",  "containment_k", "bound",    "positions", "misses",
                                       "text",   "text_sha256", "documents",     "promises", "heldout"};
    const fh_json *calibration = fh_json_get(fh_fhead_header(x->artifact), "calibration");
    fh_json *j = fh_json_object(), *promise;
    fh_json_add_string(j, "tool", "fhtool " FH_TOOL_VERSION);
    fh_json_add_string(j, "artifact", fh_fhead_digest(x->artifact));
    fh_json_add_string(j, "fingerprint", x->h.fingerprint);
    if (x->promised) {
        promise = fh_json_add_object(j, "promise");
        for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
            if (fh_json_get(calibration, kept[i])) fh_json_add_copy(promise, kept[i], fh_json_get(calibration, kept[i]));
    } else {
        fh_json_add_null(j, "promise");
    }
    char *text = j ? fh_json_print(j, false) : NULL;
    fh_json_free(j);
    return text;
}

static fh_status write_cache(const export_job *x, const char *path, fh_err *err)
{
    const fh_vllm *v = &x->v;
    size_t d = v->hidden;
    const fh_st_spec specs[2] = {{"centroids", FH_F32, 4, {1, 1, d, v->k}}, {"cluster_assignments", FH_I64, 1, {v->vocab}}};
    fh_st_writer *w = NULL;
    fh_json *meta = fh_json_object();
    char *record = record_text(x);
    float *row = fh_malloc(v->k * sizeof *row);
    int64_t *ids = fh_malloc(v->vocab * sizeof *ids);
    fh_status rc = meta && record && row && ids && fh_json_add_string(meta, "format", "pt") && fh_json_add_string(meta, "fhtool", record)
                       ? FH_OK
                       : fh_fail(err, FH_ENOMEM, "%s: out of memory", path);
    if (rc < 0 || (rc = fh_st_open(&w, path, FH_OWNER_READS, specs, 2, meta, err)) < 0) goto out;
    for (size_t j = 0; j < d && rc >= 0; j++) { /* a column a centroid */
        for (uint32_t c = 0; c < v->k; c++) row[c] = v->centroids[c * d + j];
        rc = fh_st_write(w, row, v->k * sizeof *row, err);
    }
    for (uint32_t t = 0; t < v->vocab; t++) ids[t] = v->assignment[t];
    if (rc < 0 || (rc = fh_st_write(w, ids, v->vocab * sizeof *ids, err)) < 0) goto out;
    rc = fh_st_commit(w, err);
    w = NULL;
out:
    fh_st_abandon(w);
    fh_json_free(meta);
    fh_free(record);
    fh_free(row);
    fh_free(ids);
    return rc;
}

static fh_status write_text(const char *path, const char *text, fh_err *err)
{
    return fh_file_write(path, text, strlen(text), FH_OWNER_READS, err);
}

static fh_status write_assets(export_job *x, fh_err *err)
{
    const fh_vllm *v = &x->v;
    char *dir = fh_path_join(x->temp, FH_VLLM_ASSETS), *cache = dir ? fh_path_join(dir, FH_VLLM_CACHE) : NULL,
         *beside = dir ? fh_path_join(dir, FH_VLLM_CONFIG) : NULL;
    char *config = fh_path_join(x->temp, "config.json"), *patched = NULL;
    char *text = fh_sprintf("{\n  \"format\": \"safetensors\",\n  \"vocab_size\": %u,\n  \"hidden_size\": %u\n}\n", v->vocab, v->hidden);
    fh_status rc = cache && beside && config && text ? FH_OK : fh_fail(err, FH_ENOMEM, "%s: out of memory", x->p->output);
    if (rc < 0 || (rc = fh_mkdirs(dir, err)) < 0 || (rc = write_cache(x, cache, err)) < 0 || (rc = write_text(beside, text, err)) < 0)
        goto out;
    if ((rc = fh_vllm_config(&patched, &x->model.config, v->probes, x->h.always, x->h.n_always, err)) < 0) goto out;
    rc = write_text(config, patched, err);
    x->files += 3;
out:
    fh_free(dir);
    fh_free(cache);
    fh_free(beside);
    fh_free(config);
    fh_free(patched);
    fh_free(text);
    return rc;
}

/* ---- what is carried over ------------------------------------------------------------------------------------------------ */

static fh_status carry(export_job *x, const char *name, fh_link how, fh_err *err)
{
    struct stat st;
    char *from = fh_path_join(x->p->model, name), *to = fh_path_join(x->temp, name);
    fh_status rc =
        from && to ? fh_file_bring(from, to, how, FH_OWNER_READS, x->job, err) : fh_fail(err, FH_ENOMEM, "%s: out of memory", x->p->output);
    if (rc == FH_OK && !stat(from, &st)) x->files++, x->bytes += (uint64_t)st.st_size;
    fh_free(from);
    fh_free(to);
    return rc;
}

/* The files that the tensors lie in: what the index names, or the one there is. */
static fh_status carry_weights(export_job *x, fh_err *err)
{
    fh_status rc = FH_OK;
    const fh_tensors *t = x->model.tensors;
    size_t n = fh_tensors_count(t), found = 0, home = strlen(x->p->model);
    bool index = false;
    const char **files = fh_malloc(fh_max(n, 1) * sizeof *files);
    if (!files) return fh_fail(err, FH_ENOMEM, "%s: out of memory", x->p->output);
    for (size_t i = 0; i < n && rc >= 0; i++) {
        const char *file = fh_tensors_at(t, i)->file;
        size_t seen = 0;
        while (seen < found && files[seen] != file && strcmp(files[seen], file)) seen++;
        if (seen < found) continue;
        files[found++] = file;
        const char *name = strncmp(file, x->p->model, home) ? file : file + home;
        name += strspn(name, "/");
        if (strchr(name, '/'))
            rc =
                fh_fail(err, FH_EUNSUPPORTED,
                        "%s: lies in a directory of its own, where that runtime does not find it: put all shards beside config.json", file);
        else rc = carry(x, name, x->p->link, err);
        index = index || strcmp(name, "model.safetensors");
    }
    fh_free(files);
    return rc < 0 || !index ? rc : carry(x, INDEX, FH_LINK_COPY, err);
}

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), m = strlen(end);
    return n >= m && !strcmp(s + n - m, end);
}

/* Tokenizer, generation settings, chat templates, preprocessors, licence and card. */
static bool is_companion(const char *name)
{
    static const char *const endings[] = {".json", ".txt", ".model", ".jinja", ".tiktoken", ".md"};
    static const char *const names[] = {"LICENSE", "LICENCE", "NOTICE", "USE_POLICY"};
    if (name[0] == '.' || !strcmp(name, "config.json") || ends_with(name, ".index.json")) return false;
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++)
        if (ends_with(name, endings[i])) return true;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(name, names[i])) return true;
    return false;
}

static fh_status carry_companions(export_job *x, fh_err *err)
{
    fh_status rc = FH_OK;
    struct stat st;
    DIR *d = opendir(x->p->model);
    if (!d) return fh_fail(err, FH_EIO, "%s: cannot open this directory", x->p->model);
    for (struct dirent *e; rc >= 0 && (e = readdir(d));)
        if (is_companion(e->d_name) && !fstatat(dirfd(d), e->d_name, &st, 0) && S_ISREG(st.st_mode) && st.st_size <= MOST_TEXT)
            rc = carry(x, e->d_name, FH_LINK_COPY, err);
    closedir(d);
    return rc;
}

/* Read back what was written, as that runtime will. */
static fh_status read_back(const export_job *x, fh_err *err)
{
    fh_checkpoint c = {0};
    fh_vllm v = {0};
    double affinity;
    fh_status rc = fh_checkpoint_open(&c, x->temp, NULL, err);
    if (rc == FH_OK) rc = fh_vllm_open(&v, &c, NULL, err);
    if (rc == FH_OK) rc = fh_vllm_belongs(&v, &c, x->job, &affinity, err);
    fh_vllm_free(&v);
    fh_checkpoint_close(&c);
    return rc;
}

static fh_json *report_of(const export_job *x, double began)
{
    static const char *const links[] = {"copy", "hard", "sym"};
    fh_json *r = fh_json_object();
    fh_json_add_string(r, "dir", x->p->output);
    fh_vllm_describe(r, &x->v, fh_vllm_architecture(&x->model.config));
    fh_json_add_u64(r, "special", x->h.n_always);
    fh_json_add_bool(r, "promised", x->promised);
    fh_json_add_string(r, "fingerprint", x->h.fingerprint);
    fh_json_add_string(r, "artifact", fh_fhead_digest(x->artifact));
    fh_json_add_string(r, "link", links[x->p->link]);
    fh_json_add_u64(r, "files", x->files);
    fh_json_add_u64(r, "bytes", x->bytes);
    fh_json_add_double(r, "seconds", fh_now() - began);
    return r;
}

fh_status fh_vllm_export(const fh_vllm_export_params *p, const fh_job *job, fh_json **report, fh_err *err)
{
    double began = fh_now();
    export_job x = {.p = p, .job = job};
    fh_outdir *out = NULL;
    unsigned flags;
    fh_status rc = judge_output(&flags, p, err);
    if (rc < 0 || (rc = fh_fhead_open(&x.artifact, p->artifact, err)) < 0 || (rc = fh_fhead_verify(x.artifact, job, err)) < 0 ||
        (rc = fh_fhead_check_head(x.artifact, &x.h, err)) < 0)
        goto out;
    if ((rc = fh_checkpoint_open(&x.model, p->model, job, err)) < 0 || (rc = judge_head(&x, err)) < 0 ||
        (rc = judge_promise(&x, err)) < 0 || (rc = fill_clustering(&x, err)) < 0)
        goto out;
    if ((rc = fh_outdir_open(&out, p->output, flags, err)) < 0) goto out;
    x.temp = fh_outdir_path(out);
    if ((rc = carry_weights(&x, err)) < 0 || (rc = carry_companions(&x, err)) < 0 || (rc = write_assets(&x, err)) < 0 ||
        (rc = read_back(&x, err)) < 0)
        goto out;
    rc = fh_outdir_commit(out, flags, err);
    out = NULL;
    if (rc == FH_OK) *report = report_of(&x, began);
out:
    fh_outdir_abandon(out);
    fh_vllm_free(&x.v);
    fh_checkpoint_close(&x.model);
    fh_fhead_close(x.artifact);
    return rc;
}
