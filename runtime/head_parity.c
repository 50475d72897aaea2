/* head_parity.c: are a head's products on this machine what they are defined to be, and a device's results? */
#include "runtime/head.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum { RUN = 64, MOST_STATES = 8, MOST_RESULTS = 512 };

typedef struct parity_job {
    const fh_kernels *kernels; /* NULL: double arithmetic */
    const fh_rows *rows;
    const void *scales;
    const fh_state *const *states;
    size_t m;
    fh_parity *found;          /* [threads] */
    float *wide;               /* [threads, D] */
} parity_job;

static bool same_bits(float a, float b) { return !memcmp(&a, &b, sizeof a); }

/* The definition in double, row by row, and how far float32 may be from it: what rounding a state to 15 bits may change, half a unit an element,
 * and the rounding of sums of 16 or 32 lanes (Higham, Accuracy and Stability, 3.1: n u for n additions in a row). */
static void against_double(const parity_job *j, size_t first, size_t n, const float *dots, unsigned worker)
{
    size_t d = j->rows->cols;
    float *wide = j->wide + worker * d;
    fh_parity *found = &j->found[worker];
    double units = ((double)d / 16 + 10) * FLT_EPSILON / 2;
    for (size_t r = 0; r < n; r++) {
        const uint8_t *scales = j->scales;
        fh_dec_row(j->rows->dtype, fh_row(j->rows, first + r), scales ? scales + (first + r) * fh_scale_bytes(j->rows->dtype, d) : NULL, d, wide);
        for (size_t s = 0; s < j->m; s++) {
            const fh_state *x = j->states[s];
            double sum = 0, size = 0, all = 0;
            for (size_t i = 0; i < d; i++) sum += (double)wide[i] * x->f[i], size += fabs((double)wide[i] * x->f[i]), all += fabs((double)wide[i]);
            double bound = units * size + (fh_dtype_is_integer(j->rows->dtype) ? x->scale / 2 * all : 0) + FLT_MIN;
            double off = fabs((double)dots[s * RUN + r] - sum) / bound;
            if (!(off <= found->worst)) found->worst = off;
            found->compared++, found->differ += !(off <= 1);
        }
    }
}

static void parity_task(void *ctx, size_t task, unsigned worker)
{
    const parity_job *j = ctx;
    float defined[MOST_STATES * RUN], other[MOST_STATES * RUN];
    size_t first = task * RUN, n = fh_min(RUN, j->rows->rows - first);
    fh_dots(&fh_kernels_ref, j->rows, j->scales, NULL, first, n, j->states, j->m, defined, RUN);
    if (!j->kernels) { against_double(j, first, n, defined, worker); return; }
    fh_dots(j->kernels, j->rows, j->scales, NULL, first, n, j->states, j->m, other, RUN);
    fh_parity *found = &j->found[worker];
    for (size_t s = 0; s < j->m; s++)
        for (size_t r = 0; r < n; r++) found->compared++, found->differ += !same_bits(defined[s * RUN + r], other[s * RUN + r]);
}

bool fh_head_parity_name(size_t table, const char **isa, const char **variant)
{
    const fh_kernels *k = fh_kernels_at(table);
    if (!k) return false;
    *isa = k->name, *variant = k->variant;
    return true;
}

fh_status fh_head_parity(const fh_head *head, size_t table, fh_pool *pool, const float *states, size_t n, fh_parity *out, fh_err *err)
{
    fh_status rc = FH_OK;
    const fh_head_parts *p = &head->parts;
    const fh_kernels *k = fh_kernels_at(table);
    const fh_rows *rows[3] = {&p->centroids, &p->tokens, p->exact.data && !p->exact_by_token ? &p->exact : NULL};
    const void *scales[3] = {p->centroid_scales, p->token_scales, NULL};
    unsigned threads = fh_pool_threads(pool);
    fh_state state[MOST_STATES];
    const fh_state *each[MOST_STATES];
    if (!k) return fh_fail(err, FH_EUSAGE, "there are no kernels number %zu", table);
    size_t m = fh_min(n, MOST_STATES);
    void *room = fh_aligned(MOST_STATES * fh_state_bytes(p->hidden));
    parity_job j = {.kernels = k == &fh_kernels_ref ? NULL : k, .states = each, .m = m};
    j.found = fh_calloc(threads, sizeof *j.found);
    j.wide = fh_malloc((size_t)threads * p->hidden * sizeof *j.wide);
    *out = (fh_parity){0};
    if (!room || !j.found || !j.wide) { rc = fh_fail(err, FH_ENOMEM, "parity: out of memory"); goto out; }
    for (size_t s = 0; s < m; s++) each[s] = &state[s];
    if ((rc = fh_head_states(head, state, states, 0, m, room, err)) < 0) goto out;
    for (int i = 0; i < 3; i++) {
        if (!rows[i]) continue;
        j.rows = rows[i], j.scales = scales[i];
        fh_pool_run(pool, (rows[i]->rows + RUN - 1) / RUN, parity_task, &j);
    }
    for (unsigned t = 0; t < threads; t++) {
        out->compared += j.found[t].compared, out->differ += j.found[t].differ;
        if (j.found[t].worst > out->worst) out->worst = j.found[t].worst;
    }
out:
    fh_free(room);
    fh_free(j.found);
    fh_free(j.wide);
    return rc;
}

