/* format/gguf_tensors.c: a GGUF's tensors under the names, and in the form, of the architecture's safetensors.
 *
 * What is stored the same way is used in place.  The rest is made in memory when it is asked for, in its own type, or in float32 from
 * Q8_0, of which float32 holds every value exactly (8 bits times 11).  Who can use Q8_0 gets it in place, or with its rows in the other
 * order (fh_tensors_load_blocks):
 *
 *     q and k of llama    the writer has put row j of a head's first half to 2j, and of its second half to 2j + 1: put back
 *     q, k, v of gptneox  the writer has put all heads' q first, then k, then v: each head has its own three again
 *     matrices of gpt2    the writer has transposed them: [in, out] again
 *     norms of gemma      the writer has added 1: it is taken off, which is exact for all that came from such a sum
 */
#include "format/gguf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS_A_TASK = 64, SHOWN = 120 };

typedef enum change { AS_IT_IS, PAIRED_ROWS, PAIRED_KV_ROWS, HEADS_APART, TRANSPOSED, ONE_LESS } change;

/* Names without ".weight" and ".bias". */
typedef struct name { const char *gguf, *ours; change change; } name;
/* `shared` by the whole model, `layer` after "blk.N." and the prefix with N. */
typedef struct architecture { const char *arch, *layer_prefix; const name *shared, *layer; } architecture;

static const name llama_shared[] = {{"token_embd", "model.embed_tokens", AS_IT_IS}, {"output_norm", "model.norm", AS_IT_IS},
                                    {"output", "lm_head", AS_IT_IS}, {NULL, NULL, AS_IT_IS}};
static const name gemma_shared[] = {{"token_embd", "model.embed_tokens", AS_IT_IS}, {"output_norm", "model.norm", ONE_LESS},
                                    {"output", "lm_head", AS_IT_IS}, {NULL, NULL, AS_IT_IS}};
static const name neox_shared[] = {{"token_embd", "gpt_neox.embed_in", AS_IT_IS}, {"output_norm", "gpt_neox.final_layer_norm", AS_IT_IS},
                                   {"output", "embed_out", AS_IT_IS}, {NULL, NULL, AS_IT_IS}};
static const name gpt2_shared[] = {{"token_embd", "transformer.wte", AS_IT_IS}, {"position_embd", "transformer.wpe", AS_IT_IS},
                                   {"output_norm", "transformer.ln_f", AS_IT_IS}, {"output", "lm_head", AS_IT_IS}, {NULL, NULL, AS_IT_IS}};
#define MLP {"ffn_gate", "mlp.gate_proj", AS_IT_IS}, {"ffn_up", "mlp.up_proj", AS_IT_IS}, {"ffn_down", "mlp.down_proj", AS_IT_IS}
#define VO {"attn_v", "self_attn.v_proj", AS_IT_IS}, {"attn_output", "self_attn.o_proj", AS_IT_IS}
#define QK {"attn_q", "self_attn.q_proj", AS_IT_IS}, {"attn_k", "self_attn.k_proj", AS_IT_IS}
#define NORMS {"attn_norm", "input_layernorm", AS_IT_IS}, {"ffn_norm", "post_attention_layernorm", AS_IT_IS}
static const name llama_layer[] = {
    NORMS, {"attn_q", "self_attn.q_proj", PAIRED_ROWS}, {"attn_k", "self_attn.k_proj", PAIRED_KV_ROWS}, VO, MLP, {NULL, NULL, AS_IT_IS}};
static const name qwen_layer[] = {NORMS, QK, VO, MLP, {"attn_q_norm", "self_attn.q_norm", AS_IT_IS},
                                  {"attn_k_norm", "self_attn.k_norm", AS_IT_IS}, {NULL, NULL, AS_IT_IS}};
