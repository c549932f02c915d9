// The client's calls.
#include "wire/hub_api_parts.h"

#define DISK_PATH_MAX 4096

// An answer that we cannot read is the hub's fault, not the caller's.
static bool bad_answer(Err *err, const char *call)
{
    if (err->code == ERR_INVALID)
        err->code = ERR_PROTOCOL;
    return err_context(err, "the hub's answer to %s", call);
}

static bool post(HubApi *h, const char *job_id, const char *call, const char *body, HttpAnswer *ret, Err *err)
{
    cleanup_free char *path = NULL;
    return hub_api_job_path(job_id, call, &path, err) && hub_api_ask(h, "POST", path, body, ret, err);
}

bool hub_api_disk_path(const char *job_id, const char *disk_key, char **ret, Err *err)
{
    StrBuf path = STR_BUF(DISK_PATH_MAX);
    cleanup_free char *disks = NULL;
    bool ok = hub_api_job_path(job_id, "disks/", &disks, err) && str_add(&path, disks, err) &&
        hub_api_segment(&path, disk_key, err) && str_add(&path, "/nbd", err);
    if (!ok) {
        str_clear(&path);
        return false;
    }
    *ret = path.s;
    return true;
}

bool hub_api_claim(HubApi *h, const char *job_id, const char *claim_uuid, WorkOrder *ret, Err *err)
{
    cleanup_free char *body = NULL;
    cleanup(http_answer_clear) HttpAnswer a = {0};
    if (!work_claim_encode(claim_uuid, &body, err) || !post(h, job_id, "claim", body, &a, err))
        return false;
    return work_order_decode(a.body, a.body_len, ret, err) || bad_answer(err, "claim");
}

bool hub_api_announce(HubApi *h, const char *job_id, const Announce *announce, AnnounceAnswer *ret, Err *err)
{
    cleanup_free char *body = NULL;
    cleanup(http_answer_clear) HttpAnswer a = {0};
    if (!announce_encode(announce, &body, err) || !post(h, job_id, "disks", body, &a, err))
        return false;
    return announce_answer_decode(a.body, a.body_len, ret, err) || bad_answer(err, "disks");
}

bool hub_api_progress(HubApi *h, const char *job_id, const WorkProgress *p, WorkProgressAnswer *ret, Err *err)
{
    cleanup_free char *body = NULL;
    cleanup(http_answer_clear) HttpAnswer a = {0};
    if (!work_progress_encode(p, &body, err) || !post(h, job_id, "progress", body, &a, err))
        return false;
    return work_progress_answer_decode(a.body, a.body_len, ret, err) || bad_answer(err, "progress");
}

bool hub_api_audit(HubApi *h, const char *job_id, const WorkAudit *audit, Err *err)
{
    cleanup_free char *body = NULL;
    cleanup(http_answer_clear) HttpAnswer a = {0};
    return work_audit_encode(audit, &body, err) && post(h, job_id, "audit", body, &a, err);
}

bool hub_api_fail(HubApi *h, const char *job_id, const WorkFailure *f, Err *err)
{
    cleanup_free char *body = NULL;
    cleanup(http_answer_clear) HttpAnswer a = {0};
    return work_failure_encode(f, &body, err) && post(h, job_id, "fail", body, &a, err);
}

// Only 200 is success here, and the error's text is the contract's.
static bool record(HubApi *h, const char *job_id, const char *call, const char *body, Err *err)
{
    cleanup_free char *path = NULL;
    cleanup(http_answer_clear) HttpAnswer a = {0};
    if (!hub_api_job_path(job_id, call, &path, err) || !hub_api_exchange(h, "POST", path, body, &a, err))
        return false;
    if (a.status == 200)
        return true;
    return err_set(err, hub_api_code(a.status), "SHA API returned status %d: %s", a.status, a.body);
}

bool hub_api_complete(HubApi *h, const char *job_id, const Completion *c, Err *err)
{
    cleanup_free char *body = NULL;
    return completion_encode(c, &body, err) && record(h, job_id, "complete", body, err);
}

bool hub_api_changeid(HubApi *h, const char *job_id, const ChangeIdReport *r, Err *err)
{
    cleanup_free char *body = NULL;
    return changeid_report_encode(r, &body, err) && record(h, job_id, "changeid", body, err);
}
