/* format/config.c: config.json and generation_config.json. */
#include "format/config_reader.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- asking ------------------------------------------------------------------------------------------------- */

void fh_reader_fail(fh_reader *r, fh_status code, const char *fmt, ...)
{
    char what[500];
    va_list args;
    if (r->rc < 0) return;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    r->rc = fh_fail(r->err, code, "%s: %s", r->name, what);
}

const fh_json *fh_reader_get(const fh_reader *r, const char *key)
{
    const fh_json *found = fh_json_get(r->model, key);
    return found || fh_json_has(r->model, key) ? found : fh_json_get(r->top, key);
}

bool fh_reader_is_null(const fh_reader *r, const char *key)
{
    return (fh_json_has(r->model, key) || fh_json_has(r->top, key)) && !fh_reader_get(r, key);
}

uint32_t fh_reader_u32(fh_reader *r, const char *key, uint32_t least, uint32_t otherwise)
{
    uint64_t v;
    const fh_json *j = key ? fh_reader_get(r, key) : NULL;
    if (!j) return otherwise;
    if (fh_json_u64(j, &v) && v >= least && v <= INT32_MAX) return (uint32_t)v;
    fh_reader_fail(r, FH_EFORMAT, "'%s' must be a whole number from %u to %d, written without point or exponent", key, least, INT32_MAX);
    return otherwise;
}

double fh_reader_double(fh_reader *r, const fh_json *in, const char *key, double otherwise)
{
    double v;
    const fh_json *j = in ? fh_json_get(in, key) : fh_reader_get(r, key);
    if (!j) return otherwise;
    if (fh_json_double(j, &v)) return v;
    fh_reader_fail(r, FH_EFORMAT, "'%s' is no number", key);
    return otherwise;
}

bool fh_reader_bool(fh_reader *r, const char *key, bool otherwise)
{
    bool v;
    const fh_json *j = fh_reader_get(r, key);
    if (!j) return otherwise;
    if (fh_json_bool(j, &v)) return v;
    fh_reader_fail(r, FH_EFORMAT, "'%s' must be true or false", key);
    return otherwise;
}

void fh_config_no_body(fh_config *c, const char *fmt, ...)
{
    char why[sizeof c->body_why];
    va_list args;
    if (c->body_why[0]) return;
    va_start(args, fmt);
    vsnprintf(why, sizeof why, fmt, args);
    va_end(args);
    fh_show(c->body_why, sizeof c->body_why, why, strlen(why));
    c->body_supported = false;
}

/* ---- what it is --------------------------------------------------------------------------------------------- */

static void read_type(fh_reader *r, fh_config *c)
{
    const char *type = fh_json_string(fh_json_get(r->top, "model_type"));
    const char *architecture = fh_json_string(fh_json_first(fh_json_get(r->top, "architectures")));
    if (!type || !*type || strlen(type) >= sizeof c->model_type) {
        fh_reader_fail(r, FH_EFORMAT, "'model_type' is missing, or no name: which family is this model of?");
        return;
    }
    snprintf(c->model_type, sizeof c->model_type, "%s", type);
    if (architecture && strlen(architecture) < sizeof c->architecture)
        snprintf(c->architecture, sizeof c->architecture, "%s", architecture);
}

/* A quantized checkpoint holds other tensors, and numbers that mean nothing without their scales. */
static void refuse_quantized(fh_reader *r)
{
    static const char *const keys[] = {"quantization_config", "compression_config"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const fh_json *q = fh_json_get(r->model, keys[i]);
        if (!q) q = fh_json_get(r->top, keys[i]);
        if (!q) continue;
        const char *method = fh_json_string(fh_json_get(q, "quant_method"));
        fh_reader_fail(r, FH_EUNSUPPORTED, "'%s' (method '%s'): quantized checkpoints are not read: take the unquantized model", keys[i],
                       method ? method : "not said");
    }
}

static void read_tie(fh_reader *r, const fh_family *f, fh_config *c, const fh_job *job)
{
    bool tie;
    const fh_json *j = fh_json_get(r->top, "tie_word_embeddings");
    if (!j) j = fh_json_get(r->model, "tie_word_embeddings");
    c->tie_default = f->tie;
    c->tie = -1;
    if (!j) {
        fh_job_say(job, FH_INFO, "%s: 'tie_word_embeddings' is missing: %s is the default of %s", r->name, f->tie ? "true" : "false",
                   c->family ? c->model_type : "families that are not known");
    } else if (fh_json_bool(j, &tie)) {
        c->tie = tie;
    } else {
        fh_reader_fail(r, FH_EFORMAT, "'tie_word_embeddings' must be true or false");
    }
}

/* ---- the body ------------------------------------------------------------------------------------------------ */

