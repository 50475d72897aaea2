/* Added tokens: found in the text before anything else happens to it.
 *
 * Of all patterns the leftmost, of those the longest, wins.  An automaton over the patterns read backwards (Aho and Corasick 1975) goes
 * over the text once from its end and so knows the longest pattern that begins at each place; a walk forwards then takes what does not
 * overlap.  Linear in the text, whatever patterns and text are; searching forwards would look ahead again and again on hostile ones.
 */
#include "runtime/tokenizer_private.h"

#include <stdio.h>
#include <string.h>

/* ---- the automaton --------------------------------------------------------------------------------------------- */

static uint32_t step(const fh_tok_finder *f, uint32_t node, unsigned char byte)
{
    if (!node) return f->root[byte];
    const uint64_t *to = fh_tok_map_get(&f->edges, fh_tok_pair(node, byte));
    return to ? (uint32_t)*to : 0;
}

static bool build(fh_tok_finder *f)
{
    size_t most = 1, longest = 0;
    for (size_t i = 0; i < f->n_entries; i++) {
        most += f->entries[i].pattern.len;
        longest = fh_max(longest, f->entries[i].pattern.len);
    }
    struct node { uint32_t parent, depth; unsigned char byte; } *node = fh_calloc(most, sizeof *node);
    size_t *at = fh_calloc(longest + 2, sizeof *at); /* [depth] where its nodes begin in `order` */
    uint32_t *order = fh_malloc(most * sizeof *order);
    bool ok = false;
    f->fail = fh_calloc(most, sizeof *f->fail);
    f->out = fh_calloc(most, sizeof *f->out);
    if (!node || !at || !order || !f->fail || !f->out) goto out;
    f->nodes = 1;
    for (size_t i = 0; i < f->n_entries; i++) {
        const fh_tok_string *p = &f->entries[i].pattern;
        uint32_t now = 0;
        for (size_t k = p->len; k-- > 0;) {
            unsigned char byte = (unsigned char)f->blob[p->at + k];
            uint32_t to = step(f, now, byte);
            if (!to) {
                to = (uint32_t)f->nodes++;
                node[to].parent = now;
                node[to].depth = node[now].depth + 1;
                node[to].byte = byte;
                if (!now) f->root[byte] = to;
                else if (!fh_tok_map_put(&f->edges, fh_tok_pair(now, byte), to)) goto out;
            }
            now = to;
        }
        if (now && !f->out[now]) f->out[now] = (uint32_t)i + 1; /* of equal patterns the first */
    }
    for (size_t i = 1; i < f->nodes; i++) at[node[i].depth + 1]++;
    for (size_t d = 1; d < longest + 2; d++) at[d] += at[d - 1];
    for (size_t i = 1; i < f->nodes; i++) order[at[node[i].depth]++] = (uint32_t)i;
    for (size_t i = 0; i + 1 < f->nodes; i++) {
        uint32_t x = order[i], parent = node[x].parent, fail = 0;
        if (parent) {
            uint32_t from = f->fail[parent];
            while (!(fail = step(f, from, node[x].byte)) && from) from = f->fail[from];
        }
        f->fail[x] = fail;
        if (!f->out[x]) f->out[x] = f->out[fail];
    }
    ok = true;
out:
    fh_free(node);
    fh_free(at);
    fh_free(order);
    return ok;
}

/* The longest pattern at each place where there is one, last place first; `id` is the entry. */
static bool find_all(const fh_tok_finder *f, const char *text, size_t len, fh_tok_part **found, size_t *n_found)
{
    size_t n = 0, cap = 0;
    uint32_t now = 0;
    fh_tok_part *list = NULL;
    for (size_t i = len; i-- > 0;) {
        unsigned char byte = (unsigned char)text[i];
        uint32_t to;
        while (!(to = step(f, now, byte)) && now) now = f->fail[now];
        now = to;
        if (!now || !f->out[now]) continue;
        if (n == cap) {
            size_t more = fh_max(16, cap + cap / 2), bytes;
            fh_tok_part *grown = fh_mul(more, sizeof *grown, &bytes) ? fh_realloc(list, bytes) : NULL;
            if (!grown) { fh_free(list); return false; }
            list = grown;
            cap = more;
        }
        uint32_t entry = f->out[now] - 1;
        list[n++] = (fh_tok_part){i, i + f->entries[entry].pattern.len, entry};
    }
    *found = list;
    *n_found = n;
    return true;
}

/* ---- cutting ------------------------------------------------------------------------------------------------------- */

static bool add_part(fh_tok_part **parts, size_t *n, size_t *cap, size_t start, size_t end, uint32_t id)
{
    if (*n == *cap) {
        size_t more = fh_max(16, *cap + *cap / 2), bytes;
        fh_tok_part *grown = fh_mul(more, sizeof *grown, &bytes) ? fh_realloc(*parts, bytes) : NULL;
        if (!grown) return false;
        *parts = grown;
        *cap = more;
    }
    (*parts)[(*n)++] = (fh_tok_part){start, end, id};
    return true;
}

static bool touches_word(const char *text, size_t len, size_t start, size_t end)
{
    size_t n;
    return (start && fh_tok_is_word(fh_tok_last_char(text, start, &n))) || (end < len && fh_tok_is_word(fh_tok_char(text + end, &n)));
}

