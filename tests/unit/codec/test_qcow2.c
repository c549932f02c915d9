#include "codec/qcow2.h"

#include "base/file.h"
#include "base/proc.h"
#include "unit.h"

#define FILE_BYTES (UINT64_C(64) << 20)

static Qcow2Header sample(void)
{
    return (Qcow2Header){.cluster_bits = 16,
                         .size = UINT64_C(3) << 30,
                         .l1_size = 6,
                         .l1_offset = 0x50000,
                         .refcount_table_offset = 0x60000,
                         .refcount_table_clusters = 1};
}

static void test_header_round_trip(void **state)
{
    (void)state;
    static uint8_t cluster[1u << 21];
    for (uint32_t bits = QCOW2_CLUSTER_BITS_MIN; bits <= QCOW2_CLUSTER_BITS_MAX; bits++) {
        for (int kind = 0; kind < 4; kind++) {
            Err err = ERR_INIT;
            Qcow2Header h = sample(), back;
            h.cluster_bits = bits;
            h.extended_l2 = kind == 1 && bits >= 14;
            h.compression = kind == 2 ? QCOW2_ZSTD : QCOW2_ZLIB;
            h.l1_size = (uint32_t)qcow2_l1_entries(h.size, bits, h.extended_l2);
            h.l1_offset = UINT64_C(4) << 21;
            h.refcount_table_offset = UINT64_C(20) << 21;
            if (kind == 3)
                memset(h.backing_name, 'b', QCOW2_BACKING_MAX);
            assert_ok(qcow2_header_encode(&h, cluster, &err), &err);
            assert_ok(qcow2_header_decode(cluster, QCOW2_HEADER_READ, FILE_BYTES, &back, &err), &err);
            assert_memory_equal(&h, &back, sizeof h);
        }
    }
    Err err = ERR_INIT;
    Qcow2Header h = sample();
    h.size = 1;
    assert_fails(qcow2_header_encode(&h, cluster, &err), &err, ERR_INTERNAL);
}

