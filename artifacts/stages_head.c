/* cluster, route and quantize: from rows to a head. */
#include "artifacts/stages_private.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const char *const start_names[] = {"coarse", "faiss", "random"};
static const char *const metric_names[] = {"auto", "output", "euclidean", "cosine"};

fh_status fh_states_to_fit(size_t *n, fh_stage_env *e, fh_err *err)
{
    fh_tensors *file = NULL;
    const fh_tensor *t;
    uint64_t any = UINT64_MAX;
    char *path = fh_work_path(e->work, FH_FILE_STATES);
    fh_status rc = path ? FH_OK : fh_fail(err, FH_ENOMEM, "out of memory");
    fh_stage_state state;
    *n = 0;
    if (rc < 0 || (rc = fh_work_state(e->work, FH_FILE_STATES, NULL, &state, NULL, err)) < 0 || state != FH_STAGE_CURRENT) goto out;
    if ((rc = fh_tensors_open(&file, path, err)) < 0 || (rc = fh_tensors_need(&t, file, "part", 1u << FH_U8, 1, &any, err)) < 0) goto out;
    for (size_t i = 0; i < t->bytes; i++) *n += ((const uint8_t *)t->data)[i] == FH_PART_A;
out:
    fh_tensors_close(file);
    fh_free(path);
    return rc;
}

fh_status fh_clusters_by_output(bool *output, fh_stage_env *e, size_t d, fh_err *err)
{
    size_t n;
    fh_status rc = fh_states_to_fit(&n, e, err);
    *output = n >= fh_min(2 * d, FH_FEW_STATES);
    return rc;
}

/* ---- cluster ------------------------------------------------------------------------------------------------- */

uint32_t fh_clusters_wanted(const fh_stage_cluster_params *p, size_t v)
{
    if (p->k) return p->k;
    if (p->cap) return (uint32_t)((v + p->cap - 1) / p->cap);
    return (uint32_t)fh_max(2, v / 16);
}

fh_json *fh_cluster_record_params(const fh_stage_cluster_params *p, uint32_t k, bool output)
{
    fh_json *j = fh_json_object();
    fh_json_add_u64(j, "k", k);
    fh_json_add_u64(j, "seed", p->seed);
    fh_json_add_string(j, "start", start_names[p->start]);
    fh_json_add_string(j, "metric", p->metric == FH_ALIKE_AUTO ? output ? "output" : "euclidean" : metric_names[p->metric]);
    fh_json_add_u64(j, "rounds", p->rounds);
    return j;
}

/* The cluster of each of the first V tokens in an earlier artifact or clustering; FH_NO_HOME for those it does not have. */
static fh_status assignment_of(uint32_t **out, uint32_t *k, const char *path, size_t v, fh_err *err)
{
    fh_fhead *artifact = NULL;
    fh_tensors *file = NULL;
    fh_head_layout h;
    const fh_tensor *a, *c;
    fh_map map = {0};
    uint64_t any = UINT64_MAX, shape[2] = {UINT64_MAX, UINT64_MAX};
    uint32_t *home = fh_malloc(v * sizeof *home);
    fh_status rc = home ? fh_map_open(&map, path, err) : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc < 0) goto out;
    bool packed = map.size && map.data[0] == 0x89; /* the first byte of an artifact; a safetensors file begins with the length of its header */
    fh_map_close(&map);
    for (size_t t = 0; t < v; t++) home[t] = FH_NO_HOME;
    if (packed) {
        if ((rc = fh_fhead_open(&artifact, path, err)) < 0 || (rc = fh_fhead_check_head(artifact, &h, err)) < 0) goto out;
        *k = h.k;
        for (size_t s = 0; s < (size_t)h.k * h.cap; s++) if (h.permutation[s] < v) home[h.permutation[s]] = (uint32_t)(s / h.cap);
    } else {
        if ((rc = fh_tensors_open(&file, path, err)) < 0 || (rc = fh_tensors_need(&a, file, "assignment", 1u << FH_I32, 1, &any, err)) < 0 ||
            (rc = fh_tensors_need(&c, file, "centroids", 1u << FH_F32, 2, shape, err)) < 0)
            goto out;
        *k = (uint32_t)fh_min(c->shape[0], UINT32_MAX);
        memcpy(home, a->data, fh_min(v, a->shape[0]) * sizeof *home);
    }
    *out = home, home = NULL;
