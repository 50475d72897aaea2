/* cmd/device.h: what the files of `bench` share. */
#ifndef FH_CMD_DEVICE_H
#define FH_CMD_DEVICE_H

#include "cmd/cmd.h"
#include "validate/validate.h"

/* The head on a GPU, instead of all that is measured here. */
fh_status fh_bench_on_device(fh_json **report, const fh_device *d, const fh_head *head, fh_bench_params *how, const fh_job *job, fh_err *err);

#endif
