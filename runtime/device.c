/* runtime/device.c: GPUs, through a shared object that is opened when one is asked for. */
#include "runtime/device_private.h"
#include "runtime/head.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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

/* ---- what is put there --------------------------------------------------------------------------------------------- */

static fh_status topk(void *ctx, const fh_head_call *call, uint32_t *ids, float *logits, fh_err *err)
{
    const fh_device *d = ctx;
    return d->cuda->head_topk(d->head, call, ids, logits, err);
}

/* What shall be done there: a head, the layers of a body, or both; or the search of a clustering for n rows of d and k clusters; or products
 * with n matrices of these shapes. */
typedef struct task_there { const fh_head *head; fh_body *body; const fh_rows *shapes; size_t n, d, k; } task_there;

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

static fh_status put_body(fh_device *d, fh_body *body, fh_err *err)
{
    fh_status rc = d->cuda->body_new(&d->layers, d->device, body, err);
    if (rc < 0) return rc;
    d->body = body;
    body->device = d->cuda->body_does(d->layers);
    return FH_OK;
}

static fh_status put_clusters(fh_device *d, const task_there *w, fh_err *err)
{
    fh_status rc = d->cuda->clusterer_new(&d->clusterer, d->device, w->n, fh_round_up(w->d, 16), w->k, err);
    if (rc == FH_OK) d->clusters = d->cuda->clusterer_use(d->clusterer);
    return rc;
}

static fh_status put_dots(fh_device *d, const task_there *w, fh_err *err)
{
    fh_status rc = d->cuda->multiplier_new(&d->multiplier, d->device, w->shapes, w->n, err);
    if (rc == FH_OK) d->dots = d->cuda->multiplier_use(d->multiplier);
    return rc;
}

/* *what: what does not get there. */
static fh_status put(fh_device *d, const task_there *w, const char **what, fh_err *err)
{
    *what = w->head && w->body ? "head and body run" : w->head ? "the head runs" : w->body ? "the body runs" : w->shapes ? "the calibration runs"
                                                                                                            : "the clustering runs";
    fh_status rc = open_library(d, err);
    if (rc < 0 || (rc = d->cuda->device_open(&d->device, 0, &host, err)) < 0) return rc;
    if (w->shapes) return put_dots(d, w, err);
    if (!w->head && !w->body) return put_clusters(d, w, err);
    if (w->head && (rc = put_head(d, w->head, err)) < 0) return rc;
    *what = "the body runs";
    return w->body ? put_body(d, w->body, err) : FH_OK;
}

static fh_status open_for(fh_device **out, fh_device_kind kind, const task_there *w, const fh_job *job, fh_err *err)
{
    const char *what;
    fh_err why = {FH_OK, ""};
    bool must = kind == FH_DEVICE_CUDA;
    *out = NULL;
    if (kind == FH_DEVICE_CPU) return FH_OK;
    fh_device *d = fh_calloc(1, sizeof *d);
    if (!d) return fh_fail(err, FH_ENOMEM, "out of memory");
    fh_status rc = put(d, w, &what, must ? err : &why);
    if (rc < 0 && !must) fh_job_say(job, FH_INFO, "%s on the CPU: %s", what, why.text);
    if (rc == FH_OK || (!must && d->head)) *out = d; /* a head alone is something */
    else fh_device_close(d);
    return must ? rc : FH_OK;
}

fh_status fh_device_open(fh_device **out, fh_device_kind kind, const fh_head *head, fh_body *body, const fh_job *job, fh_err *err)
{
    return open_for(out, kind, &(task_there){.head = head, .body = body}, job, err);
}

fh_status fh_device_open_clusters(fh_device **out, fh_device_kind kind, size_t n, size_t d, size_t k, const fh_job *job, fh_err *err)
{
    return open_for(out, kind, &(task_there){.n = n, .d = d, .k = k}, job, err);
}

fh_status fh_device_open_dots(fh_device **out, fh_device_kind kind, const fh_rows *shapes, size_t n, const fh_job *job, fh_err *err)
{
    return open_for(out, kind, &(task_there){.shapes = shapes, .n = n}, job, err);
}

void fh_device_close(fh_device *d)
{
    if (!d) return;
    if (d->body) d->body->device = NULL;
    if (d->cuda) {
        d->cuda->body_free(d->layers);
        d->cuda->head_free(d->head);
        d->cuda->clusterer_free(d->clusterer);
        d->cuda->multiplier_free(d->multiplier);
        d->cuda->device_close(d->device);
    }
    if (d->library) dlclose(d->library);
    fh_free(d);
}

bool fh_device_has_head(const fh_device *d) { return d && d->head; }
bool fh_device_has_body(const fh_device *d) { return d && d->layers; }

fh_status fh_device_time(const fh_device *d, fh_device_work work, const float *states, size_t batch, uint32_t probes, size_t runs, double *seconds,
                         uint32_t *ids, fh_err *err)
{
    static const fh_cuda_what what[] = {FH_CUDA_CALL, FH_CUDA_CALL, FH_CUDA_CALL, FH_CUDA_FUSED, FH_CUDA_CUBLAS, FH_CUDA_COPY};
    const fh_head *head = d->of;
    fh_query q = {.probes = probes};
    bool dense = work == FH_DEVICE_DENSE;
    size_t most = fh_head_max_candidates(head, &q);
    uint32_t rerank = dense ? 0 : (uint32_t)fh_min(head->rerank, most);
    fh_head_call call = {.states = states, .batch = batch, .probes = dense ? head->parts.clusters : fh_head_probes(head, probes),
                         .threshold = dense ? 0 : fh_head_threshold(head, probes), .dense = dense,
                         .kept = (uint32_t)fh_min(1 + rerank, most), .rerank = rerank, .k = 1};
    d->cuda->head_apart(d->head, work == FH_DEVICE_APART);
    fh_status rc = d->cuda->head_time(d->head, what[work], &call, runs, seconds, ids, err);
    d->cuda->head_apart(d->head, false);
    return rc;
}

const char *fh_device_name(const fh_device *d) { return d ? d->cuda->device_info(d->device)->name : "cpu"; }
uint64_t fh_device_bytes(const fh_device *d)
{
    if (fh_device_has_head(d)) return d->cuda->head_bytes(d->head);
    if (d && d->multiplier) return d->cuda->multiplier_bytes(d->multiplier);
    return d && d->clusterer ? d->cuda->clusterer_bytes(d->clusterer) : 0;
}
const fh_dots_device *fh_device_dots(const fh_device *d) { return d && d->multiplier ? &d->dots : NULL; }
const fh_cluster_device *fh_device_clusters(const fh_device *d) { return d && d->clusterer ? &d->clusters : NULL; }
void fh_scratch_use(fh_scratch *scratch, const fh_device *d) { scratch->device = fh_device_has_head(d) ? &d->does : NULL; }

bool fh_device_keeps_state(const fh_device *d)
{
    return fh_device_has_head(d) && fh_device_has_body(d) && d->of->rerank < FH_CUDA_KEPT; /* kept is one more */
}

void fh_device_times(const fh_device *d, double *body_seconds, double *head_seconds)
{
    *body_seconds = *head_seconds = 0;
    if (d) d->cuda->device_times(d->device, body_seconds, head_seconds);
}

fh_status fh_device_attention(const fh_device *d, uint64_t *recomputed, uint64_t *parts, fh_err *err)
{
    *recomputed = *parts = 0;
    return fh_device_has_body(d) ? d->cuda->body_attention(d->layers, recomputed, parts, err) : FH_OK;
}
