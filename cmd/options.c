/* Options: parser, help and usage errors from one table. */
#include "cmd/cmd.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const fh_dtype fh_kv_types[3] = {FH_F32, FH_F16, FH_I8};

static bool is_short(const fh_opt *o) { return o->name[0] == '-'; }

/* Edit distance, cut off at 3: enough to say "did you mean". */
static unsigned distance(const char *a, const char *b)
{
    size_t n = strlen(a), m = strlen(b);
    unsigned row[64];
    if (n > 60 || m > 60) return 99;
    for (size_t j = 0; j <= m; j++) row[j] = (unsigned)j;
    for (size_t i = 1; i <= n; i++) {
        unsigned diagonal = row[0];
        row[0] = (unsigned)i;
        for (size_t j = 1; j <= m; j++) {
            unsigned up = row[j], best = diagonal + (a[i - 1] != b[j - 1]);
            if (up + 1 < best) best = up + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            diagonal = up, row[j] = best;
        }
    }
    return row[m];
}

const char *fh_closest(const char *word, const char *const *words)
{
    const char *best = NULL;
    unsigned least = 3;
    for (; *words; words++) {
        unsigned d = distance(word, *words);
        if (!strncmp(word, *words, strlen(word)) && strlen(word) > 2) d = 1;
        if (d < least) least = d, best = *words;
    }
    return best;
}

static fh_status usage(const fh_command *c, fh_err *err, const char *flag, const char *what)
{
    return fh_fail(err, FH_EUSAGE, "%s%s%s: %s; see 'fhtool %s -h'", c->name, flag ? ": " : "", flag ? flag : "", what, c->name);
}

static const fh_opt *find(const fh_command *c, const char *name, size_t n)
{
    for (const fh_opt *o = c->options; o->name; o++)
        if (strlen(o->name) == n && !strncmp(o->name, name, n)) return o;
    return NULL;
}

/* An integer as people write them, whole and without sign, suffix or exponent. */
static bool whole_number(const char *s, uint64_t *out)
{
    if (!*s || strspn(s, "0123456789") != strlen(s)) return false;
    errno = 0;
    *out = strtoull(s, NULL, 10);
    if (errno) *out = UINT64_MAX;
    return true;
}

static fh_status store(void *args, const fh_command *c, const fh_opt *o, const char *flag, const char *value, fh_err *err)
{
    void *to = (char *)args + o->at;
    char what[300];
    switch (o->kind) {
    case FH_OPT_FLAG: *(bool *)to = true; return FH_OK;
    case FH_OPT_STR: *(fh_str *)to = (fh_str){value, true}; return FH_OK;
    case FH_OPT_STRS: {
        fh_strs *s = to;
        const char **v = fh_realloc(s->v, (s->n + 1) * sizeof *v);
        if (!v) return fh_fail(err, FH_ENOMEM, "out of memory");
        s->v = v, s->v[s->n++] = value;
        return FH_OK;
    }
    case FH_OPT_UINT: {
        uint64_t v;
        if (!whole_number(value, &v) || (double)v < o->min || (double)v > o->max) {
            snprintf(what, sizeof what, "'%.60s' is not a whole number from %.0f to %.0f", value, o->min, o->max);
            return usage(c, err, flag, what);
        }
        *(fh_uint *)to = (fh_uint){v, true};
        return FH_OK;
    }
    case FH_OPT_NUM: {
        char *end;
        double v = strtod(value, &end);
        if (!*value || *end || !(v >= o->min && v <= o->max) || strspn(value, "0123456789.eE+-") != strlen(value)) {
            snprintf(what, sizeof what, "'%.60s' is not a number from %g to %g", value, o->min, o->max);
            return usage(c, err, flag, what);
        }
        *(fh_num *)to = (fh_num){v, true};
        return FH_OK;
    }
    case FH_OPT_PICK: {
        unsigned i = 0;
        for (const char *s = o->choices; *s; i++) {
            size_t n = strcspn(s, ",");
            if (strlen(value) == n && !strncmp(s, value, n)) { *(fh_pick *)to = (fh_pick){i, true}; return FH_OK; }
            s += n + (s[n] == ',');
        }
        snprintf(what, sizeof what, "'%.60s' is none of %.150s", value, o->choices);
        return usage(c, err, flag, what);
    }
    }
    return FH_EFAIL;
}

