/* format/st_writer.c: writing safetensors files, the same bytes for the same content. */
#include "format/format.h"

#include <inttypes.h>
#include <string.h>

enum { DATA_ALIGNMENT = 64 }; /* of the data area in the file: a cache line, and more than any dtype asks for */

struct fh_st_writer {
    fh_out *out;
    char *path;
    uint64_t expected, written; /* bytes of data */
};

static bool tensor_bytes(const fh_st_spec *s, size_t *bytes)
{
    size_t bits = fh_dtype_bits(s->dtype);
    for (unsigned i = 0; i < s->rank; i++)
        if (!fh_mul(bits, (size_t)s->shape[i], &bits)) return false;
    *bytes = bits / 8;
    return bits % 8 == 0;
}

static void add_tensor(fh_json *root, const fh_st_spec *s, uint64_t begin, uint64_t end)
{
    fh_json *entry = fh_json_add_object(root, s->name);
    fh_json_add_string(entry, "dtype", fh_dtype_st_name(s->dtype));
    fh_json *shape = fh_json_add_array(entry, "shape");
    for (unsigned i = 0; i < s->rank; i++) fh_json_add_u64(shape, NULL, s->shape[i]);
    fh_json *offsets = fh_json_add_array(entry, "data_offsets");
    fh_json_add_u64(offsets, NULL, begin);
    fh_json_add_u64(offsets, NULL, end);
}

char *fh_st_header(const fh_st_spec *specs, size_t n, const fh_json *metadata, size_t *bytes)
{
    uint64_t at = 0;
    char *header = NULL;
    fh_json *root = fh_json_object();
    if (metadata) fh_json_add_copy(root, "__metadata__", metadata);
    for (size_t i = 0; i < n; i++) {
        size_t size = 0;
        tensor_bytes(&specs[i], &size);
        add_tensor(root, &specs[i], at, at + size);
        at += size;
    }
    char *text = fh_json_print(root, false);
    if (!text) goto out;
    size_t len = strlen(text), total = fh_round_up(8 + len, DATA_ALIGNMENT);
    header = fh_malloc(total);
    if (!header) goto out;
    for (unsigned i = 0; i < 8; i++) header[i] = (char)((total - 8) >> 8 * i & 0xFF);
    memcpy(header + 8, text, len);
    memset(header + 8 + len, ' ', total - 8 - len);
    *bytes = total;
out:
    fh_free(text);
    fh_json_free(root);
    return header;
}

fh_status fh_st_open(fh_st_writer **out, const char *path, unsigned flags, const fh_st_spec *specs, size_t n, const fh_json *metadata,
                     fh_err *err)
{
    fh_status rc;
    size_t bytes = 0, size = 0, total = 0;
    char *header = NULL;
    *out = NULL;
    for (size_t i = 0; i < n; i++)
        if (!tensor_bytes(&specs[i], &size) || !fh_add(total, size, &total) || total >> 53)
            return fh_fail(err, FH_EFAIL, "%s: tensor '%s' is too large for the format", path, specs[i].name);
    fh_st_writer *w = fh_calloc(1, sizeof *w);
    if (!w || !(w->path = fh_strdup(path)) || !(header = fh_st_header(specs, n, metadata, &bytes))) {
        rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", path);
        goto out;
    }
    w->expected = total;
    if ((rc = fh_out_open(&w->out, path, flags, err)) < 0) goto out;
    if ((rc = fh_out_write(w->out, header, bytes, err)) < 0) goto out;
    *out = w;
    w = NULL;
out:
    fh_free(header);
    fh_st_abandon(w);
    return rc;
}

fh_status fh_st_write(fh_st_writer *w, const void *data, size_t bytes, fh_err *err)
{
    if (bytes > w->expected - w->written)
        return fh_fail(err, FH_EFAIL, "%s: more tensor data than the %" PRIu64 " bytes declared", w->path, w->expected);
    fh_status rc = fh_out_write(w->out, data, bytes, err);
    if (rc >= 0) w->written += bytes;
    return rc;
}

fh_status fh_st_commit(fh_st_writer *w, fh_err *err)
{
    fh_status rc;
    if (w->written != w->expected) {
        rc = fh_fail(err, FH_EFAIL, "%s: %" PRIu64 " bytes of tensor data declared, %" PRIu64 " written", w->path, w->expected, w->written);
    } else {
        rc = fh_out_commit(w->out, err);
        w->out = NULL;
    }
    fh_st_abandon(w);
    return rc;
}

void fh_st_abandon(fh_st_writer *w)
{
    if (!w) return;
    fh_out_abandon(w->out);
    fh_free(w->path);
    fh_free(w);
}

fh_status fh_st_save(const char *path, unsigned flags, const fh_st_spec *specs, const void *const *data, size_t n,
                     const fh_json *metadata, fh_err *err)
{
    fh_st_writer *w = NULL;
    fh_status rc = fh_st_open(&w, path, flags, specs, n, metadata, err);
    for (size_t i = 0; i < n && rc >= 0; i++) {
        size_t bytes = 0;
        tensor_bytes(&specs[i], &bytes);
        rc = fh_st_write(w, data[i], bytes, err);
    }
    if (rc >= 0) return fh_st_commit(w, err);
    fh_st_abandon(w);
    return rc;
}
