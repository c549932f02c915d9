#include "codec/qcow2.h"

#define VERSION 3
#define REFCOUNT_ORDER 4 // 16 bits
#define HEADER_BYTES 112 // with the compression type
#define HEADER_BYTES_MIN 104

#define INCOMPAT_DIRTY (UINT64_C(1) << 0)
#define INCOMPAT_CORRUPT (UINT64_C(1) << 1)
#define INCOMPAT_DATA_FILE (UINT64_C(1) << 2)
#define INCOMPAT_COMPRESSION (UINT64_C(1) << 3)
#define INCOMPAT_EXTENDED_L2 (UINT64_C(1) << 4)

#define EXT_END UINT32_C(0)
#define EXT_BACKING_FORMAT UINT32_C(0xe2792aca)
#define EXT_FEATURE_NAMES UINT32_C(0x6803f857)

#define L1_RESERVED (~(QCOW2_OFFSET_MASK | QCOW2_OFLAG_COPIED))
#define L2_RESERVED (~(QCOW2_OFFSET_MASK | QCOW2_OFLAG_COPIED | QCOW2_OFLAG_COMPRESSED | QCOW2_OFLAG_ZERO))

enum { // byte offsets in the header
    AT_MAGIC = 0,
    AT_VERSION = 4,
    AT_BACKING_OFFSET = 8,
    AT_BACKING_BYTES = 16,
    AT_CLUSTER_BITS = 20,
    AT_SIZE = 24,
    AT_CRYPT = 32,
    AT_L1_SIZE = 36,
    AT_L1_OFFSET = 40,
    AT_REFTABLE_OFFSET = 48,
    AT_REFTABLE_CLUSTERS = 56,
    AT_SNAPSHOTS = 60,
    AT_INCOMPATIBLE = 72,
    AT_COMPATIBLE = 80,
    AT_AUTOCLEAR = 88,
    AT_REFCOUNT_ORDER = 96,
    AT_HEADER_BYTES = 100,
    AT_COMPRESSION = 104,
};

uint64_t qcow2_l1_entries(uint64_t size, uint32_t cluster_bits, bool extended_l2)
{
    uint64_t span = (uint64_t)qcow2_l2_entries(cluster_bits, extended_l2) << cluster_bits;
    return size / span + (size % span != 0);
}

bool qcow2_header_encode(const Qcow2Header *h, uint8_t *cluster, Err *err)
{
    size_t name = strlen(h->backing_name);
    if (h->cluster_bits < QCOW2_CLUSTER_BITS_MIN || h->cluster_bits > QCOW2_CLUSTER_BITS_MAX || h->size % 512 != 0 ||
        h->size == 0 || h->size > DISK_SIZE_MAX ||
        h->l1_size != qcow2_l1_entries(h->size, h->cluster_bits, h->extended_l2))
        return err_set(err, ERR_INTERNAL, "qcow2 header: bad geometry");
    memset(cluster, 0, (size_t)1 << h->cluster_bits);
    qcow2_put32(cluster + AT_MAGIC, QCOW2_MAGIC);
    qcow2_put32(cluster + AT_VERSION, VERSION);
    qcow2_put32(cluster + AT_CLUSTER_BITS, h->cluster_bits);
    qcow2_put64(cluster + AT_SIZE, h->size);
    qcow2_put32(cluster + AT_L1_SIZE, h->l1_size);
    qcow2_put64(cluster + AT_L1_OFFSET, h->l1_offset);
    qcow2_put64(cluster + AT_REFTABLE_OFFSET, h->refcount_table_offset);
    qcow2_put32(cluster + AT_REFTABLE_CLUSTERS, h->refcount_table_clusters);
    uint64_t incompatible =
        (h->extended_l2 ? INCOMPAT_EXTENDED_L2 : 0) | (h->compression != QCOW2_ZLIB ? INCOMPAT_COMPRESSION : 0);
    qcow2_put64(cluster + AT_INCOMPATIBLE, incompatible);
    qcow2_put32(cluster + AT_REFCOUNT_ORDER, REFCOUNT_ORDER);
    qcow2_put32(cluster + AT_HEADER_BYTES, HEADER_BYTES);
    cluster[AT_COMPRESSION] = (uint8_t)h->compression;
    if (name == 0)
        return true;
    uint8_t *ext = cluster + HEADER_BYTES;
    qcow2_put32(ext, EXT_BACKING_FORMAT);
    qcow2_put32(ext + 4, 5);
    memcpy(ext + 8, "qcow2", 5);
    uint32_t name_at = HEADER_BYTES + 16 + 8; // after the extension, padded to 8, and the end mark
    qcow2_put64(cluster + AT_BACKING_OFFSET, name_at);
    qcow2_put32(cluster + AT_BACKING_BYTES, (uint32_t)name);
    memcpy(cluster + name_at, h->backing_name, name);
    return true;
}

