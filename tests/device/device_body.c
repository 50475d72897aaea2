/* tests/device/device_body.c: the transformer's body on a real device: the reference's states, and times. */
#include "tests/device/device_body.h"
#include "base/base.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void need(fh_status rc, const fh_err *err)
{
    if (rc == FH_OK) return;
    fprintf(stderr, "%s\n", err->text);
    exit(1);
}

/* ---- answers ------------------------------------------------------------------------------------------------------------ */

/* ids [n] through the body in steps of `step`. */
static void run_in_steps(const fh_body *b, size_t d, const uint32_t *ids, uint32_t n, uint32_t step, float *hidden)
{
    fh_err err;
    fh_kv *kv;
    need(fh_kv_new(&kv, b, &err), &err);
    for (uint32_t i = 0; i < n; i += step) {
        uint32_t some = n - i < step ? n - i : step;
        need(fh_body_forward(b, NULL, 1, &kv, &some, ids + i, hidden + i * d, &err), &err);
    }
    fh_kv_free(kv);
}

/* got [t, D]: room. All at once, three at a time, one. */
static void check_steps(const fh_body *body, const char *name, const uint32_t *ids, uint32_t t, const float *want, float *got, size_t *compared,
                        size_t *different)
{
    size_t n = t * body->d;
    double squares = 0;
    for (size_t i = 0; i < n; i++) squares += (double)want[i] * (double)want[i];
    for (uint32_t step = t; step; step = step == t ? 3 : step == 3) {
        double worst = 0;
        memset(got, 0x5a, n * sizeof *got);
        run_in_steps(body, body->d, ids, t, step, got);
        for (size_t i = 0; i < n; i++) {
            double off = fabs((double)got[i] - (double)want[i]);
            if (!(off <= worst)) worst = off;
        }
        bool same = worst <= 1e-4 * sqrt(squares / (double)n);
        *compared += n, *different += !same;
        if (!same) fprintf(stderr, "%s, steps of %u: states off by %g\n", name, step, worst);
    }
}

static void check_case(fh_cuda_device *device, const char *name, size_t *compared, size_t *different)
{
    char path[200];
    fh_err err;
    fh_checkpoint c;
    fh_body *body;
    fh_tensors *expected;
    fh_cuda_body *there;
    snprintf(path, sizeof path, "tests/golden/%s/expected.safetensors", name);
    if (!fh_file_exists(path)) { printf("%s: left out: not there\n", path); return; }
    need(fh_tensors_open(&expected, path, &err), &err);
    *strrchr(path, '/') = 0;
    need(fh_checkpoint_open(&c, path, NULL, &err), &err);
    fh_body_source source = {.config = &c.config, .tensors = c.tensors};
    need(fh_body_open(&body, &source, path, &err), &err);
    need(fh_cuda_backend()->body_new(&there, device, body, &err), &err);
    body->device = fh_cuda_backend()->body_does(there);
    const fh_tensor *hidden = fh_tensors_find(expected, "hidden"), *list = fh_tensors_find(expected, "ids");
    uint32_t t = (uint32_t)hidden->shape[1];
    size_t d = (size_t)hidden->shape[2], n = t * d;
    uint32_t *ids = malloc(t * sizeof *ids);
    float *want = malloc(n * sizeof *want), *got = malloc(n * sizeof *got);
    for (uint32_t i = 0; i < t; i++) memcpy(&ids[i], (const uint8_t *)list->data + i * fh_dtype_size(list->dtype), 4);
    memcpy(want, hidden->data, n * sizeof *want);
    check_steps(body, name, ids, t, want, got, compared, different);
    body->device = NULL;
    fh_cuda_backend()->body_free(there);
    free(ids), free(want), free(got);
    fh_body_close(body);
    fh_checkpoint_close(&c);
    fh_tensors_close(expected);
}

/* ---- a body of random weights -------------------------------------------------------------------------------------------- */

typedef struct made { fh_config config; fh_tensors *tensors; fh_body *body; uint8_t *data; const uint16_t *weights; uint16_t *row; } made;
typedef struct made_shape { uint32_t d, layers, heads, kv_heads, head_dim, ffn; } made_shape;

