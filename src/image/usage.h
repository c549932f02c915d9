// What uses each cluster of an image file, worked out from its tables, a window of the file at a time: so memory does
// not grow with the file. For the seal, which writes the refcounts, and for whoever checks an image (metadata.h).
// docs/internals/formats.md says what an image of ours looks like.
#pragma once

#include "codec/qcow2.h"
#include "image/hash.h"

#define USAGE_WINDOW (UINT32_C(1) << 18) // clusters

typedef enum UsageKind {
    USAGE_FREE,   // nothing uses it
    USAGE_META,   // a table, the header, or kept by a zero mark
    USAGE_DATA,   // the host cluster of a data entry
    USAGE_PACKED, // compressed data lies in it
} UsageKind;

typedef struct Usage {
    Qcow2Header h;
    uint64_t clusters; // of the file
    // of the window that was looked at last, by cluster counted from its first
    uint64_t first;
    uint32_t n;
    uint8_t *kinds;   // UsageKind
    uint16_t *refs;   // how often it is used: more than once only by compressed clusters
    uint64_t *packed; // a bit for each sector that compressed data lies in; NULL where nothing can be compressed
    struct UsageInside *inside;
} Usage;

// header: one cluster that is still to be written; NULL: the file's own. The tables that it names are in the file, but
// for refcount blocks. ERR_DAMAGED: a header or an entry that is not of our subset, an entry beyond the disk's end, or
// tables that do not lie in the file. ERR_UNSUPPORTED: extended L2 entries. fd is borrowed.
bool usage_open(int fd, const uint8_t *header, const HashGeometry *geo, Usage *ret, Err *err) must_check;
void usage_clear(Usage *u);
// Fills the window of at most USAGE_WINDOW clusters from `first` on. ERR_DAMAGED: a cluster that is used twice.
bool usage_window(Usage *u, uint64_t first, Err *err) must_check;
uint64_t usage_refcount_block(const Usage *u, uint64_t number); // its offset in the file
// Is the sector of the window's cluster i in use by compressed data?
static inline bool usage_packed(const Usage *u, uint32_t i, uint32_t sector)
{
    uint64_t bit = ((uint64_t)i << (u->h.cluster_bits - 9)) + sector;
    return u->packed && (u->packed[bit / 64] >> (bit % 64) & 1) != 0;
}
