#include "source/qemu/parts.h"

#include "base/file.h"
#include "base/str.h"
#include "domain/changeid.h"

#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#define BITMAPS_MAX 64 // of ours on one node, before all go that may be of use
#define LABEL_MAX 400

static bool take_disk(QemuSource *v, size_t i, const GuestDisk *g, Err *err)
{
    const SourceParent *p = source_parent(v->req, g->key);
    QemuDisk *d = &v->disks[i];
    d->size = g->size;
    d->allocated = g->allocated;
    d->may_persist = g->may_persist;
    d->read_only = g->read_only;
    d->parent_change_id = p ? p->change_id : NULL;
    d->parent_tracking = p && p->tracking;
    d->parent_size = p ? p->size : 0;
    (void)snprintf(d->tag, sizeof(d->tag), "%.26s%u", v->run, (unsigned)i % 1000);
    if (g->size > DISK_SIZE_MAX)
        return err_set(err, ERR_TOO_LARGE, "disk %s is larger than what is supported", g->key);
    return mem_replace(&d->key, g->key, err) && mem_replace(&d->node, g->node, err) &&
        mem_replace(&d->qdev, g->qdev, err) && mem_replace(&d->filename, g->filename, err);
}

static bool take_disks(QemuSource *v, const GuestDiskVec *disks, Err *err)
{
    v->disks = mem_calloc(disks->len, sizeof(*v->disks), err);
    v->s.disks = mem_calloc(disks->len, sizeof(*v->s.disks), err);
    if (!v->disks || !v->s.disks)
        return false;
    if (disks->len > SOURCE_DISKS_MAX)
        return err_set(err, ERR_UNSUPPORTED, "the VM has %zu disks; %d are the limit", disks->len, SOURCE_DISKS_MAX);
    for (size_t i = 0; i < disks->len; i++) {
        const GuestDisk *g = &disks->items[i];
        bool excluded = source_is_excluded(v->req, g->key);
        if (excluded ? !source_leave_out(&v->s, g->key, err) : !take_disk(v, v->s.disks_len++, g, err))
            return false;
    }
    return v->s.disks_len > 0 || err_set(err, ERR_NOT_FOUND, "the VM has no disk that is not excluded");
}

// A bitmap on a read-only node sees no change, since whoever makes one does it behind QEMU's back; it cannot be stored,
// and one that was stored while the disk was writable cannot be removed (seen).
static void untracked_line(QemuDisk *d, const char *fresh)
{
    bitmaps_begin(fresh, &d->line);
    if (d->parent_change_id)
        (void)snprintf(d->line.lost, sizeof(d->line.lost), "nothing tracks a read-only disk's changes");
}

// Can what changed since the interrupted run be told? Then its line goes on, be it the parent's or not.
static void resolve_interrupted(const QemuSource *v, QemuDisk *d, const LineInput *parent)
{
    const SourceInterrupted *before = source_interrupted(v->req, d->key);
    Line line;
    Err ignored = ERR_INIT;
    char uuid[UUID_TEXT];
    uint64_t sequence;
    if (!before || d->read_only || !changeid_parse(before->token, uuid, &sequence, &ignored))
        return;
    if (d->line.tracked) {
        for (size_t i = 0; i < d->line.len && !d->resumes; i++) {
            d->since = i;
            d->resumes = d->line.bitmaps[i] == sequence && str_eq(uuid, d->line.uuid) && before->size == d->size;
        }
        return;
    }
    LineInput in = *parent;
    in.parent_change_id = before->token;
    in.parent_tracking = true;
    in.parent_size = before->size;
    bitmaps_resolve(&in, &line);
    if (!line.tracked)
        return;
    d->resumes = d->continues = true;
    memcpy(line.lost, d->line.lost, sizeof(line.lost)); // the parent's
    line.tracked = false;
    d->line = line;
    d->since = 0;
}

static bool resolve_lines(QemuSource *v, const BitmapVec *bitmaps, Err *err)
{
    for (size_t i = 0; i < v->s.disks_len; i++) {
        QemuDisk *d = &v->disks[i];
        char fresh[UUID_TEXT];
        if (!uuid_new(fresh, err))
            return false;
        if (d->read_only) {
            untracked_line(d, fresh);
            continue;
        }
        LineInput in = {
            .all = bitmaps,
            .node = d->node,
            .parent_change_id = d->parent_change_id,
            .parent_tracking = d->parent_tracking,
            .size = d->size,
            .parent_size = d->parent_size,
            .fresh = fresh,
        };
        bitmaps_resolve(&in, &d->line);
        resolve_interrupted(v, d, &in);
        bitmaps_name(&v->owner, d->line.uuid, d->line.next, d->name);
    }
    return true;
}

