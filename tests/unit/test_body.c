#include "tests/unit/golden_families.h"

#include "runtime/body_private.h"

/* ---- what the reference says ------------------------------------------------------------------------------------- */

static void check_case(golden *g, const char *name)
{
    fh_err err;
    fh_pool *pool;
    ok(fh_pool_new(&pool, 2, &err), err);
    size_t rows = g->b * g->t;
    float *hidden = malloc(rows * g->d * sizeof *hidden), *logits = malloc(rows * g->v * sizeof *logits);
    fh_kv *kv[8];
    uint32_t lens[8];
    assert_true(g->b <= 8);
    for (size_t i = 0; i < g->b; i++) kv[i] = new_kv(g->body, FH_F32), lens[i] = (uint32_t)g->t;
    ok(fh_body_forward(g->body, pool, g->b, kv, lens, g->ids, hidden, &err), err);
    ok(fh_dense_logits(&g->dense, pool, hidden, rows, logits, &err), err);
    double off = farthest(hidden, g->hidden, rows * g->d) / spread(g->hidden, rows * g->d);
    double logits_off = farthest(logits, g->logits, rows * g->v) / spread(g->logits, rows * g->v);
    if (!(off <= 1e-4) || !(logits_off <= 1e-4)) fail_msg("%s: hidden off by %g of their spread, logits by %g", name, off, logits_off);

    check_greedy(g, name, pool, kv[0], g->n_greedy, hidden, logits);
    for (size_t i = 0; i < g->b; i++) fh_kv_free(kv[i]);
    free(hidden);
    free(logits);
    fh_pool_free(pool);
}

static void states_logits_and_greedy_ids_are_the_references(void **state)
{
    check_families(check_case);
}

static void other_families_are_the_references_too(void **state)
{
    check_shared_families(check_case);
}

static void states_of_prose_7m_are_the_references(void **state)
{
    enum { WINDOW = 512, WINDOWS = 2 };
    fh_err err;
    fh_checkpoint c;
    fh_tensors *reference;
    fh_body *body;
    if (!fh_file_exists(shared("models/prose-7m/reference/valid.safetensors"))) {
        print_message("skipped: no models/prose-7m/reference under FH_SHARED\n");
        skip();
    }
    ok(fh_tensors_open(&reference, shared("models/prose-7m/reference/valid.safetensors"), &err), err);
    ok(fh_checkpoint_open(&c, shared("models/prose-7m"), NULL, &err), err);
    fh_body_source source = {.config = &c.config, .tensors = c.tensors};
    ok(fh_body_open(&body, &source, "prose-7m", &err), err);
    size_t n, d = c.config.hidden;
    uint32_t *ids = ids_of(reference, "ids", &n);
    float *wanted = floats_of(reference, "hidden"), *hidden = malloc(WINDOWS * WINDOW * d * sizeof *hidden);
    fh_kv *kv[WINDOWS];
    uint32_t lens[WINDOWS];
    for (size_t i = 0; i < WINDOWS; i++) kv[i] = new_kv(body, FH_F32), lens[i] = WINDOW;
    ok(fh_body_forward(body, NULL, WINDOWS, kv, lens, ids, hidden, &err), err);
    double off = farthest(hidden, wanted, WINDOWS * WINDOW * d) / spread(wanted, WINDOWS * WINDOW * d);
    if (!(off <= 2e-4)) fail_msg("off by %g of their spread", off);
    for (size_t i = 0; i < WINDOWS; i++) fh_kv_free(kv[i]);
    free(ids);
    free(wanted);
    free(hidden);
    fh_body_close(body);
    fh_checkpoint_close(&c);
    fh_tensors_close(reference);
}

/* ---- one pass for everything --------------------------------------------------------------------------------------- */

/* Sums of some hundred float32 in another order, through a few layers: 1e-5 of the spread is several times what is seen. */
static const double REORDERED = 1e-5;

static void prefill_equals_steps_of_any_size(void **state)
{
    for (size_t i = 0; i < OURS; i++) {
        golden g;
        open_case(&g, cases[i]);
        size_t n = g.t * g.d;
        float *whole = malloc(n * sizeof *whole), *steps = malloc(n * sizeof *steps);
        run_in_steps(&g, FH_F32, g.ids, (uint32_t)g.t, (uint32_t)g.t, whole);
        for (uint32_t step = 1; step < g.t; step += step < 4 ? 1 : 7) {
            run_in_steps(&g, FH_F32, g.ids, (uint32_t)g.t, step, steps);
            double off = farthest(steps, whole, n) / spread(whole, n);
            if (!(off <= REORDERED)) fail_msg("%s: steps of %u are off by %g", cases[i], step, off);
        }
        free(whole);
        free(steps);
        golden_close(&g);
    }
}

