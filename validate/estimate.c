/* estimate: what a model costs and how fast FlashHead will make it, before any work.
 *
 * Bytes and operations are counted (cost.c).  Time is more than these: calls have costs of their own, threads have to be woken, small models lie in caches,
 * rows here and there come slower than rows in order, integer products have other speeds than float ones.  Rather than guess at all that, a stand-in of the
 * model's shape is timed by the code that `bench` times an artifact with.  It has the model's width, encodings, P, and layers; of clusters and
 * layers only as many as a moment allows, and what is left out is added in proportion: each step of the head by what it reads, the body by its layers.
 */
#include "validate/estimate.h"

#include "cluster/cluster.h"
#include "quant/quant.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Bytes of the stand-in: several times the caches of most machines, written in a moment.  Where it has fewer than PLACED, there are several: where in memory
 * a small file happens to lie decides up to a tenth of its time. */
enum { HEAD_BYTES = 192 << 20, BODY_BYTES = 96 << 20, PLACED = 64 << 20, PLACES = 3, RUNS = 20, TEXT = 100000 };

const char *const fh_build_stages[4] = {"hidden", "cluster", "route", "calibrate"};

/* ---- the build ------------------------------------------------------------------------------------------------------ */

/* A token that the model says itself takes 2.1 times what sgemm needs for its products (64 rows at a time, attention, weights widened), a state that is measured 1.7
 * times; clustering two threads 200 ns for each number of the head; products of eight bits a fifth of sgemm's time, an exponential of many side by side a thread
 * 2.6 ns, a step of Adam 3 ns a number.  Fitted on two cores of a quiet Zen 4 to builds of the demo model from 200,000 and 100,000 tokens (hidden 37 and 18.5 s,
 * route 7.2 and 3.5, calibrate 24 and 12.4: 37, 19.6, 6.2, 3.1, 25 and 13 by this), and to clustering it and a head of 128256 x 2048 (1.1 and 39 s: 0.8 and 53)
 * and learning the latter's routing from 9,024 states (18.8 s: 18.7). */
static void build_costs(fh_estimate *e, size_t text)
{
    static const double said = 2.1, measured = 1.7, cluster = 2e-7, eight = 0.2, exponential = 2.6e-9, adam = 3e-9, asked = 0.1;
    enum { PASSES = FH_LEARN_PASSES, CHOICES = 4 };
    const fh_shape *s = &e->shape;
    double n = (double)text, a = n / 2, c = 0.15 * n, v = s->vocab, d = s->hidden, k = e->setting.k, threads = fmax(e->threads, 1);
    double flops = e->peak.gemm.gigabytes_per_second * 1e9, dense = 2 * v * d, routed = 2 * k * d;
    double body = e->sums[FH_WHOLE_BODY].flops - e->costs[FH_COST_ATTENTION].flops;
    e->build_seconds[0] = n * (said * (body + dense) / flops + v * exponential / threads);
    e->build_seconds[1] = cluster * v * d * 2 / threads;
    e->build_seconds[2] = a * ((eight * (dense + PASSES * routed) + asked * (PASSES + 1) * routed) / flops +
                               ((v + PASSES * k) * exponential + PASSES * k * d / FH_LEARN_BATCH * adam) / threads);
    e->build_seconds[3] = measured * (n * (dense + (CHOICES / 2.0 + 1) * routed) + c * 2 * dense) / flops + c * 2 * v * exponential / threads;
    if (!(flops > 0)) for (int i = 0; i < 4; i++) e->build_seconds[i] = NAN;
    if (!s->layers) for (int i = 0; i < 4; i++) if (i != 1) e->build_seconds[i] = NAN; /* no body, no states */
    fh_cluster_params how = {.k = e->setting.k};
    double states = n * d * sizeof(float);
    double clustering = (double)fh_cluster_memory(s->vocab, s->hidden, &how) + v * d * sizeof(float), encoded = e->centroid_bytes + e->token_bytes;
    e->build_bytes = e->sums[FH_WHOLE_DENSE].bytes + (s->layers ? states : 0) + fmax(clustering, encoded);
}

/* ---- the stand-in's times, made the model's --------------------------------------------------------------------------- */

static double whole_ratio(uint32_t real, uint32_t there) { return there ? (double)real / there : 1; }

/* Seconds of one cold FlashHead call at `probes`, from the stand-in's at as many or, where it has too few clusters, at fewer. */
static double flash_seconds(const fh_estimate *e, const fh_bench_row *r, uint32_t probes)
{
    double around = r->time.median, wider = whole_ratio(e->setting.k, e->stand_in_clusters);
    for (int i = 0; i < FH_STEPS; i++) around -= r->steps[i];
    return fmax(around, 0) + wider * (r->steps[FH_STEP_ROUTE] + r->steps[FH_STEP_SELECT]) + whole_ratio(probes, r->probes) * r->steps[FH_STEP_SCORE] +
           r->steps[FH_STEP_RERANK];
}

