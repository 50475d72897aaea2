/* What goes to the vLLM plugin: its config.json, whether a clustering belongs to a head, and what it answers. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "artifacts/artifacts.h"
#include "base/fault.h"
#include "calib/calib.h"

#define FACTS "\"vocab_size\":8,\"hidden_size\":4,\"num_hidden_layers\":1,\"num_attention_heads\":1,\"intermediate_size\":4"

/* ---- config.json --------------------------------------------------------------------------------------------------- */

static fh_status patch(char **out, const char *text, const uint32_t *special, size_t n, fh_err *err)
{
    fh_config c = {0};
    fh_status rc = fh_config_parse(&c, text, strlen(text), NULL, "config.json", NULL, err);
    if (rc == FH_OK && !fh_vllm_architecture(&c)) rc = fh_fail(err, FH_EUNSUPPORTED, "unknown");
    if (rc == FH_OK) rc = fh_vllm_config(out, &c, 7, special, n, err);
    fh_config_free(&c);
    return rc;
}

static void every_other_byte_of_the_config_is_kept(void **state)
{
    (void)state;
    static const uint32_t special[] = {3, 5};
    static const struct {
        const char *before, *after;
    } cases[] = {
        {"{\n  \"architectures\": [\n    \"LlamaForCausalLM\"\n  ],\n  \"model_type\": \"llama\",\n  \"rms_norm_eps\": 1e-05,\n  "
         "\"rope_theta\": 500000.0,\n  " FACTS "\n}\n",
         "{\n  \"architectures\": [\n    \"FlashHeadLlamaForCausalLM\"\n  ],\n  \"model_type\": \"llama\",\n  \"rms_norm_eps\": 1e-05,\n  "
         "\"rope_theta\": 500000.0,\n  " FACTS
         ",\n  \"flash_head_cache_dir\": \"flash_head_assets\",\n  \"n_probes\": 7,\n  \"flash_head_special_token_ids\": [3, 5]\n}\n"},
        /* what was set before is set anew; auto_map goes; brackets and quotes in texts and keys mislead nobody */
        {"{\"auto_map\":{\"a\":[\"}\",\"\\\\\\\"\",{}]},\"n_probes\":[1,{\"x\":2}],\"model_type\":\"llama\",\"\\u0066lash_head_cache_dir\":"
         "\"other\",\"]}\":\"{[\\\"\"," FACTS ",\"architectures\":[\"LlamaForCausalLM\",\"X\"],\"flash_head_special_token_ids\":9}",
         "{\"model_type\":\"llama\",\"]}\":\"{[\\\"\"," FACTS
         ",\"architectures\":[\"FlashHeadLlamaForCausalLM\",\"X\"],\"flash_head_cache_dir\": \"flash_head_assets\",\"n_probes\": 7,"
         "\"flash_head_special_token_ids\": [3, 5]}"},
        /* one that has the prefix keeps it; numbers, words and nested arrays as values */
        {" { \"architectures\" : [ \"FlashHeadGemma3ForCausalLM\" ] , \"model_type\" : \"llama\" , \"a\" : -1.50E+3 , \"b\" : null , \"c\" "
         ": [[1,[2]],true] , " FACTS " } ",
         " { \"architectures\" : [ \"FlashHeadGemma3ForCausalLM\" ], \"model_type\" : \"llama\", \"a\" : -1.50E+3, \"b\" : null, \"c\" : "
         "[[1,[2]],true], " FACTS
         ", \"flash_head_cache_dir\": \"flash_head_assets\", \"n_probes\": 7, \"flash_head_special_token_ids\": [3, 5] } "},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fh_err err = {0};
        char *out = NULL;
        if (patch(&out, cases[i].before, special, 2, &err) < 0) fail_msg("%s", err.text);
        assert_string_equal(out, cases[i].after);
        fh_free(out);
    }
}

static void architectures_are_known_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *said, *known;
    } cases[] = {
        {"LlamaForCausalLM", "LlamaForCausalLM"},
        {"FlashHeadQwen3ForCausalLM", "Qwen3ForCausalLM"},
        {"Qwen3_5MoeForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration"},
        {"MistralForCausalLM", NULL},
        {"llamaForCausalLM", NULL},
        {"LlamaForCausalLM2", NULL},
        {"FlashHead", NULL},
        {"FlashHeadFlashHeadLlamaForCausalLM", NULL},
        {"", NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fh_config c = {0};
        snprintf(c.architecture, sizeof c.architecture, "%s", cases[i].said);
        const char *known = fh_vllm_architecture(&c);
        if (cases[i].known) assert_string_equal(known, cases[i].known);
        else assert_null(known);
    }
}

/* ---- does it belong? ------------------------------------------------------------------------------------------------ */

enum { K = 40, CAP = 4, V = K * CAP, D = 24 };

