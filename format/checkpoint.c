/* format/checkpoint.c: a checkpoint, a directory or a GGUF file, and which of its tensors is the head. */
#include "format/family.h"
#include "format/gguf.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    MAX_CONFIG = 16 << 20,
    MAX_TOKENIZER = 256 << 20,  /* larger than any model's (Gemma's tokenizer.json has 33 MB) */
    MAX_NAME = 128,             /* of a tensor we make up from the table */
    COMPARED_AT_ONCE = 64 << 20 /* bytes between two looks at whether to stop */
};
#define FLOATS (1u << FH_F32 | 1u << FH_BF16 | 1u << FH_F16)

/* ---- its files ----------------------------------------------------------------------------------------------- */

/* A small text file, NUL-terminated; *text is NULL when it is optional and not there.  Through a map, which refuses a FIFO in its
 * place instead of waiting for a writer. */
static fh_status read_text(char **text, size_t *len, const char *path, bool optional, fh_err *err)
{
    fh_map map = {0};
    struct stat st;
    *text = NULL;
    *len = 0;
    if (lstat(path, &st) != 0 && errno == ENOENT) {
        if (optional) return FH_OK;
        return fh_fail(err, FH_ENOTFOUND, "%s: missing: is this a checkpoint directory?", path);
    }
    fh_status rc = fh_map_open(&map, path, err);
    if (rc < 0) return rc;
    if (map.size > MAX_CONFIG) {
        rc = fh_fail(err, FH_EFORMAT, "%s: %zu bytes, which is no configuration: at most %d are read", path, map.size, MAX_CONFIG);
    } else if (!(*text = fh_malloc(map.size + 1))) {
        rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", path);
    } else {
        if (map.size) memcpy(*text, map.data, map.size);
        (*text)[map.size] = '\0';
        *len = map.size;
    }
    fh_map_close(&map);
    return rc;
}

static fh_status read_config(fh_checkpoint *c, const fh_job *job, fh_err *err)
{
    fh_status rc;
    char *text = NULL, *generation = NULL;
    size_t len = 0, generation_len = 0;
    char *path = fh_path_join(c->dir, "config.json"), *generation_path = fh_path_join(c->dir, "generation_config.json");
    if (!path || !generation_path) {
        rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", c->dir);
        goto out;
    }
    if ((rc = read_text(&text, &len, path, false, err)) < 0) goto out;
    if ((rc = read_text(&generation, &generation_len, generation_path, true, err)) < 0) goto out;
    if (generation && strlen(generation) != generation_len) {
        /* It goes on as a C string: a NUL byte, which no JSON has, must not hide what follows. */
        fh_json *json = NULL;
        rc = fh_json_parse(&json, generation, generation_len, generation_path, err);
        fh_json_free(json);
        if (rc < 0) goto out;
    }
    rc = fh_config_parse(&c->config, text, len, generation, path, job, err);
out:
    fh_free(generation_path);
    fh_free(path);
    fh_free(generation);
    fh_free(text);
    return rc;
}

/* A GGUF makes both: config.json's text, and the tensors. */
static fh_status open_gguf(fh_checkpoint *c, const fh_job *job, fh_err *err)
{
    fh_status rc;
    fh_gguf *g = NULL;
    char *text = NULL, *name = fh_sprintf("%s: metadata", c->dir);
    size_t len = 0;
    if (!name) return fh_fail(err, FH_ENOMEM, "%s: out of memory", c->dir);
    if ((rc = fh_gguf_open(&g, c->dir, err)) < 0) goto out;
    if ((rc = fh_gguf_config(g, &text, &len, err)) < 0) goto out;
    if ((rc = fh_config_parse(&c->config, text, len, NULL, name, job, err)) < 0) goto out;
    rc = fh_gguf_tensors(&c->tensors, g, err);
    g = NULL;
out:
    fh_gguf_close(g);
    fh_free(text);
    fh_free(name);
    return rc;
}

/* ---- which tensors -------------------------------------------------------------------------------------------- */

