/* runtime/body_open.c: the families as rows of one table, and a body's weights found by it.
 *
 * A family is a set of switches and of tensor names; the forward pass (body.c) knows switches only.
 */
#include "runtime/body_private.h"

#include <math.h>
#include <stdlib.h>
#include <stdio.h>
#include <string.h>

typedef enum biased { NEVER, AS_CONFIG, ALWAYS } biased;
typedef enum norm_kind { RMS, RMS_PLUS_ONE, LAYER_NORM } norm_kind;
typedef enum fused { SEPARATE, BY_HEAD, BY_KIND } fused; /* q, k, v apart; [H][q, k, v][d]; [q, k, v][H][d] */
typedef enum window_rule { NO_WINDOW, EVERY_LAYER, LATER_LAYERS, EVEN_LAYERS, ALL_BUT_SIXTH } window_rule;

/* Names are without prefix; those of a layer follow `layer`, its number and a dot. */
typedef struct names {
    const char *prefixes[5];
    const char *embedding, *positions, *final_norm, *layer;
    const char *attn_norm, *mlp_norm, *attn_post, *mlp_post, *q_norm, *k_norm;
    const char *q, *k, *v, *fused, *o, *gate, *up, *down;
} names;

typedef struct family {
    const char *type;
    const names *names;
    norm_kind norm;
    fused qkv;
    biased qkv_bias, o_bias, mlp_bias;
    window_rule window;
    bool transposed;     /* weights are [in, out] */
    bool local_rope;     /* windowed layers are rotated by rope_local */
    bool scaled;         /* the embedding is multiplied by sqrt(D) */
    bool may_be_parallel;
    bool softcapped;     /* scores; the reference reads the key for Gemma-3 too but does nothing with it */
} family;

#define LLAMA_LAYER                                                                                                                     \
    .prefixes = {"model.", "language_model.model.", "model.language_model.", ""}, .embedding = "embed_tokens", .final_norm = "norm",    \
    .layer = "layers.", .attn_norm = "input_layernorm", .q = "self_attn.q_proj", .k = "self_attn.k_proj", .v = "self_attn.v_proj",   \
    .o = "self_attn.o_proj", .gate = "mlp.gate_proj", .up = "mlp.up_proj", .down = "mlp.down_proj"
#define QK_NORM .q_norm = "self_attn.q_norm", .k_norm = "self_attn.k_norm"
/* The same name means another place: the norm before the MLP in the Llama line, the one after attention in Gemma's. */
#define GEMMA_LAYER                                                                                                                     \
    LLAMA_LAYER, .attn_post = "post_attention_layernorm", .mlp_norm = "pre_feedforward_layernorm", .mlp_post = "post_feedforward_layernorm"

static const names llama = {LLAMA_LAYER, .mlp_norm = "post_attention_layernorm"};
static const names qwen3 = {LLAMA_LAYER, .mlp_norm = "post_attention_layernorm", QK_NORM};
static const names gemma2 = {GEMMA_LAYER};
static const names gemma3 = {GEMMA_LAYER, QK_NORM};
static const names neox = {
    .prefixes = {"gpt_neox.", ""}, .embedding = "embed_in", .final_norm = "final_layer_norm", .layer = "layers.",
    .attn_norm = "input_layernorm", .mlp_norm = "post_attention_layernorm", .fused = "attention.query_key_value", .o = "attention.dense",
    .up = "mlp.dense_h_to_4h", .down = "mlp.dense_4h_to_h",
};
static const names gpt2 = {
    .prefixes = {"transformer.", ""}, .embedding = "wte", .positions = "wpe", .final_norm = "ln_f", .layer = "h.",
    .attn_norm = "ln_1", .mlp_norm = "ln_2", .fused = "attn.c_attn", .o = "attn.c_proj", .up = "mlp.c_fc", .down = "mlp.c_proj",
};

