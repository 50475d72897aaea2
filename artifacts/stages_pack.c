/* pack, build and status: from the work directory to the artifact. */
#include "artifacts/artifacts.h"
#include "artifacts/stages_private.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- pack ---------------------------------------------------------------------------------------------------- */

/* The calibration, if it is of the head as it is now: of this quantized.safetensors and this model. */
static fh_status load_calibration(fh_json **out, bool *stale, fh_stage_env *e, fh_err *err)
{
    static const char *const inputs[] = {FH_FILE_MODEL, FH_FILE_QUANTIZED};
    char *path = fh_work_path(e->work, FH_FILE_CALIBRATION), hex[65];
    fh_status rc = FH_OK;
    *out = NULL, *stale = false;
    if (!path) return fh_fail(err, FH_ENOMEM, "out of memory");
    if (!fh_file_exists(path)) goto out;
    if ((rc = fh_json_read(out, path, (size_t)1 << 30, err)) < 0) goto out;
    const fh_json *was = fh_json_get(fh_json_get(*out, "made_by"), "inputs");
    for (size_t i = 0; i < 2 && !*stale; i++) {
        const char *then = fh_json_string(fh_json_get(was, inputs[i]));
        if ((rc = fh_work_digest(e->work, inputs[i], hex, err)) < 0) goto out;
        *stale = !then || strcmp(then, hex);
    }
out:
    fh_free(path);
    return rc;
}

static fh_status add_provenance(fh_json *to, fh_stage_env *e, const char *stage, const char *file, fh_err *err)
{
    fh_json *record = NULL;
    fh_status rc = fh_work_record(e->work, file, &record, err);
    if (rc < 0) return rc;
    if (record && !fh_json_add(to, stage, record)) return fh_fail(err, FH_ENOMEM, "out of memory");
    return FH_OK;
}

typedef struct bundle { fh_model m; fh_tokenizer_text tokenizer; const char *leave_out[2]; } bundle;

static fh_status fill_bundle(bundle *b, fh_pack_input *in, fh_stage_env *e, const fh_facts *f, fh_err *err)
{
    char *dir = fh_source_path(e, err);
    if (!dir) return err ? err->code : FH_EFAIL;
    fh_status rc = fh_source_open(&b->m, e, f, FH_MODEL_BODY | FH_MODEL_HEAD, err);
    if (rc == FH_EUNSUPPORTED) { /* a head without a body of ours still makes a head-only artifact */
        fh_job_say(e->job, FH_WARN, "%s; only the head is packed", err->text);
        fh_free(dir);
        return FH_OK;
    }
    if (rc < 0) goto out;
    const fh_checkpoint *c = &b->m.checkpoint;
    rc = fh_tokenizer_text_read(&b->tokenizer, dir, err);
    if (rc == FH_EUNSUPPORTED) fh_job_say(e->job, FH_WARN, "%s; packed without a tokenizer", err->text);
    else if (rc < 0) goto out;
    rc = FH_OK;
    in->tokenizer = (fh_pack_text){b->tokenizer.text, b->tokenizer.len};
    in->tokenizer_config = (fh_pack_text){b->tokenizer.config, b->tokenizer.config_len};
    in->chat_template = (fh_pack_text){b->tokenizer.chat, b->tokenizer.chat_len};
    in->config = (fh_pack_text){c->config.text, c->config.text_len};
    if (c->config.generation_text) in->generation = (fh_pack_text){c->config.generation_text, strlen(c->config.generation_text)};
    in->body = c->tensors;
    b->leave_out[in->n_leave_out++] = c->head->name;
    if (c->tied && c->embedding && strcmp(c->embedding->name, c->head->name)) b->leave_out[in->n_leave_out++] = c->embedding->name;
    in->leave_out = b->leave_out;
out:
    fh_free(dir);
    return rc;
}

