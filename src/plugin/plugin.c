// The engine as an nbdkit plugin: receives a disk's blocks and writes an image and its hashes (ingest), or
// serves a restore point read-only (serve). docs/internals/engine.md.
#include "base/file.h"
#include "codec/engine.h"
#include "image/reader.h"
#include "image/writer.h"
#include "plugin/control.h"

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <errno.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <unistd.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL
#define EXTENTS_STEP (UINT64_C(1) << 30) // answered at once; nbdkit asks again for the rest

static struct {
    char *config_path;
    EngineConfig config;
    HashGeometry geo;
    ChainHashes *parent;
    Writer *writer; // ingest
    Reader *reader; // serve
    Control *control;
    atomic_uint connections;
    EngineRequest seal; // what was sealed; control's thread only, as are the next two
    EngineAnswer seal_answer;
    bool sealed;
} engine;

// The error as nbdkit's client and log see it; returns -1.
static int fail(const Err *err)
{
    int errnum = EIO;
    switch (err->code) {
    case ERR_NO_SPACE: errnum = ENOSPC; break;
    case ERR_NO_MEMORY: errnum = ENOMEM; break;
    case ERR_INVALID: errnum = EINVAL; break;
    case ERR_CONFLICT: errnum = ESHUTDOWN; break; // sealed
    default: break;
    }
    nbdkit_error("%s: %s", err_name(err->code), err->details);
    nbdkit_set_error(errnum);
    return -1;
}

static int plugin_config(const char *key, const char *value)
{
    if (strcmp(key, "config") != 0) {
        nbdkit_error("unknown parameter '%s'; only config=PATH is taken", key);
        return -1;
    }
    char *path = nbdkit_realpath(value);
    if (!path)
        return -1;
    free(engine.config_path);
    engine.config_path = path;
    return 0;
}

static int plugin_config_complete(void)
{
    Err err = ERR_INIT;
    cleanup_free char *text = NULL;
    size_t n = 0;
    if (!engine.config_path) {
        nbdkit_error("config=PATH is missing");
        return -1;
    }
    if (!file_read(engine.config_path, ENGINE_CONFIG_MAX, &text, &n, &err) ||
        !engine_config_decode(text, n, &engine.config, &err)) {
        err_context(&err, "%s", engine.config_path);
        return fail(&err);
    }
    return 0;
}

static bool open_ingest(const EngineConfig *c, Err *err)
{
    if (c->layers_len > 0) {
        cleanup_free ChainLayerPath *layers = mem_calloc(c->layers_len, sizeof *layers, err);
        if (!layers)
            return false;
        for (size_t i = 0; i < c->layers_len; i++)
            layers[i] = (ChainLayerPath){.image = c->layers[i].image, .hashes = c->layers[i].hashes};
        if (!chain_hashes_open(layers, c->layers_len, &engine.geo, &engine.parent, err))
            return false;
    }
    WriterSpec spec = {
        .image_path = c->image,
        .hashes_path = c->hashes,
        .backing_name = c->backing_name,
        .size = c->size,
        .cluster_bits = (uint32_t)__builtin_ctz(c->cluster_size),
        .hash = engine.geo.spec,
        .mode = c->mode,
        .parent = engine.parent,
        .direct_io = true,
        .compression = c->compression,
        .journal_path = c->journal,
        .checkpoint_bytes = c->checkpoint_bytes,
        .resume_image = c->resume_image,
        .resume_journal = c->resume_journal,
    };
    return writer_open(&spec, &engine.writer, err);
}

static bool open_serve(const EngineConfig *c, Err *err)
{
    cleanup_free ReaderLayer *layers = mem_calloc(c->layers_len, sizeof *layers, err);
    if (!layers)
        return false;
    for (size_t i = 0; i < c->layers_len; i++)
        layers[i] = (ReaderLayer){c->layers[i].image, c->layers[i].hashes, c->layers[i].backing_name};
    return reader_open(layers, c->layers_len, &engine.geo, &engine.reader, err);
}

