#include "service/hub/hub.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/proc.h"
#include "base/str.h"
#include "base/uuid.h"
#include "service/hub/internal.h"

#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#define RUN_LOCK "lock"
#define DATA_DIR_LOW (UINT64_C(256) << 20)
#define PROBLEM_MAX 128

// Short, because unix sockets have 108 bytes; the same for the same data folder, because the next hub must find what
// runs there.
static bool default_run_dir(const char *data_dir, char **ret, Err *err)
{
    uint64_t hash = 14695981039346656037u; // FNV-1a
    for (const char *p = data_dir; *p; p++)
        hash = (hash ^ (unsigned char)*p) * 1099511628211u;
    const char *user_dir = getenv("XDG_RUNTIME_DIR");
    if (geteuid() == 0)
        *ret = mem_printf(err, "/run/sendense-%08x", (unsigned)(hash >> 32));
    else if (user_dir && user_dir[0] == '/' && strlen(user_dir) < 50)
        *ret = mem_printf(err, "%s/sendense-%08x", user_dir, (unsigned)(hash >> 32));
    else
        *ret = mem_printf(err, "/tmp/sendense-%u-%08x", (unsigned)geteuid(), (unsigned)(hash >> 32));
    return *ret != NULL;
}

// Nobody else may put anything into the folder of the sockets, another hub of ours included: it would end what it does
// not know. Its name has one spelling: sockets on record are compared by it, and clients have working folders of their
// own.
static bool own_run_dir(Hub *h, const char *path, Err *err)
{
    struct stat st;
    cleanup_free char *lock = NULL;
    Err locking = ERR_INIT;
    if (!file_mkdir_p(path, 0700, err))
        return false;
    if (lstat(path, &st) != 0 || !S_ISDIR(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & 077) != 0)
        return err_set(err, ERR_USAGE, "the run folder %s is not ours alone; remove it, or choose another", path);
    if (!file_realpath(path, &h->run_dir, err) || !(lock = file_join(h->run_dir, RUN_LOCK, err)))
        return false;
    if (strlen(h->run_dir) > 80)
        return err_set(err, ERR_USAGE, "the run folder %s is too long for unix sockets; choose a shorter one",
                       h->run_dir);
    if (!file_lock(lock, &h->run_lock_fd, &locking))
        return err_set(err, locking.code == ERR_BUSY ? ERR_BUSY : ERR_IO,
                       "the run folder %s cannot be locked (%s); is another hub using it?", h->run_dir,
                       locking.details);
    return true;
}

static void leave_run_dir(Hub *h)
{
    Err ignored = ERR_INIT; // a lock file that stays does no harm
    cleanup_free char *lock = h->run_lock_fd >= 0 ? file_join(h->run_dir, RUN_LOCK, &ignored) : NULL;
    if (lock)
        (void)!file_unlink(lock, &ignored);
    if (lock)
        (void)rmdir(h->run_dir); // stays where something still runs in it
    if (h->run_lock_fd >= 0)
        (void)close(h->run_lock_fd);
}

// Start times count from the boot: after another one a recorded pid may be anybody's.
static bool check_boot(Hub *h, Err *err)
{
    char now[UUID_TEXT];
    cleanup_free char *path = file_join(h->data_dir, "boot-id", err), *before = NULL;
    Err missing = ERR_INIT;
    if (!path || !proc_boot_id(now, err))
        return false;
    if (file_read(path, 256, &before, NULL, &missing) && str_eq(before, now))
        return true;
    return store_forget_processes(h->store, err) && file_unlink(path, err) &&
        file_create_durable(path, now, strlen(now), 0600, err);
}

