/* calib/calib.h: from text to a promise.
 *
 * Corpora are read, tokenized and run through the body (or sampled from the model itself); the states that come out are
 * split by documents into A (fits), B (decides) and C (reports).  Curves say what a head contains at every P.  calibrate
 * chooses the cheapest setting whose containment on B is certain enough (DESIGN 7).
 */
#ifndef FH_CALIB_H
#define FH_CALIB_H

#include "runtime/runtime.h"

/* ---- corpora --------------------------------------------------------------------------------------------- */

/* Documents as token ids.  Document i is ids[starts[i] .. starts[i + 1]). */
typedef struct fh_corpus {
    uint32_t *ids; size_t n;
    size_t *starts; size_t documents;
    char digest[65];       /* SHA-256 of the bytes read */
    char form[16];         /* "plain", "wikitext", "jsonl" or "self" */
    char *names;           /* base names of the files, comma-separated */
    bool documents_known;  /* false: cut into blocks */
} fh_corpus;
enum { FH_BLOCK_TOKENS = 2048 }; /* a document where the text does not say */
/* Read plain text, WikiText (token or raw form: a document begins with a line " = Title = ") or JSON lines with a "text" member, told apart
 * by their first bytes.  Streamed; stops once `limit` tokens are read (0: all).  Documents above 1 MiB are cut at a line break.
 * A byte-order mark is dropped; UTF-16, compressed and binary files are refused; invalid UTF-8 becomes U+FFFD with a warning. */
fh_status fh_corpus_read(fh_corpus *out, const char *const *paths, size_t n, const fh_tokenizer *tokenizer, size_t limit, const fh_job *job, fh_err *err);
/* Keep about `tokens` of a longer corpus: windows of `window` tokens spread evenly over all of it (documents stay documents; one that loses all its
 * windows goes).  The first documents of a text are few, and what is learned from few documents serves others badly. */
void fh_corpus_thin(fh_corpus *c, size_t tokens, uint32_t window);
void fh_corpus_free(fh_corpus *c);
/* The digest that reading these files will give (regular files only), before they are read. */
fh_status fh_text_digest(char hex[65], const char *const *paths, size_t n, fh_err *err);
/* The bytes of one text, judged as above, as one string (perplexity reads the whole text as one). */
fh_status fh_text_read(char **text, size_t *len, const char *path, const fh_job *job, fh_err *err);

/* ---- states ---------------------------------------------------------------------------------------------- */

enum { FH_PART_A, FH_PART_B, FH_PART_C, FH_PARTS };
/* What the head reads: one row a position, with the part its document fell to. */
typedef struct fh_states {
    size_t n, d;
    float *hidden;         /* [n, D] */
    uint32_t *ids;         /* [n] the token that the state stands on */
    uint32_t *next;        /* [n] the token that follows in the text, FH_NO_TOKEN at the end of a window */
    uint32_t *document;    /* [n] */
    uint8_t *part;         /* [n] */
    fh_score_range *seen; size_t layers; /* [layers] of attention's scores while they were collected; NULL: read from a file, whose record has them */
    fh_tensors *file;      /* when read from a file: the arrays point into it */
} fh_states;
typedef struct fh_states_params { size_t tokens; uint32_t window; uint64_t seed; } fh_states_params; /* zeros: all, 512 */
/* Tokens of text in a sequence: params->window, or what the model and the tokenizer's prefix leave. */
uint32_t fh_states_window(const fh_model *m, const fh_states_params *p);
/* Documents through the body, in windows of at most params->window tokens, each a sequence of its own (with the prefix the tokenizer adds, whose
 * states are not kept). */
fh_status fh_states_of_corpus(fh_states *out, const fh_model *m, const fh_corpus *c, const fh_states_params *p, const fh_job *job, fh_err *err);
/* Text that the model says itself, at temperature 1 from the dense head, seeded: the states are those it spoke from.  The corpus that was
 * said comes back in *said (may be NULL). */
