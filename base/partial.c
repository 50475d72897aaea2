/* base/partial.c: a file that grows over several runs, its digest with it. */
#include "base/fault.h"
#include "base/sysio.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

struct fh_partial { int fd; char *path; uint64_t bytes; fh_sha256 sha; };

static fh_status write_failed(const fh_partial *p, fh_err *err) { return fh_fail_errno(err, p->path, "write", errno); }

fh_status fh_partial_restart(fh_partial *p, fh_err *err)
{
    if (ftruncate(p->fd, 0) || lseek(p->fd, 0, SEEK_SET) < 0) return write_failed(p, err);
    p->bytes = 0;
    fh_sha256_init(&p->sha);
    return FH_OK;
}

/* What an earlier run left: the digest goes on from there. */
static fh_status read_again(fh_partial *p, const fh_job *job, fh_err *err)
{
    uint8_t piece[64 << 10];
    for (;;) {
        ssize_t got = read(p->fd, piece, sizeof piece);
        if (fh_job_stopped(job)) return fh_fail(err, FH_EINTERRUPTED, "%s: interrupted", p->path);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return fh_fail_errno(err, p->path, "read", errno);
        if (!got) return FH_OK;
        fh_sha256_update(&p->sha, piece, (size_t)got);
        p->bytes += (uint64_t)got;
    }
}

fh_status fh_partial_open(fh_partial **out, const char *path, uint64_t most, const fh_job *job, fh_err *err)
{
    struct stat st;
    fh_status rc = FH_OK;
    fh_partial *p = fh_calloc(1, sizeof *p);
    *out = NULL;
    if (!p || !(p->path = fh_strdup(path))) { fh_free(p); return fh_fail(err, FH_ENOMEM, "%s: out of memory", path); }
    fh_sha256_init(&p->sha);
    p->fd = fh_sys_open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK, 0666);
    if (p->fd < 0 || fstat(p->fd, &st)) { rc = write_failed(p, err); goto out; }
    if (!S_ISREG(st.st_mode)) { rc = fh_fail(err, FH_EIO, "%s: is %s where a file should be: remove it", path, fh_file_kind(st.st_mode)); goto out; }
    if ((st.st_mode & 0600) != 0600) (void)!fchmod(p->fd, (st.st_mode & 07777) | 0600); /* under any umask the next run has to go on */
    if ((rc = (uint64_t)st.st_size > most ? fh_partial_restart(p, err) : read_again(p, job, err)) < 0) goto out;
    *out = p, p = NULL;
out:
    if (p) {
        if (p->fd >= 0) close(p->fd);
        fh_free(p->path);
    }
    fh_free(p);
    return rc;
}

fh_status fh_partial_write(fh_partial *p, uint64_t offset, const void *data, size_t n, fh_err *err)
{
    fh_status rc;
    if (offset != p->bytes && (rc = fh_partial_restart(p, err)) < 0) return rc;
    for (size_t done = 0; done < n;) {
        bool fault = fh_fault_hit(FH_FAULT_WRITE);
        if (fault) errno = ENOSPC;
        ssize_t put = fault ? -1 : write(p->fd, (const char *)data + done, n - done);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) {
            rc = write_failed(p, err);
            (void)!ftruncate(p->fd, (off_t)p->bytes); /* what is not in the digest is not in the file either */
            return rc;
        }
        done += (size_t)put;
    }
    fh_sha256_update(&p->sha, data, n);
    p->bytes += n;
    return FH_OK;
}

uint64_t fh_partial_bytes(const fh_partial *p) { return p->bytes; }

bool fh_partial_is(const fh_partial *p, const char *sha256)
{
    fh_sha256 sha = p->sha;
    uint8_t digest[32];
    char hex[65];
    fh_sha256_final(&sha, digest);
    fh_sha256_hex(hex, digest);
    return !strcmp(hex, sha256);
}

fh_status fh_partial_close(fh_partial *p, fh_err *err)
{
    fh_status rc = FH_OK;
    if (!p) return rc;
    bool fault = fh_fault_hit(FH_FAULT_WRITE);
    if (fault) errno = EIO;
    if (fault || fsync(p->fd)) rc = write_failed(p, err);
    close(p->fd);
    fh_free(p->path);
    fh_free(p);
    return rc;
}
