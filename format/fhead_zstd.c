/* format/fhead_zstd.c: compressed sections.  The only file that includes zstd. */
#define ZSTD_STATIC_LINKING_ONLY /* for ZSTD_customMem, the frame header and the context constructors that take it */
#include <zstd.h>
#include <zstd_errors.h>

#include "format/fhead_private.h"

/* One thread, as more would change the bytes.  GPT-2's tokenizer.json, 2108 kB: level 3 makes 616 kB of it, level 12 556 kB in
 * 0.09 s, level 19 500 kB in 0.73 s (one core of a cloud server): not worth the wait beside rows of gigabytes. */
enum { LEVEL = 12 };

static void *zstd_malloc(void *opaque, size_t n) { return fh_malloc(n); }
static void zstd_free(void *opaque, void *p) { fh_free(p); }

static const ZSTD_customMem memory = {zstd_malloc, zstd_free, NULL};

fh_status fh_zstd_inflate(void *dst, size_t raw, const void *src, size_t bytes, const char *file, const char *section, fh_err *err)
{
    ZSTD_frameHeader head;
    ZSTD_DCtx *ctx = NULL;
    fh_status rc = FH_OK;
    size_t got;
    if (ZSTD_getFrameHeader(&head, src, bytes) != 0 || head.frameType != ZSTD_frame)
        return fh_fail(err, FH_EFORMAT, "%s: section %s: not a zstd frame: fetch the file again", file, section);
    /* Judged before a byte is inflated: a frame that would give more than the table says never gets to. */
    if (head.frameContentSize != raw)
        return fh_fail(err, FH_EFORMAT, "%s: section %s: the table says %zu bytes after decompression, the zstd frame says %s%llu", file,
                       section, raw, head.frameContentSize == ZSTD_CONTENTSIZE_UNKNOWN ? "nothing, " : "",
                       head.frameContentSize == ZSTD_CONTENTSIZE_UNKNOWN ? 0ull : head.frameContentSize);
    if (head.dictID)
        return fh_fail(err, FH_EUNSUPPORTED, "%s: section %s: compressed with zstd dictionary %u, the format has none", file, section,
                       head.dictID);
    got = ZSTD_findFrameCompressedSize(src, bytes);
    if (ZSTD_isError(got) || got != bytes)
        return fh_fail(err, FH_EFORMAT, "%s: section %s: the zstd frame does not end with the section's %zu bytes", file, section, bytes);
    ctx = ZSTD_createDCtx_advanced(memory);
    if (!ctx) return fh_fail(err, FH_ENOMEM, "%s: section %s: out of memory", file, section);
    got = ZSTD_decompressDCtx(ctx, dst, raw, src, bytes); /* writes at most raw bytes */
    if (ZSTD_isError(got)) {
        if (ZSTD_getErrorCode(got) == ZSTD_error_memory_allocation)
            rc = fh_fail(err, FH_ENOMEM, "%s: section %s: out of memory", file, section);
        else rc = fh_fail(err, FH_EFORMAT, "%s: section %s: zstd: %s: fetch the file again", file, section, ZSTD_getErrorName(got));
    } else if (got != raw) {
        rc = fh_fail(err, FH_EFORMAT, "%s: section %s: inflates to %zu bytes, the table says %zu", file, section, got, raw);
    }
    ZSTD_freeDCtx(ctx);
    return rc;
}

fh_status fh_zstd_deflate(void **out, size_t *bytes, const void *src, size_t raw, const char *file, const char *section, fh_err *err)
{
    fh_status rc = FH_OK;
    size_t room = ZSTD_compressBound(raw), got = 0;
    void *dst = ZSTD_isError(room) ? NULL : fh_malloc(room);
    ZSTD_CCtx *ctx = ZSTD_createCCtx_advanced(memory);
    if (!dst || !ctx) {
        rc = fh_fail(err, FH_ENOMEM, "%s: section %s: out of memory", file, section);
        goto out;
    }
    if (!ZSTD_isError(got = ZSTD_CCtx_setParameter(ctx, ZSTD_c_compressionLevel, LEVEL)) &&
        !ZSTD_isError(got = ZSTD_CCtx_setParameter(ctx, ZSTD_c_contentSizeFlag, 1)) &&
        !ZSTD_isError(got = ZSTD_CCtx_setParameter(ctx, ZSTD_c_checksumFlag, 0)))
        got = ZSTD_compress2(ctx, dst, room, src, raw);
    if (ZSTD_isError(got)) {
        bool memory_out = ZSTD_getErrorCode(got) == ZSTD_error_memory_allocation;
        rc = fh_fail(err, memory_out ? FH_ENOMEM : FH_EFAIL, "%s: section %s: zstd: %s", file, section, ZSTD_getErrorName(got));
        goto out;
    }
    *out = dst, dst = NULL;
    *bytes = got;
out:
    ZSTD_freeCCtx(ctx);
    fh_free(dst);
    return rc;
}