/* More rows than go through the layers at a time, sequences cut in the middle, prompts and single tokens in one call. */
static void a_ragged_batch_equals_each_sequence_alone(void **state)
{
    enum { N = 24, MOST = 200 };
    golden g;
    fh_err err;
    open_case(&g, "gemma3-softcap"); /* windowed layers */
    uint32_t lens[N], *ids = malloc(N * MOST * sizeof *ids);
    size_t rows = 0;
    fh_rng rng;
    fh_rng_seed(&rng, 1, 0);
    fh_kv *kv[N];
    for (size_t i = 0; i < N; i++) {
        lens[i] = i % 5 == 0 ? 1 : (uint32_t)(1 + fh_rng_below(&rng, MOST));
        kv[i] = new_kv(g.body, FH_F32);
        for (uint32_t j = 0; j < lens[i]; j++) ids[rows++] = (uint32_t)fh_rng_below(&rng, g.v);
    }
    assert_true(rows > 1100);
    float *batch = malloc(rows * g.d * sizeof *batch), *alone = malloc(MOST * g.d * sizeof *alone);
    ok(fh_body_forward(g.body, NULL, N, kv, lens, ids, batch, &err), err);
    size_t row = 0;
    for (size_t i = 0; i < N; i++) {
        assert_int_equal(fh_kv_length(kv[i]), lens[i]);
        run_in_steps(&g, FH_F32, ids + row, lens[i], lens[i], alone);
        double off = farthest(alone, batch + row * g.d, lens[i] * g.d) / spread(batch, rows * g.d);
        if (!(off <= REORDERED)) fail_msg("sequence %zu of %u tokens is off by %g", i, lens[i], off);
        row += lens[i];
    }
    /* One more token for all of them. */
    uint32_t ones[N], next[N];
    float *step = malloc(N * g.d * sizeof *step);
    for (size_t i = 0; i < N; i++) ones[i] = 1, next[i] = (uint32_t)i;
    ok(fh_body_forward(g.body, NULL, N, kv, ones, next, step, &err), err);
    row = 0;
    for (size_t i = 0; i < N; i++) {
        uint32_t again[MOST + 1];
        float more[(MOST + 1) * 32];
        assert_int_equal(g.d, 32);
        memcpy(again, ids + row, lens[i] * sizeof *again);
        again[lens[i]] = next[i];
        run_in_steps(&g, FH_F32, again, lens[i] + 1, lens[i] + 1, more);
        double off = farthest(more + lens[i] * g.d, step + i * g.d, g.d) / spread(batch, rows * g.d);
        if (!(off <= REORDERED)) fail_msg("the next token of sequence %zu is off by %g", i, off);
        row += lens[i];
        fh_kv_free(kv[i]);
    }
    free(step);
    free(batch);
    free(alone);
    free(ids);
    golden_close(&g);
}

static void a_cache_cut_back_and_filled_again_gives_the_same_bits(void **state)
{
    golden g;
    fh_err err;
    open_case(&g, "llama");
    const uint32_t all = 40, rest = 40 - 13;
    float *first = malloc(all * g.d * sizeof *first), *again = malloc(all * g.d * sizeof *again);
    fh_kv *kv = new_kv(g.body, FH_F32);
    ok(fh_body_forward(g.body, NULL, 1, &kv, &all, g.ids, first, &err), err);
    fh_kv_truncate(kv, 13);
    assert_int_equal(fh_kv_length(kv), 13);
    fh_kv_truncate(kv, 30); /* does not grow */
    assert_int_equal(fh_kv_length(kv), 13);
    ok(fh_body_forward(g.body, NULL, 1, &kv, &rest, g.ids + g.t + 13, again, &err), err); /* other tokens */
    fh_kv_truncate(kv, 13);
    ok(fh_body_forward(g.body, NULL, 1, &kv, &rest, g.ids + 13, again, &err), err);
    double off = farthest(again, first + 13 * g.d, rest * g.d) / spread(first, all * g.d);
    assert_true(off <= REORDERED);
    fh_kv_truncate(kv, 0);
    ok(fh_body_forward(g.body, NULL, 1, &kv, &all, g.ids, again, &err), err);
    assert_memory_equal(again, first, all * g.d * sizeof *first);
    fh_kv_free(kv);
    free(first);
    free(again);
    golden_close(&g);
}

