/* runtime/choose.c: one token from one state: the best, or one by chance, and what share of the probability it was drawn from.
 *
 * Covered mass of a draw from FlashHead's candidates: where routing was learned, its scores are log masses of the clusters but for a
 * constant (calib/learn.c), so that the softmax over them, summed over the probed clusters, estimates it.  Otherwise calibration's average
 * at as many probes is all that is known; and where a GPU draws, since the scores stay there.  Both are of temperature 1.  Measuring costs a dense head every time and is of the temperature
 * in use.  docs/measurements/exact-sampling.md sets them side by side.
 */
#include "runtime/generate_private.h"

#include <math.h>
#include <string.h>

bool fh_chooser_is_dense(const fh_chooser *c) { return c->p->head == FH_HEAD_DENSE || !c->m->head; }
/* The artifact's own exact rows where it has them; a head-only one leaves the dense head to its base model. */
static bool dense_in_file(const fh_chooser *c) { return c->m->head && fh_head_get_info(c->m->head)->exact; }
static bool greedy(const fh_chooser *c) { return !(c->p->sampling.temperature > 0); }
static bool penalised(const fh_chooser *c) { return c->p->penalty > 0 && c->p->penalty != 1; }

bool fh_chooser_is_there(const fh_chooser *c)
{
    if (!fh_device_keeps_state(c->m->device) || penalised(c) || c->p->audit) return false;
    return fh_chooser_is_dense(c) ? greedy(c) && dense_in_file(c) : !c->bounds && c->mass_kind != FH_MASS_MEASURED;
}

/* ---- opening --------------------------------------------------------------------------------------------------- */

/* What the artifact knows of its covered mass without looking. */
static fh_mass_kind known_mass(fh_chooser *c)
{
    const fh_fhead *file = fh_head_file(c->m->head);
    const fh_json *header = file ? fh_fhead_header(file) : NULL, *head = header ? fh_json_get(header, "head") : NULL;
    const fh_json *routing = head ? fh_json_get(head, "routing") : NULL, *calibration = header ? fh_json_get(header, "calibration") : NULL;
    if (!fh_device_has_head(c->m->device) && routing && fh_json_string(routing) && !strcmp(fh_json_string(routing), "learned")) return FH_MASS_ROUTING;
    const fh_json *curve = calibration && !c->p->query.no_hot ? fh_json_get(calibration, "curve") : NULL;
    if (c->adaptive) { /* no point of the curve probes as this head does */
        const fh_json *mass = calibration ? fh_json_get(fh_json_get(calibration, "heldout"), "mass") : NULL;
        return mass && !c->p->query.no_hot && fh_json_double(mass, &c->mass_known) ? FH_MASS_CALIBRATION : FH_MASS_NONE;
    }
    for (const fh_json *point = curve ? fh_json_first(curve) : NULL; point; point = fh_json_next(point)) {
        uint64_t probes;
        const fh_json *p = fh_json_get(point, "probes"), *mass = fh_json_get(point, "mass");
        if (p && mass && fh_json_u64(p, &probes) && probes == c->probes && fh_json_double(mass, &c->mass_known)) return FH_MASS_CALIBRATION;
    }
    return FH_MASS_NONE;
}

