#include "base/sysio.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

static const char *remedy(int e)
{
    switch (e) {
    case ENOENT: return "check the path";
    case ENOTDIR: return "a part of the path is not a directory: check the path";
    case EACCES:
    case EPERM: return "check owner and permissions of the file and its directory";
    case EROFS: return "the file system is mounted read-only: choose another place";
    case ENOSPC: return "free space on that file system or choose another place";
    case EDQUOT: return "the quota is used up: free space or choose another place";
    case EFBIG: return "raise the file size limit (ulimit -f) or choose another file system";
    case ENAMETOOLONG: return "choose a shorter name";
    case ELOOP: return "links point at each other: choose another path";
    case EISDIR: return "name a file, not a directory";
    case EMFILE:
    case ENFILE: return "raise the limit on open files (ulimit -n)";
    case ENOMEM: return "free memory or raise the limit (ulimit -v)";
    case EPIPE: return "the reader has gone";
    case ENXIO: return "nobody has the other end open";
    case ETXTBSY: return "it is a running program: choose another name";
    case EIO: return "the device failed: look at the system log";
    default: return "check the path and its file system";
    }
}

fh_status fh_fail_errno(fh_err *err, const char *path, const char *doing, int e)
{
    char room[128];
    fh_status code = e == ENOENT ? FH_ENOTFOUND : e == ENOMEM ? FH_ENOMEM : FH_EIO;
    return fh_fail(err, code, "%s: cannot %s: %s: %s", path, doing, strerror_r(e, room, sizeof room), remedy(e));
}

const char *fh_file_kind(mode_t mode)
{
    if (S_ISDIR(mode)) return "a directory";
    if (S_ISFIFO(mode)) return "a FIFO";
    if (S_ISSOCK(mode)) return "a socket";
    if (S_ISCHR(mode) || S_ISBLK(mode)) return "a device";
    return "a regular file";
}

int fh_sys_open(const char *path, int flags, mode_t mode)
{
    int fd;
    do fd = open(path, flags | O_CLOEXEC | O_NOCTTY, mode);
    while (fd < 0 && errno == EINTR);
    return fd;
}

char *fh_path_dir(const char *path)
{
    const char *slash = strrchr(path, '/');
    if (!slash) return fh_strdup(".");
    return fh_strndup(path, slash == path ? 1 : (size_t)(slash - path));
}
