/* validate/bench.h: what the files of bench share.  Not for others: see validate.h. */
#ifndef FH_BENCH_H
#define FH_BENCH_H

#include "validate/validate.h"

/* One setting that is measured: a number of threads, and memory to read so that caches are cold. */
typedef struct fh_bench_env {
    const fh_job *job;
    fh_pool *pool; unsigned threads; /* NULL: one */
    const uint64_t *memory;          /* 2 * words: the first half is swept, blocks are read from the second */
    size_t words, runs;
    double *seconds;                 /* [runs] */
    uint64_t kept;                   /* of what was read, so that it cannot be left out */
} fh_bench_env;

/* One call that is timed, number `run` of them; the first, which is not counted, is number 0. */
typedef fh_status fh_bench_call(void *ctx, size_t run, fh_err *err);

/* Median and spread of env->runs calls, fewer where they take more than a few seconds in all.  Cold: the caches are swept before each. */
fh_status fh_bench_time(fh_timing *out, fh_bench_env *e, const char *what, bool warm, double bytes, fh_bench_call *call, void *ctx, fh_err *err);
/* Of times that were taken already; sorts them. */
fh_timing fh_bench_timing(double *seconds, size_t n, double bytes);
/* Read the first half of the memory: it is larger than the caches, so that what they held is gone. */
void fh_bench_sweep(fh_bench_env *e);
/* What the machine can do: read in order; read some of `n` blocks of `block` bytes here and there; multiply matrices `width` deep. */
fh_status fh_bench_peaks(fh_bench_peak *out, fh_bench_env *e, size_t block, size_t n, size_t width, fh_err *err);
/* Rows of FAISS and OpenBLAS, which hold the head in float32, with the job's threads and with one. */
fh_status fh_bench_rivals(fh_bench_list *out, fh_bench_env *envs, size_t n_envs, const fh_bench_peak *peaks, const fh_head *head, uint32_t probes,
                          const float *states, size_t n_states, fh_err *err);
/* Rows "decode" (batch: the length of the cache below the token) and "prefill" (batch: tokens), with the job's threads and with one. */
fh_status fh_bench_body(fh_bench_list *list, fh_bench_env *envs, size_t n_envs, const fh_bench_peak *peaks, const fh_model *m, fh_dtype kv_type, fh_err *err);
fh_bench_row *fh_bench_add(fh_bench_list *list, const char *what, const fh_bench_env *e, uint32_t batch, bool warm, const fh_timing *t, double roof);

#endif
