/* config.json and generation_config.json: every family's keys and defaults, both layouts of RoPE, and what is refused. */
#include "format_files.h"

#include <math.h>

/* What every config needs; `more` begins with a comma or is empty. */
#define OF(type, more) \
    "{\"model_type\":\"" type "\",\"vocab_size\":100,\"hidden_size\":64,\"intermediate_size\":128,\"num_hidden_layers\":2," \
    "\"num_attention_heads\":4" more "}"
#define LLAMA(more) OF("llama", ",\"tie_word_embeddings\":true" more)

static files heard;

static fh_status parse_with(fh_config *c, const char *text, const char *generation, fh_err *err)
{
    heard.said[0] = '\0';
    fh_job job = {.message = files_hear, .ctx = &heard};
    return fh_config_parse(c, text, strlen(text), generation, "dir/config.json", &job, err);
}

static fh_config parsed(const char *text)
{
    fh_config c;
    fh_err err;
    if (parse_with(&c, text, NULL, &err) < 0) fail_msg("%s: %s", text, err.text);
    return c;
}

/* ---- families --------------------------------------------------------------------------------------------------- */

static void every_family_has_its_defaults(void **state)
{
    static const struct {
        const char *text;
        uint32_t kv_heads, head_dim, max_position, window;
        fh_act act;
        double eps, theta, partial, query_scalar, final_softcap, attn_softcap;
        bool tie, attention_bias, mlp_bias;
    } families[] = {
        {OF("llama", ""), 4, 16, 2048, 0, FH_ACT_SILU, 1e-6, 1e4, 1, 0, 0, 0, false, false, false},
        {OF("mistral", ",\"num_key_value_heads\":4"), 4, 16, 131072, 4096, FH_ACT_SILU, 1e-6, 1e4, 1, 0, 0, 0, false, false, false},
        {OF("qwen2", ",\"num_key_value_heads\":2"), 2, 16, 32768, 0, FH_ACT_SILU, 1e-6, 1e4, 1, 0, 0, 0, false, true, false},
        {OF("qwen3", ",\"num_key_value_heads\":2"), 2, 128, 32768, 0, FH_ACT_SILU, 1e-6, 1e4, 1, 0, 0, 0, false, false, false},
        {OF("gemma2", ""), 4, 256, 8192, 4096, FH_ACT_GELU_TANH, 1e-6, 1e4, 1, 256, 30, 50, true, false, false},
        {OF("gemma3_text", ""), 4, 256, 131072, 4096, FH_ACT_GELU_TANH, 1e-6, 1e6, 1, 256, 0, 0, true, false, false},
        {OF("gpt_neox", ""), 4, 16, 2048, 0, FH_ACT_GELU, 1e-5, 1e4, 0.25, 0, 0, 0, false, true, true},
    };
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        fh_config c = parsed(families[i].text);
        assert_true(c.family && c.body_supported);
        assert_int_equal(c.vocab, 100);
        assert_int_equal(c.hidden, 64);
        assert_int_equal(c.ffn, 128);
        assert_int_equal(c.layers, 2);
        assert_int_equal(c.kv_heads, families[i].kv_heads);
        assert_int_equal(c.head_dim, families[i].head_dim);
        assert_int_equal(c.max_position, families[i].max_position);
        assert_int_equal(c.sliding_window, families[i].window);
        assert_int_equal(c.act, families[i].act);
        assert_true(c.norm_eps == families[i].eps);
        assert_int_equal(c.rope.type, FH_ROPE_DEFAULT);
        assert_true(c.rope.theta == families[i].theta && c.rope.partial == families[i].partial && c.rope.factor == 1);
        assert_true(c.query_scalar == families[i].query_scalar);
        assert_true(c.final_softcap == families[i].final_softcap && c.attn_softcap == families[i].attn_softcap);
        assert_int_equal(c.tie, -1);
        assert_int_equal(c.tie_default, families[i].tie);
        assert_int_equal(c.attention_bias, families[i].attention_bias);
        assert_int_equal(c.mlp_bias, families[i].mlp_bias);
        assert_non_null(strstr(heard.said, "tie_word_embeddings")); /* the note */
        fh_config_free(&c);
    }
}

