#include "cli/target.h"

#include "base/file.h"
#include "base/str.h"
#include "image/repo.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

void target_clear(Target *t)
{
    free(t->path);
    *t = (Target){0};
}

char *target_folder(const Target *t, Err *err)
{
    const char *slash = strrchr(t->path, '/'); // there is one: the path is absolute
    return mem_printf(err, "%.*s", (int)MAX(1, slash - t->path), t->path);
}

// ---- files in use

// A write lease is given only for a file that nobody else has open. Not every filesystem has leases.
static bool is_open(int fd, const char *path, Err *err)
{
    // Someone who opens the file now makes the kernel signal us: with one that does nothing
    if (fcntl(fd, F_SETSIG, SIGURG) != 0 || fcntl(fd, F_SETLEASE, F_WRLCK) != 0)
        return errno != EAGAIN || err_set(err, ERR_BUSY, "%s is open in another process; close it there first", path);
    (void)fcntl(fd, F_SETLEASE, F_UNLCK); // closing gives it back as well
    return true;
}

static bool file_is_free(const char *path, bool device, Err *err)
{
    cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0)
        return err_errno(err, errno, "%s", path);
    return file_bytes_are_free(fd, path, err) && (device || is_open(fd, path, err));
}

// ---- the path

static bool resolve_new(const char *path, char **ret, Err *err)
{
    struct stat st;
    if (lstat(path, &st) == 0)
        return err_set(err, ERR_CONFLICT, "%s is a link that leads nowhere", path);
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    if (*name == '\0' || str_eq(name, ".") || str_eq(name, ".."))
        return err_set(err, ERR_USAGE, "%s names a folder, not a file", path);
    cleanup_free char *folder = slash ? mem_printf(err, "%.*s", (int)MAX(1, slash - path), path) : mem_strdup(".", err);
    cleanup_free char *real = NULL;
    if (!folder || !file_realpath(folder, &real, err))
        return err_context(err, "the folder of %s", path);
    if (!file_is_dir(real))
        return err_set(err, ERR_INVALID, "%s is not a folder", real);
    *ret = str_eq(real, "/") ? mem_printf(err, "/%s", name) : mem_printf(err, "%s/%s", real, name);
    return *ret != NULL;
}

static bool check_existing(const TargetSystem *system, const struct stat *st, bool force, Target *t, Err *err)
{
    if (S_ISDIR(st->st_mode))
        return err_set(err, ERR_EXISTS, "%s is a folder; name a file in it, or restore --all-disks into it", t->path);
    if (!S_ISREG(st->st_mode) && !S_ISBLK(st->st_mode))
        return err_set(err, ERR_CONFLICT, "%s is neither a file nor a block device", t->path);
    t->device = S_ISBLK(st->st_mode);
    if (!file_is_free(t->path, t->device, err) ||
        (t->device && !target_device_is_free(system, t->path, st->st_rdev, err)))
        return false;
    if (!force)
        return err_set(err, ERR_EXISTS,
                       t->device ? "%s is a block device; --force overwrites what is on it"
                                 : "%s is there already; --force replaces it",
                       t->path);
    return true;
}

static bool check(const TargetSystem *system, const char *path, bool force, Target *t, Err *err)
{
    struct stat st;
    bool inside = true;
    bool there = stat(path, &st) == 0;
    if (!there && errno != ENOENT)
        return err_errno(err, errno, "%s", path);
    if (!(there ? file_realpath(path, &t->path, err) : resolve_new(path, &t->path, err)) ||
        !repo_is_inside(t->path, &inside, err))
        return false;
    if (inside)
        return err_set(err, ERR_CONFLICT, "%s lies in a repository; restore to somewhere else", t->path);
    return !there || check_existing(system, &st, force, t, err);
}

bool target_check(const TargetSystem *system, const char *path, bool force, Target *ret, Err *err)
{
    Target t = {0};
    if (*path == '\0')
        return err_set(err, ERR_USAGE, "an empty path");
    if (!check(system, path, force, &t, err)) {
        target_clear(&t);
        return false;
    }
    *ret = t;
    return true;
}
