#include "base/base.h"

#include <string.h>

enum { FIRST_CHUNK = 16 << 10, LAST_CHUNK = 1 << 20, ALIGN = 16 };

typedef struct chunk {
    struct chunk *older;
    size_t used, size; /* of data */
    _Alignas(ALIGN) unsigned char data[];
} chunk;

struct fh_arena {
    chunk *current;
    size_t next_size; /* chunks double, so that many objects need few calls and few objects little memory */
};

fh_arena *fh_arena_new(void)
{
    fh_arena *a = fh_calloc(1, sizeof *a);
    if (a) a->next_size = FIRST_CHUNK;
    return a;
}

static chunk *chunk_new(size_t size)
{
    size_t bytes;
    if (!fh_add(sizeof(chunk), size, &bytes)) return NULL;
    chunk *c = fh_calloc(1, bytes);
    if (c) c->size = size;
    return c;
}

void *fh_arena_alloc(fh_arena *a, size_t n)
{
    if (n > SIZE_MAX - ALIGN) return NULL;
    n = fh_round_up(n ? n : 1, ALIGN);
    chunk *c = a->current;
    if (!c || c->size - c->used < n) {
        bool own = n > a->next_size / 4; /* a large object lies alone, behind the chunk that still has room */
        c = chunk_new(own ? n : a->next_size);
        if (!c) return NULL;
        if (own && a->current) {
            c->older = a->current->older;
            a->current->older = c;
        } else {
            c->older = a->current;
            a->current = c;
        }
        if (!own && a->next_size < LAST_CHUNK) a->next_size *= 2;
    }
    void *p = c->data + c->used;
    c->used += n;
    return p;
}

char *fh_arena_strndup(fh_arena *a, const char *s, size_t n)
{
    n = strnlen(s, n);
    char *copy = fh_arena_alloc(a, n + 1);
    if (copy) memcpy(copy, s, n);
    return copy;
}

void fh_arena_free(fh_arena *a)
{
    if (!a) return;
    for (chunk *c = a->current, *older; c; c = older) {
        older = c->older;
        fh_free(c);
    }
    fh_free(a);
}
