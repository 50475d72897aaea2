/* format/safetensors.h: what the reader's files share.  Private to format/safetensors.c, st_index.c and gguf*.c. */
#ifndef FH_SAFETENSORS_H
#define FH_SAFETENSORS_H

#include "format/format.h"

typedef struct fh_gguf fh_gguf;

struct fh_tensors {
    char *path;             /* of the file or the directory, for messages */
    fh_map *maps;           /* one a file */
    size_t n_maps;
    fh_arena *arena;        /* names, metadata */
    fh_tensor *list;        /* by name, ascending; two of one name only while a set is put together */
    size_t n;
    const char **metadata;  /* key, value, key, value, ... */
    size_t n_metadata;      /* pairs */
    fh_gguf *gguf;          /* of a GGUF: the file, owned */
    struct fh_gguf_plan *plans; /* of a GGUF: how list[i] comes from it */
};

fh_tensors *fh_tensors_new(const char *path); /* NULL when out of memory */
/* Judge one file image and append its tensors to the list, unsorted; `name` (which must outlive t) is for messages. */
fh_status fh_tensors_add(fh_tensors *t, const uint8_t *data, size_t size, const char *name, fh_err *err);
void fh_tensors_sort(fh_tensors *t); /* by name, then by file */

/* What a file that is not what it should be looks like, and what to do about it: "; it looks like ..."; "" when nothing is recognised. */
const char *fh_looks_like(const uint8_t *data, size_t size);

#endif
