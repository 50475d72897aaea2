/* runtime/kv.c: the key-value cache of one sequence, in pages of 16 tokens.
 *
 * A page holds all layers of its tokens, so that a sequence grows by one allocation every 16 tokens and never moves.  Sequences that
 * begin alike share pages: a page counts them, and is copied when one that shares it writes into it.
 */
#include "runtime/body_private.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* The largest int8 that is used: -128 has no opposite. */
enum { MOST = 127 };

static size_t groups(const fh_body *b) { return (b->head_dim + FH_GROUP - 1) / FH_GROUP; }

/* Of a block: its scales (int8), then its values; a multiple of 64. */
static size_t scale_bytes(const fh_kv *kv) { return kv->type == FH_I8 ? FH_PAGE_TOKENS * groups(kv->body) * sizeof(float) : 0; }

/* ---- pages ------------------------------------------------------------------------------------------------------ */

static fh_page *new_page(const fh_kv *kv)
{
    fh_page *page = fh_aligned(sizeof *page + kv->page_bytes);
    if (page) atomic_init(&page->sequences, 1);
    return page;
}

/* Whoever counts down to 0 has the page alone, and sees what the others wrote. */
static void drop_page(fh_page *page)
{
    if (atomic_fetch_sub(&page->sequences, 1) == 1) fh_free(page);
}

static fh_status make_room(fh_kv *kv, size_t pages, uint64_t length, fh_err *err)
{
    if (pages <= kv->room) return FH_OK;
    size_t room = fh_max(pages, kv->room + kv->room / 2), bytes;
    fh_page **more = fh_mul(room, sizeof *more, &bytes) ? fh_realloc(kv->pages, bytes) : NULL;
    if (!more) return fh_fail(err, FH_ENOMEM, "%s: out of memory for the cache of %llu tokens", kv->body->name, (unsigned long long)length);
    kv->pages = more;
    kv->room = room;
    return FH_OK;
}

fh_status fh_kv_reserve(fh_kv *kv, uint64_t length, fh_err *err)
{
    size_t need = (size_t)((length + FH_PAGE_TOKENS - 1) / FH_PAGE_TOKENS);
    fh_status rc = make_room(kv, need, length, err);
    if (rc < 0) return rc;
    for (size_t i = kv->length / FH_PAGE_TOKENS; i < need; i++) {
        bool shared = i < kv->n_pages && atomic_load(&kv->pages[i]->sequences) > 1;
        if (i < kv->n_pages && !shared) continue;
        fh_page *page = new_page(kv);
        if (!page) return fh_fail(err, FH_ENOMEM, "%s: out of memory for the cache of %llu tokens", kv->body->name, (unsigned long long)length);
        if (shared) {
            if (i * FH_PAGE_TOKENS < kv->length) memcpy(page->blocks, kv->pages[i]->blocks, kv->page_bytes);
            drop_page(kv->pages[i]);
        } else {
            kv->n_pages++;
        }
        kv->pages[i] = page;
    }
    return FH_OK;
}

/* ---- sequences -------------------------------------------------------------------------------------------------- */

fh_status fh_kv_new_of(fh_kv **out, const fh_body *b, fh_dtype type, fh_err *err)
{
    if (type != FH_F32 && type != FH_F16 && type != FH_I8)
        return fh_fail(err, FH_EUSAGE, "%s: a key-value cache of %s: f32, f16 and int8 are kept", b->name, fh_dtype_name(type));
    fh_kv *kv = fh_calloc(1, sizeof *kv);
    if (!kv) return fh_fail(err, FH_ENOMEM, "%s: out of memory for a key-value cache", b->name);
    kv->body = b;
    kv->type = type;
    /* In range: as float32 it is, which was judged when the body was opened; of a head of some few values the scales are as long as those. */
    kv->block_bytes = fh_round_up(FH_PAGE_TOKENS * b->head_dim * fh_dtype_size(type) + scale_bytes(kv), 64);
    kv->page_bytes = b->n_layers * 2 * b->kv_heads * kv->block_bytes;
    *out = kv;
    return FH_OK;
}

fh_status fh_kv_new(fh_kv **out, const fh_body *b, fh_err *err) { return fh_kv_new_of(out, b, FH_F32, err); }

