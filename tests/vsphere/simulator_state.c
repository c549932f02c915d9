// vsphere-simulator: the inventory, read from a JSON file, and the snapshots.
#include "simulator.h"

#include "base/clock.h"
#include "base/file.h"

#include <errno.h>
#include <unistd.h>

static const struct {
    const char *prefix, *name;
} types[ENTITY_TYPES] = {
    [FOLDER] = {"group-v", "Folder"},
    [DATACENTER] = {"datacenter-", "Datacenter"},
    [VIRTUAL_MACHINE] = {"vm-", "VirtualMachine"},
    [HOST] = {"host-", "HostSystem"},
    [DATASTORE] = {"datastore-", "Datastore"},
};

const char *entity_type_name(EntityType type)
{
    return types[type].name;
}

static Entity *add_entity(EntityType type, const char *name, Entity *parent)
{
    Entity *e = sim_more(NULL, 0, sizeof *e);
    e->type = type;
    e->parent = parent;
    e->name = sim_strdup(name);
    snprintf(e->id, sizeof e->id, "%s%d", parent ? types[type].prefix : "group-d", sim.next_id++);
    *grow(sim.entities, sim.n_entities) = e;
    if (parent)
        *grow(parent->children, parent->n_children) = e;
    return e;
}

static Entity *child_of(const Entity *parent, EntityType type, const char *name, size_t len)
{
    for (size_t i = 0; i < parent->n_children; i++) {
        Entity *e = parent->children[i];
        if ((type == ENTITY_TYPES || e->type == type) && strlen(e->name) == len && memcmp(e->name, name, len) == 0)
            return e;
    }
    return NULL;
}

Entity *state_find(const char *path)
{
    Entity *at = sim.root;
    while (at && *path) {
        size_t n = strcspn(path, "/");
        if (n)
            at = child_of(at, ENTITY_TYPES, path, n);
        path += n + (path[n] == '/');
    }
    return at;
}

Entity *state_entity(const char *id)
{
    for (size_t i = 0; i < sim.n_entities; i++) {
        if (strcmp(sim.entities[i]->id, id) == 0)
            return sim.entities[i];
    }
    return NULL;
}

Vm *state_vm(const char *id_or_path)
{
    Entity *e = state_entity(id_or_path);
    if (!e)
        e = state_find(id_or_path);
    return e ? e->vm : NULL;
}

Disk *state_disk(const Vm *vm, int key)
{
    for (size_t i = 0; i < vm->n_disks; i++) {
        if (vm->disks[i]->key == key)
            return vm->disks[i];
    }
    return NULL;
}

Snapshot *state_snapshot(const char *id)
{
    for (size_t i = 0; i < sim.n_snapshots; i++) {
        if (strcmp(sim.snapshots[i]->id, id) == 0 && !sim.snapshots[i]->gone)
            return sim.snapshots[i];
    }
    return NULL;
}

// DC0/vm/a/b: the folder DC0/vm/a, made where it is missing; *ret_name: "b".
static Entity *make_folders(const char *path, const char **ret_name, Err *err)
{
    size_t n = strcspn(path, "/");
    if (n == 0 || strncmp(path + n, "/vm/", 4) != 0) {
        err_set(err, ERR_INVALID, "%s: a path is DATACENTER/vm/...", path);
        return NULL;
    }
    Entity *at = child_of(sim.root, DATACENTER, path, n);
    if (!at) {
        cleanup_free char *name = strndup(path, n);
        at = add_entity(DATACENTER, name, sim.root);
        add_entity(FOLDER, "vm", at);
        add_entity(HOST, "host-of-the-simulator", add_entity(FOLDER, "host", at));
        add_entity(DATASTORE, "ds0", add_entity(FOLDER, "datastore", at));
    }
    at = child_of(at, FOLDER, "vm", 2);
    for (path += n + 4; (n = strcspn(path, "/")), path[n] == '/'; path += n + 1) {
        Entity *next = child_of(at, FOLDER, path, n);
        if (!next) {
            cleanup_free char *name = strndup(path, n);
            next = add_entity(FOLDER, name, at);
        }
        at = next;
    }
    *ret_name = path;
    return at;
}

