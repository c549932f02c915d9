// The disks under a guest's devices: pure, on what QEMU answered. Safety rule 10.
#pragma once

#include "base/vec.h"

#include <jansson.h>

typedef struct GuestDisk { // texts borrowed from QEMU's answer, but for key
    char *key;             // the device's ID, or its place in the machine; owned
    const char *qdev;
    const char *node; // the top node now
    const char *filename;
    uint64_t size;
    uint64_t allocated; // bytes on disk; size where there are backing files
    bool may_persist;   // a QCOW2 that can hold bitmaps
    bool read_only;
} GuestDisk;

VEC_DEFINE(GuestDiskVec, guest_disk_vec, GuestDisk)

// Disks with a guest's device, in QEMU's order; passed over: removable ones (CD-ROM, floppy), empty ones. query_block:
// the answer of query-block; it must outlive the vector. ERR_PROTOCOL when it is not as QEMU documents it; ERR_CONFLICT
// when two disks have the same key.
bool guest_disks(const json_t *query_block, GuestDiskVec *ret, Err *err) must_check;
void guest_disks_clear(GuestDiskVec *v);
