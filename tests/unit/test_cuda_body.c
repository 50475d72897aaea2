/* The body's own CUDA sources, run thread by thread on an emulated device: the reference's states and the CPU's. */
#include "tests/unit/golden_families.h"

#include "runtime/head.h"
#include "tests/unit/cuda_body.h"
#include "tests/unit/head_world.h"

/* ---- what the reference says ------------------------------------------------------------------------------------------ */

/* Weights in their own type, activations and sums in float32, as on the CPU: the bound is the CPU's too, some ten times the reference's own noise
 * (shared golden/README.md). */
static const double BOUND = 1e-4;

static void check_case(golden *g, const char *name)
{
    there t;
    fh_err err;
    size_t sequences = BRIEF ? 1 : g->b, tokens = BRIEF ? 18 : g->t, rows = sequences * tokens;
    float *hidden = malloc(rows * g->d * sizeof *hidden), *logits = malloc(rows * g->v * sizeof *logits);
    fh_kv *kv[8];
    uint32_t lens[8];
    assert_true(g->b <= 8);
    there_open(&t, g->body);
    for (size_t i = 0; i < sequences; i++) kv[i] = new_kv(g->body, FH_F32), lens[i] = (uint32_t)tokens;
    ok(fh_body_forward(g->body, NULL, sequences, kv, lens, g->ids, hidden, &err), err);
    double off = farthest(hidden, g->hidden, rows * g->d) / spread(g->hidden, rows * g->d);
    if (!(off <= BOUND)) fail_msg("%s: states off by %g of their spread", name, off);

    check_greedy(g, name, NULL, kv[0], BRIEF ? 3 : g->n_greedy, hidden, logits);
    for (size_t i = 0; i < sequences; i++) fh_kv_free(kv[i]);
    there_close(&t, g->body);
    free(hidden);
    free(logits);
}

static void states_and_greedy_ids_are_the_references(void **state)
{
    check_families(check_case);
}

static void other_families_are_the_references_too(void **state)
{
    check_shared_families(check_case);
}

/* ---- one pass for everything --------------------------------------------------------------------------------------------- */

static void steps_of_any_size_on_any_cache_are_the_cpus(void **state)
{
    static const fh_dtype types[] = {FH_F32, FH_F16, FH_I8};
    for (size_t i = BRIEF ? OURS - 2 : 0; i < OURS; i++) {
        golden g;
        there t;
        open_case(&g, cases[i]);
        if (BRIEF) g.t = 18;
        size_t n = g.t * g.d;
        float *wanted = malloc(n * sizeof *wanted), *steps = malloc(n * sizeof *steps);
        for (size_t k = 0; k < 3; k++) {
            run_in_steps(&g, types[k], g.ids, (uint32_t)g.t, (uint32_t)g.t, wanted);
            there_open(&t, g.body);
            for (uint32_t step = k ? 5 : 1; step <= g.t; step += k ? 40 : 3 * step) { /* what a cache rounds is the same for every step */
                emu.seed = step;
                run_in_steps(&g, types[k], g.ids, (uint32_t)g.t, step, steps);
                double off = farthest(steps, wanted, n) / spread(wanted, n);
                if (!(off <= kv_bound(types[k]))) fail_msg("%s, %s: steps of %u are off by %g", cases[i], fh_dtype_name(types[k]), step, off);
            }
            there_close(&t, g.body);
        }
        free(wanted);
        free(steps);
        golden_close(&g);
    }
}

