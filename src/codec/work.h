// What client and hub say to each other about a job: work order, announcement, progress, failure, completion.
// Both directions, because the hub reads what the client writes and the other way round. api/openapi.yaml.
//
// Decoding is bounded and checks every member's type and range. Requests (what the hub decodes) with members that
// nobody knows are refused, except completion and change ID, where the contract ignores them; answers (what the
// client decodes) may have more members than we know, so that a newer hub can serve an older client.
// Text is UTF-8. Everything in these structs is owned by them: _clear frees it; a zeroed struct is empty.
// Errors: ERR_INVALID that names the member, ERR_TOO_LARGE above WORK_BODY_MAX.
#pragma once

#include "base/secret.h"
#include "codec/json.h"
#include "domain/audit.h"
#include "domain/chain.h"
#include "domain/job.h"

#define WORK_BODY_MAX (4u << 20)
#define WORK_DISKS_MAX 256
#define WORK_TEXT_MAX 1024 // bytes of labels, identities and explanations
#define WORK_URI_MAX 2048
#define WORK_CA_MAX (64u << 10) // bytes of CA certificates in PEM

// How a disk's changes are tracked; nothing else exists on the wire. NULL for any other word.
// Returns a static string: "bitmap", "cbt", "none".
const char *work_tracking(const char *name);

// ---- claim: POST …/claim, answered by the work order
bool work_claim_encode(const char *claim_uuid, char **ret_text, Err *err) must_check;
bool work_claim_decode(const char *text, size_t n, char ret_uuid[37], Err *err) must_check;

typedef struct WorkParentDisk {
    char *disk_key;
    uint64_t disk_id;
    uint64_t size;
    char *change_id;
    bool tracking; // false: nothing tracks the disk, the change ID is minted
    char *backing_identity;
} WorkParentDisk;

typedef struct WorkInterrupted { // a disk of a run that may be gone on from
    char *disk_key;
    uint64_t size;
    char *token; // by which its source knows that instant
} WorkInterrupted;

// Where and how to log in to the vCenter of a VM. In the claim's answer and nowhere else.
typedef struct WorkVcenter {
    char *host; // "host[:port]"
    char *user;
    Secret password;
    char *thumbprint, *ca_pem; // one of them: SHA-256 of the certificate, "AB:CD:…"; PEM
} WorkVcenter;

typedef struct WorkOrder {
    char *job_id, *vm_id, *vm_name, *repository_uuid; // repository_uuid NULL: a replication
    uint32_t cluster_size;
    BackupType backup_type;
    json_t *source; // the VM's "source" object
    char **excluded_disks;
    size_t excluded_disks_len;
    char *parent_backup_id; // NULL: none
    WorkParentDisk *parent_disks;
    size_t parent_disks_len;
    char *interrupted_backup_id; // NULL: none
    WorkInterrupted *interrupted_disks;
    size_t interrupted_disks_len;
    unsigned lease_seconds;
    uint64_t audit_blocks;  // of each tracked disk; 0: none
    unsigned audit_percent; // of a disk's time that its audit may take; 0: as long as it takes
    WorkVcenter vcenter;    // host NULL: the VM is in none
} WorkOrder;

bool work_order_encode(const WorkOrder *w, char **ret_text, Err *err) must_check;
bool work_order_decode(const char *text, size_t n, WorkOrder *ret, Err *err) must_check;
void work_order_clear(WorkOrder *w);

// ---- announce: POST …/disks
typedef struct AnnounceDisk {
    char *disk_key;
    uint64_t disk_id; // 0: the source has no number of its own, the hub gives one
    char *label;
    uint64_t size;
    char *backing_identity; // "" if unknown
    char *change_id;
    const char *tracking;     // static: see work_tracking()
    char *base_change_id;     // NULL: no change set
    char *lost;               // NULL: nothing was lost
    ChainReason lost_code;    // one of chain_reason_is_loss(), or CHAIN_NONE
    uint64_t estimated_bytes; // that changed since base_change_id
    uint64_t allocated_bytes; // that a full would move; the same as estimated_bytes where it is not sent
    char *token;              // by which a later run may know this instant; NULL: none can
    bool resumes;             // what changed since the work order's token of this disk can be told
} AnnounceDisk;

typedef struct Announce {
    AnnounceDisk *disks;
    size_t disks_len;
    char **left_out; // disk keys
    size_t left_out_len;
    char *consistency;        // "application", "crash", "inconsistent"
    char *consistency_detail; // NULL
} Announce;

bool announce_encode(const Announce *a, char **ret_text, Err *err) must_check;
// At least one disk; two disks of one key, or of one number other than 0: ERR_INVALID. Change IDs are checked.
bool announce_decode(const char *text, size_t n, Announce *ret, Err *err) must_check;
void announce_clear(Announce *a);

