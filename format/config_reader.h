/* format/config_reader.h: asking config.json for facts.  Private to format/config*.c. */
#ifndef FH_CONFIG_READER_H
#define FH_CONFIG_READER_H

#include "format/family.h"

/* The first fault sticks in `rc`; asking on is harmless and gives the defaults. */
typedef struct fh_reader {
    const fh_json *top;   /* config.json */
    const fh_json *model; /* the same, or its text_config */
    const char *name;     /* for messages */
    fh_err *err;
    fh_status rc;
} fh_reader;

void fh_reader_fail(fh_reader *r, fh_status code, const char *fmt, ...) FH_PRINTF(3, 4);
/* The value of a key, in text_config or else at the top; NULL when absent or null. */
const fh_json *fh_reader_get(const fh_reader *r, const char *key);
bool fh_reader_is_null(const fh_reader *r, const char *key); /* present as null */
/* Whole numbers from `least` to 2^31 - 1; finite numbers; booleans.  `key` NULL gives the default. */
uint32_t fh_reader_u32(fh_reader *r, const char *key, uint32_t least, uint32_t otherwise);
double fh_reader_double(fh_reader *r, const fh_json *in, const char *key, double otherwise); /* `in` NULL: as fh_reader_get */
bool fh_reader_bool(fh_reader *r, const char *key, bool otherwise);

/* RoPE in both layouts; c->max_position and c->head_dim are there.  What we do not know becomes c->body_why. */
void fh_config_rope(fh_reader *r, const fh_family *f, fh_config *c);
/* Say why the body cannot be run, unless a reason is there already. */
void fh_config_no_body(fh_config *c, const char *fmt, ...) FH_PRINTF(2, 3);

#endif
