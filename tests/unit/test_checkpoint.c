/* Checkpoint directories: which tensor is the head, tied or not, and what must agree; fingerprints. */
#include "format_files.h"

/* A matrix of 3 tokens of 2 numbers each, at byte `at` of the data. */
#define ROWS(name, from, to) "\"" name "\":{\"dtype\":\"BF16\",\"shape\":[3,2],\"data_offsets\":[" #from "," #to "]}"
#define EMBED "model.embed_tokens.weight"
#define HEAD "lm_head.weight"
#define LLAMA(more) "{\"model_type\":\"llama\",\"vocab_size\":3,\"hidden_size\":2,\"intermediate_size\":4,\"num_hidden_layers\":1," \
                    "\"num_attention_heads\":1" more "}"
#define TIED ",\"tie_word_embeddings\":true"
#define UNTIED ",\"tie_word_embeddings\":false"

static fh_status open_here(files *f, fh_checkpoint *c, fh_err *err)
{
    f->said[0] = '\0';
    return fh_checkpoint_open(c, f->dir, &f->job, err);
}

static void put(files *f, const char *config, const char *header, size_t bytes)
{
    files_text(f, "config.json", config);
    files_tensors(f, "model.safetensors", header, bytes);
}

/* Both tensors with the same numbers. */
static void put_equal(files *f, const char *config)
{
    size_t size;
    uint8_t *image = files_image("{" ROWS(EMBED, 0, 12) "," ROWS(HEAD, 12, 24) "}", 24, &size);
    memcpy(image + size - 12, image + size - 24, 12);
    files_text(f, "config.json", config);
    files_write(f, "model.safetensors", image, size);
    free(image);
}

static void tied_and_untied_are_told_apart(void **state)
{
    static const struct {
        const char *config, *header;
        size_t bytes;
        const char *head, *embedding; /* NULL: none */
        bool tied;
        const char *said;
    } cases[] = {
        {LLAMA(TIED), "{" ROWS(EMBED, 0, 12) "}", 12, EMBED, EMBED, true, ""},
        {LLAMA(TIED), "{" ROWS(HEAD, 0, 12) "}", 12, HEAD, HEAD, true, ""},
        {LLAMA(UNTIED), "{" ROWS(EMBED, 0, 12) "," ROWS(HEAD, 12, 24) "}", 24, HEAD, EMBED, false, ""},
        {LLAMA(UNTIED), "{" ROWS(EMBED, 0, 12) "}", 12, EMBED, EMBED, true, "W |no head|" EMBED},
        {LLAMA(UNTIED), "{" ROWS(HEAD, 0, 12) "}", 12, HEAD, NULL, false, ""},
        {LLAMA(""), "{" ROWS(EMBED, 0, 12) "," ROWS(HEAD, 12, 24) "}", 24, HEAD, EMBED, false, "missing|false"},
        {"{\"model_type\":\"gemma3_text\",\"vocab_size\":3,\"hidden_size\":2,\"intermediate_size\":4,\"num_hidden_layers\":1}",
         "{" ROWS(EMBED, 0, 12) "}", 12, EMBED, EMBED, true, "missing|true"},
        {"{\"model_type\":\"gpt2\",\"vocab_size\":3,\"n_embd\":2,\"n_layer\":1,\"n_head\":1}", "{" ROWS("wte.weight", 0, 12) "}", 12,
         "wte.weight",
         "wte.weight", true, "missing"},
        {"{\"model_type\":\"gpt2\",\"vocab_size\":3,\"n_embd\":2,\"n_layer\":1,\"n_head\":1" TIED "}", "{" ROWS("transformer.wte.weight",
         0, 12) "}",
         12, "transformer.wte.weight", "transformer.wte.weight", true, ""},
        {"{\"model_type\":\"gpt_neox\",\"vocab_size\":3,\"hidden_size\":2,\"intermediate_size\":4,\"num_hidden_layers\":1,"
         "\"num_attention_heads\":1"
         UNTIED "}", "{" ROWS("gpt_neox.embed_in.weight", 0, 12) "," ROWS("embed_out.weight", 12, 24) "}", 24, "embed_out.weight",
         "gpt_neox.embed_in.weight", false, ""},
        {LLAMA(TIED), "{" ROWS("embed_tokens.weight", 0, 12) "}", 12, "embed_tokens.weight", "embed_tokens.weight", true, ""},
        {"{\"model_type\":\"gemma3\",\"text_config\":{\"vocab_size\":3,\"hidden_size\":2}}",
         "{" ROWS("language_model.model.embed_tokens.weight", 0, 12) "}", 12, "language_model.model.embed_tokens.weight",
         "language_model.model.embed_tokens.weight", true, "missing"},
        {"{\"model_type\":\"gemma3\",\"tie_word_embeddings\":false,\"text_config\":{\"vocab_size\":3,\"hidden_size\":2}}",
         "{" ROWS("model.language_model.embed_tokens.weight", 0, 12) "," ROWS("language_model.lm_head.weight", 12, 24) "}", 24,
         "language_model.lm_head.weight", "model.language_model.embed_tokens.weight", false, ""},
        {"{\"model_type\":\"other\"}", "{" ROWS("transformer.word_embeddings.weight", 0, 12) "}", 12, "transformer.word_embeddings.weight",
         "transformer.word_embeddings.weight", true, "missing"},
    };
    files *f = *state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fh_checkpoint c;
        fh_err err;
        put(f, cases[i].config, cases[i].header, cases[i].bytes);
        if (open_here(f, &c, &err) < 0) fail_msg("case %zu: %s", i, err.text);
        assert_string_equal(c.head->name, cases[i].head);
        if (cases[i].embedding) assert_string_equal(c.embedding->name, cases[i].embedding);
        else assert_null(c.embedding);
        assert_int_equal(c.tied, cases[i].tied);
        if (c.tied) assert_ptr_equal(c.head, c.embedding);
        assert_null(c.bias);
        assert_int_equal(c.config.vocab, 3);
        assert_int_equal(c.config.hidden, 2);
        if (!*cases[i].said) assert_string_equal(f->said, "");
        else for (char words[100], *save = NULL, *w = strtok_r(strcpy(words, cases[i].said), "|", &save); w; w = strtok_r(NULL, "|", &save))
            if (!strstr(f->said, w)) fail_msg("case %zu: '%s' without '%s'", i, f->said, w);
        fh_checkpoint_close(&c);
    }
}

