/* Settings in order of cost, before any text has decided among them.
 *
 * Adaptive probing stops where the next cluster's score is further below the best one's than a threshold.  Which thresholds are looked at is taken from part
 * A: a histogram of how far below the best one's the scores of its positions are, cut where the mean number of probes has grown by a fiftieth.  B then
 * tests a sequence that it had no part in, as it does with numbers of probes.
 */
#include "calib/promise.h"

#include <math.h>
#include <string.h>

enum { BLOCK = 64, MOST_SAMPLED = 4096 };
enum { BITS = 15, BINS = 1 << (31 - BITS) }; /* a bin: floats that agree in sign, exponent and 8 bits; the last ones hold no finite number */
#define STEP 1.02

double fh_ladder_probes(const fh_ladder *l, uint32_t rung) { return l->threshold ? l->mean[rung - 1] : rung; }
float fh_ladder_threshold(const fh_ladder *l, uint32_t rung) { return l->threshold ? l->threshold[rung - 1] : 0; }
uint32_t fh_ladder_most(const fh_ladder *l, uint32_t rung) { return l->threshold ? l->most : rung; }
/* Thresholds are a fiftieth apart, few enough to look at all. */
uint32_t fh_ladder_next(const fh_ladder *l, uint32_t rung) { return l->threshold ? rung + 1 : fh_next_probes(rung); }

uint32_t fh_ladder_share(const fh_ladder *l, uint32_t rung, uint32_t part)
{
    uint32_t at = 1;
    if (!l->threshold) return (uint32_t)fh_max(rung / part, 1);
    if (rung > l->n) rung = l->n;
    while (at < rung && l->mean[at - 1] * part < l->mean[rung - 1]) at++;
    return at;
}

uint32_t fh_ladder_step(const fh_ladder *l, float gap)
{
    uint32_t low = 0, high = l->n;
    while (low < high) {
        uint32_t at = low + (high - low) / 2;
        if (gap <= l->threshold[at]) high = at; else low = at + 1; /* a gap that is no number is on none */
    }
    return low;
}

void fh_ladder_free(fh_ladder *l)
{
    fh_free(l->threshold);
    fh_free(l->mean);
    *l = (fh_ladder){0};
}

typedef struct sorting { float *scores; uint32_t clusters, *work; } sorting; /* scores [m, K]; work [workers, 4 K] */

/* A position's scores become what they lack of the best one, rising. */
static void sort_task(void *ctx, size_t i, unsigned worker)
{
    sorting *s = ctx;
    uint32_t k = s->clusters, *order = s->work + (size_t)worker * 4 * k, *rest = order + k;
    float *score = s->scores + i * k, *sorted = (float *)(void *)(rest + k);
    fh_order_clusters(score, k, order, rest, rest + k, rest + 2 * (size_t)k);
    for (uint32_t r = 0; r < k; r++) sorted[r] = score[order[0]] - score[order[r]];
    memcpy(score, sorted, k * sizeof *score);
}

/* count [BINS]: the `most` best clusters of each position, by how far they are below the best; the best ones are in bin 0. */
static fh_status count_gaps(uint64_t *count, const fh_head *head, const fh_dots_device *device, uint32_t most, const float *states, const size_t *positions,
                            size_t n, size_t all, const fh_job *job, fh_err *err)
{
    fh_matrix centroids = {0};
    uint32_t k = fh_head_get_parts(head)->clusters, bits;
    size_t d = fh_head_get_parts(head)->hidden;
    fh_status rc = FH_OK;
    float *h = fh_malloc(BLOCK * d * sizeof *h), *s = fh_malloc((size_t)BLOCK * k * sizeof *s);
    uint32_t *work = fh_malloc((size_t)fh_pool_threads(fh_job_pool(job)) * 4 * k * sizeof *work);
    if (!h || !s || !work) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    if ((rc = fh_matrix_of_head(&centroids, head, false, device, err)) < 0) goto out;
    for (size_t at = 0; at < n; at += BLOCK) {
        size_t m = fh_min(BLOCK, n - at);
        if (fh_job_stopped(job)) { rc = fh_fail(err, FH_EINTERRUPTED, "interrupted"); goto out; }
        for (size_t i = 0; i < m; i++) /* evenly from all of them */
            memcpy(h + i * d, states + positions[(size_t)((double)(at + i) * (double)all / (double)n)] * d, d * sizeof *h);
        if ((rc = fh_matrix_multiply(&centroids, fh_job_pool(job), h, m, s, err)) < 0) goto out;
        sorting j = {s, k, work};
        fh_pool_run(fh_job_pool(job), m, sort_task, &j);
        for (size_t i = 0; i < m; i++)
            for (uint32_t r = 0; r < most; r++) {
                float gap = r ? s[i * k + r] : 0;
                if (!(gap >= 0) || !isfinite(gap)) break;
                memcpy(&bits, &gap, sizeof bits);
                count[(bits & 0x7fffffffu) >> BITS]++;
            }
    }
out:
    fh_matrix_close(&centroids);
    fh_free(h);
    fh_free(s);
    fh_free(work);
    return rc;
}

fh_status fh_ladder_new(fh_ladder *out, const fh_head *head, const fh_dots_device *device, uint32_t most, const float *states, const size_t *positions,
                        size_t n, const fh_job *job, fh_err *err)
{
    size_t sampled = fh_min(n, MOST_SAMPLED), rungs = 0;
    uint64_t *count = fh_calloc(BINS, sizeof *count), sum = 0;
    double next = 0;
    fh_ladder l = {.most = most, .threshold = fh_malloc(FH_RUNGS * sizeof *l.threshold), .mean = fh_malloc(FH_RUNGS * sizeof *l.mean)};
    fh_status rc = count && l.threshold && l.mean ? FH_OK : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc < 0 || !most || !n) goto out;
    if ((rc = count_gaps(count, head, device, most, states, positions, sampled, n, job, err)) < 0) goto out;
    uint32_t last = 0;
    for (uint32_t b = 0; b < BINS; b++) if (count[b]) last = b;
    for (uint32_t b = 0; b <= last && rungs < FH_RUNGS; b++) {
        double mean = (double)(sum += count[b]) / (double)sampled;
        if (!count[b] || (mean < next && b < last)) continue;
        uint32_t bits = b << BITS | ((1u << BITS) - 1); /* the largest of the bin: all of it is within */
        memcpy(&l.threshold[rungs], &bits, sizeof bits);
        l.mean[rungs++] = mean, next = mean * STEP;
    }
    l.n = (uint32_t)rungs;
out:
    fh_free(count);
    if (rc < 0) fh_ladder_free(&l);
    else *out = l;
    return rc;
}
