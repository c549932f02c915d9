// Extents of a disk, and the account of which bytes were sent (docs/internals/engine.md).
#pragma once

#include "base/vec.h"

typedef struct Extent {
    uint64_t offset; // bytes
    uint64_t length; // bytes, > 0
    bool zero;       // vouched for as zero by the source's map: need not be read
} Extent;

VEC_DEFINE(ExtentVec, extent_vec, Extent)

// Count and digest of a set of byte ranges that arrive in ascending order without overlap.
// Neighbours are merged first, so that two parties who cut the same bytes differently agree.
// Zeroed struct is ready. The client computes it over what it plans to send, the engine over what
// arrived (safety rule 6).
typedef struct Coverage {
    uint64_t extents; // merged extents so far (after coverage_end)
    uint64_t bytes;
    uint64_t digest;                   // XXH3-64 chained over (offset, length), little endian
    uint64_t open_offset, open_length; // the extent that may still grow
} Coverage;

// ERR_INVALID when [offset, offset + length) starts before the end of what was added, or passes
// DISK_SIZE_MAX; *c is then as it was. A length of 0 adds nothing.
bool coverage_add(Coverage *c, uint64_t offset, uint64_t length, Err *err) must_check;
void coverage_end(Coverage *c); // closes the open extent; idempotent

// Round [offset, offset+length) outward to whole clusters, cut at size. Empty or beyond size: *length is 0.
// cluster_size: a power of two.
void extent_round(uint64_t size, uint64_t cluster_size, uint64_t *offset, uint64_t *length);

// Ranges that are in either list, each ascending and without overlap; so is *ret, which is overwritten (`zero` is
// false). The caller clears it.
bool extent_union(const ExtentVec *a, const ExtentVec *b, ExtentVec *ret, Err *err) must_check;
// The ranges of `a`, which are whole clusters (cut at size), without each cluster that has a byte in `b`. As above.
bool extent_without(const ExtentVec *a, const ExtentVec *b, uint64_t size, uint64_t cluster_size, ExtentVec *ret,
                    Err *err) must_check;

// Join two lists, each ascending and without overlap, that describe the same range of a disk:
// `changed` (dirty ranges; zero ignored) and `zeros` (ranges the map calls zero). The result,
// ascending, without overlap, in whole clusters (cut at size): every cluster that has a dirty byte or
// is entirely zero by the map. A cluster is `zero` only where every byte of it (up to size) is in `zeros`.
// This is the tracked plan: dirty clusters, and every ZERO extent besides. Items of `zeros` whose `zero` is
// false vouch for nothing: the source's whole map may be given. The cost goes by extents, not by clusters.
// ERR_INVALID: a list that is not in order, overlaps, has an empty extent or passes size; size above
// DISK_SIZE_MAX; a cluster_size that is not a power of two. *ret is overwritten; the caller clears it.
bool extent_plan_tracked(const ExtentVec *changed, const ExtentVec *zeros, uint64_t size, uint64_t cluster_size,
                         ExtentVec *ret, Err *err) must_check;
