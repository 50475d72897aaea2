/* artifacts/rebuild.c: an artifact from its recipe, and whether it is the same.
 *
 * From the assignment on every number is fixed, whatever the machine: the head is converted again, rows and (where they are means) centroids are encoded
 * again, and the whole is packed under the recorded promise.  With from_text all stages run again, clustering and states too.
 */
#include "artifacts/recipe.h"
#include "artifacts/stages_private.h"

#include <string.h>
#include <sys/stat.h>

typedef struct rebuilding {
    const fh_rebuild_params *p;
    fh_stage_env e;
    fh_recipe recipe;
    fh_facts facts;
    const char *output;
} rebuilding;

static fh_status no_memory(const rebuilding *r, fh_err *err) { return fh_fail(err, FH_ENOMEM, "%s: out of memory", r->p->recipe); }

/* ---- the base model ---------------------------------------------------------------------------------------------------- */

/* Every file the recipe names is the one it names. */
static fh_status check_inputs(rebuilding *r, fh_err *err)
{
    fh_json *record = NULL;
    const fh_json *want = fh_json_get(fh_json_get(r->recipe.provenance, "convert"), "inputs");
    fh_status rc = fh_work_record(r->e.work, FH_FILE_MODEL, &record, err);
    for (const fh_json *w = fh_json_first(want); rc == FH_OK && w; w = fh_json_next(w)) {
        const char *key = fh_json_key(w), *is = fh_json_string(fh_json_get(fh_json_get(record, "inputs"), key)), *was = fh_json_string(w);
        if (!was || !is || strcmp(is, was))
            rc = fh_fail(err, FH_ECHECK,
                         "%s: its %s is not the one the recipe was made with (SHA-256 %.12s, here %.12s): is it another base model, or another revision?",
                         r->p->model, !strcmp(key, "@tensors") ? "tensors" : key + (*key == '@'), was ? was : "?", is ? is : "there is none");
    }
    fh_json_free(record);
    return rc;
}

static fh_status convert(rebuilding *r, fh_err *err)
{
    fh_json *report = NULL;
    bool current;
    fh_status rc = fh_convert_current(&r->e, r->p->model, &current, err);
    if (rc == FH_OK && !current) rc = fh_stage_convert(&r->e, r->p->model, &report, err);
    fh_json_free(report);
    if (rc < 0 || (rc = fh_facts_load(&r->facts, &r->e, err)) < 0) return rc;
    if (strcmp(r->facts.fingerprint, r->recipe.fingerprint))
        return fh_fail(err, FH_ECHECK, "%s: its head has the fingerprint %.12s, the recipe's base model %.12s: it is another model", r->p->model,
                       r->facts.fingerprint, r->recipe.fingerprint);
    return check_inputs(r, err);
}

/* ---- from the assignment on ------------------------------------------------------------------------------------------------ */

static fh_status open_carried(fh_tensors **out, const rebuilding *r, fh_err *err)
{
    const char *slash = strrchr(r->p->recipe, '/');
    char *path = fh_sprintf("%.*s%s", slash ? (int)(slash - r->p->recipe + 1) : 0, r->p->recipe, FH_RELEASE_CARRIED), hex[65];
    fh_status rc = path ? fh_file_sha256(hex, NULL, path, r->e.job, err) : no_memory(r, err);
    if (rc == FH_OK && strcmp(hex, r->recipe.carried_sha256)) rc = fh_fail(err, FH_ECHECK, "%s: is not the file that the recipe names (SHA-256)", path);
    if (rc == FH_OK) rc = fh_tensors_open(out, path, err);
    fh_free(path);
    return rc;
}