static const char *text_of(const json_t *from, const char *key, const char *otherwise)
{
    const char *s = json_string_value(json_object_get(from, key));
    return s ? s : otherwise;
}

bool state_add_disk(Vm *vm, const json_t *from, Disk **ret_disk, Err *err)
{
    Disk *disk = sim_more(NULL, 0, sizeof *disk);
    disk->fd = -1;
    int n = 0;
    while (n < 60 && state_disk(vm, 2000 + n))
        n++;
    disk->key = json_object_get(from, "key") ? (int)json_integer_value(json_object_get(from, "key")) : 2000 + n;
    disk->unit = (int)vm->n_disks + (vm->n_disks >= 7); // 7 is the controller's own
    json_int_t size = json_integer_value(json_object_get(from, "size"));
    if (size <= 0 || size % 512)
        return err_set(err, ERR_INVALID, "%s: a disk's size is a multiple of 512", vm->entity->name);
    if (state_disk(vm, disk->key))
        return err_set(err, ERR_EXISTS, "%s has a disk %d", vm->entity->name, disk->key);
    disk->capacity = (uint64_t)size;
    const char *file = text_of(from, "file", NULL);
    disk->file = file ? sim_strdup(file)
        : vm->n_disks ? sim_printf("[%s] %s/%s_%zu.vmdk", vm->datastore, vm->folder_name, vm->folder_name, vm->n_disks)
                      : sim_printf("[%s] %s/%s.vmdk", vm->datastore, vm->folder_name, vm->folder_name);
    char uuid[UUID_TEXT];
    sim_new_uuid(uuid);
    disk->uuid = sim_strdup(text_of(from, "uuid", uuid));
    disk->mode = sim_strdup(text_of(from, "mode", "persistent"));
    disk->backing = sim_strdup(text_of(from, "backing", "FlatVer2"));
    if (text_of(from, "sharing", NULL))
        disk->sharing = sim_strdup(text_of(from, "sharing", NULL));
    disk->compatibility = sim_strdup(text_of(from, "compatibility", "virtualMode"));
    disk->star = sim_strdup(text_of(from, "star", "allocated"));
    static unsigned made; // a copy has the UUID of the disk that it replaces
    disk->path = sim_printf("%s/%s-%d-%u.raw", sim.folder, vm->entity->id, disk->key, made++);
    disk->allocated.n = (disk->capacity + sim.granule - 1) / sim.granule;
    const char *content = text_of(from, "content", NULL);
    if (content && symlink(content, disk->path) != 0)
        return err_errno(err, errno, "%s", disk->path);
    *grow(vm->disks, vm->n_disks) = disk;
    if (ret_disk)
        *ret_disk = disk;
    return true;
}

static bool add_vm(const json_t *from, const char *path, Err *err)
{
    const char *name;
    Entity *folder = make_folders(path, &name, err);
    if (!folder)
        return false;
    Vm *vm = sim_more(NULL, 0, sizeof *vm);
    vm->entity = add_entity(VIRTUAL_MACHINE, name, folder);
    vm->entity->vm = vm;
    if (json_object_get(from, "moref") && !json_object_get(from, "count"))
        snprintf(vm->entity->id, sizeof vm->entity->id, "%s", text_of(from, "moref", ""));
    vm->folder_name = sim_strdup(text_of(from, "folder_name", name));
    vm->datastore = sim_strdup(text_of(from, "datastore", "ds0"));
    vm->power = sim_strdup(text_of(from, "power", "poweredOn"));
    vm->version = sim_strdup(text_of(from, "version", "vmx-15"));
    vm->is_template = json_is_true(json_object_get(from, "template"));
    vm->quiesce_fails = json_is_true(json_object_get(from, "quiesce_fails"));
    sim_new_uuid(vm->uuid);
    sim_new_uuid(vm->instance_uuid);
    const json_t *cbt = json_object_get(from, "cbt");
    vm->cbt = json_is_true(cbt) ? CBT_ON : json_is_false(cbt) ? CBT_OFF : CBT_UNSET;
    size_t i;
    json_t *disk;
    json_array_foreach(json_object_get(from, "disks"), i, disk)
    {
        Disk *added;
        if (!state_add_disk(vm, disk, &added, err))
            return false;
        if (vm->cbt == CBT_ON)
            disk_track(added);
    }
    return true;
}

