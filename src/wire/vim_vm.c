// A VM's properties: config, runtime, devices, snapshots.
#include "wire/vim_parts.h"

#include "base/num.h"
#include "base/vec.h"

VEC_DEFINE(DiskVec, disk_vec, VimDisk)
VEC_DEFINE(SnapshotVec, snapshot_vec, VimSnapshot)
VEC_DEFINE(TextVec, text_vec, char *)

const char *const vim_vm_paths[] = {"name",
                                    "parent",
                                    "parentVApp",
                                    "config.template",
                                    "config.version",
                                    "config.uuid",
                                    "config.instanceUuid",
                                    "config.changeTrackingEnabled",
                                    "config.files.vmPathName",
                                    "config.hardware.device",
                                    "capability.changeTrackingSupported",
                                    "runtime.powerState",
                                    "runtime.connectionState",
                                    "runtime.host",
                                    "runtime.consolidationNeeded",
                                    "guest.toolsRunningStatus",
                                    "snapshot",
                                    "datastore",
                                    NULL};

// Every text that the server did not give is "".
static bool fill_texts(char **const *texts, size_t n, Err *err)
{
    for (size_t i = 0; i < n; i++)
        if (!*texts[i] && !(*texts[i] = mem_strdup("", err)))
            return false;
    return true;
}

// ---- disks

void vim_disk_clear(VimDisk *d)
{
    char *texts[] = {d->label,   d->file,       d->uuid, d->change_id, d->backing, d->disk_mode, d->compatibility_mode,
                     d->sharing, d->bus_sharing};
    for (size_t i = 0; i < ARRAY_LEN(texts); i++)
        free(texts[i]);
    *d = (VimDisk){0};
}

void vim_disks_clear(VimDisks *d)
{
    for (size_t i = 0; i < d->len; i++)
        vim_disk_clear(&d->items[i]);
    free(d->items);
    *d = (VimDisks){0};
}

// A device of any type, as far as disks and their controllers go.
typedef struct Device {
    VimDisk disk; // bus_sharing is a controller's own
    char *type;
    int32_t controller;
    uint64_t capacity_kb;
    bool has_key;
} Device;

typedef struct Controller {
    int32_t key;
    char *sharing;
} Controller;

VEC_DEFINE(ControllerVec, controller_vec, Controller)

static void device_clear(Device *d)
{
    vim_disk_clear(&d->disk);
    free(d->type);
}

// "VirtualDiskFlatVer2BackingInfo" -> "FlatVer2"
static bool take_backing_type(VimDisk *d, char *type, Err *err)
{
    static const char before[] = "VirtualDisk", after[] = "BackingInfo";
    const char *from = str_starts(type, before) ? type + strlen(before) : type;
    size_t n = strlen(from);
    if (str_ends(from, after))
        n -= strlen(after);
    d->backing = mem_printf(err, "%.*s", (int)n, from);
    return d->backing != NULL;
}

// Only what is the backing's own: the one that it rests on is a "parent" within it.
static bool read_backing(VimDisk *d, XmlReader *x, Err *err)
{
    cleanup_free char *type = NULL;
    if (!xml_xsi_type(x, &type, err) || (type && !d->backing && !take_backing_type(d, type, err)))
        return false;
    XmlWalk w = xml_walk(x);
    bool more;
    while (xml_next(x, &w, &more, err)) {
        if (!more)
            return true;
        char **to = xml_is(x, "fileName")    ? &d->file
            : xml_is(x, "uuid")              ? &d->uuid
            : xml_is(x, "changeId")          ? &d->change_id
            : xml_is(x, "diskMode")          ? &d->disk_mode
            : xml_is(x, "compatibilityMode") ? &d->compatibility_mode
            : xml_is(x, "sharing")           ? &d->sharing
                                             : NULL;
        if (to && !vim_read_text(x, to, err))
            return false;
    }
    return false;
}

static bool read_label(VimDisk *d, XmlReader *x, Err *err)
{
    XmlWalk w = xml_walk(x);
    bool more;
    while (xml_next(x, &w, &more, err)) {
        if (!more)
            return true;
        if (xml_is(x, "label") && !vim_read_text(x, &d->label, err))
            return false;
    }
    return false;
}