typedef struct AnnounceAnswerDisk {
    char *disk_key;
    uint64_t disk_id;
    unsigned disk_no;
    DiskMode mode;
    ChainReason reason;
    char *uri;
    char *leaves_uri; // hashes of what the export holds, cluster by cluster; NULL: it does not say
    char *hash_algorithm;
    uint64_t hash_seed;
    bool resume; // the export holds part of the interrupted run
} AnnounceAnswerDisk;

typedef struct AnnounceAnswer {
    AnnounceAnswerDisk *disks;
    size_t disks_len;
} AnnounceAnswer;

bool announce_answer_encode(const AnnounceAnswer *a, char **ret_text, Err *err) must_check;
bool announce_answer_decode(const char *text, size_t n, AnnounceAnswer *ret, Err *err) must_check;
void announce_answer_clear(AnnounceAnswer *a);

// ---- progress: POST …/progress, the heartbeat
typedef struct WorkProgressDisk {
    uint64_t disk_id, done_bytes, size, transferred_bytes, zero_bytes, changed_bytes, kept_bytes;
} WorkProgressDisk;

#define WORK_PHASE_CLOSING "closing" // without a point that it knows of, the client undoes what its source left to do
typedef struct WorkProgress {
    WorkProgressDisk *disks; // may be none: a heartbeat before the disks are known
    size_t disks_len;
    char *phase;
} WorkProgress;

bool work_progress_encode(const WorkProgress *p, char **ret_text, Err *err) must_check;
bool work_progress_decode(const char *text, size_t n, WorkProgress *ret, Err *err) must_check;
void work_progress_clear(WorkProgress *p);

typedef struct WorkProgressAnswer {
    bool cancel;
    JobState status;
} WorkProgressAnswer;

bool work_progress_answer_encode(const WorkProgressAnswer *a, char **ret_text, Err *err) must_check;
bool work_progress_answer_decode(const char *text, size_t n, WorkProgressAnswer *ret, Err *err) must_check;

// ---- fail: POST …/fail
typedef struct WorkFailure {
    char *error, *details;
    bool cancelled;
} WorkFailure;

// Texts are cut to what decode takes.
bool work_failure_encode(const WorkFailure *f, char **ret_text, Err *err) must_check;
bool work_failure_decode(const char *text, size_t n, WorkFailure *ret, Err *err) must_check;
void work_failure_clear(WorkFailure *f);

// ---- audit: POST …/audit (docs/internals/audit.md)
typedef struct WorkAudit {
    uint64_t disk_id;
    AuditFigures figures;
    uint64_t wrong_at; // offset in bytes of a block that is wrong; 0 where none is
} WorkAudit;

bool work_audit_encode(const WorkAudit *a, char **ret_text, Err *err) must_check;
// Figures that cannot be are ERR_INVALID: more checked than unchanged, more wrong than checked.
bool work_audit_decode(const char *text, size_t n, WorkAudit *ret, Err *err) must_check;

// ---- complete: POST /backups/{id}/complete, as the contract has it
typedef struct CompletionDisk {
    uint64_t disk_id;
    char *change_id;
    uint64_t bytes_transferred; // 0: not said
    const char *tracking;       // static, NULL: not said
    bool have_coverage;         // extents, covered_bytes and digest: all three or none
    uint64_t extents, covered_bytes, digest;
    uint64_t areas, area_bytes; // that the tracking named; 0: none, or not said
    uint64_t read_bytes;        // from the source, audit and comparison included; 0: not said
    uint64_t kept_bytes;        // of an interrupted backup, and not read again
} CompletionDisk;

typedef struct Completion {
    char *change_id;
    uint64_t bytes_transferred; // 0: not said
    CompletionDisk *disks;      // optional
    size_t disks_len;
} Completion;

bool completion_encode(const Completion *c, char **ret_text, Err *err) must_check;
// Titles are the contract's: "invalid request body" (not JSON, wrong types or ranges), "missing change_id" (absent,
// null or empty; looked at after the types). Unknown members are ignored. A change ID is kept as it came:
// at most 255 bytes without control characters.
bool completion_decode(const char *text, size_t n, Completion *ret, Err *err) must_check;
void completion_clear(Completion *c);

// ---- POST /replications/{id}/changeid; titles as above
typedef struct ChangeIdReport {
    char *change_id;
    bool have_disk_id;
    uint64_t disk_id;
    uint64_t bytes_transferred; // 0: not said
} ChangeIdReport;

bool changeid_report_encode(const ChangeIdReport *r, char **ret_text, Err *err) must_check;
bool changeid_report_decode(const char *text, size_t n, ChangeIdReport *ret, Err *err) must_check;
void changeid_report_clear(ChangeIdReport *r);