static void gpt2_has_names_of_its_own(void **state)
{
    fh_config c = parsed("{\"model_type\":\"gpt2\",\"architectures\":[\"GPT2LMHeadModel\"],\"vocab_size\":50257,\"n_embd\":768,"
        "\"n_layer\":12,"
                         "\"n_head\":12,\"n_positions\":1024,\"n_inner\":null,\"activation_function\":\"gelu_new\","
                             "\"layer_norm_epsilon\":1e-05}");
    assert_string_equal(c.model_type, "gpt2");
    assert_string_equal(c.architecture, "GPT2LMHeadModel");
    assert_int_equal(c.hidden, 768);
    assert_int_equal(c.ffn, 3072);
    assert_int_equal(c.kv_heads, 12);
    assert_int_equal(c.head_dim, 64);
    assert_int_equal(c.max_position, 1024);
    assert_int_equal(c.act, FH_ACT_GELU_TANH);
    assert_int_equal(c.rope.type, FH_ROPE_NONE);
    assert_true(c.tie_default && c.attention_bias && c.mlp_bias && c.body_supported);
    fh_config_free(&c);
    c = parsed("{\"model_type\":\"gpt2\",\"n_embd\":8,\"n_layer\":1,\"n_head\":2,\"n_inner\":20}");
    assert_int_equal(c.ffn, 20);
    assert_int_equal(c.vocab, 50257);
    fh_config_free(&c);
}

static void said_keys_win_over_defaults(void **state)
{
    fh_config c = parsed(LLAMA(",\"head_dim\":32,\"num_key_value_heads\":1,\"hidden_act\":\"gelu\",\"rms_norm_eps\":1e-5,"
        "\"attention_bias\":true,"
                               "\"mlp_bias\":true,\"max_position_embeddings\":77"));
    assert_int_equal(c.head_dim, 32);
    assert_int_equal(c.kv_heads, 1);
    assert_int_equal(c.act, FH_ACT_GELU);
    assert_true(c.norm_eps == 1e-5 && c.attention_bias && c.mlp_bias);
    assert_int_equal(c.max_position, 77);
    assert_int_equal(c.tie, 1);
    assert_string_equal(heard.said, "");
    fh_config_free(&c);
    c = parsed(OF("mistral", ",\"num_key_value_heads\":null,\"sliding_window\":null,\"head_dim\":null,\"tie_word_embeddings\":false"));
    assert_int_equal(c.kv_heads, 4);
    assert_int_equal(c.sliding_window, 0);
    assert_int_equal(c.head_dim, 16);
    assert_int_equal(c.tie, 0);
    fh_config_free(&c);
    c = parsed(OF("qwen2", ",\"num_key_value_heads\":2,\"sliding_window\":99,\"use_sliding_window\":false"));
    assert_int_equal(c.sliding_window, 0);
    fh_config_free(&c);
    c = parsed(OF("qwen2", ",\"num_key_value_heads\":2,\"sliding_window\":99,\"use_sliding_window\":true"));
    assert_int_equal(c.sliding_window, 99);
    fh_config_free(&c);
    c = parsed(OF("gemma2", ",\"final_logit_softcapping\":null,\"attn_logit_softcapping\":20.5,\"query_pre_attn_scalar\":144,"
        "\"hidden_act\":\"gelu\""));
    assert_true(c.final_softcap == 0 && c.attn_softcap == 20.5 && c.query_scalar == 144);
    assert_int_equal(c.act, FH_ACT_GELU_TANH);
    fh_config_free(&c);
    c = parsed(LLAMA(",\"final_logit_softcapping\":30"));
    assert_true(c.final_softcap == 0); /* llama has none, whatever stands there */
    fh_config_free(&c);
}

static void a_wrapper_has_its_facts_in_text_config(void **state)
{
    fh_config c = parsed("{\"model_type\":\"gemma3\",\"eos_token_id\":[1,106],\"text_config\":{\"hidden_size\":2560,"
        "\"intermediate_size\":10240,"
                         "\"num_hidden_layers\":34,\"rope_scaling\":{\"factor\":8.0,\"rope_type\":\"linear\"},\"sliding_window\":1024},"
                             "\"vision_config\":{}}");
    assert_int_equal(c.vocab, 262208);
    assert_int_equal(c.hidden, 2560);
    assert_int_equal(c.layers, 34);
    assert_int_equal(c.heads, 8);
    assert_int_equal(c.rope.type, FH_ROPE_LINEAR);
    assert_true(c.rope.factor == 8 && c.rope.theta == 1e6);
    assert_int_equal(c.rope_local.type, FH_ROPE_DEFAULT);
    assert_true(c.rope_local.theta == 1e4);
    assert_int_equal(c.n_eos, 2);
    assert_true(c.tie_default);
    assert_ptr_equal(c.model, fh_json_get(c.json, "text_config"));
    fh_config_free(&c);
}

