// vsphere-simulator: the control socket. A line of JSON is a command, a line answers it: {"ok": true, ...} or
// {"ok": false, "error": ...}. docs/internals/vsphere-bench.md lists the commands.
#include "simulator.h"

#include "base/clock.h"
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static int listener = -1;

static const char *text(const json_t *from, const char *key, const char *otherwise)
{
    const char *s = json_string_value(json_object_get(from, key));
    return s ? s : otherwise;
}

static uint64_t number(const json_t *from, const char *key, uint64_t otherwise)
{
    const json_t *value = json_object_get(from, key);
    return json_is_integer(value) && json_integer_value(value) >= 0 ? (uint64_t)json_integer_value(value) : otherwise;
}

static bool vm_of(const json_t *c, Vm **ret_vm, Err *err)
{
    const char *name = text(c, "vm", "");
    *ret_vm = state_vm(name);
    if (!*ret_vm)
        err_set(err, ERR_NOT_FOUND, "no VM '%s'", name);
    return *ret_vm != NULL;
}

static bool disk_of(const json_t *c, Vm **ret_vm, Disk **ret_disk, Err *err)
{
    if (!vm_of(c, ret_vm, err))
        return false;
    int key = (int)number(c, "disk", 2000);
    *ret_disk = state_disk(*ret_vm, key);
    if (!*ret_disk)
        err_set(err, ERR_NOT_FOUND, "no disk %d", key);
    return *ret_disk != NULL;
}

// Calls f for each [offset, length] of "areas", or for "offset" and "length".
typedef bool AreaFunction(Vm *vm, Disk *disk, uint64_t offset, uint64_t n, const json_t *c, Err *err);

static bool each_area(const json_t *c, AreaFunction *f, Err *err)
{
    Vm *vm;
    Disk *disk;
    if (!disk_of(c, &vm, &disk, err))
        return false;
    const json_t *areas = json_object_get(c, "areas");
    if (!areas)
        return f(vm, disk, number(c, "offset", 0), number(c, "length", 0), c, err);
    size_t i;
    const json_t *area;
    json_array_foreach(areas, i, area)
    {
        uint64_t offset = (uint64_t)json_integer_value(json_array_get(area, 0));
        uint64_t n = (uint64_t)json_integer_value(json_array_get(area, 1));
        if (!f(vm, disk, offset, n, c, err))
            return false;
    }
    return true;
}

// ---- what the guest does

static bool write_fill(Vm *vm, Disk *disk, uint64_t offset, uint64_t n, const json_t *c, Err *err)
{
    uint64_t step = MIN(n, UINT64_C(1) << 20);
    cleanup_free uint8_t *data = sim_more(NULL, 0, step + 1);
    memset(data, (int)number(c, "fill", 0), step);
    for (uint64_t end = offset + n; offset < end;) {
        uint64_t part = MIN(step, end - offset);
        if (!disk_write(vm, disk, offset, data, part, err))
            return false;
        offset += part;
    }
    return true;
}

// Each 512-byte sector holds its own number and the stamp, so that no two are alike.
static bool write_stamps(Vm *vm, Disk *disk, uint64_t offset, uint64_t n, const json_t *c, Err *err)
{
    uint64_t stamp = number(c, "stamp", 0), end = offset + n;
    if (offset % 512 || n % 512)
        return err_set(err, ERR_INVALID, "stamps go into whole sectors");
    uint64_t step = MIN(n, UINT64_C(1) << 20);
    cleanup_free uint64_t *data = sim_more(NULL, 0, step + 1);
    while (offset < end) {
        uint64_t part = MIN(step, end - offset);
        for (uint64_t i = 0; i < part / 8; i++)
            data[i] = i % 2 ? stamp : (offset + i * 8) / 512;
        if (!disk_write(vm, disk, offset, data, part, err))
            return false;
        offset += part;
    }
    return true;
}

