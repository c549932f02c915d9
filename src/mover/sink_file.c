#include "mover/sink_file.h"

#include "base/file.h"
#include "mover/sink_path.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_REQUEST (32u << 20)
#define MAX_IN_FLIGHT 16
#define WRITE_BEHIND (UINT64_C(32) << 20) // bytes after which the kernel is told to start writing them out

typedef struct SinkFile {
    Blocks blocks; // first
    SinkPath target;
    bool device;
    bool cannot_punch;   // the filesystem or device refused once
    uint64_t written_to; // of a file: beyond it there is only a hole
    uint64_t behind;     // bytes since the last write-out
} SinkFile;

static bool file_write_op(Blocks *b, const void *p, uint64_t offset, uint32_t length, BlocksReq *req, Err *err)
{
    SinkFile *f = (SinkFile *)b;
    if (!file_pwrite(f->target.fd, p, length, offset, err))
        return false;
    f->written_to = MAX(f->written_to, offset + length);
    f->behind += length;
    if (f->behind >= WRITE_BEHIND) {
        f->behind = 0;
        (void)sync_file_range(f->target.fd, 0, 0,
                              SYNC_FILE_RANGE_WRITE); // only a hint; the flush is what counts
    }
    req->done(req, NULL);
    return true;
}

static bool write_zeros(SinkFile *f, uint64_t offset, uint64_t length, Err *err)
{
    static const uint8_t zeros[1 << 16];
    while (length > 0) {
        size_t n = (size_t)MIN(length, sizeof(zeros));
        if (!file_pwrite(f->target.fd, zeros, n, offset, err))
            return false;
        offset += n;
        length -= n;
    }
    return true;
}

static bool make_zero(SinkFile *f, uint64_t offset, uint64_t length, Err *err)
{
    if (!f->device && offset >= f->written_to)
        return true;
    int mode = f->device ? FALLOC_FL_ZERO_RANGE : FALLOC_FL_PUNCH_HOLE;
    if (!f->cannot_punch) {
        if (fallocate(f->target.fd, mode | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length) == 0)
            return true;
        // EINVAL: the device's sector is larger than what is left at the disk's end
        if (errno != EOPNOTSUPP && errno != EINVAL)
            return err_errno(err, errno, "%s", f->target.path);
        f->cannot_punch = errno == EOPNOTSUPP;
    }
    return write_zeros(f, offset, length, err);
}

static bool file_zero_op(Blocks *b, uint64_t offset, uint64_t length, BlocksReq *req, Err *err)
{
    if (!make_zero((SinkFile *)b, offset, length, err))
        return false;
    req->done(req, NULL);
    return true;
}

static bool file_flush_op(Blocks *b, BlocksReq *req, Err *err)
{
    SinkFile *f = (SinkFile *)b;
    if (fsync(f->target.fd) != 0)
        return err_errno(err, errno, "%s cannot be made durable", f->target.path);
    req->done(req, NULL);
    return true;
}

static void file_free_op(Blocks *b)
{
    SinkFile *f = (SinkFile *)b;
    sink_path_clear(&f->target);
    free(f);
}

static const BlocksOps file_ops = {
    .name = "file",
    .write = file_write_op,
    .zero = file_zero_op,
    .flush = file_flush_op,
    .free = file_free_op,
};

static bool open_device(SinkFile *f, const SinkFileSpec *spec, Err *err)
{
    uint64_t bytes;
    if (!spec->replace)
        return err_set(err, ERR_EXISTS, "%s is a block device; force it to overwrite what is on it", spec->path);
    f->device = true;
    if (!sink_path_open_device(spec->path, &f->target, err))
        return false;
    if (ioctl(f->target.fd, BLKGETSIZE64, &bytes) != 0)
        return err_errno(err, errno, "%s", spec->path);
    return bytes >= spec->size ||
        err_set(err, ERR_NO_SPACE, "%s has %llu bytes, the disk %llu", spec->path, (unsigned long long)bytes,
                (unsigned long long)spec->size);
}

static bool open_file(SinkFile *f, const SinkFileSpec *spec, Err *err)
{
    if (!sink_path_open(spec->path, spec->replace, &f->target, err))
        return false;
    return ftruncate(f->target.fd, (off_t)spec->size) == 0 || err_errno(err, errno, "%s", f->target.partial);
}

bool sink_file_open(const SinkFileSpec *spec, Blocks **ret, Err *err)
{
    SinkFile *f = mem_calloc(1, sizeof(*f), err);
    if (!f)
        return false;
    f->target = SINK_PATH_NONE;
    f->blocks =
        (Blocks){.ops = &file_ops, .size = spec->size, .max_request = MAX_REQUEST, .max_in_flight = MAX_IN_FLIGHT};
    struct stat st;
    bool is_device = stat(spec->path, &st) == 0 && S_ISBLK(st.st_mode);
    if (!(is_device ? open_device(f, spec, err) : open_file(f, spec, err))) {
        file_free_op(&f->blocks);
        return false;
    }
    *ret = &f->blocks;
    return true;
}

bool sink_file_finish(Blocks *b, Err *err)
{
    return sink_path_commit(&((SinkFile *)b)->target, err);
}
