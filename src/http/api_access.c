#include "base/str.h"
#include "http/api.h"
#include "http/handlers.h"

#include <stdio.h>

// ---- who calls

#define SESSION_COOKIE "sendense_session"

// By the session of a browser, where there is one and no token.
static bool admit_session(void *ctx, HttpRequest *req, const HttpRoute *route, bool *ret_any, Err *err)
{
    const Secret *session;
    HubActor actor;
    *ret_any = false;
    if (!hub_needs_tokens(hub(ctx)) || http_request_has_token(req))
        return true;
    if (!http_request_cookie(req, SESSION_COOKIE, &session, err))
        return false;
    if (!secret_is_set(session))
        return true;
    *ret_any = true;
    bool changes = !str_eq(http_request_method(req), "GET") && !str_eq(http_request_method(req), "HEAD");
    bool ok = hub_admit_session(hub(ctx), session, http_request_csrf(req), changes, route->roles, &actor, err);
    http_request_set_actor(req, actor.name, actor.role);
    return ok;
}

bool api_admit(void *ctx, HttpRequest *req, const HttpRoute *route, Err *err)
{
    static const Secret none = {0};
    bool by_session;
    const Secret *token = &none;
    HubActor actor;
    if (route->flags & HTTP_ANYBODY)
        return true;
    if (route->flags & HTTP_OWN_TOKEN) // check_token()
        return true;
    if (!admit_session(ctx, req, route, &by_session, err) || by_session)
        return err->code == ERR_NONE;
    // the contract: without authentication a token is looked at by the calls that know one, and by no other
    if (hub_needs_tokens(hub(ctx)) && !http_request_token(req, &token, err))
        return false;
    bool ok = hub_admit(hub(ctx), token, route->roles, &actor, err);
    http_request_set_actor(req, actor.name, actor.role);
    return ok;
}

HANDLER(api_whoami)
{
    HubActor actor = {.role = http_request_role(req)[0] ? http_request_role(req) : NULL};
    (void)snprintf(actor.name, sizeof(actor.name), "%s", http_request_actor(req));
    return hub_whoami(hub(ctx), &actor, &ret->body, err);
}

// For the audit log: the role is what matters of a token, or of a user.
static bool note_role(bool ok, HttpRequest *req, const HttpResponse *ret, const char *more)
{
    char object[HTTP_OBJECT_MAX];
    if (!ok)
        return false;
    (void)snprintf(object, sizeof(object), "%s: %s%s", json_string_value(json_object_get(ret->body, "role")),
                   json_string_value(json_object_get(ret->body, "name")), more);
    http_request_set_object(req, object);
    return true;
}

HANDLER(api_token_add)
{
    static const char *const known[] = {"name", "role", "expires_in_days", NULL};
    const json_t *body;
    ret->status = 201;
    bool ok = http_request_json(req, known, &body, err) &&
        from_body(hub_token_add(hub(ctx), body, http_request_actor(req), &ret->body, err), err);
    return note_role(ok, req, ret, "");
}

HANDLER(api_token_list)
{
    (void)req;
    return hub_token_list(hub(ctx), &ret->body, err);
}

HANDLER(api_token_remove)
{
    return hub_token_remove(hub(ctx), http_request_param(req, "token_id"), &ret->body, err);
}

// ---- people

HANDLER(api_user_add)
{
    static const char *const known[] = {"name", "role", "password", NULL};
    const json_t *body;
    ret->status = 201;
    bool ok = http_request_json(req, known, &body, err) &&
        from_body(hub_user_add(hub(ctx), body, http_request_actor(req), &ret->body, err), err);
    return note_role(ok, req, ret, "");
}

HANDLER(api_user_list)
{
    (void)req;
    return hub_user_list(hub(ctx), &ret->body, err);
}

HANDLER(api_user_change)
{
    static const char *const known[] = {"role", "password", "disabled", NULL};
    const json_t *body;
    if (!http_request_json(req, known, &body, err) ||
        !from_body(hub_user_change(hub(ctx), http_request_param(req, "user_id"), body, &ret->body, err), err))
        return false;
    char more[64];
    (void)snprintf(more, sizeof(more), "%s%s", json_is_true(json_object_get(ret->body, "disabled")) ? ", disabled" : "",
                   json_object_get(body, "password") ? ", new password" : "");
    return note_role(true, req, ret, more);
}

HANDLER(api_user_remove)
{
    return hub_user_remove(hub(ctx), http_request_param(req, "user_id"), &ret->body, err);
}

// Strict: no page of another site makes the browser send it along. Secure where it came so; a browser on this machine
// may come without.
static bool set_cookie(const HttpRequest *req, const char *value, const char *more, HttpResponse *ret, Err *err)
{
    ret->cookie = mem_printf(err, SESSION_COOKIE "=%s; Path=/api/v1; HttpOnly; SameSite=Strict%s%s", value,
                             http_request_encrypted(req) ? "; Secure" : "", more);
    return ret->cookie != NULL;
}

HANDLER(api_session_begin)
{
    static const char *const known[] = {"name", "password", NULL};
    cleanup(secret_clear) Secret session = {0};
    HubActor actor = {.role = NULL};
    const json_t *body;
    ret->status = 201;
    bool ok = http_request_json(req, known, &body, err) &&
        from_body(hub_session_begin(hub(ctx), body, http_request_remote(req), &session, &actor, &ret->body, err), err);
    if (actor.name[0])
        http_request_set_actor(req, actor.name, actor.role);
    return ok && set_cookie(req, secret_reveal(&session), "", ret, err);
}

HANDLER(api_session_show)
{
    const Secret *session;
    return http_request_cookie(req, SESSION_COOKIE, &session, err) &&
        hub_session_show(hub(ctx), session, &ret->body, err);
}

HANDLER(api_session_end)
{
    const Secret *session;
    return http_request_cookie(req, SESSION_COOKIE, &session, err) &&
        hub_session_end(hub(ctx), session, &ret->body, err) && set_cookie(req, "", "; Max-Age=0", ret, err);
}

HANDLER(api_session_password)
{
    static const char *const known[] = {"old_password", "new_password", NULL};
    const Secret *session;
    const json_t *body;
    return http_request_json(req, known, &body, err) && http_request_cookie(req, SESSION_COOKIE, &session, err) &&
        from_body(hub_session_password(hub(ctx), session, body, http_request_remote(req), &ret->body, err), err);
}

HANDLER(api_audit_list)
{
    StoreTrailFilter f = {.actor = http_request_query(req, "actor"), .method = http_request_query(req, "method")};
    uint64_t after, least;
    if (!http_request_query_u64(req, "limit", 1, 1000, 100, &f.limit, err) ||
        !http_request_query_u64(req, "after", 0, INT64_MAX, 0, &after, err) ||
        !http_request_query_u64(req, "min_status", 0, 599, 0, &least, err) ||
        !http_request_query_bool(req, "newest_first", false, &f.newest_first, err))
        return false;
    f.after = (int64_t)after;
    f.status_least = (int64_t)least;
    return hub_trail_list(hub(ctx), &f, &ret->body, err);
}