typedef struct world {
    float rows[V * D], centroids[K * D];
    uint32_t assignment[V];
    fh_tensor head;
    fh_checkpoint c;
    fh_vllm v;
} world;

/* Tokens of a cluster lie around its centroid; all of them have much in common, as the rows of real heads do. */
static world *make_world(void)
{
    world *w = calloc(1, sizeof *w);
    fh_rng r;
    assert_non_null(w);
    fh_rng_seed(&r, 3, 0);
    for (size_t i = 0; i < K * D; i++) w->centroids[i] = (float)(fh_rng_double(&r) - 0.5) + (i % D == 0 ? 3 : 0);
    for (size_t t = 0; t < V; t++) {
        w->assignment[t] = (uint32_t)(t % K);
        for (size_t j = 0; j < D; j++) w->rows[t * D + j] = w->centroids[t % K * D + j] + (float)(fh_rng_double(&r) - 0.5);
    }
    w->head = (fh_tensor){.name = "lm_head.weight",
                          .dtype = FH_F32,
                          .rank = 2,
                          .shape = {V, D},
                          .data = w->rows,
                          .bytes = sizeof w->rows,
                          .file = "model.safetensors"};
    w->c = (fh_checkpoint){.dir = (char *)(uintptr_t) "dir", .head = &w->head};
    w->v = (fh_vllm){.vocab = V, .hidden = D, .k = K, .cap = CAP, .probes = 4, .assignment = w->assignment, .centroids = w->centroids};
    return w;
}

static void a_clustering_is_known_to_belong_to_its_head(void **state)
{
    (void)state;
    world *w = make_world();
    fh_err err = {0};
    double affinity = NAN;
    if (fh_vllm_belongs(&w->v, &w->c, NULL, &affinity, &err) < 0) fail_msg("%s", err.text);
    assert_true(affinity > 0.95 && affinity <= 1);
    for (size_t i = 0; i < K * D; i++) w->centroids[i] *= 1000; /* of any length */
    assert_int_equal(fh_vllm_belongs(&w->v, &w->c, NULL, &affinity, &err), FH_OK);
    memset(w->rows, 0, 8 * D * sizeof *w->rows); /* a few rows of zeros say nothing */
    assert_int_equal(fh_vllm_belongs(&w->v, &w->c, NULL, &affinity, &err), FH_OK);
    free(w);
}

static void a_clustering_of_another_head_is_refused(void **state)
{
    (void)state;
    fh_err err = {0};
    double affinity = NAN;
    world *w = make_world();
    for (size_t t = 0; t < V; t++) w->assignment[t] = (uint32_t)(t / CAP); /* other tokens */
    assert_int_equal(fh_vllm_belongs(&w->v, &w->c, NULL, &affinity, &err), FH_ECHECK);
    assert_non_null(strstr(err.text, "does not belong to the head"));
    assert_true(affinity > 0.3 && affinity < 0.7);
    free(w);
    w = make_world();
    for (size_t c = 0; c < K / 2; c++) /* other centroids */
        for (size_t j = 0; j < D; j++) {
            float x = w->centroids[c * D + j];
            w->centroids[c * D + j] = w->centroids[(K - 1 - c) * D + j], w->centroids[(K - 1 - c) * D + j] = x;
        }
    assert_int_equal(fh_vllm_belongs(&w->v, &w->c, NULL, &affinity, &err), FH_ECHECK);
    free(w);
    w = make_world(); /* one that fits, and says that it is of another */
    assert_int_equal(fh_json_parse(&w->v.record, "{\"fingerprint\":\"00\"}", 20, "record", &err), FH_OK);
    assert_int_equal(fh_vllm_belongs(&w->v, &w->c, NULL, &affinity, &err), FH_ECHECK);
    assert_non_null(strstr(err.text, "made for another head (fingerprint 00"));
    fh_json_free(w->v.record);
    free(w);
}

/* ---- what it answers -------------------------------------------------------------------------------------------------- */

enum { TV = 8, TD = 2, TK = 4, TCAP = 2 };

typedef struct plain {
    uint16_t centroids[TK * 32], tokens[TV * 32]; /* rows of 64 bytes */
    uint32_t permutation[TV], always[1];
    fh_head_parts parts;
} plain;

static void set_row(uint16_t *row, float x, float y) { row[0] = fh_f32_to_bf16(x), row[1] = fh_f32_to_bf16(y); }