/* How many rows are scored again: as asked, as calibrated, or the default; none where the file has nothing to score them from or no need to. */
static fh_status choose_rerank(uint32_t *out, int64_t asked, bool stored, const fh_rows *tokens, bool needless, const fh_json *promise, fh_stage_env *e, fh_err *err)
{
    uint64_t measured;
    bool known = promise && fh_json_u64(fh_json_get(promise, "rerank"), &measured) && measured <= FH_MAX_RERANK;
    *out = 0;
    if (asked > 0 && !stored && !needless) return fh_fail(err, FH_EUSAGE, "--rerank %lld: needs the exact rows in the artifact: give --exact, or leave --rerank out", (long long)asked);
    if (stored) *out = asked >= 0 ? (uint32_t)asked : known ? (uint32_t)measured : fh_rerank_default(tokens->dtype);
    if (known && measured != *out) fh_job_say(e->job, FH_WARN, "the calibration's agreement and bytes are of %llu rows scored again, the artifact's are %u: what it promises is not touched", (unsigned long long)measured, *out);
    return FH_OK;
}

/* The hot list, P and threshold of a promise. */
static fh_status take_promise(uint32_t **hot, fh_head_parts *head, const fh_json *promise, fh_err *err)
{
    uint64_t probes, id;
    double threshold = fh_member_double(promise, "threshold", 0);
    const fh_json *list = fh_json_get(promise, "hot_ids");
    if (!fh_json_u64(fh_json_get(promise, "probes"), &probes) || probes < 1 || probes > head->clusters) return fh_fail(err, FH_EFORMAT, FH_FILE_CALIBRATION ": \"probes\" is no number of clusters: run 'fhtool calibrate' again");
    if (!(*hot = fh_malloc(fh_max(fh_json_count(list), 1) * sizeof **hot))) return fh_fail(err, FH_ENOMEM, "out of memory");
    for (const fh_json *i = list ? fh_json_first(list) : NULL; i; i = fh_json_next(i)) {
        if (!fh_json_u64(i, &id) || id >= head->vocab) return fh_fail(err, FH_EFORMAT, FH_FILE_CALIBRATION ": \"hot_ids\" holds something that is no token id: run 'fhtool calibrate' again");
        (*hot)[head->n_hot++] = (uint32_t)id;
    }
    if (!(threshold >= 0) || !isfinite((float)threshold))
        return fh_fail(err, FH_EFORMAT, FH_FILE_CALIBRATION ": \"threshold\" is no number from 0 up: run 'fhtool calibrate' again");
    head->hot = *hot, head->probes = (uint32_t)probes, head->threshold = (float)threshold;
    return FH_OK;
}

/* Candidate sets are nested: more probes keep the promise, and a wider threshold or none; fewer do not. */
static bool keeps_promise(const fh_stage_pack_params *p, const fh_head_parts *calibrated)
{
    bool wide = !(p->threshold > 0) || (calibrated->threshold > 0 && p->threshold >= calibrated->threshold);
    return !p->probes || (p->probes >= calibrated->probes && wide);
}

fh_status fh_pack_encoded(fh_stage_env *e, const fh_stage_pack_params *p, const fh_facts *f, fh_encoded *q, const fh_json *promise, const fh_json *provenance, fh_json **report, fh_err *err)
{
    bundle b = {0};
    fh_fhead *made = NULL;
    uint32_t *hot = NULL;
    fh_head_parts *head = &q->parts;
    fh_status rc = FH_OK;
    if (p->probes > head->clusters) return fh_fail(err, FH_EUSAGE, "--probes: %u of %u clusters (1..%u)", p->probes, head->clusters, head->clusters);
    if (promise) {
        if ((rc = take_promise(&hot, head, promise, err)) < 0) goto out;
        if (!keeps_promise(p, head)) {
            fh_job_say(e->job, FH_WARN, "--probes %u is below the calibrated %u: the artifact promises nothing", p->probes, head->probes);
            promise = NULL;
        }
    }
    if (p->probes) head->probes = p->probes, head->threshold = p->threshold;
    fh_pack_params pack = {.path = p->output, .flags = FH_OWNER_READS | (p->no_clobber ? FH_NO_CLOBBER : 0)};
    fh_pack_input *in = &pack.input;
    *in = (fh_pack_input){.name = fh_work_dir(e->work), .model_type = f->type, .dtype = f->head.dtype, .tied = f->tied, .softcap = f->softcap, .fingerprint = f->fingerprint,
                          .tokenizer_size = f->tokenizer_size, .head = head, .routing = q->routing, .calibration = promise, .provenance = provenance};
    if (!p->head_only && (rc = fill_bundle(&b, in, e, f, err)) < 0) goto out;
    if (in->body || p->exact) in->exact = f->head;
    if ((rc = choose_rerank(&head->rerank, p->rerank, in->exact.data && !head->tokens_exact, &head->tokens, head->tokens_exact, promise, e, err)) < 0) goto out;
    fh_pack_report said;
    if ((rc = fh_pack(&pack, e->job, &said, err)) < 0) goto out;
    if ((rc = fh_fhead_open(&made, p->output, err)) == FH_OK) rc = fh_artifact_info(made, report, err);
out:
    fh_fhead_close(made);
    fh_free(hot);
    fh_tokenizer_text_free(&b.tokenizer);
    fh_model_close(&b.m);
    return rc;
}