static const void *any_row(void *ctx, uint32_t id) { (void)id; return ctx; }
/* A token's own: weights of the body, from another place for each. */
static const void *its_row(void *ctx, uint32_t id) { const made *m = ctx; return m->weights + id; }

/* One tensor's line of a safetensors header; its data follow one another. */
static size_t declare(fh_buf *header, size_t at, const char *name, size_t rows, size_t columns)
{
    size_t bytes = 2 * rows * (columns ? columns : 1);
    fh_buf_printf(header, "%s\"%s\":{\"dtype\":\"BF16\",\"shape\":[%zu", at ? "," : "", name, rows);
    if (columns) fh_buf_printf(header, ",%zu", columns);
    fh_buf_printf(header, "],\"data_offsets\":[%zu,%zu]}", at, at + bytes);
    return at + bytes;
}

static made make_body(made_shape is)
{
    made m = {0};
    fh_err err;
    fh_rng rng;
    fh_buf header = {0}, config = {0};
    char name[100];
    size_t at = 0, qd = is.heads * is.head_dim, kd = is.kv_heads * is.head_dim;
    fh_rng_seed(&rng, 9, 0);
    fh_buf_puts(&header, "{");
    for (uint32_t l = 0; l < is.layers; l++) {
        const struct { const char *name; size_t rows, columns; } all[] = {
            {"input_layernorm", is.d, 0}, {"post_attention_layernorm", is.d, 0}, {"self_attn.q_proj", qd, is.d}, {"self_attn.k_proj", kd, is.d},
            {"self_attn.v_proj", kd, is.d}, {"self_attn.o_proj", is.d, qd}, {"mlp.gate_proj", is.ffn, is.d}, {"mlp.up_proj", is.ffn, is.d},
                {"mlp.down_proj", is.d, is.ffn}};
        for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
            snprintf(name, sizeof name, "model.layers.%u.%s.weight", l, all[i].name);
            at = declare(&header, at, name, all[i].rows, all[i].columns);
        }
    }
    at = declare(&header, at, "model.norm.weight", is.d, 0);
    fh_buf_puts(&header, "}");
    while (header.len % 8) fh_buf_puts(&header, " ");
    uint64_t length = header.len;
    m.data = malloc(8 + header.len + at);
    m.row = malloc(is.d * sizeof *m.row);
    memcpy(m.data, &length, 8), memcpy(m.data + 8, header.data, header.len);
    enum { RANDOM = 1 << 20 }; /* of which all weights are copies: small, so that nothing overflows */
    uint16_t *values = (uint16_t *)(void *)(m.data + 8 + header.len);
    m.weights = values;
    for (size_t i = 0; i < at / 2; i++) values[i] = i < RANDOM ? fh_f32_to_bf16((float)(0.04 * fh_rng_double(&rng) - 0.02)) : values[i - RANDOM];
    for (size_t i = 0; i < is.d; i++) m.row[i] = fh_f32_to_bf16((float)(2 * fh_rng_double(&rng) - 1));
    fh_buf_printf(&config,
                  "{\"model_type\":\"llama\",\"architectures\":[\"LlamaForCausalLM\"],\"vocab_size\":1000,\"hidden_size\":%u,\"num_hidden_layers\":%u,\"num_attention_heads\":%u,"
                  "\"num_key_value_heads\":%u,\"head_dim\":%u,\"intermediate_size\":%u,\"max_position_embeddings\":32768,\"rms_norm_eps\":1e-5,\"hidden_act\":\"silu\","
                  "\"rope_theta\":500000.0,\"tie_word_embeddings\":true}", is.d, is.layers, is.heads, is.kv_heads, is.head_dim, is.ffn);
    need(fh_config_parse(&m.config, config.data, config.len, NULL, "random weights", NULL, &err), &err);
    need(fh_tensors_open_memory(&m.tensors, m.data, 8 + header.len + at, "random weights", &err), &err);
    fh_buf_free(&header), fh_buf_free(&config);
    return m;
}

static void drop_body(made *m)
{
    fh_body_close(m->body);
    fh_tensors_close(m->tensors);
    fh_config_free(&m->config);
    free(m->data), free(m->row);
}

