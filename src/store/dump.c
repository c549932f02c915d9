// A database's rows, out of one and into another: docs/internals/database-backup.md.
#include "store/dump.h"

#include "base/file.h"
#include "base/str.h"
#include "store/rows.h"
#include "store/tables.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

static bool ends_well(Db *db, bool ok, Err *err)
{
    if (ok)
        ok = db->ops->commit(db, err);
    if (!ok)
        db->ops->rollback(db);
    return ok;
}

static bool open_new(const char *path, Db **ret, Err *err)
{
    if (file_exists(path))
        return err_set(err, ERR_EXISTS, "%s is there already", path);
    if (!db_sqlite_open(path, ret, err))
        return false;
    if (db_migrate(*ret, NULL, err))
        return true;
    (*ret)->ops->close(*ret);
    *ret = NULL;
    return false;
}

static void close_db(Db *db)
{
    if (db)
        db->ops->close(db);
}

// ---- taking

static bool take_by_rows(Db *reader, const char *path, const DbPatience *patience, Err *err)
{
    Db *to = NULL;
    RowsSchema schema = {0};
    bool ok = open_new(path, &to, err) && rows_read_schema(to, &schema, err) && to->ops->references(to, false, err) &&
        to->ops->begin(to, err) && ends_well(to, rows_copy(reader, to, &schema, patience, err), err);
    rows_schema_clear(&schema);
    close_db(to);
    return ok && dump_settle(path, err);
}

bool dump_take(Store *s, const char *path, const DbPatience *patience, Err *err)
{
    Db *reader = NULL;
    store_lock(s); // only to open another connection beside the hub's
    bool ok = s->db->ops->snapshot(s->db, &reader, err);
    store_unlock(s);
    ok = ok &&
        (reader->ops->backup ? reader->ops->backup(reader, path, patience, err)
                             : take_by_rows(reader, path, patience, err));
    close_db(reader);
    return ok;
}

// ---- giving back

static bool is_sound(Db *db, Err *err)
{
    DbStmt *s = NULL;
    bool row = false;
    int64_t schema;
    bool ok = db->ops->prepare(db, "PRAGMA integrity_check(1)", &s, err) && db->ops->step(s, &row, err);
    const char *said = ok && row ? db->ops->column_text(s, 0) : NULL;
    if (ok && (!said || !str_eq(said, "ok")))
        ok = err_set(err, ERR_DAMAGED, "SQLite says of the database: %s", said ? said : "nothing");
    db->ops->finish(s);
    return ok && db_number(db, "SELECT MAX(version) FROM schema_migrations", DB_NO_ARGS, 0, &schema, err) &&
        (schema > 0 || err_set(err, ERR_DAMAGED, "it is no database of a hub"));
}

bool dump_upgrade(const char *path, Err *err)
{
    Db *db = NULL;
    Err why = ERR_INIT;
    bool ok = db_sqlite_open(path, &db, &why) && is_sound(db, &why) && db_migrate(db, NULL, &why);
    close_db(db);
    if (ok)
        return true;
    *err = why;
    if (err->code == ERR_INTERNAL) // "no such table"
        err->code = ERR_DAMAGED;
    return false;
}

bool dump_new(const char *path, Err *err)
{
    Db *db = NULL;
    bool ok = open_new(path, &db, err);
    close_db(db);
    return ok;
}

bool dump_fill(const char *from_path, const char *to_path, Err *err)
{
    Db *from = NULL, *to = NULL;
    RowsSchema schema = {0};
    bool ok = db_sqlite_open(from_path, &from, err) && db_sqlite_open(to_path, &to, err) &&
        rows_read_schema(to, &schema, err) && to->ops->references(to, false, err) && to->ops->begin(to, err) &&
        ends_well(to, rows_copy(from, to, &schema, NULL, err) && rows_references_hold(to, err), err);
    rows_schema_clear(&schema);
    close_db(from);
    close_db(to);
    return ok;
}

bool dump_remove(const char *path, Err *err)
{
    static const char *const ends[] = {"", "-wal", "-shm", "-journal"};
    for (size_t i = 0; i < ARRAY_LEN(ends); i++) {
        cleanup_free char *each = mem_printf(err, "%s%s", path, ends[i]);
        if (!each || !file_unlink(each, err))
            return false;
    }
    return true;
}

bool dump_is_empty(const char *path, bool *ret, Err *err)
{
    static const char *const tables[] = {"repositories", "vms", "sources", "backup_jobs", "replication_jobs"};
    Db *db = NULL;
    Err why = ERR_INIT;
    int64_t any = 0, there = 0;
    *ret = true;
    bool ok = db_sqlite_open(path, &db, &why);
    for (size_t i = 0; ok && *ret && i < ARRAY_LEN(tables); i++) {
        // of an older schema, or one that was just made
        ok = db_number(db, "SELECT COUNT(*) FROM sqlite_master WHERE name = ?", DB_ARGS(DB_T(tables[i])), 0, &there,
                       &why);
        cleanup_free char *sql = ok && there ? mem_printf(err, "SELECT COUNT(*) FROM %s", tables[i]) : NULL;
        ok = ok && (!there || (sql && db_number(db, sql, DB_NO_ARGS, 0, &any, &why)));
        *ret = *ret && any == 0;
    }
    close_db(db);
    *ret = *ret && ok;
    return ok || why.code != ERR_NO_MEMORY || err_no_memory(err);
}

bool dump_settle(const char *path, Err *err)
{
    Db *db = NULL;
    cleanup_free char *log = mem_printf(err, "%s-wal", path);
    bool ok = log && db_sqlite_open(path, &db, err) && db->ops->exec(db, "PRAGMA journal_mode=DELETE", err);
    close_db(db);
    if (!ok)
        return false;
    if (file_exists(log))
        return err_set(err, ERR_BUSY, "%s is open elsewhere: its log stays", path);
    cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC);
    return (fd >= 0 && fsync(fd) == 0) || err_errno(err, errno, "cannot sync %s", path);
}

bool dump_into(Store *mariadb, const char *from_path, Err *err)
{
    Db *from = NULL, *to = mariadb->db;
    RowsSchema schema = {0};
    store_lock(mariadb);
    bool ok = db_sqlite_open(from_path, &from, err) && rows_read_schema(from, &schema, err) &&
        to->ops->references(to, false, err) && to->ops->begin(to, err) &&
        ends_well(to, rows_delete_all(to, &schema, err) && rows_copy(from, to, &schema, NULL, err), err);
    Err lost = ERR_INIT; // with the connection its settings are gone as well
    (void)!to->ops->references(to, true, &lost);
    store_unlock(mariadb);
    rows_schema_clear(&schema);
    close_db(from);
    return ok;
}
