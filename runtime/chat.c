/* runtime/chat.c: how a conversation is written for the models of the supported families.
 *
 * Published checkpoints say it by a Jinja template.  Templates are not run here: those that are known are recognised by their SHA-256,
 * and a table says what each of them writes for a conversation of system, user and assistant messages without tools.
 * tests/golden/make_chat.py renders the templates themselves, as the reference library does, and records what we have to write.
 */
#include "runtime/runtime.h"

#include <string.h>

/* In the pieces below. */
#define BOS "\1"
#define EOS "\2"
#define DATE "\3"

typedef enum fold { FOLD_REFUSED, FOLD_TURN, FOLD_FIRST, FOLD_LAST } fold;
enum { STRIP_SYSTEM = 1, STRIP_USER = 2, STRIP_ASSISTANT = 4, STRIP_FOLDED = 8, THINKS = 16, RAW = 32 };

typedef struct style {
    const char *name;
    const char *first;           /* before everything */
    fold system;                 /* a turn of its own, or put before the first or the last user message, or refused by the template */
    const char *before_system, *after_system;
    const char *standing;        /* the system message where none is given; NULL: none */
    const char *before_user, *after_user, *before_assistant, *after_assistant;
    const char *prompt;          /* what the reply follows */
    const char *end;             /* the token that ends a reply, beside those of generation_config.json; NULL: no other */
    unsigned how;
} style;

#define CHATML .before_user = "<|im_start|>user\n", .after_user = "<|im_end|>\n", .before_assistant = "<|im_start|>assistant\n", \
    .after_assistant = "<|im_end|>\n", .prompt = "<|im_start|>assistant\n", .end = "<|im_end|>", .first = "", .system = FOLD_TURN, \
    .before_system = "<|im_start|>system\n", .after_system = "<|im_end|>\n"
#define LLAMA3_HEAD(role) "<|start_header_id|>" role "<|end_header_id|>\n\n"
#define LLAMA3 .before_user = LLAMA3_HEAD("user"), .after_user = "<|eot_id|>", .before_assistant = LLAMA3_HEAD("assistant"), \
    .after_assistant = "<|eot_id|>", .prompt = LLAMA3_HEAD("assistant"), .end = "<|eot_id|>", .system = FOLD_TURN, \
    .after_system = "<|eot_id|>", .how = STRIP_SYSTEM | STRIP_USER | STRIP_ASSISTANT
#define LLAMA3_DATED(date) LLAMA3, .first = BOS LLAMA3_HEAD("system") "Cutting Knowledge Date: December 2023\nToday Date: " date "\n\n", \
    .before_system = "", .standing = ""
#define GEMMA .first = BOS, .before_user = "<start_of_turn>user\n", .after_user = "<end_of_turn>\n", \
    .before_assistant = "<start_of_turn>model\n", .after_assistant = "<end_of_turn>\n", .prompt = "<start_of_turn>model\n", \
    .end = "<end_of_turn>", .how = STRIP_USER | STRIP_ASSISTANT
#define NO_SYSTEM .before_system = "", .after_system = "\n\n"

