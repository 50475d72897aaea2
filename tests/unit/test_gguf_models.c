/* GGUF files made by the reference's own writer (tests/golden/make_gguf.py) beside the safetensors that they were made from: the same
 * configuration, the same tensors, the same numbers out of the body, the same tokens. */
#include "body_cases.h"
#include "gguf_files.h"

#define GOLDEN "tests/golden/"

typedef struct pair { const char *original, *gguf; uint32_t layers; } pair; /* layers: how many of the original's were converted; 0: all */

static const pair exact[] = {
    {GOLDEN "llama", GOLDEN "gguf/llama.gguf", 1},
    {GOLDEN "llama-linear-bias", GOLDEN "gguf/llama-linear-bias.gguf", 1},
    {GOLDEN "neox-sequential", GOLDEN "gguf/neox-sequential.gguf", 1},
    {GOLDEN "gemma3-softcap", GOLDEN "gguf/gemma3-softcap.gguf", 0},
    {GOLDEN "gguf/qwen2-yarn", GOLDEN "gguf/qwen2-yarn.gguf", 0},
    {GOLDEN "gguf/qwen3", GOLDEN "gguf/qwen3.gguf", 0},
    {GOLDEN "gguf/gemma2", GOLDEN "gguf/gemma2.gguf", 0},
    {GOLDEN "gguf/mistral-window", GOLDEN "gguf/mistral-window.gguf", 0},
    {GOLDEN "gguf/neox-parallel", GOLDEN "gguf/neox-parallel.gguf", 0},
    {GOLDEN "gguf/gpt2", GOLDEN "gguf/gpt2.gguf", 0},
};
static const pair divided = {GOLDEN "llama3-rope", GOLDEN "gguf/llama3-rope.gguf", 1};
static const pair quantized[] = {
    {GOLDEN "llama", GOLDEN "gguf/llama-q8_0.gguf", 0},
    {GOLDEN "gguf/neox-parallel", GOLDEN "gguf/neox-parallel-q8_0.gguf", 0},
};

typedef struct both { fh_checkpoint a, b; } both; /* of safetensors; of the GGUF, loaded */

static void open_both(both *x, const pair *p)
{
    fh_err err;
    ok(fh_checkpoint_open(&x->a, p->original, NULL, &err), err);
    if (p->layers) x->a.config.layers = p->layers;
    ok(fh_checkpoint_open(&x->b, p->gguf, NULL, &err), err);
    ok(fh_tensors_load(x->b.tensors, NULL, NULL, &err), err);
}

static void close_both(both *x)
{
    fh_checkpoint_close(&x->a);
    fh_checkpoint_close(&x->b);
}

static float *values(const fh_tensor *t)
{
    size_t n = (size_t)t->bytes / fh_dtype_size(t->dtype);
    float *v = malloc(n * sizeof *v);
    fh_to_f32(v, t->dtype, t->data, n);
    return v;
}

enum { TOKENS = 24 };

/* Logits of a made-up text; freed by the caller. */
static float *logits_of(const fh_checkpoint *c)
{
    fh_err err;
    fh_body *body;
    fh_kv *kv;
    size_t v = c->config.vocab, d = c->config.hidden;
    uint32_t tokens[TOKENS], lens = TOKENS;
    float *hidden = malloc(TOKENS * d * sizeof *hidden), *logits = malloc(TOKENS * v * sizeof *logits);
    for (uint32_t i = 0; i < TOKENS; i++) tokens[i] = (i * 37 + 11) % (uint32_t)v;
    fh_body_source source = {.config = &c->config, .tensors = c->tensors};
    ok(fh_body_open(&body, &source, c->dir, &err), err);
    ok(fh_kv_new(&kv, body, &err), err);
    ok(fh_body_forward(body, NULL, 1, &kv, &lens, tokens, hidden, &err), err);
    fh_dense dense = {.rows = fh_tensor_rows(c->head), .softcap = (float)c->config.final_softcap, .vocab = (uint32_t)v};
    ok(fh_dense_logits(&dense, NULL, hidden, TOKENS, logits, &err), err);
    fh_kv_free(kv);
    fh_body_close(body);
    free(hidden);
    return logits;
}

