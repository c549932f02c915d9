#include "store/db.h"

#include <errno.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <unistd.h>

#define COPY_PAGES 1000 // between two looks whether to go on

typedef struct DbSqlite {
    Db base;
    sqlite3 *handle;
} DbSqlite;

struct DbStmt {
    DbSqlite *db;
    sqlite3_stmt *handle;
};

static DbSqlite *self(Db *db)
{
    return (DbSqlite *)db;
}

// Its log and the log's index grow by calls of which SQLite only says that they failed.
static bool is_full(const DbSqlite *db, int rc)
{
    int why = sqlite3_system_errno(db->handle);
    return rc == SQLITE_FULL || ((rc == SQLITE_IOERR || rc == SQLITE_CANTOPEN) && (why == ENOSPC || why == EDQUOT));
}

static bool fail(DbSqlite *db, const char *what, Err *err)
{
    int rc = sqlite3_errcode(db->handle), more = sqlite3_extended_errcode(db->handle);
    ErrCode code = ERR_INTERNAL;
    if (is_full(db, rc))
        return err_set(err, ERR_NO_SPACE,
                       "database: there is no space left for %s; HINT: make room there, nothing has to be started anew",
                       sqlite3_db_filename(db->handle, "main"));
    if (rc == SQLITE_BUSY || rc == SQLITE_LOCKED)
        code = ERR_UNAVAILABLE; // 503: it passes. ERR_BUSY is 409, which tells a client that its job is not to go on
    else if (rc == SQLITE_IOERR || rc == SQLITE_CANTOPEN)
        code = ERR_IO;
    else if (rc == SQLITE_NOMEM)
        code = ERR_NO_MEMORY;
    else if (more == SQLITE_CONSTRAINT_UNIQUE || more == SQLITE_CONSTRAINT_PRIMARYKEY)
        code = ERR_EXISTS;
    else if (more == SQLITE_CONSTRAINT_FOREIGNKEY)
        code = ERR_CONFLICT; // another row needs it
    else if (rc == SQLITE_CORRUPT || rc == SQLITE_NOTADB)
        code = ERR_DAMAGED;
    return err_set(err, code, "database: %s: %s", what, sqlite3_errmsg(db->handle));
}

static void db_close(Db *db)
{
    if (!db)
        return;
    (void)sqlite3_close(self(db)->handle); // statements are finished by then; nothing to lose after a commit
    free(db);
}

static bool db_exec(Db *db, const char *sql, Err *err)
{
    if (sqlite3_exec(self(db)->handle, sql, NULL, NULL, NULL) != SQLITE_OK)
        return fail(self(db), "statement", err);
    return true;
}

static bool db_define(Db *db, const char *sql, bool again, Err *err)
{
    (void)again; // a part of its transaction
    return db_exec(db, sql, err);
}

static bool db_prepare(Db *db, const char *sql, DbStmt **ret, Err *err)
{
    DbStmt *s = mem_calloc(1, sizeof(*s), err);
    if (!s)
        return false;
    s->db = self(db);
    if (sqlite3_prepare_v2(s->db->handle, sql, -1, &s->handle, NULL) != SQLITE_OK) {
        free(s);
        return fail(self(db), sql, err);
    }
    *ret = s;
    return true;
}

static bool db_bind_text(DbStmt *s, unsigned i, const char *text, Err *err)
{
    int rc = text ? sqlite3_bind_text(s->handle, (int)i + 1, text, -1, SQLITE_TRANSIENT)
                  : sqlite3_bind_null(s->handle, (int)i + 1);
    return rc == SQLITE_OK ? true : fail(s->db, "bind", err);
}

static bool db_bind_bytes(DbStmt *s, unsigned i, const char *text, size_t n, Err *err)
{
    int rc = sqlite3_bind_text64(s->handle, (int)i + 1, text, n, SQLITE_TRANSIENT, SQLITE_UTF8);
    return rc == SQLITE_OK ? true : fail(s->db, "bind", err);
}

static bool db_bind_int(DbStmt *s, unsigned i, int64_t v, Err *err)
{
    return sqlite3_bind_int64(s->handle, (int)i + 1, v) == SQLITE_OK ? true : fail(s->db, "bind", err);
}

static bool db_bind_null(DbStmt *s, unsigned i, Err *err)
{
    return db_bind_text(s, i, NULL, err);
}

