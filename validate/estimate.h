/* validate/estimate.h: what the files of estimate share.  Not for others: see validate.h. */
#ifndef FH_ESTIMATE_H
#define FH_ESTIMATE_H

#include "validate/validate.h"

/* A model of a shape, filled with noise: it says nothing, at the speed at which the real one speaks. */
typedef struct fh_stand_in {
    fh_model model;             /* head and, where the shape has layers, body */
    uint32_t clusters, layers;  /* of the real one's, these many */
    double layer_bytes;         /* of one of its layers */
    size_t bytes;               /* of all that is there */
    fh_fhead *file;
    uint32_t *hot;
} fh_stand_in;
/* head_bytes, body_bytes: what it may take of each, but at least twice `most` clusters (where there are so many) and one layer.  It lies in a file of `dir`,
 * gone from there at once, and is read through a map as an artifact is by `bench`: whose pages they are and how large shows.  *out must not be moved. */
fh_status fh_stand_in_open(fh_stand_in *out, const fh_shape *shape, const fh_setting *s, uint32_t most, size_t head_bytes, size_t body_bytes, const char *dir,
                           const fh_job *job, fh_err *err);
void fh_stand_in_close(fh_stand_in *s); /* accepts a zeroed one */

#endif
