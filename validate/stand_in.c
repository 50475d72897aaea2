/* A stand-in for a model that is not there: the shapes of its head and of some of its layers, filled with noise. */
#include "validate/estimate.h"

#include "quant/quant.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define BODY "body.tensors"
enum { NAME = 64, LAYER_TENSORS = 9, HEAD_TENSORS = 6, CHUNK = 4 << 20 /* as pack writes */, LAYERS_AT_MOST = 512 };

/* What a tensor is filled with: any numbers of its dtype between 2^-7 and 2^-6 or their negatives, so that nothing overflows, underflows or ties; odd
 * integers, none of which is out of an encoding's range; a constant; or 0, 1, 2, ... */
typedef enum filling { NOISE, ONES, SCALES, NUMBERS } filling;
typedef struct part { char name[NAME]; fh_dtype dtype; filling with; uint64_t bytes; } part;

/* The arrays of the head, then the tensors of the body. */
typedef struct plan { part *parts; fh_st_spec *specs; size_t n, n_head, bytes; } plan;

static void add(plan *p, const char *name, fh_dtype dtype, filling with, uint64_t rows, uint64_t cols) /* cols 0: of rank 1 */
{
    part *at = &p->parts[p->n];
    *at = (part){.dtype = dtype, .with = with, .bytes = rows * (cols ? cols : 1) * (fh_dtype_is_integer(dtype) ? 1 : fh_dtype_size(dtype))};
    snprintf(at->name, sizeof at->name, "%s", name);
    p->bytes += at->bytes;
    p->specs[p->n++] = (fh_st_spec){at->name, dtype, cols ? 2 : 1, {rows, cols}};
}

static void add_layer(plan *p, uint32_t i, const fh_shape *s, uint32_t ffn)
{
    uint64_t d = s->hidden, q = (uint64_t)s->heads * s->head_dim, kv = (uint64_t)s->kv_heads * s->head_dim;
    const struct { const char *name; uint64_t rows, cols; } all[LAYER_TENSORS] = {
        {"self_attn.q_proj", q, d}, {"self_attn.k_proj", kv, d}, {"self_attn.v_proj", kv, d}, {"self_attn.o_proj", d, q}, {"mlp.gate_proj", ffn, d},
        {"mlp.up_proj", ffn, d}, {"mlp.down_proj", d, ffn}, {"input_layernorm", d, 0}, {"post_attention_layernorm", d, 0},
    };
    for (size_t j = 0; j < LAYER_TENSORS; j++) {
        char name[NAME];
        snprintf(name, sizeof name, "model.layers.%u.%s.weight", i, all[j].name);
        add(p, name, s->body_dtype, all[j].cols ? NOISE : ONES, all[j].rows, all[j].cols);
    }
}

/* ---- writing -------------------------------------------------------------------------------------------------------- */

static void fill(void *chunk, size_t bytes, const part *p, uint64_t first, fh_rng *r)
{
    static const struct { uint64_t keep, set; } noise[FH_I4 + 1] = {
        [FH_F32] = {0x807fffff807fffff, 0x3c0000003c000000}, [FH_BF16] = {0x807f807f807f807f, 0x3c003c003c003c00},
        [FH_F16] = {0x83ff83ff83ff83ff, 0x2000200020002000}, [FH_I8] = {UINT64_MAX, 0x0101010101010101}, [FH_I4] = {UINT64_MAX, 0x1111111111111111},
    };
    uint64_t *words = chunk;
    uint32_t *ids = chunk;
    size_t n = (bytes + 7) / 8;
    if (p->with == NUMBERS) for (size_t i = 0; i < bytes / 4; i++) ids[i] = (uint32_t)(first / 4 + i);
    if (p->with == NOISE) for (size_t i = 0; i < n; i++) words[i] = (fh_rng_u64(r) & noise[p->dtype].keep) | noise[p->dtype].set;
    if (p->with != ONES && p->with != SCALES) return;
    float one = p->with == ONES ? 1.0f : 1e-4f;
    uint16_t half = p->dtype == FH_F16 ? fh_f32_to_f16(one) : fh_f32_to_bf16(one);
    for (size_t i = 0; i < bytes / fh_dtype_size(p->dtype); i++)
        if (p->dtype == FH_F32) memcpy((char *)chunk + 4 * i, &one, 4); else memcpy((char *)chunk + 2 * i, &half, 2);
}

