/* What one token costs, from shapes alone: bytes and operations of each stage of a decode step, and of the key-value cache. */
#include "validate/judge.h"

#include "quant/quant.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

enum { MAX_CONFIG = 64 << 20, DEFAULT_CAP = 16 };

/* ---- shapes --------------------------------------------------------------------------------------------------------- */

static fh_status of_config(fh_shape *s, const fh_config *c, const char *name, const fh_job *job, fh_err *err)
{
    fh_status rc = FH_OK;
    snprintf(s->model_type, sizeof s->model_type, "%s", c->model_type);
    s->vocab = c->vocab, s->hidden = c->hidden;
    s->tied = c->tie < 0 ? c->tie_default : c->tie != 0;
    s->dtype = s->body_dtype = FH_BF16;
    const char *dtype = fh_json_string(fh_json_get(c->model, "dtype"));
    if (!dtype) dtype = fh_json_string(fh_json_get(c->model, "torch_dtype"));
    if (dtype && !strcmp(dtype, "float32")) s->dtype = s->body_dtype = FH_F32;
    if (dtype && !strcmp(dtype, "float16")) s->dtype = s->body_dtype = FH_F16;
    if (!c->family || !c->layers || !c->heads || !c->kv_heads || !c->head_dim || !c->ffn) return FH_OK;
    bool *windowed = fh_calloc(c->layers, sizeof *windowed);
    if (!windowed) return fh_fail(err, FH_ENOMEM, "%s: out of memory", name);
    rc = fh_body_windows(c, name, windowed, &s->window, err);
    if (rc == FH_EUNSUPPORTED) {
        fh_job_say(job, FH_WARN, "%s; the head alone is counted", err ? err->text : "its body is not one we know");
        rc = FH_OK;
    } else if (rc == FH_OK) {
        s->layers = c->layers, s->heads = c->heads, s->kv_heads = c->kv_heads, s->head_dim = c->head_dim, s->ffn = c->ffn, s->max_position = c->max_position;
        s->gated = fh_body_gated(c);
        for (uint32_t i = 0; i < c->layers && s->window; i++) s->windowed += windowed[i];
    }
    fh_free(windowed);
    return rc;
}

/* Dtypes as the tensors have them: the head's is that of a matrix [V, D], the body's that of its largest other matrix. */
static void of_headers(fh_shape *s, const fh_tensors *t)
{
    uint64_t largest = 0;
    bool head = false;
    for (size_t i = 0; i < fh_tensors_count(t); i++) {
        const fh_tensor *at = fh_tensors_at(t, i);
        if (at->rank != 2 || !fh_dtype_is_float(at->dtype)) continue;
        if (at->shape[0] == s->vocab && at->shape[1] == s->hidden) s->dtype = at->dtype, head = true;
        else if (at->bytes > largest) s->body_dtype = at->dtype, largest = at->bytes;
    }
    s->headers = head;
    if (head && !largest) s->body_dtype = s->dtype;
}

static fh_status of_directory(fh_shape *s, fh_setting *own, const char *dir, const fh_job *job, fh_err *err)
{
    fh_config c = {0};
    fh_tensors *tensors = NULL;
    char *text = NULL, *generation = NULL, *path = fh_path_join(dir, "config.json"), *beside = fh_path_join(dir, "generation_config.json");
    char *one = fh_path_join(dir, "model.safetensors"), *many = fh_path_join(dir, "model.safetensors.index.json");
    size_t len;
    fh_status rc = path && beside && one && many ? fh_file_read(&text, &len, path, MAX_CONFIG, err) : fh_fail(err, FH_ENOMEM, "%s: out of memory", dir);
    if (rc < 0) goto out;
    size_t generation_len;
    if (fh_file_exists(beside) && (rc = fh_file_read(&generation, &generation_len, beside, MAX_CONFIG, err)) < 0) goto out;
    if ((rc = fh_config_parse(&c, text, len, generation, path, job, err)) < 0 || (rc = of_config(s, &c, dir, job, err)) < 0) goto out;
    own->extras = (uint32_t)c.n_always;
    if (!s->vocab || !s->hidden) {
        rc = fh_fail(err, FH_EUNSUPPORTED, "%s: says neither vocab_size nor hidden_size in a way we know: there is nothing to count", path);
        goto out;
    }
    if (!fh_file_exists(one) && !fh_file_exists(many)) goto out;
    if ((rc = fh_tensors_open_dir(&tensors, dir, job, err)) == FH_OK) of_headers(s, tensors);
out:
    fh_tensors_close(tensors);
    fh_config_free(&c);
    fh_free(generation);
    fh_free(text);
    fh_free(path);
    fh_free(beside);
    fh_free(one);
    fh_free(many);
    return rc;
}

