// People, and the sessions of their browsers.
#include "base/clock.h"
#include "store/tables.h"

bool store_user_add(Store *s, const StoreUser *u, Err *err)
{
    return store_insert(s, &tables_user, u, err);
}

bool store_user_find(Store *s, const char *id_or_name, StoreUser *ret, bool *ret_found, Err *err)
{
    return store_one(s, &tables_user, "WHERE name = ?", DB_ARGS(DB_T(id_or_name)), ret, ret_found, err) &&
        (*ret_found || store_one(s, &tables_user, "WHERE id = ?", DB_ARGS(DB_T(id_or_name)), ret, ret_found, err));
}

bool store_user_list(Store *s, StoreUser **ret, size_t *ret_len, Err *err)
{
    return store_all(s, &tables_user, "ORDER BY name", DB_NO_ARGS, (void **)ret, ret_len, err);
}

bool store_user_set(Store *s, const StoreUser *u, Err *err)
{
    char changed[CLOCK_TEXT];
    clock_format(u->changed_us, changed);
    return store_run(s, "UPDATE users SET role = ?, password = ?, disabled = ?, changed_at = ? WHERE id = ?",
                     DB_ARGS(DB_T(u->role), DB_T(u->password), DB_N(u->disabled), DB_T(changed), DB_T(u->id)), NULL,
                     err);
}

bool store_user_set_login(Store *s, const char *id, int64_t now_us, Err *err)
{
    char now[CLOCK_TEXT];
    clock_format(now_us, now);
    return store_run(s, "UPDATE users SET login_at = ? WHERE id = ?", DB_ARGS(DB_T(now), DB_T(id)), NULL, err);
}

bool store_user_remove(Store *s, const char *id, Err *err)
{
    return store_session_remove_of(s, id, err) &&
        store_run(s, "DELETE FROM users WHERE id = ?", DB_ARGS(DB_T(id)), NULL, err);
}

void store_user_clear(StoreUser *u)
{
    db_row_clear(&tables_user, u);
}

bool store_session_add(Store *s, const StoreSession *x, Err *err)
{
    return store_insert(s, &tables_session, x, err);
}

bool store_session_get(Store *s, const char *digest, StoreSession *ret, bool *ret_found, Err *err)
{
    return store_one(s, &tables_session, "WHERE digest = ?", DB_ARGS(DB_T(digest)), ret, ret_found, err);
}

bool store_session_set_used(Store *s, const char *digest, int64_t now_us, Err *err)
{
    char now[CLOCK_TEXT];
    clock_format(now_us, now);
    return store_run(s, "UPDATE sessions SET used_at = ? WHERE digest = ?", DB_ARGS(DB_T(now), DB_T(digest)), NULL,
                     err);
}

bool store_session_remove(Store *s, const char *digest, Err *err)
{
    return store_run(s, "DELETE FROM sessions WHERE digest = ?", DB_ARGS(DB_T(digest)), NULL, err);
}

bool store_session_remove_of(Store *s, const char *user_id, Err *err)
{
    return store_run(s, "DELETE FROM sessions WHERE user_id = ?", DB_ARGS(DB_T(user_id)), NULL, err);
}

bool store_session_remove_old(Store *s, int64_t created_us, int64_t used_us, Err *err)
{
    char created[CLOCK_TEXT], used[CLOCK_TEXT];
    clock_format(created_us, created);
    clock_format(used_us, used);
    return store_run(s, "DELETE FROM sessions WHERE created_at < ? OR used_at < ?", DB_ARGS(DB_T(created), DB_T(used)),
                     NULL, err);
}

void store_session_clear(StoreSession *x)
{
    db_row_clear(&tables_session, x);
}
