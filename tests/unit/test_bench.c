/* bench: what it must hold whatever the machine's speed; the rival answers as brute force does; a watched scratch. */
#include "base/fault.h"
#include "cluster/cluster.h"
#include "quant/quant.h"
#include "validate/validate.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { V = 95, D = 24, K = 12, CAP = 8, SLOTS = K * CAP, P = 3, N = 70 };

typedef struct world {
    float rows[V * D], states[N * D];
    uint32_t permutation[SLOTS], dead[1];
    void *centroids, *tokens;
    fh_head *head;
    fh_model model;
} world;

/* Clusters of eight tokens in order, the last with one place free; token 5 is dead, and would win if it were let.  All float32, so that every
 * head gives one answer. */
static int setup(void **state)
{
    world *w = calloc(1, sizeof *w);
    fh_rng r;
    fh_err err;
    fh_quant_error q;
    assert_non_null(w);
    fh_rng_seed(&r, 3, 0);
    for (size_t i = 0; i < V * D; i++) w->rows[i] = (float)(2 * fh_rng_double(&r) - 1);
    for (size_t i = 0; i < N * D; i++) w->states[i] = (float)(2 * fh_rng_double(&r) - 1);
    for (size_t i = 0; i < D; i++) w->rows[5 * D + i] *= 100;
    w->dead[0] = 5;
    float means[K * D] = {0};
    for (size_t s = 0; s < SLOTS; s++) {
        w->permutation[s] = s < V ? (uint32_t)s : FH_NO_TOKEN;
        for (size_t i = 0; i < D && s < V && s != 5; i++) means[s / CAP * D + i] += w->rows[s * D + i];
    }
    size_t stride = fh_enc_stride(FH_F32, D);
    fh_rows c = {means, FH_F32, K, D, D * sizeof(float)}, t = {w->rows, FH_F32, V, D, D * sizeof(float)};
    w->centroids = fh_aligned(K * stride), w->tokens = fh_aligned(SLOTS * stride);
    assert_int_equal(fh_encode_rows(FH_F32, &c, NULL, K, NULL, NULL, w->centroids, NULL, &q, &err), FH_OK);
    assert_int_equal(fh_encode_rows(FH_F32, &t, w->permutation, SLOTS, NULL, NULL, w->tokens, NULL, &q, &err), FH_OK);
    fh_head_parts p = {.vocab = V, .hidden = D, .clusters = K, .cap = CAP, .probes = P, .centroids = {w->centroids, FH_F32, K, D, stride},
                       .tokens = {w->tokens, FH_F32, SLOTS, D, stride}, .tokens_exact = true, .permutation = w->permutation, .dead = w->dead, .n_dead = 1};
    assert_int_equal(fh_head_from_parts(&w->head, &p, "test", &err), FH_OK);
    w->model.head = w->head;
    *state = w;
    return 0;
}

static int teardown(void **state)
{
    world *w = *state;
    fh_head_close(w->head);
    fh_free(w->centroids);
    fh_free(w->tokens);
    free(w);
    return 0;
}

static const fh_bench_params quick = {.runs = 10, .memory_bytes = 1 << 20};

static void is_timing(const fh_timing *t, size_t runs)
{
    assert_true(t->samples >= 1 && t->samples <= runs);
    assert_true(t->low >= 0 && t->low <= t->median && t->median <= t->high && isfinite(t->high));
    assert_true(t->bytes >= 0 && isfinite(t->gigabytes_per_second));
}

