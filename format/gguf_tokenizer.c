/* format/gguf_tokenizer.c: the tokenizer.json and tokenizer_config.json that a GGUF's metadata make.
 *
 * A GGUF names the cutting of texts ("pre") instead of describing it, and leaves out how added tokens match: what the published tokenizers
 * of that name have is written here.  Two kinds are told from a GGUF: BPE over bytes with its list of merges ("gpt2"), and
 * SentencePiece's BPE with scores ("llama"), whose merges are found as the reference's own conversion finds them.
 */
#include "format/gguf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef enum token_kind { NORMAL = 1, UNKNOWN, CONTROL, USER, UNUSED, BYTE } token_kind; /* the numbers are the format's */

#define CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define REST "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define META "\xE2\x96\x81" /* U+2581 */

/* What a name of tokenizer.ggml.pre stands for. */
typedef struct cutting {
    const char *pre;
    const char *regex;      /* NULL: the one that is built into ByteLevel */
    bool nfc, digits, whole, bos;  /* digits: each alone; whole: a piece that is a token is not merged; bos: added where nothing is said */
} cutting;
static const cutting cuttings[] = {
    {"gpt-2", NULL, false, false, false, false},
    {"olmo", NULL, true, false, false, false},
    {"mpt", NULL, true, false, false, false},
    {"smollm", NULL, false, true, false, false},
    {"llama-bpe", CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}" REST, false, false, true, true},
    {"llama3", CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}" REST, false, false, true, true},
    {"llama-v3", CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}" REST, false, false, true, true},
    {"qwen2", CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}" REST, true, false, false, false},
};

typedef struct maker {
    const fh_gguf *g;
    fh_arena *arena;
    const char **tokens;    /* [n] */
    uint8_t *kinds;         /* [n] */
    size_t n;
    bool sentencepiece;
    const cutting *cutting; /* of BPE over bytes */
    fh_err *err;
    fh_status rc;           /* the first failure sticks */
} maker;

/* ---- asking ----------------------------------------------------------------------------------------------------- */

static void FH_PRINTF(3, 4) fail(maker *m, fh_status code, const char *fmt, ...)
{
    char what[500];
    va_list args;
    if (m->rc < 0) return;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    m->rc = fh_fail(m->err, code, "%s: %s", m->g->path, what);
}

static const fh_gguf_value *find(const maker *m, const char *key)
{
    char full[80];
    snprintf(full, sizeof full, "tokenizer.ggml.%s", key);
    return fh_gguf_find(m->g, full);
}

static bool flag(maker *m, const char *key, bool otherwise)
{
    bool b = otherwise;
    const fh_gguf_value *v = find(m, key);
    if (v && (v->type == FH_GGUF_ARRAY || !fh_gguf_bool(v, 0, &b))) fail(m, FH_EFORMAT, "'%s' is no boolean", v->key);
    return b;
}

/* A token's id; false, and *id as it was, where none is named. */
static bool id_of(maker *m, const char *key, uint64_t *id)
{
    uint64_t said = UINT64_MAX;
    const fh_gguf_value *v = find(m, key);
    if (!v) return false;
    bool whole = v->type != FH_GGUF_ARRAY && fh_gguf_u64(v, 0, &said);
    if (whole && said < m->n) {
        *id = said;
        return true;
    }
    if (v->type != FH_GGUF_U32 || said != UINT32_MAX) fail(m, FH_ECHECK, "'%s' is no token: there are %zu", v->key, m->n);
    return false;
}

/* ---- tokens ----------------------------------------------------------------------------------------------------- */

static bool is_padding(const char *token, size_t id)
{
    char expected[40];
    snprintf(expected, sizeof expected, "[PAD%zu]", id);
    return strcmp(token, expected) == 0;
}

static void read_kinds(maker *m)
{
    uint64_t kind;
    const fh_gguf_value *types = find(m, "token_type");
    memset(m->kinds, NORMAL, m->n);
    if (types && (types->type != FH_GGUF_ARRAY || types->count != m->n)) fail(m, FH_EFORMAT, "'%s' does not have an element for each token", types->key);
    for (size_t i = 0; types && i < m->n && m->rc >= 0; i++) {
        if (!fh_gguf_u64(types, i, &kind) || kind < NORMAL || kind > BYTE) fail(m, FH_EFORMAT, "'%s': token %zu is of no kind from 1 to 6", types->key, i);
        else m->kinds[i] = (uint8_t)kind;
    }
    /* Rows past the tokenizer are filled up with tokens of this name: they are none. */
    while (m->rc >= 0 && m->n && m->kinds[m->n - 1] == UNUSED && is_padding(m->tokens[m->n - 1], m->n - 1)) m->n--;
    for (size_t i = 0; m->rc >= 0 && i < m->n; i++)
        if (m->kinds[i] == UNUSED && !is_padding(m->tokens[i], i)) m->kinds[i] = NORMAL;
}

