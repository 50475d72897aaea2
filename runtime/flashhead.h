/* flashhead.h: the public interface of libflashhead, the FlashHead language-model head (arXiv 2603.14591).
 *
 * A head replaces logits = W h, W [V, D], by a two-stage search: score K centroids, then score only the tokens of the P best
 * clusters and of a hot list.  The library opens a .fhead artifact and answers; it needs libc, zstd and cJSON.
 *
 * Words.  V tokens, D hidden size, K clusters of cap tokens, P probes.  A state is float32 [D], what the model's
 * final norm puts out.  Candidates of a state: the live tokens of its probed clusters, the hot list, the ids that
 * are always candidates (end of text and their like), and what the caller forces in, less what the caller forces out.
 *
 * Threshold.  Where a head has one, of the P best clusters only those are probed whose score is no further below the best one's, in float32, and always
 * the best one: fewer where the head is sure, P at most.  A call that names its number of probes gets just so many.
 *
 * Reranking.  Where a head has exact rows beside the encoded ones, the R candidates of the largest encoded logits (ties: the smaller id) are scored
 * again from these, in float32, and so a near tie is decided as the dense head decides it.  Their logits take the place of the encoded ones.
 *
 * Threads.  A head is immutable once open and may be shared; a scratch belongs to one call at a time.
 * Errors.  0 or a negative fh_status; a message in *err (which may be NULL).  Nothing prints, exits or aborts.
 * Ties.  Equal logits: the smaller token id first.  Equal centroid scores: the smaller cluster first.  Everywhere.
 */
#ifndef FLASHHEAD_H
#define FLASHHEAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define FLASHHEAD_VERSION "0.1.0"

#ifndef FH_STATUS_TYPES
#define FH_STATUS_TYPES
typedef enum fh_status {
    FH_OK = 0,
    FH_EFAIL = -1,        /* failed, none of the cases below */
    FH_ENOMEM = -2,       /* out of memory */
    FH_EIO = -3,          /* the system could not open, read or write */
    FH_EFORMAT = -4,      /* a file is not what it has to be */
    FH_EUNSUPPORTED = -5, /* understood, and refused by name */
    FH_ECHECK = -6,       /* a check or a target was not met (exit status 3) */
    FH_EUSAGE = -7,       /* an argument is out of its range (exit status 2) */
    FH_EINTERRUPTED = -8, /* stopped by the caller (exit status 130) */
    FH_EBUSY = -9,        /* somebody else holds the lock */
    FH_ENOTFOUND = -10    /* the file or the item does not exist */
} fh_status;

/* Where a function that fails leaves one line for people: what, where, and what to do. */
typedef struct fh_err {
    fh_status code;
    char text[1000]; /* NUL-terminated, no line break, printable */
} fh_err;
#endif

typedef struct fh_head fh_head;       /* an opened head; immutable */
typedef struct fh_scratch fh_scratch; /* working memory and threads of one caller */

/* What a head is.  Pointers are borrowed until the head is closed. */
typedef struct fh_head_info {
    uint32_t vocab, hidden;            /* V, D */
    uint32_t clusters, cap;            /* K, tokens per cluster */
    uint32_t probes;                   /* P by default: calibrated, or K/16 */
    float threshold;                   /* of these, those that close to the best one; 0: all P */
    const char *centroids, *tokens;    /* encodings: "f32", "bf16", "f16", "int8" */
    const char *exact;                 /* dtype of the exact rows that fh_head_dense_* reads, NULL when the file has none */
    uint32_t rerank;                   /* R: candidates scored again from the exact rows; 0: none */
    const uint32_t *hot; size_t n_hot;       /* scored on every step */
    const uint32_t *always; size_t n_always; /* ids of generation_config: always candidates */
    size_t dead;                       /* rows that can never be meant; never selected */
    bool calibrated;
    const char *fingerprint;           /* of the base model's head, 64 hex digits */
    const char *digest;                /* of the artifact, 64 hex digits */
    const char *isa;                   /* the kernels in use: "ref", "avx2", "avx512", "neon" */
} fh_head_info;

/* Open an artifact.  FH_ISA=ref|avx2|avx512|neon in the environment forces the kernels: FH_EUSAGE for another name, FH_EUNSUPPORTED where
 * this CPU cannot run them.  All of them give the same bits. */
fh_status fh_head_open(fh_head **out, const char *path, fh_err *err);
void fh_head_close(fh_head *head); /* accepts NULL */
const fh_head_info *fh_head_get_info(const fh_head *head);

/* threads 0: one for each CPU the process may use; 1: the calling thread alone. */
fh_status fh_scratch_new(fh_scratch **out, const fh_head *head, unsigned threads, fh_err *err);
void fh_scratch_free(fh_scratch *scratch); /* accepts NULL */

/* What a call may ask for beyond the defaults; a zeroed one is the default. */
typedef struct fh_query {
    uint32_t probes;                          /* P, without a threshold; 0: the head's own, with its threshold; more than K counts as K */
    bool no_hot;                              /* leave out the hot list (not the ids that are always candidates) */
    const uint32_t *include; size_t n_include; /* forced in; ids below V, in any order, repeats allowed; dead ones stay out */
    const uint32_t *exclude; size_t n_exclude; /* forced out: wins over everything else */
} fh_query;

/* Stage 1.  states [batch, D]; clusters [batch, P] in falling order of score, scores the same shape or NULL.  Where a threshold (probes 0) leaves
 * fewer, the rest is UINT32_MAX and -INFINITY. */