static bool add_vms(const json_t *from, Err *err)
{
    const char *path = text_of(from, "path", NULL);
    if (!path)
        return err_set(err, ERR_INVALID, "a VM without a path");
    json_int_t count = json_integer_value(json_object_get(from, "count"));
    if (!json_object_get(from, "count"))
        return add_vm(from, path, err);
    for (json_int_t i = 0; i < count; i++) {
        cleanup_free char *one = sim_printf("%s-%lld", path, (long long)i);
        if (!add_vm(from, one, err))
            return false;
    }
    return true;
}

static uint64_t number_of(const json_t *from, const char *key, uint64_t otherwise)
{
    const json_t *value = json_object_get(from, key);
    return json_is_integer(value) && json_integer_value(value) >= 0 ? (uint64_t)json_integer_value(value) : otherwise;
}

bool state_load(const char *path, Err *err)
{
    json_error_t why;
    json_t *state = json_load_file(path, JSON_REJECT_DUPLICATES, &why);
    if (!state)
        return err_set(err, ERR_INVALID, "%s: line %d: %s", path, why.line, why.text);
    sim.user = sim_strdup(text_of(state, "user", "backup@vsphere.local"));
    sim.password = sim_strdup(text_of(state, "password", "secret"));
    sim.prefix = sim_strdup(text_of(state, "prefix", "_XMLSchema-instance"));
    sim.granule = number_of(state, "granule", 65536);
    sim.max_areas = number_of(state, "max_areas", 2000);
    sim.max_length = number_of(state, "max_length", 0);
    sim.page_max = number_of(state, "page_max", 0);
    sim.max_sessions = number_of(state, "max_sessions", 0);
    sim.session_idle_ms = (int64_t)number_of(state, "session_idle_ms", 30 * 60 * 1000);
    sim.change_id_blanks = json_is_true(json_object_get(state, "change_id_blanks"));
    sim.cbt_at_snapshot = json_is_true(json_object_get(state, "cbt_at_snapshot"));
    if (sim.granule < 512 || sim.granule & (sim.granule - 1) || sim.granule > 1 << 24 || sim.max_areas == 0) {
        json_decref(state);
        return err_set(err, ERR_INVALID, "granule: a power of two, 512 to 16 MiB; max_areas: at least 1");
    }
    sim.next_id = 1;
    sim.root = add_entity(FOLDER, "Datacenters", NULL);
    size_t i;
    json_t *vm;
    bool ok = true;
    json_array_foreach(json_object_get(state, "vms"), i, vm)
    {
        ok = ok && add_vms(vm, err);
    }
    json_decref(state);
    return ok;
}

// ---- snapshots

char *state_file_now(const Vm *vm, const Disk *disk)
{
    size_t n = 0;
    for (size_t i = 0; i < vm->n_snapshots; i++)
        n += layer_of(vm->snapshots[i], disk) != NULL;
    if (n == 0)
        return sim_strdup(disk->file);
    const char *end = strrchr(disk->file, '.');
    int stem = end ? (int)(end - disk->file) : (int)strlen(disk->file);
    return sim_printf("%.*s-%06zu.vmdk", stem, disk->file, n);
}

