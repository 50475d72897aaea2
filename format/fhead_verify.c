/* format/fhead_verify.c: reading all of a .fhead once, so that any bit that is not what was written is found. */
#include "format/fhead_private.h"

#include <string.h>

/* Digest of one section, in pieces, so that it can be stopped and watched. */
static fh_status verify_digest(fh_fhead *f, const fh_section *s, const fh_job *job, fh_err *err)
{
    enum { PIECE = 4 << 20 };
    const uint8_t *p = f->data + s->offset;
    uint8_t digest[32];
    fh_sha256 sha;
    fh_sha256_init(&sha);
    for (uint64_t at = 0; at < s->bytes; at += PIECE) {
        if (fh_job_stopped(job)) return fh_fail(err, FH_EINTERRUPTED, "%s: interrupted", f->name);
        fh_sha256_update(&sha, p + at, (size_t)(s->bytes - at < PIECE ? s->bytes - at : PIECE));
        fh_job_progress(job, "verify", (double)(s->offset + at), (double)f->size, "bytes");
    }
    fh_sha256_final(&sha, digest);
    if (memcmp(digest, s->sha256, 32) != 0)
        return fh_fail(err, FH_EFORMAT,
                       "%s: section %s: its %llu bytes from %llu do not have the digest in the table: the file is damaged, fetch it again",
                       f->name, s->name, (unsigned long long)s->bytes, (unsigned long long)s->offset);
    return FH_OK;
}

/* What is past the last value in an int4 row's last line. */
static bool nibbles_zero(const uint8_t *row, size_t cols)
{
    for (size_t i = cols; i % 128; i++)
        if (row[i / 128 * 64 + i % 64] >> (i % 128 < 64 ? 0 : 4) & 15) return false;
    return true;
}

/* Zeros behind each row's values; whole rows of zeros in empty slots (permutation NULL: there are none). */
static fh_status verify_padding(const fh_fhead *f, const fh_rows *rows, const uint32_t *permutation, const char *section, const fh_job *job,
                                fh_err *err)
{
    bool i4 = rows->dtype == FH_I4;
    size_t used = fh_row_bytes(rows->dtype, rows->cols);
    for (size_t r = 0; rows->data && r < rows->rows; r++) {
        size_t from = permutation && permutation[r] == UINT32_MAX ? 0 : used;
        if (r % 65536 == 0 && fh_job_stopped(job)) return fh_fail(err, FH_EINTERRUPTED, "%s: interrupted", f->name);
        if (!fh_all_zero((const uint8_t *)fh_row(rows, r) + from, rows->stride - from) || (i4 && from && !nibbles_zero(fh_row(rows, r), rows->cols)))
            return fh_fail(err, FH_EFORMAT, "%s: section %s: row %zu: %s is not zero", f->name, section, r,
                           from ? "its padding" : "this empty slot");
    }
    return FH_OK;
}

fh_status fh_fhead_verify(fh_fhead *f, const fh_job *job, fh_err *err)
{
    fh_head_layout h;
    uint64_t end = f->table_end;
    const void *data;
    size_t bytes;
    fh_status rc;
    for (size_t i = 0; i < f->n; i++) {
        const fh_section *s = &f->sections[i];
        if (!fh_all_zero(f->data + end, (size_t)(s->offset - end)))
            return fh_fail(err, FH_EFORMAT, "%s: padding from byte %llu to section %s is not zero: the file is damaged, fetch it again",
                           f->name, (unsigned long long)end, s->name);
        if ((rc = verify_digest(f, s, job, err)) < 0) return rc;
        if (s->codec == FH_CODEC_ZSTD && (rc = fh_fhead_data(f, s->name, &data, &bytes, err)) < 0) return rc;
        end = s->offset + s->bytes;
    }
    if ((rc = fh_fhead_check_head(f, &h, err)) < 0 || (rc = verify_padding(f, &h.centroids, NULL, "head.centroids", job, err)) < 0 ||
        (rc = verify_padding(f, &h.tokens, h.permutation, "head.tokens", job, err)) < 0 ||
        (rc = verify_padding(f, &h.exact, h.permutation, "head.exact", job, err)) < 0 ||
        (rc = fh_head_layout_check_rows(&h, f->name, job, err)) < 0)
        return rc;
    size_t each = h.tokens.dtype == FH_I4 ? (h.tokens.cols + FH_GROUP - 1) / FH_GROUP : 1;
    for (size_t i = 0; h.token_scales && i < h.tokens.rows * each; i++)
        if (h.permutation[i / each] == UINT32_MAX && fh_scale_at(h.tokens.dtype, h.token_scales, i) != 1.0f)
            return fh_fail(err, FH_ECHECK, "%s: section head.token_scales: the scale of empty slot %zu is %g, not 1", f->name, i / each,
                           (double)fh_scale_at(h.tokens.dtype, h.token_scales, i));
    fh_job_progress(job, "verify", (double)f->size, (double)f->size, "bytes");
    return FH_OK;
}