/* Cluster c holds tokens c and c + 4. */
static void make_plain(plain *p, bool always)
{
    memset(p, 0, sizeof *p);
    for (uint32_t i = 0; i < TV; i++) p->permutation[i] = i / TCAP + i % TCAP * TK;
    p->always[0] = 7;
    p->parts = (fh_head_parts){.vocab = TV,
                               .hidden = TD,
                               .clusters = TK,
                               .cap = TCAP,
                               .probes = 2,
                               .centroids = {p->centroids, FH_BF16, TK, TD, 64},
                               .tokens = {p->tokens, FH_BF16, TV, TD, 64},
                               .tokens_exact = true,
                               .permutation = p->permutation,
                               .through_bf16 = true,
                               .always = p->always,
                               .n_always = always};
    for (uint32_t c = 0; c < TK; c++) set_row(p->centroids + c * 32, 1, (float)c / 8);
    for (uint32_t i = 0; i < TV; i++) set_row(p->tokens + i * 32, 1, 0);
}

static uint32_t answer(plain *p, float x, float y, uint32_t probes, float *logit)
{
    fh_err err = {0};
    fh_head *head = NULL;
    uint32_t id = 99;
    const float h[2] = {x, y};
    if (fh_head_from_parts(&head, &p->parts, "test", &err) < 0 || fh_plain_greedy(head, h, 1, probes, &id, logit, NULL, &err) < 0)
        fail_msg("%s", err.text);
    fh_head_close(head);
    return id;
}

static void equal_logits_go_as_that_runtime_has_them(void **state)
{
    (void)state;
    plain p;
    float logit;
    make_plain(&p, false);                            /* scores rise with the cluster; all logits are equal */
    assert_int_equal(answer(&p, 1, 1, 2, &logit), 3); /* without special ids: the better cluster's first */
    assert_true(logit == 1);
    make_plain(&p, true);
    assert_int_equal(answer(&p, 1, 1, 2, &logit), 2); /* with them: the smallest id */
    assert_int_equal(answer(&p, 1, 1, 4, &logit), 0);
    set_row(p.tokens + 2 * 7 * 16, 1, 1); /* slot 7 is token 7: special, and so scored whatever is probed */
    assert_int_equal(answer(&p, 1, -1, 1, &logit), 0);
    assert_int_equal(answer(&p, 1, 1, 1, &logit), 7);
    assert_int_equal(answer(&p, 1, 1, 0, &logit), 7);
}

static void numbers_are_rounded_where_that_runtime_rounds_them(void **state)
{
    (void)state;
    plain p;
    float logit, scores[TK], logits[TV];
    fh_err err = {0};
    fh_head *head = NULL;
    make_plain(&p, true);
    /* Token 4 beats token 0 by 1/256, which bf16 does not hold beside 1: a tie, for the smaller id. */
    set_row(p.tokens, 1, 0), set_row(p.tokens + 32, 1, 1.0f / 256);
    assert_int_equal(answer(&p, 1, 1, 4, &logit), 0);
    set_row(p.tokens + 32, 1, 1.0f / 64); /* that much it does */
    assert_int_equal(answer(&p, 1, 1, 4, &logit), 4);
    assert_int_equal(fh_head_from_parts(&head, &p.parts, "test", &err), FH_OK);
    const float h[2] = {1.001f, 3};
    assert_int_equal(fh_head_cluster_scores(head, NULL, h, 1, scores, &err), FH_OK);
    assert_int_equal(fh_head_slot_logits(head, NULL, h, 1, logits, &err), FH_OK);
    for (uint32_t c = 0; c < TK; c++) {
        float exact = 1 + 3 * ((float)c / 8); /* 1.001 becomes 1 */
        assert_true(scores[c] == fh_bf16_to_f32(fh_f32_to_bf16(exact)));
    }
    assert_true(logits[1] == fh_bf16_to_f32(fh_f32_to_bf16(1 + 3.0f / 64)) && logits[2] == 1);
    fh_head_close(head);
    p.parts.through_bf16 = false;
    assert_int_equal(fh_head_from_parts(&head, &p.parts, "test", &err), FH_OK);
    assert_int_equal(fh_head_slot_logits(head, NULL, h, 1, logits, &err), FH_OK);
    assert_true(logits[2] > 1);
    fh_head_close(head);
}

/* A promise counts the worst that equal scores allow. */
static void equal_scores_are_ranked_behind(void **state)
{
    (void)state;
    plain p;
    fh_err err = {0};
    fh_head *head = NULL;
    const float h[2] = {1, 0}; /* all centroids score 1 */
    const uint32_t id = 0;
    uint32_t rank;
    make_plain(&p, false);
    assert_int_equal(fh_head_from_parts(&head, &p.parts, "test", &err), FH_OK);
    assert_int_equal(fh_cluster_ranks(head, NULL, NULL, h, NULL, 1, 1, &id, &rank, NULL, NULL, &err), FH_OK);
    assert_int_equal(rank, TK - 1);
    fh_head_close(head);
    p.parts.through_bf16 = false;
    assert_int_equal(fh_head_from_parts(&head, &p.parts, "test", &err), FH_OK);
    assert_int_equal(fh_cluster_ranks(head, NULL, NULL, h, NULL, 1, 1, &id, &rank, NULL, NULL, &err), FH_OK);
    assert_int_equal(rank, 0);
    fh_head_close(head);
}

