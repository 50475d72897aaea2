/* hidden and calibrate: states into the work directory, and the promise made on them. */
#include "artifacts/stages_private.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { DEFAULT_TOKENS = 100000, DEFAULT_WINDOW = 512, CHOICES = 5, MOST_TOKENS = 1 << 26 /* that are looked at to choose from: 256 MiB of ids */ };

/* ---- states ------------------------------------------------------------------------------------------------- */

static bool is_self(const fh_text_params *p) { return p->n_texts == 0 || (p->n_texts == 1 && !strcmp(p->texts[0], "self")); }

/* What determines the states, beside the model. */
static fh_json *states_params(const fh_text_params *p, const char *digest, const char *names)
{
    fh_json *j = fh_json_object();
    fh_json_add_string(j, "text", names);
    if (digest) fh_json_add_string(j, "text_sha256", digest);
    fh_json_add_u64(j, "tokens", p->tokens ? p->tokens : DEFAULT_TOKENS);
    fh_json_add_u64(j, "window", p->window ? p->window : DEFAULT_WINDOW);
    fh_json_add_u64(j, "seed", p->seed);
    return j;
}

static char *text_names(const fh_text_params *p)
{
    fh_buf b = {0};
    for (size_t i = 0; i < p->n_texts; i++) {
        const char *base = strrchr(p->texts[i], '/');
        fh_buf_printf(&b, "%s%s", i ? "," : "", base ? base + 1 : p->texts[i]);
    }
    if (is_self(p)) b.len = 0, fh_buf_puts(&b, "self");
    return fh_buf_take(&b);
}

static fh_status collect(fh_stage_env *e, const char *file, const fh_facts *f, const fh_text_params *p, fh_json *params, fh_err *err)
{
    fh_model m = {0};
    fh_corpus c = {0};
    fh_states s = {0};
    fh_json *record = NULL, *meta = NULL;
    char *path = fh_work_path(e->work, file), *text = NULL;
    bool self = is_self(p);
    fh_states_params how = {.tokens = p->tokens ? p->tokens : DEFAULT_TOKENS, .window = p->window ? p->window : DEFAULT_WINDOW, .seed = p->seed};
    fh_status rc = path ? fh_source_open(&m, e, f, FH_MODEL_BODY | FH_MODEL_HEAD | (self ? 0 : FH_MODEL_TOKENIZER), err) : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc < 0) goto out;
    if (self) {
        fh_job_say(e->job, FH_INFO, "the model says %zu tokens itself (temperature 1, seed %llu)", how.tokens, (unsigned long long)how.seed);
        rc = fh_states_of_self(&s, &c, &m, &how, e->job, err);
    } else {
        if ((rc = fh_corpus_read(&c, p->texts, p->n_texts, m.tokenizer, MOST_TOKENS, e->job, err)) == FH_OK) {
            fh_corpus_thin(&c, how.tokens, fh_states_window(&m, &how));
            rc = fh_states_of_corpus(&s, &m, &c, &how, e->job, err);
        }
    }
    if (rc < 0 || (rc = fh_states_split(&s, p->seed, err)) < 0) goto out;
    fh_json_add_string(params, "form", c.form);
    fh_json_add_string(params, "documents_known", c.documents_known ? "yes" : "no");
    fh_json *whole = fh_json_object();
    fh_json_add(whole, "asked", params), params = NULL;
    fh_json_add_u64(whole, "documents", c.documents);
    if (!(record = fh_record_new("hidden", whole))) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    if ((rc = fh_record_input(record, e->work, FH_FILE_MODEL, err)) < 0) goto out;
    fh_json_add_string(record, "text_sha256", c.digest);
    fh_json_add_string(record, "blas", fh_gemm_library());
    meta = fh_json_object();
    if (!(text = fh_json_print(record, false)) || !fh_json_add_string(meta, "fhtool", text)) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    rc = fh_states_save(&s, path, meta, err);
    fh_work_changed(e->work, file);
out:
    fh_json_free(params);
    fh_json_free(meta);
    fh_json_free(record);
    fh_free(text);
    fh_free(path);
    fh_states_free(&s);
    fh_corpus_free(&c);
    fh_model_close(&m);
    return rc;
}

