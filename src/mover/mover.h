// The copy pipeline: from one end to another, many requests in flight, bounded memory. Knows nothing of jobs or
// hypervisors. docs/internals/pipeline.md.
#pragma once

#include "image/hash.h"
#include "wire/blocks.h"

#include <stdatomic.h>

typedef enum MoverPlan {
    MOVER_ALL,     // the whole disk: zeros said, the rest read
    MOVER_TRACKED, // clusters with a dirty byte, and every ZERO extent besides (safety rule 6)
    MOVER_READ,    // the whole disk, and all of it read: the source's map is not asked
} MoverPlan;

typedef struct MoverProgress {
    uint64_t done_bytes; // of the disk, in order of planning; reaches size only at the end
    uint64_t size;
    uint64_t transferred_bytes; // sent as data
    uint64_t zero_bytes;        // said to be zero
    uint64_t same_bytes;        // found to be what the sink holds, and not sent
    uint64_t kept_bytes;        // of an interrupted copy, and neither read nor sent
    uint64_t changed_bytes;     // planned as dirty data (tracked), or read
} MoverProgress;

// What the sink holds before the copy, as hashes of its clusters: what is equal does not travel.
typedef struct MoverKnown {
    Blocks *leaves; // borrowed: one hash for each cluster of the disk, hash_size() bytes each
    HashSpec hash;
} MoverKnown;

// The sink has part of an interrupted copy: its map has that as data. What did not change since is confirmed.
typedef struct MoverResume {
    Blocks *since; // borrowed; extents() gives as `changed` what did; NULL: nothing did
} MoverResume;

typedef struct MoverSpec {
    Blocks *from, *to;     // borrowed; same size (to may be larger only by the last sector's rounding)
    uint64_t size;         // of the disk, bytes
    uint32_t cluster_size; // extents are rounded outward to it
    MoverPlan plan;
    const MoverKnown *known;                             // NULL: nothing is; else the sink takes `same`
    const MoverResume *resume;                           // NULL: from the start; else the sink takes `same`
    uint32_t request_bytes;                              // 0: 1 MiB; a multiple of the cluster size
    unsigned in_flight;                                  // 0: 16; buffers = in_flight * request_bytes
    const atomic_bool *cancel;                           // looked at at least every 100 ms
    void (*progress)(void *ctx, const MoverProgress *p); // at most every 100 ms, and once at the end; may be NULL
    void *progress_ctx;
    // What is read or said to be zero, but for zeros on the hypervisor's word; ascending. May be NULL.
    void (*planned)(void *ctx, uint64_t offset, uint64_t length);
    void *planned_ctx;
} MoverSpec;

typedef struct MoverResult {
    MoverProgress total;
    Coverage coverage;          // ended; what was sent
    uint64_t areas, area_bytes; // that the source called changed; 0 unless it was asked
} MoverResult;

// Copies, then flushes `to`. False: the first error; whatever was in flight has been completed or aborted, so the
// ends can be freed. Zeros are found in every byte read and travel as zero requests.
bool mover_copy(const MoverSpec *spec, MoverResult *ret, Err *err) must_check;
