/* A page of facts, tables and plots in one file. */
#include "validate/page.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

typedef enum block { NOTHING, FACTS, TABLE, PLOTS } block;

struct fh_page {
    fh_buf b;
    block open;
    bool section;
    size_t columns, cell;
    bool words[FH_PAGE_COLUMNS];
};

/* Colours that people with any colour vision tell apart (after Okabe and Ito 2008), darker on white and lighter on black; strokes differ too, for print. */
static const char *const style[] = { /* a string of C has 4095 characters at most */
    ":root{--ink:#1b1f24;--soft:#5b6470;--page:#fff;--card:#f5f6f8;--rule:#d5d9de;--good:#0a6b3d;--poor:#8a5a00;--bad:#b3261e;"
    "--c0:#0068a8;--c1:#c04f00;--c2:#00795a;--c3:#a5437f;--c4:#8a6d00;--c5:#3b7fb0;--c6:#7a4bb5;--c7:#555d66}"
    "@media(prefers-color-scheme:dark){:root{--ink:#e8eaed;--soft:#a3abb5;--page:#14171a;--card:#1f2428;--rule:#3a4149;--good:#5fd39a;--poor:#f0b95a;"
    "--bad:#ff8a80;"
    "--c0:#5db7f5;--c1:#ff9152;--c2:#3fcf9f;--c3:#e795c5;--c4:#e3c04a;--c5:#9bd0f2;--c6:#c3a1f5;--c7:#b3bac2}}"
    "*{box-sizing:border-box}html{-webkit-text-size-adjust:100%}"
    "body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif}"
    "main{max-width:64rem;margin:0 auto;padding:1rem}h1{font-size:1.6rem;line-height:1.25;margin:.5rem 0;overflow-wrap:anywhere}"
    "h2{font-size:1.2rem;margin:2.2rem 0 .6rem;padding-bottom:.25rem;border-bottom:1px solid var(--rule)}p{max-width:46rem;margin:.5rem 0;"
    "overflow-wrap:anywhere}"
    ".lead{color:var(--soft)}.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,9.8rem),1fr));gap:.5rem;margin:.8rem 0}"
    ".fact{background:var(--card);border-left:3px solid var(--rule);padding:.4rem .6rem;overflow-wrap:anywhere}.fact dt{color:var(--soft);font-size:.82rem}"
    ".fact dd{margin:0;font-variant-numeric:tabular-nums;font-weight:600}.fact.good{border-color:var(--good)}.fact.poor{border-color:var(--poor)}"
    ".fact.bad{border-color:var(--bad)}"
    ".good dd,td.good{color:var(--good)}.poor dd,td.poor{color:var(--poor)}.bad dd,td.bad{color:var(--bad);font-weight:600}"
    ".wide{overflow-x:auto;margin:.8rem 0}table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}"
    "caption{text-align:left;color:var(--soft);padding:.2rem 0;caption-side:top}th,td{padding:.2rem .6rem;text-align:right;"
    "border-bottom:1px solid var(--rule);vertical-align:top}"
    "th{color:var(--soft);font-weight:600;vertical-align:bottom}.w{text-align:left}td.w{white-space:pre-wrap;max-width:34rem}td.w:last-child{overflow-wrap:anywhere}"
    ".plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,24rem),1fr));gap:1rem;margin:.8rem 0}figure{margin:0;min-width:0}"
    "figcaption{font-weight:600;font-size:.95rem}svg{display:block;width:100%;height:auto}svg text{fill:var(--ink);font-size:13px;font-family:inherit}"
    ".tick{fill:var(--soft)!important;font-size:12px!important}.grid{stroke:var(--rule);stroke-width:1}.mark{stroke:var(--ink);stroke-dasharray:3 4;"
    "stroke-width:1}"
    ".legend{display:flex;flex-wrap:wrap;gap:.1rem .9rem;list-style:none;margin:.2rem 0;padding:0;font-size:.85rem}.legend svg{display:inline-block;"
    "width:1.9em;height:.8em;margin-right:.35em}"
    ".s0{--c:var(--c0)}.s1{--c:var(--c1)}.s2{--c:var(--c2)}.s3{--c:var(--c3)}.s4{--c:var(--c4)}.s5{--c:var(--c5)}.s6{--c:var(--c6)}.s7{--c:var(--c7)}"
    ".line{fill:none;stroke:var(--c);stroke-width:2;stroke-linejoin:round}.dot{fill:var(--c)}.band{fill:var(--c);opacity:.16}"
    ".bar{display:grid;grid-template-columns:minmax(5.5rem,13rem) 1fr 5.5rem;gap:.5rem;align-items:center;font-size:.9rem;margin:.15rem 0;max-width:46rem}"
    ".bar i{display:block;height:.9rem;background:var(--c0);min-width:1px}.bar b{font-weight:400;font-variant-numeric:tabular-nums}"
    "footer{color:var(--soft);font-size:.82rem;margin:2.5rem 0 1rem}"
    "@media print{:root{--ink:#000;--soft:#333;--page:#fff;--card:#fff;--rule:#999;--good:#0a6b3d;--poor:#8a5a00;--bad:#b3261e;"
    "--c0:#0068a8;--c1:#c04f00;--c2:#00795a;--c3:#a5437f;--c4:#8a6d00;--c5:#3b7fb0;--c6:#7a4bb5;--c7:#555d66}"
    "body{font-size:10pt}main{max-width:none;padding:0}.wide{overflow:visible}.bar i,.fact{print-color-adjust:exact;-webkit-print-color-adjust:exact}"
    "figure,tr,.fact,.bar{break-inside:avoid}h2,caption{break-after:avoid}.plots{grid-template-columns:1fr 1fr}}",
};
static const char *const dashes[FH_PAGE_SERIES] = {"", "7 3", "2 3", "9 3 2 3", "5 2", "1 2", "12 3", "4 4"};

