#include "service/client/client.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/uuid.h"
#include "service/client/job.h"

#define CALL_TIMEOUT_MS 15000
#define ANNOUNCE_TIMEOUT_MS 60000 // the hub reads all hashes of the parent's chain, and starts exporters
#define ANNOUNCE_UNTIL_MS ((int64_t)60 * 60 * 1000) // which may take long on a slow share: the call is repeated
#define REACH_PAUSE_MS 1000
#define FAIL_TIMEOUT_MS 2000
#define FAIL_TRIES 2

// ---- claim and announce

// A hub that is just not there (yet), or whose database takes nothing now; any clear answer is final.
static bool is_away(const Job *j, const Err *err)
{
    int status = hub_api_status(j->hub);
    return (status == 0 && (err->code == ERR_UNAVAILABLE || err->code == ERR_TIMEOUT)) || status == 408 ||
        status == 429 || status == 500 || (status >= 502 && status <= 504) || status == 507;
}

static bool claim(Job *j, Err *err)
{
    char uuid[UUID_TEXT];
    if (!uuid_new(uuid,
                  err)) // the same in each try, so that a claim whose answer was lost is not refused
        return false;
    int64_t until = clock_mono_ms() + (int64_t)j->spec->reach_s * 1000;
    hub_api_set_timeout(j->hub, CALL_TIMEOUT_MS);
    for (;;) {
        Err e = ERR_INIT;
        if (hub_api_claim(j->hub, j->spec->job_id, uuid, &j->order, &e))
            break;
        bool again = is_away(j, &e) && clock_mono_ms() < until;
        if (again)
            log_warn("the hub is not there; the claim is repeated", LOG_STR("job", j->spec->job_id), LOG_ERR(&e));
        if (!again || !job_pause(j, REACH_PAUSE_MS)) {
            if (err->code == ERR_NONE)
                *err = e;
            return err_context(err, "claiming the job");
        }
    }
    if (!str_eq(j->order.job_id, j->spec->job_id))
        return err_set(err, ERR_PROTOCOL, "the hub gave the work order of %s", j->order.job_id);
    log_info("job claimed", LOG_STR("job", j->spec->job_id), LOG_STR("vm", j->order.vm_name),
             LOG_STR("backup_type", backup_type_name(j->order.backup_type)));
    return true;
}

// On the main thread, which alone changes the phase.
static void on_wait(void *ctx, const char *for_what)
{
    Job *j = ctx;
    int64_t now = clock_mono_ms();
    j->queued_ms += for_what ? 0 : now - j->queued_at;
    j->queued_at = now;
    if (for_what)
        log_info("waiting for a turn to read", LOG_STR("job", j->spec->job_id), LOG_STR("because", for_what));
    else
        log_info("no longer waiting", LOG_STR("job", j->spec->job_id));
    if (str_eq(j->phase, for_what ? "opening" : "queued"))
        job_phase(j, for_what ? "queued" : "opening");
}

static bool open_source(Job *j, Err *err)
{
    const WorkOrder *o = &j->order;
    const char *type;
    if (!codec_json_text(o->source, "type", 32, &type, err))
        return err_context(err, "the work order's source");
    const SourceOps *ops = source_find(type, err);
    if (!ops || !ops->check_spec(o->source, err))
        return err_context(err, "the work order's source");
    cleanup_free SourceParent *parents = mem_calloc(o->parent_disks_len, sizeof(*parents), err);
    cleanup_free const char **excluded = mem_calloc(o->excluded_disks_len + 1, sizeof(*excluded), err);
    if (!parents || !excluded)
        return false;
    for (size_t i = 0; i < o->parent_disks_len; i++) {
        const WorkParentDisk *d = &o->parent_disks[i];
        parents[i] = (SourceParent){.disk_key = d->disk_key,
                                    .change_id = d->change_id,
                                    .tracking = d->tracking,
                                    .backing_identity = d->backing_identity,
                                    .size = d->size};
    }
    cleanup_free SourceInterrupted *interrupted = mem_calloc(o->interrupted_disks_len, sizeof(*interrupted), err);
    if (!interrupted)
        return false;
    for (size_t i = 0; i < o->interrupted_disks_len; i++) {
        const WorkInterrupted *d = &o->interrupted_disks[i];
        interrupted[i] = (SourceInterrupted){.disk_key = d->disk_key, .size = d->size, .token = d->token};
    }
    for (size_t i = 0; i < o->excluded_disks_len; i++)
        excluded[i] = o->excluded_disks[i];
    SourceVcenter vcenter = {.host = o->vcenter.host,
                             .user = o->vcenter.user,
                             .password = &o->vcenter.password,
                             .thumbprint = o->vcenter.thumbprint,
                             .ca_pem = o->vcenter.ca_pem};
    SourceRequest r = {.job_id = j->spec->job_id,
                       .vm_id = o->vm_id,
                       .repository_uuid = o->repository_uuid,
                       .spec = o->source,
                       .excluded = excluded,
                       .parents = parents,
                       .parents_len = o->parent_disks_len,
                       .interrupted = interrupted,
                       .interrupted_len = o->interrupted_disks_len,
                       .vcenter = o->vcenter.host ? &vcenter : NULL,
                       .scratch = j->spec->scratch,
                       .cancel = j->spec->stop,
                       .waits = on_wait,
                       .waits_ctx = j};
    if (!ops->open(&r, &j->source, err))
        return err_context(err, "opening the source");
    if (j->source->disks_len == 0)
        return err_set(err, ERR_INVALID, "the VM has no disk to back up; look at its excluded disks");
    return true;
}

