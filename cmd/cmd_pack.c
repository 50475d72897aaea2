#include "cmd/cmd.h"

typedef struct args { fh_common common; fh_str output; fh_uint probes, rerank; bool head_only, exact, no_clobber; } args;
static const fh_opt options[] = {
    {"-o", FH_OPT_STR, offsetof(args, output), "FILE", "the artifact to write", 0, 0, NULL},
    {"probes", FH_OPT_UINT, offsetof(args, probes), "P", "clusters probed by default (default: as calibrated, else K/16)", 1, 1e9, NULL},
    {"rerank", FH_OPT_UINT, offsetof(args, rerank), "N", "best rows scored again from the exact ones (default: as calibrated, else 16, for int4 32; 0: none)", 0, FH_MAX_RERANK, NULL},
    {"head-only", FH_OPT_FLAG, offsetof(args, head_only), NULL, "leave out body and tokenizer", 0, 0, NULL},
    {"exact", FH_OPT_FLAG, offsetof(args, exact), NULL, "with --head-only: keep the rows in the checkpoint's dtype too", 0, 0, NULL},
    {"no-clobber", FH_OPT_FLAG, offsetof(args, no_clobber), NULL, "refuse to replace a file that exists", 0, 0, NULL},
    FH_DIR_OPT, FH_COMMON_OPTS, FH_OPT_END,
};

static fh_status run(void *p, const fh_job *job, fh_err *err)
{
    args *a = p;
    fh_stage_env e;
    fh_json *report = NULL;
    if (!a->output.set) return fh_fail(err, FH_EUSAGE, "pack: -o is missing: where shall the artifact go?");
    fh_stage_pack_params how = {.output = a->output.v, .no_clobber = a->no_clobber, .head_only = a->head_only, .exact = a->exact, .probes = (uint32_t)a->probes.v,
                                .rerank = a->rerank.set ? (int64_t)a->rerank.v : -1};
    fh_status rc = fh_open_work(&e, &a->common, false, job, err);
    if (rc == FH_OK) rc = fh_stage_pack(&e, &how, &report, err);
    rc = fh_finish_hiding(report, &a->common, "sections", rc, err);
    fh_work_close(e.work);
    return rc;
}

const fh_command fh_cmd_pack = {"pack", "put everything into one .fhead", "", 0, 0, options, sizeof(args), run,
    "A calibration of other inputs is refused unless --probes is given; the artifact then promises nothing.", "fhtool pack -C work -o model.fhead"};
