/* format/vllm_config.c: config.json as the vLLM plugin wants it: three members set, the architecture renamed, and every other byte as it
 * was.  Parsing and printing would keep the values and lose how they are written (1e-05, 500000.0, the order). */
#include "format/format.h"

#include <string.h>

typedef struct span {
    size_t begin, end;
} span;
typedef struct cursor {
    const char *text;
    size_t len, at;
} cursor;

/* The text has been judged by fh_json_parse: these only find their way. */
static void skip_space(cursor *c)
{
    while (c->at < c->len && strchr(" \t\r\n", c->text[c->at]) && c->text[c->at]) c->at++;
}

static void skip_string(cursor *c)
{
    for (c->at++; c->at < c->len && c->text[c->at] != '"'; c->at++)
        if (c->text[c->at] == '\\') c->at++;
    c->at++;
}

static void skip_value(cursor *c)
{
    size_t depth = 0;
    do {
        char x = c->text[c->at];
        if (x == '"') {
            skip_string(c);
        } else {
            if (x == '{' || x == '[') depth++;
            if ((x == '}' || x == ']') && depth) depth--;
            c->at++;
            if (depth == 0 && x != '}' && x != ']') /* a number or a word */
                while (c->at < c->len && !strchr(",}] \t\r\n", c->text[c->at])) c->at++;
        }
    } while (depth && c->at < c->len);
}

static bool is_ours(const char *key)
{
    static const char *const ours[] = {"flash_head_cache_dir", "n_probes", "flash_head_special_token_ids", "auto_map"};
    for (size_t i = 0; i < sizeof ours / sizeof *ours; i++)
        if (!strcmp(key, ours[i])) return true;
    return false;
}

/* The member's bytes, with the name of the first architecture prefixed. */
static void add_architectures(fh_buf *b, const cursor *c, span member, size_t value)
{
    cursor v = {c->text, c->len, value + 1}; /* behind the bracket */
    skip_space(&v);
    size_t name = v.at + 1; /* behind the quote */
    fh_buf_add(b, c->text + member.begin, name - member.begin);
    fh_buf_puts(b, "FlashHead");
    fh_buf_add(b, c->text + name, member.end - name);
}

fh_status fh_vllm_config(char **out, const fh_config *config, uint32_t probes, const uint32_t *special, size_t n_special, fh_err *err)
{
    fh_status rc = FH_OK;
    cursor c = {config->text, config->text_len, 0};
    fh_buf b = {0};
    span lead = {0, 0}; /* what stands before the first key: new ones are set like it */
    bool first = true, prefixed = !strncmp(config->architecture, "FlashHead", 9);
    skip_space(&c);
    fh_buf_add(&b, c.text, ++c.at); /* through the brace */
    lead.begin = c.at;
    skip_space(&c);
    lead.end = c.at;
    c.at = lead.begin;
    size_t tail = c.at;
    for (;;) {
        span member = {c.at, 0};
        char *key = NULL;
        size_t key_len;
        skip_space(&c);
        if (c.at >= c.len || c.text[c.at] == '}') break;
        size_t quote = c.at;
        skip_string(&c);
        if ((rc = fh_json_text_parse(&key, &key_len, c.text + quote, c.at - quote, "config.json", err)) < 0) goto out;
        skip_space(&c);
        c.at++; /* the colon */
        skip_space(&c);
        size_t value = c.at;
        skip_value(&c);
        member.end = tail = c.at;
        if (!is_ours(key)) {
            if (!first) fh_buf_puts(&b, ",");
            first = false;
            if (!strcmp(key, "architectures") && !prefixed) add_architectures(&b, &c, member, value);
            else fh_buf_add(&b, c.text + member.begin, member.end - member.begin);
        }
        fh_free(key);
        skip_space(&c);
        if (c.at < c.len && c.text[c.at] == ',') c.at++;
    }
    const char *space = c.text + lead.begin;
    int width = (int)(lead.end - lead.begin);
    fh_buf_printf(&b, "%s%.*s\"flash_head_cache_dir\": \"" FH_VLLM_ASSETS "\",%.*s\"n_probes\": %u,%.*s\"flash_head_special_token_ids\": [",
                  first ? "" : ",", width, space, width, space, probes, width, space);
    for (size_t i = 0; i < n_special; i++) fh_buf_printf(&b, "%s%u", i ? ", " : "", special[i]);
    fh_buf_puts(&b, "]");
    fh_buf_add(&b, c.text + tail, c.len - tail);
    if (!(*out = fh_buf_take(&b))) rc = fh_fail(err, FH_ENOMEM, "config.json: out of memory");
out:
    fh_buf_free(&b);
    return rc;
}
