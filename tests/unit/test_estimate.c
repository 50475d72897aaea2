/* estimate: what is counted is what is there; a stand-in has the real one's shape; times are of the right things. */
#include "tests/unit/body_cases.h"

#include "quant/quant.h"
#include "validate/estimate.h"

#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

static const fh_shape small = {.model_type = "llama", .vocab = 800, .hidden = 96, .layers = 3, .heads = 6, .kv_heads = 2, .head_dim = 16, .ffn = 160,
                               .max_position = 256, .gated = true, .dtype = FH_BF16, .body_dtype = FH_BF16, .tied = true};

/* ---- counting --------------------------------------------------------------------------------------------------------- */

static double body_without_cache(const fh_cost *c)
{
    return c[FH_COST_EMBED].bytes + c[FH_COST_QKV].bytes + c[FH_COST_OUTPUT].bytes + c[FH_COST_MLP].bytes;
}

static void a_body_is_counted_as_it_is_read(void **state)
{
    static const struct { const char *name; double least; } all[] = { /* biases and further norms are left out: much in models this small */
        {"llama", 1}, {"llama3-rope", 1}, {"llama-linear-bias", 0.8}, {"qwen3", 0.98}, {"qwen2", 0.9}, {"gemma3", 0.9}, {"mistral-window", 1}, {"gpt2", 0.8},
        {"pythia", 0.8}, {"neox-sequential", 0.8},
    };
    size_t seen = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        char here[256], there[256];
        golden g;
        fh_shape s;
        fh_setting own;
        fh_cost costs[FH_COSTS];
        fh_err err;
        snprintf(here, sizeof here, "tests/golden/%s", all[i].name);
        snprintf(there, sizeof there, "golden/%s", all[i].name);
        const char *dir = here;
        if (!golden_open(&g, here)) {
            dir = shared(there);
            if (!golden_open(&g, dir)) continue;
        }
        ok(fh_shape_read(&s, &own, dir, NULL, &err), err);
        assert_true(s.headers);
        ok(fh_setting_fill(&own, &s, &err), err);
        fh_costs(costs, &s, &own, 1);
        double counted = body_without_cache(costs), read = (double)fh_body_bytes(g.body);
        if (!(counted <= read && counted >= all[i].least * read)) fail_msg("%s: counted %.0f, read %.0f", all[i].name, counted, read);
        assert_true(costs[FH_COST_DENSE].bytes == (double)g.v * (double)g.d * (double)fh_dtype_size(s.dtype));
        assert_true(costs[FH_COST_DENSE].flops == 2.0 * (double)g.v * (double)g.d);
        golden_close(&g);
        seen++;
    }
    assert_true(seen >= 4);
}

static void a_window_limits_the_keys_in_sight_and_sharing_heads_their_bytes(void **state)
{
    fh_shape s = small;
    fh_setting h = {.k = 50, .cap = 16, .probes = 4, .centroids = FH_I8, .tokens = FH_I8};
    fh_cost costs[FH_COSTS];
    s.windowed = 2, s.window = 10;
    fh_kv_cost kv = fh_kv_costs(&s, 100);
    assert_true(kv.token_bytes == 3 * 2 * 2 * 16 * 4);
    assert_true(kv.token_bytes_16 == 3 * 2 * 2 * 16 * 2);
    assert_true(kv.in_sight_bytes == (1 * 100 + 2 * 10) * 2 * 2 * 16 * 4);
    assert_true(fh_kv_costs(&s, 7).in_sight_bytes == 3 * 7 * 2 * 2 * 16 * 4);
    fh_costs(costs, &s, &h, 100);
    assert_true(costs[FH_COST_ATTENTION].bytes == kv.in_sight_bytes);
    assert_true(costs[FH_COST_ATTENTION].flops == 120.0 * 6 * 16 * 4);
}

