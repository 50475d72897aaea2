/* runtime/cuda/head_kernels.cuh: the FlashHead head on the device.
 *
 *   scores [batch, K] = C h          stage 1, every centroid
 *   the P best clusters of each      radix selection by 64-bit keys, one block a state
 *   logits of their rows             stage 2, with the rows that are always candidates
 *   the best of these, reranked      radix selection again, exact rows, ranks
 *
 * All of it is one kernel whose blocks wait for each other between the steps (head_together), or four kernels (head_stage1 ...) where a
 * device does not start all blocks at once.  Results are those of the CPU's definition (runtime/kernels.h, runtime/head_order.c) bit for bit,
 * soft-capped logits apart (tanhf): an octet of lanes takes one row, lane t of it the sums that the definition numbers 2 t and 2 t + 1, and adds them
 * by the same tree.  So nothing depends on the number of blocks, on the batch, or on which block came first: what the order of atomic additions
 * decides is only where in a list an entry stands, and lists are read by key.
 *
 * A warp reads 4 rows at once, 128 bytes of each (int8) or 32 (16 bits), every sector whole; states lie in shared memory.
 */
#ifndef FH_HEAD_KERNELS_CUH
#define FH_HEAD_KERNELS_CUH

#include "runtime/cuda/head_dots.cuh"

enum : uint32_t { BIN_BITS = 11, BINS = 1u << BIN_BITS };
static_assert(BINS % HEAD_THREADS == 0, "each thread sums the same number of bins");

/* Shared memory: words [64], one key a state, bins, then the states, or while results are made two lists of keys and one state. */
enum : uint32_t { SHARED_WORDS = 64, SHARED_FIXED = 4 * SHARED_WORDS + 8 * FH_CUDA_BATCH + 4 * BINS + 4 * HEAD_WARPS * FH_CUDA_BATCH };
struct head_shared { uint32_t *words, *bins; fh_u64 *best; float *partial; unsigned char *rest; };

static inline __host__ __device__ uint32_t finish_bytes(uint32_t kept, uint32_t hidden)
{
    return 16 * head_up(kept, 2) + layout_for(hidden, true, false, false).bytes;
}

static __device__ head_shared shared_parts(void)
{
    unsigned char *at = fh_shared();
    head_shared m;
    m.words = reinterpret_cast<uint32_t *>(at), at += 4 * SHARED_WORDS;
    m.best = reinterpret_cast<fh_u64 *>(at), at += 8 * FH_CUDA_BATCH;
    m.bins = reinterpret_cast<uint32_t *>(at), at += 4 * BINS;
    m.partial = reinterpret_cast<float *>(at), at += 4 * HEAD_WARPS * FH_CUDA_BATCH;
    m.rest = at;
    return m;
}

static __device__ float logit_of(const head_params &c, uint32_t id, float dot)
{
    if (c.bias) dot += c.bias[id];
    if (c.softcap > 0) dot = c.softcap * tanhf(dot / c.softcap);
    return settle(dot);
}

/* ---- selecting ------------------------------------------------------------------------------------------------------- */

/* The bin in which what comes in order reaches `need`; by all threads.  T counts keys, or sums their masses. */
template <class T> struct found_bin { uint32_t bin; T before, in; };
template <class T, uint32_t BITS> static __device__ found_bin<T> find_bin(const head_shared &m, const T *bins, T need)
{
    enum : uint32_t { EACH = (1u << BITS) / HEAD_THREADS };
    static_assert((1u << BITS) % HEAD_THREADS == 0 && (sizeof(T) << BITS) <= sizeof(uint32_t) * BINS,
                  "each thread sums the same number of bins, and there is room for them");
    T *words = reinterpret_cast<T *>(m.words), sum = 0, upto, before = 0;
    uint32_t tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
    for (uint32_t i = 0; i < EACH; i++) sum += bins[tid * EACH + i];
    upto = sum;
    for (uint32_t step = 1; step < 32; step *= 2) {
        T left = __shfl_up_sync(EVERY_LANE, upto, step);
        if (lane >= step) upto += left;
    }
    if (lane == 31) words[warp] = upto;
    __syncthreads();
    for (uint32_t w = 0; w < warp; w++) before += words[w];
    before += upto - sum;
    if (before < need && need <= before + sum) {
        uint32_t bin = tid * EACH;
        while (before + bins[bin] < need) before += bins[bin++];
        words[HEAD_WARPS] = bin, words[HEAD_WARPS + 1] = before, words[HEAD_WARPS + 2] = bins[bin];
    }
    __syncthreads();
    found_bin<T> f = {static_cast<uint32_t>(words[HEAD_WARPS]), words[HEAD_WARPS + 1], words[HEAD_WARPS + 2]};
    __syncthreads(); /* the words have been read */
    return f;
}

