// Repositories, VMs, and what a VM has in a repository.
#include "base/num.h"

#include "store/tables.h"

#include <stdio.h>

bool store_repository_add(Store *s, const StoreRepository *r, int64_t *ret_id, Err *err)
{
    store_lock(s);
    bool ok = db_insert(s->db, &tables_repository, r, err);
    if (ok)
        *ret_id = s->db->ops->last_id(s->db);
    store_unlock(s);
    return ok;
}

static bool repository_missing(const char *what, Err *err)
{
    (void)err_set(err, ERR_NOT_FOUND, "there is no repository \"%s\"; see the list of repositories", what);
    return err_title(err, "repository not found");
}

bool store_repository_get(Store *s, int64_t id, StoreRepository *ret, Err *err)
{
    bool found;
    if (!store_one(s, &tables_repository, "WHERE id = ?", DB_ARGS(DB_N(id)), ret, &found, err))
        return false;
    char text[24];
    (void)snprintf(text, sizeof(text), "%lld", (long long)id);
    return found || repository_missing(text, err);
}

bool store_repository_find(Store *s, const char *id_or_name, StoreRepository *ret, Err *err)
{
    Err not_a_number = ERR_INIT;
    uint64_t id;
    bool found = false;
    if (num_u64(id_or_name, 1, INT64_MAX, &id, &not_a_number) &&
        !store_one(s, &tables_repository, "WHERE id = ?", DB_ARGS(DB_N(id)), ret, &found, err))
        return false;
    if (!found && !store_one(s, &tables_repository, "WHERE name = ?", DB_ARGS(DB_T(id_or_name)), ret, &found, err))
        return false;
    return found || repository_missing(id_or_name, err);
}

bool store_repository_list(Store *s, StoreRepository **ret, size_t *ret_len, Err *err)
{
    return store_all(s, &tables_repository, "ORDER BY id", DB_NO_ARGS, (void **)ret, ret_len, err);
}

bool store_repository_remove(Store *s, int64_t id, Err *err)
{
    static const char *const steps[] = {
        "DELETE FROM backup_disks WHERE backup_id IN (SELECT id FROM backup_jobs WHERE repository_id = ?)",
        "DELETE FROM backup_jobs WHERE repository_id = ?",
        "DELETE FROM vm_disks WHERE repository_id = ?",
        "DELETE FROM vm_contexts WHERE repository_id = ?",
        "DELETE FROM repositories WHERE id = ?",
    };
    for (size_t i = 0; i < ARRAY_LEN(steps); i++)
        if (!store_run(s, steps[i], DB_ARGS(DB_N(id)), NULL, err))
            return false;
    return store_forget_repository_state(s, id, err);
}

bool store_repository_totals(Store *s, int64_t id, uint64_t *ret_points, uint64_t *ret_stored, Err *err)
{
    int64_t points, stored;
    if (!store_number(s, "SELECT COUNT(*) FROM backup_jobs WHERE repository_id = ? AND status = 'completed'",
                      DB_ARGS(DB_N(id)), 0, &points, err) ||
        !store_number(s, "SELECT SUM(stored_bytes) FROM backup_jobs WHERE repository_id = ? AND status = 'completed'",
                      DB_ARGS(DB_N(id)), 0, &stored, err))
        return false;
    *ret_points = (uint64_t)points;
    *ret_stored = (uint64_t)stored;
    return true;
}

void store_repository_clear(StoreRepository *r)
{
    db_row_clear(&tables_repository, r);
}

bool store_vm_add(Store *s, const StoreVm *v, Err *err)
{
    return store_insert(s, &tables_vm, v, err);
}

bool store_vm_find(Store *s, const char *id_or_name, StoreVm *ret, Err *err)
{
    bool found;
    if (!store_one(s, &tables_vm, "WHERE id = ?", DB_ARGS(DB_T(id_or_name)), ret, &found, err))
        return false;
    if (!found && !store_one(s, &tables_vm, "WHERE name = ?", DB_ARGS(DB_T(id_or_name)), ret, &found, err))
        return false;
    if (found)
        return true;
    (void)err_set(err, ERR_NOT_FOUND, "there is no VM \"%s\"; register it first", id_or_name);
    return err_title(err, "vm not found");
}

bool store_vm_list(Store *s, StoreVm **ret, size_t *ret_len, Err *err)
{
    return store_all(s, &tables_vm, "ORDER BY name", DB_NO_ARGS, (void **)ret, ret_len, err);
}

bool store_vm_update(Store *s, const StoreVm *v, Err *err)
{
    return store_run(s,
                     "UPDATE vms SET name = ?, source = ?, excluded_disks = ?, source_id = ?, audit_blocks = ?"
                     " WHERE id = ?",
                     DB_ARGS(DB_T(v->name), DB_T(v->source), DB_T(v->excluded), DB_T(v->source_id),
                             DB_N(v->audit_blocks), DB_T(v->id)),
                     NULL, err);
}

