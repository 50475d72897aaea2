/* format/gguf_config.c: the config.json that a GGUF's metadata make.
 *
 * Each architecture of a GGUF is a family of config.json's under another name; what a GGUF leaves to the program that runs it (Gemma's
 * pattern of windows, its attention scale) is said here as that program has it.
 */
#include "format/gguf.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { KEY = 160, MAX_FREQUENCIES = 1 << 16, WINDOW_PATTERN_GEMMA3 = 6, LAYERS_GEMMA2_27B = 46, LAYERS_GEMMA3_27B = 62 };

/* How config.json spells what every GGUF has. */
typedef struct architecture {
    const char *arch, *type, *class;  /* general.architecture, model_type, architectures[0] */
    const char *hidden, *layers, *heads, *kv_heads, *head_dim, *ffn, *positions, *eps; /* NULL: the family has no such key */
    const char *eps_key;              /* in the GGUF */
    const char *bias;                 /* of layer 0, which shows that attention is biased; NULL: not asked */
    bool rope, window, gemma;
} architecture;

#define SIZES(kv, d) "hidden_size", "num_hidden_layers", "num_attention_heads", kv, d, "intermediate_size", "max_position_embeddings"
#define RMS "rms_norm_eps", "attention.layer_norm_rms_epsilon"
static const architecture architectures[] = {
    {"llama", "llama", "LlamaForCausalLM", SIZES("num_key_value_heads", "head_dim"), RMS, "blk.0.attn_q.bias", true, true, false},
    {"qwen2", "qwen2", "Qwen2ForCausalLM", SIZES("num_key_value_heads", "head_dim"), RMS, NULL, true, false, false},
    {"qwen3", "qwen3", "Qwen3ForCausalLM", SIZES("num_key_value_heads", "head_dim"), RMS, "blk.0.attn_q.bias", true, false, false},
    {"gemma2", "gemma2", "Gemma2ForCausalLM", SIZES("num_key_value_heads", "head_dim"), RMS, NULL, true, true, true},
    {"gemma3", "gemma3_text", "Gemma3ForCausalLM", SIZES("num_key_value_heads", "head_dim"), RMS, NULL, true, true, true},
    {"gptneox", "gpt_neox", "GPTNeoXForCausalLM", SIZES(NULL, NULL), "layer_norm_eps", "attention.layer_norm_epsilon", "blk.0.attn_qkv.bias", true,
     false, false},
    {"gpt2", "gpt2", "GPT2LMHeadModel", "n_embd", "n_layer", "n_head", NULL, NULL, "n_inner", "n_positions", "layer_norm_epsilon",
     "attention.layer_norm_epsilon", NULL, false, false, false},
};

typedef struct maker {
    const fh_gguf *g;
    const architecture *a;
    fh_json *out;
    fh_err *err;
    fh_status rc;  /* the first failure sticks */
} maker;

/* ---- asking ----------------------------------------------------------------------------------------------------- */

static void FH_PRINTF(3, 4) fail(maker *m, fh_status code, const char *fmt, ...)
{
    char what[500];
    va_list args;
    if (m->rc < 0) return;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    m->rc = fh_fail(m->err, code, "%s: %s", m->g->path, what);
}

/* "llama.rope.freq_base": keys begin with the architecture. */
static const fh_gguf_value *find(const maker *m, const char *key)
{
    char full[KEY];
    snprintf(full, sizeof full, "%s.%s", m->g->arch, key);
    return fh_gguf_find(m->g, full);
}

static uint64_t number(maker *m, const char *key, bool needed, uint64_t otherwise)
{
    uint64_t u;
    const fh_gguf_value *v = find(m, key);
    if (!v) {
        if (needed) fail(m, FH_EFORMAT, "there is no '%s.%s'", m->g->arch, key);
        return otherwise;
    }
    if (v->type == FH_GGUF_ARRAY) fail(m, FH_EUNSUPPORTED, "'%s' has a value for each layer: such models are not run", v->key);
    else if (!fh_gguf_u64(v, 0, &u) || u > INT32_MAX) fail(m, FH_EFORMAT, "'%s' is no whole number from 0 to %d", v->key, INT32_MAX);
    else return u;
    return otherwise;
}

