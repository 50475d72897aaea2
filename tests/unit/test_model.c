#include "tests/unit/body_cases.h"

#include <sys/stat.h>
#include <unistd.h>

/* ---- a directory of the test's own ---------------------------------------------------------------------------------- */

static char root[200];

static int make_root(void **state)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(root, sizeof root, "%s/fh_model_XXXXXX", tmp && *tmp ? tmp : "/tmp");
    return mkdtemp(root) ? 0 : -1;
}

static int remove_root(void **state)
{
    static const char *const files[] = {"bundle.fhead",          "head.fhead",  "broken.fhead",     "body.safetensors", "tokenizer.json",
                                        "tokenizer_config.json", "config.json", "model.safetensors"};
    char path[300];
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) snprintf(path, sizeof path, "%s/%s", root, files[i]), unlink(path);
    return rmdir(root);
}

static const char *at(const char *name)
{
    static char paths[4][300];
    static unsigned next;
    char *path = paths[next++ % 4];
    snprintf(path, 300, "%s/%s", root, name);
    return path;
}

/* A byte-level tokenizer of 260 ids: bytes by their place among the 256 printable stand-ins are enough for a test. */
static char *tokenizer_text(size_t *len)
{
    fh_buf b = {0};
    fh_buf_puts(&b, "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":[],\"normalizer\":null,"
                    "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":true},"
                    "\"post_processor\":null,\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"vocab\":{");
    unsigned id = 0, other = 256;
    for (unsigned c = 0; c < 256; c++) { /* printable bytes stand for themselves, the others for U+0100 and on */
        bool itself = (c >= '!' && c <= '~') || (c >= 0xa1 && c <= 0xac) || c >= 0xae;
        fh_buf_printf(&b, "%s\"\\u%04x\":%u", id ? "," : "", itself ? c : other++, id);
        id++;
    }
    fh_buf_puts(&b, "},\"merges\":[]}}");
    *len = b.len;
    return fh_buf_take(&b);
}

/* ---- a small packer, from the layout of the format ------------------------------------------------------------------------ */

enum { K = 40, CAP = 9 }; /* 320 tokens: one slot of each cluster is padding */
static const char *calibration = "null";

static void pad_rows(uint8_t *out, size_t stride, const fh_rows *rows, const uint32_t *order, size_t n)
{
    memset(out, 0, n * stride);
    for (size_t i = 0; i < n; i++)
        if (order[i] != FH_NO_TOKEN) memcpy(out + i * stride, fh_row(rows, order[i]), rows->cols * fh_dtype_size(rows->dtype));
}

static void copy_section(fh_fhead_writer *w, const char *name, fh_codec codec, const char *path)
{
    fh_err err;
    char *data;
    size_t len;
    ok(fh_file_read(&data, &len, path, 1 << 24, &err), err);
    ok(fh_fhead_add(w, name, codec, 1, data, len, &err), err);
    fh_free(data);
}

/* Every tensor but the head. */
static void write_body(const golden *g, const char *path)
{
    fh_st_spec specs[64];
    const void *data[64];
    size_t n = 0;
    fh_err err;
    for (size_t i = 0; i < fh_tensors_count(g->checkpoint.tensors); i++) {
        const fh_tensor *t = fh_tensors_at(g->checkpoint.tensors, i);
        if (t == g->checkpoint.head) continue;
        specs[n] = (fh_st_spec){.name = t->name, .dtype = t->dtype, .rank = t->rank};
        memcpy(specs[n].shape, t->shape, sizeof t->shape);
        data[n++] = t->data;
    }
    ok(fh_st_save(path, 0, specs, data, n, NULL, &err), err);
}

