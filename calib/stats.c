/* The exact binomial bound. */
#include "calib/calib.h"

#include <math.h>

/* log of the chance of `misses` or fewer misses in n where each is a miss with chance q. */
static double log_tail(uint64_t n, uint64_t misses, double q)
{
    double total = -INFINITY, base = lgamma((double)n + 1);
    double lq = log(q), lp = log1p(-q);
    for (uint64_t j = 0; j <= misses; j++) {
        double term = base - lgamma((double)j + 1) - lgamma((double)(n - j) + 1) + (double)j * lq + (double)(n - j) * lp;
        double hi = term > total ? term : total, lo = term > total ? total : term;
        total = isinf(lo) ? hi : hi + log1p(exp(lo - hi));
    }
    return total;
}

double fh_binomial_lower(uint64_t n, uint64_t misses, double confidence)
{
    if (n == 0 || misses >= n) return 0;
    double alpha = log1p(-confidence), lo = (double)misses / (double)n, hi = 1; /* bounds of the miss rate */
    if (misses == 0) return exp(alpha / (double)n);
    /* The tail falls as q rises; the bound is where it crosses 1 - confidence.  60 halvings reach the last bit, and `hi` is kept on
     * the side where the tail is small enough, so that the promise never rounds upwards. */
    for (int i = 0; i < 60; i++) {
        double q = (lo + hi) / 2;
        if (log_tail(n, misses, q) > alpha) lo = q; else hi = q;
    }
    return 1 - hi;
}

uint64_t fh_binomial_needed(double target, double confidence)
{
    if (!(target > 0)) return 1;
    if (target >= 1) return UINT64_MAX; /* nothing proves certainty */
    return (uint64_t)ceil(log1p(-confidence) / log(target));
}
