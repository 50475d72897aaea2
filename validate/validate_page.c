/* What validate found, as a page for people. */
#include "validate/judge.h"
#include "validate/page.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const fh_tone tones[] = {FH_PLAIN, FH_GOOD, FH_POOR, FH_BAD}; /* by fh_verdict */

static void add_checks(fh_page *p, const char *caption, const fh_check *checks, size_t n)
{
    static const fh_column columns[] = {{"check", true}, {"result", true}, {"", true}};
    fh_page_table(p, caption, columns, 3);
    for (size_t i = 0; i < n; i++) {
        fh_page_cell(p, FH_PLAIN, "%s", checks[i].name);
        fh_page_cell(p, tones[checks[i].verdict], "%s", fh_verdict_name(checks[i].verdict));
        fh_page_cell(p, FH_PLAIN, "%s", checks[i].detail);
    }
}

static void head_facts(fh_page *p, const fh_validation *v)
{
    const fh_quality *q = &v->quality;
    const fh_head_layout *h = &v->layout;
    double dense = (double)h->vocab * h->hidden * (double)fh_dtype_size(h->dtype), step = fh_head_layout_step_bytes(h, h->probes, h->n_hot);
    if (h->threshold > 0 && q->positions) step = q->step_bytes;
    fh_promised promise = fh_promised_by(v->file);
    for (int i = 0; i < FH_PROMISES; i++) {
        char words[80], name[100];
        snprintf(name, sizeof name, "promised: %s", fh_promise_words(words, &promise, (fh_promise_kind)i));
        if (promise.target[i] > 0)
            fh_page_fact(p, tones[v->check[FH_CHECK_PROMISE].verdict], name, "%.6g, confidence %.6g", promise.target[i], promise.confidence);
    }
    if (q->positions) {
        fh_page_fact(p, FH_PLAIN, "containment here", "%.5f", q->kept[FH_CONTAINED].share);
        fh_page_fact(p, FH_PLAIN, "agreement", "%.5f", q->agreement);
        fh_page_fact(p, FH_PLAIN, "covered mass", "%.4f", q->mass);
        fh_page_fact(p, FH_PLAIN, "KL(FlashHead || dense)", "%.4f nats", q->kl.mean);
    }
    if (v->dense.tokens && v->flash.tokens)
        fh_page_fact(p, FH_PLAIN, "perplexity", "%.3f dense, %.3f FlashHead", v->dense.perplexity, v->flash.perplexity);
    fh_page_fact(p, FH_PLAIN, "bytes a step", "%.3g MB of %.3g MB (%.1f %%)", step / 1e6, dense / 1e6, 100 * step / dense);
    if (h->threshold > 0)
        fh_page_fact(p, FH_PLAIN, "clusters", "%u of %u tokens; probed where the score is within %.4g of the best one's, %u at most", h->k, h->cap,
                     (double)h->threshold, h->probes);
    else fh_page_fact(p, FH_PLAIN, "clusters", "%u of %u tokens, %u probed", h->k, h->cap, h->probes);
    if (h->threshold > 0 && q->positions)
        fh_page_fact(p, FH_PLAIN, "probed here", "%.1f in the mean, %.0f in 99 %% of the steps, %.0f at most", q->probed.mean, q->probed.p99, q->probed.max);
    fh_page_fact(p, FH_PLAIN, "encodings", "%s centroids, %s rows", fh_dtype_name(h->centroids.dtype), fh_dtype_name(h->tokens.dtype));
}

/* ---- containment ---------------------------------------------------------------------------------------------------- */

