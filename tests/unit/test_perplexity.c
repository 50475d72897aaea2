#include "tests/unit/body_cases.h"

#include "validate/validate.h"

/* -ln p of ids[at] after ids[begin..at), all in double from there on. */
static double brute(const golden *g, const uint32_t *ids, size_t begin, size_t at)
{
    fh_err err;
    fh_kv *kv;
    uint32_t n = (uint32_t)(at - begin);
    float *hidden = malloc(n * g->d * sizeof *hidden);
    double *logits = malloc(g->v * sizeof *logits), top = -INFINITY, sum = 0;
    ok(fh_kv_new(&kv, g->body, &err), err);
    ok(fh_body_forward(g->body, NULL, 1, &kv, &n, ids + begin, hidden, &err), err);
    for (size_t v = 0; v < g->v; v++) {
        float row[256];
        fh_to_f32(row, g->dense.rows.dtype, fh_row(&g->dense.rows, v), g->d);
        logits[v] = 0;
        for (size_t j = 0; j < g->d; j++) logits[v] += (double)row[j] * hidden[(n - 1) * g->d + j];
        if (logits[v] > top) top = logits[v];
    }
    for (size_t v = 0; v < g->v; v++) sum += exp(logits[v] - top);
    double nll = top + log(sum) - logits[ids[at]];
    fh_kv_free(kv);
    free(hidden);
    free(logits);
    return nll;
}

/* DESIGN 9, word for word: each token is scored by the first window that reaches past it. */
static double by_definition(const golden *g, const uint32_t *ids, size_t n, size_t window, size_t stride, size_t *count)
{
    double sum = 0;
    bool *scored = calloc(n, sizeof *scored);
    scored[0] = true;
    *count = 0;
    for (size_t begin = 0;; begin += stride) {
        size_t end = begin + window < n ? begin + window : n;
        for (size_t t = begin; t < end; t++) {
            if (scored[t]) continue;
            sum += brute(g, ids, begin, t);
            scored[t] = true;
            ++*count;
        }
        if (begin + window >= n) break;
    }
    free(scored);
    return exp(sum / (double)*count);
}

static void some_ids(const golden *g, uint32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++) ids[i] = i < g->t ? g->ids[i] : (uint32_t)((i * i + 3 * i) % g->v);
}

static void it_is_what_the_definition_says(void **state)
{
    static const struct { size_t n; uint32_t window, stride;
    } rows[] = {
        {2, 2, 1},   {2, 16, 8},   {16, 16, 8}, {17, 16, 8}, {24, 16, 8},    {25, 16, 8},
        {60, 16, 8}, {60, 16, 15}, {61, 16, 1}, {60, 7, 3},  {60, 256, 255}, {70, 2, 1},
    };
    golden g;
    fh_model m;
    fh_err err;
    uint32_t ids[70];
    assert_true(golden_open(&g, "tests/golden/llama"));
    some_ids(&g, ids, 70);
    ok(fh_model_open(&m, "tests/golden/llama", NULL, FH_MODEL_BODY | FH_MODEL_HEAD, NULL, &err), err);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        fh_perplexity_params p = {.window = rows[i].window, .stride = rows[i].stride};
        fh_perplexity_report r;
        size_t count;
        double wanted = by_definition(&g, ids, rows[i].n, rows[i].window, rows[i].stride, &count);
        ok(fh_perplexity(&m, ids, rows[i].n, &p, NULL, &r, &err), err);
        assert_int_equal(r.tokens, count);
        assert_int_equal(r.tokens, rows[i].n - 1);
        if (!(fabs(r.perplexity / wanted - 1) <= 1e-5)) fail_msg("row %zu: %.9g, by definition %.9g", i, r.perplexity, wanted);
        assert_true(r.missed == 0 && r.probes == 0 && r.backoff == 0 && r.seconds >= 0);
    }
    fh_model_close(&m);
    golden_close(&g);
}

/* The dense rows as a head of K clusters, by token id. */
typedef struct flash { fh_head *head; uint32_t permutation[320]; float *centroids; } flash;

