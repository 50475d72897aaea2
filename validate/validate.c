/* validate: may this artifact ship?  What it is, what it holds on a text, and whether that is what it promised. */
#include "validate/judge.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOKENS = 20000, WINDOW = 512, CHUNK = 4096, ANATOMY = 2048, PROMPTS = 16, PROMPT_TOKENS = 32, SAY = 64, MOST_TOKENS = 1 << 26 };

typedef struct judging {
    fh_validation *v;
    const fh_validate_params *p;
    const fh_job *job;
    fh_model m;
    fh_checkpoint base;
    fh_corpus corpus;
    fh_tensors *sources;
    fh_gatherer *gatherer;
    fh_dissection *dissection;
    uint32_t *counts;             /* [V] of the text's tokens */
    uint32_t *document;           /* [CHUNK] */
    size_t *chosen;               /* [CHUNK] positions that are dissected */
    size_t done, total;           /* positions */
    bool stopped_by_states;       /* something was not finite: nothing more is measured */
} judging;

/* ---- states ---------------------------------------------------------------------------------------------------------- */

/* Some states more: finite ones are measured, the first that is not ends it. */
static fh_status take_states(judging *j, const float *states, size_t n, fh_err *err)
{
    fh_check *c = &j->v->check[FH_CHECK_STATES];
    size_t d = j->v->layout.hidden, every = fh_max(1, j->total / fh_max(1, j->p->anatomy_positions ? j->p->anatomy_positions : ANATOMY)), chosen = 0;
    fh_status rc;
    for (size_t i = 0; i < n * d; i++)
        if (!isfinite(states[i])) {
            fh_check_set(c, FH_FAILED, "the state at position %zu holds a number that is not finite: nothing can be measured with it", j->done + i / d);
            j->stopped_by_states = true;
            return FH_OK;
        }
    if ((rc = fh_gather_states(j->gatherer, states, n, j->document, j->job, err)) < 0) return rc;
    for (size_t i = 0; i < n; i++) if ((j->done + i) % every == every / 2) j->chosen[chosen++] = i;
    if (j->dissection && chosen && (rc = fh_dissect_states(j->dissection, states, j->chosen, chosen, j->job, err)) < 0) return rc;
    j->done += n;
    fh_job_progress(j->job, "measuring", (double)j->done, (double)j->total, "positions");
    return FH_OK;
}

/* Recorded states: nothing is known of documents, so blocks stand for them. */
static fh_status take_recorded(judging *j, fh_err *err)
{
    fh_status rc = FH_OK;
    size_t n = j->p->n_states, d = j->v->layout.hidden, block = FH_BLOCK_TOKENS;
    while (block > 64 && n / block < 20) block /= 2;
    for (size_t at = 0; rc == FH_OK && !j->stopped_by_states && at < n; at += CHUNK) {
        size_t m = fh_min(CHUNK, n - at);
        for (size_t i = 0; i < m; i++) j->document[i] = (uint32_t)((at + i) / block);
        rc = take_states(j, j->p->states + at * d, m, err);
    }
    return rc;
}

/* The corpus in chunks that end with a window: each window is a sequence of its own, so that it has the states it would have had in one go. */
static fh_status take_corpus(judging *j, fh_err *err)
{
    const fh_corpus *c = &j->corpus;
    fh_states_params how = {.window = j->p->window ? j->p->window : WINDOW};
    uint32_t w = fh_states_window(&j->m, &how);
    size_t starts[CHUNK + 1];
    fh_job quiet = {.pool = fh_job_pool(j->job), .stop = j->job ? j->job->stop : NULL};
    fh_status rc = FH_OK;
    for (size_t doc = 0, at = 0; rc == FH_OK && !j->stopped_by_states && at < c->n;) {
        fh_corpus piece = {.ids = c->ids + at, .starts = starts};
        fh_states s = {0};
        while (at < c->n && piece.documents < CHUNK) {
            size_t n = fh_min(w, c->starts[doc + 1] - at);
            if (piece.n && piece.n + n > CHUNK) break;
            for (size_t i = 0; i < n && piece.n + i < CHUNK; i++) j->document[piece.n + i] = (uint32_t)doc;
            starts[piece.documents++] = piece.n;
            piece.n += n, at += n;
            while (doc + 1 < c->documents && at == c->starts[doc + 1]) doc++;
        }
        starts[piece.documents] = piece.n;
        rc = fh_states_of_corpus(&s, &j->m, &piece, &how, &quiet, err);
        for (size_t from = 0; rc == FH_OK && !j->stopped_by_states && from < s.n; from += CHUNK) { /* one window may be longer */
            size_t n = fh_min(CHUNK, s.n - from);
            if (from) for (size_t i = 0; i < n; i++) j->document[i] = j->document[0];
            rc = take_states(j, s.hidden + from * s.d, n, err);
        }
        fh_states_free(&s);
    }
    return rc;
}

