/* artifacts/diff_states.c: what two artifacts of one model make of recorded states: containment, agreement, mass, and which tokens are lost. */
#include "artifacts/diff.h"

#include <stdlib.h>

enum { SHOWN = 64 };

typedef struct losses { uint32_t id, seen, missed_a, missed_b; } losses; /* of positions whose best token is `id` */
typedef struct tally {
    uint32_t probes[2];
    float threshold[2];
    losses *tokens;              /* [V] */
    size_t n, contained[2], agreed[2], lost, gained;
    double mass[2], kl[2], probed[2];
} tally;

static void on_sight(void *ctx, const fh_sight *s)
{
    tally *t = ctx;
    uint32_t best = s->top[0];
    bool in[2];
    if (best == FH_NO_TOKEN) return;
    for (int i = 0; i < 2; i++) {
        in[i] = s->need[i] <= s->seen[i].probed;
        t->probed[i] += s->seen[i].probed;
        t->contained[i] += in[i];
        t->agreed[i] += s->seen[i].best == best;
        t->mass[i] += s->seen[i].mass, t->kl[i] += s->seen[i].kl;
    }
    t->n++, t->lost += in[0] && !in[1], t->gained += !in[0] && in[1];
    losses *l = &t->tokens[best];
    l->seen++, l->missed_a += !in[0], l->missed_b += !in[1];
}

/* Most positions lost first. */
static int worst_first(const void *l, const void *r)
{
    const losses *x = l, *y = r;
    int64_t dx = (int64_t)x->missed_b - x->missed_a, dy = (int64_t)y->missed_b - y->missed_a;
    if (dx != dy) return dx > dy ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

static void add_pair(fh_json *list, const char *what, double a, double b)
{
    fh_json *j = fh_json_add_object(list, NULL);
    fh_json_add_string(j, "what", what);
    fh_json_add_double(j, "a", a);
    fh_json_add_double(j, "b", b);
}

static void report_on(fh_json *r, tally *t, uint32_t vocab, size_t top, const fh_tokenizer *names)
{
    double n = t->n ? (double)t->n : 1;
    fh_json *list = fh_json_add_array(r, "on_states"), *o;
    add_pair(list, "containment", (double)t->contained[0] / n, (double)t->contained[1] / n);
    add_pair(list, "agreement", (double)t->agreed[0] / n, (double)t->agreed[1] / n);
    add_pair(list, "mass", t->mass[0] / n, t->mass[1] / n);
    add_pair(list, "kl", t->kl[0] / n, t->kl[1] / n);
    add_pair(list, "probes", t->probed[0] / n, t->probed[1] / n);
    o = fh_json_add_object(r, "positions");
    fh_json_add_u64(o, "all", t->n);
    fh_json_add_u64(o, "lost", t->lost);
    fh_json_add_u64(o, "gained", t->gained);
    qsort(t->tokens, vocab, sizeof *t->tokens, worst_first);
    list = fh_json_add_array(r, "worst_on_states");
    for (size_t i = 0; i < fh_min(top, vocab) && t->tokens[i].missed_b > t->tokens[i].missed_a; i++) {
        const losses *l = &t->tokens[i];
        char shown[SHOWN];
        size_t len = 0;
        const char *piece = names ? fh_tokenizer_piece(names, l->id, &len) : NULL;
        o = fh_json_add_object(list, NULL);
        fh_json_add_u64(o, "id", l->id);
        fh_json_add_string(o, "text", piece ? fh_show(shown, sizeof shown, piece, len) : "");
        fh_json_add_u64(o, "positions", l->seen);
        fh_json_add_u64(o, "missed_a", l->missed_a);
        fh_json_add_u64(o, "missed_b", l->missed_b);
    }
}

fh_status fh_diff_states(fh_json *r, const char *a, const char *b, const char *path, size_t top, const fh_tokenizer *names, const fh_job *job, fh_err *err)
{
    fh_model m[2] = {{.name = NULL}, {.name = NULL}};
    const char *paths[2] = {a, b};
    fh_tensors *file = NULL;
    const float *states;
    float *owned = NULL;
    size_t n;
    tally t = {.tokens = NULL};
    fh_lens lenses[2];
    fh_status rc = FH_OK;
    for (int i = 0; i < 2; i++) {
        if ((rc = fh_model_open(&m[i], paths[i], NULL, FH_MODEL_HEAD, job, err)) < 0) goto out;
        t.probes[i] = fh_head_get_info(m[i].head)->probes, t.threshold[i] = fh_head_get_info(m[i].head)->threshold;
        lenses[i] = (fh_lens){.head = m[i].head, .probes = &t.probes[i], .thresholds = &t.threshold[i], .n_probes = 1};
    }
    const fh_dense *dense = m[0].dense.rows.data ? &m[0].dense : &m[1].dense;
    if (!dense->rows.data) { rc = fh_fail(err, FH_ECHECK, "--hidden: neither %s nor %s has the dense head's rows to compare with (pack --exact)", a, b); goto out; }
    if ((rc = fh_read_states(&file, &states, &owned, &n, path, dense->rows.cols, err)) < 0) goto out;
    if (!(t.tokens = fh_calloc(dense->vocab, sizeof *t.tokens))) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    for (uint32_t i = 0; i < dense->vocab; i++) t.tokens[i].id = i;
    if ((rc = fh_observe(dense, lenses, 2, &(fh_observe_params){.top = 1}, states, NULL, n, on_sight, &t, job, err)) < 0) goto out;
    report_on(r, &t, dense->vocab, top, names);
out:
    fh_free(t.tokens);
    fh_free(owned);
    fh_tensors_close(file);
    fh_model_close(&m[0]);
    fh_model_close(&m[1]);
    return rc;
}
