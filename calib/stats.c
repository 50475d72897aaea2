/* Bounds of shares: exact binomial, and what documents leave of it. */
#include "calib/calib.h"

#include <math.h>

/* The continued fraction of the incomplete beta function (DLMF 8.17.22), evaluated forwards as Lentz (1976) does it. */
static double beta_fraction(double a, double b, double x)
{
    const double tiny = 1e-300;
    double c = 1, d = 1 - (a + b) * x / (a + 1);
    d = 1 / (fabs(d) < tiny ? tiny : d);
    double f = d;
    for (int m = 1; m < 1000000; m++) { /* some sqrt(max(a, b)) steps */
        double even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)), odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
        d = 1 + even * d, c = 1 + even / c;
        d = 1 / (fabs(d) < tiny ? tiny : d), c = fabs(c) < tiny ? tiny : c;
        f *= d * c;
        d = 1 + odd * d, c = 1 + odd / c;
        d = 1 / (fabs(d) < tiny ? tiny : d), c = fabs(c) < tiny ? tiny : c;
        f *= d * c;
        if (fabs(d * c - 1) < 1e-15) break;
    }
    return f;
}

/* I_x(a, b) for 0 < x < 1; y = 1 - x, given apart because one of them may be tiny. */
static double incomplete_beta(double a, double b, double x, double y)
{
    double front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log(y));
    if (x < (a + 1) / (a + b + 2)) return front * beta_fraction(a, b, x) / a;
    return 1 - front * beta_fraction(b, a, y) / b;
}

/* The chance of `misses` or fewer of n where each is a miss with chance q; n and misses need not be whole. */
static double tail(double n, double misses, double q) { return incomplete_beta(n - misses, misses + 1, 1 - q, q); }

double fh_share_lower(double n, double misses, double confidence)
{
    if (!(n > 0) || !(misses < n)) return 0;
    double lo = misses / n, hi = 1; /* of the share of misses */
    if (!(misses > 0)) return exp(log1p(-confidence) / n);
    /* The tail falls as q rises; the bound is where it crosses 1 - confidence.  60 halvings reach the last bit, and `hi` is kept on
     * the side where the tail is small enough, so that the promise never rounds upwards. */
    for (int i = 0; i < 60; i++) {
        double q = (lo + hi) / 2;
        if (tail(n, misses, q) > 1 - confidence) lo = q; else hi = q;
    }
    return 1 - hi;
}

uint64_t fh_share_needed(double target, double confidence)
{
    if (!(target > 0)) return 1;
    if (target >= 1) return UINT64_MAX; /* nothing proves certainty */
    return (uint64_t)ceil(log1p(-confidence) / log(target));
}

/* The chance that Student's t exceeds `t`. */
static double beyond(double t, double degrees)
{
    if (isinf(degrees)) return erfc(t / sqrt(2)) / 2;
    double square = t * t, s = degrees + square;
    return incomplete_beta(degrees / 2, 0.5, degrees / s, square / s) / 2;
}

double fh_student_quantile(double p, double degrees)
{
    double lo = 0, hi = 1;
    if (!(degrees > 0) || !(p < 1)) return INFINITY;
    if (p < 0.5) return -fh_student_quantile(1 - p, degrees);
    while (beyond(hi, degrees) > 1 - p) lo = hi, hi *= 2;
    for (int i = 0; i < 60; i++) {
        double t = (lo + hi) / 2;
        if (beyond(t, degrees) > 1 - p) lo = t; else hi = t;
    }
    return hi;
}

/* ---- documents ------------------------------------------------------------------------------------------------ */

void fh_tally_add(fh_tally *t, double positions, double misses)
{
    t->documents++;
    t->n += positions, t->misses += misses;
    t->mm += positions * positions, t->mx += positions * misses, t->xx += misses * misses;
}

double fh_tally_effect(const fh_tally *t)
{
    if (!(t->n > 0) || t->documents < 2) return INFINITY;
    double p = t->misses / t->n, d = (double)t->documents;
    if (!(p > 0) || !(p < 1)) return 0;
    double squares = fmax(t->xx - 2 * p * t->mx + p * p * t->mm, 0); /* sum over documents of (x - p m)^2 */
    return d / (d - 1) * squares / t->n / (p * (1 - p));
}

fh_bound fh_tally_bound(const fh_tally *t, double least, double confidence)
{
    fh_bound b = {.effect = fmax(fmax(fh_tally_effect(t), least), 1)};
    if (!(t->n > 0) || t->documents < 2) return b;
    double ratio = fh_student_quantile(confidence, INFINITY) / fh_student_quantile(confidence, (double)t->documents - 1);
    b.effective = t->n / b.effect * ratio * ratio;
    b.lower = fh_share_lower(b.effective, t->misses / t->n * b.effective, confidence);
    return b;
}
