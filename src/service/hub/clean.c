// What is left over of what hub, exporters and jobs made: named, and taken away on demand. docs/internals/clean.md.
#include "service/hub/clean.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/str.h"
#include "image/layout.h"

#define EXPORT_IDLE_MINUTES 1
#define JOB_MINUTES (24 * 60)
#define MINUTES_MAX (366 * 24 * 60)
#define MINUTE_US INT64_C(60000000)
#define SILENT_MS 4000 // beyond the lease: the supervisor's own patience

typedef struct Clean {
    Hub *h;
    bool remove, exports, interrupted, jobs;
    uint64_t older_minutes; // UINT64_MAX: each kind's own
    json_t *items;
} Clean;

// ---- items

bool hub_clean_item(json_t *items, const CleanItem *i, Err *err)
{
    json_t *o = json_object();
    // QEMU's and vCenter's words, and names of files, may be any bytes
    cleanup_free char *name = mem_strdup(i->name, err), *where = i->where ? mem_strdup(i->where, err) : NULL;
    cleanup_free char *why = i->details ? mem_strdup(i->details, err) : NULL;
    if (!codec_json_push(items, o, err) || err->code != ERR_NONE)
        return false;
    str_make_utf8(name);
    if (where)
        str_make_utf8(where);
    if (why)
        str_make_utf8(why);
    if (str_eq(i->action, "removed") || str_eq(i->action, "failed"))
        log_info("cleaning up", LOG_STR("kind", i->kind), LOG_STR("name", name), LOG_STR("action", i->action),
                 LOG_STR("why", why ? why : ""));
    return codec_json_set_text(o, "kind", i->kind, err) && codec_json_set_text(o, "name", name, err) &&
        codec_json_set_text(o, "where", where && *where ? where : NULL, err) &&
        codec_json_set_text(o, "action", i->action, err) && codec_json_set_text(o, "details", why, err);
}

static bool add(const Clean *c, const char *kind, const char *name, const char *where, const char *action,
                const char *details, Err *err)
{
    return hub_clean_item(
        c->items, &(CleanItem){.kind = kind, .name = name, .where = where, .action = action, .details = details}, err);
}

// done: it went well; else why says what did not. In a dry run it was not tried.
static bool add_result(const Clean *c, const char *kind, const char *name, const char *where, bool done,
                       const char *details, const Err *why, Err *err)
{
    const char *action = !c->remove ? "would_remove" : done ? "removed" : "failed";
    return add(c, kind, name, where, action, c->remove && !done ? why->details : details, err);
}

// ---- exporters

static bool keep_sockets_of(Hub *h, const char *id, char ***list, size_t *len, Err *err)
{
    StoreDisk *disks = NULL;
    size_t n = 0;
    if (!store_disk_list(h->store, id, &disks, &n, err))
        return false;
    char **more = reallocarray(*list, *len + n + 1, sizeof(*more));
    if (more)
        *list = more;
    for (size_t i = 0; more && i < n; i++)
        if (disks[i].socket)
            more[(*len)++] = mem_take(disks[i].socket);
    STORE_LIST_FREE(disks, n, store_disk_clear);
    return more != NULL || err_no_memory(err);
}

bool hub_exporters_on_record(Hub *h, char ***ret, size_t *ret_len, Err *err)
{
    StoreBackup *jobs = NULL;
    StoreExport *exports = NULL;
    size_t jobs_len = 0, exports_len = 0, n = 0;
    char **keep = NULL;
    bool ok = store_backup_active_of(h->store, h->hub_id, &jobs, &jobs_len, err) &&
        store_export_list(h->store, &exports, &exports_len, err) &&
        (keep = mem_calloc(exports_len, sizeof(*keep), err));
    for (size_t i = 0; ok && i < exports_len; i++)
        if (exports[i].socket && str_eq(exports[i].hub_id, h->hub_id))
            keep[n++] = mem_take(exports[i].socket);
    for (size_t i = 0; ok && i < jobs_len; i++)
        ok = keep_sockets_of(h, jobs[i].id, &keep, &n, err);
    STORE_LIST_FREE(jobs, jobs_len, store_backup_clear);
    STORE_LIST_FREE(exports, exports_len, store_export_clear);
    if (!ok) {
        hub_texts_free(keep, n);
        return false;
    }
    *ret = keep;
    *ret_len = n;
    return true;
}

