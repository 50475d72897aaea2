/* format/gguf.c: reading GGUF files, version 3.
 *
 *     offset 0   "GGUF", u32 version, u64 tensors, u64 values; all numbers are little-endian
 *                each value:   string key, u32 type, the value
 *                each tensor:  string name, u32 dimensions, u64 each, the fastest first, u32 type, u64 offset in the data area
 *     then zeros up to the next multiple of the alignment, and the data area: the tensors in the order of their list, each padded
 *
 * A string is a u64 length and bytes, an array a u32 type, a u64 count and the elements.  The bytes are walked once; what is kept of a
 * value is where it lies.  Counts are held to what the rest of the file can contain before anything is allocated for them.
 */
#include "format/gguf.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    VERSION = 3,
    MAX_TENSORS = 1 << 18,
    MAX_VALUES = 1 << 16,
    MAX_KEY = 65535,
    MAX_ALIGNMENT = 1 << 20,
    LEAST_VALUE = 8 + 1 + 4 + 1,         /* bytes of the shortest value: a key of one letter, a type, a byte */
    LEAST_TENSOR = 8 + 1 + 4 + 4 + 8,    /* of the shortest entry of the tensor list: no dimensions */
    SHOWN = 160
};

/* ---- what the numbers of types mean ----------------------------------------------------------------------------- */

/* Elements and bytes of a block; a type that is not here has a size that we do not know. */
static const struct { uint32_t type; const char *name; uint32_t elements, bytes; } types[] = {
    {FH_GGUF_T_F32, "F32", 1, 4}, {FH_GGUF_T_F16, "F16", 1, 2}, {2, "Q4_0", 32, 18}, {3, "Q4_1", 32, 20}, {6, "Q5_0", 32, 22},
    {7, "Q5_1", 32, 24}, {FH_GGUF_T_Q8_0, "Q8_0", 32, 34}, {10, "Q2_K", 256, 84}, {11, "Q3_K", 256, 110}, {12, "Q4_K", 256, 144},
    {13, "Q5_K", 256, 176}, {14, "Q6_K", 256, 210}, {15, "Q8_K", 256, 292}, {16, "IQ2_XXS", 256, 66}, {17, "IQ2_XS", 256, 74},
    {18, "IQ3_XXS", 256, 98}, {19, "IQ1_S", 256, 50}, {20, "IQ4_NL", 32, 18}, {21, "IQ3_S", 256, 110}, {22, "IQ2_S", 256, 82},
    {23, "IQ4_XS", 256, 136}, {24, "I8", 1, 1}, {25, "I16", 1, 2}, {26, "I32", 1, 4}, {27, "I64", 1, 8}, {28, "F64", 1, 8},
    {29, "IQ1_M", 256, 56}, {FH_GGUF_T_BF16, "BF16", 1, 2}, {34, "TQ1_0", 256, 54}, {35, "TQ2_0", 256, 66}, {39, "MXFP4", 32, 17},
    {40, "NVFP4", 64, 36}, {41, "Q1_0", 128, 18},
};
enum { N_TYPES = sizeof types / sizeof *types };

static size_t type_index(uint32_t type)
{
    size_t i = 0;
    while (i < N_TYPES && types[i].type != type) i++;
    return i;
}

const char *fh_gguf_tensor_type(uint32_t type)
{
    size_t i = type_index(type);
    return i < N_TYPES ? types[i].name : NULL;
}

/* Bytes of a value or an array's element; 0: of no fixed size. */
static const uint8_t value_bytes[FH_GGUF_TYPES] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

static uint64_t little(const uint8_t *p, unsigned bytes)
{
    uint64_t v = 0;
    for (unsigned i = 0; i < bytes; i++) v |= (uint64_t)p[i] << 8 * i;
    return v;
}

/* ---- walking ---------------------------------------------------------------------------------------------------- */

typedef struct cursor {
    const uint8_t *data;
    size_t size, at;       /* at <= size */
    const char *file;
    const char *where;     /* for messages: what is being read */
    char name[SHOWN];      /* of it, once that is known */
    fh_err *err;
    fh_status rc;          /* the first failure sticks */
} cursor;

