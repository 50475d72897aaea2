#include "base/fault.h"
#include "base/sysio.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER = 1 << 18 };

/* Two kinds: a regular file, written as `temp` and renamed to `path`; and what is there already and is no regular file (a
 * device, a FIFO, /dev/stdout), which is written in place, temp NULL. */
struct fh_out {
    int fd;
    bool keep; /* --no-clobber: nothing that is there may be replaced */
    char *name, *path, *dir, *temp; /* name: as the caller spelt it, for messages; path: links followed */
    off_t origin;                   /* where in the file our first byte lies; -1: a pipe, no way back */
    uint64_t flushed;               /* bytes appended that have left the buffer */
    size_t held;
    uint8_t *buffer;
};

static fh_status out_of_memory(fh_err *err, const char *path) { return fh_fail(err, FH_ENOMEM, "%s: out of memory", path); }

/* ---- writing ----------------------------------------------------------------------------------------------- */

/* write or pwrite (offset >= 0) whose failures are errors, not signals: past `ulimit -f` the system sends SIGXFSZ and to a pipe
 * without a reader SIGPIPE, both fatal.  They are held back for this thread and taken off it if our call raised them. */
static ssize_t quiet_write(int fd, const void *data, size_t n, off_t offset)
{
    sigset_t set, before, pending;
    sigemptyset(&set);
    sigaddset(&set, SIGXFSZ), sigaddset(&set, SIGPIPE);
    sigemptyset(&pending);
    sigpending(&pending);
    if (pthread_sigmask(SIG_BLOCK, &set, &before)) return -1;
    ssize_t done = offset < 0 ? write(fd, data, n) : pwrite(fd, data, n, offset);
    int e = errno, raised = done >= 0 ? 0 : e == EFBIG ? SIGXFSZ : e == EPIPE ? SIGPIPE : 0;
    if (raised && !sigismember(&pending, raised)) {
        struct timespec none = {0, 0};
        sigset_t one;
        sigemptyset(&one);
        sigaddset(&one, raised);
        while (sigtimedwait(&one, NULL, &none) < 0 && errno == EINTR) {}
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = e;
    return done;
}

static bool write_all(int fd, const uint8_t *data, size_t n, off_t offset)
{
    if (fh_fault_hit(FH_FAULT_WRITE)) { errno = ENOSPC; return false; }
    while (n) {
        ssize_t done = quiet_write(fd, data, fh_min(n, 1 << 30), offset);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return false;
        data += done;
        n -= (size_t)done;
        if (offset >= 0) offset += done;
    }
    return true;
}

static fh_status flush(fh_out *o, fh_err *err)
{
    if (!o->held) return FH_OK;
    if (!write_all(o->fd, o->buffer, o->held, -1)) return fh_fail_errno(err, o->name, "write", errno);
    o->flushed += o->held;
    o->held = 0;
    return FH_OK;
}

fh_status fh_out_write(fh_out *o, const void *data, size_t n, fh_err *err)
{
    if (n < BUFFER - o->held) {
        if (n) memcpy(o->buffer + o->held, data, n);
        o->held += n;
        return FH_OK;
    }
    fh_status rc = flush(o, err);
    if (rc < 0) return rc;
    if (!write_all(o->fd, data, n, -1)) return fh_fail_errno(err, o->name, "write", errno);
    o->flushed += n;
    return FH_OK;
}

fh_status fh_out_write_at(fh_out *o, uint64_t offset, const void *data, size_t n, fh_err *err)
{
    uint64_t end = fh_out_tell(o);
    if (offset > end || n > end - offset)
        return fh_fail(err, FH_EFAIL, "%s: bytes past the end were to be overwritten: please report this", o->name);
    if (o->origin < 0)
        return fh_fail(err, FH_EIO, "%s: is a pipe or only appended to, and this output goes back to what it wrote: name a file", o->name);
    fh_status rc = flush(o, err);
    if (rc < 0) return rc;
    return write_all(o->fd, data, n, o->origin + (off_t)offset) ? FH_OK : fh_fail_errno(err, o->name, "write", errno);
}

uint64_t fh_out_tell(const fh_out *o) { return o->flushed + o->held; }

/* ---- opening ----------------------------------------------------------------------------------------------- */

/* The descriptor that /dev/stdout, /dev/stderr, /dev/fd/N or /proc/self/fd/N stands for; -1 where it is none of these.  Opening
 * such a name would lose the position of a redirected file, so the descriptor itself is used. */
static int named_descriptor(const char *path)
{
    if (!strcmp(path, "/dev/stdout")) return STDOUT_FILENO;
    if (!strcmp(path, "/dev/stderr")) return STDERR_FILENO;
    const char *digits = !strncmp(path, "/dev/fd/", 8) ? path + 8 : !strncmp(path, "/proc/self/fd/", 14) ? path + 14 : NULL;
    if (!digits || !isdigit((unsigned char)*digits)) return -1;
    char *end;
    long n = strtol(digits, &end, 10);
    return *end || n > INT_MAX ? -1 : (int)n;
}

/* Follow links, also one to a file that is not there yet: the link stays and what it points to is replaced. */
static fh_status follow(char **out, const char *name, fh_err *err)
{
    char *path = fh_strdup(name);
    if (!path) return out_of_memory(err, name);
    for (int hops = 0; hops < 40; hops++) {
        char target[PATH_MAX];
        ssize_t n = named_descriptor(path) < 0 ? readlink(path, target, sizeof target) : -1;
        if (n < 0 || n == (ssize_t)sizeof target) { *out = path; return FH_OK; }
        char *dir = target[0] == '/' ? fh_strdup("") : fh_path_dir(path);
        char *text = dir ? fh_strndup(target, (size_t)n) : NULL;
        char *next = text ? fh_path_join(dir, text) : NULL;
        fh_free(dir);
        fh_free(text);
        fh_free(path);
        if (!next) return out_of_memory(err, name);
        path = next;
    }
    fh_free(path);
    return fh_fail_errno(err, name, "open", ELOOP);
}

/* The temporary, locked: one that is there and not locked was left by a process that died and had our number. */
static fh_status open_temp(fh_out *o, unsigned flags, fh_err *err)
{
    for (int tries = 0; tries < 3; tries++) {
        errno = ENOSPC;
        o->fd = fh_fault_hit(FH_FAULT_WRITE) ? -1 : fh_sys_open(o->temp, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, flags & FH_PRIVATE ? 0600 : 0666);
        if (o->fd >= 0) {
            (void)!flock(o->fd, LOCK_EX | LOCK_NB);
            struct stat st;
            if (flags & FH_OWNER_READS && !fstat(o->fd, &st)) (void)!fchmod(o->fd, (st.st_mode & 07777) | 0400);
            return FH_OK;
        }
        if (errno != EEXIST) break;
        int left = fh_sys_open(o->temp, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0);
        if (left >= 0) {
            bool alive = flock(left, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK;
            close(left);
            if (alive) return fh_fail(err, FH_EBUSY, "%s: is being written by somebody else: wait until that is done", o->name);
        }
        unlink(o->temp);
    }
    int e = errno;
    struct stat st;
    if (e == ENOENT && stat(o->dir, &st) && errno == ENOENT)
        return fh_fail(err, FH_ENOTFOUND, "%s: cannot create: the directory %s does not exist: make it first", o->name, o->dir);
    return fh_fail_errno(err, o->name, "create", e);
}

/* What is there and no regular file.  O_NONBLOCK: a FIFO without a reader is an error at once. */
static fh_status open_in_place(fh_out *o, int descriptor, fh_err *err)
{
    o->fd = descriptor >= 0 ? fcntl(descriptor, F_DUPFD_CLOEXEC, 3) : fh_sys_open(o->path, O_WRONLY | O_NONBLOCK, 0);
    if (o->fd < 0) return fh_fail_errno(err, o->name, "open", errno);
    int flags = fcntl(o->fd, F_GETFL);
    if (descriptor < 0 && flags >= 0) (void)fcntl(o->fd, F_SETFL, flags & ~O_NONBLOCK);
    o->origin = flags & O_APPEND ? -1 : lseek(o->fd, 0, SEEK_CUR); /* `>> file` sends every write to the end, pwrite too */
    return FH_OK;
}

static fh_status name_temp(fh_out *o, fh_err *err)
{
    const char *slash = strrchr(o->path, '/'), *base = slash ? slash + 1 : o->path;
    size_t keep = fh_min(strlen(base), 200); /* leaves room for the rest below NAME_MAX, 255 */
    char *file = fh_sprintf(".%.*s.%ld.tmp", (int)keep, base, (long)getpid());
    o->dir = fh_path_dir(o->path);
    o->temp = file && o->dir ? fh_path_join(o->dir, file) : NULL;
    fh_free(file);
    return o->temp ? FH_OK : out_of_memory(err, o->name);
}

static void out_free(fh_out *o)
{
    if (o->fd >= 0) close(o->fd);
    fh_free(o->name);
    fh_free(o->path);
    fh_free(o->dir);
    fh_free(o->temp);
    fh_free(o->buffer);
    fh_free(o);
}

fh_status fh_out_open(fh_out **out, const char *path, unsigned flags, fh_err *err)
{
    fh_status rc;
    struct stat st;
    if (!*path) return fh_fail(err, FH_EUSAGE, "an empty path names no output file");
    fh_out *o = fh_calloc(1, sizeof *o);
    if (!o) return out_of_memory(err, path);
    o->fd = -1;
    o->keep = flags & FH_NO_CLOBBER;
    o->name = fh_strdup(path);
    o->buffer = fh_malloc(BUFFER);
    if (!o->name || !o->buffer) { rc = out_of_memory(err, path); goto out; }
    if ((rc = follow(&o->path, path, err)) < 0) goto out;

    int descriptor = named_descriptor(o->path);
    bool there = !stat(o->path, &st);
    if (descriptor < 0 && ((there && S_ISDIR(st.st_mode)) || o->path[strlen(o->path) - 1] == '/')) {
        rc = fh_fail(err, FH_EIO, "%s: is a directory: name a file in it", path);
    } else if (descriptor >= 0 || (there && !S_ISREG(st.st_mode))) {
        rc = open_in_place(o, descriptor, err);
    } else if (there && o->keep) {
        rc = fh_fail(err, FH_EFAIL, "%s: is there already and --no-clobber was given: remove it or choose another name", path);
    } else if (there && faccessat(AT_FDCWD, o->path, W_OK, AT_EACCESS)) {
        rc = fh_fail_errno(err, path, "replace", errno); /* renaming could; but its owner took away the right to write */
    } else if ((rc = name_temp(o, err)) == FH_OK) {
        rc = open_temp(o, flags, err);
        if (rc < 0) fh_free(o->temp), o->temp = NULL;
    }
    if (rc < 0) goto out;
    *out = o;
    return FH_OK;
out:
    out_free(o);
    return rc;
}

fh_status fh_out_check(const char *path, unsigned flags, fh_err *err)
{
    struct stat st;
    fh_out *o;
    if (named_descriptor(path) >= 0 || (!stat(path, &st) && !S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode))) return FH_OK;
    fh_status rc = fh_out_open(&o, path, flags, err);
    if (rc == FH_OK) fh_out_abandon(o);
    return rc;
}

/* ---- ending ------------------------------------------------------------------------------------------------ */

/* Rename without replacing: renameat2 where the file system has it, else a hard link, which also fails where the name is taken. */
static int rename_new(const char *from, const char *to)
{
    if (!renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE)) return 0;
    if (errno != EINVAL && errno != ENOSYS) return -1;
    if (link(from, to)) return -1;
    unlink(from);
    return 0;
}

