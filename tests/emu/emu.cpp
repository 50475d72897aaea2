/* emu.cpp: fibers, warps, blocks and a device's memory on the host; see emu.h. */
#include "tests/emu/emu.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <functional>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

emu_device emu = {1, cudaSuccess, 9, 0, cudaSuccess, 3, 1, true, false, static_cast<size_t>(1) << 40, 227 << 10, 1};
emu_index emu_thread, emu_block, emu_threads, emu_blocks;

[[noreturn]] static void wrong(const char *what)
{
    fprintf(stderr, "emulated device: block %u, thread %u: %s\n", emu_block.x, emu_thread.x, what);
    abort();
}

void emu_aligned(const void *p, size_t bytes)
{
    if (reinterpret_cast<uintptr_t>(p) % bytes) wrong("a load that is not aligned");
}

/* ---- fibers ---------------------------------------------------------------------------------------------------- */

enum : size_t { STACK = 128 << 10 };
enum : unsigned { WARP = 32, PATIENCE = 100000 };

struct warp { unsigned arrived, generation; emu_collective what; uint64_t value[2][WARP]; };
struct block { unsigned number, alive, waiting; unsigned char *shared; std::vector<warp> warps; };
struct fiber {
    unsigned char *stack;
    block *home;
    unsigned number;                  /* in its block */
    bool done, warp_waits, block_waits;
#if defined(__x86_64__)
    void *sp;
#else
    ucontext_t context;
#endif
    void *fake;                       /* of address sanitizer */
};

static fiber scheduler, *running = &scheduler;
static std::vector<fiber> fibers;
static std::vector<unsigned char *> stacks; /* kept from launch to launch */
static void (*kernel)(const void *);
static const void *kernel_params;
static uint64_t progress, dice;

static uint64_t roll(void)
{
    dice ^= dice << 13, dice ^= dice >> 7, dice ^= dice << 17;
    return dice;
}

#if defined(__x86_64__)
extern "C" void emu_switch(void **save, void *to);
__asm__(".text\n.globl emu_switch\n.type emu_switch, @function\nemu_switch:\n"
        "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
        "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
        "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n.size emu_switch, .-emu_switch\n");
#endif

#if defined(__SANITIZE_ADDRESS__)
static const void *scheduler_stack;
static size_t scheduler_size;
static void leaving(fiber *from, const fiber *to, bool for_ever)
{
    bool back = to == &scheduler;
    __sanitizer_start_switch_fiber(for_ever ? nullptr : &from->fake, back ? scheduler_stack : to->stack, back ? scheduler_size : STACK);
}
static void arrived(fiber *here)
{
    const void *bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(here->fake, &bottom, &size);
    if (here != &scheduler) scheduler_stack = bottom, scheduler_size = size;
}
#else
static void leaving(fiber *, const fiber *, bool) {}
static void arrived(fiber *) {}
#endif

/* Between a fiber and the scheduler, either way. */
static void change(fiber *from, fiber *to, bool for_ever)
{
    running = to;
    leaving(from, to, for_ever);
#if defined(__x86_64__)
    emu_switch(&from->sp, to->sp);
#else
    swapcontext(&from->context, &to->context);
#endif
    arrived(from);
}

static void entry(void)
{
    arrived(running);
    kernel(kernel_params);
    fiber *f = running;
    if (f->home->waiting) wrong("ends while others wait at a barrier");
    if (f->home->warps[f->number / WARP].arrived) wrong("ends while others of its warp wait in a collective");
    f->done = true;
    f->home->alive--;
    progress++;
    change(f, &scheduler, true);
}

static void start(fiber *f)
{
#if defined(__x86_64__)
    uintptr_t top = reinterpret_cast<uintptr_t>(f->stack + STACK) & ~static_cast<uintptr_t>(15);
    void **sp = reinterpret_cast<void **>(top) - 8; /* six registers, where to go on, where `entry` would return to: aligned as after a call */
    memset(sp, 0, 8 * sizeof *sp);
    sp[6] = reinterpret_cast<void *>(entry);
    f->sp = sp;
#else
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->stack;
    f->context.uc_stack.ss_size = STACK;
    makecontext(&f->context, entry, 0);
#endif
}

static void pause(void) { change(running, &scheduler, false); }
void fh_nap(void) { pause(); }
unsigned char *fh_shared(void) { return running->home->shared; }