static bool damaged(Err *err, const char *what)
{
    return err_set(err, ERR_DAMAGED, "qcow2 header: %s", what);
}

static bool foreign(Err *err, const char *what)
{
    return err_set(err, ERR_UNSUPPORTED, "not an image of ours: %s", what);
}

static bool check_features(const uint8_t *p, Qcow2Header *h, uint32_t header_bytes, Err *err)
{
    uint64_t incompatible = qcow2_get64(p + AT_INCOMPATIBLE);
    if (incompatible & INCOMPAT_DIRTY)
        return foreign(err, "marked dirty");
    if (incompatible & INCOMPAT_CORRUPT)
        return foreign(err, "marked corrupt");
    if (incompatible & INCOMPAT_DATA_FILE)
        return foreign(err, "external data file");
    if (incompatible & ~(INCOMPAT_COMPRESSION | INCOMPAT_EXTENDED_L2))
        return foreign(err, "unknown incompatible feature");
    if (qcow2_get64(p + AT_COMPATIBLE) != 0 || qcow2_get64(p + AT_AUTOCLEAR) != 0)
        return foreign(err, "compatible or autoclear features");
    if (qcow2_get32(p + AT_CRYPT) != 0)
        return foreign(err, "encrypted");
    if (qcow2_get32(p + AT_SNAPSHOTS) != 0)
        return foreign(err, "internal snapshots");
    if (qcow2_get32(p + AT_REFCOUNT_ORDER) != REFCOUNT_ORDER)
        return foreign(err, "refcounts are not 16 bits");
    h->extended_l2 = (incompatible & INCOMPAT_EXTENDED_L2) != 0;
    if (h->extended_l2 && h->cluster_bits < 14)
        return damaged(err, "subclusters below 512 bytes");
    uint8_t compression = header_bytes > AT_COMPRESSION ? p[AT_COMPRESSION] : 0;
    if (compression > QCOW2_ZSTD)
        return foreign(err, "unknown compression");
    if ((compression != QCOW2_ZLIB) != ((incompatible & INCOMPAT_COMPRESSION) != 0))
        return damaged(err, "compression type contradicts its feature bit");
    h->compression = (Qcow2Compression)compression;
    return true;
}

static bool check_geometry(const uint8_t *p, uint64_t file_bytes, Qcow2Header *h, Err *err)
{
    h->cluster_bits = qcow2_get32(p + AT_CLUSTER_BITS);
    if (h->cluster_bits < QCOW2_CLUSTER_BITS_MIN || h->cluster_bits > QCOW2_CLUSTER_BITS_MAX)
        return foreign(err, "cluster size out of range");
    h->size = qcow2_get64(p + AT_SIZE);
    if (h->size == 0 || h->size % 512 != 0 || h->size > DISK_SIZE_MAX)
        return damaged(err, "bad virtual size");
    return file_bytes >= (UINT64_C(1) << h->cluster_bits) || damaged(err, "the file ends inside its header");
}

static bool check_tables(const uint8_t *p, uint64_t file_bytes, Qcow2Header *h, Err *err)
{
    uint64_t cluster = UINT64_C(1) << h->cluster_bits;
    h->l1_size = qcow2_get32(p + AT_L1_SIZE);
    h->l1_offset = qcow2_get64(p + AT_L1_OFFSET);
    h->refcount_table_offset = qcow2_get64(p + AT_REFTABLE_OFFSET);
    h->refcount_table_clusters = qcow2_get32(p + AT_REFTABLE_CLUSTERS);
    uint64_t l1_bytes = (uint64_t)h->l1_size * 8;
    if (h->l1_size != qcow2_l1_entries(h->size, h->cluster_bits, h->extended_l2) || l1_bytes > QCOW2_L1_BYTES_MAX)
        return damaged(err, "L1 size does not fit the virtual size");
    if (h->l1_offset < cluster || h->l1_offset % cluster != 0 || h->l1_offset > file_bytes ||
        l1_bytes > file_bytes - h->l1_offset)
        return damaged(err, "L1 table is not inside the file");
    uint64_t table = (uint64_t)h->refcount_table_clusters << h->cluster_bits;
    if (table == 0 || table > MAX(QCOW2_REFTABLE_BYTES_MAX, cluster) || h->refcount_table_offset < cluster ||
        h->refcount_table_offset % cluster != 0 || h->refcount_table_offset > file_bytes ||
        table > file_bytes - h->refcount_table_offset)
        return damaged(err, "refcount table is not inside the file");
    return true;
}