static const name gemma_layer[] = {
    {"attn_norm", "input_layernorm", ONE_LESS}, {"post_attention_norm", "post_attention_layernorm", ONE_LESS},
    {"ffn_norm", "pre_feedforward_layernorm", ONE_LESS}, {"post_ffw_norm", "post_feedforward_layernorm", ONE_LESS}, QK, VO, MLP,
    {"attn_q_norm", "self_attn.q_norm", ONE_LESS}, {"attn_k_norm", "self_attn.k_norm", ONE_LESS}, {NULL, NULL, AS_IT_IS}};
static const name neox_layer[] = {
    NORMS, {"attn_qkv", "attention.query_key_value", HEADS_APART}, {"attn_output", "attention.dense", AS_IT_IS},
    {"ffn_up", "mlp.dense_h_to_4h", AS_IT_IS}, {"ffn_down", "mlp.dense_4h_to_h", AS_IT_IS}, {NULL, NULL, AS_IT_IS}};
static const name gpt2_layer[] = {
    {"attn_norm", "ln_1", AS_IT_IS}, {"ffn_norm", "ln_2", AS_IT_IS}, {"attn_qkv", "attn.c_attn", TRANSPOSED},
    {"attn_output", "attn.c_proj", TRANSPOSED}, {"ffn_up", "mlp.c_fc", TRANSPOSED}, {"ffn_down", "mlp.c_proj", TRANSPOSED},
    {NULL, NULL, AS_IT_IS}};

static const architecture architectures[] = {
    {"llama", "model.layers.", llama_shared, llama_layer}, {"qwen2", "model.layers.", llama_shared, qwen_layer},
    {"qwen3", "model.layers.", llama_shared, qwen_layer},  {"gemma2", "model.layers.", gemma_shared, gemma_layer},
    {"gemma3", "model.layers.", gemma_shared, gemma_layer}, {"gptneox", "gpt_neox.layers.", neox_shared, neox_layer},
    {"gpt2", "transformer.h.", gpt2_shared, gpt2_layer},
};

struct fh_gguf_plan { const fh_gguf_tensor *from; char *name; change change; };
typedef struct fh_gguf_plan plan;

/* ---- names ------------------------------------------------------------------------------------------------------ */

/* The entry of a list whose name `stem` (n bytes) is. */
static const name *find_name(const name *list, const char *stem, size_t n)
{
    for (; list->gguf; list++)
        if (strlen(list->gguf) == n && memcmp(list->gguf, stem, n) == 0) return list;
    return NULL;
}

/* Our name of a tensor; 0: it has none.  "blk.12.attn_q.weight" is "model.layers.12.self_attn.q_proj.weight". */
static bool translate(char out[160], change *how, const architecture *a, const char *gguf)
{
    size_t n = strlen(gguf), digits;
    const char *end = n > 7 && strcmp(gguf + n - 7, ".weight") == 0 ? ".weight" : n > 5 && strcmp(gguf + n - 5, ".bias") == 0 ? ".bias" : NULL;
    if (!end) return false;
    n -= strlen(end);
    if (strncmp(gguf, "blk.", 4) != 0) {
        const name *found = find_name(a->shared, gguf, n);
        if (!found) return false;
        *how = found->change;
        return snprintf(out, 160, "%s%s", found->ours, end) < 160;
    }
    const char *number = gguf + 4;
    digits = strspn(number, "0123456789");
    if (digits == 0 || (digits > 1 && *number == '0') || number[digits] != '.' || 4 + digits + 1 >= n) return false;
    const name *found = find_name(a->layer, number + digits + 1, n - 4 - digits - 1);
    if (!found) return false;
    *how = found->change;
    return snprintf(out, 160, "%s%.*s.%s%s", a->layer_prefix, (int)digits, number, found->ours, end) < 160;
}

static fh_status FH_PRINTF(4, 5) bad(const fh_gguf *g, const fh_gguf_tensor *t, fh_err *err, const char *fmt, ...)
{
    char shown[SHOWN], what[400];
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    return fh_fail(err, FH_EFORMAT, "%s: tensor '%s': %s", g->path, fh_show(shown, sizeof shown, t->name, strlen(t->name)), what);
}

