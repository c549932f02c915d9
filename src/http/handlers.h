// What the handlers of api.c share, and those of its neighbours. Private to http/.
#pragma once

#include "http/route.h"
#include "service/hub/hub.h"

#define HANDLER(name) bool name(HttpRequest *req, void *ctx, HttpResponse *ret, Err *err)
#define BACKUP http_request_param(req, "backup_id")

static inline Hub *hub(void *ctx)
{
    return ctx;
}

// What a service refuses of a body's members is the body's fault, unless it has a title of its own.
static inline bool from_body(bool ok, Err *err)
{
    return ok || http_request_bad_body(err);
}

// What a call made, for the audit log: the answer's member.
static inline bool made(bool ok, HttpRequest *req, const HttpResponse *ret, const char *key)
{
    const char *object = ok ? json_string_value(json_object_get(ret->body, key)) : NULL;
    if (object)
        http_request_set_object(req, object);
    return ok;
}

// api_access.c: callers, tokens, people, the audit log
HANDLER(api_whoami);
HANDLER(api_token_add);
HANDLER(api_token_list);
HANDLER(api_token_remove);
HANDLER(api_user_add);
HANDLER(api_user_list);
HANDLER(api_user_change);
HANDLER(api_user_remove);
HANDLER(api_session_begin);
HANDLER(api_session_show);
HANDLER(api_session_end);
HANDLER(api_session_password);
HANDLER(api_audit_list);

// api_job.c: a client's job, and the stream of its state
HANDLER(api_backup_events);
HANDLER(api_job_claim);
HANDLER(api_job_disks);
HANDLER(api_job_progress);
HANDLER(api_job_audit);
HANDLER(api_job_nbd);
HANDLER(api_job_fail);
HANDLER(api_backup_complete);
