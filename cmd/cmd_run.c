/* run: a prompt continued, a message answered, a conversation. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "cmd/run.h"

typedef fh_run_args args;
static const fh_opt options[] = {
    {"prompt", FH_OPT_STR, offsetof(args, prompt), "TEXT", "what to continue ('-': standard input)", 0, 0, NULL},
    {"ids", FH_OPT_STR, offsetof(args, ids), "1,2,3", "the prompt as token ids, nothing added", 0, 0, NULL},
    {"chat", FH_OPT_FLAG, offsetof(args, chat), NULL, "the prompt is a message: answer it, as the model's chat template has it", 0, 0, NULL},
    {"-i", FH_OPT_FLAG, offsetof(args, talk), NULL, "a conversation: a message a line; Ctrl-C ends a reply, /new begins anew, /exit ends", 0, 0, NULL},
    {"system", FH_OPT_STR, offsetof(args, system), "TEXT", "the system message of --chat and -i", 0, 0, NULL},
    {"chat-template", FH_OPT_STR, offsetof(args, chat_template), "NAME", "write messages like this family's models (raw: plain lines)", 0, 0, NULL},
    {"no-think", FH_OPT_FLAG, offsetof(args, no_think), NULL, "ask a model that thinks aloud first (Qwen3) not to", 0, 0, NULL},
    {"date", FH_OPT_STR, offsetof(args, date), "TEXT", "the day that some templates name (default: today, like '01 Jan 2026')", 0, 0, NULL},
    {"-n", FH_OPT_UINT, offsetof(args, n), "N", "new tokens at most (default 64; of a reply 512)", 1, 1e7, NULL},
    {"stop", FH_OPT_STRS, offsetof(args, stop), "TEXT", "end before this text (may be repeated)", 0, 0, NULL},
    {"head", FH_OPT_PICK, offsetof(args, head), "H", "which head (default flash)", 0, 0, "flash,dense"},
    {"probes", FH_OPT_UINT, offsetof(args, probes), "P", "clusters probed (default: the artifact's, with its threshold if it has one)", 1, 1e9, NULL},
    {"temperature", FH_OPT_NUM, offsetof(args, temperature), "T", "sample at this temperature (default: greedy)", 0, 100, NULL},
    {"top-k", FH_OPT_UINT, offsetof(args, top_k), "N", "sample among the N best (default: all)", 0, 1e9, NULL},
    {"top-p", FH_OPT_NUM, offsetof(args, top_p), "X", "sample among the best that hold X of the probability", 0, 1, NULL},
    {"min-p", FH_OPT_NUM, offsetof(args, min_p), "X", "sample among those with at least X of the best's probability", 0, 1, NULL},
    {"repetition-penalty", FH_OPT_NUM, offsetof(args, penalty), "X", "make what stands there already less likely (1: off)", 0.01, 100, NULL},
    {"repeat-last", FH_OPT_UINT, offsetof(args, repeat_last), "N", "the penalty looks at the last N tokens (default: all)", 1, 1e9, NULL},
    {"seed", FH_OPT_UINT, offsetof(args, seed), "N", "of sampling (default 0)", 0, 9e15, NULL},
    {"model-sampling", FH_OPT_FLAG, offsetof(args, model_sampling), NULL, "sample as the model's generation_config says", 0, 0, NULL},
    {"exact-sampling", FH_OPT_FLAG, offsetof(args, exact), NULL, "with FlashHead: draw from the softmax of all tokens", 0, 0, NULL},
    {"measure-mass", FH_OPT_FLAG, offsetof(args, measure_mass), NULL, "measure what share of the probability is sampled from (dense head, slow)", 0, 0, NULL},
    {"audit", FH_OPT_UINT, offsetof(args, audit), "N", "compare every N-th token's state with the dense head, and say at the end how FlashHead did", 1, 1e9, NULL},
    {"ignore-eos", FH_OPT_FLAG, offsetof(args, ignore_eos), NULL, "go on past end-of-text tokens", 0, 0, NULL},
    {"no-hot", FH_OPT_FLAG, offsetof(args, no_hot), NULL, "leave out the hot list", 0, 0, NULL},
    FH_KV_OPT(offsetof(args, kv_type)),
    {"stats", FH_OPT_FLAG, offsetof(args, stats), NULL, "say how fast it was (on standard error)", 0, 0, NULL},
    {"model", FH_OPT_STR, offsetof(args, model), "DIR", "the base model of a head-only artifact", 0, 0, NULL},
    FH_DEVICE_OPT(args),
    {"verify", FH_OPT_FLAG, offsetof(args, verify), NULL, "check every byte of the artifact first", 0, 0, NULL},
    FH_COMMON_OPTS, FH_OPT_END,
};

/* ---- a reply as it comes --------------------------------------------------------------------------------------- */