static void read_tokens(maker *m)
{
    size_t len;
    const char *s;
    const fh_gguf_value *v = find(m, "tokens");
    fh_gguf_strings strings = fh_gguf_strings_of(v);
    if (!v || v->type != FH_GGUF_ARRAY || !strings.left) {
        fail(m, FH_EFORMAT, "'tokenizer.ggml.tokens' is missing, or no array of strings");
        return;
    }
    if (strings.left > INT32_MAX) {
        fail(m, FH_EFORMAT, "'%s' has %llu tokens, at most %d are read", v->key, (unsigned long long)strings.left, INT32_MAX);
        return;
    }
    m->tokens = fh_arena_alloc(m->arena, (size_t)strings.left * sizeof *m->tokens);
    m->kinds = fh_arena_alloc(m->arena, (size_t)strings.left);
    if (!m->tokens || !m->kinds) fail(m, FH_ENOMEM, "out of memory");
    while (m->rc >= 0 && fh_gguf_next(&strings, &s, &len)) {
        if (memchr(s, 0, len) || fh_utf8_valid(s, len) != len) fail(m, FH_EUNSUPPORTED, "token %zu is no UTF-8 text, or holds a NUL", m->n);
        else if (!(m->tokens[m->n++] = fh_arena_strndup(m->arena, s, len))) fail(m, FH_ENOMEM, "out of memory");
    }
    if (m->rc >= 0) read_kinds(m);
}

/* Added tokens stand outside the vocabulary of BPE over bytes, whose entries are spelt in its alphabet. */
static bool is_added(const maker *m, size_t i) { return m->kinds[i] == CONTROL || m->kinds[i] == USER || m->kinds[i] == UNKNOWN; }

static bool in_vocabulary(const maker *m, size_t i) { return m->kinds[i] != UNUSED && (m->sentencepiece || !is_added(m, i)); }

static void add_tokens(maker *m, fh_json *top, fh_json *model)
{
    fh_json *added = fh_json_add_array(top, "added_tokens"), *vocabulary = fh_json_add_object(model, "vocab");
    for (size_t i = 0; i < m->n; i++) {
        if (in_vocabulary(m, i)) fh_json_add_u64(vocabulary, m->tokens[i], i);
        if (!is_added(m, i)) continue;
        fh_json *t = fh_json_add_object(added, NULL);
        bool user = m->kinds[i] == USER;
        fh_json_add_u64(t, "id", i);
        fh_json_add_string(t, "content", m->tokens[i]);
        fh_json_add_bool(t, "single_word", false);
        fh_json_add_bool(t, "lstrip", false);
        fh_json_add_bool(t, "rstrip", false);
        fh_json_add_bool(t, "normalized", user && !m->sentencepiece); /* as the reference has it where nothing else is said */
        fh_json_add_bool(t, "special", !user);
    }
}

/* ---- merges ----------------------------------------------------------------------------------------------------- */

typedef struct entry { const char *text; size_t len; uint32_t id; } entry;
typedef struct merge { double score; uint32_t token, left, right; } merge;

static int by_text(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    int order = memcmp(x->text, y->text, fh_min(x->len, y->len));
    return order ? order : (x->len > y->len) - (x->len < y->len);
}

/* The best score first; of one token, and of equal scores, by ids. */
static int by_score(const void *a, const void *b)
{
    const merge *x = a, *y = b;
    if (x->score != y->score) return x->score < y->score ? 1 : -1;
    if (x->token != y->token) return x->token < y->token ? -1 : 1;
    if (x->left != y->left) return x->left < y->left ? -1 : 1;
    return (x->right > y->right) - (x->right < y->right);
}

static const entry *lookup(const entry *sorted, size_t n, const char *text, size_t len)
{
    entry wanted = {text, len, 0};
    return n ? bsearch(&wanted, sorted, n, sizeof wanted, by_text) : NULL;
}

/* All ways in which two tokens make a third.  A token of n bytes can have n - 1 of them, but real vocabularies have two or three a token:
 * a file that makes many more is refused before they fill the memory. */
