// MariaDB behind the seam: prepared statements over one connection. docs/internals/mariadb.md.
#include "base/str.h"
#include "store/mariadb_link.h"

#include <mysqld_error.h>

#define SQL_MAX 65536
#define CHARSET_BINARY 63
#define TEXT_BYTES_MAX (16u << 20) // of one value that is read

typedef struct Value {
    long long number;
    char *text; // owned; NULL: NULL, or a number
    unsigned long length;
    my_bool is_null;
} Value;

struct DbStmt {
    DbMariadb *db;
    MYSQL_STMT *handle;
    MYSQL_RES *about; // its columns; NULL: nobody asked
    MYSQL_BIND *params, *columns;
    Value *given, *read;
    unsigned params_len, columns_len;
    bool executed;
};

static DbMariadb *self(Db *db)
{
    return (DbMariadb *)db;
}

static bool fail_stmt(DbStmt *s, const char *what, Err *err)
{
    return link_fail(s->db, what, mysql_stmt_errno(s->handle), mysql_stmt_error(s->handle), err);
}

static void db_close(Db *base)
{
    link_free(self(base));
}

// A connection that broke since its last use is opened again, once: nothing of this statement has happened yet.
static bool db_exec(Db *base, const char *sql, Err *err)
{
    DbMariadb *db = self(base);
    Err first = ERR_INIT;
    if (!link_be_connected(db, err))
        return false;
    if (link_query(db, sql, &first))
        return true;
    if (db->lost && !db->in_transaction)
        return link_be_connected(db, err) && link_query(db, sql, err);
    *err = first;
    return false;
}

// ---- definitions

static bool add_replaced(StrBuf *out, const char *sql, const char *from, const char *to, Err *err)
{
    for (const char *at; (at = strstr(sql, from)); sql = at + strlen(from))
        if (!str_add_bytes(out, sql, (size_t)(at - sql), err) || !str_add(out, to, err))
            return false;
    return str_add(out, sql, err);
}

// A step that was cut off after it took effect is run again: DDL is no part of a transaction. Only the first can be.
static bool is_there_already(unsigned code)
{
    return code == ER_TABLE_EXISTS_ERROR || code == ER_DUP_FIELDNAME || code == ER_DUP_KEYNAME;
}

// From the words that SQLite takes to MariaDB's.
static bool db_define(Db *base, const char *sql, bool again, Err *err)
{
    DbMariadb *db = self(base);
    StrBuf ids = STR_BUF(SQL_MAX), all = STR_BUF(SQL_MAX);
    Err failed = ERR_INIT;
    bool table = str_starts(sql, "CREATE TABLE");
    bool ok = link_be_connected(db, err) &&
        add_replaced(&ids, sql, "INTEGER PRIMARY KEY AUTOINCREMENT", "BIGINT PRIMARY KEY AUTO_INCREMENT", err) &&
        add_replaced(&all, ids.s, " TEXT", " MEDIUMTEXT", err) &&
        (!table || str_add(&all, " ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin", err));
    if (ok && !link_query(db, all.s, &failed) && !(again && is_there_already(mysql_errno(db->handle)))) {
        *err = failed;
        ok = false;
    }
    str_clear(&ids);
    str_clear(&all);
    return ok;
}

// ---- statements

static void db_finish(DbStmt *s)
{
    if (!s)
        return;
    mysql_free_result(s->about);
    if (s->handle)
        (void)mysql_stmt_close(s->handle); // an error of it was one of the last step, or of the connection
    for (unsigned i = 0; s->given && i < s->params_len; i++)
        free(s->given[i].text);
    for (unsigned i = 0; s->read && i < s->columns_len; i++)
        free(s->read[i].text);
    free(s->params);
    free(s->columns);
    free(s->given);
    free(s->read);
    free(s);
}

static bool prepare(DbStmt *s, const char *sql, Err *err)
{
    s->handle = mysql_stmt_init(s->db->handle);
    if (!s->handle)
        return err_no_memory(err);
    if (mysql_stmt_prepare(s->handle, sql, strlen(sql)) == 0)
        return true;
    (void)fail_stmt(s, sql, err);
    (void)mysql_stmt_close(s->handle);
    s->handle = NULL;
    return false;
}

