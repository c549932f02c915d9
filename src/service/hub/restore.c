// Making the hub's database of a backup of it, or of nothing but repositories. docs/internals/database-backup.md has
// the steps, and says why a crash between any two does no harm.
#include "base/clock.h"
#include "base/file.h"
#include "base/num.h"
#include "base/str.h"
#include "domain/name.h"
#include "service/hub/internal.h"
#include "store/dump.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define DATABASE "sendense.db"
#define NAMES_TRIED 1000

typedef struct Restore {
    const HubConfig *config;
    const HubRestore *what;
    char *data_dir, *database, *unpacked, *fresh;
    char *from, *home; // the file that is taken; the repository that it lies in (NULL: none)
    DumpInfo info;
    Store *mariadb;
    int lock_fd;
    char stamp[32]; // of this run alone, by its microseconds
} Restore;

static void say(const Restore *r, const char *fmt, ...) printf_like(2, 3);
static void say(const Restore *r, const char *fmt, ...)
{
    char text[1400];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    r->what->say(text);
}

// ---- which file

static bool unpack_to(Restore *r, const char *path, Err *err)
{
    if (!dump_remove(r->unpacked, err))
        return false;
    int fd = open(r->unpacked, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_errno(err, errno, "cannot create %s", r->unpacked);
    bool ok = dump_file_unpack(path, fd, &r->info, NULL, err);
    if (close(fd) != 0 && ok)
        ok = err_errno(err, errno, "cannot write %s", r->unpacked);
    return ok && (dump_upgrade(r->unpacked, err) || err_context(err, "%s", path));
}

static bool is_bad_file(const Err *err)
{
    return err->code == ERR_DAMAGED || err->code == ERR_IO || err->code == ERR_INVALID;
}

static bool only_one_hub(const char *folder, const HubDump *files, size_t n, Err *err)
{
    for (size_t i = 1; i < n; i++)
        if (!str_eq(files[i].hub, files[0].hub))
            return err_set(err, ERR_CONFLICT,
                           "%s has backups of several hubs, %s and %s among them; HINT: say which by --from %s/FILE",
                           folder, files[0].file, files[i].file, folder);
    return true;
}

// The newest that is right.
static bool take_newest(Restore *r, const char *folder, Err *err)
{
    HubDump *files = NULL;
    size_t n = 0;
    if (!hub_dump_list(folder, NULL, &files, &n, err))
        return false;
    bool ok = n > 0 ||
        err_set(err, ERR_NOT_FOUND,
                "there is no backup of a hub's database in %s; HINT: --scan REPOSITORY makes a database of its points",
                folder);
    ok = ok && only_one_hub(folder, files, n, err);
    for (size_t i = 0; ok && !r->from && i < n; i++) {
        Err why = ERR_INIT;
        cleanup_free char *path = file_join(folder, files[i].file, err);
        ok = path != NULL;
        if (ok && unpack_to(r, path, &why)) {
            r->from = mem_take(path);
        } else if (ok && is_bad_file(&why)) {
            say(r, "not used: %s", why.details);
        } else if (ok) {
            *err = why;
            ok = false;
        }
    }
    free(files);
    return ok && (r->from || err_set(err, ERR_DAMAGED, "none of the %zu backups in %s can be used", n, folder));
}

// The one before a file that cannot be used, if there is one that can.
static char *one_before(const char *folder, const char *name)
{
    HubDump *files = NULL;
    size_t n = 0, i = 0;
    char *found = NULL;
    Err odd = ERR_INIT;
    if (!hub_dump_list(folder, NULL, &files, &n, &odd))
        return NULL;
    while (i < n && !str_eq(files[i].file, name))
        i++;
    for (size_t k = i + 1; !found && k < n; k++) {
        DumpInfo info;
        Err why = ERR_INIT;
        char *path = file_join(folder, files[k].file, &why);
        if (path && str_eq(files[k].hub, files[i].hub) && dump_file_unpack(path, -1, &info, NULL, &why))
            found = path;
        else
            free(path);
    }
    free(files);
    return found;
}

static bool take_file(Restore *r, const char *path, Err *err)
{
    Err why = ERR_INIT;
    const char *slash = strrchr(path, '/');
    if (unpack_to(r, path, &why))
        return mem_replace(&r->from, path, err);
    cleanup_free char *folder = slash ? mem_printf(&why, "%.*s", (int)(slash - path), path) : NULL;
    cleanup_free char *before = folder && is_bad_file(&why) ? one_before(folder, slash + 1) : NULL;
    if (before)
        return err_set(err, why.code, "%s; HINT: the one before it is right: --from %s", why.details, before);
    *err = why;
    return false;
}

static bool is_repository(const char *path)
{
    Err odd = ERR_INIT;
    cleanup_free char *info = mem_printf(&odd, "%s/repository.json", path);
    return info && file_exists(info);
}

// A file, its folder, or the repository: the last one is where it is now.
static bool find_backup(Restore *r, Err *err)
{
    cleanup_free char *path = NULL;
    if (!file_realpath(r->what->from, &path, err))
        return false;
    if (is_repository(path)) {
        cleanup_free char *folder = hub_dump_folder(path, err);
        return folder && mem_replace(&r->home, path, err) && take_newest(r, folder, err);
    }
    bool folder = file_is_dir(path);
    if (!(folder ? take_newest(r, path, err) : take_file(r, path, err)))
        return false;
    // <repository>/database[/FILE]
    for (int up = folder ? 1 : 2; up > 0; up--) {
        char *slash = strrchr(path, '/');
        if (slash)
            *slash = '\0';
    }
    return !*path || !is_repository(path) || mem_replace(&r->home, path, err);
}

// ---- what it becomes

static bool is_name_free(Store *s, const char *name)
{
    StoreRepository cleanup_repository taken = {0};
    Err missing = ERR_INIT;
    return !store_repository_find(s, name, &taken, &missing);
}

static bool new_name(Store *s, const char *path, char ret[NAME_MAX_BYTES + 1], Err *err)
{
    const char *slash = strrchr(path, '/');
    const char *base = slash && slash[1] ? slash + 1 : "repository";
    Err odd = ERR_INIT;
    uint64_t number;
    if (!name_check("name", base, &odd) || num_u64(base, 0, UINT64_MAX, &number, &odd))
        base = "repository";
    (void)snprintf(ret, NAME_MAX_BYTES + 1, "%s", base);
    for (unsigned n = 2; n < NAMES_TRIED && !is_name_free(s, ret); n++)
        (void)snprintf(ret, NAME_MAX_BYTES + 1, "%.240s-%u", base, n);
    return is_name_free(s, ret) || err_set(err, ERR_EXISTS, "no free name for repository %s", path);
}

static bool register_repository(const Restore *r, Store *s, const Repo *repo, Err *err)
{
    StoreRepository row = {.created_us = clock_utc_us(), .cluster_size = repo->info.cluster_size};
    char name[NAME_MAX_BYTES + 1];
    if (!new_name(s, repo->path, name, err))
        return false;
    bool ok = mem_replace(&row.name, name, err) && mem_replace(&row.path, repo->path, err) &&
        mem_replace(&row.uuid, repo->info.uuid, err) &&
        mem_replace(&row.hash_algorithm, hash_algorithm_name(repo->info.hash.algorithm), err) &&
        store_repository_add(s, &row, &row.id, err);
    if (ok)
        say(r, "repository %s: registered as \"%s\"", repo->path, name);
    store_repository_clear(&row);
    return ok;
}

// A repository that was named: found by its UUID, wherever it was then.
static bool place_repository(const Restore *r, Store *s, const char *path, Err *err)
{
    Repo cleanup_repo repo = {0};
    StoreRepository *rows = NULL;
    size_t len = 0;
    bool known = false;
    if (!repo_open(path, NULL, &repo, err) || !store_repository_list(s, &rows, &len, err))
        return err_context(err, "repository %s", path);
    bool ok = true;
    for (size_t i = 0; ok && i < len; i++) {
        if (!str_eq(rows[i].uuid, repo.info.uuid))
            continue;
        known = true;
        if (str_eq(rows[i].path, repo.path))
            continue;
        say(r, "repository \"%s\": was at %s, is at %s", rows[i].name, rows[i].path, repo.path);
        ok = mem_replace(&rows[i].path, repo.path, err) && store_repository_place(s, &rows[i], err);
    }
    STORE_LIST_FREE(rows, len, store_repository_clear);
    return ok && (known || register_repository(r, s, &repo, err));
}

// Who reads the audit log later has to see that what is below this row was put there, and what came after it is gone.
static bool note(const Restore *r, Store *s, Err *err)
{
    char object[512];
    (void)snprintf(object, sizeof(object), "from %s", r->from ? r->from : "points alone");
    str_make_utf8(object); // where it was cut, and whatever a path holds
    for (char *p = object; *p; p++)
        *p = *p == '\n' ? ' ' : *p;
    return hub_trail_write(s,
                           &(HubTrail){.actor = HUB_ITSELF,
                                       .role = role_name(ROLE_ADMIN),
                                       .remote = "",
                                       .method = "POST",
                                       .path = "restore-database",
                                       .object = object,
                                       .status = 200},
                           err);
}

static bool prepare(Restore *r, Err *err)
{
    Store *s = NULL;
    if (!dump_remove(r->fresh, err) || !dump_new(r->fresh, err) ||
        (r->from && !dump_fill(r->unpacked, r->fresh, err)) || !store_open_sqlite(r->fresh, &s, err))
        return false;
    bool ok =
        store_restored(s, clock_utc_us(), err) && note(r, s, err) && (!r->home || place_repository(r, s, r->home, err));
    for (size_t i = 0; ok && i < r->what->repositories_len; i++)
        ok = place_repository(r, s, r->what->repositories[i], err);
    store_close(s);
    return ok && dump_settle(r->fresh, err);
}

// ---- putting it in place

static bool refuse(const Restore *r, const char *where, Err *err)
{
    (void)r;
    return err_set(
        err, ERR_CONFLICT,
        "%s is not empty: it has repositories, VMs, sources or jobs; HINT: with --force it is kept aside and "
        "replaced",
        where);
}

// What is there now may be overwritten?
static bool may_overwrite(Restore *r, Err *err)
{
    bool empty = true;
    if (r->config->mariadb) {
        if (!store_open_mariadb(r->config->mariadb, &r->mariadb, err) || !store_is_empty(r->mariadb, &empty, err))
            return false;
        return empty || r->what->force || refuse(r, r->config->mariadb->name, err);
    }
    return !file_exists(r->database) || r->what->force ||
        ((dump_is_empty(r->database, &empty, err) || err_context(err, "%s", r->database)) &&
         (empty || refuse(r, r->database, err)));
}

// A log that SQLite cannot take into a damaged database must not be taken for the new one's.
static bool move_log(const Restore *r, const char *end, const char *aside, Err *err)
{
    cleanup_free char *from = mem_printf(err, "%s%s", r->database, end);
    cleanup_free char *to = mem_printf(err, "%s%s", aside, end);
    return from && to && (!file_exists(from) || file_rename(from, to, err));
}

static bool install_sqlite(const Restore *r, Err *err)
{
    Err damaged = ERR_INIT;
    cleanup_free char *aside = mem_printf(err, "%s.before-restore-%s", r->database, r->stamp);
    if (!aside)
        return false;
    if (file_exists(r->database)) {
        if (!dump_settle(r->database, &damaged) &&
            (!move_log(r, "-wal", aside, err) || !move_log(r, "-shm", aside, err)))
            return false;
        if (!file_link(r->database, aside, err))
            return false;
        say(r, "the database that was there is kept: %s", aside);
    } else if (!move_log(r, "-wal", aside, err) || !move_log(r, "-shm", aside, err)) {
        return false;
    }
    return file_rename(r->fresh, r->database, err) && file_fsync_dir(r->data_dir, err);
}

// Under its name only when it is whole: nobody goes back to half of one.
static bool keep_mariadb(const Restore *r, Err *err)
{
    DumpInfo info = {.created_us = clock_utc_us(), .engine = "mariadb", .version = SENDENSE_VERSION};
    cleanup_free char *path = mem_printf(err, "%s/database-before-restore-%s.db.zst", r->data_dir, r->stamp);
    cleanup_free char *part = file_join(r->data_dir, "database-before-restore.part", err);
    if (!path || !part || !dump_remove(r->unpacked, err) || !store_hub_id(r->mariadb, info.hub_id, err) ||
        !dump_take(r->mariadb, r->unpacked, NULL, err))
        return false;
    cleanup_close int fd = open(part, O_CREAT | O_TRUNC | O_NOFOLLOW | O_WRONLY | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_errno(err, errno, "cannot create %s", part);
    if (!dump_file_pack(r->unpacked, fd, &info, NULL, err))
        return false;
    if (fsync(fd) != 0)
        return err_errno(err, errno, "cannot sync %s", part);
    if (!file_rename(part, path, err))
        return false;
    say(r, "the database that was there is kept: %s", path);
    return file_fsync_dir(r->data_dir, err);
}

static bool install_mariadb(const Restore *r, Err *err)
{
    bool empty;
    return store_is_empty(r->mariadb, &empty, err) && (empty || keep_mariadb(r, err)) &&
        dump_into(r->mariadb, r->fresh, err);
}

// ---- what to know afterwards

static bool report_repositories(const Restore *r, Hub *h, Err *err)
{
    StoreRepository *rows = NULL;
    size_t len = 0;
    if (!store_repository_list(h->store, &rows, &len, err))
        return false;
    bool ok = true;
    for (size_t i = 0; ok && i < len; i++) {
        StoreBackup *points = NULL;
        size_t n = 0, all = 0, suspect = 0;
        bool stale;
        ok = store_backup_points(h->store, rows[i].id, NULL, &points, &n, err) &&
            store_is_stale(h->store, rows[i].id, &stale, err);
        for (all = 0; all < n; all++)
            suspect += points[all].suspect;
        STORE_LIST_FREE(points, n, store_backup_clear);
        if (ok && stale)
            say(r,
                "repository \"%s\" (%s): AWAY. Its points are suspect, and it takes no backup, until it is there; "
                "elsewhere now: restore again, with --scan PATH",
                rows[i].name, rows[i].path);
        else if (ok)
            say(r, "repository \"%s\" (%s): %zu points, %zu of them suspect", rows[i].name, rows[i].path, all, suspect);
    }
    STORE_LIST_FREE(rows, len, store_repository_clear);
    return ok;
}

static bool report_sources(const Restore *r, Hub *h, Err *err)
{
    StoreSource *rows = NULL;
    size_t len = 0, closed = 0;
    if (!store_source_list(h->store, &rows, &len, err))
        return false;
    for (size_t i = 0; i < len; i++) {
        cleanup(secret_clear) Secret password = {0};
        Err why = ERR_INIT;
        if (hub_source_password(h, &rows[i], &password, &why))
            continue;
        if (closed++ == 0)
            say(r,
                "THE KEY FILE %s does not open the sources' passwords: %s. Put your copy of it there (mode 600). Lost: "
                "(umask 077; openssl rand -hex 32 > %s), then for each source: sendense source set NAME --ask-password",
                h->key_file, why.details, h->key_file);
        say(r, "source \"%s\": its password cannot be opened", rows[i].name);
    }
    STORE_LIST_FREE(rows, len, store_source_clear);
    return true;
}

static bool report_vms(const Restore *r, Hub *h, Err *err)
{
    StoreVm *rows = NULL;
    size_t len = 0;
    if (!store_vm_orphans(h->store, &rows, &len, err))
        return false;
    for (size_t i = 0; i < len; i++)
        say(r, "VM \"%s\" has points and is not registered: sendense vm add NAME ... --adopt %s", rows[i].name,
            rows[i].id);
    STORE_LIST_FREE(rows, len, store_vm_clear);
    return true;
}

// The start-up brings the catalogue in line with the repositories; killed here, the next start does.
static bool look_through(const Restore *r, Err *err)
{
    Hub *h = NULL;
    if (!hub_open(r->config, &h, err))
        return err_context(err, "the database is in place; the hub's start on it failed");
    bool ok = report_repositories(r, h, err) && report_vms(r, h, err) && report_sources(r, h, err);
    hub_quiesce(h);
    hub_close(h);
    return ok;
}

// ---- all of it

static bool begin(Restore *r, Err *err)
{
    Err locking = ERR_INIT;
    int64_t now_us = clock_utc_us();
    time_t now = (time_t)(now_us / 1000000);
    struct tm t = {0};
    (void)gmtime_r(&now, &t);
    size_t len = strftime(r->stamp, sizeof(r->stamp), "%Y%m%dT%H%M%S", &t);
    (void)snprintf(r->stamp + len, sizeof(r->stamp) - len, ".%06dZ", (int)(now_us % 1000000));
    if (!r->what->from && r->what->repositories_len == 0)
        return err_set(err, ERR_USAGE, "say --from FILE|FOLDER|REPOSITORY, or --scan REPOSITORY");
    if (!file_mkdir_p(r->config->data_dir, 0700, err) || !file_realpath(r->config->data_dir, &r->data_dir, err) ||
        !(r->database = file_join(r->data_dir, DATABASE, err)) ||
        !(r->unpacked = file_join(r->data_dir, "restore-database.tmp.db", err)) ||
        !(r->fresh = file_join(r->data_dir, "restore-database.new.db", err)))
        return false;
    cleanup_free char *lock = file_join(r->data_dir, "lock", err);
    if (!lock)
        return false;
    return file_lock(lock, &r->lock_fd, &locking) ||
        err_set(err, locking.code == ERR_BUSY ? ERR_BUSY : ERR_IO,
                "the data folder %s cannot be locked (%s); a hub that runs on it has to be stopped first", r->data_dir,
                locking.details);
}

static bool restore(Restore *r, Err *err)
{
    char made[CLOCK_TEXT];
    if (!begin(r, err) || !may_overwrite(r, err) || (r->what->from && !find_backup(r, err)) || !prepare(r, err) ||
        !(r->mariadb ? install_mariadb(r, err) : install_sqlite(r, err)))
        return false;
    clock_format(r->info.created_us, made);
    if (r->from)
        say(r, "restored: %s, of %s, number %llu", r->from, made, (unsigned long long)r->info.number);
    else
        say(r, "a new database was made; VMs, sources and tokens have to be made anew");
    return true;
}

static void clear(Restore *r)
{
    Err ignored = ERR_INIT; // the next restore takes them away
    if (r->lock_fd >= 0) {
        (void)!dump_remove(r->unpacked, &ignored);
        (void)!dump_remove(r->fresh, &ignored);
        (void)close(r->lock_fd);
    }
    store_close(r->mariadb);
    free(r->data_dir);
    free(r->database);
    free(r->unpacked);
    free(r->fresh);
    free(r->from);
    free(r->home);
}

bool hub_database_restore(const HubConfig *config, const HubRestore *what, Err *err)
{
    Restore r = {.config = config, .what = what, .lock_fd = -1};
    bool ok = restore(&r, err);
    clear(&r); // with the lock, and MariaDB's: the hub takes them now
    return ok && look_through(&r, err);
}
