/* cuda_products.h: the device that multiplies for measuring, emulated.  Included by test programs once each, after cmocka.h. */
#ifndef FH_CUDA_PRODUCTS_H
#define FH_CUDA_PRODUCTS_H

#include "tests/unit/cuda_there.h"

typedef struct there { fh_cuda_device *device; fh_cuda_multiplier *multiplier; fh_dots_device does; } there;

/* Whatever it answers, there_close frees what is there. */
static inline fh_status there_open(there *t, const fh_rows *shapes, size_t n, fh_err *err)
{
    *t = (there){0};
    fh_status rc = device_there(&t->device, err);
    if (rc == FH_OK) rc = fh_cuda_backend()->multiplier_new(&t->multiplier, t->device, shapes, n, err);
    if (rc == FH_OK) t->does = fh_cuda_backend()->multiplier_use(t->multiplier);
    return rc;
}

static inline void there_close(there *t)
{
    fh_cuda_backend()->multiplier_free(t->multiplier);
    device_gone(t->device);
}
#endif
