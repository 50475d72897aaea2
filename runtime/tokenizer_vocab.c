/* The vocabulary: strings and ids both ways, the merges, and which symbols a merge can join. */
#include "runtime/tokenizer_private.h"

#include <stdio.h>
#include <string.h>

/* ---- the map ------------------------------------------------------------------------------------------------- */

bool fh_tok_map_put(fh_tok_map *m, uint64_t key, uint64_t value)
{
    if (!m->slots || m->n + m->n / 2 >= m->mask) {
        size_t slots = m->slots ? 2 * (m->mask + 1) : 64, bytes;
        fh_tok_map bigger = {.mask = slots - 1};
        if (!fh_mul(slots, sizeof *bigger.slots, &bytes) || !(bigger.slots = fh_malloc(bytes))) return false;
        memset(bigger.slots, 0xFF, bytes);
        /* Where the system placed the table is not known to whoever wrote the file: no keys can be chosen to collide. */
        bigger.seed = fh_tok_mix((uint64_t)(uintptr_t)bigger.slots);
        for (size_t i = 0; m->slots && i <= m->mask; i++)
            if (m->slots[i].key != UINT64_MAX) fh_tok_map_put(&bigger, m->slots[i].key, m->slots[i].value);
        fh_free(m->slots);
        *m = bigger;
    }
    size_t i = fh_tok_mix(key ^ m->seed) & m->mask;
    while (m->slots[i].key != UINT64_MAX && m->slots[i].key != key) i = (i + 1) & m->mask;
    m->n += m->slots[i].key != key;
    m->slots[i] = (fh_tok_slot){key, value};
    return true;
}

/* ---- strings to ids --------------------------------------------------------------------------------------------- */

static uint64_t hash(const fh_tok_vocab *v, const char *s, size_t len)
{
    uint64_t h = v->seed ^ len, word;
    for (; len >= 8; len -= 8, s += 8) {
        memcpy(&word, s, 8);
        h = fh_tok_mix(h ^ word);
    }
    word = 0;
    if (len) memcpy(&word, s, len);
    h = fh_tok_mix(h ^ word);
    return h ^ h >> 29;
}

/* The slot of a string: the one that holds its id, or the empty one where it would go. */
static size_t slot_of(const fh_tok_vocab *v, const char *s, size_t len)
{
    for (size_t i = hash(v, s, len) & v->mask;; i = (i + 1) & v->mask) {
        uint32_t id = v->slots[i];
        if (id == FH_TOK_NONE) return i;
        const fh_tok_string *t = &v->strings[id];
        if (t->len == len && !memcmp(v->blob + t->at, s, len)) return i;
    }
}

uint32_t fh_tok_find_id(const fh_tok_vocab *v, const char *s, size_t len) { return v->slots[slot_of(v, s, len)]; }

uint32_t fh_tok_find_model(const fh_tok_vocab *v, const char *s, size_t len)
{
    uint32_t id = fh_tok_find_id(v, s, len);
    return id != FH_TOK_NONE && v->flags[id] & FH_TOK_IN_VOCAB ? id : FH_TOK_NONE;
}

static fh_status add(fh_tok_load *l, const char *s, uint64_t id, uint8_t flags)
{
    fh_tok_vocab *v = &l->t->vocab;
    size_t len = strlen(s), slot = slot_of(v, s, len);
    char a[100], b[100];
    uint32_t known = v->slots[slot];
    if (known != FH_TOK_NONE) { /* an added token that the vocabulary has too: its id there counts, as in the reference */
        if (known != id)
            fh_job_say(l->job, FH_WARN, "%s: %s: '%s' says id %llu, the vocabulary says %u, which is used", l->name, l->place,
                       fh_show(a, sizeof a, s, len), (unsigned long long)id, known);
        v->flags[known] |= flags;
        return FH_OK;
    }
    if (v->flags[id] & FH_TOK_PRESENT)
        return fh_fail(l->err, FH_ECHECK, "%s: %s: id %llu belongs to two tokens, '%s' and '%s': every token needs an id of its own",
                       l->name, l->place, (unsigned long long)id, fh_show(a, sizeof a, v->blob + v->strings[id].at, v->strings[id].len),
                       fh_show(b, sizeof b, s, len));
    v->strings[id] = (fh_tok_string){(uint32_t)v->blob_len, (uint32_t)len};
    memcpy(v->blob + v->blob_len, s, len + 1);
    v->blob_len += len + 1;
    v->flags[id] = FH_TOK_PRESENT | flags;
    v->slots[slot] = (uint32_t)id;
    v->count++;
    v->size = (uint32_t)fh_max(v->size, id + 1);
    return FH_OK;
}

