// QCOW2, version 3: the subset that we write and read. After QEMU's docs/interop/qcow2.txt.
// Numbers in the file are big endian. Everything here is pure: bytes to values and back.
//
// Refused, because we never write it (safety rule 19): other versions, encryption, internal
// snapshots, an external data file, the dirty and corrupt marks, any feature bit that is not
// named below, refcounts other than 16 bits, unknown header extensions.
#pragma once

#include "base/mem.h"

#include <endian.h>

#define QCOW2_MAGIC UINT32_C(0x514649fb) // "QFI\xfb"
#define QCOW2_CLUSTER_BITS_MIN 12        // ours; the format allows 9
#define QCOW2_CLUSTER_BITS_MAX 21
#define QCOW2_BACKING_MAX 1023                       // bytes of a backing file's name
#define QCOW2_L1_BYTES_MAX (UINT64_C(32) << 20)      // QEMU refuses more
#define QCOW2_REFTABLE_BYTES_MAX (UINT64_C(8) << 20) // QEMU refuses more
#define QCOW2_HEADER_READ 4096 // decoding needs this many bytes from the file's start, or the whole file
#define QCOW2_REFCOUNT_BYTES 2 // refcount_order 4

#define QCOW2_OFLAG_COPIED (UINT64_C(1) << 63)     // refcount is exactly 1
#define QCOW2_OFLAG_COMPRESSED (UINT64_C(1) << 62) // L2 only
#define QCOW2_OFLAG_ZERO (UINT64_C(1) << 0)        // L2 only, not with extended entries
#define QCOW2_OFFSET_MASK UINT64_C(0x00fffffffffffe00)

typedef enum Qcow2Compression { QCOW2_ZLIB = 0, QCOW2_ZSTD = 1 } Qcow2Compression;

typedef struct Qcow2Header {
    uint32_t cluster_bits;
    uint64_t size;      // virtual bytes, a multiple of 512
    uint32_t l1_size;   // entries
    uint64_t l1_offset; // bytes in the file, cluster aligned
    uint64_t refcount_table_offset;
    uint32_t refcount_table_clusters;
    bool extended_l2;                         // L2 entries of 16 bytes, with 32 subclusters
    Qcow2Compression compression;             // of compressed clusters, if there are any
    char backing_name[QCOW2_BACKING_MAX + 1]; // "": none
} Qcow2Header;

// Fills `cluster`, 1 << cluster_bits bytes: header, backing format extension ("qcow2") where there is a
// backing name, the name, zeros. ERR_INTERNAL when a field is out of the format's range.
bool qcow2_header_encode(const Qcow2Header *h, uint8_t *cluster, Err *err) must_check;

// p: the first n bytes of the file (QCOW2_HEADER_READ, or all of it); file_bytes: its length. Checked: everything
// above, sizes and alignment, L1 and refcount table inside the file, L1 as long as the size needs (not more),
// a backing format of "qcow2" exactly when there is a backing name. ERR_DAMAGED when it is no QCOW2 or
// contradicts itself, ERR_UNSUPPORTED when it is sound and not of our subset.
bool qcow2_header_decode(const uint8_t *p, size_t n, uint64_t file_bytes, Qcow2Header *ret, Err *err) must_check;

static inline uint32_t qcow2_l2_entry_bytes(bool extended_l2)
{
    return extended_l2 ? 16 : 8;
}

// Entries of one L2 table.
static inline uint32_t qcow2_l2_entries(uint32_t cluster_bits, bool extended_l2)
{
    return (UINT32_C(1) << cluster_bits) / qcow2_l2_entry_bytes(extended_l2);
}

// L1 entries that a disk of `size` bytes needs.
uint64_t qcow2_l1_entries(uint64_t size, uint32_t cluster_bits, bool extended_l2);

// An L1 entry (host byte order): offset of its L2 table, 0 for none. ERR_DAMAGED: reserved bits, not aligned,
// not inside the file, or refcount not 1 (the COPIED bit is missing).
bool qcow2_l1_decode(uint64_t raw, uint32_t cluster_bits, uint64_t file_bytes, uint64_t *ret_offset, Err *err)
    must_check;

