/* format/format.h: every byte that comes from outside is judged here.
 *
 * Dtypes, JSON, safetensors, checkpoints, the .fhead container and the work directory.
 */
#ifndef FH_FORMAT_H
#define FH_FORMAT_H

#include "base/base.h"

#include <string.h>

/* ---- dtypes ---------------------------------------------------------------------------------------------- */

typedef enum fh_dtype {
    FH_F32, FH_BF16, FH_F16, FH_I8, FH_I4,     /* the encodings: a head's rows and centroids are one of these */
    FH_F64, FH_I64, FH_I32, FH_I16, FH_U64, FH_U32, FH_U16, FH_U8, FH_BOOL, FH_C64,
    FH_F8_E5M2, FH_F8_E4M3, FH_F8_E8M0, FH_F8_E4M3FNUZ, FH_F8_E5M2FNUZ, FH_F6_E2M3, FH_F6_E3M2, FH_F4,
    FH_DTYPES,
    FH_Q8_0                                    /* of a GGUF's rows alone: 32 values in 34 bytes, a float16 scale and 32 int8 */
} fh_dtype;
const char *fh_dtype_name(fh_dtype t);               /* "bf16": as flags and reports spell it */
const char *fh_dtype_st_name(fh_dtype t);            /* "BF16": as safetensors spells it */
unsigned fh_dtype_bits(fh_dtype t);
static inline size_t fh_dtype_size(fh_dtype t) { return fh_dtype_bits(t) / 8; } /* bytes; for whole-byte types */
bool fh_dtype_parse(fh_dtype *out, const char *name); /* "f32", "bf16", "f16", "int8", "int4": the encodings, as flags spell them */
enum { FH_GROUP = 32 };                              /* values of an int4 row that share a scale */
enum { FH_Q8_VALUES = 32, FH_Q8_BYTES = 34 };        /* of a block of FH_Q8_0; cols is a multiple of the first */
size_t fh_row_bytes(fh_dtype encoding, size_t cols);  /* that the values of a stored row take; int4: whole lines of 64 */
size_t fh_scale_bytes(fh_dtype encoding, size_t cols); /* of a row's scales: 4 for int8, 2 a group for int4, else 0 */
float fh_scale_at(fh_dtype encoding, const void *scales, size_t i); /* the i-th of an array of scales */
static inline bool fh_dtype_is_integer(fh_dtype t) { return t == FH_I8 || t == FH_I4; } /* an encoding with scales */
static inline bool fh_dtype_is_encoding(fh_dtype t) { return t <= FH_I4; }
static inline bool fh_dtype_is_float(fh_dtype t) { return t == FH_F32 || t == FH_BF16 || t == FH_F16; }

/* One value.  Exact upwards; round to nearest even downwards (overflow to infinity as IEEE 754 says). */
float fh_bf16_to_f32(uint16_t x);
float fh_f16_to_f32(uint16_t x);
uint16_t fh_f32_to_bf16(float x);
uint16_t fh_f32_to_f16(float x);
/* n values of f32, bf16 or f16 to float32; src may be unaligned. */
void fh_to_f32(float *dst, fh_dtype from, const void *src, size_t n);
/* One stored row, with its scales where it is of integers beside them: each value the float nearest to integer times scale, of FH_Q8_0
 * exactly that. */
void fh_dec_row(fh_dtype encoding, const void *src, const void *scales, size_t cols, float *dst);

/* A matrix somewhere in memory, read-only: row r begins at data + r * stride. */
typedef struct fh_rows {
    const void *data;
    fh_dtype dtype;
    size_t rows, cols;  /* [rows, cols] */
    size_t stride;      /* bytes from row to row */
} fh_rows;
static inline const void *fh_row(const fh_rows *m, size_t r) { return (const uint8_t *)m->data + r * m->stride; }

/* ---- JSON (json.c alone sees cJSON) ------------------------------------------------------------------------ */

