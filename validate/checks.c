/* Is the artifact what it says it is, of the model it says, and does it compute what it should? */
#include "validate/judge.h"

#include "quant/quant.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *fh_verdict_name(fh_verdict v)
{
    static const char *const names[] = {"skipped", "passed", "warning", "failed"};
    return names[v];
}

void fh_check_set(fh_check *c, fh_verdict verdict, const char *fmt, ...)
{
    char text[sizeof c->detail];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    c->verdict = verdict;
    fh_show(c->detail, sizeof c->detail, text, strlen(text));
}

/* ---- whose head it is --------------------------------------------------------------------------------------------- */

/* A float32 as the type from which it was widened, if that was its type. */
static void narrow_one(void *to, fh_dtype type, float x)
{
    uint16_t half = type == FH_BF16 ? fh_f32_to_bf16(x) : fh_f32_to_f16(x);
    if (type == FH_F32) memcpy(to, &x, sizeof x);
    else memcpy(to, &half, sizeof half);
}

/* The fingerprint of the rows that a bundle has.  Its bias is float32 there, whatever type the fingerprint is of: each is tried. */
static fh_status own_fingerprint(char found[65], const fh_head_layout *h, const uint32_t *slots, fh_err *err)
{
    const fh_rows *rows = h->exact.data ? &h->exact : &h->tokens;
    static const fh_dtype types[] = {FH_F32, FH_BF16, FH_F16};
    if (!h->bias) {
        fh_fingerprint_in_order(found, rows, slots, h->vocab, NULL, h->softcap);
        return FH_OK;
    }
    uint8_t *narrow = fh_malloc((size_t)h->vocab * sizeof *h->bias);
    if (!narrow) return fh_fail(err, FH_ENOMEM, "out of memory for a bias");
    for (size_t t = 0; t < 3; t++) {
        size_t size = fh_dtype_size(types[t]);
        for (size_t i = 0; i < h->vocab; i++) narrow_one(narrow + i * size, types[t], h->bias[i]);
        fh_rows bias = {narrow, types[t], 1, h->vocab, h->vocab * size};
        fh_fingerprint_in_order(found, rows, slots, h->vocab, &bias, h->softcap);
        if (!strcmp(found, h->fingerprint)) break;
    }
    fh_free(narrow);
    return FH_OK;
}

static fh_status check_belonging(fh_check *c, const fh_head_layout *h, const uint32_t *slots, const fh_checkpoint *base, fh_err *err)
{
    char found[65];
    fh_status rc;
    if (base) {
        fh_rows head = fh_tensor_rows(base->head), bias = {0};
        if (base->bias) bias = (fh_rows){base->bias->data, base->bias->dtype, 1, (size_t)base->bias->shape[0], (size_t)base->bias->bytes};
        fh_fingerprint(found, &head, base->bias ? &bias : NULL, base->config.final_softcap);
        if (strcmp(found, h->fingerprint))
            fh_check_set(c, FH_FAILED, "fingerprint %.12s..., %s has %.12s...: it was made of another model", h->fingerprint, base->dir, found);
        else fh_check_set(c, FH_PASSED, "fingerprint %.12s..., the same as that of %s", found, base->dir);
    } else if (!h->exact.data && !h->tokens_exact) {
        fh_check_set(c, FH_SKIPPED, "it has no exact rows to compute a fingerprint of: give the model it was made of (--model)");
    } else if ((rc = own_fingerprint(found, h, slots, err)) < 0) {
        return rc;
    } else if (strcmp(found, h->fingerprint)) {
        fh_check_set(c, FH_FAILED,
                     "its exact rows, in the order of the permutation, have the fingerprint %.12s..., it says %.12s...: rows or permutation are not what "
                     "was packed",
                     found, h->fingerprint);
    } else {
        fh_check_set(c, FH_PASSED, "fingerprint %.12s..., that of its own exact rows", found);
    }
    return FH_OK;
}

/* ---- rows ---------------------------------------------------------------------------------------------------------- */

typedef struct row_check {
    const fh_head_layout *h;
    fh_rows model;            /* the checkpoint's by token id, or the artifact's exact ones by slot */
    bool by_slot;
    uint8_t *wrong;           /* [slots] */
    float *wide;              /* [workers, 2 D] */
    size_t slots;
} row_check;
enum { ROWS_A_TASK = 64 };