typedef enum Qcow2Kind {
    QCOW2_UNALLOCATED, // the backing file shows
    QCOW2_ZERO_PLAIN,  // reads as zeros, no host cluster
    QCOW2_ZERO_ALLOC,  // reads as zeros, a host cluster is kept
    QCOW2_NORMAL,      // one host cluster at `offset`
    QCOW2_COMPRESSED,  // `sectors` of 512 bytes from the byte `offset` on (which need not be aligned)
} Qcow2Kind;

typedef struct Qcow2Entry {
    Qcow2Kind kind;
    uint64_t offset;      // ZERO_ALLOC, NORMAL, COMPRESSED: bytes in the file
    uint32_t length;      // COMPRESSED: most bytes that its data can take, from offset on (may end beyond the file)
    bool subclusters;     // extended entries: `alloc` and `zero` say more than `kind`: some subclusters differ
    uint32_t alloc, zero; // extended: bit n for subcluster n (1/32 of a cluster): allocated; reads as zero
} Qcow2Entry;

// A standard L2 entry (host byte order). ERR_DAMAGED: reserved bits, alignment, outside the file (file_bytes),
// or the COPIED bit missing where there is a host cluster.
bool qcow2_l2_decode(uint64_t raw, uint32_t cluster_bits, uint64_t file_bytes, Qcow2Entry *ret, Err *err) must_check;

// An extended entry: its two 64-bit words (host byte order). kind is UNALLOCATED, ZERO_PLAIN, ZERO_ALLOC, NORMAL or
// COMPRESSED when all 32 subclusters agree, and `subclusters` is false then. When they differ, `subclusters` is
// true, kind is NORMAL if there is a host cluster (some subclusters may lie in it) and UNALLOCATED if not, and
// the bitmaps decide for each: zero bit: zeros; alloc bit: at offset + n/32 of a cluster; neither: the backing file.
bool qcow2_l2_decode_extended(uint64_t raw, uint64_t bitmap, uint32_t cluster_bits, uint64_t file_bytes,
                              Qcow2Entry *ret, Err *err) must_check;

// Standard entries as we write them (host byte order).
static inline uint64_t qcow2_l2_normal(uint64_t offset)
{
    return offset | QCOW2_OFLAG_COPIED;
}

// offset 0: no host cluster.
static inline uint64_t qcow2_l2_zero(uint64_t offset)
{
    return offset ? offset | QCOW2_OFLAG_COPIED | QCOW2_OFLAG_ZERO : QCOW2_OFLAG_ZERO;
}

// Compressed data of `bytes` (whole sectors, less than a cluster) at `offset` (a multiple of 512).
static inline uint64_t qcow2_l2_compressed(uint64_t offset, uint32_t bytes, uint32_t cluster_bits)
{
    return QCOW2_OFLAG_COMPRESSED | (uint64_t)(bytes / 512 - 1) << (62 - (cluster_bits - 8)) | offset;
}

// Refcounts for a file in which every cluster is used once, the refcount blocks and their table included: how many
// clusters those two take when `used` clusters are in use besides them.
typedef struct Qcow2RefcountPlan {
    uint64_t blocks;         // refcount blocks, one cluster each
    uint64_t table_clusters; // of the refcount table
    uint64_t total;          // clusters of the file: used + blocks + table_clusters
} Qcow2RefcountPlan;
// ERR_TOO_LARGE when the table would be longer than QEMU accepts.
bool qcow2_refcount_plan(uint64_t used, uint32_t cluster_bits, Qcow2RefcountPlan *ret, Err *err) must_check;

// Big endian numbers at any alignment.
static inline uint16_t qcow2_get16(const void *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return be16toh(v);
}

static inline uint32_t qcow2_get32(const void *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return be32toh(v);
}

static inline uint64_t qcow2_get64(const void *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return be64toh(v);
}

static inline void qcow2_put16(void *p, uint16_t v)
{
    v = htobe16(v);
    memcpy(p, &v, sizeof v);
}

static inline void qcow2_put32(void *p, uint32_t v)
{
    v = htobe32(v);
    memcpy(p, &v, sizeof v);
}

static inline void qcow2_put64(void *p, uint64_t v)
{
    v = htobe64(v);
    memcpy(p, &v, sizeof v);
}