static void find_merges(maker *m, const fh_gguf_value *scores, merge **list, size_t *n)
{
    enum { LONGEST = 1024, MOST_A_TOKEN = 8 };
    size_t cap = 0, count = 0;
    entry *sorted = fh_malloc((m->n ? m->n : 1) * sizeof *sorted);
    if (!sorted) fail(m, FH_ENOMEM, "out of memory");
    for (size_t i = 0; m->rc >= 0 && i < m->n; i++)
        if (m->kinds[i] != UNUSED) sorted[count++] = (entry){m->tokens[i], strlen(m->tokens[i]), (uint32_t)i};
    if (m->rc >= 0 && count) qsort(sorted, count, sizeof *sorted, by_text);
    for (size_t i = 0; m->rc >= 0 && i < m->n; i++) {
        double score;
        size_t len = strlen(m->tokens[i]);
        if (m->kinds[i] != NORMAL || len > LONGEST) continue;
        if (!fh_gguf_double(scores, i, &score) || score != score) fail(m, FH_EFORMAT, "'%s': the score of token %zu is no number", scores->key, i);
        for (size_t cut = 1; cut < len && m->rc >= 0; cut++) {
            if (((unsigned char)m->tokens[i][cut] & 0xC0) == 0x80) continue; /* inside a character */
            const entry *left = lookup(sorted, count, m->tokens[i], cut), *right = left ? lookup(sorted, count, m->tokens[i] + cut, len - cut) : NULL;
            if (!right) continue;
            if (*n / MOST_A_TOKEN >= m->n) fail(m, FH_EUNSUPPORTED, "its tokens can be put together in more than %zu ways, which no real vocabulary has", *n);
            if (m->rc >= 0 && *n == cap) {
                size_t more = fh_max(1024, cap + cap / 2), bytes;
                merge *grown = fh_mul(more, sizeof *grown, &bytes) ? fh_realloc(*list, bytes) : NULL;
                if (!grown) {
                    fail(m, FH_ENOMEM, "out of memory");
                    break;
                }
                *list = grown, cap = more;
            }
            if (m->rc >= 0) (*list)[(*n)++] = (merge){score, (uint32_t)i, left->id, right->id};
        }
    }
    fh_free(sorted);
}

static void add_merges_of_scores(maker *m, fh_json *model)
{
    merge *list = NULL;
    size_t n = 0;
    const fh_gguf_value *scores = find(m, "scores");
    if (!scores || scores->type != FH_GGUF_ARRAY || scores->count < m->n) {
        fail(m, FH_EFORMAT, "'tokenizer.ggml.scores' is missing, or does not have an element for each token");
        return;
    }
    find_merges(m, scores, &list, &n);
    if (n) qsort(list, n, sizeof *list, by_score);
    if (m->rc >= 0 && n > 1 && list[0].score == list[n - 1].score)
        fail(m, FH_EUNSUPPORTED, "'%s': all scores are the same, so that the order of merges is not known: convert the model again with its tokenizer.model",
             scores->key);
    fh_json *merges = fh_json_add_array(model, "merges");
    for (size_t i = 0; i < n && m->rc >= 0; i++) {
        fh_json *pair = fh_json_add_array(merges, NULL);
        fh_json_add_string(pair, NULL, m->tokens[list[i].left]);
        fh_json_add_string(pair, NULL, m->tokens[list[i].right]);
    }
    fh_free(list);
}

static void add_merges(maker *m, fh_json *model)
{
    size_t len, i = 0;
    const char *s;
    const fh_gguf_value *v = find(m, "merges");
    fh_gguf_strings strings = fh_gguf_strings_of(v);
    fh_json *merges = fh_json_add_array(model, "merges");
    if (!v || v->type != FH_GGUF_ARRAY || v->element != FH_GGUF_STRING) fail(m, FH_EFORMAT, "'tokenizer.ggml.merges' is missing, or no array of strings");
    for (; m->rc >= 0 && fh_gguf_next(&strings, &s, &len); i++) {
        const char *space = memchr(s, ' ', len);
        if (!space || memchr(space + 1, ' ', (size_t)(s + len - space - 1)) || memchr(s, 0, len) || fh_utf8_valid(s, len) != len) {
            fail(m, FH_EFORMAT, "'%s': merge %zu is not two texts with a space between", v->key, i);
            break;
        }
        char *copy = fh_strndup(s, len);
        if (!copy) fail(m, FH_ENOMEM, "out of memory");
        else fh_json_add_string(merges, NULL, copy);
        fh_free(copy);
    }
}

/* ---- the pipeline ----------------------------------------------------------------------------------------------- */

