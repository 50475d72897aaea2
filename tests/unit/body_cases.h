/* tests/unit/body_cases.h: the checkpoints of tests/golden and of the shared golden directory, opened for a test. */
#ifndef FH_TEST_BODY_CASES_H
#define FH_TEST_BODY_CASES_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"
#include "runtime/runtime.h"

typedef struct golden {
    fh_checkpoint checkpoint;
    fh_body *body;
    fh_dense dense;
    size_t b, t, d, v;          /* sequences, tokens each, hidden size, vocabulary */
    uint32_t *ids;              /* [B, T] */
    float *hidden, *logits;     /* what the reference says, [B, T, D] and [B, T, V] */
    uint32_t greedy[64]; size_t n_greedy;
} golden;

#define ok(rc, err) ok_at((rc), &(err), __FILE__, __LINE__)
static inline void ok_at(fh_status rc, const fh_err *err, const char *file, int line)
{
    if (rc == FH_OK) return;
    print_error("%s:%d: %s: %s\n", file, line, fh_status_name(rc), err->text);
    _fail(file, line);
}

static inline float *floats_of(const fh_tensors *t, const char *name)
{
    const fh_tensor *x = fh_tensors_find(t, name);
    assert_non_null(x);
    float *v = malloc((size_t)x->bytes);
    memcpy(v, x->data, (size_t)x->bytes);
    return v;
}

/* int64 or int32 ids as uint32. */
static inline uint32_t *ids_of(const fh_tensors *t, const char *name, size_t *n)
{
    const fh_tensor *x = fh_tensors_find(t, name);
    assert_non_null(x);
    size_t size = fh_dtype_size(x->dtype);
    *n = (size_t)x->bytes / size;
    uint32_t *v = malloc(*n * sizeof *v + 1);
    for (size_t i = 0; i < *n; i++) memcpy(&v[i], (const uint8_t *)x->data + i * size, sizeof *v); /* little-endian, below 2^32 */
    return v;
}

/* "../shared" or what FH_SHARED says. */
static inline const char *shared(const char *name)
{
    static char path[1024];
    const char *root = getenv("FH_SHARED");
    snprintf(path, sizeof path, "%s/%s", root && *root ? root : "../shared", name);
    return path;
}

/* False when the case is not there. */
static inline bool golden_open(golden *g, const char *dir)
{
    char path[1100];
    fh_err err;
    fh_tensors *expected;
    *g = (golden){0};
    snprintf(path, sizeof path, "%s/expected.safetensors", dir);
    if (!fh_file_exists(path)) return false;
    ok(fh_checkpoint_open(&g->checkpoint, dir, NULL, &err), err);
    fh_body_source source = {.config = &g->checkpoint.config, .tensors = g->checkpoint.tensors};
    ok(fh_body_open(&g->body, &source, dir, &err), err);
    ok(fh_tensors_open(&expected, path, &err), err);
    const fh_tensor *hidden = fh_tensors_find(expected, "hidden");
    g->b = (size_t)hidden->shape[0], g->t = (size_t)hidden->shape[1], g->d = (size_t)hidden->shape[2];
    g->v = g->checkpoint.config.vocab;
    g->hidden = floats_of(expected, "hidden");
    g->logits = floats_of(expected, "logits");
    size_t n;
    g->ids = ids_of(expected, "ids", &n);
    assert_int_equal(n, g->b * g->t);
    uint32_t *greedy = ids_of(expected, "greedy", &g->n_greedy);
    assert_true(g->n_greedy <= 64);
    memcpy(g->greedy, greedy, g->n_greedy * sizeof *greedy);
    free(greedy);
    g->dense = (fh_dense){
        .rows = fh_tensor_rows(g->checkpoint.head), .softcap = (float)g->checkpoint.config.final_softcap, .vocab = (uint32_t)g->v};
    fh_tensors_close(expected);
    return true;
}

static inline void golden_close(golden *g)
{
    fh_body_close(g->body);
    fh_checkpoint_close(&g->checkpoint);
    free(g->ids);
    free(g->hidden);
    free(g->logits);
}

static inline double spread(const float *x, size_t n)
{
    double sum = 0, squares = 0;
    for (size_t i = 0; i < n; i++) sum += x[i], squares += (double)x[i] * x[i];
    return sqrt(squares / (double)n - sum / (double)n * (sum / (double)n));
}

/* NaN anywhere gives NaN, which fails every bound. */
static inline double farthest(const float *a, const float *b, size_t n)
{
    double far = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - b[i]);
        if (!(d <= far)) far = d;
        if (isnan(d)) return d;
    }
    return far;
}

static inline uint32_t best_of(const float *logits, size_t n)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = i;
    return (uint32_t)best;
}

#endif
