#include "world.h"

#include "base/file.h"
#include "base/str.h"
#include "base/uuid.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

static struct {
    Rng rng;
    bool armed, dead;
    unsigned left;
} world;

bool __real_file_create_durable(const char *path, const void *p, size_t n, mode_t mode, Err *err);
bool __real_file_link(const char *from, const char *to, Err *err);
bool __real_file_rename(const char *from, const char *to, Err *err);
bool __real_file_unlink(const char *path, Err *err);
bool __real_file_fsync_dir(const char *path, Err *err);
bool __real_file_pwrite(int fd, const void *p, size_t n, uint64_t offset, Err *err);
bool __wrap_file_create_durable(const char *path, const void *p, size_t n, mode_t mode, Err *err);
bool __wrap_file_link(const char *from, const char *to, Err *err);
bool __wrap_file_rename(const char *from, const char *to, Err *err);
bool __wrap_file_unlink(const char *path, Err *err);
bool __wrap_file_fsync_dir(const char *path, Err *err);
bool __wrap_file_pwrite(int fd, const void *p, size_t n, uint64_t offset, Err *err);
int __wrap_fsync(int fd);
int __wrap_fdatasync(int fd);
bool __wrap_uuid_new(char out[UUID_TEXT], Err *err);
bool __wrap_uuid_random_bytes(void *p, size_t n, Err *err);

void world_seed(uint64_t seed)
{
    world.rng.state = seed;
    world_revive();
}

void world_kill_at(unsigned n)
{
    world.armed = true;
    world.dead = false;
    world.left = n;
}

bool world_is_dead(void)
{
    return world.dead;
}

void world_revive(void)
{
    world.armed = world.dead = false;
}

// False: this call does not happen. *ret_last: it is the one in whose middle the process dies.
static bool alive(bool *ret_last)
{
    *ret_last = world.armed && !world.dead && world.left == 0;
    if (!world.armed)
        return true;
    if (*ret_last)
        world.dead = true;
    else if (!world.dead)
        world.left--;
    return !world.dead;
}

static bool died(Err *err)
{
    return err_set(err, ERR_IO, "the oracle ended the process here");
}

bool __wrap_file_create_durable(const char *path, const void *p, size_t n, mode_t mode, Err *err)
{
    bool last;
    if (alive(&last))
        return __real_file_create_durable(path, p, n, mode, err);
    if (last) { // half of it came to the disk
        int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
        ssize_t half = fd >= 0 ? write(fd, p, n / 2) : 0;
        (void)half; // or less: as good
        if (fd >= 0)
            (void)close(fd);
    }
    return died(err);
}

bool __wrap_file_link(const char *from, const char *to, Err *err)
{
    bool last;
    return alive(&last) ? __real_file_link(from, to, err) : died(err);
}

bool __wrap_file_rename(const char *from, const char *to, Err *err)
{
    bool last;
    return alive(&last) ? __real_file_rename(from, to, err) : died(err);
}

bool __wrap_file_unlink(const char *path, Err *err)
{
    bool last;
    return alive(&last) ? __real_file_unlink(path, err) : died(err);
}

bool __wrap_file_fsync_dir(const char *path, Err *err)
{
    bool last;
    (void)path;
    return alive(&last) ? true : died(err);
}

bool __wrap_file_pwrite(int fd, const void *p, size_t n, uint64_t offset, Err *err)
{
    bool last;
    if (alive(&last))
        return __real_file_pwrite(fd, p, n, offset, err);
    Err half = ERR_INIT; // whether half of it comes to the disk or not, the process is gone
    if (last)
        (void)!__real_file_pwrite(fd, p, n / 2 / 4096 * 4096, offset, &half);
    return died(err);
}

static int sync_or_die(void)
{
    bool last;
    if (alive(&last))
        return 0;
    errno = EIO;
    return -1;
}

int __wrap_fsync(int fd)
{
    (void)fd;
    return sync_or_die();
}

int __wrap_fdatasync(int fd)
{
    (void)fd;
    return sync_or_die();
}

bool __wrap_uuid_random_bytes(void *p, size_t n, Err *err)
{
    (void)err;
    rng_fill(&world.rng, p, n);
    return true;
}

bool __wrap_uuid_new(char out[UUID_TEXT], Err *err)
{
    uint8_t b[16];
    char hex[33];
    (void)err;
    rng_fill(&world.rng, b, sizeof b);
    b[6] = (uint8_t)((b[6] & 0x0f) | 0x40); // version 4
    b[8] = (uint8_t)((b[8] & 0x3f) | 0x80);
    str_hex(b, sizeof b, hex);
    for (size_t i = 0, from = 0; i < UUID_TEXT - 1; i++)
        out[i] = i == 8 || i == 13 || i == 18 || i == 23 ? '-' : hex[from++];
    out[UUID_TEXT - 1] = '\0';
    return true;
}