static bool db_step(DbStmt *s, bool *ret_row, Err *err)
{
    int rc = sqlite3_step(s->handle);
    if (rc != SQLITE_ROW && rc != SQLITE_DONE)
        return fail(s->db, sqlite3_sql(s->handle), err);
    *ret_row = rc == SQLITE_ROW;
    return true;
}

static const char *db_column_text(DbStmt *s, unsigned i)
{
    return (const char *)sqlite3_column_text(s->handle, (int)i);
}

static int64_t db_column_int(DbStmt *s, unsigned i)
{
    return sqlite3_column_int64(s->handle, (int)i);
}

static bool db_column_is_null(DbStmt *s, unsigned i)
{
    return sqlite3_column_type(s->handle, (int)i) == SQLITE_NULL;
}

static size_t db_column_size(DbStmt *s, unsigned i)
{
    return (size_t)sqlite3_column_bytes(s->handle, (int)i); // after column_text(), of that
}

static DbValue db_column_value(DbStmt *s, unsigned i)
{
    switch (sqlite3_column_type(s->handle, (int)i)) {
    case SQLITE_NULL: return DB_VALUE_NULL;
    case SQLITE_INTEGER: return DB_VALUE_NUMBER;
    case SQLITE_TEXT: return DB_VALUE_TEXT;
    default: return DB_VALUE_OTHER;
    }
}

static bool db_again(DbStmt *s, Err *err)
{
    return sqlite3_reset(s->handle) == SQLITE_OK ? true : fail(s->db, "statement", err);
}

static void db_finish(DbStmt *s)
{
    if (!s)
        return;
    (void)sqlite3_finalize(s->handle); // repeats the error of the last step, which was reported there
    free(s);
}

static uint64_t db_affected(Db *db)
{
    return (uint64_t)sqlite3_changes64(self(db)->handle);
}

static int64_t db_last_id(Db *db)
{
    return sqlite3_last_insert_rowid(self(db)->handle);
}

static bool db_begin(Db *db, Err *err)
{
    return db_exec(db, "BEGIN IMMEDIATE", err);
}

static bool db_commit(Db *db, Err *err)
{
    return db_exec(db, "COMMIT", err);
}

static void db_rollback(Db *db)
{
    // fails only where SQLite has rolled back already
    (void)sqlite3_exec(self(db)->handle, "ROLLBACK", NULL, NULL, NULL);
}

static bool copy_pages(sqlite3 *from, sqlite3 *to, const char *path, const DbPatience *patience, Err *err)
{
    sqlite3_backup *b = sqlite3_backup_init(to, "main", from, "main");
    int rc = b ? SQLITE_OK : SQLITE_ERROR;
    bool go_on = true;
    while (go_on && rc == SQLITE_OK) {
        rc = sqlite3_backup_step(b, COPY_PAGES);
        go_on = db_go_on(patience, err);
    }
    if (b && sqlite3_backup_finish(b) != SQLITE_OK && rc == SQLITE_DONE)
        rc = SQLITE_ERROR;
    // one file: with a write-ahead log it would need another one beside it
    if (go_on && rc == SQLITE_DONE && sqlite3_exec(to, "PRAGMA journal_mode=DELETE", NULL, NULL, NULL) != SQLITE_OK)
        rc = SQLITE_ERROR;
    return go_on &&
        (rc == SQLITE_DONE ||
         err_set(err, sqlite3_errcode(to) == SQLITE_FULL || rc == SQLITE_FULL ? ERR_NO_SPACE : ERR_IO,
                 "cannot copy the database to %s: %s", path, sqlite3_errmsg(to)));
}

static bool db_copy(Db *db, const char *path, const DbPatience *patience, Err *err)
{
    sqlite3 *to = NULL;
    int fd = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_errno(err, errno, "cannot create the database's copy %s", path);
    (void)close(fd);
    bool ok = sqlite3_open(path, &to) == SQLITE_OK ? copy_pages(self(db)->handle, to, path, patience, err)
                                                   : err_set(err, ERR_IO, "cannot open the database's copy %s", path);
    (void)sqlite3_close(to);
    return ok;
}

static bool db_only_read(Db *db, Err *err)
{
    int64_t tables;
    return db_exec(db, "PRAGMA query_only=ON", err) && db_exec(db, "BEGIN", err) &&
        // the first look takes the snapshot
        db_number(db, "SELECT COUNT(*) FROM sqlite_master", DB_NO_ARGS, 0, &tables, err);
}

static bool db_references(Db *db, bool checked, Err *err)
{
    return db_exec(db, checked ? "PRAGMA foreign_keys=ON" : "PRAGMA foreign_keys=OFF", err);
}

