// Hubs on one database: who there is, and what a silent one had. docs/internals/hubs.md.
#include "base/clock.h"
#include "base/str.h"
#include "store/tables.h"

#include <stdio.h>
#include <time.h>

#define TURN "turn" // a number in hub_state: raised by whoever decides alone

static const DbColumn hub_columns[] = {
    {"id", DB_TEXT, offsetof(StoreHub, id)},
    {"name", DB_TEXT, offsetof(StoreHub, name)},
    {"version", DB_TEXT, offsetof(StoreHub, version)},
    {"lease_seconds", DB_U64, offsetof(StoreHub, lease_s)},
    {"beats", DB_U64, offsetof(StoreHub, beats)},
    {"stopped", DB_BOOL, offsetof(StoreHub, stopped)},
    {"started_at", DB_TIME, offsetof(StoreHub, started_us)},
    {"beat_at", DB_TIME, offsetof(StoreHub, beat_us)},
};
static const DbTable tables_hub = {"hubs", hub_columns, ARRAY_LEN(hub_columns), sizeof(StoreHub)};

// Still as silent as it was?
#define SILENT " AND EXISTS (SELECT 1 FROM hubs WHERE hubs.id = ? AND hubs.beats = ?)"
#define SILENT_ARGS(h) DB_T((h)->id), DB_N((h)->beats)

const char *store_hub(const Store *s)
{
    return s->hub;
}

bool store_is_shared(const Store *s)
{
    return s->hub[0] && !str_eq(store_engine(s), "sqlite");
}

// What belongs to nobody; with the database to oneself, what belongs to anybody.
static bool adopt(Store *s, Err *err)
{
    const char *not_ours = store_is_shared(s) ? "" : s->hub; // as a shared one nobody's, else anybody's but ours
    const DbArg args[] = {DB_T(s->hub), DB_T(not_ours)};
    const bool shared = store_is_shared(s);
    return store_run(s,
                     shared ? "UPDATE backup_jobs SET hub_id = ? WHERE active_vm IS NOT NULL AND hub_id = ?"
                            : "UPDATE backup_jobs SET hub_id = ? WHERE active_vm IS NOT NULL AND hub_id <> ?",
                     args, ARRAY_LEN(args), NULL, err) &&
        store_run(s,
                  shared ? "UPDATE backup_jobs SET deleting_hub = ? WHERE deleting <> 0 AND deleting_hub = ?"
                         : "UPDATE backup_jobs SET deleting_hub = ? WHERE deleting <> 0 AND deleting_hub <> ?",
                  args, ARRAY_LEN(args), NULL, err) &&
        store_run(s,
                  shared ? "UPDATE exports SET hub_id = ? WHERE hub_id = ?"
                         : "UPDATE exports SET hub_id = ? WHERE hub_id <> ?",
                  args, ARRAY_LEN(args), NULL, err);
}

static bool enter(Store *s, const StoreHub *h, Err *err)
{
    char now[CLOCK_TEXT];
    uint64_t found = 0;
    int64_t turns;
    StoreHub row = *h;
    row.beats = 1;
    clock_format(h->started_us, now);
    return store_run(s,
                     "UPDATE hubs SET name = ?, version = ?, lease_seconds = ?, beats = beats + 1, stopped = 0,"
                     " started_at = ?, beat_at = ? WHERE id = ?",
                     DB_ARGS(DB_T(h->name), DB_T(h->version), DB_N(h->lease_s), DB_T(now), DB_T(now), DB_T(h->id)),
                     &found, err) &&
        (found > 0 || store_insert(s, &tables_hub, &row, err)) &&
        store_number(s, "SELECT COUNT(*) FROM hub_state WHERE name = '" TURN "'", DB_NO_ARGS, 0, &turns, err) &&
        (turns > 0 ||
         store_run(s, "INSERT INTO hub_state (name, value) VALUES ('" TURN "', '0')", DB_NO_ARGS, NULL, err)) &&
        adopt(s, err);
}

