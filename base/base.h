/* base/base.h: what every module stands on.
 *
 * Status and message, memory, text, files, threads, hashing, random numbers, jobs.  Nothing here knows what a
 * language model is.  Nothing here prints or exits: the caller owns the message.
 */
#ifndef FH_BASE_H
#define FH_BASE_H

#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FH_TOOL_VERSION "0.1.0" /* FLASHHEAD_VERSION of the public header is the same */

/* ---- status and message --------------------------------------------------------------------------------- */

/* The same block stands in runtime/flashhead.h, which is public and includes nothing of ours; a test holds the
 * two to each other. */
#ifndef FH_STATUS_TYPES
#define FH_STATUS_TYPES
typedef enum fh_status {
    FH_OK = 0,
    FH_EFAIL = -1,        /* failed, none of the cases below */
    FH_ENOMEM = -2,       /* out of memory */
    FH_EIO = -3,          /* the system could not open, read or write */
    FH_EFORMAT = -4,      /* a file is not what it has to be */
    FH_EUNSUPPORTED = -5, /* understood, and refused by name */
    FH_ECHECK = -6,       /* a check or a target was not met (exit status 3) */
    FH_EUSAGE = -7,       /* an argument is out of its range (exit status 2) */
    FH_EINTERRUPTED = -8, /* stopped by the caller (exit status 130) */
    FH_EBUSY = -9,        /* somebody else holds the lock */
    FH_ENOTFOUND = -10    /* the file or the item does not exist */
} fh_status;

/* Where a function that fails leaves one line for people: what, where, and what to do. */
typedef struct fh_err {
    fh_status code;
    char text[1000]; /* NUL-terminated, no line break, printable */
} fh_err;
#endif

#define FH_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))

/* Write the message and return `code`.  `err` may be NULL.  The text is cut where it does not fit; control
 * characters are escaped, so that bytes of a hostile file may be given with %s. */
fh_status fh_fail(fh_err *err, fh_status code, const char *fmt, ...) FH_PRINTF(3, 4);
/* The name of a status: "FH_EIO". */
const char *fh_status_name(fh_status code);

/* ---- arithmetic ------------------------------------------------------------------------------------------ */

/* True when the result fits; *out is written only then. */
static inline bool fh_mul(size_t a, size_t b, size_t *out) { size_t r; if (__builtin_mul_overflow(a, b, &r)) return false; *out = r; return true; }
static inline bool fh_add(size_t a, size_t b, size_t *out) { size_t r; if (__builtin_add_overflow(a, b, &r)) return false; *out = r; return true; }
/* The smallest multiple of `to` (a power of two) that is not below n.  The caller knows that it does not wrap. */
static inline size_t fh_round_up(size_t n, size_t to) { return (n + to - 1) & ~(to - 1); }
static inline size_t fh_min(size_t a, size_t b) { return a < b ? a : b; }
static inline size_t fh_max(size_t a, size_t b) { return a > b ? a : b; }

/* ---- memory ---------------------------------------------------------------------------------------------- */

/* As the C library's, and counted: in a build with -DFH_FAULTS the n-th call fails (see fault.c).  Every
 * allocation of the project goes through here, cJSON's, zstd's and PCRE2's too.  All are freed by fh_free. */
void *fh_malloc(size_t n);
void *fh_calloc(size_t n, size_t size); /* n * size checked */
void *fh_realloc(void *p, size_t n);
void *fh_aligned(size_t n);             /* 64-byte aligned, zeroed; n is rounded up to 64.  On huge pages from FH_HUGE_FROM on, where offered */
void fh_free(void *p);
char *fh_strdup(const char *s);
char *fh_strndup(const char *s, size_t n);
char *fh_sprintf(const char *fmt, ...) FH_PRINTF(1, 2); /* NULL when out of memory */

/* What is read in no order costs a walk of the page tables a page: from this size on huge pages are asked for (docs/decisions/0007). */
enum { FH_HUGE_PAGE = 2 << 20, FH_HUGE_FROM = 2 * FH_HUGE_PAGE };

