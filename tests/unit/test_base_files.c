/* Maps, reads, outputs that appear whole or not at all, and locks. */
#include "base/base.h"
#include "base/fault.h"

#include <errno.h>
#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/unit/base_files.h"

/* ---- reading --------------------------------------------------------------------------------------------- */

static void a_map_shows_the_file(void **state)
{
    (void)state;
    fh_err err = {0};
    fh_map map;
    put(at("file"), "hello");
    assert_int_equal(fh_map_open(&map, at("file"), &err), FH_OK);
    assert_int_equal(map.size, 5);
    assert_memory_equal(map.data, "hello", 5);
    assert_string_equal(map.path, at("file"));
    fh_map_close(&map);
    assert_null(map.data);
    fh_map_close(&map);
    fh_map_close(NULL);

    put(at("file"), "");
    assert_int_equal(fh_map_open(&map, at("file"), &err), FH_OK);
    assert_null(map.data);
    assert_int_equal(map.size, 0);
    fh_map_close(&map);
}

static void a_file_that_is_not_kept_in_memory_has_the_same_bytes(void **state)
{
    (void)state;
    fh_err err = {0};
    fh_map map;
    put(at("file"), "hello"); /* not on the disk yet */
    assert_int_equal(fh_map_open(&map, at("file"), &err), FH_OK);
    fh_file_uncache(at("file"));
    assert_memory_equal(map.data, "hello", 5);
    fh_map_close(&map);
    fh_file_uncache(at("file"));
    expect_text(at("file"), "hello");
    fh_file_uncache(at("none"));
    fh_file_uncache(dir);
    assert_int_equal(entries(dir), 1);
}

static void what_is_no_regular_file_is_refused_at_once(void **state)
{
    (void)state;
    fh_err err = {0};
    fh_map map;
    char *data;
    size_t n;
    assert_int_equal(mkfifo(at("fifo"), 0600), 0);
    expect_error(fh_map_open(&map, at("fifo"), &err), FH_EIO, &err, "is a FIFO");
    expect_error(fh_file_read(&data, &n, at("fifo"), 100, &err), FH_EIO, &err, "nobody writes to");
    expect_error(fh_map_open(&map, dir, &err), FH_EIO, &err, "is a directory");
    expect_error(fh_file_read(&data, &n, dir, 100, &err), FH_EIO, &err, "is a directory");
    expect_error(fh_map_open(&map, "/dev/zero", &err), FH_EIO, &err, "is a device");
    expect_error(fh_file_read(&data, &n, "/dev/zero", 100, &err), FH_EIO, &err, "is a device");
    expect_error(fh_map_open(&map, at("none"), &err), FH_ENOTFOUND, &err, "check the path");
    expect_error(fh_file_read(&data, &n, at("none"), 100, &err), FH_ENOTFOUND, &err, "check the path");
    expect_error(fh_map_open(&map, "", &err), FH_ENOTFOUND, &err, "check the path");
    unlink(at("fifo"));
}

static void reading_stops_at_the_limit(void **state)
{
    (void)state;
    fh_err err = {0};
    char *data;
    size_t n;
    put(at("file"), "0123456789");
    assert_int_equal(fh_file_read(&data, &n, at("file"), 10, &err), FH_OK);
    assert_int_equal(n, 10);
    assert_string_equal(data, "0123456789");
    fh_free(data);
    expect_error(fh_file_read(&data, &n, at("file"), 9, &err), FH_EFORMAT, &err, "longer than 9 bytes");
    assert_int_equal(fh_file_read(&data, &n, at("file"), SIZE_MAX, &err), FH_OK);
    fh_free(data);
    /* A file that has no size until it is read. */
    assert_int_equal(fh_file_read(&data, &n, "/proc/self/status", 1 << 20, &err), FH_OK);
    assert_true(n > 100 && strlen(data) == n);
    fh_free(data);
    expect_error(fh_file_read(&data, &n, "/proc/self/status", 10, &err), FH_EFORMAT, &err, "longer than 10 bytes");
}

