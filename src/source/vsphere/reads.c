#include "source/vsphere/parts.h"

#include "base/file.h"
#include "base/log.h"
#include "base/proc.h"
#include "base/str.h"
#include "wire/nbd.h"

#include <stdio.h>

#define OPEN_MS 60000 // VDDK logs in, and looks the disk up
#define CONNECTIONS 1 // the vddk plugin opens the disk once for each connection; requests in flight are what counts
#define REQUEST_MAX (2u << 20)
#define IN_FLIGHT 4  // requests of 1 MiB: a host's buffers, 48 MiB, then do for 12 disks (slots.c)
#define READS_MAX 64 // that are taken, whatever makes sense
#define TRIES 5      // to open a disk again, with pauses of 1, 2, 4, 8 and 16 s: a switch that fails over takes as long
#define PLACE_TRIES 10 // of one read, whatever became of others: it is the place, and not the line
#define PAUSE_MS 1000
#define LIBDIR "SENDENSE_VDDK_LIBDIR"
#define LIBDIR_DEFAULT "/usr/lib/vmware-vix-disklib-distrib"
#define FACTS_MS 60000 // nbdkit loads VDDK, and says what it is
#define FACTS_MAX (64u << 10)
#define PLUGIN "SENDENSE_VDDK_PLUGIN"
#define PLUGIN_DEFAULT "vddk"

typedef struct Reads Reads;

typedef struct Read {
    BlocksReq req; // of the NBD read
    Reads *reads;
    BlocksReq *outer; // NULL: this one is free
    void *buffer;
    uint64_t offset;
    uint32_t length;
    unsigned failures; // of its own, that is when it was asked
    bool failed;       // to be asked again, over another connection
} Read;

// nbdkit lives as long as the end that reads from it: a thread of the copy must not start it (wire/child.h), so it is
// opened by the main one.
struct Reads {
    Blocks b; // first
    VsphereSource *v;
    const VimDisk *disk;
    VsphereSlot slot;
    Child *child;
    Blocks *nbd;   // NULL: there was no getting it back
    Blocks *areas; // NULL: none
    Read reads[READS_MAX];
    unsigned under_way, failed; // asked and not answered; failed
    unsigned tries;             // since a read that went well
    bool over;                  // aborted: errors go up
    Err why;                    // the first of those that failed
};

static Reads *of(Blocks *b)
{
    return (Reads *)b;
}

static bool explain(Child *c, const VimDisk *d, Err *err)
{
    Err ignored = ERR_INIT;
    cleanup_free char *said = NULL;
    if (!child_said(c, &said, &ignored) || !said[0])
        return err_context(err, "nbdkit's vddk plugin, disk %d", (int)d->key);
    err_clear(err);
    return err_set(err, ERR_UNAVAILABLE, "nbdkit's vddk plugin, disk %d: %.400s", (int)d->key, said);
}

// With each connection the plugin opens the disk.
static bool connect_to(Reads *r, Err *err)
{
    NbdSpec nbd = {.socket = child_socket(r->child),
                   .export_name = "",
                   .connections = CONNECTIONS,
                   .read_only = true,
                   .timeout_ms = OPEN_MS};
    if (!nbd_blocks_open(&nbd, &r->nbd, err))
        return explain(r->child, r->disk, err);
    return r->nbd->size == r->disk->capacity ||
        err_set(err, ERR_CONFLICT, "disk %d has %llu bytes in the snapshot, and VDDK reads %llu", (int)r->disk->key,
                (unsigned long long)r->disk->capacity, (unsigned long long)r->nbd->size);
}

static void disconnect(Reads *r)
{
    blocks_cleanup(&r->nbd);
    r->nbd = NULL;
}

static void finish(Read *x, const Err *err)
{
    BlocksReq *outer = mem_take(x->outer);
    outer->done(outer, err);
}