out:
    fh_free(home);
    fh_fhead_close(artifact);
    fh_tensors_close(file);
    return rc;
}

fh_status fh_write_clusters(fh_stage_env *e, const fh_clustering *c, fh_json *record, fh_err *err)
{
    const fh_st_spec specs[] = {
        {"centroids", FH_F32, 2, {c->k, c->d}}, {"centroids_mean", FH_F32, 2, {c->k, c->d}}, {"centroids_raw", FH_F32, 2, {c->k, c->d}}, {"assignment", FH_I32, 1, {c->v}},
    };
    const void *const data[] = {c->centroids, c->mean, c->raw, c->assignment};
    return fh_result_tensors(e, FH_FILE_CLUSTERS, specs, data, 4, record, err);
}

fh_status fh_stage_cluster(fh_stage_env *e, const fh_stage_cluster_params *p, fh_json **report, fh_err *err)
{
    double began = fh_now();
    fh_facts f = {0};
    fh_clustering c = {0};
    fh_states s = {0};
    float *map = NULL;
    uint32_t *init = NULL, init_k = 0;
    char *states = NULL;
    fh_json *record = NULL;
    fh_device *device = NULL;
    fh_status rc = fh_facts_load(&f, e, err);
    if (rc < 0) return rc;
    if (p->init) {
        if ((rc = assignment_of(&init, &init_k, p->init, f.head.rows, err)) < 0) goto out;
        if ((p->k || p->cap) && fh_clusters_wanted(p, f.head.rows) != init_k) {
            rc = fh_fail(err, FH_EUSAGE, "%s has %u clusters, not %u: leave out --k and --cap, or --init", p->init, init_k, fh_clusters_wanted(p, f.head.rows));
            goto out;
        }
    }
    uint32_t k = init ? init_k : fh_clusters_wanted(p, f.head.rows);
    fh_cluster_params how = {.k = k, .seed = p->seed, .start = p->start, .metric = p->metric == FH_ALIKE_COSINE ? FH_METRIC_COSINE : FH_METRIC_EUCLIDEAN,
                             .rounds = p->rounds, .init = init, .restarts = p->restarts, .budget = p->budget, .on_round = p->on_round, .ctx = p->ctx};
    states = fh_work_path(e->work, FH_FILE_STATES);
    bool output = p->metric == FH_ALIKE_OUTPUT;
    if (!states) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    if (p->metric == FH_ALIKE_AUTO && (rc = fh_clusters_by_output(&output, e, f.head.cols, err)) < 0) goto out;
    if (output) {
        how.map = map = fh_malloc(f.head.cols * f.head.cols * sizeof *map);
        if (!map) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    }
    if ((rc = fh_device_open_clusters(&device, p->device, f.head.rows, f.head.cols, k, e->job, err)) < 0) goto out;
    how.device = fh_device_clusters(device);
    uint64_t memory = fh_cluster_memory(f.head.rows, f.head.cols, &how);
    fh_job_say(e->job, FH_INFO, "%zu rows of %zu into %u clusters, alike by %s; needs about %.0f MiB beyond the head", f.head.rows, f.head.cols, k,
               output ? "the logits they give over the states" : how.metric == FH_METRIC_COSINE ? "direction" : "distance", (double)memory / (1 << 20));
    if (output) { /* only part A: no promise may be made on what clustering saw */
        size_t n = 0, *positions = NULL;
        if ((rc = fh_states_load(&s, states, err)) < 0) goto out;
        if (s.d != f.head.cols) { rc = fh_fail(err, FH_ECHECK, "%s: states of width %zu for a head of width %zu: run 'fhtool hidden' again", states, s.d, f.head.cols); goto out; }
        positions = fh_part_a(&s, &n);
        rc = positions ? fh_output_map(map, s.d, s.hidden, positions, n, e->job, err) : fh_fail(err, FH_ENOMEM, "out of memory");
        fh_free(positions);
        if (rc < 0) goto out;
    }
    if ((rc = fh_cluster(&c, &f.head, f.dead, &how, e->job, err)) < 0) goto out;

    fh_stage_cluster_params again = *p; /* one start and so many rounds give the same as several starts or a budget did */
    if (p->restarts > 1) again.seed = c.seed;
    if (c.spent && c.rounds) again.rounds = c.rounds; /* none where none were asked for */
    fh_json *params = fh_cluster_record_params(&again, k, output);
    if (c.interrupted) fh_json_add_bool(params, "interrupted", true);
    if (init) {
        uint8_t digest[32];
        char hex[65];
        fh_sha256_of(digest, init, f.head.rows * sizeof *init);
        fh_sha256_hex(hex, digest);
        fh_json_add_string(params, "init", hex);
    }
    if (!(record = fh_record_new("cluster", params))) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    fh_json_add_double(record, "objective", c.objective);
    fh_json_add_string(record, "faiss", fh_faiss_version());
    fh_json_add_string(record, "blas", fh_gemm_library());
    if ((rc = fh_record_input(record, e->work, FH_FILE_HEAD, err)) < 0 || (rc = fh_record_input(record, e->work, FH_FILE_MODEL, err)) < 0) goto out;
    if (output && (rc = fh_record_input(record, e->work, FH_FILE_STATES, err)) < 0) goto out;
    if ((rc = fh_write_clusters(e, &c, record, err)) < 0) goto out;
    fh_stage_log(e, "cluster", began);

    fh_json *r = fh_json_object();
    fh_json_add_u64(r, "k", c.k);
    fh_json_add_u64(r, "cap", c.cap);
    fh_json_add_double(r, "objective", c.objective);
    fh_json_add_string(r, "start", init ? "init" : start_names[p->start]);
    if (!init) fh_json_add_u64(r, "seed", c.seed);
    fh_json_add_string(r, "metric", output ? "output" : how.metric == FH_METRIC_COSINE ? "cosine" : "euclidean");
    fh_json_add_u64(r, "rounds", c.rounds);
    fh_json_add_u64(r, "swaps", c.swaps);
    fh_json_add_string(r, "device", fh_device_name(device));
    fh_json_add_double(r, "seconds", fh_now() - began);
    fh_json_add_u64(r, "peak_bytes", fh_peak_bytes());
    if (c.spent) fh_json_add_bool(r, "spent", true);
    if (c.interrupted) fh_json_add_bool(r, "interrupted", true);
    *report = r;
    if (c.interrupted) rc = fh_fail(err, FH_EINTERRUPTED, "interrupted: the best clustering so far is kept (" FH_FILE_CLUSTERS ", objective %.4f)", c.objective);
out:
    fh_device_close(device);
    fh_json_free(record);
    fh_clustering_free(&c);
    fh_states_free(&s);
    fh_free(map);
    fh_free(init);
    fh_free(states);
    fh_facts_free(&f);
    return rc;
}

