// Backup jobs.
#include "base/clock.h"
#include "base/str.h"
#include "domain/job.h"
#include "store/tables.h"

#include <stdio.h>

#define COUNT_STEP 100 // points whose dependents are counted by one question

#define IDS_STEP 1000 // points whose IDs are read by one question

#define ACTIVE "status IN ('pending', 'running', 'committing')"

bool store_backup_add(Store *s, const StoreBackup *b, Err *err)
{
    store_lock(s);
    int64_t busy = 0;
    StoreBackup row = *b;
    row.hub_id = s->hub;
    bool ok = db_number(s->db, "SELECT COUNT(*) FROM backup_jobs WHERE active_vm = ?", DB_ARGS(DB_T(b->active_vm)), 0,
                        &busy, err);
    if (ok && busy > 0) {
        (void)err_set(err, ERR_BUSY, "VM \"%s\" has a job that is pending or running; wait for it, or cancel it",
                      b->vm_name);
        ok = err_title(err, "a job of this vm is running");
    }
    ok = ok && db_insert(s->db, &tables_backup, &row, err);
    store_unlock(s);
    return ok;
}

bool store_backup_get(Store *s, const char *id, StoreBackup *ret, Err *err)
{
    bool found;
    if (!store_one(s, &tables_backup, "WHERE id = ?", DB_ARGS(DB_T(id)), ret, &found, err))
        return false;
    if (found)
        return true;
    (void)err_set(err, ERR_NOT_FOUND, "there is no backup \"%s\"", id);
    return err_title(err, "backup job not found");
}

bool store_backup_exists(Store *s, const char *id, bool *ret, Err *err)
{
    int64_t n;
    if (!store_number(s, "SELECT COUNT(*) FROM backup_jobs WHERE id = ?", DB_ARGS(DB_T(id)), 0, &n, err))
        return false;
    *ret = n > 0;
    return true;
}

// ---- listing: each filter has an index that also has the order

typedef struct Where {
    StrBuf sql;
    DbArg args[12];
    size_t len;
} Where;

static bool add(Where *w, const char *condition, DbArg arg, Err *err)
{
    w->args[w->len++] = arg;
    return str_addf(&w->sql, err, "%s %s", w->len == 1 ? "WHERE" : " AND", condition);
}

static bool add_filter(Where *w, const StoreBackupFilter *f, Err *err)
{
    return (!f->vm_name || add(w, "vm_name = ?", DB_T(f->vm_name), err)) &&
        (!f->vm_id || add(w, "vm_id = ?", DB_T(f->vm_id), err)) &&
        (!f->status || add(w, "status = ?", DB_T(f->status), err)) &&
        (!f->repository_id || add(w, "repository_id = ?", DB_N(f->repository_id), err)) && str_add(&w->sql, "", err);
}

// The first condition is what an index is used for: MariaDB uses none for (a, b) < (?, ?).
static bool add_place(Where *w, const StoreBackupPlace *p, char created[CLOCK_TEXT], Err *err)
{
    clock_format(p->created_us, created);
    if (!add(w, "created_at <= ?", DB_T(created), err) ||
        !str_add(&w->sql, " AND (created_at < ? OR sequence < ? OR (sequence = ? AND id < ?))", err))
        return false;
    const DbArg more[] = {DB_T(created), DB_N((int64_t)p->sequence), DB_N((int64_t)p->sequence), DB_T(p->id)};
    memcpy(&w->args[w->len], more, sizeof(more));
    w->len += ARRAY_LEN(more);
    return true;
}

static bool count(Store *s, const Where *w, uint64_t *ret, Err *err)
{
    StrBuf sql = STR_BUF(4096);
    int64_t n = 0;
    bool ok = str_addf(&sql, err, "SELECT COUNT(*) FROM (SELECT 1 FROM backup_jobs %s LIMIT %d) AS some", w->sql.s,
                       STORE_COUNT_MAX + 1) &&
        store_number(s, sql.s, w->args, w->len, 0, &n, err);
    str_clear(&sql);
    *ret = (uint64_t)n;
    return ok;
}

