/* cmd/device.h: what the files of `bench` share. */
#ifndef FH_CMD_DEVICE_H
#define FH_CMD_DEVICE_H

#include "cmd/cmd.h"
#include "validate/validate.h"

/* Head and whole tokens on the GPU that m uses, instead of all that is measured here.  products: those of the body too, kept beside the artifact. */
fh_status fh_bench_on_device(fh_json **report, const fh_model *m, fh_bench_params *how, bool products, const fh_job *job, fh_err *err);

#endif
