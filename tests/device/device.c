/* tests/device/device.c: the CUDA backend on a real device, in one program that needs nothing there but the driver.
 *
 *   device-test [--small] DIR    writes DIR/device.json: what the device is, how many answers were compared, times of heads, of attention, of a
 *                                clustering's search, and of a body (device_body.c).  From the repository's root: tests/golden is read
 *
 * First answers: every pair of encodings, odd shapes and the five real ones, P from 1 to K, batches of 1 to 64, one kernel and several, against the CPU's
 * definition, bit for bit, from fresh random rows and into poisoned memory. Then times at the five real shapes, the L2 cache overwritten before every run.
 * Exit status 1 where an answer differs. */
#include "runtime/cuda/backend.h"
#include "runtime/head.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define fail_msg(...) (fprintf(stderr, __VA_ARGS__), fputc('\n', stderr), exit(1))
#define assert_int_equal(a, b) ((void)((a) == (b) || (fail_msg("%s:%d: %s is not %s", __FILE__, __LINE__, #a, #b), 0)))
#include "tests/device/device_body.h"
#include "tests/unit/cluster_world.h"
#include "tests/unit/head_world.h"

static const fh_cuda_host host = {fh_calloc, fh_free, fh_fail};
static size_t compared, different;
static bool small_shapes;

typedef struct pair { world w; fh_cuda_head *there; fh_head_device does; fh_scratch *here, *scratch; } pair;

static fh_status topk_there(void *ctx, const fh_head_call *call, uint32_t *ids, float *logits, fh_err *err)
{
    return fh_cuda_backend()->head_topk(ctx, call, ids, logits, err);
}

static void pair_open(pair *p, fh_cuda_device *d, shape is)
{
    fh_err err = {0};
    memset(p, 0, sizeof *p);
    world_open(&p->w, is);
    const fh_head *h = p->w.head;
    fh_cuda_source source = {.parts = &h->parts, .dense = h->exact, .slot_of = h->slot_of, .dead = h->dead_map, .always = h->always, .forced = h->forced,
                             .n_always = h->n_always, .n_forced = h->n_forced};
    if (fh_scratch_new(&p->here, h, 0, &err) < 0 || fh_scratch_new(&p->scratch, h, 1, &err) < 0 ||
        fh_cuda_backend()->head_new(&p->there, d, &source, &err) < 0) fail_msg("%s", err.text);
    p->does = (fh_head_device){p->there, FH_CUDA_KEPT, topk_there};
    p->scratch->device = &p->does;
}

static void pair_close(pair *p)
{
    fh_cuda_backend()->head_free(p->there);
    fh_scratch_free(p->here), fh_scratch_free(p->scratch);
    world_close(&p->w);
}

static void compare(pair *p, const float *x, size_t batch, const fh_query *q, size_t k, bool dense)
{
    size_t n = batch * k;
    uint32_t *want = malloc(4 * n), *got = malloc(4 * n);
    float *want_logits = malloc(4 * n), *got_logits = malloc(4 * n);
    fh_err err = {0};
    memset(got, 0x5a, 4 * n), memset(got_logits, 0x5a, 4 * n);
    fh_status a;
    for (int there = 0; there < 2; there++) {
        fh_scratch *scratch = there ? p->scratch : p->here;
        uint32_t *ids = there ? got : want;
        float *logits = there ? got_logits : want_logits;
        a = dense ? fh_head_dense_topk(p->w.head, scratch, x, batch, k, ids, logits, &err)
                  : fh_head_topk(p->w.head, scratch, x, batch, q, k, ids, logits, &err);
        if (a < 0) fail_msg("%s", err.text);
    }
    for (size_t i = 0; i < n; i++) {
        bool same = want[i] == got[i] && want_logits[i] == got_logits[i];
        if (p->w.is.softcap > 0 && isfinite(want_logits[i])) same = fabsf(want_logits[i] - got_logits[i]) <= 4 * p->w.is.softcap * 0x1p-24f; /* tanhf */
        if (!same && different++ < 20)
            fprintf(stderr, "V %u, D %u, K %u, %s and %s, P %u, batch %zu, result %zu: token %u at %a, not %u at %a\n", p->w.is.v, p->w.is.d, p->w.is.k,
                    fh_dtype_name(p->w.is.centroids),
                    fh_dtype_name(p->w.is.tokens), q ? q->probes : p->w.is.k, batch, i, got[i], (double)got_logits[i], want[i], (double)want_logits[i]);
    }
    compared += n;
    free(want), free(got), free(want_logits), free(got_logits);
}