size_t fh_reply_count(const fh_reply *r) { return r->ids.len / sizeof(uint32_t); }
const uint32_t *fh_reply_ids(const fh_reply *r) { return (const uint32_t *)(const void *)r->ids.data; }

static bool emit(fh_reply *r, const char *text, size_t len)
{
    fh_buf_add(&r->text, text, len);
    if (r->print && len && (r->rc = fh_print(text, len, r->err)) < 0) return false;
    return true;
}

static bool emit_before_stop(fh_reply *r, const char *text, size_t len)
{
    if (!r->stops) return emit(r, text, len);
    if ((r->rc = fh_stops_push(r->stops, text, len, &text, &len, r->err)) < 0 || !emit(r, text, len)) return false;
    return !fh_stops_found(r->stops);
}

bool fh_reply_token(void *reply, uint32_t id)
{
    fh_reply *r = reply;
    const char *text;
    size_t len;
    fh_buf_add(&r->ids, &id, sizeof id);
    if (!r->stream) return true;
    if ((r->rc = fh_stream_push(r->stream, id, &text, &len, r->err)) < 0) return false;
    return emit_before_stop(r, text, len);
}

fh_status fh_reply_end(fh_reply *r)
{
    const char *text;
    size_t len;
    if (r->rc == FH_OK && r->stream && !(r->stops && fh_stops_found(r->stops))) {
        if ((r->rc = fh_stream_flush(r->stream, &text, &len, r->err)) == FH_OK) emit_before_stop(r, text, len);
        if (r->rc == FH_OK && r->stops && (r->rc = fh_stops_flush(r->stops, &text, &len, r->err)) == FH_OK) emit(r, text, len);
    }
    fh_buf_add(&r->text, "", 1);
    if (r->rc == FH_OK && (r->text.failed || r->ids.failed)) r->rc = fh_fail(r->err, FH_ENOMEM, "out of memory");
    r->text.len -= !r->text.failed;
    return r->rc;
}

/* ---- what is said of it ------------------------------------------------------------------------------------------ */

const char *fh_run_ended(const fh_generate_stats *s, const fh_reply *r)
{
    return r->stops && fh_stops_found(r->stops) ? "stop" : s->ended ? "eos" : s->full ? "model limit" : "n";
}

static const char *mass_name(fh_mass_kind k) { return k == FH_MASS_ROUTING ? "routing" : k == FH_MASS_CALIBRATION ? "calibration" : "measured"; }
static double a_draw(const fh_generate_stats *s, double sum) { return s->draws ? sum / (double)s->draws : 0; }

void fh_run_add_stats(fh_json *to, const fh_generate_stats *s)
{
    fh_json_add_u64(to, "prompt_tokens", s->prompt_tokens);
    fh_json_add_u64(to, "reused_tokens", s->reused_tokens);
    fh_json_add_u64(to, "tokens", s->tokens);
    fh_json_add_double(to, "ttft_seconds", s->ttft_seconds);
    fh_json_add_double(to, "tpot_seconds", s->tpot_seconds);
    fh_json_add_double(to, "tokens_per_second", s->tpot_seconds > 0 ? 1 / s->tpot_seconds : 0);
    fh_json_add_double(to, "head_share", s->head_share);
    fh_json_add_double(to, "head_bytes", s->step_bytes);
    fh_json_add_double(to, "body_bytes", s->body_bytes);
    fh_json_add_u64(to, "kv_bytes", s->kv_bytes);
    fh_json_add_u64(to, "draws", s->draws);
    if (s->mass_kind != FH_MASS_NONE) {
        fh_json_add_double(to, "covered_mass", s->mass);
        fh_json_add_string(to, "covered_mass_from", mass_name(s->mass_kind));
    }
    if (s->attention_parts) {
        fh_json *parts = fh_json_add_object(to, "attention");
        fh_json_add_u64(parts, "parts", s->attention_parts);
        fh_json_add_u64(parts, "done_again", s->attention_again);
    }
    if (s->exact_rows > 0) {
        fh_json *e = fh_json_add_object(to, "exact");
        fh_json_add_double(e, "clusters", a_draw(s, s->exact_clusters));
        fh_json_add_double(e, "rows", a_draw(s, s->exact_rows));
        fh_json_add_u64(e, "dense", s->exact_dense);
    }
}