static bool select_page(Store *s, Where *w, const StoreBackupFilter *f, StoreBackup **ret, size_t *ret_len, Err *err)
{
    char created[CLOCK_TEXT];
    if ((f->behind && !add_place(w, f->behind, created, err)) ||
        !str_add(&w->sql, " ORDER BY created_at DESC, sequence DESC, id DESC LIMIT ? OFFSET ?", err))
        return false;
    w->args[w->len++] = DB_N((int64_t)f->limit);
    w->args[w->len++] = DB_N((int64_t)f->offset);
    return store_all(s, &tables_backup, w->sql.s, w->args, w->len, (void **)ret, ret_len, err);
}

bool store_backup_list(Store *s, const StoreBackupFilter *f, StoreBackup **ret, size_t *ret_len, uint64_t *ret_total,
                       Err *err)
{
    Where w = {.sql = STR_BUF(4096)};
    store_lock(s);
    bool ok = add_filter(&w, f, err) && count(s, &w, ret_total, err) && select_page(s, &w, f, ret, ret_len, err);
    store_unlock(s);
    str_clear(&w.sql);
    return ok;
}

bool store_backup_active(Store *s, StoreBackup **ret, size_t *ret_len, Err *err)
{
    return store_all(s, &tables_backup, "WHERE " ACTIVE " ORDER BY created_at", DB_NO_ARGS, (void **)ret, ret_len, err);
}

bool store_backup_active_of(Store *s, const char *hub_id, StoreBackup **ret, size_t *ret_len, Err *err)
{
    return store_all(s, &tables_backup, "WHERE " ACTIVE " AND hub_id = ? ORDER BY created_at", DB_ARGS(DB_T(hub_id)),
                     (void **)ret, ret_len, err);
}

bool store_backup_count_active(Store *s, uint64_t *ret, Err *err)
{
    int64_t n;
    if (!store_number(s, "SELECT COUNT(*) FROM backup_jobs WHERE " ACTIVE, DB_NO_ARGS, 0, &n, err))
        return false;
    *ret = (uint64_t)n;
    return true;
}

bool store_backup_count_running(Store *s, uint64_t *ret, Err *err)
{
    int64_t n;
    if (!store_number(s,
                      "SELECT COUNT(*) FROM backup_jobs WHERE hub_id = ? AND"
                      " (status = 'running' OR (status = 'pending' AND client_pid > 0))",
                      DB_ARGS(DB_T(s->hub)), 0, &n, err))
        return false;
    *ret = (uint64_t)n;
    return true;
}

bool store_backup_points(Store *s, int64_t repository_id, const char *vm_id, StoreBackup **ret, size_t *ret_len,
                         Err *err)
{
    return store_all(s, &tables_backup,
                     "WHERE repository_id = ? AND vm_id = COALESCE(?, vm_id) AND status = 'completed'"
                     " ORDER BY vm_id, sequence",
                     DB_ARGS(DB_N(repository_id), DB_T(vm_id)), (void **)ret, ret_len, err);
}

bool store_backup_odd_points(Store *s, int64_t repository_id, StoreBackup **ret, size_t *ret_len, Err *err)
{
    // each half by all of an index' first columns: a million points that are well are not looked at
    const DbTable odd = {"(SELECT * FROM backup_jobs WHERE repository_id = ? AND status = 'completed' AND deleting = 1"
                         " UNION ALL SELECT * FROM backup_jobs WHERE repository_id = ? AND status = 'completed'"
                         " AND deleting = 0 AND suspect = 1) AS odd",
                         tables_backup.columns, tables_backup.columns_len, tables_backup.row_size};
    return store_all(s, &odd, "ORDER BY vm_id, sequence", DB_ARGS(DB_N(repository_id), DB_N(repository_id)),
                     (void **)ret, ret_len, err);
}