typedef struct cJSON fh_json; /* opaque */
typedef enum fh_json_kind { FH_JSON_NULL, FH_JSON_BOOL, FH_JSON_NUMBER, FH_JSON_STRING, FH_JSON_ARRAY, FH_JSON_OBJECT } fh_json_kind;

/* Parse and judge one document: RFC 8259 to the letter (no BOM, comments, trailing commas, NaN, leading zeros, text after
 * the value), valid UTF-8, no lone surrogates, no NUL (raw or \u0000), at most 64 levels, no duplicate keys in any
 * object, no number that a double cannot hold finitely.  A message names `file`, line and column.  The text need not
 * be NUL-terminated.  Linear time. */
fh_status fh_json_parse(fh_json **out, const char *text, size_t len, const char *file, fh_err *err);
fh_status fh_json_read(fh_json **out, const char *path, size_t limit, fh_err *err); /* of a file */
void fh_json_free(fh_json *j);                       /* accepts NULL */

fh_json_kind fh_json_type(const fh_json *j);
const fh_json *fh_json_get(const fh_json *object, const char *key); /* NULL when absent, or null, or not an object */
bool fh_json_has(const fh_json *object, const char *key);           /* present, even as null */
const fh_json *fh_json_first(const fh_json *j);      /* of an array or object; for (c = fh_json_first(j); c; c = fh_json_next(c)) */
const fh_json *fh_json_next(const fh_json *child);
const char *fh_json_key(const fh_json *child);       /* NULL in an array */
size_t fh_json_count(const fh_json *j);              /* O(n) */
/* Exact or nothing: an integer as JSON writes integers (no point, no exponent), below 2^53.  151936.0 and 1e3 are not. */
bool fh_json_u64(const fh_json *j, uint64_t *out);
bool fh_json_i64(const fh_json *j, int64_t *out);
bool fh_json_double(const fh_json *j, double *out);  /* any number */
bool fh_json_bool(const fh_json *j, bool *out);
const char *fh_json_string(const fh_json *j);        /* NULL unless a string; borrowed from j */
/* A member of an object, or `otherwise` where it is absent or of another kind. */
static inline double fh_member_double(const fh_json *j, const char *key, double otherwise)
{
    double v;
    return fh_json_double(fh_json_get(j, key), &v) ? v : otherwise;
}
static inline uint64_t fh_member_u64(const fh_json *j, const char *key, uint64_t otherwise)
{
    uint64_t v;
    return fh_json_u64(fh_json_get(j, key), &v) ? v : otherwise;
}
static inline bool fh_member_true(const fh_json *j, const char *key)
{
    bool b = false;
    return fh_json_bool(fh_json_get(j, key), &b) && b;
}
static inline bool fh_member_is(const fh_json *j, const char *key, const char *value)
{
    const char *s = fh_json_string(fh_json_get(j, key));
    return s && !strcmp(s, value);
}

/* Building.  A key of NULL appends to an array.  The adders return false when memory ran out; *failed of
 * fh_json_print's caller need not track each: after a failed add, fh_json_print of that tree returns NULL. */
fh_json *fh_json_object(void);
fh_json *fh_json_array(void);
fh_json *fh_json_add_object(fh_json *to, const char *key); /* borrowed; NULL when out of memory (further adds to NULL fail quietly) */
fh_json *fh_json_add_array(fh_json *to, const char *key);
bool fh_json_add(fh_json *to, const char *key, fh_json *owned);            /* takes over `owned`, even on failure */
bool fh_json_add_copy(fh_json *to, const char *key, const fh_json *other);
bool fh_json_add_u64(fh_json *to, const char *key, uint64_t v);            /* above 2^53 - 1: written as a string of digits */
bool fh_json_add_i64(fh_json *to, const char *key, int64_t v);
bool fh_json_add_double(fh_json *to, const char *key, double v);           /* not finite: null */
bool fh_json_add_string(fh_json *to, const char *key, const char *v);      /* invalid UTF-8 becomes U+FFFD */
bool fh_json_add_bool(fh_json *to, const char *key, bool v);
bool fh_json_add_null(fh_json *to, const char *key);
char *fh_json_print(const fh_json *j, bool pretty);  /* freed with fh_free; NULL when out of memory, here or while it was built */