static void equal_tensors_are_one_where_the_flag_ties_them(void **state)
{
    files *f = *state;
    fh_checkpoint c;
    fh_err err;
    put_equal(f, LLAMA(TIED));
    assert_int_equal(open_here(f, &c, &err), FH_OK);
    assert_true(c.tied);
    assert_ptr_equal(c.head, c.embedding);
    fh_checkpoint_close(&c);
    put_equal(f, LLAMA(UNTIED));
    assert_int_equal(open_here(f, &c, &err), FH_OK);
    assert_false(c.tied);
    fh_checkpoint_close(&c);
}

static void tied_tensors_that_differ_fail_the_check(void **state)
{
    files *f = *state;
    fh_checkpoint c;
    fh_err err;
    static const char *const configs[] = {
        LLAMA(TIED), "{\"model_type\":\"gemma2\",\"vocab_size\":3,\"hidden_size\":2,\"intermediate_size\":4,\"num_hidden_layers\":1}",
    };
    for (size_t i = 0; i < 2; i++) {
        put(f, configs[i], "{" ROWS(EMBED, 0, 12) "," ROWS(HEAD, 12, 24) "}", 24);
        assert_int_equal(open_here(f, &c, &err), FH_ECHECK);
        assert_says(&err, "tie_word_embeddings|'" EMBED "'|'" HEAD "'");
        assert_null(c.dir);
    }
}

