// What happens between backups: to the guests, to their bitmaps, to the repository, to the hub.
#include "steps.h"

#include "check.h"
#include "world.h"

#include <inttypes.h>
#include <stdio.h>

static GuestDisk *any_disk(History *h, Vm *vm)
{
    return &vm->disks[rng_below(&h->rng, vm->len)];
}

// Sizes that matter: odd ones, whole sectors, clusters and granules and one byte beside them, more than one group.
static uint64_t any_size(History *h)
{
    static const uint64_t grains[] = {1, 1, GUEST_SECTOR, 4096, 65536};
    bool small_clusters = h->site->repo.info.cluster_size == 4096;
    uint64_t most = rng_chance(&h->rng, 75) ? 300000
        : rng_chance(&h->rng, 70)           ? 1000000
        : small_clusters                    ? 5000000
                                            : 3000000;
    uint64_t size = rng_between(&h->rng, 1, most);
    size = align_up(size, grains[rng_below(&h->rng, ARRAY_LEN(grains))]);
    if (rng_chance(&h->rng, 10))
        size++;
    else if (rng_chance(&h->rng, 10) && size > 1)
        size--;
    return size;
}

// ---- guests

static bool add_disk(History *h, Vm *vm, Err *err)
{
    static const uint32_t granularities[] = {65536, 65536, 65536, 65536, 65536, 65536, 512, 4096, 131072};
    char key[GUEST_KEY];
    bool taken[HISTORY_KEYS] = {false};
    for (size_t i = 0; i < vm->len; i++)
        taken[vm->disks[i].id - HISTORY_DISK_ID] = true;
    uint64_t n = rng_below(&h->rng, HISTORY_KEYS); // a key may come back
    if (taken[n] || vm->len == HISTORY_DISKS)
        return true;
    (void)snprintf(key, sizeof key, "disk-%" PRIu64, n);
    uint64_t size = any_size(h);
    uint32_t granularity = granularities[rng_below(&h->rng, ARRAY_LEN(granularities))];
    history_note(h, "VM %zu gets %s with %" PRIu64 " bytes", vm->index, key, size);
    GuestDisk *d = &vm->disks[vm->len++];
    return guest_init(d, key, HISTORY_DISK_ID + n, size, rng_chance(&h->rng, 88), granularity, h->cluster_size, err);
}

static void remove_disk(History *h, Vm *vm)
{
    GuestDisk *d = any_disk(h, vm);
    history_note(h, "VM %zu loses %s", vm->index, d->key);
    guest_clear(d);
    size_t i = (size_t)(d - vm->disks);
    vm->len--;
    memmove(&vm->disks[i], &vm->disks[i + 1], (vm->len - i) * sizeof *d);
}

static bool resize(History *h, Vm *vm, Err *err)
{
    GuestDisk *d = any_disk(h, vm);
    uint64_t before = d->size, size = any_size(h);
    bool little = rng_chance(&h->rng, 50), back = rng_chance(&h->rng, little ? 85 : 40);
    if (little)
        size = before - rng_below(&h->rng, before > 700 ? 700 : before);
    history_note(h, "%s is resized from %" PRIu64 " to %" PRIu64 "%s", d->key, before, size, back ? " and back" : "");
    if (!guest_resize(d, size, err))
        return false;
    if (rng_chance(&h->rng, 40))
        guest_burst(d, &h->rng);
    return !back || guest_resize(d, before, err);
}

static bool another_image(History *h, Vm *vm, Err *err)
{
    GuestDisk *d = any_disk(h, vm);
    const Point *p = h->site->len > 0 ? &h->site->points[rng_below(&h->rng, h->site->len)] : NULL;
    if (!p)
        return true;
    const Reference *ref = &p->disks[rng_below(&h->rng, p->len)];
    history_note(h, "%s is replaced by the bytes of %s in %s", d->key, ref->key, p->id);
    return guest_replace(d, ref->bytes, ref->size, err);
}

static bool guest_event(History *h, Vm *vm, Err *err)
{
    GuestDisk *d = any_disk(h, vm);
    uint64_t kind = rng_below(&h->rng, 100);
    if (kind < 32)
        return resize(h, vm, err);
    if (kind < 37)
        return another_image(h, vm, err);
    if (kind < 47) {
        bool persistent = rng_chance(&h->rng, 70);
        history_note(h, "the guest of VM %zu crashes", vm->index);
        for (size_t i = 0; i < vm->len; i++)
            tracker_crash(&vm->disks[i].tracker, persistent);
        return true;
    }
    if (kind < 60) {
        history_note(h, "%s: %s", d->key, tracker_tamper(&d->tracker, &h->rng));
        return true;
    }
    if (kind < 70) {
        history_note(h, "%s: external snapshot", d->key);
        return tracker_snapshot(&d->tracker, err);
    }
    if (kind < 82) {
        history_note(h, "%s: the snapshot is committed", d->key);
        tracker_commit(&d->tracker);
        return true;
    }
    if (kind < 93)
        return add_disk(h, vm, err);
    if (vm->len > 1)
        remove_disk(h, vm);
    return true;
}

// ---- the repository

static bool move(History *h, Err *err)
{
    char *path = mem_printf(err, "%s/repository%u", h->spec->folder, h->moves++);
    if (!path)
        return false;
    history_note(h, "the repository moves to another folder");
    if (rename(h->site->path, path) != 0) {
        free(path);
        return err_set(err, ERR_IO, "rename");
    }
    free(h->site->path);
    h->site->path = path;
    h->spec->stats->moves++;
    return history_reopen(h, err);
}

