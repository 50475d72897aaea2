/* runtime/cuda/device.cuh: the few things of CUDA C++ that the host emulation (tests/emu/emu.h) spells differently. */
#ifndef FH_DEVICE_CUH
#define FH_DEVICE_CUH

#ifdef FH_EMULATED
#define FH_UNROLL(n)
#include "tests/emu/emu.h"
#else
#include <cuda_runtime.h>
#define FH_PRAGMA(words) _Pragma(#words)
#define FH_UNROLL(n) FH_PRAGMA(unroll n)

/* All shared memory of a block, as many bytes as the launch asked for. */
static __device__ __forceinline__ unsigned char *fh_shared(void)
{
    extern __shared__ __align__(16) unsigned char fh_shared_bytes[];
    return fh_shared_bytes;
}

/* Between two looks at a word that another block will write. */
static __device__ __forceinline__ void fh_nap(void) { __nanosleep(32); }

/* together: all blocks are on the device at once, so that they may wait for each other. */
template <class P> static cudaError_t fh_launch(void (*kernel)(P), unsigned blocks, unsigned threads, size_t shared, cudaStream_t stream, P params,
                                                bool together)
{
    void *arguments[] = {&params};
    const void *function = reinterpret_cast<const void *>(kernel);
    return together ? cudaLaunchCooperativeKernel(function, dim3(blocks), dim3(threads), arguments, shared, stream)
                    : cudaLaunchKernel(function, dim3(blocks), dim3(threads), arguments, shared, stream);
}
#endif
#endif