static bool open_all(Hub *h, const HubConfig *c, Err *err)
{
    cleanup_free char *database = NULL, *lock = NULL, *run_dir = NULL;
    Err locking = ERR_INIT;
    if (!file_mkdir_p(c->data_dir, 0700, err) || !file_realpath(c->data_dir, &h->data_dir, err) ||
        !(lock = file_join(h->data_dir, "lock", err)))
        return false;
    if (!file_lock(lock, &h->lock_fd, &locking))
        return err_set(err, locking.code == ERR_BUSY ? ERR_BUSY : ERR_IO,
                       "the data folder %s cannot be locked (%s); is another hub running on it?", h->data_dir,
                       locking.details);
    if (!(database = file_join(h->data_dir, "sendense.db", err)) ||
        !(h->log_dir = file_join(h->data_dir, "log", err)) || !file_mkdir(h->log_dir, 0700, err) ||
        !(h->key_file = c->key_file ? mem_strdup(c->key_file, err) : file_join(h->data_dir, "secret.key", err)) ||
        !mem_replace(&h->plugin, c->plugin, err) || !mem_replace(&h->dump_to, c->dump_to, err) ||
        !mem_replace(&h->client, c->client, err))
        return false;
    StoreMariadb mariadb = c->mariadb ? *c->mariadb : (StoreMariadb){0};
    mariadb.hub_id = h->hub_id;
    bool ok = c->run_dir ? mem_replace(&run_dir, c->run_dir, err) : default_run_dir(h->data_dir, &run_dir, err);
    ok = ok && own_run_dir(h, run_dir, err) && hub_hubs_id(h->data_dir, h->hub_id, err) &&
        (c->mariadb ? store_open_mariadb(&mariadb, &h->store, err) : store_open_sqlite(database, &h->store, err)) &&
        hub_hubs_enter(h, c->hub_name, c->hub_lease_s, err) && hub_hubs_start(h, err) && check_boot(h, err) &&
        hub_users_begin(h, err) && hub_tokens_begin(h, c->new_admin, err) && hub_recover(h, err) &&
        hub_supervisor_start(h, err) && hub_look_start(h, err) && hub_database_start(h, err);
    if (ok)
        hub_sources_check(h);
    return ok;
}

bool hub_open(const HubConfig *config, Hub **ret, Err *err)
{
    Hub *h = mem_calloc(1, sizeof(*h), err);
    if (!h)
        return false;
    h->lock_fd = h->run_lock_fd = -1;
    hub_set_limits(h, &config->limits);
    h->reload = config->reload;
    h->reload_ctx = config->reload_ctx;
    h->auth = config->auth;
    pthread_condattr_t attr;
    (void)pthread_condattr_init(&attr); // cannot fail on Linux
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&h->changed, &attr);
    (void)pthread_condattr_destroy(&attr);
    (void)pthread_mutex_init(&h->lock, NULL);
    (void)pthread_mutex_init(&h->reload_lock, NULL);
    pthread_rwlockattr_t fair;
    (void)pthread_rwlockattr_init(&fair); // cannot fail on Linux, like the next two
    (void)pthread_rwlockattr_setkind_np(&fair, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    (void)pthread_rwlock_init(&h->exporting, &fair);
    (void)pthread_rwlockattr_destroy(&fair);
    if (!open_all(h, config, err)) {
        hub_close(h);
        return false;
    }
    *ret = h;
    return true;
}

void hub_set_limits(Hub *h, const HubLimits *limits)
{
    h->max_jobs = limits->max_jobs;
    h->chain_limit = limits->chain_limit;
    h->lease_s = limits->lease_s;
    h->claim_s = limits->claim_s;
    h->export_idle_s = limits->export_idle_s;
    h->keep_hours = limits->keep_hours;
    h->checkpoint_bytes = (uint64_t)limits->checkpoint_mib << 20;
    h->audit_blocks = limits->audit_blocks;
    h->dump_keep = limits->dump_keep;
    h->dump_hour = limits->dump_hour;
    h->dump_delay_s = limits->dump_delay_s;
}

bool hub_reload(Hub *h, json_t **ret, Err *err)
{
    json_t *list = json_array();
    bool ok = list || err_no_memory(err);
    (void)pthread_mutex_lock(&h->reload_lock);
    ok = ok && (!h->reload || h->reload(h->reload_ctx, list, err));
    (void)pthread_mutex_unlock(&h->reload_lock);
    hub_wake(h); // there may be room for more jobs
    return codec_json_wrap(ok, "needs_restart", list, ret, err);
}

bool hub_set_url(Hub *h, const char *url, Err *err)
{
    char *copy = mem_strdup(url, err);
    if (!copy)
        return false;
    (void)pthread_mutex_lock(&h->lock);
    free(h->url);
    h->url = copy;
    (void)pthread_cond_broadcast(&h->changed);
    (void)pthread_mutex_unlock(&h->lock);
    return true;
}

void hub_set_thumbprint(Hub *h, const char *sha256)
{
    (void)pthread_mutex_lock(&h->lock);
    (void)snprintf(h->thumbprint, sizeof(h->thumbprint), "%s", sha256);
    (void)pthread_mutex_unlock(&h->lock);
}

