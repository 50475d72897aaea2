/* format/json.c: JSON documents.  The one file that sees cJSON.
 *
 * cJSON keeps the tree; what it does not know is added here.  Text is judged before (json_scan.c).  Whether a number was written as an
 * integer, and whether an addition to a tree failed, are bits of a node's type above cJSON's own, which cJSON masks away.
 * Printing is ours, because cJSON's prints a double with 15 digits when a relative difference of 2^-52 remains.
 */
#include "format/json_scan.h"

#include <cjson/cJSON.h>
#include <locale.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    TYPE_MASK = 0xFF,
    INTEGER = 1 << 16, /* of a number: written without point and exponent */
    BROKEN = 1 << 17,  /* of an array or object: something that belongs into it is missing, memory ran out */
    PRINT_DEPTH = 256
};
#define EXACT 0x1p53 /* integers below are doubles exactly */

static locale_t c_locale;

static void set_up(void)
{
#ifdef FH_FAULTS
    /* Only so that tests can make allocations fail.  The hooks belong to the whole process, and libflashhead lives in other
     * people's: there cJSON keeps malloc and free, which fh_malloc and fh_free come down to. */
    cJSON_InitHooks(&(cJSON_Hooks){fh_malloc, fh_free});
#endif
    c_locale = newlocale(LC_ALL_MASK, "C", (locale_t)0);
}

static void ready(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, set_up);
}

/* A program around us may have set a locale whose decimal point is a comma. */
static locale_t enter(void)
{
    ready();
    return c_locale ? uselocale(c_locale) : (locale_t)0;
}

static void leave(locale_t before)
{
    if (before) uselocale(before);
}

/* ---- duplicate keys ---------------------------------------------------------------------------------------- */

typedef struct keyed { uint64_t hash; const cJSON *item; } keyed;

static uint64_t hash_of(const char *s)
{
    uint64_t h = 0xCBF29CE484222325u; /* FNV-1a */
    for (; *s; s++) h = (h ^ (uint8_t)*s) * 0x100000001B3u;
    return h;
}

/* By hash, then by text: keys made to collide cost a comparison of texts, and never more than n log n of them. */
static int by_key(const void *left, const void *right)
{
    const keyed *a = left, *b = right;
    if (a->hash != b->hash) return a->hash < b->hash ? -1 : 1;
    return strcmp(a->item->string, b->item->string);
}

/* *found is a member whose key another member has too, or NULL. */
static bool find_duplicate(const cJSON *object, const cJSON **found)
{
    enum { FEW = 8 };
    size_t n = 0;
    *found = NULL;
    for (const cJSON *c = object->child; c; c = c->next) n++;
    if (n <= FEW) {
        for (const cJSON *c = object->child; c; c = c->next)
            for (const cJSON *d = object->child; d != c; d = d->next)
                if (strcmp(c->string, d->string) == 0) *found = c;
        return true;
    }
    keyed *keys = fh_malloc(n * sizeof *keys);
    if (!keys) return false;
    n = 0;
    for (const cJSON *c = object->child; c; c = c->next) keys[n++] = (keyed){hash_of(c->string), c};
    qsort(keys, n, sizeof *keys, by_key);
    for (size_t i = 1; i < n && !*found; i++)
        if (by_key(&keys[i - 1], &keys[i]) == 0) *found = keys[i].item;
    fh_free(keys);
    return true;
}

/* ---- parsing ------------------------------------------------------------------------------------------------ */

/* Visits every node in the order of the text; at most `FH_JSON_DEPTH` levels. */
typedef struct walk { cJSON *path[FH_JSON_DEPTH + 2]; size_t depth; } walk;

static cJSON *walk_next(walk *w)
{
    cJSON *here = w->path[w->depth];
    if (here->child) return w->path[++w->depth] = here->child;
    while (w->depth > 0 && !w->path[w->depth]->next) w->depth--;
    return w->depth == 0 ? NULL : (w->path[w->depth] = w->path[w->depth]->next);
}

static fh_status duplicate(const cJSON *root, const cJSON *member, const char *text, size_t len, const char *file, fh_err *err)
{
    char key[120];
    size_t n = 0, line, column;
    walk w = {.path = {(cJSON *)root}};
    for (const cJSON *c = root; c && c != member; c = walk_next(&w)) n += c->string != NULL;
    fh_json_scan_key(text, len, n, &line, &column);
    return fh_fail(err, FH_EFORMAT, "%s: line %zu, column %zu: the key '%s' is in its object twice", file, line, column,
                   fh_show(key, sizeof key, member->string, strlen(member->string)));
}

