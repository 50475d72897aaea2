/* head_measure.c: all logits and all centroid scores, for measuring. */
#include "runtime/head.h"

#include <math.h>

enum { RUN = 64 }; /* rows scored together */

typedef struct slots_job {
    const fh_head *head;
    const fh_rows *rows;
    const void *scales;
    const fh_state *const *states;
    size_t m, step, ldo;
    bool by_token;    /* out [m, V] by token id; else [m, K * cap] by slot */
    const float *dots; /* [m, rows] that a device made; NULL: they are made here */
    float *out;
} slots_job;

static void slots_task(void *ctx, size_t task, unsigned worker)
{
    const slots_job *j = ctx;
    const fh_head_parts *p = &j->head->parts;
    float room[FH_BLOCK * RUN];
    for (size_t at = task * j->step, end = fh_min(at + j->step, j->rows->rows); at < end; at += RUN) {
        size_t n = fh_min(RUN, end - at), ld = j->dots ? j->rows->rows : RUN;
        const float *dots = j->dots ? j->dots + at : room;
        if (!j->dots) fh_dots(j->head->kernels, j->rows, j->scales, NULL, at, n, j->states, j->m, room, RUN);
        for (size_t s = 0; s < j->m; s++)
            for (size_t i = 0; i < n; i++) {
                uint32_t id = p->permutation[at + i];
                bool live = id != FH_NO_TOKEN && !j->head->dead_map[id];
                float logit = live ? fh_head_logit(p, id, dots[s * ld + i]) : -INFINITY;
                if (!j->by_token) j->out[s * j->ldo + at + i] = logit;
                else if (id != FH_NO_TOKEN) j->out[s * j->ldo + id] = logit;
            }
    }
}

static void run_slots(slots_job *j, fh_pool *pool)
{
    j->step = fh_max(RUN, FH_TASK_BYTES / j->rows->stride / RUN * RUN);
    fh_pool_run(fh_pool_for(pool, j->rows->rows * j->rows->stride * j->m), (j->rows->rows + j->step - 1) / j->step, slots_task, j);
}

fh_status fh_head_dense_logits(const fh_head *head, fh_scratch *scratch, const float *state, float *logits, fh_err *err)
{
    fh_state s;
    const fh_state *each = &s;
    fh_status rc;
    if ((rc = fh_scratch_check(head, scratch, err)) < 0) return rc;
    if ((rc = fh_head_need_exact(head, err)) < 0) return rc;
    if ((rc = fh_head_states(head, &s, state, 0, 1, NULL, err)) < 0) return rc;
    slots_job j = {.head = head, .rows = &head->exact, .states = &each, .m = 1, .ldo = head->parts.vocab, .by_token = true, .out = logits};
    run_slots(&j, scratch->pool);
    return FH_OK;
}

/* Blocks of states with working memory of their own: these calls have no scratch.  Products are made here, or on a device. */
typedef struct block_job {
    const fh_head *head; fh_pool *pool;
    const fh_dots_device *device; void *there;
    float *out; size_t width;     /* out [batch, width]; or what fh_head_ranks is asked for, and width 0 */
    const fh_cluster_ranks_of *of;
} block_job;
/* m states from number `first` on, `these` [m, D] through bf16 where the head has them so. */
typedef fh_status block_fn(const block_job *j, const fh_state *const *states, const float *these, size_t first, size_t m, fh_err *err);

static void round_to_bf16(float *to, const float *from, size_t n)
{
    for (size_t i = 0; i < n; i++) to[i] = fh_bf16_to_f32(fh_f32_to_bf16(from[i]));
}

