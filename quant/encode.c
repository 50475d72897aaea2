/* encode.c: rows into encodings and back, and what that costs. */
#include "quant/quant.h"

#include <float.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

size_t fh_enc_stride(fh_dtype encoding, size_t cols) { return fh_round_up(fh_row_bytes(encoding, cols), 64); }

/* ---- one row ------------------------------------------------------------------------------------------------------------ */

static void encode_i8(const float *src, size_t cols, int8_t *dst, float *scale)
{
    const double to_nearest_even = 0x1.8p52;
    float max = 0;
    for (size_t i = 0; i < cols; i++) max = fmaxf(max, fabsf(src[i]));
    float s = max / 127;
    /* A row so small that max / 127 rounds to nothing, or to a subnormal too coarse for 127 steps, still gets the smallest
     * scale that keeps its values in range. */
    while (max > 0 && !((double)max / (double)s < 127.5)) s = nextafterf(s, INFINITY);
    if (!(max > 0)) s = 1;
    for (size_t i = 0; i < cols; i++) dst[i] = (int8_t)((double)src[i] / (double)s + to_nearest_even - to_nearest_even);
    *scale = s;
}

static int round_to(float x, float scale)
{
    const double to_nearest_even = 0x1.8p52;
    double q = (double)x / (double)scale + to_nearest_even - to_nearest_even;
    return q < -7 ? -7 : q > 7 ? 7 : (int)q;
}

/* The scale of one group: a share of max / 7, as bf16. */
static uint16_t group_scale(const float *x, size_t n)
{
    static const float shares[] = {1, 0.92f, 0.84f, 0.76f};
    float max = 0;
    double least = INFINITY;
    uint16_t best = fh_f32_to_bf16(1);
    for (size_t i = 0; i < n; i++) max = fmaxf(max, fabsf(x[i]));
    for (size_t k = 0; max > 0 && k < sizeof shares / sizeof *shares; k++) {
        uint16_t h = fh_f32_to_bf16(fmaxf(max / 7 * shares[k], 0x1p-126f)); /* 0 would be no scale, and subnormals are coarse */
        float scale = fh_bf16_to_f32(h);
        double off = 0;
        for (size_t i = 0; i < n; i++) {
            double e = (double)x[i] - (double)round_to(x[i], scale) * (double)scale;
            off += e * e;
        }
        if (off < least) least = off, best = h;
    }
    return best;
}

static void encode_i4(const float *src, size_t cols, uint8_t *dst, uint16_t *scales)
{
    memset(dst, 0, fh_row_bytes(FH_I4, cols));
    for (size_t g = 0; g < cols; g += FH_GROUP) {
        size_t n = fh_min(FH_GROUP, cols - g);
        float scale = fh_bf16_to_f32(scales[g / FH_GROUP] = group_scale(src + g, n));
        for (size_t i = g; i < g + n; i++) dst[i / 128 * 64 + i % 64] |= (uint8_t)((round_to(src[i], scale) & 15) << (i % 128 < 64 ? 0 : 4));
    }
}

void fh_enc_row(fh_dtype encoding, const float *src, size_t cols, void *dst, void *scales)
{
    size_t used = fh_row_bytes(encoding, cols);
    uint8_t *bytes = dst;
    for (size_t i = 0; encoding == FH_BF16 && i < cols; i++) {
        uint16_t h = fh_f32_to_bf16(src[i]);
        memcpy(bytes + 2 * i, &h, 2);
    }
    for (size_t i = 0; encoding == FH_F16 && i < cols; i++) {
        uint16_t h = fh_f32_to_f16(src[i]);
        memcpy(bytes + 2 * i, &h, 2);
    }
    if (encoding == FH_F32) memcpy(dst, src, used);
    if (encoding == FH_I8) encode_i8(src, cols, dst, scales);
    if (encoding == FH_I4) encode_i4(src, cols, dst, scales);
    memset(bytes + used, 0, fh_enc_stride(encoding, cols) - used);
}

/* ---- many rows ------------------------------------------------------------------------------------------------------------ */

enum { STEP = 256 }; /* rows a task: some hundred microseconds */

