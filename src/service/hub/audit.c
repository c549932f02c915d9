// What a client's audit of a tracked disk found. docs/internals/audit.md.
#include "base/log.h"
#include "service/hub/internal.h"

static AuditFigures figures_of(const StoreDisk *d)
{
    return (AuditFigures){d->unchanged_blocks, d->checked_blocks, d->wrong_blocks};
}

static const StoreDisk *disk_by_key(const StoreDisk *disks, size_t n, const char *key)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(disks[i].disk_key, key) == 0)
            return &disks[i];
    return NULL;
}

// Does this point's disk rest on tracking that nobody has looked at? Then it is doubted, and its parent is next:
// *ret_next (new memory), NULL: there is none.
static bool doubt_point(Hub *h, const char *id, const char *disk_key, json_t *ids, char **ret_next, Err *err)
{
    StoreDisk *disks = NULL;
    size_t len = 0;
    *ret_next = NULL;
    if (!store_disk_list(h->store, id, &disks, &len, err))
        return false;
    const StoreDisk *d = disk_by_key(disks, len, disk_key); // none: it was deleted, or never held the disk
    AuditFigures figures = d ? figures_of(d) : (AuditFigures){0};
    bool ok = true;
    if (d && strcmp(d->mode, disk_mode_name(DISK_TRACKED)) == 0 && !audit_is_clean(&figures)) {
        log_error("a point is suspect: a later audit found change tracking wrong", LOG_STR("job", id),
                  LOG_STR("disk", disk_key));
        ok = store_backup_set_doubted(h->store, id, err) && (!ids || codec_json_push(ids, json_string(id), err)) &&
            (!d->parent_backup_id || (*ret_next = mem_strdup(d->parent_backup_id, err)));
    }
    STORE_LIST_FREE(disks, len, store_disk_clear);
    return ok;
}

bool hub_doubt(Hub *h, const char *first_id, const char *disk_key, json_t *ids, Err *err)
{
    cleanup_free char *id = mem_strdup(first_id, err);
    if (!id)
        return false;
    while (id) {
        char *next;
        if (!doubt_point(h, id, disk_key, ids, &next, err))
            return false;
        free(id);
        id = next;
    }
    return true;
}

// A failed audit makes the disk a comparison, which the client then sends.
static bool note_failed(Hub *h, const WorkAudit *a, StoreDisk *d, json_t *ids, Err *err)
{
    const char *reason = chain_reason_name(CHAIN_AUDIT_FAILED);
    cleanup_free char *text = mem_printf(
        err, "%llu of %llu blocks that change tracking calls unchanged are not (one at offset %llu)",
        (unsigned long long)a->figures.wrong, (unsigned long long)a->figures.checked, (unsigned long long)a->wrong_at);
    return text && mem_replace(&d->mode, disk_mode_name(DISK_COMPARE), err) && mem_replace(&d->reason, reason, err) &&
        mem_replace(&d->reason_text, text, err) &&
        store_backup_give_reason(h->store, d->backup_id, reason, text, err) &&
        hub_doubt(h, d->parent_backup_id, d->disk_key, ids, err);
}

static bool note(Hub *h, const char *id, const WorkAudit *a, json_t *ids, Err *err)
{
    StoreBackup cleanup_backup b = {0};
    StoreDisk *disks = NULL, *d = NULL;
    size_t len = 0;
    if (!store_backup_get(h->store, id, &b, err) || !store_disk_list(h->store, id, &disks, &len, err))
        return false;
    for (size_t i = 0; i < len; i++)
        if (disks[i].disk_id == a->disk_id)
            d = &disks[i];
    bool ok = true;
    if (strcmp(b.status, "running") != 0)
        ok = err_set(err, ERR_CONFLICT, "backup %s is %s, not running", id, b.status);
    else if (!d)
        ok = err_set(err, ERR_INVALID, "disk %llu is not of this job", (unsigned long long)a->disk_id);
    else if (!d->parent_backup_id || (strcmp(d->mode, disk_mode_name(DISK_TRACKED)) != 0 && d->wrong_blocks == 0))
        ok = err_set(err, ERR_CONFLICT, "disk %s is no tracked one: there is nothing to audit", d->disk_key);
    else if (d->wrong_blocks > 0 && a->figures.wrong == 0) // once found, for good
        ok = err_set(err, ERR_CONFLICT, "the audit of disk %s has failed already", d->disk_key);
    if (ok) {
        d->unchanged_blocks = a->figures.unchanged;
        d->checked_blocks = a->figures.checked;
        d->wrong_blocks = a->figures.wrong;
        if (a->figures.wrong > 0) {
            log_error("ALARM: change tracking is wrong; the disk is compared", LOG_STR("job", id),
                      LOG_STR("disk", d->disk_key), LOG_NUM("wrong_blocks", a->figures.wrong),
                      LOG_NUM("checked_blocks", a->figures.checked), LOG_NUM("wrong_at", a->wrong_at));
            ok = note_failed(h, a, d, ids, err);
        }
        ok = ok && store_disk_set_audit(h->store, d, err);
    }
    STORE_LIST_FREE(disks, len, store_disk_clear);
    return ok;
}

bool hub_job_audit(Hub *h, const char *id, const WorkAudit *a, json_t **ret, Err *err)
{
    Running *r;
    json_t *o = json_object(), *ids = json_array();
    bool ok = ((o && ids) || err_no_memory(err)) && hub_running_lock(h, id, &r, err);
    if (ok) {
        ok = store_begin(h->store, err);
        if (ok && !note(h, id, a, ids, err)) {
            store_rollback(h->store);
            ok = false;
        }
        ok = ok && store_commit(h->store, err);
        hub_running_unlock(h, r);
    }
    ok = ok && codec_json_set_text(o, "backup_id", id, err) &&
        codec_json_set_text(o, "mode", disk_mode_name(a->figures.wrong > 0 ? DISK_COMPARE : DISK_TRACKED), err) &&
        codec_json_set(o, "suspect", json_incref(ids), err);
    json_decref(ids);
    if (!ok) {
        json_decref(o);
        return false;
    }
    *ret = o;
    return true;
}
