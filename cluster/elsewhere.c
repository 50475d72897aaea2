/* cluster/elsewhere.c: the best clusters of every row, by something other than this CPU's kernels.
 *
 * Rows and centres are turned and rounded here, as for the kernels here, so that what comes back is the same by construction as long as sums of
 * integers are: rows once, centres every time.
 */
#include "cluster/cluster_private.h"

enum { ROWS_A_TASK = 64, SENT_AT_ONCE = 8192 /* rows: 16 MiB of them at D = 2048 */ };

struct sending {
    const fh_nearest *q;
    fh_turn turn;
    size_t begin, n;     /* rows, or centres, that are turned now */
    int8_t *turned;      /* [n, ld] */
    float *by, *bias;    /* [n]; of a row what its products are multiplied by, of a centre what they are and what is added */
    float *room;         /* of each worker [ld] */
};

static void turn_rows(void *ctx, size_t task, unsigned worker)
{
    const struct sending *s = ctx;
    size_t ld = s->q->ld, end = fh_min((task + 1) * ROWS_A_TASK, s->n);
    for (size_t i = task * ROWS_A_TASK; i < end; i++)
        s->by[i] = fh_turn_int8(&s->turn, s->turned + i * ld, NULL, s->q->elsewhere->x + (s->begin + i) * ld, s->room + worker * ld);
}

static void turn_centres(void *ctx, size_t task, unsigned worker)
{
    const struct sending *s = ctx;
    size_t ld = s->q->ld, end = fh_min((task + 1) * ROWS_A_TASK, s->n);
    for (size_t c = task * ROWS_A_TASK; c < end; c++) fh_turn_centre(&s->turn, s->q, c, s->turned + c * ld, &s->by[c], &s->bias[c], s->room + worker * ld);
}

static fh_status send(struct sending *s, const char *what, const fh_job *job, fh_err *err)
{
    const fh_nearest *q = s->q;
    fh_elsewhere *to = q->elsewhere;
    fh_pool *pool = fh_job_pool(job);
    fh_status rc = FH_OK;
    for (s->begin = 0; !to->sent && s->begin < to->n; s->begin += s->n) {
        s->n = fh_min(SENT_AT_ONCE, to->n - s->begin);
        fh_job_progress(job, what, 0, (double)q->n, "tokens");
        fh_pool_run(pool, (s->n + ROWS_A_TASK - 1) / ROWS_A_TASK, turn_rows, s);
        if ((rc = to->device->put_rows(to->device->ctx, s->begin, s->n, q->ld, s->turned, s->by, err)) < 0) return rc;
        if (fh_job_stopped(job)) return fh_fail(err, FH_EINTERRUPTED, "clustering: interrupted");
    }
    to->sent = true;
    s->n = q->k;
    fh_pool_run(pool, (s->n + ROWS_A_TASK - 1) / ROWS_A_TASK, turn_centres, s);
    return to->device->put_centres(to->device->ctx, q->k, q->ld, s->turned, s->by, s->bias, err);
}

fh_status fh_nearest_elsewhere(const fh_nearest *q, const char *what, const fh_job *job, fh_err *err)
{
    const fh_cluster_device *device = q->elsewhere->device;
    struct sending s = {.q = q};
    size_t most = fh_max(q->k, q->elsewhere->sent ? 0 : fh_min(SENT_AT_ONCE, q->elsewhere->n));
    fh_status rc = fh_turn_make(&s.turn, q->ld, true, err);
    if (rc < 0) return rc;
    s.turned = fh_aligned(most * q->ld);
    s.by = fh_malloc(most * sizeof *s.by);
    s.bias = fh_malloc(q->k * sizeof *s.bias);
    s.room = fh_malloc(fh_pool_threads(fh_job_pool(job)) * q->ld * sizeof *s.room);
    if (!s.turned || !s.by || !s.bias || !s.room) {
        rc = fh_fail(err, FH_ENOMEM, "clustering: out of memory for the search of the nearest clusters");
        goto out;
    }
    if ((rc = send(&s, what, job, err)) < 0) goto out;
    for (size_t i = 0; i < q->n; i += device->at_once) {
        fh_cluster_search search = {.rows = q->rows ? q->rows + i : NULL, .first = i, .n = fh_min(device->at_once, q->n - i), .want = q->want,
                                    .but = q->not ? q->not + i : NULL, .out = q->out + i * q->want, .score = q->score ? q->score + i * q->want : NULL};
        fh_job_progress(job, what, (double)i, (double)q->n, "tokens");
        if ((rc = device->search(device->ctx, &search, err)) < 0) goto out;
        if (fh_job_stopped(job)) { rc = fh_fail(err, FH_EINTERRUPTED, "clustering: interrupted"); goto out; }
    }
    fh_job_progress(job, what, (double)q->n, (double)q->n, "tokens");
out:
    fh_turn_free(&s.turn);
    fh_free(s.turned);
    fh_free(s.by);
    fh_free(s.bias);
    fh_free(s.room);
    return rc;
}