// In a cluster no lock tells two hubs of one ID apart: one that lives raises its number.
static bool is_free(Store *s, const StoreHub *h, Err *err)
{
    StoreHub row = {0};
    bool found;
    const DbArg id = DB_T(h->id);
    if (!s->db->clustered)
        return true;
    if (!store_one(s, &tables_hub, "WHERE id = ?", &id, 1, &row, &found, err))
        return false;
    uint64_t before = row.beats, lease_s = row.lease_s;
    bool stopped = row.stopped;
    db_row_clear(&tables_hub, &row);
    if (!found || stopped)
        return true;
    for (int64_t until = clock_mono_ms() + STORE_LOOK_MS(lease_s); clock_mono_ms() < until;) {
        int64_t now;
        (void)nanosleep(&(struct timespec){.tv_nsec = 100 * 1000 * 1000}, NULL);
        if (!store_number(s, "SELECT beats FROM hubs WHERE id = ?", &id, 1, 0, &now, err))
            return false;
        if ((uint64_t)now != before)
            return err_set(err, ERR_BUSY,
                           "a hub with this one's ID (hub-id in the data folder) uses the database already; HINT: of a "
                           "data folder that was copied, remove hub-id");
    }
    return true;
}

bool store_hub_enter(Store *s, const StoreHub *h, Err *err)
{
    if (!is_free(s, h, err))
        return false;
    (void)snprintf(s->hub, sizeof(s->hub), "%s", h->id);
    s->entered_us = h->started_us;
    StoreTurn t = STORE_TURN_BESIDE(s);
    while (store_turn(&t, err))
        t.ok = enter(s, h, err);
    return t.ok;
}

// Its row, as long as no other one has entered with its ID.
#define OWN_ROW " WHERE id = ? AND started_at = ?"

bool store_hub_beat(Store *s, Err *err)
{
    char now[CLOCK_TEXT], entered[CLOCK_TEXT];
    uint64_t n = 0;
    clock_format(clock_utc_us(), now);
    clock_format(s->entered_us, entered);
    return store_run(s, "UPDATE hubs SET beats = beats + 1, beat_at = ?" OWN_ROW,
                     DB_ARGS(DB_T(now), DB_T(s->hub), DB_T(entered)), &n, err) &&
        (n > 0 || err_set(err, ERR_BUSY, "another hub has entered with this one's ID, %s", s->hub));
}

bool store_hub_leave(Store *s, Err *err)
{
    char entered[CLOCK_TEXT];
    clock_format(s->entered_us, entered);
    return store_run(s, "UPDATE hubs SET stopped = 1" OWN_ROW, DB_ARGS(DB_T(s->hub), DB_T(entered)), NULL, err);
}

bool store_hub_list(Store *s, StoreHub **ret, size_t *ret_len, Err *err)
{
    return store_all(s, &tables_hub, "ORDER BY name, id", DB_NO_ARGS, (void **)ret, ret_len, err);
}

void store_hub_clear(StoreHub *h)
{
    db_row_clear(&tables_hub, h);
}

bool store_begin(Store *s, Err *err)
{
    if (!store_begin_beside(s, err))
        return false;
    if (!store_is_shared(s) ||
        store_run(s, "UPDATE hub_state SET value = value + 1 WHERE name = '" TURN "'", DB_NO_ARGS, NULL, err))
        return true;
    store_rollback(s);
    return false;
}

static bool take_over(Store *s, const char *id, const StoreHub *silent, bool *ret_done, Err *err)
{
    uint64_t n = 0;
    if (!store_run(s,
                   "UPDATE backup_jobs SET hub_id = ?, taken_over = 1, client_pid = 0, client_start = 0"
                   " WHERE id = ? AND hub_id = ? AND active_vm IS NOT NULL" SILENT,
                   DB_ARGS(DB_T(s->hub), DB_T(id), DB_T(silent->id), SILENT_ARGS(silent)), &n, err))
        return false;
    *ret_done = n > 0;
    return n == 0 || store_disk_forget_exporters(s, id, err);
}

bool store_backup_take_over(Store *s, const char *id, const StoreHub *silent, bool *ret_done, Err *err)
{
    StoreTurn t = STORE_TURN_BESIDE(s);
    while (store_turn(&t, err))
        t.ok = take_over(s, id, silent, ret_done, err);
    return t.ok;
}

bool store_export_forget(Store *s, const StoreHub *silent, uint64_t *ret_gone, Err *err)
{
    return store_run(s, "DELETE FROM exports WHERE hub_id = ?" SILENT, DB_ARGS(DB_T(silent->id), SILENT_ARGS(silent)),
                     ret_gone, err);
}

bool store_deleting_take_over(Store *s, const StoreHub *silent, uint64_t *ret_taken, Err *err)
{
    return store_run(s, "UPDATE backup_jobs SET deleting_hub = ? WHERE deleting <> 0 AND deleting_hub = ?" SILENT,
                     DB_ARGS(DB_T(s->hub), DB_T(silent->id), SILENT_ARGS(silent)), ret_taken, err);
}
