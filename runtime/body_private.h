/* runtime/body_private.h: what the files of the body share. */
#ifndef FH_BODY_PRIVATE_H
#define FH_BODY_PRIVATE_H

#include "runtime/body_device.h"
#include "runtime/kernels.h"

#include <stdalign.h>
#include <stdatomic.h>

/* ---- arithmetic between the matrix products (body_math.c) -------------------------------------------------- */

/* One table an instruction set; all give the same bits. */
typedef struct fh_body_math {
    void (*widen_bf16)(float *dst, const void *src, size_t n);
    void (*widen_f16)(float *dst, const void *src, size_t n);
    void (*widen_q8)(float *dst, const void *src, size_t n);      /* of FH_Q8_0; whole blocks */
    void (*widen_i8)(float *dst, const int8_t *q, const float *scales, size_t n); /* a scale for each 32 */
    float (*max)(const float *x, size_t n);                       /* NaN is passed over; -INFINITY where nothing is left */
    float (*exp_sum)(float *x, size_t n, float shift);            /* x = exp(x - shift); their sum */
    /* acc[r * ldacc + j] += sum over t < n of p[r * ldp + t] v[t * ld + j], of `rows` rows and d columns */
    void (*accumulate)(float *acc, size_t ldacc, size_t rows, const float *p, size_t ldp, size_t n, const float *v, size_t ld, size_t d);
    float (*sum)(const float *x, size_t n);
    float (*sum_squares)(const float *x, size_t n, float shift);  /* of x - shift */
    void (*scale)(float *y, const float *x, const float *w, size_t n, float shift, float scale); /* y = (x - shift) * scale * w */
    void (*add)(float *y, const float *x, size_t n);
    void (*mul)(float *y, const float *x, size_t n);
    void (*sigmoid)(float *x, size_t n, float a, bool tanh_of_cubic);
    void (*exp_double)(double *out, const float *x, size_t n, double shift); /* out = exp(x - shift) */
    double (*exp_sum_double)(const float *x, size_t n, double shift);
} fh_body_math;
const fh_body_math *fh_body_math_choose(const char *isa); /* "ref", "avx2", "avx512"; "neon" is what the plain table is compiled to */
void fh_body_widen(const fh_body_math *m, float *dst, fh_dtype from, const void *src, size_t n);
void fh_body_activate(const fh_body_math *m, fh_act act, float *x, size_t n);

/* ---- rotary positions (rope.c) ------------------------------------------------------------------------------- */

/* Dimensions of a head that are rotated: even, at most head_dim; 0 without rope. */
uint32_t fh_rope_dims(const fh_rope *rope, uint32_t head_dim);
/* Values that cannot be meant are refused; `what` names the place. */
fh_status fh_rope_check(const fh_rope *rope, uint32_t head_dim, uint32_t max_position, const char *what, fh_err *err);
/* Inverse frequencies [dims / 2] for a sequence of `length` tokens (only `dynamic` looks at the length). */
void fh_rope_frequencies(const fh_rope *rope, uint32_t head_dim, uint32_t max_position, uint64_t length, float *freq);
/* What cos and sin are multiplied by (yarn); else 1. */
float fh_rope_attention_factor(const fh_rope *rope);
/* Rotate one head: element i with element i + dims / 2. */
void fh_rope_rotate(float *head, const float *cos, const float *sin, uint32_t dims);

/* ---- matrix products (body_linear.c) --------------------------------------------------------------------- */

enum { FH_TILE_M = 256, FH_TILE_N = 128, FH_FEW_ROWS = 8 };
/* out[i * ld + o] of rows i < n. */
typedef struct fh_product { const fh_linear *w, *gate; float *out; size_t ld; fh_then then; } fh_product;
/* Floats of scratch that each worker needs for n rows and weights of at most `in` columns. */
size_t fh_linear_scratch(size_t n, size_t in);
/* Products of the same n rows x [n, ldx].  Tiles are fixed by the shapes: the same numbers for any number of threads. */
void fh_linear_run(const fh_body *b, fh_pool *pool, float *scratch, size_t scratch_each, const float *x, size_t ldx, size_t n,
                   const fh_product *products, size_t count);

/* ---- the cache (kv.c) ---------------------------------------------------------------------------------------- */

/* A page (fh_pages) is shared by as many sequences as `sequences` says: who writes into one of several takes a copy.  On a device its blocks are `there`,
 * in memory of the slab's. */
typedef struct fh_slab { alignas(64) atomic_size_t pages; const fh_body_device *device; void *there; } fh_slab; /* pages follow; goes with the last of them */
typedef struct fh_page { alignas(64) atomic_uint sequences; fh_slab *slab; void *there; alignas(64) uint8_t blocks[]; } fh_page;

struct fh_kv {
    const fh_body *body;
    const fh_body_device *device;      /* that its blocks are on; NULL: here */
    fh_pages is;
    fh_page **pages; size_t n_pages, room;
    uint8_t *fresh; size_t n_fresh;    /* pages of the last slab that are not in use yet */
    fh_slab *slab; size_t slab_pages;  /* that they are of, and how many it had */
    uint32_t length;
    fh_score_range *watch;             /* [layers] or NULL */
};
/* Pages for `length` tokens, those from the present length on with nobody else's; the length itself is left alone. */
fh_status fh_kv_reserve(fh_kv *kv, uint64_t length, fh_err *err);
/* A key or value [head_dim] into a page. */
void fh_kv_write(const fh_kv *kv, size_t position, size_t layer, bool value, size_t kv_head, const float *x);
/* Ask for the keys or values of a page, which lie apart from those of the page before: the processor does not find them itself. */
void fh_kv_fetch(const fh_kv *kv, size_t page, size_t layer, bool value, size_t kv_head);
/* The first `n` <= 16 keys or values of a page, [n, head_dim]: where they lie if they are float32, else widened into room [16, head_dim]. */
const float *fh_kv_read(const fh_kv *kv, size_t page, size_t layer, bool value, size_t kv_head, size_t n, float *room);

/* ---- attention (body_attention.c) -------------------------------------------------------------------------- */

/* A run of rows of one sequence: row `row` of the call stands at position `first`; `tasks` is the number of its first task.  A single row on top of
 * many keys is shared out by spans of them; what they come to lies at `partial` until it is put together. */
typedef struct fh_piece { const fh_kv *kv; size_t row, rows, first, length, tasks, spans; float *partial; } fh_piece;
size_t fh_attention_scratch(const fh_body *b); /* floats a worker */
size_t fh_attention_partials(const fh_body *b, uint64_t length); /* floats that a sequence of this length needs at most */
/* Numbers the tasks and shares out `partials`; returns how many tasks. */
size_t fh_attention_tasks(const fh_body *b, fh_piece *pieces, size_t n, float *partials);
/* out [rows, heads * head_dim] from the q of qkv [rows, qkv_width] and the cache, where the keys and values of these rows already are. */
void fh_attention_run(const fh_body *b, fh_pool *pool, float *scratch, size_t scratch_each, const fh_layer *layer, size_t layer_index,
                      const fh_piece *pieces, size_t n, size_t tasks, const float *qkv, float *out);

#endif