static bool write_data(const json_t *c, Err *err)
{
    Vm *vm;
    Disk *disk;
    const json_t *value = json_object_get(c, "data");
    size_t room = json_string_length(value), n;
    if (!disk_of(c, &vm, &disk, err))
        return false;
    cleanup_free uint8_t *data = sim_more(NULL, 0, room + 1);
    if (sodium_base642bin(data, room, json_string_value(value), room, NULL, &n, NULL, sodium_base64_VARIANT_ORIGINAL) !=
        0)
        return err_set(err, ERR_INVALID, "data is not base64");
    return disk_write(vm, disk, number(c, "offset", 0), data, n, err);
}

static bool do_write(const json_t *c, json_t *reply, Err *err)
{
    (void)reply;
    if (json_is_string(json_object_get(c, "data")))
        return write_data(c, err);
    return each_area(c, json_object_get(c, "stamp") ? write_stamps : write_fill, err);
}

static bool trim_one(Vm *vm, Disk *disk, uint64_t offset, uint64_t n, const json_t *c, Err *err)
{
    (void)c;
    return disk_write(vm, disk, offset, NULL, n, err);
}

static bool do_trim(const json_t *c, json_t *reply, Err *err)
{
    (void)reply;
    return each_area(c, trim_one, err);
}

static bool touch_one(Vm *vm, Disk *disk, uint64_t offset, uint64_t n, const json_t *c, Err *err)
{
    (void)vm;
    uint64_t every = number(c, "every", 0); // each so many bytes one granule, so that areas can be many
    for (uint64_t at = offset; every && at < offset + n; at += every) {
        if (!disk_touch(disk, at, 1, err))
            return false;
    }
    return every || disk_touch(disk, offset, n, err);
}

static bool do_touch(const json_t *c, json_t *reply, Err *err)
{
    (void)reply;
    return each_area(c, touch_one, err);
}

// ---- what happens to disks

static bool do_resize(const json_t *c, json_t *reply, Err *err)
{
    (void)reply;
    Vm *vm;
    Disk *disk;
    if (!disk_of(c, &vm, &disk, err))
        return false;
    if (vm->n_snapshots && !json_is_true(json_object_get(c, "force")))
        return err_set(err, ERR_CONFLICT, "the VM has snapshots");
    return disk_resize(vm, disk, number(c, "size", 0), err);
}

static void remove_disk(Vm *vm, const Disk *disk)
{
    size_t i = 0;
    while (vm->disks[i] != disk)
        i++;
    memmove(vm->disks + i, vm->disks + i + 1, (vm->n_disks - i - 1) * sizeof *vm->disks);
    vm->n_disks--;
}

static bool do_add_disk(const json_t *c, json_t *reply, Err *err)
{
    Vm *vm;
    Disk *disk;
    if (!vm_of(c, &vm, err) || !state_add_disk(vm, c, &disk, err))
        return false;
    if (vm->cbt == CBT_ON && !vm->cbt_pending)
        disk_track(disk);
    json_object_set_new(reply, "key", json_integer(disk->key));
    json_object_set_new(reply, "path", json_string(disk->path));
    return true;
}

static bool do_remove_disk(const json_t *c, json_t *reply, Err *err)
{
    (void)reply;
    Vm *vm;
    Disk *disk;
    if (!disk_of(c, &vm, &disk, err))
        return false;
    remove_disk(vm, disk);
    return true;
}

// Another disk under the same key
static bool do_replace(const json_t *c, json_t *reply, Err *err)
{
    Vm *vm;
    Disk *disk;
    if (!disk_of(c, &vm, &disk, err))
        return false;
    json_t *copy = json_copy((json_t *)c);
    json_object_set_new(copy, "key", json_integer(disk->key));
    if (!json_object_get(c, "size"))
        json_object_set_new(copy, "size", json_integer((json_int_t)disk->capacity));
    remove_disk(vm, disk);
    bool ok = do_add_disk(copy, reply, err);
    json_decref(copy);
    return ok;
}

// ---- what happens to change tracking

static bool do_reset_cbt(const json_t *c, json_t *reply, Err *err)
{
    (void)reply;
    Vm *vm;
    Disk *one = NULL;
    if (!vm_of(c, &vm, err) || (json_object_get(c, "disk") && !disk_of(c, &vm, &one, err)))
        return false;
    for (size_t i = 0; i < vm->n_disks; i++) {
        if (vm->disks[i]->tracking && (!one || one == vm->disks[i]))
            disk_track(vm->disks[i]);
    }
    return true;
}