static void which_layers_have_a_window_is_what_each_family_says(void **state)
{
    static const struct { const char *config; uint32_t windowed, window; } rows[] = {
        {"\"model_type\":\"gemma3_text\",\"sliding_window\":512", 10, 512}, /* all but every sixth of 12 */
        {"\"model_type\":\"gemma2\",\"sliding_window\":64", 6, 64},
        {"\"model_type\":\"mistral\",\"sliding_window\":32", 12, 32},
        {"\"model_type\":\"mistral\",\"sliding_window\":null", 0, 0},
        {"\"model_type\":\"qwen2\",\"sliding_window\":32,\"use_sliding_window\":false", 0, 0},
        {"\"model_type\":\"qwen2\",\"sliding_window\":32,\"use_sliding_window\":true,\"max_window_layers\":9", 3, 32},
        {"\"model_type\":\"llama\"", 0, 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char dir[] = "/tmp/fh-shape-XXXXXX", path[64];
        assert_non_null(mkdtemp(dir));
        snprintf(path, sizeof path, "%s/config.json", dir);
        char *text = fh_sprintf("{%s,\"vocab_size\":512,\"hidden_size\":64,\"intermediate_size\":128,\"num_hidden_layers\":12,\"num_attention_heads\":4,"
                                "\"num_key_value_heads\":2,\"head_dim\":16,\"torch_dtype\":\"float16\"}", rows[i].config);
        fh_shape s;
        fh_setting own;
        fh_err err;
        ok(fh_file_write(path, text, strlen(text), 0, &err), err);
        ok(fh_shape_read(&s, &own, dir, NULL, &err), err);
        bool right = s.windowed == rows[i].windowed && (!s.windowed || s.window == rows[i].window);
        if (!right) fail_msg("%s: %u layers see %u", rows[i].config, s.windowed, s.window);
        assert_int_equal(s.layers, 12);
        assert_int_equal(s.dtype, FH_F16);
        assert_false(s.headers);
        fh_free(text);
        unlink(path), rmdir(dir);
    }
}

static void a_config_that_says_too_little_is_refused_or_its_head_alone_is_counted(void **state)
{
    static const struct { const char *config; fh_status rc; } rows[] = {
        {"{\"model_type\":\"mamba\",\"vocab_size\":512,\"hidden_size\":64}", FH_OK},
        {"{\"model_type\":\"mamba\",\"hidden_size\":64}", FH_EUNSUPPORTED},
        {"{", FH_EFORMAT},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char dir[] = "/tmp/fh-shape-XXXXXX", path[64];
        fh_shape s;
        fh_setting own;
        fh_err err;
        assert_non_null(mkdtemp(dir));
        snprintf(path, sizeof path, "%s/config.json", dir);
        ok(fh_file_write(path, rows[i].config, strlen(rows[i].config), 0, &err), err);
        assert_int_equal(fh_shape_read(&s, &own, dir, NULL, &err), rows[i].rc);
        if (rows[i].rc == FH_OK) assert_int_equal(s.layers, 0), assert_int_equal(s.vocab, 512);
        unlink(path), rmdir(dir);
    }
    fh_shape s;
    fh_setting own;
    fh_err err;
    assert_true(fh_shape_read(&s, &own, "/nowhere/at/all", NULL, &err) < 0);
}

static void a_setting_is_completed_and_held_to_its_range(void **state)
{
    fh_err err;
    fh_setting s = {.rerank = FH_RERANK_USUAL, .centroids = FH_I8, .tokens = FH_I8};
    ok(fh_setting_fill(&s, &small, &err), err);
    assert_int_equal(s.k, 50), assert_int_equal(s.cap, 16), assert_int_equal(s.probes, 3), assert_int_equal(s.rerank, 16);
    s = (fh_setting){.cap = 7, .rerank = FH_RERANK_USUAL, .tokens = FH_I4};
    ok(fh_setting_fill(&s, &small, &err), err);
    assert_int_equal(s.k, 115), assert_int_equal(s.rerank, 32);
    s = (fh_setting){.k = 100, .rerank = FH_RERANK_USUAL, .tokens = FH_BF16};
    ok(fh_setting_fill(&s, &small, &err), err);
    assert_int_equal(s.cap, 8), assert_int_equal(s.rerank, 0); /* the rows are the exact ones */
    s = (fh_setting){.k = 50, .probes = 51};
    assert_int_equal(fh_setting_fill(&s, &small, &err), FH_EUSAGE);
    s = (fh_setting){.k = 801};
    assert_int_equal(fh_setting_fill(&s, &small, &err), FH_EUSAGE);
    s = (fh_setting){.k = 1};
    assert_int_equal(fh_setting_fill(&s, &small, &err), FH_EUSAGE);
}

static void a_stage_takes_the_longer_of_reading_and_computing(void **state)
{
    const fh_cost c[2] = {{"a", 100, 10}, {"b", 10, 1000}};
    assert_true(fh_cost_seconds(c, 0, 1, 10, 100) == 10 + 10);
    assert_true(fh_cost_seconds(c, 0, 1, 10, 0) == 10 + 1);
    assert_true(fh_cost_seconds(c, 1, 1, 10, 10) == 100);
    size_t n;
    const fh_machine *m = fh_machines(&n);
    assert_true(n >= 8);
    for (size_t i = 0; i < n; i++) {
        assert_true(m[i].gigabytes_per_second > 0 && m[i].teraflops >= 0 && strlen(m[i].source) > 10);
        for (size_t j = 0; j < i; j++) assert_string_not_equal(m[i].name, m[j].name);
    }
}

static void times_between_probes_are_on_a_line(void **state)
{
    const fh_head_time curve[] = {{8, 10}, {16, 18}, {64, 114}};
    assert_true(fh_head_time_at(curve, 1, 500) == 10);
    assert_true(fh_head_time_at(curve, 3, 8) == 10);
    assert_true(fh_head_time_at(curve, 3, 12) == 14);
    assert_true(fh_head_time_at(curve, 3, 16) == 18);
    assert_true(fh_head_time_at(curve, 3, 40) == 66);
    assert_true(fh_head_time_at(curve, 3, 80) == 146);
    assert_true(fh_head_time_at(curve, 3, 4) == 6);
}

/* ---- the stand-in ------------------------------------------------------------------------------------------------------ */

static size_t files_in(const char *dir)
{
    size_t n = 0;
    DIR *d = opendir(dir);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) n += e->d_name[0] != '.' || strstr(e->d_name, ".tmp");
    closedir(d);
    return n;
}

