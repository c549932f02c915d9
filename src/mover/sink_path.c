#include "mover/sink_path.h"

#include "base/file.h"
#include "base/str.h"
#include "base/uuid.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

bool sink_path_partial(const char *path, bool replace, char **ret_partial, Err *err)
{
    struct stat st;
    if (lstat(path, &st) == 0) {
        if (!replace)
            return err_set(err, ERR_EXISTS, "%s is there already; choose another path, or force it", path);
        if (!S_ISREG(st.st_mode))
            return err_set(err, ERR_CONFLICT, "%s is not a regular file and will not be replaced", path);
    } else if (errno != ENOENT) {
        return err_errno(err, errno, "%s", path);
    }
    uint8_t random[4];
    char hex[2 * sizeof(random) + 1];
    if (!uuid_random_bytes(random, sizeof(random), err))
        return false;
    str_hex(random, sizeof(random), hex);
    char *partial = mem_printf(err, "%s.partial-%s", path, hex);
    if (!partial)
        return false;
    *ret_partial = partial;
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

bool sink_path_commit(const char *partial, const char *path, bool replace, Err *err)
{
    if (!(replace ? file_rename(partial, path, err) : rename_new(partial, path, err)))
        return false;
    return sync_folder_of(path, err);
}
