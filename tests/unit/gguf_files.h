/* tests/unit/gguf_files.h: GGUF images written byte by byte, good ones and others. */
#ifndef GGUF_FILES_H
#define GGUF_FILES_H

#include "format_files.h"
#include "format/gguf.h"

/* An image under construction: values, then tensors, then data. */
typedef struct image { fh_buf values, tensors, data; uint64_t n_values, n_tensors; size_t alignment; } image;

static inline void put(fh_buf *b, uint64_t v, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++) fh_buf_add(b, &(uint8_t){i < 8 ? (uint8_t)(v >> 8 * i) : 0}, 1);
}

static inline void put_string(fh_buf *b, const char *s, size_t n)
{
    put(b, n, 8);
    fh_buf_add(b, s, n);
}

static inline void value_key(image *m, const char *key, fh_gguf_type type)
{
    m->n_values++;
    put_string(&m->values, key, strlen(key));
    put(&m->values, type, 4);
}

static inline void value_u32(image *m, const char *key, uint32_t v)
{
    value_key(m, key, FH_GGUF_U32);
    put(&m->values, v, 4);
}

static inline void value_f32(image *m, const char *key, float v)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    value_key(m, key, FH_GGUF_F32);
    put(&m->values, bits, 4);
}

static inline void value_bool(image *m, const char *key, bool v)
{
    value_key(m, key, FH_GGUF_BOOL);
    put(&m->values, v, 1);
}

static inline void value_string(image *m, const char *key, const char *v)
{
    value_key(m, key, FH_GGUF_STRING);
    put_string(&m->values, v, strlen(v));
}

/* The elements are to follow, put into m->values. */
static inline void value_array(image *m, const char *key, fh_gguf_type element, uint64_t n)
{
    value_key(m, key, FH_GGUF_ARRAY);
    put(&m->values, element, 4);
    put(&m->values, n, 8);
}

/* `bytes` bytes of data 1, 2, 3, ... and padding, unless it is given. */
static inline void tensor(image *m, const char *name, uint32_t type, unsigned rank, uint64_t ne0, uint64_t ne1, size_t bytes, const void *data)
{
    size_t alignment = m->alignment ? m->alignment : 32;
    m->n_tensors++;
    put_string(&m->tensors, name, strlen(name));
    put(&m->tensors, rank, 4);
    for (unsigned i = 0; i < rank; i++) put(&m->tensors, i == 0 ? ne0 : i == 1 ? ne1 : 1, 8);
    put(&m->tensors, type, 4);
    put(&m->tensors, m->data.len, 8);
    for (size_t i = 0; i < bytes; i++) fh_buf_add(&m->data, data ? (const uint8_t *)data + i : &(uint8_t){(uint8_t)(i + 1)}, 1);
    while (m->data.len % alignment) put(&m->data, 0, 1);
}

/* The bytes; freed by the caller, as is the image's content. */
static inline uint8_t *finish(image *m, size_t *size)
{
    fh_buf b = {0};
    size_t alignment = m->alignment ? m->alignment : 32;
    fh_buf_puts(&b, "GGUF");
    put(&b, 3, 4);
    put(&b, m->n_tensors, 8);
    put(&b, m->n_values, 8);
    fh_buf_add(&b, m->values.data, m->values.len);
    fh_buf_add(&b, m->tensors.data, m->tensors.len);
    while (b.len % alignment) put(&b, 0, 1);
    fh_buf_add(&b, m->data.data, m->data.len);
    assert_false(b.failed);
    *size = b.len;
    uint8_t *out = malloc(b.len);
    memcpy(out, b.data, b.len);
    fh_buf_free(&b);
    fh_buf_free(&m->values);
    fh_buf_free(&m->tensors);
    fh_buf_free(&m->data);
    return out;
}

/* A llama of 6 tokens, width 32, one layer, two heads of 16; `type` of its matrices (F32, F16 or Q8_0). */
static inline void small_llama(image *m, uint32_t type)
{
    static const struct { const char *name; unsigned rank; uint64_t ne0, ne1; } list[] = {
        {"token_embd.weight", 2, 32, 6}, {"output_norm.weight", 1, 32, 1}, {"blk.0.attn_norm.weight", 1, 32, 1},
        {"blk.0.attn_q.weight", 2, 32, 32}, {"blk.0.attn_k.weight", 2, 32, 16}, {"blk.0.attn_v.weight", 2, 32, 16},
        {"blk.0.attn_output.weight", 2, 32, 32}, {"blk.0.ffn_norm.weight", 1, 32, 1}, {"blk.0.ffn_gate.weight", 2, 32, 32},
        {"blk.0.ffn_up.weight", 2, 32, 32}, {"blk.0.ffn_down.weight", 2, 32, 32},
    };
    value_string(m, "general.architecture", "llama");
    value_u32(m, "llama.context_length", 64);
    value_u32(m, "llama.embedding_length", 32);
    value_u32(m, "llama.block_count", 1);
    value_u32(m, "llama.feed_forward_length", 32);
    value_u32(m, "llama.attention.head_count", 2);
    value_u32(m, "llama.attention.head_count_kv", 1);
    value_f32(m, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        uint32_t t = list[i].rank == 1 ? FH_GGUF_T_F32 : type;
        size_t n = (size_t)(list[i].ne0 * list[i].ne1), bytes = t == FH_GGUF_T_F32 ? 4 * n : t == FH_GGUF_T_Q8_0 ? n / 32 * 34 : 2 * n;
        uint8_t *data = calloc(bytes, 1);
        for (size_t k = 0; k < bytes; k++) data[k] = (uint8_t)((k * 7 + i) % 61); /* high bytes stay small: finite in every type */
        tensor(m, list[i].name, t, list[i].rank, list[i].ne0, list[i].ne1, bytes, data);
        free(data);
    }
}

/* A SentencePiece tokenizer of the letters a, b and some that they make, with bytes. */
static inline void small_tokenizer(image *m)
{
    static const char *const tokens[] = {"<unk>", "<s>", "</s>", "a", "b", "ab"};
    static const float scores[] = {0, 0, 0, -2, -3, -1};
    static const int32_t kinds[] = {2, 3, 3, 1, 1, 1};
    value_string(m, "tokenizer.ggml.model", "llama");
    value_array(m, "tokenizer.ggml.tokens", FH_GGUF_STRING, 6);
    for (size_t i = 0; i < 6; i++) put_string(&m->values, tokens[i], strlen(tokens[i]));
    value_array(m, "tokenizer.ggml.scores", FH_GGUF_F32, 6);
    for (size_t i = 0; i < 6; i++) fh_buf_add(&m->values, &scores[i], 4);
    value_array(m, "tokenizer.ggml.token_type", FH_GGUF_I32, 6);
    for (size_t i = 0; i < 6; i++) fh_buf_add(&m->values, &kinds[i], 4);
    value_u32(m, "tokenizer.ggml.bos_token_id", 1);
    value_u32(m, "tokenizer.ggml.eos_token_id", 2);
}

#endif