/* Prompts and single tokens in one call, sequences that share their first pages, more rows than go through the layers at a time. */
static void a_ragged_batch_with_shared_pages_equals_each_sequence_alone(void **state)
{
    enum { N = BRIEF ? 4 : 12, MOST = BRIEF ? 30 : 150, SHARED = BRIEF ? 18 : 37 };
    golden g;
    there t;
    fh_err err;
    open_case(&g, "gemma3-softcap"); /* windowed layers */
    uint32_t lens[N], ids[N * MOST], start[SHARED];
    size_t rows = 0;
    fh_rng_seed(&rng, 1, 0);
    for (size_t i = 0; i < SHARED; i++) start[i] = (uint32_t)fh_rng_below(&rng, g.v);
    for (size_t i = 0; i < N; i++) {
        lens[i] = i % 3 == 0 ? 1 : (uint32_t)(1 + fh_rng_below(&rng, MOST));
        for (uint32_t j = 0; j < lens[i]; j++) ids[rows++] = (uint32_t)fh_rng_below(&rng, g.v);
    }
    float *wanted = malloc(rows * g.d * sizeof *wanted), *got = malloc((rows + SHARED) * g.d * sizeof *got);
    for (int on_device = 0; on_device < 2; on_device++) {
        fh_kv *kv[N], *first;
        const uint32_t shared_tokens = SHARED;
        if (on_device) there_open(&t, g.body);
        first = new_kv(g.body, FH_F32);
        ok(fh_body_forward(g.body, NULL, 1, &first, &shared_tokens, start, got, &err), err);
        for (size_t i = 0; i < N; i++) ok(fh_kv_fork(&kv[i], first, SHARED, &err), err);
        ok(fh_body_forward(g.body, NULL, N, kv, lens, ids, on_device ? got : wanted, &err), err);
        for (size_t i = 0; i < N; i++) fh_kv_free(kv[i]);
        fh_kv_free(first);
        if (on_device) there_close(&t, g.body);
    }
    double off = farthest(got, wanted, rows * g.d) / spread(wanted, rows * g.d);
    if (!(off <= REORDERED)) fail_msg("off by %g", off);
    free(wanted);
    free(got);
    golden_close(&g);
}

/* A prompt of more tokens than a call's, windows in the middle of pages, decoding on top of it by a graph; the table of pages grows past what a graph was
 * made for. */
static void long_sequences_are_the_cpus(void **state)
{
    enum { PROMPT = BRIEF ? 60 : 240, MORE = BRIEF ? 3 : 16 };
    golden g;
    there t;
    fh_err err;
    open_case(&g, "gemma3-softcap");
    uint32_t ids[PROMPT + MORE];
    fh_rng_seed(&rng, 3, 0);
    for (size_t i = 0; i < PROMPT + MORE; i++) ids[i] = (uint32_t)fh_rng_below(&rng, g.v);
    float *wanted = malloc((PROMPT + MORE) * g.d * sizeof *wanted), *got = malloc((PROMPT + MORE) * g.d * sizeof *got);
    for (uint32_t split = 1; split <= 3; split++) { /* prompts of a third, of half, and the whole of it */
        const uint32_t prompt = PROMPT * split / 3, one = 1;
        for (int on_device = 0; on_device < 2; on_device++) {
            float *to = on_device ? got : wanted;
            if (on_device) there_open(&t, g.body);
            fh_kv *kv = new_kv(g.body, FH_F32);
            ok(fh_body_forward(g.body, NULL, 1, &kv, &prompt, ids, to, &err), err);
            for (size_t i = 0; i < MORE; i++) ok(fh_body_forward(g.body, NULL, 1, &kv, &one, ids + prompt + i, to + (prompt + i) * g.d, &err), err);
            fh_kv_truncate(kv, prompt - 5); /* and back, and on with others */
            ok(fh_body_forward(g.body, NULL, 1, &kv, &one, ids, to, &err), err);
            fh_kv_free(kv);
            if (on_device) there_close(&t, g.body);
        }
        double off = farthest(got, wanted, (prompt + MORE) * g.d) / spread(wanted, (prompt + MORE) * g.d);
        if (!(off <= REORDERED)) fail_msg("prompt of %u: off by %g", prompt, off);
    }
    free(wanted);
    free(got);
    golden_close(&g);
}

/* ---- weights of every type --------------------------------------------------------------------------------------------------- */