static fh_status dtype_of(fh_dtype *out, const fh_gguf *g, const fh_gguf_tensor *t, fh_err *err)
{
    char shown[SHOWN];
    switch (t->type) {
    case FH_GGUF_T_F32: *out = FH_F32; return FH_OK;
    case FH_GGUF_T_F16: *out = FH_F16; return FH_OK;
    case FH_GGUF_T_BF16: *out = FH_BF16; return FH_OK;
    case FH_GGUF_T_Q8_0: *out = FH_F32; return FH_OK;
    default:
        return fh_fail(err, FH_EUNSUPPORTED, "%s: tensor '%s' is %s: F32, F16, BF16 and Q8_0 are read: take a file of one of these, or the "
                       "model's safetensors", g->path, fh_show(shown, sizeof shown, t->name, strlen(t->name)), fh_gguf_tensor_type(t->type));
    }
}

/* ---- what must be so that a tensor can be changed --------------------------------------------------------------- */

static uint64_t heads_for(const fh_gguf *g, change how)
{
    return fh_gguf_head_count(g, how == PAIRED_KV_ROWS ? "head_count_kv" : "head_count");
}

static fh_status check_change(const fh_gguf *g, const plan *p, fh_err *err)
{
    const fh_gguf_tensor *t = p->from;
    uint64_t heads, per_head = p->change == HEADS_APART ? 3 : 2, rows = t->rank == 2 ? t->ne[1] : t->ne[0];
    if (t->rank > 2 || t->rank < 1) return bad(g, t, err, "%u dimensions, 1 or 2 are expected", t->rank);
    if (t->rank == 1 && t->type == FH_GGUF_T_Q8_0) return bad(g, t, err, "a vector in Q8_0, which no writer makes");
    switch (p->change) {
    case PAIRED_ROWS: case PAIRED_KV_ROWS: case HEADS_APART:
        heads = heads_for(g, p->change);
        if (heads && heads <= UINT32_MAX && rows % (heads * per_head) == 0) return FH_OK;
        return bad(g, t, err, "%llu rows cannot be shared out to %llu heads", (unsigned long long)rows, (unsigned long long)heads);
    case ONE_LESS:
        if (t->rank == 1) return FH_OK;
        return bad(g, t, err, "%u dimensions, a norm has 1", t->rank);
    default: return FH_OK;
    }
}

/* ---- the plans -------------------------------------------------------------------------------------------------- */

static int by_name(const void *a, const void *b) { return strcmp(((const plan *)a)->name, ((const plan *)b)->name); }

static fh_status add_plan(plan *p, fh_arena *arena, const fh_gguf *g, const architecture *a, const fh_gguf_tensor *t, fh_err *err)
{
    fh_status rc;
    fh_dtype dtype;
    char ours[160], shown[SHOWN];
    *p = (plan){.from = t};
    if (!translate(ours, &p->change, a, t->name))
        return fh_fail(err, FH_EUNSUPPORTED, "%s: tensor '%s' is none that the %s models have that are run here: take another file, or the "
                       "model's safetensors", g->path, fh_show(shown, sizeof shown, t->name, strlen(t->name)), a->arch);
    if ((rc = dtype_of(&dtype, g, t, err)) < 0 || (rc = check_change(g, p, err)) < 0) return rc;
    if (p->change == TRANSPOSED && t->rank == 1) p->change = AS_IT_IS; /* a bias */
    p->name = fh_arena_strndup(arena, ours, strlen(ours));
    return p->name ? FH_OK : fh_fail(err, FH_ENOMEM, "%s: out of memory", g->path);
}

