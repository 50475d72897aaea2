/* Characters: UTF-8, classes, normal forms (through utf8proc), and GPT-2's byte map. */
#include "runtime/tokenizer_private.h"

#include <string.h>
#include <utf8proc.h>

char *fh_tok_room(fh_buf *b, size_t n)
{
    size_t need;
    if (b->failed) return NULL;
    if (!fh_add(b->len, n, &need) || !fh_add(need, 1, &need)) { b->failed = true; return NULL; }
    if (need > b->cap) {
        size_t cap = fh_max(fh_max(need, 64), b->cap > SIZE_MAX / 2 ? 0 : b->cap + b->cap / 2);
        char *data = fh_realloc(b->data, cap);
        if (!data) { b->failed = true; return NULL; }
        b->data = data;
        b->cap = cap;
    }
    return b->data + b->len;
}

size_t fh_tok_put_char(char out[4], uint32_t c)
{
    if (c < 0x80) { out[0] = (char)c; return 1; }
    if (c < 0x800) {
        out[0] = (char)(0xC0 | c >> 6);
        out[1] = (char)(0x80 | (c & 0x3F));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xE0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 0x3F));
        out[2] = (char)(0x80 | (c & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 0x3F));
    out[2] = (char)(0x80 | (c >> 6 & 0x3F));
    out[3] = (char)(0x80 | (c & 0x3F));
    return 4;
}

/* ---- classes ------------------------------------------------------------------------------------------------- */

bool fh_tok_is_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
           c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool fh_tok_is_number(uint32_t c)
{
    if (c < 0x80) return c >= '0' && c <= '9';
    utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
    return k == UTF8PROC_CATEGORY_ND || k == UTF8PROC_CATEGORY_NL || k == UTF8PROC_CATEGORY_NO;
}

bool fh_tok_is_mark(uint32_t c)
{
    if (c < 0x300) return false;
    utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
    return k == UTF8PROC_CATEGORY_MN || k == UTF8PROC_CATEGORY_MC || k == UTF8PROC_CATEGORY_ME;
}

bool fh_tok_is_word(uint32_t c)
{
    if (c < 0x80) return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '_';
    if (c == 0x200C || c == 0x200D) return true;
    /* The symbols that are Alphabetic (Other_Alphabetic): letters in circles and squares. */
    if ((c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) || (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189))
        return true;
    switch (utf8proc_category((utf8proc_int32_t)c)) {
    case UTF8PROC_CATEGORY_LU: case UTF8PROC_CATEGORY_LL: case UTF8PROC_CATEGORY_LT: case UTF8PROC_CATEGORY_LM: case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN: case UTF8PROC_CATEGORY_MC: case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND: case UTF8PROC_CATEGORY_NL: case UTF8PROC_CATEGORY_PC:
        return true;
    default:
        return false;
    }
}

size_t fh_tok_lower(uint32_t c, uint32_t out[2])
{
    if (c == 0x130) { /* the one character whose lower case is two, whatever stands around it (SpecialCasing.txt) */
        out[0] = 'i';
        out[1] = 0x307;
        return 2;
    }
    out[0] = (uint32_t)utf8proc_tolower((utf8proc_int32_t)c);
    return 1;
}

/* ---- normal forms ---------------------------------------------------------------------------------------------- */

bool fh_tok_is_normal(fh_tok_form form, const char *text, size_t len)
{
    /* No character below U+0300 (lead byte 0xCC) changes under NFC; ASCII never does. */
    unsigned char limit = form == FH_TOK_NFC ? 0xCC : 0x80;
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)text[i] >= limit) return false;
    return true;
}

static unsigned combining(int32_t c) { return (unsigned)utf8proc_get_property(c)->combining_class; }

/* Order each run of combining marks by class, keeping the order of equals.  utf8proc's own loop swaps neighbours, which takes quadratic
 * time on a hostile run; long runs are counted out instead, into `spare`. */
static void order_marks(int32_t *s, size_t n, int32_t *spare)
{
    for (size_t i = 0; i < n;) {
        if (s[i] < 0x300 || !combining(s[i])) { i++; continue; }
        size_t end = i + 1;
        while (end < n && s[end] >= 0x300 && combining(s[end])) end++;
        if (end - i <= 16) {
            for (size_t j = i + 1; j < end; j++) {
                int32_t c = s[j];
                size_t k = j;
                for (; k > i && combining(s[k - 1]) > combining(c); k--) s[k] = s[k - 1];
                s[k] = c;
            }
        } else {
            size_t at[257] = {0};
            for (size_t j = i; j < end; j++) at[combining(s[j]) + 1]++;
            for (size_t k = 1; k < 257; k++) at[k] += at[k - 1];
            for (size_t j = i; j < end; j++) spare[at[combining(s[j])]++] = s[j];
            memcpy(s + i, spare, (end - i) * sizeof *s);
        }
        i = end;
    }
}