static const family families[] = {
    {"llama", &llama, RMS, SEPARATE, AS_CONFIG, AS_CONFIG, AS_CONFIG, NO_WINDOW, .transposed = false},
    {"mistral", &llama, RMS, SEPARATE, NEVER, NEVER, NEVER, EVERY_LAYER, .transposed = false},
    {"qwen2", &llama, RMS, SEPARATE, ALWAYS, NEVER, NEVER, LATER_LAYERS, .transposed = false},
    {"qwen3", &qwen3, RMS, SEPARATE, AS_CONFIG, AS_CONFIG, NEVER, LATER_LAYERS, .transposed = false},
    {"gemma2", &gemma2, RMS_PLUS_ONE, SEPARATE, AS_CONFIG, AS_CONFIG, NEVER, EVEN_LAYERS, .scaled = true, .softcapped = true},
    {"gemma3_text", &gemma3, RMS_PLUS_ONE, SEPARATE, AS_CONFIG, AS_CONFIG, NEVER, ALL_BUT_SIXTH, .local_rope = true, .scaled = true},
    {"gemma3", &gemma3, RMS_PLUS_ONE, SEPARATE, AS_CONFIG, AS_CONFIG, NEVER, ALL_BUT_SIXTH, .local_rope = true, .scaled = true},
    {"gpt_neox", &neox, LAYER_NORM, BY_HEAD, AS_CONFIG, AS_CONFIG, ALWAYS, NO_WINDOW, .may_be_parallel = true},
    {"gpt2", &gpt2, LAYER_NORM, BY_KIND, ALWAYS, ALWAYS, ALWAYS, NO_WINDOW, .transposed = true},
};

static const family *find_family(const char *type)
{
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        if (!strcmp(families[i].type, type)) return &families[i];
    return NULL;
}

/* ---- facts of config.json beyond fh_config -------------------------------------------------------------------- */

static const fh_json *fact(const fh_config *c, const char *key) { return fh_json_get(c->model, key); }

static bool fact_bool(const fh_config *c, const char *key, bool otherwise)
{
    bool v = otherwise;
    const fh_json *j = fact(c, key);
    return j && fh_json_bool(j, &v) ? v : otherwise;
}

static uint64_t fact_u64(const fh_config *c, const char *key, uint64_t otherwise)
{
    uint64_t v = otherwise;
    const fh_json *j = fact(c, key);
    return j && fh_json_u64(j, &v) ? v : otherwise;
}

static const fh_json *layer_types(const fh_config *c)
{
    const fh_json *j = fact(c, "layer_types");
    return j && fh_json_type(j) == FH_JSON_ARRAY ? j : NULL;
}

fh_status fh_body_windows(const fh_config *c, const char *name, bool *windowed, uint32_t *window, fh_err *err)
{
    const family *f = find_family(c->model_type);
    if (!f) return fh_fail(err, FH_EUNSUPPORTED, "%s: '%s' is no family of ours", name, c->model_type);
    memset(windowed, 0, c->layers * sizeof *windowed);
    *window = 0;
    if (f->window == NO_WINDOW) return FH_OK;
    bool on = c->sliding_window && (f->window != LATER_LAYERS || fact_bool(c, "use_sliding_window", false));
    uint64_t from = fact_u64(c, "max_window_layers", 28);
    uint64_t pattern = fact_u64(c, "sliding_window_pattern", fact_u64(c, "_sliding_window_pattern", 6));
    if (!pattern) return fh_fail(err, FH_EFORMAT, "%s: sliding_window_pattern is 0", name);
    const fh_json *types = f->window == EVERY_LAYER ? NULL : layer_types(c);
    if (types && fh_json_count(types) != c->layers)
        return fh_fail(err, FH_EFORMAT, "%s: layer_types has %zu entries for %u layers", name, fh_json_count(types), c->layers);
    const fh_json *type = types ? fh_json_first(types) : NULL;
    for (uint32_t i = 0; i < c->layers; i++) {
        windowed[i] = f->window == EVERY_LAYER || (f->window == LATER_LAYERS && i >= from) || (f->window == EVEN_LAYERS && i % 2 == 0) ||
                      (f->window == ALL_BUT_SIXTH && (i + 1) % pattern != 0);
        if (type) {
            const char *s = fh_json_string(type);
            if (!s || (strcmp(s, "sliding_attention") != 0 && strcmp(s, "full_attention") != 0))
                return fh_fail(err, FH_EUNSUPPORTED, "%s: layer_types names '%s', only sliding_attention and full_attention are known",
                               name, s ? s : "?");
            windowed[i] = !strcmp(s, "sliding_attention");
            type = fh_json_next(type);
        }
    }
    if (on) *window = c->sliding_window;
    return FH_OK;
}

