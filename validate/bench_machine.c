/* What the machine can do, measured before anything else: the roof that everything is held against. */
#include "validate/bench.h"

enum { TASKS = 64, LINE_WORDS = 8, PEAK_RUNS = 15, GEMM_STATES = 256, GEMM_ROWS = 4096 };

/* ---- reading ------------------------------------------------------------------------------------------------------ */

typedef uint64_t line __attribute__((vector_size(64), may_alias, aligned(8)));
typedef uint64_t sum_lines(const uint64_t *p, const uint64_t *ahead, size_t lines);

/* Four sums at a time, wide enough for two loads a cycle.  `ahead` (NULL: none) is what will be read next: it is prefetched line by
 * line, because the processor's own prefetch does not follow from one block to another. */
static inline __attribute__((always_inline)) uint64_t sum_body(const uint64_t *p, const uint64_t *ahead, size_t lines)
{
    line a = {0}, b = {0}, c = {0}, d = {0};
    const line *l = (const line *)p;
    size_t i = 0;
    for (; i + 4 <= lines; i += 4) {
        for (size_t j = 0; ahead && j < 4; j++) __builtin_prefetch(ahead + (i + j) * LINE_WORDS);
        a += l[i], b += l[i + 1], c += l[i + 2], d += l[i + 3];
    }
    for (; i < lines; i++) a += l[i];
    a += b, c += d, a += c;
    return a[0] + a[1] + a[2] + a[3] + a[4] + a[5] + a[6] + a[7];
}

static uint64_t sum_plain(const uint64_t *p, const uint64_t *ahead, size_t lines) { return sum_body(p, ahead, lines); }
#if defined(__x86_64__)
__attribute__((target("avx2"))) static uint64_t sum_avx2(const uint64_t *p, const uint64_t *ahead, size_t lines) { return sum_body(p, ahead, lines); }
__attribute__((target("avx512f"))) static uint64_t sum_avx512(const uint64_t *p, const uint64_t *ahead, size_t lines) { return sum_body(p, ahead, lines); }
#endif

/* The machine's best, whatever FH_ISA says: the roof is the machine's. */
static sum_lines *pick(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) return sum_avx512;
    if (__builtin_cpu_supports("avx2")) return sum_avx2;
#endif
    return sum_plain;
}

typedef struct reading {
    const uint64_t *data;
    size_t lines;               /* in a piece */
    const uint32_t *pieces;     /* [n] which pieces; NULL: TASKS of them, in order */
    size_t n;
    sum_lines *sum;
    uint64_t sums[TASKS];
} reading;

static void read_task(void *ctx, size_t task, unsigned worker)
{
    reading *r = ctx;
    size_t piece = r->lines * LINE_WORDS;
    if (!r->pieces) {
        r->sums[task] = r->sum(r->data + task * piece, NULL, r->lines);
        return;
    }
    uint64_t sum = 0;
    for (size_t i = task * r->n / TASKS, end = (task + 1) * r->n / TASKS; i < end; i++)
        sum += r->sum(r->data + r->pieces[i] * piece, i + 1 < end ? r->data + r->pieces[i + 1] * piece : NULL, r->lines);
    r->sums[task] = sum;
}

static void run_reading(reading *r, fh_bench_env *e)
{
    fh_pool_run(e->pool, TASKS, read_task, r);
    for (int i = 0; i < TASKS; i++) e->kept += r->sums[i];
}

void fh_bench_sweep(fh_bench_env *e)
{
    reading r = {.data = e->memory, .lines = e->words / LINE_WORDS / TASKS, .sum = pick()};
    run_reading(&r, e);
}

/* Words that are read in order at a time; a multiple of TASKS lines. */
static size_t stretch(const fh_bench_env *e) { return fh_min(e->words, (size_t)(32 << 20) / sizeof(uint64_t)); }

/* ---- peaks -------------------------------------------------------------------------------------------------------- */

/* A stretch as long as a large stage 1, another each time: long calls would measure who else uses the machine. */
static fh_status stream_call(void *ctx, size_t run, fh_err *err)
{
    fh_bench_env *e = ctx;
    size_t words = stretch(e);
    reading r = {.data = e->memory + e->words + run % (e->words / words) * words, .lines = words / LINE_WORDS / TASKS, .sum = pick()};
    run_reading(&r, e);
    return FH_OK;
}

