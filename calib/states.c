/* What the head reads: documents, or text the model says itself, through the body. */
#include "calib/calib.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { BATCH_ROWS = 2048, VOICES = 64 };

static fh_status reserve(fh_states *s, size_t n, const fh_model *m, fh_err *err)
{
    size_t cells, bytes, d = m->config->hidden;
    *s = (fh_states){.d = d, .seen = fh_score_ranges(m->body), .layers = m->config->layers};
    if (fh_mul(n, d, &cells) && fh_mul(cells, sizeof(float), &bytes)) {
        s->hidden = fh_malloc(fh_max(bytes, 1));
        s->ids = fh_malloc(fh_max(n, 1) * sizeof *s->ids);
        s->next = fh_malloc(fh_max(n, 1) * sizeof *s->next);
        s->document = fh_malloc(fh_max(n, 1) * sizeof *s->document);
        s->part = fh_calloc(fh_max(n, 1), 1);
        if (s->hidden && s->ids && s->next && s->document && s->part && s->seen) return FH_OK;
    }
    fh_states_free(s);
    return fh_fail(err, FH_ENOMEM, "out of memory for %zu states of %zu numbers: ask for fewer with --tokens", n, d);
}

void fh_states_free(fh_states *s)
{
    if (s->file) {
        fh_tensors_close(s->file);
        fh_free(s->part); /* copied: it may be dealt anew */
    } else {
        fh_free(s->hidden);
        fh_free(s->ids);
        fh_free(s->next);
        fh_free(s->document);
        fh_free(s->part);
    }
    fh_free(s->seen);
    *s = (fh_states){0};
}

/* The longest window that the model and the prefix allow. */
static uint32_t window_of(const fh_model *m, const fh_states_params *p, size_t prefix)
{
    uint32_t most = m->config->max_position ? m->config->max_position : 2048, w = p->window ? p->window : 512;
    w = w < most ? w : most;
    return w > prefix + 1 ? w - (uint32_t)prefix : 1;
}

uint32_t fh_states_window(const fh_model *m, const fh_states_params *p)
{
    const uint32_t *prefix, *suffix;
    size_t n = 0, ns;
    if (m->tokenizer && fh_tokenizer_affixes(m->tokenizer, &prefix, &n, &suffix, &ns) < 0) n = 0;
    return window_of(m, p, n);
}

/* ---- from documents --------------------------------------------------------------------------------------- */

typedef struct batch { fh_kv *kv[BATCH_ROWS]; uint32_t lens[BATCH_ROWS]; uint32_t *tokens; size_t *from; size_t n, rows; } batch;

static fh_status run_batch(fh_states *s, batch *b, const fh_model *m, const uint32_t *prefix, size_t n_prefix, float *hidden, const fh_job *job, fh_err *err)
{
    fh_status rc = FH_OK;
    size_t d = s->d;
    for (size_t i = 0; i < b->n; i++) {
        b->kv[i] = NULL;
        if ((rc = fh_kv_new(&b->kv[i], m->body, err)) < 0) { b->n = i; goto out; }
        fh_kv_watch(b->kv[i], s->seen);
    }
    if ((rc = fh_body_forward(m->body, fh_job_pool(job), b->n, b->kv, b->lens, b->tokens, hidden, err)) < 0) goto out;
    for (size_t i = 0, row = 0; i < b->n; row += b->lens[i++])
        memcpy(s->hidden + b->from[i] * d, hidden + (row + n_prefix) * d, (b->lens[i] - n_prefix) * d * sizeof(float));
out:
    for (size_t i = 0; i < b->n; i++) fh_kv_free(b->kv[i]);
    b->n = b->rows = 0;
    (void)prefix;
    return rc;
}

