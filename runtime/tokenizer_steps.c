/* Reading the stages of a tokenizer.json: members with their types judged, sequences unrolled, types looked up in a table. */
#include "runtime/tokenizer_private.h"

#include <stdio.h>
#include <string.h>

fh_status fh_tok_nomem(const char *name, fh_err *err) { return fh_fail(err, FH_ENOMEM, "%s: out of memory", name); }

fh_status fh_tok_bad(fh_tok_load *l, const char *what) { return fh_fail(l->err, FH_EFORMAT, "%s: %s: %s", l->name, l->place, what); }

fh_status fh_tok_get_bool(fh_tok_load *l, const fh_json *j, const char *key, bool standard, bool *out)
{
    const fh_json *member = fh_json_get(j, key);
    *out = standard;
    if (!member || fh_json_bool(member, out)) return FH_OK;
    return fh_fail(l->err, FH_EFORMAT, "%s: %s: '%s' must be true or false", l->name, l->place, key);
}

fh_status fh_tok_get_string(fh_tok_load *l, const fh_json *j, const char *key, const char *standard, const char **out)
{
    const fh_json *member = fh_json_get(j, key);
    *out = member ? fh_json_string(member) : standard;
    if (*out) return FH_OK;
    return fh_fail(l->err, FH_EFORMAT, "%s: %s: '%s' must be a string", l->name, l->place, key);
}

fh_status fh_tok_set_regex(fh_tok_load *l, fh_tok_pattern *out, const char *regex)
{
    if (l->t->n_regexes == FH_TOK_MAX_REGEXES)
        return fh_fail(l->err, FH_EUNSUPPORTED, "%s: %s: more than %d regexes in one tokenizer", l->name, l->place, FH_TOK_MAX_REGEXES);
    out->index = l->t->n_regexes++;
    return fh_tok_regex_new(&out->regex, regex, l->name, l->place, l->err);
}

fh_status fh_tok_get_pattern(fh_tok_load *l, const fh_json *j, fh_tok_pattern *out)
{
    const fh_json *pattern = fh_json_get(j, "pattern");
    const char *literal = fh_json_string(fh_json_get(pattern, "String")), *regex = fh_json_string(fh_json_get(pattern, "Regex"));
    if (!literal == !regex) return fh_tok_bad(l, "'pattern' must be {\"String\": \"...\"} or {\"Regex\": \"...\"}");
    if (regex || !*literal) return fh_tok_set_regex(l, out, regex ? regex : ""); /* nothing is found between any two characters */
    out->literal_len = strlen(literal);
    out->literal = fh_strdup(literal);
    return out->literal ? FH_OK : fh_tok_nomem(l->name, l->err);
}

fh_status fh_tok_set_content(fh_tok_load *l, fh_tok_step *s, const char *content)
{
    s->content_len = strlen(content);
    s->content = fh_strdup(content);
    return s->content ? FH_OK : fh_tok_nomem(l->name, l->err);
}

fh_status fh_tok_step_add(fh_tok_load *l, fh_tok_steps *to, fh_tok_step **out)
{
    if (to->n == FH_TOK_MAX_STEPS)
        return fh_fail(l->err, FH_EUNSUPPORTED, "%s: %s: more than %d steps", l->name, l->place, FH_TOK_MAX_STEPS);
    *out = &to->items[to->n++];
    return FH_OK;
}

static fh_status parse_one(fh_tok_load *l, const fh_json *j, const char *type, const char *stage, const fh_tok_kind *kinds,
                           fh_tok_steps *to)
{
    char known[400] = "Sequence";
    for (const fh_tok_kind *k = kinds; k->type; k++) {
        if (!strcmp(k->type, type)) return k->parse(l, j, to);
        size_t len = strlen(known);
        snprintf(known + len, sizeof known - len, ", %s", k->type);
    }
    return fh_fail(l->err, FH_EUNSUPPORTED, "%s: %s: %s type '%s' is not supported; known are: %s", l->name, l->place, stage, type, known);
}

fh_status fh_tok_steps_parse(fh_tok_load *l, const fh_json *j, const char *stage, const char *list, const fh_tok_kind *kinds,
                             fh_tok_steps *to)
{
    struct { const fh_json *item; size_t index, len; } level[FH_TOK_MAX_DEPTH]; /* len: of the place of the list's owner */
    size_t depth = 0;
    fh_status rc = FH_OK;
    if (!j) return FH_OK; /* absent, or null */
    snprintf(l->place, sizeof l->place, "%s", stage);
    for (;;) {
        const char *type;
        if (fh_json_type(j) != FH_JSON_OBJECT) return fh_tok_bad(l, "must be an object");
        if ((rc = fh_tok_get_string(l, j, "type", NULL, &type)) < 0) return rc;
        if (!strcmp(type, "Sequence")) {
            const fh_json *items = fh_json_get(j, list);
            if (!items || fh_json_type(items) != FH_JSON_ARRAY)
                return fh_fail(l->err, FH_EFORMAT, "%s: %s: '%s' must be an array", l->name, l->place, list);
            if (depth == FH_TOK_MAX_DEPTH)
                return fh_fail(l->err, FH_EUNSUPPORTED, "%s: %s: sequences more than %d deep", l->name, l->place, FH_TOK_MAX_DEPTH);
            level[depth].item = fh_json_first(items);
            level[depth].index = 0;
            level[depth++].len = strlen(l->place);
        } else if ((rc = parse_one(l, j, type, stage, kinds, to)) < 0) {
            return rc;
        }
        while (depth && !level[depth - 1].item) depth--;
        if (!depth) return FH_OK;
        j = level[depth - 1].item;
        level[depth - 1].item = fh_json_next(j);
        snprintf(l->place + level[depth - 1].len, sizeof l->place - level[depth - 1].len, ".%s[%zu]", list, level[depth - 1].index++);
    }
}

void fh_tok_steps_free(fh_tok_steps *steps)
{
    for (size_t i = 0; i < steps->n; i++) {
        fh_free(steps->items[i].pattern.literal);
        fh_tok_regex_free(steps->items[i].pattern.regex);
        fh_free(steps->items[i].content);
    }
    steps->n = 0;
}
