// Disks that are files, block devices or NBD exports: VMs that are off, or that nobody else writes.
// docs/internals/source-file.md.
#pragma once

#include "source/source.h"

extern const SourceOps source_file_ops; // type "file"