/* Attention heads of more than 256 values, which none of the cases has, against this CPU. */
static void check_wide_heads(fh_cuda_device *device, made_shape is, size_t *compared, size_t *different)
{
    enum { TOKENS = 70 };
    fh_err err;
    fh_cuda_body *there;
    uint32_t ids[TOKENS] = {0};
    char name[40];
    made m = make_body(is);
    fh_body_source source = {.config = &m.config, .tensors = m.tensors, .embedding_row = its_row, .ctx = &m, .embedding_dtype = FH_BF16};
    float *want = malloc(TOKENS * is.d * sizeof *want), *got = malloc(TOKENS * is.d * sizeof *got);
    snprintf(name, sizeof name, "heads of %u", is.head_dim);
    for (uint32_t i = 0; i < TOKENS; i++) ids[i] = (7 * i + 3) % is.d;
    need(fh_body_open(&m.body, &source, name, &err), &err);
    run_in_steps(m.body, is.d, ids, TOKENS, TOKENS, want);
    need(fh_cuda_backend()->body_new(&there, device, m.body, &err), &err);
    m.body->device = fh_cuda_backend()->body_does(there);
    check_steps(m.body, name, ids, TOKENS, want, got, compared, different);
    m.body->device = NULL;
    fh_cuda_backend()->body_free(there);
    free(want), free(got);
    drop_body(&m);
}

void device_check_bodies(fh_cuda_device *d, size_t *compared, size_t *different)
{
    static const char *const cases[] = {"llama", "llama3-rope", "llama-linear-bias", "qwen3", "gemma3-softcap", "neox-sequential"};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_case(d, cases[i], compared, different);
    check_wide_heads(d, (made_shape){64, 2, 5, 1, 512, 96}, compared, different);
    check_wide_heads(d, (made_shape){64, 2, 6, 2, 344, 96}, compared, different);
}

/* ---- times ------------------------------------------------------------------------------------------------------------------ */

static void time_products(FILE *out, fh_cuda_body *there, size_t runs)
{
    enum { MOST = 128 };
    static const char *const names[FH_PRODUCTS] = {"few", "tile", "cublas"};
    fh_cuda_product_time times[MOST];
    fh_err err;
    size_t n = 0;
    need(fh_cuda_backend()->body_measure(there, runs, times, MOST, &n, &err), &err);
    need(fh_cuda_backend()->body_prefer(there, times, n, &err), &err);
    fprintf(out, "\"products\": [");
    for (size_t i = 0; i < n; i++) {
        fprintf(out, "%s\n  {\"out\": %u, \"in\": %u, \"rows\": %u, \"gated\": %s", i ? "," : "", times[i].out, times[i].in, times[i].rows, times[i].gated
                ? "true" : "false");
        printf("product %5u x %-5u%s %3u rows:", times[i].out, times[i].in, times[i].gated ? " gated" : "      ", times[i].rows);
        for (size_t k = 0; k < FH_PRODUCTS; k++) {
            if (!(times[i].seconds[k] > 0)) continue;
            fprintf(out, ", \"%s_microseconds\": %.3f", names[k], 1e6 * times[i].seconds[k]);
            printf("  %s %.2f us", names[k], 1e6 * times[i].seconds[k]);
        }
        fprintf(out, "}");
        printf("\n");
    }
    fprintf(out, "]");
}

/* `steps` tokens, each on top of the one before, without the host between body and head; head NULL: the body alone, whose states come back. */
static double time_steps(fh_cuda_device *d, const fh_body *b, fh_cuda_head *head, const fh_head_call *call, fh_kv *kv, uint32_t length, size_t steps,
                         double share[2])
{
    fh_err err;
    const uint32_t one = 1;
    uint32_t token = 1, id;
    double before[2], after[2], began = 0;
    float *hidden = head ? NULL : malloc(b->d * sizeof *hidden);
    need(fh_kv_make_up(kv, length, &err), &err);
    for (size_t i = 0; i < steps + 3; i++) { /* three first: a graph has to be made */
        if (i == 3) began = fh_now(), fh_cuda_backend()->device_times(d, &before[0], &before[1]);
        need(fh_body_forward(b, NULL, 1, &kv, &one, &token, hidden, &err), &err);
        if (head) need(fh_cuda_backend()->head_topk(head, call, &id, NULL, &err), &err), token = id % 1000;
    }
    double seconds = (fh_now() - began) / (double)steps;
    fh_cuda_backend()->device_times(d, &after[0], &after[1]);
    share[0] = (after[0] - before[0]) / (double)steps, share[1] = (after[1] - before[1]) / (double)steps;
    free(hidden);
    return seconds;
}

