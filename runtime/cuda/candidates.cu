/* candidates.cu: the clusters whose centres are nearest to rows of eight bits, for a clustering's swaps and balancing.
 *
 *   score [n, K] = (float)(rows [n, ld] . centres [K, ld]) * scale [K] * by [n] + bias [K]     of each row the `want` largest, ties to the smaller number
 *
 * A block takes 128 rows and walks over all clusters, 128 at a time: products of tiles that lie in shared memory, four bytes of a row a word, word after
 * word (pitch 132: still aligned to 16 bytes, and what is stored meets a bank twice instead of four times), two stages of 16 words so that one barrier a
 * stage is enough; a thread sums 8 rows by 8 clusters. Then a warp a row looks for scores that pass the row's bar, and puts them into its list of 64 keys
 * (value, number), two a lane. Nothing but the lists leaves the multiprocessor: the score matrix is never stored.
 *
 * Products are sums of integers and keys are different, so there is one answer, the CPU's (cluster/nearest.c), in whatever order anything comes.
 *
 * __dp4a, not tensor cores: 128256 x 2048 by K = 8016 is 2.1e12 products, which 132 multiprocessors at 1.7 GHz do in 37 ms at best; three or four such searches
 * are a few hundredths of what the clustering may take, and a mistake in the layout of matrix fragments is one that the host emulation cannot see. */
#include "runtime/cuda/private.cuh"

enum : uint32_t {
    CAND_THREADS = 256, CAND_WARPS = CAND_THREADS / 32,
    CAND_SIDE = 128, CAND_WORDS = 16, CAND_PITCH = CAND_SIDE + 4, CAND_STAGE = 2 * CAND_WORDS * CAND_PITCH, /* words: rows, then clusters */
    CAND_HALF = CAND_SIDE / 2,
    CAND_LIST = 64,
    CAND_AT_ONCE = 32768 /* rows of one launch: 256 blocks, two a multiprocessor on the devices that this is for */
};
static_assert(2 * CAND_STAGE == CAND_HALF * CAND_PITCH, "scores of half a tile lie where its two stages were");

struct candidate_params {
    const int8_t *rows, *centres;
    const float *by, *scale, *bias;
    const uint32_t *which, *but;     /* [n] or NULL */
    uint32_t first, n, want, k, quads; /* quads: 16 bytes of a row */
    fh_u64 *lists;                   /* [n, CAND_LIST] */
    int32_t *out; float *score;      /* [n, want]; score may be NULL */
};

/* ---- products ---------------------------------------------------------------------------------------------------------- */

/* What a thread brings of a stage: 16 bytes of two rows, and of two clusters. */
struct brought { int4 row[2], cluster[2]; };

static __device__ int4 sixteen(const int8_t *from, bool there)
{
    if (there) return __ldg(reinterpret_cast<const int4 *>(from));
    int4 zeros = {0, 0, 0, 0};
    return zeros;
}

static __device__ brought bring(const candidate_params &c, const uint32_t *number, uint32_t block_row, uint32_t block_cluster, uint32_t stage)
{
    brought b;
    uint32_t quad = 4 * stage + threadIdx.x % 4;
    size_t ld = 16 * static_cast<size_t>(c.quads), at = 16 * static_cast<size_t>(quad);
    FH_UNROLL(2)
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t side = threadIdx.x / 4 + i * CAND_HALF, cluster = block_cluster + side;
        b.row[i] = sixteen(c.rows + number[i] * ld + at, block_row + side < c.n && quad < c.quads);
        b.cluster[i] = sixteen(c.centres + cluster * ld + at, cluster < c.k && quad < c.quads);
    }
    return b;
}

static __device__ void put(int *to, uint32_t side, const int4 &v)
{
    int *word = to + 4 * (threadIdx.x % 4) * CAND_PITCH + side;
    word[0] = v.x, word[CAND_PITCH] = v.y, word[2 * CAND_PITCH] = v.z, word[3 * CAND_PITCH] = v.w;
}

static __device__ void put_stage(int *stage, const brought &b)
{
    FH_UNROLL(2)
    for (uint32_t i = 0; i < 2; i++) {
        put(stage, threadIdx.x / 4 + i * CAND_HALF, b.row[i]);
        put(stage + CAND_WORDS * CAND_PITCH, threadIdx.x / 4 + i * CAND_HALF, b.cluster[i]);
    }
}

