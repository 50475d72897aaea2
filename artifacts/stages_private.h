/* What the stages share. */
#ifndef FH_STAGES_PRIVATE_H
#define FH_STAGES_PRIVATE_H

#include "artifacts/stages.h"

#define FH_FILE_HEAD "head.safetensors"
#define FH_FILE_MODEL "model.json"
#define FH_FILE_SOURCE "source.json"
#define FH_FILE_STATES "states.safetensors"
#define FH_FILE_CLUSTERS "clusters.safetensors"
#define FH_FILE_ROUTING "routing.safetensors"
#define FH_FILE_QUANTIZED "quantized.safetensors"
#define FH_FILE_CALIBRATION_STATES "calibration-states.safetensors"
#define FH_FILE_CALIBRATION "calibration.json"
#define FH_FILE_REHEARSAL "rehearsal-states.safetensors"
#define FH_FILE_REHEARSAL_OTHER "rehearsal-other-states.safetensors"

/* The head and the model's facts as convert left them. */
typedef struct fh_facts {
    fh_tensors *file;
    fh_json *model;
    fh_rows head; const float *bias;
    uint8_t *dead; uint32_t *dead_ids; size_t n_dead;
    uint32_t *always; size_t n_always;
    float softcap;
    const char *fingerprint, *type;
    bool tied;
    uint32_t tokenizer_size;
} fh_facts;
fh_status fh_facts_load(fh_facts *out, fh_stage_env *e, fh_err *err);
void fh_facts_free(fh_facts *f);
fh_dense fh_facts_dense(const fh_facts *f);

/* The clustering as cluster left it; arrays point into the file. */
typedef struct fh_parted { fh_tensors *file; fh_clustering c; double objective; } fh_parted;
fh_status fh_parted_load(fh_parted *out, fh_stage_env *e, const fh_facts *f, fh_err *err);
void fh_parted_free(fh_parted *p);

/* Centroids by which clusters are found, and where the tokens are. */
typedef struct fh_routing {
    const char *name;
    const float *centroids;       /* [K, D] */
    const uint32_t *assignment;   /* [V] */
    float *centroids_made; uint32_t *assignment_made; /* NULL: it is another's */
} fh_routing;
/* routing.safetensors, whose arrays stay with `file`, over this clustering; name is not set. */
fh_status fh_routing_read(fh_routing *out, const fh_tensors *file, const fh_parted *p, fh_err *err);
void fh_routing_free(fh_routing *r);

/* Encoded rows lie in quantized.safetensors as a matrix of their own dtype, as wide as their stride; int4 as bytes.  Their scales: float32 [rows] of
 * int8, bf16 [rows, groups] of int4. */
fh_st_spec fh_encoded_spec(const char *name, fh_dtype encoding, size_t rows, size_t stride);
fh_st_spec fh_scales_spec(const char *name, fh_dtype encoding, size_t rows, size_t cols);
/* The head as quantize left it. */
typedef struct fh_encoded { fh_tensors *file; fh_head_parts parts; char routing[16]; fh_json *record; } fh_encoded;
fh_status fh_encoded_load(fh_encoded *out, fh_stage_env *e, const fh_facts *f, fh_err *err);
void fh_encoded_free(fh_encoded *q);

/* The artifact of a head as quantize left it, under a promise (calibration.json, or NULL); *report is fh_artifact_info. */
fh_status fh_pack_encoded(fh_stage_env *e, const fh_stage_pack_params *p, const fh_facts *f, fh_encoded *q, const fh_json *promise, const fh_json *provenance, fh_json **report, fh_err *err);
/* Encoded rows [K, D] and [K * cap, D], as fh_encode_rows leaves them. */
typedef struct fh_quantized { fh_dtype centroids, tokens; void *c_data, *c_scales, *t_data, *t_scales; uint32_t *permutation; } fh_quantized;
/* Slot -> token [K * cap]: clusters in order, tokens of a cluster by ascending id, padding last; the caller's to free. */
fh_status fh_permutation_of(uint32_t **out, const fh_clustering *c, fh_err *err);
/* Room for the rows of a clustering; *bytes: all of them. */
fh_status fh_quantized_room(fh_quantized *out, const fh_clustering *c, size_t *bytes, fh_err *err);
void fh_quantized_free(fh_quantized *q); /* accepts a zeroed one */
fh_status fh_quantized_write(fh_stage_env *e, const fh_quantized *q, const fh_clustering *c, fh_json *record, fh_err *err);

