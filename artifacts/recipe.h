/* A recipe, judged: what makes an artifact again. */
#ifndef FH_RECIPE_H
#define FH_RECIPE_H

#include "artifacts/release_private.h"

typedef struct fh_recipe {
    fh_json *json;                       /* as it stands; what follows points into it */
    const char *digest, *fingerprint;    /* of the artifact; of its base model's head */
    const char *routing;                 /* "mean", "weighted", "raw", "learned" */
    const char *tool;                    /* what wrote the artifact */
    const char *carried_sha256;
    const fh_json *provenance, *calibration; /* records of the stages; NULL: not calibrated */
    uint32_t k, probes, rerank;
    float threshold;                     /* 0: none */
    fh_dtype centroids, tokens;
    bool head_only, exact;
} fh_recipe;
fh_status fh_recipe_parse(fh_recipe *out, const char *text, size_t len, const char *file, fh_err *err);
void fh_recipe_free(fh_recipe *r); /* accepts a zeroed one */

#endif
