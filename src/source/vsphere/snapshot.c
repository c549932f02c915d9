// The snapshot of a run, and what runs before it left. Named "sendense.<VM's UUID here>.<random>": whatever has that
// beginning is of a run of this VM, and there is one at a time.
#include "base/clock.h"
#include "base/str.h"
#include "base/uuid.h"
#include "source/vsphere/parts.h"

#include <stdio.h>

#define TASK_MS VSPHERE_TASK_MS
#define PREFIX "sendense."

void vsphere_prefix(const char *vm_id, char out[VSPHERE_PREFIX])
{
    (void)snprintf(out, VSPHERE_PREFIX, PREFIX "%s.", vm_id);
}

bool vsphere_is_same_vm(const VsphereSpec *spec, const VimVm *vm, Err *err)
{
    return !spec->instance_uuid || !vm->instance_uuid[0] || strcasecmp(spec->instance_uuid, vm->instance_uuid) == 0 ||
        err_set(err, ERR_CONFLICT, "%s is another VM by now (%s); HINT: register the VM again", vm->moref,
                vm->path[0] ? vm->path : vm->name);
}

static bool make_name(VsphereSource *v, char **ret, Err *err)
{
    unsigned char random[4];
    char hex[9];
    if (!uuid_random_bytes(random, sizeof(random), err))
        return false;
    str_hex(random, sizeof(random), hex);
    free(*ret);
    *ret = mem_printf(err, "%s%s", v->prefix, hex);
    v->making = true;
    return *ret != NULL;
}

// Whatever runs of this VM made and left. *ret_any: there was something.
static bool remove_ours(VsphereSource *v, const VimVm *vm, bool *ret_any, Err *err)
{
    *ret_any = false;
    for (size_t i = 0; i < vm->snapshots_len; i++) {
        if (!str_starts(vm->snapshots[i].name, v->prefix))
            continue;
        *ret_any = true;
        if (!vim_snapshot_remove(v->vim, vm->snapshots[i].moref, TASK_MS, err))
            return false;
    }
    return true;
}

static bool sweep_earlier(VsphereSource *v, VimVm *vm, Err *err)
{
    bool any;
    vsphere_prefix(v->req->vm_id, v->prefix);
    if (!remove_ours(v, vm, &any, err))
        return err_context(err, "removing the snapshot that an earlier backup left");
    if (!any)
        return true;
    vim_vm_clear(vm);
    *vm = (VimVm){0};
    return vim_vm(v->vim, v->moref, vm, err);
}

static void no_tracking(VsphereSource *v, const char *why)
{
    v->tracks = false;
    (void)snprintf(v->why_not, sizeof(v->why_not), "%.*s", (int)sizeof(v->why_not) - 1, why);
}

// A change of the tracking takes effect with the next snapshot that is made and removed.
static bool pass_a_snapshot(VsphereSource *v, Err *err)
{
    cleanup_free char *name = NULL, *moref = NULL;
    if (!make_name(v, &name, err) ||
        !vim_snapshot_create(v->vim, v->moref, name, "Sendense: switches change tracking", false, TASK_MS, &moref,
                             err) ||
        !vim_snapshot_remove(v->vim, moref, TASK_MS, err))
        return false;
    v->making = false;
    return true;
}

// Switched on where it is off.
static bool ensure_tracking(VsphereSource *v, const VimVm *vm, Err *err)
{
    Err why = ERR_INIT;
    v->tracks = true;
    if (vm->tracking == VIM_YES)
        return true;
    if (vm->tracking_supported == VIM_NO) {
        no_tracking(v, "the VM's hardware version cannot track changes (7 or later can)");
        return true;
    }
    if (vm->snapshots_len > 0) {
        no_tracking(
            v,
            "change tracking is off, and is not switched on while the VM has snapshots, since its answers would "
            "be wrong; "
            "remove them");
        return true;
    }
    if (!vim_set_cbt(v->vim, v->moref, true, TASK_MS, &why)) {
        if (why.code == ERR_CANCELLED || why.code == ERR_UNAVAILABLE) {
            *err = why;
            return false;
        }
        no_tracking(v, why.details);
        return true;
    }
    return pass_a_snapshot(v, err);
}

static bool create(VsphereSource *v, bool quiesce, Err *err)
{
    char description[256];
    (void)snprintf(description, sizeof(description), "Sendense: backup %.200s; it goes when that is over",
                   v->req->job_id);
    if (!vim_snapshot_create(v->vim, v->moref, v->snapshot_name, description, quiesce, TASK_MS, &v->snapshot, err))
        return false;
    v->making = false;
    return true;
}

