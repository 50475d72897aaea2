/* What part B decides: how far down the targets are kept with certainty.
 *
 * Fixed-sequence testing: settings are tried from the most generous downwards, each against every target, until one fails.  The first
 * setting that is truly short of a target is passed with a chance of at most 1 - confidence, and then nothing after it
 * matters: no test pays for the others.  Several targets must all pass, which costs nothing either (Berger 1982, intersection-union).
 */
#include "calib/promise.h"

/* The design effect to reckon with at least.  Where few misses are seen, what they say of how misses gather in documents is mostly chance, and
 * none say nothing; but settings that miss more say it for all: documents are hard or easy at every P.  So: the effect at the setting which
 * misses just more than the target allows. */
double fh_trial_effect(const fh_trial *t, size_t n)
{
    size_t at = 0;
    if (!(t->target > 0) || !n) return 0;
    while (at + 1 < n && t->at[at].misses < (1 - t->target) * t->at[at].n) at++;
    return fh_tally_effect(&t->at[at]);
}

ptrdiff_t fh_decide(fh_bound *bounds, const fh_trial *trials, size_t n_trials, size_t n, double confidence)
{
    double least[FH_PROMISES];
    for (size_t i = 0; i < n_trials; i++) least[i] = fh_trial_effect(&trials[i], n);
    for (size_t q = 0; q < n; q++) {
        fh_bound now[FH_PROMISES];
        bool pass = true;
        for (size_t i = 0; i < n_trials; i++) {
            now[i] = fh_tally_bound(&trials[i].at[q], least[i], confidence);
            pass = pass && now[i].lower >= trials[i].target;
        }
        for (size_t i = 0; i < n_trials && (pass || q == 0); i++) bounds[i] = now[i];
        if (!pass) return (ptrdiff_t)q - 1;
    }
    return (ptrdiff_t)n - 1;
}
