/* runtime/runtime.h: what runs.  The head beyond its public interface (flashhead.h), transformer bodies, tokenizers, and
 * a model opened from a checkpoint or a bundle. */
#ifndef FH_RUNTIME_H
#define FH_RUNTIME_H

#include "cluster/cluster.h"
#include "runtime/flashhead.h"
#include "runtime/head_device.h"

/* ---- the head -------------------------------------------------------------------------------------------- */

/* A head from arrays in memory (a work directory, a test).  Everything is borrowed until the head is closed. */
typedef struct fh_head_parts {
    uint32_t vocab, hidden, clusters, cap, probes;
    fh_rows centroids; const void *centroid_scales;  /* [K, D]; scales: float32 [K] for int8, bf16 [K, groups] for int4, else NULL */
    fh_rows tokens; const void *token_scales;        /* [K * cap, D] in slot order; scales [K * cap] alike */
    fh_rows exact;                                   /* the same rows in the checkpoint's dtype; data NULL: `tokens` are exact if `tokens_exact` */
    bool tokens_exact;
    uint32_t rerank;                                 /* R of flashhead.h; 0: none, needs `exact` */
    float threshold;                                 /* of flashhead.h; 0: none */
    bool exact_by_token;                             /* `exact` is [V, D] by token id, as a checkpoint has it: for reranking alone, fh_head_dense_* do without */
    const uint32_t *permutation;                     /* [K * cap] slot -> token id, FH_NO_TOKEN: padding */
    const uint32_t *dead; size_t n_dead;             /* ascending */
    const float *bias;                               /* [V] or NULL */
    float softcap;                                   /* 0: none */
    const uint32_t *hot; size_t n_hot;
    const uint32_t *always; size_t n_always;
    bool through_bf16;                               /* for measuring alone (fh_head_cluster_scores, fh_head_slot_logits): states, scores and logits are
                                                      * rounded to bf16, as runtimes have them that work in it */
} fh_head_parts;
#define FH_NO_TOKEN UINT32_MAX
fh_status fh_head_from_parts(fh_head **out, const fh_head_parts *parts, const char *name, fh_err *err);
const fh_head_parts *fh_head_get_parts(const fh_head *head);
const uint32_t *fh_head_slots(const fh_head *head);          /* [V] token id -> slot; slot / cap is its cluster */
const uint8_t *fh_head_dead_map(const fh_head *head);        /* [V] 1: dead */
const fh_fhead *fh_head_file(const fh_head *head);           /* the container it came from, or NULL */
/* Bytes that one step reads at P probes (in the mean of some steps, maybe; 0: the most it probes) with its hot list: centroids, P clusters, hot and always rows, rows reranked; scales counted. */
double fh_head_step_bytes(const fh_head *head, double probes, size_t n_hot);
double fh_head_dense_bytes(const fh_head *head);             /* V rows of the exact dtype */
/* Logits of every slot [batch, K * cap] from the *encoded* rows, as fh_head_score_ids computes them bit for bit; padding and dead
 * slots are -INFINITY.  For measuring, blocked so that rows are read once a batch. */
fh_status fh_head_slot_logits(const fh_head *head, fh_pool *pool, const float *states, size_t batch, float *logits, fh_err *err);
/* Logits of some ids, as reranking computes them bit for bit; the head reranks.  state [D], finite; ids, logits [n]. */
void fh_head_exact_logits(const fh_head *head, const float *state, const uint32_t *ids, size_t n, float *logits);
/* Centroid scores [batch, K], as fh_head_route computes them bit for bit. */
fh_status fh_head_cluster_scores(const fh_head *head, fh_pool *pool, const float *states, size_t batch, float *scores, fh_err *err);

/* Of clusters [probes] as fh_head_route gives them for one state: how many there are. */
uint32_t fh_head_routed(const uint32_t *clusters, uint32_t probes);
/* Whether a cluster of this score is close enough to the best one's: the definition of a threshold, in float32.  The best cluster always is. */
static inline bool fh_is_close(float best, float score, float threshold) { return best - score <= threshold; }

