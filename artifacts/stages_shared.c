/* What the stages share: loading what an earlier one left, writing a result with its record, running what is missing. */
#include "artifacts/stages_private.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---- results ----------------------------------------------------------------------------------------------- */

fh_status fh_result_tensors(fh_stage_env *e, const char *file, const fh_st_spec *specs, const void *const *data, size_t n, fh_json *record, fh_err *err)
{
    char *path = fh_work_path(e->work, file), *text = fh_json_print(record, false);
    fh_json *meta = fh_json_object();
    fh_status rc = path && text && fh_json_add_string(meta, "fhtool", text) ? FH_OK : fh_fail(err, FH_ENOMEM, "%s: out of memory", file);
    if (rc == FH_OK) rc = fh_st_save(path, FH_OWNER_READS, specs, data, n, meta, err);
    fh_work_changed(e->work, file);
    fh_json_free(meta);
    fh_free(text);
    fh_free(path);
    return rc;
}

fh_status fh_result_json(fh_stage_env *e, const char *file, fh_json *body, fh_json *record, fh_err *err)
{
    char *path = fh_work_path(e->work, file), *text = NULL, *line = NULL;
    bool ok = path && fh_json_add_copy(body, "made_by", record) && (text = fh_json_print(body, true)) && (line = fh_sprintf("%s\n", text));
    fh_status rc = ok ? fh_file_write(path, line, strlen(line), FH_OWNER_READS, err) : fh_fail(err, FH_ENOMEM, "%s: out of memory", file);
    fh_work_changed(e->work, file);
    fh_free(line);
    fh_free(text);
    fh_free(path);
    return rc;
}

fh_status fh_result_of(fh_stage_env *e, const char *file, const char *stage, fh_json **params, const char *const *inputs, size_t n, fh_json *body, fh_err *err)
{
    fh_json *record = fh_record_new(stage, *params);
    fh_status rc = record ? FH_OK : fh_fail(err, FH_ENOMEM, "out of memory");
    *params = NULL;
    for (size_t i = 0; rc == FH_OK && i < n; i++) rc = fh_record_input(record, e->work, inputs[i], err);
    if (rc == FH_OK) rc = fh_result_json(e, file, body, record, err);
    fh_json_free(record);
    return rc;
}

void fh_stage_log(fh_stage_env *e, const char *stage, double began)
{
    fh_err err;
    if (fh_work_log(e->work, stage, fh_now() - began, fh_pool_threads(fh_job_pool(e->job)), NULL, &err) < 0) fh_job_say(e->job, FH_WARN, "%s", err.text);
}

/* ---- outputs ------------------------------------------------------------------------------------------------- */

static bool same_file(const struct stat *a, const struct stat *b) { return a->st_dev == b->st_dev && a->st_ino == b->st_ino; }

fh_status fh_keep_input(const char *output, const char *input, fh_err *err)
{
    struct stat out, in;
    bool same = false;
    if (stat(output, &out) || !S_ISREG(out.st_mode) || stat(input, &in)) return FH_OK;
    if (!S_ISDIR(in.st_mode)) {
        same = same_file(&out, &in);
    } else {
        DIR *d = opendir(input);
        for (struct dirent *e; d && !same && (e = readdir(d));) {
            size_t n = strlen(e->d_name);
            bool artifact = n > 6 && !strcmp(e->d_name + n - 6, ".fhead");
            same = !artifact && !fstatat(dirfd(d), e->d_name, &in, 0) && same_file(&out, &in);
        }
        if (d) closedir(d);
    }
    return same ? fh_fail(err, FH_EIO, "%s: is among what is read (%s): give the output another name", output, input) : FH_OK;
}

/* ---- what convert left --------------------------------------------------------------------------------------- */

static fh_status ids_of(uint32_t **out, size_t *n, const fh_json *list, uint32_t vocab, const char *what, fh_err *err)
{
    *out = fh_malloc(fh_max(fh_json_count(list), 1) * sizeof **out);
    *n = 0;
    if (!*out) return fh_fail(err, FH_ENOMEM, "out of memory");
    for (const fh_json *i = list ? fh_json_first(list) : NULL; i; i = fh_json_next(i)) {
        uint64_t id;
        if (!fh_json_u64(i, &id) || id >= vocab) return fh_fail(err, FH_EFORMAT, FH_FILE_MODEL ": \"%s\" holds something that is no token id: run 'fhtool convert' again", what);
        (*out)[(*n)++] = (uint32_t)id;
    }
    return FH_OK;
}