void fh_run_say_stats(const fh_generate_stats *s)
{
    char reused[48] = "";
    if (s->reused_tokens) snprintf(reused, sizeof reused, " (%zu of them in the cache)", s->reused_tokens);
    fprintf(stderr, "%zu prompt tokens%s, %zu new; first token after %.2f ms, then %.3f ms a token (%.1f tokens/s), head %.0f %% of it; %.2f MB of head and %.2f MB of body read a token\n",
            s->prompt_tokens, reused, s->tokens, 1e3 * s->ttft_seconds, 1e3 * s->tpot_seconds, s->tpot_seconds > 0 ? 1 / s->tpot_seconds : 0, 100 * s->head_share, s->step_bytes / 1e6, s->body_bytes / 1e6);
}

void fh_run_say_sampling(const fh_model *m, const fh_generate_stats *s, const fh_job *job)
{
    static const char *const from[] = {"", "estimated from the routing's scores, at temperature 1", "calibration's average, at temperature 1", "measured by the dense head"};
    if (!s->draws) return;
    if (s->exact_rows > 0)
        fh_job_say(job, FH_INFO, "drawn from the softmax of all tokens: a draw looked into %.1f of %u clusters and read %.1f of %u rows exactly; %zu of %zu draws read all of them",
                   a_draw(s, s->exact_clusters), fh_head_get_info(m->head)->clusters, a_draw(s, s->exact_rows), m->config->vocab, s->exact_dense, s->draws);
    else if (s->mass_kind != FH_MASS_NONE)
        fh_job_say(job, FH_INFO, "sampled from candidates that hold %.4f of the probability (%s)", s->mass, from[s->mass_kind]);
    else if (m->head)
        fh_job_say(job, FH_INFO, "sampled from FlashHead's candidates; what share of the probability they hold is not known: --measure-mass measures it");
}

void fh_run_add_audit(fh_json *to, const fh_audit *a)
{
    if (!a->states) return;
    double share = 1 / (double)a->states;
    fh_json *j = fh_json_add_object(to, "audit");
    fh_json_add_u64(j, "states", a->states);
    fh_json_add_double(j, "agreement", (double)a->agreed * share);
    fh_json_add_double(j, "containment", (double)a->contained * share);
    fh_json_add_double(j, "mass", a->mass * share);
}

void fh_run_say_audit(const fh_audit *a)
{
    if (!a->states) return;
    double n = (double)a->states;
    fprintf(stderr, "audit of %zu states: the dense head's answer in %zu (%.2f %%), its best token among the candidates in %zu (%.2f %%), covered mass %.4f\n", a->states, a->agreed,
            100 * (double)a->agreed / n, a->contained, 100 * (double)a->contained / n, a->mass / n);
}