static void seal(const EngineRequest *request, EngineAnswer *ret)
{
    Err err = ERR_INIT;
    HashesSummary s;
    Hash digest;
    WriterExpect expect = {.extents = request->extents, .bytes = request->bytes, .digest = request->digest};
    if (!writer_seal(engine.writer, request->have_expect ? &expect : NULL, &s, &digest, &err)) {
        nbdkit_error("seal: %s: %s", err_name(err.code), err.details);
        ret->ok = false;
        ret->code = err.code;
        memcpy(ret->details, err.details, sizeof ret->details);
        return;
    }
    *ret = (EngineAnswer){
        .ok = true,
        .sealed = true,
        .image_bytes = s.image_bytes,
        .stored_clusters = s.stored_clusters,
        .zeroed_clusters = s.zeroed_clusters,
        .skipped_clusters = s.skipped_clusters,
    };
    hash_text(&engine.geo.spec, &s.root, ret->root);
    hash_text(&engine.geo.spec, &s.metadata, ret->metadata);
    hash_text(&engine.geo.spec, &digest, ret->hashes_digest);
}

static bool same_seal(const EngineRequest *a, const EngineRequest *b)
{
    return a->have_expect == b->have_expect && a->extents == b->extents && a->bytes == b->bytes &&
        a->digest == b->digest;
}

static void refuse(EngineAnswer *ret, ErrCode code, const char *details)
{
    *ret = (EngineAnswer){.code = code};
    (void)snprintf(ret->details, sizeof ret->details, "%s", details); // a fixed short text
}

static bool checkpoint(EngineAnswer *ret)
{
    Err err = ERR_INIT;
    if (!engine.writer)
        refuse(ret, ERR_UNSUPPORTED, "an exporter that serves has nothing to go on from");
    else if (writer_checkpoint(engine.writer, &err))
        return true;
    else
        refuse(ret, err.code, err.details);
    return false;
}

// Control's thread. A repeated seal gets the first one's answer; after one that was refused the next may succeed.
static void answer(const EngineRequest *request, EngineAnswer *ret)
{
    if (request->op == ENGINE_CHECKPOINT && !checkpoint(ret))
        return;
    if (request->op == ENGINE_SEAL) {
        if (!engine.writer) {
            refuse(ret, ERR_UNSUPPORTED, "an exporter that serves has nothing to seal");
            return;
        }
        if (engine.sealed && !same_seal(request, &engine.seal)) {
            refuse(ret, ERR_CONFLICT, "it is sealed, with other numbers");
            return;
        }
        if (!engine.sealed) {
            seal(request, &engine.seal_answer);
            engine.seal = *request;
            engine.sealed = engine.seal_answer.ok;
        }
    }
    if (engine.sealed || request->op == ENGINE_SEAL)
        *ret = engine.seal_answer;
    WriterProgress progress = {0};
    if (engine.writer)
        writer_progress(engine.writer, &progress);
    ret->received_data = progress.received_data;
    ret->received_zero = progress.received_zero;
    ret->stored_bytes = progress.stored_bytes;
    ret->connections = atomic_load(&engine.connections);
}

static int plugin_get_ready(void)
{
    Err err = ERR_INIT;
    const EngineConfig *c = &engine.config;
    HashSpec hash = {.seed = c->hash_seed};
    if (!hash_algorithm_parse(c->hash_algorithm, &hash.algorithm, &err) ||
        !hash_geometry_init(&engine.geo, &hash, c->cluster_size, &err) ||
        !(c->role == ENGINE_INGEST ? open_ingest(c, &err) : open_serve(c, &err)) ||
        !control_open(c->control, answer, &engine.connections, &engine.control, &err))
        return fail(&err);
    return 0;
}

static int plugin_after_fork(void)
{
    Err err = ERR_INIT;
    // nbdkit 1.32 in the foreground asks to die with the thread that started it, --exit-with-parent or not. In the
    // hub that is a connection's thread; and the exporter is to outlive the hub anyhow.
    if (prctl(PR_SET_PDEATHSIG, 0UL) != 0)
        return fail((err_errno(&err, errno, "prctl"), &err));
    return control_start(engine.control, &err) ? 0 : fail(&err);
}

static void plugin_unload(void)
{
    control_free(engine.control);
    Err ignored = ERR_INIT; // then the last checkpoint is what there is
    if (engine.writer && !engine.sealed)
        (void)!writer_checkpoint(engine.writer, &ignored); // the machine goes down, maybe
    writer_free(engine.writer);
    reader_free(engine.reader);
    chain_hashes_free(engine.parent);
    engine_config_clear(&engine.config);
    free(engine.config_path);
}

