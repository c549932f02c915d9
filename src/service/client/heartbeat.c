// Tells the hub every two seconds that the job lives and how far it is, and brings the hub's word back.
#include "base/log.h"
#include "service/client/job.h"

#include <errno.h>
#include <time.h>

#define PERIOD_MS 2000
#define TIMEOUT_MS 5000

static bool snapshot(Job *j, WorkProgress *ret, bool *ret_recording, Err *err)
{
    WorkProgressDisk *disks = NULL;
    pthread_mutex_lock(&j->lock);
    size_t n = j->disks_len;
    const char *phase = j->phase;
    *ret_recording = j->recording;
    pthread_mutex_unlock(&j->lock);
    disks = mem_calloc(n, sizeof(*disks), err);
    char *text = mem_strdup(phase, err);
    if (!disks || !text) {
        free(disks);
        free(text);
        return false;
    }
    pthread_mutex_lock(&j->lock);
    if (!j->disks_known) // not yet, or no more: the source is being closed
        n = 0;
    for (size_t i = 0; i < n; i++) {
        const MoverProgress *p = &j->disks[i].progress;
        disks[i] = (WorkProgressDisk){.disk_id = j->disks[i].answer->disk_id,
                                      .done_bytes = p->done_bytes,
                                      .size = j->disks[i].source->size,
                                      .transferred_bytes = p->transferred_bytes,
                                      .zero_bytes = p->zero_bytes,
                                      .changed_bytes = p->changed_bytes,
                                      .kept_bytes = p->kept_bytes};
    }
    pthread_mutex_unlock(&j->lock);
    *ret = (WorkProgress){.disks = disks, .disks_len = n, .phase = text};
    return true;
}

static void stop_job(Job *j, ErrCode code, const char *why)
{
    Err e = ERR_INIT;
    (void)err_set(&e, code, "%s", why);
    job_fail(j, &e);
}

// Once `complete` is under way the job may end at any moment, and its own answer is what counts.
static void heed(Job *j, HubApi *hub, bool fine, const WorkProgressAnswer *a, bool recording, Err *err)
{
    if (recording)
        return;
    if (fine && a->cancel) {
        stop_job(j, ERR_CANCELLED, "the job was cancelled at the hub");
    } else if (fine && job_state_is_final(a->status)) {
        stop_job(j, ERR_CONFLICT, "the hub has ended the job already");
    } else if (!fine && hub_api_status(hub) != 0 && !hub_api_is_unknown(hub)) {
        (void)err_context(err, "the hub refuses the job's heartbeat");
        job_fail(j, err);
    } else if (!fine && err->code != ERR_CANCELLED) {
        log_warn("heartbeat not delivered", LOG_STR("job", j->spec->job_id), LOG_ERR(err));
    }
}

static void beat(Job *j, HubApi *hub)
{
    Err err = ERR_INIT;
    cleanup(work_progress_clear) WorkProgress p = {0};
    WorkProgressAnswer a = {0};
    bool recording;
    if (!snapshot(j, &p, &recording, &err)) {
        log_warn("heartbeat not sent", LOG_STR("job", j->spec->job_id), LOG_ERR(&err));
        return;
    }
    bool fine = hub_api_progress(hub, j->spec->job_id, &p, &a, &err);
    heed(j, hub, fine, &a, recording, &err);
}

static void *heartbeat_thread(void *ctx)
{
    Job *j = ctx;
    Err err = ERR_INIT;
    HubApi *hub = NULL;
    if (!hub_api_new(j->spec->hub_url, j->spec->token, j->spec->trust, &hub, &err)) {
        job_fail(j, &err);
        return NULL;
    }
    hub_api_set_timeout(hub, TIMEOUT_MS);
    hub_api_set_cancel(hub, &j->heartbeat_end);
    while (!atomic_load(&j->heartbeat_end)) {
        struct timespec until;
        (void)clock_gettime(CLOCK_MONOTONIC, &until); // cannot fail with this clock
        until.tv_sec += PERIOD_MS / 1000;
        pthread_mutex_lock(&j->lock);
        const char *phase = j->phase;
        int waited = 0;
        while (waited != ETIMEDOUT && phase == j->phase && !atomic_load(&j->heartbeat_end))
            waited = pthread_cond_timedwait(&j->changed, &j->lock, &until);
        pthread_mutex_unlock(&j->lock);
        if (!atomic_load(&j->heartbeat_end))
            beat(j, hub);
    }
    hub_api_free(hub);
    return NULL;
}

bool heartbeat_start(Job *j, Err *err)
{
    int e = pthread_create(&j->heartbeat, NULL, heartbeat_thread, j);
    if (e != 0)
        return err_errno(err, e, "starting the heartbeat");
    j->heartbeat_runs = true;
    return true;
}

void heartbeat_stop(Job *j)
{
    if (!j->heartbeat_runs)
        return;
    pthread_mutex_lock(&j->lock);
    atomic_store(&j->heartbeat_end, true);
    pthread_cond_broadcast(&j->changed);
    pthread_mutex_unlock(&j->lock);
    (void)pthread_join(j->heartbeat, NULL); // joinable, and joined once
    j->heartbeat_runs = false;
}