static bool read_device_member(Device *d, XmlReader *x, Err *err)
{
    bool is_disk = d->type && str_eq(d->type, "VirtualDisk");
    if (xml_is(x, "key")) {
        d->has_key = true;
        return vim_read_i32(x, &d->disk.key, err);
    }
    if (xml_is(x, "sharedBus"))
        return vim_read_text(x, &d->disk.bus_sharing, err);
    if (!is_disk)
        return true;
    if (xml_is(x, "deviceInfo"))
        return read_label(&d->disk, x, err);
    if (xml_is(x, "backing"))
        return read_backing(&d->disk, x, err);
    if (xml_is(x, "controllerKey"))
        return vim_read_i32(x, &d->controller, err);
    if (xml_is(x, "capacityInBytes"))
        return vim_read_u64(x, &d->disk.capacity, err);
    return !xml_is(x, "capacityInKB") || vim_read_u64(x, &d->capacity_kb, err);
}

static bool read_device(Device *d, XmlReader *x, Err *err)
{
    if (!xml_xsi_type(x, &d->type, err))
        return false;
    XmlWalk w = xml_walk(x);
    bool more;
    while (xml_next(x, &w, &more, err)) {
        if (!more)
            return true;
        if (!read_device_member(d, x, err))
            return false;
    }
    return false;
}

VEC_DEFINE(KeyVec, key_vec, int32_t)

typedef struct DeviceList {
    DiskVec disks;
    KeyVec of; // each disk's controller
    ControllerVec controllers;
} DeviceList;

static void device_list_clear(DeviceList *l)
{
    for (size_t i = 0; i < l->disks.len; i++)
        vim_disk_clear(&l->disks.items[i]);
    for (size_t i = 0; i < l->controllers.len; i++)
        free(l->controllers.items[i].sharing);
    disk_vec_clear(&l->disks);
    key_vec_clear(&l->of);
    controller_vec_clear(&l->controllers);
}

static bool keep_disk(DeviceList *l, Device *d, Err *err)
{
    VimDisk *k = &d->disk;
    char **texts[] = {&k->label,  &k->file, &k->uuid, &k->change_id, &k->backing, &k->disk_mode, &k->compatibility_mode,
                      &k->sharing};
    if (!d->has_key)
        return err_set(err, ERR_PROTOCOL, "a disk without a key");
    for (size_t i = 0; i < l->disks.len; i++)
        if (l->disks.items[i].key == k->key)
            return err_set(err, ERR_PROTOCOL, "two disks of the key %d", k->key);
    if (k->capacity == 0) // before vSphere 5.5 it is not said
        k->capacity = MIN(d->capacity_kb, DISK_SIZE_MAX >> 10) << 10;
    if (k->capacity > DISK_SIZE_MAX)
        return err_set(err, ERR_PROTOCOL, "a disk of %llu bytes", (unsigned long long)k->capacity);
    if (!fill_texts(texts, ARRAY_LEN(texts), err) || !key_vec_push(&l->of, d->controller, err) ||
        !disk_vec_push(&l->disks, *k, err))
        return false;
    *k = (VimDisk){0};
    return true;
}

static bool keep_device(DeviceList *l, Device *d, Err *err)
{
    if (d->type && str_eq(d->type, "VirtualDisk"))
        return keep_disk(l, d, err);
    if (!d->disk.bus_sharing || !d->has_key)
        return true;
    if (!controller_vec_push(&l->controllers, (Controller){d->disk.key, d->disk.bus_sharing}, err))
        return false;
    d->disk.bus_sharing = NULL;
    return true;
}

static bool join_controllers(DeviceList *l, Err *err)
{
    for (size_t i = 0; i < l->disks.len; i++) {
        const char *sharing = "";
        for (size_t k = 0; k < l->controllers.len; k++)
            if (l->controllers.items[k].key == l->of.items[i])
                sharing = l->controllers.items[k].sharing;
        if (!mem_replace(&l->disks.items[i].bus_sharing, sharing, err))
            return false;
    }
    return true;
}