// Bitmaps that no later run can start from: those of other lines than the parent's, once the hub has said what the
// parent is. Failed runs would pile them up. Where it did not say (a full), there is a ceiling.
static void drop_stale(QemuSource *v, const BitmapVec *bitmaps)
{
    for (size_t i = 0; i < v->s.disks_len; i++) {
        const QemuDisk *d = &v->disks[i];
        size_t count = 0;
        for (size_t j = 0; j < bitmaps->len; j++)
            count += str_eq(bitmaps->items[j].node, d->node);
        for (size_t j = 0; j < bitmaps->len; j++) {
            const Bitmap *b = &bitmaps->items[j];
            bool followed = (d->line.tracked || d->continues) && str_eq(b->line, d->line.uuid);
            Err ignored = ERR_INIT; // what cannot go now, goes another time
            if (str_eq(b->node, d->node) && !followed && (d->parent_change_id || count > BITMAPS_MAX))
                (void)!sweep_call(v->q, "block-dirty-bitmap-remove",
                                  json_pack("{s:s, s:s}", "node", b->node, "name", b->name), &ignored);
        }
    }
}

static bool check_space(QemuSource *v, Err *err)
{
    uint64_t free_bytes, total;
    cleanup_free uint64_t *sizes = mem_calloc(v->s.disks_len, sizeof(*sizes), err);
    if (!sizes || !file_space(v->scratch.folder, &free_bytes, &total, err))
        return false;
    for (size_t i = 0; i < v->s.disks_len; i++)
        sizes[i] = v->disks[i].read_only ? 0 : v->disks[i].size; // nothing is overwritten
    uint64_t need = scratch_need(total, sizes, v->s.disks_len);
    v->low_water = scratch_low_water(total);
    if (free_bytes < need)
        return err_set(err, ERR_NO_SPACE,
                       "%s has %" PRIu64 " bytes free, and %" PRIu64 " are needed to start; HINT: give "
                       "the VM a larger scratch folder",
                       v->scratch.folder, free_bytes, need);
    return true;
}

static bool start_guard(QemuSource *v, Err *err)
{
    char nonce[SWEEP_NAME + 8];
    (void)snprintf(nonce, sizeof(nonce), "%.26ssince", v->run);
    bitmaps_temporary(&v->owner, v->run, v->temporary);
    bitmaps_temporary(&v->owner, nonce, v->since);
    GuardSpec spec = {
        .qmp = v->spec.qmp,
        .agent = v->spec.agent,
        .prefix = v->run,
        .bitmap_prefix = v->temporary,
        .scratch = &v->scratch,
    };
    if (!guard_start(&spec, &v->guard, err))
        return false;
    guard_tell(&v->guard, GUARD_VIEW);
    return true;
}

static bool start_server(QemuSource *v, Err *err)
{
    cleanup_close int fd = -1;
    if (!scratch_listen(&v->scratch, &fd, err))
        return false;
    v->listens = true;
    guard_tell(&v->guard, GUARD_SERVER);
    json_t *name = json_pack("{s:s}", "fdname", SWEEP_FD);
    if (!name)
        return err_no_memory(err);
    if (!qmp_call_fd(v->q, "getfd", name, fd, NULL, err))
        return false;
    Err refused = ERR_INIT;
    if (sweep_call(v->q, "nbd-server-start",
                   json_pack("{s:{s:s, s:{s:s}}}", "addr", "type", "fd", "data", "str", SWEEP_FD), &refused))
        return true;
    if (strstr(refused.details, "already running"))
        return err_set(err, ERR_BUSY,
                       "another program runs the NBD server of this QEMU, which has but one; HINT: wait for "
                       "its end; where nothing uses it any more, stop it with QMP's nbd-server-stop");
    *err = refused;
    return false;
}

