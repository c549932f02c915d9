// Exports of points, and replications.
#include "store/tables.h"

#include "base/clock.h"

bool store_export_add(Store *s, const StoreExport *e, Err *err)
{
    StoreExport row = *e;
    row.hub_id = s->hub;
    return store_insert(s, &tables_export, &row, err);
}

bool store_export_get(Store *s, const char *id, StoreExport *ret, Err *err)
{
    bool found;
    if (!store_one(s, &tables_export, "WHERE id = ?", DB_ARGS(DB_T(id)), ret, &found, err))
        return false;
    if (found)
        return true;
    (void)err_set(err, ERR_NOT_FOUND, "there is no export \"%s\"; it may have ended", id);
    return err_title(err, "export not found");
}

bool store_export_list(Store *s, StoreExport **ret, size_t *ret_len, Err *err)
{
    return store_all(s, &tables_export, "ORDER BY created_at, id", DB_NO_ARGS, (void **)ret, ret_len, err);
}

bool store_export_used(Store *s, const char *id, int64_t now_us, Err *err)
{
    char now[CLOCK_TEXT];
    clock_format(now_us, now);
    return store_run(s, "UPDATE exports SET used_at = ? WHERE id = ?", DB_ARGS(DB_T(now), DB_T(id)), NULL, err);
}

bool store_export_remove(Store *s, const char *id, Err *err)
{
    return store_run(s, "DELETE FROM exports WHERE id = ?", DB_ARGS(DB_T(id)), NULL, err);
}

void store_export_clear(StoreExport *e)
{
    db_row_clear(&tables_export, e);
}

bool store_forget_processes(Store *s, Err *err)
{
    const DbArg ours[] = {DB_T(s->hub)};
    return store_run(s, "UPDATE backup_jobs SET client_pid = 0, client_start = 0 WHERE hub_id = ?", ours, 1, NULL,
                     err) &&
        store_run(s,
                  "UPDATE backup_disks SET exporter_pid = 0, exporter_start = 0 WHERE backup_id IN"
                  " (SELECT id FROM backup_jobs WHERE hub_id = ?)",
                  ours, 1, NULL, err) &&
        store_run(s, "UPDATE exports SET pid = 0, start = 0 WHERE hub_id = ?", ours, 1, NULL, err);
}

bool store_replication_add(Store *s, const StoreReplication *r, Err *err)
{
    return store_insert(s, &tables_replication, r, err);
}

bool store_replication_get(Store *s, const char *id, StoreReplication *ret, Err *err)
{
    bool found;
    if (!store_one(s, &tables_replication, "WHERE id = ?", DB_ARGS(DB_T(id)), ret, &found, err))
        return false;
    if (found)
        return true;
    (void)err_set(err, ERR_NOT_FOUND, "Replication job not found");
    return err_title(err, "Job not found");
}

bool store_replication_list(Store *s, StoreReplication **ret, size_t *ret_len, Err *err)
{
    return store_all(s, &tables_replication, "ORDER BY created_at, id", DB_NO_ARGS, (void **)ret, ret_len, err);
}

bool store_replication_record(Store *s, const StoreChangeId *c, Err *err)
{
    char now[CLOCK_TEXT];
    clock_format(c->recorded_us, now);
    StoreTurn t = STORE_TURN(s);
    while (store_turn(&t, err))
        t.ok = store_insert(s, &tables_change_id, c, err) &&
            store_run(s, "UPDATE replication_jobs SET change_id = ?, updated_at = ? WHERE id = ?",
                      DB_ARGS(DB_T(c->change_id), DB_T(now), DB_T(c->job_id)), NULL, err);
    return t.ok;
}

bool store_replication_history(Store *s, const char *job_id, StoreChangeId **ret, size_t *ret_len, Err *err)
{
    return store_all(s, &tables_change_id, "WHERE job_id = ? ORDER BY id DESC LIMIT 1000", DB_ARGS(DB_T(job_id)),
                     (void **)ret, ret_len, err);
}

void store_replication_clear(StoreReplication *r)
{
    db_row_clear(&tables_replication, r);
}

void store_changeid_clear(StoreChangeId *c)
{
    db_row_clear(&tables_change_id, c);
}
