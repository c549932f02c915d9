#include "base/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

// Until the end of the file, at most max bytes, a NUL behind them.
static bool read_all(int fd, const char *path, size_t first, size_t max, char **ret_text, size_t *ret_len, Err *err)
{
    size_t cap = MIN(first, max) + 1,
           len = 0; // one more than the file is said to have: to see its end
    cleanup_free char *text = mem_calloc(cap + 1, 1, err);
    if (!text)
        return false;
    for (;;) {
        if (len == cap) {
            cap = MIN(cap * 2, max + 1);
            char *more = realloc(text, cap + 1);
            if (!more)
                return err_no_memory(err);
            text = more;
        }
        ssize_t n = read(fd, text + len, cap - len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_errno(err, errno, "cannot read %s", path);
        if (n == 0)
            break;
        len += (size_t)n;
        if (len > max)
            return err_set(err, ERR_TOO_LARGE, "%s has more than %zu bytes", path, max);
    }
    text[len] = '\0';
    *ret_len = len;
    *ret_text = mem_take(text);
    return true;
}

bool file_read(const char *path, size_t max, char **ret_text, size_t *ret_len, Err *err)
{
    // O_NONBLOCK: a FIFO without a writer must not hold us before we see what it is.
    cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0)
        return err_errno(err, errno, "cannot open %s", path);
    struct stat st;
    if (fstat(fd, &st) != 0)
        return err_errno(err, errno, "cannot look at %s", path);
    if (!S_ISREG(st.st_mode))
        return err_set(err, ERR_INVALID, "%s is not a regular file", path);
    if (st.st_size > 0 && (uint64_t)st.st_size > max)
        return err_set(err, ERR_TOO_LARGE, "%s has more than %zu bytes", path, max);

    char *text = NULL;
    size_t len = 0;
    if (!read_all(fd, path, (size_t)st.st_size, MIN(max, SIZE_MAX / 4), &text, &len, err))
        return false;
    if (!ret_len && memchr(text, '\0', len)) {
        free(text);
        return err_set(err, ERR_INVALID, "%s holds a NUL byte", path);
    }
    if (ret_len)
        *ret_len = len;
    *ret_text = text;
    return true;
}

static bool offset_fits(uint64_t offset, size_t n, Err *err)
{
    uint64_t end;
    if (!add_u64(offset, n, &end) || end > INT64_MAX)
        return err_set(err, ERR_INVALID, "%zu bytes at %" PRIu64 " are beyond what a file can have", n, offset);
    return true;
}

bool file_pread(int fd, void *p, size_t n, uint64_t offset, Err *err)
{
    if (!offset_fits(offset, n, err))
        return false;
    for (size_t done = 0; done < n;) {
        ssize_t got = pread(fd, (char *)p + done, n - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return err_errno(err, errno, "cannot read %zu bytes at %" PRIu64, n, offset);
        if (got == 0)
            return err_set(err, ERR_DAMAGED, "the file ends at %" PRIu64 ", within the %zu bytes at %" PRIu64,
                           offset + done, n, offset);
        done += (size_t)got;
    }
    return true;
}

bool file_pwrite(int fd, const void *p, size_t n, uint64_t offset, Err *err)
{
    if (!offset_fits(offset, n, err))
        return false;
    for (size_t done = 0; done < n;) {
        ssize_t got = pwrite(fd, (const char *)p + done, n - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return err_errno(err, got < 0 ? errno : EIO, "cannot write %zu bytes at %" PRIu64, n, offset);
        done += (size_t)got;
    }
    return true;
}

bool file_write(int fd, const void *p, size_t n, Err *err)
{
    for (size_t done = 0; done < n;) {
        ssize_t got = write(fd, (const char *)p + done, n - done);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return err_errno(err, got < 0 ? errno : EIO, "cannot write %zu bytes", n);
        done += (size_t)got;
    }
    return true;
}

static bool fill_durable(int fd, const char *path, const void *p, size_t n, Err *err)
{
    if (!file_write(fd, p, n, err))
        return err_context(err, "%s", path);
    if (fsync(fd) != 0)
        return err_errno(err, errno, "cannot make %s durable", path);
    return true;
}

bool file_create_durable(const char *path, const void *p, size_t n, mode_t mode, Err *err)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOCTTY, mode);
    if (fd < 0)
        return err_errno(err, errno, "cannot create %s", path);
    bool ok = fill_durable(fd, path, p, n, err);
    if (close(fd) != 0 && ok) // NFS reports here what it could not write
        ok = err_errno(err, errno, "cannot close %s", path);
    if (!ok)
        (void)unlink(path); // the first error is the one to tell
    return ok;
}

bool file_exists(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0;
}

bool file_is_dir(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

bool file_mkdir(const char *path, mode_t mode, Err *err)
{
    if (mkdir(path, mode) == 0)
        return true;
    int e = errno;
    struct stat st;
    if (stat(path, &st) != 0) // where something has the name, what keeps us from looking at it is the error
        return err_errno(err, e == EEXIST && errno != ENOENT ? errno : e, "cannot make the folder %s", path);
    // there, also where a read-only filesystem or a missing permission was the answer
    return S_ISDIR(st.st_mode) || err_errno(err, e, "cannot make the folder %s", path);
}

bool file_mkdir_p(const char *path, mode_t mode, Err *err)
{
    cleanup_free char *part = mem_strdup(path, err);
    if (!part)
        return false;
    for (char *p = part; *p; p++) {
        if (*p != '/' || p == part)
            continue;
        *p = '\0';
        bool ok = file_mkdir(part, mode, err);
        *p = '/';
        if (!ok)
            return false;
    }
    return file_mkdir(path, mode, err);
}

bool file_mkdir_private(const char *path, Err *err)
{
    struct stat st;
    if (!file_mkdir(path, 0700, err))
        return false;
    if (lstat(path, &st) != 0)
        return err_errno(err, errno, "%s", path);
    if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & 077) != 0)
        return err_set(err, ERR_FORBIDDEN, "%s is not a folder of ours alone; HINT: remove it", path);
    return true;
}

