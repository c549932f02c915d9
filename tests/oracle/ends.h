// Both ends of a backup's copy, in memory: a source that shows a frozen view, and a sink that hands everything to the
// engine, as a server with clients of all habits would: late, out of order, in pieces, twice.
#pragma once

#include "guest.h"
#include "image/writer.h"
#include "mover/mover.h"

typedef enum EndsFailure { ENDS_NO_FAILURE, ENDS_FAIL_START, ENDS_FAIL_DONE, ENDS_CANCEL } EndsFailure;

typedef enum EndsPlant {
    ENDS_HONEST,
    ENDS_SKIP_ZERO,    // zeros of an increment are not sent, and the client does not count them
    ENDS_DROP_LAST,    // the last write is acknowledged and lost, and the client does not count it
    ENDS_HOLE_AS_ZERO, // the source's map calls zero what is not
    ENDS_THAWED,       // the source shows the live disk
    ENDS_RESIZE_BLIND, // the change set leaves out the disk's last granule
} EndsPlant;

// What both ends of one copy share.
typedef struct EndsRun {
    Rng *rng;
    EndsPlant plant;
    EndsFailure failure;
    unsigned fail_at; // the number of the request that fails, from 1
    unsigned requests;
    bool failed; // it did
    atomic_bool *cancel;
    const GuestDisk *live;
    void (*meanwhile)(void *ctx); // the guest goes on
    void *meanwhile_ctx;
    unsigned noise; // percent of requests that reach the engine in an odd way
} EndsRun;

bool ends_source(const GuestView *view, bool with_changes, uint32_t cluster_size, EndsRun *run, Blocks **ret, Err *err)
    must_check;
bool ends_sink(Writer *w, const GuestView *view, DiskMode mode, uint32_t cluster_size, EndsRun *run, Blocks **ret,
               Err *err) must_check;
// What the sink gave to the engine.
bool ends_coverage(Blocks *sink, Coverage *ret, Err *err) must_check;