static fh_status write_part(fh_fhead_writer *w, const part *p, fh_rng *r, uint64_t *chunk, const fh_job *job, fh_err *err)
{
    fh_status rc = FH_OK;
    for (uint64_t done = 0; rc == FH_OK && done < p->bytes;) {
        size_t n = (size_t)(p->bytes - done < CHUNK ? p->bytes - done : CHUNK);
        if (fh_job_stopped(job)) return fh_fail(err, FH_EINTERRUPTED, "interrupted");
        fill(chunk, n, p, done, r);
        rc = fh_fhead_write(w, chunk, n, err);
        done += n;
    }
    return rc;
}

/* Laid out and written as an artifact is, sections on pages and pieces of 4 MiB.  (Written as safetensors the dense head of the demo model took 1.2 times as
 * long; in a tmpfs, whose pages are small and stay so, 1.8 times.) */
static fh_status write_all(const plan *p, const char *path, const fh_job *job, fh_err *err)
{
    fh_fhead_writer *w = NULL;
    fh_rng r;
    char digest[65], *header = NULL;
    size_t bytes;
    uint64_t *chunk = fh_malloc(CHUNK);
    static const char facts[] = "{\"format\":\"fhead\",\"requires\":[]}";
    fh_status rc = chunk ? fh_fhead_create(&w, path, 0, facts, p->n_head + 1, err) : fh_fail(err, FH_ENOMEM, "estimate: out of memory");
    fh_rng_seed(&r, 1, 0x73);
    for (size_t i = 0; rc == FH_OK && i < p->n_head; i++) {
        rc = fh_fhead_begin(w, p->parts[i].name, FH_CODEC_RAW, 0, err);
        if (rc == FH_OK) rc = write_part(w, &p->parts[i], &r, chunk, job, err);
    }
    if (rc == FH_OK) rc = fh_fhead_begin(w, BODY, FH_CODEC_RAW, 0, err);
    if (rc == FH_OK && !(header = fh_st_header(p->specs + p->n_head, p->n - p->n_head, NULL, &bytes))) rc = fh_fail(err, FH_ENOMEM, "estimate: out of memory");
    if (rc == FH_OK) rc = fh_fhead_write(w, header, bytes, err);
    for (size_t i = p->n_head; rc == FH_OK && i < p->n; i++) rc = write_part(w, &p->parts[i], &r, chunk, job, err);
    if (rc == FH_OK) rc = fh_fhead_commit(w, digest, err);
    else fh_fhead_abandon(w);
    fh_free(header);
    fh_free(chunk);
    return rc;
}

/* ---- opening -------------------------------------------------------------------------------------------------------- */

static fh_status array(const void **out, fh_fhead *f, const char *name, fh_err *err)
{
    size_t bytes;
    *out = NULL;
    return fh_fhead_find(f, name) ? fh_fhead_data(f, name, out, &bytes, err) : FH_OK;
}

static fh_status rows_of(fh_rows *out, fh_fhead *f, const char *name, fh_dtype encoding, size_t rows, size_t cols, fh_err *err)
{
    *out = (fh_rows){.dtype = encoding, .rows = rows, .cols = cols, .stride = fh_enc_stride(encoding, cols)};
    return array(&out->data, f, name, err);
}

