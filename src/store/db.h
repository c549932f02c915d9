// The seam between our questions and a database: statements with bound parameters, rows, transactions.
// SQL above it keeps to what SQLite and MariaDB 10.11 share: no RETURNING, no ON CONFLICT, no partial
// index; a conditional UPDATE and its affected rows decide a race. Behind it: db_sqlite.c, db_mariadb.c.
#pragma once

#include "store/store.h"

#include <stdatomic.h>

typedef struct Db Db;
typedef struct DbStmt DbStmt;

typedef enum DbValue { // what a row has in a column
    DB_VALUE_NULL,
    DB_VALUE_NUMBER, // a whole one, of 64 bits
    DB_VALUE_TEXT,
    DB_VALUE_OTHER, // nothing of ours
} DbValue;
typedef struct DbPatience {  // for what takes long
    const atomic_bool *stop; // true: ERR_CANCELLED; NULL: nobody stops it
    int64_t until_ms;        // monotonic; 0: no end. Later: ERR_TIMEOUT
} DbPatience;
bool db_go_on(const DbPatience *patience, Err *err) must_check;

typedef struct DbOps {
    const char *name; // "sqlite"
    void (*close)(Db *db);
    bool (*exec)(Db *db, const char *sql, Err *err); // one statement, no parameters
    bool defines_whole;                              // define() is part of the transaction
    // One statement that changes the schema, in SQLite's words. again: it may have been done before, where such a
    // statement is no part of a transaction.
    bool (*define)(Db *db, const char *sql, bool again, Err *err);
    bool (*prepare)(Db *db, const char *sql, DbStmt **ret, Err *err);
    // Parameters and columns count from 0. NULL text binds NULL; text is copied.
    bool (*bind_text)(DbStmt *s, unsigned i, const char *text, Err *err);
    bool (*bind_bytes)(DbStmt *s, unsigned i, const char *text, size_t n, Err *err); // the same, of n bytes
    bool (*bind_int)(DbStmt *s, unsigned i, int64_t v, Err *err);
    bool (*bind_null)(DbStmt *s, unsigned i, Err *err);
    bool (*step)(DbStmt *s, bool *ret_row, Err *err);
    const char *(*column_text)(DbStmt *s, unsigned i); // NULL for NULL; valid until the next step
    int64_t (*column_int)(DbStmt *s, unsigned i);
    size_t (*column_size)(DbStmt *s, unsigned i); // of that text, in bytes
    DbValue (*column_value)(DbStmt *s, unsigned i);
    bool (*column_is_null)(DbStmt *s, unsigned i);
    bool (*again)(DbStmt *s, Err *err); // to be bound and stepped once more
    void (*finish)(DbStmt *s);
    uint64_t (*affected)(Db *db);    // rows of the last INSERT, UPDATE or DELETE
    int64_t (*last_id)(Db *db);      // of the last INSERT
    bool (*begin)(Db *db, Err *err); // takes the write lock at once
    bool (*commit)(Db *db, Err *err);
    void (*rollback)(Db *db);
    // From now on it only reads, the database as it is now, until it is closed; one statement at a time, whose rows
    // come one by one.
    bool (*only_read)(Db *db, Err *err);
    bool (*references)(Db *db, bool checked, Err *err); // from now on; outside of a transaction
    // Questions for its own schema. What all of it takes; all tables but the database's own, by name.
    const char *bytes;
    const char *tables;
    // Of a table: name, place in the primary key or 0; in their order.
    const char *columns;
    const char
        *counter; // of a table: the number of the next row that is not given one; no row, NULL: it does not count
    bool (*set_counter)(Db *db, const char *table, int64_t next, Err *err); // no part of a transaction
    // A consistent copy as a file of SQLite's, in one piece; NULL: cannot.
    bool (*backup)(Db *db, const char *path, const DbPatience *patience, Err *err);
    // Another connection that sees the database as it is now, until it is closed, whatever others write meanwhile. It
    // only reads, one statement after the other, and holds up nobody.
    bool (*snapshot)(Db *db, Db **ret, Err *err);
} DbOps;

