// What a client's audit of a tracked disk found. docs/internals/audit.md.
#include "base/log.h"
#include "service/hub/internal.h"

#define CHAIN_POINTS_MAX 1000

static StoreDisk *disk_by_key(StoreDisk *disks, size_t n, const char *key)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(disks[i].disk_key, key) == 0)
            return &disks[i];
    return NULL;
}

static bool is_tracked(const StoreDisk *d)
{
    return strcmp(d->mode, disk_mode_name(DISK_TRACKED)) == 0;
}

// Marked once: a scan comes here each time.
static bool doubt_point(Hub *h, const StoreBackup *b, const char *disk_key, json_t *ids, Err *err)
{
    if (ids && !codec_json_push(ids, json_string(b->id), err))
        return false;
    if (b->doubted)
        return true;
    log_error("a point is suspect: a later audit found change tracking wrong", LOG_STR("job", b->id),
              LOG_STR("disk", disk_key));
    return store_backup_set_doubted(h->store, b->id, err);
}

static bool is_full(const StoreDisk *d)
{
    return strcmp(d->mode, disk_mode_name(DISK_FULL)) == 0;
}

// A full that left out what the hypervisor calls not in use, and looked at some of it.
static bool left_something_out(const StoreDisk *d)
{
    return !is_tracked(d) && d->audited && d->wrong_blocks == 0 && d->checked_blocks < d->unchanged_blocks;
}

typedef bool (*OnPoint)(void *ctx, const StoreBackup *b, const StoreDisk *d, char **ret_next, Err *err);

// The points of one disk's chain, from this one to its full, as long as there is a next one (new memory).
static bool walk(Hub *h, int64_t repository_id, const char *first_id, const char *disk_key, OnPoint on_point, void *ctx,
                 Err *err)
{
    cleanup_free char *id = mem_strdup(first_id, err);
    bool ok = id != NULL;
    for (int i = 0; ok && id && i < CHAIN_POINTS_MAX; i++) { // records that lead in a circle lead nowhere
        StoreBackup cleanup_backup b = {0};
        StoreDisk *disks = NULL;
        size_t len = 0;
        char *next = NULL;
        bool exists; // a parent that is not in the catalogue says nothing
        ok = store_backup_exists(h->store, id, &exists, err) &&
            (!exists || (store_backup_get(h->store, id, &b, err) && store_disk_list(h->store, id, &disks, &len, err)));
        const StoreDisk *d = ok ? disk_by_key(disks, len, disk_key) : NULL;
        if (d && b.repository_id == repository_id)
            ok = on_point(ctx, &b, d, &next, err);
        STORE_LIST_FREE(disks, len, store_disk_clear);
        free(id);
        id = next;
    }
    return ok;
}

typedef struct Doubt {
    Hub *hub;
    const char *disk_key;
    json_t *ids;
    bool shows;   // the chain's full left something out: what was not written since shows that, in each point on it
    char *proven; // but not in those from here up: the lowest point that was read and sent whole; NULL: there is none
    bool below;   // we are below it
    bool over;    // a clean audit: tracking told the truth up to there
} Doubt;

static bool next_of(const StoreDisk *d, char **ret, Err *err)
{
    return !d->parent_backup_id || (*ret = mem_strdup(d->parent_backup_id, err));
}

static bool look_ahead(void *ctx, const StoreBackup *b, const StoreDisk *d, char **ret_next, Err *err)
{
    Doubt *doubt = ctx;
    bool whole = strcmp(d->mode, disk_mode_name(DISK_COMPARE)) == 0 && d->kept_bytes == 0;
    doubt->shows = !d->parent_backup_id && left_something_out(d);
    return (!whole || mem_replace(&doubt->proven, b->id, err)) && next_of(d, ret_next, err);
}

