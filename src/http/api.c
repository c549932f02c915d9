#include "http/api.h"

#include "base/str.h"
#include "service/hub/hub.h"

#include <stdio.h>

#define HANDLER(name) static bool name(HttpRequest *req, void *ctx, HttpResponse *ret, Err *err)
#define BACKUP http_request_param(req, "backup_id")

static Hub *hub(void *ctx)
{
    return ctx;
}

// What a service refuses of a body's members is the body's fault, unless it has a title of its own.
static bool from_body(bool ok, Err *err)
{
    return ok || http_request_bad_body(err);
}

// What a call made, for the audit log: the answer's member.
static bool made(bool ok, HttpRequest *req, const HttpResponse *ret, const char *key)
{
    const char *object = ok ? json_string_value(json_object_get(ret->body, key)) : NULL;
    if (object)
        http_request_set_object(req, object);
    return ok;
}

HANDLER(health)
{
    (void)req;
    return hub_health(hub(ctx), &ret->body, err);
}

HANDLER(hubs)
{
    (void)req;
    return hub_hubs_list(hub(ctx), &ret->body, err);
}

HANDLER(metrics)
{
    (void)req;
    ret->type = "text/plain; version=0.0.4; charset=utf-8";
    return hub_metrics(hub(ctx), &ret->text, err);
}

HANDLER(reload)
{
    (void)req;
    if (hub_reload(hub(ctx), &ret->body, err))
        return true;
    if (err->code == ERR_USAGE) { // of the settings, not of this call
        err->code = ERR_CONFLICT;
        (void)err_title(err, "settings not usable");
    }
    return false;
}

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

HANDLER(whoami)
{
    HubActor actor = {.role = http_request_role(req)[0] ? http_request_role(req) : NULL};
    (void)snprintf(actor.name, sizeof(actor.name), "%s", http_request_actor(req));
    return hub_whoami(hub(ctx), &actor, &ret->body, err);
}

HANDLER(token_add)
{
    static const char *const known[] = {"name", "role", "expires_in_days", NULL};
    const json_t *body;
    ret->status = 201;
    bool ok = http_request_json(req, known, &body, err) &&
        from_body(hub_token_add(hub(ctx), body, http_request_actor(req), &ret->body, err), err);
    if (ok) { // a token's role is what matters of it
        char object[HTTP_OBJECT_MAX];
        (void)snprintf(object, sizeof(object), "%s: %s", json_string_value(json_object_get(ret->body, "role")),
                       json_string_value(json_object_get(ret->body, "name")));
        http_request_set_object(req, object);
    }
    return ok;
}

HANDLER(token_list)
{
    (void)req;
    return hub_token_list(hub(ctx), &ret->body, err);
}

HANDLER(token_remove)
{
    return hub_token_remove(hub(ctx), http_request_param(req, "token_id"), &ret->body, err);
}

// ---- people

HANDLER(user_add)
{
    static const char *const known[] = {"name", "role", "password", NULL};
    const json_t *body;
    ret->status = 201;
    bool ok = http_request_json(req, known, &body, err) &&
        from_body(hub_user_add(hub(ctx), body, http_request_actor(req), &ret->body, err), err);
    return made(ok, req, ret, "name");
}

HANDLER(user_list)
{
    (void)req;
    return hub_user_list(hub(ctx), &ret->body, err);
}

HANDLER(user_change)
{
    static const char *const known[] = {"role", "password", "disabled", NULL};
    const json_t *body;
    return http_request_json(req, known, &body, err) &&
        from_body(hub_user_change(hub(ctx), http_request_param(req, "user_id"), body, &ret->body, err), err);
}

HANDLER(user_remove)
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

HANDLER(session_begin)
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

HANDLER(session_show)
{
    const Secret *session;
    return http_request_cookie(req, SESSION_COOKIE, &session, err) &&
        hub_session_show(hub(ctx), session, &ret->body, err);
}

HANDLER(session_end)
{
    const Secret *session;
    return http_request_cookie(req, SESSION_COOKIE, &session, err) &&
        hub_session_end(hub(ctx), session, &ret->body, err) && set_cookie(req, "", "; Max-Age=0", ret, err);
}

HANDLER(session_password)
{
    static const char *const known[] = {"old_password", "new_password", NULL};
    const Secret *session;
    const json_t *body;
    return http_request_json(req, known, &body, err) && http_request_cookie(req, SESSION_COOKIE, &session, err) &&
        from_body(hub_session_password(hub(ctx), session, body, http_request_remote(req), &ret->body, err), err);
}