bool fh_tok_normal_form(fh_buf *out, fh_tok_form form, const char *text, size_t len)
{
    bool compose = form == FH_TOK_NFC || form == FH_TOK_NFKC;
    utf8proc_option_t how = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE;
    if (form == FH_TOK_NFKC || form == FH_TOK_NFKD) how |= UTF8PROC_COMPAT;
    int boundary = 0;
    size_t n = 0, longest = 0, run = 0;
    for (int pass = 0; pass < 2; pass++) {
        int32_t *chars = NULL;
        size_t cap = n, bytes;
        if (pass) { /* the first pass counted the characters and the longest run of marks */
            if (!fh_add(n, longest, &bytes) || !fh_add(bytes, 1, &bytes) || !fh_mul(bytes, sizeof *chars, &bytes)) return false;
            chars = fh_malloc(bytes);
            if (!chars) return false;
        }
        n = 0;
        for (size_t i = 0; i < len;) {
            size_t step;
            int32_t part[32];
            uint32_t c = fh_tok_char(text + i, &step);
            ptrdiff_t got = 1;
            part[0] = (int32_t)c;
            if (c >= 0x80) got = utf8proc_decompose_char((utf8proc_int32_t)c, part, 32, how, &boundary);
            if (got < 0 || got > 32) got = 1, part[0] = (int32_t)c; /* no character decomposes into more than 18 */
            for (ptrdiff_t k = 0; k < got; k++) {
                if (pass && n < cap) chars[n] = part[k];
                n++;
                if (pass) continue;
                run = part[k] >= 0x300 && combining(part[k]) ? run + 1 : 0;
                longest = fh_max(longest, run);
            }
            i += step;
        }
        if (!pass) continue;
        order_marks(chars, n, chars + n + 1);
        ptrdiff_t m = (ptrdiff_t)n;
        if (compose) m = utf8proc_normalize_utf32(chars, m, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
        char *to = m < 0 || (size_t)m > (SIZE_MAX - 1) / 4 ? NULL : fh_tok_room(out, 4 * (size_t)m);
        for (ptrdiff_t i = 0; to && i < m; i++) to += fh_tok_put_char(to, (uint32_t)chars[i]);
        if (to) {
            out->len = (size_t)(to - out->data);
            *to = 0;
        }
        fh_free(chars);
        if (!to) return false;
    }
    return true;
}

/* ---- text that is not UTF-8 --------------------------------------------------------------------------------------- */

/* How many bytes at s belong to one ill-formed part, given that no character stands there: as many as begin some character, at
 * least one.  *open: they may be its beginning, and the text ends there. */
static size_t bad_part(const unsigned char *s, size_t len, bool *open)
{
    unsigned char c = s[0];
    *open = false;
    if (c < 0xC2 || c > 0xF4) return 1;
    size_t need = c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4, i = 1;
    unsigned char low = c == 0xE0 ? 0xA0 : c == 0xF0 ? 0x90 : 0x80, high = c == 0xED ? 0x9F : c == 0xF4 ? 0x8F : 0xBF;
    for (; i < need && i < len; i++, low = 0x80, high = 0xBF)
        if (s[i] < low || s[i] > high) return i;
    *open = true; /* a whole character would have been valid, so the text ended first */
    return i;
}

size_t fh_tok_lossy(fh_buf *out, const char *text, size_t len, bool final)
{
    size_t i = 0;
    while (i < len) {
        size_t good = fh_utf8_valid(text + i, len - i);
        fh_buf_add(out, text + i, good);
        i += good;
        if (i >= len) break;
        bool open;
        size_t bad = bad_part((const unsigned char *)text + i, len - i, &open);
        if (open && !final) break;
        fh_buf_puts(out, "\xEF\xBF\xBD");
        i += bad;
    }
    return i;
}

/* ---- the byte map --------------------------------------------------------------------------------------------------- */

static uint32_t image_of(unsigned byte, uint32_t *next)
{
    if ((byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE) return byte;
    return (*next)++;
}

void fh_tok_images(fh_tok_image out[256])
{
    uint32_t next = 0x100;
    for (unsigned b = 0; b < 256; b++) {
        char utf8[4];
        out[b].len = (uint8_t)fh_tok_put_char(utf8, image_of(b, &next));
        memcpy(out[b].utf8, utf8, 2);
    }
}

void fh_tok_bytes(int16_t out[FH_TOK_LOW_CHARS])
{
    uint32_t next = 0x100;
    for (size_t i = 0; i < FH_TOK_LOW_CHARS; i++) out[i] = -1;
    for (unsigned b = 0; b < 256; b++) out[image_of(b, &next)] = (int16_t)b;
}