fh_status fh_stage_pack(fh_stage_env *e, const fh_stage_pack_params *p, fh_json **report, fh_err *err)
{
    double began = fh_now();
    fh_facts f = {0};
    fh_encoded q = {0};
    fh_json *calibration = NULL, *provenance = NULL;
    bool stale;
    fh_err no_source;
    char *source = fh_source_path(e, &no_source);
    fh_status rc = fh_keep_input(p->output, fh_work_dir(e->work), err);
    if (rc == FH_OK && source) rc = fh_keep_input(p->output, source, err);
    fh_free(source);
    if (rc < 0 || (rc = fh_facts_load(&f, e, err)) < 0 || (rc = fh_need(e, FH_FILE_QUANTIZED, err)) < 0 || (rc = fh_encoded_load(&q, e, &f, err)) < 0) goto out;
    if ((rc = load_calibration(&calibration, &stale, e, err)) < 0) goto out;
    if (stale && !p->probes) {
        rc = fh_fail(err, FH_ECHECK, "%s: the calibration there is of other inputs than the head as it is now: run 'fhtool calibrate' again, or give --probes P for an artifact that promises nothing", fh_work_dir(e->work));
        goto out;
    }
    if (stale) fh_job_say(e->job, FH_WARN, "the calibration is of other inputs: left out, and the artifact promises nothing");

    provenance = fh_json_object();
    if ((rc = add_provenance(provenance, e, "convert", FH_FILE_MODEL, err)) < 0 || (rc = add_provenance(provenance, e, "cluster", FH_FILE_CLUSTERS, err)) < 0 ||
        (rc = add_provenance(provenance, e, "route", FH_FILE_ROUTING, err)) < 0 || (rc = add_provenance(provenance, e, "quantize", FH_FILE_QUANTIZED, err)) < 0) goto out;
    if ((rc = fh_pack_encoded(e, p, &f, &q, stale ? NULL : calibration, provenance, report, err)) < 0) goto out;
    fh_json_add_double(*report, "seconds", fh_now() - began);
    fh_stage_log(e, "pack", began);
out:
    fh_json_free(provenance);
    fh_json_free(calibration);
    fh_encoded_free(&q);
    fh_facts_free(&f);
    return rc;
}

/* ---- build --------------------------------------------------------------------------------------------------- */

static void note_stage(fh_json *list, fh_json **report, const char *stage, bool ran)
{
    fh_json *j = fh_json_add_object(list, NULL);
    double seconds = 0;
    fh_json_double(fh_json_get(*report, "seconds"), &seconds);
    fh_json_add_string(j, "stage", stage);
    fh_json_add_bool(j, "ran", ran);
    fh_json_add_double(j, "seconds", ran ? seconds : 0);
    fh_json_free(*report);
    *report = NULL;
}

fh_status fh_current_record(fh_json **out, fh_stage_env *e, const char *file, const fh_json *params, fh_err *err)
{
    fh_stage_state state;
    *out = NULL;
    fh_status rc = fh_work_state(e->work, file, params, &state, NULL, err);
    return rc < 0 || state != FH_STAGE_CURRENT ? rc : fh_work_record(e->work, file, out, err);
}

