// One backup under way: what hub, engine and client would hold between them.
#pragma once

#include "ends.h"
#include "history.h"
#include "image/layout.h"

typedef enum JobKill { // where it ends before its time
    KILL_NONE,
    KILL_FROZEN,  // after the freeze: nothing but bitmaps is left of it
    KILL_REQUEST, // a request of the copy fails, or the job is cancelled
    KILL_WRITE,   // the engine cannot write
    KILL_COPIED,  // everything arrived, nothing is sealed
    KILL_LIE,     // another coverage is declared than what arrived
    KILL_SEALING, // the engine cannot write while it seals
    KILL_SEALED,  // sealed and not committed
    KILL_COMMIT,  // between two steps of the commit
    KILL_ANSWER,  // the point exists, the client never hears of it
    JOB_KILLS
} JobKill;

const char *job_kill_name(JobKill k);

typedef struct JobDisk {
    GuestDisk *guest;
    GuestView view;
    Reference ref;
    unsigned no;
    DiskMode mode;
    ChainReason reason;
    const RecordDisk *parent; // borrowed from the scan; NULL: none
    RepoChain chain;          // of the parent, where the mode needs it
    ChainHashes *hashes;
    unsigned chain_length;
    char backing_name[LAYOUT_NAME], image[LAYOUT_NAME], hashes_name[LAYOUT_NAME];
    char *image_path, *hashes_path; // partial
    Writer *writer;
    unsigned noise;
    Coverage coverage; // as the client declares it
    uint64_t transferred, changed;
    HashesSummary summary;
    Hash digest;
} JobDisk;

typedef struct Job {
    History *h;
    Vm *vm;
    VmAt *at;
    JobKill kill;
    bool full_requested;
    char id[NAME_BACKUP_ID], stem[NAME_STEM], attempt[17];
    uint64_t sequence;
    RepoScan scan;
    const Record *parent; // borrowed from the scan; NULL: none
    const Record *base;   // the same, but for a planted fault
    JobDisk disks[HISTORY_DISKS];
    size_t len;
    char left_out[GUEST_KEY]; // "": none
    Record rec;
} Job;

// job_disk.c
bool job_disk_prepare(Job *j, JobDisk *d, Err *err) must_check; // mode, parent's chain, the engine
// *ret_killed: it ended before its time, as it should have.
bool job_disk_copy(Job *j, JobDisk *d, bool *ret_killed, Err *err) must_check;
bool job_disk_seal(Job *j, JobDisk *d, bool lie, bool *ret_killed, Err *err) must_check;
void job_disk_clear(JobDisk *d);

// job_record.c: the commit record of what was sealed.
bool job_record_make(Job *j, Err *err) must_check;