static void pack(const golden *g, const char *dir, const char *path, bool bundle, const char *fingerprint)
{
    fh_err err;
    fh_rows head = fh_tensor_rows(g->checkpoint.head);
    char config[300], generation[300], hex[65];
    const char *dtype = fh_dtype_name(head.dtype);
    size_t stride = fh_round_up(head.cols * fh_dtype_size(head.dtype), 64), tokenizer_len;
    uint32_t order[K * CAP], first[K];
    for (uint32_t s = 0; s < K * CAP; s++) order[s] = s % CAP == CAP - 1 ? FH_NO_TOKEN : (s % CAP) * K + s / CAP; /* not the order of ids */
    for (uint32_t c = 0; c < K; c++) first[c] = c;
    fh_fingerprint(hex, &head, NULL, 0);
    snprintf(config, sizeof config, "%s/config.json", dir);
    snprintf(generation, sizeof generation, "%s/generation_config.json", dir);
    char *encoding = fh_sprintf("{\"encoding\":\"%s\",\"group\":%zu,\"stride\":%zu,\"layout\":\"rows\",\"transform\":\"none\"}", dtype,
                                head.cols, stride);
    char *header = fh_sprintf(
        "{\"format\":\"fhead\",\"requires\":[],\"tool\":\"test\",\"provenance\":{},\"calibration\":%s,"
        "\"model\":{\"type\":\"llama\",\"vocab\":%zu,\"hidden\":%zu,\"dtype\":\"%s\","
        "\"tied\":%s,\"softcap\":0.0,\"fingerprint\":\"%s\",\"tokenizer_size\":256},"
        "\"head\":{\"k\":%d,\"cap\":%d,\"probes\":%d,\"routing\":\"mean\","
        "\"centroids\":%s,\"tokens\":%s,\"hot\":[],\"always\":[2]},\"bundle\":{\"body\":%s,\"tokenizer\":%s}}",
        calibration, head.rows, head.cols, dtype, g->checkpoint.tied ? "true" : "false", fingerprint ? fingerprint : hex, K, CAP, K, encoding, encoding,
        bundle ? "true" : "false", bundle ? "true" : "false");
    uint8_t *rows = malloc(K * CAP * stride);
    fh_fhead_writer *w;
    ok(fh_fhead_create(&w, path, 0, header, bundle ? 8 : 4, &err), err);
    pad_rows(rows, stride, &head, first, K);
    ok(fh_fhead_add(w, "head.centroids", FH_CODEC_RAW, 1, rows, K * stride, &err), err);
    pad_rows(rows, stride, &head, order, K * CAP);
    ok(fh_fhead_add(w, "head.tokens", FH_CODEC_RAW, 1, rows, K * CAP * stride, &err), err);
    ok(fh_fhead_add(w, "head.permutation", FH_CODEC_RAW, 1, order, sizeof order, &err), err);
    const uint32_t dead[] = {7};
    ok(fh_fhead_add(w, "head.dead", FH_CODEC_RAW, 1, dead, sizeof dead, &err), err);
    if (bundle) {
        copy_section(w, "body.config", FH_CODEC_RAW, config);
        copy_section(w, "body.generation", FH_CODEC_RAW, generation);
        write_body(g, at("body.safetensors"));
        copy_section(w, "body.tensors", FH_CODEC_RAW, at("body.safetensors"));
        char *tokenizer = tokenizer_text(&tokenizer_len);
        ok(fh_fhead_add(w, "body.tokenizer", FH_CODEC_ZSTD, 1, tokenizer, tokenizer_len, &err), err);
        fh_free(tokenizer);
    }
    ok(fh_fhead_commit(w, hex, &err), err);
    free(rows);
    fh_free(header);
    fh_free(encoding);
}

/* Hidden states and logits are the reference's. */
static void check_model(const fh_model *m, const golden *g)
{
    fh_err err;
    fh_kv *kv;
    const uint32_t n = (uint32_t)g->t;
    float *hidden = malloc(n * g->d * sizeof *hidden), *logits = calloc(n * g->v, sizeof *logits);
    ok(fh_kv_new(&kv, m->body, &err), err);
    ok(fh_body_forward(m->body, NULL, 1, &kv, &n, g->ids, hidden, &err), err);
    assert_true(farthest(hidden, g->hidden, n * g->d) <= 1e-4 * spread(g->hidden, n * g->d));
    ok(fh_dense_logits(&m->dense, NULL, hidden, n, logits, &err), err);
    assert_true(farthest(logits, g->logits, n * g->v) <= 1e-4 * spread(g->logits, n * g->v));
    fh_kv_free(kv);
    free(hidden);
    free(logits);
}

