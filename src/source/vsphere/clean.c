// Snapshots that killed runs of a VM left, when no run lives: SourceOps.sweep. docs/internals/clean.md.
#include "base/str.h"
#include "source/vsphere/parts.h"

static void vim_cleanup(Vim **v)
{
    vim_close(*v);
}

static bool clean_snapshot(const SourceSweep *s, Vim *vim, const VimVm *vm, const VimSnapshot *snapshot, Err *err)
{
    Err why = ERR_INIT;
    SourceLeft left = {.kind = "snapshot", .name = snapshot->name, .where = vm->path[0] ? vm->path : vm->name};
    if (s->remove)
        left.fate = vim_snapshot_remove(vim, snapshot->moref, VSPHERE_TASK_MS, &why) ? SOURCE_REMOVED : SOURCE_FAILED;
    if (left.fate == SOURCE_FAILED)
        left.why = why.details;
    return s->found(s->ctx, &left, err);
}

bool vsphere_sweep(const SourceSweep *s, Err *err)
{
    VsphereSpec spec;
    cleanup(vim_cleanup) Vim *vim = NULL;
    cleanup(vim_vm_clear) VimVm vm = {0};
    char prefix[VSPHERE_PREFIX];
    if (!vsphere_spec_read(s->spec, &spec, err))
        return false;
    if (!s->vcenter || !spec.moref)
        return err_set(err, ERR_INVALID, "nothing says how to reach the vCenter");
    VimSpec login = {.host = s->vcenter->host,
                     .user = s->vcenter->user,
                     .password = s->vcenter->password,
                     .thumbprint = s->vcenter->thumbprint,
                     .ca_pem = s->vcenter->ca_pem,
                     .cancel = s->cancel};
    if (!vim_open(&login, &vim, err) || !vim_vm(vim, spec.moref, &vm, err) || !vsphere_is_same_vm(&spec, &vm, err))
        return false;
    vsphere_prefix(s->vm_id, prefix);
    for (size_t i = 0; i < vm.snapshots_len; i++)
        if (str_starts(vm.snapshots[i].name, prefix) && !clean_snapshot(s, vim, &vm, &vm.snapshots[i], err))
            return false;
    return true;
}