// A DOUBLE has no length before it is fetched: of more than one digit the first one would be read.
static bool has_whole_numbers(DbStmt *s, Err *err)
{
    s->about = mysql_stmt_result_metadata(s->handle);
    if (!s->about)
        return fail_stmt(s, "result", err);
    for (unsigned i = 0; i < s->columns_len; i++) {
        enum enum_field_types type = mysql_fetch_field_direct(s->about, i)->type;
        if (type == MYSQL_TYPE_FLOAT || type == MYSQL_TYPE_DOUBLE)
            return err_set(err, ERR_INTERNAL, "database: column %u is no whole number", i);
    }
    return true;
}

static bool db_prepare(Db *base, const char *sql, DbStmt **ret, Err *err)
{
    DbMariadb *db = self(base);
    DbStmt *s = mem_calloc(1, sizeof(*s), err);
    Err first = ERR_INIT;
    if (!s)
        return false;
    s->db = db;
    bool ok = link_be_connected(db, err);
    if (ok && !prepare(s, sql, &first)) {
        // as in db_exec(): nothing has happened yet
        ok = db->lost && !db->in_transaction && link_be_connected(db, err) && prepare(s, sql, err);
        if (!ok && err->code == ERR_NONE)
            *err = first;
    }
    if (ok) {
        s->params_len = (unsigned)mysql_stmt_param_count(s->handle);
        s->columns_len = mysql_stmt_field_count(s->handle);
        s->params = mem_calloc(s->params_len, sizeof(*s->params), err);
        s->given = mem_calloc(s->params_len, sizeof(*s->given), err);
        s->columns = mem_calloc(s->columns_len, sizeof(*s->columns), err);
        s->read = mem_calloc(s->columns_len, sizeof(*s->read), err);
        ok = s->params && s->given && s->columns && s->read && (s->columns_len == 0 || has_whole_numbers(s, err));
    }
    if (!ok) {
        db_finish(s);
        return false;
    }
    *ret = s;
    return true;
}

static bool check_param(const DbStmt *s, unsigned i, Err *err)
{
    return i < s->params_len || err_set(err, ERR_INTERNAL, "database: there is no parameter %u", i);
}

static void bind_text_given(DbStmt *s, unsigned i)
{
    s->params[i] = (MYSQL_BIND){.buffer_type = MYSQL_TYPE_STRING,
                                .buffer = s->given[i].text,
                                .buffer_length = s->given[i].length,
                                .length = &s->given[i].length,
                                .is_null = &s->given[i].is_null};
}

static bool db_bind_text(DbStmt *s, unsigned i, const char *text, Err *err)
{
    if (!check_param(s, i, err) || !mem_replace(&s->given[i].text, text, err))
        return false;
    s->given[i].length = text ? strlen(text) : 0;
    s->given[i].is_null = !text;
    bind_text_given(s, i);
    return true;
}

static bool db_bind_bytes(DbStmt *s, unsigned i, const char *text, size_t n, Err *err)
{
    char *copy = check_param(s, i, err) ? mem_calloc(n + 1, 1, err) : NULL;
    if (!copy)
        return false;
    memcpy(copy, text, n);
    free(s->given[i].text);
    s->given[i].text = copy;
    s->given[i].length = n;
    s->given[i].is_null = 0;
    bind_text_given(s, i);
    return true;
}

static bool db_bind_int(DbStmt *s, unsigned i, int64_t v, Err *err)
{
    if (!check_param(s, i, err))
        return false;
    s->given[i].number = v;
    s->params[i] = (MYSQL_BIND){.buffer_type = MYSQL_TYPE_LONGLONG, .buffer = &s->given[i].number};
    return true;
}

static bool db_bind_null(DbStmt *s, unsigned i, Err *err)
{
    return db_bind_text(s, i, NULL, err);
}

