// The hub's database, backed up into its repositories: daily, and by call. docs/internals/database-backup.md.
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/str.h"
#include "domain/daily.h"
#include "service/hub/internal.h"
#include "store/dump.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define RUN_MS 600000                  // of one run
#define AGAIN_MS 3600000               // after a failure
#define LOOK_MS 2000                   // whether one is due, or a repository back
#define KEEP_BY_DEFAULT 14u            // days, where none is made by itself
#define ROOM_LEFT (UINT64_C(32) << 20) // in the data folder
#define TOO_OLD_US (INT64_C(50) * 3600000000)
#define GRACE_MS 7200000 // after the start, until an old one is a problem

typedef struct Target {
    StoreRepository row;
    Repo repo; // empty where it is away
    char file[HUB_DUMP_NAME];
    uint64_t bytes;
    bool read_only; // and left out
    Err err;
} Target;

typedef struct Run {
    Hub *hub;
    char hub_id[UUID_TEXT];
    Target *targets;
    size_t len;
    size_t chosen, all; // of which those may be a part
    uint64_t number;
    int64_t created_us;
    char *tmp;
    DbPatience patience;
} Run;

static void clear_run(Run *r)
{
    Err ignored = ERR_INIT; // the next run takes it away
    if (r->tmp)
        (void)!dump_remove(r->tmp, &ignored);
    for (size_t i = 0; i < r->len; i++) {
        store_repository_clear(&r->targets[i].row);
        repo_clear(&r->targets[i].repo);
    }
    free(r->targets);
    free(r->tmp);
}

static bool is_chosen(const Hub *h, const StoreRepository *row)
{
    char id[24];
    (void)snprintf(id, sizeof(id), "%lld", (long long)row->id);
    return !h->dump_to || !*h->dump_to || str_eq(h->dump_to, row->name) || str_eq(h->dump_to, id);
}

// Those that are chosen; only_due: and have none that is new enough.
static bool find_targets(Run *r, bool only_due, Err *err)
{
    Hub *h = r->hub;
    StoreRepository *rows = NULL;
    size_t len = 0;
    bool ok = store_repository_list(h->store, &rows, &len, err) &&
        (r->targets = mem_calloc(len + 1, sizeof(*r->targets), err)) != NULL;
    r->all = len;
    for (size_t i = 0; ok && i < len; i++) {
        int64_t last;
        ok = store_dumped(h->store, rows[i].id, &last, err);
        if (!ok || !is_chosen(h, &rows[i]))
            continue;
        r->chosen++;
        if (only_due && !daily_is_due(last, r->created_us, h->dump_hour))
            continue;
        r->targets[r->len++].row = rows[i];
        rows[i] = (StoreRepository){0};
    }
    STORE_LIST_FREE(rows, len, store_repository_clear);
    return ok;
}

// Looks at each, and at the numbers that are taken there.
static bool look_at_targets(Run *r, uint64_t *ret_number, bool *ret_any, Err *err)
{
    *ret_number = 1;
    *ret_any = false;
    for (size_t i = 0; i < r->len; i++) {
        Target *t = &r->targets[i];
        HubDump *files = NULL;
        size_t len = 0;
        if (!hub_repo_open(r->hub, &t->row, &t->repo, &t->err))
            continue;
        cleanup_free char *folder = hub_dump_folder(t->repo.path, err);
        if (!folder)
            return false;
        t->read_only = access(t->repo.path, W_OK) != 0 && errno == EROFS;
        if (t->read_only) {
            (void)err_set(&t->err, ERR_CONFLICT, "repository \"%s\" is mounted read-only", t->row.name);
            continue;
        }
        if (!hub_dump_list(folder, r->hub_id, &files, &len, &t->err)) {
            (void)err_context(&t->err, "repository \"%s\"", t->row.name);
            continue;
        }
        if (len > 0)
            *ret_number = MAX(*ret_number, files[0].number + 1);
        free(files);
        *ret_any = true;
    }
    return true;
}

