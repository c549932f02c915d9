// A disk in memory as an end of a copy, with everything that can go wrong: it answers at once or later and in any
// order, fails its n-th request, or never answers. It checks what the mover promises about its requests.
#pragma once

#include "image/hash.h"
#include "unit.h"
#include "wire/blocks.h"

#include <stdatomic.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define MEM_PENDING_MAX 64

typedef enum MemFault {
    MEM_FAULT_NONE,
    MEM_FAULT_START,  // the starting call returns false
    MEM_FAULT_DONE,   // done is called with an error
    MEM_FAULT_CANCEL, // no fault, but *cancel is set
} MemFault;

typedef struct MemPending {
    BlocksReq *req;
    bool fails;
    void *to; // a read's buffer is filled when it completes, not before
    uint64_t offset;
    uint32_t length;
} MemPending;

typedef struct MemBlocks {
    Blocks blocks;
    uint8_t *bytes;
    uint32_t cluster_size;
    ExtentVec changed, zeros; // of the whole disk
    bool later, silent;       // silent: never answers
    UnitRandom random;
    MemPending pending[MEM_PENDING_MAX];
    size_t pending_len;
    int fd;
    // what happened
    unsigned requests, fault_at; // fault_at: the number of the request that fails, from 1
    MemFault fault;
    atomic_bool *cancel;
    uint64_t bytes_read, bytes_written, bytes_zeroed, bytes_same;
    uint8_t *touched; // how often each cluster was sent
    bool flushed, aborted;
} MemBlocks;

static MemBlocks *mem_of(Blocks *b)
{
    return (MemBlocks *)b;
}

static inline bool mem_overlaps(const ExtentVec *v, uint64_t offset, uint64_t end)
{
    for (size_t i = 0; i < v->len; i++)
        if (v->items[i].offset < end && v->items[i].offset + v->items[i].length > offset)
            return true;
    return false;
}

static bool mem_covers(const ExtentVec *v, uint64_t offset, uint64_t end)
{
    for (size_t i = 0; i < v->len && offset < end; i++)
        if (v->items[i].offset <= offset && v->items[i].offset + v->items[i].length > offset)
            offset = v->items[i].offset + v->items[i].length;
    return offset >= end;
}

static void mem_answer(MemBlocks *m, MemPending p)
{
    Err err = ERR_INIT;
    if (p.fails) {
        (void)err_set(&err, ERR_IO, "injected");
        p.req->done(p.req, &err);
        return;
    }
    if (p.to)
        memcpy(p.to, m->bytes + p.offset, p.length);
    p.req->done(p.req, NULL);
}

static bool mem_request(MemBlocks *m, MemPending p, Err *err)
{
    assert_false(m->aborted);
    m->requests++;
    bool hit = m->requests == m->fault_at;
    if (hit && m->fault == MEM_FAULT_START)
        return err_set(err, ERR_IO, "injected");
    if (hit && m->fault == MEM_FAULT_CANCEL)
        atomic_store(m->cancel, true);
    p.fails = hit && m->fault == MEM_FAULT_DONE;
    if (!m->later && !m->silent) {
        mem_answer(m, p);
        return true;
    }
    assert_true(m->pending_len < MEM_PENDING_MAX);
    assert_true(m->pending_len < m->blocks.max_in_flight);
    m->pending[m->pending_len++] = p;
    assert_int_equal(eventfd_write(m->fd, 1), 0);
    return true;
}

static void mem_check_range(const MemBlocks *m, uint64_t offset, uint64_t length)
{
    assert_true(length > 0 && offset < m->blocks.size && length <= m->blocks.size - offset);
    assert_int_equal(offset % m->cluster_size, 0);
    assert_true(length % m->cluster_size == 0 || offset + length == m->blocks.size);
}

static bool mem_read(Blocks *b, void *p, uint64_t offset, uint32_t length, BlocksReq *req, Err *err)
{
    MemBlocks *m = mem_of(b);
    mem_check_range(m, offset, length);
    assert_true(length <= b->max_request);
    for (uint64_t at = offset; at < offset + length; at += m->cluster_size)
        assert_false(mem_covers(&m->zeros, at, MIN(at + m->cluster_size, b->size)));
    m->bytes_read += length;
    return mem_request(m, (MemPending){.req = req, .to = p, .offset = offset, .length = length}, err);
}

static void mem_touch(MemBlocks *m, uint64_t offset, uint64_t length)
{
    assert_false(m->flushed);
    for (uint64_t at = offset; at < offset + length; at += m->cluster_size)
        m->touched[at / m->cluster_size]++;
}

static bool mem_write(Blocks *b, const void *p, uint64_t offset, uint32_t length, BlocksReq *req, Err *err)
{
    MemBlocks *m = mem_of(b);
    mem_check_range(m, offset, length);
    assert_true(length <= b->max_request);
    for (uint32_t at = 0; at < length; at += m->cluster_size)
        assert_false(hash_is_zero((const uint8_t *)p + at, MIN(m->cluster_size, length - at)));
    mem_touch(m, offset, length);
    memcpy(m->bytes + offset, p, length);
    m->bytes_written += length;
    return mem_request(m, (MemPending){.req = req}, err);
}

