/* Others at the same work: OpenBLAS over the whole head in float32, and FAISS's inverted lists over the same clusters. */
#include "validate/bench.h"

#include "cluster/cluster.h"
#include "quant/quant.h"

#include <math.h>
#include <string.h>

enum { AT_ONCE = 1024 }; /* rows decoded together */

/* ---- the head in float32 -------------------------------------------------------------------------------------------- */

typedef struct plain {
    const fh_head *head;
    const fh_head_parts *p;
    const uint8_t *dead;
    bool exact;       /* slots of `exact` rather than of `tokens` */
} plain;

static plain plain_of(const fh_head *head)
{
    const fh_head_parts *p = fh_head_get_parts(head);
    return (plain){head, p, fh_head_dead_map(head), p->exact.data && !p->exact_by_token};
}

static void decode(const fh_rows *rows, const void *scales, size_t row, float *out)
{
    const uint8_t *mine = scales;
    fh_dec_row(rows->dtype, fh_row(rows, row), mine ? mine + row * fh_scale_bytes(rows->dtype, rows->cols) : NULL, rows->cols, out);
}

/* The row of a slot as this head has it at its best. */
static void slot_row(const plain *h, size_t slot, float *out)
{
    const fh_head_parts *p = h->p;
    if (h->exact) fh_to_f32(out, p->exact.dtype, fh_row(&p->exact, slot), p->hidden);
    else decode(&p->tokens, p->token_scales, slot, out);
}

static bool live(const plain *h, size_t slot)
{
    uint32_t id = h->p->permutation[slot];
    return id != FH_NO_TOKEN && !h->dead[id];
}

/* ---- OpenBLAS --------------------------------------------------------------------------------------------------------- */

typedef struct blas { fh_pool *pool; size_t n, d; const float *rows, *states; size_t n_states; float *logits; uint32_t best; } blas;

static fh_status blas_call(void *ctx, size_t run, fh_err *err)
{
    blas *b = ctx;
    fh_gemm_nt(b->pool, 1, b->n, b->d, b->states + run % b->n_states * b->d, b->d, b->rows, b->d, b->logits, b->n);
    b->best = 0;
    for (uint32_t i = 1; i < b->n; i++) if (b->logits[i] > b->logits[b->best]) b->best = i;
    return FH_OK;
}

static fh_status openblas(fh_bench_list *out, fh_bench_env *envs, size_t n_envs, const fh_bench_peak *peaks, const plain *h, const float *states,
                          size_t n_states, fh_err *err)
{
    size_t slots = (size_t)h->p->clusters * h->p->cap, d = h->p->hidden, n = 0;
    fh_status rc = FH_OK;
    float *rows = fh_malloc(slots * d * sizeof *rows), *logits = fh_malloc(slots * sizeof *logits);
    if (!rows || !logits) {
        rc = fh_fail(err, FH_ENOMEM, "bench: out of memory for a float32 head of %zu x %zu: leave the rivals out (--no-rivals)", slots, d);
        goto out;
    }
    for (size_t s = 0; s < slots; s++)
        if (live(h, s)) slot_row(h, s, rows + n++ * d);
    for (size_t i = 0; i < n_envs; i++) {
        blas b = {.pool = envs[i].pool, .n = n, .d = d, .rows = rows, .states = states, .n_states = n_states, .logits = logits};
        fh_timing t;
        if ((rc = fh_bench_time(&t, &envs[i], "OpenBLAS", false, (double)n * (double)d * sizeof *rows, blas_call, &b, err)) < 0) goto out;
        fh_bench_add(out, "OpenBLAS f32", &envs[i], 1, false, &t, t.bytes / 1e9 / peaks[i].stream.gigabytes_per_second);
    }
out:
    fh_free(rows);
    fh_free(logits);
    return rc;
}

/* ---- FAISS ------------------------------------------------------------------------------------------------------------ */

typedef struct lists { fh_ivf *ivf; unsigned threads; size_t d, probes; const float *states; size_t n_states; int64_t id; } lists;

static fh_status lists_call(void *ctx, size_t run, fh_err *err)
{
    lists *l = ctx;
    float score;
    return fh_ivf_search(l->ivf, l->states + run % l->n_states * l->d, 1, l->probes, l->threads, 1, &l->id, &score, err);
}