fh_status fh_tok_added_split(fh_tok_call *c, const fh_tok_finder *f, const char *text, size_t len, fh_tok_part **parts, size_t *n,
                             size_t *cap)
{
    fh_tok_part *found = NULL;
    size_t n_found = 0, done = 0, matched = 0, step_len; /* done: up to where parts were given; matched: where the last pattern ended */
    bool ok = !f->nodes || find_all(f, text, len, &found, &n_found);
    while (ok && n_found--) {
        const fh_tok_added *a = &f->entries[found[n_found].id];
        size_t start = found[n_found].start, end = found[n_found].end;
        if (start < matched) continue;
        matched = end;
        if (a->single_word && touches_word(text, len, start, end)) continue;
        /* As in the reference: white space that rstrip took along may still hold matches of its own, and text goes on behind the last. */
        if (a->lstrip) {
            while (start > done && fh_tok_is_space(fh_tok_last_char(text, start, &step_len))) start -= step_len;
            start = fh_max(start, done);
        }
        if (a->rstrip)
            while (end < len && fh_tok_is_space(fh_tok_char(text + end, &step_len))) end += step_len;
        ok = start <= done || add_part(parts, n, cap, done, start, FH_TOK_NONE);
        if (ok && start < end) ok = add_part(parts, n, cap, start, end, a->id);
        done = end;
    }
    if (ok && done < len) ok = add_part(parts, n, cap, done, len, FH_TOK_NONE);
    fh_free(found);
    return ok ? FH_OK : fh_tok_nomem(c->t->name, c->err);
}

/* ---- reading ---------------------------------------------------------------------------------------------------------- */

static fh_status parse_entry(fh_tok_load *l, const fh_json *j, fh_tok_added *a, const char **content, bool *special)
{
    fh_status rc;
    if ((rc = fh_tok_get_string(l, j, "content", NULL, content)) < 0) return rc;
    if ((rc = fh_tok_get_bool(l, j, "special", false, special)) < 0) return rc;
    if ((rc = fh_tok_get_bool(l, j, "single_word", false, &a->single_word)) < 0) return rc;
    if ((rc = fh_tok_get_bool(l, j, "lstrip", false, &a->lstrip)) < 0) return rc;
    if ((rc = fh_tok_get_bool(l, j, "rstrip", false, &a->rstrip)) < 0) return rc;
    if ((rc = fh_tok_get_bool(l, j, "normalized", !*special, &a->normalized)) < 0) return rc;
    a->id = fh_tok_find_id(&l->t->vocab, *content, strlen(*content));
    return FH_OK;
}

fh_status fh_tok_added_load(fh_tok_load *l, const fh_json *list)
{
    fh_tokenizer *t = l->t;
    fh_buf blob[2] = {{0}, {0}};
    fh_tok_finder *finder[2] = {&t->raw, &t->normalized};
    fh_tok_call call;
    size_t count = list ? fh_json_count(list) : 0, index;
    fh_status rc = FH_OK;
    if (!count) return FH_OK;
    fh_tok_call_begin(&call, t, 0, l->err);
    for (int k = 0; k < 2; k++)
        if (!(finder[k]->entries = fh_calloc(count, sizeof(fh_tok_added)))) { rc = fh_tok_nomem(l->name, l->err); goto out; }
    for (int pass = 0; pass < 2; pass++) { /* specials first: of two equal patterns theirs counts */
        index = 0;
        for (const fh_json *j = fh_json_first(list); j; j = fh_json_next(j), index++) {
            fh_tok_added a = {0};
            const char *content;
            bool special;
            snprintf(l->place, sizeof l->place, "added_tokens[%zu]", index);
            if ((rc = parse_entry(l, j, &a, &content, &special)) < 0) goto out;
            if (special == (pass != 0) || !*content) continue;
            fh_tok_view text = {content, strlen(content)};
            if (a.normalized && (rc = fh_tok_normalize(&call, &text)) < 0) goto out;
            if (!text.len) continue;
            fh_buf *b = &blob[a.normalized];
            if (b->len + text.len > UINT32_MAX) { rc = fh_tok_bad(l, "more than 4 GiB of added tokens"); goto out; }
            a.pattern = (fh_tok_string){(uint32_t)b->len, (uint32_t)text.len};
            fh_buf_add(b, text.text, text.len);
            fh_tok_finder *f = finder[a.normalized];
            f->entries[f->n_entries++] = a;
        }
    }
    for (int k = 0; k < 2; k++) {
        if (blob[k].failed) { rc = fh_tok_nomem(l->name, l->err); goto out; }
        finder[k]->blob = blob[k].data, finder[k]->blob_len = blob[k].len;
        blob[k] = (fh_buf){0};
        if (finder[k]->n_entries && !build(finder[k])) { rc = fh_tok_nomem(l->name, l->err); goto out; }
    }
out:
    for (int k = 0; k < 2; k++) fh_buf_free(&blob[k]);
    fh_tok_call_end(&call);
    return rc;
}

void fh_tok_finder_free(fh_tok_finder *f)
{
    fh_free(f->entries);
    fh_free(f->blob);
    fh_free(f->edges.slots);
    fh_free(f->fail);
    fh_free(f->out);
    *f = (fh_tok_finder){0};
}