/* A bound: keys that do not exceed it, in order, have together as much mass as is needed, and no fewer of them do; 1 <= need <= the mass of all n different
 * keys. (Keys without mass may lie between the last of these and the bound.) By all threads of the block. */
template <class T, uint32_t BITS, class Keys, class Mass> static __device__ fh_u64 select_mass(const head_shared &m, const Keys &key, const Mass &mass,
                                                                                               uint32_t n, T need)
{
    T *bins = reinterpret_cast<T *>(m.bins);
    fh_u64 prefix = 0;
    for (uint32_t known = 64;;) { /* bits below the prefix */
        uint32_t shift = known > BITS ? known - BITS : 0, mask = (1u << (known - shift)) - 1;
        for (uint32_t i = threadIdx.x; i < 1u << BITS; i += HEAD_THREADS) bins[i] = 0;
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < n; i += HEAD_THREADS) {
            fh_u64 k = key(i);
            if (known == 64 || k >> known == prefix) atomicAdd(&bins[static_cast<uint32_t>(k >> shift) & mask], mass(k));
        }
        __syncthreads();
        found_bin<T> f = find_bin<T, BITS>(m, bins, need);
        prefix = prefix << (known - shift) | f.bin;
        need -= f.before;
        known = shift;
        if (f.in == need || !known) return prefix << known | ((1ull << known) - 1);
    }
}

/* A bound that exactly p of the n different keys do not exceed, 1 <= p <= n. */
template <class Keys> static __device__ fh_u64 select_bound(const head_shared &m, const Keys &key, uint32_t n, uint32_t p)
{
    return select_mass<uint32_t, BIN_BITS>(m, key, [](fh_u64) { return 1u; }, n, p);
}

/* What all threads of the block bring into one word: a sum, or the best or the worst of keys. */
template <class Each> static __device__ fh_u64 gather_u64(const head_shared &m, uint32_t n, fh_u64 begin, const Each &each)
{
    fh_u64 *word = m.best; /* of stage 2, which is over or has not begun */
    __syncthreads();
    if (threadIdx.x == 0) word[0] = begin;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < n; i += HEAD_THREADS) each(i, word);
    __syncthreads();
    return word[0];
}

/* The best of all keys. */
template <class Keys> static __device__ fh_u64 best_key(const head_shared &m, const Keys &key, uint32_t n)
{
    fh_u64 mine = FH_NO_KEY;
    for (uint32_t i = threadIdx.x; i < n; i += HEAD_THREADS) mine = key(i) < mine ? key(i) : mine;
    return gather_u64(m, HEAD_THREADS, FH_NO_KEY, [=](uint32_t, fh_u64 *to) { atomicMin(to, mine); });
}

/* ---- the steps ------------------------------------------------------------------------------------------------------- */

static __device__ void stage1(const head_params &c, const head_shared &m)
{
    uint32_t thread = blockIdx.x * HEAD_THREADS + threadIdx.x, threads = gridDim.x * HEAD_THREADS;
    uint32_t octet = threadIdx.x % 32 / LANES, t = threadIdx.x % LANES;
    for (uint32_t i = thread; i < c.clusters; i += threads) c.probed[i] = 0;
    for (uint32_t i = thread; i < c.batch; i += threads) c.counts[i] = 0, c.chosen[i] = 0, c.best[i] = FH_NO_KEY;
    if (thread == 0) c.counters[0] = 0;
    for (uint32_t first = 0; !c.all && first < c.batch; first += c.tile) {
        uint32_t n = min(c.tile, c.batch - first);
        prepare(c, c.layout, first, n, m.partial, m.rest);
        for (uint32_t four = warp_number(); ROWS * four < c.clusters; four += gridDim.x * HEAD_WARPS) {
            uint32_t row = ROWS * four + octet;
            bool there = row < c.clusters;
            each_dot(c, c.centroids, there ? row : 0, m.rest, everybody(n), t, [&](uint32_t s, float dot) {
                if (there && t == 0) c.falls[static_cast<size_t>(first + s) * c.clusters + row] = falling(settle(dot));
            });
        }
    }
}