/* ---- route --------------------------------------------------------------------------------------------------- */

/* Members weighted by how often they were said on part A: counts^0.6 (facts: the best exponent measured without learning; the half that is
 * added gives a token never seen a small weight of its own). */
static double *count_weights(const fh_states *s, uint32_t vocab)
{
    double *w = fh_calloc(vocab, sizeof *w);
    if (!w) return NULL;
    for (size_t i = 0; i < s->n; i++)
        if (s->part[i] == FH_PART_A && s->next[i] < vocab) w[s->next[i]]++;
    for (uint32_t t = 0; t < vocab; t++) w[t] = pow(w[t] + 0.5, 0.6);
    return w;
}

size_t *fh_part_a(const fh_states *s, size_t *n)
{
    size_t *positions = fh_malloc(fh_max(s->n, 1) * sizeof *positions);
    *n = 0;
    for (size_t i = 0; positions && i < s->n; i++) if (s->part[i] == FH_PART_A) positions[(*n)++] = i;
    return positions;
}

bool fh_unit_row(float *row, size_t d)
{
    double square = 0;
    for (size_t j = 0; j < d; j++) square += (double)row[j] * row[j];
    double length = sqrt(square);
    if (!(length > 0) || !isfinite(length)) return false;
    for (size_t j = 0; j < d; j++) row[j] = (float)(row[j] / length);
    return true;
}

fh_status fh_unit_rows(float *rows, size_t n, size_t d, const char *what, fh_err *err)
{
    for (size_t i = 0; i < n; i++)
        if (!fh_unit_row(rows + i * d, d)) return fh_fail(err, FH_ECHECK, "%s: centroid %zu is zero or not finite and has no direction", what, i);
    return FH_OK;
}

