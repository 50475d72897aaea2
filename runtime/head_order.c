/* head_order.c: the one order of results, and choosing the best of many. */
#include "runtime/head.h"

#include <math.h>
#include <string.h>

float fh_head_logit(const fh_head_parts *p, uint32_t id, float dot)
{
    if (p->bias) dot += p->bias[id];
    if (p->softcap > 0) dot = p->softcap * tanhf(dot / p->softcap);
    return fh_settle(dot);
}

/* Radix selection: count the leading digits of all keys, keep what lies in better bins than the one that holds the p-th, and look
 * closer at that bin alone.  Unlike quickselect it has no bad inputs.  After three digits all keys left have the same value and
 * still stand in the order of their ids, so that the first of them are the ones to take. */
void fh_select(uint64_t *out, const float *values, size_t n, size_t p, uint64_t *room)
{
    enum { DIGITS = 3, BINS = 2048 };
    static const unsigned shift[DIGITS] = {53, 42, 32}, mask[DIGITS] = {2047, 2047, 1023};
    size_t found = 0, left = n;
    for (size_t i = 0; i < n; i++) room[i] = fh_key(values[i], (uint32_t)i);
    for (int digit = 0; digit < DIGITS && found + left > p; digit++) {
        uint32_t count[BINS] = {0};
        for (size_t i = 0; i < left; i++) count[room[i] >> shift[digit] & mask[digit]]++;
        size_t bin = 0, sum = found;
        while (sum + count[bin] < p) sum += count[bin++];
        size_t kept = 0;
        for (size_t i = 0; i < left; i++) {
            uint64_t key = room[i];
            size_t b = key >> shift[digit] & mask[digit];
            if (b < bin) out[found++] = key;
            else if (b == bin) room[kept++] = key;
        }
        left = kept;
    }
    memcpy(out + found, room, (p - found) * sizeof *out);
}

/* One look for the best, one for what is close to it: quicker than choosing P where few are.  The best itself is taken even where best - best is not
 * a number (infinite scores of a damaged file). */
size_t fh_select_close(uint64_t *out, const float *values, size_t n, size_t p, float threshold, uint64_t *room)
{
    size_t best = 0, found = 0;
    for (size_t i = 1; i < n; i++) if (values[i] > values[best]) best = i;
    for (size_t i = 0; i < n && found <= p; i++)
        if (i == best || fh_is_close(values[best], values[i], threshold)) {
            if (found < p) out[found] = fh_key(values[i], (uint32_t)i);
            found++;
        }
    if (found <= p) return found;
    fh_select(out, values, n, p, room); /* more than P are close: the P best of all are */
    return p;
}

void fh_heap_offer(uint64_t *heap, size_t k, uint64_t key)
{
    uint64_t *a = heap; /* a[1] is the root */
    size_t n = (size_t)heap[0], i;
    if (n < k) {
        for (i = n + 1; i > 1 && a[i / 2] < key; i /= 2) a[i] = a[i / 2];
        a[i] = key;
        heap[0] = n + 1;
        return;
    }
    if (key >= a[1]) return;
    for (i = 1; 2 * i <= n;) {
        size_t child = 2 * i;
        if (child < n && a[child + 1] > a[child]) child++;
        if (a[child] <= key) break;
        a[i] = a[child];
        i = child;
    }
    a[i] = key;
}

static void insertion_sort(uint64_t *a, size_t n)
{
    for (size_t i = 1; i < n; i++) {
        uint64_t x = a[i];
        size_t j = i;
        for (; j > 0 && a[j - 1] > x; j--) a[j] = a[j - 1];
        a[j] = x;
    }
}

/* Merge sort from runs of RUN upwards: no bad inputs, no library allocation. */
void fh_sort_keys(uint64_t *keys, size_t n, uint64_t *room)
{
    enum { RUN = 16 };
    uint64_t *from = keys, *to = room;
    for (size_t i = 0; i < n; i += RUN) insertion_sort(keys + i, fh_min(RUN, n - i));
    for (size_t width = RUN; width < n; width *= 2) {
        for (size_t i = 0; i < n; i += 2 * width) {
            size_t a = i, a_end = fh_min(i + width, n), b = a_end, b_end = fh_min(i + 2 * width, n), o = i;
            while (a < a_end && b < b_end) to[o++] = from[a] <= from[b] ? from[a++] : from[b++];
            memcpy(to + o, from + a, (a_end - a) * sizeof *to);
            o += a_end - a;
            memcpy(to + o, from + b, (b_end - b) * sizeof *to);
        }
        uint64_t *swap = from;
        from = to, to = swap;
    }
    if (from != keys) memcpy(keys, from, n * sizeof *keys);
}

static void sift_down(uint32_t *a, size_t n, size_t i)
{
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && a[child + 1] > a[child]) child++;
        if (a[i] >= a[child]) return;
        uint32_t swap = a[i];
        a[i] = a[child], a[child] = swap;
    }
}

size_t fh_sort_ids(uint32_t *ids, size_t n)
{
    for (size_t i = n / 2; i-- > 0;) sift_down(ids, n, i);
    for (size_t end = n; end > 1;) {
        uint32_t swap = ids[--end];
        ids[end] = ids[0], ids[0] = swap;
        sift_down(ids, end, 0);
    }
    size_t kept = 0;
    for (size_t i = 0; i < n; i++)
        if (kept == 0 || ids[kept - 1] != ids[i]) ids[kept++] = ids[i];
    return kept;
}