static double real(maker *m, const char *key, double otherwise)
{
    double d;
    const fh_gguf_value *v = find(m, key);
    if (!v) return otherwise;
    if (v->type != FH_GGUF_ARRAY && fh_gguf_double(v, 0, &d) && isfinite(d)) return d;
    fail(m, FH_EFORMAT, "'%s' is no finite number", v->key);
    return otherwise;
}

uint64_t fh_gguf_head_count(const fh_gguf *g, const char *which)
{
    char key[KEY];
    uint64_t n = 0;
    snprintf(key, sizeof key, "%s.attention.%s", g->arch, which);
    const fh_gguf_value *v = fh_gguf_find(g, key);
    if (v) return v->type != FH_GGUF_ARRAY && fh_gguf_u64(v, 0, &n) ? n : 0;
    return strcmp(which, "head_count") == 0 ? 0 : fh_gguf_head_count(g, "head_count");
}

/* ---- shapes ----------------------------------------------------------------------------------------------------- */

static uint64_t read_sizes(maker *m)
{
    const architecture *a = m->a;
    const fh_gguf_tensor *embedding = fh_gguf_tensor_find(m->g, "token_embd.weight"), *head = fh_gguf_tensor_find(m->g, "output.weight");
    uint64_t hidden = number(m, "embedding_length", true, 0), heads = number(m, "attention.head_count", true, 1);
    if (m->rc < 0) return 0;
    if (!embedding || embedding->rank != 2) fail(m, FH_EFORMAT, "there is no matrix 'token_embd.weight': is this a whole model?");
    else if (embedding->ne[0] != hidden || embedding->ne[1] > INT32_MAX)
        fail(m, FH_ECHECK, "'%s.embedding_length' is %llu, but 'token_embd.weight' has %llu rows of %llu elements", m->g->arch,
             (unsigned long long)hidden, (unsigned long long)embedding->ne[1], (unsigned long long)embedding->ne[0]);
    else if (head && (head->rank != 2 || head->ne[0] != hidden || head->ne[1] != embedding->ne[1]))
        fail(m, FH_ECHECK, "'output.weight' has %llu rows of %llu elements, 'token_embd.weight' %llu of %llu", (unsigned long long)head->ne[1],
             (unsigned long long)head->ne[0], (unsigned long long)embedding->ne[1], (unsigned long long)hidden);
    else if (heads == 0) fail(m, FH_EFORMAT, "'%s.attention.head_count' is 0", m->g->arch);
    if (m->rc < 0) return 0;
    uint64_t kv_heads = number(m, "attention.head_count_kv", false, heads), head_dim = number(m, "attention.key_length", false, hidden / heads);
    fh_json_add_u64(m->out, "vocab_size", embedding->ne[1]);
    fh_json_add_u64(m->out, a->hidden, hidden);
    fh_json_add_u64(m->out, a->layers, number(m, "block_count", true, 0));
    fh_json_add_u64(m->out, a->ffn, number(m, "feed_forward_length", true, 0));
    fh_json_add_u64(m->out, a->positions, number(m, "context_length", true, 0));
    fh_json_add_u64(m->out, a->heads, heads);
    if (a->kv_heads) fh_json_add_u64(m->out, a->kv_heads, kv_heads);
    else if (kv_heads != heads)
        fail(m, FH_EUNSUPPORTED, "%llu key-value heads for %llu heads, which %s does not have", (unsigned long long)kv_heads,
             (unsigned long long)heads, a->type);
    if (a->head_dim) fh_json_add_u64(m->out, a->head_dim, head_dim);
    else if (head_dim * heads != hidden) fail(m, FH_EUNSUPPORTED, "heads of %llu elements, which %s does not have", (unsigned long long)head_dim, a->type);
    if (number(m, "attention.value_length", false, head_dim) != head_dim)
        fail(m, FH_EUNSUPPORTED, "values of another length than keys ('%s.attention.value_length'): such models are not run", m->g->arch);
    double eps = real(m, a->eps_key, -1);
    if (eps < 0) fail(m, FH_EFORMAT, "'%s.%s' is missing, or below 0", m->g->arch, a->eps_key);
    fh_json_add_double(m->out, a->eps, eps);
    return head_dim;
}

static bool same_bytes(const fh_gguf_tensor *a, const fh_gguf_tensor *b)
{
    return a->type == b->type && a->bytes == b->bytes && a->ne[0] == b->ne[0] && memcmp(a->data, b->data, (size_t)a->bytes) == 0;
}