static void a_stand_in_has_the_shape_reads_the_bytes_and_speaks(void **state)
{
    static const fh_dtype enc[][2] = {{FH_I8, FH_I8}, {FH_I4, FH_I4}, {FH_I4, FH_I8}, {FH_BF16, FH_BF16}, {FH_F16, FH_F32}};
    char dir[] = "/tmp/fh-stand-XXXXXX";
    assert_non_null(mkdtemp(dir));
    for (size_t i = 0; i < sizeof enc / sizeof *enc; i++) {
        fh_setting s = {.k = 50, .probes = 7, .rerank = FH_RERANK_USUAL, .extras = 5, .centroids = enc[i][0], .tokens = enc[i][1]};
        fh_stand_in in;
        fh_cost costs[FH_COSTS], sums[FH_WHOLES];
        fh_err err;
        ok(fh_setting_fill(&s, &small, &err), err);
        ok(fh_stand_in_open(&in, &small, &s, s.probes, 1 << 30, 1 << 30, dir, NULL, &err), err);
        assert_int_equal(files_in(dir), 0); /* gone at once */
        assert_int_equal(in.clusters, 50), assert_int_equal(in.layers, 3);
        for (s.probes = 1; s.probes <= 50; s.probes += s.probes < 2 ? 1 : 16) { /* one cluster and the extras are fewer rows than are scored again of int4 */
            fh_costs(costs, &small, &s, 1);
            fh_cost_sums(sums, costs);
            assert_true(sums[FH_WHOLE_FLASH].bytes == fh_head_step_bytes(in.model.head, s.probes, 5));
        }
        assert_true(sums[FH_WHOLE_DENSE].bytes == fh_head_dense_bytes(in.model.head));
        assert_true(body_without_cache(costs) == (double)fh_body_bytes(in.model.body));
        assert_true(in.layer_bytes * 3 <= body_without_cache(costs));
        for (int kind = 0; kind < 2; kind++) {
            fh_token_timing t;
            ok(fh_bench_tokens(&t, &in.model, (fh_head_kind)kind, FH_F32, 7, 4, 12, 2, NULL, &err), err);
            assert_true(t.ttft > 0 && t.tpot > 0 && isfinite(t.tpot) && t.head_share > 0 && t.head_share < 1);
        }
        fh_stand_in_close(&in);
    }
    rmdir(dir);
}

