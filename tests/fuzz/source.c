// A VM's "source" object (paths, NBD URIs, sockets), and QEMU's descriptions of disks and bitmaps.
#include "fuzz.h"

#include "codec/json.h"
#include "source/file/spec.h"
#include "source/qemu/bitmaps.h"
#include "source/qemu/disks.h"
#include "source/qemu/spec.h"

#define UUID_A "11111111-aaaa-4bbb-8ccc-222222222222"
#define UUID_B "33333333-aaaa-4bbb-8ccc-444444444444"

static void file_spec(const json_t *value)
{
    Err err = ERR_INIT;
    FileSpec s = {0};
    if (!file_spec_read(value, &s, &err)) {
        fuzz_check(err.code == ERR_INVALID);
        return;
    }
    fuzz_check(s.len > 0 && s.len <= SOURCE_DISKS_MAX);
    for (size_t i = 0; i < s.len; i++) {
        const FileSpecDisk *d = &s.disks[i];
        fuzz_check(!d->path != !d->uri && source_check_key(d->key, &err));
        fuzz_check(!d->path || (d->path[0] == '/' && str_has_no_controls(d->path)));
        fuzz_check(!d->uri || (str_starts(d->uri, "nbd") && str_has_no_controls(d->uri) && d->format == FILE_PROBED));
    }
    file_spec_clear(&s);
}

static void qemu_spec(const json_t *value)
{
    Err err = ERR_INIT;
    QemuSpec s;
    if (!qemu_spec_read(value, &s, &err)) {
        fuzz_check(err.code == ERR_INVALID);
        return;
    }
    fuzz_check(s.qmp[0] == '/' && (!s.agent || s.agent[0] == '/') && (!s.scratch || s.scratch[0] == '/'));
}

static void disks(const json_t *value)
{
    Err err = ERR_INIT;
    GuestDiskVec v = {0};
    if (guest_disks(value, &v, &err))
        for (size_t i = 0; i < v.len; i++) {
            const GuestDisk *d = &v.items[i];
            fuzz_check(d->size > 0 && d->allocated <= d->size);
            fuzz_check(d->node && d->filename && source_check_key(d->key, &err));
        }
    guest_disks_clear(&v);
}

static void lines(const json_t *value)
{
    Err err = ERR_INIT;
    BitmapVec v = {0};
    const BitmapsOwner owner = {.repository = UUID_A, .vm = UUID_B};
    if (bitmaps_collect(value, &owner, &v, &err)) {
        Line line;
        LineInput in = {.all = &v,
                        .node = "node0",
                        .parent_change_id = UUID_A "/3298534883335", // place 3
                        .parent_tracking = true,
                        .size = 1 << 20,
                        .parent_size = 1 << 20,
                        .fresh = UUID_B};
        bitmaps_resolve(&in, &line);
        fuzz_check(line.next >> BITMAPS_PLACE_SHIFT >= 1 && line.len <= BITMAPS_LINE_MAX);
        fuzz_check(!line.tracked ||
                   (line.bitmaps[0] == UINT64_C(3298534883335) && line.next >> BITMAPS_PLACE_SHIFT == 3 + line.len));
        fuzz_check(line.tracked == (line.lost[0] == '\0'));
        for (size_t i = 0; i < v.len; i++) {
            const Bitmap *b = &v.items[i];
            char name[BITMAPS_NAME];
            if (b->line[0] == '\0')
                continue;
            bitmaps_name(&owner, b->line, b->sequence, name);
            fuzz_check(str_eq(name, b->name));
        }
    }
    bitmap_vec_clear(&v);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    // QEMU's answers are parsed by jansson alone: nothing of ours has looked at them before.
    json_t *value = json_loadb((const char *)data, n, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, NULL);
    if (value) {
        file_spec(value);
        qemu_spec(value);
        disks(value);
        lines(value);
    }
    json_decref(value);
    return 0;
}