static void a_family_not_known_gives_what_a_head_needs(void **state)
{
    fh_config c = parsed("{\"model_type\":\"newllm\",\"vocab_size\":100,\"hidden_size\":64,\"eos_token_id\":5,"
        "\"num_attention_heads\":\"odd\"}");
    assert_false(c.family);
    assert_false(c.body_supported);
    assert_non_null(strstr(c.body_why, "newllm"));
    assert_int_equal(c.vocab, 100);
    assert_int_equal(c.hidden, 64);
    assert_int_equal(c.n_eos, 1);
    fh_config_free(&c);
    c = parsed("{\"model_type\":\"bloomlike\",\"n_embd\":32}");
    assert_int_equal(c.vocab, 0);
    assert_int_equal(c.hidden, 32);
    fh_config_free(&c);
    c = parsed("{\"model_type\":\"vision\",\"text_config\":{\"vocab_size\":9,\"hidden_size\":8}}");
    assert_int_equal(c.vocab, 9);
    assert_int_equal(c.hidden, 8);
    fh_config_free(&c);
}

/* ---- RoPE ------------------------------------------------------------------------------------------------------- */

static void rope_is_read_in_both_layouts(void **state)
{
    static const char *const same[] = {
        LLAMA(",\"rope_theta\":500000,\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":32.0,\"low_freq_factor\":1.0,"
            "\"high_freq_factor\":4.0,"
              "\"original_max_position_embeddings\":8192}"),
        LLAMA(",\"rope_theta\":500000,\"rope_scaling\":{\"type\":\"llama3\",\"factor\":32,\"low_freq_factor\":1,\"high_freq_factor\":4,"
              "\"original_max_position_embeddings\":8192}"),
        LLAMA(",\"rope_parameters\":{\"rope_type\":\"llama3\",\"rope_theta\":500000.0,\"factor\":32.0,\"low_freq_factor\":1.0,"
              "\"high_freq_factor\":4.0,\"original_max_position_embeddings\":8192}"),
        LLAMA(",\"max_position_embeddings\":8192,\"rope_theta\":500000,\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":7},"
              "\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":32,\"low_freq_factor\":1,\"high_freq_factor\":4}"),
    };
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        fh_config c = parsed(same[i]);
        assert_int_equal(c.rope.type, FH_ROPE_LLAMA3);
        assert_true(c.rope.theta == 5e5 && c.rope.factor == 32 && c.rope.low_freq_factor == 1 && c.rope.high_freq_factor == 4);
        assert_int_equal(c.rope.original_max_position, 8192);
        assert_true(c.rope.partial == 1);
        assert_true(c.body_supported);
        fh_config_free(&c);
    }
    fh_config c = parsed(LLAMA(",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4.0,\"original_max_position_embeddings\":16,"
        "\"mscale\":0.5,"
                               "\"attention_factor\":1.5,\"beta_fast\":16,\"truncate\":false}"));
    assert_int_equal(c.rope.type, FH_ROPE_YARN);
    assert_true(c.rope.factor == 4 && c.rope.beta_fast == 16 && c.rope.beta_slow == 1);
    assert_true(c.rope.mscale == 0.5 && c.rope.mscale_all_dim == 0);
    assert_true(c.rope.attention_factor == 1.5 && !c.rope.truncate);
    assert_int_equal(c.rope.original_max_position, 16);
    fh_config_free(&c);
    c = parsed(LLAMA(",\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2.0}"));
    assert_int_equal(c.rope.type, FH_ROPE_DYNAMIC);
    fh_config_free(&c);
    c = parsed(LLAMA(",\"rope_scaling\":null,\"rope_theta\":null"));
    assert_int_equal(c.rope.type, FH_ROPE_DEFAULT);
    assert_true(c.rope.theta == 1e4 && c.rope.truncate);
    fh_config_free(&c);
}