/* Are the states in `file` those of these parameters and this model? */
static fh_status states_current(bool *current, fh_stage_env *e, const char *file, const fh_json *params, fh_err *err)
{
    fh_stage_state state;
    fh_json *record = NULL;
    *current = false;
    fh_status rc = fh_work_state(e->work, file, NULL, &state, NULL, err);
    if (rc < 0 || state != FH_STAGE_CURRENT) return rc;
    if ((rc = fh_work_record(e->work, file, &record, err)) < 0) return rc;
    const fh_json *asked = fh_json_get(fh_json_get(record, "params"), "asked");
    *current = true;
    for (const fh_json *want = fh_json_first(params); want && *current; want = fh_json_next(want)) {
        char *a = fh_json_print(want, false), *b = fh_json_get(asked, fh_json_key(want)) ? fh_json_print(fh_json_get(asked, fh_json_key(want)), false) : NULL;
        *current = a && b && !strcmp(a, b);
        fh_free(a);
        fh_free(b);
    }
    fh_json_free(record);
    return rc;
}

fh_status fh_states_stage(fh_stage_env *e, const char *file, const fh_text_params *p, bool *fresh, fh_err *err)
{
    char digest[65], *names = text_names(p);
    bool self = is_self(p), pipe = !self && p->n_texts == 1 && !strcmp(p->texts[0], "-");
    fh_facts f = {0};
    fh_json *params = NULL;
    fh_status rc = names ? fh_facts_load(&f, e, err) : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc < 0) goto out;
    for (size_t i = 0; i < p->n_texts && p->n_texts > 1; i++)
        if (!strcmp(p->texts[i], "self")) { rc = fh_fail(err, FH_EUSAGE, "--text self: stands alone, without other texts"); goto out; }
    if (!self && !pipe && (rc = fh_text_digest(digest, p->texts, p->n_texts, err)) < 0) goto out;
    params = states_params(p, self || pipe ? NULL : digest, names);
    bool current = false;
    if (!pipe && (rc = states_current(&current, e, file, params, err)) < 0) goto out;
    *fresh = !current;
    if (current) { fh_json_free(params); goto out; }
    rc = collect(e, file, &f, p, params, err); /* takes params */
out:
    fh_free(names);
    fh_facts_free(&f);
    return rc;
}

fh_status fh_stage_hidden(fh_stage_env *e, const fh_text_params *p, fh_json **report, fh_err *err)
{
    double began = fh_now();
    fh_states s = {0};
    bool fresh;
    char *path = fh_work_path(e->work, FH_FILE_STATES), *names = text_names(p);
    size_t count[FH_PARTS] = {0};
    fh_status rc = path && names ? fh_states_stage(e, FH_FILE_STATES, p, &fresh, err) : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc < 0 || (rc = fh_states_load(&s, path, err)) < 0) goto out;
    if (fresh) fh_stage_log(e, "hidden", began);
    for (size_t i = 0; i < s.n; i++) if (s.part[i] < FH_PARTS) count[s.part[i]]++;
    fh_json *r = fh_json_object();
    fh_json_add_u64(r, "tokens", s.n);
    fh_json_add_string(r, "text", names);
    fh_json *parts = fh_json_add_object(r, "parts");
    fh_json_add_u64(parts, "a", count[FH_PART_A]);
    fh_json_add_u64(parts, "b", count[FH_PART_B]);
    fh_json_add_u64(parts, "c", count[FH_PART_C]);
    fh_json_add_bool(r, "kept", !fresh);
    fh_json_add_double(r, "seconds", fh_now() - began);
    *report = r;
out:
    fh_free(path);
    fh_free(names);
    fh_states_free(&s);
    return rc;
}

/* ---- calibrate ------------------------------------------------------------------------------------------------ */

typedef struct maker { const fh_encoded *q; const fh_facts *f; uint32_t rerank; fh_stage_env *e; void *data[8], *scales[8]; size_t n; } maker;

