#include "mover/sink_image.h"

#include "base/file.h"
#include "image/writer.h"
#include "mover/sink_path.h"

#include <unistd.h>

#define MAX_REQUEST (32u << 20)
#define MAX_IN_FLIGHT 16

typedef struct SinkImage {
    Blocks blocks; // first
    Writer *writer;
    SinkPath target;
    char *hashes; // the writer makes them; a restored image has no use for them
} SinkImage;

static bool image_write(Blocks *b, const void *p, uint64_t offset, uint32_t length, BlocksReq *req, Err *err)
{
    if (!writer_write(((SinkImage *)b)->writer, p, offset, length, err))
        return false;
    req->done(req, NULL);
    return true;
}

static bool image_zero(Blocks *b, uint64_t offset, uint64_t length, BlocksReq *req, Err *err)
{
    if (!writer_zero(((SinkImage *)b)->writer, offset, length, err))
        return false;
    req->done(req, NULL);
    return true;
}

static bool image_flush(Blocks *b, BlocksReq *req, Err *err)
{
    if (!writer_flush(((SinkImage *)b)->writer, err))
        return false;
    req->done(req, NULL);
    return true;
}

static void image_free(Blocks *b)
{
    SinkImage *s = (SinkImage *)b;
    writer_free(s->writer);
    if (s->hashes)
        (void)unlink(s->hashes); // nothing more can be done about a rest
    free(s->hashes);
    sink_path_clear(&s->target);
    free(s);
}

static const BlocksOps image_ops = {
    .name = "qcow2",
    .write = image_write,
    .zero = image_zero,
    .flush = image_flush,
    .free = image_free,
};

bool sink_image_open(const SinkImageSpec *spec, Blocks **ret, Err *err)
{
    SinkImage *s = mem_calloc(1, sizeof(*s), err);
    if (!s)
        return false;
    s->blocks =
        (Blocks){.ops = &image_ops, .size = spec->size, .max_request = MAX_REQUEST, .max_in_flight = MAX_IN_FLIGHT};
    s->target = SINK_PATH_NONE;
    bool fine = sink_path_open(spec->path, spec->replace, &s->target, err);
    s->hashes = fine ? mem_printf(err, "%s.hashes", s->target.partial) : NULL;
    if (s->hashes) {
        WriterSpec writer = {
            .image_path = s->target.partial,
            .image_is_there = true,
            .hashes_path = s->hashes,
            .size = spec->size,
            .cluster_bits = (uint32_t)__builtin_ctz(spec->cluster_size),
            .mode = DISK_FULL,
            .direct_io = true,
        };
        // A restore that was killed while it sealed left its own
        fine = file_unlink(s->hashes, err) && writer_open(&writer, &s->writer, err);
    }
    if (!fine || !s->writer) {
        image_free(&s->blocks);
        return false;
    }
    *ret = &s->blocks;
    return true;
}

bool sink_image_finish(Blocks *b, Err *err)
{
    SinkImage *s = (SinkImage *)b;
    HashesSummary summary;
    Hash digest;
    if (!writer_seal(s->writer, NULL, &summary, &digest, err) || !file_unlink(s->hashes, err))
        return false;
    free(mem_take(s->hashes)); // from here on the name may be another restore's
    return sink_path_commit(&s->target, err);
}
