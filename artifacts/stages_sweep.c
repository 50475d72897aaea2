/* sweep: many settings of one model, with what they have in common done once.
 *
 *   DIR                 head, model, states
 *   DIR/k1024           the same by links; clusters, routing
 *   DIR/k1024-int8      the same by links; quantized, quality of every P, times of every P
 *
 * Each is a work directory like any other: `fhtool calibrate -C DIR/k1024-int8` or `pack` go on from there.
 */
#include "artifacts/stages_private.h"
#include "validate/validate.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_QUALITY "quality.json"
#define FILE_TIMES "times.json"
#define FILE_ARTIFACT "timed.fhead"

enum { POSITIONS = 20000, RUNS = 50, SPOKEN = 64, PASSES = 3, NAME = 64 };

/* ---- quality --------------------------------------------------------------------------------------------------------- */

static const fh_json *at_probes(const fh_json *list, uint32_t probes)
{
    uint64_t p;
    for (const fh_json *j = list ? fh_json_first(list) : NULL; j; j = fh_json_next(j))
        if (fh_json_u64(fh_json_get(j, "probes"), &p) && p == probes) return j;
    return NULL;
}

/* The positions that no earlier stage saw, at most `most` of them, evenly. */
static size_t *unseen(const fh_states *s, size_t most, size_t *n)
{
    size_t all = 0, *positions = fh_malloc(fh_max(fh_min(s->n, most), 1) * sizeof *positions);
    for (size_t i = 0; i < s->n; i++) all += s->part[i] != FH_PART_A;
    *n = fh_min(all, most);
    for (size_t i = 0, seen = 0, taken = 0; positions && i < s->n && taken < *n; i++)
        if (s->part[i] != FH_PART_A && seen++ * *n / all == taken) positions[taken++] = i;
    return positions;
}

static fh_status curve_of(fh_json **out, fh_stage_env *e, const fh_facts *f, uint32_t rerank, const uint32_t *probes, size_t n_probes, size_t most, fh_err *err)
{
    fh_encoded q = {0};
    fh_states s = {0};
    fh_head *head = NULL;
    size_t n, *positions = NULL;
    fh_point *points = fh_calloc(n_probes, sizeof *points);
    char *path = fh_work_path(e->work, FH_FILE_STATES);
    fh_dense dense = fh_facts_dense(f);
    fh_status rc = points && path ? fh_encoded_load(&q, e, f, err) : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc < 0 || (rc = fh_states_load(&s, path, err)) < 0) goto out;
    if (s.d != f->head.cols) { rc = fh_fail(err, FH_ECHECK, "%s: states of width %zu for a head of width %zu", path, s.d, f->head.cols); goto out; }
    if (!(positions = unseen(&s, most, &n))) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    if (!n) { rc = fh_fail(err, FH_ECHECK, "%s: no position is left to measure quality on: give more text (--tokens)", path); goto out; }
    if (rerank) q.parts.exact = f->head, q.parts.exact_by_token = true, q.parts.rerank = rerank;
    if ((rc = fh_head_from_parts(&head, &q.parts, fh_work_dir(e->work), err)) < 0) goto out;
    for (size_t i = 0; i < n_probes; i++) points[i].probes = probes[i];
    if ((rc = fh_curve(head, &dense, s.hidden, positions, n, false, points, n_probes, e->job, err)) < 0) goto out;
    fh_json *body = fh_json_object(), *list;
    fh_json_add_u64(body, "positions", n);
    list = fh_json_add_array(body, "curve");
    for (size_t i = 0; i < n_probes; i++) fh_add_point(list, &points[i]);
    *out = body;
out:
    fh_head_close(head);
    fh_states_free(&s);
    fh_encoded_free(&q);
    fh_free(points);
    fh_free(positions);
    fh_free(path);
    return rc;
}

