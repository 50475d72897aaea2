/* format/safetensors.c: reading safetensors files.
 *
 *     offset 0    u64, little-endian: N, the bytes of the header
 *     offset 8    the header: a JSON object, {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...}
 *     offset 8+N  the data, to the end of the file; the tensors tile it: no holes, no overlaps
 *
 * Nothing is allocated in proportion to a number of the file before that number is checked against the file's size.
 */
#include "format/gguf.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_HEADER 100000000u /* the limit of the reference reader */
enum {
    MAX_TENSORS = 1 << 18, /* in one file; the largest published models have half as many in hundreds of files */
    SHOWN = 160            /* room for a name in a message: the remedy must still fit behind it */
};

static const char *show(char out[SHOWN], const char *name)
{
    return fh_show(out, SHOWN, name, strlen(name));
}

/* ---- what a file is when it is no safetensors file --------------------------------------------------------- */

static const struct { const char *magic; size_t bytes; const char *text; } kinds[] = {
#define KIND(magic, text) {magic, sizeof magic - 1, "; it looks like " text}
    KIND("version https://git-lfs", "a git-lfs pointer, not the file: run `git lfs pull`"),
    KIND("PK\x03\x04", "a PyTorch pickle (zip), which is never read because it can run code: convert it to safetensors"),
    KIND("\x80\x02", "a Python pickle, which is never read because it can run code: convert it to safetensors"),
    KIND("\x80\x03", "a Python pickle, which is never read because it can run code: convert it to safetensors"),
    KIND("\x80\x04", "a Python pickle, which is never read because it can run code: convert it to safetensors"),
    KIND("\x80\x05", "a Python pickle, which is never read because it can run code: convert it to safetensors"),
    KIND("GGUF", "a GGUF file: give it in place of the directory"),
    KIND("tjgg", "a file from before GGUF (ggml): convert the model again"),
    KIND("lmgg", "a file from before GGUF (ggml): convert the model again"),
    KIND("\x1F\x8B", "gzip: unpack it first"),
    KIND("\x28\xB5\x2F\xFD", "zstd: unpack it first"),
    KIND("\x89HDF", "HDF5 (Keras): convert it to safetensors"),
    KIND("\x93NUMPY", "a NumPy array: convert it to safetensors"),
    KIND("\x89" "FHEAD\r\n", "a .fhead artifact: give it where one is asked for"),
    KIND("{", "JSON: is this the index, or another file under this name?"),
#undef KIND
};

const char *fh_looks_like(const uint8_t *data, size_t size)
{
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (size >= kinds[i].bytes && memcmp(data, kinds[i].magic, kinds[i].bytes) == 0) return kinds[i].text;
    size_t i = 0, zeros = 0;
    while (i < size && i < 64 && (data[i] == ' ' || data[i] == '\n' || data[i] == '\r' || data[i] == '\t')) i++;
    if (i < size && data[i] == '<') return "; it looks like an HTML page, perhaps an error page in place of the file: fetch it again";
    while (zeros < size && zeros < 64 && data[zeros] == 0) zeros++;
    return zeros == size || zeros == 64 ? "; it begins with zeros: is the download complete?" : "";
}

/* The length of the JSON header, with all that can be said of it before it is parsed. */
static fh_status header_length(size_t *out, const uint8_t *data, size_t size, const char *name, fh_err *err)
{
    uint64_t n = 0;
    char what[120];
    if (size == 0) return fh_fail(err, FH_EFORMAT, "%s: the file is empty: is the download complete?", name);
    for (unsigned i = 0; i < 8 && i < size; i++) n |= (uint64_t)data[i] << 8 * i;
    unsigned long long bytes = n;
    if (size < 8) {
        snprintf(what, sizeof what, "%zu bytes, its length field alone takes 8", size);
    } else if (n > MAX_HEADER) {
        snprintf(what, sizeof what, "a header of %llu bytes, the limit is %u", bytes, MAX_HEADER);
    } else if (n > size - 8) {
        snprintf(what, sizeof what, "a header of %llu bytes needs %llu, the file has %zu: is it complete?", bytes, bytes + 8, size);
    } else if (n < 2) {
        snprintf(what, sizeof what, "a header of %llu bytes, the shortest is {}", bytes);
    } else if (data[8] != '{') {
        snprintf(what, sizeof what, "its header (at byte 8) begins with byte 0x%02X, not with '{'", data[8]);
    } else {
        *out = (size_t)n;
        return FH_OK;
    }
    return fh_fail(err, FH_EFORMAT, "%s: not a safetensors file: %s%s", name, what, fh_looks_like(data, size));
}

