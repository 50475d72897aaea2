/* head_parity.c: are a head's products on this machine what they are defined to be? */
#include "runtime/head.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum { RUN = 64, MOST_STATES = 8 };

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
