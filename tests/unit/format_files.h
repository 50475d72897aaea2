/* tests/unit/format_files.h: small files for the tests of format/: a directory that goes away, text, safetensors images. */
#ifndef FORMAT_FILES_H
#define FORMAT_FILES_H

#include "format/format.h"
#include "base/fault.h"

#include <setjmp.h>
#include <cmocka.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct files { char dir[200], path[1000]; fh_job job; char said[4000]; } files;

/* Messages of a job pile up here. */
static inline void files_hear(void *ctx, fh_level level, const char *text)
{
    files *f = ctx;
    size_t used = strlen(f->said);
    snprintf(f->said + used, sizeof f->said - used, "%s%s\n", level == FH_WARN ? "W " : "", text);
}

static inline int files_setup(void **state)
{
    const char *tmp = getenv("TMPDIR");
    files *f = calloc(1, sizeof *f);
    if (!f) return -1;
    snprintf(f->dir, sizeof f->dir, "%s/fh-format-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    f->job = (fh_job){.message = files_hear, .ctx = f};
    *state = f;
    return mkdtemp(f->dir) ? 0 : -1;
}

static inline int files_teardown(void **state)
{
    files *f = *state;
    DIR *d = opendir(f->dir);
    for (struct dirent *e; d && (e = readdir(d));) {
        snprintf(f->path, sizeof f->path, "%s/%s", f->dir, e->d_name);
        if (unlink(f->path) != 0) rmdir(f->path);
    }
    if (d) closedir(d);
    rmdir(f->dir);
    free(f);
    return 0;
}

static inline const char *files_path(files *f, const char *name)
{
    snprintf(f->path, sizeof f->path, "%s/%s", f->dir, name);
    return f->path;
}

static inline const char *files_write(files *f, const char *name, const void *data, size_t n)
{
    FILE *out = fopen(files_path(f, name), "wb");
    assert_non_null(out);
    assert_int_equal(fwrite(data, 1, n, out), n);
    assert_int_equal(fclose(out), 0);
    return f->path;
}

static inline const char *files_text(files *f, const char *name, const char *text)
{
    return files_write(f, name, text, strlen(text));
}

/* A safetensors image: the header as given, then `bytes` bytes 1, 2, 3, ...; freed by the caller. */
static inline uint8_t *files_image(const char *header, size_t bytes, size_t *size)
{
    size_t n = strlen(header);
    uint8_t *image = malloc(8 + n + bytes + 1);
    assert_non_null(image);
    for (unsigned i = 0; i < 8; i++) image[i] = (uint8_t)((uint64_t)n >> 8 * i);
    memcpy(image + 8, header, n);
    for (size_t i = 0; i < bytes; i++) image[8 + n + i] = (uint8_t)(i + 1);
    *size = 8 + n + bytes;
    return image;
}

static inline const char *files_tensors(files *f, const char *name, const char *header, size_t bytes)
{
    size_t size;
    uint8_t *image = files_image(header, bytes, &size);
    files_write(f, name, image, size);
    free(image);
    return f->path;
}

/* The message is one line, and has all these words in it (a list separated by '|'). */
#define assert_says(err, words) files_assert_says((err)->text, words, __FILE__, __LINE__)
static inline void files_assert_says(const char *text, const char *words, const char *file, int line)
{
    char list[1000];
    snprintf(list, sizeof list, "%s", words);
    for (char *save = NULL, *w = strtok_r(list, "|", &save); w; w = strtok_r(NULL, "|", &save)) {
        if (strstr(text, w) && !strchr(text, '\n')) continue;
        print_error("\"%s\" does not say \"%s\"\n", text, w);
        _fail(file, line);
    }
}

/* Where ../shared is; NULL and a message when it is not there. */
static inline const char *files_shared(void)
{
    struct stat st;
    const char *shared = getenv("FH_SHARED");
    if (!shared || !*shared) shared = "../shared";
    if (stat(shared, &st) == 0) return shared;
    print_message("skipped: %s is not there (set FH_SHARED)\n", shared);
    return NULL;
}

/* `call` is repeated with the n-th allocation failing, n = 1, 2, ..., until it gets through; every failure must be told. */
#ifdef FH_FAULTS
#define assert_survives_faults(kind, call, status, undo)              \
    for (long n_ = 1;; n_++) {                                        \
        assert_true(n_ < 100000);                                     \
        fh_fault_set(kind, n_);                                       \
        fh_status rc_ = call;                                         \
        bool fired_ = fh_fault_fired();                               \
        fh_fault_set(kind, 0);                                        \
        if (rc_ >= 0) { undo; }                                       \
        if (!fired_) { assert_int_equal(rc_, FH_OK); break; }         \
        if (rc_ < 0) assert_int_equal(rc_, status);                   \
    }
#else
#define assert_survives_faults(kind, call, status, undo) do { assert_int_equal(call, FH_OK); undo; } while (0)
#endif

#endif
