/* runtime/tokenizer_private.h: how the tokenizer's files see one another.
 *
 * A tokenizer.json is read into flat lists of steps, one list a stage (normalizers, pre-tokenizers, decoders), each made by a row of a
 * table {type, parse}.  A step is a function and its parameters.  All that a call changes lies in an fh_tok_call, so that a tokenizer
 * is immutable once opened.
 */
#ifndef FH_TOKENIZER_PRIVATE_H
#define FH_TOKENIZER_PRIVATE_H

#include "runtime/runtime.h"

#define FH_TOK_NONE UINT32_MAX
enum {
    FH_TOK_MAX_IDS = 1 << 22,    /* ids lie below it: the table by id stays within 40 MiB */
    FH_TOK_MAX_MERGES = 1 << 22, /* the largest published vocabularies have about 600,000 */
    FH_TOK_MAX_STEPS = 32,       /* of one stage, sequences unrolled */
    FH_TOK_MAX_DEPTH = 8,        /* sequences in sequences */
    FH_TOK_MAX_REGEXES = 32,
    FH_TOK_LOW_CHARS = 384       /* code points whose token is found by index: the images of the byte map lie below U+0144 */
};

/* ---- characters (tokenizer_unicode.c; it alone sees utf8proc) ------------------------------------------------- */

/* The character at s, which is valid UTF-8, and its length. */
static inline uint32_t fh_tok_char(const char *s, size_t *n)
{
    const unsigned char *u = (const unsigned char *)s;
    if (u[0] < 0x80) { *n = 1; return u[0]; }
    if (u[0] < 0xE0) { *n = 2; return (u[0] & 0x1Fu) << 6 | (u[1] & 0x3Fu); }
    if (u[0] < 0xF0) { *n = 3; return (u[0] & 0x0Fu) << 12 | (u[1] & 0x3Fu) << 6 | (u[2] & 0x3Fu); }
    *n = 4;
    return (u[0] & 0x07u) << 18 | (u[1] & 0x3Fu) << 12 | (u[2] & 0x3Fu) << 6 | (u[3] & 0x3Fu);
}
/* The character that ends at s + len (len > 0), and its length. */
static inline uint32_t fh_tok_last_char(const char *s, size_t len, size_t *n)
{
    size_t at = len - 1;
    while (at && ((unsigned char)s[at] & 0xC0) == 0x80) at--;
    return fh_tok_char(s + at, n);
}
size_t fh_tok_put_char(char out[4], uint32_t c); /* encode; returns the length */
bool fh_tok_is_space(uint32_t c);                /* White_Space */
bool fh_tok_is_number(uint32_t c);               /* categories Nd, Nl, No */
bool fh_tok_is_mark(uint32_t c);                 /* categories Mn, Mc, Me */
bool fh_tok_is_word(uint32_t c);                 /* \w of UTS 18: Alphabetic, M, Nd, Pc, Join_Control */
size_t fh_tok_lower(uint32_t c, uint32_t out[2]); /* full lower case of one character: 1 or 2 characters */
typedef enum fh_tok_form { FH_TOK_NFC, FH_TOK_NFD, FH_TOK_NFKC, FH_TOK_NFKD } fh_tok_form;
/* Append the normal form of valid UTF-8 to `out`; linear time whatever the text.  False: out of memory. */
bool fh_tok_normal_form(fh_buf *out, fh_tok_form form, const char *text, size_t len);
bool fh_tok_is_normal(fh_tok_form form, const char *text, size_t len); /* surely so already; false: not known */
/* Append `text` with every ill-formed part (maximal subpart, Unicode 15 table 3-7) as U+FFFD.  `final` false: an incomplete
 * character at the end is left; returns how many bytes were taken. */
size_t fh_tok_lossy(fh_buf *out, const char *text, size_t len, bool final);

/* Room for n more bytes and a final NUL: where to write, NULL when out of memory.  The caller adds to b->len. */
char *fh_tok_room(fh_buf *b, size_t n);

/* GPT-2's map of bytes to printable characters. */
typedef struct fh_tok_image { uint8_t len; char utf8[2]; } fh_tok_image;
void fh_tok_images(fh_tok_image out[256]);       /* byte -> UTF-8 of its image */
void fh_tok_bytes(int16_t out[FH_TOK_LOW_CHARS]);  /* code point -> byte, -1: no image */

/* ---- a map from 64-bit keys (tokenizer_vocab.c) --------------------------------------------------------------- */

