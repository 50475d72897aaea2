/* keygen and sign. */
#include "cmd/password.h"

#include <string.h>

/* ---- keygen -------------------------------------------------------------------------------------------------------- */

typedef struct keygen_args { fh_common common; fh_str output, password_file; fh_pick cost; bool no_password; } keygen_args;
static const fh_opt keygen_options[] = {
    {"-o", FH_OPT_STR, offsetof(keygen_args, output), "FILE", "the secret key to write; the public one is FILE.pub", 0, 0, NULL},
    FH_PASSWORD_OPT(offsetof(keygen_args, password_file)),
    {"no-password", FH_OPT_FLAG, offsetof(keygen_args, no_password), NULL, "leave the secret key unencrypted", 0, 0, NULL},
    {"cost", FH_OPT_PICK, offsetof(keygen_args, cost), "C",
     "of trying a password: sensitive takes 1 GiB of memory as minisign's keys do, interactive 16 MiB (default sensitive)", 0, 0, "sensitive,interactive"},
    FH_COMMON_OPTS,
    FH_OPT_END,
};

static fh_status keygen(void *p, const fh_job *job, fh_err *err)
{
    keygen_args *a = p;
    char id[17], *password = NULL, *pub = NULL;
    fh_json *report = NULL;
    if (!a->output.set) return fh_fail(err, FH_EUSAGE, "keygen: -o is missing: where shall the secret key go?");
    if (a->no_password && a->password_file.set) return fh_fail(err, FH_EUSAGE, "keygen: --no-password and --password-file: give one of them");
    fh_status rc = fh_sign_available(err);
    if (rc == FH_OK && !a->no_password) rc = fh_password_read(&password, &a->password_file, true, err);
    if (rc == FH_OK && !(pub = fh_sprintf("%s.pub", a->output.v))) rc = fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc == FH_OK) rc = fh_key_make(a->output.v, pub, password, a->cost.v ? FH_KEY_COST_INTERACTIVE : FH_KEY_COST_SENSITIVE, id, err);
    if (rc == FH_OK) {
        report = fh_json_object();
        fh_json_add_string(report, "key", id);
        fh_json_add_string(report, "secret", a->output.v);
        fh_json_add_string(report, "public", pub);
        fh_json_add_bool(report, "encrypted", password != NULL);
    }
    fh_password_free(password);
    fh_free(pub);
    return fh_finish(report, &a->common, rc, err);
}

const fh_command fh_cmd_keygen = {
    "keygen",
    "a pair of keys for signing releases (minisign's format)",
    "",
    0,
    0,
    keygen_options,
    sizeof(keygen_args),
    keygen,
    "The secret key is written with mode 0600; no key is ever replaced.  Give the .pub to everybody, by another way than the releases.",
    "fhtool keygen -o team.key"};

/* ---- sign ------------------------------------------------------------------------------------------------------------ */

typedef struct sign_args { fh_common common; fh_str key, comment, password_file; } sign_args;
static const fh_opt sign_options[] = {
    {"key", FH_OPT_STR, offsetof(sign_args, key), "FILE", "the secret key", 0, 0, NULL},
    FH_PASSWORD_OPT(offsetof(sign_args, password_file)),
    {"comment", FH_OPT_STR, offsetof(sign_args, comment), "TEXT",
     "the trusted comment (default: one that binds what is signed; of a release no other is accepted)", 0, 0, NULL},
    FH_COMMON_OPTS,
    FH_OPT_END,
};

static fh_status sign(void *p, const fh_job *job, fh_err *err)
{
    sign_args *a = p;
    fh_key *key = NULL;
    fh_json *report = NULL;
    if (!a->key.set) return fh_fail(err, FH_EUSAGE, "sign: --key is missing: which secret key? (fhtool keygen makes one)");
    fh_status rc = fh_key_from(&key, a->key.v, &a->password_file, job, err);
    if (rc == FH_OK) rc = fh_sign(key, a->common.args[0], a->comment.set ? a->comment.v : NULL, job, &report, err);
    fh_key_close(key);
    return fh_finish(report, &a->common, rc, err);
}

const fh_command fh_cmd_sign = {"sign", "sign a release, an artifact or any file", "RELEASE-or-FILE", 1, 1, sign_options, sizeof(sign_args), sign,
    "Of a release SHA256SUMS is signed, and with it every file; the trusted comment binds name, version and artifact.  The minisign program\n"
    "verifies such signatures, and 'fhtool verify --pubkey' those of minisign.", "fhtool sign registry/prose-7m/1.0 --key team.key"};