/* The carried assignment, judged: every token has a cluster, and no cluster more than cap. */
static fh_status read_assignment(fh_clustering *c, const fh_tensors *carried, const rebuilding *r, fh_err *err)
{
    const fh_tensor *t;
    uint64_t k = r->recipe.k, v = r->facts.head.rows;
    fh_status rc = fh_tensors_need(&t, carried, "assignment", 1u << FH_I32, 1, &v, err);
    if (rc < 0) return rc;
    if (k > v) return fh_fail(err, FH_ECHECK, "%s: /pack/k: %u clusters for %llu tokens", r->p->recipe, r->recipe.k, (unsigned long long)v);
    *c = (fh_clustering){.v = (uint32_t)v, .d = (uint32_t)r->facts.head.cols, .k = (uint32_t)k, .cap = (uint32_t)((v + k - 1) / k)};
    uint32_t *held = fh_calloc(c->k, sizeof *held);
    c->assignment = fh_malloc(c->v * sizeof *c->assignment);
    if (!held || !c->assignment) { fh_free(held); return no_memory(r, err); }
    memcpy(c->assignment, t->data, c->v * sizeof *c->assignment);
    for (uint32_t i = 0; rc == FH_OK && i < c->v; i++)
        if (c->assignment[i] >= c->k || held[c->assignment[i]]++ == c->cap)
            rc = fh_fail(err, FH_ECHECK, "%s: token %u is in cluster %d of %u, or that one has more than %u tokens", t->file, i, (int)c->assignment[i], c->k,
                         c->cap);
    fh_free(held);
    return rc;
}

/* Means are made from the rows again; centroids that were learned, weighted or held at unit length are carried as they were encoded. */
static fh_status make_centroids(fh_quantized *q, fh_clustering *c, const fh_tensors *carried, const rebuilding *r, fh_err *err)
{
    bool mean = !strcmp(r->recipe.routing, "mean"), raw = !strcmp(r->recipe.routing, "raw");
    size_t stride = fh_enc_stride(q->centroids, c->d);
    const fh_tensor *t;
    fh_quant_error lost;
    fh_status rc;
    if ((mean || raw) && !fh_tensors_find(carried, "centroids")) {
        if ((rc = fh_centroids(c, &r->facts.head, r->facts.dead, r->e.job, err)) < 0) return rc;
        fh_rows from = {mean ? c->mean : c->raw, FH_F32, c->k, c->d, c->d * sizeof(float)};
        return fh_encode_centroids(q->centroids, &from, r->e.job, q->c_data, q->c_scales, &lost, err);
    }
    fh_st_spec spec = fh_encoded_spec("centroids", q->centroids, c->k, stride), scales = fh_scales_spec("centroid_scales", q->centroids, c->k, c->d);
    if ((rc = fh_tensors_need(&t, carried, spec.name, 1u << spec.dtype, spec.rank, spec.shape, err)) < 0) return rc;
    memcpy(q->c_data, t->data, (size_t)t->bytes);
    if (!fh_dtype_is_integer(q->centroids)) return FH_OK;
    if ((rc = fh_tensors_need(&t, carried, scales.name, 1u << scales.dtype, scales.rank, scales.shape, err)) < 0) return rc;
    memcpy(q->c_scales, t->data, (size_t)t->bytes);
    return FH_OK;
}

static fh_status from_assignment(rebuilding *r, fh_json **report, fh_err *err)
{
    fh_tensors *carried = NULL;
    fh_clustering c = {0};
    fh_quantized q = {.centroids = r->recipe.centroids, .tokens = r->recipe.tokens};
    fh_encoded encoded = {0};
    fh_quant_error lost;
    size_t bytes;
    fh_json *holder = fh_json_object();
    fh_status rc = holder ? convert(r, err) : no_memory(r, err);
    if (rc < 0 || (rc = open_carried(&carried, r, err)) < 0 || (rc = read_assignment(&c, carried, r, err)) < 0 ||
        (rc = fh_quantized_room(&q, &c, &bytes, err)) < 0 || (rc = make_centroids(&q, &c, carried, r, err)) < 0)
        goto out;
    if ((rc = fh_encode_rows(q.tokens, &r->facts.head, q.permutation, (size_t)c.k * c.cap, r->facts.dead, r->e.job, q.t_data, q.t_scales, &lost, err)) < 0)
        goto out;
    if (!fh_json_add_copy(holder, "record", fh_json_get(r->recipe.provenance, "quantize"))) { rc = no_memory(r, err); goto out; }
    if ((rc = fh_quantized_write(&r->e, &q, &c, (fh_json *)(uintptr_t)fh_json_get(holder, "record"), err)) < 0 ||
        (rc = fh_encoded_load(&encoded, &r->e, &r->facts, err)) < 0)
        goto out;
    fh_stage_pack_params pack = {.output = r->output,
                                 .no_clobber = r->p->no_clobber,
                                 .head_only = r->recipe.head_only,
                                 .exact = r->recipe.exact,
                                 .probes = r->recipe.probes,
                                 .threshold = r->recipe.threshold,
                                 .rerank = r->recipe.rerank};
    rc = fh_pack_encoded(&r->e, &pack, &r->facts, &encoded, r->recipe.calibration, r->recipe.provenance, report, err);
out:
    fh_encoded_free(&encoded);
    fh_quantized_free(&q);
    fh_clustering_free(&c);
    fh_tensors_close(carried);
    fh_json_free(holder);
    return rc;
}

