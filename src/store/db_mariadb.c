// MariaDB behind the seam: prepared statements over one connection, which is opened again when the server went away.
// docs/internals/mariadb.md.
#include "store/db.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/str.h"
#include "store/hosts.h"

#include <errmsg.h>
#include <mysql.h>
#include <mysqld_error.h>
#include <stdio.h>
#include <time.h>

#define CONNECT_S 10
#define ANSWER_S 60
#define CONNECT_NEXT_S 3 // where there is another host to turn to: well within a hub's lease
#define ANSWER_NEXT_S 15
#define ANSWER_ALONE_S 3600 // of who has the database for itself: an index of a million rows, a table that is emptied
#define STALL_S "8"         // of a hub within a transaction: it is undone, before the others give up waiting (10 s)
#define SQL_MAX 65536
#define CHARSET_BINARY 63
#define TEXT_BYTES_MAX (16u << 20) // of one value that is read

typedef struct DbMariadb {
    Db base;
    MYSQL *handle;                              // NULL: not connected
    char *host, *name, *user, *tls_ca, *hub_id; // hub_id NULL: alone
    Secret password;
    unsigned port;
    StoreHosts hosts; // of host and port
    size_t at, next;  // the one it is, or was, connected to; with which the next connecting begins
    StoreTls tls;
    unsigned failed_with; // the last error's number
    bool in_transaction;
    bool only_reads; // rows come one by one, however many there are
    bool lost;       // the connection, within a transaction or not
    bool migrates;   // and nothing else
    uint64_t affected;
    int64_t last_id;
} DbMariadb;

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

// ---- errors

// Whatever the client's side says is of the connection, but for a lack of memory.
static bool is_lost(unsigned code)
{
    return (code >= CR_MIN_ERROR && code <= CR_MAX_ERROR && code != CR_OUT_OF_MEMORY) || code == ER_SERVER_SHUTDOWN ||
        code == ER_CONNECTION_KILLED || code == ER_UNKNOWN_COM_ERROR || // a Galera node that is not ready
        (code >= ER_NET_READ_ERROR && code <= ER_NET_WRITE_INTERRUPTED);
}

// Another transaction was in the way, on this server or another one, and this one is rolled back: also where COMMIT
// says it.
static bool is_conflict(unsigned code)
{
    return code == ER_LOCK_DEADLOCK || code == ER_LOCK_WAIT_TIMEOUT || code == ER_CHECKREAD;
}

// Nothing of the statement has happened, nor will. Of a COMMIT only is_conflict() says so: what is lost there may have
// been on its way to the other nodes.
static bool is_undone(const DbMariadb *db, unsigned code)
{
    bool vague = code == ER_QUERY_INTERRUPTED || code == ER_ERROR_DURING_COMMIT || is_lost(code);
    if (code == ER_LOCK_WAIT_TIMEOUT && !db->base.clustered)
        return false; // ten seconds are enough; in a cluster another node may answer at once
    return is_conflict(code) || code == ER_UNKNOWN_COM_ERROR || (db->in_transaction && vague);
}

static ErrCode code_of(unsigned code)
{
    switch (code) {
    case ER_DUP_ENTRY:
    case ER_DUP_ENTRY_WITH_KEY_NAME: return ERR_EXISTS;
    case ER_ROW_IS_REFERENCED_2:
    case ER_NO_REFERENCED_ROW_2: return ERR_CONFLICT; // another row needs it
    case ER_ACCESS_DENIED_ERROR:
    case ER_DBACCESS_DENIED_ERROR:
    case ER_TABLEACCESS_DENIED_ERROR:
    case ER_SPECIFIC_ACCESS_DENIED_ERROR: return ERR_FORBIDDEN;
    case ER_BAD_DB_ERROR: return ERR_NOT_FOUND;
    case CR_OUT_OF_MEMORY: return ERR_NO_MEMORY;
    case ER_DATA_TOO_LONG: return ERR_INVALID;
    case ER_QUERY_INTERRUPTED:
    case ER_LOCK_WAIT_TIMEOUT:
    case ER_LOCK_DEADLOCK:
    case ER_CHECKREAD:
    case ER_ERROR_DURING_COMMIT:
    case ER_ERROR_DURING_ROLLBACK:
    case ER_OPTION_PREVENTS_STATEMENT: // read-only for a while
    case ER_CON_COUNT_ERROR: return ERR_UNAVAILABLE;
    default: return is_lost(code) ? ERR_UNAVAILABLE : ERR_INTERNAL;
    }
}

