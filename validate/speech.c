/* What a head does to what a model says: how far greedy texts agree, and whether last words are still said rightly. */
#include "validate/judge.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- lines of a file ------------------------------------------------------------------------------------------------ */

/* Every line of a file that is not empty, in turn: itself, or of JSON lines the string under the first of `keys` that is there. */
typedef fh_status fh_on_line(void *ctx, const char *text, size_t len, size_t number, fh_err *err);

static fh_status one_row(const char *line, size_t n, const char *path, size_t number, const char *const *keys, fh_on_line *on_line, void *ctx, fh_err *err)
{
    fh_json *j = NULL;
    const char *text = NULL;
    char *name = fh_sprintf("%s: row %zu", path, number);
    fh_status rc = name ? fh_json_parse(&j, line, n, name, err) : fh_fail(err, FH_ENOMEM, "%s: out of memory", path);
    for (size_t i = 0; rc == FH_OK && keys[i] && !text; i++) text = fh_json_string(fh_json_get(j, keys[i]));
    if (rc == FH_OK && !text) rc = fh_fail(err, FH_EFORMAT, "%s: has no \"%s\" that is a string", name, keys[0]);
    if (rc == FH_OK && *text) rc = on_line(ctx, text, strlen(text), number, err);
    fh_json_free(j);
    fh_free(name);
    return rc;
}

static fh_status each_line(const char *path, const char *what, const char *const *keys, fh_on_line *on_line, void *ctx, const fh_job *job, fh_err *err)
{
    char *text = NULL;
    size_t len = 0, number = 0;
    fh_status rc = fh_text_read(&text, &len, path, job, err);
    if (rc < 0) return rc;
    bool rows = text[0] == '{';
    for (size_t at = 0; rc == FH_OK && at < len;) {
        const char *line = text + at, *end = memchr(line, '\n', len - at);
        size_t n = end ? (size_t)(end - line) : len - at;
        at += n + 1, number++;
        while (n && strchr(" \t\r", line[n - 1])) n--;
        if (!n) continue;
        rc = rows ? one_row(line, n, path, number, keys, on_line, ctx, err) : on_line(ctx, line, n, number, err);
        fh_job_progress(job, what, (double)fh_min(at, len), (double)len, "bytes");
    }
    fh_free(text);
    return rc;
}

/* ---- prompts ----------------------------------------------------------------------------------------------------------- */

typedef struct prompts { const fh_model *m; uint32_t *ids; size_t *starts, n, most; } prompts;

static fh_status add_prompt(void *ctx, const char *text, size_t len, size_t number, fh_err *err)
{
    prompts *p = ctx;
    uint32_t *ids = NULL;
    size_t n = 0;
    (void)number;
    if (p->n == p->most) return FH_OK;
    fh_status rc = fh_tokenizer_encode(p->m->tokenizer, text, len, true, &ids, &n, err);
    if (rc < 0 || !n) goto out;
    size_t have = p->starts ? p->starts[p->n] : 0;
    uint32_t *more = fh_realloc(p->ids, (have + n) * sizeof *more);
    if (more) p->ids = more;
    size_t *starts = fh_realloc(p->starts, (p->n + 2) * sizeof *starts);
    if (starts) p->starts = starts;
    if (!more || !starts) { rc = fh_fail(err, FH_ENOMEM, "out of memory for prompts"); goto out; }
    memcpy(p->ids + have, ids, n * sizeof *ids);
    p->starts[p->n] = have, p->starts[++p->n] = have + n;
out:
    fh_free(ids);
    return rc;
}

fh_status fh_prompts_read(uint32_t **ids, size_t **starts, size_t *n, const fh_model *m, const char *path, size_t most, const fh_job *job, fh_err *err)
{
    static const char *const keys[] = {"prompt", "text", NULL};
    prompts p = {.m = m, .most = most};
    fh_status rc = each_line(path, "reading prompts", keys, add_prompt, &p, job, err);
    if (rc == FH_OK && !p.n) rc = fh_fail(err, FH_EFORMAT, "%s: has no prompt in it", path);
    if (rc < 0) { fh_free(p.ids), fh_free(p.starts); return rc; }
    *ids = p.ids, *starts = p.starts, *n = p.n;
    return FH_OK;
}

/* ---- how far they agree --------------------------------------------------------------------------------------------------- */

typedef struct said { uint32_t *ids; size_t n; } said;
static bool keep(void *ctx, uint32_t id) { said *s = ctx; s->ids[s->n++] = id; return true; }
static int by_size(const void *a, const void *b) { const size_t *x = a, *y = b; return (*x > *y) - (*x < *y); }