/* ---- answers ------------------------------------------------------------------------------------------------------------ */

static void check_shape(fh_cuda_device *d, shape is, size_t most)
{
    pair p;
    pair_open(&p, d, is);
    float *x = make_states(&p.w, most);
    memset(x, 0, is.d * sizeof *x); /* the first state ties everything */
    uint32_t v = is.v, include[] = {v - 1, 0, v / 2, v / 3}, exclude[] = {v / 2, v > 1};
    for (int apart = 0; apart < 2; apart++) {
        fh_cuda_backend()->head_apart(p.there, apart);
        for (size_t batch = 1; batch <= most; batch = batch < 8 ? 2 * batch + 1 : 64) {
            compare(&p, x, batch, &(fh_query){.probes = 1}, 1, false);
            compare(&p, x, batch, &(fh_query){.probes = (is.k + 15) / 16}, 1, false);
            compare(&p, x, batch, &(fh_query){.probes = (is.k + 3) / 4, .include = include, .n_include = 4, .exclude = exclude, .n_exclude = 2}, 7, false);
        }
        compare(&p, x, fh_min(most, 4), &(fh_query){.probes = is.k}, 3, false);
        if (is.threshold > 0) compare(&p, x, most, NULL, 5, false);
        if (fh_head_get_info(p.w.head)->exact) compare(&p, x, fh_min(most, 4), NULL, 2, true);
    }
    free(x);
    pair_close(&p);
}

static void check_answers(fh_cuda_device *d)
{
    static const fh_dtype all[] = {FH_F32, FH_BF16, FH_F16, FH_I8, FH_I4};
    static const shape odd[] = {
        {2, 3, 2, FH_F32, FH_F32, FH_F32, .hot = false}, {40, 1, 8, FH_F32, FH_BF16, FH_I8, .ties = true, .dead = true},
            {41, 1, 8, FH_I8, FH_I4, FH_F32, .hot = true, .rerank = 2},
        {64, 17, 64, FH_F32, FH_I8, FH_F32, .ties = true, .hot = true}, {97, 17, 2, FH_F16, FH_BF16, FH_F16, .bias = true, .hot = true, .dead = true,
                                                                         .softcap = 1.5f},
        {700, 4096, 50, FH_I8, FH_I8, FH_BF16, .hot = true, .rerank = 16}, {700, 4097, 50, FH_I4, FH_F16, FH_BF16, .rerank = 4},
        {70000, 24, 35000, FH_I8, FH_BF16, FH_BF16, .hot = true, .dead = true, .ties = true}, {90, 20, 9, FH_I8, FH_I8, FH_F16, .dead = true, .rerank = 1000},
            {1, 5, 1, FH_I8, FH_I8, FH_F32, .rerank = 1},
        {700, 24, 70, FH_I8, FH_I8, FH_BF16, .hot = true, .rerank = 8, .threshold = 1.5f, .probes = 20},
        {5000, 8, 2500, FH_F16, FH_I8, FH_BF16, .threshold = 0.4f, .probes = 600}
    };
    size_t most = small_shapes ? 3 : 64;
    for (size_t c = 0; c < 5; c++)
        for (size_t t = 0; t < 5; t++)
            check_shape(d, (shape){small_shapes ? 300 : 3000, 33 + 100 * (uint32_t)t, small_shapes ? 24 : 190, all[c], all[t], all[(c + t) % 3], .hot = true,
                                   .dead = true, .ties = c == 2, .rerank = 3 * (uint32_t)t}, most);
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++)
        if (!small_shapes || odd[i].v < 1000) check_shape(d, odd[i], i == 7 ? 3 : most);
}

/* ---- times --------------------------------------------------------------------------------------------------------------- */

static int by_value(const void *a, const void *b) { const double *x = a, *y = b; return (*x > *y) - (*x < *y); }