bool vim_devices_read(XmlReader *x, VimDisks *ret, Err *err)
{
    cleanup(device_list_clear) DeviceList l = {0};
    XmlWalk w = xml_walk(x);
    for (;;) {
        bool more;
        cleanup(device_clear) Device d = {0};
        if (!xml_next(x, &w, &more, err))
            return false;
        if (!more)
            break;
        if (!read_device(&d, x, err) || !keep_device(&l, &d, err))
            return false;
    }
    if (!join_controllers(&l, err))
        return false;
    vim_disks_clear(ret);
    *ret = (VimDisks){.items = l.disks.items, .len = l.disks.len};
    l.disks = (DiskVec){0};
    return true;
}

// ---- snapshots

static void snapshot_clear(VimSnapshot *s)
{
    free(s->moref);
    free(s->name);
    free(s->description);
    free(s->created);
}

// A tree's node and, below it, its children.
static bool read_snapshot(SnapshotVec *v, int parent, XmlReader *x, Err *err)
{
    size_t me = v->len; // items may move
    if (!snapshot_vec_push(v, (VimSnapshot){.parent = parent}, err))
        return false;
    XmlWalk w = xml_walk(x);
    bool more;
    while (xml_next(x, &w, &more, err)) {
        VimSnapshot *s = &v->items[me];
        if (!more) {
            char **texts[] = {&s->moref, &s->name, &s->description, &s->created};
            return fill_texts(texts, ARRAY_LEN(texts), err) &&
                (*s->moref || err_set(err, ERR_PROTOCOL, "a snapshot without a reference"));
        }
        char **to = xml_is(x, "snapshot") ? &s->moref
            : xml_is(x, "name")           ? &s->name
            : xml_is(x, "description")    ? &s->description
            : xml_is(x, "createTime")     ? &s->created
                                          : NULL;
        if ((to && !vim_read_text(x, to, err)) || (xml_is(x, "quiesced") && !vim_read_bool(x, &s->quiesced, err)) ||
            (xml_is(x, "childSnapshotList") && !read_snapshot(v, (int)me, x, err)))
            return false;
    }
    return false;
}

static bool read_snapshots(VimVm *vm, XmlReader *x, Err *err)
{
    SnapshotVec v = {0};
    XmlWalk w = xml_walk(x);
    bool more = true, fine;
    while ((fine = xml_next(x, &w, &more, err)) && more) {
        fine = xml_is(x, "currentSnapshot") ? vim_read_text(x, &vm->current_snapshot, err)
                                            : !xml_is(x, "rootSnapshotList") || read_snapshot(&v, -1, x, err);
        if (!fine)
            break;
    }
    vm->snapshots = v.items; // with what was read: vim_vm_clear() frees it
    vm->snapshots_len = v.len;
    return fine;
}

// ---- the VM

void vim_vm_clear(VimVm *vm)
{
    char *texts[] = {vm->moref,
                     vm->name,
                     vm->path,
                     vm->uuid,
                     vm->instance_uuid,
                     vm->power_state,
                     vm->connection_state,
                     vm->vmx_file,
                     vm->host,
                     vm->host_name,
                     vm->tools_status,
                     vm->current_snapshot};
    for (size_t i = 0; i < ARRAY_LEN(texts); i++)
        free(texts[i]);
    for (size_t i = 0; i < vm->snapshots_len; i++)
        snapshot_clear(&vm->snapshots[i]);
    for (size_t i = 0; i < vm->datastores_len; i++)
        free(vm->datastores[i]);
    free(vm->snapshots);
    free(vm->datastores);
    vim_disks_clear(&vm->disks);
    *vm = (VimVm){0};
}

void vim_vm_reader_clear(VimVmReader *r)
{
    vim_vm_clear(&r->vm);
    free(r->parent);
    free(r->parent_vapp);
    *r = (VimVmReader){0};
}

bool vim_vm_begin(VimVmReader *r, const char *moref, Err *err)
{
    vim_vm_reader_clear(r);
    r->vm.moref = mem_strdup(moref, err);
    return r->vm.moref != NULL;
}

