/* convert: what a checkpoint's head is, found out once and written down. */
#include "artifacts/stages_private.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- rows that cannot be right -------------------------------------------------------------------------------- */

enum { ROWS_A_TASK = 256 };
typedef struct scan { const fh_rows *head; size_t *first_bad, *first_col; uint64_t *hash; } scan;

/* FNV-1a over 8-byte words would do for speed; equal rows are compared byte for byte afterwards, so the hash only sorts. */
static uint64_t hash_row(const uint8_t *p, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u, w;
    for (; n >= 8; p += 8, n -= 8) memcpy(&w, p, 8), h = (h ^ w) * 0x9e3779b97f4a7c15u, h ^= h >> 29;
    for (; n; p++, n--) h = (h ^ *p) * 0x100000001b3u;
    return h;
}

static bool finite_value(const fh_rows *m, const uint8_t *row, size_t c)
{
    uint32_t w;
    uint16_t b;
    switch (m->dtype) {
    case FH_F32: memcpy(&w, row + 4 * c, 4); return (w & 0x7f800000u) != 0x7f800000u;
    case FH_BF16: memcpy(&b, row + 2 * c, 2); return (b & 0x7f80u) != 0x7f80u;
    default: memcpy(&b, row + 2 * c, 2); return (b & 0x7c00u) != 0x7c00u; /* f16 */
    }
}

static void scan_task(void *ctx, size_t task, unsigned worker)
{
    scan *s = ctx;
    size_t row_bytes = s->head->cols * fh_dtype_size(s->head->dtype);
    s->first_bad[task] = SIZE_MAX;
    for (size_t r = task * ROWS_A_TASK; r < fh_min(s->head->rows, (task + 1) * ROWS_A_TASK); r++) {
        const uint8_t *row = fh_row(s->head, r);
        s->hash[r] = hash_row(row, row_bytes);
        for (size_t c = 0; c < s->head->cols && s->first_bad[task] == SIZE_MAX; c++)
            if (!finite_value(s->head, row, c)) s->first_bad[task] = r, s->first_col[task] = c;
    }
    (void)worker;
}

typedef struct hashed { uint64_t hash; uint32_t row; } hashed;
static int by_hash(const void *a, const void *b)
{
    const hashed *x = a, *y = b;
    return x->hash != y->hash ? (x->hash > y->hash) - (x->hash < y->hash) : (x->row > y->row) - (x->row < y->row);
}

/* Live rows equal to an earlier one: [row, the first like it]. */
static fh_status list_duplicates(fh_json *list, size_t *count, const fh_rows *head, const uint64_t *hash, const uint8_t *dead, fh_err *err)
{
    size_t row_bytes = head->cols * fh_dtype_size(head->dtype), n = 0;
    hashed *h = fh_malloc(head->rows * sizeof *h);
    uint32_t *like = fh_malloc(head->rows * sizeof *like);
    fh_status rc = h && like ? FH_OK : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc < 0) goto out;
    for (size_t r = 0; r < head->rows; r++) {
        like[r] = FH_NO_TOKEN;
        if (!dead[r]) h[n++] = (hashed){hash[r], (uint32_t)r};
    }
    qsort(h, n, sizeof *h, by_hash);
    for (size_t i = 1, first = 0; i < n; i++) {
        if (h[i].hash != h[first].hash) first = i;
        else if (!memcmp(fh_row(head, h[i].row), fh_row(head, h[first].row), row_bytes)) like[h[i].row] = h[first].row;
    }
    *count = 0;
    for (size_t r = 0; r < head->rows; r++) {
        if (like[r] == FH_NO_TOKEN) continue;
        fh_json *pair = fh_json_add_array(list, NULL);
        fh_json_add_u64(pair, NULL, r);
        fh_json_add_u64(pair, NULL, like[r]);
        ++*count;
    }
out:
    fh_free(h);
    fh_free(like);
    return rc;
}

/* ---- the stage ---------------------------------------------------------------------------------------------- */

