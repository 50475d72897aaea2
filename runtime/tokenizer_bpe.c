/* Byte-pair encoding of one piece.
 *
 * The rule: of all adjacent pairs that have a merge, the one of lowest rank, of equals the leftmost, is merged, one occurrence at
 * a time, until none is left.  A linked list of symbols and a heap of (rank, position) do it in O(n log n); entries that a merge made
 * stale are thrown out when they come up.
 *
 * Two symbols that no merge can ever join (vocab.joins) never meet, whatever else is merged, so a piece falls into runs that are
 * encoded on their own.  Where a whole document is one piece (SentencePiece-style tokenizers), runs are about words: they fit the
 * cache of results, and the heap stays small.
 */
#include "runtime/tokenizer_private.h"

#include <string.h>

enum { KEY = 20, VALUE = 9 }; /* of a cache line pair: symbols in, ids out */
typedef struct cached {
    uint32_t n_key, n_value;
    uint32_t key[KEY], value[VALUE];
    uint32_t pad;
} cached;

struct fh_tok_bpe {
    const fh_tok_vocab *v;
    fh_tok_ids symbols;               /* of one piece */
    uint32_t *previous, *next;        /* [cap_run] neighbours by position; FH_TOK_NONE at the ends */
    size_t cap_run;
    uint64_t *heap;                   /* rank << 32 | position */
    size_t n_heap, cap_heap;
    cached *cache; size_t cache_mask; /* NULL: the text is too short to repay one */
};

fh_tok_bpe *fh_tok_bpe_new(const fh_tok_vocab *v, size_t len)
{
    fh_tok_bpe *b = fh_calloc(1, sizeof *b);
    if (!b) return NULL;
    b->v = v;
    if (len >= 1024) {
        /* 4096 lines are 512 KiB.  On WikiText a quarter of them takes 8 % longer with GPT-2's tokenizer and 30 % with Mistral's; four
         * times as many save nothing. */
        size_t lines = 64;
        while (lines < 4096 && lines < len / 16) lines *= 2;
        b->cache = fh_calloc(lines, sizeof *b->cache);
        if (!b->cache) { fh_free(b); return NULL; }
        b->cache_mask = lines - 1;
    }
    return b;
}

void fh_tok_bpe_free(fh_tok_bpe *b)
{
    if (!b) return;
    fh_free(b->symbols.ids);
    fh_free(b->previous);
    fh_free(b->next);
    fh_free(b->heap);
    fh_free(b->cache);
    fh_free(b);
}

/* ---- the heap --------------------------------------------------------------------------------------------------- */

static void sift_down(uint64_t *h, size_t n, size_t i)
{
    uint64_t x = h[i];
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && h[child + 1] < h[child]) child++;
        if (x <= h[child]) break;
        h[i] = h[child];
    }
    h[i] = x;
}

static bool heap_push(fh_tok_bpe *b, uint64_t x)
{
    if (b->n_heap == b->cap_heap) {
        size_t cap = fh_max(64, 2 * b->cap_heap), bytes;
        uint64_t *heap = fh_mul(cap, sizeof *heap, &bytes) ? fh_realloc(b->heap, bytes) : NULL;
        if (!heap) return false;
        b->heap = heap;
        b->cap_heap = cap;
    }
    size_t i = b->n_heap++;
    for (; i && x < b->heap[(i - 1) / 2]; i = (i - 1) / 2) b->heap[i] = b->heap[(i - 1) / 2];
    b->heap[i] = x;
    return true;
}

static uint64_t heap_pop(fh_tok_bpe *b)
{
    uint64_t top = b->heap[0];
    if (--b->n_heap) {
        b->heap[0] = b->heap[b->n_heap];
        sift_down(b->heap, b->n_heap, 0);
    }
    return top;
}

/* ---- merging ------------------------------------------------------------------------------------------------------ */

static bool run_room(fh_tok_bpe *b, size_t n)
{
    if (n <= b->cap_run) return true;
    size_t cap = fh_max(n, 64), bytes;
    if (!fh_mul(cap, sizeof *b->next, &bytes)) return false;
    b->cap_run = 0;
    fh_free(b->previous);
    fh_free(b->next);
    b->previous = fh_malloc(bytes);
    b->next = fh_malloc(bytes);
    if (!b->previous || !b->next) return false;
    b->cap_run = cap;
    return true;
}

static inline const uint64_t *merge_of(const fh_tok_bpe *b, uint32_t left, uint32_t right)
{
    return fh_tok_map_get(&b->v->merges, fh_tok_pair(left, right));
}