/* A head that routes by other centroids in the same encoding; the arrays live as long as the maker. */
static fh_status make_head(void *ctx, const float *centroids, fh_head **out, fh_err *err)
{
    maker *m = ctx;
    fh_head_parts p = m->q->parts;
    fh_dtype enc = p.centroids.dtype;
    size_t stride = fh_enc_stride(enc, p.hidden);
    fh_rows from = {centroids, FH_F32, p.clusters, p.hidden, p.hidden * sizeof(float)};
    fh_quant_error q;
    if (m->n == sizeof m->data / sizeof *m->data) return fh_fail(err, FH_EFAIL, "too many routings are tried at once");
    void *data = m->data[m->n] = fh_aligned(p.clusters * stride);
    void *scales = m->scales[m->n++] = fh_malloc(p.clusters * fh_scale_bytes(enc, p.hidden) + 1);
    if (!data || !scales) return fh_fail(err, FH_ENOMEM, "out of memory");
    fh_status rc = fh_encode_centroids(enc, &from, m->e->job, data, scales, &q, err);
    if (rc < 0) return rc;
    if (m->rerank) p.exact = m->f->head, p.exact_by_token = true, p.rerank = m->rerank;
    p.centroids = (fh_rows){data, enc, p.clusters, p.hidden, stride}, p.centroid_scales = fh_dtype_is_integer(enc) ? scales : NULL;
    return fh_head_from_parts(out, &p, "calibrate", err);
}

void fh_add_point(fh_json *list, const fh_point *p)
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
}

static fh_json *body_of(const fh_calibration *c, const fh_calibrate_params *p, uint32_t rerank, const char *routing, const char *text, const char *digest)
{
    fh_json *j = fh_json_object(), *list;
    fh_json_add_u64(j, "probes", c->probes);
    fh_json_add_u64(j, "hot", c->n_hot);
    list = fh_json_add_array(j, "hot_ids");
    for (size_t i = 0; i < c->n_hot; i++) fh_json_add_u64(list, NULL, c->hot[i]);
    fh_json_add_string(j, "routing", routing);
    fh_json_add_double(j, "target", p->target);
    fh_json_add_double(j, "confidence", p->confidence);
    fh_json_add_u64(j, "containment_k", p->containment_k);
    fh_json_add_double(j, "max_cost", p->max_cost);
    fh_json_add_u64(j, "positions", c->positions[FH_PART_B]);
    fh_json_add_u64(j, "misses", c->misses);
    fh_json_add_double(j, "bound", c->reached ? c->bound : c->best_bound);
    fh_json *held = fh_json_add_object(j, "heldout");
    fh_json_add_double(held, "containment", c->reached ? c->heldout : NAN);
    fh_json_add_u64(held, "positions", c->positions[FH_PART_C]);
    fh_json_add_u64(j, "rerank", rerank);
    fh_json_add_double(j, "step_bytes", c->step_bytes);
    fh_json_add_double(j, "dense_bytes", c->dense_bytes);
    fh_json_add_string(j, "text", text);
    if (digest) fh_json_add_string(j, "text_sha256", digest);
    list = fh_json_add_array(j, "curve");
    for (size_t i = 0; i < c->n_curve; i++) fh_add_point(list, &c->curve[i]);
    return j;
}

/* Which states the promise is made on: those of the work directory where they are of this text (no earlier stage saw their parts B and C), else
 * the calibration's own. */
static fh_status choose_states(const char **file, fh_stage_env *e, const fh_text_params *p, fh_err *err)
{
    fh_status rc;
    bool fresh, current = false;
    char *path = fh_work_path(e->work, FH_FILE_STATES), *names = text_names(p), digest[65];
    bool there = path && fh_file_exists(path);
    fh_json *params = NULL;
    if (!path || !names) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    *file = FH_FILE_STATES;
    bool as_it_is = !p->n_texts && !p->tokens && !p->window && !p->seed;
    if (as_it_is && there) { /* whatever hidden was asked for, if it is still of this model */
        fh_stage_state state;
        if ((rc = fh_work_state(e->work, FH_FILE_STATES, NULL, &state, NULL, err)) < 0) goto out;
        if (state == FH_STAGE_CURRENT) goto out;
    }
    if (as_it_is || (!p->n_texts && !there)) { rc = fh_states_stage(e, FH_FILE_STATES, p, &fresh, err); goto out; }
    if (there) {
        bool self = is_self(p);
        if (!self && strcmp(p->texts[0], "-") && (rc = fh_text_digest(digest, p->texts, p->n_texts, err)) < 0) goto out;
        if (self || strcmp(p->texts[0], "-")) {
            params = states_params(p, self ? NULL : digest, names);
            if ((rc = states_current(&current, e, FH_FILE_STATES, params, err)) < 0 || current) goto out;
        }
    }
    *file = FH_FILE_CALIBRATION_STATES;
    rc = fh_states_stage(e, *file, p, &fresh, err);
out:
    fh_json_free(params);
    fh_free(path);
    fh_free(names);
    return rc;
}

