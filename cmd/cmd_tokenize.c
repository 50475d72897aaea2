/* tokenize and detokenize: line by line, JSON in, JSON out. */
#include <stdio.h>
#include <string.h>

#include "cmd/cmd.h"

typedef struct args { fh_common common; fh_str batch, text; bool no_special, skip_special; } args;
static const fh_opt tokenize_options[] = {
    {"batch", FH_OPT_STR, offsetof(args, batch), "FILE", "one JSON string a line ('-': standard input)", 0, 0, NULL},
    {"text", FH_OPT_STR, offsetof(args, text), "TEXT", "one text, instead of --batch", 0, 0, NULL},
    {"no-special", FH_OPT_FLAG, offsetof(args, no_special), NULL, "without the tokens that the post-processor adds", 0, 0, NULL},
    FH_COMMON_OPTS, FH_OPT_END,
};
static const fh_opt detokenize_options[] = {
    {"batch", FH_OPT_STR, offsetof(args, batch), "FILE", "one JSON array of ids a line ('-': standard input)", 0, 0, NULL},
    {"skip-special", FH_OPT_FLAG, offsetof(args, skip_special), NULL, "leave special tokens out", 0, 0, NULL},
    FH_COMMON_OPTS, FH_OPT_END,
};

static fh_status print_line(fh_json *owned, fh_err *err)
{
    char *text = fh_json_print(owned, false), *line = text ? fh_sprintf("%s\n", text) : NULL;
    fh_status rc = line ? fh_print(line, strlen(line), err) : fh_fail(err, FH_ENOMEM, "out of memory");
    fh_free(line);
    fh_free(text);
    fh_json_free(owned);
    return rc;
}

static fh_status encode_one(const fh_tokenizer *t, const char *text, size_t len, bool special, fh_err *err)
{
    uint32_t *ids = NULL;
    size_t n;
    fh_status rc = fh_tokenizer_encode(t, text, len, special, &ids, &n, err);
    if (rc < 0) return rc;
    fh_json *list = fh_json_array();
    for (size_t i = 0; i < n; i++) fh_json_add_u64(list, NULL, ids[i]);
    fh_free(ids);
    return print_line(list, err);
}

static fh_status decode_one(const fh_tokenizer *t, const fh_json *list, const char *where, bool skip, fh_err *err)
{
    uint32_t *ids = fh_malloc(fh_max(fh_json_count(list), 1) * sizeof *ids);
    size_t n = 0, len;
    char *text = NULL;
    fh_status rc = ids ? FH_OK : fh_fail(err, FH_ENOMEM, "out of memory");
    for (const fh_json *i = fh_json_first(list); i && rc == FH_OK; i = fh_json_next(i)) {
        uint64_t id;
        if (!fh_json_u64(i, &id) || id > UINT32_MAX - 1) rc = fh_fail(err, FH_EFORMAT, "%s: element %zu is no token id", where, n);
        else ids[n++] = (uint32_t)id;
    }
    if (rc == FH_OK) rc = fh_tokenizer_decode(t, ids, n, skip, &text, &len, err);
    char *line = rc == FH_OK ? fh_json_text_print(text, len) : NULL;
    if (rc == FH_OK && !line) rc = fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc == FH_OK) rc = fh_print(line, strlen(line), err);
    if (rc == FH_OK) rc = fh_print("\n", 1, err);
    fh_free(line);
    fh_free(text);
    fh_free(ids);
    return rc;
}

static fh_status batch(const args *a, const fh_tokenizer *t, bool decode, fh_err *err)
{
    char *data = NULL, where[300];
    size_t len, number = 0;
    fh_status rc = fh_file_read(&data, &len, a->batch.v, (size_t)1 << 32, err);
    if (rc < 0) return rc;
    for (char *s = data, *end; s < data + len && rc == FH_OK; s = end + 1) {
        end = memchr(s, '\n', (size_t)(data + len - s));
        if (!end) end = data + len;
        number++;
        if (s + strspn(s, " \t\r\n") >= end) continue;
        snprintf(where, sizeof where, "%.200s: line %zu", a->batch.v, number);
        if (decode) {
            fh_json *j = NULL;
            if ((rc = fh_json_parse(&j, s, (size_t)(end - s), where, err)) < 0) break;
            rc = fh_json_type(j) == FH_JSON_ARRAY ? decode_one(t, j, where, a->skip_special, err) : fh_fail(err, FH_EFORMAT, "%s: is not a JSON array of ids", where);
            fh_json_free(j);
        } else {
            char *text = NULL;
            size_t n;
            if ((rc = fh_json_text_parse(&text, &n, s, (size_t)(end - s), where, err)) < 0) break;
            rc = encode_one(t, text, n, !a->no_special, err);
            fh_free(text);
        }
    }
    fh_free(data);
    return rc;
}

static fh_status go(const args *a, bool decode, const fh_job *job, fh_err *err)
{
    fh_model m = {0};
    if (!a->batch.set && !a->text.set) return fh_fail(err, FH_EUSAGE, "%s: --batch is missing: which lines?", decode ? "detokenize" : "tokenize");
    if (a->batch.set && a->text.set) return fh_fail(err, FH_EUSAGE, "tokenize: give --batch or --text, one of them");
    fh_status rc = fh_model_open(&m, a->common.args[0], NULL, FH_MODEL_TOKENIZER, job, err);
    if (rc == FH_OK) rc = a->text.set ? encode_one(m.tokenizer, a->text.v, strlen(a->text.v), !a->no_special, err) : batch(a, m.tokenizer, decode, err);
    fh_model_close(&m);
    return rc;
}

static fh_status tokenize(void *p, const fh_job *job, fh_err *err) { return go(p, false, job, err); }
static fh_status detokenize(void *p, const fh_job *job, fh_err *err) { return go(p, true, job, err); }

const fh_command fh_cmd_tokenize = {"tokenize", "text into token ids", "MODEL", 1, 1, tokenize_options, sizeof(args), tokenize,
    "Of MODEL (a directory, a .gguf or a bundled .fhead) only the tokenizer is needed.  Prints one JSON array of ids a line.", "fhtool tokenize ~/models/SmolLM2-135M --text 'Hello, world'"};
const fh_command fh_cmd_detokenize = {"detokenize", "token ids into text", "MODEL", 1, 1, detokenize_options, sizeof(args), detokenize,
    "Prints one JSON string a line.", "fhtool detokenize ~/models/SmolLM2-135M --batch ids.jsonl --skip-special"};