void hub_texts_free(char **texts, size_t len)
{
    for (size_t i = 0; i < len; i++)
        free(texts[i]);
    free(texts);
}

// Folder, processes and rows of one moment, in which no exporter is on its way.
static bool find_strays(Hub *h, FileList *ret, Err *err)
{
    char **keep = NULL;
    size_t len = 0;
    if (!hub_exporting_stop(h, err))
        return false;
    bool ok = hub_exporters_on_record(h, &keep, &len, err) &&
        exporter_strays(h->run_dir, (const char *const *)keep, len, ret, err);
    hub_exporting_done(h);
    hub_texts_free(keep, len);
    return ok;
}

static bool clean_exporters(const Clean *c, Err *err)
{
    FileList strays = {0};
    Err busy = ERR_INIT;
    if (!find_strays(c->h, &strays, &busy)) {
        if (busy.code == ERR_BUSY)
            return add(c, "exporter", c->h->run_dir, NULL, "failed", busy.details, err);
        *err = busy;
        return false;
    }
    bool ok = true;
    for (size_t i = 0; ok && i < strays.len; i++) {
        Err why = ERR_INIT;
        const char *name = strays.names[i];
        if (exporter_stray_is_read(c->h->run_dir, name)) {
            ok = add(c, "exporter", name, c->h->run_dir, "kept", "somebody is connected to it", err);
            continue;
        }
        bool done = c->remove && exporter_stray_end(c->h->run_dir, name, &why);
        ok = add_result(c, "exporter", name, c->h->run_dir, done, NULL, &why, err);
    }
    file_list_clear(&strays);
    return ok;
}

// ---- exports

static uint64_t minutes(const Clean *c, uint64_t other)
{
    return c->older_minutes == UINT64_MAX ? other : c->older_minutes;
}

static bool is_idle(const Clean *c, const StoreExport *e)
{
    EngineAnswer a;
    Err err = ERR_INIT;
    bool answers = exporter_call(e->control, &(EngineRequest){.op = ENGINE_STATUS}, 2000, &a, &err);
    if (answers ? a.connections > 0 : err.code != ERR_UNAVAILABLE)
        return false; // in use, or nobody can tell
    return clock_utc_us() - e->used_us >= (int64_t)minutes(c, EXPORT_IDLE_MINUTES) * MINUTE_US;
}

static bool clean_exports(const Clean *c, Err *err)
{
    StoreExport *rows = NULL;
    size_t len = 0;
    if (!c->exports)
        return true;
    if (!store_export_list(c->h->store, &rows, &len, err))
        return false;
    bool ok = true;
    for (size_t i = 0; ok && i < len; i++) {
        json_t *ended = NULL;
        Err why = ERR_INIT;
        if (!str_eq(rows[i].hub_id, c->h->hub_id) || !is_idle(c, &rows[i]))
            continue;
        bool done = c->remove && (hub_export_end(c->h, rows[i].id, &ended, &why) || why.code == ERR_NOT_FOUND);
        json_decref(ended);
        ok = add_result(c, "export", rows[i].id, rows[i].backup_id, done, NULL, &why, err);
    }
    STORE_LIST_FREE(rows, len, store_export_clear);
    return ok;
}

// ---- jobs

// Why it is to end; NULL: it is not.
static const char *overdue(const Clean *c, const StoreBackup *b, char text[128])
{
    int64_t now = clock_utc_us(), age = now - b->created_us, silent = now - b->last_seen_us;
    if (strcmp(b->status, "running") == 0 && silent > (int64_t)c->h->lease_s * 1000000 + SILENT_MS * 1000) {
        (void)snprintf(text, 128, "%s, and silent for %lld minutes", b->status, (long long)(silent / MINUTE_US));
        return text;
    }
    if (age < (int64_t)minutes(c, JOB_MINUTES) * MINUTE_US)
        return NULL;
    (void)snprintf(text, 128, "%s, and %lld minutes old", b->status, (long long)(age / MINUTE_US));
    return text;
}