/* The root mean square of the differences of logits, in standard deviations of them. */
static double apart(const float *x, const float *y, size_t n)
{
    double off = 0, sum = 0, square = 0;
    for (size_t i = 0; i < n; i++) {
        off += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
        sum += x[i], square += (double)x[i] * x[i];
    }
    return sqrt(off / (double)n) / sqrt(square / (double)n - sum / (double)n * (sum / (double)n));
}

static void a_gguf_says_what_the_configuration_said(void **state)
{
    for (size_t i = 0; i < sizeof exact / sizeof *exact; i++) {
        both x;
        open_both(&x, &exact[i]);
        const fh_config *a = &x.a.config, *b = &x.b.config;
        assert_string_equal(a->model_type, b->model_type);
        assert_string_equal(a->architecture[0] ? a->architecture : b->architecture, b->architecture);
        assert_int_equal(a->vocab, b->vocab);
        assert_int_equal(a->hidden, b->hidden);
        assert_int_equal(a->layers, b->layers);
        assert_int_equal(a->heads, b->heads);
        assert_int_equal(a->kv_heads, b->kv_heads);
        assert_int_equal(a->head_dim, b->head_dim);
        assert_int_equal(a->ffn, b->ffn);
        assert_int_equal(a->max_position, b->max_position);
        assert_int_equal(a->act, b->act);
        assert_true(a->norm_eps == b->norm_eps);
        assert_true(a->rope.type == b->rope.type && a->rope.theta == b->rope.theta && a->rope.factor == b->rope.factor);
        assert_true(a->rope.partial == b->rope.partial && a->rope.original_max_position == b->rope.original_max_position);
        assert_true(a->rope_local.theta == b->rope_local.theta && a->rope_local.type == b->rope_local.type);
        assert_int_equal(a->attention_bias, b->attention_bias);
        assert_int_equal(a->mlp_bias, b->mlp_bias);
        assert_int_equal(a->sliding_window, b->sliding_window);
        assert_true(a->final_softcap == b->final_softcap && a->attn_softcap == b->attn_softcap);
        assert_true(fabs(a->query_scalar - b->query_scalar) <= 1e-6 * a->query_scalar);
        assert_int_equal(x.a.tied, x.b.tied);
        assert_int_equal(b->n_eos, a->n_eos);
        for (size_t k = 0; k < a->n_eos; k++) assert_int_equal(a->eos[k], b->eos[k]);
        close_both(&x);
    }
}

static void every_tensor_of_a_gguf_is_the_original_to_the_bit(void **state)
{
    for (size_t i = 0; i < sizeof exact / sizeof *exact; i++) {
        both x;
        open_both(&x, &exact[i]);
        assert_true(fh_tensors_count(x.b.tensors) > 10);
        for (size_t k = 0; k < fh_tensors_count(x.b.tensors); k++) {
            const fh_tensor *b = fh_tensors_at(x.b.tensors, k), *a = fh_tensors_find(x.a.tensors, b->name);
            if (!a) fail_msg("%s: %s is not in the original", exact[i].gguf, b->name);
            assert_int_equal(a->rank, b->rank);
            for (unsigned d = 0; d < a->rank; d++) assert_int_equal(a->shape[d], b->shape[d]);
            float *u = values(a), *v = values(b);
            size_t n = (size_t)a->bytes / fh_dtype_size(a->dtype);
            /* Gemma's are written as float32(1 + w): what is taken back gives that sum again. */
            bool gemma_norm = a->rank == 1 && !strncmp(x.a.config.model_type, "gemma", 5);
            for (size_t e = 0; gemma_norm && e < n; e++) u[e] += 1, v[e] += 1;
            if (a->rank == 2) assert_int_equal(a->dtype, b->dtype);
            if (memcmp(u, v, n * sizeof *u)) fail_msg("%s: %s differs", exact[i].gguf, b->name);
            free(u);
            free(v);
        }
        close_both(&x);
    }
}