static void keep_failed(Read *x, const Err *err)
{
    if (x->reads->failed++ == 0 && err->code != ERR_CANCELLED) // that one is only what a lost connection ends with
        x->reads->why = *err;
    x->failed = true;
}

static void on_read(BlocksReq *req, const Err *err)
{
    Read *x = req->ctx;
    Reads *r = x->reads;
    r->under_way--;
    if (err && !r->over) {
        x->failures++;
        keep_failed(x, err);
        return;
    }
    r->tries = 0;
    finish(x, err);
}

static void ask(Read *x)
{
    Reads *r = x->reads;
    Err err = ERR_INIT;
    r->under_way++;
    if (r->nbd->ops->read(r->nbd, x->buffer, x->offset, x->length, &x->req, &err))
        return;
    r->under_way--;
    keep_failed(x, &err);
}

static bool reads_read(Blocks *b, void *p, uint64_t offset, uint32_t length, BlocksReq *req, Err *err)
{
    Reads *r = of(b);
    Read *x = NULL;
    for (size_t i = 0; i < ARRAY_LEN(r->reads) && !x; i++)
        x = r->reads[i].outer ? NULL : &r->reads[i];
    if (!x || !r->nbd)
        return err_set(err, ERR_INTERNAL, "disk %d cannot take another read", (int)r->disk->key);
    *x = (Read){
        .req = {.done = on_read, .ctx = x}, .reads = r, .outer = req, .buffer = p, .offset = offset, .length = length};
    if (r->failed > 0)
        keep_failed(x, &r->why); // what it is asked over next works
    else
        ask(x);
    return true;
}

// Others go well between its failures, as many as the disk has: without this it would be asked for days.
static bool is_bad_place(const Reads *r)
{
    for (size_t i = 0; i < ARRAY_LEN(r->reads); i++)
        if (r->reads[i].failed && r->reads[i].failures > PLACE_TRIES)
            return true;
    return false;
}

// VDDK does not get over a lost connection by itself, and nbdkit's retry filter, which would open the disk anew, lets
// one request through at a time.
static bool connect_again(Reads *r, Err *err)
{
    Err tried = ERR_INIT;
    do {
        disconnect(r);
        if (r->tries == TRIES || is_bad_place(r) || !child_alive(r->child)) {
            *err = r->why;
            return explain(r->child, r->disk, err);
        }
        log_debug("a vSphere disk is opened again", LOG_NUM("disk", r->disk->key), LOG_NUM("try", r->tries + 1),
                  LOG_ERR(&r->why));
        if (!vsphere_pause(r->v, PAUSE_MS << r->tries++))
            return err_set(err, ERR_CANCELLED, "the copy was cancelled");
        err_clear(&tried);
    } while (!connect_to(r, &tried));
    return true;
}

static bool ask_again(Reads *r, Err *err)
{
    if (!connect_again(r, err))
        return false;
    r->failed = 0;
    for (size_t i = 0; i < ARRAY_LEN(r->reads); i++) {
        if (!r->reads[i].failed)
            continue;
        r->reads[i].failed = false;
        ask(&r->reads[i]);
    }
    return true;
}

// What is between the areas in use.
static bool add_unused(Blocks *areas, uint64_t offset, uint64_t length, ExtentVec *zeros, Err *err)
{
    cleanup(extent_vec_clear) ExtentVec used = {0}, none = {0};
    uint64_t at = offset, end = offset + length;
    if (!areas->ops->extents(areas, offset, length, &used, &none, err))
        return false;
    for (size_t i = 0; i < used.len; at = used.items[i].offset + used.items[i].length, i++)
        if (used.items[i].offset > at &&
            !extent_vec_push(zeros, (Extent){.offset = at, .length = used.items[i].offset - at, .zero = true}, err))
            return false;
    return at == end || extent_vec_push(zeros, (Extent){.offset = at, .length = end - at, .zero = true}, err);
}

