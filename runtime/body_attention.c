/* runtime/body_attention.c: softmax(q k^T) v over the paged cache.
 *
 * A task is some positions of one sequence and the query heads that share one key head.  It walks the keys in chunks of 128 and
 * keeps, for each query, the largest score so far, the sum of exp(score - largest) and the weighted sum of values, rescaled when a
 * larger score comes: memory does not grow with the length.  With many queries the keys and the values (transposed) of a chunk are
 * gathered from their pages and OpenBLAS multiplies; with the few of a decoding step they are read where they lie.  A single token on top of
 * many keys is several tasks, each with its largest score, sum and weighted values, which are put together in the end: fixed spans, so
 * the same numbers for any number of threads.
 */
#include "runtime/body_private.h"

#include <math.h>
#include <string.h>

enum {
    CHUNK = 128,        /* keys at a time; whole pages */
    QUERIES = 128,      /* rows of a task that products are efficient with (measured: 93 % of the peak at 128 x 128 x 64) */
    MOST_POSITIONS = 64,
    TOGETHER = 16,      /* queries that read a page of keys at once */
    FEW_POSITIONS = 2,  /* up to here gathering costs more than it saves */
    SPAN = 2048,        /* keys of a task where a token has more: some 100 us, of which many threads can be kept busy with few key heads */
    ALONE = 1 << 19     /* products below which no other thread is woken: some 50 us */
};

static size_t group(const fh_body *b) { return b->heads / b->kv_heads; }

static size_t block_positions(const fh_body *b)
{
    return fh_min(fh_max(QUERIES / group(b), 1), MOST_POSITIONS);
}

/* Floats: queries, result of a chunk and running result [rows, d]; scores [rows, CHUNK]; keys and values [CHUNK, d]; two numbers a row; two of the worker. */
size_t fh_attention_scratch(const fh_body *b)
{
    size_t rows = block_positions(b) * group(b);
    return rows * (3 * b->head_dim + CHUNK + 2) + 2 * CHUNK * b->head_dim + 2 + 64;
}

/* The smallest and the largest of the largest scores that a worker saw: the last of its scratch. */
static float *seen_of(const fh_body *b, float *scratch) { return scratch + fh_attention_scratch(b) - 64 - 2; }

/* Of a span: the weighted values of each head, then its largest score and its sum. */
static size_t span_floats(const fh_body *b) { return b->heads * (b->head_dim + 2); }
static size_t spans_of(uint64_t length) { return length ? (size_t)((length - 1) / SPAN) + 1 : 1; }

size_t fh_attention_partials(const fh_body *b, uint64_t length)
{
    size_t spans = spans_of(length);
    return spans > 1 ? spans * span_floats(b) : 0;
}

size_t fh_attention_tasks(const fh_body *b, fh_piece *pieces, size_t n, float *partials)
{
    size_t tasks = 0, positions = block_positions(b);
    for (size_t i = 0; i < n; i++) {
        fh_piece *p = &pieces[i];
        p->tasks = tasks;
        p->spans = p->rows == 1 ? spans_of(p->first + 1) : 1;
        p->partial = partials;
        if (p->spans > 1) partials += p->spans * span_floats(b);
        tasks += ((p->rows - 1) / positions + 1) * b->kv_heads * p->spans;
    }
    return tasks;
}

typedef struct run {
    const fh_body *body;
    const fh_layer *layer;
    size_t layer_index, n, scratch_each;
    const fh_piece *pieces;
    const float *qkv;
    float *scratch, *out;
} run;