static bool add_scratch_node(QemuSource *v, const QemuDisk *d, json_int_t fdset, Err *err)
{
    char path[48];
    (void)snprintf(path, sizeof(path), "/dev/fdset/%" JSON_INTEGER_FORMAT, fdset);
    return sweep_call(v->q, "blockdev-add",
                      json_pack("{s:s, s:s, s:s, s:s, s:{s:s, s:s, s:s}}", "driver", "qcow2", "node-name", d->tag,
                                "backing", d->node, "discard", "unmap", "file", "driver", "file", "filename", path,
                                "discard", "unmap"),
                      err);
}

static bool attach_scratch(QemuSource *v, const QemuDisk *d, Err *err)
{
    cleanup_close int fd = -1;
    json_t *opaque = json_pack("{s:s}", "opaque", d->tag), *result = NULL;
    if (!opaque)
        return err_no_memory(err);
    if (!scratch_image(&v->scratch, d->size, &fd, err)) {
        json_decref(opaque);
        return false;
    }
    if (!qmp_call_fd(v->q, "add-fd", opaque, fd, &result, err))
        return false;
    const json_t *id = json_object_get(result, "fdset-id");
    json_int_t fdset = json_is_integer(id) ? json_integer_value(id) : -1;
    json_decref(result);
    bool ok = add_scratch_node(v, d, fdset, err);
    Err ignored = ERR_INIT; // the node has its own by now; what stays is swept at the end
    (void)!sweep_call(v->q, "remove-fd", json_pack("{s:I}", "fdset-id", fdset), &ignored);
    return ok || err_context(err, "disk %s", d->key);
}

static bool prepare_disks(QemuSource *v, Err *err)
{
    for (size_t i = 0; i < v->s.disks_len; i++) {
        QemuDisk *d = &v->disks[i];
        if (!attach_scratch(v, d, err))
            return false;
        // Without its witness the line cannot be followed next time: slower, and never wrong.
        Err ignored = ERR_INIT;
        if (!d->read_only && !d->line.tracked && !d->continues && !witness_add(v, d, d->may_persist, &ignored) &&
            ignored.code == ERR_CANCELLED) {
            *err = ignored;
            return false;
        }
    }
    return true;
}

static bool push_action(json_t *actions, const char *type, json_t *data, Err *err)
{
    json_t *action = data ? json_pack("{s:s, s:o}", "type", type, "data", data) : NULL;
    return (action && json_array_append_new(actions, action) == 0) || err_no_memory(err);
}

// The instant of the backup, for all disks: from here the new bitmaps record, and the old data is kept.
static bool transaction(QemuSource *v, bool persistent, Err *err)
{
    json_t *actions = json_array();
    bool ok = actions || err_no_memory(err);
    for (size_t i = 0; ok && i < v->s.disks_len; i++) {
        const QemuDisk *d = &v->disks[i];
        char last[BITMAPS_NAME] = "";
        const bool records = d->line.tracked || d->continues;
        if (records)
            bitmaps_name(&v->owner, d->line.uuid, d->line.bitmaps[d->line.len - 1], last);
        ok = d->read_only ||
            push_action(actions, "block-dirty-bitmap-add",
                        json_pack("{s:s, s:s, s:i, s:b}", "node", d->node, "name", d->name, "granularity",
                                  BITMAPS_GRANULARITY, "persistent", persistent && d->may_persist),
                        err);
        if (ok && records)
            ok = push_action(actions, "block-dirty-bitmap-disable",
                             json_pack("{s:s, s:s}", "node", d->node, "name", last), err);
        ok = ok &&
            push_action(actions, "blockdev-backup",
                        json_pack("{s:s, s:s, s:s, s:s}", "job-id", d->tag, "device", d->node, "target", d->tag, "sync",
                                  "none"),
                        err);
    }
    if (!ok) {
        json_decref(actions);
        return false;
    }
    return sweep_call(v->q, "transaction", json_pack("{s:o}", "actions", actions), err);
}

// A guest that migrates: another QEMU has its disks, and this one has let go of them. They would be taken back by an
// export, and written to when bitmaps are stored (seen).
static bool has_guest(QemuSource *v, bool *ret_running, Err *err)
{
    static const char *const elsewhere[] = {"inmigrate", "finish-migrate", "postmigrate"};
    json_t *status = NULL;
    if (!qmp_call(v->q, "query-status", NULL, &status, err))
        return false;
    const char *state = json_string_value(json_object_get(status, "status"));
    *ret_running = json_is_true(json_object_get(status, "running"));
    for (size_t i = 0; state && i < ARRAY_LEN(elsewhere); i++)
        if (str_eq(state, elsewhere[i]))
            (void)err_set(err, ERR_BUSY,
                          "the guest migrates, or has migrated (QEMU says %s), so that its disks are another QEMU's; "
                          "HINT: back it up where it runs, or when this QEMU has it again",
                          elsewhere[i]);
    json_decref(status);
    return err->code == ERR_NONE;
}

