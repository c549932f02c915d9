#include "cli/point_export.h"

#include "base/clock.h"
#include "cli/stop.h"

#include <errno.h>
#include <inttypes.h>

#define CONNECTIONS 4
#define RECONNECTS 3
#define URI_MAX 2048
#define READ_WAIT_MS 60000
#define WINDOW (UINT64_C(64) << 30) // of a map that is asked for at a time

static bool read_answer(const json_t *a, const json_t *disk, PointExport *e, Err *err)
{
    uint64_t cluster, no;
    const char *id, *uri, *root, *algorithm, *key;
    if (!codec_json_text(a, "export_id", 128, &id, err) || !mem_replace(&e->id, id, err) ||
        !codec_json_text(a, "uri", URI_MAX, &uri, err) || !mem_replace(&e->uri, uri, err) ||
        !codec_json_text(a, "root", HASH_TEXT_MAX, &root, err) || !mem_replace(&e->root, root, err) ||
        !codec_json_text(a, "disk_key", WORK_TEXT_MAX, &key, err) ||
        !codec_json_u64(a, "disk_no", UINT32_MAX, &no, err) ||
        !codec_json_u64(a, "disk_id", INT64_MAX, &e->disk_id, err) ||
        !codec_json_u64(a, "size", DISK_SIZE_MAX, &e->size, err) ||
        !codec_json_u64(a, "cluster_size", 2u << 20, &cluster, err) ||
        !codec_json_text(a, "hash_algorithm", 32, &algorithm, err) ||
        !hash_algorithm_parse(algorithm, &e->hash.algorithm, err) ||
        !codec_json_hex64(a, "hash_seed", &e->hash.seed, err))
        return false;
    e->cluster_size = (uint32_t)cluster;
    e->suspect = cli_flag(a, "suspect");
    if (!str_eq(key, cli_text(disk, "disk_key")) || no != cli_u64(disk, "disk_no") || e->size != cli_u64(disk, "size"))
        return err_set(err, ERR_PROTOCOL, "disk \"%s\" was asked for and disk \"%s\" was given",
                       cli_text(disk, "disk_key"), key);
    return true;
}

bool point_export_open(Cli *c, const char *backup_id, const json_t *disk, const char *purpose, PointExport *ret,
                       Err *err)
{
    PointExport e = {.cli = c};
    char no[24];
    cleanup_json json_t *body = json_object(), *answer = NULL;
    (void)snprintf(no, sizeof(no), "%" PRIu64, cli_u64(disk, "disk_no")); // fits: 20 digits
    if (!body)
        return err_no_memory(err);
    if (!codec_json_set_text(body, "backup_id", backup_id, err) || !codec_json_set_text(body, "disk", no, err) ||
        !codec_json_set_text(body, "purpose", purpose, err) ||
        !cli_send(c, "POST", "/api/v1/exports", body, true, &answer, err))
        return false;
    cleanup_free char *path = NULL;
    if (!read_answer(answer, disk, &e, err) || !(path = cli_path("exports", e.id, "nbd", err)) ||
        !hub_nbd_new(c->hub, e.uri, path, &e.way, err)) {
        if (err->code == ERR_INVALID)
            err->code = ERR_PROTOCOL;
        (void)err_context(err, "the answer to POST /api/v1/exports");
        point_export_close(&e);
        return false;
    }
    *ret = e;
    return true;
}

bool point_export_read(const PointExport *e, Blocks **ret, Err *err)
{
    NbdSpec spec = {.connections = CONNECTIONS, .read_only = true, .want_zeros = true, .reconnects = RECONNECTS};
    hub_nbd_spec(e->way, &spec);
    return nbd_blocks_open(&spec, ret, err);
}

void point_export_close(PointExport *e)
{
    if (e->id) {
        Err err = ERR_INIT;
        cleanup_json json_t *answer = NULL;
        cleanup_free char *path = cli_path("exports", e->id, NULL, &err);
        bool ended = path && cli_send(e->cli, "DELETE", path, NULL, false, &answer, &err);
        if (!ended && err.code != ERR_NOT_FOUND)
            cli_note("export %s is left: %s; end it with: sendense export end %s", e->id, err.details, e->id);
    }
    hub_nbd_free(e->way);
    free(e->id);
    free(e->uri);
    free(e->root);
    *e = (PointExport){0};
}

bool point_export_data(Blocks *b, uint64_t size, uint64_t *ret, Err *err)
{
    uint64_t zero = 0;
    for (uint64_t at = 0; at < size; at += MIN(WINDOW, size - at)) {
        ExtentVec zeros = {0}, changed = {0};
        bool fine = !b->ops->extents || b->ops->extents(b, at, MIN(WINDOW, size - at), &changed, &zeros, err);
        for (size_t i = 0; fine && i < zeros.len; i++)
            zero += zeros.items[i].length;
        extent_vec_clear(&zeros);
        extent_vec_clear(&changed);
        if (!fine)
            return false;
    }
    *ret = size - MIN(zero, size);
    return true;
}

// ---- which cluster it is

typedef struct OneRead {
    bool done;
    Err err;
} OneRead;

static void on_read(BlocksReq *req, const Err *err)
{
    OneRead *r = req->ctx;
    r->done = true;
    if (err)
        r->err = *err;
}

// Reads, and waits for it.
static bool read_cluster(Blocks *b, void *p, uint64_t offset, uint32_t length, Err *err)
{
    OneRead r = {0};
    BlocksReq req = {.done = on_read, .ctx = &r};
    int64_t until = clock_mono_ms() + READ_WAIT_MS;
    if (!b->ops->read(b, p, offset, length, &req, err))
        return false;
    while (!r.done) {
        struct pollfd fds[BLOCKS_FDS_MAX];
        size_t n = b->ops->fds(b, fds);
        bool late = clock_mono_ms() > until || stop_signal() != 0;
        if (late || (poll(fds, n, 100) < 0 && errno != EINTR) || !b->ops->dispatch(b, fds, n, err)) {
            b->ops->abort(b); // calls on_read
            return err_set(err, ERR_TIMEOUT, "a read was not answered, or a signal came");
        }
    }
    if (r.err.code == ERR_NONE)
        return true;
    *err = r.err;
    return false;
}

bool point_export_locate(Cli *c, const char *backup_id, const json_t *disk, uint64_t start, uint64_t stop,
                         uint64_t *ret_offset, Err *why)
{
    Err err = ERR_INIT;
    cleanup(point_export_close) PointExport e = {0};
    cleanup_blocks Blocks *b = NULL;
    if (!point_export_open(c, backup_id, disk, "verify", &e, &err) || !point_export_read(&e, &b, &err)) {
        if (err.code == ERR_DAMAGED)
            *why = err;
        return false;
    }
    cleanup_free void *buffer = mem_calloc(1, e.cluster_size, &err);
    uint64_t at = align_down(start, e.cluster_size), end = MIN(stop, e.size);
    while (buffer && at < end && read_cluster(b, buffer, at, (uint32_t)MIN(e.cluster_size, e.size - at), &err))
        at += e.cluster_size;
    if (err.code != ERR_IO)
        return false;
    *why = ERR_INIT;
    (void)err_set(why, ERR_DAMAGED, "the cluster at offset %" PRIu64 " is not what was written", at);
    *ret_offset = at;
    return true;
}
