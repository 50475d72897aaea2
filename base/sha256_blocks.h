/* base/sha256_blocks.h: the two compression functions, apart so that a test can hold one to the other. */
#ifndef FH_SHA256_BLOCKS_H
#define FH_SHA256_BLOCKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Take n blocks of 64 bytes into the state h. */
void fh_sha256_blocks_ref(uint32_t h[8], const uint8_t *data, size_t n);
/* The same by SHA-NI; only where fh_sha256_has_shani(). */
void fh_sha256_blocks_shani(uint32_t h[8], const uint8_t *data, size_t n);
bool fh_sha256_has_shani(void);

extern const uint32_t fh_sha256_k[64]; /* FIPS 180-4, 4.2.2 */

#endif