HANDLER(audit_list)
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

// ---- the hub's own database

HANDLER(database_backup)
{
    (void)req;
    ret->status = 201;
    return hub_database_backup(hub(ctx), &ret->body, err);
}

HANDLER(database_backups)
{
    (void)req;
    return hub_database_backup_list(hub(ctx), &ret->body, err);
}

// ---- repositories

HANDLER(repository_add)
{
    static const char *const known[] = {"name", "path", "cluster_size", "hash_algorithm", "compression", NULL};
    const json_t *body;
    ret->status = 201;
    bool ok = http_request_json(req, known, &body, err) &&
        from_body(hub_repository_add(hub(ctx), body, &ret->body, err), err);
    return made(ok, req, ret, "name");
}

HANDLER(repository_list)
{
    (void)req;
    return hub_repository_list(hub(ctx), &ret->body, err);
}

HANDLER(repository_show)
{
    return hub_repository_show(hub(ctx), http_request_param(req, "repository_id"), &ret->body, err);
}

HANDLER(repository_remove)
{
    return hub_repository_remove(hub(ctx), http_request_param(req, "repository_id"), &ret->body, err);
}

HANDLER(repository_scan)
{
    return hub_repository_scan(hub(ctx), http_request_param(req, "repository_id"), &ret->body, err);
}

// ---- sources

#define SOURCE http_request_param(req, "source_id")

HANDLER(source_add)
{
    static const char *const known[] = {"name", "type", "vcenter", "user", "password", "thumbprint", "ca_pem", NULL};
    const json_t *body;
    ret->status = 201;
    bool ok =
        http_request_json(req, known, &body, err) && from_body(hub_source_add(hub(ctx), body, &ret->body, err), err);
    return made(ok, req, ret, "name");
}

HANDLER(source_list)
{
    (void)req;
    return hub_source_list(hub(ctx), &ret->body, err);
}

HANDLER(source_show)
{
    return hub_source_show(hub(ctx), SOURCE, &ret->body, err);
}

HANDLER(source_change)
{
    static const char *const known[] = {"vcenter", "user", "password", "thumbprint", "ca_pem", NULL};
    const json_t *body;
    return http_request_json(req, known, &body, err) &&
        from_body(hub_source_change(hub(ctx), SOURCE, body, &ret->body, err), err);
}

HANDLER(source_remove)
{
    return hub_source_remove(hub(ctx), SOURCE, &ret->body, err);
}

HANDLER(source_certificate)
{
    static const char *const known[] = {"vcenter", NULL};
    const json_t *body;
    return http_request_json(req, known, &body, err) &&
        from_body(hub_source_certificate(hub(ctx), body, &ret->body, err), err);
}

HANDLER(source_test)
{
    return hub_source_test(hub(ctx), SOURCE, &ret->body, err);
}

HANDLER(source_vms)
{
    return hub_source_vms(hub(ctx), SOURCE, &ret->body, err);
}

// ---- VMs

HANDLER(vm_add)
{
    static const char *const known[] = {"name", "source", "excluded_disks", "audit_blocks", "adopt", NULL};
    const json_t *body;
    ret->status = 201;
    bool ok = http_request_json(req, known, &body, err) && from_body(hub_vm_add(hub(ctx), body, &ret->body, err), err);
    return made(ok, req, ret, "name");
}

HANDLER(vm_list)
{
    bool all;
    return http_request_query_bool(req, "all", false, &all, err) && hub_vm_list(hub(ctx), all, &ret->body, err);
}

HANDLER(vm_show)
{
    return hub_vm_show(hub(ctx), http_request_param(req, "vm_id"), &ret->body, err);
}

HANDLER(vm_change)
{
    static const char *const known[] = {"name", "source", "excluded_disks", "audit_blocks", NULL};
    const json_t *body;
    return http_request_json(req, known, &body, err) &&
        from_body(hub_vm_change(hub(ctx), http_request_param(req, "vm_id"), body, &ret->body, err), err);
}

HANDLER(vm_remove)
{
    return hub_vm_remove(hub(ctx), http_request_param(req, "vm_id"), &ret->body, err);
}

// ---- what is left over

HANDLER(clean)
{
    static const char *const known[] = {"dry_run", "exports", "interrupted", "jobs", "older_than_minutes", NULL};
    const json_t *body;
    return http_request_json(req, known, &body, err) && from_body(hub_clean(hub(ctx), body, &ret->body, err), err);
}

