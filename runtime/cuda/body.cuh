/* body.cuh: what the files of the device body share: weights, operations, and their launchers.
 *
 * Rows of float32 in device memory are padded to whole groups of 8 with zeros, and so are the rows of weights: no load needs to ask where a row ends. */
#ifndef FH_BODY_CUH
#define FH_BODY_CUH

#include "runtime/cuda/private.cuh"

static inline __host__ __device__ uint32_t body_pad(size_t n) { return head_up(static_cast<uint32_t>(n), 8); }

/* ---- products (product.cu) ------------------------------------------------------------------------------------- */

/* W [out, in] by rows; of FH_Q8_0 the int8 values, and a float16 scale for each 32 apart. */
struct device_linear {
    const unsigned char *data;
    const uint16_t *scales;      /* [out, in / 32] of FH_Q8_0 */
    const float *bias;           /* [out] or NULL */
    uint32_t out, in, stride;    /* stride: bytes */
    fh_dtype dtype;
};

/* y [n, out] = x [n, in] W^T + b, and then as `then` says, into out [n, ld]. */
struct product_params {
    device_linear w, gate;       /* gate: with FH_THEN_GATE */
    const float *x; uint32_t ldx, n;
    float *out; uint32_t ld;
    fh_then then; fh_act act;
    bool onto;                   /* FH_THEN_ACT: times what is there */
    uint16_t *halves; float *results; /* for a library's product: [2, n, ldx] and [2, n, out]; NULL: there is none */
};

/* ---- rows (rows.cu) ----------------------------------------------------------------------------------------------- */

/* to = norm(from), or to += norm(from): [n, ld], d values each.  *strange becomes 1 where a result is not finite (NULL: not looked at). */
struct norm_params { const float *from; float *to; const float *weight, *bias; uint32_t n, d, ld; float eps; bool layer_norm, add; uint32_t *strange; };

/* Queries and keys normed and rotated; keys and values into the cache. */
struct place_params {
    const float *qkv; uint32_t ld;
    uint32_t n, heads, kv_heads, d, dims;  /* dims: rotated */
    uint32_t q_first, q_step, k_first, k_step, v_first, v_step;
    const float *q_norm, *k_norm; float eps;
    const float *cos, *sin; uint32_t angle_step; /* of row 0; floats from row to row */
    const uint32_t *position, *sequence;   /* [n] of each row */
    void *const *pages; uint32_t most_pages;
    size_t offset;                         /* of the layer in a page, in bytes */
    fh_pages layout;
    float *q;                              /* [n, heads, d] */
};

/* ---- attention (attention.cu, prefill.cu) ------------------------------------------------------------------------ */

/* A page holds a block of [16, d] for the keys of each key head and then one for the values of each, `offset` bytes after its beginning; entry p of a
 * sequence's table is where its page p begins. */
struct attention_params {
    const float *q;              /* [rows, heads, d] */
    void *const *pages;          /* [n, most_pages] */
    const uint32_t *lengths;     /* [n] keys, at least 1; the query is the last of them */
    const uint32_t *rows;        /* [n] which row of q and out a sequence's query is; NULL: 0, 1, 2, ... */
    const uint32_t *tables;      /* [n] which of the tables is a sequence's; NULL: 0, 1, 2, ... */
    uint32_t n, heads, kv_heads, d, most_pages, window; /* window 0: all keys */
    uint32_t splits, split_pages;
    size_t offset;
    fh_pages layout;             /* its type: f32, f16, bf16 or int8 */
    float scale, softcap, constant;
    bool unified;
    float *partial;              /* [n, heads, splits] of d + 2: maximum, sum of weights, weighted values */
    fh_u64 *recomputed;          /* [1] splits, a query each */
    float *out;                  /* [rows, heads * d], `ld` floats a row */
    uint32_t ld;
};

/* Some queries of one sequence that follow each other, with all keys up to each. */
struct prefill_tile { uint32_t row, rows, first, sequence; };
struct prefill_params {
    const float *q;              /* [n, heads, d] */
    void *const *pages; uint32_t most_pages;
    const prefill_tile *tiles; uint32_t n_tiles;
    uint32_t heads, kv_heads, d, window;
    size_t offset;
    fh_pages layout;
    float scale, softcap;
    float *out; uint32_t ld;     /* [n, ld] */
};
enum : uint32_t { PREFILL_ROWS = 32 };  /* queries, of positions and of heads that share a key head, that a block takes */
/* Positions of a tile. */
static inline uint32_t prefill_positions(uint32_t group) { return group >= PREFILL_ROWS ? 1 : PREFILL_ROWS / group; }

enum : uint32_t { ATT_MOST_DIM = 512, ATT_PAGE = FH_PAGE_TOKENS };

/* Value j of key (or of a key's value) `key` in a block. */
static __device__ __forceinline__ float block_value(const fh_pages &is, const unsigned char *block, uint32_t d, uint32_t key, uint32_t j)
{
    size_t i = static_cast<size_t>(key) * d + j;
    if (is.type == FH_F32) return reinterpret_cast<const float *>(block)[i];
    if (is.type == FH_I8) {
        float scale = reinterpret_cast<const float *>(block)[key * ((d + FH_GROUP - 1) / FH_GROUP) + j / FH_GROUP];
        return static_cast<float>(reinterpret_cast<const int8_t *>(block + is.scale_bytes)[i]) * scale;
    }
    uint32_t h = reinterpret_cast<const uint16_t *>(block)[i];
    return is.type == FH_BF16 ? __uint_as_float(h << 16) : fh_f16_value(h);
}

static __device__ __forceinline__ const unsigned char *block_at(const fh_pages &is, const void *page, size_t offset, uint32_t block)
{
    return static_cast<const unsigned char *>(page) + offset + block * is.block_bytes;
}

/* ---- launches: nothing is allocated, copied or waited for ----------------------------------------------------------- */

fh_status fh_cuda_norm(fh_cuda_device *d, const norm_params *p, fh_err *err);
fh_status fh_cuda_place(fh_cuda_device *d, const place_params *p, fh_err *err);
fh_status fh_cuda_decode(fh_cuda_device *d, const attention_params *p, fh_err *err);
fh_status fh_cuda_prefill(fh_cuda_device *d, const prefill_params *p, fh_err *err);
/* What a launch of prefill needs is asked for once. */
fh_status fh_cuda_prefill_prepare(fh_cuda_device *d, uint32_t head_dim, fh_err *err);
/* Splits of whole pages of sequences of at most `longest` keys, so many (or as many as asked) that all multiprocessors have a few blocks. */
void fh_cuda_cut(const fh_cuda_device *d, attention_params *p, size_t asked, size_t longest);

/* Which kernel multiplies (product.cu). AUTO: up to 8 rows FEW, else BLAS where it is there, else TILE. One that cannot is AUTO. */
typedef enum product_kind { PRODUCT_AUTO, PRODUCT_FEW, PRODUCT_TILE, PRODUCT_BLAS } product_kind;
enum : uint32_t { PRODUCT_FEW_ROWS = 8 };
bool fh_cuda_product_can(product_kind kind, const product_params *p);
fh_status fh_cuda_product(fh_cuda_device *d, product_kind kind, const product_params *p, fh_err *err);

#endif
