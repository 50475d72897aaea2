/* sweep: many settings of one head side by side: which are worth having, and tables of them. */
#include "validate/validate.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the frontier --------------------------------------------------------------------------------------------------- */

/* Faster first (what was not timed last), of equally fast ones the more accurate, then in the order of the sweep. */
static int by_time(const void *x, const void *y)
{
    const fh_sweep_point *a = *(fh_sweep_point *const *)x, *b = *(fh_sweep_point *const *)y;
    bool timed_a = isfinite(a->head.median), timed_b = isfinite(b->head.median);
    if (timed_a != timed_b) return timed_a ? -1 : 1;
    if (timed_a && a->head.median != b->head.median) return a->head.median < b->head.median ? -1 : 1;
    if (a->quality.agreement != b->quality.agreement) return a->quality.agreement > b->quality.agreement ? -1 : 1;
    return (a > b) - (a < b);
}

/* order [n]: the frontier, faster first, so that agreement rises along it.  From the most demanding name on, each is given among what is faster than the
 * last. */
static void name_points(fh_sweep_point **order, size_t n)
{
    static const struct { const char *name; double least; } wanted[] = {
        {"high accuracy", FH_SWEEP_ACCURATE}, {"balanced", FH_SWEEP_BALANCED}, {"fast", FH_SWEEP_FAST}};
    for (size_t w = 0; w < sizeof wanted / sizeof *wanted && n; w++) {
        size_t at = 0;
        while (at + 1 < n && !(order[at]->quality.agreement >= wanted[w].least)) at++;
        order[at]->name = wanted[w].name;
        n = at;
    }
}

void fh_sweep_judge(fh_sweep_point *points, size_t n)
{
    fh_sweep_point **order = fh_malloc(fh_max(n, 1) * sizeof *order);
    double best = -INFINITY;
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) points[i].frontier = false, points[i].name = NULL;
    if (!order) return;
    for (size_t i = 0; i < n; i++) order[i] = &points[i];
    qsort(order, n, sizeof *order, by_time);
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(order[i]->head.median) || !(order[i]->quality.agreement > best)) continue;
        best = order[i]->quality.agreement;
        order[i]->frontier = true;
        order[kept++] = order[i];
    }
    name_points(order, kept);
    fh_free(order);
}

/* ---- tables --------------------------------------------------------------------------------------------------------- */

typedef struct column { const char *name; double (*of)(const fh_sweep_point *p); bool whole; } column; /* whole: a count */

static double k_of(const fh_sweep_point *p) { return p->setting.k; }
static double cap_of(const fh_sweep_point *p) { return p->setting.cap; }
static double probes_of(const fh_sweep_point *p) { return p->setting.probes; }
static double rerank_of(const fh_sweep_point *p) { return p->setting.rerank; }
static double top1_of(const fh_sweep_point *p) { return p->quality.top1; }
static double top3_of(const fh_sweep_point *p) { return p->quality.top3; }
static double top10_of(const fh_sweep_point *p) { return p->quality.top10; }
static double agreement_of(const fh_sweep_point *p) { return p->quality.agreement; }
static double mass_of(const fh_sweep_point *p) { return p->quality.mass; }
static double kl_of(const fh_sweep_point *p) { return p->quality.kl; }
static double head_of(const fh_sweep_point *p) { return 1e6 * p->head.median; }
static double low_of(const fh_sweep_point *p) { return 1e6 * p->head.low; }
static double high_of(const fh_sweep_point *p) { return 1e6 * p->head.high; }
static double dense_of(const fh_sweep_point *p) { return 1e6 * p->dense_head; }
static double head_gain_of(const fh_sweep_point *p) { return p->dense_head / p->head.median; }
static double ttft_of(const fh_sweep_point *p) { return p->flash.tpot > 0 ? 1e3 * p->flash.ttft : NAN; }
static double tpot_of(const fh_sweep_point *p) { return p->flash.tpot > 0 ? 1e3 * p->flash.tpot : NAN; }
static double rate_of(const fh_sweep_point *p) { return p->flash.tpot > 0 ? 1 / p->flash.tpot : NAN; }
static double model_gain_of(const fh_sweep_point *p) { return p->flash.tpot > 0 ? p->dense.tpot / p->flash.tpot : NAN; }
static double step_of(const fh_sweep_point *p) { return p->step_bytes; }
static double bytes_of(const fh_sweep_point *p) { return p->token_bytes; }
static double flops_of(const fh_sweep_point *p) { return p->token_flops; }
static double peak_of(const fh_sweep_point *p) { return p->peak_bytes > 0 ? p->peak_bytes : NAN; }

