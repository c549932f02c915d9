// Disks of a running QEMU, through its monitor (QMP). docs/internals/source-qemu.md.
#pragma once

#include "source/source.h"

extern const SourceOps source_qemu_ops; // type "qemu"
