/* fuzz_fhead.c: .fhead files.  An input is a file as it is (it begins with the magic), or a recipe: the JSON header's text, a zero
 * byte, then sections: a number (name from the list below), codec and flag bits, two bytes of length, the stored bytes.  Sizes and
 * digests are made right, so that what lies behind them is reached. */
#include <string.h>

#include "artifacts/artifacts.h"
#include "format/fhead_private.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const names[] = {
    "head.permutation",      "head.dead",   "head.bias",   "head.centroid_scales", "head.token_scales", "head.centroids",
    "head.tokens",           "head.exact",  "body.config", "body.generation",      "body.tensors",      "body.tokenizer",
    "body.tokenizer_config", "later.norms",
};
enum { NAMES = sizeof names / sizeof *names, MOST = 32 };

/* The digests of sections that lie in the file, and that of the header. */
static void mend(uint8_t *b, size_t size)
{
    uint64_t n, table;
    if (size < FH_FHEAD_FIXED) return;
    fh_le_put(b + 32, 8, size);
    n = fh_le(b + 12, 4);
    table = fh_le(b + 24, 8);
    if (table > size || n > (size - table) / FH_FHEAD_ENTRY) return;
    for (uint64_t i = 0; i < n; i++) {
        uint8_t *e = b + table + i * FH_FHEAD_ENTRY;
        uint64_t offset = fh_le(e + 40, 8), bytes = fh_le(e + 48, 8);
        if (offset <= size && bytes <= size - offset) fh_sha256_of(e + 96, b + offset, (size_t)bytes);
    }
    memset(b + FH_FHEAD_DIGEST_AT, 0, 32);
    uint8_t digest[32];
    fh_sha256_of(digest, b, (size_t)(table + n * FH_FHEAD_ENTRY));
    memcpy(b + FH_FHEAD_DIGEST_AT, digest, 32);
}

/* A file from a recipe; *size is its size. */
static uint8_t *cook(const uint8_t *data, size_t len, size_t *size)
{
    const uint8_t *end = data + len, *nul = memchr(data, 0, len), *p;
    size_t json = nul ? (size_t)(nul - data) : len, n = 0, at, room = 0, table = fh_round_up(FH_FHEAD_FIXED + json, FH_FHEAD_TABLE_ALIGN);
    struct { const uint8_t *data; size_t bytes; unsigned name, how; } s[MOST];
    uint8_t *b;
    for (p = nul ? nul + 1 : end; end - p >= 4 && n < MOST; n++) {
        s[n].name = p[0] % NAMES;
        s[n].how = p[1];
        s[n].bytes = fh_min((size_t)fh_le(p + 2, 2), (size_t)(end - p - 4));
        s[n].data = p + 4;
        p += 4 + s[n].bytes;
        room += s[n].bytes + FH_FHEAD_ALIGN;
    }
    at = fh_round_up(table + n * FH_FHEAD_ENTRY, FH_FHEAD_ALIGN);
    b = fh_aligned(at + room);
    if (!b) return NULL;
    memcpy(b, fh_fhead_magic, 8);
    fh_le_put(b + 8, 2, FH_FHEAD_MAJOR);
    fh_le_put(b + 12, 4, n);
    fh_le_put(b + 16, 8, json);
    fh_le_put(b + 24, 8, table);
    memcpy(b + FH_FHEAD_FIXED, data, json);
    for (size_t i = 0; i < n; i++) {
        uint8_t *e = b + table + i * FH_FHEAD_ENTRY;
        unsigned long long raw = s[i].bytes;
        at = fh_round_up(at, FH_FHEAD_ALIGN);
        memcpy(b + at, s[i].data, s[i].bytes);
        memcpy(e, names[s[i].name], strlen(names[s[i].name]));
        fh_le_put(e + 32, 4, s[i].how & 1);
        fh_le_put(e + 36, 4, s[i].how >> 1 & 1);
        fh_le_put(e + 40, 8, at);
        fh_le_put(e + 48, 8, s[i].bytes);
        if ((s[i].how & 1) && s[i].bytes >= 6) raw = s[i].how & 4 ? s[i].data[5] : s[i].how; /* small frames say their size there */
        fh_le_put(e + 56, 8, raw);
        fh_le_put(e + 64, 4, FH_FHEAD_ALIGN);
        at += s[i].bytes;
    }
    *size = at;
    return b;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *b;
    size_t len = size;
    fh_fhead *f = NULL;
    fh_json *info = NULL;
    fh_err err;
    if (size >= 8 && !memcmp(data, fh_fhead_magic, 8)) {
        b = fh_aligned(size);
        if (b) memcpy(b, data, size);
    } else {
        b = cook(data, size, &len);
    }
    if (!b) return 0;
    mend(b, len);
    if (fh_fhead_open_memory(&f, b, len, "fuzz.fhead", &err) >= 0) {
        for (size_t i = 0; i < fh_fhead_sections(f); i++) {
            const void *bytes;
            size_t n;
            (void)fh_fhead_data(f, fh_fhead_section(f, i)->name, &bytes, &n, &err);
        }
        if (fh_artifact_info(f, &info, &err) >= 0) (void)fh_artifact_verify(f, NULL, &err);
    }
    fh_json_free(info);
    fh_fhead_close(f);
    fh_free(b);
    return 0;
}
