/* Packing: what goes in comes out, in the order and the places that docs/fhead-format.md says. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "artifacts/artifacts.h"
#include "base/fault.h"
#include "quant/quant.h"

enum { V = 50, D = 33, K = 7, CAP = 8, SLOTS = K * CAP };

static char scratch[4096];

static const char *place(const char *name)
{
    static char path[4200];
    snprintf(path, sizeof path, "%s/%s", scratch, name);
    return path;
}

static int make_scratch(void **state)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(scratch, sizeof scratch, "%s/fhead-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    return mkdtemp(scratch) ? 0 : -1;
}

static int drop_scratch(void **state)
{
    char command[4300];
    snprintf(command, sizeof command, "rm -rf '%s'", scratch);
    return system(command);
}

/* ---- a model in memory ------------------------------------------------------------------------------------------------ */

static const char config[] =
    "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"vocab_size\":50,\"hidden_size\":33,"
    "\"num_hidden_layers\":1,\"num_attention_heads\":3,\"num_key_value_heads\":3,\"head_dim\":12,\"intermediate_size\":40,"
    "\"max_position_embeddings\":64,\"hidden_act\":\"silu\",\"rms_norm_eps\":1e-5,\"rope_theta\":10000.0,"
    "\"tie_word_embeddings\":true}";
static const char tokenizer[] =
    "{\"version\":\"1.0\",\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]},\"pad\":\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"}";

typedef struct model {
    float rows[V * D], centroids[K * D], bias[V];
    uint16_t exact[V * D];
    uint32_t permutation[SLOTS], dead[2], hot[3], always[1];
    uint8_t *c8, *t8, *image; /* int8 encodings with their strides; the checkpoint's tensors as a safetensors file */
    float c_scales[K], t_scales[SLOTS];
    size_t image_bytes;
    fh_tensors *body;
    fh_json *calibration;
    fh_head_parts parts;
    fh_pack_params params;
} model;

/* Tokens dealt out to clusters in ascending order: token t to cluster t % K. */
static void deal(model *m)
{
    for (uint32_t c = 0; c < K; c++)
        for (uint32_t i = 0; i < CAP; i++) m->permutation[c * CAP + i] = i * K + c < V ? i * K + c : FH_NO_TOKEN;
}

static void make_body(model *m)
{
    static const fh_st_spec specs[] = {{"model.embed_tokens.weight", FH_BF16, 2, {V, D}},
                                       {"model.layers.0.mask", FH_U8, 1, {3}},
                                       {"model.norm.weight", FH_BF16, 1, {D}},
                                       {"model.scale", FH_F32, 1, {2}}};
    static const float scale[2] = {1.5f, -2.0f};
    size_t header, at;
    char *text = fh_st_header(specs, 4, NULL, &header);
    fh_err err;
    assert_non_null(text);
    m->image_bytes = header + sizeof m->exact + 3 + 2 * D + sizeof scale;
    m->image = fh_aligned(m->image_bytes);
    assert_non_null(m->image);
    memcpy(m->image, text, header);
    memcpy(m->image + header, m->exact, sizeof m->exact);
    at = header + sizeof m->exact;
    memcpy(m->image + at, "\1\2\3", 3);
    memcpy(m->image + at + 3, m->exact, 2 * D);
    memcpy(m->image + at + 3 + 2 * D, scale, sizeof scale);
    fh_free(text);
    if (fh_tensors_open_memory(&m->body, m->image, m->image_bytes, "model.safetensors", &err) < 0) fail_msg("%s", err.text);
}

