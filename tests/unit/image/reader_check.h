// What the reader's tests share: comparing with what must be read, and flipping bytes.
#pragma once

#include "model.h"

#include "image/reader_parts.h"

static inline void compare_all(Reader *r, const uint8_t *want, uint64_t size, UnitRandom *random,
                               unsigned reads)
{
    Err err = ERR_INIT;
    uint8_t *got = malloc(size + 1);
    assert_non_null(got);
    assert_int_equal(reader_size(r), size);
    assert_ok(reader_read(r, got, 0, (uint32_t)size, &err), &err);
    assert_memory_equal(got, want, size);
    for (unsigned i = 0; i < reads; i++) {
        uint64_t at = unit_random_below(random, size),
                 n = unit_random_below(random, MIN(size - at, 300000) + 1);
        got[n] = 0xa5;
        assert_ok(reader_read(r, got, at, (uint32_t)n, &err), &err);
        assert_memory_equal(got, want + at, n);
        assert_int_equal(got[n], 0xa5);
    }
    assert_fails(reader_read(r, got, size, 1, &err), &err, ERR_INVALID);
    assert_fails(reader_read(r, got, size - 1, 2, &err), &err, ERR_INVALID);
    assert_fails(reader_read(r, got, UINT64_MAX, 2, &err), &err, ERR_INVALID);
    assert_ok(reader_read(r, got, size, 0, &err), &err);
    free(got);
}

// Extents: whole range, ascending, alternating, and zero only where every byte is.
static inline void check_extents(Reader *r, const uint8_t *want, uint64_t offset, uint64_t length)
{
    Err err = ERR_INIT;
    ExtentVec v = {0};
    uint64_t at = offset;
    assert_ok(reader_extents(r, offset, length, &v, &err), &err);
    for (size_t i = 0; i < v.len; i++) {
        assert_int_equal(v.items[i].offset, at);
        assert_true(v.items[i].length > 0);
        assert_true(i == 0 || v.items[i].zero != v.items[i - 1].zero);
        if (v.items[i].zero)
            assert_true(hash_is_zero(want + at, v.items[i].length));
        at += v.items[i].length;
    }
    assert_int_equal(at, offset + length);
    extent_vec_clear(&v);
}

// The same mask again puts it right.
static inline void flip(const char *path, uint64_t at, uint8_t mask)
{
    uint8_t b;
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &b, 1, (off_t)at), 1);
    b ^= mask;
    assert_int_equal(pwrite(fd, &b, 1, (off_t)at), 1);
    (void)close(fd);
}

// Whatever byte of whatever file is flipped: refused, or the right bytes; never wrong ones.
static inline void try_flipped(const ReaderLayer *layers, size_t n, const HashGeometry *geo,
                               const uint8_t *want, uint64_t size, uint8_t *got,
                               unsigned *ret_refused)
{
    Err err = ERR_INIT;
    Reader *r = NULL;
    bool ok = reader_open(layers, n, geo, &r, &err);
    if (ok) {
        ExtentVec v = {0};
        bool map = reader_extents(r, 0, size, &v, &err);
        for (size_t i = 0; map && i < v.len; i++)
            if (v.items[i].zero)
                assert_true(hash_is_zero(want + v.items[i].offset, v.items[i].length));
        extent_vec_clear(&v);
        err_clear(&err);
        memset(got, 0xee, size);
        assert_int_equal(reader_size(r), size);
        ok = reader_read(r, got, 0, (uint32_t)size, &err);
        if (ok)
            assert_memory_equal(got, want, size);
        assert_true(map || !ok);
    }
    if (!ok) {
        (*ret_refused)++;
        assert_true(err.code == ERR_DAMAGED || err.code == ERR_UNSUPPORTED);
    }
    reader_free(r);
}
