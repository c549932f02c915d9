#include "source/qemu/qemu.h"

#include "base/str.h"
#include "source/qemu/clean.h"
#include "source/qemu/parts.h"
#include "wire/nbd.h"

#include <stdio.h>
#include <unistd.h>

#define QEMU_CONNECTIONS 4
#define QEMU_OLDEST 6000 // 6.0: exports of any node, with bitmaps
#define NONCE_CHARS 6

static bool check_spec(const json_t *spec, Err *err)
{
    QemuSpec s;
    return qemu_spec_read(spec, &s, err);
}

static bool own(const char **slot, Err *err)
{
    if (*slot)
        *slot = mem_strdup(*slot, err);
    return err->code == ERR_NONE;
}

// The texts are needed at the end, too: they are copied.
static bool take_request(QemuSource *v, const SourceRequest *req, Err *err)
{
    QemuSpec spec;
    char nonce[UUID_TEXT];
    if (!qemu_spec_read(req->spec, &spec, err))
        return false;
    if (!uuid_is_valid(req->vm_id) || !req->repository_uuid || !uuid_is_valid(req->repository_uuid))
        return err_set(err, ERR_INVALID, "a qemu source needs the UUIDs of VM and repository");
    v->req = req;
    v->spec = spec;
    v->owner = (BitmapsOwner){.repository = req->repository_uuid, .vm = req->vm_id};
    if (req->scratch)
        v->spec.scratch = req->scratch;
    const char **const texts[] = {&v->spec.qmp, &v->spec.agent, &v->spec.scratch, &v->owner.repository, &v->owner.vm};
    for (size_t i = 0; i < ARRAY_LEN(texts); i++)
        if (!own(texts[i], err)) {
            for (; i < ARRAY_LEN(texts); i++)
                *texts[i] = NULL; // still the request's
            return false;
        }
    if (!uuid_new(nonce, err))
        return false;
    sweep_vm_prefix(v->owner.vm, v->vm);
    (void)snprintf(v->run, sizeof(v->run), "%.19s%.*s-", v->vm, NONCE_CHARS, nonce);
    return true;
}

static bool open_qmp(QemuSource *v, Err *err)
{
    if (!qmp_open(v->spec.qmp, QMP_GREETING_MS, sweep_events, &v->q, err))
        return false;
    if (qmp_version(v->q) < QEMU_OLDEST)
        return err_set(err, ERR_UNSUPPORTED, "QEMU %u.%u is too old; HINT: 6.0 or later", qmp_version(v->q) / 1000,
                       qmp_version(v->q) % 1000);
    qmp_set_cancel(v->q, v->req->cancel);
    return true;
}

static bool open_view(QemuSource *v, Err *err)
{
    json_t *block = NULL, *nodes = NULL;
    GuestDiskVec disks = {0};
    BitmapVec bitmaps = {0};
    bool ok = qmp_call(v->q, "query-block", NULL, &block, err) && sweep_query_nodes(v->q, &nodes, err) &&
        guest_disks(block, &disks, err) && bitmaps_collect(nodes, &v->owner, &bitmaps, err) &&
        view_open(v, &disks, &bitmaps, err);
    bitmap_vec_clear(&bitmaps);
    guest_disks_clear(&disks);
    json_decref(block);
    json_decref(nodes);
    return ok;
}

static bool qemu_open(const SourceRequest *req, Source **ret, Err *err)
{
    QemuSource *v = mem_calloc(1, sizeof(*v), err);
    if (!v)
        return false;
    v->s.ops = &source_qemu_ops;
    v->s.consistency = "crash";
    v->scratch = SCRATCH_NONE;
    v->guard = GUARD_NONE;
    v->stop = -1;
    (void)pthread_mutex_init(&v->lock, NULL); // cannot fail with glibc
    char socket_name[SWEEP_NAME + 4];
    bool ok = take_request(v, req, err);
    if (ok) {
        (void)snprintf(socket_name, sizeof(socket_name), "%snbd", v->vm);
        ok = scratch_open(v->spec.scratch, socket_name, &v->scratch, err) && open_qmp(v, err) &&
            view_sweep_earlier(v, err) && open_view(v, err) && watch_start(v, err);
    }
    v->req = NULL;
    if (ok)
        qmp_set_cancel(v->q, NULL);
    *ret = &v->s;
    return ok;
}