bool file_fsync_dir(const char *path, Err *err)
{
    cleanup_close int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return err_errno(err, errno, "cannot open the folder %s", path);
    if (fsync(fd) != 0)
        return err_errno(err, errno, "cannot make the folder %s durable", path);
    return true;
}

bool file_rename(const char *from, const char *to, Err *err)
{
    if (rename(from, to) != 0)
        return err_errno(err, errno, "cannot rename %s to %s", from, to);
    return true;
}

bool file_link(const char *from, const char *to, Err *err)
{
    if (link(from, to) != 0)
        return err_errno(err, errno, "cannot link %s to %s", from, to);
    return true;
}

bool file_unlink(const char *path, Err *err)
{
    if (unlink(path) != 0 && errno != ENOENT)
        return err_errno(err, errno, "cannot remove %s", path);
    return true;
}

bool file_realpath(const char *path, char **ret_path, Err *err)
{
    char *real = realpath(path, NULL);
    if (!real)
        return err_errno(err, errno, "cannot find %s", path);
    *ret_path = real;
    return true;
}

char *file_join(const char *folder, const char *name, Err *err)
{
    size_t n = strlen(folder);
    return mem_printf(err, "%s%s%s", folder, n == 0 || folder[n - 1] == '/' ? "" : "/", name);
}

bool file_space(const char *path, uint64_t *ret_free, uint64_t *ret_total, Err *err)
{
    struct statvfs v;
    if (statvfs(path, &v) != 0)
        return err_errno(err, errno, "cannot ask for the space of %s", path);
    // What is kept for root counts neither as free nor as ours, as df has it.
    uint64_t reserved = v.f_bfree > v.f_bavail ? v.f_bfree - v.f_bavail : 0;
    uint64_t mine = v.f_blocks > reserved ? v.f_blocks - reserved : 0, free_bytes, total;
    if (!mul_u64(v.f_bavail, v.f_frsize, &free_bytes) || !mul_u64(mine, v.f_frsize, &total))
        return err_set(err, ERR_IO, "the filesystem of %s reports a size above 64 bits", path);
    *ret_free = free_bytes;
    *ret_total = total;
    return true;
}

bool file_lock(const char *path, int *ret_fd, Err *err)
{
    for (;;) {
        cleanup_close int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NOCTTY, 0600);
        if (fd < 0)
            return err_errno(err, errno, "cannot open the lock %s", path);
        int r;
        do
            r = flock(fd, LOCK_EX | LOCK_NB);
        while (r != 0 && errno == EINTR);
        if (r != 0 && errno == EWOULDBLOCK)
            return err_set(err, ERR_BUSY, "%s is locked by another process", path);
        if (r != 0)
            return err_errno(err, errno, "cannot lock %s", path);
        // Somebody may have removed the file between open and lock: then two would hold "the" lock.
        struct stat mine, named;
        if (fstat(fd, &mine) != 0)
            return err_errno(err, errno, "cannot look at the lock %s", path);
        if (stat(path, &named) == 0 && mine.st_dev == named.st_dev && mine.st_ino == named.st_ino) {
            *ret_fd = mem_take_fd(&fd);
            return true;
        }
    }
}

bool file_lock_place(const char *path, unsigned n, int *ret_fd, Err *err)
{
    cleanup_close int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NOCTTY, 0600);
    if (fd < 0)
        return err_errno(err, errno, "cannot open the lock %s", path);
    for (unsigned i = 0; i < n; i++) {
        struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)i, .l_len = 1};
        if (fcntl(fd, F_OFD_SETLK, &lock) == 0) {
            *ret_fd = mem_take_fd(&fd);
            return true;
        }
        if (errno != EAGAIN && errno != EACCES)
            return err_errno(err, errno, "cannot lock %s", path);
    }
    return err_set(err, ERR_BUSY, "all %u places of %s are taken", n, path);
}

bool file_bytes_are_free(int fd, const char *path, Err *err)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    if (fcntl(fd, F_OFD_GETLK, &lock) != 0)
        return err_errno(err, errno, "the locks of %s", path);
    if (lock.l_type == F_UNLCK)
        return true;
    // QEMU's are the bytes from 100 and from 200 on
    bool qemu = lock.l_start >= 100 && lock.l_start < 300;
    return err_set(err, ERR_BUSY, "%s is locked by %s; stop it first", path,
                   qemu ? "a running QEMU" : "another process");
}

bool file_lock_bytes(int fd, const char *path, Err *err)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    while (fcntl(fd, F_OFD_SETLK, &lock) != 0) {
        if (errno != EAGAIN && errno != EACCES)
            return err_errno(err, errno, "cannot lock %s", path);
        if (!file_bytes_are_free(fd, path, err))
            return false;
    }
    return true;
}

void file_unlock_bytes(int fd)
{
    struct flock lock = {.l_type = F_UNLCK, .l_whence = SEEK_SET};
    (void)fcntl(fd, F_OFD_SETLK, &lock); // closing it does the same
}
