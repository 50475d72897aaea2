/* Decoding: the strings of the tokens go through the decoder's steps one after the other.
 *
 * One implementation serves whole texts and streams, so the two cannot differ: a step is pushed a string at a time and pushes what is
 * certain to the next; finishing gives what it held back.  Behind a step that fuses (Fuse, ByteLevel) there is one string, which comes
 * in parts; a step that cannot work on parts collects them.
 */
#include "runtime/tokenizer_private.h"

#include <string.h>

typedef struct state {
    fh_buf held, spare;   /* by step: bytes of an incomplete character, of a run of byte tokens, or the whole string */
    size_t index;         /* strings so far; Strip behind a fusing step: characters removed */
    bool done;            /* Strip: nothing more to remove */
} state;

struct fh_stream {
    const fh_tokenizer *t;
    fh_err fault;         /* of a step that failed */
    bool skip_special;
    fh_tok_call call;     /* for the regexes of Replace */
    fh_buf out;
    state states[FH_TOK_MAX_STEPS];
};

static bool fail(fh_stream *d) { fh_tok_nomem(d->t->name, &d->fault); return false; }

static bool pass_on(fh_stream *d, size_t step, const char *text, size_t len)
{
    const fh_tok_steps *steps = &d->t->decoders;
    if (!text) text = ""; /* an empty buffer has no data */
    if (step + 1 < steps->n) return steps->items[step + 1].push(d, step + 1, text, len);
    fh_buf_add(&d->out, text, len);
    return !d->out.failed || fail(d);
}

/* ---- steps -------------------------------------------------------------------------------------------------------- */

/* For a step that needs its whole string but is given parts: collect, and push the whole when all is there. */
static bool collect(fh_stream *d, size_t step, const char *text, size_t len)
{
    fh_buf *b = &d->states[step].held;
    fh_buf_add(b, text, len);
    return !b->failed || fail(d);
}

static bool push_fuse(fh_stream *d, size_t step, const char *text, size_t len) { return pass_on(d, step, text, len); }

/* No decoder: single spaces between the tokens. */
static bool push_join(fh_stream *d, size_t step, const char *text, size_t len)
{
    return (!d->states[step].index++ || pass_on(d, step, " ", 1)) && pass_on(d, step, text, len);
}

/* A token's bytes under the map, or its own where a character has none there.  Appends to out. */
static void unmap(const int16_t *bytes, fh_buf *out, const char *text, size_t len)
{
    size_t before = out->len, n;
    char *to = fh_tok_room(out, len);
    for (size_t i = 0; to && i < len; i += n) {
        uint32_t c = fh_tok_char(text + i, &n);
        if (c >= FH_TOK_LOW_CHARS || bytes[c] < 0) {
            memcpy(out->data + before, text, len);
            to = out->data + before + len;
            break;
        }
        *to++ = (char)bytes[c];
    }
    if (to) out->len = (size_t)(to - out->data);
}

static bool byte_level(fh_stream *d, size_t step, bool final)
{
    state *s = &d->states[step];
    s->spare.len = 0;
    size_t taken = fh_tok_lossy(&s->spare, s->held.data, s->held.len, final);
    if (s->spare.failed || s->held.failed) return fail(d);
    memmove(s->held.data, s->held.data + taken, s->held.len - taken);
    s->held.len -= taken;
    return !s->spare.len || pass_on(d, step, s->spare.data, s->spare.len);
}

static bool push_byte_level(fh_stream *d, size_t step, const char *text, size_t len)
{
    unmap(d->t->bytes, &d->states[step].held, text, len);
    return d->states[step].held.failed ? fail(d) : byte_level(d, step, false);
}
static bool finish_byte_level(fh_stream *d, size_t step) { return !d->states[step].held.len || byte_level(d, step, true); }