/* Four rows (or clusters) from 4 * t on, and four more half a side further. */
static __device__ void eight(int *out, const int *word, uint32_t t)
{
    int4 a = *reinterpret_cast<const int4 *>(word + 4 * t), b = *reinterpret_cast<const int4 *>(word + CAND_HALF + 4 * t);
    out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w, out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
}

static __device__ void multiply(const int *stage, int (&sum)[8][8])
{
    FH_UNROLL(2) /* more spills registers: two blocks a multiprocessor leave 128 of them */
    for (uint32_t w = 0; w < CAND_WORDS; w++) {
        int row[8], cluster[8];
        eight(row, stage + w * CAND_PITCH, threadIdx.x / 16);
        eight(cluster, stage + (CAND_WORDS + w) * CAND_PITCH, threadIdx.x % 16);
        FH_UNROLL(8)
        for (uint32_t i = 0; i < 8; i++) {
            FH_UNROLL(8)
            for (uint32_t j = 0; j < 8; j++) sum[i][j] = __dp4a(row[i], cluster[j], sum[i][j]);
        }
    }
}

/* ---- lists --------------------------------------------------------------------------------------------------------------- */

/* A key into a list that a warp holds, 32 e + lane in key [e]; what falls off its end is lost. */
static __device__ void insert(fh_u64 (&key)[2], fh_u64 x)
{
    uint32_t lane = threadIdx.x % 32;
    uint32_t at = static_cast<uint32_t>(__popc(__ballot_sync(EVERY_LANE, key[0] < x)) + __popc(__ballot_sync(EVERY_LANE, key[1] < x)));
    fh_u64 before = __shfl_up_sync(EVERY_LANE, key[0], 1), behind = __shfl_up_sync(EVERY_LANE, key[1], 1), last = __shfl_sync(EVERY_LANE, key[0], 31);
    if (lane == 0) behind = last;
    if (lane + 32 >= at) key[1] = lane + 32 == at ? x : behind;
    if (lane >= at) key[0] = lane == at ? x : before;
}

/* Scores [CAND_SIDE] of one row, of the clusters from `base` on, into its list: by one warp.  *bar: the worst key of the best `want`. */
static __device__ void look(const candidate_params &c, const float *score, uint32_t row, uint32_t base, fh_u64 *bar)
{
    uint32_t lane = threadIdx.x % 32, but = c.but ? c.but[row] : c.k;
    fh_u64 *list = c.lists + static_cast<size_t>(row) * CAND_LIST, limit = *bar, mine[2] = {FH_NO_KEY, FH_NO_KEY};
    bool loaded = false;
    for (uint32_t i = lane; i < CAND_SIDE; i += 32) {
        float s = settle(score[i]); /* NaN counts as -INFINITY, which is never among the best */
        uint32_t cluster = base + i;
        fh_u64 key = key_of(s, cluster);
        unsigned pass = __ballot_sync(EVERY_LANE, cluster < c.k && cluster != but && s > rising(0xff800000u) && key < limit);
        if (pass && !loaded) mine[0] = list[lane], mine[1] = list[lane + 32], loaded = true;
        for (; pass; pass &= pass - 1) {
            fh_u64 x = __shfl_sync(EVERY_LANE, key, static_cast<unsigned>(__ffsll(pass)) - 1);
            if (x >= limit) continue;
            insert(mine, x);
            limit = __shfl_sync(EVERY_LANE, c.want > 32 ? mine[1] : mine[0], (c.want - 1) % 32);
        }
    }
    if (!loaded) return;
    list[lane] = mine[0], list[lane + 32] = mine[1];
    __syncwarp();
    if (lane == 0) *bar = limit;
    __syncwarp();
}

/* ---- the kernel ------------------------------------------------------------------------------------------------------------ */

