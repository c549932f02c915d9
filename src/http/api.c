#include "http/api.h"

#include "base/str.h"
#include "http/handlers.h"

#include <stdio.h>

static HANDLER(health)
{
    (void)req;
    return hub_health(hub(ctx), &ret->body, err);
}

static HANDLER(hubs)
{
    (void)req;
    return hub_hubs_list(hub(ctx), &ret->body, err);
}

static HANDLER(metrics)
{
    (void)req;
    ret->type = "text/plain; version=0.0.4; charset=utf-8";
    return hub_metrics(hub(ctx), &ret->text, err);
}

static HANDLER(reload)
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

// ---- the hub's own database

static HANDLER(database_backup)
{
    (void)req;
    ret->status = 201;
    return hub_database_backup(hub(ctx), &ret->body, err);
}

static HANDLER(database_backups)
{
    (void)req;
    return hub_database_backup_list(hub(ctx), &ret->body, err);
}

// ---- repositories

static HANDLER(repository_add)
{
    static const char *const known[] = {"name", "path", "cluster_size", "hash_algorithm", "compression", NULL};
    const json_t *body;
    ret->status = 201;
    bool ok = http_request_json(req, known, &body, err) &&
        from_body(hub_repository_add(hub(ctx), body, &ret->body, err), err);
    return made(ok, req, ret, "name");
}

static HANDLER(repository_list)
{
    (void)req;
    return hub_repository_list(hub(ctx), &ret->body, err);
}

static HANDLER(repository_show)
{
    return hub_repository_show(hub(ctx), http_request_param(req, "repository_id"), &ret->body, err);
}

static HANDLER(repository_remove)
{
    return hub_repository_remove(hub(ctx), http_request_param(req, "repository_id"), &ret->body, err);
}

static HANDLER(repository_scan)
{
    return hub_repository_scan(hub(ctx), http_request_param(req, "repository_id"), &ret->body, err);
}

// ---- sources

#define SOURCE http_request_param(req, "source_id")

// For the audit log: which members a change named. All of them are known ones, which fit.
static bool note_members(HttpRequest *req, const json_t *body)
{
    char object[HTTP_OBJECT_MAX] = "";
    const char *name;
    json_t *value;
    size_t n = 0;
    json_object_foreach((json_t *)(uintptr_t)body, name, value)
    {
        n += (size_t)snprintf(object + n, sizeof(object) - n, "%s%s", n ? ", " : "", name);
    }
    http_request_set_object(req, object);
    return true;
}

static HANDLER(source_add)
{
    static const char *const known[] = {"name", "type", "vcenter", "user", "password", "thumbprint", "ca_pem", NULL};
    const json_t *body;
    ret->status = 201;
    bool ok =
        http_request_json(req, known, &body, err) && from_body(hub_source_add(hub(ctx), body, &ret->body, err), err);
    return made(ok, req, ret, "name");
}

static HANDLER(source_list)
{
    (void)req;
    return hub_source_list(hub(ctx), &ret->body, err);
}

static HANDLER(source_show)
{
    return hub_source_show(hub(ctx), SOURCE, &ret->body, err);
}

static HANDLER(source_change)
{
    static const char *const known[] = {"vcenter", "user", "password", "thumbprint", "ca_pem", NULL};
    const json_t *body;
    return http_request_json(req, known, &body, err) && note_members(req, body) &&
        from_body(hub_source_change(hub(ctx), SOURCE, body, &ret->body, err), err);
}

static HANDLER(source_remove)
{
    return hub_source_remove(hub(ctx), SOURCE, &ret->body, err);
}

static HANDLER(source_certificate)
{
    static const char *const known[] = {"vcenter", NULL};
    const json_t *body;
    return http_request_json(req, known, &body, err) &&
        from_body(hub_source_certificate(hub(ctx), body, &ret->body, err), err);
}

static HANDLER(source_test)
{
    return hub_source_test(hub(ctx), SOURCE, &ret->body, err);
}

static HANDLER(source_vms)
{
    return hub_source_vms(hub(ctx), SOURCE, &ret->body, err);
}

// ---- VMs

static HANDLER(vm_add)
{
    static const char *const known[] = {"name", "source", "excluded_disks", "audit_blocks", "adopt", NULL};
    const json_t *body;
    ret->status = 201;
    bool ok = http_request_json(req, known, &body, err) && from_body(hub_vm_add(hub(ctx), body, &ret->body, err), err);
    return made(ok, req, ret, "name");
}

static HANDLER(vm_list)
{
    HubVmFilter f = {.after = http_request_query(req, "after")};
    return http_request_query_bool(req, "all", false, &f.all, err) &&
        (!http_request_query(req, "limit") || http_request_query_u64(req, "limit", 1, 1000, 100, &f.limit, err)) &&
        hub_vm_list(hub(ctx), &f, &ret->body, err);
}

static HANDLER(vm_show)
{
    return hub_vm_show(hub(ctx), http_request_param(req, "vm_id"), &ret->body, err);
}