static fh_status unknown(const fh_command *c, const char *word, fh_err *err)
{
    const char *names[64];
    size_t n = 0;
    char what[300], plain[64];
    for (const fh_opt *o = c->options; o->name && n < 63; o++) if (!is_short(o)) names[n++] = o->name;
    names[n] = NULL;
    snprintf(plain, sizeof plain, "%.*s", (int)strcspn(word, "="), word);
    const char *near = fh_closest(plain + strspn(plain, "-"), names);
    snprintf(what, sizeof what, "there is no such option%s%s%s", near ? ": did you mean '--" : "", near ? near : "", near ? "'?" : "");
    return usage(c, err, plain, what);
}

fh_status fh_parse(void *args, const fh_command *c, int argc, char **argv, fh_err *err)
{
    fh_common *common = args;
    bool only_args = false;
    fh_status rc;
    common->args = fh_calloc((size_t)argc + 1, sizeof *common->args);
    if (!common->args) return fh_fail(err, FH_ENOMEM, "out of memory");
    for (int i = 0; i < argc; i++) {
        char *w = argv[i];
        if (only_args || w[0] != '-' || !w[1]) { common->args[common->n_args++] = w; continue; }
        if (!strcmp(w, "--")) { only_args = true; continue; }
        bool is_long = w[1] == '-';
        char *name = w + (is_long ? 2 : 0), *equals = is_long ? strchr(name, '=') : NULL;
        size_t n = equals ? (size_t)(equals - name) : strlen(name);
        if (is_long && n == 4 && !strncmp(name, "help", 4)) { common->help = true; continue; }
        const fh_opt *o = find(c, name, n);
        if (!o) return unknown(c, w, err);
        const char *value = equals ? equals + 1 : NULL;
        if (o->kind == FH_OPT_FLAG) {
            if (value) return usage(c, err, w, "takes no value");
        } else if (!value) {
            if (i + 1 >= argc) return usage(c, err, w, "a value must follow");
            value = argv[++i];
        }
        char flag[64];
        snprintf(flag, sizeof flag, "%s%.*s", is_long ? "--" : "", (int)n, name);
        if ((rc = store(args, c, o, flag, value, err)) < 0) return rc;
    }
    if (common->help) return FH_OK;
    if (common->n_args < c->min_args || common->n_args > c->max_args) {
        char what[200];
        if (common->n_args > c->max_args) snprintf(what, sizeof what, "'%.80s' is one argument too many (takes %s)", common->args[c->max_args], c->max_args ? c->synopsis : "none");
        else snprintf(what, sizeof what, "%s is missing", c->synopsis);
        return usage(c, err, NULL, what);
    }
    return FH_OK;
}

void fh_help(const fh_command *c)
{
    printf("fhtool %s: %s\n\nusage: fhtool %s%s%s [options]\n\noptions:\n", c->name, c->summary, c->name, *c->synopsis ? " " : "", c->synopsis);
    for (const fh_opt *o = c->options; o->name; o++) {
        char left[80];
        snprintf(left, sizeof left, "%s%s%s%s", is_short(o) ? "" : "--", o->name, o->arg ? " " : "", o->arg ? o->arg : "");
        printf("  %-26s %s", left, o->help);
        if (o->kind == FH_OPT_PICK) printf(" (%s)", o->choices);
        if (o->kind == FH_OPT_UINT && o->max < 1e15) printf(" [%.0f..%.0f]", o->min, o->max);
        if (o->kind == FH_OPT_NUM) printf(" [%g..%g]", o->min, o->max);
        printf("\n");
    }
    if (c->details) printf("\n%s\n", c->details);
    printf("\nexample: %s\n", c->example);
}

fh_status fh_parse_list(uint32_t **out, size_t *n, const char *text, const char *flag, uint32_t min, uint32_t max, fh_err *err)
{
    size_t most = 1, have = 0;
    for (const char *s = text; *s; s++) most += *s == ',';
    uint32_t *list = fh_malloc(most * sizeof *list);
    if (!list) return fh_fail(err, FH_ENOMEM, "out of memory");
    for (const char *s = text;; s++) {
        char word[24];
        uint64_t v;
        size_t len = strcspn(s, ",");
        snprintf(word, sizeof word, "%.*s", (int)fh_min(len, sizeof word - 1), s);
        if (len >= sizeof word || !whole_number(word, &v) || v < min || v > max) {
            fh_free(list);
            return fh_fail(err, FH_EUSAGE, "%s: '%s' in the list is not a whole number from %u to %u", flag, word, min, max);
        }
        list[have++] = (uint32_t)v;
        s += len;
        if (!*s) break;
    }
    *out = list, *n = have;
    return FH_OK;
}