/* ---- text ------------------------------------------------------------------------------------------------------ */

/* Text as text, whatever is in it. */
static void put(fh_page *p, const char *s)
{
    char shown[2048];
    fh_show(shown, sizeof shown, s, strlen(s));
    for (const char *at = shown; *at;) {
        size_t plain = strcspn(at, "&<>\"'");
        fh_buf_add(&p->b, at, plain);
        at += plain;
        switch (*at) {
        case '&': fh_buf_puts(&p->b, "&amp;"); break;
        case '<': fh_buf_puts(&p->b, "&lt;"); break;
        case '>': fh_buf_puts(&p->b, "&gt;"); break;
        case '"': fh_buf_puts(&p->b, "&quot;"); break;
        case '\'': fh_buf_puts(&p->b, "&#39;"); break;
        default: return;
        }
        at++;
    }
}

static void put_format(fh_page *p, const char *fmt, va_list args)
{
    char text[2048];
    vsnprintf(text, sizeof text, fmt, args);
    put(p, text);
}

static void close_block(fh_page *p)
{
    if (p->open == FACTS) fh_buf_puts(&p->b, "</dl>\n");
    if (p->open == TABLE) fh_buf_puts(&p->b, p->cell ? "</tr></tbody></table></div>\n" : "</tbody></table></div>\n");
    if (p->open == PLOTS) fh_buf_puts(&p->b, "</div>\n");
    p->open = NOTHING;
}

fh_page *fh_page_new(const char *title, const char *lead)
{
    fh_page *p = fh_calloc(1, sizeof *p);
    if (!p) return NULL;
    fh_buf_puts(&p->b, "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
                       "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n"
                       "<meta name=\"color-scheme\" content=\"light dark\">\n"
                       "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n<title>");
    put(p, title);
    fh_buf_puts(&p->b, "</title>\n<style>");
    for (size_t i = 0; i < sizeof style / sizeof *style; i++) fh_buf_puts(&p->b, style[i]);
    fh_buf_puts(&p->b, "</style>\n</head>\n<body>\n<main>\n<h1>");
    put(p, title);
    fh_buf_puts(&p->b, "</h1>\n");
    if (lead) fh_buf_puts(&p->b, "<p class=\"lead\">"), put(p, lead), fh_buf_puts(&p->b, "</p>\n");
    return p;
}

void fh_page_section(fh_page *p, const char *title)
{
    close_block(p);
    fh_buf_puts(&p->b, p->section ? "</section>\n<section>\n<h2>" : "<section>\n<h2>");
    p->section = true;
    put(p, title);
    fh_buf_puts(&p->b, "</h2>\n");
}

