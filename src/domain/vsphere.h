// vSphere: how a vCenter and its VMs are named, and what stands in a backup's way. Pure rules.
#pragma once

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

#define VSPHERE_ADDRESS_MAX 262 // bytes: a DNS name, ':' and a port
#define VSPHERE_PATH_MAX 2048   // bytes of an inventory path

// "host", "host:port", "192.0.2.1", "[2001:db8::1]:443": nothing that could lead elsewhere in a URL.
bool vsphere_check_address(const char *address, Err *err) must_check;
bool vsphere_is_moref(const char *text); // "vm-16"
// An inventory path ("/DC0/vm/folder/NAME") or a moref.
bool vsphere_check_vm(const char *text, Err *err) must_check;

// ---- what stands in a backup's way
typedef struct VsphereDisk {
    int32_t key;
    const char *backing;            // "FlatVer2" and the like; "" where it is not known
    const char *disk_mode;          // "persistent", "independent_persistent", …
    const char *compatibility_mode; // of a raw device mapping: "physicalMode", "virtualMode"; else ""
    const char *sharing;            // "sharingNone", "sharingMultiWriter", ""
    const char *bus_sharing;        // of its controller: "noSharing", "virtualSharing", "physicalSharing", ""
} VsphereDisk;

typedef struct VsphereVm {
    unsigned hardware_version;    // 0: not known
    const char *connection_state; // "connected", "disconnected", "inaccessible", "orphaned", "invalid", ""
    bool is_described;            // false: nothing but its name and states can be seen
    bool is_template, cbt_on, cbt_unsupported, consolidation_needed;
    size_t snapshots;
    const VsphereDisk *disks;
    size_t disks_len;
} VsphereVm;

typedef struct VsphereObstacle {
    const char *code;        // static
    const char *text;        // static, for people: what it is, and what to do
    const VsphereDisk *disk; // NULL: the whole VM
} VsphereObstacle;

#define VSPHERE_VM_OBSTACLES 6 // of the VM; each disk has one at most, besides

// What is in the way of a backup of all disks; docs/internals/sources.md has the codes. ret has room for
// VSPHERE_VM_OBSTACLES + disks_len; returns how many there are.
size_t vsphere_obstacles(const VsphereVm *vm, VsphereObstacle *ret);
// Why no snapshot holds that disk, or nothing tracks it; false: it can be backed up.
bool vsphere_disk_obstacle(const VsphereDisk *disk, VsphereObstacle *ret);
