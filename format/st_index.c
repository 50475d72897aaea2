/* format/st_index.c: a checkpoint's tensors in a directory: one safetensors file, or an index and its shards.
 *
 * The index names files.  A name is only ever a file of the same directory: what is no plain name is refused before anything is
 * opened, and so is a link that leaves the directory, except in the form that the Hub's cache has
 * (snapshots/<commit>/NAME -> ../../blobs/<digest>).
 */
#include "format/safetensors.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SINGLE "model.safetensors"
#define INDEX "model.safetensors.index.json"

enum {
    MAX_INDEX = 256 << 20, /* bytes; the largest published index has 15 MB */
    MAX_SHARDS = 10000,    /* every one is a mapping, of which a process may have 65530 */
    SHOWN = 160
};

/* One line of weight_map. */
typedef struct listed { const char *tensor, *shard; } listed;

typedef struct shard {
    const char *name; /* in the directory */
    char *path;
    size_t begin, end; /* its part of the listed */
} shard;

typedef struct index_file {
    const char *dir;
    char *path;
    fh_json *json;
    listed *listed; /* by shard, then by tensor */
    size_t n_listed;
    shard *shards;  /* by name */
    size_t n_shards;
} index_file;

static const char *show(char out[SHOWN], const char *name)
{
    return fh_show(out, SHOWN, name, strlen(name));
}

/* ---- the index ---------------------------------------------------------------------------------------------- */

static int by_shard(const void *left, const void *right)
{
    const listed *a = left, *b = right;
    int order = strcmp(a->shard, b->shard);
    return order ? order : strcmp(a->tensor, b->tensor);
}

static bool is_plain_name(const char *name)
{
    return *name && strcmp(name, ".") != 0 && strcmp(name, "..") != 0 && !strpbrk(name, "/\\") && strlen(name) <= NAME_MAX;
}

/* Through a map, because that refuses a FIFO in place of the file instead of waiting for a writer. */
static fh_status read_index(index_file *x, fh_err *err)
{
    fh_map map = {0};
    fh_status rc = fh_map_open(&map, x->path, err);
    if (rc < 0) return rc;
    if (map.size > MAX_INDEX) rc = fh_fail(err, FH_EFORMAT, "%s: %zu bytes, an index has at most %d", x->path, map.size, MAX_INDEX);
    else rc = fh_json_parse(&x->json, (const char *)map.data, map.size, x->path, err);
    fh_map_close(&map);
    return rc;
}

static fh_status read_weight_map(index_file *x, fh_err *err)
{
    char shown[SHOWN], shown2[SHOWN];
    const fh_json *map = fh_json_get(x->json, "weight_map");
    if (fh_json_type(map) != FH_JSON_OBJECT) return fh_fail(err, FH_EFORMAT, "%s: 'weight_map' is missing, or no object", x->path);
    size_t n = fh_json_count(map);
    if (n == 0) return fh_fail(err, FH_EFORMAT, "%s: 'weight_map' is empty", x->path);
    x->listed = fh_malloc(n * sizeof *x->listed);
    if (!x->listed) return fh_fail(err, FH_ENOMEM, "%s: out of memory", x->path);
    for (const fh_json *c = fh_json_first(map); c; c = fh_json_next(c)) {
        const char *tensor = fh_json_key(c), *name = fh_json_string(c);
        if (!name || !is_plain_name(name))
            return fh_fail(err, FH_EFORMAT, "%s: 'weight_map' has '%s' for tensor '%s': needed is the plain name of a file beside it",
                           x->path, name ? show(shown, name) : "no string", show(shown2, tensor));
        x->listed[x->n_listed++] = (listed){tensor, name};
    }
    qsort(x->listed, n, sizeof *x->listed, by_shard);
    return FH_OK;
}

static fh_status list_shards(index_file *x, fh_err *err)
{
    size_t n = 0;
    for (size_t i = 0; i < x->n_listed; i++) n += i == 0 || strcmp(x->listed[i].shard, x->listed[i - 1].shard) != 0;
    if (n > MAX_SHARDS) return fh_fail(err, FH_EFORMAT, "%s: names %zu files, at most %d are read", x->path, n, MAX_SHARDS);
    x->shards = fh_calloc(n, sizeof *x->shards);
    if (!x->shards) return fh_fail(err, FH_ENOMEM, "%s: out of memory", x->path);
    for (size_t i = 0; i < x->n_listed; i++) {
        if (i == 0 || strcmp(x->listed[i].shard, x->listed[i - 1].shard) != 0) {
            shard *s = &x->shards[x->n_shards++];
            s->name = x->listed[i].shard;
            s->begin = i;
            s->path = fh_path_join(x->dir, s->name);
            if (!s->path) return fh_fail(err, FH_ENOMEM, "%s: out of memory", x->path);
        }
        x->shards[x->n_shards - 1].end = i + 1;
    }
    return FH_OK;
}