void state_change_id(const char *epoch, uint32_t sequence, char out[192])
{
    if (!sim.change_id_blanks) {
        snprintf(out, 192, "%s/%u", epoch, sequence);
        return;
    }
    // 52 66 8c 2d a7 c5 c5 68-c5 d2 8d 04 79 f5 fd 7d/5490
    size_t at = 0, digits = 0;
    for (const char *s = epoch; *s && at < 100; s++) {
        if (*s == '-')
            continue;
        if (digits && digits % 2 == 0)
            out[at++] = digits == 16 ? '-' : ' ';
        out[at++] = *s;
        digits++;
    }
    snprintf(out + at, 192 - at, "/%u", sequence);
}

static void track_now(Vm *vm)
{
    if (!vm->cbt_pending)
        return;
    vm->cbt_pending = false;
    for (size_t i = 0; i < vm->n_disks; i++)
        disk_track(vm->disks[i]);
}

bool state_freeze(Vm *vm, const char *name, const char *description, bool quiesced, Snapshot **ret_snapshot, Err *err)
{
    if (sim.cbt_at_snapshot)
        track_now(vm);
    Snapshot *s = sim_more(NULL, 0, sizeof *s);
    snprintf(s->id, sizeof s->id, "snapshot-%d", sim.next_id++);
    s->number = ++vm->snapshots_made;
    s->name = sim_strdup(name);
    s->description = sim_strdup(description);
    s->quiesced = quiesced;
    s->created_us = clock_utc_us();
    s->vm = vm;
    s->cbt = vm->cbt == CBT_ON;
    s->layers = sim_more(NULL, 0, (vm->n_disks + 1) * sizeof(Layer));
    for (size_t i = 0; i < vm->n_disks; i++) {
        Disk *disk = vm->disks[i];
        if (!disk_can_freeze(disk))
            continue;
        Layer *layer = &s->layers[s->n_layers];
        if (!layer_init(layer, disk, s->id, err))
            return false;
        layer->file = state_file_now(vm, disk);
        s->n_layers++;
    }
    *grow(vm->snapshots, vm->n_snapshots) = s;
    *grow(sim.snapshots, sim.n_snapshots) = s;
    *ret_snapshot = s;
    return true;
}

static bool thaw_one(Vm *vm, size_t at, Err *err)
{
    Snapshot *s = vm->snapshots[at];
    for (size_t i = 0; i < s->n_layers; i++) {
        Layer *older = at ? layer_of(vm->snapshots[at - 1], s->layers[i].disk) : NULL;
        if (!layer_merge(&s->layers[i], older, err))
            return false;
    }
    s->gone = true;
    memmove(vm->snapshots + at, vm->snapshots + at + 1, (vm->n_snapshots - at - 1) * sizeof *vm->snapshots);
    vm->n_snapshots--;
    return true;
}

bool state_thaw(Snapshot *snapshot, bool children, Err *err)
{
    Vm *vm = snapshot->vm;
    size_t at = 0;
    while (vm->snapshots[at] != snapshot)
        at++;
    while (children && vm->n_snapshots > at + 1) {
        if (!thaw_one(vm, vm->n_snapshots - 1, err))
            return false;
    }
    if (!thaw_one(vm, at, err))
        return false;
    vm->consolidation_needed = vm->consolidation_needed || vm->consolidation_fails;
    track_now(vm);
    return true;
}

void state_switch_cbt(Vm *vm, bool on)
{
    if (on && vm->cbt != CBT_ON) {
        vm->cbt_pending = true;
        vm->cbt_poisoned = vm->n_snapshots > 0;
    }
    if (!on) {
        vm->cbt_pending = false;
        for (size_t i = 0; i < vm->n_disks; i++)
            disk_untrack(vm->disks[i]);
    }
    vm->cbt = on ? CBT_ON : CBT_OFF;
}
