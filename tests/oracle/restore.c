// A restore as the product does it: the reader as the source of a copy, and each of the sinks.
#include "check.h"

#include "base/file.h"
#include "mover/mover.h"
#include "mover/sink_file.h"
#include "mover/sink_hasher.h"
#include "mover/sink_image.h"

#include <unistd.h>

typedef struct PointEnd {
    Blocks blocks;
    Reader *reader;
} PointEnd;

static bool point_read(Blocks *b, void *p, uint64_t offset, uint32_t length, BlocksReq *req, Err *err)
{
    if (!reader_read(((PointEnd *)b)->reader, p, offset, length, err))
        return false;
    req->done(req, NULL);
    return true;
}

static bool point_extents(Blocks *b, uint64_t offset, uint64_t length, ExtentVec *changed, ExtentVec *zeros, Err *err)
{
    cleanup(extent_vec_clear) ExtentVec all = {0};
    (void)changed;
    if (!reader_extents(((PointEnd *)b)->reader, offset, length, &all, err))
        return false;
    for (size_t i = 0; i < all.len; i++)
        if (all.items[i].zero && !extent_vec_push(zeros, all.items[i], err))
            return false;
    return true;
}

static void point_abort(Blocks *b)
{
    (void)b; // nothing is ever in flight
}

static const BlocksOps point_ops = {
    .name = "point",
    .read = point_read,
    .extents = point_extents,
    .abort = point_abort,
};

static bool copy(History *h, Reader *r, Blocks *to, Err *err)
{
    PointEnd from = {.blocks = {.ops = &point_ops, .size = reader_size(r), .max_request = 1u << 22, .max_in_flight = 4},
                     .reader = r};
    MoverSpec spec = {.from = &from.blocks,
                      .to = to,
                      .size = reader_size(r),
                      .cluster_size = h->site->repo.info.cluster_size,
                      .plan = MOVER_ALL,
                      .in_flight = (unsigned)rng_between(&h->check_rng, 1, 4)};
    MoverResult result;
    return mover_copy(&spec, &result, err);
}

static bool to_hasher(History *h, Reader *r, const Reference *ref, Err *err)
{
    cleanup_blocks Blocks *to = NULL;
    Hash root;
    if (!sink_hasher_open(&h->site->repo.geo, ref->size, &to, err) || !copy(h, r, to, err) ||
        !sink_hasher_root(to, &root, err))
        return false;
    return hash_equal(&root, &ref->root) || history_fail(err, "the root hash of what is restored is not the disk's");
}

static bool to_file(History *h, Reader *r, const Reference *ref, const char *path, Err *err)
{
    cleanup_blocks Blocks *to = NULL;
    cleanup_free char *bytes = NULL;
    SinkFileSpec spec = {.path = path, .size = ref->size};
    size_t n;
    if (!sink_file_open(&spec, &to, err) || !copy(h, r, to, err) || !sink_file_finish(to, err) ||
        !file_read(path, 1u << 30, &bytes, &n, err))
        return false;
    return (n == ref->size && memcmp(bytes, ref->bytes, n) == 0) ||
        history_fail(err, "the restored file is not the disk");
}

static bool to_image(History *h, Reader *r, const Reference *ref, const char *path, Err *err)
{
    cleanup_blocks Blocks *to = NULL;
    SinkImageSpec spec = {.path = path, .size = ref->size, .cluster_size = h->site->repo.info.cluster_size};
    return sink_image_open(&spec, &to, err) && copy(h, r, to, err) && sink_image_finish(to, err) &&
        check_by_qemu(h, path, ref, err);
}

bool restore_check(History *h, Reader *r, const Reference *ref, Err *err)
{
    cleanup_free char *path = mem_printf(err, "%s/restored", h->spec->folder);
    if (!path)
        return false;
    bool ok;
    switch (rng_below(&h->check_rng, 3)) {
    case 0: ok = to_hasher(h, r, ref, err); break;
    case 1: ok = to_file(h, r, ref, path, err); break;
    default: ok = to_image(h, r, ref, path, err);
    }
    (void)unlink(path);
    h->spec->stats->restores++;
    return ok || err_context(err, "restore");
}