static bool bias_of(fh_reader *r, fh_bias_rule rule, const char *key)
{
    if (rule == FH_BIAS_NEVER || rule == FH_BIAS_ALWAYS) return rule == FH_BIAS_ALWAYS;
    return fh_reader_bool(r, key, rule == FH_BIAS_KEY_TRUE);
}

static void read_act(fh_reader *r, const fh_family *f, fh_config *c)
{
    static const struct { const char *name; fh_act act; } acts[] = {
        {"silu", FH_ACT_SILU}, {"swish", FH_ACT_SILU}, {"gelu", FH_ACT_GELU}, {"gelu_python", FH_ACT_GELU}, {"gelu_new", FH_ACT_GELU_TANH},
        {"gelu_pytorch_tanh", FH_ACT_GELU_TANH}, {"gelu_fast", FH_ACT_GELU_TANH}, {"gelu_python_tanh", FH_ACT_GELU_TANH},
        {"relu", FH_ACT_RELU}, {"quick_gelu", FH_ACT_QUICK_GELU},
    };
    c->act = f->act;
    const fh_json *j = fh_reader_get(r, f->keys->act);
    const char *name = fh_json_string(j);
    if (!j) return;
    if (!name) {
        fh_reader_fail(r, FH_EFORMAT, "'%s' is no string", f->keys->act);
        return;
    }
    for (size_t i = 0; i < sizeof acts / sizeof *acts; i++) {
        if (strcmp(name, acts[i].name) != 0) continue;
        c->act = acts[i].act;
        return;
    }
    fh_config_no_body(c, "activation '%s' is not known", name);
}

/* A size that every published config.json has; a text_config may leave it to the default. */
static uint32_t required(fh_reader *r, const char *key, uint32_t otherwise)
{
    if (r->rc >= 0 && r->model == r->top && !fh_reader_get(r, key)) fh_reader_fail(r, FH_EFORMAT, "'%s' is missing", key);
    return fh_reader_u32(r, key, 1, otherwise);
}

static void read_heads(fh_reader *r, const fh_family *f, fh_config *c)
{
    const fh_family_keys *k = f->keys;
    c->heads = fh_reader_u32(r, k->heads, 1, f->heads);
    bool as_heads = f->kv_heads == 0 || !k->kv_heads || fh_reader_is_null(r, k->kv_heads);
    c->kv_heads = fh_reader_u32(r, k->kv_heads, 1, as_heads ? c->heads : f->kv_heads);
    c->head_dim = fh_reader_u32(r, k->head_dim, 1, f->head_dim);
    if (r->rc < 0) return;
    if (c->heads % c->kv_heads)
        fh_reader_fail(r, FH_EFORMAT, "%u attention heads cannot be shared out to %u key/value heads", c->heads, c->kv_heads);
    if (c->head_dim == 0 && c->hidden % c->heads)
        fh_reader_fail(r, FH_EFORMAT, "the hidden size %u is no multiple of the %u attention heads, and no 'head_dim' is given", c->hidden,
                       c->heads);
    else if (c->head_dim == 0) c->head_dim = c->hidden / c->heads;
    if ((uint64_t)c->heads * c->head_dim > INT32_MAX)
        fh_reader_fail(r, FH_EFORMAT, "%u heads of %u elements are too many", c->heads, c->head_dim);
}

static void read_window(fh_reader *r, const fh_family *f, fh_config *c)
{
    if (f->window_rule == FH_WINDOW_NONE) return;
    if (f->window_rule == FH_WINDOW_SWITCH && !fh_reader_bool(r, "use_sliding_window", false)) return;
    if (fh_reader_is_null(r, "sliding_window")) return;
    c->sliding_window = fh_reader_u32(r, "sliding_window", 1, f->window);
}

/* 0 when said to be null; the family's where nothing is said. */
static double scalar_or_none(fh_reader *r, const char *key, double otherwise)
{
    double v = fh_reader_is_null(r, key) ? 0 : fh_reader_double(r, NULL, key, otherwise);
    if (v < 0) fh_reader_fail(r, FH_EFORMAT, "'%s' is below 0", key);
    return v;
}

