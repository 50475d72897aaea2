/* run: a prompt continued. */
#include <stdio.h>
#include <string.h>

#include "cmd/cmd.h"

typedef struct args {
    fh_common common;
    fh_str prompt, ids, model;
    fh_uint n, top_k, seed, probes;
    fh_num temperature, top_p, min_p;
    fh_pick head;
    bool ignore_eos, stats, no_hot, verify, model_sampling;
} args;
static const fh_opt options[] = {
    {"prompt", FH_OPT_STR, offsetof(args, prompt), "TEXT", "what to continue ('-': standard input)", 0, 0, NULL},
    {"ids", FH_OPT_STR, offsetof(args, ids), "1,2,3", "the prompt as token ids, nothing added", 0, 0, NULL},
    {"-n", FH_OPT_UINT, offsetof(args, n), "N", "new tokens at most (default 64)", 1, 1e7, NULL},
    {"head", FH_OPT_PICK, offsetof(args, head), "H", "which head (default flash)", 0, 0, "flash,dense"},
    {"probes", FH_OPT_UINT, offsetof(args, probes), "P", "clusters probed (default: the artifact's)", 1, 1e9, NULL},
    {"temperature", FH_OPT_NUM, offsetof(args, temperature), "T", "sample at this temperature (default: greedy)", 0, 100, NULL},
    {"top-k", FH_OPT_UINT, offsetof(args, top_k), "N", "sample among the N best (default: all)", 0, 1e9, NULL},
    {"top-p", FH_OPT_NUM, offsetof(args, top_p), "X", "sample among the best that hold X of the probability", 0, 1, NULL},
    {"min-p", FH_OPT_NUM, offsetof(args, min_p), "X", "sample among those with at least X of the best's probability", 0, 1, NULL},
    {"seed", FH_OPT_UINT, offsetof(args, seed), "N", "of sampling (default 0)", 0, 9e15, NULL},
    {"model-sampling", FH_OPT_FLAG, offsetof(args, model_sampling), NULL, "sample as the model's generation_config says", 0, 0, NULL},
    {"ignore-eos", FH_OPT_FLAG, offsetof(args, ignore_eos), NULL, "go on past end-of-text tokens", 0, 0, NULL},
    {"no-hot", FH_OPT_FLAG, offsetof(args, no_hot), NULL, "leave out the hot list", 0, 0, NULL},
    {"stats", FH_OPT_FLAG, offsetof(args, stats), NULL, "say how fast it was (on standard error)", 0, 0, NULL},
    {"model", FH_OPT_STR, offsetof(args, model), "DIR", "the base model of a head-only artifact", 0, 0, NULL},
    {"verify", FH_OPT_FLAG, offsetof(args, verify), NULL, "check every byte of the artifact first", 0, 0, NULL},
    FH_COMMON_OPTS, FH_OPT_END,
};

typedef struct output { fh_stream *stream; bool stream_out; fh_buf text; uint32_t *ids; size_t n; fh_status rc; fh_err *err; } output;

static bool emit(output *o, const char *text, size_t len)
{
    fh_buf_add(&o->text, text, len);
    if (o->stream_out && len && (o->rc = fh_print(text, len, o->err)) < 0) return false;
    return true;
}

static bool on_token(void *ctx, uint32_t id)
{
    output *o = ctx;
    const char *text;
    size_t len;
    o->ids[o->n++] = id;
    if (!o->stream) return true;
    if ((o->rc = fh_stream_push(o->stream, id, &text, &len, o->err)) < 0) return false;
    return emit(o, text, len);
}

static fh_status prompt_ids(uint32_t **ids, size_t *n, const args *a, const fh_model *m, fh_err *err)
{
    if (a->ids.set) return fh_parse_list(ids, n, a->ids.v, "run: --ids", 0, m->config->vocab - 1, err);
    char *text = NULL;
    size_t len;
    fh_status rc;
    if (!strcmp(a->prompt.v, "-")) rc = fh_file_read(&text, &len, "-", 1 << 28, err);
    else rc = (text = fh_strdup(a->prompt.v)) ? (len = strlen(text), FH_OK) : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc == FH_OK) rc = fh_tokenizer_encode(m->tokenizer, text, len, true, ids, n, err);
    if (rc == FH_OK && !*n) rc = fh_fail(err, FH_EUSAGE, "run: --prompt: the text encodes to no token: give it something to continue");
    fh_free(text);
    return rc;
}

static fh_sampling sampling_of(const args *a, const fh_config *c)
{
    fh_sampling s = {.temperature = 0, .top_p = 1};
    if (a->model_sampling && c->do_sample) s = (fh_sampling){.temperature = (float)c->temperature, .top_k = c->top_k, .top_p = (float)c->top_p, .min_p = (float)c->min_p};
    if (a->temperature.set) s.temperature = (float)a->temperature.v;
    if (a->top_k.set) s.top_k = (uint32_t)a->top_k.v;
    if (a->top_p.set) s.top_p = (float)a->top_p.v;
    if (a->min_p.set) s.min_p = (float)a->min_p.v;
    return s;
}

static void add_stats(fh_json *to, const fh_generate_stats *s)
{
    fh_json_add_u64(to, "prompt_tokens", s->prompt_tokens);
    fh_json_add_u64(to, "tokens", s->tokens);
    fh_json_add_double(to, "ttft_seconds", s->ttft_seconds);
    fh_json_add_double(to, "tpot_seconds", s->tpot_seconds);
    fh_json_add_double(to, "tokens_per_second", s->tpot_seconds > 0 ? 1 / s->tpot_seconds : 0);
    fh_json_add_double(to, "head_share", s->head_share);
    fh_json_add_double(to, "head_bytes", s->step_bytes);
    fh_json_add_double(to, "body_bytes", s->body_bytes);
}