/* ---- one tensor of the header ------------------------------------------------------------------------------ */

typedef struct range { uint64_t begin, end; const char *name; } range;

/* FH_EFORMAT, of one tensor. */
static fh_status FH_PRINTF(3, 4) bad(const fh_tensor *t, fh_err *err, const char *fmt, ...)
{
    char shown[SHOWN], what[400];
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    return fh_fail(err, FH_EFORMAT, "%s: tensor '%s': %s", t->file, show(shown, t->name), what);
}

/* FH_DTYPES when we do not know it. */
static fh_dtype dtype_of(const char *st_name)
{
    for (unsigned i = 0; i < FH_DTYPES; i++)
        if (strcmp(st_name, fh_dtype_st_name((fh_dtype)i)) == 0) return (fh_dtype)i;
    return FH_DTYPES;
}

static fh_status read_shape(fh_tensor *t, const fh_json *shape, fh_err *err)
{
    if (fh_json_type(shape) != FH_JSON_ARRAY) return bad(t, err, "'shape' is missing, or no list");
    for (const fh_json *d = fh_json_first(shape); d; d = fh_json_next(d)) {
        if (t->rank == FH_MAX_RANK) return bad(t, err, "%zu dimensions, at most %d are read", fh_json_count(shape), FH_MAX_RANK);
        if (!fh_json_u64(d, &t->shape[t->rank]))
            return bad(t, err, "dimension %u of 'shape' is no whole number from 0 to 2^53 - 1", t->rank);
        t->rank++;
    }
    return FH_OK;
}

static fh_status read_offsets(range *out, const fh_tensor *t, const fh_json *offsets, fh_err *err)
{
    const fh_json *begin = fh_json_first(offsets), *end = fh_json_next(begin);
    bool two = fh_json_type(offsets) == FH_JSON_ARRAY && end && !fh_json_next(end);
    if (!two || !fh_json_u64(begin, &out->begin) || !fh_json_u64(end, &out->end))
        return bad(t, err, "'data_offsets' must be two whole numbers from 0 to 2^53 - 1");
    if (out->end < out->begin) return bad(t, err, "data_offsets [%" PRIu64 ", %" PRIu64 "] end before they begin", out->begin, out->end);
    out->name = t->name;
    return FH_OK;
}

/* Does what the shape says equal what the offsets say? */
static fh_status check_size(const fh_tensor *t, fh_err *err)
{
    size_t bits = t->dtype == FH_DTYPES ? 1 : fh_dtype_bits(t->dtype);
    for (unsigned i = 0; i < t->rank; i++)
        if (!fh_mul(bits, (size_t)t->shape[i], &bits)) return bad(t, err, "its shape makes more bytes than 64 bits can count");
    if (t->dtype == FH_DTYPES) return FH_OK; /* of unknown size, and never used */
    if (bits % 8) return bad(t, err, "its %zu bits are no whole bytes", bits);
    if (bits / 8 == t->bytes) return FH_OK;
    return bad(t, err, "its shape and dtype %s make %zu bytes, its data_offsets %" PRIu64, t->dtype_name, bits / 8, t->bytes);
}