// Zeros are found by looking, unless whoever registered the VM vouches for what the vCenter calls not in use.
static bool reads_extents(Blocks *b, uint64_t offset, uint64_t length, ExtentVec *changed, ExtentVec *zeros, Err *err)
{
    Blocks *areas = of(b)->areas;
    if (areas && b->zeros_on_word)
        return add_unused(areas, offset, length, zeros, err);
    return !areas || areas->ops->extents(areas, offset, length, changed, zeros, err);
}

static size_t reads_fds(Blocks *b, struct pollfd *fds)
{
    return of(b)->nbd ? of(b)->nbd->ops->fds(of(b)->nbd, fds) : 0;
}

static bool reads_dispatch(Blocks *b, const struct pollfd *fds, size_t n, Err *err)
{
    Reads *r = of(b);
    Err lost = ERR_INIT;
    if (!r->nbd->ops->dispatch(r->nbd, fds, n, &lost)) {
        r->why = r->failed == 0 ? lost : r->why;
        r->nbd->ops->abort(r->nbd); // what is under way fails, and is asked again
    }
    return r->failed == 0 || r->under_way > 0 || ask_again(r, err);
}

static void reads_abort(Blocks *b)
{
    Reads *r = of(b);
    Err err = ERR_INIT;
    r->over = true;
    if (r->nbd)
        r->nbd->ops->abort(r->nbd);
    (void)err_set(&err, ERR_CANCELLED, "aborted");
    for (size_t i = 0; i < ARRAY_LEN(r->reads); i++)
        if (r->reads[i].outer)
            finish(&r->reads[i], &err);
}

static void reads_free(Blocks *b)
{
    Reads *r = of(b);
    disconnect(r);
    blocks_cleanup(&r->areas);
    child_stop(r->child);
    vsphere_slot_return(r->v, &r->slot);
    free(r);
}

static const BlocksOps reads_ops = {
    .name = "vsphere",
    .read = reads_read,
    .extents = reads_extents,
    .fds = reads_fds,
    .dispatch = reads_dispatch,
    .abort = reads_abort,
    .free = reads_free,
};

static const char *setting(const char *name, const char *other)
{
    const char *value = getenv(name);
    return value && *value ? value : other;
}

// VDDK's folder, and where the loader finds it, for nbdkit alone. Unless that is this very text, libdir without
// symbolic links and more, the plugin starts nbdkit anew with it, and that one has lost our socket.
static bool vddk_arguments(char **ret_libdir, char **ret_library_path, Err *err)
{
    const char *vddk = setting(LIBDIR, LIBDIR_DEFAULT);
    cleanup_free char *real = NULL;
    Err not_there = ERR_INIT; // which the plugin says, too
    if (file_realpath(vddk, &real, &not_there))
        vddk = real;
    *ret_libdir = mem_printf(err, "libdir=%s", vddk);
    *ret_library_path = *ret_libdir ? mem_printf(err, "LD_LIBRARY_PATH=%s/lib64", vddk) : NULL;
    return *ret_library_path != NULL;
}

bool vsphere_reads_check(Err *err)
{
    const char *vddk = setting(LIBDIR, LIBDIR_DEFAULT), *plugin = setting(PLUGIN, PLUGIN_DEFAULT);
    cleanup_free char *libraries = mem_printf(err, "%s/lib64", vddk);
    cleanup_free char *libdir = NULL, *library_path = NULL, *facts = NULL, *said = NULL;
    if (!libraries || !vddk_arguments(&libdir, &library_path, err))
        return false;
    if (!file_is_dir(libraries))
        return err_set(
            err, ERR_NOT_FOUND,
            "VMware's VDDK is not installed: there is no folder %s; HINT: unpack VDDK to %s, or say where it "
            "is by " LIBDIR,
            libraries, vddk);
    const char *argv[] = {"nbdkit", plugin, "--dump-plugin", libdir, NULL}, *set_env[] = {library_path, NULL};
    int status = 0;
    if (!proc_run(argv, set_env, FACTS_MS, FACTS_MAX, &facts, &said, &status, err))
        return err_context(err, "nbdkit's vddk plugin cannot be asked what it is");
    if (status != 0)
        return err_set(err, ERR_NOT_FOUND,
                       "nbdkit's vddk plugin cannot be used: %.*s; HINT: install it, or say where it is by " PLUGIN,
                       (int)strcspn(said, "\n"), said);
    return strstr(facts, "\nvddk_library_version=") != NULL ||
        err_set(err, ERR_NOT_FOUND,
                "nbdkit's vddk plugin cannot load VMware's VDDK from %s; HINT: unpack VDDK there, or say where it is "
                "by " LIBDIR,
                libraries);
}

