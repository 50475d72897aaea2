/* runtime/kernels.h: dot products of stored rows and states, one table of functions for each instruction set.
 *
 * The scalar C functions (kernels_ref.c) are the definition; every other table gives the same bits (but for which NaN it is).
 *
 *   float rows (f32, bf16, f16)   16 lanes of float32, lane j sums elements j, j + 16, j + 32, ... with fma in that order, row
 *                                 and state taken to go on with zeros up to a multiple of 16; then lane j + lane j + 8 (j < 8), j + 4, j
 * + 2,
 *                                 j + 1.
 *   FH_Q8_0 rows                  the float rows that they decode to, exactly: the same sums (kernels_q8.c).
 *   FH_Q8_0 rows, rounded         the state is rounded to integers q of 16 bits in each block of 32 (fh_state_blocks): 16 lanes of float32, lane j takes
 *                                 from each block the exact integer products of elements 2 j and 2 j + 1 times (row's scale * state's scale, one
 *                                 float32) with fma.  Then the tree of float rows.
 *   int8 rows                     the state is rounded to integers q of 16 bits (fh_state_quantize); the dot product is exact, and
 *                                 (float)((double)total * row scale * state scale) is the result.
 *   int4 rows                     the same integers; 32 lanes of float32, lane j takes in turn the exact integer products of elements 4 j to
 *                                 4 j + 3, 128 + 4 j to 128 + 4 j + 3, 256 + ..., each sum times the scale of its group of 32 with fma.
 *                                 Then lane j + lane j + 16 (j < 16), j + 8, j + 4, j + 2, j + 1; (float)((double)sum * state scale).
 */
#ifndef FH_KERNELS_H
#define FH_KERNELS_H

#include "format/format.h"

/* One state as the kernels read it. */
typedef struct fh_state {
    const float *f;         /* [D], as the caller gave it */
    const int16_t *q;       /* [D rounded up to 128] rint(f / scale), then zeros; only where rows of integers are read */
    const int8_t *hi, *lo;  /* the same: q = 256 hi + lo, both signed */
    const int32_t *quads;   /* [D rounded up to 128, / 4] -8 (q + q + q + q): what int4 values + 8 times q are too much, less */
    int64_t sum;            /* of q */
    double scale;           /* max |f| / FH_STATE_MAX; 0 for the zero state */
    const int16_t *block_q; /* [D] rint(f / block_scale); only where fh_state_blocks rounded it */
    const float *block_scale; /* [D / 32] max |f| of 32 / FH_BLOCK_MAX */
} fh_state;

/* 127 * 256 + 127: the largest integer whose two halves, each rounded to nearest, are both signed bytes.  So the byte products of VNNI
 * (unsigned times signed) take the row + 128 as the unsigned side, and what that adds, 128 * sum, is known once a state. */
enum { FH_STATE_MAX = 32639 };

/* Bytes that fh_state_quantize needs for one state; the room is 64-byte aligned. */
static inline size_t fh_state_bytes(size_t d) { return 5 * fh_round_up(d, 128); }
/* Fill *s from x [d], finite.  x is borrowed. */
void fh_state_quantize(fh_state *s, const float *x, size_t d, void *room);

/* The same for FH_Q8_0 rows: x [d], d a multiple of 32, rounded a block at a time, to half a 32767th of the block's largest.  Of a block below 3.9e-34
 * all are 0; one that has an infinity or NaN makes every product NaN. */
enum { FH_BLOCK_MAX = 32767 };
static inline size_t fh_state_blocks_bytes(size_t d) { return d / FH_Q8_VALUES * (FH_Q8_VALUES * sizeof(int16_t) + sizeof(float)); }
void fh_state_blocks(fh_state *s, const float *x, size_t d, void *room); /* room is 4-byte aligned */

/* out[s * ldo + r] = rows[r] . states[s], for n rows and m states.  Rows may lie anywhere, unaligned; nothing is read past
 * element d.  rows [n + 1]: the last is what the caller will ask for next (any address: it is prefetched, not read).  scales [n]: int8
 * rows only. */
typedef void fh_dot(const void *const *rows, const float *scales, size_t n, size_t d, const fh_state *const *states, size_t m,
                    float *out, size_t ldo);

/* The same for int4 rows, whole lines of 64 bytes: byte j of line l holds element 128 l + j in its low half and element 128 l + 64 + j in its
 * high half, two's complement; past element d are zeros.  scales [n + 1]: where each row's begin, bf16, one for each group of 32. */
typedef void fh_dot_groups(const void *const *rows, const void *const *scales, size_t n, size_t d, const fh_state *const *states, size_t m,
                           float *out, size_t ldo);
enum { FH_LINE_VALUES = 128 };

typedef struct fh_kernels fh_kernels;
struct fh_kernels {
    const char *name;         /* "ref", "avx2", "avx512", "neon": what FH_ISA says */
    const char *variant;      /* told apart within a name: "vnni", "dotprod" or "" */
    fh_dot *dot[FH_I8 + 1];   /* by encoding */
    fh_dot *q8;               /* FH_Q8_0 rows; d is a multiple of 32 */
    fh_dot *q8_rounded;       /* the same with one state, rounded by fh_state_blocks (m is 1) */
    fh_dot_groups *groups;    /* int4 rows */
    const fh_kernels *cached; /* the same bits, faster where rows come from a cache and slower where they come from memory; NULL: no such */
};

extern const fh_kernels fh_kernels_ref;
#if defined(__x86_64__)
extern const fh_kernels fh_kernels_avx2, fh_kernels_avx512, fh_kernels_avx512_vnni;
#elif defined(__aarch64__)
extern const fh_kernels fh_kernels_neon, fh_kernels_neon_dotprod;
#endif