static size_t left(const cursor *c) { return c->size - c->at; }

static void FH_PRINTF(2, 3) fail(cursor *c, const char *fmt, ...)
{
    char what[400];
    va_list args;
    if (c->rc < 0) return;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    c->rc = fh_fail(c->err, FH_EFORMAT, "%s: %s%s%s%s at byte %zu: %s", c->file, c->where, *c->name ? " '" : "", c->name,
                    *c->name ? "'" : "", c->at, what);
}

static void no_memory(cursor *c)
{
    if (c->rc >= 0) c->rc = fh_fail(c->err, FH_ENOMEM, "%s: out of memory", c->file);
}

/* The next n bytes; NULL after a failure. */
static const uint8_t *take(cursor *c, uint64_t n, const char *what)
{
    if (c->rc < 0) return NULL;
    if (n > left(c)) {
        fail(c, "%s needs %" PRIu64 " bytes, the file has %zu left: is the download complete?", what, n, left(c));
        return NULL;
    }
    const uint8_t *p = c->data + c->at;
    c->at += (size_t)n;
    return p;
}

static uint64_t take_u(cursor *c, unsigned bytes, const char *what)
{
    const uint8_t *p = take(c, bytes, what);
    return p ? little(p, bytes) : 0;
}

/* A key or a tensor's name: text that can be shown and compared, at most `most` bytes long. */
static const char *take_name(cursor *c, fh_arena *arena, size_t most)
{
    uint64_t n = take_u(c, 8, "the length of its name");
    if (c->rc >= 0 && n > most) fail(c, "its name has %" PRIu64 " bytes, at most %zu are read", n, most);
    const char *s = (const char *)take(c, n, "its name");
    if (!s) return NULL;
    if (n == 0) fail(c, "its name is empty");
    else if (fh_utf8_valid(s, (size_t)n) != n || memchr(s, 0, (size_t)n)) fail(c, "its name is no UTF-8 text, or holds a NUL");
    if (c->rc < 0) return NULL;
    char *name = fh_arena_strndup(arena, s, (size_t)n);
    if (!name) {
        no_memory(c);
        return NULL;
    }
    fh_show(c->name, sizeof c->name, name, (size_t)n);
    return name;
}

/* ---- values ----------------------------------------------------------------------------------------------------- */

static void check_bools(cursor *c, const uint8_t *p, uint64_t n)
{
    for (uint64_t i = 0; p && i < n; i++)
        if (p[i] > 1) {
            fail(c, "a boolean is %u, not 0 or 1", p[i]);
            return;
        }
}

static void skip_strings(cursor *c, uint64_t n)
{
    for (uint64_t i = 0; i < n && c->rc >= 0; i++) take(c, take_u(c, 8, "the length of a string"), "a string");
}

static void take_array(cursor *c, fh_gguf_value *v)
{
    uint64_t element = take_u(c, 4, "the type of an array's elements");
    v->count = take_u(c, 8, "the length of an array");
    v->data = c->data + c->at;
    if (c->rc < 0) return;
    if (element >= FH_GGUF_TYPES) {
        fail(c, "an array of elements of type %" PRIu64 ", which is not known", element);
        return;
    }
    v->element = (fh_gguf_type)element;
    if (v->element == FH_GGUF_ARRAY) {
        fail(c, "an array of arrays, which is not read");
        return;
    }
    size_t each = value_bytes[element];
    if (v->count > left(c) / (each ? each : 8)) {
        fail(c, "an array of %" PRIu64 " elements of %zu bytes or more, the file has %zu bytes left: is the download complete?", v->count,
             each ? each : 8, left(c));
    } else if (each) {
        take(c, v->count * each, "an array");
        if (v->element == FH_GGUF_BOOL) check_bools(c, v->data, v->count);
    } else {
        skip_strings(c, v->count);
    }
}