static void sync_dir(const char *dir)
{
    int fd = fh_sys_open(dir, O_RDONLY | O_DIRECTORY, 0);
    if (fd < 0) return;
    (void)!fsync(fd); /* the file is in its place: that cannot be taken back, so there is nothing to report */
    close(fd);
}

fh_status fh_out_commit(fh_out *o, fh_err *err)
{
    fh_status rc = flush(o, err);
    if (rc < 0) goto out;
    bool fault = fh_fault_hit(FH_FAULT_WRITE);
    if (fault) errno = EIO;
    /* EINVAL, ENOTSUP: pipes and some devices cannot be synced; EROFS is what some kernels say for them. */
    if (fault || (fsync(o->fd) && (o->temp || (errno != EINVAL && errno != ENOTSUP && errno != EROFS)))) {
        rc = fh_fail_errno(err, o->name, "write", errno);
        goto out;
    }
    int fd = o->fd;
    o->fd = -1;
    if (close(fd) && errno != EINTR) { rc = fh_fail_errno(err, o->name, "write", errno); goto out; }
    if (!o->temp) goto out;
    fault = fh_fault_hit(FH_FAULT_WRITE);
    if (fault) errno = EIO;
    if (fault || (o->keep ? rename_new(o->temp, o->path) : rename(o->temp, o->path))) {
        if (o->keep && errno == EEXIST)
            rc = fh_fail(err, FH_EFAIL, "%s: appeared while it was written and --no-clobber was given: choose another name", o->name);
        else
            rc = fh_fail_errno(err, o->name, "put it in place", errno);
        goto out;
    }
    sync_dir(o->dir);
    fh_free(o->temp);
    o->temp = NULL;
out:
    fh_out_abandon(o);
    return rc;
}

void fh_out_abandon(fh_out *o)
{
    if (!o) return;
    if (o->temp) unlink(o->temp);
    out_free(o);
}

fh_status fh_file_write(const char *path, const void *data, size_t n, unsigned flags, fh_err *err)
{
    fh_out *o;
    fh_status rc = fh_out_open(&o, path, flags, err);
    if (rc < 0) return rc;
    if ((rc = fh_out_write(o, data, n, err)) < 0) {
        fh_out_abandon(o);
        return rc;
    }
    return fh_out_commit(o, err);
}

static bool is_leftover(const char *name)
{
    size_t n = strlen(name);
    return name[0] == '.' && n > 5 && !strcmp(name + n - 4, ".tmp");
}

void fh_out_sweep(const char *dir)
{
    DIR *d = opendir(dir);
    if (!d) return;
    for (struct dirent *e; (e = readdir(d));)
        if (is_leftover(e->d_name)) unlinkat(dirfd(d), e->d_name, 0);
    closedir(d);
}
