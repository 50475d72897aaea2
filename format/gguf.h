/* format/gguf.h: a GGUF file opened and judged, and the checkpoint that it makes.  Private to format/gguf*.c, safetensors.c and
 * checkpoint.c; tests and the fuzzer look in too.
 *
 * A GGUF is read as if it were a checkpoint directory: its metadata become a config.json, a tokenizer.json and a
 * tokenizer_config.json, its tensors carry the names, the order of rows and the shapes that the families' safetensors have.  What
 * comes after (body, pack, templates) need not know where a checkpoint came from.
 */
#ifndef FH_GGUF_H
#define FH_GGUF_H

#include "format/safetensors.h"

/* The numbers are the file format's. */
typedef enum fh_gguf_type {
    FH_GGUF_U8, FH_GGUF_I8, FH_GGUF_U16, FH_GGUF_I16, FH_GGUF_U32, FH_GGUF_I32, FH_GGUF_F32, FH_GGUF_BOOL, FH_GGUF_STRING, FH_GGUF_ARRAY,
    FH_GGUF_U64, FH_GGUF_I64, FH_GGUF_F64, FH_GGUF_TYPES
} fh_gguf_type;
enum { FH_GGUF_T_F32 = 0, FH_GGUF_T_F16 = 1, FH_GGUF_T_Q8_0 = 8, FH_GGUF_T_BF16 = 30 }; /* of tensors: those that are read */
enum { FH_GGUF_RANK = 4, FH_GGUF_NAME = 64 /* of a tensor, with its NUL */ };

typedef struct fh_gguf_value {
    const char *key;
    fh_gguf_type type, element;  /* element: of an array */
    uint64_t count;              /* of an array; else 1 */
    const uint8_t *data;         /* in the map: the value, or an array's first */
} fh_gguf_value;
typedef struct fh_gguf_tensor {
    const char *name;
    uint32_t type;               /* as the file numbers them */
    unsigned rank;
    uint64_t ne[FH_GGUF_RANK];   /* ne[0] is the fastest; 1 beyond rank */
    uint64_t offset, bytes;      /* of the data area */
    const uint8_t *data;
} fh_gguf_tensor;

struct fh_gguf {
    char *path;                  /* for messages */
    fh_map map;                  /* zeroed where the bytes are somebody else's */
    fh_arena *arena;
    fh_gguf_value *values; size_t n_values;    /* by key, ascending, unique */
    fh_gguf_tensor *tensors; size_t n_tensors; /* by name, ascending, unique */
    const char *arch;            /* general.architecture */
};

fh_status fh_gguf_open(fh_gguf **out, const char *path, fh_err *err);
/* `data` must outlive it; `name` is for messages. */
fh_status fh_gguf_open_memory(fh_gguf **out, const void *data, size_t size, const char *name, fh_err *err);
void fh_gguf_close(fh_gguf *g); /* accepts NULL */

const fh_gguf_value *fh_gguf_find(const fh_gguf *g, const char *key);           /* NULL when absent */
const fh_gguf_tensor *fh_gguf_tensor_find(const fh_gguf *g, const char *name);  /* NULL when absent */
const char *fh_gguf_tensor_type(uint32_t type);                                 /* "Q4_K"; NULL when not known */
/* What a value, or element i of an array, says; false where it is of another kind (or negative). */
bool fh_gguf_u64(const fh_gguf_value *v, uint64_t i, uint64_t *out);
bool fh_gguf_double(const fh_gguf_value *v, uint64_t i, double *out);  /* a float32 as the shortest decimal that means it: 1e-05, not 9.99999975e-06 */
bool fh_gguf_bool(const fh_gguf_value *v, uint64_t i, bool *out);
/* A string value or the strings of an array in turn. */
typedef struct fh_gguf_strings { const uint8_t *at; uint64_t left; } fh_gguf_strings;
fh_gguf_strings fh_gguf_strings_of(const fh_gguf_value *v);            /* none where it holds no strings, or v is NULL */
bool fh_gguf_next(fh_gguf_strings *s, const char **text, size_t *len); /* not NUL-terminated */
/* A string value as text of its own in the file's arena; NULL in *out when the key is absent.  FH_EFORMAT: no string, no UTF-8, a NUL. */
fh_status fh_gguf_text(const fh_gguf *g, const char *key, const char **out, fh_err *err);

/* config.json; freed by the caller.  FH_EUNSUPPORTED names an architecture or a key that we have not. */
fh_status fh_gguf_config(const fh_gguf *g, char **text, size_t *len, fh_err *err);
/* The tensors, named as the architecture's safetensors; owns g, even on failure. */
fh_status fh_gguf_tensors(fh_tensors **out, fh_gguf *g, fh_err *err);
/* The data of t->list[i], where it is not there yet; `blocks`: of Q8_0 its blocks instead, where they can be had. */
fh_status fh_gguf_load(fh_tensors *t, size_t i, bool blocks, const fh_job *job, fh_err *err);
void fh_gguf_tell_memory(const fh_tensors *t, bool blocks, const fh_job *job); /* how much memory loading what is not there yet takes, where it is more than the file */
uint64_t fh_gguf_head_count(const fh_gguf *g, const char *which); /* "head_count" or "head_count_kv" (absent: as the other); 0: not said */
/* tokenizer.json and tokenizer_config.json, freed by the caller; NULL in *text when the file has no tokenizer.  FH_EUNSUPPORTED names a kind
 * of tokenizer that cannot be told from a GGUF. */
fh_status fh_gguf_tokenizer(const fh_gguf *g, char **text, size_t *len, char **config, fh_err *err);

#endif