fh_status fh_current_json(fh_json **out, fh_stage_env *e, const char *file, const fh_json *params, fh_err *err)
{
    fh_stage_state state;
    char *path = fh_work_path(e->work, file);
    *out = NULL;
    fh_status rc = path && params ? fh_work_state(e->work, file, params, &state, NULL, err) : fh_fail(err, FH_ENOMEM, "%s: out of memory", file);
    if (rc == FH_OK && state == FH_STAGE_CURRENT) rc = fh_json_read(out, path, 64 << 20, err);
    fh_free(path);
    return rc;
}

fh_status fh_cluster_ensure(fh_stage_env *e, const fh_stage_cluster_params *p, size_t v, size_t d, bool *current, fh_json **report, fh_err *err)
{
    fh_json *record = NULL, *params = NULL;
    bool output;
    fh_status rc = fh_clusters_by_output(&output, e, d, err);
    if (rc < 0) return rc;
    if (!(params = fh_cluster_record_params(p, fh_clusters_wanted(p, v), output))) return fh_fail(err, FH_ENOMEM, "out of memory");
    rc = fh_current_record(&record, e, FH_FILE_CLUSTERS, params, err);
    *current = record != NULL;
    fh_json_free(record);
    fh_json_free(params);
    return rc < 0 || *current ? rc : fh_stage_cluster(e, p, report, err);
}

fh_status fh_route_ensure(fh_stage_env *e, const fh_stage_route_params *p, bool *current, fh_json **report, fh_err *err)
{
    fh_json *record = NULL;
    fh_status rc = fh_current_record(&record, e, FH_FILE_ROUTING, NULL, err);
    if (rc < 0) return rc;
    fh_stage_route_params was = fh_route_params_of(fh_json_get(record, "params"));
    bool same = p->routing ? was.routing && !strcmp(was.routing, p->routing) : !was.routing;
    *current = record && same && was.unit == p->unit && was.moves == p->moves;
    fh_json_free(record);
    return *current ? FH_OK : fh_stage_route(e, p, report, err);
}

fh_status fh_quantize_ensure(fh_stage_env *e, fh_dtype centroids, fh_dtype tokens, bool *current, fh_json **report, fh_err *err)
{
    fh_json *record = NULL;
    fh_status rc = fh_current_record(&record, e, FH_FILE_QUANTIZED, NULL, err);
    if (rc < 0) return rc;
    const fh_json *params = fh_json_get(record, "params");
    *current = record && fh_member_is(params, "centroids", fh_dtype_name(centroids)) && fh_member_is(params, "tokens", fh_dtype_name(tokens));
    fh_json_free(record);
    return *current ? FH_OK : fh_stage_quantize(e, centroids, tokens, report, err);
}

/* The vLLM plugin needs clusters of one size, and its fused kernel a power of two. */
static fh_status equal_clusters(fh_stage_cluster_params *p, size_t v, fh_err *err)
{
    static const uint32_t caps[] = {16, 8, 4};
    char some[100] = "";
    if (!p->k && !p->cap && p->init) return FH_OK; /* its K, judged when the promise is made */
    if (!p->k && !p->cap)
        for (size_t i = 0; i < sizeof caps / sizeof *caps && !p->cap; i++) if (v % caps[i] == 0) p->cap = caps[i];
    if (p->k ? v % p->k == 0 : p->cap && v % p->cap == 0) return FH_OK;
    for (uint32_t cap = 2; cap <= 64 && strlen(some) < sizeof some - 8; cap++)
        if (v % cap == 0) snprintf(some + strlen(some), sizeof some - strlen(some), "%s%u", *some ? ", " : "", cap);
    return fh_fail(err, FH_EUSAGE, "--for vllm: that runtime needs clusters of one size, and %zu tokens are no multiple of %u: %s%s", v,
                   p->k ? p->k : p->cap ? p->cap : 4, *some ? "--cap can be " : "no --cap up to 64 divides them", some);
}

/* What that runtime cannot hold is said before the work is done. */
static fh_status fit_vllm(fh_stage_cluster_params *p, const char *model, fh_err *err)
{
    fh_checkpoint c = {0};
    fh_status rc = fh_checkpoint_open(&c, model, NULL, err); /* what there is to warn of, convert says */
    if (rc == FH_OK) rc = fh_vllm_model_check(&c, err);
    if (rc == FH_OK) rc = equal_clusters(p, (size_t)c.head->shape[0], err);
    fh_checkpoint_close(&c);
    return rc;
}