/* ---- from the text on ----------------------------------------------------------------------------------------------------- */

/* What the clock or another file had a part in cannot be repeated; NULL: nothing had. */
static const char *why_not_again(const fh_json *cluster, const fh_json *calibrate_params)
{
    if (fh_json_get(cluster, "init")) return "its clusters began from an earlier clustering";
    if (fh_member_true(cluster, "interrupted")) return "its clustering was interrupted";
    if (fh_member_is(calibrate_params, "cheapest", "time")) return "its setting was chosen by the clock";
    return NULL;
}

static fh_status from_text(rebuilding *r, fh_json **report, fh_err *err)
{
    const fh_json *provenance = r->recipe.provenance, *cluster = fh_json_get(fh_json_get(provenance, "cluster"), "params"),
                  *route = fh_json_get(fh_json_get(provenance, "route"), "params");
    const fh_json *made = fh_json_get(r->recipe.calibration, "made_by"), *how = fh_json_get(made, "params"), *states = fh_json_get(made, "states");
    const fh_json *asked = fh_json_get(fh_json_get(states, "params"), "asked");
    const char *text = fh_json_string(fh_json_get(asked, "text")), *digest = fh_json_string(fh_json_get(states, "text_sha256"));
    int64_t hot = -1, rerank = -1;
    if (!made || !text)
        return fh_fail(err, FH_ECHECK, "%s: the artifact is not calibrated, and a build calibrates: only --from assignment makes it again", r->p->recipe);
    const char *why = why_not_again(cluster, how);
    if (why) return fh_fail(err, FH_ECHECK, "%s: %s: only --from assignment makes it again", r->p->recipe, why);
    bool self = !strcmp(text, "self");
    if (!self && !r->p->n_texts)
        return fh_fail(err, FH_EUSAGE, "--from text: the recipe's text is '%.100s' (SHA-256 %.12s): give it with --text", text, digest ? digest : "?");
    if (self && r->p->n_texts) return fh_fail(err, FH_EUSAGE, "--text: the recipe's text is what the model says itself");
    fh_json_i64(fh_json_get(how, "hot"), &hot);
    fh_json_i64(fh_json_get(how, "rerank"), &rerank);
    fh_build_params b = {.model = r->p->model, .output = r->output, .no_clobber = r->p->no_clobber, .head_only = r->recipe.head_only, .exact = r->recipe.exact,
                         .centroids = r->recipe.centroids, .tokens = r->recipe.tokens, .rerank = r->recipe.rerank};
    b.text = (fh_text_params){.texts = r->p->texts,
                              .n_texts = r->p->n_texts,
                              .tokens = (size_t)fh_member_u64(asked, "tokens", 0),
                              .window = (uint32_t)fh_member_u64(asked, "window", 0),
                              .seed = fh_member_u64(asked, "seed", 0)};
    b.cluster = fh_cluster_params_of(cluster);
    b.route = fh_route_params_of(route);
    b.how = (fh_calibrate_params){.targets = {[FH_CONTAINED] = fh_member_double(how, "target", 0),
                                              [FH_AGREED] = fh_member_double(how, "target_agreement", 0),
                                              [FH_COVERED] = fh_member_double(how, "target_mass", 0)},
                                  .confidence = fh_member_double(how, "confidence", 0.95),
                                  .containment_k = (uint32_t)fh_member_u64(how, "containment_k", 0),
                                  .hot = hot,
                                  .rerank = rerank,
                                  .max_cost = fh_member_double(how, "max_cost", 0.5),
                                  .adaptive = fh_member_is(how, "probing", "adaptive"),
                                  .vllm = fh_member_is(how, "runtime", "vllm")};
    return fh_stage_build(&r->e, &b, report, err);
}

/* ---- comparing ---------------------------------------------------------------------------------------------------------------- */