/* ---- what attention is relative to ------------------------------------------------------------------------------------ */

static void the_constant_of_a_layer_is_the_middle_unless_its_range_is_wide(void **state)
{
    static const struct { fh_score_range seen; fh_unified is; } cases[] = {
        {{INFINITY, -INFINITY}, {0, false}}, {{-3, 21}, {9, false}}, {{5, 5}, {5, false}}, {{-45, 45}, {0, false}}, {{-46, 45}, {-0.5f, true}},
        {{-INFINITY, 3}, {0, true}}, {{-3e38f, 3e38f}, {0, true}}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fh_unified u = fh_unified_of(cases[i].seen);
        if (!(u.constant == cases[i].is.constant) || u.wide != cases[i].is.wide) fail_msg("case %zu: %g, %s", i, (double)u.constant, u.wide ? "wide" : "not wide");
    }
}

/* ---- directories ---------------------------------------------------------------------------------------------------------- */

static void a_directory_gives_body_and_dense_head(void **state)
{
    golden g;
    fh_model m;
    fh_err err;
    assert_true(golden_open(&g, "tests/golden/llama"));
    ok(fh_model_open(&m, "tests/golden/llama", NULL, FH_MODEL_BODY | FH_MODEL_HEAD, NULL, &err), err);
    assert_null(m.head);
    assert_null(m.tokenizer);
    assert_ptr_equal(m.config, &m.checkpoint.config);
    check_model(&m, &g);
    for (size_t i = 0; i < g.v; i++) assert_int_equal(m.dense.dead[i], 0);
    fh_model_close(&m);
    fh_model_close(&m); /* a zeroed one */
    golden_close(&g);
}

static void only_what_is_needed_is_opened(void **state)
{
    fh_model m;
    fh_err err;
    ok(fh_model_open(&m, "tests/golden/llama", NULL, FH_MODEL_HEAD, NULL, &err), err);
    assert_null(m.body);
    assert_non_null(m.dense.rows.data);
    fh_model_close(&m);
    ok(fh_model_open(&m, "tests/golden/llama", NULL, FH_MODEL_BODY, NULL, &err), err);
    assert_non_null(m.body);
    assert_null(m.dense.rows.data);
    fh_model_close(&m);
}

static void a_missing_tokenizer_is_an_error_only_when_it_is_needed(void **state)
{
    fh_model m;
    fh_err err = {0};
    assert_int_equal(fh_model_open(&m, "tests/golden/llama", NULL, FH_MODEL_TOKENIZER | FH_MODEL_HEAD, NULL, &err), FH_ENOTFOUND);
    assert_non_null(strstr(err.text, "tests/golden/llama"));
    assert_null(m.name); /* nothing is left to close */
    assert_int_equal(fh_model_open(&m, at("nothing"), NULL, FH_MODEL_HEAD, NULL, &err) < 0, 1);
    assert_int_equal(fh_model_open(&m, "tests/golden/llama", "tests/golden/llama", FH_MODEL_HEAD, NULL, &err), FH_EUSAGE);
}

static void for_a_tokenizer_nothing_else_is_read(void **state)
{
    fh_model m;
    fh_err err;
    size_t len, n;
    uint32_t *ids;
    char *text = tokenizer_text(&len);
    ok(fh_file_write(at("tokenizer.json"), text, len, 0, &err), err);
    ok(fh_model_open(&m, root, NULL, FH_MODEL_TOKENIZER, NULL, &err), err); /* no config.json and no weights are there */
    assert_int_equal(fh_tokenizer_size(m.tokenizer), 256);
    ok(fh_tokenizer_encode(m.tokenizer, "A\n", 2, true, &ids, &n, &err), err);
    assert_int_equal(n, 2);
    assert_int_equal(ids[0], 'A');
    assert_int_equal(ids[1], '\n');
    fh_free(ids);
    assert_null(m.config);
    fh_model_close(&m);
    fh_free(text);
}