/* From the weighted means on; tokens that move get an assignment of their own. */
static fh_status learn(fh_routing *r, const fh_stage_route_params *how, const fh_facts *f, const fh_parted *p, const fh_states *states, const fh_job *job,
                       fh_learn_report *learned, fh_err *err)
{
    fh_dense dense = fh_facts_dense(f);
    fh_learn_report said;
    const fh_learn_params params = {.unit = how->unit, .moves = how->moves};
    size_t n, *positions = fh_part_a(states, &n);
    if (!learned) learned = &said;
    r->assignment_made = fh_malloc(p->c.v * sizeof *r->assignment_made);
    fh_status rc = positions && r->assignment_made ? FH_OK : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc < 0) goto out;
    memcpy(r->assignment_made, p->c.assignment, p->c.v * sizeof *r->assignment_made);
    rc = fh_learn_routing(r->centroids_made, p->c.k, r->assignment_made, &dense, states->hidden, positions, n, &params, job, learned, err);
    if (rc == FH_OK && !learned->swaps) fh_free(r->assignment_made), r->assignment_made = NULL;
    if (r->assignment_made) r->assignment = r->assignment_made;
out:
    fh_free(positions);
    return rc;
}

fh_status fh_routing_of(fh_routing *out, const fh_stage_route_params *how, const fh_facts *f, const fh_parted *p, const fh_states *states, const fh_job *job,
                        fh_learn_report *learned, fh_err *err)
{
    const char *name = how->routing;
    bool learns = !strcmp(name, "learned"), means = !strcmp(name, "mean") || !strcmp(name, "raw");
    size_t cells = (size_t)p->c.k * p->c.d;
    fh_routing r = {.name = name, .centroids = !strcmp(name, "mean") ? p->c.mean : p->c.raw, .assignment = p->c.assignment};
    fh_status rc = FH_OK;
    double *w = NULL;
    *out = (fh_routing){0};
    if (!learns && !means && strcmp(name, "weighted")) return fh_fail(err, FH_EUSAGE, "--routing: '%s' is none of mean, weighted, raw, learned", name);
    if (!means && !states) return fh_fail(err, FH_ENOTFOUND, "--routing %s: needs states: run 'fhtool hidden' first", name);
    if (means && !how->unit) { *out = r; return FH_OK; }
    if (!(r.centroids_made = fh_malloc(cells * sizeof *r.centroids_made))) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    if (means) {
        memcpy(r.centroids_made, r.centroids, cells * sizeof *r.centroids_made);
    } else {
        w = count_weights(states, p->c.v);
        rc = w ? fh_weighted_centroids(r.centroids_made, &p->c, &f->head, f->dead, w, job, err) : fh_fail(err, FH_ENOMEM, "out of memory");
    }
    if (rc < 0) goto out;
    if (learns) rc = learn(&r, how, f, p, states, job, learned, err);
    else if (how->unit) rc = fh_unit_rows(r.centroids_made, p->c.k, p->c.d, name, err);
    if (rc < 0) goto out;
    r.centroids = r.centroids_made;
    *out = r, r = (fh_routing){0};
out:
    fh_free(w);
    fh_routing_free(&r);
    return rc;
}

fh_status fh_write_routing(fh_stage_env *e, const fh_routing *r, bool asked, const fh_stage_route_params *how, const fh_parted *p, const char *states_file, fh_err *err)
{
    fh_json *params = fh_json_object();
    fh_json_add_string(params, "routing", r->name);
    fh_json_add_bool(params, "asked", asked);
    if (how->unit) fh_json_add_bool(params, "unit", true);
    if (how->moves) fh_json_add_u64(params, "moves", how->moves);
    fh_json *record = fh_record_new("route", params);
    fh_status rc = record ? fh_record_input(record, e->work, FH_FILE_CLUSTERS, err) : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc == FH_OK && states_file) rc = fh_record_input(record, e->work, states_file, err);
    const fh_st_spec specs[] = {{"centroids", FH_F32, 2, {p->c.k, p->c.d}}, {"assignment", FH_I32, 1, {p->c.v}}};
    const void *const data[] = {r->centroids, r->assignment};
    if (rc == FH_OK) rc = fh_result_tensors(e, FH_FILE_ROUTING, specs, data, r->assignment == p->c.assignment ? 1 : 2, record, err);
    fh_json_free(record);
    return rc;
}