static fh_status open_head(fh_stand_in *out, const fh_shape *shape, const fh_setting *s, fh_err *err)
{
    fh_status rc;
    fh_fhead *f = out->file;
    size_t d = shape->hidden;
    const void *permutation;
    uint32_t v = out->clusters * s->cap, extras = (uint32_t)fh_min(s->extras, v);
    fh_head_parts p = {.vocab = v, .hidden = shape->hidden, .clusters = out->clusters, .cap = s->cap, .probes = (uint32_t)fh_min(s->probes, out->clusters),
                       .tokens_exact = s->tokens == shape->dtype, .rerank = s->rerank, .n_hot = extras};
    if (!(out->hot = fh_malloc(fh_max(extras, 1) * sizeof *out->hot))) return fh_fail(err, FH_ENOMEM, "estimate: out of memory");
    for (uint32_t i = 0; i < extras; i++) out->hot[i] = (uint32_t)((uint64_t)i * v / extras);
    p.hot = out->hot;
    if ((rc = rows_of(&p.centroids, f, "centroids", s->centroids, out->clusters, d, err)) < 0 ||
        (rc = array(&p.centroid_scales, f, "centroid_scales", err)) < 0 ||
        (rc = rows_of(&p.tokens, f, "tokens", s->tokens, v, d, err)) < 0 || (rc = array(&p.token_scales, f, "token_scales", err)) < 0 ||
        (rc = rows_of(&p.exact, f, "exact", shape->dtype, v, d, err)) < 0 || (rc = array(&permutation, f, "permutation", err)) < 0) return rc;
    p.permutation = permutation;
    if ((rc = fh_head_from_parts(&out->model.head, &p, "the stand-in", err)) < 0) return rc;
    out->model.dense = (fh_dense){.rows = p.exact.data ? p.exact : p.tokens, .vocab = v, .dead = fh_head_dead_map(out->model.head)};
    return FH_OK;
}

static const void *embedding_row(void *ctx, uint32_t id) { return fh_head_exact_row(ctx, id); }

static fh_status open_body(fh_stand_in *out, const fh_shape *s, uint32_t vocab, uint32_t ffn, const fh_job *job, fh_err *err)
{
    fh_model *m = &out->model;
    char *text = fh_sprintf("{\"model_type\":\"llama\",\"vocab_size\":%u,\"hidden_size\":%u,\"intermediate_size\":%u,\"num_hidden_layers\":%u,"
                            "\"num_attention_heads\":%u,\"num_key_value_heads\":%u,\"head_dim\":%u,\"max_position_embeddings\":2048,\"hidden_act\":\"silu\","
                            "\"rms_norm_eps\":1e-5,\"rope_theta\":10000.0,\"tie_word_embeddings\":true}",
                            vocab, s->hidden, ffn, out->layers, s->heads, s->kv_heads, s->head_dim);
    if (!text) return fh_fail(err, FH_ENOMEM, "estimate: out of memory");
    fh_status rc = fh_config_parse(&m->bundle_config, text, strlen(text), NULL, "the stand-in", job, err);
    fh_free(text);
    if (rc < 0) return rc;
    m->config = &m->bundle_config;
    fh_body_source source = {.config = m->config, .tensors = m->bundle_tensors, .embedding_row = embedding_row, .ctx = m->head, .embedding_dtype = s->dtype};
    return fh_body_open(&m->body, &source, "the stand-in", err);
}

static fh_status read_back(fh_stand_in *out, const plan *p, const char *dir, const fh_job *job, fh_err *err)
{
    const void *data;
    size_t bytes;
    char *name = fh_sprintf("fhtool-stand-in-%ld.fhead", (long)getpid()), *path = name ? fh_path_join(dir, name) : NULL;
    fh_status rc = path ? write_all(p, path, job, err) : fh_fail(err, FH_ENOMEM, "estimate: out of memory");
    if (rc == FH_OK) {
        fh_file_uncache(path);
        rc = fh_fhead_open(&out->file, path, err);
        unlink(path); /* the map keeps it */
    } else if ((rc == FH_EIO || rc == FH_ENOTFOUND) && err) {
        fh_err why = *err;
        fh_fail(err, rc, "%s: a file is needed there for a moment: set TMPDIR to a directory with room, or give --no-measure", why.text);
    }
    if (rc == FH_OK && (rc = fh_fhead_data(out->file, BODY, &data, &bytes, err)) == FH_OK)
        rc = fh_tensors_open_memory(&out->model.bundle_tensors, data, bytes, "the stand-in", err);
    fh_free(path);
    fh_free(name);
    return rc;
}