/* ---- reading ------------------------------------------------------------------------------------------------------- */

static fh_status read_id(fh_tok_load *l, const fh_json *j, const char *token, uint64_t *id)
{
    char shown[100];
    if (fh_json_u64(j, id) && *id < FH_TOK_MAX_IDS) return FH_OK;
    return fh_fail(l->err, FH_EFORMAT, "%s: %s: the id of '%s' must be a whole number below %d", l->name, l->place,
                   fh_show(shown, sizeof shown, token, strlen(token)), FH_TOK_MAX_IDS);
}

/* Size everything before anything is copied: the table by id, the text of all tokens, the slots. */
static fh_status make_room(fh_tok_load *l, const fh_json *vocab, const fh_json *added)
{
    fh_tok_vocab *v = &l->t->vocab;
    size_t count = 0, bytes = 0, slots = 64;
    uint64_t id, top = 0;
    for (const fh_json *j = fh_json_first(vocab); j; j = fh_json_next(j), count++) {
        if (read_id(l, j, fh_json_key(j), &id) < 0) return FH_EFORMAT;
        top = id > top ? id : top;
        bytes += strlen(fh_json_key(j)) + 1;
    }
    snprintf(l->place, sizeof l->place, "added_tokens");
    for (const fh_json *j = fh_json_first(added); j; j = fh_json_next(j), count++) {
        const char *content = fh_json_string(fh_json_get(j, "content"));
        if (!content) return fh_tok_bad(l, "every entry needs a string 'content'");
        if (read_id(l, fh_json_get(j, "id"), content, &id) < 0) return FH_EFORMAT;
        top = id > top ? id : top;
        bytes += strlen(content) + 1;
    }
    if (!count) return fh_fail(l->err, FH_EFORMAT, "%s: model.vocab: there is no token", l->name);
    if (bytes > UINT32_MAX) return fh_fail(l->err, FH_EUNSUPPORTED, "%s: model.vocab: more than 4 GiB of text", l->name);
    while (slots < 2 * count) slots *= 2;
    v->blob = fh_malloc(bytes);
    v->strings = fh_calloc((size_t)top + 1, sizeof *v->strings);
    v->flags = fh_calloc((size_t)top + 1, 1);
    v->slots = fh_malloc(slots * sizeof *v->slots);
    if (!v->blob || !v->strings || !v->flags || !v->slots) return fh_tok_nomem(l->name, l->err);
    memset(v->slots, 0xFF, slots * sizeof *v->slots);
    v->mask = slots - 1;
    v->seed = fh_tok_mix((uint64_t)(uintptr_t)v->slots); /* as in fh_tok_map_put */
    return FH_OK;
}

static fh_status load_tokens(fh_tok_load *l, const fh_json *vocab, const fh_json *added)
{
    fh_tok_vocab *v = &l->t->vocab;
    uint64_t id = 0;
    fh_status rc = make_room(l, vocab, added);
    snprintf(l->place, sizeof l->place, "model.vocab");
    for (const fh_json *j = fh_json_first(vocab); j && rc == FH_OK; j = fh_json_next(j)) {
        fh_json_u64(j, &id);
        rc = add(l, fh_json_key(j), id, FH_TOK_IN_VOCAB);
    }
    for (const fh_json *j = fh_json_first(added); j && rc == FH_OK; j = fh_json_next(j)) {
        bool special;
        snprintf(l->place, sizeof l->place, "added_tokens");
        if ((rc = fh_tok_get_bool(l, j, "special", false, &special)) < 0) break;
        fh_json_u64(fh_json_get(j, "id"), &id);
        rc = add(l, fh_json_string(fh_json_get(j, "content")), id, special ? FH_TOK_SPECIAL : 0);
    }
    if (rc < 0) return rc;
    if (v->count < v->size) {
        uint32_t first = 0;
        while (v->flags[first] & FH_TOK_PRESENT) first++;
        fh_job_say(l->job, FH_WARN, "%s: %u of the ids below %u have no token (first: %u)", l->name, v->size - v->count, v->size, first);
    }
    return FH_OK;
}

