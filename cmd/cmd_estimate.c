/* estimate: what a model costs and how fast FlashHead will make it, before any work. */
#include "cmd/cmd.h"
#include "validate/validate.h"

#include <math.h>
#include <stdio.h>

typedef struct args { fh_common common; fh_uint k, cap, hot, rerank, context, tokens, runs; fh_str probes; fh_pick centroids, rows; bool no_measure; } args;
static const fh_opt options[] = {
    {"k", FH_OPT_UINT, offsetof(args, k), "K", "clusters (default V/16, or the artifact's)", 2, 1e9, NULL},
    {"cap", FH_OPT_UINT, offsetof(args, cap), "N", "tokens per cluster, instead of --k", 1, 1e9, NULL},
    {"probes", FH_OPT_STR, offsetof(args, probes), "P,P,...", "clusters probed; the first is the setting (default K/16, or the artifact's)", 0, 0, NULL},
    {"centroids", FH_OPT_PICK, offsetof(args, centroids), "E", "encoding of centroids (default int8)", 0, 0, "int8,int4,bf16,f16,f32"},
    {"rows", FH_OPT_PICK, offsetof(args, rows), "E", "encoding of token rows (default int8)", 0, 0, "int8,int4,bf16,f16,f32"},
    {"rerank", FH_OPT_UINT, offsetof(args, rerank), "N", "best rows scored again from the exact ones (default 16, int4: 32; 0: none)", 0, FH_MAX_RERANK, NULL},
    {"hot", FH_OPT_UINT, offsetof(args, hot), "N", "tokens scored on every step (default 0)", 0, 1e6, NULL},
    {"context", FH_OPT_UINT, offsetof(args, context), "N", "tokens in the cache (default 1024, or the model's limit)", 1, 1e9, NULL},
    {"tokens", FH_OPT_UINT, offsetof(args, tokens), "N", "of text that the build learns from (default 100000)", 1, 1e9, NULL},
    {"runs", FH_OPT_UINT, offsetof(args, runs), "N", "timed calls for each figure (default 20)", 10, 100000, NULL},
    {"no-measure", FH_OPT_FLAG, offsetof(args, no_measure), NULL, "count only: nothing is timed", 0, 0, NULL},
    FH_COMMON_OPTS, FH_OPT_END,
};
static const fh_dtype encodings[] = {FH_I8, FH_I4, FH_BF16, FH_F16, FH_F32};

/* ---- the report ----------------------------------------------------------------------------------------------------- */

static void facts(fh_json *r, const fh_estimate *e)
{
    const fh_shape *s = &e->shape;
    const fh_setting *h = &e->setting;
    fh_json_add_string(r, "model_type", s->model_type);
    fh_json_add_string(r, "from", s->headers ? "config and headers" : "config");
    fh_json_add_u64(r, "vocab", s->vocab);
    fh_json_add_u64(r, "hidden", s->hidden);
    fh_json_add_u64(r, "layers", s->layers);
    fh_json_add_string(r, "dtype", fh_dtype_name(s->dtype));
    fh_json_add_bool(r, "tied", s->tied);
    fh_json_add_u64(r, "k", h->k);
    fh_json_add_u64(r, "cap", h->cap);
    fh_json_add_u64(r, "probes", h->probes);
    fh_json_add_string(r, "centroids", fh_dtype_name(h->centroids));
    fh_json_add_string(r, "tokens", fh_dtype_name(h->tokens));
    fh_json_add_u64(r, "rerank", h->rerank);
    fh_json_add_u64(r, "extras", h->extras);
    fh_json_add_u64(r, "context", e->context);
}

static double share(const fh_estimate *e, fh_whole head, bool of_flops)
{
    const fh_cost *h = &e->sums[head], *b = &e->sums[FH_WHOLE_BODY];
    return of_flops ? h->flops / (h->flops + b->flops) : h->bytes / (h->bytes + b->bytes);
}

static void bytes(fh_json *r, const fh_estimate *e)
{
    fh_json *j = fh_json_add_object(r, "head_share");
    fh_json_add_double(j, "dense_bytes", share(e, FH_WHOLE_DENSE, false));
    fh_json_add_double(j, "dense_flops", share(e, FH_WHOLE_DENSE, true));
    fh_json_add_double(j, "flash_bytes", share(e, FH_WHOLE_FLASH, false));
    fh_json_add_double(j, "flash_flops", share(e, FH_WHOLE_FLASH, true));
    fh_json_add_double(r, "body_bytes", e->sums[FH_WHOLE_BODY].bytes);
    fh_json_add_double(r, "dense_bytes", e->sums[FH_WHOLE_DENSE].bytes);
    fh_json_add_double(r, "step_bytes", e->sums[FH_WHOLE_FLASH].bytes);
    fh_json_add_double(r, "artifact_head_bytes", e->centroid_bytes + e->token_bytes + e->exact_bytes);
    j = fh_json_add_object(r, "kv");
    fh_json_add_double(j, "bytes_per_token", e->kv.token_bytes);
    fh_json_add_double(j, "bytes_per_token_in_16_bits", e->kv.token_bytes_16);
    fh_json_add_double(j, "bytes_in_sight", e->kv.in_sight_bytes);
    fh_json_add_u64(j, "windowed_layers", e->shape.windowed);
    fh_json_add_u64(j, "window", e->shape.window);
}

