/* Work directories below a work directory: what several numbers of clusters of one model have in common lies above and is linked to. */
#include "artifacts/stages_private.h"

#include <string.h>
#include <unistd.h>

/* `file` of the directory `from` beside or above (".." or "../k1024"), whatever was there before. */
static fh_status link_file(fh_stage_env *sub, const char *from, const char *file, fh_err *err)
{
    char *path = fh_work_path(sub->work, file), *target = fh_path_join(from, file), there[256];
    fh_status rc = path && target ? FH_OK : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc < 0) goto out;
    ssize_t n = readlink(path, there, sizeof there - 1);
    if (n > 0 && (there[n] = 0, !strcmp(there, target))) goto out;
    unlink(path);
    if (symlink(target, path)) rc = fh_fail(err, FH_EIO, "%s: cannot be linked to %s: that needs a file system with symbolic links", path, target);
    fh_work_changed(sub->work, file);
out:
    fh_free(path);
    fh_free(target);
    return rc;
}

fh_status fh_sub_open(fh_stage_env *sub, const fh_stage_env *e, const char *name, const char *beside, fh_err *err)
{
    static const char *const above[] = {FH_FILE_HEAD, FH_FILE_MODEL, FH_FILE_SOURCE, FH_FILE_STATES}, *const aside[] = {FH_FILE_CLUSTERS, FH_FILE_ROUTING};
    char *dir = fh_work_path(e->work, name), *from = beside ? fh_path_join("..", beside) : NULL;
    *sub = (fh_stage_env){.job = e->job};
    fh_status rc = dir && (!beside || from) ? fh_work_open(&sub->work, dir, true, err) : fh_fail(err, FH_ENOMEM, "out of memory");
    for (size_t i = 0; rc == FH_OK && i < sizeof above / sizeof *above; i++) rc = link_file(sub, "..", above[i], err);
    for (size_t i = 0; rc == FH_OK && beside && i < sizeof aside / sizeof *aside; i++) rc = link_file(sub, from, aside[i], err);
    fh_free(dir);
    fh_free(from);
    return rc;
}

void fh_sub_close(fh_stage_env *sub)
{
    fh_work_close(sub->work);
    sub->work = NULL;
}
