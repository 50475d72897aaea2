/* Directories that appear whole or not at all. */
#include "base/base.h"
#include "base/fault.h"

#include <dirent.h>
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/unit/base_files.h"

/* A directory with one file and one below a directory of its own. */
static fh_status fill(fh_outdir *o, fh_err *err)
{
    fh_status rc = FH_ENOMEM;
    char *sub = fh_path_join(fh_outdir_path(o), "sub"), *file = fh_path_join(fh_outdir_path(o), "file"),
         *deep = sub ? fh_path_join(sub, "deep") : NULL;
    if (!sub || !file || !deep) fh_fail(err, rc, "out of memory");
    else if ((rc = fh_mkdirs(sub, err)) == FH_OK && (rc = fh_file_write(file, "new", 3, 0, err)) == FH_OK)
        rc = fh_file_copy(file, deep, 0, NULL, err);
    fh_free(sub);
    fh_free(file);
    fh_free(deep);
    return rc;
}

static fh_status make(const char *path, unsigned flags, fh_err *err)
{
    fh_outdir *o = NULL;
    fh_status rc = fh_outdir_open(&o, path, flags, err);
    if (rc < 0) return rc;
    if ((rc = fill(o, err)) < 0) {
        fh_outdir_abandon(o);
        return rc;
    }
    return fh_outdir_commit(o, flags, err);
}

static void it_is_there_only_when_all_of_it_is(void **state)
{
    (void)state;
    fh_err err = {0};
    fh_outdir *o;
    if (fh_outdir_open(&o, at("out/"), 0, &err) < 0) fail_msg("%s", err.text);
    if (fill(o, &err) < 0) fail_msg("%s", err.text);
    assert_false(fh_file_exists(at("out")));
    if (fh_outdir_commit(o, 0, &err) < 0) fail_msg("%s", err.text);
    expect_text(at("out/file"), "new");
    expect_text(at("out/sub/deep"), "new");
    assert_int_equal(entries(dir), 1);
}

static void one_that_is_abandoned_leaves_nothing(void **state)
{
    (void)state;
    fh_err err = {0};
    fh_outdir *o;
    assert_int_equal(fh_outdir_open(&o, at("out"), 0, &err), FH_OK);
    assert_int_equal(fill(o, &err), FH_OK);
    fh_outdir_abandon(o);
    fh_outdir_abandon(NULL);
    assert_int_equal(entries(dir), 0);
}

static void what_is_there_is_replaced_only_when_asked(void **state)
{
    (void)state;
    fh_err err = {0};
    assert_int_equal(mkdir(at("out"), 0777), 0);
    expect_error(make(at("out"), FH_NO_CLOBBER, &err), FH_EFAIL, &err, "--no-clobber");
    assert_int_equal(make(at("out"), 0, &err), FH_OK); /* empty */
    put(at("out/old"), "old");
    expect_error(make(at("out"), 0, &err), FH_EFAIL, &err, "is not empty");
    expect_text(at("out/old"), "old");
    if (make(at("out"), FH_REPLACE_DIR, &err) < 0) fail_msg("%s", err.text);
    assert_false(fh_file_exists(at("out/old")));
    expect_text(at("out/sub/deep"), "new");
    assert_int_equal(entries(dir), 1);
}

static void what_is_no_place_for_a_directory_is_refused(void **state)
{
    (void)state;
    fh_err err = {0};
    put(at("file"), "x");
    expect_error(make(at("file"), FH_REPLACE_DIR, &err), FH_EIO, &err, "no directory");
    expect_error(make("", 0, &err), FH_EUSAGE, &err, "empty path");
    expect_error(make("/", 0, &err), FH_EUSAGE, &err, "no name");
    expect_error(make(at("a/.."), 0, &err), FH_EUSAGE, &err, "no name");
    expect_error(make(at("none/out"), 0, &err), FH_ENOTFOUND, &err, "does not exist");
    assert_int_equal(symlink("nowhere", at("link")), 0);
    expect_error(make(at("link"), FH_REPLACE_DIR, &err), FH_EIO, &err, "no directory");
    assert_int_equal(entries(dir), 2);
}

static void one_that_appears_meanwhile_is_not_lost(void **state)
{
    (void)state;
    fh_err err = {0};
    fh_outdir *o;
    assert_int_equal(fh_outdir_open(&o, at("out"), 0, &err), FH_OK);
    assert_int_equal(mkdir(at("out"), 0777), 0);
    put(at("out/theirs"), "theirs");
    expect_error(fh_outdir_commit(o, 0, &err), FH_EFAIL, &err, "is there already");
    expect_text(at("out/theirs"), "theirs");
    assert_int_equal(entries(dir), 1);
}

