#include "base/base.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdalign.h>
#include <stdatomic.h>

enum { MAX_THREADS = 256 };

/* Longer than from one kernel of a decoding step to the next, and no more: whoever spins for a thread that waits for this very CPU makes
 * it wait longer (docs/decisions/0007).  By the clock: a pause takes 10 ns on one processor and 80 on another. */
#define SPIN_SECONDS 30e-6

/* One run at a time.  A run is published to the threads it has tasks for, and to no others, by raising the `turn` of each; they take
 * tasks until none is left and then lower `busy`; the caller, worker 0, takes tasks too and waits for `busy` to reach 0.  So fn,
 * ctx and tasks are never written while anybody may read them.  Whoever waits spins for a while and then sleeps. */
struct fh_pool {
    unsigned threads; /* the caller counted */
    bool spin;        /* not with more threads than CPUs: waiting must not keep a CPU from working */
    pthread_mutex_t run, lock;
    pthread_cond_t idle;
    fh_task fn;
    void *ctx;
    size_t tasks;
    atomic_size_t next;
    atomic_uint busy;
    atomic_bool caller_sleeps, quit;
    struct worker {
        alignas(64) atomic_uint turn; /* a line of its own: others' turns do not disturb who spins on it */
        atomic_bool sleeps;
        fh_pool *pool;
        unsigned number;
        pthread_mutex_t lock;
        pthread_cond_t wake;
        pthread_t thread;
    } *worker; /* [threads]; 0 is the caller's and unused */
};

/* A task that runs a pool's tasks from inside that pool does them itself, under its own number. */
static _Thread_local fh_pool *inside;
static _Thread_local unsigned inside_as;

static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory"); /* `yield` takes no time on most cores; this takes about as long as a pause */
#else
    atomic_signal_fence(memory_order_seq_cst);
#endif
}

typedef struct spin { double end; unsigned turns; } spin;

/* A moment's wait; false once the whole has lasted long enough. */
static bool spin_on(spin *s)
{
    relax();
    if (s->turns++ % 16) return true;
    double now = fh_now();
    if (s->turns == 1) s->end = now + SPIN_SECONDS;
    return now < s->end;
}

static void take_tasks(fh_pool *p, unsigned worker)
{
    fh_pool *outer = inside;
    unsigned outer_as = inside_as;
    inside = p;
    inside_as = worker;
    for (size_t i; (i = atomic_fetch_add_explicit(&p->next, 1, memory_order_relaxed)) < p->tasks;) p->fn(p->ctx, i, worker);
    inside = outer;
    inside_as = outer_as;
}

static void *work(void *arg)
{
    struct worker *self = arg;
    fh_pool *p = self->pool;
    for (unsigned seen = 0;; seen++) {
        for (spin s = {0}; p->spin && atomic_load(&self->turn) == seen && spin_on(&s);) {}
        if (atomic_load(&self->turn) == seen) {
            pthread_mutex_lock(&self->lock);
            atomic_store(&self->sleeps, true); /* before the last look at turn: who raises it after that look sees a sleeper */
            while (atomic_load(&self->turn) == seen) pthread_cond_wait(&self->wake, &self->lock);
            atomic_store(&self->sleeps, false);
            pthread_mutex_unlock(&self->lock);
        }
        if (atomic_load(&p->quit)) return NULL;
        take_tasks(p, self->number);
        if (atomic_fetch_sub(&p->busy, 1) == 1 && atomic_load(&p->caller_sleeps)) {
            pthread_mutex_lock(&p->lock);
            pthread_cond_signal(&p->idle);
            pthread_mutex_unlock(&p->lock);
        }
    }
}

/* Workers 1..n. */
static void raise_turns(fh_pool *p, size_t n)
{
    for (size_t i = 1; i <= n; i++) atomic_fetch_add(&p->worker[i].turn, 1); /* all that spin begin before the first sleeper is called */
    for (size_t i = 1; i <= n; i++) {
        struct worker *w = &p->worker[i];
        if (!atomic_load(&w->sleeps)) continue;
        pthread_mutex_lock(&w->lock);
        pthread_cond_signal(&w->wake);
        pthread_mutex_unlock(&w->lock);
    }
}