static void sizes_must_agree_with_the_config(void **state)
{
    files *f = *state;
    fh_checkpoint c;
    fh_err err;
    static const struct { const char *config, *says; } bad[] = {
        {"{\"model_type\":\"llama\",\"vocab_size\":4,\"hidden_size\":2,\"intermediate_size\":4,\"num_hidden_layers\":1,"
         "\"num_attention_heads\":1" TIED "}",
         "vocab_size is 4|3 rows|" EMBED},
        {"{\"model_type\":\"llama\",\"vocab_size\":3,\"hidden_size\":8,\"intermediate_size\":4,\"num_hidden_layers\":1,"
         "\"num_attention_heads\":1" TIED "}",
         "hidden_size is 8|2 columns"},
        {"{\"model_type\":\"other\",\"vocab_size\":9}", "vocab_size is 9|3 rows"},
        {"{\"model_type\":\"other\",\"eos_token_id\":3}", "3"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        put(f, bad[i].config, "{" ROWS(EMBED, 0, 12) "}", 12);
        assert_int_equal(open_here(f, &c, &err), FH_ECHECK);
        assert_says(&err, bad[i].says);
    }
    put(f, "{\"model_type\":\"gpt2\",\"vocab_size\":3,\"n_embd\":4,\"n_layer\":1,\"n_head\":1}", "{" ROWS("wte.weight", 0, 12) "}", 12);
    assert_int_equal(open_here(f, &c, &err), FH_ECHECK);
    assert_says(&err, "n_embd is 4|2 columns");
    /* An untied embedding of another size is as wrong. */
    put(f, LLAMA(UNTIED), "{\"" EMBED "\":{\"dtype\":\"BF16\",\"shape\":[2,2],\"data_offsets\":[0,8]}," ROWS(HEAD, 8, 20) "}", 20);
    assert_int_equal(open_here(f, &c, &err), FH_ECHECK);
    assert_says(&err, EMBED "|2 rows");
}

static void a_head_that_cannot_be_used_is_refused_by_name(void **state)
{
    static const struct { const char *header; size_t bytes; fh_status rc; const char *says; } bad[] = {
        {"{\"" EMBED "\":{\"dtype\":\"I8\",\"shape\":[3,2],\"data_offsets\":[0,6]}}", 6, FH_EUNSUPPORTED, EMBED "|I8|BF16"},
        {"{\"" EMBED "\":{\"dtype\":\"F8_E4M3\",\"shape\":[3,2],\"data_offsets\":[0,6]}}", 6, FH_EUNSUPPORTED, "F8_E4M3"},
        {"{\"" EMBED "\":{\"dtype\":\"F9\",\"shape\":[3,2],\"data_offsets\":[0,6]}}", 6, FH_EUNSUPPORTED, "F9"},
        {"{\"" EMBED "\":{\"dtype\":\"F64\",\"shape\":[3,2],\"data_offsets\":[0,48]}}", 48, FH_EUNSUPPORTED, "F64"},
        {"{\"" EMBED "\":{\"dtype\":\"BF16\",\"shape\":[6],\"data_offsets\":[0,12]}}", 12, FH_EFORMAT, "[6]|[any, any]"},
        {"{\"" EMBED "\":{\"dtype\":\"BF16\",\"shape\":[0,2],\"data_offsets\":[0,0]}}", 0, FH_EFORMAT, "0 rows"},
        {"{\"lm_head.qweight\":{\"dtype\":\"I32\",\"shape\":[1,2],\"data_offsets\":[0,8]}," ROWS(EMBED, 8, 20) "}", 20, FH_EUNSUPPORTED,
         "lm_head.qweight|quantized"},
        {"{\"lm_head.weight_packed\":{\"dtype\":\"I32\",\"shape\":[1,2],\"data_offsets\":[0,8]}}", 8, FH_EUNSUPPORTED,
         "lm_head.weight_packed"},
        {"{" ROWS("model.norm.weight", 0, 12) "}", 12, FH_ENOTFOUND, "lm_head.weight|embed_tokens.weight|llama"},
        {"{}", 0, FH_ENOTFOUND, "lm_head.weight"},
        {"{\"lm_head.bias\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[0,4]}," ROWS(EMBED, 4, 16) "}", 16, FH_EFORMAT,
         "lm_head.bias|[2]|[3]"},
        {"{\"lm_head.bias\":{\"dtype\":\"I32\",\"shape\":[3],\"data_offsets\":[0,12]}," ROWS(EMBED, 12, 24) "}", 24, FH_EUNSUPPORTED,
         "lm_head.bias|I32"},
    };
    files *f = *state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        fh_checkpoint c;
        fh_err err;
        put(f, LLAMA(TIED), bad[i].header, bad[i].bytes);
        fh_status rc = open_here(f, &c, &err);
        if (rc != bad[i].rc) print_error("%s: %s\n", bad[i].header, fh_status_name(rc));
        assert_int_equal(rc, bad[i].rc);
        assert_says(&err, bad[i].says);
    }
}