/* The kernels that this CPU can run, by number from 0, which is the definition itself, plain C.  False past the last. */
bool fh_head_parity_name(size_t table, const char **isa, const char **variant);
/* All of the head's rows (centroids, tokens, exact ones) times the first few of n states, by these kernels: bit for bit what the definition gives;
 * number 0 within its stated error of the same sums in double.  worst: of number 0, the largest error as a share of what is allowed. */
typedef struct fh_parity { uint64_t compared, differ; double worst; } fh_parity;
fh_status fh_head_parity(const fh_head *head, size_t table, fh_pool *pool, const float *states, size_t n, fh_parity *out, fh_err *err);

/* What `there` gives against `here`, scratches of the same head: the best tokens of the first few of n states and their logits, from P probes, from all
 * clusters and from the dense rows, as many as a device keeps.  The same bits; of a soft-capped head, logits within 4 units in the last place of the cap,
 * and tokens may change places where they are so close.  worst is 0. */
fh_status fh_scratch_parity(fh_scratch *here, fh_scratch *there, const float *states, size_t n, fh_parity *out, fh_err *err);

/* A scratch on threads that are there: two pools on the same CPUs hinder each other, the one waiting where the other works.  The pool is
 * borrowed until the scratch is freed (NULL: the calling thread alone). */
fh_status fh_scratch_on(fh_scratch **out, const fh_head *head, fh_pool *pool, fh_err *err);
/* The steps of fh_head_topk and fh_head_greedy: all centroid scores; choosing clusters; scoring their rows; merging what threads found, and
 * reranking.  While seconds [FH_STEPS] is set, every such call on this scratch adds the time of its steps (nothing where P = K but to the
 * last two).  NULL ends it. */
typedef enum fh_step { FH_STEP_ROUTE, FH_STEP_SELECT, FH_STEP_SCORE, FH_STEP_RERANK, FH_STEPS } fh_step;
void fh_scratch_watch(fh_scratch *scratch, double *seconds);
/* What was routed on this scratch so far: states, and the clusters they probed. */
typedef struct fh_probed { uint64_t states, clusters; } fh_probed;
fh_probed fh_scratch_probed(const fh_scratch *scratch);

/* An NVIDIA GPU that holds a copy of one head, of one body, or of both.  It is reached through libfhcuda.so (FH_CUDA_LIBRARY in the environment, or beside the
 * program, or in ../lib of there), which is opened when it is asked for: a program runs the same where there is none.  One caller at a time. */
typedef struct fh_device fh_device;
struct fh_body;
typedef enum fh_device_kind { FH_DEVICE_CPU, FH_DEVICE_CUDA, FH_DEVICE_AUTO } fh_device_kind; /* --device */
/* head or body may be NULL.  *out is NULL for the CPU.  auto: a GPU if one can be had, for the head alone if the body does not fit; else the job is told why
 * not, in one line, and it is the CPU.  cuda: FH_ENOTFOUND without library, driver or GPU, FH_EUNSUPPORTED for one that is too old or strange, FH_ENOMEM where
 * something does not fit.  Both are borrowed until the device is closed.  From here on caches of the body are made there, and its forward pass runs there. */
fh_status fh_device_open(fh_device **out, fh_device_kind kind, const fh_head *head, struct fh_body *body, const fh_job *job, fh_err *err);
/* The same for the search of a clustering (fh_cluster_device) of at most n rows of d into k: room for all of it is made now. */
fh_status fh_device_open_clusters(fh_device **out, fh_device_kind kind, size_t n, size_t d, size_t k, const fh_job *job, fh_err *err);
/* The same for measuring (fh_dense.device), by matrices of these shapes at most that are there together; their data is not looked at. */
fh_status fh_device_open_dots(fh_device **out, fh_device_kind kind, const fh_rows *shapes, size_t n, const fh_job *job, fh_err *err);
const fh_dots_device *fh_device_dots(const fh_device *d);        /* as fh_device_clusters */
const fh_cluster_device *fh_device_clusters(const fh_device *d); /* borrowed until the device is closed; NULL, or one opened for a head: NULL */
void fh_device_close(fh_device *d);                 /* accepts NULL; after the scratches and caches that use it */
bool fh_device_has_head(const fh_device *d);        /* NULL: false */
bool fh_device_has_body(const fh_device *d);
/* Which kernel multiplies there is measured once and kept in a file beside the model, a file a device: MODEL.DEVICE.products.json. */
char *fh_device_products_path(const fh_device *d, const char *model); /* freed by the caller; NULL when out of memory */
/* Every product of the body by every kernel; from now on each takes the fastest.  *out: the file's content, freed by the caller. */
fh_status fh_device_products_measure(const fh_device *d, size_t runs, fh_json **out, fh_err *err);
/* FH_ECHECK: of another device; FH_EFORMAT: not such a file. */
fh_status fh_device_products_load(const fh_device *d, const char *path, fh_err *err);
/* A state need not leave it between body and head: fh_body_forward with hidden NULL leaves that of the last token there, and fh_head_greedy, fh_head_sample and
 * fh_head_dense_topk (of its best one) take it where states is NULL and batch 1.  What both took for such states, by the device's clock. */
