#include "mover/mover.h"

#include "base/clock.h"
#include "mover/known.h"
#include "mover/plan.h"

#include <errno.h>
#include <inttypes.h>

#define REQUEST_BYTES_DEFAULT (1u << 20)
#define IN_FLIGHT_DEFAULT 16
#define IN_FLIGHT_MAX 256
#define BUFFER_ALIGNMENT 4096
#define POLL_MS 50 // how long a cancel may go unseen while nothing happens
#define PROGRESS_MS 100
#define STALL_MS (10 * 60000) // nothing completed for so long: an end hangs
#define SECTOR 512

typedef struct Mover Mover;

typedef enum RunKind { RUN_DATA, RUN_ZERO, RUN_SAME, RUN_KEEP, RUN_FLUSH } RunKind;

typedef enum ChunkState { CHUNK_FREE, CHUNK_READING, CHUNK_FULL } ChunkState;

// A buffer and the part of the disk that travels in it: read whole, then sent as runs of one kind each.
typedef struct Chunk {
    BlocksReq req; // of the read; first, so that done() finds the chunk
    Mover *mover;
    ChunkState state;
    uint8_t *buffer;
    uint64_t offset;
    uint32_t length;
    bool sorted;      // kinds are known
    uint8_t *kinds;   // RunKind of each cluster
    uint32_t sent;    // bytes whose run was started
    unsigned pending; // runs in flight
} Chunk;

// A request to the sink: a run of a chunk, a zero by the map, or the flush.
typedef struct Op {
    BlocksReq req;
    Mover *mover;
    bool used;
    RunKind kind;
    Chunk *chunk; // NULL: no buffer
    uint64_t offset, length;
} Op;

// Completions only mark what is done; nothing is started from within one, so an end may complete at once
// without recursion, or while it is asked for its map.
struct Mover {
    const MoverSpec *spec;
    Plan plan;
    bool planned_all;
    uint32_t request_bytes;
    Chunk *chunks;
    size_t chunks_len;
    uint8_t *memory; // of all buffers
    uint8_t *kinds;  // of all chunks
    Known known;
    Op *ops;
    size_t ops_len;
    unsigned reads, reads_max; // in flight
    unsigned ops_used;
    MoverProgress total;
    int64_t progress_at, moved_at; // clock_mono_ms
    Err error;                     // the first
};

static const char *const verbs[] = {"writing", "zeroing", "confirming", "confirming the interrupted backup's",
                                    "flushing"};

// ---- completions

static void fail_request(Mover *m, const Err *err, const char *what, uint64_t offset, uint64_t length)
{
    if (m->error.code != ERR_NONE)
        return;
    m->error = *err;
    if (length == 0)
        (void)err_context(&m->error, "%s", what);
    else
        (void)err_context(&m->error, "%s %" PRIu64 " bytes at offset %" PRIu64, what, length, offset);
}

static void read_done(BlocksReq *req, const Err *err)
{
    Chunk *c = req->ctx;
    Mover *m = c->mover;
    m->reads--;
    m->moved_at = clock_mono_ms();
    if (err) {
        c->state = CHUNK_FREE;
        fail_request(m, err, "reading", c->offset, c->length);
        return;
    }
    c->state = CHUNK_FULL;
    m->total.changed_bytes += c->length;
}

static void op_done(BlocksReq *req, const Err *err)
{
    Op *op = req->ctx;
    Mover *m = op->mover;
    op->used = false;
    m->ops_used--;
    m->moved_at = clock_mono_ms();
    if (op->chunk && --op->chunk->pending == 0 && op->chunk->sent == op->chunk->length)
        op->chunk->state = CHUNK_FREE;
    if (err)
        fail_request(m, err, verbs[op->kind], op->offset, op->length);
    else if (op->kind == RUN_ZERO)
        m->total.zero_bytes += op->length;
    else if (op->kind == RUN_SAME)
        m->total.same_bytes += op->length;
    else if (op->kind == RUN_KEEP)
        m->total.kept_bytes += op->length;
    else if (op->kind == RUN_DATA)
        m->total.transferred_bytes += op->length;
}

// ---- starting requests

static Op *op_get(Mover *m, Chunk *chunk, RunKind kind, uint64_t offset, uint64_t length)
{
    for (size_t i = 0; i < m->ops_len; i++) {
        Op *op = &m->ops[i];
        if (op->used)
            continue;
        *op = (Op){.req = {.done = op_done, .ctx = op},
                   .mover = m,
                   .used = true,
                   .kind = kind,
                   .chunk = chunk,
                   .offset = offset,
                   .length = length};
        m->ops_used++;
        return op;
    }
    return NULL;
}

static void op_put(Mover *m, Op *op) // it was not started
{
    op->used = false;
    m->ops_used--;
}