static void any_number_of_threads_gives_the_same_bits(void **state)
{
    enum { N = 9 };
    for (size_t k = 0; k < OURS; k++) {
        golden g;
        fh_err err;
        open_case(&g, cases[k]);
        uint32_t lens[N], ids[N * 64];
        size_t rows = 0;
        for (size_t i = 0; i < N; i++) {
            lens[i] = (uint32_t)(1 + i * 7);
            for (uint32_t j = 0; j < lens[i]; j++, rows++) ids[rows] = (uint32_t)((rows * 31 + i) % g.v);
        }
        float *wanted = malloc(rows * g.d * sizeof *wanted), *got = malloc(rows * g.d * sizeof *got);
        float *wanted_logits = malloc(rows * g.v * sizeof *wanted_logits), *got_logits = malloc(rows * g.v * sizeof *got_logits);
        fh_score_range *seen[2] = {fh_score_ranges(g.body), NULL};
        for (unsigned threads = 1; threads <= 5; threads += 2) {
            fh_pool *pool;
            fh_kv *kv[N];
            ok(fh_pool_new(&pool, threads, &err), err);
            seen[1] = fh_score_ranges(g.body);
            for (size_t i = 0; i < N; i++) kv[i] = new_kv(g.body, FH_F32), fh_kv_watch(kv[i], seen[threads > 1]);
            ok(fh_body_forward(g.body, pool, N, kv, lens, ids, threads == 1 ? wanted : got, &err), err);
            ok(fh_dense_logits(&g.dense, pool, threads == 1 ? wanted : got, rows, threads == 1 ? wanted_logits : got_logits, &err), err);
            if (threads > 1) {
                assert_memory_equal(got, wanted, rows * g.d * sizeof *got);
                assert_memory_equal(got_logits, wanted_logits, rows * g.v * sizeof *got_logits);
                assert_memory_equal(seen[1], seen[0], g.checkpoint.config.layers * sizeof *seen[0]);
                assert_true(seen[0][0].low < seen[0][0].high);
            }
            fh_free(seen[1]);
            for (size_t i = 0; i < N; i++) fh_kv_free(kv[i]);
            fh_pool_free(pool);
        }
        free(wanted);
        free(got);
        free(wanted_logits);
        free(got_logits);
        fh_free(seen[0]);
        golden_close(&g);
    }
}

/* ---- arithmetic ------------------------------------------------------------------------------------------------------ */

static void every_instruction_set_gives_the_same_bits(void **state)
{
    enum { N = 16 * 9 + 5 };
    static const char *const names[] = {"avx2", "avx512"};
    const fh_body_math *ref = fh_body_math_choose("ref");
    float x[N], w[N], a[N], b[N], half[N];
    double one[N], other[N];
    uint16_t words[N];
    fh_rng rng;
    fh_rng_seed(&rng, 7, 0);
    for (size_t i = 0; i < N; i++) {
        x[i] = (float)((fh_rng_double(&rng) - 0.5) * 40);
        w[i] = (float)(fh_rng_double(&rng) - 0.5);
        words[i] = (uint16_t)fh_rng_u64(&rng);
    }
    words[0] = 0x7c00, words[1] = 0xfc00, words[2] = 0x0001, words[3] = 0x83ff, words[4] = 0x8000;
    for (size_t k = 0; k < 2; k++) {
        const fh_body_math *m = fh_body_math_choose(names[k]);
        const fh_kernels *kernels;
        if (fh_kernels_choose(&kernels, names[k], NULL) < 0) {
            print_message("skipped %s: not on this CPU\n", names[k]);
            continue;
        }
        assert_true(m != ref);
        for (size_t n = 1; n <= N; n += n < 40 ? 1 : 13) {
            assert_true(m->max(x, n) == ref->max(x, n));
            assert_true(m->sum(x, n) == ref->sum(x, n));
            assert_true(m->sum_squares(x, n, 0.3f) == ref->sum_squares(x, n, 0.3f));
            assert_true(m->exp_sum_double(x, n, 3) == ref->exp_sum_double(x, n, 3));
            m->exp_double(one, x, n, 0.7), ref->exp_double(other, x, n, 0.7);
            assert_memory_equal(one, other, n * sizeof *one);
            memcpy(a, x, sizeof a), memcpy(b, x, sizeof b);
            assert_true(m->exp_sum(a, n, 1.5f) == ref->exp_sum(b, n, 1.5f));
            assert_memory_equal(a, b, sizeof a);
            m->sigmoid(a, n, 1.702f, false), ref->sigmoid(b, n, 1.702f, false);
            m->sigmoid(a, n, 1, true), ref->sigmoid(b, n, 1, true);
            m->add(a, x, n), ref->add(b, x, n);
            m->mul(a, w, n), ref->mul(b, w, n);
            m->accumulate(a, n, 1, w, 1, 1, x, n, n), ref->accumulate(b, n, 1, w, 1, 1, x, n, n);
            if (n % 3 == 0) m->accumulate(a, n / 3, 3, w, 2, 2, x, n / 3, n / 3), ref->accumulate(b, n / 3, 3, w, 2, 2, x, n / 3, n / 3);
            m->scale(a, a, w, n, 0.1f, 3), ref->scale(b, b, w, n, 0.1f, 3);
            assert_memory_equal(a, b, sizeof a);
            m->widen_f16(a, words, n);
            fh_to_f32(half, FH_F16, words, n);
            for (size_t i = 0; i < n; i++) assert_true(isnan(half[i]) ? isnan(a[i]) : !memcmp(&a[i], &half[i], sizeof *a));
            m->widen_bf16(a, words, n);
            fh_to_f32(half, FH_BF16, words, n);
            for (size_t i = 0; i < n; i++) assert_true(isnan(half[i]) ? isnan(a[i]) : !memcmp(&a[i], &half[i], sizeof *a));
        }
    }
}