static void make_flash(flash *f, fh_model *m, uint32_t k, const uint32_t *dead, size_t n_dead)
{
    fh_err err;
    size_t d = m->dense.rows.cols, cap = 320 / k;
    f->centroids = calloc(k * d, sizeof *f->centroids);
    for (uint32_t i = 0; i < 320; i++) {
        float row[256];
        f->permutation[i] = i;
        fh_to_f32(row, m->dense.rows.dtype, fh_row(&m->dense.rows, i), d);
        for (size_t j = 0; j < d; j++) f->centroids[i / cap * d + j] += row[j] / (float)cap;
    }
    fh_head_parts parts = {.vocab = 320,
                           .hidden = (uint32_t)d,
                           .clusters = k,
                           .cap = (uint32_t)cap,
                           .probes = k,
                           .centroids = {f->centroids, FH_F32, k, d, d * sizeof(float)},
                           .tokens = m->dense.rows,
                           .tokens_exact = true,
                           .permutation = f->permutation,
                           .dead = dead,
                           .n_dead = n_dead};
    ok(fh_head_from_parts(&f->head, &parts, "test", &err), err);
    m->head = f->head; /* closed with the model */
}

static void with_all_probes_flash_is_the_dense_head(void **state)
{
    golden g;
    fh_model m;
    fh_err err;
    flash f;
    uint32_t ids[60];
    assert_true(golden_open(&g, "tests/golden/llama"));
    some_ids(&g, ids, 60);
    ok(fh_model_open(&m, "tests/golden/llama", NULL, FH_MODEL_BODY | FH_MODEL_HEAD, NULL, &err), err);
    make_flash(&f, &m, 40, NULL, 0);
    fh_perplexity_params p = {.window = 16, .stride = 8};
    fh_perplexity_report dense, all;
    ok(fh_perplexity(&m, ids, 60, &p, NULL, &dense, &err), err);
    p.flash = true;
    ok(fh_perplexity(&m, ids, 60, &p, NULL, &all, &err), err);
    assert_true(fabs(all.perplexity / dense.perplexity - 1) <= 1e-5);
    assert_int_equal(all.missed, 0);
    assert_int_equal(all.probes, 40);
    fh_model_close(&m);
    free(f.centroids);
    golden_close(&g);
}

static void what_is_no_candidate_gets_its_share_of_the_back_off(void **state)
{
    golden g;
    fh_model m;
    fh_err err;
    flash f;
    const uint32_t dead[] = {0, 319};
    uint32_t ids[41];
    assert_true(golden_open(&g, "tests/golden/llama"));
    some_ids(&g, ids, 41);
    ids[20] = 319; /* a dead token in the text */
    ok(fh_model_open(&m, "tests/golden/llama", NULL, FH_MODEL_BODY | FH_MODEL_HEAD, NULL, &err), err);
    make_flash(&f, &m, 40, dead, 2);
    fh_perplexity_params p = {.window = 64, .stride = 32, .flash = true, .probes = 5, .backoff = 0.01};
    fh_perplexity_report r;
    ok(fh_perplexity(&m, ids, 41, &p, NULL, &r, &err), err);

    fh_scratch *scratch;
    fh_kv *kv;
    const uint32_t n = 40;
    float *hidden = malloc(n * g.d * sizeof *hidden);
    ok(fh_scratch_new(&scratch, m.head, 1, &err), err);
    ok(fh_kv_new(&kv, m.body, &err), err);
    ok(fh_body_forward(m.body, NULL, 1, &kv, &n, ids, hidden, &err), err);
    double sum = 0;
    uint64_t missed = 0;
    for (size_t t = 1; t <= n; t++) {
        uint32_t found[320];
        float logits[320];
        fh_query q = {.probes = 5};
        double z = 0, p_next = 0;
        size_t count = 0;
        ok(fh_head_topk(m.head, scratch, hidden + (t - 1) * g.d, 1, &q, 320, found, logits, &err), err);
        for (; count < 320 && found[count] != FH_NO_TOKEN; count++) z += exp((double)logits[count] - logits[0]);
        for (size_t i = 0; i < count; i++)
            if (found[i] == ids[t]) p_next = 0.99 * exp((double)logits[i] - logits[0]) / z;
        missed += p_next == 0;
        sum -= log(p_next > 0 ? p_next : 0.01 / (318 - (double)count));
    }
    assert_int_equal(r.missed, missed);
    assert_true(missed > 0 && missed < n);
    assert_true(fabs(r.missed_share - (double)missed / n) <= 1e-12);
    assert_true(fabs(r.perplexity / exp(sum / n) - 1) <= 1e-5);
    assert_true(r.backoff == 0.01 && r.probes == 5 && r.tokens == n);
    p.backoff = 0;
    ok(fh_perplexity(&m, ids, 41, &p, NULL, &r, &err), err);
    assert_true(r.backoff == FH_BACKOFF);
    fh_scratch_free(scratch);
    fh_kv_free(kv);
    free(hidden);
    fh_model_close(&m);
    free(f.centroids);
    golden_close(&g);
}

