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

// Sectors that are not wholly within are written as zeros.
static void discard_loudly(GuestDisk *d, uint64_t offset, uint64_t length)
{
    uint64_t end = offset + length, from = align_up(offset, GUEST_SECTOR);
    uint64_t to = end == d->size ? end : align_down(end, GUEST_SECTOR);
    guest_paint(d, offset, length, 0);
    if (from < to)
        memset(d->map + from / GUEST_SECTOR, GUEST_MAY_ZERO, guest_sectors(to) - from / GUEST_SECTOR);
}

void guest_discard(GuestDisk *d, uint64_t offset, uint64_t length, bool silent)
{
    uint64_t end = offset + length, from = align_up(offset, d->cluster_size);
    uint64_t to = end == d->size ? end : align_down(end, d->cluster_size);
    if (!silent || from >= to) {
        discard_loudly(d, offset, length);
        return;
    }
    if (from > offset)
        discard_loudly(d, offset, from - offset);
    if (end > to)
        discard_loudly(d, to, end - to);
    memset(d->bytes + from, 0, to - from);
    memset(d->map + from / GUEST_SECTOR, GUEST_MUST_ZERO, guest_sectors(to) - from / GUEST_SECTOR);
}

static bool set_size(GuestDisk *d, uint64_t size, Err *err)
{
    uint8_t *bytes = mem_calloc(1, size, err), *map = mem_calloc(1, guest_sectors(size), err);
    if (!bytes || !map) {
        free(bytes);
        free(map);
        return false;
    }
    memcpy(bytes, d->bytes, MIN(size, d->size));
    memset(map, GUEST_MAY_ZERO, guest_sectors(size));
    memcpy(map, d->map, guest_sectors(MIN(size, d->size)));
    free(d->bytes);
    free(d->map);
    d->bytes = bytes;
    d->map = map;
    d->size = size;
    return true;
}

bool guest_resize(GuestDisk *d, uint64_t size, Err *err)
{
    return set_size(d, size, err) && tracker_resize(&d->tracker, size, err);
}

bool guest_replace(GuestDisk *d, const uint8_t *bytes, uint64_t size, Err *err)
{
    tracker_forget(&d->tracker);
    if (!guest_resize(d, size, err))
        return false;
    memcpy(d->bytes, bytes, size);
    memset(d->map, GUEST_DATA, guest_sectors(size));
    return true;
}

// Where a request goes: anywhere, or at bounds that matter.
static void pick_range(const GuestDisk *d, Rng *rng, uint64_t *ret_offset, uint64_t *ret_length)
{
    static const uint64_t longest[] = {1, GUEST_SECTOR, 4096, 16384, 65536, 65536, 262144, UINT64_MAX};
    static const uint64_t grains[] = {1, 1, GUEST_SECTOR, GUEST_SECTOR, 4096, 65536};
    uint64_t most = longest[rng_below(rng, ARRAY_LEN(longest))], length = rng_between(rng, 1, MIN(most, d->size));
    uint64_t offset = rng_below(rng, d->size - length + 1), grain = grains[rng_below(rng, ARRAY_LEN(grains))];
    if (rng_chance(rng, 10))
        offset = d->size - length;
    uint64_t end = MIN(align_up(offset + length, grain), d->size);
    *ret_offset = align_down(offset, grain);
    *ret_length = end - *ret_offset;
}

static void write_noise(GuestDisk *d, Rng *rng, uint64_t offset, uint64_t length)
{
    length = MIN(length, 65536);
    rng_fill(rng, d->bytes + offset, length);
    touched(d, offset, length);
}

void guest_burst(GuestDisk *d, Rng *rng)
{
    for (uint64_t n = rng_between(rng, 1, 6); n > 0; n--) {
        uint64_t offset, length, kind = rng_below(rng, 100);
        pick_range(d, rng, &offset, &length);
        if (kind < 30)
            write_noise(d, rng, offset, length);
        else if (kind < 65)
            guest_paint(d, offset, length, (unsigned)rng_between(rng, 1, GUEST_COLOURS));
        else if (kind < 75)
            guest_paint(d, offset, length, 0);
        else if (kind < 80)
            touched(d, offset, length); // the same bytes again
        else
            guest_discard(d, offset, length, kind >= 90);
    }
}