static bool clean_job(const Clean *c, const StoreBackup *b, Err *err)
{
    char text[128];
    Err why = ERR_INIT;
    const char *reason = overdue(c, b, text);
    if (!reason)
        return true;
    bool done = c->remove && hub_backup_end(c->h, b->id, "ended by a clean-up", &why);
    if (c->remove && !done && why.code == ERR_CONFLICT)
        return add(c, "job", b->id, b->vm_name, "kept", why.details, err);
    return add_result(c, "job", b->id, b->vm_name, done, reason, &why, err);
}

static bool clean_jobs(const Clean *c, Err *err)
{
    StoreBackup *jobs = NULL;
    size_t len = 0;
    if (!c->jobs)
        return true;
    if (!store_backup_active_of(c->h->store, c->h->hub_id, &jobs, &len, err))
        return false;
    bool ok = true;
    for (size_t i = 0; ok && i < len; i++)
        ok = clean_job(c, &jobs[i], err);
    STORE_LIST_FREE(jobs, len, store_backup_clear);
    return ok;
}

// ---- partial images

typedef struct Orphan { // one name of a repository
    const char *path;
    char context[LAYOUT_NAME];
    LayoutName name;
} Orphan;

// "ctx-…/<name>" or "ctx-…/disk-<n>/<name>", of an attempt.
static bool read_orphan(const char *path, Orphan *ret)
{
    const char *slash = strchr(path, '/'), *last = strrchr(path, '/');
    size_t n = slash ? (size_t)(slash - path) : 0;
    if (n == 0 || n >= sizeof(ret->context))
        return false;
    ret->path = path;
    memcpy(ret->context, path, n);
    ret->context[n] = '\0';
    return layout_is_context(ret->context) && layout_parse(last + 1, &ret->name) && ret->name.attempt[0];
}

// Jobs by the attempts of their files; asked for after the repository was listed, never before.
typedef struct Owners {
    StoreBackup *active, *kept, *over;
    size_t active_len, kept_len, over_len;
} Owners;

static void owners_clear(Owners *o)
{
    STORE_LIST_FREE(o->active, o->active_len, store_backup_clear);
    STORE_LIST_FREE(o->kept, o->kept_len, store_backup_clear);
    STORE_LIST_FREE(o->over, o->over_len, store_backup_clear);
}

static bool owners_load(Hub *h, Owners *o, Err *err)
{
    int64_t since = clock_utc_us() - (int64_t)h->keep_hours * INT64_C(3600000000);
    // active ones first: a job that ends in between is then seen twice, and never not at all
    return store_backup_active(h->store, &o->active, &o->active_len, err) &&
        store_backup_resumable(h->store, &o->kept, &o->kept_len, err) &&
        store_backup_uncleaned(h->store, since, &o->over, &o->over_len, err);
}

static const StoreBackup *owner(const StoreBackup *rows, size_t len, const char *attempt)
{
    for (size_t i = 0; i < len; i++)
        if (rows[i].attempt && str_eq(rows[i].attempt, attempt)) // a pending job has none yet
            return &rows[i];
    return NULL;
}

static bool forget_kept(Hub *h, const StoreBackup *b, Err *err)
{
    StoreBackup cleanup_backup now = {0};
    if (!hub_vm_hold(h, b->vm_id, err))
        return false;
    // a job may have come and gone since
    bool ok = store_backup_get(h->store, b->id, &now, err) &&
        (now.attempt == NULL ||
         (store_backup_set_resumable(h->store, b->id, false, err) && hub_remove_partial(h, &now, err) &&
          store_backup_cleaned(h->store, b->id, err)));
    hub_vm_release(h, b->vm_id);
    return ok;
}

static bool abort_attempt(const Clean *c, const Repo *repo, const RepoScan *scan, const Orphan *o, const Owners *owners,
                          Err *err)
{
    const StoreBackup *over = owner(owners->over, owners->over_len, o->name.attempt);
    return repo_abort_orphan(repo, scan, o->context, o->name.stem, o->name.attempt, err) &&
        (!over || store_backup_cleaned(c->h->store, over->id, err));
}

