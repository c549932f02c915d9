// Deleting points. The checks and the mark are one transaction, as the choice of a parent is: nothing can come to
// depend on a point between the look and the deletion (safety rule 16). The files go outside of it: removing terabytes
// takes its time, and everybody else needs the database meanwhile. Then the rows. docs/internals/jobs.md.
#include "base/file.h"
#include "base/log.h"
#include "service/hub/internal.h"

static bool in_list(const json_t *ids, const char *id)
{
    size_t i;
    json_t *item;
    json_array_foreach(ids, i, item) if (strcmp(json_string_value(item), id) == 0) return true;
    return false;
}

// Everything that rests on `id`, each before what it rests on; id itself last.
static bool collect(Hub *h, const char *id, unsigned depth, json_t *ids, Err *err)
{
    StoreBackup *rows = NULL;
    size_t len = 0;
    if (depth > 1000)
        return err_set(err, ERR_DAMAGED, "the chain of %s has no end", id);
    if (!store_backup_dependents(h->store, id, &rows, &len, err))
        return false;
    bool ok = true;
    for (size_t i = 0; ok && i < len; i++)
        ok = in_list(ids, rows[i].id) || collect(h, rows[i].id, depth + 1, ids, err);
    STORE_LIST_FREE(rows, len, store_backup_clear);
    return ok && (in_list(ids, id) || codec_json_push(ids, json_string(id), err));
}

static bool may_delete(Hub *h, const StoreBackup *b, Err *err)
{
    JobState state;
    StoreExport *exports = NULL;
    size_t len = 0;
    if (!job_state_parse(b->status, &state, err))
        return false;
    if (!job_state_is_final(state))
        return err_set(err, ERR_BUSY, "backup %s is %s; cancel it first", b->id, b->status);
    if (b->deleting)
        return err_set(err, ERR_BUSY, "backup %s is being deleted already", b->id);
    if (!store_export_list(h->store, &exports, &len, err))
        return false;
    // a reader of any point of the VM may rest on this one
    const char *reader = NULL;
    for (size_t i = 0; !reader && i < len; i++) {
        StoreBackup cleanup_backup exported = {0};
        Err gone = ERR_INIT;
        if (store_backup_get(h->store, exports[i].backup_id, &exported, &gone) && strcmp(exported.vm_id, b->vm_id) == 0)
            reader = exports[i].id;
    }
    bool ok = !reader || err_set(err, ERR_BUSY, "a point of this VM is being read (export %s); end that first", reader);
    STORE_LIST_FREE(exports, len, store_export_clear);
    return ok;
}

// All or none of the points are marked: from here on none of them becomes a parent, is exported, or deleted by another
// call.
static bool mark(Hub *h, const char *id, bool with_dependents, json_t *ids, Err *err)
{
    StoreBackup cleanup_backup b = {0};
    size_t i;
    json_t *item;
    if (!store_backup_get(h->store, id, &b, err) || !hub_not_stale(h, b.repository_id, err) ||
        !collect(h, id, 0, ids, err))
        return false;
    if (!with_dependents && json_array_size(ids) > 1)
        return err_set(err, ERR_CONFLICT,
                       "%zu others rest on backup %s (the next is %s); delete them first, or with it",
                       json_array_size(ids) - 1, id, json_string_value(json_array_get(ids, json_array_size(ids) - 2)));
    json_array_foreach(ids, i, item)
    {
        StoreBackup cleanup_backup each = {0};
        if (!store_backup_get(h->store, json_string_value(item), &each, err) || !may_delete(h, &each, err) ||
            (each.resumable && !store_backup_set_resumable(h->store, each.id, false, err)) ||
            !store_backup_set_deleting(h->store, each.id, true, err))
            return false;
    }
    return true;
}

static bool mark_in_transaction(Hub *h, const char *id, bool with_dependents, json_t *ids, Err *err)
{
    StoreTurn t = STORE_TURN(h->store);
    while (store_turn(&t, err)) {
        (void)json_array_clear(ids); // cannot fail
        t.ok = mark(h, id, with_dependents, ids, err);
    }
    return t.ok;
}