fh_status fh_stage_route(fh_stage_env *e, const fh_stage_route_params *params, fh_json **report, fh_err *err)
{
    double began = fh_now();
    fh_facts f = {0};
    fh_parted p = {0};
    fh_states s = {0};
    fh_routing made = {0};
    fh_stage_route_params how = *params;
    char *states = fh_work_path(e->work, FH_FILE_STATES);
    const char *routing = how.routing;
    bool asked = routing != NULL;
    if (how.moves && asked && strcmp(routing, "learned")) {
        fh_free(states);
        return fh_fail(err, FH_EUSAGE, "--moves: tokens move to where learned centroids expect them: leave it out with --routing %s", routing);
    }
    fh_status rc = states ? fh_need(e, FH_FILE_CLUSTERS, err) : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc < 0 || (rc = fh_facts_load(&f, e, err)) < 0 || (rc = fh_parted_load(&p, e, &f, err)) < 0) goto out;
    size_t to_fit;
    if ((rc = fh_states_to_fit(&to_fit, e, err)) < 0) goto out;
    if (!routing) routing = to_fit >= FH_FEW_STATES ? "learned" : to_fit ? "weighted" : "raw"; /* raw is what the clustering holds to be best without states */
    bool uses_states = (!strcmp(routing, "weighted") || !strcmp(routing, "learned")) && to_fit, learns = !strcmp(routing, "learned");
    fh_learn_report learned = {0};
    if (uses_states && (rc = fh_states_load(&s, states, err)) < 0) goto out;
    if (!asked && learns) { /* what nobody asked for may not stand in the way */
        size_t n, *positions = fh_part_a(&s, &n);
        if (!positions) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
        fh_free(positions);
        if (n < FH_LEARN_STATES) {
            fh_job_say(e->job, FH_WARN, "%zu states are too few to learn routing from (%d): members are weighted by their counts instead", n, FH_LEARN_STATES);
            routing = "weighted", learns = false;
        }
    }
    how.routing = routing;
    if ((rc = fh_routing_of(&made, &how, &f, &p, uses_states ? &s : NULL, e->job, &learned, err)) < 0) goto out;
    if ((rc = fh_write_routing(e, &made, asked, &how, &p, uses_states ? FH_FILE_STATES : NULL, err)) < 0) goto out;
    fh_stage_log(e, "route", began);
    size_t used = 0;
    for (size_t i = 0; i < s.n; i++) used += s.part[i] == FH_PART_A;
    fh_json *r = fh_json_object();
    fh_json_add_string(r, "routing", routing);
    fh_json_add_u64(r, "states", used);
    if (learns) {
        fh_json_add_double(r, "loss", learned.loss);
        fh_json_add_double(r, "loss_before", learned.loss_before);
        fh_json_add_u64(r, "passes", learned.passes);
        fh_json_add_double(r, "target_seconds", learned.target_seconds);
        fh_json_add_double(r, "target_gflops", learned.target_operations / learned.target_seconds / 1e9);
        fh_json_add_double(r, "pass_seconds", learned.pass_seconds / fh_max(learned.made, 1));
        fh_json_add_double(r, "pass_gflops", learned.pass_operations / learned.pass_seconds / 1e9);
        if (how.moves) {
            size_t moved = 0;
            for (uint32_t t = 0; t < p.c.v; t++) moved += made.assignment[t] != p.c.assignment[t];
            fh_json_add_u64(r, "moves", learned.moves);
            fh_json_add_u64(r, "swaps", learned.swaps);
            fh_json_add_u64(r, "moved", moved);
            fh_json_add_double(r, "move_seconds", learned.move_seconds);
        }
    } else {
        fh_json_add_null(r, "loss");
    }
    fh_json_add_double(r, "seconds", fh_now() - began);
    *report = r;
out:
    fh_routing_free(&made);
    fh_states_free(&s);
    fh_parted_free(&p);
    fh_facts_free(&f);
    fh_free(states);
    return rc;
}

/* ---- quantize ------------------------------------------------------------------------------------------------- */