static void bias_and_tokenizer_are_found(void **state)
{
    files *f = *state;
    fh_checkpoint c;
    fh_err err;
    put(f, LLAMA(UNTIED), "{\"lm_head.bias\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,12]}," ROWS(HEAD, 12,
        24) "," ROWS(EMBED, 24, 36) "}", 36);
    files_text(f, "tokenizer.json", "{}");
    files_text(f, "generation_config.json", "{\"eos_token_id\":2}");
    assert_int_equal(open_here(f, &c, &err), FH_OK);
    assert_string_equal(c.bias->name, "lm_head.bias");
    fh_tokenizer_text t;
    assert_int_equal(fh_tokenizer_text_read(&t, f->dir, &err), FH_OK);
    assert_string_equal(t.name, files_path(f, "tokenizer.json"));
    assert_string_equal(t.text, "{}");
    assert_null(t.config);
    fh_tokenizer_text_free(&t);
    assert_true(c.config.n_eos == 1 && c.config.eos[0] == 2);
    assert_string_equal(c.dir, f->dir);
    fh_checkpoint_close(&c);
    fh_checkpoint_close(&c); /* a closed one is a zeroed one */
    fh_checkpoint_close(NULL);
}

static void files_that_are_missing_or_odd_are_named(void **state)
{
    files *f = *state;
    fh_checkpoint c;
    fh_err err;
    assert_int_equal(open_here(f, &c, &err), FH_ENOTFOUND);
    assert_says(&err, "config.json|missing");
    files_text(f, "config.json", LLAMA(TIED));
    assert_int_equal(open_here(f, &c, &err), FH_ENOTFOUND);
    assert_says(&err, "model.safetensors");
    put(f, LLAMA(TIED), "{" ROWS(EMBED, 0, 12) "}", 12);
    files_write(f, "generation_config.json", "{}\0{", 4);
    assert_int_equal(open_here(f, &c, &err), FH_EFORMAT);
    assert_says(&err, "generation_config.json|NUL");
    files_text(f, "generation_config.json", "{}");
    files_write(f, "config.json", "{}\0{", 4);
    assert_int_equal(open_here(f, &c, &err), FH_EFORMAT);
    assert_says(&err, "/config.json|NUL");
    unlink(files_path(f, "config.json"));
    assert_int_equal(mkfifo(f->path, 0600), 0);
    assert_true(open_here(f, &c, &err) < 0);
    assert_says(&err, "config.json");
    assert_true(fh_checkpoint_open(&c, files_path(f, "none"), NULL, &err) < 0);
}

static void a_stop_is_heard(void **state)
{
    files *f = *state;
    fh_checkpoint c;
    fh_err err;
    volatile sig_atomic_t stop = 1;
    put_equal(f, LLAMA(TIED));
    f->job.stop = &stop;
    assert_int_equal(open_here(f, &c, &err), FH_EINTERRUPTED);
    f->job.stop = NULL;
}

static void every_failing_allocation_is_told(void **state)
{
    files *f = *state;
    fh_checkpoint c;
    fh_err err;
    put_equal(f, LLAMA(TIED));
    files_text(f, "generation_config.json", "{\"eos_token_id\":2}");
    files_text(f, "tokenizer.json", "{}");
    assert_survives_faults(FH_FAULT_ALLOC, open_here(f, &c, &err), FH_ENOMEM, fh_checkpoint_close(&c));
}

