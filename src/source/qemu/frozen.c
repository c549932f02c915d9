#include "source/qemu/parts.h"

typedef struct Frozen {
    Blocks b;
    Blocks *inner;
    QemuSource *view;
    bool with_changes;
} Frozen;

static Frozen *of(Blocks *b)
{
    return (Frozen *)b;
}

static bool frozen_read(Blocks *b, void *p, uint64_t offset, uint32_t length, BlocksReq *req, Err *err)
{
    return !watch_broken(of(b)->view, err) && of(b)->inner->ops->read(of(b)->inner, p, offset, length, req, err);
}

// A disk that shrank within its last granule and grew again keeps the witness's bit, and what a raw disk lost by that
// is in no bitmap (seen): this granule is always taken as dirty.
static bool add_last(uint64_t size, uint64_t offset, uint64_t end, ExtentVec *changed, Err *err)
{
    uint64_t from = MAX(offset, align_down(size - 1, BITMAPS_GRANULARITY));
    if (from >= end)
        return true;
    while (changed->len > 0 && changed->items[changed->len - 1].offset >= from)
        changed->len--;
    Extent *last = changed->len > 0 ? &changed->items[changed->len - 1] : NULL;
    if (last && last->offset + last->length > from)
        last->length = from - last->offset;
    return extent_vec_push(changed, (Extent){.offset = from, .length = end - from}, err);
}

static bool frozen_extents(Blocks *b, uint64_t offset, uint64_t length, ExtentVec *changed, ExtentVec *zeros, Err *err)
{
    return !watch_broken(of(b)->view, err) &&
        of(b)->inner->ops->extents(of(b)->inner, offset, length, changed, zeros, err) &&
        (!of(b)->with_changes || add_last(b->size, offset, offset + length, changed, err));
}

static size_t frozen_fds(Blocks *b, struct pollfd *fds)
{
    return of(b)->inner->ops->fds(of(b)->inner, fds);
}

static bool frozen_dispatch(Blocks *b, const struct pollfd *fds, size_t n, Err *err)
{
    return !watch_broken(of(b)->view, err) && of(b)->inner->ops->dispatch(of(b)->inner, fds, n, err);
}

static void frozen_abort(Blocks *b)
{
    of(b)->inner->ops->abort(of(b)->inner);
}

static void frozen_free(Blocks *b)
{
    blocks_cleanup(&of(b)->inner);
    free(b);
}

static const BlocksOps frozen_ops = {
    .name = "qemu",
    .read = frozen_read,
    .extents = frozen_extents,
    .fds = frozen_fds,
    .dispatch = frozen_dispatch,
    .abort = frozen_abort,
    .free = frozen_free,
};

bool frozen_blocks(QemuSource *v, Blocks *inner, bool with_changes, Blocks **ret, Err *err)
{
    Frozen *f = mem_calloc(1, sizeof(*f), err);
    if (!f) {
        blocks_cleanup(&inner);
        return false;
    }
    f->b = *inner;
    f->b.ops = &frozen_ops;
    f->inner = inner;
    f->view = v;
    f->with_changes = with_changes;
    *ret = &f->b;
    return true;
}