/* dst [columns, ld] = src [16, columns] transposed, 4 x 4 at a time. */
static void transpose_page(float *dst, size_t ld, const float *src, size_t columns)
{
    typedef float v4 __attribute__((vector_size(16)));
    size_t j = 0;
    for (; j + 4 <= columns; j += 4) {
        for (size_t t = 0; t < FH_PAGE_TOKENS; t += 4) {
            v4 a, b, c, d;
            memcpy(&a, src + t * columns + j, sizeof a);
            memcpy(&b, src + (t + 1) * columns + j, sizeof b);
            memcpy(&c, src + (t + 2) * columns + j, sizeof c);
            memcpy(&d, src + (t + 3) * columns + j, sizeof d);
            v4 ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
            v4 ab2 = __builtin_shufflevector(a, b, 2, 6, 3, 7), cd2 = __builtin_shufflevector(c, d, 2, 6, 3, 7);
            v4 r0 = __builtin_shufflevector(ab, cd, 0, 1, 4, 5), r1 = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
            v4 r2 = __builtin_shufflevector(ab2, cd2, 0, 1, 4, 5), r3 = __builtin_shufflevector(ab2, cd2, 2, 3, 6, 7);
            memcpy(dst + j * ld + t, &r0, sizeof r0);
            memcpy(dst + (j + 1) * ld + t, &r1, sizeof r1);
            memcpy(dst + (j + 2) * ld + t, &r2, sizeof r2);
            memcpy(dst + (j + 3) * ld + t, &r3, sizeof r3);
        }
    }
    for (; j < columns; j++) {
        for (size_t t = 0; t < FH_PAGE_TOKENS; t++) dst[j * ld + t] = src[t * columns + j];
    }
}

/* Scores of the chunk that begins at page `page` and has `keys` keys: scores [rows, CHUNK]. */
static void score(const run *c, const fh_piece *piece, size_t kv_head, size_t page, size_t keys, const float *q, size_t rows, bool few,
                  float *scores, float *gathered)
{
    const fh_body *b = c->body;
    size_t d = b->head_dim;
    if (!few) {
        for (size_t k = 0; k < keys; k += FH_PAGE_TOKENS, page++) {
            size_t some = fh_min(FH_PAGE_TOKENS, keys - k);
            const float *block = fh_kv_read(piece->kv, page, c->layer_index, false, kv_head, some, gathered + k * d);
            if (block != gathered + k * d) memcpy(gathered + k * d, block, some * d * sizeof *block);
        }
        fh_gemm_nt_here(rows, keys, d, q, d, gathered, d, scores, CHUNK);
        return;
    }
    for (size_t r = 0; r < rows; r += TOGETHER) {
        fh_state states[TOGETHER] = {{0}};
        const fh_state *at[TOGETHER];
        size_t some = fh_min(TOGETHER, rows - r);
        for (size_t i = 0; i < some; i++) states[i].f = q + (r + i) * d, at[i] = &states[i];
        for (size_t k = 0; k < keys; k += FH_PAGE_TOKENS) {
            size_t here = fh_min(FH_PAGE_TOKENS, keys - k);
            if (r == 0) fh_kv_fetch(piece->kv, page + k / FH_PAGE_TOKENS, c->layer_index, true, kv_head); /* which are next */
            const float *block = fh_kv_read(piece->kv, page + k / FH_PAGE_TOKENS, c->layer_index, false, kv_head, here, gathered);
            fh_rows page_keys = {block, FH_F32, FH_PAGE_TOKENS, d, d * sizeof *block};
            fh_dots(b->kernels, &page_keys, NULL, NULL, 0, here, at, some, scores + r * CHUNK + k, CHUNK);
        }
    }
}

/* sums [rows, d] += scores [rows, CHUNK] times the values of the chunk.  room: of a page's values, beside those gathered. */
static void weigh(const run *c, const fh_piece *piece, size_t kv_head, size_t page, size_t keys, const float *scores, size_t rows, bool few,
                  float *sums, float *gathered, float *room, float *part)
{
    const fh_body *b = c->body;
    size_t d = b->head_dim;
    for (size_t k = 0; k < keys; k += FH_PAGE_TOKENS, page++) {
        size_t some = fh_min(FH_PAGE_TOKENS, keys - k);
        const float *block = fh_kv_read(piece->kv, page, c->layer_index, true, kv_head, FH_PAGE_TOKENS, room);
        if (!few) {
            transpose_page(gathered + k, CHUNK, block, d);
            continue;
        }
        fh_kv_fetch(piece->kv, page + CHUNK / FH_PAGE_TOKENS, c->layer_index, false, kv_head);
        b->math->accumulate(sums, d, rows, scores + k, CHUNK, some, block, d, d);
    }
    if (few) return;
    fh_gemm_nt_here(rows, d, keys, scores, CHUNK, gathered, CHUNK, part, d);
    b->math->add(sums, part, rows * d);
}