fh_status fh_stand_in_open(fh_stand_in *out, const fh_shape *shape, const fh_setting *s, uint32_t most, size_t head_bytes, size_t body_bytes, const char *dir,
                           const fh_job *job, fh_err *err)
{
    plan p = {0};
    bool exact = s->tokens != shape->dtype;
    size_t d = shape->hidden, stride[3] = {fh_enc_stride(s->centroids, d), fh_enc_stride(s->tokens, d), exact ? fh_enc_stride(shape->dtype, d) : 0};
    size_t cluster = stride[0] + s->cap * (stride[1] + stride[2] + sizeof(uint32_t)), layers;
    *out = (fh_stand_in){0};
    double q = (double)shape->heads * shape->head_dim, kv = (double)shape->kv_heads * shape->head_dim;
    /* Whatever its family, a layer becomes one of the commonest kind with as many bytes. */
    uint32_t ffn = shape->gated ? shape->ffn : (uint32_t)((uint64_t)shape->ffn * 2 / 3);
    out->layer_bytes = (double)d * (2 * q + 2 * kv + 3.0 * ffn) * (double)fh_dtype_size(shape->body_dtype);
    out->clusters = (uint32_t)fh_min(s->k, fh_max(fh_max(head_bytes / cluster, 2 * (size_t)most), 2));
    layers = out->layer_bytes > 0 ? (size_t)fh_max(1, (size_t)((double)body_bytes / out->layer_bytes)) : 0;
    out->layers = (uint32_t)fh_min(fh_min(shape->layers, layers), LAYERS_AT_MOST);
    uint32_t v = out->clusters * s->cap;
    size_t room = HEAD_TENSORS + 1 + (size_t)out->layers * LAYER_TENSORS;
    p.parts = fh_calloc(room, sizeof *p.parts), p.specs = fh_calloc(room, sizeof *p.specs);
    fh_status rc = p.parts && p.specs ? FH_OK : fh_fail(err, FH_ENOMEM, "estimate: out of memory");
    if (rc < 0) goto out;
    const fh_dtype enc[3] = {s->centroids, s->tokens, shape->dtype};
    static const char *const names[3] = {"centroids", "tokens", "exact"}, *const scales[2] = {"centroid_scales", "token_scales"};
    for (int i = 0; i < (exact ? 3 : 2); i++) {
        size_t rows = i ? v : out->clusters, size = fh_dtype_is_integer(enc[i]) ? 1 : fh_dtype_size(enc[i]);
        add(&p, names[i], enc[i], NOISE, rows, stride[i] / size);
    }
    for (int i = 0; i < 2; i++) {
        size_t each = fh_scale_bytes(enc[i], d), rows = i ? v : out->clusters;
        if (each) add(&p, scales[i], enc[i] == FH_I8 ? FH_F32 : FH_BF16, SCALES, rows, enc[i] == FH_I8 ? 1 : each / sizeof(uint16_t));
    }
    add(&p, "permutation", FH_U32, NUMBERS, v, 0);
    p.n_head = p.n;
    for (uint32_t i = 0; i < out->layers; i++) add_layer(&p, i, shape, ffn);
    if (out->layers) add(&p, "model.norm.weight", shape->body_dtype, ONES, d, 0);
    out->bytes = p.bytes;
    if ((rc = read_back(out, &p, dir, job, err)) < 0 || (rc = open_head(out, shape, s, err)) < 0) goto out;
    if (out->layers && (rc = open_body(out, shape, v, ffn, job, err)) < 0) goto out;
out:
    if (rc < 0) fh_stand_in_close(out);
    fh_free(p.parts);
    fh_free(p.specs);
    return rc;
}

void fh_stand_in_close(fh_stand_in *s)
{
    fh_model_close(&s->model);
    fh_fhead_close(s->file);
    fh_free(s->hot);
    *s = (fh_stand_in){0};
}