static void standard_input_and_pipes_are_read_to_their_end(void **state)
{
    (void)state;
    fh_err err = {0};
    enum { N = 300000 };
    for (int way = 0; way < 3; way++) {
        int ends[2], saved = dup(STDIN_FILENO);
        assert_int_equal(pipe(ends), 0);
        pid_t child = fork();
        if (!child) {
            close(ends[0]);
            usleep(20000); /* the reader waits for its first byte */
            for (int i = 0; i < N; i += 100) {
                char part[101];
                snprintf(part, sizeof part, "%0100d", i);
                if (write(ends[1], part, 100) != 100) _exit(1);
            }
            _exit(0);
        }
        close(ends[1]);
        char name[64];
        snprintf(name, sizeof name, way == 1 ? "/dev/fd/%d" : "-", ends[0]);
        if (way == 2) fcntl(ends[0], F_SETFL, O_NONBLOCK);
        if (way != 1) dup2(ends[0], STDIN_FILENO);
        char *data = NULL;
        size_t n = 0;
        fh_status rc = fh_file_read(&data, &n, name, 1 << 20, &err);
        dup2(saved, STDIN_FILENO);
        close(saved);
        close(ends[0]);
        int status;
        waitpid(child, &status, 0);
        if (rc < 0) fail_msg("%s", err.text);
        assert_int_equal(status, 0);
        assert_int_equal(n, N);
        assert_memory_equal(data + N - 8, "00299900", 8);
        fh_free(data);
    }
}

/* ---- outputs --------------------------------------------------------------------------------------------- */

static void an_output_appears_when_it_is_committed(void **state)
{
    (void)state;
    fh_err err = {0};
    fh_out *o;
    put(at("out"), "old");
    assert_int_equal(fh_out_open(&o, at("out"), 0, &err), FH_OK);
    assert_int_equal(fh_out_write(o, "new text", 8, &err), FH_OK);
    assert_int_equal(fh_out_tell(o), 8);
    assert_int_equal(fh_out_write_at(o, 0, "N", 1, &err), FH_OK);
    assert_int_equal(fh_out_write(o, "!", 1, &err), FH_OK);
    assert_int_equal(fh_out_tell(o), 9);
    expect_text(at("out"), "old");
    assert_int_equal(fh_out_commit(o, &err), FH_OK);
    expect_text(at("out"), "New text!");
    assert_int_equal(entries(dir), 1);

    assert_int_equal(fh_out_open(&o, at("out"), 0, &err), FH_OK);
    assert_int_equal(fh_out_write(o, "gone", 4, &err), FH_OK);
    fh_out_abandon(o);
    fh_out_abandon(NULL);
    expect_text(at("out"), "New text!");
    assert_int_equal(entries(dir), 1);
    unlink(at("out"));
}

static void large_and_small_writes_end_up_in_order(void **state)
{
    (void)state;
    fh_err err = {0};
    fh_out *o;
    enum { N = 3000000 };
    uint8_t *want = fh_malloc(N);
    assert_non_null(want);
    fh_rng rng;
    fh_rng_seed(&rng, 9, 0);
    for (size_t i = 0; i < N; i++) want[i] = (uint8_t)fh_rng_u64(&rng);
    assert_int_equal(fh_out_open(&o, at("out"), 0, &err), FH_OK);
    for (size_t i = 0; i < N;) {
        size_t n = fh_min(N - i, (size_t)fh_rng_below(&rng, fh_rng_below(&rng, 4) ? 5000 : 600000));
        assert_int_equal(fh_out_write(o, want + i, n, &err), FH_OK);
        i += n;
        assert_int_equal(fh_out_tell(o), i);
        if (i > 10) {
            size_t back = (size_t)fh_rng_below(&rng, i - 10);
            for (size_t j = 0; j < 10; j++) want[back + j] ^= 0x55;
            assert_int_equal(fh_out_write_at(o, back, want + back, 10, &err), FH_OK);
        }
    }
    assert_int_equal(fh_out_write_at(o, N - 5, want, 6, &err), FH_EFAIL);
    assert_int_equal(fh_out_write_at(o, UINT64_MAX, want, 6, &err), FH_EFAIL);
    assert_int_equal(fh_out_commit(o, &err), FH_OK);
    fh_map map;
    assert_int_equal(fh_map_open(&map, at("out"), &err), FH_OK);
    assert_int_equal(map.size, N);
    assert_memory_equal(map.data, want, N);
    fh_map_close(&map);
    fh_free(want);
    unlink(at("out"));
}

