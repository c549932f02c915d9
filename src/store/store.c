#include "store/store.h"

#include "store/tables.h"

#include <pthread.h>

static Store *store_new(Err *err)
{
    Store *s = mem_calloc(1, sizeof(*s), err);
    if (!s)
        return NULL;
    pthread_mutexattr_t attr;
    (void)pthread_mutexattr_init(&attr); // cannot fail on Linux
    (void)pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_RECURSIVE);
    (void)pthread_mutex_init(&s->lock, &attr);
    (void)pthread_mutexattr_destroy(&attr);
    return s;
}

bool store_open_sqlite(const char *path, Store **ret, Err *err)
{
    Store *s = store_new(err);
    if (!s || !db_sqlite_open(path, &s->db, err) || !db_migrate(s->db, path, err)) {
        store_close(s);
        return false;
    }
    *ret = s;
    return true;
}

bool store_open_mariadb(const StoreMariadb *spec, Store **ret, Err *err)
{
    Store *s = store_new(err);
    if (!s || !db_mariadb_open(spec, &s->db, err) || !db_migrate(s->db, NULL, err)) {
        store_close(s);
        return false;
    }
    *ret = s;
    return true;
}

void store_close(Store *s)
{
    if (!s)
        return;
    if (s->db)
        s->db->ops->close(s->db);
    (void)pthread_mutex_destroy(&s->lock);
    free(s);
}

const char *store_engine(const Store *s)
{
    return s->db->ops->name;
}

void store_lock(Store *s)
{
    (void)pthread_mutex_lock(&s->lock); // a recursive mutex of ours: only misuse can fail
}

void store_unlock(Store *s)
{
    (void)pthread_mutex_unlock(&s->lock);
}

bool store_begin_beside(Store *s, Err *err)
{
    store_lock(s);
    if (s->db->ops->begin(s->db, err))
        return true;
    store_unlock(s);
    return false;
}

bool store_commit(Store *s, Err *err)
{
    bool ok = s->db->ops->commit(s->db, err);
    if (!ok)
        s->db->ops->rollback(s->db);
    store_unlock(s);
    return ok;
}

void store_rollback(Store *s)
{
    s->db->ops->rollback(s->db);
    store_unlock(s);
}

bool store_insert(Store *s, const DbTable *t, const void *row, Err *err)
{
    store_lock(s);
    bool ok = db_insert(s->db, t, row, err);
    store_unlock(s);
    return ok;
}

bool store_one(Store *s, const DbTable *t, const char *tail, const DbArg *args, size_t n, void *row, bool *ret_found,
               Err *err)
{
    store_lock(s);
    bool ok = db_select_one(s->db, t, tail, args, n, row, ret_found, err);
    store_unlock(s);
    return ok;
}

bool store_all(Store *s, const DbTable *t, const char *tail, const DbArg *args, size_t n, void **ret, size_t *ret_len,
               Err *err)
{
    store_lock(s);
    bool ok = db_select_all(s->db, t, tail, args, n, ret, ret_len, err);
    store_unlock(s);
    return ok;
}

bool store_run(Store *s, const char *sql, const DbArg *args, size_t n, uint64_t *ret_affected, Err *err)
{
    store_lock(s);
    bool ok = db_run(s->db, sql, args, n, ret_affected, err);
    store_unlock(s);
    return ok;
}

bool store_number(Store *s, const char *sql, const DbArg *args, size_t n, int64_t fallback, int64_t *ret, Err *err)
{
    store_lock(s);
    bool ok = db_number(s->db, sql, args, n, fallback, ret, err);
    store_unlock(s);
    return ok;
}
