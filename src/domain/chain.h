// Which image a disk's next one stands on, and how it is read: pure rules (safety rules 1 to 4).
#pragma once

#include "base/err.h"

#include <stdint.h>

typedef enum DiskMode {
    DISK_FULL,    // whole disk, no backing file
    DISK_TRACKED, // the hypervisor says what changed since the parent's change ID
    DISK_COMPARE, // everything is read, what equals the parent is not stored
} DiskMode;

const char *disk_mode_name(DiskMode m); // "full", "tracked", "compare"
bool disk_mode_parse(const char *name, DiskMode *ret, Err *err) must_check;

// Why a disk is not `tracked`, or a job not incremental. The names are stable: they are in records,
// in the API and in metrics.
typedef enum ChainReason {
    CHAIN_NONE,           // "": nothing to explain
    CHAIN_REQUESTED,      // the user asked for a full
    CHAIN_FIRST,          // no completed point of this VM in this repository
    CHAIN_LIMIT,          // the chain has its maximum of points
    CHAIN_NEW_DISK,       // the parent point does not hold this disk
    CHAIN_PARENT_DAMAGED, // the parent's image, hashes or record are not what was written
    CHAIN_PARENT_SUSPECT, // a verify or audit made the parent suspect
    CHAIN_RESIZED,        // the size differs from the parent's
    CHAIN_NOT_TRACKED,    // nothing tracks this kind of source
    CHAIN_NEVER_TRACKED,  // nothing tracked the disk's changes when the parent was made
    CHAIN_ID_REFUSED,     // the hypervisor does not answer for the parent's change ID
    CHAIN_EPOCH_CHANGED,  // tracking began anew since the parent
    CHAIN_REPLACED,       // another disk is behind the same key
    CHAIN_TRACKING_LOST,  // the source cannot tell, for another reason
    CHAIN_AUDIT_FAILED,   // blocks that tracking calls unchanged are not what the parent has (docs/internals/audit.md)
    CHAIN_OTHER_LAYOUT,   // the repository's cluster size or hash differs from the parent's
    CHAIN_REASONS
} ChainReason;

const char *chain_reason_name(ChainReason r); // "chain_limit"; "" for CHAIN_NONE
const char *chain_reason_text(ChainReason r); // for people
bool chain_reason_parse(const char *name, ChainReason *ret, Err *err) must_check;

#define CHAIN_LIMIT_DEFAULT 30

typedef struct ChainInput {
    bool full_requested;
    bool have_parent_point; // newest completed point of the VM in this repository
    unsigned chain_length;  // points in the parent's chain, the parent included, for this disk
    unsigned chain_limit;   // at least 1
    bool have_parent_disk;  // that very point holds this disk key
    bool parent_damaged;
    bool parent_suspect;
    uint64_t size, parent_size;
    bool source_tracks;           // this source has a change tracking
    const char *base_change_id;   // what the source's change set is computed from; NULL: refused
    const char *parent_change_id; // this disk's, in the parent point; NULL: none
    bool parent_tracking;         // the parent's change ID is a hypervisor's, not a minted one
    ChainReason lost;             // why there is no base_change_id; CHAIN_NONE: CHAIN_TRACKING_LOST
} ChainInput;

// Of those by which a source says why it cannot tell what changed.
bool chain_reason_is_loss(ChainReason r);

// The first rule that applies wins, in the order of the enum above: requested, first, limit, new disk, damaged -> full;
// suspect, resized, not tracked, never tracked (a parent without a hypervisor's ID), what the source says of its loss
// (a base_change_id that is not the parent's, byte for byte, is tracking lost) -> compare; else tracked with
// CHAIN_NONE. CHAIN_OTHER_LAYOUT is for the caller who sees the repository, CHAIN_AUDIT_FAILED comes later: this
// function never gives them.
DiskMode chain_decide(const ChainInput *in, ChainReason *ret_reason);