static model *make_model(void)
{
    static const char *const leave_out[] = {"model.embed_tokens.weight"};
    model *m = calloc(1, sizeof *m);
    fh_rng rng;
    fh_rows rows;
    fh_err err;
    assert_non_null(m);
    fh_rng_seed(&rng, 1, 0);
    for (size_t i = 0; i < V * D; i++) {
        m->exact[i] = fh_f32_to_bf16((float)(fh_rng_double(&rng) - 0.5));
        m->rows[i] = fh_bf16_to_f32(m->exact[i]);
    }
    for (size_t i = 0; i < K * D; i++) m->centroids[i] = (float)(fh_rng_double(&rng) - 0.5);
    for (size_t i = 0; i < V; i++) m->bias[i] = (float)i / 8;
    deal(m);
    m->dead[0] = 3, m->dead[1] = 49;
    m->hot[0] = 17, m->hot[1] = 4, m->hot[2] = 30;
    m->always[0] = 2;
    m->c8 = fh_aligned(K * fh_enc_stride(FH_I8, D));
    m->t8 = fh_aligned(SLOTS * fh_enc_stride(FH_I8, D));
    assert_true(m->c8 && m->t8);
    rows = (fh_rows){m->centroids, FH_F32, K, D, 4 * D};
    assert_int_equal(fh_encode_rows(FH_I8, &rows, NULL, K, NULL, NULL, m->c8, m->c_scales, NULL, &err), FH_OK);
    rows = (fh_rows){m->exact, FH_BF16, V, D, 2 * D};
    assert_int_equal(fh_encode_rows(FH_I8, &rows, m->permutation, SLOTS, NULL, NULL, m->t8, m->t_scales, NULL, &err), FH_OK);
    make_body(m);
    m->calibration = fh_json_object();
    fh_json_add_u64(m->calibration, "probes", 3);
    m->parts = (fh_head_parts){.vocab = V, .hidden = D, .clusters = K, .cap = CAP, .probes = 3,
                               .centroids = {m->c8, FH_I8, K, D, fh_enc_stride(FH_I8, D)}, .centroid_scales = m->c_scales,
                               .tokens = {m->t8, FH_I8, SLOTS, D, fh_enc_stride(FH_I8, D)}, .token_scales = m->t_scales,
                               .permutation = m->permutation, .dead = m->dead, .n_dead = 2, .bias = m->bias, .hot = m->hot, .n_hot = 3,
                               .always = m->always, .n_always = 1, .rerank = 5};
    m->params = (fh_pack_params){.input = {.name = "work",
                                           .model_type = "llama",
                                           .dtype = FH_BF16,
                                           .tied = true,
                                           .softcap = 30,
                                           .fingerprint = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
                                           .tokenizer_size = 48,
                                           .head = &m->parts,
                                           .routing = "mean",
                                           .exact = rows,
                                           .calibration = m->calibration,
                                           .config = {config, sizeof config - 1},
                                           .tokenizer = {tokenizer, sizeof tokenizer - 1},
                                           .body = m->body,
                                           .leave_out = leave_out,
                                           .n_leave_out = 1}};
    return m;
}

static void drop_model(model *m)
{
    fh_tensors_close(m->body);
    fh_json_free(m->calibration);
    fh_free(m->image);
    fh_free(m->c8);
    fh_free(m->t8);
    free(m);
}

static void head_only(model *m)
{
    m->params.input.body = NULL;
    m->params.input.tokenizer.text = NULL;
    m->params.input.n_leave_out = 0;
    m->params.input.exact.data = NULL;
    m->parts.rerank = 0;
}

static fh_status pack(model *m, const char *name, const fh_job *job, fh_pack_report *report, fh_err *err)
{
    char *path = fh_strdup(place(name));
    fh_status rc;
    assert_non_null(path);
    m->params.path = path;
    rc = fh_pack(&m->params, job, report, err);
    m->params.path = NULL;
    fh_free(path);
    return rc;
}

static fh_fhead *packed(model *m, const char *name)
{
    fh_fhead *f = NULL;
    fh_err err = {0};
    if (pack(m, name, NULL, NULL, &err) < 0 || fh_fhead_open(&f, place(name), &err) < 0) fail_msg("%s", err.text);
    return f;
}