enum { RUNS = 100 };
typedef struct timed { const char *what; fh_cuda_what which; bool dense, apart; } timed;

static void time_one(FILE *out, pair *p, const float *x, const timed *t, size_t batch, bool *first)
{
    const fh_head_info *info = fh_head_get_info(p->w.head);
    size_t runs = small_shapes ? 5 : RUNS;
    double seconds[RUNS], bytes = t->dense ? fh_head_dense_bytes(p->w.head) : fh_head_step_bytes(p->w.head, info->probes, info->n_hot);
    uint32_t ids[64], rerank = t->dense ? 0 : info->rerank;
    fh_err err = {0};
    fh_head_call call = {.states = x, .batch = batch, .probes = t->dense ? info->clusters : info->probes, .dense = t->dense, .kept = 1 + rerank,
                         .rerank = rerank, .k = 1};
    fh_cuda_backend()->head_apart(p->there, t->apart);
    if (fh_cuda_backend()->head_time(p->there, t->which, &call, runs, seconds, ids, &err) < 0) {
        fprintf(stderr, "%s: left out: %s\n", t->what, err.text);
        return;
    }
    qsort(seconds, runs, sizeof *seconds, by_value);
    double median = seconds[runs / 2];
    if (t->which == FH_CUDA_COPY) bytes *= 2;
    fprintf(out, "%s\n  {\"vocab\": %u, \"hidden\": %u, \"k\": %u, \"probes\": %u, \"what\": \"%s\", \"batch\": %zu, "
            "\"microseconds\": %.3f, \"p10\": %.3f, \"p90\": %.3f, \"gigabytes_per_second\": %.1f}",
            *first ? "" : ",", info->vocab, info->hidden, info->clusters, info->probes, t->what, batch, 1e6 * median, 1e6 * seconds[runs / 10],
                1e6 * seconds[runs - 1 - runs / 10], bytes / median / 1e9);
    printf("%7u x %-5u %-20s batch %-3zu %9.2f us  %7.0f GB/s\n", info->vocab, info->hidden, t->what, batch, 1e6 * median, bytes / median / 1e9);
    *first = false;
}

static void time_heads(FILE *out, fh_cuda_device *d, bool *first)
{
    static const struct { uint32_t v, d, k; } shapes[] = {{128256, 2048, 8016}, {151936, 1024, 9496}, {262144, 640, 16384}, {262144, 1152, 16384},
                                                          {50304, 2560, 3144}};
    static const timed work[] = {{"flash", FH_CUDA_CALL, false, false}, {"flash apart", FH_CUDA_CALL, false, true}, {"dense", FH_CUDA_CALL, true, false},
                                 {"fused dense bf16", FH_CUDA_FUSED, true, false}, {"cuBLAS dense bf16", FH_CUDA_CUBLAS, true, false},
                                     {"copy", FH_CUDA_COPY, true, false}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int four = 0; four < 2; four++) {
            pair p;
            uint32_t part = small_shapes ? 64 : 1;
            fh_dtype e = four ? FH_I4 : FH_I8;
            pair_open(&p, d, (shape){shapes[i].v / part, shapes[i].d, shapes[i].k / part, e, e, FH_BF16, .hot = true, .rerank = four ? 32 : 16});
            p.w.head->parts.probes = p.w.head->info.probes = small_shapes ? 8 : 256;
            float *x = make_states(&p.w, 64);
            compare(&p, x, small_shapes ? 2 : 5, NULL, 1, false);
            if (!four) compare(&p, x, 2, NULL, 2, true);
            for (size_t w = 0; w < (four ? 2 : sizeof work / sizeof *work); w++) {
                bool many = work[w].which == FH_CUDA_CALL || work[w].which == FH_CUDA_CUBLAS;
                for (size_t batch = 1; batch <= (many && !small_shapes ? 64u : 1u); batch *= batch < 8 ? 2 : 4)
                    time_one(out, &p, x, &work[w], fh_min(batch, 64), first);
            }
            free(x);
            pair_close(&p);
        }
}

/* ---- attention of a decoding step ------------------------------------------------------------------------------------------- */