static const style styles[] = {
    {.name = "chatml", CHATML},
    {.name = "smollm2", CHATML, .standing = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"},
    {.name = "qwen2", CHATML, .standing = "You are a helpful assistant."},
    {.name = "qwen2.5", CHATML, .standing = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."},
    {.name = "qwen3", CHATML, .how = THINKS},
    {.name = "llama2", .first = "", .system = FOLD_FIRST, .before_system = "<<SYS>>\n", .after_system = "\n<</SYS>>\n\n",
     .before_user = BOS "[INST] ", .after_user = " [/INST]", .before_assistant = " ", .after_assistant = " " EOS, .prompt = "",
     .how = STRIP_FOLDED | STRIP_ASSISTANT},
    {.name = "llama3", LLAMA3, .first = BOS, .before_system = LLAMA3_HEAD("system")},
    {.name = "llama3.1", LLAMA3_DATED("26 Jul 2024")},
    {.name = "llama3.2", LLAMA3_DATED(DATE)},
    {.name = "tinyllama", .first = "", .system = FOLD_TURN, .before_system = "<|system|>\n", .after_system = EOS "\n",
     .before_user = "<|user|>\n", .after_user = EOS "\n", .before_assistant = "<|assistant|>\n", .after_assistant = EOS "\n",
     .prompt = "<|assistant|>\n"},
    {.name = "mistral-v0.1", .first = BOS, .before_user = "[INST] ", .after_user = " [/INST]", .before_assistant = "",
     .after_assistant = EOS " ", .prompt = ""},
    {.name = "mistral-v0.2", .first = BOS, .before_user = "[INST] ", .after_user = " [/INST]", .before_assistant = "",
     .after_assistant = EOS, .prompt = ""},
    {.name = "mistral-v0.2-system", .first = BOS, .system = FOLD_FIRST, NO_SYSTEM, .before_user = " [INST] ", .after_user = " [/INST]",
     .before_assistant = " ", .after_assistant = EOS, .prompt = ""},
    {.name = "mistral-nemo", .first = BOS, .system = FOLD_LAST, NO_SYSTEM, .before_user = "[INST]", .after_user = "[/INST]",
     .before_assistant = "", .after_assistant = EOS, .prompt = ""},
    {.name = "gemma", GEMMA},
    {.name = "gemma3", GEMMA, .system = FOLD_FIRST, NO_SYSTEM},
    {.name = "raw", .first = "", .system = FOLD_TURN, .before_system = "", .after_system = "\n", .before_user = "", .after_user = "\n",
     .before_assistant = "", .after_assistant = "\n", .prompt = "", .how = RAW},
};
enum { STYLES = sizeof styles / sizeof *styles };

/* Digests of published templates, less a final line break, which Jinja drops.  Two spellings where the publisher's file writes a line
 * break inside a literal as an escape or as itself. */
static const struct { const char *digest, *style; } known[] = {
    {"d056f54cc4a69f9c91bf137fc94d1b782b1811e8675262951f10f98843a45fb1", "chatml"}, /* ours: tests/golden/chat/chatml.jinja */
    {"153280e3ff55d19da1398bdb3914ee2a51b80429bfaedde11d7d216c39db80f3", "chatml"},
    {"64f85b198065d0fba2a81f37e10ed68161ce2c19a754c7100e67e0ca2ee9c326", "chatml"},
    {"fcf7a096fe99a48fd9ad2b250bf9237e96e8f48bffec1c7ea4d3f225176cd40e", "chatml"},
    {"ecd6ae513fe103f0eb62e8ab5bfa8d0fe45c1074fa398b089c93a7e70c15cfd6", "gemma"},
    {"8d9e3a3c114fb2053ec500184677af4f7e5f8ec2582443cd535834e68b3ade29", "gemma3"},
    {"e8d5b5a546d3f19df16a5320c614fab05bdc4edd50e850f1afd947b503ea41cf", "llama2"},
    {"93c0e9aa3629bbd77e68dbc0f5621f6e6b23aa8d74b932595cdb8d64684526d7", "llama3.1"},
    {"d82792f95932f1c9cef5c4bd992f171225e3bf8c7b609b4557c9e1ec96be819f", "llama3.2"},
    {"ba03a121d097859c7b5b9cd03af99aafe95275210d2876f642ad9929a150f122", "llama3"},
    {"e7deee034838db2bfc7487788a3013d8a307ab69f72f3c54a85f06fd76007d4e", "mistral-nemo"},
    {"7e995b379ec01747807246483647cd99030abf331653f1119e16d7ac041a3495", "mistral-v0.1"},
    {"bbc58aad99454df60138be9530c9601a0adfe3d8932cda975e1f10b2410ddc51", "mistral-v0.2-system"},
    {"26a59556925c987317ce5291811ba3b7f32ec4c647c400c6cc7e3a9993007ba7", "mistral-v0.2"},
    {"55b2f4a26ac9ee719330a61a0c39d9e538b0e9322212f048326318cff4f8674a", "qwen2.5"},
    {"793202280c0910ab26bc6eb57c8212c2417324c6d8c4efd0d10d59092ab3e3eb", "qwen2"},
    {"f0206845c9ebc3abb4735d44f286eb81ce99238ad2accc710c6fc60e6cb8ccc8", "qwen2"},
    {"4039eed0f28b7aaa337e70c76cfedba3271ee32505835a095a8c92e536b3c355", "qwen2"},
    {"a55ee1b1660128b7098723e0abcd92caa0788061051c62d51cbe87d9cf1974d8", "qwen3"},
    {"87a2728cb8dc9fe424d624542f6060ec05a1d285ebbec578bb078900e33396b5", "qwen3"},
    {"5da44855ab7e0641774d5ed0ff0b4f89671d01df7d316e54d06557a962211cb4", "qwen3"},
    {"872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788", "smollm2"},
    {"de9cde7d1b0ca0cc87459a6673e0d12fb89c070bdb24e4a30b6e4d187b226221", "smollm2"},
    {"66291cf0045c2425a3a667cf3cbb7af2b11f09e025c02f97245323ab79119362", "tinyllama"},
};

struct fh_chat {
    const style *style;  /* NULL: not known */
    bool has_template, no_think;
    char digest[65];     /* of the template */
    char *name, *bos, *eos;
};

const char *fh_chat_style_of(const char *digest)
{
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(known[i].digest, digest)) return known[i].style;
    return NULL;
}

static const style *style_named(const char *name)
{
    for (size_t i = 0; name && i < STYLES; i++)
        if (!strcmp(styles[i].name, name)) return &styles[i];
    return NULL;
}

/* ---- opening ------------------------------------------------------------------------------------------------------ */

/* A string, or an object with a `content`; "" where there is none, as an undefined name is written by Jinja. */
static char *token_text(const fh_json *config, const char *key)
{
    const fh_json *j = fh_json_get(config, key);
    const char *text = j && fh_json_type(j) == FH_JSON_OBJECT ? fh_json_string(fh_json_get(j, "content")) : j ? fh_json_string(j) : NULL;
    return fh_strdup(text ? text : "");
}

/* The template of tokenizer_config.json: a string, or the one called "default" of a list. */
static const char *template_text(const fh_json *config)
{
    const fh_json *j = fh_json_get(config, "chat_template");
    if (!j || fh_json_type(j) != FH_JSON_ARRAY) return j ? fh_json_string(j) : NULL;
    for (const fh_json *i = fh_json_first(j); i; i = fh_json_next(i)) {
        const fh_json *name = fh_json_get(i, "name"), *text = fh_json_get(i, "template");
        if (name && text && fh_json_string(name) && !strcmp(fh_json_string(name), "default")) return fh_json_string(text);
    }
    return NULL;
}

fh_status fh_chat_open(fh_chat **out, const char *config, const char *jinja, const char *name, fh_err *err)
{
    fh_json *j = NULL;
    fh_status rc = FH_OK;
    fh_chat *c = fh_calloc(1, sizeof *c);
    if (!c) goto no_memory;
    if (config && (rc = fh_json_parse(&j, config, strlen(config), "tokenizer_config.json", err)) < 0) goto out;
    c->name = fh_strdup(name);
    c->bos = token_text(j, "bos_token");
    c->eos = token_text(j, "eos_token");
    if (!c->name || !c->bos || !c->eos) goto no_memory;
    const char *text = jinja ? jinja : template_text(j);
    if (text) {
        uint8_t digest[32];
        size_t len = strlen(text);
        fh_sha256_of(digest, text, len - (len && text[len - 1] == '\n'));
        fh_sha256_hex(c->digest, digest);
        c->has_template = true;
        c->style = style_named(fh_chat_style_of(c->digest));
    }
    *out = c, c = NULL;
    goto out;
no_memory:
    rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", name);
out:
    fh_chat_close(c);
    fh_json_free(j);
    return rc;
}

void fh_chat_close(fh_chat *c)
{
    if (!c) return;
    fh_free(c->name);
    fh_free(c->bos);
    fh_free(c->eos);
    fh_free(c);
}

fh_status fh_chat_use(fh_chat *c, const char *name, fh_err *err)
{
    fh_buf all = {0};
    if (name && (c->style = style_named(name))) return FH_OK;
    if (!name && c->style) return FH_OK;
    for (size_t i = 0; i < STYLES; i++) fh_buf_printf(&all, "%s%s", i ? ", " : "", styles[i].name);
    char *list = fh_buf_take(&all);
    fh_status rc = !list ? fh_fail(err, FH_ENOMEM, "%s: out of memory", c->name)
        : name ? fh_fail(err, FH_EUSAGE, "--chat-template: '%s' is none of %s", name, list)
        : c->has_template ? fh_fail(err, FH_EUNSUPPORTED, "%s: its chat template (SHA-256 %.16s...) is none that fhtool knows, and templates are "
                                    "not run: name one it is like with --chat-template (%s), raw for plain text", c->name, c->digest, list)
        : fh_fail(err, FH_ENOTFOUND, "%s: has no chat template: it may not be made for conversations; name one with --chat-template (%s), "
                  "raw for plain text", c->name, list);
    fh_free(list);
    return rc;
}

fh_status fh_chat_no_think(fh_chat *c, fh_err *err)
{
    if (!c->style || !(c->style->how & THINKS))
        return fh_fail(err, FH_EUSAGE, "%s: its chat template (%s) has no switch for thinking: leave out --no-think", c->name, c->style ? c->style->name : "none");
    c->no_think = true;
    return FH_OK;
}

const char *fh_chat_style(const fh_chat *c) { return c->style ? c->style->name : NULL; }
const char *fh_chat_end(const fh_chat *c) { return c->style ? c->style->end : NULL; }
bool fh_chat_is_raw(const fh_chat *c) { return c->style && (c->style->how & RAW); }

/* ---- text ----------------------------------------------------------------------------------------------------------- */

/* The white space that Python's str.strip() takes off, as encoded from s on; 0: none. */
static size_t space_at(const char *s, size_t len)
{
    const uint8_t *p = (const uint8_t *)s;
    if (!len) return 0;
    if ((p[0] >= 9 && p[0] <= 13) || (p[0] >= 28 && p[0] <= 32)) return 1;
    if (len >= 2 && p[0] == 0xC2 && (p[1] == 0x85 || p[1] == 0xA0)) return 2;
    if (len < 3) return 0;
    unsigned c = (p[0] & 15u) << 12 | (p[1] & 63u) << 6 | (p[2] & 63u);
    bool three = (p[0] & 0xF0) == 0xE0 && (p[1] & 0xC0) == 0x80 && (p[2] & 0xC0) == 0x80;
    return three && (c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000) ? 3 : 0;
}

typedef struct span { const char *s; size_t len; } span;

static span strip(span t)
{
    for (size_t n; (n = space_at(t.s, t.len)); t.s += n, t.len -= n) { }
    for (bool more = true; more;) {
        more = false;
        for (size_t n = 1; n <= 3 && n <= t.len && !more; n++)
            if (space_at(t.s + t.len - n, n) == n) t.len -= n, more = true;
    }
    return t;
}

static span strip_lines(span t, bool left, bool right)
{
    while (left && t.len && t.s[0] == '\n') t.s++, t.len--;
    while (right && t.len && t.s[t.len - 1] == '\n') t.len--;
    return t;
}

/* Where `what` first or last occurs; NULL: nowhere. */
static const char *find(span t, const char *what, bool last)
{
    size_t n = strlen(what);
    const char *found = NULL;
    for (const char *at = t.s; (at = memmem(at, (size_t)(t.s + t.len - at), what, n)); at++) {
        found = at;
        if (!last) break;
    }
    return found;
}

static bool wrapped(span t, const char *open, const char *close)
{
    size_t a = strlen(open), b = strlen(close);
    return t.len >= a && t.len >= b && !memcmp(t.s, open, a) && !memcmp(t.s + t.len - b, close, b);
}

/* ---- rendering ---------------------------------------------------------------------------------------------------------- */

typedef struct writer { const fh_chat *chat; const char *date; fh_buf out; } writer;

static void piece(writer *w, const char *text)
{
    for (; *text; text++) {
        if (*text == BOS[0]) fh_buf_puts(&w->out, w->chat->bos);
        else if (*text == EOS[0]) fh_buf_puts(&w->out, w->chat->eos);
        else if (*text == DATE[0]) fh_buf_puts(&w->out, w->date);
        else fh_buf_add(&w->out, text, 1);
    }
}

static span text_of(const fh_message *m) { return (span){m->text, m->len}; }

/* A reply: where the model thinks aloud, thoughts before the last question are left out. */
static void assistant(writer *w, span t, bool after_question)
{
    const style *s = w->chat->style;
    span thoughts = {"", 0};
    const char *end;
    if ((s->how & THINKS) && (end = find(t, "</think>", false))) {
        thoughts = strip_lines((span){t.s, (size_t)(end - t.s)}, false, true);
        const char *begin = find(thoughts, "<think>", true);
        if (begin) thoughts.len -= (size_t)(begin + 7 - thoughts.s), thoughts.s = begin + 7;
        thoughts = strip_lines(thoughts, true, false);
        end = find(t, "</think>", true) + 8;
        t = strip_lines((span){end, t.len - (size_t)(end - t.s)}, true, false);
    }
    piece(w, s->before_assistant);
    if (thoughts.len && after_question) {
        thoughts = strip_lines(thoughts, true, true), t = strip_lines(t, true, false);
        piece(w, "<think>\n");
        fh_buf_add(&w->out, thoughts.s, thoughts.len);
        piece(w, "\n</think>\n\n");
    }
    if (s->how & STRIP_ASSISTANT) t = strip(t);
    fh_buf_add(&w->out, t.s, t.len);
    piece(w, s->after_assistant);
}

/* A question, with the system message before it where that is its place. */
static fh_status question(writer *w, span t, const fh_message *system, fh_err *err)
{
    const style *s = w->chat->style;
    piece(w, s->before_user);
    if (system && (s->how & STRIP_FOLDED)) {
        writer inner = {w->chat, w->date, {0}};
        piece(&inner, s->before_system);
        fh_buf_add(&inner.out, system->text, system->len);
        piece(&inner, s->after_system);
        fh_buf_add(&inner.out, t.s, t.len);
        if (!inner.out.failed) t = strip((span){inner.out.data, inner.out.len}), fh_buf_add(&w->out, t.s, t.len);
        bool failed = inner.out.failed;
        fh_buf_free(&inner.out);
        if (failed) return fh_fail(err, FH_ENOMEM, "%s: out of memory for a conversation", w->chat->name);
    } else {
        if (system) {
            piece(w, s->before_system);
            fh_buf_add(&w->out, system->text, system->len);
            piece(w, s->after_system);
        }
        if (s->how & (STRIP_USER | STRIP_FOLDED)) t = strip(t);
        fh_buf_add(&w->out, t.s, t.len);
    }
    piece(w, s->after_user);
    return FH_OK;
}

static fh_status check(const fh_chat *c, const fh_message *m, size_t n, fh_err *err)
{
    size_t first = n && m[0].role == FH_SYSTEM;
    if (!c->style) return fh_fail(err, FH_EUSAGE, "%s: no chat template is chosen", c->name);
    if (first && c->style->system == FOLD_REFUSED)
        return fh_fail(err, FH_EUNSUPPORTED, "%s: its chat template (%s) has no system message: leave out --system", c->name, c->style->name);
    if (n <= first || (n - first) % 2 == 0) return fh_fail(err, FH_EUSAGE, "%s: a conversation ends with a user's message", c->name);
    for (size_t i = first; i < n; i++)
        if (m[i].role != ((i - first) % 2 ? FH_ASSISTANT : FH_USER))
            return fh_fail(err, FH_EUSAGE, "%s: message %zu: user and assistant take turns, after an optional system message", c->name, i);
    return FH_OK;
}

fh_status fh_chat_render(const fh_chat *c, const fh_message *m, size_t n, const char *date, char **text, size_t *len, fh_err *err)
{
    fh_status rc = check(c, m, n, err);
    if (rc < 0) return rc;
    const style *s = c->style;
    const fh_message *system = m[0].role == FH_SYSTEM ? m : NULL;
    size_t first = system != NULL, last_question = n - 1;
    writer w = {c, date, {0}};
    piece(&w, s->first);
    if (s->system == FOLD_TURN && (system || s->standing)) {
        span t = system ? text_of(system) : (span){s->standing, strlen(s->standing)};
        if (s->how & STRIP_SYSTEM) t = strip(t);
        piece(&w, s->before_system);
        fh_buf_add(&w.out, t.s, t.len);
        piece(&w, s->after_system);
    }
    /* What a tool says comes as a user's message, and is no question. */
    while (last_question > first && wrapped(text_of(&m[last_question]), "<tool_response>", "</tool_response>")) last_question -= 2;
    if (wrapped(text_of(&m[last_question]), "<tool_response>", "</tool_response>")) last_question = n - 1;
    for (size_t i = first; i < n && rc == FH_OK; i++) {
        if (m[i].role == FH_ASSISTANT) {
            assistant(&w, text_of(&m[i]), i > last_question);
            continue;
        }
        bool here = (s->system == FOLD_FIRST && i == first) || (s->system == FOLD_LAST && i + 1 == n);
        rc = question(&w, text_of(&m[i]), here ? system : NULL, err);
    }
    piece(&w, s->prompt);
    if (c->no_think) piece(&w, "<think>\n\n</think>\n\n"); /* thoughts that are over already */
    *len = w.out.len;
    if (rc == FH_OK && !(*text = fh_buf_take(&w.out))) rc = fh_fail(err, FH_ENOMEM, "%s: out of memory for a conversation", c->name);
    fh_buf_free(&w.out);
    return rc;
}
