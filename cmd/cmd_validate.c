#include <math.h>
#include <string.h>

#include "cmd/cmd.h"
#include "validate/validate.h"

typedef struct args {
    fh_common common;
    fh_strs text, gates;
    fh_str model, hidden, prompts, last_words, report;
    fh_uint tokens, window, stride, seed, n_prompts, say, anatomy;
    bool no_anatomy, no_perplexity, no_divergence;
    fh_pick device;
} args;
static const fh_opt options[] = {
    {"model", FH_OPT_STR, offsetof(args, model), "DIR", "the model it was made of (default: the bundled one)", 0, 0, NULL},
    {"text", FH_OPT_STRS, offsetof(args, text), "FILE|self", "measure on this text, again for more files (self: the model speaks)", 0, 0, NULL},
    {"hidden", FH_OPT_STR, offsetof(args, hidden), "STATES", "measure on these states (safetensors, hidden [N, D] or [B, T, D]) instead", 0, 0, NULL},
    {"tokens", FH_OPT_UINT, offsetof(args, tokens), "N", "tokens of the text at most, evenly from all of it (default 20000)", 2, 1e9, NULL},
    {"window", FH_OPT_UINT, offsetof(args, window), "W", "tokens of context (default 512, or the model's limit)", 2, 1e6, NULL},
    {"stride", FH_OPT_UINT, offsetof(args, stride), "S", "of perplexity, from window to window (default W/2)", 1, 1e6, NULL},
    {"seed", FH_OPT_UINT, offsetof(args, seed), "N", "of what the model says", 0, 9e15, NULL},
    {"prompts", FH_OPT_STR, offsetof(args, prompts), "FILE", "a line a prompt, continued by both heads (default: beginnings in the text)", 0, 0, NULL},
    {"n-prompts", FH_OPT_UINT, offsetof(args, n_prompts), "N", "how many (default 16)", 1, 100000, NULL},
    {"-n", FH_OPT_UINT, offsetof(args, say), "N", "tokens said after each (default 64)", 1, 1e6, NULL},
    {"last-words", FH_OPT_STR, offsetof(args, last_words), "FILE", "lines, or JSON lines with \"text\", whose last word is to be said", 0, 0, NULL},
    {"gate", FH_OPT_STRS, offsetof(args, gates), "NAME>=X", "what must hold (or NAME<=X), again for more; exit status 3 where it does not", 0, 0, NULL},
    {"report", FH_OPT_STR, offsetof(args, report), "FILE", "write a page of HTML", 0, 0, NULL},
    {"anatomy-positions", FH_OPT_UINT, offsetof(args, anatomy), "N", "positions on which every part is measured apart (default 2048)", 64, 1e9, NULL},
    {"no-anatomy", FH_OPT_FLAG, offsetof(args, no_anatomy), NULL, "do not measure the parts", 0, 0, NULL},
    {"no-perplexity", FH_OPT_FLAG, offsetof(args, no_perplexity), NULL, "leave it out", 0, 0, NULL},
    {"no-divergence", FH_OPT_FLAG, offsetof(args, no_divergence), NULL, "do not continue prompts", 0, 0, NULL},
    {"device", FH_OPT_PICK, offsetof(args, device), "D", "whose results are held to the CPU's (default auto: a GPU's if there is one)", 0, 0, "cpu,cuda,auto"},
    {"-C", FH_OPT_STR, offsetof(args, common) + offsetof(fh_common, dir), "DIR", "work directory, for the centroids before their encoding (default: none)",
     0, 0, NULL},
    FH_COMMON_OPTS,
    FH_OPT_END,
};

static void add_check(fh_json *list, const fh_check *c)
{
    fh_json *j = fh_json_add_object(list, NULL);
    fh_json_add_string(j, "check", c->name);
    fh_json_add_string(j, "result", fh_verdict_name(c->verdict));
    fh_json_add_string(j, "detail", c->detail);
}