bool fh_device_keeps_state(const fh_device *d);
void fh_device_times(const fh_device *d, double *body_seconds, double *head_seconds);
/* Decoding steps there, so far: pairs of query and split of keys whose softmax was summed relative to one constant, and how many left its range and were
 * done again. */
fh_status fh_device_attention(const fh_device *d, uint64_t *recomputed, uint64_t *parts, fh_err *err);
const char *fh_device_name(const fh_device *d);     /* "NVIDIA H200"; NULL: "cpu" */
/* What is timed there: the head as one kernel, or as several; the dense head by the same order of sums; one that takes none upon itself; cuBLAS; moving the dense rows. */
typedef enum fh_device_work { FH_DEVICE_FLASH, FH_DEVICE_APART, FH_DEVICE_DENSE, FH_DEVICE_FUSED, FH_DEVICE_CUBLAS, FH_DEVICE_COPY } fh_device_work;
/* seconds [runs] of a greedy token for each of at most 64 states, the device's L2 cache overwritten before every run; ids [batch] (not of a copy).  FH_ENOTFOUND: there is no cuBLAS,
 * or there are no dense rows (of bf16, for the last three). */
fh_status fh_device_time(const fh_device *d, fh_device_work work, const float *states, size_t batch, uint32_t probes, size_t runs, double *seconds, uint32_t *ids, fh_err *err);
uint64_t fh_device_bytes(const fh_device *d);       /* of its memory, that the head, the clustering or the matrices take; NULL: 0 */
/* One candidate of each state by chance: fh_head_route, fh_head_score and fh_sample in one call, for which a GPU needs nothing from the host but random [batch], of [0, 1).  (Masses are summed as
 * integers there, 2^-41 of the best one's probability coarse: a number that falls so close to where one token's share ends may give its neighbour.)  FH_EUSAGE: nothing to draw from. */
fh_status fh_head_sample(const fh_head *head, fh_scratch *scratch, const float *states, size_t batch, const fh_query *query, const fh_sampling *how, const double *random, uint32_t *ids,
                         fh_err *err);
/* From now on fh_head_topk, fh_head_greedy, fh_head_sample and fh_head_dense_topk on this scratch are done there (NULL: here); the other calls still are here.  The
 * same answers: bit for bit, but for the logits of a soft-capped head (tanh). */
void fh_scratch_use(fh_scratch *scratch, const fh_device *d);

/* Matrix-vector products by the kernels of this CPU: out[r] = rows[r] . x, for float32, bf16, f16 and FH_Q8_0 rows, with one fixed order of
 * sums on every instruction set (16 lanes, fma, fixed tree).  x [cols] float32. */
void fh_matvec(fh_pool *pool, const fh_rows *rows, const float *x, float *out);
const char *fh_isa_name(void);

/* A dense head wherever it lies: row i belongs to token token_of[i] (NULL: i). */
typedef struct fh_dense {
    fh_rows rows; const uint32_t *token_of; const float *bias; float softcap;
    uint32_t vocab; const uint8_t *dead; /* [V] or NULL */
    const fh_dots_device *device;        /* that multiplies where states are measured (fh_matrix); NULL: this CPU */
} fh_dense;
/* logits [n, V] of states [n, D]: of more than 8 states through OpenBLAS in float32, of fewer by the kernels, one alone against FH_Q8_0
 * rows rounded to 16 bits in each block (docs/decisions/0013); dead rows come out like any other.  Not in libflashhead. */