/* The quality of every P, from the file where it is of this head and these P. */
static fh_status quality(fh_json **out, fh_stage_env *e, const fh_facts *f, uint32_t rerank, const uint32_t *probes, size_t n_probes, size_t most, fh_err *err)
{
    fh_json *params = fh_json_object(), *list = fh_json_add_array(params, "probes"), *body = NULL;
    for (size_t i = 0; i < n_probes; i++) fh_json_add_u64(list, NULL, probes[i]);
    fh_json_add_u64(params, "rerank", rerank);
    fh_json_add_u64(params, "positions", most);
    fh_status rc = fh_current_json(out, e, FILE_QUALITY, params, err);
    if (rc < 0 || *out) goto out;
    double began = fh_now();
    if ((rc = curve_of(&body, e, f, rerank, probes, n_probes, most, err)) < 0) goto out;
    static const char *const inputs[] = {FH_FILE_HEAD, FH_FILE_MODEL, FH_FILE_STATES, FH_FILE_QUANTIZED};
    if ((rc = fh_result_of(e, FILE_QUALITY, "sweep quality", &params, inputs, sizeof inputs / sizeof *inputs, body, err)) < 0) goto out;
    fh_stage_log(e, "sweep quality", began);
    *out = body, body = NULL;
out:
    fh_json_free(params);
    fh_json_free(body);
    return rc;
}

/* ---- times ----------------------------------------------------------------------------------------------------------- */

static fh_token_timing tokens_of(const fh_json *j)
{
    fh_token_timing t = {fh_member_double(j, "ttft_seconds", NAN), fh_member_double(j, "tpot_seconds", NAN), fh_member_double(j, "head_share", NAN)};
    return isfinite(t.tpot) ? t : (fh_token_timing){0};
}

static fh_status time_tokens(fh_json *list, const char *artifact, fh_head_kind kind, const uint32_t *probes, size_t n, const fh_stage_sweep_params *p,
                             const fh_job *job, fh_err *err)
{
    for (size_t i = 0; i < n; i++) {
        fh_model m = {0};
        fh_token_timing t = {NAN, NAN, NAN};
        double peak = NAN;
        fh_fhead *file = NULL;
        fh_status rc = fh_fhead_open(&file, artifact, err);
        bool bundled = rc == FH_OK && fh_fhead_find(file, "body.tensors");
        fh_fhead_close(file);
        if (rc < 0) return rc;
        bool counts = fh_peak_reset(); /* a process of its own would have opened the model, too */
        if ((rc = fh_model_open(&m, artifact, NULL, FH_MODEL_HEAD | (bundled ? FH_MODEL_BODY : 0), job, err)) < 0) return rc;
        uint32_t prompt = p->prompt ? p->prompt : SPOKEN, spoken = p->tokens_spoken ? p->tokens_spoken : SPOKEN;
        if (bundled) rc = fh_bench_tokens(&t, &m, kind, FH_F32, probes ? probes[i] : 0, prompt, spoken, PASSES, job, err);
        if (bundled && counts) peak = (double)fh_peak_bytes();
        fh_model_close(&m);
        if (rc < 0) return rc;
        fh_json *j = list;
        if (probes) j = fh_json_add_object(list, NULL), fh_json_add_u64(j, "probes", probes[i]);
        fh_json_add_tokens(j, &t);
        fh_json_add_double(j, "peak_bytes", peak);
        fh_job_progress(job, "whole tokens", (double)(i + 1), (double)n, "settings");
    }
    return FH_OK;
}

static fh_status time_heads(fh_json *body, fh_json *list, const char *artifact, const uint32_t *probes, size_t n, const fh_stage_sweep_params *p,
                            const fh_job *job, fh_err *err)
{
    fh_model m = {0};
    fh_bench_report b;
    fh_bench_params how = {.probes = probes[n - 1], .runs = p->runs ? p->runs : RUNS, .curve = probes, .n_curve = n, .no_batches = true, .no_rivals = true,
                           .brief = true, .no_tokens = true};
    fh_status rc = fh_model_open(&m, artifact, NULL, FH_MODEL_HEAD, job, err);
    if (rc == FH_OK) rc = fh_bench(&m, &how, job, &b, err);
    fh_model_close(&m);
    if (rc < 0) return rc;
    for (size_t i = 0; i < b.heads.n; i++)
        if (!strncmp(b.heads.row[i].what, "dense", 5)) fh_json_add_double((fh_json *)fh_json_get(body, "dense"), "head_seconds", b.heads.row[i].time.median);
    for (size_t i = 0; i < n; i++) {
        fh_json *j = (fh_json *)at_probes(list, probes[i]);
        const fh_timing *t = &b.curve.row[i].time;
        fh_json_add_double(j, "head_seconds", t->median);
        fh_json_add_double(j, "head_p10_seconds", t->low);
        fh_json_add_double(j, "head_p90_seconds", t->high);
        fh_json_add_u64(j, "samples", t->samples);
    }
    return FH_OK;
}

