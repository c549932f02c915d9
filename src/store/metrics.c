// Questions of the metrics.
#include "store/tables.h"

#include <stddef.h>

// Text order of times is their order.
static const char points[] =
    "(SELECT v.name AS vm_name, r.name AS repository, COUNT(b.vm_id) AS points,"
    " MAX(CASE WHEN b.suspect = 0 THEN b.created_at END) AS good_at,"
    " MAX(CASE WHEN b.suspect = 0 AND b.verify_result = 'ok' THEN b.created_at END) AS verified_at"
    " FROM (SELECT id, name FROM vms WHERE name > ? ORDER BY name LIMIT ?) v"
    " LEFT JOIN backup_jobs b ON b.vm_id = v.id AND b.status = 'completed' AND b.deleting = 0"
    " LEFT JOIN repositories r ON r.id = b.repository_id GROUP BY v.id, v.name, r.id, r.name) AS vm_points";

#define C(member, column, kind)                       \
    {                                                 \
        column, kind, offsetof(StoreVmPoints, member) \
    }
static const DbColumn columns[] = {
    C(vm_name, "vm_name", DB_TEXT), C(repository, "repository", DB_TEXT),   C(points, "points", DB_U64),
    C(good_us, "good_at", DB_TIME), C(verified_us, "verified_at", DB_TIME),
};
#undef C
static const DbTable table = {points, columns, ARRAY_LEN(columns), sizeof(StoreVmPoints)};

bool store_points_of_vms(Store *s, const char *after, uint64_t vms, StoreVmPoints **ret, size_t *ret_len, Err *err)
{
    return store_all(s, &table, "ORDER BY vm_name, repository", DB_ARGS(DB_T(after ? after : ""), DB_N(vms)),
                     (void **)ret, ret_len, err);
}

void store_vm_points_clear(StoreVmPoints *v)
{
    db_row_clear(&table, v);
}

static bool count(Store *s, const char *sql, const DbArg *args, size_t n, uint64_t *ret, Err *err)
{
    int64_t number;
    if (!store_number(s, sql, args, n, 0, &number, err))
        return false;
    *ret = (uint64_t)number;
    return true;
}

bool store_backup_count(Store *s, const char *status, uint64_t *ret, Err *err)
{
    return count(s, "SELECT COUNT(*) FROM backup_jobs WHERE status = ?", DB_ARGS(DB_T(status)), ret, err);
}

bool store_exporter_count(Store *s, uint64_t *ret, Err *err)
{
    return count(s,
                 "SELECT COUNT(*) FROM backup_disks d JOIN backup_jobs b ON b.id = d.backup_id WHERE d.exporter_pid > 0"
                 " AND b.status IN ('running', 'committing')",
                 DB_NO_ARGS, ret, err);
}

bool store_export_count(Store *s, uint64_t *ret, Err *err)
{
    return count(s, "SELECT COUNT(*) FROM exports", DB_NO_ARGS, ret, err);
}
