/* Any bytes as a GGUF file, and what it makes: a configuration, tensors, a tokenizer, a body.  The first eight bytes are repaired, so that what
 * is behind them is reached. */
#include "format/gguf.h"
#include "runtime/runtime.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static volatile uint64_t sink;

/* Whatever failed said so in one line. */
static void told(fh_status rc, const fh_err *err)
{
    if (rc < 0 && (!err->text[0] || strchr(err->text, '\n'))) abort();
}

static void ask_values(const fh_gguf *g)
{
    for (size_t i = 0; i < g->n_values; i++) {
        const fh_gguf_value *v = &g->values[i];
        const char *s;
        size_t len;
        uint64_t u;
        double d;
        bool b;
        if (fh_gguf_find(g, v->key) != v) abort();
        for (uint64_t k = 0; k < v->count && k < 64; k++) sink += fh_gguf_u64(v, k, &u) + fh_gguf_double(v, k, &d) + fh_gguf_bool(v, k, &b);
        if (fh_gguf_u64(v, v->count, &u)) abort();
        for (fh_gguf_strings w = fh_gguf_strings_of(v); fh_gguf_next(&w, &s, &len);)
            for (size_t k = 0; k < len; k++) sink += (uint8_t)s[k];
    }
    for (size_t i = 0; i < g->n_tensors; i++) {
        if (fh_gguf_tensor_find(g, g->tensors[i].name) != &g->tensors[i]) abort();
        for (uint64_t k = 0; k < g->tensors[i].bytes; k++) sink += g->tensors[i].data[k];
    }
}

static void open_tokenizer(const char *text, size_t len, const char *config)
{
    fh_err err;
    fh_tokenizer *t = NULL;
    uint32_t *ids;
    size_t n;
    fh_status rc = fh_tokenizer_open(&t, text, len, config, "fuzz", NULL, &err);
    told(rc, &err);
    if (rc >= 0 && fh_tokenizer_encode(t, "a b  c\xC3\xA9" "1", 9, true, &ids, &n, &err) >= 0) fh_free(ids);
    fh_tokenizer_close(t);
}

/* Takes g. */
static void open_tensors(fh_gguf *g, const fh_config *config)
{
    fh_err err;
    fh_tensors *t = NULL;
    fh_body *body = NULL;
    fh_status rc = fh_gguf_tensors(&t, g, &err);
    told(rc, &err);
    if (rc >= 0) told(rc = fh_tensors_load_blocks(t, NULL, NULL, &err), &err);
    for (size_t i = 0; rc >= 0 && i < fh_tensors_count(t); i++) {
        const fh_tensor *x = fh_tensors_at(t, i);
        if (!x->blocks) continue;
        fh_rows rows = fh_tensor_stored_rows(x);
        for (size_t b = 0; b < rows.rows * rows.stride; b++) sink += ((const uint8_t *)rows.data)[b];
    }
    if (rc >= 0) told(rc = fh_tensors_load(t, NULL, NULL, &err), &err);
    if (rc >= 0) {
        for (size_t i = 0; i < fh_tensors_count(t); i++) {
            const fh_tensor *x = fh_tensors_at(t, i);
            if (fh_tensors_find(t, x->name) != x || (x->bytes && !x->data)) abort();
            for (uint64_t b = 0; b < x->bytes; b++) sink += ((const uint8_t *)x->data)[b];
        }
        if (config->layers <= 1024) { /* beyond, only the array of layers is made, and its tensors are missing */
            fh_body_source source = {.config = config, .tensors = t};
            told(fh_body_open(&body, &source, "fuzz", &err), &err);
            fh_body_close(body);
        }
    }
    fh_tensors_close(t);
}

static void look(const uint8_t *image, size_t size)
{
    fh_gguf *g;
    fh_err err;
    char *text, *config;
    size_t len = 0;
    fh_status rc = fh_gguf_open_memory(&g, image, size, "fuzz", &err);
    told(rc, &err);
    if (rc < 0) {
        if (g) abort();
        return;
    }
    ask_values(g);
    told(rc = fh_gguf_tokenizer(g, &text, &len, &config, &err), &err);
    if (rc >= 0 && text) open_tokenizer(text, len, config);
    if (rc >= 0) fh_free(text), fh_free(config);
    fh_config c = {0};
    told(rc = fh_gguf_config(g, &text, &len, &err), &err);
    if (rc >= 0) {
        told(rc = fh_config_parse(&c, text, len, NULL, "fuzz", NULL, &err), &err);
        fh_free(text);
    }
    if (rc >= 0) open_tensors(g, &c);
    else fh_gguf_close(g);
    fh_config_free(&c);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    look(data, size);
    if (size < 8 || !memcmp(data, "GGUF\3\0\0", 8)) return 0;
    uint8_t *image = malloc(size);
    if (!image) return 0;
    memcpy(image, data, size);
    memcpy(image, "GGUF\3\0\0", 8);
    look(image, size);
    free(image);
    return 0;
}