/* `data` begins at byte `data_at` of a file of `size` bytes. */
static fh_status read_tensor(fh_tensor *t, range *where, fh_arena *arena, const fh_json *entry, const uint8_t *data, uint64_t data_at,
                             uint64_t size, fh_err *err)
{
    fh_status rc;
    const char *key = fh_json_key(entry), *dtype = fh_json_string(fh_json_get(entry, "dtype"));
    t->name = fh_arena_strndup(arena, key, strlen(key));
    if (!t->name) return fh_fail(err, FH_ENOMEM, "%s: out of memory", t->file);
    if (fh_json_type(entry) != FH_JSON_OBJECT) return bad(t, err, "its entry in the header is no object");
    if (!dtype) return bad(t, err, "'dtype' is missing, or no string");
    t->dtype = dtype_of(dtype);
    t->dtype_name = t->dtype != FH_DTYPES ? fh_dtype_st_name(t->dtype) : fh_arena_strndup(arena, dtype, strlen(dtype));
    if (!t->dtype_name) return fh_fail(err, FH_ENOMEM, "%s: out of memory", t->file);
    if ((rc = read_shape(t, fh_json_get(entry, "shape"), err)) < 0) return rc;
    if ((rc = read_offsets(where, t, fh_json_get(entry, "data_offsets"), err)) < 0) return rc;
    t->bytes = where->end - where->begin;
    if ((rc = check_size(t, err)) < 0) return rc;
    if (where->end > size - data_at)
        return bad(t, err, "data_offsets [%" PRIu64 ", %" PRIu64 "] run past the end of the file (%" PRIu64 " bytes, %" PRIu64
                   " needed): is the download complete?", where->begin, where->end, size, data_at + where->end);
    t->data = data + where->begin;
    return FH_OK;
}

/* ---- the header as a whole --------------------------------------------------------------------------------- */

static int by_begin(const void *left, const void *right)
{
    const range *a = left, *b = right;
    if (a->begin != b->begin) return a->begin < b->begin ? -1 : 1;
    return (a->end > b->end) - (a->end < b->end);
}

static fh_status check_tiling(range *ranges, size_t n, uint64_t data_at, uint64_t size, const char *file, fh_err *err)
{
    char shown[SHOWN], shown2[SHOWN];
    uint64_t end = 0;
    if (n) qsort(ranges, n, sizeof *ranges, by_begin);
    for (size_t i = 0; i < n; end = ranges[i++].end) {
        const range *r = &ranges[i];
        if (r->begin == end) continue;
        if (r->begin > end)
            return fh_fail(err, FH_EFORMAT, "%s: tensor '%s' begins at %" PRIu64 " of the data, but the one before it ends at %" PRIu64
                           ": a hole that no tensor fills", file, show(shown, r->name), r->begin, end);
        return fh_fail(err, FH_EFORMAT, "%s: tensors '%s' and '%s' overlap: the first ends at %" PRIu64 " of the data, the other begins at "
                       "%" PRIu64, file, show(shown, r[-1].name), show(shown2, r->name), end, r->begin);
    }
    if (data_at + end == size) return FH_OK;
    return fh_fail(err, FH_EFORMAT, "%s: the tensors end at byte %" PRIu64 " and the file at %" PRIu64 ": %" PRIu64 " bytes too many",
                   file, data_at + end, size, size - data_at - end);
}

static fh_status read_metadata(fh_tensors *t, const fh_json *metadata, const char *file, fh_err *err)
{
    if (fh_json_type(metadata) == FH_JSON_NULL) return FH_OK;
    if (fh_json_type(metadata) != FH_JSON_OBJECT) return fh_fail(err, FH_EFORMAT, "%s: '__metadata__' is no object of strings", file);
    size_t n = fh_json_count(metadata), i = 0;
    const char **pairs = fh_arena_alloc(t->arena, (n ? n : 1) * 2 * sizeof *pairs);
    if (!pairs) return fh_fail(err, FH_ENOMEM, "%s: out of memory", file);
    for (const fh_json *c = fh_json_first(metadata); c; c = fh_json_next(c), i++) {
        char shown[SHOWN];
        const char *key = fh_json_key(c), *value = fh_json_string(c);
        if (!value) return fh_fail(err, FH_EFORMAT, "%s: '__metadata__': the value of '%s' is no string", file, show(shown, key));
        pairs[2 * i] = fh_arena_strndup(t->arena, key, strlen(key));
        pairs[2 * i + 1] = fh_arena_strndup(t->arena, value, strlen(value));
        if (!pairs[2 * i] || !pairs[2 * i + 1]) return fh_fail(err, FH_ENOMEM, "%s: out of memory", file);
    }
    t->metadata = pairs;
    t->n_metadata = n;
    return FH_OK;
}

/* Told by the opening brackets, before the header becomes a tree forty times its size. */
static bool has_too_many(const uint8_t *header, size_t len)
{
    size_t n = 0;
    for (const uint8_t *p = header; n <= MAX_TENSORS + 2 && (p = memchr(p, '{', (size_t)(header + len - p))); p++) n++;
    return n > MAX_TENSORS + 2; /* the header itself and its __metadata__ */
}