fh_status fh_dense_logits(const fh_dense *head, fh_pool *pool, const float *states, size_t n, float *logits, fh_err *err);
/* logits [n] of some rows [n] (numbers of rows, each below head->rows.rows) for one state [D], by the kernels of this CPU: one order of sums on every
 * instruction set. */
void fh_dense_some(const fh_dense *head, const float *state, const uint32_t *rows, size_t n, float *logits);

/* Rows that many states are multiplied with, all of them, to measure what a head keeps: the dense head's, or a head's centroids or encoded rows.  One order
 * of sums (kernels.h): the same bits on every instruction set (but on a CPU that has none, see dense.c), on a device, and for any number of states and
 * threads.  All pointers are borrowed until it is closed. */
typedef struct fh_matrix { const fh_dense *dense; const fh_head *head; bool slots; const fh_dots_device *device; void *there; } fh_matrix;
/* Logits [n, V]; dead rows come out like any other.  On the dense head's device, if it has one. */
fh_status fh_matrix_of_dense(fh_matrix *out, const fh_dense *dense, fh_err *err);
/* What fh_head_cluster_scores gives, or with `slots` what fh_head_slot_logits does.  device NULL: here. */
fh_status fh_matrix_of_head(fh_matrix *out, const fh_head *head, bool slots, const fh_dots_device *device, fh_err *err);
fh_status fh_matrix_multiply(const fh_matrix *m, fh_pool *pool, const float *states, size_t n, float *out, fh_err *err);
/* Can its device say k of each state's best tokens, or k ranks, with all products left there?  Not of a soft-capped dense head, whose tanhf is the host's;
 * of a head its centroids only. */
bool fh_matrix_seeks(const fh_matrix *m, size_t k);
/* What fh_matrix_seeks said yes to.  The dense head's k best live tokens, ids [n, k]: equal logits by the smaller id, no number last of all; FH_NO_TOKEN where
 * there are fewer. */
fh_status fh_matrix_best(const fh_matrix *m, const float *states, size_t n, size_t k, uint32_t *ids, fh_err *err);
/* Clusters of[n, k] (FH_NO_TOKEN: none) among all: the score of each, how many go before it (larger ones, equal ones of a smaller number; of a head through
 * bf16 all equal ones), and the best score of all. */
typedef struct fh_cluster_ranks_of { size_t k; const uint32_t *of; uint32_t *ranks; float *scores, *top; } fh_cluster_ranks_of; /* [n, k], top [n] */
fh_status fh_matrix_ranks(const fh_matrix *m, const float *states, size_t n, const fh_cluster_ranks_of *of, fh_err *err);
void fh_matrix_close(fh_matrix *m);
/* log(sum of exp(x)) in double; the same bits on every instruction set. */
double fh_log_sum_exp(const float *x, size_t n);
/* out [n] = exp(x - shift), no x more than 700 above shift; within 1e-14 of it; 0 where x is more than 700 below, NaN of NaN.  The same bits on
 * every instruction set. */
void fh_exp_each(double *out, const float *x, size_t n, double shift);
/* An index drawn from softmax(x [n]), n of 1 or more, by random in [0, 1): the first whose cumulative probability is beyond it; never one whose logit is
 * -infinity.  x is room afterwards.  n where there is nothing to draw from: NaN or +infinity among x, or nothing above -infinity.  The same on every instruction set. */
size_t fh_softmax_draw(float *x, size_t n, double random);

/* ---- tokenizer --------------------------------------------------------------------------------------------- */

typedef struct fh_tokenizer fh_tokenizer; /* immutable */
/* `text` is tokenizer.json; `config` tokenizer_config.json or NULL (an explicit add_bos_token / add_eos_token there overrides
 * the template).  What is not supported is refused by name. */
