/* sample.c: one of the candidates, by chance. */
#include "runtime/head.h"

#include <math.h>

fh_status fh_sampling_check(const fh_sampling *how, const double *random, size_t n, fh_err *err)
{
    if (!(how->temperature >= 0) || !isfinite(how->temperature))
        return fh_fail(err, FH_EUSAGE, "temperature %g: not a number of 0 or more", (double)how->temperature);
    if (!(how->top_p >= 0 && how->top_p <= 1)) return fh_fail(err, FH_EUSAGE, "top_p %g: not 0 to 1", (double)how->top_p);
    if (!(how->min_p >= 0 && how->min_p <= 1)) return fh_fail(err, FH_EUSAGE, "min_p %g: not 0 to 1", (double)how->min_p);
    for (size_t i = 0; i < n; i++)
        if (!(random[i] >= 0 && random[i] < 1)) return fh_fail(err, FH_EUSAGE, "the random number is %g: not in [0, 1)", random[i]);
    return FH_OK;
}

fh_status fh_penalty_check(const fh_penalty *how, fh_err *err)
{
    if (!how || (how->factor > 0 && isfinite(how->factor))) return FH_OK;
    return fh_fail(err, FH_EUSAGE, "repetition penalty %g: not a number above 0", (double)how->factor);
}

float fh_penalize(const fh_penalty *how, uint32_t id, float logit)
{
    if (!how || !how->seen || !how->seen[id]) return logit;
    return logit > 0 ? logit / how->factor : logit * how->factor;
}

/* The weight of a candidate beside the best one's 1, at a temperature. */
static double weight(uint64_t key, double best, double temperature)
{
    double logit = (double)fh_key_value(key);
    return logit == best ? 1 : exp((logit - best) / temperature); /* an infinite best leaves 0 for all finite ones */
}

fh_status fh_sample(const fh_sampling *how, const uint32_t *ids, const float *logits, size_t n, double random, uint32_t *id, fh_err *err)
{
    fh_status rc;
    size_t bytes, kept = 0;
    uint64_t best = UINT64_MAX, *keys = NULL;
    if ((rc = fh_sampling_check(how, &random, 1, err)) < 0) return rc;
    for (size_t i = 0; i < n; i++) {
        uint64_t key = fh_key(fh_settle(logits[i]), ids[i]);
        if (logits[i] > -INFINITY && key < best) best = key;
    }
    if (best == UINT64_MAX) return fh_fail(err, FH_EUSAGE, "nothing to draw from: none of %zu candidates has a logit above -infinity", n);
    if (how->temperature == 0 || how->top_k == 1) {
        *id = fh_key_id(best);
        return FH_OK;
    }
    if (!fh_mul(n, 2 * sizeof *keys, &bytes) || !(keys = fh_malloc(bytes))) return fh_fail(err, FH_ENOMEM,
        "sampling of %zu candidates: out of memory", n);
    for (size_t i = 0; i < n; i++)
        if (logits[i] > -INFINITY) keys[kept++] = fh_key(fh_settle(logits[i]), ids[i]);
    fh_sort_keys(keys, kept, keys + n);

    /* top_k keeps k candidates also where logits tie (the smaller ids); top_p those before which less than p lies, and the best;
     * min_p those with at least that share of the best one's probability.  Each looks at what the one before it left. */
    double top = (double)fh_key_value(keys[0]), t = (double)how->temperature, total = 0, sum = 0;
    if (how->top_k) kept = fh_min(kept, how->top_k);
    for (size_t i = 0; i < kept; i++) total += weight(keys[i], top, t);
    if (how->top_p < 1) {
        size_t all = kept;
        for (kept = 0; kept < all && (kept == 0 || sum < (double)how->top_p * total); kept++) sum += weight(keys[kept], top, t);
    }
    while (kept > 1 && weight(keys[kept - 1], top, t) < (double)how->min_p) kept--;

    total = sum = 0;
    for (size_t i = 0; i < kept; i++) total += weight(keys[i], top, t);
    size_t at = 0, last = 0;
    for (; at < kept; at++) {
        double w = weight(keys[at], top, t);
        if (w > 0) last = at; /* rounding may leave the sum of the last step at or below random * total */
        sum += w;
        if (sum > random * total) break;
    }
    *id = fh_key_id(keys[at < kept ? at : last]);
    fh_free(keys);
    return FH_OK;
}