/* The P best clusters of state s, with a threshold those of them that are close to the best one (fh_is_close), by one block. */
static __device__ void choose(const head_params &c, const head_shared &m, uint32_t s)
{
    const uint32_t *falls = c.falls + static_cast<size_t>(s) * c.clusters;
    auto key = [=](uint32_t i) { return static_cast<fh_u64>(falls[i]) << 32 | i; };
    fh_u64 bound = c.probes < c.clusters ? select_bound(m, key, c.clusters, c.probes) : FH_NO_KEY, best = c.threshold > 0 ? best_key(m, key, c.clusters) : 0;
    float highest = rising(static_cast<uint32_t>(best >> 32));
    for (uint32_t i = threadIdx.x; i < c.clusters; i += HEAD_THREADS) {
        if (key(i) > bound || (c.threshold > 0 && key(i) != best && !(highest - rising(falls[i]) <= c.threshold))) continue;
        if (c.threshold > 0) atomicAdd(&c.chosen[s], 1u);
        if (!atomicOr(&c.probed[i], 1ull << s)) c.list[atomicAdd(&c.counters[0], 1u)] = i;
    }
}

/* What lies at a position of stage 2: rows of the listed clusters one after another, then the extras. */
struct position { uint32_t slot, id; fh_u64 which; };

static __device__ position position_at(const head_params &c, uint32_t at, uint32_t probed_rows)
{
    position p = {0, FH_NO_TOKEN, 0};
    if (at < probed_rows) {
        uint32_t cluster = c.all ? at / c.cap : c.list[at / c.cap];
        p.slot = cluster * c.cap + at % c.cap;
        p.id = c.token_of[p.slot];
        p.which = c.all ? everybody(c.batch) : c.probed[cluster];
        if (p.id == FH_NO_TOKEN || (c.excluded && c.excluded[p.id])) p.which = 0;
    } else if (at - probed_rows < c.n_extras) {
        p.id = c.extras[at - probed_rows];
        p.slot = c.slot_of[p.id];
        p.which = everybody(c.batch) & ~c.probed[p.slot / c.cap];
    }
    return p;
}

static __device__ bool only_best(const head_params &c) { return c.kept == 1 && !c.rerank && !c.random; }

/* A warp's results for one state, at most one an octet, into its list of candidates. */
static __device__ void append(const head_params &c, uint32_t s, bool mine, fh_u64 key)
{
    uint32_t lane = threadIdx.x % 32, who = __ballot_sync(EVERY_LANE, mine), base = 0;
    if (!who) return;
    if (lane == 0) base = atomicAdd(&c.counts[s], static_cast<uint32_t>(__popc(who)));
    base = __shfl_sync(EVERY_LANE, base, 0);
    if (mine) c.candidates[static_cast<size_t>(s) * c.room + base + static_cast<uint32_t>(__popc(who & ((1u << lane) - 1)))] = key;
}

static __device__ void stage2(const head_params &c, const head_shared &m, bool prepared)
{
    uint32_t octet = threadIdx.x % 32 / LANES, t = threadIdx.x % LANES;
    uint32_t probed_rows = (c.all ? c.clusters : c.counters[0]) * c.cap, positions = probed_rows + c.n_extras;
    for (uint32_t i = threadIdx.x; i < FH_CUDA_BATCH; i += HEAD_THREADS) m.best[i] = FH_NO_KEY;
    for (uint32_t first = 0; first < c.batch; first += c.tile) {
        uint32_t n = min(c.tile, c.batch - first);
        if (prepared && c.batch <= c.tile) __syncthreads();
        else prepare(c, c.layout, first, n, m.partial, m.rest);
        for (uint32_t four = warp_number(); ROWS * four < positions; four += gridDim.x * HEAD_WARPS) {
            position p = position_at(c, ROWS * four + octet, probed_rows);
            fh_u64 mine = p.which >> first & everybody(n), all = mine;
            all |= __shfl_xor_sync(EVERY_LANE, all, 8);
            all |= __shfl_xor_sync(EVERY_LANE, all, 16);
            each_dot(c, c.rows, p.slot, m.rest, all, t, [&](uint32_t s, float dot) {
                bool counts = t == 0 && (mine >> s & 1);
                fh_u64 key = counts ? key_of(logit_of(c, p.id, dot), p.id) : FH_NO_KEY;
                if (!only_best(c)) append(c, first + s, counts, key);
                else if (counts && key < *static_cast<volatile fh_u64 *>(&m.best[first + s])) atomicMin(&m.best[first + s], key);
            });
        }
    }
    __syncthreads();
    for (uint32_t s = threadIdx.x; only_best(c) && s < c.batch; s += HEAD_THREADS)
        if (m.best[s] != FH_NO_KEY) atomicMin(&c.best[s], m.best[s]);
}

