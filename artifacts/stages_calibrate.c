/* calibrate: the promise made on states. */
#include "artifacts/stages_private.h"

#include <math.h>
#include <string.h>

fh_json *fh_add_point(fh_json *list, const fh_point *p)
{
    fh_json *j = fh_json_add_object(list, NULL);
    fh_json_add_u64(j, "probes", p->probes);
    fh_json_add_double(j, "top1", p->top1);
    fh_json_add_double(j, "top3", p->top3);
    fh_json_add_double(j, "top5", p->top5);
    fh_json_add_double(j, "top10", p->top10);
    fh_json_add_double(j, "agreement", p->agreement);
    fh_json_add_double(j, "mass", p->mass);
    fh_json_add_double(j, "kl", p->kl);
    return j;
}

static const char *const promised[FH_PROMISES] = {"containment", "agreement", "mass"};

static void add_promises(fh_json *to, const fh_calibration *c, uint32_t k)
{
    fh_json *list = fh_json_add_array(to, "promises");
    for (int i = 0; i < FH_PROMISES; i++) {
        const fh_promise *p = &c->promise[i];
        if (!(p->target > 0)) continue;
        fh_json *j = fh_json_add_object(list, NULL);
        fh_json_add_string(j, "what", promised[i]);
        if (i == FH_CONTAINED) fh_json_add_u64(j, "k", k); else fh_json_add_null(j, "k");
        fh_json_add_double(j, "target", p->target);
        fh_json_add_double(j, "bound", p->bound.lower);
        fh_json_add_double(j, "misses", p->misses);
        fh_json_add_double(j, "design_effect", p->bound.effect);
        fh_json_add_double(j, "effective_positions", p->bound.effective);
        fh_json_add_double(j, "heldout", p->heldout);
    }
}

/* Adaptive probing: `probes` are the most. */
static void add_probed(fh_json *to, const fh_calibration *c)
{
    fh_json_add_string(to, "probing", "adaptive");
    fh_json_add_double(to, "threshold", (double)c->threshold);
    if (!c->reached) return;
    fh_json *j = fh_json_add_object(to, "probed");
    fh_json_add_double(j, "mean", c->mean_probes);
    fh_json_add_u64(j, "p50", c->probes_p50);
    fh_json_add_u64(j, "p99", c->probes_p99);
    fh_json_add_u64(j, "max", c->probes_max);
}

static fh_json *body_of(const fh_calibration *c, const fh_calibrate_params *p, uint32_t rerank, const fh_choice *choice, const char *text, const char *digest)
{
    fh_json *j = fh_json_object(), *list;
    const fh_promise *contained = &c->promise[FH_CONTAINED];
    fh_json_add_u64(j, "probes", c->probes);
    fh_json_add_u64(j, "hot", c->n_hot);
    list = fh_json_add_array(j, "hot_ids");
    for (size_t i = 0; i < c->n_hot; i++) fh_json_add_u64(list, NULL, c->hot[i]);
    fh_json_add_string(j, "routing", choice->routing);
    fh_json_add_string(j, "centroids", choice->centroids);
    fh_json_add_string(j, "tokens", choice->tokens);
    if (p->adaptive) add_probed(j, c);
    if (p->vllm) fh_json_add_string(j, "runtime", "vllm");
    fh_json_add_double(j, "target", contained->target > 0 ? contained->target : NAN);
    fh_json_add_double(j, "confidence", p->confidence);
    fh_json_add_u64(j, "containment_k", p->containment_k);
    fh_json_add_double(j, "max_cost", p->max_cost);
    fh_json_add_u64(j, "positions", c->positions[FH_PART_B]);
    fh_json_add_u64(j, "documents", c->documents[FH_PART_B]);
    fh_json_add_u64(j, "misses", (uint64_t)contained->misses);
    fh_json_add_double(j, "design_effect", contained->bound.effect);
    fh_json_add_double(j, "effective_positions", contained->bound.effective);
    fh_json_add_double(j, "bound", contained->bound.lower);
    fh_json *held = fh_json_add_object(j, "heldout");
    fh_json_add_double(held, "containment", contained->heldout);
    fh_json_add_double(held, "agreement", c->promise[FH_AGREED].heldout);
    fh_json_add_double(held, "mass", c->promise[FH_COVERED].heldout);
    fh_json_add_u64(held, "positions", c->positions[FH_PART_C]);
    add_promises(j, c, p->containment_k);
    fh_json_add_u64(j, "rerank", rerank);
    fh_json_add_double(j, "step_bytes", c->step_bytes);
    fh_json_add_double(j, "dense_bytes", c->dense_bytes);
    fh_json_add_string(j, "text", text);
    if (digest) fh_json_add_string(j, "text_sha256", digest);
    list = fh_json_add_array(j, "curve");
    for (size_t i = 0; i < c->n_curve; i++) fh_add_point(list, &c->curve[i]);
    return j;
}

