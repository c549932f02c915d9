// Several hubs on one database: this one's beats, which of the others are silent, and what then becomes of theirs.
// docs/internals/hubs.md.
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/str.h"
#include "base/uuid.h"
#include "service/hub/internal.h"

#include <signal.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#define BEATS_A_LEASE 4
#define NAME_MAX_TEXT 256
#define GONE_US (INT64_C(24) * 3600 * 1000000)

struct HubSeen {
    char id[UUID_TEXT];
    uint64_t beats;
    int64_t since_ms; // monotonic: beats is this since then, and was looked at all the time
    bool silent;
    bool empty; // silent, and nothing of its is left
};

// ---- who this is

bool hub_hubs_id(const char *data_dir, char ret[UUID_TEXT], Err *err)
{
    cleanup_free char *path = file_join(data_dir, "hub-id", err), *text = NULL;
    Err missing = ERR_INIT;
    if (!path)
        return false;
    if (file_read(path, UUID_TEXT, &text, NULL, &missing)) {
        text[strcspn(text, "\n")] = '\0';
        if (!uuid_is_valid(text))
            return err_set(err, ERR_INVALID, "%s holds no UUID", path);
        memcpy(ret, text, UUID_TEXT);
        return true;
    }
    if (missing.code != ERR_NOT_FOUND) {
        *err = missing;
        return false;
    }
    return uuid_new(ret, err) && file_create_durable(path, ret, strlen(ret), 0600, err);
}

bool hub_hubs_enter(Hub *h, const char *name, unsigned lease_s, Err *err)
{
    char host[NAME_MAX_TEXT] = "";
    if (!name && (gethostname(host, sizeof(host) - 1) != 0 || !host[0]))
        return err_set(err, ERR_USAGE, "this machine has no name; say hub-name");
    h->hub_lease_s = lease_s;
    StoreHub row = {.id = h->hub_id,
                    .name = name ? (char *)(uintptr_t)name : host,
                    .version = (char *)(uintptr_t)SENDENSE_VERSION,
                    .lease_s = lease_s,
                    .started_us = clock_utc_us(),
                    .beat_us = clock_utc_us()};
    return store_hub_enter(h->store, &row, err);
}

static bool is_ours(const Hub *h, const char *hub_id)
{
    return str_eq(hub_id, h->hub_id);
}

bool hub_is_alone(Hub *h, bool *ret, Err *err)
{
    StoreHub *rows = NULL;
    size_t len = 0;
    *ret = true;
    if (!store_is_shared(h->store))
        return true;
    if (!store_hub_list(h->store, &rows, &len, err))
        return false;
    for (size_t i = 0; i < len; i++)
        *ret = *ret && (is_ours(h, rows[i].id) || rows[i].stopped || clock_utc_us() - rows[i].beat_us > GONE_US);
    STORE_LIST_FREE(rows, len, store_hub_clear);
    return true;
}

bool hub_is_ours(Hub *h, const char *hub_id, const char *what, const char *id, Err *err)
{
    StoreHub *rows = NULL;
    size_t len = 0;
    if (is_ours(h, hub_id))
        return true;
    if (!store_hub_list(h->store, &rows, &len, err))
        return false;
    const char *name = hub_id;
    for (size_t i = 0; i < len; i++)
        if (str_eq(rows[i].id, hub_id))
            name = rows[i].name;
    (void)err_set(err, ERR_CONFLICT, "%s %s is looked after by another hub, \"%s\": make this call there", what, id,
                  name);
    STORE_LIST_FREE(rows, len, store_hub_clear);
    return false;
}

// ---- who is silent. All below: h->lock is held.

static struct HubSeen *seen(Hub *h, const char *id)
{
    for (size_t i = 0; i < h->seen_len; i++)
        if (str_eq(h->seen[i].id, id))
            return &h->seen[i];
    struct HubSeen *more = reallocarray(h->seen, h->seen_len + 1, sizeof(*more));
    if (!more)
        return NULL; // the next look tries again
    h->seen = more;
    more[h->seen_len] = (struct HubSeen){0};
    (void)snprintf(more[h->seen_len].id, UUID_TEXT, "%s", id);
    return &more[h->seen_len++];
}