/* Where release.json lies beside the recipe it names the sections: which of them came out differently? */
static char *different_sections(const rebuilding *r, const fh_json *info)
{
    const char *slash = strrchr(r->p->recipe, '/');
    char *path = fh_sprintf("%.*s%s", slash ? (int)(slash - r->p->recipe + 1) : 0, r->p->recipe, FH_RELEASE_JSON);
    fh_json *release = NULL;
    fh_err ignored;
    fh_buf b = {0};
    if (path && fh_json_read(&release, path, FH_RELEASE_BYTES, &ignored) == FH_OK) {
        const fh_json *was = fh_json_first(fh_json_get(fh_json_get(release, "artifact"), "sections"));
        for (const fh_json *s = fh_json_first(fh_json_get(info, "sections")); s && was; s = fh_json_next(s), was = fh_json_next(was)) {
            const char *name = fh_json_string(fh_json_get(s, "name")), *now = fh_json_string(fh_json_get(s, "digest")),
                       *then = fh_json_string(fh_json_get(was, "digest"));
            if (!name || !now || !then || strcmp(now, then))
                fh_buf_printf(&b, "%s%s%s", b.len ? ", " : "", name ? name : "?",
                              fh_member_is(s, "codec", "zstd") ? " (compressed: by another version of zstd?)" : "");
        }
    }
    fh_json_free(release);
    fh_free(path);
    return fh_buf_take(&b);
}

static fh_status compare(const rebuilding *r, fh_json *report, fh_err *err)
{
    const char *digest = fh_json_string(fh_json_get(report, "digest"));
    bool same = digest && !strcmp(digest, r->recipe.digest);
    char *sections = same ? NULL : different_sections(r, report);
    fh_status rc = FH_OK;
    fh_json_add_string(report, "expected", r->recipe.digest);
    fh_json_add_bool(report, "same", same);
    fh_json_add_string(report, "output", r->output);
    if (!same)
        rc = fh_fail(err, FH_ECHECK, "%s: has the digest %.12s, the recipe %.12s: not the same artifact%s%s%s", r->output, digest ? digest : "?",
                     r->recipe.digest, sections && *sections ? "; different: " : "", sections ? sections : "",
                     r->p->from_text ? "; clustering and states depend on CPU type and library versions, --from assignment does not" : "");
    fh_free(sections);
    return rc;
}

fh_status fh_rebuild(const fh_rebuild_params *p, const fh_job *job, fh_json **report, fh_err *err)
{
    double began = fh_now();
    fh_rebuild_params here = *p; /* with the recipe's own name, where a release is given */
    rebuilding r = {.p = &here, .e = {.job = job}};
    char *text = NULL, *own = NULL, *inside = NULL;
    size_t len = 0;
    struct stat st;
    *report = NULL;
    fh_status rc = FH_OK;
    if (!stat(p->recipe, &st) && S_ISDIR(st.st_mode)) {
        if (!(inside = fh_path_join(p->recipe, FH_RELEASE_RECIPE))) rc = no_memory(&r, err);
        else here.recipe = inside;
    }
    if (rc < 0 || (rc = fh_file_read(&text, &len, here.recipe, 64 << 20, err)) < 0 ||
        (rc = fh_recipe_parse(&r.recipe, text, len, here.recipe, err)) < 0 || (rc = fh_work_open(&r.e.work, p->work, true, err)) < 0) goto out;
    if (!p->output && !(own = fh_work_path(r.e.work, "rebuilt.fhead"))) { rc = no_memory(&r, err); goto out; }
    r.output = p->output ? p->output : own;
    if ((rc = fh_keep_input(r.output, p->model, err)) < 0 || (rc = fh_keep_input(r.output, p->work, err)) < 0 ||
        (rc = fh_out_check(r.output, p->no_clobber ? FH_NO_CLOBBER : 0, err)) < 0) goto out;
    if (strcmp(r.recipe.tool, "fhtool " FH_TOOL_VERSION))
        fh_job_say(job, FH_WARN, "%s: the artifact was made by %s, this is fhtool " FH_TOOL_VERSION, here.recipe, r.recipe.tool);
    if ((rc = p->from_text ? from_text(&r, report, err) : from_assignment(&r, report, err)) < 0) goto out;
    rc = compare(&r, *report, err);
    fh_json_add_double(*report, "total_seconds", fh_now() - began);
out:
    fh_facts_free(&r.facts);
    fh_work_close(r.e.work);
    fh_recipe_free(&r.recipe);
    fh_free(text);
    fh_free(own);
    fh_free(inside);
    return rc;
}