/* A matrix's values in another type, or turned, in memory of the test's. */
static void *reencode(fh_linear *w, fh_dtype to, bool turned)
{
    size_t n = w->out * w->in, blocks = n / FH_Q8_VALUES;
    float *x = malloc(n * sizeof *x), *y = malloc(n * sizeof *y);
    uint8_t *data = malloc(n * 4);
    if (!w->data) { free(x), free(y), free(data); return NULL; }
    fh_to_f32(x, w->dtype, w->data, n);
    for (size_t o = 0; o < w->out; o++)
        for (size_t i = 0; i < w->in; i++) y[turned ? i * w->out + o : o * w->in + i] = x[w->transposed ? i * w->out + o : o * w->in + i];
    for (size_t i = 0; to != FH_Q8_0 && i < n; i++) {
        uint16_t h = to == FH_F16 ? fh_f32_to_f16(y[i]) : fh_f32_to_bf16(y[i]);
        if (to == FH_F32) memcpy(data + 4 * i, &y[i], 4);
        else memcpy(data + 2 * i, &h, 2);
    }
    for (size_t b = 0; to == FH_Q8_0 && b < blocks; b++) {
        float most = 0;
        for (size_t i = 0; i < FH_Q8_VALUES; i++) most = fmaxf(most, fabsf(y[b * FH_Q8_VALUES + i]));
        uint16_t scale = fh_f32_to_f16(most / 127);
        float s = fh_f16_to_f32(scale);
        memcpy(data + b * FH_Q8_BYTES, &scale, 2);
        for (size_t i = 0; i < FH_Q8_VALUES; i++) {
            float q = s > 0 ? roundf(y[b * FH_Q8_VALUES + i] / s) : 0;
            data[b * FH_Q8_BYTES + 2 + i] = (uint8_t)(int8_t)fmaxf(-127, fminf(127, q));
        }
    }
    w->data = data, w->dtype = to, w->transposed = turned;
    free(x), free(y);
    return data;
}

/* The CPU rounds a state that comes alone to 16 bits before blocks of Q8_0 (docs/decisions/0013), the device does not. */
static const double ROUNDED = 4e-4;

static void weights_of_every_type_and_any_batch_give_the_cpus_states(void **state)
{
    static const struct { fh_dtype dtype; bool turned, mixed; } kinds[] = {{FH_F32, false, false}, {FH_BF16, false, false}, {FH_F16, true, false},
                                                                           {FH_Q8_0, false, false},
                                                                         {FH_F32, true, false}, {FH_BF16, false, true}};
    static const uint32_t batches[] = {1, 2, 3, 8, 70};
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        golden g;
        there t;
        fh_err err;
        void *made[200];
        size_t n_made = 0;
        open_case(&g, "llama");
        g.body->n_layers = 1;
        for (size_t l = 0; l < g.body->n_layers; l++) {
            fh_layer *y = &g.body->layers[l];
            fh_linear *all[] = {&y->qkv[0], &y->qkv[1], &y->qkv[2], &y->o, &y->gate, &y->up, &y->down};
            for (size_t i = 0; i < 7; i++) {
                fh_dtype to = kinds[k].mixed && i % 2 ? FH_F16 : kinds[k].dtype; /* mixed: q and v of one type, k of another */
                made[n_made++] = reencode(all[i], to == FH_Q8_0 && all[i]->in % FH_Q8_VALUES ? FH_BF16 : to, kinds[k].turned);
            }
        }
        for (size_t b = 0; b < sizeof batches / sizeof *batches - BRIEF; b++) {
            uint32_t n = batches[b], lens[70], ids[70];
            float *wanted = malloc(n * g.d * sizeof *wanted), *got = malloc(n * g.d * sizeof *got);
            for (int on_device = 0; on_device < 2; on_device++) {
                fh_kv *kv[70];
                if (on_device) there_open(&t, g.body);
                for (uint32_t i = 0; i < n; i++) kv[i] = new_kv(g.body, FH_F32), lens[i] = 1, ids[i] = (7 * i + 3) % (uint32_t)g.v;
                for (int step = 0; step < (n > 8 ? 1 : 3); step++) ok(fh_body_forward(g.body, NULL, n, kv, lens, ids, on_device ? got : wanted, &err), err);
                for (uint32_t i = 0; i < n; i++) fh_kv_free(kv[i]);
                if (on_device) there_close(&t, g.body);
            }
            double off = farthest(got, wanted, n * g.d) / spread(wanted, n * g.d);
            double bound = kinds[k].dtype == FH_Q8_0 && n == 1 ? ROUNDED : REORDERED;
            if (!(off <= bound)) fail_msg("kind %zu, %u rows: off by %g", k, n, off);
            free(wanted);
            free(got);
        }
        for (size_t i = 0; i < n_made; i++) free(made[i]);
        golden_close(&g);
    }
}

/* ---- the unified maximum ------------------------------------------------------------------------------------------------------- */

