/* tests/emu/emu.h: CUDA C++ on the host, as much of it as runtime/cuda uses, so that its very sources run where there is no GPU and under
 * address sanitizer.
 *
 * Every thread of a block is a fiber with a stack of its own; they take turns on one thread of the host, in an order that changes from turn to turn, so
 * that a missing barrier shows as a wrong result sooner or later.  Barriers, warp collectives and the waiting of blocks for each other are where
 * fibers are changed.  What the hardware leaves undefined ends the program with a message: a warp whose lanes do not all come to the same collective, a
 * barrier that some threads never reach, blocks that wait for ever.  Device memory is memory of the host, each allocation by itself, as is each
 * block's shared memory: a step past an end is seen by address sanitizer.
 */
#ifndef FH_EMU_H
#define FH_EMU_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "tests/emu/emu_control.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct emu_index { unsigned x, y, z; };
struct int4 { int x, y, z, w; };
struct uint2 { unsigned x, y; };
struct uint4 { unsigned x, y, z, w; };
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }

/* ---- where a thread is ------------------------------------------------------------------------------------------- */

extern emu_index emu_thread, emu_block, emu_threads, emu_blocks; /* of the fiber that runs */
#define threadIdx emu_thread
#define blockIdx emu_block
#define blockDim emu_threads
#define gridDim emu_blocks

unsigned char *fh_shared(void);
void fh_nap(void);
void __syncthreads(void);

/* Give `value` and get lane `from`'s, once all lanes of the warp have come to the same place. */
enum emu_collective { EMU_SHUFFLE = 1, EMU_BALLOT, EMU_SYNC };
uint64_t emu_exchange(emu_collective what, unsigned mask, uint64_t value, unsigned from);
inline void __syncwarp(unsigned mask = 0xffffffffu) { emu_exchange(EMU_SYNC, mask, 0, 0); }
unsigned __ballot_sync(unsigned mask, int predicate);

template <class T> T emu_shuffle(unsigned mask, T value, unsigned from)
{
    uint64_t bits = 0;
    static_assert(sizeof value <= sizeof bits, "a shuffle moves 8 bytes at most");
    memcpy(&bits, &value, sizeof value);
    bits = emu_exchange(EMU_SHUFFLE, mask, bits, from);
    memcpy(&value, &bits, sizeof value);
    return value;
}
template <class T> T __shfl_sync(unsigned mask, T value, unsigned from) { return emu_shuffle(mask, value, from % 32); }
template <class T> T __shfl_xor_sync(unsigned mask, T value, int bits) { return emu_shuffle(mask, value, (emu_thread.x % 32) ^ static_cast<unsigned>(bits)); }
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned by) { unsigned lane = emu_thread.x % 32; return emu_shuffle(mask, value, lane >= by
    ? lane - by : lane); }

/* ---- arithmetic and memory ----------------------------------------------------------------------------------------- */

inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline float __uint_as_float(unsigned u) { float f; memcpy(&f, &u, sizeof f); return f; }
inline unsigned __float_as_uint(float f) { unsigned u; memcpy(&u, &f, sizeof u); return u; }
inline int __double2int_rn(double x) { return static_cast<int>(nearbyint(x)); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __dp4a(int a, int b, int c)
{
    for (int i = 0; i < 4; i++) c += static_cast<int8_t>(a >> 8 * i) * static_cast<int8_t>(b >> 8 * i);
    return c;
}
template <class T> T __ldg(const T *p)
{
    emu_aligned(p, sizeof *p);
    return *p;
}
inline void __threadfence(void) {}
template <class T> T atomicAdd(T *p, T v) { T old = *p; *p = old + v; return old; }
template <class T> T atomicOr(T *p, T v) { T old = *p; *p = old | v; return old; }
template <class T> T atomicMin(T *p, T v) { T old = *p; if (v < old) *p = v; return old; }
template <class T> T atomicMax(T *p, T v) { T old = *p; if (v > old) *p = v; return old; }

/* ---- launches ---------------------------------------------------------------------------------------------------------- */

typedef int cudaError_t;
typedef struct emu_stream *cudaStream_t;
/* Run `call(params)` once for every thread.  together: all blocks take turns; else one block after another. */
cudaError_t emu_launch(void (*call)(const void *params), const void *params, size_t bytes, unsigned blocks, unsigned threads, size_t shared,
                       cudaStream_t stream,
                       bool together);
template <class P> struct emu_call { void (*kernel)(P); P params; };
template <class P> cudaError_t fh_launch(void (*kernel)(P), unsigned blocks, unsigned threads, size_t shared, cudaStream_t stream, P params, bool together)
{
    emu_call<P> call = {kernel, params};
    return emu_launch([](const void *p) { const emu_call<P> *c = static_cast<const emu_call<P> *>(p); c->kernel(c->params); }, &call, sizeof call, blocks,
                      threads,
                      shared, stream, together);
}

/* ---- the runtime API ------------------------------------------------------------------------------------------------------ */

enum { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2, cudaErrorInsufficientDriver = 35, cudaErrorNoDevice = 100,
       cudaErrorInvalidDeviceFunction = 98, cudaErrorInvalidDevice = 101, cudaErrorNoKernelImageForDevice = 209, cudaErrorInvalidPtx = 218,
       cudaErrorUnsupportedPtxVersion = 222, cudaErrorSystemNotReady = 802, cudaErrorUnknown = 999 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };
typedef struct emu_event *cudaEvent_t;
typedef struct emu_graph *cudaGraph_t, *cudaGraphExec_t;
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal = 1 };
enum cudaDeviceAttr { cudaDevAttrL2CacheSize = 38, cudaDevAttrMaxSharedMemoryPerBlockOptin = 97, cudaDevAttrCooperativeLaunch = 95 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum { cudaStreamNonBlocking = 1 };
struct cudaDeviceProp { char name[256]; size_t totalGlobalMem; int major, minor, multiProcessorCount; };
struct cudaFuncAttributes { int binaryVersion; };

const char *cudaGetErrorString(cudaError_t e);
const char *cudaGetErrorName(cudaError_t e);
cudaError_t cudaGetLastError(void);
cudaError_t cudaGetDeviceCount(int *n);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device);
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr what, int device);
cudaError_t cudaDriverGetVersion(int *v);
cudaError_t cudaRuntimeGetVersion(int *v);
cudaError_t cudaMemGetInfo(size_t *free, size_t *total);
cudaError_t cudaMalloc(void **p, size_t bytes);
cudaError_t cudaFree(void *p);
cudaError_t cudaMallocHost(void **p, size_t bytes);
cudaError_t cudaFreeHost(void *p);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t s);
cudaError_t cudaStreamSynchronize(cudaStream_t s);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t s);
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height, cudaMemcpyKind kind, cudaStream_t s);
cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t s);
cudaError_t cudaEventCreate(cudaEvent_t *e);
cudaError_t cudaEventDestroy(cudaEvent_t e);
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s);
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t begin, cudaEvent_t end);
cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s);
cudaError_t cudaGraphDestroy(cudaGraph_t g);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e);
cudaError_t emu_function_attributes(cudaFuncAttributes *a);
cudaError_t emu_set_function_attribute(cudaFuncAttribute what, int value);
cudaError_t emu_occupancy(int *blocks, int threads, size_t shared);
template <class F> cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *a, F) { return emu_function_attributes(a); }
template <class F> cudaError_t cudaFuncSetAttribute(F, cudaFuncAttribute what, int value) { return emu_set_function_attribute(what, value); }
template <class F> cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, F, int threads,
                                                                             size_t shared) { return emu_occupancy(blocks, threads, shared); }

#endif