static void a_stand_in_is_cut_to_what_it_may_take_but_keeps_room_for_the_probes(void **state)
{
    fh_setting s = {.k = 50, .probes = 4, .rerank = 16, .centroids = FH_I8, .tokens = FH_I8};
    fh_stand_in in;
    fh_err err;
    ok(fh_setting_fill(&s, &small, &err), err);
    ok(fh_stand_in_open(&in, &small, &s, 4, 1, 1, "/tmp", NULL, &err), err);
    assert_int_equal(in.clusters, 8), assert_int_equal(in.layers, 1);
    fh_stand_in_close(&in);
    ok(fh_stand_in_open(&in, &small, &s, 40, 1, 1, "/tmp", NULL, &err), err);
    assert_int_equal(in.clusters, 50);
    fh_stand_in_close(&in);
    fh_shape head = small;
    head.layers = 0;
    ok(fh_stand_in_open(&in, &head, &s, 4, 1, 1, "/tmp", NULL, &err), err);
    assert_null(in.model.body);
    fh_stand_in_close(&in);
    assert_int_equal(fh_stand_in_open(&in, &small, &s, 4, 1, 1, "/nowhere/at/all", NULL, &err), FH_ENOTFOUND);
    assert_non_null(strstr(err.text, "TMPDIR"));
}

/* ---- estimates ---------------------------------------------------------------------------------------------------------- */

static const fh_estimate_params quick = {.runs = 10, .memory_bytes = 1 << 20};

static void an_estimate_has_a_time_for_every_thing(void **state)
{
    fh_setting s = {.rerank = FH_RERANK_USUAL, .centroids = FH_I8, .tokens = FH_I8};
    const uint32_t probes[] = {20, 5, 20, 50};
    fh_estimate_params p = quick;
    fh_estimate e;
    fh_err err;
    p.probes = probes, p.n_probes = 4, p.context = 100;
    ok(fh_setting_fill(&s, &small, &err), err);
    ok(fh_estimate_model(&e, &small, &s, &p, NULL, &err), err);
    assert_int_equal(e.n_curve, 4);
    static const uint32_t rising[] = {3, 5, 20, 50};
    for (size_t i = 0; i < 4; i++) assert_int_equal(e.curve[i].probes, rising[i]), assert_true(e.curve[i].seconds > 0 && isfinite(e.curve[i].seconds));
    assert_int_equal(e.stand_in_clusters, 50), assert_int_equal(e.stand_in_layers, 3);
    assert_true(e.head_seconds[FH_HEAD_FLASH] == e.curve[0].seconds);
    for (int h = 0; h < 2; h++) {
        assert_true(e.head_seconds[h] > 0 && isfinite(e.head_seconds[h]));
        assert_true(e.token_seconds[h] > 0 && isfinite(e.token_seconds[h]));
        assert_true(e.head_share[h] > 0 && e.head_share[h] < 1);
    }
    for (int i = 0; i < 4; i++) assert_true(e.build_seconds[i] > 0 && isfinite(e.build_seconds[i]));
    assert_true(e.build_bytes > e.sums[FH_WHOLE_DENSE].bytes);
    fh_estimate_free(&e);

    p.no_measure = true;
    ok(fh_estimate_model(&e, &small, &s, &p, NULL, &err), err);
    assert_true(e.threads == 0 && e.token_seconds[0] == 0 && isnan(e.build_seconds[0]));
    fh_estimate_free(&e);
    p.context = 257;
    assert_int_equal(fh_estimate_model(&e, &small, &s, &p, NULL, &err), FH_EUSAGE);
    const uint32_t many[] = {51};
    p = quick, p.probes = many, p.n_probes = 1;
    assert_int_equal(fh_estimate_model(&e, &small, &s, &p, NULL, &err), FH_EUSAGE);
    fh_shape head = small;
    head.layers = 0, p.n_probes = 0;
    ok(fh_estimate_model(&e, &head, &s, &p, NULL, &err), err);
    assert_true(e.head_seconds[0] > 0 && e.token_seconds[0] == 0);
    fh_estimate_free(&e);
}