// Whichever part of the server met it. Its words may be of any language; the numbers are ENOSPC, EDQUOT.
static bool is_full(unsigned code, const char *text)
{
    switch (code) {
    case ER_DISK_FULL:
    case ER_RECORD_FILE_FULL: return true;
    case ER_ERROR_ON_WRITE:
    case ER_GET_ERRNO:
    case ER_CANT_CREATE_TABLE:
    case ER_CANT_CREATE_FILE: return strstr(text, " 28 ") != NULL || strstr(text, " 122 ") != NULL;
    default: return false;
    }
}

static bool fail(DbMariadb *db, const char *what, unsigned code, const char *text, Err *err)
{
    db->failed_with = code;
    if (is_full(code, text))
        return err_set(err, ERR_NO_SPACE,
                       "database: the server has no space left: %s (%u); HINT: make room on its disk, nothing has to be"
                       " started anew",
                       text, code);
    // a node that is cut off says to whoever wants to read what is newest that it has waited for too long
    bool lost = is_lost(code) || (db->base.clustered && code == ER_LOCK_WAIT_TIMEOUT);
    db->lost = db->lost || lost;
    db->base.undone = db->base.undone || is_undone(db, code);
    if (lost && code != CR_SERVER_GONE_ERROR) // it ended between two calls: it may be there again
        db->next = (db->at + 1) % db->hosts.len;
    return err_set(err, code_of(code), "database: %s (%u): %.200s", text, code, what);
}

static bool fail_stmt(DbStmt *s, const char *what, Err *err)
{
    return fail(s->db, what, mysql_stmt_errno(s->handle), mysql_stmt_error(s->handle), err);
}

// ---- the connection

static bool query(DbMariadb *db, const char *sql, Err *err)
{
    if (mysql_real_query(db->handle, sql, strlen(sql)) != 0)
        return fail(db, sql, mysql_errno(db->handle), mysql_error(db->handle), err);
    MYSQL_RES *rows = mysql_store_result(db->handle); // NULL for what gives none
    mysql_free_result(rows);
    return true;
}

static void disconnect(DbMariadb *db)
{
    if (db->handle)
        mysql_close(db->handle);
    db->handle = NULL;
}

// The first column of the first row, as a number; fallback where there is none.
static bool ask_number(DbMariadb *db, const char *sql, long long fallback, long long *ret, Err *err)
{
    MYSQL_RES *rows = NULL;
    MYSQL_ROW row = NULL;
    if (mysql_real_query(db->handle, sql, strlen(sql)) != 0 || !(rows = mysql_store_result(db->handle)))
        return fail(db, "lock", mysql_errno(db->handle), mysql_error(db->handle), err);
    *ret = (row = mysql_fetch_row(rows)) && row[0] ? strtoll(row[0], NULL, 10) : fallback;
    mysql_free_result(rows);
    return true;
}

// In a cluster a lock is one server's, if it has any.
static bool ask_lock(DbMariadb *db, const char *sql, long long *ret, Err *err)
{
    Err why = ERR_INIT;
    if (ask_number(db, sql, 0, ret, &why))
        return true;
    if (db->base.clustered && db->failed_with == ER_NOT_SUPPORTED_YET) {
        *ret = 1;
        return true;
    }
    *err = why;
    return false;
}

// Locks live as long as the connection: one for each hub, by its ID, and one for who wants to be alone. A connection
// that ended a moment ago may hold them for another one. Names have at most 64 characters.
#define LOCK_ALONE "CONCAT('sendense.', SHA1(DATABASE()))"
#define LOCK_HUB(id) "CONCAT('sendense.', SHA1(CONCAT(DATABASE(), '.', " id ")))"

static bool hold_as_hub(DbMariadb *db, Err *err)
{
    char sql[200];
    long long held, free;
    (void)snprintf(sql, sizeof(sql), "SELECT GET_LOCK(" LOCK_HUB("'%s'") ", 3)", db->hub_id);
    if (!ask_lock(db, sql, &held, err) || !ask_lock(db, "SELECT IS_FREE_LOCK(" LOCK_ALONE ")", &free, err))
        return false;
    if (!held)
        return err_set(err, ERR_BUSY,
                       "a hub with this one's ID (hub-id in the data folder) uses the database %s already; HINT: of a "
                       "data folder that was copied, remove hub-id",
                       db->name);
    return free ||
        err_set(err, ERR_BUSY, "the database %s is being moved or restored, or an earlier version's hub uses it",
                db->name);
}