// A failed job has no files but those that it was to be gone on from; and what could not be removed when it ended.
static bool delete_files(Hub *h, const StoreBackup *b, Repo *repo, Err *err)
{
    StoreRepository cleanup_repository row = {0};
    StoreDisk *disks = NULL;
    size_t len = 0;
    Record rec = {0};
    if (strcmp(b->status, "completed") != 0)
        return hub_remove_partial(h, b, err);
    bool ok = store_repository_get(h->store, b->repository_id, &row, err) && hub_repo_open(h, &row, repo, err) &&
        store_disk_list(h->store, b->id, &disks, &len, err) &&
        hub_record_from_rows(b, disks, len, "deleted", repo, &rec, err) && repo_delete(repo, &rec, b->stem, err);
    record_clear(&rec);
    STORE_LIST_FREE(disks, len, store_disk_clear);
    return ok;
}

static bool delete_one(Hub *h, const char *id, Err *err)
{
    StoreBackup cleanup_backup b = {0};
    Repo cleanup_repo repo = {0};
    if (!store_backup_get(h->store, id, &b, err))
        return false;
    bool ok = delete_files(h, &b, &repo, err);
    // a deletion that stopped halfway: what is left is no good point
    Err looking = ERR_INIT;
    cleanup_free char *record =
        !ok && repo.path && b.context && b.stem ? repo_path_record(&repo, b.context, b.stem, &looking) : NULL;
    if (record && !file_exists(record) && !store_backup_set_suspect(h->store, id, true, true, &looking))
        log_error("a point that is half deleted could not be marked", LOG_STR("job", id), LOG_ERR(&looking));
    return ok && store_backup_remove(h->store, id, err);
}

// Newest first. After an error the rest stays, and may be deleted again.
static bool delete_marked(Hub *h, const json_t *ids, Err *err)
{
    size_t done = 0, len = json_array_size(ids);
    while (done < len && delete_one(h, json_string_value(json_array_get(ids, done)), err))
        done++;
    for (size_t i = done; i < len; i++) {
        const char *id = json_string_value(json_array_get(ids, i));
        Err unmarking = ERR_INIT; // the next start does it
        if (!store_backup_set_deleting(h->store, id, false, &unmarking))
            log_error("a point stays marked as being deleted", LOG_STR("job", id), LOG_ERR(&unmarking));
    }
    return done == len;
}

// One that another call of this hub is at work on is there as well: files that are gone already are no error, and a row
// that is gone is none, either.
bool hub_deletions_finish(Hub *h, Err *err)
{
    StoreBackup *rows = NULL;
    size_t len = 0;
    if (!store_backup_deleting(h->store, &rows, &len, err))
        return false;
    bool ok = true;
    for (size_t i = 0; i < len; i++) {
        Err why = ERR_INIT;
        if (delete_one(h, rows[i].id, &why)) {
            log_info("a deletion that was cut off was finished", LOG_STR("job", rows[i].id));
        } else if (why.code != ERR_NOT_FOUND) {
            ok = false;
            *err = why;
        }
    }
    STORE_LIST_FREE(rows, len, store_backup_clear);
    return ok;
}

bool hub_backup_delete(Hub *h, const char *id, bool with_dependents, json_t **ret, Err *err)
{
    json_t *ids = json_array(), *o = json_object();
    bool ok = ((ids && o) || err_no_memory(err)) && mark_in_transaction(h, id, with_dependents, ids, err) &&
        delete_marked(h, ids, err);
    if (ok)
        log_info("backup deleted", LOG_STR("job", id), LOG_NUM("points", json_array_size(ids)));
    ok = codec_json_set(o, "deleted", ids, err) && ok;
    if (!ok) {
        json_decref(o);
        return false;
    }
    *ret = o;
    return true;
}
