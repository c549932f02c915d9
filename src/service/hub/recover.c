// What a hub does at its start, with whatever an earlier one left: completes what was committed, goes on with what
// runs, ends what cannot go on. Records are read before anything is deleted. Then it looks through the repositories
// (look.c).
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "image/layout.h"
#include "service/hub/internal.h"

bool hub_end_exporters(Hub *h, const StoreBackup *b, Err *err)
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
        ok = hub_end_exporters(h, b, err);
        if (!ok || !hub_commit(h, r, &why))
            log_error("an interrupted commit could not be finished yet", LOG_STR("job", b->id), LOG_ERR(&why));
        else
            log_info("an interrupted commit was finished", LOG_STR("job", b->id));
    } else if (!adopt(h, r, b, &why)) {
        // those that were not adopted, too: one may be gone, and the next still there
        ok = hub_end_exporters(h, b, err) && hub_job_end(h, r, "failed", "interrupted", why.details, false, err);
    } else {
        log_info("job taken over", LOG_STR("job", b->id), LOG_STR("status", b->status));
        ok = store_backup_seen(h->store, b->id, NULL, clock_utc_us(), err); // a fresh lease
    }
    hub_running_unlock(h, r);
    return ok;
}

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

// Deletions that were cut off: the look through the repository takes their files away, and the rows go here, or they
// would be listed as points whose records are lost. Such a row is marked, or was made suspect when the deletion failed.
static bool forget_deleted(Hub *h, const StoreRepository *repository, const Repo *repo, Err *err)
{
    StoreBackup *rows = NULL;
    size_t len = 0;
    if (!store_backup_odd_points(h->store, repository->id, &rows, &len, err))
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

// Whether one that was marked lost its record already cannot be told while its repository is away.
static bool doubt_marked(Hub *h, int64_t repository_id, Err *err)
{
    StoreBackup *rows = NULL;
    size_t len = 0;
    if (!store_backup_deleting(h->store, &rows, &len, err))
        return false;
    bool ok = true;
    for (size_t i = 0; ok && i < len; i++)
        ok = rows[i].repository_id != repository_id ||
            store_backup_set_suspect(h->store, rows[i].id, true, rows[i].damaged, err);
    STORE_LIST_FREE(rows, len, store_backup_clear);
    return ok;
}

static bool give_up_deletions(Hub *h, Err *err)
{
    StoreRepository *rows = NULL;
    size_t len = 0;
    if (!store_repository_list(h->store, &rows, &len, err))
        return false;
    bool ok = true;
    for (size_t i = 0; ok && i < len; i++) {
        Repo cleanup_repo repo = {0};
        Err away = ERR_INIT, why = ERR_INIT;
        if (!hub_repo_open(h, &rows[i], &repo, &away))
            ok = doubt_marked(h, rows[i].id, err);
        else if (!forget_deleted(h, &rows[i], &repo, &why))
            log_error("deletions that were cut off cannot be finished", LOG_STR("name", rows[i].name), LOG_ERR(&why));
    }
    STORE_LIST_FREE(rows, len, store_repository_clear);
    return ok && store_backup_forget_deleting(h->store, err);
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

// Alone, whatever was not begun is given up.
static bool recover_deletions(Hub *h, bool alone, Err *err)
{
    Err why = ERR_INIT;
    if (alone)
        return give_up_deletions(h, err);
    if (!hub_deletions_finish(h, &why))
        log_error("deletions that were cut off cannot be finished", LOG_ERR(&why));
    return true;
}

// Its record may stand, whatever became of its processes, and of the row. One that cannot be read: the look through the
// repository names it.
static void finish_from_record(Hub *h, const StoreBackup *b)
{
    StoreRepository cleanup_repository row = {0};
    Repo cleanup_repo repo = {0};
    Err err = ERR_INIT;
    if (!b->context || !b->stem)
        return;
    if (!store_repository_get(h->store, b->repository_id, &row, &err) || !hub_repo_open(h, &row, &repo, &err)) {
        log_warn("an interrupted job's record cannot be looked for", LOG_STR("job", b->id), LOG_ERR(&err));
        return;
    }
    cleanup_free char *path = repo_path_record(&repo, b->context, b->stem, &err);
    Points points = {.hub = h, .repo = &repo};
    const Record *found = path && file_exists(path) ? hub_points_find(&points, b->id) : NULL;
    if (found) {
        Record record = *found;
        char *stem = b->stem;
        RepoScan one = {.records = &record, .stems = &stem, .len = 1};
        if (!hub_catalogue_add(h, &row, &repo, &one, &err))
            log_error("a point is not taken into the catalogue", LOG_STR("job", b->id), LOG_ERR(&err));
    }
    hub_points_clear(&points);
}

bool hub_recover(Hub *h, Err *err)
{
    StoreBackup *jobs = NULL;
    size_t len = 0;
    bool alone;
    if (!sweep(h, err) || !hub_is_alone(h, &alone, err) || !recover_deletions(h, alone, err) ||
        !store_backup_active_of(h->store, h->hub_id, &jobs, &len, err))
        return false;
    // records first: a job whose record stands is completed
    for (size_t i = 0; i < len; i++)
        finish_from_record(h, &jobs[i]);
    STORE_LIST_FREE(jobs, len, store_backup_clear);
    bool ok = store_backup_active_of(h->store, h->hub_id, &jobs, &len, err);
    for (size_t i = 0; ok && i < len; i++)
        ok = recover_job(h, &jobs[i], err);
    STORE_LIST_FREE(jobs, len, store_backup_clear);
    return ok && recover_exports(h, err);
}