// In a cluster: does a hub raise its number, at whichever server?
static bool look_for_beats(DbMariadb *db, long long *ret_alive, Err *err)
{
    const char *beats = "SELECT SUM(beats) FROM hubs WHERE stopped = 0";
    long long lease_s, before, now;
    if (!ask_number(db, beats, 0, &before, err) ||
        !ask_number(db, "SELECT MAX(lease_seconds) FROM hubs WHERE stopped = 0", 0, &lease_s, err))
        return false;
    now = before;
    for (int64_t until = clock_mono_ms() + STORE_LOOK_MS(lease_s); now == before && clock_mono_ms() < until;) {
        (void)nanosleep(&(struct timespec){.tv_nsec = 100 * 1000 * 1000}, NULL);
        if (!ask_number(db, beats, 0, &now, err))
            return false;
    }
    *ret_alive = now != before;
    return true;
}

static bool hold_alone(DbMariadb *db, Err *err)
{
    long long held, tables, hubs = 0;
    bool ok = ask_lock(db, "SELECT GET_LOCK(" LOCK_ALONE ", 3)", &held, err) &&
        ask_number(db,
                   "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name ="
                   " 'hubs'",
                   0, &tables, err) &&
        (tables == 0 ||
         (db->base.clustered
              ? look_for_beats(db, &hubs, err)
              : ask_number(db, "SELECT COUNT(*) FROM hubs WHERE IS_USED_LOCK(" LOCK_HUB("id") ") IS NOT NULL", 0, &hubs,
                           err)));
    return ok &&
        ((held && hubs == 0) || err_set(err, ERR_BUSY, "a hub uses the database %s; stop all of them", db->name));
}

// The connector does no TLS of itself, and with TLS looks at no certificate; and it would give the password as it is to
// any server that asks for it by another method than these.
static bool set_tls(MYSQL *m, const DbMariadb *db)
{
    my_bool yes = 1;
    bool tls = db->tls != STORE_TLS_OFF, verified = db->tls == STORE_TLS_REQUIRED;
    return (!tls || mysql_optionsv(m, MYSQL_OPT_SSL_ENFORCE, (void *)&yes) == 0) &&
        (!verified || mysql_optionsv(m, MYSQL_OPT_SSL_VERIFY_SERVER_CERT, (void *)&yes) == 0) &&
        (!verified || !db->tls_ca || mysql_optionsv(m, MYSQL_OPT_SSL_CA, (void *)db->tls_ca) == 0) &&
        (verified || mysql_optionsv(m, MARIADB_OPT_RESTRICTED_AUTH, "mysql_native_password,client_ed25519") == 0);
}

static bool set_options(MYSQL *m, const DbMariadb *db, bool socket)
{
    bool turns = db->hosts.len > 1;
    unsigned connect_s = turns ? CONNECT_NEXT_S : CONNECT_S, off = 0;
    unsigned answer_s = db->migrates || !db->hub_id ? ANSWER_ALONE_S : turns ? ANSWER_NEXT_S : ANSWER_S;
    unsigned protocol = socket ? MYSQL_PROTOCOL_SOCKET : MYSQL_PROTOCOL_TCP; // "localhost" is a host here, too
    return mysql_optionsv(m, MYSQL_OPT_CONNECT_TIMEOUT, (void *)&connect_s) == 0 &&
        mysql_optionsv(m, MYSQL_OPT_READ_TIMEOUT, (void *)&answer_s) == 0 &&
        mysql_optionsv(m, MYSQL_OPT_WRITE_TIMEOUT, (void *)&answer_s) == 0 &&
        mysql_optionsv(m, MYSQL_OPT_PROTOCOL, (void *)&protocol) == 0 &&
        mysql_optionsv(m, MYSQL_OPT_LOCAL_INFILE, (void *)&off) == 0 && // no file of ours is the server's to ask for
        mysql_optionsv(m, MYSQL_SET_CHARSET_NAME, (void *)"utf8mb4") == 0;
}

// A server that was not told of our end keeps the old connection, and its lock, for long.
static void end_before(DbMariadb *db, unsigned long thread)
{
    char sql[48];
    Err gone = ERR_INIT; // as it should be
    (void)snprintf(sql, sizeof(sql), "KILL CONNECTION %lu", thread);
    if (thread != 0)
        (void)!query(db, sql, &gone);
}