fh_status fh_tokenizer_open(fh_tokenizer **out, const char *text, size_t len, const char *config, const char *name, const fh_job *job, fh_err *err);
void fh_tokenizer_close(fh_tokenizer *t); /* accepts NULL */
uint32_t fh_tokenizer_size(const fh_tokenizer *t);                /* highest id + 1 */
/* The token's own bytes as decoding gives them (a byte-level token may be half a character); NULL for a hole. */
const char *fh_tokenizer_piece(const fh_tokenizer *t, uint32_t id, size_t *len);
bool fh_tokenizer_is_special(const fh_tokenizer *t, uint32_t id);
/* *ids is freed by the caller.  Invalid UTF-8 becomes U+FFFD.  `special`: apply the post-processor. */
fh_status fh_tokenizer_encode(const fh_tokenizer *t, const char *text, size_t len, bool special, uint32_t **ids, size_t *n, fh_err *err);
/* What the post-processor puts before and after a text (BOS, EOS), so that pieces of a long text can be encoded in turn. */
fh_status fh_tokenizer_affixes(const fh_tokenizer *t, const uint32_t **prefix, size_t *n_prefix, const uint32_t **suffix, size_t *n_suffix);
/* Ids without a string are skipped.  *text is NUL-terminated valid UTF-8, freed by the caller. */
fh_status fh_tokenizer_decode(const fh_tokenizer *t, const uint32_t *ids, size_t n, bool skip_special, char **text, size_t *len, fh_err *err);
/* Decoding as tokens come, never half a character.  `out` is borrowed until the next call; fh_stream_flush gives what was held back. */
typedef struct fh_stream fh_stream;
fh_status fh_stream_new(fh_stream **out, const fh_tokenizer *t, bool skip_special, fh_err *err);
fh_status fh_stream_push(fh_stream *s, uint32_t id, const char **text, size_t *len, fh_err *err);
fh_status fh_stream_flush(fh_stream *s, const char **text, size_t *len, fh_err *err);
void fh_stream_free(fh_stream *s);

/* ---- conversations ------------------------------------------------------------------------------------------- */

typedef struct fh_chat fh_chat; /* how a model's conversations are written */
typedef enum fh_role { FH_SYSTEM, FH_USER, FH_ASSISTANT } fh_role;
typedef struct fh_message { fh_role role; const char *text; size_t len; } fh_message;
/* `config` is tokenizer_config.json, `jinja` chat_template.jinja, which goes before the former's `chat_template`; each may be NULL.  A
 * template that is not known is no error yet. */
fh_status fh_chat_open(fh_chat **out, const char *config, const char *jinja, const char *name, fh_err *err);
void fh_chat_close(fh_chat *c); /* accepts NULL */
/* Settle on the model's own template (NULL), or on one by name ("chatml", ..., "raw": lines of plain text).  FH_EUNSUPPORTED: the model's
 * own is not known; FH_ENOTFOUND: it has none; FH_EUSAGE: no such name. */
fh_status fh_chat_use(fh_chat *c, const char *name, fh_err *err);
/* From here on the reply comes without thinking aloud first, as the template's own enable_thinking=False has it.  FH_EUSAGE: the style chosen
 * has no such switch. */
fh_status fh_chat_no_think(fh_chat *c, fh_err *err);
const char *fh_chat_style(const fh_chat *c); /* its name; NULL: none yet */
const char *fh_chat_end(const fh_chat *c);   /* the token that ends a reply, beside those of generation_config; NULL: no other */
bool fh_chat_is_raw(const fh_chat *c);       /* encode with the post-processor's tokens; otherwise what is rendered has them itself */
/* A conversation up to the reply: an optional system message, then user and assistant in turn, a user's last.  Byte for byte what the
 * reference's apply_chat_template(add_generation_prompt=True) gives.  `date`: "01 Jan 2026", which some templates write.  *text is
 * freed by the caller.  FH_EUNSUPPORTED: a system message where the template has no place for one. */
fh_status fh_chat_render(const fh_chat *c, const fh_message *m, size_t n, const char *date, char **text, size_t *len, fh_err *err);
const char *fh_chat_style_of(const char *digest); /* of the template with this SHA-256, 64 hex digits; NULL: not known */

/* ---- body -------------------------------------------------------------------------------------------------- */

