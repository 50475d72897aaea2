#include "base/base.h"

#include <stdio.h>
#include <string.h>

/* Room for n more bytes and the final NUL. */
static bool reserve(fh_buf *b, size_t n)
{
    size_t need;
    if (b->failed) return false;
    if (!fh_add(b->len, n, &need) || !fh_add(need, 1, &need)) { b->failed = true; return false; }
    if (need <= b->cap) return true;
    size_t cap = fh_max(need, b->cap > SIZE_MAX / 2 ? need : 2 * b->cap);
    cap = fh_max(cap, 64);
    char *data = fh_realloc(b->data, cap);
    if (!data) { b->failed = true; return false; }
    b->data = data;
    b->cap = cap;
    return true;
}

void fh_buf_add(fh_buf *b, const void *data, size_t n)
{
    if (!reserve(b, n)) return;
    if (n) memcpy(b->data + b->len, data, n);
    b->len += n;
    b->data[b->len] = 0;
}

void fh_buf_puts(fh_buf *b, const char *s) { fh_buf_add(b, s, strlen(s)); }

void fh_buf_printf(fh_buf *b, const char *fmt, ...)
{
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, fmt, args);
    if (n < 0) b->failed = true;
    if (n >= 0 && reserve(b, (size_t)n)) {
        vsnprintf(b->data + b->len, (size_t)n + 1, fmt, again);
        b->len += (size_t)n;
    }
    va_end(again);
    va_end(args);
}

char *fh_buf_take(fh_buf *b)
{
    reserve(b, 0);
    char *text = NULL;
    if (!b->failed) {
        text = b->data;
        text[b->len] = 0;
        b->data = NULL;
    }
    fh_buf_free(b);
    return text;
}

void fh_buf_free(fh_buf *b)
{
    fh_free(b->data);
    *b = (fh_buf){0};
}
