// vsphere-simulator: what the disks hold. The live content is a raw sparse file; a snapshot keeps the granules that
// are overwritten after it, so that making one costs nothing, however large the disk.
#include "simulator.h"

#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <unistd.h>

static uint64_t granules(uint64_t bytes)
{
    return (bytes + sim.granule - 1) / sim.granule;
}

bool bits_get(const Bits *b, uint64_t i)
{
    return b->words && i < b->n && (b->words[i / 64] >> (i % 64) & 1);
}

static void bits_set(Bits *b, uint64_t i, bool value)
{
    if (i >= b->n || (!b->words && !value))
        return;
    if (!b->words)
        b->words = sim_more(NULL, 0, (b->n + 63) / 64 * 8);
    if (value)
        b->words[i / 64] |= UINT64_C(1) << (i % 64);
    else
        b->words[i / 64] &= ~(UINT64_C(1) << (i % 64));
}

static Bits bits_copy(const Bits *b)
{
    Bits copy = {.n = b->n};
    if (b->words) {
        copy.words = sim_more(NULL, 0, (b->n + 63) / 64 * 8);
        memcpy(copy.words, b->words, (b->n + 63) / 64 * 8);
    }
    return copy;
}

static void bits_resize(Bits *b, uint64_t n)
{
    Bits new = {.n = n};
    uint64_t words = (MIN(n, b->n) + 63) / 64;
    if (b->words && n) {
        new.words = sim_more(NULL, 0, (n + 63) / 64 * 8);
        memcpy(new.words, b->words, words * 8);
        if (n < b->n && n % 64)
            new.words[n / 64] &= (UINT64_C(1) << (n % 64)) - 1;
    }
    free(b->words);
    *b = new;
}

uint64_t bits_next(const Bits *b, uint64_t i, bool set)
{
    if (!b->words)
        return set ? b->n : MIN(i, b->n);
    while (i < b->n) {
        uint64_t word = set ? b->words[i / 64] : ~b->words[i / 64];
        word &= ~UINT64_C(0) << (i % 64);
        if (word)
            return MIN(b->n, i / 64 * 64 + (uint64_t)__builtin_ctzll(word));
        i = (i / 64 + 1) * 64;
    }
    return b->n;
}

bool disk_can_freeze(const Disk *disk)
{
    return strncmp(disk->mode, "independent", 11) != 0 && strcmp(disk->compatibility, "physicalMode") != 0;
}

