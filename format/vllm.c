/* format/vllm.c: directories of the vLLM plugin flash-head, judged by the rules of that runtime (release 0.1.10), most of which it does not
 * check itself: a directory that breaks one loads, and answers wrongly or slowly. */
#include "format/format.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_CACHE_NAME = 128, MAX_BESIDE = 1 << 20, SHOWN = 120 };
#define PREFIX "FlashHead"
#define FLOATS (1u << FH_F32 | 1u << FH_BF16 | 1u << FH_F16)
/* A norm that float32 holds as the square it is made of: that runtime divides by it. */
#define LEAST_NORM 1e-15
#define MOST_NORM  1e18

/* ---- the model --------------------------------------------------------------------------------------------------- */

static const char *const architectures[] = {
    "LlamaForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3VLForConditionalGeneration",
    "Qwen3_5ForCausalLM",
    "Qwen3_5MoeForCausalLM",
    "Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForConditionalGeneration",
    "Gemma3ForCausalLM",
    NULL,
};
/* Where that runtime looks for the head, in this order. */
static const char *const head_names[] = {"lm_head.weight", "model.lm_head.weight", "transformer.lm_head.weight",
                                         "model.embed_tokens.weight", NULL};

const char *fh_vllm_architecture(const fh_config *c)
{
    const char *name = c->architecture;
    if (!strncmp(name, PREFIX, strlen(PREFIX))) name += strlen(PREFIX);
    for (const char *const *a = architectures; *a; a++)
        if (!strcmp(*a, name)) return *a;
    return NULL;
}

static fh_status list_of(fh_buf *b, const char *const *words)
{
    for (size_t i = 0; words[i]; i++) fh_buf_printf(b, "%s%s", i ? ", " : "", words[i]);
    return b->failed ? FH_ENOMEM : FH_OK;
}

static fh_status unsupported_list(const char *dir, const char *what, const char *const *words, fh_err *err)
{
    fh_buf b = {0};
    fh_status rc = list_of(&b, words);
    rc = rc < 0 ? fh_fail(err, rc, "%s: out of memory", dir) : fh_fail(err, FH_EUNSUPPORTED, "%s: %s%s", dir, what, b.data);
    fh_buf_free(&b);
    return rc;
}

fh_status fh_vllm_model_check(const fh_checkpoint *c, fh_err *err)
{
    char what[2 * SHOWN + 100], shown[SHOWN];
    const fh_tensor *found = NULL;
    if (fh_is_gguf(c->dir))
        return fh_fail(err, FH_EUNSUPPORTED, "%s: is a GGUF file: the vLLM plugin takes a directory with safetensors", c->dir);
    if (!fh_vllm_architecture(&c->config)) {
        snprintf(what, sizeof what, "architecture '%s' is none that the vLLM plugin knows: ",
                 fh_show(shown, sizeof shown, c->config.architecture, strlen(c->config.architecture)));
        return unsupported_list(c->dir, what, architectures, err);
    }
    if (c->bias)
        return fh_fail(err, FH_EUNSUPPORTED, "%s: the head has a bias ('%s'): the vLLM plugin has no place for one", c->dir, c->bias->name);
    if (c->config.final_softcap > 0) /* the plugin hands token ids on where logits are expected */
        return fh_fail(err, FH_EUNSUPPORTED,
                       "%s: final_logit_softcapping is %g: vLLM would cap the token ids that the plugin returns in place of logits", c->dir,
                       c->config.final_softcap);
    if (c->head->shape[0] < c->head->shape[1])
        return fh_fail(err, FH_EUNSUPPORTED,
                       "%s: the head has %llu rows of %llu: the vLLM plugin takes the larger number for the vocabulary", c->dir,
                       (unsigned long long)c->head->shape[0], (unsigned long long)c->head->shape[1]);
    for (const char *const *n = head_names; *n && !found; n++) found = fh_tensors_find(c->tensors, *n);
    if (!found) {
        snprintf(what, sizeof what, "the head is '%s', and the vLLM plugin looks for it under other names: ",
                 fh_show(shown, sizeof shown, c->head->name, strlen(c->head->name)));
        return unsupported_list(c->dir, what, head_names, err);
    }
    bool same = found == c->head ||
                (found->dtype == c->head->dtype && found->rank == 2 && !memcmp(found->shape, c->head->shape, 2 * sizeof *found->shape) &&
                 found->bytes == c->head->bytes && !memcmp(found->data, c->head->data, (size_t)found->bytes));
    return same ? FH_OK
                : fh_fail(err, FH_EUNSUPPORTED,
                          "%s: the head is '%s', but the vLLM plugin would take '%s' for it: remove the one that is not used", c->dir,
                          c->head->name, found->name);
}

