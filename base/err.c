#include "base/base.h"

#include <stdio.h>

fh_status fh_fail(fh_err *err, fh_status code, const char *fmt, ...)
{
    if (!err) return code;
    /* Formatted aside first: an argument may be err->text itself, where a caller puts a file name before it. */
    char raw[2 * sizeof err->text];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(raw, sizeof raw, fmt, args);
    va_end(args);
    if (n < 0) n = snprintf(raw, sizeof raw, "%s (its message could not be formatted)", fh_status_name(code));
    err->code = code;
    fh_show(err->text, sizeof err->text, raw, fh_min((size_t)n, sizeof raw - 1));
    return code;
}

const char *fh_status_name(fh_status code)
{
    switch (code) {
    case FH_OK: return "FH_OK";
    case FH_EFAIL: return "FH_EFAIL";
    case FH_ENOMEM: return "FH_ENOMEM";
    case FH_EIO: return "FH_EIO";
    case FH_EFORMAT: return "FH_EFORMAT";
    case FH_EUNSUPPORTED: return "FH_EUNSUPPORTED";
    case FH_ECHECK: return "FH_ECHECK";
    case FH_EUSAGE: return "FH_EUSAGE";
    case FH_EINTERRUPTED: return "FH_EINTERRUPTED";
    case FH_EBUSY: return "FH_EBUSY";
    case FH_ENOTFOUND: return "FH_ENOTFOUND";
    }
    return "unknown status";
}
