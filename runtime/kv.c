/* runtime/kv.c: the key-value cache of one sequence, in pages of 16 tokens.
 *
 * A page holds all layers of its tokens, so that a sequence grows by one allocation every 16 tokens and never moves.
 */
#include "runtime/body_private.h"

fh_status fh_kv_new(fh_kv **out, const fh_body *b, fh_err *err)
{
    fh_kv *kv = fh_calloc(1, sizeof *kv);
    if (!kv) return fh_fail(err, FH_ENOMEM, "%s: out of memory for a key-value cache", b->name);
    kv->body = b;
    *out = kv;
    return FH_OK;
}

void fh_kv_free(fh_kv *kv)
{
    if (!kv) return;
    for (size_t i = 0; i < kv->n_pages; i++) fh_free(kv->pages[i]);
    fh_free(kv->pages);
    fh_free(kv);
}

uint32_t fh_kv_length(const fh_kv *kv) { return kv->length; }

void fh_kv_truncate(fh_kv *kv, uint32_t length)
{
    if (length < kv->length) kv->length = length;
}

fh_status fh_kv_reserve(fh_kv *kv, uint64_t length, fh_err *err)
{
    const fh_body *b = kv->body;
    size_t need = (size_t)((length + FH_PAGE_TOKENS - 1) / FH_PAGE_TOKENS);
    if (need > kv->room) {
        size_t room = fh_max(need, kv->room + kv->room / 2), bytes;
        float **pages = fh_mul(room, sizeof *pages, &bytes) ? fh_realloc(kv->pages, bytes) : NULL;
        if (!pages) return fh_fail(err, FH_ENOMEM, "%s: out of memory for the cache of %llu tokens", b->name, (unsigned long long)length);
        kv->pages = pages;
        kv->room = room;
    }
    while (kv->n_pages < need) {
        float *page = fh_aligned(b->page_floats * sizeof *page);
        if (!page) return fh_fail(err, FH_ENOMEM, "%s: out of memory for the cache of %llu tokens", b->name, (unsigned long long)length);
        kv->pages[kv->n_pages++] = page;
    }
    return FH_OK;
}