fh_json *fh_calibrate_record_params(const fh_calibrate_params *p)
{
    fh_json *j = fh_json_object();
    fh_json_add_double(j, "target", p->target);
    fh_json_add_double(j, "confidence", p->confidence);
    fh_json_add_u64(j, "containment_k", p->containment_k);
    fh_json_add_i64(j, "hot", p->hot);
    fh_json_add_i64(j, "rerank", p->rerank);
    fh_json_add_double(j, "max_cost", p->max_cost);
    return j;
}

static fh_status save_calibration(fh_stage_env *e, const fh_calibration *c, const fh_stage_calibrate_params *p, uint32_t rerank, const char *routing, const char *states_file, fh_json **report, fh_err *err)
{
    fh_json *states = NULL, *record = NULL, *body = NULL;
    fh_status rc = fh_work_record(e->work, states_file, &states, err);
    if (rc < 0) return rc;
    const char *text = fh_json_string(fh_json_get(fh_json_get(fh_json_get(states, "params"), "asked"), "text")), *digest = fh_json_string(fh_json_get(states, "text_sha256"));
    body = body_of(c, &p->how, rerank, routing, text ? text : "?", digest);
    if (c->reached) {
        if (!(record = fh_record_new("calibrate", fh_calibrate_record_params(&p->how)))) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
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

/* Why a target was not reached, and what would help. */
static fh_status not_reached(const fh_calibration *c, const fh_calibrate_params *p, fh_err *err)
{
    size_t n = c->positions[FH_PART_B];
    double seen = n ? 1 - (double)c->misses / (double)n : 0;
    if (n < c->needed)
        return fh_fail(err, FH_ECHECK, "containment %.4g cannot be promised with confidence %.4g on %zu positions: part B needs at least %llu (about %llu tokens of text); the best found is a bound of %.4f",
                       p->target, p->confidence, n, (unsigned long long)c->needed, (unsigned long long)c->needed * 3, c->best_bound);
    if (!c->probes)
        return fh_fail(err, FH_ECHECK, "containment %.4g cannot be promised: even one probe costs more than %.2f of the dense head: take fewer clusters, a smaller encoding of centroids, or a larger --max-cost", p->target, p->max_cost);
    if (seen > p->target)
        return fh_fail(err, FH_ECHECK, "containment %.4g cannot be promised: %.5f was seen at P = %u on %zu positions, a bound of %.5f: more text could do it (--tokens)", p->target, seen, c->probes, n, c->best_bound);
    return fh_fail(err, FH_ECHECK, "containment %.4g cannot be reached: %.5f was seen at P = %u, the most that --max-cost %.2g allows; the best bound is %.5f: allow more cost, or take another K", p->target, seen, c->probes, p->max_cost, c->best_bound);
}

fh_status fh_stage_calibrate(fh_stage_env *e, const fh_stage_calibrate_params *p, fh_json **report, fh_err *err)
{
    double began = fh_now();
    fh_facts f = {0};
    fh_parted parted = {0};
    fh_encoded q = {0};
    fh_states s = {0};
    fh_calibration c = {0};
    fh_routing_choice choices[CHOICES];
    float *owned[CHOICES] = {0};
    size_t n = 0;
    maker m = {.e = e};
    const char *file = NULL;
    char *path = NULL;
    fh_json *routing = NULL, *made = NULL;
    fh_status rc = fh_facts_load(&f, e, err);
    if (rc < 0 || (rc = fh_need(e, FH_FILE_QUANTIZED, err)) < 0 || (rc = choose_states(&file, e, &p->text, err)) < 0) goto out;
    if (!(path = fh_work_path(e->work, file))) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    if ((rc = fh_states_load(&s, path, err)) < 0 || (rc = fh_parted_load(&parted, e, &f, err)) < 0 || (rc = fh_encoded_load(&q, e, &f, err)) < 0) goto out;
    if (s.d != f.head.cols) { rc = fh_fail(err, FH_ECHECK, "%s: states of width %zu for a head of width %zu", path, s.d, f.head.cols); goto out; }
    m.q = &q, m.f = &f, m.rerank = q.parts.tokens_exact ? 0 : p->how.rerank >= 0 ? (uint32_t)p->how.rerank : fh_rerank_default(q.parts.tokens.dtype);

    /* Routing: the one that was asked for, else whatever costs least on part A. */
    bool asked = false;
    if ((rc = fh_work_record(e->work, FH_FILE_ROUTING, &routing, err)) < 0) goto out;
    fh_json_bool(fh_json_get(fh_json_get(routing, "params"), "asked"), &asked);
    static const char *const names[] = {"learned", "weighted", "raw", "mean"};
    fh_tensors *used = NULL;
    bool learned = !strcmp(q.routing, "learned"); /* a routing that was learned already is taken as it is */
    if (asked || learned) {
        const fh_tensor *t;
        uint64_t shape[2] = {parted.c.k, parted.c.d};
        char *rp = fh_work_path(e->work, FH_FILE_ROUTING);
        rc = rp ? fh_tensors_open(&used, rp, err) : fh_fail(err, FH_ENOMEM, "out of memory");
        fh_free(rp);
        if (rc < 0 || (rc = fh_tensors_need(&t, used, "centroids", 1u << FH_F32, 2, shape, err)) < 0) { fh_tensors_close(used); goto out; }
        choices[n++] = (fh_routing_choice){q.routing, t->data};
    }
    for (size_t i = learned; i < sizeof names / sizeof *names && !asked; i++, n++) {
        rc = fh_routing_of(&choices[n].centroids, &owned[n], names[i], false, &f, &parted, &s, e->job, NULL, err);
        if (rc == FH_ECHECK && i == 0) { n--; rc = FH_OK; continue; } /* too few states to learn from */
        if (rc < 0) { fh_tensors_close(used); goto out; }
        choices[n].name = names[i];
    }
    fh_dense dense = fh_facts_dense(&f);
    rc = fh_calibrate(&c, &s, &dense, choices, n, make_head, &m, &p->how, e->job, err);
    if (rc == FH_OK && c.reached && !asked && strcmp(choices[c.routing].name, q.routing)) { /* the head is made with it from here on */
        fh_json *ignored = NULL;
        fh_dtype ce = q.parts.centroids.dtype, te = q.parts.tokens.dtype;
        rc = fh_write_routing(e, choices[c.routing].name, false, false, choices[c.routing].centroids, &parted, owned[c.routing] ? file : NULL, err);
        if (rc == FH_OK) rc = fh_stage_quantize(e, ce, te, &ignored, err);
        fh_json_free(ignored);
    }
    if (rc == FH_OK) rc = save_calibration(e, &c, p, m.rerank, choices[c.routing].name, file, &made, err);
    fh_tensors_close(used);
    if (rc < 0) goto out;
    fh_json_add_double(made, "seconds", fh_now() - began);
    *report = made, made = NULL;
    if (!c.reached) { rc = not_reached(&c, &p->how, err); goto out; }
    fh_stage_log(e, "calibrate", began);
out:
    for (size_t i = 0; i < m.n; i++) fh_free(m.data[i]), fh_free(m.scales[i]);
    for (size_t i = 0; i < CHOICES; i++) fh_free(owned[i]);
    fh_json_free(routing);
    fh_json_free(made);
    fh_free(path);
    fh_calibration_free(&c);
    fh_states_free(&s);
    fh_encoded_free(&q);
    fh_parted_free(&parted);
    fh_facts_free(&f);
    return rc;
}
