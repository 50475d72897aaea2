/* The options that say which secret key, and where its password comes from. */
#ifndef FH_CMD_PASSWORD_H
#define FH_CMD_PASSWORD_H

#include "artifacts/release.h"
#include "cmd/cmd.h"

#define FH_PASSWORD_OPT(at) \
    {"password-file", FH_OPT_STR, at, "FILE", "the key's password: its first line (default: $FHTOOL_PASSWORD, else asked on the terminal)", 0, 0, NULL}

/* A password in memory that is wiped; freed by fh_password_free.  twice: a new one, asked for again. */
fh_status fh_password_read(char **out, const fh_str *file, bool twice, fh_err *err);
void fh_password_free(char *password); /* accepts NULL */
/* The secret key in a file; its password is only asked for where it has one. */
fh_status fh_key_from(fh_key **out, const char *path, const fh_str *password_file, const fh_job *job, fh_err *err);

#endif
