/* format/family.c: the table of model families. */
#include "format/family.h"

#include <string.h>

static const fh_family_keys llama_keys = {
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
    "max_position_embeddings", "hidden_act", "rms_norm_eps",
};
static const fh_family_keys gemma_keys = {
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
    "max_position_embeddings", "hidden_activation", "rms_norm_eps",
};
static const fh_family_keys neox_keys = {
    "hidden_size", "num_hidden_layers", "num_attention_heads", NULL, NULL, "intermediate_size",
    "max_position_embeddings", "hidden_act", "layer_norm_eps",
};
static const fh_family_keys gpt2_keys = {
    "n_embd", "n_layer", "n_head", NULL, NULL, "n_inner", "n_positions", "activation_function", "layer_norm_epsilon",
};

static const char *const lm_head[] = {"lm_head.weight", NULL};
static const char *const embed_out[] = {"embed_out.weight", "lm_head.weight", NULL};
static const char *const any_head[] = {"lm_head.weight", "embed_out.weight", "output.weight", NULL};
static const char *const embed_tokens[] = {"embed_tokens.weight", NULL};
static const char *const embed_in[] = {"embed_in.weight", NULL};
static const char *const wte[] = {"wte.weight", NULL};
static const char *const any_embedding[] = {"embed_tokens.weight", "embed_in.weight", "wte.weight", "word_embeddings.weight",
                                            "tok_embeddings.weight", NULL};

/* Multimodal wrappers put a prefix of their own before a text model's names, and a bare model lacks the family's. */
const char *const fh_head_prefixes[] = {"", "language_model.", "model.language_model.", "transformer.", NULL};
const char *const fh_embedding_prefixes[] = {"model.", "gpt_neox.", "transformer.", "language_model.model.", "model.language_model.",
                                             "model.decoder.", "", NULL};