typedef struct fh_body fh_body;   /* immutable: weights used in place */
typedef struct fh_kv fh_kv;       /* the key-value cache of one sequence, in pages of 16 tokens */
typedef struct fh_body_source {
    const fh_config *config;
    const fh_tensors *tensors;     /* without the head; with the input embedding unless the next is given */
    const void *(*embedding_row)(void *ctx, uint32_t id); void *ctx; fh_dtype embedding_dtype; /* a tied embedding that lies in a head: D values of id < V */
} fh_body_source;
/* The source's config and tensors are borrowed until the body is closed.  FH_EUNSUPPORTED names a family or switch we have not. */
fh_status fh_body_open(fh_body **out, const fh_body_source *source, const char *name, fh_err *err);
void fh_body_close(fh_body *b);
uint64_t fh_body_bytes(const fh_body *b);        /* weights that one decoded token reads */
/* What config.json says of a body, for who counts without opening one: which layers see no more than *window keys (windowed [layers]; *window 0: they
 * see all), and whether its MLPs have a gate.  FH_EUNSUPPORTED: a family, or a kind of layer, that we have not. */
fh_status fh_body_windows(const fh_config *c, const char *name, bool *windowed, uint32_t *window, fh_err *err);
bool fh_body_gated(const fh_config *c);
double fh_body_operations(const fh_body *b, uint32_t length, uint32_t n); /* floating-point ones, of n tokens on top of a cache: products and attention */
uint32_t fh_body_max_position(const fh_body *b); /* the longest sequence: max_position, or more where the rope stretches it */
/* Keys and values are kept in float32, or rounded: FH_F16, or FH_I8 with a scale for each 32 values (errors: docs/measurements/kv-cache.md).
 * What a rounded cache cannot hold (above 65504 in f16; not finite in int8) makes the states infinite or NaN, never plausible. */
fh_status fh_kv_new(fh_kv **out, const fh_body *b, fh_err *err); /* of float32 */
fh_status fh_kv_new_of(fh_kv **out, const fh_body *b, fh_dtype type, fh_err *err); /* FH_EUSAGE: not one of FH_F32, FH_F16, FH_I8 */
/* A sequence that begins with the first `length` tokens of another (at most those it has), of the same type.  Pages are shared until one
 * of the two writes into them, and go with the last; the two may be used by different threads. */
fh_status fh_kv_fork(fh_kv **out, const fh_kv *from, uint32_t length, fh_err *err);
void fh_kv_free(fh_kv *kv); /* accepts NULL */
uint32_t fh_kv_length(const fh_kv *kv);
size_t fh_kv_bytes(const fh_kv *kv); /* of its pages, shared ones too */
size_t fh_kv_read_bytes(const fh_kv *kv); /* keys and values that the next token reads */
/* For measuring: made-up keys and values of `length` tokens in place of what was there.  FH_EUSAGE: past the model's positions. */
fh_status fh_kv_make_up(fh_kv *kv, uint32_t length, fh_err *err);
/* For each query, head and run of 128 keys: the largest score (scaled, soft-capped) of those that the query sees; of all of these the smallest and the largest.
 * That is what the one constant of a unified maximum (docs/cuda.md) has to be near. */
typedef struct fh_score_range { float low, high; } fh_score_range;
fh_score_range *fh_score_ranges(const fh_body *b); /* [layers], nothing seen yet: low INFINITY, high -INFINITY; freed by the caller.  NULL: out of memory */
/* From now on every forward pass of this sequence widens ranges [layers] by what attention saw, in the sequences that go through the layers with it too;
 * NULL ends it.  The same for any number of threads. */
void fh_kv_watch(fh_kv *kv, fh_score_range *ranges);
/* What the splits of decode attention on a device sum relative to (runtime/cuda/attention.cuh), by layer: the middle of what was seen.  wide: its ends are so far
 * apart that other text may well leave the FH_UNIFIED_SAFE either way in which one constant serves; each split then takes its own maximum. */