static void every_figure_has_its_spread_and_its_bytes(void **state)
{
    const world *w = *state;
    fh_bench_report b;
    fh_bench_params p = quick;
    fh_job job = {0};
    fh_err err;
    p.states = w->states, p.n_states = N;
    assert_int_equal(fh_pool_new(&job.pool, 2, &err), FH_OK);
    if (fh_bench(&w->model, &p, &job, &b, &err) < 0) fail_msg("%s", err.text);
    assert_int_equal(b.n_peaks, 2);
    assert_int_equal(b.block_bytes, CAP * fh_enc_stride(FH_F32, D));
    for (size_t i = 0; i < 2; i++) {
        is_timing(&b.peaks[i].stream, 10), is_timing(&b.peaks[i].blocks, 10), is_timing(&b.peaks[i].gemm, 10);
        assert_true(b.peaks[i].stream.gigabytes_per_second > 0 && b.peaks[i].blocks.gigabytes_per_second > 0 && b.peaks[i].gemm.gigabytes_per_second > 0);
    }
    assert_int_equal(b.peaks[0].threads, 2), assert_int_equal(b.peaks[1].threads, 1);
    assert_int_equal(b.heads.n, 3 * 2 + 3);
    for (size_t i = 0; i < b.heads.n; i++) is_timing(&b.heads.row[i].time, 10);
    const fh_bench_row *dense = fh_bench_find(&b.heads, "dense f32", 2, 1, true), *all = fh_bench_find(&b.heads, "all f32", 1, 1, false);
    const fh_bench_row *flash = fh_bench_find(&b.heads, "flash", 2, 1, false);
    assert_non_null(dense), assert_non_null(all), assert_non_null(flash);
    assert_null(fh_bench_find(&b.heads, "all f32", 1, 1, true));
    assert_true(dense->time.bytes == V * D * sizeof(float));
    assert_true(flash->time.bytes == fh_head_step_bytes(w->head, P, 0));
    assert_true(all->time.bytes == SLOTS * fh_enc_stride(FH_F32, D));
    assert_true(flash->roof > 0 && isfinite(flash->roof));
    /* Parts of a step add up to it. */
    double bytes = 0, low = 0;
    for (size_t i = 0; i < b.parts.n; i++) {
        is_timing(&b.parts.row[i].time, 10);
        if (b.parts.row[i].threads == 2 && !b.parts.row[i].warm) bytes += b.parts.row[i].time.bytes, low += b.parts.row[i].time.low;
    }
    assert_int_equal(b.parts.n, 3 * 3);
    assert_true(bytes == flash->time.bytes);
    assert_true(low <= flash->time.high);
    /* Others do the same work. */
    assert_int_equal(b.rivals.n, 4);
    for (unsigned threads = 1; threads <= 2; threads++) {
        const fh_bench_row *faiss = fh_bench_find(&b.rivals, "FAISS IVF f32", threads, 1, false), *blas = fh_bench_find(&b.rivals, "OpenBLAS f32", threads, 1, false);
        assert_non_null(faiss), assert_non_null(blas);
        is_timing(&faiss->time, 10), is_timing(&blas->time, 10);
        assert_true(faiss->share == 1);
        assert_true(blas->time.bytes == (V - 1) * D * sizeof(float));
    }
    /* A batch reads the union of what its states probe. */
    double last = 0;
    assert_int_equal(b.batches.n, 7 * 3);
    for (uint32_t batch = 1; batch <= 64; batch *= 2) {
        const fh_bench_row *r = fh_bench_find(&b.batches, "flash", 2, batch, false);
        assert_non_null(r);
        is_timing(&r->time, 10);
        assert_true(r->share >= last && r->share <= 1 && r->share >= (double)P / K);
        last = r->share;
    }
    assert_true(fh_bench_find(&b.batches, "flash", 2, 1, false)->share == (double)P / K);
    fh_pool_free(job.pool);
}

static void what_is_not_asked_for_is_left_out(void **state)
{
    const world *w = *state;
    fh_bench_report b;
    fh_bench_params p = quick;
    fh_err err;
    p.no_batches = p.no_rivals = true, p.probes = 1000;
    if (fh_bench(&w->model, &p, NULL, &b, &err) < 0) fail_msg("%s", err.text);
    assert_int_equal(b.probes, K);
    assert_int_equal(b.n_peaks, 1);
    assert_int_equal(b.rivals.n + b.batches.n, 0);
    assert_true(b.tpot[0] == 0 && b.tpot[1] == 0);
}

static void bench_stops_when_it_is_told_to(void **state)
{
    const world *w = *state;
    volatile sig_atomic_t stop = 1;
    fh_job job = {.stop = &stop};
    fh_bench_report b;
    fh_err err;
    assert_int_equal(fh_bench(&w->model, &quick, &job, &b, &err), FH_EINTERRUPTED);
}

