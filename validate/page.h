/* validate/page.h: one self-contained HTML page of facts, tables and plots.  Not for others: see validate.h.
 *
 * Style and drawings are inline; there is no script, and nothing is loaded from anywhere (a content security policy in the page says so).  Light and
 * dark as the reader's system is, one column on a phone, black on white in print.  All text that comes in is shown as text: control characters and
 * invalid UTF-8 as fh_show has them, markup escaped.  Out of memory is remembered and reported by fh_page_write.
 */
#ifndef FH_PAGE_H
#define FH_PAGE_H

#include "base/base.h"

typedef struct fh_page fh_page;
typedef enum fh_tone { FH_PLAIN, FH_GOOD, FH_POOR, FH_BAD } fh_tone; /* how a fact or a cell is coloured */

fh_page *fh_page_new(const char *title, const char *lead); /* NULL when out of memory; lead: a paragraph below the title, or NULL */
void fh_page_section(fh_page *p, const char *title);
void fh_page_text(fh_page *p, const char *fmt, ...) FH_PRINTF(2, 3); /* a paragraph */
/* Facts that follow each other stand side by side, as many as fit. */
void fh_page_fact(fh_page *p, fh_tone tone, const char *name, const char *fmt, ...) FH_PRINTF(4, 5);

/* A table of n columns (1..FH_PAGE_COLUMNS), filled cell by cell, row by row; whatever comes next ends it.  words: text, to the left; numbers
 * stand to the right. */
enum { FH_PAGE_COLUMNS = 24 };
typedef struct fh_column { const char *name; bool words; } fh_column;
void fh_page_table(fh_page *p, const char *caption, const fh_column *columns, size_t n); /* caption may be NULL */
void fh_page_cell(fh_page *p, fh_tone tone, const char *fmt, ...) FH_PRINTF(3, 4);

/* A plot.  What is not finite, or cannot be on a logarithmic axis, is left out. */
typedef struct fh_axis {
    const char *name;
    unsigned log;              /* 0: linear; 2 or 10: logarithmic, with ticks at its powers */
    bool percent;              /* shares are written as percent */
    double low, high;          /* equal: as the data need */
} fh_axis;
enum { FH_PAGE_SERIES = 8 };   /* as many as can be told apart */
typedef struct fh_series {
    const char *name;          /* in the legend; NULL: not there */
    const double *x, *y; size_t n;
    const double *low, *high;  /* [n] a band around a line, or NULL */
    const char *const *labels; /* [n] words beside the points, or NULL; an entry may be NULL */
    bool line, dots;           /* joined in the order given; drawn as points */
} fh_series;
typedef struct fh_mark { const char *name; double at; bool vertical; } fh_mark; /* a dashed line right across, at an x (vertical) or a y */
typedef struct fh_plot {
    const char *title;
    fh_axis x, y;
    const fh_series *series; size_t n_series; /* at most FH_PAGE_SERIES */
    const fh_mark *marks; size_t n_marks;
} fh_plot;
void fh_page_plot(fh_page *p, const fh_plot *plot); /* plots that follow each other stand side by side where there is room */

/* Horizontal bars, the longest across the whole width; values from 0 up, written by `fmt` (one double). */
void fh_page_bars(fh_page *p, const char *title, const char *const *names, const double *values, size_t n, const char *fmt);

/* Memory for what was to be shown ran out: writing the page says so. */
void fh_page_fail(fh_page *p);
/* Write the page, whole or not at all; p is freed whatever happens. */
fh_status fh_page_write(fh_page *p, const char *path, fh_err *err);
char *fh_page_take(fh_page *p);  /* the same as text, freed by the caller; NULL when out of memory; p is freed */
void fh_page_free(fh_page *p);   /* accepts NULL */

#endif
