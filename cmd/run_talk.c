/* run -i: a conversation, a message a line. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cmd/run.h"

enum { LINE_LIMIT = 1 << 20 };

/* ---- signals ------------------------------------------------------------------------------------------------------- */

/* Set by the first one, taken back when a reply has ended by it; a second one in between ends the program. */
static volatile sig_atomic_t interrupted, terminated;

static void on_signal(int sig)
{
    if (interrupted) {
        signal(sig, SIG_DFL);
        raise(sig);
    }
    interrupted = 1;
    if (sig != SIGINT) terminated = 1;
}

static const int which[3] = {SIGINT, SIGTERM, SIGHUP};

/* INT, TERM and HUP come here while we talk; reads are not taken up again after one. */
static void take_signals(struct sigaction before[3])
{
    struct sigaction sa;
    memset(&sa, 0, sizeof sa);
    sa.sa_handler = on_signal;
    for (int i = 0; i < 3; i++)
        if (!sigaction(which[i], NULL, &before[i]) && before[i].sa_handler != SIG_IGN) sigaction(which[i], &sa, NULL);
}

static void give_signals_back(const struct sigaction before[3])
{
    sigaction(SIGINT, &before[0], NULL);
    sigaction(SIGTERM, &before[1], NULL);
    sigaction(SIGHUP, &before[2], NULL);
}

/* ---- lines ------------------------------------------------------------------------------------------------------------ */

typedef struct input { char bytes[4096]; size_t at, len; fh_buf line; } input;

