/* runtime/generate_private.h: choosing a token from a state; private to generation. */
#ifndef FH_GENERATE_PRIVATE_H
#define FH_GENERATE_PRIVATE_H

#include "runtime/runtime.h"

typedef struct fh_chooser {
    const fh_model *m;
    const fh_generate_params *p;
    fh_pool *pool;
    fh_scratch *scratch;
    fh_bounds *bounds;           /* exact sampling */
    fh_rng rng;
    uint32_t *ids, *clusters;    /* candidates; the probed clusters */
    float *logits, *all;         /* of the candidates; [V] the dense head's, for measured mass and audits */
    float *scores; uint8_t *probed; /* [K] estimated mass */
    uint32_t *count; uint8_t *seen; /* [V] how often a token stands among the last ones; the same as 0 or 1 */
    uint32_t probes;             /* at most, where the head has a threshold: */
    bool adaptive;
    size_t states;               /* seen by fh_chooser_audit */
    fh_mass_kind mass_kind;
    double mass_known;           /* calibration's */
} fh_chooser;

fh_status fh_chooser_open(fh_chooser *c, const fh_model *m, const fh_generate_params *p, const fh_job *job, fh_err *err);
void fh_chooser_close(fh_chooser *c);
bool fh_chooser_is_dense(const fh_chooser *c);
/* Every choice is made by the device's head: fh_chooser_choose may be given NULL for a state that a body left there (fh_device_keeps_state). */
bool fh_chooser_is_there(const fh_chooser *c);
/* The sequence so far is tokens [n]: what a repetition penalty looks at.  After a change elsewhere than at its end. */
void fh_chooser_context(fh_chooser *c, const uint32_t *tokens, size_t n);
/* The same, of which the last token is new. */
void fh_chooser_follow(fh_chooser *c, const uint32_t *tokens, size_t n);
/* Adds to the counts of *stats: draws, mass, exact. */
fh_status fh_chooser_choose(fh_chooser *c, const float *state, fh_generate_stats *stats, uint32_t *id, fh_err *err);
/* A state that was chosen from: every audit-th is compared with the dense head, into stats->audit. */
fh_status fh_chooser_audit(fh_chooser *c, const float *state, fh_generate_stats *stats, fh_err *err);

#endif