static bool freeze_instant(QemuSource *v, Err *err)
{
    bool running;
    Freeze f;
    if (!has_guest(v, &running, err) || !freeze_begin(&v->spec, running, &v->guard, v->req->cancel, &f, err))
        return false;
    Err first = ERR_INIT;
    bool ok = transaction(v, true, &first);
    // A disk may refuse to store bitmaps for reasons of its own: then they live as long as QEMU does.
    if (!ok && first.code == ERR_PROTOCOL) {
        Err second = ERR_INIT;
        ok = transaction(v, false, &second);
    }
    freeze_end(&f, &v->guard);
    v->stuck = f.stuck;
    if (!ok) {
        *err = first;
        return false;
    }
    // From here on no migration can end, since what copies the old data needs to write.
    if (!has_guest(v, &running, err))
        return false;
    v->s.consistency = f.frozen ? "application" : "crash";
    return !f.why[0] || mem_replace(&v->s.consistency_detail, f.why, err);
}

// The line's bitmaps from that one on, brought together where an export can show them.
static bool merge(QemuSource *v, const QemuDisk *d, size_t first, const char *target, Err *err)
{
    json_t *names = json_array();
    bool ok = names || err_no_memory(err);
    for (size_t i = first; ok && i < d->line.len; i++) {
        char name[BITMAPS_NAME];
        bitmaps_name(&v->owner, d->line.uuid, d->line.bitmaps[i], name);
        ok = json_array_append_new(names, json_string(name)) == 0 || err_no_memory(err);
    }
    ok = ok &&
        sweep_call(v->q, "block-dirty-bitmap-add",
                   json_pack("{s:s, s:s, s:i, s:b}", "node", d->node, "name", target, "granularity",
                             BITMAPS_GRANULARITY, "disabled", 1),
                   err);
    if (!ok) {
        json_decref(names);
        return false;
    }
    return sweep_call(v->q, "block-dirty-bitmap-merge",
                      json_pack("{s:s, s:s, s:o}", "node", d->node, "target", target, "bitmaps", names), err);
}

static bool export_disk(QemuSource *v, QemuDisk *d, Err *err)
{
    Err why = ERR_INIT;
    Err ignored = ERR_INIT; // then it starts over
    if (d->resumes && !merge(v, d, d->since, v->since, &ignored))
        d->resumes = false;
    if (d->line.tracked && !merge(v, d, 0, v->temporary, &why)) {
        d->line.tracked = false;
        (void)snprintf(d->line.lost, sizeof(d->line.lost), "%.*s", BITMAPS_WHY - 1, why.details);
    }
    json_t *bitmaps = json_array();
    if (d->line.tracked)
        (void)json_array_append_new(bitmaps, json_string(v->temporary)); // not there: the end is refused later
    if (d->resumes)
        (void)json_array_append_new(bitmaps, json_string(v->since)); // the same
    return sweep_call(v->q, "block-export-add",
                      json_pack("{s:s, s:s, s:s, s:s, s:b, s:o}", "type", "nbd", "id", d->tag, "node-name", d->tag,
                                "name", d->tag, "writable", 0, "bitmaps", bitmaps),
                      err) ||
        err_context(err, "disk %s", d->key);
}

static uint64_t dirty_bytes(const QemuSource *v, const QemuDisk *d, const BitmapVec *bitmaps)
{
    for (size_t i = 0; i < bitmaps->len; i++)
        if (str_eq(bitmaps->items[i].node, d->node) && str_eq(bitmaps->items[i].name, v->temporary))
            return MIN(bitmaps->items[i].count, d->size);
    return d->size;
}

