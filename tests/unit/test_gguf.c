/* GGUF: every rule of the format, every way in which files go wrong, what a checkpoint and a tokenizer made of one are. */
#include "gguf_files.h"

#include "runtime/runtime.h"

#include <math.h>

/* ---- the reader ----------------------------------------------------------------------------------------------------- */

static void values_and_tensors_are_found_by_name(void **state)
{
    image m = {0};
    size_t size, len;
    const char *s;
    uint64_t u;
    double d;
    bool b;
    fh_gguf *g;
    fh_err err;
    value_string(&m, "general.architecture", "llama");
    value_f32(&m, "eps", 1e-5f);
    value_bool(&m, "yes", true);
    value_array(&m, "words", FH_GGUF_STRING, 2);
    put_string(&m.values, "one", 3);
    put_string(&m.values, "", 0);
    value_key(&m, "minus", FH_GGUF_I8);
    put(&m.values, 0xFF, 1);
    value_key(&m, "long", FH_GGUF_U64);
    put(&m.values, UINT64_MAX, 8);
    tensor(&m, "b", FH_GGUF_T_F16, 2, 3, 2, 12, NULL);
    tensor(&m, "a", FH_GGUF_T_Q8_0, 1, 64, 0, 68, NULL);
    uint8_t *x = finish(&m, &size);
    assert_int_equal(fh_gguf_open_memory(&g, x, size, "x.gguf", &err), FH_OK);
    assert_string_equal(g->arch, "llama");
    assert_true(fh_gguf_double(fh_gguf_find(g, "eps"), 0, &d) && d == 1e-5);
    assert_true(fh_gguf_bool(fh_gguf_find(g, "yes"), 0, &b) && b);
    assert_false(fh_gguf_bool(fh_gguf_find(g, "eps"), 0, &b));
    assert_false(fh_gguf_u64(fh_gguf_find(g, "minus"), 0, &u));
    assert_false(fh_gguf_u64(fh_gguf_find(g, "long"), 1, &u));
    assert_true(fh_gguf_u64(fh_gguf_find(g, "long"), 0, &u) && u == UINT64_MAX);
    assert_false(fh_gguf_u64(NULL, 0, &u));
    assert_null(fh_gguf_find(g, "none"));
    fh_gguf_strings words = fh_gguf_strings_of(fh_gguf_find(g, "words"));
    assert_true(fh_gguf_next(&words, &s, &len) && len == 3 && !memcmp(s, "one", 3));
    assert_true(fh_gguf_next(&words, &s, &len) && len == 0);
    assert_false(fh_gguf_next(&words, &s, &len));
    const fh_gguf_tensor *t = fh_gguf_tensor_find(g, "b");
    assert_true(t->rank == 2 && t->ne[0] == 3 && t->ne[1] == 2 && t->bytes == 12 && t->offset == 0);
    assert_memory_equal(t->data, "\1\2\3\4", 4);
    assert_int_equal(fh_gguf_tensor_find(g, "a")->offset, 32);
    assert_int_equal((uintptr_t)(fh_gguf_tensor_find(g, "a")->data - t->data), 32);
    assert_null(fh_gguf_tensor_find(g, "c"));
    fh_gguf_close(g);
    fh_gguf_close(NULL);
    free(x);
}

static void float32_values_mean_the_shortest_decimal(void **state)
{
    static const struct { float f; double d; } cases[] = {
        {1e-6f, 1e-6}, {0.1f, 0.1}, {5e5f, 5e5}, {-0.0f, -0.0}, {3.4028235e38f, 3.4028235e38}, {16777217.0f, 16777216}, {1.1754944e-38f, 1.1754944e-38}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint8_t bytes[4];
        double d;
        memcpy(bytes, &cases[i].f, 4);
        fh_gguf_value v = {.type = FH_GGUF_F32, .count = 1, .data = bytes};
        assert_true(fh_gguf_double(&v, 0, &d));
        assert_true(d == cases[i].d);
    }
}

static void refused_as(fh_status code, const uint8_t *data, size_t size, const char *says)
{
    fh_gguf *g;
    fh_err err;
    uint8_t *copy = malloc(size ? size : 1); /* so that the sanitizer sees a step past the end */
    if (size) memcpy(copy, data, size);
    fh_status rc = fh_gguf_open_memory(&g, copy, size, "x.gguf", &err);
    if (rc != code) print_error("%s, expected %s: %s\n", fh_status_name(rc), says, rc < 0 ? err.text : "");
    assert_int_equal(rc, code);
    assert_null(g);
    assert_says(&err, "x.gguf");
    assert_says(&err, says);
    free(copy);
}