/* Is `coded` the encoding of `row`?  Rounding to nearest, as the format has it: half a unit for int8 (and a hair, for the division), half of the last
 * place for bf16 and f16.  int4 may cut off the largest values of a group: no more than half of the row's length. */
static bool is_encoding_of(fh_dtype encoding, const float *row, const float *coded, double scale, size_t d)
{
    double off = 0, all = 0;
    for (size_t i = 0; i < d; i++) {
        double e = fabs((double)row[i] - coded[i]), x = fabs((double)row[i]);
        off += e * e, all += x * x;
        if (encoding == FH_F32 && !(e <= 0)) return false;
        if (encoding == FH_BF16 && !(e <= x * 0x1p-8)) return false;
        if (encoding == FH_F16 && !(e <= x * 0x1p-11 + 0x1p-24)) return false;
        if (encoding == FH_I8 && !(e <= 0.501 * scale + FLT_MIN)) return false;
    }
    return encoding != FH_I4 || off <= 0.25 * all;
}

static void row_task(void *ctx, size_t task, unsigned worker)
{
    row_check *c = ctx;
    const fh_head_layout *h = c->h;
    size_t d = h->hidden, step = fh_scale_bytes(h->tokens.dtype, d);
    float *row = c->wide + (size_t)worker * 2 * d, *coded = row + d;
    for (size_t s = task * ROWS_A_TASK; s < fh_min((task + 1) * ROWS_A_TASK, c->slots); s++) {
        uint32_t id = h->permutation[s];
        if (id == FH_NO_TOKEN) continue;
        const void *model = fh_row(&c->model, c->by_slot ? s : id);
        const uint8_t *scales = h->token_scales;
        fh_to_f32(row, c->model.dtype, model, d);
        fh_dec_row(h->tokens.dtype, fh_row(&h->tokens, s), scales ? scales + s * step : NULL, d, coded);
        double scale = h->tokens.dtype == FH_I8 ? (double)fh_scale_at(FH_I8, h->token_scales, s) : 0;
        c->wrong[s] = !is_encoding_of(h->tokens.dtype, row, coded, scale, d);
        if (!c->by_slot && h->exact.data && h->exact.dtype == c->model.dtype)
            c->wrong[s] |= memcmp(fh_row(&h->exact, s), model, fh_row_bytes(h->exact.dtype, d)) != 0;
    }
}

typedef struct seen_row { uint64_t hash; uint32_t id; } seen_row;
static int by_hash(const void *a, const void *b) { const seen_row *x = a, *y = b; return (x->hash > y->hash) - (x->hash < y->hash); }

static uint64_t hash_of(const void *data, size_t n)
{
    uint64_t h = 14695981039346656037u; /* FNV-1a */
    for (size_t i = 0; i < n; i++) h = (h ^ ((const uint8_t *)data)[i]) * 1099511628211u;
    return h;
}

/* Which slot it is that holds a row of the model in the wrong place, and whose; how many such there are. */
typedef struct misplaced { size_t n, slot; uint32_t holds; } misplaced;

static fh_status find_misplaced(misplaced *out, const row_check *c, fh_err *err)
{
    const fh_head_layout *h = c->h;
    size_t d = h->hidden, used = fh_row_bytes(h->tokens.dtype, d), each = fh_scale_bytes(h->tokens.dtype, d);
    bool exact = h->exact.data && h->exact.dtype == c->model.dtype;
    seen_row *rows = fh_malloc(c->model.rows * sizeof *rows);
    uint8_t *coded = fh_aligned(fh_enc_stride(h->tokens.dtype, d) + each + 64), *scales = coded ? coded + fh_enc_stride(h->tokens.dtype, d) : NULL;
    *out = (misplaced){0};
    if (!rows || !coded) {
        fh_free(rows), fh_free(coded);
        return fh_fail(err, FH_ENOMEM, "out of memory for the model's rows");
    }
    for (size_t i = 0; i < c->model.rows; i++) {
        const void *row = fh_row(&c->model, i);
        rows[i].id = (uint32_t)i;
        if (exact) { rows[i].hash = hash_of(row, fh_row_bytes(c->model.dtype, d)); continue; }
        fh_to_f32(c->wide, c->model.dtype, row, d);
        fh_enc_row(h->tokens.dtype, c->wide, d, coded, each ? scales : NULL);
        rows[i].hash = hash_of(coded, used) ^ (each ? hash_of(scales, each) * 31 : 0);
    }
    qsort(rows, c->model.rows, sizeof *rows, by_hash);
    for (size_t s = 0; s < c->slots; s++) {
        if (!c->wrong[s]) continue;
        if (exact && !memcmp(fh_row(&h->exact, s), fh_row(&c->model, h->permutation[s]), fh_row_bytes(h->exact.dtype, d)))
            continue; /* the encoded one alone is wrong */
        seen_row key;
        if (exact) key.hash = hash_of(fh_row(&h->exact, s), fh_row_bytes(h->exact.dtype, d));
        else key.hash = hash_of(fh_row(&h->tokens, s), used) ^ (each ? hash_of((const uint8_t *)h->token_scales + s * each, each) * 31 : 0);
        const seen_row *found = bsearch(&key, rows, c->model.rows, sizeof *rows, by_hash);
        if (found && !out->n++) out->slot = s, out->holds = found->id;
    }
    fh_free(rows);
    fh_free(coded);
    return FH_OK;
}