fh_json *fh_calibrate_record_params(const fh_stage_calibrate_params *s)
{
    const fh_calibrate_params *p = &s->how;
    fh_json *j = fh_json_object();
    fh_json_add_double(j, "target", p->targets[FH_CONTAINED]);
    fh_json_add_double(j, "target_agreement", p->targets[FH_AGREED]);
    fh_json_add_double(j, "target_mass", p->targets[FH_COVERED]);
    fh_json_add_double(j, "confidence", p->confidence);
    fh_json_add_u64(j, "containment_k", p->containment_k);
    fh_json_add_i64(j, "hot", p->hot);
    fh_json_add_i64(j, "rerank", p->rerank);
    fh_json_add_double(j, "max_cost", p->max_cost);
    fh_json_add_string(j, "cheapest", p->by_time ? "time" : "bytes");
    if (p->adaptive) fh_json_add_string(j, "probing", "adaptive");
    if (p->vllm) fh_json_add_string(j, "runtime", "vllm");
    return j;
}

static fh_status save_calibration(fh_stage_env *e, const fh_calibration *c, const fh_stage_calibrate_params *p, uint32_t rerank, const fh_choice *choice,
                                  const char *states_file, fh_json **report, fh_err *err)
{
    fh_json *states = NULL, *record = NULL, *body = NULL;
    fh_status rc = fh_work_record(e->work, states_file, &states, err);
    if (rc < 0) return rc;
    const char *text = fh_json_string(fh_json_get(fh_json_get(fh_json_get(states, "params"), "asked"), "text")),
        *digest = fh_json_string(fh_json_get(states, "text_sha256"));
    body = body_of(c, &p->how, rerank, choice, text ? text : "?", digest);
    if (c->reached) {
        if (!(record = fh_record_new("calibrate", fh_calibrate_record_params(p)))) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
        if ((rc = fh_record_input(record, e->work, FH_FILE_MODEL, err)) < 0 || (rc = fh_record_input(record, e->work, FH_FILE_QUANTIZED, err)) < 0 ||
            (rc = fh_record_input(record, e->work, states_file, err)) < 0) goto out;
        fh_json_add_copy(record, "states", states);
        if ((rc = fh_result_json(e, FH_FILE_CALIBRATION, body, record, err)) < 0) goto out;
    }
    *report = body, body = NULL;
out:
    fh_json_free(states);
    fh_json_free(record);
    fh_json_free(body);
    return rc;
}

/* Why a target was not reached, and what would help: the first of them that was not. */
static fh_status not_reached(const fh_calibration *c, const fh_calibrate_params *p, fh_err *err)
{
    size_t n = c->positions[FH_PART_B], documents = c->documents[FH_PART_B];
    int i = 0;
    while (i + 1 < FH_PROMISES && !(c->promise[i].target > 0 && !(c->promise[i].bound.lower >= c->promise[i].target))) i++;
    const fh_promise *m = &c->promise[i];
    double seen = n ? 1 - m->misses / (double)n : 0;
    if (!c->probes)
        return fh_fail(err, FH_ECHECK,
                       "%s %.4g cannot be promised: even one probe costs more than %.2f of the dense head: take fewer clusters, a smaller encoding of centroids, or a larger --max-cost", promised[i], m->target, p->max_cost);
    if (n < c->needed)
        return fh_fail(err, FH_ECHECK,
                       "%s %.4g cannot be promised with confidence %.4g: part B has %zu positions in %zu documents, worth %.0f independent ones, and needs at least %llu (about %llu tokens of text, of many documents); the best found is a bound of %.4f",
                       promised[i], m->target, p->confidence, n, documents, m->bound.effective, (unsigned long long)c->needed,
                           (unsigned long long)c->needed * 3, m->bound.lower);
    if (seen > m->target)
        return fh_fail(err, FH_ECHECK,
                       "%s %.4g cannot be promised: %.5f was seen at P = %u on %zu positions worth %.0f independent ones, a bound of %.5f: more text could do it (--tokens)", promised[i], m->target, seen, c->probes, n, m->bound.effective, m->bound.lower);
    return fh_fail(err, FH_ECHECK,
                   "%s %.4g cannot be reached: %.5f was seen at P = %u, the most that --max-cost %.2g allows; the best bound is %.5f: allow more cost, or take another K", promised[i], m->target, seen, c->probes, p->max_cost, m->bound.lower);
}