static fh_status of_gguf(fh_shape *s, fh_setting *own, const char *path, const fh_job *job, fh_err *err)
{
    fh_checkpoint c;
    fh_status rc = fh_checkpoint_open(&c, path, job, err);
    if (rc < 0) return rc;
    rc = of_config(s, &c.config, path, job, err);
    if (rc == FH_OK) of_headers(s, c.tensors), own->extras = (uint32_t)c.config.n_always;
    fh_checkpoint_close(&c);
    return rc;
}

static fh_status of_artifact(fh_shape *s, fh_setting *own, const char *path, const fh_job *job, fh_err *err)
{
    fh_model m = {0};
    fh_fhead *f = NULL;
    fh_head_layout h;
    fh_status rc = fh_fhead_open(&f, path, err);
    if (rc == FH_OK) rc = fh_fhead_check_head(f, &h, err);
    bool bundled = rc == FH_OK && fh_fhead_find(f, "body.tensors");
    if (rc == FH_OK) snprintf(s->model_type, sizeof s->model_type, "%s", h.model_type), s->tied = h.tied;
    fh_fhead_close(f);
    if (rc < 0 || (rc = fh_model_open(&m, path, NULL, FH_MODEL_HEAD | (bundled ? FH_MODEL_BODY : 0), job, err)) < 0) return rc;
    const fh_head_parts *p = fh_head_get_parts(m.head);
    if (m.config) rc = of_config(s, m.config, path, job, err);
    s->vocab = p->vocab, s->hidden = p->hidden;
    if (m.bundle_tensors) of_headers(s, m.bundle_tensors);
    s->dtype = p->exact.data ? p->exact.dtype : p->tokens_exact ? p->tokens.dtype : s->dtype, s->headers = true;
    *own = (fh_setting){.k = p->clusters, .cap = p->cap, .probes = fh_probes_calibrated(m.head), .rerank = p->rerank, .extras = (uint32_t)(p->n_hot + p->n_always),
                        .centroids = p->centroids.dtype, .tokens = p->tokens.dtype};
    fh_model_close(&m);
    return rc;
}

fh_status fh_shape_read(fh_shape *out, fh_setting *own, const char *path, const fh_job *job, fh_err *err)
{
    struct stat st;
    fh_shape s = {0};
    fh_setting mine = {.centroids = FH_I8, .tokens = FH_I8};
    fh_status rc = !stat(path, &st) && S_ISDIR(st.st_mode) ? of_directory(&s, &mine, path, job, err)
                   : fh_is_gguf(path)                      ? of_gguf(&s, &mine, path, job, err)
                                                           : of_artifact(&s, &mine, path, job, err);
    if (rc == FH_OK) *out = s, *own = mine;
    return rc;
}

fh_status fh_setting_fill(fh_setting *s, const fh_shape *shape, fh_err *err)
{
    if (s->cap > shape->vocab) return fh_fail(err, FH_EUSAGE, "clusters of %u tokens: the vocabulary has %u", s->cap, shape->vocab);
    if (!s->k) s->k = s->cap ? (shape->vocab + s->cap - 1) / s->cap : (uint32_t)fh_max(2, shape->vocab / DEFAULT_CAP);
    if (s->k < 2) return fh_fail(err, FH_EUSAGE, "%u clusters: at least 2 are needed", s->k);
    if (s->k > shape->vocab) return fh_fail(err, FH_EUSAGE, "%u clusters: the vocabulary has %u tokens", s->k, shape->vocab);
    s->cap = (shape->vocab + s->k - 1) / s->k;
    if (!s->probes) s->probes = s->k >= 16 ? s->k / 16 : 1;
    if (s->probes > s->k) return fh_fail(err, FH_EUSAGE, "%u of %u clusters probed: 1 to %u can be", s->probes, s->k, s->k);
    if (s->rerank == FH_RERANK_USUAL) s->rerank = fh_rerank_default(s->tokens);
    if (s->tokens == shape->dtype) s->rerank = 0;
    s->extras = (uint32_t)fh_min(s->extras, shape->vocab);
    return FH_OK;
}