static HANDLER(vm_change)
{
    static const char *const known[] = {"name", "source", "excluded_disks", "audit_blocks", NULL};
    const json_t *body;
    return http_request_json(req, known, &body, err) && note_members(req, body) &&
        from_body(hub_vm_change(hub(ctx), http_request_param(req, "vm_id"), body, &ret->body, err), err);
}

static HANDLER(vm_remove)
{
    return hub_vm_remove(hub(ctx), http_request_param(req, "vm_id"), &ret->body, err);
}

// ---- what is left over

// For the audit log: whether it only looked, and how much it took away.
static bool note_clean(bool ok, HttpRequest *req, const HttpResponse *ret)
{
    char object[64] = "dry run";
    size_t i, removed = 0;
    json_t *item;
    if (!ok)
        return false;
    json_array_foreach(json_object_get(ret->body, "items"), i, item)
    {
        removed += str_eq(json_string_value(json_object_get(item, "action")), "removed");
    }
    if (!json_is_true(json_object_get(ret->body, "dry_run")))
        (void)snprintf(object, sizeof(object), "%zu removed", removed);
    http_request_set_object(req, object);
    return true;
}

static HANDLER(clean)
{
    static const char *const known[] = {"dry_run", "exports", "interrupted", "jobs", "older_than_minutes", NULL};
    const json_t *body;
    return note_clean(http_request_json(req, known, &body, err) &&
                          from_body(hub_clean(hub(ctx), body, &ret->body, err), err),
                      req, ret);
}