static void faiss_lists_answer_as_brute_force_over_the_probed_clusters(void **state)
{
    const world *w = *state;
    fh_ivf *ivf = NULL;
    fh_err err;
    float c[K * D];
    int64_t ids[V], lists[V];
    for (size_t i = 0; i < K; i++) memcpy(c + i * D, fh_row(&fh_head_get_parts(w->head)->centroids, i), D * sizeof *c);
    for (size_t i = 0; i < V; i++) ids[i] = (int64_t)(1000 + i), lists[i] = (int64_t)(i / CAP);
    if (fh_ivf_new(&ivf, c, K, D, &err) < 0) fail_msg("%s", err.text);
    assert_int_equal(fh_ivf_add(ivf, w->rows, ids, lists, 50, &err), FH_OK); /* in two parts */
    assert_int_equal(fh_ivf_add(ivf, w->rows + 50 * D, ids + 50, lists + 50, V - 50, &err), FH_OK);
    for (size_t s = 0; s < N; s++) {
        const float *x = w->states + s * D;
        int64_t got[2];
        float score[2];
        double of[K];
        for (size_t k = 0; k < K; k++) {
            of[k] = 0;
            for (size_t i = 0; i < D; i++) of[k] += (double)c[k * D + i] * x[i];
        }
        for (unsigned probes = 1; probes <= K; probes += 11) {
            double best = -INFINITY;
            size_t winner = 0;
            for (size_t t = 0; t < V; t++) {
                size_t before = 0;
                double dot = 0;
                for (size_t k = 0; k < K; k++) before += of[k] > of[t / CAP];
                for (size_t i = 0; i < D; i++) dot += (double)w->rows[t * D + i] * x[i];
                if (before < probes && dot > best) best = dot, winner = t;
            }
            assert_int_equal(fh_ivf_search(ivf, x, 1, probes, 1, 2, got, score, &err), FH_OK);
            assert_int_equal(got[0], 1000 + (int64_t)winner);
            assert_true(fabs((double)score[0] - best) <= 1e-4 * fabs(best));
        }
    }
    fh_ivf_free(ivf);
    fh_ivf_free(NULL);
    assert_int_equal(fh_ivf_new(&ivf, c, 0, D, &err), FH_EUSAGE);
}

static void a_scratch_on_a_pool_answers_as_one_of_its_own_and_is_watched(void **state)
{
    const world *w = *state;
    fh_pool *pool = NULL;
    fh_scratch *own = NULL, *shared = NULL;
    uint32_t a[N], b[N];
    double watch[FH_STEPS] = {0}, none[FH_STEPS] = {0};
    fh_err err;
    assert_int_equal(fh_pool_new(&pool, 2, &err), FH_OK);
    assert_int_equal(fh_scratch_new(&own, w->head, 2, &err), FH_OK);
    assert_int_equal(fh_scratch_on(&shared, w->head, pool, &err), FH_OK);
    fh_scratch_watch(shared, watch);
    double began = fh_now();
    assert_int_equal(fh_head_greedy(w->head, shared, w->states, N, NULL, b, &err), FH_OK);
    double took = fh_now() - began, sum = 0;
    for (int s = 0; s < FH_STEPS; s++) assert_true(watch[s] >= 0), sum += watch[s];
    assert_true(watch[FH_STEP_ROUTE] > 0 && watch[FH_STEP_SCORE] > 0 && sum <= took);
    fh_scratch_watch(shared, none);
    assert_int_equal(fh_head_greedy(w->head, shared, w->states, N, &(fh_query){.probes = K}, b, &err), FH_OK);
    assert_true(none[FH_STEP_ROUTE] == 0 && none[FH_STEP_SELECT] == 0 && none[FH_STEP_SCORE] > 0);
    fh_scratch_watch(shared, NULL);
    assert_int_equal(fh_head_greedy(w->head, own, w->states, N, NULL, a, &err), FH_OK);
    assert_int_equal(fh_head_greedy(w->head, shared, w->states, N, NULL, b, &err), FH_OK);
    assert_memory_equal(a, b, sizeof a);
    assert_int_equal(fh_head_greedy(w->head, own, w->states, N, &(fh_query){.probes = K}, a, &err), FH_OK);
    for (size_t i = 0; i < N; i++) assert_int_not_equal(a[i], 5);
    fh_scratch_free(shared);
    fh_scratch_free(own);
    fh_pool_free(pool);
}