/* to [n] = from [n] in order, each by its rank: keys are all different. */
static __device__ void rank_keys(const fh_u64 *from, fh_u64 *to, uint32_t n)
{
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < n; i += HEAD_THREADS) {
        uint32_t rank = 0;
        for (uint32_t j = 0; j < n; j++) rank += from[j] < from[i];
        to[rank] = from[i];
    }
    __syncthreads();
}

/* The first n keys get the logits of the exact rows. */
static __device__ void rescore(const head_params &c, const head_shared &m, uint32_t s, fh_u64 *keys, uint32_t n, unsigned char *state)
{
    uint32_t octet = threadIdx.x / LANES, t = threadIdx.x % LANES;
    state_layout l = layout_for(c.hidden, true, false, false);
    prepare(c, l, s, 1, m.partial, state);
    for (uint32_t first = 0; first < n; first += HEAD_THREADS / LANES) { /* the same turns for every warp */
        uint32_t i = first + octet, id = static_cast<uint32_t>(keys[i < n ? i : 0]);
        const unsigned char *states[1] = {state};
        float dot[1];
        dots<1>(c, l, c.exact, c.exact_by_token ? id : c.slot_of[id], states, t, dot);
        fh_u64 key = key_of(logit_of(c, id, dot[0]), id);
        __syncthreads(); /* all have read keys[0] */
        if (i < n && t == 0) keys[i] = key;
        __syncthreads();
    }
}

/* ---- drawing by chance: fh_sample ---------------------------------------------------------------------------------- */

/* Masses are integers, 2^40 the best one's, so that their sums do not depend on an order; what that rounds away is 2^-41 of the best one's probability a
 * candidate. */
#define MASS_ONE 0x1p40

struct mass_rule { double best, temperature, least; fh_u64 bound; }; /* least: of a weight that counts, min_p */
static __device__ double weight_of(const mass_rule &r, fh_u64 key)
{
    double logit = static_cast<double>(rising(static_cast<uint32_t>(key >> 32)));
    if (key > r.bound || !(logit >= -3.402823466e38)) return 0; /* no candidate at all at -infinity */
    return logit == r.best ? 1 : exp((logit - r.best) / r.temperature);
}
static __device__ fh_u64 mass_of(const mass_rule &r, fh_u64 key)
{
    double w = weight_of(r, key);
    return w < r.least ? 0 : static_cast<fh_u64>(w * MASS_ONE + 0.5);
}

static __device__ fh_u64 draw(const head_params &c, const head_shared &m, uint32_t s, const fh_u64 *keys, uint32_t n)
{
    auto key = [=](uint32_t i) { return keys[i]; };
    mass_rule r = {0, static_cast<double>(c.temperature), 0, FH_NO_KEY};
    auto mass = [&r](fh_u64 k) { return mass_of(r, k); };
    auto total = [&]() { return gather_u64(m, n, 0, [&](uint32_t i, fh_u64 *sum) { fh_u64 w = mass_of(r, keys[i]); if (w) atomicAdd(sum, w); }); };
    fh_u64 best = best_key(m, key, n);
    r.best = static_cast<double>(rising(static_cast<uint32_t>(best >> 32)));
    if (!(r.best >= -3.402823466e38)) return FH_NO_KEY; /* nothing to draw from */
    if (c.top_k && c.top_k < n) r.bound = select_bound(m, key, n, c.top_k);
    if (c.top_p < 1) {
        fh_u64 need = static_cast<fh_u64>(ceil(static_cast<double>(c.top_p) * static_cast<double>(total())));
        r.bound = select_mass<fh_u64, BIN_BITS - 1>(m, key, mass, n, need ? need : 1);
    }
    r.least = static_cast<double>(c.min_p);
    fh_u64 all = total(), need = static_cast<fh_u64>(c.random[s] * static_cast<double>(all)) + 1;
    fh_u64 bound = select_mass<fh_u64, BIN_BITS - 1>(m, key, mass, n, need < all ? need : all);
    return gather_u64(m, n, 0, [&](uint32_t i, fh_u64 *to) { if (keys[i] <= bound && mass_of(r, keys[i])) atomicMax(to, keys[i]); });
}