static bool clean_attempt(const Clean *c, const Repo *repo, const RepoScan *scan, const Orphan *o, const Owners *owners,
                          Err *ret_why)
{
    const StoreBackup *kept = owner(owners->kept, owners->kept_len, o->name.attempt);
    return !c->remove || (kept ? forget_kept(c->h, kept, ret_why) : abort_attempt(c, repo, scan, o, owners, ret_why));
}

// All names of one attempt share its fate: it is decided at the first.
static bool clean_names(const Clean *c, const StoreRepository *row, const Repo *repo, const RepoScan *scan,
                        const Owners *owners, Err *err)
{
    char attempt[LAYOUT_ATTEMPT] = "";
    bool done = false;
    Err why = ERR_INIT;
    for (size_t i = 0; i < scan->orphans_len; i++) {
        Orphan o;
        if (!read_orphan(scan->orphans[i], &o) || owner(owners->active, owners->active_len, o.name.attempt))
            continue;
        const StoreBackup *kept = owner(owners->kept, owners->kept_len, o.name.attempt);
        if (kept && !c->interrupted) {
            if (!add(c, "partial_image", o.path, row->name, "kept", "the VM's next backup can go on from it", err))
                return false;
            continue;
        }
        if (strcmp(attempt, o.name.attempt) != 0) {
            err_clear(&why);
            (void)snprintf(attempt, sizeof(attempt), "%s", o.name.attempt);
            done = clean_attempt(c, repo, scan, &o, owners, &why);
        }
        if (!add_result(c, "partial_image", o.path, row->name, done, kept ? kept->id : NULL, &why, err))
            return false;
    }
    return true;
}

static bool clean_repository(const Clean *c, const StoreRepository *row, Err *err)
{
    Repo cleanup_repo repo = {0};
    RepoScan scan = {0};
    Owners owners = {0};
    Err away = ERR_INIT;
    if (!hub_repo_open(c->h, row, &repo, &away) || !repo_scan(&repo, &scan, &away))
        return add(c, "repository", row->name, row->path, "failed", away.details, err);
    bool ok = owners_load(c->h, &owners, err) && clean_names(c, row, &repo, &scan, &owners, err);
    owners_clear(&owners);
    repo_scan_clear(&scan);
    return ok;
}

static bool clean_repositories(const Clean *c, Err *err)
{
    StoreRepository *rows = NULL;
    size_t len = 0;
    if (!store_repository_list(c->h->store, &rows, &len, err))
        return false;
    bool ok = true;
    for (size_t i = 0; ok && i < len; i++)
        ok = clean_repository(c, &rows[i], err);
    STORE_LIST_FREE(rows, len, store_repository_clear);
    return ok;
}

// ---- the call

bool hub_clean(Hub *h, const json_t *body, json_t **ret, Err *err)
{
    Clean c = {.h = h, .older_minutes = UINT64_MAX};
    bool dry_run, given;
    uint64_t older;
    if (!codec_json_bool_opt(body, "dry_run", true, &dry_run, err) ||
        !codec_json_bool_opt(body, "exports", false, &c.exports, err) ||
        !codec_json_bool_opt(body, "interrupted", false, &c.interrupted, err) ||
        !codec_json_bool_opt(body, "jobs", false, &c.jobs, err) ||
        !codec_json_u64_opt(body, "older_than_minutes", MINUTES_MAX, &older, &given, err))
        return false;
    c.remove = !dry_run;
    if (given)
        c.older_minutes = older;
    json_t *o = json_object();
    c.items = json_array();
    bool ok = codec_json_set(o, "items", c.items, err) && codec_json_set_bool(o, "dry_run", dry_run, err) &&
        // jobs first: what they leave is seen by what comes after
        clean_jobs(&c, err) && clean_exports(&c, err) && clean_exporters(&c, err) && clean_repositories(&c, err);
    if (!ok) {
        json_decref(o);
        return false;
    }
    *ret = o;
    return true;
}