// "host" and "port" as the plugin wants them: apart, and without brackets.
static bool split_host(const char *address, char **ret_server, char **ret_port, Err *err)
{
    const char *colon = strrchr(address, ':'), *end = strrchr(address, ']');
    bool port = colon && (end ? colon > end : strchr(address, ':') == colon);
    size_t n = port ? (size_t)(colon - address) : strlen(address);
    bool brackets = address[0] == '[' && end;
    *ret_server = brackets ? mem_printf(err, "server=%.*s", (int)(end - address - 1), address + 1)
                           : mem_printf(err, "server=%.*s", (int)n, address);
    *ret_port = *ret_server ? mem_printf(err, "port=%s", port ? colon + 1 : "443") : NULL;
    return *ret_port != NULL;
}

static bool start(VsphereSource *v, const VimDisk *d, Child **ret, Err *err)
{
    cleanup_free char *server = NULL, *port = NULL, *libdir = NULL, *library_path = NULL;
    if (!split_host(v->host, &server, &port, err) || !vddk_arguments(&libdir, &library_path, err))
        return false;
    cleanup_free char *user = mem_printf(err, "user=%s", v->user);
    cleanup_free char *thumbprint = mem_printf(err, "thumbprint=%s", v->thumbprint);
    cleanup_free char *vm = mem_printf(err, "vm=moref=%s", v->moref);
    cleanup_free char *snapshot = mem_printf(err, "snapshot=%s", v->snapshot);
    cleanup_free char *file = mem_printf(err, "file=%s", d->file);
    if (!user || !thumbprint || !vm || !snapshot || !file)
        return false;
    const char *argv[] = {"env",
                          library_path,
                          "nbdkit",
                          "--foreground",
                          "--readonly",
                          "--exit-with-parent",
                          "--filter=blocksize",
                          setting(PLUGIN, PLUGIN_DEFAULT),
                          libdir,
                          server,
                          port,
                          user,
                          "password=-" CHILD_SECRET_FD,
                          thumbprint,
                          vm,
                          snapshot,
                          "transports=nbdssl:nbd",
                          file,
                          "minblock=512",
                          "maxdata=1M", // also where a cluster, and so a request, is larger
                          NULL};
    return child_start(argv, &v->password, ret, err);
}

bool vsphere_reads_open(VsphereSource *v, size_t disk, Blocks *areas, bool in_use, Blocks **ret, Err *err)
{
    Reads *r = mem_calloc(1, sizeof(*r), err);
    if (!r) {
        blocks_cleanup(&areas);
        return false;
    }
    r->v = v;
    r->disk = &v->disks[disk].disk;
    r->slot = VSPHERE_NO_SLOT;
    r->areas = areas;
    if (!vsphere_slot_take(v, &r->slot, err) || !start(v, r->disk, &r->child, err) ||
        (!connect_to(r, &r->why) && !connect_again(r, err))) {
        reads_free(&r->b);
        return false;
    }
    r->b = (Blocks){.ops = &reads_ops,
                    .size = r->nbd->size,
                    .max_request = MIN(r->nbd->max_request, REQUEST_MAX),
                    .max_in_flight = IN_FLIGHT,
                    .zeros_on_word = in_use};
    *ret = &r->b;
    return true;
}
