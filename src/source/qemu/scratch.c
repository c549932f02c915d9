#include "source/qemu/scratch.h"

#include "base/file.h"
#include "base/proc.h"
#include "base/uuid.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define CREATE_MS 30000
#define SAID_MAX 4096
#define SERVED_S 5
#define BACKLOG 64
#define LOW_PART 20 // of the file system
#define LOW_MIN (UINT64_C(16) << 20)
#define LOW_MAX (UINT64_C(2) << 30)
#define NEED_PART 10 // of a disk
#define NEED_MAX (UINT64_C(8) << 30)

static bool open_below(const char *base, const char *name, bool make, Scratch *ret, Err *err)
{
    Scratch s = SCRATCH_NONE;
    if (!base)
        base = SCRATCH_DEFAULT;
    if (!file_is_dir(base))
        return err_set(err, ERR_NOT_FOUND, "the scratch folder %s is not there", base);
    s.folder = mem_printf(err, "%s/sendense-scratch-%u", base, (unsigned)geteuid());
    s.socket = s.folder ? mem_printf(err, "%s/%s", s.folder, name) : NULL;
    bool ok = s.socket &&
        (make || file_exists(s.folder) || err_set(err, ERR_NOT_FOUND, "the folder %s is not there", s.folder)) &&
        file_mkdir_private(s.folder, err);
    if (!ok) {
        scratch_clear(&s);
        return false;
    }
    *ret = s;
    return true;
}

bool scratch_open(const char *base, const char *name, Scratch *ret, Err *err)
{
    return open_below(base, name, true, ret, err);
}

bool scratch_find(const char *base, const char *name, Scratch *ret, Err *err)
{
    return open_below(base, name, false, ret, err);
}

bool scratch_image(const Scratch *s, uint64_t size, int *ret_fd, Err *err)
{
    char nonce[UUID_TEXT], bytes[24];
    cleanup_free char *path = NULL, *said = NULL;
    if (!uuid_new(nonce, err))
        return false;
    path = mem_printf(err, "%s/%s", s->folder, nonce);
    if (!path)
        return false;
    (void)snprintf(bytes, sizeof(bytes), "%" PRIu64, size);
    const char *argv[] = {"qemu-img", "create", "-q", "-f", "qcow2", path, bytes, NULL};
    int status = 0, fd = -1;
    bool ok = proc_run(argv, NULL, CREATE_MS, SAID_MAX, NULL, &said, &status, err);
    if (ok && status != 0)
        ok = err_set(err, ERR_IO, "qemu-img could not create a scratch image: %s", said);
    if (ok) {
        fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
        ok = fd >= 0 || err_errno(err, errno, "%s", path);
    }
    (void)unlink(path); // may not have come to be
    if (!ok)
        return false;
    *ret_fd = fd;
    return true;
}

// A unix socket's path is short, the folder's may be long: it is reached through a descriptor.
static bool address(int folder, const char *path, struct sockaddr_un *sa)
{
    *sa = (struct sockaddr_un){.sun_family = AF_UNIX};
    int n = snprintf(sa->sun_path, sizeof(sa->sun_path), "/proc/self/fd/%d/%s", folder, strrchr(path, '/') + 1);
    return n > 0 && (size_t)n < sizeof(sa->sun_path);
}

static int open_folder(const Scratch *s)
{
    return open(s->folder, O_PATH | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
}

bool scratch_listen(Scratch *s, int *ret_fd, Err *err)
{
    struct sockaddr_un sa;
    struct stat st;
    cleanup_close int folder = open_folder(s);
    cleanup_close int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    scratch_unlink(s);
    if (folder < 0 || fd < 0 || !address(folder, s->socket, &sa) || bind(fd, (struct sockaddr *)&sa, sizeof(sa)) != 0 ||
        listen(fd, BACKLOG) != 0)
        return err_errno(err, errno, "a listening socket at %s", s->socket);
    int name = open(sa.sun_path, O_PATH | O_CLOEXEC | O_NOFOLLOW);
    if (name < 0 || fstat(name, &st) != 0) {
        mem_cleanup_close(&name);
        return err_errno(err, errno, "%s", s->socket);
    }
    s->socket_fd = name;
    s->dev = st.st_dev;
    s->ino = st.st_ino;
    (void)snprintf(s->connect, sizeof(s->connect), "/proc/self/fd/%d", name);
    *ret_fd = mem_take_fd(&fd);
    return true;
}

bool scratch_is_served(const Scratch *s)
{
    struct sockaddr_un sa;
    cleanup_close int folder = open_folder(s);
    cleanup_close int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const struct timeval limit = {.tv_sec = SERVED_S};
    char greeting[8]; // doc/proto.md of NBD: a server speaks first
    return folder >= 0 && fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)) == 0 &&
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) == 0 && address(folder, s->socket, &sa) &&
        TEMP_FAILURE_RETRY(connect(fd, (struct sockaddr *)&sa, sizeof(sa))) == 0 &&
        TEMP_FAILURE_RETRY(recv(fd, greeting, sizeof(greeting), MSG_WAITALL)) == sizeof(greeting) &&
        memcmp(greeting, "NBDMAGIC", sizeof(greeting)) == 0;
}

bool scratch_is_same(const Scratch *s)
{
    struct stat st;
    return lstat(s->socket, &st) == 0 && st.st_dev == s->dev && st.st_ino == s->ino;
}

void scratch_unlink(const Scratch *s)
{
    (void)unlink(s->socket); // fine if it is gone
}

uint64_t scratch_low_water(uint64_t filesystem_bytes)
{
    return MIN(MAX(filesystem_bytes / LOW_PART, LOW_MIN), LOW_MAX);
}

uint64_t scratch_need(uint64_t filesystem_bytes, const uint64_t *sizes, size_t n)
{
    uint64_t need = scratch_low_water(filesystem_bytes);
    for (size_t i = 0; i < n; i++)
        need += MIN(sizes[i] / NEED_PART, NEED_MAX);
    return need;
}

void scratch_clear(Scratch *s)
{
    free(s->folder);
    free(s->socket);
    mem_cleanup_close(&s->socket_fd);
    *s = SCRATCH_NONE;
}