#ifdef FH_FAULTS
/* ---- memory that runs out ---------------------------------------------------------------------------------------------- */

static void every_allocation_may_fail(void **state)
{
    (void)state;
    static const char config[] = "{\"architectures\":[\"FlashHeadLlamaForCausalLM\"],\"flash_head_cache_dir\":\"x\",\"n_probes\":2,\"flash_"
                                 "head_special_token_ids\":[0,159]}";
    static const char beside[] = "{\"format\":\"safetensors\",\"vocab_size\":160,\"hidden_size\":24}";
    static const char model[] = "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\"," FACTS "}";
    world *w = make_world();
    int64_t ids[V];
    float columns[D * K];
    const fh_st_spec specs[2] = {{"centroids", FH_F32, 4, {1, 1, D, K}}, {"cluster_assignments", FH_I64, 1, {V}}};
    for (size_t t = 0; t < V; t++) ids[t] = w->assignment[t];
    for (size_t c = 0; c < K; c++)
        for (size_t j = 0; j < D; j++) columns[j * K + c] = w->centroids[c * D + j];
    fh_err err = {0};
    fh_json *meta = fh_json_object(), *json = NULL;
    fh_json_add_string(meta, "fhtool", "{\"tool\":\"x\"}");
    size_t header;
    char *text = fh_st_header(specs, 2, meta, &header);
    assert_non_null(text);
    char *image = malloc(header + sizeof columns + sizeof ids);
    assert_non_null(image);
    memcpy(image, text, header), memcpy(image + header, columns, sizeof columns), memcpy(image + header + sizeof columns, ids, sizeof ids);
    assert_int_equal(fh_json_parse(&json, config, sizeof config - 1, "config.json", &err), FH_OK);
    bool fired = true;
    for (long n = 1; fired; n++) {
        fh_tensors *t = NULL;
        fh_vllm v = {0};
        char *out = NULL;
        double affinity;
        fh_fault_set(FH_FAULT_ALLOC, n);
        fh_status rc = fh_tensors_open_memory(&t, image, header + sizeof columns + sizeof ids, "cache", &err);
        fh_vllm_source s = {.dir = "dir",
                            .cache_name = "cache",
                            .beside_name = "beside",
                            .config = json,
                            .vocab = V,
                            .hidden = D,
                            .cache = t,
                            .beside = beside,
                            .beside_len = sizeof beside - 1};
        if (rc == FH_OK) rc = fh_vllm_parse(&v, &s, &err);
        if (rc == FH_OK) rc = fh_vllm_belongs(&v, &w->c, NULL, &affinity, &err);
        if (rc == FH_OK) rc = patch(&out, model, NULL, 0, &err);
        fired = fh_fault_fired();
        fh_fault_set(FH_FAULT_ALLOC, 0);
        assert_int_equal(rc, fired ? FH_ENOMEM : FH_OK);
        if (!fired)
            assert_true(v.k == K && v.n_special == 2 && v.special[1] == 159 && !memcmp(v.centroids, w->centroids, sizeof w->centroids) &&
                        v.record);
        fh_free(out);
        fh_vllm_free(&v);
        fh_tensors_close(t);
    }
    for (long n = 1, more = 1; more; n++) {
        plain p;
        fh_head *head = NULL;
        const float h[2] = {1, 1};
        uint32_t id = 99;
        float logit;
        make_plain(&p, true);
        fh_fault_set(FH_FAULT_ALLOC, n);
        fh_status rc = fh_head_from_parts(&head, &p.parts, "test", &err);
        if (rc == FH_OK) rc = fh_plain_greedy(head, h, 1, 2, &id, &logit, NULL, &err);
        more = fh_fault_fired();
        fh_fault_set(FH_FAULT_ALLOC, 0);
        assert_int_equal(rc, more ? FH_ENOMEM : FH_OK);
        fh_head_close(head);
    }
    fh_json_free(json);
    fh_json_free(meta);
    fh_free(text);
    free(image);
    free(w);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_other_byte_of_the_config_is_kept),
        cmocka_unit_test(architectures_are_known_by_name),
        cmocka_unit_test(a_clustering_is_known_to_belong_to_its_head),
        cmocka_unit_test(a_clustering_of_another_head_is_refused),
        cmocka_unit_test(equal_logits_go_as_that_runtime_has_them),
        cmocka_unit_test(numbers_are_rounded_where_that_runtime_rounds_them),
        cmocka_unit_test(equal_scores_are_ranked_behind),
#ifdef FH_FAULTS
        cmocka_unit_test(every_allocation_may_fail),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