static void rows_past_the_tokenizer_are_dead(void **state)
{
    fh_model m;
    fh_err err;
    char *data;
    size_t len;
    static const char *const files[] = {"config.json", "model.safetensors"};
    for (size_t i = 0; i < 2; i++) {
        char from[100];
        snprintf(from, sizeof from, "tests/golden/llama/%s", files[i]);
        ok(fh_file_read(&data, &len, from, 1 << 24, &err), err);
        ok(fh_file_write(at(files[i]), data, len, 0, &err), err);
        fh_free(data);
    }
    data = tokenizer_text(&len);
    ok(fh_file_write(at("tokenizer.json"), data, len, 0, &err), err);
    ok(fh_model_open(&m, root, NULL, FH_MODEL_HEAD, NULL, &err), err);
    for (size_t i = 0; i < m.dense.vocab; i++) assert_int_equal(m.dense.dead[i], i >= 256);
    fh_model_close(&m);
    /* A tokenizer that is refused stands in the way only of those who need it. */
    static const char unigram[] = "{\"version\":\"1.0\",\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}";
    ok(fh_file_write(at("tokenizer.json"), unigram, sizeof unigram - 1, 0, &err), err);
    assert_int_equal(fh_model_open(&m, root, NULL, FH_MODEL_HEAD | FH_MODEL_TOKENIZER, NULL, &err), FH_EUNSUPPORTED);
    ok(fh_model_open(&m, root, NULL, FH_MODEL_HEAD, NULL, &err), err);
    assert_int_equal(m.dense.dead[300], 0);
    fh_model_close(&m);
    for (size_t i = 0; i < 2; i++) unlink(at(files[i]));
    fh_free(data);
}

/* ---- artifacts -------------------------------------------------------------------------------------------------------------- */

static void a_bundle_is_as_good_as_its_checkpoint(void **state)
{
    static const char *const dirs[] = {"tests/golden/llama", "tests/golden/llama3-rope"}; /* untied bf16, tied f32 */
    for (size_t i = 0; i < 2; i++) {
        golden g;
        fh_model m;
        fh_err err;
        assert_true(golden_open(&g, dirs[i]));
        assert_int_equal(g.checkpoint.tied, i == 1);
        pack(&g, dirs[i], at("bundle.fhead"), true, NULL);
        ok(fh_model_open(&m, at("bundle.fhead"), NULL, FH_MODEL_BODY | FH_MODEL_TOKENIZER | FH_MODEL_HEAD, NULL, &err), err);
        assert_non_null(m.head);
        assert_ptr_equal(m.config, &m.bundle_config);
        assert_int_equal(fh_tokenizer_size(m.tokenizer), 256);
        assert_int_equal(m.dense.dead[7], 1);
        assert_int_equal(m.dense.dead[8], 0);
        assert_non_null(m.config->generation_text);
        check_model(&m, &g);
        fh_model_close(&m);
        golden_close(&g);
    }
}

static void a_head_only_artifact_takes_its_base_model_and_no_other(void **state)
{
    golden g;
    fh_model m;
    fh_err err = {0};
    assert_true(golden_open(&g, "tests/golden/llama"));
    pack(&g, "tests/golden/llama", at("head.fhead"), false, NULL);
    ok(fh_model_open(&m, at("head.fhead"), NULL, FH_MODEL_HEAD, NULL, &err), err);
    assert_null(m.config);
    assert_non_null(m.dense.rows.data);
    fh_model_close(&m);
    assert_int_equal(fh_model_open(&m, at("head.fhead"), NULL, FH_MODEL_BODY, NULL, &err), FH_ENOTFOUND);
    assert_non_null(strstr(err.text, "--model"));
    assert_int_equal(fh_model_open(&m, at("head.fhead"), NULL, FH_MODEL_TOKENIZER, NULL, &err), FH_ENOTFOUND);
    ok(fh_model_open(&m, at("head.fhead"), "tests/golden/llama", FH_MODEL_BODY | FH_MODEL_HEAD, NULL, &err), err);
    check_model(&m, &g);
    assert_int_equal(m.dense.dead[7], 1);
    fh_model_close(&m);
    assert_int_equal(fh_model_open(&m, at("head.fhead"), "tests/golden/llama3-rope", FH_MODEL_BODY, NULL, &err), FH_ECHECK);
    assert_non_null(strstr(err.text, "llama3-rope"));
    golden_close(&g);
}