static fh_status check_rows(fh_validation *v, const fh_checkpoint *base, const fh_job *job, fh_err *err)
{
    const fh_head_layout *h = &v->layout;
    fh_check *rows = &v->check[FH_CHECK_ROWS], *permutation = &v->check[FH_CHECK_PERMUTATION];
    row_check c = {.h = h, .slots = (size_t)h->k * h->cap, .by_slot = !base, .model = base ? fh_tensor_rows(base->head) : h->exact};
    fh_status rc = FH_OK;
    size_t wrong = 0, first = 0;
    misplaced moved;
    if (!c.model.data) {
        fh_check_set(rows, FH_SKIPPED,
                     h->tokens_exact ? "its rows are the exact ones, which the fingerprint covers"
                                     : "nothing to compare with: give the model it was made of (--model)");
        fh_check_set(permutation, FH_SKIPPED,
                     h->tokens_exact ? "the fingerprint covers it" : "nothing to compare with: give the model it was made of (--model)");
        return FH_OK;
    }
    c.wrong = fh_calloc(c.slots, 1);
    c.wide = fh_malloc((size_t)fh_pool_threads(fh_job_pool(job)) * 2 * h->hidden * sizeof *c.wide);
    if (!c.wrong || !c.wide) { rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", fh_fhead_path(v->file)); goto out; }
    fh_pool_run(fh_job_pool(job), (c.slots + ROWS_A_TASK - 1) / ROWS_A_TASK, row_task, &c);
    for (size_t s = c.slots; s-- > 0;) if (c.wrong[s]) wrong++, first = s;
    const char *whose = base ? base->dir : "its exact rows";
    if (!wrong) {
        fh_check_set(rows, FH_PASSED, "all %u rows are %s encoded from %s", h->vocab, fh_dtype_name(h->tokens.dtype), whose);
        if (base) fh_check_set(permutation, FH_PASSED, "every row stands in the slot of its token");
        else fh_check_set(permutation, FH_PASSED, "every row stands in the slot of its token, as the fingerprint says");
        goto out;
    }
    if (base) {
        if ((rc = find_misplaced(&moved, &c, err)) < 0) goto out;
        if (moved.n == wrong) {
            fh_check_set(rows, FH_PASSED, "all %u rows are those of %s", h->vocab, whose);
            fh_check_set(permutation, FH_FAILED,
                         "%zu rows stand in the slot of another token; the first: slot %zu is token %u's and holds the row of token %u", wrong, moved.slot,
                         h->permutation[moved.slot], moved.holds);
            goto out;
        }
    }
    fh_check_set(rows, FH_FAILED, "%zu of %u rows are not those of %s; the first: token %u (slot %zu): the head was swapped or changed", wrong, h->vocab,
                 whose, h->permutation[first], first);
    fh_check_set(permutation, FH_SKIPPED, "the rows are not the model's");
out:
    fh_free(c.wrong);
    fh_free(c.wide);
    return rc;
}

/* ---- kernels ------------------------------------------------------------------------------------------------------- */

/* A GPU's results beside this CPU's.  Where one is used if there is one, its absence is no news. */
static fh_status device_parity(fh_validation *v, const fh_head *head, fh_device_kind kind, const float *states, size_t n, const fh_job *job, fh_err *err)
{
    fh_scratch *here = NULL, *there = NULL;
    fh_device *device = NULL;
    fh_parity_row *r = &v->parity[v->n_parity];
    fh_status rc = fh_device_open(&device, kind, head, NULL, NULL, err);
    if (rc < 0 || !device) return rc;
    if ((rc = fh_scratch_on(&here, head, fh_job_pool(job), err)) < 0 || (rc = fh_scratch_on(&there, head, fh_job_pool(job), err)) < 0) goto out;
    if (!(v->device = fh_strdup(fh_device_name(device)))) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    fh_scratch_use(there, device);
    *r = (fh_parity_row){.isa = "cuda", .variant = ""};
    if ((rc = fh_scratch_parity(here, there, states, n, &r->found, err)) == FH_OK) v->n_parity++;
out:
    fh_scratch_free(there);
    fh_scratch_free(here);
    fh_device_close(device);
    return rc;
}

/* Rows of the head itself, spread over it, are states of a natural size. */
static fh_status check_parity(fh_validation *v, fh_device_kind device, const fh_job *job, fh_err *err)
{
    enum { STATES = 8 };
    const fh_head_layout *h = &v->layout;
    fh_check *c = &v->check[FH_CHECK_PARITY];
    size_t d = h->hidden, slots = (size_t)h->k * h->cap, n = 0, at = 0;
    float *states = fh_malloc(STATES * d * sizeof *states);
    char names[200] = "", elsewhere[160] = "";
    fh_head *head = NULL;
    fh_status rc = states ? fh_head_open(&head, fh_fhead_path(v->file), err) : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc < 0) goto out;
    for (size_t s = 0; s < slots && n < STATES; s++) {
        if (h->permutation[s] == FH_NO_TOKEN || s < n * (slots / STATES)) continue;
        const uint8_t *scales = h->token_scales;
        fh_dec_row(h->tokens.dtype, fh_row(&h->tokens, s), scales ? scales + s * fh_scale_bytes(h->tokens.dtype, d) : NULL, d, states + n++ * d);
    }
    fh_check_set(c, FH_PASSED, "-");
    for (size_t i = 0; i + 1 < FH_PARITIES; i++) {
        fh_parity_row *r = &v->parity[i];
        if (!fh_head_parity_name(i, &r->isa, &r->variant)) break;
        if (fh_job_stopped(job)) { rc = fh_fail(err, FH_EINTERRUPTED, "interrupted"); goto out; }
        if ((rc = fh_head_parity(head, i, fh_job_pool(job), states, n, &r->found, err)) < 0) goto out;
        v->n_parity++;
        at += (size_t)snprintf(names + at, sizeof names - at, "%s%s%s%s", i ? ", " : "", r->isa, *r->variant ? " " : "", r->variant);
        at = fh_min(at, sizeof names - 1);
        if (r->found.differ && c->verdict == FH_PASSED)
            fh_check_set(c, FH_FAILED, "%s %s: %llu of %llu products are not what the %s", r->isa, r->variant, (unsigned long long)r->found.differ,
                         (unsigned long long)r->found.compared, i ? "definition gives, bit for bit" : "same sums in double allow");
    }
    if (c->verdict == FH_PASSED && (rc = device_parity(v, head, device, states, n, job, err)) < 0) goto out;
    if (v->device) {
        const fh_parity *found = &v->parity[v->n_parity - 1].found;
        snprintf(elsewhere, sizeof elsewhere, "; cuda (%.80s): the same tokens and logits", v->device);
        if (found->differ)
            fh_check_set(c, FH_FAILED, "cuda (%s): %llu of %llu results are not what the kernels of this CPU give", v->device,
                         (unsigned long long)found->differ, (unsigned long long)found->compared);
    }
    if (c->verdict == FH_PASSED)
        fh_check_set(c, FH_PASSED, "%s: bit for bit the definition's products, which are within %.0f %% of what rounding allows%s", names,
                     100 * v->parity[0].found.worst, elsewhere);
out:
    fh_head_close(head);
    fh_free(states);
    return rc;
}

