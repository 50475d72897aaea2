/* plan over several sizes of clusters: what the cheapest setting of each containment is, and which one a build takes. */
#include "artifacts/stages_private.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define FILE_PLAN "plan.json"

static fh_json *plan_params(const fh_stage_calibrate_params *p, const fh_stage_route_params *route)
{
    fh_json *j = fh_calibrate_record_params(p), *list = fh_json_add_array(j, "encodings");
    if (route->routing) fh_json_add_string(j, "routing", route->routing);
    if (route->moves) fh_json_add_u64(j, "moves", route->moves);
    for (size_t i = 0; p->encodings && i < p->encodings->n_centroids; i++) fh_json_add_string(list, NULL, fh_dtype_name(p->encodings->centroids[i]));
    list = fh_json_add_array(j, "rows");
    for (size_t i = 0; p->encodings && i < p->encodings->n_tokens; i++) fh_json_add_string(list, NULL, fh_dtype_name(p->encodings->tokens[i]));
    fh_json_add_string(j, "isa", fh_isa_name()); /* times are of a machine */
    return j;
}

/* The plan of one work directory, from its file where it is of this head and these states. */
static fh_status plan_of(fh_json **out, fh_stage_env *e, const fh_stage_calibrate_params *p, const fh_stage_route_params *route, fh_err *err)
{
    static const char *const inputs[] = {FH_FILE_MODEL, FH_FILE_CLUSTERS, FH_FILE_STATES};
    fh_json *params = plan_params(p, route), *body = NULL;
    fh_status rc = fh_current_json(out, e, FILE_PLAN, params, err);
    if (rc < 0 || *out) goto out;
    if ((rc = fh_stage_plan(e, p, &body, err)) < 0) goto out;
    if ((rc = fh_result_of(e, FILE_PLAN, "plan", &params, inputs, sizeof inputs / sizeof *inputs, body, err)) < 0) goto out;
    *out = body, body = NULL;
out:
    fh_json_free(params);
    fh_json_free(body);
    return rc;
}

/* One row for each containment, and one for the targets: the cheapest so far. */
typedef struct best { const fh_json *row; uint32_t k, cap; double cost; } best;
typedef struct frontier { best of[FH_PLAN_ROWS]; size_t n; const char *by; } frontier;

static bool same_place(const fh_json *a, const fh_json *b)
{
    return fh_member_true(a, "for_targets") == fh_member_true(b, "for_targets") &&
           fh_member_double(a, "containment", 0) == fh_member_double(b, "containment", 0);
}

static void offer(frontier *f, const fh_json *row, uint32_t k, uint32_t cap)
{
    best now = {row, k, cap, fh_member_double(row, f->by, INFINITY)};
    size_t at = 0;
    while (at < f->n && !same_place(f->of[at].row, row)) at++;
    if (at == f->n && f->n < FH_PLAN_ROWS) f->of[f->n++] = now;
    else if (at < f->n && now.cost < f->of[at].cost) f->of[at] = now;
}

static void in_order(frontier *f)
{
    for (size_t i = 1; i < f->n; i++)
        for (size_t j = i; j && f->of[j].cost < f->of[j - 1].cost; j--) { best swap = f->of[j]; f->of[j] = f->of[j - 1], f->of[j - 1] = swap; }
}

static fh_status plan_cap(fh_json **out, uint32_t *k, uint32_t *cap, fh_stage_env *e, const fh_facts *f, const fh_stage_plan_params *p, uint32_t wanted,
                          fh_err *err)
{
    char name[40];
    fh_stage_env sub = {0};
    fh_json *report = NULL;
    bool current;
    fh_stage_cluster_params cluster = p->cluster;
    cluster.k = 0, cluster.cap = wanted;
    *k = fh_clusters_wanted(&cluster, f->head.rows), *cap = (uint32_t)((f->head.rows + *k - 1) / *k);
    cluster.k = *k, cluster.cap = 0;
    snprintf(name, sizeof name, "k%u", *k);
    fh_status rc = fh_sub_open(&sub, e, name, NULL, err);
    if (rc == FH_OK) rc = fh_cluster_ensure(&sub, &cluster, f->head.rows, f->head.cols, &current, &report, err);
    fh_json_free(report), report = NULL;
    if (rc == FH_OK) rc = fh_route_ensure(&sub, &p->route, &current, &report, err);
    fh_json_free(report);
    if (rc == FH_OK) rc = fh_need(&sub, FH_FILE_QUANTIZED, err);
    if (rc == FH_OK) rc = plan_of(out, &sub, &p->calibrate, &p->route, err);
    fh_sub_close(&sub);
    return rc;
}

fh_status fh_stage_plan_caps(fh_stage_env *e, const fh_stage_plan_params *p, fh_json **report, uint32_t *k, fh_err *err)
{
    double began = fh_now();
    fh_facts f = {0};
    bool fresh, by_time = p->calibrate.how.by_time, states = false;
    frontier best_of = {.by = by_time ? "step_microseconds" : "step_bytes"};
    fh_json **plans = fh_calloc(fh_max(p->n_caps, 1), sizeof *plans);
    if (k) *k = 0;
    fh_json *record = NULL;
    fh_status rc = plans ? fh_facts_load(&f, e, err) : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc == FH_OK) rc = fh_current_record(&record, e, FH_FILE_STATES, NULL, err);
    states = record != NULL;
    fh_json_free(record);
    if (rc == FH_OK && !states) rc = fh_states_stage(e, FH_FILE_STATES, &p->calibrate.text, &fresh, err);
    for (size_t i = 0; rc == FH_OK && i < p->n_caps; i++) {
        uint32_t clusters, cap;
        fh_job_say(e->job, FH_INFO, "clusters of %u tokens:", p->caps[i]);
        if ((rc = plan_cap(&plans[i], &clusters, &cap, e, &f, p, p->caps[i], err)) < 0) break;
        const fh_json *rows = fh_json_get(plans[i], "plan");
        for (const fh_json *r = rows ? fh_json_first(rows) : NULL; r; r = fh_json_next(r)) offer(&best_of, r, clusters, cap);
    }
    if (rc < 0) goto out;
    in_order(&best_of);
    fh_json *r = fh_json_object(), *list;
    fh_json_add_u64(r, "containment_k", p->calibrate.how.containment_k);
    fh_json_add_string(r, "cheapest", by_time ? "time" : "bytes");
    fh_json_add_copy(r, "dense_bytes", fh_json_get(plans[0], "dense_bytes"));
    list = fh_json_add_array(r, "plan");
    for (size_t i = 0; i < best_of.n; i++) {
        const best *b = &best_of.of[i];
        fh_json *j = fh_json_add_object(list, NULL);
        fh_json_add_u64(j, "k", b->k);
        fh_json_add_u64(j, "cap", b->cap);
        for (const fh_json *m = fh_json_first(b->row); m; m = fh_json_next(m)) fh_json_add_copy(j, fh_json_key(m), m);
        if (k && fh_member_true(b->row, "for_targets")) *k = b->k;
    }
    fh_json_add_double(r, "seconds", fh_now() - began);
    *report = r;
out:
    for (size_t i = 0; plans && i < p->n_caps; i++) fh_json_free(plans[i]);
    fh_free(plans);
    fh_facts_free(&f);
    return rc;
}