/* Unified maximum beside running maxima: 32 heads on 8 of 64 values, keys and values in f16, contexts of 512 to 16384; and a constant that nothing is near. */
static void time_attention(FILE *out, fh_cuda_device *d, bool *first)
{
    enum { HEADS = 32, KV_HEADS = 8, DIM = 64, VALUES = 2 * KV_HEADS * 16 * DIM, MOST = 1024 };
    uint16_t *pages = malloc((size_t)MOST * VALUES * sizeof *pages);
    const void *table[8 * MOST];
    float q[8 * HEADS * DIM], *result[2] = {malloc(sizeof q), malloc(sizeof q)};
    for (size_t i = 0; i < (size_t)MOST * VALUES; i++) pages[i] = fh_f32_to_f16(small(false));
    for (size_t i = 0; i < sizeof q / sizeof *q; i++) q[i] = 4 * small(false);
    for (uint32_t context = small_shapes ? 64 : 512; context <= (small_shapes ? 64 : 16384); context *= 2)
        for (size_t n = 1; n <= (small_shapes ? 1 : 8); n *= 8)
            for (int how = 0; how < 3; how++) { /* unified, running, unified about a constant that is too far */
                double seconds[RUNS];
                size_t runs = small_shapes ? 3 : RUNS;
                uint32_t lengths[8];
                uint64_t again = 0, parts = 0;
                fh_err err = {0};
                fh_cuda_attention a = {.q = q, .pages = table, .lengths = lengths, .n = n, .heads = HEADS, .kv_heads = KV_HEADS, .d = DIM,
                                       .most_pages = context / 16, .dtype = FH_F16, .scale = 0.125f,
                                       .unified = how != 1, .constant = how == 2 ? 500 : 0};
                for (size_t i = 0; i < n; i++) lengths[i] = context;
                for (size_t i = 0; i < n * a.most_pages; i++) table[i] = pages + (i % MOST) * VALUES;
                if (fh_cuda_backend()->attend(d, &a, result[how == 1], &again, &parts, runs, seconds, &err) < 0) fail_msg("attention: %s", err.text);
                qsort(seconds, runs, sizeof *seconds, by_value);
                double bytes = (double)(n * context) * KV_HEADS * DIM * 2 * 2, worst = 0;
                for (size_t i = 0; how && i < n * HEADS * DIM; i++) worst = fmax(worst, fabs((double)result[0][i] - (double)result[1][i]));
                if (how && !(worst <= 4 * (context + 300) * 0x1p-24)) different++,
                    fprintf(stderr, "attention: context %u, %zu sequences: results %g apart\n", context, n, worst);
                const char *what = how == 1 ? "running maxima" : how ? "unified, all done again" : "unified maximum";
                fprintf(out, "%s\n  {\"what\": \"%s\", \"context\": %u, \"batch\": %zu, \"microseconds\": %.3f, "
                        "\"gigabytes_per_second\": %.1f, \"recomputed\": %llu, \"parts\": %llu}",
                        *first ? "" : ",", what, context, n, 1e6 * seconds[runs / 2], bytes / seconds[runs / 2] / 1e9, (unsigned long long)again,
                        (unsigned long long)parts);
                printf("attention, context %-6u batch %zu  %-24s %9.2f us  %7.0f GB/s, %llu of %llu parts done again\n", context, n, what,
                       1e6 * seconds[runs / 2], bytes / seconds[runs / 2] / 1e9,
                       (unsigned long long)again, (unsigned long long)parts);
                *first = false;
            }
    free(pages), free(result[0]), free(result[1]);
}

/* ---- the search of a clustering --------------------------------------------------------------------------------------------- */

/* Answers, of each `step`-th row against the definition; then times, where seconds is not NULL. */
static void search_near(fh_cuda_device *d, near_shape is, size_t step, size_t runs, double *seconds)
{
    fh_err err = {0};
    fh_cuda_clusterer *c;
    near_world w = near_make(is, &rng);
    if (fh_cuda_backend()->clusterer_new(&c, d, is.n, is.ld, is.k, &err) < 0) fail_msg("%s", err.text);
    fh_cluster_device does = fh_cuda_backend()->clusterer_use(c);
    if (near_send(&w, &does, &err) < 0 || near_search(&w, &does, does.at_once, &err) < 0) fail_msg("%s", err.text);
    size_t bad = near_different(&w, step);
    if (bad) fprintf(stderr, "near clusters of %zu rows of %zu, K %zu, the best %zu: %zu different\n", is.n, is.ld, is.k, is.want, bad);
    compared += (is.n + step - 1) / step * is.want, different += bad;
    if (seconds && fh_cuda_backend()->clusterer_time(c, is.n, is.want, runs, seconds, &err) < 0) fail_msg("%s", err.text);
    fh_cuda_backend()->clusterer_free(c);
    near_free(&w);
}