static void exponentials_and_activations_are_those_of_the_library(void **state)
{
    const fh_body_math *m = fh_body_math_choose(fh_isa_name());
    for (double x = -90; x < 88; x += 0.0371) {
        float e = (float)x, s = (float)x, t = (float)x, q = (float)x, l = (float)x;
        m->exp_sum(&e, 1, 0);
        double wanted = x < -87.33 ? 0 : exp((float)x);
        if (!(fabs(e - wanted) <= 2e-7 * wanted)) fail_msg("exp(%g) is %g", x, e);
        fh_body_activate(m, FH_ACT_SILU, &s, 1);
        fh_body_activate(m, FH_ACT_GELU_TANH, &t, 1);
        fh_body_activate(m, FH_ACT_GELU, &q, 1);
        fh_body_activate(m, FH_ACT_QUICK_GELU, &l, 1);
        double y = (float)x, cubic = sqrt(2 / M_PI) * (y + 0.044715 * y * y * y);
        if (!(fabs(s - y / (1 + exp(-y))) <= 1e-6 * (1e-3 + fabs(y)))) fail_msg("silu(%g) is %g", x, s);
        if (!(fabs(t - 0.5 * y * (1 + tanh(cubic))) <= 1e-6 * (1e-3 + fabs(y)))) fail_msg("gelu_tanh(%g) is %g", x, t);
        if (!(fabs(q - 0.5 * y * (1 + erf(y / sqrt(2)))) <= 1e-6 * (1e-3 + fabs(y)))) fail_msg("gelu(%g) is %g", x, q);
        if (!(fabs(l - y / (1 + exp(-1.702 * y))) <= 1e-6 * (1e-3 + fabs(y)))) fail_msg("quick_gelu(%g) is %g", x, l);
    }
    for (double x = -745; x < 700; x += 0.0371) {
        float f[3] = {0, (float)x, -INFINITY};
        double e[4] = {0, 0, 0, 3};
        fh_exp_each(e, f, 3, 0.25);
        double wanted = (float)x - 0.25 < -700 ? 0 : exp((float)x - 0.25);
        if (!(fabs(e[1] - wanted) <= 1e-14 * wanted)) fail_msg("exp(%g - 0.25) is %g", x, e[1]);
        assert_true(e[2] == 0 && e[3] == 3);
    }
    float bad[20];
    double worse[20];
    for (size_t i = 0; i < 20; i++) bad[i] = i == 7 ? NAN : 0;
    fh_exp_each(worse, bad, 20, 0);
    assert_true(isnan(worse[7]) && worse[6] == 1);
    assert_true(isnan(m->exp_sum(bad, 20, 0)));
    float silent = NAN, relu[2] = {-1, 2};
    fh_body_activate(m, FH_ACT_RELU, &silent, 1);
    fh_body_activate(m, FH_ACT_RELU, relu, 2);
    assert_true(isnan(silent) && relu[0] == 0 && relu[1] == 2);
}

static void log_sum_exp_is_exact_for_large_small_and_infinite_values(void **state)
{
    float x[1000];
    double sum = 0;
    for (size_t i = 0; i < 1000; i++) x[i] = (float)(50 * sin((double)i)), sum += exp((double)x[i] - 50);
    double wanted = 50 + log(sum);
    assert_true(fabs(fh_log_sum_exp(x, 1000) - wanted) <= 1e-13 * wanted);
    const float inf[3] = {0, INFINITY, 1}, nothing[2] = {-INFINITY, -INFINITY}, some[3] = {-INFINITY, 2, -INFINITY}, bad[2] = {NAN, NAN},
                hidden_nan[2] = {1, NAN};
    assert_true(fh_log_sum_exp(inf, 3) == INFINITY);
    assert_true(fh_log_sum_exp(nothing, 2) == -INFINITY);
    assert_true(fh_log_sum_exp(some, 3) == 2);
    assert_true(isnan(fh_log_sum_exp(bad, 2)));
    assert_true(isnan(fh_log_sum_exp(hidden_nan, 2)));
}

