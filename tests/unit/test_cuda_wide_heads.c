/* Attention heads of more than 256 values on the emulated device, decoding and prompts, as the CPU has them. */
#include "tests/unit/golden_families.h"

#include "tests/unit/cuda_body.h"

/* Of the last layer `window` is 0: it sees all keys. */
typedef struct wide { uint32_t dim, heads, kv_heads, window; float softcap; } wide;

static const wide shapes[] = {
    {512, 5, 1, 9, 3},      /* more queries of a key head than a pass takes, the last alone */
    {257, 2, 2, 0, 0},      /* one value past what lanes held of 256; half of them rotated */
    {344, 6, 2, 20, 0},     /* the last group of an int8 cache is not whole */
    {510, 3, 3, 17, 2},
};
enum { SHAPES = sizeof shapes / sizeof *shapes, TOKENS = BRIEF ? 20 : 36 };

/* The checkpoint of gemma3-softcap with attention of another shape: random weights, in memory. */
typedef struct model { golden g; fh_config config; fh_tensors *tensors; char *image; } model;

static bool ends(const char *name, const char *with) { return strlen(name) >= strlen(with) && !strcmp(name + strlen(name) - strlen(with), with); }

static void reshape(fh_st_spec *s, const wide *is)
{
    if (ends(s->name, "q_norm.weight") || ends(s->name, "k_norm.weight")) s->shape[0] = is->dim;
    if (ends(s->name, "q_proj.weight")) s->shape[0] = (uint64_t)is->dim * is->heads;
    if (ends(s->name, "k_proj.weight") || ends(s->name, "v_proj.weight")) s->shape[0] = (uint64_t)is->dim * is->kv_heads;
    if (ends(s->name, "o_proj.weight")) s->shape[1] = (uint64_t)is->dim * is->heads;
}

static void model_open(model *m, const wide *is)
{
    enum { MOST = 40 };
    fh_rng rng;
    fh_err err;
    fh_st_spec specs[MOST];
    size_t n, header, bytes = 0;
    open_case(&m->g, "gemma3-softcap");
    n = fh_tensors_count(m->g.checkpoint.tensors);
    assert_true(n <= MOST);
    for (size_t i = 0; i < n; i++) {
        const fh_tensor *t = fh_tensors_at(m->g.checkpoint.tensors, i);
        specs[i] = (fh_st_spec){t->name, FH_F32, t->rank, {t->shape[0], t->rank > 1 ? t->shape[1] : 0}};
        reshape(&specs[i], is);
        bytes += specs[i].shape[0] * (t->rank > 1 ? specs[i].shape[1] : 1) * sizeof(float);
    }
    char *begin = fh_st_header(specs, n, NULL, &header);
    m->image = fh_aligned(header + bytes);
    memcpy(m->image, begin, header);
    fh_free(begin);
    fh_rng_seed(&rng, is->dim, 0);
    for (size_t i = 0; i < bytes; i += sizeof(float)) {
        float x = (float)(fh_rng_double(&rng) - 0.5);
        memcpy(m->image + header + i, &x, sizeof x);
    }
    ok(fh_tensors_open_memory(&m->tensors, m->image, header + bytes, "wide", &err), err);
    m->config = m->g.checkpoint.config;
    m->config.head_dim = is->dim, m->config.heads = is->heads, m->config.kv_heads = is->kv_heads, m->config.attn_softcap = (double)is->softcap;
    if (is->dim % 2) m->config.rope.partial = m->config.rope_local.partial = 128.0 / is->dim;
    m->config.query_scalar = (double)is->dim / 4;
    fh_body_close(m->g.body);
    fh_body_source source = {.config = &m->config, .tensors = m->tensors};
    ok(fh_body_open(&m->g.body, &source, "wide", &err), err);
    for (size_t l = 0; l < m->g.body->n_layers; l++) m->g.body->layers[l].window = l + 1 < m->g.body->n_layers ? is->window : 0;
}

static void model_close(model *m)
{
    golden_close(&m->g);
    fh_tensors_close(m->tensors);
    fh_free(m->image);
}

/* A prompt of `first` tokens, and the others `step` at a time. */
static void run_after(const golden *g, fh_dtype type, uint32_t first, uint32_t step, float *hidden)
{
    fh_kv *kv = new_kv(g->body, type);
    go_on(g, kv, g->ids, first, first, hidden);
    go_on(g, kv, g->ids + first, TOKENS - first, step, hidden + first * g->d);
    fh_kv_free(kv);
}

static void as_here(const float *got, const float *wanted, size_t n, double bound, const wide *is, const char *what, uint32_t step)
{
    double off = farthest(got, wanted, n) / spread(wanted, n);
    if (!(off <= bound)) fail_msg("heads of %u, %s, steps of %u: off by %g", is->dim, what, step, off);
}