fh_status fh_states_of_self(fh_states *out, fh_corpus *said, const fh_model *m, const fh_states_params *p, const fh_job *job, fh_err *err);
/* The largest document number, plus one. */
uint32_t fh_states_documents(const fh_states *s);
/* Deal documents of these sizes [documents] to parts as below; part [documents]. */
fh_status fh_deal(uint8_t *part, const size_t *sizes, uint32_t documents, uint64_t seed, fh_err *err);
/* Deal the documents to parts: 50 % A, 35 % B, 15 % C of the positions, whole documents, seeded. */
fh_status fh_states_split(fh_states *s, uint64_t seed, fh_err *err);
fh_status fh_states_save(const fh_states *s, const char *path, const fh_json *metadata, fh_err *err);
fh_status fh_states_load(fh_states *out, const char *path, fh_err *err);
void fh_states_free(fh_states *s);
/* States [n, D] of a safetensors file with `hidden` [N, D] or [B, T, D]; width checked.  *data is in the file's map. */
fh_status fh_read_states(fh_tensors **file, const float **data, float **owned, size_t *n, const char *path, size_t width, fh_err *err);

/* ---- measuring ------------------------------------------------------------------------------------------- */

enum { FH_MAX_TOP = 50 };
/* The share of probability that a FlashHead with a back-off spreads evenly over the live tokens that are no candidates; none where there are no such.
 * Stated, not fitted: whoever compares two artifacts must use one number. */
#define FH_BACKOFF 1e-3
/* One way to look at states: through a head, at some P. */
typedef struct fh_lens {
    const fh_head *head;
    bool no_hot;                  /* without its hot list */
    bool by_mass;                 /* clusters in order of the probability that the dense head gives to their tokens, not by their scores: no routing
                                   * covers more */
    bool exact_rows;              /* tokens by the dense head's own logits, instead of by the encoded rows */
    bool no_rerank;
    const uint32_t *probes; size_t n_probes; /* rising; more than K counts as K */
    const float *thresholds;      /* [n_probes] rising: of so many clusters those that close to the best one (flashhead.h); 0: all.  NULL: all at every P */
} fh_lens;
/* Of one position, through a lens at one P. */
typedef struct fh_seen {
    uint32_t best;                /* FlashHead's token; FH_NO_TOKEN where there is no candidate */
    uint32_t probed;              /* clusters: P, or with a threshold maybe fewer */
    double mass;                  /* covered */
    double kl;                    /* nats, KL(FlashHead over its candidates || dense) */
    double kl_dense;              /* nats, KL(dense || FlashHead with its back-off): finite whatever is missed */
} fh_seen;
typedef struct fh_sight {
    size_t number, position;      /* which of those measured; row of states */
    const uint32_t *top;          /* [top] the dense head's best, best first; FH_NO_TOKEN where there are no more live ones */
    float margin;                 /* the best one's logit less the second's; 0 with a top of 1 */
    double entropy;               /* nats, of the dense head */
    const uint32_t *need;         /* [lenses, top] through each, how many probes until the first j + 1 of these are candidates; 0: they always are */
    const fh_seen *seen;          /* for each lens in turn [n_probes] */
} fh_sight;
typedef struct fh_observe_params { size_t top; double backoff; bool silent; } fh_observe_params; /* zeros: 10, FH_BACKOFF; silent: no progress */
/* Every position through every lens, against the dense head; on_sight is called in their order, on this thread, with what is borrowed until it returns.
 * positions: rows of states (NULL: 0..n-1).  Not finite: FH_ECHECK. */
typedef void fh_on_sight(void *ctx, const fh_sight *s);
fh_status fh_observe(const fh_dense *dense, const fh_lens *lenses, size_t n_lenses, const fh_observe_params *params, const float *states,
                     const size_t *positions, size_t n, fh_on_sight *on_sight, void *ctx, const fh_job *job, fh_err *err);

/* ---- curves ---------------------------------------------------------------------------------------------- */

