/* From the regex syntax of the reference engine (Oniguruma with Ruby's syntax) to PCRE2's.
 *
 * The published patterns mean the same in both.  What differs is rewritten here, so that a pattern nobody foresaw does not split
 * differently in silence; what has no counterpart is refused by name.
 *
 *   \w \W \b \B   a word character is alphabetic, a mark, a decimal digit or a connector (PCRE2 10.42: a letter, a number or _)
 *   \h \H \v      hexadecimal digits (PCRE2: horizontal space); a vertical tab (PCRE2: vertical space)
 *   \uHHHH        the character with that number
 *   X{n,m}+       repeated again (PCRE2: possessive);  X{n}?  optional (PCRE2: lazy);  {,m} is {0,m} (PCRE2: literal)
 *   (?m)          a dot that matches line breaks too (PCRE2: s);  ^ and $ are always per line
 *   a(?i)b|c      a(?i:b|c) (PCRE2: a(?i:b)|(?i:c))
 *   [[:punct:]]   symbols too, and other POSIX classes in their Unicode sense
 *   \p{Han}       the script of a character (PCRE2: any script that uses it)
 */
#include "runtime/tokenizer_private.h"

#include <string.h>

/* Measured over all code points; the numbers of Latin-1 count outside brackets alone. */
#define WORD "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"
#define WORD_ALONE "[" WORD "\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}]"
#define NO_WORD_ALONE "[^" WORD "\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}]"
enum { MAX_GROUPS = 64 };

typedef struct rewriter {
    const char *in, *pattern, *name, *place;
    fh_err *err;
    fh_buf out;
    size_t atom;                /* where the last atom begins in `out`: what a repeat behind it repeats; SIZE_MAX: none */
    size_t depth;
    struct { size_t start; unsigned options; } groups[MAX_GROUPS + 1]; /* [0]: the pattern; options: groups opened for (?i) alone */
} rewriter;

static fh_status refuse(rewriter *r, const char *what)
{
    char shown[200];
    return fh_fail(r->err, FH_EUNSUPPORTED, "%s: %s: the regex '%s' has %s (byte %zu), which is not supported", r->name, r->place,
                   fh_show(shown, sizeof shown, r->pattern, strlen(r->pattern)), what, (size_t)(r->in - r->pattern));
}

