/* format/fhead_write.c: writing a .fhead.  The header's JSON and the number of sections are known at the start, so the file is
 * written once, front to back; only fixed header, table and digest are filled in at the end.  Equal input gives equal bytes. */
#include "format/fhead_private.h"

#include <string.h>

struct fh_fhead_writer {
    fh_out *out;
    char *path;
    uint8_t *area; size_t area_bytes; /* everything before the first section, as it will be in the end */
    uint64_t table, json_bytes;
    fh_section *sections; size_t n, count; /* begun so far; declared */
    bool open;                        /* the last section still takes bytes */
    fh_sha256 sha;                    /* of the stored bytes of that section */
    fh_buf raw; /* what a compressed section holds: compressed in one piece, so that bytes do not depend on how it came */
    fh_status broken;                 /* the first failure: nothing can be committed after it */
};

static const uint8_t zeros[FH_FHEAD_ALIGN];

static fh_status broke(fh_fhead_writer *w, fh_status rc)
{
    if (rc < 0 && !w->broken) w->broken = rc;
    return rc;
}

fh_status fh_fhead_create(fh_fhead_writer **out, const char *path, unsigned flags, const char *header, size_t sections, fh_err *err)
{
    fh_fhead_writer *w;
    size_t len = strlen(header);
    fh_status rc;
    if (len < 2 || len > FH_FHEAD_MAX_JSON)
        return fh_fail(err, FH_EUSAGE, "%s: a JSON header of %zu bytes cannot be written (2 to %d)", path, len, FH_FHEAD_MAX_JSON);
    if (!sections || sections > FH_MAX_SECTIONS)
        return fh_fail(err, FH_EUSAGE, "%s: %zu sections cannot be written (1 to %d)", path, sections, FH_MAX_SECTIONS);
    w = fh_calloc(1, sizeof *w);
    if (!w) return fh_fail(err, FH_ENOMEM, "%s: out of memory", path);
    w->count = sections;
    w->json_bytes = len;
    w->table = fh_round_up(FH_FHEAD_FIXED + len, FH_FHEAD_TABLE_ALIGN);
    w->area_bytes = fh_round_up((size_t)w->table + sections * FH_FHEAD_ENTRY, FH_FHEAD_ALIGN);
    w->path = fh_strdup(path);
    w->sections = fh_calloc(sections, sizeof *w->sections);
    w->area = fh_calloc(1, w->area_bytes);
    if (!w->path || !w->sections || !w->area) {
        rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", path);
        goto out;
    }
    memcpy(w->area + FH_FHEAD_FIXED, header, len);
    if ((rc = fh_out_open(&w->out, path, flags, err)) < 0) goto out;
    if ((rc = fh_out_write(w->out, w->area, w->area_bytes, err)) < 0) goto out; /* no magic yet: not taken for a .fhead */
    *out = w, w = NULL;
out:
    fh_fhead_abandon(w);
    return rc;
}

/* Bytes of the section as they are stored. */
static fh_status store(fh_fhead_writer *w, const void *data, size_t bytes, fh_err *err)
{
    fh_sha256_update(&w->sha, data, bytes);
    w->sections[w->n - 1].bytes += bytes;
    return fh_out_write(w->out, data, bytes, err);
}

/* End the section begun last. */
static fh_status finish(fh_fhead_writer *w, fh_err *err)
{
    fh_section *s;
    void *packed = NULL;
    size_t bytes = 0;
    fh_status rc = FH_OK;
    if (!w->open) return FH_OK;
    w->open = false;
    s = &w->sections[w->n - 1];
    if (s->codec == FH_CODEC_ZSTD) {
        s->raw_bytes = w->raw.len;
        if (w->raw.failed) rc = fh_fail(err, FH_ENOMEM, "%s: section %s: out of memory", w->path, s->name);
        else rc = fh_zstd_deflate(&packed, &bytes, w->raw.len ? w->raw.data : "", w->raw.len, w->path, s->name, err);
        fh_buf_free(&w->raw);
        if (rc >= 0 && s->raw_bytes > fh_inflate_limit(bytes))
            rc = fh_fail(err, FH_EUNSUPPORTED, "%s: section %s: %llu bytes compress to %zu, more than readers accept: store it raw",
                         w->path, s->name, (unsigned long long)s->raw_bytes, bytes);
        if (rc >= 0) rc = store(w, packed, bytes, err);
        fh_free(packed);
    } else {
        s->raw_bytes = s->bytes;
    }
    fh_sha256_final(&w->sha, s->sha256);
    return rc;
}

