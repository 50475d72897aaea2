/* The options that say which text. */
#ifndef FH_TEXT_OPTS_H
#define FH_TEXT_OPTS_H

#include "cmd/cmd.h"

typedef struct fh_text_args { fh_strs text; fh_uint tokens, window, seed; } fh_text_args;
#define FH_TEXT_OPTS(base) \
    {"text", FH_OPT_STRS, (base) + offsetof(fh_text_args, text), "FILE|self", "text, again for more files (default self: the model speaks)", 0, 0, NULL}, \
    {"tokens", FH_OPT_UINT, (base) + offsetof(fh_text_args, tokens), "N", "tokens of it at most (default 100000)", 1, 1e9, NULL}, \
    {"window", FH_OPT_UINT, (base) + offsetof(fh_text_args, window), "N", "tokens of context (default 512, or the model's limit)", 1, 1e6, NULL}, \
    {"seed", FH_OPT_UINT, (base) + offsetof(fh_text_args, seed), "N", "of sampling and splitting", 0, 9e15, NULL}

static inline fh_text_params fh_text_of(const fh_text_args *a)
{
    return (fh_text_params){.texts = a->text.v, .n_texts = a->text.n, .tokens = (size_t)a->tokens.v, .window = (uint32_t)a->window.v, .seed = a->seed.v};
}

/* The options of a promise. */
typedef struct fh_promise_args { fh_num target, target_agreement, target_mass, confidence, max_cost; fh_uint containment_k, rerank; fh_str hot; fh_pick probing, cheapest, runtime; } fh_promise_args;
#define FH_PROMISE_OPTS(base) \
    {"target-containment", FH_OPT_NUM, (base) + offsetof(fh_promise_args, target), "X", "containment that is promised (default 0.99 where no target is given)", 0.01, 0.999999, NULL}, \
    {"target-agreement", FH_OPT_NUM, (base) + offsetof(fh_promise_args, target_agreement), "X", "share of positions with the dense head's answer that is promised", 0.01, 0.999999, NULL}, \
    {"target-mass", FH_OPT_NUM, (base) + offsetof(fh_promise_args, target_mass), "X", "covered mass that is promised", 0.01, 0.999999, NULL}, \
    {"containment-k", FH_OPT_UINT, (base) + offsetof(fh_promise_args, containment_k), "N", "of the dense head's best N tokens (default 1)", 1, FH_MAX_TOP, NULL}, \
    {"confidence", FH_OPT_NUM, (base) + offsetof(fh_promise_args, confidence), "X", "with which it is promised (default 0.95)", 0.5, 0.999999, NULL}, \
    {"hot", FH_OPT_STR, (base) + offsetof(fh_promise_args, hot), "N|auto", "tokens scored on every step (default auto)", 0, 0, NULL}, \
    {"rerank", FH_OPT_UINT, (base) + offsetof(fh_promise_args, rerank), "N", "best rows scored again from the exact ones (default 16, for int4 32; 0: none)", 0, FH_MAX_RERANK, NULL}, \
    {"probing", FH_OPT_PICK, (base) + offsetof(fh_promise_args, probing), "P", "a number of clusters (default), or those whose score is close enough to the best one's", \
     0, 0, "fixed,adaptive"}, \
    {"cheapest", FH_OPT_PICK, (base) + offsetof(fh_promise_args, cheapest), "C", "what settings are compared by: bytes read a step (default), or time by this machine's clock", 0, 0, "bytes,time"}, \
    {"max-cost", FH_OPT_NUM, (base) + offsetof(fh_promise_args, max_cost), "X", "share of the dense head's bytes that a setting may read (default 0.5)", 0.001, 10, NULL}, \
    {"for", FH_OPT_PICK, (base) + offsetof(fh_promise_args, runtime), "R", "the runtime that the promise is about (default fhtool)", 0, 0, "fhtool,vllm"}
/* Sizes of clusters to choose among. */
#define FH_CAPS_OPT(offset) \
    {"caps", FH_OPT_STR, (offset), "N,N,…", "tokens per cluster to choose among, by what the targets cost with each", 0, 0, NULL}
enum { FH_MOST_CAPS = 16 };
/* Freed by the caller. */
fh_status fh_caps_of(uint32_t **out, size_t *n, const char *text, const fh_calibrate_params *how, const char *command, fh_err *err);
fh_status fh_promise_of(fh_calibrate_params *out, const fh_promise_args *a, const char *command, fh_err *err);

#endif