/* ---- the calibration ------------------------------------------------------------------------------------------------ */

static double number_in(const fh_json *j, const char *key)
{
    double v;
    return fh_json_double(fh_json_get(j, key), &v) ? v : NAN;
}

fh_promised fh_promised_by(const fh_fhead *file)
{
    static const char *const kinds[FH_PROMISES] = {"containment", "agreement", "mass"};
    const fh_json *c = fh_json_get(fh_fhead_header(file), "calibration");
    fh_promised p = {.containment_k = 1, .confidence = 0.95};
    uint64_t k;
    if (!c) return p;
    double target = number_in(c, "target"), confidence = number_in(c, "confidence");
    if (fh_json_u64(fh_json_get(c, "containment_k"), &k) && k >= 1 && k <= FH_MAX_TOP) p.containment_k = (uint32_t)k;
    if (target > 0 && target < 1) p.target[FH_CONTAINED] = target;
    for (const fh_json *i = fh_json_first(fh_json_get(c, "promises")); i; i = fh_json_next(i)) {
        const char *what = fh_json_string(fh_json_get(i, "what"));
        target = number_in(i, "target");
        for (int kind = 0; kind < FH_PROMISES && what; kind++)
            if (!strcmp(what, kinds[kind]) && target > 0 && target < 1) p.target[kind] = target;
    }
    for (int kind = 0; kind < FH_PROMISES; kind++) p.any = p.any || p.target[kind] > 0;
    if (confidence > 0 && confidence < 1) p.confidence = confidence;
    p.text = fh_json_string(fh_json_get(c, "text")), p.text_sha256 = fh_json_string(fh_json_get(c, "text_sha256"));
    return p;
}

