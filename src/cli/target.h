// Where a restore may write, looked at before anything is written. Refused whatever is forced: a path in a repository,
// a device that is mounted or swapped to or open for writing (or a part of which is), a file that somebody has open,
// either when it is locked (a running QEMU), folders and everything else that is neither file nor block device.
#pragma once

#include "base/mem.h"

#include <sys/stat.h>

// The kernel's account of what is in use; another one for tests.
typedef struct TargetSystem {
    const char *mountinfo; // /proc/self/mountinfo
    const char *swaps;     // /proc/swaps
    const char *devices;   // /sys/dev/block
    const char *processes; // /proc: of other users only root is told what they have open
} TargetSystem;

extern const TargetSystem target_system;

typedef struct Target {
    char *path; // absolute, links resolved; owned
    bool device;
} Target;

// ERR_EXISTS: it is there, and not forced. ERR_BUSY: in use. ERR_CONFLICT: a repository. ERR_NOT_FOUND: no such folder.
bool target_check(const TargetSystem *system, const char *path, bool force, Target *ret, Err *err) must_check;
void target_clear(Target *t);
// The folder of a target that is a file, for its free space. New memory.
char *target_folder(const Target *t, Err *err) must_check;

// A part of target_check(): ERR_BUSY says by what it is used.
bool target_device_is_free(const TargetSystem *system, const char *path, dev_t device, Err *err) must_check;