HANDLER(vm_clean)
{
    static const char *const known[] = {"dry_run", "bitmaps", NULL};
    const json_t *body;
    return http_request_json(req, known, &body, err) &&
        from_body(hub_clean_vm(hub(ctx), http_request_param(req, "vm_id"), body, &ret->body, err), err);
}

// ---- backups

// Whoever plays the client gets the job's token, and with it the password of the VM's source.
static bool may_play_client(const HttpRequest *req, const json_t *body, Err *err)
{
    if (!json_is_false(json_object_get(body, "start_client")) ||
        !str_eq(http_request_role(req), role_name(ROLE_OPERATOR)))
        return true;
    (void)err_set(err, ERR_FORBIDDEN,
                  "a job without a client of the hub's needs admin or node; this token is an operator's");
    return err_title(err, "not allowed");
}

HANDLER(backup_start)
{
    const json_t *body; // the contract's call: unknown members are ignored
    ret->status = 201;
    bool ok = http_request_json(req, NULL, &body, err) && may_play_client(req, body, err) &&
        from_body(hub_backup_start(hub(ctx), body, &ret->body, err), err);
    return made(ok, req, ret, "backup_id");
}

HANDLER(backup_list)
{
    StoreBackupFilter f = {.vm_name = http_request_query(req, "vm_name"), .status = http_request_query(req, "status")};
    return http_request_query_u64(req, "limit", 1, 1000, 100, &f.limit, err) &&
        http_request_query_u64(req, "offset", 0, STORE_COUNT_MAX, 0, &f.offset, err) &&
        hub_backup_list(hub(ctx), &f, http_request_query(req, "repository_id"), http_request_query(req, "after"),
                        &ret->body, err);
}

HANDLER(backup_show)
{
    return hub_backup_show(hub(ctx), BACKUP, &ret->body, err);
}

HANDLER(backup_cancel)
{
    ret->status = 202;
    return hub_backup_cancel(hub(ctx), BACKUP, &ret->body, err);
}

HANDLER(backup_delete)
{
    bool with_dependents;
    return http_request_query_bool(req, "with_dependents", false, &with_dependents, err) &&
        hub_backup_delete(hub(ctx), BACKUP, with_dependents, &ret->body, err);
}

HANDLER(backup_verification)
{
    static const char *const known[] = {"result", "disk_id", "offset", "details", NULL};
    const json_t *body;
    return http_request_json(req, known, &body, err) &&
        from_body(hub_backup_verification(hub(ctx), BACKUP, body, &ret->body, err), err);
}

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

HANDLER(backup_events)
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

HANDLER(job_claim)
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

HANDLER(job_disks)
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

HANDLER(job_progress)
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

HANDLER(job_audit)
{
    size_t n;
    const char *text = http_request_body(req, &n);
    WorkAudit audit;
    return check_token(req, ctx, BACKUP, true, err) && from_body(work_audit_decode(text, n, &audit, err), err) &&
        hub_job_audit(hub(ctx), BACKUP, &audit, &ret->body, err);
}

HANDLER(job_nbd)
{
    return check_token(req, ctx, BACKUP, true, err) && http_request_is_upgrade(req, err) &&
        hub_job_disk_connect(hub(ctx), BACKUP, http_request_param(req, "disk_key"), &ret->relay, err);
}

HANDLER(job_fail)
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

HANDLER(backup_complete)
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

// ---- exports

HANDLER(export_start)
{
    static const char *const known[] = {"backup_id", "disk", "purpose", NULL};
    const json_t *body;
    ret->status = 201;
    bool ok =
        http_request_json(req, known, &body, err) && from_body(hub_export_start(hub(ctx), body, &ret->body, err), err);
    return made(ok, req, ret, "export_id");
}

HANDLER(export_list)
{
    (void)req;
    return hub_export_list(hub(ctx), &ret->body, err);
}

HANDLER(export_end)
{
    return hub_export_end(hub(ctx), http_request_param(req, "export_id"), &ret->body, err);
}

HANDLER(export_nbd)
{
    return http_request_is_upgrade(req, err) &&
        hub_export_connect(hub(ctx), http_request_param(req, "export_id"), &ret->relay, err);
}

// ---- replications