/* What the model says itself: all states at once, since it says the documents side by side. */
static fh_status take_self(judging *j, fh_err *err)
{
    fh_states s = {0};
    fh_states_params how = {.tokens = j->total, .window = j->p->window ? j->p->window : WINDOW, .seed = j->p->seed};
    fh_status rc = fh_states_of_self(&s, &j->corpus, &j->m, &how, j->job, err);
    for (size_t at = 0; rc == FH_OK && !j->stopped_by_states && at < s.n; at += CHUNK) {
        size_t n = fh_min(CHUNK, s.n - at);
        memcpy(j->document, s.document + at, n * sizeof *j->document);
        rc = take_states(j, s.hidden + at * s.d, n, err);
    }
    fh_states_free(&s);
    return rc;
}

/* ---- measuring ----------------------------------------------------------------------------------------------------------- */

static bool is_self(const fh_validate_params *p) { return p->n_texts == 1 && !strcmp(p->texts[0], "self"); }

static fh_status read_corpus(judging *j, fh_err *err)
{
    fh_states_params how = {.window = j->p->window ? j->p->window : WINDOW};
    fh_status rc = fh_corpus_read(&j->corpus, j->p->texts, j->p->n_texts, j->m.tokenizer, MOST_TOKENS, j->job, err);
    if (rc < 0) return rc;
    fh_corpus_thin(&j->corpus, j->p->tokens ? j->p->tokens : TOKENS, fh_states_window(&j->m, &how));
    j->total = j->corpus.n;
    return FH_OK;
}

static fh_status open_sources(judging *j, const float **sources, fh_err *err)
{
    const fh_tensor *t;
    uint64_t shape[2] = {j->v->layout.k, j->v->layout.hidden};
    *sources = NULL;
    if (!j->p->routing) return FH_OK;
    fh_status rc = fh_tensors_open(&j->sources, j->p->routing, err);
    if (rc == FH_OK) rc = fh_tensors_need(&t, j->sources, "centroids", 1u << FH_F32, 2, shape, err);
    if (rc == FH_OK && (uintptr_t)t->data % sizeof(float)) rc = fh_fail(err, FH_EFORMAT, "%s: tensor 'centroids' is not aligned to its type", j->p->routing);
    if (rc == FH_OK) *sources = t->data;
    return rc;
}

static fh_status measure_states(judging *j, fh_err *err)
{
    fh_promised promise = fh_promised_by(j->v->file);
    const float *sources;
    fh_check *states = &j->v->check[FH_CHECK_STATES];
    fh_status rc;
    j->document = fh_malloc(CHUNK * sizeof *j->document), j->chosen = fh_malloc(CHUNK * sizeof *j->chosen);
    if (!j->document || !j->chosen) return fh_fail(err, FH_ENOMEM, "out of memory");
    if ((rc = fh_gather_open(&j->gatherer, &j->m, promise.containment_k, promise.confidence, err)) < 0) return rc;
    if (!j->p->no_anatomy && ((rc = open_sources(j, &sources, err)) < 0 || (rc = fh_dissect_open(&j->dissection, &j->m, sources, j->job, err)) < 0)) return rc;
    rc = j->p->states ? take_recorded(j, err) : is_self(j->p) ? take_self(j, err) : take_corpus(j, err);
    if (rc == FH_ECHECK && !j->stopped_by_states) { /* the states were finite, and what came of them is not */
        fh_check_set(states, FH_FAILED, "%s", err ? err->text : "not finite");
        j->stopped_by_states = true;
        rc = FH_OK;
    }
    if (rc < 0 || j->stopped_by_states) return rc;
    fh_check_set(states, FH_PASSED, "all %zu are finite", j->done);
    if (j->corpus.n) {
        if (!(j->counts = fh_calloc(j->v->layout.vocab, sizeof *j->counts))) return fh_fail(err, FH_ENOMEM, "out of memory");
        for (size_t i = 0; i < j->corpus.n; i++) if (j->corpus.ids[i] < j->v->layout.vocab) j->counts[j->corpus.ids[i]]++;
    }
    if ((rc = fh_gather_finish(j->gatherer, j->counts, &j->v->quality, err)) < 0) return rc;
    if (j->dissection) fh_dissect_finish(j->dissection, &j->v->anatomy);
    return FH_OK;
}

