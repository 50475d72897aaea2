#include "artifacts/release.h"
#include "cmd/cmd.h"

typedef struct args { fh_common common; fh_uint worst; fh_str hidden; } args;
static const fh_opt options[] = {
    {"worst", FH_OPT_UINT, offsetof(args, worst), "N", "worst-affected tokens that are listed (default 16)", 0, 100000, NULL},
    {"hidden", FH_OPT_STR, offsetof(args, hidden), "STATES", "measure both on recorded states of their model: containment, agreement, mass, tokens lost", 0, 0, NULL},
    FH_COMMON_OPTS, FH_OPT_END,
};

static fh_status run(void *p, const fh_job *job, fh_err *err)
{
    args *a = p;
    fh_json *report = NULL;
    fh_status rc = fh_artifact_diff(a->common.args[0], a->common.args[1], a->hidden.set ? a->hidden.v : NULL, a->worst.set ? (size_t)a->worst.v : 16, job, &report, err);
    return fh_finish(report, &a->common, rc, err);
}

const fh_command fh_cmd_diff = {"diff", "what moved between two artifacts or releases, as meaning", "A B", 2, 2, options, sizeof(args), run,
    "Settings and promise that differ; clusters with the same tokens; tokens whose home is another; hot tokens that came and went; and, with each\n"
    "token's own row in place of states, how many clusters come before its home: 'lost' are those found within P of A and not of B.",
    "fhtool diff registry/smollm/1.0 smollm-new.fhead"};