static HANDLER(vm_clean)
{
    static const char *const known[] = {"dry_run", "bitmaps", NULL};
    const json_t *body;
    return note_clean(
        http_request_json(req, known, &body, err) &&
            from_body(hub_clean_vm(hub(ctx), http_request_param(req, "vm_id"), body, &ret->body, err), err),
        req, ret);
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

static HANDLER(backup_start)
{
    const json_t *body; // the contract's call: unknown members are ignored
    ret->status = 201;
    bool ok = http_request_json(req, NULL, &body, err) && may_play_client(req, body, err) &&
        from_body(hub_backup_start(hub(ctx), body, &ret->body, err), err);
    return made(ok, req, ret, "backup_id");
}

static HANDLER(backup_list)
{
    StoreBackupFilter f = {.vm_name = http_request_query(req, "vm_name"), .status = http_request_query(req, "status")};
    return http_request_query_u64(req, "limit", 1, 1000, 100, &f.limit, err) &&
        http_request_query_u64(req, "offset", 0, STORE_COUNT_MAX, 0, &f.offset, err) &&
        hub_backup_list(hub(ctx), &f, http_request_query(req, "repository_id"), http_request_query(req, "after"),
                        &ret->body, err);
}

static HANDLER(backup_show)
{
    return hub_backup_show(hub(ctx), BACKUP, &ret->body, err);
}

static HANDLER(backup_cancel)
{
    ret->status = 202;
    return hub_backup_cancel(hub(ctx), BACKUP, &ret->body, err);
}

static HANDLER(backup_delete)
{
    bool with_dependents;
    if (!http_request_query_bool(req, "with_dependents", false, &with_dependents, err))
        return false;
    if (with_dependents) // for the audit log, whose path has no query, and also where it fails half-way
        http_request_set_object(req, "with dependents");
    if (!hub_backup_delete(hub(ctx), BACKUP, with_dependents, &ret->body, err))
        return false;
    size_t n = json_array_size(json_object_get(ret->body, "deleted"));
    char object[64];
    (void)snprintf(object, sizeof(object), "with dependents: %zu points", n);
    if (with_dependents)
        http_request_set_object(req, object);
    return true;
}

static HANDLER(backup_verification)
{
    static const char *const known[] = {"result", "disk_id", "offset", "details", NULL};
    const json_t *body;
    if (!http_request_json(req, known, &body, err) ||
        !from_body(hub_backup_verification(hub(ctx), BACKUP, body, &ret->body, err), err))
        return false;
    http_request_set_object(req, json_string_value(json_object_get(body, "result"))); // "ok" lifts a suspicion
    return true;
}

// ---- exports

static HANDLER(export_start)
{
    static const char *const known[] = {"backup_id", "disk", "purpose", NULL};
    const json_t *body;
    ret->status = 201;
    if (!http_request_json(req, known, &body, err) ||
        !from_body(hub_export_start(hub(ctx), body, &ret->body, err), err))
        return false;
    char object[HTTP_OBJECT_MAX]; // whose data somebody looks at; the export's own row is soon gone
    (void)snprintf(
        object, sizeof(object), "%s: disk %s of %s", json_string_value(json_object_get(ret->body, "export_id")),
        json_string_value(json_object_get(body, "disk")), json_string_value(json_object_get(body, "backup_id")));
    http_request_set_object(req, object);
    return true;
}

static HANDLER(export_list)
{
    (void)req;
    return hub_export_list(hub(ctx), &ret->body, err);
}

static HANDLER(export_end)
{
    return hub_export_end(hub(ctx), http_request_param(req, "export_id"), &ret->body, err);
}

static HANDLER(export_nbd)
{
    return http_request_is_upgrade(req, err) &&
        hub_export_connect(hub(ctx), http_request_param(req, "export_id"), &ret->relay, err);
}

// ---- replications

static HANDLER(replication_add)
{
    static const char *const known[] = {"vm_name", "target", "job_id", NULL};
    const json_t *body;
    ret->status = 201;
    bool ok = http_request_json(req, known, &body, err) &&
        from_body(hub_replication_add(hub(ctx), body, &ret->body, err), err);
    return made(ok, req, ret, "job_id");
}

static HANDLER(replication_list)
{
    (void)req;
    return hub_replication_list(hub(ctx), &ret->body, err);
}

static HANDLER(replication_show)
{
    return hub_replication_show(hub(ctx), http_request_param(req, "job_id"), &ret->body, err);
}

static HANDLER(replication_changeid)
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

static HANDLER(replication_claim)
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
    {"GET", V1 "/whoami", api_whoami, 0, NULL, MAY_ANY_ROLE},
    {"POST", V1 "/tokens", api_token_add, HTTP_BODY, NULL, MAY_ADMIN},
    {"GET", V1 "/tokens", api_token_list, 0, NULL, MAY_ADMIN},
    {"DELETE", V1 "/tokens/{token_id}", api_token_remove, 0, NULL, MAY_ADMIN},
    {"POST", V1 "/users", api_user_add, HTTP_BODY, NULL, MAY_ADMIN},
    {"GET", V1 "/users", api_user_list, 0, NULL, MAY_ADMIN},
    {"PATCH", V1 "/users/{user_id}", api_user_change, HTTP_BODY, NULL, MAY_ADMIN},
    {"DELETE", V1 "/users/{user_id}", api_user_remove, 0, NULL, MAY_ADMIN},
    {"POST", V1 "/session", api_session_begin, HTTP_BODY | HTTP_ANYBODY, NULL, 0},
    {"GET", V1 "/session", api_session_show, 0, NULL, MAY_ANY_ROLE},
    {"DELETE", V1 "/session", api_session_end, 0, NULL, MAY_ANY_ROLE},
    {"POST", V1 "/session/password", api_session_password, HTTP_BODY, NULL, MAY_ANY_ROLE},
    {"GET", V1 "/audit", api_audit_list, 0, "actor method min_status after limit newest_first", MAY_ADMIN},
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
    {"GET", V1 "/vms", vm_list, 0, "all limit after", MAY_ANY_ROLE},
    {"GET", V1 "/vms/{vm_id}", vm_show, 0, NULL, MAY_ANY_ROLE},
    {"PATCH", V1 "/vms/{vm_id}", vm_change, HTTP_BODY, NULL, MAY_ADMIN},
    {"POST", V1 "/vms/{vm_id}/clean", vm_clean, HTTP_BODY, NULL, MAY_ADMIN},
    {"POST", V1 "/maintenance/clean", clean, HTTP_BODY, NULL, MAY_ADMIN},
    {"DELETE", V1 "/vms/{vm_id}", vm_remove, 0, NULL, MAY_ADMIN},
    {"POST", V1 "/backups", backup_start, HTTP_BODY, NULL, MAY_RECORD},
    {"GET", V1 "/backups", backup_list, 0, "vm_name repository_id status limit offset after", MAY_LOOK},
    {"GET", V1 "/backups/{backup_id}", backup_show, 0, NULL, MAY_ANY_ROLE},
    {"DELETE", V1 "/backups/{backup_id}", backup_delete, 0, "with_dependents", MAY_ADMIN},
    {"GET", V1 "/backups/{backup_id}/events", api_backup_events, 0, NULL, MAY_ANY_ROLE},
    {"POST", V1 "/backups/{backup_id}/cancel", backup_cancel, 0, NULL, MAY_OPERATE},
    {"POST", V1 "/backups/{backup_id}/verification", backup_verification, HTTP_BODY, NULL, MAY_OPERATE},
    {"POST", V1 "/backups/{backup_id}/claim", api_job_claim, HTTP_BODY | HTTP_OWN_TOKEN, NULL, 0},
    {"POST", V1 "/backups/{backup_id}/disks", api_job_disks, HTTP_BODY | HTTP_OWN_TOKEN, NULL, 0},
    {"GET", V1 "/backups/{backup_id}/disks/{disk_key}/nbd", api_job_nbd, HTTP_RELAY | HTTP_OWN_TOKEN, NULL, 0},
    {"POST", V1 "/backups/{backup_id}/progress", api_job_progress, HTTP_BODY | HTTP_OWN_TOKEN | HTTP_OFTEN, NULL, 0},
    {"POST", V1 "/backups/{backup_id}/audit", api_job_audit, HTTP_BODY | HTTP_OWN_TOKEN, NULL, 0},
    {"POST", V1 "/backups/{backup_id}/fail", api_job_fail, HTTP_BODY | HTTP_OWN_TOKEN, NULL, 0},
    {"POST", V1 "/backups/{backup_id}/complete", api_backup_complete, HTTP_BODY | HTTP_OWN_TOKEN, NULL, 0},
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