typedef struct fh_point { /* at one P, averaged over positions */
    uint32_t probes;
    double top1, top3, top5, top10; /* share of positions where all of the dense top-k are candidates */
    double agreement, mass, kl;     /* kl: nats, KL(FlashHead over its candidates || dense) */
    float threshold;                /* of these probes those that close to the best one; 0: all */
    double mean_probes;
} fh_point;
/* Where a curve is looked at: P = 1 2 4 6 8 12 16 24 ..., `chosen` (1..clusters) and `clusters`; points [FH_CURVE_POINTS], returns how many. */
enum { FH_CURVE_POINTS = 80 };
size_t fh_curve_grid(fh_point *points, uint32_t clusters, uint32_t chosen);
/* What is measured at one position: whether all of the dense top-k are candidates, whether the answer is the dense head's, the covered mass, the KL, the
 * clusters probed. */
typedef enum fh_measure { FH_TOP1, FH_TOP3, FH_TOP5, FH_TOP10, FH_AGREES, FH_COVERS, FH_DIVERGES, FH_PROBES, FH_MEASURES } fh_measure;
/* values [n_points, FH_MEASURES] of position number i of n; called in order, from the calling thread. */
typedef void fh_curve_row(void *ctx, size_t i, const double *values);
/* Every position at every P; points[i].probes and thresholds rise.  positions: rows of states (NULL: 0..n-1).  FH_ECHECK: logits that are not finite. */
fh_status fh_curve_each(const fh_head *head, const fh_dense *dense, const float *states, const size_t *positions, size_t n, bool no_hot,
                        const fh_point *points, size_t n_points, fh_curve_row *row, void *ctx, const fh_job *job, fh_err *err);
/* The means: points[i].probes and threshold are given, the rest is filled.  dense: the model's own rows.  positions: rows of states (NULL: 0..n-1). */
fh_status fh_curve(const fh_head *head, const fh_dense *dense, const float *states, const size_t *positions, size_t n, bool no_hot,
                   fh_point *points, size_t n_points, const fh_job *job, fh_err *err);
/* The dense head's best `k` live tokens of each position, best first; ids [n, k]. */
fh_status fh_dense_best(const fh_dense *dense, const float *states, const size_t *positions, size_t n, size_t k, uint32_t *ids, const fh_job *job, fh_err *err);

/* Settings in rising order of cost, number 1 the cheapest.  Without thresholds number r probes r clusters, and n is `most`; with them it probes those of the
 * `most` best that are within threshold[r - 1] of the best one's score, mean[r - 1] of them in the mean of the text it was made from. */
enum { FH_RUNGS = 1024 };
typedef struct fh_ladder { uint32_t n, most; float *threshold; double *mean; } fh_ladder;
/* Thresholds of a head for positions [n] (rows of states): some hundred, rising, the last one of all `most` clusters.  Freed by the caller. */
fh_status fh_ladder_new(fh_ladder *out, const fh_head *head, const fh_dots_device *device, uint32_t most, const float *states, const size_t *positions,
                        size_t n, const fh_job *job, fh_err *err);
void fh_ladder_free(fh_ladder *l);
double fh_ladder_probes(const fh_ladder *l, uint32_t rung);    /* in the mean */
uint32_t fh_ladder_most(const fh_ladder *l, uint32_t rung);    /* P: at most */
float fh_ladder_threshold(const fh_ladder *l, uint32_t rung);  /* 0: none */
/* How many thresholds leave out a cluster that is so far below the best one: n: all do. */
uint32_t fh_ladder_step(const fh_ladder *l, float gap);

/* The rank (0: best) of each of those tokens' clusters among all clusters; ranks [n, k].  Of a head through bf16 the worst that equal scores allow.  With a
 * ladder of thresholds (else NULL) steps [n, k] has the fh_ladder_step of each, 0 for the best cluster. */
fh_status fh_cluster_ranks(const fh_head *head, const fh_dots_device *device, const fh_ladder *ladder, const float *states, const size_t *positions, size_t n,
                           size_t k, const uint32_t *ids, uint32_t *ranks, uint32_t *steps, const fh_job *job, fh_err *err);

