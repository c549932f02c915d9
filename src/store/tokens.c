// Tokens of the API, and the log of who did what.
#include "base/clock.h"
#include "base/str.h"
#include "store/tables.h"

bool store_token_add(Store *s, const StoreToken *t, Err *err)
{
    return store_insert(s, &tables_token, t, err);
}

bool store_token_by_digest(Store *s, const char *digest, StoreToken *ret, bool *ret_found, Err *err)
{
    return store_one(s, &tables_token, "WHERE digest = ?", DB_ARGS(DB_T(digest)), ret, ret_found, err);
}

bool store_token_by_name(Store *s, const char *name, StoreToken *ret, bool *ret_found, Err *err)
{
    return store_one(s, &tables_token, "WHERE name = ?", DB_ARGS(DB_T(name)), ret, ret_found, err);
}

bool store_token_find(Store *s, const char *id_or_name, StoreToken *ret, Err *err)
{
    bool found;
    if (!store_one(s, &tables_token, "WHERE id = ?", DB_ARGS(DB_T(id_or_name)), ret, &found, err))
        return false;
    if (!found && !store_token_by_name(s, id_or_name, ret, &found, err))
        return false;
    if (found)
        return true;
    (void)err_set(err, ERR_NOT_FOUND, "there is no token \"%s\"; sendense token list has those that there are",
                  id_or_name);
    return err_title(err, "token not found");
}

bool store_token_list(Store *s, StoreToken **ret, size_t *ret_len, Err *err)
{
    return store_all(s, &tables_token, "ORDER BY name", DB_NO_ARGS, (void **)ret, ret_len, err);
}

bool store_token_count(Store *s, const char *role, int64_t now_us, uint64_t *ret, Err *err)
{
    char now[CLOCK_TEXT];
    int64_t n;
    clock_format(now_us, now);
    if (!store_number(s, "SELECT COUNT(*) FROM api_tokens WHERE role = ? AND (expires_at IS NULL OR expires_at > ?)",
                      DB_ARGS(DB_T(role), DB_T(now)), 0, &n, err))
        return false;
    *ret = (uint64_t)n;
    return true;
}

bool store_token_set_used(Store *s, const char *id, int64_t now_us, Err *err)
{
    char now[CLOCK_TEXT];
    clock_format(now_us, now);
    return store_run(s, "UPDATE api_tokens SET used_at = ? WHERE id = ?", DB_ARGS(DB_T(now), DB_T(id)), NULL, err);
}

bool store_token_remove(Store *s, const char *id, Err *err)
{
    return store_run(s, "DELETE FROM api_tokens WHERE id = ?", DB_ARGS(DB_T(id)), NULL, err);
}

void store_token_clear(StoreToken *t)
{
    db_row_clear(&tables_token, t);
}

bool store_trail_add(Store *s, const StoreTrail *row, Err *err)
{
    return store_insert(s, &tables_trail, row, err);
}

bool store_trail_last(Store *s, StoreTrail *ret, bool *ret_found, Err *err)
{
    return store_one(s, &tables_trail, "ORDER BY id DESC LIMIT 1", DB_NO_ARGS, ret, ret_found, err);
}

bool store_trail_list(Store *s, const StoreTrailFilter *f, StoreTrail **ret, size_t *ret_len, Err *err)
{
    // an absent filter compares the column with itself
    static const char where[] = "WHERE actor = COALESCE(?, actor) AND method = COALESCE(?, method) AND status >= ?"
                                " AND id > ? ORDER BY id ";
    StrBuf tail = STR_BUF(1024);
    bool ok = str_addf(&tail, err, "%s%s LIMIT ?", where, f->newest_first ? "DESC" : "ASC") &&
        store_all(s, &tables_trail, tail.s,
                  DB_ARGS(DB_T(f->actor), DB_T(f->method), DB_N(f->status_least), DB_N(f->after),
                          DB_N((int64_t)f->limit)),
                  (void **)ret, ret_len, err);
    str_clear(&tail);
    return ok;
}

void store_trail_clear(StoreTrail *row)
{
    db_row_clear(&tables_trail, row);
}