static bool start_run(Mover *m, RunKind kind, Chunk *chunk, uint64_t offset, uint64_t length, Err *err)
{
    Blocks *to = m->spec->to;
    Op *op = op_get(m, chunk, kind, offset, length);
    bool ok = false;
    switch (kind) {
    case RUN_DATA:
        ok = to->ops->write(to, chunk->buffer + (offset - chunk->offset), offset, (uint32_t)length, &op->req, err);
        break;
    case RUN_ZERO: ok = to->ops->zero(to, offset, length, &op->req, err); break;
    case RUN_KEEP:
    case RUN_SAME: ok = to->ops->same(to, offset, (uint32_t)length, &op->req, err); break;
    case RUN_FLUSH: ok = to->ops->flush(to, &op->req, err); break;
    }
    if (ok)
        return true;
    op_put(m, op);
    return length == 0 ? err_context(err, "%s", verbs[kind])
                       : err_context(err, "%s %" PRIu64 " bytes at offset %" PRIu64, verbs[kind], length, offset);
}

// Looks at every byte of every cluster, once.
static bool sort_chunk(Mover *m, Chunk *c, Err *err)
{
    uint32_t cluster = m->spec->cluster_size;
    for (uint32_t at = 0, n; at < c->length; at += n) {
        bool same = false;
        n = MIN(cluster, c->length - at);
        bool zero = hash_is_zero(c->buffer + at, n);
        if (!zero && m->spec->known && !known_is_same(&m->known, c->buffer + at, c->offset + at, n, &same, err))
            return false;
        c->kinds[at / cluster] = zero ? RUN_ZERO : same ? RUN_SAME : RUN_DATA;
    }
    c->sorted = true;
    return true;
}

// The longest run of one kind from c->sent on.
static uint32_t run_length(const Mover *m, const Chunk *c)
{
    uint32_t cluster = m->spec->cluster_size, first = c->sent / cluster, i = first;
    while (i * cluster < c->length && c->kinds[i] == c->kinds[first])
        i++;
    return MIN(i * cluster, c->length) - c->sent;
}

// Starts runs of a full chunk for as long as the sink takes requests.
static bool send_chunk(Mover *m, Chunk *c, bool *moved, Err *err)
{
    if (c->state == CHUNK_FULL && !c->sorted && !sort_chunk(m, c, err))
        return false;
    while (c->state == CHUNK_FULL && c->sent < c->length && m->ops_used < m->ops_len) {
        uint32_t at = c->sent, n = run_length(m, c);
        c->sent += n;
        c->pending++;
        *moved = true;
        if (!start_run(m, c->kinds[at / m->spec->cluster_size], c, c->offset + at, n, err))
            return false;
    }
    return true;
}

static Chunk *free_chunk(Mover *m)
{
    for (size_t i = 0; i < m->chunks_len; i++)
        if (m->chunks[i].state == CHUNK_FREE)
            return &m->chunks[i];
    return NULL;
}

static bool start_read(Mover *m, Chunk *c, const Extent *e, Err *err)
{
    Blocks *from = m->spec->from;
    *c = (Chunk){.req = {.done = read_done, .ctx = c},
                 .mover = m,
                 .state = CHUNK_READING,
                 .buffer = c->buffer,
                 .kinds = c->kinds,
                 .offset = e->offset,
                 .length = (uint32_t)e->length};
    m->reads++;
    if (!from->ops->read(from, c->buffer, c->offset, c->length, &c->req, err)) {
        c->state = CHUNK_FREE;
        m->reads--;
        return err_context(err, "reading %" PRIu64 " bytes at offset %" PRIu64, e->length, e->offset);
    }
    return true;
}

// Takes from the plan what both ends have room for.
static bool start_planned(Mover *m, bool *moved, Err *err)
{
    for (size_t i = 0; i < m->chunks_len && m->error.code == ERR_NONE; i++) {
        Extent e;
        PlanKind kind;
        Chunk *c = free_chunk(m);
        if ((!c || m->reads == m->reads_max) && m->ops_used == m->ops_len)
            return true;
        if (!plan_peek(&m->plan, &e, &kind, err))
            return false;
        m->planned_all = kind == PLAN_END;
        if (m->planned_all || (kind == PLAN_DATA ? !c || m->reads == m->reads_max : m->ops_used == m->ops_len))
            return true;
        *moved = true;
        if (!plan_take(&m->plan, &e, kind, err))
            return false;
        if (!(kind == PLAN_DATA ? start_read(m, c, &e, err)
                                : start_run(m, kind == PLAN_KEEP ? RUN_KEEP : RUN_ZERO, NULL, e.offset, e.length, err)))
            return false;
    }
    return true;
}

// ---- the loop