static void take_value(cursor *c, fh_gguf_value *v, fh_arena *arena)
{
    *c->name = '\0';
    v->key = take_name(c, arena, MAX_KEY);
    uint64_t type = take_u(c, 4, "its type");
    if (c->rc < 0) return;
    if (type >= FH_GGUF_TYPES) {
        fail(c, "a value of type %" PRIu64 ", which is not known", type);
        return;
    }
    v->type = (fh_gguf_type)type;
    v->count = 1;
    v->data = c->data + c->at;
    if (v->type == FH_GGUF_ARRAY) take_array(c, v);
    else if (v->type == FH_GGUF_STRING) skip_strings(c, 1);
    else if (take(c, value_bytes[type], "its value") && v->type == FH_GGUF_BOOL) check_bools(c, v->data, 1);
}

static int by_key(const void *a, const void *b)
{
    return strcmp(((const fh_gguf_value *)a)->key, ((const fh_gguf_value *)b)->key);
}

static void take_values(cursor *c, fh_gguf *g, uint64_t n)
{
    c->where = "value";
    if (n > MAX_VALUES || n > left(c) / LEAST_VALUE) {
        c->where = "header";
        fail(c, "%" PRIu64 " values, more than %s", n, n > MAX_VALUES ? "any model has" : "the file can hold: is the download complete?");
        return;
    }
    g->values = fh_malloc((size_t)(n ? n : 1) * sizeof *g->values);
    if (!g->values) {
        no_memory(c);
        return;
    }
    for (; g->n_values < n && c->rc >= 0; g->n_values++) {
        g->values[g->n_values] = (fh_gguf_value){0};
        take_value(c, &g->values[g->n_values], g->arena);
    }
    *c->name = '\0';
    if (c->rc < 0) return;
    if (n) qsort(g->values, (size_t)n, sizeof *g->values, by_key);
    for (size_t i = 1; i < n; i++)
        if (strcmp(g->values[i - 1].key, g->values[i].key) == 0) {
            fail(c, "the key '%s' is there twice", fh_show(c->name, sizeof c->name, g->values[i].key, strlen(g->values[i].key)));
            return;
        }
}

/* ---- tensors ---------------------------------------------------------------------------------------------------- */

/* Bytes from type and shape. */
static void size_tensor(cursor *c, fh_gguf_tensor *t)
{
    size_t i = type_index(t->type), bytes = 1;
    if (i == N_TYPES) {
        if (c->rc >= 0)
            c->rc = fh_fail(c->err, FH_EUNSUPPORTED, "%s: tensor '%s' has type %u, which is not known: take a file of F32, F16, BF16 or Q8_0",
                            c->file, c->name, t->type);
        return;
    }
    if (t->ne[0] % types[i].elements) {
        fail(c, "rows of %" PRIu64 " elements are no whole blocks of %u (%s)", t->ne[0], types[i].elements, types[i].name);
        return;
    }
    bool fits = fh_mul((size_t)(t->ne[0] / types[i].elements), types[i].bytes, &bytes);
    for (unsigned d = 1; d < FH_GGUF_RANK; d++) fits = fits && fh_mul(bytes, (size_t)t->ne[d], &bytes);
    if (!fits || bytes > INT64_MAX) fail(c, "its shape makes more bytes than 64 bits can count");
    t->bytes = bytes;
}

static void take_tensor(cursor *c, fh_gguf_tensor *t, fh_arena *arena)
{
    *c->name = '\0';
    t->name = take_name(c, arena, FH_GGUF_NAME - 1);
    uint64_t rank = take_u(c, 4, "the number of its dimensions");
    if (c->rc >= 0 && rank > FH_GGUF_RANK) fail(c, "%" PRIu64 " dimensions, at most %d are read", rank, FH_GGUF_RANK);
    if (c->rc < 0) return;
    t->rank = (unsigned)rank;
    for (unsigned i = 0; i < FH_GGUF_RANK; i++) t->ne[i] = i < rank ? take_u(c, 8, "a dimension") : 1;
    t->type = (uint32_t)take_u(c, 4, "its type");
    t->offset = take_u(c, 8, "its offset");
    if (c->rc >= 0) size_tensor(c, t);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const fh_gguf_tensor *)a)->name, ((const fh_gguf_tensor *)b)->name);
}

