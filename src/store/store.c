#include "store/store.h"

#include "base/clock.h"
#include "store/tables.h"

#include <pthread.h>
#include <time.h>

#define REPEAT_MS 15000 // a statement that waited for a lock has taken ten seconds already
#define PAUSE_MS_MAX 50

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
    if (!s || !db_mariadb_migrate(spec, err) || !db_mariadb_open(spec, &s->db, err)) {
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

bool store_bytes(Store *s, uint64_t *ret, Err *err)
{
    int64_t bytes;
    if (!store_number(s, s->db->ops->bytes, DB_NO_ARGS, 0, &bytes, err))
        return false;
    *ret = (uint64_t)MAX(bytes, 0);
    return true;
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
    s->db->undone = false;
    if (s->db->ops->begin(s->db, err)) {
        s->in_transaction = true;
        return true;
    }
    store_unlock(s);
    return false;
}

bool store_commit(Store *s, Err *err)
{
    bool ok = s->db->ops->commit(s->db, err);
    if (!ok)
        s->db->ops->rollback(s->db);
    s->in_transaction = false;
    store_unlock(s);
    return ok;
}

void store_rollback(Store *s)
{
    s->db->ops->rollback(s->db);
    s->in_transaction = false;
    store_unlock(s);
}

// ---- what came to nothing for another one's sake is done again

static bool may_repeat(unsigned *pause_ms, int64_t *until_ms, Err *err)
{
    if (*until_ms == 0)
        *until_ms = clock_mono_ms() + REPEAT_MS;
    if (clock_mono_ms() >= *until_ms)
        return false;
    // two that meet again and again do not meet for ever
    *pause_ms = MIN(*pause_ms + 4, (unsigned)PAUSE_MS_MAX);
    (void)nanosleep(&(struct timespec){.tv_nsec = (long)(1 + arc4random_uniform(*pause_ms)) * 1000000}, NULL);
    err_clear(err);
    return true;
}

bool store_turn(StoreTurn *t, Err *err)
{
    Store *s = t->store;
    for (;;) {
        store_lock(s); // so that what is said of this transaction is not another one's
        bool began = false;
        if (!t->open) {
            began = t->beside ? store_begin_beside(s, err) : store_begin(s, err);
        } else if (t->ok) {
            t->ok = store_commit(s, err);
        } else {
            store_rollback(s);
        }
        bool again = !began && !t->ok && s->db->undone;
        store_unlock(s);
        t->open = began;
        if (began)
            t->ok = false;
        if (began || !again || !may_repeat(&t->pause_ms, &t->until_ms, err))
            return began;
    }
}

// One statement, which is its own transaction unless one is open.
typedef struct Again {
    unsigned pause_ms;
    int64_t until_ms;
} Again;

static bool again(Store *s, Again *a, Err *err)
{
    if (!s->db->undone || s->in_transaction)
        return false;
    store_unlock(s); // the pause is nobody else's
    bool may = may_repeat(&a->pause_ms, &a->until_ms, err);
    store_lock(s);
    s->db->undone = false;
    return may;
}

static void begin_one(Store *s)
{
    store_lock(s);
    if (!s->in_transaction)
        s->db->undone = false;
}

bool store_insert(Store *s, const DbTable *t, const void *row, Err *err)
{
    Again a = {0};
    bool ok;
    begin_one(s);
    do
        ok = db_insert(s->db, t, row, err);
    while (!ok && again(s, &a, err));
    store_unlock(s);
    return ok;
}

bool store_one(Store *s, const DbTable *t, const char *tail, const DbArg *args, size_t n, void *row, bool *ret_found,
               Err *err)
{
    Again a = {0};
    bool ok;
    begin_one(s);
    do
        ok = db_select_one(s->db, t, tail, args, n, row, ret_found, err);
    while (!ok && again(s, &a, err));
    store_unlock(s);
    return ok;
}

bool store_all(Store *s, const DbTable *t, const char *tail, const DbArg *args, size_t n, void **ret, size_t *ret_len,
               Err *err)
{
    Again a = {0};
    bool ok;
    begin_one(s);
    do
        ok = db_select_all(s->db, t, tail, args, n, ret, ret_len, err);
    while (!ok && again(s, &a, err));
    store_unlock(s);
    return ok;
}

bool store_run(Store *s, const char *sql, const DbArg *args, size_t n, uint64_t *ret_affected, Err *err)
{
    Again a = {0};
    bool ok;
    begin_one(s);
    do
        ok = db_run(s->db, sql, args, n, ret_affected, err);
    while (!ok && again(s, &a, err));
    store_unlock(s);
    return ok;
}

bool store_number(Store *s, const char *sql, const DbArg *args, size_t n, int64_t fallback, int64_t *ret, Err *err)
{
    Again a = {0};
    bool ok;
    begin_one(s);
    do
        ok = db_number(s->db, sql, args, n, fallback, ret, err);
    while (!ok && again(s, &a, err));
    store_unlock(s);
    return ok;
}
