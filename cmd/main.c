/* fhtool: find the subcommand, parse, run, say how it went. */
#include "cmd/cmd.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef FH_FAULTS
#include "base/fault.h"
#endif

#define FH_COMMAND_LISTED(name) &fh_cmd_##name,
static const fh_command *const commands[] = {FH_COMMANDS(FH_COMMAND_LISTED)};
enum { COMMANDS = sizeof commands / sizeof *commands };

static volatile sig_atomic_t stopped;

/* The first signal asks; with it the default comes back, so that a second one ends the program at once. */
static void on_signal(int sig)
{
    stopped = sig;
    signal(sig, SIG_DFL);
}

/* ---- what people see while it works ---------------------------------------------------------------------------- */

typedef struct screen { const char *command; bool quiet, verbose, tty, open; double began, last; char what[64]; } screen;

static void show_progress(void *ctx, const char *what, double done, double total, const char *unit)
{
    screen *s = ctx;
    double now = fh_now();
    if (s->quiet || !s->tty) return;
    if (strncmp(s->what, what, sizeof s->what - 1) || done < s->last) { snprintf(s->what, sizeof s->what, "%s", what); s->began = now, s->last = 0; }
    bool ended = done >= total;
    static double drawn;
    if (!ended && now - drawn < 0.1) return;
    drawn = now, s->last = done;
    double spent = now - s->began, rate = spent > 0 ? done / spent : 0;
    if (ended) {
        fprintf(stderr, "\r\033[K");
        s->open = false, s->what[0] = 0;
    } else {
        fprintf(stderr, "\r\033[K%s: %3.0f %%  %.3g of %.3g %s  %.3g/s  %.0f s left", what, 100 * done / total, done, total, unit, rate, rate > 0 ? (total - done) / rate : 0);
        s->open = true;
    }
    fflush(stderr);
}

static void show_message(void *ctx, fh_level level, const char *text)
{
    screen *s = ctx;
    if (s->quiet ? level < FH_WARN : !s->verbose && level < FH_INFO) return;
    if (s->open) fprintf(stderr, "\r\033[K"), s->open = false;
    fprintf(stderr, "fhtool: %s%s\n", level == FH_WARN ? "warning: " : "", text);
}

/* ---- help ---------------------------------------------------------------------------------------------------- */

static void general_help(FILE *to)
{
    fprintf(to, "fhtool " FH_TOOL_VERSION ": builds, calibrates, validates and runs FlashHead artifacts\n\nusage: fhtool SUBCOMMAND [options]      fhtool SUBCOMMAND -h for one of them\n\n");
    for (size_t i = 0; i < COMMANDS; i++) fprintf(to, "  %-11s %s\n", commands[i]->name, commands[i]->summary);
    fprintf(to, "\nexample: fhtool build ~/models/SmolLM2-135M -o model.fhead && fhtool run model.fhead --prompt 'Once upon a time'\n"
                "exit status: 0 done, 1 failed, 2 misuse, 3 a check or target was not met, 130 interrupted\n");
}

static int exit_status(fh_status rc)
{
    switch (rc) {
    case FH_OK: return 0;
    case FH_EUSAGE: return 2;
    case FH_ECHECK: return 3;
    case FH_EINTERRUPTED: return 130;
    default: return 1;
    }
}

static int complain(const fh_err *err)
{
    fprintf(stderr, "fhtool: %s\n", err->text);
    return exit_status(err->code);
}

/* A file opened while 0, 1 or 2 is closed would become standard output: fill the gaps with something that cannot be written. */
static void fill_standard_files(void)
{
    for (int fd = 0; fd < 3; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDONLY) < 0) return;
}

static void set_signals(void)
{
    signal(SIGPIPE, SIG_IGN); /* a closed pipe and a full quota are write errors with a message */
    signal(SIGXFSZ, SIG_IGN);
    struct sigaction sa;
    memset(&sa, 0, sizeof sa);
    sa.sa_handler = on_signal;
    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGTERM, &sa, NULL);
    struct sigaction before;
    if (!sigaction(SIGHUP, NULL, &before) && before.sa_handler != SIG_IGN) sigaction(SIGHUP, &sa, NULL); /* ignored: nohup */
}

#ifdef FH_FAULTS
/* FH_FAULT=alloc:N or write:N: the N-th allocation or write fails.  In test builds alone. */
static void set_fault(void)
{
    const char *f = getenv("FH_FAULT");
    if (f && !strncmp(f, "alloc:", 6)) fh_fault_set(FH_FAULT_ALLOC, atol(f + 6));
    if (f && !strncmp(f, "write:", 6)) fh_fault_set(FH_FAULT_WRITE, atol(f + 6));
}
#endif

int main(int argc, char **argv)
{
    fh_err err = {FH_OK, ""};
    const char *names[COMMANDS + 1] = {NULL};
    const fh_command *c = NULL;
    fill_standard_files();
    set_signals();
    fh_gemm_begin();
#ifdef FH_FAULTS
    set_fault();
#endif
    for (size_t i = 0; i < COMMANDS; i++) names[i] = commands[i]->name;
    if (argc < 2) { general_help(stderr); return 2; }
    if (!strcmp(argv[1], "-h") || !strcmp(argv[1], "--help") || !strcmp(argv[1], "help")) {
        general_help(stdout);
        return fh_print("", 0, &err) < 0 ? complain(&err) : 0;
    }
    if (!strcmp(argv[1], "--version")) {
        printf("fhtool " FH_TOOL_VERSION " (%s, FAISS %s, kernels %s)\n", fh_gemm_library(), fh_faiss_version(), fh_isa_name());
        return fh_print("", 0, &err) < 0 ? complain(&err) : 0;
    }
    for (size_t i = 0; i < COMMANDS; i++) if (!strcmp(argv[1], commands[i]->name)) c = commands[i];
    if (!c) {
        const char *near = fh_closest(argv[1], names);
        fh_fail(&err, FH_EUSAGE, "'%.80s' is no subcommand%s%s%s; see 'fhtool -h'", argv[1], near ? ": did you mean '" : "", near ? near : "", near ? "'?" : "");
        return complain(&err);
    }
    fh_common *args = fh_calloc(1, c->size);
    if (!args) { fh_fail(&err, FH_ENOMEM, "out of memory"); return complain(&err); }
    fh_status rc = fh_parse(args, c, argc - 2, argv + 2, &err);
    fh_pool *pool = NULL;
    screen s = {.command = c->name, .quiet = args->quiet, .verbose = args->verbose, .tty = isatty(2)};
    if (rc == FH_OK && args->help) {
        fh_help(c);
        rc = fh_print("", 0, &err);
    } else if (rc == FH_OK && (rc = fh_pool_new(&pool, (unsigned)args->threads.v, &err)) == FH_OK) {
        fh_job job = {.pool = pool, .stop = &stopped, .progress = show_progress, .message = show_message, .ctx = &s};
        rc = c->run(args, &job, &err);
    }
    if (s.open) fprintf(stderr, "\r\033[K");
    fh_pool_free(pool);
    for (const fh_opt *o = c->options; o->name; o++) if (o->kind == FH_OPT_STRS) fh_free(((fh_strs *)(void *)((char *)args + o->at))->v);
    fh_free(args->args);
    fh_free(args);
    if (rc < 0) {
        if (!err.text[0]) fh_fail(&err, rc, "failed (%s)", fh_status_name(rc));
        err.code = rc;
        return complain(&err);
    }
    return 0;
}