/* The heads that calibration may take. */
enum { FH_ENCODINGS = FH_I4 + 1, FH_ROUTINGS = 5 };
typedef struct fh_kept_rows { void *data, *scales; } fh_kept_rows;
typedef struct fh_candidates {
    fh_stage_env *e; const fh_facts *f; const fh_encoded *q;
    int64_t rerank;               /* -1: by the encoding */
    bool asked;                   /* the routing was the user's choice */
    fh_stage_route_params how;    /* as the routing there is was made */
    bool through_bf16;            /* heads are measured as the vLLM plugin computes them; set once loaded */
    fh_tensors *used;
    struct { fh_routing of; size_t order; fh_kept_rows encoded[FH_ENCODINGS]; } routing[FH_ROUTINGS]; size_t n_routings;
    struct { const uint32_t *assignment; uint32_t *permutation; fh_kept_rows tokens[FH_ENCODINGS]; } order[2]; size_t n_orders; /* of rows: the first as quantized */
    fh_step_times times[FH_ENCODINGS][FH_ENCODINGS]; /* by centroids and tokens; n 0: not yet known */
    fh_choice choice[FH_ROUTINGS * FH_ENCODINGS * FH_ENCODINGS]; size_t n;
    struct { size_t routing; fh_dtype centroids, tokens; } of[FH_ROUTINGS * FH_ENCODINGS * FH_ENCODINGS];
} fh_candidates;
/* encodings NULL: those of quantized.safetensors.  All is borrowed until the candidates are freed. */
fh_status fh_candidates_load(fh_candidates *c, fh_stage_env *e, const fh_facts *f, const fh_parted *parted, const fh_encoded *q, const fh_states *s, int64_t rerank,
                             const fh_encodings *encodings, fh_err *err);
fh_status fh_candidates_open(void *candidates, size_t i, fh_head **out, fh_err *err); /* for fh_choices */
fh_status fh_candidates_time(void *candidates, const fh_head *head, fh_step_times *out, fh_err *err);
uint32_t fh_candidates_rerank(const fh_candidates *c, size_t i);
void fh_candidates_free(fh_candidates *c);

/* The work directory `name` below that of e, with head, model and states of e by links; beside: another one there, whose clusters and routing it has by links,
 * or NULL. */
fh_status fh_sub_open(fh_stage_env *sub, const fh_stage_env *e, const char *name, const char *beside, fh_err *err);
void fh_sub_close(fh_stage_env *sub); /* accepts a zeroed one */

/* Run what is missing or stale so that the named result is current. */
fh_status fh_need(fh_stage_env *e, const char *file, fh_err *err);

/* The checkpoint that convert read, where it lies now; FH_ECHECK when it is another by now. */
fh_status fh_source_open(fh_model *out, fh_stage_env *e, const fh_facts *f, unsigned need, fh_err *err);
char *fh_source_path(fh_stage_env *e, fh_err *err);

/* Write a result and its record: metadata {"fhtool": record}; forgets the old digest. */
fh_status fh_result_tensors(fh_stage_env *e, const char *file, const fh_st_spec *specs, const void *const *data, size_t n, fh_json *record, fh_err *err);
fh_status fh_result_json(fh_stage_env *e, const char *file, fh_json *body, fh_json *record, fh_err *err); /* body gains "made_by" */
/* The same with a record made here: of a stage with these parameters, which are taken, from these files. */
fh_status fh_result_of(fh_stage_env *e, const char *file, const char *stage, fh_json **params, const char *const *inputs, size_t n, fh_json *body, fh_err *err);
void fh_stage_log(fh_stage_env *e, const char *stage, double began);