// What a connection is for: its handle points to one of these.
static char disk_export, leaves_export;

// The name holds a nonce: a connection that was meant for another instance fails here (safety rule 8).
static void *plugin_open(int readonly)
{
    (void)readonly; // a client may open an ingest export read-only; it can only look
    const char *name = nbdkit_export_name();
    size_t n = strlen(engine.config.export_name);
    void *handle = NULL;
    if (name && strncmp(name, engine.config.export_name, n) == 0) {
        if (name[n] == '\0')
            handle = &disk_export;
        else if (engine.parent && strcmp(name + n, ENGINE_LEAVES) == 0)
            handle = &leaves_export;
    }
    if (!handle) {
        nbdkit_error("no such export");
        nbdkit_set_error(ENOENT);
        return NULL;
    }
    atomic_fetch_add(&engine.connections, 1);
    return handle;
}

static void plugin_close(void *handle)
{
    (void)handle; // nothing is kept in it
    atomic_fetch_sub(&engine.connections, 1);
}

// The export's name is a secret between hub and client.
static int plugin_list_exports(int readonly, int is_tls, struct nbdkit_exports *exports)
{
    (void)readonly; // nothing is listed, to anybody
    (void)is_tls;
    (void)exports;
    return 0;
}

static uint64_t leaves_bytes(void)
{
    uint64_t size = engine.config.size, cluster = engine.config.cluster_size;
    return (size / cluster + (size % cluster != 0)) * hash_size(engine.geo.spec.algorithm);
}

static int64_t plugin_get_size(void *handle)
{
    if (handle == &leaves_export)
        return (int64_t)leaves_bytes();
    return (int64_t)(engine.writer ? engine.config.size : reader_size(engine.reader));
}

static int plugin_block_size(void *handle, uint32_t *minimum, uint32_t *preferred, uint32_t *maximum)
{
    (void)handle; // all exports alike
    *minimum = 1; // more, and clients refuse a disk of an odd size
    *preferred = engine.config.cluster_size;
    *maximum = 32u << 20;
    return 0;
}

static int plugin_is_ingest(void *handle)
{
    return engine.writer != NULL && handle == &disk_export;
}

// Of an ingest the map is what an interrupted run left: data; all else is a hole.
static int plugin_can_extents(void *handle)
{
    return engine.reader != NULL || (handle == &disk_export && writer_is_resumed(engine.writer));
}

static int plugin_can_cache(void *handle)
{
    bool known = engine.writer && (engine.parent || writer_is_resumed(engine.writer));
    return known && handle == &disk_export ? NBDKIT_CACHE_NATIVE : NBDKIT_CACHE_NONE;
}

static int plugin_can_multi_conn(void *handle)
{
    (void)handle;
    return 1; // a flush on one connection covers what any has acknowledged
}

static int plugin_can_fua(void *handle)
{
    (void)handle;
    return NBDKIT_FUA_NATIVE;
}

// Bytes of the leaves, one after the other as if they were an array.
static bool read_leaves(uint8_t *p, uint32_t count, uint64_t offset, Err *err)
{
    uint64_t hash_bytes = hash_size(engine.geo.spec.algorithm), group_bytes = engine.geo.leaves * hash_bytes;
    cleanup_free Hash *leaves = mem_calloc(engine.geo.leaves, sizeof *leaves, err);
    cleanup_free uint8_t *packed = mem_calloc(engine.geo.leaves, hash_bytes, err);
    if (!leaves || !packed)
        return false;
    for (uint64_t at = offset, end = offset + count, n; at < end; at += n) {
        uint64_t in = at % group_bytes;
        n = MIN(end - at, group_bytes - in);
        if (!writer_leaves(engine.writer, at / group_bytes, leaves, err))
            return false;
        for (uint32_t i = 0; i < engine.geo.leaves; i++)
            memcpy(packed + i * hash_bytes, leaves[i].bytes, hash_bytes);
        memcpy(p + (at - offset), packed + in, n);
    }
    return true;
}

static int plugin_pread(void *handle, void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
    Err err = ERR_INIT;
    (void)flags; // none is defined
    bool ok = handle == &leaves_export ? read_leaves(buf, count, offset, &err)
        : engine.reader                ? reader_read(engine.reader, buf, offset, count, &err)
                                       : writer_read(engine.writer, buf, offset, count, &err);
    return ok ? 0 : fail(&err);
}

