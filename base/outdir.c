/* base/outdir.c: a directory that appears whole or not at all.
 *
 * It grows beside its final name, in ".NAME.PID.tmp", and is renamed when all of it is on the disk.  A flock on the directory itself says that
 * somebody is at work there: the system drops it when that process dies, however it dies, and the next run clears away what was left.
 */
#include "base/fault.h"
#include "base/sysio.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

enum { PIECE = 4 << 20 }; /* bytes copied between two looks at whether to stop */

struct fh_outdir {
    int fd; /* of the temporary, locked */
    char *path, *parent, *temp; /* path: without slashes at its end */
    bool resumed;               /* the temporary is left behind for the next run */
};

static fh_status out_of_memory(fh_err *err, const char *path) { return fh_fail(err, FH_ENOMEM, "%s: out of memory", path); }

/* ---- whole trees, of our own making: their depth is ours ------------------------------------------------------------ */

static int remove_entry(const char *path, const struct stat *st, int kind, struct FTW *at)
{
    (void)st, (void)at;
    return kind == FTW_DP || kind == FTW_D ? rmdir(path) : unlink(path);
}

static void remove_tree(const char *path) { (void)nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS); }

static void sync_dir(const char *path)
{
    int fd = fh_sys_open(path, O_RDONLY | O_DIRECTORY, 0);
    if (fd < 0) return;
    (void)!fsync(fd); /* some file systems cannot sync a directory: then there is no more to be had */
    close(fd);
}

static int sync_entry(const char *path, const struct stat *st, int kind, struct FTW *at)
{
    (void)st, (void)at;
    if (kind == FTW_D) sync_dir(path);
    return 0;
}

/* ---- opening -------------------------------------------------------------------------------------------------------- */

static bool empty_dir(const char *path)
{
    DIR *d = opendir(path);
    bool empty = d != NULL;
    for (struct dirent *e; d && empty && (e = readdir(d));) empty = !strcmp(e->d_name, ".") || !strcmp(e->d_name, "..");
    if (d) closedir(d);
    return empty;
}

/* Is the name free, or taken by what may be replaced? */
static fh_status judge_place(const char *path, unsigned flags, fh_err *err)
{
    struct stat st;
    if (lstat(path, &st)) return FH_OK;
    if (!S_ISDIR(st.st_mode)) return fh_fail(err, FH_EIO, "%s: is there and is no directory: choose another name", path);
    if (flags & FH_NO_CLOBBER) return fh_fail(err, FH_EFAIL, "%s: is there already and --no-clobber was given: remove it or choose another name", path);
    if (!(flags & FH_REPLACE_DIR) && !empty_dir(path)) return fh_fail(err, FH_EFAIL, "%s: is there already and is not empty: remove it or choose another name", path);
    return FH_OK;
}

/* Remove what runs that died left of this name: ".NAME.<digits>.tmp" that nobody holds. */
static void sweep(const char *parent, const char *base)
{
    DIR *d = opendir(parent);
    size_t n = strlen(base);
    for (struct dirent *e; d && (e = readdir(d));) {
        const char *rest = e->d_name + 1 + n;
        if (e->d_name[0] != '.' || strncmp(e->d_name + 1, base, n) || *rest++ != '.') continue;
        size_t digits = strspn(rest, "0123456789");
        if (!digits || strcmp(rest + digits, ".tmp")) continue;
        int fd = openat(dirfd(d), e->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0) continue;
        char *path = flock(fd, LOCK_EX | LOCK_NB) ? NULL : fh_path_join(parent, e->d_name);
        if (path) remove_tree(path);
        fh_free(path);
        close(fd);
    }
    if (d) closedir(d);
}