/* One JSON string as a text with a length, in which (alone) a NUL may stand, and the way back; both freed with fh_free. */
fh_status fh_json_text_parse(char **out, size_t *out_len, const char *text, size_t len, const char *file, fh_err *err);
char *fh_json_text_print(const char *text, size_t len); /* NULL when out of memory */

/* ---- safetensors -------------------------------------------------------------------------------------------- */

enum { FH_MAX_RANK = 8 };
typedef struct fh_tensor {
    const char *name;              /* valid UTF-8 without NUL */
    fh_dtype dtype;                /* FH_DTYPES: one that we do not know; nothing can be done with such a tensor */
    const char *dtype_name;        /* as the file spells it */
    unsigned rank;
    uint64_t shape[FH_MAX_RANK];
    const void *data;              /* in the map: little-endian, C order, maybe unaligned; NULL: of a GGUF, not loaded yet */
    const void *blocks;            /* of a GGUF: the same matrix as FH_Q8_0 rows, where it is stored so and they are there; else NULL */
    uint64_t bytes;
    const char *file;              /* for messages */
} fh_tensor;

typedef struct fh_tensors fh_tensors; /* the tensors of one file, or of a sharded set; owns the maps */
fh_status fh_tensors_open(fh_tensors **out, const char *path, fh_err *err);
/* A file inside a larger map (a .fhead section); `data` must outlive the set. */
fh_status fh_tensors_open_memory(fh_tensors **out, const void *data, size_t size, const char *name, fh_err *err);
/* A checkpoint directory: model.safetensors, else model.safetensors.index.json and its shards.  Warnings go to job. */
fh_status fh_tensors_open_dir(fh_tensors **out, const char *dir, const fh_job *job, fh_err *err);
/* Tensors that a GGUF holds in another form (Q8_0, rows in another order) are made in memory when they are asked for: all, or `one`.  The
 * tensors of safetensors are there at once. */
fh_status fh_tensors_load(fh_tensors *t, const fh_tensor *one, const fh_job *job, fh_err *err);
/* The same for who can do with FH_Q8_0: of matrices of that type the blocks are there, in the map or, where rows change places, in memory. */
fh_status fh_tensors_load_blocks(fh_tensors *t, const fh_tensor *one, const fh_job *job, fh_err *err);
void fh_tensors_close(fh_tensors *t);  /* accepts NULL */
size_t fh_tensors_count(const fh_tensors *t);
const fh_tensor *fh_tensors_at(const fh_tensors *t, size_t i);         /* by name, ascending */
const fh_tensor *fh_tensors_find(const fh_tensors *t, const char *name); /* NULL when absent */
const char *fh_tensors_metadata(const fh_tensors *t, const char *key);   /* of __metadata__; of a single file; NULL when absent */
/* Find a tensor and check it: dtype must be in `dtypes` (a bit mask of 1u << fh_dtype), and its shape what is given (rank
 * numbers of uint64_t; UINT64_MAX = any).  The message names file, tensor, and both sides of a mismatch. */
fh_status fh_tensors_need(const fh_tensor **out, const fh_tensors *t, const char *name, unsigned dtypes, unsigned rank, const uint64_t *shape, fh_err *err);
static inline fh_rows fh_tensor_rows(const fh_tensor *t) /* of a rank-2 tensor */
{
    return (fh_rows){t->data, t->dtype, (size_t)t->shape[0], (size_t)t->shape[1], (size_t)t->shape[1] * fh_dtype_size(t->dtype)};
}