static void check_near(fh_cuda_device *d)
{
    static const near_shape shapes[] = {{1, 16, 1, 1, .but = false}, {3, 32, 7, 64, .but = true}, {130, 48, 129, 24, .ties = true},
                                        {129, 64, 300, 33, .ties = true, .but = true, .subset = true}, {260, 272, 131, 64, .but = true},
                                        {70, 1040, 257, 24, .subset = true}, {5000, 768, 3144, 24, .but = true}, {40000, 64, 1000, 24, .ties = true}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        if (!small_shapes || shapes[i].n < 1000) search_near(d, shapes[i], 1 + shapes[i].n / 1000, 0, NULL);
}

/* One search of a round: a clustering makes three or four of them, and its goal is 10 s for all that it does. */
static void time_near(FILE *out, fh_cuda_device *d)
{
    near_shape is = small_shapes ? (near_shape){600, 64, 50, 24, .but = true} : (near_shape){128256, 2048, 8016, 24, .but = true};
    double seconds[RUNS];
    size_t runs = small_shapes ? 3 : 20;
    search_near(d, is, small_shapes ? 1 : 500, runs, seconds);
    qsort(seconds, runs, sizeof *seconds, by_value);
    double median = seconds[runs / 2], products = (double)is.n * (double)is.ld * (double)is.k;
    fprintf(out, "{\"rows\": %zu, \"bytes_a_row\": %zu, \"k\": %zu, \"candidates\": %zu, \"milliseconds\": %.3f, \"tera_products_per_second\": %.3f}",
            is.n, is.ld, is.k, is.want, 1e3 * median, products / median / 1e12);
    printf("the %zu nearest of %zu clusters for %zu rows of %zu: %.2f ms, %.1f T products/s\n", is.want, is.k, is.n, is.ld, 1e3 * median,
           products / median / 1e12);
}

/* ---- products for measuring ------------------------------------------------------------------------------------------------- */

/* The best tokens of products that lie here, and their ranks, as the device finds them without bringing any: rank j is the j-th best's. */
static size_t found_otherwise(const fh_dots_device *does, void *there, const float *states, size_t n, size_t rows, const float *dots)
{
    enum { BEST = 7 };
    fh_err err = {0};
    uint64_t heap[BEST + 1], keys[BEST], room[BEST];
    size_t k = fh_min(BEST, rows), bad = 0;
    uint32_t *ids = malloc(rows * sizeof *ids), *want = malloc(n * k * sizeof *want), *got = malloc(n * k * sizeof *got);
    uint32_t *ranks = malloc(n * k * sizeof *ranks);
    float *values = malloc(n * k * sizeof *values), *scores = malloc(n * k * sizeof *scores), *top = malloc(n * sizeof *top);
    for (size_t r = 0; r < rows; r++) ids[r] = (uint32_t)r;
    for (size_t s = 0; s < n; s++) {
        heap[0] = 0;
        for (size_t r = 0; r < rows; r++) fh_heap_offer(heap, k, fh_key(fh_settle(dots[s * rows + r]), (uint32_t)r));
        memcpy(keys, heap + 1, k * sizeof *keys);
        fh_sort_keys(keys, k, room);
        for (size_t j = 0; j < k; j++) want[s * k + j] = fh_key_id(keys[j]), values[s * k + j] = fh_key_value(keys[j]);
    }
    if (does->mark(does->ctx, there, ids, NULL, &err) < 0 || does->best(does->ctx, there, states, n, k, got, &err) < 0 ||
        does->ranks(does->ctx, there, states, n, k, want, false, ranks, scores, top, &err) < 0)
        fail_msg("%s", err.text);
    for (size_t i = 0; i < n * k; i++) bad += got[i] != want[i] || ranks[i] != i % k || !(scores[i] == values[i]) || !(top[i / k] == values[i / k * k]);
    free(ids), free(want), free(got), free(ranks), free(values), free(scores), free(top);
    return bad;
}

/* Answers, of each `step`-th row against the definition; then times, where seconds is not NULL. */
static void multiply_rows(fh_cuda_device *d, fh_dtype e, size_t rows, size_t cols, size_t n, size_t step, size_t runs, double *seconds)
{
    fh_err err = {0};
    fh_cuda_multiplier *m;
    void *there = NULL;
    float *got = NULL, *states = malloc(n * cols * sizeof *states);
    size_t stride = fh_enc_stride(e, cols), bad = 0;
    fh_rows is = {fh_aligned(rows * stride), e, rows, cols, stride};
    float *one = malloc(cols * sizeof *one), *scales = calloc(rows, fh_scale_bytes(e, cols) + sizeof *scales);
    uint8_t *room = fh_aligned(fh_state_bytes(cols));
    for (size_t i = 0; i < n * cols; i++) states[i] = small(false);
    for (size_t r = 0; r < rows; r++) {
        fh_rows from = {one, FH_F32, 1, cols, cols * sizeof *one};
        for (size_t i = 0; i < cols; i++) one[i] = small(false);
        if (fh_encode_rows(e, &from, NULL, 1, NULL, NULL, (uint8_t *)(uintptr_t)is.data + r * stride, (uint8_t *)scales + r * fh_scale_bytes(e, cols), NULL,
                           &err) < 0)
            fail_msg("%s", err.text);
    }
    if (fh_cuda_backend()->multiplier_new(&m, d, &is, 1, &err) < 0) fail_msg("%s", err.text);
    fh_dots_device does = fh_cuda_backend()->multiplier_use(m);
    if (does.put(does.ctx, &there, &is, scales, &err) < 0 || does.multiply(does.ctx, there, states, n, &got, &err) < 0) fail_msg("%s", err.text);
    for (size_t s = 0; s < n; s++) {
        fh_state state = {.f = states + s * cols};
        const fh_state *at = &state;
        if (fh_dtype_is_integer(e)) fh_state_quantize(&state, states + s * cols, cols, room);
        for (size_t r = 0; r < rows; r += step) {
            float want;
            fh_dots(&fh_kernels_ref, &is, scales, NULL, r, 1, &at, 1, &want, 1);
            bad += !(want == got[s * rows + r]);
        }
    }
    bad += found_otherwise(&does, there, states, n, rows, got);
    if (bad) fprintf(stderr, "products of %zu rows of %zu %s, %zu states: %zu different\n", rows, cols, fh_dtype_name(e), n, bad);
    compared += n * ((rows + step - 1) / step), different += bad;
    if (seconds && fh_cuda_backend()->multiplier_time(m, there, n, runs, seconds, &err) < 0) fail_msg("%s", err.text);
    does.take(does.ctx, there);
    fh_cuda_backend()->multiplier_free(m);
    fh_free((void *)(uintptr_t)is.data), fh_free(room);
    free(states), free(one), free(scales);
}

static void check_products(fh_cuda_device *d)
{
    static const fh_dtype all[] = {FH_F32, FH_BF16, FH_F16, FH_I8, FH_I4};
    static const struct { size_t rows, cols, n; } shapes[] = {{1, 1, 1}, {33, 47, 9}, {130, 129, 64}, {9, 4097, 5}, {5000, 768, 32}};
    for (size_t e = 0; e < 5; e++)
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            if (!small_shapes || shapes[i].rows < 1000)
                multiply_rows(d, all[e], shapes[i].rows, shapes[i].cols, shapes[i].n, 1 + shapes[i].rows / 500, 0, NULL);
}

/* What calibration asks for 32 states: the dense head, encoded rows, centroids.  100,000 states ask for 3125 of the first and as many of the last. */
static void time_products(FILE *out, fh_cuda_device *d)
{
    static const struct { const char *what; fh_dtype e; size_t rows; } asked[] = {{"dense bf16", FH_BF16, 128256},
                                                                                   {"rows int8", FH_I8, 128256}, {"centroids int8", FH_I8, 8016}};
    for (size_t i = 0; i < 3; i++) {
        double seconds[RUNS];
        size_t runs = small_shapes ? 3 : 20, rows = asked[i].rows / (small_shapes ? 64 : 1), cols = small_shapes ? 64 : 2048;
        multiply_rows(d, asked[i].e, rows, cols, 32, 1 + rows / 200, runs, seconds);
        qsort(seconds, runs, sizeof *seconds, by_value);
        double median = seconds[runs / 2], products = 32.0 * (double)rows * (double)cols;
        fprintf(out, "%s\n  {\"what\": \"%s\", \"rows\": %zu, \"hidden\": %zu, \"states\": 32, \"milliseconds\": %.3f, \"tera_products_per_second\": %.3f}",
                i ? "," : "", asked[i].what, rows, cols, 1e3 * median, products / median / 1e12);
        printf("32 states by %zu rows of %zu, %-16s %8.3f ms, %.1f T products/s\n", rows, cols, asked[i].what, 1e3 * median, products / median / 1e12);
    }
}

/* A body with the head of Llama-3.2-1B's shape behind it. */
static void time_body(FILE *out, fh_cuda_device *d)
{
    pair p;
    uint32_t part = small_shapes ? 64 : 1;
    pair_open(&p, d, (shape){128256 / part, small_shapes ? 64 : 2048, 8016 / part, FH_I8, FH_I8, FH_BF16, .hot = true, .rerank = 16});
    p.w.head->parts.probes = p.w.head->info.probes = small_shapes ? 8 : 256;
    device_time_bodies(out, d, p.there, fh_head_get_info(p.w.head), small_shapes);
    pair_close(&p);
}

int main(int argc, char **argv)
{
    small_shapes = argc > 2 && !strcmp(argv[1], "--small");
    if (argc != 2 + small_shapes) { fprintf(stderr, "usage: device-test [--small] DIR\n"); return 2; }
    fh_cuda_device *d = NULL;
    fh_err err = {0};
    char path[4096];
    snprintf(path, sizeof path, "%s/device.json", argv[argc - 1]);
    if (fh_cuda_backend()->device_open(&d, 0, &host, &err) < 0) fail_msg("%s", err.text);
    const fh_cuda_info *info = fh_cuda_backend()->device_info(d);
    FILE *out = fopen(path, "w");
    if (!out) fail_msg("%s: %s", path, strerror(errno));
    uint64_t seed = (uint64_t)time(NULL);
    fh_rng_seed(&rng, seed, 0);
    printf("%s, sm_%d%d, %d multiprocessors, driver %d, runtime %d, one kernel: %s, seed %llu\n", info->name, info->major, info->minor, info->multiprocessors,
           info->driver, info->runtime,
           info->together ? "yes" : "no", (unsigned long long)seed);
    fprintf(out, "{\"device\": \"%s\", \"capability\": \"%d.%d\", \"multiprocessors\": %d, \"driver\": %d, \"runtime\": %d, \"seed\": %llu,\n \"times\": [",
            info->name, info->major, info->minor,
            info->multiprocessors, info->driver, info->runtime, (unsigned long long)seed);
    check_answers(d);
    check_near(d);
    check_products(d);
    device_check_bodies(d, &compared, &different);
    printf("%zu answers compared, %zu different\n", compared, different);
    fflush(stdout);
    bool first = true;
    time_heads(out, d, &first);
    fprintf(out, "],\n \"attention\": [");
    first = true;
    time_attention(out, d, &first);
    fprintf(out, "],\n \"clustering\": ");
    time_near(out, d);
    fprintf(out, ",\n \"products\": [");
    time_products(out, d);
    fprintf(out, "],\n \"body\": {");
    time_body(out, d);
    fprintf(out, "},\n \"compared\": %zu, \"different\": %zu}\n", compared, different);
    if (fclose(out)) fail_msg("%s: %s", path, strerror(errno));
    fh_cuda_backend()->device_close(d);
    printf("%zu answers compared, %zu different\n", compared, different);
    return different != 0;
}
