// The commit record: one JSON file for each restore point; when it stands under its final name, the
// point exists (safety rule 14). And repository.json. Both are the truth that the database indexes.
#pragma once

#include "domain/audit.h"
#include "domain/chain.h"
#include "domain/job.h"
#include "image/hash.h"

#define RECORD_FORMAT 1
#define RECORD_MAX_BYTES (4u << 20)
#define RECORD_DISKS_MAX 256

typedef struct RecordDisk {
    char *disk_key;   // the source's name for the disk: stable, joined by it alone
    uint64_t disk_id; // its number: VMware's device key, or given by the hub, for good
    unsigned disk_no; // folder disk-<n>
    char *label;
    char *backing_identity; // what the source says the disk is (backing uuid, path); "" if unknown
    uint64_t size;
    DiskMode mode;
    ChainReason reason;
    char *reason_text; // details, e.g. the hypervisor's refusal; may be ""
    char *change_id;
    bool tracking;          // false: the change ID is a minted one of a disk that nothing tracks
    char *parent_backup_id; // NULL for full
    char *image;            // file name in disk-<n>/
    char *hashes;           // file name in disk-<n>/
    char *backing_name;     // the parent's image file name; NULL for full
    unsigned chain_length;  // images in this disk's chain, this one included
    uint64_t image_bytes, stored_bytes, transferred_bytes, changed_bytes;
    uint64_t areas, area_bytes; // that the tracking named; 0: not told
    uint64_t read_bytes;        // from the source, audit and comparison included; 0: not told
    AuditFigures audit;         // of its unchanged blocks, or all 0
    Hash root, metadata, hashes_digest;
} RecordDisk;

typedef struct Record {
    char *backup_id;
    char *vm_id; // UUID
    char *vm_name;
    char *source_type; // "file", "qemu"
    char *repository_uuid;
    char *context;          // folder name ctx-...
    char *parent_backup_id; // NULL: none
    uint64_t sequence;      // of the VM in this repository; the newest point has the highest
    BackupType requested_type, type;
    ChainReason reason;       // why the job is not incremental
    char *consistency;        // "application" (frozen by the agent), "crash", "inconsistent"
    char *consistency_detail; // what limits it; NULL
    bool partial;             // a disk was left out
    char *left_out;           // keys of disks that were left out, comma-separated; "" if none
    int64_t created_us, completed_us;
    RecordDisk *disks;
    size_t disks_len;
} Record;

void record_clear(Record *r);
void record_disk_clear(RecordDisk *d);
// One line of JSON with a "digest" of everything else in it (canonical dump, the repository's hash). ERR_INVALID for
// what could not be decoded again. Besides form and ranges: type is full exactly when every disk is; a disk that is not
// full has a backing name, a chain of 2 or more, and the record's own parent_backup_id as its parent (safety rule 3), a
// full one has neither; image and hashes have names of image/layout.h with one stem; partial exactly when left_out is
// not empty; disk keys, IDs and folders are unique; texts are not NULL unless said so above.
bool record_encode(const Record *r, const HashSpec *hash, char **ret_text, Err *err) must_check;
// Checks the digest, every byte of the form, and all of the above: ERR_DAMAGED. ERR_UNSUPPORTED for a sound record of a
// newer format.
bool record_decode(const char *text, size_t n, const HashSpec *hash, Record *ret, Err *err) must_check;

typedef struct RepositoryInfo {
    unsigned format; // 1; a higher one is refused
    char uuid[37];
    uint32_t cluster_size;
    bool extended_l2; // false for now; readers accept both
    HashSpec hash;
    int64_t created_us;
} RepositoryInfo;
bool repository_info_encode(const RepositoryInfo *i, char **ret_text, Err *err) must_check;
bool repository_info_decode(const char *text, size_t n, RepositoryInfo *ret, Err *err) must_check; // digest checked