typedef struct fh_tok_slot { uint64_t key, value; } fh_tok_slot; /* key UINT64_MAX: empty */
typedef struct fh_tok_map { fh_tok_slot *slots; size_t mask, n; uint64_t seed; } fh_tok_map;
bool fh_tok_map_put(fh_tok_map *m, uint64_t key, uint64_t value); /* replaces; false: out of memory */
static inline uint64_t fh_tok_mix(uint64_t x)
{
    x *= 0x9E3779B97F4A7C15u;
    return x ^ x >> 32;
}
static inline const uint64_t *fh_tok_map_get(const fh_tok_map *m, uint64_t key) /* NULL when absent */
{
    if (!m->n) return NULL;
    for (size_t i = fh_tok_mix(key ^ m->seed) & m->mask;; i = (i + 1) & m->mask) {
        if (m->slots[i].key == key) return &m->slots[i].value;
        if (m->slots[i].key == UINT64_MAX) return NULL;
    }
}
static inline uint64_t fh_tok_pair(uint32_t a, uint32_t b) { return (uint64_t)a << 32 | b; }

/* ---- the vocabulary (tokenizer_vocab.c) ----------------------------------------------------------------------- */

enum { FH_TOK_PRESENT = 1, FH_TOK_IN_VOCAB = 2, FH_TOK_SPECIAL = 4 };
typedef struct fh_tok_string { uint32_t at, len; } fh_tok_string; /* a part of a blob */
typedef struct fh_tok_vocab {
    char *blob; size_t blob_len;
    fh_tok_string *strings;              /* [size] by id, as tokenizer.json spells them */
    uint8_t *flags;                      /* [size] FH_TOK_* */
    uint32_t size, count;                /* highest id + 1; how many there are */
    uint32_t *slots; size_t mask; uint64_t seed; /* string -> id */
    uint32_t low[FH_TOK_LOW_CHARS];      /* code point -> id of that character in the model's vocabulary */
    uint32_t byte_ids[256];              /* of <0x00> ... <0xFF>, when byte_fallback */
    uint32_t unk; bool fuse_unk, byte_fallback, ignore_merges;
    char *missing_unk;                   /* unk_token where the vocabulary lacks it, else NULL */
    fh_tok_map merges;                   /* (left, right) -> rank << 32 | merged id */
    uint32_t *merged;                    /* [n_merges] rank -> merged id */
    size_t n_merges;
    fh_tok_map joins;                    /* (a, b): a merge can join a token that ends in symbol a to one that begins with b */
} fh_tok_vocab;
static inline const char *fh_tok_text_of(const fh_tok_vocab *v, uint32_t id, size_t *len)
{
    *len = v->strings[id].len;
    return v->blob + v->strings[id].at;
}
uint32_t fh_tok_find_id(const fh_tok_vocab *v, const char *s, size_t len);    /* FH_TOK_NONE when absent */
uint32_t fh_tok_find_model(const fh_tok_vocab *v, const char *s, size_t len); /* the same, of the model's own vocabulary alone */

/* ---- patterns (tokenizer_regex.c; it alone sees PCRE2) ----------------------------------------------------------- */

typedef struct fh_tok_regex fh_tok_regex;
typedef struct fh_tok_matcher fh_tok_matcher; /* what one call needs to use a regex */
typedef struct fh_tok_pattern {
    char *literal; size_t literal_len;   /* or */
    fh_tok_regex *regex; unsigned index; /* of the matcher in a call */
} fh_tok_pattern;
typedef struct fh_tok_call fh_tok_call;
typedef struct fh_tok_load fh_tok_load;
fh_status fh_tok_regex_new(fh_tok_regex **out, const char *pattern, const char *name, const char *place, fh_err *err);
void fh_tok_regex_free(fh_tok_regex *r);      /* accepts NULL */
void fh_tok_matcher_free(fh_tok_matcher *m);  /* accepts NULL */
/* The pattern rewritten from the reference's syntax (Oniguruma, Ruby) to PCRE2's: freed with fh_free.  FH_EUNSUPPORTED
 * names what has no counterpart.  (tokenizer_onig.c) */
fh_status fh_tok_translate(char **out, const char *pattern, const char *name, const char *place, fh_err *err);

/* Matches from left to right, none overlapping; an empty one directly behind another match is passed over. */
typedef struct fh_tok_scan {
    const fh_tok_pattern *pattern; fh_tok_matcher *matcher;
    const char *text, *subject; size_t len, at, last_end; bool any;
    size_t start, end; /* the match found */
} fh_tok_scan;
fh_status fh_tok_scan_begin(fh_tok_scan *s, fh_tok_call *c, const fh_tok_pattern *pattern, const char *text, size_t len);
fh_status fh_tok_scan_next(fh_tok_scan *s, fh_tok_call *c, bool *found);

