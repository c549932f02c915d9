// A database's rows, out of one and into another: docs/internals/database-backup.md.
#include "store/dump.h"

#include "base/file.h"
#include "base/str.h"
#include "store/tables.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#define SQL_MAX 262144
#define ROWS 50 // of one INSERT
#define COLUMNS_MAX 100
#define TABLES_MAX 100
#define NAME_MAX_LEN 64

typedef struct Names {
    char items[COLUMNS_MAX][NAME_MAX_LEN];
    unsigned len;
} Names;

// Our own schema's names: plain ones.
static bool read_names(Db *ours, const char *sql, unsigned column, Names *ret, Err *err)
{
    DbStmt *s = NULL;
    bool row = true;
    ret->len = 0;
    bool ok = ours->ops->prepare(ours, sql, &s, err);
    while (ok && (ok = ours->ops->step(s, &row, err)) && row) {
        const char *name = ours->ops->column_text(s, column);
        if (!name || strlen(name) >= NAME_MAX_LEN || ret->len == COLUMNS_MAX ||
            strspn(name, "abcdefghijklmnopqrstuvwxyz_0123456789") != strlen(name))
            ok = err_set(err, ERR_INTERNAL, "a name in our own schema that is too long or too many");
        else
            memcpy(ret->items[ret->len++], name, strlen(name) + 1);
    }
    ours->ops->finish(s);
    return ok;
}

static bool list_tables(Db *ours, Names *ret, Err *err)
{
    return read_names(ours,
                      "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
                      " AND name <> 'schema_migrations' ORDER BY name",
                      0, ret, err);
}

static bool list_columns(Db *ours, const char *table, Names *ret, Err *err)
{
    cleanup_free char *sql = mem_printf(err, "PRAGMA table_info(%s)", table);
    return sql && read_names(ours, sql, 1, ret, err);
}

static bool write_sql(StrBuf *out, const char *table, const Names *columns, unsigned rows, Err *err)
{
    out->len = 0;
    bool ok = str_addf(out, err, "INSERT INTO %s (", table);
    for (unsigned i = 0; ok && i < columns->len; i++)
        ok = str_addf(out, err, "%s%s", i ? ", " : "", columns->items[i]);
    for (unsigned r = 0; ok && r < rows; r++) {
        ok = str_add(out, r ? "), (" : ") VALUES (", err);
        for (unsigned i = 0; ok && i < columns->len; i++)
            ok = str_add(out, i ? ", ?" : "?", err);
    }
    return ok && str_add(out, ")", err);
}

static bool write_rows(Db *to, const char *table, const Names *columns, char **values, unsigned rows, Err *err)
{
    StrBuf sql = STR_BUF(SQL_MAX);
    DbStmt *s = NULL;
    bool any;
    bool ok = write_sql(&sql, table, columns, rows, err) && to->ops->prepare(to, sql.s, &s, err);
    // a column's type makes a number of a number's text, in either database
    for (unsigned i = 0; ok && i < rows * columns->len; i++)
        ok = to->ops->bind_text(s, i, values[i], err);
    ok = ok && to->ops->step(s, &any, err);
    to->ops->finish(s);
    str_clear(&sql);
    return ok;
}

// The next rows, at most ROWS.
static bool read_rows(Db *from, DbStmt *s, unsigned columns, char **values, unsigned *ret_rows, Err *err)
{
    bool row = true;
    *ret_rows = 0;
    while (*ret_rows < ROWS) {
        if (!from->ops->step(s, &row, err))
            return false;
        if (!row)
            return true;
        for (unsigned i = 0; i < columns; i++)
            if (!mem_replace(&values[*ret_rows * columns + i], from->ops->column_text(s, i), err))
                return false;
        ++*ret_rows;
    }
    return true;
}