fh_status fh_kv_fork(fh_kv **out, const fh_kv *from, uint32_t length, fh_err *err)
{
    fh_kv *kv = NULL;
    length = (uint32_t)fh_min(length, from->length);
    size_t pages = (length + (size_t)FH_PAGE_TOKENS - 1) / FH_PAGE_TOKENS;
    fh_status rc = fh_kv_new_of(&kv, from->body, from->type, err);
    if (rc < 0) return rc;
    if ((rc = make_room(kv, pages, length, err)) < 0) goto out;
    for (size_t i = 0; i < pages; i++) {
        kv->pages[i] = from->pages[i];
        atomic_fetch_add(&kv->pages[i]->sequences, 1);
    }
    kv->n_pages = pages;
    kv->length = length;
    *out = kv, kv = NULL;
out:
    fh_kv_free(kv);
    return rc;
}

void fh_kv_free(fh_kv *kv)
{
    if (!kv) return;
    for (size_t i = 0; i < kv->n_pages; i++) drop_page(kv->pages[i]);
    fh_free(kv->pages);
    fh_free(kv);
}

uint32_t fh_kv_length(const fh_kv *kv) { return kv->length; }
size_t fh_kv_bytes(const fh_kv *kv) { return kv->n_pages * kv->page_bytes; }

void fh_kv_truncate(fh_kv *kv, uint32_t length)
{
    if (length < kv->length) kv->length = length;
}

/* ---- values ------------------------------------------------------------------------------------------------------ */

static uint8_t *block_of(const fh_kv *kv, size_t page, size_t layer, bool value, size_t kv_head)
{
    return kv->pages[page]->blocks + ((layer * 2 + value) * kv->body->kv_heads + kv_head) * kv->block_bytes;
}

/* Rounded to the nearest multiple of max / 127.  A group that is not finite becomes all NaN. */
static void quantize(int8_t *q, float *scale, const float *x, size_t n)
{
    float most = 0;
    bool finite = true;
    for (size_t i = 0; i < n; i++) {
        float size = fabsf(x[i]);
        finite = finite && size <= FLT_MAX;
        most = size > most ? size : most;
    }
    *scale = finite ? most / MOST : NAN;
    /* In double: of a subnormal maximum the scale is too coarse to keep q in range. */
    double inverse = finite && most > 0 ? MOST / (double)most : 0;
    for (size_t i = 0; i < n; i++) q[i] = finite ? (int8_t)lrint((double)x[i] * inverse) : 0;
}

void fh_kv_write(const fh_kv *kv, size_t position, size_t layer, bool value, size_t kv_head, const float *x)
{
    size_t d = kv->body->head_dim, slot = position % FH_PAGE_TOKENS;
    uint8_t *block = block_of(kv, position / FH_PAGE_TOKENS, layer, value, kv_head), *values = block + scale_bytes(kv);
    if (kv->type == FH_F32) {
        memcpy(values + slot * d * sizeof *x, x, d * sizeof *x);
    } else if (kv->type == FH_F16) {
        uint16_t *to = (uint16_t *)(void *)values + slot * d;
        for (size_t i = 0; i < d; i++) to[i] = fh_f32_to_f16(x[i]);
    } else {
        float *scales = (float *)(void *)block + slot * groups(kv->body);
        int8_t *to = (int8_t *)values + slot * d;
        for (size_t i = 0; i < d; i += FH_GROUP) quantize(to + i, &scales[i / FH_GROUP], x + i, fh_min(FH_GROUP, d - i));
    }
}

const float *fh_kv_read(const fh_kv *kv, size_t page, size_t layer, bool value, size_t kv_head, size_t n, float *room)
{
    const fh_body *b = kv->body;
    size_t d = b->head_dim;
    const uint8_t *block = block_of(kv, page, layer, value, kv_head), *values = block + scale_bytes(kv);
    if (kv->type == FH_F32) return (const float *)(const void *)values;
    if (kv->type == FH_F16) {
        b->math->widen_f16(room, values, n * d);
        return room;
    }
    const float *scales = (const float *)(const void *)block;
    for (size_t t = 0; t < n; t++) b->math->widen_i8(room + t * d, (const int8_t *)values + t * d, scales + t * groups(b), d);
    return room;
}
