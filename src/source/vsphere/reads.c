#include "source/vsphere/parts.h"

#include "base/str.h"
#include "wire/nbd.h"

#include <stdio.h>

#define OPEN_MS 60000 // VDDK logs in, and looks the disk up
#define CONNECTIONS 1 // the vddk plugin opens the disk once for each connection; requests in flight are what counts
#define REQUEST_MAX (2u << 20)
#define IN_FLIGHT 4 // requests of 1 MiB: a host's buffers, 48 MiB, then do for 12 disks (slots.c)
#define LIBDIR_DEFAULT "/usr/lib/vmware-vix-disklib-distrib"

// nbdkit lives as long as the end that reads from it: a thread of the copy must not start it (wire/child.h), so it is
// opened by the main one.
typedef struct Reads {
    Blocks b; // first
    Child *child;
    Blocks *nbd;
    Blocks *areas; // NULL: no change set
    VsphereSource *v;
    VsphereSlot slot;
} Reads;

static Reads *of(Blocks *b)
{
    return (Reads *)b;
}

static bool reads_read(Blocks *b, void *p, uint64_t offset, uint32_t length, BlocksReq *req, Err *err)
{
    return of(b)->nbd->ops->read(of(b)->nbd, p, offset, length, req, err);
}

// Zeros are found by looking: what VDDK calls not allocated is not vouched for as zero.
static bool reads_extents(Blocks *b, uint64_t offset, uint64_t length, ExtentVec *changed, ExtentVec *zeros, Err *err)
{
    Blocks *areas = of(b)->areas;
    return !areas || areas->ops->extents(areas, offset, length, changed, zeros, err);
}

static size_t reads_fds(Blocks *b, struct pollfd *fds)
{
    return of(b)->nbd->ops->fds(of(b)->nbd, fds);
}

static bool reads_dispatch(Blocks *b, const struct pollfd *fds, size_t n, Err *err)
{
    return of(b)->nbd->ops->dispatch(of(b)->nbd, fds, n, err);
}

static void reads_abort(Blocks *b)
{
    of(b)->nbd->ops->abort(of(b)->nbd);
}

static void reads_free(Blocks *b)
{
    Reads *r = of(b);
    blocks_cleanup(&r->nbd);
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
    cleanup_free char *server = NULL, *port = NULL;
    if (!split_host(v->host, &server, &port, err))
        return false;
    const char *vddk = setting("SENDENSE_VDDK_LIBDIR", LIBDIR_DEFAULT);
    cleanup_free char *libdir = mem_printf(err, "libdir=%s", vddk);
    // for this nbdkit alone; without it the plugin starts nbdkit anew with it, and that one has lost our socket
    cleanup_free char *library_path = mem_printf(err, "LD_LIBRARY_PATH=%s/lib64", vddk);
    cleanup_free char *user = mem_printf(err, "user=%s", v->user);
    cleanup_free char *thumbprint = mem_printf(err, "thumbprint=%s", v->thumbprint);
    cleanup_free char *vm = mem_printf(err, "vm=moref=%s", v->moref);
    cleanup_free char *snapshot = mem_printf(err, "snapshot=%s", v->snapshot);
    cleanup_free char *file = mem_printf(err, "file=%s", d->file);
    if (!libdir || !library_path || !user || !thumbprint || !vm || !snapshot || !file)
        return false;
    const char *argv[] = {"env",
                          library_path,
                          "nbdkit",
                          "--foreground",
                          "--readonly",
                          "--exit-with-parent",
                          "--filter=retry",
                          "--filter=blocksize",
                          setting("SENDENSE_VDDK_PLUGIN", "vddk"),
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
                          "retries=3",
                          "retry-delay=1",
                          "minblock=512",
                          "maxdata=1M", // also where a cluster, and so a request, is larger
                          NULL};
    return child_start(argv, &v->password, ret, err);
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

bool vsphere_reads_open(VsphereSource *v, size_t disk, Blocks *areas, Blocks **ret, Err *err)
{
    const VimDisk *d = &v->disks[disk].disk;
    Reads *r = mem_calloc(1, sizeof(*r), err);
    if (!r) {
        blocks_cleanup(&areas);
        return false;
    }
    r->areas = areas;
    r->v = v;
    r->slot = VSPHERE_NO_SLOT;
    bool ok = vsphere_slot_take(v, &r->slot, err) && start(v, d, &r->child, err);
    if (ok) {
        NbdSpec nbd = {.socket = child_socket(r->child),
                       .export_name = "",
                       .connections = CONNECTIONS,
                       .read_only = true,
                       .timeout_ms = OPEN_MS};
        ok = nbd_blocks_open(&nbd, &r->nbd, err) || explain(r->child, d, err);
    }
    if (ok && r->nbd->size != d->capacity)
        ok = err_set(err, ERR_CONFLICT, "disk %d has %llu bytes in the snapshot, and VDDK reads %llu", (int)d->key,
                     (unsigned long long)d->capacity, (unsigned long long)r->nbd->size);
    if (!ok) {
        reads_free(&r->b);
        return false;
    }
    r->b = *r->nbd;
    r->b.ops = &reads_ops;
    r->b.max_request = MIN(r->nbd->max_request, REQUEST_MAX);
    r->b.max_in_flight = IN_FLIGHT;
    *ret = &r->b;
    return true;
}
