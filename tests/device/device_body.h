/* device_body.h: the body's part of the device's test. */
#ifndef FH_DEVICE_BODY_H
#define FH_DEVICE_BODY_H

#include "runtime/cuda/backend.h"

#include <stdio.h>

/* States of the checkpoints under tests/golden, whole prompts and one token at a time, within 1e-4 of their spread of the reference's. Adds to the counts;
 * what is not there is left out with a line. */
void device_check_bodies(fh_cuda_device *d, size_t *compared, size_t *different);
/* A body of Llama-3.2-1B's shape (small: a few rows) with random weights, and `head` of its width behind it: every product by every kernel, prompts, and
 * tokens by FlashHead and by the dense head on short and long caches. Members of a JSON object. */
void device_time_bodies(FILE *out, fh_cuda_device *d, fh_cuda_head *head, const fh_head_info *info, bool small);

#endif
