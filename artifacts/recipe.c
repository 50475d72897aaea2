/* artifacts/recipe.c: recipe.json says what made an artifact and how to make it again; recipe.safetensors carries what cannot be said in
 * words: the assignment, and the encoded centroids where they came out of learning, whose sums are a library's (docs/releases.md). */
#include "artifacts/recipe.h"
#include "artifacts/stages_private.h"

#include <math.h>

#define FORMAT "fhtool recipe 1"

static fh_status no_memory(fh_err *err) { return fh_fail(err, FH_ENOMEM, "out of memory for the recipe"); }

/* ---- writing ----------------------------------------------------------------------------------------------------------- */

static void add_number(fh_json *words, const char *flag, const fh_json *params, const char *key)
{
    const fh_json *v = fh_json_get(params, key);
    if (!v) return;
    char *text = fh_json_type(v) == FH_JSON_STRING ? fh_strdup(fh_json_string(v)) : fh_json_print(v, false);
    fh_json_add_string(words, NULL, flag);
    fh_json_add_string(words, NULL, text ? text : "");
    fh_free(text);
}

/* 0: not asked for. */
static void add_target(fh_json *words, const char *flag, const fh_json *params, const char *key)
{
    if (fh_member_double(params, key, 0) > 0) add_number(words, flag, params, key);
}

static void add_word(fh_json *words, const char *a, const char *b)
{
    fh_json_add_string(words, NULL, a);
    if (b) fh_json_add_string(words, NULL, b);
}

/* The command line that builds it from the checkpoint on. */
static void add_command(fh_json *j, const fh_recipe *r)
{
    fh_json *w = fh_json_add_array(j, "command");
    const fh_json *cluster = fh_json_get(fh_json_get(r->provenance, "cluster"), "params"), *route = fh_json_get(fh_json_get(r->provenance, "route"), "params");
    const fh_json *made = fh_json_get(r->calibration, "made_by"), *how = fh_json_get(made, "params");
    const fh_json *asked = fh_json_get(fh_json_get(fh_json_get(made, "states"), "params"), "asked");
    uint64_t rounds, hot;
    add_word(w, "fhtool", "build");
    add_word(w, "MODEL", NULL);
    add_word(w, "-o", "OUTPUT");
    add_number(w, "--k", cluster, "k");
    add_number(w, "--start", cluster, "start");
    add_number(w, "--metric", cluster, "metric");
    if (fh_json_u64(fh_json_get(cluster, "rounds"), &rounds) && rounds) add_word(w, "--rounds", NULL), fh_json_add_u64(w, NULL, rounds > 1000 ? 0 : rounds);
    if (fh_member_true(route, "asked")) add_number(w, "--routing", route, "routing");
    add_number(w, "--moves", route, "moves");
    if (fh_member_true(route, "unit")) add_word(w, "--unit", NULL);
    add_number(w, "--for", how, "runtime");
    add_word(w, "--centroids", fh_dtype_name(r->centroids));
    add_word(w, "--rows", fh_dtype_name(r->tokens));
    add_number(w, "--text", asked, "text");
    add_number(w, "--tokens", asked, "tokens");
    add_number(w, "--window", asked, "window");
    add_number(w, "--seed", asked, "seed");
    add_target(w, "--target-containment", how, "target");
    add_target(w, "--target-agreement", how, "target_agreement");
    add_target(w, "--target-mass", how, "target_mass");
    add_number(w, "--containment-k", how, "containment_k");
    add_number(w, "--confidence", how, "confidence");
    add_number(w, "--max-cost", how, "max_cost");
    add_number(w, "--probing", how, "probing");
    if (fh_json_u64(fh_json_get(how, "hot"), &hot)) add_number(w, "--hot", how, "hot"); /* below 0: auto */
    add_word(w, "--rerank", NULL), fh_json_add_u64(w, NULL, r->rerank);
    if (r->head_only) add_word(w, "--head-only", NULL);
    if (r->head_only && r->exact) add_word(w, "--exact", NULL);
}

static fh_json *recipe_json(const fh_recipe *r, const fh_publish_params *p, size_t carried_bytes)
{
    fh_json *j = fh_json_object(), *o;
    fh_json_add_string(j, "format", FORMAT);
    fh_json_add_string(j, "tool", r->tool);
    o = fh_json_add_object(j, "artifact");
    fh_json_add_string(o, "digest", r->digest);
    fh_json_add_string(o, "fingerprint", r->fingerprint);
    o = fh_json_add_object(j, "base_model");
    if (p->base_model) fh_json_add_string(o, "name", p->base_model);
    fh_json_add_copy(o, "inputs", fh_json_get(fh_json_get(r->provenance, "convert"), "inputs"));
    add_command(j, r);
    o = fh_json_add_object(j, "pack");
    fh_json_add_u64(o, "k", r->k);
    fh_json_add_u64(o, "probes", r->probes);
    if (r->threshold > 0) fh_json_add_double(o, "threshold", (double)r->threshold);
    fh_json_add_u64(o, "rerank", r->rerank);
    fh_json_add_string(o, "routing", r->routing);
    fh_json_add_string(o, "centroids", fh_dtype_name(r->centroids));
    fh_json_add_string(o, "tokens", fh_dtype_name(r->tokens));
    fh_json_add_bool(o, "head_only", r->head_only);
    fh_json_add_bool(o, "exact", r->exact);
    o = fh_json_add_object(j, "carried");
    fh_json_add_string(o, "file", FH_RELEASE_CARRIED);
    fh_json_add_u64(o, "bytes", carried_bytes);
    fh_json_add_string(o, "sha256", r->carried_sha256);
    if (r->calibration) fh_json_add_copy(j, "calibration", r->calibration);
    else fh_json_add_null(j, "calibration");
    fh_json_add_copy(j, "provenance", r->provenance);
    return j;
}

