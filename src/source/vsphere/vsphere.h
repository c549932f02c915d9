// Disks of a VM in vCenter: one snapshot for all of them, changed areas by CBT, bytes through nbdkit's vddk plugin.
// docs/internals/source-vsphere.md.
#pragma once

#include "source/source.h"

extern const SourceOps source_vsphere_ops; // type "vsphere"