static bool mem_zero(Blocks *b, uint64_t offset, uint64_t length, BlocksReq *req, Err *err)
{
    MemBlocks *m = mem_of(b);
    mem_check_range(m, offset, length);
    mem_touch(m, offset, length);
    memset(m->bytes + offset, 0, length);
    m->bytes_zeroed += length;
    return mem_request(m, (MemPending){.req = req}, err);
}

static bool mem_same(Blocks *b, uint64_t offset, uint32_t length, BlocksReq *req, Err *err)
{
    MemBlocks *m = mem_of(b);
    mem_check_range(m, offset, length);
    mem_touch(m, offset, length);
    m->bytes_same += length;
    return mem_request(m, (MemPending){.req = req}, err);
}

static bool mem_flush(Blocks *b, BlocksReq *req, Err *err)
{
    MemBlocks *m = mem_of(b);
    assert_false(m->flushed);
    assert_int_equal(m->pending_len, 0); // everything before was acknowledged
    m->flushed = true;
    return mem_request(m, (MemPending){.req = req}, err);
}

static bool mem_cut(const ExtentVec *all, uint64_t offset, uint64_t length, bool zero, ExtentVec *ret, Err *err)
{
    for (size_t i = 0; i < all->len; i++) {
        uint64_t from = MAX(offset, all->items[i].offset);
        uint64_t to = MIN(offset + length, all->items[i].offset + all->items[i].length);
        if (from < to && !extent_vec_push(ret, (Extent){.offset = from, .length = to - from, .zero = zero}, err))
            return false;
    }
    return true;
}

static bool mem_extents(Blocks *b, uint64_t offset, uint64_t length, ExtentVec *changed, ExtentVec *zeros, Err *err)
{
    MemBlocks *m = mem_of(b);
    assert_true(length > 0 && offset + length <= b->size);
    assert_int_equal(offset % m->cluster_size, 0);
    m->requests++;
    if (m->requests == m->fault_at && m->fault == MEM_FAULT_CANCEL)
        atomic_store(m->cancel, true);
    else if (m->requests == m->fault_at)
        return err_set(err, ERR_IO, "injected");
    return mem_cut(&m->changed, offset, length, false, changed, err) &&
        mem_cut(&m->zeros, offset, length, true, zeros, err);
}

static size_t mem_fds(Blocks *b, struct pollfd *fds)
{
    MemBlocks *m = mem_of(b);
    if (m->pending_len == 0)
        return 0;
    fds[0] = (struct pollfd){.fd = m->fd, .events = m->silent ? 0 : POLLIN};
    return 1;
}

static bool mem_dispatch(Blocks *b, const struct pollfd *fds, size_t n, Err *err)
{
    MemBlocks *m = mem_of(b);
    (void)fds;
    (void)err;
    if (n == 0 || m->silent)
        return true;
    size_t answers = 1 + (size_t)unit_random_below(&m->random, m->pending_len);
    while (answers-- > 0) {
        size_t i = (size_t)unit_random_below(&m->random, m->pending_len);
        MemPending p = m->pending[i];
        m->pending[i] = m->pending[--m->pending_len];
        mem_answer(m, p);
    }
    return true;
}

static void mem_abort(Blocks *b)
{
    MemBlocks *m = mem_of(b);
    Err err = ERR_INIT;
    m->aborted = true;
    (void)err_set(&err, ERR_CANCELLED, "aborted");
    while (m->pending_len > 0) {
        BlocksReq *req = m->pending[--m->pending_len].req;
        req->done(req, &err);
    }
}

static void mem_free(Blocks *b)
{
    MemBlocks *m = mem_of(b);
    assert_int_equal(m->pending_len, 0);
    extent_vec_clear(&m->changed);
    extent_vec_clear(&m->zeros);
    (void)close(m->fd);
    free(m->bytes);
    free(m->touched);
    free(m);
}

static const BlocksOps mem_ops = {
    .name = "memory",
    .read = mem_read,
    .write = mem_write,
    .zero = mem_zero,
    .same = mem_same,
    .flush = mem_flush,
    .extents = mem_extents,
    .fds = mem_fds,
    .dispatch = mem_dispatch,
    .abort = mem_abort,
    .free = mem_free,
};

static MemBlocks *mem_new(uint64_t size, uint32_t cluster_size, bool later, UnitRandom *random)
{
    MemBlocks *m = calloc(1, sizeof(*m));
    assert_non_null(m);
    m->blocks = (Blocks){.ops = &mem_ops, .size = size, .max_request = 1u << 20, .max_in_flight = 8};
    m->bytes = calloc(1, size);
    m->touched = calloc(1, size / cluster_size + 1);
    assert_true(m->bytes && m->touched);
    m->cluster_size = cluster_size;
    m->later = later;
    m->random.state = unit_random_next(random);
    m->fd = eventfd(0, EFD_CLOEXEC);
    assert_true(m->fd >= 0);
    return m;
}