static void a_fingerprint_changes_with_everything_that_matters(void **state)
{
    static const uint16_t numbers[3][4] = {{1, 2, 3, 0}, {4, 5, 6, 0}, {7, 8, 9, 0}}, tight[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
    static const float bias[3] = {1, 2, 3};
    fh_rows head = {numbers, FH_BF16, 3, 3, sizeof numbers[0]}, same = {tight, FH_BF16, 3, 3, 6}, flat = {tight, FH_BF16, 1, 9, 18};
    fh_rows other = {tight, FH_F16, 3, 3, 6}, b = {bias, FH_F32, 3, 1, 4}, row = {bias, FH_F32, 1, 3, 12};
    char prints[6][65], again[65];
    fh_fingerprint(prints[0], &head, NULL, 0);
    fh_fingerprint(prints[1], &flat, NULL, 0);
    fh_fingerprint(prints[2], &other, NULL, 0);
    fh_fingerprint(prints[3], &head, &b, 0);
    fh_fingerprint(prints[4], &head, NULL, 30);
    uint16_t changed[9];
    memcpy(changed, tight, sizeof changed);
    changed[8] ^= 1;
    fh_rows last = {changed, FH_BF16, 3, 3, 6};
    fh_fingerprint(prints[5], &last, NULL, 0);
    for (int i = 0; i < 6; i++) {
        assert_int_equal(strlen(prints[i]), 64);
        for (int j = 0; j < i; j++) assert_string_not_equal(prints[i], prints[j]);
    }
    fh_fingerprint(again, &same, NULL, -0.0); /* padding and the sign of no soft-cap do not count */
    assert_string_equal(again, prints[0]);
    fh_fingerprint(again, &same, &row, 0); /* a bias may be given as a row or as a column */
    assert_string_equal(again, prints[3]);
    /* Artifacts name their model by this: it must never change. */
    assert_string_equal(prints[3], "691f342a23b88b9d0d660a4d71b12f3f6b5db18acec5c8431cc2ac1b4b0aaade");
}

static void golden_checkpoints_open(void **state)
{
    static const struct { const char *dir; uint32_t vocab, hidden, layers, heads, kv_heads,
        head_dim; bool tied; fh_dtype dtype; } golden[] = {
        {"golden/llama", 320, 64, 3, 4, 2, 16, false, FH_BF16}, {"golden/llama3-rope", 320, 64, 2, 4, 1, 32, true, FH_F32},
        {"golden/llama-linear-bias", 200, 48, 2, 3, 3, 16, false, FH_F32}, {"golden/mistral-window", 256, 64, 2, 4, 2, 16, false, FH_F32},
        {"golden/qwen2", 304, 64, 2, 4, 2, 16, true, FH_F32}, {"golden/qwen2-yarn", 304, 64, 2, 4, 2, 16, false, FH_F32},
        {"golden/qwen3", 304, 64, 3, 4, 2, 32, true, FH_BF16}, {"golden/gemma3", 400, 64, 7, 4, 1, 16, true, FH_BF16},
        {"golden/gemma3-softcap", 300, 32, 2, 2, 1, 16, true, FH_F32}, {"golden/gpt2", 257, 64, 3, 4, 4, 16, true, FH_F32},
        {"golden/pythia", 304, 64, 3, 4, 4, 16, false, FH_F16}, {"golden/neox-sequential", 256, 48, 2, 3, 3, 16, false, FH_F32},
        {"models/prose-7m", 16384, 256, 4, 4, 2, 64, true, FH_BF16},
    };
    const char *shared = files_shared();
    if (!shared) skip();
    for (size_t i = 0; i < sizeof golden / sizeof *golden; i++) {
        fh_checkpoint c;
        fh_err err;
        char *path = fh_path_join(shared, golden[i].dir);
        if (fh_checkpoint_open(&c, path, NULL, &err) < 0) fail_msg("%s", err.text);
        assert_int_equal(c.config.vocab, golden[i].vocab);
        assert_int_equal(c.config.hidden, golden[i].hidden);
        assert_int_equal(c.config.layers, golden[i].layers);
        assert_int_equal(c.config.heads, golden[i].heads);
        assert_int_equal(c.config.kv_heads, golden[i].kv_heads);
        assert_int_equal(c.config.head_dim, golden[i].head_dim);
        assert_int_equal(c.tied, golden[i].tied);
        assert_int_equal(c.head->dtype, golden[i].dtype);
        assert_true(c.config.family && c.config.body_supported);
        fh_checkpoint_close(&c);
        fh_free(path);
    }
}

#define IN_DIR(test) cmocka_unit_test_setup_teardown(test, files_setup, files_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_DIR(tied_and_untied_are_told_apart),
        IN_DIR(equal_tensors_are_one_where_the_flag_ties_them),
        IN_DIR(tied_tensors_that_differ_fail_the_check),
        IN_DIR(sizes_must_agree_with_the_config),
        IN_DIR(a_head_that_cannot_be_used_is_refused_by_name),
        IN_DIR(bias_and_tokenizer_are_found),
        IN_DIR(files_that_are_missing_or_odd_are_named),
        IN_DIR(a_stop_is_heard),
        IN_DIR(every_failing_allocation_is_told),
        cmocka_unit_test(a_fingerprint_changes_with_everything_that_matters),
        cmocka_unit_test(golden_checkpoints_open),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