fh_status fh_diverge(fh_divergence *out, const fh_model *m, const uint32_t *ids, const size_t *starts, size_t n_prompts, size_t say, const fh_job *job,
                     fh_err *err)
{
    fh_status rc = FH_OK;
    said s[2] = {{fh_malloc(fh_max(say, 1) * sizeof(uint32_t)), 0}, {fh_malloc(fh_max(say, 1) * sizeof(uint32_t)), 0}};
    size_t *alike = fh_malloc(fh_max(n_prompts, 1) * sizeof *alike), sum = 0;
    *out = (fh_divergence){0};
    if (!s[0].ids || !s[1].ids || !alike) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    for (size_t i = 0; i < n_prompts; i++) {
        for (int head = 0; head < 2; head++) {
            fh_generate_params g = {.tokens = say, .head = head ? FH_HEAD_DENSE : FH_HEAD_FLASH, .on_token = keep, .ctx = &s[head]};
            fh_generate_stats stats;
            s[head].n = 0;
            if ((rc = fh_generate(m, ids + starts[i], starts[i + 1] - starts[i], &g, job, &stats, err)) < 0) goto out;
        }
        size_t same = 0, least = fh_min(s[0].n, s[1].n);
        while (same < least && s[0].ids[same] == s[1].ids[same]) same++;
        out->identical += same == s[0].n && same == s[1].n;
        alike[i] = same, sum += same;
        fh_job_progress(job, "both heads speak", (double)(i + 1), (double)n_prompts, "prompts");
    }
    if (n_prompts) {
        qsort(alike, n_prompts, sizeof *alike, by_size);
        out->mean = (double)sum / (double)n_prompts, out->min = alike[0];
        out->median = ((double)alike[(n_prompts - 1) / 2] + (double)alike[n_prompts / 2]) / 2;
    }
    out->prompts = n_prompts, out->tokens = say;
out:
    fh_free(s[0].ids);
    fh_free(s[1].ids);
    fh_free(alike);
    return rc;
}

/* ---- last words ------------------------------------------------------------------------------------------------------------ */

typedef struct words { const fh_model *m; fh_last_words *out; fh_scratch *scratch; size_t suffix; const fh_job *job; } words;

/* Are the tokens ids[from .. n) what the head says, each after all before it? */
static fh_status says(bool right[2], const words *w, const uint32_t *ids, size_t from, size_t n, fh_err *err)
{
    size_t d = w->m->config->hidden, states = n - from;
    uint32_t len = (uint32_t)(n - 1);
    fh_kv *kv = NULL;
    float *hidden = fh_malloc(len * d * sizeof *hidden);
    uint32_t *said_by = fh_malloc(2 * states * sizeof *said_by);
    fh_status rc = hidden && said_by ? fh_kv_new(&kv, w->m->body, err) : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc < 0 || (rc = fh_body_forward(w->m->body, fh_job_pool(w->job), 1, &kv, &len, ids, hidden, err)) < 0) goto out;
    const float *first = hidden + (from - 1) * d;
    if ((rc = fh_head_greedy(w->m->head, w->scratch, first, states, NULL, said_by, err)) < 0) goto out;
    fh_job quiet = {.pool = fh_job_pool(w->job)};
    if ((rc = fh_dense_best(&w->m->dense, first, NULL, states, 1, said_by + states, &quiet, err)) < 0) goto out;
    for (size_t h = 0; h < 2; h++) {
        right[h] = true;
        for (size_t i = 0; i < states; i++) right[h] = right[h] && said_by[h * states + i] == ids[from + i];
    }
out:
    fh_kv_free(kv);
    fh_free(hidden);
    fh_free(said_by);
    return rc;
}

static fh_status one_word(void *ctx, const char *text, size_t len, size_t number, fh_err *err)
{
    words *w = ctx;
    uint32_t *all = NULL, *before = NULL;
    size_t n = 0, from = 0, cut = len;
    bool right[2];
    if (fh_job_stopped(w->job)) return fh_fail(err, FH_EINTERRUPTED, "interrupted");
    while (cut && text[cut - 1] != ' ') cut--; /* the word begins at the last space, which belongs to its first token */
    if (cut < 2) return FH_OK;                 /* nothing before it */
    fh_status rc = fh_tokenizer_encode(w->m->tokenizer, text, len, true, &all, &n, err);
    if (rc < 0 || (rc = fh_tokenizer_encode(w->m->tokenizer, text, cut - 1, true, &before, &from, err)) < 0) goto out;
    n -= fh_min(n, w->suffix), from -= fh_min(from, w->suffix);
    from = fh_min(from, n);
    while (from && memcmp(all, before, from * sizeof *all)) from--; /* tokens that the word changed belong to it */
    if (!from || from == n) goto out;
    uint32_t most = fh_body_max_position(w->m->body);
    size_t skip = n - 1 > most ? n - 1 - most : 0; /* the nearest context is kept */
    if (skip >= from) goto out;
    if ((rc = says(right, w, all + skip, from - skip, n - skip, err)) < 0) goto out;
    w->out->words++, w->out->flash += right[0], w->out->dense += right[1], w->out->same += right[0] == right[1];
out:
    fh_free(all);
    fh_free(before);
    (void)number;
    return rc;
}

fh_status fh_say_last_words(fh_last_words *out, const fh_model *m, const char *path, const fh_job *job, fh_err *err)
{
    static const char *const keys[] = {"text", NULL};
    words w = {.m = m, .out = out, .job = job};
    const uint32_t *prefix, *suffix;
    size_t n_prefix;
    *out = (fh_last_words){0};
    fh_status rc = fh_tokenizer_affixes(m->tokenizer, &prefix, &n_prefix, &suffix, &w.suffix);
    if (rc < 0) return fh_fail(err, rc, "%s: the tokenizer's prefix and suffix cannot be told", m->name);
    rc = fh_scratch_on(&w.scratch, m->head, fh_job_pool(job), err);
    if (rc == FH_OK) rc = each_line(path, "last words", keys, one_word, &w, job, err);
    if (rc == FH_OK && !out->words) rc = fh_fail(err, FH_EFORMAT, "%s: has no line that ends in a word with something before it", path);
    fh_scratch_free(w.scratch);
    return rc;
}
