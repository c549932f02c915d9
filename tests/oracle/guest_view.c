// What a source sees of a guest's disk: the frozen view, and the line of bitmaps as the product's rules follow it.
#include "guest.h"

#include "base/str.h"

#include <stdio.h>

static bool resolve(GuestDisk *d, const BitmapsOwner *owner, const GuestParent *parent, Line *ret, Err *err)
{
    char fresh[UUID_TEXT];
    json_t *nodes = tracker_describe(&d->tracker);
    if (!nodes)
        return err_no_memory(err);
    cleanup(bitmap_vec_clear) BitmapVec all = {0};
    bool ok = uuid_new(fresh, err) && bitmaps_collect(nodes, owner, &all, err);
    if (ok) {
        LineInput in = {.all = &all,
                        .node = d->tracker.node,
                        .parent_change_id = parent->change_id,
                        .parent_tracking = parent->tracking,
                        .size = d->size,
                        .parent_size = parent->size,
                        .fresh = fresh};
        bitmaps_resolve(&in, ret);
    }
    json_decref(nodes);
    return ok;
}

// The line's bitmaps from the parent's on, merged.
static bool merge(GuestDisk *d, const BitmapsOwner *owner, const Line *line, GuestFault fault, GuestView *v, Err *err)
{
    char name[BITMAPS_NAME];
    size_t granules = (size_t)((d->size + d->tracker.granularity - 1) / d->tracker.granularity);
    v->granularity = d->tracker.granularity;
    v->changed = mem_calloc(granules, 1, err);
    if (!v->changed)
        return false;
    for (size_t i = fault == GUEST_FAULT_GAP && line->len > 1; i < line->len; i++) {
        bitmaps_name(owner, line->uuid, line->bitmaps[i], name);
        const TrackerBitmap *b = tracker_find(&d->tracker, name);
        if (!b || b->granules != granules)
            return err_set(err, ERR_INTERNAL, "the line was said to be whole, and %s is not there", name);
        for (size_t g = 0; g < granules; g++)
            v->changed[g] |= b->bits[g];
    }
    return true;
}

// In the instant of the view: the new bitmap begins, the one before it ends.
static bool begin_bitmap(GuestDisk *d, const BitmapsOwner *owner, const Line *line, Err *err)
{
    char name[BITMAPS_NAME];
    if (line->tracked) {
        bitmaps_name(owner, line->uuid, line->bitmaps[line->len - 1], name);
        tracker_find(&d->tracker, name)->recording = false;
    } else {
        bitmaps_name(owner, line->uuid, 0, name); // the witness
        if (!tracker_add(&d->tracker, name, false, err))
            return false;
        TrackerBitmap *b = tracker_find(&d->tracker, name);
        b->bits[b->granules - 1] = 1;
    }
    bitmaps_name(owner, line->uuid, line->next, name);
    return tracker_add(&d->tracker, name, true, err);
}

static bool follow_changes(GuestDisk *d, const BitmapsOwner *owner, const GuestParent *parent, GuestFault fault,
                           GuestView *v, Err *err)
{
    Line line;
    if (!resolve(d, owner, parent, &line, err))
        return false;
    if (line.tracked) {
        (void)snprintf(v->base_change_id, sizeof v->base_change_id, "%s", parent->change_id);
        if (!merge(d, owner, &line, fault, v, err))
            return false;
    }
    (void)snprintf(v->lost, sizeof v->lost, "%s", line.lost);
    return begin_bitmap(d, owner, &line, err) && changeid_mint(line.uuid, line.next, v->change_id, err);
}

bool guest_freeze(GuestDisk *d, const BitmapsOwner *owner, const GuestParent *parent, GuestFault fault, GuestView *ret,
                  Err *err)
{
    char uuid[UUID_TEXT];
    GuestView v = {.size = d->size};
    v.bytes = mem_calloc(1, d->size, err);
    v.map = mem_calloc(1, guest_sectors(d->size), err);
    bool ok = v.bytes && v.map;
    if (ok) {
        memcpy(v.bytes, d->bytes, d->size);
        memcpy(v.map, d->map, guest_sectors(d->size));
        ok = d->tracks ? follow_changes(d, owner, parent, fault, &v, err)
                       : uuid_new(uuid, err) && changeid_mint(uuid, 1, v.change_id, err);
    }
    if (!ok) {
        guest_view_clear(&v);
        return err_context(err, "freezing %s", d->key);
    }
    *ret = v;
    return true;
}

void guest_view_clear(GuestView *v)
{
    free(v->bytes);
    free(v->map);
    free(v->changed);
    *v = (GuestView){0};
}

void guest_settle(GuestDisk *d, const BitmapsOwner *owner, const char *change_id)
{
    Err err = ERR_INIT;
    char line[UUID_TEXT];
    uint64_t sequence;
    json_t *nodes = tracker_describe(&d->tracker);
    cleanup(bitmap_vec_clear) BitmapVec all = {0};
    // Left where it is: bitmaps that stay do no harm
    if (nodes && changeid_parse(change_id, line, &sequence, &err) && bitmaps_collect(nodes, owner, &all, &err))
        for (size_t i = 0; i < all.len; i++) {
            const Bitmap *b = &all.items[i];
            if (!str_eq(b->line, line) || (b->sequence != 0 && b->sequence < sequence))
                tracker_remove(&d->tracker, b->node, b->name);
        }
    json_decref(nodes);
}
