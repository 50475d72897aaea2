/* The post-processor: which ids stand before and after a text. */
#include "runtime/tokenizer_private.h"

#include <stdio.h>
#include <string.h>

/* Both lists hold what is there already in the middle of what the next processor puts around it. */
static bool put_around(fh_tok_ids *prefix, fh_tok_ids *suffix, const fh_tok_ids *before, const fh_tok_ids *after)
{
    if (!fh_tok_ids_room(prefix, before->n) || !fh_tok_ids_room(suffix, after->n)) return false;
    memmove(prefix->ids + before->n, prefix->ids, prefix->n * sizeof *prefix->ids);
    if (before->n) memcpy(prefix->ids, before->ids, before->n * sizeof *before->ids);
    if (after->n) memcpy(suffix->ids + suffix->n, after->ids, after->n * sizeof *after->ids);
    prefix->n += before->n;
    suffix->n += after->n;
    return true;
}

static fh_status add_special(fh_tok_load *l, const fh_json *specials, const char *name, fh_tok_ids *to)
{
    /* Few entries: a search each. */
    const fh_json *ids = fh_json_get(fh_json_get(specials, name), "ids");
    char shown[100];
    if (!ids || fh_json_type(ids) != FH_JSON_ARRAY)
        return fh_fail(l->err, FH_EFORMAT, "%s: %s: special_tokens has no ids for '%s'", l->name, l->place,
                       fh_show(shown, sizeof shown, name, strlen(name)));
    for (const fh_json *j = fh_json_first(ids); j; j = fh_json_next(j)) {
        uint64_t id;
        if (!fh_json_u64(j, &id) || id >= l->t->vocab.size || !(l->t->vocab.flags[id] & FH_TOK_PRESENT))
            return fh_fail(l->err, FH_EFORMAT, "%s: %s: special_tokens '%s' has an id that no token has", l->name, l->place,
                           fh_show(shown, sizeof shown, name, strlen(name)));
        if (!fh_tok_ids_add(to, (uint32_t)id)) return fh_tok_nomem(l->name, l->err);
    }
    return FH_OK;
}

static fh_status parse_template(fh_tok_load *l, const fh_json *j, fh_tok_steps *unused)
{
    const fh_json *single = fh_json_get(j, "single");
    fh_tok_ids before = {0}, after = {0};
    bool text = false;
    fh_status rc = FH_OK;
    if (!single || fh_json_type(single) != FH_JSON_ARRAY) return fh_tok_bad(l, "'single' must be an array");
    for (const fh_json *item = fh_json_first(single); item && rc == FH_OK; item = fh_json_next(item)) {
        const char *special = fh_json_string(fh_json_get(fh_json_get(item, "SpecialToken"), "id"));
        const char *sequence = fh_json_string(fh_json_get(fh_json_get(item, "Sequence"), "id"));
        if (special) rc = add_special(l, fh_json_get(j, "special_tokens"), special, text ? &after : &before);
        else if (sequence && !strcmp(sequence, "A") && !text) text = true;
        else rc = fh_tok_bad(l, "'single' must hold special tokens and the sequence A once");
    }
    if (rc == FH_OK && !text) rc = fh_tok_bad(l, "'single' must hold the sequence A");
    if (rc == FH_OK && !put_around(&l->t->prefix, &l->t->suffix, &before, &after)) rc = fh_tok_nomem(l->name, l->err);
    fh_free(before.ids);
    fh_free(after.ids);
    return rc;
}

static fh_status parse_byte_level(fh_tok_load *l, const fh_json *j, fh_tok_steps *unused) { return FH_OK; } /* it changes offsets alone */

static const fh_tok_kind processors[] = {{"TemplateProcessing", parse_template}, {"ByteLevel", parse_byte_level}, {NULL, NULL}};

/* The id of bos_token or eos_token: a string, or an object with `content`. */
static fh_status find_named(fh_tok_load *l, const fh_json *config, const char *key, uint32_t *id)
{
    const fh_json *j = fh_json_get(config, key);
    const char *s = fh_json_string(j);
    char shown[100];
    *id = FH_TOK_NONE;
    if (!s) s = fh_json_string(fh_json_get(j, "content"));
    if (!s) return FH_OK;
    *id = fh_tok_find_id(&l->t->vocab, s, strlen(s));
    if (*id != FH_TOK_NONE) return FH_OK;
    return fh_fail(l->err, FH_EFORMAT, "%s: tokenizer_config.json: %s '%s' is no token of tokenizer.json: do the two belong together?",
                   l->name, key, fh_show(shown, sizeof shown, s, strlen(s)));
}

/* An explicit add_bos_token or add_eos_token: the token stands at the outer end of the list, or does not. */
static fh_status override(fh_tok_load *l, const fh_json *config, const char *flag, const char *token, fh_tok_ids *list, bool front)
{
    const fh_json *j = fh_json_get(config, flag);
    uint32_t id;
    bool want;
    fh_status rc;
    if (!j) return FH_OK;
    if (!fh_json_bool(j, &want)) return fh_fail(l->err, FH_EFORMAT, "%s: tokenizer_config.json: '%s' must be true or false", l->name, flag);
    bool any = list->n > 0;
    if (!want && !any) return FH_OK;
    if ((rc = find_named(l, config, token, &id)) < 0) return rc;
    if (id == FH_TOK_NONE) {
        if (!want || any) return FH_OK; /* nothing says which token is meant: the template stands */
        return fh_fail(l->err, FH_EFORMAT, "%s: tokenizer_config.json: '%s' is true, but there is no '%s'", l->name, flag, token);
    }
    bool has = any && list->ids[front ? 0 : list->n - 1] == id;
    if (want == has) return FH_OK;
    if (!want) {
        list->n--;
        if (front) memmove(list->ids, list->ids + 1, list->n * sizeof *list->ids);
        return FH_OK;
    }
    if (!fh_tok_ids_add(list, id)) return fh_tok_nomem(l->name, l->err);
    if (front) {
        memmove(list->ids + 1, list->ids, (list->n - 1) * sizeof *list->ids);
        list->ids[0] = id;
    }
    return FH_OK;
}

fh_status fh_tok_post_load(fh_tok_load *l, const fh_json *post, const fh_json *config)
{
    fh_tok_steps none = {.n = 0};
    fh_status rc = fh_tok_steps_parse(l, post, "post_processor", "processors", processors, &none);
    if (rc < 0 || !config) return rc;
    if ((rc = override(l, config, "add_bos_token", "bos_token", &l->t->prefix, true)) < 0) return rc;
    return override(l, config, "add_eos_token", "eos_token", &l->t->suffix, false);
}
