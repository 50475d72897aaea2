/* runtime/model.c: a model put together from a checkpoint, a bundle, or an artifact and its base model. */
#include "runtime/runtime.h"

#include <string.h>
#include <sys/stat.h>

static fh_status no_memory(const fh_model *m, fh_err *err)
{
    return fh_fail(err, FH_ENOMEM, "%s: out of memory", m->name ? m->name : "model");
}

bool fh_is_checkpoint(const char *path)
{
    struct stat s;
    return (!stat(path, &s) && S_ISDIR(s.st_mode)) || fh_is_gguf(path);
}

/* ---- tokenizers -------------------------------------------------------------------------------------------------- */

/* A checkpoint without one is no error here. */
static fh_status tokenizer_of_checkpoint(fh_model *m, const char *path, unsigned need, const fh_job *job, fh_err *err)
{
    fh_tokenizer_text t;
    fh_status rc = fh_tokenizer_text_read(&t, path, err);
    if (rc < 0) return rc;
    if (t.text) rc = fh_tokenizer_open(&m->tokenizer, t.text, t.len, t.config, t.name, job, err);
    if (rc == FH_OK && t.text && (need & FH_MODEL_CHAT)) rc = fh_chat_open(&m->chat, t.config, t.chat, m->name, err);
    fh_tokenizer_text_free(&t);
    return rc;
}

/* A section's bytes as text of its own; *text is NULL where there is no such section. */
static fh_status text_section(fh_fhead *file, const char *name, char **text, size_t *len, fh_err *err)
{
    const void *data;
    size_t bytes;
    *text = NULL;
    if (!fh_fhead_find(file, name)) return FH_OK;
    fh_status rc = fh_fhead_data(file, name, &data, &bytes, err);
    if (rc < 0) return rc;
    if (memchr(data, 0, bytes)) return fh_fail(err, FH_EFORMAT, "%s: section '%s' is no text: it holds a NUL", fh_fhead_path(file), name);
    if (!(*text = fh_strndup(data, bytes))) return fh_fail(err, FH_ENOMEM, "%s: out of memory", fh_fhead_path(file));
    *len = bytes;
    return FH_OK;
}

static fh_status tokenizer_of_bundle(fh_model *m, fh_fhead *file, unsigned need, const fh_job *job, fh_err *err)
{
    const void *data;
    size_t bytes, len;
    char *config = NULL, *jinja = NULL;
    fh_status rc;
    if (!fh_fhead_find(file, "body.tokenizer")) return FH_OK;
    if ((rc = fh_fhead_data(file, "body.tokenizer", &data, &bytes, err)) < 0) return rc;
    if ((rc = text_section(file, "body.tokenizer_config", &config, &len, err)) < 0) return rc;
    rc = fh_tokenizer_open(&m->tokenizer, data, bytes, config, m->name, job, err);
    if (rc == FH_OK && (need & FH_MODEL_CHAT) && (rc = text_section(file, "body.chat_template", &jinja, &len, err)) == FH_OK)
        rc = fh_chat_open(&m->chat, config, jinja, m->name, err);
    fh_free(jinja);
    fh_free(config);
    return rc;
}

static fh_status want_tokenizer(const fh_model *m, unsigned need, const char *where, fh_err *err)
{
    if (m->tokenizer || !(need & FH_MODEL_TOKENIZER)) return FH_OK;
    return fh_fail(err, FH_ENOTFOUND, "%s: there is no tokenizer%s in it: give token ids, or %s", where,
                   fh_is_gguf(where) ? "" : ".json", fh_is_gguf(where) ? "take a file that has one" : "add the file");
}

/* ---- a checkpoint -------------------------------------------------------------------------------------------- */

static fh_rows bias_rows(const fh_tensor *t) { return (fh_rows){t->data, t->dtype, 1, (size_t)t->shape[0], (size_t)t->bytes}; }

static fh_status dense_of_checkpoint(fh_model *m, const fh_job *job, fh_err *err)
{
    const fh_checkpoint *c = &m->checkpoint;
    size_t vocab = c->config.vocab;
    fh_status rc = FH_OK;
    if (c->bias) {
        if (!(m->bias = fh_malloc(vocab * sizeof *m->bias))) return no_memory(m, err);
        fh_to_f32(m->bias, c->bias->dtype, c->bias->data, vocab);
    }
    m->dense =
        (fh_dense){.rows = fh_tensor_stored_rows(c->head), .bias = m->bias, .softcap = (float)c->config.final_softcap, .vocab = c->config.vocab};
    if (m->head) {
        m->dense.dead = fh_head_dead_map(m->head); /* the artifact's own word */
        return FH_OK;
    }
    if (!(m->dead = fh_malloc(vocab))) return no_memory(m, err);
    fh_dead_rows(&m->dense.rows, m->tokenizer ? fh_tokenizer_size(m->tokenizer) : 0, fh_job_pool(job), m->dead, err, &rc);
    m->dense.dead = m->dead;
    return rc;
}