static bool execute(DbStmt *s, Err *err)
{
    s->executed = true;
    if (s->db->in_transaction && !link_be_connected(s->db, err))
        return false;
    if ((s->params_len > 0 && mysql_stmt_bind_param(s->handle, s->params)) || mysql_stmt_execute(s->handle) != 0)
        return fail_stmt(s, "statement", err);
    s->db->affected = mysql_stmt_affected_rows(s->handle);
    s->db->last_id = (int64_t)mysql_stmt_insert_id(s->handle);
    if (s->columns_len == 0)
        return true;
    // no room is given: each value is fetched by itself, once its length is known
    for (unsigned i = 0; i < s->columns_len; i++)
        s->columns[i] = (MYSQL_BIND){
            .buffer_type = MYSQL_TYPE_STRING, .length = &s->read[i].length, .is_null = &s->read[i].is_null};
    // all rows at once: the caller asks other questions between two of them, unless it only reads
    if (mysql_stmt_bind_result(s->handle, s->columns) ||
        (!s->db->only_reads && mysql_stmt_store_result(s->handle) != 0))
        return fail_stmt(s, "result", err);
    return true;
}

static bool fetch_value(DbStmt *s, unsigned i, Err *err)
{
    Value *v = &s->read[i];
    free(mem_take(v->text));
    if (v->is_null)
        return true;
    if (v->length > TEXT_BYTES_MAX)
        return err_set(err, ERR_TOO_LARGE, "database: a value of %lu bytes", v->length);
    v->text = mem_calloc(v->length + 1, 1, err);
    if (!v->text)
        return false;
    MYSQL_BIND bind = {.buffer_type = MYSQL_TYPE_STRING,
                       .buffer = v->text,
                       .buffer_length = v->length + 1,
                       .length = &v->length,
                       .is_null = &v->is_null};
    return mysql_stmt_fetch_column(s->handle, &bind, i, 0) == 0 || fail_stmt(s, "value", err);
}

static bool db_step(DbStmt *s, bool *ret_row, Err *err)
{
    *ret_row = false;
    if (!s->executed && !execute(s, err))
        return false;
    if (s->columns_len == 0)
        return true;
    int rc = mysql_stmt_fetch(s->handle);
    if (rc == MYSQL_NO_DATA)
        return true;
    if (rc != 0 && rc != MYSQL_DATA_TRUNCATED)
        return fail_stmt(s, "row", err);
    for (unsigned i = 0; i < s->columns_len; i++)
        if (!fetch_value(s, i, err))
            return false;
    *ret_row = true;
    return true;
}

static const char *db_column_text(DbStmt *s, unsigned i)
{
    return s->read[i].text;
}

static int64_t db_column_int(DbStmt *s, unsigned i)
{
    return s->read[i].text ? strtoll(s->read[i].text, NULL, 10) : 0; // the server's own numbers
}

static bool db_column_is_null(DbStmt *s, unsigned i)
{
    return s->read[i].text == NULL;
}

static size_t db_column_size(DbStmt *s, unsigned i)
{
    return s->read[i].text ? s->read[i].length : 0;
}

static DbValue db_column_value(DbStmt *s, unsigned i)
{
    if (!s->read[i].text)
        return DB_VALUE_NULL;
    const MYSQL_FIELD *f = mysql_fetch_field_direct(s->about, i);
    switch (f->type) {
    case MYSQL_TYPE_LONG:
    case MYSQL_TYPE_LONGLONG: return (f->flags & UNSIGNED_FLAG) ? DB_VALUE_OTHER : DB_VALUE_NUMBER;
    case MYSQL_TYPE_STRING:
    case MYSQL_TYPE_VAR_STRING:
    case MYSQL_TYPE_BLOB: return f->charsetnr == CHARSET_BINARY ? DB_VALUE_OTHER : DB_VALUE_TEXT;
    default: return DB_VALUE_OTHER;
    }
}

static bool db_again(DbStmt *s, Err *err)
{
    s->executed = false;
    return s->columns_len == 0 || mysql_stmt_free_result(s->handle) == 0 || fail_stmt(s, "statement", err);
}

static uint64_t db_affected(Db *base)
{
    return self(base)->affected;
}

static int64_t db_last_id(Db *base)
{
    return self(base)->last_id;
}

// ---- transactions

static bool db_begin(Db *base, Err *err)
{
    if (!db_exec(base, "START TRANSACTION", err))
        return false;
    self(base)->in_transaction = true;
    return true;
}

// Where the connection breaks here nobody knows whether it was committed: the caller repeats, or looks.
static bool db_commit(Db *base, Err *err)
{
    DbMariadb *db = self(base);
    if (!link_be_connected(db, err))
        return false;
    bool ok = link_query(db, "COMMIT", err);
    db->base.undone = !ok && link_is_conflict(db->failed_with);
    db->in_transaction = db->in_transaction && !ok; // rollback follows
    return ok;
}