// "Cache this range": the client has compared it with the leaves, and it is the same.
static int plugin_cache(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
    Err err = ERR_INIT;
    (void)handle; // only an ingest's disk offers it
    (void)flags;  // none is defined
    return writer_same(engine.writer, offset, count, &err) ? 0 : fail(&err);
}

// After a write: with FUA what it wrote is made durable.
static int done(bool ok, uint32_t flags, Err *err)
{
    if (ok && (flags & NBDKIT_FLAG_FUA))
        ok = writer_flush(engine.writer, err);
    return ok ? 0 : fail(err);
}

static int plugin_pwrite(void *handle, const void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
    Err err = ERR_INIT;
    (void)handle;
    return done(writer_write(engine.writer, buf, offset, count, &err), flags, &err);
}

static int plugin_zero(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
    Err err = ERR_INIT;
    (void)handle;
    return done(writer_zero(engine.writer, offset, count, &err), flags, &err);
}

static int plugin_flush(void *handle, uint32_t flags)
{
    Err err = ERR_INIT;
    (void)handle;
    (void)flags; // none is defined
    return !engine.writer || writer_flush(engine.writer, &err) ? 0 : fail(&err);
}

// What is held as data, and the holes between.
static bool held_map(uint64_t offset, uint64_t length, ExtentVec *ret, Err *err)
{
    cleanup(extent_vec_clear) ExtentVec held = {0};
    uint64_t at = offset, end = offset + length;
    if (!writer_held(engine.writer, offset, length, &held, err))
        return false;
    for (size_t i = 0; i < held.len; at = held.items[i].offset + held.items[i].length, i++)
        if ((held.items[i].offset > at &&
             !extent_vec_push(ret, (Extent){.offset = at, .length = held.items[i].offset - at, .zero = true}, err)) ||
            !extent_vec_push(ret, held.items[i], err))
            return false;
    return at == end || extent_vec_push(ret, (Extent){.offset = at, .length = end - at, .zero = true}, err);
}

static int plugin_extents(void *handle, uint32_t count, uint64_t offset, uint32_t flags, struct nbdkit_extents *extents)
{
    Err err = ERR_INIT;
    ExtentVec list = {0};
    (void)handle;
    uint64_t length = MIN(count, EXTENTS_STEP);
    bool ok = engine.reader ? reader_extents(engine.reader, offset, length, &list, &err)
                            : held_map(offset, length, &list, &err);
    int r = ok ? 0 : fail(&err);
    size_t n = flags & NBDKIT_FLAG_REQ_ONE ? MIN(list.len, 1) : list.len;
    for (size_t i = 0; r == 0 && i < n; i++)
        r = nbdkit_add_extent(extents, list.items[i].offset, list.items[i].length,
                              list.items[i].zero ? NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO : 0);
    extent_vec_clear(&list);
    return r;
}

static struct nbdkit_plugin plugin = {
    .name = "sendense",
    .longname = "Sendense engine",
    .version = SENDENSE_VERSION,
    .config = plugin_config,
    .config_complete = plugin_config_complete,
    .config_help = "config=PATH    (required) what to receive or to serve, written by the hub",
    .magic_config_key = "config",
    .get_ready = plugin_get_ready,
    .after_fork = plugin_after_fork,
    .unload = plugin_unload,
    .open = plugin_open,
    .close = plugin_close,
    .list_exports = plugin_list_exports,
    .get_size = plugin_get_size,
    .block_size = plugin_block_size,
    .can_write = plugin_is_ingest,
    .can_flush = plugin_can_multi_conn,
    .can_trim = plugin_is_ingest,
    .can_zero = plugin_is_ingest,
    .can_fast_zero = plugin_is_ingest,
    .can_fua = plugin_can_fua,
    .can_multi_conn = plugin_can_multi_conn,
    .can_cache = plugin_can_cache,
    .can_extents = plugin_can_extents,
    .pread = plugin_pread,
    .pwrite = plugin_pwrite,
    .zero = plugin_zero,
    .trim = plugin_zero,
    .cache = plugin_cache,
    .flush = plugin_flush,
    .extents = plugin_extents,
};

struct nbdkit_plugin *plugin_init(void); // which nbdkit's header does not declare

NBDKIT_REGISTER_PLUGIN(plugin)
