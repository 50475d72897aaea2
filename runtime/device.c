/* runtime/device.c: GPUs, through a shared object that is opened when one is asked for. */
#include "runtime/cuda/backend.h"
#include "runtime/head.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct fh_device {
    void *library;
    const fh_cuda_table *cuda;
    const fh_head *of;
    fh_cuda_device *device;
    fh_cuda_head *head;
    fh_head_device does;
    fh_cuda_clusterer *clusterer;
    fh_cluster_device clusters;
};

static const fh_cuda_host host = {fh_calloc, fh_free, fh_fail};

/* ---- the shared object ------------------------------------------------------------------------------------------ */

#define LIBRARY "libfhcuda.so"

/* LIBRARY in `sub` of the directory that the program lies in; NULL: not there (or no memory to look). */
static char *beside(const char *sub)
{
    char dir[4096], *slash;
    ssize_t n = readlink("/proc/self/exe", dir, sizeof dir - 1);
    if (n <= 0) return NULL;
    dir[n] = 0;
    if (!(slash = strrchr(dir, '/'))) return NULL;
    *slash = 0;
    char *path = fh_sprintf("%s/%s" LIBRARY, dir, sub);
    if (path && fh_file_exists(path)) return path;
    fh_free(path);
    return NULL;
}

static fh_status open_library(fh_device *d, fh_err *err)
{
    const char *named = getenv("FH_CUDA_LIBRARY");
    char *path = named && *named ? fh_strdup(named) : beside("");
    const fh_cuda_table *(*backend)(void) = NULL;
    fh_status rc = FH_OK;
    if (!path) path = beside("../lib/");
    if (!path) return fh_fail(err, FH_ENOTFOUND, "there is no " LIBRARY " beside the program or in ../lib: 'make' builds it where nvcc is on the PATH");
    if (!(d->library = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE))) {
        const char *why = dlerror();
        rc = fh_fail(err, FH_ENOTFOUND, "%s: cannot be opened: %s", path, why ? why : "no reason given");
        goto out;
    }
    void *symbol = dlsym(d->library, FH_CUDA_SYMBOL);
    memcpy(&backend, &symbol, sizeof backend); /* POSIX lets a function be an object pointer, C does not */
    if (!backend) { rc = fh_fail(err, FH_EUNSUPPORTED, "%s: has no " FH_CUDA_SYMBOL ": is it of this program?", path); goto out; }
    const fh_cuda_table *table = backend();
    if (table->abi == FH_CUDA_ABI && table->shapes == FH_CUDA_SHAPES) d->cuda = table;
    else rc = fh_fail(err, FH_EUNSUPPORTED, "%s: is of another build (%s) than this program: install both together", path,
                      table->abi == FH_CUDA_ABI ? table->version : "with another interface");
out:
    fh_free(path);
    return rc;
}

/* ---- a head on a device ------------------------------------------------------------------------------------------- */

static fh_status topk(void *ctx, const fh_head_call *call, uint32_t *ids, float *logits, fh_err *err)
{
    const fh_device *d = ctx;
    return d->cuda->head_topk(d->head, call, ids, logits, err);
}

/* What shall be done there: a head, or the search of a clustering for n rows of d and k clusters. */
typedef struct task_there { const fh_head *head; size_t n, d, k; } task_there;

static fh_status put_head(fh_device *d, const fh_head *head, fh_err *err)
{
    fh_cuda_source source = {.parts = &head->parts, .dense = head->exact, .slot_of = head->slot_of, .dead = head->dead_map, .always = head->always,
                             .forced = head->forced,
                             .n_always = head->n_always, .n_forced = head->n_forced};
    fh_status rc = d->cuda->head_new(&d->head, d->device, &source, err);
    d->of = head;
    d->does = (fh_head_device){d, FH_CUDA_KEPT, topk};
    return rc;
}

static fh_status put_clusters(fh_device *d, const task_there *w, fh_err *err)
{
    fh_status rc = d->cuda->clusterer_new(&d->clusterer, d->device, w->n, fh_round_up(w->d, 16), w->k, err);
    if (rc == FH_OK) d->clusters = d->cuda->clusterer_use(d->clusterer);
    return rc;
}