// Each line: a number put into the header at a place, and what must come of it.
static void test_header_refused(void **state)
{
    (void)state;
    static const struct {
        size_t at, bytes;
        uint64_t value;
        ErrCode code;
    } cases[] = {
        {0, 4, 0x514649fa, ERR_DAMAGED},      // magic
        {4, 4, 2, ERR_UNSUPPORTED},           // version
        {8, 8, 5000, ERR_DAMAGED},            // backing name behind what was read
        {8, 8, 40, ERR_DAMAGED},              // inside the header
        {16, 4, 1024, ERR_DAMAGED},           // too long
        {16, 4, 0, ERR_DAMAGED},              //
        {20, 4, 9, ERR_UNSUPPORTED},          // cluster bits
        {20, 4, 22, ERR_UNSUPPORTED},         //
        {20, 4, 0xffffffff, ERR_UNSUPPORTED}, //
        {24, 8, 0, ERR_DAMAGED},              // size
        {24, 8, 511, ERR_DAMAGED},            //
        {24, 8, UINT64_MAX - 511, ERR_DAMAGED},
        {32, 4, 1, ERR_UNSUPPORTED},      // encryption
        {36, 4, 5, ERR_DAMAGED},          // L1 size
        {36, 4, 7, ERR_DAMAGED},          //
        {40, 8, 0, ERR_DAMAGED},          // L1 offset
        {40, 8, 0x50001, ERR_DAMAGED},    //
        {40, 8, FILE_BYTES, ERR_DAMAGED}, //
        {40, 8, UINT64_MAX << 16, ERR_DAMAGED},
        {48, 8, 0, ERR_DAMAGED},               // refcount table
        {48, 8, FILE_BYTES, ERR_DAMAGED},      //
        {56, 4, 0, ERR_DAMAGED},               //
        {56, 4, 0xffffffff, ERR_DAMAGED},      //
        {60, 4, 1, ERR_UNSUPPORTED},           // snapshots
        {72, 8, 1, ERR_UNSUPPORTED},           // dirty
        {72, 8, 2, ERR_UNSUPPORTED},           // corrupt
        {72, 8, 4, ERR_UNSUPPORTED},           // external data file
        {72, 8, 8, ERR_DAMAGED},               // compression type zlib, and the bit
        {72, 8, 32, ERR_UNSUPPORTED},          // unknown
        {80, 8, 1, ERR_UNSUPPORTED},           // lazy refcounts
        {88, 8, 1, ERR_UNSUPPORTED},           // bitmaps
        {96, 4, 3, ERR_UNSUPPORTED},           // refcount order
        {100, 4, 100, ERR_DAMAGED},            // header length
        {100, 4, 103, ERR_DAMAGED},            //
        {100, 4, 120, ERR_UNSUPPORTED},        //
        {100, 4, 0xfffffff8, ERR_DAMAGED},     //
        {104, 1, 2, ERR_UNSUPPORTED},          // compression
        {112, 4, 0x44415441, ERR_UNSUPPORTED}, // extension: data file
        {112, 4, 0, ERR_UNSUPPORTED},          // a backing name without a format
        {116, 4, 0xffffffff, ERR_DAMAGED},     // its length
        {120, 1, 'r', ERR_UNSUPPORTED},        // another backing format
    };
    static uint8_t cluster[65536];
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        Err err = ERR_INIT;
        Qcow2Header h = sample(), back;
        memcpy(h.backing_name, "parent.qcow2", 12);
        assert_ok(qcow2_header_encode(&h, cluster, &err), &err);
        assert_ok(qcow2_header_decode(cluster, QCOW2_HEADER_READ, FILE_BYTES, &back, &err), &err);
        for (size_t b = 0; b < cases[i].bytes; b++)
            cluster[cases[i].at + b] = (uint8_t)(cases[i].value >> 8 * (cases[i].bytes - 1 - b));
        bool ok = qcow2_header_decode(cluster, QCOW2_HEADER_READ, FILE_BYTES, &back, &err);
        if (ok || err.code != cases[i].code)
            fail_msg("case %zu: %s: %s", i, err_name(err.code), err.details);
    }
    // A name where the mark should be that ends the extensions; subclusters of less than a sector.
    Err err = ERR_INIT;
    Qcow2Header h = sample(), back;
    memcpy(h.backing_name, "parent.qcow2", 12);
    assert_ok(qcow2_header_encode(&h, cluster, &err), &err);
    cluster[15] = 128;
    memcpy(cluster + 128, "parent.qcow2", 12);
    assert_fails(qcow2_header_decode(cluster, QCOW2_HEADER_READ, FILE_BYTES, &back, &err), &err, ERR_DAMAGED);
    h = sample();
    h.cluster_bits = 13;
    h.extended_l2 = true;
    h.l1_size = (uint32_t)qcow2_l1_entries(h.size, 13, true);
    assert_ok(qcow2_header_encode(&h, cluster, &err), &err);
    assert_fails(qcow2_header_decode(cluster, QCOW2_HEADER_READ, FILE_BYTES, &back, &err), &err, ERR_DAMAGED);
}

// Random bytes over a good header: any answer will do, reading outside (sanitizers) will not.
static void test_header_noise(void **state)
{
    (void)state;
    UnitRandom random = unit_random();
    for (int round = 0; round < 20000; round++) {
        Err err = ERR_INIT;
        Qcow2Header h = sample(), back;
        size_t n = 1 + unit_random_below(&random, QCOW2_HEADER_READ);
        uint8_t *whole = malloc(65536), *exact = malloc(n);
        memcpy(h.backing_name, "p", 1);
        assert_ok(qcow2_header_encode(&h, whole, &err), &err);
        for (unsigned i = 0; i < 1 + unit_random_below(&random, 4); i++)
            whole[unit_random_below(&random, 140)] = (uint8_t)unit_random_next(&random);
        memcpy(exact, whole, n);
        (void)!qcow2_header_decode(exact, n, unit_random_next(&random) >> 30, &back, &err);
        free(whole);
        free(exact);
    }
}

