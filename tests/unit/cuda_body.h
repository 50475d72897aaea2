/* cuda_body.h: a body on the emulated device.  Included by test programs once each, after golden_families.h. */
#ifndef FH_TEST_CUDA_BODY_H
#define FH_TEST_CUDA_BODY_H

#include "runtime/body_private.h"
#include "tests/unit/cuda_there.h"

/* Address sanitizer takes some twenty times as long to change fibers: every path, on fewer tokens. */
#ifdef __SANITIZE_ADDRESS__
enum { BRIEF = 1 };
#else
enum { BRIEF = 0 };
#endif

typedef struct there { fh_cuda_device *device; fh_cuda_body *body; } there;

static void there_open(there *t, fh_body *b)
{
    fh_err err;
    ok(device_there(&t->device, &err), err);
    ok(fh_cuda_backend()->body_new(&t->body, t->device, b, &err), err);
    b->device = fh_cuda_backend()->body_does(t->body);
}

static void there_close(there *t, fh_body *b)
{
    b->device = NULL;
    fh_cuda_backend()->body_free(t->body);
    device_gone(t->device);
}

/* Sums of some hundred float32 in another order, through a few layers, as in test_body.c. */
static const double REORDERED = 1e-5;

/* Of caches that round, a value that lies between two of theirs may fall to either side: the CPU's own error of that type is the bound
 * (docs/measurements/kv-cache.md), for which half a step of the largest value of a group stands here. */
static double kv_bound(fh_dtype type) { return type == FH_F32 ? REORDERED : type == FH_F16 ? 1e-3 : 2e-2; }

#endif
