// What the parts of the vSphere source share.
#pragma once

#include "source/vsphere/spec.h"
#include "wire/child.h"
#include "wire/vim.h"

#include <pthread.h>

#define VSPHERE_KEY_TEXT 16
#define VSPHERE_MODE_TEXT 160
#define VSPHERE_PREFIX 64

typedef struct VsphereDiskState {
    VimDisk disk;       // as the snapshot has it; owned
    char *base, *since; // change IDs that the vCenter accepts; NULL: none. Owned
    bool in_use_known;  // the vCenter names the areas in use
} VsphereDiskState;

// The leave to read one disk: a place of its ESXi host and one of its vCenter, as descriptors; -1: none.
typedef struct VsphereSlot {
    int host, vcenter;
} VsphereSlot;
#define VSPHERE_NO_SLOT ((VsphereSlot){.host = -1, .vcenter = -1})

typedef struct VsphereSource {
    Source s;
    const SourceRequest *req; // while opening only
    VsphereSpec spec;         // texts borrowed from the request
    char *moref;
    char *snapshot_name; // of this run
    char prefix[VSPHERE_PREFIX];
    bool making;         // one may be in the making
    char *snapshot;      // moref; NULL: none (any more)
    char *thumbprint;    // SHA-1, for VDDK
    char *host, *user;
    Secret password;
    VsphereDiskState *disks; // as many as s.disks
    bool tracks;             // CBT is on and works
    bool unallocated_zero;   // VsphereSpec
    char why_not[256];       // or why it does not

    const atomic_bool *cancel; // these three are the request's
    void (*waits)(void *ctx, const char *for_what);
    void *waits_ctx;
    char *esx; // moref of the host that the VM runs on; "": not said

    pthread_mutex_t lock; // vim, once the source is open: copies of several disks ask at a time, and alive.c
    Vim *vim;
    pthread_t alive; // alive.c; what follows is under `lock`
    pthread_cond_t alive_ends;
    int alive_ms;
    bool alive_runs, alive_over;
    pthread_mutex_t slot_lock; // what follows; held for moments only
    VsphereSlot slot;          // in hand for the next disk
    size_t disks_left;         // to be opened
} VsphereSource;

bool vsphere_pause(const VsphereSource *v, int ms); // false: cancelled

// slots.c: each waits for its turn, or for a cancel; main thread only. Into v->slot; *ret_waited: it took a while.
bool vsphere_slot_reserve(VsphereSource *v, bool *ret_waited, Err *err) must_check;
// For the next disk that is opened.
bool vsphere_slot_take(VsphereSource *v, VsphereSlot *ret, Err *err) must_check;
// A disk was read: its slot is for the next one, as long as there is one to open. From any thread.
void vsphere_slot_return(VsphereSource *v, VsphereSlot *slot);
void vsphere_slot_clear(VsphereSlot *slot);

// alive.c: from here to there the session does not end for want of questions. The end waits for 5 s at most.
bool vsphere_alive_start(VsphereSource *v, Err *err) must_check;
void vsphere_alive_stop(VsphereSource *v);

#define VSPHERE_TASK_MS (30 * 60 * 1000)                          // a consolidation of large disks takes its time
void vsphere_prefix(const char *vm_id, char out[VSPHERE_PREFIX]); // of the names of all snapshots of a VM's runs
// Is it the VM that was registered? ERR_CONFLICT.
bool vsphere_is_same_vm(const VsphereSpec *spec, const VimVm *vm, Err *err) must_check;
// clean.c: SourceOps.sweep.
bool vsphere_sweep(const SourceSweep *s, Err *err) must_check;

// snapshot.c: what earlier runs left goes; then the frozen view. Fills v->snapshot, consistency.
bool vsphere_snapshot_open(VsphereSource *v, Err *err) must_check;
// Our snapshot goes, change tracking is switched off and on, and there is another one. *ret_possible false: nothing was
// done, as the VM has snapshots of others.
bool vsphere_snapshot_renew(VsphereSource *v, bool *ret_possible, Err *err) must_check;
bool vsphere_snapshot_close(VsphereSource *v, Err *err) must_check;
bool vsphere_snapshot_stands(VsphereSource *v, Err *err) must_check;

// areas.c: an end that has no bytes: extents() gives as `changed` what changed since change_id.
bool vsphere_areas_open(VsphereSource *v, size_t disk, const char *change_id, Blocks **ret, Err *err) must_check;
// Does the vCenter say what changed since then? False with ERR_CONFLICT or ERR_PROTOCOL: tracking is lost, and why.
bool vsphere_areas_probe(VsphereSource *v, const VimDisk *d, const char *change_id, uint64_t *ret_bytes, Err *err)
    must_check;

// reads.c: is there what reads disks: nbdkit, its plugin, and a VDDK that it can load? ERR_NOT_FOUND.
bool vsphere_reads_check(Err *err) must_check;
// The disk's bytes, and `areas` (owned, may be NULL) as its change set; in_use: as what is in use, the rest is
// zero.
bool vsphere_reads_open(VsphereSource *v, size_t disk, Blocks *areas, bool in_use, Blocks **ret, Err *err) must_check;