/* The body of a checkpoint: decoding below its longest sequence and a prompt, with all threads and with one, and whole tokens. */
static void a_checkpoint_has_its_body_timed_and_no_heads(void **state)
{
    fh_model m;
    fh_bench_report b;
    fh_bench_params p = quick;
    fh_job job = {0};
    fh_err err;
    assert_int_equal(fh_pool_new(&job.pool, 2, &err), FH_OK);
    assert_int_equal(fh_model_open(&m, "tests/golden/llama", NULL, FH_MODEL_BODY | FH_MODEL_HEAD, NULL, &err), FH_OK);
    for (int kv = 0; kv < 2; kv++) {
        p.kv_type = kv ? FH_I8 : FH_F32;
        if (fh_bench(&m, &p, &job, &b, &err) < 0) fail_msg("%s", err.text);
        assert_int_equal(b.heads.n + b.parts.n + b.batches.n + b.rivals.n, 0);
        assert_int_equal(b.body.n, 2 * 2); /* 256 positions: on top of 16, and a prompt of all of them */
        for (size_t i = 0; i < b.body.n; i++) is_timing(&b.body.row[i].time, 10), assert_true(b.body.row[i].roof > 0);
        const fh_bench_row *decode = fh_bench_find(&b.body, "decode", 2, 16, true), *prefill = fh_bench_find(&b.body, "prefill", 1, 256, true);
        assert_non_null(decode), assert_non_null(prefill);
        const fh_config *c = m.config;
        size_t each = 16 * c->head_dim * (kv ? 1 : 4) + (kv ? 16 * 4 * ((c->head_dim + 31) / 32) : 0), seen = 17 * (fh_round_up(each, 64) / 16);
        assert_true(decode->time.bytes == (double)fh_body_bytes(m.body) + (double)(seen * c->layers * 2 * c->kv_heads));
        assert_true(prefill->time.bytes == fh_body_operations(m.body, 0, 256));
        assert_true(b.tpot[FH_HEAD_FLASH] == 0 && b.tpot[FH_HEAD_DENSE] > 0);
        assert_true(b.dense_bytes == (double)c->vocab * (double)m.dense.rows.stride);
    }
    /* Two operations for each weight and token, and attention. */
    const fh_config *c = m.config;
    double weights = (double)c->layers * c->hidden * (2.0 * c->heads * c->head_dim + 2.0 * c->kv_heads * c->head_dim + 3.0 * c->ffn);
    assert_true(fh_body_operations(m.body, 5, 2) == 2 * 2 * weights + (double)c->layers * 4 * c->heads * c->head_dim * (6 + 7));
    fh_model_close(&m);
    fh_pool_free(job.pool);
}

#ifdef FH_FAULTS
static void running_out_of_memory_anywhere_is_a_clean_error(void **state)
{
    const world *w = *state;
    fh_bench_params p = quick;
    fh_bench_report b;
    fh_err err;
    p.runs = 1;
    fh_status rc = FH_ENOMEM;
    for (long n = 1; rc != FH_OK; n++) {
        assert_true(n < 1000);
        fh_fault_set(FH_FAULT_ALLOC, n);
        rc = fh_bench(&w->model, &p, NULL, &b, &err);
        bool fired = fh_fault_fired();
        fh_fault_set(FH_FAULT_ALLOC, 0);
        if (!fired) assert_int_equal(rc, FH_OK);
        else if (rc < 0) assert_int_equal(rc, FH_ENOMEM); /* what is only nicer to know may be done without */
        if (fired && rc == FH_OK) rc = FH_ENOMEM;
    }
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_figure_has_its_spread_and_its_bytes),
        cmocka_unit_test(what_is_not_asked_for_is_left_out),
        cmocka_unit_test(bench_stops_when_it_is_told_to),
        cmocka_unit_test(faiss_lists_answer_as_brute_force_over_the_probed_clusters),
        cmocka_unit_test(a_checkpoint_has_its_body_timed_and_no_heads),
        cmocka_unit_test(a_scratch_on_a_pool_answers_as_one_of_its_own_and_is_watched),
#ifdef FH_FAULTS
        cmocka_unit_test(running_out_of_memory_anywhere_is_a_clean_error),
#endif
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