static fh_status measure_perplexity(judging *j, fh_err *err)
{
    uint32_t most = fh_body_max_position(j->m.body), window = j->p->window ? j->p->window : WINDOW;
    window = window < most ? window : most;
    fh_perplexity_params how = {.window = window, .stride = j->p->stride ? j->p->stride : fh_max(window / 2, 1)};
    if (j->corpus.n < 2 || window < 2) return FH_OK;
    fh_status rc = fh_perplexity(&j->m, j->corpus.ids, j->corpus.n, &how, j->job, &j->v->dense, err);
    how.flash = true;
    return rc < 0 ? rc : fh_perplexity(&j->m, j->corpus.ids, j->corpus.n, &how, j->job, &j->v->flash, err);
}

/* Prompts: those of a file, or beginnings of stretches of the text, as far from each other as it allows. */
static fh_status measure_divergence(judging *j, fh_err *err)
{
    size_t n = j->p->n_prompts ? j->p->n_prompts : PROMPTS, *starts = NULL;
    uint32_t *ids = NULL;
    fh_status rc = FH_OK;
    if (j->p->prompts) {
        rc = fh_prompts_read(&ids, &starts, &n, &j->m, j->p->prompts, n, j->job, err);
    } else {
        size_t len = fh_min(PROMPT_TOKENS, fh_max(j->corpus.n / n, 1));
        n = fh_min(n, j->corpus.n / len);
        ids = fh_malloc(n * len * sizeof *ids), starts = fh_malloc((n + 1) * sizeof *starts);
        if (!ids || !starts) rc = fh_fail(err, FH_ENOMEM, "out of memory");
        for (size_t i = 0; rc == FH_OK && i < n; i++) memcpy(ids + i * len, j->corpus.ids + i * (j->corpus.n / n), len * sizeof *ids);
        for (size_t i = 0; rc == FH_OK && i <= n; i++) starts[i] = i * len;
    }
    if (rc == FH_OK && n) rc = fh_diverge(&j->v->divergence, &j->m, ids, starts, n, j->p->say ? j->p->say : SAY, j->job, err);
    fh_free(ids);
    fh_free(starts);
    return rc;
}

/* ---- the promise -------------------------------------------------------------------------------------------------------- */

static void check_promise(fh_validation *v, const fh_promised *p)
{
    fh_check *c = &v->check[FH_CHECK_PROMISE];
    const fh_quality *q = &v->quality;
    char words[80], said[500] = "";
    bool certain = true;
    if (v->check[FH_CHECK_CALIBRATION].verdict == FH_FAILED) { fh_check_set(c, FH_SKIPPED, "the calibration is not of this head"); return; }
    if (!p->any) { fh_check_set(c, FH_SKIPPED, "it promises nothing"); return; }
    if (!q->positions) { fh_check_set(c, FH_SKIPPED, "nothing was measured: give a text (--text) or states (--hidden)"); return; }
    for (int i = 0; i < FH_PROMISES; i++) {
        const fh_kept *k = &q->kept[i];
        size_t at = strlen(said);
        if (!(p->target[i] > 0)) continue;
        fh_promise_words(words, p, (fh_promise_kind)i);
        if (!(k->upper >= p->target[i])) {
            fh_check_set(c, FH_FAILED, "%.6g is promised of %s; here it is %.5f on %zu positions, and above %.5f only with a chance of %.3g", p->target[i],
                         words, k->share, q->positions, k->upper, 1 - q->confidence);
            return;
        }
        snprintf(said + at, sizeof said - at, "%s%s: %.6g promised, %.5f here", at ? "; " : "", words, p->target[i], k->share);
        certain = certain && k->lower >= p->target[i];
    }
    if (p->text_sha256 && *v->text_digest && !strcmp(p->text_sha256, v->text_digest))
        fh_check_set(c, FH_WARNED, "%s: on the very text it was made on ('%.80s'): take another one to judge it", said, p->text ? p->text : "?");
    else fh_check_set(c, FH_PASSED, "%s, on %zu positions: %s", said, q->positions, certain ? "certain here too" : "not contradicted");
}

/* ---- all of it ------------------------------------------------------------------------------------------------------------ */

