// What the hub keeps about itself: its ID, what of its catalogue is stale, when its database was backed up.
#include "base/clock.h"
#include "base/num.h"
#include "base/secret.h"
#include "base/str.h"
#include "store/tables.h"

#include <string.h>

#include <stdio.h>

typedef struct State {
    char *name, *value;
} State;

static const DbColumn state_columns[] = {
    {"name", DB_TEXT, offsetof(State, name)},
    {"value", DB_TEXT, offsetof(State, value)},
};
static const DbTable tables_state = {"hub_state", state_columns, ARRAY_LEN(state_columns), sizeof(State)};

static bool state_get(Store *s, const char *name, char **ret, Err *err)
{
    State row = {0};
    bool found;
    if (!store_one(s, &tables_state, "WHERE name = ?", DB_ARGS(DB_T(name)), &row, &found, err))
        return false;
    free(row.name);
    *ret = row.value; // NULL where there is none
    return true;
}

static bool state_set(Store *s, const char *name, const char *value, Err *err)
{
    uint64_t found = 0;
    store_lock(s);
    bool ok =
        store_run(s, "UPDATE hub_state SET value = ? WHERE name = ?", DB_ARGS(DB_T(value), DB_T(name)), &found, err) &&
        (found > 0 ||
         store_insert(s, &tables_state, &(State){.name = (char *)(uintptr_t)name, .value = (char *)(uintptr_t)value},
                      err));
    store_unlock(s);
    return ok;
}

static const char *of_repository(const char *what, int64_t id, char name[64])
{
    (void)snprintf(name, 64, "%s.%lld", what, (long long)id);
    return name;
}

static bool find_hub_id(Store *s, char ret[UUID_TEXT], bool *ret_found, Err *err)
{
    cleanup_free char *id = NULL;
    if (!state_get(s, "hub_id", &id, err))
        return false;
    *ret_found = id && uuid_is_valid(id);
    if (*ret_found)
        memcpy(ret, id, UUID_TEXT);
    return true;
}

bool store_hub_id(Store *s, char ret[UUID_TEXT], Err *err)
{
    bool found;
    if (!find_hub_id(s, ret, &found, err))
        return false;
    if (found)
        return true;
    StoreTurn t = STORE_TURN(s);
    while (store_turn(&t, err))
        t.ok = find_hub_id(s, ret, &found, err) && (found || (uuid_new(ret, err) && state_set(s, "hub_id", ret, err)));
    return t.ok;
}

static bool next_dump_number(Store *s, uint64_t at_least, uint64_t *ret, Err *err)
{
    int64_t last;
    char text[24];
    if (!store_number(s, "SELECT CAST(value AS SIGNED) FROM hub_state WHERE name = 'database_number'", DB_NO_ARGS, 0,
                      &last, err))
        return false;
    *ret = MAX((uint64_t)MAX(last, 0) + 1, at_least);
    (void)snprintf(text, sizeof(text), "%llu", (unsigned long long)*ret);
    return state_set(s, "database_number", text, err);
}

bool store_dump_number(Store *s, uint64_t at_least, uint64_t *ret, Err *err)
{
    StoreTurn t = STORE_TURN(s);
    while (store_turn(&t, err))
        t.ok = next_dump_number(s, at_least, ret, err);
    return t.ok;
}

bool store_dumped(Store *s, int64_t repository_id, int64_t *ret_us, Err *err)
{
    char name[64];
    cleanup_free char *text = NULL;
    *ret_us = 0;
    return state_get(s, of_repository("database_backup", repository_id, name), &text, err) &&
        (!text || clock_parse(text, ret_us, err));
}

bool store_set_dumped(Store *s, int64_t repository_id, int64_t at_us, Err *err)
{
    char name[64], text[CLOCK_TEXT];
    clock_format(at_us, text);
    StoreTurn t = STORE_TURN(s);
    while (store_turn(&t, err))
        t.ok = state_set(s, of_repository("database_backup", repository_id, name), text, err);
    return t.ok;
}

bool store_is_stale(Store *s, int64_t repository_id, bool *ret, Err *err)
{
    char name[64];
    cleanup_free char *text = NULL;
    if (!state_get(s, of_repository("stale", repository_id, name), &text, err))
        return false;
    *ret = text != NULL;
    return true;
}

bool store_not_stale(Store *s, int64_t repository_id, Err *err)
{
    char name[64];
    return store_run(s, "DELETE FROM hub_state WHERE name = ?",
                     DB_ARGS(DB_T(of_repository("stale", repository_id, name))), NULL, err);
}