static bool copy_rows(Db *from, DbStmt *s, Db *to, const char *table, const Names *columns, const DbPatience *patience,
                      Err *err)
{
    size_t n = (size_t)ROWS * columns->len;
    char **values = mem_calloc(n, sizeof(*values), err);
    unsigned rows = ROWS;
    bool ok = values != NULL;
    while (ok && rows == ROWS)
        ok = db_go_on(patience, err) && read_rows(from, s, columns->len, values, &rows, err) &&
            (rows == 0 || write_rows(to, table, columns, values, rows, err));
    for (size_t i = 0; values && i < n; i++)
        free(values[i]);
    free(values);
    return ok;
}

static bool copy_table(Db *from, Db *to, const char *table, const Names *columns, const DbPatience *patience, Err *err)
{
    StrBuf sql = STR_BUF(SQL_MAX);
    DbStmt *s = NULL;
    bool ok = str_add(&sql, "SELECT ", err);
    for (unsigned i = 0; ok && i < columns->len; i++)
        ok = str_addf(&sql, err, "%s%s", i ? ", " : "", columns->items[i]);
    ok = ok && str_addf(&sql, err, " FROM %s", table) && from->ops->prepare(from, sql.s, &s, err) &&
        copy_rows(from, s, to, table, columns, patience, err);
    from->ops->finish(s);
    str_clear(&sql);
    return ok || err_context(err, "table %s", table);
}

// ours: the one of the two that is known to have our schema, and SQLite's way of telling it. The caller has to's
// transaction open, and its foreign keys off.
static bool copy_tables(Db *from, Db *to, Db *ours, const DbPatience *patience, Err *err)
{
    Names *tables = mem_calloc(2, sizeof(*tables), err), *columns = tables ? tables + 1 : NULL;
    bool ok = tables && list_tables(ours, tables, err);
    for (unsigned i = 0; ok && i < tables->len; i++)
        ok = list_columns(ours, tables->items[i], columns, err) &&
            copy_table(from, to, tables->items[i], columns, patience, err);
    free(tables);
    return ok;
}

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
    bool ok = open_new(path, &to, err) && to->ops->exec(to, "PRAGMA foreign_keys=OFF", err) &&
        to->ops->begin(to, err) && ends_well(to, copy_tables(reader, to, to, patience, err), err);
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

static bool check_references(Db *db, Err *err)
{
    DbStmt *s = NULL;
    bool row = false;
    bool ok = db->ops->prepare(db, "PRAGMA foreign_key_check", &s, err) && db->ops->step(s, &row, err) &&
        (!row || err_set(err, ERR_DAMAGED, "a row of %s names what is not there", db->ops->column_text(s, 0)));
    db->ops->finish(s);
    return ok;
}

bool dump_fill(const char *from_path, const char *to_path, Err *err)
{
    Db *from = NULL, *to = NULL;
    bool ok = db_sqlite_open(from_path, &from, err) && db_sqlite_open(to_path, &to, err) &&
        to->ops->exec(to, "PRAGMA foreign_keys=OFF", err) && to->ops->begin(to, err) &&
        ends_well(to, copy_tables(from, to, to, NULL, err) && check_references(to, err), err);
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

static bool delete_all(Db *to, Db *ours, Err *err)
{
    Names *tables = mem_calloc(1, sizeof(*tables), err);
    bool ok = tables && list_tables(ours, tables, err);
    for (unsigned i = 0; ok && i < tables->len; i++) {
        cleanup_free char *sql = mem_printf(err, "DELETE FROM %s", tables->items[i]);
        ok = sql && to->ops->exec(to, sql, err);
    }
    free(tables);
    return ok;
}

bool dump_into(Store *mariadb, const char *from_path, Err *err)
{
    Db *from = NULL, *to = mariadb->db;
    store_lock(mariadb);
    bool ok = db_sqlite_open(from_path, &from, err) && to->ops->exec(to, "SET SESSION foreign_key_checks = 0", err) &&
        to->ops->begin(to, err) &&
        ends_well(to, delete_all(to, from, err) && copy_tables(from, to, from, NULL, err), err);
    Err lost = ERR_INIT; // with the connection its settings are gone as well
    (void)!to->ops->exec(to, "SET SESSION foreign_key_checks = 1", &lost);
    store_unlock(mariadb);
    close_db(from);
    return ok;
}