// Extensions from `at` on, up to `end`.
static bool check_extensions(const uint8_t *p, size_t at, size_t end, bool *ret_format, Err *err)
{
    bool format = false;
    while (end - at >= 8) {
        uint32_t type = qcow2_get32(p + at), bytes = qcow2_get32(p + at + 4);
        if (type == EXT_END) {
            *ret_format = format;
            return true;
        }
        at += 8;
        size_t padded = ((size_t)bytes + 7) & ~(size_t)7;
        if (padded > end - at)
            return damaged(err, "a header extension is too long");
        if (type == EXT_BACKING_FORMAT) {
            if (format || bytes != 5 || memcmp(p + at, "qcow2", 5) != 0)
                return foreign(err, "backing format is not qcow2");
            format = true;
        } else if (type != EXT_FEATURE_NAMES) {
            return foreign(err, "unknown header extension");
        }
        at += padded;
    }
    return damaged(err, "header extensions do not end");
}

static bool check_backing(const uint8_t *p, size_t n, uint32_t header_bytes, Qcow2Header *h, Err *err)
{
    uint64_t at = qcow2_get64(p + AT_BACKING_OFFSET);
    uint32_t bytes = qcow2_get32(p + AT_BACKING_BYTES);
    size_t end = MIN(n, (size_t)1 << h->cluster_bits);
    if (at == 0 && bytes != 0)
        return damaged(err, "a backing name without a place");
    if (at != 0) {
        if (bytes == 0 || bytes > QCOW2_BACKING_MAX || at < header_bytes || at > end || bytes > end - at)
            return damaged(err, "bad backing name");
        if (memchr(p + at, 0, bytes))
            return damaged(err, "NUL in the backing name");
        memcpy(h->backing_name, p + at, bytes);
        end = (size_t)at;
    }
    bool format = false;
    if (!check_extensions(p, header_bytes, end, &format, err))
        return false;
    if (format != (at != 0))
        return foreign(err, "backing format and backing name do not go together");
    return true;
}

bool qcow2_header_decode(const uint8_t *p, size_t n, uint64_t file_bytes, Qcow2Header *ret, Err *err)
{
    if (n < HEADER_BYTES || qcow2_get32(p + AT_MAGIC) != QCOW2_MAGIC)
        return err_set(err, ERR_DAMAGED, "not a qcow2 file");
    if (qcow2_get32(p + AT_VERSION) != VERSION)
        return foreign(err, "not qcow2 version 3");
    uint32_t header_bytes = qcow2_get32(p + AT_HEADER_BYTES);
    if (header_bytes < HEADER_BYTES_MIN || header_bytes % 8 != 0 || header_bytes > n)
        return damaged(err, "bad header length");
    if (header_bytes > HEADER_BYTES)
        return foreign(err, "a longer header than we know");
    Qcow2Header h = {0};
    if (!check_geometry(p, file_bytes, &h, err) || !check_features(p, &h, header_bytes, err) ||
        !check_tables(p, file_bytes, &h, err) || !check_backing(p, n, header_bytes, &h, err))
        return false;
    *ret = h;
    return true;
}

// A whole cluster inside the file, not the header.
static bool cluster_inside(uint64_t offset, uint32_t cluster_bits, uint64_t file_bytes)
{
    uint64_t cluster = UINT64_C(1) << cluster_bits;
    return offset >= cluster && offset % cluster == 0 && offset < file_bytes && cluster <= file_bytes - offset;
}

bool qcow2_l1_decode(uint64_t raw, uint32_t cluster_bits, uint64_t file_bytes, uint64_t *ret_offset, Err *err)
{
    uint64_t offset = raw & QCOW2_OFFSET_MASK;
    if (raw != 0 &&
        ((raw & L1_RESERVED) != 0 || !(raw & QCOW2_OFLAG_COPIED) || !cluster_inside(offset, cluster_bits, file_bytes)))
        return err_set(err, ERR_DAMAGED, "bad L1 entry %016llx", (unsigned long long)raw);
    *ret_offset = offset;
    return true;
}