/* ---- results of a device --------------------------------------------------------------------------------------------- */

typedef struct answers { uint32_t *ids; float *logits; } answers; /* [m, k] */

/* tanhf is each library's own. */
static float cap_units(const fh_head_parts *p) { return p->softcap > 0 ? 4 * p->softcap * FLT_EPSILON / 2 : 0; }
static bool close_to(float a, float b, float units) { return a == b || fabsf(a - b) <= units; }

/* Is it one of a state's k results, best first, and where it should be?  Where logits are close, tokens may have changed places, the last with one behind it. */
static bool is_result(const uint32_t *ids, const float *logits, size_t k, size_t at, uint32_t id, float logit, float units)
{
    if (!close_to(logits[at], logit, units)) return false;
    if (ids[at] == id) return true;
    for (size_t i = 0; units > 0 && i < k; i++) if (ids[i] == id) return close_to(logits[i], logit, units);
    return units > 0 && close_to(logits[k - 1], logit, units);
}

static void compare(fh_parity *found, const answers *want, const answers *got, size_t m, size_t k, float units)
{
    for (size_t s = 0; s < m; s++)
        for (size_t i = s * k; i < (s + 1) * k; i++)
            found->compared++, found->differ += !is_result(want->ids + s * k, want->logits + s * k, k, i - s * k, got->ids[i], got->logits[i], units);
}

fh_status fh_scratch_parity(fh_scratch *here, fh_scratch *there, const float *states, size_t n, fh_parity *out, fh_err *err)
{
    const fh_head *head = here->head;
    const fh_head_parts *p = &head->parts;
    size_t m = fh_min(n, MOST_STATES), most = there->device ? there->device->most : MOST_RESULTS;
    /* k results come of 2 k + R - 1 candidates, which is what has to fit. */
    size_t k = fh_min(fh_min(MOST_RESULTS, p->vocab), fh_max(1, (most - fh_min(most, head->rerank)) / 2));
    const fh_query queries[] = {{0}, {.probes = p->clusters}};
    answers want = {fh_malloc(m * k * sizeof *want.ids), fh_malloc(m * k * sizeof *want.logits)};
    answers got = {fh_malloc(m * k * sizeof *got.ids), fh_malloc(m * k * sizeof *got.logits)};
    fh_status rc = want.ids && want.logits && got.ids && got.logits ? FH_OK : fh_fail(err, FH_ENOMEM, "parity: out of memory");
    *out = (fh_parity){0};
    for (size_t q = 0; rc == FH_OK && q < sizeof queries / sizeof *queries; q++) {
        if ((rc = fh_head_topk(head, here, states, m, &queries[q], k, want.ids, want.logits, err)) < 0 ||
            (rc = fh_head_topk(head, there, states, m, &queries[q], k, got.ids, got.logits, err)) < 0) break;
        compare(out, &want, &got, m, k, cap_units(p));
    }
    if (rc == FH_OK && fh_head_get_info(head)->exact && (rc = fh_head_dense_topk(head, here, states, m, k, want.ids, want.logits, err)) == FH_OK &&
        (rc = fh_head_dense_topk(head, there, states, m, k, got.ids, got.logits, err)) == FH_OK) compare(out, &want, &got, m, k, cap_units(p));
    fh_free(want.ids), fh_free(want.logits), fh_free(got.ids), fh_free(got.logits);
    return rc;
}