/* ---- config.json --------------------------------------------------------------------------------------------------- */

static fh_status judge_architecture(const fh_vllm_source *s, fh_err *err)
{
    char shown[SHOWN];
    const char *name = fh_json_string(fh_json_first(fh_json_get(s->config, "architectures")));
    if (!name) return fh_fail(err, FH_EFORMAT, "%s/config.json: /architectures/0 is no text", s->dir);
    fh_show(shown, sizeof shown, name, strlen(name));
    if (strncmp(name, PREFIX, strlen(PREFIX)))
        return fh_fail(err, FH_ECHECK,
                       "%s/config.json: /architectures/0 is '%s' without the prefix " PREFIX
                       ": without the plugin it would run dense in silence",
                       s->dir, shown);
    for (const char *const *a = architectures; *a; a++)
        if (!strcmp(*a, name + strlen(PREFIX))) return FH_OK;
    return fh_fail(err, FH_ECHECK, "%s/config.json: /architectures/0 '%s' is none that the vLLM plugin registers", s->dir, shown);
}

/* The name of the directory with the clustering: one step down, so that nothing outside is opened. */
static fh_status judge_cache_dir(const fh_json *config, const char *dir, const char **name, fh_err *err)
{
    char shown[SHOWN];
    const fh_json *said = fh_json_get(config, "flash_head_cache_dir");
    const char *s = fh_json_string(said);
    if (!said)
        return fh_fail(
            err, FH_EFORMAT,
            "%s/config.json: has no \"flash_head_cache_dir\": is it a directory for the vLLM plugin ('fhtool export' makes them)?", dir);
    if (!s || !*s || strlen(s) >= MAX_CACHE_NAME ||
        strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") != strlen(s) || strspn(s, ".") == strlen(s))
        return fh_fail(err, FH_EFORMAT, "%s/config.json: /flash_head_cache_dir '%s' is not the plain name of a directory in it", dir,
                       s ? fh_show(shown, sizeof shown, s, strlen(s)) : "(no text)");
    *name = s;
    return FH_OK;
}

static fh_status read_probes(fh_vllm *v, const fh_vllm_source *s, fh_err *err)
{
    const fh_json *said = fh_json_get(s->config, "n_probes");
    uint64_t n = v->k / 16;
    v->probes_said = said != NULL;
    if (said && !fh_json_u64(said, &n)) return fh_fail(err, FH_EFORMAT, "%s/config.json: /n_probes is no whole number", s->dir);
    if (!said && !n)
        return fh_fail(err, FH_ECHECK,
                       "%s/config.json: has no \"n_probes\", and K/16 of %u clusters is none: that runtime would probe nothing", s->dir,
                       v->k);
    if (n < 1 || n > v->k)
        return fh_fail(err, FH_ECHECK, "%s/config.json: /n_probes is %llu of %u clusters (1..%u)", s->dir, (unsigned long long)n, v->k,
                       v->k);
    v->probes = (uint32_t)n;
    return FH_OK;
}

static fh_status add_special(fh_vllm *v, const fh_vllm_source *s, const fh_json *j, fh_err *err)
{
    int64_t id;
    if (!fh_json_i64(j, &id))
        return fh_fail(err, FH_EFORMAT, "%s/config.json: /flash_head_special_token_ids holds something that is no token id", s->dir);
    if (id < 0 || id >= (int64_t)s->vocab)
        return fh_fail(err, FH_ECHECK,
                       "%s/config.json: /flash_head_special_token_ids: %lld is no token (0..%u): that runtime would drop it in silence",
                       s->dir, (long long)id, s->vocab - 1);
    v->special[v->n_special++] = (uint32_t)id;
    return FH_OK;
}

static fh_status read_special(fh_vllm *v, const fh_vllm_source *s, fh_err *err)
{
    fh_status rc = FH_OK;
    const fh_json *said = fh_json_get(s->config, "flash_head_special_token_ids");
    bool list = said && fh_json_type(said) == FH_JSON_ARRAY;
    if (!said) return FH_OK;
    if (!(v->special = fh_malloc((list ? fh_json_count(said) + 1 : 1) * sizeof *v->special)))
        return fh_fail(err, FH_ENOMEM, "%s: out of memory", s->dir);
    if (!list) return add_special(v, s, said, err);
    for (const fh_json *j = fh_json_first(said); j && rc >= 0; j = fh_json_next(j)) rc = add_special(v, s, j, err);
    return rc;
}

/* ---- clustering_config.json ---------------------------------------------------------------------------------------- */

static fh_status same_number(const fh_json *j, const char *key, uint32_t want, const char *what, const char *name, fh_err *err)
{
    uint64_t n;
    if (!fh_json_u64(fh_json_get(j, key), &n)) return fh_fail(err, FH_EFORMAT, "%s: /%s is missing or no whole number", name, key);
    return n == want ? FH_OK : fh_fail(err, FH_ECHECK, "%s: /%s is %llu, the head has %u %s", name, key, (unsigned long long)n, want, what);
}

static fh_status judge_beside(const fh_vllm_source *s, fh_err *err)
{
    fh_json *j = NULL;
    char shown[SHOWN];
    if (!s->beside) return FH_OK;
    fh_status rc = fh_json_parse(&j, s->beside, s->beside_len, s->beside_name, err);
    if (rc < 0) return rc;
    const char *format = fh_json_string(fh_json_get(j, "format"));
    if (!format || strcmp(format, "safetensors"))
        rc = fh_fail(err, FH_EFORMAT, "%s: /format is '%s', not \"safetensors\"", s->beside_name,
                     format ? fh_show(shown, sizeof shown, format, strlen(format)) : "(no text)");
    else if ((rc = same_number(j, "vocab_size", s->vocab, "rows", s->beside_name, err)) == FH_OK)
        rc = same_number(j, "hidden_size", s->hidden, "columns", s->beside_name, err);
    fh_json_free(j);
    return rc;
}

/* ---- clustering_cache.safetensors ------------------------------------------------------------------------------------ */

static fh_status read_assignment(fh_vllm *v, const fh_vllm_source *s, fh_err *err)
{
    const fh_tensor *t;
    uint64_t shape = UINT64_MAX;
    fh_status rc = fh_tensors_need(&t, s->cache, "cluster_assignments", 1u << FH_I64, 1, &shape, err);
    if (rc < 0) return rc;
    if (t->shape[0] != s->vocab)
        return fh_fail(err, FH_ECHECK, "%s: tensor 'cluster_assignments' is of %llu tokens, the head has %u rows: is it of this model?",
                       t->file, (unsigned long long)t->shape[0], s->vocab);
    if (s->vocab % v->k)
        return fh_fail(err, FH_ECHECK, "%s: %u tokens make no %u clusters of one size, which that runtime needs", t->file, s->vocab, v->k);
    v->cap = s->vocab / v->k;
    uint32_t *count = fh_calloc(v->k, sizeof *count);
    v->assignment = fh_malloc(s->vocab * sizeof *v->assignment);
    if (!count || !v->assignment) {
        rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", t->file);
        goto out;
    }
    for (uint32_t i = 0; i < s->vocab; i++) {
        int64_t c;
        memcpy(&c, (const uint8_t *)t->data + (size_t)i * sizeof c, sizeof c);
        if (c < 0 || c >= (int64_t)v->k) {
            rc = fh_fail(err, FH_ECHECK, "%s: tensor 'cluster_assignments': token %u is in cluster %lld of %u", t->file, i, (long long)c,
                         v->k);
            goto out;
        }
        v->assignment[i] = (uint32_t)c;
        count[c]++;
    }
    for (uint32_t c = 0; c < v->k; c++)
        if (count[c] != v->cap) {
            rc = fh_fail(err, FH_ECHECK, "%s: cluster %u has %u tokens, not %u as all must have: that runtime would score some twice",
                         t->file, c, count[c], v->cap);
            goto out;
        }
out:
    fh_free(count);
    return rc;
}

static fh_status read_centroids(fh_vllm *v, const fh_vllm_source *s, fh_err *err)
{
    const fh_tensor *t;
    const uint64_t shape[4] = {1, 1, UINT64_MAX, UINT64_MAX};
    size_t cells;
    fh_status rc = fh_tensors_need(&t, s->cache, "centroids", FLOATS, 4, shape, err);
    if (rc < 0) return rc;
    if (t->shape[2] != s->hidden)
        return fh_fail(err, FH_ECHECK, "%s: tensor 'centroids' [1, 1, %llu, %llu] is of width %llu, the head's is %u: is it of this model?",
                       t->file, (unsigned long long)t->shape[2], (unsigned long long)t->shape[3], (unsigned long long)t->shape[2],
                       s->hidden);
    if (t->shape[3] < 1 || t->shape[3] > s->vocab)
        return fh_fail(err, FH_ECHECK, "%s: tensor 'centroids' holds %llu clusters for %u tokens", t->file, (unsigned long long)t->shape[3],
                       s->vocab);
    size_t d = s->hidden, k = (size_t)t->shape[3];
    v->k = (uint32_t)k;
    if (!fh_mul(k, d, &cells) || !fh_mul(cells, sizeof(float), &cells))
        return fh_fail(err, FH_EFORMAT, "%s: tensor 'centroids' is too large", t->file);
    float *row = fh_malloc(k * sizeof *row);
    double *square = fh_calloc(k, sizeof *square);
    v->centroids = fh_malloc(cells);
    if (!row || !square || !v->centroids) {
        rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", t->file);
        goto out;
    }
    for (size_t j = 0; j < d; j++) {
        fh_to_f32(row, t->dtype, (const uint8_t *)t->data + j * k * fh_dtype_size(t->dtype), k);
        for (size_t c = 0; c < k; c++) {
            if (!isfinite(row[c])) {
                rc = fh_fail(err, FH_ECHECK, "%s: tensor 'centroids': cluster %zu, dimension %zu is not finite", t->file, c, j);
                goto out;
            }
            v->centroids[c * d + j] = row[c];
            square[c] += (double)row[c] * row[c];
        }
    }
    for (size_t c = 0; c < k; c++) {
        double norm = sqrt(square[c]);
        if (norm >= LEAST_NORM && norm <= MOST_NORM) continue;
        rc = norm > 0 ? fh_fail(err, FH_ECHECK,
                                "%s: tensor 'centroids': cluster %zu has a norm of %g, which float32 cannot square: that runtime would "
                                "make it zero or not finite",
                                t->file, c, norm)
                      : fh_fail(err, FH_ECHECK,
                                "%s: tensor 'centroids': cluster %zu is zero and has no direction: that runtime would divide by its norm",
                                t->file, c);
        goto out;
    }
out:
    fh_free(row);
    fh_free(square);
    return rc;
}

/* ---- all of it ------------------------------------------------------------------------------------------------------- */

fh_status fh_vllm_parse(fh_vllm *out, const fh_vllm_source *s, fh_err *err)
{
    fh_vllm v = {.vocab = s->vocab, .hidden = s->hidden};
    const char *name, *record = fh_tensors_metadata(s->cache, "fhtool");
    fh_status rc;
    *out = (fh_vllm){0};
    if ((rc = judge_cache_dir(s->config, s->dir, &name, err)) < 0 || (rc = judge_architecture(s, err)) < 0) goto out;
    if (fh_json_has(s->config, "auto_map")) {
        rc = fh_fail(err, FH_ECHECK,
                     "%s/config.json: has an \"auto_map\", with which code of the directory would be asked for: take it out", s->dir);
        goto out;
    }
    if ((rc = judge_beside(s, err)) < 0 || (rc = read_centroids(&v, s, err)) < 0 || (rc = read_assignment(&v, s, err)) < 0 ||
        (rc = read_probes(&v, s, err)) < 0 || (rc = read_special(&v, s, err)) < 0)
        goto out;
    if (record && (rc = fh_json_parse(&v.record, record, strlen(record), s->cache_name, err)) < 0) goto out;
    *out = v, v = (fh_vllm){0};
out:
    fh_vllm_free(&v);
    return rc;
}

fh_status fh_vllm_open(fh_vllm *out, const fh_checkpoint *c, const fh_job *job, fh_err *err)
{
    fh_vllm_source s = {
        .dir = c->dir, .config = c->config.json, .vocab = (uint32_t)c->head->shape[0], .hidden = (uint32_t)c->head->shape[1]};
    fh_tensors *cache = NULL;
    const char *name;
    char *assets = NULL, *path = NULL, *beside = NULL, *text = NULL, *single = NULL, *index = NULL;
    *out = (fh_vllm){0};
    fh_status rc = judge_cache_dir(s.config, s.dir, &name, err);
    if (rc < 0 || (rc = fh_vllm_model_check(c, err)) < 0) return rc;
    assets = fh_path_join(c->dir, name);
    path = assets ? fh_path_join(assets, FH_VLLM_CACHE) : NULL;
    beside = assets ? fh_path_join(assets, FH_VLLM_CONFIG) : NULL;
    single = fh_path_join(c->dir, "model.safetensors"), index = fh_path_join(c->dir, "model.safetensors.index.json");
    if (!path || !beside || !single || !index) {
        rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", c->dir);
        goto out;
    }
    if (fh_file_exists(single) && fh_file_exists(index))
        fh_job_say(job, FH_WARN,
                   "%s: that runtime goes by the index, which was not looked at: model.safetensors is there too: remove one of them",
                   index);
    if ((rc = fh_tensors_open(&cache, path, err)) < 0) goto out;
    if (fh_file_exists(beside)) { /* newer releases do without */
        fh_map map = {0};
        if ((rc = fh_map_open(&map, beside, err)) < 0) goto out;
        if (map.size > MAX_BESIDE) rc = fh_fail(err, FH_EFORMAT, "%s: %zu bytes, at most %d are read", beside, map.size, MAX_BESIDE);
        else if (!(text = fh_strndup(map.size ? (const char *)map.data : "", map.size)))
            rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", beside);
        s.beside_len = map.size;
        fh_map_close(&map);
        if (rc < 0) goto out;
    }
    s.cache = cache, s.cache_name = path, s.beside = text, s.beside_name = beside;
    if ((rc = fh_vllm_parse(out, &s, err)) < 0) goto out;
    if (out->cap & (out->cap - 1))
        fh_job_say(job, FH_WARN, "%s: %u tokens a cluster: that runtime's fused kernel wants a power of two", path, out->cap);
out:
    fh_tensors_close(cache);
    fh_free(assets);
    fh_free(path);
    fh_free(beside);
    fh_free(single);
    fh_free(index);
    fh_free(text);
    return rc;
}

void fh_vllm_free(fh_vllm *v)
{
    fh_free(v->assignment);
    fh_free(v->centroids);
    fh_free(v->special);
    fh_json_free(v->record);
    *v = (fh_vllm){0};
}