/* Merge the n symbols at s in place and append what is left.  n < 2^32. */
static bool merge_run(fh_tok_bpe *b, uint32_t *s, size_t n, fh_tok_ids *out)
{
    const uint64_t *m;
    if (!run_room(b, n)) return false;
    b->n_heap = 0;
    for (size_t i = 0; i < n; i++) {
        b->previous[i] = i ? (uint32_t)(i - 1) : FH_TOK_NONE;
        b->next[i] = i + 1 < n ? (uint32_t)(i + 1) : FH_TOK_NONE;
        if (i + 1 < n && (m = merge_of(b, s[i], s[i + 1])) && !heap_push(b, (*m & ~(uint64_t)UINT32_MAX) | i)) return false;
    }
    while (b->n_heap) {
        uint64_t top = heap_pop(b);
        uint32_t at = (uint32_t)top, merged = b->v->merged[top >> 32], right;
        if (s[at] == FH_TOK_NONE || (right = b->next[at]) == FH_TOK_NONE) continue;
        if (!(m = merge_of(b, s[at], s[right])) || (uint32_t)*m != merged) continue; /* stale: the pair is another by now */
        s[at] = merged;
        s[right] = FH_TOK_NONE;
        uint32_t next = b->next[at] = b->next[right], previous = b->previous[at];
        if (next != FH_TOK_NONE) {
            b->previous[next] = at;
            if ((m = merge_of(b, merged, s[next])) && !heap_push(b, (*m & ~(uint64_t)UINT32_MAX) | at)) return false;
        }
        if (previous != FH_TOK_NONE && (m = merge_of(b, s[previous], merged)) && !heap_push(b, (*m & ~(uint64_t)UINT32_MAX) | previous))
            return false;
    }
    if (!fh_tok_ids_room(out, n)) return false;
    for (size_t i = 0; i != FH_TOK_NONE; i = b->next[i]) out->ids[out->n++] = s[i];
    return true;
}

static bool encode_run(fh_tok_bpe *b, uint32_t *s, size_t n, fh_tok_ids *out)
{
    cached *line = NULL;
    if (n == 1) return fh_tok_ids_add(out, s[0]);
    if (b->cache && n <= KEY) {
        uint64_t h = n;
        for (size_t i = 0; i < n; i++) h = fh_tok_mix(h ^ s[i]);
        line = &b->cache[h >> 7 & b->cache_mask];
        if (line->n_key == n && !memcmp(line->key, s, n * sizeof *s)) {
            if (!fh_tok_ids_room(out, line->n_value)) return false;
            memcpy(out->ids + out->n, line->value, line->n_value * sizeof *s);
            out->n += line->n_value;
            return true;
        }
        line->n_key = 0;
        memcpy(line->key, s, n * sizeof *s);
    }
    size_t before = out->n;
    if (!merge_run(b, s, n, out)) return false;
    if (line && out->n - before <= VALUE) {
        line->n_key = (uint32_t)n;
        line->n_value = (uint32_t)(out->n - before);
        memcpy(line->value, out->ids + before, line->n_value * sizeof *s);
    }
    return true;
}

/* ---- symbols --------------------------------------------------------------------------------------------------------- */

/* The symbols of a piece: one a character, else its bytes, else unk, else nothing. */
static fh_status find_symbols(fh_tok_call *c, const char *text, size_t len)
{
    fh_tok_bpe *b = c->bpe;
    const fh_tok_vocab *v = b->v;
    bool after_unk = false;
    b->symbols.n = 0;
    if (!fh_tok_ids_room(&b->symbols, len)) return fh_tok_nomem(c->t->name, c->err); /* no character gives more symbols than bytes */
    uint32_t *out = b->symbols.ids;
    for (size_t i = 0, n; i < len; i += n) {
        uint32_t ch = fh_tok_char(text + i, &n);
        uint32_t id = ch < FH_TOK_LOW_CHARS ? v->low[ch] : fh_tok_find_model(v, text + i, n);
        if (id != FH_TOK_NONE) {
            *out++ = id;
            after_unk = false;
            continue;
        }
        size_t bytes = 0;
        while (bytes < n && v->byte_ids[(unsigned char)text[i + bytes]] != FH_TOK_NONE) bytes++;
        if (bytes == n) {
            for (size_t k = 0; k < n; k++) *out++ = v->byte_ids[(unsigned char)text[i + k]];
            after_unk = false;
        } else if (v->unk != FH_TOK_NONE) {
            if (!after_unk || !v->fuse_unk) *out++ = v->unk;
            after_unk = true;
        } else if (v->missing_unk) {
            return fh_fail(c->err, FH_EFORMAT,
                           "%s: the text has U+%04X, for which there is no token, and model.unk_token '%s' is not in model.vocab",
                           c->t->name, (unsigned)ch, v->missing_unk);
        }
    }
    b->symbols.n = (size_t)(out - b->symbols.ids);
    return FH_OK;
}

fh_status fh_tok_bpe_piece(fh_tok_call *c, const char *text, size_t len)
{
    fh_tok_bpe *b = c->bpe;
    const fh_tok_vocab *v = b->v;
    if (v->ignore_merges) {
        uint32_t id = fh_tok_find_model(v, text, len);
        if (id != FH_TOK_NONE) return fh_tok_ids_add(&c->ids, id) ? FH_OK : fh_tok_nomem(c->t->name, c->err);
    }
    fh_status rc = find_symbols(c, text, len);
    if (rc < 0) return rc;
    uint32_t *s = b->symbols.ids;
    for (size_t i = 0, end; i < b->symbols.n; i = end) {
        for (end = i + 1; end < b->symbols.n && fh_tok_map_get(&v->joins, fh_tok_pair(s[end - 1], s[end])); end++) {}
        if (!encode_run(b, s + i, end - i, &c->ids)) return fh_tok_nomem(c->t->name, c->err);
    }
    return FH_OK;
}
