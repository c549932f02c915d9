// The disks of backup jobs.
#include "store/tables.h"

bool store_disk_add(Store *s, const StoreDisk *d, Err *err)
{
    return store_insert(s, &tables_disk, d, err);
}

bool store_disk_list(Store *s, const char *backup_id, StoreDisk **ret, size_t *ret_len, Err *err)
{
    return store_all(s, &tables_disk, "WHERE backup_id = ? ORDER BY disk_no", DB_ARGS(DB_T(backup_id)), (void **)ret,
                     ret_len, err);
}

bool store_disk_set_exporter(Store *s, const StoreDisk *d, Err *err)
{
    return store_run(s,
                     "UPDATE backup_disks SET exporter_pid = ?, exporter_start = ?, socket = ?, control = ?,"
                     " export_name = ?, resumed = ? WHERE backup_id = ? AND disk_key = ?",
                     DB_ARGS(DB_N(d->exporter_pid), DB_N(d->exporter_start), DB_T(d->socket), DB_T(d->control),
                             DB_T(d->export_name), DB_N(d->resumed), DB_T(d->backup_id), DB_T(d->disk_key)),
                     NULL, err);
}

bool store_disk_set_progress(Store *s, const StoreDisk *d, Err *err)
{
    return store_run(s,
                     "UPDATE backup_disks SET done_bytes = ?, transferred_bytes = ?, zero_bytes = ?, changed_bytes = ?,"
                     " kept_bytes = ? WHERE backup_id = ? AND disk_id = ?"
                     " AND EXISTS (SELECT 1 FROM backup_jobs WHERE id = ? AND status = 'running')",
                     DB_ARGS(DB_N(d->done_bytes), DB_N(d->transferred_bytes), DB_N(d->zero_bytes),
                             DB_N(d->changed_bytes), DB_N(d->kept_bytes), DB_T(d->backup_id), DB_N(d->disk_id),
                             DB_T(d->backup_id)),
                     NULL, err);
}

bool store_disk_set_sealed(Store *s, const StoreDisk *d, Err *err)
{
    return store_run(
        s,
        "UPDATE backup_disks SET change_id = ?, tracking = ?, transferred_bytes = ?, done_bytes = size,"
        " stored_bytes = ?, image_bytes = ?, areas = ?, area_bytes = ?, read_bytes = ?, kept_bytes = ?, root = ?,"
        " metadata = ?, hashes_digest = ? WHERE backup_id = ? AND disk_key = ?",
        DB_ARGS(DB_T(d->change_id), DB_T(d->tracking), DB_N(d->transferred_bytes), DB_N(d->stored_bytes),
                DB_N(d->image_bytes), DB_N(d->areas), DB_N(d->area_bytes), DB_N(d->read_bytes), DB_N(d->kept_bytes),
                DB_T(d->root), DB_T(d->metadata), DB_T(d->hashes_digest), DB_T(d->backup_id), DB_T(d->disk_key)),
        NULL, err);
}

bool store_disk_set_refuted(Store *s, const char *backup_id, const char *disk_key, Err *err)
{
    return store_run(s, "UPDATE backup_disks SET refuted = 1 WHERE backup_id = ? AND disk_key = ?",
                     DB_ARGS(DB_T(backup_id), DB_T(disk_key)), NULL, err);
}

bool store_disk_set_audit(Store *s, const StoreDisk *d, Err *err)
{
    return store_run(
        s,
        "UPDATE backup_disks SET audited = 1, unchanged_blocks = ?, checked_blocks = ?, wrong_blocks = ?, mode = ?,"
        " reason = ?, reason_text = ? WHERE backup_id = ? AND disk_key = ?",
        DB_ARGS(DB_N(d->unchanged_blocks), DB_N(d->checked_blocks), DB_N(d->wrong_blocks), DB_T(d->mode),
                DB_T(d->reason), DB_T(d->reason_text), DB_T(d->backup_id), DB_T(d->disk_key)),
        NULL, err);
}

bool store_disk_remove(Store *s, const char *backup_id, Err *err)
{
    return store_run(s, "DELETE FROM backup_disks WHERE backup_id = ?", DB_ARGS(DB_T(backup_id)), NULL, err);
}

bool store_disk_forget_exporters(Store *s, const char *backup_id, Err *err)
{
    return store_run(s,
                     "UPDATE backup_disks SET exporter_pid = 0, exporter_start = 0, socket = NULL, control = NULL,"
                     " export_name = NULL WHERE backup_id = ?",
                     DB_ARGS(DB_T(backup_id)), NULL, err);
}

void store_disk_clear(StoreDisk *d)
{
    db_row_clear(&tables_disk, d);
}
