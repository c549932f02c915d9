// One end of a copy: a table of functions over something that holds a disk's bytes. NBD is one
// (wire/nbd.h); the file and the hasher that a restore writes to are others (mover/), and so is a memory
// disk in the tests. Single-threaded: one Blocks belongs to one pipeline.
#pragma once

#include "domain/extent.h"

#include <poll.h>

typedef struct Blocks Blocks;

// A request in flight. done is called exactly once for each request that was started, from within the
// starting call or from dispatch(); err is NULL when it went well (look at it: CVE-2022-0485). The buffer
// stays the caller's and must live until then.
typedef struct BlocksReq {
    void (*done)(struct BlocksReq *req, const Err *err);
    void *ctx;
} BlocksReq;

#define BLOCKS_FDS_MAX 32

typedef struct BlocksOps {
    const char *name; // for messages
    // Start a request; false: not started, done will not be called. May complete at once.
    // Any offset and length within the size; length <= max_request.
    bool (*read)(Blocks *b, void *p, uint64_t offset, uint32_t length, BlocksReq *req, Err *err);
    bool (*write)(Blocks *b, const void *p, uint64_t offset, uint32_t length, BlocksReq *req, Err *err);
    bool (*zero)(Blocks *b, uint64_t offset, uint64_t length, BlocksReq *req, Err *err);
    // What the end holds there already is what would be written: nothing travels, and the range counts as written.
    // May be NULL.
    bool (*same)(Blocks *b, uint64_t offset, uint32_t length, BlocksReq *req, Err *err);
    bool (*flush)(Blocks *b, BlocksReq *req, Err *err); // everything acknowledged before becomes durable
    // What the source knows of a range, without reading it; ascending, without overlap, within the range:
    // `zeros`: vouched for as zero, and marked so (but see zeros_on_word). `changed`: dirty since the base (only where
    // the end was opened with a change set; else untouched). Blocking with a deadline. A source that can say nothing
    // gives no zeros. A map with gaps or a context that was not granted is an error (safety rule 5).
    bool (*extents)(Blocks *b, uint64_t offset, uint64_t length, ExtentVec *changed, ExtentVec *zeros, Err *err);
    // Descriptors to poll, with events set; 0 when nothing is ever in flight. At most BLOCKS_FDS_MAX.
    size_t (*fds)(Blocks *b, struct pollfd *fds);
    // Handle what poll() found (same array); completes requests. An error here is the end's end.
    bool (*dispatch)(Blocks *b, const struct pollfd *fds, size_t n, Err *err);
    // Whatever is in flight will not be waited for: done is called with ERR_CANCELLED for each. Then only free.
    void (*abort)(Blocks *b);
    void (*free)(Blocks *b);
} BlocksOps;

struct Blocks {
    const BlocksOps *ops;   // NULL entries: cannot do that
    uint64_t size;          // bytes
    uint32_t max_request;   // bytes, for read and write
    unsigned max_in_flight; // requests that make sense at a time
    bool zeros_on_word;     // nobody vouches for the zeros of extents(): they are what the hypervisor calls not in use
};

static inline void blocks_cleanup(Blocks **b)
{
    if (*b)
        (*b)->ops->free(*b);
}
#define cleanup_blocks cleanup(blocks_cleanup)