/* Writers leave the head out when it is the embedding, or write it twice. */
static void read_flags(maker *m)
{
    const fh_gguf_tensor *head = fh_gguf_tensor_find(m->g, "output.weight"), *embedding = fh_gguf_tensor_find(m->g, "token_embd.weight");
    fh_json_add_bool(m->out, "tie_word_embeddings", !head || same_bytes(head, embedding));
    if (m->a->bias) fh_json_add_bool(m->out, "attention_bias", fh_gguf_tensor_find(m->g, m->a->bias) != NULL);
    if (strcmp(m->g->arch, "llama") == 0) fh_json_add_bool(m->out, "mlp_bias", fh_gguf_tensor_find(m->g, "blk.0.ffn_up.bias") != NULL);
    if (strcmp(m->g->arch, "gptneox") == 0) {
        bool parallel = true;
        const fh_gguf_value *v = find(m, "use_parallel_residual");
        if (v && !fh_gguf_bool(v, 0, &parallel)) fail(m, FH_EFORMAT, "'%s' is no boolean", v->key);
        fh_json_add_bool(m->out, "use_parallel_residual", parallel);
    }
    static const char *const unknown[] = {"attention.clamp_kqv", "attention.max_alibi_bias", "logit_scale", "residual_scale", "embedding_scale",
                                          "expert_count"};
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++)
        if (find(m, unknown[i]) && real(m, unknown[i], 0) != 0)
            fail(m, FH_EUNSUPPORTED, "'%s.%s' is set: such models are not run", m->g->arch, unknown[i]);
}

/* ---- windows and scales ----------------------------------------------------------------------------------------- */

static void read_pattern(maker *m)
{
    bool sliding;
    const fh_gguf_value *v = find(m, "attention.sliding_window_pattern");
    if (!v || v->type != FH_GGUF_ARRAY) {
        uint64_t n = number(m, "attention.sliding_window_pattern", false, WINDOW_PATTERN_GEMMA3);
        if (strcmp(m->g->arch, "gemma3") == 0) fh_json_add_u64(m->out, "sliding_window_pattern", n);
        else if (v && n != 2) fail(m, FH_EUNSUPPORTED, "'%s' is not 2, which %s has", v->key, m->a->type);
        return;
    }
    fh_json *types = fh_json_add_array(m->out, "layer_types");
    if (v->count != number(m, "block_count", true, 0)) fail(m, FH_EFORMAT, "'%s' does not have an element for each layer", v->key);
    for (uint64_t i = 0; i < v->count && m->rc >= 0; i++) {
        if (!fh_gguf_bool(v, i, &sliding)) fail(m, FH_EFORMAT, "'%s' is no array of booleans", v->key);
        else fh_json_add_string(types, NULL, sliding ? "sliding_attention" : "full_attention");
    }
}

static void read_windows(maker *m)
{
    uint64_t window = number(m, "attention.sliding_window", false, 0);
    if (m->a->window && window) fh_json_add_u64(m->out, "sliding_window", window);
    else if (window) fail(m, FH_EUNSUPPORTED, "'%s.attention.sliding_window' is set, which %s models do not use here", m->g->arch, m->a->type);
    else if (strcmp(m->g->arch, "gemma3") == 0) fail(m, FH_EFORMAT, "there is no '%s.attention.sliding_window'", m->g->arch);
}

static void read_gemma(maker *m, uint64_t head_dim)
{
    uint64_t layers = number(m, "block_count", true, 0);
    bool largest = layers == (strcmp(m->g->arch, "gemma2") == 0 ? LAYERS_GEMMA2_27B : LAYERS_GEMMA3_27B);
    double scalar = largest ? (double)number(m, "embedding_length", true, 0) / (double)number(m, "attention.head_count", true, 1) : (double)head_dim;
    double scale = real(m, "attention.scale", 0);
    if (scale > 0) scalar = 1 / (scale * scale);
    fh_json_add_double(m->out, "query_pre_attn_scalar", scalar);
    static const char *const caps[] = {"attn_logit_softcapping", "final_logit_softcapping"};
    for (size_t i = 0; i < 2; i++) {
        double cap = real(m, caps[i], 0);
        if (cap > 0) fh_json_add_double(m->out, caps[i], cap);
        else fh_json_add_null(m->out, caps[i]);
    }
    read_pattern(m);
}

/* ---- RoPE ------------------------------------------------------------------------------------------------------- */

