/* format/fhead.c: opening a .fhead.  O(header): nothing behind the section table is read here, and no offset, length or
 * count is used before it is checked against the file's real size. */
#include "format/fhead_private.h"

#include <stdio.h>
#include <string.h>

const uint8_t fh_fhead_magic[8] = {0x89, 'F', 'H', 'E', 'A', 'D', 0x0D, 0x0A};

/* The features that `requires` may name. */
static const char *const known_features[] = {FH_FEATURE_THRESHOLD, NULL};

static const char *const known_sections[] = {
    "head.centroids", "head.centroid_scales", "head.tokens",  "head.token_scales", "head.permutation",     "head.dead", "head.bias",
    "head.exact",     "body.config",          "body.generation", "body.tensors",   "body.tokenizer", "body.tokenizer_config",
    "body.chat_template",
};

bool fh_section_name_ok(const char name[FH_SECTION_NAME], size_t *len)
{
    size_t n = 0;
    while (n < FH_SECTION_NAME && name[n]) {
        char c = name[n++];
        if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-')) return false;
    }
    *len = n;
    return n && fh_all_zero((const uint8_t *)name + n, FH_SECTION_NAME - n);
}

/* ---- what is not a .fhead ------------------------------------------------------------------------------------ */

static bool begins(const fh_fhead *f, const char *with)
{
    size_t n = strlen(with);
    return f->size >= n && !memcmp(f->data, with, n);
}

/* Say what the file looks like: the usual accidents each have a remedy of their own. */
static fh_status refuse_foreign(const fh_fhead *f, fh_err *err)
{
    const char *p = (const char *)f->data, *name = f->name;
    size_t at = 0;
    if (!f->size) return fh_fail(err, FH_EFORMAT, "%s: empty file, not a .fhead: is the download complete?", name);
    if (f->size < 8 && !memcmp(p, fh_fhead_magic, (size_t)f->size))
        return fh_fail(err, FH_EFORMAT, "%s: cut off after %zu bytes: is the download complete?", name, (size_t)f->size);
    if (begins(f, "\x89" "FHEAD"))
        return fh_fail(err, FH_EFORMAT, "%s: line ends in the magic were changed on the way: transfer it as a binary file", name);
    if (begins(f, "version https://git-lfs"))
        return fh_fail(err, FH_EFORMAT, "%s: a Git LFS pointer, not the file it stands for: run `git lfs pull`", name);
    if (begins(f, "GGUF")) return fh_fail(err, FH_EFORMAT, "%s: a GGUF file, not a .fhead: convert its checkpoint instead", name);
    if (begins(f, "PK\x03\x04")) return fh_fail(err, FH_EFORMAT, "%s: a zip archive (a PyTorch file?), not a .fhead", name);
    if (begins(f, "\x1f\x8b") || begins(f, "\x28\xb5\x2f\xfd") || begins(f, "\xfd" "7zXZ") || begins(f, "BZh"))
        return fh_fail(err, FH_EFORMAT, "%s: a compressed file, not a .fhead: decompress it first", name);
    if (f->size > 9 && fh_le(f->data, 8) <= f->size - 8 && p[8] == '{')
        return fh_fail(err, FH_EFORMAT, "%s: a safetensors file, not a .fhead: `fhtool build` makes one from a checkpoint", name);
    while (at < 64 && at < f->size && (p[at] == ' ' || p[at] == '\n' || p[at] == '\r' || p[at] == '\t')) at++;
    if (at < f->size && p[at] == '<')
        return fh_fail(err, FH_EFORMAT, "%s: an HTML page, not a .fhead: the download gave an error or a login page", name);
    if (at < f->size && p[at] == '{') return fh_fail(err, FH_EFORMAT, "%s: a JSON text, not a .fhead", name);
    return fh_fail(err, FH_EFORMAT, "%s: not a .fhead: byte 0 should begin the magic 89 46 48 45 41 44 0d 0a", name);
}

/* ---- the fixed header ---------------------------------------------------------------------------------------- */