static void read_body(fh_reader *r, const fh_family *f, fh_config *c)
{
    const fh_family_keys *k = f->keys;
    c->layers = required(r, k->layers, f->layers);
    read_heads(r, f, c);
    if (f->ffn == 0 && c->hidden > INT32_MAX / 4) fh_reader_fail(r, FH_EFORMAT, "'%s' is too large", k->hidden);
    c->ffn = f->ffn ? required(r, k->ffn, f->ffn) : fh_reader_u32(r, k->ffn, 1, 4 * c->hidden);
    c->max_position = fh_reader_u32(r, k->max_position, 1, f->max_position);
    c->norm_eps = fh_reader_double(r, NULL, k->eps, f->eps);
    if (!(c->norm_eps >= 0)) fh_reader_fail(r, FH_EFORMAT, "'%s' is below 0", k->eps);
    read_act(r, f, c);
    c->attention_bias = bias_of(r, f->attention_bias, "attention_bias");
    c->mlp_bias = bias_of(r, f->mlp_bias, "mlp_bias");
    read_window(r, f, c);
    if (f->softcaps) {
        c->query_scalar = fh_reader_double(r, NULL, "query_pre_attn_scalar", f->query_scalar);
        c->attn_softcap = scalar_or_none(r, "attn_logit_softcapping", f->attn_softcap);
        if (!(c->query_scalar > 0)) fh_reader_fail(r, FH_EFORMAT, "'query_pre_attn_scalar' is not above 0");
    }
    fh_config_rope(r, f, c);
    if (fh_reader_bool(r, "use_bidirectional_attention", false)) fh_config_no_body(c, "it attends in both directions");
    if (fh_reader_bool(r, "add_cross_attention", false)) fh_config_no_body(c, "it has cross-attention");
}

/* ---- ids ----------------------------------------------------------------------------------------------------- */

/* Append an int or a list of ints. */
static void read_ids(fh_reader *r, const fh_json *j, const char *key, uint32_t vocab, uint32_t *ids, size_t *n)
{
    bool list = fh_json_type(j) == FH_JSON_ARRAY;
    for (const fh_json *c = list ? fh_json_first(j) : j; c; c = list ? fh_json_next(c) : NULL) {
        int64_t id;
        if (!fh_json_i64(c, &id)) {
            fh_reader_fail(r, FH_EFORMAT, "'%s' must be a token id (a whole number) or a list of them", key);
            return;
        }
        if (id < 0 || id > INT32_MAX || (vocab && id >= vocab)) {
            fh_reader_fail(r, FH_ECHECK, "'%s' is %lld, which is no token: there are %u", key, (long long)id, vocab ? vocab : INT32_MAX);
            return;
        }
        if (*n == FH_MAX_IDS) {
            fh_reader_fail(r, FH_EUNSUPPORTED, "'%s' makes more than %d token ids", key, FH_MAX_IDS);
            return;
        }
        ids[(*n)++] = (uint32_t)id;
    }
}

/* Insert in ascending order, once. */
static void add_id(fh_reader *r, fh_config *c, uint32_t id)
{
    size_t at = 0;
    while (at < c->n_always && c->always[at] < id) at++;
    if (at < c->n_always && c->always[at] == id) return;
    if (c->n_always == FH_MAX_IDS) {
        fh_reader_fail(r, FH_EUNSUPPORTED, "more than %d different token ids", FH_MAX_IDS);
        return;
    }
    memmove(&c->always[at + 1], &c->always[at], (c->n_always - at) * sizeof *c->always);
    c->always[at] = id;
    c->n_always++;
}

static bool is_token_id_key(const char *key)
{
    static const char end[] = "_token_id";
    size_t n = strlen(key), m = sizeof end - 1;
    return n >= m && strcmp(key + n - m, end) == 0;
}

static double share(fh_reader *r, const char *key, double otherwise)
{
    double v = fh_reader_double(r, NULL, key, otherwise);
    if (!(v >= 0 && v <= 1)) fh_reader_fail(r, FH_EFORMAT, "'%s' is not within 0 and 1", key);
    return v;
}

/* `r` is of generation_config.json here. */
static void read_generation(fh_reader *r, fh_config *c)
{
    const fh_json *eos = fh_json_get(r->top, "eos_token_id");
    if (eos) {
        c->n_eos = 0;
        read_ids(r, eos, "eos_token_id", c->vocab, c->eos, &c->n_eos);
    }
    for (const fh_json *j = fh_json_first(r->top); j; j = fh_json_next(j)) {
        uint32_t ids[FH_MAX_IDS];
        size_t n = 0;
        if (!is_token_id_key(fh_json_key(j)) || fh_json_type(j) == FH_JSON_NULL) continue;
        read_ids(r, j, fh_json_key(j), c->vocab, ids, &n);
        for (size_t i = 0; i < n; i++) add_id(r, c, ids[i]);
    }
    c->do_sample = fh_reader_bool(r, "do_sample", false);
    c->temperature = fh_reader_double(r, NULL, "temperature", 1);
    if (!(c->temperature >= 0)) fh_reader_fail(r, FH_EFORMAT, "'temperature' is below 0");
    c->top_p = share(r, "top_p", 1);
    c->min_p = share(r, "min_p", 0);
    c->top_k = fh_reader_u32(r, "top_k", 0, 0);
    c->repetition_penalty = fh_reader_double(r, NULL, "repetition_penalty", 1);
    if (!(c->repetition_penalty > 0)) fh_reader_fail(r, FH_EFORMAT, "'repetition_penalty' is not above 0");
}