static void describe(fh_tensor *out, const fh_gguf *g, const plan *p)
{
    const fh_gguf_tensor *t = p->from;
    bool q8 = t->type == FH_GGUF_T_Q8_0;
    *out = (fh_tensor){.name = p->name, .rank = t->rank, .file = g->path,
                       .dtype = t->type == FH_GGUF_T_F16 ? FH_F16 : t->type == FH_GGUF_T_BF16 ? FH_BF16 : FH_F32};
    if (p->change == ONE_LESS) out->dtype = FH_F32;
    out->dtype_name = fh_dtype_st_name(out->dtype);
    bool turned = (t->rank == 2) == (p->change != TRANSPOSED); /* ne begins with the fastest, a shape ends with it */
    out->shape[0] = t->ne[t->rank == 2 && turned];
    if (t->rank == 2) out->shape[1] = t->ne[!turned];
    /* In reach: a file holds at least a fourth of it. */
    out->bytes = t->ne[0] * (t->rank == 2 ? t->ne[1] : 1) * fh_dtype_size(out->dtype);
    if (p->change == AS_IT_IS && q8) out->blocks = t->data;
    if (p->change == AS_IT_IS && !q8) out->data = t->data;
    if (out->bytes == 0) out->data = t->data;
}

fh_status fh_gguf_tensors(fh_tensors **out, fh_gguf *g, fh_err *err)
{
    const architecture *a = NULL;
    fh_status rc = FH_OK;
    *out = NULL;
    fh_tensors *t = fh_tensors_new(g->path);
    if (!t) {
        fh_gguf_close(g);
        return fh_fail(err, FH_ENOMEM, "out of memory");
    }
    t->gguf = g;
    for (size_t i = 0; i < sizeof architectures / sizeof *architectures; i++)
        if (strcmp(architectures[i].arch, g->arch) == 0) a = &architectures[i];
    if (!a) {
        rc = fh_fail(err, FH_EUNSUPPORTED, "%s: architecture '%s' is not read", g->path, g->arch);
        goto out;
    }
    t->plans = fh_calloc(g->n_tensors + 1, sizeof *t->plans);
    t->list = fh_calloc(g->n_tensors + 1, sizeof *t->list);
    if (!t->plans || !t->list) {
        rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", g->path);
        goto out;
    }
    for (size_t i = 0; i < g->n_tensors; i++) {
        if (strcmp(g->tensors[i].name, "rope_freqs.weight") == 0) continue; /* it is part of config.json */
        if ((rc = add_plan(&t->plans[t->n], t->arena, g, a, &g->tensors[i], err)) < 0) goto out;
        t->n++;
    }
    if (t->n) qsort(t->plans, t->n, sizeof *t->plans, by_name);
    for (size_t i = 0; i < t->n; i++) describe(&t->list[i], g, &t->plans[i]);
    *out = t;
    t = NULL;
out:
    fh_tensors_close(t);
    return rc;
}

/* ---- making what is not stored so ------------------------------------------------------------------------------- */

typedef struct maker {
    const plan *plan;
    uint8_t *to;             /* [rows, columns] of `size` bytes an element, as stored; [columns, rows] where transposed */
    bool blocks;             /* rows of Q8_0 stay so */
    size_t rows, columns, size;
    size_t heads, head_rows; /* rows of a head */
} maker;

/* Which stored row becomes row r. */
static size_t source_row(const maker *m, size_t r)
{
    size_t head = r / (m->head_rows ? m->head_rows : 1), in = r - head * m->head_rows, part;
    switch (m->plan->change) {
    case PAIRED_ROWS: case PAIRED_KV_ROWS:
        part = m->head_rows / 2;
        return head * m->head_rows + (in < part ? 2 * in : 2 * (in - part) + 1);
    case HEADS_APART:
        part = m->head_rows / 3;
        return in / part * (m->rows / 3) + head * part + in % part;
    default: return r;
    }
}

