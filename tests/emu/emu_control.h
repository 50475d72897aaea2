/* tests/emu/emu_control.h: what a test tells the emulated device. */
#ifndef FH_EMU_CONTROL_H
#define FH_EMU_CONTROL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct emu_device {
    int count, count_error;       /* devices; what asking for them answers (a cudaError_t) */
    int major, minor, image_error; /* compute capability; what loading a kernel answers */
    int multiprocessors, blocks_each;
    bool together, blas;          /* cooperative launches; something in the place of cuBLAS */
    size_t memory, shared;        /* of the device; shared memory that a block may have */
    uint64_t seed;                /* of the order of fibers */
} emu_device;
extern emu_device emu;

long emu_calls(void);             /* calls of the runtime API since the last emu_fail_at */
void emu_fail_at(long n);         /* the n-th from now on fails (1: the next); 0: none */
size_t emu_allocated(void);       /* bytes of device and pinned memory that are not freed */
uint64_t emu_launches(void);
uint64_t emu_brought(void);       /* bytes that were copied to the host */
void emu_aligned(const void *p, size_t bytes); /* ends the program where p is not a multiple of `bytes` */

#ifdef __cplusplus
}
#endif
#endif