/* Scores to exp(score - largest so far) where the query at position p may look, 0 elsewhere; what was summed before is rescaled. */
static void soften(const run *c, float *scores, size_t keys, size_t first_key, size_t p, float *largest, float *total, float *sums, float *seen)
{
    const fh_body *b = c->body;
    size_t window = c->layer->window, begin = window && p + 1 > window ? p + 1 - window : 0;
    size_t lo = begin > first_key ? fh_min(begin - first_key, keys) : 0;
    size_t hi = p < first_key ? 0 : fh_min(p - first_key + 1, keys);
    if (lo >= hi) {
        memset(scores, 0, keys * sizeof *scores);
        return;
    }
    if (b->attn_softcap > 0) {
        for (size_t k = lo; k < hi; k++) scores[k] = b->attn_softcap * tanhf(scores[k] / b->attn_softcap);
    }
    float top = b->math->max(scores + lo, hi - lo);
    seen[0] = top < seen[0] ? top : seen[0];
    seen[1] = top > seen[1] ? top : seen[1];
    if (top > *largest) {
        float keep = *total > 0 ? expf(*largest - top) : 0;
        *largest = top;
        *total *= keep;
        for (size_t j = 0; j < b->head_dim; j++) sums[j] *= keep;
    }
    *total += b->math->exp_sum(scores + lo, hi - lo, *largest);
    memset(scores, 0, lo * sizeof *scores);
    memset(scores + hi, 0, (keys - hi) * sizeof *scores);
}

static void one_block(void *ctx, size_t task, unsigned worker)
{
    const run *c = ctx;
    const fh_body *b = c->body;
    size_t low = 0, high = c->n; /* the last piece whose first task is not after this one */
    while (high - low > 1) {
        size_t mid = low + (high - low) / 2;
        if (c->pieces[mid].tasks <= task) low = mid;
        else high = mid;
    }
    const fh_piece *piece = &c->pieces[low];
    task -= piece->tasks;
    size_t kv_head = task % b->kv_heads, positions = block_positions(b), span = 0, from = task / b->kv_heads * positions;
    if (piece->spans > 1) span = task / b->kv_heads, from = 0;
    size_t count = fh_min(positions, piece->rows - from), g = group(b), rows = count * g, d = b->head_dim;
    bool few = count <= FEW_POSITIONS;

    size_t most = positions * g;
    float *q = c->scratch + worker * c->scratch_each, *sums = q + most * d, *part = sums + most * d;
    float *scores = part + most * d, *gathered = scores + most * CHUNK, *largest = gathered + 2 * CHUNK * d, *total = largest + most;
    float *seen = seen_of(b, c->scratch + worker * c->scratch_each);

    for (size_t i = 0; i < count; i++) {
        const float *row = c->qkv + (piece->row + from + i) * b->qkv_width + b->q_first;
        for (size_t h = 0; h < g; h++) {
            const float *head = row + (kv_head * g + h) * b->q_step;
            float *to = q + (i * g + h) * d;
            for (size_t j = 0; j < d; j++) to[j] = head[j] * c->layer->scale;
        }
    }
    memset(sums, 0, rows * d * sizeof *sums);
    for (size_t r = 0; r < rows; r++) largest[r] = -INFINITY, total[r] = 0;

    size_t first = piece->first + from, last = first + count - 1; /* positions of the queries */
    size_t window = c->layer->window, key = window && first + 1 > window ? first + 1 - window : 0, end = last + 1;
    key -= key % FH_PAGE_TOKENS;
    if (piece->spans > 1) key = fh_max(key, span * SPAN), end = fh_min(end, (span + 1) * SPAN);
    for (; key < end; key += CHUNK) {
        size_t keys = fh_min(CHUNK, end - key), page = key / FH_PAGE_TOKENS;
        score(c, piece, kv_head, page, keys, q, rows, few, scores, gathered);
        for (size_t r = 0; r < rows; r++) soften(c, scores + r * CHUNK, keys, key, first + r / g, &largest[r], &total[r], sums + r * d, seen);
        weigh(c, piece, kv_head, page, keys, scores, rows, few, sums, gathered + CHUNK * d, gathered, part);
    }
    if (piece->spans > 1) {
        float *to = piece->partial + span * span_floats(b) + kv_head * g * (d + 2);
        memcpy(to, sums, g * d * sizeof *to);
        memcpy(to + g * d, largest, g * sizeof *to);
        memcpy(to + g * (d + 1), total, g * sizeof *to);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        float *row = c->out + (piece->row + from + i) * b->heads * d + kv_head * g * d;
        for (size_t h = 0; h < g; h++) {
            float scale = 1.0f / total[i * g + h];
            for (size_t j = 0; j < d; j++) row[h * d + j] = sums[(i * g + h) * d + j] * scale;
        }
    }
}

