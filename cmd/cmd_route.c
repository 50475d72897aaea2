#include "cmd/cmd.h"

typedef struct args { fh_common common; fh_pick routing; fh_uint moves; bool unit; } args;
static const fh_opt options[] = {
    {"routing", FH_OPT_PICK, offsetof(args, routing), "R", "how centroids are made (default: learned where there are states, else raw)", 0, 0, "mean,weighted,raw,learned"},
    FH_MOVES_OPT(offsetof(args, moves)),
    {"unit", FH_OPT_FLAG, offsetof(args, unit), NULL, "hold centroids at unit length, for runtimes that route by cosine", 0, 0, NULL},
    FH_DIR_OPT, FH_COMMON_OPTS, FH_OPT_END,
};
static const char *const names[] = {"mean", "weighted", "raw", "learned"};

static fh_status run(void *p, const fh_job *job, fh_err *err)
{
    args *a = p;
    fh_stage_env e;
    fh_json *report = NULL;
    const fh_stage_route_params how = {.routing = a->routing.set ? names[a->routing.v] : NULL, .unit = a->unit, .moves = (unsigned)a->moves.v};
    fh_status rc = fh_open_work(&e, &a->common, false, job, err);
    if (rc == FH_OK) rc = fh_stage_route(&e, &how, &report, err);
    rc = fh_finish(report, &a->common, rc, err);
    fh_work_close(e.work);
    return rc;
}

const fh_command fh_cmd_route = {"route", "choose the centroids by which clusters are found", "", 0, 0, options, sizeof(args), run,
    "mean: normalised sums of unit rows; raw: means of rows; weighted: means weighted by how often tokens were said (needs states);\nlearned: the dense head's cluster masses distilled into the centroids (needs states).\n--moves: halfway, tokens change places with others where these centroids expect both more; the result then has an assignment of its own.\nA routing asked for by name is kept by calibrate, which otherwise tries all of them.",
    "fhtool route -C work --routing weighted"};
