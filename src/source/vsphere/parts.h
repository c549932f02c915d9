// What the parts of the vSphere source share.
#pragma once

#include "source/vsphere/spec.h"
#include "wire/child.h"
#include "wire/vim.h"

#include <pthread.h>

#define VSPHERE_KEY_TEXT 16
#define VSPHERE_MODE_TEXT 160

typedef struct VsphereDiskState {
    VimDisk disk;       // as the snapshot has it; owned
    char *base, *since; // change IDs that the vCenter accepts; NULL: none. Owned
} VsphereDiskState;

typedef struct VsphereSource {
    Source s;
    const SourceRequest *req; // while opening only
    VsphereSpec spec;         // texts borrowed from the request
    char *moref;
    char *snapshot_name; // of this run
    char *snapshot;      // moref; NULL: none (any more)
    char *thumbprint;    // SHA-1, for VDDK
    char *host, *user;
    Secret password;
    VsphereDiskState *disks; // as many as s.disks
    bool tracks;             // CBT is on and works
    char why_not[256];       // or why it does not

    pthread_mutex_t lock; // vim: copies of several disks ask at a time
    Vim *vim;
} VsphereSource;

// snapshot.c: what earlier runs left goes; then the frozen view. Fills v->snapshot, consistency.
bool vsphere_snapshot_open(VsphereSource *v, Err *err) must_check;
bool vsphere_snapshot_close(VsphereSource *v, Err *err) must_check;
bool vsphere_snapshot_stands(VsphereSource *v, Err *err) must_check;

// areas.c: an end that has no bytes: extents() gives as `changed` what changed since change_id.
bool vsphere_areas_open(VsphereSource *v, size_t disk, const char *change_id, Blocks **ret, Err *err) must_check;
// Does the vCenter say what changed since then? False with ERR_CONFLICT or ERR_PROTOCOL: tracking is lost, and why.
bool vsphere_areas_probe(VsphereSource *v, const VimDisk *d, const char *change_id, uint64_t *ret_bytes, Err *err)
    must_check;

// reads.c: the disk's bytes, and `areas` (owned, may be NULL) as its change set.
bool vsphere_reads_open(VsphereSource *v, size_t disk, Blocks *areas, Blocks **ret, Err *err) must_check;