/* The heads of one key head of one piece, from all its spans, in their order. */
static void put_together(void *ctx, size_t task, unsigned worker)
{
    const run *c = ctx;
    const fh_body *b = c->body;
    const fh_piece *piece = &c->pieces[task / b->kv_heads];
    size_t g = group(b), d = b->head_dim, step = span_floats(b), kv_head = task % b->kv_heads;
    if (piece->spans == 1) return;
    for (size_t h = 0; h < g; h++) {
        const float *from = piece->partial + kv_head * g * (d + 2), *largest = from + g * d + h, *total = largest + g;
        float *out = c->out + piece->row * b->heads * d + (kv_head * g + h) * d, top = -INFINITY, all = 0;
        for (size_t s = 0; s < piece->spans; s++) top = fmaxf(top, largest[s * step]);
        memset(out, 0, d * sizeof *out);
        for (size_t s = 0; s < piece->spans; s++) {
            float keep = total[s * step] == 0 ? 0 : expf(largest[s * step] - top); /* nothing in a span before the window */
            all += total[s * step] * keep;
            for (size_t j = 0; j < d; j++) out[j] += from[s * step + h * d + j] * keep;
        }
        for (size_t j = 0; j < d; j++) out[j] /= all;
    }
}

void fh_attention_run(const fh_body *b, fh_pool *pool, float *scratch, size_t scratch_each, const fh_layer *layer, size_t layer_index,
                      const fh_piece *pieces, size_t n, size_t tasks, const float *qkv, float *out)
{
    run c = {b, layer, layer_index, n, scratch_each, pieces, qkv, scratch, out};
    size_t work = 0;
    for (size_t i = 0; i < n && work < ALONE; i++) work += pieces[i].rows * (pieces[i].first + pieces[i].rows) * b->heads * b->head_dim;
    size_t workers = fh_pool_threads(pool);
    for (size_t w = 0; w < workers; w++) {
        float *seen = seen_of(b, scratch + w * scratch_each);
        seen[0] = INFINITY, seen[1] = -INFINITY;
    }
    fh_pool_run(work < ALONE ? NULL : pool, tasks, one_block, &c);
    bool shared = false;
    for (size_t i = 0; i < n; i++) {
        shared = shared || pieces[i].spans > 1;
        for (size_t w = 0; pieces[i].kv->watch && w < workers; w++) {
            fh_score_range *range = &pieces[i].kv->watch[layer_index];
            const float *seen = seen_of(b, scratch + w * scratch_each);
            range->low = fminf(range->low, seen[0]), range->high = fmaxf(range->high, seen[1]);
        }
    }
    if (shared) fh_pool_run(pool, n * b->kv_heads, put_together, &c);
}
