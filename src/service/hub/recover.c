// What a hub does at its start, with whatever an earlier one left: completes what was committed, goes on with what
// runs, ends what cannot go on. Records are read before anything is deleted.
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "image/layout.h"
#include "service/hub/internal.h"

static int compare_ids(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

// The records' backup IDs, sorted, borrowed from the scan: each listed point is looked for among them.
static bool sort_ids(const RepoScan *scan, const char ***ret, Err *err)
{
    const char **ids = mem_calloc(MAX(scan->len, (size_t)1), sizeof(*ids), err);
    if (!ids)
        return false;
    for (size_t i = 0; i < scan->len; i++)
        ids[i] = scan->records[i].backup_id;
    qsort(ids, scan->len, sizeof(*ids), compare_ids);
    *ret = ids;
    return true;
}

static bool add_context(Hub *h, const StoreRepository *repository, const Record *rec, Err *err)
{
    if (!store_context_set(h->store, repository->id, rec->vm_id, rec->context, err))
        return false;
    for (size_t i = 0; i < rec->disks_len; i++) {
        StoreDiskNumber n = {0};
        bool found;
        if (!store_disk_number_get(h->store, repository->id, rec->vm_id, rec->disks[i].disk_key, &n, &found, err))
            return false;
        store_disk_number_clear(&n);
        if (found)
            continue;
        n = (StoreDiskNumber){.repository_id = repository->id,
                              .vm_id = rec->vm_id,
                              .disk_key = rec->disks[i].disk_key,
                              .disk_id = rec->disks[i].disk_id,
                              .disk_no = rec->disks[i].disk_no};
        // a number that another key has by now: this key gets a new one with its next backup
        Err taken = ERR_INIT;
        if (!store_disk_number_add(h->store, &n, &taken) && taken.code != ERR_EXISTS) {
            *err = taken;
            return false;
        }
    }
    return true;
}

static bool end_exporters(Hub *h, const StoreBackup *b, Err *err)
{
    StoreDisk *disks = NULL;
    size_t len = 0;
    if (!store_disk_list(h->store, b->id, &disks, &len, err))
        return false;
    for (size_t i = 0; i < len; i++)
        exporter_stop_recorded(disks[i].exporter_pid, disks[i].exporter_start, disks[i].socket, disks[i].control);
    STORE_LIST_FREE(disks, len, store_disk_clear);
    return true;
}

// Nothing to do for a record: its row is completed, or comes to it by itself, or the record was deleted since the scan
// read it (a deletion takes its row in the same transaction, so this look is the last word).
static bool nothing_to_add(Hub *h, const Repo *repo, const Record *rec, const char *stem, const StoreBackup *old,
                           bool *ret_nothing, Err *err)
{
    JobState state = JOB_FAILED;
    if (old->status && !job_state_parse(old->status, &state, err))
        return false;
    cleanup_free char *path = repo_path_record(repo, rec->context, stem, err);
    if (!path)
        return false;
    // at the start nobody is at work on a job; later its own commit ends it
    *ret_nothing = state == JOB_COMPLETED ||
        (!job_state_is_final(state) && (h->supervising || strcmp(old->hub_id, h->hub_id) != 0)) ||
        (!old->id && !file_exists(path));
    return true;
}

// A record without a completed row: the point exists, whatever the database thought of its job.
static bool add_point(Hub *h, const StoreRepository *repository, const Repo *repo, const Record *rec, const char *stem,
                      bool *ret_added, Err *err)
{
    StoreBackup cleanup_backup old = {0}, row = {0};
    StoreDisk *disks = NULL;
    size_t len = 0;
    bool exists, nothing;
    if (!store_backup_exists(h->store, rec->backup_id, &exists, err) ||
        (exists && !store_backup_get(h->store, rec->backup_id, &old, err)))
        return false;
    if (exists && old.repository_id != repository->id)
        return err_set(err, ERR_CONFLICT, "point %s is in another repository too; remove that one first", old.id);
    if (!nothing_to_add(h, repo, rec, stem, &old, &nothing, err))
        return false;
    if (nothing) {
        *ret_added = false;
        return true;
    }
    bool ok = hub_rows_from_record(rec, stem, repository, &row, &disks, &len, err) &&
        // the client may still repeat its `complete`: its token stays good
        mem_replace(&row.token_digest, old.token_digest, err) && (!exists || end_exporters(h, &old, err)) &&
        (!exists || store_backup_remove(h->store, rec->backup_id, err)) && store_backup_add(h->store, &row, err);
    for (size_t i = 0; ok && i < len; i++)
        ok = store_disk_add(h->store, &disks[i], err);
    ok = ok && hub_inherit_damage(h, row.id, disks, len, err);
    STORE_LIST_FREE(disks, len, store_disk_clear);
    *ret_added = true;
    return ok && add_context(h, repository, rec, err);
}

static bool refuse_point(const Record *rec, const char *stem, const Err *why, json_t *refused, Err *err)
{
    log_error("a record is not taken into the catalogue", LOG_STR("job", rec->backup_id), LOG_ERR(why));
    if (!refused)
        return true;
    cleanup_free char *path = mem_printf(err, "%s/%s.json", rec->context, stem);
    json_t *o = path ? json_object() : NULL;
    bool ok = (o != NULL || err_no_memory(err)) && codec_json_set_text(o, "path", path, err) &&
        codec_json_set_text(o, "backup_id", NULL, err) && codec_json_set_text(o, "error", err_short(why), err) &&
        codec_json_set_text(o, "details", why->details, err);
    return codec_json_push(refused, o, err) && ok;
}

static bool add_points(Hub *h, const StoreRepository *repository, const Repo *repo, const RepoScan *scan,
                       ScanCounts *counts, Err *err)
{
    for (size_t i = 0; i < scan->len; i++) {
        const Record *rec = &scan->records[i];
        bool added = false;
        Err why = ERR_INIT;
        if (!add_point(h, repository, repo, rec, scan->stems[i], &added, &why)) {
            // one that clashes with another repository's point keeps nobody else out
            if (why.code == ERR_CONFLICT && refuse_point(rec, scan->stems[i], &why, counts->refused, err))
                continue;
            if (err->code == ERR_NONE)
                *err = why;
            return err_context(err, "record of %s", rec->backup_id);
        }
        if (added) {
            counts->added++;
            log_info("point taken into the catalogue", LOG_STR("job", rec->backup_id));
        } else {
            counts->unchanged++;
        }
    }
    return true;
}

// A point that was compared because of an audit says so in its record: a catalogue made anew doubts the same ones.
static bool mark_doubted(Hub *h, const StoreRepository *repository, const RepoScan *scan, Err *err)
{
    for (size_t i = 0; i < scan->len; i++)
        for (size_t k = 0; k < scan->records[i].disks_len; k++) {
            const RecordDisk *d = &scan->records[i].disks[k];
            if (d->reason == CHAIN_AUDIT_FAILED && d->parent_backup_id &&
                !hub_doubt(h, repository->id, d->parent_backup_id, d->disk_key, NULL, err))
                return false;
        }
    return true;
}

// Points that the catalogue lists and the repository does not hold: they stay listed, as suspect, and are named.
static bool mark_missing(Hub *h, const StoreRepository *repository, const Repo *repo, const RepoScan *scan,
                         json_t *missing, Err *err)
{
    StoreBackup *rows = NULL;
    size_t len = 0;
    cleanup_free const char **known = NULL;
    if (!sort_ids(scan, &known, err) || !store_backup_points(h->store, repository->id, NULL, &rows, &len, err))
        return false;
    Points points = {.hub = h, .repo = repo};
    bool ok = true;
    for (size_t i = 0; ok && i < len; i++) {
        // one that was completed after the scan had read its folder is there now
        if (rows[i].deleting || bsearch(&rows[i].id, known, scan->len, sizeof(*known), compare_ids) ||
            hub_points_find(&points, rows[i].id))
            continue;
        log_error("a listed point has no readable record", LOG_STR("job", rows[i].id), LOG_ERR(&points.err));
        json_t *ids = NULL;
        // one that cannot be read now, as no damage would be, is suspect, and nothing that rests on it
        ok = (points.err.code == ERR_DAMAGED
                  ? hub_mark_damaged_in(h, &rows[i], NULL, &ids, err)
                  : store_backup_set_suspect(h->store, rows[i].id, true, rows[i].damaged, err)) &&
            (!missing || codec_json_push(missing, json_string(rows[i].id), err));
        json_decref(ids);
    }
    hub_points_clear(&points);
    STORE_LIST_FREE(rows, len, store_backup_clear);
    return ok;
}

// Listed points that are not whole, and what rests on them.
static bool mark_broken(Hub *h, const StoreRepository *repository, const RepoScan *scan, Err *err)
{
    for (size_t i = 0; i < scan->problems_len; i++) {
        const struct RepoProblem *p = &scan->problems[i];
        StoreBackup cleanup_backup row = {0};
        bool exists;
        json_t *ids = NULL;
        if (!p->backup_id || p->error.code != ERR_DAMAGED)
            continue;
        if (!store_backup_exists(h->store, p->backup_id, &exists, err) ||
            (exists && !store_backup_get(h->store, p->backup_id, &row, err)))
            return false;
        if (!exists || row.repository_id != repository->id || row.deleting || strcmp(row.status, "completed") != 0)
            continue; // gone or going since the scan looked, or another repository's
        if (!hub_mark_damaged_in(h, &row, p->disk_key, &ids, err))
            return false;
        json_decref(ids);
    }
    return true;
}

static bool update_catalogue(Hub *h, const StoreRepository *repository, const Repo *repo, const RepoScan *scan,
                             ScanCounts *counts, Err *err)
{
    StoreRepository cleanup_repository still = {0};
    bool stale;                                                           // the rows are a backup's
    return store_repository_get(h->store, repository->id, &still, err) && // not removed since the scan began
        store_is_stale(h->store, repository->id, &stale, err) &&
        (!stale || (hub_reconcile(h, repository, repo, scan, err) && store_not_stale(h->store, repository->id, err))) &&
        add_points(h, repository, repo, scan, counts, err) && mark_doubted(h, repository, scan, err) &&
        mark_missing(h, repository, repo, scan, counts->missing, err) && mark_broken(h, repository, scan, err);
}

bool hub_catalogue_update(Hub *h, const StoreRepository *repository, const Repo *repo, const RepoScan *scan,
                          ScanCounts *counts, Err *err)
{
    ScanCounts unused = {0}, *into = counts ? counts : &unused;
    StoreTurn t = STORE_TURN(h->store);
    while (store_turn(&t, err)) {
        into->added = into->unchanged = 0;
        (void)json_array_clear(into->missing); // where there is one
        (void)json_array_clear(into->refused);
        t.ok = update_catalogue(h, repository, repo, scan, into, err);
    }
    return t.ok;
}

// Takes hold of a running job's exporters and client. False, with the reason, where it cannot go on.
static bool adopt(Hub *h, Running *r, const StoreBackup *b, Err *err)
{
    StoreDisk *disks = NULL;
    size_t len = 0;
    if (!store_disk_list(h->store, b->id, &disks, &len, err))
        return false;
    bool ok = len == 0 || (r->exporters = mem_calloc(len, sizeof(*r->exporters), err));
    for (size_t i = 0; ok && i < len; i++) {
        Err gone = ERR_INIT;
        ok = disks[i].socket &&
            exporter_adopt(disks[i].exporter_pid, disks[i].exporter_start, disks[i].socket, disks[i].control,
                           disks[i].export_name, &r->exporters[i], &gone);
        if (ok)
            r->exporters_len++;
        else
            (void)err_set(err, ERR_CONFLICT, "the exporter of disk %s is gone, and with it what it had not flushed",
                          disks[i].disk_key);
    }
    STORE_LIST_FREE(disks, len, store_disk_clear);
    Err client = ERR_INIT;
    // in any case: a client whose job cannot go on is to be ended
    if (b->client_pid > 0 && !proc_adopt((pid_t)b->client_pid, b->client_start, &r->client, &client)) {
        r->client = PROC_NONE;
        if (ok)
            ok = err_set(err, ERR_CONFLICT, "the client ended while the hub was away");
    }
    return ok;
}

static bool recover_job(Hub *h, const StoreBackup *b, Err *err)
{
    Running *r;
    Err why = ERR_INIT;
    bool ok = true;
    if (!hub_running_lock(h, b->id, &r, err))
        return false;
    if (strcmp(b->status, "committing") == 0) {
        // everything that is needed is on record and on disk, the exporters are not; if its repository is away, the
        // supervisor tries again
        ok = end_exporters(h, b, err);
        if (!ok || !hub_commit(h, r, &why))
            log_error("an interrupted commit could not be finished yet", LOG_STR("job", b->id), LOG_ERR(&why));
        else
            log_info("an interrupted commit was finished", LOG_STR("job", b->id));
    } else if (!adopt(h, r, b, &why)) {
        // those that were not adopted, too: one may be gone, and the next still there
        ok = end_exporters(h, b, err) && hub_job_end(h, r, "failed", "interrupted", why.details, false, err);
    } else {
        log_info("job taken over", LOG_STR("job", b->id), LOG_STR("status", b->status));
        ok = store_backup_seen(h->store, b->id, NULL, clock_utc_us(), err); // a fresh lease
    }
    hub_running_unlock(h, r);
    return ok;
}

// The other repositories, and the API, do not wait for one that has a problem: that is logged, and a scan names it.
static bool is_deleted(const Repo *repo, const StoreBackup *b, bool *ret, Err *err)
{
    char name[LAYOUT_NAME];
    if (!layout_name(LAYOUT_DELETED, b->stem, NULL, name, err))
        return false;
    cleanup_free char *record = repo_path_record(repo, b->context, b->stem, err);
    cleanup_free char *deleted = record ? mem_printf(err, "%s/%s/%s", repo->path, b->context, name) : NULL;
    if (!deleted)
        return false;
    *ret = !file_exists(record) && file_exists(deleted);
    return true;
}

// Deletions that were cut off: repo_recover() takes their files away, and the rows go here, or they would be listed as
// points whose records are lost.
static bool forget_deleted(Hub *h, const StoreRepository *repository, const Repo *repo, Err *err)
{
    StoreBackup *rows = NULL;
    size_t len = 0;
    if (!store_backup_points(h->store, repository->id, NULL, &rows, &len, err))
        return false;
    bool ok = true;
    for (size_t i = len; ok && i-- > 0;) { // the newest first: an older one may only wait for it
        StoreBackup *dependents = NULL;
        size_t dependents_len = 0;
        bool deleted = false;
        ok = !rows[i].context || !rows[i].stem || is_deleted(repo, &rows[i], &deleted, err);
        if (!ok || !deleted)
            continue;
        ok = store_backup_dependents(h->store, rows[i].id, &dependents, &dependents_len, err) &&
            (dependents_len > 0 || store_backup_remove(h->store, rows[i].id, err));
        STORE_LIST_FREE(dependents, dependents_len, store_backup_clear);
        log_info("a deletion that was cut off goes on", LOG_STR("job", rows[i].id));
    }
    STORE_LIST_FREE(rows, len, store_backup_clear);
    return ok;
}

// RepoKeeps: by what the database says now. Where that cannot be told, it stays.
static bool is_kept(void *ctx, const char *attempt)
{
    Hub *h = ctx;
    StoreBackup *jobs = NULL, *kept = NULL; // kept: which a next job may go on from
    size_t jobs_len = 0, kept_len = 0;
    Err err = ERR_INIT;
    bool ok = store_backup_active(h->store, &jobs, &jobs_len, &err) &&
        store_backup_resumable(h->store, &kept, &kept_len, &err);
    bool is = !ok;
    for (size_t i = 0; i < jobs_len && !is; i++)
        is = jobs[i].attempt && strcmp(jobs[i].attempt, attempt) == 0;
    for (size_t i = 0; i < kept_len && !is; i++)
        is = strcmp(kept[i].attempt, attempt) == 0;
    if (!ok)
        log_error("cannot look whose partial images these are", LOG_STR("attempt", attempt), LOG_ERR(&err));
    STORE_LIST_FREE(jobs, jobs_len, store_backup_clear);
    STORE_LIST_FREE(kept, kept_len, store_backup_clear);
    return is;
}

static void recover_repository(Hub *h, const StoreRepository *row, bool alone)
{
    Repo cleanup_repo repo = {0};
    RepoScan scan = {0};
    Err away = ERR_INIT, cleaning = ERR_INIT, updating = ERR_INIT;
    if (!hub_repo_open(h, row, &repo, &away)) {
        log_warn("repository not available", LOG_STR("name", row->name), LOG_ERR(&away));
        return;
    }
    // another hub may be at work on a deletion: the rows are its
    if (alone && !forget_deleted(h, row, &repo, &updating))
        log_error("deletions that were cut off cannot be finished", LOG_STR("name", row->name), LOG_ERR(&updating));
    err_clear(&updating);
    bool scanned = repo_recover(&repo, is_kept, h, &scan, &cleaning);
    if (!scanned) {
        log_error("what a repository's jobs left cannot be removed", LOG_STR("name", row->name), LOG_ERR(&cleaning));
        scanned = repo_scan(&repo, &scan, &updating);
    }
    if (!scanned || !hub_catalogue_update(h, row, &repo, &scan, NULL, &updating))
        log_error("repository not taken into the catalogue", LOG_STR("name", row->name), LOG_ERR(&updating));
    for (size_t i = 0; i < scan.problems_len; i++)
        log_error("damaged record", LOG_STR("path", scan.problems[i].path), LOG_ERR(&scan.problems[i].error));
    repo_scan_clear(&scan);
}

static bool recover_exports(Hub *h, Err *err)
{
    StoreExport *rows = NULL;
    size_t len = 0;
    if (!store_export_list(h->store, &rows, &len, err))
        return false;
    bool ok = true;
    for (size_t i = 0; ok && i < len; i++) {
        Proc p = PROC_NONE;
        Err gone = ERR_INIT;
        if (strcmp(rows[i].hub_id, h->hub_id) != 0)
            continue;
        if (proc_adopt((pid_t)rows[i].pid, rows[i].start, &p, &gone)) {
            proc_clear(&p);
            continue; // a restore goes on
        }
        exporter_stop_recorded(0, 0, rows[i].socket, rows[i].control);
        ok = store_export_remove(h->store, rows[i].id, err);
    }
    STORE_LIST_FREE(rows, len, store_export_clear);
    return ok;
}

// Run folders that no job and no export owns, and the exporters in them.
static bool sweep(Hub *h, Err *err)
{
    char **keep = NULL;
    size_t len = 0;
    if (!hub_exporters_on_record(h, &keep, &len, err))
        return false;
    bool ok = exporter_sweep(h->run_dir, (const char *const *)keep, len, err);
    hub_texts_free(keep, len);
    return ok;
}

// Alone, whatever was not begun is given up, and what was goes on with the repository's files (forget_deleted()).
static bool recover_deletions(Hub *h, bool alone, Err *err)
{
    Err why = ERR_INIT;
    if (alone)
        return store_backup_forget_deleting(h->store, err);
    if (!hub_deletions_finish(h, &why))
        log_error("deletions that were cut off cannot be finished", LOG_ERR(&why));
    return true;
}

bool hub_recover(Hub *h, Err *err)
{
    StoreBackup *jobs = NULL;
    StoreRepository *repositories = NULL;
    size_t jobs_len = 0, repositories_len = 0;
    bool alone;
    bool ok = sweep(h, err) && hub_is_alone(h, &alone, err) && recover_deletions(h, alone, err) &&
        store_repository_list(h->store, &repositories, &repositories_len, err);
    // records first: a job whose record stands is completed, whatever became of its processes
    for (size_t i = 0; ok && i < repositories_len; i++)
        recover_repository(h, &repositories[i], alone);
    ok = ok && store_backup_active_of(h->store, h->hub_id, &jobs, &jobs_len, err);
    for (size_t i = 0; ok && i < jobs_len; i++)
        ok = recover_job(h, &jobs[i], err);
    STORE_LIST_FREE(jobs, jobs_len, store_backup_clear);
    STORE_LIST_FREE(repositories, repositories_len, store_repository_clear);
    return ok && recover_exports(h, err);
}
