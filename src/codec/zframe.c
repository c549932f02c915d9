#include "codec/zframe.h"

#include <endian.h>
#include <xxhash.h>
#include <zstd.h>
#include <zstd_errors.h>

#define CHECK_BYTES sizeof(uint64_t)

#define WINDOW_LOG_MAX 23 // a frame may ask for any window; a cluster never needs more than the largest cluster

struct ZframePress {
    ZSTD_CCtx *ctx;
};

bool zframe_press_new(unsigned level, ZframePress **ret, Err *err)
{
    ZframePress *z = mem_calloc(1, sizeof *z, err);
    if (!z)
        return false;
    z->ctx = ZSTD_createCCtx();
    if (!z->ctx || ZSTD_isError(ZSTD_CCtx_setParameter(z->ctx, ZSTD_c_compressionLevel, (int)level))) {
        zframe_press_free(z);
        return err_no_memory(err);
    }
    *ret = z;
    return true;
}

void zframe_press_free(ZframePress *z)
{
    if (!z)
        return;
    (void)ZSTD_freeCCtx(z->ctx); // always 0
    free(z);
}

size_t zframe_press(ZframePress *z, const void *p, size_t n, void *out, size_t max)
{
    if (max < ZFRAME_SECTOR)
        return 0;
    size_t used = ZSTD_compress2(z->ctx, out, max - CHECK_BYTES, p, n);
    if (ZSTD_isError(used)) // it would be longer than max; memory is had, or not, and then it is stored as it is
        return 0;
    size_t sectors = align_up(used + CHECK_BYTES, ZFRAME_SECTOR), checked = sectors - CHECK_BYTES;
    memset((uint8_t *)out + used, 0, checked - used);
    uint64_t check = htole64(XXH3_64bits(out, checked));
    memcpy((uint8_t *)out + checked, &check, CHECK_BYTES);
    return sectors;
}

static bool is_intact(const uint8_t *in, size_t n)
{
    uint64_t check;
    if (n < CHECK_BYTES)
        return false;
    memcpy(&check, in + n - CHECK_BYTES, CHECK_BYTES);
    return le64toh(check) == XXH3_64bits(in, n - CHECK_BYTES);
}

bool zframe_inflate(const void *in, size_t in_bytes, void *out, size_t out_bytes, Err *err)
{
    if (!is_intact(in, in_bytes))
        return err_set(err, ERR_DAMAGED, "a compressed cluster is not what was written");
    ZSTD_DCtx *ctx = ZSTD_createDCtx();
    if (!ctx)
        return err_no_memory(err);
    (void)ZSTD_DCtx_setParameter(ctx, ZSTD_d_windowLogMax, WINDOW_LOG_MAX); // fails outside 10..31 only
    ZSTD_inBuffer from = {.src = in, .size = in_bytes};
    ZSTD_outBuffer to = {.dst = out, .size = out_bytes};
    size_t hint = 1;
    while (hint != 0) { // 0: the frame is over
        size_t was_in = from.pos, was_out = to.pos;
        hint = ZSTD_decompressStream(ctx, &to, &from);
        if (ZSTD_isError(hint) || (from.pos == was_in && to.pos == was_out))
            break;
    }
    (void)ZSTD_freeDCtx(ctx); // always 0
    if (ZSTD_getErrorCode(hint) == ZSTD_error_memory_allocation)
        return err_no_memory(err);
    if (hint != 0 || to.pos != to.size)
        return err_set(err, ERR_DAMAGED, "a compressed cluster does not inflate to %zu bytes", out_bytes);
    return true;
}
