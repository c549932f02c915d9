// The .hashes file, byte by byte (docs/internals/formats.md). All numbers little endian. For hashes.c and
// hashes_writer.c only.
//
//   header   64 bytes
//   records  one for each group with a mark: marks, 2 bits for each cluster (lowest bits first), then the
//            leaves of the DATA clusters, ascending, hash_size bytes each
//   index    32 bytes for each record: group, offset, XXH3-64 of the record (seed: the group), DATA clusters,
//            ZERO clusters (4 bytes each)
//   nodes    hash_size bytes for each group of the disk
//   trailer  256 bytes
#pragma once

#include "image/hashes.h"

#include <endian.h>

#define HASHES_MAGIC "SDHASHES"
#define HASHES_TRAILER_MAGIC "SDTRAIL1"
#define HASHES_VERSION 1

#define HASHES_HEADER_BYTES 64
#define HASHES_INDEX_BYTES 32
#define HASHES_TRAILER_BYTES 256

enum { // in the header
    HASHES_AT_VERSION = 8,
    HASHES_AT_ALGORITHM = 12,
    HASHES_AT_SEED = 16,
    HASHES_AT_SIZE = 24,
    HASHES_AT_CLUSTER = 32,
    HASHES_AT_HASH = 36,
};

enum { // in the trailer
    HASHES_AT_INDEX = 8,
    HASHES_AT_RECORDS = 16,
    HASHES_AT_NODES = 24,
    HASHES_AT_GROUPS = 32,
    HASHES_AT_NUMBERS = 40, // of HashesSummary, in its order, `size` first
    HASHES_AT_ROOT = 120,
    HASHES_AT_METADATA = 152,
    HASHES_AT_CHECKSUM = 248, // XXH3-64 of header, index, nodes and the trailer up to here
};
#define HASHES_NUMBERS 10

static inline size_t hashes_marks_bytes(const HashGeometry *geo)
{
    return geo->leaves / 4;
}

static inline uint32_t hashes_get32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return le32toh(v);
}

static inline uint64_t hashes_get64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return le64toh(v);
}

static inline void hashes_put32(uint8_t *p, uint32_t v)
{
    v = htole32(v);
    memcpy(p, &v, sizeof v);
}

static inline void hashes_put64(uint8_t *p, uint64_t v)
{
    v = htole64(v);
    memcpy(p, &v, sizeof v);
}

// Header of a disk of this size and geometry.
static inline void hashes_make_header(const HashGeometry *geo, uint64_t size, uint8_t out[HASHES_HEADER_BYTES])
{
    memset(out, 0, HASHES_HEADER_BYTES);
    memcpy(out, HASHES_MAGIC, 8);
    hashes_put32(out + HASHES_AT_VERSION, HASHES_VERSION);
    hashes_put32(out + HASHES_AT_ALGORITHM, (uint32_t)geo->spec.algorithm);
    hashes_put64(out + HASHES_AT_SEED, geo->spec.seed);
    hashes_put64(out + HASHES_AT_SIZE, size);
    hashes_put32(out + HASHES_AT_CLUSTER, geo->cluster_size);
    hashes_put32(out + HASHES_AT_HASH, (uint32_t)hash_size(geo->spec.algorithm));
}