static void add_kept(fh_json *to, const char *name, const fh_kept *k)
{
    fh_json *j = fh_json_add_object(to, name);
    fh_json_add_double(j, "share", k->share);
    fh_json_add_u64(j, "misses", (uint64_t)k->misses);
    fh_json_add_double(j, "lower", k->lower);
    fh_json_add_double(j, "upper", k->upper);
    fh_json_add_double(j, "design_effect", k->effect);
}

static void add_spread(fh_json *to, const char *name, const fh_spread *s)
{
    fh_json *j = fh_json_add_object(to, name);
    fh_json_add_double(j, "mean", s->mean);
    fh_json_add_double(j, "max", s->max);
    fh_json_add_double(j, "p99.9", s->p99_9);
    fh_json_add_double(j, "p99", s->p99);
    fh_json_add_double(j, "p95", s->p95);
    fh_json_add_double(j, "p90", s->p90);
    fh_json_add_double(j, "median", s->median);
    fh_json_add_double(j, "p10", s->p10);
    fh_json_add_double(j, "p5", s->p5);
    fh_json_add_double(j, "p1", s->p1);
    fh_json_add_double(j, "p0.1", s->p0_1);
    fh_json_add_double(j, "min", s->min);
}

static void add_bands(fh_json *to, const char *name, const char *key, const fh_bands *b)
{
    if (!b->n) return;
    fh_json *list = fh_json_add_array(to, name);
    for (size_t i = 0; i < b->n; i++) {
        const fh_band *band = &b->band[i];
        fh_json *j = fh_json_add_object(list, NULL);
        fh_json_add_string(j, key, band->name);
        fh_json_add_u64(j, "positions", band->positions);
        fh_json_add_u64(j, "misses", band->misses);
        fh_json_add_double(j, "containment", band->positions ? (double)(band->positions - band->misses) / (double)band->positions : NAN);
        fh_json_add_double(j, "agreement", band->agreement);
        fh_json_add_double(j, "mass", band->mass);
        fh_json_add_double(j, "kl", band->kl);
    }
}

static void add_quality(fh_json *r, const fh_quality *q)
{
    static const char *const names[FH_TOPS] = {"top1", "top3", "top5", "top10"};
    fh_json *list;
    fh_json_add_u64(r, "positions", q->positions);
    fh_json_add_u64(r, "documents", q->documents);
    fh_json_add_u64(r, "probes", q->probes);
    if (q->threshold > 0) {
        fh_json_add_double(r, "threshold", (double)q->threshold);
        add_spread(r, "probed", &q->probed);
        fh_json_add_double(r, "step_bytes", q->step_bytes);
    }
    fh_json_add_u64(r, "containment_k", q->containment_k);
    fh_json_add_double(r, "confidence", q->confidence);
    add_kept(r, "containment", &q->kept[FH_CONTAINED]);
    for (size_t t = 0; t < FH_TOPS; t++) add_kept(r, names[t], &q->top[t]);
    fh_json_add_double(r, "agreement", q->agreement);
    fh_json_add_double(r, "agreement_error", q->agreement_error);
    fh_json_add_double(r, "agreement_lower", q->kept[FH_AGREED].lower);
    fh_json_add_double(r, "agreement_upper", q->kept[FH_AGREED].upper);
    fh_json_add_double(r, "mass", q->mass);
    fh_json_add_double(r, "mass_lower", q->kept[FH_COVERED].lower);
    fh_json_add_double(r, "mass_upper", q->kept[FH_COVERED].upper);
    add_spread(r, "kl", &q->kl);
    add_spread(r, "kl_dense", &q->kl_dense);
    list = fh_json_add_array(r, "curve");
    for (size_t i = 0; i < q->n_curve; i++) {
        const fh_curve_point *p = &q->curve[i];
        fh_json *j = fh_json_add_object(list, NULL);
        fh_json_add_u64(j, "probes", p->probes);
        for (size_t t = 0; t < FH_TOPS; t++) fh_json_add_double(j, names[t], p->top[t].share);
        fh_json_add_double(j, "top1_lower", p->top[0].lower);
        fh_json_add_double(j, "top1_upper", p->top[0].upper);
        fh_json_add_double(j, "agreement", p->agreement);
        fh_json_add_double(j, "mass", p->mass);
        fh_json_add_double(j, "kl", p->kl);
        fh_json_add_double(j, "kl_dense", p->kl_dense);
        fh_json_add_double(j, "step_bytes", p->step_bytes);
    }
    add_bands(r, "by_frequency", "in_text", &q->by_frequency);
    add_bands(r, "by_margin", "margin", &q->by_margin);
    add_bands(r, "by_entropy", "entropy", &q->by_entropy);
    if (q->n_worst) list = fh_json_add_array(r, "worst_tokens");
    for (size_t i = 0; i < q->n_worst; i++) {
        const fh_worst *w = &q->worst[i];
        fh_json *j = fh_json_add_object(list, NULL);
        fh_json_add_u64(j, "id", w->id);
        fh_json_add_string(j, "text", w->text);
        fh_json_add_u64(j, "times", w->times);
        fh_json_add_u64(j, "misses", w->misses);
        fh_json_add_double(j, "probes_needed", w->need);
        fh_json_add_u64(j, "cluster", w->cluster);
    }
}