static void curve_plots(fh_page *p, const fh_validation *v)
{
    static const char *const names[FH_TOPS] = {"best 1", "best 3", "best 5", "best 10"};
    const fh_quality *q = &v->quality;
    double x[FH_CURVE_POINTS], bytes[FH_CURVE_POINTS], miss[FH_TOPS][FH_CURVE_POINTS], low[FH_TOPS][FH_CURVE_POINTS], high[FH_TOPS][FH_CURVE_POINTS], kl[FH_CURVE_POINTS], mass[FH_CURVE_POINTS], agree[FH_CURVE_POINTS];
    size_t n = fh_min(q->n_curve, FH_CURVE_POINTS);
    fh_promised promise = fh_promised_by(v->file);
    for (size_t i = 0; i < n; i++) {
        const fh_curve_point *c = &q->curve[i];
        x[i] = c->probes, bytes[i] = c->step_bytes / 1e6, kl[i] = c->kl, mass[i] = 1 - c->mass, agree[i] = 1 - c->agreement;
        for (size_t t = 0; t < FH_TOPS; t++) miss[t][i] = 1 - c->top[t].share, low[t][i] = 1 - c->top[t].upper, high[t][i] = 1 - c->top[t].lower;
    }
    fh_series tops[FH_TOPS];
    for (size_t t = 0; t < FH_TOPS; t++)
        tops[t] = (fh_series){.name = names[t], .x = x, .y = miss[t], .n = n, .low = low[t], .high = high[t], .line = true, .dots = true};
    fh_mark marks[] = {{q->threshold > 0 ? "mean P" : "P", q->threshold > 0 ? q->probed.mean : (double)q->probes, true}, {"promised", 1 - promise.target[FH_CONTAINED], false}};
    fh_page_plot(p, &(fh_plot){.title = "Positions at which one of the dense head's best is missed",
                               .x = {"clusters probed", 2, false, 0, 0},
                               .y = {"missed, with bounds", 10, true, 0, 0},
                               .series = tops,
                               .n_series = FH_TOPS,
                               .marks = marks,
                               .n_marks = promise.target[FH_CONTAINED] > 0 ? 2 : 1});
    fh_series rest[] = {{.name = "outside the candidates, of the probability", .x = x, .y = mass, .n = n, .line = true, .dots = true},
                        {.name = "another best token", .x = x, .y = agree, .n = n, .line = true, .dots = true}};
    fh_page_plot(p, &(fh_plot){.title = "Mass not covered, and answers that differ",
                               .x = {"clusters probed", 2, false, 0, 0},
                               .y = {"share", 10, true, 0, 0},
                               .series = rest,
                               .n_series = 2,
                               .marks = marks,
                               .n_marks = 1});
    fh_series cost = {.x = bytes, .y = kl, .n = n, .line = true, .dots = true};
    fh_page_plot(p, &(fh_plot){.title = "Divergence over what a step reads",
                               .x = {"MB a step", 10, false, 0, 0},
                               .y = {"KL, nats", 10, false, 0, 0},
                               .series = &cost,
                               .n_series = 1});
}

static void kept_rows(fh_page *p, const fh_quality *q)
{
    static const fh_column columns[] = {{"of the dense head's", true}, {"share", false},  {"lower bound", false},
                                        {"upper bound", false},        {"missed", false}, {"design effect", false}};
    static const char *const names[FH_TOPS] = {"best token", "best 3", "best 5", "best 10"};
    char caption[160];
    snprintf(caption, sizeof caption, "All among the candidates, on %zu positions of %zu documents; bounds at %.3g each", q->positions, q->documents,
             q->confidence);
    fh_page_table(p, caption, columns, 6);
    for (size_t t = 0; t < FH_TOPS; t++) {
        const fh_kept *k = &q->top[t];
        fh_page_cell(p, FH_PLAIN, "%s", names[t]);
        fh_page_cell(p, FH_PLAIN, "%.5f", k->share);
        fh_page_cell(p, FH_PLAIN, "%.5f", k->lower);
        fh_page_cell(p, FH_PLAIN, "%.5f", k->upper);
        fh_page_cell(p, FH_PLAIN, "%.0f", k->misses);
        fh_page_cell(p, FH_PLAIN, "%.2f", k->effect);
    }
}

static void curve_table(fh_page *p, const fh_quality *q)
{
    static const fh_column columns[] = {{"P", false},      {"best 1", false}, {"lower", false},       {"upper", false},
                                        {"best 3", false}, {"best 5", false}, {"best 10", false},     {"agreement", false},
                                        {"mass", false},   {"KL", false},     {"bytes a step", false}};
    fh_page_table(p, "The whole curve", columns, sizeof columns / sizeof *columns);
    for (size_t i = 0; i < q->n_curve; i++) {
        const fh_curve_point *c = &q->curve[i];
        fh_tone tone = c->probes == q->probes && !(q->threshold > 0) ? FH_GOOD : FH_PLAIN;
        fh_page_cell(p, tone, "%u", c->probes);
        fh_page_cell(p, FH_PLAIN, "%.5f", c->top[0].share);
        fh_page_cell(p, FH_PLAIN, "%.5f", c->top[0].lower);
        fh_page_cell(p, FH_PLAIN, "%.5f", c->top[0].upper);
        for (size_t t = 1; t < FH_TOPS; t++) fh_page_cell(p, FH_PLAIN, "%.5f", c->top[t].share);
        fh_page_cell(p, FH_PLAIN, "%.5f", c->agreement);
        fh_page_cell(p, FH_PLAIN, "%.5f", c->mass);
        fh_page_cell(p, FH_PLAIN, "%.5g", c->kl);
        fh_page_cell(p, FH_PLAIN, "%.0f", c->step_bytes);
    }
}