static void wide_heads_in_steps_of_any_size_on_any_cache_are_the_cpus(void **state)
{
    static const fh_dtype types[] = {FH_F32, FH_F16, FH_I8};
    static const struct { uint32_t first, step; } runs[] = {{0, TOKENS}, {0, 7}, {TOKENS - 4, 1}}; /* tiles; on top of others, at their seams; single tokens */
    for (size_t i = 0; i < SHAPES; i++) {
        model m;
        there t;
        model_open(&m, &shapes[i]);
        size_t n = TOKENS * m.g.d;
        float *wanted = malloc(n * sizeof *wanted), *got = malloc(n * sizeof *got);
        for (size_t k = 0; k < 3; k++) {
            run_after(&m.g, types[k], 0, TOKENS, wanted);
            there_open(&t, m.g.body);
            for (size_t s = k ? 2 : 0; s < 3; s++) { /* what a cache rounds is the same for every step */
                emu.seed = i + s;
                run_after(&m.g, types[k], runs[s].first, runs[s].step, got);
                as_here(got, wanted, n, kv_bound(types[k]), &shapes[i], fh_dtype_name(types[k]), runs[s].step);
            }
            there_close(&t, m.g.body);
        }
        free(wanted);
        free(got);
        model_close(&m);
    }
}

/* A prompt beside sequences that bring one token, on pages that they share. */
static void wide_heads_of_a_ragged_batch_are_the_cpus(void **state)
{
    enum { N = 4, SHARED = 17, ROWS = 1 + 13 + 1 + 2 };
    static const uint32_t lens[N] = {1, 13, 1, 2}, shared_tokens = SHARED;
    for (size_t i = 0; i < 2; i++) {
        model m;
        there t;
        fh_err err;
        model_open(&m, &shapes[i]);
        float *out[2] = {malloc(SHARED * m.g.d * sizeof(float)), malloc(SHARED * m.g.d * sizeof(float))};
        for (int on_device = 0; on_device < 2; on_device++) {
            fh_kv *kv[N], *first;
            if (on_device) there_open(&t, m.g.body);
            first = new_kv(m.g.body, FH_F32);
            ok(fh_body_forward(m.g.body, NULL, 1, &first, &shared_tokens, m.g.ids, out[on_device], &err), err);
            for (size_t k = 0; k < N; k++) ok(fh_kv_fork(&kv[k], first, SHARED, &err), err);
            ok(fh_body_forward(m.g.body, NULL, N, kv, lens, m.g.ids + SHARED, out[on_device], &err), err);
            for (size_t k = 0; k < N; k++) fh_kv_free(kv[k]);
            fh_kv_free(first);
            if (on_device) there_close(&t, m.g.body);
        }
        as_here(out[1], out[0], ROWS * m.g.d, REORDERED, &shapes[i], "a batch", 0);
        free(out[0]);
        free(out[1]);
        model_close(&m);
    }
}

static void wide_heads_out_of_the_unified_range_are_done_again(void **state)
{
    static const fh_unified kinds[] = {{0, false}, {500, false}, {-500, false}, {0, true}};
    enum { FEW = 4 };
    model m;
    there t;
    fh_err err;
    model_open(&m, &shapes[0]);
    size_t n = TOKENS * m.g.d;
    float *wanted = malloc(n * sizeof *wanted), *got = malloc(n * sizeof *got);
    run_after(&m.g, FH_F32, TOKENS - FEW, 1, wanted);
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        uint64_t again, parts;
        for (size_t l = 0; l < m.g.body->n_layers; l++) m.g.body->layers[l].unified = kinds[k];
        there_open(&t, m.g.body);
        run_after(&m.g, FH_F32, TOKENS - FEW, 1, got);
        ok(fh_cuda_backend()->body_attention(t.body, &again, &parts, &err), err);
        there_close(&t, m.g.body);
        as_here(got, wanted, n, REORDERED, &shapes[0], "a constant far off", (uint32_t)k);
        assert_true(kinds[k].wide ? !parts : parts >= FEW * m.g.body->heads);
        if (kinds[k].constant == 0) assert_int_equal(again, 0);
        else assert_true(again > FEW && again <= parts); /* splits before a window are none */
    }
    free(wanted);
    free(got);
    model_close(&m);
}

/* What an sm_86 or sm_89 lets a block have is enough for a head of 512. */
static void wide_heads_fit_where_shared_memory_is_smallest(void **state)
{
    size_t shared_memory = emu.shared;
    model m;
    there t;
    fh_err err;
    fh_cuda_device *d;
    fh_cuda_body *c;
    model_open(&m, &shapes[0]);
    emu.shared = 99 << 10;
    there_open(&t, m.g.body);
    there_close(&t, m.g.body);
    emu.shared = 48 << 10;
    ok(device_there(&d, &err), err);
    assert_int_equal(fh_cuda_backend()->body_new(&c, d, m.g.body, &err), FH_EUNSUPPORTED);
    if (!strstr(err.text, "attention heads of 512 takes")) fail_msg("%s", err.text);
    emu.shared = shared_memory;
    device_gone(d);
    model_close(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wide_heads_in_steps_of_any_size_on_any_cache_are_the_cpus),
        cmocka_unit_test(wide_heads_of_a_ragged_batch_are_the_cpus),
        cmocka_unit_test(wide_heads_out_of_the_unified_range_are_done_again),
        cmocka_unit_test(wide_heads_fit_where_shared_memory_is_smallest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
