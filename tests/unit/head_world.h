/* head_world.h: heads of random rows for tests.  Included by test programs once each, after cmocka.h. */
#ifndef FH_HEAD_WORLD_H
#define FH_HEAD_WORLD_H

#include "quant/quant.h"
#include "runtime/runtime.h"

static fh_rng rng;

/* ---- a head of random rows ---------------------------------------------------------------------------------------------- */

typedef struct shape {
    uint32_t v, d, k;
    fh_dtype centroids, tokens, exact; /* exact: FH_I8 for none */
    bool bias, hot, dead, ties;
    float softcap;
    uint32_t rerank;
    float threshold; uint32_t probes; /* probes 0: 3 */
} shape;

typedef struct world {
    shape is;
    uint32_t cap, *permutation, hot[9], always[3], dead[8];
    uint8_t *is_dead;
    float *rows, *bias;
    void *centroid_scales, *token_scales, *centroids, *tokens, *exact;
    fh_head_parts parts;
    fh_head *head;
} world;

static float small(bool ties) { return ties ? (float)fh_rng_below(&rng, 3) - 1 : (float)(2 * fh_rng_double(&rng) - 1); }

static void world_open(world *w, shape is)
{
    *w = (world){.is = is, .cap = (is.v + is.k - 1) / is.k};
    size_t slots = (size_t)is.k * w->cap;
    fh_err err = {0};
    w->permutation = malloc(slots * sizeof *w->permutation);
    w->is_dead = calloc(is.v, 1);
    w->rows = malloc((size_t)is.v * is.d * sizeof(float));
    uint32_t *place = malloc(is.v * sizeof *place), *home = calloc(is.k, sizeof *home), *next = calloc(is.k, sizeof *next);
    for (uint32_t i = 0; i < is.v; i++) place[i] = i;
    for (uint32_t i = is.v; i > 1; i--) {
        uint32_t j = (uint32_t)fh_rng_below(&rng, i), swap = place[j];
        place[j] = place[i - 1], place[i - 1] = swap;
    }
    /* Token place[i] goes to cluster i % k: V not divisible by K leaves gaps at the ends of some clusters. */
    uint32_t *cluster = malloc(is.v * sizeof *cluster);
    for (uint32_t i = 0; i < is.v; i++) cluster[place[i]] = i % is.k;
    for (size_t s = 0; s < slots; s++) w->permutation[s] = FH_NO_TOKEN;
    for (uint32_t id = 0; id < is.v; id++) w->permutation[(size_t)cluster[id] * w->cap + next[cluster[id]]++] = id;
    free(place), free(home), free(next), free(cluster);

    for (size_t i = 0; i < (size_t)is.v * is.d; i++) w->rows[i] = small(is.ties);
    size_t n_dead = is.dead ? fh_min(8, is.v / 4) : 0;
    for (size_t i = 0; i < n_dead; i++) w->dead[i] = (uint32_t)(i * (is.v / 8 + 1)), w->dead[i] = w->dead[i] < is.v ?
        w->dead[i] : is.v - 1 - (uint32_t)(n_dead - 1 - i);
    for (size_t i = 0; i < n_dead; i++) {
        w->is_dead[w->dead[i]] = 1;
        for (uint32_t j = 0; j < is.d; j++) w->rows[(size_t)w->dead[i] * is.d + j] *= 100; /* would win if it were let */
    }
    float *centroids = malloc((size_t)is.k * is.d * sizeof(float));
    for (size_t i = 0; i < (size_t)is.k * is.d; i++) centroids[i] = small(is.ties);
    if (is.bias) {
        w->bias = malloc(is.v * sizeof(float));
        for (uint32_t i = 0; i < is.v; i++) w->bias[i] = small(false);
    }
    size_t n_hot = 0, n_always = 0;
    if (is.hot) {
        for (uint32_t i = 0; i < 9 && i * 7 < is.v; i++) w->hot[n_hot++] = is.v - 1 - i * 7;
        for (uint32_t i = 0; i < 3 && i < is.v; i++) w->always[n_always++] = i;
    }
    size_t cs = fh_enc_stride(is.centroids, is.d), ts = fh_enc_stride(is.tokens, is.d), es = fh_enc_stride(is.exact, is.d);
    fh_rows c = {centroids, FH_F32, is.k, is.d, is.d * 4}, r = {w->rows, FH_F32, is.v, is.d, is.d * 4};
    w->centroids = fh_aligned(is.k * cs), w->tokens = fh_aligned(slots * ts), w->exact = fh_aligned(slots * es);
    w->centroid_scales = malloc(is.k * fh_scale_bytes(is.centroids, is.d) + 1), w->token_scales = malloc(slots * fh_scale_bytes(is.tokens, is.d) + 1);
    assert_int_equal(fh_encode_rows(is.centroids, &c, NULL, is.k, NULL, NULL, w->centroids, w->centroid_scales, NULL, &err), FH_OK);
    assert_int_equal(fh_encode_rows(is.tokens, &r, w->permutation, slots, NULL, NULL, w->tokens, w->token_scales, NULL, &err), FH_OK);
    if (is.exact != FH_I8) assert_int_equal(fh_encode_rows(is.exact, &r, w->permutation, slots, NULL, NULL, w->exact, NULL, NULL, &err),
                                            FH_OK);
    free(centroids);
    w->parts = (fh_head_parts){
        .vocab = is.v, .hidden = is.d, .clusters = is.k, .cap = w->cap, .probes = is.probes ? is.probes : is.k > 3 ? 3 : 1, .threshold = is.threshold,
        .centroids = {w->centroids, is.centroids, is.k, is.d, cs}, .centroid_scales = fh_dtype_is_integer(is.centroids) ? w->centroid_scales : NULL,
        .tokens = {w->tokens, is.tokens, slots, is.d, ts}, .token_scales = fh_dtype_is_integer(is.tokens) ? w->token_scales : NULL,
        .permutation = w->permutation, .dead = w->dead, .n_dead = n_dead, .bias = w->bias, .softcap = is.softcap,
        .hot = w->hot, .n_hot = n_hot, .always = w->always, .n_always = n_always};
    if (is.exact != FH_I8) w->parts.exact = (fh_rows){w->exact, is.exact, slots, is.d, es}, w->parts.rerank = is.rerank;
    if (fh_head_from_parts(&w->head, &w->parts, "test", &err) < 0) fail_msg("%s", err.text);
}

static void world_close(world *w)
{
    fh_head_close(w->head);
    free(w->permutation), free(w->is_dead), free(w->rows), free(w->bias), free(w->centroid_scales), free(w->token_scales);
    fh_free(w->centroids), fh_free(w->tokens), fh_free(w->exact);
}

static float *make_states(const world *w, size_t batch)
{
    float *x = malloc(batch * w->is.d * sizeof *x);
    for (size_t i = 0; i < batch * w->is.d; i++) x[i] = small(w->is.ties);
    return x;
}

#endif