static fh_status fill(fh_ivf **out, const plain *h, fh_err *err)
{
    const fh_head_parts *p = h->p;
    size_t d = p->hidden, slots = (size_t)p->clusters * p->cap, n = 0;
    fh_status rc = FH_OK;
    fh_ivf *ivf = NULL;
    float *x = fh_malloc(fh_max(p->clusters, AT_ONCE) * d * sizeof *x);
    int64_t *ids = fh_malloc(AT_ONCE * sizeof *ids), *to = fh_malloc(AT_ONCE * sizeof *to);
    if (!x || !ids || !to) { rc = fh_fail(err, FH_ENOMEM, "bench: out of memory for FAISS: leave the rivals out (--no-rivals)"); goto out; }
    for (size_t c = 0; c < p->clusters; c++) decode(&p->centroids, p->centroid_scales, c, x + c * d);
    if ((rc = fh_ivf_new(&ivf, x, p->clusters, d, err)) < 0) goto out;
    for (size_t s = 0; s < slots; s++) {
        if (live(h, s)) slot_row(h, s, x + n * d), ids[n] = p->permutation[s], to[n++] = (int64_t)(s / p->cap);
        if ((n == AT_ONCE || s + 1 == slots) && n && (rc = fh_ivf_add(ivf, x, ids, to, n, err)) < 0) goto out;
        if (n == AT_ONCE) n = 0;
    }
    *out = ivf, ivf = NULL;
out:
    fh_ivf_free(ivf);
    fh_free(x);
    fh_free(ids);
    fh_free(to);
    return rc;
}

/* The share of states that get the token FlashHead gives (without its hot list, which FAISS has not): they do the same work. */
static fh_status same_tokens(double *share, const fh_head *head, lists *l, fh_bench_env *e, fh_err *err)
{
    enum { ASKED = 64 };
    fh_query q = {.probes = (uint32_t)l->probes, .no_hot = true};
    fh_scratch *scratch = NULL;
    fh_status rc = fh_scratch_on(&scratch, head, e->pool, err);
    size_t n = fh_min(l->n_states, ASKED), same = 0;
    for (size_t i = 0; rc == FH_OK && i < n; i++) {
        uint32_t id;
        if ((rc = fh_head_greedy(head, scratch, l->states + i * l->d, 1, &q, &id, err)) < 0 || (rc = lists_call(l, i, err)) < 0) break;
        same += l->id == (int64_t)id;
    }
    *share = (double)same / (double)n;
    fh_scratch_free(scratch);
    return rc;
}

static fh_status faiss(fh_bench_list *out, fh_bench_env *envs, size_t n_envs, const fh_bench_peak *peaks, const plain *h, uint32_t probes,
                       const float *states, size_t n_states, fh_err *err)
{
    size_t d = h->p->hidden;
    lists l = {.d = d, .probes = probes, .states = states, .n_states = n_states};
    double share, route = (double)h->p->clusters * (double)d * sizeof(float), score = (double)probes * h->p->cap * (double)d * sizeof(float);
    fh_status rc = fill(&l.ivf, h, err);
    if (rc < 0) return rc;
    if ((rc = same_tokens(&share, h->head, &l, &envs[0], err)) < 0) goto out;
    for (size_t i = 0; i < n_envs; i++) {
        fh_timing t;
        l.threads = envs[i].threads;
        if ((rc = fh_bench_time(&t, &envs[i], "FAISS", false, route + score, lists_call, &l, err)) < 0) goto out;
        fh_bench_add(out, "FAISS IVF f32", &envs[i], 1, false, &t,
                     route / 1e9 / peaks[i].stream.gigabytes_per_second + score / 1e9 / peaks[i].blocks.gigabytes_per_second)->share = share;
    }
out:
    fh_ivf_free(l.ivf);
    return rc;
}

fh_status fh_bench_rivals(fh_bench_list *out, fh_bench_env *envs, size_t n_envs, const fh_bench_peak *peaks, const fh_head *head, uint32_t probes,
                          const float *states, size_t n_states, fh_err *err)
{
    plain h = plain_of(head);
    fh_status rc = openblas(out, envs, n_envs, peaks, &h, states, n_states, err); /* one after the other: each holds the head in float32 */
    return rc == FH_OK ? faiss(out, envs, n_envs, peaks, &h, probes, states, n_states, err) : rc;
}
