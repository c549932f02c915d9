#include "wire/nbd.h"

#include "base/str.h"
#include "wire/nbd_conn.h"

#include <errno.h>
#include <inttypes.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define NBD_CONNECTIONS_MAX 16
#define NBD_PER_CONNECTION 16              // requests in flight that make sense on one
#define NBD_ZERO_STEP (UINT64_C(1) << 30)  // the protocol has 32 bits for a length
#define NBD_ZERO_LOAD (UINT64_C(64) << 10) // what a request without data weighs, in bytes

_Static_assert(NBD_CONNECTIONS_MAX + 1 <= BLOCKS_FDS_MAX, "each connection and the wake-up have a descriptor");

typedef enum NbdKind { NBD_READ, NBD_WRITE, NBD_ZERO, NBD_SAME, NBD_FLUSH } NbdKind;

// One request of the caller. It is on exactly one list: of its connection, of the finished, or the spare ones.
typedef struct NbdOp {
    struct NbdOp *next, *prev;
    struct NbdOps *list;
    struct NbdConn *conn;
    NbdKind kind;
    void *buffer; // for a write not written to
    uint64_t offset;
    uint64_t length; // of the step in flight
    uint64_t rest;   // zeros that come after this step
    int error;       // errno of the step
    BlocksReq *req;
} NbdOp;

typedef struct NbdOps {
    NbdOp *first, *last;
} NbdOps;

typedef struct NbdConn {
    struct nbd_handle *h; // NULL: lost, and closed
    NbdOps ops;           // in flight
    uint64_t load;        // bytes of them
    struct NbdBlocks *owner;
} NbdConn;

typedef struct NbdBlocks {
    Blocks b;
    NbdSpec spec; // texts owned
    NbdFacts facts;
    NbdConn conns[NBD_CONNECTIONS_MAX];
    unsigned n;
    unsigned reopened;
    NbdOps finished; // done is to be called, by the next dispatch
    NbdOps spare;
    int wake;  // eventfd: finished is not empty
    bool over; // aborted: nothing starts any more
} NbdBlocks;

static void list_add(NbdOps *list, NbdOp *op)
{
    op->list = list;
    op->next = NULL;
    op->prev = list->last;
    if (list->last)
        list->last->next = op;
    else
        list->first = op;
    list->last = op;
}

static void list_remove(NbdOp *op)
{
    NbdOps *list = op->list;
    if (op->prev)
        op->prev->next = op->next;
    else
        list->first = op->next;
    if (op->next)
        op->next->prev = op->prev;
    else
        list->last = op->prev;
    op->list = NULL;
}

static uint64_t load_of(const NbdOp *op)
{
    return op->kind == NBD_READ || op->kind == NBD_WRITE ? op->length : NBD_ZERO_LOAD;
}

static void to_finished(NbdOp *op, int error)
{
    op->error = error;
    op->conn->load -= load_of(op);
    list_remove(op);
    list_add(&op->conn->owner->finished, op);
}

// libnbd's lock is held: nothing of the handle may be called.
static int on_completion(void *user, int *error)
{
    to_finished(user, *error);
    return 1; // retire it: nobody else asks
}

static void wake_up(NbdBlocks *n)
{
    if (n->finished.first)
        (void)eventfd_write(n->wake, 1); // fails only where it is awake already
}

static void close_conn(NbdConn *c)
{
    nbd_close(c->h);
    c->h = NULL;
    while (c->ops.first)
        to_finished(c->ops.first, ENOTCONN);
}

static bool same_export(const NbdFacts *a, const NbdFacts *b)
{
    return a->size == b->size && str_eq(a->names, b->names);
}

static bool same_facts(const NbdFacts *a, const NbdFacts *b)
{
    return same_export(a, b) && a->max_request == b->max_request && a->multi_conn == b->multi_conn &&
        a->can_zero == b->can_zero && a->can_cache == b->can_cache && a->can_flush == b->can_flush &&
        a->read_only == b->read_only && a->zeros == b->zeros;
}

static bool open_conn(NbdBlocks *n, NbdConn *c, Err *err)
{
    struct nbd_handle *h;
    NbdFacts facts;
    if (!nbd_conn_open(&n->spec, &h, &facts, err))
        return false;
    bool same = same_facts(&facts, &n->facts);
    nbd_facts_clear(&facts);
    if (!same) {
        nbd_close(h);
        return err_set(err, ERR_CONFLICT, "nbd: the export is not what it was on the first connection");
    }
    c->h = h;
    return true;
}

