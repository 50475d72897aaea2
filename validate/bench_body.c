/* What the body costs: a token on top of a cache of some length, and the tokens of a prompt.
 *
 * Caches are as they are when a model runs alone.  A token's roof is reading its weights, keys and values in order; a prompt's, its
 * multiplications at the rate of sgemm at the model's width.
 */
#include "validate/bench.h"

#include <math.h>

enum { PROMPT = 256 };

typedef struct bodies { const fh_model *m; fh_pool *pool; fh_kv *kv; uint32_t length, tokens; uint32_t ids[PROMPT]; float *hidden; } bodies;

static fh_status forward(void *ctx, size_t run, fh_err *err)
{
    bodies *b = ctx;
    (void)run;
    fh_kv_truncate(b->kv, b->length);
    return fh_body_forward(b->m->body, b->pool, 1, &b->kv, &b->tokens, b->ids, b->hidden, err);
}

/* A cache of made-up keys and values `length` tokens long, and `tokens` on top of it. */
static fh_status time_body(fh_bench_list *list, fh_bench_env *e, const fh_bench_peak *peak, bodies *b, const char *what, uint32_t length, uint32_t tokens,
                           fh_err *err)
{
    const fh_body *body = b->m->body;
    bool one = tokens == 1;
    fh_timing t;
    b->length = length, b->tokens = tokens;
    fh_status rc = fh_kv_make_up(b->kv, length, err);
    double work = one ? (double)fh_body_bytes(body) + (double)fh_kv_read_bytes(b->kv) : fh_body_operations(body, length, tokens);
    if (rc < 0 || (rc = fh_bench_time(&t, e, what, true, work, forward, b, err)) < 0) return rc;
    double rate = 1e9 * (one ? peak->stream.gigabytes_per_second : peak->gemm.gigabytes_per_second);
    fh_bench_add(list, what, e, one ? length : tokens, true, &t, rate > 0 ? work / rate : 0);
    return FH_OK;
}

fh_status fh_bench_body(fh_bench_list *list, fh_bench_env *envs, size_t n_envs, const fh_bench_peak *peaks, const fh_model *m, fh_dtype kv_type, fh_err *err)
{
    static const uint32_t lengths[] = {16, 1024, 8192, 32768};
    uint32_t most = fh_body_max_position(m->body), prompt = most < PROMPT ? most : PROMPT;
    bodies b = {.m = m, .hidden = fh_malloc(PROMPT * (size_t)m->config->hidden * sizeof(float))};
    fh_status rc = b.hidden ? fh_kv_new_of(&b.kv, m->body, kv_type, err) : fh_fail(err, FH_ENOMEM, "bench: out of memory");
    for (uint32_t i = 0; i < PROMPT; i++) b.ids[i] = i * 2654435761u % m->config->vocab;
    for (size_t i = 0; i < n_envs; i++) {
        b.pool = envs[i].pool;
        for (size_t l = 0; rc == FH_OK && l < sizeof lengths / sizeof *lengths; l++)
            if (lengths[l] < most) rc = time_body(list, &envs[i], &peaks[i], &b, "decode", lengths[l], 1, err);
        if (rc == FH_OK) rc = time_body(list, &envs[i], &peaks[i], &b, "prefill", 0, prompt, err);
    }
    fh_kv_free(b.kv);
    fh_free(b.hidden);
    return rc;
}