void fh_page_text(fh_page *p, const char *fmt, ...)
{
    va_list args;
    close_block(p);
    fh_buf_puts(&p->b, "<p>");
    va_start(args, fmt);
    put_format(p, fmt, args);
    va_end(args);
    fh_buf_puts(&p->b, "</p>\n");
}

static const char *const tones[] = {"", " good", " poor", " bad"};

void fh_page_fact(fh_page *p, fh_tone tone, const char *name, const char *fmt, ...)
{
    va_list args;
    if (p->open != FACTS) close_block(p), fh_buf_puts(&p->b, "<dl class=\"facts\">\n"), p->open = FACTS;
    fh_buf_printf(&p->b, "<div class=\"fact%s\"><dt>", tones[tone]);
    put(p, name);
    fh_buf_puts(&p->b, "</dt><dd>");
    va_start(args, fmt);
    put_format(p, fmt, args);
    va_end(args);
    fh_buf_puts(&p->b, "</dd></div>\n");
}

void fh_page_table(fh_page *p, const char *caption, const fh_column *columns, size_t n)
{
    close_block(p);
    p->open = TABLE, p->columns = fh_min(n, FH_PAGE_COLUMNS), p->cell = 0;
    fh_buf_puts(&p->b, "<div class=\"wide\"><table>");
    if (caption) fh_buf_puts(&p->b, "<caption>"), put(p, caption), fh_buf_puts(&p->b, "</caption>");
    fh_buf_puts(&p->b, "<thead><tr>");
    for (size_t i = 0; i < p->columns; i++) {
        p->words[i] = columns[i].words;
        fh_buf_puts(&p->b, columns[i].words ? "<th scope=\"col\" class=\"w\">" : "<th scope=\"col\">");
        put(p, columns[i].name);
        fh_buf_puts(&p->b, "</th>");
    }
    fh_buf_puts(&p->b, "</tr></thead><tbody>\n");
}

void fh_page_cell(fh_page *p, fh_tone tone, const char *fmt, ...)
{
    va_list args;
    if (p->open != TABLE || !p->columns) return;
    if (!p->cell) fh_buf_puts(&p->b, "<tr>");
    fh_buf_printf(&p->b, "<td class=\"%s%s\">", p->words[p->cell] ? "w" : "n", tones[tone]);
    va_start(args, fmt);
    put_format(p, fmt, args);
    va_end(args);
    fh_buf_puts(&p->b, "</td>");
    if (++p->cell == p->columns) fh_buf_puts(&p->b, "</tr>\n"), p->cell = 0;
}

void fh_page_bars(fh_page *p, const char *title, const char *const *names, const double *values, size_t n, const char *fmt)
{
    double most = 0;
    close_block(p);
    for (size_t i = 0; i < n; i++) if (isfinite(values[i]) && values[i] > most) most = values[i];
    fh_buf_puts(&p->b, "<figure><figcaption>");
    put(p, title);
    fh_buf_puts(&p->b, "</figcaption>\n");
    for (size_t i = 0; i < n; i++) {
        char text[64];
        double width = isfinite(values[i]) && values[i] > 0 ? 100 * values[i] / most : 0;
        fh_buf_puts(&p->b, "<div class=\"bar\"><span>");
        put(p, names[i]);
        fh_buf_printf(&p->b, "</span><span><i style=\"width:%.2f%%\"></i></span><b>", width);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        snprintf(text, sizeof text, fmt, values[i]);
#pragma GCC diagnostic pop
        put(p, text);
        fh_buf_puts(&p->b, "</b></div>\n");
    }
    fh_buf_puts(&p->b, "</figure>\n");
}

/* ---- plots ----------------------------------------------------------------------------------------------------- */

/* The drawing: 480 x 320, the plot itself between these. */
enum { LEFT = 70, RIGHT = 460, TOP = 10, BOTTOM = 270, MOST_TICKS = 12 };

typedef struct scale { const fh_axis *axis; double low, high, from, to; } scale;

static bool drawable(const fh_axis *a, double v) { return isfinite(v) && (!a->log || v > 0); }
static double place(const scale *s, double v)
{
    double a = s->low, b = s->high;
    if (s->axis->log) a = log(a), b = log(b), v = log(v);
    return s->from + (v - a) / (b - a) * (s->to - s->from);
}

