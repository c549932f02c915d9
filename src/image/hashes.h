// The .hashes file beside each image: a leaf for each cluster that this image allocates or zeroes,
// the Merkle nodes of the whole virtual disk as of this point, and a trailer with the account of
// what arrived. Format: docs/internals/formats.md. Written once, sequentially, group by group in
// ascending order; read at random by group. All numbers little endian.
#pragma once

#include "domain/extent.h"
#include "image/hash.h"

typedef enum HashMark { // what this image says of a cluster
    HASH_ABSENT = 0,    // nothing: the backing file shows
    HASH_DATA = 1,      // allocated
    HASH_ZERO = 2,      // marked zero
} HashMark;

// What the engine counted; in the trailer, and given to the hub when sealing.
typedef struct HashesSummary {
    uint64_t size;                                           // virtual size in bytes
    uint64_t received_data;                                  // bytes that came as data (an overlap counts once)
    uint64_t received_zero;                                  // bytes that came as zeros by request
    uint64_t stored_clusters;                                // allocated in this image
    uint64_t zeroed_clusters;                                // marked zero in this image
    uint64_t skipped_clusters;                               // arrived, equal to the parent, not stored
    uint64_t image_bytes;                                    // length of the image file
    uint64_t covered_extents, covered_bytes, covered_digest; // domain/extent.h, Coverage
    Hash root;                                               // of the virtual disk at this point
    Hash metadata; // of every cluster of the image file that is not a data cluster in use, in file order
} HashesSummary;

// ---- writing: one thread
typedef struct HashesWriter HashesWriter;
// Creates path (O_EXCL).
bool hashes_writer_open(const char *path, const HashGeometry *geo, uint64_t size, HashesWriter **ret, Err *err)
    must_check;
// Groups that hold anything, ascending; marks and leaves have geo->leaves entries each.
bool hashes_writer_add(HashesWriter *w, uint64_t group, const uint8_t *marks, const Hash *leaves, Err *err) must_check;
// nodes: one for each group of the disk, of the state at this point. Writes index, nodes, trailer; fsyncs.
// ret_digest: hash of the whole file, for the commit record.
bool hashes_writer_end(HashesWriter *w, const Hash *nodes, const HashesSummary *summary, Hash *ret_digest, Err *err)
    must_check;
void hashes_writer_free(HashesWriter *w); // leaves the file

// ---- reading: thread-safe after open
typedef struct HashesFile HashesFile;
// Bounds and internal consistency are checked (hostile input): ERR_DAMAGED.
bool hashes_open(const char *path, const HashGeometry *geo, HashesFile **ret, Err *err) must_check;
void hashes_free(HashesFile *f);
const HashesSummary *hashes_summary(const HashesFile *f); // borrowed
// Node of a group (of the whole point); group below hash_groups().
const Hash *hashes_node(const HashesFile *f, uint64_t group); // borrowed
// Marks (all HASH_ABSENT when the group is not in the file) and leaves (defined where the mark is not ABSENT;
// ZERO marks give the zero leaf). *ret_any tells whether any cluster is present.
bool hashes_group(const HashesFile *f, uint64_t group, uint8_t *ret_marks, Hash *ret_leaves, bool *ret_any, Err *err)
    must_check;
// Hash of the whole file, to compare with the commit record's (safety rule 2).
bool hashes_file_digest(const char *path, const HashSpec *spec, Hash *ret, Err *err) must_check;

// ---- a chain, flattened: what QEMU would read (safety rule 1). Thread-safe.
typedef struct ChainHashes ChainHashes;
typedef struct ChainLayerPath {
    const char *image; // may be NULL where only hashes matter
    const char *hashes;
} ChainLayerPath;
// layers[0] is the tip, layers[n - 1] the full. n >= 1.
bool chain_hashes_open(const ChainLayerPath *layers, size_t n, const HashGeometry *geo, ChainHashes **ret, Err *err)
    must_check;
void chain_hashes_free(ChainHashes *c);
uint64_t chain_hashes_size(const ChainHashes *c);                    // the tip's virtual size
const Hash *chain_hashes_node(const ChainHashes *c, uint64_t group); // tip's; zero_node beyond its end
// Leaf of every cluster of the group as the tip shows it; beyond a layer's size: zero, whatever lies below.
// ret_layers (may be NULL): index of the layer that decided each, 0 = tip; 255: nobody, it is zero.
bool chain_hashes_group(ChainHashes *c, uint64_t group, Hash *ret_leaves, uint8_t *ret_layers, Err *err) must_check;
#define CHAIN_LAYERS_MAX 250
