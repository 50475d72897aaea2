/* Positions as calibration sees them, and what it takes to have their best tokens among the candidates. */
#include "calib/promise.h"

#include <string.h>

fh_status fh_view_new(fh_view *out, size_t n, size_t k, fh_err *err)
{
    size_t cells, bytes, room = fh_max(n, 1);
    *out = (fh_view){.n = n, .k = k};
    if (fh_mul(room, k, &cells) && fh_mul(cells, sizeof *out->ids, &bytes)) {
        out->positions = fh_malloc(room * sizeof *out->positions);
        out->document = fh_malloc(room * sizeof *out->document);
        out->ids = fh_malloc(bytes);
        out->ranks = fh_malloc(bytes);
        out->rungs = out->ranks;
        if (out->positions && out->document && out->ids && out->ranks) return FH_OK;
    }
    fh_view_free(out);
    return fh_fail(err, FH_ENOMEM, "out of memory for %zu positions", n);
}

fh_status fh_view_adapt(fh_view *v, fh_err *err)
{
    size_t bytes = fh_max(v->n, 1) * v->k * sizeof *v->steps; /* as many as ids, which there are */
    v->steps = fh_malloc(bytes), v->rungs = fh_malloc(bytes);
    return v->steps && v->rungs ? FH_OK : fh_fail(err, FH_ENOMEM, "out of memory for %zu positions", v->n);
}

void fh_view_climb(fh_view *v, uint32_t n, uint32_t most)
{
    for (size_t i = 0; v->steps && i < v->n * v->k; i++) v->rungs[i] = v->ranks[i] < most ? v->steps[i] : n;
}

void fh_view_free(fh_view *v)
{
    if (v->rungs != v->ranks) fh_free(v->rungs);
    fh_free(v->steps);
    fh_free(v->positions);
    fh_free(v->document);
    fh_free(v->ids);
    fh_free(v->ranks);
    *v = (fh_view){0};
}

fh_status fh_view_of(fh_view *out, const fh_states *s, const uint8_t *keep, uint8_t which, size_t k, fh_err *err)
{
    size_t n = 0;
    uint32_t documents = fh_states_documents(s);
    size_t *start = fh_calloc((size_t)documents + 1, sizeof *start);
    if (!start) return fh_fail(err, FH_ENOMEM, "out of memory");
    for (size_t i = 0; i < s->n; i++)
        if (keep[s->document[i]] == which) start[s->document[i] + 1]++, n++;
    fh_status rc = fh_view_new(out, n, k, err);
    if (rc < 0) goto out;
    for (uint32_t d = 0; d < documents; d++) start[d + 1] += start[d];
    for (size_t i = 0; i < s->n; i++) {
        if (keep[s->document[i]] != which) continue;
        size_t at = start[s->document[i]]++;
        out->positions[at] = i, out->document[at] = s->document[i];
    }
out:
    fh_free(start);
    return rc;
}

uint32_t fh_view_need(const fh_view *v, size_t i, uint32_t k, const uint8_t *fixed)
{
    uint32_t need = 0;
    for (size_t j = 0; j < k; j++) {
        uint32_t id = v->ids[i * v->k + j], r = v->rungs[i * v->k + j] + 1;
        if (id != FH_NO_TOKEN && !fixed[id] && r > need) need = r;
    }
    return need;
}

/* Settings fall from the most generous: a document gains the positions that needed it. */
fh_status fh_view_tallies(fh_tally *tallies, uint32_t most, const fh_view *v, uint32_t k, const uint8_t *fixed, fh_err *err)
{
    size_t n = v->n, documents = 0;
    /* by need: those above `most` under most + 1 */
    size_t *start = fh_calloc((size_t)most + 2, sizeof *start), *order = fh_malloc(fh_max(n, 1) * sizeof *order);
    uint32_t *need = fh_malloc(fh_max(n, 1) * sizeof *need), *own = fh_malloc(fh_max(n, 1) * sizeof *own);      /* own: number of its document among these */
    double *m = fh_calloc(n + 1, sizeof *m), *x = fh_calloc(n + 1, sizeof *x);                                  /* of each document: positions, misses */
    fh_status rc = start && order && need && own && m && x ? FH_OK : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc < 0) goto out;
    for (size_t i = 0; i < n; i++) {
        if (i == 0 || v->document[i] != v->document[i - 1]) documents++;
        own[i] = (uint32_t)(documents - 1), m[own[i]]++;
        uint32_t q = fh_view_need(v, i, k, fixed);
        need[i] = q > most ? most + 1 : q;
        start[need[i]]++;
    }
    for (size_t q = 0, at = 0; q <= (size_t)most + 1; q++) { size_t count = start[q]; start[q] = at, at += count; }
    for (size_t i = 0; i < n; i++) order[start[need[i]]++] = i; /* start[q] is now where q ends */
    fh_tally t = {0};
    for (size_t d = 0; d < documents; d++) fh_tally_add(&t, m[d], 0);
    size_t at = n;
    for (uint32_t q = most; q >= 1; q--) {
        for (; at > start[q]; at--) {
            uint32_t d = own[order[at - 1]];
            t.misses++, t.mx += m[d], t.xx += 2 * x[d] + 1, x[d]++;
        }
        tallies[most - q] = t;
    }
out:
    fh_free(start);
    fh_free(order);
    fh_free(need);
    fh_free(own);
    fh_free(m);
    fh_free(x);
    return rc;
}