static void any_constant_gives_the_same_states_and_what_leaves_its_range_is_counted(void **state)
{
    static const fh_unified kinds[] = {{0, false}, {500, false}, {-500, false}, {0, true}};
    golden g;
    there t;
    fh_err err;
    open_case(&g, "llama");
    if (BRIEF) g.t = 18;
    float *wanted = malloc(g.t * g.d * sizeof *wanted), *got = malloc(g.t * g.d * sizeof *got);
    run_in_steps(&g, FH_F32, g.ids, (uint32_t)g.t, 1, wanted);
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        uint64_t again, parts, keys = 0;
        for (size_t l = 0; l < g.body->n_layers; l++) g.body->layers[l].unified = kinds[k];
        there_open(&t, g.body);
        run_in_steps(&g, FH_F32, g.ids, (uint32_t)g.t, 1, got);
        ok(fh_cuda_backend()->body_attention(t.body, &again, &parts, &err), err);
        there_close(&t, g.body);
        double off = farthest(got, wanted, g.t * g.d) / spread(wanted, g.t * g.d);
        if (!(off <= REORDERED)) fail_msg("constant %g: off by %g", (double)kinds[k].constant, off);
        for (size_t i = 0; i < g.t; i++) keys += g.body->n_layers * g.body->heads * (i / 16 + 1); /* splits of one page: there are few blocks */
        if (kinds[k].wide) assert_int_equal(parts, 0);
        else assert_true(parts >= g.t * g.body->n_layers * g.body->heads && parts <= keys);
        assert_int_equal(again, kinds[k].constant != 0 ? parts : 0);
    }
    free(wanted);
    free(got);
    golden_close(&g);
}

/* ---- which kernel multiplies ------------------------------------------------------------------------------------------------------ */

/* cuBLAS's place is taken by a plain kernel; what is tested is what is given to it, and what becomes of its results. Activations of bf16 weights are within
 * 2^-18 there. */
static void every_kernel_of_a_product_gives_the_same_states(void **state)
{
    static const char *const names[] = {"few rows", "tiles", "a library"};
    enum { N = 21, PRODUCTS = 4, MOST = 64 };
    golden g;
    fh_err err;
    open_case(&g, "llama-linear-bias");
    g.body->n_layers = 1;
    uint32_t lens[N], ids[N];
    for (uint32_t i = 0; i < N; i++) lens[i] = 1, ids[i] = (5 * i + 1) % (uint32_t)g.v;
    float *wanted = malloc(N * g.d * sizeof *wanted), *got = malloc(N * g.d * sizeof *got);
    emu.blas = true;
    for (uint32_t n = BRIEF ? N : 1; n <= N; n += 20) {
        for (int kind = -1; kind < FH_PRODUCTS; kind++) { /* -1: here */
            there t;
            fh_kv *kv[N];
            fh_cuda_product_time times[MOST];
            size_t found = 0;
            if (kind >= 0) {
                there_open(&t, g.body);
                ok(fh_cuda_backend()->body_measure(t.body, 1, times, MOST, &found, &err), err);
                assert_int_equal(found, PRODUCTS * 7);
                for (size_t i = 0; i < found; i++) {
                    assert_true((times[i].rows <= 8) == (times[i].seconds[FH_PRODUCT_FEW] > 0) && times[i].seconds[FH_PRODUCT_TILE] > 0 &&
                                times[i].seconds[FH_PRODUCT_BLAS] > 0);
                    for (int k = 0; k < FH_PRODUCTS; k++) times[i].seconds[k] = k == kind && times[i].seconds[k] > 0 ? 1 : times[i].seconds[k] > 0 ? 2 : 0;
                }
                ok(fh_cuda_backend()->body_prefer(t.body, times, found, &err), err);
            }
            for (uint32_t i = 0; i < n; i++) kv[i] = new_kv(g.body, FH_F32);
            for (int step = 0; step < 3; step++) ok(fh_body_forward(g.body, NULL, n, kv, lens, ids, kind < 0 ? wanted : got, &err), err);
            for (uint32_t i = 0; i < n; i++) fh_kv_free(kv[i]);
            if (kind < 0) continue;
            there_close(&t, g.body);
            double off = farthest(got, wanted, n * g.d) / spread(wanted, n * g.d);
            if (!(off <= (kind == FH_PRODUCT_BLAS ? BOUND : REORDERED))) fail_msg("%s, %u rows: off by %g", names[kind], n, off);
        }
    }
    emu.blas = false;
    free(wanted);
    free(got);
    golden_close(&g);
}