HANDLER(replication_add)
{
    static const char *const known[] = {"vm_name", "target", "job_id", NULL};
    const json_t *body;
    ret->status = 201;
    bool ok = http_request_json(req, known, &body, err) &&
        from_body(hub_replication_add(hub(ctx), body, &ret->body, err), err);
    return made(ok, req, ret, "job_id");
}

HANDLER(replication_list)
{
    (void)req;
    return hub_replication_list(hub(ctx), &ret->body, err);
}

HANDLER(replication_show)
{
    return hub_replication_show(hub(ctx), http_request_param(req, "job_id"), &ret->body, err);
}

HANDLER(replication_changeid)
{
    size_t n;
    const char *text = http_request_body(req, &n);
    ChangeIdReport report = {0};
    const Secret *token;
    if (!changeid_report_decode(text, n, &report, err))
        return false;
    // without authentication one that is sent cannot be right: replications have none
    bool ok = http_request_token(req, &token, err) &&
        (hub_needs_tokens(hub(ctx)) || !secret_is_set(token) ||
         err_set(err, ERR_FORBIDDEN, "the token is not this job's")) &&
        hub_replication_record(hub(ctx), http_request_param(req, "job_id"), &report, &ret->body, err);
    changeid_report_clear(&report);
    return ok;
}

HANDLER(replication_claim)
{
    (void)ctx;
    (void)ret;
    return err_set(err, ERR_UNSUPPORTED, "replication job %s: the hub records replications and does not run them yet",
                   http_request_param(req, "job_id"));
}

#define V1 "/api/v1"

