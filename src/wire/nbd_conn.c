#include "wire/nbd_conn.h"

#include "base/clock.h"

#include <errno.h>
#include <inttypes.h>

#define NBD_MAX_REQUEST (UINT32_C(32) << 20) // the protocol's, where a server names none
#define NBD_DEFAULT_TIMEOUT 15000
#define NBD_MAP_STEP (UINT64_C(1) << 30) // bytes asked for at a time: the protocol has 32 bits
#define NBD_DIRTY_FLAG 1u                // bit 0 of qemu:dirty-bitmap:NAME

bool nbd_conn_error(Err *err, int errnum, const char *what, const char *text)
{
    ErrCode code = ERR_PROTOCOL;
    switch (errnum) {
    case EIO: code = ERR_IO; break;
    case ENOENT: code = ERR_NOT_FOUND; break;
    case ENOMEM: code = ERR_NO_MEMORY; break;
    case ENOSPC:
    case EDQUOT: code = ERR_NO_SPACE; break;
    case EACCES: code = ERR_FORBIDDEN; break;
    case ECONNREFUSED:
    case ECONNRESET:
    case ENOTCONN:
    case EPIPE:
    case ESHUTDOWN: code = ERR_UNAVAILABLE; break;
    case ETIMEDOUT: code = ERR_TIMEOUT; break;
    default: break;
    }
    char buf[128];
    return err_set(err, code, "%s: %s", what, text ? text : strerror_r(errnum, buf, sizeof(buf)));
}

static bool from_libnbd(Err *err, const char *what)
{
    const char *text = nbd_get_error();
    return nbd_conn_error(err, nbd_get_errno(), what, text ? text : "the server closed the connection");
}

static int64_t deadline_of(const NbdSpec *spec)
{
    return clock_mono_ms() + (spec->timeout_ms > 0 ? spec->timeout_ms : NBD_DEFAULT_TIMEOUT);
}

bool nbd_conn_is_lost(struct nbd_handle *h)
{
    return nbd_aio_is_dead(h) == 1 || nbd_aio_is_closed(h) == 1;
}

short nbd_conn_events(struct nbd_handle *h)
{
    unsigned direction = nbd_aio_get_direction(h);
    short events = 0;
    if (direction & LIBNBD_AIO_DIRECTION_READ)
        events |= POLLIN;
    if (direction & LIBNBD_AIO_DIRECTION_WRITE)
        events |= POLLOUT;
    return events;
}

void nbd_conn_notify(struct nbd_handle *h, short revents)
{
    unsigned direction = nbd_aio_get_direction(h);
    bool broken = (revents & (POLLERR | POLLHUP | POLLNVAL)) != 0;
    // The result is not looked at: a failure makes the handle dead, and each command's callback says why.
    if ((direction & LIBNBD_AIO_DIRECTION_READ) && ((revents & POLLIN) || broken))
        (void)nbd_aio_notify_read(h);
    else if ((direction & LIBNBD_AIO_DIRECTION_WRITE) && ((revents & POLLOUT) || broken))
        (void)nbd_aio_notify_write(h);
}

// One step of libnbd's state machine, at the latest when the deadline passes.
static bool step(struct nbd_handle *h, int64_t deadline, const char *what, Err *err)
{
    if (nbd_conn_is_lost(h))
        return from_libnbd(err, what);
    int64_t left = deadline - clock_mono_ms();
    if (left <= 0)
        return err_set(err, ERR_TIMEOUT, "%s: no answer in time", what);
    struct pollfd p = {.fd = nbd_aio_get_fd(h), .events = nbd_conn_events(h)};
    int n = poll(&p, 1, (int)MIN(left, INT32_MAX));
    if (n < 0 && errno != EINTR)
        return err_errno(err, errno, "%s: poll", what);
    if (n > 0)
        nbd_conn_notify(h, p.revents);
    return true;
}