static fh_status measure_times(fh_json **out, fh_stage_env *e, const uint32_t *probes, size_t n, const fh_stage_sweep_params *p, fh_err *err)
{
    fh_json *body = fh_json_object(), *dense = fh_json_add_object(body, "dense"), *list = fh_json_add_array(body, "points"), *packed = NULL;
    char *artifact = fh_work_path(e->work, FILE_ARTIFACT);
    fh_stage_pack_params pack = {.output = artifact, .exact = true, .probes = probes[0], .rerank = -1};
    fh_status rc = artifact ? fh_stage_pack(e, &pack, &packed, err) : fh_fail(err, FH_ENOMEM, "out of memory");
    fh_json_free(packed);
    if (rc == FH_OK) rc = time_tokens(list, artifact, FH_HEAD_FLASH, probes, n, p, e->job, err);
    if (rc == FH_OK) rc = time_tokens(dense, artifact, FH_HEAD_DENSE, NULL, 1, p, e->job, err);
    if (rc == FH_OK) rc = time_heads(body, list, artifact, probes, n, p, e->job, err);
    if (artifact) unlink(artifact); /* as large as the model; pack makes it again */
    fh_free(artifact);
    if (rc == FH_OK) *out = body;
    else fh_json_free(body);
    return rc;
}

/* Times are of a machine: its kernels and threads stand among the parameters. */
static fh_status times(fh_json **out, fh_stage_env *e, const uint32_t *probes, size_t n, const fh_stage_sweep_params *p, fh_err *err)
{
    fh_json *params = fh_json_object(), *list = fh_json_add_array(params, "probes"), *body = NULL;
    for (size_t i = 0; i < n; i++) fh_json_add_u64(list, NULL, probes[i]);
    fh_json_add_string(params, "isa", fh_isa_name());
    fh_json_add_u64(params, "threads", fh_pool_threads(fh_job_pool(e->job)));
    fh_json_add_string(params, "blas", fh_gemm_library());
    fh_json_add_u64(params, "runs", p->runs ? p->runs : RUNS);
    fh_json_add_u64(params, "prompt", p->prompt ? p->prompt : SPOKEN);
    fh_json_add_u64(params, "tokens", p->tokens_spoken ? p->tokens_spoken : SPOKEN);
    *out = NULL;
    fh_status rc = p->again ? FH_OK : fh_current_json(out, e, FILE_TIMES, params, err);
    if (rc < 0 || *out) goto out;
    double began = fh_now();
    if ((rc = measure_times(&body, e, probes, n, p, err)) < 0) goto out;
    static const char *const inputs[] = {FH_FILE_MODEL, FH_FILE_QUANTIZED};
    if ((rc = fh_result_of(e, FILE_TIMES, "sweep times", &params, inputs, sizeof inputs / sizeof *inputs, body, err)) < 0) goto out;
    fh_stage_log(e, "sweep times", began);
    *out = body, body = NULL;
out:
    fh_json_free(params);
    fh_json_free(body);
    return rc;
}

/* ---- points ---------------------------------------------------------------------------------------------------------- */

static void fill_point(fh_sweep_point *at, const fh_shape *shape, const fh_setting *s, const fh_json *good, const fh_json *quick, const fh_json *dense)
{
    fh_cost costs[FH_COSTS], sums[FH_WHOLES];
    fh_costs(costs, shape, s, 1);
    fh_cost_sums(sums, costs);
    *at = (fh_sweep_point){.setting = *s, .dense_head = fh_member_double(dense, "head_seconds", NAN), .flash = tokens_of(quick), .dense = tokens_of(dense)};
    at->quality = (fh_point){.probes = s->probes, .top1 = fh_member_double(good, "top1", NAN), .top3 = fh_member_double(good, "top3", NAN), .top5 = fh_member_double(good, "top5", NAN),
                             .top10 = fh_member_double(good, "top10", NAN), .agreement = fh_member_double(good, "agreement", NAN),
                             .mass = fh_member_double(good, "mass", NAN), .kl = fh_member_double(good, "kl", NAN), .mean_probes = s->probes};
    at->head = (fh_timing){.median = fh_member_double(quick, "head_seconds", NAN), .low = fh_member_double(quick, "head_p10_seconds", NAN), .high = fh_member_double(quick, "head_p90_seconds", NAN)};
    at->step_bytes = sums[FH_WHOLE_FLASH].bytes;
    at->token_bytes = sums[FH_WHOLE_FLASH].bytes + sums[FH_WHOLE_BODY].bytes;
    at->token_flops = sums[FH_WHOLE_FLASH].flops + sums[FH_WHOLE_BODY].flops;
    at->peak_bytes = isfinite(fh_member_double(quick, "peak_bytes", NAN)) ? fh_member_double(quick, "peak_bytes", NAN) : 0;
}