typedef struct fh_unified { float constant; bool wide; } fh_unified;
#define FH_UNIFIED_SAFE 60.0f
fh_unified fh_unified_of(fh_score_range seen); /* of nothing seen: 0, not wide */
void fh_body_unify(fh_body *b, const fh_unified *unified); /* [layers], for its decode attention on a device (before it is put there); 0 and not wide else */
/* As `hidden` records it, and an artifact in /calibration/made_by/states: [{low, high, constant, wide}], one a layer. */
#define FH_ATTENTION_RANGE "attention_range"
bool fh_json_add_unified(fh_json *to, const fh_score_range *seen, size_t layers);
void fh_kv_truncate(fh_kv *kv, uint32_t length); /* forget what came after; its pages are kept for what comes next */
/* Run `n` sequences on: sequence i takes lens[i] >= 1 tokens on top of kv[i] (all different).  tokens are concatenated;
 * hidden [sum of lens, D] is what the head reads, one row a token.  One call serves prefill, decoding, and both for many
 * sequences.  FH_EUSAGE: a token >= V, or a position past the model's limit.  hidden NULL: see fh_device_keeps_state; n is 1. */
fh_status fh_body_forward(const fh_body *b, fh_pool *pool, size_t n, fh_kv *const *kv, const uint32_t *lens, const uint32_t *tokens, float *hidden, fh_err *err);

/* ---- a model: a checkpoint (a directory, a GGUF) or a .fhead that bundles one ----------------------------------- */

typedef struct fh_model {
    fh_checkpoint checkpoint;      /* zeroed for a bundle */
    fh_config bundle_config;       /* of a bundle */
    fh_tensors *bundle_tensors;
    const fh_config *config;       /* whichever it is */
    fh_head *head;                 /* of a .fhead, or NULL */
    fh_dense dense;                /* the dense head; rows.data NULL where the file has no exact rows */
    float *bias; uint8_t *dead;    /* owned */
    fh_tokenizer *tokenizer;       /* NULL when there is none */
    fh_chat *chat;                 /* with FH_MODEL_CHAT, where there is a tokenizer */
    fh_body *body;
    fh_device *device;             /* that head or body is computed on; NULL: the CPU.  Set with fh_model_use, closed with the model */
    char *name;
} fh_model;
enum { FH_MODEL_BODY = 1, FH_MODEL_TOKENIZER = 2, FH_MODEL_HEAD = 4, FH_MODEL_CHAT = 8 }; /* what is needed: missing is an error */
bool fh_is_checkpoint(const char *path); /* a directory or a GGUF; else it is an artifact */
/* path: a checkpoint (a directory or a .gguf), a .fhead that bundles a model, or a head-only .fhead together with `base` (a checkpoint whose
 * fingerprint must be the artifact's, FH_ECHECK otherwise; NULL if none).  With a base, body, tokenizer and dense rows are the base's.  Only
 * what is needed is opened; for a head the tokenizer too, where there is one, to tell its dead rows.  *out must not be moved. */
fh_status fh_model_open(fh_model *out, const char *path, const char *base, unsigned need, const fh_job *job, fh_err *err);
/* fh_device_open for the model's FlashHead and body, whichever are open.  Before caches are made.  FH_EUSAGE: cuda, but there is neither. */
fh_status fh_model_use(fh_model *m, fh_device_kind kind, const fh_job *job, fh_err *err);
void fh_model_close(fh_model *m); /* accepts a zeroed one */
/* out [layers]: what the model's artifact has recorded; where it has nothing, or something else, as of nothing seen. */
void fh_model_unified(const fh_model *m, fh_unified *out);
/* Rows that can never be meant: past the tokenizer (`tokenizer_size`; 0: unknown), or norm below 1e-6 of the median.
 * dead [V] is written; returns how many. */
size_t fh_dead_rows(const fh_rows *head, uint32_t tokenizer_size, fh_pool *pool, uint8_t *dead, fh_err *err, fh_status *status);

/* ---- generation ---------------------------------------------------------------------------------------------- */