// "vmx-19" -> 19
static bool read_version(VimVm *vm, XmlReader *x, Err *err)
{
    cleanup_free char *text = NULL;
    uint64_t n = 0;
    Err ignored = ERR_INIT;
    if (!vim_read_text(x, &text, err))
        return false;
    if (str_starts(text, "vmx-") && num_u64(text + 4, 0, 10000, &n, &ignored))
        vm->hardware_version = (unsigned)n;
    return true;
}

static bool read_datastores(VimVm *vm, XmlReader *x, Err *err)
{
    TextVec v = {0};
    XmlWalk w = xml_walk(x);
    bool more = true, fine;
    while ((fine = xml_next(x, &w, &more, err)) && more) {
        cleanup_free char *moref = NULL;
        if (!(fine = vim_read_text(x, &moref, err) && text_vec_push(&v, moref, err)))
            break;
        moref = NULL;
    }
    vm->datastores = v.items; // as with the snapshots
    vm->datastores_len = v.len;
    return fine;
}

static char **text_of(VimVmReader *r, const char *name)
{
    VimVm *vm = &r->vm;
    const struct {
        const char *name;
        char **to;
    } texts[] = {
        {"name", &vm->name},
        {"parent", &r->parent},
        {"parentVApp", &r->parent_vapp},
        {"config.uuid", &vm->uuid},
        {"config.instanceUuid", &vm->instance_uuid},
        {"config.files.vmPathName", &vm->vmx_file},
        {"runtime.powerState", &vm->power_state},
        {"runtime.connectionState", &vm->connection_state},
        {"runtime.host", &vm->host},
        {"guest.toolsRunningStatus", &vm->tools_status},
    };
    for (size_t i = 0; i < ARRAY_LEN(texts); i++)
        if (str_eq(texts[i].name, name))
            return texts[i].to;
    return NULL;
}

bool vim_vm_property(VimVmReader *r, const char *name, XmlReader *x, Err *err)
{
    VimVm *vm = &r->vm;
    char **text = text_of(r, name);
    if (text)
        return vim_read_text(x, text, err);
    if (str_eq(name, "config.template"))
        return vim_read_bool(x, &vm->is_template, err);
    if (str_eq(name, "config.version"))
        return read_version(vm, x, err);
    if (str_eq(name, "config.changeTrackingEnabled"))
        return vim_read_said(x, &vm->tracking, err);
    if (str_eq(name, "capability.changeTrackingSupported"))
        return vim_read_said(x, &vm->tracking_supported, err);
    if (str_eq(name, "runtime.consolidationNeeded"))
        return vim_read_bool(x, &vm->consolidation_needed, err);
    if (str_eq(name, "config.hardware.device")) {
        vm->is_described = true;
        return vim_devices_read(x, &vm->disks, err);
    }
    if (str_eq(name, "snapshot") && !vm->snapshots) // said twice: the first holds
        return read_snapshots(vm, x, err);
    return !str_eq(name, "datastore") || vm->datastores || read_datastores(vm, x, err);
}

// In names of the inventory "%", "/" and "\" are written as %25, %2f and %5c.
void vim_name_decode(char *name)
{
    char *to = name;
    for (const char *p = name; *p; to++) {
        unsigned char c = 0;
        if (p[0] == '%' && p[1] && p[2] && str_unhex((char[]){p[1], p[2], '\0'}, &c, 1) && c && strchr("%/\\", c)) {
            *to = (char)c;
            p += 3;
        } else {
            *to = *p++;
        }
    }
    *to = '\0';
}

bool vim_vm_end(VimVmReader *r, Err *err)
{
    VimVm *vm = &r->vm;
    char **texts[] = {
        &vm->name,      &vm->path, &vm->uuid,      &vm->instance_uuid, &vm->power_state,      &vm->connection_state,
        &vm->vmx_file,  &vm->host, &vm->host_name, &vm->tools_status,  &vm->current_snapshot, &r->parent,
        &r->parent_vapp};
    return fill_texts(texts, ARRAY_LEN(texts), err);
}