/* ---- a token -------------------------------------------------------------------------------------------------------- */

static double stored(fh_dtype encoding, size_t cols) { return (double)(fh_enc_stride(encoding, cols) + fh_scale_bytes(encoding, cols)); }

/* Keys that the layers' queries see between them. */
static double keys_in_sight(const fh_shape *s, uint32_t context)
{
    return (double)(s->layers - s->windowed) * context + (double)s->windowed * (double)fh_min(s->window, context);
}

void fh_costs(fh_cost out[FH_COSTS], const fh_shape *s, const fh_setting *h, uint32_t context)
{
    double d = s->hidden, layers = s->layers, q = (double)s->heads * s->head_dim, kv = (double)s->kv_heads * s->head_dim;
    double each = (double)fh_dtype_size(s->body_dtype);
    double qkv = layers * d * (q + 2 * kv), o = layers * q * d, mlp = layers * d * s->ffn * (s->gated ? 3 : 2), keys = keys_in_sight(s, context);
    double dense = (double)s->vocab * d, rows = (double)h->probes * h->cap + h->extras, again = fmin(h->rerank, rows);
    const fh_cost all[FH_COSTS] = {
        [FH_COST_EMBED] = {"embedding", layers > 0 ? d * (double)fh_dtype_size(s->dtype) : 0, 0},
        [FH_COST_QKV] = {"queries, keys, values", (qkv + layers * d) * each, 2 * qkv},
        [FH_COST_ATTENTION] = {"attention", 2 * keys * kv * sizeof(float), 4 * keys * q},
        [FH_COST_OUTPUT] = {"attention output", o * each, 2 * o},
        [FH_COST_MLP] = {"mlp", (mlp + layers * d + (layers > 0 ? d : 0)) * each, 2 * mlp},
        [FH_COST_DENSE] = {"dense head", dense * (double)fh_dtype_size(s->dtype), 2 * dense},
        [FH_COST_ROUTE] = {"flash: route", h->k * stored(h->centroids, s->hidden), 2.0 * h->k * d},
        [FH_COST_SCORE] = {"flash: score", rows * stored(h->tokens, s->hidden), 2 * rows * d},
        [FH_COST_RERANK] = {"flash: rerank", again * (double)fh_enc_stride(s->dtype, s->hidden), 2 * again * d},
    };
    memcpy(out, all, sizeof all);
}

void fh_cost_sums(fh_cost out[FH_WHOLES], const fh_cost costs[FH_COSTS])
{
    static const fh_cost_stage ends[FH_WHOLES] = {FH_COST_MLP, FH_COST_DENSE, FH_COST_RERANK};
    static const char *const names[FH_WHOLES] = {"body", "dense head", "flash head"};
    for (int w = 0, i = 0; w < FH_WHOLES; w++) {
        out[w] = (fh_cost){.what = names[w]};
        for (; i <= (int)ends[w]; i++) out[w].bytes += costs[i].bytes, out[w].flops += costs[i].flops;
    }
}

double fh_cost_seconds(const fh_cost *costs, fh_cost_stage first, fh_cost_stage last, double bytes_per_second, double flops_per_second)
{
    double sum = 0;
    for (int i = (int)first; i <= (int)last; i++)
        sum += fmax(costs[i].bytes / bytes_per_second, flops_per_second > 0 ? costs[i].flops / flops_per_second : 0);
    return sum;
}

fh_kv_cost fh_kv_costs(const fh_shape *s, uint32_t context)
{
    double numbers = 2.0 * s->kv_heads * s->head_dim;
    return (fh_kv_cost){.token_bytes = s->layers * numbers * sizeof(float), .token_bytes_16 = s->layers * numbers * sizeof(uint16_t),
                        .in_sight_bytes = keys_in_sight(s, context) * numbers * sizeof(float)};
}