static fh_status open_cuda(fh_device **out, const task_there *w, fh_err *err)
{
    fh_status rc;
    if (w->head && w->head->parts.threshold > 0)
        return fh_fail(err, FH_EUNSUPPORTED,
                       "the head probes by a threshold on scores, which the CUDA head does not know: leave --device out, or make it with "
                       "'fhtool calibrate --probing fixed'");
    fh_device *d = fh_calloc(1, sizeof *d);
    if (!d) return fh_fail(err, FH_ENOMEM, "out of memory");
    if ((rc = open_library(d, err)) < 0 || (rc = d->cuda->device_open(&d->device, 0, &host, err)) < 0 ||
        (rc = w->head ? put_head(d, w->head, err) : put_clusters(d, w, err)) < 0) goto out;
    *out = d, d = NULL;
out:
    fh_device_close(d);
    return rc;
}

static fh_status open_for(fh_device **out, fh_device_kind kind, const task_there *w, const fh_job *job, fh_err *err)
{
    fh_err why = {FH_OK, ""};
    *out = NULL;
    if (kind == FH_DEVICE_CPU) return FH_OK;
    if (kind == FH_DEVICE_CUDA) return open_cuda(out, w, err);
    if (open_cuda(out, w, &why) < 0) fh_job_say(job, FH_INFO, "the %s runs on the CPU: %s", w->head ? "head" : "clustering", why.text);
    return FH_OK;
}

fh_status fh_device_open(fh_device **out, fh_device_kind kind, const fh_head *head, const fh_job *job, fh_err *err)
{
    return open_for(out, kind, &(task_there){.head = head}, job, err);
}

fh_status fh_device_open_clusters(fh_device **out, fh_device_kind kind, size_t n, size_t d, size_t k, const fh_job *job, fh_err *err)
{
    return open_for(out, kind, &(task_there){.n = n, .d = d, .k = k}, job, err);
}

void fh_device_close(fh_device *d)
{
    if (!d) return;
    if (d->cuda) {
        d->cuda->head_free(d->head);
        d->cuda->clusterer_free(d->clusterer);
        d->cuda->device_close(d->device);
    }
    if (d->library) dlclose(d->library);
    fh_free(d);
}

fh_status fh_device_time(const fh_device *d, fh_device_work work, const float *states, size_t batch, uint32_t probes, size_t runs, double *seconds,
                         uint32_t *ids, fh_err *err)
{
    static const fh_cuda_what what[] = {FH_CUDA_CALL, FH_CUDA_CALL, FH_CUDA_CALL, FH_CUDA_FUSED, FH_CUDA_CUBLAS, FH_CUDA_COPY};
    const fh_head *head = d->of;
    fh_query q = {.probes = probes};
    bool dense = work == FH_DEVICE_DENSE;
    size_t most = fh_head_max_candidates(head, &q);
    uint32_t rerank = dense ? 0 : (uint32_t)fh_min(head->rerank, most);
    fh_head_call call = {.states = states, .batch = batch, .probes = dense ? head->parts.clusters : fh_head_probes(head, probes), .dense = dense,
                         .kept = (uint32_t)fh_min(1 + rerank, most), .rerank = rerank, .k = 1};
    d->cuda->head_apart(d->head, work == FH_DEVICE_APART);
    fh_status rc = d->cuda->head_time(d->head, what[work], &call, runs, seconds, ids, err);
    d->cuda->head_apart(d->head, false);
    return rc;
}

const char *fh_device_name(const fh_device *d) { return d ? d->cuda->device_info(d->device)->name : "cpu"; }
uint64_t fh_device_bytes(const fh_device *d) { return !d ? 0 : d->head ? d->cuda->head_bytes(d->head) : d->cuda->clusterer_bytes(d->clusterer); }
const fh_cluster_device *fh_device_clusters(const fh_device *d) { return d && d->clusterer ? &d->clusters : NULL; }
void fh_scratch_use(fh_scratch *scratch, const fh_device *d) { scratch->device = d ? &d->does : NULL; }
