/* base/fault.h: failures on demand, so that tests see every path that real machines take once a year.
 *
 * Only a build with -DFH_FAULTS counts; in any other build nothing ever fails here and nothing is called.
 */
#ifndef FH_FAULT_H
#define FH_FAULT_H

#include <stdbool.h>

enum {
    FH_FAULT_ALLOC, /* fh_malloc and its kin return NULL */
    FH_FAULT_WRITE, /* a step of an output fails: creating, writing (disk full), syncing, renaming */
    FH_FAULT_KINDS
};

#ifdef FH_FAULTS
/* The n-th call of this kind from now, counted from 1 over all threads, fails once; n <= 0: none. */
void fh_fault_set(int kind, long n);
/* Has a fault struck since it was set last? */
bool fh_fault_fired(void);
/* Asked at the place that may fail: is it this call? */
bool fh_fault_hit(int kind);
#else
static inline bool fh_fault_hit(int kind) { (void)kind; return false; }
#endif

#endif