fh_status fh_json_parse(fh_json **out, const char *text, size_t len, const char *file, fh_err *err)
{
    static pthread_mutex_t parsing = PTHREAD_MUTEX_INITIALIZER; /* cJSON notes the place of an error in a global */
    fh_status rc;
    fh_json_scan scan;
    cJSON *root = NULL;
    *out = NULL;
    locale_t before = enter();
    if ((rc = fh_json_scan_text(&scan, text, len, file, err)) < 0) goto out;
    pthread_mutex_lock(&parsing);
    root = cJSON_ParseWithLength(scan.rewritten ? scan.rewritten : text, len);
    pthread_mutex_unlock(&parsing);
    if (!root) {
        rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", file);
        goto out;
    }
    walk w = {.path = {root}};
    size_t number = 0;
    for (cJSON *c = root; c; c = walk_next(&w)) {
        const cJSON *twice;
        if (c->type == cJSON_Number) {
            if (scan.integers[number / 8] >> number % 8 & 1) c->type |= INTEGER;
            number++;
        } else if (c->type == cJSON_Object) {
            if (!find_duplicate(c, &twice)) rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", file);
            else if (twice) rc = duplicate(root, twice, text, len, file, err);
            if (rc < 0) goto out;
        }
    }
    *out = root;
    root = NULL;
out:
    cJSON_Delete(root);
    fh_json_scan_free(&scan);
    leave(before);
    return rc;
}

fh_status fh_json_read(fh_json **out, const char *path, size_t limit, fh_err *err)
{
    char *text = NULL;
    size_t len = 0;
    *out = NULL;
    fh_status rc = fh_file_read(&text, &len, path, limit, err);
    if (rc >= 0) rc = fh_json_parse(out, text, len, path, err);
    fh_free(text);
    return rc;
}

void fh_json_free(fh_json *j)
{
    cJSON_Delete(j);
}

/* ---- reading ------------------------------------------------------------------------------------------------ */

static int type_of(const fh_json *j)
{
    return j ? j->type & TYPE_MASK : cJSON_NULL;
}

fh_json_kind fh_json_type(const fh_json *j)
{
    switch (type_of(j)) {
    case cJSON_True:
    case cJSON_False: return FH_JSON_BOOL;
    case cJSON_Number: return FH_JSON_NUMBER;
    case cJSON_String: return FH_JSON_STRING;
    case cJSON_Array: return FH_JSON_ARRAY;
    case cJSON_Object: return FH_JSON_OBJECT;
    default: return FH_JSON_NULL;
    }
}

static const cJSON *member(const fh_json *object, const char *key)
{
    if (type_of(object) != cJSON_Object) return NULL;
    const cJSON *c = object->child;
    while (c && strcmp(c->string, key) != 0) c = c->next;
    return c;
}

const fh_json *fh_json_get(const fh_json *object, const char *key)
{
    const cJSON *c = member(object, key);
    return type_of(c) == cJSON_NULL ? NULL : c;
}

bool fh_json_has(const fh_json *object, const char *key)
{
    return member(object, key) != NULL;
}

const fh_json *fh_json_first(const fh_json *j)
{
    return j ? j->child : NULL;
}

const fh_json *fh_json_next(const fh_json *child)
{
    return child ? child->next : NULL;
}

const char *fh_json_key(const fh_json *child)
{
    return child ? child->string : NULL;
}

size_t fh_json_count(const fh_json *j)
{
    size_t n = 0;
    for (const cJSON *c = fh_json_first(j); c; c = c->next) n++;
    return n;
}

static bool is_integer(const fh_json *j)
{
    return type_of(j) == cJSON_Number && (j->type & INTEGER) && fabs(j->valuedouble) < EXACT;
}

bool fh_json_u64(const fh_json *j, uint64_t *out)
{
    if (!is_integer(j) || signbit(j->valuedouble)) return false;
    *out = (uint64_t)j->valuedouble;
    return true;
}

bool fh_json_i64(const fh_json *j, int64_t *out)
{
    if (!is_integer(j)) return false;
    *out = (int64_t)j->valuedouble;
    return true;
}

