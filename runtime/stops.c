/* runtime/stops.c: stop strings in text that comes in pieces. */
#include "runtime/runtime.h"

#include <string.h>

struct fh_stops {
    char **text; size_t *len, n;
    fh_buf held;     /* what may yet turn out to begin a stop string */
    fh_buf out;      /* what the last call gave */
    bool found;
};

fh_status fh_stops_new(fh_stops **out, const char *const *text, size_t n, fh_err *err)
{
    fh_stops *s = fh_calloc(1, sizeof *s);
    if (!s) return fh_fail(err, FH_ENOMEM, "stop strings: out of memory");
    s->text = fh_calloc(n + 1, sizeof *s->text);
    s->len = fh_calloc(n + 1, sizeof *s->len);
    bool ok = s->text && s->len;
    for (; ok && s->n < n; s->n++) {
        size_t len = strlen(text[s->n]);
        if (!len || fh_utf8_valid(text[s->n], len) != len) {
            fh_stops_free(s);
            return fh_fail(err, FH_EUSAGE, len ? "--stop: the text is not valid UTF-8, which is all that is ever printed"
                                               : "--stop: an empty text stops nothing");
        }
        s->len[s->n] = len;
        if (!(ok = (s->text[s->n] = fh_strdup(text[s->n])) != NULL)) break;
    }
    if (!ok) {
        fh_stops_free(s);
        return fh_fail(err, FH_ENOMEM, "stop strings: out of memory");
    }
    *out = s;
    return FH_OK;
}

void fh_stops_free(fh_stops *s)
{
    if (!s) return;
    for (size_t i = 0; s->text && i < s->n; i++) fh_free(s->text[i]);
    fh_free(s->text);
    fh_free(s->len);
    fh_buf_free(&s->held);
    fh_buf_free(&s->out);
    fh_free(s);
}

void fh_stops_reset(fh_stops *s)
{
    s->held.len = s->out.len = 0;
    s->found = false;
}

bool fh_stops_found(const fh_stops *s) { return s->found; }

/* The stop string that is complete first, of those the one that began first: so that pieces do not matter. */
static bool complete(const fh_stops *s, size_t *begin)
{
    size_t end = SIZE_MAX;
    for (size_t i = 0; i < s->n; i++) {
        const char *at = s->held.len ? memmem(s->held.data, s->held.len, s->text[i], s->len[i]) : NULL;
        if (!at) continue;
        size_t from = (size_t)(at - s->held.data), to = from + s->len[i];
        if (to < end || (to == end && from < *begin)) end = to, *begin = from;
    }
    return end != SIZE_MAX;
}

/* How much of the end of what is held begins a stop string. */
static size_t pending(const fh_stops *s)
{
    size_t most = 0;
    for (size_t i = 0; i < s->n; i++)
        for (size_t k = fh_min(s->len[i] - 1, s->held.len); k > most; k--)
            if (!memcmp(s->held.data + s->held.len - k, s->text[i], k)) most = k;
    return most;
}

static fh_status give(fh_stops *s, size_t n, const char **text, size_t *len, fh_err *err)
{
    s->out.len = 0;
    fh_buf_add(&s->out, s->held.data, n);
    if (s->out.failed || s->held.failed) return fh_fail(err, FH_ENOMEM, "stop strings: out of memory");
    memmove(s->held.data, s->held.data + n, s->held.len - n);
    s->held.len -= n;
    *text = s->out.data, *len = n;
    return FH_OK;
}

fh_status fh_stops_push(fh_stops *s, const char *in, size_t in_len, const char **text, size_t *len, fh_err *err)
{
    size_t n = 0;
    *text = "", *len = 0;
    if (s->found || !in_len) return FH_OK;
    fh_buf_add(&s->held, in, in_len);
    if (s->held.failed) return fh_fail(err, FH_ENOMEM, "stop strings: out of memory");
    if ((s->found = complete(s, &n))) {
        fh_status rc = give(s, n, text, len, err);
        s->held.len = 0;
        return rc;
    }
    return give(s, s->held.len - pending(s), text, len, err);
}

fh_status fh_stops_flush(fh_stops *s, const char **text, size_t *len, fh_err *err)
{
    *text = "", *len = 0;
    return s->held.len ? give(s, s->held.len, text, len, err) : FH_OK;
}