/* What a runtime without hot list and reranking answers, greedily, with the head's centroids, rows, `always` ids and the rounding that its parts say:
 * ids, logits [n].  Equal logits: the smaller id where there are `always` ids, else the one of the better cluster, as the vLLM plugin has it.  probes 0: the
 * head's. */
fh_status fh_plain_greedy(const fh_head *head, const float *states, size_t n, uint32_t probes, uint32_t *ids, float *logits, const fh_job *job, fh_err *err);

/* ---- what states teach -------------------------------------------------------------------------------------- */

enum { FH_LEARN_STATES = 512 }; /* the fewest that routing is learned from */
enum { FH_LEARN_BATCH = 240, FH_LEARN_PASSES = 8, FH_MOST_MOVES = FH_LEARN_PASSES - 1 };
typedef struct fh_learn_params {
    unsigned passes;      /* over the states; 0: FH_LEARN_PASSES */
    double rate;          /* of Adam, relative to the root mean square of the centroids' entries, falling linearly to 0; 0: 0.013 */
    size_t batch;         /* 0: FH_LEARN_BATCH */
    uint64_t seed;        /* of the order */
    bool unit;            /* hold rows at unit length, for runtimes that route by cosine */
    unsigned moves;       /* times that tokens may go where the centroids expect them: they do where the states held out gain by it; fewer than passes */
} fh_learn_params;
typedef struct fh_learn_report {
    double loss_before, loss; size_t states; unsigned passes; /* nats, on the tenth of the states held out */
    double target_seconds, target_operations;                 /* the dense head's masses; multiplications and additions of its products, in eight bits */
    double pass_seconds, pass_operations;                     /* of all passes that were made, also those after the best: forward in eight bits, backward of what is not
                                                               * thinned out, on states held out in float32 */
    unsigned made;                                            /* how many */
    unsigned moves; size_t swaps; double move_seconds;        /* that were kept, and of how many pairs of tokens */
} fh_learn_report;
/* Distil the dense head's cluster masses into centroids [K, D], which come in as the start and go out as the best found on the
 * states held out.  assignment [V] token -> cluster; tokens that move change it, the number of live and of dead ones in each cluster stays.  Moving needs memory
 * for [V, D] float32 and no more than 1 KiB a state.  The same for any number of threads and any instruction set, as far as OpenBLAS gives the same on it: its
 * products decide which pass is kept, and where tokens move (docs/decisions/0035).  After an error both are worth nothing.  FH_ECHECK: too few states, or logits
 * that pass float32. */
fh_status fh_learn_routing(float *centroids, uint32_t k, uint32_t *assignment, const fh_dense *dense, const float *states, const size_t *positions, size_t n,
                           const fh_learn_params *params, const fh_job *job, fh_learn_report *out, fh_err *err);
/* A text's states say little about directions that another text's will have: what is added to their second moment, of its mean diagonal (decision 0036). */
#define FH_OUTPUT_RIDGE 0.3
/* map [D, D], 0 left of the diagonal: between rows mapped by it (w . map [0], w . map [1], ...) the square of the Euclidean distance is the mean square difference
 * of the logits they give over states [positions [0..n)] of width d, and FH_OUTPUT_RIDGE times the states' mean square times that of the rows themselves.
 * FH_ECHECK: no states; FH_EFORMAT: states whose squares are not finite. */
fh_status fh_output_map(float *map, size_t d, const float *states, const size_t *positions, size_t n, const fh_job *job, fh_err *err);

/* ---- statistics ------------------------------------------------------------------------------------------
 *
 * A share of positions, promised from below.  Positions of one document depend on each other, so that n of them are worth fewer: as many as
 * independent ones would have the same variance of the share.  n over that is the design effect (Kish 1965); the exact binomial bound at what is
 * left, less what few documents know of their own variance, is Korn and Graubard's (Survey Methodology 24, 1998).  Documents are of very
 * different lengths, which makes the usual variance too small and its degrees of freedom fewer than documents less one: both are corrected as
 * Bell and McCaffrey (Survey Methodology 28, 2002) do it.
 */

/* The exact one-sided lower bound of a share (Clopper and Pearson 1934): the largest p such that a chance of `misses` or fewer misses in
 * n is at most 1 - confidence.  n and misses need not be whole.  n = 0 gives 0. */