// Numbers that are given later raise it, and never lower it.
static bool db_set_counter(Db *db, const char *table, int64_t next, Err *err)
{
    return db_run(db, "DELETE FROM sqlite_sequence WHERE name = ?", DB_ARGS(DB_T(table)), NULL, err) &&
        db_run(db, "INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", DB_ARGS(DB_T(table), DB_N(next - 1)), NULL,
               err);
}

// In WAL mode whoever reads holds up nobody who writes.
static bool db_snapshot(Db *db, Db **ret, Err *err)
{
    DbSqlite *reader = mem_calloc(1, sizeof(*reader), err);
    if (!reader)
        return false;
    reader->base.ops = db->ops;
    const char *path = sqlite3_db_filename(self(db)->handle, "main");
    bool ok = sqlite3_open_v2(path, &reader->handle, SQLITE_OPEN_READONLY | SQLITE_OPEN_FULLMUTEX, NULL) == SQLITE_OK ||
        fail(reader, path, err);
    ok = ok && sqlite3_busy_timeout(reader->handle, 10000) == SQLITE_OK && db_only_read(&reader->base, err);
    if (!ok) {
        db_close(&reader->base);
        return false;
    }
    *ret = &reader->base;
    return true;
}

static const DbOps sqlite_ops = {
    .name = "sqlite",
    .close = db_close,
    .exec = db_exec,
    .defines_whole = true,
    .define = db_define,
    .prepare = db_prepare,
    .bind_text = db_bind_text,
    .bind_bytes = db_bind_bytes,
    .bind_int = db_bind_int,
    .bind_null = db_bind_null,
    .step = db_step,
    .column_text = db_column_text,
    .column_int = db_column_int,
    .column_size = db_column_size,
    .column_value = db_column_value,
    .column_is_null = db_column_is_null,
    .again = db_again,
    .finish = db_finish,
    .affected = db_affected,
    .last_id = db_last_id,
    .begin = db_begin,
    .commit = db_commit,
    .rollback = db_rollback,
    .backup = db_copy,
    .only_read = db_only_read,
    .references = db_references,
    .tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND substr(name, 1, 7) <> 'sqlite_' ORDER BY name",
    .columns = "SELECT name, pk FROM pragma_table_info(?) ORDER BY cid",
    .counter = "SELECT seq + 1 FROM sqlite_sequence WHERE name = ?",
    .bytes = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()",
    .set_counter = db_set_counter,
    .snapshot = db_snapshot,
};

bool db_sqlite_open(const char *path, Db **ret, Err *err)
{
    DbSqlite *db = mem_calloc(1, sizeof(*db), err);
    if (!db)
        return false;
    db->base.ops = &sqlite_ops;
    mode_t old = umask(077);
    int rc =
        sqlite3_open_v2(path, &db->handle, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_FULLMUTEX, NULL);
    (void)umask(old);
    bool ok = rc == SQLITE_OK;
    if (!ok)
        (void)fail(db, path, err);
    // a reader with the sqlite3 shell may hold a lock for a moment: wait for it
    ok = ok && sqlite3_busy_timeout(db->handle, 10000) == SQLITE_OK &&
        db_exec(&db->base, "PRAGMA journal_mode=WAL", err) && db_exec(&db->base, "PRAGMA synchronous=FULL", err) &&
        db_exec(&db->base, "PRAGMA foreign_keys=ON", err) && db_exec(&db->base, "PRAGMA trusted_schema=OFF", err);
    if (!ok) {
        (void)err_set(err, ERR_INTERNAL, "cannot set up the database %s", path);
        db_close(&db->base);
        return false;
    }
    *ret = &db->base;
    return true;
}

bool db_sqlite_open_to_read(const char *path, Db **ret, Err *err)
{
    DbSqlite *db = mem_calloc(1, sizeof(*db), err);
    if (!db)
        return false;
    db->base.ops = &sqlite_ops;
    bool ok = (sqlite3_open_v2(path, &db->handle, SQLITE_OPEN_READONLY | SQLITE_OPEN_FULLMUTEX, NULL) == SQLITE_OK &&
               sqlite3_busy_timeout(db->handle, 10000) == SQLITE_OK &&
               sqlite3_db_config(db->handle, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL) == SQLITE_OK) ||
        fail(db, path, err);
    if (!ok || !db_exec(&db->base, "PRAGMA trusted_schema=OFF", err) || !db_only_read(&db->base, err)) {
        db_close(&db->base);
        return false;
    }
    *ret = &db->base;
    return true;
}
