/* format/safetensors.h: what the reader's files share.  Private to format/safetensors.c and format/st_index.c. */
#ifndef FH_SAFETENSORS_H
#define FH_SAFETENSORS_H

#include "format/format.h"

struct fh_tensors {
    char *path;             /* of the file or the directory, for messages */
    fh_map *maps;           /* one a file */
    size_t n_maps;
    fh_arena *arena;        /* names, metadata */
    fh_tensor *list;        /* by name, ascending; two of one name only while a set is put together */
    size_t n;
    const char **metadata;  /* key, value, key, value, ... */
    size_t n_metadata;      /* pairs */
};

fh_tensors *fh_tensors_new(const char *path); /* NULL when out of memory */
/* Judge one file image and append its tensors to the list, unsorted; `name` (which must outlive t) is for messages. */
fh_status fh_tensors_add(fh_tensors *t, const uint8_t *data, size_t size, const char *name, fh_err *err);
void fh_tensors_sort(fh_tensors *t); /* by name, then by file */

#endif