static void gemma3_has_two_ropes_in_both_layouts(void **state)
{
    static const char *const same[] = {
        OF("gemma3_text", ",\"rope_theta\":2e6,\"rope_local_base_freq\":5000,\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":8}"),
        OF("gemma3_text", ",\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"linear\",\"factor\":8.0,\"rope_theta\":2000000.0},"
                          "\"sliding_attention\":{\"rope_type\":\"default\",\"rope_theta\":5000.0}}"),
    };
    for (size_t i = 0; i < 2; i++) {
        fh_config c = parsed(same[i]);
        assert_int_equal(c.rope.type, FH_ROPE_LINEAR);
        assert_true(c.rope.theta == 2e6 && c.rope.factor == 8);
        assert_int_equal(c.rope_local.type, FH_ROPE_DEFAULT);
        assert_true(c.rope_local.theta == 5000 && c.rope_local.factor == 1);
        fh_config_free(&c);
    }
}

static void neox_rotates_a_part(void **state)
{
    static const char *const same[] = {
        OF("gpt_neox", ",\"rotary_pct\":0.5,\"rotary_emb_base\":20000"),
        OF("gpt_neox", ",\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":20000.0,\"partial_rotary_factor\":0.5}"),
    };
    for (size_t i = 0; i < 2; i++) {
        fh_config c = parsed(same[i]);
        assert_true(c.rope.partial == 0.5 && c.rope.theta == 20000 && c.body_supported);
        fh_config_free(&c);
    }
}

#define LONGROPE ",\"head_dim\":4,\"rope_scaling\":{\"rope_type\":\"longrope\","

static void a_longrope_of_one_list_divides_each_frequency(void **state)
{
    fh_config c = parsed(LLAMA(LONGROPE "\"short_factor\":[1,2.5],\"long_factor\":[1,2.5],\"attention_factor\":1.25}"));
    assert_true(c.body_supported);
    assert_int_equal(c.rope.type, FH_ROPE_DIVIDED);
    assert_int_equal(fh_json_count(c.rope.divisors), 2);
    assert_true(c.rope.attention_factor == 1.25);
    fh_config_free(&c);
}

static void what_the_body_does_not_know_is_named(void **state)
{
    static const struct { const char *text, *why; } odd[] = {
        {LLAMA(",\"rope_scaling\":{\"rope_type\":\"longrope\",\"factor\":4}"), "longrope"},
        {LLAMA(LONGROPE "\"short_factor\":[1,2],\"long_factor\":[1,3],\"attention_factor\":1}"), "equal factors"},
        {LLAMA(LONGROPE "\"short_factor\":[1,2],\"long_factor\":[1],\"attention_factor\":1}"), "equal factors"},
        {LLAMA(LONGROPE "\"short_factor\":[1],\"long_factor\":[1],\"attention_factor\":1}"), "1 RoPE factors"},
        {LLAMA(LONGROPE "\"short_factor\":[1,2],\"long_factor\":[1,2]}"), "attention_factor"},
        {LLAMA(",\"hidden_act\":\"mish\""), "mish"},
        {LLAMA(",\"head_dim\":15"), "even"},
        {LLAMA(",\"rope_parameters\":{\"partial_rotary_factor\":0.5}"), "in part"},
        {OF("gpt_neox", ",\"rotary_pct\":1.5"), "share"},
        {OF("gemma3_text", ",\"use_bidirectional_attention\":true"), "both directions"},
        {"{\"model_type\":\"gpt2\",\"n_embd\":8,\"n_layer\":1,\"n_head\":2,\"add_cross_attention\":true}", "cross-attention"},
    };
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) {
        fh_config c = parsed(odd[i].text);
        assert_false(c.body_supported);
        if (!strstr(c.body_why, odd[i].why)) fail_msg("%s: %s", odd[i].text, c.body_why);
        fh_config_free(&c);
    }
}

/* ---- ids -------------------------------------------------------------------------------------------------------- */

static void eos_is_a_number_a_list_or_nothing(void **state)
{
    static const struct { const char *text; size_t n; } forms[] = {
        {LLAMA(",\"eos_token_id\":7"), 1}, {LLAMA(",\"eos_token_id\":[7,99]"), 2}, {LLAMA(",\"eos_token_id\":null"), 0}, {LLAMA(""), 0},
        {LLAMA(",\"eos_token_id\":[]"), 0},
    };
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        fh_config c = parsed(forms[i].text);
        assert_int_equal(c.n_eos, forms[i].n);
        assert_int_equal(c.n_always, forms[i].n);
        if (c.n_eos) assert_int_equal(c.eos[0], 7);
        fh_config_free(&c);
    }
}

