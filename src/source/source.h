// Where a VM's disks come from: one struct of functions. A source freezes all disks of a VM at one
// instant, says what it knows of each, and gives an end to read each from. file/, qemu/ today;
// libvirt and vSphere fit the same table.
#pragma once

#include "base/secret.h"
#include "domain/chain.h"
#include "wire/blocks.h"

#include <jansson.h>
#include <stdatomic.h>

// What the work order tells a source. All text borrowed for the source's lifetime.
typedef struct SourceParent { // one disk of the parent point
    const char *disk_key;
    const char *change_id;
    const char *backing_identity;
    bool tracking;
    uint64_t size;
} SourceParent;

typedef struct SourceInterrupted { // one disk of a run that did not come to its end
    const char *disk_key;
    uint64_t size;
    const char *token;
} SourceInterrupted;

typedef struct SourceVcenter { // where to log in, for a VM in one
    const char *host, *user;
    const Secret *password;
    const char *thumbprint, *ca_pem; // one of them is set
} SourceVcenter;

typedef struct SourceRequest {
    const char *job_id;
    const char *vm_id; // UUID
    const char *repository_uuid;
    const json_t *spec;          // the VM's "source" object
    const char *const *excluded; // disk keys, NULL-terminated; may be NULL
    const SourceParent *parents; // empty for a full
    size_t parents_len;
    const SourceInterrupted *interrupted; // which may be gone on from (docs/internals/resume.md)
    size_t interrupted_len;
    const SourceVcenter *vcenter; // NULL: the VM is in none
    const char *scratch;          // folder for scratch images; NULL: the source's default
    const atomic_bool *cancel;    // looked at while waiting
    // It waits for its turn, and for what; NULL: it goes on. From the thread that called; may be NULL. Works, like
    // `cancel`, for the source's lifetime.
    void (*waits)(void *ctx, const char *for_what);
    void *waits_ctx;
} SourceRequest;

typedef struct SourceDisk {
    char *key;        // stable name of the disk; joined by nothing else
    uint64_t disk_id; // the hypervisor's number, or 0: the hub gives one
    char *label;
    uint64_t size;          // bytes, exact
    char *backing_identity; // "" if unknown
    char *change_id;        // of this instant
    const char *tracking;   // "bitmap", "cbt", "none" (change_id minted, never given to a hypervisor)
    char *base_change_id;   // the change set is computed from this one; NULL: there is none
    char *lost;             // why there is none, or nothing tracks the disk, for people; NULL: nothing to say
    ChainReason lost_code;  // the same, for programs: one of chain_reason_is_loss(); CHAIN_NONE: nothing more is known
    uint64_t allocated_bytes; // data that a full would move; size, or 0, if unknown
    uint64_t estimated_bytes; // dirty bytes since base_change_id; without one, allocated_bytes
    char *token;              // by which a later run can tell what changed since this instant; NULL: none can
    bool resumes;             // since() works: the interrupted run's token is one that can be compared with
} SourceDisk;

// ---- what runs of a VM left in its hypervisor (docs/internals/clean.md)

typedef struct SourceNeed { // a later backup will ask what changed since
    const char *repository_uuid, *change_id;
} SourceNeed;

typedef enum SourceFate { SOURCE_THERE, SOURCE_REMOVED, SOURCE_FAILED, SOURCE_STAYS } SourceFate;

typedef struct SourceLeft { // texts borrowed
    const char *kind, *name, *where;
    SourceFate fate;
    const char *why; // it failed, or stays; else NULL
} SourceLeft;

typedef struct SourceSweep { // all borrowed
    const char *vm_id;       // UUID; no run of it lives
    const json_t *spec;
    const SourceVcenter *vcenter;    // NULL: the VM is in none
    const char *const *repositories; // UUIDs: what `needs` has of them is all that is needed. Of others all is
    size_t repositories_len;
    const SourceNeed *needs;
    size_t needs_len;
    bool all_tracking; // also what is needed, of any repository
    bool remove;       // else it is only looked for
    const atomic_bool *cancel;
    bool (*found)(void *ctx, const SourceLeft *left, Err *err); // once for each thing; false ends it
    void *ctx;
} SourceSweep;

typedef struct Source Source;

typedef struct SourceOps {
    const char *type; // "file", "qemu", "vsphere"
    // Check the spec of a VM, without touching anything: members, types, absolute paths.
    bool (*check_spec)(const json_t *spec, Err *err);
    // Freeze. On failure *ret is NULL, or what is yet to be closed, which may take minutes. Whatever an earlier, killed
    // run left behind is resolved first.
    bool (*open)(const SourceRequest *req, Source **ret, Err *err);
    // An end to read disk i from; with_changes: its extents() gives the change set since base_change_id.
    bool (*blocks)(Source *s, size_t disk, bool with_changes, Blocks **ret, Err *err);
    // What changed since the interrupted run, of a disk that `resumes`: an end whose extents() gives it as `changed`.
    // NULL: nothing did.
    bool (*since)(Source *s, size_t disk, Blocks **ret, Err *err);
    // After the last read, before `complete`: does the frozen view still stand? (safety rules 9, 11)
    bool (*intact)(Source *s, Err *err);
    // Ends the frozen view: no export, scratch image, job or frozen filesystem stays. completed: the hub has recorded
    // the point, so older change tracking may go. Errors are reported, and never undo a completed point.
    bool (*close)(Source *s, bool completed, Err *err); // frees s in any case
    // Looks for what runs of the VM left, and takes it away. NULL: such runs leave nothing. An error is what kept it
    // from looking; what could not be removed is told by found(). ERR_UNAVAILABLE, ERR_NOT_FOUND: there is
    // no hypervisor.
    bool (*sweep)(const SourceSweep *s, Err *err);
} SourceOps;

struct Source {
    const SourceOps *ops;
    SourceDisk *disks;
    size_t disks_len;
    char **left_out; // keys that were excluded and exist; owned
    size_t left_out_len;
    const char *consistency;  // "application", "crash", "inconsistent"
    unsigned parallel;        // disks that are best read at a time; 0: no opinion
    char *consistency_detail; // what limits it, e.g. why the agent did not freeze; NULL
};

void source_disk_clear(SourceDisk *d);
// NULL and ERR_INVALID for an unknown type.
const SourceOps *source_find(const char *type, Err *err) must_check;