static void extend(scale *s, double v)
{
    if (!drawable(s->axis, v)) return;
    if (!(s->low <= v)) s->low = v;
    if (!(s->high >= v)) s->high = v;
}

/* 1, 2 or 5 times a power of ten: steps of which five or so cover the range. */
static double round_step(double range)
{
    double step = pow(10, floor(log10(range / 4)));
    double times = range / 4 / step;
    return step * (times >= 5 ? 5 : times >= 2 ? 2 : 1);
}

static void settle(scale *s)
{
    const fh_axis *a = s->axis;
    if (a->low < a->high && drawable(a, a->low) && isfinite(a->high)) { s->low = a->low, s->high = a->high; return; }
    if (!(s->low <= s->high)) s->low = a->log ? 1 : 0, s->high = a->log ? 10 : 1; /* nothing to show */
    if (a->log) {
        if (s->high < s->low * 1.5) s->low /= 2, s->high *= 2;
        return;
    }
    if (s->high - s->low < 1e-12 * fmax(1, fabs(s->high))) s->low -= 0.5, s->high += 0.5;
    double step = round_step(s->high - s->low);
    s->low = floor(s->low / step + 1e-9) * step, s->high = ceil(s->high / step - 1e-9) * step;
}

static size_t ticks_of(const scale *s, double *out)
{
    size_t n = 0;
    if (!s->axis->log) {
        double step = round_step(s->high - s->low);
        for (double i = ceil(s->low / step - 1e-9); i <= s->high / step + 1e-9 && n < MOST_TICKS; i++) out[n++] = i * step + 0.0;
        return n;
    }
    double base = s->axis->log, first = ceil(log(s->low) / log(base) - 1e-9), last = floor(log(s->high) / log(base) + 1e-9);
    double skip = fmax(1, ceil((last - first + 1) / 8));
    for (double e = first; e <= last && n < MOST_TICKS; e += skip) out[n++] = pow(base, e);
    if (n >= 2) return n;
    n = 0; /* less than two powers: 1, 2, 5 and their like */
    for (double e = floor(log10(s->low)); e <= log10(s->high); e++)
        for (int i = 0; i < 3; i++) {
            double v = (i == 0 ? 1 : i == 1 ? 2 : 5) * pow(10, e);
            if (v >= s->low * (1 - 1e-9) && v <= s->high * (1 + 1e-9) && n < MOST_TICKS) out[n++] = v;
        }
    return n;
}

static void number(char *out, size_t size, const fh_axis *a, double v)
{
    if (a->percent) snprintf(out, size, "%.4g %%", 100 * v);
    else if (fabs(v) >= 1e6) snprintf(out, size, "%.3gM", v / 1e6);
    else snprintf(out, size, "%.5g", v);
}