fh_status fh_facts_load(fh_facts *out, fh_stage_env *e, fh_err *err)
{
    static const unsigned floats = 1u << FH_F32 | 1u << FH_BF16 | 1u << FH_F16;
    fh_facts f = {0};
    const fh_tensor *t;
    uint64_t any[2] = {UINT64_MAX, UINT64_MAX}, n;
    double softcap = 0;
    char *head = fh_work_path(e->work, FH_FILE_HEAD), *model = fh_work_path(e->work, FH_FILE_MODEL);
    fh_status rc = head && model ? FH_OK : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc < 0) goto out;
    if (!fh_file_exists(head) || !fh_file_exists(model)) {
        rc = fh_fail(err, FH_ENOTFOUND, "%s: holds no converted model: run 'fhtool convert MODEL -C %s' first", fh_work_dir(e->work), fh_work_dir(e->work));
        goto out;
    }
    if ((rc = fh_tensors_open(&f.file, head, err)) < 0 || (rc = fh_json_read(&f.model, model, (size_t)1 << 30, err)) < 0) goto out;
    if ((rc = fh_tensors_need(&t, f.file, "weight", floats, 2, any, err)) < 0) goto out;
    f.head = fh_tensor_rows(t);
    if (f.head.rows > UINT32_MAX - 1 || f.head.cols > UINT32_MAX / 16) { rc = fh_fail(err, FH_EUNSUPPORTED, "%s: a head of %zu x %zu is larger than this format holds", head, f.head.rows, f.head.cols); goto out; }
    uint32_t vocab = (uint32_t)f.head.rows;
    if (fh_tensors_find(f.file, "bias")) {
        any[0] = vocab;
        if ((rc = fh_tensors_need(&t, f.file, "bias", 1u << FH_F32, 1, any, err)) < 0) goto out;
        f.bias = t->data;
    }
    f.fingerprint = fh_json_string(fh_json_get(f.model, "fingerprint"));
    f.type = fh_json_string(fh_json_get(f.model, "model_type"));
    if (!f.fingerprint || strlen(f.fingerprint) != 64 || !f.type) { rc = fh_fail(err, FH_EFORMAT, "%s: \"fingerprint\" or \"model_type\" is missing: run 'fhtool convert' again", model); goto out; }
    fh_json_bool(fh_json_get(f.model, "tied"), &f.tied);
    if (fh_json_u64(fh_json_get(f.model, "tokenizer_size"), &n)) f.tokenizer_size = (uint32_t)n;
    if (fh_json_double(fh_json_get(f.model, "final_softcap"), &softcap)) f.softcap = (float)softcap;
    if ((rc = ids_of(&f.dead_ids, &f.n_dead, fh_json_get(f.model, "dead"), vocab, "dead", err)) < 0) goto out;
    if ((rc = ids_of(&f.always, &f.n_always, fh_json_get(f.model, "always"), vocab, "always", err)) < 0) goto out;
    if (!(f.dead = fh_calloc(vocab, 1))) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    for (size_t i = 0; i < f.n_dead; i++) f.dead[f.dead_ids[i]] = 1;
    *out = f, f = (fh_facts){0};
out:
    fh_facts_free(&f);
    fh_free(head);
    fh_free(model);
    return rc;
}

void fh_facts_free(fh_facts *f)
{
    fh_tensors_close(f->file);
    fh_json_free(f->model);
    fh_free(f->dead);
    fh_free(f->dead_ids);
    fh_free(f->always);
    *f = (fh_facts){0};
}

fh_dense fh_facts_dense(const fh_facts *f)
{
    return (fh_dense){.rows = f->head, .bias = f->bias, .softcap = f->softcap, .vocab = (uint32_t)f->head.rows, .dead = f->dead};
}

char *fh_source_path(fh_stage_env *e, fh_err *err)
{
    fh_json *j = NULL;
    char *path = fh_work_path(e->work, FH_FILE_SOURCE), *dir = NULL;
    if (!path) { fh_fail(err, FH_ENOMEM, "out of memory"); return NULL; }
    if (fh_json_read(&j, path, 1 << 20, err) == FH_OK) {
        const char *s = fh_json_string(fh_json_get(j, "path"));
        if (!s) fh_fail(err, FH_EFORMAT, "%s: has no \"path\": run 'fhtool convert' again", path);
        else if (!(dir = fh_strdup(s))) fh_fail(err, FH_ENOMEM, "out of memory");
    }
    fh_json_free(j);
    fh_free(path);
    return dir;
}