bool store_vm_remove(Store *s, const char *id, Err *err)
{
    return store_run(s, "DELETE FROM vms WHERE id = ?", DB_ARGS(DB_T(id)), NULL, err);
}

bool store_vm_points(Store *s, const char *vm_id, uint64_t *ret_points, Err *err)
{
    int64_t n;
    if (!store_number(s, "SELECT COUNT(*) FROM backup_jobs WHERE vm_id = ? AND status = 'completed'",
                      DB_ARGS(DB_T(vm_id)), 0, &n, err))
        return false;
    *ret_points = (uint64_t)n;
    return true;
}

bool store_vm_orphans(Store *s, StoreVm **ret, size_t *ret_len, Err *err)
{
    static const DbColumn columns[] = {
        {"vm_id", DB_TEXT, offsetof(StoreVm, id)},
        {"MAX(vm_name)", DB_TEXT, offsetof(StoreVm, name)},
        {"MIN(created_at)", DB_TIME, offsetof(StoreVm, created_us)},
    };
    static const DbTable orphans = {"backup_jobs", columns, ARRAY_LEN(columns), sizeof(StoreVm)};
    return store_all(s, &orphans,
                     "WHERE status = 'completed' AND vm_id NOT IN (SELECT id FROM vms) GROUP BY vm_id ORDER BY 2",
                     DB_NO_ARGS, (void **)ret, ret_len, err);
}

void store_vm_clear(StoreVm *v)
{
    db_row_clear(&tables_vm, v);
}

bool store_context_get(Store *s, int64_t repository_id, const char *vm_id, char **ret_folder, Err *err)
{
    static const DbColumn columns[] = {{"folder", DB_TEXT, 0}};
    static const DbTable contexts = {"vm_contexts", columns, 1, sizeof(char *)};
    bool found;
    char *folder = NULL;
    if (!store_one(s, &contexts, "WHERE repository_id = ? AND vm_id = ?", DB_ARGS(DB_N(repository_id), DB_T(vm_id)),
                   &folder, &found, err))
        return false;
    *ret_folder = folder;
    return true;
}

bool store_context_set(Store *s, int64_t repository_id, const char *vm_id, const char *folder, Err *err)
{
    uint64_t n;
    if (!store_run(s, "UPDATE vm_contexts SET folder = ? WHERE repository_id = ? AND vm_id = ?",
                   DB_ARGS(DB_T(folder), DB_N(repository_id), DB_T(vm_id)), &n, err))
        return false;
    return n > 0 ||
        store_run(s, "INSERT INTO vm_contexts (folder, repository_id, vm_id) VALUES (?, ?, ?)",
                  DB_ARGS(DB_T(folder), DB_N(repository_id), DB_T(vm_id)), NULL, err);
}

bool store_disk_number_get(Store *s, int64_t repository_id, const char *vm_id, const char *disk_key,
                           StoreDiskNumber *ret, bool *ret_found, Err *err)
{
    return store_one(s, &tables_disk_number, "WHERE repository_id = ? AND vm_id = ? AND disk_key = ?",
                     DB_ARGS(DB_N(repository_id), DB_T(vm_id), DB_T(disk_key)), ret, ret_found, err);
}

bool store_disk_number_add(Store *s, const StoreDiskNumber *n, Err *err)
{
    return store_insert(s, &tables_disk_number, n, err);
}

bool store_disk_id_pick(Store *s, const char *vm_id, const char *disk_key, uint64_t *ret, Err *err)
{
    int64_t id;
    if (!store_number(s, "SELECT MIN(disk_id) FROM vm_disks WHERE vm_id = ? AND disk_key = ?",
                      DB_ARGS(DB_T(vm_id), DB_T(disk_key)), -1, &id, err))
        return false;
    if (id < 0 &&
        !store_number(s, "SELECT MAX(disk_id) + 1 FROM vm_disks WHERE vm_id = ?", DB_ARGS(DB_T(vm_id)), 2000, &id, err))
        return false;
    *ret = (uint64_t)MAX(id, 2000);
    return true;
}

bool store_disk_no_next(Store *s, int64_t repository_id, const char *vm_id, uint64_t *ret, Err *err)
{
    int64_t no;
    if (!store_number(s, "SELECT MAX(disk_no) + 1 FROM vm_disks WHERE repository_id = ? AND vm_id = ?",
                      DB_ARGS(DB_N(repository_id), DB_T(vm_id)), 0, &no, err))
        return false;
    *ret = (uint64_t)no;
    return true;
}

void store_disk_number_clear(StoreDiskNumber *n)
{
    db_row_clear(&tables_disk_number, n);
}
