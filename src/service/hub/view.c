#include "base/clock.h"
#include "base/file.h"
#include "service/hub/internal.h"

#include <stdio.h>

bool hub_set_now(json_t *object, const char *key, Err *err)
{
    return codec_json_set_time(object, key, clock_utc_us(), err);
}

bool hub_view_strings(const char *json_list, json_t **ret, Err *err)
{
    if (!json_list) {
        *ret = json_array();
        return *ret != NULL || err_no_memory(err);
    }
    return codec_json_parse(json_list, strlen(json_list), 1u << 20, ret, err);
}

static bool view_audit(const StoreDisk *d, json_t *disk, Err *err)
{
    AuditFigures figures = {d->audited, d->unchanged_blocks, d->checked_blocks, d->wrong_blocks};
    json_t *o = figures.made ? json_object() : json_null();
    if (!o)
        return err_no_memory(err);
    if (json_is_object(o) &&
        (!codec_json_set_u64(o, "unchanged_blocks", figures.unchanged, err) ||
         !codec_json_set_u64(o, "checked_blocks", figures.checked, err) ||
         !codec_json_set_u64(o, "wrong_blocks", figures.wrong, err) ||
         !codec_json_set_u64(o, "at_most_ppm", audit_at_most_ppm(&figures), err))) {
        json_decref(o);
        return false;
    }
    return codec_json_set(disk, "audit", o, err);
}

static bool view_disk(const StoreDisk *d, const StoreBackup *b, const StoreRepository *repository, json_t **ret,
                      Err *err)
{
    cleanup_free char *image = NULL;
    if (d->image && b->context &&
        !(image = mem_printf(err, "%s/%s/disk-%llu/%s", repository->path, b->context, (unsigned long long)d->disk_no,
                             d->image)))
        return false;
    bool done = strcmp(b->status, "completed") == 0;
    json_t *o = json_object();
    bool ok = (o != NULL || err_no_memory(err)) && codec_json_set_u64(o, "disk_id", d->disk_id, err) &&
        codec_json_set_text(o, "disk_key", d->disk_key, err) && codec_json_set_u64(o, "disk_no", d->disk_no, err) &&
        codec_json_set_text(o, "label", d->label ? d->label : "", err) && codec_json_set_u64(o, "size", d->size, err) &&
        codec_json_set_text(o, "mode", d->mode, err) &&
        codec_json_set_text(o, "reason", d->reason ? d->reason : "", err) &&
        codec_json_set_text(o, "reason_text", d->reason_text ? d->reason_text : "", err) &&
        codec_json_set_text(o, "change_id", d->change_id, err) &&
        codec_json_set_text(o, "tracking", d->tracking ? d->tracking : "none", err) &&
        codec_json_set_text(o, "parent_backup_id", d->parent_backup_id, err) &&
        codec_json_set_u64(o, "chain_length", d->chain_length, err) &&
        codec_json_set_u64(o, "transferred_bytes", d->transferred_bytes, err) &&
        codec_json_set_u64(o, "changed_bytes", d->changed_bytes, err) &&
        codec_json_set_u64(o, "stored_bytes", d->stored_bytes, err) &&
        codec_json_set_u64(o, "done_bytes", d->done_bytes, err) &&
        codec_json_set_u64(o, "kept_bytes", d->kept_bytes, err) && codec_json_set_u64(o, "areas", d->areas, err) &&
        codec_json_set_u64(o, "area_bytes", d->area_bytes, err) &&
        codec_json_set_u64(o, "read_bytes", d->read_bytes, err) && view_audit(d, o, err) &&
        codec_json_set_text(o, "image", done ? image : NULL, err) && codec_json_set_text(o, "root", d->root, err);
    if (!ok) {
        json_decref(o);
        return false;
    }
    *ret = o;
    return true;
}

static bool view_disks(Hub *h, const StoreBackup *b, json_t *o, Err *err)
{
    StoreRepository cleanup_repository repository = {0};
    StoreDisk *disks = NULL;
    size_t len = 0;
    if (!store_repository_get(h->store, b->repository_id, &repository, err) ||
        !store_disk_list(h->store, b->id, &disks, &len, err))
        return false;
    json_t *list = json_array();
    bool ok = list != NULL || err_no_memory(err);
    for (size_t i = 0; ok && i < len; i++) {
        json_t *disk = NULL;
        ok = view_disk(&disks[i], b, &repository, &disk, err) && codec_json_push(list, disk, err);
    }
    STORE_LIST_FREE(disks, len, store_disk_clear);
    if (!ok) {
        json_decref(list);
        return false;
    }
    return codec_json_set(o, "disks", list, err);
}