// What is to be done before a connection is used: a lost one is opened again while the budget lasts.
static bool ensure_conn(NbdBlocks *n, NbdConn *c, Err *err)
{
    if (c->h && !nbd_conn_is_lost(c->h))
        return true;
    close_conn(c);
    if (n->spec.reconnects > 0 && !n->facts.names[0])
        return err_set(err, ERR_UNAVAILABLE,
                       "nbd: connection lost, and not opened again, since the export has neither name nor description "
                       "to know it by");
    while (n->reopened < n->spec.reconnects) {
        n->reopened++;
        Err tried = ERR_INIT;
        if (open_conn(n, c, &tried))
            return true;
        if (n->reopened == n->spec.reconnects || tried.code == ERR_CONFLICT) {
            *err = tried;
            return err_context(err, "nbd: connection lost, and not to be had again");
        }
    }
    return err_set(err, ERR_UNAVAILABLE, "nbd: connection lost");
}

static NbdConn *least_loaded(NbdBlocks *n)
{
    NbdConn *best = &n->conns[0];
    for (unsigned i = 1; i < n->n; i++)
        if (n->conns[i].load < best->load)
            best = &n->conns[i];
    return best;
}

// Put op, which is on no list, in flight. False: it still is on no list.
static bool submit(NbdBlocks *n, NbdOp *op, Err *err)
{
    NbdConn *c = least_loaded(n);
    if (!ensure_conn(n, c, err))
        return false;
    op->conn = c;
    op->error = 0;
    c->load += load_of(op);
    list_add(&c->ops, op); // before the call: the completion may come from within
    nbd_completion_callback done = {.callback = on_completion, .user_data = op};
    int64_t cookie = -1;
    switch (op->kind) {
    case NBD_READ: cookie = nbd_aio_pread(c->h, op->buffer, op->length, op->offset, done, 0); break;
    case NBD_WRITE: cookie = nbd_aio_pwrite(c->h, op->buffer, op->length, op->offset, done, 0); break;
    case NBD_ZERO: cookie = nbd_aio_zero(c->h, op->length, op->offset, done, 0); break;
    case NBD_SAME: cookie = nbd_aio_cache(c->h, op->length, op->offset, done, 0); break;
    case NBD_FLUSH: cookie = nbd_aio_flush(c->h, done, 0); break;
    }
    if (cookie < 0) {
        c->load -= load_of(op);
        list_remove(op);
        return nbd_conn_error(err, nbd_get_errno(), n->b.ops->name, nbd_get_error());
    }
    return true;
}

static bool start(Blocks *b, NbdOp proto, BlocksReq *req, Err *err)
{
    NbdBlocks *n = (NbdBlocks *)b;
    if (n->over)
        return err_set(err, ERR_CANCELLED, "nbd: aborted");
    NbdOp *op = n->spare.first;
    if (op) {
        list_remove(op);
    } else {
        op = mem_calloc(1, sizeof(*op), err);
        if (!op)
            return false;
    }
    *op = proto;
    op->req = req;
    bool ok = submit(n, op, err);
    if (!ok)
        list_add(&n->spare, op);
    wake_up(n);
    return ok;
}

static bool check_range(const Blocks *b, uint64_t offset, uint64_t length, Err *err)
{
    if (length == 0 || offset > b->size || length > b->size - offset)
        return err_set(err, ERR_INVALID, "nbd: %" PRIu64 " bytes at %" PRIu64 " are outside the disk of %" PRIu64,
                       length, offset, b->size);
    return true;
}

static bool check_request(const Blocks *b, uint64_t offset, uint32_t length, Err *err)
{
    if (length > b->max_request)
        return err_set(err, ERR_TOO_LARGE, "nbd: a request of %" PRIu32 " bytes, the server takes %" PRIu32, length,
                       b->max_request);
    return check_range(b, offset, length, err);
}

static bool op_read(Blocks *b, void *p, uint64_t offset, uint32_t length, BlocksReq *req, Err *err)
{
    return check_request(b, offset, length, err) &&
        start(b, (NbdOp){.kind = NBD_READ, .buffer = p, .offset = offset, .length = length}, req, err);
}

static bool op_write(Blocks *b, const void *p, uint64_t offset, uint32_t length, BlocksReq *req, Err *err)
{
    return check_request(b, offset, length, err) &&
        start(b, (NbdOp){.kind = NBD_WRITE, .buffer = (void *)p, .offset = offset, .length = length}, req, err);
}

