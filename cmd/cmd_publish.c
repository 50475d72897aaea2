#include "cmd/password.h"

typedef struct args {
    fh_common common;
    fh_str to, name, version, base_model, license, license_file, eval_dataset, key, password_file;
    bool oci, dry_run;
} args;
static const fh_opt options[] = {
    {"to", FH_OPT_STR, offsetof(args, to), "DIR", "the registry: a directory, made where missing", 0, 0, NULL},
    {"name", FH_OPT_STR, offsetof(args, name), "N", "of the release", 0, 0, NULL},
    {"version", FH_OPT_STR, offsetof(args, version), "V", "of the release; one that is there is never overwritten", 0, 0, NULL},
    {"base-model", FH_OPT_STR, offsetof(args, base_model), "ID", "the model it is made from, as the Hub names it", 0, 0, NULL},
    {"license", FH_OPT_STR, offsetof(args, license), "ID", "as the Hub spells it (default other)", 0, 0, NULL},
    {"license-file", FH_OPT_STR, offsetof(args, license_file), "FILE", "its text, which goes along as LICENSE", 0, 0, NULL},
    {"eval-dataset", FH_OPT_STR, offsetof(args, eval_dataset), "ID", "the Hub's name of the text the promise was measured on (default: the text's own)", 0, 0,
     NULL},
    {"oci", FH_OPT_FLAG, offsetof(args, oci), NULL, "an OCI image layout beside it (ModelPack media types)", 0, 0, NULL},
    {"key", FH_OPT_STR, offsetof(args, key), "FILE", "sign it with this secret key", 0, 0, NULL},
    FH_PASSWORD_OPT(offsetof(args, password_file)),
    {"dry-run", FH_OPT_FLAG, offsetof(args, dry_run), NULL, "list what would be written, and write nothing", 0, 0, NULL},
    FH_COMMON_OPTS,
    FH_OPT_END,
};

static fh_status run(void *p, const fh_job *job, fh_err *err)
{
    args *a = p;
    fh_key *key = NULL;
    fh_json *report = NULL;
    fh_status rc = FH_OK;
    if (!a->to.set || !*a->to.v) return fh_fail(err, FH_EUSAGE, "publish: --to is missing: into which registry?");
    if (!a->name.set || !a->version.set) return fh_fail(err, FH_EUSAGE, "publish: --name and --version are needed: what shall it be called?");
    fh_publish_params how = {.artifact = a->common.args[0],
                             .registry = a->to.v,
                             .name = a->name.v,
                             .version = a->version.v,
                             .base_model = a->base_model.v,
                             .license = a->license.v,
                             .license_file = a->license_file.v,
                             .eval_dataset = a->eval_dataset.v,
                             .oci = a->oci,
                             .dry_run = a->dry_run};
    if (a->key.set && !a->dry_run && (rc = fh_key_from(&key, a->key.v, &a->password_file, job, err)) < 0) return rc;
    how.key = key;
    rc = fh_publish(&how, job, &report, err);
    fh_key_close(key);
    return fh_finish(report, &a->common, rc, err);
}

const fh_command fh_cmd_publish = {"publish", "an artifact into a registry, with card, recipe and checksums", "FILE", 1, 1, options, sizeof(args), run,
    "A registry is a directory with index.json; on a share or behind a web server it serves 'fhtool list' and 'fhtool fetch'.",
    "fhtool publish model.fhead --to registry --name smollm --version 1.0 --base-model HuggingFaceTB/SmolLM2-135M --license apache-2.0"};