static bool describe(QemuSource *v, size_t i, const BitmapVec *bitmaps, Err *err)
{
    QemuDisk *d = &v->disks[i];
    SourceDisk *out = &v->s.disks[i];
    char id[CHANGEID_MINTED];
    // Resized between the first look and the instant? Then the bitmaps lack what came or went.
    bool whole = bitmaps_witness(bitmaps, d->node, d->line.uuid);
    d->resumes = d->resumes && whole;
    if (d->line.tracked && !whole) {
        d->line.tracked = false;
        (void)snprintf(d->line.lost, sizeof(d->line.lost), "the disk may have been resized in between");
    }
    out->size = d->size;
    out->tracking = d->read_only ? "none" : "bitmap";
    out->allocated_bytes = d->allocated;
    out->estimated_bytes = d->line.tracked ? dirty_bytes(v, d, bitmaps) : d->allocated;
    out->label = mem_printf(err, "%s: %.*s", d->key, LABEL_MAX, d->filename);
    // Cut within a character, or JSON instead of a name: the key says as much.
    if (out->label && (!str_is_utf8(out->label, strlen(out->label)) || str_starts(d->filename, "json:")) &&
        !mem_replace(&out->label, d->key, err))
        return false;
    out->resumes = d->resumes;
    return out->label && changeid_mint(d->line.uuid, d->line.next, id, err) && mem_replace(&out->change_id, id, err) &&
        mem_replace(&out->token, d->read_only ? NULL : id, err) && mem_replace(&out->key, d->key, err) &&
        mem_replace(&out->backing_identity, d->qdev, err) &&
        mem_replace(&out->base_change_id, d->line.tracked ? d->parent_change_id : NULL, err) &&
        mem_replace(&out->lost, d->line.lost[0] ? d->line.lost : NULL, err);
}

static bool describe_all(QemuSource *v, Err *err)
{
    json_t *nodes = NULL;
    BitmapVec bitmaps = {0};
    bool ok = sweep_query_nodes(v->q, &nodes, err) && bitmaps_collect(nodes, &v->owner, &bitmaps, err);
    for (size_t i = 0; ok && i < v->s.disks_len; i++)
        ok = describe(v, i, &bitmaps, err);
    bitmap_vec_clear(&bitmaps);
    json_decref(nodes);
    return ok;
}

bool view_open(QemuSource *v, const GuestDiskVec *disks, const BitmapVec *bitmaps, Err *err)
{
    bool running;
    if (!has_guest(v, &running, err) || !take_disks(v, disks, err) || !resolve_lines(v, bitmaps, err) ||
        !check_space(v, err))
        return false;
    drop_stale(v, bitmaps);
    if (!start_guard(v, err) || !start_server(v, err) || !prepare_disks(v, err) || !freeze_instant(v, err))
        return false;
    for (size_t i = 0; i < v->s.disks_len; i++)
        if (!export_disk(v, &v->disks[i], err))
            return false;
    return describe_all(v, err);
}

bool view_sweep_earlier(QemuSource *v, Err *err)
{
    char temporaries[BITMAPS_NAME];
    bitmaps_temporary(&v->owner, "", temporaries);
    SweepSpec spec = {
        .prefix = v->vm,
        .bitmap_prefix = temporaries,
        .server = &v->scratch,
    };
    return sweep(v->q, &spec, err) || err_context(err, "clearing away what an earlier backup left behind");
}

bool view_close(QemuSource *v, Err *err)
{
    SweepSpec spec = {
        .prefix = v->run,
        .bitmap_prefix = v->temporary,
        .server = v->listens && scratch_is_same(&v->scratch) ? &v->scratch : NULL,
    };
    return sweep(v->q, &spec, err);
}

static bool is_needed(const QemuSource *v, const Bitmap *b)
{
    for (size_t i = 0; i < v->s.disks_len; i++) {
        const Line *l = &v->disks[i].line;
        if (str_eq(b->line, l->uuid) && (b->sequence == l->next || b->sequence == 0))
            return true;
    }
    return false;
}

bool view_forget_older(QemuSource *v, Err *err)
{
    json_t *nodes = NULL;
    BitmapVec bitmaps = {0};
    bool ok = sweep_query_nodes(v->q, &nodes, err) && bitmaps_collect(nodes, &v->owner, &bitmaps, err);
    for (size_t i = 0; ok && i < bitmaps.len; i++) {
        const Bitmap *b = &bitmaps.items[i];
        Err ignored = ERR_INIT; // on a read-only backing file it stays, and never counts for anything again
        if (!is_needed(v, b))
            (void)!sweep_call(v->q, "block-dirty-bitmap-remove",
                              json_pack("{s:s, s:s}", "node", b->node, "name", b->name), &ignored);
    }
    bitmap_vec_clear(&bitmaps);
    json_decref(nodes);
    return ok;
}