fh_status fh_head_route(const fh_head *head, fh_scratch *scratch, const float *states, size_t batch, uint32_t probes,
                        uint32_t *clusters, float *scores, fh_err *err);

/* Room that fh_head_score needs for one state, in candidates. */
size_t fh_head_max_candidates(const fh_head *head, const fh_query *query);
/* Stage 2, for one state and the clusters given (each at most once, no more than the query's probes; UINT32_MAX at the end is none).  ids and logits get *count
 * candidates, ascending ids within a cluster, clusters in the order given, then the others ascending; bias added, soft-capped, the R best
 * reranked. */
fh_status fh_head_score(const fh_head *head, fh_scratch *scratch, const float *state, const uint32_t *clusters, size_t n_clusters,
                        const fh_query *query, uint32_t *ids, float *logits, size_t *count, fh_err *err);
/* Logits of any ids, dead or not, in the order given, from the encoded rows: nothing is reranked. */
fh_status fh_head_score_ids(const fh_head *head, fh_scratch *scratch, const float *state, const uint32_t *ids, size_t n, float *logits,
                             fh_err *err);

/* Both stages: the k best candidates of each state, best first; R + k - 1 are reranked.  ids, logits [batch, k]; where a state has fewer
 * candidates the rest is UINT32_MAX and -INFINITY.  A state's answer never depends on its neighbours in the batch. */
fh_status fh_head_topk(const fh_head *head, fh_scratch *scratch, const float *states, size_t batch, const fh_query *query, size_t k,
                       uint32_t *ids, float *logits, fh_err *err);
/* The best candidate of each state; UINT32_MAX where all are forced out.  ids [batch]. */
fh_status fh_head_greedy(const fh_head *head, fh_scratch *scratch, const float *states, size_t batch, const fh_query *query, uint32_t *ids,
                         fh_err *err);

/* The dense head: all live tokens, from the exact rows (float32 arithmetic).  FH_ENOTFOUND where the file has none.
 * ids, logits [batch, k]. */
fh_status fh_head_dense_topk(const fh_head *head, fh_scratch *scratch, const float *states, size_t batch, size_t k, uint32_t *ids,
                             float *logits, fh_err *err);
/* All logits of one state by token id, [V]; dead rows are -INFINITY. */
fh_status fh_head_dense_logits(const fh_head *head, fh_scratch *scratch, const float *state, float *logits, fh_err *err);
/* One exact row, D values of info->exact, e.g. an input embedding tied to the head.  NULL when there is none or id >= V. */
const void *fh_head_exact_row(const fh_head *head, uint32_t id);

/* Merge two lists of candidates (best first, padded as fh_head_topk pads) into the k best, e.g. of two machines that each
 * hold a range of clusters.  An id in both lists is kept once.  out may not overlap the inputs. */
void fh_merge_topk(const uint32_t *ids_a, const float *logits_a, size_t n_a, const uint32_t *ids_b, const float *logits_b, size_t n_b,
                   size_t k, uint32_t *ids, float *logits);
/* log(exp(a) + exp(b)), exact for infinities: merges log-sum-exps. */
double fh_merge_lse(double a, double b);

/* Draw one of n candidates; those at -INFINITY are none, and no candidate is FH_EUSAGE.  temperature 0: the best.  Then, as the
 * reference libraries do it: temperature, top_k (0: off), top_p (1: off), min_p (0: off), softmax, and the candidate where the running
 * sum passes `random` in [0, 1), best first.  Where logits tie, top_k keeps the smaller ids. */
typedef struct fh_sampling { float temperature, top_p, min_p; uint32_t top_k; } fh_sampling;
fh_status fh_sample(const fh_sampling *how, const uint32_t *ids, const float *logits, size_t n, double random, uint32_t *id, fh_err *err);

/* Repetition penalty (Keskar et al. 2019, arXiv 1909.05858, as the reference libraries have it): the logit of a token that was seen is
 * divided by `factor` where it is above 0, else multiplied.  Comes before everything that fh_sampling says. */
typedef struct fh_penalty {
    float factor;        /* above 0; 1: off */
    const uint8_t *seen; /* [V] 1: this token; NULL: none */
} fh_penalty;
fh_status fh_penalty_check(const fh_penalty *how, fh_err *err); /* FH_EUSAGE; NULL is none */
float fh_penalize(const fh_penalty *how, uint32_t id, float logit); /* the penalised logit */

/* Draws from the softmax of *all* live tokens' exact logits, whatever the clusters are, reading only as many exact rows as may win:
 * Gumbel noise, and for each row a bound of its exact logit from its encoded one.  Needs exact rows (FH_ENOTFOUND). */
typedef struct fh_bounds fh_bounds; /* of one head; immutable; 8 bytes a row */
/* Reads every row once. */
fh_status fh_bounds_new(fh_bounds **out, const fh_head *head, fh_scratch *scratch, fh_err *err);
void fh_bounds_free(fh_bounds *bounds); /* accepts NULL; before the head is closed */
typedef struct fh_draw {
    uint32_t id;
    size_t clusters, rows; /* looked into; read exactly (all encoded rows are read, unless they are the exact ones) */
    bool dense;            /* all exact rows were read: the bound left more than an eighth of them, or there is none */
} fh_draw;
/* temperature > 0.  `noise` names the noise: the same number and state give the same token, and other numbers, well mixed or not,
 * independent draws.  penalty may be NULL. */
fh_status fh_head_draw(const fh_head *head, fh_scratch *scratch, const fh_bounds *bounds, const float *state, float temperature,
                       const fh_penalty *penalty, uint64_t noise, fh_draw *out, fh_err *err);

#ifdef __cplusplus
}
#endif
#endif
