/* artifacts/fetch_http.c: files from a web server that may drop, stall, repeat itself or lie; the one file that sees libcurl.
 *
 * Redirects are followed here and not by the library, because each must be judged: at most 5, to the scheme they came from.  A server
 * that ignores ranges is taken from the start again.  Attempts go on as long as each brings something; FEW without a byte end it.
 */
#include "artifacts/release_private.h"

#include <stdio.h>
#include <string.h>

#ifdef FH_HAVE_CURL
#include <curl/curl.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

enum { REDIRECTS = 5, FEW = 5, MOST = 100, SLOW = 32 /* bytes a second count as a stall */, STALLED_AFTER = 30 /* seconds */ };

struct fh_http {
    CURL *curl;
    const fh_job *job;
    bool plain_http;
    /* of the transfer under way */
    fh_http_sink *sink;
    const char *url;
    uint64_t offset, range_from, range_total; /* where its next byte belongs; what Content-Range says (UINT64_MAX: nothing) */
    bool began, no_range;
    fh_status rc;      /* of the sink, or of what the server said */
    fh_err *err, discard;
    char said[CURL_ERROR_SIZE];
};

static void start_library(void) { curl_global_init(CURL_GLOBAL_DEFAULT); }

fh_status fh_http_new(fh_http **out, const fh_source_params *p, const fh_job *job, fh_err *err)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    long patience = p->timeout ? (long)p->timeout : STALLED_AFTER;
    pthread_once(&once, start_library);
    fh_http *h = fh_calloc(1, sizeof *h);
    *out = NULL;
    if (!h || !(h->curl = curl_easy_init())) { fh_free(h); return fh_fail(err, FH_ENOMEM, "%s: out of memory", p->registry); }
    h->job = job, h->plain_http = p->plain_http;
    curl_easy_setopt(h->curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(h->curl, CURLOPT_FOLLOWLOCATION, 0L);
    curl_easy_setopt(h->curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(h->curl, CURLOPT_CONNECTTIMEOUT, patience);
    curl_easy_setopt(h->curl, CURLOPT_LOW_SPEED_LIMIT, (long)SLOW);
    curl_easy_setopt(h->curl, CURLOPT_LOW_SPEED_TIME, patience);
    const char *vouchers = getenv("SSL_CERT_FILE"); /* a registry inside a house has a certificate of the house: the variable OpenSSL reads */
    if (vouchers && *vouchers) curl_easy_setopt(h->curl, CURLOPT_CAINFO, vouchers);
    curl_easy_setopt(h->curl, CURLOPT_USERAGENT, "fhtool/" FH_TOOL_VERSION);
    curl_easy_setopt(h->curl, CURLOPT_ERRORBUFFER, h->said);
    *out = h;
    return FH_OK;
}

void fh_http_free(fh_http *h)
{
    if (!h) return;
    curl_easy_cleanup(h->curl);
    fh_free(h);
}

/* ---- what a URL may be ---------------------------------------------------------------------------------------------- */

static bool is_here(const char *host)
{
    return !strcmp(host, "localhost") || !strcmp(host, "127.0.0.1") || !strcmp(host, "[::1]");
}

/* *secure: https.  `from` is for messages: NULL, or the URL that sent us here. */
static fh_status judge_url(fh_http *h, const char *url, const char *from, bool *secure, fh_err *err)
{
    fh_status rc = FH_OK;
    char *scheme = NULL, *host = NULL, *user = NULL;
    CURLU *u = curl_url();
    if (!u) return fh_fail(err, FH_ENOMEM, "%s: out of memory", url);
    if (curl_url_set(u, CURLUPART_URL, url, 0) || curl_url_get(u, CURLUPART_SCHEME, &scheme, 0) || curl_url_get(u, CURLUPART_HOST, &host, 0)) {
        rc = fh_fail(err, from ? FH_EFORMAT : FH_EUSAGE, "%s%s%s: is no address that can be fetched", from ? from : "", from ? ": redirects to " : "", url);
        goto out;
    }
    *secure = !strcmp(scheme, "https");
    if (!*secure && strcmp(scheme, "http")) rc = fh_fail(err, FH_EFORMAT, "%s: redirects to another scheme (%.300s): refused", from ? from : url, url);
    else if (!curl_url_get(u, CURLUPART_USER, &user, 0))
        rc = fh_fail(err, FH_EUSAGE, "an address with a user name or password in it is refused: it would show in messages");
    else if (!*secure && !h->plain_http && !is_here(host))
        rc = fh_fail(err, from ? FH_EFORMAT : FH_EUSAGE,
                     "%s: http:// is read by anybody on the way and altered by some: use https://, or --plain-http where that is known", url);
out:
    curl_free(scheme);
    curl_free(host);
    curl_free(user);
    curl_url_cleanup(u);
    return rc;
}

/* ---- one request ------------------------------------------------------------------------------------------------------- */

/* "Content-Range: bytes 100-199/200" */
static size_t on_header(char *data, size_t size, size_t n, void *ctx)
{
    fh_http *h = ctx;
    char line[128];
    n *= size;
    snprintf(line, sizeof line, "%.*s", (int)fh_min(n, sizeof line - 1), data);
    unsigned long long from, to, total;
    if (!strncasecmp(line, "content-range:", 14) && sscanf(line + 14, " bytes %llu-%llu/%llu", &from, &to, &total) == 3)
        h->range_from = from, h->range_total = total;
    return n;
}

static fh_status wrong_size(fh_http *h, uint64_t found, fh_err *err)
{
    return fh_fail(err, FH_EFORMAT, "%s: the server has %llu bytes where %llu are said: the registry and its files do not belong together", h->url,
                   (unsigned long long)found, (unsigned long long)h->sink->expect);
}

/* The answer's head is complete: where do its bytes belong? */
static fh_status begin(fh_http *h, long code)
{
    fh_http_sink *s = h->sink;
    curl_off_t length = -1;
    curl_easy_getinfo(h->curl, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &length);
    h->began = true;
    if (code == 206) {
        if (h->range_from != s->have) { /* not what was asked for */
            h->no_range = true;
            return fh_fail(h->err, FH_EIO, "%s: the server answers another range than the one asked for", h->url);
        }
        h->offset = s->have;
        if (s->expect != UINT64_MAX && h->range_total != s->expect) return wrong_size(h, h->range_total, h->err);
        return FH_OK;
    }
    h->offset = 0, s->have = 0;
    if (length >= 0 && s->expect != UINT64_MAX && (uint64_t)length != s->expect) return wrong_size(h, (uint64_t)length, h->err);
    if (length >= 0 && (uint64_t)length > s->limit)
        return fh_fail(h->err, FH_EFORMAT, "%s: is %llu bytes long, more than the %llu that are read of it", h->url, (unsigned long long)length,
                       (unsigned long long)s->limit);
    return FH_OK;
}

static size_t on_data(char *data, size_t size, size_t n, void *ctx)
{
    fh_http *h = ctx;
    long code = 0;
    n *= size;
    curl_easy_getinfo(h->curl, CURLINFO_RESPONSE_CODE, &code);
    if (code != 200 && code != 206) return n; /* an error page: nobody reads it */
    if (!h->began && (h->rc = begin(h, code)) < 0) return 0;
    if (n > h->sink->limit - h->offset) {
        h->rc = fh_fail(h->err, FH_EFORMAT, "%s: the server goes on past the %llu bytes that %s", h->url, (unsigned long long)h->sink->limit,
                        h->sink->expect == UINT64_MAX ? "are read of it" : "are said: the registry and its files do not belong together");
        return 0;
    }
    if ((h->rc = h->sink->take(h->sink->ctx, h->offset, data, n, h->err)) < 0) return 0;
    h->offset += n, h->sink->have = h->offset;
    if (h->sink->expect != UINT64_MAX) fh_job_progress(h->job, "fetch", (double)h->offset, (double)h->sink->expect + 1, "bytes");
    return n;
}

static int on_progress(void *ctx, curl_off_t total, curl_off_t now, curl_off_t up_total, curl_off_t up)
{
    return fh_job_stopped(((fh_http *)ctx)->job);
}

static void set_up(fh_http *h, const char *url)
{
    char range[40];
    h->url = url, h->began = false, h->rc = FH_OK, h->range_from = h->range_total = UINT64_MAX, h->said[0] = 0, h->offset = h->sink->have;
    if (h->no_range) h->sink->have = 0;
    snprintf(range, sizeof range, "%llu-", (unsigned long long)h->sink->have);
    curl_easy_setopt(h->curl, CURLOPT_URL, url);
    curl_easy_setopt(h->curl, CURLOPT_RANGE, h->sink->have ? range : NULL);
    curl_easy_setopt(h->curl, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(h->curl, CURLOPT_HEADERDATA, h);
    curl_easy_setopt(h->curl, CURLOPT_WRITEFUNCTION, on_data);
    curl_easy_setopt(h->curl, CURLOPT_WRITEDATA, h);
    curl_easy_setopt(h->curl, CURLOPT_XFERINFOFUNCTION, on_progress);
    curl_easy_setopt(h->curl, CURLOPT_XFERINFODATA, h);
    curl_easy_setopt(h->curl, CURLOPT_NOPROGRESS, 0L);
}

/* What went wrong below HTTP; *again: it may not go wrong twice. */
static fh_status failed(fh_http *h, CURLcode c, bool *again, fh_err *err)
{
    if (h->rc < 0) { *again = h->rc == FH_EIO && h->no_range; return h->rc; }
    if (c == CURLE_ABORTED_BY_CALLBACK) return fh_fail(err, FH_EINTERRUPTED, "%s: interrupted; the same command goes on from there", h->url);
    if (c == CURLE_OUT_OF_MEMORY) return fh_fail(err, FH_ENOMEM, "%s: out of memory", h->url);
    *again = c != CURLE_PEER_FAILED_VERIFICATION && c != CURLE_SSL_CACERT_BADFILE && c != CURLE_COULDNT_RESOLVE_HOST && c != CURLE_URL_MALFORMAT &&
             c != CURLE_UNSUPPORTED_PROTOCOL;
    return fh_fail(err, FH_EIO, "%s: %s%s%s", h->url, c == CURLE_OPERATION_TIMEDOUT ? "the server stalls: " : "", curl_easy_strerror(c),
                   h->sink->have ? " (what came is kept)" : "");
}

/* One answer, redirects followed.  FH_OK: the server ended it properly. */
static fh_status request(fh_http *h, const char *start, bool *again, fh_err *err)
{
    char *url = fh_strdup(start);
    bool secure, next_secure;
    fh_status rc = url ? judge_url(h, url, NULL, &secure, err) : fh_fail(err, FH_ENOMEM, "%s: out of memory", start);
    *again = false;
    for (int hops = 0; rc == FH_OK; hops++) {
        char *to = NULL;
        long code = 0;
        set_up(h, url);
        CURLcode c = curl_easy_perform(h->curl);
        if (c) { rc = failed(h, c, again, err); break; }
        curl_easy_getinfo(h->curl, CURLINFO_RESPONSE_CODE, &code);
        if (code == 200 || code == 206) {
            if (!h->began) rc = begin(h, code); /* an empty file */
            break;
        }
        curl_easy_getinfo(h->curl, CURLINFO_REDIRECT_URL, &to);
        if (code / 100 == 3 && to) {
            if (hops == REDIRECTS) { rc = fh_fail(err, FH_EFORMAT, "%s: more than %d redirects: refused", start, REDIRECTS); break; }
            if ((rc = judge_url(h, to, url, &next_secure, err)) < 0) break;
            if (next_secure != secure) { rc = fh_fail(err, FH_EFORMAT, "%s: redirects to another scheme (%.300s): refused", url, to); break; }
            char *next = fh_strdup(to);
            if (!next) { rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", start); break; }
            fh_free(url);
            url = next;
            continue;
        }
        if (code == 416) h->no_range = true; /* what lies here already is not what the server has */
        *again = code == 416 || code == 408 || code == 429 || code >= 500;
        rc = fh_fail(err, code == 404 || code == 410 ? FH_ENOTFOUND : FH_EIO, "%s: the server answers %ld%s", url, code,
                     code == 404 ? " (not found): is the address right?" : code == 401 || code == 403 ? " (not allowed)" : "");
        break;
    }
    h->url = start; /* `url` goes */
    fh_free(url);
    return rc;
}

/* Waits in short naps, so that an interrupt is heard. */
static void pause_before(const fh_job *job, unsigned failures)
{
    struct timespec nap = {0, 50000000};
    unsigned naps = failures ? 2u << fh_min(failures, 4) : 0; /* 0.2 s at first, 1.6 s at most */
    for (unsigned i = 0; i < naps && !fh_job_stopped(job); i++) nanosleep(&nap, NULL);
}

fh_status fh_http_get(fh_http *h, const char *url, fh_http_sink *sink, fh_err *err)
{
    fh_status rc = FH_OK;
    unsigned barren = 0;
    h->sink = sink, h->err = err ? err : &h->discard, h->no_range = false;
    for (unsigned tries = 0; tries < MOST; tries++) {
        uint64_t before = sink->have;
        bool again;
        if (sink->expect == UINT64_MAX) sink->have = 0; /* of unknown size: it may be another by now */
        rc = request(h, url, &again, h->err);
        if (rc == FH_OK && (sink->expect == UINT64_MAX || sink->have == sink->expect)) return FH_OK;
        if (rc == FH_OK)
            rc = fh_fail(h->err, FH_EFORMAT, "%s: ended after %llu of the %llu bytes that are said", url, (unsigned long long)sink->have,
                         (unsigned long long)sink->expect),
            again = true;
        if (!again || fh_job_stopped(h->job)) return rc;
        barren = sink->have > before ? 0 : barren + 1;
        if (barren == FEW) return rc;
        fh_job_say(h->job, FH_DEBUG, "%s; trying again", h->err->text);
        pause_before(h->job, barren);
    }
    return rc;
}

#else

fh_status fh_http_new(fh_http **out, const fh_source_params *p, const fh_job *job, fh_err *err)
{
    *out = NULL;
    return fh_fail(err, FH_EUNSUPPORTED,
                   "%s: this fhtool was built without libcurl: only directories and file:// can be fetched from (install libcurl4-openssl-dev and build again)",
                   p->registry);
}
void fh_http_free(fh_http *h) { (void)h; }
fh_status fh_http_get(fh_http *h, const char *url, fh_http_sink *sink, fh_err *err) { return fh_fail(err, FH_EUNSUPPORTED, "%s: built without libcurl", url); }

#endif