static fh_status open_flash(fh_chooser *c, fh_err *err)
{
    const fh_model *m = c->m;
    const fh_head_info *info = fh_head_get_info(m->head);
    fh_status rc = fh_scratch_on(&c->scratch, m->head, c->pool, err);
    if (rc < 0) return rc;
    fh_scratch_use(c->scratch, m->device);
    c->probes = c->p->query.probes ? c->p->query.probes : info->probes;
    if (c->probes > info->clusters) c->probes = info->clusters;
    c->adaptive = !c->p->query.probes && info->threshold > 0;
    if (!(c->clusters = fh_malloc(fh_max(c->probes, 1) * sizeof *c->clusters))) return fh_fail(err, FH_ENOMEM, "out of memory");
    if (fh_chooser_is_dense(c)) return FH_OK;
    if (c->p->audit || (c->p->measure_mass && !greedy(c))) {
        if (!dense_in_file(c) && !m->dense.rows.data)
            return fh_fail(err, FH_ENOTFOUND, "the head has no exact rows to %s against: pack it as a bundle or with --exact", c->p->audit ? "be audited" : "measure its covered mass");
        if (!(c->all = fh_malloc(m->config->vocab * sizeof *c->all))) return fh_fail(err, FH_ENOMEM, "out of memory");
    }
    if (c->p->exact) return fh_bounds_new(&c->bounds, m->head, c->scratch, err);
    if (greedy(c)) return FH_OK;
    c->mass_kind = c->p->measure_mass ? FH_MASS_MEASURED : known_mass(c);
    if (c->mass_kind != FH_MASS_ROUTING) return FH_OK;
    c->scores = fh_malloc(info->clusters * sizeof *c->scores);
    c->probed = fh_calloc(info->clusters, 1);
    return c->scores && c->probed ? FH_OK : fh_fail(err, FH_ENOMEM, "out of memory");
}

fh_status fh_chooser_open(fh_chooser *c, const fh_model *m, const fh_generate_params *p, const fh_job *job, fh_err *err)
{
    *c = (fh_chooser){.m = m, .p = p, .pool = fh_job_pool(job)};
    fh_status rc = m->head ? open_flash(c, err) : FH_OK;
    if (rc < 0) return rc;
    size_t v = m->config->vocab, room = m->head ? fh_max(fh_head_max_candidates(m->head, &p->query), v) : v;
    c->ids = fh_malloc(room * sizeof *c->ids);
    c->logits = fh_malloc(room * sizeof *c->logits);
    if (penalised(c)) c->count = fh_calloc(v, sizeof *c->count), c->seen = fh_calloc(v, 1);
    if (!c->ids || !c->logits || (penalised(c) && (!c->count || !c->seen))) return fh_fail(err, FH_ENOMEM, "out of memory");
    fh_rng_seed(&c->rng, p->seed, 0x67);
    return FH_OK;
}

void fh_chooser_close(fh_chooser *c)
{
    fh_bounds_free(c->bounds);
    fh_scratch_free(c->scratch);
    fh_free(c->ids);
    fh_free(c->clusters);
    fh_free(c->logits);
    fh_free(c->all);
    fh_free(c->scores);
    fh_free(c->probed);
    fh_free(c->count);
    fh_free(c->seen);
    *c = (fh_chooser){0};
}

/* ---- what was said already ---------------------------------------------------------------------------------------- */

void fh_chooser_context(fh_chooser *c, const uint32_t *tokens, size_t n)
{
    if (!c->seen) return;
    size_t v = c->m->config->vocab, last = c->p->repeat_last;
    memset(c->count, 0, v * sizeof *c->count);
    memset(c->seen, 0, v);
    for (size_t i = last && n > last ? n - last : 0; i < n; i++) c->count[tokens[i]]++, c->seen[tokens[i]] = 1;
}

void fh_chooser_follow(fh_chooser *c, const uint32_t *tokens, size_t n)
{
    if (!c->seen) return;
    size_t last = c->p->repeat_last;
    c->count[tokens[n - 1]]++, c->seen[tokens[n - 1]] = 1;
    if (!last || n <= last) return;
    uint32_t gone = tokens[n - 1 - last];
    c->seen[gone] = --c->count[gone] > 0;
}

/* ---- covered mass -------------------------------------------------------------------------------------------------- */

/* The share of exp(x / t) that the candidates hold, x by token. */
static double measured_share(fh_chooser *c, size_t n, double t)
{
    const fh_model *m = c->m;
    double top = -INFINITY, in = 0, all = 0;
    for (uint32_t i = 0; i < m->config->vocab; i++)
        if (!m->dense.dead || !m->dense.dead[i]) top = fmax(top, (double)c->all[i]);
    for (uint32_t i = 0; i < m->config->vocab; i++)
        if (!m->dense.dead || !m->dense.dead[i]) all += exp(((double)c->all[i] - top) / t);
    for (size_t i = 0; i < n; i++) in += exp(((double)c->all[c->ids[i]] - top) / t);
    return all > 0 ? fmin(in / all, 1) : 0;
}