struct Db {
    const DbOps *ops;
    // What failed last came to nothing for another one's sake (a transaction elsewhere, a server that went away): the
    // same may be right now. Within a transaction: all of it. Whoever begins something sets it to false.
    bool undone;
    bool clustered; // of several servers (Galera): locks are one server's own, and conflicts come with the COMMIT
};

// WAL, synchronous=FULL, foreign keys on. Created 0600 if it is not there.
bool db_sqlite_open(const char *path, Db **ret, Err *err) must_check;
// One that is there, whose file is not written to, not even for what a crash has left in its log.
bool db_sqlite_open_to_read(const char *path, Db **ret, Err *err) must_check;
// Errors: ERR_FORBIDDEN (password, rights), ERR_NOT_FOUND (no such database), ERR_UNAVAILABLE (not there now), ERR_BUSY
// (another hub has it). The database must be there; its tables are made by db_migrate().
bool db_mariadb_open(const StoreMariadb *spec, Db **ret, Err *err) must_check;
// db_migrate() over a connection of its own, which waits as long as a step takes; a hub's does not.
bool db_mariadb_migrate(const StoreMariadb *spec, Err *err) must_check;

// Rows and structs: one table of columns for each struct, from which INSERT, SELECT and reading derive.
typedef enum DbKind {
    DB_TEXT,               // char *, owned, NULL is NULL
    DB_U64,                // uint64_t, up to INT64_MAX
    DB_I64,                // int64_t
    DB_BOOL,               // bool
    DB_TIME,               // int64_t, microseconds UTC; kept as RFC 3339 text; 0 is NULL
    DB_SKIP_ON_INSERT_I64, // int64_t that the database gives (auto increment)
} DbKind;

typedef struct DbColumn {
    const char *name;
    DbKind kind;
    size_t offset;
} DbColumn;

typedef struct DbTable {
    const char *name;
    const DbColumn *columns;
    unsigned columns_len;
    size_t row_size;
} DbTable;

bool db_insert(Db *db, const DbTable *t, const void *row, Err *err) must_check;
void db_row_clear(const DbTable *t, void *row); // frees its texts

// Arguments of a question: text or number, in the order of the question marks.
typedef struct DbArg {
    const char *text;
    int64_t number;
    bool is_number;
} DbArg;
#define DB_T(v) ((DbArg){.text = (v)})
#define DB_N(v) ((DbArg){.number = (int64_t)(v), .is_number = true})
#define DB_ARGS(...) (const DbArg[]){__VA_ARGS__}, sizeof((const DbArg[]){__VA_ARGS__}) / sizeof(DbArg)
#define DB_NO_ARGS NULL, 0

// "SELECT <columns> FROM <table> <tail>". First row into *row (zeroed before); *ret_found tells.
bool db_select_one(Db *db, const DbTable *t, const char *tail, const DbArg *args, size_t n, void *row, bool *ret_found,
                   Err *err) must_check;
// All rows: *ret_rows is an array of t->row_size structs, the caller clears each and frees it.
bool db_select_all(Db *db, const DbTable *t, const char *tail, const DbArg *args, size_t n, void **ret_rows,
                   size_t *ret_len, Err *err) must_check;
bool db_run(Db *db, const char *sql, const DbArg *args, size_t n, uint64_t *ret_affected, Err *err) must_check;
// First column of the first row as a number; fallback if there is no row or it is NULL.
bool db_number(Db *db, const char *sql, const DbArg *args, size_t n, int64_t fallback, int64_t *ret, Err *err)
    must_check;

// Bring the schema to the newest version; before the first step that changes an existing database a copy
// "<path>.before-<version>" is made (copy_path_prefix NULL: none). A database newer than this program: ERR_UNSUPPORTED.
bool db_migrate(Db *db, const char *copy_path_prefix, Err *err) must_check;
#define DB_MIGRATIONS "schema_migrations"
unsigned db_schema_newest(void); // that this program knows