static void refused(model *m, fh_status status, const char *says)
{
    fh_err err = {0};
    fh_status rc = pack(m, "refused.fhead", NULL, NULL, &err);
    if (rc != status || !strstr(err.text, says))
        fail_msg("wanted %s with '%s', got %s: %s", fh_status_name(status), says, fh_status_name(rc), err.text);
    assert_false(fh_file_exists(place("refused.fhead")));
}

/* ---- tests -------------------------------------------------------------------------------------------------------------- */

static void what_is_packed_reads_back(void **state)
{
    model *m = make_model();
    fh_pack_report report;
    fh_fhead *f = NULL;
    fh_head_layout h;
    fh_err err = {0};
    if (pack(m, "a.fhead", NULL, &report, &err) < 0) fail_msg("%s", err.text);
    assert_true(report.bundled && report.calibrated);
    if (fh_fhead_open(&f, place("a.fhead"), &err) < 0 || fh_fhead_verify(f, NULL, &err) < 0 || fh_fhead_check_head(f, &h, &err) < 0)
        fail_msg("%s", err.text);
    assert_string_equal(report.digest, fh_fhead_digest(f));
    assert_int_equal(report.sections, fh_fhead_sections(f));
    assert_int_equal(h.vocab, V);
    assert_int_equal(h.hidden, D);
    assert_int_equal(h.k, K);
    assert_int_equal(h.cap, CAP);
    assert_int_equal(h.probes, 3);
    assert_int_equal(h.tokenizer_size, 48);
    assert_true(h.softcap == 30.0 && h.tied && h.has_body && h.has_tokenizer && h.calibrated && !h.tokens_exact);
    assert_memory_equal(h.permutation, m->permutation, sizeof m->permutation);
    assert_memory_equal(h.centroids.data, m->c8, K * h.centroids.stride);
    assert_memory_equal(h.tokens.data, m->t8, SLOTS * h.tokens.stride);
    assert_memory_equal(h.centroid_scales, m->c_scales, sizeof m->c_scales);
    assert_memory_equal(h.token_scales, m->t_scales, sizeof m->t_scales);
    assert_memory_equal(h.bias, m->bias, sizeof m->bias);
    assert_memory_equal(h.hot, m->hot, sizeof m->hot);
    assert_memory_equal(h.always, m->always, sizeof m->always);
    assert_memory_equal(h.dead, m->dead, sizeof m->dead);
    assert_int_equal(h.exact.dtype, FH_BF16);
    assert_int_equal(h.exact.stride, 128);
    assert_int_equal(h.rerank, 5);
    for (size_t s = 0; s < SLOTS; s++)
        if (m->permutation[s] != FH_NO_TOKEN) assert_memory_equal(fh_row(&h.exact, s), m->exact + m->permutation[s] * D, 2 * D);
    fh_fhead_close(f);
    drop_model(m);
}

static void packing_twice_gives_equal_bytes_whatever_the_stride_and_padding_of_the_source(void **state)
{
    model *m = make_model();
    char *files[2];
    size_t sizes[2], wide = fh_enc_stride(FH_I8, D) + 37;
    uint8_t *apart = malloc(SLOTS * wide);
    fh_err err;
    assert_non_null(apart);
    memset(apart, 0x55, SLOTS * wide);
    for (int k = 0; k < 2; k++) {
        fh_fhead_close(packed(m, "b.fhead"));
        assert_int_equal(fh_file_read(&files[k], &sizes[k], place("b.fhead"), 1 << 24, &err), FH_OK);
        for (size_t s = 0; s < SLOTS; s++) { /* rows of empty slots hold anything */
            if (m->permutation[s] == FH_NO_TOKEN) m->t_scales[s] = 9;
            else memcpy(apart + s * wide, m->t8 + s * fh_enc_stride(FH_I8, D), D);
        }
        m->parts.tokens.data = apart;
        m->parts.tokens.stride = wide;
    }
    assert_int_equal(sizes[0], sizes[1]);
    assert_memory_equal(files[0], files[1], sizes[0]);
    fh_free(files[0]);
    fh_free(files[1]);
    free(apart);
    drop_model(m);
}