/* ---- states that stay there ---------------------------------------------------------------------------------------------------------- */

static void a_state_that_stays_is_what_the_head_takes(void **state)
{
    golden g;
    there t;
    world w;
    fh_err err;
    fh_cuda_head *head;
    open_case(&g, "llama");
    fh_rng_seed(&rng, 2, 0);
    world_open(&w, (shape){300, (uint32_t)g.d, 24, FH_I8, FH_I8, FH_BF16, .rerank = 4});
    there_open(&t, g.body);
    fh_cuda_source source = {.parts = &w.head->parts, .dense = w.head->exact, .slot_of = w.head->slot_of, .dead = w.head->dead_map, .always = w.head->always,
                             .forced = w.head->forced, .n_always = w.head->n_always, .n_forced = w.head->n_forced};
    ok(fh_cuda_backend()->head_new(&head, t.device, &source, &err), err);
    fh_kv *kv[2] = {new_kv(g.body, FH_F32), new_kv(g.body, FH_F32)};
    float *hidden = malloc(30 * g.d * sizeof *hidden), logits[2];
    uint32_t ids[2];
    double body, there_too;
    float *other = make_states(&w, 1);
    fh_head_call call = {.batch = 1, .probes = 5, .kept = 5, .rerank = 4, .k = 1};
    assert_int_equal(fh_cuda_backend()->head_topk(head, &call, ids, logits, &err), FH_EUSAGE); /* nothing was left yet */
    for (uint32_t at = 0, len = 20; at < 26; at += len, len = 1) {
        ok(fh_body_forward(g.body, NULL, 1, &kv[0], &len, g.ids + at, hidden, &err), err);
        call.states = hidden + (len - 1) * g.d;
        ok(fh_cuda_backend()->head_topk(head, &call, &ids[0], &logits[0], &err), err);
        ok(fh_body_forward(g.body, NULL, 1, &kv[1], &len, g.ids + at, NULL, &err), err);
        call.states = other; /* one that is given in between is another matter */
        ok(fh_cuda_backend()->head_topk(head, &call, &ids[1], &logits[1], &err), err);
        call.states = NULL;
        ok(fh_cuda_backend()->head_topk(head, &call, &ids[1], &logits[1], &err), err);
        assert_int_equal(ids[0], ids[1]);
        assert_true(logits[0] == logits[1]);
    }
    fh_cuda_backend()->device_times(t.device, &body, &there_too);
    assert_true(body > 0 && there_too > 0);
    /* of two sequences none stays; a strange one is told */
    uint32_t ones[2] = {1, 1};
    assert_int_equal(fh_body_forward(g.body, NULL, 2, kv, ones, g.ids, NULL, &err), FH_EUSAGE);
    fh_kv_truncate(kv[1], 0);
    ((float *)(void *)g.body->final_norm.weight)[3] = NAN;
    fh_kv_free(kv[0]), fh_kv_free(kv[1]);
    g.body->device = NULL;
    fh_cuda_backend()->body_free(t.body);
    ok(fh_cuda_backend()->body_new(&t.body, t.device, g.body, &err), err);
    g.body->device = fh_cuda_backend()->body_does(t.body);
    kv[0] = new_kv(g.body, FH_F32);
    ok(fh_body_forward(g.body, NULL, 1, kv, ones, g.ids, NULL, &err), err);
    assert_int_equal(fh_cuda_backend()->head_topk(head, &call, ids, logits, &err), FH_EUSAGE);
    assert_non_null(strstr(err.text, "finite"));
    fh_kv_free(kv[0]);
    fh_cuda_backend()->head_free(head);
    there_close(&t, g.body);
    world_close(&w);
    free(hidden);
    free(other);
    golden_close(&g);
}

