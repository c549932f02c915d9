// One end of a copy: a raw file or block device, read directly.
#pragma once

#include "source/file/layers.h"
#include "wire/blocks.h"

// Read-only; its map says zero where the file has holes (not on ZFS). The layer is borrowed: it has to outlive the end.
bool file_raw_open(const FileLayer *layer, Blocks **ret, Err *err) must_check;