/* Magic, version, sizes; then the digest over everything that the header says. */
static fh_status read_fixed(fh_fhead *f, uint64_t *json_bytes, fh_err *err)
{
    const uint8_t *p = f->data;
    uint64_t count, table, bytes;
    uint8_t digest[32];
    const uint8_t zero[32] = {0};
    fh_sha256 sha;
    if (f->size < 8 || memcmp(p, fh_fhead_magic, 8) != 0) return refuse_foreign(f, err);
    if (f->size < 12) return fh_fail(err, FH_EFORMAT, "%s: cut off after %zu bytes: is the download complete?", f->name, (size_t)f->size);
    f->major = (uint16_t)fh_le(p + 8, 2);
    f->minor = (uint16_t)fh_le(p + 10, 2);
    if (f->major > FH_FHEAD_MAJOR)
        return fh_fail(err, FH_EUNSUPPORTED, "%s: written by a newer fhtool: format %u.%u, this one reads %d.x", f->name, f->major,
                       f->minor, FH_FHEAD_MAJOR);
    if (f->major < FH_FHEAD_MAJOR)
        return fh_fail(err, FH_EFORMAT, "%s: byte 8: there is no format %u.%u: the file is damaged", f->name, f->major, f->minor);
    if (f->size < FH_FHEAD_FIXED)
        return fh_fail(err, FH_EFORMAT, "%s: cut off after %zu bytes, the header alone has %d: is the download complete?", f->name,
                       (size_t)f->size, FH_FHEAD_FIXED);
    count = fh_le(p + 12, 4);
    *json_bytes = fh_le(p + 16, 8);
    table = fh_le(p + 24, 8);
    bytes = fh_le(p + 32, 8);
    if (bytes != f->size)
        return fh_fail(err, FH_EFORMAT, "%s: the header says %llu bytes, the file has %llu: is the download complete?", f->name,
                       (unsigned long long)bytes, (unsigned long long)f->size);
    if (!fh_all_zero(p + 40, 24) || !fh_all_zero(p + 96, 32))
        return fh_fail(err, FH_EFORMAT, "%s: byte %d: reserved bytes of the header are not zero", f->name,
                       fh_all_zero(p + 40, 24) ? 96 : 40);
    if (*json_bytes < 2 || *json_bytes > FH_FHEAD_MAX_JSON || *json_bytes > f->size - FH_FHEAD_FIXED)
        return fh_fail(err, FH_EFORMAT, "%s: byte 16: a JSON header of %llu bytes is not possible (2 to %d, within the file)", f->name,
                       (unsigned long long)*json_bytes, FH_FHEAD_MAX_JSON);
    if (table != fh_round_up(FH_FHEAD_FIXED + *json_bytes, FH_FHEAD_TABLE_ALIGN))
        return fh_fail(err, FH_EFORMAT, "%s: byte 24: the section table is said to begin at %llu, after the JSON it begins at %zu", f->name,
                       (unsigned long long)table, fh_round_up((size_t)(FH_FHEAD_FIXED + *json_bytes), FH_FHEAD_TABLE_ALIGN));
    if (!count || count > FH_MAX_SECTIONS)
        return fh_fail(err, FH_EFORMAT, "%s: byte 12: %llu sections are not possible (1 to %d)", f->name, (unsigned long long)count,
                       FH_MAX_SECTIONS);
    f->n = (size_t)count;
    f->table_end = table + count * FH_FHEAD_ENTRY;
    if (f->table_end > f->size)
        return fh_fail(err, FH_EFORMAT, "%s: byte 12: a table of %llu sections runs past the end of the file (%llu bytes)", f->name,
                       (unsigned long long)count, (unsigned long long)f->size);

    fh_sha256_init(&sha);
    fh_sha256_update(&sha, p, FH_FHEAD_DIGEST_AT);
    fh_sha256_update(&sha, zero, sizeof zero);
    fh_sha256_update(&sha, p + FH_FHEAD_DIGEST_AT + 32, (size_t)f->table_end - FH_FHEAD_DIGEST_AT - 32);
    fh_sha256_final(&sha, digest);
    if (memcmp(digest, p + FH_FHEAD_DIGEST_AT, 32) != 0)
        return fh_fail(err, FH_EFORMAT,
                       "%s: byte %d: the digest is not that of the header and section table: the file is damaged, fetch it again", f->name,
                       FH_FHEAD_DIGEST_AT);
    fh_sha256_hex(f->digest, digest);
    if (!fh_all_zero(p + FH_FHEAD_FIXED + *json_bytes, (size_t)(table - FH_FHEAD_FIXED - *json_bytes)))
        return fh_fail(err, FH_EFORMAT, "%s: byte %llu: padding after the JSON header is not zero", f->name,
                       (unsigned long long)(FH_FHEAD_FIXED + *json_bytes));
    return FH_OK;
}