/* The best `again` of the candidates get the logits of the exact rows, where they stand; all of them are in no order. */
static __device__ void rescore_in_place(const head_params &c, const head_shared &m, uint32_t s, fh_u64 *found, uint32_t n, uint32_t again)
{
    fh_u64 *list = reinterpret_cast<fh_u64 *>(m.rest), *at = list + head_up(c.kept, 2);
    fh_u64 bound = select_bound(m, [=](uint32_t i) { return found[i]; }, n, again);
    if (threadIdx.x == 0) m.words[0] = 0;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < n; i += HEAD_THREADS) {
        if (found[i] > bound) continue;
        uint32_t to = atomicAdd(&m.words[0], 1u);
        list[to] = found[i], at[to] = i;
    }
    rescore(c, m, s, list, again, reinterpret_cast<unsigned char *>(list + 2 * head_up(c.kept, 2)));
    for (uint32_t i = threadIdx.x; i < again; i += HEAD_THREADS) found[at[i]] = list[i];
    __syncthreads();
}

/* ---- results ------------------------------------------------------------------------------------------------------------ */

/* The results of state s, by one block. */
static __device__ void finish(const head_params &c, const head_shared &m, uint32_t s)
{
    fh_u64 *list = reinterpret_cast<fh_u64 *>(m.rest), *ranked = list + head_up(c.kept, 2), *found = c.candidates + static_cast<size_t>(s) * c.room;
    uint32_t n = c.counts[s], kept = min(c.kept, n), again = min(c.rerank, kept);
    __syncthreads(); /* nobody reads the states of stage 2, or the words of another state's results */
    if (c.random) {
        if (again) rescore_in_place(c, m, s, found, n, again);
        fh_u64 key = n ? draw(c, m, s, found, n) : FH_NO_KEY;
        kept = key != FH_NO_KEY;
        __syncthreads();
        if (threadIdx.x == 0) ranked[0] = key;
        __syncthreads();
    } else if (only_best(c)) {
        kept = c.best[s] != FH_NO_KEY;
        if (threadIdx.x == 0) ranked[0] = c.best[s];
        __syncthreads();
    } else if (kept) {
        fh_u64 bound = select_bound(m, [=](uint32_t i) { return found[i]; }, n, kept);
        if (threadIdx.x == 0) m.words[0] = 0;
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < n; i += HEAD_THREADS)
            if (found[i] <= bound) list[atomicAdd(&m.words[0], 1u)] = found[i];
        rank_keys(list, ranked, kept);
        if (again) {
            rescore(c, m, s, ranked, again, reinterpret_cast<unsigned char *>(list + 2 * head_up(c.kept, 2)));
            rank_keys(ranked, list, kept);
            ranked = list;
        }
    }
    for (uint32_t i = threadIdx.x; i < c.k; i += HEAD_THREADS) {
        size_t at = static_cast<size_t>(s) * c.k + i;
        c.ids[at] = i < kept ? static_cast<uint32_t>(ranked[i]) : FH_NO_TOKEN;
        c.logits[at] = i < kept ? rising(static_cast<uint32_t>(ranked[i] >> 32)) : __uint_as_float(0xff800000u);
    }
}

/* ---- kernels --------------------------------------------------------------------------------------------------------- */

static __global__ void __launch_bounds__(HEAD_THREADS) head_stage1(head_params c) { stage1(c, shared_parts()); }
static __global__ void __launch_bounds__(HEAD_THREADS) head_choose(head_params c) { choose(c, shared_parts(), blockIdx.x); }
static __global__ void __launch_bounds__(HEAD_THREADS) head_stage2(head_params c) { stage2(c, shared_parts(), false); }
static __global__ void __launch_bounds__(HEAD_THREADS) head_finish(head_params c) { finish(c, shared_parts(), blockIdx.x); }

/* Every block is here `times` times; who is asked to waits for the others.  What blocks wrote before is seen after. */
static __device__ void arrive(const head_params &c, uint32_t times, bool wait)
{
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        atomicAdd(&c.counters[1], 1u);
        while (wait && *static_cast<volatile uint32_t *>(&c.counters[1]) < times * gridDim.x) fh_nap();
        __threadfence();
    }
    __syncthreads();
}

/* The last block that leaves makes the counters ready for the next launch. */
static __device__ void leave(const head_params &c)
{
    if (threadIdx.x != 0) return;
    if (atomicAdd(&c.counters[2], 1u) + 1 == gridDim.x) c.counters[1] = 0, c.counters[2] = 0;
}

static __global__ void __launch_bounds__(HEAD_THREADS) head_together(head_params c)
{
    head_shared m = shared_parts();
    stage1(c, m);
    arrive(c, 1, true);
    for (uint32_t s = blockIdx.x; !c.all && s < c.batch; s += gridDim.x) choose(c, m, s);
    arrive(c, 2, true);
    stage2(c, m, !c.all);
    arrive(c, 3, blockIdx.x < c.batch);
    for (uint32_t s = blockIdx.x; s < c.batch; s += gridDim.x) finish(c, m, s);
    leave(c);
}

#endif