bool fh_body_gated(const fh_config *c)
{
    const family *f = find_family(c->model_type);
    return f && f->names->gate;
}

/* Which layers see a window only. */
static fh_status set_windows(fh_body *b, const family *f, fh_err *err)
{
    uint32_t layers = b->config->layers, window;
    bool *windowed = fh_calloc(layers, sizeof *windowed);
    fh_status rc = windowed ? fh_body_windows(b->config, b->name, windowed, &window, err) : fh_fail(err, FH_ENOMEM, "%s: out of memory", b->name);
    for (uint32_t i = 0; rc == FH_OK && i < layers; i++) {
        b->layers[i].local = windowed[i] && f->local_rope;
        b->layers[i].window = windowed[i] ? window : 0;
    }
    fh_free(windowed);
    return rc;
}

/* ---- weights --------------------------------------------------------------------------------------------------- */

typedef struct finder {
    fh_body *b;
    const family *f;
    const fh_tensors *tensors;
    const char *prefix;
    fh_err *err;
    fh_status rc; /* the first failure sticks: the caller looks once at the end */
} finder;

enum { NAME = 256, FLOATS = 1u << FH_F32 | 1u << FH_BF16 | 1u << FH_F16 };

static void full_name(const finder *w, char out[NAME], int64_t layer, const char *name, const char *what)
{
    char part[64] = "";
    if (layer >= 0) snprintf(part, sizeof part, "%s%u.", w->f->names->layer, (unsigned)layer);
    snprintf(out, NAME, "%s%s%s%s", w->prefix, part, name, what);
}

static const fh_tensor *need(finder *w, int64_t layer, const char *name, const char *what, unsigned rank, uint64_t rows, uint64_t columns)
{
    const fh_tensor *t = NULL;
    char full[NAME];
    full_name(w, full, layer, name, what);
    const uint64_t shape[2] = {rows, columns};
    if (w->rc == FH_OK) w->rc = fh_tensors_need(&t, w->tensors, full, FLOATS, rank, shape, w->err);
    if (w->rc < 0) return NULL;
    w->b->bytes += t->blocks ? t->shape[0] * fh_row_bytes(FH_Q8_0, (size_t)t->shape[1]) : t->bytes;
    return t;
}

/* A vector as float32, `plus` added to each element. */
static const float *vector(finder *w, int64_t layer, const char *name, const char *what, uint64_t n, float plus)
{
    const fh_tensor *t = need(w, layer, name, what, 1, n, 0);
    if (!t) return NULL;
    float *v = fh_arena_alloc(w->b->arena, (size_t)n * sizeof *v);
    if (!v) {
        w->rc = fh_fail(w->err, FH_ENOMEM, "%s: out of memory", w->b->name);
        return NULL;
    }
    fh_to_f32(v, t->dtype, t->data, (size_t)n);
    for (size_t i = 0; i < n; i++) v[i] += plus;
    return v;
}

static fh_norm norm(finder *w, int64_t layer, const char *name)
{
    fh_norm n = {0};
    if (!name) return n;
    n.weight = vector(w, layer, name, ".weight", w->b->d, w->f->norm == RMS_PLUS_ONE ? 1 : 0);
    if (w->f->norm == LAYER_NORM) n.bias = vector(w, layer, name, ".bias", w->b->d, 0);
    return n;
}