/* key NULL: a temporary of this process. */
static fh_status open_dir(fh_outdir **out, const char *path, const char *key, unsigned flags, fh_err *err)
{
    fh_status rc;
    char *name = NULL;
    size_t n = strlen(path);
    if (!n) return fh_fail(err, FH_EUSAGE, "an empty path names no output directory");
    fh_outdir *o = fh_calloc(1, sizeof *o);
    if (!o) return out_of_memory(err, path);
    o->fd = -1, o->resumed = key;
    while (n > 1 && path[n - 1] == '/') n--;
    o->path = fh_strndup(path, n);
    o->parent = o->path ? fh_path_dir(o->path) : NULL;
    if (!o->parent) { rc = out_of_memory(err, path); goto out; }
    const char *slash = strrchr(o->path, '/'), *base = slash ? slash + 1 : o->path;
    if (!*base || !strcmp(base, ".") || !strcmp(base, "..")) { rc = fh_fail(err, FH_EUSAGE, "%s: is no name for a new directory: name one", path); goto out; }
    if ((rc = judge_place(o->path, flags, err)) < 0) goto out;
    if (!fh_file_exists(o->parent)) { rc = fh_fail(err, FH_ENOTFOUND, "%s: cannot create: the directory %s does not exist: make it first", path, o->parent); goto out; }
    int keep = (int)fh_min(strlen(base), 200);
    name = key ? fh_sprintf(".%.*s.%s.part", keep, base, key) : fh_sprintf(".%.*s.%ld.tmp", keep, base, (long)getpid());
    o->temp = name ? fh_path_join(o->parent, name) : NULL;
    if (!o->temp) { rc = out_of_memory(err, path); goto out; }
    char *kept = fh_strndup(base, 200);
    if (!kept) { fh_free(o->temp), o->temp = NULL; rc = out_of_memory(err, path); goto out; }
    sweep(o->parent, kept); /* one of a process that had our number among them */
    fh_free(kept);
    errno = ENOSPC;
    if (fh_fault_hit(FH_FAULT_WRITE) || (mkdir(o->temp, 0777) && !(key && errno == EEXIST))) {
        rc = errno == EEXIST ? fh_fail(err, FH_EBUSY, "%s: is being written by somebody else: wait until that is done", path) : fh_fail_errno(err, path, "create", errno);
        fh_free(o->temp), o->temp = NULL;
        goto out;
    }
    struct stat st, named;
    if (!stat(o->temp, &st) && (st.st_mode & 0700) != 0700) (void)chmod(o->temp, (st.st_mode & 07777) | 0700); /* under any umask we have to write in it */
    o->fd = fh_sys_open(o->temp, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0);
    /* Between making and locking it another run that begins may have taken it for a leftover. */
    if (o->fd < 0 || flock(o->fd, LOCK_EX | LOCK_NB) || fstat(o->fd, &st) || stat(o->temp, &named) || st.st_ino != named.st_ino || st.st_dev != named.st_dev) {
        rc = fh_fail(err, FH_EBUSY, "%s: is being written by somebody else: wait until that is done", path);
        if (key) fh_free(o->temp), o->temp = NULL; /* somebody's who is at work in it */
        goto out;
    }
    if (key) fh_out_sweep(o->temp);
    *out = o, o = NULL;
    rc = FH_OK;
out:
    fh_free(name);
    fh_outdir_abandon(o);
    return rc;
}

fh_status fh_outdir_open(fh_outdir **out, const char *path, unsigned flags, fh_err *err) { return open_dir(out, path, NULL, flags, err); }
fh_status fh_outdir_resume(fh_outdir **out, const char *path, const char *key, fh_err *err) { return open_dir(out, path, key, 0, err); }

const char *fh_outdir_path(const fh_outdir *o) { return o->temp; }

/* ---- ending --------------------------------------------------------------------------------------------------------- */