bool fh_json_double(const fh_json *j, double *out)
{
    if (type_of(j) != cJSON_Number) return false;
    *out = j->valuedouble;
    return true;
}

bool fh_json_bool(const fh_json *j, bool *out)
{
    if (type_of(j) != cJSON_True && type_of(j) != cJSON_False) return false;
    *out = type_of(j) == cJSON_True;
    return true;
}

const char *fh_json_string(const fh_json *j)
{
    return type_of(j) == cJSON_String ? j->valuestring : NULL;
}

/* ---- building ------------------------------------------------------------------------------------------------ */

/* A copy with U+FFFD for every byte that is not UTF-8; NULL when out of memory. */
static char *repaired(const char *s)
{
    fh_buf b = {0};
    size_t left = strlen(s);
    for (;;) {
        size_t good = fh_utf8_valid(s, left);
        fh_buf_add(&b, s, good);
        if (good == left) return fh_buf_take(&b);
        fh_buf_puts(&b, "\xEF\xBF\xBD");
        s += good + 1, left -= good + 1;
    }
}

static fh_json *new_string(const char *s)
{
    if (fh_utf8_valid(s, strlen(s)) == strlen(s)) return cJSON_CreateString(s);
    char *clean = repaired(s);
    fh_json *j = clean ? cJSON_CreateString(clean) : NULL;
    fh_free(clean);
    return j;
}

static fh_json *new_number(double v, int flags)
{
    fh_json *j = cJSON_CreateNumber(v);
    if (j) j->type |= flags;
    return j;
}

fh_json *fh_json_object(void)
{
    ready();
    return cJSON_CreateObject();
}

fh_json *fh_json_array(void)
{
    ready();
    return cJSON_CreateArray();
}

bool fh_json_add(fh_json *to, const char *key, fh_json *owned)
{
    bool done = false;
    if (to && owned && !key) {
        done = cJSON_AddItemToArray(to, owned);
    } else if (to && owned) {
        char *clean = fh_utf8_valid(key, strlen(key)) == strlen(key) ? NULL : repaired(key);
        if (clean || fh_utf8_valid(key, strlen(key)) == strlen(key)) done = cJSON_AddItemToObject(to, clean ? clean : key, owned);
        fh_free(clean);
    }
    if (done) return true;
    if (to) to->type |= BROKEN;
    cJSON_Delete(owned);
    return false;
}

fh_json *fh_json_add_object(fh_json *to, const char *key)
{
    fh_json *j = cJSON_CreateObject();
    return fh_json_add(to, key, j) ? j : NULL;
}

fh_json *fh_json_add_array(fh_json *to, const char *key)
{
    fh_json *j = cJSON_CreateArray();
    return fh_json_add(to, key, j) ? j : NULL;
}

bool fh_json_add_copy(fh_json *to, const char *key, const fh_json *other)
{
    return fh_json_add(to, key, other ? cJSON_Duplicate(other, true) : cJSON_CreateNull());
}

bool fh_json_add_u64(fh_json *to, const char *key, uint64_t v)
{
    char text[24];
    if (v < (uint64_t)EXACT) return fh_json_add(to, key, new_number((double)v, INTEGER));
    snprintf(text, sizeof text, "%llu", (unsigned long long)v);
    return fh_json_add_string(to, key, text);
}

bool fh_json_add_i64(fh_json *to, const char *key, int64_t v)
{
    char text[24];
    if (v < (int64_t)EXACT && v > -(int64_t)EXACT) return fh_json_add(to, key, new_number((double)v, INTEGER));
    snprintf(text, sizeof text, "%lld", (long long)v);
    return fh_json_add_string(to, key, text);
}

bool fh_json_add_double(fh_json *to, const char *key, double v)
{
    return fh_json_add(to, key, isfinite(v) ? new_number(v, 0) : cJSON_CreateNull());
}

bool fh_json_add_string(fh_json *to, const char *key, const char *v)
{
    return fh_json_add(to, key, new_string(v));
}

bool fh_json_add_bool(fh_json *to, const char *key, bool v)
{
    return fh_json_add(to, key, cJSON_CreateBool(v));
}

bool fh_json_add_null(fh_json *to, const char *key)
{
    return fh_json_add(to, key, cJSON_CreateNull());
}

