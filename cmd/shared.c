/* What commands share. */
#include "cmd/cmd.h"

fh_status fh_open_work(fh_stage_env *e, const fh_common *c, bool create, const fh_job *job, fh_err *err)
{
    *e = (fh_stage_env){.job = job};
    if (c->dir.set && !*c->dir.v) return fh_fail(err, FH_EUSAGE, "-C: an empty name is no directory");
    return fh_work_open(&e->work, c->dir.set ? c->dir.v : "fhead-work", create, err);
}