static void the_next_run_clears_away_what_a_killed_one_left(void **state)
{
    (void)state;
    fh_err err = {0};
    fh_outdir *alive;
    int status;
    pid_t child = fork();
    if (!child) {
        fh_outdir *o;
        if (fh_outdir_open(&o, at("out"), 0, &err) == FH_OK && fill(o, &err) == FH_OK) raise(SIGKILL);
        _exit(1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(entries(dir), 1); /* what it left */
    assert_false(fh_file_exists(at("out")));
    assert_int_equal(fh_outdir_open(&alive, at("other"), 0, &err), FH_OK);
    assert_int_equal(mkdir(at(".out.tmp"), 0777), 0); /* no name of ours */
    assert_int_equal(make(at("out"), 0, &err), FH_OK);
    assert_int_equal(entries(dir), 3);
    fh_outdir_abandon(alive);
    assert_int_equal(entries(dir), 2);
}

static void two_at_once_do_not_mix(void **state)
{
    (void)state;
    fh_err err = {0};
    int ready[2], go[2], status;
    char c;
    assert_int_equal(pipe(ready), 0);
    assert_int_equal(pipe(go), 0);
    pid_t child = fork();
    if (!child) {
        fh_outdir *o;
        bool fine = fh_outdir_open(&o, at("out"), 0, &err) == FH_OK && fill(o, &err) == FH_OK && write(ready[1], "x", 1) == 1 &&
                    read(go[0], &c, 1) == 1;
        _exit(fine && fh_outdir_commit(o, 0, &err) == FH_EFAIL ? 0 : 1);
    }
    assert_int_equal(read(ready[0], &c, 1), 1);
    if (make(at("out"), 0, &err) < 0) fail_msg("%s", err.text); /* theirs is locked: not a leftover */
    assert_int_equal(write(go[1], "x", 1), 1);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_int_equal(entries(dir), 1);
    for (int i = 0; i < 2; i++) close(ready[i]), close(go[i]);
}

static void a_copy_has_the_bytes(void **state)
{
    (void)state;
    fh_err err = {0};
    put(at("from"), "some bytes");
    put(at("to"), "old");
    assert_int_equal(fh_file_copy(at("from"), at("to"), 0, NULL, &err), FH_OK);
    expect_text(at("to"), "some bytes");
    put(at("from"), "");
    assert_int_equal(fh_file_copy(at("from"), at("to"), 0, NULL, &err), FH_OK);
    expect_text(at("to"), "");
    expect_error(fh_file_copy(at("none"), at("to"), 0, NULL, &err), FH_ENOTFOUND, &err, "none");
    volatile sig_atomic_t stop = 1;
    fh_job job = {.stop = &stop};
    put(at("from"), "x");
    expect_error(fh_file_copy(at("from"), at("new"), 0, &job, &err), FH_EINTERRUPTED, &err, "interrupted");
    assert_false(fh_file_exists(at("new")));
}

#ifdef FH_FAULTS
static void every_step_may_fail(void **state)
{
    (void)state;
    fh_err err;
    for (int kind = 0; kind < FH_FAULT_KINDS; kind++)
        for (int old = 0; old < 2; old++)
            for (long n = 1;; n++) {
                if (old) assert_int_equal(mkdir(at("out"), 0777), 0), put(at("out/old"), "old");
                fh_fault_set(kind, n);
                fh_status rc = make(at("out"), old ? FH_REPLACE_DIR : 0, &err);
                bool fired = fh_fault_fired();
                fh_fault_set(kind, 0);
                if (!fired) assert_int_equal(rc, FH_OK);
                if (rc < 0) {
                    assert_true(err.text[0]);
                    if (old) expect_text(at("out/old"), "old");
                    else assert_int_equal(entries(dir), 0);
                } else {
                    expect_text(at("out/sub/deep"), "new");
                    assert_false(fh_file_exists(at("out/old")));
                }
                assert_int_equal(teardown(NULL), 0);
                assert_int_equal(mkdir(dir, 0700), 0);
                if (!fired) break;
            }
}
#endif

/* ---- several runs ------------------------------------------------------------------------------------------- */

static void what_an_abandoned_run_left_is_gone_on_with(void **state)
{
    (void)state;
    fh_outdir *o, *second;
    fh_err err = {0};
    assert_int_equal(fh_outdir_resume(&o, at("long"), "key", &err), FH_OK);
    expect_error(fh_outdir_resume(&second, at("long"), "key", &err), FH_EBUSY, &err, "somebody else");
    fh_outdir_abandon(o);
    assert_false(fh_file_exists(at(".long.key.part"))); /* nothing was in it */
    assert_int_equal(fh_outdir_resume(&o, at("long"), "key", &err), FH_OK);
    put(at(".long.key.part/first"), "one");
    fh_outdir_abandon(o);
    assert_int_equal(fh_outdir_resume(&o, at("long"), "key", &err), FH_OK);
    expect_text(at(".long.key.part/first"), "one");
    put(at(".long.key.part/second"), "two");
    assert_int_equal(fh_outdir_commit(o, 0, &err), FH_OK);
    expect_text(at("long/first"), "one");
    expect_text(at("long/second"), "two");
    assert_false(fh_file_exists(at(".long.key.part")));
    expect_error(fh_outdir_resume(&o, at("long"), "key", &err), FH_EFAIL, &err, "is not empty");
}

static fh_partial *partial(const char *path, uint64_t most)
{
    fh_partial *p;
    fh_err err = {0};
    if (fh_partial_open(&p, path, most, NULL, &err) < 0) fail_msg("%s", err.text);
    return p;
}

static void a_file_grows_over_several_runs_and_its_digest_with_it(void **state)
{
    (void)state;
    static const char whole[] = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"; /* of "abc", FIPS 180-4 */
    fh_err err = {0};
    fh_partial *p = partial(at("grown"), 3);
    assert_int_equal(fh_partial_write(p, 0, "ab", 2, &err), FH_OK);
    assert_int_equal(fh_partial_close(p, &err), FH_OK);
    p = partial(at("grown"), 3);
    assert_int_equal(fh_partial_bytes(p), 2);
    assert_false(fh_partial_is(p, whole));
    assert_int_equal(fh_partial_write(p, 2, "c", 1, &err), FH_OK);
    assert_true(fh_partial_is(p, whole));
    assert_int_equal(fh_partial_write(p, 0, "ab", 2, &err), FH_OK); /* from the start again */
    assert_int_equal(fh_partial_bytes(p), 2);
    assert_int_equal(fh_partial_write(p, 2, "c", 1, &err), FH_OK);
    assert_true(fh_partial_is(p, whole));
    assert_int_equal(fh_partial_close(p, &err), FH_OK);
    expect_text(at("grown"), "abc");
    p = partial(at("grown"), 2); /* longer than it can be: not of this */
    assert_int_equal(fh_partial_bytes(p), 0);
    assert_int_equal(fh_partial_close(p, &err), FH_OK);
    expect_text(at("grown"), "");
    assert_int_equal(mkfifo(at("fifo"), 0600), 0);
    expect_error(fh_partial_open(&p, at("fifo"), 9, NULL, &err), FH_EIO, &err, "a FIFO");
}

#ifdef FH_FAULTS
static void a_write_that_fails_leaves_what_the_digest_is_of(void **state)
{
    (void)state;
    fh_err err = {0};
    fh_partial *p = partial(at("full"), 9);
    assert_int_equal(fh_partial_write(p, 0, "abc", 3, &err), FH_OK);
    fh_fault_set(FH_FAULT_WRITE, 1);
    expect_error(fh_partial_write(p, 3, "def", 3, &err), FH_EIO, &err, "No space");
    fh_fault_set(FH_FAULT_WRITE, 1);
    expect_error(fh_partial_close(p, &err), FH_EIO, &err, "cannot write");
    fh_fault_set(FH_FAULT_WRITE, 0);
    p = partial(at("full"), 9);
    assert_int_equal(fh_partial_bytes(p), 3);
    assert_true(fh_partial_is(p, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"));
    assert_int_equal(fh_partial_close(p, &err), FH_OK);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_an_abandoned_run_left_is_gone_on_with, setup, teardown),
        cmocka_unit_test_setup_teardown(a_file_grows_over_several_runs_and_its_digest_with_it, setup, teardown),
#ifdef FH_FAULTS
        cmocka_unit_test_setup_teardown(a_write_that_fails_leaves_what_the_digest_is_of, setup, teardown),
#endif
        cmocka_unit_test_setup_teardown(it_is_there_only_when_all_of_it_is, setup, teardown),
        cmocka_unit_test_setup_teardown(one_that_is_abandoned_leaves_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_there_is_replaced_only_when_asked, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_no_place_for_a_directory_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(one_that_appears_meanwhile_is_not_lost, setup, teardown),
        cmocka_unit_test_setup_teardown(the_next_run_clears_away_what_a_killed_one_left, setup, teardown),
        cmocka_unit_test_setup_teardown(two_at_once_do_not_mix, setup, teardown),
        cmocka_unit_test_setup_teardown(a_copy_has_the_bytes, setup, teardown),
#ifdef FH_FAULTS
        cmocka_unit_test_setup_teardown(every_step_may_fail, setup, teardown),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
