/* artifacts/names.c: names, versions and paths that come from other people. */
#include "artifacts/release_private.h"

#include <string.h>

static bool plain(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-'; }

/* The length of the part at s that ends at '/' or the end; 0 where it is no name. */
static size_t part(const char *s)
{
    size_t n = 0, dots = 0;
    for (; s[n] && s[n] != '/'; n++) {
        if (!plain(s[n]) || n == FH_NAME_MOST) return 0;
        dots += s[n] == '.';
    }
    return dots == n ? 0 : n;
}

bool fh_release_name_ok(const char *s)
{
    size_t n = part(s);
    return n && !s[n] && s[0] != '.' && s[0] != '-' && strcmp(s, FH_REGISTRY_INDEX);
}

bool fh_release_path_ok(const char *s)
{
    enum { PARTS = 6 };
    size_t len = strlen(s);
    if (len > FH_PATH_MOST || !strcmp(s, FH_RELEASE_JSON) || !strcmp(s, FH_RELEASE_SUMS) || !strcmp(s, FH_RELEASE_SIGNATURE)) return false;
    for (size_t parts = 0; parts < PARTS; parts++) {
        size_t n = part(s);
        if (!n || s[0] == '-') return false;
        s += n;
        if (!*s) return true;
        s++;
    }
    return false;
}

static bool digit(char c) { return c >= '0' && c <= '9'; }

/* Two runs of digits of any length by value; *a and *b move behind them. */
static int number_order(const char **a, const char **b)
{
    const char *x = *a, *y = *b;
    while (*x == '0') x++;
    while (*y == '0') y++;
    size_t n = strspn(x, "0123456789"), m = strspn(y, "0123456789");
    *a = x + n, *b = y + m;
    if (n != m) return n < m ? -1 : 1;
    return strncmp(x, y, n);
}

int fh_version_order(const char *a, const char *b)
{
    const char *s = a, *t = b;
    while (*s || *t) {
        if (digit(*s) && digit(*t)) {
            int c = number_order(&s, &t);
            if (c) return c;
            continue;
        }
        if (*s == *t) { s++, t++; continue; }
        if (*s == '-' || *t == '-') return *s == '-' ? -1 : 1; /* 1.0-rc1 comes before 1.0 and 1.0.1 */
        return (unsigned char)*s < (unsigned char)*t ? -1 : 1;
    }
    return strcmp(a, b); /* 1.0 and 1.00 are two names */
}
