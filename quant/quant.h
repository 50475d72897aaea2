/* quant/quant.h: encodings of centroids and token rows, and what they cost.
 *
 * int8 is symmetric per row: scale = max|x| / 127 (float32, 1 for a zero row), q = x / scale rounded to nearest even, in
 * [-127, 127].  int4 has a bf16 scale for each group of 32 values, q in [-7, 7]: of a few shares of max|x| / 7 the one with the smallest squared
 * error is taken, because cutting off one value may serve the other 31.  The others are the dtype itself, rounded to nearest even.  Rows are stored with a stride of whole 64-byte
 * lines, zero-filled, so that kernels need no tail.
 */
#ifndef FH_QUANT_H
#define FH_QUANT_H

#include "format/format.h"

/* Bytes from row to row: fh_row_bytes, rounded up to 64. */
size_t fh_enc_stride(fh_dtype encoding, size_t cols);
/* One row.  dst: stride bytes, written whole.  scales: fh_scale_bytes, for int8 and int4 only (else NULL). */
void fh_enc_row(fh_dtype encoding, const float *src, size_t cols, void *dst, void *scales);

/* Rows scored again where nobody says otherwise (docs/decisions/0006). */
static inline uint32_t fh_rerank_default(fh_dtype tokens) { return tokens == FH_I4 ? 32 : 16; }

typedef struct fh_quant_error { double mean, p99, max; uint32_t worst; } fh_quant_error; /* relative: |row - decoded| / |row|, live rows; worst: row of max */

/* Encode `n` rows: row i of the result is row order[i] of src (order NULL: i; UINT32_MAX: a zero row).  out n * stride bytes, scales
 * n * fh_scale_bytes for int8 and int4 (else NULL).  skip [src->rows] (NULL: none): rows left out of *error.  error->worst is a row of src. */
fh_status fh_encode_rows(fh_dtype encoding, const fh_rows *src, const uint32_t *order, size_t n, const uint8_t *skip, const fh_job *job,
                         void *out, void *scales, fh_quant_error *error, fh_err *err);
/* Centroids [K, D], float32.  As int4 without their mean: a vector taken off all of them changes no order of scores, and what is left is
 * smaller (docs/measurements/stage1.md). */
fh_status fh_encode_centroids(fh_dtype encoding, const fh_rows *src, const fh_job *job, void *out, void *scales, fh_quant_error *error, fh_err *err);
#endif