static void the_body_has_every_tensor_but_the_head(void **state)
{
    model *m = make_model();
    fh_fhead *f = packed(m, "c.fhead");
    fh_tensors *body = NULL;
    const void *data;
    size_t bytes;
    fh_err err;
    assert_int_equal(fh_fhead_data(f, "body.tensors", &data, &bytes, &err), FH_OK);
    if (fh_tensors_open_memory(&body, data, bytes, "body.tensors", &err) < 0) fail_msg("%s", err.text);
    assert_int_equal(fh_tensors_count(body), 3);
    assert_null(fh_tensors_find(body, "model.embed_tokens.weight"));
    assert_memory_equal(fh_tensors_find(body, "model.norm.weight")->data, m->exact, 2 * D);
    assert_memory_equal(fh_tensors_find(body, "model.layers.0.mask")->data, "\1\2\3", 3);
    assert_true(((const float *)fh_tensors_find(body, "model.scale")->data)[1] == -2.0f);
    for (size_t i = 0; i < 3; i++) { /* which the image that came in did not have */
        const fh_tensor *t = fh_tensors_at(body, i);
        assert_int_equal((uintptr_t)t->data % fh_dtype_size(t->dtype), 0);
    }
    assert_int_equal(fh_fhead_data(f, "body.config", &data, &bytes, &err), FH_OK);
    assert_int_equal(bytes, sizeof config - 1);
    assert_memory_equal(data, config, bytes);
    assert_int_equal(fh_fhead_data(f, "body.tokenizer", &data, &bytes, &err), FH_OK);
    assert_int_equal(bytes, sizeof tokenizer - 1);
    assert_memory_equal(data, tokenizer, bytes);
    assert_null(fh_fhead_find(f, "body.generation"));
    fh_tensors_close(body);
    fh_fhead_close(f);
    drop_model(m);
}

static void a_head_only_file_has_no_body(void **state)
{
    model *m = make_model();
    fh_fhead *f;
    fh_head_layout h;
    fh_err err = {0};
    head_only(m);
    m->params.input.calibration = NULL;
    f = packed(m, "d.fhead");
    if (fh_fhead_verify(f, NULL, &err) < 0 || fh_fhead_check_head(f, &h, &err) < 0) fail_msg("%s", err.text);
    assert_true(!h.has_body && !h.has_tokenizer && !h.calibrated && !h.exact.data);
    for (size_t i = 0; i < fh_fhead_sections(f); i++) assert_memory_equal(fh_fhead_section(f, i)->name, "head.", 5);
    fh_fhead_close(f);
    drop_model(m);
}

static void rows_of_the_checkpoints_dtype_are_stored_once(void **state)
{
    model *m = make_model();
    uint16_t *slots = calloc(SLOTS, 2 * D);
    fh_fhead *f;
    fh_head_layout h;
    fh_err err = {0};
    assert_non_null(slots);
    for (size_t s = 0; s < SLOTS; s++)
        if (m->permutation[s] != FH_NO_TOKEN) memcpy(slots + s * D, m->exact + m->permutation[s] * D, 2 * D);
    m->parts.tokens = (fh_rows){slots, FH_BF16, SLOTS, D, 2 * D};
    m->parts.token_scales = NULL;
    m->parts.rerank = 0;
    f = packed(m, "e.fhead");
    if (fh_fhead_verify(f, NULL, &err) < 0 || fh_fhead_check_head(f, &h, &err) < 0) fail_msg("%s", err.text);
    assert_true(h.tokens_exact);
    assert_null(fh_fhead_find(f, "head.exact"));
    assert_null(fh_fhead_find(f, "head.token_scales"));
    fh_fhead_close(f);
    drop_model(m);
    free(slots);
}

