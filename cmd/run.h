/* cmd/run.h: what the files of `run` share. */
#ifndef FH_CMD_RUN_H
#define FH_CMD_RUN_H

#include "cmd/cmd.h"

typedef struct fh_run_args {
    fh_common common;
    fh_str prompt, ids, model, system, chat_template, date;
    fh_uint n, top_k, seed, probes, repeat_last, audit;
    fh_num temperature, top_p, min_p, penalty;
    fh_strs stop;
    fh_pick head, kv_type, device;
    bool ignore_eos, stats, no_hot, verify, model_sampling, talk, chat, exact, measure_mass, no_think;
} fh_run_args;

/* One reply as its tokens come: text printed as far as it can be, kept with its ids. */
typedef struct fh_reply {
    fh_stream *stream;      /* NULL: there is no tokenizer */
    fh_stops *stops;        /* NULL: none */
    bool print;
    fh_buf text, ids;       /* bytes; uint32_t */
    fh_status rc; fh_err *err;
} fh_reply;
size_t fh_reply_count(const fh_reply *r);
const uint32_t *fh_reply_ids(const fh_reply *r);
bool fh_reply_token(void *reply, uint32_t id); /* for fh_generate_params */
/* What is held back comes out; the text ends in a NUL that its length does not count. */
fh_status fh_reply_end(fh_reply *r);

const char *fh_run_ended(const fh_generate_stats *s, const fh_reply *r);
void fh_run_add_stats(fh_json *to, const fh_generate_stats *s);
/* What audits found, on standard error; nothing without one. */
void fh_run_say_audit(const fh_audit *a);
void fh_run_add_audit(fh_json *to, const fh_audit *a); /* as "audit" */
/* What --stats says, on standard error; and what sampling was from, as a note. */
void fh_run_say_stats(const fh_generate_stats *s);
void fh_run_say_sampling(const fh_model *m, const fh_generate_stats *s, const fh_job *job);
/* Messages into ids.  *ids is freed by the caller. */
fh_status fh_run_encode_chat(const fh_run_args *a, const fh_model *m, const fh_message *messages, size_t n, uint32_t **ids, size_t *n_ids, fh_err *err);
/* A conversation over standard input and output.  how->on_token is set here. */
fh_status fh_run_talk(const fh_run_args *a, const fh_model *m, fh_generate_params *how, fh_stops *stops, const fh_job *job, fh_err *err);

#endif