/* ---- printing ------------------------------------------------------------------------------------------------ */

static void print_string(fh_buf *b, const char *s)
{
    fh_buf_add(b, "\"", 1);
    for (;;) {
        size_t plain = 0;
        while ((uint8_t)s[plain] >= 0x20 && s[plain] != '"' && s[plain] != '\\') plain++;
        fh_buf_add(b, s, plain);
        s += plain;
        if (!*s) break;
        const char *known = strchr("\"\"\\\\\bb\ff\nn\rr\tt", *s);
        if (known) fh_buf_printf(b, "\\%c", known[1]);
        else fh_buf_printf(b, "\\u%04x", (unsigned)(uint8_t)*s);
        s++;
    }
    fh_buf_add(b, "\"", 1);
}

/* The shortest of 15, 16 and 17 digits that reads back as the same double; a double keeps its point, so that it reads back as one. */
static void print_number(fh_buf *b, const cJSON *j)
{
    char text[40];
    if ((j->type & INTEGER) && fabs(j->valuedouble) < EXACT) {
        fh_buf_printf(b, "%.0f", j->valuedouble);
        return;
    }
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, j->valuedouble);
        if (strtod(text, NULL) == j->valuedouble) break;
    }
    fh_buf_puts(b, text);
    if (!strpbrk(text, ".e")) fh_buf_puts(b, ".0");
}

static void print_scalar(fh_buf *b, const cJSON *j)
{
    switch (type_of(j)) {
    case cJSON_True: fh_buf_puts(b, "true"); break;
    case cJSON_False: fh_buf_puts(b, "false"); break;
    case cJSON_Number: print_number(b, j); break;
    case cJSON_String: print_string(b, j->valuestring); break;
    default: fh_buf_puts(b, "null"); break;
    }
}

static bool is_container(const cJSON *j)
{
    return type_of(j) == cJSON_Array || type_of(j) == cJSON_Object;
}

/* Long lists of numbers are read more easily in one line than one a line. */
static bool on_one_line(const cJSON *j)
{
    if (type_of(j) != cJSON_Array) return false;
    for (const cJSON *c = j->child; c; c = c->next)
        if (is_container(c)) return false;
    return true;
}

static void print_break(fh_buf *b, bool pretty, size_t depth)
{
    if (!pretty) return;
    fh_buf_add(b, "\n", 1);
    for (size_t i = 0; i < depth; i++) fh_buf_add(b, "  ", 2);
}

/* False when the tree is broken or deeper than anything we build or accept. */
static bool print_tree(fh_buf *b, const cJSON *root, bool pretty)
{
    const cJSON *open[PRINT_DEPTH]; /* the containers around `here` */
    bool spread[PRINT_DEPTH];       /* one member a line */
    size_t depth = 0;
    const cJSON *here = root;
    for (;;) {
        if (here->type & BROKEN) return false;
        if (depth > 0 && type_of(open[depth - 1]) == cJSON_Object) {
            print_string(b, here->string);
            fh_buf_puts(b, pretty ? ": " : ":");
        }
        if (is_container(here) && here->child) {
            if (depth == PRINT_DEPTH) return false;
            fh_buf_puts(b, type_of(here) == cJSON_Array ? "[" : "{");
            spread[depth] = pretty && !on_one_line(here);
            open[depth++] = here;
            print_break(b, spread[depth - 1], depth);
            here = here->child;
            continue;
        }
        if (is_container(here)) fh_buf_puts(b, type_of(here) == cJSON_Array ? "[]" : "{}");
        else print_scalar(b, here);
        while (depth > 0 && !here->next) {
            here = open[--depth];
            print_break(b, spread[depth], depth);
            fh_buf_puts(b, type_of(here) == cJSON_Array ? "]" : "}");
        }
        if (depth == 0) return true;
        fh_buf_puts(b, pretty && !spread[depth - 1] ? ", " : ",");
        print_break(b, spread[depth - 1], depth);
        here = here->next;
    }
}

char *fh_json_print(const fh_json *j, bool pretty)
{
    if (!j) return NULL;
    fh_buf b = {0};
    locale_t before = enter();
    bool whole = print_tree(&b, j, pretty);
    leave(before);
    char *text = whole ? fh_buf_take(&b) : NULL;
    fh_buf_free(&b);
    return text;
}