/* As it is stored: FH_Q8_0 where the tensor has blocks. */
static inline fh_rows fh_tensor_stored_rows(const fh_tensor *t)
{
    if (!t->blocks) return fh_tensor_rows(t);
    fh_rows r = {t->blocks, FH_Q8_0, (size_t)t->shape[0], (size_t)t->shape[1], fh_row_bytes(FH_Q8_0, (size_t)t->shape[1])};
    return r;
}

/* A deterministic writer: the tensors are declared first, then their bytes come in the order declared.  `metadata` is
 * an object of strings, or NULL.  The data area begins at a multiple of 64. */
typedef struct fh_st_spec { const char *name; fh_dtype dtype; unsigned rank; uint64_t shape[FH_MAX_RANK]; } fh_st_spec;
/* The header (length field included) that such a file begins with; freed with fh_free.  NULL when out of memory. */
char *fh_st_header(const fh_st_spec *specs, size_t n, const fh_json *metadata, size_t *bytes);
typedef struct fh_st_writer fh_st_writer;
fh_status fh_st_open(fh_st_writer **out, const char *path, unsigned flags, const fh_st_spec *specs, size_t n, const fh_json *metadata, fh_err *err);
fh_status fh_st_write(fh_st_writer *w, const void *data, size_t bytes, fh_err *err); /* the next bytes; may be called many times a tensor */
fh_status fh_st_commit(fh_st_writer *w, fh_err *err);   /* fails when bytes are missing; frees w */
void fh_st_abandon(fh_st_writer *w);                    /* accepts NULL */
/* All at once: data[i] are the bytes of specs[i]. */
fh_status fh_st_save(const char *path, unsigned flags, const fh_st_spec *specs, const void *const *data, size_t n, const fh_json *metadata, fh_err *err);

/* ---- checkpoints -------------------------------------------------------------------------------------------- */

typedef enum fh_act { FH_ACT_SILU, FH_ACT_GELU, FH_ACT_GELU_TANH, FH_ACT_RELU, FH_ACT_QUICK_GELU } fh_act;
typedef enum fh_rope_type { FH_ROPE_NONE, FH_ROPE_DEFAULT, FH_ROPE_LINEAR, FH_ROPE_LLAMA3, FH_ROPE_YARN, FH_ROPE_DYNAMIC, FH_ROPE_DIVIDED } fh_rope_type;
typedef struct fh_rope {
    fh_rope_type type;
    double theta, factor, partial;               /* partial: share of head_dim that is rotated */
    double low_freq_factor, high_freq_factor;    /* llama3 */
    double beta_fast, beta_slow, attention_factor, mscale, mscale_all_dim; bool truncate; /* yarn; attention_factor 0: from the factor */
    uint32_t original_max_position;
    const fh_json *divisors;                     /* divided ("longrope" whose two lists are one): numbers, one a frequency; of the config's json */
} fh_rope;

enum { FH_MAX_IDS = 64 };
/* config.json and generation_config.json, read and checked.  Families are rows of a table in family.c.  One that is not known
 * (family == false) has its head's facts only: vocab and hidden (0 where config.json does not say), tie, eos, soft-cap. */
