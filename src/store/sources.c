// Sources: vCenters and their sealed credentials.
#include "store/tables.h"

bool store_source_add(Store *s, const StoreSource *source, Err *err)
{
    return store_insert(s, &tables_source, source, err);
}

bool store_source_find(Store *s, const char *id_or_name, StoreSource *ret, Err *err)
{
    bool found;
    if (!store_one(s, &tables_source, "WHERE id = ?", DB_ARGS(DB_T(id_or_name)), ret, &found, err))
        return false;
    if (!found && !store_one(s, &tables_source, "WHERE name = ?", DB_ARGS(DB_T(id_or_name)), ret, &found, err))
        return false;
    if (found)
        return true;
    (void)err_set(err, ERR_NOT_FOUND, "there is no source \"%s\"; add it first", id_or_name);
    return err_title(err, "source not found");
}

bool store_source_list(Store *s, StoreSource **ret, size_t *ret_len, Err *err)
{
    return store_all(s, &tables_source, "ORDER BY name", DB_NO_ARGS, (void **)ret, ret_len, err);
}

bool store_source_count(Store *s, uint64_t *ret, Err *err)
{
    int64_t n;
    if (!store_number(s, "SELECT COUNT(*) FROM sources", DB_NO_ARGS, 0, &n, err))
        return false;
    *ret = (uint64_t)n;
    return true;
}

bool store_source_update(Store *s, const StoreSource *source, Err *err)
{
    return store_run(
        s, "UPDATE sources SET address = ?, user_name = ?, secret = ?, thumbprint = ?, ca_pem = ? WHERE id = ?",
        DB_ARGS(DB_T(source->address), DB_T(source->user), DB_T(source->secret), DB_T(source->thumbprint),
                DB_T(source->ca_pem), DB_T(source->id)),
        NULL, err);
}

bool store_source_remove(Store *s, const char *id, Err *err)
{
    return store_run(s, "DELETE FROM sources WHERE id = ?", DB_ARGS(DB_T(id)), NULL, err);
}

bool store_source_vms(Store *s, const char *id, StoreVm **ret, size_t *ret_len, Err *err)
{
    return store_all(s, &tables_vm, "WHERE source_id = ? ORDER BY name", DB_ARGS(DB_T(id)), (void **)ret, ret_len, err);
}

void store_source_clear(StoreSource *source)
{
    db_row_clear(&tables_source, source);
}