/* ---- divergence and bands ----------------------------------------------------------------------------------------------- */

static void spreads(fh_page *p, const fh_quality *q)
{
    static const fh_column columns[] = {{"nats", true}, {"KL(FlashHead || dense)", false}, {"KL(dense || FlashHead)", false}};
    const struct { const char *name; double a, b;
    } rows[] = {
        {"mean", q->kl.mean, q->kl_dense.mean},
        {"maximum", q->kl.max, q->kl_dense.max},
        {"99.9 %", q->kl.p99_9, q->kl_dense.p99_9},
        {"99 %", q->kl.p99, q->kl_dense.p99},
        {"95 %", q->kl.p95, q->kl_dense.p95},
        {"90 %", q->kl.p90, q->kl_dense.p90},
        {"median", q->kl.median, q->kl_dense.median},
        {"10 %", q->kl.p10, q->kl_dense.p10},
        {"5 %", q->kl.p5, q->kl_dense.p5},
        {"1 %", q->kl.p1, q->kl_dense.p1},
        {"0.1 %", q->kl.p0_1, q->kl_dense.p0_1},
        {"minimum", q->kl.min, q->kl_dense.min},
    };
    fh_page_table(p, "Divergence of the two distributions, position by position", columns, 3);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        fh_page_cell(p, FH_PLAIN, "%s", rows[i].name);
        fh_page_cell(p, FH_PLAIN, "%.5g", rows[i].a);
        fh_page_cell(p, FH_PLAIN, "%.5g", rows[i].b);
    }
    fh_page_text(p,
                 "FlashHead is renormalised over its candidates on the left. On the right a share of %g of its mass is spread over the tokens that are no "
                 "candidates, which makes the "
                 "divergence finite. Same best token: %.3f ± %.3f %%.",
                 FH_BACKOFF, 100 * q->agreement, 100 * q->agreement_error);
}

static void bands(fh_page *p, const char *caption, const char *key, const fh_bands *b, size_t positions)
{
    const fh_column columns[] = {{key, true},          {"positions", false}, {"share", false}, {"missed", false}, {"containment", false},
                                 {"agreement", false}, {"mass", false},      {"KL", false}};
    if (!b->n) return;
    fh_page_table(p, caption, columns, sizeof columns / sizeof *columns);
    for (size_t i = 0; i < b->n; i++) {
        const fh_band *r = &b->band[i];
        fh_page_cell(p, FH_PLAIN, "%s", r->name);
        fh_page_cell(p, FH_PLAIN, "%zu", r->positions);
        fh_page_cell(p, FH_PLAIN, "%.1f %%", 100 * (double)r->positions / (double)positions);
        fh_page_cell(p, FH_PLAIN, "%zu", r->misses);
        if (!r->positions) { for (int c = 0; c < 4; c++) fh_page_cell(p, FH_PLAIN, "-"); continue; }
        fh_page_cell(p, FH_PLAIN, "%.5f", 1 - (double)r->misses / (double)r->positions);
        fh_page_cell(p, FH_PLAIN, "%.5f", r->agreement);
        fh_page_cell(p, FH_PLAIN, "%.4f", r->mass);
        fh_page_cell(p, FH_PLAIN, "%.4f", r->kl);
    }
}

static void band_bars(fh_page *p, const char *title, const fh_bands *b)
{
    const char *names[FH_BANDS];
    double share[FH_BANDS];
    size_t n = 0;
    for (size_t i = 0; i < b->n; i++)
        if (b->band[i].positions) names[n] = b->band[i].name, share[n++] = 100 * (double)b->band[i].misses / (double)b->band[i].positions;
    if (n) fh_page_bars(p, title, names, share, n, "%.3f %%");
}

static void worst_tokens(fh_page *p, const fh_quality *q)
{
    static const fh_column columns[] = {
        {"token", false}, {"text", true}, {"was the best", false}, {"missed", false}, {"probes it would have taken", false}, {"cluster", false}};
    if (!q->n_worst) return;
    fh_page_table(p, "The tokens that are missed most", columns, 6);
    for (size_t i = 0; i < q->n_worst; i++) {
        const fh_worst *w = &q->worst[i];
        fh_page_cell(p, FH_PLAIN, "%u", w->id);
        fh_page_cell(p, FH_PLAIN, "%s", *w->text ? w->text : "-");
        fh_page_cell(p, FH_PLAIN, "%zu", w->times);
        fh_page_cell(p, FH_PLAIN, "%zu", w->misses);
        fh_page_cell(p, FH_PLAIN, "%.0f", w->need);
        fh_page_cell(p, FH_PLAIN, "%u", w->cluster);
    }
}