/* The first tensor that a prefix and a name make, or NULL. */
static const fh_tensor *first_of(const fh_tensors *t, const char *const *prefixes, const char *const *names)
{
    char name[MAX_NAME];
    for (; *names; names++)
        for (const char *const *p = prefixes; *p; p++) {
            snprintf(name, sizeof name, "%s%s", *p, *names);
            const fh_tensor *found = fh_tensors_find(t, name);
            if (found) return found;
        }
    return NULL;
}

/* The tensor whose name is that of the head, but ends with `end` instead of "weight"; NULL when absent. */
static const fh_tensor *beside_head(const fh_tensors *t, const fh_family *f, const char *end)
{
    char name[MAX_NAME];
    for (const char *const *h = f->heads_names; *h; h++)
        for (const char *const *p = fh_head_prefixes; *p; p++) {
            snprintf(name, sizeof name, "%s%.*s%s", *p, (int)(strlen(*h) - strlen("weight")), *h, end);
            const fh_tensor *found = fh_tensors_find(t, name);
            if (found) return found;
        }
    return NULL;
}

/* A head that is packed, with its scales beside it, has no plain tensor of its name: casting what is left would be nonsense. */
static fh_status refuse_packed(const fh_tensors *t, const fh_family *f, fh_err *err)
{
    static const char *const packed[] = {"qweight", "weight_packed", "weight.absmax", "weight_scale", "weight.quant_map", "SCB", "scales"};
    for (size_t i = 0; i < sizeof packed / sizeof *packed; i++) {
        const fh_tensor *found = beside_head(t, f, packed[i]);
        if (found)
            return fh_fail(err, FH_EUNSUPPORTED, "%s: tensor '%s' (%s): the head is stored quantized: take the unquantized model",
                           found->file, found->name, found->dtype_name);
    }
    return FH_OK;
}

/* ---- tied or not ---------------------------------------------------------------------------------------------- */

static fh_status compare(bool *same, const fh_tensor *a, const fh_tensor *b, const fh_job *job, fh_err *err)
{
    *same = a->dtype == b->dtype && a->rank == b->rank && a->bytes == b->bytes;
    for (unsigned i = 0; i < a->rank && *same; i++) *same = a->shape[i] == b->shape[i];
    for (uint64_t at = 0; at < a->bytes && *same; at += COMPARED_AT_ONCE) {
        if (fh_job_stopped(job)) return fh_fail(err, FH_EINTERRUPTED, "stopped");
        size_t n = fh_min((size_t)(a->bytes - at), COMPARED_AT_ONCE);
        *same = memcmp((const uint8_t *)a->data + at, (const uint8_t *)b->data + at, n) == 0;
    }
    return FH_OK;
}

/* Fills head, embedding and tied from what is there and what the flag says. */
static fh_status choose(fh_checkpoint *c, const fh_family *f, const fh_job *job, fh_err *err)
{
    fh_status rc;
    bool same, flag = c->config.tie < 0 ? c->config.tie_default : c->config.tie != 0;
    const fh_tensor *own = first_of(c->tensors, fh_head_prefixes, f->heads_names);
    const fh_tensor *embedding = first_of(c->tensors, fh_embedding_prefixes, f->embedding_names);
    if (!own && (rc = refuse_packed(c->tensors, f, err)) < 0) return rc;
    if (!own && !embedding)
        return fh_fail(err, FH_ENOTFOUND, "%s: neither the head '%s' nor the embedding '%s' is among the %zu tensors (model_type '%s')",
                       c->dir, f->heads_names[0], f->embedding_names[0], fh_tensors_count(c->tensors), c->config.model_type);
    if (!own) {
        if (!flag)
            fh_job_say(job, FH_WARN, "%s: 'tie_word_embeddings' is false, but there is no head '%s': the embedding '%s' is used for it",
                       c->dir, f->heads_names[0], embedding->name);
        c->head = c->embedding = embedding;
        c->tied = true;
        return FH_OK;
    }
    c->head = own;
    c->embedding = embedding;
    if (!flag) return FH_OK;
    if (!embedding) { /* of two names of the same numbers one was written, the other one */
        c->embedding = own;
        c->tied = true;
        return FH_OK;
    }
    if ((rc = fh_tensors_load(c->tensors, own, job, err)) < 0 || (rc = fh_tensors_load(c->tensors, embedding, job, err)) < 0) return rc;
    if ((rc = compare(&same, own, embedding, job, err)) < 0) return rc;
    if (!same)
        return fh_fail(err, FH_ECHECK, "%s: 'tie_word_embeddings' is true%s, but '%s' and '%s' differ: set it to false, or remove one",
                       c->dir, c->config.tie < 0 ? " by default" : "", own->name, embedding->name);
    c->head = embedding;
    c->tied = true;
    return FH_OK;
}