/* The routing that is asked for by name. */
fh_status fh_routing_of(fh_routing *out, const fh_stage_route_params *how, const fh_facts *f, const fh_parted *p, const fh_states *states, const fh_job *job,
                        fh_learn_report *learned, fh_err *err); /* learned may be NULL */
/* A row to unit length; false, and nothing done, where it has no direction.  Rows [n, D]: FH_ECHECK, and `what` is for the message. */
bool fh_unit_row(float *row, size_t d);
fh_status fh_unit_rows(float *rows, size_t n, size_t d, const char *what, fh_err *err);
/* The positions of part A; freed by the caller. */
size_t *fh_part_a(const fh_states *s, size_t *n);
/* how: what it was made with, but for the name. */
fh_status fh_write_routing(fh_stage_env *e, const fh_routing *r, bool asked, const fh_stage_route_params *how, const fh_parted *p, const char *states_file, fh_err *err);
/* States of a text in `file`, collected unless they are there already. */
fh_status fh_states_stage(fh_stage_env *e, const char *file, const fh_text_params *p, bool *fresh, fh_err *err);

/* Which states the promise is made on: those of the work directory where they are of this text (no earlier stage saw their parts B and C), else
 * the calibration's own. */
fh_status fh_choose_states(const char **file, fh_stage_env *e, const fh_text_params *p, fh_err *err);

/* Is what convert left still of the checkpoint in `dir`, byte for byte? */
fh_status fh_convert_current(fh_stage_env *e, const char *dir, bool *current, fh_err *err);
/* How many states may be fitted on (part A); 0 where there are none of this model.  Clustering by output asks for the smaller of 2 D and FH_FEW_STATES, learning
 * for FH_FEW_STATES: with less text a build does without. */
enum { FH_FEW_STATES = 512 };
fh_status fh_states_to_fit(size_t *n, fh_stage_env *e, fh_err *err);
fh_status fh_clusters_by_output(bool *output, fh_stage_env *e, size_t d, fh_err *err);
/* clusters.safetensors with its record. */
fh_status fh_write_clusters(fh_stage_env *e, const fh_clustering *c, fh_json *record, fh_err *err);
/* The parameters that a clustering's record holds; `output`: AUTO stands for output-aware. */
fh_json *fh_cluster_record_params(const fh_stage_cluster_params *p, uint32_t k, bool output);
/* And back. */
fh_stage_cluster_params fh_cluster_params_of(const fh_json *params);
fh_stage_route_params fh_route_params_of(const fh_json *params); /* the name is borrowed, and NULL where it was not asked for */
fh_json *fh_calibrate_record_params(const fh_stage_calibrate_params *p);
/* The object in a JSON file that is current, with these parameters; *out is NULL where it is missing or stale.
 * params NULL: the caller had no memory for them, FH_ENOMEM. */
fh_status fh_current_json(fh_json **out, fh_stage_env *e, const char *file, const fh_json *params, fh_err *err);
/* The record of a result whose inputs (and params, where given) have not changed; *out is NULL where it is missing or stale. */
fh_status fh_current_record(fh_json **out, fh_stage_env *e, const char *file, const fh_json *params, fh_err *err);
/* Run a stage unless its result is current; *report is NULL then.  V, D: of the head. */
fh_status fh_cluster_ensure(fh_stage_env *e, const fh_stage_cluster_params *p, size_t v, size_t d, bool *current, fh_json **report, fh_err *err);
fh_status fh_route_ensure(fh_stage_env *e, const fh_stage_route_params *p, bool *current, fh_json **report, fh_err *err);
fh_status fh_quantize_ensure(fh_stage_env *e, fh_dtype centroids, fh_dtype tokens, bool *current, fh_json **report, fh_err *err);
/* K as the flags give it for V rows. */
uint32_t fh_clusters_wanted(const fh_stage_cluster_params *p, size_t v);

#endif