static void wait_idle(fh_pool *p)
{
    for (spin s = {0}; p->spin && atomic_load(&p->busy) && spin_on(&s);) {}
    if (!atomic_load(&p->busy)) return;
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->caller_sleeps, true);
    while (atomic_load(&p->busy)) pthread_cond_wait(&p->idle, &p->lock);
    atomic_store(&p->caller_sleeps, false);
    pthread_mutex_unlock(&p->lock);
}

/* CPUs that the process may use: taskset and cpusets count, and machines of more than 1024 CPUs. */
static unsigned usable_cpus(void)
{
    for (size_t n = 1024; n <= 1 << 20; n *= 2) {
        cpu_set_t *set = CPU_ALLOC(n);
        if (!set) return 1;
        int rc = sched_getaffinity(0, CPU_ALLOC_SIZE(n), set);
        int count = rc ? 0 : CPU_COUNT_S(CPU_ALLOC_SIZE(n), set);
        CPU_FREE(set);
        if (!rc) return count > 0 ? (unsigned)count : 1;
        if (errno != EINVAL) return 1;
    }
    return 1;
}

static bool start(fh_pool *p, struct worker *w)
{
    w->pool = p;
    w->number = p->threads;
    if (pthread_mutex_init(&w->lock, NULL)) return false;
    if (!pthread_cond_init(&w->wake, NULL)) {
        if (!pthread_create(&w->thread, NULL, work, w)) return true;
        pthread_cond_destroy(&w->wake);
    }
    pthread_mutex_destroy(&w->lock);
    return false;
}

fh_status fh_pool_new(fh_pool **out, unsigned threads, fh_err *err)
{
    unsigned cpus = usable_cpus();
    if (!threads) threads = cpus;
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    fh_pool *p = fh_calloc(1, sizeof *p);
    if (!p || !(p->worker = fh_aligned(threads * sizeof *p->worker))) {
        fh_free(p);
        return fh_fail(err, FH_ENOMEM, "thread pool: out of memory");
    }
    p->spin = threads <= cpus;
    if (pthread_mutex_init(&p->run, NULL)) goto no_run;
    if (pthread_mutex_init(&p->lock, NULL)) goto no_lock;
    if (pthread_cond_init(&p->idle, NULL)) goto no_idle;

    /* Signals go to the threads that the program made, where its handlers and its waits are. */
    sigset_t all, before;
    sigfillset(&all);
    sigdelset(&all, SIGSEGV), sigdelset(&all, SIGBUS), sigdelset(&all, SIGFPE), sigdelset(&all, SIGILL);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    p->threads = 1;
    while (p->threads < threads) {
        if (!start(p, &p->worker[p->threads])) break; /* a limit was reached: fewer threads give the same answers */
        p->threads++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    *out = p;
    return FH_OK;

no_idle:
    pthread_mutex_destroy(&p->lock);
no_lock:
    pthread_mutex_destroy(&p->run);
no_run:
    fh_free(p->worker);
    fh_free(p);
    return fh_fail(err, FH_EFAIL, "thread pool: the system gives no mutex: close other programs");
}

unsigned fh_pool_threads(const fh_pool *p) { return p ? p->threads : 1; }

void fh_pool_run(fh_pool *p, size_t tasks, fh_task fn, void *ctx)
{
    bool nested = p && inside == p;
    if (!p || nested || p->threads == 1 || tasks <= 1) {
        for (size_t i = 0; i < tasks; i++) fn(ctx, i, nested ? inside_as : 0);
        return;
    }
    pthread_mutex_lock(&p->run);
    p->fn = fn;
    p->ctx = ctx;
    p->tasks = tasks;
    size_t others = fh_min(p->threads, tasks) - 1;
    atomic_store(&p->next, 0);
    atomic_store(&p->busy, (unsigned)others);
    raise_turns(p, others);
    take_tasks(p, 0);
    wait_idle(p);
    pthread_mutex_unlock(&p->run);
}

void fh_pool_free(fh_pool *p)
{
    if (!p) return;
    atomic_store(&p->quit, true);
    raise_turns(p, p->threads - 1);
    for (unsigned i = 1; i < p->threads; i++) {
        pthread_join(p->worker[i].thread, NULL);
        pthread_cond_destroy(&p->worker[i].wake);
        pthread_mutex_destroy(&p->worker[i].lock);
    }
    pthread_cond_destroy(&p->idle);
    pthread_mutex_destroy(&p->lock);
    pthread_mutex_destroy(&p->run);
    fh_free(p->worker);
    fh_free(p);
}