static void what_cannot_be_a_head_is_not_packed(void **state)
{
    model *m = make_model();
    static const char *const absent[] = {"lm_head.weight"};
    float keep;
    m->permutation[0] = 1;
    refused(m, FH_ECHECK, "work: section head.permutation: slot 8 (cluster 1): token 1");
    deal(m);
    keep = m->t_scales[4], m->t_scales[4] = NAN;
    refused(m, FH_ECHECK, "head.token_scales: the scale of row 4");
    m->t_scales[4] = keep;
    memset(m->c8 + 64, 0, 64);
    refused(m, FH_ECHECK, "the centroid of cluster 1 is zero");
    m->c8[64] = 1;
    m->t8[64 * 9] = 0x80;
    refused(m, FH_ECHECK, "row 9 (token 8)");
    m->t8[64 * 9] = 1;
    m->parts.probes = K + 1;
    refused(m, FH_ECHECK, "probes");
    m->parts.probes = 1;
    m->hot[0] = V;
    refused(m, FH_ECHECK, "/head/hot/0");
    m->hot[0] = 1;
    m->parts.token_scales = NULL;
    refused(m, FH_EUSAGE, "token rows");
    m->parts.token_scales = m->t_scales;
    m->parts.centroids.rows--;
    refused(m, FH_EUSAGE, "centroids");
    m->parts.centroids.rows++;
    m->params.input.exact.rows--;
    refused(m, FH_EUSAGE, "exact rows");
    m->params.input.exact.rows++;
    m->params.input.fingerprint = "1234";
    refused(m, FH_EUSAGE, "fingerprint");
    m->params.input.fingerprint = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
    m->params.input.leave_out = absent;
    refused(m, FH_EUSAGE, "lm_head.weight");
    m->parts.rerank = FH_MAX_RERANK + 1;
    refused(m, FH_EUSAGE, "scored again");
    m->parts.rerank = 1;
    m->params.input.exact.data = NULL;
    refused(m, FH_EUSAGE, "scored again");
    m->parts.rerank = 0;
    refused(m, FH_EUSAGE, "exact rows are not packed");
    m->params.input.n_leave_out = 0;
    m->params.input.config.text = NULL;
    refused(m, FH_EUSAGE, "config.json");
    drop_model(m);
}

static void packing_can_be_stopped_and_does_not_clobber(void **state)
{
    static const volatile sig_atomic_t stop = 1;
    const fh_job job = {.stop = &stop};
    model *m = make_model();
    fh_err err;
    char *old;
    size_t size;
    assert_int_equal(fh_file_write(place("old.fhead"), "old", 3, 0, &err), FH_OK);
    assert_int_equal(pack(m, "old.fhead", &job, NULL, &err), FH_EINTERRUPTED);
    m->params.flags = FH_NO_CLOBBER;
    assert_true(pack(m, "old.fhead", NULL, NULL, &err) < 0);
    assert_int_equal(fh_file_read(&old, &size, place("old.fhead"), 100, &err), FH_OK);
    assert_string_equal(old, "old");
    fh_free(old);
    drop_model(m);
}

