/* runtime/kv.c: the key-value cache of one sequence, in pages of 16 tokens.
 *
 * A page holds all layers of its tokens, so that a sequence grows page by page and never moves; pages are allocated some at a time, in slabs.  Sequences that
 * begin alike share pages: a page counts them, and is copied when one that shares it writes into it.  Where a device runs the body, its memory has the
 * blocks and this file the rest: which pages there are, and whose.
 */
#include "runtime/body_private.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* The largest int8 that is used: -128 has no opposite. */
enum { MOST = 127 };

static size_t groups(const fh_body *b) { return (b->head_dim + FH_GROUP - 1) / FH_GROUP; }

/* Of a block: its scales (int8), then its values; a multiple of 64. */
static size_t scale_bytes(const fh_body *b, fh_dtype type) { return type == FH_I8 ? FH_PAGE_TOKENS * groups(b) * sizeof(float) : 0; }

/* ---- pages ------------------------------------------------------------------------------------------------------ */

static size_t page_size(const fh_kv *kv) { return sizeof(fh_page) + (kv->device ? 0 : kv->is.page_bytes); }

/* So many pages of a slab are not in use any more.  Whoever counts down to 0 has it alone, and sees what the others wrote. */
static void leave_slab(fh_slab *slab, size_t pages)
{
    if (!slab || atomic_fetch_sub(&slab->pages, pages) != pages) return;
    if (slab->device) slab->device->pages_free(slab->device->ctx, slab->there);
    fh_free(slab);
}

static void drop_page(fh_page *page)
{
    if (atomic_fetch_sub(&page->sequences, 1) == 1) leave_slab(page->slab, 1);
}

/* As many pages as a quarter of what is there, up to four huge ones of the system's: the blocks of a head lie a page apart, and with small ones
 * attention waited for address translation (a token on top of 32768, two layers of 8 heads of 64: 60 ms of processor time, so 53). */
static size_t slab_pages(const fh_kv *kv)
{
    size_t most = fh_max(4 * (size_t)FH_HUGE_PAGE / kv->is.page_bytes, 1), pages = fh_min(fh_max(kv->n_pages / 4, 1), most);
    return kv->device ? fh_max(pages, FH_HUGE_PAGE / kv->is.page_bytes) : pages; /* less is not allocated there */
}

static fh_status no_room(const fh_kv *kv, uint64_t length, fh_err *err)
{
    return fh_fail(err, FH_ENOMEM, "%s: out of memory for the cache of %llu tokens", kv->body->name, (unsigned long long)length);
}

static fh_status new_slab(fh_kv *kv, uint64_t length, fh_err *err)
{
    size_t pages = slab_pages(kv), bytes;
    fh_slab *slab = fh_mul(pages, page_size(kv), &bytes) ? fh_aligned(sizeof *slab + bytes) : NULL;
    if (!slab) return no_room(kv, length, err);
    atomic_init(&slab->pages, pages);
    if (kv->device) {
        fh_status rc = kv->device->pages_new(kv->device->ctx, pages * kv->is.page_bytes, &slab->there, err);
        if (rc < 0) { fh_free(slab); return rc; }
    }
    slab->device = kv->device;
    kv->slab = slab, kv->fresh = (uint8_t *)(slab + 1), kv->n_fresh = kv->slab_pages = pages;
    return FH_OK;
}

static fh_status new_page(fh_page **out, fh_kv *kv, uint64_t length, fh_err *err)
{
    fh_status rc;
    if (!kv->n_fresh && (rc = new_slab(kv, length, err)) < 0) return rc;
    fh_page *page = (fh_page *)(void *)kv->fresh;
    if (kv->device) page->there = (uint8_t *)kv->slab->there + (kv->slab_pages - kv->n_fresh) * kv->is.page_bytes;
    kv->fresh += page_size(kv);
    kv->n_fresh--;
    atomic_init(&page->sequences, 1);
    page->slab = kv->slab;
    *out = page;
    return FH_OK;
}