fh_status fh_permutation_of(uint32_t **out, const fh_clustering *c, fh_err *err)
{
    size_t slots = (size_t)c->k * c->cap;
    uint32_t *perm = fh_malloc(slots * sizeof *perm), *at = fh_calloc(c->k, sizeof *at);
    fh_status rc = perm && at ? FH_OK : fh_fail(err, FH_ENOMEM, "out of memory for the order of %zu rows", slots);
    for (size_t i = 0; rc == FH_OK && i < slots; i++) perm[i] = FH_NO_TOKEN;
    for (uint32_t t = 0; rc == FH_OK && t < c->v; t++) {
        uint32_t k = c->assignment[t];
        if (at[k] == c->cap) rc = fh_fail(err, FH_EFORMAT, "cluster %u has more than %u tokens: run 'fhtool cluster' and 'fhtool route' again", k, c->cap);
        else perm[(size_t)k * c->cap + at[k]++] = t;
    }
    if (rc < 0) fh_free(perm), perm = NULL;
    *out = perm;
    fh_free(at);
    return rc;
}

fh_status fh_quantized_room(fh_quantized *out, const fh_clustering *c, size_t *bytes, fh_err *err)
{
    size_t slots = (size_t)c->k * c->cap, c_bytes, t_bytes, c_each = fh_scale_bytes(out->centroids, c->d), t_each = fh_scale_bytes(out->tokens, c->d);
    if (!fh_mul(c->k, fh_enc_stride(out->centroids, c->d), &c_bytes) || !fh_mul(slots, fh_enc_stride(out->tokens, c->d), &t_bytes)) return fh_fail(err, FH_ENOMEM, "the encoded rows pass the address space");
    fh_status rc = fh_permutation_of(&out->permutation, c, err);
    if (rc < 0) return rc;
    out->c_data = fh_aligned(c_bytes), out->t_data = fh_aligned(t_bytes);
    out->c_scales = fh_malloc(c->k * c_each + 1), out->t_scales = fh_malloc(slots * t_each + 1);
    *bytes = c_bytes + t_bytes + c->k * c_each + slots * t_each;
    if (!out->c_data || !out->t_data || !out->c_scales || !out->t_scales) return fh_fail(err, FH_ENOMEM, "out of memory for %zu bytes of encoded rows", *bytes);
    return FH_OK;
}

void fh_quantized_free(fh_quantized *q)
{
    fh_free(q->permutation);
    fh_free(q->c_data);
    fh_free(q->t_data);
    fh_free(q->c_scales);
    fh_free(q->t_scales);
    *q = (fh_quantized){0};
}

fh_status fh_quantized_write(fh_stage_env *e, const fh_quantized *q, const fh_clustering *c, fh_json *record, fh_err *err)
{
    size_t slots = (size_t)c->k * c->cap, n = 3;
    fh_st_spec specs[5] = {fh_encoded_spec("centroids", q->centroids, c->k, fh_enc_stride(q->centroids, c->d)), fh_encoded_spec("tokens", q->tokens, slots, fh_enc_stride(q->tokens, c->d)),
                           {"permutation", FH_U32, 1, {slots}}};
    const void *data[5] = {q->c_data, q->t_data, q->permutation};
    if (fh_dtype_is_integer(q->centroids)) specs[n] = fh_scales_spec("centroid_scales", q->centroids, c->k, c->d), data[n++] = q->c_scales;
    if (fh_dtype_is_integer(q->tokens)) specs[n] = fh_scales_spec("token_scales", q->tokens, slots, c->d), data[n++] = q->t_scales;
    return fh_result_tensors(e, FH_FILE_QUANTIZED, specs, data, n, record, err);
}

/* The converted model's tokenizer, for naming tokens in a report; NULL where it is gone or cannot be used. */
static fh_status namer(fh_tokenizer **out, fh_stage_env *e, fh_err *err)
{
    fh_err mine;
    fh_status rc = FH_OK;
    if (!err) err = &mine;
    char *text = NULL, *dir = fh_source_path(e, err), *path = dir ? fh_path_join(dir, "tokenizer.json") : NULL;
    size_t len = 0;
    *out = NULL;
    if (!path) rc = dir ? fh_fail(err, FH_ENOMEM, "out of memory") : err->code;
    else if ((rc = fh_file_read(&text, &len, path, (size_t)1 << 30, err)) == FH_OK) rc = fh_tokenizer_open(out, text, len, NULL, path, NULL, err);
    fh_free(text);
    fh_free(path);
    fh_free(dir);
    return rc == FH_ENOMEM ? rc : FH_OK;
}

