// Looks at some of the blocks that a copy did not send because tracking calls them unchanged: are they what the sink
// holds? docs/internals/audit.md. Belongs to one thread.
#pragma once

#include "domain/audit.h"
#include "mover/mover.h"

typedef struct Audit Audit;

typedef struct AuditSpec { // all borrowed while it is used
    uint64_t size;         // of the disk, bytes
    uint32_t cluster_size;
    uint64_t blocks; // to look at, at most: 1 to AUDIT_BLOCKS_MAX
} AuditSpec;

typedef struct AuditRun {
    Blocks *from;
    const MoverKnown *known;   // the sink's hashes, of what was there before the copy
    int64_t until_ms;          // clock_mono_ms(): nothing is started after it; 0: no limit
    const atomic_bool *cancel; // looked at at least every 100 ms
} AuditRun;

typedef struct AuditResult {
    AuditFigures figures; // a first wrong block ends the audit
    uint64_t wrong_at;    // offset in bytes of the lowest that was found, where there is one
    uint64_t read_bytes;
} AuditResult;

// Draws the blocks, before the copy.
bool audit_new(const AuditSpec *spec, Audit **ret, Err *err) must_check;
void audit_free(Audit *a);
// Of the copy: MoverSpec.planned, with the audit as its ctx. In ascending order, in whole clusters.
void audit_planned(void *audit, uint64_t offset, uint64_t length);
// After the copy, once. False: an end failed, or ERR_CANCELLED; the ends can be freed.
bool audit_run(Audit *a, const AuditRun *run, AuditResult *ret, Err *err) must_check;