static void db_rollback(Db *base)
{
    DbMariadb *db = self(base);
    Err ignored = ERR_INIT; // with the connection its transaction is gone as well
    if (db->in_transaction && !db->lost && !link_query(db, "ROLLBACK", &ignored))
        db->lost = true; // else the next transaction would commit this one
    db->in_transaction = false;
}

// ---- for moving all of it

static bool db_only_read(Db *base, Err *err)
{
    DbMariadb *db = self(base);
    // else a text is sorted by its first 1024 bytes, where no index is at hand
    if (!db_exec(base,
                 "SET SESSION max_sort_length = 65536, SESSION net_write_timeout = 600, SESSION wait_timeout = 3600",
                 err) ||
        !db_exec(base, "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ", err) ||
        !db_exec(base, "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY", err))
        return false;
    db->in_transaction = db->only_reads = true; // what is lost once is lost for good
    return true;
}

static bool db_references(Db *base, bool checked, Err *err)
{
    return db_exec(base, checked ? "SET SESSION foreign_key_checks = 1" : "SET SESSION foreign_key_checks = 0", err);
}

static bool db_set_counter(Db *base, const char *table, int64_t next, Err *err)
{
    cleanup_free char *sql = mem_printf(err, "ALTER TABLE %s AUTO_INCREMENT = %lld", table, (long long)next);
    return sql && db_exec(base, sql, err);
}

// ---- opening

static bool db_snapshot(Db *base, Db **ret, Err *err)
{
    DbMariadb *db = self(base), *reader = NULL;
    const StoreMariadb spec = {.host = db->host,
                               .port = db->port,
                               .name = db->name,
                               .user = db->user,
                               .password = &db->password,
                               .tls = db->tls,
                               .tls_ca = db->tls_ca};
    if (!link_new(base->ops, &spec, false, &reader, err))
        return false;
    reader->only_reads = true; // it takes nobody's place
    reader->at = reader->next = db->at;
    if (!link_connect(reader, err) || !db_only_read(&reader->base, err)) {
        db_close(&reader->base);
        return err_context(err, "a snapshot of the database");
    }
    *ret = &reader->base;
    return true;
}

static const DbOps mariadb_ops = {
    .name = "mariadb",
    .close = db_close,
    .exec = db_exec,
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
    .only_read = db_only_read,
    .references = db_references,
    .tables = "SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE()"
              " AND table_type = 'BASE TABLE' ORDER BY BINARY table_name",
    .columns = "SELECT c.column_name, COALESCE(k.ordinal_position, 0) FROM information_schema.columns c"
               " LEFT JOIN information_schema.key_column_usage k ON k.table_schema = c.table_schema"
               " AND k.table_name = c.table_name AND k.column_name = c.column_name AND k.constraint_name = 'PRIMARY'"
               " WHERE c.table_schema = DATABASE() AND c.table_name = ? ORDER BY c.ordinal_position",
    .counter = "SELECT auto_increment FROM information_schema.tables WHERE table_schema = DATABASE()"
               " AND table_name = ?",
    .bytes = "SELECT CAST(SUM(data_length + index_length) AS SIGNED) FROM information_schema.tables"
             " WHERE table_schema = DATABASE()",
    .set_counter = db_set_counter,
    .snapshot = db_snapshot,
};

static bool open_for(const StoreMariadb *spec, bool migrates, Db **ret, Err *err)
{
    DbMariadb *db = NULL;
    if (!link_new(&mariadb_ops, spec, migrates, &db, err))
        return false;
    if (!link_connect(db, err)) {
        db_close(&db->base);
        return err_context(err, "MariaDB at %s, database %s, user %s", spec->host, spec->name, spec->user);
    }
    *ret = &db->base;
    return true;
}

bool db_mariadb_open(const StoreMariadb *spec, Db **ret, Err *err)
{
    return open_for(spec, false, ret, err);
}

bool db_mariadb_migrate(const StoreMariadb *spec, Err *err)
{
    Db *db = NULL;
    if (!open_for(spec, true, &db, err))
        return false;
    bool ok = db_migrate(db, NULL, err);
    db_close(db);
    return ok;
}
