/* sweep: every combination of K, P and encodings. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/text_opts.h"
#include "validate/validate.h"

typedef struct args {
    fh_common common;
    fh_str k, probes, bits, output;
    fh_uint moves, positions, runs, prompt, spoken;
    fh_pick routing;
    fh_text_args text;
    bool again;
} args;
static const fh_opt options[] = {
    {"k", FH_OPT_STR, offsetof(args, k), "K,K,...", "clusters (default V/32, V/16, V/8)", 0, 0, NULL},
    {"probes", FH_OPT_STR, offsetof(args, probes), "P,P,...", "clusters probed (default 16,32,64,128,256,512)", 0, 0, NULL},
    {"bits", FH_OPT_STR, offsetof(args, bits), "E,E,...", "encodings of centroids and rows, or CENTROIDS/ROWS (default int8,bf16)", 0, 0, NULL},
    {"-o", FH_OPT_STR, offsetof(args, output), "PREFIX", "write PREFIX.json, PREFIX.csv and PREFIX.html (default: sweep in the work directory)", 0, 0, NULL},
    {"routing", FH_OPT_PICK, offsetof(args, routing), "R", "how centroids are made (default learned)", 0, 0, "mean,weighted,raw,learned"},
    FH_MOVES_OPT(offsetof(args, moves)),
    {"positions", FH_OPT_UINT, offsetof(args, positions), "N", "that quality is measured on at most (default 20000)", 1, 1e9, NULL},
    {"runs", FH_OPT_UINT, offsetof(args, runs), "N", "timed calls for each figure, fewer where they are long (default 50)", 10, 100000, NULL},
    {"prompt-tokens", FH_OPT_UINT, offsetof(args, prompt), "N", "of the prompt that whole tokens are timed after (default 64)", 1, 100000, NULL},
    {"new-tokens", FH_OPT_UINT, offsetof(args, spoken), "N", "that are timed after it (default 64)", 2, 100000, NULL},
    {"again", FH_OPT_FLAG, offsetof(args, again), NULL, "take all times again", 0, 0, NULL},
    FH_TEXT_OPTS(offsetof(args, text)), FH_DIR_OPT, FH_COMMON_OPTS, FH_OPT_END,
};
static const char *const routings[] = {"mean", "weighted", "raw", "learned"};
enum { ENCODINGS = 16 };

static int rising(const void *a, const void *b) { const uint32_t *x = a, *y = b; return (*x > *y) - (*x < *y); }

/* Rising, each once. */
static void settle(uint32_t *list, size_t *n)
{
    size_t kept = 0;
    qsort(list, *n, sizeof *list, rising);
    for (size_t i = 0; i < *n; i++) if (!kept || list[i] != list[kept - 1]) list[kept++] = list[i];
    *n = kept;
}

static fh_status parse_bits(fh_dtype *centroids, fh_dtype *tokens, size_t *n, const char *text, fh_err *err)
{
    *n = 0;
    for (const char *s = text;; s++) {
        char word[24], *slash;
        size_t len = strcspn(s, ",");
        snprintf(word, sizeof word, "%.*s", (int)fh_min(len, sizeof word - 1), s);
        if ((slash = strchr(word, '/'))) *slash++ = 0;
        if (*n == ENCODINGS) return fh_fail(err, FH_EUSAGE, "sweep: --bits: more than %d", ENCODINGS);
        if (len >= sizeof word || !fh_dtype_parse(&centroids[*n], word) || !fh_dtype_parse(&tokens[*n], slash ? slash : word))
            return fh_fail(err, FH_EUSAGE, "sweep: --bits: '%.*s' is none of int8, int4, bf16, f16, f32, nor two of them as in int4/int8",
                           (int)fh_min(len, 40), s);
        (*n)++;
        s += len;
        if (!*s) return FH_OK;
    }
}

static fh_status run(void *p, const fh_job *job, fh_err *err)
{
    args *a = p;
    fh_stage_env e = {0};
    fh_json *report = NULL;
    fh_shape shape;
    fh_setting own;
    uint32_t *k = NULL, *probes = NULL;
    fh_dtype centroids[ENCODINGS], tokens[ENCODINGS];
    char usual[64];
    fh_stage_sweep_params how = {.model = a->common.args[0], .centroids = centroids, .tokens = tokens, .text = fh_text_of(&a->text),
                                 .route = {.routing = a->routing.set ? routings[a->routing.v] : NULL, .moves = (unsigned)a->moves.v}, .seed = a->text.seed.v, .positions = (size_t)a->positions.v,
                                 .runs = (size_t)a->runs.v, .prompt = (uint32_t)a->prompt.v, .tokens_spoken = (uint32_t)a->spoken.v, .again = a->again,
                                 .output = a->output.set ? a->output.v : NULL};
    fh_status rc = parse_bits(centroids, tokens, &how.n_encodings, a->bits.set ? a->bits.v : "int8,bf16", err);
    if (rc < 0 || (rc = fh_shape_read(&shape, &own, a->common.args[0], job, err)) < 0) return rc;
    uint32_t v = shape.vocab;
    snprintf(usual, sizeof usual, "%u,%u,%u", v / 32 > 2 ? v / 32 : 2, v / 16 > 2 ? v / 16 : 2, v / 8 > 2 ? v / 8 : 2);
    if ((rc = fh_parse_list(&k, &how.n_k, a->k.set ? a->k.v : usual, "sweep: --k", 2, v, err)) < 0) goto out;
    uint32_t most = a->probes.set ? v : UINT32_MAX; /* of those that are usual, what passes K is left out */
    if ((rc = fh_parse_list(&probes, &how.n_probes, a->probes.set ? a->probes.v : "16,32,64,128,256,512", "sweep: --probes", 1, most, err)) < 0) goto out;
    settle(k, &how.n_k), settle(probes, &how.n_probes);
    if (how.n_probes > FH_BENCH_ROWS) { rc = fh_fail(err, FH_EUSAGE, "sweep: --probes: at most %d", FH_BENCH_ROWS); goto out; }
    if (probes[0] > k[how.n_k - 1]) {
        rc = fh_fail(err, FH_EUSAGE, "sweep: %u clusters at most, and none of --probes is as few (the fewest are %u): name fewer", k[how.n_k - 1], probes[0]);
        goto out;
    }
    how.k = k, how.probes = probes;
    rc = fh_open_work(&e, &a->common, true, job, err);
    if (rc == FH_OK) rc = fh_stage_sweep(&e, &how, &report, err);
    rc = fh_finish_hiding(report, &a->common, "points", rc, err);
    fh_work_close(e.work);
out:
    fh_free(k);
    fh_free(probes);
    return rc;
}

const fh_command fh_cmd_sweep = {"sweep", "quality and speed at every combination of K, P and encodings", "MODEL", 1, 1, options, sizeof(args), run,
    "Clusters and routing are made once for each K from part A of the text, quality of all P is measured in one pass over the rest.\n"
    "After an interruption the same command goes on; --again takes the times alone.  DIR/k1024-int8 and its like are work directories:\n"
    "calibrate or pack go on from there.",
    "fhtool sweep ~/models/SmolLM2-135M --k 1536,3072 --probes 64,128,256 --bits int8,bf16 -C sweep -o results"};