// What QEMU writes in our subset is understood.
static void test_headers_of_qemu(void **state)
{
    static const char *const options[] = {"cluster_size=64k", "cluster_size=4k", "extended_l2=on,cluster_size=128k",
                                          "compression_type=zstd", "cluster_size=2M"};
    for (size_t i = 0; i < ARRAY_LEN(options); i++) {
        Err err = ERR_INIT;
        const char *path = unit_path(state, "q.qcow2");
        int status = -1;
        char *bytes = NULL;
        size_t n = 0;
        Qcow2Header h;
        assert_ok(proc_run((const char *const[]){"qemu-img", "create", "-q", "-f", "qcow2", "-o", options[i], path,
                                                 "3G", NULL},
                           NULL, 20000, 4096, NULL, NULL, &status, &err),
                  &err);
        assert_int_equal(status, 0);
        assert_ok(file_read(path, 64u << 20, &bytes, &n, &err), &err);
        assert_ok(qcow2_header_decode((const uint8_t *)bytes, MIN(n, QCOW2_HEADER_READ), n, &h, &err), &err);
        assert_int_equal(h.size, UINT64_C(3) << 30);
        assert_int_equal(h.extended_l2, i == 2);
        assert_int_equal(h.compression, i == 3 ? QCOW2_ZSTD : QCOW2_ZLIB);
        free(bytes);
    }
}

