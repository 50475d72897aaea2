/* format/json_scan.h: judging JSON text before a parser sees it.  Private to format/json*.c. */
#ifndef FH_JSON_SCAN_H
#define FH_JSON_SCAN_H

#include "format/format.h"

enum { FH_JSON_DEPTH = 64 };

typedef struct fh_json_scan {
    uint8_t *integers; /* one bit a number, in the order of the text: written without point and exponent */
    size_t numbers;
    char *rewritten;   /* NULL, or the text with every number of more than 63 characters replaced by an equal short one */
} fh_json_scan;

/* RFC 8259 to the letter, and what format.h promises besides; duplicate keys are not looked for. */
fh_status fh_json_scan_text(fh_json_scan *out, const char *text, size_t len, const char *file, fh_err *err);
void fh_json_scan_free(fh_json_scan *s); /* accepts a zeroed one */
/* The line and column (from 1, in characters) of the n-th key (from 0) of a text that has passed. */
void fh_json_scan_key(const char *text, size_t len, size_t n, size_t *line, size_t *column);

#endif