static void anatomy(fh_page *p, const fh_anatomy *a)
{
    static const fh_column columns[] = {{"not exact", true},
                                        {"containment", false},
                                        {"agreement", false},
                                        {"mass", false},
                                        {"KL(FlashHead || dense)", false},
                                        {"KL(dense || FlashHead)", false}};
    const char *names[] = {"clustering: no choice of P clusters of most mass has it", "routing: those clusters have it, the centroids miss it",
                           "encoding of centroids: not encoded they have it"};
    double misses[] = {(double)a->by_clustering, (double)a->by_routing, (double)a->by_encoding};
    if (!a->positions) return;
    fh_page_section(p, "What each part costs");
    fh_page_text(p,
                 "The same %zu positions, every time with all else exact: the dense head's own logits where rows are exact, its own probabilities where "
                 "clusters are.",
                 a->positions);
    fh_page_table(p, NULL, columns, 6);
    for (size_t i = 0; i < a->n; i++) {
        const fh_part_cost *c = &a->cost[i];
        fh_page_cell(p, FH_PLAIN, "%s", c->part);
        fh_page_cell(p, FH_PLAIN, "%.5f", c->top1);
        fh_page_cell(p, FH_PLAIN, "%.5f", c->agreement);
        fh_page_cell(p, FH_PLAIN, "%.4f", c->mass);
        fh_page_cell(p, FH_PLAIN, "%.5f", c->kl);
        fh_page_cell(p, FH_PLAIN, "%.5f", c->kl_dense);
    }
    if (a->misses) {
        char title[80];
        snprintf(title, sizeof title, "Where the %zu misses come from", a->misses);
        fh_page_bars(p, title, names, misses, a->sources ? 3 : 2, "%.0f");
    }
    if (!a->sources)
        fh_page_text(p, "The centroids before their encoding were not at hand (-C names the work directory that has them): what encoding them costs "
                        "counts as routing.");
}

/* ---- what it is ------------------------------------------------------------------------------------------------------------ */

static void speech(fh_page *p, const fh_validation *v)
{
    const fh_divergence *d = &v->divergence;
    const fh_last_words *l = &v->last_words;
    if (!v->dense.tokens && !d->prompts && !l->words) return;
    fh_page_section(p, "What it does to text");
    if (v->dense.tokens && v->flash.tokens) {
        fh_page_fact(p, FH_PLAIN, "perplexity, dense", "%.4f", v->dense.perplexity);
        fh_page_fact(p, FH_PLAIN, "perplexity, FlashHead", "%.4f (%+.2f %%)", v->flash.perplexity, 100 * (v->flash.perplexity / v->dense.perplexity - 1));
        fh_page_fact(p, FH_PLAIN, "next tokens missed", "%.2f %% of %llu", 100 * v->flash.missed_share, (unsigned long long)v->flash.tokens);
    }
    if (d->prompts) {
        fh_page_fact(p, FH_PLAIN, "greedy texts alike", "%zu of %zu, %zu tokens each", d->identical, d->prompts, d->tokens);
        fh_page_fact(p, FH_PLAIN, "they part after", "%.1f tokens (median %.0f, least %zu)", d->mean, d->median, d->min);
    }
    if (l->words) {
        fh_page_fact(p, FH_PLAIN, "last words, dense", "%.2f %% of %zu", 100 * (double)l->dense / (double)l->words, l->words);
        fh_page_fact(p, FH_PLAIN, "last words, FlashHead", "%.2f %%", 100 * (double)l->flash / (double)l->words);
    }
}

static void sizes(fh_page *p, const fh_validation *v)
{
    static const fh_column columns[] = {{"section", true}, {"stored as", true}, {"bytes", false}, {"SHA-256", true}};
    fh_page_section(p, "Sizes");
    fh_page_table(p, NULL, columns, 4);
    for (size_t i = 0; i < fh_fhead_sections(v->file); i++) {
        const fh_section *s = fh_fhead_section(v->file, i);
        char hex[65];
        fh_sha256_hex(hex, s->sha256);
        fh_page_cell(p, FH_PLAIN, "%s", s->name);
        fh_page_cell(p, FH_PLAIN, "%s", s->codec == FH_CODEC_ZSTD ? "zstd" : "raw");
        fh_page_cell(p, FH_PLAIN, "%llu", (unsigned long long)s->bytes);
        fh_page_cell(p, FH_PLAIN, "%.16s...", hex);
    }
}

