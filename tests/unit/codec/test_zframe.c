// A cluster in a zstd frame comes back, or is refused; never other bytes.
#include "codec/zframe.h"
#include "unit.h"

#include <endian.h>
#include <xxhash.h>
#include <zstd.h>

#define CLUSTER 65536

static uint8_t cluster[CLUSTER], frame[CLUSTER], got[CLUSTER];

// Bytes that a press could have made, whatever is in them: with zeros up to the end of a sector, and the check.
static size_t with_check(size_t used)
{
    size_t bytes = align_up(used + 8, ZFRAME_SECTOR);
    memset(frame + used, 0, bytes - used);
    uint64_t check = htole64(XXH3_64bits(frame, bytes - 8));
    memcpy(frame + bytes - 8, &check, 8);
    return bytes;
}

static void fill(UnitRandom *random, uint64_t mask)
{
    for (size_t i = 0; i < CLUSTER; i++)
        cluster[i] = (uint8_t)(unit_random_next(random) & mask);
}

static void round_trip(void **state)
{
    (void)state;
    UnitRandom random = unit_random();
    for (unsigned level = 1; level <= ZFRAME_LEVEL_MAX; level += 6) {
        Err err = ERR_INIT;
        ZframePress *z = NULL;
        assert_ok(zframe_press_new(level, &z, &err), &err);
        for (int i = 0; i < 8; i++) {
            fill(&random, 3);
            size_t n = zframe_press(z, cluster, CLUSTER, frame, CLUSTER);
            assert_true(n > 0 && n % ZFRAME_SECTOR == 0);
            assert_ok(zframe_inflate(frame, n, got, CLUSTER, &err), &err);
            assert_memory_equal(got, cluster, CLUSTER);
            // less room than it needs: nothing, and the press is good for the next
            assert_int_equal(zframe_press(z, cluster, CLUSTER, frame, n - ZFRAME_SECTOR), 0);
        }
        fill(&random, UINT64_MAX);
        assert_int_equal(zframe_press(z, cluster, CLUSTER, frame, CLUSTER - CLUSTER / 8), 0);
        assert_int_equal(zframe_press(z, cluster, CLUSTER, frame, ZFRAME_SECTOR - 1), 0);
        zframe_press_free(z);
    }
    zframe_press_free(NULL);
}

// The check is no secret: whoever can write to a repository can make one that fits.
static void hostile_frames(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    UnitRandom random = unit_random();
    fill(&random, 3);
    size_t n = ZSTD_compress(frame, sizeof frame - ZFRAME_SECTOR, cluster, CLUSTER, 1);
    assert_false(ZSTD_isError(n));
    assert_ok(zframe_inflate(frame, with_check(n), got, CLUSTER, &err), &err);
    // of more bytes than the cluster, of fewer, cut, none at all
    assert_fails(zframe_inflate(frame, with_check(n), got, CLUSTER - 1, &err), &err, ERR_DAMAGED);
    n = ZSTD_compress(frame, sizeof frame - ZFRAME_SECTOR, cluster, CLUSTER - 1, 1);
    assert_fails(zframe_inflate(frame, with_check(n), got, CLUSTER, &err), &err, ERR_DAMAGED);
    n = ZSTD_compress(frame, sizeof frame - ZFRAME_SECTOR, cluster, CLUSTER, 1);
    assert_fails(zframe_inflate(frame, with_check(n / 2), got, CLUSTER, &err), &err, ERR_DAMAGED);
    memset(frame, 0, ZFRAME_SECTOR);
    assert_fails(zframe_inflate(frame, with_check(0), got, CLUSTER, &err), &err, ERR_DAMAGED);
    assert_fails(zframe_inflate(frame, 7, got, CLUSTER, &err), &err, ERR_DAMAGED);
    // a frame that asks for a window of 128 MiB
    ZSTD_CCtx *ctx = ZSTD_createCCtx();
    assert_non_null(ctx);
    (void)ZSTD_CCtx_setParameter(ctx, ZSTD_c_windowLog, 27);
    (void)ZSTD_CCtx_setParameter(ctx, ZSTD_c_contentSizeFlag, 0);
    ZSTD_inBuffer in = {.src = cluster, .size = CLUSTER};
    ZSTD_outBuffer out = {.dst = frame, .size = sizeof frame - ZFRAME_SECTOR};
    assert_false(ZSTD_isError(ZSTD_compressStream2(ctx, &out, &in, ZSTD_e_flush)));
    assert_int_equal(ZSTD_compressStream2(ctx, &out, &in, ZSTD_e_end), 0);
    (void)ZSTD_freeCCtx(ctx);
    assert_fails(zframe_inflate(frame, with_check(out.pos), got, CLUSTER, &err), &err, ERR_DAMAGED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(round_trip), cmocka_unit_test(hostile_frames)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