static bool configure(struct nbd_handle *h, const NbdSpec *spec)
{
    // The caller looks at each request's error before at its buffer, which thus need not be cleared.
    bool ok = nbd_set_pread_initialize(h, false) == 0 && nbd_set_full_info(h, true) == 0;
    if (spec->want_zeros || spec->require_zeros)
        ok = ok && nbd_add_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION) == 0;
    if (spec->dirty_context)
        ok = ok && nbd_add_meta_context(h, spec->dirty_context) == 0;
    if (!spec->uri)
        ok = ok && nbd_set_export_name(h, spec->export_name ? spec->export_name : "") == 0;
    return ok;
}

// A server need not say either.
static bool read_names(struct nbd_handle *h, char **ret, Err *err)
{
    cleanup_free char *name = nbd_get_canonical_export_name(h), *description = nbd_get_export_description(h);
    bool none = (!name || !name[0]) && (!description || !description[0]);
    *ret = none ? mem_strdup("", err) : mem_printf(err, "%s\n%s", name ? name : "", description ? description : "");
    return *ret != NULL;
}

static bool read_facts(struct nbd_handle *h, const NbdSpec *spec, NbdFacts *ret, Err *err)
{
    int64_t size = nbd_get_size(h);
    if (size < 0)
        return from_libnbd(err, "nbd size");
    if ((uint64_t)size > DISK_SIZE_MAX)
        return err_set(err, ERR_TOO_LARGE, "nbd: a disk of %" PRId64 " bytes is above what is supported", size);
    int64_t max = nbd_get_block_size(h, LIBNBD_SIZE_MAXIMUM);
    uint32_t max_request = max > 0 ? (uint32_t)MIN(max, (int64_t)NBD_MAX_REQUEST) : NBD_MAX_REQUEST;
    bool zeros = false;
    if (spec->want_zeros || spec->require_zeros)
        zeros = nbd_can_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION) == 1;
    if (spec->require_zeros && !zeros)
        return err_set(err, ERR_PROTOCOL, "nbd: the server does not grant base:allocation");
    // QEMU passes over a bitmap that it does not know without a word: that would read as "nothing changed".
    if (spec->dirty_context && nbd_can_meta_context(h, spec->dirty_context) != 1)
        return err_set(err, ERR_PROTOCOL, "nbd: the server does not grant %s", spec->dirty_context);
    char *names;
    if (!read_names(h, &names, err))
        return false;
    *ret = (NbdFacts){
        .names = names,
        .size = (uint64_t)size,
        .max_request = max_request,
        .multi_conn = nbd_can_multi_conn(h) == 1,
        .can_zero = nbd_can_zero(h) == 1,
        .can_cache = nbd_can_cache(h) == 1,
        .can_flush = nbd_can_flush(h) == 1,
        .read_only = nbd_is_read_only(h) == 1,
        .zeros = zeros,
    };
    return true;
}

void nbd_facts_clear(NbdFacts *f)
{
    free(f->names);
    *f = (NbdFacts){0};
}

static bool connect_to(struct nbd_handle *h, const NbdSpec *spec, Err *err)
{
    int fd = -1;
    if (spec->dial && !spec->dial->connect(spec->dial->ctx, spec->timeout_ms, &fd, err))
        return false;
    int r = spec->dial ? nbd_aio_connect_socket(h, fd)
        : spec->uri    ? nbd_aio_connect_uri(h, spec->uri)
                       : nbd_aio_connect_unix(h, spec->socket);
    return r == 0 || from_libnbd(err, "nbd connect"); // libnbd closes fd in any case
}

bool nbd_conn_open(const NbdSpec *spec, struct nbd_handle **ret, NbdFacts *ret_facts, Err *err)
{
    int64_t deadline = deadline_of(spec);
    struct nbd_handle *h = nbd_create();
    if (!h)
        return err_no_memory(err);
    bool ok = configure(h, spec) || from_libnbd(err, "nbd set-up");
    ok = ok && connect_to(h, spec, err);
    while (ok && nbd_aio_is_ready(h) != 1)
        ok = step(h, deadline, "nbd handshake", err);
    if (!ok || !read_facts(h, spec, ret_facts, err)) {
        nbd_close(h);
        return false;
    }
    *ret = h;
    return true;
}