static bool do_lose_cbt(const json_t *c, json_t *reply, Err *err)
{
    (void)reply;
    Vm *vm;
    Disk *disk;
    if (!disk_of(c, &vm, &disk, err))
        return false;
    disk->lost = true;
    return true;
}

static bool hide_one(Vm *vm, Disk *disk, uint64_t offset, uint64_t n, const json_t *c, Err *err)
{
    (void)vm;
    (void)c;
    return disk_hide(disk, offset, n, err);
}

static bool do_lie(const json_t *c, json_t *reply, Err *err)
{
    (void)reply;
    static const char *const kinds[] = {
        [LIE_NONE] = "omit",         [LIE_ZERO_LENGTH] = "zero_length", [LIE_UNORDERED] = "unordered",
        [LIE_OVERLAP] = "overlap",   [LIE_PAST_END] = "past_end",       [LIE_BEFORE] = "before",
        [LIE_START] = "other_start",
    };
    Vm *vm;
    Disk *disk;
    if (!disk_of(c, &vm, &disk, err))
        return false;
    const char *kind = text(c, "kind", "omit");
    if (strcmp(kind, "none") == 0) {
        free(mem_take(disk->hidden.words));
        disk->lie = LIE_NONE;
        return true;
    }
    for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
        if (strcmp(kind, kinds[i]) == 0) {
            disk->lie = (Lie)i;
            return i || each_area(c, hide_one, err);
        }
    }
    return err_set(err, ERR_INVALID, "no lie '%s'", kind);
}

// ---- what happens to the vCenter

static void fault_of(const json_t *c, Fault *ret_fault)
{
    *ret_fault = (Fault){0};
    if (text(c, "type", NULL))
        fault_set(ret_fault, text(c, "type", ""), text(c, "body", NULL), "%s", text(c, "message", ""));
}

static bool do_fault(const json_t *c, json_t *reply, Err *err)
{
    (void)reply;
    static const char *const kinds[] = {
        [INJECT_FAULT] = "fault",
        [INJECT_503] = "503",
        [INJECT_DROP_BEFORE] = "drop_before",
        [INJECT_DROP_MIDDLE] = "drop_middle",
        [INJECT_DROP_AFTER] = "drop_after",
        [INJECT_DELAY] = "delay",
        [INJECT_CUT] = "cut",
    };
    const char *kind = text(c, "kind", "fault");
    for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
        if (strcmp(kind, kinds[i]) != 0)
            continue;
        Injection *in = grow(sim.injections, sim.n_injections);
        snprintf(in->call, sizeof in->call, "%s", text(c, "call", "*"));
        in->least = (ReadOfDisk){number(c, "disk", 0), number(c, "from", 0), number(c, "length", 0)};
        in->before = number(c, "before", 0);
        in->kind = (InjectKind)i;
        in->skip = number(c, "skip", 0);
        in->times = number(c, "times", 1);
        in->amount = number(c, "ms", number(c, "bytes", 0));
        fault_of(c, &in->fault);
        return in->kind != INJECT_FAULT || in->fault.type[0] || err_set(err, ERR_INVALID, "a fault has a type");
    }
    return err_set(err, ERR_INVALID, "no fault '%s'", kind);
}

static bool do_task(const json_t *c, json_t *reply, Err *err)
{
    (void)reply;
    (void)err;
    Plan *plan = grow(sim.plans, sim.n_plans);
    snprintf(plan->call, sizeof plan->call, "%s", text(c, "call", ""));
    plan->times = number(c, "times", 1);
    plan->ms = (int64_t)number(c, "ms", 0);
    plan->held = json_is_true(json_object_get(c, "hold"));
    plan->not_cancelable = json_is_false(json_object_get(c, "cancelable"));
    fault_of(c, &plan->fault);
    return true;
}