uint32_t fh_probes_calibrated(const fh_head *head)
{
    const fh_head_info *info = fh_head_get_info(head);
    const fh_json *c = info->threshold > 0 && fh_head_file(head) ? fh_json_get(fh_fhead_header(fh_head_file(head)), "calibration") : NULL;
    double mean = fh_member_double(fh_json_get(c, "probed"), "mean", info->probes);
    return mean >= 1 && mean <= info->probes ? (uint32_t)lround(mean) : info->probes;
}

const char *fh_promise_words(char out[80], const fh_promised *p, fh_promise_kind kind)
{
    if (kind == FH_AGREED) snprintf(out, 80, "the same best token");
    else if (kind == FH_COVERED) snprintf(out, 80, "the mass covered");
    else if (p->containment_k == 1) snprintf(out, 80, "the best token among the candidates");
    else snprintf(out, 80, "the best %u among the candidates", p->containment_k);
    return out;
}

static bool same_text(const fh_json *a, const fh_json *b)
{
    const char *x = fh_json_string(a), *y = fh_json_string(b);
    return !x || !y || !strcmp(x, y);
}

static bool is_hot(const fh_head_layout *h, uint64_t id)
{
    for (size_t i = 0; i < h->n_hot; i++) if (h->hot[i] == id) return true;
    return false;
}

/* Signs that a calibration is of another head: the digest of the one it was made on, and, in files older than that, whatever follows from the head. */
static void check_calibration(fh_validation *v)
{
    const fh_head_layout *h = &v->layout;
    const fh_json *header = fh_fhead_header(v->file), *c = fh_json_get(header, "calibration"), *last = NULL;
    const char *head = fh_json_string(fh_json_get(header, "calibrated_head")), *routing = fh_json_string(fh_json_get(c, "routing"));
    fh_check *out = &v->check[FH_CHECK_CALIBRATION];
    uint64_t probes, rerank, most, id;
    double bytes = number_in(c, "step_bytes"), dense = number_in(c, "dense_bytes"), threshold = number_in(c, "threshold");
    char found[65];
    if (!c) { fh_check_set(out, FH_SKIPPED, "it was not calibrated, and promises nothing"); return; }
    if (head) {
        fh_head_layout_digest(found, h);
        if (strcmp(head, found)) {
            fh_check_set(out, FH_FAILED, "it is of another head (digest %.12s..., this one's is %.12s...): calibrate again", head, found);
            return;
        }
    }
    if (!fh_json_u64(fh_json_get(c, "probes"), &probes) || probes > h->probes) {
        fh_check_set(out, FH_FAILED, "it is not of P = %u probes or fewer", h->probes);
        return;
    }
    if (h->threshold > 0 && !((double)h->threshold >= threshold)) {
        fh_check_set(out, FH_FAILED, "it is not of a threshold of %.6g or less: calibrate again", (double)h->threshold);
        return;
    }
    if (routing && strcmp(routing, h->routing)) {
        fh_check_set(out, FH_FAILED, "it is of routing '%s', the head's is '%s': calibrate again", routing, h->routing);
        return;
    }
    size_t n_hot = 0;
    for (const fh_json *i = fh_json_first(fh_json_get(c, "hot_ids")); i; i = fh_json_next(i), n_hot++)
        if (!fh_json_u64(i, &id) || !is_hot(h, id)) { fh_check_set(out, FH_FAILED, "its hot list is not the head's: calibrate again"); return; }
    for (const fh_json *i = fh_json_first(fh_json_get(c, "curve")); i; i = fh_json_next(i)) last = i;
    if (last && fh_json_u64(fh_json_get(last, "probes"), &most) && most > h->k) {
        fh_check_set(out, FH_FAILED, "its curve goes to %llu clusters, the head has %u: calibrate again", (unsigned long long)most, h->k);
        return;
    }
    double dense_now = (double)h->vocab * h->hidden * (double)fh_dtype_size(h->dtype);
    bool same_rerank = fh_json_u64(fh_json_get(c, "rerank"), &rerank) && rerank == h->rerank;
    double probed = isfinite(threshold) ? fh_member_double(fh_json_get(c, "probed"), "mean", (double)probes) : (double)probes;
    double bytes_now = fh_head_layout_step_bytes(h, probed, n_hot);
    if ((isfinite(dense) && dense != dense_now) || (same_rerank && isfinite(bytes) && fabs(bytes - bytes_now) > 0.5)) {
        fh_check_set(out, FH_FAILED,
                     "it is of a head of other shape or encoding (%.0f bytes a step and %.0f dense; this one: %.0f and %.0f): calibrate again", bytes,
                     dense, bytes_now, dense_now);
        return;
    }
    const fh_json *model = fh_json_get(fh_json_get(fh_json_get(c, "made_by"), "inputs"), "model.json"), *provenance = fh_json_get(header, "provenance");
    if (!same_text(model, fh_json_get(fh_json_get(fh_json_get(provenance, "cluster"), "inputs"), "model.json"))) {
        fh_check_set(out, FH_FAILED, "it was made in a work directory of another model than the clusters: calibrate again");
        return;
    }
    fh_promised p = fh_promised_by(v->file);
    const char *runtime = fh_json_string(fh_json_get(c, "runtime")); /* whose arithmetic it was made in, where that is not ours */
    fh_check_set(out, FH_PASSED, "of this head%s, on '%.80s'%s%.40s", head ? "" : " as far as its shapes tell", p.text ? p.text : "?", runtime ? "; about the runtime " : "",
                 runtime ? runtime : "");
}