static void draws_from_a_softmax_fall_where_its_cumulative_sum_says(void **state)
{
    static const size_t sizes[] = {1, 2, 15, 16, 17, 255, 256, 257, 511, 512, 513, 1000, 4097};
    float x[4097], room[4097];
    double before[4098];
    fh_rng rng;
    fh_rng_seed(&rng, 3, 0);
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        size_t n = sizes[k], first = n, last = 0;
        for (size_t i = 0; i < n; i++) x[i] = fh_rng_below(&rng, 4) ? (float)(8 * sin((double)(i * (k + 1)))) : -INFINITY;
        x[n / 2] = 1;
        before[0] = 0;
        for (size_t i = 0; i < n; i++) {
            before[i + 1] = before[i] + exp((double)x[i]);
            if (x[i] > -INFINITY) first = fh_min(first, i), last = i;
        }
        for (int draw = 0; draw < 2000; draw++) {
            double random = draw == 0 ? 0 : draw == 1 ? 1 - 0x1p-53 : fh_rng_double(&rng);
            memcpy(room, x, n * sizeof *x);
            size_t at = fh_softmax_draw(room, n, random);
            assert_true(at < n && x[at] > -INFINITY);
            assert_true(before[at] / before[n] - 1e-6 <= random && random <= before[at + 1] / before[n] + 1e-6);
            if (draw == 0) assert_int_equal(at, first);
            if (draw == 1) assert_int_equal(at, last);
        }
    }
    /* what underflows is never drawn; the only one there is always is */
    for (size_t i = 0; i < 600; i++) x[i] = -200;
    x[299] = 0;
    for (int draw = 0; draw < 100; draw++) {
        memcpy(room, x, 600 * sizeof *x);
        assert_int_equal(fh_softmax_draw(room, 600, draw ? fh_rng_double(&rng) : 1 - 0x1p-53), 299);
    }
    float nothing[3] = {-INFINITY, -INFINITY, -INFINITY}, bad[3] = {1, NAN, 2}, inf[3] = {1, INFINITY, 2}, none[1] = {NAN};
    assert_int_equal(fh_softmax_draw(nothing, 3, 0.5), 3);
    assert_int_equal(fh_softmax_draw(bad, 3, 0.5), 3);
    assert_int_equal(fh_softmax_draw(inf, 3, 0.5), 3);
    assert_int_equal(fh_softmax_draw(none, 1, 0.5), 1);
}

/* ---- switches that no reference file shows ------------------------------------------------------------------------------- */

static void weight(const fh_tensors *t, const char *layer, const char *name, float *out)
{
    char full[200];
    snprintf(full, sizeof full, "model.%s%s.weight", layer, name);
    const fh_tensor *x = fh_tensors_find(t, full);
    assert_non_null(x);
    fh_to_f32(out, x->dtype, x->data, (size_t)x->bytes / fh_dtype_size(x->dtype));
}

static void times(const float *w, size_t out, size_t in, const double *x, double *y)
{
    for (size_t o = 0; o < out; o++) {
        y[o] = 0;
        for (size_t i = 0; i < in; i++) y[o] += (double)w[o * in + i] * x[i];
    }
}

static void rms_plus_one(const float *w, const double *x, double eps, double *y, size_t n)
{
    double squares = 0;
    for (size_t i = 0; i < n; i++) squares += x[i] * x[i];
    for (size_t i = 0; i < n; i++) y[i] = (1.0 + w[i]) * x[i] / sqrt(squares / (double)n + eps);
}

/* Gemma-2 from its description, in double, one token after another: no cache, no blocks.  The weights are those of a Gemma-3
 * file, whose names are a superset. */