bool store_backup_newest(Store *s, int64_t repository_id, const char *vm_id, StoreBackup *ret, bool *ret_found,
                         Err *err)
{
    return store_one(s, &tables_backup,
                     "WHERE repository_id = ? AND vm_id = ? AND status = 'completed' ORDER BY sequence DESC LIMIT 1",
                     DB_ARGS(DB_N(repository_id), DB_T(vm_id)), ret, ret_found, err);
}

bool store_backup_sequence_next(Store *s, int64_t repository_id, const char *vm_id, uint64_t *ret, Err *err)
{
    int64_t n;
    if (!store_number(s, "SELECT MAX(sequence) + 1 FROM backup_jobs WHERE repository_id = ? AND vm_id = ?",
                      DB_ARGS(DB_N(repository_id), DB_T(vm_id)), 1, &n, err))
        return false;
    *ret = (uint64_t)n;
    return true;
}

// Each half by an index of its own.
#define DEPENDENTS                                                                                              \
    "(SELECT id, sequence FROM backup_jobs WHERE parent_id = ? AND status NOT IN ('failed', 'cancelled') UNION" \
    " SELECT b.id, b.sequence FROM backup_disks d JOIN backup_jobs b ON b.id = d.backup_id WHERE"               \
    " d.parent_backup_id = ? AND b.status NOT IN ('failed', 'cancelled')) AS dependents"

bool store_backup_dependents(Store *s, const char *id, StoreBackup **ret, size_t *ret_len, Err *err)
{
    return store_all(s, &tables_backup, "WHERE id IN (SELECT id FROM " DEPENDENTS ") ORDER BY sequence",
                     DB_ARGS(DB_T(id), DB_T(id)), (void **)ret, ret_len, err);
}

typedef struct Count {
    char *parent;
    uint64_t n;
} Count;

static bool add_marks(StrBuf *sql, size_t n, Err *err)
{
    for (size_t i = 0; i < n; i++)
        if (!str_add(sql, i == 0 ? "?" : ", ?", err))
            return false;
    return true;
}

static bool count_some(Store *s, const StoreBackup *rows, size_t len, uint64_t *ret, Err *err)
{
    static const DbColumn columns[] = {{"parent", DB_TEXT, offsetof(Count, parent)}, {"n", DB_U64, offsetof(Count, n)}};
    DbArg args[2 * COUNT_STEP];
    StrBuf sql = STR_BUF(16384);
    Count *counts = NULL;
    size_t counts_len = 0;
    for (size_t i = 0; i < len; i++)
        args[i] = args[len + i] = DB_T(rows[i].id);
    bool ok = str_add(&sql,
                      "(SELECT parent, COUNT(*) AS n FROM (SELECT parent_id AS parent, id FROM backup_jobs WHERE"
                      " status NOT IN ('failed', 'cancelled') AND parent_id IN (",
                      err) &&
        add_marks(&sql, len, err) &&
        str_add(&sql,
                ") UNION SELECT d.parent_backup_id, b.id FROM backup_disks d JOIN backup_jobs b ON b.id ="
                " d.backup_id WHERE b.status NOT IN ('failed', 'cancelled') AND d.parent_backup_id IN (",
                err) &&
        add_marks(&sql, len, err) && str_add(&sql, ")) AS dependents GROUP BY parent) AS counts", err);
    const DbTable table = {sql.s, columns, ARRAY_LEN(columns), sizeof(Count)};
    ok = ok && store_all(s, &table, "", args, 2 * len, (void **)&counts, &counts_len, err);
    for (size_t i = 0; ok && i < len; i++) {
        ret[i] = 0;
        for (size_t k = 0; k < counts_len; k++)
            if (strcmp(counts[k].parent, rows[i].id) == 0)
                ret[i] = counts[k].n;
    }
    for (size_t k = 0; k < counts_len; k++)
        free(counts[k].parent);
    free(counts);
    str_clear(&sql);
    return ok;
}

bool store_backup_count_dependents(Store *s, const StoreBackup *rows, size_t len, uint64_t *ret, Err *err)
{
    for (size_t at = 0; at < len; at += COUNT_STEP)
        if (!count_some(s, rows + at, MIN(len - at, (size_t)COUNT_STEP), ret + at, err))
            return false;
    return true;
}