static bool do_progress(const json_t *c, json_t *reply, Err *err)
{
    (void)reply;
    (void)err;
    for (size_t i = 0; i < sim.n_tasks; i++) {
        if (sim.tasks[i]->held)
            sim.tasks[i]->progress = (int)number(c, "percent", 0);
    }
    return true;
}

// Returns when what was held is over: a task that came to be at any later moment made tests fail, once in a hundred.
static bool do_release(const json_t *c, json_t *reply, Err *err)
{
    (void)c;
    (void)reply;
    int64_t until = clock_mono_ms() + 30000;
    struct timespec t = {.tv_sec = until / 1000, .tv_nsec = until % 1000 * 1000000};
    for (size_t i = 0; i < sim.n_tasks; i++)
        sim.tasks[i]->held = false;
    pthread_cond_broadcast(&sim.changed);
    for (size_t i = 0; i < sim.n_tasks; i++) {
        while (sim.tasks[i]->state == TASK_RUNNING && !sim.tasks[i]->held) {
            if (sim.stopping || pthread_cond_timedwait(&sim.changed, &sim.lock, &t) != 0)
                return err_set(err, ERR_TIMEOUT, "a task does not come to its end");
        }
    }
    return true;
}

// Of one call, or all of it, tasks included.
static bool do_heal(const json_t *c, json_t *reply, Err *err)
{
    (void)reply;
    (void)err;
    const char *call = text(c, "call", NULL);
    for (size_t i = 0; i < sim.n_injections; i++)
        if (!call || strcmp(sim.injections[i].call, call) == 0)
            sim.injections[i].times = 0;
    if (!call)
        sim.n_injections = sim.n_plans = 0;
    sim.healed++;
    return true;
}

static bool do_expire_sessions(const json_t *c, json_t *reply, Err *err)
{
    (void)c;
    (void)reply;
    (void)err;
    for (size_t i = 0; i < sim.n_sessions; i++)
        session_end(sim.sessions[i]);
    return true;
}

// A restart forgets sessions and filters; tasks and snapshots are the hosts' and stay
static bool do_down(const json_t *c, json_t *reply, Err *err)
{
    sim.down = true;
    sim.hosts_up = json_is_true(json_object_get(c, "hosts_up"));
    return do_expire_sessions(c, reply, err);
}

static bool do_up(const json_t *c, json_t *reply, Err *err)
{
    (void)c;
    (void)reply;
    (void)err;
    sim.down = false;
    return true;
}

static bool do_set(const json_t *c, json_t *reply, Err *err)
{
    (void)reply;
    (void)err;
    sim.read_latency_ms = (int64_t)number(c, "read_latency_ms", (uint64_t)sim.read_latency_ms);
    sim.soap_latency_ms = (int64_t)number(c, "soap_latency_ms", (uint64_t)sim.soap_latency_ms);
    sim.session_idle_ms = (int64_t)number(c, "session_idle_ms", (uint64_t)sim.session_idle_ms);
    sim.max_areas = MAX(1, number(c, "max_areas", sim.max_areas));
    sim.max_length = number(c, "max_length", sim.max_length);
    sim.max_sessions = number(c, "max_sessions", sim.max_sessions);
    sim.page_max = number(c, "page_max", sim.page_max);
    if (json_object_get(c, "change_id_blanks"))
        sim.change_id_blanks = json_is_true(json_object_get(c, "change_id_blanks"));
    if (text(c, "password", NULL))
        sim.password = sim_strdup(text(c, "password", NULL));
    const json_t *missing = json_object_get(c, "missing_privileges");
    if (missing) {
        sim.n_missing_privileges = 0;
        size_t i;
        const json_t *one;
        json_array_foreach(missing, i, one)
        {
            *grow(sim.missing_privileges, sim.n_missing_privileges) = sim_strdup(json_string_value(one));
        }
    }
    return true;
}

