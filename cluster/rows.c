/* cluster/rows.c: the live rows as the clustering sees them, and the centres of their clusters. */
#include "cluster/cluster_private.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS_A_TASK = 256, CLUSTERS_A_TASK = 16, MAPPED_AT_ONCE = 4096 };

/* ---- lengths ------------------------------------------------------------------------------------------------- */

struct lengths {
    const fh_rows *head;
    const uint8_t *dead;
    double *norm;
    float *row; /* of each worker, [D] */
};

static void lengths_task(void *ctx, size_t task, unsigned worker)
{
    const struct lengths *l = ctx;
    float *row = l->row + worker * l->head->cols;
    size_t begin = task * ROWS_A_TASK, end = fh_min(begin + ROWS_A_TASK, l->head->rows);
    for (size_t t = begin; t < end; t++) {
        double sum = 0;
        if (!l->dead || !l->dead[t]) {
            fh_to_f32(row, l->head->dtype, fh_row(l->head, t), l->head->cols);
            for (size_t j = 0; j < l->head->cols; j++) sum += (double)row[j] * row[j];
        }
        l->norm[t] = sqrt(sum);
    }
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

fh_status fh_row_lengths(double *norm, size_t *live, const fh_rows *head, const uint8_t *dead, const fh_job *job, fh_err *err)
{
    fh_status rc = FH_OK;
    fh_pool *pool = fh_job_pool(job);
    size_t v = head->rows, n = 0;
    struct lengths l = {head, dead, norm, fh_malloc(fh_pool_threads(pool) * head->cols * sizeof(float))};
    double *sorted = fh_malloc(v * sizeof *sorted);
    if (!l.row || !sorted) {
        rc = fh_fail(err, FH_ENOMEM, "clustering: out of memory for the lengths of %zu rows", v);
        goto out;
    }
    fh_pool_run(pool, (v + ROWS_A_TASK - 1) / ROWS_A_TASK, lengths_task, &l);
    for (size_t t = 0; t < v; t++) {
        if (!isfinite(norm[t])) {
            rc = fh_fail(err, FH_EFORMAT, "row %zu of the head holds NaN or infinity: is the checkpoint damaged?", t);
            goto out;
        }
        if (norm[t] > 0) sorted[n++] = norm[t];
    }
    *live = 0;
    if (!n) goto out;
    qsort(sorted, n, sizeof *sorted, ascending);
    double median = sorted[n / 2];
    /* Squares of scaled rows must stay far inside float32. */
    if (sorted[n - 1] > 1e12 * median) {
        size_t t = 0;
        while (norm[t] < sorted[n - 1]) t++;
        rc = fh_fail(err, FH_EFORMAT, "row %zu of the head is %.0e times as long as the median row: is the checkpoint damaged?", t,
                     norm[t] / median);
        goto out;
    }
    for (size_t t = 0; t < v; t++) {
        if (norm[t] > 1e-6 * median) ++*live;
        else norm[t] = 0;
    }
out:
    fh_free(l.row);
    fh_free(sorted);
    return rc;
}

/* ---- rows ---------------------------------------------------------------------------------------------------- */

struct fill {
    fh_work *w;
    float *row;   /* of each worker, [D] */
    double *part; /* [chunks, D] */
    float *block; /* [MAPPED_AT_ONCE, D] of rows from `at` on, before they are mapped */
    size_t at, m;
};

/* Row i as it is compared: mapped ones lie in x already. */
static const float *compared(const struct fill *f, size_t i, unsigned worker)
{
    const fh_work *w = f->w;
    if (w->map) return w->x + i * w->ld;
    float *row = f->row + worker * w->d;
    fh_to_f32(row, w->head->dtype, fh_row(w->head, w->ids[i]), w->d);
    return row;
}

static void block_task(void *ctx, size_t task, unsigned worker)
{
    const struct fill *f = ctx;
    const fh_work *w = f->w;
    size_t begin = task * ROWS_A_TASK, end = fh_min(begin + ROWS_A_TASK, f->m);
    for (size_t i = begin; i < end; i++) fh_to_f32(f->block + i * w->d, w->head->dtype, fh_row(w->head, w->ids[f->at + i]), w->d);
}

static void sum_task(void *ctx, size_t task, unsigned worker)
{
    const struct fill *f = ctx;
    const fh_work *w = f->w;
    double *part = f->part + task * w->d;
    size_t begin = task * ROWS_A_TASK * 8, end = fh_min(begin + ROWS_A_TASK * 8, w->n);
    for (size_t i = begin; i < end; i++) {
        const float *row = compared(f, i, worker);
        double square = 0;
        for (size_t j = 0; j < w->d; j++) part[j] += (double)row[j];
        for (size_t j = 0; j < w->d; j++) square += (double)row[j] * row[j];
        w->size[i] = sqrt(square);
    }
}

static void fill_task(void *ctx, size_t task, unsigned worker)
{
    const struct fill *f = ctx;
    fh_work *w = f->w;
    size_t begin = task * ROWS_A_TASK, end = fh_min(begin + ROWS_A_TASK, w->n);
    for (size_t i = begin; i < end; i++) {
        float *x = w->x + i * w->ld;
        if (w->metric == FH_METRIC_COSINE) w->size[i] = w->norm[w->ids[i]];
        double by = w->metric == FH_METRIC_COSINE ? 1 / w->size[i] : w->scale;
        const float *row = compared(f, i, worker);
        for (size_t j = 0; j < w->d; j++) x[j] = (float)(((double)row[j] - w->shift[j]) * by);
        w->square[i] = w->dots->one(x, x, w->ld);
    }
}

/* x = rows times the map, in panels of columns: what is left of the map's diagonal is not multiplied. */
static fh_status mapped(struct fill *f, fh_err *err)
{
    fh_work *w = f->w;
    fh_pool *pool = fh_job_pool(w->job);
    size_t panel = fh_max(w->d / 8, 64);
    if (!(f->block = fh_malloc(MAPPED_AT_ONCE * w->d * sizeof *f->block))) return fh_fail(err, FH_ENOMEM, "clustering: out of memory");
    for (; f->at < w->n; f->at += f->m) {
        f->m = fh_min(MAPPED_AT_ONCE, w->n - f->at);
        if (fh_job_stopped(w->job)) return fh_fail(err, FH_EINTERRUPTED, "interrupted");
        fh_job_progress(w->job, "rows", (double)f->at, (double)w->n, "tokens");
        fh_pool_run(pool, (f->m + ROWS_A_TASK - 1) / ROWS_A_TASK, block_task, f);
        for (size_t j = 0; j < w->d; j += panel)
            fh_gemm_nt(pool, f->m, fh_min(panel, w->d - j), w->d - j, f->block + j, w->d, w->map + j * w->d + j, w->d, w->x + f->at * w->ld + j, w->ld);
    }
    fh_job_progress(w->job, "rows", (double)w->n, (double)w->n, "tokens");
    return FH_OK;
}

fh_status fh_work_fill(fh_work *w, fh_err *err)
{
    fh_status rc = FH_OK;
    fh_pool *pool = fh_job_pool(w->job);
    size_t chunks = (w->n + ROWS_A_TASK * 8 - 1) / (ROWS_A_TASK * 8);
    struct fill f = {w, fh_malloc(fh_pool_threads(pool) * w->d * sizeof(float)), NULL, NULL, 0, 0};
    if (!f.row) goto nomem;
    if (w->map && (rc = mapped(&f, err)) < 0) goto out;
    memset(w->shift, 0, w->ld * sizeof *w->shift);
    w->scale = 1;
    w->elsewhere.sent = false; /* other rows than those that may be there */
    if (w->metric == FH_METRIC_EUCLIDEAN) {
        /* The mean in fixed chunks, whatever the number of threads; a power of two as scale changes no digit. */
        if (!(f.part = fh_calloc(chunks * w->d, sizeof *f.part))) goto nomem;
        fh_pool_run(pool, chunks, sum_task, &f);
        for (size_t c = 0; c < chunks; c++) {
            for (size_t j = 0; j < w->d; j++) w->shift[j] += f.part[c * w->d + j];
        }
        double longest = 0;
        for (size_t j = 0; j < w->d; j++) w->shift[j] /= (double)w->n;
        for (size_t i = 0; i < w->n; i++) {
            if (isfinite(w->size[i])) longest = fmax(longest, w->size[i]);
            else rc = fh_fail(err, FH_EFORMAT, "token %u seen through the states is not finite: are they damaged? Collect them again with 'fhtool hidden'", w->ids[i]);
        }
        if (rc < 0) goto out;
        if (longest > 0) w->scale = ldexp(1, -ilogb(longest));
    }
    fh_pool_run(pool, (w->n + ROWS_A_TASK - 1) / ROWS_A_TASK, fill_task, &f);
    goto out;
nomem:
    rc = fh_fail(err, FH_ENOMEM, "clustering: out of memory while reading %zu rows", w->n);
out:
    fh_free(f.row);
    fh_free(f.part);
    fh_free(f.block);
    return rc;
}

/* ---- clusters ------------------------------------------------------------------------------------------------ */

void fh_work_members(fh_work *w)
{
    /* place [c] serves as the write position of cluster c first: k <= n. */
    memcpy(w->place, w->first, w->k * sizeof *w->place);
    for (size_t i = 0; i < w->n; i++) w->members[w->place[w->home[i]]++] = (uint32_t)i;
    for (size_t m = 0; m < w->n; m++) w->place[w->members[m]] = (uint32_t)m;
}

struct sums {
    fh_work *w;
    double *sum;    /* of each worker, [ld] */
    double *result; /* [K], of unit_task */
};

static void centre_task(void *ctx, size_t task, unsigned worker)
{
    const struct sums *s = ctx;
    fh_work *w = s->w;
    double *sum = s->sum + worker * w->ld;
    size_t begin = task * CLUSTERS_A_TASK, end = fh_min(begin + CLUSTERS_A_TASK, w->k);
    for (size_t c = begin; c < end; c++) {
        memset(sum, 0, w->ld * sizeof *sum);
        for (size_t m = w->first[c]; m < w->first[c + 1]; m++) {
            const float *x = w->x + w->members[m] * w->ld;
            for (size_t j = 0; j < w->ld; j++) sum[j] += (double)x[j];
        }
        double by = w->metric == FH_METRIC_COSINE ? 1 : 1 / (double)(w->first[c + 1] - w->first[c]);
        float *centre = w->centre + c * w->ld;
        for (size_t j = 0; j < w->ld; j++) centre[j] = (float)(sum[j] * by);
        w->length[c] = sqrtf(w->dots->one(centre, centre, w->ld));
    }
}

/* |sum of the unit rows of the members|: rows are got back from x, shift and scale. */
static void unit_task(void *ctx, size_t task, unsigned worker)
{
    const struct sums *s = ctx;
    const fh_work *w = s->w;
    double *sum = s->sum + worker * w->ld;
    size_t begin = task * CLUSTERS_A_TASK, end = fh_min(begin + CLUSTERS_A_TASK, w->k);
    for (size_t c = begin; c < end; c++) {
        double shifts = 0, square = 0;
        memset(sum, 0, w->ld * sizeof *sum);
        for (size_t m = w->first[c]; m < w->first[c + 1]; m++) {
            uint32_t i = w->members[m];
            const float *x = w->x + i * w->ld;
            double by = w->metric == FH_METRIC_COSINE ? 1 : 1 / fmax(w->size[i] * w->scale, 1e-300);
            for (size_t j = 0; j < w->ld; j++) sum[j] += by * (double)x[j];
            shifts += by * w->scale;
        }
        for (size_t j = 0; j < w->ld; j++) {
            double y = sum[j] + shifts * w->shift[j];
            square += y * y;
        }
        s->result[c] = sqrt(square);
    }
}

static fh_status over_clusters(fh_work *w, fh_task task, double *result, fh_err *err)
{
    fh_pool *pool = fh_job_pool(w->job);
    struct sums s = {w, fh_malloc(fh_pool_threads(pool) * w->ld * sizeof(double)), result};
    if (!s.sum) return fh_fail(err, FH_ENOMEM, "clustering: out of memory for sums over clusters");
    fh_pool_run(pool, (w->k + CLUSTERS_A_TASK - 1) / CLUSTERS_A_TASK, task, &s);
    fh_free(s.sum);
    return FH_OK;
}

fh_status fh_work_centres(fh_work *w, fh_err *err)
{
    return over_clusters(w, centre_task, NULL, err);
}

double fh_work_gain(const fh_work *w)
{
    double sum = 0;
    for (size_t c = 0; c < w->k; c++) {
        double l = (double)w->length[c];
        sum += w->metric == FH_METRIC_COSINE ? l : l * l * (double)(w->first[c + 1] - w->first[c]);
    }
    return sum;
}

fh_status fh_work_objective(double *out, fh_work *w, fh_err *err)
{
    double *length = fh_malloc(w->k * sizeof *length), sum = 0;
    if (!length) return fh_fail(err, FH_ENOMEM, "clustering: out of memory for sums over clusters");
    fh_status rc = over_clusters(w, unit_task, length, err);
    for (size_t c = 0; rc == FH_OK && c < w->k; c++) sum += length[c];
    fh_free(length);
    if (rc == FH_OK) *out = sum / (double)w->n;
    return rc;
}
