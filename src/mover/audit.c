#include "mover/audit.h"

#include "base/clock.h"
#include "base/uuid.h"

#include <errno.h>

#define DRAWN_FOR_ONE 4 // the copy strikes out what it sends
#define IN_FLIGHT 16
#define MEMORY_MAX (UINT64_C(8) << 20)
#define BUFFER_ALIGNMENT 4096
#define POLL_MS 50
#define STALL_MS (10 * 60000) // nothing completed for so long: an end hangs

typedef struct Look Look;

// One block: its bytes from the source, its hash from the sink.
struct Look {
    BlocksReq read, leaf;
    Audit *audit;
    unsigned pending; // requests; 0: free
    uint64_t cluster;
    uint32_t length; // less than a cluster at the disk's end
    uint8_t *buffer; // a cluster, and behind it the hash
};

struct Audit {
    AuditSpec spec;
    uint64_t clusters, sent; // of the disk; by the copy
    uint64_t *drawn;         // clusters: ascending until the copy's end, and without those that it sent
    size_t drawn_len;
    size_t kept, next; // of drawn: what was passed by and stays; the first that the copy has not passed
    uint64_t random;   // state
    // while it runs
    const AuditRun *run;
    Look looks[IN_FLIGHT];
    unsigned looks_len, under_way;
    uint8_t *memory;
    AuditResult result;
    int64_t moved_at;
    Err error; // the first
};

