// What it proves that some of the blocks were looked at which change tracking calls unchanged. docs/internals/audit.md.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define AUDIT_BLOCKS_DEFAULT 3000
#define AUDIT_BLOCKS_MAX 1000000
#define AUDIT_PPM_ALL 1000000u // parts in a million
#define AUDIT_PPM_CLEAN 10000u // an audit that proves less than this does not count as clean
#define AUDIT_BLOCKS_CLEAN 300 // blocks of which none is wrong prove as much

// In blocks: clusters of the repository.
typedef struct AuditFigures {
    bool made;          // false: there was no audit, and the rest is 0
    uint64_t unchanged; // as tracking says
    uint64_t checked;   // of them, drawn evenly
    uint64_t wrong;     // of those: what the source holds is not what the parent's hashes say
} AuditFigures;

// With 95 % confidence at most so many in a million of the unchanged blocks are wrong. AUDIT_PPM_ALL: nothing is
// proven, as when one is wrong.
uint32_t audit_at_most_ppm(const AuditFigures *a);
// There was an audit, it found nothing, and looked at enough.
bool audit_is_clean(const AuditFigures *a);
