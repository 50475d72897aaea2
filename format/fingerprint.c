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
    char facts[200];
    uint8_t digest[32];
    uint64_t softcap = 0;
    const fh_rows *parts[2] = {head, bias_or_null};
    fh_sha256 s;
    if (final_softcap != 0) memcpy(&softcap, &final_softcap, sizeof softcap);
    int n = snprintf(facts, sizeof facts, "fhead fingerprint 1: vocab %zu hidden %zu dtype %s softcap %016" PRIx64 " bias %s\n", head->rows,
                     head->cols, fh_dtype_name(head->dtype), softcap, bias_or_null ? fh_dtype_name(bias_or_null->dtype) : "none");
    fh_sha256_init(&s);
    fh_sha256_update(&s, facts, (size_t)n);
    for (size_t i = 0; i < 2 && parts[i]; i++) {
        size_t row = parts[i]->cols * fh_dtype_size(parts[i]->dtype);
        if (row == parts[i]->stride) fh_sha256_update(&s, parts[i]->data, row * parts[i]->rows);
        else
            for (size_t r = 0; r < parts[i]->rows; r++) fh_sha256_update(&s, fh_row(parts[i], r), row);
    }
    fh_sha256_final(&s, digest);
    fh_sha256_hex(out, digest);
}
