/* hidden: the stage, or states and logits of given sequences into a file. */
#include <string.h>

#include "cmd/text_opts.h"

typedef struct args { fh_common common; fh_text_args text; fh_str ids_file, output; fh_pick kv_type, device; bool logits; } args;
static const fh_opt options[] = {
    FH_TEXT_OPTS(offsetof(args, text)),
    {"ids-file", FH_OPT_STR, offsetof(args, ids_file), "IN", "safetensors with ids [B, T] int64, each row a sequence (with MODEL)", 0, 0, NULL},
    {"-o", FH_OPT_STR, offsetof(args, output), "OUT", "safetensors to write (with MODEL)", 0, 0, NULL},
    {"logits", FH_OPT_FLAG, offsetof(args, logits), NULL, "write the dense head's logits too (with MODEL)", 0, 0, NULL},
    FH_KV_OPT(offsetof(args, kv_type)),
    FH_DEVICE_OPT(args),
    FH_DIR_OPT, FH_COMMON_OPTS, FH_OPT_END,
};

/* Sequences [b, t] read from a file, or a text cut into windows of t (what is left over at the end is not used). */
typedef struct sequences { uint32_t *ids; size_t b, t; } sequences;

static fh_status read_ids(sequences *out, const char *path, uint32_t vocab, fh_err *err)
{
    fh_tensors *file = NULL;
    const fh_tensor *t;
    uint64_t any[2] = {UINT64_MAX, UINT64_MAX};
    fh_status rc = fh_tensors_open(&file, path, err);
    if (rc < 0) return rc;
    if ((rc = fh_tensors_need(&t, file, "ids", 1u << FH_I64 | 1u << FH_I32, 2, any, err)) < 0) goto out;
    out->b = (size_t)t->shape[0], out->t = (size_t)t->shape[1];
    size_t n = out->b * out->t;
    if (!n) { rc = fh_fail(err, FH_ECHECK, "%s: tensor 'ids' is empty", path); goto out; }
    if (!(out->ids = fh_malloc(n * sizeof *out->ids))) { rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", path); goto out; }
    for (size_t i = 0; i < n; i++) {
        int64_t v = 0;
        int32_t w = 0;
        if (t->dtype == FH_I64) memcpy(&v, (const char *)t->data + 8 * i, 8); else memcpy(&w, (const char *)t->data + 4 * i, 4), v = w;
        if (v < 0 || v >= (int64_t)vocab) { rc = fh_fail(err, FH_ECHECK, "%s: ids[%zu][%zu] is %lld, and the model has %u tokens", path, i / out->t, i % out->t, (long long)v, vocab); goto out; }
        out->ids[i] = (uint32_t)v;
    }
out:
    fh_tensors_close(file);
    return rc;
}

static fh_status read_text(sequences *out, const args *a, const fh_model *m, const fh_job *job, fh_err *err)
{
    fh_corpus c = {0};
    size_t window = a->text.window.set ? (size_t)a->text.window.v : 512;
    fh_status rc = fh_corpus_read(&c, a->text.text.v, a->text.text.n, m->tokenizer, (size_t)a->text.tokens.v, job, err);
    if (rc < 0) return rc;
    if (m->config->max_position) window = fh_min(window, m->config->max_position);
    out->t = fh_min(window, c.n), out->b = c.n / out->t;
    out->ids = c.ids, c.ids = NULL;
    fh_corpus_free(&c);
    return FH_OK;
}

enum { ROWS_AT_ONCE = 2048 };

static fh_status write_states(const args *a, const fh_model *m, const sequences *s, bool here, const fh_job *job, fh_json **report, fh_err *err)
{
    double began = fh_now();
    size_t d = m->config->hidden, v = m->config->vocab, n = s->b * s->t, at_once = fh_max(1, ROWS_AT_ONCE / s->t), most = at_once * s->t;
    fh_status rc = FH_OK;
    fh_st_writer *w = NULL;
    int64_t *ids = fh_malloc(n * sizeof *ids);
    float *hidden = fh_malloc(n * d * sizeof *hidden), *logits = fh_malloc(fh_min(most, 64) * v * sizeof *logits);
    fh_kv **kv = fh_calloc(at_once, sizeof *kv);
    uint32_t *lens = fh_calloc(at_once, sizeof *lens);
    fh_score_range *seen = fh_score_ranges(m->body);
    if (!ids || !hidden || !logits || !kv || !lens || !seen) { rc = fh_fail(err, FH_ENOMEM, "out of memory for %zu states", n); goto out; }
    for (size_t i = 0; i < n; i++) ids[i] = s->ids[i];
    for (size_t b = 0; b < s->b; b += at_once) {
        size_t many = fh_min(at_once, s->b - b);
        if (fh_job_stopped(job)) { rc = fh_fail(err, FH_EINTERRUPTED, "interrupted"); goto out; }
        for (size_t i = 0; i < many; i++) {
            lens[i] = (uint32_t)s->t;
            if ((rc = fh_kv_new_of(&kv[i], m->body, fh_kv_types[a->kv_type.v], err)) < 0) goto out;
            fh_kv_watch(kv[i], seen);
        }
        if ((rc = fh_body_forward(m->body, fh_job_pool(job), many, kv, lens, s->ids + b * s->t, hidden + b * s->t * d, err)) < 0) goto out;
        for (size_t i = 0; i < many; i++) fh_kv_free(kv[i]), kv[i] = NULL;
        fh_job_progress(job, "hidden states", (double)((b + many) * s->t), (double)n, "tokens");
    }
    const fh_st_spec specs[] = {{"ids", FH_I64, 2, {s->b, s->t}}, {"hidden", FH_F32, 3, {s->b, s->t, d}}, {"logits", FH_F32, 3, {s->b, s->t, v}}};
    if ((rc = fh_st_open(&w, a->output.v, 0, specs, a->logits ? 3 : 2, NULL, err)) < 0) goto out;
    if ((rc = fh_st_write(w, ids, n * sizeof *ids, err)) < 0 || (rc = fh_st_write(w, hidden, n * d * sizeof *hidden, err)) < 0) goto out;
    for (size_t i = 0; a->logits && i < n; i += 64) {
        size_t many = fh_min(64, n - i);
        if ((rc = fh_dense_logits(&m->dense, fh_job_pool(job), hidden + i * d, many, logits, err)) < 0) goto out;
        if ((rc = fh_st_write(w, logits, many * v * sizeof *logits, err)) < 0) goto out;
    }
    rc = fh_st_commit(w, err), w = NULL;
    if (rc < 0) goto out;
    fh_json *r = fh_json_object();
    fh_json_add_u64(r, "sequences", s->b);
    fh_json_add_u64(r, "tokens", n);
    if (here) fh_json_add_unified(r, seen, m->config->layers); /* a device does not look */
    fh_json_add_double(r, "seconds", fh_now() - began);
    *report = r;
out:
    fh_st_abandon(w);
    for (size_t i = 0; kv && i < at_once; i++) fh_kv_free(kv[i]);
    fh_free(kv);
    fh_free(lens);
    fh_free(seen);
    fh_free(ids);
    fh_free(hidden);
    fh_free(logits);
    return rc;
}

static fh_status run(void *p, const fh_job *job, fh_err *err)
{
    args *a = p;
    fh_json *report = NULL;
    fh_status rc;
    if (!a->common.n_args) { /* the stage */
        fh_stage_env e;
        if (a->ids_file.set || a->output.set || a->logits || a->kv_type.set)
            return fh_fail(err, FH_EUSAGE, "hidden: --ids-file, -o, --logits and --kv-type: name the MODEL they are for");
        fh_text_params text = fh_text_of(&a->text);
        rc = fh_open_work(&e, &a->common, false, job, err);
        e.device = (fh_device_kind)a->device.v;
        if (rc == FH_OK) rc = fh_stage_hidden(&e, &text, &report, err);
        rc = fh_finish(report, &a->common, rc, err);
        fh_work_close(e.work);
        return rc;
    }
    if (a->common.dir.set) return fh_fail(err, FH_EUSAGE, "hidden: -C: the stage takes its model from the work directory: leave MODEL out");
    if (!a->output.set) return fh_fail(err, FH_EUSAGE, "hidden: -o is missing: where shall the states go?");
    if (a->ids_file.set == (a->text.text.n > 0)) return fh_fail(err, FH_EUSAGE, "hidden: give --ids-file or --text, one of them");
    for (size_t i = 0; i < a->text.text.n; i++)
        if (!strcmp(a->text.text.v[i], "self")) return fh_fail(err, FH_EUSAGE, "hidden: --text self: only as a stage (without MODEL)");
    fh_model m = {0};
    sequences s = {0};
    if ((rc = fh_keep_input(a->output.v, a->common.args[0], err)) < 0 || (a->ids_file.set && (rc = fh_keep_input(a->output.v, a->ids_file.v, err)) < 0)) return rc;
    for (size_t i = 0; i < a->text.text.n; i++)
        if ((rc = fh_keep_input(a->output.v, a->text.text.v[i], err)) < 0) return rc;
    rc = fh_model_open(&m, a->common.args[0], NULL, FH_MODEL_BODY | FH_MODEL_HEAD | (a->ids_file.set ? 0 : FH_MODEL_TOKENIZER), job, err);
    if (rc == FH_OK) rc = a->ids_file.set ? read_ids(&s, a->ids_file.v, m.config->vocab, err) : read_text(&s, a, &m, job, err);
    fh_device *device = NULL;
    if (rc == FH_OK) rc = fh_device_open(&device, (fh_device_kind)a->device.v, NULL, m.body, job, err);
    if (rc == FH_OK) rc = write_states(a, &m, &s, !device, job, &report, err);
    if (report) fh_json_add_string(report, "device", fh_device_name(device));
    fh_device_close(device);
    rc = fh_finish(report, &a->common, rc, err);
    fh_free(s.ids);
    fh_model_close(&m);
    return rc;
}

const fh_command fh_cmd_hidden = {"hidden", "collect hidden states: what the head reads", "[MODEL]", 0, 1, options, sizeof(args), run,
    "Without MODEL: the stage, which fills the work directory's states.  With MODEL (a directory, a .gguf or a bundled .fhead): states of given sequences into OUT.",
    "fhtool hidden -C work --text self --tokens 100000"};