static bool refused(DbMariadb *db, Err *err)
{
    unsigned code = mysql_errno(db->handle);
    if (code == CR_PLUGIN_NOT_ALLOWED) // of Connector/C's own words one is any part of its memory
        return err_set(err, ERR_FORBIDDEN,
                       "database: the server asks for the password in a way by which it might be read on the way; HINT:"
                       " db-tls = required, or a user of the method mysql_native_password or ed25519");
    if (code != CR_SSL_CONNECTION_ERROR)
        return fail(db, "connecting", code, mysql_error(db->handle), err);
    return err_set(
        err, ERR_UNAVAILABLE, "database: %s (%u); HINT: %s", mysql_error(db->handle), code,
        db->tls == STORE_TLS_REQUIRED
            ? "db-tls-ca is to name the CA of the server's certificate, and db-host a name or address that is "
              "in it; db-tls = unverified or off goes without"
            : "give the server a certificate (ssl_cert, ssl_key), or say db-tls = off");
}

// Of SHOW: is the one's value this?
static bool shows(DbMariadb *db, const char *sql, const char *value, bool *ret, Err *err)
{
    MYSQL_RES *rows = NULL;
    MYSQL_ROW row = NULL;
    if (mysql_real_query(db->handle, sql, strlen(sql)) != 0 || !(rows = mysql_store_result(db->handle)))
        return fail(db, sql, mysql_errno(db->handle), mysql_error(db->handle), err);
    *ret = (row = mysql_fetch_row(rows)) && row[1] && strcasecmp(row[1], value) == 0;
    mysql_free_result(rows);
    return true;
}

// A node of a cluster has to be one of its greater part; what it answers is not older than what any node has confirmed.
static bool join_cluster(DbMariadb *db, Err *err)
{
    bool ready = true;
    if (!shows(db, "SHOW GLOBAL VARIABLES LIKE 'wsrep_on'", "ON", &db->base.clustered, err) ||
        (db->base.clustered && !shows(db, "SHOW GLOBAL STATUS LIKE 'wsrep_ready'", "ON", &ready, err)))
        return false;
    if (!ready)
        return err_set(err, ERR_UNAVAILABLE,
                       "database: this node is not ready; it is cut off from most of its cluster, or has just started");
    return !db->base.clustered || query(db, "SET SESSION wsrep_sync_wait = 7", err);
}

static bool connect_to(DbMariadb *db, size_t at, Err *err)
{
    const StoreHost *host = &db->hosts.at[at];
    // a thread's number is one server's
    unsigned long before = db->handle && at == db->at ? mysql_thread_id(db->handle) : 0;
    bool socket = host->name[0] == '/';
    disconnect(db);
    db->handle = mysql_init(NULL);
    if (!db->handle || !set_options(db->handle, db, socket) || !(socket || set_tls(db->handle, db))) {
        disconnect(db);
        return err_no_memory(err);
    }
    // affected rows are those that were found, as SQLite counts them
    bool ok =
        mysql_real_connect(db->handle, socket ? NULL : host->name, db->user, secret_reveal(&db->password), db->name,
                           socket ? 0 : host->port, socket ? host->name : NULL, CLIENT_FOUND_ROWS) != NULL ||
        refused(db, err);
    if (ok && !socket && db->tls != STORE_TLS_OFF && !mysql_get_ssl_cipher(db->handle))
        ok = err_set(
            err, ERR_UNAVAILABLE,
            "database: the server has no TLS; HINT: give it a certificate (ssl_cert, ssl_key), or say db-tls = off");
    ok = ok &&
        query(db,
              "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', autocommit = 1,"
              " innodb_lock_wait_timeout = 10, foreign_key_checks = 1, wait_timeout = 60",
              err) &&
        query(db, "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED", err) &&
        (!db->hub_id || query(db, "SET SESSION idle_write_transaction_timeout = " STALL_S, err)) &&
        join_cluster(db, err);
    db->lost = !ok;
    if (ok && !db->only_reads) {
        end_before(db, before);
        ok = db->hub_id ? hold_as_hub(db, err) : hold_alone(db, err);
        db->lost = !ok;
    }
    if (!ok)
        disconnect(db);
    return ok;
}

// Of several hosts the one that works now comes first; the error is that one's, and names the others'.
static bool connect_now(DbMariadb *db, Err *err)
{
    Err first = ERR_INIT;
    size_t begin = db->next, len = db->hosts.len;
    for (size_t i = 0; i < len; i++) {
        Err each = ERR_INIT;
        size_t at = (begin + i) % len;
        const StoreHost *host = &db->hosts.at[at];
        if (connect_to(db, at, &each)) {
            if (len > 1 && at != db->at)
                log_warn("another host of the database is used from here on", LOG_STR("host", host->name),
                         LOG_NUM("port", host->port));
            db->at = db->next = at;
            return true;
        }
        if (len > 1)
            (void)err_context(&each, "%s:%u", host->name, host->port);
        size_t n = strlen(first.details);
        if (i == 0)
            first = each;
        else
            (void)snprintf(first.details + n, sizeof(first.details) - n, "; %.300s", each.details);
    }
    *err = first;
    return false;
}