static fh_json *typed(fh_json *to, const char *key, const char *type)
{
    fh_json *j = fh_json_add_object(to, key);
    fh_json_add_string(j, "type", type);
    return j;
}

static void add_replace(fh_json *to, const char *key, const char *what, const char *by)
{
    fh_json *j = typed(to, key, "Replace");
    fh_json_add_string(fh_json_add_object(j, "pattern"), "String", what);
    fh_json_add_string(j, "content", by);
}

static void add_byte_level(fh_json *to, const char *key, bool regex)
{
    fh_json *j = typed(to, key, "ByteLevel");
    fh_json_add_bool(j, "add_prefix_space", false);
    fh_json_add_bool(j, "trim_offsets", true);
    fh_json_add_bool(j, "use_regex", regex);
}

static void add_bytes_pipeline(maker *m, fh_json *top)
{
    const cutting *c = m->cutting;
    if (c->nfc) typed(top, "normalizer", "NFC");
    if (c->regex || c->digits) {
        fh_json *list = fh_json_add_array(typed(top, "pre_tokenizer", "Sequence"), "pretokenizers");
        fh_json *first = typed(list, NULL, c->digits ? "Digits" : "Split");
        if (c->digits) {
            fh_json_add_bool(first, "individual_digits", true);
        } else {
            fh_json_add_string(fh_json_add_object(first, "pattern"), "Regex", c->regex);
            fh_json_add_string(first, "behavior", "Isolated");
            fh_json_add_bool(first, "invert", false);
        }
        add_byte_level(list, NULL, !c->regex);
    } else {
        add_byte_level(top, "pre_tokenizer", true);
    }
    add_byte_level(top, "decoder", true);
}

static void add_sentencepiece_pipeline(maker *m, fh_json *top)
{
    bool prefix = flag(m, "add_space_prefix", true);
    const char *normalizer = "normalizer";
    fh_json *to = top;
    if (prefix) {
        to = fh_json_add_array(typed(top, normalizer, "Sequence"), "normalizers");
        normalizer = NULL;
        fh_json_add_string(typed(to, NULL, "Prepend"), "prepend", META);
    }
    add_replace(to, normalizer, " ", META);
    fh_json *list = fh_json_add_array(typed(top, "decoder", "Sequence"), "decoders");
    add_replace(list, NULL, META, " ");
    typed(list, NULL, "ByteFallback");
    typed(list, NULL, "Fuse");
    if (!prefix) return;
    fh_json *strip = typed(list, NULL, "Strip");
    fh_json_add_string(strip, "content", " ");
    fh_json_add_u64(strip, "start", 1);
    fh_json_add_u64(strip, "stop", 0);
}

static void add_affix(maker *m, fh_json *single, fh_json *specials, bool wanted, const char *key, uint64_t otherwise)
{
    uint64_t id = otherwise;
    if (!wanted || m->rc < 0) return;
    if (!id_of(m, key, &id) && !(m->sentencepiece && id < m->n)) {
        fail(m, FH_EFORMAT, "'tokenizer.ggml.%s' is missing: which token is added to a text?", key);
        return;
    }
    const char *token = m->tokens[id];
    fh_json *part = fh_json_add_object(fh_json_add_object(single, NULL), "SpecialToken");
    fh_json_add_string(part, "id", token);
    fh_json_add_u64(part, "type_id", 0);
    if (fh_json_has(specials, token)) return;
    fh_json *s = fh_json_add_object(specials, token);
    fh_json_add_string(s, "id", token);
    fh_json_add_u64(fh_json_add_array(s, "ids"), NULL, id);
    fh_json_add_string(fh_json_add_array(s, "tokens"), NULL, token);
}

static void add_template(maker *m, fh_json *top)
{
    bool bos = flag(m, "add_bos_token", m->sentencepiece || m->cutting->bos), eos = flag(m, "add_eos_token", false);
    if (!bos && !eos) return;
    fh_json *t = typed(top, "post_processor", "TemplateProcessing");
    fh_json *single = fh_json_add_array(t, "single"), *specials = fh_json_object();
    add_affix(m, single, specials, bos, "bos_token_id", 1);
    fh_json *text = fh_json_add_object(fh_json_add_object(single, NULL), "Sequence");
    fh_json_add_string(text, "id", "A");
    fh_json_add_u64(text, "type_id", 0);
    add_affix(m, single, specials, eos, "eos_token_id", 2);
    fh_json_add_array(t, "pair");
    fh_json_add(t, "special_tokens", specials);
}

/* ---- the whole -------------------------------------------------------------------------------------------------- */