/* Recorded with the states that the calibration is of; anything else there is as if there were nothing. */
static void an_artifact_says_what_attention_is_relative_to(void **state)
{
#define FIRST "{\"low\":-2,\"high\":8,\"constant\":3,\"wide\":false}"
    static const struct { const char *range; fh_unified layer[3]; } cases[] = {
        {"[" FIRST ",{\"low\":-200,\"high\":100,\"constant\":-50,\"wide\":true}," FIRST "]", {{3, false}, {-50, true}, {3, false}}},
        {"[" FIRST "," FIRST "]", {{0, false}}}, /* a layer too few */
        {"[" FIRST "," FIRST ",{\"constant\":4}]", {{0, false}}},
        {"[" FIRST "," FIRST ",{\"constant\":1e300,\"wide\":true}]", {{0, false}}},
        {"{}", {{0, false}}}, {"7", {{0, false}}}, {"null", {{0, false}}}};
    golden g;
    fh_err err;
    assert_true(golden_open(&g, "tests/golden/llama"));
    assert_int_equal(g.checkpoint.config.layers, 3);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fh_model m;
        fh_unified got[3] = {{7, true}, {7, true}, {7, true}};
        char *text = fh_sprintf("{\"made_by\":{\"states\":{\"attention_range\":%s}}}", cases[i].range);
        calibration = text;
        pack(&g, "tests/golden/llama", at("bundle.fhead"), true, NULL);
        calibration = "null";
        fh_free(text);
        ok(fh_model_open(&m, at("bundle.fhead"), NULL, FH_MODEL_BODY | FH_MODEL_HEAD, NULL, &err), err);
        fh_model_unified(&m, got);
        for (size_t l = 0; l < 3; l++) assert_true(got[l].constant == cases[i].layer[l].constant && got[l].wide == cases[i].layer[l].wide);
        fh_model_close(&m);
    }
    golden_close(&g);
}

static void every_allocation_may_fail(void **state)
{
#ifdef FH_FAULTS
    golden g;
    assert_true(golden_open(&g, "tests/golden/llama3-rope"));
    pack(&g, "tests/golden/llama3-rope", at("bundle.fhead"), true, NULL);
    const char *const paths[] = {"tests/golden/llama3-rope", at("bundle.fhead")};
    for (size_t i = 0; i < 2; i++) {
        bool done = false;
        long n = 1;
        for (; !done; n += n < 300 ? 1 : 37) {
            fh_model m;
            fh_err err = {0};
            fh_fault_set(FH_FAULT_ALLOC, n);
            fh_status rc = fh_model_open(&m, paths[i], NULL, FH_MODEL_BODY | FH_MODEL_HEAD | (i ? FH_MODEL_TOKENIZER : 0), NULL, &err);
            done = rc == FH_OK && !fh_fault_fired();
            if (rc < 0) {
                assert_null(m.name);
                assert_true(strlen(err.text) > 0);
            }
            fh_fault_set(FH_FAULT_ALLOC, 0);
            fh_model_close(&m);
        }
        assert_true(n > 50);
    }
    golden_close(&g);
#else
    skip();
#endif
}

/* ---- dead rows ---------------------------------------------------------------------------------------------------------------- */

