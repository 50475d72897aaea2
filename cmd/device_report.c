/* bench --device: the report of what a GPU needs for the head, for whole tokens and for the products of the body. */
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

/* Whole tokens by FlashHead and by the dense head, as the clock on the wall has them. */
static fh_status add_tokens(fh_json *report, const fh_model *m, const fh_bench_params *how, const fh_job *job, fh_err *err)
{
    enum { PROMPT = 8, TOKENS = 129, PASSES = 5 };
    static const char *const names[] = {"flash", "dense"};
    fh_json *list = fh_json_add_array(report, "tokens");
    for (int head = 0; head < 2; head++) {
        fh_token_timing t;
        if (head == FH_HEAD_DENSE && !fh_head_get_info(m->head)->exact) continue;
        fh_status rc = fh_bench_tokens(&t, m, (fh_head_kind)head, how->kv_type, how->probes, PROMPT, TOKENS, PASSES, job, err);
        if (rc < 0) return rc;
        fh_json *j = fh_json_add_object(list, NULL);
        fh_json_add_string(j, "head", names[head]);
        fh_json_add_tokens(j, &t);
    }
    return FH_OK;
}

/* Every product by every kernel, into the report and into the file that later runs read. */
static fh_status add_products(fh_json *report, const fh_model *m, size_t runs, const fh_job *job, fh_err *err)
{
    fh_json *measured = NULL;
    char *path = fh_device_products_path(m->device, m->name), *text = NULL;
    fh_status rc = path ? fh_device_products_measure(m->device, runs, &measured, err) : fh_fail(err, FH_ENOMEM, "bench: out of memory");
    if (rc == FH_OK && !(text = fh_json_print(measured, true))) rc = fh_fail(err, FH_ENOMEM, "bench: out of memory");
    if (rc == FH_OK && (rc = fh_file_write(path, text, strlen(text), 0, err)) == FH_OK) {
        fh_job_say(job, FH_INFO, "the fastest kernel of each product: %s", path);
        fh_json_add_copy(report, "products", fh_json_get(measured, "products"));
    }
    fh_free(text);
    fh_free(path);
    fh_json_free(measured);
    return rc;
}

fh_status fh_bench_on_device(fh_json **report, const fh_model *m, fh_bench_params *how, bool products, const fh_job *job, fh_err *err)
{
    enum { STATES = 64 };
    const fh_device *d = m->device;
    const fh_head *head = m->head;
    const fh_head_info *info = fh_head_get_info(head);
    fh_bench_list rows;
    float *own = how->states ? NULL : fh_malloc(STATES * (size_t)info->hidden * sizeof *own);
    fh_status rc = FH_OK;
    if (!how->states) {
        if (!own) return fh_fail(err, FH_ENOMEM, "bench: out of memory");
        fh_bench_states(own, STATES * (size_t)info->hidden);
        how->states = own, how->n_states = STATES;
    }
    fh_json *r = NULL;
    if ((rc = fh_bench_device(d, head, how, job, &rows, err)) == FH_OK) r = report_of(&rows, d, info, how->probes ? how->probes : info->probes);
    if (rc == FH_OK && products) rc = add_products(r, m, how->runs ? how->runs : 50, job, err); /* before whole tokens, which use what was found */
    if (rc == FH_OK && fh_device_has_body(d)) rc = add_tokens(r, m, how, job, err);
    if (rc == FH_OK) *report = r;
    else fh_json_free(r);
    fh_free(own);
    return rc;
}