static void inspection_says_what_is_there(void **state)
{
    model *m = make_model();
    fh_fhead *f = packed(m, "i.fhead");
    fh_json *j = NULL;
    const fh_json *sections, *last = NULL;
    uint64_t n = 0;
    double bytes;
    bool b = false;
    fh_err err = {0};
    if (fh_artifact_info(f, &j, &err) < 0) fail_msg("%s", err.text);
    assert_string_equal(fh_json_string(fh_json_get(j, "format")), "1.1");
    assert_string_equal(fh_json_string(fh_json_get(j, "digest")), fh_fhead_digest(f));
    assert_string_equal(fh_json_string(fh_json_get(j, "centroids")), "int8");
    assert_string_equal(fh_json_string(fh_json_get(j, "model_type")), "llama");
    assert_string_equal(fh_json_string(fh_json_get(j, "dtype")), "bf16");
    assert_true(fh_json_u64(fh_json_get(j, "hot"), &n) && n == 3);
    assert_true(fh_json_u64(fh_json_get(j, "vocab"), &n) && n == V);
    assert_true(fh_json_u64(fh_json_get(j, "rerank"), &n) && n == 5);
    assert_true(fh_json_double(fh_json_get(j, "step_bytes"), &bytes) && bytes == K * 68 + (3 * CAP + 3 + 1) * 68 + 5 * 128);
    assert_true(fh_json_bool(fh_json_get(j, "bundled"), &b) && b);
    sections = fh_json_get(j, "sections");
    assert_int_equal(fh_json_count(sections), fh_fhead_sections(f));
    for (const fh_json *s = fh_json_first(sections); s; s = fh_json_next(s)) last = s;
    assert_string_equal(fh_json_string(fh_json_get(last, "name")), "body.tensors");
    assert_string_equal(fh_json_string(fh_json_get(last, "codec")), "raw");
    assert_int_equal(strlen(fh_json_string(fh_json_get(last, "digest"))), 64);
    assert_true(fh_json_u64(fh_json_get(last, "bytes"), &n) && n == fh_fhead_find(f, "body.tensors")->bytes);
    fh_json_free(j);
    fh_fhead_close(f);
    drop_model(m);
}

static void a_bundle_whose_config_is_of_another_model_fails_verification(void **state)
{
    model *m = make_model();
    fh_fhead *f = packed(m, "v.fhead");
    char other[sizeof config];
    fh_err err = {0};
    if (fh_artifact_verify(f, NULL, &err) < 0) fail_msg("%s", err.text);
    fh_fhead_close(f);
    memcpy(other, config, sizeof config);
    memcpy(strstr(other, "\"vocab_size\":50") + 13, "51", 2);
    m->params.input.config.text = other;
    f = packed(m, "v.fhead");
    assert_int_equal(fh_artifact_verify(f, NULL, &err), FH_ECHECK);
    assert_true(strstr(err.text, "51") && strstr(err.text, "50"));
    fh_fhead_close(f);
    m->params.input.config = (fh_pack_text){"{", 1};
    f = packed(m, "v.fhead");
    assert_true(fh_artifact_verify(f, NULL, &err) < 0);
    assert_non_null(strstr(err.text, "body.config"));
    fh_fhead_close(f);
    drop_model(m);
}

/* The reader in Python knows the document alone. */
static void an_independent_reader_sees_the_same(void **state)
{
    static const char *const texts[] = {"format", "digest", "fingerprint", "centroids", "tokens"}, *const numbers[] = {"vocab",  "hidden",
                                                                                                                       "k",      "cap",
                                                                                                                       "probes", "hot"};
    model *m = make_model();
    fh_fhead *f;
    fh_json *ours = NULL, *theirs = NULL;
    char command[4400], text[20000];
    uint64_t sum = 0, n, other;
    size_t len;
    FILE *pipe;
    fh_err err = {0};
    if (system("python3 -c '' >/dev/null 2>&1") != 0) {
        print_message("skipped: no python3 here\n");
        drop_model(m);
        skip();
    }
    f = packed(m, "p.fhead");
    snprintf(command, sizeof command, "python3 tests/fhead_reader.py --verify '%s'", place("p.fhead"));
    pipe = popen(command, "r");
    assert_non_null(pipe);
    len = fread(text, 1, sizeof text, pipe);
    assert_int_equal(pclose(pipe), 0);
    if (fh_json_parse(&theirs, text, len, "reader", &err) < 0 || fh_artifact_info(f, &ours, &err) < 0) fail_msg("%s", err.text);
    for (size_t i = 0; i < 5; i++)
        assert_string_equal(fh_json_string(fh_json_get(ours, texts[i])), fh_json_string(fh_json_get(theirs, texts[i])));
    for (size_t i = 0; i < 6; i++)
        assert_true(fh_json_u64(fh_json_get(ours, numbers[i]), &n) && fh_json_u64(fh_json_get(theirs, numbers[i]), &other) && n == other);
    for (uint32_t s = 0; s < SLOTS; s++)
        if (m->permutation[s] != FH_NO_TOKEN) sum += (uint64_t)(s + 1) * m->permutation[s];
    assert_true(fh_json_u64(fh_json_get(theirs, "permutation_checksum"), &n) && n == (sum & 0xffffffffu));
    assert_int_equal(fh_json_count(fh_json_get(ours, "sections")), fh_json_count(fh_json_get(theirs, "sections")));
    fh_json_free(ours);
    fh_json_free(theirs);
    fh_fhead_close(f);
    drop_model(m);
}

