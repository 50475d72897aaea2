/* What the tests of .fhead files share: a small sound file that can be written with one thing changed, and how far a reader gets. */
#ifndef FH_TEST_FHEAD_FILES_H
#define FH_TEST_FHEAD_FILES_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/fault.h"
#include "format/fhead_private.h"

static char scratch[4096];

static inline const char *place(const char *name)
{
    static char path[4200];
    snprintf(path, sizeof path, "%s/%s", scratch, name);
    return path;
}

static inline int make_scratch(void **state)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(scratch, sizeof scratch, "%s/fhead-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    return mkdtemp(scratch) ? 0 : -1;
}

static inline int drop_scratch(void **state)
{
    char command[4300];
    snprintf(command, sizeof command, "rm -rf '%s'", scratch);
    return system(command);
}

/* How far a reader gets: 0 open, 1 check, 2 verify refuses; 3 nothing does. */
static inline int stage_of(const void *data, size_t size, fh_status *status, fh_err *err)
{
    fh_fhead *f = NULL;
    fh_head_layout h;
    int stage = 3;
    uint8_t *copy = fh_aligned(size ? size : 1);
    assert_non_null(copy);
    memcpy(copy, data, size);
    if ((*status = fh_fhead_open_memory(&f, copy, size, "test.fhead", err)) < 0) stage = 0;
    else if ((*status = fh_fhead_check_head(f, &h, err)) < 0) stage = 1;
    else if ((*status = fh_fhead_verify(f, NULL, err)) < 0) stage = 2;
    fh_fhead_close(f);
    fh_free(copy);
    return stage;
}

static inline void seal(uint8_t *b, size_t size)
{
    uint64_t end = fh_le(b + 24, 8) + 128 * fh_le(b + 12, 4);
    memset(b + 64, 0, 32);
    if (end <= size) {
        uint8_t digest[32];
        fh_sha256_of(digest, b, (size_t)end);
        memcpy(b + 64, digest, 32);
    }
}

static inline char *load(const char *path, size_t *size)
{
    char *data = NULL;
    fh_err err = {0};
    if (fh_file_read(&data, size, path, 64 << 20, &err) < 0) fail_msg("%s", err.text);
    return data;
}

static const char header_text[] =
    "{\"format\":\"fhead\",\"requires\":[],\"tool\":\"test\","
    "\"model\":{\"type\":\"llama\",\"vocab\":5,\"hidden\":2,\"dtype\":\"bf16\",\"tied\":true,"
    "\"softcap\":30.0,\"fingerprint\":\"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\",\"tokenizer_size\":0},"
    "\"head\":{\"k\":2,\"cap\":3,\"probes\":2,\"routing\":\"learned\","
    "\"centroids\":{\"encoding\":\"int8\",\"group\":2,\"stride\":64,\"layout\":\"rows\",\"transform\":\"none\"},"
    "\"tokens\":{\"encoding\":\"int8\",\"group\":2,\"stride\":64,\"layout\":\"rows\",\"transform\":\"none\"},\"hot\":[4,0],\"always\":[]},"
    "\"calibration\":{\"probes\":2},\"bundle\":{\"body\":false,\"tokenizer\":true},\"provenance\":{}}";

/* What goes into the head below; a test changes one thing in it. */
typedef struct parts {
    const char *header;
    uint32_t permutation[6], dead[2];
    size_t n_dead;
    float bias[5], centroid_scales[2], token_scales[6];
    int8_t centroids[2][64], tokens[6][64];
} parts;

static inline parts sound(void)
{
    return (parts){.header = header_text,
                   .permutation = {0, 3, UINT32_MAX, 1, 2, 4},
                   .dead = {1, 3},
                   .n_dead = 2,
                   .bias = {0, 1, 2, 3, 4},
                   .centroid_scales = {1, 0.5f},
                   .token_scales = {1, 2, 1, 4, 5, 6},
                   .centroids = {{1, 2}, {-127, 0}},
                   .tokens = {{1, 1}, {2, 2}, {0, 0}, {127, -127}, {0, 0}, {5, 6}}};
}

static const char tokenizer[] =
    "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"c\":2},\"merges\":[]},\"aaaaaaaaaaaaaaaaaaaaaaaa\":0}";

static inline fh_status write_parts(const parts *p, const char *path, unsigned flags, char digest[65], fh_err *err)
{
    fh_fhead_writer *w = NULL;
    fh_status rc = fh_fhead_create(&w, path, flags, p->header, 8, err);
    if (rc < 0) return rc;
#define ADD(name, codec, data, bytes) \
    if (rc >= 0) rc = fh_fhead_add(w, name, codec, FH_SECTION_REQUIRED, data, bytes, err)
    ADD("head.permutation", FH_CODEC_RAW, p->permutation, sizeof p->permutation);
    ADD("head.dead", FH_CODEC_RAW, p->dead, p->n_dead * sizeof *p->dead);
    ADD("head.bias", FH_CODEC_RAW, p->bias, sizeof p->bias);
    ADD("head.centroid_scales", FH_CODEC_RAW, p->centroid_scales, sizeof p->centroid_scales);
    ADD("head.token_scales", FH_CODEC_RAW, p->token_scales, sizeof p->token_scales);
    ADD("head.centroids", FH_CODEC_RAW, p->centroids, sizeof p->centroids);
    ADD("body.tokenizer", FH_CODEC_ZSTD, tokenizer, sizeof tokenizer - 1);
    ADD("head.tokens", FH_CODEC_RAW, p->tokens, sizeof p->tokens);
#undef ADD
    if (rc >= 0) rc = fh_fhead_commit(w, digest, err);
    else fh_fhead_abandon(w);
    return rc;
}

/* The bytes of an artifact; *digest is its name. */
static inline char *written(const parts *p, size_t *size)
{
    char digest[65];
    fh_err err = {0};
    if (write_parts(p, place("t.fhead"), 0, digest, &err) < 0) fail_msg("%s", err.text);
    return load(place("t.fhead"), size);
}

static inline void refused(const parts *p, int stage, fh_status status, const char *says)
{
    fh_err err = {0};
    fh_status got;
    size_t size;
    char *data = written(p, &size);
    int at = stage_of(data, size, &got, &err);
    if (at != stage || got != status || !strstr(err.text, says))
        fail_msg("wanted stage %d %s with '%s', got %d %s: %s", stage, fh_status_name(status), says, at, fh_status_name(got), err.text);
    fh_free(data);
}

#endif
