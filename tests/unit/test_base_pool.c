/* Threads that share out tasks: every task once, nothing lost, the same answer from any number of threads. */
#include "base/base.h"
#include "base/fault.h"

#include <dirent.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { TASKS = 1000 };

struct count {
    atomic_int ran[TASKS];
    unsigned threads;
    atomic_int bad_worker;
    int plain[TASKS]; /* not atomic: a data race would show under TSan */
};

static void count_task(void *ctx, size_t task, unsigned worker)
{
    struct count *c = ctx;
    atomic_fetch_add(&c->ran[task], 1);
    if (worker >= c->threads) atomic_store(&c->bad_worker, 1);
    c->plain[task] += (int)task + 1;
}

static void every_task_runs_exactly_once(void **state)
{
    (void)state;
    static const unsigned threads[] = {1, 2, 3, 8, 40};
    for (size_t t = 0; t < sizeof threads / sizeof *threads; t++) {
        fh_err err = {0};
        fh_pool *pool;
        assert_int_equal(fh_pool_new(&pool, threads[t], &err), FH_OK);
        assert_int_equal(fh_pool_threads(pool), threads[t]);
        static struct count c;
        memset(&c, 0, sizeof c);
        c.threads = threads[t];
        int runs = 0;
        for (size_t tasks = 0; tasks <= TASKS; tasks = tasks * 2 + 1, runs++) fh_pool_run(pool, tasks, count_task, &c);
        assert_int_equal(c.ran[0], runs - 1);
        assert_int_equal(c.plain[0], runs - 1);
        for (size_t i = 1; i < TASKS; i++) assert_int_equal(c.plain[i], (int)(i + 1) * c.ran[i]);
        assert_int_equal(c.bad_worker, 0);
        fh_pool_free(pool);
    }
}

static void no_pool_means_the_calling_thread(void **state)
{
    (void)state;
    static struct count c = {.threads = 1};
    fh_pool_run(NULL, TASKS, count_task, &c);
    for (size_t i = 0; i < TASKS; i++) assert_int_equal(c.ran[i], 1);
    assert_int_equal(c.bad_worker, 0);
    assert_int_equal(fh_pool_threads(NULL), 1);
    fh_pool_free(NULL);
}

static void thread_counts_follow_the_affinity_and_are_capped(void **state)
{
    (void)state;
    fh_err err = {0};
    fh_pool *pool;
    cpu_set_t before, one;
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    assert_int_equal(fh_pool_new(&pool, 0, &err), FH_OK);
    assert_int_equal(fh_pool_threads(pool), CPU_COUNT(&before) < 256 ? CPU_COUNT(&before) : 256);
    fh_pool_free(pool);

    CPU_ZERO(&one);
    for (int i = 0; i < CPU_SETSIZE && !CPU_COUNT(&one); i++) {
        if (CPU_ISSET(i, &before)) CPU_SET(i, &one);
    }
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    assert_int_equal(fh_pool_new(&pool, 0, &err), FH_OK);
    assert_int_equal(fh_pool_threads(pool), 1);
    fh_pool_free(pool);
    assert_int_equal(sched_setaffinity(0, sizeof before, &before), 0);

    assert_int_equal(fh_pool_new(&pool, 1000000, &err), FH_OK);
    assert_true(fh_pool_threads(pool) <= 256);
    static struct count c;
    c.threads = fh_pool_threads(pool);
    fh_pool_run(pool, TASKS, count_task, &c);
    for (size_t i = 0; i < TASKS; i++) assert_int_equal(c.ran[i], 1);
    fh_pool_free(pool);
}

struct tree { fh_pool *pool; atomic_size_t leaves; atomic_int bad_worker; };

static void leaf(void *ctx, size_t task, unsigned worker)
{
    struct tree *t = ctx;
    if (worker >= fh_pool_threads(t->pool)) atomic_store(&t->bad_worker, 1);
    atomic_fetch_add(&t->leaves, task + 1);
}

static void branch(void *ctx, size_t task, unsigned worker)
{
    struct tree *t = ctx;
    fh_pool_run(t->pool, 4, leaf, t); /* from inside: done by this worker itself */
}

static void a_task_may_run_tasks(void **state)
{
    (void)state;
    fh_err err = {0};
    struct tree t = {0};
    assert_int_equal(fh_pool_new(&t.pool, 3, &err), FH_OK);
    for (int i = 0; i < 200; i++) fh_pool_run(t.pool, 10, branch, &t);
    assert_int_equal(t.leaves, 200 * 10 * 10);
    assert_int_equal(t.bad_worker, 0);
    fh_pool_free(t.pool);
}

static void *run_many(void *arg)
{
    struct tree *t = arg;
    for (int i = 0; i < 500; i++) fh_pool_run(t->pool, 5, leaf, t);
    return NULL;
}

static void two_threads_may_use_one_pool_in_turn(void **state)
{
    (void)state;
    fh_err err = {0};
    struct tree t = {0};
    pthread_t other;
    assert_int_equal(fh_pool_new(&t.pool, 2, &err), FH_OK);
    assert_int_equal(pthread_create(&other, NULL, run_many, &t), 0);
    run_many(&t);
    pthread_join(other, NULL);
    assert_int_equal(t.leaves, 2 * 500 * 15);
    fh_pool_free(t.pool);
}