static bool view_state(const StoreBackup *b, json_t *o, Err *err)
{
    return codec_json_set_bool(o, "partial", b->partial, err) && codec_json_set_bool(o, "suspect", b->suspect, err) &&
        codec_json_set_text(o, "suspect_because",
                            b->damaged       ? "damage"
                                : b->doubted ? "audit"
                                : b->suspect ? "unreadable"
                                             : NULL,
                            err) &&
        codec_json_set_bool(o, "deleting", b->deleting, err) &&
        codec_json_set_time(o, "verified_at", b->verified_us, err) &&
        codec_json_set_text(o, "verify_result", b->verify_result, err) &&
        codec_json_set_text(o, "consistency", b->consistency, err) &&
        codec_json_set_text(o, "consistency_detail", b->consistency_detail, err) &&
        codec_json_set_bool(o, "cancel_requested", b->cancel_requested, err) &&
        codec_json_set_u64(o, "bytes_transferred", b->bytes_transferred, err) &&
        codec_json_set_u64(o, "stored_bytes", b->stored_bytes, err) &&
        codec_json_set_u64(o, "total_bytes", b->total_bytes, err) &&
        codec_json_set_u64(o, "done_bytes", b->done_bytes, err) && codec_json_set_text(o, "error", b->error, err) &&
        codec_json_set_text(o, "details", b->details, err) &&
        codec_json_set_time(o, "created_at", b->created_us, err) &&
        codec_json_set_time(o, "started_at", b->started_us, err) &&
        codec_json_set_time(o, "completed_at", b->completed_us, err);
}

bool hub_view_backup(Hub *h, const StoreBackup *b, uint64_t dependents, bool with_disks, json_t **ret, Err *err)
{
    char repository[24];
    (void)snprintf(repository, sizeof(repository), "%lld", (long long)b->repository_id);

    json_t *o = json_object(), *left_out = NULL;
    bool ok = (o != NULL || err_no_memory(err)) && codec_json_set_text(o, "backup_id", b->id, err) &&
        codec_json_set_text(o, "vm_id", b->vm_id, err) && codec_json_set_text(o, "vm_name", b->vm_name, err) &&
        codec_json_set_text(o, "repository_id", repository, err) &&
        codec_json_set_text(o, "backup_type", b->backup_type, err) &&
        codec_json_set_text(o, "requested_type", b->requested_type, err) &&
        codec_json_set_text(o, "status", b->status, err) &&
        codec_json_set_text(o, "phase", b->phase ? b->phase : b->status, err) &&
        codec_json_set_text(o, "change_id", b->change_id, err) &&
        codec_json_set_text(o, "parent_id", b->parent_id, err) && codec_json_set_u64(o, "sequence", b->sequence, err) &&
        codec_json_set_text(o, "resumed_from", b->resumed_from, err) &&
        codec_json_set_bool(o, "resumable", b->resumable && b->attempt, err) &&
        codec_json_set_text(o, "reason", b->reason ? b->reason : "", err) &&
        codec_json_set_text(o, "reason_text", b->reason_text ? b->reason_text : "", err) &&
        hub_view_strings(b->left_out, &left_out, err) && codec_json_set(o, "left_out", left_out, err) &&
        view_state(b, o, err) && codec_json_set_u64(o, "dependents", dependents, err) &&
        (!with_disks || view_disks(h, b, o, err));
    if (!ok) {
        json_decref(o);
        return false;
    }
    *ret = o;
    return true;
}

bool hub_view_backup_id(Hub *h, const char *id, json_t **ret, Err *err)
{
    StoreBackup cleanup_backup b = {0};
    uint64_t dependents;
    return store_backup_get(h->store, id, &b, err) &&
        store_backup_count_dependents(h->store, &b, 1, &dependents, err) &&
        hub_view_backup(h, &b, dependents, true, ret, err);
}