static void zero_and_vanishing_rows_are_dead_and_duplicates_are_not(void **state)
{
    enum { V = 1001, D = 5 };
    float rows[V][D];
    uint8_t dead[V];
    fh_status rc;
    fh_err err;
    for (size_t i = 0; i < V; i++)
        for (size_t j = 0; j < D; j++) rows[i][j] = (float)(1 + j); /* all the same */
    memset(rows[3], 0, sizeof rows[3]);
    for (size_t j = 0; j < D; j++) rows[4][j] *= 0.9e-6f, rows[5][j] *= 1.1e-6f, rows[6][j] = NAN;
    fh_rows head = {rows, FH_F32, V, D, sizeof rows[0]};
    assert_int_equal(fh_dead_rows(&head, 0, NULL, dead, &err, &rc), 2);
    assert_int_equal(rc, FH_OK);
    for (size_t i = 0; i < V; i++) assert_int_equal(dead[i], i == 3 || i == 4);
    assert_int_equal(fh_dead_rows(&head, 1000, NULL, dead, &err, &rc), 3);
    assert_int_equal(dead[1000], 1);
    assert_int_equal(fh_dead_rows(&head, 5000, NULL, dead, &err, &rc), 2);
    memset(rows, 0, sizeof rows);
    assert_int_equal(fh_dead_rows(&head, 0, NULL, dead, &err, &rc), V);
#ifdef FH_FAULTS
    fh_fault_set(FH_FAULT_ALLOC, 1);
    fh_dead_rows(&head, 0, NULL, dead, &err, &rc);
    assert_int_equal(rc, FH_ENOMEM);
    fh_fault_set(FH_FAULT_ALLOC, 0);
#endif
}

static void dense_logits_follow_the_permutation_the_bias_and_the_cap(void **state)
{
    enum { V = 300, D = 33, SLOTS = 310, N = 270 };
    static float rows[SLOTS][D], states[N][D], bias[V], logits[N * V];
    static uint32_t token_of[SLOTS];
    fh_err err;
    fh_rng rng;
    fh_rng_seed(&rng, 3, 0);
    for (size_t i = 0; i < SLOTS * D; i++) rows[i / D][i % D] = (float)(fh_rng_double(&rng) - 0.5);
    for (size_t i = 0; i < N * D; i++) states[i / D][i % D] = (float)(fh_rng_double(&rng) - 0.5);
    for (size_t i = 0; i < V; i++) bias[i] = (float)i / V;
    for (uint32_t s = 0; s < SLOTS; s++) token_of[s] = s < 10 ? FH_NO_TOKEN : (s * 7) % V; /* 7 and 300 share no factor */
    fh_dense head = {.rows = {rows, FH_F32, SLOTS, D, sizeof rows[0]}, .token_of = token_of, .bias = bias, .softcap = 2, .vocab = V};
    ok(fh_dense_logits(&head, NULL, states[0], N, logits, &err), err);
    for (size_t n = 0; n < N; n += 13) {
        for (size_t s = 10; s < SLOTS; s++) {
            double x = bias[token_of[s]];
            for (size_t j = 0; j < D; j++) x += (double)rows[s][j] * states[n][j];
            assert_true(fabs(logits[n * V + token_of[s]] - 2 * tanh(x / 2)) <= 1e-5);
        }
    }
    head = (fh_dense){.rows = {rows, FH_F32, V, D, sizeof rows[0]}, .vocab = V};
    ok(fh_dense_logits(&head, NULL, states[0], N, logits, &err), err);
    for (size_t v = 0; v < V; v++) {
        double x = 0;
        for (size_t j = 0; j < D; j++) x += (double)rows[v][j] * states[N - 1][j];
        assert_true(fabs(logits[(N - 1) * V + v] - x) <= 1e-5);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_directory_gives_body_and_dense_head),
        cmocka_unit_test(only_what_is_needed_is_opened),
        cmocka_unit_test(a_missing_tokenizer_is_an_error_only_when_it_is_needed),
        cmocka_unit_test(for_a_tokenizer_nothing_else_is_read),
        cmocka_unit_test(rows_past_the_tokenizer_are_dead),
        cmocka_unit_test(a_bundle_is_as_good_as_its_checkpoint),
        cmocka_unit_test(a_head_only_artifact_takes_its_base_model_and_no_other),
        cmocka_unit_test(the_constant_of_a_layer_is_the_middle_unless_its_range_is_wide),
        cmocka_unit_test(an_artifact_says_what_attention_is_relative_to),
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(zero_and_vanishing_rows_are_dead_and_duplicates_are_not),
        cmocka_unit_test(dense_logits_follow_the_permutation_the_bias_and_the_cap),
    };
    return cmocka_run_group_tests(tests, make_root, remove_root);
}