/* What a text can begin with: single characters, bytes, unk. */
static fh_status load_symbols(fh_tok_load *l, const fh_json *model)
{
    fh_tok_vocab *v = &l->t->vocab;
    const char *unk;
    fh_status rc;
    snprintf(l->place, sizeof l->place, "model");
    if ((rc = fh_tok_get_bool(l, model, "fuse_unk", false, &v->fuse_unk)) < 0) return rc;
    if ((rc = fh_tok_get_bool(l, model, "byte_fallback", false, &v->byte_fallback)) < 0) return rc;
    if ((rc = fh_tok_get_bool(l, model, "ignore_merges", false, &v->ignore_merges)) < 0) return rc;
    if ((rc = fh_tok_get_string(l, model, "unk_token", "", &unk)) < 0) return rc;
    for (uint32_t c = 0; c < FH_TOK_LOW_CHARS; c++) {
        char utf8[4];
        v->low[c] = fh_tok_find_model(v, utf8, fh_tok_put_char(utf8, c));
    }
    for (unsigned b = 0; b < 256; b++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", b);
        v->byte_ids[b] = v->byte_fallback ? fh_tok_find_model(v, name, 6) : FH_TOK_NONE;
    }
    v->unk = *unk ? fh_tok_find_model(v, unk, strlen(unk)) : FH_TOK_NONE;
    if (*unk && v->unk == FH_TOK_NONE && !(v->missing_unk = fh_strdup(unk))) return fh_tok_nomem(l->name, l->err);
    return FH_OK;
}

/* ---- merges ----------------------------------------------------------------------------------------------------------- */

/* A merge of tokens l and r happens between the last symbol of l and the first of r.  A symbol is a character's token; a byte token
 * and unk are symbols themselves, whatever characters they are written with.  Ends of `id`: at most two. */
static size_t ends_of(const fh_tok_vocab *v, uint32_t id, bool last, uint32_t out[2])
{
    size_t len, n, k = 0;
    const char *s = fh_tok_text_of(v, id, &len);
    if (len) {
        if (last) fh_tok_last_char(s, len, &n);
        else fh_tok_char(s, &n);
        uint32_t symbol = fh_tok_find_model(v, last ? s + len - n : s, n);
        if (symbol != FH_TOK_NONE) out[k++] = symbol;
    }
    bool is_byte = len == 6 && !memcmp(s, "<0x", 3) && v->byte_fallback;
    if (is_byte || id == v->unk) out[k++] = id;
    return k;
}

static bool add_merge(fh_tok_vocab *v, uint32_t left, uint32_t right, uint32_t merged)
{
    uint32_t a[2], b[2];
    size_t na = ends_of(v, left, true, a), nb = ends_of(v, right, false, b);
    for (size_t i = 0; i < na; i++)
        for (size_t k = 0; k < nb; k++)
            if (!fh_tok_map_get(&v->joins, fh_tok_pair(a[i], b[k])) && !fh_tok_map_put(&v->joins, fh_tok_pair(a[i], b[k]), 1)) return false;
    uint32_t rank = (uint32_t)v->n_merges++;
    v->merged[rank] = merged;
    return fh_tok_map_put(&v->merges, fh_tok_pair(left, right), fh_tok_pair(rank, merged)); /* of equals the last one counts */
}

/* The two parts of a merge: ["a", "b"], or "a b" as older files have it. */
static bool parts_of(const fh_json *j, const char **a, size_t *na, const char **b, size_t *nb)
{
    const char *s = fh_json_string(j);
    if (s) {
        const char *space = strchr(s, ' ');
        if (!space || strchr(space + 1, ' ')) return false;
        *a = s, *na = (size_t)(space - s);
        *b = space + 1, *nb = strlen(*b);
        return true;
    }
    const fh_json *first = fh_json_type(j) == FH_JSON_ARRAY ? fh_json_first(j) : NULL, *second = first ? fh_json_next(first) : NULL;
    if (!second || fh_json_next(second) || !(*a = fh_json_string(first)) || !(*b = fh_json_string(second))) return false;
    *na = strlen(*a), *nb = strlen(*b);
    return true;
}

