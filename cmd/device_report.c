/* bench --device: the report of what a GPU needs for the head. */
#include "cmd/device.h"

#include <math.h>
#include <string.h>

static fh_json *report_of(const fh_bench_list *rows, const fh_device *d, const fh_head_info *info, uint32_t probes)
{
    const fh_bench_row *fused = fh_bench_find(rows, "fused dense bf16", 1, 1, false), *copy = fh_bench_find(rows, "copy", 1, 1, false);
    fh_json *report = fh_json_object(), *list;
    fh_json_add_string(report, "device", fh_device_name(d));
    fh_json_add_u64(report, "device_bytes", fh_device_bytes(d));
    fh_json_add_u64(report, "vocab", info->vocab);
    fh_json_add_u64(report, "hidden", info->hidden);
    fh_json_add_u64(report, "probes", probes);
    list = fh_json_add_array(report, "heads");
    for (size_t i = 0; i < rows->n; i++) {
        const fh_bench_row *r = &rows->row[i];
        fh_json *j = fh_json_add_object(list, NULL);
        fh_json_add_string(j, "what", r->what);
        fh_json_add_u64(j, "batch", r->batch);
        fh_json_add_double(j, "microseconds", 1e6 * r->time.median);
        fh_json_add_double(j, "p10", 1e6 * r->time.low);
        fh_json_add_double(j, "p90", 1e6 * r->time.high);
        fh_json_add_u64(j, "samples", r->time.samples);
        fh_json_add_double(j, "megabytes", r->time.bytes / 1e6);
        fh_json_add_double(j, "gigabytes_per_second", r->time.gigabytes_per_second);
        fh_json_add_double(j, "share_of_copy", copy && r != copy && copy->time.gigabytes_per_second > 0
                           ? r->time.gigabytes_per_second / copy->time.gigabytes_per_second : NAN);
        fh_json_add_double(j, "speedup_over_fused", fused && r->batch == 1 && r->time.median > 0 ? fused->time.median / r->time.median : NAN);
        fh_json_add_double(j, "same_tokens", r->share);
    }
    return report;
}

fh_status fh_bench_on_device(fh_json **report, const fh_device *d, const fh_head *head, fh_bench_params *how, const fh_job *job, fh_err *err)
{
    enum { STATES = 64 };
    const fh_head_info *info = fh_head_get_info(head);
    fh_bench_list rows;
    float *own = how->states ? NULL : fh_malloc(STATES * (size_t)info->hidden * sizeof *own);
    fh_status rc = FH_OK;
    if (!how->states) {
        if (!own) return fh_fail(err, FH_ENOMEM, "bench: out of memory");
        fh_bench_states(own, STATES * (size_t)info->hidden);
        how->states = own, how->n_states = STATES;
    }
    if ((rc = fh_bench_device(d, head, how, job, &rows, err)) == FH_OK) *report = report_of(&rows, d, info, how->probes ? how->probes : info->probes);
    fh_free(own);
    return rc;
}
