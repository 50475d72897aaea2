#include "base/base.h"
#include "base/fault.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Zero bytes are asked for as one, so that NULL always and only means that memory ran out. */

void *fh_malloc(size_t n)
{
    if (fh_fault_hit(FH_FAULT_ALLOC)) return NULL;
    return malloc(n ? n : 1);
}

void *fh_calloc(size_t n, size_t size)
{
    if (fh_fault_hit(FH_FAULT_ALLOC)) return NULL;
    return n && size ? calloc(n, size) : calloc(1, 1);
}

void *fh_realloc(void *p, size_t n)
{
    if (fh_fault_hit(FH_FAULT_ALLOC)) return NULL;
    return realloc(p, n ? n : 1);
}

void *fh_aligned(size_t n)
{
    if (fh_fault_hit(FH_FAULT_ALLOC)) return NULL;
    if (n > SIZE_MAX - 63) return NULL;
    n = fh_round_up(n ? n : 1, 64);
    bool huge = n >= FH_HUGE_FROM;
    void *p = NULL;
    if (posix_memalign(&p, huge ? FH_HUGE_PAGE : 64, n)) return NULL;
    if (huge) (void)madvise(p, n, MADV_HUGEPAGE); /* advice: without it the same bytes, slower */
    memset(p, 0, n);
    return p;
}

void fh_free(void *p) { free(p); }

char *fh_strndup(const char *s, size_t n)
{
    n = strnlen(s, n);
    char *copy = fh_malloc(n + 1);
    if (!copy) return NULL;
    memcpy(copy, s, n);
    copy[n] = 0;
    return copy;
}

char *fh_strdup(const char *s) { return fh_strndup(s, strlen(s)); }

char *fh_sprintf(const char *fmt, ...)
{
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, fmt, args);
    char *s = n < 0 ? NULL : fh_malloc((size_t)n + 1);
    if (s) vsnprintf(s, (size_t)n + 1, fmt, again);
    va_end(again);
    va_end(args);
    return s;
}