double fh_share_lower(double n, double misses, double confidence);
/* Whether that bound reaches `target`, which is much quicker to say. */
bool fh_share_reaches(double n, double misses, double target, double confidence);
/* Independent positions without a miss that such a bound needs to reach `target`. */
uint64_t fh_share_needed(double target, double confidence);
/* t with a chance of 1 - p of being exceeded, of Student's distribution; infinite degrees are the normal one. */
double fh_student_quantile(double p, double degrees);

/* What a bound needs of the positions of some documents; zeroed, then one call a document.  A miss may be a part of one: mass that is not covered. */
typedef struct fh_tally { size_t documents; double n, misses, m[6], mx, xx; } fh_tally; /* positions m and misses x of each: sums of m, x, m^i (i = 2..5), m x, x^2 */
void fh_tally_add(fh_tally *t, double positions, double misses);
/* How misses gather in documents. */
typedef struct fh_design { double effect, degrees; } fh_design;
/* effect: variance of misses / n between documents over that of independent positions; 0 without a miss, infinite with fewer than two documents.
 * degrees: of freedom in it. */
fh_design fh_tally_design(const fh_tally *t);
/* The same from two sets of documents, each weighted by its degrees, as it would be for documents of the first's lengths. */
fh_design fh_design_pool(const fh_tally *t, const fh_tally *other);
typedef struct fh_bound { double lower, effect, degrees, effective; } fh_bound; /* of the share of hits; design effect and degrees taken; positions these leave */
/* The lower bound of what another text of `fresh` positions of this kind will show (INFINITY: of the share behind both).  design: what to reckon
 * with at least (NULL: the tally's own), its degrees in any case. */
fh_bound fh_tally_bound(const fh_tally *t, const fh_design *design, double fresh, double confidence);

/* ---- calibrate -------------------------------------------------------------------------------------------- */

/* What can be promised: containment of the dense head's best k, agreement, covered mass. */
typedef enum fh_promise_kind { FH_CONTAINED, FH_AGREED, FH_COVERED, FH_PROMISES } fh_promise_kind;
typedef struct fh_promise {
    double target;         /* 0: not asked for */
    double misses;         /* on B; of mass what was not covered */
    fh_bound bound;        /* on B */
    double heldout;        /* on C */
} fh_promise;

/* What a step takes by the clock: seconds [n] at rising numbers of probes, and for one token of the hot list. */
enum { FH_STEP_TIMES = 12 };
typedef struct fh_step_times { uint32_t probes[FH_STEP_TIMES]; double seconds[FH_STEP_TIMES]; size_t n; double hot; } fh_step_times;

/* A head that could be taken: one routing, one encoding of centroids and rows. */
typedef struct fh_choice { const char *routing, *centroids, *tokens; } fh_choice;
typedef struct fh_choices {
    const fh_choice *choice; size_t n;
    /* Choice number i as a head without a hot list; closed by the caller of it. */
    fh_status (*open)(void *ctx, size_t i, fh_head **out, fh_err *err);
    /* What steps of that head take by the clock; may be NULL where nothing is planned or chosen by time. */
    fh_status (*time)(void *ctx, const fh_head *head, fh_step_times *out, fh_err *err);
    void *ctx;
} fh_choices;