/* A step that was captured is one launch and a few copies, whatever the number of layers. */
static void a_step_is_a_graph_once_its_shape_is_known(void **state)
{
    golden g;
    there t;
    fh_err err;
    float hidden[64];
    const uint32_t one = 1;
    open_case(&g, "llama");
    there_open(&t, g.body);
    fh_kv *kv = new_kv(g.body, FH_F32);
    long calls[20];
    for (size_t i = 0; i < 20; i++) {
        emu_fail_at(0);
        ok(fh_body_forward(g.body, NULL, 1, &kv, &one, g.ids + i, hidden, &err), err);
        calls[i] = emu_calls();
    }
    assert_true(calls[0] > 9 * (long)g.body->n_layers);
    for (size_t i = 2; i < 20; i++)
        if (i != 16) assert_true(calls[i] <= 5); /* the 17th token has a page of its own */
    fh_kv_free(kv);
    there_close(&t, g.body);
    golden_close(&g);
}

static void greedy_text_of_the_demo_model_is_the_cpus(void **state)
{
    enum { PROMPT = 9, TOKENS = BRIEF ? 2 : 24 };
    static const uint32_t prompt[PROMPT] = {11, 500, 42, 1000, 7, 3000, 12000, 88, 640};
    fh_model m;
    fh_err err;
    there t;
    uint32_t said[2][TOKENS];
    ok(fh_model_open(&m, "demo/prose-7m", NULL, FH_MODEL_BODY | FH_MODEL_HEAD, NULL, &err), err);
    size_t d = m.config->hidden, v = m.config->vocab;
    float *hidden = malloc(PROMPT * d * sizeof *hidden), *logits = malloc(v * sizeof *logits);
    for (int on_device = 0; on_device < 2; on_device++) {
        const uint32_t all = PROMPT, one = 1;
        if (on_device) there_open(&t, m.body);
        fh_kv *kv = new_kv(m.body, FH_F32);
        ok(fh_body_forward(m.body, NULL, 1, &kv, &all, prompt, hidden, &err), err);
        memmove(hidden, hidden + (PROMPT - 1) * d, d * sizeof *hidden);
        for (size_t i = 0; i < TOKENS; i++) {
            ok(fh_dense_logits(&m.dense, NULL, hidden, 1, logits, &err), err);
            said[on_device][i] = best_of(logits, v);
            ok(fh_body_forward(m.body, NULL, 1, &kv, &one, &said[on_device][i], hidden, &err), err);
        }
        fh_kv_free(kv);
        if (on_device) there_close(&t, m.body);
    }
    assert_memory_equal(said[0], said[1], sizeof said[0]);
    free(hidden);
    free(logits);
    fh_model_close(&m);
}

/* ---- what goes wrong ------------------------------------------------------------------------------------------------------------- */

static void too_little_memory_and_heads_too_wide_are_said(void **state)
{
    golden g;
    fh_cuda_device *d;
    fh_cuda_body *c;
    fh_err err;
    open_case(&g, "llama");
    size_t memory = emu.memory;
    ok(device_there(&d, &err), err);
    emu.memory = 100 << 10;
    assert_int_equal(fh_cuda_backend()->body_new(&c, d, g.body, &err), FH_ENOMEM);
    if (!strstr(err.text, "the body needs ") || !strstr(err.text, " MiB are free")) fail_msg("%s", err.text);
    emu.memory = memory;
    size_t head_dim = g.body->head_dim;
    g.body->head_dim = 513;
    assert_int_equal(fh_cuda_backend()->body_new(&c, d, g.body, &err), FH_EUNSUPPORTED);
    if (!strstr(err.text, "attention heads of 513 values")) fail_msg("%s", err.text);
    g.body->head_dim = head_dim;
    device_gone(d);
    golden_close(&g);
}