/* Routing's own softmax over the clusters gives the probed ones' share; the other candidates have theirs beside it by their logits. */
static double routed_share(fh_chooser *c, size_t n)
{
    const fh_head_info *info = fh_head_get_info(c->m->head);
    const uint32_t *slots = fh_head_slots(c->m->head);
    double top = -INFINITY, probed = 0, all = 0, best = -INFINITY, inside = 0, total = 0;
    uint32_t n_clusters = fh_head_routed(c->clusters, c->probes);
    for (uint32_t k = 0; k < info->clusters; k++) top = fmax(top, (double)c->scores[k]);
    for (uint32_t k = 0; k < info->clusters; k++) all += exp((double)c->scores[k] - top);
    for (uint32_t i = 0; i < n_clusters; i++) probed += exp((double)c->scores[c->clusters[i]] - top), c->probed[c->clusters[i]] = 1;
    for (size_t i = 0; i < n; i++) best = fmax(best, (double)c->logits[i]);
    for (size_t i = 0; i < n; i++) {
        double w = exp((double)c->logits[i] - best);
        total += w;
        if (c->probed[slots[c->ids[i]] / info->cap]) inside += w;
    }
    for (uint32_t i = 0; i < n_clusters; i++) c->probed[c->clusters[i]] = 0;
    return inside > 0 && all > 0 ? fmin(probed / all * total / inside, 1) : 0;
}

static fh_status dense_logits(fh_chooser *c, const float *state, float *out, fh_err *err)
{
    if (dense_in_file(c)) return fh_head_dense_logits(c->m->head, c->scratch, state, out, err);
    return fh_dense_logits(&c->m->dense, c->pool, state, 1, out, err);
}

static fh_status count_mass(fh_chooser *c, const float *state, size_t n, fh_generate_stats *stats, fh_err *err)
{
    fh_status rc = FH_OK;
    double share = c->mass_known;
    if (c->mass_kind == FH_MASS_MEASURED) {
        if ((rc = dense_logits(c, state, c->all, err)) < 0) return rc;
        share = measured_share(c, n, (double)c->p->sampling.temperature);
    }
    if (c->mass_kind == FH_MASS_ROUTING) {
        if ((rc = fh_head_cluster_scores(c->m->head, c->pool, state, 1, c->scores, err)) < 0) return rc;
        share = routed_share(c, n);
    }
    stats->mass_kind = c->mass_kind;
    stats->mass += (share - stats->mass) / (double)stats->draws; /* the mean so far */
    return FH_OK;
}

/* ---- choosing -------------------------------------------------------------------------------------------------------- */

/* Live tokens and their logits from the dense head. */
static fh_status dense_candidates(fh_chooser *c, const float *state, size_t *count, fh_err *err)
{
    const fh_model *m = c->m;
    fh_status rc = dense_logits(c, state, c->logits, err);
    if (rc < 0) return rc;
    size_t n = 0;
    for (uint32_t t = 0; t < m->config->vocab; t++)
        if (!m->dense.dead || !m->dense.dead[t]) c->ids[n] = t, c->logits[n++] = c->logits[t];
    *count = n;
    return FH_OK;
}

/* The live token of the largest of all logits [V], the smallest id among equals; UINT32_MAX: there is none above -infinity. */
static uint32_t best_live(const fh_model *m, const float *logits)
{
    uint32_t best = UINT32_MAX;
    float top = -INFINITY;
    for (uint32_t t = 0; t < m->config->vocab; t++)
        if (logits[t] > top && !(m->dense.dead && m->dense.dead[t])) best = t, top = logits[t];
    return best;
}

static fh_status flash_candidates(fh_chooser *c, const float *state, size_t *n, fh_err *err)
{
    fh_status rc = fh_head_route(c->m->head, c->scratch, state, 1, c->p->query.probes, c->clusters, NULL, err);
    if (rc < 0) return rc;
    return fh_head_score(c->m->head, c->scratch, state, c->clusters, c->probes, &c->p->query, c->ids, c->logits, n, err);
}