static void look_at(Hub *h, const StoreHub *row, bool anew, int64_t now_ms)
{
    struct HubSeen *s = seen(h, row->id);
    if (!s)
        return;
    int64_t lease_ms = (int64_t)MAX(row->lease_s, (uint64_t)h->hub_lease_s) * 1000;
    if (row->beats != s->beats || s->since_ms == 0 || anew) {
        bool was = s->silent && row->beats != s->beats;
        s->since_ms = now_ms;
        s->silent = s->silent && !was;
        s->empty = s->empty && !was;
        s->beats = row->beats;
        if (was)
            log_info("a hub is heard again", LOG_STR("hub", row->name));
    } else if (!s->silent && now_ms - s->since_ms > lease_ms) {
        s->silent = true;
        log_warn("a hub is silent; what is its is taken over", LOG_STR("hub", row->name),
                 LOG_NUM("seconds", (now_ms - s->since_ms) / 1000));
    }
}

// A gap between two looks, in which others may not have reached the database either, begins it all anew.
static void look_at_all(Hub *h, const StoreHub *rows, size_t len)
{
    int64_t now = clock_mono_ms();
    bool anew = h->looked_ms == 0 || now - h->looked_ms > (int64_t)h->hub_lease_s * 1000 / 2;
    for (size_t i = 0; i < len; i++)
        if (!is_ours(h, rows[i].id))
            look_at(h, &rows[i], anew, now);
    h->looked_ms = now;
}

static bool beat(Hub *h, Err *err)
{
    StoreHub *rows = NULL;
    size_t len = 0;
    if (!store_hub_beat(h->store, err) || !store_hub_list(h->store, &rows, &len, err))
        return false;
    (void)pthread_mutex_lock(&h->lock);
    look_at_all(h, rows, len);
    (void)pthread_mutex_unlock(&h->lock);
    STORE_LIST_FREE(rows, len, store_hub_clear);
    return true;
}

// Its own thread: the supervisor may wait for a disk.
static void *beat_always(void *ctx)
{
    Hub *h = ctx;
    ErrCode said = ERR_NONE;
    while (!h->beat_stop) {
        Err err = ERR_INIT;
        struct timespec until;
        bool ok = beat(h, &err);
        if (!ok && said == ERR_NONE)
            log_error("cannot say that this hub lives", LOG_ERR(&err));
        if (err.code == ERR_BUSY) { // jobs of that ID are the other's now
            log_error("this hub ends; HINT: of a data folder that was copied, remove hub-id",
                      LOG_STR("hub", h->hub_id));
            (void)kill(getpid(), SIGTERM);
            return NULL;
        }
        said = err.code;
        (void)clock_gettime(CLOCK_MONOTONIC, &until);
        int64_t ns = until.tv_nsec + (int64_t)h->hub_lease_s * 1000000000 / BEATS_A_LEASE;
        until.tv_sec += ns / 1000000000;
        until.tv_nsec = ns % 1000000000;
        (void)pthread_mutex_lock(&h->lock);
        while (!h->beat_stop && pthread_cond_timedwait(&h->changed, &h->lock, &until) == 0)
            ;
        (void)pthread_mutex_unlock(&h->lock);
    }
    return NULL;
}

bool hub_hubs_start(Hub *h, Err *err)
{
    if (!store_is_shared(h->store))
        return true;
    int rc = pthread_create(&h->beater, NULL, beat_always, h);
    if (rc != 0)
        return err_errno(err, rc, "cannot start the thread that says that this hub lives");
    h->beating = true;
    return true;
}

void hub_hubs_stop(Hub *h)
{
    Err err = ERR_INIT;
    (void)pthread_mutex_lock(&h->lock);
    h->beat_stop = true;
    (void)pthread_cond_broadcast(&h->changed);
    (void)pthread_mutex_unlock(&h->lock);
    if (h->beating)
        (void)pthread_join(h->beater, NULL);
    h->beating = false;
    free(mem_take(h->seen));
    h->seen_len = 0;
    if (h->store && store_hub(h->store)[0] && !store_hub_leave(h->store, &err))
        log_warn("cannot say that this hub has stopped", LOG_ERR(&err));
}

// ---- taking over. The supervisor's.

