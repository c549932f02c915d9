// Compressed clusters. Input: a byte, the cluster's bits; then a frame, which is also pressed as a cluster.
#include "fuzz.h"

#include "codec/zframe.h"

#include <endian.h>
#include <xxhash.h>

// The checksum at the end made right, or a mutation would never get further.
static void repair(uint8_t *p, size_t n)
{
    if (n < sizeof(uint64_t))
        return;
    uint64_t check = htole64(XXH3_64bits(p, n - sizeof(check)));
    memcpy(p + n - sizeof(check), &check, sizeof(check));
}

static void inflate(const uint8_t *p, size_t n, size_t cluster)
{
    Err err = ERR_INIT;
    cleanup_free uint8_t *out = malloc(cluster);
    fuzz_check(out != NULL);
    if (!zframe_inflate(p, n, out, cluster, &err)) {
        fuzz_check(err.code == ERR_DAMAGED);
        return;
    }
    uint64_t sum = 0; // every byte has been written
    for (size_t i = 0; i < cluster; i++)
        sum += out[i];
    fuzz_check(sum <= 255 * (uint64_t)cluster);
    // Without its last byte it is another frame, or none: never a shorter one that passes for the whole.
    if (n > 0 && p[n - 1] != 0)
        fuzz_check(!zframe_inflate(p, n - 1, out, cluster, &err));
}

static void press(const uint8_t *p, size_t n)
{
    static ZframePress *z;
    Err err = ERR_INIT;
    size_t max = align_down(n, ZFRAME_SECTOR);
    if (!z)
        fuzz_check(zframe_press_new(3, &z, &err));
    cleanup_free uint8_t *out = malloc(max + 1), *again = malloc(n + 1);
    fuzz_check(out && again);
    out[max] = 0xa5;
    size_t used = zframe_press(z, p, n, out, max);
    fuzz_check(used <= max && used % ZFRAME_SECTOR == 0 && out[max] == 0xa5);
    if (used == 0)
        return;
    fuzz_check(zframe_inflate(out, used, again, n, &err));
    fuzz_check(n == 0 || memcmp(p, again, n) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (n < 1)
        return 0;
    size_t cluster = (size_t)1 << (9 + data[0] % 9);
    inflate(data + 1, n - 1, cluster);
    cleanup_free uint8_t *mended = malloc(n);
    fuzz_check(mended != NULL);
    memcpy(mended, data + 1, n - 1);
    repair(mended, n - 1);
    inflate(mended, n - 1, cluster);
    press(data + 1, n - 1);
    return 0;
}