/* One row a fact of a record: its name with those of the objects around it. */
static void record_rows(fh_page *p, const char *path, const fh_json *j, int depth)
{
    for (const fh_json *c = fh_json_first(j); c; c = fh_json_next(c)) {
        char name[300];
        snprintf(name, sizeof name, "%s%s%s", path, *path ? "." : "", fh_json_key(c) ? fh_json_key(c) : "");
        if (fh_json_type(c) == FH_JSON_OBJECT) {
            if (depth < 6) record_rows(p, name, c, depth + 1);
            continue;
        }
        if (fh_json_type(c) == FH_JSON_ARRAY) continue; /* hot list and curve stand elsewhere */
        char *text = fh_json_string(c) ? fh_strdup(fh_json_string(c)) : fh_json_print(c, false);
        fh_page_cell(p, FH_PLAIN, "%s", name);
        if (text) fh_page_cell(p, FH_PLAIN, "%s", text);
        else fh_page_fail(p);
        fh_free(text);
    }
}

static void provenance(fh_page *p, const fh_validation *v)
{
    static const fh_column columns[] = {{"", true}, {"", true}};
    const fh_json *header = fh_fhead_header(v->file);
    fh_page_section(p, "Where it comes from");
    fh_page_fact(p, FH_PLAIN, "digest", "%s", fh_fhead_digest(v->file));
    if (v->layout.vocab) fh_page_fact(p, FH_PLAIN, "fingerprint", "%s", v->layout.fingerprint);
    if (v->layout.vocab)
        fh_page_fact(p, FH_PLAIN, "model", "%s, %u tokens of width %u, %s", v->layout.model_type, v->layout.vocab, v->layout.hidden,
                     fh_dtype_name(v->layout.dtype));
    if (v->text) fh_page_fact(p, FH_PLAIN, "measured on", "%s", v->text);
    if (*v->text_digest) fh_page_fact(p, FH_PLAIN, "SHA-256 of that text", "%s", v->text_digest);
    if (fh_json_get(header, "calibration")) {
        fh_page_table(p, "Calibration", columns, 2);
        record_rows(p, "", fh_json_get(header, "calibration"), 0);
    }
    fh_page_table(p, "Stages", columns, 2);
    record_rows(p, "", fh_json_get(header, "provenance"), 0);
}

fh_status fh_validate_page(const fh_validation *v, const fh_check *gates, size_t n_gates, const char *path, fh_err *err)
{
    const fh_quality *q = &v->quality;
    const char *name = strrchr(fh_fhead_path(v->file), '/');
    char title[300], lead[300];
    size_t failed = fh_validation_failed(v);
    for (size_t i = 0; i < n_gates; i++) failed += gates[i].verdict == FH_FAILED;
    snprintf(title, sizeof title, "%s: %s", name ? name + 1 : fh_fhead_path(v->file), failed ? "not to be shipped" : "validated");
    if (failed) snprintf(lead, sizeof lead, "%zu of its checks and gates failed.", failed);
    else snprintf(lead, sizeof lead, "No check failed%s%s.", n_gates ? ", and every gate was met" : "", q->positions ? "" : "; nothing was measured");
    fh_page *p = fh_page_new(title, lead);
    if (!p) return fh_fail(err, FH_ENOMEM, "%s: out of memory for the page", path);
    if (v->layout.vocab) head_facts(p, v);
    fh_page_section(p, "Checks");
    add_checks(p, NULL, v->check, FH_CHECKS);
    if (n_gates) add_checks(p, "Gates", gates, n_gates);
    if (q->positions) {
        fh_page_section(p, "Containment");
        curve_plots(p, v);
        kept_rows(p, q);
        curve_table(p, q);
        fh_page_section(p, "Divergence");
        spreads(p, q);
        fh_page_section(p, "Where it misses");
        band_bars(p, "Missed, by the margin of the dense head's best token over its second (nats)", &q->by_margin);
        bands(p, "By margin", "margin", &q->by_margin, q->positions);
        bands(p, "By entropy of the dense head, flat distributions last", "nats", &q->by_entropy, q->positions);
        bands(p, "By how often the dense head's best token stands in the text", "in the text", &q->by_frequency, q->positions);
        worst_tokens(p, q);
    }
    anatomy(p, &v->anatomy);
    speech(p, v);
    sizes(p, v);
    provenance(p, v);
    return fh_page_write(p, path, err);
}
