// Hashes of clusters, and the Merkle tree over a virtual disk.
//
//   leaf(i)  = H(cluster i, padded with zeros to a whole cluster)
//   node(g)  = H(leaf(g * L) .. leaf(g * L + L - 1))     L = cluster_size / 8: one node for each L2
//              table's range; clusters beyond the disk's end count as zero clusters
//   root     = H("sendense-root-1", size, cluster_size, node(0) .. node(n - 1))   numbers little endian, 8 bytes
//
// H is XXH3-128 with the repository's seed (canonical, big endian bytes; sees accidents), or SHA-256
// with the 8 seed bytes before the data (tampering shows too).
#pragma once

#include "base/mem.h"

#define HASH_BYTES_MAX 32
#define HASH_TEXT_MAX 65

typedef enum HashAlgorithm { HASH_XXH3_128, HASH_SHA256 } HashAlgorithm;

typedef struct HashSpec {
    HashAlgorithm algorithm;
    uint64_t seed;
} HashSpec;

typedef struct Hash {
    uint8_t bytes[HASH_BYTES_MAX]; // hash_size() of them are used, the rest are 0
} Hash;

const char *hash_algorithm_name(HashAlgorithm a); // "xxh3-128", "sha256"
bool hash_algorithm_parse(const char *name, HashAlgorithm *ret, Err *err) must_check;
size_t hash_size(HashAlgorithm a); // 16 or 32 bytes

void hash_bytes(const HashSpec *spec, const void *p, size_t n, Hash *ret); // thread-safe
bool hash_equal(const Hash *a, const Hash *b);
void hash_text(const HashSpec *spec, const Hash *h, char out[HASH_TEXT_MAX]);
bool hash_from_text(const HashSpec *spec, const char *text, Hash *ret, Err *err) must_check;

// Streaming, for whole files and for the root.
typedef struct HashStream HashStream;
bool hash_stream_new(const HashSpec *spec, HashStream **ret, Err *err) must_check;
void hash_stream_add(HashStream *s, const void *p, size_t n);
void hash_stream_end(HashStream *s, Hash *ret);
void hash_stream_free(HashStream *s);

// All zero? Looks at every byte.
bool hash_is_zero(const void *p, size_t n);

// Constants of a geometry: leaf of a zero cluster, node of an all-zero group.
typedef struct HashGeometry {
    HashSpec spec;
    uint32_t cluster_size;
    uint32_t leaves; // in a group: cluster_size / 8
    Hash zero_leaf;
    Hash zero_node;
} HashGeometry;
bool hash_geometry_init(HashGeometry *g, const HashSpec *spec, uint32_t cluster_size, Err *err) must_check;
uint64_t hash_groups(const HashGeometry *g, uint64_t size);           // groups of a disk of `size` bytes
void hash_node(const HashGeometry *g, const Hash *leaves, Hash *ret); // g->leaves of them
void hash_root(const HashGeometry *g, uint64_t size, const Hash *nodes, uint64_t n, Hash *ret);