static bool decode_compressed(uint64_t raw, uint32_t cluster_bits, uint64_t file_bytes, Qcow2Entry *ret, Err *err)
{
    uint32_t shift = 62 - (cluster_bits - 8);
    uint64_t offset = raw & ((UINT64_C(1) << shift) - 1);
    uint64_t sectors = ((raw >> shift) & ((UINT64_C(1) << (cluster_bits - 8)) - 1)) + 1;
    if ((raw & QCOW2_OFLAG_COPIED) || offset < (UINT64_C(1) << cluster_bits) || offset >= file_bytes)
        return err_set(err, ERR_DAMAGED, "bad L2 entry %016llx (compressed)", (unsigned long long)raw);
    *ret =
        (Qcow2Entry){.kind = QCOW2_COMPRESSED, .offset = offset, .length = (uint32_t)(sectors * 512 - (offset & 511))};
    return true;
}

bool qcow2_l2_decode(uint64_t raw, uint32_t cluster_bits, uint64_t file_bytes, Qcow2Entry *ret, Err *err)
{
    if (raw & QCOW2_OFLAG_COMPRESSED)
        return decode_compressed(raw, cluster_bits, file_bytes, ret, err);
    uint64_t offset = raw & QCOW2_OFFSET_MASK;
    bool zero = (raw & QCOW2_OFLAG_ZERO) != 0, copied = (raw & QCOW2_OFLAG_COPIED) != 0;
    if ((raw & L2_RESERVED) != 0 || copied != (offset != 0) ||
        (offset != 0 && !cluster_inside(offset, cluster_bits, file_bytes)))
        return err_set(err, ERR_DAMAGED, "bad L2 entry %016llx", (unsigned long long)raw);
    Qcow2Kind kind = offset ? QCOW2_NORMAL : QCOW2_UNALLOCATED;
    if (zero)
        kind = offset ? QCOW2_ZERO_ALLOC : QCOW2_ZERO_PLAIN;
    *ret = (Qcow2Entry){.kind = kind, .offset = offset};
    return true;
}

bool qcow2_l2_decode_extended(uint64_t raw, uint64_t bitmap, uint32_t cluster_bits, uint64_t file_bytes,
                              Qcow2Entry *ret, Err *err)
{
    if (raw & QCOW2_OFLAG_COMPRESSED) {
        if (bitmap != 0)
            return err_set(err, ERR_DAMAGED, "a compressed cluster with subclusters");
        return decode_compressed(raw, cluster_bits, file_bytes, ret, err);
    }
    Qcow2Entry e;
    if (raw & QCOW2_OFLAG_ZERO)
        return err_set(err, ERR_DAMAGED, "bad L2 entry %016llx (zero bit)", (unsigned long long)raw);
    if (!qcow2_l2_decode(raw, cluster_bits, file_bytes, &e, err))
        return false;
    e.alloc = (uint32_t)bitmap;
    e.zero = (uint32_t)(bitmap >> 32);
    if ((e.alloc & e.zero) != 0 || (e.alloc != 0 && e.offset == 0))
        return err_set(err, ERR_DAMAGED, "bad subclusters %016llx", (unsigned long long)bitmap);
    if (e.zero == UINT32_MAX)
        e.kind = e.offset ? QCOW2_ZERO_ALLOC : QCOW2_ZERO_PLAIN;
    else if (e.alloc != UINT32_MAX && bitmap != 0)
        e.subclusters = true;
    else if (bitmap == 0)
        e.kind = QCOW2_UNALLOCATED; // a host cluster may be kept: nothing in it shows
    *ret = e;
    return true;
}

bool qcow2_refcount_plan(uint64_t used, uint32_t cluster_bits, Qcow2RefcountPlan *ret, Err *err)
{
    uint64_t per_block = (UINT64_C(1) << cluster_bits) / QCOW2_REFCOUNT_BYTES;
    uint64_t per_table = (UINT64_C(1) << cluster_bits) / 8;
    Qcow2RefcountPlan p = {.total = used};
    for (;;) { // grows until it covers itself; two or three rounds
        uint64_t blocks = p.total / per_block + (p.total % per_block != 0);
        uint64_t table = blocks / per_table + (blocks % per_table != 0);
        if (table << cluster_bits > MAX(QCOW2_REFTABLE_BYTES_MAX, UINT64_C(1) << cluster_bits))
            return err_set(err, ERR_TOO_LARGE, "the image would need a longer refcount table than QEMU accepts");
        uint64_t total = used + blocks + table;
        p.blocks = blocks;
        p.table_clusters = table;
        if (total == p.total)
            break;
        p.total = total;
    }
    *ret = p;
    return true;
}