static void draw_axes(fh_page *p, const scale *x, const scale *y)
{
    double at[MOST_TICKS];
    char text[40];
    size_t n = ticks_of(x, at);
    for (size_t i = 0; i < n; i++) {
        double v = place(x, at[i]);
        number(text, sizeof text, x->axis, at[i]);
        fh_buf_printf(&p->b, "<line class=\"grid\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\"/>", v, v, TOP, BOTTOM);
        fh_buf_printf(&p->b, "<text class=\"tick\" x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>\n", v, BOTTOM + 17, text);
    }
    n = ticks_of(y, at);
    for (size_t i = 0; i < n; i++) {
        double v = place(y, at[i]);
        number(text, sizeof text, y->axis, at[i]);
        fh_buf_printf(&p->b, "<line class=\"grid\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>", LEFT, RIGHT, v, v);
        fh_buf_printf(&p->b, "<text class=\"tick\" x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%s</text>\n", LEFT - 5, v + 4, text);
    }
    fh_buf_printf(&p->b, "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">", (LEFT + RIGHT) / 2, BOTTOM + 40);
    put(p, x->axis->name);
    fh_buf_printf(&p->b, "</text><text text-anchor=\"middle\" transform=\"translate(14 %d) rotate(-90)\">", (TOP + BOTTOM) / 2);
    put(p, y->axis->name);
    fh_buf_puts(&p->b, "</text>\n");
}

static bool point_of(const fh_plot *plot, const fh_series *s, size_t i, const scale *x, const scale *y, double *px, double *py)
{
    if (!drawable(&plot->x, s->x[i]) || !drawable(&plot->y, s->y[i])) return false;
    *px = place(x, s->x[i]), *py = place(y, s->y[i]);
    return true;
}

static double clamp(double v, double a, double b) { return v < a ? a : v > b ? b : v; }

static void draw_band(fh_page *p, const fh_plot *plot, const fh_series *s, const scale *x, const scale *y)
{
    bool any = false;
    for (int side = 0; side < 2; side++)
        for (size_t j = 0; j < s->n; j++) {
            size_t i = side ? s->n - 1 - j : j;
            double high = s->high[i], low = drawable(&plot->y, s->low[i]) ? s->low[i] : y->low; /* zero lies below a logarithmic axis */
            if (!drawable(&plot->x, s->x[i]) || !drawable(&plot->y, high) || isnan(s->low[i])) continue;
            fh_buf_puts(&p->b, any ? " " : "<polygon class=\"band\" points=\"");
            any = true;
            fh_buf_printf(&p->b, "%.1f,%.1f", place(x, s->x[i]), clamp(place(y, side ? low : high), TOP, BOTTOM));
        }
    if (any) fh_buf_puts(&p->b, "\"/>\n");
}

static void draw_series(fh_page *p, const fh_plot *plot, size_t number_of, const scale *x, const scale *y)
{
    const fh_series *s = &plot->series[number_of];
    double px, py;
    bool any = false;
    fh_buf_printf(&p->b, "<g class=\"s%zu\">", number_of);
    if (s->low && s->high) draw_band(p, plot, s, x, y);
    for (size_t i = 0; s->line && i < s->n; i++) {
        if (!point_of(plot, s, i, x, y, &px, &py)) continue;
        if (!any) fh_buf_printf(&p->b, "<polyline class=\"line\" stroke-dasharray=\"%s\" points=\"", dashes[number_of]);
        fh_buf_printf(&p->b, any ? " %.1f,%.1f" : "%.1f,%.1f", px, clamp(py, TOP, BOTTOM));
        any = true;
    }
    if (any) fh_buf_puts(&p->b, "\"/>");
    for (size_t i = 0; i < s->n; i++) {
        char vx[40], vy[40];
        if (!point_of(plot, s, i, x, y, &px, &py)) continue;
        number(vx, sizeof vx, &plot->x, s->x[i]), number(vy, sizeof vy, &plot->y, s->y[i]);
        if (s->dots) {
            fh_buf_printf(&p->b, "<circle class=\"dot\" cx=\"%.1f\" cy=\"%.1f\" r=\"3\"><title>", px, py);
            if (s->name) put(p, s->name), fh_buf_puts(&p->b, ": ");
            put(p, vx), fh_buf_puts(&p->b, ", "), put(p, vy);
            fh_buf_puts(&p->b, "</title></circle>");
        }
        if (!s->labels || !s->labels[i]) continue;
        bool left = px > (LEFT + RIGHT) * 0.6;
        fh_buf_printf(&p->b, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">", px + (left ? -6 : 6), clamp(py - 6, TOP + 10, BOTTOM - 4),
                      left ? "end" : "start");
        put(p, s->labels[i]);
        fh_buf_puts(&p->b, "</text>");
    }
    fh_buf_puts(&p->b, "</g>\n");
}

static void draw_mark(fh_page *p, const fh_mark *m, const scale *x, const scale *y)
{
    const scale *s = m->vertical ? x : y;
    if (!drawable(s->axis, m->at) || m->at < s->low || m->at > s->high) return;
    double v = place(s, m->at);
    bool left = m->vertical && v > (LEFT + RIGHT) * 0.6;
    if (m->vertical) fh_buf_printf(&p->b, "<line class=\"mark\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\"/>", v, v, TOP, BOTTOM);
    else fh_buf_printf(&p->b, "<line class=\"mark\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>", LEFT, RIGHT, v, v);
    double tx = m->vertical ? v + (left ? -5 : 5) : RIGHT - 4, ty = m->vertical ? TOP + 12 : clamp(v - 4, TOP + 10, BOTTOM);
    fh_buf_printf(&p->b, "<text class=\"tick\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">", tx, ty, left || !m->vertical ? "end" : "start");
    put(p, m->name);
    fh_buf_puts(&p->b, "</text>\n");
}

static void legend(fh_page *p, const fh_plot *plot, size_t n)
{
    size_t named = 0;
    for (size_t i = 0; i < n; i++) named += plot->series[i].name != NULL;
    if (!named) return;
    fh_buf_puts(&p->b, "<ul class=\"legend\">");
    for (size_t i = 0; i < n; i++) {
        const fh_series *s = &plot->series[i];
        if (!s->name) continue;
        fh_buf_printf(&p->b, "<li class=\"s%zu\"><svg viewBox=\"0 0 28 12\" aria-hidden=\"true\">", i);
        if (s->line) fh_buf_printf(&p->b, "<line class=\"line\" x1=\"0\" x2=\"28\" y1=\"6\" y2=\"6\" stroke-dasharray=\"%s\"/>", dashes[i]);
        if (s->dots) fh_buf_puts(&p->b, "<circle class=\"dot\" cx=\"14\" cy=\"6\" r=\"4\"/>");
        fh_buf_puts(&p->b, "</svg>");
        put(p, s->name);
        fh_buf_puts(&p->b, "</li>");
    }
    fh_buf_puts(&p->b, "</ul>\n");
}

void fh_page_plot(fh_page *p, const fh_plot *plot)
{
    size_t n = fh_min(plot->n_series, FH_PAGE_SERIES);
    scale x = {&plot->x, NAN, NAN, LEFT, RIGHT}, y = {&plot->y, NAN, NAN, BOTTOM, TOP};
    if (p->open != PLOTS) close_block(p), fh_buf_puts(&p->b, "<div class=\"plots\">\n"), p->open = PLOTS;
    for (size_t i = 0; i < n; i++) {
        const fh_series *s = &plot->series[i];
        for (size_t j = 0; j < s->n; j++) {
            if (!drawable(&plot->x, s->x[j])) continue;
            bool band = s->low && s->high && drawable(&plot->y, s->high[j]);
            if (band || drawable(&plot->y, s->y[j])) extend(&x, s->x[j]), extend(&y, s->y[j]);
            if (band) extend(&y, s->low[j]), extend(&y, s->high[j]);
        }
    }
    settle(&x), settle(&y);
    fh_buf_puts(&p->b, "<figure><figcaption>");
    put(p, plot->title);
    fh_buf_puts(&p->b, "</figcaption>\n");
    legend(p, plot, n);
    fh_buf_puts(&p->b, "<svg viewBox=\"0 0 480 320\" role=\"img\" aria-label=\"");
    put(p, plot->title);
    fh_buf_puts(&p->b, ": ");
    put(p, plot->y.name);
    fh_buf_puts(&p->b, " over ");
    put(p, plot->x.name);
    fh_buf_puts(&p->b, "\">\n");
    draw_axes(p, &x, &y);
    for (size_t i = 0; i < n; i++) draw_series(p, plot, i, &x, &y);
    for (size_t i = 0; i < plot->n_marks; i++) draw_mark(p, &plot->marks[i], &x, &y);
    fh_buf_puts(&p->b, "</svg></figure>\n");
}

/* ---- out ------------------------------------------------------------------------------------------------------- */

void fh_page_fail(fh_page *p) { p->b.failed = true; }

char *fh_page_take(fh_page *p)
{
    close_block(p);
    if (p->section) fh_buf_puts(&p->b, "</section>\n");
    fh_buf_puts(&p->b, "<footer>fhtool " FH_TOOL_VERSION "</footer>\n</main>\n</body>\n</html>\n");
    char *text = fh_buf_take(&p->b);
    fh_free(p);
    return text;
}

fh_status fh_page_write(fh_page *p, const char *path, fh_err *err)
{
    char *text = fh_page_take(p);
    if (!text) return fh_fail(err, FH_ENOMEM, "%s: out of memory for the page", path);
    fh_status rc = fh_file_write(path, text, strlen(text), 0, err);
    fh_free(text);
    return rc;
}

void fh_page_free(fh_page *p)
{
    if (!p) return;
    fh_buf_free(&p->b);
    fh_free(p);
}