static fh_status body_of_checkpoint(fh_model *m, const fh_job *job, fh_err *err)
{
    fh_status rc = fh_tensors_load_blocks(m->checkpoint.tensors, NULL, job, err);
    if (rc < 0) return rc;
    fh_body_source source = {.config = m->config, .tensors = m->checkpoint.tensors};
    return fh_body_open(&m->body, &source, m->checkpoint.dir, err);
}

/* The head is dense here; whether rows are dead depends on the tokenizer, so that it is opened for a head too. */
static fh_status open_checkpoint(fh_model *m, const char *dir, unsigned need, const fh_job *job, fh_err *err)
{
    fh_status rc = FH_OK;
    if (need & (FH_MODEL_TOKENIZER | FH_MODEL_HEAD)) {
        rc = tokenizer_of_checkpoint(m, dir, need, job, err);
        if (rc == FH_EUNSUPPORTED && !(need & FH_MODEL_TOKENIZER)) {
            fh_job_say(job, FH_WARN, "%s: its tokenizer is not one we have: rows past the vocabulary cannot be told from others", dir);
            rc = FH_OK;
        }
        if (rc < 0 || (rc = want_tokenizer(m, need, dir, err)) < 0) return rc;
    }
    if (!(need & (FH_MODEL_BODY | FH_MODEL_HEAD))) return FH_OK;
    if ((rc = fh_checkpoint_open_stored(&m->checkpoint, dir, job, err)) < 0) return rc;
    m->config = &m->checkpoint.config;
    if ((need & FH_MODEL_HEAD) && (rc = dense_of_checkpoint(m, job, err)) < 0) return rc;
    return need & FH_MODEL_BODY ? body_of_checkpoint(m, job, err) : FH_OK;
}

/* ---- an artifact ------------------------------------------------------------------------------------------------------- */

static void dense_of_head(fh_model *m)
{
    const fh_head_parts *p = fh_head_get_parts(m->head);
    m->dense = (fh_dense){
        .token_of = p->permutation, .bias = p->bias, .softcap = p->softcap, .vocab = p->vocab, .dead = fh_head_dead_map(m->head)};
    if (p->exact.data) m->dense.rows = p->exact;
    else if (p->tokens_exact) m->dense.rows = p->tokens;
}

static const void *embedding_row(void *ctx, uint32_t id) { return fh_head_exact_row(ctx, id); }

static bool is_tied(const fh_fhead *file)
{
    bool tied = false;
    const fh_json *j = fh_json_get(fh_json_get(fh_fhead_header(file), "model"), "tied");
    return j && fh_json_bool(j, &tied) && tied;
}

static fh_status body_of_bundle(fh_model *m, fh_fhead *file, fh_err *err)
{
    const fh_head_info *info = fh_head_get_info(m->head);
    const void *data;
    size_t bytes;
    fh_status rc;
    if (!fh_fhead_find(file, "body.tensors"))
        return fh_fail(err, FH_EFORMAT, "%s: it has body.config but no body.tensors: pack it again", m->name);
    if ((rc = fh_fhead_data(file, "body.tensors", &data, &bytes, err)) < 0) return rc;
    if ((rc = fh_tensors_open_memory(&m->bundle_tensors, data, bytes, m->name, err)) < 0) return rc;
    fh_body_source source = {.config = m->config, .tensors = m->bundle_tensors};
    if (is_tied(file)) {
        if (!info->exact || !fh_dtype_parse(&source.embedding_dtype, info->exact))
            return fh_fail(err, FH_EFORMAT, "%s: the input embedding is tied to a head whose exact rows are not in the file: pack it again",
                           m->name);
        source.embedding_row = embedding_row;
        source.ctx = m->head;
    }
    return fh_body_open(&m->body, &source, m->name, err);
}

static fh_status config_of_bundle(fh_model *m, fh_fhead *file, const fh_job *job, fh_err *err)
{
    const fh_head_info *info = fh_head_get_info(m->head);
    char *text = NULL, *generation = NULL;
    size_t len = 0, generation_len;
    fh_status rc = text_section(file, "body.config", &text, &len, err);
    if (rc < 0 || !text) return rc;
    if ((rc = text_section(file, "body.generation", &generation, &generation_len, err)) < 0) goto out;
    if ((rc = fh_config_parse(&m->bundle_config, text, len, generation, m->name, job, err)) < 0) goto out;
    m->config = &m->bundle_config;
    if (m->config->vocab != info->vocab || m->config->hidden != info->hidden)
        rc = fh_fail(err, FH_ECHECK, "%s: its config.json has vocabulary %u and width %u, its head %u and %u", m->name, m->config->vocab,
                     m->config->hidden, info->vocab, info->hidden);
out:
    fh_free(generation);
    fh_free(text);
    return rc;
}

