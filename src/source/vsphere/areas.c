#include "source/vsphere/parts.h"

#include <inttypes.h>

// One answer of QueryChangedDiskAreas at a time: windows are asked for in ascending order, and the answer that a window
// ends in serves the next one as well.
typedef struct Areas {
    Blocks b; // first
    VsphereSource *v;
    const VimDisk *disk;
    char *change_id;
    ExtentVec page;      // what the newest answer named
    uint64_t from, next; // the part of the disk that it is about
} Areas;

static bool on_area(void *ctx, uint64_t offset, uint64_t length, Err *err)
{
    ExtentVec *page = ctx;
    return extent_vec_push(page, (Extent){.offset = offset, .length = length}, err);
}

static bool ask_once(Areas *a, uint64_t start, Err *err)
{
    a->page.len = 0;
    a->from = a->next = start;
    pthread_mutex_lock(&a->v->lock);
    bool ok = vim_changed_areas(a->v->vim, a->v->moref, a->v->snapshot, a->disk, start, a->change_id, on_area, &a->page,
                                &a->next, err);
    pthread_mutex_unlock(&a->v->lock);
    return ok;
}

static bool ask(Areas *a, uint64_t start, Err *err)
{
    bool ok = ask_once(a, start, err);
    if (!ok && err->code == ERR_UNAVAILABLE) { // an answer that broke off is not asked for again below
        err_clear(err);
        ok = ask_once(a, start, err);
    }
    if (!ok)
        return err_context(err, "changed areas of disk %" PRId32 " from %" PRIu64 " on", a->disk->key, start);
    return a->next > start || err_set(err, ERR_PROTOCOL, "the answer on changed areas does not get on");
}

static bool areas_extents(Blocks *b, uint64_t offset, uint64_t length, ExtentVec *changed, ExtentVec *zeros, Err *err)
{
    Areas *a = (Areas *)b;
    (void)zeros; // none is vouched for
    for (uint64_t at = offset, end = offset + length; at < end; at = MIN(end, a->next)) {
        if ((at < a->from || at >= a->next) && !ask(a, at, err))
            return false;
        for (size_t i = 0; i < a->page.len; i++) {
            const Extent *e = &a->page.items[i];
            uint64_t from = MAX(at, e->offset), to = MIN(MIN(end, a->next), e->offset + e->length);
            if (from < to && !extent_vec_push(changed, (Extent){.offset = from, .length = to - from}, err))
                return false;
        }
    }
    return true;
}

static void areas_free(Blocks *b)
{
    Areas *a = (Areas *)b;
    extent_vec_clear(&a->page);
    free(a->change_id);
    free(a);
}

static const BlocksOps areas_ops = {.name = "changed areas", .extents = areas_extents, .free = areas_free};

bool vsphere_areas_open(VsphereSource *v, size_t disk, const char *change_id, Blocks **ret, Err *err)
{
    Areas *a = mem_calloc(1, sizeof(*a), err);
    if (!a)
        return false;
    a->v = v;
    a->disk = &v->disks[disk].disk;
    a->b = (Blocks){.ops = &areas_ops, .size = a->disk->capacity};
    a->change_id = mem_strdup(change_id, err);
    if (!a->change_id) {
        free(a);
        return false;
    }
    *ret = &a->b;
    return true;
}

static bool add_up(void *ctx, uint64_t offset, uint64_t length, Err *err)
{
    uint64_t *bytes = ctx;
    (void)offset;
    return add_u64(*bytes, length, bytes) || err_set(err, ERR_PROTOCOL, "areas out of range");
}

bool vsphere_areas_probe(VsphereSource *v, const VimDisk *d, const char *change_id, uint64_t *ret_bytes, Err *err)
{
    uint64_t bytes = 0, next = 0;
    if (!vim_changed_areas(v->vim, v->moref, v->snapshot, d, 0, change_id, add_up, &bytes, &next, err))
        return false;
    // the first answer's share of the disk stands for the rest
    *ret_bytes = next >= d->capacity ? bytes : MIN(d->capacity, bytes / MAX(1, next >> 20) * (d->capacity >> 20));
    return true;
}