/* Divisors of the frequencies, one each: what llama3's scaling has come to.  As config.json's type "longrope" says it. */
static void add_divisors(maker *m, const fh_gguf_tensor *t, uint64_t head_dim)
{
    if (t->type != FH_GGUF_T_F32 || t->rank != 1 || t->ne[0] != head_dim / 2 || t->ne[0] > MAX_FREQUENCIES) {
        fail(m, FH_EUNSUPPORTED, "tensor 'rope_freqs.weight' is not %llu numbers of F32", (unsigned long long)(head_dim / 2));
        return;
    }
    fh_json *scaling = fh_json_add_object(m->out, "rope_scaling");
    fh_json_add_string(scaling, "rope_type", "longrope");
    fh_json_add_double(scaling, "attention_factor", 1);
    static const char *const lists[] = {"short_factor", "long_factor"};
    for (size_t k = 0; k < 2; k++) {
        fh_json *list = fh_json_add_array(scaling, lists[k]);
        for (uint64_t i = 0; i < t->ne[0]; i++) {
            float f;
            memcpy(&f, t->data + i * sizeof f, sizeof f);
            if (!(f > 0 && isfinite(f))) fail(m, FH_EFORMAT, "tensor 'rope_freqs.weight': number %llu is not above 0", (unsigned long long)i);
            fh_json_add_double(list, NULL, (double)f);
        }
    }
}

static void add_yarn(maker *m, fh_json *scaling, double factor)
{
    static const char *const keys[][2] = {{"rope.scaling.yarn_beta_fast", "beta_fast"}, {"rope.scaling.yarn_beta_slow", "beta_slow"}};
    for (size_t i = 0; i < 2; i++)
        if (find(m, keys[i][0])) fh_json_add_double(scaling, keys[i][1], real(m, keys[i][0], 0));
    if (real(m, "rope.scaling.yarn_ext_factor", 1) != 1 || real(m, "rope.scaling.yarn_log_multiplier", 0) != 0)
        fail(m, FH_EUNSUPPORTED, "'%s.rope.scaling': a yarn with ext_factor or log_multiplier, which is not run", m->g->arch);
    /* A factor on top of yarn's own. */
    double attention = real(m, "rope.scaling.attn_factor", 1) * real(m, "rope.scaling.yarn_attn_factor", 1);
    if (attention != 1) fh_json_add_double(scaling, "attention_factor", attention * (factor <= 1 ? 1 : 0.1 * log(factor) + 1));
}

static void read_scaling(maker *m, uint64_t head_dim)
{
    char key[KEY];
    const char *type = NULL;
    const fh_gguf_tensor *divisors = fh_gguf_tensor_find(m->g, "rope_freqs.weight");
    snprintf(key, sizeof key, "%s.rope.scaling.type", m->g->arch);
    fh_status rc = fh_gguf_text(m->g, key, &type, m->err);
    if (rc < 0 && m->rc >= 0) m->rc = rc;
    if (m->rc < 0) return;
    double old = real(m, "rope.scale_linear", 0), factor = real(m, "rope.scaling.factor", old);
    if (!type) type = old > 0 && old != 1 ? "linear" : "none";
    if (divisors) {
        if (strcmp(type, "none") != 0) fail(m, FH_EUNSUPPORTED, "both 'rope_freqs.weight' and '%s' (%s)", key, type);
        else add_divisors(m, divisors, head_dim);
        return;
    }
    if (strcmp(type, "none") == 0) return;
    bool yarn = strcmp(type, "yarn") == 0;
    if (!yarn && strcmp(type, "linear") != 0) {
        fail(m, FH_EUNSUPPORTED, "'%s' is '%s': none, linear and yarn are run", key, type);
        return;
    }
    fh_json *scaling = fh_json_add_object(m->out, "rope_scaling");
    fh_json_add_string(scaling, "rope_type", type);
    fh_json_add_double(scaling, "factor", factor);
    if (!yarn) return;
    uint64_t original = number(m, "rope.scaling.original_context_length", false, 0);
    if (original) fh_json_add_u64(scaling, "original_max_position_embeddings", original);
    add_yarn(m, scaling, factor);
}

