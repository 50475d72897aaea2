/* base/sysio.h: what the files of base that talk to the system share; private to base. */
#ifndef FH_SYSIO_H
#define FH_SYSIO_H

#include "base/base.h"

#include <sys/stat.h>
#include <sys/types.h>

/* One line about errno value `e`, met while `doing` ("open", "write") something to `path`, and what to do about it. */
fh_status fh_fail_errno(fh_err *err, const char *path, const char *doing, int e);
/* "a directory", "a FIFO", ...: what a file that is not regular is. */
const char *fh_file_kind(mode_t mode);
/* open(2), again where a signal came between. */
int fh_sys_open(const char *path, int flags, mode_t mode);
/* The directory part of a path, "." where it has none; NULL when out of memory. */
char *fh_path_dir(const char *path);

#endif
