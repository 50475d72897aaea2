/* export and import: to the runtimes that people already use, and back. */
#include "cmd/cmd.h"

typedef struct export_args {
    fh_common common;
    fh_pick format, link;
    fh_str model, output;
    fh_uint probes;
    bool no_clobber;
} export_args;
static const fh_opt export_options[] = {
    {"format", FH_OPT_PICK, offsetof(export_args, format), "F", "what to write: the directory of the vLLM plugin flash-head", 0, 0, "vllm"},
    {"model", FH_OPT_STR, offsetof(export_args, model), "DIR", "the checkpoint that the artifact was made from", 0, 0, NULL},
    {"-o", FH_OPT_STR, offsetof(export_args, output), "OUTDIR", "the directory to make", 0, 0, NULL},
    {"link", FH_OPT_PICK, offsetof(export_args, link), "HOW", "how weights get there (default copy): hard and sym take no space", 0, 0,
     "copy,hard,sym"},
    {"probes", FH_OPT_UINT, offsetof(export_args, probes), "P",
     "clusters probed, whatever the artifact promises: the directory then promises nothing", 1, 1e9, NULL},
    {"no-clobber", FH_OPT_FLAG, offsetof(export_args, no_clobber), NULL, "refuse to replace an older export", 0, 0, NULL},
    FH_COMMON_OPTS,
    FH_OPT_END,
};

static fh_status run_export(void *p, const fh_job *job, fh_err *err)
{
    export_args *a = p;
    fh_json *report = NULL;
    if (!a->format.set) return fh_fail(err, FH_EUSAGE, "export: --format is missing: vllm is the one there is");
    if (!a->model.set) return fh_fail(err, FH_EUSAGE, "export: --model is missing: which checkpoint was the artifact made from?");
    if (!a->output.set) return fh_fail(err, FH_EUSAGE, "export: -o is missing: where shall the directory go?");
    fh_vllm_export_params how = {.artifact = a->common.args[0],
                                 .model = a->model.v,
                                 .output = a->output.v,
                                 .link = (fh_link)a->link.v,
                                 .probes = (uint32_t)a->probes.v,
                                 .no_clobber = a->no_clobber};
    fh_status rc = fh_vllm_export(&how, job, &report, err);
    return fh_finish(report, &a->common, rc, err);
}

const fh_command fh_cmd_export = {
    "export",
    "an artifact as a directory for another runtime",
    "FILE",
    1,
    1,
    export_options,
    sizeof(export_args),
    run_export,
    "The artifact is one of 'fhtool build --for vllm'; that runtime has no hot list, scores nothing again and routes by cosine, so another "
    "calibration is refused.\n"
    "OUTDIR appears whole or not at all.  Weights come from --model, and of its other files those that belong to a model; config.json is "
    "patched.",
    "fhtool export --format vllm model.fhead --model ~/models/Qwen3-0.6B -o Qwen3-0.6B-FlashHead --link hard"};

typedef struct import_args {
    fh_common common;
    fh_pick format;
} import_args;
static const fh_opt import_options[] = {
    {"format", FH_OPT_PICK, offsetof(import_args, format), "F", "what DIR is: a directory of the vLLM plugin flash-head", 0, 0, "vllm"},
    FH_DIR_OPT,
    FH_COMMON_OPTS,
    FH_OPT_END,
};

static fh_status run_import(void *p, const fh_job *job, fh_err *err)
{
    import_args *a = p;
    fh_stage_env e;
    fh_json *report = NULL;
    if (!a->format.set) return fh_fail(err, FH_EUSAGE, "import: --format is missing: vllm is the one there is");
    fh_status rc = fh_open_work(&e, &a->common, true, job, err);
    if (rc == FH_OK) rc = fh_stage_import(&e, a->common.args[0], &report, err);
    rc = fh_finish(report, &a->common, rc, err);
    fh_work_close(e.work);
    return rc;
}

const fh_command fh_cmd_import = {
    "import",
    "another runtime's directory into a work directory",
    "DIR",
    1,
    1,
    import_options,
    sizeof(import_args),
    run_import,
    "Head, clusters and routing as they are in DIR, judged as 'fhtool verify DIR' does; quantize, calibrate and pack go on from there.",
    "fhtool import --format vllm Qwen3-0.6B-FlashHead -C work && fhtool calibrate -C work"};