static void generation_config_gives_ids_and_sampling(void **state)
{
    fh_config c;
    fh_err err;
    const char *generation = "{\"eos_token_id\":[9,3],\"bos_token_id\":1,\"pad_token_id\":null,\"forced_bos_token_id\":50,"
        "\"decoder_start_token_id\":3,"
                             "\"token_ids\":\"x\",\"do_sample\":true,\"temperature\":0.6,\"top_p\":0.9,\"top_k\":20,\"min_p\":0.05}";
    assert_int_equal(parse_with(&c, LLAMA(",\"eos_token_id\":7"), generation, &err), FH_OK);
    assert_int_equal(c.n_eos, 2);
    assert_true(c.eos[0] == 9 && c.eos[1] == 3);
    assert_int_equal(c.n_always, 4);
    assert_true(c.always[0] == 1 && c.always[1] == 3 && c.always[2] == 9 && c.always[3] == 50);
    assert_true(c.do_sample && c.temperature == 0.6 && c.top_p == 0.9 && c.min_p == 0.05);
    assert_int_equal(c.top_k, 20);
    assert_string_equal(c.generation_text, generation);
    fh_config_free(&c);
    assert_int_equal(parse_with(&c, LLAMA(",\"eos_token_id\":7"), "{\"eos_token_id\":null}", &err), FH_OK);
    assert_true(c.n_eos == 1 && c.eos[0] == 7 && c.n_always == 1 && c.always[0] == 7);
    assert_true(!c.do_sample && c.temperature == 1 && c.top_p == 1 && c.top_k == 0 && c.min_p == 0);
    fh_config_free(&c);
}