static fh_status report(const args *a, const fh_model *m, const fh_generate_stats *s, const uint32_t *prompt, size_t n, const fh_reply *reply, const fh_job *job, fh_err *err)
{
    if (!a->common.json) {
        fh_status rc = fh_print("\n", 1, err);
        if (a->stats && rc == FH_OK) fh_run_say_stats(s);
        if (rc == FH_OK) fh_run_say_audit(&s->audit);
        if (rc == FH_OK && !(m->head && a->head.v == FH_HEAD_DENSE)) fh_run_say_sampling(m, s, job);
        return rc;
    }
    fh_json *r = fh_json_object(), *list;
    list = fh_json_add_array(r, "prompt_ids");
    for (size_t i = 0; i < n; i++) fh_json_add_u64(list, NULL, prompt[i]);
    list = fh_json_add_array(r, "ids");
    for (size_t i = 0; i < fh_reply_count(reply); i++) fh_json_add_u64(list, NULL, fh_reply_ids(reply)[i]);
    fh_json_add_string(r, "text", reply->text.data);
    fh_json_add_string(r, "ended", fh_run_ended(s, reply));
    if (a->chat) fh_json_add_string(r, "chat_template", fh_chat_style(m->chat));
    fh_run_add_stats(fh_json_add_object(r, "stats"), s);
    fh_run_add_audit(r, &s->audit);
    return fh_finish(r, &a->common, FH_OK, err);
}

/* ---- what is asked for ------------------------------------------------------------------------------------------- */

static fh_status misused(const args *a, fh_err *err)
{
    bool talks = a->chat || a->talk;
    if (a->talk && (a->prompt.set || a->ids.set || a->chat)) return fh_fail(err, FH_EUSAGE, "run: -i reads messages from standard input: leave out --prompt, --ids and --chat");
    if (!a->talk && a->prompt.set == a->ids.set) return fh_fail(err, FH_EUSAGE, "run: give --prompt or --ids, one of them, or -i for a conversation");
    if (a->chat && a->ids.set) return fh_fail(err, FH_EUSAGE, "run: --chat writes the prompt itself: give --prompt, not --ids");
    if (!talks && (a->system.set || a->chat_template.set || a->date.set || a->no_think))
        return fh_fail(err, FH_EUSAGE, "run: --%s: goes with --chat or -i", a->system.set ? "system" : a->chat_template.set ? "chat-template" : a->date.set ? "date" : "no-think");
    if (a->repeat_last.set && !a->penalty.set && !a->model_sampling) return fh_fail(err, FH_EUSAGE, "run: --repeat-last: goes with --repetition-penalty");
    if ((a->exact || a->measure_mass) && a->head.set && a->head.v == FH_HEAD_DENSE)
        return fh_fail(err, FH_EUSAGE, "run: --%s: is about FlashHead; the dense head samples from all tokens as it is", a->exact ? "exact-sampling" : "measure-mass");
    if (a->audit.set && a->head.set && a->head.v == FH_HEAD_DENSE) return fh_fail(err, FH_EUSAGE, "run: --audit: compares FlashHead with the dense head: leave out --head dense");
    return FH_OK;
}

