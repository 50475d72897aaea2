/* format/family.h: what the model families differ in.  Private to format/{family,config,checkpoint}.c. */
#ifndef FH_FAMILY_H
#define FH_FAMILY_H

#include "format/format.h"

/* Is a kind of bias there? */
typedef enum fh_bias_rule { FH_BIAS_NEVER, FH_BIAS_ALWAYS, FH_BIAS_KEY_FALSE, FH_BIAS_KEY_TRUE } fh_bias_rule; /* KEY_x: the key says, x by default */
/* How `sliding_window` is meant. */
typedef enum fh_window_rule {
    FH_WINDOW_NONE,   /* not at all */
    FH_WINDOW_KEY,    /* the number; null is none; the default where it is absent */
    FH_WINDOW_SWITCH  /* only with use_sliding_window */
} fh_window_rule;

/* How config.json spells things. */
typedef struct fh_family_keys {
    const char *hidden, *layers, *heads, *kv_heads, *head_dim, *ffn, *max_position, *act, *eps; /* NULL: has no such key */
} fh_family_keys;

typedef struct fh_family {
    const char *type;      /* model_type */
    bool body;             /* its forward pass is one we have */
    const fh_family_keys *keys;
    /* What holds where a key is absent; 0 for kv_heads: as many as heads; for head_dim: hidden / heads; for ffn: 4 * hidden. */
    uint32_t vocab, hidden, ffn, layers, heads, kv_heads, head_dim, max_position;
    fh_act act;
    double eps;
    fh_rope_type rope;     /* FH_ROPE_NONE, or FH_ROPE_DEFAULT */
    double theta, theta_local, partial; /* theta_local 0: no RoPE of its own for sliding layers */
    bool tie;
    fh_bias_rule attention_bias, mlp_bias;
    fh_window_rule window_rule;
    uint32_t window;
    bool softcaps;         /* the keys of the next three mean something */
    double query_scalar, final_softcap, attn_softcap;
    const char *const *heads_names;      /* of the head tensor, in the order they are tried; ends with NULL */
    const char *const *embedding_names;  /* without prefixes */
} fh_family;

/* The row of a model_type; for one that is not known a row of generic names, whose `type` is "". */
const fh_family *fh_family_find(const char *model_type);
/* What may stand before a tensor's name, in the order it is tried; ends with NULL. */
extern const char *const fh_head_prefixes[], *const fh_embedding_prefixes[];

#endif