static const column columns[] = {
    {"k", k_of, true}, {"cap", cap_of, true}, {"probes", probes_of, true}, {"rerank", rerank_of, true}, {"top1", top1_of, false},
    {"top3", top3_of, false}, {"top10", top10_of, false}, {"agreement", agreement_of, false}, {"mass", mass_of, false}, {"kl", kl_of, false},
    {"head_microseconds", head_of, false}, {"head_p10_microseconds", low_of, false}, {"head_p90_microseconds", high_of, false},
    {"dense_head_microseconds", dense_of, false}, {"head_speedup", head_gain_of, false}, {"ttft_milliseconds", ttft_of, false},
    {"tpot_milliseconds", tpot_of, false}, {"tokens_per_second", rate_of, false}, {"model_speedup", model_gain_of, false},
    {"step_bytes", step_of, true}, {"token_bytes", bytes_of, true}, {"token_flops", flops_of, true}, {"peak_bytes", peak_of, true},
};
enum { COLUMNS = sizeof columns / sizeof *columns };

static void add_cell(fh_json *j, const column *c, const fh_sweep_point *p)
{
    double v = c->of(p);
    if (c->whole && isfinite(v)) fh_json_add_u64(j, c->name, (uint64_t)v);
    else fh_json_add_double(j, c->name, v);
}

char *fh_sweep_csv(const fh_sweep *s)
{
    fh_buf b = {0};
    fh_buf_puts(&b, "centroids,rows");
    for (size_t i = 0; i < COLUMNS; i++) fh_buf_printf(&b, ",%s", columns[i].name);
    fh_buf_puts(&b, ",frontier,name\r\n");
    for (size_t j = 0; j < s->n; j++) {
        const fh_sweep_point *p = &s->points[j];
        fh_buf_printf(&b, "%s,%s", fh_dtype_name(p->setting.centroids), fh_dtype_name(p->setting.tokens));
        for (size_t i = 0; i < COLUMNS; i++) {
            double v = columns[i].of(p);
            if (isfinite(v)) fh_buf_printf(&b, columns[i].whole ? ",%.0f" : ",%.9g", v);
            else fh_buf_puts(&b, ",");
        }
        fh_buf_printf(&b, ",%s,%s\r\n", p->frontier ? "yes" : "no", p->name ? p->name : "");
    }
    return fh_buf_take(&b);
}

fh_json *fh_sweep_json(const fh_sweep *s)
{
    fh_json *r = fh_json_object(), *list, *j;
    fh_json_add_string(r, "model", s->name);
    fh_json_add_string(r, "model_type", s->shape.model_type);
    fh_json_add_u64(r, "vocab", s->shape.vocab);
    fh_json_add_u64(r, "hidden", s->shape.hidden);
    fh_json_add_string(r, "text", s->text);
    fh_json_add_u64(r, "positions", s->positions);
    fh_json_add_string(r, "isa", s->isa);
    fh_json_add_u64(r, "threads", s->threads);
    fh_json_add_u64(r, "prompt_tokens", s->prompt);
    fh_json_add_u64(r, "new_tokens", s->tokens);
    list = fh_json_add_array(r, "points");
    for (size_t i = 0; i < s->n; i++) {
        const fh_sweep_point *p = &s->points[i];
        j = fh_json_add_object(list, NULL);
        fh_json_add_string(j, "centroids", fh_dtype_name(p->setting.centroids));
        fh_json_add_string(j, "tokens", fh_dtype_name(p->setting.tokens));
        for (size_t c = 0; c < COLUMNS; c++) add_cell(j, &columns[c], p);
        fh_json_add_bool(j, "frontier", p->frontier);
        fh_json_add_string(j, "name", p->name ? p->name : "");
    }
    list = fh_json_add_array(r, "frontier"); /* short, for people */
    for (size_t i = 0; i < s->n; i++) {
        static const char *const shown[] = {"k", "probes", "agreement", "mass", "head_microseconds", "head_speedup", "tpot_milliseconds", "model_speedup",
                                            "step_bytes"};
        const fh_sweep_point *p = &s->points[i];
        if (!p->frontier) continue;
        j = fh_json_add_object(list, NULL);
        fh_json_add_string(j, "name", p->name ? p->name : "");
        fh_json_add_string(j, "centroids", fh_dtype_name(p->setting.centroids));
        fh_json_add_string(j, "tokens", fh_dtype_name(p->setting.tokens));
        for (size_t w = 0; w < sizeof shown / sizeof *shown; w++)
            for (size_t c = 0; c < COLUMNS; c++) if (!strcmp(columns[c].name, shown[w])) add_cell(j, &columns[c], p);
    }
    return r;
}