typedef struct fh_config {
    char model_type[64];               /* "llama" */
    char architecture[64];             /* architectures[0], or "" */
    bool family;                       /* model_type is a row of the table */
    bool body_supported;               /* the forward pass of this family is one we have, and nothing asked of it is unknown to us */
    char body_why[200];                /* why not, as the end of a sentence: "rope type 'longrope' is not known" */
    uint32_t vocab, hidden, layers, heads, kv_heads, head_dim, ffn, max_position;
    fh_act act;
    double norm_eps;
    fh_rope rope, rope_local;          /* rope_local: of sliding layers, where the family has its own */
    bool attention_bias, mlp_bias;     /* q, k, v and o biased (checked against the tensors); gate, up and down */
    int tie;                           /* 1 true, 0 false, -1 not said (`tie_default` decides) */
    bool tie_default;
    uint32_t sliding_window;           /* 0: none */
    double final_softcap, attn_softcap, query_scalar; /* 0: none */
    uint32_t eos[FH_MAX_IDS]; size_t n_eos;      /* where generation stops: generation_config, else config */
    uint32_t always[FH_MAX_IDS]; size_t n_always;/* every *_token_id of generation_config.json: always candidates, ascending, unique */
    bool do_sample; double temperature, top_p, min_p; uint32_t top_k; /* of generation_config, for --model-sampling; 1, 1, 0, 0 */
    double repetition_penalty;         /* likewise; 1 */
    fh_json *json;                     /* config.json as it stands, for family facts beyond these */
    const fh_json *model;              /* where those stand: json itself, or its text_config in a multimodal wrapper */
    char *text; size_t text_len;       /* its bytes */
    char *generation_text;             /* generation_config.json's bytes, or NULL */
} fh_config;
/* `generation` may be NULL.  `name` is for messages. */
fh_status fh_config_parse(fh_config *out, const char *text, size_t len, const char *generation, const char *name, const fh_job *job, fh_err *err);
void fh_config_free(fh_config *c); /* accepts a zeroed one */

/* A checkpoint opened, a directory or a GGUF file: config, tensors, and which of them is the head. */
typedef struct fh_checkpoint {
    char *dir;                      /* or the file */
    fh_config config;
    fh_tensors *tensors;
    const fh_tensor *head, *bias;   /* [V, D] and [V] or NULL */
    const fh_tensor *embedding;     /* the input embedding [V, D]; == head when tied.  NULL in a head-only file */
    bool tied;
} fh_checkpoint;
/* Is this path a checkpoint in one file: a GGUF by its first bytes, or by its name? */
bool fh_is_gguf(const char *path);
/* Of a GGUF only the head's data is there (fh_tensors_load).  Tied or untied is decided and verified as facts say (tie flag against tensors, bytes compared); vocab_size and hidden_size
 * against the head's shape (FH_ECHECK naming both); quantization_config refused. */
fh_status fh_checkpoint_open(fh_checkpoint *out, const char *dir, const fh_job *job, fh_err *err);
/* The same for who can do with FH_Q8_0: a head of that type has its blocks, and not its data. */
fh_status fh_checkpoint_open_stored(fh_checkpoint *out, const char *dir, const fh_job *job, fh_err *err);
void fh_checkpoint_close(fh_checkpoint *c);
/* tokenizer.json, tokenizer_config.json and chat_template.jinja of a checkpoint, or what a GGUF's metadata make of them; nothing else of it is opened. */
typedef struct fh_tokenizer_text {
    char *name;                     /* for messages: the path of tokenizer.json, or of the GGUF */
    char *text; size_t len;         /* NULL: there is none */
    char *config; size_t config_len; /* NULL: there is none */
    char *chat; size_t chat_len;     /* NULL: there is none but what `config` says */
} fh_tokenizer_text;
fh_status fh_tokenizer_text_read(fh_tokenizer_text *out, const char *path, fh_err *err);
void fh_tokenizer_text_free(fh_tokenizer_text *t); /* accepts a zeroed one */
/* SHA-256 over the head tensor and the config facts that matter (vocab, hidden, dtype, soft-cap, bias), 64 hex digits. */
void fh_fingerprint(char out[65], const fh_rows *head, const fh_rows *bias_or_null, double final_softcap);
/* The same of rows that lie in another order: token i's is row order[i], i < n (NULL: i). */
void fh_fingerprint_in_order(char out[65], const fh_rows *head, const uint32_t *order, size_t n, const fh_rows *bias_or_null, double final_softcap);

/* ---- directories of the vLLM plugin flash-head (docs/decisions/0008) --------------------------------------------- */