static void the_body_and_the_head_of_a_gguf_give_the_same_logits_to_the_bit(void **state)
{
    for (size_t i = 0; i < sizeof exact / sizeof *exact; i++) {
        both x;
        char one[65], other[65];
        open_both(&x, &exact[i]);
        float *a = logits_of(&x.a), *b = logits_of(&x.b);
        if (memcmp(a, b, (size_t)TOKENS * x.a.config.vocab * sizeof *a)) fail_msg("%s: other logits", exact[i].gguf);
        fh_rows heads[] = {fh_tensor_rows(x.a.head), fh_tensor_rows(x.b.head)};
        fh_fingerprint(one, &heads[0], NULL, x.a.config.final_softcap);
        fh_fingerprint(other, &heads[1], NULL, x.b.config.final_softcap);
        assert_string_equal(one, other);
        free(a);
        free(b);
        close_both(&x);
    }
}

/* The file has float32 divisors of the frequencies instead of the four numbers they come from. */
static void llama3_scaling_that_is_given_as_divisors_is_the_same_up_to_rounding(void **state)
{
    both x;
    open_both(&x, &divided);
    assert_int_equal(x.b.config.rope.type, FH_ROPE_DIVIDED);
    float *a = logits_of(&x.a), *b = logits_of(&x.b);
    double d = apart(a, b, (size_t)TOKENS * x.a.config.vocab);
    if (!(d <= 2e-6)) fail_msg("logits are %g standard deviations apart", d);
    free(a);
    free(b);
    close_both(&x);
}

/* A value of a block is off by half a step at most, the step being the block's largest value / 127 rounded to float16. */
static void q8_0_weights_are_within_half_a_step_and_logits_within_a_twentieth_of_their_deviation(void **state)
{
    for (size_t i = 0; i < sizeof quantized / sizeof *quantized; i++) {
        both x;
        size_t checked = 0;
        open_both(&x, &quantized[i]);
        for (size_t k = 0; k < fh_tensors_count(x.b.tensors); k++) {
            const fh_tensor *b = fh_tensors_at(x.b.tensors, k), *a = fh_tensors_find(x.a.tensors, b->name);
            if (b->rank != 2 || b->dtype != FH_F32) continue; /* rows of no whole blocks are left in F16 */
            float *u = values(a), *v = values(b);
            size_t n = (size_t)b->bytes / sizeof *v;
            for (size_t block = 0; block < n; block += 32) {
                float most = 0;
                for (size_t e = 0; e < 32; e++) most = fmaxf(most, fabsf(u[block + e]));
                for (size_t e = 0; e < 32; e++) {
                    double bound = most / 127.0 * (0.5 + 127.0 / 2048) + 1e-7;
                    if (!(fabs((double)u[block + e] - v[block + e]) <= bound))
                        fail_msg("%s: element %zu: %g, decoded %g", b->name, block + e, (double)u[block + e], (double)v[block + e]);
                    checked++;
                }
            }
            free(u);
            free(v);
        }
        assert_true(checked > 10000);
        float *a = logits_of(&x.a), *b = logits_of(&x.b);
        double d = apart(a, b, (size_t)TOKENS * x.a.config.vocab);
        if (!(d <= 0.05)) fail_msg("%s: logits are %g standard deviations apart", quantized[i].gguf, d);
        free(a);
        free(b);
        close_both(&x);
    }
}

/* In place or decoded, with rows in the file's order or another: a prompt in the same bits, and tokens on top of it, of which one comes alone and is
 * rounded to 16 bits in each block (docs/decisions/0013), within what that does. */