/* The digest of a file that was read, where there is one. */
static fh_status record_file(fh_json *record, const char *path, const char *key, fh_err *err)
{
    char hex[65];
    if (!fh_file_exists(path)) return FH_OK;
    fh_status rc = fh_file_sha256(hex, NULL, path, NULL, err);
    if (rc < 0) return rc;
    return fh_record_input_digest(record, key, hex) ? FH_OK : fh_fail(err, FH_ENOMEM, "out of memory");
}

/* Digests of what was read, so that a build notices when the checkpoint changes. */
static fh_status record_source(fh_json *record, const char *dir, const fh_checkpoint *c, fh_err *err)
{
    static const char *const files[] = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
                                        "chat_template.jinja"};
    fh_status rc = FH_OK;
    char hex[65], key[64];
    uint8_t digest[32];
    if (fh_is_gguf(dir)) return record_file(record, dir, "@gguf", err); /* all in one */
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char *path = fh_path_join(dir, files[i]);
        if (!path) return fh_fail(err, FH_ENOMEM, "out of memory");
        snprintf(key, sizeof key, "@%s", files[i]);
        rc = record_file(record, path, key, err);
        fh_free(path);
        if (rc < 0) return rc;
    }
    fh_sha256 sha;
    fh_sha256_init(&sha);
    for (size_t i = 0; i < fh_tensors_count(c->tensors); i++) {
        const fh_tensor *t = fh_tensors_at(c->tensors, i);
        fh_sha256_update(&sha, t->name, strlen(t->name) + 1);
        fh_sha256_update(&sha, fh_dtype_st_name(t->dtype), strlen(fh_dtype_st_name(t->dtype)) + 1);
        fh_sha256_update(&sha, t->data, (size_t)t->bytes);
    }
    fh_sha256_final(&sha, digest);
    fh_sha256_hex(hex, digest);
    return fh_record_input_digest(record, "@tensors", hex) ? FH_OK : fh_fail(err, FH_ENOMEM, "out of memory");
}

/* Where the checkpoint lies; written only where that is news. */
static fh_status remember_source(fh_stage_env *e, const char *dir, fh_err *err)
{
    fh_err none;
    char *full = realpath(dir, NULL), *path = fh_work_path(e->work, FH_FILE_SOURCE), *text = NULL, *line = NULL, *known = fh_source_path(e, &none);
    fh_json *j = fh_json_object();
    fh_status rc = FH_OK;
    if (known && !strcmp(known, full ? full : dir)) goto out;
    fh_json_add_string(j, "path", full ? full : dir);
    if (!path || !(text = fh_json_print(j, false)) || !(line = fh_sprintf("%s\n", text))) rc = fh_fail(err, FH_ENOMEM, "out of memory");
    else rc = fh_file_write(path, line, strlen(line), FH_OWNER_READS, err);
out:
    fh_json_free(j);
    fh_free(known);
    fh_free(line);
    fh_free(text);
    fh_free(path);
    free(full);
    return rc;
}

fh_status fh_convert_current(fh_stage_env *e, const char *dir, bool *current, fh_err *err)
{
    fh_checkpoint c = {0};
    fh_json *was = NULL, *now = NULL;
    *current = false;
    fh_status rc = fh_work_record(e->work, FH_FILE_MODEL, &was, err);
    if (rc < 0 || !was) return rc;
    char *head = fh_work_path(e->work, FH_FILE_HEAD), *a = NULL, *b = NULL;
    if (!head || !fh_file_exists(head)) goto out;
    if ((rc = fh_checkpoint_open(&c, dir, e->job, err)) < 0) goto out;
    if (!(now = fh_record_new("convert", fh_json_object()))) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    if ((rc = record_source(now, dir, &c, err)) < 0 || (rc = fh_record_input(now, e->work, FH_FILE_HEAD, err)) < 0) goto out;
    a = fh_json_print(fh_json_get(was, "inputs"), false), b = fh_json_print(fh_json_get(now, "inputs"), false);
    *current = a && b && !strcmp(a, b);
    if (*current) rc = remember_source(e, dir, err); /* it may have moved */
out:
    fh_free(a);
    fh_free(b);
    fh_free(head);
    fh_json_free(was);
    fh_json_free(now);
    fh_checkpoint_close(&c);
    return rc;
}