/* Until there is something to read, or a signal.  One that comes between a look at `interrupted` and a read would be slept over: they come only here. */
static void wait_for_input(void)
{
    struct pollfd in = {.fd = 0, .events = POLLIN};
    sigset_t ours, before;
    sigemptyset(&ours);
    for (int i = 0; i < 3; i++) sigaddset(&ours, which[i]);
    pthread_sigmask(SIG_BLOCK, &ours, &before);
    if (!interrupted) (void)ppoll(&in, 1, NULL, &before);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* The next line, without its end; *ended where there is none.  FH_EINTERRUPTED: by a signal. */
static fh_status read_line(input *in, bool *ended, fh_err *err)
{
    in->line.len = 0;
    *ended = false;
    for (;;) {
        if (in->at == in->len && !interrupted) wait_for_input();
        if (interrupted) return fh_fail(err, FH_EINTERRUPTED, "interrupted");
        if (in->at == in->len) {
            ssize_t n = read(0, in->bytes, sizeof in->bytes);
            if (n < 0 && errno == EINTR) continue;
            if (n < 0) return fh_fail(err, FH_EIO, "standard input: %s", strerror(errno));
            in->at = 0, in->len = (size_t)n;
            if (n == 0) break;
        }
        char *from = in->bytes + in->at, *end = memchr(from, '\n', in->len - in->at);
        size_t n = end ? (size_t)(end - from) : in->len - in->at;
        if (in->line.len + n > LINE_LIMIT) return fh_fail(err, FH_EUSAGE, "standard input: a message of more than %d bytes", LINE_LIMIT);
        fh_buf_add(&in->line, from, n);
        in->at += n + (end != NULL);
        if (!end) continue;
        if (in->line.len && !in->line.failed && in->line.data[in->line.len - 1] == '\r') in->line.len--;
        return in->line.failed ? fh_fail(err, FH_ENOMEM, "out of memory") : FH_OK;
    }
    if (interrupted) return fh_fail(err, FH_EINTERRUPTED, "interrupted"); /* with the end of input */
    *ended = in->line.len == 0; /* a last line without an end is one */
    return in->line.failed ? fh_fail(err, FH_ENOMEM, "out of memory") : FH_OK;
}

static bool is_line(const input *in, const char *word) { return in->line.len == strlen(word) && !memcmp(in->line.data, word, in->line.len); }

/* ---- the conversation --------------------------------------------------------------------------------------------------- */

typedef struct talk {
    const fh_run_args *a;
    const fh_model *m;
    fh_session *session;
    fh_reply reply;
    fh_job job;               /* the caller's, stopped by our signals */
    fh_buf messages;          /* fh_message; texts owned, but for the system message */
    fh_json *turns;
    fh_audit audit;           /* of all replies */
    input in;
} talk;

static fh_message *messages(const talk *t) { return (fh_message *)(void *)t->messages.data; }
static size_t count(const talk *t) { return t->messages.len / sizeof(fh_message); }

static fh_status add_message(talk *t, fh_role role, const char *text, size_t len, fh_err *err)
{
    fh_message m = {role, fh_malloc(len + 1), len};
    if (!m.text) return fh_fail(err, FH_ENOMEM, "out of memory");
    memcpy((char *)m.text, text, len);
    fh_buf_add(&t->messages, &m, sizeof m);
    if (!t->messages.failed) return FH_OK;
    fh_free((char *)m.text);
    return fh_fail(err, FH_ENOMEM, "out of memory");
}

static void drop_messages(talk *t, size_t keep)
{
    while (count(t) > keep) {
        fh_free((char *)messages(t)[count(t) - 1].text);
        t->messages.len -= sizeof(fh_message);
    }
}

static void record(talk *t, const fh_generate_stats *s)
{
    fh_json *turn = fh_json_add_object(t->turns, NULL), *ids;
    fh_json_add_string(turn, "text", t->reply.text.data);
    ids = fh_json_add_array(turn, "ids");
    for (size_t i = 0; i < fh_reply_count(&t->reply); i++) fh_json_add_u64(ids, NULL, fh_reply_ids(&t->reply)[i]);
    fh_json_add_string(turn, "ended", interrupted ? "interrupted" : fh_run_ended(s, &t->reply));
    fh_run_add_stats(fh_json_add_object(turn, "stats"), s);
    fh_run_add_audit(turn, &s->audit);
}

/* A template that has no place for a system message refuses it before anything is said. */
static fh_status check_system(talk *t, fh_err *err)
{
    uint32_t *ids = NULL;
    size_t n, had = count(t);
    fh_status rc = add_message(t, FH_USER, "", 0, err);
    if (rc == FH_OK) rc = fh_run_encode_chat(t->a, t->m, messages(t), count(t), &ids, &n, err);
    drop_messages(t, had);
    fh_free(ids);
    return rc;
}

/* Answer what the conversation ends with.  A message that does not fit, or is interrupted before there is an answer, is taken back. */
static fh_status answer(talk *t, fh_err *err)
{
    uint32_t *ids = NULL;
    size_t n = 0, limit = t->m->config->max_position;
    fh_generate_stats s = {0};
    fh_reply *r = &t->reply;
    fh_status rc = fh_run_encode_chat(t->a, t->m, messages(t), count(t), &ids, &n, err);
    if (rc < 0) goto out;
    if (!n || (limit && n >= limit)) {
        if (n) fh_job_say(&t->job, FH_WARN, "with this message the conversation has %zu tokens, and the model takes %zu: say less, or begin anew with /new", n, limit);
        drop_messages(t, count(t) - 1);
        goto out;
    }
    r->text.len = r->ids.len = 0, r->rc = FH_OK, r->err = err;
    if (r->stops) fh_stops_reset(r->stops);
    fh_stream_free(r->stream), r->stream = NULL;
    if ((rc = fh_stream_new(&r->stream, t->m->tokenizer, true, err)) < 0) goto out;
    rc = fh_session_run(t->session, ids, n, &t->job, &s, err);
    if (r->rc < 0) rc = r->rc;
    if (terminated && rc == FH_OK) rc = fh_fail(err, FH_EINTERRUPTED, "interrupted"); /* it came with the last token */
    if (rc == FH_EINTERRUPTED && !terminated) rc = FH_OK;
    if (rc < 0 || (rc = fh_reply_end(r)) < 0 || (r->print && (rc = fh_print("\n", 1, err)) < 0)) goto out;
    if (s.full) fh_job_say(&t->job, FH_WARN, "the model's longest sequence (%zu tokens) is reached: /new begins anew", limit);
    if (t->a->stats && !t->a->common.json) fh_run_say_stats(&s);
    if (t->a->head.v != FH_HEAD_DENSE) fh_run_say_sampling(t->m, &s, &t->job);
    record(t, &s);
    t->audit.states += s.audit.states, t->audit.agreed += s.audit.agreed, t->audit.contained += s.audit.contained, t->audit.mass += s.audit.mass;
    if (interrupted && !r->text.len) drop_messages(t, count(t) - 1);
    else rc = add_message(t, FH_ASSISTANT, r->text.data, r->text.len, err);
    interrupted = terminated;
out:
    fh_free(ids);
    return rc;
}

static fh_status converse(talk *t, bool ask, fh_err *err)
{
    size_t system = count(t);
    for (;;) {
        bool ended;
        fh_status rc;
        if (ask) fputs("> ", stderr), fflush(stderr);
        if ((rc = read_line(&t->in, &ended, err)) < 0) return rc;
        if (ended || is_line(&t->in, "/exit")) return FH_OK;
        if (!t->in.line.len) continue;
        if (is_line(&t->in, "/new")) drop_messages(t, system);
        else if ((rc = add_message(t, FH_USER, t->in.line.data, t->in.line.len, err)) < 0 || (rc = answer(t, err)) < 0) return rc;
    }
}

fh_status fh_run_talk(const fh_run_args *a, const fh_model *m, fh_generate_params *how, fh_stops *stops, const fh_job *job, fh_err *err)
{
    fh_status rc;
    bool ask = isatty(0) && !a->common.quiet;
    struct sigaction before[3];
    fh_json *report = NULL;
    talk *t = fh_calloc(1, sizeof *t);
    if (!t) return fh_fail(err, FH_ENOMEM, "out of memory");
    *t = (talk){.a = a, .m = m, .reply = {.print = !a->common.json, .stops = stops}, .job = *job};
    t->job.stop = &interrupted;
    report = fh_json_object();
    t->turns = fh_json_add_array(report, "turns");
    fh_json_add_string(report, "chat_template", fh_chat_style(m->chat));
    how->on_token = fh_reply_token, how->ctx = &t->reply;
    if (a->system.set && ((rc = add_message(t, FH_SYSTEM, a->system.v, strlen(a->system.v), err)) < 0 || (rc = check_system(t, err)) < 0)) goto out;
    if ((rc = fh_session_new(&t->session, m, how, job, err)) < 0) goto out;
    if (ask) fh_job_say(job, FH_INFO, "chat template %s; Ctrl-C ends a reply, /new begins anew, /exit or the end of input ends", fh_chat_style(m->chat));
    interrupted = terminated = 0;
    take_signals(before);
    if (fh_job_stopped(job)) interrupted = terminated = 1; /* asked to end before it began */
    rc = converse(t, ask, err);
    give_signals_back(before);
    if (ask && rc < 0) fputc('\n', stderr);
    fh_run_add_audit(report, &t->audit);
    if (!a->common.json) fh_run_say_audit(&t->audit);
    if (rc == FH_OK && a->common.json) rc = fh_finish(report, &a->common, FH_OK, err), report = NULL;
out:
    fh_session_free(t->session);
    fh_stream_free(t->reply.stream);
    fh_buf_free(&t->reply.text);
    fh_buf_free(&t->reply.ids);
    drop_messages(t, 0);
    fh_buf_free(&t->messages);
    fh_buf_free(&t->in.line);
    fh_json_free(report);
    fh_free(t);
    return rc;
}