static void q8_0_in_place_gives_the_bits_of_q8_0_decoded_but_for_tokens_alone(void **state)
{
    enum { PROMPT = 20 };
    for (size_t i = 0; i < sizeof quantized / sizeof *quantized; i++) {
        fh_err err;
        fh_checkpoint c[2];
        fh_body *body[2];
        float *hidden[2], *logits[2];
        size_t blocks[2] = {0, 0}, d = 0, v = 0;
        for (int k = 0; k < 2; k++) {
            uint32_t tokens[TOKENS], lens[] = {PROMPT, 1, TOKENS - PROMPT - 1};
            ok(k ? fh_checkpoint_open_stored(&c[k], quantized[i].gguf, NULL, &err) : fh_checkpoint_open(&c[k], quantized[i].gguf, NULL, &err), err);
            ok(k ? fh_tensors_load_blocks(c[k].tensors, NULL, NULL, &err) : fh_tensors_load(c[k].tensors, NULL, NULL, &err), err);
            for (size_t t = 0; t < fh_tensors_count(c[k].tensors); t++) {
                fh_tensor *x = (fh_tensor *)fh_tensors_at(c[k].tensors, t);
                if (!k) x->blocks = NULL; /* decoded is what is compared with */
                blocks[k] += x->blocks != NULL;
                if (k && x->blocks) assert_null(x->data);
            }
            d = c[k].config.hidden, v = c[k].config.vocab;
            hidden[k] = malloc(TOKENS * d * sizeof **hidden);
            logits[k] = malloc(TOKENS * v * sizeof **logits);
            for (uint32_t t = 0; t < TOKENS; t++) tokens[t] = (t * 37 + 11) % (uint32_t)v;
            fh_body_source source = {.config = &c[k].config, .tensors = c[k].tensors};
            fh_kv *kv;
            ok(fh_body_open(&body[k], &source, c[k].dir, &err), err);
            ok(fh_kv_new(&kv, body[k], &err), err);
            for (size_t part = 0, at = 0; part < 3; at += lens[part++])
                ok(fh_body_forward(body[k], NULL, 1, &kv, &lens[part], tokens + at, hidden[k] + at * d, &err), err);
            fh_dense dense = {.rows = fh_tensor_stored_rows(c[k].head), .softcap = (float)c[k].config.final_softcap, .vocab = (uint32_t)v};
            ok(fh_dense_logits(&dense, NULL, hidden[k], PROMPT, logits[k], &err), err);
            ok(fh_dense_logits(&dense, NULL, hidden[k] + PROMPT * d, 1, logits[k] + PROMPT * v, &err), err);
            fh_kv_free(kv);
        }
        assert_true(blocks[0] == 0 && blocks[1] > 4);
        assert_true(4 * fh_body_bytes(body[1]) < 2 * fh_body_bytes(body[0]));
        assert_memory_equal(hidden[1], hidden[0], PROMPT * d * sizeof **hidden);
        assert_memory_equal(logits[1], logits[0], PROMPT * v * sizeof **logits);
        double alone = apart(hidden[1] + PROMPT * d, hidden[0] + PROMPT * d, d);
        double rest = apart(hidden[1] + (PROMPT + 1) * d, hidden[0] + (PROMPT + 1) * d, (TOKENS - PROMPT - 1) * d);
        double last = apart(logits[1] + PROMPT * v, logits[0] + PROMPT * v, v);
        if (!(alone > 0 && alone < 4e-4 && rest < 4e-4 && last < 4e-4))
            fail_msg("%s: %g, %g and %g standard deviations apart", quantized[i].gguf, alone, rest, last);
        for (int k = 0; k < 2; k++) free(hidden[k]), free(logits[k]), fh_body_close(body[k]), fh_checkpoint_close(&c[k]);
    }
}

/* ---- tokenizers -------------------------------------------------------------------------------------------------- */

static fh_tokenizer *open_tokenizer(const char *path)
{
    fh_err err;
    fh_tokenizer_text t;
    fh_tokenizer *out;
    ok(fh_tokenizer_text_read(&t, path, &err), err);
    assert_non_null(t.text);
    ok(fh_tokenizer_open(&out, t.text, t.len, t.config, t.name, NULL, &err), err);
    fh_tokenizer_text_free(&t);
    return out;
}

/* The texts of a golden case on which both agree, of all of them; those with `but` in them are left out: a GGUF does not say what its
 * white space means. */