/* Each begins where the one before it, padded, ends; the last one ends, padded or not, with the file. */
static void place_tensors(cursor *c, fh_gguf *g, size_t alignment)
{
    uint64_t end = 0, padded = 0;
    if (c->at > SIZE_MAX - alignment) return;
    size_t begin = fh_round_up(c->at, alignment);
    uint64_t area = begin < c->size ? c->size - begin : 0;
    for (size_t i = 0; i < g->n_tensors; i++) {
        fh_gguf_tensor *t = &g->tensors[i];
        fh_show(c->name, sizeof c->name, t->name, strlen(t->name));
        if (t->offset % alignment) {
            fail(c, "its offset %" PRIu64 " is no multiple of the alignment %zu", t->offset, alignment);
        } else if (t->offset != padded) {
            fail(c, "its offset is %" PRIu64 ", but the tensor before it ends at %" PRIu64 " of the data: they %s", t->offset, padded,
                 t->offset < padded ? "overlap" : "leave a hole");
        } else if (t->offset > area || t->bytes > area - t->offset) {
            fail(c, "its %" PRIu64 " bytes at %" PRIu64 " of the data run past the end of the file (%zu bytes): is the download complete?",
                 t->bytes, t->offset, c->size);
        }
        if (c->rc < 0) return;
        t->data = t->bytes ? c->data + begin + t->offset : c->data;
        end = t->offset + t->bytes;
        padded = (end + alignment - 1) / alignment * alignment;
    }
    *c->name = '\0';
    c->where = "data";
    if (area > padded) fail(c, "the tensors end at byte %" PRIu64 " and the file at %zu: %" PRIu64 " bytes too many", begin + end, c->size, area - padded);
}

static void take_tensors(cursor *c, fh_gguf *g, uint64_t n)
{
    size_t alignment = 32;
    uint64_t said;
    const fh_gguf_value *v = fh_gguf_find(g, "general.alignment");
    c->where = "header";
    if (v && (!fh_gguf_u64(v, 0, &said) || said == 0 || said > MAX_ALIGNMENT || (said & (said - 1)))) {
        fail(c, "'general.alignment' is no power of two up to %d", MAX_ALIGNMENT);
        return;
    }
    if (v) alignment = (size_t)said;
    if (n > MAX_TENSORS || n > left(c) / LEAST_TENSOR) {
        fail(c, "%" PRIu64 " tensors, more than %s", n, n > MAX_TENSORS ? "any model has" : "the file can hold: is the download complete?");
        return;
    }
    g->tensors = fh_malloc((size_t)(n ? n : 1) * sizeof *g->tensors);
    if (!g->tensors) {
        no_memory(c);
        return;
    }
    c->where = "tensor";
    for (; g->n_tensors < n && c->rc >= 0; g->n_tensors++) {
        g->tensors[g->n_tensors] = (fh_gguf_tensor){0};
        take_tensor(c, &g->tensors[g->n_tensors], g->arena);
    }
    if (c->rc >= 0) place_tensors(c, g, alignment);
    if (c->rc < 0) return;
    if (n) qsort(g->tensors, (size_t)n, sizeof *g->tensors, by_name);
    for (size_t i = 1; i < n; i++)
        if (strcmp(g->tensors[i - 1].name, g->tensors[i].name) == 0) {
            fail(c, "the tensor '%s' is there twice", fh_show(c->name, sizeof c->name, g->tensors[i].name, strlen(g->tensors[i].name)));
            return;
        }
}

/* ---- the file --------------------------------------------------------------------------------------------------- */