static bool do_vm(const json_t *c, json_t *reply, Err *err)
{
    (void)reply;
    Vm *vm;
    if (!vm_of(c, &vm, err))
        return false;
    const struct {
        const char *name;
        bool *value;
    } flags[] = {{"quiesce_fails", &vm->quiesce_fails},
                 {"consolidation_needed", &vm->consolidation_needed},
                 {"consolidation_fails", &vm->consolidation_fails},
                 {"cbt_poisoned", &vm->cbt_poisoned}};
    for (size_t i = 0; i < ARRAY_LEN(flags); i++) {
        const json_t *value = json_object_get(c, flags[i].name);
        if (json_is_boolean(value))
            *flags[i].value = json_is_true(value);
    }
    if (text(c, "power", NULL))
        vm->power = sim_strdup(text(c, "power", NULL));
    if (text(c, "name", NULL))
        vm->entity->name = sim_strdup(text(c, "name", NULL));
    if (json_is_boolean(json_object_get(c, "cbt")))
        state_switch_cbt(vm, json_is_true(json_object_get(c, "cbt")));
    return true;
}

// ---- snapshots that somebody makes by hand

static bool do_snapshot(const json_t *c, json_t *reply, Err *err)
{
    Vm *vm;
    Snapshot *s;
    if (!vm_of(c, &vm, err) ||
        !state_freeze(vm, text(c, "name", "by hand"), text(c, "description", ""), false, &s, err))
        return false;
    json_object_set_new(reply, "snapshot", json_string(s->id));
    return true;
}

static bool snapshot_of(const json_t *c, Snapshot **ret_snapshot, Err *err)
{
    *ret_snapshot = state_snapshot(text(c, "snapshot", ""));
    if (!*ret_snapshot)
        err_set(err, ERR_NOT_FOUND, "no snapshot '%s'", text(c, "snapshot", ""));
    return *ret_snapshot != NULL;
}

static bool do_remove_snapshot(const json_t *c, json_t *reply, Err *err)
{
    (void)reply;
    Snapshot *s;
    return snapshot_of(c, &s, err) && state_thaw(s, false, err);
}

// To the newest one: the chain has no forks. What becomes of change tracking is what releases differ in.
static bool do_revert(const json_t *c, json_t *reply, Err *err)
{
    (void)reply;
    Snapshot *s;
    const char *tracking = text(c, "tracking", "anew");
    bool anew = strcmp(tracking, "anew") == 0, lost = strcmp(tracking, "lost") == 0;
    if (!snapshot_of(c, &s, err))
        return false;
    if (s->gone || s->vm->snapshots[s->vm->n_snapshots - 1] != s)
        return err_set(err, ERR_CONFLICT, "%s is not the newest snapshot", s->id);
    if (!anew && !lost && strcmp(tracking, "silent") != 0)
        return err_set(err, ERR_INVALID, "tracking is anew, lost or silent");
    for (size_t i = 0; i < s->n_layers; i++) {
        Disk *disk = s->layers[i].disk;
        if (!layer_revert(s, &s->layers[i], err))
            return false;
        if (anew && disk->tracking)
            disk_track(disk);
        disk->lost = disk->lost || lost;
    }
    return true;
}

// The frozen content, as a sparse raw file
static bool do_export(const json_t *c, json_t *reply, Err *err)
{
    (void)reply;
    Snapshot *s;
    if (!snapshot_of(c, &s, err))
        return false;
    int key = (int)number(c, "disk", 2000);
    const Layer *layer = NULL;
    for (size_t i = 0; i < s->n_layers; i++) {
        if (s->layers[i].disk->key == key)
            layer = &s->layers[i];
    }
    if (!layer)
        return err_set(err, ERR_NOT_FOUND, "no disk %d in %s", key, s->id);
    const char *to = text(c, "to", "");
    cleanup_close int fd = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, (off_t)layer->capacity) != 0)
        return err_errno(err, errno, "%s", to);
    cleanup_free uint8_t *data = sim_more(NULL, 0, sim.granule);
    for (uint64_t g = 0; (g = bits_next(&layer->allocated, g, true)) < layer->allocated.n; g++) {
        uint64_t offset = g * sim.granule, n = MIN(sim.granule, layer->capacity - offset);
        if (!layer_read(s, layer, offset, data, n, err) || !file_pwrite(fd, data, n, offset, err))
            return false;
    }
    return true;
}

