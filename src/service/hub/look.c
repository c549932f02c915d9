// A look through all repositories after the hub's start: what earlier hubs left there is removed, and the catalogue
// brought in line with the records. A thread beside the API, folder by folder: a million records take minutes, on a
// share much longer. The start waits for it for as long as it takes with few. docs/internals/jobs.md.
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/str.h"
#include "service/hub/internal.h"

#include <errno.h>
#include <time.h>

#define WAIT_MS 10000
#define THREAD_NAME "look-through"

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

// The caller has a transaction open. Its dependents' records would have kept the files.
static bool forget_row(Hub *h, const Record *rec, bool *ret_gone, Err *err)
{
    StoreBackup cleanup_backup b = {0};
    StoreRepository cleanup_repository row = {0};
    StoreBackup *dependents = NULL;
    size_t len = 0;
    bool exists;
    *ret_gone = false;
    if (!store_backup_exists(h->store, rec->backup_id, &exists, err) ||
        (exists && !store_backup_get(h->store, rec->backup_id, &b, err)) ||
        (exists && !store_repository_get(h->store, b.repository_id, &row, err)))
        return false;
    // marked, its deletion is under way, and the row that one's
    if (!exists || b.deleting || strcmp(b.status, "completed") != 0 || !str_eq(row.uuid, rec->repository_uuid))
        return true;
    bool ok = store_backup_dependents(h->store, b.id, &dependents, &len, err) &&
        (len > 0 || store_backup_remove(h->store, b.id, err));
    *ret_gone = ok && len == 0;
    STORE_LIST_FREE(dependents, len, store_backup_clear);
    return ok;
}

// RepoForgets: or it would be listed as a point whose record is lost.
static void forget_deleted(void *ctx, const Record *deleted)
{
    Hub *h = ctx;
    Err err = ERR_INIT;
    bool gone = false;
    if (!deleted)
        return;
    StoreTurn t = STORE_TURN(h->store);
    while (store_turn(&t, &err))
        t.ok = forget_row(h, deleted, &gone, &err);
    if (!t.ok)
        log_error("a deleted point cannot be forgotten", LOG_STR("job", deleted->backup_id), LOG_ERR(&err));
    else if (gone)
        log_info("a deletion that was cut off goes on", LOG_STR("job", deleted->backup_id));
}

typedef struct Known { // IDs of the points of a repository whose records were seen
    char **ids;
    size_t len, cap;
} Known;

static bool note(Known *k, const RepoScan *scan, Err *err)
{
    for (size_t i = 0; i < scan->len; i++) {
        if (k->len == k->cap) {
            size_t cap = k->cap ? k->cap * 2 : 1024;
            char **more = reallocarray(k->ids, cap, sizeof(*more));
            if (!more)
                return err_no_memory(err);
            k->ids = more;
            k->cap = cap;
        }
        if (!(k->ids[k->len] = mem_strdup(scan->records[i].backup_id, err)))
            return false;
        k->len++;
    }
    return true;
}

static void say_problems(const RepoScan *scan)
{
    for (size_t i = 0; i < scan->problems_len; i++)
        log_error("damaged record", LOG_STR("path", scan->problems[i].path), LOG_ERR(&scan->problems[i].error));
}

// The other repositories, and the other folders, do not wait for one that has a problem: that is logged, and a scan
// names it. False: it was not looked through.
static bool look_at(Hub *h, const StoreRepository *row, const Repo *repo, const char *name, Known *known)
{
    RepoScan scan = {0};
    Err cleaning = ERR_INIT, updating = ERR_INIT;
    bool scanned = repo_recover_one(repo, name, is_kept, forget_deleted, h, &scan, &cleaning);
    if (!scanned) {
        log_error("what a repository's jobs left cannot be removed", LOG_STR("name", row->name),
                  LOG_STR("folder", name), LOG_ERR(&cleaning));
        scanned = repo_scan_one(repo, name, &scan, &updating);
    }
    bool ok = scanned && hub_catalogue_add(h, row, repo, &scan, &updating) && note(known, &scan, &updating);
    if (!ok)
        log_error("repository not taken into the catalogue", LOG_STR("name", row->name), LOG_STR("folder", name),
                  LOG_ERR(&updating));
    say_problems(&scan);
    repo_scan_clear(&scan);
    return ok;
}

