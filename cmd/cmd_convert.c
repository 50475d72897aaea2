#include "cmd/cmd.h"

typedef struct args { fh_common common; } args;
static const fh_opt options[] = {FH_DIR_OPT, FH_COMMON_OPTS, FH_OPT_END};

static fh_status run(void *p, const fh_job *job, fh_err *err)
{
    args *a = p;
    fh_stage_env e;
    fh_json *report = NULL;
    fh_status rc = fh_open_work(&e, &a->common, true, job, err);
    if (rc == FH_OK) rc = fh_stage_convert(&e, a->common.args[0], &report, err);
    rc = fh_finish(report, &a->common, rc, err);
    fh_work_close(e.work);
    return rc;
}

const fh_command fh_cmd_convert = {"convert", "find, check and copy the head of a checkpoint", "MODEL", 1, 1, options, sizeof(args), run,
    "MODEL is a checkpoint directory (config.json and safetensors; tokenizer.json where there is one) or a .gguf file (F32, F16, BF16 or Q8_0).", "fhtool convert ~/models/SmolLM2-135M -C work"};