static const HttpRoute routes[] = {
    {"GET", V1 "/health", health, HTTP_ANYBODY, NULL, 0},
    {"GET", V1 "/hubs", hubs, 0, NULL, MAY_LOOK},
    {"GET", V1 "/metrics", metrics, 0, NULL, MAY_LOOK},
    {"POST", V1 "/reload", reload, 0, NULL, MAY_ADMIN},
    {"GET", V1 "/whoami", whoami, 0, NULL, MAY_ANY_ROLE},
    {"POST", V1 "/tokens", token_add, HTTP_BODY, NULL, MAY_ADMIN},
    {"GET", V1 "/tokens", token_list, 0, NULL, MAY_ADMIN},
    {"DELETE", V1 "/tokens/{token_id}", token_remove, 0, NULL, MAY_ADMIN},
    {"POST", V1 "/users", user_add, HTTP_BODY, NULL, MAY_ADMIN},
    {"GET", V1 "/users", user_list, 0, NULL, MAY_ADMIN},
    {"PATCH", V1 "/users/{user_id}", user_change, HTTP_BODY, NULL, MAY_ADMIN},
    {"DELETE", V1 "/users/{user_id}", user_remove, 0, NULL, MAY_ADMIN},
    {"POST", V1 "/session", session_begin, HTTP_BODY | HTTP_ANYBODY, NULL, 0},
    {"GET", V1 "/session", session_show, 0, NULL, MAY_ANY_ROLE},
    {"DELETE", V1 "/session", session_end, 0, NULL, MAY_ANY_ROLE},
    {"POST", V1 "/session/password", session_password, HTTP_BODY, NULL, MAY_ANY_ROLE},
    {"GET", V1 "/audit", audit_list, 0, "actor method min_status after limit newest_first", MAY_ADMIN},
    {"POST", V1 "/database/backups", database_backup, 0, NULL, MAY_ADMIN},
    {"GET", V1 "/database/backups", database_backups, 0, NULL, MAY_LOOK},
    {"POST", V1 "/repositories", repository_add, HTTP_BODY, NULL, MAY_ADMIN},
    {"GET", V1 "/repositories", repository_list, 0, NULL, MAY_LOOK},
    {"GET", V1 "/repositories/{repository_id}", repository_show, 0, NULL, MAY_LOOK},
    {"DELETE", V1 "/repositories/{repository_id}", repository_remove, 0, NULL, MAY_ADMIN},
    {"POST", V1 "/repositories/{repository_id}/scan", repository_scan, 0, NULL, MAY_OPERATE},
    {"POST", V1 "/sources", source_add, HTTP_BODY, NULL, MAY_ADMIN},
    {"GET", V1 "/sources", source_list, 0, NULL, MAY_LOOK},
    {"POST", V1 "/sources/certificate", source_certificate, HTTP_BODY, NULL, MAY_ADMIN},
    {"GET", V1 "/sources/{source_id}", source_show, 0, NULL, MAY_LOOK},
    {"PATCH", V1 "/sources/{source_id}", source_change, HTTP_BODY, NULL, MAY_ADMIN},
    {"DELETE", V1 "/sources/{source_id}", source_remove, 0, NULL, MAY_ADMIN},
    {"POST", V1 "/sources/{source_id}/test", source_test, 0, NULL, MAY_OPERATE},
    {"GET", V1 "/sources/{source_id}/vms", source_vms, 0, NULL, MAY_OPERATE},
    {"POST", V1 "/vms", vm_add, HTTP_BODY, NULL, MAY_ADMIN},
    {"GET", V1 "/vms", vm_list, 0, "all", MAY_ANY_ROLE},
    {"GET", V1 "/vms/{vm_id}", vm_show, 0, NULL, MAY_ANY_ROLE},
    {"PATCH", V1 "/vms/{vm_id}", vm_change, HTTP_BODY, NULL, MAY_ADMIN},
    {"POST", V1 "/vms/{vm_id}/clean", vm_clean, HTTP_BODY, NULL, MAY_ADMIN},
    {"POST", V1 "/maintenance/clean", clean, HTTP_BODY, NULL, MAY_ADMIN},
    {"DELETE", V1 "/vms/{vm_id}", vm_remove, 0, NULL, MAY_ADMIN},
    {"POST", V1 "/backups", backup_start, HTTP_BODY, NULL, MAY_RECORD},
    {"GET", V1 "/backups", backup_list, 0, "vm_name repository_id status limit offset after", MAY_LOOK},
    {"GET", V1 "/backups/{backup_id}", backup_show, 0, NULL, MAY_ANY_ROLE},
    {"DELETE", V1 "/backups/{backup_id}", backup_delete, 0, "with_dependents", MAY_ADMIN},
    {"GET", V1 "/backups/{backup_id}/events", backup_events, 0, NULL, MAY_LOOK},
    {"POST", V1 "/backups/{backup_id}/cancel", backup_cancel, 0, NULL, MAY_OPERATE},
    {"POST", V1 "/backups/{backup_id}/verification", backup_verification, HTTP_BODY, NULL, MAY_OPERATE},
    {"POST", V1 "/backups/{backup_id}/claim", job_claim, HTTP_BODY | HTTP_OWN_TOKEN, NULL, 0},
    {"POST", V1 "/backups/{backup_id}/disks", job_disks, HTTP_BODY | HTTP_OWN_TOKEN, NULL, 0},
    {"GET", V1 "/backups/{backup_id}/disks/{disk_key}/nbd", job_nbd, HTTP_RELAY | HTTP_OWN_TOKEN, NULL, 0},
    {"POST", V1 "/backups/{backup_id}/progress", job_progress, HTTP_BODY | HTTP_OWN_TOKEN | HTTP_OFTEN, NULL, 0},
    {"POST", V1 "/backups/{backup_id}/audit", job_audit, HTTP_BODY | HTTP_OWN_TOKEN, NULL, 0},
    {"POST", V1 "/backups/{backup_id}/fail", job_fail, HTTP_BODY | HTTP_OWN_TOKEN, NULL, 0},
    {"POST", V1 "/backups/{backup_id}/complete", backup_complete, HTTP_BODY | HTTP_OWN_TOKEN, NULL, 0},
    {"POST", V1 "/exports", export_start, HTTP_BODY, NULL, MAY_OPERATE},
    {"GET", V1 "/exports", export_list, 0, NULL, MAY_LOOK},
    {"GET", V1 "/exports/{export_id}/nbd", export_nbd, HTTP_RELAY, NULL, MAY_OPERATE},
    {"DELETE", V1 "/exports/{export_id}", export_end, 0, NULL, MAY_OPERATE},
    {"POST", V1 "/replications", replication_add, HTTP_BODY, NULL, MAY_OPERATE},
    {"GET", V1 "/replications", replication_list, 0, NULL, MAY_ANY_ROLE},
    {"GET", V1 "/replications/{job_id}", replication_show, 0, NULL, MAY_ANY_ROLE},
    {"POST", V1 "/replications/{job_id}/changeid", replication_changeid, HTTP_BODY, NULL, MAY_RECORD},
    {"POST", V1 "/replications/{job_id}/claim", replication_claim, HTTP_BODY, NULL, MAY_RECORD},
};

HttpRoutes api_routes(void)
{
    return (HttpRoutes){routes, ARRAY_LEN(routes)};
}