static void ids_that_are_no_tokens_fail_the_check(void **state)
{
    static const struct { const char *config, *generation, *says; } bad[] = {
        {LLAMA(",\"eos_token_id\":100"), NULL, "config.json|eos_token_id|100"},
        {LLAMA(",\"eos_token_id\":-1"), NULL, "-1|100"},
        {LLAMA(",\"eos_token_id\":[1,100]"), "{\"eos_token_id\":1}", "100"},
        {LLAMA(""), "{\"eos_token_id\":[2,5000000000]}", "dir/generation_config.json|5000000000"},
        {LLAMA(""), "{\"pad_token_id\":100}", "pad_token_id"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        fh_config c;
        fh_err err;
        assert_int_equal(parse_with(&c, bad[i].config, bad[i].generation, &err), FH_ECHECK);
        assert_says(&err, bad[i].says);
        assert_null(c.json);
    }
}

/* ---- refusals --------------------------------------------------------------------------------------------------- */

static void configs_that_cannot_be_are_refused(void **state)
{
    static const struct { const char *text; fh_status rc; const char *says; } bad[] = {
        {"", FH_EFORMAT, "empty"},
        {"[]", FH_EFORMAT, "no JSON object"},
        {"{}", FH_EFORMAT, "model_type"},
        {"{\"model_type\":3}", FH_EFORMAT, "model_type"},
        {"{\"model_type\":\"llama\", // hi\n}", FH_EFORMAT, "line 1, column 24|comment"},
        {"{\"model_type\":\"llama\",}", FH_EFORMAT, "trailing comma"},
        {"{\"model_type\":\"llama\",\"rope_theta\":NaN}", FH_EFORMAT, "line 1, column 36|NaN"},
        {"\xEF\xBB\xBF{}", FH_EFORMAT, "BOM|line 1, column 1"},
        {"\xFF\xFE{", FH_EFORMAT, "UTF-16"},
        {"{\"model_type\":\"llama\",\"vocab_size\":0}", FH_EFORMAT, "vocab_size"},
        {"{\"model_type\":\"llama\",\"vocab_size\":-1}", FH_EFORMAT, "vocab_size"},
        {"{\"model_type\":\"llama\",\"vocab_size\":2147483648}", FH_EFORMAT, "vocab_size|2147483647"},
        {"{\"model_type\":\"llama\",\"vocab_size\":151936.0}", FH_EFORMAT, "vocab_size|point"},
        {"{\"model_type\":\"llama\",\"vocab_size\":9007199254740993}", FH_EFORMAT, "vocab_size"},
        {"{\"model_type\":\"llama\",\"vocab_size\":\"100\"}", FH_EFORMAT, "vocab_size"},
        {"{\"model_type\":\"other\",\"vocab_size\":1e3}", FH_EFORMAT, "vocab_size"},
        {"{\"model_type\":\"llama\",\"vocab_size\":5}", FH_EFORMAT, "hidden_size|missing"},
        {"{\"model_type\":\"llama\",\"vocab_size\":5,\"hidden_size\":64.0}", FH_EFORMAT, "hidden_size"},
        {OF("llama", ",\"tie_word_embeddings\":\"true\""), FH_EFORMAT, "tie_word_embeddings|true or false"},
        {OF("llama", ",\"tie_word_embeddings\":1"), FH_EFORMAT, "tie_word_embeddings"},
        {LLAMA(",\"quantization_config\":{\"quant_method\":\"gptq\",\"bits\":4}"), FH_EUNSUPPORTED, "quantization_config|gptq"},
        {LLAMA(",\"quantization_config\":{}"), FH_EUNSUPPORTED, "quantization_config"},
        {"{\"model_type\":\"other\",\"quantization_config\":{\"quant_method\":\"fp8\"}}", FH_EUNSUPPORTED, "fp8"},
        {LLAMA(",\"num_key_value_heads\":3"), FH_EFORMAT, "4 attention heads|3"},
        {LLAMA(",\"num_key_value_heads\":0"), FH_EFORMAT, "num_key_value_heads"},
        {LLAMA(",\"head_dim\":2147483647"), FH_EFORMAT, "too many"},
        {OF("llama", ",\"num_attention_heads\":5"), FH_EFORMAT, "twice"},
        {"{\"model_type\":\"llama\",\"hidden_size\":64,\"intermediate_size\":8,\"num_hidden_layers\":1,\"num_attention_heads\":5}",
         FH_EFORMAT, "multiple"},
        {"{\"model_type\":\"llama\",\"hidden_size\":64,\"intermediate_size\":8,\"num_hidden_layers\":-1}", FH_EFORMAT, "num_hidden_layers"},
        {LLAMA(",\"hidden_act\":7"), FH_EFORMAT, "hidden_act"},
        {LLAMA(",\"rms_norm_eps\":\"x\""), FH_EFORMAT, "rms_norm_eps"},
        {LLAMA(",\"rms_norm_eps\":-1"), FH_EFORMAT, "rms_norm_eps"},
        {LLAMA(",\"attention_bias\":1"), FH_EFORMAT, "attention_bias"},
        {LLAMA(",\"rope_theta\":0"), FH_EFORMAT, "rope_theta"},
        {LLAMA(",\"rope_theta\":-5"), FH_EFORMAT, "rope_theta"},
        {LLAMA(",\"rope_scaling\":7"), FH_EFORMAT, "rope_scaling"},
        {LLAMA(",\"rope_scaling\":{\"type\":7}"), FH_EFORMAT, "type"},
        {LLAMA(",\"rope_scaling\":{\"type\":\"linear\"}"), FH_EFORMAT, "factor"},
        {LLAMA(",\"rope_scaling\":{\"type\":\"linear\",\"factor\":0}"), FH_EFORMAT, "factor"},
        {LLAMA(",\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8}"), FH_EFORMAT, "low_freq_factor"},
        {LLAMA(",\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,\"high_freq_factor\":1}"), FH_EFORMAT, "below"},
        {LLAMA(",\"rope_theta\":1,\"rope_scaling\":{\"type\":\"yarn\",\"factor\":8}"), FH_EFORMAT, "yarn"},
        {LLAMA(",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":8,\"truncate\":1}"), FH_EFORMAT, "truncate"},
        {LLAMA(",\"eos_token_id\":\"</s>\""), FH_EFORMAT, "eos_token_id"},
        {LLAMA(",\"eos_token_id\":2.0"), FH_EFORMAT, "eos_token_id"},
        {LLAMA(",\"eos_token_id\":[[1]]"), FH_EFORMAT, "eos_token_id"},
        {LLAMA(",\"eos_token_id\":[null]"), FH_EFORMAT, "eos_token_id"},
        {OF("gemma2", ",\"query_pre_attn_scalar\":0"), FH_EFORMAT, "query_pre_attn_scalar"},
        {OF("gemma2", ",\"final_logit_softcapping\":-1"), FH_EFORMAT, "final_logit_softcapping"},
        {OF("mistral", ",\"num_key_value_heads\":4,\"sliding_window\":0"), FH_EFORMAT, "sliding_window"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        fh_config c;
        fh_err err;
        fh_status rc = parse_with(&c, bad[i].text, NULL, &err);
        if (rc != bad[i].rc) print_error("%s: %s\n", bad[i].text, fh_status_name(rc));
        assert_int_equal(rc, bad[i].rc);
        assert_says(&err, "dir/config.json");
        assert_says(&err, bad[i].says);
        assert_null(c.json);
    }
}

static void generation_configs_that_cannot_be_are_refused(void **state)
{
    static const struct { const char *text, *says; } bad[] = {
        {"", "empty"}, {"[]", "no JSON object"}, {"{\"a\":1,}", "trailing comma"}, {"{\"eos_token_id\":\"x\"}", "eos_token_id"},
        {"{\"do_sample\":\"yes\"}", "do_sample"}, {"{\"temperature\":-1}", "temperature"}, {"{\"top_p\":1.5}", "top_p"},
        {"{\"min_p\":-0.5}", "min_p"}, {"{\"top_k\":-1}", "top_k"}, {"{\"top_k\":5.0}", "top_k"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        fh_config c;
        fh_err err;
        assert_int_equal(parse_with(&c, LLAMA(""), bad[i].text, &err), FH_EFORMAT);
        assert_says(&err, "dir/generation_config.json");
        assert_says(&err, bad[i].says);
    }
}

static void more_ids_than_there_is_room_for_are_refused(void **state)
{
    char text[2000] = "";
    fh_config c;
    fh_err err;
    size_t at = (size_t)snprintf(text, sizeof text, "{\"eos_token_id\":[0");
    for (int i = 1; i < FH_MAX_IDS; i++) at += (size_t)snprintf(text + at, sizeof text - at, ",%d", i);
    snprintf(text + at, sizeof text - at, "]}");
    assert_int_equal(parse_with(&c, LLAMA(""), text, &err), FH_OK);
    assert_int_equal(c.n_always, FH_MAX_IDS);
    fh_config_free(&c);
    snprintf(text + at, sizeof text - at, ",64]}");
    assert_int_equal(parse_with(&c, LLAMA(""), text, &err), FH_EUNSUPPORTED);
    snprintf(text + at, sizeof text - at, "],\"x_token_id\":64}");
    assert_int_equal(parse_with(&c, LLAMA(""), text, &err), FH_EUNSUPPORTED);
}

static void every_failing_allocation_is_told(void **state)
{
    fh_config c;
    fh_err err;
    assert_survives_faults(FH_FAULT_ALLOC, parse_with(&c, LLAMA(",\"eos_token_id\":[1,2]"), "{\"bos_token_id\":3}", &err), FH_ENOMEM,
        fh_config_free(&c));
    fh_config_free(&(fh_config){0});
    fh_config_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_family_has_its_defaults),
        cmocka_unit_test(gpt2_has_names_of_its_own),
        cmocka_unit_test(said_keys_win_over_defaults),
        cmocka_unit_test(a_wrapper_has_its_facts_in_text_config),
        cmocka_unit_test(a_family_not_known_gives_what_a_head_needs),
        cmocka_unit_test(rope_is_read_in_both_layouts),
        cmocka_unit_test(gemma3_has_two_ropes_in_both_layouts),
        cmocka_unit_test(neox_rotates_a_part),
        cmocka_unit_test(a_longrope_of_one_list_divides_each_frequency),
        cmocka_unit_test(what_the_body_does_not_know_is_named),
        cmocka_unit_test(eos_is_a_number_a_list_or_nothing),
        cmocka_unit_test(generation_config_gives_ids_and_sampling),
        cmocka_unit_test(ids_that_are_no_tokens_fail_the_check),
        cmocka_unit_test(configs_that_cannot_be_are_refused),
        cmocka_unit_test(generation_configs_that_cannot_be_are_refused),
        cmocka_unit_test(more_ids_than_there_is_room_for_are_refused),
        cmocka_unit_test(every_failing_allocation_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