fh_status fh_source_open(fh_model *out, fh_stage_env *e, const fh_facts *f, unsigned need, fh_err *err)
{
    char *dir = fh_source_path(e, err), print[65];
    if (!dir) return err ? err->code : FH_EFAIL;
    fh_status rc = fh_model_open(out, dir, NULL, need, e->job, err);
    if (rc == FH_OK) {
        const fh_checkpoint *c = &out->checkpoint;
        fh_rows head = fh_tensor_rows(c->head), bias = {0};
        if (c->bias) bias = (fh_rows){c->bias->data, c->bias->dtype, 1, (size_t)c->bias->shape[0], (size_t)c->bias->bytes};
        fh_fingerprint(print, &head, c->bias ? &bias : NULL, c->config.final_softcap);
        if (strcmp(print, f->fingerprint)) {
            fh_model_close(out);
            rc = fh_fail(err, FH_ECHECK, "%s: its head is not the one that was converted (fingerprint %.12s, converted %.12s): run 'fhtool convert' again", dir, print, f->fingerprint);
        }
    }
    fh_free(dir);
    return rc;
}

/* ---- what cluster and quantize left -------------------------------------------------------------------------- */

fh_status fh_parted_load(fh_parted *out, fh_stage_env *e, const fh_facts *f, fh_err *err)
{
    fh_parted p = {0};
    const fh_tensor *a, *t[3];
    static const char *const names[3] = {"centroids", "centroids_mean", "centroids_raw"};
    char *path = fh_work_path(e->work, FH_FILE_CLUSTERS);
    fh_status rc = path ? fh_tensors_open(&p.file, path, err) : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc < 0) goto out;
    uint64_t shape[2] = {UINT64_MAX, f->head.cols}, rows = f->head.rows;
    for (int i = 0; i < 3; i++) {
        if ((rc = fh_tensors_need(&t[i], p.file, names[i], 1u << FH_F32, 2, shape, err)) < 0) goto out;
        shape[0] = t[0]->shape[0];
    }
    if ((rc = fh_tensors_need(&a, p.file, "assignment", 1u << FH_I32, 1, &rows, err)) < 0) goto out;
    uint64_t k = shape[0];
    if (k < 2 || k > f->head.rows) { rc = fh_fail(err, FH_EFORMAT, "%s: %llu clusters for %zu rows: run 'fhtool cluster' again", path, (unsigned long long)k, f->head.rows); goto out; }
    p.c = (fh_clustering){.v = (uint32_t)f->head.rows, .d = (uint32_t)f->head.cols, .k = (uint32_t)k};
    p.c.cap = (uint32_t)((f->head.rows + k - 1) / k);
    p.c.assignment = (uint32_t *)(uintptr_t)a->data, p.c.centroids = (float *)(uintptr_t)t[0]->data;
    p.c.mean = (float *)(uintptr_t)t[1]->data, p.c.raw = (float *)(uintptr_t)t[2]->data;
    for (size_t i = 0; i < f->head.rows; i++)
        if (p.c.assignment[i] >= k) { rc = fh_fail(err, FH_EFORMAT, "%s: token %zu is in cluster %u of %llu: run 'fhtool cluster' again", path, i, p.c.assignment[i], (unsigned long long)k); goto out; }
    *out = p, p = (fh_parted){0};
out:
    fh_parted_free(&p);
    fh_free(path);
    return rc;
}

void fh_parted_free(fh_parted *p) { fh_tensors_close(p->file); *p = (fh_parted){0}; }

fh_status fh_routing_read(fh_routing *out, const fh_tensors *file, const fh_parted *p, fh_err *err)
{
    uint64_t shape[2] = {p->c.k, p->c.d}, rows = p->c.v;
    const fh_tensor *t;
    fh_status rc = fh_tensors_need(&t, file, "centroids", 1u << FH_F32, 2, shape, err);
    if (rc < 0) return rc;
    *out = (fh_routing){.centroids = t->data, .assignment = p->c.assignment};
    if (!fh_tensors_find(file, "assignment")) return FH_OK;
    if ((rc = fh_tensors_need(&t, file, "assignment", 1u << FH_I32, 1, &rows, err)) < 0) return rc;
    out->assignment = t->data;
    for (size_t i = 0; i < p->c.v; i++)
        if (out->assignment[i] >= p->c.k)
            return fh_fail(err, FH_EFORMAT, FH_FILE_ROUTING ": token %zu is in cluster %u of %u: run 'fhtool route' again", i, out->assignment[i], p->c.k);
    return FH_OK;
}