static void threads_change_no_bit(void **state)
{
    golden g;
    fh_model m;
    fh_err err;
    fh_pool *pool;
    flash f;
    uint32_t ids[200];
    assert_true(golden_open(&g, "tests/golden/llama"));
    some_ids(&g, ids, 200);
    ok(fh_model_open(&m, "tests/golden/llama", NULL, FH_MODEL_BODY | FH_MODEL_HEAD, NULL, &err), err);
    make_flash(&f, &m, 40, NULL, 0);
    ok(fh_pool_new(&pool, 3, &err), err);
    const fh_job job = {.pool = pool};
    for (int flash_head = 0; flash_head < 2; flash_head++) {
        fh_perplexity_params p = {.window = 32, .stride = 16, .flash = flash_head, .probes = 7};
        fh_perplexity_report one, three;
        ok(fh_perplexity(&m, ids, 200, &p, NULL, &one, &err), err);
        ok(fh_perplexity(&m, ids, 200, &p, &job, &three, &err), err);
        assert_true(one.perplexity == three.perplexity && one.missed == three.missed);
    }
    fh_pool_free(pool);
    fh_model_close(&m);
    free(f.centroids);
    golden_close(&g);
}

static void what_cannot_be_measured_is_refused(void **state)
{
    static const struct { size_t n; uint32_t window, stride; bool flash; double backoff; const char *says;
    } rows[] = {
        {60, 1, 1, false, 0, "window"},       {60, 257, 8, false, 0, "window"},    {60, 16, 0, false, 0, "stride"},
        {60, 16, 16, false, 0, "stride"},     {1, 16, 8, false, 0, "at least 2"},  {0, 16, 8, false, 0, "at least 2"},
        {60, 16, 8, true, 0, "no FlashHead"}, {60, 16, 8, false, NAN, "back-off"}, {60, 16, 8, false, 1, "back-off"},
    };
    fh_model m;
    fh_err err;
    uint32_t ids[60] = {0};
    ok(fh_model_open(&m, "tests/golden/llama", NULL, FH_MODEL_BODY | FH_MODEL_HEAD, NULL, &err), err);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        fh_perplexity_params p = {.window = rows[i].window, .stride = rows[i].stride, .flash = rows[i].flash, .backoff = rows[i].backoff};
        fh_perplexity_report r;
        if (fh_perplexity(&m, ids, rows[i].n, &p, NULL, &r, &err) != FH_EUSAGE || !strstr(err.text, rows[i].says))
            fail_msg("row %zu: %s", i, err.text);
    }
    fh_perplexity_params p = {.window = 16, .stride = 8};
    fh_perplexity_report r;
    ids[40] = 320;
    assert_int_equal(fh_perplexity(&m, ids, 60, &p, NULL, &r, &err), FH_ECHECK);
    assert_non_null(strstr(err.text, "320"));
    ids[40] = 0;
    volatile sig_atomic_t stop = 1;
    const fh_job job = {.stop = &stop};
    assert_int_equal(fh_perplexity(&m, ids, 60, &p, &job, &r, &err), FH_EINTERRUPTED);
    fh_model_close(&m);
}

static void every_allocation_may_fail(void **state)
{
#ifdef FH_FAULTS
    golden g;
    fh_model m;
    fh_err err;
    flash f;
    uint32_t ids[60];
    assert_true(golden_open(&g, "tests/golden/llama"));
    some_ids(&g, ids, 60);
    ok(fh_model_open(&m, "tests/golden/llama", NULL, FH_MODEL_BODY | FH_MODEL_HEAD, NULL, &err), err);
    make_flash(&f, &m, 40, NULL, 0);
    for (int flash_head = 0; flash_head < 2; flash_head++) {
        fh_perplexity_params p = {.window = 1 << 8, .stride = 16, .flash = flash_head, .probes = 7};
        bool done = false;
        long n = 1;
        for (; !done; n++) {
            fh_perplexity_report r;
            fh_fault_set(FH_FAULT_ALLOC, n);
            fh_status rc = fh_perplexity(&m, ids, 60, &p, NULL, &r, &err);
            done = rc == FH_OK && !fh_fault_fired();
            if (rc < 0) assert_int_equal(rc, FH_ENOMEM);
        }
        assert_true(n > 15);
        fh_fault_set(FH_FAULT_ALLOC, 0);
    }
    fh_model_close(&m);
    free(f.centroids);
    golden_close(&g);
#else
    skip();
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_is_what_the_definition_says),
        cmocka_unit_test(with_all_probes_flash_is_the_dense_head),
        cmocka_unit_test(what_is_no_candidate_gets_its_share_of_the_back_off),
        cmocka_unit_test(threads_change_no_bit),
        cmocka_unit_test(what_cannot_be_measured_is_refused),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