/* The head is made with what was chosen from here on. */
static fh_status take(fh_stage_env *e, const fh_candidates *c, size_t i, const fh_parted *parted, const char *states_file, fh_err *err)
{
    fh_json *ignored = NULL;
    fh_status rc = FH_OK;
    size_t r = c->of[i].routing;
    const fh_routing *taken = &c->routing[r].of;
    bool another = !c->asked && strcmp(taken->name, c->q->routing);
    if (another) rc = fh_write_routing(e, taken, false, &c->how, parted, taken->centroids_made ? states_file : NULL, err);
    if (rc == FH_OK && (another || c->of[i].centroids != c->q->parts.centroids.dtype || c->of[i].tokens != c->q->parts.tokens.dtype))
        rc = fh_stage_quantize(e, c->of[i].centroids, c->of[i].tokens, &ignored, err);
    fh_json_free(ignored);
    return rc;
}

/* A promise about the vLLM plugin is about a head as it computes it. */
static fh_status fits_vllm(const fh_candidates *c, fh_err *err)
{
    const fh_head_parts *p = &c->q->parts;
    for (size_t i = 0; i < c->n; i++)
        if (c->of[i].centroids != FH_BF16 || c->of[i].tokens != FH_BF16)
            return fh_fail(err, FH_EUSAGE,
                           "--for vllm: that runtime works in bf16, and quantize made %s and %s: run 'fhtool quantize --centroids bf16 --tokens bf16' first",
                           fh_dtype_name(c->of[i].centroids), fh_dtype_name(c->of[i].tokens));
    if (!c->how.unit) return fh_fail(err, FH_EUSAGE, "--for vllm: that runtime routes by cosine: run 'fhtool route --unit' first");
    if ((uint64_t)p->clusters * p->cap != p->vocab)
        return fh_fail(err, FH_EUSAGE,
                       "--for vllm: that runtime needs clusters of one size, and %u tokens make no %u of them: run 'fhtool cluster' with a --k that divides %u",
                       p->vocab, p->clusters, p->vocab);
    return FH_OK;
}

/* What both calibrate and plan look at, and where states are multiplied. */
typedef struct looking {
    fh_facts f; fh_parted parted; fh_encoded q; fh_states s; fh_candidates of; const char *file; fh_choices choices;
    fh_device *device; fh_dense dense;
} looking;

static void looking_close(looking *l)
{
    fh_device_close(l->device);
    fh_candidates_free(&l->of);
    fh_states_free(&l->s);
    fh_encoded_free(&l->q);
    fh_parted_free(&l->parted);
    fh_facts_free(&l->f);
}

static void widen(fh_rows *to, fh_dtype encoding, size_t rows, size_t d)
{
    if (fh_enc_stride(encoding, d) > to->stride) *to = (fh_rows){.dtype = encoding, .rows = rows, .cols = d, .stride = fh_enc_stride(encoding, d)};
}

/* Together there are the dense head's rows and, of the head that is looked at, centroids and rows. */
static fh_status open_device(looking *l, fh_device_kind kind, const fh_job *job, fh_err *err)
{
    const fh_head_parts *p = &l->q.parts;
    fh_rows shapes[3] = {l->f.head};
    for (size_t i = 0; i < l->of.n; i++) {
        widen(&shapes[1], l->of.of[i].centroids, p->clusters, p->hidden);
        widen(&shapes[2], l->of.of[i].tokens, (size_t)p->clusters * p->cap, p->hidden);
    }
    fh_status rc = fh_device_open_dots(&l->device, kind, shapes, 3, job, err);
    l->dense.device = fh_device_dots(l->device);
    return rc;
}

static fh_status looking_open(looking *l, fh_stage_env *e, const fh_stage_calibrate_params *p, const fh_encodings *encodings, fh_err *err)
{
    char *path = NULL;
    *l = (looking){.file = NULL};
    fh_status rc = fh_facts_load(&l->f, e, err);
    if (rc < 0 || (rc = fh_need(e, FH_FILE_QUANTIZED, err)) < 0 || (rc = fh_choose_states(&l->file, e, &p->text, err)) < 0) goto out;
    if (!(path = fh_work_path(e->work, l->file))) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    if ((rc = fh_states_load(&l->s, path, err)) < 0 || (rc = fh_parted_load(&l->parted, e, &l->f, err)) < 0
        || (rc = fh_encoded_load(&l->q, e, &l->f, err)) < 0) goto out;
    if (l->s.d != l->f.head.cols) { rc = fh_fail(err, FH_ECHECK, "%s: states of width %zu for a head of width %zu", path, l->s.d, l->f.head.cols); goto out; }
    if ((rc = fh_candidates_load(&l->of, e, &l->f, &l->parted, &l->q, &l->s, p->how.rerank, encodings, err)) < 0) goto out;
    l->choices = (fh_choices){.choice = l->of.choice, .n = l->of.n, .open = fh_candidates_open, .ctx = &l->of};
    l->dense = fh_facts_dense(&l->f);
    rc = open_device(l, p->device, e->job, err);
out:
    fh_free(path);
    return rc;
}