static size_t agree(const char *original, const char *gguf, const char *but, size_t *all)
{
    fh_err err;
    char path[400];
    size_t same = 0, bytes;
    char *cases;
    fh_json *expected;
    fh_tokenizer *a = open_tokenizer(original), *b = open_tokenizer(gguf);
    assert_int_equal(fh_tokenizer_size(a), fh_tokenizer_size(b));
    snprintf(path, sizeof path, "%s/expected.json", original);
    ok(fh_file_read(&cases, &bytes, path, (size_t)1 << 24, &err), err);
    for (char *nul; (nul = strstr(cases, "\\u0000"));) nul[5] = '1'; /* which our reader of JSON does not take */
    ok(fh_json_parse(&expected, cases, bytes, path, &err), err);
    fh_free(cases);
    *all = 0;
    for (const fh_json *c = fh_json_first(expected); c; c = fh_json_next(c)) {
        const char *text = fh_json_string(fh_json_get(c, "text"));
        if (!text || (but && strstr(text, but))) continue;
        for (int special = 0; special < 2; special++) {
            uint32_t *u, *v;
            size_t n, k, len_a, len_b;
            char *one, *other;
            ok(fh_tokenizer_encode(a, text, strlen(text), special, &u, &n, &err), err);
            ok(fh_tokenizer_encode(b, text, strlen(text), special, &v, &k, &err), err);
            ok(fh_tokenizer_decode(a, u, n, false, &one, &len_a, &err), err);
            ok(fh_tokenizer_decode(b, u, n, false, &other, &len_b, &err), err);
            bool equal = n == k && !memcmp(u, v, n * sizeof *u) && len_a == len_b && !memcmp(one, other, len_a);
            if (!equal) print_message("%s: other tokens of \"%.80s\"\n", gguf, text);
            same += equal;
            ++*all;
            fh_free(u);
            fh_free(v);
            fh_free(one);
            fh_free(other);
        }
    }
    fh_json_free(expected);
    fh_tokenizer_close(a);
    fh_tokenizer_close(b);
    return same;
}

