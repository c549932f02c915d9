// Hands the change IDs to the hub. A time-out or a 5xx says nothing about whether the point was recorded, so the call,
// which is idempotent, is repeated (safety rule 15).
#include "base/clock.h"
#include "base/log.h"
#include "service/client/job.h"

#define TIMEOUT_MS 60000 // sealing and syncing large images takes its time
#define REPEAT_FIRST_MS 500
#define REPEAT_MAX_MS 15000

typedef struct Call {
    const Completion *completion; // of a backup, or
    const ChangeIdReport *report; // of one disk of a replication
} Call;

static bool call_once(Job *j, const Call *c, Err *err)
{
    return c->completion ? hub_api_complete(j->hub, j->spec->job_id, c->completion, err)
                         : hub_api_changeid(j->hub, j->spec->job_id, c->report, err);
}

static bool may_repeat(const Job *j, const Err *err)
{
    return hub_api_is_unknown(j->hub) && err->code != ERR_NO_MEMORY && err->code != ERR_USAGE &&
        err->code != ERR_CANCELLED;
}

static bool call_until_clear(Job *j, const Call *c, bool *ret_unknown, Err *err)
{
    int64_t until = clock_mono_ms() + (int64_t)j->spec->record_s * 1000;
    int pause = REPEAT_FIRST_MS;
    for (;;) {
        Err e = ERR_INIT;
        if (call_once(j, c, &e))
            return true;
        bool repeat = may_repeat(j, &e) && clock_mono_ms() < until;
        if (repeat)
            log_warn("no clear answer; the call is repeated", LOG_STR("job", j->spec->job_id), LOG_ERR(&e));
        if (!repeat || !job_pause(j, pause)) {
            if (err->code == ERR_NONE)
                *err = e;
            *ret_unknown = hub_api_is_unknown(j->hub);
            return false;
        }
        pause = MIN(2 * pause, REPEAT_MAX_MS);
    }
}

static bool log_call(const Job *j, const char *api, const char *change_id, Err *err)
{
    cleanup_free char *url = hub_api_record_url(j->hub, j->spec->job_id, err);
    if (!url)
        return false;
    log_info("Storing ChangeID through the SHA API", LOG_STR("job", j->spec->job_id), LOG_STR("api", api),
             LOG_STR("url", url), LOG_STR("change_id", change_id));
    return true;
}

static void log_stored(const Job *j, const char *change_id)
{
    log_info("Successfully stored ChangeID in SHA database", LOG_STR("job", j->spec->job_id),
             LOG_STR("change_id", change_id));
}

// The VM's first disk is the hub's number 0, or the lowest there is: not the first that the source named.
static const JobDisk *first_disk(const Job *j)
{
    const JobDisk *first = &j->disks[0];
    for (size_t i = 1; i < j->disks_len; i++)
        if (j->disks[i].answer->disk_no < first->answer->disk_no)
            first = &j->disks[i];
    return first;
}

static bool record_backup(Job *j, bool *ret_unknown, Err *err)
{
    cleanup_free CompletionDisk *disks = mem_calloc(j->disks_len, sizeof(*disks), err);
    if (!disks)
        return false;
    Completion c = {.change_id = first_disk(j)->source->change_id, .disks = disks, .disks_len = j->disks_len};
    for (size_t i = 0; i < j->disks_len; i++) {
        const JobDisk *d = &j->disks[i];
        const Coverage *sent = &d->result.coverage;
        disks[i] = (CompletionDisk){.disk_id = d->answer->disk_id,
                                    .change_id = d->source->change_id,
                                    .bytes_transferred = d->result.total.transferred_bytes,
                                    .tracking = d->source->tracking,
                                    .have_coverage = true,
                                    .extents = sent->extents,
                                    .covered_bytes = sent->bytes,
                                    .digest = sent->digest,
                                    .areas = d->result.areas,
                                    .area_bytes = d->result.area_bytes,
                                    .read_bytes = d->result.total.changed_bytes + d->audited_bytes};
        c.bytes_transferred += d->result.total.transferred_bytes;
    }
    Call call = {.completion = &c};
    if (!log_call(j, "backup completion", c.change_id, err) || !call_until_clear(j, &call, ret_unknown, err))
        return false;
    log_stored(j, c.change_id);
    return true;
}

static bool record_replication(Job *j, bool *ret_unknown, Err *err)
{
    bool with_disk = str_starts(j->spec->job_id, "replication-");
    for (size_t i = 0; i < j->disks_len; i++) {
        const JobDisk *d = &j->disks[i];
        ChangeIdReport r = {.change_id = d->source->change_id,
                            .have_disk_id = with_disk,
                            .disk_id = d->answer->disk_id,
                            .bytes_transferred = d->result.total.transferred_bytes};
        Call call = {.report = &r};
        if (!log_call(j, "replication change ID", r.change_id, err) || !call_until_clear(j, &call, ret_unknown, err))
            return false;
        log_stored(j, r.change_id);
    }
    return true;
}

bool record_job(Job *j, bool *ret_unknown, Err *err)
{
    *ret_unknown = false;
    hub_api_set_timeout(j->hub, TIMEOUT_MS);
    return hub_api_is_backup(j->spec->job_id) ? record_backup(j, ret_unknown, err)
                                              : record_replication(j, ret_unknown, err);
}