/* ---- steps ----------------------------------------------------------------------------------------------------- */

typedef struct fh_tok_view { const char *text; size_t len; } fh_tok_view;
typedef struct fh_tok_span { uint32_t start, end; } fh_tok_span;
/* A stretch of text cut in pieces. */
typedef struct fh_tok_pieces {
    const char *text; fh_buf own;        /* borrowed, or own.data */
    fh_tok_span *spans; size_t n, cap;   /* in order; none is empty */
    bool first;                          /* spans[0] begins where the whole input begins */
} fh_tok_pieces;
typedef enum fh_tok_behavior {
    FH_TOK_ISOLATED, FH_TOK_REMOVED, FH_TOK_MERGED_PREVIOUS, FH_TOK_MERGED_NEXT, FH_TOK_CONTIGUOUS
} fh_tok_behavior;
typedef enum fh_tok_scheme { FH_TOK_ALWAYS, FH_TOK_FIRST, FH_TOK_NEVER } fh_tok_scheme;

typedef struct fh_tok_step fh_tok_step;
struct fh_tok_step {
    /* One of these, by stage.  normalize: leave `io` alone, or write to `out` and point `io` there. */
    fh_status (*normalize)(fh_tok_call *c, const fh_tok_step *s, fh_tok_view *io, fh_buf *out);
    fh_status (*split)(fh_tok_call *c, const fh_tok_step *s, const fh_tok_pieces *in, fh_tok_pieces *out);
    bool (*push)(fh_stream *d, size_t step, const char *text, size_t len); /* false: failed, and said so */
    bool (*finish)(fh_stream *d, size_t step);
    bool fuses;                          /* decoder: what comes out is one string, however many went in */
    /* Decoder behind one that fuses, and not able to work on parts of a string: what is run on the whole at the end. */
    bool (*whole_push)(fh_stream *d, size_t step, const char *text, size_t len);
    bool (*whole_finish)(fh_stream *d, size_t step);
    fh_tok_pattern pattern;
    char *content; size_t content_len;   /* what is put in; for Metaspace the replacement */
    fh_tok_behavior behavior; bool invert;
    bool left, right;                    /* Strip */
    bool (*is)(uint32_t c);              /* a class of characters to split at */
    fh_tok_scheme scheme;
    fh_tok_form form;
    uint32_t start, stop;                /* Strip decoder */
};
typedef struct fh_tok_steps { fh_tok_step items[FH_TOK_MAX_STEPS]; size_t n; } fh_tok_steps;

/* A row of a stage's table. */
typedef struct fh_tok_kind {
    const char *type;
    fh_status (*parse)(fh_tok_load *l, const fh_json *j, fh_tok_steps *to);
} fh_tok_kind;

struct fh_tok_load {
    fh_tokenizer *t;
    const char *name; const fh_job *job; fh_err *err;
    char place[200];                     /* of what is being read: "pre_tokenizer.pretokenizers[1]" */
};
/* Unroll one stage: objects of type Sequence hold the others in the array `list`. */
fh_status fh_tok_steps_parse(fh_tok_load *l, const fh_json *j, const char *stage, const char *list, const fh_tok_kind *kinds,
                             fh_tok_steps *to);
void fh_tok_steps_free(fh_tok_steps *steps);
fh_status fh_tok_step_add(fh_tok_load *l, fh_tok_steps *to, fh_tok_step **out); /* a zeroed one; fails when there are too many */
/* Members of the object at l->place; absent (or null) gives `standard` (NULL for a string: it is needed), another type fails. */
fh_status fh_tok_get_bool(fh_tok_load *l, const fh_json *j, const char *key, bool standard, bool *out);
fh_status fh_tok_get_string(fh_tok_load *l, const fh_json *j, const char *key, const char *standard, const char **out);
fh_status fh_tok_get_pattern(fh_tok_load *l, const fh_json *j, fh_tok_pattern *out); /* "pattern": {"String"} or {"Regex"} */
fh_status fh_tok_set_regex(fh_tok_load *l, fh_tok_pattern *out, const char *regex);
fh_status fh_tok_set_content(fh_tok_load *l, fh_tok_step *s, const char *content);
fh_status fh_tok_bad(fh_tok_load *l, const char *what); /* FH_EFORMAT at l->place */
fh_status fh_tok_nomem(const char *name, fh_err *err);