static const fh_bench_row *row_at(const fh_bench_list *list, uint32_t probes)
{
    const fh_bench_row *best = NULL;
    for (size_t i = 0; i < list->n; i++)
        if (list->row[i].probes && (!best || (list->row[i].probes <= probes && list->row[i].probes > best->probes))) best = &list->row[i];
    return best;
}

static void scale(fh_estimate *e, const fh_bench_report *b, const fh_stand_in *in, const uint32_t *probes, size_t n)
{
    const fh_bench_row *dense = NULL;
    bool cut = in->clusters < e->setting.k || in->layers < e->shape.layers;
    for (size_t i = 0; i < b->heads.n; i++) if (!strncmp(b->heads.row[i].what, "dense", 5)) dense = &b->heads.row[i];
    for (size_t i = 0; i < n; i++) e->curve[i] = (fh_head_time){probes[i], flash_seconds(e, row_at(&b->curve, probes[i]), probes[i])};
    e->n_curve = n;
    for (size_t i = 0; i < n; i++) if (probes[i] == e->setting.probes) e->head_seconds[FH_HEAD_FLASH] = e->curve[i].seconds;
    e->head_seconds[FH_HEAD_DENSE] = dense ? dense->time.median * whole_ratio(e->setting.k, in->clusters) : NAN;
    if (!in->layers) return;
    double real_layer = (e->sums[FH_WHOLE_BODY].bytes - e->costs[FH_COST_ATTENTION].bytes) / e->shape.layers;
    for (int h = 0; h < 2; h++) {
        double body = b->tpot[h] * (1 - b->share[h]) * whole_ratio(e->shape.layers, in->layers) * fmax(1, real_layer / in->layer_bytes);
        double head = b->tpot[h] * b->share[h];
        /* What was cut lies in caches more than the real one does: there a head's call finds nothing of the last, as in the cold ones. */
        if (cut) head = e->head_seconds[h];
        e->token_seconds[h] = body + head, e->head_share[h] = head / (body + head);
    }
}

/* One stand-in, as bench times an artifact. */
static fh_status measure_one(fh_estimate *e, fh_stand_in *in, const fh_estimate_params *p, const uint32_t *probes, uint32_t *there, size_t n, const fh_job *job,
                             fh_err *err)
{
    fh_bench_report b;
    /* Where it was cut, no more than half of its clusters are probed: some have to lie between. */
    uint32_t most = in->clusters < e->setting.k ? in->clusters / 2 : in->clusters;
    for (size_t i = 0; i < n; i++) there[i] = (uint32_t)fh_min(probes[i], most);
    fh_bench_params how = {.probes = (uint32_t)fh_min(e->setting.probes, most), .runs = p->runs ? p->runs : RUNS, .curve = there, .n_curve = n,
                           .no_batches = true, .no_rivals = true, .brief = true, .memory_bytes = p->memory_bytes};
    fh_status rc = fh_bench(&in->model, &how, job, &b, err);
    if (rc < 0) return rc;
    e->stand_in_clusters = in->clusters, e->stand_in_layers = in->layers;
    e->threads = b.threads, e->isa = b.isa, e->peak = b.peaks[0];
    scale(e, &b, in, probes, n);
    return FH_OK;
}

static int by_dense(const void *a, const void *b)
{
    double x = ((const fh_estimate *)a)->head_seconds[FH_HEAD_DENSE], y = ((const fh_estimate *)b)->head_seconds[FH_HEAD_DENSE];
    return (x > y) - (x < y);
}

/* The middle one of several stand-ins, which are there at the same time so that each has a place of its own.  e->curve [n] is there. */
static fh_status measure(fh_estimate *e, const fh_estimate_params *p, const uint32_t *probes, size_t n, const fh_job *job, fh_err *err)
{
    fh_stand_in in[PLACES];
    fh_estimate found[PLACES];
    size_t places = 0;
    const char *dir = p->scratch_dir ? p->scratch_dir : getenv("TMPDIR");
    uint32_t *there = fh_malloc(n * sizeof *there);
    fh_head_time *curves = fh_malloc(PLACES * n * sizeof *curves);
    fh_status rc = there && curves ? FH_OK : fh_fail(err, FH_ENOMEM, "estimate: out of memory");
    memset(in, 0, sizeof in);
    while (rc == FH_OK && places < PLACES && (!places || in[0].bytes < PLACED))
        if ((rc = fh_stand_in_open(&in[places], &e->shape, &e->setting, e->setting.probes, HEAD_BYTES, BODY_BYTES, dir && *dir ? dir : "/tmp", job, err)) == FH_OK)
            places++;
    for (size_t i = 0; rc == FH_OK && i < places; i++) {
        found[i] = *e, found[i].curve = curves + i * n;
        fh_job again = job ? *job : (fh_job){0};
        if (i) again.message = NULL; /* what is to be said is said of the first */
        rc = measure_one(&found[i], &in[i], p, probes, there, n, &again, err);
    }
    if (rc == FH_OK) {
        fh_head_time *own = e->curve;
        qsort(found, places, sizeof *found, by_dense);
        *e = found[places / 2], e->curve = own;
        memcpy(own, found[places / 2].curve, n * sizeof *own);
    }
    for (size_t i = 0; i < PLACES; i++) fh_stand_in_close(&in[i]);
    fh_free(curves);
    fh_free(there);
    return rc;
}