static bool freeze(VsphereSource *v, const VimVm *vm, Err *err)
{
    Err why = ERR_INIT;
    bool running = str_eq(vm->power_state, "poweredOn");
    v->s.consistency = "crash";
    free(mem_take(v->s.consistency_detail));
    if (v->spec.quiesce == VSPHERE_QUIESCE_OFF || !running)
        return create(v, false, err);
    bool tools = str_eq(vm->tools_status, "guestToolsRunning");
    if (v->spec.quiesce == VSPHERE_QUIESCE_AUTO && !tools)
        return mem_replace(&v->s.consistency_detail, "VMware Tools do not run in the guest", err) &&
            create(v, false, err);
    if (create(v, true, &why)) {
        v->s.consistency = "application";
        return true;
    }
    if (v->spec.quiesce == VSPHERE_QUIESCE_REQUIRE || !vim_fault(v->vim)->quiescing) {
        *err = why;
        return false;
    }
    return mem_replace(&v->s.consistency_detail, why.details, err) && create(v, false, err);
}

// The leave to read the first disk comes before the snapshot, which would grow while the job is only queued.
static bool wait_for_turn(VsphereSource *v, VimVm *vm, Err *err)
{
    for (;;) {
        bool waited = false;
        if (!mem_replace(&v->esx, vm->host, err) || !vsphere_slot_reserve(v, &waited, err))
            return false;
        if (!waited)
            return true;
        vim_vm_clear(vm); // hours may have passed
        *vm = (VimVm){0};
        if (!vim_vm(v->vim, v->moref, vm, err))
            return false;
        if (str_eq(vm->host, v->esx))
            return true;
        vsphere_slot_clear(&v->slot); // it has moved to another host
    }
}

bool vsphere_snapshot_open(VsphereSource *v, Err *err)
{
    cleanup(vim_vm_clear) VimVm vm = {0};
    if (!vim_vm(v->vim, v->moref, &vm, err))
        return err->code == ERR_NOT_FOUND
            ? err_context(err, "%s, %s, is not in the vCenter any more; registered there anew? sendense vm change",
                          v->spec.path ? v->spec.path : v->spec.vm, v->moref)
            : false;
    if (!vsphere_is_same_vm(&v->spec, &vm, err))
        return false;
    return sweep_earlier(v, &vm, err) && wait_for_turn(v, &vm, err) && ensure_tracking(v, &vm, err) &&
        make_name(v, &v->snapshot_name, err) && freeze(v, &vm, err);
}

bool vsphere_snapshot_renew(VsphereSource *v, bool *ret_possible, Err *err)
{
    cleanup(vim_vm_clear) VimVm before = {0}, after = {0};
    Err why = ERR_INIT; // a vCenter that refuses: then all stays as it was
    if (!vim_vm(v->vim, v->moref, &before, err))
        return false;
    *ret_possible = before.snapshots_len == 1;
    if (!*ret_possible)
        return true;
    if (!vim_snapshot_remove(v->vim, v->snapshot, TASK_MS, err))
        return false;
    free(mem_take(v->snapshot));
    if (!(vim_set_cbt(v->vim, v->moref, false, TASK_MS, &why) && pass_a_snapshot(v, &why)) &&
        (why.code == ERR_CANCELLED || why.code == ERR_UNAVAILABLE)) {
        *err = why;
        return false;
    }
    return vim_vm(v->vim, v->moref, &after, err) && ensure_tracking(v, &after, err) &&
        make_name(v, &v->snapshot_name, err) && freeze(v, &after, err);
}

// By its name: a call whose answer was lost may have made it.
static bool find(VsphereSource *v, const VimVm *vm, char **ret, Err *err)
{
    for (size_t i = 0; i < vm->snapshots_len; i++)
        if (v->snapshot_name && str_eq(vm->snapshots[i].name, v->snapshot_name))
            return mem_replace(ret, vm->snapshots[i].moref, err);
    return true;
}

bool vsphere_snapshot_stands(VsphereSource *v, Err *err)
{
    cleanup(vim_vm_clear) VimVm vm = {0};
    cleanup_free char *found = NULL;
    if (!vim_vm(v->vim, v->moref, &vm, err) || !find(v, &vm, &found, err))
        return false;
    return (found && str_eq(found, v->snapshot)) ||
        err_set(err, ERR_CONFLICT, "the snapshot was removed while it was read");
}

// One that was in the making when its task was cancelled, or whose removal failed, is there by its name.
static bool remove_unclear(VsphereSource *v, Err *err)
{
    cleanup(vim_vm_clear) VimVm vm = {0};
    bool any;
    return !v->making ||
        (vim_settle(v->vim, v->moref, TASK_MS, err) && vim_vm(v->vim, v->moref, &vm, err) &&
         remove_ours(v, &vm, &any, err));
}

bool vsphere_snapshot_close(VsphereSource *v, Err *err)
{
    cleanup(vim_vm_clear) VimVm after = {0};
    vim_set_cancel(v->vim, NULL); // whatever became of the job, it goes
    if (!v->snapshot && !v->making)
        return true;
    if ((v->snapshot && !vim_snapshot_remove(v->vim, v->snapshot, TASK_MS, err)) || !remove_unclear(v, err))
        return err_context(err, "removing the snapshot; the next backup tries again");
    if (!vim_vm(v->vim, v->moref, &after, err))
        return false;
    return !after.consolidation_needed ||
        err_set(err, ERR_CONFLICT, "the VM's disks need consolidation; HINT: vCenter, Snapshots, Consolidate");
}