#define FH_VLLM_ASSETS "flash_head_assets"              /* what config.json's flash_head_cache_dir says */
#define FH_VLLM_CACHE "clustering_cache.safetensors"
#define FH_VLLM_CONFIG "clustering_config.json"
/* An ordinary checkpoint with a clustering of its head beside it, as that runtime reads it. */
typedef struct fh_vllm {
    uint32_t vocab, hidden, k, cap, probes;  /* V = K * cap, D, K, cap, P: n_probes, K/16 where config.json does not say */
    bool probes_said;
    uint32_t *assignment;                    /* [V] token -> cluster; exactly cap tokens in each */
    float *centroids;                        /* [K, D] as stored: of any length, none zero */
    uint32_t *special; size_t n_special;     /* always scored; in the order of config.json */
    fh_json *record;                         /* what fhtool wrote about itself, or NULL: made by something else */
} fh_vllm;
typedef struct fh_vllm_source {
    const char *dir, *cache_name, *beside_name; /* for messages */
    const fh_json *config;                   /* config.json */
    uint32_t vocab, hidden;                  /* of the checkpoint's head */
    const fh_tensors *cache;                 /* clustering_cache.safetensors */
    const char *beside; size_t beside_len;   /* clustering_config.json, or NULL: newer releases do without */
} fh_vllm_source;
/* FH_EFORMAT: it is no such directory; FH_ECHECK: it is, and breaks a rule of that runtime; the first offender is named. */
fh_status fh_vllm_parse(fh_vllm *out, const fh_vllm_source *source, fh_err *err);
/* The same of an opened checkpoint's directory; that its head can be held is checked too.  Warnings go to job. */
fh_status fh_vllm_open(fh_vllm *out, const fh_checkpoint *c, const fh_job *job, fh_err *err);
void fh_vllm_free(fh_vllm *v); /* accepts a zeroed one */
/* Can that runtime hold this head at all?  FH_EUNSUPPORTED names what it cannot: the architecture, a bias, where the head lies. */
fh_status fh_vllm_model_check(const fh_checkpoint *c, fh_err *err);
/* architectures[0] without the plugin's prefix; NULL: none that it knows. */
const char *fh_vllm_architecture(const fh_config *c);
/* config.json for that runtime, everything else of it byte for byte; *out is the caller's.  The architecture is one it knows. */
fh_status fh_vllm_config(char **out, const fh_config *config, uint32_t probes, const uint32_t *special, size_t n_special, fh_err *err);

/* ---- .fhead (docs/fhead-format.md is the specification) -------------------------------------------------------- */

enum { FH_FHEAD_MAJOR = 1, FH_FHEAD_MINOR = 1, FH_SECTION_NAME = 32, FH_MAX_SECTIONS = 4096, FH_MAX_RERANK = 65536 };
typedef enum fh_codec { FH_CODEC_RAW = 0, FH_CODEC_ZSTD = 1 } fh_codec;
enum { FH_SECTION_REQUIRED = 1 }; /* flag: a reader that does not know this section must refuse the file */
typedef struct fh_section {
    char name[FH_SECTION_NAME + 1];
    fh_codec codec;
    uint32_t flags;
    uint64_t offset, bytes, raw_bytes; /* in the file; stored; after decoding */
    uint32_t alignment;
    uint8_t sha256[32];                /* of the stored bytes */
} fh_section;