extern const fh_tok_kind fh_tok_normalizers[], fh_tok_splitters[], fh_tok_decoders[]; /* each ends with a NULL type */
fh_status fh_tok_decode_plain(fh_tok_load *l, fh_tok_steps *to); /* where there is no decoder */
/* The steps of a Replace, for normalizers and decoders. */
fh_status fh_tok_replace(fh_tok_call *c, const fh_tok_step *s, const char *text, size_t len, fh_buf *out, bool *changed);
fh_status fh_tok_parse_replace(fh_tok_load *l, const fh_json *j, fh_tok_step *s);
fh_status fh_tok_parse_metaspace(fh_tok_load *l, const fh_json *j, fh_tok_step *s); /* replacement and scheme */

/* ---- added tokens (tokenizer_added.c) ----------------------------------------------------------------------------- */

typedef struct fh_tok_added { uint32_t id; bool single_word, lstrip, rstrip, normalized; fh_tok_string pattern; } fh_tok_added;
/* The added tokens that one pass looks for: an automaton over their patterns read backwards. */
typedef struct fh_tok_finder {
    fh_tok_added *entries; size_t n_entries;
    char *blob; size_t blob_len;         /* the patterns */
    uint32_t root[256]; fh_tok_map edges; /* (node, byte) -> node; 0 is the root, and no edge */
    uint32_t *fail, *out;                /* [nodes] out: entry + 1 of the longest pattern that ends here */
    size_t nodes;
} fh_tok_finder;
typedef struct fh_tok_part { size_t start, end; uint32_t id; } fh_tok_part; /* id FH_TOK_NONE: text between */
fh_status fh_tok_added_load(fh_tok_load *l, const fh_json *list); /* after the normalizers */
/* Cut `text`; the parts are appended to *parts. */
fh_status fh_tok_added_split(fh_tok_call *c, const fh_tok_finder *f, const char *text, size_t len, fh_tok_part **parts, size_t *n,
                             size_t *cap);
void fh_tok_finder_free(fh_tok_finder *f);

/* ---- the tokenizer ------------------------------------------------------------------------------------------------- */

typedef struct fh_tok_ids { uint32_t *ids; size_t n, cap; } fh_tok_ids;
bool fh_tok_ids_add(fh_tok_ids *a, uint32_t id);
bool fh_tok_ids_room(fh_tok_ids *a, size_t n); /* for n more */

struct fh_tokenizer {
    char *name;
    fh_tok_vocab vocab;
    fh_tok_finder raw, normalized;       /* added tokens looked for before and after normalization */
    fh_tok_steps normalizers, splitters, decoders;
    unsigned n_regexes;
    fh_tok_ids prefix, suffix;           /* of the post-processor */
    fh_tok_image images[256];            /* the byte map, both ways */
    int16_t bytes[FH_TOK_LOW_CHARS];
    char *pieces; fh_tok_string *piece;  /* [size] each token's bytes as decoding gives them */
};
fh_status fh_tok_vocab_load(fh_tok_load *l, const fh_json *root);
void fh_tok_vocab_free(fh_tok_vocab *v);
fh_status fh_tok_post_load(fh_tok_load *l, const fh_json *post, const fh_json *config); /* either may be NULL */
fh_status fh_tok_pieces_load(fh_tok_load *l);  /* after the decoders */

/* What one call needs; ended by fh_tok_call_end. */
typedef struct fh_tok_bpe fh_tok_bpe;
struct fh_tok_call {
    const fh_tokenizer *t;
    fh_err *err;
    double searched, may_search;         /* seconds spent on regexes, and how many may be */
    fh_tok_matcher *matchers[FH_TOK_MAX_REGEXES];
    fh_tok_pieces pieces[2];
    fh_buf text[2];                      /* normalizers write in turn */
    fh_tok_bpe *bpe;
    fh_tok_ids ids;                      /* the result */
};
void fh_tok_call_begin(fh_tok_call *c, const fh_tokenizer *t, size_t len, fh_err *err); /* len: of the text */
void fh_tok_call_clock(fh_tok_call *c, size_t len); /* begin the time that regexes may take anew, for a text of this length */
void fh_tok_call_end(fh_tok_call *c);
fh_status fh_tok_normalize(fh_tok_call *c, fh_tok_view *io); /* the result lies in c->text until the next */

/* Byte-pair encoding of one piece: ids are appended to c->ids.  O(n log n).  (tokenizer_bpe.c) */
fh_status fh_tok_bpe_piece(fh_tok_call *c, const char *text, size_t len);
fh_tok_bpe *fh_tok_bpe_new(const fh_tok_vocab *v, size_t len); /* len: of the whole text; NULL when out of memory */
void fh_tok_bpe_free(fh_tok_bpe *b);                           /* accepts NULL */

#endif