typedef struct MapSide {
    const char *context;
    uint32_t flag; // what makes an extent one for vec
    ExtentVec *vec;
    uint64_t at; // all below is known
} MapSide;

typedef struct MapQuery {
    MapSide sides[2];
    size_t n;
    uint64_t end;
    bool finished;
    int error;
    Err err; // of our own, in the callback
} MapQuery;

static bool add_extent(ExtentVec *v, uint64_t offset, uint64_t length, bool zero, Err *err)
{
    Extent *last = v->len > 0 ? &v->items[v->len - 1] : NULL;
    if (last && last->offset + last->length == offset && last->zero == zero) {
        last->length += length;
        return true;
    }
    return extent_vec_push(v, (Extent){.offset = offset, .length = length, .zero = zero}, err);
}

static int on_extents(void *user, const char *context, uint64_t offset, uint32_t *entries, size_t n, int *error)
{
    MapQuery *q = user;
    (void)error; // the completion's is the one that counts
    for (size_t i = 0; i < q->n; i++) {
        MapSide *side = &q->sides[i];
        if (strcmp(side->context, context) != 0)
            continue;
        uint64_t at = offset;
        for (size_t e = 0; e + 1 < n && at < q->end; e += 2) {
            uint64_t stop = MIN(at + entries[e], q->end); // the last one may run past what was asked for
            uint64_t from = MAX(at, side->at);
            if (stop > from && (entries[e + 1] & side->flag) &&
                !add_extent(side->vec, from, stop - from, side->flag == LIBNBD_STATE_ZERO, &q->err))
                return -1;
            at = stop;
            side->at = MAX(side->at, at);
        }
    }
    return 0;
}

static int on_map_done(void *user, int *error)
{
    MapQuery *q = user;
    q->error = *error;
    q->finished = true;
    return 1;
}

// One command: from where the slower of the two maps stands.
static bool map_step(struct nbd_handle *h, const NbdSpec *spec, MapQuery *q, uint64_t from, Err *err)
{
    int64_t deadline = deadline_of(spec);
    q->finished = false;
    int64_t cookie = nbd_aio_block_status(h, MIN(q->end - from, NBD_MAP_STEP), from,
                                          (nbd_extent_callback){.callback = on_extents, .user_data = q},
                                          (nbd_completion_callback){.callback = on_map_done, .user_data = q}, 0);
    if (cookie < 0)
        return from_libnbd(err, "nbd block status");
    while (!q->finished)
        if (!step(h, deadline, "nbd block status", err))
            return false;
    if (q->err.code != ERR_NONE) {
        *err = q->err;
        return false;
    }
    if (q->error != 0)
        return nbd_conn_error(err, q->error, "nbd block status", NULL);
    for (size_t i = 0; i < q->n; i++)
        if (q->sides[i].at <= from)
            return err_set(err, ERR_PROTOCOL, "nbd: the map %s has a gap at byte %" PRIu64, q->sides[i].context, from);
    return true;
}

bool nbd_conn_map(struct nbd_handle *h, const NbdSpec *spec, const NbdFacts *facts, uint64_t offset, uint64_t length,
                  ExtentVec *changed, ExtentVec *zeros, Err *err)
{
    MapQuery q = {.end = offset + length, .err = ERR_INIT};
    if (facts->zeros)
        q.sides[q.n++] = (MapSide){LIBNBD_CONTEXT_BASE_ALLOCATION, LIBNBD_STATE_ZERO, zeros, offset};
    if (spec->dirty_context)
        q.sides[q.n++] = (MapSide){spec->dirty_context, NBD_DIRTY_FLAG, changed, offset};
    for (;;) {
        uint64_t from = q.end;
        for (size_t i = 0; i < q.n; i++)
            from = MIN(from, q.sides[i].at);
        if (from == q.end)
            return true;
        if (!map_step(h, spec, &q, from, err))
            return false;
    }
}