void __syncthreads(void)
{
    block *b = running->home;
    progress++;
    if (++b->waiting < b->alive) {
        running->block_waits = true;
        pause();
        return;
    }
    if (b->alive != emu_threads.x) wrong("a barrier that some threads never reach");
    b->waiting = 0;
    for (fiber &f : fibers)
        if (f.home == b) f.block_waits = false;
}

/* What all lanes gave: values by lane. */
static const uint64_t *collect(emu_collective what, unsigned mask, uint64_t value)
{
    fiber *self = running;
    unsigned number = self->number / WARP, lane = self->number % WARP;
    warp &w = self->home->warps[number];
    if (mask != 0xffffffffu) wrong("a collective of a part of a warp");
    if (w.arrived && w.what != what) wrong("lanes of one warp in different collectives");
    unsigned generation = w.generation;
    uint64_t *values = w.value[generation % 2];
    progress++;
    w.what = what;
    values[lane] = value;
    if (++w.arrived < WARP) {
        self->warp_waits = true;
        pause();
    } else {
        w.arrived = 0, w.generation++;
        for (fiber &f : fibers)
            if (f.home == self->home && f.number / WARP == number) f.warp_waits = false;
    }
    return values;
}

uint64_t emu_exchange(emu_collective what, unsigned mask, uint64_t value, unsigned from) { return collect(what, mask, value)[from]; }

unsigned __ballot_sync(unsigned mask, int predicate)
{
    const uint64_t *values = collect(EMU_BALLOT, mask, predicate != 0);
    unsigned all = 0;
    for (unsigned i = 0; i < WARP; i++) all |= static_cast<unsigned>(values[i]) << i;
    return all;
}

/* Turns until all are done.  A warp is now and then passed over, for some turns or until nobody else can go on, so that warps drift apart as far as barriers
 * let them. */
static void take_turns(void)
{
    size_t n = fibers.size(), left = n, idle = 0, passed = n, rests = 0;
    while (left) {
        uint64_t before = progress;
        size_t first = roll() % n, step = (roll() % n) | 1;
        if (!rests--) passed = roll() % 4 ? n : roll() % (n / WARP), rests = passed < n ? roll() % 16 : 0;
        while (step % 3 == 0 || step % 5 == 0 || step % 7 == 0) step += 2; /* block and thread counts have no other factors: every fiber has its turn */
        for (size_t i = 0; i < n; i++) {
            fiber *f = &fibers[(first + i * step) % n];
            if (f->done || f->warp_waits || f->block_waits || static_cast<size_t>(f - &fibers[0]) / WARP == passed) continue;
            emu_thread.x = f->number, emu_block.x = f->home->number;
            change(&scheduler, f, false);
            left -= f->done;
        }
        idle = progress == before ? idle + 1 : 0;
        if (idle) rests = 0;
        if (idle > PATIENCE) wrong("all threads wait for ever");
    }
}

/* ---- launches -------------------------------------------------------------------------------------------------- */

static long calls, fail_at;
static uint64_t launches;
static cudaError_t last_error;

static cudaError_t called(cudaError_t result)
{
    calls++;
    if (fail_at && calls == fail_at) result = cudaErrorUnknown;
    if (result != cudaSuccess) last_error = result;
    return result;
}

long emu_calls(void) { return calls; }
void emu_fail_at(long n) { calls = 0, fail_at = n, last_error = cudaSuccess; }
uint64_t emu_launches(void) { return launches; }

/* Not a byte more, so that address sanitizer sees the first one past the end. */
static void *exactly(size_t bytes)
{
    void *p;
    return posix_memalign(&p, 256, bytes ? bytes : 1) ? nullptr : p;
}

static void run_blocks(unsigned first, unsigned count, unsigned threads, size_t shared)
{
    std::vector<block> blocks(count);
    fibers.assign(static_cast<size_t>(count) * threads, fiber());
    while (stacks.size() < fibers.size()) {
        void *p = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) wrong("no memory for stacks");
        stacks.push_back(static_cast<unsigned char *>(p));
    }
    for (unsigned b = 0; b < count; b++) {
        blocks[b].number = first + b, blocks[b].alive = threads, blocks[b].waiting = 0;
        blocks[b].warps.assign(threads / WARP, warp());
        blocks[b].shared = static_cast<unsigned char *>(exactly(shared));
        for (size_t i = 0; i < shared; i++) blocks[b].shared[i] = static_cast<unsigned char>(roll()); /* never zeros by chance */
        for (unsigned t = 0; t < threads; t++) {
            fiber *f = &fibers[static_cast<size_t>(b) * threads + t];
            f->home = &blocks[b], f->number = t, f->stack = stacks[static_cast<size_t>(b) * threads + t];
            start(f);
        }
    }
    take_turns();
    for (block &b : blocks) free(b.shared);
}