enum { G_D = 32, G_F = 64, G_H = 2, G_DIM = 16, G_L = 2, G_T = 24 };
static void plain_gemma2(const fh_tensors *t, const fh_config *c, const uint32_t *ids, double out[G_T][G_D], fh_score_range *seen)
{
    static float e[300 * G_D], q[G_D * G_D], k[G_DIM * G_D], v[G_DIM * G_D], o[G_D * G_D], gate[G_F * G_D], up[G_F * G_D], down[G_D * G_F],
        n1[G_D], n2[G_D], n3[G_D], n4[G_D];
    static double keys[G_T][G_DIM], values[G_T][G_DIM];
    weight(t, "", "embed_tokens", e);
    for (size_t p = 0; p < G_T; p++)
        for (size_t i = 0; i < G_D; i++) out[p][i] = e[ids[p] * G_D + i] * sqrt(G_D);
    for (size_t l = 0; l < G_L; l++) {
        char layer[20];
        snprintf(layer, sizeof layer, "layers.%zu.", l);
        weight(t, layer, "self_attn.q_proj", q), weight(t, layer, "self_attn.k_proj", k), weight(t, layer, "self_attn.v_proj", v),
            weight(t, layer, "self_attn.o_proj", o);
        weight(t, layer, "mlp.gate_proj", gate), weight(t, layer, "mlp.up_proj", up), weight(t, layer, "mlp.down_proj", down);
        weight(t, layer, "input_layernorm", n1), weight(t, layer, "post_attention_layernorm", n2);
        weight(t, layer, "pre_feedforward_layernorm", n3), weight(t, layer, "post_feedforward_layernorm", n4);
        for (size_t p = 0; p < G_T; p++) {
            double h[G_D], heads[G_D], mixed[G_D] = {0}, y[G_D], a[G_F], b[G_F];
            rms_plus_one(n1, out[p], c->norm_eps, h, G_D);
            times(q, G_D, G_D, h, heads);
            times(k, G_DIM, G_D, h, keys[p]);
            times(v, G_DIM, G_D, h, values[p]);
            for (size_t i = 0; i < G_DIM / 2; i++) {
                double angle = (double)p * pow(c->rope.theta, -2.0 * (double)i / G_DIM), cs = cos(angle), sn = sin(angle);
                double *at[3] = {heads, heads + G_DIM, keys[p]};
                for (size_t m = 0; m < 3; m++) {
                    double x0 = at[m][i], x1 = at[m][i + G_DIM / 2];
                    at[m][i] = x0 * cs - x1 * sn;
                    at[m][i + G_DIM / 2] = x1 * cs + x0 * sn;
                }
            }
            for (size_t head = 0; head < G_H; head++) {
                double total = 0, s[G_T], top = -INFINITY;
                for (size_t j = 0; j <= p; j++) {
                    double dot = 0;
                    for (size_t i = 0; i < G_DIM; i++) dot += heads[head * G_DIM + i] * keys[j][i];
                    dot = c->attn_softcap * tanh(dot / sqrt(c->query_scalar) / c->attn_softcap);
                    bool hidden = l % 2 == 0 && j + c->sliding_window <= p; /* even layers are windowed */
                    s[j] = hidden ? 0 : exp(dot);
                    top = hidden ? top : fmax(top, dot);
                    total += s[j];
                }
                seen[l].low = fminf(seen[l].low, (float)top), seen[l].high = fmaxf(seen[l].high, (float)top);
                for (size_t j = 0; j <= p; j++)
                    for (size_t i = 0; i < G_DIM; i++) mixed[head * G_DIM + i] += s[j] / total * values[j][i];
            }
            times(o, G_D, G_D, mixed, y);
            rms_plus_one(n2, y, c->norm_eps, y, G_D);
            for (size_t i = 0; i < G_D; i++) out[p][i] += y[i];
            rms_plus_one(n3, out[p], c->norm_eps, h, G_D);
            times(gate, G_F, G_D, h, a);
            times(up, G_F, G_D, h, b);
            for (size_t i = 0; i < G_F; i++) a[i] = 0.5 * a[i] * (1 + tanh(sqrt(2 / M_PI) * (a[i] + 0.044715 * a[i] * a[i] * a[i]))) * b[i];
            times(down, G_D, G_F, a, y);
            rms_plus_one(n4, y, c->norm_eps, y, G_D);
            for (size_t i = 0; i < G_D; i++) out[p][i] += y[i];
        }
    }
    weight(t, "", "norm", n1);
    for (size_t p = 0; p < G_T; p++) rms_plus_one(n1, out[p], c->norm_eps, out[p], G_D);
}

static void gemma2_is_what_its_description_says(void **state)
{
    golden g;
    fh_err err;
    fh_body *body;
    static double wanted[G_T][G_D];
    float hidden[G_T * G_D], reference[G_T * G_D];
    open_case(&g, "gemma3-softcap");
    fh_config c = g.checkpoint.config;
    fh_json *nothing = fh_json_object(); /* no layer_types: the family's own pattern */
    strcpy(c.model_type, "gemma2");
    c.model = nothing;
    c.query_scalar = 24;
    c.attn_softcap = 1.5;
    c.sliding_window = 5;
    assert_true(c.hidden == G_D && c.ffn == G_F && c.heads == G_H && c.kv_heads == 1 && c.head_dim == G_DIM && c.layers == G_L);
    fh_body_source source = {.config = &c, .tensors = g.checkpoint.tensors};
    ok(fh_body_open(&body, &source, "gemma2", &err), err);
    const uint32_t n = G_T;
    fh_kv *kv = new_kv(body, FH_F32);
    fh_score_range *seen = fh_score_ranges(body), *plain = fh_score_ranges(body);
    fh_kv_watch(kv, seen);
    ok(fh_body_forward(body, NULL, 1, &kv, &n, g.ids, hidden, &err), err);
    plain_gemma2(g.checkpoint.tensors, &c, g.ids, wanted, plain);
    for (size_t l = 0; l < G_L; l++) {
        assert_true(plain[l].low < plain[l].high && plain[l].high < 1.5f);
        if (!(fabsf(seen[l].low - plain[l].low) <= 1e-5f) || !(fabsf(seen[l].high - plain[l].high) <= 1e-5f))
            fail_msg("layer %zu: largest scores of %g to %g, not of %g to %g", l, (double)seen[l].low, (double)seen[l].high, (double)plain[l].low,
                     (double)plain[l].high);
    }
    fh_free(seen);
    fh_free(plain);
    for (size_t i = 0; i < G_T * G_D; i++) reference[i] = (float)wanted[i / G_D][i % G_D];
    double off = farthest(hidden, reference, G_T * G_D) / spread(reference, G_T * G_D);
    if (!(off <= 1e-5)) fail_msg("off by %g", off);
    fh_kv_free(kv);
    fh_body_close(body);
    fh_json_free(nothing);
    golden_close(&g);
}

