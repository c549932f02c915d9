#include "source/qemu/disks.h"

#include "base/str.h"
#include "source/common.h"

// "/machine/peripheral/disk0/virtio-backend" -> "disk0"; "/machine/unattached/device[7]" -> "unattached/device[7]";
// "disk0" (a device that bears its ID itself) stays.
static char *key_of(const char *qdev, Err *err)
{
    static const char peripheral[] = "/machine/peripheral/", machine[] = "/machine/";
    if (str_starts(qdev, peripheral)) {
        const char *id = qdev + strlen(peripheral);
        return mem_printf(err, "%.*s", (int)strcspn(id, "/"), id);
    }
    return mem_strdup(str_starts(qdev, machine) ? qdev + strlen(machine) : qdev, err);
}

static bool can_hold_bitmaps(const json_t *inserted, const json_t *image)
{
    const char *driver = json_string_value(json_object_get(inserted, "drv"));
    const json_t *data = json_object_get(json_object_get(image, "format-specific"), "data");
    const char *compat = json_string_value(json_object_get(data, "compat"));
    return driver && str_eq(driver, "qcow2") && compat && !str_eq(compat, "0.10");
}

static bool read_disk(const char *qdev, const json_t *inserted, GuestDiskVec *v, Err *err)
{
    const json_t *image = json_object_get(inserted, "image");
    const json_t *size = json_object_get(image, "virtual-size");
    GuestDisk d = {
        .qdev = qdev,
        .node = json_string_value(json_object_get(inserted, "node-name")),
        .filename = json_string_value(json_object_get(image, "filename")),
        .may_persist = can_hold_bitmaps(inserted, image),
        .read_only = json_is_true(json_object_get(inserted, "ro")),
    };
    if (!d.node || !d.filename || !json_is_integer(size) || json_integer_value(size) < 0)
        return err_set(err, ERR_PROTOCOL, "qemu's description of the disk at %s lacks its node, file or size", qdev);
    d.size = (uint64_t)json_integer_value(size);
    if (d.size == 0)
        return true;
    json_int_t actual = json_integer_value(json_object_get(image, "actual-size"));
    bool alone = json_integer_value(json_object_get(inserted, "backing_file_depth")) == 0;
    d.allocated = alone && actual > 0 ? MIN((uint64_t)actual, d.size) : d.size;
    d.key = key_of(qdev, err);
    bool ok = d.key && (source_check_key(d.key, err) || err_context(err, "device %s", qdev));
    for (size_t i = 0; ok && i < v->len; i++)
        if (str_eq(v->items[i].key, d.key))
            ok = err_set(err, ERR_CONFLICT, "two disks have the device ID %s", d.key);
    ok = ok && guest_disk_vec_push(v, d, err);
    if (!ok)
        free(d.key);
    return ok;
}

bool guest_disks(const json_t *query_block, GuestDiskVec *ret, Err *err)
{
    GuestDiskVec v = {0};
    bool ok = json_is_array(query_block) || err_set(err, ERR_PROTOCOL, "qemu's list of disks is no list");
    for (size_t i = 0; ok && i < json_array_size(query_block); i++) {
        const json_t *entry = json_array_get(query_block, i);
        const json_t *inserted = json_object_get(entry, "inserted");
        const char *qdev = json_string_value(json_object_get(entry, "qdev"));
        if (!qdev || !inserted || json_is_true(json_object_get(entry, "removable")))
            continue;
        ok = read_disk(qdev, inserted, &v, err);
    }
    if (!ok) {
        guest_disks_clear(&v);
        return false;
    }
    *ret = v;
    return true;
}

void guest_disks_clear(GuestDiskVec *v)
{
    for (size_t i = 0; i < v->len; i++)
        free(v->items[i].key);
    guest_disk_vec_clear(v);
}
