#include <stdlib.h>
#include <string.h>

#include "cmd/text_opts.h"

typedef struct args { fh_common common; fh_text_args text; fh_strs against; fh_str targets, ks, draw_tokens; fh_num confidence, max_cost; fh_uint draws; fh_pick probing; } args;
static const fh_opt options[] = {
    {"draws", FH_OPT_UINT, offsetof(args, draws), "N", "draws of each size (default 200)", 1, 100000, NULL},
    {"draw-tokens", FH_OPT_STR, offsetof(args, draw_tokens), "N,N,…", "documents are drawn until they have so many (default: half of the text)", 0, 0, NULL},
    {"targets", FH_OPT_STR, offsetof(args, targets), "X,X,…", "containments to promise (default 0.95,0.99,0.999)", 0, 0, NULL},
    {"containment-k", FH_OPT_STR, offsetof(args, ks), "N,N,…", "of the dense head's best N tokens (default 1,3,10)", 0, 0, NULL},
    {"confidence", FH_OPT_NUM, offsetof(args, confidence), "X", "with which it is promised (default 0.95)", 0.5, 0.999999, NULL},
    {"max-cost", FH_OPT_NUM, offsetof(args, max_cost), "X", "share of the dense head's bytes that a setting may read (default 0.5)", 0.001, 10, NULL},
    {"probing", FH_OPT_PICK, offsetof(args, probing), "P", "as for calibrate (default fixed)", 0, 0, "fixed,adaptive"},
    {"against", FH_OPT_STRS, offsetof(args, against), "FILE", "look at this text (again for more files) instead of the documents not drawn", 0, 0, NULL},
    FH_TEXT_OPTS(offsetof(args, text)), FH_DIR_OPT, FH_COMMON_OPTS, FH_OPT_END,
};

enum { MOST_TARGETS = 16 }; /* and sizes */

static fh_status targets_of(double *out, size_t *n, size_t most, const char *text, fh_err *err)
{
    for (*n = 0;; text++) {
        char *end;
        size_t len = strcspn(text, ",");
        double v = strtod(text, &end);
        if (*n == most || end != text + len || !len || strspn(text, "0123456789.") < len || !(v >= 0.01 && v <= 0.999999))
            return fh_fail(err, FH_EUSAGE, "rehearse: --targets: '%.*s' is not a number from 0.01 to 0.999999, or there are more than %zu",
                           (int)fh_min(len, 60), text, most);
        out[(*n)++] = v;
        if (!*(text += len)) return FH_OK;
    }
}

static fh_status run(void *p, const fh_job *job, fh_err *err)
{
    args *a = p;
    fh_stage_env e = {0};
    fh_json *report = NULL;
    uint32_t *ks = NULL, *sizes = NULL;
    size_t tokens[MOST_TARGETS] = {0};
    double targets[MOST_TARGETS];
    fh_stage_rehearse_params how = {.text = fh_text_of(&a->text), .against = fh_text_of(&a->text),
                                    .how = {.targets = targets, .confidence = a->confidence.set ? a->confidence.v : 0.95,
                                            .max_cost = a->max_cost.set ? a->max_cost.v : 0.5, .hot = -1, .adaptive = a->probing.v == 1,
                                            .draws = a->draws.set ? (size_t)a->draws.v : 200, .tokens = tokens, .n_tokens = 1, .seed = a->text.seed.v}};
    how.against.texts = a->against.v, how.against.n_texts = a->against.n;
    fh_status rc = targets_of(targets, &how.how.n_targets, MOST_TARGETS, a->targets.set ? a->targets.v : "0.95,0.99,0.999", err);
    if (rc < 0 || (rc = fh_parse_list(&ks, &how.how.n_ks, a->ks.set ? a->ks.v : "1,3,10", "rehearse: --containment-k", 1, FH_MAX_TOP, err)) < 0) return rc;
    how.how.ks = ks;
    if (a->draw_tokens.set && (rc = fh_parse_list(&sizes, &how.how.n_tokens, a->draw_tokens.v, "rehearse: --draw-tokens", 1, 1000000000, err)) < 0) goto out;
    if (how.how.n_tokens > MOST_TARGETS) { rc = fh_fail(err, FH_EUSAGE, "rehearse: --draw-tokens: %zu sizes, the most is %d", how.how.n_tokens,
                                                        MOST_TARGETS); goto out; }
    for (size_t i = 0; sizes && i < how.how.n_tokens; i++) tokens[i] = sizes[i];
    rc = fh_open_work(&e, &a->common, false, job, err);
    if (rc == FH_OK) rc = fh_stage_rehearse(&e, &how, &report, err);
    rc = fh_finish_hiding(report, &a->common, "draw_list", rc, err);
    fh_work_close(e.work);
out:
    fh_free(ks);
    fh_free(sizes);
    return rc;
}

const fh_command fh_cmd_rehearse = {"rehearse", "calibrate on many draws of a text and see how often the promise holds on the rest", "", 0, 0, options,
                                    sizeof(args), run,
    "Documents are drawn at random, dealt to parts and calibrated on as 'calibrate' does it, with the head as it is in the work directory; then containment is counted on\n"
    "all documents that were not drawn, or on another text.  Nothing in the work directory changes but states of the texts, which are kept.",
    "fhtool rehearse -C work --text wiki.valid.tokens --text wiki.test.tokens --tokens 1000000 --draw-tokens 100000"};
