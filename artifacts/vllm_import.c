/* artifacts/vllm_import.c: a directory for the vLLM plugin back into a work directory, where it can be measured, calibrated and packed like
 * any other. */
#include "artifacts/artifacts.h"
#include "artifacts/stages_private.h"

static fh_status write_clusters(fh_stage_env *e, const fh_clustering *c, fh_err *err)
{
    fh_json *params = fh_json_object();
    fh_json_add_u64(params, "k", c->k);
    fh_json_add_string(params, "imported", "vllm");
    fh_json *record = fh_record_new("import", params);
    fh_status rc = record ? FH_OK : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc < 0 || (rc = fh_record_input(record, e->work, FH_FILE_HEAD, err)) < 0 ||
        (rc = fh_record_input(record, e->work, FH_FILE_MODEL, err)) < 0)
        goto out;
    fh_json_add_double(record, "objective", c->objective);
    rc = fh_write_clusters(e, c, record, err);
out:
    fh_json_free(record);
    return rc;
}

fh_status fh_stage_import(fh_stage_env *e, const char *dir, fh_json **report, fh_err *err)
{
    double began = fh_now(), affinity;
    fh_checkpoint c = {0};
    fh_vllm v = {0};
    fh_facts f = {0};
    fh_clustering made = {0};
    fh_parted parted = {0};
    const fh_stage_route_params how = {.unit = true};
    fh_json *ignored = NULL;
    fh_status rc = fh_checkpoint_open(&c, dir, e->job, err);
    if (rc < 0 || (rc = fh_vllm_open(&v, &c, e->job, err)) < 0 || (rc = fh_vllm_belongs(&v, &c, e->job, &affinity, err)) < 0) goto out;
    if (v.k < 2) {
        rc = fh_fail(err, FH_EUNSUPPORTED,
                     "%s: one cluster of all tokens: there is nothing to choose from, and no work directory holds that", dir);
        goto out;
    }
    if ((rc = fh_stage_convert(e, dir, &ignored, err)) < 0 || (rc = fh_facts_load(&f, e, err)) < 0) goto out;

    made = (fh_clustering){.v = v.vocab, .d = v.hidden, .k = v.k, .cap = v.cap, .assignment = v.assignment};
    v.assignment = NULL;
    if ((rc = fh_centroids(&made, &f.head, f.dead, e->job, err)) < 0 || (rc = write_clusters(e, &made, err)) < 0) goto out;
    if ((rc = fh_unit_rows(v.centroids, v.k, v.hidden, dir, err)) < 0) goto out; /* as that runtime does it when it loads them */
    parted.c = made;
    const fh_routing used = {.name = "imported", .centroids = v.centroids, .assignment = made.assignment};
    if ((rc = fh_write_routing(e, &used, true, &how, &parted, NULL, err)) < 0) goto out;
    fh_stage_log(e, "import", began);

    fh_json *r = fh_json_object();
    fh_vllm_describe(r, &v, NULL);
    fh_json_add_u64(r, "special", v.n_special);
    fh_json_add_double(r, "objective", made.objective);
    fh_json_add_double(r, "affinity", affinity);
    fh_json_add_string(r, "fingerprint", f.fingerprint);
    fh_json_add_double(r, "seconds", fh_now() - began);
    *report = r;
out:
    fh_json_free(ignored);
    fh_clustering_free(&made);
    fh_facts_free(&f);
    fh_vllm_free(&v);
    fh_checkpoint_close(&c);
    return rc;
}
