/* cuda_there.h: the emulated device for tests.  Included by test programs once each, after cmocka.h. */
#ifndef FH_CUDA_THERE_H
#define FH_CUDA_THERE_H

#include "runtime/cuda/backend.h"
#include "tests/emu/emu_control.h"

static const fh_cuda_host host = {fh_calloc, fh_free, fh_fail};

/* Every opening runs its threads in an order of its own. */
static inline fh_status device_there(fh_cuda_device **out, fh_err *err)
{
    static uint64_t seed;
    emu.seed = ++seed;
    return fh_cuda_backend()->device_open(out, 0, &host, err);
}

/* After what was on it is freed: nothing is left. */
static inline void device_gone(fh_cuda_device *d)
{
    fh_cuda_backend()->device_close(d);
    assert_int_equal(emu_allocated(), 0);
}
#endif
