#include "store/mariadb_link.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/str.h"

#include <errmsg.h>
#include <mysqld_error.h>
#include <stdio.h>
#include <time.h>

#define CONNECT_S 10
#define ANSWER_S 60
#define CONNECT_NEXT_S 3 // where there is another host to turn to: well within a hub's lease
#define ANSWER_NEXT_S 15
#define ANSWER_ALONE_S 3600 // of who has the database for itself: an index of a million rows, a table that is emptied
#define STALL_S "8"         // of a hub within a transaction: it is undone, before the others give up waiting (10 s)

// ---- errors

#define ACCESS_DENIED "database access denied" // what ERR_FORBIDDEN is called by itself speaks of a token

// Whatever the client's side says is of the connection, but for a lack of memory.
static bool is_lost(unsigned code)
{
    return (code >= CR_MIN_ERROR && code <= CR_MAX_ERROR && code != CR_OUT_OF_MEMORY) || code == ER_SERVER_SHUTDOWN ||
        code == ER_CONNECTION_KILLED || code == ER_UNKNOWN_COM_ERROR || // a Galera node that is not ready
        (code >= ER_NET_READ_ERROR && code <= ER_NET_WRITE_INTERRUPTED);
}

bool link_is_conflict(unsigned code)
{
    return code == ER_LOCK_DEADLOCK || code == ER_LOCK_WAIT_TIMEOUT || code == ER_CHECKREAD;
}

// Nothing of the statement has happened, nor will. Of a COMMIT only link_is_conflict() says so: what is lost there may
// have been on its way to the other nodes.
static bool is_undone(const DbMariadb *db, unsigned code)
{
    bool vague = code == ER_QUERY_INTERRUPTED || code == ER_ERROR_DURING_COMMIT || is_lost(code);
    if (code == ER_LOCK_WAIT_TIMEOUT && !db->base.clustered)
        return false; // ten seconds are enough; in a cluster another node may answer at once
    return link_is_conflict(code) || code == ER_UNKNOWN_COM_ERROR || (db->in_transaction && vague);
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

bool link_fail(DbMariadb *db, const char *what, unsigned code, const char *text, Err *err)
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
    ErrCode means = code_of(code);
    (void)err_set(err, means, "database: %s (%u): %.200s%s", text, code, what,
                  code == ER_BAD_DB_ERROR ? "; HINT: make the database and its user; the hub makes neither" : "");
    return means == ERR_FORBIDDEN ? err_title(err, ACCESS_DENIED) : false;
}

// ---- the connection

bool link_query(DbMariadb *db, const char *sql, Err *err)
{
    if (mysql_real_query(db->handle, sql, strlen(sql)) != 0)
        return link_fail(db, sql, mysql_errno(db->handle), mysql_error(db->handle), err);
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
        return link_fail(db, "lock", mysql_errno(db->handle), mysql_error(db->handle), err);
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
        (void)!link_query(db, sql, &gone);
}

static bool refused(DbMariadb *db, Err *err)
{
    unsigned code = mysql_errno(db->handle);
    if (code == CR_PLUGIN_NOT_ALLOWED) { // of Connector/C's own words one is any part of its memory
        (void)err_set(err, ERR_FORBIDDEN,
                      "database: the server asks for the password in a way by which it might be read on the way; HINT:"
                      " db-tls = required, or a user of the method mysql_native_password or ed25519");
        return err_title(err, ACCESS_DENIED);
    }
    if (code != CR_SSL_CONNECTION_ERROR)
        return link_fail(db, "connecting", code, mysql_error(db->handle), err);
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
        return link_fail(db, sql, mysql_errno(db->handle), mysql_error(db->handle), err);
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
    return !db->base.clustered || link_query(db, "SET SESSION wsrep_sync_wait = 7", err);
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
        link_query(db,
                   "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', autocommit = 1,"
                   " innodb_lock_wait_timeout = 10, foreign_key_checks = 1, wait_timeout = 60",
                   err) &&
        link_query(db, "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED", err) &&
        (!db->hub_id || link_query(db, "SET SESSION idle_write_transaction_timeout = " STALL_S, err)) &&
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

bool link_connect(DbMariadb *db, Err *err)
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

bool link_be_connected(DbMariadb *db, Err *err)
{
    if (db->in_transaction && db->base.undone && !db->lost)
        return err_set(err, ERR_UNAVAILABLE, "database: the transaction was undone by another one");
    if (!db->lost && db->handle)
        return true;
    if (db->in_transaction)
        return err_set(err, ERR_UNAVAILABLE, "database: the connection was lost within a transaction");
    Err why = ERR_INIT;
    if (link_connect(db, &why))
        return true;
    *err = why;
    err->code = ERR_UNAVAILABLE; // whatever it is: it was fine before, and nobody's job ends for it
    return false;
}

void link_free(DbMariadb *db)
{
    if (!db)
        return;
    disconnect(db);
    free(db->host);
    free(db->name);
    free(db->user);
    free(db->tls_ca);
    free(db->hub_id);
    secret_clear(&db->password);
    free(db);
}

bool link_new(const DbOps *ops, const StoreMariadb *spec, bool migrates, DbMariadb **ret, Err *err)
{
    DbMariadb *db = mem_calloc(1, sizeof(*db), err);
    if (!db)
        return false;
    db->base.ops = ops;
    db->migrates = migrates;
    db->port = spec->port;
    db->tls = spec->tls;
    if (store_hosts_parse(spec->host, spec->port, &db->hosts, err) && mem_replace(&db->tls_ca, spec->tls_ca, err) &&
        mem_replace(&db->hub_id, spec->hub_id, err) && mem_replace(&db->host, spec->host, err) &&
        mem_replace(&db->name, spec->name, err) && mem_replace(&db->user, spec->user, err) &&
        (!spec->password || secret_set(&db->password, secret_reveal(spec->password), err))) {
        *ret = db;
        return true;
    }
    link_free(db);
    return false;
}