fh_status fh_tensors_add(fh_tensors *t, const uint8_t *data, size_t size, const char *name, fh_err *err)
{
    fh_status rc;
    size_t header = 0, n = 0, total;
    fh_json *json = NULL;
    range *ranges = NULL;
    if ((rc = header_length(&header, data, size, name, err)) < 0) return rc;
    if (has_too_many(data + 8, header)) return fh_fail(err, FH_EFORMAT, "%s: more than %d tensors in one file", name, MAX_TENSORS);
    char *place = fh_sprintf("%s: header", name);
    if (!place) return fh_fail(err, FH_ENOMEM, "%s: out of memory", name);
    if ((rc = fh_json_parse(&json, (const char *)data + 8, header, place, err)) < 0) goto out;
    size_t entries = fh_json_count(json);
    ranges = fh_malloc(entries * sizeof *ranges);
    fh_tensor *list = fh_add(t->n, entries, &total) && fh_mul(total, sizeof *list, &total) ? fh_realloc(t->list, total) : NULL;
    if (list) t->list = list;
    if (!ranges || !list) {
        rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", name);
        goto out;
    }
    for (const fh_json *c = fh_json_first(json); c; c = fh_json_next(c)) {
        if (strcmp(fh_json_key(c), "__metadata__") == 0) {
            if ((rc = read_metadata(t, c, name, err)) < 0) goto out;
            continue;
        }
        fh_tensor *tensor = &list[t->n + n];
        *tensor = (fh_tensor){.file = name};
        if ((rc = read_tensor(tensor, &ranges[n], t->arena, c, data + 8 + header, 8 + header, size, err)) < 0) goto out;
        n++;
    }
    if ((rc = check_tiling(ranges, n, 8 + header, size, name, err)) < 0) goto out;
    t->n += n;
out:
    fh_free(ranges);
    fh_json_free(json);
    fh_free(place);
    return rc;
}

/* ---- the set ------------------------------------------------------------------------------------------------ */

static int by_name(const void *left, const void *right)
{
    const fh_tensor *a = left, *b = right;
    int order = strcmp(a->name, b->name);
    return order ? order : strcmp(a->file, b->file);
}

void fh_tensors_sort(fh_tensors *t)
{
    if (t->n) qsort(t->list, t->n, sizeof *t->list, by_name);
}

fh_tensors *fh_tensors_new(const char *path)
{
    fh_tensors *t = fh_calloc(1, sizeof *t);
    if (!t) return NULL;
    t->path = fh_strdup(path);
    t->arena = fh_arena_new();
    if (t->path && t->arena) return t;
    fh_tensors_close(t);
    return NULL;
}

void fh_tensors_close(fh_tensors *t)
{
    if (!t) return;
    for (size_t i = 0; i < t->n_maps; i++) fh_map_close(&t->maps[i]);
    fh_free(t->maps);
    fh_free(t->list);
    fh_free(t->plans);
    fh_arena_free(t->arena);
    fh_gguf_close(t->gguf);
    fh_free(t->path);
    fh_free(t);
}

static fh_status load(fh_tensors *t, const fh_tensor *one, bool blocks, const fh_job *job, fh_err *err)
{
    fh_status rc = FH_OK;
    if (!t->gguf) return FH_OK;
    if (one) return fh_gguf_load(t, (size_t)(one - t->list), blocks, job, err);
    fh_gguf_tell_memory(t, blocks, job);
    for (size_t i = 0; i < t->n && rc >= 0; i++) rc = fh_gguf_load(t, i, blocks, job, err);
    return rc;
}

fh_status fh_tensors_load(fh_tensors *t, const fh_tensor *one, const fh_job *job, fh_err *err)
{
    return load(t, one, false, job, err);
}

fh_status fh_tensors_load_blocks(fh_tensors *t, const fh_tensor *one, const fh_job *job, fh_err *err)
{
    return load(t, one, true, job, err);
}

fh_status fh_tensors_open_memory(fh_tensors **out, const void *data, size_t size, const char *name, fh_err *err)
{
    *out = NULL;
    fh_tensors *t = fh_tensors_new(name);
    if (!t) return fh_fail(err, FH_ENOMEM, "%s: out of memory", name);
    fh_status rc = fh_tensors_add(t, data, size, t->path, err);
    if (rc < 0) {
        fh_tensors_close(t);
        return rc;
    }
    fh_tensors_sort(t);
    *out = t;
    return FH_OK;
}