// A point that rests on the word of tracking, if only for what it kept of an interrupted backup, is doubted unless its
// own audit was clean: there, and at a full, it ends.
static bool doubt_one(void *ctx, const StoreBackup *b, const StoreDisk *d, char **ret_next, Err *err)
{
    Doubt *doubt = ctx;
    AuditFigures figures = {d->audited, d->unchanged_blocks, d->checked_blocks, d->wrong_blocks};
    bool through = doubt->shows && (doubt->below || !doubt->proven);
    doubt->over = doubt->over || audit_is_clean(&figures);
    bool rests = !doubt->over && (is_tracked(d) || d->kept_bytes > 0 || left_something_out(d));
    if ((through || rests) && !doubt_point(doubt->hub, b, d->disk_key, doubt->ids, err))
        return false;
    doubt->below = doubt->below || (doubt->proven && strcmp(b->id, doubt->proven) == 0);
    return (doubt->over && !doubt->shows) || next_of(d, ret_next, err);
}

bool hub_doubt(Hub *h, int64_t repository_id, const char *first_id, const char *disk_key, json_t *ids, Err *err)
{
    Doubt doubt = {.hub = h, .disk_key = disk_key, .ids = ids};
    bool ok = walk(h, repository_id, first_id, disk_key, look_ahead, &doubt, err) &&
        walk(h, repository_id, first_id, disk_key, doubt_one, &doubt, err);
    free(doubt.proven);
    return ok;
}

// A vCenter that called not in use what has data is not believed again: from the next full on everything is read, until
// somebody says otherwise.
static bool take_the_word_back(Hub *h, const char *vm_id, Err *err)
{
    StoreVm cleanup_vm vm = {0};
    cleanup_json json_t *source = NULL;
    Err gone = ERR_INIT;
    if (!store_vm_find(h->store, vm_id, &vm, &gone)) {
        if (gone.code == ERR_NOT_FOUND) // not registered any more: nothing is backed up by its word
            return true;
        *err = gone;
        return false;
    }
    if (!codec_json_parse(vm.source, strlen(vm.source), 1u << 20, &source, err))
        return false;
    const char *unallocated = json_string_value(json_object_get(source, "unallocated"));
    if (!unallocated || strcmp(unallocated, "zero") != 0)
        return true;
    char *text = NULL;
    if (!codec_json_set_text(source, "unallocated", "read", err) || !codec_json_dump(source, &text, err))
        return false;
    free(vm.source);
    vm.source = text;
    log_error("what the vCenter calls not in use is read from now on", LOG_STR("vm", vm.name));
    return store_vm_update(h->store, &vm, err);
}

// A failed audit makes a tracked disk a comparison, which the client then sends. That the change set since the parent
// is not to be trusted is noted at the parent: should this job fail, the next one must not use it either.
static bool note_failed(Hub *h, const StoreBackup *b, const WorkAudit *a, StoreDisk *d, json_t *ids, Err *err)
{
    bool over = strcmp(b->status, "running") != 0; // it has failed of something else, meanwhile
    const char *reason = chain_reason_name(CHAIN_AUDIT_FAILED);
    cleanup_free char *text = mem_printf(
        err, "%llu of %llu blocks that change tracking calls unchanged are not (one at offset %llu)",
        (unsigned long long)a->figures.wrong, (unsigned long long)a->figures.checked, (unsigned long long)a->wrong_at);
    if (!text || (is_full(d) && !take_the_word_back(h, b->vm_id, err)) ||
        (is_tracked(d) && !over && !mem_replace(&d->mode, disk_mode_name(DISK_COMPARE), err)) ||
        !mem_replace(&d->reason, reason, err) || !mem_replace(&d->reason_text, text, err) ||
        !store_backup_give_reason(h->store, d->backup_id, reason, text, err))
        return false;
    return !d->parent_backup_id ||
        (store_disk_set_refuted(h->store, d->parent_backup_id, d->disk_key, err) &&
         hub_doubt(h, b->repository_id, d->parent_backup_id, d->disk_key, ids, err));
}