/* ---- the shards --------------------------------------------------------------------------------------------- */

/* "../../blobs/" and a digest (hexadecimal digits: 40 of SHA-1, 64 of SHA-256, whatever comes next). */
static bool is_cache_link(const char *target)
{
    static const char before[] = "../../blobs/";
    if (strncmp(target, before, sizeof before - 1) != 0) return false;
    const char *digest = target + sizeof before - 1;
    size_t n = strspn(digest, "0123456789abcdef");
    return digest[n] == '\0' && n >= 8;
}

/* A link may lead to a file inside the directory, or into the Hub's cache. */
static fh_status check_link(const index_file *x, const shard *s, fh_err *err)
{
    struct stat st;
    char target[PATH_MAX], whole[PATH_MAX], home[PATH_MAX], shown[SHOWN];
    if (lstat(s->path, &st) != 0 && errno == ENOENT)
        return fh_fail(err, FH_ENOTFOUND, "%s: missing; by %s it holds %zu tensors ('%s', ...): is the download complete?", s->path,
                       x->path, s->end - s->begin, show(shown, x->listed[s->begin].tensor));
    if (!S_ISLNK(st.st_mode)) return FH_OK; /* all other faults show when it is opened */
    ssize_t n = readlink(s->path, target, sizeof target - 1);
    if (n < 0) return fh_fail(err, FH_EIO, "%s: cannot read this link: %s", s->path, strerror(errno));
    target[n] = '\0';
    if (!realpath(s->path, whole))
        return fh_fail(err, FH_ENOTFOUND, "%s: a link to '%s', which cannot be reached; tensor '%s' should be there", s->path, target,
                       show(shown, x->listed[s->begin].tensor));
    if (is_cache_link(target)) {
        /* The blob itself must be the file, not one more link. */
        const char *digest = strrchr(target, '/'), *last = strrchr(whole, '/');
        if (strcmp(digest, last) == 0 && last - whole >= 6 && strncmp(last - 6, "/blobs", 6) == 0) return FH_OK;
    } else if (realpath(x->dir, home)) {
        size_t len = strlen(home);
        if (strncmp(whole, home, len) == 0 && whole[len] == '/') return FH_OK;
    }
    return fh_fail(err, FH_EFORMAT, "%s: a link that leaves the directory, to '%s': put the file itself there", s->path, target);
}

/* A tensor is in one shard only, and in the one the index names.  `t` is sorted. */
static fh_status check_places(const index_file *x, const fh_tensors *t, fh_err *err)
{
    char shown[SHOWN];
    for (size_t i = 1; i < t->n; i++)
        if (strcmp(t->list[i].name, t->list[i - 1].name) == 0)
            return fh_fail(err, FH_EFORMAT, "%s: tensor '%s' is in two files, '%s' and '%s': remove what is not of this model", x->path,
                           show(shown, t->list[i].name), t->list[i - 1].file, t->list[i].file);
    for (size_t i = 0; i < x->n_shards; i++) {
        const shard *s = &x->shards[i];
        for (size_t j = s->begin; j < s->end; j++) {
            const fh_tensor *found = fh_tensors_find(t, x->listed[j].tensor);
            if (found && strcmp(found->file, s->path) == 0) continue;
            return fh_fail(err, FH_EFORMAT, "%s: tensor '%s' should be in '%s', but is in %s%s: do index and files belong together?",
                           x->path, show(shown, x->listed[j].tensor), s->name, found ? "" : "none of the files", found ? found->file : "");
        }
    }
    return FH_OK;
}

static bool is_listed(const index_file *x, const shard *s, const char *tensor)
{
    listed key = {tensor, s->name};
    return bsearch(&key, x->listed + s->begin, s->end - s->begin, sizeof key, by_shard) != NULL;
}

/* Tensors that the index does not list are used as if it did, which is what the reference does. */
static void tell_extra(const index_file *x, const fh_tensors *t, size_t first, const shard *s, const fh_job *job)
{
    char shown[SHOWN];
    const char *example = NULL;
    size_t extra = 0;
    for (size_t i = first; i < t->n; i++) {
        if (is_listed(x, s, t->list[i].name)) continue;
        if (extra++ == 0) example = t->list[i].name;
    }
    if (extra == 0) return;
    fh_job_say(job, FH_WARN, "%s: holds %zu tensors that %s does not list ('%s'%s)", s->path, extra, x->path,
               show(shown, example), extra > 1 ? " and others" : "");
}

