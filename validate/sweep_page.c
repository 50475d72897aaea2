/* The page of a sweep. */
#include "validate/page.h"
#include "validate/validate.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME = 48 };

/* Points of one head and its encodings, which differ in P alone: a line in the plots. */
typedef struct family { const fh_sweep_point *first; size_t n; char name[NAME]; } family;
typedef double value(const fh_sweep_point *p);

static bool same_head(const fh_setting *a, const fh_setting *b) { return a->k == b->k && a->centroids == b->centroids && a->tokens == b->tokens; }

static size_t families(family *out, const fh_sweep *s)
{
    size_t n = 0;
    for (size_t i = 0; i < s->n; i++) {
        const fh_setting *at = &s->points[i].setting;
        if (n && same_head(&out[n - 1].first->setting, at)) { out[n - 1].n++; continue; }
        if (n == FH_PAGE_SERIES) break;
        family *f = &out[n++];
        *f = (family){.first = &s->points[i], .n = 1};
        const char *c = fh_dtype_name(at->centroids), *t = fh_dtype_name(at->tokens);
        snprintf(f->name, sizeof f->name, strcmp(c, t) ? "K %u, %s/%s" : "K %u, %s", at->k, c, t);
    }
    return n;
}

static double microseconds(const fh_sweep_point *p) { return 1e6 * p->head.median; }
static double agreement(const fh_sweep_point *p) { return p->quality.agreement; }
static double misses(const fh_sweep_point *p) { return 1 - p->quality.top1; }
static double mass(const fh_sweep_point *p) { return p->quality.mass; }
static double probes(const fh_sweep_point *p) { return p->setting.probes; }
static double kilobytes(const fh_sweep_point *p) { return p->step_bytes / 1e3; }
static double token_ms(const fh_sweep_point *p) { return p->flash.tpot > 0 ? 1e3 * p->flash.tpot : NAN; }

typedef struct room { double *numbers; const char **labels; } room; /* for all that is drawn at once */

/* A line for each family; named points have their names beside them. */
static void plot(fh_page *page, const family *f, size_t n, const char *title, fh_axis x, value *of_x, fh_axis y, value *of_y, const room *r)
{
    fh_series series[FH_PAGE_SERIES];
    double *at = r->numbers;
    const char **label = r->labels;
    fh_plot p = {.title = title, .x = x, .y = y, .series = series, .n_series = n};
    for (size_t i = 0; i < n; i++) {
        series[i] = (fh_series){.name = f[i].name, .x = at, .y = at + f[i].n, .n = f[i].n, .labels = label, .line = true, .dots = true};
        for (size_t j = 0; j < f[i].n; j++) {
            const fh_sweep_point *point = &f[i].first[j];
            at[j] = of_x(point), at[f[i].n + j] = of_y(point), label[j] = point->name;
        }
        at += 2 * f[i].n, label += f[i].n;
    }
    fh_page_plot(page, &p);
}

static void summary(fh_page *page, const fh_sweep *s)
{
    for (size_t i = 0; i < s->n; i++) {
        const fh_sweep_point *p = &s->points[i];
        if (!p->name) continue;
        fh_page_fact(page, FH_GOOD, p->name, "K %u, P %u, %s/%s: %.2f %% agreement, %.1f us, %.2f times the dense head", p->setting.k, p->setting.probes,
                     fh_dtype_name(p->setting.centroids), fh_dtype_name(p->setting.tokens), 100 * p->quality.agreement, 1e6 * p->head.median,
                     p->dense_head / p->head.median);
    }
    fh_page_fact(page, FH_PLAIN, "Settings", "%zu", s->n);
    fh_page_fact(page, FH_PLAIN, "Head", "%u tokens of %u, %s", s->shape.vocab, s->shape.hidden, fh_dtype_name(s->shape.dtype));
    fh_page_fact(page, FH_PLAIN, "Text", "%s, %zu positions", s->text, s->positions);
    fh_page_fact(page, FH_PLAIN, "Timed", "%s, %u thread%s", s->isa, s->threads, s->threads == 1 ? "" : "s");
}

static int by_time(const void *x, const void *y)
{
    const fh_sweep_point *a = *(fh_sweep_point *const *)x, *b = *(fh_sweep_point *const *)y;
    bool later = a->head.median > b->head.median || !isfinite(a->head.median), earlier = a->head.median < b->head.median || !isfinite(b->head.median);
    return later != earlier ? (later ? 1 : -1) : (a > b) - (a < b);
}

