// Repositories, VMs, and what a VM has in a repository.
#include "base/num.h"

#include "store/tables.h"

#include <stddef.h>
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
    int64_t points, stored; // either from an index that has it: a million rows are not looked at
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

// ---- VMs with what a list says of them: one question for many

#define C(member, column, kind)                        \
    {                                                  \
        column, kind, offsetof(StoreVmSummary, member) \
    }
static const DbColumn summary_columns[] = {
    C(vm.id, "some.id", DB_TEXT),
    C(vm.name, "some.name", DB_TEXT),
    C(vm.source, "some.source", DB_TEXT),
    C(vm.excluded, "some.excluded_disks", DB_TEXT),
    C(vm.source_id, "some.source_id", DB_TEXT),
    C(vm.audit_blocks, "some.audit_blocks", DB_I64),
    C(vm.created_us, "some.created_at", DB_TIME),
    C(points, "some.points", DB_U64),
    C(last_id, "l.id", DB_TEXT),
    C(last_status, "l.status", DB_TEXT),
    C(last_us, "l.created_at", DB_TIME),
};
#undef C

// points and the newest job, each from an index that has it. Which VMs: a select from vms, or of the same columns.
#define SUMMARIES(which)                                                                                           \
    "(SELECT v.*, (SELECT COUNT(*) FROM backup_jobs b WHERE b.vm_id = v.id AND b.status = 'completed') AS points," \
    " (SELECT b.id FROM backup_jobs b WHERE b.vm_id = v.id"                                                        \
    " ORDER BY b.created_at DESC, b.sequence DESC, b.id DESC LIMIT 1) AS last_id"                                  \
    " FROM (" which ") AS v) AS some LEFT JOIN backup_jobs l ON l.id = some.last_id"
#define SUMMARY_TABLE(which)                                                                  \
    {                                                                                         \
        SUMMARIES(which), summary_columns, ARRAY_LEN(summary_columns), sizeof(StoreVmSummary) \
    }

static const DbTable summary_page = SUMMARY_TABLE("SELECT * FROM vms WHERE name > ? ORDER BY name LIMIT ?");
static const DbTable summary_one = SUMMARY_TABLE("SELECT * FROM vms WHERE id = ?");

// The VMs of all jobs from an index: MariaDB goes from VM to VM in it, SQLite reads it. Then what their points say, one
// VM after the other. Without the LIMIT MariaDB asks that of the registered ones, too.
#define OF_GONE(what) "(SELECT " what " FROM backup_jobs p WHERE p.vm_id = gone.vm_id AND p.status = 'completed')"
#define GONE                                                             \
    "(SELECT vm_id FROM (SELECT DISTINCT vm_id FROM backup_jobs) AS ids" \
    " WHERE vm_id NOT IN (SELECT id FROM vms) LIMIT 9223372036854775807) AS gone"
#define ORPHANS                                                                                               \
    "SELECT gone.vm_id AS id, " OF_GONE("MAX(p.vm_name)") " AS name, NULL AS source, NULL AS excluded_disks," \
                                                          " NULL AS source_id, -1 AS audit_blocks, " OF_GONE( \
                                                              "MIN(p.created_at)") " AS created_at FROM " GONE

static const DbTable summary_orphans =
    SUMMARY_TABLE("SELECT * FROM (" ORPHANS ") AS orphans WHERE orphans.name IS NOT NULL");

bool store_vm_summaries(Store *s, const char *after, uint64_t limit, StoreVmSummary **ret, size_t *ret_len, Err *err)
{
    return store_all(s, &summary_page, "ORDER BY some.name", DB_ARGS(DB_T(after ? after : ""), DB_N(limit)),
                     (void **)ret, ret_len, err);
}

bool store_vm_summary(Store *s, const char *vm_id, StoreVmSummary *ret, bool *ret_found, Err *err)
{
    return store_one(s, &summary_one, "", DB_ARGS(DB_T(vm_id)), ret, ret_found, err);
}

bool store_vm_orphan_summaries(Store *s, StoreVmSummary **ret, size_t *ret_len, Err *err)
{
    return store_all(s, &summary_orphans, "ORDER BY some.name, some.id", DB_NO_ARGS, (void **)ret, ret_len, err);
}

void store_vm_summary_clear(StoreVmSummary *v)
{
    db_row_clear(&summary_page, v);
}

bool store_vm_orphans(Store *s, StoreVm **ret, size_t *ret_len, Err *err)
{
    static const DbColumn columns[] = {
        {"id", DB_TEXT, offsetof(StoreVm, id)},
        {"name", DB_TEXT, offsetof(StoreVm, name)},
        {"created_at", DB_TIME, offsetof(StoreVm, created_us)},
    };
    static const DbTable orphans = {"(" ORPHANS ") AS orphans", columns, ARRAY_LEN(columns), sizeof(StoreVm)};
    return store_all(s, &orphans, "WHERE name IS NOT NULL ORDER BY name", DB_NO_ARGS, (void **)ret, ret_len, err);
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