static __global__ void __launch_bounds__(CAND_THREADS, 2) candidates(candidate_params c)
{
    int *stages = reinterpret_cast<int *>(fh_shared());
    float *scores = reinterpret_cast<float *>(stages);
    fh_u64 *bars = reinterpret_cast<fh_u64 *>(stages + 2 * CAND_STAGE);
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    uint32_t block_row = blockIdx.x * CAND_SIDE, n_stages = (c.quads + 3) / 4, number[2];
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t row = min(block_row + threadIdx.x / 4 + i * CAND_HALF, c.n - 1);
        number[i] = c.which ? c.which[row] : c.first + row;
    }
    /* Row r of the block is warp r % 8's, here and below: what it leaves in bars and lists no other warp reads. */
    for (uint32_t r = warp; r < CAND_SIDE; r += CAND_WARPS) {
        if (lane == 0) bars[r] = FH_NO_KEY;
        if (block_row + r >= c.n) continue;
        for (uint32_t e = lane; e < CAND_LIST; e += 32) c.lists[static_cast<size_t>(block_row + r) * CAND_LIST + e] = FH_NO_KEY;
    }
    __syncwarp();
    for (uint32_t base = 0; base < c.k; base += CAND_SIDE) {
        int sum[8][8] = {};
        put_stage(stages, bring(c, number, block_row, base, 0));
        __syncthreads();
        for (uint32_t s = 0; s < n_stages; s++) {
            bool more = s + 1 < n_stages;
            brought next = {};
            if (more) next = bring(c, number, block_row, base, s + 1);
            multiply(stages + s % 2 * CAND_STAGE, sum);
            if (more) put_stage(stages + (s + 1) % 2 * CAND_STAGE, next);
            __syncthreads();
        }
        FH_UNROLL(2)
        for (uint32_t half = 0; half < 2; half++) {
            FH_UNROLL(4)
            for (uint32_t i = 0; i < 4; i++) {
                uint32_t r = 4 * ty + i, row = min(block_row + half * CAND_HALF + r, c.n - 1);
                float by = c.by[c.which ? c.which[row] : c.first + row];
                FH_UNROLL(8)
                for (uint32_t j = 0; j < 8; j++) {
                    uint32_t column = j / 4 * CAND_HALF + 4 * tx + j % 4, cluster = min(base + column, c.k - 1);
                    scores[r * CAND_PITCH + column] = static_cast<float>(sum[4 * half + i][j]) * __ldg(c.scale + cluster) * by + __ldg(c.bias + cluster);
                }
            }
            __syncthreads();
            for (uint32_t r = warp; r < CAND_HALF; r += CAND_WARPS) {
                uint32_t row = block_row + half * CAND_HALF + r;
                if (row < c.n) look(c, scores + r * CAND_PITCH, row, base, bars + half * CAND_HALF + r);
            }
            __syncthreads();
        }
    }
    for (uint32_t r = warp; r < CAND_SIDE && block_row + r < c.n; r += CAND_WARPS) {
        size_t row = block_row + r;
        for (uint32_t e = lane; e < c.want; e += 32) {
            fh_u64 key = c.lists[row * CAND_LIST + e];
            bool none = key == FH_NO_KEY;
            c.out[row * c.want + e] = none ? -1 : static_cast<int32_t>(key & 0xffffffffu);
            if (c.score) c.score[row * c.want + e] = none ? rising(0xff800000u) : rising(static_cast<uint32_t>(key >> 32));
        }
    }
}

/* ---- on the host's side ------------------------------------------------------------------------------------------------- */

struct fh_cuda_clusterer {
    fh_cuda_device *device;
    size_t n, ld, k, centres_there;  /* room; centres that are there */
    buffer rows, by, centres, scale, bias, which, but, lists, out, score;
    uint64_t bytes;
};

static fh_status make_room(fh_cuda_clusterer *c, fh_err *err)
{
    fh_cuda_device *d = c->device;
    size_t some = fh_min(c->n, static_cast<size_t>(CAND_AT_ONCE));
    struct { buffer *b; size_t bytes; } const parts[] = {
        {&c->rows, c->n * c->ld}, {&c->by, c->n * sizeof(float)}, {&c->centres, c->k * c->ld}, {&c->scale, c->k * sizeof(float)},
        {&c->bias, c->k * sizeof(float)}, {&c->which, some * sizeof(uint32_t)}, {&c->but, some * sizeof(uint32_t)},
        {&c->lists, some * CAND_LIST * sizeof(fh_u64)}, {&c->out, some * CAND_LIST * sizeof(int32_t)}, {&c->score, some * CAND_LIST * sizeof(float)}};
    uint64_t need = 0;
    for (const auto &p : parts) need += p.bytes;
    fh_status rc = fh_cuda_fits(d, "the clustering", need, err);
    for (const auto &p : parts)
        if (rc == FH_OK) rc = fh_cuda_room(d, &c->bytes, p.b, p.bytes, err);
    return rc;
}