static fh_status parse_generation(fh_config *c, const char *generation, const char *name, fh_err *err)
{
    fh_json *json = NULL;
    /* It lies beside config.json, where that is a file. */
    size_t len = strlen(name), tail = sizeof "config.json" - 1;
    bool file = len >= tail && strcmp(name + len - tail, "config.json") == 0;
    char *path = fh_sprintf("%.*s%sgeneration_config.json", (int)(file ? len - tail : len), name, file ? "" : ": ");
    if (!path || !(c->generation_text = fh_strdup(generation))) {
        fh_free(path);
        return fh_fail(err, FH_ENOMEM, "%s: out of memory", name);
    }
    fh_status rc = fh_json_parse(&json, generation, strlen(generation), path, err);
    if (rc >= 0 && fh_json_type(json) != FH_JSON_OBJECT) rc = fh_fail(err, FH_EFORMAT, "%s: is no JSON object", path);
    if (rc >= 0) {
        fh_reader r = {.top = json, .model = json, .name = path, .err = err};
        read_generation(&r, c);
        rc = r.rc;
    }
    fh_json_free(json);
    fh_free(path);
    return rc;
}

/* ---- the whole ------------------------------------------------------------------------------------------------ */

static const fh_json *model_part(const fh_json *json, const fh_family *f)
{
    const fh_json *text = fh_json_get(json, "text_config");
    bool wrapper = strcmp(f->type, "gemma3") == 0 || (!*f->type && !fh_json_get(json, f->keys->hidden));
    return wrapper && fh_json_type(text) == FH_JSON_OBJECT ? text : json;
}

/* A family that is not known: the names that most of them use. */
static void read_unknown(fh_reader *r, fh_config *c)
{
    static const char *const hidden[] = {"hidden_size", "n_embd", "d_model", "dim"};
    c->vocab = fh_reader_u32(r, "vocab_size", 1, 0);
    for (size_t i = 0; i < sizeof hidden / sizeof *hidden && !c->hidden; i++) c->hidden = fh_reader_u32(r, hidden[i], 1, 0);
    c->final_softcap = scalar_or_none(r, "final_logit_softcapping", 0);
}

static void read_config(fh_reader *r, const fh_family *f, fh_config *c, const fh_job *job)
{
    read_tie(r, f, c, job);
    if (c->family) {
        c->vocab = fh_reader_u32(r, "vocab_size", 1, f->vocab);
        c->hidden = required(r, f->keys->hidden, f->hidden);
        if (f->softcaps) c->final_softcap = scalar_or_none(r, "final_logit_softcapping", f->final_softcap);
        if (r->rc >= 0) read_body(r, f, c);
    } else {
        read_unknown(r, c);
    }
    const fh_json *eos = fh_reader_get(r, "eos_token_id");
    if (eos && r->rc >= 0) read_ids(r, eos, "eos_token_id", c->vocab, c->eos, &c->n_eos);
}

fh_status fh_config_parse(fh_config *out, const char *text, size_t len, const char *generation, const char *name, const fh_job *job,
                          fh_err *err)
{
    fh_status rc;
    fh_config c = {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .tie = -1};
    memset(out, 0, sizeof *out);
    if ((rc = fh_json_parse(&c.json, text, len, name, err)) < 0) goto out;
    if (fh_json_type(c.json) != FH_JSON_OBJECT) {
        rc = fh_fail(err, FH_EFORMAT, "%s: is no JSON object", name);
        goto out;
    }
    fh_reader r = {.top = c.json, .model = c.json, .name = name, .err = err};
    read_type(&r, &c);
    const fh_family *f = fh_family_find(c.model_type);
    c.family = *f->type;
    c.body_supported = f->body;
    if (!f->body) fh_config_no_body(&c, "models of type '%s' are not run yet", c.model_type);
    c.model = r.model = model_part(c.json, f);
    refuse_quantized(&r);
    if (r.rc >= 0) read_config(&r, f, &c, job);
    if ((rc = r.rc) < 0) goto out;
    if (generation && (rc = parse_generation(&c, generation, name, err)) < 0) goto out;
    r.rc = FH_OK;
    for (size_t i = 0; i < c.n_eos; i++) add_id(&r, &c, c.eos[i]); /* where generation stops must be reachable, whoever says it */
    if ((rc = r.rc) < 0) goto out;
    c.text = fh_malloc(len + 1);
    if (!c.text) {
        rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", name);
        goto out;
    }
    memcpy(c.text, text, len);
    c.text[len] = '\0';
    c.text_len = len;
    *out = c;
    memset(&c, 0, sizeof c);
out:
    fh_config_free(&c);
    return rc;
}

void fh_config_free(fh_config *c)
{
    if (!c) return;
    fh_json_free(c->json);
    fh_free(c->text);
    fh_free(c->generation_text);
    memset(c, 0, sizeof *c);
}