static bool check(const StoreBackup *b, const StoreDisk *d, const WorkAudit *a, Err *err)
{
    bool over = strcmp(b->status, "failed") == 0 || strcmp(b->status, "cancelled") == 0;
    // an alarm counts although its job has come to nothing: the next one would use the same change set
    if (strcmp(b->status, "running") != 0 && !(over && a->figures.wrong > 0))
        return err_set(err, ERR_CONFLICT, "backup %s is %s, not running", b->id, b->status);
    if (!d)
        return err_set(err, ERR_INVALID, "disk %llu is not of this job", (unsigned long long)a->disk_id);
    if (a->figures.unchanged > d->size || a->wrong_at >= d->size)
        return err_set(err, ERR_INVALID, "disk %s is not as large as that", d->disk_key);
    if (d->wrong_blocks > 0 && a->figures.wrong == 0) // once found, for good
        return err_set(err, ERR_CONFLICT, "the audit of disk %s has failed already", d->disk_key);
    return true;
}

// *ret_alarm: the VM's name (new memory), where this is the first word of it.
static bool note(Hub *h, const char *id, const WorkAudit *a, const char **ret_mode, char **ret_alarm, json_t *ids,
                 Err *err)
{
    StoreBackup cleanup_backup b = {0};
    StoreDisk *disks = NULL, *d = NULL;
    size_t len = 0;
    DiskMode mode = DISK_FULL;
    if (!store_backup_get(h->store, id, &b, err) || !store_disk_list(h->store, id, &disks, &len, err))
        return false;
    for (size_t i = 0; i < len; i++)
        if (disks[i].disk_id == a->disk_id)
            d = &disks[i];
    bool ok = check(&b, d, a, err);
    if (ok && a->figures.wrong > 0 && d->wrong_blocks == 0)
        ok = (*ret_alarm = mem_strdup(b.vm_name, err)) != NULL;
    if (ok) {
        d->unchanged_blocks = a->figures.unchanged;
        d->checked_blocks = a->figures.checked;
        d->wrong_blocks = a->figures.wrong;
        if (a->figures.wrong > 0) {
            log_error("ALARM: change tracking is wrong; the disk is compared", LOG_STR("job", id),
                      LOG_STR("disk", d->disk_key), LOG_NUM("wrong_blocks", a->figures.wrong),
                      LOG_NUM("checked_blocks", a->figures.checked), LOG_NUM("wrong_at", a->wrong_at));
            ok = note_failed(h, &b, a, d, ids, err);
        }
        ok = ok && store_disk_set_audit(h->store, d, err) && disk_mode_parse(d->mode, &mode, err);
        *ret_mode = disk_mode_name(mode);
    }
    STORE_LIST_FREE(disks, len, store_disk_clear);
    return ok;
}

bool hub_job_audit(Hub *h, const char *id, const WorkAudit *a, json_t **ret, Err *err)
{
    Running *r;
    const char *mode = NULL;
    cleanup_free char *alarm = NULL;
    json_t *o = json_object(), *ids = json_array();
    bool ok = ((o && ids) || err_no_memory(err)) && hub_running_lock(h, id, &r, err);
    if (ok) {
        StoreTurn t = STORE_TURN(h->store);
        while (store_turn(&t, err)) {
            (void)json_array_clear(ids); // cannot fail
            free(mem_take(alarm));
            t.ok = note(h, id, a, &mode, &alarm, ids, err);
        }
        ok = t.ok;
        if (ok && alarm)
            hub_count_alarm(h, alarm);
        hub_running_unlock(h, r);
    }
    ok = ok && codec_json_set_text(o, "backup_id", id, err) && codec_json_set_text(o, "mode", mode, err) &&
        codec_json_set(o, "suspect", json_incref(ids), err);
    json_decref(ids);
    if (!ok) {
        json_decref(o);
        return false;
    }
    *ret = o;
    return true;
}