static bool among(const fh_dtype *list, size_t n, fh_dtype t)
{
    for (size_t i = 0; i < n; i++) if (list[i] == t) return true;
    return false;
}

/* What to quantize in: where calibration chooses, what it chose last, if that is among the choices. */
static fh_status encodings_now(fh_dtype *centroids, fh_dtype *tokens, fh_stage_env *e, const fh_build_params *p, fh_err *err)
{
    const fh_encodings *of = p->encodings;
    fh_json *record = NULL;
    fh_dtype c, t;
    *centroids = p->centroids, *tokens = p->tokens;
    fh_status rc = of ? fh_current_record(&record, e, FH_FILE_QUANTIZED, NULL, err) : FH_OK;
    const fh_json *params = fh_json_get(record, "params");
    const char *cs = fh_json_string(fh_json_get(params, "centroids")), *ts = fh_json_string(fh_json_get(params, "tokens"));
    if (of && cs && ts && fh_dtype_parse(&c, cs) && fh_dtype_parse(&t, ts) && among(of->centroids, of->n_centroids, c) && among(of->tokens, of->n_tokens, t)) *centroids = c, *tokens = t;
    fh_json_free(record);
    return rc;
}

/* The work directory of the size of clusters that meets the targets at the lowest cost. */
static fh_status choose_cap(fh_stage_env *sub, fh_stage_cluster_params *cluster, fh_stage_env *e, const fh_build_params *p, fh_json **report, fh_err *err)
{
    const fh_encodings own = {.centroids = {p->centroids}, .n_centroids = 1, .tokens = {p->tokens}, .n_tokens = 1};
    const fh_stage_plan_params plan = {.caps = p->caps, .n_caps = p->n_caps, .cluster = *cluster, .route = p->route,
                                       .calibrate = {.how = p->how, .encodings = p->encodings ? p->encodings : &own}};
    char name[40];
    uint32_t k;
    fh_status rc = fh_stage_plan_caps(e, &plan, report, &k, err);
    if (rc < 0) return rc;
    if (!k)
        return fh_fail(err, FH_ECHECK,
                       "--caps: on part A no setting of any of these clusters keeps the targets within --max-cost %.3g: ask for less, allow more cost, "
                       "or give more text", p->how.max_cost);
    cluster->k = k, cluster->cap = 0;
    snprintf(name, sizeof name, "k%u", k);
    fh_job_say(e->job, FH_INFO, "%u clusters are the cheapest", k);
    return fh_sub_open(sub, e, name, NULL, err);
}