static fh_status copy_page(const fh_kv *kv, fh_page *to, const fh_page *from, fh_err *err)
{
    if (kv->device) return kv->device->pages_copy(kv->device->ctx, to->there, from->there, kv->is.page_bytes, false, err);
    memcpy(to->blocks, from->blocks, kv->is.page_bytes);
    return FH_OK;
}

static fh_status make_room(fh_kv *kv, size_t pages, uint64_t length, fh_err *err)
{
    if (pages <= kv->room) return FH_OK;
    size_t room = fh_max(pages, kv->room + kv->room / 2), bytes;
    fh_page **more = fh_mul(room, sizeof *more, &bytes) ? fh_realloc(kv->pages, bytes) : NULL;
    if (!more) return no_room(kv, length, err);
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
        fh_page *page;
        if ((rc = new_page(&page, kv, length, err)) < 0) return rc;
        if (shared) {
            if (i * FH_PAGE_TOKENS < kv->length && (rc = copy_page(kv, page, kv->pages[i], err)) < 0) {
                drop_page(page);
                return rc;
            }
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
    kv->device = b->device;
    kv->is.type = type, kv->is.scale_bytes = scale_bytes(b, type);
    /* In range: as float32 it is, which was judged when the body was opened; of a head of some few values the scales are as long as those. */
    kv->is.block_bytes = fh_round_up(FH_PAGE_TOKENS * b->head_dim * fh_dtype_size(type) + kv->is.scale_bytes, 64);
    kv->is.page_bytes = b->n_layers * 2 * b->kv_heads * kv->is.block_bytes;
    *out = kv;
    return FH_OK;
}

fh_status fh_kv_new(fh_kv **out, const fh_body *b, fh_err *err) { return fh_kv_new_of(out, b, FH_F32, err); }

fh_status fh_kv_fork(fh_kv **out, const fh_kv *from, uint32_t length, fh_err *err)
{
    fh_kv *kv = NULL;
    length = (uint32_t)fh_min(length, from->length);
    size_t pages = (length + (size_t)FH_PAGE_TOKENS - 1) / FH_PAGE_TOKENS;
    fh_status rc = fh_kv_new_of(&kv, from->body, from->is.type, err);
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
    if (kv->n_fresh) leave_slab(kv->slab, kv->n_fresh);
    fh_free(kv->pages);
    fh_free(kv);
}

uint32_t fh_kv_length(const fh_kv *kv) { return kv->length; }
void fh_kv_watch(fh_kv *kv, fh_score_range *ranges) { kv->watch = ranges; }

fh_score_range *fh_score_ranges(const fh_body *b)
{
    fh_score_range *ranges = fh_malloc(b->n_layers * sizeof *ranges);
    for (size_t i = 0; ranges && i < b->n_layers; i++) ranges[i] = (fh_score_range){INFINITY, -INFINITY};
    return ranges;
}

size_t fh_kv_bytes(const fh_kv *kv) { return kv->n_pages * kv->is.page_bytes; }

void fh_kv_truncate(fh_kv *kv, uint32_t length)
{
    if (length < kv->length) kv->length = length;
}

size_t fh_kv_read_bytes(const fh_kv *kv)
{
    const fh_body *b = kv->body;
    size_t keys = 0;
    for (size_t i = 0; i < b->n_layers; i++) {
        uint32_t window = b->layers[i].window;
        keys += window ? fh_min(window, kv->length + (size_t)1) : kv->length + (size_t)1;
    }
    return keys * 2 * b->kv_heads * (kv->is.block_bytes / FH_PAGE_TOKENS);
}

/* ---- values ------------------------------------------------------------------------------------------------------ */

static uint8_t *block_of(const fh_kv *kv, size_t page, size_t layer, bool value, size_t kv_head)
{
    return kv->pages[page]->blocks + ((layer * 2 + value) * kv->body->kv_heads + kv_head) * kv->is.block_bytes;
}

void fh_kv_fetch(const fh_kv *kv, size_t page, size_t layer, bool value, size_t kv_head)
{
    if (page >= kv->n_pages) return;
    const uint8_t *block = block_of(kv, page, layer, value, kv_head);
    for (size_t i = 0; i < kv->is.block_bytes; i += 64) __builtin_prefetch(block + i, 0, 2);
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

static void write_block(const fh_kv *kv, uint8_t *block, size_t slot, const float *x)
{
    size_t d = kv->body->head_dim;
    uint8_t *values = block + kv->is.scale_bytes;
    if (kv->is.type == FH_F32) {
        memcpy(values + slot * d * sizeof *x, x, d * sizeof *x);
    } else if (kv->is.type == FH_F16) {
        uint16_t *to = (uint16_t *)(void *)values + slot * d;
        for (size_t i = 0; i < d; i++) to[i] = fh_f32_to_f16(x[i]);
    } else {
        float *scales = (float *)(void *)block + slot * groups(kv->body);
        int8_t *to = (int8_t *)values + slot * d;
        for (size_t i = 0; i < d; i += FH_GROUP) quantize(to + i, &scales[i / FH_GROUP], x + i, fh_min(FH_GROUP, d - i));
    }
}

void fh_kv_write(const fh_kv *kv, size_t position, size_t layer, bool value, size_t kv_head, const float *x)
{
    write_block(kv, block_of(kv, position / FH_PAGE_TOKENS, layer, value, kv_head), position % FH_PAGE_TOKENS, x);
}

const float *fh_kv_read(const fh_kv *kv, size_t page, size_t layer, bool value, size_t kv_head, size_t n, float *room)
{
    const fh_body *b = kv->body;
    size_t d = b->head_dim;
    const uint8_t *block = block_of(kv, page, layer, value, kv_head), *values = block + kv->is.scale_bytes;
    if (kv->is.type == FH_F32) return (const float *)(const void *)values;
    if (kv->is.type == FH_F16) {
        b->math->widen_f16(room, values, n * d);
        return room;
    }
    const float *scales = (const float *)(const void *)block;
    if (d % FH_GROUP == 0) { /* groups of one token go on in the next */
        b->math->widen_i8(room, (const int8_t *)values, scales, n * d);
        return room;
    }
    for (size_t t = 0; t < n; t++) b->math->widen_i8(room + t * d, (const int8_t *)values + t * d, scales + t * groups(b), d);
    return room;
}

fh_status fh_kv_make_up(fh_kv *kv, uint32_t length, fh_err *err)
{
    const fh_body *b = kv->body;
    fh_rng rng;
    if (length > b->max_position) return fh_fail(err, FH_EUSAGE, "%s: a cache of %u tokens, the model's positions end at %u", b->name, length, b->max_position);
    kv->length = 0; /* all pages become its own */
    fh_status rc = fh_kv_reserve(kv, length, err);
    size_t tokens = fh_min(length, FH_PAGE_TOKENS);
    float *x = rc < 0 ? NULL : fh_malloc(b->head_dim * sizeof *x);
    uint8_t *page = rc < 0 ? NULL : fh_calloc(1, kv->is.page_bytes);
    if (rc == FH_OK && (!x || !page)) rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", b->name);
    if (rc < 0) goto out;
    fh_rng_seed(&rng, 1, 0x6b);
    for (size_t t = 0; t < tokens; t++)
        for (size_t i = 0; i < b->n_layers * 2 * b->kv_heads; i++) {
            for (size_t j = 0; j < b->head_dim; j++) x[j] = (float)(2 * fh_rng_double(&rng) - 1);
            write_block(kv, page + i * kv->is.block_bytes, t, x);
        }
    for (size_t i = 0; rc == FH_OK && i * FH_PAGE_TOKENS < length; i++) {
        if (kv->device) rc = kv->device->pages_copy(kv->device->ctx, kv->pages[i]->there, page, kv->is.page_bytes, true, err);
        else memcpy(kv->pages[i]->blocks, page, kv->is.page_bytes);
    }
    if (rc == FH_OK) kv->length = length;
out:
    fh_free(page);
    fh_free(x);
    return rc;
}
