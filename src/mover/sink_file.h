// A raw disk image or a block device as the sink of a copy.
#pragma once

#include "wire/blocks.h"

typedef struct SinkFileSpec {
    const char *path;
    uint64_t size; // bytes of the disk
    bool replace;  // an existing file may be replaced, a block device overwritten
} SinkFileSpec;

// A file is written sparsely as PATH.partial (mover/sink_path.h) and gets its own name in sink_file_finish(). A block
// device is opened exclusively (in use: ERR_BUSY), must be large enough (else ERR_NO_SPACE), and needs `replace`.
// Requests complete at once. flush is fsync.
bool sink_file_open(const SinkFileSpec *spec, Blocks **ret, Err *err) must_check;
// After a copy that went well: the file gets its name, durably. Nothing to do for a device. Freeing a sink that was
// not finished removes the unfinished file.
bool sink_file_finish(Blocks *b, Err *err) must_check;