static void time_tokens(FILE *out, fh_cuda_device *d, const fh_body *b, fh_cuda_head *head, const fh_head_info *info, bool few)
{
    fh_err err;
    fh_kv *kv;
    uint32_t rerank = info->rerank;
    const fh_head_call flash = {.batch = 1, .probes = info->probes, .kept = 1 + rerank, .rerank = rerank, .k = 1};
    const fh_head_call dense = {.batch = 1, .probes = info->clusters, .dense = true, .kept = 1, .k = 1};
    const struct { const char *what; const fh_head_call *call; } ways[] = {{"body alone", NULL}, {"flash", &flash}, {"dense", &dense}};
    need(fh_kv_new_of(&kv, b, FH_F16, &err), &err);
    fprintf(out, ", \"tokens\": [");
    for (uint32_t length = 16, first = 1; length <= (few ? 16u : 16384u); length *= 32)
        for (size_t w = 0; w < sizeof ways / sizeof *ways; w++, first = 0) {
            double share[2], seconds = time_steps(d, b, ways[w].call ? head : NULL, ways[w].call, kv, length, few ? 3 : 128, share);
            fprintf(out, "%s\n  {\"what\": \"%s\", \"cache\": %u, \"microseconds\": %.3f, \"body_microseconds\": %.3f, \"head_microseconds\": %.3f}", first
                    ? "" : ",",
                    ways[w].what, length, 1e6 * seconds, 1e6 * share[0], 1e6 * share[1]);
            printf("a token on %5u others, %-10s %9.2f us; by the device's clock body %.2f, head %.2f\n", length, ways[w].what, 1e6 * seconds, 1e6 * share[0],
                   1e6 * share[1]);
        }
    fprintf(out, "], \"prompts\": [");
    for (uint32_t n = few ? 20 : 128, first = 1; n <= (few ? 20u : 2048u); n *= 4, first = 0) {
        uint32_t *ids = calloc(n, sizeof *ids);
        float *hidden = malloc(n * b->d * sizeof *hidden);
        double best = INFINITY;
        for (int run = 0; run < 3; run++) {
            double began = fh_now();
            fh_kv_truncate(kv, 0);
            need(fh_body_forward(b, NULL, 1, &kv, &n, ids, hidden, &err), &err);
            best = fmin(best, fh_now() - began);
        }
        fprintf(out, "%s\n  {\"tokens\": %u, \"milliseconds\": %.3f, \"teraflops\": %.2f}", first ? "" : ",", n, 1e3 * best,
                fh_body_operations(b, 0, n) / best / 1e12);
        printf("a prompt of %u: %.2f ms, %.1f TFLOP/s\n", n, 1e3 * best, fh_body_operations(b, 0, n) / best / 1e12);
        free(ids), free(hidden);
    }
    fprintf(out, "]");
    fh_kv_free(kv);
}

void device_time_bodies(FILE *out, fh_cuda_device *d, fh_cuda_head *head, const fh_head_info *info, bool small)
{
    const made_shape llama = {2048, 16, 32, 8, 64, 8192}, few = {info->hidden, 2, 4, 2, 16, 96};
    fh_err err;
    fh_cuda_body *there;
    made m = make_body(small ? few : llama);
    fh_body_source source = {.config = &m.config, .tensors = m.tensors, .embedding_row = any_row, .ctx = m.row, .embedding_dtype = FH_BF16};
    need(fh_body_open(&m.body, &source, "random weights", &err), &err);
    need(fh_cuda_backend()->body_new(&there, d, m.body, &err), &err);
    m.body->device = fh_cuda_backend()->body_does(there);
    time_products(out, there, small ? 3 : 50);
    time_tokens(out, d, m.body, head, info, small);
    m.body->device = NULL;
    fh_cuda_backend()->body_free(there);
    drop_body(&m);
}