static bool write_file(const Run *r, const char *partial, uint64_t *ret_bytes, Err *err)
{
    struct stat st;
    DumpInfo info = {.number = r->number, .created_us = r->created_us};
    memcpy(info.hub_id, r->hub_id, sizeof(info.hub_id));
    (void)snprintf(info.engine, sizeof(info.engine), "%s", store_engine(r->hub->store));
    (void)snprintf(info.version, sizeof(info.version), "%s", SENDENSE_VERSION);
    cleanup_close int fd = open(partial, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return err_errno(err, errno, "cannot create %s", partial);
    if (!dump_file_pack(r->tmp, fd, &info, &r->patience, err))
        return false;
    if (fsync(fd) != 0 || fstat(fd, &st) != 0)
        return err_errno(err, errno, "cannot sync %s", partial);
    *ret_bytes = (uint64_t)st.st_size;
    return dump_file_unpack(partial, -1, &info, &r->patience, err); // what will be there when it is needed?
}

static bool put(const Run *r, Target *t, Err *err)
{
    Hub *h = r->hub;
    Err cleaning = ERR_INIT;
    char name[HUB_DUMP_NAME];
    cleanup_free char *folder = NULL;
    if (!hub_dump_folder_make(t->repo.path, &folder, err) ||
        !hub_dump_name(r->hub_id, r->number, r->created_us, name, err))
        return false;
    cleanup_free char *path = file_join(folder, name, err);
    cleanup_free char *partial = path ? mem_printf(err, "%s" HUB_DUMP_PARTIAL, path) : NULL;
    if (!partial || !file_unlink(partial, err))
        return false;
    if (!write_file(r, partial, &t->bytes, err) || !file_rename(partial, path, err)) {
        (void)!file_unlink(partial, &cleaning); // else the next run takes it away
        return false;
    }
    (void)snprintf(t->file, sizeof(t->file), "%s", name);
    if (!file_fsync_dir(folder, err) || !store_set_dumped(h->store, t->row.id, r->created_us, err))
        return false;
    unsigned keep = h->dump_keep;
    bool alone;
    // only now, that the newest was read and found right; another hub on this database may be at its own
    if (!hub_is_alone(h, &alone, &cleaning) ||
        !hub_dump_prune(folder, r->hub_id, keep ? keep : KEEP_BY_DEFAULT, alone ? 0 : 2 * RUN_MS / 1000, &cleaning))
        log_warn("old backups of the database stay", LOG_STR("repository", t->row.name), LOG_ERR(&cleaning));
    log_info("database backed up", LOG_STR("path", path), LOG_NUM("bytes", t->bytes));
    return true;
}

// The copy must not take from the database what that needs itself.
static bool has_room(const Hub *h, Err *err)
{
    struct stat st = {0};
    uint64_t room, total;
    cleanup_free char *database = file_join(h->data_dir, "sendense.db", err);
    if (!database || !file_space(h->data_dir, &room, &total, err))
        return false;
    uint64_t needed = ROOM_LEFT + (stat(database, &st) == 0 ? (uint64_t)st.st_size : 0); // MariaDB's: not known
    return room >= needed ||
        err_set(err, ERR_NO_SPACE, "the data folder has no room for a copy of the database: %llu MiB are needed",
                (unsigned long long)(needed >> 20) + 1);
}

static bool put_all(Run *r, Err *err)
{
    bool any;
    uint64_t number;
    if (!look_at_targets(r, &number, &any, err))
        return false;
    if (!any)
        return true; // each says why
    if (!(r->tmp = file_join(r->hub->data_dir, "database-backup.tmp", err)) || !dump_remove(r->tmp, err) ||
        !has_room(r->hub, err) || !store_dump_number(r->hub->store, number, &r->number, err) ||
        !dump_take(r->hub->store, r->tmp, &r->patience, err))
        return false;
    for (size_t i = 0; i < r->len; i++) {
        Target *t = &r->targets[i];
        if (t->err.code == ERR_NONE && !put(r, t, &t->err))
            (void)err_context(&t->err, "repository \"%s\"", t->row.name);
    }
    return true;
}

// The first that went wrong; those that are read-only count only where there is no other.
static const Err *first_error(const Run *r, bool *ret_any)
{
    const Err *first = NULL, *read_only = NULL;
    size_t read_only_len = 0;
    *ret_any = false;
    for (size_t i = 0; i < r->len; i++) {
        const Target *t = &r->targets[i];
        *ret_any = *ret_any || t->err.code == ERR_NONE;
        read_only_len += t->read_only;
        if (t->read_only)
            read_only = &t->err;
        else if (t->err.code != ERR_NONE && !first)
            first = &t->err;
    }
    return first || read_only_len < r->chosen ? first : read_only;
}

static void note(Hub *h, const Err *why, bool any)
{
    (void)pthread_mutex_lock(&h->lock);
    h->dump_retry_ms = why || !any ? clock_mono_ms() + AGAIN_MS : 0;
    if (why || any)
        (void)snprintf(h->dump_problem, sizeof(h->dump_problem), "%s%.300s",
                       why ? "the database's backup failed: " : "", why ? why->details : "");
    (void)pthread_mutex_unlock(&h->lock);
    if (why)
        log_error("the database's backup failed", LOG_ERR(why));
}

static bool begin_run(Run *r, Hub *h, bool only_due, Err *err)
{
    *r = (Run){.hub = h, .created_us = clock_utc_us()};
    r->patience = (DbPatience){.stop = &h->dump_stop, .until_ms = clock_mono_ms() + RUN_MS};
    return store_hub_id(h->store, r->hub_id, err) && find_targets(r, only_due, err);
}

// *ret_any: a copy was made. False: nothing could be; what only one repository is to blame for is noted in its target.
static bool run(Run *r, bool *ret_any, Err *err)
{
    Err why = ERR_INIT;
    const Err *first;
    *ret_any = false;
    bool ok = put_all(r, &why);
    first = ok ? first_error(r, ret_any) : &why;
    if (first && first->code == ERR_CANCELLED) // the hub stops: that is no failure
        return err_set(err, ERR_UNAVAILABLE, "%s", first->details);
    note(r->hub, first, *ret_any);
    if (!ok || (first && !*ret_any)) {
        *err = *first;
        return false;
    }
    return true;
}

// ---- by call

static bool view_target(const Run *r, const Target *t, json_t **ret, Err *err)
{
    char id[24];
    (void)snprintf(id, sizeof(id), "%lld", (long long)t->row.id);
    bool made = t->err.code == ERR_NONE;
    cleanup_free char *folder = made ? hub_dump_folder(t->repo.path, err) : NULL;
    cleanup_free char *path = folder ? file_join(folder, t->file, err) : NULL;
    if (made && !path)
        return false;
    json_t *o = json_object();
    bool ok = (o || err_no_memory(err)) && codec_json_set_text(o, "repository_id", id, err) &&
        codec_json_set_text(o, "repository", t->row.name, err) && codec_json_set_text(o, "path", path, err) &&
        codec_json_set_u64(o, "number", made ? r->number : 0, err) &&
        codec_json_set_time(o, "created_at", made ? r->created_us : 0, err) &&
        codec_json_set_u64(o, "bytes", made ? t->bytes : 0, err) &&
        codec_json_set_text(o, "error", made ? NULL : t->err.details, err);
    if (!ok) {
        json_decref(o);
        return false;
    }
    *ret = o;
    return true;
}

static bool make(Run *r, json_t **ret, Err *err)
{
    bool any;
    if (!begin_run(r, r->hub, false, err))
        return false;
    if (r->len == 0) {
        (void)err_set(err, ERR_CONFLICT, "there is no repository to back the database up into; add one%s%s",
                      r->hub->dump_to ? ", or change database-backup-to: " : "",
                      r->hub->dump_to ? r->hub->dump_to : "");
        return err_title(err, "no repository");
    }
    if (!run(r, &any, err))
        return false;
    json_t *list = json_array();
    bool ok = true;
    for (size_t i = 0; ok && i < r->len; i++) {
        json_t *item = NULL;
        ok = view_target(r, &r->targets[i], &item, err) && codec_json_push(list, item, err);
    }
    return codec_json_wrap(ok, "backups", list, ret, err);
}

bool hub_database_backup(Hub *h, json_t **ret, Err *err)
{
    Run r = {.hub = h};
    if (atomic_flag_test_and_set(&h->dumping))
        return err_set(err, ERR_BUSY, "a backup of the database is being made now");
    bool ok = make(&r, ret, err);
    clear_run(&r);
    atomic_flag_clear(&h->dumping);
    return ok;
}

static bool list_one(const StoreRepository *row, const char *folder, const HubDump *d, const char *hub_id, json_t *list,
                     Err *err)
{
    char id[24];
    struct stat st;
    (void)snprintf(id, sizeof(id), "%lld", (long long)row->id);
    cleanup_free char *path = file_join(folder, d->file, err);
    if (!path)
        return false;
    if (lstat(path, &st) != 0) // gone since the folder was listed
        return true;
    json_t *o = json_object();
    bool ok = (o || err_no_memory(err)) && codec_json_set_text(o, "repository_id", id, err) &&
        codec_json_set_text(o, "repository", row->name, err) && codec_json_set_text(o, "path", path, err) &&
        codec_json_set_u64(o, "number", d->number, err) && codec_json_set_time(o, "created_at", d->created_us, err) &&
        codec_json_set_u64(o, "bytes", (uint64_t)st.st_size, err) &&
        codec_json_set_bool(o, "own", strncmp(d->hub, hub_id, strlen(d->hub)) == 0, err);
    return codec_json_push(list, o, err) && ok;
}

static bool list_repository(Hub *h, const StoreRepository *row, const char *hub_id, json_t *list, Err *err)
{
    Repo cleanup_repo repo = {0};
    HubDump *files = NULL;
    size_t len = 0;
    Err away = ERR_INIT; // the list of repositories says so
    if (!hub_repo_open(h, row, &repo, &away))
        return true;
    cleanup_free char *folder = hub_dump_folder(repo.path, err);
    bool ok = folder != NULL;
    if (ok && !hub_dump_list(folder, NULL, &files, &len, &away))
        return true;
    for (size_t i = 0; ok && i < len; i++)
        ok = list_one(row, folder, &files[i], hub_id, list, err);
    free(files);
    return ok;
}

bool hub_database_backup_list(Hub *h, json_t **ret, Err *err)
{
    StoreRepository *rows = NULL;
    size_t len = 0;
    char hub_id[UUID_TEXT], problem[HUB_DUMP_PROBLEM];
    if (!store_hub_id(h->store, hub_id, err) || !store_repository_list(h->store, &rows, &len, err))
        return false;
    hub_database_problem(h, problem);
    json_t *o = json_object(), *list = json_array();
    bool ok = (o && list) || err_no_memory(err);
    for (size_t i = 0; ok && i < len; i++)
        ok = list_repository(h, &rows[i], hub_id, list, err);
    STORE_LIST_FREE(rows, len, store_repository_clear);
    ok = codec_json_set(o, "backups", list, err) && ok &&
        codec_json_set_text(o, "problem", problem[0] ? problem : NULL, err);
    if (!ok) {
        json_decref(o);
        return false;
    }
    *ret = o;
    return true;
}

// ---- what is wrong

void hub_database_problem(Hub *h, char ret[HUB_DUMP_PROBLEM])
{
    (void)pthread_mutex_lock(&h->lock);
    (void)snprintf(ret, HUB_DUMP_PROBLEM, "%s", h->dump_problem);
    (void)pthread_mutex_unlock(&h->lock);
    StoreRepository *rows = NULL;
    size_t len = 0;
    int64_t oldest = 0, at = 0;
    Err away = ERR_INIT; // whoever asks is told of the database anyway
    bool due = !ret[0] && h->dump_keep > 0 && clock_mono_ms() > h->dump_from_ms + GRACE_MS;
    if (!due || !store_repository_list(h->store, &rows, &len, &away))
        return;
    for (size_t i = 0; i < len; i++)
        if (is_chosen(h, &rows[i]) && store_dumped(h->store, rows[i].id, &at, &away) && at > 0)
            oldest = oldest ? MIN(oldest, at) : at;
    STORE_LIST_FREE(rows, len, store_repository_clear);
    // a run that hangs fails nothing
    if (oldest > 0 && clock_utc_us() - oldest > TOO_OLD_US)
        (void)snprintf(ret, HUB_DUMP_PROBLEM, "the database was not backed up for %lld hours",
                       (long long)((clock_utc_us() - oldest) / INT64_C(3600000000)));
}

// ---- daily

static bool may_try(Hub *h)
{
    (void)pthread_mutex_lock(&h->lock);
    int64_t from = MAX(h->dump_from_ms + (int64_t)h->dump_delay_s * 1000, h->dump_retry_ms);
    (void)pthread_mutex_unlock(&h->lock);
    return h->dump_keep > 0 && clock_mono_ms() >= from;
}

static const Err *not_there(const Hub *h, Err *err)
{
    (void)err_set(err, ERR_NOT_FOUND, "database-backup-to: there is no repository \"%s\"", h->dump_to);
    return err;
}

static void back_up_daily(Hub *h)
{
    Run r = {.hub = h};
    Err err = ERR_INIT; // noted by run()
    bool any;
    if (!may_try(h) || atomic_flag_test_and_set(&h->dumping))
        return;
    if (!begin_run(&r, h, true, &err))
        log_error("cannot look whether the database is to be backed up", LOG_ERR(&err));
    else if (r.len > 0)
        (void)!run(&r, &any, &err);
    else if (r.all > 0 && r.chosen == 0)
        note(h, not_there(h, &err), false);
    clear_run(&r);
    atomic_flag_clear(&h->dumping);
}

static void *keep(void *arg)
{
    Hub *h = arg;
    while (!h->dump_stop) {
        Err err = ERR_INIT;
        if (!hub_reconcile_late(h, &err))
            log_error("cannot look for repositories that were away", LOG_ERR(&err));
        back_up_daily(h);
        struct timespec until;
        (void)clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec += LOOK_MS / 1000;
        (void)pthread_mutex_lock(&h->lock);
        // woken by whatever happens: a look costs little, and not more than one each time
        while (!h->dump_stop && pthread_cond_timedwait(&h->changed, &h->lock, &until) == 0)
            ;
        (void)pthread_mutex_unlock(&h->lock);
    }
    return NULL;
}

bool hub_database_start(Hub *h, Err *err)
{
    h->dump_from_ms = clock_mono_ms();
    int rc = pthread_create(&h->keeper, NULL, keep, h);
    if (rc != 0)
        return err_errno(err, rc, "cannot start the thread that backs the database up");
    h->keeping = true;
    return true;
}

void hub_database_stop(Hub *h)
{
    (void)pthread_mutex_lock(&h->lock);
    h->dump_stop = true;
    (void)pthread_cond_broadcast(&h->changed);
    (void)pthread_mutex_unlock(&h->lock);
    if (h->keeping)
        (void)pthread_join(h->keeper, NULL);
    h->keeping = false;
}