fh_dot_groups fh_dot_i4_ref, fh_dot_i4_avx2, fh_dot_i4_avx512, fh_dot_i4_avx512_vnni, fh_dot_i4_neon, fh_dot_i4_neon_dotprod;
fh_dot fh_dot_q8_ref, fh_dot_q8_avx2, fh_dot_q8_avx512, fh_dot_q8_neon;
fh_dot fh_dot_q8_rounded_ref, fh_dot_q8_rounded_avx2, fh_dot_q8_rounded_avx512, fh_dot_q8_rounded_avx512_cached, fh_dot_q8_rounded_neon;

/* The i-th table that this CPU can run, slowest first; NULL past the last. */
const fh_kernels *fh_kernels_at(size_t i);
/* The best table of this CPU (isa NULL or ""), or the one asked for.  FH_EUSAGE: no such name; FH_EUNSUPPORTED: not this CPU. */
fh_status fh_kernels_choose(const fh_kernels **out, const char *isa, fh_err *err);

/* Of products without a head, which cannot report: FH_ISA where it names kernels that run here, else the best.  Decided once. */
const fh_kernels *fh_kernels_shared(void);
/* The same kernels for float rows of so many bytes that are read again and again: k->cached where they stay in the last cache. */
const fh_kernels *fh_kernels_for(const fh_kernels *k, uint64_t bytes);

/* A state that has been rounded by fh_state_blocks is multiplied so with FH_Q8_0 rows, if it is alone.
 * Some rows of a matrix: out[s * ldo + i] = row (index ? index[i] : first + i) . states[s], i < n.  scales: of all rows, float32 [rows] for int8,
 * bf16 [rows, groups] for int4, else NULL. */
void fh_dots(const fh_kernels *k, const fh_rows *rows, const void *scales, const uint32_t *index, size_t first, size_t n,
             const fh_state *const *states, size_t m, float *out, size_t ldo);

/* Bytes by which rows are prefetched; past the end of one goes on in the next.  The processor's own prefetch does not follow from one
 * cluster to another, and lags where a row is read faster than it comes.  Measured: docs/decisions/0007. */
enum { FH_AHEAD = 256 };
/* Bring the first bytes of the row with which the next call of fh_dots begins: a kernel knows nothing past its own rows. */
static inline void fh_dots_next(const fh_rows *rows, size_t r)
{
    uintptr_t p = (uintptr_t)fh_row(rows, r);
    for (size_t i = 0; i < FH_AHEAD; i += 64) __builtin_prefetch((const char *)(p + i));
}

/* From here on only for the tables themselves. */

/* Values of a row beyond which a state leaves no room for rows in a first-level cache of 32 KiB, and comes from the second for every row: several
 * rows are then multiplied by what was loaded once.  GB/s of one thread on Zen 4, row after row and four rows at once, plain reading 32: bf16 of
 * 2048 values 30 and 28, of 4096 28 and 32, of 8192 13 and 28; Q8_0 of 4096 two rows at once 17, four 20.5. */
enum { FH_LONG = 2048 };

/* Bytes by which rows that stayed in the last cache are brought into the second beyond the next four: that cache is shared with others, and four
 * short rows are too near.  16384 rows of 256 bf16 values, one thread: a token takes 0.72 of the time without, at 16 and 32 KiB the same. */
enum { FH_CACHED_AHEAD = 8192 };

/* Do n rows of so many bytes, and what is asked for next, seem to lie one behind the other, over more than `above` bytes (64 KiB from memory, which most
 * clusters are not)?  Then the processor's own prefetch keeps up, and ours only takes its place in the queues.  Only ends are looked at: nothing
 * but speed may depend on it. */
static inline bool fh_straight(const void *const *rows, size_t n, size_t bytes, size_t above)
{
    uintptr_t last = (uintptr_t)rows[n - 1], next = (uintptr_t)rows[n];
    return n * bytes > above && last - (uintptr_t)rows[0] == (n - 1) * bytes && (next == last || next - last == bytes);
}

/* FH_LONG for such rows.  Of the rate of what other rows get (from memory, one thread of a Zen 4, in turns), bf16 of 576, 1024, 2048, 3072 and
 * 8192 values: 1.08, 1.28, 1.14, 1.23 and 1.06; float32 and float16 alike; AVX2 1.06, 1.01, 1.00, 1.11.
 * From a cache eight at once: bf16 of 256 to 1024 values 1.16, float32 1.05 to 0.95, float16 0.97, which is left as it was. */
enum { FH_LONG_STRAIGHT = 3072 };

/* A table's dot product of float rows, from its own float_rows(type, side by side, ...), and float_straight for rows that lie so: rows of more than
 * `from` values are side by side.  0: those that come from a cache. */
#define FH_FLOAT_DOT(target, name, type, from)                                                                               \
    target static void name(const void *const *rows, const float *scales, size_t n, size_t d, const fh_state *const *states, \
                            size_t m, float *out, size_t ldo)                                                                \
    {                                                                                                                        \
        if (m == 1 && n && ((from) || (type) != FH_F16) && fh_straight(rows, n, fh_row_bytes(type, d), (from) ? 1 << 16 : 0)) \
            float_straight(type, !(from), rows, n, d, states, out);                                                          \
        else if (d > (from)) float_rows(type, true, rows, n, d, states, m, out, ldo);                                        \
        else float_rows(type, false, rows, n, d, states, m, out, ldo);                                                       \
    }

static inline float fh_i8_result(int64_t total, float row_scale, double state_scale)
{
    return (float)((double)total * (double)row_scale * state_scale);
}

#endif