// What is a point of a repository is looked at here: with a condition more the database might not go by the IDs.
typedef struct PointOf {
    char *id, *status;
    int64_t repository_id;
} PointOf;
static const DbColumn point_columns[] = {{"id", DB_TEXT, offsetof(PointOf, id)},
                                         {"status", DB_TEXT, offsetof(PointOf, status)},
                                         {"repository_id", DB_I64, offsetof(PointOf, repository_id)}};
static const DbTable point_table = {"backup_jobs", point_columns, ARRAY_LEN(point_columns), sizeof(PointOf)};

static void free_text(char **text)
{
    free(*text);
}

static bool is_point_of(const PointOf *p, int64_t repository_id)
{
    return p->repository_id == repository_id && strcmp(p->status, "completed") == 0;
}

bool store_backup_point_ids(Store *s, int64_t repository_id, char **place, char ***ret, size_t *ret_len, Err *err)
{
    PointOf *rows = NULL;
    size_t rows_len = 0, len = 0;
    char **ids = mem_calloc(IDS_STEP, sizeof(*ids), err), *last = NULL;
    if (!ids ||
        !store_all(s, &point_table, "WHERE id > ? ORDER BY id LIMIT ?",
                   DB_ARGS(DB_T(*place ? *place : ""), DB_N(IDS_STEP)), (void **)&rows, &rows_len, err)) {
        free(ids);
        return false;
    }
    bool ok = rows_len < IDS_STEP || (last = mem_strdup(rows[rows_len - 1].id, err));
    for (size_t i = 0; i < rows_len; i++) {
        if (is_point_of(&rows[i], repository_id))
            ids[len++] = mem_take(rows[i].id);
        db_row_clear(&point_table, &rows[i]);
    }
    free(rows);
    if (!ok) {
        STORE_LIST_FREE(ids, len, free_text);
        return false;
    }
    free(*place);
    *place = last;
    *ret = ids;
    *ret_len = len;
    return true;
}

bool store_backup_are_points(Store *s, int64_t repository_id, const char *const *ids, size_t len, bool *ret, Err *err)
{
    DbArg args[STORE_IDS_MAX];
    StrBuf sql = STR_BUF(4096);
    PointOf *rows = NULL;
    size_t rows_len = 0;
    for (size_t i = 0; i < len; i++) {
        args[i] = DB_T(ids[i]);
        ret[i] = false;
    }
    bool ok = len == 0 ||
        (str_add(&sql, "WHERE id IN (", err) && add_marks(&sql, len, err) && str_add(&sql, ")", err) &&
         store_all(s, &point_table, sql.s, args, len, (void **)&rows, &rows_len, err));
    for (size_t i = 0; i < rows_len; i++) {
        bool is = is_point_of(&rows[i], repository_id);
        for (size_t k = 0; is && k < len; k++)
            ret[k] = ret[k] || strcmp(ids[k], rows[i].id) == 0;
        db_row_clear(&point_table, &rows[i]);
    }
    free(rows);
    str_clear(&sql);
    return ok;
}

// A conditional step: *ret_done tells whether the condition held.
static bool run_step(Store *s, const char *sql, const DbArg *args, size_t n, bool *ret_done, Err *err)
{
    uint64_t affected;
    if (!store_run(s, sql, args, n, &affected, err))
        return false;
    *ret_done = affected > 0;
    return true;
}

bool store_backup_step(Store *s, const char *id, const char *from, const char *to, bool *ret_done, Err *err)
{
    JobState a, b;
    if (!job_state_parse(from, &a, err) || !job_state_parse(to, &b, err))
        return false;
    if (!job_state_may_follow(a, b) || job_state_is_final(b))
        return err_set(err, ERR_INTERNAL, "no job goes from %s to %s this way", from, to);
    return run_step(s, "UPDATE backup_jobs SET status = ?, phase = ? WHERE id = ? AND status = ? AND hub_id = ?",
                    DB_ARGS(DB_T(to), DB_T(to), DB_T(id), DB_T(from), DB_T(s->hub)), ret_done, err);
}