/* A prompt and three steps of one layer: every call of the runtime fails once. */
static void a_device_that_fails_anywhere_is_a_clean_error(void **state)
{
    golden g;
    fh_err err;
    open_case(&g, "llama");
    g.body->n_layers = 1;
    const uint32_t prompt = 20, one = 1;
    float wanted[64], *hidden = malloc(prompt * g.d * sizeof *hidden);
    assert_true(g.d <= 64);
    for (long n = 0;; n += n && BRIEF ? 7 : 1) {
        fh_cuda_device *d = NULL;
        fh_cuda_body *c = NULL;
        fh_kv *kv = NULL;
        uint64_t again, parts;
        emu_fail_at(n);
        fh_status rc = device_there(&d, &err);
        if (rc == FH_OK && (rc = fh_cuda_backend()->body_new(&c, d, g.body, &err)) == FH_OK) {
            g.body->device = fh_cuda_backend()->body_does(c);
            kv = new_kv(g.body, FH_F32);
            uint32_t before = 0;
            for (int i = 0; rc == FH_OK && i < 4; i++) {
                before = fh_kv_length(kv);
                rc = fh_body_forward(g.body, NULL, 1, &kv, i ? &one : &prompt, g.ids + (i ? prompt + (uint32_t)i - 1 : 0), hidden, &err);
            }
            if (rc == FH_OK) rc = fh_cuda_backend()->body_attention(c, &again, &parts, &err);
            else { /* nothing is left half done: the same step again */
                bool first = !before;
                assert_int_equal(fh_kv_length(kv), before);
                emu_fail_at(0);
                ok(fh_body_forward(g.body, NULL, 1, &kv, first ? &prompt : &one, g.ids + before, hidden, &err), err);
                for (uint32_t at = fh_kv_length(kv); at < prompt + 3; at++) ok(fh_body_forward(g.body, NULL, 1, &kv, &one, g.ids + at, hidden, &err), err);
                rc = FH_EFAIL;
            }
            if (n == 0) memcpy(wanted, hidden, g.d * sizeof *wanted);
            assert_memory_equal(hidden, wanted, g.d * sizeof *wanted);
        }
        bool reached = emu_calls() >= n;
        emu_fail_at(0);
        fh_kv_free(kv);
        g.body->device = NULL;
        fh_cuda_backend()->body_free(c);
        device_gone(d);
        if (rc == FH_OK && n && !reached) break;
    }
    free(hidden);
    golden_close(&g);
}

#ifdef FH_FAULTS
static void running_out_of_memory_anywhere_is_a_clean_error(void **state)
{
    golden g;
    fh_err err;
    open_case(&g, "llama");
    const uint32_t prompt = 20;
    float *hidden = malloc(prompt * g.d * sizeof *hidden);
    for (long n = 1;; n += BRIEF ? 3 : 1) {
        fh_cuda_device *d = NULL;
        fh_cuda_body *c = NULL;
        fh_kv *kv = NULL;
        fh_fault_set(FH_FAULT_ALLOC, n);
        fh_status rc = device_there(&d, &err);
        if (rc == FH_OK) rc = fh_cuda_backend()->body_new(&c, d, g.body, &err);
        if (rc == FH_OK) g.body->device = fh_cuda_backend()->body_does(c);
        if (rc == FH_OK) rc = fh_kv_new(&kv, g.body, &err);
        if (rc == FH_OK) rc = fh_body_forward(g.body, NULL, 1, &kv, &prompt, g.ids, hidden, &err);
        fh_fault_set(FH_FAULT_ALLOC, 0);
        fh_kv_free(kv);
        g.body->device = NULL;
        fh_cuda_backend()->body_free(c);
        device_gone(d);
        if (rc == FH_OK) { assert_true(n > 5); break; }
        assert_int_equal(rc, FH_ENOMEM);
    }
    free(hidden);
    golden_close(&g);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(states_and_greedy_ids_are_the_references),
        cmocka_unit_test(other_families_are_the_references_too),
        cmocka_unit_test(steps_of_any_size_on_any_cache_are_the_cpus),
        cmocka_unit_test(a_ragged_batch_with_shared_pages_equals_each_sequence_alone),
        cmocka_unit_test(long_sequences_are_the_cpus),
        cmocka_unit_test(weights_of_every_type_and_any_batch_give_the_cpus_states),
        cmocka_unit_test(any_constant_gives_the_same_states_and_what_leaves_its_range_is_counted),
        cmocka_unit_test(every_kernel_of_a_product_gives_the_same_states),
        cmocka_unit_test(a_state_that_stays_is_what_the_head_takes),
        cmocka_unit_test(a_step_is_a_graph_once_its_shape_is_known),
        cmocka_unit_test(greedy_text_of_the_demo_model_is_the_cpus),
        cmocka_unit_test(too_little_memory_and_heads_too_wide_are_said),
        cmocka_unit_test(a_device_that_fails_anywhere_is_a_clean_error),
#ifdef FH_FAULTS
        cmocka_unit_test(running_out_of_memory_anywhere_is_a_clean_error),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
