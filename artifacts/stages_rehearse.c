/* rehearse: promises made on draws of a text, held against all the rest. */
#include "artifacts/stages_private.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static fh_status load_states(fh_states *s, fh_stage_env *e, const char *file, const fh_text_params *text, const fh_facts *f, fh_err *err)
{
    bool fresh;
    char *path = fh_work_path(e->work, file);
    fh_status rc = path ? fh_states_stage(e, file, text, &fresh, err) : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc == FH_OK) rc = fh_states_load(s, path, err);
    if (rc == FH_OK && s->d != f->head.cols) rc = fh_fail(err, FH_ECHECK, "%s: states of width %zu for a head of width %zu", path, s->d, f->head.cols);
    fh_free(path);
    return rc;
}

static int by_value(const void *a, const void *b) { const double *x = a, *y = b; return (*x > *y) - (*x < *y); }

/* One k and target over all draws; of [draws] every `step`-th.  room [draws]. */
static void add_cell(fh_json *to, const fh_rehearsed *of, size_t draws, size_t step, size_t tokens, uint32_t k, double target, double *room)
{
    size_t promised = 0, held = 0, too_little = 0;
    double hot = 0, found = 0, worst = INFINITY, effect = 0;
    for (size_t i = 0; i < draws; i++) {
        const fh_rehearsed *r = &of[i * step];
        too_little += r->too_little;
        if (!r->promised) continue;
        room[promised++] = r->mean_probes, held += r->found >= target;
        hot += (double)r->n_hot, found += r->found, effect += r->bound.effect, worst = fmin(worst, r->found);
    }
    double share = promised ? 1 / (double)promised : NAN;
    qsort(room, promised, sizeof *room, by_value);
    fh_json *j = fh_json_add_object(to, NULL);
    fh_json_add_u64(j, "draw_tokens", tokens);
    fh_json_add_u64(j, "containment_k", k);
    fh_json_add_double(j, "target", target);
    fh_json_add_u64(j, "promised", promised);
    fh_json_add_u64(j, "held", held);
    fh_json_add_double(j, "held_share", (double)held * share);
    fh_json_add_u64(j, "too_little_text", too_little);
    fh_json_add_u64(j, "out_of_reach", draws - promised - too_little);
    fh_json_add_double(j, "probes_median", promised ? room[promised / 2] : NAN);
    fh_json_add_double(j, "hot_mean", hot * share);
    fh_json_add_double(j, "design_effect_mean", effect * share);
    fh_json_add_double(j, "found_mean", found * share);
    fh_json_add_double(j, "found_least", promised ? worst : NAN);
}

static void add_draw(fh_json *to, const fh_rehearsed *r, size_t number, size_t tokens, uint32_t k, double target)
{
    fh_json *j = fh_json_add_object(to, NULL);
    fh_json_add_u64(j, "draw", number);
    fh_json_add_u64(j, "draw_tokens", tokens);
    fh_json_add_u64(j, "containment_k", k);
    fh_json_add_double(j, "target", target);
    fh_json_add_bool(j, "promised", r->promised);
    fh_json_add_bool(j, "too_little_text", r->too_little);
    fh_json_add_u64(j, "probes", r->probes);
    fh_json_add_double(j, "mean_probes", r->mean_probes);
    fh_json_add_u64(j, "hot", r->n_hot);
    fh_json_add_double(j, "bound", r->bound.lower);
    fh_json_add_double(j, "design_effect", r->bound.effect);
    fh_json_add_double(j, "effective_positions", r->bound.effective);
    fh_json_add_double(j, "found", r->found);
}

static fh_json *report_of(const fh_rehearsed *of, const fh_stage_rehearse_params *p, const fh_states *s, const fh_states *against, double *room)
{
    const fh_rehearse_params *how = &p->how;
    size_t cells = how->n_ks * how->n_targets;
    fh_json *r = fh_json_object();
    fh_json_add_u64(r, "draws", how->draws);
    fh_json_add_u64(r, "positions", s->n);
    fh_json_add_u64(r, "documents", fh_states_documents(s));
    if (against) fh_json_add_u64(r, "against_positions", against->n); else fh_json_add_null(r, "against_positions");
    fh_json_add_double(r, "confidence", how->confidence);
    fh_json *list = fh_json_add_array(r, "cells"), *all = fh_json_array();
    for (size_t t = 0; t < how->n_tokens; t++, of += how->draws * cells) {
        size_t tokens = how->tokens[t] ? how->tokens[t] : s->n / 2;
        for (size_t i = 0; i < cells; i++)
            add_cell(list, of + i, how->draws, cells, tokens, how->ks[i / how->n_targets], how->targets[i % how->n_targets], room);
        for (size_t i = 0; i < how->draws * cells; i++)
            add_draw(all, &of[i], i / cells, tokens, how->ks[i % cells / how->n_targets], how->targets[i % how->n_targets]);
    }
    fh_json_add(r, "draw_list", all);
    return r;
}

fh_status fh_stage_rehearse(fh_stage_env *e, const fh_stage_rehearse_params *p, fh_json **report, fh_err *err)
{
    double began = fh_now(), *room = NULL;
    fh_facts f = {0};
    fh_encoded q = {0};
    fh_states s = {0}, against = {0};
    fh_head *head = NULL;
    fh_rehearsed *of = NULL;
    size_t cells;
    fh_status rc = fh_facts_load(&f, e, err);
    if (rc < 0 || (rc = fh_need(e, FH_FILE_QUANTIZED, err)) < 0 || (rc = fh_encoded_load(&q, e, &f, err)) < 0) goto out;
    if ((rc = load_states(&s, e, FH_FILE_REHEARSAL, &p->text, &f, err)) < 0) goto out;
    if (p->against.n_texts && (rc = load_states(&against, e, FH_FILE_REHEARSAL_OTHER, &p->against, &f, err)) < 0) goto out;
    if (!fh_mul(p->how.draws * p->how.n_tokens, p->how.n_ks * p->how.n_targets, &cells) || !(of = fh_calloc(cells, sizeof *of))
        || !(room = fh_malloc(p->how.draws * sizeof *room))) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    fh_dense dense = fh_facts_dense(&f);
    if ((rc = fh_head_from_parts(&head, &q.parts, "rehearse", err)) < 0) goto out;
    if ((rc = fh_rehearse(of, &s, p->against.n_texts ? &against : NULL, &dense, head, &p->how, e->job, err)) < 0) goto out;
    *report = report_of(of, p, &s, p->against.n_texts ? &against : NULL, room);
    fh_json_add_double(*report, "seconds", fh_now() - began);
out:
    fh_head_close(head);
    fh_free(of);
    fh_free(room);
    fh_states_free(&s);
    fh_states_free(&against);
    fh_encoded_free(&q);
    fh_facts_free(&f);
    return rc;
}