static fh_status tokenizer_size_of(uint32_t *size, fh_tokenizer **out, const fh_checkpoint *c, const fh_job *job, fh_err *err)
{
    fh_tokenizer_text t;
    *size = 0, *out = NULL;
    fh_status rc = fh_tokenizer_text_read(&t, c->dir, err);
    if (rc == FH_OK && t.text) rc = fh_tokenizer_open(out, t.text, t.len, NULL, t.name, job, err);
    fh_tokenizer_text_free(&t);
    if (rc == FH_EUNSUPPORTED) {
        fh_job_say(job, FH_WARN, "%s; the head is converted all the same, dead rows past the tokenizer are not known", err->text);
        return FH_OK;
    }
    if (rc == FH_OK && *out) *size = fh_tokenizer_size(*out);
    return rc;
}

fh_status fh_stage_convert(fh_stage_env *e, const char *dir, fh_json **report, fh_err *err)
{
    double began = fh_now();
    fh_status rc;
    fh_checkpoint c = {0};
    fh_tokenizer *tok = NULL;
    fh_json *model = NULL, *record = NULL;
    uint8_t *dead = NULL;
    float *bias = NULL;
    scan s = {0};
    uint32_t tok_size;
    char print[65];
    size_t duplicates = 0;
    if ((rc = fh_checkpoint_open(&c, dir, e->job, err)) < 0) goto out;
    if ((rc = tokenizer_size_of(&tok_size, &tok, &c, e->job, err)) < 0) goto out;
    fh_rows head = fh_tensor_rows(c.head), bias_row = {0};
    size_t tasks = (head.rows + ROWS_A_TASK - 1) / ROWS_A_TASK;
    s = (scan){&head, fh_malloc(tasks * sizeof *s.first_bad), fh_malloc(tasks * sizeof *s.first_col), fh_malloc(head.rows * sizeof *s.hash)};
    dead = fh_calloc(head.rows, 1);
    if (!s.first_bad || !s.first_col || !s.hash || !dead) { rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", dir); goto out; }
    fh_pool_run(fh_job_pool(e->job), tasks, scan_task, &s);
    for (size_t i = 0; i < tasks; i++)
        if (s.first_bad[i] != SIZE_MAX) {
            size_t n = 0;
            const char *piece = tok ? fh_tokenizer_piece(tok, (uint32_t)s.first_bad[i], &n) : NULL;
            char shown[80];
            rc = fh_fail(err, FH_ECHECK, "%s: tensor '%s': row %zu (token '%s'), column %zu is not finite: is the checkpoint damaged?", c.head->file, c.head->name,
                         s.first_bad[i], piece ? fh_show(shown, sizeof shown, piece, n) : "?", s.first_col[i]);
            goto out;
        }
    size_t n_dead = fh_dead_rows(&head, tok_size, fh_job_pool(e->job), dead, err, &rc);
    if (rc < 0) goto out;
    if (n_dead == head.rows) { rc = fh_fail(err, FH_ECHECK, "%s: tensor '%s': every row is zero or past the tokenizer", c.head->file, c.head->name); goto out; }
    if (tok_size > head.rows) fh_job_say(e->job, FH_WARN, "%s: the tokenizer has %u ids, the head %zu rows: ids past the head cannot be run", dir, tok_size, head.rows);
    if (c.bias) {
        bias_row = (fh_rows){c.bias->data, c.bias->dtype, 1, (size_t)c.bias->shape[0], (size_t)c.bias->bytes};
        if (!(bias = fh_malloc(head.rows * sizeof *bias))) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
        fh_to_f32(bias, c.bias->dtype, c.bias->data, head.rows);
        for (size_t i = 0; i < head.rows; i++)
            if (!isfinite(bias[i])) { rc = fh_fail(err, FH_ECHECK, "%s: tensor '%s': the bias of token %zu is not finite", c.bias->file, c.bias->name, i); goto out; }
    }
    fh_fingerprint(print, &head, c.bias ? &bias_row : NULL, c.config.final_softcap);

    fh_json *params = fh_json_object();
    fh_json_add_string(params, "dtype", fh_dtype_name(head.dtype));
    if (!(record = fh_record_new("convert", params))) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    if ((rc = record_source(record, dir, &c, err)) < 0) goto out;

    /* model.json comes last, with the digest of the rows it is about: a run killed in between leaves nothing that looks finished. */
    if ((rc = remember_source(e, dir, err)) < 0) goto out;
    fh_st_spec specs[2] = {{"weight", head.dtype, 2, {head.rows, head.cols}}, {"bias", FH_F32, 1, {head.rows}}};
    const void *data[2] = {head.data, bias};
    if ((rc = fh_result_tensors(e, FH_FILE_HEAD, specs, data, bias ? 2 : 1, record, err)) < 0) goto out;
    if ((rc = fh_record_input(record, e->work, FH_FILE_HEAD, err)) < 0) goto out;

    model = fh_json_object();
    fh_json_add_string(model, "model_type", c.config.model_type);
    fh_json_add_u64(model, "vocab", head.rows);
    fh_json_add_u64(model, "hidden", head.cols);
    fh_json_add_string(model, "dtype", fh_dtype_name(head.dtype));
    fh_json_add_bool(model, "tied", c.tied);
    fh_json_add_string(model, "head_tensor", c.head->name);
    fh_json_add_bool(model, "bias", bias != NULL);
    fh_json_add_double(model, "final_softcap", c.config.final_softcap);
    fh_json_add_u64(model, "tokenizer_size", tok_size);
    fh_json_add_bool(model, "body_supported", c.config.body_supported);
    fh_json_add_u64(model, "dead_rows", n_dead);
    fh_json *list = fh_json_add_array(model, "dead");
    for (size_t i = 0; i < head.rows; i++) if (dead[i]) fh_json_add_u64(list, NULL, i);
    if ((rc = list_duplicates(fh_json_add_array(model, "duplicates"), &duplicates, &head, s.hash, dead, err)) < 0) goto out;
    list = fh_json_add_array(model, "eos");
    for (size_t i = 0; i < c.config.n_eos; i++) fh_json_add_u64(list, NULL, c.config.eos[i]);
    list = fh_json_add_array(model, "always");
    for (size_t i = 0; i < c.config.n_always; i++) fh_json_add_u64(list, NULL, c.config.always[i]);
    fh_json_add_string(model, "fingerprint", print);
    if ((rc = fh_result_json(e, FH_FILE_MODEL, model, record, err)) < 0) goto out;
    if (duplicates) fh_job_say(e->job, FH_WARN, "%s: %zu live rows equal an earlier one (listed in " FH_FILE_MODEL "): they work, and share its probes", dir, duplicates);
    if (n_dead) fh_job_say(e->job, FH_INFO, "%s: %zu dead rows (past the tokenizer, or zero): they are never selected", dir, n_dead);
    fh_stage_log(e, "convert", began);

    fh_json *r = fh_json_object();
    fh_json_add_string(r, "model_type", c.config.model_type);
    fh_json_add_u64(r, "vocab", head.rows);
    fh_json_add_u64(r, "hidden", head.cols);
    fh_json_add_string(r, "dtype", fh_dtype_name(head.dtype));
    fh_json_add_bool(r, "tied", c.tied);
    fh_json_add_string(r, "head_tensor", c.head->name);
    fh_json_add_u64(r, "tokenizer_size", tok_size);
    fh_json_add_u64(r, "dead_rows", n_dead);
    fh_json_add_u64(r, "duplicate_rows", duplicates);
    fh_json_add_string(r, "fingerprint", print);
    fh_json_add_double(r, "seconds", fh_now() - began);
    *report = r;
out:
    fh_json_free(model);
    fh_json_free(record);
    fh_tokenizer_close(tok);
    fh_checkpoint_close(&c);
    fh_free(s.first_bad);
    fh_free(s.first_col);
    fh_free(s.hash);
    fh_free(dead);
    fh_free(bias);
    return rc;
}
