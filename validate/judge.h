/* validate/judge.h: what the files of validate share.  Not for others: see validate.h. */
#ifndef FH_JUDGE_H
#define FH_JUDGE_H

#include "validate/validate.h"

void fh_check_set(fh_check *c, fh_verdict verdict, const char *fmt, ...) FH_PRINTF(3, 4);
/* Is everything that `name` rests on in order? */
static inline bool fh_check_stands(const fh_check *c) { return c->verdict != FH_FAILED; }

/* Integrity, belonging, rows, permutation, parity and calibration of v->file; base NULL: there is none.  Only what keeps from checking is an error. */
fh_status fh_check_artifact(fh_validation *v, const fh_checkpoint *base, fh_device_kind device, const fh_job *job, fh_err *err);
/* What the artifact promises; a target of 0: nothing of this kind. */
typedef struct fh_promised { double target[FH_PROMISES], confidence; bool any; uint32_t containment_k; const char *text, *text_sha256; } fh_promised;
const char *fh_promise_words(char out[80], const fh_promised *p, fh_promise_kind kind); /* "the best 3 among the candidates" */
fh_promised fh_promised_by(const fh_fhead *file);
/* The P that stands for a head where one number is asked for: its own, or with a threshold the mean that calibration saw (P at most, where it says nothing). */
uint32_t fh_probes_calibrated(const fh_head *head);

/* What is seen of every position, and what it comes to.  The model is borrowed. */
typedef struct fh_gatherer fh_gatherer;
fh_status fh_gather_open(fh_gatherer **out, const fh_model *m, uint32_t containment_k, double confidence, fh_err *err);
/* states [n, D]; document [n]: numbers from 0. */
fh_status fh_gather_states(fh_gatherer *g, const float *states, size_t n, const uint32_t *document, const fh_job *job, fh_err *err);
/* counts [V]: how often each token is in the text, NULL: not known.  out->curve is the caller's. */
fh_status fh_gather_finish(fh_gatherer *g, const uint32_t *counts, fh_quality *out, fh_err *err);
void fh_gather_close(fh_gatherer *g); /* accepts NULL */

/* What each part of the head costs. */
typedef struct fh_dissection fh_dissection;
/* sources: centroids [K, D] before their encoding, or NULL. */
fh_status fh_dissect_open(fh_dissection **out, const fh_model *m, const float *sources, const fh_job *job, fh_err *err);
fh_status fh_dissect_states(fh_dissection *d, const float *states, const size_t *positions, size_t n, const fh_job *job, fh_err *err);
void fh_dissect_finish(const fh_dissection *d, fh_anatomy *out);
void fh_dissect_close(fh_dissection *d); /* accepts NULL */

/* How far both heads say the same, greedily, after each prompt: ids[starts[i] .. starts[i + 1]). */
fh_status fh_diverge(fh_divergence *out, const fh_model *m, const uint32_t *ids, const size_t *starts, size_t prompts, size_t say, const fh_job *job,
                     fh_err *err);
/* The prompts of a file, encoded; *ids and *starts [*n + 1] are the caller's. */
fh_status fh_prompts_read(uint32_t **ids, size_t **starts, size_t *n, const fh_model *m, const char *path, size_t most, const fh_job *job, fh_err *err);
/* Texts that end in a word which is to be said: right where the head's best token is the text's at each token of it. */
fh_status fh_say_last_words(fh_last_words *out, const fh_model *m, const char *path, const fh_job *job, fh_err *err);

#endif
