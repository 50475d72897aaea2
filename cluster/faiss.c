/* cluster/faiss.c: k-means and inverted lists through the FAISS C API.  The only file that sees its headers (they define OK and idx_t). */
#include "cluster/cluster_private.h"

#include <faiss/c_api/Clustering_c.h>
#include <faiss/c_api/IndexFlat_c.h>
#include <faiss/c_api/IndexIVFFlat_c.h>
#include <faiss/c_api/error_c.h>

#include <limits.h>
#include <string.h>

/* Of the OpenMP runtime that FAISS was built with; omp.h comes with one compiler and not with the other. */
extern void omp_set_num_threads(int threads);
extern int omp_get_max_threads(void);

static fh_status faiss_failed(const char *what, int rc, fh_err *err)
{
    const char *why = faiss_get_last_error();
    if (why && strstr(why, "bad_alloc")) return fh_fail(err, FH_ENOMEM, "FAISS: %s: out of memory", what);
    return fh_fail(err, FH_EFAIL, "FAISS: %s failed (code %d): %s", what, rc, why && *why ? why : "no reason given");
}

fh_status fh_kmeans(float *centroids, const float *x, size_t n, size_t d, size_t k, unsigned iterations, bool spherical, uint64_t seed,
                    const fh_job *job, fh_err *err)
{
    fh_status rc = FH_OK;
    FaissClustering *clustering = NULL;
    FaissIndex *index = NULL;
    size_t total, got = 0;
    float *result = NULL;
    if (!k || k > n || k > INT_MAX || d > INT_MAX || n > INT_MAX || !fh_mul(k, d, &total))
        return fh_fail(err, FH_EUSAGE, "k-means: %zu groups of %zu rows: it must be 1 to %zu", k, n, n);

    /* Every parameter is set: by itself the library takes 256 rows a centroid and warns on stderr below 39.  Its sums depend on the
     * number of its threads, so it has one.  A trained object that is trained again goes on from its centroids: one iteration a
     * call gives the same result as all in one, and a place to stop. */
    FaissClusteringParameters p;
    faiss_ClusteringParameters_init(&p);
    p.niter = 1, p.nredo = 1, p.verbose = 0, p.spherical = spherical, p.int_centroids = 0, p.update_index = 0, p.frozen_centroids = 0;
    p.min_points_per_centroid = 1, p.max_points_per_centroid = INT_MAX, p.decode_block_size = 32768;
    p.seed = (int)((seed ^ seed >> 32) & 0x3fffffff);
    int threads = omp_get_max_threads();
    omp_set_num_threads(1);
    (void)fh_gemm_library(); /* sets OpenBLAS, which FAISS calls too, to one thread */

    int code = faiss_Clustering_new_with_params(&clustering, (int)d, (int)k, &p);
    if (code) { rc = faiss_failed("k-means", code, err); goto out; }
    code = spherical ? faiss_IndexFlatIP_new_with(&index, (idx_t)d) : faiss_IndexFlatL2_new_with(&index, (idx_t)d);
    if (code) { rc = faiss_failed("index", code, err); goto out; }
    for (unsigned i = 0; i < iterations; i++) {
        if (fh_job_stopped(job)) { rc = fh_fail(err, FH_EINTERRUPTED, "k-means: interrupted"); goto out; }
        fh_job_progress(job, "k-means", i, iterations, "iterations");
        code = faiss_Clustering_train(clustering, (idx_t)n, x, index);
        if (code) { rc = faiss_failed("k-means", code, err); goto out; }
    }
    fh_job_progress(job, "k-means", iterations, iterations, "iterations");
    faiss_Clustering_centroids(clustering, &result, &got);
    if (!result || got != total) { rc = fh_fail(err, FH_EFAIL, "FAISS: %zu numbers of %zu came back", got, total); goto out; }
    memcpy(centroids, result, total * sizeof *centroids);
out:
    omp_set_num_threads(threads);
    faiss_Index_free(index);
    faiss_Clustering_free(clustering);
    return rc;
}

/* ---- inverted lists ----------------------------------------------------------------------------------------------- */

struct fh_ivf { FaissIndex *centroids; FaissIndexIVFFlat *lists; size_t d; };

fh_status fh_ivf_new(fh_ivf **out, const float *centroids, size_t k, size_t d, fh_err *err)
{
    fh_status rc = FH_OK;
    fh_ivf *v = fh_calloc(1, sizeof *v);
    int code;
    if (!v) return fh_fail(err, FH_ENOMEM, "inverted lists: out of memory");
    v->d = d;
    if (!k || k > INT_MAX || !d || d > INT_MAX) { rc = fh_fail(err, FH_EUSAGE, "inverted lists: %zu lists of width %zu", k, d); goto out; }
    if ((code = faiss_IndexFlatIP_new_with(&v->centroids, (idx_t)d)) != 0) { rc = faiss_failed("index", code, err); goto out; }
    if ((code = faiss_Index_add(v->centroids, (idx_t)k, centroids)) != 0) { rc = faiss_failed("centroids", code, err); goto out; }
    code = faiss_IndexIVFFlat_new_with_metric(&v->lists, v->centroids, d, k, METRIC_INNER_PRODUCT);
    if (code) { rc = faiss_failed("inverted lists", code, err); goto out; }
    *out = v, v = NULL;
out:
    fh_ivf_free(v);
    return rc;
}

void fh_ivf_free(fh_ivf *v)
{
    if (!v) return;
    faiss_Index_free(v->lists);
    faiss_Index_free(v->centroids);
    fh_free(v);
}

fh_status fh_ivf_add(fh_ivf *v, const float *rows, const int64_t *ids, const int64_t *lists, size_t n, fh_err *err)
{
    int code = faiss_IndexIVFFlat_add_core(v->lists, (idx_t)n, rows, (const idx_t *)ids, lists);
    return code ? faiss_failed("adding to the lists", code, err) : FH_OK;
}

fh_status fh_ivf_search(fh_ivf *v, const float *states, size_t n, size_t probes, unsigned threads, size_t k, int64_t *ids, float *scores, fh_err *err)
{
    int before = omp_get_max_threads();
    omp_set_num_threads((int)threads);
    faiss_IndexIVFFlat_set_nprobe(v->lists, probes);
    int code = faiss_Index_search(v->lists, (idx_t)n, states, (idx_t)k, scores, (idx_t *)ids);
    omp_set_num_threads(before);
    return code ? faiss_failed("searching the lists", code, err) : FH_OK;
}
