#include "mover/sink_path.h"

#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

static bool check_target(const char *path, bool replace, Err *err)
{
    struct stat st;
    if (lstat(path, &st) != 0)
        return errno == ENOENT || err_errno(err, errno, "%s", path);
    if (!replace)
        return err_set(err, ERR_EXISTS, "%s is there already; choose another path, or force it", path);
    return S_ISREG(st.st_mode) || err_set(err, ERR_CONFLICT, "%s is not a regular file and will not be replaced", path);
}

// ---- the partial file. Whoever removes or renames it has locked it, and has seen that its name is still its own.

static char *partial_of(const char *path, Err *err)
{
    return mem_printf(err, "%s.partial", path);
}

static bool has_name(int fd, const char *name)
{
    struct stat ours, named;
    return fstat(fd, &ours) == 0 && lstat(name, &named) == 0 && ours.st_dev == named.st_dev &&
        ours.st_ino == named.st_ino;
}

static bool lock_partial(int fd, const char *partial, Err *err)
{
    return file_lock_bytes(fd, partial, err) ||
        (err->code == ERR_BUSY && err_context(err, "another restore may be writing there"));
}

static bool remove_rest(const char *partial, Err *err)
{
    struct stat st;
    if (lstat(partial, &st) != 0)
        return errno == ENOENT || err_errno(err, errno, "%s", partial);
    if (!S_ISREG(st.st_mode))
        return err_set(err, ERR_CONFLICT, "%s is in the way, and not a regular file; remove it", partial);
    cleanup_close int fd = open(partial, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return errno == ENOENT || err_errno(err, errno, "%s is in the way", partial);
    return lock_partial(fd, partial, err) && (!has_name(fd, partial) || file_unlink(partial, err));
}

static bool make_partial(const char *partial, int *ret_fd, Err *err)
{
    for (;;) {
        if (!remove_rest(partial, err))
            return false;
        cleanup_close int fd = open(partial, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (fd < 0 && errno == EEXIST)
            continue; // another restore was quicker
        if (fd < 0)
            return err_errno(err, errno, "%s", partial);
        if (!lock_partial(fd, partial, err)) {
            if (err->code != ERR_BUSY)
                (void)unlink(partial); // a filesystem without locks
            return false;
        }
        if (has_name(fd, partial)) { // until it was locked, another restore could take it for a rest
            *ret_fd = mem_take_fd(&fd);
            return true;
        }
    }
}

// ----

bool sink_path_open(const char *path, bool replace, SinkPath *ret, Err *err)
{
    SinkPath p = {.fd = -1, .replace = replace, .path = mem_strdup(path, err)};
    cleanup_free char *partial = partial_of(path, err);
    if (!p.path || !partial || !check_target(path, replace, err) || !make_partial(partial, &p.fd, err)) {
        sink_path_clear(&p);
        return false;
    }
    p.partial = mem_take(partial);
    *ret = p;
    return true;
}

bool sink_path_open_device(const char *path, SinkPath *ret, Err *err)
{
    SinkPath p = {.fd = -1, .path = mem_strdup(path, err)};
    if (!p.path)
        return false;
    p.fd = open(path, O_RDWR | O_EXCL | O_CLOEXEC);
    if (p.fd < 0)
        (void)(errno == EBUSY ? err_set(err, ERR_BUSY, "%s is in use; unmount or detach it first", path)
                              : err_errno(err, errno, "%s", path));
    // A QEMU does not open devices exclusively
    if (p.fd < 0 || !file_lock_bytes(p.fd, path, err)) {
        sink_path_clear(&p);
        return false;
    }
    *ret = p;
    return true;
}

static bool sync_folder_of(const char *path, Err *err)
{
    cleanup_free char *folder = mem_strdup(path, err);
    if (!folder)
        return false;
    char *slash = strrchr(folder, '/');
    if (!slash)
        return file_fsync_dir(".", err);
    slash[slash == folder ? 1 : 0] = '\0';
    return file_fsync_dir(folder, err);
}

static bool rename_new(const char *from, const char *to, Err *err)
{
    if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) == 0)
        return true;
    if (errno != EINVAL && errno != ENOSYS)
        return err_errno(err, errno, "%s cannot get its name", to);
    // A filesystem without that kind of rename (NFS): nearly the same
    if (file_exists(to))
        return err_set(err, ERR_EXISTS, "%s is there by now", to);
    return file_rename(from, to, err);
}

bool sink_path_commit(SinkPath *p, Err *err)
{
    if (!p->partial)
        return true;
    if (!(p->replace ? file_rename(p->partial, p->path, err) : rename_new(p->partial, p->path, err)))
        return false;
    free(mem_take(p->partial));
    if (!sync_folder_of(p->path, err))
        return false;
    file_unlock_bytes(p->fd); // it is nobody's work any more: a QEMU may open it
    return true;
}

void sink_path_clear(SinkPath *p)
{
    if (p->partial)
        (void)unlink(p->partial); // nothing more can be done about a rest
    mem_cleanup_close(&p->fd);    // not before: it holds the name
    free(p->partial);
    free(p->path);
    *p = SINK_PATH_NONE;
}

bool sink_path_remove_rest(const char *path, Err *err)
{
    cleanup_free char *partial = partial_of(path, err);
    return partial && remove_rest(partial, err);
}