// ---- questions

static json_t *disk_json(const Vm *vm, const Disk *disk)
{
    char id[192] = "";
    if (disk->tracking)
        state_change_id(disk->epoch, disk->sequence, id);
    cleanup_free char *file = state_file_now(vm, disk);
    return json_pack("{s:i, s:I, s:s, s:s, s:s, s:s, s:b}", "key", disk->key, "size", (json_int_t)disk->capacity,
                     "file", file, "uuid", disk->uuid, "path", disk->path, "change_id", id, "tracking", disk->tracking);
}

static json_t *vm_json(const Vm *vm)
{
    static const char *const cbt[] = {"unset", "off", "on"};
    json_t *disks = json_array(), *snapshots = json_array();
    for (size_t i = 0; i < vm->n_disks; i++)
        json_array_append_new(disks, disk_json(vm, vm->disks[i]));
    for (size_t i = 0; i < vm->n_snapshots; i++) {
        const Snapshot *s = vm->snapshots[i];
        json_array_append_new(snapshots,
                              json_pack("{s:s, s:s, s:s, s:b}", "moref", s->id, "name", s->name, "description",
                                        s->description, "quiesced", s->quiesced));
    }
    return json_pack("{s:s, s:s, s:s, s:b, s:o, s:o}", "moref", vm->entity->id, "name", vm->entity->name, "cbt",
                     cbt[vm->cbt], "consolidation_needed", vm->consolidation_needed, "disks", disks, "snapshots",
                     snapshots);
}

static bool do_state(const json_t *c, json_t *reply, Err *err)
{
    json_t *vms = json_array();
    json_object_set_new(reply, "vms", vms);
    if (json_object_get(c, "vm")) {
        Vm *vm;
        return vm_of(c, &vm, err) && json_array_append_new(vms, vm_json(vm)) == 0;
    }
    for (size_t i = 0; i < sim.n_entities; i++) {
        if (sim.entities[i]->vm)
            json_array_append_new(vms, vm_json(sim.entities[i]->vm));
    }
    return true;
}

static bool do_calls(const json_t *c, json_t *reply, Err *err)
{
    (void)err;
    json_t *counts = json_object();
    for (size_t i = 0; i < sim.n_counts; i++)
        json_object_set_new(counts, sim.counts[i].name, json_integer((json_int_t)sim.counts[i].n));
    json_object_set_new(reply, "calls", counts);
    uint64_t sessions = 0, views = 0, filters = 0;
    for (size_t i = 0; i < sim.n_sessions; i++) {
        const Session *s = sim.sessions[i];
        sessions += !s->gone;
        for (size_t j = 0; !s->gone && j < s->n_views; j++)
            views += !s->views[j]->gone;
        for (size_t j = 0; !s->gone && j < s->n_filters; j++)
            filters += !s->filters[j]->gone;
    }
    json_object_set_new(reply, "sessions", json_integer((json_int_t)sessions));
    json_object_set_new(reply, "views", json_integer((json_int_t)views));
    json_object_set_new(reply, "filters", json_integer((json_int_t)filters));
    json_object_set_new(reply, "reads_most", json_integer((json_int_t)sim.reads_most));
    json_object_set_new(reply, "disks_most", json_integer((json_int_t)sim.disks_most));
    if (json_is_true(json_object_get(c, "clear")))
        sim.n_counts = sim.reads_most = sim.disks_most = 0;
    return true;
}

// Until a call was made that often
static bool do_wait_call(const json_t *c, json_t *reply, Err *err)
{
    (void)reply;
    const char *call = text(c, "call", "");
    uint64_t n = number(c, "count", 1);
    int64_t until = clock_mono_ms() + (int64_t)number(c, "seconds", 60) * 1000;
    struct timespec t = {.tv_sec = until / 1000, .tv_nsec = until % 1000 * 1000000};
    for (;;) {
        for (size_t i = 0; i < sim.n_counts; i++) {
            if (strcmp(sim.counts[i].name, call) == 0 && sim.counts[i].n >= n)
                return true;
        }
        if (sim.stopping || pthread_cond_timedwait(&sim.changed, &sim.lock, &t) != 0)
            return err_set(err, ERR_TIMEOUT, "%s was not called %ju times", call, (uintmax_t)n);
    }
}