// Within a transaction what was lost, or undone, stays so: the caller gives up and begins anew. After a deadlock the
// server has no transaction any more, and would take each further statement for one of its own.
static bool be_connected(DbMariadb *db, Err *err)
{
    if (db->in_transaction && db->base.undone && !db->lost)
        return err_set(err, ERR_UNAVAILABLE, "database: the transaction was undone by another one");
    if (!db->lost && db->handle)
        return true;
    if (db->in_transaction)
        return err_set(err, ERR_UNAVAILABLE, "database: the connection was lost within a transaction");
    Err why = ERR_INIT;
    if (connect_now(db, &why))
        return true;
    *err = why;
    err->code = ERR_UNAVAILABLE; // whatever it is: it was fine before, and nobody's job ends for it
    return false;
}

static void db_close(Db *base)
{
    if (!base)
        return;
    DbMariadb *db = self(base);
    disconnect(db);
    free(db->host);
    free(db->name);
    free(db->user);
    free(db->tls_ca);
    free(db->hub_id);
    secret_clear(&db->password);
    free(db);
}

// A connection that broke since its last use is opened again, once: nothing of this statement has happened yet.
static bool db_exec(Db *base, const char *sql, Err *err)
{
    DbMariadb *db = self(base);
    Err first = ERR_INIT;
    if (!be_connected(db, err))
        return false;
    if (query(db, sql, &first))
        return true;
    if (db->lost && !db->in_transaction)
        return be_connected(db, err) && query(db, sql, err);
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
    bool ok = be_connected(db, err) &&
        add_replaced(&ids, sql, "INTEGER PRIMARY KEY AUTOINCREMENT", "BIGINT PRIMARY KEY AUTO_INCREMENT", err) &&
        add_replaced(&all, ids.s, " TEXT", " MEDIUMTEXT", err) &&
        (!table || str_add(&all, " ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin", err));
    if (ok && !query(db, all.s, &failed) && !(again && is_there_already(mysql_errno(db->handle)))) {
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
    bool ok = be_connected(db, err);
    if (ok && !prepare(s, sql, &first)) {
        // as in db_exec(): nothing has happened yet
        ok = db->lost && !db->in_transaction && be_connected(db, err) && prepare(s, sql, err);
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
    if (s->db->in_transaction && !be_connected(s->db, err))
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
    if (!be_connected(db, err))
        return false;
    bool ok = query(db, "COMMIT", err);
    db->base.undone = !ok && is_conflict(db->failed_with);
    db->in_transaction = db->in_transaction && !ok; // rollback follows
    return ok;
}

static void db_rollback(Db *base)
{
    DbMariadb *db = self(base);
    Err ignored = ERR_INIT; // with the connection its transaction is gone as well
    if (db->in_transaction && !db->lost && !query(db, "ROLLBACK", &ignored))
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

static bool new_db(const DbOps *ops, const StoreMariadb *spec, DbMariadb **ret, Err *err)
{
    DbMariadb *db = mem_calloc(1, sizeof(*db), err);
    if (!db)
        return false;
    db->base.ops = ops;
    db->port = spec->port;
    db->tls = spec->tls;
    if (store_hosts_parse(spec->host, spec->port, &db->hosts, err) && mem_replace(&db->tls_ca, spec->tls_ca, err) &&
        mem_replace(&db->hub_id, spec->hub_id, err) && mem_replace(&db->host, spec->host, err) &&
        mem_replace(&db->name, spec->name, err) && mem_replace(&db->user, spec->user, err) &&
        (!spec->password || secret_set(&db->password, secret_reveal(spec->password), err))) {
        *ret = db;
        return true;
    }
    db_close(&db->base);
    return false;
}

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
    if (!new_db(base->ops, &spec, &reader, err))
        return false;
    reader->only_reads = true; // it takes nobody's place
    reader->at = reader->next = db->at;
    if (!connect_now(reader, err) || !db_only_read(&reader->base, err)) {
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
    .set_counter = db_set_counter,
    .snapshot = db_snapshot,
};

static bool open_for(const StoreMariadb *spec, bool migrates, Db **ret, Err *err)
{
    DbMariadb *db = NULL;
    if (!new_db(&mariadb_ops, spec, &db, err))
        return false;
    db->migrates = migrates;
    if (!connect_now(db, err)) {
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