typedef struct encode_job {
    fh_dtype encoding;
    const fh_rows *src;
    const uint32_t *order;
    size_t n, stride;
    const uint8_t *skip;
    const fh_job *job;
    uint8_t *out, *scales;
    size_t scale_bytes; /* of a row */
    double *errors;   /* [n] NAN: does not count; NULL: not asked for */
    atomic_size_t bad; /* the first row that cannot be encoded; SIZE_MAX: none */
    float *row, *back; /* [threads, cols] */
} encode_job;

/* The first value that is not a finite number; cols when all are. */
static size_t first_infinite(const float *row, size_t cols)
{
    size_t i = 0;
    while (i < cols && fabsf(row[i]) <= FLT_MAX) i++;
    return i;
}

static void note_bad(encode_job *j, size_t i)
{
    size_t first = atomic_load(&j->bad);
    while (i < first && !atomic_compare_exchange_weak(&j->bad, &first, i)) continue;
}

/* Say what is wrong with row i of the result. */
static fh_status explain_bad(const encode_job *j, size_t i, float *row, fh_err *err)
{
    size_t from = j->order ? j->order[i] : i, cols = j->src->cols, at;
    fh_to_f32(row, j->src->dtype, fh_row(j->src, from), cols);
    if ((at = first_infinite(row, cols)) < cols)
        return fh_fail(err, FH_ECHECK, "row %zu: value %zu is %g: such a head cannot be encoded; is the checkpoint damaged?", from, at,
                       (double)row[at]);
    for (at = 0; at + 1 < cols && (j->encoding == FH_F16 ? fabsf(row[at]) < 65520.0f : fh_f32_to_bf16(fabsf(row[at])) < 0x7f80u);
         at++) continue;
    return fh_fail(err, FH_ECHECK, "row %zu: value %zu is %g, more than %s can hold; use another encoding", from, at, (double)row[at],
                   fh_dtype_name(j->encoding));
}

/* |row - back| / |row|; a row of zeros comes back as zeros. */
static double row_error(const float *row, const float *back, size_t cols)
{
    double norm = 0, off = 0;
    for (size_t i = 0; i < cols; i++) {
        double x = (double)row[i], e = x - (double)back[i];
        norm += x * x;
        off += e * e;
    }
    return off == 0 ? 0 : sqrt(off / norm);
}