static bool do_certificate(const json_t *c, json_t *reply, Err *err)
{
    (void)reply;
    pthread_mutex_unlock(&sim.lock);
    bool ok = http_certificate(text(c, "cert", ""), text(c, "key", ""), err);
    pthread_mutex_lock(&sim.lock);
    return ok;
}

static const struct {
    const char *name;
    bool (*f)(const json_t *c, json_t *reply, Err *err);
} commands[] = {
    {"write", do_write},
    {"trim", do_trim},
    {"touch", do_touch},
    {"resize", do_resize},
    {"add_disk", do_add_disk},
    {"remove_disk", do_remove_disk},
    {"replace", do_replace},
    {"reset_cbt", do_reset_cbt},
    {"lose_cbt", do_lose_cbt},
    {"lie", do_lie},
    {"fault", do_fault},
    {"task", do_task},
    {"progress", do_progress},
    {"release", do_release},
    {"heal", do_heal},
    {"expire_sessions", do_expire_sessions},
    {"down", do_down},
    {"up", do_up},
    {"set", do_set},
    {"vm", do_vm},
    {"snapshot", do_snapshot},
    {"remove_snapshot", do_remove_snapshot},
    {"revert", do_revert},
    {"export", do_export},
    {"state", do_state},
    {"calls", do_calls},
    {"wait_call", do_wait_call},
    {"certificate", do_certificate},
};

static bool command(const char *line, size_t len, json_t *reply, Err *err)
{
    json_error_t why;
    json_t *c = json_loadb(line, len, JSON_REJECT_DUPLICATES, &why);
    if (!c)
        return err_set(err, ERR_INVALID, "%s", why.text);
    const char *name = text(c, "cmd", "");
    bool ok = false;
    size_t i = 0;
    while (i < ARRAY_LEN(commands) && strcmp(commands[i].name, name) != 0)
        i++;
    if (i < ARRAY_LEN(commands)) {
        pthread_mutex_lock(&sim.lock);
        ok = commands[i].f(c, reply, err);
        pthread_cond_broadcast(&sim.changed);
        pthread_mutex_unlock(&sim.lock);
    } else {
        err_set(err, ERR_INVALID, "no command '%s'", name);
    }
    json_decref(c);
    return ok;
}

static void *serve(void *opaque)
{
    int fd = (int)(intptr_t)opaque;
    FILE *in = fdopen(fd, "r");
    char *line = NULL;
    size_t room = 0;
    ssize_t n;
    while (in && (n = getline(&line, &room, in)) > 0) {
        Err err = ERR_INIT;
        json_t *reply = json_object();
        bool ok = command(line, (size_t)n, reply, &err);
        json_object_set_new(reply, "ok", json_boolean(ok));
        if (!ok)
            json_object_set_new(reply, "error", json_string(err.details));
        cleanup_free char *answer = json_dumps(reply, JSON_COMPACT);
        json_decref(reply);
        if (!answer || dprintf(fd, "%s\n", answer) < 0)
            break;
    }
    free(line);
    if (in)
        fclose(in);
    return NULL;
}

static void *accept_all(void *unused)
{
    (void)unused;
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, serve, (void *)(intptr_t)fd) == 0)
            pthread_detach(thread);
        else
            close(fd);
    }
    return NULL;
}

bool control_start(const char *path, Err *err)
{
    struct sockaddr_un where = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof where.sun_path)
        return err_set(err, ERR_USAGE, "%s: too long for a socket", path);
    memcpy(where.sun_path, path, strlen(path) + 1);
    listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&where, sizeof where) != 0 || listen(listener, 16) != 0)
        return err_errno(err, errno, "%s", path);
    pthread_t thread;
    int why = pthread_create(&thread, NULL, accept_all, NULL);
    if (why)
        return err_errno(err, why, "a thread");
    pthread_detach(thread);
    return true;
}
