#include "base/base.h"

#include <stdio.h>
#include <string.h>

/* The character at s: its length and code point, or 0 where there is no valid one.  The bounds on the second byte shut
 * out overlong forms (E0, F0), surrogates (ED) and what is past U+10FFFF (F4): Unicode 15, table 3-7. */
static unsigned utf8_char(const unsigned char *s, size_t len, uint32_t *code)
{
    unsigned char c = s[0];
    if (c < 0x80) { *code = c; return 1; }
    if (c < 0xC2 || c > 0xF4) return 0;
    unsigned n = c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
    if (len < n) return 0;
    unsigned char low = c == 0xE0 ? 0xA0 : c == 0xF0 ? 0x90 : 0x80;
    unsigned char high = c == 0xED ? 0x9F : c == 0xF4 ? 0x8F : 0xBF;
    if (s[1] < low || s[1] > high) return 0;
    uint32_t x = (c & (0x7Fu >> n)) << 6 | (s[1] & 0x3Fu);
    for (unsigned i = 2; i < n; i++) {
        if ((s[i] & 0xC0) != 0x80) return 0;
        x = x << 6 | (s[i] & 0x3Fu);
    }
    *code = x;
    return n;
}

size_t fh_utf8_valid(const char *s, size_t len)
{
    size_t i = 0;
    while (i < len) {
        uint64_t eight;
        if (len - i >= 8 && (memcpy(&eight, s + i, 8), !(eight & 0x8080808080808080u))) { i += 8; continue; }
        uint32_t code;
        unsigned n = utf8_char((const unsigned char *)s + i, len - i, &code);
        if (!n) break;
        i += n;
    }
    return i;
}

/* Characters that move the cursor, break the line or reorder what stands around them. */
static bool is_unsafe(uint32_t c)
{
    return c < 0x20 || (c >= 0x7F && c < 0xA0) || c == 0x061C || c == 0x200E || c == 0x200F || (c >= 0x2028 && c <= 0x202E) ||
           (c >= 0x2066 && c <= 0x2069);
}

char *fh_show(char *out, size_t size, const char *s, size_t len)
{
    if (!size) return out;
    size_t at = 0, cut = 0; /* cut: the last place that leaves room for "..." */
    for (size_t i = 0; i < len;) {
        char unit[16];
        int width;
        uint32_t code;
        unsigned n = utf8_char((const unsigned char *)s + i, len - i, &code);
        if (n && !is_unsafe(code)) {
            memcpy(unit, s + i, n);
            width = (int)n;
        } else if (n && code >= 0x80) {
            width = snprintf(unit, sizeof unit, "\\u{%x}", (unsigned)code);
        } else {
            width = snprintf(unit, sizeof unit, "\\x%02x", (unsigned)(unsigned char)s[i]);
            n = 1;
        }
        if (at + 4 <= size) cut = at;
        if (at + (size_t)width + 1 > size) {
            size_t dots = fh_min(3, size - 1 - cut);
            memcpy(out + cut, "...", dots);
            out[cut + dots] = 0;
            return out;
        }
        memcpy(out + at, unit, (size_t)width);
        at += (size_t)width;
        i += n;
    }
    out[at] = 0;
    return out;
}
