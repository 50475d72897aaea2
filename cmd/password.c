#include "cmd/password.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

enum { MOST = 1024 };

void fh_password_free(char *password)
{
    if (!password) return;
    explicit_bzero(password, strlen(password));
    fh_free(password);
}

/* A line typed on the terminal, which does not show it; neither standard input nor output is touched. */
static fh_status ask(char **out, const char *prompt, fh_err *err)
{
    struct termios before, silent;
    char line[MOST + 2];
    size_t n = 0;
    ssize_t got = 0;
    int tty = open("/dev/tty", O_RDWR | O_CLOEXEC | O_NOCTTY);
    if (tty < 0) return fh_fail(err, FH_EUSAGE, "this key has a password and there is no terminal to ask for it: give --password-file or FHTOOL_PASSWORD");
    if (tcgetattr(tty, &before)) { close(tty); return fh_fail(err, FH_EIO, "/dev/tty: %s", strerror(errno)); }
    silent = before;
    silent.c_lflag &= ~(tcflag_t)ECHO;
    (void)!tcsetattr(tty, TCSAFLUSH, &silent);
    (void)!write(tty, prompt, strlen(prompt));
    while (n <= MOST && (got = read(tty, line + n, 1)) == 1 && line[n] != '\n') n++;
    (void)!write(tty, "\n", 1);
    (void)!tcsetattr(tty, TCSAFLUSH, &before);
    close(tty);
    fh_status rc = got < 0    ? fh_fail(err, errno == EINTR ? FH_EINTERRUPTED : FH_EIO, "no password was typed")
                   : n > MOST ? fh_fail(err, FH_EUSAGE, "a password of more than %d bytes", MOST)
                              : FH_OK;
    if (rc == FH_OK && !(*out = fh_strndup(line, n))) rc = fh_fail(err, FH_ENOMEM, "out of memory");
    explicit_bzero(line, sizeof line);
    return rc;
}

static fh_status from_file(char **out, const char *path, fh_err *err)
{
    char *text = NULL;
    size_t len = 0;
    fh_status rc = fh_file_read(&text, &len, path, MOST + 2, err);
    if (rc < 0) return rc;
    size_t n = strcspn(text, "\r\n");
    if (strlen(text) != len) rc = fh_fail(err, FH_EFORMAT, "%s: holds a NUL byte: it is no password", path);
    else if (!(*out = fh_strndup(text, n))) rc = fh_fail(err, FH_ENOMEM, "out of memory");
    explicit_bzero(text, len);
    fh_free(text);
    return rc;
}

fh_status fh_password_read(char **out, const fh_str *file, bool twice, fh_err *err)
{
    const char *environment = getenv("FHTOOL_PASSWORD");
    char *again = NULL;
    fh_status rc;
    *out = NULL;
    if (file->set) rc = from_file(out, file->v, err);
    else if (environment) rc = (*out = fh_strdup(environment)) ? FH_OK : fh_fail(err, FH_ENOMEM, "out of memory");
    else {
        rc = ask(out, "password: ", err);
        if (rc == FH_OK && twice && (rc = ask(&again, "the same again: ", err)) == FH_OK && strcmp(*out, again))
            rc = fh_fail(err, FH_EUSAGE, "the two passwords differ");
        fh_password_free(again);
    }
    if (rc == FH_OK && !**out) rc = fh_fail(err, FH_EUSAGE, "the password is empty");
    if (rc < 0) fh_password_free(*out), *out = NULL;
    return rc;
}

fh_status fh_key_from(fh_key **out, const char *path, const fh_str *password_file, const fh_job *job, fh_err *err)
{
    bool encrypted = false;
    char *password = NULL;
    *out = NULL;
    fh_status rc = fh_key_look(path, &encrypted, job, err);
    if (rc == FH_OK && encrypted) rc = fh_password_read(&password, password_file, false, err);
    if (rc == FH_OK) rc = fh_key_open(out, path, password, NULL, err); /* what there is to say about the file was said */
    fh_password_free(password);
    return rc;
}