static void an_estimate_stops_when_it_is_told_to(void **state)
{
    volatile sig_atomic_t stop = 1;
    fh_job job = {.stop = &stop};
    fh_setting s = {.centroids = FH_I8, .tokens = FH_I8};
    fh_estimate e;
    fh_err err;
    ok(fh_setting_fill(&s, &small, &err), err);
    assert_int_equal(fh_estimate_model(&e, &small, &s, &quick, &job, &err), FH_EINTERRUPTED);
}

#ifdef FH_FAULTS
static void a_failure_anywhere_is_a_clean_error_and_leaves_nothing_behind(void **state)
{
    char dir[] = "/tmp/fh-fault-XXXXXX";
    fh_setting s = {.rerank = FH_RERANK_USUAL, .centroids = FH_I8, .tokens = FH_I8};
    fh_estimate_params p = quick;
    fh_err err;
    assert_non_null(mkdtemp(dir));
    p.scratch_dir = dir, p.runs = 1;
    ok(fh_setting_fill(&s, &small, &err), err);
    static const struct { int kind; fh_status rc; } kinds[] = {{FH_FAULT_ALLOC, FH_ENOMEM}, {FH_FAULT_WRITE, FH_EIO}};
    for (size_t k = 0; k < 2; k++) {
        for (int whole = 0; whole < 2; whole++) { /* the stand-in at every step; all of it at some, since bench is tested for itself */
            bool done = false;
            for (long n = 1; !done; n += whole ? 97 : 1) {
                fh_estimate e = {0};
                fh_stand_in in;
                assert_true(n < 20000);
                fh_fault_set(kinds[k].kind, n);
                fh_status rc = whole ? fh_estimate_model(&e, &small, &s, &p, NULL, &err) : fh_stand_in_open(&in, &small, &s, 4, 1 << 20, 1, dir, NULL, &err);
                bool fired = fh_fault_fired();
                fh_fault_set(kinds[k].kind, 0);
                if (rc < 0) assert_int_equal(rc, kinds[k].rc);
                else if (whole) fh_estimate_free(&e);
                else fh_stand_in_close(&in);
                if (!fired) assert_int_equal(rc, FH_OK), done = true;
                assert_int_equal(files_in(dir), 0);
            }
        }
    }
    rmdir(dir);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_body_is_counted_as_it_is_read),
        cmocka_unit_test(a_window_limits_the_keys_in_sight_and_sharing_heads_their_bytes),
        cmocka_unit_test(which_layers_have_a_window_is_what_each_family_says),
        cmocka_unit_test(a_config_that_says_too_little_is_refused_or_its_head_alone_is_counted),
        cmocka_unit_test(a_setting_is_completed_and_held_to_its_range),
        cmocka_unit_test(a_stage_takes_the_longer_of_reading_and_computing),
        cmocka_unit_test(times_between_probes_are_on_a_line),
        cmocka_unit_test(a_stand_in_has_the_shape_reads_the_bytes_and_speaks),
        cmocka_unit_test(a_stand_in_is_cut_to_what_it_may_take_but_keeps_room_for_the_probes),
        cmocka_unit_test(an_estimate_has_a_time_for_every_thing),
        cmocka_unit_test(an_estimate_stops_when_it_is_told_to),
#ifdef FH_FAULTS
        cmocka_unit_test(a_failure_anywhere_is_a_clean_error_and_leaves_nothing_behind),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