static void add_error(fh_json *to, const fh_quant_error *q, const char *key, const fh_tokenizer *names)
{
    char shown[80];
    size_t n;
    const char *piece = names ? fh_tokenizer_piece(names, q->worst, &n) : NULL;
    fh_json *j = fh_json_add_object(to, key);
    fh_json_add_double(j, "mean", q->mean);
    fh_json_add_double(j, "p99", q->p99);
    fh_json_add_double(j, "max", q->max);
    fh_json_add_u64(j, "worst", q->worst);
    if (piece) fh_json_add_string(j, "worst_text", fh_show(shown, sizeof shown, piece, n));
}

fh_status fh_stage_quantize(fh_stage_env *e, fh_dtype centroids, fh_dtype tokens, fh_json **report, fh_err *err)
{
    double began = fh_now();
    fh_facts f = {0};
    fh_parted p = {0};
    fh_tensors *routing = NULL;
    fh_json *record = NULL, *routing_record = NULL;
    fh_routing used;
    fh_tokenizer *names = NULL;
    fh_quantized made = {.centroids = centroids, .tokens = tokens};
    size_t bytes;
    fh_quant_error c_err, t_err;
    char *path = fh_work_path(e->work, FH_FILE_ROUTING);
    fh_status rc = path ? fh_need(e, FH_FILE_ROUTING, err) : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc < 0 || (rc = fh_facts_load(&f, e, err)) < 0 || (rc = fh_parted_load(&p, e, &f, err)) < 0) goto out;
    if ((rc = fh_tensors_open(&routing, path, err)) < 0 || (rc = fh_work_record(e->work, FH_FILE_ROUTING, &routing_record, err)) < 0) goto out;
    if ((rc = fh_routing_read(&used, routing, &p, err)) < 0) goto out;
    p.c.assignment = (uint32_t *)(uintptr_t)used.assignment;
    if ((rc = fh_quantized_room(&made, &p.c, &bytes, err)) < 0) goto out;
    fh_rows from = {used.centroids, FH_F32, p.c.k, p.c.d, p.c.d * sizeof(float)};
    if ((rc = fh_encode_centroids(centroids, &from, e->job, made.c_data, made.c_scales, &c_err, err)) < 0) goto out;
    if ((rc = fh_encode_rows(tokens, &f.head, made.permutation, (size_t)p.c.k * p.c.cap, f.dead, e->job, made.t_data, made.t_scales, &t_err, err)) < 0) goto out;

    const char *name = fh_json_string(fh_json_get(fh_json_get(routing_record, "params"), "routing"));
    fh_json *params = fh_json_object();
    fh_json_add_string(params, "centroids", fh_dtype_name(centroids));
    fh_json_add_string(params, "tokens", fh_dtype_name(tokens));
    fh_json_add_string(params, "routing", name ? name : "raw");
    if (!(record = fh_record_new("quantize", params))) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    if ((rc = fh_record_input(record, e->work, FH_FILE_HEAD, err)) < 0 || (rc = fh_record_input(record, e->work, FH_FILE_CLUSTERS, err)) < 0 ||
        (rc = fh_record_input(record, e->work, FH_FILE_ROUTING, err)) < 0) goto out;
    if ((rc = namer(&names, e, err)) < 0) goto out;
    if ((rc = fh_quantized_write(e, &made, &p.c, record, err)) < 0) goto out;
    fh_stage_log(e, "quantize", began);

    fh_json *r = fh_json_object();
    fh_json_add_string(r, "centroids", fh_dtype_name(centroids));
    fh_json_add_string(r, "tokens", fh_dtype_name(tokens));
    fh_json_add_u64(r, "bytes", bytes);
    add_error(r, &t_err, "error", names);
    add_error(r, &c_err, "centroid_error", NULL);
    fh_json_add_double(r, "seconds", fh_now() - began);
    *report = r;
out:
    fh_tokenizer_close(names);
    fh_json_free(record);
    fh_json_free(routing_record);
    fh_tensors_close(routing);
    fh_free(path);
    fh_quantized_free(&made);
    fh_parted_free(&p);
    fh_facts_free(&f);
    return rc;
}