static void bad_output_paths_are_told_apart(void **state)
{
    (void)state;
    fh_err err = {0};
    put(at("file"), "x");
    expect_error(fh_file_write(dir, "x", 1, 0, &err), FH_EIO, &err, "is a directory");
    expect_error(fh_file_write(at("none/"), "x", 1, 0, &err), FH_EIO, &err, "is a directory");
    expect_error(fh_file_write("", "x", 1, 0, &err), FH_EUSAGE, &err, "empty path");
    expect_error(fh_file_write(at("no/such/out"), "x", 1, 0, &err), FH_ENOTFOUND, &err, "does not exist: make it first");
    expect_error(fh_file_write(at("file/out"), "x", 1, 0, &err), FH_EIO, &err, "not a directory");
    expect_error(fh_file_write(at("file"), "y", 1, FH_NO_CLOBBER, &err), FH_EFAIL, &err, "--no-clobber");
    expect_error(fh_out_check("", 0, &err), FH_EUSAGE, &err, "empty path");
    expect_error(fh_out_check(at("no/such/out"), 0, &err), FH_ENOTFOUND, &err, "does not exist: make it first");
    expect_error(fh_out_check(at("file"), FH_NO_CLOBBER, &err), FH_EFAIL, &err, "--no-clobber");
    assert_int_equal(fh_out_check(at("file"), 0, &err), FH_OK);
    assert_int_equal(fh_out_check(at("free"), FH_NO_CLOBBER, &err), FH_OK);
    assert_int_equal(fh_out_check("/dev/null", FH_NO_CLOBBER, &err), FH_OK);
    assert_false(fh_file_exists(at("free")));
    expect_text(at("file"), "x");
    char name[300];
    memset(name, 'n', 299);
    name[299] = 0;
    expect_error(fh_file_write(at(name), "y", 1, 0, &err), FH_EIO, &err, "shorter name");
    name[250] = 0;
    assert_int_equal(fh_file_write(at(name), "y", 1, 0, &err), FH_OK);
    unlink(at(name));
    assert_int_equal(symlink("loop", at("loop")), 0);
    expect_error(fh_file_write(at("loop"), "y", 1, 0, &err), FH_EIO, &err, "links");
    unlink(at("loop"));
    assert_int_equal(mkfifo(at("fifo"), 0600), 0);
    expect_error(fh_file_write(at("fifo"), "y", 1, 0, &err), FH_EIO, &err, "nobody has the other end");
    unlink(at("fifo"));
    unlink(at("file"));
    assert_int_equal(entries(dir), 0);
}