// A slip in an excluded key would back up a disk that nobody wants there.
static void say_unknown_disks(const Job *j)
{
    const WorkOrder *o = &j->order;
    for (size_t i = 0; i < o->excluded_disks_len; i++) {
        bool known = false;
        for (size_t k = 0; k < j->source->left_out_len; k++)
            known = known || str_eq(j->source->left_out[k], o->excluded_disks[i]);
        if (!known)
            log_warn("no disk has this excluded key", LOG_STR("job", j->spec->job_id),
                     LOG_STR("disk", o->excluded_disks[i]));
    }
}

static bool fill_announce(const Job *j, AnnounceDisk *disks, Announce *ret, Err *err)
{
    const Source *s = j->source;
    for (size_t i = 0; i < s->disks_len; i++) {
        const SourceDisk *d = &s->disks[i];
        disks[i] = (AnnounceDisk){.disk_key = d->key,
                                  .disk_id = d->disk_id,
                                  .label = d->label,
                                  .size = d->size,
                                  .backing_identity = d->backing_identity,
                                  .change_id = d->change_id,
                                  .tracking = d->tracking,
                                  .base_change_id = d->base_change_id,
                                  .lost = d->lost,
                                  .lost_code = d->lost_code,
                                  .estimated_bytes = d->estimated_bytes,
                                  .allocated_bytes = d->allocated_bytes,
                                  .token = d->token,
                                  .resumes = d->resumes};
    }
    char *consistency = mem_strdup(s->consistency, err);
    if (!consistency)
        return false;
    *ret = (Announce){.disks = disks,
                      .disks_len = s->disks_len,
                      .left_out = s->left_out,
                      .left_out_len = s->left_out_len,
                      .consistency = consistency,
                      .consistency_detail = s->consistency_detail};
    return true;
}

// Disks are joined by key alone; one answer for each that was announced.
static bool join_disks(Job *j, Err *err)
{
    size_t n = j->source->disks_len;
    j->disks = mem_calloc(n, sizeof(*j->disks), err);
    if (!j->disks)
        return false;
    for (size_t i = 0; i < n; i++) {
        j->disks[i].source = &j->source->disks[i];
        for (size_t k = 0; k < j->answer.disks_len; k++)
            if (str_eq(j->answer.disks[k].disk_key, j->disks[i].source->key))
                j->disks[i].answer = &j->answer.disks[k];
        if (!j->disks[i].answer)
            return err_set(err, ERR_PROTOCOL, "the hub has no export for disk %s", j->disks[i].source->key);
    }
    if (j->answer.disks_len != n)
        return err_set(err, ERR_PROTOCOL, "the hub has %zu exports for %zu disks", j->answer.disks_len, n);
    pthread_mutex_lock(&j->lock);
    j->disks_len = n;
    j->disks_known = true;
    pthread_mutex_unlock(&j->lock);
    return true;
}

// The same call again is answered like the first.
static bool announce_until_answered(Job *j, const Announce *a, Err *err)
{
    int64_t until = clock_mono_ms() + ANNOUNCE_UNTIL_MS;
    hub_api_set_timeout(j->hub, ANNOUNCE_TIMEOUT_MS);
    for (;;) {
        Err e = ERR_INIT;
        if (hub_api_announce(j->hub, j->spec->job_id, a, &j->answer, &e))
            return true;
        int status = hub_api_status(j->hub);
        bool no_answer = status == 503 || (status == 0 && (e.code == ERR_TIMEOUT || e.code == ERR_UNAVAILABLE));
        if (no_answer && clock_mono_ms() < until)
            log_warn("the announcement is repeated", LOG_STR("job", j->spec->job_id), LOG_ERR(&e));
        if (!no_answer || clock_mono_ms() >= until || !job_pause(j, REACH_PAUSE_MS)) {
            if (err->code == ERR_NONE)
                *err = e;
            return false;
        }
    }
}