static fh_status check_start(const uint8_t *data, size_t size, const char *name, fh_err *err)
{
    if (size < 4 || memcmp(data, "GGUF", 4) != 0)
        return fh_fail(err, FH_EFORMAT, "%s: not a GGUF file: %s%s", name, size < 4 ? "shorter than its first word" : "it does not begin with \"GGUF\"",
                       fh_looks_like(data, size));
    uint64_t version = size < 8 ? 0 : little(data + 4, 4);
    if (size < 24)
        return fh_fail(err, FH_EFORMAT, "%s: %zu bytes, the header of a GGUF alone takes 24: is the download complete?", name, size);
    if (version == VERSION) return FH_OK;
    if ((version & 0xFFFF) == 0)
        return fh_fail(err, FH_EUNSUPPORTED, "%s: byte 4: a GGUF in big-endian order: take the little-endian file", name);
    return fh_fail(err, FH_EUNSUPPORTED, "%s: byte 4: GGUF version %" PRIu64 ", only version 3 is read: %s", name, version,
                   version < VERSION ? "convert the model again" : "a newer fhtool may read it");
}

/* Files of a split model, and files that are no model. */
static void check_kind(cursor *c, const fh_gguf *g)
{
    uint64_t parts, number = 0;
    if (fh_gguf_u64(fh_gguf_find(g, "split.count"), 0, &parts) && parts > 1) {
        fh_gguf_u64(fh_gguf_find(g, "split.no"), 0, &number);
        c->rc = fh_fail(c->err, FH_EUNSUPPORTED, "%s: part %" PRIu64 " of %" PRIu64 " of a split model: merge the parts into one file first", c->file,
                        number + 1, parts);
    }
}

static fh_status read_all(fh_gguf *g, const uint8_t *data, size_t size, fh_err *err)
{
    fh_status rc = check_start(data, size, g->path, err);
    if (rc < 0) return rc;
    cursor c = {.data = data, .size = size, .at = 8, .file = g->path, .where = "header", .err = err};
    uint64_t n_tensors = take_u(&c, 8, "the header"), n_values = take_u(&c, 8, "the header");
    take_values(&c, g, n_values);
    if (c.rc >= 0) check_kind(&c, g);
    if (c.rc >= 0) take_tensors(&c, g, n_tensors);
    if (c.rc >= 0) c.rc = fh_gguf_text(g, "general.architecture", &g->arch, err);
    if (c.rc >= 0 && !g->arch) {
        c.where = "header";
        *c.name = '\0';
        fail(&c, "there is no 'general.architecture': which model is this?");
    }
    return c.rc;
}

fh_status fh_gguf_open_memory(fh_gguf **out, const void *data, size_t size, const char *name, fh_err *err)
{
    fh_status rc;
    *out = NULL;
    fh_gguf *g = fh_calloc(1, sizeof *g);
    if (!g) return fh_fail(err, FH_ENOMEM, "%s: out of memory", name);
    g->path = fh_strdup(name);
    g->arena = fh_arena_new();
    if (!g->path || !g->arena) rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", name);
    else rc = read_all(g, data, size, err);
    if (rc < 0) fh_gguf_close(g);
    else *out = g;
    return rc;
}

fh_status fh_gguf_open(fh_gguf **out, const char *path, fh_err *err)
{
    fh_map map = {0};
    *out = NULL;
    fh_status rc = fh_map_open(&map, path, err);
    if (rc < 0) return rc;
    if ((rc = fh_gguf_open_memory(out, map.data, map.size, path, err)) < 0) fh_map_close(&map);
    else (*out)->map = map;
    return rc;
}

void fh_gguf_close(fh_gguf *g)
{
    if (!g) return;
    fh_free(g->values);
    fh_free(g->tensors);
    fh_arena_free(g->arena);
    fh_map_close(&g->map);
    fh_free(g->path);
    fh_free(g);
}

/* ---- asking ----------------------------------------------------------------------------------------------------- */

const fh_gguf_value *fh_gguf_find(const fh_gguf *g, const char *key)
{
    fh_gguf_value wanted = {.key = key};
    return g->n_values ? bsearch(&wanted, g->values, g->n_values, sizeof wanted, by_key) : NULL;
}

