#include "base/fault.h"

#ifdef FH_FAULTS
#include <stdatomic.h>

static atomic_long countdown[FH_FAULT_KINDS]; /* calls left until the one that fails; 0 or less: none */
static atomic_bool fired;

void fh_fault_set(int kind, long n)
{
    atomic_store(&fired, false);
    atomic_store(&countdown[kind], n > 0 ? n : 0);
}

bool fh_fault_fired(void) { return atomic_load(&fired); }

bool fh_fault_hit(int kind)
{
    if (atomic_load_explicit(&countdown[kind], memory_order_relaxed) <= 0) return false;
    if (atomic_fetch_sub(&countdown[kind], 1) != 1) return false;
    atomic_store(&fired, true);
    return true;
}
#else
typedef int fh_fault_unused; /* ISO C wants a declaration in every file */
#endif