static fh_status check_base(const fh_model *m, const char *base, fh_err *err)
{
    char found[65];
    const fh_checkpoint *c = &m->checkpoint;
    fh_rows head = fh_tensor_rows(c->head), bias = c->bias ? bias_rows(c->bias) : (fh_rows){0};
    fh_fingerprint(found, &head, c->bias ? &bias : NULL, c->config.final_softcap);
    const char *wanted = fh_head_get_info(m->head)->fingerprint;
    if (!strcmp(found, wanted)) return FH_OK;
    return fh_fail(
        err, FH_ECHECK,
        "%s: was made from another model than %s (fingerprint %.12s..., the model's is %.12s...): give the model it was made from", m->name,
        base, wanted, found);
}

static fh_status open_with_base(fh_model *m, const char *base, unsigned need, const fh_job *job, fh_err *err)
{
    fh_status rc = fh_checkpoint_open(&m->checkpoint, base, job, err);
    if (rc < 0) return rc;
    m->config = &m->checkpoint.config;
    if ((rc = check_base(m, base, err)) < 0) return rc;
    if ((rc = dense_of_checkpoint(m, job, err)) < 0) return rc;
    if ((need & FH_MODEL_TOKENIZER) &&
        ((rc = tokenizer_of_checkpoint(m, base, need, job, err)) < 0 || (rc = want_tokenizer(m, need, base, err)) < 0))
        return rc;
    return need & FH_MODEL_BODY ? body_of_checkpoint(m, job, err) : FH_OK;
}

static fh_status open_artifact(fh_model *m, const char *path, const char *base, unsigned need, const fh_job *job, fh_err *err)
{
    fh_status rc = fh_head_open(&m->head, path, err);
    if (rc < 0) return rc;
    if (base) return open_with_base(m, base, need, job, err);
    fh_fhead *file = (fh_fhead *)fh_head_file(m->head); /* decoding a section changes the container; the head has done with it */
    dense_of_head(m);
    if ((rc = config_of_bundle(m, file, job, err)) < 0) return rc;
    if ((need & FH_MODEL_BODY) && !m->config)
        return fh_fail(err, FH_ENOTFOUND, "%s: holds a head only: give the model it was made from with --model DIR", path);
    if ((need & FH_MODEL_TOKENIZER) && ((rc = tokenizer_of_bundle(m, file, need, job, err)) < 0 || (rc = want_tokenizer(m, need, path, err)) < 0))
        return rc;
    return need & FH_MODEL_BODY ? body_of_bundle(m, file, err) : FH_OK;
}

fh_status fh_model_open(fh_model *out, const char *path, const char *base, unsigned need, const fh_job *job, fh_err *err)
{
    *out = (fh_model){.name = fh_strdup(path)};
    if (!out->name) return fh_fail(err, FH_ENOMEM, "%s: out of memory", path);
    fh_status rc = FH_OK;
    if (!fh_is_checkpoint(path)) rc = open_artifact(out, path, base, need, job, err);
    else if (base) rc = fh_fail(err, FH_EUSAGE, "%s: is a checkpoint: a base model goes with a .fhead only", path);
    else rc = open_checkpoint(out, path, need, job, err);
    if (rc < 0) fh_model_close(out);
    return rc;
}

/* What its artifact says of its scores, before it is put on a device. */
static fh_status unify(const fh_model *m, fh_err *err)
{
    fh_unified *unified = m->body ? fh_malloc(m->config->layers * sizeof *unified) : NULL;
    if (!m->body) return FH_OK;
    if (!unified) return no_memory(m, err);
    fh_model_unified(m, unified);
    fh_body_unify(m->body, unified);
    fh_free(unified);
    return FH_OK;
}

/* What was measured of its products before, where that is beside it. */
static fh_status use_products(const fh_model *m, const fh_job *job, fh_err *err)
{
    fh_err why;
    char *path = fh_device_products_path(m->device, m->name);
    if (!path) return no_memory(m, err);
    if (fh_file_exists(path) && fh_device_products_load(m->device, path, &why) < 0)
        fh_job_say(job, FH_WARN, "kernels are chosen without a measurement: %s", why.text);
    fh_free(path);
    return FH_OK;
}

fh_status fh_model_use(fh_model *m, fh_device_kind kind, const fh_job *job, fh_err *err)
{
    if (m->head || m->body) {
        fh_status rc = unify(m, err);
        if (rc == FH_OK) rc = fh_device_open(&m->device, kind, m->head, m->body, job, err);
        return rc < 0 || !fh_device_has_body(m->device) ? rc : use_products(m, job, err);
    }
    if (kind == FH_DEVICE_CUDA)
        return fh_fail(err, FH_EUSAGE, "%s: has neither FlashHead nor body, which is what a GPU computes here: leave out --device", m->name);
    return FH_OK;
}

void fh_model_close(fh_model *m)
{
    if (!m) return;
    fh_device_close(m->device);
    fh_body_close(m->body);
    fh_tokenizer_close(m->tokenizer);
    fh_chat_close(m->chat);
    fh_tensors_close(m->bundle_tensors);
    fh_config_free(&m->bundle_config);
    fh_checkpoint_close(&m->checkpoint);
    fh_head_close(m->head);
    fh_free(m->bias);
    fh_free(m->dead);
    fh_free(m->name);
    *m = (fh_model){0};
}