static bool is_hex(char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }
static bool is_alpha(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
static bool is_digit(char c) { return c >= '0' && c <= '9'; }

/* \p{...}, \P{...}, \p{^...}: categories as they are, long names of categories shortened, anything else is taken for a script. */
static fh_status property(rewriter *r)
{
    static const char *const longs[][2] = {
        {"letter", "L"}, {"mark", "M"}, {"number", "N"}, {"punctuation", "P"}, {"punct", "P"}, {"symbol", "S"}, {"separator", "Z"},
        {"other", "C"}, {"uppercaseletter", "Lu"}, {"lowercaseletter", "Ll"}, {"decimalnumber", "Nd"}, {"digit", "Nd"},
        {"alpha", "Alphabetic"}, {"alphabetic", "Alphabetic"}, {"upper", "Uppercase"}, {"uppercase", "Uppercase"},
        {"lower", "Lowercase"}, {"lowercase", "Lowercase"}, {"ideographic", "Ideographic"}, {"emoji", "Emoji"}, {"any", "Any"},
    };
    const char *s = r->in + 2, *end = *s == '{' ? strchr(s, '}') : NULL;
    char plain[40];
    size_t n = 0;
    bool negative = r->in[1] == 'P';
    if (!end) return refuse(r, "a property without braces");
    if (*++s == '^') negative = !negative, s++;
    const char *name = s;
    for (; s < end; s++) {
        if (*s == '_' || *s == ' ' || *s == '-') continue;
        if (n + 1 >= sizeof plain || !(is_alpha(*s) || is_digit(*s))) return refuse(r, "a property of unknown name");
        plain[n++] = (char)(*s >= 'A' && *s <= 'Z' ? *s + 32 : *s);
    }
    plain[n] = 0;
    if (!n) return refuse(r, "a property without a name");
    const char *known = NULL;
    for (size_t i = 0; i < sizeof longs / sizeof *longs; i++)
        if (!strcmp(longs[i][0], plain)) known = longs[i][1];
    fh_buf_puts(&r->out, negative ? "\\P{" : "\\p{");
    if (known) fh_buf_puts(&r->out, known);
    else if (n <= 2) fh_buf_add(&r->out, name, (size_t)(end - name));
    else fh_buf_puts(&r->out, "sc:"), fh_buf_add(&r->out, name, (size_t)(end - name));
    fh_buf_puts(&r->out, "}");
    r->in = end + 1;
    return FH_OK;
}

static fh_status escape(rewriter *r, bool in_class)
{
    char c = r->in[1];
    const char *as = NULL;
    switch (c) {
    case 0: return refuse(r, "a backslash at its end");
    case 'p': case 'P': return property(r);
    case 'w': as = in_class ? WORD : WORD_ALONE; break;
    case 'h': as = in_class ? "0-9A-Fa-f" : "[0-9A-Fa-f]"; break;
    case 'W':
        if (in_class) return refuse(r, "\\W inside a class");
        as = NO_WORD_ALONE;
        break;
    case 'H':
        if (in_class) return refuse(r, "\\H inside a class");
        as = "[^0-9A-Fa-f]";
        break;
    case 'b':
        as = in_class ? "\\x08" : "(?:(?<=" WORD_ALONE ")(?!" WORD_ALONE ")|(?<!" WORD_ALONE ")(?=" WORD_ALONE "))";
        break;
    case 'B':
        if (in_class) return refuse(r, "\\B inside a class");
        as = "(?:(?<=" WORD_ALONE ")(?=" WORD_ALONE ")|(?<!" WORD_ALONE ")(?!" WORD_ALONE "))";
        break;
    case 'u':
        for (int i = 2; i < 6; i++)
            if (!is_hex(r->in[i])) return refuse(r, "\\u without four hexadecimal digits");
        fh_buf_puts(&r->out, "\\x{");
        fh_buf_add(&r->out, r->in + 2, 4);
        fh_buf_puts(&r->out, "}");
        r->in += 6;
        return FH_OK;
    case 'x': /* \xHH from 80 on is a byte there, not a character */
        if (is_hex(r->in[2]) && r->in[2] >= '8') return refuse(r, "a byte that is no character");
        break;
    case 'd': case 's': case 'D': case 'S': case 'n': case 'r': case 't': case 'f': case 'a': case 'e':
        break;
    case 'v': as = "\\x0B"; break;
    case 'A': case 'z': case 'Z': case 'G': case 'K': case 'R': case 'X':
        if (in_class) return refuse(r, "an escape that is no character inside a class");
        break;
    default:
        /* Other letters mean different things in the two, digits are back references: none is needed to cut text. */
        if (is_alpha(c) || is_digit(c)) return refuse(r, "an escape that is not known");
    }
    if (as) {
        fh_buf_puts(&r->out, as);
        r->in += 2;
        return FH_OK;
    }
    size_t n = 1;
    fh_tok_char(r->in + 1, &n);
    fh_buf_add(&r->out, r->in, 1 + n);
    r->in += 1 + n;
    return FH_OK;
}

/* [:alpha:] and its kin, inside a class. */
static fh_status posix_class(rewriter *r)
{
    static const char *const known[][2] = {
        {"[:alpha:]", "\\p{Alphabetic}"}, {"[:alnum:]", "\\p{Alphabetic}\\p{Nd}"}, {"[:word:]", WORD}, {"[:punct:]", "\\p{P}\\p{S}"},
        {"[:digit:]", "\\d"}, {"[:space:]", "\\s"}, {"[:blank:]", "\\t\\p{Zs}"}, {"[:xdigit:]", "0-9A-Fa-f"},
        {"[:upper:]", "\\p{Uppercase}"}, {"[:lower:]", "\\p{Lowercase}"},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strncmp(known[i][0], r->in, strlen(known[i][0]))) {
            fh_buf_puts(&r->out, known[i][1]);
            r->in += strlen(known[i][0]);
            return FH_OK;
        }
    return refuse(r, "a class inside a class");
}

static fh_status class(rewriter *r)
{
    fh_status rc;
    fh_buf_puts(&r->out, "[");
    r->in++;
    if (*r->in == '^') fh_buf_puts(&r->out, "^"), r->in++;
    if (*r->in == ']') return refuse(r, "an empty class");
    while (*r->in != ']') {
        if (!*r->in) return refuse(r, "a class that does not end");
        if (r->in[0] == '&' && r->in[1] == '&') return refuse(r, "an intersection of classes");
        if (*r->in == '\\') {
            if ((rc = escape(r, true)) < 0) return rc;
            continue;
        }
        if (*r->in == '[') {
            if ((rc = posix_class(r)) < 0) return rc;
            continue;
        }
        size_t n;
        fh_tok_char(r->in, &n);
        fh_buf_add(&r->out, r->in, n);
        r->in += n;
    }
    fh_buf_puts(&r->out, "]");
    r->in++;
    return FH_OK;
}

static fh_status open_group(rewriter *r)
{
    const char *s = r->in + 1;
    if (*s == '*') return refuse(r, "a verb");
    if (r->depth == MAX_GROUPS) return refuse(r, "more than 64 groups inside one another");
    r->groups[++r->depth].start = r->out.len;
    r->groups[r->depth].options = 0;
    r->atom = SIZE_MAX;
    if (*s != '?') {
        fh_buf_puts(&r->out, "(");
        r->in++;
        return FH_OK;
    }
    s++;
    if (*s == ':' || *s == '=' || *s == '!' || *s == '>') s++;
    else if (*s == '<' && (s[1] == '=' || s[1] == '!')) s += 2;
    else if (*s == '<' && is_alpha(s[1])) {
        while (*s && *s != '>') s++;
        if (!*s) return refuse(r, "a name that does not end");
        s++;
    } else {
        /* Options: (?i:...), and (?i), which groups all up to the end of what it stands in, alternatives too. */
        fh_buf_puts(&r->out, "(?");
        for (; *s == 'i' || *s == 'm' || *s == '-'; s++) fh_buf_add(&r->out, *s == 'm' ? "s" : s, 1);
        if (*s != ')' && *s != ':') return refuse(r, "a group of unknown kind");
        if (*s == ')') r->groups[--r->depth].options++;
        fh_buf_puts(&r->out, ":");
        r->in = s + 1;
        return FH_OK;
    }
    fh_buf_add(&r->out, r->in, (size_t)(s - r->in));
    r->in = s;
    return FH_OK;
}

/* Wrap what was last written, from the last atom on, in a group of its own. */
static void wrap(rewriter *r)
{
    fh_buf_puts(&r->out, "(?:)");
    if (r->out.failed) return;
    size_t len = r->out.len - 4 - r->atom;
    memmove(r->out.data + r->atom + 3, r->out.data + r->atom, len);
    memcpy(r->out.data + r->atom, "(?:", 3);
    r->out.data[r->atom + 3 + len] = ')';
}

/* `{n,m}`, when it is a repeat and not three characters. */
static bool interval(const char *s, const char **end, bool *exact, bool *no_low)
{
    const char *p = s + 1;
    while (is_digit(*p)) p++;
    *no_low = p == s + 1;
    *exact = *p == '}' && !*no_low;
    if (*p == ',') {
        const char *high = ++p;
        while (is_digit(*p)) p++;
        if (*no_low && p == high) return false;
    } else if (*no_low) {
        return false;
    }
    *end = p + 1;
    return *p == '}';
}

static fh_status repeat(rewriter *r, const char *end, bool exact, bool no_low)
{
    if (r->atom == SIZE_MAX) return refuse(r, "a repeat of nothing");
    if (no_low) {
        fh_buf_puts(&r->out, "{0");
        fh_buf_add(&r->out, r->in + 1, (size_t)(end - r->in - 1));
    } else {
        fh_buf_add(&r->out, r->in, (size_t)(end - r->in));
    }
    r->in = end;
    if (*end == '+' || (*end == '?' && exact)) {
        wrap(r);
        fh_buf_add(&r->out, end, 1);
        r->in++;
    }
    return FH_OK;
}

static void close_options(rewriter *r)
{
    while (r->groups[r->depth].options) fh_buf_puts(&r->out, ")"), r->groups[r->depth].options--;
}

static fh_status rewrite(rewriter *r)
{
    while (*r->in && !r->out.failed) {
        const char *end;
        bool exact, no_low;
        size_t before = r->out.len, n;
        fh_status rc = FH_OK;
        switch (*r->in) {
        case '\\': rc = escape(r, false); r->atom = before; break;
        case '[': rc = class(r); r->atom = before; break;
        case '(': rc = open_group(r); break;
        case ')':
            if (!r->depth) return refuse(r, "a parenthesis that closes nothing");
            close_options(r);
            r->atom = r->groups[r->depth--].start;
            fh_buf_puts(&r->out, ")");
            r->in++;
            break;
        case '{':
            if (interval(r->in, &end, &exact, &no_low)) rc = repeat(r, end, exact, no_low);
            else fh_buf_puts(&r->out, "\\{"), r->atom = before, r->in++;
            break;
        default:
            fh_tok_char(r->in, &n);
            fh_buf_add(&r->out, r->in, n);
            if (!strchr("*+?|", *r->in)) r->atom = before;
            if (*r->in == '|') r->atom = SIZE_MAX;
            r->in += n;
        }
        if (rc < 0) return rc;
    }
    close_options(r);
    return r->depth ? refuse(r, "a parenthesis that is not closed") : FH_OK;
}

fh_status fh_tok_translate(char **out, const char *pattern, const char *name, const char *place, fh_err *err)
{
    rewriter r = {.in = pattern, .pattern = pattern, .name = name, .place = place, .err = err, .atom = SIZE_MAX};
    fh_status rc = rewrite(&r);
    if (rc == FH_OK && !(*out = fh_buf_take(&r.out))) rc = fh_tok_nomem(name, err);
    fh_buf_free(&r.out);
    return rc;
}