void fh_routing_free(fh_routing *r)
{
    fh_free(r->centroids_made);
    fh_free(r->assignment_made);
    *r = (fh_routing){0};
}

fh_st_spec fh_encoded_spec(const char *name, fh_dtype encoding, size_t rows, size_t stride)
{
    fh_dtype as = encoding == FH_I4 ? FH_U8 : encoding;
    return (fh_st_spec){name, as, 2, {rows, stride / fh_dtype_size(as)}};
}

fh_st_spec fh_scales_spec(const char *name, fh_dtype encoding, size_t rows, size_t cols)
{
    if (encoding == FH_I8) return (fh_st_spec){name, FH_F32, 1, {rows}};
    return (fh_st_spec){name, FH_BF16, 2, {rows, fh_scale_bytes(encoding, cols) / sizeof(uint16_t)}};
}

static fh_status encoded_rows(fh_rows *out, const void **scales, const fh_tensors *file, const char *name, const char *scale_name, uint64_t rows, size_t cols, fh_err *err)
{
    static const unsigned encodings = 1u << FH_F32 | 1u << FH_BF16 | 1u << FH_F16 | 1u << FH_I8 | 1u << FH_U8;
    uint64_t shape[2] = {rows, UINT64_MAX};
    const fh_tensor *t;
    fh_status rc = fh_tensors_need(&t, file, name, encodings, 2, shape, err);
    if (rc < 0) return rc;
    fh_dtype encoding = t->dtype == FH_U8 ? FH_I4 : t->dtype;
    size_t stride = fh_enc_stride(encoding, cols);
    if (t->shape[1] * fh_dtype_size(t->dtype) != stride) return fh_fail(err, FH_EFORMAT, FH_FILE_QUANTIZED ": '%s' has rows of %llu values for %zu columns: run 'fhtool quantize' again", name, (unsigned long long)t->shape[1], cols);
    *out = (fh_rows){t->data, encoding, (size_t)t->shape[0], cols, stride};
    *scales = NULL;
    if (!fh_dtype_is_integer(encoding)) return FH_OK;
    fh_st_spec spec = fh_scales_spec(scale_name, encoding, (size_t)t->shape[0], cols);
    if ((rc = fh_tensors_need(&t, file, scale_name, 1u << spec.dtype, spec.rank, spec.shape, err)) < 0) return rc;
    *scales = t->data;
    return FH_OK;
}

fh_status fh_encoded_load(fh_encoded *out, fh_stage_env *e, const fh_facts *f, fh_err *err)
{
    fh_encoded q = {0};
    const fh_tensor *t;
    uint64_t slots = UINT64_MAX;
    char *path = fh_work_path(e->work, FH_FILE_QUANTIZED);
    fh_head_parts *p = &q.parts;
    fh_status rc = path ? fh_tensors_open(&q.file, path, err) : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc < 0) goto out;
    if ((rc = fh_work_record(e->work, FH_FILE_QUANTIZED, &q.record, err)) < 0) goto out;
    if ((rc = fh_tensors_need(&t, q.file, "permutation", 1u << FH_U32, 1, &slots, err)) < 0) goto out;
    p->permutation = t->data, slots = t->shape[0];
    if ((rc = encoded_rows(&p->centroids, &p->centroid_scales, q.file, "centroids", "centroid_scales", UINT64_MAX, f->head.cols, err)) < 0) goto out;
    if ((rc = encoded_rows(&p->tokens, &p->token_scales, q.file, "tokens", "token_scales", slots, f->head.cols, err)) < 0) goto out;
    if (p->centroids.rows == 0 || slots % p->centroids.rows) { rc = fh_fail(err, FH_EFORMAT, "%s: %llu slots in %zu clusters: run 'fhtool quantize' again", path, (unsigned long long)slots, p->centroids.rows); goto out; }
    p->vocab = (uint32_t)f->head.rows, p->hidden = (uint32_t)f->head.cols, p->clusters = (uint32_t)p->centroids.rows, p->cap = (uint32_t)(slots / p->centroids.rows);
    p->probes = p->clusters >= 16 ? p->clusters / 16 : 1;
    p->dead = f->dead_ids, p->n_dead = f->n_dead, p->bias = f->bias, p->softcap = f->softcap, p->always = f->always, p->n_always = f->n_always;
    p->tokens_exact = p->tokens.dtype == f->head.dtype, p->exact.dtype = f->head.dtype;
    const char *routing = fh_json_string(fh_json_get(fh_json_get(q.record, "params"), "routing"));
    snprintf(q.routing, sizeof q.routing, "%s", routing ? routing : "raw");
    *out = q, q = (fh_encoded){0};