static int hex(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static int byte_token(const char *text, size_t len)
{
    if (len != 6 || memcmp(text, "<0x", 3) || text[5] != '>' || hex(text[3]) < 0 || hex(text[4]) < 0) return -1;
    return hex(text[3]) << 4 | hex(text[4]);
}

/* The end of a run of byte tokens decides all of it: valid UTF-8 is text, anything else one U+FFFD a byte. */
static bool finish_byte_fallback(fh_stream *d, size_t step)
{
    fh_buf *run = &d->states[step].held;
    size_t n = run->len;
    run->len = 0;
    if (!n) return true;
    if (fh_utf8_valid(run->data, n) == n) return pass_on(d, step, run->data, n);
    while (n--)
        if (!pass_on(d, step, "\xEF\xBF\xBD", 3)) return false;
    return true;
}

static bool push_byte_fallback(fh_stream *d, size_t step, const char *text, size_t len)
{
    int byte = byte_token(text, len);
    if (byte >= 0) {
        char one = (char)byte;
        return collect(d, step, &one, 1);
    }
    return finish_byte_fallback(d, step) && pass_on(d, step, text, len);
}

static bool push_replace(fh_stream *d, size_t step, const char *text, size_t len)
{
    bool changed;
    fh_buf *b = &d->states[step].spare;
    b->len = 0;
    if (fh_tok_replace(&d->call, &d->t->decoders.items[step], text, len, b, &changed) < 0) return false;
    if (b->failed) return fail(d);
    return changed ? pass_on(d, step, b->data, b->len) : pass_on(d, step, text, len);
}

/* The replacement becomes a space; in the first string it is removed, unless nothing is ever put in front. */
static void unmeta(const fh_tok_step *s, fh_buf *out, const char *text, size_t len, bool first)
{
    size_t n;
    for (size_t i = 0; i < len; i += n) {
        fh_tok_char(text + i, &n);
        bool meta = n == s->content_len && !memcmp(text + i, s->content, n);
        if (!meta) fh_buf_add(out, text + i, n);
        else if (!first || s->scheme == FH_TOK_NEVER) fh_buf_add(out, " ", 1);
    }
}

static bool push_metaspace(fh_stream *d, size_t step, const char *text, size_t len)
{
    state *st = &d->states[step];
    st->spare.len = 0;
    unmeta(&d->t->decoders.items[step], &st->spare, text, len, st->index == 0);
    /* Behind a step that fuses, every part is of the first string. */
    if (!step || !(d->t->decoders.items[step - 1].fuses)) st->index++;
    return st->spare.failed ? fail(d) : pass_on(d, step, st->spare.data, st->spare.len);
}

/* Up to `start` copies of the character at the left and `stop` at the right. */
static fh_tok_view stripped(const fh_tok_step *s, const char *text, size_t len)
{
    size_t n = s->content_len;
    for (uint32_t i = 0; i < s->start && len >= n && !memcmp(text, s->content, n); i++) text += n, len -= n;
    for (uint32_t i = 0; i < s->stop && len >= n && !memcmp(text + len - n, s->content, n); i++) len -= n;
    return (fh_tok_view){text, len};
}

static bool push_strip(fh_stream *d, size_t step, const char *text, size_t len)
{
    fh_tok_view v = stripped(&d->t->decoders.items[step], text, len);
    return pass_on(d, step, v.text, v.len);
}

/* The same at the left of a string that comes in parts, which hold whole characters. */
static bool push_strip_parts(fh_stream *d, size_t step, const char *text, size_t len)
{
    const fh_tok_step *s = &d->t->decoders.items[step];
    state *st = &d->states[step];
    while (!st->done && len) {
        if (st->index < s->start && len >= s->content_len && !memcmp(text, s->content, s->content_len)) {
            text += s->content_len, len -= s->content_len;
            st->index++;
        } else {
            st->done = true;
        }
    }
    return pass_on(d, step, text, len);
}

static bool finish_whole(fh_stream *d, size_t step)
{
    const fh_tok_step *s = &d->t->decoders.items[step];
    fh_buf whole = d->states[step].held;
    d->states[step].held = (fh_buf){0};
    bool ok = (!whole.data || s->whole_push(d, step, whole.data, whole.len)) && (!s->whole_finish || s->whole_finish(d, step));
    fh_buf_free(&whole);
    return ok;
}

/* ---- the table ------------------------------------------------------------------------------------------------------ */

/* Fuse and ByteLevel leave one string; what follows them works on it whole or in parts. */
static bool behind_fuse(const fh_tok_steps *to) { return to->n > 1 && to->items[to->n - 2].fuses; }

static fh_status add(fh_tok_load *l, fh_tok_steps *to, fh_tok_step **s)
{
    fh_status rc = fh_tok_step_add(l, to, s);
    if (rc == FH_OK) (*s)->fuses = behind_fuse(to);
    return rc;
}

static void needs_whole(fh_tok_steps *to, fh_tok_step *s)
{
    if (!behind_fuse(to)) return;
    s->whole_push = s->push;
    s->whole_finish = s->finish;
    s->push = collect;
    s->finish = finish_whole;
}

static fh_status parse_byte_level(fh_tok_load *l, const fh_json *j, fh_tok_steps *to)
{
    fh_tok_step *s;
    fh_status rc = add(l, to, &s);
    if (rc < 0) return rc;
    s->push = push_byte_level;
    s->finish = finish_byte_level;
    needs_whole(to, s);
    s->fuses = true;
    return FH_OK;
}

static fh_status parse_byte_fallback(fh_tok_load *l, const fh_json *j, fh_tok_steps *to)
{
    fh_tok_step *s;
    fh_status rc = add(l, to, &s);
    if (rc < 0) return rc;
    s->push = push_byte_fallback;
    s->finish = finish_byte_fallback;
    needs_whole(to, s);
    return FH_OK;
}

static fh_status parse_fuse(fh_tok_load *l, const fh_json *j, fh_tok_steps *to)
{
    fh_tok_step *s;
    fh_status rc = add(l, to, &s);
    if (rc < 0) return rc;
    s->push = push_fuse;
    s->fuses = true;
    return FH_OK;
}

static fh_status parse_replace(fh_tok_load *l, const fh_json *j, fh_tok_steps *to)
{
    fh_tok_step *s;
    fh_status rc = add(l, to, &s);
    if (rc < 0) return rc;
    s->push = push_replace;
    needs_whole(to, s);
    return fh_tok_parse_replace(l, j, s);
}

static fh_status parse_metaspace(fh_tok_load *l, const fh_json *j, fh_tok_steps *to)
{
    fh_tok_step *s;
    fh_status rc = add(l, to, &s);
    if (rc < 0) return rc;
    s->push = push_metaspace;
    return fh_tok_parse_metaspace(l, j, s);
}

static fh_status parse_strip(fh_tok_load *l, const fh_json *j, fh_tok_steps *to)
{
    fh_tok_step *s;
    const char *content;
    uint64_t start = 0, stop = 0;
    size_t n;
    fh_status rc = add(l, to, &s);
    if (rc < 0 || (rc = fh_tok_get_string(l, j, "content", NULL, &content)) < 0) return rc;
    if (!*content || (fh_tok_char(content, &n), content[n])) return fh_tok_bad(l, "'content' must be one character");
    if (!fh_json_u64(fh_json_get(j, "start"), &start) || !fh_json_u64(fh_json_get(j, "stop"), &stop) ||
        start > UINT32_MAX || stop > UINT32_MAX)
        return fh_tok_bad(l, "'start' and 'stop' must be whole numbers");
    s->start = (uint32_t)start;
    s->stop = (uint32_t)stop;
    s->push = push_strip;
    if (stop) needs_whole(to, s);
    else if (behind_fuse(to)) s->push = push_strip_parts;
    return fh_tok_set_content(l, s, content);
}

fh_status fh_tok_decode_plain(fh_tok_load *l, fh_tok_steps *to)
{
    fh_tok_step *s;
    fh_status rc = fh_tok_step_add(l, to, &s);
    if (rc == FH_OK) s->push = push_join;
    return rc;
}

const fh_tok_kind fh_tok_decoders[] = {
    {"ByteLevel", parse_byte_level}, {"ByteFallback", parse_byte_fallback}, {"Fuse", parse_fuse}, {"Replace", parse_replace},
    {"Metaspace", parse_metaspace}, {"Strip", parse_strip}, {NULL, NULL},
};

/* ---- each token on its own ------------------------------------------------------------------------------------------ */

/* A token's bytes: what the steps before the first that fuses make of it; a byte token is its byte. */
static bool own_bytes(fh_tok_call *c, fh_buf b[2], int *at, fh_status *rc)
{
    const fh_tok_steps *steps = &c->t->decoders;
    for (size_t i = 0; i < steps->n; i++) {
        const fh_tok_step *s = &steps->items[i];
        fh_buf *in = &b[*at], *to = &b[!*at];
        const char *text = in->data;
        int byte;
        bool changed = true;
        to->len = 0;
        if (s->push == push_byte_level) {
            unmap(c->t->bytes, to, text, in->len);
        } else if (s->push == push_byte_fallback) {
            char one = (char)(byte = byte_token(text, in->len));
            if ((changed = byte >= 0)) fh_buf_add(to, &one, 1);
        } else if (s->push == push_replace) {
            if ((*rc = fh_tok_replace(c, s, text, in->len, to, &changed)) < 0) return false;
        } else if (s->push == push_metaspace) {
            unmeta(s, to, text, in->len, false);
        } else if (s->push == push_strip) {
            fh_tok_view v = stripped(s, text, in->len);
            fh_buf_add(to, v.text, v.len);
        } else {
            break; /* the plain join, Fuse, or something behind one that fuses */
        }
        if (changed) *at = !*at;
        if (b[*at].failed || !fh_tok_room(&b[*at], 0)) return false;
        if (s->push == push_byte_level || (s->push == push_byte_fallback && changed)) break;
    }
    return true;
}

fh_status fh_tok_pieces_load(fh_tok_load *l)
{
    fh_tokenizer *t = l->t;
    fh_status rc = FH_ENOMEM;
    fh_buf all = {0}, b[2] = {{0}, {0}};
    fh_tok_call call;
    fh_tok_call_begin(&call, t, t->vocab.blob_len, l->err);
    if (!(t->piece = fh_calloc(t->vocab.size, sizeof *t->piece))) goto out;
    for (uint32_t id = 0; id < t->vocab.size; id++) {
        size_t len;
        int at = 0;
        const char *text = fh_tok_text_of(&t->vocab, id, &len);
        b[0].len = 0;
        fh_buf_add(&b[0], text, len);
        if (b[0].failed || !own_bytes(&call, b, &at, &rc)) goto out;
        if (all.len + b[at].len > UINT32_MAX) { rc = fh_tok_bad(l, "more than 4 GiB of decoded tokens"); goto out; }
        t->piece[id] = (fh_tok_string){(uint32_t)all.len, (uint32_t)b[at].len};
        fh_buf_add(&all, b[at].data, b[at].len);
        if (all.failed) goto out;
    }
    rc = (t->pieces = fh_buf_take(&all)) ? FH_OK : FH_ENOMEM;
out:
    if (rc == FH_ENOMEM) rc = fh_tok_nomem(l->name, l->err);
    fh_tok_call_end(&call);
    fh_buf_free(&all);
    for (int k = 0; k < 2; k++) fh_buf_free(&b[k]);
    return rc;
}

/* ---- streams ----------------------------------------------------------------------------------------------------------- */

fh_status fh_stream_new(fh_stream **out, const fh_tokenizer *t, bool skip_special, fh_err *err)
{
    fh_stream *d = fh_calloc(1, sizeof *d);
    if (!d) return fh_tok_nomem(t->name, err);
    d->t = t;
    d->skip_special = skip_special;
    fh_tok_call_begin(&d->call, t, 0, NULL);
    *out = d;
    return FH_OK;
}

void fh_stream_free(fh_stream *d)
{
    if (!d) return;
    for (size_t i = 0; i < FH_TOK_MAX_STEPS; i++) {
        fh_buf_free(&d->states[i].held);
        fh_buf_free(&d->states[i].spare);
    }
    fh_tok_call_end(&d->call);
    fh_buf_free(&d->out);
    fh_free(d);
}

static fh_status push(fh_stream *d, uint32_t id, fh_err *err)
{
    const fh_tok_vocab *v = &d->t->vocab;
    size_t len;
    if (id >= v->size || !(v->flags[id] & FH_TOK_PRESENT) || (d->skip_special && v->flags[id] & FH_TOK_SPECIAL)) return FH_OK;
    const char *text = fh_tok_text_of(v, id, &len);
    d->call.err = &d->fault;
    if (!d->t->decoders.items[0].push(d, 0, text, len)) {
        if (err) *err = d->fault;
        return d->fault.code;
    }
    return FH_OK;
}

static fh_status finish(fh_stream *d, fh_err *err)
{
    d->call.err = &d->fault;
    for (size_t i = 0; i < d->t->decoders.n; i++)
        if (d->t->decoders.items[i].finish && !d->t->decoders.items[i].finish(d, i)) {
            if (err) *err = d->fault;
            return d->fault.code;
        }
    return FH_OK;
}

static fh_status give(fh_stream *d, fh_status rc, const char **text, size_t *len, fh_err *err)
{
    if (rc == FH_OK && !fh_tok_room(&d->out, 0)) rc = fh_tok_nomem(d->t->name, err);
    if (rc < 0) return rc;
    d->out.data[d->out.len] = 0;
    *text = d->out.data;
    *len = d->out.len;
    return FH_OK;
}

fh_status fh_stream_push(fh_stream *d, uint32_t id, const char **text, size_t *len, fh_err *err)
{
    d->out.len = 0;
    fh_tok_call_clock(&d->call, 0);
    return give(d, push(d, id, err), text, len, err);
}

fh_status fh_stream_flush(fh_stream *d, const char **text, size_t *len, fh_err *err)
{
    d->out.len = 0;
    fh_tok_call_clock(&d->call, 0);
    return give(d, finish(d, err), text, len, err);
}

fh_status fh_tokenizer_decode(const fh_tokenizer *t, const uint32_t *ids, size_t n, bool skip_special, char **text, size_t *len,
                              fh_err *err)
{
    fh_stream *d = NULL;
    fh_status rc = fh_stream_new(&d, t, skip_special, err);
    if (rc < 0) return rc;
    fh_tok_call_clock(&d->call, 8 * n);
    for (size_t i = 0; i < n && rc == FH_OK; i++) rc = push(d, ids[i], err);
    if (rc == FH_OK) rc = finish(d, err);
    if (rc == FH_OK) {
        size_t bytes = d->out.len;
        char *s = fh_buf_take(&d->out);
        if (s) *text = s, *len = bytes;
        else rc = fh_tok_nomem(t->name, err);
    }
    fh_stream_free(d);
    return rc;
}