/* ---- what they must be ---------------------------------------------------------------------------------------- */

static fh_status check_matrix(fh_checkpoint *c, const fh_family *f, const fh_tensor *t, fh_err *err)
{
    fh_status rc;
    const fh_tensor *found;
    fh_config *config = &c->config;
    const uint64_t any[] = {UINT64_MAX, UINT64_MAX};
    if ((rc = fh_tensors_need(&found, c->tensors, t->name, FLOATS, 2, any, err)) < 0) return rc;
    uint64_t rows = t->shape[0], cols = t->shape[1];
    if (rows == 0 || cols == 0 || rows > INT32_MAX || cols > INT32_MAX)
        return fh_fail(err, FH_EFORMAT, "%s: tensor '%s' has %llu rows and %llu columns, from 1 to %d are read", t->file, t->name,
                       (unsigned long long)rows, (unsigned long long)cols, INT32_MAX);
    if (config->vocab && config->vocab != rows)
        return fh_fail(err, FH_ECHECK, "%s/config.json: vocab_size is %u, but '%s' has %llu rows: do the files belong together?", c->dir,
                       config->vocab, t->name, (unsigned long long)rows);
    if (config->hidden && config->hidden != cols)
        return fh_fail(err, FH_ECHECK, "%s/config.json: %s is %u, but '%s' has %llu columns: do the files belong together?", c->dir,
                       *f->type ? f->keys->hidden : "hidden_size", config->hidden, t->name, (unsigned long long)cols);
    config->vocab = (uint32_t)rows; /* a family that is not known may not say */
    config->hidden = (uint32_t)cols;
    return FH_OK;
}

static fh_status check_head(fh_checkpoint *c, const fh_family *f, fh_err *err)
{
    fh_status rc;
    const fh_config *config = &c->config;
    if ((rc = check_matrix(c, f, c->head, err)) < 0) return rc;
    if (c->embedding && c->embedding != c->head && (rc = check_matrix(c, f, c->embedding, err)) < 0) return rc;
    const fh_tensor *bias = beside_head(c->tensors, f, "bias");
    if (bias && (rc = fh_tensors_need(&c->bias, c->tensors, bias->name, FLOATS, 1, &c->head->shape[0], err)) < 0) return rc;
    for (size_t i = 0; i < config->n_always; i++)
        if (config->always[i] >= config->vocab)
            return fh_fail(err, FH_ECHECK, "%s: token id %u of config.json or generation_config.json is no token: there are %u", c->dir,
                           config->always[i], config->vocab);
    return FH_OK;
}

static fh_status open_checkpoint(fh_checkpoint *out, const char *dir, bool blocks, const fh_job *job, fh_err *err)
{
    fh_status rc;
    fh_checkpoint c = {0};
    memset(out, 0, sizeof *out);
    c.dir = fh_strdup(dir);
    if (!c.dir) {
        rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", dir);
        goto out;
    }
    if (fh_is_gguf(dir)) {
        if ((rc = open_gguf(&c, job, err)) < 0) goto out;
    } else {
        if ((rc = read_config(&c, job, err)) < 0) goto out;
        if ((rc = fh_tensors_open_dir(&c.tensors, dir, job, err)) < 0) goto out;
    }
    const fh_family *f = fh_family_find(c.config.model_type);
    if ((rc = choose(&c, f, job, err)) < 0) goto out;
    if ((rc = check_head(&c, f, err)) < 0) goto out;
    rc = blocks ? fh_tensors_load_blocks(c.tensors, c.head, job, err) : fh_tensors_load(c.tensors, c.head, job, err);
    if (rc < 0) goto out;
    *out = c;
    memset(&c, 0, sizeof c);
out:
    fh_checkpoint_close(&c);
    return rc;
}

