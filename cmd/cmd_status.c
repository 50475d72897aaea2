#include "cmd/cmd.h"

typedef struct args { fh_common common; } args;
static const fh_opt options[] = {FH_DIR_OPT, FH_COMMON_OPTS, FH_OPT_END};

static fh_status run(void *p, const fh_job *job, fh_err *err)
{
    args *a = p;
    fh_stage_env e;
    fh_json *report = NULL;
    fh_status rc = fh_open_work(&e, &a->common, false, job, err);
    if (rc == FH_OK) rc = fh_stage_status(&e, &report, err);
    rc = fh_finish(report, &a->common, rc, err);
    fh_work_close(e.work);
    return rc;
}

const fh_command fh_cmd_status = {"status", "what a work directory holds, and what is stale", "", 0, 0, options, sizeof(args), run, NULL, "fhtool status -C work"};