typedef struct fh_fhead fh_fhead; /* an opened container: a read-only map, its header judged */
fh_status fh_fhead_open(fh_fhead **out, const char *path, fh_err *err);
/* `data` must outlive the container and be 64-byte aligned, as sections are used in place; `name` is for messages. */
fh_status fh_fhead_open_memory(fh_fhead **out, const void *data, size_t size, const char *name, fh_err *err);
void fh_fhead_close(fh_fhead *f); /* accepts NULL */
const char *fh_fhead_path(const fh_fhead *f);
const fh_json *fh_fhead_header(const fh_fhead *f);      /* the JSON header */
const char *fh_fhead_digest(const fh_fhead *f);         /* 64 hex digits: names the artifact */
uint16_t fh_fhead_major(const fh_fhead *f);
uint16_t fh_fhead_minor(const fh_fhead *f);
size_t fh_fhead_sections(const fh_fhead *f);
const fh_section *fh_fhead_section(const fh_fhead *f, size_t i);
const fh_section *fh_fhead_find(const fh_fhead *f, const char *name); /* NULL when absent */
/* The decoded bytes: the map itself for raw sections, an owned buffer kept until close for zstd ones.  Not thread-safe. */
fh_status fh_fhead_data(fh_fhead *f, const char *name, const void **data, size_t *bytes, fh_err *err);
/* All that opening does not: every section's digest, that compressed sections inflate, that all padding is zero (FH_EFORMAT names
 * the first fault), then fh_fhead_check_head and every centroid and row (FH_ECHECK names the first offender). */
fh_status fh_fhead_verify(fh_fhead *f, const fh_job *job, fh_err *err);

typedef struct fh_fhead_writer fh_fhead_writer;
/* `header` is the JSON text, `sections` how many will be added. */
fh_status fh_fhead_create(fh_fhead_writer **out, const char *path, unsigned flags, const char *header, size_t sections, fh_err *err);
fh_status fh_fhead_begin(fh_fhead_writer *w, const char *name, fh_codec codec, uint32_t flags, fh_err *err);
fh_status fh_fhead_write(fh_fhead_writer *w, const void *data, size_t bytes, fh_err *err); /* of the section begun last */
fh_status fh_fhead_add(fh_fhead_writer *w, const char *name, fh_codec codec, uint32_t flags, const void *data, size_t bytes, fh_err *err);
fh_status fh_fhead_commit(fh_fhead_writer *w, char digest[65], fh_err *err); /* frees w */
void fh_fhead_abandon(fh_fhead_writer *w); /* accepts NULL */

/* A feature of `requires`: the file has /head/threshold. */
#define FH_FEATURE_THRESHOLD "threshold"

/* What a .fhead says about its head, judged: sizes, encodings, and where the arrays lie.  All pointers are borrowed from the
 * container (the arrays of a raw section are in its map, hot and always are kept by it) until fh_fhead_close. */
typedef struct fh_head_layout {
    uint32_t vocab, hidden, k, cap, probes;          /* V, D, K, cap, P */
    const char *routing;                             /* how the centroids were made: "mean", "weighted", ... */
    fh_rows centroids; const void *centroid_scales;  /* [K, D]; scales: float32 [K] for int8, bf16 [K, groups] for int4, else NULL */
    fh_rows tokens; const void *token_scales;        /* [K * cap, D] in slot order; scales [K * cap] alike */
    fh_rows exact;                                   /* the same rows in model dtype; data NULL when the file has none */
    bool tokens_exact;                               /* `tokens` are the checkpoint's rows as they are */
    uint32_t rerank;                                 /* candidates scored again from `exact`; 0: none */
    float threshold;                                 /* of the P best clusters only those whose score is so close to the best one's; 0: all of them */
    const uint32_t *permutation;                     /* [K * cap] slot -> token id, UINT32_MAX: padding */
    const uint32_t *dead; size_t n_dead;             /* ascending */
    const float *bias;                               /* [V] or NULL */
    const uint32_t *hot; size_t n_hot;               /* unique */
    const uint32_t *always; size_t n_always;         /* unique */
    const char *model_type;                          /* "llama" */
    fh_dtype dtype;                                  /* of the checkpoint's head: f32, bf16 or f16 */
    bool tied;
    double softcap;                                  /* 0: none */
    const char *fingerprint;                         /* of the base model's head, 64 hex digits */
    uint32_t tokenizer_size;                         /* 0: unknown */
    bool calibrated, has_body, has_tokenizer;
} fh_head_layout;
/* Judge the head of an opened file: the JSON header's facts, the sections' sizes, permutation, scales, dead rows, bias, hot and
 * always ids.  Linear in V + K; rows are not read.  FH_EFORMAT: the structure is broken; FH_EUNSUPPORTED: an encoding, layout or
 * transform this reader does not know; FH_ECHECK: the content is not a head's, first offender named.  Remembered by the container;
 * not thread-safe. */