/* Are the tokens of a cluster in order and padding last?  Another order cannot be made again from the assignment. */
static bool in_order(const fh_head_layout *h)
{
    for (size_t s = 1; s < (size_t)h->k * h->cap; s++)
        if (s % h->cap && h->permutation[s] <= h->permutation[s - 1] && h->permutation[s] != UINT32_MAX) return false; /* padding is UINT32_MAX */
    return true;
}

/* recipe.safetensors in memory. */
static fh_status carry(char **out, size_t *bytes, const fh_head_layout *h, bool centroids, fh_err *err)
{
    fh_st_spec specs[3] = {{"assignment", FH_I32, 1, {h->vocab}}};
    const void *data[3];
    size_t sizes[3] = {h->vocab * sizeof(int32_t)}, n = 1, header_bytes, slots = (size_t)h->k * h->cap;
    fh_buf b = {0};
    char *header = NULL;
    fh_status rc = FH_OK;
    int32_t *assignment = fh_malloc(sizes[0]);
    if (!assignment) return no_memory(err);
    for (size_t s = 0; s < slots; s++)
        if (h->permutation[s] != UINT32_MAX) assignment[h->permutation[s]] = (int32_t)(s / h->cap);
    data[0] = assignment;
    if (centroids) {
        specs[n] = fh_encoded_spec("centroids", h->centroids.dtype, h->k, h->centroids.stride);
        sizes[n] = h->k * h->centroids.stride, data[n++] = h->centroids.data;
        if (h->centroid_scales) {
            specs[n] = fh_scales_spec("centroid_scales", h->centroids.dtype, h->k, h->hidden);
            sizes[n] = h->k * fh_scale_bytes(h->centroids.dtype, h->hidden), data[n++] = h->centroid_scales;
        }
    }
    if (!(header = fh_st_header(specs, n, NULL, &header_bytes))) { rc = no_memory(err); goto out; }
    fh_buf_add(&b, header, header_bytes);
    for (size_t i = 0; i < n; i++) fh_buf_add(&b, data[i], sizes[i]);
    *bytes = b.len;
    if (!(*out = fh_buf_take(&b))) rc = no_memory(err);
out:
    fh_buf_free(&b);
    fh_free(header);
    fh_free(assignment);
    return rc;
}

fh_status fh_recipe_text(char **json, char **carried, size_t *carried_bytes, fh_fhead *f, const fh_publish_params *p, const fh_job *job, fh_err *err)
{
    fh_head_layout h;
    fh_recipe r = {0};
    fh_json *j = NULL;
    uint8_t digest[32];
    char hex[65], *text = NULL;
    const fh_json *header = fh_fhead_header(f);
    fh_status rc = fh_fhead_check_head(f, &h, err);
    *json = *carried = NULL;
    if (rc < 0) return rc;
    if (!fh_json_get(fh_json_get(header, "provenance"), "convert") || !in_order(&h))
        fh_job_say(job, FH_WARN, "%s: was not made by fhtool's stages: its recipe cannot make it again", p->artifact);
    r = (fh_recipe){.digest = fh_fhead_digest(f),
                    .fingerprint = h.fingerprint,
                    .routing = h.routing,
                    .tool = fh_json_string(fh_json_get(header, "tool")),
                    .carried_sha256 = hex,
                    .provenance = fh_json_get(header, "provenance"),
                    .calibration = fh_json_get(header, "calibration"),
                    .k = h.k,
                    .probes = h.probes,
                    .threshold = h.threshold,
                    .rerank = h.rerank,
                    .centroids = h.centroids.dtype,
                    .tokens = h.tokens.dtype,
                    .head_only = !h.has_body && !h.has_tokenizer,
                    .exact = h.exact.data != NULL};
    /* Means are the same everywhere, made from the rows again; what was learned, weighted or held at unit length is not. */
    bool unit = fh_member_true(fh_json_get(fh_json_get(r.provenance, "route"), "params"), "unit");
    if ((rc = carry(carried, carried_bytes, &h, unit || (strcmp(h.routing, "mean") && strcmp(h.routing, "raw")), err)) < 0) goto out;
    fh_sha256_of(digest, *carried, *carried_bytes);
    fh_sha256_hex(hex, digest);
    j = recipe_json(&r, p, *carried_bytes);
    if (!j || !(text = fh_json_print(j, true)) || !(*json = fh_sprintf("%s\n", text))) rc = no_memory(err);
out:
    if (rc < 0) fh_free(*carried), *carried = NULL;
    fh_free(text);
    fh_json_free(j);
    return rc;
}

