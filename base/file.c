#include "base/sysio.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

fh_status fh_map_open(fh_map *out, const char *path, fh_err *err)
{
    fh_status rc = FH_OK;
    fh_map map = {0};
    struct stat st;
    int fd = fh_sys_open(path, O_RDONLY | O_NONBLOCK, 0); /* O_NONBLOCK: a FIFO without a writer must not hold us */
    if (fd < 0) return fh_fail_errno(err, path, "open", errno);
    if (fstat(fd, &st)) { rc = fh_fail_errno(err, path, "look at it", errno); goto out; }
    if (!S_ISREG(st.st_mode)) {
        rc = fh_fail(err, FH_EIO, "%s: is %s: a regular file is needed here", path, fh_file_kind(st.st_mode));
        goto out;
    }
    if (!(map.path = fh_strdup(path))) { rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", path); goto out; }
    map.size = (size_t)st.st_size;
    if (map.size) {
        void *data = mmap(NULL, map.size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (data == MAP_FAILED) { rc = fh_fail_errno(err, path, "map", errno); goto out; }
        map.data = data;
        if (map.size >= FH_HUGE_FROM) (void)madvise(data, map.size, MADV_HUGEPAGE);
    }
    *out = map;
    map.path = NULL;
out:
    fh_free(map.path);
    close(fd);
    return rc;
}

void fh_map_close(fh_map *map)
{
    if (!map) return;
    if (map->data) munmap((void *)(uintptr_t)map->data, map->size);
    fh_free(map->path);
    *map = (fh_map){0};
}

void fh_file_uncache(const char *path)
{
    int fd = fh_sys_open(path, O_RDONLY | O_NONBLOCK, 0);
    if (fd < 0) return;
    (void)fsync(fd); /* what the disk has not is not dropped */
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
}

fh_status fh_file_sha256(char hex[65], uint64_t *bytes, const char *path, const fh_job *job, fh_err *err)
{
    enum { PIECE = 4 << 20 };
    fh_map map = {0};
    fh_sha256 sha;
    uint8_t digest[32];
    fh_status rc = fh_map_open(&map, path, err);
    if (rc < 0) return rc;
    fh_sha256_init(&sha);
    for (size_t at = 0; at < map.size; at += PIECE) {
        if (fh_job_stopped(job)) { rc = fh_fail(err, FH_EINTERRUPTED, "%s: interrupted", path); goto out; }
        fh_sha256_update(&sha, map.data + at, fh_min(PIECE, map.size - at));
    }
    fh_sha256_final(&sha, digest);
    fh_sha256_hex(hex, digest);
    if (bytes) *bytes = map.size;
out:
    fh_map_close(&map);
    return rc;
}

/* At most n bytes, waiting for them where the descriptor does not block by itself; 0 at the end, -1 with errno.  EINTR from read is a signal that
 * somebody handles, and wants heard; from poll it may be no more than a job that was put in the foreground again. */
static ssize_t read_some(int fd, void *to, size_t n)
{
    for (;;) {
        ssize_t got = read(fd, to, n);
        if (got >= 0) return got;
        if (errno == EAGAIN) {
            struct pollfd p = {.fd = fd, .events = POLLIN};
            if (poll(&p, 1, -1) < 0 && errno != EINTR) return -1;
        } else {
            return -1;
        }
    }
}

/* A named FIFO that nobody ever opened for writing reads as empty and does not say that its writer hung up; one whose
 * writer came and went does, and so does the pipe of a shell's <(...). */
static bool nobody_writes(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, 0) == 0;
}

static fh_status too_long(fh_err *err, const char *name, size_t limit)
{
    return fh_fail(err, FH_EFORMAT, "%s: is longer than %zu bytes, the most that is read here: is it the right file?", name, limit);
}

fh_status fh_file_read(char **out, size_t *len, const char *path, size_t limit, fh_err *err)
{
    fh_status rc = FH_OK;
    bool standard = !strcmp(path, "-");
    const char *name = standard ? "standard input" : path;
    char *data = NULL;
    size_t n = 0, room = 64 << 10;
    struct stat st;
    int fd = standard ? STDIN_FILENO : fh_sys_open(path, O_RDONLY | O_NONBLOCK, 0);
    if (fd < 0) return fh_fail_errno(err, name, "open", errno);
    if (fstat(fd, &st)) { rc = fh_fail_errno(err, name, "read", errno); goto out; }
    if (S_ISDIR(st.st_mode) || (!standard && !S_ISREG(st.st_mode) && !S_ISFIFO(st.st_mode))) {
        rc = fh_fail(err, FH_EIO, "%s: is %s: name a file or a pipe", name, fh_file_kind(st.st_mode));
        goto out;
    }
    if (S_ISREG(st.st_mode) && (uint64_t)st.st_size > limit) { rc = too_long(err, name, limit); goto out; }
    /* One more than the file has, so that its end is seen without growing; what the kernel makes up as it is read has size 0. */
    if (S_ISREG(st.st_mode) && st.st_size) room = (size_t)st.st_size + 1;
    if (limit > SIZE_MAX - 2) limit = SIZE_MAX - 2;
    for (bool first = true;; first = false) {
        size_t want = fh_min(room, limit + 1); /* one past the limit tells that there is more */
        char *grown = fh_realloc(data, want + 1);
        if (!grown) { rc = fh_fail(err, FH_ENOMEM, "%s: out of memory after %zu bytes", name, n); goto out; }
        data = grown;
        if (!standard && first && S_ISFIFO(st.st_mode) && nobody_writes(fd)) {
            /* With a writer that has not written yet poll says nothing either: reading tells the two apart. */
            ssize_t got = read(fd, data, want);
            if (got == 0) { rc = fh_fail(err, FH_EIO, "%s: is a FIFO that nobody writes to: start its writer first", name); goto out; }
            if (got > 0) n = (size_t)got;
        }
        while (n < want) {
            ssize_t got = read_some(fd, data + n, want - n);
            if (got < 0 && errno == EINTR) { rc = fh_fail(err, FH_EINTERRUPTED, "%s: interrupted while it was read", name); goto out; }
            if (got < 0) { rc = fh_fail_errno(err, name, "read", errno); goto out; }
            if (!got) goto end;
            n += (size_t)got;
        }
        if (n > limit) { rc = too_long(err, name, limit); goto out; }
        room = room > SIZE_MAX / 2 ? SIZE_MAX : 2 * room;
    }
end:
    data[n] = 0;
    *out = data;
    *len = n;
    data = NULL;
out:
    fh_free(data);
    if (!standard) close(fd);
    return rc;
}

bool fh_file_exists(const char *path)
{
    struct stat st;
    return !stat(path, &st);
}

/* No name is put together: that could fail, and there would be nowhere to say so. */
bool fh_dir_has(const char *dir, const char *name)
{
    struct stat st;
    int fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return false;
    bool has = !fstatat(fd, name, &st, 0) && S_ISREG(st.st_mode);
    close(fd);
    return has;
}

/* With a umask that shuts out the owner too, a directory that was made could not be used: the owner's bits are kept, as
 * mkdir -p keeps them for the directories on the way. */
static int make_dir(const char *path)
{
    if (mkdir(path, 0777)) return errno;
    struct stat st;
    if (!stat(path, &st) && (st.st_mode & 0700) != 0700) (void)chmod(path, (st.st_mode & 07777) | 0700);
    return 0;
}

fh_status fh_mkdirs(const char *path, fh_err *err)
{
    if (!*path) return fh_fail(err, FH_EUSAGE, "an empty path names no directory");
    fh_status rc = FH_OK;
    struct stat st;
    char *part = fh_strdup(path);
    if (!part) return fh_fail(err, FH_ENOMEM, "%s: out of memory", path);
    size_t len = strlen(part);
    for (size_t i = 1; i <= len; i++) {
        if ((part[i] != '/' && part[i]) || part[i - 1] == '/') continue;
        part[i] = 0;
        int e = make_dir(part);
        /* EEXIST is no fault where it is a directory; on the way down, neither are others (EROFS, EACCES of a parent that is there). */
        if (e && (stat(part, &st) || !S_ISDIR(st.st_mode))) {
            rc = e == EEXIST ? fh_fail(err, FH_EIO, "%s: is there and is no directory: choose another name", part)
                             : fh_fail_errno(err, part, "make the directory", e);
            break;
        }
        if (i < len) part[i] = '/';
    }
    fh_free(part);
    return rc;
}

char *fh_path_join(const char *dir, const char *name)
{
    size_t n = strlen(dir);
    return fh_sprintf(n && dir[n - 1] != '/' ? "%s/%s" : "%s%s", dir, name);
}
