/* Opening a tokenizer, and encoding: which part does what in which order. */
#include "runtime/tokenizer_private.h"

#include <stdio.h>
#include <string.h>

bool fh_tok_ids_room(fh_tok_ids *a, size_t n)
{
    size_t need, bytes;
    if (!fh_add(a->n, n, &need)) return false;
    if (need <= a->cap && a->ids) return true;
    size_t cap = fh_max(fh_max(need, 16), a->cap + a->cap / 2);
    uint32_t *ids = fh_mul(cap, sizeof *ids, &bytes) ? fh_realloc(a->ids, bytes) : NULL;
    if (!ids) return false;
    a->ids = ids;
    a->cap = cap;
    return true;
}

bool fh_tok_ids_add(fh_tok_ids *a, uint32_t id)
{
    if (!fh_tok_ids_room(a, 1)) return false;
    a->ids[a->n++] = id;
    return true;
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

static fh_status load(fh_tok_load *l, const fh_json *root, const fh_json *config)
{
    fh_tokenizer *t = l->t;
    const fh_json *decoder = fh_json_get(root, "decoder");
    const char *version;
    fh_status rc;
    snprintf(l->place, sizeof l->place, "(top)");
    if (fh_json_type(root) != FH_JSON_OBJECT) return fh_tok_bad(l, "must be an object: is this a tokenizer.json?");
    if ((rc = fh_tok_get_string(l, root, "version", "1.0", &version)) < 0) return rc;
    if (strcmp(version, "1.0")) return fh_fail(l->err, FH_EUNSUPPORTED, "%s: version '%s' is not supported: only 1.0 is", l->name, version);
    fh_tok_images(t->images);
    fh_tok_bytes(t->bytes);
    if ((rc = fh_tok_vocab_load(l, root)) < 0) return rc;
    rc = fh_tok_steps_parse(l, fh_json_get(root, "normalizer"), "normalizer", "normalizers", fh_tok_normalizers, &t->normalizers);
    if (rc < 0) return rc;
    rc = fh_tok_steps_parse(l, fh_json_get(root, "pre_tokenizer"), "pre_tokenizer", "pretokenizers", fh_tok_splitters, &t->splitters);
    if (rc < 0) return rc;
    rc = fh_tok_steps_parse(l, decoder, "decoder", "decoders", fh_tok_decoders, &t->decoders);
    if (rc < 0) return rc;
    if (!t->decoders.n && (rc = fh_tok_decode_plain(l, &t->decoders)) < 0) return rc;
    if ((rc = fh_tok_added_load(l, fh_json_get(root, "added_tokens"))) < 0) return rc;
    if ((rc = fh_tok_post_load(l, fh_json_get(root, "post_processor"), config)) < 0) return rc;
    return fh_tok_pieces_load(l);
}

fh_status fh_tokenizer_open(fh_tokenizer **out, const char *text, size_t len, const char *config, const char *name, const fh_job *job,
                            fh_err *err)
{
    fh_json *root = NULL, *more = NULL;
    fh_status rc = FH_OK;
    fh_tokenizer *t = fh_calloc(1, sizeof *t);
    fh_tok_load l = {.t = t, .name = name, .job = job, .err = err};
    if (!t || !(t->name = fh_strdup(name))) { rc = fh_tok_nomem(name, err); goto out; }
    if ((rc = fh_json_parse(&root, text, len, name, err)) < 0) goto out;
    if (config && (rc = fh_json_parse(&more, config, strlen(config), "tokenizer_config.json", err)) < 0) goto out;
    if ((rc = load(&l, root, more)) < 0) goto out;
    *out = t, t = NULL;
out:
    fh_json_free(root);
    fh_json_free(more);
    fh_tokenizer_close(t);
    return rc;
}

void fh_tokenizer_close(fh_tokenizer *t)
{
    if (!t) return;
    fh_tok_vocab_free(&t->vocab);
    fh_tok_finder_free(&t->raw);
    fh_tok_finder_free(&t->normalized);
    fh_tok_steps_free(&t->normalizers);
    fh_tok_steps_free(&t->splitters);
    fh_tok_steps_free(&t->decoders);
    fh_free(t->prefix.ids);
    fh_free(t->suffix.ids);
    fh_free(t->pieces);
    fh_free(t->piece);
    fh_free(t->name);
    fh_free(t);
}

uint32_t fh_tokenizer_size(const fh_tokenizer *t) { return t->vocab.size; }

const char *fh_tokenizer_piece(const fh_tokenizer *t, uint32_t id, size_t *len)
{
    if (id >= t->vocab.size || !(t->vocab.flags[id] & FH_TOK_PRESENT)) return NULL;
    *len = t->piece[id].len;
    return t->pieces + t->piece[id].at;
}

bool fh_tokenizer_is_special(const fh_tokenizer *t, uint32_t id)
{
    return id < t->vocab.size && t->vocab.flags[id] & FH_TOK_SPECIAL;
}

fh_status fh_tokenizer_affixes(const fh_tokenizer *t, const uint32_t **prefix, size_t *n_prefix, const uint32_t **suffix, size_t *n_suffix)
{
    *prefix = t->prefix.ids, *n_prefix = t->prefix.n;
    *suffix = t->suffix.ids, *n_suffix = t->suffix.n;
    return FH_OK;
}

/* ---- encoding ------------------------------------------------------------------------------------------------------- */

void fh_tok_call_begin(fh_tok_call *c, const fh_tokenizer *t, size_t len, fh_err *err)
{
    *c = (fh_tok_call){.t = t, .err = err};
    fh_tok_call_clock(c, len);
}

void fh_tok_call_end(fh_tok_call *c)
{
    for (size_t i = 0; i < FH_TOK_MAX_REGEXES; i++) fh_tok_matcher_free(c->matchers[i]);
    for (size_t i = 0; i < 2; i++) {
        fh_buf_free(&c->pieces[i].own);
        fh_free(c->pieces[i].spans);
        fh_buf_free(&c->text[i]);
    }
    fh_tok_bpe_free(c->bpe);
    fh_free(c->ids.ids);
}

/* Text without added tokens: pre-tokenizers, then the model on each piece.  `first`: it begins where the input begins. */
static fh_status encode_stretch(fh_tok_call *c, const char *text, size_t len, bool first)
{
    const fh_tok_steps *steps = &c->t->splitters;
    fh_status rc = FH_OK;
    if (len > UINT32_MAX) return fh_fail(c->err, FH_EUSAGE, "%s: more than 4 GiB of text in one call: encode it in parts", c->t->name);
    if (!steps->n) return fh_tok_bpe_piece(c, text, len);
    fh_tok_span all = {0, (uint32_t)len};
    fh_tok_pieces whole = {.text = text, .spans = &all, .n = 1, .first = first};
    fh_tok_pieces *in = &whole, *out = &c->pieces[0];
    for (size_t i = 0; i < steps->n; i++) {
        out->n = 0;
        out->own.len = 0;
        if ((rc = steps->items[i].split(c, &steps->items[i], in, out)) < 0) return rc;
        if (in != &whole && out->text == in->own.data) { /* cut, not rewritten: the text changes hands with its pieces */
            fh_buf own = in->own;
            in->own = out->own;
            out->own = own;
        }
        in = out;
        out = in == &c->pieces[0] ? &c->pieces[1] : &c->pieces[0];
    }
    for (size_t i = 0; i < in->n && rc == FH_OK; i++)
        rc = fh_tok_bpe_piece(c, in->text + in->spans[i].start, in->spans[i].end - in->spans[i].start);
    return rc;
}

/* Text between raw added tokens: normalized on its own, cut at the added tokens that are looked for after that. */
static fh_status encode_part(fh_tok_call *c, const char *text, size_t len, bool first)
{
    fh_tok_part *parts = NULL;
    size_t n = 0, cap = 0;
    fh_tok_view v = {text, len};
    fh_status rc = fh_tok_normalize(c, &v);
    if (rc < 0 || !v.len) return rc;
    if (!c->t->normalized.nodes) return encode_stretch(c, v.text, v.len, first);
    rc = fh_tok_added_split(c, &c->t->normalized, v.text, v.len, &parts, &n, &cap);
    for (size_t i = 0; i < n && rc == FH_OK; i++) {
        const fh_tok_part *p = &parts[i];
        if (p->id == FH_TOK_NONE) rc = encode_stretch(c, v.text + p->start, p->end - p->start, first && !p->start);
        else if (!fh_tok_ids_add(&c->ids, p->id)) rc = fh_tok_nomem(c->t->name, c->err);
    }
    fh_free(parts);
    return rc;
}

static bool append(fh_tok_ids *to, const fh_tok_ids *ids)
{
    if (!fh_tok_ids_room(to, ids->n)) return false;
    if (ids->n) memcpy(to->ids + to->n, ids->ids, ids->n * sizeof *ids->ids);
    to->n += ids->n;
    return true;
}

fh_status fh_tokenizer_encode(const fh_tokenizer *t, const char *text, size_t len, bool special, uint32_t **ids, size_t *n, fh_err *err)
{
    fh_tok_part *parts = NULL;
    size_t n_parts = 0, cap = 0;
    fh_buf lossy = {0};
    fh_tok_call c;
    fh_status rc = FH_ENOMEM;
    fh_tok_call_begin(&c, t, len, err);
    if (fh_utf8_valid(text, len) != len) {
        fh_tok_lossy(&lossy, text, len, true);
        if (lossy.failed) goto out;
        text = lossy.data, len = lossy.len;
    }
    if (!(c.bpe = fh_tok_bpe_new(&t->vocab, len))) goto out;
    if (!fh_tok_ids_room(&c.ids, len / 4) || (special && !append(&c.ids, &t->prefix))) goto out;
    if (!t->raw.nodes) {
        rc = len ? encode_part(&c, text, len, true) : FH_OK;
    } else {
        rc = fh_tok_added_split(&c, &t->raw, text, len, &parts, &n_parts, &cap);
        for (size_t i = 0; i < n_parts && rc == FH_OK; i++) {
            if (parts[i].id == FH_TOK_NONE) rc = encode_part(&c, text + parts[i].start, parts[i].end - parts[i].start, !parts[i].start);
            else if (!fh_tok_ids_add(&c.ids, parts[i].id)) rc = FH_ENOMEM;
        }
    }
    if (rc == FH_OK && special && !append(&c.ids, &t->suffix)) rc = FH_ENOMEM;
    if (rc == FH_OK) {
        *ids = c.ids.ids, *n = c.ids.n;
        c.ids = (fh_tok_ids){0};
    }
out:
    if (rc == FH_ENOMEM) rc = fh_tok_nomem(t->name, err);
    fh_free(parts);
    fh_buf_free(&lossy);
    fh_tok_call_end(&c);
    return rc;
}
