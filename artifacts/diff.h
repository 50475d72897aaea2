/* What the files of diff share. */
#ifndef FH_DIFF_H
#define FH_DIFF_H

#include "artifacts/release_private.h"
#include "calib/calib.h"

/* What artifacts a and b of one model make of the states in a file, into *r; names may be NULL. */
fh_status fh_diff_states(fh_json *r, const char *a, const char *b, const char *path, size_t top, const fh_tokenizer *names, const fh_job *job, fh_err *err);

#endif