static void add_anatomy(fh_json *r, const fh_anatomy *a)
{
    fh_json *j = fh_json_add_object(r, "anatomy");
    fh_json_add_u64(j, "positions", a->positions);
    fh_json_add_u64(j, "misses", a->misses);
    fh_json_add_u64(j, "by_clustering", a->by_clustering);
    fh_json_add_u64(j, "by_routing", a->by_routing);
    if (a->sources) fh_json_add_u64(j, "by_encoding", a->by_encoding);
    j = fh_json_add_array(r, "parts");
    for (size_t i = 0; i < a->n; i++) {
        const fh_part_cost *c = &a->cost[i];
        fh_json *row = fh_json_add_object(j, NULL);
        fh_json_add_string(row, "part", c->part);
        fh_json_add_double(row, "top1", c->top1);
        fh_json_add_double(row, "agreement", c->agreement);
        fh_json_add_double(row, "mass", c->mass);
        fh_json_add_double(row, "kl", c->kl);
        fh_json_add_double(row, "kl_dense", c->kl_dense);
    }
}

static void add_rest(fh_json *r, const fh_validation *v)
{
    if (v->dense.tokens && v->flash.tokens) {
        fh_json *j = fh_json_add_object(r, "perplexity");
        fh_json_add_u64(j, "tokens", v->dense.tokens);
        fh_json_add_double(j, "dense", v->dense.perplexity);
        fh_json_add_double(j, "flash", v->flash.perplexity);
        fh_json_add_double(j, "ratio", v->flash.perplexity / v->dense.perplexity);
        fh_json_add_double(j, "missed_share", v->flash.missed_share);
        fh_json_add_double(j, "backoff", v->flash.backoff);
    }
    if (v->divergence.prompts) {
        fh_json *j = fh_json_add_object(r, "divergence");
        fh_json_add_u64(j, "prompts", v->divergence.prompts);
        fh_json_add_u64(j, "tokens", v->divergence.tokens);
        fh_json_add_double(j, "mean", v->divergence.mean);
        fh_json_add_double(j, "median", v->divergence.median);
        fh_json_add_u64(j, "min", v->divergence.min);
        fh_json_add_u64(j, "identical", v->divergence.identical);
    }
    if (v->last_words.words) {
        fh_json *j = fh_json_add_object(r, "last_words");
        fh_json_add_u64(j, "words", v->last_words.words);
        fh_json_add_u64(j, "dense", v->last_words.dense);
        fh_json_add_u64(j, "flash", v->last_words.flash);
        fh_json_add_u64(j, "same", v->last_words.same);
    }
}