void fh_cuda_clusterer_free(fh_cuda_clusterer *c)
{
    if (!c) return;
    buffer *all[] = {&c->rows, &c->by, &c->centres, &c->scale, &c->bias, &c->which, &c->but, &c->lists, &c->out, &c->score};
    cudaSetDevice(c->device->ordinal);
    for (buffer *b : all) cudaFree(b->p);
    c->device->host->release(c);
}

fh_status fh_cuda_clusterer_new(fh_cuda_clusterer **out, fh_cuda_device *d, size_t n, size_t ld, size_t k, fh_err *err)
{
    size_t bytes;
    if (!n || !k || !ld || ld % 16 || n > INT32_MAX || k > INT32_MAX || !fh_mul(fh_max(n, k), ld, &bytes))
        return d->host->fail(err, FH_EUSAGE, "clustering of %zu rows of %zu bytes into %zu: no such shape", n, ld, k);
    fh_cuda_clusterer *c = static_cast<fh_cuda_clusterer *>(d->host->allocate(1, sizeof *c));
    if (!c) return d->host->fail(err, FH_ENOMEM, "out of memory");
    c->device = d, c->n = n, c->ld = ld, c->k = k;
    fh_status rc = make_room(c, err);
    if (rc < 0) fh_cuda_clusterer_free(c);
    else *out = c;
    return rc;
}

uint64_t fh_cuda_clusterer_bytes(const fh_cuda_clusterer *c) { return c->bytes; }

static fh_status beyond(const fh_cuda_device *d, fh_err *err) { return d->host->fail(err, FH_EUSAGE, "clustering: more than there is room for on the device"); }

static fh_status send(fh_cuda_device *d, void *to, const void *from, size_t bytes, fh_err *err)
{
    TRY(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, d->stream), "copying rows and centres");
    return FH_OK;
}

static fh_status put_rows(void *ctx, size_t first, size_t n, size_t ld, const int8_t *rows, const float *by, fh_err *err)
{
    fh_cuda_clusterer *c = static_cast<fh_cuda_clusterer *>(ctx);
    fh_cuda_device *d = c->device;
    fh_status rc;
    if (ld != c->ld || first > c->n || n > c->n - first) return beyond(d, err);
    TRY(cudaSetDevice(d->ordinal), "choosing it");
    if ((rc = send(d, static_cast<int8_t *>(c->rows.p) + first * ld, rows, n * ld, err)) < 0 ||
        (rc = send(d, static_cast<float *>(c->by.p) + first, by, n * sizeof *by, err)) < 0) return rc;
    TRY(cudaStreamSynchronize(d->stream), "copying rows and centres");
    return FH_OK;
}

static fh_status put_centres(void *ctx, size_t k, size_t ld, const int8_t *centres, const float *scale, const float *bias, fh_err *err)
{
    fh_cuda_clusterer *c = static_cast<fh_cuda_clusterer *>(ctx);
    fh_cuda_device *d = c->device;
    fh_status rc;
    if (ld != c->ld || !k || k > c->k) return beyond(d, err);
    TRY(cudaSetDevice(d->ordinal), "choosing it");
    if ((rc = send(d, c->centres.p, centres, k * ld, err)) < 0 || (rc = send(d, c->scale.p, scale, k * sizeof *scale, err)) < 0 ||
        (rc = send(d, c->bias.p, bias, k * sizeof *bias, err)) < 0) return rc;
    TRY(cudaStreamSynchronize(d->stream), "copying rows and centres");
    c->centres_there = k;
    return FH_OK;
}