typedef struct fh_calibrate_params {
    double targets[FH_PROMISES];          /* 0: not asked for; at least one is */
    double confidence, max_cost;          /* 0.95; share of the dense head's bytes, 0.5 */
    uint32_t containment_k;               /* 1..FH_MAX_TOP */
    int64_t hot;                          /* tokens in the hot list; -1: chosen on A */
    int64_t rerank;                       /* rows scored again from the checkpoint's, where the encoded ones are not these already; -1: by their encoding */
    bool vllm;                            /* the promise is about the vLLM plugin: no hot list, no reranking, its arithmetic (docs/decisions/0008) */
    bool adaptive;                        /* clusters within a threshold of the best one's score, instead of a number of them (docs/decisions/0027) */
    bool by_time;                         /* the cheapest is the quickest on this machine, not the one that reads the fewest bytes */
} fh_calibrate_params;
typedef struct fh_calibration {
    uint32_t probes;                      /* at most, with a threshold */
    float threshold;                      /* 0: none */
    double mean_probes;                   /* on C, with a threshold; else as many */
    uint32_t probes_p50, probes_p99, probes_max; /* on C */
    uint32_t rung;                        /* of the ladder of settings */
    uint32_t *hot; size_t n_hot;          /* most worth having first */
    size_t choice;                        /* index of the head taken */
    size_t positions[FH_PARTS], documents[FH_PARTS];
    fh_promise promise[FH_PROMISES];      /* at `probes`; containment is measured where it was not asked for too */
    double step_bytes, dense_bytes;       /* with a threshold in the mean of C */
    fh_point *curve; size_t n_curve;      /* on C, with the hot list */
    bool reached;                         /* when not: `promise` has what was found at the largest P that counts, and */
    uint64_t needed;                      /* the positions on B that zero misses would need */
} fh_calibration;
/* The cheapest setting that keeps the targets.  One that cannot be reached is FH_OK with reached = false. */
fh_status fh_calibrate(fh_calibration *out, const fh_states *states, const fh_dense *dense, const fh_choices *choices, const fh_calibrate_params *p,
                       const fh_job *job, fh_err *err);
void fh_calibration_free(fh_calibration *c);

/* ---- plan -------------------------------------------------------------------------------------------------- */

/* The cheapest setting that keeps a containment, as part A has it: nothing is promised. */
typedef struct fh_plan_row {
    size_t choice;
    uint32_t probes; size_t n_hot;        /* probes: at most, with a threshold */
    float threshold;                      /* 0: none */
    double mean_probes;                   /* on A */
    double level;                         /* containment of the best k that is kept; 0: none was asked for */
    double agreement, mass, kl;           /* on a sample of A */
    double bytes, seconds;                /* of a step */
    bool meets;                           /* the cheapest that keeps all targets, with what B's bound will ask for beyond them */
} fh_plan_row;
enum { FH_PLAN_ROWS = 16 };
/* rows [FH_PLAN_ROWS]: one for each of some containments, and one that meets the targets if any does; rising in cost.  choices->time is needed. */
fh_status fh_plan(fh_plan_row *rows, size_t *n, const fh_states *states, const fh_dense *dense, const fh_choices *choices, const fh_calibrate_params *p,
                  const fh_job *job, fh_err *err);

/* ---- rehearse --------------------------------------------------------------------------------------------- */

typedef struct fh_rehearse_params {
    const uint32_t *ks; size_t n_ks;             /* containment of the best k; 1..FH_MAX_TOP */
    const double *targets; size_t n_targets;
    double confidence, max_cost;
    int64_t hot;                                 /* as for calibrate */
    bool adaptive;
    size_t draws;                                /* of each size */
    const size_t *tokens; size_t n_tokens;       /* sizes: documents are drawn until they have so many positions; 0: half of the text */
    uint64_t seed;
} fh_rehearse_params;
/* One draw, one k, one target. */
typedef struct fh_rehearsed {
    bool promised, too_little;  /* too_little: part B is too small for any promise of this target, whatever is seen */
    uint32_t probes; size_t n_hot;
    float threshold;            /* 0: none */
    double mean_probes;         /* with a threshold, on the whole text; else `probes` */
    fh_bound bound;
    double found;               /* containment on the text that was not drawn, or on the other text; NAN: not promised */
} fh_rehearsed;
/* Calibrate containment on documents drawn at random, look at all the rest (or at `against`, the states of another text), and again.  out [n_tokens, draws,
 * n_ks, n_targets].  The head is taken as it is, without its hot list.  The same numbers whatever the threads. */
fh_status fh_rehearse(fh_rehearsed *out, const fh_states *states, const fh_states *against, const fh_dense *dense, const fh_head *head, const fh_rehearse_params *p,
                      const fh_job *job, fh_err *err);

#endif