bool disk_open(Disk *disk, Err *err)
{
    if (disk->fd >= 0)
        return true;
    int fd = open(disk->path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_errno(err, errno, "%s", disk->path);
    if (ftruncate(fd, (off_t)disk->capacity) != 0) {
        close(fd);
        return err_errno(err, errno, "%s", disk->path);
    }
    disk->fd = fd;
    // What a file brings along is in use
    off_t at = 0, data;
    while ((data = lseek(fd, at, SEEK_DATA)) >= 0) {
        off_t hole = lseek(fd, data, SEEK_HOLE);
        if (hole < 0)
            break;
        for (uint64_t g = (uint64_t)data / sim.granule; g < granules((uint64_t)hole); g++)
            bits_set(&disk->allocated, g, true);
        at = hole;
    }
    return true;
}

Layer *layer_of(const Snapshot *snapshot, const Disk *disk)
{
    for (size_t i = 0; i < snapshot->n_layers; i++) {
        if (snapshot->layers[i].disk == disk)
            return &snapshot->layers[i];
    }
    return NULL;
}

static bool keep(Layer *layer, uint64_t g, const void *data, uint64_t n, Err *err)
{
    if (data) {
        if (layer->fd < 0) {
            layer->fd = open(layer->path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
            if (layer->fd < 0)
                return err_errno(err, errno, "%s", layer->path);
        }
        if (!file_pwrite(layer->fd, data, n, g * sim.granule, err))
            return false;
    }
    bits_set(&layer->kept, g, true);
    return true;
}

// Up to n bytes at offset; what lies behind the file's end is zero.
static bool read_file(int fd, void *p, uint64_t n, uint64_t offset, Err *err)
{
    uint8_t *to = p;
    while (n) {
        ssize_t got = fd < 0 ? 0 : pread(fd, to, n, (off_t)offset);
        if (got < 0)
            return err_errno(err, errno, "read");
        if (got == 0) {
            memset(to, 0, n);
            return true;
        }
        to += got, offset += (uint64_t)got, n -= (uint64_t)got;
    }
    return true;
}

// Before granule g of the live disk changes: the newest snapshot keeps what is there; older ones read it from that.
static bool keep_before(Vm *vm, Disk *disk, uint64_t g, Err *err)
{
    Layer *layer = vm->n_snapshots ? layer_of(vm->snapshots[vm->n_snapshots - 1], disk) : NULL;
    if (!layer || bits_get(&layer->kept, g) || g >= layer->kept.n)
        return true;
    if (!bits_get(&disk->allocated, g))
        return keep(layer, g, NULL, 0, err);
    cleanup_free uint8_t *old = sim_more(NULL, 0, sim.granule);
    return read_file(disk->fd, old, sim.granule, g * sim.granule, err) && keep(layer, g, old, sim.granule, err);
}

static void mark_changed(Disk *disk, uint64_t g)
{
    if (disk->tracking)
        bits_set(&disk->changed[disk->sequence], g, true);
}

static bool check_range(const Disk *disk, uint64_t offset, uint64_t n, Err *err)
{
    uint64_t end;
    if (!add_u64(offset, n, &end) || end > disk->capacity)
        return err_set(err, ERR_INVALID, "%ju bytes at %ju: behind the disk's end, %ju", (uintmax_t)n,
                       (uintmax_t)offset, (uintmax_t)disk->capacity);
    return true;
}

bool disk_write(Vm *vm, Disk *disk, uint64_t offset, const void *data, uint64_t n, Err *err)
{
    if (!check_range(disk, offset, n, err) || !disk_open(disk, err))
        return false;
    const uint8_t *from = data;
    uint64_t end = offset + n;
    cleanup_free uint8_t *zeros = data ? NULL : sim_more(NULL, 0, sim.granule);
    while (offset < end) {
        uint64_t g = offset / sim.granule, start = g * sim.granule;
        uint64_t stop = MIN(start + sim.granule, disk->capacity), part = MIN(end, stop) - offset;
        bool whole = offset == start && offset + part == stop;
        if (!keep_before(vm, disk, g, err))
            return false;
        if (!data && whole) {
            if (fallocate(disk->fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, (off_t)start, (off_t)part) != 0)
                return err_errno(err, errno, "punch a hole into %s", disk->path);
            bits_set(&disk->allocated, g, false);
        } else if (data || bits_get(&disk->allocated, g)) {
            if (!file_pwrite(disk->fd, data ? from : zeros, part, offset, err))
                return false;
            bits_set(&disk->allocated, g, true);
        }
        mark_changed(disk, g);
        offset += part;
        if (from)
            from += part;
    }
    return true;
}

bool disk_touch(Disk *disk, uint64_t offset, uint64_t n, Err *err)
{
    if (!check_range(disk, offset, n, err))
        return false;
    for (uint64_t g = offset / sim.granule; g < granules(offset + n); g++)
        mark_changed(disk, g);
    return true;
}

bool disk_hide(Disk *disk, uint64_t offset, uint64_t n, Err *err)
{
    if (!check_range(disk, offset, n, err))
        return false;
    if (disk->hidden.n < granules(disk->capacity))
        bits_resize(&disk->hidden, granules(disk->capacity));
    for (uint64_t g = offset / sim.granule; g < granules(offset + n); g++)
        bits_set(&disk->hidden, g, true);
    return true;
}

bool disk_resize(Vm *vm, Disk *disk, uint64_t capacity, Err *err)
{
    if (capacity == 0 || capacity % 512 || capacity > DISK_SIZE_MAX)
        return err_set(err, ERR_INVALID, "a size of %ju", (uintmax_t)capacity);
    // What is cut off stays in the snapshots, and is zero when the disk grows again
    if (capacity < disk->capacity && !disk_write(vm, disk, capacity, NULL, disk->capacity - capacity, err))
        return false;
    if (!disk_open(disk, err))
        return false;
    if (ftruncate(disk->fd, (off_t)capacity) != 0)
        return err_errno(err, errno, "resize %s", disk->path);
    disk->capacity = capacity;
    uint64_t n = granules(capacity);
    bits_resize(&disk->allocated, n);
    for (uint32_t i = 1; disk->tracking && i <= disk->sequence; i++)
        bits_resize(&disk->changed[i], n);
    return true;
}

void disk_untrack(Disk *disk)
{
    for (uint32_t i = 1; disk->tracking && i <= disk->sequence; i++)
        free(disk->changed[i].words);
    free(mem_take(disk->changed));
    disk->tracking = false;
    disk->sequence = 0;
}

void disk_track(Disk *disk)
{
    disk_untrack(disk);
    if (!disk_can_freeze(disk))
        return;
    sim_new_uuid(disk->epoch);
    disk->tracking = true;
    disk->lost = false;
    disk->sequence = 1;
    disk->changed = sim_more(NULL, 0, 2 * sizeof(Bits));
    disk->changed[1].n = granules(disk->capacity);
}

bool layer_init(Layer *layer, Disk *disk, const char *id, Err *err)
{
    if (!disk_open(disk, err))
        return false;
    *layer = (Layer){.disk = disk, .fd = -1, .capacity = disk->capacity, .sequence = disk->sequence};
    layer->path = sim_printf("%s.%s", disk->path, id);
    layer->kept.n = granules(disk->capacity);
    layer->allocated = bits_copy(&disk->allocated);
    if (disk->tracking) {
        snprintf(layer->epoch, sizeof layer->epoch, "%s", disk->epoch);
        disk->sequence++;
        disk->changed = sim_more(disk->changed, disk->sequence, sizeof(Bits));
        disk->changed[disk->sequence].n = granules(disk->capacity);
    }
    return true;
}

bool layer_read(const Snapshot *snapshot, const Layer *layer, uint64_t offset, void *p, uint64_t n, Err *err)
{
    const Vm *vm = snapshot->vm;
    size_t first = 0;
    while (first < vm->n_snapshots && vm->snapshots[first] != snapshot)
        first++;
    uint8_t *to = p;
    for (uint64_t end = offset + n; offset < end;) {
        uint64_t g = offset / sim.granule, part = MIN(end, (g + 1) * sim.granule) - offset;
        int fd = layer->disk->fd;
        for (size_t i = first; i < vm->n_snapshots; i++) {
            const Layer *keeper = layer_of(vm->snapshots[i], layer->disk);
            if (keeper && bits_get(&keeper->kept, g)) {
                fd = keeper->fd;
                break;
            }
        }
        if (!read_file(fd, to, part, offset, err))
            return false;
        to += part, offset += part;
    }
    return true;
}

static bool put_back(Layer *layer, uint64_t g, void *data, const Snapshot *snapshot, Err *err)
{
    Disk *disk = layer->disk;
    uint64_t offset = g * sim.granule, n = MIN(sim.granule, layer->capacity - offset);
    return (!bits_get(&layer->allocated, g) || layer_read(snapshot, layer, offset, data, n, err)) &&
        disk_write(snapshot->vm, disk, offset, bits_get(&layer->allocated, g) ? data : NULL, n, err);
}

bool layer_revert(const Snapshot *snapshot, Layer *layer, Err *err)
{
    Disk *disk = layer->disk;
    bool tracking = disk->tracking;
    cleanup_free uint8_t *data = sim_more(NULL, 0, sim.granule);
    if (disk->capacity != layer->capacity && !disk_resize(snapshot->vm, disk, layer->capacity, err))
        return false;
    disk->tracking = false;
    bool ok = true;
    for (uint64_t g = 0; ok && (g = bits_next(&layer->kept, g, true)) < layer->kept.n; g++)
        ok = put_back(layer, g, data, snapshot, err);
    disk->tracking = tracking;
    return ok;
}

bool layer_merge(Layer *layer, Layer *older, Err *err)
{
    if (older) {
        cleanup_free uint8_t *data = sim_more(NULL, 0, sim.granule);
        uint64_t g = 0;
        while ((g = bits_next(&layer->kept, g, true)) < layer->kept.n) {
            if (!bits_get(&older->kept, g) &&
                (!read_file(layer->fd, data, sim.granule, g * sim.granule, err) ||
                 !keep(older, g, data, sim.granule, err)))
                return false;
            g++;
        }
    }
    if (layer->fd >= 0) {
        close(layer->fd);
        unlink(layer->path);
        layer->fd = -1;
    }
    free(mem_take(layer->kept.words));
    free(mem_take(layer->allocated.words));
    return true;
}

Bits layer_changed(const Layer *layer, uint32_t since)
{
    Bits all = {.n = granules(layer->capacity)};
    for (uint32_t i = since + 1; i <= layer->sequence; i++) {
        const Bits *b = &layer->disk->changed[i];
        if (!b->words)
            continue;
        if (!all.words)
            all.words = sim_more(NULL, 0, (all.n + 63) / 64 * 8);
        for (uint64_t w = 0; w < (MIN(all.n, b->n) + 63) / 64; w++)
            all.words[w] |= b->words[w];
    }
    return all;
}
