/* list and fetch. */
#include "artifacts/release.h"
#include "cmd/cmd.h"

typedef struct source_args { fh_uint timeout; bool plain_http; } source_args;
#define SOURCE_OPTS(base)                                                                                                                                      \
    {"timeout", FH_OPT_UINT, (base) + offsetof(source_args, timeout), "S", "seconds until a web server that sends nothing counts as stalled (default 30)", 1,  \
     3600,      NULL},                                                                                                                                         \
    {                                                                                                                                                          \
        "plain-http", FH_OPT_FLAG, (base) + offsetof(source_args, plain_http), NULL, "allow http:// of other machines too", 0, 0, NULL                         \
    }

static fh_source_params source_of(const fh_common *c, const source_args *a)
{
    return (fh_source_params){.registry = c->args[0], .timeout = (unsigned)a->timeout.v, .plain_http = a->plain_http};
}

/* ---- list ------------------------------------------------------------------------------------------------------------- */

typedef struct list_args { fh_common common; source_args from; } list_args;
static const fh_opt list_options[] = {SOURCE_OPTS(offsetof(list_args, from)), FH_COMMON_OPTS, FH_OPT_END};

static fh_status list(void *p, const fh_job *job, fh_err *err)
{
    list_args *a = p;
    fh_source_params from = source_of(&a->common, &a->from);
    fh_json *report = NULL;
    fh_status rc = fh_registry_list(&from, job, &report, err);
    return fh_finish(report, &a->common, rc, err);
}

const fh_command fh_cmd_list = {"list",
                                "the releases of a registry",
                                "REGISTRY",
                                1,
                                1,
                                list_options,
                                sizeof(list_args),
                                list,
                                "REGISTRY is a directory, file://PATH or https://ADDRESS (http:// of this machine).  SSL_CERT_FILE: certificates to trust.",
                                "fhtool list https://models.example.org/fhead"};

/* ---- fetch ------------------------------------------------------------------------------------------------------------ */

typedef struct fetch_args { fh_common common; fh_str output, pubkey; source_args from; } fetch_args;
static const fh_opt fetch_options[] = {
    {"-o", FH_OPT_STR, offsetof(fetch_args, output), "DIR", "the directory to make (default ./NAME-VERSION)", 0, 0, NULL},
    {"pubkey", FH_OPT_STR, offsetof(fetch_args, pubkey), "KEY", "who must have signed it: a public key file, or its second line itself", 0, 0, NULL},
    SOURCE_OPTS(offsetof(fetch_args, from)), FH_COMMON_OPTS, FH_OPT_END,
};

static fh_status fetch(void *p, const fh_job *job, fh_err *err)
{
    fetch_args *a = p;
    fh_pubkey *key = NULL;
    fh_json *report = NULL;
    if (a->output.set && !*a->output.v) return fh_fail(err, FH_EUSAGE, "fetch: -o: an empty name is no directory");
    fh_status rc = a->pubkey.set ? fh_pubkey_open(&key, a->pubkey.v, err) : FH_OK;
    fh_fetch_params how = {.from = source_of(&a->common, &a->from), .what = a->common.args[1], .output = a->output.set ? a->output.v : NULL, .key = key};
    if (rc == FH_OK) rc = fh_fetch(&how, job, &report, err);
    fh_pubkey_close(key);
    return fh_finish(report, &a->common, rc, err);
}

const fh_command fh_cmd_fetch = {
    "fetch",
    "a release out of a registry, checked as it comes",
    "REGISTRY NAME[@VERSION]",
    2,
    2,
    fetch_options,
    sizeof(fetch_args),
    fetch,
    "Without a version the newest.  The directory appears whole or not at all; after an interruption the same command goes on.  Without --pubkey\n"
    "this is integrity, not authenticity.",
    "fhtool fetch https://models.example.org/fhead smollm@1.0 --pubkey team.key.pub"};