/* ---- all of them ---------------------------------------------------------------------------------------------------- */

static void skip_from(fh_validation *v, fh_check_kind from, const char *why)
{
    for (int i = from; i < FH_CHECKS; i++) fh_check_set(&v->check[i], FH_SKIPPED, "%s", why);
}

fh_status fh_check_artifact(fh_validation *v, const fh_checkpoint *base, fh_device_kind device, const fh_job *job, fh_err *err)
{
    fh_status rc;
    fh_err fault = {0};
    const fh_head_layout *h = &v->layout;
    size_t slots = (size_t)h->k * h->cap;
    uint32_t *slot_of = NULL;
    rc = fh_fhead_verify(v->file, job, &fault);
    if (rc == FH_EFORMAT || rc == FH_ECHECK) {
        fh_check_set(&v->check[FH_CHECK_INTEGRITY], FH_FAILED, "%s", fault.text);
        skip_from(v, FH_CHECK_BELONGING, "the file is damaged");
        return FH_OK;
    }
    if (rc < 0) { if (err) *err = fault; return rc; }
    fh_check_set(&v->check[FH_CHECK_INTEGRITY], FH_PASSED, "every byte is as it was written, digest %.12s...", fh_fhead_digest(v->file));
    if (!(slot_of = fh_calloc(h->vocab, sizeof *slot_of))) return fh_fail(err, FH_ENOMEM, "%s: out of memory", fh_fhead_path(v->file));
    for (size_t s = 0; s < slots; s++) if (h->permutation[s] != FH_NO_TOKEN) slot_of[h->permutation[s]] = (uint32_t)s;
    rc = check_belonging(&v->check[FH_CHECK_BELONGING], h, slot_of, base, err);
    fh_free(slot_of);
    if (rc < 0) return rc;
    if (!fh_check_stands(&v->check[FH_CHECK_BELONGING])) skip_from(v, FH_CHECK_ROWS, "it is not of this model");
    else if ((rc = check_rows(v, base, job, err)) < 0) return rc;
    if ((rc = check_parity(v, device, job, err)) < 0) return rc;
    bool whole = true;
    for (int i = 0; i <= FH_CHECK_PERMUTATION; i++) whole = whole && fh_check_stands(&v->check[i]);
    if (whole) check_calibration(v);
    else skip_from(v, FH_CHECK_CALIBRATION, "the head is not what it should be");
    return FH_OK;
}