/* What a stream does at once, or keeps for a graph while it is captured. */
struct emu_stream { bool captured; std::vector<std::function<cudaError_t()>> kept; };
struct emu_graph { std::vector<std::function<cudaError_t()>> work; };
struct emu_event { double at; };
static cudaError_t perform(cudaStream_t s, const std::function<cudaError_t()> &work)
{
    if (!s || !s->captured) return work();
    s->kept.push_back(work);
    return cudaSuccess;
}

cudaError_t emu_launch(void (*call)(const void *), const void *params, size_t bytes, unsigned blocks, unsigned threads, size_t shared, cudaStream_t stream,
                       bool together)
{
    bool fits = blocks && threads && threads % WARP == 0 && threads <= 1024 && shared <= emu.shared;
    if (together) fits = fits && emu.together && blocks <= static_cast<unsigned>(emu.multiprocessors * emu.blocks_each);
    cudaError_t e = called(emu.image_error ? emu.image_error : fits ? static_cast<int>(cudaSuccess) : static_cast<int>(cudaErrorInvalidValue));
    if (e != cudaSuccess) return e;
    std::vector<uint64_t> copy((bytes + 7) / 8);
    memcpy(copy.data(), params, bytes);
    return perform(stream, [=]() -> cudaError_t {
        launches++;
        kernel = call, kernel_params = copy.data();
        dice = emu.seed * 0x9e3779b97f4a7c15u + launches + 1;
        emu_threads = {threads, 1, 1}, emu_blocks = {blocks, 1, 1};
        if (together) run_blocks(0, blocks, threads, shared);
        else for (unsigned b = 0; b < blocks; b++) run_blocks(b, 1, threads, shared);
        return cudaSuccess;
    });
}

/* ---- the runtime API ------------------------------------------------------------------------------------------------ */

struct allocation { void *p; size_t bytes; };
static std::vector<allocation> allocations;
size_t emu_allocated(void)
{
    size_t sum = 0;
    for (const allocation &a : allocations) sum += a.bytes;
    return sum;
}

static cudaError_t allocate(void **p, size_t bytes)
{
    cudaError_t e = called(bytes > emu.memory - emu_allocated() ? cudaErrorMemoryAllocation : cudaSuccess);
    if (e != cudaSuccess) return e;
    if (!(*p = exactly(bytes))) return cudaErrorMemoryAllocation;
    memset(*p, 0xa5, bytes);
    allocations.push_back({*p, bytes});
    return cudaSuccess;
}

static cudaError_t give_back(void *p)
{
    for (size_t i = 0; p && i < allocations.size(); i++) {
        if (allocations[i].p != p) continue;
        allocations.erase(allocations.begin() + static_cast<long>(i));
        free(p);
        return cudaSuccess;
    }
    return p ? cudaErrorInvalidValue : cudaSuccess;
}