const fh_gguf_tensor *fh_gguf_tensor_find(const fh_gguf *g, const char *name)
{
    fh_gguf_tensor wanted = {.name = name};
    return g->n_tensors ? bsearch(&wanted, g->tensors, g->n_tensors, sizeof wanted, by_name) : NULL;
}

/* Where element i lies and what it is; NULL: there is no such one. */
static const uint8_t *element(const fh_gguf_value *v, uint64_t i, fh_gguf_type *type)
{
    if (!v || i >= v->count) return NULL;
    *type = v->type == FH_GGUF_ARRAY ? v->element : v->type;
    return v->data + i * value_bytes[*type];
}

bool fh_gguf_u64(const fh_gguf_value *v, uint64_t i, uint64_t *out)
{
    fh_gguf_type type;
    const uint8_t *p = element(v, i, &type);
    if (!p) return false;
    switch (type) {
    case FH_GGUF_U8: case FH_GGUF_U16: case FH_GGUF_U32: case FH_GGUF_U64: *out = little(p, value_bytes[type]); return true;
    case FH_GGUF_I8: case FH_GGUF_I16: case FH_GGUF_I32: case FH_GGUF_I64:
        if (p[value_bytes[type] - 1] & 0x80) return false;
        *out = little(p, value_bytes[type]);
        return true;
    default: return false;
    }
}

bool fh_gguf_double(const fh_gguf_value *v, uint64_t i, double *out)
{
    fh_gguf_type type;
    uint64_t u;
    const uint8_t *p = element(v, i, &type);
    if (!p) return false;
    if (type == FH_GGUF_F64) {
        u = little(p, 8);
        memcpy(out, &u, sizeof u);
        return true;
    }
    if (type != FH_GGUF_F32) {
        if (!fh_gguf_u64(v, i, &u)) return false;
        *out = (double)u;
        return true;
    }
    uint32_t bits = (uint32_t)little(p, 4);
    float f;
    char text[40];
    memcpy(&f, &bits, sizeof bits);
    *out = (double)f;
    for (int digits = 6; digits <= 9; digits++) { /* 9 always do; NaN and infinity stay what they are */
        snprintf(text, sizeof text, "%.*g", digits, (double)f);
        double d = strtod(text, NULL);
        if ((float)d != f) continue;
        *out = d;
        break;
    }
    return true;
}

bool fh_gguf_bool(const fh_gguf_value *v, uint64_t i, bool *out)
{
    fh_gguf_type type;
    const uint8_t *p = element(v, i, &type);
    if (!p || type != FH_GGUF_BOOL) return false;
    *out = *p != 0;
    return true;
}

fh_gguf_strings fh_gguf_strings_of(const fh_gguf_value *v)
{
    bool strings = v && (v->type == FH_GGUF_STRING || (v->type == FH_GGUF_ARRAY && v->element == FH_GGUF_STRING));
    return strings ? (fh_gguf_strings){v->data, v->count} : (fh_gguf_strings){0};
}

bool fh_gguf_next(fh_gguf_strings *s, const char **text, size_t *len)
{
    if (!s->left) return false;
    s->left--;
    *len = (size_t)little(s->at, 8);
    *text = (const char *)s->at + 8;
    s->at += 8 + *len;
    return true;
}

fh_status fh_gguf_text(const fh_gguf *g, const char *key, const char **out, fh_err *err)
{
    size_t len;
    const char *text;
    const fh_gguf_value *v = fh_gguf_find(g, key);
    *out = NULL;
    if (!v) return FH_OK;
    fh_gguf_strings s = fh_gguf_strings_of(v);
    if (v->type != FH_GGUF_STRING || !fh_gguf_next(&s, &text, &len)) return fh_fail(err, FH_EFORMAT, "%s: '%s' is no string", g->path, key);
    if (fh_utf8_valid(text, len) != len || memchr(text, 0, len))
        return fh_fail(err, FH_EFORMAT, "%s: '%s' is no UTF-8 text, or holds a NUL", g->path, key);
    *out = fh_arena_strndup(g->arena, text, len);
    return *out ? FH_OK : fh_fail(err, FH_ENOMEM, "%s: out of memory", g->path);
}