fh_status fh_stage_calibrate(fh_stage_env *e, const fh_stage_calibrate_params *p, fh_json **report, fh_err *err)
{
    double began = fh_now();
    looking l;
    fh_calibration c = {0};
    fh_json *made = NULL;
    fh_status rc = looking_open(&l, e, p, p->encodings, err);
    if (rc < 0) goto out;
    if (p->how.vllm && (rc = fits_vllm(&l.of, err)) < 0) goto out;
    l.of.through_bf16 = p->how.vllm;
    if (p->how.by_time) l.choices.time = fh_candidates_time;
    if ((rc = fh_calibrate(&c, &l.s, &l.dense, &l.choices, &p->how, e->job, err)) < 0) goto out;
    if (c.reached && (rc = take(e, &l.of, c.choice, &l.parted, l.file, err)) < 0) goto out;
    if ((rc = save_calibration(e, &c, p, fh_candidates_rerank(&l.of, c.choice), &l.of.choice[c.choice], l.file, &made, err)) < 0) goto out;
    fh_json_add_string(made, "device", fh_device_name(l.device));
    fh_json_add_double(made, "seconds", fh_now() - began);
    *report = made, made = NULL;
    if (!c.reached) { rc = not_reached(&c, &p->how, err); goto out; }
    fh_stage_log(e, "calibrate", began);
out:
    fh_json_free(made);
    fh_calibration_free(&c);
    looking_close(&l);
    return rc;
}

fh_status fh_stage_plan(fh_stage_env *e, const fh_stage_calibrate_params *p, fh_json **report, fh_err *err)
{
    static const fh_encodings all = {.centroids = {FH_I8, FH_I4}, .n_centroids = 2, .tokens = {FH_I8, FH_I4}, .n_tokens = 2};
    double began = fh_now();
    looking l;
    fh_plan_row rows[FH_PLAN_ROWS];
    size_t n;
    fh_status rc = looking_open(&l, e, p, p->encodings || p->how.vllm ? p->encodings : &all, err);
    if (rc < 0 || (p->how.vllm && (rc = fits_vllm(&l.of, err)) < 0)) goto out;
    l.of.through_bf16 = p->how.vllm;
    l.choices.time = fh_candidates_time;
    if ((rc = fh_plan(rows, &n, &l.s, &l.dense, &l.choices, &p->how, e->job, err)) < 0) goto out;
    fh_json *r = fh_json_object(), *list;
    fh_json_add_u64(r, "containment_k", p->how.containment_k);
    fh_json_add_string(r, "cheapest", p->how.by_time ? "time" : "bytes");
    fh_json_add_double(r, "dense_bytes", (double)l.dense.vocab * (double)l.dense.rows.cols * (double)fh_dtype_size(l.dense.rows.dtype));
    list = fh_json_add_array(r, "plan");
    for (size_t i = 0; i < n; i++) {
        const fh_choice *c = &l.of.choice[rows[i].choice];
        fh_json *j = fh_json_add_object(list, NULL);
        if (rows[i].level > 0) fh_json_add_double(j, "containment", rows[i].level); else fh_json_add_null(j, "containment");
        fh_json_add_u64(j, "probes", rows[i].probes);
        if (p->how.adaptive) fh_json_add_double(j, "threshold", (double)rows[i].threshold), fh_json_add_double(j, "mean_probes", rows[i].mean_probes);
        fh_json_add_u64(j, "hot", rows[i].n_hot);
        fh_json_add_string(j, "routing", c->routing);
        fh_json_add_string(j, "centroids", c->centroids);
        fh_json_add_string(j, "tokens", c->tokens);
        fh_json_add_double(j, "agreement", rows[i].agreement);
        fh_json_add_double(j, "mass", rows[i].mass);
        fh_json_add_double(j, "kl", rows[i].kl);
        fh_json_add_double(j, "step_bytes", rows[i].bytes);
        fh_json_add_double(j, "step_microseconds", 1e6 * rows[i].seconds);
        fh_json_add_bool(j, "for_targets", rows[i].meets);
    }
    fh_json_add_double(r, "seconds", fh_now() - began);
    *report = r;
out:
    looking_close(&l);
    return rc;
}
