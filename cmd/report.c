/* Reports: one object, printed as JSON or as aligned text. */
#include "cmd/cmd.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

fh_status fh_print(const char *text, size_t len, fh_err *err)
{
    if (fwrite(text, 1, len, stdout) != len || fflush(stdout) != 0) return fh_fail(err, FH_EIO, "standard output: %s", strerror(errno));
    return FH_OK;
}

/* A scalar in a few characters. */
static void scalar(char *out, size_t size, const fh_json *j)
{
    uint64_t u;
    int64_t i;
    double d;
    bool b;
    if (!j || fh_json_type(j) == FH_JSON_NULL) snprintf(out, size, "-");
    else if (fh_json_u64(j, &u)) snprintf(out, size, "%llu", (unsigned long long)u);
    else if (fh_json_i64(j, &i)) snprintf(out, size, "%lld", (long long)i);
    else if (fh_json_double(j, &d)) {
        if (floor(d) == d && fabs(d) < 1e15) snprintf(out, size, "%.0f", d);
        else snprintf(out, size, "%.5g", d);
    }
    else if (fh_json_bool(j, &b)) snprintf(out, size, "%s", b ? "yes" : "no");
    else if (fh_json_string(j)) fh_show(out, size, fh_json_string(j), strlen(fh_json_string(j)));
    else snprintf(out, size, "...");
}

static bool is_scalar(const fh_json *j) { return fh_json_type(j) != FH_JSON_ARRAY && fh_json_type(j) != FH_JSON_OBJECT; }
static bool is_table(const fh_json *j) { return fh_json_type(j) == FH_JSON_ARRAY && fh_json_first(j) && fh_json_type(fh_json_first(j)) == FH_JSON_OBJECT; }

/* In a table a digest is cut: --json has all of it. */
static void cell_of(char *out, size_t size, const fh_json *j)
{
    scalar(out, size, j);
    if (strlen(out) == 64 && strspn(out, "0123456789abcdef") == 64) out[12] = 0;
}

/* An array of objects: a column for each scalar member of the first row. */
static void table(fh_buf *b, const fh_json *rows)
{
    enum { COLUMNS = 16, WIDTH = 72 };
    const char *keys[COLUMNS];
    size_t width[COLUMNS], n = 0;
    char cell[WIDTH];
    for (const fh_json *c = fh_json_first(fh_json_first(rows)); c && n < COLUMNS; c = fh_json_next(c))
        if (is_scalar(c) || fh_json_type(c) == FH_JSON_NULL) keys[n] = fh_json_key(c), width[n] = strlen(keys[n]), n++;
    for (const fh_json *r = fh_json_first(rows); r; r = fh_json_next(r))
        for (size_t i = 0; i < n; i++) {
            cell_of(cell, sizeof cell, fh_json_get(r, keys[i]));
            width[i] = fh_max(width[i], strlen(cell));
        }
    for (size_t i = 0; i < n; i++) fh_buf_printf(b, "  %*s", (int)width[i], keys[i]);
    fh_buf_puts(b, "\n");
    for (const fh_json *r = fh_json_first(rows); r; r = fh_json_next(r)) {
        for (size_t i = 0; i < n; i++) {
            cell_of(cell, sizeof cell, fh_json_get(r, keys[i]));
            fh_buf_printf(b, "  %*s", (int)width[i], cell);
        }
        fh_buf_puts(b, "\n");
    }
}

static void member(fh_buf *b, const fh_json *c)
{
    char text[400], one[64];
    const char *key = fh_json_key(c);
    if (is_table(c)) {
        fh_buf_printf(b, "%s\n", key);
        table(b, c);
    } else if (fh_json_type(c) == FH_JSON_OBJECT) {
        fh_buf_printf(b, "%-18s", key);
        for (const fh_json *m = fh_json_first(c); m; m = fh_json_next(m))
            if (is_scalar(m)) scalar(one, sizeof one, m), fh_buf_printf(b, "  %s %s", fh_json_key(m), one);
        fh_buf_puts(b, "\n");
    } else if (fh_json_type(c) == FH_JSON_ARRAY) {
        size_t shown = 0, all = fh_json_count(c);
        fh_buf_printf(b, "%-18s ", key);
        for (const fh_json *m = fh_json_first(c); m && shown < 16; m = fh_json_next(m), shown++) scalar(one, sizeof one, m), fh_buf_printf(b, " %s", one);
        if (all > shown) fh_buf_printf(b, " ... (%zu in all)", all);
        fh_buf_puts(b, all ? "\n" : " -\n");
    } else {
        scalar(text, sizeof text, c);
        fh_buf_printf(b, "%-18s  %s\n", key, text);
    }
}

fh_status fh_print_report(const fh_json *report, bool json, const char *hide, fh_err *err)
{
    fh_buf b = {0};
    if (json) {
        char *text = fh_json_print(report, false);
        if (!text) return fh_fail(err, FH_ENOMEM, "out of memory while printing the report");
        fh_buf_puts(&b, text);
        fh_buf_puts(&b, "\n");
        fh_free(text);
    } else {
        for (const fh_json *c = fh_json_first(report); c; c = fh_json_next(c))
            if (!hide || strcmp(fh_json_key(c), hide)) member(&b, c);
    }
    fh_status rc = b.failed ? fh_fail(err, FH_ENOMEM, "out of memory while printing the report") : fh_print(b.data ? b.data : "", b.len, err);
    fh_buf_free(&b);
    return rc;
}

fh_status fh_finish(fh_json *report, const fh_common *c, fh_status rc, fh_err *err) { return fh_finish_hiding(report, c, NULL, rc, err); }

fh_status fh_finish_hiding(fh_json *report, const fh_common *c, const char *hide, fh_status rc, fh_err *err)
{
    fh_err print_err;
    if (!report) return rc == FH_OK ? fh_fail(err, FH_ENOMEM, "out of memory for the report: what it is about was done") : rc;
    fh_status printed = fh_print_report(report, c->json, hide, &print_err);
    fh_json_free(report);
    if (rc == FH_OK && printed < 0) return fh_fail(err, printed, "%s", print_err.text);
    return rc;
}
