/* artifacts/vllm_verify.c: somebody's directory for the vLLM plugin, and whether its clustering belongs to its head. */
#include "artifacts/artifacts.h"
#include "artifacts/stages_private.h"

#include <string.h>

enum { SAMPLE = 1024 }; /* clusters looked at, spread over all of them */

bool fh_vllm_is_dir(const char *path) { return fh_dir_has(path, "config.json"); }

/* Rows less their mean, at unit length: what they share says nothing about which belongs to which.  One without a direction becomes zero.
 */
static void set_apart(float *rows, size_t n, size_t d)
{
    for (size_t j = 0; j < d; j++) {
        double mean = 0;
        for (size_t i = 0; i < n; i++) mean += rows[i * d + j];
        mean /= (double)n;
        for (size_t i = 0; i < n; i++) rows[i * d + j] = (float)(rows[i * d + j] - mean);
    }
    for (size_t i = 0; i < n; i++)
        if (!fh_unit_row(rows + i * d, d)) memset(rows + i * d, 0, d * sizeof *rows);
}

/* Mean directions of the sampled clusters' tokens: means [n, D]. */
static fh_status mean_directions(float *means, const fh_vllm *v, size_t n, const fh_rows *head, fh_err *err)
{
    fh_status rc = FH_OK;
    size_t d = v->hidden;
    uint32_t *place = fh_malloc(v->k * sizeof *place);
    float *row = fh_malloc(d * sizeof *row);
    if (!place || !row) {
        rc = fh_fail(err, FH_ENOMEM, "out of memory");
        goto out;
    }
    for (uint32_t c = 0; c < v->k; c++) place[c] = UINT32_MAX;
    for (size_t i = 0; i < n; i++) place[i * v->k / n] = (uint32_t)i;
    memset(means, 0, n * d * sizeof *means);
    for (uint32_t t = 0; t < v->vocab; t++) {
        uint32_t at = place[v->assignment[t]];
        if (at == UINT32_MAX) continue;
        fh_to_f32(row, head->dtype, fh_row(head, t), d);
        if (!fh_unit_row(row, d)) continue;
        for (size_t j = 0; j < d; j++) means[at * d + j] += row[j];
    }
out:
    fh_free(place);
    fh_free(row);
    return rc;
}

static fh_status measure(double *affinity, const fh_vllm *v, const fh_rows *head, const fh_job *job, fh_err *err)
{
    fh_status rc;
    size_t n = fh_min(v->k, SAMPLE), d = v->hidden, counted = 0;
    double sum = 0;
    float *means = fh_malloc(n * d * sizeof *means), *units = fh_malloc(n * d * sizeof *units), *s = fh_malloc(n * n * sizeof *s);
    if (!means || !units || !s) {
        rc = fh_fail(err, FH_ENOMEM, "out of memory");
        goto out;
    }
    if ((rc = mean_directions(means, v, n, head, err)) < 0) goto out;
    for (size_t i = 0; i < n; i++) {
        memcpy(units + i * d, v->centroids + i * v->k / n * d, d * sizeof *units);
        (void)fh_unit_row(units + i * d, d); /* judged when they were read */
    }
    set_apart(means, n, d);
    set_apart(units, n, d);
    fh_gemm_nt(fh_job_pool(job), n, n, d, means, d, units, d, s, n);
    for (size_t i = 0; i < n && n > 1; i++) {
        double below = 0;
        bool any = false;
        for (size_t j = 0; j < d && !any; j++) any = means[i * d + j] != 0;
        for (size_t j = 0; j < n; j++)
            if (j != i) below += s[i * n + j] < s[i * n + i] ? 1 : s[i * n + j] > s[i * n + i] ? 0 : 0.5;
        if (any) sum += below / (double)(n - 1), counted++;
    }
    *affinity = counted ? sum / (double)counted : 1;
out:
    fh_free(means);
    fh_free(units);
    fh_free(s);
    return rc;
}

fh_status fh_vllm_belongs(const fh_vllm *v, const fh_checkpoint *c, const fh_job *job, double *affinity, fh_err *err)
{
    char print[65];
    fh_rows head = fh_tensor_rows(c->head);
    const char *said = fh_json_string(fh_json_get(v->record, "fingerprint"));
    fh_fingerprint(print, &head, NULL, c->config.final_softcap); /* heads with a bias are not held */
    if (said && strcmp(said, print))
        return fh_fail(
            err, FH_ECHECK,
            "%s: the clustering was made for another head (fingerprint %.12s, the head here has %.12s): export it again from this model",
            c->dir, said, print);
    fh_status rc = measure(affinity, v, &head, job, err);
    if (rc < 0 || *affinity >= FH_VLLM_AFFINITY) return rc;
    return fh_fail(err, FH_ECHECK,
                   "%s: the clustering does not belong to the head: a cluster's own centroid is nearer to its tokens than %.0f %% of the "
                   "others (by chance 50 %%, at least %.0f %% are asked for): "
                   "is it of another model?",
                   c->dir, 100 * *affinity, 100 * FH_VLLM_AFFINITY);
}

void fh_vllm_describe(fh_json *report, const fh_vllm *v, const char *architecture)
{
    fh_json_add_string(report, "format", "vllm");
    if (architecture) fh_json_add_string(report, "architecture", architecture);
    fh_json_add_u64(report, "vocab", v->vocab);
    fh_json_add_u64(report, "hidden", v->hidden);
    fh_json_add_u64(report, "k", v->k);
    fh_json_add_u64(report, "cap", v->cap);
    fh_json_add_u64(report, "probes", v->probes);
}

fh_status fh_vllm_verify(const char *dir, const fh_job *job, fh_json **report, fh_err *err)
{
    double began = fh_now(), affinity;
    fh_checkpoint c = {0};
    fh_vllm v = {0};
    char print[65];
    fh_status rc = fh_checkpoint_open(&c, dir, job, err);
    if (rc < 0 || (rc = fh_vllm_open(&v, &c, job, err)) < 0 || (rc = fh_vllm_belongs(&v, &c, job, &affinity, err)) < 0) goto out;
    fh_rows head = fh_tensor_rows(c.head);
    fh_fingerprint(print, &head, NULL, c.config.final_softcap);
    fh_json *r = fh_json_object();
    const fh_json *promise = fh_json_get(v.record, "promise");
    fh_vllm_describe(r, &v, fh_vllm_architecture(&c.config));
    fh_json_add_bool(r, "probes_said", v.probes_said);
    fh_json_add_u64(r, "special", v.n_special);
    fh_json_add_string(r, "fingerprint", print);
    if (fh_json_string(fh_json_get(v.record, "artifact")))
        fh_json_add_string(r, "artifact", fh_json_string(fh_json_get(v.record, "artifact")));
    else fh_json_add_null(r, "artifact");
    if (promise) fh_json_add_copy(r, "promise", promise);
    else fh_json_add_null(r, "promise");
    fh_json_add_double(r, "affinity", affinity);
    fh_json_add_bool(r, "verified", true);
    fh_json_add_double(r, "seconds", fh_now() - began);
    *report = r;
out:
    fh_vllm_free(&v);
    fh_checkpoint_close(&c);
    return rc;
}