static fh_status sampling_misused(const args *a, const fh_model *m, const fh_sampling *s, fh_err *err)
{
    const char *flag = a->exact ? "exact-sampling" : "measure-mass";
    if (a->audit.set && !m->head) return fh_fail(err, FH_EUSAGE, "run: --audit: %s is a checkpoint, which has no FlashHead to compare", m->name);
    if (!a->exact && !a->measure_mass) return FH_OK;
    if (!m->head) return fh_fail(err, FH_EUSAGE, "run: --%s: %s is a checkpoint, whose dense head samples from all tokens as it is", flag, m->name);
    if (!(s->temperature > 0)) return fh_fail(err, FH_EUSAGE, "run: --%s: goes with a --temperature above 0: nothing is drawn without", flag);
    if (a->exact && (s->top_k || s->top_p < 1 || s->min_p > 0))
        return fh_fail(err, FH_EUSAGE, "run: --exact-sampling: draws from all tokens: leave out --top-k, --top-p and --min-p%s", a->model_sampling ? ", and --model-sampling, which sets them" : "");
    return FH_OK;
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

/* A text that is the name of a special token, which is never printed, ends a reply by its id. */
static fh_status add_end(const fh_model *m, const char *text, uint32_t *ends, size_t *n, fh_err *err)
{
    uint32_t *ids = NULL;
    size_t count;
    fh_status rc = fh_tokenizer_encode(m->tokenizer, text, strlen(text), false, &ids, &count, err);
    if (rc == FH_OK && count == 1 && fh_tokenizer_is_special(m->tokenizer, ids[0])) ends[(*n)++] = ids[0];
    fh_free(ids);
    return rc;
}

static fh_status ends_of(const args *a, const fh_model *m, uint32_t **ends, size_t *n, fh_err *err)
{
    fh_status rc = FH_OK;
    const char *own = m->chat && !a->ignore_eos ? fh_chat_end(m->chat) : NULL;
    *n = 0;
    if (!(*ends = fh_malloc((a->stop.n + 1) * sizeof **ends))) return fh_fail(err, FH_ENOMEM, "out of memory");
    if (own) rc = add_end(m, own, *ends, n, err);
    for (size_t i = 0; rc == FH_OK && i < a->stop.n; i++) rc = add_end(m, a->stop.v[i], *ends, n, err);
    return rc;
}

fh_status fh_run_encode_chat(const args *a, const fh_model *m, const fh_message *messages, size_t n, uint32_t **ids, size_t *n_ids, fh_err *err)
{
    char *text = NULL, today[32] = "";
    size_t len;
    time_t now = time(NULL);
    struct tm at;
    if (localtime_r(&now, &at)) strftime(today, sizeof today, "%d %b %Y", &at);
    fh_status rc = fh_chat_render(m->chat, messages, n, a->date.set ? a->date.v : today, &text, &len, err);
    if (rc == FH_OK) rc = fh_tokenizer_encode(m->tokenizer, text, len, fh_chat_is_raw(m->chat), ids, n_ids, err);
    fh_free(text);
    return rc;
}

static fh_status prompt_ids(uint32_t **ids, size_t *n, const args *a, const fh_model *m, fh_err *err)
{
    if (a->ids.set) return fh_parse_list(ids, n, a->ids.v, "run: --ids", 0, m->config->vocab - 1, err);
    char *text = NULL;
    size_t len;
    fh_status rc;
    if (!strcmp(a->prompt.v, "-")) rc = fh_file_read(&text, &len, "-", 1 << 28, err);
    else rc = (text = fh_strdup(a->prompt.v)) ? (len = strlen(text), FH_OK) : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc == FH_OK && a->chat) {
        fh_message m2[2] = {{FH_SYSTEM, a->system.v, a->system.set ? strlen(a->system.v) : 0}, {FH_USER, text, len}};
        rc = fh_run_encode_chat(a, m, m2 + !a->system.set, 1u + a->system.set, ids, n, err);
    } else if (rc == FH_OK) {
        rc = fh_tokenizer_encode(m->tokenizer, text, len, true, ids, n, err);
    }
    if (rc == FH_OK && !*n) rc = fh_fail(err, FH_EUSAGE, "run: --prompt: the text encodes to no token: give it something to continue");
    fh_free(text);
    return rc;
}

/* ---- once ---------------------------------------------------------------------------------------------------------- */

static fh_status print_ids(const fh_reply *r, fh_err *err)
{
    fh_status rc = FH_OK;
    for (size_t i = 0; rc == FH_OK && i < fh_reply_count(r); i++) {
        char word[16];
        int w = snprintf(word, sizeof word, "%s%u", i ? "," : "", fh_reply_ids(r)[i]);
        rc = fh_print(word, (size_t)w, err);
    }
    return rc;
}

static fh_status once(const args *a, const fh_model *m, fh_generate_params *how, fh_stops *stops, const fh_job *job, fh_err *err)
{
    uint32_t *prompt = NULL;
    size_t n = 0;
    fh_reply reply = {.print = !a->common.json, .stops = stops, .err = err};
    fh_generate_stats s = {0};
    fh_status rc = prompt_ids(&prompt, &n, a, m, err);
    if (rc < 0 || (rc = fh_generate_check(m, prompt, n, err)) < 0 || (m->tokenizer && (rc = fh_stream_new(&reply.stream, m->tokenizer, true, err)) < 0)) goto out;
    if (reply.print && !a->chat && a->prompt.set && strcmp(a->prompt.v, "-") && (rc = fh_print(a->prompt.v, strlen(a->prompt.v), err)) < 0) goto out;
    how->on_token = fh_reply_token, how->ctx = &reply;
    rc = fh_generate(m, prompt, n, how, job, &s, err);
    if (reply.rc < 0) rc = reply.rc;
    if (rc < 0 && rc != FH_EINTERRUPTED) goto out;
    fh_err said;
    if (rc < 0) reply.err = &said;
    fh_status done = fh_reply_end(&reply);
    if (done == FH_OK && !m->tokenizer && !a->common.json) done = print_ids(&reply, reply.err);
    if (s.full) fh_job_say(job, FH_WARN, "the model's longest sequence (%u tokens) is reached", m->config->max_position);
    if (done == FH_OK) done = report(a, m, &s, prompt, n, &reply, job, reply.err);
    if (rc == FH_OK) rc = done;
out:
    fh_stream_free(reply.stream);
    fh_buf_free(&reply.text);
    fh_buf_free(&reply.ids);
    fh_free(prompt);
    return rc;
}

