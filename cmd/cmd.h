/* cmd/cmd.h: the command line.  Flags in, a library call, a report out. */
#ifndef FH_CMD_H
#define FH_CMD_H

#include "artifacts/artifacts.h"
#include "artifacts/stages.h"

/* ---- options: one table a command, from which parser, help and usage errors are made --------------------------------- */

typedef struct fh_uint { uint64_t v; bool set; } fh_uint;
typedef struct fh_num { double v; bool set; } fh_num;
typedef struct fh_str { const char *v; bool set; } fh_str;
typedef struct fh_strs { const char **v; size_t n; } fh_strs;          /* repeatable */
typedef struct fh_pick { unsigned v; bool set; } fh_pick;              /* index into the choices */

typedef enum fh_opt_kind { FH_OPT_FLAG, FH_OPT_UINT, FH_OPT_NUM, FH_OPT_STR, FH_OPT_STRS, FH_OPT_PICK } fh_opt_kind;
typedef struct fh_opt {
    const char *name;      /* "k" for --k, "-C" for -C */
    fh_opt_kind kind;
    size_t at;             /* offset into the command's arguments */
    const char *arg;       /* what follows, as help spells it */
    const char *help;
    double min, max;       /* of numbers, both inclusive */
    const char *choices;   /* of a pick: "int8,bf16,f16,f32" */
} fh_opt;

/* Every command's arguments begin with these. */
typedef struct fh_common {
    fh_str dir;            /* -C */
    fh_uint threads;
    bool json, quiet, verbose, help;
    const char **args; size_t n_args; /* positional */
} fh_common;
#define FH_OPT_END {NULL, FH_OPT_FLAG, 0, NULL, NULL, 0, 0, NULL}
#define FH_COMMON_OPTS \
    {"threads", FH_OPT_UINT, offsetof(fh_common, threads), "N", "threads to use (default: one for each CPU)", 1, 256, NULL}, \
    {"json", FH_OPT_FLAG, offsetof(fh_common, json), NULL, "print the report as one JSON object", 0, 0, NULL}, \
    {"-q", FH_OPT_FLAG, offsetof(fh_common, quiet), NULL, "no progress and no notes", 0, 0, NULL}, \
    {"-v", FH_OPT_FLAG, offsetof(fh_common, verbose), NULL, "more notes", 0, 0, NULL}, \
    {"-h", FH_OPT_FLAG, offsetof(fh_common, help), NULL, "this help", 0, 0, NULL}
/* How the key-value cache is kept; fh_kv_types[pick.v]. */
#define FH_KV_OPT(offset) {"kv-type", FH_OPT_PICK, (offset), "T", "how the key-value cache is kept: exactly, or rounded to half or a quarter of its size (default f32)", 0, 0, "f32,f16,int8"}
extern const fh_dtype fh_kv_types[3];
#define FH_DEVICE_OPT(args) {"device", FH_OPT_PICK, offsetof(args, device), "D", "where head and body are computed (default cpu); auto: a GPU if there is one", 0, 0, "cpu,cuda,auto"}
#define FH_MOVES_OPT(offset) {"moves", FH_OPT_UINT, (offset), "N", "times that tokens go to the clusters where learned centroids expect them (default 0)", 0, FH_MOST_MOVES, NULL}
#define FH_DIR_OPT {"-C", FH_OPT_STR, offsetof(fh_common, dir), "DIR", "work directory (default ./fhead-work)", 0, 0, NULL}

typedef struct fh_command {
    const char *name, *summary;     /* one line */
    const char *synopsis;           /* of the positional arguments: "MODEL" */
    size_t min_args, max_args;
    const fh_opt *options;
    size_t size;                    /* of the arguments' struct */
    fh_status (*run)(void *args, const fh_job *job, fh_err *err);
    const char *details;            /* help text between options and example */
    const char *example;
} fh_command;

/* Every command, in the order of `fhtool -h`. */
#define FH_COMMANDS(X) \
    X(build) X(convert) X(hidden) X(cluster) X(route) X(quantize) X(calibrate) X(rehearse) X(pack) \
    X(status) X(run) X(inspect) X(verify) X(query) X(perplexity) X(tokenize) X(detokenize) \
    X(bench) X(validate) X(estimate) X(sweep) X(publish) X(list) X(fetch) X(keygen) \
    X(sign) X(rebuild) X(diff) X(export) X(import)
#define FH_COMMAND_DECLARED(name) extern const fh_command fh_cmd_##name;
FH_COMMANDS(FH_COMMAND_DECLARED)

/* Fill `args` (c->size bytes, zeroed) from the words after the subcommand.  FH_EUSAGE with a message. */
fh_status fh_parse(void *args, const fh_command *c, int argc, char **argv, fh_err *err);
void fh_help(const fh_command *c);
/* The closest of a NULL-ended list of words, or NULL when none is near. */
const char *fh_closest(const char *word, const char *const *words);
/* "1,2,3" into numbers of [min, max]; freed by the caller. */
fh_status fh_parse_list(uint32_t **out, size_t *n, const char *text, const char *flag, uint32_t min, uint32_t max, fh_err *err);

/* ---- reports ------------------------------------------------------------------------------------------------- */

/* Print the report to stdout: the object itself with --json, else as aligned lines and tables of the same content.  Checks that it was written. */
fh_status fh_print_report(const fh_json *report, bool json, const char *hide, fh_err *err); /* hide: a member left out of the text, or NULL */
/* Write all of it to stdout and flush: FH_EIO when it cannot be. */
fh_status fh_print(const char *text, size_t len, fh_err *err);
/* The same for a report the caller hands over (freed); passes `rc` on unless printing fails. */
fh_status fh_finish(fh_json *report, const fh_common *c, fh_status rc, fh_err *err);
/* The same, with a member left out of the text (--json has everything). */
fh_status fh_finish_hiding(fh_json *report, const fh_common *c, const char *hide, fh_status rc, fh_err *err);

/* ---- what commands share ----------------------------------------------------------------------------------------- */

/* The work directory named by -C, locked. */
fh_status fh_open_work(fh_stage_env *e, const fh_common *c, bool create, const fh_job *job, fh_err *err);

#endif