/* Many small objects that die together. */
typedef struct fh_arena fh_arena;
fh_arena *fh_arena_new(void);                      /* NULL when out of memory */
void *fh_arena_alloc(fh_arena *a, size_t n);       /* 16-byte aligned, zeroed; NULL when out of memory */
char *fh_arena_strndup(fh_arena *a, const char *s, size_t n);
void fh_arena_free(fh_arena *a);                   /* accepts NULL */

/* A growing byte string; `failed` sticks once memory ran out, so that it is checked once at the end. */
typedef struct fh_buf { char *data; size_t len, cap; bool failed; } fh_buf;
void fh_buf_add(fh_buf *b, const void *data, size_t n);
void fh_buf_puts(fh_buf *b, const char *s);
void fh_buf_printf(fh_buf *b, const char *fmt, ...) FH_PRINTF(2, 3);
char *fh_buf_take(fh_buf *b); /* the NUL-terminated text, NULL if failed; the buffer is empty after it */
void fh_buf_free(fh_buf *b);

/* ---- text ------------------------------------------------------------------------------------------------ */

/* Copy `len` bytes so that they can be shown on a terminal: control characters, DEL, invalid UTF-8, C1 and bidirectional
 * controls become \xHH or \u{H}; cut with "..." where they do not fit.  Always NUL-terminated; returns out. */
char *fh_show(char *out, size_t size, const char *s, size_t len);
/* The length of the longest valid UTF-8 prefix (overlong forms and surrogates are invalid); == len when all is valid. */
size_t fh_utf8_valid(const char *s, size_t len);

/* ---- files ----------------------------------------------------------------------------------------------- */

/* A regular file mapped read-only.  Refuses directories, FIFOs and devices at once, without blocking. An empty
 * file has data == NULL and size 0.  From FH_HUGE_FROM on it is read from disk in huge pages where the file system can. */
typedef struct fh_map { const uint8_t *data; size_t size; char *path; } fh_map;
fh_status fh_map_open(fh_map *out, const char *path, fh_err *err);
void fh_map_close(fh_map *map); /* accepts a zeroed one */
/* What the system keeps of a file in memory is dropped where nobody has it mapped, so that the next map reads it from the disk: in pages as large as the
 * file system has them, whereas those of a file just written are as large as its writer's pieces and the memory of that moment allowed.  Advice: it cannot
 * fail. */
void fh_file_uncache(const char *path);

/* The whole of a file or pipe ("-" is standard input) in memory, NUL-terminated; more than `limit` bytes is an error.  *out is freed by the caller. */
fh_status fh_file_read(char **out, size_t *len, const char *path, size_t limit, fh_err *err);
bool fh_file_exists(const char *path);
bool fh_dir_has(const char *dir, const char *name); /* it is a directory, with a regular file (or a link to one) of that name */
/* SHA-256 of a regular file, 64 hex digits, and its size (NULL: not asked for); read in pieces, so that it can be stopped. */
struct fh_job;
fh_status fh_file_sha256(char hex[65], uint64_t *bytes, const char *path, const struct fh_job *job, fh_err *err);
/* Create a directory and its parents (mode 0777 less the umask). */
fh_status fh_mkdirs(const char *path, fh_err *err);
char *fh_path_join(const char *dir, const char *name); /* NULL when out of memory */

/* An output that appears whole or not at all: written beside its final name (".NAME.PID.tmp"), synced, renamed, the
 * directory synced.  Every write may fail in a build with -DFH_FAULTS. */
typedef struct fh_out fh_out;
enum {
    FH_NO_CLOBBER = 1,  /* refuse where the file is there already */
    FH_OWNER_READS = 2, /* a later stage of the same user reads it, even under a umask of 0777: the owner's read bit is set */
    FH_PRIVATE = 8      /* nobody but the owner reads it, from its first byte on: mode 0600 */
};
fh_status fh_out_open(fh_out **out, const char *path, unsigned flags, fh_err *err);
/* Whether fh_out_open would open it now, before work whose result is to go there: directory missing, not ours to write, there already. Nothing is left behind; a
 * pipe or device, which is opened once, passes. */