static fh_status run(void *p, const fh_job *job, fh_err *err)
{
    args *a = p;
    bool talks = a->chat || a->talk;
    fh_model m = {0};
    fh_stops *stops = NULL;
    uint32_t *ends = NULL;
    size_t n_ends = 0;
    fh_status rc = misused(a, err);
    if (rc < 0 || (a->stop.n && (rc = fh_stops_new(&stops, a->stop.v, a->stop.n, err)) < 0)) return rc;
    if (a->verify) {
        fh_fhead *f = NULL;
        rc = fh_fhead_open(&f, a->common.args[0], err);
        if (rc == FH_OK) rc = fh_artifact_verify(f, job, err);
        fh_fhead_close(f);
        if (rc < 0) goto out;
    }
    unsigned need = FH_MODEL_BODY | FH_MODEL_HEAD | (a->ids.set && !stops ? 0 : FH_MODEL_TOKENIZER) | (talks ? FH_MODEL_CHAT : 0);
    if ((rc = fh_model_open(&m, a->common.args[0], a->model.set ? a->model.v : NULL, need, job, err)) < 0) goto out;
    if (!m.head && a->head.set && a->head.v == FH_HEAD_FLASH) { rc = fh_fail(err, FH_EUSAGE, "%s: is a checkpoint, which has no FlashHead: build one with 'fhtool build', or give --head dense", m.name); goto out; }
    if ((rc = fh_model_use(&m, (fh_device_kind)a->device.v, job, err)) < 0) goto out;
    if (talks && (rc = fh_chat_use(m.chat, a->chat_template.set ? a->chat_template.v : NULL, err)) < 0) goto out;
    if (a->no_think && (rc = fh_chat_no_think(m.chat, err)) < 0) goto out;
    if (m.tokenizer && (rc = ends_of(a, &m, &ends, &n_ends, err)) < 0) goto out;
    fh_generate_params how = {.tokens = a->n.set ? (size_t)a->n.v : talks ? 512 : 64, .head = (fh_head_kind)a->head.v, .kv_type = fh_kv_types[a->kv_type.v], .query = {.probes = (uint32_t)a->probes.v, .no_hot = a->no_hot},
                              .sampling = sampling_of(a, m.config), .penalty = a->penalty.set ? (float)a->penalty.v : a->model_sampling ? (float)m.config->repetition_penalty : 1,
                              .repeat_last = (size_t)a->repeat_last.v, .exact = a->exact, .measure_mass = a->measure_mass, .audit = (size_t)a->audit.v, .seed = a->seed.v, .ignore_eos = a->ignore_eos,
                              .ends = ends, .n_ends = n_ends};
    if ((rc = sampling_misused(a, &m, &how.sampling, err)) < 0) goto out;
    rc = a->talk ? fh_run_talk(a, &m, &how, stops, job, err) : once(a, &m, &how, stops, job, err);
out:
    fh_stops_free(stops);
    fh_free(ends);
    fh_model_close(&m);
    return rc;
}

const fh_command fh_cmd_run = {"run", "continue a prompt, answer a message, hold a conversation", "FILE", 1, 1, options, sizeof(args), run,
    "FILE is a bundled .fhead (or a head-only one with --model DIR, or a checkpoint, a directory or a .gguf, for the dense head).  Greedy unless a temperature is given.",
    "fhtool run model.fhead --prompt 'Once upon a time' -n 64 --stats"};