/* ---- all of it ------------------------------------------------------------------------------------------------------ */

static int rising(const void *a, const void *b) { const uint32_t *x = a, *y = b; return (*x > *y) - (*x < *y); }

/* The P asked for and the setting's own, rising, each once. */
static fh_status list_probes(uint32_t **out, size_t *n, const fh_estimate_params *p, const fh_setting *s, fh_err *err)
{
    uint32_t *list = fh_malloc((p->n_probes + 1) * sizeof *list);
    if (!list) return fh_fail(err, FH_ENOMEM, "estimate: out of memory");
    size_t have = 0;
    list[have++] = s->probes;
    for (size_t i = 0; i < p->n_probes; i++) {
        if (!p->probes[i] || p->probes[i] > s->k) {
            fh_free(list);
            return fh_fail(err, FH_EUSAGE, "%u of %u clusters probed: 1 to %u can be", p->probes[i], s->k, s->k);
        }
        list[have++] = p->probes[i];
    }
    qsort(list, have, sizeof *list, rising);
    size_t kept = 1;
    for (size_t i = 1; i < have; i++) if (list[i] != list[kept - 1]) list[kept++] = list[i];
    if (kept > FH_BENCH_ROWS) { fh_free(list); return fh_fail(err, FH_EUSAGE, "%zu numbers of probes: at most %d are timed", kept, FH_BENCH_ROWS); }
    *out = list, *n = kept;
    return FH_OK;
}

fh_status fh_estimate_model(fh_estimate *out, const fh_shape *shape, const fh_setting *s, const fh_estimate_params *p, const fh_job *job, fh_err *err)
{
    uint32_t *probes = NULL, context = p->context ? p->context : 1024;
    size_t n = 0;
    fh_status rc = list_probes(&probes, &n, p, s, err);
    fh_estimate e = {.shape = *shape, .setting = *s};
    if (rc < 0) return rc;
    if (shape->max_position && context > shape->max_position) {
        if (p->context) { rc = fh_fail(err, FH_EUSAGE, "a context of %u: the model takes %u tokens", context, shape->max_position); goto out; }
        context = shape->max_position;
    }
    double slots = (double)s->k * s->cap;
    e.context = context;
    fh_costs(e.costs, shape, s, context);
    fh_cost_sums(e.sums, e.costs);
    e.kv = fh_kv_costs(shape, context);
    e.centroid_bytes = e.costs[FH_COST_ROUTE].bytes;
    e.token_bytes = slots * (double)(fh_enc_stride(s->tokens, shape->hidden) + fh_scale_bytes(s->tokens, shape->hidden));
    e.exact_bytes = s->tokens == shape->dtype ? 0 : slots * (double)fh_enc_stride(shape->dtype, shape->hidden);
    if (!(e.curve = fh_calloc(n, sizeof *e.curve))) { rc = fh_fail(err, FH_ENOMEM, "estimate: out of memory"); goto out; }
    if (!p->no_measure && (rc = measure(&e, p, probes, n, job, err)) < 0) goto out;
    build_costs(&e, p->tokens ? p->tokens : TEXT);
    *out = e, e = (fh_estimate){0};
out:
    fh_estimate_free(&e);
    fh_free(probes);
    return rc;
}

double fh_head_time_at(const fh_head_time *curve, size_t n, uint32_t probes)
{
    size_t i = 1;
    if (n == 1) return curve[0].seconds;
    while (i + 1 < n && curve[i].probes < probes) i++;
    const fh_head_time *a = &curve[i - 1], *b = &curve[i];
    return a->seconds + (b->seconds - a->seconds) * ((double)probes - a->probes) / ((double)b->probes - a->probes);
}

void fh_estimate_free(fh_estimate *e)
{
    fh_free(e->curve);
    *e = (fh_estimate){0};
}