fh_status fh_out_check(const char *path, unsigned flags, fh_err *err);
fh_status fh_out_write(fh_out *o, const void *data, size_t n, fh_err *err);                    /* append */
fh_status fh_out_write_at(fh_out *o, uint64_t offset, const void *data, size_t n, fh_err *err); /* overwrite what was appended before */
uint64_t fh_out_tell(const fh_out *o);                                                         /* bytes appended so far */
fh_status fh_out_commit(fh_out *o, fh_err *err); /* frees o whatever happens; on failure the old file is untouched */
void fh_out_abandon(fh_out *o);                  /* removes the temporary and frees; accepts NULL */
/* Remove the files that killed runs left in a directory (".*.tmp").  The caller holds what keeps others from writing there. */
void fh_out_sweep(const char *dir);
/* Write a whole file through fh_out. */
fh_status fh_file_write(const char *path, const void *data, size_t n, unsigned flags, fh_err *err);

/* A directory that appears whole or not at all: made as ".NAME.PID.tmp" beside its final name, synced and renamed.  What a killed run left of that
 * name is cleared away by the next; nobody else's is touched.  Its files are the caller's to write (fh_out, fh_file_copy), below fh_outdir_path. */
typedef struct fh_outdir fh_outdir;
enum { FH_REPLACE_DIR = 4 }; /* one that holds something may be replaced: the caller knows it.  Else only an empty one, and with FH_NO_CLOBBER none */
fh_status fh_outdir_open(fh_outdir **out, const char *path, unsigned flags, fh_err *err);
const char *fh_outdir_path(const fh_outdir *o); /* of the temporary; borrowed until it is committed or abandoned */
fh_status fh_outdir_commit(fh_outdir *o, unsigned flags, fh_err *err); /* frees o whatever happens; on failure what was there is untouched */
void fh_outdir_abandon(fh_outdir *o);            /* removes the temporary and frees; accepts NULL */

/* The same for what is too long for one run: made as ".NAME.KEY.part", which an abandoned run leaves behind where something is in it, and the next one with this
 * key goes on in.  The key says what it is of. */
fh_status fh_outdir_resume(fh_outdir **out, const char *path, const char *key, fh_err *err);

/* A file that grows over several runs, its SHA-256 with it.  What is there already is read again; where that is more than `most` bytes it begins anew. */
typedef struct fh_partial fh_partial;
struct fh_job;
fh_status fh_partial_open(fh_partial **out, const char *path, uint64_t most, const struct fh_job *job, fh_err *err);
/* Bytes that belong at `offset`: where the last ones ended, or 0 to begin anew. */
fh_status fh_partial_write(fh_partial *p, uint64_t offset, const void *data, size_t n, fh_err *err);
fh_status fh_partial_restart(fh_partial *p, fh_err *err);
uint64_t fh_partial_bytes(const fh_partial *p);
bool fh_partial_is(const fh_partial *p, const char *sha256); /* 64 hex digits */
fh_status fh_partial_close(fh_partial *p, fh_err *err);      /* syncs, and frees whatever happens; accepts NULL */

/* An advisory lock on a file, created where missing; FH_EBUSY names the process that holds it. */
typedef struct fh_lock fh_lock;
fh_status fh_lock_take(fh_lock **out, const char *path, fh_err *err);
void fh_lock_release(fh_lock *l); /* accepts NULL */

/* ---- threads --------------------------------------------------------------------------------------------- */

/* A fixed set of threads that share out numbered tasks.  Which worker takes which task is not fixed: a result
 * must depend on the task number alone, never on the worker, so that any number of threads gives the same bytes. */
typedef struct fh_pool fh_pool;
typedef void (*fh_task)(void *ctx, size_t task, unsigned worker); /* worker < fh_pool_threads() */
fh_status fh_pool_new(fh_pool **out, unsigned threads, fh_err *err); /* threads 0: one for each CPU this process may use */
unsigned fh_pool_threads(const fh_pool *p);                          /* 1 for NULL */
void fh_pool_run(fh_pool *p, size_t tasks, fh_task fn, void *ctx);   /* returns when all are done; NULL runs them here */
void fh_pool_free(fh_pool *p);                                       /* accepts NULL */

/* ---- hashing --------------------------------------------------------------------------------------------- */