/* Keys, tensors and defaults as the reference library's configuration classes have them. */
static const fh_family families[] = {
    {.type = "llama", .body = true, .keys = &llama_keys, .vocab = 32000, .hidden = 4096, .ffn = 11008, .layers = 32, .heads = 32,
     .max_position = 2048, .act = FH_ACT_SILU, .eps = 1e-6, .rope = FH_ROPE_DEFAULT, .theta = 1e4, .partial = 1,
     .attention_bias = FH_BIAS_KEY_FALSE, .mlp_bias = FH_BIAS_KEY_FALSE, .heads_names = lm_head, .embedding_names = embed_tokens},
    {.type = "mistral", .body = true, .keys = &llama_keys, .vocab = 32000, .hidden = 4096, .ffn = 14336, .layers = 32, .heads = 32,
     .kv_heads = 8, .max_position = 131072, .act = FH_ACT_SILU, .eps = 1e-6, .rope = FH_ROPE_DEFAULT, .theta = 1e4, .partial = 1,
     .window_rule = FH_WINDOW_KEY, .window = 4096, .heads_names = lm_head, .embedding_names = embed_tokens},
    {.type = "qwen2", .body = true, .keys = &llama_keys, .vocab = 151936, .hidden = 4096, .ffn = 22016, .layers = 32, .heads = 32,
     .kv_heads = 32, .max_position = 32768, .act = FH_ACT_SILU, .eps = 1e-6, .rope = FH_ROPE_DEFAULT, .theta = 1e4, .partial = 1,
     .attention_bias = FH_BIAS_ALWAYS, .window_rule = FH_WINDOW_SWITCH, .window = 4096, .heads_names = lm_head,
     .embedding_names = embed_tokens},
    {.type = "qwen3", .body = true, .keys = &llama_keys, .vocab = 151936, .hidden = 4096, .ffn = 22016, .layers = 32, .heads = 32,
     .kv_heads = 32, .head_dim = 128, .max_position = 32768, .act = FH_ACT_SILU, .eps = 1e-6, .rope = FH_ROPE_DEFAULT, .theta = 1e4,
     .partial = 1, .attention_bias = FH_BIAS_KEY_FALSE, .window_rule = FH_WINDOW_SWITCH, .window = 4096, .heads_names = lm_head,
     .embedding_names = embed_tokens},
    {.type = "gemma2", .body = true, .keys = &gemma_keys, .vocab = 256000, .hidden = 2304, .ffn = 9216, .layers = 26, .heads = 8,
     .kv_heads = 4, .head_dim = 256, .max_position = 8192, .act = FH_ACT_GELU_TANH, .eps = 1e-6, .rope = FH_ROPE_DEFAULT, .theta = 1e4,
     .partial = 1, .tie = true, .attention_bias = FH_BIAS_KEY_FALSE, .window_rule = FH_WINDOW_KEY, .window = 4096,
     .softcaps = true, .query_scalar = 256, .final_softcap = 30, .attn_softcap = 50, .heads_names = lm_head,
     .embedding_names = embed_tokens},
    {.type = "gemma3_text", .body = true, .keys = &gemma_keys, .vocab = 262208, .hidden = 2304, .ffn = 9216, .layers = 26, .heads = 8,
     .kv_heads = 4, .head_dim = 256, .max_position = 131072, .act = FH_ACT_GELU_TANH, .eps = 1e-6, .rope = FH_ROPE_DEFAULT,
     .theta = 1e6, .theta_local = 1e4, .partial = 1, .tie = true, .attention_bias = FH_BIAS_KEY_FALSE, .window_rule = FH_WINDOW_KEY,
     .window = 4096, .softcaps = true, .query_scalar = 256, .heads_names = lm_head, .embedding_names = embed_tokens},
    /* The multimodal wrapper of gemma3_text, whose facts stand in text_config. */
    {.type = "gemma3", .keys = &gemma_keys, .vocab = 262208, .hidden = 2304, .ffn = 9216, .layers = 26, .heads = 8,
     .kv_heads = 4, .head_dim = 256, .max_position = 131072, .act = FH_ACT_GELU_TANH, .eps = 1e-6, .rope = FH_ROPE_DEFAULT,
     .theta = 1e6, .theta_local = 1e4, .partial = 1, .tie = true, .attention_bias = FH_BIAS_KEY_FALSE, .window_rule = FH_WINDOW_KEY,
     .window = 4096, .softcaps = true, .query_scalar = 256, .heads_names = lm_head, .embedding_names = embed_tokens},
    {.type = "gpt_neox", .body = true, .keys = &neox_keys, .vocab = 50432, .hidden = 6144, .ffn = 24576, .layers = 44, .heads = 64,
     .max_position = 2048, .act = FH_ACT_GELU, .eps = 1e-5, .rope = FH_ROPE_DEFAULT, .theta = 1e4, .partial = 0.25,
     .attention_bias = FH_BIAS_KEY_TRUE, .mlp_bias = FH_BIAS_ALWAYS, .heads_names = embed_out, .embedding_names = embed_in},
    {.type = "gpt2", .body = true, .keys = &gpt2_keys, .vocab = 50257, .hidden = 768, .layers = 12, .heads = 12, .max_position = 1024,
     .act = FH_ACT_GELU_TANH, .eps = 1e-5, .rope = FH_ROPE_NONE, .tie = true, .attention_bias = FH_BIAS_ALWAYS,
     .mlp_bias = FH_BIAS_ALWAYS, .heads_names = lm_head, .embedding_names = wte},
};

/* The reference's base class ties where nothing is said. */
static const fh_family unknown = {
    .type = "", .keys = &llama_keys, .tie = true, .softcaps = true, .heads_names = any_head, .embedding_names = any_embedding,
};

const fh_family *fh_family_find(const char *model_type)
{
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        if (strcmp(families[i].type, model_type) == 0) return &families[i];
    return &unknown;
}
