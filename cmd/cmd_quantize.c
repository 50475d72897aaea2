#include "cmd/cmd.h"

typedef struct args { fh_common common; fh_pick centroids, tokens; } args;
static const fh_opt options[] = {
    {"centroids", FH_OPT_PICK, offsetof(args, centroids), "E", "encoding of centroids (default int8)", 0, 0, "int8,int4,bf16,f16,f32"},
    {"tokens", FH_OPT_PICK, offsetof(args, tokens), "E", "encoding of token rows (default int8)", 0, 0, "int8,int4,bf16,f16,f32"},
    FH_DIR_OPT, FH_COMMON_OPTS, FH_OPT_END,
};
static const fh_dtype encodings[] = {FH_I8, FH_I4, FH_BF16, FH_F16, FH_F32};

static fh_status run(void *p, const fh_job *job, fh_err *err)
{
    args *a = p;
    fh_stage_env e;
    fh_json *report = NULL;
    fh_status rc = fh_open_work(&e, &a->common, false, job, err);
    if (rc == FH_OK) rc = fh_stage_quantize(&e, encodings[a->centroids.v], encodings[a->tokens.v], &report, err);
    rc = fh_finish(report, &a->common, rc, err);
    fh_work_close(e.work);
    return rc;
}

const fh_command fh_cmd_quantize = {"quantize", "encode centroids and token rows", "", 0, 0, options, sizeof(args), run,
    "int8 is symmetric with a float32 scale for each row, int4 with a bf16 scale for each 32 values.  error: |row - decoded| / |row| over live rows.", "fhtool quantize -C work --centroids int8 --tokens int8"};
