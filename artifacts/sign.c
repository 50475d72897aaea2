/* artifacts/sign.c: what is signed of a release, an artifact or a file, and by which words it is bound. */
#include "artifacts/release_private.h"

/* Of a release SHA256SUMS, which holds the digest of everything else; it is verified first, as nobody should sign what is damaged. */
static fh_status release_target(char **target, char **comment, const char *dir, const fh_job *job, fh_err *err)
{
    fh_json *report = NULL;
    fh_status rc = fh_release_verify(dir, NULL, job, &report, err);
    if (rc == FH_OK) {
        *comment = fh_release_comment(fh_json_string(fh_json_get(report, "name")), fh_json_string(fh_json_get(report, "version")),
                                      fh_json_string(fh_json_get(report, "digest")));
        *target = fh_path_join(dir, FH_RELEASE_SUMS);
        if (!*comment || !*target) rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", dir);
    }
    fh_json_free(report);
    return rc;
}

static fh_status file_target(char **target, char **comment, const char *path, const fh_job *job, fh_err *err)
{
    size_t n = strlen(path);
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    fh_fhead *f = NULL;
    char hex[65];
    fh_status rc = FH_OK;
    if (n > 6 && !strcmp(path + n - 6, ".fhead")) {
        if ((rc = fh_fhead_open(&f, path, err)) == FH_OK && (rc = fh_fhead_verify(f, job, err)) == FH_OK)
            *comment = fh_sprintf("fhtool artifact %s %s", base, fh_fhead_digest(f));
        fh_fhead_close(f);
    } else if ((rc = fh_file_sha256(hex, NULL, path, job, err)) == FH_OK) {
        *comment = fh_sprintf("fhtool file %s sha256 %s", base, hex);
    }
    if (rc < 0) return rc;
    *target = fh_strdup(path);
    return *comment && *target ? FH_OK : fh_fail(err, FH_ENOMEM, "%s: out of memory", path);
}

fh_status fh_sign(const fh_key *k, const char *path, const char *comment, const fh_job *job, fh_json **report, fh_err *err)
{
    char *target = NULL, *signature = NULL, *binding = NULL;
    bool release = fh_is_release(path);
    *report = NULL;
    if (release && comment)
        return fh_fail(err, FH_EUSAGE, "--comment: the comment of a release's signature binds its name, version and artifact, and is not chosen");
    fh_status rc = release ? release_target(&target, &binding, path, job, err) : file_target(&target, &binding, path, job, err);
    if (rc == FH_OK && !(signature = fh_sprintf("%s.minisig", target))) rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", path);
    if (rc == FH_OK && (rc = fh_sign_file(k, target, signature, comment ? comment : binding, job, err)) == FH_OK) {
        fh_json *j = fh_json_object();
        fh_json_add_string(j, "file", target);
        fh_json_add_string(j, "signature", signature);
        fh_json_add_string(j, "key", fh_key_id(k));
        fh_json_add_string(j, "comment", comment ? comment : binding);
        *report = j;
    }
    fh_free(target);
    fh_free(signature);
    fh_free(binding);
    return rc;
}
