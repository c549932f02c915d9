#include "ends.h"

#include "ends_parts.h"
#include "image/hash.h"

#include <sys/eventfd.h>
#include <unistd.h>

static End *end_of(Blocks *b)
{
    return (End *)b;
}

// ---- requests: at once, or later in any order

static void answer(End *e, EndsRequest r)
{
    Err err = ERR_INIT;
    if (r.fails)
        (void)err_set(&err, ERR_IO, "the oracle lets this request fail");
    else if (r.read)
        memcpy(r.read, (e->run->plant == ENDS_THAWED ? e->run->live->bytes : e->view->bytes) + r.offset, r.length);
    else
        (void)!ends_perform(e, &r, &err); // its error is in err
    r.req->done(r.req, err.code == ERR_NONE ? NULL : &err);
}

static bool request(End *e, EndsRequest r, Err *err)
{
    EndsRun *run = e->run;
    bool hit = ++run->requests == run->fail_at && run->failure != ENDS_NO_FAILURE;
    run->failed = run->failed || hit;
    if (hit && run->failure == ENDS_FAIL_START)
        return err_set(err, ERR_IO, "the oracle lets this request fail at once");
    if (hit && run->failure == ENDS_CANCEL)
        atomic_store(run->cancel, true);
    r.fails = hit && run->failure == ENDS_FAIL_DONE;
    if (!e->later)
        answer(e, r);
    else if (e->pending_len == ENDS_PENDING_MAX)
        return err_set(err, ERR_INTERNAL, "more requests in flight than there may be");
    else
        e->pending[e->pending_len++] = r;
    return true;
}

static bool end_read(Blocks *b, void *p, uint64_t offset, uint32_t length, BlocksReq *req, Err *err)
{
    End *e = end_of(b);
    if (rng_chance(e->run->rng, 5) && e->run->meanwhile)
        e->run->meanwhile(e->run->meanwhile_ctx);
    return request(e, (EndsRequest){.req = req, .read = p, .offset = offset, .length = length}, err);
}

static bool end_write(Blocks *b, const void *p, uint64_t offset, uint32_t length, BlocksReq *req, Err *err)
{
    return request(end_of(b), (EndsRequest){.req = req, .write = p, .offset = offset, .length = length}, err);
}

static bool end_zero(Blocks *b, uint64_t offset, uint64_t length, BlocksReq *req, Err *err)
{
    return request(end_of(b), (EndsRequest){.req = req, .zero = true, .offset = offset, .length = length}, err);
}

static bool end_flush(Blocks *b, BlocksReq *req, Err *err)
{
    return request(end_of(b), (EndsRequest){.req = req}, err);
}

static size_t end_fds(Blocks *b, struct pollfd *fds)
{
    End *e = end_of(b);
    if (e->pending_len == 0)
        return 0;
    fds[0] = (struct pollfd){.fd = e->fd, .events = POLLIN};
    return 1;
}

static bool end_dispatch(Blocks *b, const struct pollfd *fds, size_t n, Err *err)
{
    End *e = end_of(b);
    (void)fds;
    (void)err;
    for (uint64_t left = n == 0 ? 0 : rng_between(e->run->rng, 1, e->pending_len); left > 0; left--) {
        size_t i = (size_t)rng_below(e->run->rng, e->pending_len);
        EndsRequest r = e->pending[i];
        e->pending[i] = e->pending[--e->pending_len];
        answer(e, r);
    }
    return true;
}

static void end_abort(Blocks *b)
{
    End *e = end_of(b);
    Err err = ERR_INIT;
    (void)err_set(&err, ERR_CANCELLED, "aborted");
    while (e->pending_len > 0) {
        BlocksReq *req = e->pending[--e->pending_len].req;
        req->done(req, &err);
    }
}

static void end_free(Blocks *b)
{
    End *e = end_of(b);
    extent_vec_clear(&e->changed);
    extent_vec_clear(&e->zeros);
    if (e->fd >= 0)
        (void)close(e->fd);
    free(e->passed);
    free(e->held);
    free(e);
}

// ---- what the source knows

static bool push(ExtentVec *v, uint64_t offset, uint64_t end, bool zero, Err *err)
{
    return offset >= end || extent_vec_push(v, (Extent){.offset = offset, .length = end - offset, .zero = zero}, err);
}

// Dirty granules, joined or not.
static bool list_changed(End *e, Err *err)
{
    const GuestView *v = e->view;
    uint64_t granules = (v->size + v->granularity - 1) / v->granularity;
    for (uint64_t g = 0, end; g < granules; g = end) {
        end = g + 1;
        // A resize within the last granule, and back, leaves no trace in a bitmap: it is always taken as dirty.
        bool last = end == granules && e->run->plant != ENDS_RESIZE_BLIND;
        if (!v->changed[g] && !last)
            continue;
        while (end < granules && v->changed[end] && !rng_chance(e->run->rng, 20))
            end++;
        if (!push(&e->changed, g * v->granularity, MIN(end * v->granularity, v->size), false, err))
            return false;
    }
    return true;
}

