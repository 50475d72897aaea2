/* Any bytes as a directory for the vLLM plugin: two little-endian lengths of 16 bits, config.json, clustering_config.json, and the rest is
 * clustering_cache.safetensors, as it is and with its length field repaired, of a head of 8 rows of 4. */
#include "format/format.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { V = 8, D = 4 };

static void judged(const fh_vllm *v)
{
    uint32_t count[V] = {0};
    if (v->vocab != V || v->hidden != D || v->k < 1 || v->k > V || v->k * v->cap != V || v->probes < 1 || v->probes > v->k) abort();
    for (size_t t = 0; t < V; t++) {
        if (v->assignment[t] >= v->k) abort();
        count[v->assignment[t]]++;
    }
    for (size_t c = 0; c < v->k; c++) {
        double square = 0;
        for (size_t j = 0; j < D; j++) square += (double)v->centroids[c * D + j] * v->centroids[c * D + j];
        if (count[c] != v->cap || !(square > 0) || !isfinite(square)) abort();
    }
    for (size_t i = 0; i < v->n_special; i++)
        if (v->special[i] >= V) abort();
}

static void look(const fh_json *config, const char *beside, size_t beside_len, const uint8_t *cache, size_t size)
{
    fh_tensors *t = NULL;
    fh_vllm v;
    fh_err err = {FH_OK, ""};
    if (fh_tensors_open_memory(&t, cache, size, "fuzz", &err) < 0) return;
    fh_vllm_source s = {.dir = "fuzz",
                        .cache_name = "fuzz",
                        .beside_name = "fuzz",
                        .config = config,
                        .vocab = V,
                        .hidden = D,
                        .cache = t,
                        .beside = beside,
                        .beside_len = beside_len};
    fh_status rc = fh_vllm_parse(&v, &s, &err);
    if (rc == FH_OK) judged(&v);
    else if (v.centroids || v.assignment || !err.text[0] || strchr(err.text, '\n')) abort();
    fh_vllm_free(&v);
    fh_tensors_close(t);
}

/* What is patched says what was asked for, and is patched into itself. */
static void patch(const char *text, size_t len)
{
    static const uint32_t special[] = {1, 7};
    fh_config c = {0}, d = {0};
    fh_err err;
    char *once = NULL, *twice = NULL;
    uint64_t probes;
    if (fh_config_parse(&c, text, len, NULL, "fuzz", NULL, &err) < 0) return;
    if (fh_vllm_architecture(&c)) {
        if (fh_vllm_config(&once, &c, 3, special, 2, &err) < 0) abort();
        if (fh_config_parse(&d, once, strlen(once), NULL, "fuzz", NULL, &err) < 0) abort();
        if (strncmp(d.architecture, "FlashHead", 9) || fh_vllm_architecture(&d) != fh_vllm_architecture(&c)) abort();
        if (!fh_json_u64(fh_json_get(d.json, "n_probes"), &probes) || probes != 3 || fh_json_has(d.json, "auto_map")) abort();
        if (fh_json_count(fh_json_get(d.json, "flash_head_special_token_ids")) != 2) abort();
        if (fh_vllm_config(&twice, &d, 3, special, 2, &err) < 0 || strcmp(once, twice)) abort();
    }
    fh_free(once);
    fh_free(twice);
    fh_config_free(&d);
    fh_config_free(&c);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fh_json *config = NULL;
    fh_err err;
    if (size < 4) return 0;
    size_t n = (size_t)(data[0] | data[1] << 8), m = (size_t)(data[2] | data[3] << 8);
    if (n > size - 4) n = size - 4;
    if (m > size - 4 - n) m = size - 4 - n;
    const char *text = (const char *)data + 4, *beside = text + n;
    size_t bytes = size - 4 - n - m;
    patch(text, n);
    if (fh_json_parse(&config, text, n, "fuzz", &err) < 0) return 0;
    uint8_t *cache = malloc(bytes + 1);
    if (cache) {
        if (bytes) memcpy(cache, beside + m, bytes);
        look(config, m ? beside : NULL, m, cache, bytes);
        const uint8_t *end = bytes > 8 ? memchr(cache + 8, '\n', bytes - 8) : NULL; /* a line break after the header says where it ends */
        if (end) {
            for (unsigned i = 0; i < 8; i++) cache[i] = (uint8_t)((uint64_t)(end - cache - 8) >> 8 * i);
            memmove(cache + (end - cache), end + 1, bytes - (size_t)(end - cache) - 1);
            look(config, m ? beside : NULL, m, cache, bytes - 1);
        }
    }
    free(cache);
    fh_json_free(config);
    return 0;
}