fh_status fh_states_of_corpus(fh_states *out, const fh_model *m, const fh_corpus *c, const fh_states_params *p, const fh_job *job, fh_err *err)
{
    fh_status rc;
    fh_states s = {0};
    const uint32_t *prefix = NULL, *suffix = NULL;
    size_t n_prefix = 0, n_suffix = 0, d = m->config->hidden;
    float *hidden = NULL;
    batch *b = fh_calloc(1, sizeof *b);
    if (m->tokenizer && (rc = fh_tokenizer_affixes(m->tokenizer, &prefix, &n_prefix, &suffix, &n_suffix)) < 0) goto out;
    uint32_t w = window_of(m, p, n_prefix);
    size_t most = BATCH_ROWS + w + n_prefix;
    if ((rc = reserve(&s, c->n, m, err)) < 0) goto out;
    hidden = fh_malloc(most * d * sizeof *hidden);
    if (b) b->tokens = fh_malloc(most * sizeof *b->tokens), b->from = fh_malloc(BATCH_ROWS * sizeof *b->from);
    if (!hidden || !b || !b->tokens || !b->from) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    for (size_t doc = 0; doc < c->documents; doc++) {
        for (size_t at = c->starts[doc]; at < c->starts[doc + 1];) {
            size_t n = fh_min(w, c->starts[doc + 1] - at);
            for (size_t i = 0; i < n_prefix; i++) b->tokens[b->rows + i] = prefix[i];
            for (size_t i = 0; i < n; i++) {
                if (c->ids[at + i] >= m->config->vocab) {
                    rc = fh_fail(err, FH_ECHECK, "the text encodes to token %u, but the head has %u rows: is this tokenizer the model's?", c->ids[at + i], m->config->vocab);
                    goto out;
                }
                b->tokens[b->rows + n_prefix + i] = s.ids[at + i] = c->ids[at + i];
                s.next[at + i] = i + 1 < n ? c->ids[at + i + 1] : FH_NO_TOKEN;
                s.document[at + i] = (uint32_t)doc;
            }
            b->from[b->n] = at, b->lens[b->n] = (uint32_t)(n_prefix + n);
            b->n++, b->rows += n_prefix + n, at += n;
            if (b->rows >= BATCH_ROWS || b->n == BATCH_ROWS) {
                if (fh_job_stopped(job)) { rc = fh_fail(err, FH_EINTERRUPTED, "interrupted"); goto out; }
                if ((rc = run_batch(&s, b, m, prefix, n_prefix, hidden, job, err)) < 0) goto out;
                fh_job_progress(job, "hidden states", (double)at, (double)c->n, "tokens");
            }
        }
    }
    if (b->n && (rc = run_batch(&s, b, m, prefix, n_prefix, hidden, job, err)) < 0) goto out;
    fh_job_progress(job, "hidden states", (double)c->n, (double)c->n, "tokens");
    s.n = c->n;
    *out = s, s = (fh_states){0};
out:
    fh_free(hidden);
    if (b) fh_free(b->tokens), fh_free(b->from);
    fh_free(b);
    fh_states_free(&s);
    return rc;
}

/* ---- from the model's own words ------------------------------------------------------------------------------ */

/* VOICES documents are spoken side by side, so that their products are matrix products.  Document number i draws from its
 * own stream of random numbers; which voice speaks it does not enter. */
typedef struct voice { fh_kv *kv; fh_rng rng; uint32_t document, token; size_t position; } voice;
typedef struct speech {
    const fh_model *m;
    fh_score_range *seen;
    voice v[VOICES];
    float *hidden, *logits;       /* [VOICES, D], [VOICES, V] */
    uint32_t *live; size_t n_live;
    uint32_t drawn[VOICES];
} speech;

/* One token from the softmax at temperature 1, over live tokens.  (fh_sample draws from a sorted list, which top-k and top-p need; here sorting would cost
 * more than the body.) */
static void draw_task(void *ctx, size_t i, unsigned worker)
{
    speech *s = ctx;
    size_t vocab = s->m->config->vocab;
    float *z = s->logits + i * vocab;
    for (size_t j = 0; s->m->dead && j < vocab; j++) if (s->m->dead[j]) z[j] = -INFINITY;
    s->drawn[i] = (uint32_t)fh_softmax_draw(z, vocab, fh_rng_double(&s->v[i].rng));
    (void)worker;
}

static bool is_eos(const fh_config *c, uint32_t id)
{
    for (size_t i = 0; i < c->n_eos; i++) if (c->eos[i] == id) return true;
    return false;
}