out:
    fh_encoded_free(&q);
    fh_free(path);
    return rc;
}

void fh_encoded_free(fh_encoded *q) { fh_tensors_close(q->file); fh_json_free(q->record); *q = (fh_encoded){0}; }

/* ---- running what is missing ----------------------------------------------------------------------------------- */

fh_stage_cluster_params fh_cluster_params_of(const fh_json *params)
{
    fh_stage_cluster_params p = {.k = (uint32_t)fh_member_u64(params, "k", 0), .seed = fh_member_u64(params, "seed", 0), .rounds = (unsigned)fh_member_u64(params, "rounds", 0)};
    const char *start = fh_json_string(fh_json_get(params, "start")), *metric = fh_json_string(fh_json_get(params, "metric"));
    p.start = !start || !strcmp(start, "coarse") ? FH_START_COARSE : !strcmp(start, "faiss") ? FH_START_FAISS : FH_START_RANDOM;
    p.metric = !metric ? FH_ALIKE_AUTO : !strcmp(metric, "cosine") ? FH_ALIKE_COSINE : !strcmp(metric, "output") ? FH_ALIKE_OUTPUT : FH_ALIKE_EUCLIDEAN;
    return p;
}

fh_stage_route_params fh_route_params_of(const fh_json *params)
{
    return (fh_stage_route_params){.routing = fh_member_true(params, "asked") ? fh_json_string(fh_json_get(params, "routing")) : NULL,
                                   .unit = fh_member_true(params, "unit"), .moves = (unsigned)fh_min(fh_member_u64(params, "moves", 0), FH_MOST_MOVES)};
}

static fh_status again(fh_stage_env *e, const char *file, const fh_json *params, fh_err *err)
{
    fh_json *report = NULL;
    fh_status rc;
    const char *routing = fh_json_string(fh_json_get(params, "routing"));
    if (fh_json_get(params, "imported") || (routing && !strcmp(routing, "imported")))
        return fh_fail(err, FH_ECHECK, "%s: %s was imported, and what it belongs to has changed: run 'fhtool import' again", fh_work_dir(e->work), file);
    if (!strcmp(file, FH_FILE_CLUSTERS)) {
        fh_stage_cluster_params p = fh_cluster_params_of(params);
        if (fh_json_get(params, "init"))
            return fh_fail(err, FH_ECHECK, "%s: its inputs changed, and it began from an earlier clustering: run 'fhtool cluster --init' again", file);
        rc = fh_stage_cluster(e, &p, &report, err);
    } else if (!strcmp(file, FH_FILE_ROUTING)) {
        fh_stage_route_params p = fh_route_params_of(params);
        rc = fh_stage_route(e, &p, &report, err);
    } else {
        fh_dtype centroids = FH_I8, tokens = FH_I8;
        const char *c = fh_json_string(fh_json_get(params, "centroids")), *t = fh_json_string(fh_json_get(params, "tokens"));
        if (c) fh_dtype_parse(&centroids, c);
        if (t) fh_dtype_parse(&tokens, t);
        rc = fh_stage_quantize(e, centroids, tokens, &report, err);
    }
    fh_json_free(report);
    return rc;
}

fh_status fh_need(fh_stage_env *e, const char *file, fh_err *err)
{
    static const char *const chain[] = {FH_FILE_CLUSTERS, FH_FILE_ROUTING, FH_FILE_QUANTIZED};
    for (size_t i = 0; i < sizeof chain / sizeof *chain; i++) {
        fh_stage_state state;
        fh_json *record = NULL;
        char why[200];
        fh_status rc = fh_work_state(e->work, chain[i], NULL, &state, why, err);
        if (rc < 0) return rc;
        if (state != FH_STAGE_CURRENT) {
            if ((rc = fh_work_record(e->work, chain[i], &record, err)) < 0) return rc;
            fh_job_say(e->job, FH_INFO, "%s: %s: making it%s", chain[i], why, state == FH_STAGE_STALE ? " again" : " with the defaults");
            rc = again(e, chain[i], fh_json_get(record, "params"), err);
            fh_json_free(record);
            if (rc < 0) return rc;
        }
        if (!strcmp(chain[i], file)) break;
    }
    return FH_OK;
}
