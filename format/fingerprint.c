/* format/fingerprint.c: which head an artifact was made of. */
#include "format/format.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* SHA-256 over one line of facts and the numbers as they are stored, without what pads the rows:
 *
 *     fhead fingerprint 1: vocab V hidden D dtype bf16 softcap 403e000000000000 bias none\n
 *     V rows of D numbers
 *     V numbers of bias, where there is one
 *
 * The soft-cap is written as the bits of the double (0 for none), so that no way of printing numbers enters. */
void fh_fingerprint(char out[65], const fh_rows *head, const fh_rows *bias_or_null, double final_softcap)
{
    fh_fingerprint_in_order(out, head, NULL, head->rows, bias_or_null, final_softcap);
}

void fh_fingerprint_in_order(char out[65], const fh_rows *head, const uint32_t *order, size_t n, const fh_rows *bias_or_null, double final_softcap)
{
    char facts[200];
    uint8_t digest[32];
    uint64_t softcap = 0;
    const fh_rows *parts[2] = {head, bias_or_null};
    fh_sha256 s;
    if (final_softcap != 0) memcpy(&softcap, &final_softcap, sizeof softcap);
    int length = snprintf(facts, sizeof facts, "fhead fingerprint 1: vocab %zu hidden %zu dtype %s softcap %016" PRIx64 " bias %s\n", n,
                     head->cols, fh_dtype_name(head->dtype), softcap, bias_or_null ? fh_dtype_name(bias_or_null->dtype) : "none");
    fh_sha256_init(&s);
    fh_sha256_update(&s, facts, (size_t)length);
    for (size_t i = 0; i < 2 && parts[i]; i++) {
        size_t row = parts[i]->cols * fh_dtype_size(parts[i]->dtype);
        if (i == 0 && order)
            for (size_t r = 0; r < n; r++) fh_sha256_update(&s, fh_row(head, order[r]), row);
        else if (row == parts[i]->stride) fh_sha256_update(&s, parts[i]->data, row * parts[i]->rows);
        else
            for (size_t r = 0; r < parts[i]->rows; r++) fh_sha256_update(&s, fh_row(parts[i], r), row);
    }
    fh_sha256_final(&s, digest);
    fh_sha256_hex(out, digest);
}

/* n rows as a section stores them: zeros up to the stride, whole rows of zeros in empty slots. */
static void hash_rows(fh_sha256 *s, const fh_rows *rows, const uint32_t *permutation)
{
    static const uint8_t zeros[64];
    size_t used = fh_row_bytes(rows->dtype, rows->cols), stride = fh_round_up(used, 64);
    for (size_t r = 0; r < rows->rows; r++) {
        bool empty = permutation && permutation[r] == UINT32_MAX;
        if (!empty) fh_sha256_update(s, fh_row(rows, r), used);
        for (size_t left = empty ? stride : stride - used; left; left -= fh_min(left, sizeof zeros)) fh_sha256_update(s, zeros, fh_min(left, sizeof zeros));
    }
}

/* Scales likewise: 1 in empty slots. */
static void hash_scales(fh_sha256 *s, const void *scales, const fh_rows *rows, const uint32_t *permutation)
{
    size_t each = fh_scale_bytes(rows->dtype, rows->cols), one_bytes = rows->dtype == FH_I4 ? 2 : 4;
    const float one = 1;
    const uint16_t one16 = fh_f32_to_bf16(1);
    for (size_t r = 0; scales && r < rows->rows; r++) {
        bool empty = permutation && permutation[r] == UINT32_MAX;
        if (!empty) fh_sha256_update(s, (const uint8_t *)scales + r * each, each);
        for (size_t i = 0; empty && i < each; i += one_bytes) fh_sha256_update(s, one_bytes == 2 ? (const void *)&one16 : (const void *)&one, one_bytes);
    }
}

void fh_head_layout_digest(char out[65], const fh_head_layout *h)
{
    uint8_t digest[32];
    fh_sha256 s;
    fh_sha256_init(&s);
    fh_sha256_update(&s, h->permutation, (size_t)h->k * h->cap * sizeof *h->permutation);
    hash_scales(&s, h->centroid_scales, &h->centroids, NULL);
    hash_scales(&s, h->token_scales, &h->tokens, h->permutation);
    hash_rows(&s, &h->centroids, NULL);
    hash_rows(&s, &h->tokens, h->permutation);
    fh_sha256_final(&s, digest);
    fh_sha256_hex(out, digest);
}
