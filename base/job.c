#include "base/base.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

bool fh_job_stopped(const fh_job *job) { return job && job->stop && *job->stop; }

fh_pool *fh_job_pool(const fh_job *job) { return job ? job->pool : NULL; }

void fh_job_progress(const fh_job *job, const char *what, double done, double total, const char *unit)
{
    if (job && job->progress) job->progress(job->ctx, what, done, total, unit);
}

void fh_job_say(const fh_job *job, fh_level level, const char *fmt, ...)
{
    if (!job || !job->message) return;
    char raw[2000], text[1000];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(raw, sizeof raw, fmt, args);
    va_end(args);
    if (n < 0) return;
    job->message(job->ctx, level, fh_show(text, sizeof text, raw, fh_min((size_t)n, sizeof raw - 1)));
}

double fh_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

uint64_t fh_peak_bytes(void)
{
    struct rusage usage;
    return getrusage(RUSAGE_SELF, &usage) ? 0 : (uint64_t)usage.ru_maxrss * 1024; /* Linux counts in KiB */
}

/* The C library counts the caches of a whole package together, a virtual machine's neighbours' too: the kernel is asked first. */
static size_t ask_last_cache(void)
{
    char text[32] = {0}, *end;
    size_t size = 0;
    int fd = open("/sys/devices/system/cpu/cpu0/cache/index3/size", O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        if (read(fd, text, sizeof text - 1) > 0) {
            unsigned long long n = strtoull(text, &end, 10);
            if (n && n <= 1 << 20 && (*end == 'K' || *end == 'M')) size = (size_t)n << (*end == 'K' ? 10 : 20);
        }
        close(fd);
    }
    long known = size ? 0 : sysconf(_SC_LEVEL3_CACHE_SIZE);
    return known > 0 ? (size_t)known : size;
}

size_t fh_last_cache(void)
{
    static atomic_size_t known; /* the size and one */
    size_t size = atomic_load_explicit(&known, memory_order_relaxed);
    if (!size) atomic_store_explicit(&known, size = ask_last_cache() + 1, memory_order_relaxed);
    return size - 1;
}

bool fh_peak_reset(void)
{
    int fd = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
    if (fd < 0) return false;
    bool done = write(fd, "5", 1) == 1; /* proc(5): the peak becomes what is resident now */
    close(fd);
    return done;
}