static void stages(fh_json *r, const fh_estimate *e)
{
    double speed = 1e9 * e->peak.stream.gigabytes_per_second, flops = 1e9 * e->peak.gemm.gigabytes_per_second;
    fh_json *list = fh_json_add_array(r, "stages");
    for (int i = 0; i < FH_COSTS; i++) {
        const fh_cost *c = &e->costs[i];
        if (!(c->bytes > 0)) continue;
        fh_json *j = fh_json_add_object(list, NULL);
        double intensity = c->flops / c->bytes;
        fh_json_add_string(j, "what", c->what);
        fh_json_add_double(j, "megabytes", c->bytes / 1e6);
        fh_json_add_double(j, "megaflops", c->flops / 1e6);
        fh_json_add_double(j, "flops_per_byte", intensity);
        if (!e->threads) continue;
        fh_json_add_string(j, "bound_by", intensity * speed < flops ? "memory" : "arithmetic");
        fh_json_add_double(j, "attainable_gflops", fmin(intensity * speed, flops) / 1e9);
        fh_json_add_double(j, "roofline_microseconds", 1e6 * fh_cost_seconds(c, 0, 0, speed, flops));
    }
}

static void measured(fh_json *r, const fh_estimate *e)
{
    fh_json *j = fh_json_add_object(r, "machine");
    fh_json_add_string(j, "isa", e->isa);
    fh_json_add_u64(j, "threads", e->threads);
    fh_json_add_double(j, "gigabytes_per_second", e->peak.stream.gigabytes_per_second);
    fh_json_add_double(j, "block_gigabytes_per_second", e->peak.blocks.gigabytes_per_second);
    fh_json_add_double(j, "gflops", e->peak.gemm.gigabytes_per_second);
    fh_json_add_double(j, "ridge_flops_per_byte", e->peak.gemm.gigabytes_per_second / e->peak.stream.gigabytes_per_second);
    fh_json_add_u64(j, "stand_in_clusters", e->stand_in_clusters);
    fh_json_add_u64(j, "stand_in_layers", e->stand_in_layers);
    fh_json *list = fh_json_add_array(r, "expected");
    static const char *const names[2] = {"flash", "dense"};
    for (int h = 1; h >= 0; h--) {
        j = fh_json_add_object(list, NULL);
        fh_json_add_string(j, "what", names[h]);
        fh_json_add_double(j, "head_microseconds", 1e6 * e->head_seconds[h]);
        fh_json_add_double(j, "head_speedup", e->head_seconds[1] / e->head_seconds[h]);
        fh_json_add_double(j, "milliseconds_per_token", e->shape.layers ? 1e3 * e->token_seconds[h] : NAN);
        fh_json_add_double(j, "tokens_per_second", e->shape.layers ? 1 / e->token_seconds[h] : NAN);
        fh_json_add_double(j, "head_share", e->shape.layers ? e->head_share[h] : NAN);
        fh_json_add_double(j, "model_speedup", e->shape.layers ? e->token_seconds[1] / e->token_seconds[h] : NAN);
    }
    list = fh_json_add_array(r, "curve");
    for (size_t i = 0; i < e->n_curve; i++) {
        j = fh_json_add_object(list, NULL);
        fh_setting at = e->setting;
        fh_cost costs[FH_COSTS], sums[FH_WHOLES];
        at.probes = e->curve[i].probes;
        fh_costs(costs, &e->shape, &at, e->context);
        fh_cost_sums(sums, costs);
        fh_json_add_u64(j, "probes", at.probes);
        fh_json_add_double(j, "step_bytes", sums[FH_WHOLE_FLASH].bytes);
        fh_json_add_double(j, "head_microseconds", 1e6 * e->curve[i].seconds);
        fh_json_add_double(j, "head_speedup", e->head_seconds[1] / e->curve[i].seconds);
    }
}

/* The best that each machine can do: memory and arithmetic at their published peaks, nothing else.  The real ones stay below, FlashHead further than the dense
 * head: what it reads in a few microseconds takes three kernels to start. */