bool store_backup_claim(Store *s, const char *id, const char *claim, int64_t now_us, bool *ret_done, Err *err)
{
    char now[CLOCK_TEXT];
    clock_format(now_us, now);
    return run_step(s,
                    "UPDATE backup_jobs SET status = 'running', phase = 'claimed', claim = ?, started_at = ?,"
                    " last_seen_at = ?, taken_over = 0 WHERE id = ? AND status = 'pending' AND hub_id = ?",
                    DB_ARGS(DB_T(claim), DB_T(now), DB_T(now), DB_T(id), DB_T(s->hub)), ret_done, err);
}

bool store_backup_end(Store *s, const char *id, const char *status, const char *error, const char *details,
                      int64_t now_us, bool *ret_done, Err *err)
{
    JobState to;
    if (!job_state_parse(status, &to, err))
        return false;
    if (to != JOB_FAILED && to != JOB_CANCELLED)
        return err_set(err, ERR_INTERNAL, "a job does not end as %s", status);
    // which states may lead here is the table of domain/job.h
    char states[128] = "''";
    for (int from = 0; from < JOB_STATES; from++)
        if (job_state_may_follow((JobState)from, to)) {
            size_t n = strlen(states);
            (void)snprintf(states + n, sizeof(states) - n, ", '%s'", job_state_name((JobState)from));
        }
    char now[CLOCK_TEXT], sql[512];
    clock_format(now_us, now);
    (void)snprintf(sql, sizeof(sql),
                   "UPDATE backup_jobs SET status = ?, phase = NULL, error = ?, details = ?, completed_at = ?,"
                   " active_vm = NULL WHERE id = ? AND hub_id = ? AND status IN (%s)",
                   states);
    return run_step(s, sql, DB_ARGS(DB_T(status), DB_T(error), DB_T(details), DB_T(now), DB_T(id), DB_T(s->hub)),
                    ret_done, err);
}

bool store_backup_uncleaned(Store *s, int64_t kept_since_us, StoreBackup **ret, size_t *ret_len, Err *err)
{
    char since[CLOCK_TEXT];
    clock_format(kept_since_us, since);
    return store_all(s, &tables_backup,
                     "WHERE status IN ('failed', 'cancelled') AND attempt IS NOT NULL"
                     " AND (resumable = 0 OR completed_at < ?)",
                     DB_ARGS(DB_T(since)), (void **)ret, ret_len, err);
}

#define RESUMABLE "status = 'failed' AND resumable <> 0 AND attempt IS NOT NULL"

bool store_backup_resumable(Store *s, StoreBackup **ret, size_t *ret_len, Err *err)
{
    return store_all(s, &tables_backup, "WHERE " RESUMABLE, DB_NO_ARGS, (void **)ret, ret_len, err);
}

bool store_backup_interrupted(Store *s, int64_t repository_id, const char *vm_id, StoreBackup *ret, bool *ret_found,
                              Err *err)
{
    return store_one(s, &tables_backup,
                     "WHERE repository_id = ? AND vm_id = ? AND " RESUMABLE " ORDER BY sequence DESC LIMIT 1",
                     DB_ARGS(DB_N(repository_id), DB_T(vm_id)), ret, ret_found, err);
}

bool store_backup_set_resumable(Store *s, const char *id, bool resumable, Err *err)
{
    return store_run(s, "UPDATE backup_jobs SET resumable = ? WHERE id = ?", DB_ARGS(DB_N(resumable), DB_T(id)), NULL,
                     err);
}

bool store_backup_forget_interrupted(Store *s, int64_t repository_id, const char *vm_id, Err *err)
{
    return store_run(s,
                     "UPDATE backup_jobs SET resumable = 0 WHERE vm_id = ? AND (? = 0 OR repository_id = ?)"
                     " AND resumable <> 0",
                     DB_ARGS(DB_T(vm_id), DB_N(repository_id), DB_N(repository_id)), NULL, err);
}