fh_status fh_checkpoint_open(fh_checkpoint *out, const char *dir, const fh_job *job, fh_err *err)
{
    return open_checkpoint(out, dir, false, job, err);
}

fh_status fh_checkpoint_open_stored(fh_checkpoint *out, const char *dir, const fh_job *job, fh_err *err)
{
    return open_checkpoint(out, dir, true, job, err);
}

void fh_checkpoint_close(fh_checkpoint *c)
{
    if (!c) return;
    fh_config_free(&c->config);
    fh_tensors_close(c->tensors);
    fh_free(c->dir);
    memset(c, 0, sizeof *c);
}

bool fh_is_gguf(const char *path)
{
    struct stat st;
    char first[4];
    size_t n = strlen(path);
    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode)) return false;
    if (n >= 5 && strcmp(path + n - 5, ".gguf") == 0) return true;
    if (stat(path, &st) != 0 || !S_ISREG(st.st_mode)) return false;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return false;
    bool is = read(fd, first, sizeof first) == (ssize_t)sizeof first && memcmp(first, "GGUF", sizeof first) == 0;
    close(fd);
    return is;
}

/* ---- the tokenizer's files ------------------------------------------------------------------------------------- */

static fh_status tokenizer_of_gguf(fh_tokenizer_text *t, const char *path, fh_err *err)
{
    fh_gguf *g = NULL;
    fh_status rc = fh_gguf_open(&g, path, err);
    if (rc >= 0) rc = fh_gguf_tokenizer(g, &t->text, &t->len, &t->config, err);
    if (t->config) t->config_len = strlen(t->config);
    fh_gguf_close(g);
    return rc;
}

static fh_status tokenizer_of_directory(fh_tokenizer_text *t, const char *dir, fh_err *err)
{
    char *beside = fh_path_join(dir, "tokenizer_config.json"), *chat = fh_path_join(dir, "chat_template.jinja");
    fh_status rc = beside && chat ? FH_OK : fh_fail(err, FH_ENOMEM, "%s: out of memory", dir);
    if (rc >= 0 && fh_file_exists(t->name)) rc = fh_file_read(&t->text, &t->len, t->name, MAX_TOKENIZER, err);
    if (rc >= 0 && t->text && fh_file_exists(beside)) rc = fh_file_read(&t->config, &t->config_len, beside, MAX_CONFIG, err);
    if (rc >= 0 && t->text && fh_file_exists(chat)) rc = fh_file_read(&t->chat, &t->chat_len, chat, MAX_CONFIG, err);
    fh_free(chat);
    fh_free(beside);
    return rc;
}

fh_status fh_tokenizer_text_read(fh_tokenizer_text *out, const char *path, fh_err *err)
{
    bool gguf = fh_is_gguf(path);
    *out = (fh_tokenizer_text){.name = gguf ? fh_strdup(path) : fh_path_join(path, "tokenizer.json")};
    fh_status rc = !out->name ? fh_fail(err, FH_ENOMEM, "%s: out of memory", path)
                   : gguf     ? tokenizer_of_gguf(out, path, err)
                              : tokenizer_of_directory(out, path, err);
    if (rc < 0) fh_tokenizer_text_free(out);
    return rc;
}

void fh_tokenizer_text_free(fh_tokenizer_text *t)
{
    fh_free(t->name);
    fh_free(t->text);
    fh_free(t->config);
    fh_free(t->chat);
    memset(t, 0, sizeof *t);
}