/* SHA-256 (FIPS 180-4).  Uses the CPU's SHA instructions where it has them. */
typedef struct fh_sha256 { uint32_t h[8]; uint64_t bytes; uint8_t block[64]; } fh_sha256;
void fh_sha256_init(fh_sha256 *s);
void fh_sha256_update(fh_sha256 *s, const void *data, size_t n);
void fh_sha256_final(fh_sha256 *s, uint8_t out[32]);
void fh_sha256_hex(char out[65], const uint8_t digest[32]);
void fh_sha256_of(uint8_t out[32], const void *data, size_t n);

/* ---- random numbers -------------------------------------------------------------------------------------- */

/* xoshiro256** seeded through splitmix64: the same numbers everywhere for the same seed and stream. */
typedef struct fh_rng { uint64_t s[4]; } fh_rng;
void fh_rng_seed(fh_rng *r, uint64_t seed, uint64_t stream);
uint64_t fh_rng_u64(fh_rng *r);
double fh_rng_double(fh_rng *r);                    /* [0, 1), 53 bits */
uint64_t fh_rng_below(fh_rng *r, uint64_t n);       /* [0, n), unbiased; n > 0 */
void fh_rng_shuffle(fh_rng *r, uint32_t *v, size_t n);

/* ---- jobs: how long work is watched and stopped ------------------------------------------------------------- */

typedef enum fh_level { FH_DEBUG, FH_INFO, FH_WARN } fh_level;
/* Handed down to everything that takes long.  A zeroed one is valid: one thread, silent, never stopped. */
typedef struct fh_job {
    fh_pool *pool;
    const volatile sig_atomic_t *stop; /* non-zero: return FH_EINTERRUPTED soon */
    void (*progress)(void *ctx, const char *what, double done, double total, const char *unit); /* done == total ends it */
    void (*message)(void *ctx, fh_level level, const char *text);
    void *ctx;
} fh_job;
bool fh_job_stopped(const fh_job *job);                         /* all of these accept NULL */
fh_pool *fh_job_pool(const fh_job *job);
void fh_job_progress(const fh_job *job, const char *what, double done, double total, const char *unit);
void fh_job_say(const fh_job *job, fh_level level, const char *fmt, ...) FH_PRINTF(3, 4);

/* The bytes of a regular file into another, through fh_out. */
fh_status fh_file_copy(const char *from, const char *to, unsigned flags, const fh_job *job, fh_err *err);
/* The same, or a link to it under a name that is free: hard, or symbolic with its whole path.  Links on the way to `from` are followed. */
typedef enum fh_link { FH_LINK_COPY, FH_LINK_HARD, FH_LINK_SYM } fh_link;
fh_status fh_file_bring(const char *from, const char *to, fh_link how, unsigned flags, const fh_job *job, fh_err *err);

double fh_now(void);            /* seconds on a clock that only goes forward */
uint64_t fh_peak_bytes(void);   /* the most memory this process has held resident */
size_t fh_last_cache(void);     /* bytes of the largest cache that the first CPU shares; 0: not known.  Asked once */
bool fh_peak_reset(void);       /* from now on; false where the system cannot forget (Linux can) */

/* ---- dense products (OpenBLAS; not part of libflashhead) ----------------------------------------------------- */

/* c[m, n] = a[m, k] * b[n, k]^T, all row-major float32, leading dimensions in elements.  Cut into fixed tiles, one
 * library call on one thread each: the same numbers for any number of threads. */
void fh_gemm_nt(fh_pool *pool, size_t m, size_t n, size_t k, const float *a, size_t lda, const float *b, size_t ldb, float *c, size_t ldc);
/* The same on the calling thread alone (inside a task). */
void fh_gemm_nt_here(size_t m, size_t n, size_t k, const float *a, size_t lda, const float *b, size_t ldb, float *c, size_t ldc);
/* "OpenBLAS 0.3.21 Cooperlake": what the numbers depend on. */
const char *fh_gemm_library(void);
/* Stop the library's own threads, which nothing here uses, before they take time from ours: first thing in a program. */
void fh_gemm_begin(void);

#endif
