/* Any bytes as JSON, as config.json with a generation_config.json, as both, and as the index of a sharded checkpoint. */
#include "format/format.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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

/* A directory with one shard, "s", that holds one tensor, "a"; it goes away at the end. */
static char dir[200], shard[220], index_path[260];

static void remove_dir(void)
{
    unlink(shard);
    unlink(index_path);
    rmdir(dir);
}

static void make_dir(void)
{
    static const uint8_t a = 7;
    const char *tmp = getenv("TMPDIR");
    fh_err err;
    snprintf(dir, sizeof dir, "%s/fuzz-json-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    if (!mkdtemp(dir) || atexit(remove_dir) != 0) abort();
    snprintf(shard, sizeof shard, "%s/s", dir);
    snprintf(index_path, sizeof index_path, "%s/model.safetensors.index.json", dir);
    if (fh_st_save(shard, 0, &(fh_st_spec){"a", FH_U8, 1, {1}}, (const void *const[]){&a}, 1, NULL, &err) < 0) abort();
}

static void as_index(const uint8_t *data, size_t size)
{
    fh_tensors *t;
    fh_err err;
    if (!memmem(data, size, "weight_map", 10)) return; /* files are slow */
    if (!dir[0]) make_dir();
    FILE *f = fopen(index_path, "wb");
    if (!f || fwrite(data, 1, size, f) != size || fclose(f) != 0) abort();
    if (fh_tensors_open_dir(&t, dir, NULL, &err) < 0) {
        if (t || !err.text[0]) abort();
        return;
    }
    if (fh_tensors_count(t) != 1 || !fh_tensors_find(t, "a")) abort(); /* there is no more, whatever the index says */
    fh_tensors_close(t);
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
    as_index(data, size);
    free(text);
    return 0;
}
