// Looks whether tracking told the truth, and tells the hub. docs/internals/audit.md.
#include "base/clock.h"
#include "base/log.h"
#include "service/client/job.h"

#include <poll.h>

#define TIMEOUT_MS 15000
#define REPORT_UNTIL_MS (10 * 60000) // a hub that is away for so long loses the job
#define REPORT_PAUSE_MS 1000
#define ALARM_TRIES 10 // also where the job has failed of something else, and is to end soon

// What the audit of one disk may take: a share of what its copy took, and of its part of the job's opening. No limit
// where all that was left out of a full was left out on the hypervisor's word.
static int64_t until(const Job *j, const Blocks *from, int64_t copied_ms)
{
    unsigned percent = from->zeros_on_word ? 0 : j->order.audit_percent;
    int64_t spent = copied_ms + j->opening_ms / (int64_t)MAX(1, j->disks_len);
    return percent == 0 ? 0 : clock_mono_ms() + spent * percent / 100;
}

// The same call again is answered the same. A HubApi of its own: the job's belongs to the main thread.
static bool report(Job *j, const WorkAudit *a, Err *err)
{
    HubApi *hub = NULL;
    bool alarm = a->figures.wrong > 0;
    int64_t give_up = clock_mono_ms() + REPORT_UNTIL_MS;
    if (!hub_api_new(j->spec->hub_url, j->spec->token, j->spec->trust, &hub, err))
        return false;
    hub_api_set_timeout(hub, TIMEOUT_MS);
    hub_api_set_cancel(hub, alarm ? NULL : j->spec->stop);
    bool fine;
    for (int tries = 1;; tries++) {
        Err e = ERR_INIT;
        fine = hub_api_audit(hub, j->spec->job_id, a, &e);
        bool again = !fine && hub_api_is_unknown(hub) && e.code != ERR_CANCELLED && clock_mono_ms() < give_up;
        if (again)
            log_warn("the audit is reported again", LOG_STR("job", j->spec->job_id), LOG_ERR(&e));
        bool goes_on = again && job_pause(j, REPORT_PAUSE_MS);
        if (again && !goes_on && alarm && tries < ALARM_TRIES) {
            (void)poll(NULL, 0, REPORT_PAUSE_MS); // nothing tells when the hub is there
            goes_on = true;
        }
        if (!goes_on) {
            if (!fine && err->code == ERR_NONE)
                *err = e;
            break;
        }
    }
    hub_api_free(hub);
    return fine || err_context(err, "telling the hub of the audit");
}

bool audit_disk(Job *j, const JobDisk *d, Audit *audit, Blocks *from, const MoverKnown *known, int64_t copied_ms,
                AuditResult *ret, Err *err)
{
    AuditRun run = {.from = from, .known = known, .until_ms = until(j, from, copied_ms), .cancel = j->spec->stop};
    if (!audit_run(audit, &run, ret, err))
        return false;
    const AuditFigures *f = &ret->figures;
    log_info("unchanged blocks audited", LOG_STR("job", j->spec->job_id), LOG_STR("disk", d->source->key),
             LOG_NUM("unchanged_blocks", f->unchanged), LOG_NUM("checked_blocks", f->checked),
             LOG_NUM("wrong_blocks", f->wrong), LOG_NUM("at_most_ppm", audit_at_most_ppm(f)));
    WorkAudit a = {.disk_id = d->answer->disk_id, .figures = *f, .wrong_at = ret->wrong_at};
    return report(j, &a, err);
}