/* All P of one K and one pair of encodings. */
static fh_status sweep_head(fh_sweep *sweep, fh_stage_env *e, const char *beside, const fh_facts *f, fh_setting s, const fh_stage_sweep_params *p, fh_err *err)
{
    char name[2 * NAME];
    fh_stage_env sub = {0};
    fh_json *good = NULL, *quick = NULL, *report = NULL;
    bool current;
    size_t n = 0;
    uint64_t positions;
    while (n < p->n_probes && p->probes[n] <= s.k) n++;
    const char *c = fh_dtype_name(s.centroids), *t = fh_dtype_name(s.tokens);
    snprintf(name, sizeof name, strcmp(c, t) ? "%s-%s-%s" : "%s-%s", beside, c, t);
    fh_job_say(e->job, FH_INFO, "%s: %zu settings", name, n);
    if (!n) return FH_OK;
    fh_status rc = fh_sub_open(&sub, e, name, beside, err);
    if (rc < 0 || (rc = fh_quantize_ensure(&sub, s.centroids, s.tokens, &current, &report, err)) < 0) goto out;
    if ((rc = quality(&good, &sub, f, s.rerank, p->probes, n, p->positions ? p->positions : POSITIONS, err)) < 0) goto out;
    if ((rc = times(&quick, &sub, p->probes, n, p, err)) < 0) goto out;
    if (fh_json_u64(fh_json_get(good, "positions"), &positions)) sweep->positions = (size_t)positions;
    for (size_t i = 0; i < n; i++) {
        s.probes = p->probes[i];
        const fh_json *curve = fh_json_get(good, "curve"), *points = fh_json_get(quick, "points");
        fill_point(&sweep->points[sweep->n++], &sweep->shape, &s, at_probes(curve, s.probes), at_probes(points, s.probes), fh_json_get(quick, "dense"));
    }
out:
    fh_json_free(good);
    fh_json_free(quick);
    fh_json_free(report);
    fh_sub_close(&sub);
    return rc;
}

static fh_status sweep_k(fh_sweep *sweep, fh_stage_env *e, const fh_facts *f, uint32_t k, const fh_stage_sweep_params *p, fh_err *err)
{
    char name[NAME];
    fh_stage_env sub = {0};
    fh_json *report = NULL;
    bool current;
    fh_stage_cluster_params cluster = {.k = k, .seed = p->seed};
    snprintf(name, sizeof name, "k%u", k);
    fh_status rc = fh_sub_open(&sub, e, name, NULL, err);
    if (rc == FH_OK) rc = fh_cluster_ensure(&sub, &cluster, f->head.rows, f->head.cols, &current, &report, err);
    fh_json_free(report), report = NULL;
    if (rc == FH_OK) rc = fh_route_ensure(&sub, &p->route, &current, &report, err);
    fh_json_free(report);
    fh_sub_close(&sub);
    for (size_t i = 0; rc == FH_OK && i < p->n_encodings; i++) {
        fh_setting s = {.k = k, .probes = 1, .rerank = FH_RERANK_USUAL, .extras = (uint32_t)f->n_always, .centroids = p->centroids[i], .tokens = p->tokens[i]};
        rc = fh_setting_fill(&s, &sweep->shape, err);
        if (rc == FH_OK) rc = sweep_head(sweep, e, name, f, s, p, err);
    }
    return rc;
}

/* ---- all of it ------------------------------------------------------------------------------------------------------- */

