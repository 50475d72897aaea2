/* A head small enough to define everything by hand, and states for it. */
#ifndef FH_CALIB_WORLD_H
#define FH_CALIB_WORLD_H

#include <stdlib.h>
#include <string.h>

#include "calib/calib.h"

enum { V = 60, D = 8, K = 10, CAP = 6, N = 300 };
typedef struct world {
    float w[V][16], c[K][16], h[N][D];
    uint32_t perm[K * CAP], dead[2], hot[3], always[1];
    fh_states states;
    uint32_t document[N], next[N], ids[N];
    uint8_t part[N], dead_map[V];
    fh_head_parts parts;
    fh_dense dense;
    float rows[K * CAP][16];
} world;

static inline float uniform(fh_rng *r) { return (float)(2 * fh_rng_double(r) - 1); }

static inline world *make_world(uint64_t seed)
{
    world *x = calloc(1, sizeof *x);
    fh_rng r;
    fh_rng_seed(&r, seed, 1);
    for (int t = 0; t < V; t++) for (int i = 0; i < D; i++) x->w[t][i] = uniform(&r) * 2;
    for (int c = 0; c < K; c++) for (int i = 0; i < D; i++) x->c[c][i] = uniform(&r);
    for (int n = 0; n < N; n++) {
        for (int i = 0; i < D; i++) x->h[n][i] = uniform(&r) * 2;
        x->document[n] = (uint32_t)n / 5, x->next[n] = (uint32_t)n % V;
    }
    for (uint32_t s = 0; s < K * CAP; s++) { /* slot s of cluster c holds token s * 7 mod V, ascending inside clusters by construction below */
        x->perm[s] = s / CAP + (s % CAP) * K;
        memcpy(x->rows[s], x->w[x->perm[s]], sizeof x->rows[s]);
    }
    x->dead[0] = 13, x->dead[1] = 44, x->hot[0] = 5, x->hot[1] = 29, x->hot[2] = 51, x->always[0] = 2;
    x->dead_map[13] = x->dead_map[44] = 1;
    x->parts = (fh_head_parts){.vocab = V, .hidden = D, .clusters = K, .cap = CAP, .probes = 3, .centroids = {x->c, FH_F32, K, D, 64},
                               .tokens = {x->rows, FH_F32, K * CAP, D, 64},
                               .exact = {.dtype = FH_F32}, .tokens_exact = true, .permutation = x->perm, .dead = x->dead, .n_dead = 2, .hot = x->hot,
                                   .n_hot = 3, .always = x->always, .n_always = 1};
    x->dense = (fh_dense){.rows = {x->w, FH_F32, V, D, 64}, .vocab = V, .dead = x->dead_map};
    x->states = (fh_states){.n = N, .d = D, .hidden = &x->h[0][0], .ids = x->ids, .next = x->next, .document = x->document, .part = x->part};
    return x;
}

static inline double dot(const float *a, const float *b) { double s = 0; for (int i = 0; i < D; i++) s += (double)a[i] * b[i]; return s; }

#endif
