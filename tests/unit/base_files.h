/* base_files.h: a directory of a test's own, and files in it.  Included by test programs once each, after cmocka.h. */
#ifndef BASE_FILES_H
#define BASE_FILES_H

#include "base/base.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char dir[4096], room[4][8192];

/* A path in the test's own directory; good until the fourth call after it. */
static const char *at(const char *name)
{
    static int next;
    char *p = room[next++ % 4];
    snprintf(p, sizeof room[0], "%s/%s", dir, name);
    return p;
}

static int setup(void **state)
{
    (void)state;
    const char *tmp = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%s/fh-test-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_all(const char *path)
{
    struct dirent **names;
    int n = scandir(path, &names, NULL, NULL);
    for (int i = 0; i < n; i++) {
        char file[8192];
        snprintf(file, sizeof file, "%s/%s", path, names[i]->d_name);
        if (strcmp(names[i]->d_name, ".") && strcmp(names[i]->d_name, "..") && unlink(file)) remove_all(file);
        free(names[i]);
    }
    if (n >= 0) free(names);
    return rmdir(path);
}

static int teardown(void **state)
{
    (void)state;
    return remove_all(dir);
}

static int entries(const char *path)
{
    struct dirent **names;
    int n = scandir(path, &names, NULL, NULL);
    for (int i = 0; i < n; i++) free(names[i]);
    if (n >= 0) free(names);
    return n - 2;
}

static void put(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static void expect_text(const char *path, const char *text)
{
    fh_err err = {0};
    char *data = NULL;
    size_t n = 0;
    fh_status rc = fh_file_read(&data, &n, path, 1 << 20, &err);
    if (rc < 0) fail_msg("%s", err.text);
    assert_string_equal(data, text);
    assert_int_equal(n, strlen(text));
    fh_free(data);
}

static void expect_error(fh_status got, fh_status want, const fh_err *err, const char *words)
{
    if (got != want || err->code != want || !strstr(err->text, words)) {
        fail_msg("%s with '%s' expected, not %s: %s", fh_status_name(want), words, fh_status_name(got), err->text);
    }
}

#endif