static fh_json *report_of(const fh_validation *v, const fh_check *gates, size_t n_gates, bool passed)
{
    fh_json *r = fh_json_object(), *list;
    if (v->layout.vocab) fh_json_add_string(r, "fingerprint", v->layout.fingerprint);
    fh_json_add_string(r, "digest", fh_fhead_digest(v->file));
    fh_json_add_bool(r, "passed", passed);
    list = fh_json_add_array(r, "checks");
    for (size_t i = 0; i < FH_CHECKS; i++) add_check(list, &v->check[i]);
    if (n_gates) list = fh_json_add_array(r, "gates");
    for (size_t i = 0; i < n_gates; i++) add_check(list, &gates[i]);
    list = fh_json_add_array(r, "parity");
    for (size_t i = 0; i < v->n_parity; i++) {
        const fh_parity_row *p = &v->parity[i];
        fh_json *j = fh_json_add_object(list, NULL);
        fh_json_add_string(j, "isa", p->isa);
        fh_json_add_string(j, "variant", p->variant);
        fh_json_add_u64(j, "compared", p->found.compared);
        fh_json_add_u64(j, "differ", p->found.differ);
    }
    if (v->device) fh_json_add_string(r, "device", v->device);
    if (v->text) fh_json_add_string(r, "text", v->text);
    if (*v->text_digest) fh_json_add_string(r, "text_sha256", v->text_digest);
    if (v->quality.positions) add_quality(r, &v->quality);
    if (v->anatomy.positions) add_anatomy(r, &v->anatomy);
    add_rest(r, v);
    fh_json_add_double(r, "seconds", v->seconds);
    return r;
}

/* The names of what failed, for the last line. */
static fh_status say_failed(const fh_validation *v, const fh_check *gates, size_t n_gates, const char *path, fh_err *err)
{
    fh_buf b = {0};
    const char *first = NULL;
    for (size_t i = 0; i < FH_CHECKS + n_gates; i++) {
        const fh_check *c = i < FH_CHECKS ? &v->check[i] : &gates[i - FH_CHECKS];
        if (c->verdict != FH_FAILED) continue;
        fh_buf_printf(&b, "%s%s", first ? ", " : "", c->name);
        if (!first) first = c->detail;
    }
    fh_status rc = b.failed ? fh_fail(err, FH_ENOMEM, "out of memory") : fh_fail(err, FH_ECHECK, "%s: failed: %s (%s)", path, b.data, first);
    fh_buf_free(&b);
    return rc;
}

static fh_status check_args(const args *a, fh_err *err)
{
    fh_validation none = {0};
    fh_check c;
    for (size_t i = 0; i < a->gates.n; i++) { /* before anything is measured */
        fh_status rc = fh_validate_gate(&c, &none, a->gates.v[i], err);
        if (rc < 0) return rc;
    }
    if (a->text.n && a->hidden.set) return fh_fail(err, FH_EUSAGE, "validate: --hidden stands instead of --text");
    for (size_t i = 0; a->text.n > 1 && i < a->text.n; i++)
        if (!strcmp(a->text.v[i], "self")) return fh_fail(err, FH_EUSAGE, "--text self: stands alone, without other texts");
    const char *const inputs[] = {a->common.args[0], a->model.v, a->hidden.v, a->prompts.v, a->last_words.v};
    for (size_t i = 0; a->report.set && i < sizeof inputs / sizeof *inputs + a->text.n; i++) {
        const char *input = i < sizeof inputs / sizeof *inputs ? inputs[i] : a->text.v[i - sizeof inputs / sizeof *inputs];
        fh_status rc = input ? fh_keep_input(a->report.v, input, err) : FH_OK;
        if (rc < 0) return rc;
    }
    return FH_OK;
}

