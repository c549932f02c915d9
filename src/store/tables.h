// Which struct member is which column. Private to store/.
#pragma once

#include "store/db.h"
#include "store/store.h"

#include <pthread.h>

struct Store {
    Db *db;
    pthread_mutex_t lock; // recursive: held for a question, and from store_begin() to its end
    bool in_transaction;
    char hub[UUID_TEXT]; // who uses it; "": nobody
    int64_t entered_us;  // since when
};

extern const DbTable tables_repository, tables_source, tables_vm, tables_disk_number, tables_backup, tables_disk,
    tables_export, tables_replication, tables_change_id, tables_token, tables_trail, tables_user,
    tables_session;

// Run statements as one transaction, also inside one that this thread has open.
void store_lock(Store *s);
void store_unlock(Store *s);

// Notes that this ID was given, and is not to be given again. state.c
bool store_id_removed(Store *s, const char *backup_id, Err *err) must_check;

// Shorthands that take the lock.
bool store_insert(Store *s, const DbTable *t, const void *row, Err *err) must_check;
bool store_one(Store *s, const DbTable *t, const char *tail, const DbArg *args, size_t n, void *row, bool *ret_found,
               Err *err) must_check;
bool store_all(Store *s, const DbTable *t, const char *tail, const DbArg *args, size_t n, void **ret, size_t *ret_len,
               Err *err) must_check;
bool store_run(Store *s, const char *sql, const DbArg *args, size_t n, uint64_t *ret_affected, Err *err) must_check;
bool store_number(Store *s, const char *sql, const DbArg *args, size_t n, int64_t fallback, int64_t *ret, Err *err)
    must_check;
