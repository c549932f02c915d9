#include "source/qemu/parts.h"

#include "wire/nbd.h"

#include <errno.h>
#include <stdio.h>

// QEMU has no command that sets bits of a bitmap. But bitmaps merge across nodes of the same size: one of a
// node that holds nothing (null-co), on which the last bytes are written through a short-lived export.

#define WITNESS_BYTES 512
#define WITNESS_MS 10000

typedef struct Written {
    BlocksReq req;
    bool done;
    Err err;
} Written;

static void on_written(BlocksReq *req, const Err *err)
{
    Written *w = req->ctx;
    w->done = true;
    if (err)
        w->err = *err;
}

static bool write_end(QemuSource *v, const char *name, uint64_t size, Err *err)
{
    cleanup_blocks Blocks *b = NULL;
    NbdSpec spec = {.socket = v->scratch.connect, .export_name = name, .connections = 1, .timeout_ms = WITNESS_MS};
    if (!nbd_blocks_open(&spec, &b, err))
        return false;
    uint64_t n = MIN(size, WITNESS_BYTES);
    Written w = {.req = {.done = on_written, .ctx = &w}, .err = ERR_INIT};
    if (!b->ops->zero(b, size - n, n, &w.req, err))
        return false;
    while (!w.done) {
        struct pollfd fds[BLOCKS_FDS_MAX];
        size_t count = b->ops->fds(b, fds);
        int r = poll(fds, count, WITNESS_MS);
        bool ok = r > 0 || (r < 0 && errno == EINTR);
        if (!ok)
            (void)err_set(err, ERR_TIMEOUT, "nbd: no answer in time");
        if (!ok || !b->ops->dispatch(b, fds, count, err)) {
            b->ops->abort(b);
            return false;
        }
    }
    if (w.err.code != ERR_NONE)
        *err = w.err;
    return w.err.code == ERR_NONE;
}

static bool make_source(QemuSource *v, const char *node, uint64_t size, Err *err)
{
    return sweep_call(v->q, "blockdev-add",
                      json_pack("{s:s, s:s, s:I, s:b}", "driver", "null-co", "node-name", node, "size",
                                (json_int_t)size, "read-zeroes", 1),
                      err) &&
        sweep_call(v->q, "block-dirty-bitmap-add",
                   json_pack("{s:s, s:s, s:i}", "node", node, "name", node, "granularity", BITMAPS_GRANULARITY), err) &&
        sweep_call(v->q, "block-export-add",
                   json_pack("{s:s, s:s, s:s, s:s, s:b}", "type", "nbd", "id", node, "node-name", node, "name", node,
                             "writable", 1),
                   err) &&
        write_end(v, node, size, err);
}

bool witness_add(QemuSource *v, QemuDisk *d, bool persistent, Err *err)
{
    char node[SWEEP_NAME], name[BITMAPS_NAME];
    (void)snprintf(node, sizeof(node), "%.26sw%u", v->run, (unsigned)(d - v->disks) % 1000);
    bitmaps_name(&v->owner, d->line.uuid, 0, name);
    bool ok = make_source(v, node, d->size, err) &&
        sweep_call(v->q, "block-dirty-bitmap-add",
                   json_pack("{s:s, s:s, s:i, s:b, s:b}", "node", d->node, "name", name, "granularity",
                             BITMAPS_GRANULARITY, "persistent", persistent, "disabled", 1),
                   err) &&
        sweep_call(v->q, "block-dirty-bitmap-merge",
                   json_pack("{s:s, s:s, s:[{s:s, s:s}]}", "node", d->node, "target", name, "bitmaps", "node", node,
                             "name", node),
                   err);
    SweepSpec mine = {.prefix = node};
    return sweep(v->q, &mine, err) && ok;
}
