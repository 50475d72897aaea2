#include "cmd/cmd.h"

typedef struct args { fh_common common; } args;
static const fh_opt options[] = {FH_COMMON_OPTS, FH_OPT_END};

static fh_status look(const args *a, bool verify, const fh_job *job, fh_err *err)
{
    fh_fhead *f = NULL;
    fh_json *report = NULL;
    double began = fh_now();
    fh_status rc = fh_fhead_open(&f, a->common.args[0], err);
    if (rc == FH_OK && verify) rc = fh_artifact_verify(f, job, err);
    if (rc == FH_OK) rc = fh_artifact_info(f, &report, err);
    if (rc == FH_OK && verify) {
        fh_json_add_bool(report, "verified", true);
        fh_json_add_double(report, "seconds", fh_now() - began);
    }
    rc = fh_finish_hiding(report, &a->common, verify ? "sections" : NULL, rc, err);
    fh_fhead_close(f);
    return rc;
}

static fh_status inspect(void *p, const fh_job *job, fh_err *err) { return look(p, false, job, err); }
static fh_status verify(void *p, const fh_job *job, fh_err *err) { return look(p, true, job, err); }

const fh_command fh_cmd_inspect = {"inspect", "what is in an artifact (its header is checked)", "FILE", 1, 1, options, sizeof(args), inspect, NULL, "fhtool inspect model.fhead"};
const fh_command fh_cmd_verify = {"verify", "check every byte of an artifact", "FILE", 1, 1, options, sizeof(args), verify,
    "Checks digests, padding, permutation, scales, rows and bundled parts.  This is integrity, not authenticity.", "fhtool verify model.fhead"};
