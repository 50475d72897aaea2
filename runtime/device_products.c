/* runtime/device_products.c: which kernel multiplies on a device: measured once, kept beside the artifact, a file a device. */
#include "runtime/device_private.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_PRODUCTS = 512, MOST_BYTES = 1 << 20 };
static const char *const kinds[FH_PRODUCTS] = {"few_seconds", "tile_seconds", "cublas_seconds"};
static const fh_dtype types[] = {FH_F32, FH_BF16, FH_F16, FH_Q8_0};

char *fh_device_products_path(const fh_device *d, const char *model)
{
    char slug[sizeof d->cuda->device_info(d->device)->name];
    const char *name = fh_device_name(d);
    size_t n = 0;
    for (size_t i = 0; name[i] && n + 1 < sizeof slug; i++) {
        bool plain = isalnum((unsigned char)name[i]);
        if (plain) slug[n++] = (char)tolower((unsigned char)name[i]);
        else if (n && slug[n - 1] != '-') slug[n++] = '-';
    }
    while (n && slug[n - 1] == '-') n--;
    slug[n] = 0;
    size_t len = strlen(model);
    while (len > 1 && model[len - 1] == '/') len--;
    return fh_sprintf("%.*s.%s.products.json", (int)fh_min(len, 4096), model, slug);
}

fh_status fh_device_products_measure(const fh_device *d, size_t runs, fh_json **out, fh_err *err)
{
    size_t n = 0;
    fh_status rc;
    if (!fh_device_has_body(d)) return fh_fail(err, FH_EUSAGE, "there is no body on the device whose products could be measured");
    fh_cuda_product_time *times = fh_calloc(MOST_PRODUCTS, sizeof *times);
    if (!times) return fh_fail(err, FH_ENOMEM, "out of memory");
    if ((rc = d->cuda->body_measure(d->layers, runs, times, MOST_PRODUCTS, &n, err)) < 0 || (rc = d->cuda->body_prefer(d->layers, times, n, err)) < 0) goto out;
    fh_json *report = fh_json_object(), *list;
    fh_json_add_string(report, "device", fh_device_name(d));
    fh_json_add_u64(report, "driver", (uint64_t)d->cuda->device_info(d->device)->driver);
    list = fh_json_add_array(report, "products");
    for (size_t i = 0; i < n; i++) {
        fh_json *j = fh_json_add_object(list, NULL);
        fh_json_add_u64(j, "out", times[i].out);
        fh_json_add_u64(j, "in", times[i].in);
        fh_json_add_u64(j, "rows", times[i].rows);
        fh_json_add_string(j, "dtype", fh_dtype_name(times[i].dtype));
        fh_json_add_bool(j, "gated", times[i].gated);
        for (size_t k = 0; k < FH_PRODUCTS; k++)
            if (times[i].seconds[k] > 0) fh_json_add_double(j, kinds[k], times[i].seconds[k]);
    }
    *out = report;
out:
    fh_free(times);
    return rc;
}

static bool read_one(fh_cuda_product_time *t, const fh_json *j)
{
    const char *name = fh_json_string(fh_json_get(j, "dtype"));
    uint64_t out = fh_member_u64(j, "out", 0), in = fh_member_u64(j, "in", 0), rows = fh_member_u64(j, "rows", 0);
    bool known = false;
    for (size_t i = 0; name && i < sizeof types / sizeof *types; i++)
        if (!strcmp(name, fh_dtype_name(types[i]))) t->dtype = types[i], known = true;
    t->out = (uint32_t)out, t->in = (uint32_t)in, t->rows = (uint32_t)rows, t->gated = fh_member_true(j, "gated");
    for (size_t k = 0; k < FH_PRODUCTS; k++) t->seconds[k] = fh_member_double(j, kinds[k], 0);
    return known && out && in && rows && out <= UINT32_MAX && in <= UINT32_MAX && rows <= UINT32_MAX;
}

fh_status fh_device_products_load(const fh_device *d, const char *path, fh_err *err)
{
    fh_json *file = NULL;
    size_t n = 0;
    fh_status rc = fh_json_read(&file, path, MOST_BYTES, err);
    if (rc < 0) return rc;
    fh_cuda_product_time *times = fh_calloc(MOST_PRODUCTS, sizeof *times);
    if (!times) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    if (!fh_member_is(file, "device", fh_device_name(d))) { rc = fh_fail(err, FH_ECHECK, "%s: is not of this device (%s)", path, fh_device_name(d)); goto out; }
    for (const fh_json *j = fh_json_first(fh_json_get(file, "products")); j; j = fh_json_next(j)) {
        if (n == MOST_PRODUCTS || !read_one(&times[n], j)) {
            rc = fh_fail(err, FH_EFORMAT, "%s: product %zu is not one (of %d at most): measure again with 'bench --device cuda --products'", path, n,
                         MOST_PRODUCTS);
            goto out;
        }
        n++;
    }
    rc = d->cuda->body_prefer(d->layers, times, n, err);
out:
    fh_free(times);
    fh_json_free(file);
    return rc;
}