static void test_entries(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    Qcow2Entry e;
    uint64_t offset;
    assert_ok(qcow2_l2_decode(0, 16, FILE_BYTES, &e, &err), &err);
    assert_int_equal(e.kind, QCOW2_UNALLOCATED);
    assert_ok(qcow2_l2_decode(qcow2_l2_zero(0), 16, FILE_BYTES, &e, &err), &err);
    assert_int_equal(e.kind, QCOW2_ZERO_PLAIN);
    assert_ok(qcow2_l2_decode(qcow2_l2_zero(0x30000), 16, FILE_BYTES, &e, &err), &err);
    assert_int_equal(e.kind, QCOW2_ZERO_ALLOC);
    assert_ok(qcow2_l2_decode(qcow2_l2_normal(0x30000), 16, FILE_BYTES, &e, &err), &err);
    assert_int_equal(e.kind, QCOW2_NORMAL);
    assert_int_equal(e.offset, 0x30000);
    // 64 KiB clusters: offset in 54 bits, sectors beyond the first in 8.
    assert_ok(qcow2_l2_decode(QCOW2_OFLAG_COMPRESSED | UINT64_C(5) << 54 | 0x30123, 16, FILE_BYTES, &e, &err), &err);
    assert_int_equal(e.kind, QCOW2_COMPRESSED);
    assert_int_equal(e.offset, 0x30123);
    assert_int_equal(e.length, 6 * 512 - 0x123);
    static const uint64_t bad[] = {
        0x30000,                      // not COPIED
        QCOW2_OFLAG_COPIED,           // nothing to be copied
        QCOW2_OFLAG_COPIED | 0x30200, // not aligned
        QCOW2_OFLAG_COPIED | FILE_BYTES,
        QCOW2_OFLAG_COPIED | (FILE_BYTES - 0x8000), // not aligned, and cut
        QCOW2_OFLAG_COPIED | 0x30000 | 2,
        QCOW2_OFLAG_COPIED | 0x30000 | UINT64_C(1) << 56,
        QCOW2_OFLAG_COPIED | QCOW2_OFLAG_COMPRESSED | 0x30000,
        QCOW2_OFLAG_COMPRESSED | 0x100, // in the header
        QCOW2_OFLAG_COMPRESSED | FILE_BYTES,
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_fails(qcow2_l2_decode(bad[i], 16, FILE_BYTES, &e, &err), &err, ERR_DAMAGED);
    assert_ok(qcow2_l1_decode(0, 16, FILE_BYTES, &offset, &err), &err);
    assert_int_equal(offset, 0);
    assert_ok(qcow2_l1_decode(QCOW2_OFLAG_COPIED | 0x10000, 16, FILE_BYTES, &offset, &err), &err);
    assert_int_equal(offset, 0x10000);
    static const uint64_t bad_l1[] = {0x10000, QCOW2_OFLAG_COPIED, QCOW2_OFLAG_COPIED | 0x10001,
                                      QCOW2_OFLAG_COPIED | QCOW2_OFLAG_COMPRESSED | 0x10000,
                                      QCOW2_OFLAG_COPIED | FILE_BYTES};
    for (size_t i = 0; i < ARRAY_LEN(bad_l1); i++)
        assert_fails(qcow2_l1_decode(bad_l1[i], 16, FILE_BYTES, &offset, &err), &err, ERR_DAMAGED);
}

static void test_extended_entries(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    Qcow2Entry e;
    uint64_t host = QCOW2_OFLAG_COPIED | 0x40000, all = UINT32_MAX;
    assert_ok(qcow2_l2_decode_extended(0, 0, 17, FILE_BYTES, &e, &err), &err);
    assert_true(e.kind == QCOW2_UNALLOCATED && !e.subclusters);
    assert_ok(qcow2_l2_decode_extended(host, all, 17, FILE_BYTES, &e, &err), &err);
    assert_true(e.kind == QCOW2_NORMAL && !e.subclusters);
    assert_ok(qcow2_l2_decode_extended(host, all << 32, 17, FILE_BYTES, &e, &err), &err);
    assert_true(e.kind == QCOW2_ZERO_ALLOC && !e.subclusters);
    assert_ok(qcow2_l2_decode_extended(0, all << 32, 17, FILE_BYTES, &e, &err), &err);
    assert_true(e.kind == QCOW2_ZERO_PLAIN && !e.subclusters);
    assert_ok(qcow2_l2_decode_extended(host, 0, 17, FILE_BYTES, &e, &err), &err);
    assert_true(e.kind == QCOW2_UNALLOCATED && !e.subclusters);
    assert_ok(qcow2_l2_decode_extended(host, UINT64_C(1) << 40 | 1, 17, FILE_BYTES, &e, &err), &err);
    assert_true(e.kind == QCOW2_NORMAL && e.subclusters && e.alloc == 1 && e.zero == 256);
    assert_ok(qcow2_l2_decode_extended(0, UINT64_C(1) << 40, 17, FILE_BYTES, &e, &err), &err);
    assert_true(e.kind == QCOW2_UNALLOCATED && e.subclusters);
    assert_ok(qcow2_l2_decode_extended(QCOW2_OFLAG_COMPRESSED | 0x30123, 0, 17, FILE_BYTES, &e, &err), &err);
    assert_true(e.kind == QCOW2_COMPRESSED && e.offset == 0x30123 && e.length == 512 - 0x123 && !e.subclusters);
    assert_fails(qcow2_l2_decode_extended(QCOW2_OFLAG_COMPRESSED | 0x30123, 1, 17, FILE_BYTES, &e, &err), &err,
                 ERR_DAMAGED);
    assert_fails(qcow2_l2_decode_extended(host, UINT64_C(1) << 32 | 1, 17, FILE_BYTES, &e, &err), &err, ERR_DAMAGED);
    assert_fails(qcow2_l2_decode_extended(0, 1, 17, FILE_BYTES, &e, &err), &err, ERR_DAMAGED);
    assert_fails(qcow2_l2_decode_extended(host | 1, all, 17, FILE_BYTES, &e, &err), &err, ERR_DAMAGED);
}

// The plan covers itself, and nothing smaller does.
static void test_refcount_plan(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    UnitRandom random = unit_random();
    for (int i = 0; i < 3000; i++) {
        uint32_t bits = 12 + (uint32_t)unit_random_below(&random, 10);
        uint64_t per_block = (UINT64_C(1) << bits) / 2, per_table = (UINT64_C(1) << bits) / 8;
        uint64_t used = 1 + unit_random_below(&random, i % 2 ? 5 * per_block : 3 * per_block * per_table);
        if (i % 3 == 0)
            used = MAX(1, used / per_block * per_block) + unit_random_below(&random, 2);
        Qcow2RefcountPlan p;
        if (!qcow2_refcount_plan(used, bits, &p, &err)) {
            assert_int_equal(err.code, ERR_TOO_LARGE);
            err_clear(&err);
            continue;
        }
        assert_int_equal(p.total, used + p.blocks + p.table_clusters);
        assert_true(p.blocks * per_block >= p.total && p.table_clusters * per_table >= p.blocks);
        assert_true((p.blocks - 1) * per_block < p.total && (p.table_clusters - 1) * per_table < p.blocks);
    }
    Qcow2RefcountPlan p;
    assert_fails(qcow2_refcount_plan(UINT64_C(1) << 40, 12, &p, &err), &err, ERR_TOO_LARGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_header_round_trip),
        cmocka_unit_test(test_header_refused),
        cmocka_unit_test(test_header_noise),
        cmocka_unit_test_setup_teardown(test_headers_of_qemu, unit_folder_setup, unit_folder_teardown),
        cmocka_unit_test(test_entries),
        cmocka_unit_test(test_extended_entries),
        cmocka_unit_test(test_refcount_plan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