static fh_linear linear(finder *w, int64_t layer, const char *name, size_t out, size_t in, bool has_bias)
{
    fh_linear l = {.out = out, .in = in, .transposed = w->f->transposed};
    const fh_tensor *t = need(w, layer, name, ".weight", 2, l.transposed ? in : out, l.transposed ? out : in);
    w->b->weights += t ? (uint64_t)out * in : 0;
    if (t) l.data = t->blocks ? t->blocks : t->data, l.dtype = t->blocks ? FH_Q8_0 : t->dtype;
    char full[NAME];
    full_name(w, full, layer, name, ".bias");
    if (has_bias) l.bias = vector(w, layer, name, ".bias", out, 0);
    else if (w->rc == FH_OK && fh_tensors_find(w->tensors, full))
        w->rc = fh_fail(w->err, FH_EFORMAT, "%s: tensor '%s' is there, but config.json says that there is no such bias: which is right?",
                        w->b->name, full);
    return l;
}

static bool is_biased(biased rule, bool config) { return rule == ALWAYS || (rule == AS_CONFIG && config); }

static void find_layer(finder *w, uint32_t i)
{
    const fh_config *c = w->b->config;
    const names *n = w->f->names;
    fh_body *b = w->b;
    fh_layer *l = &b->layers[i];
    size_t qd = b->heads * b->head_dim, kd = b->kv_heads * b->head_dim;
    bool qkv = is_biased(w->f->qkv_bias, c->attention_bias), o = is_biased(w->f->o_bias, c->attention_bias),
         mlp = is_biased(w->f->mlp_bias, c->mlp_bias);
    l->attn_norm = norm(w, i, n->attn_norm);
    l->mlp_norm = norm(w, i, n->mlp_norm);
    l->attn_post = norm(w, i, n->attn_post);
    l->mlp_post = norm(w, i, n->mlp_post);
    if (n->q_norm) {
        float plus = w->f->norm == RMS_PLUS_ONE ? 1 : 0;
        l->q_norm = vector(w, i, n->q_norm, ".weight", b->head_dim, plus);
        l->k_norm = vector(w, i, n->k_norm, ".weight", b->head_dim, plus);
    }
    if (w->f->qkv == SEPARATE) {
        l->n_qkv = 3;
        l->qkv[0] = linear(w, i, n->q, qd, b->d, qkv);
        l->qkv[1] = linear(w, i, n->k, kd, b->d, qkv);
        l->qkv[2] = linear(w, i, n->v, kd, b->d, qkv);
    } else {
        l->n_qkv = 1;
        l->qkv[0] = linear(w, i, n->fused, qd + 2 * kd, b->d, qkv);
    }
    l->o = linear(w, i, n->o, b->d, qd, o);
    if (n->gate) l->gate = linear(w, i, n->gate, b->ffn, b->d, mlp);
    l->up = linear(w, i, n->up, b->ffn, b->d, mlp);
    l->down = linear(w, i, n->down, b->d, b->ffn, mlp);
}

