#include "artifacts/release.h"
#include "cmd/cmd.h"

typedef struct args { fh_common common; fh_str model, output; fh_pick from; fh_strs text; bool no_clobber; } args;
static const fh_opt options[] = {
    {"model", FH_OPT_STR, offsetof(args, model), "DIR", "the base model: the checkpoint the artifact was made from", 0, 0, NULL},
    {"-o", FH_OPT_STR, offsetof(args, output), "FILE", "the artifact to write (default: rebuilt.fhead in the work directory)", 0, 0, NULL},
    {"from", FH_OPT_PICK, offsetof(args, from), "S", "where to begin (default assignment)", 0, 0, "assignment,text"},
    {"text", FH_OPT_STRS, offsetof(args, text), "FILE", "with --from text: the recipe's text, again for more files", 0, 0, NULL},
    {"no-clobber", FH_OPT_FLAG, offsetof(args, no_clobber), NULL, "refuse to replace a file that exists", 0, 0, NULL},
    {"-C", FH_OPT_STR, offsetof(fh_common, dir), "DIR", "work directory, its own (default ./rebuild-work)", 0, 0, NULL},
    FH_COMMON_OPTS, FH_OPT_END,
};

static fh_status run(void *p, const fh_job *job, fh_err *err)
{
    args *a = p;
    fh_json *report = NULL;
    if (!a->model.set) return fh_fail(err, FH_EUSAGE, "rebuild: --model is missing: which checkpoint was it made from? (the recipe names it)");
    if (a->common.dir.set && !*a->common.dir.v) return fh_fail(err, FH_EUSAGE, "rebuild: -C: an empty name is no directory");
    if (a->text.n && !a->from.v) return fh_fail(err, FH_EUSAGE, "rebuild: --text: only --from text reads one");
    fh_rebuild_params how = {.recipe = a->common.args[0],
                             .model = a->model.v,
                             .output = a->output.set ? a->output.v : NULL,
                             .work = a->common.dir.set ? a->common.dir.v : "rebuild-work",
                             .from_text = a->from.v == 1,
                             .texts = a->text.v,
                             .n_texts = a->text.n,
                             .no_clobber = a->no_clobber};
    fh_status rc = fh_rebuild(&how, job, &report, err);
    return fh_finish_hiding(report, &a->common, "sections", rc, err);
}

const fh_command fh_cmd_rebuild = {"rebuild", "an artifact from its recipe, and whether it is the same", "RECIPE", 1, 1, options, sizeof(args), run,
    "RECIPE: the recipe.json of a release, or the release's directory.  From the assignment that it carries the artifact is the\n"
    "same bit for bit on any machine; from the text, with clustering and states made again, on the same CPU type and library\n"
    "versions.  Exit status 3 where it is not, or where the base model is another.",
    "fhtool rebuild smollm-1.0/recipe.json --model ~/models/SmolLM2-135M"};