fh_status fh_tensors_open(fh_tensors **out, const char *path, fh_err *err)
{
    fh_map map = {0};
    *out = NULL;
    fh_status rc = fh_map_open(&map, path, err);
    if (rc < 0) return rc;
    fh_map *maps = fh_malloc(sizeof *maps);
    rc = maps ? fh_tensors_open_memory(out, map.data, map.size, path, err) : fh_fail(err, FH_ENOMEM, "%s: out of memory", path);
    if (rc < 0) {
        fh_free(maps);
        fh_map_close(&map);
        return rc;
    }
    *maps = map;
    (*out)->maps = maps;
    (*out)->n_maps = 1;
    return FH_OK;
}

size_t fh_tensors_count(const fh_tensors *t)
{
    return t->n;
}

const fh_tensor *fh_tensors_at(const fh_tensors *t, size_t i)
{
    return &t->list[i];
}

const fh_tensor *fh_tensors_find(const fh_tensors *t, const char *name)
{
    size_t low = 0, high = t->n;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(t->list[middle].name, name);
        if (order == 0) return &t->list[middle];
        if (order < 0) low = middle + 1;
        else high = middle;
    }
    return NULL;
}

const char *fh_tensors_metadata(const fh_tensors *t, const char *key)
{
    for (size_t i = 0; i < t->n_metadata; i++)
        if (strcmp(t->metadata[2 * i], key) == 0) return t->metadata[2 * i + 1];
    return NULL;
}

/* ---- asking for a tensor ------------------------------------------------------------------------------------- */

static void put_shape(fh_buf *b, const uint64_t *shape, unsigned rank)
{
    fh_buf_puts(b, "[");
    for (unsigned i = 0; i < rank; i++) {
        fh_buf_puts(b, i ? ", " : "");
        if (shape[i] == UINT64_MAX) fh_buf_puts(b, "any");
        else fh_buf_printf(b, "%llu", (unsigned long long)shape[i]);
    }
    fh_buf_puts(b, "]");
}

static fh_status wrong_shape(const fh_tensor *t, unsigned rank, const uint64_t *shape, fh_err *err)
{
    fh_buf b = {0};
    put_shape(&b, t->shape, t->rank);
    fh_buf_puts(&b, ", expected ");
    put_shape(&b, shape, rank);
    char *both = fh_buf_take(&b);
    fh_status rc = both ? bad(t, err, "its shape is %s", both) : fh_fail(err, FH_ENOMEM, "%s: out of memory", t->file);
    fh_free(both);
    return rc;
}

static fh_status wrong_dtype(const fh_tensor *t, unsigned dtypes, fh_err *err)
{
    char shown[SHOWN], shown_dtype[SHOWN], names[256] = "";
    for (unsigned i = 0; i < FH_DTYPES; i++) {
        size_t used = strlen(names);
        if (dtypes >> i & 1u) snprintf(names + used, sizeof names - used, "%s%s", used ? ", " : "", fh_dtype_st_name((fh_dtype)i));
    }
    return fh_fail(err, FH_EUNSUPPORTED, "%s: tensor '%s' has dtype %s, which cannot be used here: needed is %s", t->file,
                   show(shown, t->name), show(shown_dtype, t->dtype_name), names);
}

fh_status fh_tensors_need(const fh_tensor **out, const fh_tensors *t, const char *name, unsigned dtypes, unsigned rank,
                          const uint64_t *shape, fh_err *err)
{
    char shown[SHOWN];
    *out = NULL;
    const fh_tensor *found = fh_tensors_find(t, name);
    if (!found) return fh_fail(err, FH_ENOTFOUND, "%s: tensor '%s' is missing (%zu others are there)", t->path, show(shown, name), t->n);
    if (found->dtype == FH_DTYPES || !(dtypes >> found->dtype & 1u)) return wrong_dtype(found, dtypes, err);
    bool same = found->rank == rank;
    for (unsigned i = 0; same && i < rank; i++) same = shape[i] == UINT64_MAX || shape[i] == found->shape[i];
    if (!same) return wrong_shape(found, rank, shape, err);
    *out = found;
    return FH_OK;
}
