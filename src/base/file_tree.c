// What base/file.h says of whole folders: listing and removing.

#include "base/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#define DEPTH_MAX 100 // folders in folders; each holds a descriptor open

static bool is_dots(const char *name)
{
    return name[0] == '.' && (name[1] == '\0' || (name[1] == '.' && name[2] == '\0'));
}

static void close_dir(DIR **d)
{
    if (*d)
        (void)closedir(*d); // only read
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static bool list_into(DIR *d, const char *path, size_t max, FileList *list, size_t *cap, Err *err)
{
    for (;;) {
        errno = 0;
        const struct dirent *e = readdir(d);
        if (!e)
            return errno == 0 || err_errno(err, errno, "cannot list %s", path);
        if (is_dots(e->d_name))
            continue;
        if (list->len >= max)
            return err_set(err, ERR_TOO_LARGE, "%s holds more than %zu names", path, max);
        if (list->len == *cap) {
            size_t want = *cap * 2 + 16;
            char **names = reallocarray(list->names, want, sizeof(*names));
            if (!names)
                return err_no_memory(err);
            list->names = names;
            *cap = want;
        }
        list->names[list->len] = mem_strdup(e->d_name, err);
        if (!list->names[list->len])
            return false;
        list->len++;
    }
}

bool file_list(const char *path, size_t max, FileList *ret_list, Err *err)
{
    cleanup(close_dir) DIR *d = opendir(path);
    if (!d)
        return err_errno(err, errno, "cannot open the folder %s", path);
    FileList list = {0};
    size_t cap = 0;
    if (!list_into(d, path, max, &list, &cap, err)) {
        file_list_clear(&list);
        return false;
    }
    if (list.len > 0)
        qsort(list.names, list.len, sizeof(*list.names), by_name);
    *ret_list = list;
    return true;
}

void file_list_clear(FileList *list)
{
    for (size_t i = 0; i < list->len; i++)
        free(list->names[i]);
    free(list->names);
    *list = (FileList){0};
}

// The mount that (fd, name) is on. The device's number alone does not tell: a bind mount shares it.
static bool mount_of(int fd, const char *name, struct statx *ret, Err *err)
{
    int flags = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | (*name ? 0 : AT_EMPTY_PATH);
    if (statx(fd, name, flags, STATX_TYPE | STATX_INO | STATX_MNT_ID, ret) != 0)
        return err_errno(err, errno, "cannot look at a folder");
    return true;
}

static bool same_mount(const struct statx *a, const struct statx *b)
{
    return a->stx_dev_major == b->stx_dev_major && a->stx_dev_minor == b->stx_dev_minor &&
        a->stx_mnt_id == b->stx_mnt_id;
}

static bool remove_entry(int folder, const char *name, const struct statx *top, int depth,
                         Err *err);

// Everything in the folder fd. Removing while reading may skip names, so it reads until nothing is left.
static bool empty_folder(int fd, const struct statx *top, int depth, Err *err)
{
    int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (own < 0)
        return err_errno(err, errno, "cannot open a folder");
    cleanup(close_dir) DIR *d = fdopendir(own);
    if (!d) {
        (void)close(own);
        return err_no_memory(err);
    }
    for (bool again = true; again;) {
        again = false;
        for (;;) {
            errno = 0;
            const struct dirent *e = readdir(d);
            if (!e && errno != 0)
                return err_errno(err, errno, "cannot list a folder");
            if (!e)
                break;
            if (is_dots(e->d_name))
                continue;
            if (!remove_entry(fd, e->d_name, top, depth, err))
                return err_context(err, "%s", e->d_name);
            again = true;
        }
        rewinddir(d);
    }
    return true;
}

static bool remove_entry(int folder, const char *name, const struct statx *top, int depth, Err *err)
{
    if (unlinkat(folder, name, 0) == 0 || errno == ENOENT)
        return true;
    if (errno != EISDIR && errno != EPERM) // EPERM is what POSIX has for a folder
        return err_errno(err, errno, "cannot remove");
    int first = errno;
    cleanup_close int fd = openat(folder, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return err_errno(err, errno == ENOTDIR || errno == ELOOP ? first : errno, "cannot remove");
    struct statx here;
    if (!mount_of(fd, "", &here, err))
        return false;
    if (!same_mount(&here, top))
        return err_set(err, ERR_BUSY, "something is mounted here; unmount it first");
    if (depth >= DEPTH_MAX)
        return err_set(err, ERR_TOO_LARGE, "more than %d folders deep", DEPTH_MAX);
    if (!empty_folder(fd, top, depth + 1, err))
        return false;
    if (unlinkat(folder, name, AT_REMOVEDIR) != 0 && errno != ENOENT)
        return err_errno(err, errno, "cannot remove the folder");
    return true;
}

bool file_remove_tree(const char *path, Err *err)
{
    // The mount is that of the folder around it: a path that is itself a mount point stays whole.
    cleanup_free char *parent = mem_strdup(path, err);
    if (!parent)
        return false;
    size_t n = strlen(parent);
    while (n > 1 && parent[n - 1] == '/')
        parent[--n] = '\0';
    char *slash = strrchr(parent, '/');
    cleanup_free char *name = mem_strdup(slash ? slash + 1 : parent, err);
    if (!name)
        return false;
    if (!*name || is_dots(name))
        return err_set(err, ERR_INVALID, "%s does not name a folder that could be removed", path);
    if (slash)
        slash[slash == parent ? 1 : 0] = '\0';
    cleanup_close int fd = open(slash ? parent : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT)
        return true;
    if (fd < 0)
        return err_errno(err, errno, "cannot open the folder around %s", path);
    struct statx top;
    if (!mount_of(fd, "", &top, err) || !remove_entry(fd, name, &top, 0, err))
        return err_context(err, "%s", path);
    return true;
}