/* ---- the section table --------------------------------------------------------------------------------------- */

static bool known_section(const char *name)
{
    for (size_t i = 0; i < sizeof known_sections / sizeof *known_sections; i++)
        if (!strcmp(known_sections[i], name)) return true;
    return false;
}

/* One entry, in itself and against the end of the section before it. */
static fh_status read_entry(fh_fhead *f, size_t i, uint64_t before, fh_err *err)
{
    fh_section *s = &f->sections[i];
    uint64_t at = f->table_end - (f->n - i) * FH_FHEAD_ENTRY, want;
    const uint8_t *p = f->data + at;
    uint32_t codec = (uint32_t)fh_le(p + 32, 4);
    size_t len;
    if (!fh_section_name_ok((const char *)p, &len))
        return fh_fail(err, FH_EFORMAT, "%s: byte %llu: the name of section %zu is not 1 to %d of a-z 0-9 . _ - padded with zeros", f->name,
                       (unsigned long long)at, i, FH_SECTION_NAME);
    memcpy(s->name, p, len);
    s->flags = (uint32_t)fh_le(p + 36, 4);
    s->offset = fh_le(p + 40, 8);
    s->bytes = fh_le(p + 48, 8);
    s->raw_bytes = fh_le(p + 56, 8);
    s->alignment = (uint32_t)fh_le(p + 64, 4);
    memcpy(s->sha256, p + 96, 32);
    if (codec != FH_CODEC_RAW && codec != FH_CODEC_ZSTD)
        return fh_fail(err, FH_EUNSUPPORTED, "%s: section %s: codec %u is not one this fhtool knows (0 raw, 1 zstd)", f->name, s->name,
                       codec);
    s->codec = (fh_codec)codec;
    if (s->flags & ~(uint32_t)FH_SECTION_REQUIRED)
        return fh_fail(err, FH_EUNSUPPORTED, "%s: section %s: flags 0x%x hold bits this fhtool does not know", f->name, s->name, s->flags);
    if (s->alignment != FH_FHEAD_ALIGN || !fh_all_zero(p + 68, 28))
        return fh_fail(err, FH_EFORMAT, "%s: section %s: alignment %u or reserved bytes of its table entry are wrong (%d and zero)",
                       f->name, s->name, s->alignment, FH_FHEAD_ALIGN);
    for (size_t j = 0; j < i; j++)
        if (!strcmp(f->sections[j].name, s->name))
            return fh_fail(err, FH_EFORMAT, "%s: sections %zu and %zu have the same name, %s", f->name, j, i, s->name);
    if ((s->flags & FH_SECTION_REQUIRED) && !known_section(s->name))
        return fh_fail(err, FH_EUNSUPPORTED, "%s: section %s is required, and this fhtool does not know it: a newer one is needed", f->name,
                       s->name);

    want = fh_round_up(before, FH_FHEAD_ALIGN); /* before <= size, which a map keeps far below the wrap */
    if (s->offset < want)
        return fh_fail(err, FH_EFORMAT, "%s: section %s: offset %llu overlaps what ends at %llu, or is out of order", f->name, s->name,
                       (unsigned long long)s->offset, (unsigned long long)before);
    if (s->offset % FH_FHEAD_ALIGN)
        return fh_fail(err, FH_EFORMAT, "%s: section %s: offset %llu is not a multiple of %d", f->name, s->name,
                       (unsigned long long)s->offset, FH_FHEAD_ALIGN);
    if (s->offset > f->size || s->bytes > f->size - s->offset)
        return fh_fail(err, FH_EFORMAT, "%s: section %s: offset %llu and %llu bytes run past the end of the file (%llu bytes)", f->name,
                       s->name, (unsigned long long)s->offset, (unsigned long long)s->bytes, (unsigned long long)f->size);
    if (s->offset > want)
        return fh_fail(err, FH_EFORMAT, "%s: section %s: a hole from %llu to %llu before it", f->name, s->name, (unsigned long long)want,
                       (unsigned long long)s->offset);
    if (s->codec == FH_CODEC_RAW && s->raw_bytes != s->bytes)
        return fh_fail(err, FH_EFORMAT, "%s: section %s: stored as it is, but of %llu bytes %llu are stored", f->name, s->name,
                       (unsigned long long)s->raw_bytes, (unsigned long long)s->bytes);
    if (s->codec == FH_CODEC_ZSTD && (s->raw_bytes > fh_inflate_limit(s->bytes) || s->raw_bytes > SIZE_MAX))
        return fh_fail(err, FH_EFORMAT, "%s: section %s: %llu compressed bytes may not become %llu (at most 32 for one and 16 MiB)",
                       f->name, s->name, (unsigned long long)s->bytes, (unsigned long long)s->raw_bytes);
    return FH_OK;
}