static bool op_zero(Blocks *b, uint64_t offset, uint64_t length, BlocksReq *req, Err *err)
{
    if (!((NbdBlocks *)b)->facts.can_zero)
        return err_set(err, ERR_UNSUPPORTED, "nbd: the server takes no write-zeroes requests");
    uint64_t step = MIN(length, NBD_ZERO_STEP);
    return check_range(b, offset, length, err) &&
        start(b, (NbdOp){.kind = NBD_ZERO, .offset = offset, .length = step, .rest = length - step}, req, err);
}

// The protocol has no such command; our engine takes "cache this range" for it, and no other server means that by it.
static bool op_same(Blocks *b, uint64_t offset, uint32_t length, BlocksReq *req, Err *err)
{
    if (!((NbdBlocks *)b)->facts.can_cache)
        return err_set(err, ERR_UNSUPPORTED, "nbd: the server cannot be told that it holds the same");
    return check_range(b, offset, length, err) &&
        start(b, (NbdOp){.kind = NBD_SAME, .offset = offset, .length = length}, req, err);
}

// One connection is enough: with several, the server promised that a flush covers them all.
static bool op_flush(Blocks *b, BlocksReq *req, Err *err)
{
    if (!((NbdBlocks *)b)->facts.can_flush)
        return err_set(err, ERR_UNSUPPORTED, "nbd: the server cannot flush");
    return start(b, (NbdOp){.kind = NBD_FLUSH}, req, err);
}

static void complete(NbdBlocks *n, NbdOp *op, const Err *err)
{
    BlocksReq *req = op->req;
    list_add(&n->spare, op);
    req->done(req, err);
}

// Take what finished to its end: called back, or in flight again (a lost connection, more zeros to come).
static bool drain(NbdBlocks *n, Err *err)
{
    static const char *const what[] = {"nbd read", "nbd write", "nbd write-zeroes", "nbd cache", "nbd flush"};
    bool ok = true;
    while (n->finished.first && !n->over) {
        NbdOp *op = n->finished.first;
        list_remove(op);
        Err failed = ERR_INIT;
        bool again = op->error == ENOTCONN;
        if (op->error == 0 && op->rest > 0) {
            op->offset += op->length;
            op->length = MIN(op->rest, NBD_ZERO_STEP);
            op->rest -= op->length;
            again = true;
        }
        if (again && submit(n, op, &failed))
            continue;
        if (again) {
            ok = false;
            if (err->code == ERR_NONE)
                *err = failed;
        } else if (op->error != 0) {
            (void)nbd_conn_error(&failed, op->error, what[op->kind], NULL);
        }
        complete(n, op, failed.code != ERR_NONE ? &failed : NULL);
    }
    return ok;
}

static bool op_extents(Blocks *b, uint64_t offset, uint64_t length, ExtentVec *changed, ExtentVec *zeros, Err *err)
{
    NbdBlocks *n = (NbdBlocks *)b;
    if (n->over)
        return err_set(err, ERR_CANCELLED, "nbd: aborted");
    if (!check_range(b, offset, length, err))
        return false;
    size_t had_changed = changed->len, had_zeros = zeros->len;
    for (;;) {
        NbdConn *c = least_loaded(n);
        if (!ensure_conn(n, c, err))
            break;
        Err tried = ERR_INIT;
        bool ok = nbd_conn_map(c->h, &n->spec, &n->facts, offset, length, changed, zeros, &tried);
        if (ok) {
            wake_up(n);
            return true;
        }
        bool lost = nbd_conn_is_lost(c->h);
        close_conn(c); // a callback of the map's may still be in it
        changed->len = had_changed;
        zeros->len = had_zeros;
        if (!lost || n->reopened == n->spec.reconnects) {
            *err = tried;
            break;
        }
    }
    wake_up(n);
    return false;
}

static size_t op_fds(Blocks *b, struct pollfd *fds)
{
    NbdBlocks *n = (NbdBlocks *)b;
    fds[0] = (struct pollfd){.fd = n->wake, .events = POLLIN};
    for (unsigned i = 0; i < n->n; i++) {
        struct nbd_handle *h = n->conns[i].h;
        bool usable = h && !nbd_conn_is_lost(h);
        fds[i + 1] = (struct pollfd){.fd = usable ? nbd_aio_get_fd(h) : -1, .events = usable ? nbd_conn_events(h) : 0};
    }
    return n->n + 1;
}