static void refused(image *m, const char *says)
{
    size_t size;
    uint8_t *x = finish(m, &size);
    refused_as(FH_EFORMAT, x, size, says);
    free(x);
}

static void files_that_are_no_gguf_of_version_3_are_told_apart(void **state)
{
    static const struct { const char *bytes; size_t n; fh_status code; const char *says; } bad[] = {
        {"", 0, FH_EFORMAT, "not a GGUF file|shorter"},
        {"GGU", 3, FH_EFORMAT, "not a GGUF file"},
        {"GGUF", 4, FH_EFORMAT, "4 bytes|24"},
        {"GGUF\3\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 23, FH_EFORMAT, "23 bytes"},
        {"GGUF\1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 24, FH_EUNSUPPORTED, "version 1|convert"},
        {"GGUF\2\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 24, FH_EUNSUPPORTED, "version 2"},
        {"GGUF\4\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 24, FH_EUNSUPPORTED, "version 4|newer"},
        {"GGUF\0\0\0\3\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 24, FH_EUNSUPPORTED, "big-endian|little-endian"},
        {"tjgg\3\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 24, FH_EFORMAT, "before GGUF"},
        {"version https://git-lfs.github.com/spec", 39, FH_EFORMAT, "git lfs pull"},
        {"<html></html>", 13, FH_EFORMAT, "HTML"},
        {"PK\3\4aaaaaaaa", 12, FH_EFORMAT, "pickle"},
        {"GGUF\3\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 24, FH_EFORMAT, "general.architecture"},
        {"GGUF\3\0\0\0\0\0\0\0\0\0\0\0\377\377\377\377\377\377\377\377", 24, FH_EFORMAT, "18446744073709551615 values"},
        {"GGUF\3\0\0\0\377\377\377\377\377\377\377\177\0\0\0\0\0\0\0\0", 24, FH_EFORMAT, "tensors, more than"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) refused_as(bad[i].code, (const uint8_t *)bad[i].bytes, bad[i].n, bad[i].says);
}

static void values_that_break_a_rule_are_refused(void **state)
{
    image m = {0};
    char long_key[200];
    value_string(&m, "general.architecture", "llama");
    value_u32(&m, "k", 1);
    value_u32(&m, "k", 1);
    refused(&m, "key 'k' is there twice");
    m = (image){0};
    value_u32(&m, "", 1);
    refused(&m, "value|its name is empty");
    m = (image){0};
    value_u32(&m, "a\xFFz", 1);
    refused(&m, "no UTF-8");
    m = (image){0};
    m.n_values++, put(&m.values, UINT64_MAX, 8), put(&m.values, 0, 8);
    refused(&m, "18446744073709551615 bytes|at byte");
    m = (image){0};
    m.n_values++, put(&m.values, 60000, 8), put(&m.values, 0, 8);
    refused(&m, "value at byte 32|60000 bytes|complete");
    m = (image){0};
    value_key(&m, "k", FH_GGUF_TYPES), put(&m.values, 0, 8);
    refused(&m, "value 'k'|type 13");
    m = (image){0};
    value_key(&m, "k", FH_GGUF_STRING), put(&m.values, (uint64_t)1 << 63, 8);
    refused(&m, "value 'k'|9223372036854775808 bytes");
    m = (image){0};
    value_array(&m, "k", FH_GGUF_ARRAY, 1), put(&m.values, 0, 20);
    refused(&m, "value 'k'|array of arrays");
    m = (image){0};
    value_array(&m, "k", (fh_gguf_type)99, 1), put(&m.values, 0, 8);
    refused(&m, "elements of type 99");
    m = (image){0};
    value_array(&m, "k", FH_GGUF_F64, UINT64_MAX / 8 + 2), put(&m.values, 0, 8);
    refused(&m, "array of 2305843009213693953 elements");
    m = (image){0};
    value_array(&m, "k", FH_GGUF_STRING, 1000000), put(&m.values, 0, 8);
    refused(&m, "array of 1000000 elements");
    m = (image){0};
    value_array(&m, "k", FH_GGUF_STRING, 2), put_string(&m.values, "a", 1), put(&m.values, 5000, 8);
    refused(&m, "value 'k'|a string needs 5000 bytes");
    m = (image){0};
    value_key(&m, "k", FH_GGUF_BOOL), put(&m.values, 2, 8);
    refused(&m, "a boolean is 2");
    m = (image){0};
    value_array(&m, "k", FH_GGUF_BOOL, 2), put(&m.values, 0x0301, 8);
    refused(&m, "a boolean is 3");
    m = (image){0};
    value_u32(&m, "general.alignment", 24), value_string(&m, "general.architecture", "llama");
    refused(&m, "general.alignment|power of two");
    m = (image){0};
    value_u32(&m, "general.alignment", 0), value_string(&m, "general.architecture", "llama");
    refused(&m, "general.alignment");
    m = (image){0};
    value_u32(&m, "general.architecture", 1);
    refused(&m, "'general.architecture' is no string");
    m = (image){0};
    memset(long_key, 27, sizeof long_key - 1), long_key[sizeof long_key - 1] = 0;
    value_key(&m, long_key, (fh_gguf_type)77), put(&m.values, 0, 8);
    refused(&m, "\\x1b"); /* control characters are escaped, long names cut */
}

static void tensors_that_break_a_rule_are_refused(void **state)
{
    char name[80];
    for (unsigned i = 0; i < 16; i++) {
        static const char *const says[] = {
            "tensor 'a' is there twice", "its name is empty", "80 bytes, at most 63", "5 dimensions", "no whole blocks of 32 (Q8_0)",
            "more bytes than 64 bits", "more bytes than 64 bits", "run past the end|complete", "no multiple of the alignment 32", "overlap",
            "hole", "65 bytes, at most 63", "run past the end", "bytes too many", "no multiple of the alignment 64", "no UTF-8"};
        image m = {0};
        size_t size;
        if (i == 14) m.alignment = 32, value_u32(&m, "general.alignment", 64);
        value_string(&m, "general.architecture", "llama");
        memset(name, 'n', sizeof name);
        name[i == 2 ? 79 : 65] = 0;
        if (i == 0) tensor(&m, "a", 0, 1, 2, 0, 8, NULL), tensor(&m, "a", 0, 1, 2, 0, 8, NULL);
        if (i == 1) tensor(&m, "", 0, 1, 2, 0, 8, NULL);
        if (i == 2) m.n_tensors++, put(&m.tensors, 80, 8), fh_buf_add(&m.tensors, name, 80), put(&m.tensors, 0, 40);
        if (i == 3) tensor(&m, "a", 0, 5, 2, 1, 8, NULL);
        if (i == 4) tensor(&m, "a", 8, 1, 48, 0, 51, NULL);
        if (i == 5) tensor(&m, "a", 0, 2, UINT64_MAX / 4, 9, 8, NULL);
        if (i == 6) tensor(&m, "a", 0, 2, (uint64_t)1 << 32, (uint64_t)1 << 31, 8, NULL);
        if (i == 7) tensor(&m, "a", 0, 1, 9, 0, 8, NULL), m.data.len = 32;
        if (i == 8) tensor(&m, "a", 0, 1, 2, 0, 8, NULL), m.data.len = 8, tensor(&m, "b", 0, 1, 2, 0, 8, NULL);
        if (i == 9) tensor(&m, "a", 0, 1, 16, 0, 64, NULL), m.data.len = 32, tensor(&m, "b", 0, 1, 2, 0, 8, NULL);
        if (i == 10) tensor(&m, "a", 0, 1, 2, 0, 8, NULL), put(&m.data, 0, 32), tensor(&m, "b", 0, 1, 2, 0, 8, NULL);
        if (i == 11) tensor(&m, name, 0, 1, 2, 0, 8, NULL);
        if (i == 12) tensor(&m, "a", 0, 1, 1 << 20, 0, 8, NULL);
        if (i == 13) tensor(&m, "a", 0, 1, 2, 0, 8, NULL), put(&m.data, 0, 1);
        if (i == 14) tensor(&m, "a", 0, 1, 2, 0, 8, NULL), tensor(&m, "b", 0, 1, 2, 0, 8, NULL);
        if (i == 15) tensor(&m, "\xC0\x80", 0, 1, 2, 0, 8, NULL);
        uint8_t *x = finish(&m, &size);
        refused_as(FH_EFORMAT, x, i == 7 ? size - 32 + 8 : size, says[i]);
        free(x);
    }
    image m = {0};
    size_t size;
    value_string(&m, "general.architecture", "llama");
    tensor(&m, "a", 4, 1, 32, 0, 32, NULL); /* a type that was given up */
    uint8_t *x = finish(&m, &size);
    refused_as(FH_EUNSUPPORTED, x, size, "tensor 'a' has type 4|Q8_0");
    free(x);
    m = (image){0};
    value_string(&m, "general.architecture", "llama");
    value_u32(&m, "split.count", 3);
    x = finish(&m, &size);
    refused_as(FH_EUNSUPPORTED, x, size, "part 1 of 3|merge");
    free(x);
}

static void a_file_cut_anywhere_is_refused(void **state)
{
    image m = {0};
    size_t size;
    small_tokenizer(&m);
    small_llama(&m, FH_GGUF_T_F16);
    uint8_t *x = finish(&m, &size);
    for (size_t n = 0; n < size; n += n < 1500 ? 1 : 97) {
        fh_gguf *g;
        fh_err err;
        uint8_t *copy = malloc(n ? n : 1);
        memcpy(copy, x, n);
        fh_status rc = fh_gguf_open_memory(&g, copy, n, "x.gguf", &err);
        if (rc != FH_EFORMAT) fail_msg("%zu bytes of %zu: %s", n, size, fh_status_name(rc));
        free(copy);
    }
    free(x);
}

/* ---- the checkpoint ------------------------------------------------------------------------------------------------- */

static const char *write_image(files *f, image *m, const char *name)
{
    size_t size;
    uint8_t *x = finish(m, &size);
    files_write(f, name, x, size);
    free(x);
    return f->path;
}

static void a_gguf_opens_as_a_checkpoint_and_runs(void **state)
{
    static const uint32_t types[] = {FH_GGUF_T_F32, FH_GGUF_T_F16, FH_GGUF_T_BF16, FH_GGUF_T_Q8_0};
    files *f = *state;
    for (size_t i = 0; i < 4; i++) {
        image m = {0};
        fh_model model;
        fh_err err;
        small_llama(&m, types[i]);
        small_tokenizer(&m);
        const char *path = write_image(f, &m, i == 3 ? "blob" : "x.gguf"); /* known by its first bytes too */
        if (fh_model_open(&model, path, NULL, FH_MODEL_BODY | FH_MODEL_HEAD | FH_MODEL_TOKENIZER, NULL, &err) < 0) fail_msg("%s", err.text);
        const fh_checkpoint *c = &model.checkpoint;
        assert_true(c->tied && c->head == c->embedding);
        assert_string_equal(c->head->name, "model.embed_tokens.weight");
        assert_int_equal(c->head->dtype, i == 1 ? FH_F16 : i == 2 ? FH_BF16 : FH_F32);
        assert_int_equal(c->config.n_eos, 1);
        assert_int_equal(c->config.eos[0], 2);
        assert_int_equal(fh_tokenizer_size(model.tokenizer), 6);
        if (i == 3) { /* in place; scale 0x0700, the bytes 14, 21, ... of the pattern: decoded exactly */
            const fh_tensor *v = fh_tensors_find(c->tensors, "model.layers.0.self_attn.v_proj.weight");
            assert_true(v->blocks && !v->data && c->head->blocks && !c->head->data);
            if (fh_tensors_load(c->tensors, v, NULL, &err) < 0) fail_msg("%s", err.text);
            const float *x = v->data;
            uint8_t raw[34];
            for (size_t k = 0; k < 34; k++) raw[k] = (uint8_t)((k * 7 + 5) % 61);
            float d = fh_f16_to_f32((uint16_t)(raw[0] | raw[1] << 8));
            for (size_t k = 0; k < 32; k++) assert_true(x[k] == d * (float)(int8_t)raw[2 + k]);
        }
        fh_model_close(&model);
    }
}

static void a_checkpoint_of_q8_0_holds_its_head_alone_until_the_rest_is_asked_for(void **state)
{
    files *f = *state;
    image m = {0};
    fh_checkpoint c;
    fh_err err;
    small_llama(&m, FH_GGUF_T_Q8_0);
    assert_int_equal(fh_checkpoint_open(&c, write_image(f, &m, "x.gguf"), NULL, &err), FH_OK);
    assert_non_null(c.head->data);
    const fh_tensor *v = fh_tensors_find(c.tensors, "model.layers.0.self_attn.v_proj.weight");
    assert_null(v->data);
    assert_int_equal(fh_tensors_load(c.tensors, v, NULL, &err), FH_OK);
    assert_non_null(v->data);
    assert_null(fh_tensors_find(c.tensors, "model.layers.0.mlp.up_proj.weight")->data);
    assert_int_equal(fh_tensors_load(c.tensors, NULL, NULL, &err), FH_OK);
    assert_non_null(fh_tensors_find(c.tensors, "model.layers.0.mlp.up_proj.weight")->data);
    fh_checkpoint_close(&c);
}

static void a_head_of_its_own_makes_the_model_untied_unless_it_is_the_embedding_again(void **state)
{
    files *f = *state;
    for (int same = 0; same < 2; same++) {
        image m = {0};
        fh_checkpoint c;
        fh_err err;
        uint8_t data[6 * 32 * 2];
        small_llama(&m, FH_GGUF_T_F16);
        for (size_t k = 0; k < sizeof data; k++) data[k] = (uint8_t)((k * 7 + !same) % 61);
        tensor(&m, "output.weight", FH_GGUF_T_F16, 2, 32, 6, sizeof data, data);
        assert_int_equal(fh_checkpoint_open(&c, write_image(f, &m, "x.gguf"), NULL, &err), FH_OK);
        assert_int_equal(c.tied, same);
        assert_string_equal(c.head->name, same ? "model.embed_tokens.weight" : "lm_head.weight");
        fh_checkpoint_close(&c);
    }
}

/* One value is left out of, or added to, the small model. */
static void models_that_are_not_run_are_refused_by_name(void **state)
{
    files *f = *state;
    for (unsigned i = 0; i < 14; i++) {
        static const struct { fh_status code; const char *says; } expected[] = {
            {FH_EUNSUPPORTED, "architecture 'falcon' is not read|llama, qwen2"},
            {FH_EUNSUPPORTED, "tensor 'blk.0.ffn_gate_exps.weight'|llama"},
            {FH_EUNSUPPORTED, "tensor 'blk.0.extra.weight' is none"},
            {FH_EUNSUPPORTED, "tensor 'blk.00.attn_q.weight' is none"},
            {FH_EUNSUPPORTED, "tensor 'output.weight' is Q4_K|Q8_0|safetensors"},
            {FH_EUNSUPPORTED, "'llama.rope.dimension_count' is 8"},
            {FH_EUNSUPPORTED, "'llama.rope.scaling.type' is 'longrope'"},
            {FH_EUNSUPPORTED, "values of another length"},
            {FH_EFORMAT, "'llama.rope.freq_base' is no finite number"},
            {FH_ECHECK, "'output.weight' has 5 rows"},
            {FH_ECHECK, "eos_token_id"},
            {FH_EUNSUPPORTED, "'llama.expert_count' is set"},
            {FH_EUNSUPPORTED, "'rope_freqs.weight' is not 8 numbers"},
            {FH_EFORMAT, "2 heads|blk.1.attn_q.weight"},
        };
        image m = {0};
        fh_checkpoint c;
        fh_err err;
        if (i == 0) value_string(&m, "general.architecture", "falcon"), value_u32(&m, "falcon.embedding_length", 32);
        else small_llama(&m, FH_GGUF_T_F16);
        if (i == 1) tensor(&m, "blk.0.ffn_gate_exps.weight", FH_GGUF_T_F32, 2, 2, 2, 16, NULL);
        if (i == 2) tensor(&m, "blk.0.extra.weight", FH_GGUF_T_F32, 2, 2, 2, 16, NULL);
        if (i == 3) tensor(&m, "blk.00.attn_q.weight", FH_GGUF_T_F32, 2, 2, 2, 16, NULL);
        if (i == 5) value_u32(&m, "llama.rope.dimension_count", 8);
        if (i == 6) value_string(&m, "llama.rope.scaling.type", "longrope");
        if (i == 7) value_u32(&m, "llama.attention.value_length", 24);
        if (i == 8) value_f32(&m, "llama.rope.freq_base", NAN);
        if (i == 9) tensor(&m, "output.weight", FH_GGUF_T_F16, 2, 32, 5, 320, NULL);
        if (i == 10) value_u32(&m, "tokenizer.ggml.eos_token_id", 6);
        if (i == 11) value_u32(&m, "llama.expert_count", 8);
        if (i == 12) tensor(&m, "rope_freqs.weight", FH_GGUF_T_F32, 1, 7, 0, 28, NULL);
        if (i == 13) tensor(&m, "blk.1.attn_q.weight", FH_GGUF_T_F32, 2, 1, 3, 12, NULL);
        if (i == 4) { /* 256 elements a block: the width must be one that the type allows */
            fh_buf_free(&m.values), fh_buf_free(&m.tensors), fh_buf_free(&m.data);
            m = (image){0};
            value_string(&m, "general.architecture", "llama");
            value_u32(&m, "llama.context_length", 64), value_u32(&m, "llama.embedding_length", 256), value_u32(&m, "llama.block_count", 1);
            value_u32(&m, "llama.feed_forward_length", 32), value_u32(&m, "llama.attention.head_count", 2);
            value_f32(&m, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
            tensor(&m, "token_embd.weight", FH_GGUF_T_F16, 2, 256, 2, 1024, NULL);
            tensor(&m, "output.weight", 12, 2, 256, 2, 288, NULL);
        }
        fh_status rc = fh_checkpoint_open(&c, write_image(f, &m, "x.gguf"), NULL, &err);
        if (rc != expected[i].code) print_error("case %u: %s: %s\n", i, fh_status_name(rc), rc < 0 ? err.text : "");
        assert_int_equal(rc, expected[i].code);
        assert_says(&err, "x.gguf");
        assert_says(&err, expected[i].says);
    }
}

static void what_is_no_file_is_refused_at_once(void **state)
{
    files *f = *state;
    fh_checkpoint c;
    fh_err err;
    assert_int_equal(fh_checkpoint_open(&c, files_path(f, "none.gguf"), NULL, &err), FH_ENOTFOUND);
    assert_says(&err, "none.gguf");
    assert_int_equal(mkfifo(files_path(f, "pipe.gguf"), 0600), 0);
    assert_true(fh_checkpoint_open(&c, files_path(f, "pipe.gguf"), NULL, &err) < 0);
    assert_says(&err, "pipe.gguf");
    assert_int_equal(mkdir(files_path(f, "dir.gguf"), 0700), 0);
    assert_false(fh_is_gguf(f->path));
}

/* ---- the tokenizer -------------------------------------------------------------------------------------------------- */

static void tokenizers_that_cannot_be_told_from_a_gguf_are_refused_by_name(void **state)
{
    files *f = *state;
    for (unsigned i = 0; i < 12; i++) {
        static const struct { fh_status code; const char *says; } expected[] = {
            {FH_EUNSUPPORTED, "kind 'bert'"},       {FH_EUNSUPPORTED, "'tokenizer.ggml.pre' is 'tekken'|gpt-2"},
            {FH_EUNSUPPORTED, "pre' is missing"},   {FH_EFORMAT, "tokens' is missing"},
            {FH_EFORMAT, "scores' is missing"},     {FH_EFORMAT, "merges' is missing"},
            {FH_EFORMAT, "merge 1 is not two"},     {FH_EFORMAT, "token_type|each token"},
            {FH_EFORMAT, "kind from 1 to 6"},       {FH_ECHECK, "bos_token_id' is no token"},
            {FH_EUNSUPPORTED, "token 1 is no UTF-8"}, {FH_EUNSUPPORTED, "all scores are the same"},
        };
        image m = {0};
        fh_tokenizer_text t;
        fh_err err;
        bool bytes = i >= 1 && i != 4 && i != 11;
        value_string(&m, "general.architecture", "llama");
        value_string(&m, "tokenizer.ggml.model", i == 0 ? "bert" : bytes ? "gpt2" : "llama");
        if (i != 2) value_string(&m, "tokenizer.ggml.pre", i == 1 ? "tekken" : "gpt-2");
        if (i != 3) {
            value_array(&m, "tokenizer.ggml.tokens", FH_GGUF_STRING, 5);
            put_string(&m.values, "a", 1), put_string(&m.values, i == 10 ? "\xFF" : "b", 1), put_string(&m.values, "ab", 2);
            put_string(&m.values, "abab", 4), put_string(&m.values, "aa", 2);
        }
        if (i == 11) value_array(&m, "tokenizer.ggml.scores", FH_GGUF_F32, 5), put(&m.values, 0, 20);
        if (i > 5) {
            value_array(&m, "tokenizer.ggml.merges", FH_GGUF_STRING, 2);
            put_string(&m.values, "a b", 3), put_string(&m.values, i == 6 ? "a b " : "ab ab", i == 6 ? 4 : 5);
        }
        if (i == 7) value_array(&m, "tokenizer.ggml.token_type", FH_GGUF_I32, 4), put(&m.values, 1, 16);
        if (i == 8) value_array(&m, "tokenizer.ggml.token_type", FH_GGUF_I32, 5), put(&m.values, 1, 20);
        if (i == 9) value_u32(&m, "tokenizer.ggml.bos_token_id", 5), value_bool(&m, "tokenizer.ggml.add_bos_token", true);
        fh_status rc = fh_tokenizer_text_read(&t, write_image(f, &m, "x.gguf"), &err);
        if (rc != expected[i].code) print_error("case %u: %s: %s\n", i, fh_status_name(rc), rc < 0 ? err.text : "");
        assert_int_equal(rc, expected[i].code);
        assert_says(&err, "x.gguf");
        assert_says(&err, expected[i].says);
        assert_null(t.text);
    }
}

static void rows_past_the_tokenizer_are_no_tokens(void **state)
{
    static const char *const tokens[] = {"a", "[PAD1]", "ab", "[PAD3]", "[PAD4]"};
    static const int32_t kinds[] = {1, 5, 1, 5, 5};
    files *f = *state;
    image m = {0};
    fh_err err;
    fh_tokenizer_text t;
    fh_tokenizer *tok;
    size_t len;
    value_string(&m, "general.architecture", "llama");
    value_string(&m, "tokenizer.ggml.model", "gpt2");
    value_string(&m, "tokenizer.ggml.pre", "gpt-2");
    value_array(&m, "tokenizer.ggml.tokens", FH_GGUF_STRING, 5);
    for (size_t i = 0; i < 5; i++) put_string(&m.values, tokens[i], strlen(tokens[i]));
    value_array(&m, "tokenizer.ggml.token_type", FH_GGUF_I32, 5);
    fh_buf_add(&m.values, kinds, sizeof kinds);
    value_array(&m, "tokenizer.ggml.merges", FH_GGUF_STRING, 0);
    value_string(&m, "tokenizer.chat_template", "{{ x }}");
    value_u32(&m, "tokenizer.ggml.eos_token_id", 2);
    value_u32(&m, "tokenizer.ggml.padding_token_id", UINT32_MAX); /* none */
    if (fh_tokenizer_text_read(&t, write_image(f, &m, "x.gguf"), &err) < 0) fail_msg("%s", err.text);
    assert_string_equal(t.config, "{\"eos_token\":\"ab\",\"chat_template\":\"{{ x }}\"}");
    assert_int_equal(fh_tokenizer_open(&tok, t.text, t.len, t.config, t.name, NULL, &err), FH_OK);
    assert_int_equal(fh_tokenizer_size(tok), 3);
    assert_null(fh_tokenizer_piece(tok, 1, &len));
    fh_tokenizer_close(tok);
    fh_tokenizer_text_free(&t);
}

/* The unknown token is told by its kind, too; a number that is none must not be taken for it. */
static void an_unknown_token_that_is_no_token_is_refused_or_the_first(void **state)
{
    static const struct { uint32_t id; fh_status code; } cases[] = {{6, FH_ECHECK}, {0x7FFFFFF0, FH_ECHECK}, {UINT32_MAX, FH_OK}, {0, FH_OK}};
    files *f = *state;
    for (size_t i = 0; i < 4; i++) {
        image m = {0};
        fh_err err;
        fh_tokenizer_text t;
        value_string(&m, "general.architecture", "llama");
        small_tokenizer(&m);
        value_u32(&m, "tokenizer.ggml.unknown_token_id", cases[i].id);
        assert_int_equal(fh_tokenizer_text_read(&t, write_image(f, &m, "x.gguf"), &err), cases[i].code);
        if (cases[i].code < 0) assert_says(&err, "unknown_token_id");
        else assert_non_null(strstr(t.text, "\"unk_token\":\"<unk>\""));
        fh_tokenizer_text_free(&t);
    }
}

static void a_vocabulary_made_to_merge_in_every_way_is_refused(void **state)
{
    enum { N = 600 };
    files *f = *state;
    image m = {0};
    fh_err err;
    fh_tokenizer_text t;
    char run[N + 1];
    memset(run, 'a', sizeof run);
    value_string(&m, "general.architecture", "llama");
    value_string(&m, "tokenizer.ggml.model", "llama");
    value_array(&m, "tokenizer.ggml.tokens", FH_GGUF_STRING, N);
    for (size_t i = 1; i <= N; i++) put_string(&m.values, run, i);
    value_array(&m, "tokenizer.ggml.scores", FH_GGUF_F32, N);
    for (uint32_t i = 0; i < N; i++) put(&m.values, 0x3F800000u + i, 4);
    assert_int_equal(fh_tokenizer_text_read(&t, write_image(f, &m, "x.gguf"), &err), FH_EUNSUPPORTED);
    assert_says(&err, "no real vocabulary");
}

/* ---- memory --------------------------------------------------------------------------------------------------------- */

static fh_status open_whole(const char *path, fh_err *err)
{
    fh_model model;
    fh_status rc = fh_model_open(&model, path, NULL, FH_MODEL_BODY | FH_MODEL_HEAD | FH_MODEL_TOKENIZER, NULL, err);
    if (rc >= 0) fh_model_close(&model);
    return rc;
}

static void every_allocation_may_fail(void **state)
{
    files *f = *state;
    fh_err err;
    for (int kind = 0; kind < 2; kind++) {
        image m = {0};
        small_llama(&m, kind ? FH_GGUF_T_Q8_0 : FH_GGUF_T_F16);
        if (kind) small_tokenizer(&m);
        const char *path = write_image(f, &m, "x.gguf");
        if (kind) {
            assert_survives_faults(FH_FAULT_ALLOC, open_whole(path, &err), FH_ENOMEM, (void)0);
        } else {
            fh_checkpoint c;
            assert_survives_faults(FH_FAULT_ALLOC, fh_checkpoint_open(&c, path, NULL, &err), FH_ENOMEM, fh_checkpoint_close(&c));
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_and_tensors_are_found_by_name),
        cmocka_unit_test(float32_values_mean_the_shortest_decimal),
        cmocka_unit_test(files_that_are_no_gguf_of_version_3_are_told_apart),
        cmocka_unit_test(values_that_break_a_rule_are_refused),
        cmocka_unit_test(tensors_that_break_a_rule_are_refused),
        cmocka_unit_test(a_file_cut_anywhere_is_refused),
        cmocka_unit_test_setup_teardown(a_gguf_opens_as_a_checkpoint_and_runs, files_setup, files_teardown),
        cmocka_unit_test_setup_teardown(a_checkpoint_of_q8_0_holds_its_head_alone_until_the_rest_is_asked_for, files_setup, files_teardown),
        cmocka_unit_test_setup_teardown(a_head_of_its_own_makes_the_model_untied_unless_it_is_the_embedding_again, files_setup, files_teardown),
        cmocka_unit_test_setup_teardown(models_that_are_not_run_are_refused_by_name, files_setup, files_teardown),
        cmocka_unit_test_setup_teardown(what_is_no_file_is_refused_at_once, files_setup, files_teardown),
        cmocka_unit_test_setup_teardown(tokenizers_that_cannot_be_told_from_a_gguf_are_refused_by_name, files_setup, files_teardown),
        cmocka_unit_test_setup_teardown(rows_past_the_tokenizer_are_no_tokens, files_setup, files_teardown),
        cmocka_unit_test_setup_teardown(an_unknown_token_that_is_no_token_is_refused_or_the_first, files_setup, files_teardown),
        cmocka_unit_test_setup_teardown(a_vocabulary_made_to_merge_in_every_way_is_refused, files_setup, files_teardown),
        cmocka_unit_test_setup_teardown(every_allocation_may_fail, files_setup, files_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