static fh_status read_table(fh_fhead *f, fh_err *err)
{
    uint64_t end = f->table_end, first;
    fh_status rc;
    f->sections = fh_calloc(f->n, sizeof *f->sections);
    f->inflated = fh_calloc(f->n, sizeof *f->inflated);
    if (!f->sections || !f->inflated) return fh_fail(err, FH_ENOMEM, "%s: out of memory", f->name);
    for (size_t i = 0; i < f->n; i++) {
        if ((rc = read_entry(f, i, end, err)) < 0) return rc;
        end = f->sections[i].offset + f->sections[i].bytes;
    }
    if (end != f->size)
        return fh_fail(err, FH_EFORMAT, "%s: %llu bytes after the last section, which ends at %llu", f->name,
                       (unsigned long long)(f->size - end), (unsigned long long)end);
    first = f->sections[0].offset;
    if (!fh_all_zero(f->data + f->table_end, (size_t)(first - f->table_end)))
        return fh_fail(err, FH_EFORMAT, "%s: padding from byte %llu to the first section is not zero", f->name,
                       (unsigned long long)f->table_end);
    return FH_OK;
}

/* ---- the JSON header ------------------------------------------------------------------------------------------- */

static fh_status read_json(fh_fhead *f, uint64_t json_bytes, fh_err *err)
{
    const fh_json *requires;
    const char *format;
    char where[300];
    fh_status rc;
    snprintf(where, sizeof where, "%.270s: JSON header", f->name);
    if ((rc = fh_json_parse(&f->header, (const char *)f->data + FH_FHEAD_FIXED, (size_t)json_bytes, where, err)) < 0) return rc;
    format = fh_json_string(fh_json_get(f->header, "format"));
    if (!format || strcmp(format, "fhead") != 0) return fh_fail(err, FH_EFORMAT, "%s: /format is not \"fhead\"", where);
    requires = fh_json_get(f->header, "requires");
    if (!requires || fh_json_type(requires) != FH_JSON_ARRAY) return fh_fail(err, FH_EFORMAT, "%s: /requires is not an array", where);
    for (const fh_json *r = fh_json_first(requires); r; r = fh_json_next(r)) {
        const char *name = fh_json_string(r);
        bool known = false;
        if (!name) return fh_fail(err, FH_EFORMAT, "%s: /requires holds something that is not a string", where);
        for (size_t i = 0; known_features[i]; i++) known = known || !strcmp(known_features[i], name);
        if (!known)
            return fh_fail(err, FH_EUNSUPPORTED, "%s: requires '%s', which this fhtool does not know: a newer one is needed", f->name,
                           name);
    }
    return FH_OK;
}

/* ---- open, close, look ------------------------------------------------------------------------------------------ */