static void name_text(fh_validation *v, const fh_corpus *c)
{
    v->text = c->names ? fh_strdup(c->names) : NULL;
    memcpy(v->text_digest, c->digest, sizeof v->text_digest);
}

static fh_status measure(judging *j, const char *path, fh_err *err)
{
    const fh_validate_params *p = j->p;
    fh_validation *v = j->v;
    fh_check *states = &v->check[FH_CHECK_STATES];
    bool body = p->n_texts || p->prompts || p->last_words;
    fh_status rc;
    if (p->states_fault) { fh_check_set(states, FH_FAILED, "%s", p->states_fault); return FH_OK; }
    if (!body && !p->states) { fh_check_set(states, FH_SKIPPED, "none were given: give a text (--text) or states (--hidden)"); return FH_OK; }
    if ((rc = fh_model_open(&j->m, path, p->base, FH_MODEL_HEAD | (body ? FH_MODEL_BODY | FH_MODEL_TOKENIZER : 0), j->job, err)) < 0) return rc;
    if (!j->m.dense.rows.data) {
        fh_check_set(states, FH_SKIPPED, "there are no exact rows to measure against: give the model it was made of (--model)");
        return FH_OK;
    }
    j->total = p->states ? p->n_states : p->tokens ? p->tokens : TOKENS;
    if (p->n_texts && !p->states && !is_self(p) && (rc = read_corpus(j, err)) < 0) return rc;
    if (!p->n_texts && !p->states) fh_check_set(states, FH_SKIPPED, "none were given: give a text (--text) or states (--hidden)");
    else if ((rc = measure_states(j, err)) < 0) return rc;
    name_text(v, &j->corpus);
    if (j->stopped_by_states) return FH_OK;
    if (j->corpus.n && !p->no_perplexity && (rc = measure_perplexity(j, err)) < 0) return rc;
    if ((j->corpus.n || p->prompts) && !p->no_divergence && (rc = measure_divergence(j, err)) < 0) return rc;
    if (p->last_words && (rc = fh_say_last_words(&v->last_words, &j->m, p->last_words, j->job, err)) < 0) return rc;
    return FH_OK;
}

fh_status fh_validate(fh_validation *out, const char *path, const fh_validate_params *p, const fh_job *job, fh_err *err)
{
    static const char *const names[FH_CHECKS] = {"integrity", "belonging", "rows", "permutation", "parity", "calibration", "states", "promise"};
    double began = fh_now();
    judging j = {.v = out, .p = p, .job = job};
    fh_promised promise;
    fh_err fault = {0};
    fh_status rc;
    *out = (fh_validation){0};
    for (int i = 0; i < FH_CHECKS; i++) out->check[i].name = names[i];
    if ((rc = fh_fhead_open(&out->file, path, err)) < 0) goto out;
    if ((rc = fh_fhead_check_head(out->file, &out->layout, &fault)) == FH_ECHECK) { /* no head can be made of it: that is a verdict too */
        bool permutation = strstr(fault.text, "section head.permutation") != NULL;
        for (int i = 0; i < FH_CHECKS; i++) fh_check_set(&out->check[i], FH_SKIPPED, "the file does not hold a head");
        fh_check_set(&out->check[permutation ? FH_CHECK_PERMUTATION : FH_CHECK_INTEGRITY], FH_FAILED, "%s", fault.text);
        out->layout = (fh_head_layout){0};
        rc = FH_OK;
        goto out;
    }
    if (rc < 0) { if (err) *err = fault; goto out; }
    if (p->base && (rc = fh_checkpoint_open(&j.base, p->base, job, err)) < 0) goto out;
    if ((rc = fh_check_artifact(out, p->base ? &j.base : NULL, p->device, job, err)) < 0) goto out;
    bool sound = true;
    for (int i = 0; i <= FH_CHECK_PERMUTATION; i++) sound = sound && fh_check_stands(&out->check[i]);
    fh_checkpoint_close(&j.base); /* opened again where it is measured with */
    j.base = (fh_checkpoint){0};
    if (sound && (rc = measure(&j, path, err)) < 0) goto out;
    if (!sound) fh_check_set(&out->check[FH_CHECK_STATES], FH_SKIPPED, "nothing is measured: the head is not what it should be");
    promise = fh_promised_by(out->file);
    if (sound) check_promise(out, &promise);
    else fh_check_set(&out->check[FH_CHECK_PROMISE], FH_SKIPPED, "nothing was measured");
    out->seconds = fh_now() - began;
out:
    fh_gather_close(j.gatherer);
    fh_dissect_close(j.dissection);
    fh_tensors_close(j.sources);
    fh_corpus_free(&j.corpus);
    fh_checkpoint_close(&j.base);
    fh_model_close(&j.m);
    fh_free(j.counts);
    fh_free(j.document);
    fh_free(j.chosen);
    return rc;
}