static bool op_dispatch(Blocks *b, const struct pollfd *fds, size_t count, Err *err)
{
    NbdBlocks *n = (NbdBlocks *)b;
    for (unsigned i = 0; i < n->n && i + 1 < count; i++)
        if (n->conns[i].h && fds[i + 1].fd >= 0 && fds[i + 1].revents)
            nbd_conn_notify(n->conns[i].h, fds[i + 1].revents);
    eventfd_t woken;
    (void)eventfd_read(n->wake, &woken); // EAGAIN: nobody woke us
    return drain(n, err);
}

static void op_abort(Blocks *b)
{
    NbdBlocks *n = (NbdBlocks *)b;
    n->over = true;
    for (unsigned i = 0; i < n->n; i++)
        close_conn(&n->conns[i]);
    Err err = ERR_INIT;
    (void)err_set(&err, ERR_CANCELLED, "nbd: aborted");
    while (n->finished.first) {
        NbdOp *op = n->finished.first;
        list_remove(op);
        complete(n, op, &err);
    }
}

static void op_free(Blocks *b)
{
    NbdBlocks *n = (NbdBlocks *)b;
    for (unsigned i = 0; i < n->n; i++) {
        struct nbd_handle *h = n->conns[i].h;
        if (h && !n->conns[i].ops.first && !nbd_conn_is_lost(h))
            (void)nbd_aio_disconnect(h, 0); // politeness; closing says the same
        close_conn(&n->conns[i]);
    }
    NbdOps *const lists[] = {&n->finished, &n->spare};
    for (size_t i = 0; i < ARRAY_LEN(lists); i++)
        while (lists[i]->first) {
            NbdOp *op = lists[i]->first;
            list_remove(op);
            free(op);
        }
    mem_cleanup_close(&n->wake);
    nbd_facts_clear(&n->facts);
    free((void *)n->spec.uri);
    free((void *)n->spec.socket);
    free((void *)n->spec.export_name);
    free((void *)n->spec.dirty_context);
    free(n);
}

static const BlocksOps nbd_ops = {
    .name = "nbd",
    .read = op_read,
    .write = op_write,
    .zero = op_zero,
    .same = op_same,
    .flush = op_flush,
    .extents = op_extents,
    .fds = op_fds,
    .dispatch = op_dispatch,
    .abort = op_abort,
    .free = op_free,
};

static bool own(const char **slot, const char *text, Err *err)
{
    *slot = text ? mem_strdup(text, err) : NULL;
    return !text || *slot;
}

static bool own_spec(NbdBlocks *n, const NbdSpec *spec, Err *err)
{
    n->spec = *spec;
    n->spec.uri = n->spec.socket = n->spec.export_name = n->spec.dirty_context = NULL;
    return own(&n->spec.uri, spec->uri, err) && own(&n->spec.socket, spec->socket, err) &&
        own(&n->spec.export_name, spec->export_name, err) && own(&n->spec.dirty_context, spec->dirty_context, err);
}

static bool open_all(NbdBlocks *n, Err *err)
{
    if (!nbd_conn_open(&n->spec, &n->conns[0].h, &n->facts, err))
        return false;
    n->n = 1;
    if (!n->spec.read_only && n->facts.read_only)
        return err_set(err, ERR_UNSUPPORTED, "nbd: the export is read-only");
    unsigned want = MIN(MAX(n->spec.connections, 1u), (unsigned)NBD_CONNECTIONS_MAX);
    while (n->facts.multi_conn && n->n < want) {
        if (!open_conn(n, &n->conns[n->n], err))
            return false;
        n->n++;
    }
    return true;
}

bool nbd_blocks_open(const NbdSpec *spec, Blocks **ret, Err *err)
{
    NbdBlocks *n = mem_calloc(1, sizeof(*n), err);
    if (!n)
        return false;
    n->b.ops = &nbd_ops;
    n->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    for (unsigned i = 0; i < NBD_CONNECTIONS_MAX; i++)
        n->conns[i].owner = n;
    if (n->wake < 0)
        (void)err_errno(err, errno, "eventfd");
    if (n->wake < 0 || !own_spec(n, spec, err) || !open_all(n, err)) {
        op_free(&n->b);
        return false;
    }
    n->b.size = n->facts.size;
    n->b.max_request = n->facts.max_request;
    n->b.max_in_flight = n->n * NBD_PER_CONNECTION;
    *ret = &n->b;
    return true;
}

bool nbd_blocks_same(const Blocks *a, const Blocks *b)
{
    return same_export(&((const NbdBlocks *)a)->facts, &((const NbdBlocks *)b)->facts);
}