/* Takes over map (may be NULL: the bytes are the caller's). */
static fh_status open_bytes(fh_fhead **out, fh_map *map, const void *data, size_t size, const char *name, fh_err *err)
{
    uint64_t json_bytes = 0;
    fh_status rc;
    fh_fhead *f = fh_calloc(1, sizeof *f);
    if (!f) {
        if (map) fh_map_close(map);
        return fh_fail(err, FH_ENOMEM, "%s: out of memory", name);
    }
    if (map) f->map = *map;
    f->data = data;
    f->size = size;
    f->name = fh_strdup(name);
    if (!f->name) {
        rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", name);
        goto out;
    }
    if ((rc = read_fixed(f, &json_bytes, err)) < 0) goto out;
    if ((rc = read_table(f, err)) < 0) goto out;
    if ((rc = read_json(f, json_bytes, err)) < 0) goto out;
    *out = f, f = NULL;
out:
    fh_fhead_close(f);
    return rc;
}

fh_status fh_fhead_open(fh_fhead **out, const char *path, fh_err *err)
{
    fh_map map = {0};
    fh_status rc = fh_map_open(&map, path, err);
    if (rc < 0) return rc;
    return open_bytes(out, &map, map.data, map.size, path, err);
}

fh_status fh_fhead_open_memory(fh_fhead **out, const void *data, size_t size, const char *name, fh_err *err)
{
    if ((uintptr_t)data % 64) return fh_fail(err, FH_EUSAGE, "%s: the bytes of a .fhead in memory are to be 64-byte aligned", name);
    return open_bytes(out, NULL, data, size, name, err);
}

void fh_fhead_close(fh_fhead *f)
{
    if (!f) return;
    for (size_t i = 0; f->inflated && i < f->n; i++) fh_free(f->inflated[i]);
    fh_free(f->inflated);
    fh_free(f->sections);
    fh_free(f->ids);
    fh_free(f->name);
    fh_json_free(f->header);
    fh_map_close(&f->map);
    fh_free(f);
}

const char *fh_fhead_path(const fh_fhead *f) { return f->name; }
const fh_json *fh_fhead_header(const fh_fhead *f) { return f->header; }
const char *fh_fhead_digest(const fh_fhead *f) { return f->digest; }
uint16_t fh_fhead_major(const fh_fhead *f) { return f->major; }
uint16_t fh_fhead_minor(const fh_fhead *f) { return f->minor; }
size_t fh_fhead_sections(const fh_fhead *f) { return f->n; }
const fh_section *fh_fhead_section(const fh_fhead *f, size_t i) { return i < f->n ? &f->sections[i] : NULL; }

const fh_section *fh_fhead_find(const fh_fhead *f, const char *name)
{
    for (size_t i = 0; i < f->n; i++)
        if (!strcmp(f->sections[i].name, name)) return &f->sections[i];
    return NULL;
}

fh_status fh_fhead_data(fh_fhead *f, const char *name, const void **data, size_t *bytes, fh_err *err)
{
    const fh_section *s = fh_fhead_find(f, name);
    size_t i;
    void *buffer;
    fh_status rc;
    if (!s) return fh_fail(err, FH_ENOTFOUND, "%s: no section %s", f->name, name);
    i = (size_t)(s - f->sections);
    if (s->codec == FH_CODEC_RAW) {
        *data = f->data + s->offset;
        *bytes = (size_t)s->bytes;
        return FH_OK;
    }
    if (!f->inflated[i]) {
        buffer = fh_malloc(s->raw_bytes ? (size_t)s->raw_bytes : 1);
        if (!buffer)
            return fh_fail(err, FH_ENOMEM, "%s: section %s: out of memory (%llu bytes)", f->name, name, (unsigned long long)s->raw_bytes);
        rc = fh_zstd_inflate(buffer, (size_t)s->raw_bytes, f->data + s->offset, (size_t)s->bytes, f->name, name, err);
        if (rc < 0) {
            fh_free(buffer);
            return rc;
        }
        f->inflated[i] = buffer;
    }
    *data = f->inflated[i];
    *bytes = (size_t)s->raw_bytes;
    return FH_OK;
}