static void read_rope(maker *m, uint64_t head_dim)
{
    uint64_t rotated = number(m, "rope.dimension_count", false, head_dim);
    if (!m->a->rope) return;
    fh_json_add_double(m->out, "rope_theta", real(m, "rope.freq_base", 10000));
    if (strcmp(m->g->arch, "gemma3") == 0) fh_json_add_double(m->out, "rope_local_base_freq", real(m, "rope.freq_base_swa", 10000));
    if (strcmp(m->g->arch, "gptneox") == 0) {
        double share = head_dim ? (double)rotated / (double)head_dim : 0;
        if ((uint64_t)((double)head_dim * share) < rotated) share = nextafter(share, 2); /* times the head's size, cut off, it must be `rotated` */
        fh_json_add_double(m->out, "rotary_pct", share);
    } else if (rotated != head_dim) {
        fail(m, FH_EUNSUPPORTED, "'%s.rope.dimension_count' is %llu, a head has %llu elements: such models are not run", m->g->arch,
             (unsigned long long)rotated, (unsigned long long)head_dim);
    }
    read_scaling(m, head_dim);
}

/* ---- ids -------------------------------------------------------------------------------------------------------- */

static bool read_id(maker *m, const char *name, uint64_t *id)
{
    char key[KEY];
    snprintf(key, sizeof key, "tokenizer.ggml.%s", name);
    const fh_gguf_value *v = fh_gguf_find(m->g, key);
    if (!v) return false;
    if (v->type != FH_GGUF_ARRAY && fh_gguf_u64(v, 0, id) && *id <= INT32_MAX) return true;
    if (v->type == FH_GGUF_U32 && fh_gguf_u64(v, 0, id)) return false; /* 2^32 - 1 stands for none */
    fail(m, FH_EFORMAT, "'%s' is no token id", key);
    return false;
}

/* Where generation stops: the end of a text, of a turn, of a message. */
static void read_ids(maker *m)
{
    static const char *const ends[] = {"eos_token_id", "eot_token_id", "eom_token_id"};
    uint64_t id, seen[3];
    size_t n = 0;
    if (read_id(m, "bos_token_id", &id)) fh_json_add_u64(m->out, "bos_token_id", id);
    if (read_id(m, "padding_token_id", &id)) fh_json_add_u64(m->out, "pad_token_id", id);
    for (size_t i = 0; i < 3; i++) {
        bool known = !read_id(m, ends[i], &id);
        for (size_t k = 0; k < n && !known; k++) known = seen[k] == id;
        if (!known) seen[n++] = id;
    }
    if (n == 0) return;
    fh_json *list = fh_json_add_array(m->out, "eos_token_id");
    for (size_t i = 0; i < n; i++) fh_json_add_u64(list, NULL, seen[i]);
}

/* ---- the whole -------------------------------------------------------------------------------------------------- */

static const architecture *find_architecture(maker *m)
{
    char known[200] = "", shown[80];
    for (size_t i = 0; i < sizeof architectures / sizeof *architectures; i++) {
        size_t used = strlen(known);
        if (strcmp(architectures[i].arch, m->g->arch) == 0) return &architectures[i];
        snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", architectures[i].arch);
    }
    fail(m, FH_EUNSUPPORTED, "architecture '%s' is not read: %s are", fh_show(shown, sizeof shown, m->g->arch, strlen(m->g->arch)), known);
    return NULL;
}

fh_status fh_gguf_config(const fh_gguf *g, char **text, size_t *len, fh_err *err)
{
    maker m = {.g = g, .err = err, .out = fh_json_object()};
    *text = NULL;
    if ((m.a = find_architecture(&m))) {
        /* A window over every layer is Mistral's. */
        bool mistral = strcmp(g->arch, "llama") == 0 && number(&m, "attention.sliding_window", false, 0);
        fh_json_add_string(fh_json_add_array(m.out, "architectures"), NULL, mistral ? "MistralForCausalLM" : m.a->class);
        fh_json_add_string(m.out, "model_type", mistral ? "mistral" : m.a->type);
        uint64_t head_dim = read_sizes(&m);
        if (m.rc >= 0) read_flags(&m);
        if (m.rc >= 0) read_windows(&m);
        if (m.rc >= 0 && m.a->gemma) read_gemma(&m, head_dim);
        if (m.rc >= 0) read_rope(&m, head_dim);
        if (m.rc >= 0) read_ids(&m);
    }
    if (m.rc >= 0 && !(*text = fh_json_print(m.out, true))) fail(&m, FH_ENOMEM, "out of memory");
    if (*text) *len = strlen(*text);
    fh_json_free(m.out);
    return m.rc;
}
