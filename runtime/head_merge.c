/* head_merge.c: results of two heads, or of two parts of one, made one. */
#include "runtime/head.h"

#include <math.h>

void fh_merge_topk(const uint32_t *ids_a, const float *logits_a, size_t n_a, const uint32_t *ids_b, const float *logits_b, size_t n_b,
                   size_t k,
                   uint32_t *ids, float *logits)
{
    /* Ids that may be in the result already: exact for vocabularies up to SEEN, which spares looking through the result. */
    enum { SEEN = 1 << 18 };
    uint8_t seen[SEEN / 8] = {0};
    size_t a = 0, b = 0, n = 0;
    while (n_a && ids_a[n_a - 1] == FH_NO_TOKEN) n_a--;
    while (n_b && ids_b[n_b - 1] == FH_NO_TOKEN) n_b--;
    while (n < k && (a < n_a || b < n_b)) {
        bool from_a = b == n_b || (a < n_a && fh_key(fh_settle(logits_a[a]), ids_a[a]) <= fh_key(fh_settle(logits_b[b]), ids_b[b]));
        uint32_t id = from_a ? ids_a[a] : ids_b[b];
        float logit = fh_settle(from_a ? logits_a[a] : logits_b[b]);
        uint8_t *byte = &seen[id % SEEN / 8], bit = (uint8_t)(1u << id % 8);
        bool twice = false;
        if (from_a) a++;
        else b++;
        for (size_t i = n; *byte & bit && i-- > 0 && !twice;) twice = ids[i] == id;
        if (twice) continue; /* the first to come was the better logit */
        *byte |= bit;
        ids[n] = id;
        logits[n++] = logit;
    }
    for (; n < k; n++) ids[n] = FH_NO_TOKEN, logits[n] = -INFINITY;
}

double fh_merge_lse(double a, double b)
{
    double high = a > b ? a : b, low = a > b ? b : a;
    if (low == -INFINITY || high == INFINITY) return high;
    return high + log1p(exp(low - high));
}
