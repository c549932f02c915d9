// Where a restore writes: as PATH.partial beside the target, which gets its name only when all of it is on stable
// storage. A restore that fails leaves an existing target as it was; one that was killed leaves PATH.partial, which the
// next one replaces.
#pragma once

#include "base/mem.h"

// A target under way; its members are for reading only.
typedef struct SinkPath {
    char *path, *partial;
    int fd; // of the partial file or the device; reads and writes, and is locked by file_lock_bytes()
    bool replace;
} SinkPath;

#define SINK_PATH_NONE ((SinkPath){.fd = -1})

// Makes "<path>.partial", empty, and holds it: neither another restore nor a QEMU opens it. One that nobody holds is a
// rest, and replaced; held: ERR_BUSY; not a regular file: ERR_CONFLICT. A path that is there: ERR_EXISTS unless
// `replace`; then it must be a regular file.
bool sink_path_open(const char *path, bool replace, SinkPath *ret, Err *err) must_check;
// A block device as it is, held exclusively. In use: ERR_BUSY.
bool sink_path_open_device(const char *path, SinkPath *ret, Err *err) must_check;
// Renames and syncs the folder. Without `replace` a target that appeared meanwhile is ERR_EXISTS. Nothing to do for a
// device.
bool sink_path_commit(SinkPath *p, Err *err) must_check;
// What was not committed is removed. Fine on SINK_PATH_NONE.
void sink_path_clear(SinkPath *p);

// Removes the rest that a killed restore to that path left, for its space; errors as above.
bool sink_path_remove_rest(const char *path, Err *err) must_check;