static void a_file_that_may_not_be_written_is_not_replaced(void **state)
{
    (void)state;
    fh_err err = {0};
    if (geteuid() == 0) {
        /* Root may do everything: the same in a child that is nobody. */
        assert_int_equal(chmod(dir, 0777), 0);
    }
    put(at("file"), "x");
    assert_int_equal(chmod(at("file"), 0444), 0);
    assert_int_equal(mkdir(at("locked"), 0555), 0);
    pid_t child = fork();
    if (!child) {
        if (geteuid() == 0 && (setgid(65534) || setuid(65534))) _exit(9);
        if (fh_file_write(at("file"), "y", 1, 0, &err) != FH_EIO || !strstr(err.text, "permissions")) _exit(1);
        if (fh_file_write(at("locked/out"), "y", 1, 0, &err) != FH_EIO || !strstr(err.text, "permissions")) _exit(2);
        _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    expect_text(at("file"), "x");
    assert_int_equal(entries(dir), 2);
    assert_int_equal(entries(at("locked")), 0);
    unlink(at("file"));
    rmdir(at("locked"));
}

static void a_full_device_is_an_error_and_a_pipe_without_reader_too(void **state)
{
    (void)state;
    fh_err err = {0};
    expect_error(fh_file_write("/dev/full", "x", 1, 0, &err), FH_EIO, &err, "free space");
    assert_int_equal(fh_file_write("/dev/null", "x", 1, FH_NO_CLOBBER, &err), FH_OK);
    int ends[2];
    char name[64];
    assert_int_equal(pipe(ends), 0);
    snprintf(name, sizeof name, "/dev/fd/%d", ends[1]);
    assert_int_equal(fh_file_write(name, "abc", 3, 0, &err), FH_OK);
    char got[4] = "";
    assert_int_equal(read(ends[0], got, 3), 3);
    assert_string_equal(got, "abc");

    fh_out *o;
    assert_int_equal(fh_out_open(&o, name, 0, &err), FH_OK);
    assert_int_equal(fh_out_write(o, "abc", 3, &err), FH_OK);
    expect_error(fh_out_write_at(o, 0, "x", 1, &err), FH_EIO, &err, "pipe");
    close(ends[0]);
    expect_error(fh_out_commit(o, &err), FH_EIO, &err, "reader");
    close(ends[1]);
}

static void a_file_size_limit_is_an_error_and_no_signal(void **state)
{
    (void)state;
    put(at("out"), "old");
    pid_t child = fork();
    if (!child) {
        fh_err err = {0};
        struct rlimit limit = {1 << 20, 1 << 20};
        char *data = calloc(1, 2 << 20);
        if (!data || setrlimit(RLIMIT_FSIZE, &limit)) _exit(9);
        fh_status rc = fh_file_write(at("out"), data, 2 << 20, 0, &err);
        free(data);
        if (rc != FH_EIO || !strstr(err.text, "ulimit -f")) _exit(1);
        sigset_t pending;
        if (sigpending(&pending) || sigismember(&pending, SIGXFSZ)) _exit(2);
        _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    expect_text(at("out"), "old");
    assert_int_equal(entries(dir), 1);
    unlink(at("out"));
}

static void links_stay_and_what_they_name_is_replaced(void **state)
{
    (void)state;
    fh_err err = {0};
    struct stat st;
    assert_int_equal(mkdir(at("sub"), 0755), 0);
    assert_int_equal(symlink("sub/target", at("link")), 0);
    for (int there = 0; there < 2; there++) { /* a link to nothing, then to a file */
        assert_int_equal(fh_file_write(at("link"), there ? "two" : "one", 3, 0, &err), FH_OK);
        assert_int_equal(lstat(at("link"), &st), 0);
        assert_true(S_ISLNK(st.st_mode));
        expect_text(at("sub/target"), there ? "two" : "one");
    }
    assert_int_equal(entries(at("sub")), 1);
    unlink(at("link"));
    unlink(at("sub/target"));
    rmdir(at("sub"));
}

static void outputs_have_the_mode_that_the_umask_leaves(void **state)
{
    (void)state;
    fh_err err = {0};
    static const struct { mode_t mask; unsigned flags; mode_t want; } table[] = {
        {022, 0, 0644}, {077, 0, 0600}, {0, 0, 0666}, {0777, 0, 0}, {0777, FH_OWNER_READS, 0400}, {022, FH_OWNER_READS, 0644},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        struct stat st;
        mode_t before = umask(table[i].mask);
        fh_status rc = fh_file_write(at("out"), "x", 1, table[i].flags, &err);
        umask(before);
        assert_int_equal(rc, FH_OK);
        assert_int_equal(stat(at("out"), &st), 0);
        assert_int_equal(st.st_mode & 07777, table[i].want);
        unlink(at("out"));
    }
}

static void a_temporary_of_a_dead_process_is_taken_over_and_of_a_living_one_not(void **state)
{
    (void)state;
    fh_err err = {0};
    fh_out *o, *other;
    char name[64];
    snprintf(name, sizeof name, ".out.%ld.tmp", (long)getpid());
    put(at(name), "left behind by somebody who had our number");
    assert_int_equal(fh_out_open(&o, at("out"), 0, &err), FH_OK);
    expect_error(fh_out_open(&other, at("out"), 0, &err), FH_EBUSY, &err, "being written");
    assert_int_equal(fh_out_write(o, "x", 1, &err), FH_OK);
    assert_int_equal(fh_out_commit(o, &err), FH_OK);
    expect_text(at("out"), "x");
    assert_int_equal(entries(dir), 1);
    unlink(at("out"));
}

static void no_clobber_holds_up_to_the_last_moment(void **state)
{
    (void)state;
    fh_err err = {0};
    fh_out *o;
    assert_int_equal(fh_out_open(&o, at("out"), FH_NO_CLOBBER, &err), FH_OK);
    put(at("out"), "somebody was faster");
    expect_error(fh_out_commit(o, &err), FH_EFAIL, &err, "--no-clobber");
    expect_text(at("out"), "somebody was faster");
    unlink(at("out"));
    assert_int_equal(fh_file_write(at("out"), "x", 1, FH_NO_CLOBBER, &err), FH_OK);
    expect_text(at("out"), "x");
    assert_int_equal(entries(dir), 1);
    unlink(at("out"));
}

static void directories_are_made_with_their_parents(void **state)
{
    (void)state;
    fh_err err = {0};
    assert_int_equal(fh_mkdirs(at("a/b//c/"), &err), FH_OK);
    assert_int_equal(fh_mkdirs(at("a/b/c"), &err), FH_OK);
    assert_int_equal(fh_mkdirs("/", &err), FH_OK);
    put(at("a/file"), "x");
    expect_error(fh_mkdirs(at("a/file"), &err), FH_EIO, &err, "is no directory");
    assert_int_equal(fh_mkdirs(at("a/file/x"), &err), FH_EIO);
    assert_int_equal(fh_mkdirs("", &err), FH_EUSAGE);
    assert_true(fh_file_exists(at("a/b/c")));
    assert_false(fh_file_exists(at("a/b/d")));
    mode_t before = umask(0777);
    fh_status rc = fh_mkdirs(at("m/n"), &err);
    umask(before);
    assert_int_equal(rc, FH_OK);
    struct stat st;
    assert_int_equal(stat(at("m/n"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    remove_all(at("a"));
    remove_all(at("m"));
}

static void paths_are_joined_by_one_slash(void **state)
{
    (void)state;
    static const char *const table[][3] = {{"a", "b", "a/b"}, {"a/", "b", "a/b"}, {"/", "b", "/b"}, {"", "b", "b"}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        char *path = fh_path_join(table[i][0], table[i][1]);
        assert_string_equal(path, table[i][2]);
        fh_free(path);
    }
}

/* ---- locks ----------------------------------------------------------------------------------------------- */

static void a_lock_names_its_holder_and_ends_with_it(void **state)
{
    (void)state;
    fh_err err = {0};
    fh_lock *lock, *second;
    int ready[2], done[2];
    char byte = 0, pid[32];
    assert_true(!pipe(ready) && !pipe(done));
    pid_t child = fork();
    if (!child) {
        close(done[1]);
        byte = fh_lock_take(&lock, at("lock"), &err) == FH_OK;
        if (write(ready[1], &byte, 1) != 1) _exit(1);
        (void)!read(done[0], &byte, 1);
        _exit(0); /* without releasing: as if killed */
    }
    close(done[0]);
    assert_int_equal(read(ready[0], &byte, 1), 1);
    assert_int_equal(byte, 1);
    snprintf(pid, sizeof pid, "process %ld ", (long)child);
    expect_error(fh_lock_take(&lock, at("lock"), &err), FH_EBUSY, &err, pid);
    close(done[1]);
    waitpid(child, NULL, 0);
    close(ready[0]), close(ready[1]);

    assert_int_equal(fh_lock_take(&lock, at("lock"), &err), FH_OK);
    snprintf(pid, sizeof pid, "process %ld ", (long)getpid());
    expect_error(fh_lock_take(&second, at("lock"), &err), FH_EBUSY, &err, pid);
    fh_lock_release(lock);
    fh_lock_release(NULL);
    assert_int_equal(fh_lock_take(&lock, at("lock"), &err), FH_OK);
    fh_lock_release(lock);
    unlink(at("lock"));
}

static void a_lock_needs_a_regular_file_in_a_directory_that_is_there(void **state)
{
    (void)state;
    fh_err err = {0};
    fh_lock *lock;
    assert_int_equal(mkfifo(at("fifo"), 0600), 0);
    expect_error(fh_lock_take(&lock, at("fifo"), &err), FH_EIO, &err, "is a FIFO");
    expect_error(fh_lock_take(&lock, at("none/lock"), &err), FH_ENOTFOUND, &err, "check the path");
    unlink(at("fifo"));
}

static void of_many_processes_one_at_a_time_holds_the_lock(void **state)
{
    (void)state;
    enum { CHILDREN = 4, TURNS = 50 };
    pid_t child[CHILDREN];
    put(at("counter"), "0");
    for (int c = 0; c < CHILDREN; c++) {
        if ((child[c] = fork())) continue;
        fh_err err = {0};
        for (int turn = 0; turn < TURNS;) {
            fh_lock *lock;
            fh_status rc = fh_lock_take(&lock, at("lock"), &err);
            if (rc == FH_EBUSY) { usleep(100); continue; }
            if (rc < 0) _exit(1);
            FILE *f = fopen(at("counter"), "r+");
            long n;
            if (!f || fscanf(f, "%ld", &n) != 1) _exit(2);
            rewind(f);
            fprintf(f, "%ld", n + 1);
            if (fclose(f)) _exit(3);
            fh_lock_release(lock);
            turn++;
        }
        _exit(0);
    }
    for (int c = 0; c < CHILDREN; c++) {
        int status;
        waitpid(child[c], &status, 0);
        assert_int_equal(status, 0);
    }
    expect_text(at("counter"), "200");
    unlink(at("counter"));
    unlink(at("lock"));
}

/* ---- faults ---------------------------------------------------------------------------------------------- */

#ifdef FH_FAULTS
/* Three ways of writing "new" over "old"; each step that can fail is made to fail in turn. */
static fh_status write_new(int way, fh_err *err)
{
    static char large[300000];
    if (way == 0) return fh_file_write(at("out"), "new", 3, 0, err);
    fh_out *o;
    fh_status rc = fh_out_open(&o, at("out"), 0, err);
    if (rc < 0) return rc;
    if ((rc = fh_out_write(o, "nxw", 3, err)) < 0) goto out;
    if (way == 2 && (rc = fh_out_write(o, large, sizeof large, err)) < 0) goto out;
    if ((rc = fh_out_write_at(o, 1, "e", 1, err)) < 0) goto out;
    return fh_out_commit(o, err);
out:
    fh_out_abandon(o);
    return rc;
}

static void any_step_of_an_output_may_fail(void **state)
{
    (void)state;
    for (int kind = 0; kind < FH_FAULT_KINDS; kind++) {
        for (int way = 0; way < 3; way++) {
            long n = 1;
            for (;; n++) {
                fh_err err = {0};
                put(at("out"), "old");
                fh_fault_set(kind, n);
                fh_status rc = write_new(way, &err);
                bool fired = fh_fault_fired();
                fh_fault_set(kind, 0);
                assert_int_equal(rc < 0, fired);
                assert_int_equal(entries(dir), 1);
                if (!fired) break;
                assert_true(rc == (kind == FH_FAULT_ALLOC ? FH_ENOMEM : FH_EIO) && err.code == rc && *err.text);
                expect_text(at("out"), "old");
            }
            assert_true(n > (kind == FH_FAULT_ALLOC ? 5 : 3));
        }
    }
    unlink(at("out"));
}

static fh_status read_and_lock(fh_err *err)
{
    fh_map map = {0};
    fh_lock *lock = NULL;
    char *data = NULL, *path = NULL;
    size_t n;
    fh_status rc = fh_map_open(&map, at("file"), err);
    if (rc == FH_OK) rc = fh_file_read(&data, &n, at("file"), 100, err);
    if (rc == FH_OK) rc = fh_lock_take(&lock, at("file"), err);
    if (rc == FH_OK) rc = fh_mkdirs(at("sub"), err);
    if (rc == FH_OK && !(path = fh_path_join("a", "b"))) rc = fh_fail(err, FH_ENOMEM, "out of memory");
    fh_lock_release(lock);
    fh_map_close(&map);
    fh_free(data);
    fh_free(path);
    return rc;
}

static void any_allocation_of_reading_may_fail(void **state)
{
    (void)state;
    long n = 1;
    for (;; n++) {
        fh_err err = {0};
        put(at("file"), "text");
        fh_fault_set(FH_FAULT_ALLOC, n);
        fh_status rc = read_and_lock(&err);
        bool fired = fh_fault_fired();
        fh_fault_set(FH_FAULT_ALLOC, 0);
        assert_int_equal(rc, fired ? FH_ENOMEM : FH_OK);
        if (!fired) break;
    }
    assert_true(n > 4);
    unlink(at("file"));
    rmdir(at("sub"));
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_map_shows_the_file, setup, teardown),
        cmocka_unit_test_setup_teardown(a_file_that_is_not_kept_in_memory_has_the_same_bytes, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_no_regular_file_is_refused_at_once, setup, teardown),
        cmocka_unit_test_setup_teardown(reading_stops_at_the_limit, setup, teardown),
        cmocka_unit_test_setup_teardown(standard_input_and_pipes_are_read_to_their_end, setup, teardown),
        cmocka_unit_test_setup_teardown(an_output_appears_when_it_is_committed, setup, teardown),
        cmocka_unit_test_setup_teardown(large_and_small_writes_end_up_in_order, setup, teardown),
        cmocka_unit_test_setup_teardown(bad_output_paths_are_told_apart, setup, teardown),
        cmocka_unit_test_setup_teardown(a_file_that_may_not_be_written_is_not_replaced, setup, teardown),
        cmocka_unit_test_setup_teardown(a_full_device_is_an_error_and_a_pipe_without_reader_too, setup, teardown),
        cmocka_unit_test_setup_teardown(a_file_size_limit_is_an_error_and_no_signal, setup, teardown),
        cmocka_unit_test_setup_teardown(links_stay_and_what_they_name_is_replaced, setup, teardown),
        cmocka_unit_test_setup_teardown(outputs_have_the_mode_that_the_umask_leaves, setup, teardown),
        cmocka_unit_test_setup_teardown(a_temporary_of_a_dead_process_is_taken_over_and_of_a_living_one_not, setup, teardown),
        cmocka_unit_test_setup_teardown(no_clobber_holds_up_to_the_last_moment, setup, teardown),
        cmocka_unit_test_setup_teardown(directories_are_made_with_their_parents, setup, teardown),
        cmocka_unit_test_setup_teardown(paths_are_joined_by_one_slash, setup, teardown),
        cmocka_unit_test_setup_teardown(a_lock_names_its_holder_and_ends_with_it, setup, teardown),
        cmocka_unit_test_setup_teardown(a_lock_needs_a_regular_file_in_a_directory_that_is_there, setup, teardown),
        cmocka_unit_test_setup_teardown(of_many_processes_one_at_a_time_holds_the_lock, setup, teardown),
#ifdef FH_FAULTS
        cmocka_unit_test_setup_teardown(any_step_of_an_output_may_fail, setup, teardown),
        cmocka_unit_test_setup_teardown(any_allocation_of_reading_may_fail, setup, teardown),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
