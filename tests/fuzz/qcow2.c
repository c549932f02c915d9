// QCOW2's header and entries. Input: 8 bytes, length of the file in bytes; then the file's start, which is also read as
// a table of L1 and L2 entries.
#include "fuzz.h"

#include "codec/qcow2.h"

#define INPUT_MAX 4096 // what the reader looks at

static bool same(const Qcow2Header *a, const Qcow2Header *b)
{
    return a->cluster_bits == b->cluster_bits && a->size == b->size && a->l1_size == b->l1_size &&
        a->l1_offset == b->l1_offset && a->refcount_table_offset == b->refcount_table_offset &&
        a->refcount_table_clusters == b->refcount_table_clusters && a->extended_l2 == b->extended_l2 &&
        a->compression == b->compression && str_eq(a->backing_name, b->backing_name);
}

static void header(const uint8_t *p, size_t n, uint64_t file_bytes)
{
    Err err = ERR_INIT;
    Qcow2Header h, again;
    if (!qcow2_header_decode(p, n, file_bytes, &h, &err)) {
        fuzz_check(err.code == ERR_DAMAGED || err.code == ERR_UNSUPPORTED);
        return;
    }
    fuzz_check(h.size > 0 && h.size <= DISK_SIZE_MAX && strlen(h.backing_name) <= QCOW2_BACKING_MAX);
    fuzz_check(h.l1_offset <= file_bytes && (uint64_t)h.l1_size * 8 <= file_bytes - h.l1_offset);
    cleanup_free uint8_t *cluster = malloc((size_t)1 << h.cluster_bits);
    fuzz_check(cluster && qcow2_header_encode(&h, cluster, &err));
    fuzz_check(qcow2_header_decode(cluster, QCOW2_HEADER_READ, file_bytes, &again, &err));
    fuzz_check(same(&h, &again));
}

static void check_host(const Qcow2Entry *e, uint32_t bits, uint64_t file_bytes)
{
    uint64_t cluster = UINT64_C(1) << bits;
    if (e->kind == QCOW2_COMPRESSED) {
        fuzz_check(e->offset >= cluster && e->offset < file_bytes && e->length > 0 && e->length <= 2 * cluster);
        return;
    }
    if (e->kind == QCOW2_NORMAL || e->kind == QCOW2_ZERO_ALLOC)
        fuzz_check(e->offset != 0);
    if (e->offset != 0)
        fuzz_check(e->offset % cluster == 0 && e->offset >= cluster && e->offset + cluster <= file_bytes);
}

static void standard(uint64_t raw, uint32_t bits, uint64_t file_bytes)
{
    Err err = ERR_INIT;
    Qcow2Entry e;
    if (!qcow2_l2_decode(raw, bits, file_bytes, &e, &err)) {
        fuzz_check(err.code == ERR_DAMAGED);
        return;
    }
    check_host(&e, bits, file_bytes);
    fuzz_check(!e.subclusters);
    if (e.kind == QCOW2_NORMAL)
        fuzz_check(qcow2_l2_normal(e.offset) == raw);
    else if (e.kind == QCOW2_ZERO_PLAIN || e.kind == QCOW2_ZERO_ALLOC)
        fuzz_check(qcow2_l2_zero(e.offset) == raw);
    else if (e.kind == QCOW2_COMPRESSED && e.offset % 512 == 0)
        fuzz_check(qcow2_l2_compressed(e.offset, e.length, bits) == raw);
    else if (e.kind == QCOW2_UNALLOCATED)
        fuzz_check(raw == 0);
}

static void extended(uint64_t raw, uint64_t bitmap, uint32_t bits, uint64_t file_bytes)
{
    Err err = ERR_INIT;
    Qcow2Entry e;
    if (!qcow2_l2_decode_extended(raw, bitmap, bits, file_bytes, &e, &err)) {
        fuzz_check(err.code == ERR_DAMAGED);
        return;
    }
    check_host(&e, bits, file_bytes);
    fuzz_check((e.alloc & e.zero) == 0 && (e.alloc == 0 || e.offset != 0));
    if (!e.subclusters && e.kind == QCOW2_NORMAL)
        fuzz_check(e.alloc == UINT32_MAX);
    if (e.kind == QCOW2_ZERO_PLAIN || e.kind == QCOW2_ZERO_ALLOC)
        fuzz_check(e.zero == UINT32_MAX);
}

static void plan(uint64_t used, uint32_t bits)
{
    Err err = ERR_INIT;
    Qcow2RefcountPlan p;
    used >>= 8; // clusters of a file, which has less than 2^56 bytes
    if (!qcow2_refcount_plan(used, bits, &p, &err))
        return;
    fuzz_check(p.total == used + p.blocks + p.table_clusters);
    fuzz_check(p.blocks << bits >= p.total * QCOW2_REFCOUNT_BYTES && p.table_clusters << bits >= p.blocks * 8);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (n < 8)
        return 0;
    uint64_t file_bytes = qcow2_get64(data) & (INT64_MAX >> 1);
    data += 8;
    n = MIN(n - 8, INPUT_MAX);
    header(data, n, file_bytes);
    for (size_t at = 0; at + 16 <= n; at += 8) {
        uint64_t raw = qcow2_get64(data + at), offset;
        Err err = ERR_INIT;
        for (uint32_t bits = QCOW2_CLUSTER_BITS_MIN; bits <= QCOW2_CLUSTER_BITS_MAX; bits += 3) {
            standard(raw, bits, file_bytes);
            extended(raw, qcow2_get64(data + at + 8), bits, file_bytes);
            plan(raw, bits);
            if (qcow2_l1_decode(raw, bits, file_bytes, &offset, &err))
                fuzz_check(offset == 0 || offset + (UINT64_C(1) << bits) <= file_bytes);
            err_clear(&err);
        }
    }
    return 0;
}