static void report(Mover *m, bool finished)
{
    // After a failure the chunk that was not read is free too: what is done cannot be told from the chunks
    if (!m->spec->progress || m->error.code != ERR_NONE)
        return;
    int64_t now = clock_mono_ms();
    if (!finished && now - m->progress_at < PROGRESS_MS)
        return;
    m->progress_at = now;
    uint64_t done = plan_position(&m->plan);
    for (size_t i = 0; i < m->chunks_len; i++)
        if (m->chunks[i].state != CHUNK_FREE)
            done = MIN(done, m->chunks[i].offset);
    for (size_t i = 0; i < m->ops_len; i++)
        if (m->ops[i].used)
            done = MIN(done, m->ops[i].offset);
    m->total.done_bytes = finished ? m->spec->size : MIN(done, m->spec->size - 1);
    m->spec->progress(m->spec->progress_ctx, &m->total);
}

static size_t end_fds(Blocks *b, struct pollfd *fds)
{
    return b->ops->fds ? b->ops->fds(b, fds) : 0;
}

static bool end_dispatch(Blocks *b, const struct pollfd *fds, size_t n, const char *which, Err *err)
{
    if (b->ops->dispatch && !b->ops->dispatch(b, fds, n, err))
        return err_context(err, "%s (%s)", which, b->ops->name);
    return true;
}

static bool wait_for_ends(Mover *m, bool moved, Err *err)
{
    struct pollfd fds[2 * BLOCKS_FDS_MAX];
    size_t n = end_fds(m->spec->from, fds);
    size_t both = n + end_fds(m->spec->to, fds + n);
    if (poll(fds, both, moved ? 0 : POLL_MS) < 0 && errno != EINTR)
        return err_errno(err, errno, "waiting for the ends of a copy");
    return end_dispatch(m->spec->from, fds, n, "source", err) &&
        end_dispatch(m->spec->to, fds + n, both - n, "sink", err);
}

// One turn: looks at cancel, errors and time, starts what can be started, waits if there was nothing.
static bool turn(Mover *m, bool *ret_idle, Err *err)
{
    bool moved = false;
    if (m->spec->cancel && atomic_load(m->spec->cancel))
        return err_set(err, ERR_CANCELLED, "the copy was cancelled");
    for (size_t i = 0; i < m->chunks_len; i++)
        if (!send_chunk(m, &m->chunks[i], &moved, err))
            return false;
    if (!start_planned(m, &moved, err))
        return false;
    report(m, false);
    *ret_idle = !moved && m->reads + m->ops_used == 0;
    if (m->reads + m->ops_used > 0) {
        if (!wait_for_ends(m, moved, err))
            return false;
        if (clock_mono_ms() - m->moved_at > STALL_MS)
            return err_set(err, ERR_TIMEOUT, "no request was answered for %d minutes", STALL_MS / 60000);
    }
    return m->error.code == ERR_NONE;
}

static bool all_sent(const Mover *m)
{
    if (!m->planned_all || m->reads + m->ops_used > 0)
        return false;
    for (size_t i = 0; i < m->chunks_len; i++)
        if (m->chunks[i].state != CHUNK_FREE)
            return false;
    return true;
}

static bool send_all(Mover *m, Err *err)
{
    for (;;) {
        bool idle;
        if (!turn(m, &idle, err))
            return false;
        if (all_sent(m))
            return true;
        if (idle)
            return err_set(err, ERR_INTERNAL, "the copy stands still with nothing in flight");
    }
}

static bool flush(Mover *m, Err *err)
{
    m->moved_at = clock_mono_ms();
    if (!start_run(m, RUN_FLUSH, NULL, m->spec->size, 0, err))
        return false;
    bool idle = false;
    while (m->error.code == ERR_NONE && m->ops_used > 0)
        if (!turn(m, &idle, err))
            return false;
    return m->error.code == ERR_NONE;
}

// ---- setting up

static bool end_size_fits(const Blocks *b, uint64_t size)
{
    return b->size >= size && b->size <= align_up(size, SECTOR);
}

static bool check_spec(const MoverSpec *s, Err *err)
{
    if (s->size == 0 || s->size > DISK_SIZE_MAX || s->cluster_size < SECTOR ||
        (s->cluster_size & (s->cluster_size - 1)) != 0 || s->request_bytes % s->cluster_size != 0)
        return err_set(err, ERR_INVALID, "a copy of %" PRIu64 " bytes in clusters of %" PRIu32 " is not possible",
                       s->size, s->cluster_size);
    if (!end_size_fits(s->from, s->size) || !end_size_fits(s->to, s->size))
        return err_set(err, ERR_PROTOCOL,
                       "the disk has %" PRIu64 " bytes, its source (%s) %" PRIu64 ", its sink (%s) %" PRIu64, s->size,
                       s->from->ops->name, s->from->size, s->to->ops->name, s->to->size);
    if (!s->from->ops->read || !s->to->ops->write || !s->to->ops->zero || !s->to->ops->flush)
        return err_set(err, ERR_UNSUPPORTED, "%s cannot be read, or %s not written", s->from->ops->name,
                       s->to->ops->name);
    if (s->resume && (!s->to->ops->extents || (s->resume->since && !s->resume->since->ops->extents)))
        return err_set(err, ERR_UNSUPPORTED, "%s cannot say what it holds, or the source what changed",
                       s->to->ops->name);
    if ((s->known || s->resume) && !s->to->ops->same)
        return err_set(err, ERR_UNSUPPORTED, "%s cannot be told that it holds the same", s->to->ops->name);
    return true;
}