fh_status fh_stage_build(fh_stage_env *e, const fh_build_params *p, fh_json **report, fh_err *err)
{
    double began = fh_now();
    fh_json *stages = fh_json_array(), *r = NULL, *record = NULL, *params = NULL;
    fh_facts f = {0};
    fh_stage_cluster_params cluster = p->cluster;
    fh_dtype centroids, tokens;
    fh_stage_env sub = {0}, *w = e; /* w: where the head is made */
    bool current;
    fh_status rc = fh_keep_input(p->output, p->model, err);
    if (rc < 0 || (rc = fh_keep_input(p->output, fh_work_dir(e->work), err)) < 0 ||
        (rc = fh_out_check(p->output, p->no_clobber ? FH_NO_CLOBBER : 0, err)) < 0 || (p->how.vllm && (rc = fit_vllm(&cluster, p->model, err)) < 0) ||
        (rc = fh_convert_current(e, p->model, &current, err)) < 0 || (!current && (rc = fh_stage_convert(e, p->model, &r, err)) < 0)) goto out;
    note_stage(stages, &r, "convert", !current);

    double hidden_began = fh_now();
    bool fresh;
    if ((rc = fh_states_stage(e, FH_FILE_STATES, &p->text, &fresh, err)) < 0) goto out;
    r = fh_json_object();
    fh_json_add_double(r, "seconds", fh_now() - hidden_began);
    if (fresh) fh_stage_log(e, "hidden", hidden_began);
    note_stage(stages, &r, "hidden", fresh);

    if ((rc = fh_facts_load(&f, e, err)) < 0) goto out;
    if (p->n_caps) {
        if ((rc = choose_cap(&sub, &cluster, e, p, &r, err)) < 0) goto out;
        note_stage(stages, &r, "plan", true);
        w = &sub;
    }
    if ((rc = fh_cluster_ensure(w, &cluster, f.head.rows, f.head.cols, &current, &r, err)) < 0) goto out;
    note_stage(stages, &r, "cluster", !current);
    if ((rc = fh_route_ensure(w, &p->route, &current, &r, err)) < 0) goto out;
    note_stage(stages, &r, "route", !current);
    if ((rc = encodings_now(&centroids, &tokens, w, p, err)) < 0 || (rc = fh_quantize_ensure(w, centroids, tokens, &current, &r, err)) < 0) goto out;
    note_stage(stages, &r, "quantize", !current);

    fh_stage_calibrate_params how = {.how = p->how, .encodings = p->encodings}; /* on the states that were just made: a text from a pipe is read once */
    if (!(params = fh_calibrate_record_params(&how))) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    if ((rc = fh_current_record(&record, w, FH_FILE_CALIBRATION, params, err)) < 0) goto out;
    current = record && fh_json_get(fh_json_get(record, "inputs"), FH_FILE_STATES);
    fh_json_free(record), record = NULL;
    if (!current && (rc = fh_stage_calibrate(w, &how, &r, err)) < 0) {
        *report = r, r = NULL; /* what was found all the same */
        goto out;
    }
    note_stage(stages, &r, "calibrate", !current);

    fh_stage_pack_params pack = {.output = p->output, .no_clobber = p->no_clobber, .head_only = p->head_only, .exact = p->exact, .rerank = p->rerank};
    if ((rc = fh_stage_pack(w, &pack, report, err)) < 0) goto out;
    fh_json_add(*report, "stages", stages), stages = NULL;
    fh_json_add_double(*report, "total_seconds", fh_now() - began);
out:
    fh_sub_close(&sub);
    fh_json_free(stages);
    fh_json_free(r);
    fh_json_free(record);
    fh_json_free(params);
    fh_facts_free(&f);
    return rc;
}

/* ---- status --------------------------------------------------------------------------------------------------- */

fh_status fh_stage_status(fh_stage_env *e, fh_json **report, fh_err *err)
{
    static const struct { const char *stage, *file; } stages[] = {
        {"convert", FH_FILE_MODEL}, {"hidden", FH_FILE_STATES}, {"cluster", FH_FILE_CLUSTERS}, {"route", FH_FILE_ROUTING}, {"quantize", FH_FILE_QUANTIZED}, {"calibrate", FH_FILE_CALIBRATION},
    };
    static const char *const states[] = {"missing", "stale", "current"};
    fh_stage_state found[sizeof stages / sizeof *stages];
    fh_json *r = fh_json_object(), *list;
    fh_json_add_string(r, "dir", fh_work_dir(e->work));
    list = fh_json_add_array(r, "stages");
    for (size_t i = 0; i < sizeof stages / sizeof *stages; i++) {
        fh_stage_state state;
        fh_json *record = NULL;
        char why[200];
        fh_status rc = fh_work_state(e->work, stages[i].file, NULL, &state, why, err);
        if (rc == FH_OK && (rc = fh_work_record(e->work, stages[i].file, &record, err)) == FH_OK && state == FH_STAGE_CURRENT)
            for (size_t before = 0; before < i; before++) /* of what will be made again, it will be made again too */
                if (found[before] == FH_STAGE_STALE && fh_json_get(fh_json_get(record, "inputs"), stages[before].file)) {
                    state = FH_STAGE_STALE;
                    snprintf(why, sizeof why, "%s is stale", stages[before].file);
                }
        fh_json_free(record);
        if (rc < 0) { fh_json_free(r); return rc; }
        found[i] = state;
        fh_json *j = fh_json_add_object(list, NULL);
        fh_json_add_string(j, "stage", stages[i].stage);
        fh_json_add_string(j, "file", stages[i].file);
        fh_json_add_string(j, "state", states[state]);
        fh_json_add_string(j, "why", state == FH_STAGE_CURRENT ? "" : why);
    }
    *report = r;
    return FH_OK;
}