// The jobs are looked after as own ones from the next round on (supervisor.c).
static bool take_jobs(Hub *h, const StoreHub *silent, Err *err)
{
    StoreBackup *jobs = NULL;
    size_t len = 0;
    bool ok = store_backup_active_of(h->store, silent->id, &jobs, &len, err), done;
    for (size_t i = 0; ok && i < len; i++) {
        ok = store_backup_take_over(h->store, jobs[i].id, silent, &done, err);
        if (ok && done)
            log_warn("a silent hub's job was taken over", LOG_STR("job", jobs[i].id), LOG_STR("hub", silent->id),
                     LOG_STR("status", jobs[i].status));
    }
    STORE_LIST_FREE(jobs, len, store_backup_clear);
    return ok;
}

static bool take_all(Hub *h, const StoreHub *silent, Err *err)
{
    uint64_t exports = 0, deletions = 0;
    bool ok = take_jobs(h, silent, err) && store_export_forget(h->store, silent, &exports, err) &&
        store_deleting_take_over(h->store, silent, &deletions, err);
    if (exports > 0)
        log_warn("a silent hub's exports were forgotten", LOG_STR("hub", silent->id), LOG_NUM("exports", exports));
    return ok && (deletions == 0 || hub_deletions_finish(h, err));
}

void hub_hubs_take_over(Hub *h)
{
    for (size_t i = 0;; i++) {
        char id[UUID_TEXT];
        StoreHub silent = {.id = id};
        Err err = ERR_INIT;
        (void)pthread_mutex_lock(&h->lock);
        bool over = i >= h->seen_len, skip = over || !h->seen[i].silent || h->seen[i].empty;
        if (!skip) {
            memcpy(id, h->seen[i].id, sizeof(id));
            silent.beats = h->seen[i].beats;
        }
        (void)pthread_mutex_unlock(&h->lock);
        if (over)
            return;
        if (skip)
            continue;
        bool ok = take_all(h, &silent, &err);
        if (!ok)
            log_error("cannot take over what a silent hub had", LOG_STR("hub", id), LOG_ERR(&err));
        (void)pthread_mutex_lock(&h->lock);
        h->seen[i].empty = ok && h->seen[i].silent && h->seen[i].beats == silent.beats;
        (void)pthread_mutex_unlock(&h->lock);
    }
}

// ---- seen from outside

static const char *state_of(Hub *h, const StoreHub *row)
{
    const char *state = row->stopped ? "stopped" : "alive";
    if (is_ours(h, row->id))
        return "alive";
    (void)pthread_mutex_lock(&h->lock);
    for (size_t i = 0; i < h->seen_len; i++)
        if (str_eq(h->seen[i].id, row->id) && h->seen[i].silent && !row->stopped)
            state = "silent";
    (void)pthread_mutex_unlock(&h->lock);
    return state;
}

static bool view(Hub *h, const StoreHub *row, json_t **ret, Err *err)
{
    StoreBackup *jobs = NULL;
    size_t len = 0;
    if (!store_backup_active_of(h->store, row->id, &jobs, &len, err))
        return false;
    json_t *o = json_object();
    bool ok = (o != NULL || err_no_memory(err)) && codec_json_set_text(o, "hub_id", row->id, err) &&
        codec_json_set_text(o, "name", row->name, err) && codec_json_set_text(o, "version", row->version, err) &&
        codec_json_set_bool(o, "this", is_ours(h, row->id), err) &&
        codec_json_set_text(o, "state", state_of(h, row), err) && codec_json_set_u64(o, "jobs", len, err) &&
        codec_json_set_u64(o, "lease_seconds", row->lease_s, err) &&
        codec_json_set_time(o, "started_at", row->started_us, err) &&
        codec_json_set_time(o, "heard_at", row->beat_us, err);
    STORE_LIST_FREE(jobs, len, store_backup_clear);
    if (!ok) {
        json_decref(o);
        return false;
    }
    *ret = o;
    return true;
}

bool hub_hubs_list(Hub *h, json_t **ret, Err *err)
{
    StoreHub *rows = NULL;
    size_t len = 0;
    json_t *list = json_array();
    bool ok = store_hub_list(h->store, &rows, &len, err);
    for (size_t i = 0; ok && i < len; i++) {
        json_t *item = NULL;
        ok = view(h, &rows[i], &item, err) && codec_json_push(list, item, err);
    }
    STORE_LIST_FREE(rows, len, store_hub_clear);
    return codec_json_wrap(ok, "hubs", list, ret, err);
}