static bool request_size(const MoverSpec *s, uint32_t *ret, Err *err)
{
    uint32_t n = s->request_bytes ? s->request_bytes : MAX(REQUEST_BYTES_DEFAULT, s->cluster_size);
    n = MIN(n, MIN(s->from->max_request, s->to->max_request));
    n -= n % s->cluster_size;
    if (n == 0)
        return err_set(err, ERR_UNSUPPORTED, "a cluster of %" PRIu32 " bytes is more than one request can hold",
                       s->cluster_size);
    *ret = n;
    return true;
}

static bool mover_init(Mover *m, const MoverSpec *s, Err *err)
{
    *m = (Mover){.spec = s, .total = {.size = s->size}};
    if (!check_spec(s, err) || !request_size(s, &m->request_bytes, err))
        return false;
    plan_init(&m->plan, s, m->request_bytes);
    uint64_t needed = s->size / m->request_bytes + 1;
    uint64_t in_flight = s->in_flight ? MIN(s->in_flight, IN_FLIGHT_MAX) : IN_FLIGHT_DEFAULT;
    m->chunks_len = (size_t)MIN(in_flight, needed);
    m->reads_max = MAX(1, s->from->max_in_flight);
    m->ops_len = MAX(1, MIN(s->to->max_in_flight, IN_FLIGHT_MAX));
    m->chunks = mem_calloc(m->chunks_len, sizeof(*m->chunks), err);
    m->ops = mem_calloc(m->ops_len, sizeof(*m->ops), err);
    uint32_t clusters = m->request_bytes / s->cluster_size;
    m->kinds = mem_calloc(m->chunks_len * clusters, 1, err);
    if (!m->chunks || !m->ops || !m->kinds || (s->known && !known_init(&m->known, s, err)))
        return false;
    void *memory;
    size_t stride = (size_t)align_up(m->request_bytes, BUFFER_ALIGNMENT);
    if (posix_memalign(&memory, BUFFER_ALIGNMENT, m->chunks_len * stride) != 0)
        return err_no_memory(err);
    m->memory = memory;
    for (size_t i = 0; i < m->chunks_len; i++)
        m->chunks[i] = (Chunk){.buffer = m->memory + i * stride, .kinds = m->kinds + i * clusters};
    m->moved_at = m->progress_at = clock_mono_ms();
    return true;
}

static void mover_clear(Mover *m)
{
    plan_clear(&m->plan);
    known_clear(&m->known);
    free(m->kinds);
    free(m->chunks);
    free(m->ops);
    free(m->memory);
}

static void abort_end(Blocks *b)
{
    if (b->ops->abort)
        b->ops->abort(b);
}

// What was planned is what was acknowledged, to the byte; anything else would be a hole.
static bool check_account(const Mover *m, Err *err)
{
    uint64_t sent = m->total.transferred_bytes + m->total.zero_bytes + m->total.same_bytes + m->total.kept_bytes;
    if (sent != m->plan.coverage.bytes || (m->spec->plan != MOVER_TRACKED && sent != m->spec->size))
        return err_set(err, ERR_INTERNAL, "%" PRIu64 " bytes were sent of %" PRIu64 " planned", sent,
                       m->plan.coverage.bytes);
    return true;
}

bool mover_copy(const MoverSpec *spec, MoverResult *ret, Err *err)
{
    cleanup(mover_clear) Mover m;
    Err first = ERR_INIT;
    bool fine = mover_init(&m, spec, &first);
    if (fine && !(send_all(&m, &first) && flush(&m, &first))) {
        fine = false;
        if (m.error.code != ERR_NONE && first.code != ERR_CANCELLED)
            first = m.error; // a request's error came before its end's
        abort_end(spec->from);
        abort_end(spec->to);
    }
    if (fine) {
        coverage_end(&m.plan.coverage);
        fine = check_account(&m, &first);
    }
    if (!fine) {
        if (err->code == ERR_NONE)
            *err = first;
        return false;
    }
    report(&m, true);
    m.total.done_bytes = spec->size;
    *ret = (MoverResult){
        .total = m.total, .coverage = m.plan.coverage, .areas = m.plan.areas, .area_bytes = m.plan.area_bytes};
    return true;
}