static void make_rows(void *ctx, size_t task, unsigned worker)
{
    const maker *m = ctx;
    const fh_gguf_tensor *t = m->plan->from;
    size_t stored = (size_t)(t->bytes / m->rows);
    for (size_t r = task * ROWS_A_TASK; r < fh_min(m->rows, (task + 1) * ROWS_A_TASK); r++) {
        const uint8_t *from = t->data + source_row(m, r) * stored;
        if (m->plan->change != TRANSPOSED) {
            bool decode = t->type == FH_GGUF_T_Q8_0 && !m->blocks;
            uint8_t *to = m->to + r * (decode ? m->columns * m->size : stored);
            if (decode) fh_dec_row(FH_Q8_0, from, NULL, m->columns, (float *)(void *)to);
            else memcpy(to, from, stored);
            continue;
        }
        float block[FH_Q8_VALUES];
        for (size_t c = 0; c < m->columns; c++) {
            bool q8 = t->type == FH_GGUF_T_Q8_0;
            if (q8 && c % FH_Q8_VALUES == 0) fh_dec_row(FH_Q8_0, from + fh_row_bytes(FH_Q8_0, c), NULL, FH_Q8_VALUES, block);
            const void *value = q8 ? (const void *)&block[c % FH_Q8_VALUES] : (const void *)(from + c * m->size);
            memcpy(m->to + (c * m->rows + r) * m->size, value, m->size);
        }
    }
    (void)worker;
}

/* Q8_0 whose rows are whole in their new places. */
static bool keeps_blocks(const plan *p) { return p->from->type == FH_GGUF_T_Q8_0 && p->change != TRANSPOSED; }

fh_status fh_gguf_load(fh_tensors *t, size_t i, bool blocks, const fh_job *job, fh_err *err)
{
    fh_tensor *tensor = &t->list[i];
    const plan *p = &t->plans[i];
    blocks = blocks && keeps_blocks(p);
    if (tensor->data || (blocks && tensor->blocks)) return FH_OK;
    if (fh_job_stopped(job)) return fh_fail(err, FH_EINTERRUPTED, "stopped");
    maker m = {.plan = p, .blocks = blocks, .size = fh_dtype_size(tensor->dtype)};
    m.columns = (size_t)(p->from->rank == 2 ? p->from->ne[0] : 1);
    m.rows = (size_t)(p->from->rank == 2 ? p->from->ne[1] : p->from->ne[0]);
    if (p->change == PAIRED_ROWS || p->change == PAIRED_KV_ROWS || p->change == HEADS_APART) m.head_rows = m.rows / (size_t)heads_for(t->gguf, p->change);
    uint64_t bytes = blocks ? p->from->bytes : tensor->bytes;
    m.to = fh_arena_alloc(t->arena, (size_t)bytes);
    if (!m.to) return fh_fail(err, FH_ENOMEM, "%s: tensor '%s': out of memory (%llu bytes)", tensor->file, tensor->name, (unsigned long long)bytes);
    if (p->change == ONE_LESS) {
        float *v = (float *)(void *)m.to;
        fh_dtype from = p->from->type == FH_GGUF_T_F16 ? FH_F16 : p->from->type == FH_GGUF_T_BF16 ? FH_BF16 : FH_F32;
        fh_to_f32(v, from, p->from->data, m.rows);
        for (size_t k = 0; k < m.rows; k++) v[k] -= 1;
    } else {
        fh_pool_run(fh_job_pool(job), (m.rows + ROWS_A_TASK - 1) / ROWS_A_TASK, make_rows, &m);
    }
    *(blocks ? &tensor->blocks : &tensor->data) = m.to;
    return FH_OK;
}

void fh_gguf_tell_memory(const fh_tensors *t, bool blocks, const fh_job *job)
{
    double bytes = 0;
    for (size_t i = 0; i < t->n; i++)
        if (t->plans[i].from->type == FH_GGUF_T_Q8_0 && !t->list[i].data && !(blocks && keeps_blocks(&t->plans[i]))) bytes += (double)t->list[i].bytes;
    if (bytes > 0) fh_job_say(job, FH_INFO, "%s: Q8_0 is decoded to float32, exactly: %.1f MB of memory", t->gguf->path, bytes / 1e6);
}