void hub_close(Hub *h)
{
    if (!h)
        return;
    hub_database_stop(h);
    hub_look_stop(h);
    hub_supervisor_stop(h);
    hub_users_end(h);
    hub_hubs_stop(h);
    while (h->running) {
        Running *r = h->running;
        h->running = r->next;
        for (size_t i = 0; i < r->exporters_len; i++)
            exporter_clear(&r->exporters[i]); // it goes on: the next hub takes it over
        free(r->exporters);
        proc_clear(&r->client);
        free(r->id);
        free(r);
    }
    hub_counters_free(h);
    store_close(h->store);
    leave_run_dir(h);
    if (h->lock_fd >= 0)
        (void)close(h->lock_fd); // last: who gets it finds the rest free
    (void)pthread_cond_destroy(&h->changed);
    (void)pthread_mutex_destroy(&h->lock);
    (void)pthread_mutex_destroy(&h->reload_lock);
    (void)pthread_rwlock_destroy(&h->exporting);
    free(h->data_dir);
    free(h->key_file);
    free(h->run_dir);
    free(h->plugin);
    free(h->dump_to);
    free(h->client);
    free(h->url);
    free(h->log_dir);
    free(h);
}

// What is wrong with the data folder; "" if nothing. Where it is full the database takes nothing, and every job fails.
static void look_at_data_dir(const Hub *h, uint64_t *ret_free, char ret_problem[PROBLEM_MAX])
{
    Err err = ERR_INIT;
    uint64_t total;
    char left[STR_SIZE_MAX];
    *ret_free = 0;
    ret_problem[0] = '\0';
    if (!file_space(h->data_dir, ret_free, &total, &err)) {
        (void)snprintf(ret_problem, PROBLEM_MAX, "the data folder cannot be looked at: %s", err_name(err.code));
    } else if (*ret_free < DATA_DIR_LOW) {
        str_size(*ret_free, left);
        (void)snprintf(ret_problem, PROBLEM_MAX, "the data folder has %s left: make room before jobs fail", left);
    }
}

bool hub_health(Hub *h, json_t **ret, Err *err)
{
    uint64_t running, free_bytes;
    char problem[HUB_DUMP_PROBLEM], thumbprint[sizeof(h->thumbprint)];
    if (!store_backup_count_active(h->store, &running, err))
        return false;
    look_at_data_dir(h, &free_bytes, problem);
    if (!problem[0])
        hub_database_problem(h, problem);
    (void)pthread_mutex_lock(&h->lock);
    memcpy(thumbprint, h->thumbprint, sizeof(thumbprint));
    bool looked_through = h->looked_through;
    (void)pthread_mutex_unlock(&h->lock);
    bool well = problem[0] == '\0';
    json_t *o = json_object();
    bool ok = (o != NULL || err_no_memory(err)) && codec_json_set_text(o, "status", well ? "ok" : "degraded", err) &&
        codec_json_set_text(o, "problem", well ? NULL : problem, err) &&
        codec_json_set_text(o, "version", SENDENSE_VERSION, err) &&
        codec_json_set_text(o, "tls_thumbprint", thumbprint[0] ? thumbprint : NULL, err) &&
        codec_json_set_text(o, "database", store_engine(h->store), err) && hub_set_now(o, "time", err) &&
        codec_json_set_u64(o, "running_jobs", running, err) &&
        codec_json_set_bool(o, "looked_through", looked_through, err) &&
        codec_json_set_u64(o, "data_dir_free_bytes", free_bytes, err);
    *ret = o;
    return ok;
}

bool hub_pulse(Hub *h, int64_t limit_ms, Err *err)
{
    uint64_t running;
    (void)pthread_mutex_lock(&h->lock);
    (void)pthread_mutex_unlock(&h->lock);
    bool in_files = atomic_load(&h->in_files);
    int64_t age = clock_mono_ms() - atomic_load(&h->step_ms);
    if (age > limit_ms && !in_files)
        return err_set(err, ERR_TIMEOUT, "the supervisor has made no step for %lld ms", (long long)age);
    Err asking = ERR_INIT;
    if (!store_backup_count_active(h->store, &running, &asking) && asking.code != ERR_UNAVAILABLE) {
        *err = asking;
        return false;
    }
    return true;
}