const char *cudaGetErrorName(cudaError_t e) { return e == cudaErrorUnknown ? "cudaErrorUnknown" : "cudaError"; }
const char *cudaGetErrorString(cudaError_t e)
{
    switch (e) {
    case cudaSuccess: return "no error";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorInsufficientDriver: return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorNoKernelImageForDevice: return "no kernel image is available for execution on the device";
    default: return "unknown error";
    }
}
cudaError_t cudaGetLastError(void) { cudaError_t e = last_error; last_error = cudaSuccess; return e; }
cudaError_t cudaGetDeviceCount(int *n) { *n = emu.count; return called(emu.count_error); }
cudaError_t cudaSetDevice(int device) { return called(device < emu.count ? cudaSuccess : cudaErrorInvalidDevice); }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int)
{
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "an emulated device");
    p->totalGlobalMem = emu.memory, p->major = emu.major, p->minor = emu.minor, p->multiProcessorCount = emu.multiprocessors;
    return called(cudaSuccess);
}
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr what, int)
{
    *value = what == cudaDevAttrCooperativeLaunch ? emu.together : what == cudaDevAttrL2CacheSize ? 1 << 18 : static_cast<int>(emu.shared);
    return called(cudaSuccess);
}
cudaError_t cudaDriverGetVersion(int *v) { *v = emu.count_error == cudaErrorInsufficientDriver ? 0 : 13000; return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *v) { *v = 13000; return cudaSuccess; }
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total)
{
    *free_bytes = emu.memory - emu_allocated(), *total = emu.memory;
    return called(cudaSuccess);
}
cudaError_t cudaMalloc(void **p, size_t bytes) { return allocate(p, bytes); }
cudaError_t cudaMallocHost(void **p, size_t bytes) { return allocate(p, bytes); }
cudaError_t cudaFree(void *p) { return give_back(p); }
cudaError_t cudaFreeHost(void *p) { return give_back(p); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned) 
{
    cudaError_t e = called(cudaSuccess);
    if (e == cudaSuccess) *s = new emu_stream();
    return e;
}
cudaError_t cudaStreamDestroy(cudaStream_t s) { delete s; return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t s) { return called(s->captured ? cudaErrorInvalidValue : cudaSuccess); }
static uint64_t brought;
uint64_t emu_brought(void) { return brought; }
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t s)
{
    cudaError_t e = called(cudaSuccess);
    if (kind == cudaMemcpyDeviceToHost) brought += bytes;
    return e != cudaSuccess ? e : perform(s, [=]() -> cudaError_t { if (bytes) memcpy(to, from, bytes); return cudaSuccess; });
}
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height, cudaMemcpyKind, cudaStream_t s)
{
    cudaError_t e = called(width <= to_pitch && width <= from_pitch ? cudaSuccess : cudaErrorInvalidValue);
    return e != cudaSuccess ? e : perform(s, [=]() -> cudaError_t {
        for (size_t i = 0; i < height; i++) memcpy(static_cast<char *>(to) + i * to_pitch, static_cast<const char *>(from) + i * from_pitch, width);
        return cudaSuccess;
    });
}
cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t s)
{
    cudaError_t e = called(cudaSuccess);
    return e != cudaSuccess ? e : perform(s, [=]() -> cudaError_t { if (bytes) memset(p, value, bytes); return cudaSuccess; });
}

cudaError_t cudaEventCreate(cudaEvent_t *e)
{
    cudaError_t rc = called(cudaSuccess);
    if (rc == cudaSuccess) *e = new emu_event();
    return rc;
}
cudaError_t cudaEventDestroy(cudaEvent_t e) { delete e; return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s)
{
    cudaError_t rc = called(cudaSuccess);
    return rc != cudaSuccess ? rc : perform(s, [=]() -> cudaError_t {
        timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        e->at = static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
        return cudaSuccess;
    });
}
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t begin, cudaEvent_t end)
{
    *milliseconds = static_cast<float>(1e3 * (end->at - begin->at));
    return called(cudaSuccess);
}
cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode)
{
    cudaError_t e = called(cudaSuccess);
    if (e == cudaSuccess) s->captured = true;
    return e;
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g)
{
    cudaError_t e = called(s->captured ? cudaSuccess : cudaErrorInvalidValue);
    if (e == cudaSuccess) *g = new emu_graph{s->kept};
    s->captured = false;
    s->kept.clear();
    return e;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long)
{
    cudaError_t rc = called(cudaSuccess);
    if (rc == cudaSuccess) *e = new emu_graph(*g);
    return rc;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t)
{
    cudaError_t rc = called(cudaSuccess);
    for (size_t i = 0; rc == cudaSuccess && i < e->work.size(); i++) rc = e->work[i]();
    return rc;
}
cudaError_t cudaGraphDestroy(cudaGraph_t g) { delete g; return cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e) { delete e; return cudaSuccess; }

cudaError_t emu_function_attributes(cudaFuncAttributes *a) { a->binaryVersion = 10 * emu.major + emu.minor; return called(emu.image_error); }
cudaError_t emu_set_function_attribute(cudaFuncAttribute, int value) { return called(value <= static_cast<int>(emu.shared) ? cudaSuccess
                                                                                     : cudaErrorInvalidValue); }
cudaError_t emu_occupancy(int *blocks, int, size_t shared) { *blocks = shared <= emu.shared ? emu.blocks_each : 0; return called(cudaSuccess); }