// A database that came out of a backup: its rows are compared with all of the records at once.
static void look_through_stale(Hub *h, const StoreRepository *row, const Repo *repo)
{
    RepoScan scan = {0};
    Err cleaning = ERR_INIT, updating = ERR_INIT;
    bool scanned = repo_recover(repo, is_kept, h, &scan, &cleaning);
    if (!scanned) {
        log_error("what a repository's jobs left cannot be removed", LOG_STR("name", row->name), LOG_ERR(&cleaning));
        scanned = repo_scan(repo, &scan, &updating);
    }
    if (!scanned || !hub_catalogue_update(h, row, repo, &scan, NULL, &updating))
        log_error("repository not taken into the catalogue", LOG_STR("name", row->name), LOG_ERR(&updating));
    say_problems(&scan);
    repo_scan_clear(&scan);
}

static void look_through_names(Hub *h, const StoreRepository *row, const Repo *repo, char **names, size_t len)
{
    Known known = {0};
    Err err = ERR_INIT;
    bool all = true;
    for (size_t i = 0; i < len && !atomic_load(&h->look_stop); i++)
        all = look_at(h, row, repo, names[i], &known) && all;
    if (known.len > 0)
        qsort(known.ids, known.len, sizeof(*known.ids), hub_compare_ids);
    // what was not looked through is not missing
    if (all && !atomic_load(&h->look_stop) &&
        !hub_catalogue_missing(h, row, repo, (const char *const *)known.ids, known.len, &err))
        log_error("repository not taken into the catalogue", LOG_STR("name", row->name), LOG_ERR(&err));
    hub_texts_free(known.ids, known.len);
}

static void look_through(Hub *h, const StoreRepository *row)
{
    Repo cleanup_repo repo = {0};
    Err err = ERR_INIT;
    char **names = NULL;
    size_t len = 0;
    bool stale = false;
    if (!hub_repo_open(h, row, &repo, &err)) {
        log_warn("repository not available", LOG_STR("name", row->name), LOG_ERR(&err));
        return;
    }
    if (!store_is_stale(h->store, row->id, &stale, &err) || (!stale && !repo_names(&repo, &names, &len, &err))) {
        log_error("repository not taken into the catalogue", LOG_STR("name", row->name), LOG_ERR(&err));
        return;
    }
    if (stale)
        look_through_stale(h, row, &repo);
    else
        look_through_names(h, row, &repo, names, len);
    hub_texts_free(names, len);
}

static void *look(void *arg)
{
    Hub *h = arg;
    StoreRepository *rows = NULL;
    size_t len = 0;
    Err err = ERR_INIT;
    int64_t began = clock_mono_ms();
    if (!store_repository_list(h->store, &rows, &len, &err))
        log_error("cannot look through the repositories", LOG_ERR(&err));
    for (size_t i = 0; i < len && !atomic_load(&h->look_stop); i++)
        look_through(h, &rows[i]);
    STORE_LIST_FREE(rows, len, store_repository_clear);
    if (atomic_load(&h->look_stop))
        log_info("the next start looks through the repositories");
    else
        log_info("the repositories were looked through", LOG_NUM("ms", clock_mono_ms() - began));
    (void)pthread_mutex_lock(&h->lock);
    h->looked_through = true;
    (void)pthread_cond_broadcast(&h->changed);
    (void)pthread_mutex_unlock(&h->lock);
    return NULL;
}

bool hub_look_start(Hub *h, Err *err)
{
    int rc = pthread_create(&h->looker, NULL, look, h);
    if (rc != 0)
        return err_errno(err, rc, "cannot start the thread that looks through the repositories");
    (void)pthread_setname_np(h->looker, THREAD_NAME); // for whoever looks at the threads
    h->look_started = true;
    struct timespec until;
    (void)clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += WAIT_MS / 1000;
    rc = 0;
    (void)pthread_mutex_lock(&h->lock);
    while (!h->looked_through && rc != ETIMEDOUT)
        rc = pthread_cond_timedwait(&h->changed, &h->lock, &until);
    bool over = h->looked_through;
    (void)pthread_mutex_unlock(&h->lock);
    if (!over)
        log_info("the repositories are being looked through; calls are answered meanwhile");
    return true;
}

void hub_look_stop(Hub *h)
{
    atomic_store(&h->look_stop, true);
    if (h->look_started)
        (void)pthread_join(h->looker, NULL);
    h->look_started = false;
}