static fh_status load_merges(fh_tok_load *l, const fh_json *merges)
{
    fh_tok_vocab *v = &l->t->vocab;
    size_t count = fh_json_count(merges), i = 0;
    fh_buf both = {0};
    fh_status rc = FH_OK;
    /* A merge is one way to cut a token of the vocabulary in two: there are fewer of those than bytes in it. */
    size_t most = fh_min(FH_TOK_MAX_MERGES, v->blob_len + 1000);
    if (count > most)
        return fh_fail(l->err, FH_EUNSUPPORTED, "%s: model.merges: %zu entries, where this vocabulary can have use for at most %zu",
                       l->name, count, most);
    if (!(v->merged = fh_malloc(count * sizeof *v->merged))) return fh_tok_nomem(l->name, l->err);
    for (const fh_json *j = fh_json_first(merges); j; j = fh_json_next(j), i++) {
        const char *a, *b, *text = fh_json_string(j);
        size_t na, nb;
        if (text && !strncmp(text, "#version", 8)) continue;
        if (!parts_of(j, &a, &na, &b, &nb)) {
            rc = fh_fail(l->err, FH_EFORMAT, "%s: model.merges[%zu]: must be two strings, or one with a single space in it", l->name, i);
            break;
        }
        both.len = 0;
        fh_buf_add(&both, a, na);
        fh_buf_add(&both, b, nb);
        if (both.failed) { rc = fh_tok_nomem(l->name, l->err); break; }
        uint32_t left = fh_tok_find_model(v, a, na), right = fh_tok_find_model(v, b, nb);
        uint32_t merged = fh_tok_find_model(v, both.data, both.len);
        if (left == FH_TOK_NONE || right == FH_TOK_NONE || merged == FH_TOK_NONE) {
            char shown[100];
            const char *s = left == FH_TOK_NONE ? a : right == FH_TOK_NONE ? b : both.data;
            size_t n = left == FH_TOK_NONE ? na : right == FH_TOK_NONE ? nb : both.len;
            rc = fh_fail(l->err, FH_EFORMAT, "%s: model.merges[%zu]: '%s' is not in model.vocab: do the two come from one file?",
                         l->name, i, fh_show(shown, sizeof shown, s, n));
            break;
        }
        if (!add_merge(v, left, right, merged)) { rc = fh_tok_nomem(l->name, l->err); break; }
    }
    fh_buf_free(&both);
    return rc;
}

fh_status fh_tok_vocab_load(fh_tok_load *l, const fh_json *root)
{
    const fh_json *model = fh_json_get(root, "model"), *added = fh_json_get(root, "added_tokens");
    const fh_json *vocab = fh_json_get(model, "vocab"), *merges = fh_json_get(model, "merges");
    const char *type, *affix;
    fh_status rc;
    snprintf(l->place, sizeof l->place, "model");
    if (!model || fh_json_type(model) != FH_JSON_OBJECT) return fh_tok_bad(l, "must be an object: is this a tokenizer.json?");
    if ((rc = fh_tok_get_string(l, model, "type", merges ? "BPE" : "(none)", &type)) < 0) return rc;
    if (strcmp(type, "BPE"))
        return fh_fail(l->err, FH_EUNSUPPORTED, "%s: model.type: '%s' is not supported: only BPE is", l->name, type);
    const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (size_t i = 0; i < 2; i++) {
        if ((rc = fh_tok_get_string(l, model, affixes[i], "", &affix)) < 0) return rc;
        if (*affix)
            return fh_fail(l->err, FH_EUNSUPPORTED, "%s: model.%s: '%s' is not supported: only an empty one is", l->name, affixes[i],
                           affix);
    }
    snprintf(l->place, sizeof l->place, "model.vocab");
    if (!vocab || fh_json_type(vocab) != FH_JSON_OBJECT) return fh_tok_bad(l, "must be an object of token: id");
    if (added && fh_json_type(added) != FH_JSON_ARRAY) {
        snprintf(l->place, sizeof l->place, "added_tokens");
        return fh_tok_bad(l, "must be an array");
    }
    if ((rc = load_tokens(l, vocab, added)) < 0) return rc;
    if ((rc = load_symbols(l, model)) < 0) return rc;
    snprintf(l->place, sizeof l->place, "model.merges");
    if (!merges || fh_json_type(merges) != FH_JSON_ARRAY) return fh_tok_bad(l, "must be an array");
    return load_merges(l, merges);
}

void fh_tok_vocab_free(fh_tok_vocab *v)
{
    fh_free(v->blob);
    fh_free(v->strings);
    fh_free(v->flags);
    fh_free(v->slots);
    fh_free(v->missing_unk);
    fh_free(v->merges.slots);
    fh_free(v->merged);
    fh_free(v->joins.slots);
    *v = (fh_tok_vocab){0};
}