bool store_forget_repository_state(Store *s, int64_t repository_id, Err *err)
{
    char name[64];
    return store_not_stale(s, repository_id, err) &&
        store_run(s, "DELETE FROM hub_state WHERE name = ?",
                  DB_ARGS(DB_T(of_repository("database_backup", repository_id, name))), NULL, err);
}

bool store_is_empty(Store *s, bool *ret, Err *err)
{
    int64_t rows;
    bool ok = store_number(s,
                           "SELECT (SELECT COUNT(*) FROM repositories) + (SELECT COUNT(*) FROM vms) +"
                           " (SELECT COUNT(*) FROM sources) + (SELECT COUNT(*) FROM backup_jobs) +"
                           " (SELECT COUNT(*) FROM replication_jobs)",
                           DB_NO_ARGS, 0, &rows, err);
    if (ok)
        *ret = rows == 0;
    return ok;
}

static bool mark_stale(Store *s, Err *err)
{
    StoreRepository *rows = NULL;
    size_t len = 0;
    char name[64];
    if (!store_repository_list(s, &rows, &len, err))
        return false;
    bool ok = true;
    for (size_t i = 0; ok && i < len; i++)
        ok = state_set(s, of_repository("stale", rows[i].id, name), "restored", err);
    STORE_LIST_FREE(rows, len, store_repository_clear);
    return ok;
}

static bool restored(Store *s, const char *now, Err *err)
{
    static const char *const steps[] = {
        "UPDATE backup_jobs SET resumable = 0, deleting = 0, cancel_requested = 0, client_pid = 0, client_start = 0",
        "UPDATE backup_jobs SET suspect = 1 WHERE status = 'completed'",
        "UPDATE backup_disks SET exporter_pid = 0, exporter_start = 0, socket = NULL, control = NULL,"
        " export_name = NULL",
        "DELETE FROM exports",
        "DELETE FROM sessions",
    };
    for (size_t i = 0; i < ARRAY_LEN(steps); i++)
        if (!store_run(s, steps[i], DB_NO_ARGS, NULL, err))
            return false;
    return store_run(s,
                     "UPDATE backup_jobs SET status = 'failed', phase = NULL, error = 'interrupted', details ="
                     " 'it ran when the database was backed up, which was restored since', completed_at = ?,"
                     " active_vm = NULL WHERE status IN ('pending', 'running', 'committing')",
                     DB_ARGS(DB_T(now)), NULL, err) &&
        mark_stale(s, err);
}

bool store_restored(Store *s, int64_t now_us, Err *err)
{
    char now[CLOCK_TEXT];
    clock_format(now_us, now);
    StoreTurn t = STORE_TURN(s);
    while (store_turn(&t, err))
        t.ok = restored(s, now, err);
    return t.ok;
}

bool store_repository_place(Store *s, const StoreRepository *r, Err *err)
{
    return store_run(s, "UPDATE repositories SET path = ? WHERE id = ?", DB_ARGS(DB_T(r->path), DB_N(r->id)), NULL,
                     err);
}

// ---- IDs that were given to points which are gone

#define CLOCKS_S 86400 // by which hubs' clocks differ, or a clock is set back, at the most

static bool removed_number(Store *s, const char *vm, char ret_name[SECRET_DIGEST_TEXT], int64_t *ret, Err *err)
{
    return secret_digest(vm, ret_name, err) && // a VM's name is longer than a row's
        store_number(s, "SELECT CAST(value AS SIGNED) FROM hub_state WHERE name = ?", DB_ARGS(DB_T(ret_name)), 0, ret,
                     err);
}

bool store_id_removed(Store *s, const char *backup_id, Err *err)
{
    char name[SECRET_DIGEST_TEXT];
    const char *dash = strrchr(backup_id, '-');
    uint64_t second;
    int64_t until;
    Err foreign = ERR_INIT;
    if (!str_starts(backup_id, "backup-") || dash < backup_id + strlen("backup-") ||
        !num_u64(dash + 1, 0, INT64_MAX / 1000000, &second, &foreign) ||
        (int64_t)second < clock_utc_us() / 1000000 - CLOCKS_S)
        return true;
    cleanup_free char *vm =
        mem_printf(err, "%.*s", (int)(dash - backup_id - (ptrdiff_t)strlen("backup-")), backup_id + strlen("backup-"));
    return vm && removed_number(s, vm, name, &until, err) &&
        ((int64_t)second <= until || state_set(s, name, dash + 1, err));
}

bool store_id_free_from(Store *s, const char *vm_name, int64_t *ret_second, Err *err)
{
    char name[SECRET_DIGEST_TEXT];
    int64_t until;
    if (!removed_number(s, vm_name, name, &until, err))
        return false;
    *ret_second = until + 1;
    return true;
}