// What a database that is rebuilt from the commit records knows of a VM.
static bool rebuild_database(History *h, const RepoScan *scan, const Vm *vm, Err *err)
{
    VmAt *at = &h->site->vms[vm->index];
    const char *context = NULL;
    free(mem_take(at->context));
    *at = (VmAt){0};
    for (size_t i = 0; i < scan->len; i++) {
        const Record *r = &scan->records[i];
        if (!str_eq(r->vm_id, vm->id))
            continue;
        at->sequence = MAX(at->sequence, r->sequence);
        context = r->context;
        for (size_t d = 0; d < r->disks_len; d++)
            at->numbers[r->disks[d].disk_id - HISTORY_DISK_ID] = r->disks[d].disk_no + 1;
        history_find(h, r->backup_id)->suspect = false;
    }
    return !context || (at->context = mem_strdup(context, err)) != NULL;
}

static bool restart_hub(History *h, Err *err)
{
    RepoScan after;
    bool lost = rng_chance(&h->rng, 25), ok = true;
    history_note(h, "the hub starts anew%s", lost ? ", with an empty database" : "");
    if (!history_recover(h, NULL, &after, err))
        return false;
    for (size_t i = 0; lost && ok && i < h->vms_len; i++)
        ok = rebuild_database(h, &after, &h->vms[i], err);
    repo_scan_clear(&after);
    return ok;
}

static bool has_child(const RepoScan *scan, const char *id)
{
    for (size_t i = 0; i < scan->len; i++)
        for (size_t d = 0; d < scan->records[i].disks_len; d++) {
            const char *parent = scan->records[i].disks[d].parent_backup_id;
            if (parent && str_eq(parent, id))
                return true;
        }
    return false;
}

// The hub died while it deleted. Then the point is as it was, or gone for good.
static bool after_death(History *h, const Record *rec, const char *stem, bool *ret_gone, Err *err)
{
    RepoScan after;
    if (rng_chance(&h->rng, 30)) { // the same call again
        *ret_gone = true;
        return history_reopen(h, err) && repo_delete(&h->site->repo, rec, stem, err);
    }
    if (!history_recover(h, NULL, &after, err))
        return false;
    *ret_gone = !history_find_record(&after, rec->backup_id);
    repo_scan_clear(&after);
    return true;
}

static bool delete_point(History *h, const RepoScan *scan, size_t i, Err *err)
{
    const Record *rec = &scan->records[i];
    bool refused = has_child(scan, rec->backup_id), killed = rng_chance(&h->rng, 30), gone;
    Err why = ERR_INIT;
    history_note(h, "delete %s%s%s", rec->backup_id, refused ? ", on which others stand" : "",
                 killed ? ", killed" : "");
    if (killed)
        world_kill_at((unsigned)rng_below(&h->rng, 16));
    bool ok = gone = repo_delete(&h->site->repo, rec, scan->stems[i], &why);
    bool died = world_is_dead();
    world_revive();
    if (refused)
        return (!ok && (why.code == ERR_CONFLICT || died)) ||
            history_fail(err, "%s was deleted, and others stand on it: %s", rec->backup_id, why.details);
    if (!ok && !died)
        return err_set(err, why.code, "deleting %s: %s", rec->backup_id, why.details);
    if (died && !after_death(h, rec, scan->stems[i], &gone, err))
        return err_context(err, "after a death while deleting %s", rec->backup_id);
    if (ok && !gone)
        return history_fail(err, "%s was deleted, and is listed again", rec->backup_id);
    if (gone)
        history_forget(h, history_find(h, rec->backup_id));
    h->spec->stats->deletes++;
    return true;
}

static bool delete_any(History *h, Err *err)
{
    RepoScan scan;
    if (h->site->len == 0)
        return true;
    if (!check_all(h, false, err) || !repo_scan(&h->site->repo, &scan, err))
        return false;
    size_t i = (size_t)rng_below(&h->rng, scan.len);
    const Point *newest = history_newest(h, (size_t)rng_below(&h->rng, h->vms_len));
    if (newest && rng_chance(&h->rng, 50)) // a leaf
        for (i = 0; !str_eq(scan.records[i].backup_id, newest->id);)
            i++;
    bool ok = delete_point(h, &scan, i, err);
    repo_scan_clear(&scan);
    return ok && check_all(h, false, err);
}

static bool repository_event(History *h, Err *err)
{
    uint64_t kind = rng_below(&h->rng, 100);
    if (kind < 30)
        return delete_any(h, err);
    if (kind < 42)
        return move(h, err);
    if (kind < 55)
        return restart_hub(h, err);
    if (kind < 60 && h->site->len > 0) {
        Point *p = history_newest(h, h->site->points[rng_below(&h->rng, h->site->len)].vm);
        history_note(h, "%s becomes suspect", p->id);
        p->suspect = true;
        return true;
    }
    return steps_spoil(h, err);
}

bool steps_any(History *h, Err *err)
{
    Vm *vm = &h->vms[rng_below(&h->rng, h->vms_len)];
    if (vm->len == 0 || (vm->len < HISTORY_DISKS && h->site->vms[vm->index].sequence == 0 && rng_chance(&h->rng, 30)))
        return add_disk(h, vm, err);
    uint64_t kind = rng_below(&h->rng, 100);
    if (kind < 55) {
        GuestDisk *d = any_disk(h, vm);
        guest_burst(d, &h->rng);
        history_note(h, "the guest writes to %s", d->key);
        return true;
    }
    return kind < 75 ? guest_event(h, vm, err) : repository_event(h, err);
}