/* Short runs, long runs and pauses, so that workers are met spinning, falling asleep and sleeping. */
static void wait_a_little(void *ctx, size_t task, unsigned worker)
{
    const unsigned *us = ctx;
    double until = fh_now() + *us * 1e-6;
    while (fh_now() < until) {}
}

static void workers_are_found_awake_and_asleep(void **state)
{
    (void)state;
    fh_err err = {0};
    for (unsigned threads = 2; threads <= 5; threads += 3) {
        fh_pool *pool;
        assert_int_equal(fh_pool_new(&pool, threads, &err), FH_OK);
        fh_rng rng;
        fh_rng_seed(&rng, threads, 0);
        for (int i = 0; i < 400; i++) {
            unsigned us = (unsigned)fh_rng_below(&rng, 60), pause = (unsigned)fh_rng_below(&rng, 400);
            fh_pool_run(pool, 2 + (size_t)fh_rng_below(&rng, 4), wait_a_little, &us);
            if (i % 3 == 0) wait_a_little(&pause, 0, 0);
        }
        fh_pool_free(pool);
    }
}

enum { HELPERS = 7, MOST = HELPERS + 20 }; /* a sanitizer may have threads of its own, those of the test before be on their way out */
struct thread { long id; unsigned long slept; };

/* Every thread but this one, and how often it went to sleep, once all of them sleep. */
static size_t wait_for_sleep(struct thread list[MOST])
{
    for (double until = fh_now() + 20; fh_now() < until; usleep(1000)) {
        size_t n = 0;
        bool all_sleep = true;
        DIR *dir = opendir("/proc/self/task");
        assert_non_null(dir);
        for (struct dirent *e; (e = readdir(dir)) != NULL;) {
            char path[300], line[200], sleeps = 0;
            snprintf(path, sizeof path, "/proc/self/task/%s/status", e->d_name);
            FILE *f = e->d_name[0] != '.' && atol(e->d_name) != gettid() && n < MOST ? fopen(path, "r") : NULL;
            if (!f) continue;
            list[n].id = atol(e->d_name);
            while (fgets(line, sizeof line, f)) {
                sscanf(line, "State: %c", &sleeps);
                sscanf(line, "voluntary_ctxt_switches: %lu", &list[n].slept);
            }
            fclose(f);
            if (sleeps != 'S') all_sleep = false;
            n++;
        }
        closedir(dir);
        if (all_sleep) return n;
    }
    fail_msg("threads without work do not fall asleep");
    return 0;
}

static void idle_threads_sleep_and_those_without_a_task_are_not_woken(void **state)
{
    (void)state;
    enum { RUNS = 100 };
    fh_err err = {0};
    struct thread before[MOST], after[MOST];
    struct tree t = {0};
    assert_int_equal(fh_pool_new(&t.pool, HELPERS + 1, &err), FH_OK);
    size_t n_before = wait_for_sleep(before), woken = 0, not_woken = 0;
    for (int i = 0; i < RUNS; i++) {
        fh_pool_run(t.pool, 3, leaf, &t);
        usleep(2000); /* longer than they spin */
    }
    size_t n_after = wait_for_sleep(after);
    for (size_t i = 0; i < n_before; i++)
        for (size_t j = 0; j < n_after; j++) {
            if (after[j].id != before[i].id) continue;
            if (after[j].slept > before[i].slept + RUNS / 5) woken++;
            else not_woken++;
        }
    assert_true(woken >= 1 && woken <= 3); /* two, and the sanitizer's own */
    assert_true(not_woken >= HELPERS - 2);
    assert_int_equal(t.leaves, RUNS * 6);
    fh_pool_free(t.pool);
}

static void pools_may_be_made_and_freed_without_work(void **state)
{
    (void)state;
    fh_err err = {0};
    for (int i = 0; i < 50; i++) {
        fh_pool *pool;
        assert_int_equal(fh_pool_new(&pool, 4, &err), FH_OK);
        if (i % 2) fh_pool_run(pool, 0, leaf, NULL);
        fh_pool_free(pool);
    }
}

#ifdef FH_FAULTS
static void a_pool_without_memory_is_a_clean_error(void **state)
{
    (void)state;
    fh_err err = {0};
    fh_pool *pool;
    for (unsigned n = 1; n <= 2; n++) {
        fh_fault_set(FH_FAULT_ALLOC, n);
        assert_int_equal(fh_pool_new(&pool, 4, &err), FH_ENOMEM);
        assert_true(fh_fault_fired());
    }
    fh_fault_set(FH_FAULT_ALLOC, 3);
    assert_int_equal(fh_pool_new(&pool, 4, &err), FH_OK);
    assert_false(fh_fault_fired());
    fh_pool_free(pool);
    fh_fault_set(FH_FAULT_ALLOC, 0);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_task_runs_exactly_once),
        cmocka_unit_test(no_pool_means_the_calling_thread),
        cmocka_unit_test(thread_counts_follow_the_affinity_and_are_capped),
        cmocka_unit_test(a_task_may_run_tasks),
        cmocka_unit_test(two_threads_may_use_one_pool_in_turn),
        cmocka_unit_test(workers_are_found_awake_and_asleep),
        cmocka_unit_test(idle_threads_sleep_and_those_without_a_task_are_not_woken),
        cmocka_unit_test(pools_may_be_made_and_freed_without_work),
#ifdef FH_FAULTS
        cmocka_unit_test(a_pool_without_memory_is_a_clean_error),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
