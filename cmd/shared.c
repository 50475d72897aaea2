/* What commands share. */
#include "cmd/cmd.h"

#include <math.h>
#include <string.h>

fh_status fh_open_work(fh_stage_env *e, const fh_common *c, bool create, const fh_job *job, fh_err *err)
{
    *e = (fh_stage_env){.job = job};
    if (c->dir.set && !*c->dir.v) return fh_fail(err, FH_EUSAGE, "-C: an empty name is no directory");
    return fh_work_open(&e->work, c->dir.set ? c->dir.v : "fhead-work", create, err);
}

fh_status fh_read_states(fh_tensors **file, const float **data, float **owned, size_t *n, const char *path, size_t width, fh_err *err)
{
    fh_status rc = fh_tensors_open(file, path, err);
    *owned = NULL;
    if (rc < 0) return rc;
    const fh_tensor *t = fh_tensors_find(*file, "hidden");
    if (!t) return fh_fail(err, FH_EFORMAT, "%s: has no tensor 'hidden': states are 'hidden' [N, %zu] or [B, T, %zu], float32", path, width, width);
    if (t->dtype != FH_F32 || (t->rank != 2 && t->rank != 3)) return fh_fail(err, FH_ECHECK, "%s: tensor 'hidden' is %s of rank %u: states are float32 [N, %zu] or [B, T, %zu]", path, fh_dtype_st_name(t->dtype), t->rank, width, width);
    if (t->shape[t->rank - 1] != width) return fh_fail(err, FH_ECHECK, "%s: states of width %llu for a head of width %zu: are they of this model?", path, (unsigned long long)t->shape[t->rank - 1], width);
    *n = (size_t)(t->bytes / (width * sizeof(float)));
    *data = t->data;
    if ((uintptr_t)t->data % sizeof(float)) {
        if (!(*owned = fh_malloc((size_t)t->bytes + 1))) return fh_fail(err, FH_ENOMEM, "%s: out of memory", path);
        memcpy(*owned, t->data, (size_t)t->bytes);
        *data = *owned;
    }
    for (size_t i = 0; i < *n * width; i++)
        if (!isfinite((*data)[i])) return fh_fail(err, FH_ECHECK, "%s: the state at position %zu is not finite", path, i / width);
    return FH_OK;
}