static fh_status run(void *p, const fh_job *job, fh_err *err)
{
    args *a = p;
    fh_validation v = {0};
    fh_tensors *file = NULL;
    fh_head *head = NULL;
    float *owned = NULL;
    fh_check *gates = NULL;
    char *routing = NULL;
    fh_json *report = NULL;
    fh_err fault = {0};
    fh_validate_params how = {.base = a->model.set ? a->model.v : NULL,
                              .texts = a->text.v,
                              .n_texts = a->text.n,
                              .tokens = (size_t)a->tokens.v,
                              .window = (uint32_t)a->window.v,
                              .stride = (uint32_t)a->stride.v,
                              .seed = a->seed.v,
                              .prompts = a->prompts.v,
                              .n_prompts = (size_t)a->n_prompts.v,
                              .say = (size_t)a->say.v,
                              .last_words = a->last_words.v,
                              .anatomy_positions = (size_t)a->anatomy.v,
                              .no_anatomy = a->no_anatomy,
                              .no_perplexity = a->no_perplexity,
                              .no_divergence = a->no_divergence,
                              .device = a->device.set ? (fh_device_kind)a->device.v : FH_DEVICE_AUTO};
    fh_status rc = check_args(a, err);
    if (rc < 0) goto out;
    if (a->common.dir.set) {
        if (!(routing = fh_path_join(a->common.dir.v, "routing.safetensors"))) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
        how.routing = routing;
    }
    if (a->hidden.set) {
        if ((rc = fh_head_open(&head, a->common.args[0], err)) < 0) goto out;
        rc = fh_read_states(&file, &how.states, &owned, &how.n_states, a->hidden.v, fh_head_get_info(head)->hidden, &fault);
        if (rc == FH_ECHECK) how.states_fault = fault.text, rc = FH_OK; /* a check that says no */
        if (rc < 0) { *err = fault; goto out; }
    }
    if ((rc = fh_validate(&v, a->common.args[0], &how, job, err)) < 0) goto out;
    size_t failed = fh_validation_failed(&v);
    if (!(gates = fh_calloc(a->gates.n + 1, sizeof *gates))) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    for (size_t i = 0; i < a->gates.n; i++) {
        if ((rc = fh_validate_gate(&gates[i], &v, a->gates.v[i], err)) < 0) goto out;
        failed += gates[i].verdict == FH_FAILED;
    }
    if (a->report.set && (rc = fh_validate_page(&v, gates, a->gates.n, a->report.v, err)) < 0) goto out;
    report = report_of(&v, gates, a->gates.n, !failed);
    if (failed) rc = say_failed(&v, gates, a->gates.n, a->common.args[0], err);
out:
    rc = fh_finish(report, &a->common, rc, err);
    fh_validation_free(&v);
    fh_head_close(head);
    fh_tensors_close(file);
    fh_free(owned);
    fh_free(gates);
    fh_free(routing);
    return rc;
}

const fh_command fh_cmd_validate = {
    "validate",
    "may this artifact ship? checks, quality on a text, a page",
    "FILE",
    1,
    1,
    options,
    sizeof(args),
    run,
    "Checks: integrity, belonging (fingerprint), rows and permutation against the model, parity of kernels and GPU, calibration, states, promise.\n"
    "Measures on a text: containment, agreement, mass and KL against the dense head, perplexity, how far greedy texts agree, what each part costs.\n"
    "Gates know: containment, containment_lower, top1, top3, top5, top10, agreement, agreement_lower, mass, mass_lower, kl, kl_p99, kl_max, kl_dense, "
    "kl_dense_p99, kl_dense_max,\n"
    "perplexity_dense, perplexity_flash, perplexity_ratio, missed_share, divergence_mean, divergence_identical, last_word_dense, last_word_flash,\n"
    "last_word_same, positions.  A failing check or gate: exit status 3.",
    "fhtool validate model.fhead --text wiki.test.raw --gate 'containment>=0.99' --gate 'perplexity_ratio<=1.05' --report model.html"};
