// A connection to MariaDB: where it leads, how it is opened again when the server went away, what its errors mean.
// Between mariadb_link.c and db_mariadb.c; not thread-safe, as all of a Db is: the Store's lock is around it.
#pragma once

#include "store/db.h"
#include "store/hosts.h"

#include <mysql.h>

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

// Not connected yet. migrates: and nothing else. The caller frees.
bool link_new(const DbOps *ops, const StoreMariadb *spec, bool migrates, DbMariadb **ret, Err *err) must_check;
void link_free(DbMariadb *db);

// Of several hosts the one that works now comes first; the error is that one's, and names the others'.
bool link_connect(DbMariadb *db, Err *err) must_check;
// Within a transaction what was lost, or undone, stays so: the caller gives up and begins anew. After a deadlock the
// server has no transaction any more, and would take each further statement for one of its own.
bool link_be_connected(DbMariadb *db, Err *err) must_check;
// One statement, of whose rows nobody wants to know.
bool link_query(DbMariadb *db, const char *sql, Err *err) must_check;
// Of the server's, or the connector's, error: err, and what it means for the connection and the transaction. Is false.
bool link_fail(DbMariadb *db, const char *what, unsigned code, const char *text, Err *err);
// Another transaction was in the way, on this server or another one, and this one is rolled back: also where COMMIT
// says it.
bool link_is_conflict(unsigned code);
