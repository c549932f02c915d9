// The spec of a VM of type "vsphere": {"type", "source", "vm", "quiesce"?, "disks_unsupported"?, "unallocated"?} as it
// is sent, and, once the hub has asked the vCenter, "moref", "instance_uuid" and "path". docs/internals/sources.md.
#pragma once

#include "source/common.h"

typedef enum VsphereQuiesce { VSPHERE_QUIESCE_AUTO, VSPHERE_QUIESCE_OFF, VSPHERE_QUIESCE_REQUIRE } VsphereQuiesce;

typedef struct VsphereSpec {                  // text borrowed from the JSON
    const char *source;                       // name of the registered source
    const char *vm;                           // as it was asked for: inventory path or moref
    const char *moref, *instance_uuid, *path; // NULL: not asked for yet
    VsphereQuiesce quiesce;
    bool skip_unsupported; // disks that no snapshot holds are left out; else they fail the backup
    bool unallocated_zero; // what the vCenter calls not in use is taken for zero; else it is read
} VsphereSpec;

bool vsphere_spec_read(const json_t *spec, VsphereSpec *ret, Err *err) must_check;