static bool announce(Job *j, Err *err)
{
    cleanup_free AnnounceDisk *disks = mem_calloc(j->source->disks_len, sizeof(*disks), err);
    Announce a = {0};
    if (!disks || !fill_announce(j, disks, &a, err))
        return false;
    bool fine = announce_until_answered(j, &a, err);
    free(a.consistency);
    if (!fine)
        return err_context(err, "announcing the disks");
    if (!join_disks(j, err))
        return false;
    for (size_t i = 0; i < j->disks_len; i++) {
        log_info("disk announced", LOG_STR("job", j->spec->job_id), LOG_STR("disk", j->disks[i].source->key),
                 LOG_NUM("size", j->disks[i].source->size), LOG_STR("mode", disk_mode_name(j->disks[i].answer->mode)),
                 LOG_STR("reason", chain_reason_name(j->disks[i].answer->reason)),
                 LOG_STR("goes_on_from", j->disks[i].answer->resume ? j->order.interrupted_backup_id : ""));
        if (j->disks[i].source->lost && !str_eq(j->source->ops->type, "file")) // a file's never is
            log_warn("what changed on a disk is not known", LOG_STR("job", j->spec->job_id),
                     LOG_STR("disk", j->disks[i].source->key), LOG_STR("why", j->disks[i].source->lost));
    }
    return true;
}

// ---- the job, up to the moment before it is recorded

static bool move(Job *j, Err *err)
{
    int64_t began = clock_mono_ms();
    job_phase(j, "opening");
    if (!heartbeat_start(j, err) || !open_source(j, err) || !job_goes_on(j, err))
        return false;
    say_unknown_disks(j);
    job_phase(j, "starting");
    if (!announce(j, err) || !job_goes_on(j, err))
        return false;
    job_phase(j, "copying");
    j->opening_ms = clock_mono_ms() - began - j->queued_ms;
    if (!copy_disks(j, err))
        return false;
    if (!j->source->ops->intact(j->source, err))
        return err_context(err, "the source's frozen view did not hold");
    return job_goes_on(j, err);
}

// From here on only the answer to `complete` counts; a cancel comes too late.
static bool begin_recording(Job *j, Err *err)
{
    if (!job_goes_on(j, err))
        return false;
    pthread_mutex_lock(&j->lock);
    j->recording = true;
    pthread_mutex_unlock(&j->lock);
    job_phase(j, "completing");
    return job_goes_on(j,
                       err); // a heartbeat that was on its way may have failed the job just before
}

// ---- the end

static void report_failure(Job *j, const Err *why)
{
    Err err = ERR_INIT;
    cleanup_free char *error = mem_strdup(err_short(why), &err);
    cleanup_free char *details = mem_strdup(why->details, &err);
    WorkFailure f = {.error = error, .details = details, .cancelled = why->code == ERR_CANCELLED};
    hub_api_set_timeout(j->hub, FAIL_TIMEOUT_MS);
    hub_api_set_cancel(j->hub, NULL); // a stop must not keep the hub from hearing of it
    for (int i = 0; error && details && i < FAIL_TRIES; i++) {
        err_clear(&err);
        if (hub_api_fail(j->hub, j->spec->job_id, &f, &err))
            return;
        if (!hub_api_is_unknown(j->hub))
            break;
    }
    log_warn("the hub was not told that the job failed", LOG_STR("job", j->spec->job_id), LOG_ERR(&err));
}

static void close_source(Job *j, bool completed)
{
    Err err = ERR_INIT;
    if (j->source && !j->source->ops->close(mem_take(j->source), completed, &err))
        log_warn("the source was not left as it should be", LOG_STR("job", j->spec->job_id), LOG_ERR(&err));
}

static void fill_result(const Job *j, ClientResult *ret)
{
    *ret = (ClientResult){.disks = j->disks_len, .left_out = j->source->left_out_len};
    for (size_t i = 0; i < j->disks_len; i++)
        ret->transferred_bytes += j->disks[i].result.total.transferred_bytes;
}

// What was met on the way out is a consequence of the first error, but for the answer to `complete`. The hub goes on
// hearing of the job: a snapshot that is removed may take many minutes.
static void begin_closing(Job *j, bool recorded, Err *err)
{
    pthread_mutex_lock(&j->lock);
    if (!recorded && j->error.code != ERR_NONE)
        *err = j->error;
    j->disks_known = false; // they are the source's
    pthread_mutex_unlock(&j->lock);
    job_phase(j, WORK_PHASE_CLOSING);
}

static bool run(Job *j, ClientResult *ret, Err *err)
{
    if (!claim(j, err))
        return false; // not ours: nothing to report
    bool unknown = false, recording = false;
    bool fine = move(j, err) && begin_recording(j, err);
    if (fine) {
        recording = true;
        fine = record_job(j, &unknown, err);
    }
    if (fine) {
        fill_result(j, ret);
        heartbeat_stop(j);
    } else {
        begin_closing(j, recording, err);
    }
    // Before the hub hears of a failure: it may start the next job of this VM at once
    close_source(j, fine);
    heartbeat_stop(j);
    if (!fine && !(recording && unknown))
        report_failure(j, err);
    else if (!fine)
        (void)err_context(err, "the hub gave no clear answer, so the point may exist; the next job will tell");
    return fine;
}

bool client_backup(const ClientSpec *spec, ClientResult *ret, Err *err)
{
    Job j;
    bool fine = job_init(&j, spec, err);
    if (fine) {
        hub_api_set_cancel(j.hub, spec->stop);
        fine = run(&j, ret, err);
    }
    job_clear(&j);
    return fine;
}