bool store_backup_cleaned(Store *s, const char *id, Err *err)
{
    return store_run(s, "UPDATE backup_jobs SET attempt = NULL WHERE id = ?", DB_ARGS(DB_T(id)), NULL, err);
}

bool store_backup_set_plan(Store *s, const StoreBackup *b, Err *err)
{
    return store_run(s,
                     "UPDATE backup_jobs SET parent_id = ?, sequence = ?, backup_type = ?, reason = ?, reason_text = ?,"
                     " context = ?, stem = ?, attempt = ?, partial = ?, left_out = ?, consistency = ?,"
                     " consistency_detail = ?, total_bytes = ?, resumed_from = ? WHERE id = ?",
                     DB_ARGS(DB_T(b->parent_id), DB_N(b->sequence), DB_T(b->backup_type), DB_T(b->reason),
                             DB_T(b->reason_text), DB_T(b->context), DB_T(b->stem), DB_T(b->attempt), DB_N(b->partial),
                             DB_T(b->left_out), DB_T(b->consistency), DB_T(b->consistency_detail), DB_N(b->total_bytes),
                             DB_T(b->resumed_from), DB_T(b->id)),
                     NULL, err);
}

static bool is_own(uint64_t found, const char *id, Err *err)
{
    return found > 0 || err_set(err, ERR_CONFLICT, "backup %s is another hub's by now", id);
}

bool store_backup_set_client(Store *s, const char *id, int64_t pid, uint64_t start, Err *err)
{
    char now[CLOCK_TEXT];
    uint64_t n = 0;
    clock_format(clock_utc_us(), now);
    return store_run(s,
                     "UPDATE backup_jobs SET client_pid = ?, client_start = ?, last_seen_at = ?"
                     " WHERE id = ? AND hub_id = ?",
                     DB_ARGS(DB_N(pid), DB_N(start), DB_T(now), DB_T(id), DB_T(s->hub)), &n, err) &&
        is_own(n, id, err);
}

bool store_backup_set_token(Store *s, const char *id, const char *digest, Err *err)
{
    uint64_t n = 0;
    return store_run(s, "UPDATE backup_jobs SET token_digest = ? WHERE id = ? AND hub_id = ?",
                     DB_ARGS(DB_T(digest), DB_T(id), DB_T(s->hub)), &n, err) &&
        is_own(n, id, err);
}

bool store_backup_seen(Store *s, const char *id, const char *phase, int64_t now_us, Err *err)
{
    char now[CLOCK_TEXT];
    clock_format(now_us, now);
    return store_run(s, "UPDATE backup_jobs SET last_seen_at = ?, phase = COALESCE(?, phase) WHERE id = ? AND " ACTIVE,
                     DB_ARGS(DB_T(now), DB_T(phase), DB_T(id)), NULL, err);
}

bool store_backup_set_progress(Store *s, const char *id, Err *err)
{
    return store_run(s,
                     "UPDATE backup_jobs SET"
                     " done_bytes = (SELECT COALESCE(SUM(done_bytes), 0) FROM backup_disks WHERE backup_id = ?),"
                     " bytes_transferred = (SELECT COALESCE(SUM(transferred_bytes), 0) FROM backup_disks WHERE"
                     " backup_id = ?),"
                     " stored_bytes = (SELECT COALESCE(SUM(stored_bytes), 0) FROM backup_disks WHERE backup_id = ?)"
                     " WHERE id = ? AND status = 'running'",
                     DB_ARGS(DB_T(id), DB_T(id), DB_T(id), DB_T(id)), NULL, err);
}

bool store_backup_request_cancel(Store *s, const char *id, Err *err)
{
    return store_run(s, "UPDATE backup_jobs SET cancel_requested = 1 WHERE id = ? AND " ACTIVE, DB_ARGS(DB_T(id)), NULL,
                     err);
}