static candidate_params params_of(const fh_cuda_clusterer *c, size_t first, size_t n, size_t want)
{
    candidate_params p = {};
    p.rows = static_cast<int8_t *>(c->rows.p), p.centres = static_cast<int8_t *>(c->centres.p);
    p.by = static_cast<float *>(c->by.p), p.scale = static_cast<float *>(c->scale.p), p.bias = static_cast<float *>(c->bias.p);
    p.first = static_cast<uint32_t>(first), p.n = static_cast<uint32_t>(n), p.want = static_cast<uint32_t>(want), p.k = static_cast<uint32_t>(c->centres_there);
    p.quads = static_cast<uint32_t>(c->ld / 16);
    p.lists = static_cast<fh_u64 *>(c->lists.p), p.out = static_cast<int32_t *>(c->out.p);
    return p;
}

static fh_status start(fh_cuda_device *d, const candidate_params &p, fh_err *err)
{
    size_t shared = 2 * CAND_STAGE * sizeof(int) + CAND_SIDE * sizeof(fh_u64);
    TRY(fh_launch(candidates, (p.n + CAND_SIDE - 1) / CAND_SIDE, CAND_THREADS, shared, d->stream, p, false), "looking for near clusters");
    return FH_OK;
}

static fh_status search(void *ctx, const fh_cluster_search *s, fh_err *err)
{
    fh_cuda_clusterer *c = static_cast<fh_cuda_clusterer *>(ctx);
    fh_cuda_device *d = c->device;
    size_t cells = s->n * s->want;
    fh_status rc;
    bool inside = s->rows || (s->first <= c->n && s->n <= c->n - s->first);
    if (!s->n || s->n > CAND_AT_ONCE || !s->want || s->want > CAND_LIST || !inside || !c->centres_there) return beyond(d, err);
    for (size_t i = 0; s->rows && i < s->n; i++)
        if (s->rows[i] >= c->n) return beyond(d, err);
    candidate_params p = params_of(c, s->first, s->n, s->want);
    TRY(cudaSetDevice(d->ordinal), "choosing it");
    if (s->rows) {
        if ((rc = send(d, c->which.p, s->rows, s->n * sizeof *s->rows, err)) < 0) return rc;
        p.which = static_cast<uint32_t *>(c->which.p);
    }
    if (s->but) {
        if ((rc = send(d, c->but.p, s->but, s->n * sizeof *s->but, err)) < 0) return rc;
        p.but = static_cast<uint32_t *>(c->but.p);
    }
    if (s->score) p.score = static_cast<float *>(c->score.p);
    if ((rc = start(d, p, err)) < 0) return rc;
    TRY(cudaMemcpyAsync(s->out, p.out, cells * sizeof *s->out, cudaMemcpyDeviceToHost, d->stream), "copying near clusters");
    if (s->score) TRY(cudaMemcpyAsync(s->score, p.score, cells * sizeof *s->score, cudaMemcpyDeviceToHost, d->stream), "copying near clusters");
    TRY(cudaStreamSynchronize(d->stream), "looking for near clusters");
    return FH_OK;
}

fh_cluster_device fh_cuda_clusterer_use(fh_cuda_clusterer *c) { return {c, CAND_AT_ONCE, put_rows, put_centres, search}; }

struct timing { const fh_cuda_clusterer *c; size_t n, want; };

static fh_status enqueue(void *ctx, fh_err *err)
{
    const timing *t = static_cast<timing *>(ctx);
    fh_status rc = FH_OK;
    for (size_t i = 0; rc == FH_OK && i < t->n; i += CAND_AT_ONCE)
        rc = start(t->c->device, params_of(t->c, i, fh_min(static_cast<size_t>(CAND_AT_ONCE), t->n - i), t->want), err);
    return rc;
}

fh_status fh_cuda_clusterer_time(fh_cuda_clusterer *c, size_t n, size_t want, size_t runs, double *seconds, fh_err *err)
{
    fh_cuda_device *d = c->device;
    stopwatch k = {};
    timing t = {c, n, want};
    if (!n || n > c->n || !want || want > CAND_LIST || !c->centres_there) return beyond(d, err);
    TRY(cudaSetDevice(d->ordinal), "choosing it");
    fh_status rc = fh_cuda_clock(d, &k, enqueue, &t, runs, seconds, err);
    fh_cuda_clock_free(&k);
    return rc;
}
