// cluster/faiss_shim.cpp: the few C functions of FAISS that faiss.c calls, where the library was built without its C API.
//
// Debian 12 ships the C headers and one static C++ library.  These definitions carry upstream's names and meaning, so that a
// library with a C API of its own (-DFH_HAVE_FAISS_C) takes their place without a change elsewhere.  The parameter structs of C
// and C++ differ in layout (int against bool): they are copied field by field.
#include <faiss/Clustering.h>
#include <faiss/Index.h>
#include <faiss/IndexFlat.h>
#include <faiss/IndexIVFFlat.h>
#include <faiss/impl/FaissException.h>

#include <exception>
#include <string>

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

extern "C" const char *fh_faiss_version(void);
const char *fh_faiss_version(void)
{
    return TEXT(FAISS_VERSION_MAJOR) "." TEXT(FAISS_VERSION_MINOR) "." TEXT(FAISS_VERSION_PATCH);
}

#ifndef FH_HAVE_FAISS_C
extern "C" {
#include <faiss/c_api/Clustering_c.h>
#include <faiss/c_api/IndexFlat_c.h>
#include <faiss/c_api/IndexIVFFlat_c.h>
#include <faiss/c_api/error_c.h>
}

namespace {

thread_local std::string last_error;

// No exception may pass into C.
template <class Work> int guarded(Work work) noexcept
{
    try {
        work();
        return OK;
    } catch (const std::exception &e) {
        try {
            last_error = e.what();
        } catch (...) {
            last_error.clear();
        }
        return dynamic_cast<const faiss::FaissException *>(&e) ? FAISS_EXCEPT : STD_EXCEPT;
    } catch (...) {
        last_error.clear();
        return UNKNOWN_EXCEPT;
    }
}

faiss::Clustering *of(FaissClustering *c) { return reinterpret_cast<faiss::Clustering *>(c); }
faiss::Index *of(FaissIndex *i) { return reinterpret_cast<faiss::Index *>(i); }
const faiss::Index *of(const FaissIndex *i) { return reinterpret_cast<const faiss::Index *>(i); }
// Every pointer that goes out is one to the base class, whatever the name of its C type.
faiss::IndexIVFFlat *ivf_of(FaissIndexIVFFlat *i) { return static_cast<faiss::IndexIVFFlat *>(reinterpret_cast<faiss::Index *>(i)); }

} // namespace

extern "C" {

const char *faiss_get_last_error(void) { return last_error.c_str(); }

void faiss_ClusteringParameters_init(FaissClusteringParameters *p)
{
    const faiss::ClusteringParameters d;
    p->niter = d.niter, p->nredo = d.nredo, p->verbose = d.verbose, p->spherical = d.spherical, p->int_centroids = d.int_centroids;
    p->update_index = d.update_index, p->frozen_centroids = d.frozen_centroids, p->min_points_per_centroid = d.min_points_per_centroid;
    p->max_points_per_centroid = d.max_points_per_centroid, p->seed = d.seed, p->decode_block_size = d.decode_block_size;
}

int faiss_Clustering_new_with_params(FaissClustering **out, int d, int k, const FaissClusteringParameters *p)
{
    return guarded([&] {
        faiss::ClusteringParameters c;
        c.niter = p->niter, c.nredo = p->nredo, c.verbose = p->verbose != 0, c.spherical = p->spherical != 0;
        c.int_centroids = p->int_centroids != 0, c.update_index = p->update_index != 0, c.frozen_centroids = p->frozen_centroids != 0;
        c.min_points_per_centroid = p->min_points_per_centroid, c.max_points_per_centroid = p->max_points_per_centroid;
        c.seed = p->seed, c.decode_block_size = p->decode_block_size;
        *out = reinterpret_cast<FaissClustering *>(new faiss::Clustering(d, k, c));
    });
}

int faiss_Clustering_train(FaissClustering *c, idx_t n, const float *x, FaissIndex *index)
{
    return guarded([&] { of(c)->train(n, x, *of(index)); });
}

void faiss_Clustering_centroids(FaissClustering *c, float **centroids, size_t *size)
{
    *centroids = of(c)->centroids.data();
    if (size) *size = of(c)->centroids.size();
}

void faiss_Clustering_free(FaissClustering *c) { delete of(c); }

int faiss_IndexFlatIP_new_with(FaissIndexFlatIP **out, idx_t d)
{
    return guarded([&] { *out = reinterpret_cast<FaissIndexFlatIP *>(static_cast<faiss::Index *>(new faiss::IndexFlatIP(d))); });
}

int faiss_IndexFlatL2_new_with(FaissIndexFlatL2 **out, idx_t d)
{
    return guarded([&] { *out = reinterpret_cast<FaissIndexFlatL2 *>(static_cast<faiss::Index *>(new faiss::IndexFlatL2(d))); });
}

int faiss_IndexIVFFlat_new_with_metric(FaissIndexIVFFlat **out, FaissIndex *quantizer, size_t d, size_t nlist, FaissMetricType metric)
{
    return guarded([&] {
        auto *index = new faiss::IndexIVFFlat(of(quantizer), d, nlist, static_cast<faiss::MetricType>(metric));
        *out = reinterpret_cast<FaissIndexIVFFlat *>(static_cast<faiss::Index *>(index));
    });
}

int faiss_IndexIVFFlat_add_core(FaissIndexIVFFlat *index, idx_t n, const float *x, const idx_t *ids, const int64_t *lists)
{
    return guarded([&] { ivf_of(index)->add_core(n, x, ids, lists); });
}

void faiss_IndexIVFFlat_set_nprobe(FaissIndexIVFFlat *index, size_t probes) { ivf_of(index)->nprobe = probes; }

int faiss_Index_add(FaissIndex *index, idx_t n, const float *x)
{
    return guarded([&] { of(index)->add(n, x); });
}

int faiss_Index_search(const FaissIndex *index, idx_t n, const float *x, idx_t k, float *distances, idx_t *labels)
{
    return guarded([&] { of(index)->search(n, x, k, distances, labels); });
}

void faiss_Index_free(FaissIndex *i) { delete of(i); }

} // extern "C"
#endif