static void named(fh_json *r, const fh_estimate *e)
{
    size_t n;
    const fh_machine *m = fh_machines(&n);
    fh_json *list = fh_json_add_array(r, "machines");
    for (size_t i = 0; i < n; i++) {
        double speed = 1e9 * m[i].gigabytes_per_second, flops = 1e12 * m[i].teraflops;
        double body = fh_cost_seconds(e->costs, FH_COST_EMBED, FH_COST_MLP, speed, flops);
        double dense = fh_cost_seconds(e->costs, FH_COST_DENSE, FH_COST_DENSE, speed, flops);
        double flash = fh_cost_seconds(e->costs, FH_COST_ROUTE, FH_COST_RERANK, speed, flops);
        fh_json *j = fh_json_add_object(list, NULL);
        fh_json_add_string(j, "name", m[i].name);
        fh_json_add_double(j, "gigabytes_per_second", m[i].gigabytes_per_second);
        fh_json_add_double(j, "teraflops", m[i].teraflops > 0 ? m[i].teraflops : NAN);
        fh_json_add_double(j, "dense_head_microseconds", 1e6 * dense);
        fh_json_add_double(j, "flash_head_microseconds", 1e6 * flash);
        fh_json_add_double(j, "head_speedup_at_most", dense / flash);
        fh_json_add_double(j, "model_speedup_at_most", e->shape.layers ? (body + dense) / (body + flash) : NAN);
        fh_json_add_double(j, "tokens_per_second_at_most", e->shape.layers ? 1 / (body + flash) : NAN);
        fh_json_add_string(j, "source", m[i].source);
    }
}

static void build(fh_json *r, const fh_estimate *e)
{
    fh_json *j = fh_json_add_object(r, "build");
    double sum = 0;
    for (int i = 0; i < 4; i++) {
        char key[32];
        snprintf(key, sizeof key, "%s_seconds", fh_build_stages[i]);
        fh_json_add_double(j, key, e->build_seconds[i]);
        sum += isfinite(e->build_seconds[i]) ? e->build_seconds[i] : 0;
    }
    fh_json_add_double(j, "seconds", e->threads ? sum : NAN);
    fh_json_add_double(j, "peak_bytes", e->build_bytes);
}

static fh_json *report_of(const fh_estimate *e)
{
    fh_json *r = fh_json_object();
    facts(r, e);
    bytes(r, e);
    stages(r, e);
    if (e->threads) measured(r, e);
    named(r, e);
    build(r, e);
    return r;
}

/* ---- the command ---------------------------------------------------------------------------------------------------- */

static fh_status settle(fh_setting *s, const args *a, const fh_shape *shape, const uint32_t *probes, fh_err *err)
{
    if (a->k.set && a->cap.set) return fh_fail(err, FH_EUSAGE, "estimate: --k and --cap: give one of them");
    if (!s->k) s->rerank = FH_RERANK_USUAL; /* not an artifact's */
    if (a->k.set || a->cap.set) s->k = (uint32_t)a->k.v, s->cap = (uint32_t)a->cap.v, s->probes = 0;
    if (a->centroids.set) s->centroids = encodings[a->centroids.v];
    if (a->rows.set) s->tokens = encodings[a->rows.v], s->rerank = FH_RERANK_USUAL;
    if (a->rerank.set) s->rerank = (uint32_t)a->rerank.v;
    if (a->hot.set) s->extras = (uint32_t)a->hot.v;
    if (probes) s->probes = probes[0];
    return fh_setting_fill(s, shape, err);
}

static fh_status run(void *p, const fh_job *job, fh_err *err)
{
    args *a = p;
    fh_shape shape;
    fh_setting s;
    fh_estimate e = {0};
    fh_json *report = NULL;
    uint32_t *probes = NULL;
    size_t n = 0;
    fh_status rc = fh_shape_read(&shape, &s, a->common.args[0], job, err);
    if (rc == FH_OK && a->probes.set) rc = fh_parse_list(&probes, &n, a->probes.v, "estimate: --probes", 1, shape.vocab, err);
    if (rc == FH_OK) rc = settle(&s, a, &shape, probes, err);
    fh_estimate_params how = {.probes = probes, .n_probes = n, .context = (uint32_t)a->context.v, .tokens = (size_t)a->tokens.v, .no_measure = a->no_measure,
                              .runs = (size_t)a->runs.v};
    if (rc == FH_OK) rc = fh_estimate_model(&e, &shape, &s, &how, job, err);
    if (rc == FH_OK) report = report_of(&e);
    rc = fh_finish(report, &a->common, rc, err);
    fh_estimate_free(&e);
    fh_free(probes);
    return rc;
}

const fh_command fh_cmd_estimate = {"estimate", "what FlashHead will bring to a model, before any work", "MODEL", 1, 1, options, sizeof(args), run,
    "MODEL: a checkpoint directory (config.json alone will do), a GGUF, or a .fhead.  Bytes and operations are counted; times are\n"
    "those of a stand-in of the same shape, filled with noise and cut down, that lies in $TMPDIR for a moment; machines by name are\n"
    "at their published peaks, which nobody reaches.  The build's time is rough: within a factor of two.",
    "fhtool estimate ~/models/SmolLM2-135M --probes 128,256,512"};
