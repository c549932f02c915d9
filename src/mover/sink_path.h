// Where a restore writes: under a name of its own beside the target, which gets its name only when all of it is on
// stable storage. A restore that fails leaves an existing target as it was.
#pragma once

#include "base/mem.h"

// "<path>.partial-<8 hex digits>". A path that is there: ERR_EXISTS unless `replace`; then it must be a regular file.
bool sink_path_partial(const char *path, bool replace, char **ret_partial, Err *err) must_check;
// Renames and syncs the folder. Without `replace` a target that appeared meanwhile is ERR_EXISTS.
bool sink_path_commit(const char *partial, const char *path, bool replace, Err *err) must_check;