/* The frontier, fastest first; or all of them in the order of the sweep. */
static void table(fh_page *page, const fh_sweep_point *const *points, size_t n, bool all)
{
    static const fh_column columns[] = {
        {"", true}, {"K", false}, {"P", false}, {"centroids", true}, {"rows", true}, {"agreement %", false}, {"top-1 %", false}, {"top-10 %", false},
        {"mass %", false}, {"KL", false}, {"head us", false}, {"p10", false}, {"p90", false}, {"x dense", false}, {"TTFT ms", false}, {"TPOT ms", false},
        {"tokens/s", false}, {"x dense model", false}, {"head MB", false}, {"token MB", false}, {"MFLOP", false}, {"peak MiB", false},
    };
    fh_page_table(page, all ? NULL : "Settings on the frontier, the fastest of their agreement", columns, sizeof columns / sizeof *columns);
    for (size_t i = 0; i < n; i++) {
        const fh_sweep_point *p = points[i];
        if (!all && !p->frontier) continue;
        fh_tone tone = p->name ? FH_GOOD : FH_PLAIN;
        bool whole = p->flash.tpot > 0;
        fh_page_cell(page, tone, "%s", p->name ? p->name : all && p->frontier ? "frontier" : "");
        fh_page_cell(page, FH_PLAIN, "%u", p->setting.k);
        fh_page_cell(page, FH_PLAIN, "%u", p->setting.probes);
        fh_page_cell(page, FH_PLAIN, "%s", fh_dtype_name(p->setting.centroids));
        fh_page_cell(page, FH_PLAIN, "%s", fh_dtype_name(p->setting.tokens));
        fh_page_cell(page, tone, "%.3f", 100 * p->quality.agreement);
        fh_page_cell(page, FH_PLAIN, "%.3f", 100 * p->quality.top1);
        fh_page_cell(page, FH_PLAIN, "%.2f", 100 * p->quality.top10);
        fh_page_cell(page, FH_PLAIN, "%.2f", 100 * p->quality.mass);
        fh_page_cell(page, FH_PLAIN, "%.4f", p->quality.kl);
        fh_page_cell(page, tone, "%.1f", 1e6 * p->head.median);
        fh_page_cell(page, FH_PLAIN, "%.1f", 1e6 * p->head.low);
        fh_page_cell(page, FH_PLAIN, "%.1f", 1e6 * p->head.high);
        fh_page_cell(page, FH_PLAIN, "%.2f", p->dense_head / p->head.median);
        if (whole) {
            fh_page_cell(page, FH_PLAIN, "%.3f", 1e3 * p->flash.ttft);
            fh_page_cell(page, FH_PLAIN, "%.4f", 1e3 * p->flash.tpot);
            fh_page_cell(page, FH_PLAIN, "%.0f", 1 / p->flash.tpot);
            fh_page_cell(page, FH_PLAIN, "%.2f", p->dense.tpot / p->flash.tpot);
        } else {
            for (int c = 0; c < 4; c++) fh_page_cell(page, FH_PLAIN, "-");
        }
        fh_page_cell(page, FH_PLAIN, "%.3f", p->step_bytes / 1e6);
        fh_page_cell(page, FH_PLAIN, "%.3f", p->token_bytes / 1e6);
        fh_page_cell(page, FH_PLAIN, "%.3f", p->token_flops / 1e6);
        if (p->peak_bytes > 0) fh_page_cell(page, FH_PLAIN, "%.1f", p->peak_bytes / (1 << 20));
        else fh_page_cell(page, FH_PLAIN, "-");
    }
}

fh_status fh_sweep_page(const fh_sweep *s, const char *path, fh_err *err)
{
    family f[FH_PAGE_SERIES];
    size_t n = families(f, s), drawn = 0;
    room r = {fh_malloc(fh_max(2 * s->n, 1) * sizeof *r.numbers), fh_malloc(fh_max(s->n, 1) * sizeof *r.labels)};
    const fh_sweep_point **order = fh_malloc(fh_max(s->n, 1) * sizeof *order);
    char *title = fh_sprintf("Sweep of %s", s->name);
    fh_page *p = title ? fh_page_new(title, "FlashHead at many settings: clusters K, probes P, encodings. Quality against the dense head on text that no "
                                            "earlier stage saw; "
                                            "time of one token's head with cold caches.") : NULL;
    fh_status rc = FH_OK;
    if (!r.numbers || !r.labels || !order || !p) {
        rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", path);
        fh_page_free(p);
        goto out;
    }
    for (size_t i = 0; i < n; i++) drawn += f[i].n;
    for (size_t i = 0; i < s->n; i++) order[i] = &s->points[i];
    const fh_axis time = {.name = "head, microseconds", .log = 2}, read = {.name = "kilobytes of head a token", .log = 2}, p_axis = {.name = "P", .log = 2};
    const fh_axis share = {.name = "agreement", .percent = true}, covered = {.name = "covered mass", .percent = true};
    const fh_axis missed = {.name = "share missed", .log = 10};
    const fh_axis ms = {.name = "milliseconds a token"};
    summary(p, s);
    fh_page_section(p, "Curves");
    if (drawn < s->n) fh_page_text(p, "Drawn are the first %d heads of the sweep; the table has all.", FH_PAGE_SERIES);
    plot(p, f, n, "Agreement by time", time, microseconds, share, agreement, &r);
    plot(p, f, n, "Best token not among the candidates, by P", p_axis, probes, missed, misses, &r);
    plot(p, f, n, "Agreement by bytes read", read, kilobytes, share, agreement, &r);
    plot(p, f, n, "Covered mass by time", time, microseconds, covered, mass, &r);
    if (s->n && s->points[0].flash.tpot > 0) plot(p, f, n, "Whole model: time of a token by P", p_axis, probes, ms, token_ms, &r);
    fh_page_section(p, "The frontier");
    fh_page_text(p, "High accuracy, balanced and fast are the fastest settings that agree with the dense head on %.1f, %.0f and %.0f %% of positions "
                    "(or the most accurate where none does).",
                 100 * FH_SWEEP_ACCURATE, 100 * FH_SWEEP_BALANCED, 100 * FH_SWEEP_FAST);
    qsort(order, s->n, sizeof *order, by_time);
    table(p, order, s->n, false);
    for (size_t i = 0; i < s->n; i++) order[i] = &s->points[i];
    fh_page_section(p, "All settings");
    table(p, order, s->n, true);
    rc = fh_page_write(p, path, err);
out:
    fh_free(title);
    fh_free(r.numbers);
    fh_free(r.labels);
    fh_free(order);
    return rc;
}