static void dynamic_rope_takes_its_base_from_the_length_of_the_call(void **state)
{
    golden g;
    fh_err err;
    open_case(&g, "llama");
    const uint32_t n = 30, limit = 16, r = g.checkpoint.config.head_dim;
    float *hidden[2];
    for (int k = 0; k < 2; k++) {
        fh_config c = g.checkpoint.config;
        fh_body *body;
        if (k == 0) c.rope.type = FH_ROPE_DYNAMIC, c.rope.factor = 2, c.max_position = limit;
        else c.rope.theta *= pow(2.0 * n / limit - 1, r / (r - 2.0));
        fh_body_source source = {.config = &c, .tensors = g.checkpoint.tensors};
        ok(fh_body_open(&body, &source, "dynamic", &err), err);
        if (k == 0) assert_int_equal(fh_body_max_position(body), 32);
        fh_kv *kv = new_kv(body, FH_F32);
        hidden[k] = malloc(n * g.d * sizeof **hidden);
        ok(fh_body_forward(body, NULL, 1, &kv, &n, g.ids, hidden[k], &err), err);
        fh_kv_free(kv);
        fh_body_close(body);
    }
    assert_true(farthest(hidden[0], hidden[1], n * g.d) <= 1e-5 * spread(hidden[1], n * g.d));
    assert_true(farthest(hidden[0], g.hidden, n * g.d) > 1e-2 * spread(hidden[1], n * g.d)); /* and is no plain one */
    free(hidden[0]);
    free(hidden[1]);
    golden_close(&g);
}

/* ---- refusals and failures -------------------------------------------------------------------------------------------- */

static void tokens_and_positions_out_of_range_are_refused_and_change_nothing(void **state)
{
    golden g, other;
    fh_err err;
    open_case(&g, "llama");
    open_case(&other, "llama3-rope");
    fh_kv *kv = new_kv(g.body, FH_F32), *foreign = new_kv(other.body, FH_F32);
    float *hidden = malloc(257 * g.d * sizeof *hidden);
    uint32_t ids[257] = {0}, n = 4;
    ids[2] = (uint32_t)g.v;
    assert_int_equal(fh_body_forward(g.body, NULL, 1, &kv, &n, ids, hidden, &err), FH_EUSAGE);
    assert_non_null(strstr(err.text, "token 320"));
    ids[2] = 0;
    n = 257;
    assert_int_equal(fh_body_max_position(g.body), 256);
    assert_int_equal(fh_body_forward(g.body, NULL, 1, &kv, &n, ids, hidden, &err), FH_EUSAGE);
    assert_non_null(strstr(err.text, "256"));
    n = 0;
    assert_int_equal(fh_body_forward(g.body, NULL, 1, &kv, &n, ids, hidden, &err), FH_EUSAGE);
    n = 1;
    assert_int_equal(fh_body_forward(g.body, NULL, 1, &foreign, &n, ids, hidden, &err), FH_EUSAGE);
    assert_int_equal(fh_kv_length(kv), 0);
    n = 256;
    ok(fh_body_forward(g.body, NULL, 1, &kv, &n, ids, hidden, &err), err);
    n = 1;
    assert_int_equal(fh_body_forward(g.body, NULL, 1, &kv, &n, ids, hidden, &err), FH_EUSAGE);
    assert_int_equal(fh_kv_length(kv), 256);
    fh_kv_free(kv);
    fh_kv_free(foreign);
    free(hidden);
    golden_close(&g);
    golden_close(&other);
}

static fh_status open_changed(golden *g, void (*change)(fh_config *), fh_err *err)
{
    fh_config c = g->checkpoint.config;
    fh_body *b = NULL;
    change(&c);
    fh_body_source source = {.config = &c, .tensors = g->checkpoint.tensors};
    fh_status rc = fh_body_open(&b, &source, "model", err);
    fh_body_close(b);
    return rc;
}

static void another_family(fh_config *c)
{
    strcpy(c->model_type, "mamba");
    c->body_supported = false;
    strcpy(c->body_why, "models of type 'mamba' are not run yet");
}
static void one_layer_more(fh_config *c) { c->layers++; }
static void wider(fh_config *c) { c->ffn++; }
static void no_layers(fh_config *c) { c->layers = 0; }
static void uneven_groups(fh_config *c) { c->kv_heads = 3; }
static void huge(fh_config *c) { c->head_dim = UINT32_MAX; }
static void biased_mlp(fh_config *c) { c->mlp_bias = true; }
static void as_it_is(fh_config *c) { (void)c; }

