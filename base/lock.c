#include "base/sysio.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <unistd.h>

/* The lock is flock's, which the system drops when its holder dies, however it dies; the file's text only says who that is.
 * The file stays: removing it would let two processes hold locks on two files of one name. */
struct fh_lock { int fd; };

static fh_status busy(fh_err *err, const char *path, int fd)
{
    char text[32] = "";
    ssize_t n = pread(fd, text, sizeof text - 1, 0);
    long pid = n > 0 ? strtol(text, NULL, 10) : 0;
    if (pid <= 0) return fh_fail(err, FH_EBUSY, "%s: another process holds the lock: wait until it is done", path);
    return fh_fail(err, FH_EBUSY, "%s: process %ld holds the lock: wait until it is done, or stop it", path, pid);
}

fh_status fh_lock_take(fh_lock **out, const char *path, fh_err *err)
{
    fh_status rc = FH_OK;
    struct stat st, named;
    char text[32];
    int fd = -1, locked;
    fh_lock *lock = fh_malloc(sizeof *lock);
    if (!lock) return fh_fail(err, FH_ENOMEM, "%s: out of memory", path);
    for (;;) {
        fd = fh_sys_open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK, 0666);
        if (fd < 0) { rc = fh_fail_errno(err, path, "open the lock", errno); goto out; }
        if (fstat(fd, &st)) { rc = fh_fail_errno(err, path, "open the lock", errno); goto out; }
        if (!S_ISREG(st.st_mode)) {
            rc = fh_fail(err, FH_EIO, "%s: is %s where a lock file should be: remove it", path, fh_file_kind(st.st_mode));
            goto out;
        }
        /* The next run of the same user has to open it too, whatever the umask of this one. */
        if ((st.st_mode & 0600) != 0600 && st.st_uid == geteuid()) (void)!fchmod(fd, (st.st_mode & 07777) | 0600);
        do locked = flock(fd, LOCK_EX | LOCK_NB);
        while (locked && errno == EINTR);
        if (locked) { rc = errno == EWOULDBLOCK ? busy(err, path, fd) : fh_fail_errno(err, path, "lock", errno); goto out; }
        if (!stat(path, &named) && named.st_ino == st.st_ino && named.st_dev == st.st_dev) break;
        close(fd); /* removed, perhaps with its directory, between opening and locking: the name is another file's now */
    }
    int n = snprintf(text, sizeof text, "%ld\n", (long)getpid());
    if (ftruncate(fd, 0) || pwrite(fd, text, (size_t)n, 0) != n) { /* a full disk: the lock holds all the same, without a name */ }
    lock->fd = fd;
    *out = lock;
    return FH_OK;
out:
    if (fd >= 0) close(fd);
    fh_free(lock);
    return rc;
}

void fh_lock_release(fh_lock *l)
{
    if (!l) return;
    if (ftruncate(l->fd, 0)) { /* only the note of who held it stays */ }
    close(l->fd);
    fh_free(l);
}
