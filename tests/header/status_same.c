/* The block under FH_STATUS_TYPES stands in flashhead.h and in base.h.  Here the public one comes first and the guard is then
 * taken away, so that the private one declares the same names again: each is renamed, and the two are compared. */
#include "runtime/flashhead.h"

enum {
    OK_ = FH_OK, EFAIL_ = FH_EFAIL, ENOMEM_ = FH_ENOMEM, EIO_ = FH_EIO, EFORMAT_ = FH_EFORMAT, EUNSUPPORTED_ = FH_EUNSUPPORTED,
    ECHECK_ = FH_ECHECK, EUSAGE_ = FH_EUSAGE, EINTERRUPTED_ = FH_EINTERRUPTED, EBUSY_ = FH_EBUSY, ENOTFOUND_ = FH_ENOTFOUND
};
typedef fh_err public_err;
typedef fh_status public_status;

#undef FH_STATUS_TYPES
#define fh_status private_status
#define fh_err private_err
#define FH_OK P_OK
#define FH_EFAIL P_EFAIL
#define FH_ENOMEM P_ENOMEM
#define FH_EIO P_EIO
#define FH_EFORMAT P_EFORMAT
#define FH_EUNSUPPORTED P_EUNSUPPORTED
#define FH_ECHECK P_ECHECK
#define FH_EUSAGE P_EUSAGE
#define FH_EINTERRUPTED P_EINTERRUPTED
#define FH_EBUSY P_EBUSY
#define FH_ENOTFOUND P_ENOTFOUND
#include "base/base.h"

#define SAME(name) _Static_assert((int)name##_ == (int)P_##name, #name " differs between flashhead.h and base.h")
SAME(OK);
SAME(EFAIL);
SAME(ENOMEM);
SAME(EIO);
SAME(EFORMAT);
SAME(EUNSUPPORTED);
SAME(ECHECK);
SAME(EUSAGE);
SAME(EINTERRUPTED);
SAME(EBUSY);
SAME(ENOTFOUND);
_Static_assert(sizeof(public_err) == sizeof(private_err), "fh_err");
_Static_assert(offsetof(public_err, text) == offsetof(private_err, text), "fh_err");
_Static_assert(sizeof((public_err){0}.text) == sizeof((private_err){0}.text), "fh_err");
_Static_assert(sizeof(public_status) == sizeof(private_status), "fh_status");