static fh_status each_block(const block_job *j, const float *states, size_t batch, block_fn *fn, fh_err *err)
{
    fh_status rc = FH_OK;
    void *room = NULL;
    float *rounded = NULL;
    size_t d = j->head->parts.hidden, block = j->device ? fh_min(FH_BLOCK, j->device->most) : FH_BLOCK;
    bool through_bf16 = j->head->parts.through_bf16;
    if ((!j->device && fh_head_has_integers(j->head) && !(room = fh_aligned(FH_BLOCK * fh_state_bytes(d)))) ||
        (through_bf16 && !(rounded = fh_malloc(FH_BLOCK * d * sizeof *rounded)))) {
        rc = fh_fail(err, FH_ENOMEM, "states: out of memory");
        goto out;
    }
    for (size_t first = 0; first < batch; first += block) {
        fh_state state[FH_BLOCK];
        const fh_state *each[FH_BLOCK];
        size_t m = fh_min(block, batch - first);
        for (size_t s = 0; s < m; s++) each[s] = &state[s];
        const float *these = states + first * d;
        if (through_bf16) round_to_bf16(rounded, these, m * d), these = rounded;
        if ((rc = fh_head_states(j->head, state, these, first, m, room, err)) < 0) break;
        if ((rc = fn(j, each, these, first, m, err)) < 0) break;
        if (through_bf16 && j->width) round_to_bf16(j->out + first * j->width, j->out + first * j->width, m * j->width);
    }
out:
    fh_free(rounded);
    fh_free(room);
    return rc;
}

/* *dots [m, rows]: the device's; NULL where products are made here. */
static fh_status dots_there(const block_job *b, const float *states, size_t m, float **dots, fh_err *err)
{
    *dots = NULL;
    return b->device ? b->device->multiply(b->device->ctx, b->there, states, m, dots, err) : FH_OK;
}

static fh_status slot_block(const block_job *b, const fh_state *const *states, const float *these, size_t first, size_t m, fh_err *err)
{
    const fh_head_parts *p = &b->head->parts;
    float *dots;
    fh_status rc = dots_there(b, these, m, &dots, err);
    slots_job j = {.head = b->head, .rows = &p->tokens, .scales = p->token_scales, .states = states, .m = m, .ldo = b->width, .dots = dots,
                   .out = b->out + first * b->width};
    if (rc == FH_OK) run_slots(&j, b->pool);
    return rc;
}

static fh_status centroid_block(const block_job *b, const fh_state *const *states, const float *these, size_t first, size_t m, fh_err *err)
{
    float *dots, *out = b->out + first * b->width;
    fh_status rc = dots_there(b, these, m, &dots, err);
    if (rc < 0) return rc;
    if (!dots) fh_head_centroid_scores(b->head, b->pool, states, m, out);
    for (size_t i = 0; dots && i < m * b->width; i++) out[i] = fh_settle(dots[i]);
    return FH_OK;
}

static fh_status rank_block(const block_job *b, const fh_state *const *states, const float *these, size_t first, size_t m, fh_err *err)
{
    const fh_cluster_ranks_of *r = b->of;
    size_t at = first * r->k;
    (void)states;
    return b->device->ranks(b->device->ctx, b->there, these, m, r->k, r->of + at, b->head->parts.through_bf16, r->ranks + at, r->scores + at, r->top + first,
                            err);
}

fh_status fh_head_ranks(const fh_head *head, const fh_dots_device *device, void *there, const float *states, size_t batch, const fh_cluster_ranks_of *of,
                        fh_err *err)
{
    block_job j = {.head = head, .device = device, .there = there, .of = of};
    return each_block(&j, states, batch, rank_block, err);
}

fh_status fh_head_measure(const fh_head *head, bool slots, const fh_dots_device *device, void *there, fh_pool *pool, const float *states, size_t batch,
                          float *out, fh_err *err)
{
    const fh_head_parts *p = &head->parts;
    block_job j = {.head = head, .pool = pool, .device = device, .there = there, .out = out, .width = (size_t)p->clusters * (slots ? p->cap : 1)};
    return each_block(&j, states, batch, slots ? slot_block : centroid_block, err);
}

fh_status fh_head_slot_logits(const fh_head *head, fh_pool *pool, const float *states, size_t batch, float *logits, fh_err *err)
{
    return fh_head_measure(head, true, NULL, NULL, pool, states, batch, logits, err);
}

fh_status fh_head_cluster_scores(const fh_head *head, fh_pool *pool, const float *states, size_t batch, float *scores, fh_err *err)
{
    return fh_head_measure(head, false, NULL, NULL, pool, states, batch, scores, err);
}