static fh_status draw_exact(fh_chooser *c, const float *state, const fh_penalty *penalty, fh_generate_stats *stats, uint32_t *id, fh_err *err)
{
    fh_draw draw;
    fh_status rc = fh_head_draw(c->m->head, c->scratch, c->bounds, state, c->p->sampling.temperature, penalty, fh_rng_u64(&c->rng), &draw, err);
    if (rc < 0) return rc;
    *id = draw.id;
    stats->exact_rows += (double)draw.rows, stats->exact_clusters += (double)draw.clusters, stats->exact_dense += draw.dense;
    return FH_OK;
}

fh_status fh_chooser_choose(fh_chooser *c, const float *state, fh_generate_stats *stats, uint32_t *id, fh_err *err)
{
    fh_status rc;
    size_t n;
    bool dense = fh_chooser_is_dense(c);
    const fh_penalty penalty = {c->p->penalty, c->seen};
    if (greedy(c) && !c->seen && !dense) {
        if ((rc = fh_head_greedy(c->m->head, c->scratch, state, 1, &c->p->query, id, err)) < 0) return rc;
        return *id == UINT32_MAX ? fh_fail(err, FH_ECHECK, "no token is left to choose from") : FH_OK;
    }
    if (greedy(c) && !c->seen && dense_in_file(c)) {
        float best;
        return fh_head_dense_topk(c->m->head, c->scratch, state, 1, 1, id, &best, err);
    }
    if (greedy(c) && !c->seen) {
        if ((rc = dense_logits(c, state, c->logits, err)) < 0) return rc;
        *id = best_live(c->m, c->logits);
        return *id == UINT32_MAX ? fh_fail(err, FH_ECHECK, "no token is left to choose from") : FH_OK;
    }
    stats->draws += !greedy(c);
    if (c->bounds) return draw_exact(c, state, c->seen ? &penalty : NULL, stats, id, err);
    if (fh_device_has_head(c->m->device) && !dense && !c->seen && c->mass_kind != FH_MASS_MEASURED) {
        double random = fh_rng_double(&c->rng);
        stats->mass_kind = c->mass_kind, stats->mass = c->mass_known;
        return fh_head_sample(c->m->head, c->scratch, state, 1, &c->p->query, &c->p->sampling, &random, id, err);
    }
    if ((rc = dense ? dense_candidates(c, state, &n, err) : flash_candidates(c, state, &n, err)) < 0) return rc;
    if (!dense && !greedy(c) && (rc = count_mass(c, state, n, stats, err)) < 0) return rc;
    for (size_t i = 0; c->seen && i < n; i++) c->logits[i] = fh_penalize(&penalty, c->ids[i], c->logits[i]);
    return fh_sample(&c->p->sampling, c->ids, c->logits, n, greedy(c) ? 0 : fh_rng_double(&c->rng), id, err);
}

/* ---- audits ---------------------------------------------------------------------------------------------------------- */

fh_status fh_chooser_audit(fh_chooser *c, const float *state, fh_generate_stats *stats, fh_err *err)
{
    const fh_model *m = c->m;
    size_t n;
    uint32_t dense, flash = UINT32_MAX;
    float best = -INFINITY;
    if (!c->p->audit || fh_chooser_is_dense(c) || ++c->states % c->p->audit) return FH_OK;
    fh_status rc = flash_candidates(c, state, &n, err);
    if (rc < 0 || (rc = dense_logits(c, state, c->all, err)) < 0) return rc;
    dense = best_live(m, c->all);
    for (size_t i = 0; i < n; i++)
        if (c->logits[i] > best || (c->logits[i] == best && c->ids[i] < flash)) best = c->logits[i], flash = c->ids[i];
    for (size_t i = 0; i < n; i++) stats->audit.contained += c->ids[i] == dense;
    stats->audit.agreed += flash == dense;
    stats->audit.mass += measured_share(c, n, 1);
    stats->audit.states++;
    return FH_OK;
}
