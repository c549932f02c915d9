#include "mover/known.h"

#include "base/clock.h"

#include <errno.h>

#define WINDOW_CLUSTERS 8192
#define READ_MS 60000 // a window is a few hundred KiB
#define POLL_MS 50

bool known_init(Known *k, const MoverSpec *spec, Err *err)
{
    *k = (Known){.spec = spec,
                 .hash_bytes = (uint32_t)hash_size(spec->known->hash.algorithm),
                 .clusters = spec->size / spec->cluster_size + (spec->size % spec->cluster_size != 0)};
    uint64_t bytes = k->clusters * k->hash_bytes;
    if (spec->known->leaves->size != bytes)
        return err_set(err, ERR_PROTOCOL, "the hashes of what is there have %llu bytes, not %llu",
                       (unsigned long long)spec->known->leaves->size, (unsigned long long)bytes);
    k->padded = mem_calloc(1, spec->cluster_size, err);
    for (size_t i = 0; i < KNOWN_WINDOWS; i++)
        k->windows[i].leaves = mem_calloc(WINDOW_CLUSTERS, k->hash_bytes, err);
    return k->padded && k->windows[0].leaves && k->windows[1].leaves;
}

void known_clear(Known *k)
{
    free(k->padded);
    for (size_t i = 0; i < KNOWN_WINDOWS; i++)
        free(k->windows[i].leaves);
}

typedef struct Read {
    BlocksReq req;
    bool done;
    Err error;
} Read;

static void on_read(BlocksReq *req, const Err *err)
{
    Read *r = req->ctx;
    r->done = true;
    if (err)
        r->error = *err;
}

static bool wait_for(Known *k, Read *r, Err *err)
{
    Blocks *b = k->spec->known->leaves;
    int64_t until = clock_mono_ms() + READ_MS;
    while (!r->done) {
        struct pollfd fds[BLOCKS_FDS_MAX];
        size_t n = b->ops->fds ? b->ops->fds(b, fds) : 0;
        if (k->spec->cancel && atomic_load(k->spec->cancel))
            return err_set(err, ERR_CANCELLED, "the copy was cancelled");
        if (clock_mono_ms() > until)
            return err_set(err, ERR_TIMEOUT, "the sink does not give its hashes");
        if (poll(fds, n, POLL_MS) < 0 && errno != EINTR)
            return err_errno(err, errno, "waiting for hashes");
        if (b->ops->dispatch && !b->ops->dispatch(b, fds, n, err))
            return false;
    }
    if (r->error.code != ERR_NONE)
        *err = r->error;
    return r->error.code == ERR_NONE;
}

static bool load(Known *k, uint64_t number, KnownWindow *w, Err *err)
{
    Blocks *b = k->spec->known->leaves;
    uint64_t first = number * WINDOW_CLUSTERS, n = MIN(WINDOW_CLUSTERS, k->clusters - first);
    w->there = false;
    for (uint64_t done = 0, bytes = n * k->hash_bytes; done < bytes;) {
        uint32_t step = (uint32_t)MIN(bytes - done, b->max_request);
        Read r = {.req = {.done = on_read, .ctx = &r}};
        if (!b->ops->read(b, w->leaves + done, first * k->hash_bytes + done, step, &r.req, err))
            return err_context(err, "reading the hashes of what is there");
        if (!wait_for(k, &r, err)) {
            if (b->ops->abort)
                b->ops->abort(b); // r goes out of scope
            return err_context(err, "reading the hashes of what is there");
        }
        done += step;
    }
    w->number = number;
    w->there = true;
    return true;
}

bool known_is_same(Known *k, const uint8_t *p, uint64_t offset, uint32_t n, bool *ret_same, Err *err)
{
    uint64_t cluster = offset / k->spec->cluster_size, number = cluster / WINDOW_CLUSTERS;
    KnownWindow *w = &k->windows[number % KNOWN_WINDOWS];
    Hash hash;
    if ((!w->there || w->number != number) && !load(k, number, w, err))
        return false;
    if (n < k->spec->cluster_size) {
        memset(k->padded, 0, k->spec->cluster_size);
        memcpy(k->padded, p, n);
        p = k->padded;
    }
    hash_bytes(&k->spec->known->hash, p, k->spec->cluster_size, &hash);
    *ret_same = memcmp(hash.bytes, w->leaves + cluster % WINDOW_CLUSTERS * k->hash_bytes, k->hash_bytes) == 0;
    return true;
}