fh_status fh_outdir_commit(fh_outdir *o, unsigned flags, fh_err *err)
{
    fh_status rc = judge_place(o->path, flags, err);
    if (rc < 0) goto out;
    (void)nftw(o->temp, sync_entry, 16, FTW_PHYS); /* the files were synced as they were written */
    bool fault = fh_fault_hit(FH_FAULT_WRITE), exchange = fh_file_exists(o->path) && !empty_dir(o->path);
    if (fault) errno = EIO;
    /* Onto an empty directory rename goes by itself; one that holds something changes places with ours and is removed under our name. */
    unsigned how = exchange ? RENAME_EXCHANGE : RENAME_NOREPLACE;
    int failed = fault ? -1 : exchange || !fh_file_exists(o->path) ? renameat2(AT_FDCWD, o->temp, AT_FDCWD, o->path, how) : rename(o->temp, o->path);
    if (failed && !fault && !exchange && (errno == EINVAL || errno == ENOSYS)) failed = rename(o->temp, o->path); /* a directory never replaces one that holds something */
    if (failed) {
        rc = exchange && (errno == EINVAL || errno == ENOSYS) ? fh_fail(err, FH_EIO, "%s: this file system cannot exchange two directories: remove the old one first", o->path)
             : errno == EEXIST || errno == ENOTEMPTY          ? fh_fail(err, FH_EFAIL, "%s: appeared while it was written: choose another name", o->path)
                                                              : fh_fail_errno(err, o->path, "put it in place", errno);
        goto out;
    }
    sync_dir(o->parent);
    if (exchange) remove_tree(o->temp);
    fh_free(o->temp);
    o->temp = NULL;
out:
    fh_outdir_abandon(o);
    return rc;
}

void fh_outdir_abandon(fh_outdir *o)
{
    if (!o) return;
    if (o->temp && o->resumed) rmdir(o->temp); /* only where nothing is in it: then there is nothing to go on with */
    else if (o->temp) remove_tree(o->temp);
    if (o->fd >= 0) close(o->fd);
    fh_free(o->path);
    fh_free(o->parent);
    fh_free(o->temp);
    fh_free(o);
}

/* ---- copies --------------------------------------------------------------------------------------------------------- */

fh_status fh_file_copy(const char *from, const char *to, unsigned flags, const fh_job *job, fh_err *err)
{
    fh_map map = {0};
    fh_out *o = NULL;
    fh_status rc = fh_map_open(&map, from, err);
    if (rc < 0) return rc;
    if ((rc = fh_out_open(&o, to, flags, err)) < 0) goto out;
    for (size_t at = 0; at < map.size; at += PIECE) {
        size_t n = fh_min(map.size - at, PIECE);
        if (fh_job_stopped(job)) { rc = fh_fail(err, FH_EINTERRUPTED, "%s: interrupted", to); goto out; }
        if ((rc = fh_out_write(o, map.data + at, n, err)) < 0) goto out;
        fh_job_progress(job, "copying", (double)(at + n), (double)map.size, "bytes");
    }
    rc = fh_out_commit(o, err);
    o = NULL;
out:
    fh_out_abandon(o);
    fh_map_close(&map);
    return rc;
}

fh_status fh_file_bring(const char *from, const char *to, fh_link how, unsigned flags, const fh_job *job, fh_err *err)
{
    fh_status rc = FH_OK;
    struct stat st;
    if (how == FH_LINK_COPY) return fh_file_copy(from, to, flags, job, err);
    char *real = realpath(from, NULL);
    if (!real || stat(real, &st)) {
        rc = fh_fail_errno(err, from, "open", errno);
    } else if (!S_ISREG(st.st_mode)) {
        rc = fh_fail(err, FH_EIO, "%s: is %s: a regular file is needed here", from, fh_file_kind(st.st_mode));
    } else {
        bool fault = fh_fault_hit(FH_FAULT_WRITE);
        if (fault) errno = ENOSPC;
        if (fault || (how == FH_LINK_HARD ? link(real, to) : symlink(real, to))) {
            bool cannot = how == FH_LINK_HARD && (errno == EXDEV || errno == EPERM || errno == EMLINK || errno == ENOTSUP);
            rc = cannot ? fh_fail(err, FH_EIO, "%s: cannot make a hard link to %s: they are on two file systems, or this one has none: copy, or link symbolically", to, real)
                        : fh_fail_errno(err, to, "create", errno);
        }
    }
    free(real);
    return rc;
}
