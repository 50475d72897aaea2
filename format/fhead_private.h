/* format/fhead_private.h: what the .fhead sources share.  docs/fhead-format.md is the specification.
 *
 *      0        8    10    12         16          24            32           40        64        96       128
 *      +--------+-----+-----+----------+-----------+-------------+------------+---------+---------+---------+
 *      | magic  |major|minor| sections | JSON bytes| table offset| file bytes |  zero   | digest  |  zero   |
 *      +--------+-----+-----+----------+-----------+-------------+------------+---------+---------+---------+
 *
 *  A table entry:
 *      0                32      36      40       48        56         64          68      96        128
 *      +----------------+-------+-------+--------+---------+----------+-----------+-------+---------+
 *      | name           | codec | flags | offset | bytes   | raw bytes| alignment | zero  | SHA-256 |
 *      +----------------+-------+-------+--------+---------+----------+-----------+-------+---------+
 */
#ifndef FH_FHEAD_PRIVATE_H
#define FH_FHEAD_PRIVATE_H

#include "format/format.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "sections are used in place: a little-endian machine is needed");

enum {
    FH_FHEAD_FIXED = 128,       /* bytes of the fixed header: the JSON begins here */
    FH_FHEAD_ENTRY = 128,       /* bytes of a table entry */
    FH_FHEAD_TABLE_ALIGN = 64,
    FH_FHEAD_ALIGN = 4096,      /* of sections */
    FH_FHEAD_DIGEST_AT = 64,
    FH_FHEAD_MAX_JSON = 16 << 20
};
extern const uint8_t fh_fhead_magic[8];

struct fh_fhead {
    fh_map map;                 /* zeroed when the bytes are the caller's */
    const uint8_t *data;
    uint64_t size;
    char *name;
    fh_json *header;
    char digest[65];
    uint16_t major, minor;
    fh_section *sections; size_t n;
    uint64_t table_end;
    void **inflated;            /* [n] what compressed sections hold, once asked for */
    uint32_t *ids;              /* the hot list, then the always list */
    bool checked;               /* layout is filled and judged */
    fh_head_layout layout;
};

static inline uint64_t fh_le(const uint8_t *p, unsigned bytes)
{
    uint64_t v = 0;
    while (bytes--) v = v << 8 | p[bytes];
    return v;
}
static inline void fh_le_put(uint8_t *p, unsigned bytes, uint64_t v)
{
    for (unsigned i = 0; i < bytes; i++, v >>= 8) p[i] = (uint8_t)v;
}
static inline bool fh_all_zero(const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (p[i]) return false;
    return true;
}

/* 1..32 of [a-z0-9._-], then zeros up to 32; *len is the name's length. */
bool fh_section_name_ok(const char name[FH_SECTION_NAME], size_t *len);
/* The most that a compressed section of `bytes` may inflate to: a small file cannot ask for much memory. */
static inline uint64_t fh_inflate_limit(uint64_t bytes)
{
    uint64_t limit;
    if (__builtin_mul_overflow(bytes, 32u, &limit) || __builtin_add_overflow(limit, 16u << 20, &limit)) return UINT64_MAX;
    return limit;
}

/* fhead_zstd.c, the one file that sees zstd.  One frame that states its content size, no dictionary.
 * dst [raw] is filled whole, or the message says for which section of which file it is not. */
fh_status fh_zstd_inflate(void *dst, size_t raw, const void *src, size_t bytes, const char *file, const char *section, fh_err *err);
/* *out [*bytes] is freed by the caller.  The same input gives the same bytes with the same version of zstd. */
fh_status fh_zstd_deflate(void **out, size_t *bytes, const void *src, size_t raw, const char *file, const char *section, fh_err *err);

#endif