typedef enum fh_head_kind { FH_HEAD_FLASH, FH_HEAD_DENSE } fh_head_kind;
typedef struct fh_generate_params {
    size_t tokens;                 /* at most */
    fh_head_kind head;
    fh_dtype kv_type;              /* of the key-value cache: FH_F32, FH_F16, FH_I8 */
    fh_query query;                /* of FlashHead */
    fh_sampling sampling;          /* temperature 0: greedy */
    float penalty;                 /* repetition penalty; 0 or 1: none */
    size_t repeat_last;            /* of so many tokens of the sequence; 0: of all */
    bool exact;                    /* FlashHead with a temperature: draw from the softmax of all tokens, see fh_head_draw; top-k, top-p and min-p are not looked at */
    bool measure_mass;             /* FlashHead with a temperature: measure the covered mass by the dense head, every time */
    size_t audit;                  /* FlashHead: look at every so many-th state with the dense head too; 0: never */
    uint64_t seed;
    bool ignore_eos;
    const uint32_t *ends; size_t n_ends; /* further ids that end it, ignore_eos or not */
    /* Called with every new token; false stops. */
    bool (*on_token)(void *ctx, uint32_t id); void *ctx;
} fh_generate_params;
/* Where a covered mass comes from: not known; estimated from routing's scores; calibration's average; measured by the dense head. */
typedef enum fh_mass_kind { FH_MASS_NONE, FH_MASS_ROUTING, FH_MASS_CALIBRATION, FH_MASS_MEASURED } fh_mass_kind;
/* What the dense head says of states that FlashHead answered: its best token is FlashHead's; is a candidate; the covered mass at temperature 1, summed.  Of the head
 * alone: penalties and chance do not enter. */
typedef struct fh_audit { size_t states, agreed, contained; double mass; } fh_audit;
typedef struct fh_generate_stats {
    size_t prompt_tokens, tokens;
    size_t reused_tokens;          /* of the prompt: already in the cache */
    double ttft_seconds;           /* prompt in to first token out */
    double tpot_seconds;           /* mean time of the tokens after the first */
    double head_share;             /* of the time of those tokens */
    double step_bytes, body_bytes; /* that one token reads of head and body */
    size_t kv_bytes;               /* of the key-value cache in the end */
    bool ended, full;              /* by an eos or end; at the model's longest sequence */
    size_t draws;                  /* tokens drawn by chance, the end's too */
    fh_audit audit;
    fh_mass_kind mass_kind; double mass; /* mean covered mass of the draws among FlashHead's candidates, before top-k, top-p and min-p; temperature 1 unless measured */
    uint64_t attention_parts, attention_again; /* body on a device: fh_device_attention of this run */
    double exact_rows, exact_clusters; size_t exact_dense; /* of exact draws: rows read one by one, clusters looked into, draws that read all rows */
} fh_generate_stats;
/* Continue a prompt of n >= 1 ids.  The model has body and head open. */
fh_status fh_generate(const fh_model *m, const uint32_t *prompt, size_t n, const fh_generate_params *p, const fh_job *job, fh_generate_stats *stats, fh_err *err);

/* What is said of a prompt before anything is run. */
fh_status fh_generate_check(const fh_model *m, const uint32_t *prompt, size_t n, fh_err *err);

/* A sequence that is gone on with, as a conversation is: a prompt that begins like what is in the cache is run from where it differs.
 * The model is borrowed, and what *p points to.  The random numbers go on from call to call.  Stopped by the job, FH_EINTERRUPTED, it may
 * be gone on with too. */
typedef struct fh_session fh_session;
fh_status fh_session_new(fh_session **out, const fh_model *m, const fh_generate_params *p, const fh_job *job, fh_err *err);
fh_status fh_session_run(fh_session *s, const uint32_t *prompt, size_t n, const fh_job *job, fh_generate_stats *stats, fh_err *err);
void fh_session_free(fh_session *s); /* accepts NULL */

/* Stop strings in a text that comes in pieces: nothing of one, or after it, comes out, and what may begin one is held back.  The pieces do
 * not matter: the stop string that is complete first counts. */
typedef struct fh_stops fh_stops;
fh_status fh_stops_new(fh_stops **out, const char *const *text, size_t n, fh_err *err); /* FH_EUSAGE: empty, or not UTF-8; copied */
/* *text is borrowed until the next call.  Once a stop string was found nothing comes out. */
fh_status fh_stops_push(fh_stops *s, const char *in, size_t in_len, const char **text, size_t *len, fh_err *err);
fh_status fh_stops_flush(fh_stops *s, const char **text, size_t *len, fh_err *err); /* the text is at its end */
bool fh_stops_found(const fh_stops *s);
void fh_stops_reset(fh_stops *s); /* another text */
void fh_stops_free(fh_stops *s);  /* accepts NULL */

#endif