typedef struct blocks { fh_bench_env *e; reading r; uint32_t *order; size_t all; } blocks;

static fh_status blocks_call(void *ctx, size_t run, fh_err *err)
{
    blocks *b = ctx;
    b->r.pieces = b->order + run % (b->all / b->r.n) * b->r.n; /* others each time */
    run_reading(&b->r, b->e);
    return FH_OK;
}

/* As many blocks as the head has, where the memory has room for them: over a longer stretch, finding pages would cost more than in the head. */
static fh_status block_peak(fh_timing *out, fh_bench_env *e, size_t block, size_t count, fh_err *err)
{
    enum { LEAST = 2 << 20 }; /* bytes a time: enough that handing out the tasks is little beside it */
    size_t total = e->words * sizeof(uint64_t), lines = fh_min(fh_max(block / 64, 1), total / 64 / TASKS);
    blocks b = {.e = e, .all = fh_min(count, total / (lines * 64))};
    b.order = fh_malloc(b.all * sizeof *b.order);
    if (!b.order) return fh_fail(err, FH_ENOMEM, "bench: out of memory");
    fh_rng r;
    fh_rng_seed(&r, 1, 0x6c);
    for (size_t i = 0; i < b.all; i++) b.order[i] = (uint32_t)i;
    for (size_t i = b.all; i > 1; i--) {
        size_t j = (size_t)fh_rng_below(&r, i);
        uint32_t t = b.order[i - 1];
        b.order[i - 1] = b.order[j], b.order[j] = t;
    }
    b.r = (reading){.data = e->memory + e->words, .lines = lines, .n = fh_min(fh_max(b.all / 16, LEAST / (lines * 64) + 1), b.all), .sum = pick()};
    fh_status rc = fh_bench_time(out, e, "reading blocks", false, (double)b.r.n * (double)lines * 64, blocks_call, &b, err);
    fh_free(b.order);
    return rc;
}

typedef struct product { fh_pool *pool; size_t width; float *a, *b, *c; } product;

static fh_status gemm_call(void *ctx, size_t run, fh_err *err)
{
    const product *p = ctx;
    fh_gemm_nt(p->pool, GEMM_STATES, GEMM_ROWS, p->width, p->a, p->width, p->b, p->width, p->c, GEMM_ROWS);
    return FH_OK;
}

static fh_status gemm_peak(fh_timing *out, fh_bench_env *e, size_t width, fh_err *err)
{
    size_t cells = (GEMM_STATES + GEMM_ROWS) * width;
    product p = {.pool = e->pool, .width = width, .a = fh_malloc(cells * sizeof(float)), .c = fh_malloc((size_t)GEMM_STATES * GEMM_ROWS * sizeof(float))};
    fh_status rc;
    if (!p.a || !p.c) { rc = fh_fail(err, FH_ENOMEM, "bench: out of memory"); goto out; }
    p.b = p.a + GEMM_STATES * width;
    for (size_t i = 0; i < cells; i++) p.a[i] = (float)(i * 2654435761u % 1024) / 1024 - 0.5f;
    rc = fh_bench_time(out, e, "sgemm", true, 2.0 * GEMM_STATES * GEMM_ROWS * (double)width, gemm_call, &p, err);
out:
    fh_free(p.a);
    fh_free(p.c);
    return rc;
}

fh_status fh_bench_peaks(fh_bench_peak *out, fh_bench_env *e, size_t block, size_t n, size_t width, fh_err *err)
{
    size_t runs = e->runs;
    *out = (fh_bench_peak){.threads = e->threads};
    e->runs = fh_min(runs, PEAK_RUNS);
    fh_status rc = fh_bench_time(&out->stream, e, "reading in order", false, (double)stretch(e) * sizeof *e->memory, stream_call, e, err);
    if (rc == FH_OK) rc = block_peak(&out->blocks, e, block, n, err);
    if (rc == FH_OK) rc = gemm_peak(&out->gemm, e, width, err);
    e->runs = runs;
    return rc;
}