void fh_validation_free(fh_validation *v)
{
    fh_fhead_close(v->file);
    fh_free(v->quality.curve);
    fh_free(v->text);
    fh_free(v->device);
    *v = (fh_validation){0};
}

size_t fh_validation_failed(const fh_validation *v)
{
    size_t n = 0;
    for (int i = 0; i < FH_CHECKS; i++) n += v->check[i].verdict == FH_FAILED;
    return n;
}

/* ---- gates ---------------------------------------------------------------------------------------------------------------- */

static double share(size_t part, size_t all) { return all ? (double)part / (double)all : NAN; }

const char *fh_validate_number(const fh_validation *v, size_t i, double *value)
{
    const fh_quality *q = &v->quality;
    const fh_last_words *l = &v->last_words;
    bool here = q->positions > 0, said = v->dense.tokens && v->flash.tokens, alike = v->divergence.prompts > 0;
    const struct { const char *name; bool here; double value;
    } numbers[] = {
        {"containment", here, q->kept[FH_CONTAINED].share},
        {"containment_lower", here, q->kept[FH_CONTAINED].lower},
        {"top1", here, q->top[0].share},
        {"top3", here, q->top[1].share},
        {"top5", here, q->top[2].share},
        {"top10", here, q->top[3].share},
        {"agreement", here, q->agreement},
        {"agreement_lower", here, q->kept[FH_AGREED].lower},
        {"mass", here, q->mass},
        {"mass_lower", here, q->kept[FH_COVERED].lower},
        {"kl", here, q->kl.mean},
        {"kl_p99", here, q->kl.p99},
        {"kl_max", here, q->kl.max},
        {"kl_dense", here, q->kl_dense.mean},
        {"kl_dense_p99", here, q->kl_dense.p99},
        {"kl_dense_max", here, q->kl_dense.max},
        {"perplexity_dense", said, v->dense.perplexity},
        {"perplexity_flash", said, v->flash.perplexity},
        {"perplexity_ratio", said, v->flash.perplexity / v->dense.perplexity},
        {"missed_share", said, v->flash.missed_share},
        {"divergence_mean", alike, v->divergence.mean},
        {"divergence_identical", alike, share(v->divergence.identical, v->divergence.prompts)},
        {"last_word_dense", l->words > 0, share(l->dense, l->words)},
        {"last_word_flash", l->words > 0, share(l->flash, l->words)},
        {"last_word_same", l->words > 0, share(l->same, l->words)},
        {"positions", true, (double)q->positions},
    };
    if (i >= sizeof numbers / sizeof *numbers) return NULL;
    *value = numbers[i].here ? numbers[i].value : NAN;
    return numbers[i].name;
}

fh_status fh_validate_gate(fh_check *out, const fh_validation *v, const char *gate, fh_err *err)
{
    size_t n = strcspn(gate, "<>=");
    bool least = !strncmp(gate + n, ">=", 2), most = !strncmp(gate + n, "<=", 2);
    char *end = NULL, list[600] = "";
    double value = NAN, asked = n && (least || most) ? strtod(gate + n + 2, &end) : NAN;
    *out = (fh_check){.name = gate};
    if (!end || end == gate + n + 2 || *end || !isfinite(asked))
        return fh_fail(err, FH_EUSAGE, "--gate '%.80s' is not of the form name>=value or name<=value", gate);
    size_t at = 0;
    for (size_t i = 0;; i++) {
        const char *name = fh_validate_number(v, i, &value);
        if (!name) break;
        if (strlen(name) == n && !strncmp(name, gate, n)) {
            bool met = least ? value >= asked : value <= asked;
            if (isnan(value)) fh_check_set(out, FH_FAILED, "%s was not measured", name);
            else fh_check_set(out, met ? FH_PASSED : FH_FAILED, "%s is %.6g", name, value);
            return FH_OK;
        }
        at += (size_t)snprintf(list + at, sizeof list - at, "%s%s", i ? ", " : "", name);
        at = fh_min(at, sizeof list - 1);
    }
    return fh_fail(err, FH_EUSAGE, "--gate '%.80s': there is no such number; there are %s", gate, list);
}