fh_status fh_fhead_begin(fh_fhead_writer *w, const char *name, fh_codec codec, uint32_t flags, fh_err *err)
{
    fh_section *s;
    char padded[FH_SECTION_NAME] = {0};
    size_t len = strlen(name), gap;
    fh_status rc;
    if (w->broken) return fh_fail(err, w->broken, "%s: an earlier write failed", w->path);
    if ((rc = finish(w, err)) < 0) return broke(w, rc);
    memcpy(padded, name, fh_min(len, sizeof padded));
    if (len > sizeof padded || !fh_section_name_ok(padded, &len))
        return broke(w,
                     fh_fail(err, FH_EUSAGE, "%s: '%s' is not a section name (1 to %d of a-z 0-9 . _ -)", w->path, name, FH_SECTION_NAME));
    for (size_t i = 0; i < w->n; i++)
        if (!strcmp(w->sections[i].name, name)) return broke(w, fh_fail(err, FH_EUSAGE, "%s: section %s is written twice", w->path, name));
    if (w->n == w->count || (codec != FH_CODEC_RAW && codec != FH_CODEC_ZSTD) || (flags & ~(uint32_t)FH_SECTION_REQUIRED))
        return broke(w, fh_fail(err, FH_EUSAGE, "%s: section %s: one more than the %zu declared, or an unknown codec or flag", w->path,
                                name, w->count));
    gap = fh_round_up((size_t)fh_out_tell(w->out), FH_FHEAD_ALIGN) - (size_t)fh_out_tell(w->out);
    if ((rc = fh_out_write(w->out, zeros, gap, err)) < 0) return broke(w, rc);
    s = &w->sections[w->n++];
    memcpy(s->name, padded, len);
    s->codec = codec;
    s->flags = flags;
    s->offset = fh_out_tell(w->out);
    s->alignment = FH_FHEAD_ALIGN;
    fh_sha256_init(&w->sha);
    w->open = true;
    return FH_OK;
}

fh_status fh_fhead_write(fh_fhead_writer *w, const void *data, size_t bytes, fh_err *err)
{
    if (w->broken) return fh_fail(err, w->broken, "%s: an earlier write failed", w->path);
    if (!w->open) return broke(w, fh_fail(err, FH_EUSAGE, "%s: bytes before the first section", w->path));
    if (!bytes) return FH_OK;
    if (w->sections[w->n - 1].codec == FH_CODEC_RAW) return broke(w, store(w, data, bytes, err));
    fh_buf_add(&w->raw, data, bytes);
    return FH_OK; /* running out of memory sticks in the buffer and is reported when the section ends */
}

fh_status fh_fhead_add(fh_fhead_writer *w, const char *name, fh_codec codec, uint32_t flags, const void *data, size_t bytes, fh_err *err)
{
    fh_status rc = fh_fhead_begin(w, name, codec, flags, err);
    return rc < 0 ? rc : fh_fhead_write(w, data, bytes, err);
}

static void fill_area(fh_fhead_writer *w, uint8_t digest[32])
{
    uint8_t *p = w->area;
    memcpy(p, fh_fhead_magic, 8);
    fh_le_put(p + 8, 2, FH_FHEAD_MAJOR);
    fh_le_put(p + 10, 2, FH_FHEAD_MINOR);
    fh_le_put(p + 12, 4, w->n);
    fh_le_put(p + 16, 8, w->json_bytes);
    fh_le_put(p + 24, 8, w->table);
    fh_le_put(p + 32, 8, fh_out_tell(w->out));
    for (size_t i = 0; i < w->n; i++) {
        const fh_section *s = &w->sections[i];
        uint8_t *e = p + w->table + i * FH_FHEAD_ENTRY;
        memcpy(e, s->name, strlen(s->name)); /* the rest is zero already */
        fh_le_put(e + 32, 4, s->codec);
        fh_le_put(e + 36, 4, s->flags);
        fh_le_put(e + 40, 8, s->offset);
        fh_le_put(e + 48, 8, s->bytes);
        fh_le_put(e + 56, 8, s->raw_bytes);
        fh_le_put(e + 64, 4, s->alignment);
        memcpy(e + 96, s->sha256, 32);
    }
    fh_sha256_of(digest, p, (size_t)w->table + w->n * FH_FHEAD_ENTRY); /* the digest's own bytes are still zero */
    memcpy(p + FH_FHEAD_DIGEST_AT, digest, 32);
}

fh_status fh_fhead_commit(fh_fhead_writer *w, char digest[65], fh_err *err)
{
    uint8_t sha[32];
    fh_status rc;
    if (w->broken) {
        rc = fh_fail(err, w->broken, "%s: an earlier write failed", w->path);
        goto out;
    }
    if ((rc = finish(w, err)) < 0) goto out;
    if (w->n != w->count) {
        rc = fh_fail(err, FH_EUSAGE, "%s: %zu sections were written, %zu declared", w->path, w->n, w->count);
        goto out;
    }
    fill_area(w, sha);
    if ((rc = fh_out_write_at(w->out, 0, w->area, w->area_bytes, err)) < 0) goto out;
    rc = fh_out_commit(w->out, err);
    w->out = NULL;
    if (rc >= 0) fh_sha256_hex(digest, sha);
out:
    fh_fhead_abandon(w);
    return rc;
}

void fh_fhead_abandon(fh_fhead_writer *w)
{
    if (!w) return;
    fh_out_abandon(w->out);
    fh_buf_free(&w->raw);
    fh_free(w->sections);
    fh_free(w->area);
    fh_free(w->path);
    fh_free(w);
}