/* What a document begins with: the tokenizer's prefix where it has one, else the model's bos, else its eos, else a live token by lot. */
static uint32_t first_token(speech *s, voice *v)
{
    const uint32_t *prefix = NULL, *suffix;
    size_t n = 0, ns;
    int64_t bos;
    const fh_config *c = s->m->config;
    if (s->m->tokenizer && fh_tokenizer_affixes(s->m->tokenizer, &prefix, &n, &suffix, &ns) == FH_OK && n && prefix[n - 1] < c->vocab) return prefix[n - 1];
    if (fh_json_i64(fh_json_get(c->json, "bos_token_id"), &bos) && bos >= 0 && bos < (int64_t)c->vocab) return (uint32_t)bos;
    if (c->n_eos) return c->eos[0];
    return s->live[fh_rng_below(&v->rng, s->n_live)];
}

static fh_status open_voice(speech *s, voice *v, uint32_t document, uint64_t seed, fh_err *err)
{
    fh_kv_free(v->kv);
    v->kv = NULL, v->document = document, v->position = 0;
    fh_rng_seed(&v->rng, seed, document);
    v->token = first_token(s, v);
    fh_status rc = fh_kv_new(&v->kv, s->m->body, err);
    if (rc == FH_OK) fh_kv_watch(v->kv, s->seen);
    return rc;
}