/* The prefix under which the tensors lie: the final norm is in every file. */
static fh_status find_prefix(finder *w)
{
    const char *const *prefixes = w->f->names->prefixes;
    for (size_t i = 0; prefixes[i]; i++) {
        char full[NAME];
        w->prefix = prefixes[i];
        full_name(w, full, -1, w->f->names->final_norm, ".weight");
        if (fh_tensors_find(w->tensors, full)) return FH_OK;
    }
    return fh_fail(w->err, FH_EFORMAT, "%s: no tensor '%s%s.weight': the body of a %s model is not in this file", w->b->name, prefixes[0],
                   w->f->names->final_norm, w->b->config->model_type);
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

static fh_status check_config(const fh_config *c, const family *f, const char *name, fh_err *err)
{
    if (!c->vocab || !c->hidden || !c->layers || !c->heads || !c->kv_heads || !c->head_dim || !c->ffn || !c->max_position)
        return fh_fail(err, FH_EFORMAT, "%s: a size in config.json is 0", name);
    if (c->heads % c->kv_heads)
        return fh_fail(err, FH_EFORMAT, "%s: %u attention heads cannot share %u key-value heads", name, c->heads, c->kv_heads);
    if (f->qkv != SEPARATE && c->heads != c->kv_heads)
        return fh_fail(err, FH_EUNSUPPORTED, "%s: %s with fewer key-value heads than heads", name, c->model_type);
    if (!(c->norm_eps >= 0 && isfinite(c->norm_eps))) return fh_fail(err, FH_EFORMAT, "%s: the norm's epsilon is %g", name, c->norm_eps);
    if (fact_bool(c, "use_bidirectional_attention", false))
        return fh_fail(err, FH_EUNSUPPORTED, "%s: use_bidirectional_attention is not supported", name);
    if (fact_bool(c, "add_cross_attention", false)) return fh_fail(err, FH_EUNSUPPORTED, "%s: add_cross_attention is not supported", name);
    return FH_OK;
}

static fh_status set_sizes(fh_body *b, const family *f, fh_err *err)
{
    const fh_config *c = b->config;
    b->d = c->hidden, b->heads = c->heads, b->kv_heads = c->kv_heads, b->head_dim = c->head_dim, b->ffn = c->ffn, b->n_layers = c->layers;
    size_t d = b->head_dim, heads, page;
    /* Sizes from a file: 32-bit numbers whose products are kept below what later sums and products of scratch can hold. */
    if (!fh_mul(b->heads + 2 * b->kv_heads, d, &heads) || heads > 1u << 24 || b->d > 1u << 24 || b->ffn > 1u << 26 || b->heads > 1u << 16)
        return fh_fail(err, FH_EUNSUPPORTED, "%s: sizes in config.json are beyond any model (hidden %u, ffn %u, %u heads of %u)", b->name,
                       c->hidden, c->ffn, c->heads, c->head_dim);
    /* 16 bytes a value: float32, or int8 with its scales, and each block rounded up to 64. */
    if (!fh_mul(b->n_layers * 2 * FH_PAGE_TOKENS, b->kv_heads * d, &page) || !fh_mul(page, 16, &page) || page > SIZE_MAX / 2)
        return fh_fail(err, FH_EUNSUPPORTED, "%s: a cache page of %u layers does not fit in memory", b->name, c->layers);
    b->qkv_width = heads;
    size_t step = f->qkv == BY_HEAD ? 3 * d : d;
    b->q_step = b->k_step = b->v_step = step;
    b->k_first = f->qkv == BY_HEAD ? d : b->heads * d;
    b->v_first = f->qkv == BY_HEAD ? 2 * d : (b->heads + b->kv_heads) * d;
    return FH_OK;
}

static void set_scales(fh_body *b)
{
    const fh_config *c = b->config;
    double scale = pow(c->query_scalar > 0 ? c->query_scalar : c->head_dim, -0.5);
    if (!fact_bool(c, "scale_attn_weights", true)) scale = 1;
    bool by_layer = fact_bool(c, "scale_attn_by_inverse_layer_idx", false);
    for (uint32_t i = 0; i < c->layers; i++) b->layers[i].scale = (float)(by_layer ? scale / (i + 1) : scale);
}

/* The longest sequence: yarn and dynamic stretch the context that the model was made for. */
static uint32_t longest(const fh_config *c)
{
    double most = c->max_position;
    if (c->rope.type == FH_ROPE_YARN) most = fmax(most, c->rope.original_max_position * c->rope.factor);
    if (c->rope.type == FH_ROPE_DYNAMIC) most *= c->rope.factor;
    return most < 1u << 30 ? (uint32_t)most : 1u << 30;
}

static fh_status find_weights(fh_body *b, const family *f, const fh_body_source *source, fh_err *err)
{
    finder w = {b, f, source->tensors, "", err, FH_OK};
    fh_status rc = find_prefix(&w);
    if (rc < 0) return rc;
    if (source->embedding_row) {
        b->embedding_row = source->embedding_row;
        b->ctx = source->ctx;
        b->embedding_dtype = source->embedding_dtype;
    } else {
        const fh_tensor *t = need(&w, -1, f->names->embedding, ".weight", 2, b->config->vocab, b->d);
        if (t) b->embedding = fh_tensor_stored_rows(t), b->embedding_dtype = b->embedding.dtype;
    }
    b->bytes = fh_row_bytes(b->embedding_dtype, b->d); /* one row of it is read a token */
    if (f->names->positions) {
        const fh_tensor *t = need(&w, -1, f->names->positions, ".weight", 2, UINT64_MAX, b->d);
        if (t)
            b->positions = fh_tensor_stored_rows(t), b->bytes -= (b->positions.rows - 1) * b->positions.stride,
            b->max_position = (uint32_t)fh_min(b->max_position, b->positions.rows);
    }
    for (uint32_t i = 0; i < b->config->layers && w.rc == FH_OK; i++) find_layer(&w, i);
    b->final_norm = norm(&w, -1, f->names->final_norm);
    return w.rc;
}

fh_status fh_body_open(fh_body **out, const fh_body_source *source, const char *name, fh_err *err)
{
    const fh_config *c = source->config;
    const family *f = find_family(c->model_type);
    if (!c->body_supported || !f)
        return fh_fail(err, FH_EUNSUPPORTED, "%s: this '%s' model cannot be run: %s", name, c->model_type,
                       *c->body_why ? c->body_why : "there is no forward pass for its family");
    fh_status rc = check_config(c, f, name, err);
    if (rc < 0) return rc;
    fh_body *b = fh_calloc(1, sizeof *b);
    if (!b) return fh_fail(err, FH_ENOMEM, "%s: out of memory", name);
    b->config = c;
    b->name = fh_strdup(name);
    b->arena = fh_arena_new();
    b->layers = fh_calloc(c->layers, sizeof *b->layers);
    if (!b->name || !b->arena || !b->layers) {
        rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", name);
        goto out;
    }
    if ((rc = fh_kernels_choose(&b->kernels, getenv("FH_ISA"), err)) < 0) goto out;
    b->math = fh_body_math_choose(b->kernels->name);
    if ((rc = set_sizes(b, f, err)) < 0) goto out;
    b->layer_norm = f->norm == LAYER_NORM;
    b->parallel = f->may_be_parallel && fact_bool(c, "use_parallel_residual", true);
    b->eps = (float)c->norm_eps;
    b->embed_scale = f->scaled ? sqrtf((float)b->d) : 1;
    b->attn_softcap = f->softcapped ? (float)c->attn_softcap : 0;
    b->max_position = longest(c);
    if (!f->names->positions) {
        b->rope = &c->rope;
        b->rope_local = f->local_rope ? &c->rope_local : NULL;
        if ((rc = fh_rope_check(b->rope, c->head_dim, c->max_position, name, err)) < 0) goto out;
        if (b->rope_local && (rc = fh_rope_check(b->rope_local, c->head_dim, c->max_position, name, err)) < 0) goto out;
    }
    if ((rc = set_windows(b, f, err)) < 0) goto out;
    set_scales(b);
    if ((rc = find_weights(b, f, source, err)) < 0) goto out;
    b->kernels = fh_kernels_for(b->kernels, b->bytes);
    *out = b, b = NULL;
out:
    fh_body_close(b);
    return rc;
}

void fh_body_close(fh_body *b)
{
    if (!b) return;
    fh_arena_free(b->arena);
    fh_free(b->layers);
    fh_free(b->name);
    fh_free(b);
}

/* Keys that the queries of n tokens on top of `length` see. */
static double keys_seen(const fh_layer *l, uint32_t length, uint32_t n)
{
    double seen = 0;
    for (uint32_t i = 0; i < n; i++) seen += l->window ? (double)fh_min(l->window, (size_t)length + i + 1) : (double)length + i + 1;
    return seen;
}

double fh_body_operations(const fh_body *b, uint32_t length, uint32_t n)
{
    double operations = 2.0 * (double)b->weights * n;
    for (size_t i = 0; i < b->n_layers; i++) operations += 4.0 * (double)(b->heads * b->head_dim) * keys_seen(&b->layers[i], length, n);
    return operations;
}

void fh_body_unify(fh_body *b, const fh_unified *unified)
{
    for (size_t i = 0; i < b->n_layers; i++) b->layers[i].unified = unified[i];
}

uint64_t fh_body_bytes(const fh_body *b) { return b->bytes; }
uint32_t fh_body_max_position(const fh_body *b) { return b->max_position; }
