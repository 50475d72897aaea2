/* Bounds of shares: exact binomial, and what documents leave of it. */
#include "calib/promise.h"

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

bool fh_share_reaches(double n, double misses, double target, double confidence)
{
    if (!(n > 0) || !(misses < n) || !(target < 1)) return false;
    return !(target > 0) || tail(n, misses, 1 - target) <= 1 - confidence;
}

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
    double power = positions;
    t->documents++;
    t->n += positions, t->misses += misses, t->mx += positions * misses, t->xx += misses * misses;
    for (int i = 2; i <= 5; i++) t->m[i] += power *= positions;
}

/* With x = m (p + u), u independent of variance s^2 between documents, the sum of squares is u'Au, A = diag(a) - a w' - w a' + S w w', a = m^2,
 * w = m / n, S the sum of a.  Its mean is s^2 tr A where it ought to be s^2 S; and it has (tr A)^2 / tr(A^2) degrees of freedom. */
fh_design fh_tally_design(const fh_tally *t)
{
    if (!(t->n > 0) || t->documents < 2) return (fh_design){.effect = INFINITY};
    double n = t->n, p = t->misses / n, s = t->m[2], aw = t->m[3] / n, ww = t->m[2] / (n * n), aa = t->m[4];
    double trace = s - 2 * aw + s * ww;
    double square = aa - 4 * t->m[5] / n + 2 * s * aa / (n * n) + 2 * aa * ww + 2 * aw * aw - 4 * s * aw * ww + s * s * ww * ww;
    fh_design d = {.degrees = trace > 0 && square > 0 ? trace * trace / square : 0};
    if (!(p > 0) || !(p < 1) || !(trace > 0)) return d;
    double squares = fmax(t->xx - 2 * p * t->mx + p * p * s, 0); /* sum over documents of (x - p m)^2 */
    d.effect = s / trace * squares / n / (p * (1 - p));
    return d;
}

fh_design fh_design_pool(const fh_tally *t, const fh_tally *other)
{
    fh_design a = fh_tally_design(t), b = fh_tally_design(other);
    if (!(b.degrees > 0)) return a;
    double lengths = t->n > 0 ? t->m[2] / t->n / (other->m[2] / other->n) : 1; /* what is more than 1 grows with the length of documents */
    b.effect = 1 + fmax(b.effect - 1, 0) * lengths;
    if (!(a.degrees > 0)) return b;
    double all = a.degrees + b.degrees;
    return (fh_design){(a.degrees * a.effect + b.degrees * b.effect) / all, all};
}

double fh_few_left(double degrees, double confidence)
{
    double ratio = degrees > 0 ? fh_student_quantile(confidence, INFINITY) / fh_student_quantile(confidence, degrees) : 0;
    return ratio * ratio;
}

fh_bound fh_tally_bound(const fh_tally *t, const fh_design *design, double fresh, double confidence)
{
    fh_design own = fh_tally_design(t);
    fh_bound b = {.effect = fmax(own.effect, 1), .degrees = own.degrees};
    if (design) b.effect = fmax(b.effect, design->effect), b.degrees = design->degrees;
    if (!(t->n > 0) || t->documents < 2 || !(b.degrees > 0)) return b;
    b.effective = t->n / (b.effect * (1 + t->n / fresh)) * fh_few_left(b.degrees, confidence);
    b.lower = fh_share_lower(b.effective, t->misses / t->n * b.effective, confidence);
    return b;
}
