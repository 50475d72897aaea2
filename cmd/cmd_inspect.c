/* inspect and verify. */
#include "artifacts/release.h"
#include "cmd/cmd.h"

#include <string.h>

typedef struct args { fh_common common; fh_str pubkey; } args;
static const fh_opt options[] = {FH_COMMON_OPTS, FH_OPT_END};
static const fh_opt verify_options[] = {
    {"pubkey", FH_OPT_STR, offsetof(args, pubkey), "KEY", "who must have signed it: a public key file, or its second line itself", 0, 0, NULL},
    FH_COMMON_OPTS, FH_OPT_END,
};

/* FILE.minisig, where a key is given; *comment is freed by the caller. */
static fh_status check_signature(const char *file, const fh_pubkey *key, char **comment, const fh_job *job, fh_err *err)
{
    char *signature = fh_sprintf("%s.minisig", file);
    if (!signature) return fh_fail(err, FH_ENOMEM, "out of memory");
    fh_status rc = fh_sign_check(key, file, signature, comment, job, err);
    fh_free(signature);
    return rc;
}

/* A file of another kind: only that it is what the key signed. */
static fh_status signed_file(const args *a, const fh_pubkey *key, const fh_job *job, fh_err *err)
{
    char *comment = NULL;
    fh_json *report = NULL;
    fh_status rc = check_signature(a->common.args[0], key, &comment, job, err);
    if (rc == FH_OK) {
        report = fh_json_object();
        fh_json_add_string(report, "file", a->common.args[0]);
        fh_json_add_string(report, "signed_by", fh_pubkey_id(key));
        fh_json_add_string(report, "comment", comment);
        fh_json_add_bool(report, "verified", true);
    }
    fh_free(comment);
    return fh_finish(report, &a->common, rc, err);
}

static bool named_fhead(const char *path)
{
    size_t n = strlen(path);
    return n > 6 && !strcmp(path + n - 6, ".fhead");
}

static fh_status look(const args *a, bool verify, const fh_pubkey *key, const fh_job *job, fh_err *err)
{
    fh_fhead *f = NULL;
    fh_json *report = NULL;
    char *comment = NULL;
    double began = fh_now();
    fh_status rc = key ? check_signature(a->common.args[0], key, &comment, job, err) : FH_OK;
    if (rc == FH_OK) rc = fh_fhead_open(&f, a->common.args[0], err);
    if (rc == FH_OK && verify) rc = fh_artifact_verify(f, job, err);
    if (rc == FH_OK) rc = fh_artifact_info(f, &report, err);
    if (rc == FH_OK && key) {
        fh_json_add_string(report, "signed_by", fh_pubkey_id(key));
        fh_json_add_string(report, "comment", comment);
    }
    if (rc == FH_OK && verify) {
        fh_json_add_bool(report, "verified", true);
        fh_json_add_double(report, "seconds", fh_now() - began);
    }
    rc = fh_finish_hiding(report, &a->common, verify ? "sections" : NULL, rc, err);
    fh_fhead_close(f);
    fh_free(comment);
    return rc;
}

static fh_status inspect(void *p, const fh_job *job, fh_err *err) { return look(p, false, NULL, job, err); }

static fh_status verify(void *p, const fh_job *job, fh_err *err)
{
    const args *a = p;
    fh_pubkey *key = NULL;
    fh_json *report = NULL;
    fh_status rc = a->pubkey.set ? fh_pubkey_open(&key, a->pubkey.v, err) : FH_OK;
    if (rc < 0) return rc;
    if (fh_is_release(a->common.args[0])) {
        if (!key) fh_release_say_unsigned(a->common.args[0], job);
        rc = fh_release_verify(a->common.args[0], key, job, &report, err);
        rc = fh_finish(report, &a->common, rc, err);
    } else if (fh_vllm_is_dir(a->common.args[0])) {
        rc = key ? fh_fail(err, FH_EUSAGE, "verify: --pubkey: directories for the vLLM plugin carry no signature: sign the release or the artifact they were made from")
                 : fh_vllm_verify(a->common.args[0], job, &report, err);
        rc = fh_finish(report, &a->common, rc, err);
    } else {
        rc = key && !named_fhead(a->common.args[0]) ? signed_file(a, key, job, err) : look(a, true, key, job, err);
    }
    fh_pubkey_close(key);
    return rc;
}

const fh_command fh_cmd_inspect = {"inspect", "what is in an artifact (its header is checked)", "FILE", 1, 1, options, sizeof(args), inspect, NULL, "fhtool inspect model.fhead"};
const fh_command fh_cmd_verify = {"verify", "check every byte of an artifact, a release, or a directory for the vLLM plugin", "FILE-or-DIR", 1, 1, verify_options, sizeof(args), verify,
    "Checks digests, padding, permutation, scales, rows and bundled parts; of a release also what is missing, extra, renamed or altered;\n"
    "of a directory for the vLLM plugin every rule of that runtime, and that its clustering belongs to its head.\n"
    "This is integrity, not authenticity, unless --pubkey says who must have signed it (FILE.minisig, or the release's SHA256SUMS.minisig).", "fhtool verify model.fhead"};
