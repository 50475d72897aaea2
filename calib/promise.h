/* calib/promise.h: what the files of calibrate and rehearse share.  Not for others: see calib.h. */
#ifndef FH_PROMISE_H
#define FH_PROMISE_H

#include "calib/calib.h"

/* Some positions, all that containment asks of them, those of a document together. */
typedef struct fh_view {
    size_t n, k;
    size_t *positions;             /* [n] rows of the states */
    uint32_t *document;            /* [n] */
    uint32_t *ids, *ranks;         /* [n, k] the dense head's best tokens, and how many clusters go before each one's */
    uint32_t *steps;               /* [n, k] how many thresholds of a ladder leave it out; NULL: probing is fixed */
    uint32_t *rungs;               /* [n, k] how many settings do, by both; probing fixed: `ranks` */
} fh_view;
/* Room for n positions. */
fh_status fh_view_new(fh_view *out, size_t n, size_t k, fh_err *err);
void fh_view_free(fh_view *v);
/* And for steps. */
fh_status fh_view_adapt(fh_view *v, fh_err *err);
/* Fill `rungs` for ladders of n settings that probe `most` clusters at most.  Does nothing where probing is fixed. */
void fh_view_climb(fh_view *v, uint32_t n, uint32_t most);
/* Those of the states where keep[document] == which, in order of documents; ids and ranks are still to be filled. */
fh_status fh_view_of(fh_view *out, const fh_states *s, const uint8_t *keep, uint8_t which, size_t k, fh_err *err);

/* What one step costs; bytes or seconds. */
typedef struct fh_cost { double (*of)(void *ctx, double probes, size_t hot); void *ctx; } fh_cost;

/* The setting to look at after this one, where not all can be. */
uint32_t fh_ladder_next(const fh_ladder *l, uint32_t rung);
/* The first one that probes a `part`-th of what this one does. */
uint32_t fh_ladder_share(const fh_ladder *l, uint32_t rung, uint32_t part);
/* Clusters by falling score, equal scores by rising number.  All [n]; key, order2 and key2 are room. */
void fh_order_clusters(const float *score, uint32_t n, uint32_t *order, uint32_t *key, uint32_t *order2, uint32_t *key2);

/* What A finds: tokens that are always scored, most worth having first, and the setting of the ladder that goes with them. */
typedef struct fh_setting {
    uint32_t rung;                 /* 0: nothing keeps what is wanted */
    uint32_t *hot; size_t n_hot;
    double cost;
    double effective;              /* positions of B, less what documents will take of them, as A has it */
} fh_setting;
typedef struct fh_fit_params {
    uint32_t vocab;
    const fh_ladder *ladder;       /* the settings that count */
    const uint8_t *always;         /* [V] candidates whatever the probes are */
    uint32_t k;                    /* containment of the best k */
    double target, confidence;
    size_t tested, fresh;          /* positions of B; of the text that is promised for */
    int64_t hot;                   /* tokens in the list; -1: as many as pay */
    fh_cost cost;
} fh_fit_params;
/* The cheapest setting and hot list that B will most likely pass, fitted on one half of the documents and judged on the other; then the list is fitted on
 * all.  out->hot is the caller's to free. */
fh_status fh_fit(fh_setting *out, const fh_view *a, const fh_fit_params *p, fh_err *err);
/* What must be seen beforehand so that the bound of `effective` positions will most likely reach the target; 0 where nothing is asked. */
double fh_aim(double target, double effective, double confidence);
/* Candidates whatever the probes are: ids that are always, and a setting's hot list (NULL: none).  fixed [V]. */
void fh_mark(uint8_t *fixed, const fh_head *head, const fh_setting *s);
/* The largest P that reads no more than this many bytes. */
uint32_t fh_most_probes(const fh_head *head, size_t hot, double bytes);

/* The first setting at which the position's k best are candidates (fixed probing: how many probes); 0: they always are. */
uint32_t fh_view_need(const fh_view *v, size_t i, uint32_t k, const uint8_t *fixed);
/* Sums over documents of the positions missed at setting most, most - 1, ... 1: tallies [most]. */
fh_status fh_view_tallies(fh_tally *tallies, uint32_t most, const fh_view *v, uint32_t k, const uint8_t *fixed, fh_err *err);

/* The numbers of probes that are looked at where not all can be: every one of the first, then steps of a tenth. */
static inline uint32_t fh_next_probes(uint32_t p) { return p < 20 ? p + 1 : p + p / 10; }

/* The share of effective positions that few degrees of freedom leave: (normal quantile / Student's)^2. */
double fh_few_left(double degrees, double confidence);

/* A test of one target at each setting of a falling sequence. */
typedef struct fh_trial {
    double target;                 /* 0: only measured */
    const fh_tally *b, *a;         /* [n]; a NULL: B alone says how misses gather */
} fh_trial;
/* The design effect to reckon with at all of them. */
fh_design fh_trial_design(const fh_trial *t, size_t n);
/* How far down all targets are kept with certainty on `fresh` positions of the same kind: an index of the sequence (0: the most generous), or -1.
 * bounds [n_trials]: those at that index, or at 0. */
ptrdiff_t fh_decide(fh_bound *bounds, const fh_trial *trials, size_t n_trials, size_t n, double fresh, double confidence);

#endif
