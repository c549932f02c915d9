// One thread that looks after what runs: starts clients, notices clients and exporters that died or fell silent, ends
// what was cancelled and does not listen, finishes interrupted commits, ends exports that nobody reads.
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "service/hub/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define TICK_MS 500
#define LOOK_MS 5000 // at exports and partial images
#define CLIENT_LOG_BYTES (1 << 20)
#define THREAD_NAME "supervisor"
#define HEARTBEAT_MS 4000 // a client that lives is heard within it

// What a full disk took of an earlier client's last line must not become part of this one's first.
static void end_torn_line(int fd)
{
    struct stat st;
    char last = '\n';
    if (fstat(fd, &st) == 0 && st.st_size > 0 && pread(fd, &last, 1, st.st_size - 1) == 1 && last != '\n')
        (void)!write(fd, "\n", 1); // the disk is full still: so it is for all that follows
}

// What the clients of a VM say, one after the other. A file that has grown large makes room for a new one, and replaces
// the one that did so before.
static bool open_client_log(const Hub *h, const char *vm_id, int *ret_fd, Err *err)
{
    cleanup_free char *path = mem_printf(err, "%s/%s.client.log", h->log_dir, vm_id);
    cleanup_free char *before = path ? mem_printf(err, "%s.1", path) : NULL;
    struct stat st;
    if (!before)
        return false;
    if (lstat(path, &st) == 0 && st.st_size > CLIENT_LOG_BYTES && !file_rename(path, before, err))
        return false;
    int fd = open(path, O_CREAT | O_RDWR | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return err_errno(err, errno, "cannot open %s", path);
    *ret_fd = fd;
    end_torn_line(fd);
    return true;
}

static bool spawn_client(Hub *h, Running *r, const StoreBackup *b, Err *err)
{
    Secret token = {0};
    char digest[SECRET_DIGEST_TEXT];
    cleanup_free char *job = mem_printf(err, "MIGRATEKIT_JOB_ID=%s", b->id);
    cleanup_free char *url = mem_printf(err, "SHA_API_URL=%s", h->url);
    cleanup_free char *token_env = NULL;
    cleanup_close int log_fd = -1;
    bool ok = job && url && open_client_log(h, b->vm_id, &log_fd, err) && secret_random(&token, err) &&
        secret_digest(secret_reveal(&token), digest, err) &&
        (token_env = mem_printf(err, "SENDENSE_JOB_TOKEN=%s", secret_reveal(&token))) &&
        store_backup_set_token(h->store, b->id, digest, err);
    const char *argv[] = {h->client, NULL}; // nothing secret in an argument vector
    const char *env[] = {job, url, token_env, NULL};
    ok = ok &&
        proc_spawn(&(ProcSpec){.argv = argv,
                               .set_env = env,
                               .stdin_fd = -1,
                               .stdout_fd = log_fd,
                               .stderr_fd = log_fd,
                               .listen_fd = -1,
                               .new_session = true},
                   &r->client, err) &&
        store_backup_set_client(h->store, b->id, r->client.pid, r->client.start_time, err);
    secret_clear(&token);
    if (token_env)
        explicit_bzero(token_env, strlen(token_env));
    return ok;
}

static bool exporter_died(const Running *r)
{
    for (size_t i = 0; i < r->exporters_len; i++)
        if (!proc_alive(&r->exporters[i].proc))
            return true;
    return false;
}

static bool client_died(Running *r)
{
    int status;
    Err still_there = ERR_INIT;
    if (r->client.pid == 0 || !proc_wait(&r->client, 0, &status, &still_there))
        return false;
    proc_clear(&r->client);
    r->client = PROC_NONE;
    return true;
}

// hub_pulse() looks at these: from one step to the next it is a matter of seconds, but for one in files.
static void step(Hub *h, bool in_files)
{
    atomic_store(&h->step_ms, clock_mono_ms());
    atomic_store(&h->in_files, in_files);
}

static bool end(Hub *h, Running *r, const char *status, const char *error, const char *details, Err *err)
{
    log_warn("ending a job", LOG_STR("job", r->id), LOG_STR("why", error));
    step(h, true);
    bool ok = hub_job_end(h, r, status, error, details, false, err);
    step(h, false);
    return ok;
}

static bool look_at_pending(Hub *h, Running *r, const StoreBackup *b, uint64_t *running, Err *err)
{
    char details[256];
    if (b->cancel_requested) // of another hub
        return end(h, r, "cancelled", "cancelled", "cancelled before a client had claimed it", err);
    // no client in the entry, but one on record: ending the job did not come to its end the last time
    if (b->client_pid > 0 && (r->client.pid == 0 || client_died(r))) {
        (void)snprintf(details, sizeof(details), "the client ended before it claimed the job; see %s/%s.client.log",
                       h->log_dir, b->vm_id);
        return end(h, r, "failed", "client failed", details, err);
    }
    if (b->start_client && b->client_pid == 0) {
        if (!h->url || *running >= h->max_jobs || hub_vm_is_held(h, b->vm_id))
            return true;
        Err why = ERR_INIT;
        if (!spawn_client(h, r, b, &why))
            return end(h, r, "failed", "cannot start the client", why.details, err);
        ++*running;
        return true;
    }
    int64_t since = b->start_client ? b->last_seen_us : b->created_us; // a client of ours: when it was started
    if (clock_utc_us() - since > (int64_t)h->claim_s * 1000000)
        return end(h, r, "failed", "not claimed", "no client claimed the job in time", err);
    return true;
}

// One that removes its snapshot is let do so for as long as it is heard.
static bool is_closing(const StoreBackup *b)
{
    return b->cancel_requested && b->phase && strcmp(b->phase, WORK_PHASE_CLOSING) == 0;
}

static bool is_deaf(const Running *r, const StoreBackup *b)
{
    bool heard = b->last_seen_us != r->cancel_seen_us || atomic_load(&r->heard_ms) > r->cancel_ms;
    return !is_closing(b) && clock_mono_ms() - r->cancel_ms > (heard ? r->grace_ms : MIN(r->grace_ms, HEARTBEAT_MS));
}

static bool look_at_running(Hub *h, Running *r, const StoreBackup *b, Err *err)
{
    char details[256];
    if (b->taken_over)
        return end(h, r, "failed", "hub lost",
                   "the hub that this job ran on was not heard of; its client and exporters cannot be reached", err);
    if (exporter_died(r) && !is_closing(b)) // which has no use for it
        return end(h, r, "failed", "exporter died", "an exporter ended; what it had not flushed is lost", err);
    if (client_died(r)) {
        (void)snprintf(details, sizeof(details), "the client ended without a report; see %s/%s.client.log", h->log_dir,
                       b->vm_id);
        return end(h, r, b->cancel_requested ? "cancelled" : "failed", "client died", details, err);
    }
    if (b->cancel_requested)
        hub_running_ask_to_end(h, r, b); // it was asked for at another hub, or in an earlier one's time
    if (b->cancel_requested && is_deaf(r, b))
        return end(h, r, "cancelled", "cancelled", "cancelled; the client did not end by itself in time", err);
    int64_t heard_ms = atomic_load(&r->heard_ms), lease_ms = (int64_t)h->lease_s * 1000;
    if (clock_utc_us() - b->last_seen_us <= lease_ms * 1000 ||
        (heard_ms > 0 && clock_mono_ms() - heard_ms <= lease_ms)) {
        r->silent_ms = 0;
        return true;
    }
    // It may be us who were held up (a stopped process, a long deletion), or the clock was set: let it speak first
    if (r->silent_ms == 0)
        r->silent_ms = clock_mono_ms();
    if (clock_mono_ms() - r->silent_ms < HEARTBEAT_MS)
        return true;
    (void)snprintf(details, sizeof(details), "nothing was heard from the client for %u s", h->lease_s);
    return end(h, r, b->cancel_requested ? "cancelled" : "failed", "client silent", details, err);
}

static bool look_at_job(Hub *h, const char *id, uint64_t *running, Err *err)
{
    Running *r;
    StoreBackup cleanup_backup b = {0};
    if (!hub_running_try(h, id, &r, err))
        return false;
    if (!r)
        return true;
    bool ok = store_backup_get(h->store, id, &b, err); // as it is now that nobody else changes it
    if (ok && strcmp(b.hub_id, h->hub_id) != 0)
        hub_running_drop(r);
    else if (ok && strcmp(b.status, "pending") == 0)
        ok = look_at_pending(h, r, &b, running, err);
    else if (ok && strcmp(b.status, "running") == 0)
        ok = look_at_running(h, r, &b, err);
    else if (ok && strcmp(b.status, "committing") == 0) {
        Err why = ERR_INIT; // logged when it began; the repository may be back by now
        step(h, true);
        (void)!hub_commit(h, r, &why);
        step(h, false);
    }
    hub_running_unlock(h, r);
    return ok;
}

// Jobs with processes here, which this hub has lost to another one while it was silent.
static void drop_lost(Hub *h, const StoreBackup *own, size_t len)
{
    for (unsigned n = 0;;) {
        cleanup_free char *id = NULL;
        Err err = ERR_INIT;
        Running *r;
        unsigned skip = n++;
        (void)pthread_mutex_lock(&h->lock);
        for (r = h->running; r && skip > 0; r = r->next)
            skip--;
        bool over = !r, idle = r && r->exporters_len == 0 && r->client.pid == 0;
        for (size_t i = 0; r && !idle && i < len; i++)
            idle = strcmp(own[i].id, r->id) == 0;
        if (r && !idle)
            id = mem_strdup(r->id, &err); // without memory the next round sees it
        (void)pthread_mutex_unlock(&h->lock);
        if (over)
            return;
        uint64_t running = UINT64_MAX; // a pending one of ours, made since: the next round starts it
        if (id && !look_at_job(h, id, &running, &err) && err.code != ERR_NOT_FOUND)
            log_error("cannot look after a job", LOG_STR("job", id), LOG_ERR(&err));
    }
}

static void look_at_jobs(Hub *h)
{
    StoreBackup *jobs = NULL;
    size_t len = 0;
    uint64_t running = 0;
    Err err = ERR_INIT;
    if (!store_backup_active_of(h->store, h->hub_id, &jobs, &len, &err)) {
        log_error("cannot look at the jobs", LOG_ERR(&err));
        return;
    }
    for (size_t i = 0; i < len; i++)
        // a commit may wait for its repository for days: it keeps nobody else's job from running
        running += strcmp(jobs[i].status, "running") == 0 ||
            (strcmp(jobs[i].status, "pending") == 0 && jobs[i].client_pid > 0);
    for (size_t i = 0; i < len; i++) {
        Err each = ERR_INIT;
        step(h, false);
        if (!look_at_job(h, jobs[i].id, &running, &each) && each.code != ERR_NOT_FOUND)
            log_error("cannot look after a job", LOG_STR("job", jobs[i].id), LOG_ERR(&each));
    }
    drop_lost(h, jobs, len);
    STORE_LIST_FREE(jobs, len, store_backup_clear);
}

// The n-th job whose client has ended, and that nobody is at work on; NULL if there are not so many.
static char *ended_client(Hub *h, unsigned n)
{
    char *id = NULL;
    Err memory = ERR_INIT; // the next round sees it again
    (void)pthread_mutex_lock(&h->lock);
    for (Running *r = h->running; r && !id; r = r->next)
        if (!r->locked && r->users == 0 && r->client.pid > 0 && !proc_alive(&r->client) && n-- == 0)
            id = mem_strdup(r->id, &memory);
    (void)pthread_mutex_unlock(&h->lock);
    return id;
}

// Clients of jobs that are over: reaped here, so that none stays as a zombie.
static void reap(Hub *h)
{
    for (unsigned n = 0;;) {
        cleanup_free char *id = ended_client(h, n);
        if (!id)
            return;
        Running *r;
        Err looking = ERR_INIT, err = ERR_INIT;
        bool over = false;
        if (!hub_backup_is_final(h, id, &over, &looking))
            over = looking.code == ERR_NOT_FOUND; // deleted since
        if (!over || !hub_running_try(h, id, &r, &err) || !r) {
            n++; // looked after as a job, or in the next round
            continue;
        }
        (void)!client_died(r);
        hub_running_unlock(h, r);
    }
}

static void look_at_export(Hub *h, const StoreExport *e, int64_t now)
{
    EngineAnswer a;
    Err err = ERR_INIT;
    bool answers = exporter_call(e->control, &(EngineRequest){.op = ENGINE_STATUS}, 2000, &a, &err);
    if (answers && a.connections > 0) {
        if (!store_export_used(h->store, e->id, now, &err))
            log_error("cannot note an export's use", LOG_STR("export", e->id), LOG_ERR(&err));
        return;
    }
    bool gone = !answers && err.code == ERR_UNAVAILABLE;
    if (!gone && now - e->used_us < (int64_t)h->export_idle_s * 1000000)
        return;
    log_warn(gone ? "an export's exporter is gone" : "an export that nobody reads was ended", LOG_STR("export", e->id));
    json_t *ended = NULL;
    Err ending = ERR_INIT;
    step(h, true); // an exporter whose disk hangs ends when the disk lets it
    if (!hub_export_end(h, e->id, &ended, &ending) && ending.code != ERR_NOT_FOUND)
        log_error("cannot end an export", LOG_STR("export", e->id), LOG_ERR(&ending));
    step(h, false);
    json_decref(ended);
}

static void look_at_exports(Hub *h)
{
    StoreExport *rows = NULL;
    size_t len = 0;
    Err err = ERR_INIT;
    if (!store_export_list(h->store, &rows, &len, &err)) {
        log_error("cannot look at the exports", LOG_ERR(&err));
        return;
    }
    int64_t now = clock_utc_us();
    for (size_t i = 0; i < len; i++) {
        step(h, false);
        if (strcmp(rows[i].hub_id, h->hub_id) == 0)
            look_at_export(h, &rows[i], now);
    }
    STORE_LIST_FREE(rows, len, store_export_clear);
}

// What jobs left in a repository that was away when they ended, and what nobody went on from in time.
static void look_at_partial(Hub *h)
{
    StoreBackup *rows = NULL;
    size_t len = 0;
    Err err = ERR_INIT;
    int64_t since = clock_utc_us() - (int64_t)h->keep_hours * INT64_C(3600000000);
    if (!store_backup_uncleaned(h->store, since, &rows, &len, &err)) {
        log_error("cannot look for partial images", LOG_ERR(&err));
        return;
    }
    for (size_t i = 0; i < len; i++) {
        Err away = ERR_INIT; // said when the job ended
        step(h, true);
        if (hub_remove_partial(h, &rows[i], &away) && store_backup_cleaned(h->store, rows[i].id, &away))
            log_info("partial images of a job were removed", LOG_STR("job", rows[i].id));
        step(h, false);
    }
    STORE_LIST_FREE(rows, len, store_backup_clear);
}

static void wait_tick(Hub *h)
{
    struct timespec until;
    (void)clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += TICK_MS * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000L;
    until.tv_nsec %= 1000000000L;
    (void)pthread_cond_timedwait(&h->changed, &h->lock, &until); // woken early: the better
}

static void *supervise(void *arg)
{
    Hub *h = arg;
    int64_t look_at = 0;
    (void)pthread_mutex_lock(&h->lock);
    while (!h->stopping) {
        (void)pthread_mutex_unlock(&h->lock);
        step(h, false);
        hub_hubs_take_over(h);
        look_at_jobs(h);
        reap(h);
        if (clock_mono_ms() >= look_at) {
            look_at_exports(h);
            look_at_partial(h);
            look_at = clock_mono_ms() + LOOK_MS;
        }
        (void)pthread_mutex_lock(&h->lock);
        if (!h->stopping)
            wait_tick(h);
    }
    (void)pthread_mutex_unlock(&h->lock);
    return NULL;
}

bool hub_supervisor_start(Hub *h, Err *err)
{
    step(h, false);
    int rc = pthread_create(&h->supervisor, NULL, supervise, h);
    if (rc != 0)
        return err_errno(err, rc, "cannot start the supervisor");
    (void)pthread_setname_np(h->supervisor, THREAD_NAME); // for whoever looks at the threads
    h->supervising = true;
    return true;
}

void hub_supervisor_stop(Hub *h)
{
    if (!h->supervising)
        return;
    (void)pthread_mutex_lock(&h->lock);
    h->stopping = true;
    (void)pthread_cond_broadcast(&h->changed);
    (void)pthread_mutex_unlock(&h->lock);
    (void)pthread_join(h->supervisor, NULL);
    h->supervising = false;
}