static fh_status open_shards(fh_tensors *t, index_file *x, const fh_job *job, fh_err *err)
{
    fh_status rc;
    for (size_t i = 0; i < x->n_shards; i++)
        if ((rc = check_link(x, &x->shards[i], err)) < 0) return rc;
    t->maps = fh_calloc(x->n_shards, sizeof *t->maps);
    if (!t->maps) return fh_fail(err, FH_ENOMEM, "%s: out of memory", x->path);
    for (size_t i = 0; i < x->n_shards; i++) {
        size_t before = t->n;
        fh_map *map = &t->maps[i];
        if (fh_job_stopped(job)) return fh_fail(err, FH_EINTERRUPTED, "stopped");
        if ((rc = fh_map_open(map, x->shards[i].path, err)) < 0) return rc;
        t->n_maps++;
        if ((rc = fh_tensors_add(t, map->data, map->size, map->path, err)) < 0) return rc;
        tell_extra(x, t, before, &x->shards[i], job);
    }
    fh_tensors_sort(t);
    return check_places(x, t, err);
}

static fh_status open_index(fh_tensors **out, const char *dir, char *path, const fh_job *job, fh_err *err)
{
    fh_status rc;
    index_file x = {.dir = dir, .path = path};
    fh_tensors *t = fh_tensors_new(dir);
    if (!t) return fh_fail(err, FH_ENOMEM, "%s: out of memory", path);
    if ((rc = read_index(&x, err)) < 0) goto out;
    if ((rc = read_weight_map(&x, err)) < 0) goto out;
    if ((rc = list_shards(&x, err)) < 0) goto out;
    if ((rc = open_shards(t, &x, job, err)) < 0) goto out;
    *out = t;
    t = NULL;
out:
    for (size_t i = 0; i < x.n_shards; i++) fh_free(x.shards[i].path);
    fh_free(x.shards);
    fh_free(x.listed);
    fh_json_free(x.json);
    fh_tensors_close(t);
    return rc;
}

/* ---- the directory ------------------------------------------------------------------------------------------ */

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), m = strlen(end);
    return n >= m && strcmp(s + n - m, end) == 0;
}

/* Neither file is there: what else is? */
static fh_status nothing_there(const char *dir, fh_err *err)
{
    bool pickle = false, gguf = false, other = false;
    DIR *d = opendir(dir);
    if (!d) {
        if (errno == ENOTDIR) return fh_fail(err, FH_EIO, "%s: is a file: a checkpoint directory is needed here", dir);
        if (errno == ENOENT) return fh_fail(err, FH_ENOTFOUND, "%s: no such directory: a checkpoint directory is needed", dir);
        return fh_fail(err, FH_EIO, "%s: cannot open this directory: %s", dir, strerror(errno));
    }
    for (struct dirent *e; (e = readdir(d));) {
        pickle = pickle || ends_with(e->d_name, ".bin") || ends_with(e->d_name, ".pt") || ends_with(e->d_name, ".pth");
        gguf = gguf || ends_with(e->d_name, ".gguf");
        other = other || ends_with(e->d_name, ".safetensors");
    }
    closedir(d);
    if (other)
        return fh_fail(err, FH_ENOTFOUND, "%s: no " SINGLE " and no " INDEX ", only other .safetensors files: is the index missing?", dir);
    if (pickle)
        return fh_fail(err, FH_EUNSUPPORTED, "%s: only PyTorch pickles, never read because they can run code: convert to safetensors", dir);
    if (gguf) return fh_fail(err, FH_EUNSUPPORTED, "%s: only GGUF files are there: give the file itself in place of the directory", dir);
    return fh_fail(err, FH_ENOTFOUND, "%s: no " SINGLE " and no " INDEX " there: is this a checkpoint directory?", dir);
}

static void tell_unknown_dtypes(const fh_tensors *t, const fh_job *job)
{
    char shown[SHOWN], shown_dtype[SHOWN];
    size_t n = 0;
    const fh_tensor *first = NULL;
    for (size_t i = 0; i < t->n; i++) {
        if (t->list[i].dtype != FH_DTYPES) continue;
        if (n++ == 0) first = &t->list[i];
    }
    if (n)
        fh_job_say(job, FH_WARN, "%s: %zu tensors of a dtype that is not known ('%s' is %s), which cannot be used", first->file, n,
                   show(shown, first->name), show(shown_dtype, first->dtype_name));
}

/* Is there anything of that name, be it a link to nowhere? */
static bool is_there(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0;
}

fh_status fh_tensors_open_dir(fh_tensors **out, const char *dir, const fh_job *job, fh_err *err)
{
    fh_status rc;
    *out = NULL;
    char *single = fh_path_join(dir, SINGLE), *index = fh_path_join(dir, INDEX);
    if (!single || !index) rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", dir);
    else if (is_there(single)) rc = fh_tensors_open(out, single, err);
    else if (is_there(index)) rc = open_index(out, dir, index, job, err);
    else rc = nothing_there(dir, err);
    if (rc >= 0) tell_unknown_dtypes(*out, job);
    fh_free(single);
    fh_free(index);
    return rc;
}