bool store_backup_complete(Store *s, const StoreBackup *b, Err *err)
{
    char now[CLOCK_TEXT];
    clock_format(b->completed_us, now);
    uint64_t n = 0;
    if (!store_run(
            s,
            "UPDATE backup_jobs SET status = 'completed', phase = NULL, active_vm = NULL, change_id = ?,"
            " completed_at = ?, bytes_transferred = ?, stored_bytes = ?, done_bytes = total_bytes, error = NULL,"
            " details = NULL WHERE id = ? AND status = 'committing'",
            DB_ARGS(DB_T(b->change_id), DB_T(now), DB_N(b->bytes_transferred), DB_N(b->stored_bytes), DB_T(b->id)), &n,
            err))
        return false;
    return n == 1 || err_set(err, ERR_CONFLICT, "backup %s is not committing", b->id);
}

bool store_backup_set_suspect(Store *s, const char *id, bool suspect, bool damaged, Err *err)
{
    return store_run(s,
                     "UPDATE backup_jobs SET suspect = CASE WHEN doubted <> 0 THEN 1 ELSE ? END, damaged = ?"
                     " WHERE id = ?",
                     DB_ARGS(DB_N(suspect), DB_N(damaged), DB_T(id)), NULL, err);
}

bool store_backup_set_doubted(Store *s, const char *id, Err *err)
{
    return store_run(s, "UPDATE backup_jobs SET suspect = 1, doubted = 1 WHERE id = ?", DB_ARGS(DB_T(id)), NULL, err);
}

bool store_backup_give_reason(Store *s, const char *id, const char *reason, const char *text, Err *err)
{
    return store_run(s,
                     "UPDATE backup_jobs SET reason = ?, reason_text = ?"
                     " WHERE id = ? AND (reason IS NULL OR reason = '')",
                     DB_ARGS(DB_T(reason), DB_T(text), DB_T(id)), NULL, err);
}

bool store_backup_set_verified(Store *s, const char *id, const char *result, int64_t now_us, Err *err)
{
    char now[CLOCK_TEXT];
    clock_format(now_us, now);
    return store_run(s, "UPDATE backup_jobs SET verify_result = ?, verified_at = ? WHERE id = ?",
                     DB_ARGS(DB_T(result), DB_T(now), DB_T(id)), NULL, err);
}

bool store_backup_set_deleting(Store *s, const char *id, bool deleting, Err *err)
{
    return store_run(s, "UPDATE backup_jobs SET deleting = ?, deleting_hub = ? WHERE id = ?",
                     DB_ARGS(DB_N(deleting), DB_T(deleting ? s->hub : ""), DB_T(id)), NULL, err);
}

bool store_backup_forget_deleting(Store *s, Err *err)
{
    return store_run(s, "UPDATE backup_jobs SET deleting = 0 WHERE deleting <> 0 AND deleting_hub = ?",
                     DB_ARGS(DB_T(s->hub)), NULL, err);
}

bool store_backup_deleting(Store *s, StoreBackup **ret, size_t *ret_len, Err *err)
{
    return store_all(s, &tables_backup, "WHERE deleting <> 0 AND deleting_hub = ? ORDER BY sequence DESC",
                     DB_ARGS(DB_T(s->hub)), (void **)ret, ret_len, err);
}

bool store_backup_count_deleting(Store *s, int64_t repository_id, uint64_t *ret, Err *err)
{
    int64_t n;
    if (!store_number(s, "SELECT COUNT(*) FROM backup_jobs WHERE repository_id = ? AND deleting <> 0",
                      DB_ARGS(DB_N(repository_id)), 0, &n, err))
        return false;
    *ret = (uint64_t)n;
    return true;
}

// The disks go with it, by their foreign key.
bool store_backup_remove(Store *s, const char *id, Err *err)
{
    return store_id_removed(s, id, err) &&
        store_run(s, "DELETE FROM backup_jobs WHERE id = ?", DB_ARGS(DB_T(id)), NULL, err);
}

void store_backup_clear(StoreBackup *b)
{
    db_row_clear(&tables_backup, b);
}