static void a_model_that_does_not_fit_its_config_is_refused_by_name(void **state)
{
    static const struct { void (*change)(fh_config *); fh_status rc; const char *says; } rows[] = {
        {as_it_is, FH_OK, ""},
        {another_family, FH_EUNSUPPORTED, "mamba"},
        {one_layer_more, FH_ENOTFOUND, "model.layers.3.input_layernorm.weight"},
        {wider, FH_EFORMAT, "model.layers.0.mlp.gate_proj.weight"},
        {no_layers, FH_EFORMAT, "is 0"},
        {uneven_groups, FH_EFORMAT, "3 key-value heads"},
        {huge, FH_EUNSUPPORTED, "beyond any model"},
        {biased_mlp, FH_ENOTFOUND, "model.layers.0.mlp.gate_proj.bias"},
    };
    golden g;
    open_case(&g, "llama");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        fh_err err = {0};
        fh_status rc = open_changed(&g, rows[i].change, &err);
        bool missing = rows[i].rc == FH_ENOTFOUND && rc < 0; /* the reader of tensors chooses its code */
        if ((rc != rows[i].rc && !missing) || !strstr(err.text, rows[i].says)) fail_msg("row %zu: %s: %s", i, fh_status_name(rc), err.text);
    }
    golden_close(&g);
}

static void no_biases(fh_config *c) { c->attention_bias = false; }

static void a_bias_that_config_denies_is_not_passed_over(void **state)
{
    golden g;
    fh_err err = {0};
    open_case(&g, "llama-linear-bias");
    assert_int_equal(open_changed(&g, no_biases, &err), FH_EFORMAT);
    assert_non_null(strstr(err.text, "q_proj.bias"));
    golden_close(&g);
}

static void every_allocation_may_fail(void **state)
{
#ifdef FH_FAULTS
    golden g;
    open_case(&g, "llama");
    float *hidden = malloc(60 * g.d * sizeof *hidden), *logits = malloc(20 * g.v * sizeof *logits);
    bool done = false;
    long n = 1;
    for (; !done; n++) {
        fh_err err = {0};
        fh_body *body = NULL;
        fh_kv *kv[2] = {NULL, NULL};
        const uint32_t lens[2] = {20, 33};
        fh_body_source source = {.config = &g.checkpoint.config, .tensors = g.checkpoint.tensors};
        fh_fault_set(FH_FAULT_ALLOC, n);
        fh_status rc = fh_body_open(&body, &source, "model", &err);
        if (rc == FH_OK) rc = fh_kv_new(&kv[0], body, &err);
        if (rc == FH_OK) rc = fh_kv_new(&kv[1], body, &err);
        if (rc == FH_OK && (rc = fh_body_forward(body, NULL, 2, kv, lens, g.ids, hidden, &err)) < 0) {
            assert_int_equal(fh_kv_length(kv[0]), 0);
            assert_int_equal(fh_kv_length(kv[1]), 0);
            fh_fault_set(FH_FAULT_ALLOC, 0);
            fh_err again;
            ok(fh_body_forward(body, NULL, 2, kv, lens, g.ids, hidden, &again), again); /* nothing is left half done */
            double off = farthest(hidden, g.hidden, 20 * g.d) / spread(g.hidden, 20 * g.d);
            assert_true(off <= 1e-4);
        }
        if (rc == FH_OK) rc = fh_dense_logits(&g.dense, NULL, hidden, 20, logits, &err);
        done = rc == FH_OK;
        if (rc < 0) {
            assert_int_equal(rc, FH_ENOMEM);
            assert_true(strlen(err.text) > 0);
        }
        fh_kv_free(kv[0]);
        fh_kv_free(kv[1]);
        fh_body_close(body);
    }
    assert_true(n > 10);
    assert_false(fh_fault_fired());
    fh_fault_set(FH_FAULT_ALLOC, 0);
    free(hidden);
    free(logits);
    golden_close(&g);
#else
    skip();
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(states_logits_and_greedy_ids_are_the_references),
        cmocka_unit_test(other_families_are_the_references_too),
        cmocka_unit_test(states_of_prose_7m_are_the_references),
        cmocka_unit_test(prefill_equals_steps_of_any_size),
        cmocka_unit_test(a_ragged_batch_equals_each_sequence_alone),
        cmocka_unit_test(a_cache_cut_back_and_filled_again_gives_the_same_bits),
        cmocka_unit_test(any_number_of_threads_gives_the_same_bits),
        cmocka_unit_test(every_instruction_set_gives_the_same_bits),
        cmocka_unit_test(exponentials_and_activations_are_those_of_the_library),
        cmocka_unit_test(log_sum_exp_is_exact_for_large_small_and_infinite_values),
        cmocka_unit_test(draws_from_a_softmax_fall_where_its_cumulative_sum_says),
        cmocka_unit_test(gemma2_is_what_its_description_says),
        cmocka_unit_test(dynamic_rope_takes_its_base_from_the_length_of_the_call),
        cmocka_unit_test(tokens_and_positions_out_of_range_are_refused_and_change_nothing),
        cmocka_unit_test(a_model_that_does_not_fit_its_config_is_refused_by_name),
        cmocka_unit_test(a_bias_that_config_denies_is_not_passed_over),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