// Runs of sectors that the map calls zero. What is not only known from here may be left out, or cut.
static bool list_zeros(End *e, Err *err)
{
    const GuestView *v = e->view;
    uint64_t sectors = guest_sectors(v->size);
    for (uint64_t s = 0, end; s < sectors; s = end) {
        for (end = s + 1; end < sectors && v->map[end] == v->map[s];)
            end++;
        uint64_t from = s * GUEST_SECTOR, to = MIN(end * GUEST_SECTOR, v->size);
        if (v->map[s] == GUEST_DATA)
            continue;
        if (!hash_is_zero(v->bytes + from, to - from))
            return err_set(err, ERR_INTERNAL, "the model's map calls zero what is not");
        if (v->map[s] == GUEST_MAY_ZERO && rng_chance(e->run->rng, 40)) {
            uint64_t cut = rng_below(e->run->rng, end - s);
            from = (s + cut) * GUEST_SECTOR;
        }
        if (!(v->map[s] == GUEST_MAY_ZERO && rng_chance(e->run->rng, 20)) && !push(&e->zeros, from, to, true, err))
            return false;
    }
    return true;
}

// The planted lie: the largest piece of data becomes a zero of the map.
static bool lie_about_zeros(End *e, Err *err)
{
    const GuestView *v = e->view;
    e->zeros.len = 0;
    for (uint64_t at = 0; at < v->size; at += e->cluster_size)
        if (v->map[at / GUEST_SECTOR] == GUEST_DATA)
            return push(&e->zeros, at, MIN(at + e->cluster_size, v->size), true, err);
    return true;
}

static bool cut(const ExtentVec *all, uint64_t offset, uint64_t length, ExtentVec *ret, Err *err)
{
    for (size_t i = 0; i < all->len; i++) {
        const Extent *x = &all->items[i];
        if (!push(ret, MAX(offset, x->offset), MIN(offset + length, x->offset + x->length), x->zero, err))
            return false;
    }
    return true;
}

static bool end_extents(Blocks *b, uint64_t offset, uint64_t length, ExtentVec *changed, ExtentVec *zeros, Err *err)
{
    End *e = end_of(b);
    EndsRun *run = e->run;
    if (++run->requests == run->fail_at && run->failure != ENDS_NO_FAILURE) {
        run->failed = true;
        return err_set(err, ERR_IO, "the oracle lets the map fail");
    }
    return cut(&e->changed, offset, length, changed, err) && cut(&e->zeros, offset, length, zeros, err);
}

// ---- opening

static const BlocksOps source_ops = {
    .name = "frozen view",
    .read = end_read,
    .extents = end_extents,
    .fds = end_fds,
    .dispatch = end_dispatch,
    .abort = end_abort,
    .free = end_free,
};

static const BlocksOps sink_ops = {
    .name = "engine",
    .write = end_write,
    .zero = end_zero,
    .flush = end_flush,
    .fds = end_fds,
    .dispatch = end_dispatch,
    .abort = end_abort,
    .free = end_free,
};

static End *end_new(const BlocksOps *ops, const GuestView *view, uint32_t cluster_size, EndsRun *run, Err *err)
{
    End *e = mem_calloc(1, sizeof *e, err);
    if (!e)
        return NULL;
    e->blocks = (Blocks){.ops = ops, .size = view->size};
    e->blocks.max_request = UINT32_C(65536) << rng_below(run->rng, 5); // no cluster is larger
    e->blocks.max_in_flight = (unsigned)rng_between(run->rng, 1, 8);
    e->run = run;
    e->view = view;
    e->cluster_size = cluster_size;
    e->later = rng_chance(run->rng, 50);
    e->fd = e->later ? eventfd(1, EFD_CLOEXEC) : -1; // always readable
    if (!e->later || e->fd >= 0)
        return e;
    end_free(&e->blocks);
    (void)err_set(err, ERR_IO, "no eventfd");
    return NULL;
}

bool ends_source(const GuestView *view, bool with_changes, uint32_t cluster_size, EndsRun *run, Blocks **ret, Err *err)
{
    End *e = end_new(&source_ops, view, cluster_size, run, err);
    if (!e)
        return false;
    if ((with_changes && !list_changed(e, err)) || !list_zeros(e, err) ||
        (run->plant == ENDS_HOLE_AS_ZERO && !lie_about_zeros(e, err))) {
        end_free(&e->blocks);
        return false;
    }
    *ret = &e->blocks;
    return true;
}

bool ends_sink(Writer *w, const GuestView *view, DiskMode mode, uint32_t cluster_size, EndsRun *run, Blocks **ret,
               Err *err)
{
    End *e = end_new(&sink_ops, view, cluster_size, run, err);
    if (!e)
        return false;
    e->writer = w;
    e->mode = mode;
    e->passed = mem_calloc(view->size / cluster_size + 1, 1, err);
    if (!e->passed) {
        end_free(&e->blocks);
        return false;
    }
    *ret = &e->blocks;
    return true;
}

bool ends_coverage(Blocks *sink, Coverage *ret, Err *err)
{
    End *e = end_of(sink);
    Coverage c = {0};
    for (uint64_t at = 0; at < sink->size; at += e->cluster_size)
        if (e->passed[at / e->cluster_size] && !coverage_add(&c, at, MIN(e->cluster_size, sink->size - at), err))
            return false;
    coverage_end(&c);
    *ret = c;
    return true;
}
