#include "source/qemu/parts.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/str.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>

#define WATCH_MS 250
#define PAUSED_MS 5000 // a job is "paused" for an instant whenever QEMU drains its node

static void set_broken(QemuSource *v, const Err *why)
{
    if (v->why.code == ERR_NONE)
        v->why = *why;
    atomic_store(&v->broken, true);
}

bool watch_broken(QemuSource *v, Err *err)
{
    if (!atomic_load(&v->broken))
        return false;
    (void)pthread_mutex_lock(&v->lock);
    if (err->code == ERR_NONE)
        *err = v->why;
    (void)pthread_mutex_unlock(&v->lock);
    return true;
}

// ---- all below with the lock held ----

static const QemuDisk *disk_of(const QemuSource *v, const char *tag)
{
    for (size_t i = 0; tag && i < v->s.disks_len; i++)
        if (str_eq(v->disks[i].tag, tag))
            return &v->disks[i];
    return NULL;
}

static bool ended(const QemuDisk *d, Err *err)
{
    return err_set(err, ERR_CONFLICT, "disk %s: its frozen view ended before the backup did", d->key);
}

// The events that have come. False: one of them, or their end, broke the view.
static bool look_at_events(QemuSource *v, Err *err)
{
    for (;;) {
        QmpEvent e;
        Err none = ERR_INIT;
        if (!qmp_await(v->q, 0, &e, &none)) {
            if (none.code == ERR_TIMEOUT)
                return true;
            *err = none;
            return err_context(err, "the connection to qemu was lost, and the frozen view with it");
        }
        const char *id = json_string_value(json_object_get(e.data, "id"));
        const char *status = json_string_value(json_object_get(e.data, "status"));
        const QemuDisk *d = disk_of(v, id);
        bool over =
            d && status && (str_eq(status, "aborting") || str_eq(status, "concluded") || str_eq(status, "null"));
        bool gone = d && str_eq(e.name, "BLOCK_EXPORT_DELETED");
        qmp_event_clear(&e);
        if (over || gone)
            return ended(d, err);
    }
}

// While there is too little space, the guest's next write may be the one that fails: end the copying of old data.
static bool look_at_space(QemuSource *v, Err *err)
{
    uint64_t free_bytes, total;
    Err ignored = ERR_INIT; // a folder that cannot be asked is not a full one
    if (!file_space(v->scratch.folder, &free_bytes, &total, &ignored) || free_bytes >= v->low_water)
        return true;
    for (size_t i = 0; i < v->s.disks_len; i++)
        (void)!sweep_call(v->q, "job-cancel", json_pack("{s:s}", "id", v->disks[i].tag), &ignored);
    return err_set(err, ERR_NO_SPACE,
                   "%s has %" PRIu64
                   " bytes left: the backup gave way to the guest, whose writes would fail next; HINT: "
                   "give the VM a larger scratch folder",
                   v->scratch.folder, free_bytes);
}

static void look(QemuSource *v)
{
    Err err = ERR_INIT;
    if (!look_at_space(v, &err) || !look_at_events(v, &err))
        set_broken(v, &err);
}

static void *watch_main(void *ctx)
{
    QemuSource *v = ctx;
    while (!atomic_load(&v->broken)) {
        struct pollfd fds[] = {{.fd = v->stop, .events = POLLIN}, {.fd = qmp_fd(v->q), .events = POLLIN}};
        int n = poll(fds, ARRAY_LEN(fds), WATCH_MS);
        if (n > 0 && fds[0].revents)
            break;
        (void)pthread_mutex_lock(&v->lock);
        look(v);
        (void)pthread_mutex_unlock(&v->lock);
    }
    return NULL;
}

static bool job_status(QemuSource *v, const QemuDisk *d, bool *ret_running, bool *ret_paused, Err *err)
{
    json_t *jobs = NULL;
    if (!qmp_call(v->q, "query-jobs", NULL, &jobs, err))
        return false;
    *ret_running = *ret_paused = false;
    for (size_t i = 0; i < json_array_size(jobs); i++) {
        const json_t *job = json_array_get(jobs, i);
        const char *id = json_string_value(json_object_get(job, "id"));
        const char *status = json_string_value(json_object_get(job, "status"));
        if (id && status && str_eq(id, d->tag)) {
            *ret_running = str_eq(status, "running");
            *ret_paused = str_eq(status, "paused");
        }
    }
    json_decref(jobs);
    return true;
}

static bool check_job(QemuSource *v, const QemuDisk *d, Err *err)
{
    int64_t deadline = clock_mono_ms() + PAUSED_MS;
    for (;;) {
        bool running, paused;
        if (!job_status(v, d, &running, &paused, err))
            return err_context(err, "disk %s", d->key);
        if (running)
            return true;
        if (!paused || clock_mono_ms() > deadline)
            return ended(d, err);
        QmpEvent e;
        Err none = ERR_INIT; // whatever comes, or nothing: the next look tells
        if (qmp_await(v->q, WATCH_MS, &e, &none))
            qmp_event_clear(&e);
    }
}

bool watch_check(QemuSource *v, Err *err)
{
    if (watch_broken(v, err))
        return false;
    (void)pthread_mutex_lock(&v->lock);
    Err found = ERR_INIT;
    bool ok = true;
    for (size_t i = 0; ok && i < v->s.disks_len; i++)
        ok = check_job(v, &v->disks[i], &found);
    if (!ok)
        set_broken(v, &found);
    (void)pthread_mutex_unlock(&v->lock);
    return !watch_broken(v, err);
}

bool watch_start(QemuSource *v, Err *err)
{
    v->stop = eventfd(0, EFD_CLOEXEC);
    if (v->stop < 0)
        return err_errno(err, errno, "eventfd");
    sigset_t all, before;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before); // signals are for the program's own threads
    int e = pthread_create(&v->watch, NULL, watch_main, v);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (e != 0)
        return err_errno(err, e, "a thread");
    v->watched = true;
    return true;
}

void watch_stop(QemuSource *v)
{
    if (v->watched) {
        (void)eventfd_write(v->stop, 1); // cannot overflow
        (void)pthread_join(v->watch, NULL);
        v->watched = false;
    }
    mem_cleanup_close(&v->stop);
}