/* ---- reading ------------------------------------------------------------------------------------------------------------- */

static fh_status bad(const char *file, const char *what, fh_err *err)
{
    return fh_fail(err, FH_EFORMAT, "%s: %s: is it a recipe that fhtool wrote?", file, what);
}

static bool read_u32(const fh_json *j, const char *key, uint32_t most, uint32_t *out)
{
    uint64_t v;
    if (!fh_json_u64(fh_json_get(j, key), &v) || v > most) return false;
    *out = (uint32_t)v;
    return true;
}

fh_status fh_recipe_parse(fh_recipe *out, const char *text, size_t len, const char *file, fh_err *err)
{
    static const char *const stages[] = {"convert", "cluster", "route", "quantize"};
    fh_recipe r = {0};
    *out = r;
    fh_status rc = fh_json_parse(&r.json, text, len, file, err);
    if (rc < 0) return rc;
    const char *format = fh_json_string(fh_json_get(r.json, "format"));
    const fh_json *artifact = fh_json_get(r.json, "artifact"), *pack = fh_json_get(r.json, "pack"), *carried = fh_json_get(r.json, "carried");
    const char *centroids = fh_json_string(fh_json_get(pack, "centroids")), *tokens = fh_json_string(fh_json_get(pack, "tokens"));
    const char *carried_file = fh_json_string(fh_json_get(carried, "file"));
    if (!format || strncmp(format, "fhtool recipe ", 14)) { rc = bad(file, "/format is not \"" FORMAT "\"", err); goto out; }
    if (strcmp(format, FORMAT)) { rc = fh_fail(err, FH_EUNSUPPORTED, "%s: '%.40s' is of a newer fhtool than this one", file, format); goto out; }
    r.digest = fh_json_string(fh_json_get(artifact, "digest")), r.fingerprint = fh_json_string(fh_json_get(artifact, "fingerprint"));
    r.carried_sha256 = fh_json_string(fh_json_get(carried, "sha256"));
    r.routing = fh_json_string(fh_json_get(pack, "routing"));
    r.tool = fh_json_string(fh_json_get(r.json, "tool"));
    r.provenance = fh_json_get(r.json, "provenance"), r.calibration = fh_json_get(r.json, "calibration");
    if (!fh_hex64_ok(r.digest) || !fh_hex64_ok(r.fingerprint) || !fh_hex64_ok(r.carried_sha256)) {
        rc = bad(file, "a digest is not 64 lower-case hex digits", err);
        goto out;
    }
    if (!carried_file || strcmp(carried_file, FH_RELEASE_CARRIED)) { rc = bad(file, "/carried/file is not \"" FH_RELEASE_CARRIED "\"", err); goto out; }
    if (!r.routing || !r.tool || !centroids || !tokens || !fh_dtype_parse(&r.centroids, centroids) || !fh_dtype_parse(&r.tokens, tokens) ||
        !read_u32(pack, "k", UINT32_MAX, &r.k) || r.k < 2 || !read_u32(pack, "probes", UINT32_MAX, &r.probes) || !r.probes ||
        !read_u32(pack, "rerank", FH_MAX_RERANK, &r.rerank) ||
        !fh_json_bool(fh_json_get(pack, "head_only"), &r.head_only) || !fh_json_bool(fh_json_get(pack, "exact"), &r.exact)) {
        rc = bad(file, "/pack or what wrote the artifact is not said in full", err);
        goto out;
    }
    double threshold = fh_member_double(pack, "threshold", 0);
    r.threshold = (float)threshold;
    if (!(threshold >= 0) || !isfinite(r.threshold)) { rc = bad(file, "/pack/threshold is not a number from 0 up", err); goto out; }
    for (size_t i = 0; i < sizeof stages / sizeof *stages; i++) {
        const fh_json *record = fh_json_get(r.provenance, stages[i]);
        if (fh_json_type(fh_json_get(record, "inputs")) != FH_JSON_OBJECT || fh_json_type(fh_json_get(record, "params")) != FH_JSON_OBJECT) {
            rc = fh_fail(err, FH_EFORMAT, "%s: /provenance/%s is no record of a stage: the artifact was not made by fhtool's stages and cannot be made again",
                         file, stages[i]);
            goto out;
        }
    }
    *out = r, r = (fh_recipe){0};
out:
    fh_recipe_free(&r);
    return rc;
}

void fh_recipe_free(fh_recipe *r)
{
    fh_json_free(r->json);
    *r = (fh_recipe){0};
}