static void read_kind(maker *m, const char *model)
{
    char shown[80];
    const char *pre = NULL;
    m->sentencepiece = strcmp(model, "llama") == 0;
    if (m->sentencepiece) {
        if (flag(m, "remove_extra_whitespaces", false) || find(m, "precompiled_charsmap"))
            fail(m, FH_EUNSUPPORTED, "a SentencePiece tokenizer with a normalizer of its own, which is not read");
        return;
    }
    if (strcmp(model, "gpt2") != 0) {
        fail(m, FH_EUNSUPPORTED, "tokenizers of the kind '%s' are not read: gpt2 and llama are", fh_show(shown, sizeof shown, model, strlen(model)));
        return;
    }
    fh_status rc = fh_gguf_text(m->g, "tokenizer.ggml.pre", &pre, m->err);
    if (rc < 0) {
        m->rc = rc;
        return;
    }
    for (size_t i = 0; pre && i < sizeof cuttings / sizeof *cuttings; i++)
        if (strcmp(cuttings[i].pre, pre) == 0) m->cutting = &cuttings[i];
    if (!m->cutting)
        fail(m, FH_EUNSUPPORTED, "how texts are cut ('tokenizer.ggml.pre' is %s%s%s) is not known: gpt-2, llama-bpe, qwen2, smollm, olmo and mpt are",
             pre ? "'" : "", pre ? fh_show(shown, sizeof shown, pre, strlen(pre)) : "missing", pre ? "'" : "");
}

static char *make_tokenizer(maker *m)
{
    uint64_t unknown = 0;
    fh_json *top = fh_json_object();
    fh_json_add_string(top, "version", "1.0");
    if (m->sentencepiece) add_sentencepiece_pipeline(m, top);
    else add_bytes_pipeline(m, top);
    add_template(m, top);
    fh_json *model = typed(top, "model", "BPE");
    add_tokens(m, top, model);
    if (m->sentencepiece) {
        if (id_of(m, "unknown_token_id", &unknown) || (m->n && m->kinds[0] == UNKNOWN)) fh_json_add_string(model, "unk_token", m->tokens[unknown]);
        fh_json_add_bool(model, "fuse_unk", true);
        fh_json_add_bool(model, "byte_fallback", true);
        add_merges_of_scores(m, model);
    } else {
        fh_json_add_bool(model, "ignore_merges", m->cutting->whole);
        add_merges(m, model);
    }
    char *text = m->rc >= 0 ? fh_json_print(top, false) : NULL;
    if (!text) fail(m, FH_ENOMEM, "out of memory");
    fh_json_free(top);
    return text;
}

static char *make_config(maker *m)
{
    static const char *const keys[][2] = {
        {"bos_token", "bos_token_id"}, {"eos_token", "eos_token_id"}, {"unk_token", "unknown_token_id"}, {"pad_token", "padding_token_id"}};
    const char *template = NULL;
    uint64_t id;
    char *text = NULL;
    fh_json *top = fh_json_object();
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (id_of(m, keys[i][1], &id)) fh_json_add_string(top, keys[i][0], m->tokens[id]);
    fh_status rc = m->rc < 0 ? m->rc : fh_gguf_text(m->g, "tokenizer.chat_template", &template, m->err);
    if (rc < 0) m->rc = rc;
    if (template) fh_json_add_string(top, "chat_template", template);
    if (m->rc >= 0 && !(text = fh_json_print(top, false))) fail(m, FH_ENOMEM, "out of memory");
    fh_json_free(top);
    return text;
}

fh_status fh_gguf_tokenizer(const fh_gguf *g, char **text, size_t *len, char **config, fh_err *err)
{
    const char *model;
    *text = *config = NULL;
    *len = 0;
    fh_status rc = fh_gguf_text(g, "tokenizer.ggml.model", &model, err);
    if (rc < 0 || !model || strcmp(model, "none") == 0 || strcmp(model, "no_vocab") == 0) return rc;
    maker m = {.g = g, .arena = fh_arena_new(), .err = err};
    if (!m.arena) return fh_fail(err, FH_ENOMEM, "%s: out of memory", g->path);
    read_kind(&m, model);
    if (m.rc >= 0) read_tokens(&m);
    if (m.rc >= 0) *text = make_tokenizer(&m);
    if (m.rc >= 0) *config = make_config(&m);
    if (m.rc < 0) {
        fh_free(*text);
        *text = NULL;
    } else {
        *len = strlen(*text);
    }
    fh_arena_free(m.arena);
    return m.rc;
}
