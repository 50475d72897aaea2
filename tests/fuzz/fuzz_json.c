/* Any bytes as JSON, as config.json with a generation_config.json, and as both. */
#include "format/format.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What is accepted prints, and what is printed is accepted and prints the same. */
static void round_trip(const fh_json *j)
{
    for (int pretty = 0; pretty < 2; pretty++) {
        fh_err err;
        fh_json *again;
        char *text = fh_json_print(j, pretty);
        if (!text) abort();
        if (fh_json_parse(&again, text, strlen(text), "again", &err) < 0) abort();
        char *second = fh_json_print(again, pretty);
        if (!second || strcmp(text, second) != 0) abort();
        fh_json_free(again);
        fh_free(second);
        fh_free(text);
    }
}

static void as_config(const char *text, size_t len, const char *generation)
{
    fh_config c;
    fh_err err;
    if (fh_config_parse(&c, text, len, generation, "fuzz/config.json", NULL, &err) < 0) {
        if (c.json || !err.text[0]) abort();
        return;
    }
    if (c.family && (!c.vocab || !c.hidden || !c.heads || !c.head_dim || c.heads % c.kv_heads || !isfinite(c.rope.theta))) abort();
    if (c.n_always > FH_MAX_IDS || c.n_eos > FH_MAX_IDS) abort();
    for (size_t i = 0; i < c.n_always; i++)
        if ((c.vocab && c.always[i] >= c.vocab) || (i && c.always[i] <= c.always[i - 1])) abort();
    fh_config_free(&c);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char llama[] = "{\"model_type\":\"llama\",\"vocab_size\":100,\"hidden_size\":64,\"intermediate_size\":128,"
                                "\"num_hidden_layers\":2,\"num_attention_heads\":4}";
    fh_json *j;
    fh_err err;
    char *text = malloc(size + 1);
    if (!text) return 0;
    if (size) memcpy(text, data, size);
    text[size] = '\0';
    if (fh_json_parse(&j, (const char *)data, size, "fuzz", &err) < 0) {
        if (j || !err.text[0] || strchr(err.text, '\n')) abort();
    } else {
        round_trip(j);
    }
    fh_json_free(j);
    as_config((const char *)data, size, NULL);
    as_config((const char *)data, size, text);
    as_config(llama, sizeof llama - 1, text);
    free(text);
    return 0;
}