#ifdef FH_FAULTS
static void any_failing_step_of_packing_leaves_the_old_file(void **state)
{
    model *m = make_model();
    for (int kind = 0; kind < FH_FAULT_KINDS; kind++)
        for (long n = 1;; n++) {
            char *old;
            size_t size;
            fh_err err = {0};
            fh_status rc;
            bool fired;
            assert_int_equal(fh_file_write(place("old.fhead"), "old", 3, 0, &err), FH_OK);
            fh_fault_set(kind, n);
            rc = fh_pack(&(fh_pack_params){place("old.fhead"), 0, m->params.input}, NULL, NULL, &err);
            fired = fh_fault_fired();
            fh_fault_set(kind, 0);
            if (!fired) {
                assert_int_equal(rc, FH_OK);
                break;
            }
            assert_true(n < 10000);
            if (rc >= 0) continue; /* a step whose failure does no harm */
            assert_int_equal(fh_file_read(&old, &size, place("old.fhead"), 1 << 20, &err), FH_OK);
            assert_string_equal(old, "old");
            fh_free(old);
        }
    drop_model(m);
}

static void any_failing_allocation_of_inspection_and_verification_is_reported(void **state)
{
    model *m = make_model();
    fh_fhead_close(packed(m, "n.fhead"));
    for (long n = 1;; n++) {
        fh_fhead *f = NULL;
        fh_json *j = NULL;
        fh_err err = {0};
        fh_status rc;
        bool fired;
        fh_fault_set(FH_FAULT_ALLOC, n);
        rc = fh_fhead_open(&f, place("n.fhead"), &err);
        if (rc >= 0) rc = fh_artifact_info(f, &j, &err);
        if (rc >= 0) rc = fh_artifact_verify(f, NULL, &err);
        fired = fh_fault_fired();
        fh_fault_set(FH_FAULT_ALLOC, 0);
        fh_json_free(j);
        fh_fhead_close(f);
        if (!fired) {
            assert_int_equal(rc, FH_OK);
            break;
        }
        if (rc != FH_ENOMEM) fail_msg("allocation %ld: %s: %s", n, fh_status_name(rc), err.text);
        assert_true(n < 10000);
    }
    drop_model(m);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_packed_reads_back),
        cmocka_unit_test(packing_twice_gives_equal_bytes_whatever_the_stride_and_padding_of_the_source),
        cmocka_unit_test(the_body_has_every_tensor_but_the_head),
        cmocka_unit_test(a_head_only_file_has_no_body),
        cmocka_unit_test(rows_of_the_checkpoints_dtype_are_stored_once),
        cmocka_unit_test(what_cannot_be_a_head_is_not_packed),
        cmocka_unit_test(packing_can_be_stopped_and_does_not_clobber),
        cmocka_unit_test(inspection_says_what_is_there),
        cmocka_unit_test(a_bundle_whose_config_is_of_another_model_fails_verification),
        cmocka_unit_test(an_independent_reader_sees_the_same),
#ifdef FH_FAULTS
        cmocka_unit_test(any_failing_step_of_packing_leaves_the_old_file),
        cmocka_unit_test(any_failing_allocation_of_inspection_and_verification_is_reported),
#endif
    };
    return cmocka_run_group_tests_name("pack", tests, make_scratch, drop_scratch);
}