static void tokenizers_of_a_gguf_cut_texts_as_the_original_does(void **state)
{
    static const struct { const char *original, *gguf, *but; } cases[] = {
        {GOLDEN "tok-gpt2", GOLDEN "gguf/tok-gpt2.gguf", NULL},     {GOLDEN "tok-llama3", GOLDEN "gguf/tok-llama3.gguf", NULL},
        {GOLDEN "tok-qwen", GOLDEN "gguf/tok-qwen.gguf", "<|special|>"}, {GOLDEN "tok-neox", GOLDEN "gguf/tok-neox.gguf", "<|special|>"},
        {GOLDEN "tok-llama2", GOLDEN "gguf/tok-llama2.gguf", NULL}, {GOLDEN "tok-gemma", GOLDEN "gguf/tok-gemma.gguf", NULL},
        {GOLDEN "tok-digits", GOLDEN "gguf/tok-digits.gguf", NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t all, same = agree(cases[i].original, cases[i].gguf, cases[i].but, &all);
        assert_true(all > 250);
        assert_int_equal(same, all);
    }
}

typedef struct word { const char *text; uint32_t id; float score; } word;
static int by_text(const void *a, const void *b) { return strcmp(((const word *)a)->text, ((const word *)b)->text); }

/* The published tokenizer, whose 58980 merges were themselves found from SentencePiece's scores: scores in the order of its merges must give
 * that list again, ties included. */
static void merges_found_from_scores_are_those_of_the_published_tokenizer(void **state)
{
    enum { VOCABULARY = 32768 };
    fh_err err;
    fh_json *json, *made;
    static word words[VOCABULARY];
    static const char *tokens[VOCABULARY];
    static float scores[VOCABULARY];
    size_t n = 0, size, at = 0, len;
    const char *path = shared("data/tokenizers/mistral/tokenizer.json");
    if (!fh_file_exists(path)) {
        print_message("skipped: %s is not there (set FH_SHARED)\n", path);
        return;
    }
    ok(fh_json_read(&json, path, (size_t)1 << 26, &err), err);
    const fh_json *model = fh_json_get(json, "model");
    for (const fh_json *c = fh_json_first(fh_json_get(model, "vocab")); c; c = fh_json_next(c)) {
        uint64_t id;
        assert_true(n < VOCABULARY && fh_json_u64(c, &id) && id < VOCABULARY);
        tokens[id] = fh_json_key(c), scores[id] = -1e9f;
        words[n++] = (word){fh_json_key(c), (uint32_t)id, 0};
    }
    assert_int_equal(n, VOCABULARY);
    qsort(words, n, sizeof *words, by_text);
    for (const fh_json *c = fh_json_first(fh_json_get(model, "merges")); c; c = fh_json_next(c)) {
        char whole[400];
        const char *merge = fh_json_string(c), *left = fh_json_string(fh_json_first(c));
        if (merge) snprintf(whole, sizeof whole, "%.*s%s", (int)strcspn(merge, " "), merge, strchr(merge, ' ') + 1);
        else snprintf(whole, sizeof whole, "%s%s", left, fh_json_string(fh_json_next(fh_json_first(c))));
        const word *w = bsearch(&(word){whole, 0, 0}, words, n, sizeof *words, by_text);
        assert_non_null(w);
        if (scores[w->id] == -1e9f) scores[w->id] = -(float)at++;
    }
    image m = {0};
    value_string(&m, "general.architecture", "llama");
    value_string(&m, "tokenizer.ggml.model", "llama");
    value_array(&m, "tokenizer.ggml.tokens", FH_GGUF_STRING, n);
    for (size_t i = 0; i < n; i++) put_string(&m.values, tokens[i], strlen(tokens[i]));
    value_array(&m, "tokenizer.ggml.scores", FH_GGUF_F32, n);
    fh_buf_add(&m.values, scores, sizeof scores);
    uint8_t *bytes = finish(&m, &size);
    fh_gguf *g;
    char *text, *config;
    ok(fh_gguf_open_memory(&g, bytes, size, "x.gguf", &err), err);
    ok(fh_gguf_tokenizer(g, &text, &len, &config, &err), err);
    ok(fh_json_parse(&made, text, len, "x", &err), err);
    const fh_json *b = fh_json_first(fh_json_get(fh_json_get(made, "model"), "merges"));
    for (const fh_json *a = fh_json_first(fh_json_get(model, "merges")); a; a = fh_json_next(a), b = fh_json_next(b)) {
        char one[400], other[400];
        assert_non_null(b);
        if (fh_json_string(a)) snprintf(one, sizeof one, "%s", fh_json_string(a));
        else snprintf(one, sizeof one, "%s %s", fh_json_string(fh_json_first(a)), fh_json_string(fh_json_next(fh_json_first(a))));
        snprintf(other, sizeof other, "%s %s", fh_json_string(fh_json_first(b)), fh_json_string(fh_json_next(fh_json_first(b))));
        assert_string_equal(one, other);
    }
    assert_null(b);
    fh_json_free(made);
    fh_json_free(json);
    fh_free(text);
    fh_free(config);
    fh_gguf_close(g);
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_gguf_says_what_the_configuration_said),
        cmocka_unit_test(every_tensor_of_a_gguf_is_the_original_to_the_bit),
        cmocka_unit_test(the_body_and_the_head_of_a_gguf_give_the_same_logits_to_the_bit),
        cmocka_unit_test(llama3_scaling_that_is_given_as_divisors_is_the_same_up_to_rounding),
        cmocka_unit_test(q8_0_weights_are_within_half_a_step_and_logits_within_a_twentieth_of_their_deviation),
        cmocka_unit_test(q8_0_in_place_gives_the_bits_of_q8_0_decoded_but_for_tokens_alone),
        cmocka_unit_test(tokenizers_of_a_gguf_cut_texts_as_the_original_does),
        cmocka_unit_test(merges_found_from_scores_are_those_of_the_published_tokenizer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