fh_status fh_states_of_self(fh_states *out, fh_corpus *said, const fh_model *m, const fh_states_params *p, const fh_job *job, fh_err *err)
{
    fh_status rc;
    fh_states st = {0};
    size_t d = m->config->hidden, vocab = m->config->vocab, total = p->tokens, n = 0;
    uint32_t documents = 0, window = window_of(m, p, 0);
    speech *s = fh_calloc(1, sizeof *s);
    if ((rc = reserve(&st, total, m, err)) < 0) goto out;
    if (!s) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    s->m = m, s->seen = st.seen;
    s->hidden = fh_malloc(VOICES * d * sizeof(float));
    s->logits = fh_malloc(VOICES * vocab * sizeof(float));
    s->live = fh_malloc(vocab * sizeof *s->live);
    if (!s->hidden || !s->logits || !s->live) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    for (size_t i = 0; i < vocab; i++) if (!m->dead || !m->dead[i]) s->live[s->n_live++] = (uint32_t)i;
    size_t voices = fh_min(VOICES, (total + 63) / 64);
    for (size_t i = 0; i < voices; i++) if ((rc = open_voice(s, &s->v[i], documents++, p->seed, err)) < 0) goto out;
    while (n < total) {
        fh_kv *kv[VOICES];
        uint32_t lens[VOICES], tokens[VOICES];
        if (fh_job_stopped(job)) { rc = fh_fail(err, FH_EINTERRUPTED, "interrupted"); goto out; }
        for (size_t i = 0; i < voices; i++) kv[i] = s->v[i].kv, lens[i] = 1, tokens[i] = s->v[i].token;
        if ((rc = fh_body_forward(m->body, fh_job_pool(job), voices, kv, lens, tokens, s->hidden, err)) < 0) goto out;
        if ((rc = fh_dense_logits(&m->dense, fh_job_pool(job), s->hidden, voices, s->logits, err)) < 0) goto out;
        fh_pool_run(fh_job_pool(job), voices, draw_task, s);
        for (size_t i = 0; i < voices; i++) {
            voice *v = &s->v[i];
            if (s->drawn[i] == vocab) { rc = fh_fail(err, FH_ECHECK, "the model's logits cannot be sampled: are they finite?"); goto out; }
            if (n < total) {
                memcpy(st.hidden + n * d, s->hidden + i * d, d * sizeof(float));
                st.ids[n] = v->token, st.next[n] = s->drawn[i], st.document[n] = v->document, n++;
            }
            v->token = s->drawn[i], v->position++;
            if (is_eos(m->config, v->token) || v->position >= window)
                if ((rc = open_voice(s, v, documents++, p->seed, err)) < 0) goto out;
        }
        fh_job_progress(job, "the model speaks", (double)n, (double)total, "tokens");
    }
    st.n = n;
    if (said) {
        *said = (fh_corpus){.form = "self", .n = n, .documents = documents, .documents_known = true};
        said->ids = fh_malloc(fh_max(n, 1) * sizeof *said->ids);
        said->starts = fh_calloc((size_t)documents + 1, sizeof *said->starts);
        said->names = fh_strdup("self");
        if (!said->ids || !said->starts || !said->names) { fh_corpus_free(said); rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
        /* The positions of one document lie VOICES apart; here they come together. */
        for (size_t i = 0; i < n; i++) said->starts[st.document[i] + 1]++;
        for (uint32_t i = 0; i < documents; i++) said->starts[i + 1] += said->starts[i];
        size_t *at = fh_malloc(((size_t)documents + 1) * sizeof *at);
        if (!at) { fh_corpus_free(said); rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
        memcpy(at, said->starts, ((size_t)documents + 1) * sizeof *at);
        for (size_t i = 0; i < n; i++) said->ids[at[st.document[i]]++] = st.next[i];
        fh_free(at);
        uint8_t digest[32];
        fh_sha256_of(digest, said->ids, n * sizeof *said->ids);
        fh_sha256_hex(said->digest, digest);
    }
    *out = st, st = (fh_states){0};
out:
    if (s) {
        for (size_t i = 0; i < VOICES; i++) fh_kv_free(s->v[i].kv);
        fh_free(s->hidden);
        fh_free(s->logits);
        fh_free(s->live);
    }
    fh_free(s);
    fh_states_free(&st);
    return rc;
}

/* ---- parts ----------------------------------------------------------------------------------------------- */

uint32_t fh_states_documents(const fh_states *s)
{
    uint32_t documents = 0;
    for (size_t i = 0; i < s->n; i++) if (s->document[i] >= documents) documents = s->document[i] + 1;
    return documents;
}

/* Documents in a seeded order; each goes to the part that lacks most of its share. */
fh_status fh_deal(uint8_t *part, const size_t *sizes, uint32_t documents, uint64_t seed, fh_err *err)
{
    static const double share[FH_PARTS] = {0.5, 0.35, 0.15};
    size_t n = 0, got[FH_PARTS] = {0};
    uint32_t *order = fh_malloc(fh_max(documents, 1) * sizeof *order);
    fh_rng rng;
    if (!order) return fh_fail(err, FH_ENOMEM, "out of memory");
    fh_rng_seed(&rng, seed, 0x51);
    for (uint32_t i = 0; i < documents; i++) order[i] = i, n += sizes[i];
    fh_rng_shuffle(&rng, order, documents);
    for (uint32_t i = 0; i < documents; i++) {
        uint32_t doc = order[i];
        int best = 0;
        for (int k = 1; k < FH_PARTS; k++)
            if (share[k] * (double)n - (double)got[k] > share[best] * (double)n - (double)got[best]) best = k;
        part[doc] = (uint8_t)best, got[best] += sizes[doc];
    }
    fh_free(order);
    return FH_OK;
}

fh_status fh_states_split(fh_states *s, uint64_t seed, fh_err *err)
{
    uint32_t documents = fh_states_documents(s);
    size_t *sizes = fh_calloc(fh_max(documents, 1), sizeof *sizes);
    uint8_t *part = fh_calloc(fh_max(documents, 1), 1);
    fh_status rc = sizes && part ? FH_OK : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc < 0) goto out;
    for (size_t i = 0; i < s->n; i++) sizes[s->document[i]]++;
    if ((rc = fh_deal(part, sizes, documents, seed, err)) < 0) goto out;
    for (size_t i = 0; i < s->n; i++) s->part[i] = part[s->document[i]];
out:
    fh_free(sizes);
    fh_free(part);
    return rc;
}

/* ---- files ----------------------------------------------------------------------------------------------- */

fh_status fh_states_save(const fh_states *s, const char *path, const fh_json *metadata, fh_err *err)
{
    const fh_st_spec specs[] = {
        {"hidden", FH_F32, 2, {s->n, s->d}}, {"ids", FH_U32, 1, {s->n}}, {"next", FH_U32, 1, {s->n}}, {"document", FH_U32, 1, {s->n}}, {"part", FH_U8, 1, {s->n}},
    };
    const void *const data[] = {s->hidden, s->ids, s->next, s->document, s->part};
    return fh_st_save(path, FH_OWNER_READS, specs, data, sizeof specs / sizeof *specs, metadata, err);
}

fh_status fh_states_load(fh_states *out, const char *path, fh_err *err)
{
    static const struct { const char *name; unsigned dtypes, rank; } want[] = {
        {"hidden", 1u << FH_F32, 2}, {"ids", 1u << FH_U32, 1}, {"next", 1u << FH_U32, 1}, {"document", 1u << FH_U32, 1}, {"part", 1u << FH_U8, 1},
    };
    const fh_tensor *t[5];
    uint64_t shape[2] = {UINT64_MAX, UINT64_MAX};
    fh_states s = {0};
    fh_status rc = fh_tensors_open(&s.file, path, err);
    if (rc < 0) return rc;
    for (size_t i = 0; i < 5; i++) {
        if ((rc = fh_tensors_need(&t[i], s.file, want[i].name, want[i].dtypes, want[i].rank, shape, err)) < 0) goto out;
        if (i == 0) shape[0] = t[0]->shape[0];
    }
    s.n = (size_t)t[0]->shape[0], s.d = (size_t)t[0]->shape[1];
    for (size_t i = 0; i < 4; i++)
        if ((uintptr_t)t[i]->data % 4) { rc = fh_fail(err, FH_EFORMAT, "%s: tensor '%s' is not aligned to its type: write the states again", path, want[i].name); goto out; }
    s.hidden = (float *)(uintptr_t)t[0]->data, s.ids = (uint32_t *)(uintptr_t)t[1]->data;
    s.next = (uint32_t *)(uintptr_t)t[2]->data, s.document = (uint32_t *)(uintptr_t)t[3]->data;
    if (!(s.part = fh_malloc(fh_max(s.n, 1)))) { rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", path); goto out; }
    memcpy(s.part, t[4]->data, s.n);
    for (size_t i = 0; i < s.n; i++) /* numbers rise by one from 0; a document may be empty, but only of what the model says */
        if (s.document[i] > s.n + VOICES) { rc = fh_fail(err, FH_EFORMAT, "%s: position %zu is of document %u, but there are %zu positions: write the states again", path, i, s.document[i], s.n); goto out; }
    for (size_t i = 0; i < s.n * s.d; i++)
        if (!isfinite(s.hidden[i])) { rc = fh_fail(err, FH_ECHECK, "%s: the state at position %zu is not finite", path, i / s.d); goto out; }
    *out = s, s = (fh_states){0};
out:
    fh_states_free(&s);
    return rc;
}

/* ---- states recorded elsewhere ------------------------------------------------------------------------------- */

fh_status fh_read_states(fh_tensors **file, const float **data, float **owned, size_t *n, const char *path, size_t width, fh_err *err)
{
    fh_status rc = fh_tensors_open(file, path, err);
    *owned = NULL;
    if (rc < 0) return rc;
    const fh_tensor *t = fh_tensors_find(*file, "hidden");
    if (!t) return fh_fail(err, FH_EFORMAT, "%s: has no tensor 'hidden': states are 'hidden' [N, %zu] or [B, T, %zu], float32", path, width, width);
    if (t->dtype != FH_F32 || (t->rank != 2 && t->rank != 3)) return fh_fail(err, FH_ECHECK, "%s: tensor 'hidden' is %s of rank %u: states are float32 [N, %zu] or [B, T, %zu]", path, fh_dtype_st_name(t->dtype), t->rank, width, width);
    if (t->shape[t->rank - 1] != width) return fh_fail(err, FH_ECHECK, "%s: states of width %llu for a head of width %zu: are they of this model?", path, (unsigned long long)t->shape[t->rank - 1], width);
    *n = (size_t)(t->bytes / (width * sizeof(float)));
    *data = t->data;
    if ((uintptr_t)t->data % sizeof(float)) {
        if (!(*owned = fh_malloc((size_t)t->bytes + 1))) return fh_fail(err, FH_ENOMEM, "%s: out of memory", path);
        memcpy(*owned, t->data, (size_t)t->bytes);
        *data = *owned;
    }
    for (size_t i = 0; i < *n * width; i++)
        if (!isfinite((*data)[i])) return fh_fail(err, FH_ECHECK, "%s: the state at position %zu is not finite", path, i / width);
    return FH_OK;
}