// splitmix64: even enough to draw blocks by
static uint64_t random_next(Audit *a)
{
    uint64_t z = a->random += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static uint64_t random_below(Audit *a, uint64_t n)
{
    return (uint64_t)(((unsigned __int128)random_next(a) * n) >> 64);
}

static int ascending(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void draw(Audit *a, size_t n)
{
    bool all = a->clusters <= n;
    a->drawn_len = all ? (size_t)a->clusters : n;
    for (size_t i = 0; i < a->drawn_len; i++)
        a->drawn[i] = all ? i : random_below(a, a->clusters);
    if (all)
        return;
    qsort(a->drawn, a->drawn_len, sizeof(*a->drawn), ascending);
    size_t kept = 0;
    for (size_t i = 0; i < a->drawn_len; i++)
        if (kept == 0 || a->drawn[kept - 1] != a->drawn[i])
            a->drawn[kept++] = a->drawn[i];
    a->drawn_len = kept;
}

bool audit_new(const AuditSpec *spec, Audit **ret, Err *err)
{
    if (spec->size == 0 || spec->cluster_size == 0 || spec->blocks == 0 || spec->blocks > AUDIT_BLOCKS_MAX)
        return err_set(err, ERR_INVALID, "an audit of %llu blocks cannot be", (unsigned long long)spec->blocks);
    Audit *a = mem_calloc(1, sizeof(*a), err);
    if (!a)
        return false;
    size_t n = (size_t)spec->blocks * DRAWN_FOR_ONE;
    a->spec = *spec;
    a->clusters = spec->size / spec->cluster_size + (spec->size % spec->cluster_size != 0);
    a->drawn = mem_calloc((size_t)MIN(n, a->clusters), sizeof(*a->drawn), err);
    if (!a->drawn || !uuid_random_bytes(&a->random, sizeof(a->random), err)) {
        audit_free(a);
        return false;
    }
    draw(a, n);
    *ret = a;
    return true;
}

void audit_free(Audit *a)
{
    if (!a)
        return;
    free(a->drawn);
    free(a->memory);
    free(a);
}

void audit_planned(void *audit, uint64_t offset, uint64_t length)
{
    Audit *a = audit;
    uint64_t first = offset / a->spec.cluster_size, n = length / a->spec.cluster_size;
    n += length % a->spec.cluster_size != 0;
    a->sent += n;
    while (a->next < a->drawn_len && a->drawn[a->next] < first)
        a->drawn[a->kept++] = a->drawn[a->next++];
    while (a->next < a->drawn_len && a->drawn[a->next] < first + n)
        a->next++;
}

// What is left, in random order: a limit of time cuts it anywhere, and what was looked at is drawn evenly all the same.
static void end_drawing(Audit *a)
{
    while (a->next < a->drawn_len)
        a->drawn[a->kept++] = a->drawn[a->next++];
    a->drawn_len = a->kept;
    for (size_t i = a->drawn_len; i > 1; i--) {
        size_t k = (size_t)random_below(a, i);
        uint64_t other = a->drawn[k];
        a->drawn[k] = a->drawn[i - 1];
        a->drawn[i - 1] = other;
    }
    a->drawn_len = (size_t)MIN(a->drawn_len, a->spec.blocks);
    a->next = 0;
    a->result.figures.unchanged = a->clusters - MIN(a->clusters, a->sent);
}

static void compare(Audit *a, const Look *l)
{
    Hash hash;
    uint32_t cluster = a->spec.cluster_size;
    memset(l->buffer + l->length, 0, cluster - l->length); // hashed padded
    hash_bytes(&a->run->known->hash, l->buffer, cluster, &hash);
    a->result.figures.checked++;
    a->result.read_bytes += l->length;
    if (memcmp(hash.bytes, l->buffer + cluster, hash_size(a->run->known->hash.algorithm)) == 0)
        return;
    uint64_t at = l->cluster * cluster;
    if (a->result.figures.wrong++ == 0 || at < a->result.wrong_at)
        a->result.wrong_at = at;
}

static void on_done(BlocksReq *req, const Err *err)
{
    Look *l = req->ctx;
    Audit *a = l->audit;
    a->moved_at = clock_mono_ms();
    if (err && a->error.code == ERR_NONE)
        a->error = *err;
    if (--l->pending > 0)
        return;
    a->under_way--;
    if (a->error.code == ERR_NONE)
        compare(a, l);
}

static bool start(Audit *a, Look *l, Err *err)
{
    const AuditRun *run = a->run;
    uint32_t cluster = a->spec.cluster_size, hash_bytes = (uint32_t)hash_size(run->known->hash.algorithm);
    Blocks *leaves = run->known->leaves;
    l->cluster = a->drawn[a->next++];
    uint64_t offset = l->cluster * cluster;
    l->length = (uint32_t)MIN(cluster, a->spec.size - offset);
    l->read = (BlocksReq){.done = on_done, .ctx = l};
    l->leaf = (BlocksReq){.done = on_done, .ctx = l};
    l->pending = 2;
    a->under_way++;
    bool ok = run->from->ops->read(run->from, l->buffer, offset, l->length, &l->read, err);
    if (ok && leaves->ops->read(leaves, l->buffer + cluster, l->cluster * hash_bytes, hash_bytes, &l->leaf, err))
        return true;
    l->pending -= ok ? 1 : 2; // what was not started does not complete
    a->under_way -= l->pending == 0;
    return err_context(err, "auditing the block at %llu", (unsigned long long)offset);
}

static bool may_start(const Audit *a)
{
    return a->next < a->drawn_len && a->result.figures.wrong == 0 &&
        (a->run->until_ms == 0 || clock_mono_ms() < a->run->until_ms);
}

static bool wait_for_ends(Audit *a, Err *err)
{
    struct pollfd fds[2 * BLOCKS_FDS_MAX];
    Blocks *ends[] = {a->run->from, a->run->known->leaves};
    size_t counts[2], n = 0;
    for (int i = 0; i < 2; i++) {
        counts[i] = ends[i]->ops->fds ? ends[i]->ops->fds(ends[i], fds + n) : 0;
        n += counts[i];
    }
    if (poll(fds, n, POLL_MS) < 0 && errno != EINTR)
        return err_errno(err, errno, "waiting for the ends of an audit");
    struct pollfd *at = fds;
    for (int i = 0; i < 2; at += counts[i], i++)
        if (ends[i]->ops->dispatch && !ends[i]->ops->dispatch(ends[i], at, counts[i], err))
            return err_context(err, "auditing (%s)", ends[i]->ops->name);
    return true;
}

static bool look(Audit *a, Err *err)
{
    a->moved_at = clock_mono_ms();
    for (;;) {
        if (a->run->cancel && atomic_load(a->run->cancel))
            return err_set(err, ERR_CANCELLED, "the audit was cancelled");
        for (unsigned i = 0; i < a->looks_len && may_start(a); i++)
            if (a->looks[i].pending == 0 && !start(a, &a->looks[i], err))
                return false;
        if (a->error.code != ERR_NONE) {
            *err = a->error;
            return err_context(err, "auditing");
        }
        if (a->under_way == 0 && !may_start(a))
            return true;
        if (a->under_way > 0 && !wait_for_ends(a, err))
            return false;
        if (clock_mono_ms() - a->moved_at > STALL_MS)
            return err_set(err, ERR_TIMEOUT, "no request of the audit was answered for %d minutes", STALL_MS / 60000);
    }
}

static bool make_looks(Audit *a, Err *err)
{
    uint64_t stride = align_up(a->spec.cluster_size + HASH_BYTES_MAX, BUFFER_ALIGNMENT);
    uint64_t n = MIN(MIN(a->run->from->max_in_flight, a->run->known->leaves->max_in_flight), IN_FLIGHT);
    void *memory;
    a->looks_len = (unsigned)MAX(1, MIN(n, MEMORY_MAX / stride));
    if (posix_memalign(&memory, BUFFER_ALIGNMENT, (size_t)(a->looks_len * stride)) != 0)
        return err_no_memory(err);
    a->memory = memory;
    for (unsigned i = 0; i < a->looks_len; i++)
        a->looks[i] = (Look){.audit = a, .buffer = a->memory + i * stride};
    return true;
}

static void abort_end(Blocks *b)
{
    if (b->ops->abort)
        b->ops->abort(b);
}

bool audit_run(Audit *a, const AuditRun *run, AuditResult *ret, Err *err)
{
    uint64_t leaves_bytes = a->clusters * hash_size(run->known->hash.algorithm);
    a->run = run;
    end_drawing(a);
    if (run->from->size < a->spec.size || run->known->leaves->size != leaves_bytes)
        return err_set(err, ERR_PROTOCOL, "the hashes of what is there are not those of this disk");
    if (a->spec.cluster_size > run->from->max_request)
        return err_set(err, ERR_UNSUPPORTED, "a cluster is more than one request of %s", run->from->ops->name);
    if (!make_looks(a, err))
        return false;
    if (!look(a, err)) {
        abort_end(run->from); // completes what is under way
        abort_end(run->known->leaves);
        return false;
    }
    *ret = a->result;
    return true;
}