static fh_status report(const args *a, const fh_generate_stats *s, const uint32_t *prompt, size_t n, const output *o, fh_err *err)
{
    if (!a->common.json) {
        fh_status rc = fh_print("\n", 1, err);
        if (a->stats && rc == FH_OK)
            fprintf(stderr, "%zu prompt tokens, %zu new; first token after %.2f ms, then %.3f ms a token (%.1f tokens/s), head %.0f %% of it; %.2f MB of head and %.2f MB of body read a token\n",
                    s->prompt_tokens, s->tokens, 1e3 * s->ttft_seconds, 1e3 * s->tpot_seconds, s->tpot_seconds > 0 ? 1 / s->tpot_seconds : 0, 100 * s->head_share, s->step_bytes / 1e6, s->body_bytes / 1e6);
        return rc;
    }
    fh_json *r = fh_json_object(), *list;
    list = fh_json_add_array(r, "prompt_ids");
    for (size_t i = 0; i < n; i++) fh_json_add_u64(list, NULL, prompt[i]);
    list = fh_json_add_array(r, "ids");
    for (size_t i = 0; i < o->n; i++) fh_json_add_u64(list, NULL, o->ids[i]);
    fh_json_add_string(r, "text", o->text.data ? o->text.data : "");
    fh_json_add_string(r, "ended", s->ended ? "eos" : s->full ? "model limit" : "n");
    add_stats(fh_json_add_object(r, "stats"), s);
    return fh_finish(r, &a->common, FH_OK, err);
}

static fh_status run(void *p, const fh_job *job, fh_err *err)
{
    args *a = p;
    fh_model m = {0};
    uint32_t *prompt = NULL;
    size_t n = 0, want = a->n.set ? (size_t)a->n.v : 64, len;
    const char *rest;
    output o = {.stream_out = !a->common.json, .err = err};
    fh_generate_stats s = {0};
    fh_status rc;
    if (a->prompt.set == a->ids.set) return fh_fail(err, FH_EUSAGE, "run: give --prompt or --ids, one of them");
    if (a->verify) {
        fh_fhead *f = NULL;
        rc = fh_fhead_open(&f, a->common.args[0], err);
        if (rc == FH_OK) rc = fh_artifact_verify(f, job, err);
        fh_fhead_close(f);
        if (rc < 0) return rc;
    }
    rc = fh_model_open(&m, a->common.args[0], a->model.set ? a->model.v : NULL, FH_MODEL_BODY | FH_MODEL_HEAD | (a->prompt.set ? FH_MODEL_TOKENIZER : 0), job, err);
    if (rc < 0) goto out;
    if (!m.head && a->head.set && a->head.v == FH_HEAD_FLASH) { rc = fh_fail(err, FH_EUSAGE, "%s: is a checkpoint, which has no FlashHead: build one with 'fhtool build', or give --head dense", m.name); goto out; }
    if ((rc = prompt_ids(&prompt, &n, a, &m, err)) < 0) goto out;
    if (m.tokenizer && (rc = fh_stream_new(&o.stream, m.tokenizer, true, err)) < 0) goto out;
    if (!(o.ids = fh_malloc(want * sizeof *o.ids))) { rc = fh_fail(err, FH_ENOMEM, "out of memory for %zu tokens", want); goto out; }
    if (o.stream_out && a->prompt.set && strcmp(a->prompt.v, "-") && (rc = fh_print(a->prompt.v, strlen(a->prompt.v), err)) < 0) goto out;
    fh_generate_params how = {.tokens = want, .head = (fh_head_kind)a->head.v, .query = {.probes = (uint32_t)a->probes.v, .no_hot = a->no_hot},
                              .sampling = sampling_of(a, m.config), .seed = a->seed.v, .ignore_eos = a->ignore_eos, .on_token = on_token, .ctx = &o};
    rc = fh_generate(&m, prompt, n, &how, job, &s, err);
    if (o.rc < 0) rc = o.rc;
    if (rc < 0 && rc != FH_EINTERRUPTED) goto out;
    if (o.stream && fh_stream_flush(o.stream, &rest, &len, err) == FH_OK && !emit(&o, rest, len)) { rc = o.rc; goto out; }
    if (!m.tokenizer && !a->common.json) {
        for (size_t i = 0; i < o.n; i++) {
            char word[16];
            int w = snprintf(word, sizeof word, "%s%u", i ? "," : "", o.ids[i]);
            if ((rc = fh_print(word, (size_t)w, err)) < 0) goto out;
        }
    }
    fh_buf_add(&o.text, "", 1);
    if (o.text.failed) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    if (s.full) fh_job_say(job, FH_WARN, "the model's longest sequence (%u tokens) is reached", m.config->max_position);
    fh_err said;
    fh_status done = report(a, &s, prompt, n, &o, rc == FH_OK ? err : &said);
    if (rc == FH_OK) rc = done;
out:
    fh_stream_free(o.stream);
    fh_buf_free(&o.text);
    fh_free(o.ids);
    fh_free(prompt);
    fh_model_close(&m);
    return rc;
}

const fh_command fh_cmd_run = {"run", "continue a prompt", "FILE", 1, 1, options, sizeof(args), run,
    "FILE is a bundled .fhead (or a head-only one with --model DIR, or a checkpoint, a directory or a .gguf, for the dense head).  Greedy unless a temperature is given.",
    "fhtool run model.fhead --prompt 'Once upon a time' -n 64 --stats"};
