#include "base/str.h"
#include "http/handlers.h"

// A stream of a backup's state, as it changes.
typedef struct Events {
    Hub *hub;
    char *id, *last;
} Events;

static bool events_next(void *ctx, StrBuf *out, bool *end, Err *err)
{
    Events *e = ctx;
    json_t *view = NULL;
    char *text = NULL;
    bool final = false;
    // the state first: a view that is older than it would end the stream one event early
    bool ok = hub_backup_is_final(e->hub, e->id, &final, err) && hub_backup_show(e->hub, e->id, &view, err) &&
        codec_json_dump(view, &text, err);
    json_decref(view);
    if (ok && (final || !e->last || !str_eq(text, e->last)))
        ok = str_addf(out, err, "event: %s\ndata: %s\n\n", final ? "end" : "progress", text);
    if (!ok) {
        free(text);
        return false;
    }
    free(e->last);
    e->last = text;
    *end = final;
    return true;
}

static void events_close(void *ctx)
{
    Events *e = ctx;
    free(e->id);
    free(e->last);
    free(e);
}

HANDLER(api_backup_events)
{
    bool final;
    if (!hub_backup_is_final(hub(ctx), BACKUP, &final, err)) // 404 before the stream begins
        return false;
    Events *e = mem_calloc(1, sizeof(*e), err);
    if (!e)
        return false;
    e->hub = hub(ctx);
    e->id = mem_strdup(BACKUP, err);
    if (!e->id) {
        free(e);
        return false;
    }
    ret->stream = (HttpStream){.next = events_next, .close = events_close, .ctx = e};
    return true;
}

// ---- the client's calls

static bool check_token(HttpRequest *req, void *ctx, const char *id, bool required, Err *err)
{
    const Secret *token;
    if (!http_request_token(req, &token, err) || !hub_job_check_token(hub(ctx), id, token, required, err))
        return false;
    if (secret_is_set(token))
        http_request_set_actor(req, "job", "job"); // its ID is in the path
    return true;
}

// A codec's text as the answer's JSON.
static bool answer_text(bool ok, char *text, HttpResponse *ret, Err *err)
{
    ok = ok && codec_json_parse(text, strlen(text), WORK_BODY_MAX, &ret->body, err);
    free(text);
    return ok;
}

HANDLER(api_job_claim)
{
    size_t n;
    const char *text = http_request_body(req, &n);
    char claim[37];
    char *order_text = NULL;
    WorkOrder order = {0};
    if (!check_token(req, ctx, BACKUP, true, err) || !from_body(work_claim_decode(text, n, claim, err), err) ||
        !hub_job_claim(hub(ctx), BACKUP, claim, &order, err))
        return false;
    bool ok = work_order_encode(&order, &order_text, err);
    work_order_clear(&order);
    return answer_text(ok, order_text, ret, err);
}

HANDLER(api_job_disks)
{
    size_t n;
    const char *text = http_request_body(req, &n);
    char *answer = NULL;
    Announce announced = {0};
    AnnounceAnswer targets = {0};
    if (!check_token(req, ctx, BACKUP, true, err) || !from_body(announce_decode(text, n, &announced, err), err))
        return false;
    bool ok =
        hub_job_announce(hub(ctx), BACKUP, &announced, &targets, err) && announce_answer_encode(&targets, &answer, err);
    announce_clear(&announced);
    announce_answer_clear(&targets);
    return answer_text(ok, answer, ret, err);
}

HANDLER(api_job_progress)
{
    size_t n;
    const char *text = http_request_body(req, &n);
    char *answer = NULL;
    WorkProgress progress = {0};
    WorkProgressAnswer said;
    if (!check_token(req, ctx, BACKUP, true, err) || !from_body(work_progress_decode(text, n, &progress, err), err))
        return false;
    bool ok =
        hub_job_progress(hub(ctx), BACKUP, &progress, &said, err) && work_progress_answer_encode(&said, &answer, err);
    work_progress_clear(&progress);
    return answer_text(ok, answer, ret, err);
}

HANDLER(api_job_audit)
{
    size_t n;
    const char *text = http_request_body(req, &n);
    WorkAudit audit;
    return check_token(req, ctx, BACKUP, true, err) && from_body(work_audit_decode(text, n, &audit, err), err) &&
        hub_job_audit(hub(ctx), BACKUP, &audit, &ret->body, err);
}

HANDLER(api_job_nbd)
{
    return check_token(req, ctx, BACKUP, true, err) && http_request_is_upgrade(req, err) &&
        hub_job_disk_connect(hub(ctx), BACKUP, http_request_param(req, "disk_key"), &ret->relay, err);
}

HANDLER(api_job_fail)
{
    size_t n;
    const char *text = http_request_body(req, &n);
    WorkFailure failure = {0};
    if (!check_token(req, ctx, BACKUP, true, err) || !from_body(work_failure_decode(text, n, &failure, err), err))
        return false;
    bool ok = hub_job_fail(hub(ctx), BACKUP, &failure, &ret->body, err);
    work_failure_clear(&failure);
    return ok;
}

HANDLER(api_backup_complete)
{
    size_t n;
    const char *text = http_request_body(req, &n);
    Completion c = {0};
    // the contract: the body is checked before the job is looked up
    if (!completion_decode(text, n, &c, err))
        return false;
    bool ok = check_token(req, ctx, BACKUP, hub_needs_tokens(hub(ctx)), err) &&
        from_body(hub_job_complete(hub(ctx), BACKUP, &c, &ret->body, err), err);
    completion_clear(&c);
    if (!ok && err_http(err->code) >= 500) { // the contract's one word for whatever the hub failed at
        err->code = ERR_INTERNAL;
        (void)err_title(err, "failed to complete backup");
    }
    return ok;
}