// bitmap: whose bits are the change set; NULL: there is none.
static bool open_export(QemuSource *v, const QemuDisk *d, const char *bitmap, unsigned connections, Blocks **ret,
                        Err *err)
{
    char context[BITMAPS_NAME + 32];
    (void)snprintf(context, sizeof(context), "qemu:dirty-bitmap:%s", bitmap ? bitmap : "");
    NbdSpec spec = {
        .socket = v->scratch.connect,
        .export_name = d->tag,
        .connections = connections,
        .read_only = true,
        .require_zeros = true,
        .dirty_context = bitmap ? context : NULL,
    };
    Blocks *b;
    if (!nbd_blocks_open(&spec, &b, err))
        return err_context(err, "disk %s", d->key);
    if (b->size != d->size) {
        b->ops->free(b);
        return err_set(err, ERR_CONFLICT, "disk %s changed its size", d->key);
    }
    return frozen_blocks(v, b, bitmap != NULL, ret, err);
}

static bool qemu_blocks(Source *s, size_t disk, bool with_changes, Blocks **ret, Err *err)
{
    QemuSource *v = (QemuSource *)s;
    const QemuDisk *d = &v->disks[disk];
    if (with_changes && !d->line.tracked)
        return err_set(err, ERR_INVALID, "disk %s has no change set", d->key);
    return open_export(v, d, with_changes ? v->temporary : NULL, QEMU_CONNECTIONS, ret, err);
}

static bool qemu_since(Source *s, size_t disk, Blocks **ret, Err *err)
{
    QemuSource *v = (QemuSource *)s;
    const QemuDisk *d = &v->disks[disk];
    if (!d->resumes)
        return err_set(err, ERR_INVALID, "disk %s cannot be compared with the interrupted backup's", d->key);
    return open_export(v, d, v->since, 1, ret, err);
}

static bool qemu_intact(Source *s, Err *err)
{
    return watch_check((QemuSource *)s, err);
}

// With the connection lost there may still be a QEMU to clean: on a new one. False without an error: there is none.
static bool have_qmp(QemuSource *v, Err *err)
{
    if (v->q && !qmp_is_lost(v->q)) {
        qmp_set_cancel(v->q, NULL);
        return true;
    }
    qmp_free(v->q);
    v->q = NULL;
    Err again = ERR_INIT;
    if (qmp_open(v->spec.qmp, QMP_GREETING_MS, sweep_events, &v->q, &again))
        return true;
    if (again.code != ERR_UNAVAILABLE && again.code != ERR_NOT_FOUND && err->code == ERR_NONE)
        *err = again;
    return false;
}

static void free_source(QemuSource *v)
{
    qmp_free(v->q);
    scratch_clear(&v->scratch);
    for (size_t i = 0; i < v->s.disks_len; i++) {
        free(v->disks[i].key);
        free(v->disks[i].node);
        free(v->disks[i].qdev);
        free(v->disks[i].filename);
    }
    free(v->disks);
    free((void *)(uintptr_t)v->spec.qmp);
    free((void *)(uintptr_t)v->spec.agent);
    free((void *)(uintptr_t)v->spec.scratch);
    free((void *)(uintptr_t)v->owner.repository);
    free((void *)(uintptr_t)v->owner.vm);
    (void)pthread_mutex_destroy(&v->lock);
    source_clear(&v->s);
    free(v);
}

static bool qemu_close(Source *s, bool completed, Err *err)
{
    QemuSource *v = (QemuSource *)s;
    watch_stop(v);
    bool clean = true;
    if (v->guard.pipe >= 0) { // before that nothing was put into QEMU
        Err failed = ERR_INIT;
        // Behind a connection that was lost there may be another QEMU, with a later backup's bitmaps: the next one that
        // is completed forgets what is older than itself.
        bool same = v->q && !qmp_is_lost(v->q);
        clean = have_qmp(v, &failed) ? view_close(v, &failed) : failed.code == ERR_NONE;
        if (clean && completed && same && !view_forget_older(v, &failed))
            clean = false;
        if (clean && v->listens && scratch_is_same(&v->scratch))
            scratch_unlink(&v->scratch);
        if (failed.code != ERR_NONE && err->code == ERR_NONE)
            *err = failed;
        // What we could not do, the guard tries as soon as our connection is closed.
        if (clean)
            guard_tell(&v->guard, GUARD_CLEAN);
    }
    qmp_free(v->q);
    v->q = NULL;
    guard_stop(&v->guard, clean && !v->stuck);
    free_source(v);
    return clean;
}

const SourceOps source_qemu_ops = {
    .type = "qemu",
    .check_spec = check_spec,
    .open = qemu_open,
    .blocks = qemu_blocks,
    .since = qemu_since,
    .intact = qemu_intact,
    .close = qemu_close,
    .sweep = qemu_sweep,
};