static fh_status write_text(const char *prefix, const char *end, char *text, fh_err *err)
{
    char *path = fh_sprintf("%s%s", prefix, end);
    fh_status rc = path && text ? fh_file_write(path, text, strlen(text), FH_OWNER_READS, err) : fh_fail(err, FH_ENOMEM, "out of memory");
    fh_free(path);
    fh_free(text);
    return rc;
}

static fh_status write_results(const fh_sweep *s, const fh_json *report, const char *prefix, fh_err *err)
{
    char *page = fh_sprintf("%s.html", prefix), *text = fh_json_print(report, true), *whole = text ? fh_sprintf("%s\n", text) : NULL;
    fh_free(text);
    fh_status rc = write_text(prefix, ".json", whole, err);
    if (rc == FH_OK) rc = write_text(prefix, ".csv", fh_sweep_csv(s), err);
    if (rc == FH_OK) rc = page ? fh_sweep_page(s, page, err) : fh_fail(err, FH_ENOMEM, "out of memory");
    fh_free(page);
    return rc;
}

/* Whether results can go there, before they are worked for. */
static fh_status check_results(const char *prefix, fh_err *err)
{
    char *name = fh_sprintf("%s.json", prefix);
    fh_status rc = name ? fh_out_check(name, 0, err) : fh_fail(err, FH_ENOMEM, "out of memory");
    fh_free(name);
    return rc;
}

/* The model's name without its directories. */
static char *base_name(const char *path)
{
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') n--;
    size_t at = n;
    while (at && path[at - 1] != '/') at--;
    return fh_strndup(path + at, n - at);
}

static fh_status text_name(char **out, fh_stage_env *e, fh_err *err)
{
    fh_json *record = NULL;
    fh_status rc = fh_work_record(e->work, FH_FILE_STATES, &record, err);
    if (rc < 0) return rc;
    const char *said = fh_json_string(fh_json_get(fh_json_get(fh_json_get(record, "params"), "asked"), "text"));
    *out = fh_strdup(said ? said : "?");
    fh_json_free(record);
    return *out ? FH_OK : fh_fail(err, FH_ENOMEM, "out of memory");
}

fh_status fh_stage_sweep(fh_stage_env *e, const fh_stage_sweep_params *p, fh_json **report, fh_err *err)
{
    double began = fh_now();
    fh_facts f = {0};
    fh_setting none;
    fh_sweep s = {.threads = fh_pool_threads(fh_job_pool(e->job)), .isa = fh_isa_name(), .prompt = p->prompt ? p->prompt : SPOKEN,
                  .tokens = p->tokens_spoken ? p->tokens_spoken : SPOKEN};
    fh_json *r = NULL;
    bool current, fresh;
    char *name = base_name(p->model), *text = NULL, *prefix = p->output ? fh_strdup(p->output) : fh_work_path(e->work, "sweep");
    s.points = fh_calloc(fh_max(p->n_k * p->n_probes * p->n_encodings, 1), sizeof *s.points);
    fh_status rc = name && prefix && s.points ? fh_convert_current(e, p->model, &current, err) : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc < 0 || (rc = check_results(prefix, err)) < 0 || (!current && (rc = fh_stage_convert(e, p->model, &r, err)) < 0)) goto out;
    fh_json_free(r), r = NULL;
    if ((rc = fh_states_stage(e, FH_FILE_STATES, &p->text, &fresh, err)) < 0 || (rc = text_name(&text, e, err)) < 0) goto out;
    if ((rc = fh_shape_read(&s.shape, &none, p->model, e->job, err)) < 0 || (rc = fh_facts_load(&f, e, err)) < 0) goto out;
    s.name = name, s.text = text;
    for (size_t i = 0; i < p->n_k; i++) if ((rc = sweep_k(&s, e, &f, p->k[i], p, err)) < 0) goto out;
    fh_sweep_judge(s.points, s.n);
    r = fh_sweep_json(&s);
    if ((rc = write_results(&s, r, prefix, err)) < 0) goto out;
    fh_json_add_string(r, "written", prefix);
    fh_json_add_double(r, "seconds", fh_now() - began);
    fh_stage_log(e, "sweep", began);
    *report = r, r = NULL;
out:
    fh_json_free(r);
    fh_facts_free(&f);
    fh_free(s.points);
    fh_free(name);
    fh_free(text);
    fh_free(prefix);
    return rc;
}
