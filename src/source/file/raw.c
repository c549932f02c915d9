#include "source/file/raw.h"

#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/eventfd.h>
#include <sys/vfs.h>
#include <unistd.h>

#define MAX_REQUEST (32u << 20)
#define MAX_IN_FLIGHT 16
#define ZFS_MAGIC 0x2fc12fc1 // no header has it

typedef struct RawRead {
    void *buffer;
    uint64_t offset;
    uint32_t length;
    BlocksReq *req;
} RawRead;

// Reads are queued, and done one in each dispatch(): the pipeline hands on what was read before it waits for the next
// piece of the disk, and sees a cancel in between.
typedef struct RawBlocks {
    Blocks blocks; // first
    const FileLayer *layer;
    bool holes; // the filesystem tells of them, and can be believed
    RawRead queue[MAX_IN_FLIGHT]; // a ring
    size_t first, len;
    int wake; // eventfd: the queue is not empty
} RawBlocks;

static bool raw_read(Blocks *b, void *p, uint64_t offset, uint32_t length, BlocksReq *req, Err *err)
{
    RawBlocks *r = (RawBlocks *)b;
    if (length == 0 || length > MAX_REQUEST || offset > b->size || length > b->size - offset)
        return err_set(err, ERR_INVALID, "%" PRIu32 " bytes at %" PRIu64 " of %s", length, offset, r->layer->path);
    if (r->len == MAX_IN_FLIGHT)
        return err_set(err, ERR_INTERNAL, "more than %d reads in flight", MAX_IN_FLIGHT);
    if (r->len == 0 && eventfd_write(r->wake, 1) != 0)
        return err_errno(err, errno, "eventfd");
    r->queue[(r->first + r->len++) % MAX_IN_FLIGHT] =
        (RawRead){.buffer = p, .offset = offset, .length = length, .req = req};
    return true;
}

static RawRead take(RawBlocks *r)
{
    RawRead next = r->queue[r->first];
    r->first = (r->first + 1) % MAX_IN_FLIGHT;
    eventfd_t woken;
    if (--r->len == 0)
        (void)eventfd_read(r->wake, &woken); // it was written to
    return next;
}

static size_t raw_fds(Blocks *b, struct pollfd *fds)
{
    fds[0] = (struct pollfd){.fd = ((RawBlocks *)b)->wake, .events = POLLIN};
    return 1;
}

static bool raw_dispatch(Blocks *b, const struct pollfd *fds, size_t n, Err *err)
{
    (void)fds;
    (void)n;
    (void)err; // a read's error is the request's
    RawBlocks *r = (RawBlocks *)b;
    if (r->len == 0)
        return true;
    RawRead next = take(r);
    Err failed = ERR_INIT;
    if (!file_pread(r->layer->fd, next.buffer, next.length, next.offset, &failed)) {
        if (failed.code == ERR_DAMAGED) { // its end
            err_clear(&failed);
            (void)err_set(&failed, ERR_CONFLICT, "the file became shorter during the backup");
        }
        (void)err_context(&failed, "%s", r->layer->path);
    }
    next.req->done(next.req, failed.code == ERR_NONE ? NULL : &failed);
    return true;
}

// Where the next data, or the next hole, begins; not beyond end.
static bool seek(const RawBlocks *r, uint64_t from, uint64_t end, int whence, uint64_t *ret, Err *err)
{
    off_t at = lseek(r->layer->fd, (off_t)from, whence);
    if (at < 0 && errno != ENXIO) // ENXIO: nothing but a hole up to the end
        return err_errno(err, errno, "the map of %s", r->layer->path);
    *ret = at < 0 ? end : MIN((uint64_t)at, end);
    return true;
}

static bool raw_extents(Blocks *b, uint64_t offset, uint64_t length, ExtentVec *changed, ExtentVec *zeros, Err *err)
{
    (void)changed; // nothing tracks a file's changes
    const RawBlocks *r = (const RawBlocks *)b;
    if (offset > b->size || length > b->size - offset)
        return err_set(err, ERR_INVALID, "%" PRIu64 " bytes at %" PRIu64 " of %s", length, offset, r->layer->path);
    if (!r->holes)
        return true;
    uint64_t end = offset + length;
    for (uint64_t at = offset, data = offset; at < end;) {
        if (!seek(r, at, end, SEEK_DATA, &data, err))
            return false;
        if (data > at && !extent_vec_push(zeros, (Extent){.offset = at, .length = data - at, .zero = true}, err))
            return false;
        at = data;
        if (at < end && !seek(r, at, end, SEEK_HOLE, &at, err))
            return false;
    }
    return true;
}

static void raw_abort(Blocks *b)
{
    RawBlocks *r = (RawBlocks *)b;
    Err err = ERR_INIT;
    (void)err_set(&err, ERR_CANCELLED, "aborted");
    while (r->len > 0) {
        RawRead next = take(r);
        next.req->done(next.req, &err);
    }
}

static void raw_free(Blocks *b)
{
    RawBlocks *r = (RawBlocks *)b;
    mem_cleanup_close(&r->wake);
    free(r);
}

static const BlocksOps raw_ops = {
    .name = "file",
    .read = raw_read,
    .extents = raw_extents,
    .fds = raw_fds,
    .dispatch = raw_dispatch,
    .abort = raw_abort,
    .free = raw_free,
};

// ZFS has given data that had just been written for a hole, in more than one version; zeros in its place would be a
// point that restores to something else. https://github.com/openzfs/zfs/issues/15526 and 15933
static bool holes_can_be_believed(int fd)
{
    struct statfs fs;
    return fstatfs(fd, &fs) == 0 && (uint64_t)fs.f_type != ZFS_MAGIC;
}

bool file_raw_open(const FileLayer *layer, Blocks **ret, Err *err)
{
    RawBlocks *r = mem_calloc(1, sizeof(*r), err);
    if (!r)
        return false;
    r->blocks =
        (Blocks){.ops = &raw_ops, .size = layer->size, .max_request = MAX_REQUEST, .max_in_flight = MAX_IN_FLIGHT};
    r->layer = layer;
    r->holes = !layer->device && holes_can_be_believed(layer->fd);
    r->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (r->wake < 0) {
        free(r);
        return err_errno(err, errno, "eventfd");
    }
    (void)posix_fadvise(layer->fd, 0, 0, POSIX_FADV_SEQUENTIAL); // a hint: read further ahead
    *ret = &r->blocks;
    return true;
}
