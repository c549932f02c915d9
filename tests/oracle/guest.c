#include "guest.h"

#include "base/str.h"
#include "image/hash.h"

#include <stdio.h>

uint64_t guest_sectors(uint64_t size)
{
    return (size + GUEST_SECTOR - 1) / GUEST_SECTOR;
}

bool guest_init(GuestDisk *d, const char *key, uint64_t id, uint64_t size, bool tracks, uint32_t granularity,
                uint64_t cluster_size, Err *err)
{
    *d = (GuestDisk){.id = id, .size = size, .tracks = tracks, .cluster_size = cluster_size};
    (void)snprintf(d->key, sizeof d->key, "%s", key);
    tracker_init(&d->tracker, size, granularity);
    d->bytes = mem_calloc(1, size, err);
    d->map = mem_calloc(1, guest_sectors(size), err);
    if (!d->bytes || !d->map)
        return false;
    memset(d->map, GUEST_MAY_ZERO, guest_sectors(size));
    return true;
}

void guest_clear(GuestDisk *d)
{
    tracker_clear(&d->tracker);
    free(d->bytes);
    free(d->map);
    *d = (GuestDisk){0};
}

// ---- the guest's work

static void touched(GuestDisk *d, uint64_t offset, uint64_t length)
{
    if (length == 0)
        return;
    uint64_t first = offset / GUEST_SECTOR;
    memset(d->map + first, GUEST_DATA, (offset + length - 1) / GUEST_SECTOR - first + 1);
    tracker_mark(&d->tracker, offset, length);
}

void guest_write(GuestDisk *d, uint64_t offset, uint64_t length, const uint8_t *p)
{
    memcpy(d->bytes + offset, p, length);
    touched(d, offset, length);
}

void guest_paint(GuestDisk *d, uint64_t offset, uint64_t length, unsigned colour)
{
    for (uint64_t at = offset; at < offset + length; at++)
        d->bytes[at] = (uint8_t)(colour * (1 + at + (at >> 9) * 3));
    touched(d, offset, length);
}

void guest_discard(GuestDisk *d, uint64_t offset, uint64_t length, bool silent)
{
    uint64_t end = offset + length;
    // Sectors that are not wholly within are written as zeros.
    uint64_t from = align_up(offset, GUEST_SECTOR), to = end == d->size ? end : align_down(end, GUEST_SECTOR);
    guest_paint(d, offset, length, 0);
    if (from >= to)
        return;
    memset(d->map + from / GUEST_SECTOR, GUEST_MAY_ZERO, guest_sectors(to) - from / GUEST_SECTOR);
}

// As guest_discard(), but of whole clusters nothing is marked dirty: the map alone tells.
static void discard_silently(GuestDisk *d, uint64_t offset, uint64_t length)
{
    uint64_t end = offset + length, from = align_up(offset, d->cluster_size);
    uint64_t to = end == d->size ? end : align_down(end, d->cluster_size);
    if (from >= to) {
        guest_discard(d, offset, length, false);
        return;
    }
    if (from > offset)
        guest_discard(d, offset, from - offset, false);
    if (end > to)
        guest_discard(d, to, end - to, false);
    memset(d->bytes + from, 0, to - from);
    memset(d->map + from / GUEST_SECTOR, GUEST_MUST_ZERO, guest_sectors(to) - from / GUEST_SECTOR);
}