fh_status fh_fhead_check_head(fh_fhead *f, fh_head_layout *out, fh_err *err);
/* The same judgement of arrays wherever they lie (FH_ECHECK); `name` is for messages. */
fh_status fh_head_layout_check(const fh_head_layout *h, const char *name, fh_err *err);
/* What a calibration is of: SHA-256 over the sections head.permutation, head.centroid_scales, head.token_scales, head.centroids and head.tokens, one after
 * another, as they are stored (those that are there), 64 hex digits. */
void fh_head_layout_digest(char out[65], const fh_head_layout *h);
/* Bytes that one step reads at P probes (in the mean of some steps, maybe; 0: its own; at most K) with `n_hot` tokens on the hot list: centroids, clusters, hot and always rows,
 * rows reranked; scales counted. */
double fh_head_layout_step_bytes(const fh_head_layout *h, double probes, size_t n_hot);
/* Every value: rows finite, int8 in [-127, 127], int4 in [-7, 7], no centroid zero but int4 ones (FH_ECHECK).  Rows of padding slots are not looked at. */
fh_status fh_head_layout_check_rows(const fh_head_layout *h, const char *name, const fh_job *job, fh_err *err);

/* ---- the work directory ------------------------------------------------------------------------------------- */

typedef struct fh_work fh_work; /* locked while open */
typedef enum fh_stage_state { FH_STAGE_MISSING, FH_STAGE_STALE, FH_STAGE_CURRENT } fh_stage_state;
/* create: made where missing; else FH_ENOTFOUND.  Leftovers of a killed run are removed. */
fh_status fh_work_open(fh_work **out, const char *dir, bool create, fh_err *err);
void fh_work_close(fh_work *w);
const char *fh_work_dir(const fh_work *w);
char *fh_work_path(const fh_work *w, const char *name); /* freed by the caller; NULL when out of memory */
/* Append one line to log.jsonl: time, host, stage, seconds, threads, `more` (consumed, may be NULL). */
fh_status fh_work_log(fh_work *w, const char *stage, double seconds, unsigned threads, fh_json *more, fh_err *err);

/* What made a result: {"stage", "tool", "inputs": {file: sha256}, "params": {...}}.  Kept in the result itself: as the metadata
 * value "fhtool" of a safetensors file, as the member "made_by" of a JSON file. */
fh_json *fh_record_new(const char *stage, fh_json *params); /* takes params; NULL when out of memory */
/* Add the digest of a file of the work directory to the record's inputs. */
fh_status fh_record_input(fh_json *record, fh_work *w, const char *name, fh_err *err);
bool fh_record_input_digest(fh_json *record, const char *name, const char *hex);
/* The record of a result in the work directory: *out is NULL when the file is missing. */
fh_status fh_work_record(fh_work *w, const char *name, fh_json **out, fh_err *err);
/* SHA-256 of a file of the work directory, remembered while it is open. */
fh_status fh_work_digest(fh_work *w, const char *name, char hex[65], fh_err *err);
void fh_work_changed(fh_work *w, const char *name); /* forget the remembered digest: the file was just rewritten */
/* Is the result of a stage there, and were its inputs what is there now?  `params` (NULL: any) must equal the record's.  `why`
 * (may be NULL) gets a few words. */
fh_status fh_work_state(fh_work *w, const char *name, const fh_json *params, fh_stage_state *state, char why[200], fh_err *err);

#endif