static void encode_task(void *ctx, size_t task, unsigned worker)
{
    encode_job *j = ctx;
    size_t cols = j->src->cols;
    float *row = j->row + worker * cols, *back = j->back + worker * cols;
    if (fh_job_stopped(j->job)) return;
    for (size_t i = task * STEP, end = fh_min(i + STEP, j->n); i < end; i++) {
        size_t from = j->order ? j->order[i] : i;
        bool empty = j->order && j->order[i] == UINT32_MAX;
        uint8_t *scales = j->scales ? j->scales + i * j->scale_bytes : NULL;
        if (empty) memset(row, 0, cols * sizeof *row);
        else fh_to_f32(row, j->src->dtype, fh_row(j->src, from), cols);
        if (first_infinite(row, cols) < cols) {
            note_bad(j, i);
            continue;
        }
        fh_enc_row(j->encoding, row, cols, j->out + i * j->stride, scales);
        fh_dec_row(j->encoding, j->out + i * j->stride, scales, cols, back);
        if (first_infinite(back, cols) < cols) note_bad(j, i);
        if (j->errors) j->errors[i] = empty || (j->skip && j->skip[from]) ? NAN : row_error(row, back, cols);
    }
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* In row order and on one thread, so that the mean is the same for any number of threads. */
static void summarize(const encode_job *j, fh_quant_error *error)
{
    size_t kept = 0;
    double sum = 0;
    *error = (fh_quant_error){.max = -1, .worst = UINT32_MAX};
    for (size_t i = 0; i < j->n; i++) {
        double e = j->errors[i];
        uint32_t from = j->order ? j->order[i] : (uint32_t)i;
        if (isnan(e)) continue;
        if (e > error->max || (e == error->max && from < error->worst)) error->max = e, error->worst = from;
        sum += e;
        j->errors[kept++] = e;
    }
    if (kept == 0) {
        error->max = 0;
        return;
    }
    qsort(j->errors, kept, sizeof *j->errors, ascending);
    error->mean = sum / (double)kept;
    error->p99 = j->errors[(kept - 1) * 99 / 100];
}

static fh_status check(fh_dtype encoding, const fh_rows *src, const uint32_t *order, size_t n, fh_err *err)
{
    if (!fh_dtype_is_encoding(encoding))
        return fh_fail(err, FH_EUSAGE, "rows are encoded as f32, bf16, f16, int8 or int4, not as %s", fh_dtype_name(encoding));
    if (!fh_dtype_is_float(src->dtype)) return fh_fail(err, FH_EUSAGE, "rows to encode are %s, not f32, bf16 or f16",
                                                       fh_dtype_name(src->dtype));
    if (!order && n > src->rows) return fh_fail(err, FH_EUSAGE, "%zu rows to encode of %zu", n, src->rows);
    for (size_t i = 0; order && i < n; i++)
        if (order[i] >= src->rows && order[i] != UINT32_MAX)
            return fh_fail(err, FH_EUSAGE, "entry %zu of the order is row %u, but there are %zu", i, order[i], src->rows);
    return FH_OK;
}

fh_status fh_encode_rows(fh_dtype encoding, const fh_rows *src, const uint32_t *order, size_t n, const uint8_t *skip, const fh_job *job,
                         void *out, void *scales, fh_quant_error *error, fh_err *err)
{
    fh_status rc;
    size_t values, bytes;
    fh_pool *pool = fh_job_pool(job);
    encode_job j = {encoding, src, order, n, fh_enc_stride(encoding, src->cols), skip, job, out,
                    fh_dtype_is_integer(encoding) ? scales : NULL, fh_scale_bytes(encoding, src->cols), NULL, SIZE_MAX, NULL, NULL};
    if ((rc = check(encoding, src, order, n, err)) < 0) return rc;
    if (!fh_mul(src->cols, 2 * sizeof(float), &values) || !fh_mul(values, fh_pool_threads(pool), &bytes)) return fh_fail(err, FH_EUSAGE,
        "rows too long to encode");
    j.row = fh_malloc(bytes + 1);
    if (error) j.errors = fh_malloc(fh_max(n, 1) * sizeof *j.errors);
    if (!j.row || (error && !j.errors)) {
        rc = fh_fail(err, FH_ENOMEM, "encoding %zu rows: out of memory", n);
        goto out;
    }
    j.back = j.row + src->cols * fh_pool_threads(pool);
    fh_pool_run(pool, (n + STEP - 1) / STEP, encode_task, &j);
    if (fh_job_stopped(job)) {
        rc = fh_fail(err, FH_EINTERRUPTED, "encoding: interrupted");
        goto out;
    }
    if (atomic_load(&j.bad) != SIZE_MAX) {
        rc = explain_bad(&j, atomic_load(&j.bad), j.row, err);
        goto out;
    }
    if (error) summarize(&j, error);
out:
    fh_free(j.row);
    fh_free(j.errors);
    return rc;
}

/* ---- centroids ------------------------------------------------------------------------------------------------------------ */

fh_status fh_encode_centroids(fh_dtype encoding, const fh_rows *src, const fh_job *job, void *out, void *scales, fh_quant_error *error, fh_err *err)
{
    size_t bytes, cols = src->cols;
    if (encoding != FH_I4) return fh_encode_rows(encoding, src, NULL, src->rows, NULL, job, out, scales, error, err);
    if (!fh_mul(src->rows, cols, &bytes) || !fh_mul(bytes, sizeof(float), &bytes)) return fh_fail(err, FH_EUSAGE, "rows too long to encode");
    float *less = fh_malloc(bytes + 1);
    double *mean = fh_calloc(cols + 1, sizeof *mean);
    fh_status rc = less && mean ? FH_OK : fh_fail(err, FH_ENOMEM, "encoding %zu centroids: out of memory", src->rows);
    for (size_t r = 0; rc == FH_OK && r < src->rows; r++)
        for (size_t i = 0; i < cols; i++) mean[i] += (double)((const float *)fh_row(src, r))[i];
    for (size_t r = 0; rc == FH_OK && r < src->rows; r++)
        for (size_t i = 0; i < cols; i++) less[r * cols + i] = (float)((double)((const float *)fh_row(src, r))[i] - mean[i] / (double)src->rows);
    fh_rows rows = {less, FH_F32, src->rows, cols, cols * sizeof *less};
    if (rc == FH_OK) rc = fh_encode_rows(encoding, &rows, NULL, src->rows, NULL, job, out, scales, error, err);
    fh_free(less);
    fh_free(mean);
    return rc;
}
