/* What part B decides: how far down the targets are kept with certainty.
 *
 * Fixed-sequence testing: settings are tried from the most generous downwards, each against every target, until one fails.  The first
 * setting that is truly short of a target is passed with a chance of at most 1 - confidence, and then nothing after it
 * matters: no test pays for the others.  Several targets must all pass, which costs nothing either (Berger 1982, intersection-union).
 *
 * The design effect.  Where few misses are seen, what they say of how misses gather is mostly chance: a document that holds a sixth of
 * all misses is rarely among those that are looked at, and none say nothing at all.  Settings that miss more say it for all, because a document is hard or easy at
 * every P, and err on the safe side, because the effect grows with the share of misses.  So it is taken, from A's and B's documents together,
 * where the target's misses are reached and where they are reached five times, and the larger counts (docs/measurements/promise.md).
 */
#include "calib/promise.h"

#include <math.h>

#define RICHER 5
#define MOST_MISSED 0.5 /* beyond it is the hits that gather */

/* The last of a falling sequence that misses no less than `share`; the last of all where none does so little. */
static const fh_tally *where(const fh_tally *t, size_t n, double share)
{
    size_t at = 0;
    while (at + 1 < n && t[at].misses < share * t[at].n) at++;
    return &t[at];
}

static fh_design design_at(const fh_trial *t, size_t n, double share)
{
    const fh_tally *b = where(t->b, n, share);
    return t->a ? fh_design_pool(b, where(t->a, n, share)) : fh_tally_design(b);
}

fh_design fh_trial_design(const fh_trial *t, size_t n)
{
    double share = 1 - t->target;
    if (!(t->target > 0) || !n) return (fh_design){0};
    fh_design at = design_at(t, n, share), rich = design_at(t, n, fmax(share, fmin(RICHER * share, MOST_MISSED)));
    return (fh_design){fmax(at.effect, rich.effect), fmin(at.degrees, rich.degrees)};
}

ptrdiff_t fh_decide(fh_bound *bounds, const fh_trial *trials, size_t n_trials, size_t n, double fresh, double confidence)
{
    fh_design design[FH_PROMISES];
    double few[FH_PROMISES];
    ptrdiff_t at = -1;
    for (size_t i = 0; i < n_trials; i++) {
        design[i] = fh_trial_design(&trials[i], n), bounds[i] = (fh_bound){0};
        few[i] = fh_few_left(design[i].degrees, confidence);
    }
    for (size_t q = 0; q < n; q++, at++) {
        bool pass = true;
        for (size_t i = 0; pass && i < n_trials; i++) {
            const fh_tally *t = &trials[i].b[q];
            double effect = fmax(fmax(1, fh_tally_design(t).effect), design[i].effect), effective = t->n / (effect * (1 + t->n / fresh)) * few[i];
            pass = !(trials[i].target > 0) || fh_share_reaches(effective, t->misses / t->n * effective, trials[i].target, confidence);
        }
        if (!pass) break;
    }
    for (;; at--) { /* the bound itself, to its last bit, must reach the target */
        bool pass = true;
        for (size_t i = 0; n && i < n_trials; i++) {
            bounds[i] = fh_tally_bound(&trials[i].b[at < 0 ? 0 : at], trials[i].target > 0 ? &design[i] : NULL, fresh, confidence);
            pass = pass && bounds[i].lower >= trials[i].target;
        }
        if (at < 0 || pass) return at;
    }
}
