#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/num.h"
#include "base/str.h"
#include "codec/zframe.h"
#include "domain/name.h"
#include "service/hub/internal.h"

#include <stdio.h>

static bool view(Hub *h, const StoreRepository *r, json_t **ret, Err *err)
{
    char id[24];
    (void)snprintf(id, sizeof(id), "%lld", (long long)r->id);
    uint64_t points, stored, free_bytes = 0, total_bytes = 0;
    if (!store_repository_totals(h->store, r->id, &points, &stored, err))
        return false;
    Repo cleanup_repo repo = {0};
    Err problem = ERR_INIT;
    bool available = hub_repo_open(h, r, &repo, &problem) && file_space(r->path, &free_bytes, &total_bytes, &problem);
    json_t *o = json_object();
    bool ok = (o != NULL || err_no_memory(err)) && codec_json_set_text(o, "repository_id", id, err) &&
        codec_json_set_text(o, "name", r->name, err) && codec_json_set_text(o, "uuid", r->uuid, err) &&
        codec_json_set_text(o, "path", r->path, err) && codec_json_set_u64(o, "cluster_size", r->cluster_size, err) &&
        codec_json_set_text(o, "hash_algorithm", r->hash_algorithm, err) &&
        codec_json_set_u64(o, "compression", r->compression, err) &&
        codec_json_set_time(o, "created_at", r->created_us, err) &&
        codec_json_set_bool(o, "available", available, err) &&
        codec_json_set_text(o, "problem", available ? NULL : problem.details, err) &&
        codec_json_set_u64(o, "free_bytes", free_bytes, err) &&
        codec_json_set_u64(o, "total_bytes", total_bytes, err) && codec_json_set_u64(o, "points", points, err) &&
        codec_json_set_u64(o, "stored_bytes", stored, err);
    if (!ok) {
        json_decref(o);
        return false;
    }
    *ret = o;
    return true;
}

// A new repository, or one that is there already (its points come by scan).
static bool open_or_create(const char *path, uint32_t cluster_size, HashAlgorithm algorithm, Repo *ret,
                           bool *ret_taken_in, Err *err)
{
    Err creating = ERR_INIT;
    *ret_taken_in = false;
    if (repo_create(path, cluster_size, algorithm, ret, &creating))
        return true;
    *ret_taken_in = true;
    if (creating.code != ERR_EXISTS) {
        *err = creating;
        if (err->code == ERR_NOT_FOUND || err->code == ERR_IO) // no folder can be made there: another path is needed
            err->code = ERR_INVALID;
        return false;
    }
    return repo_open(path, NULL, ret, err);
}

static bool parse(const json_t *body, const char **ret_name, const char **ret_path, uint32_t *ret_cluster_size,
                  HashAlgorithm *ret_algorithm, uint64_t *ret_compression, Err *err)
{
    const char *algorithm;
    uint64_t cluster_size = 65536;
    bool present, compressed;
    *ret_compression = 0;
    if (!codec_json_text(body, "name", NAME_MAX_BYTES, ret_name, err) ||
        !codec_json_text(body, "path", 1000, ret_path, err) ||
        !codec_json_u64_opt(body, "cluster_size", 2u << 20, &cluster_size, &present, err) ||
        !codec_json_u64_opt(body, "compression", ZFRAME_LEVEL_MAX, ret_compression, &compressed, err) ||
        !codec_json_text_opt(body, "hash_algorithm", 32, &algorithm, err) || !name_check("name", *ret_name, err) ||
        !hash_algorithm_parse(algorithm ? algorithm : "xxh3-128", ret_algorithm, err))
        return false;
    Err not_a_number = ERR_INIT;
    uint64_t number;
    if (num_u64(*ret_name, 0, UINT64_MAX, &number, &not_a_number)) // a later repository's ID would take its place
        return err_set(err, ERR_INVALID, "name \"%s\" is a number, as IDs are; choose another", *ret_name);
    if (!present)
        cluster_size = 65536;
    if (cluster_size < 4096 || (cluster_size & (cluster_size - 1)) != 0)
        return err_set(err, ERR_INVALID, "cluster_size is a power of two from 4096 to 2097152");
    if ((*ret_path)[0] != '/')
        return err_set(err, ERR_INVALID, "path \"%s\" is not absolute; give the folder as the hub sees it", *ret_path);
    *ret_cluster_size = (uint32_t)cluster_size;
    return true;
}

bool hub_repository_add(Hub *h, const json_t *body, json_t **ret, Err *err)
{
    const char *name, *path;
    uint32_t cluster_size = 0;
    HashAlgorithm algorithm;
    bool taken_in;
    Repo cleanup_repo repo = {0};
    StoreRepository cleanup_repository r = {0}, taken = {0};
    if (!parse(body, &name, &path, &cluster_size, &algorithm, &r.compression, err))
        return false;
    Err missing = ERR_INIT;
    if (store_repository_find(h->store, name, &taken, &missing)) {
        store_repository_clear(&taken);
        return err_set(err, ERR_EXISTS, "a repository named \"%s\" is registered already; choose another name", name);
    }
    if (!open_or_create(path, cluster_size, algorithm, &repo, &taken_in, err))
        return false;
    if (!str_is_utf8(repo.path, strlen(repo.path)))
        return err_set(err, ERR_INVALID, "path \"%s\" leads to a folder whose name is not UTF-8", path);
    r.created_us = clock_utc_us();
    r.cluster_size = repo.info.cluster_size;
    if (!mem_replace(&r.name, name, err) || !mem_replace(&r.path, repo.path, err) ||
        !mem_replace(&r.uuid, repo.info.uuid, err) ||
        !mem_replace(&r.hash_algorithm, hash_algorithm_name(repo.info.hash.algorithm), err))
        return false;
    Err adding = ERR_INIT;
    if (!store_repository_add(h->store, &r, &r.id, &adding)) {
        if (adding.code != ERR_EXISTS) {
            *err = adding;
            return false;
        }
        return err_set(err, ERR_EXISTS, "this folder (or a copy of it) or the name is registered already");
    }
    log_info("repository added", LOG_STR("name", name), LOG_STR("path", r.path));
    return view(h, &r, ret, err) && codec_json_set_bool(*ret, "taken_in", taken_in, err);
}

bool hub_repository_list(Hub *h, json_t **ret, Err *err)
{
    StoreRepository *rows = NULL;
    size_t len = 0;
    json_t *list = json_array();
    bool ok = store_repository_list(h->store, &rows, &len, err);
    for (size_t i = 0; ok && i < len; i++) {
        json_t *item = NULL;
        ok = view(h, &rows[i], &item, err) && codec_json_push(list, item, err);
    }
    STORE_LIST_FREE(rows, len, store_repository_clear);
    return codec_json_wrap(ok, "repositories", list, ret, err);
}

bool hub_repository_show(Hub *h, const char *repository, json_t **ret, Err *err)
{
    StoreRepository cleanup_repository r = {0};
    return store_repository_find(h->store, repository, &r, err) && view(h, &r, ret, err);
}

static bool not_busy(Hub *h, int64_t repository_id, Err *err)
{
    StoreBackup *jobs = NULL;
    size_t len = 0;
    if (!store_backup_active(h->store, &jobs, &len, err))
        return false;
    bool any = false;
    for (size_t i = 0; i < len; i++)
        any = any || jobs[i].repository_id == repository_id;
    STORE_LIST_FREE(jobs, len, store_backup_clear);
    uint64_t deleting;
    if (any)
        return err_set(err, ERR_BUSY, "a job writes to this repository; wait for it, or cancel it");
    return store_backup_count_deleting(h->store, repository_id, &deleting, err) &&
        (deleting == 0 || err_set(err, ERR_BUSY, "points in it are being deleted; wait for that"));
}

static bool not_being_read(Hub *h, int64_t repository_id, Err *err)
{
    StoreExport *exports = NULL;
    size_t len = 0;
    if (!store_export_list(h->store, &exports, &len, err))
        return false;
    const char *reader = NULL;
    for (size_t i = 0; !reader && i < len; i++) {
        StoreBackup cleanup_backup b = {0};
        Err gone = ERR_INIT;
        if (store_backup_get(h->store, exports[i].backup_id, &b, &gone) && b.repository_id == repository_id)
            reader = exports[i].id;
    }
    bool ok = !reader || err_set(err, ERR_BUSY, "a point in it is being read (export %s); end that first", reader);
    STORE_LIST_FREE(exports, len, store_export_clear);
    return ok;
}

bool hub_repository_remove(Hub *h, const char *repository, json_t **ret, Err *err)
{
    StoreRepository cleanup_repository r = {0};
    char id[24];
    StoreTurn t = STORE_TURN(h->store);
    while (store_turn(&t, err)) {
        store_repository_clear(&r);
        t.ok = store_repository_find(h->store, repository, &r, err) && not_busy(h, r.id, err) &&
            not_being_read(h, r.id, err) && store_repository_remove(h->store, r.id, err);
    }
    if (!t.ok)
        return false;
    (void)snprintf(id, sizeof(id), "%lld", (long long)r.id);
    log_info("repository removed from the catalogue", LOG_STR("name", r.name), LOG_STR("path", r.path));
    json_t *o = json_object();
    bool ok = (o != NULL || err_no_memory(err)) && codec_json_set_text(o, "status", "removed", err) &&
        codec_json_set_text(o, "repository_id", id, err) && codec_json_set_text(o, "path", r.path, err);
    *ret = o;
    return ok;
}

// A file of a job that runs is no orphan: who cleans up by this list must not find it there.
static bool in_use(const StoreBackup *jobs, size_t n, const char *path)
{
    for (size_t i = 0; i < n; i++)
        if ((jobs[i].attempt && str_ends(path, jobs[i].attempt)) || (jobs[i].stem && strstr(path, jobs[i].stem)))
            return true;
    return false;
}

static bool scan_answer(const StoreRepository *r, const RepoScan *scan, const StoreBackup *jobs, size_t jobs_len,
                        const StoreBackup *kept, size_t kept_len, ScanCounts *counts, json_t **ret, Err *err)
{
    char id[24];
    (void)snprintf(id, sizeof(id), "%lld", (long long)r->id);
    json_t *o = json_object(), *problems = json_incref(counts->refused), *orphans = json_array();
    bool ok = (o && problems && orphans) || err_no_memory(err);
    for (size_t i = 0; ok && i < scan->problems_len; i++) {
        json_t *p = json_object();
        ok = (p != NULL || err_no_memory(err)) && codec_json_set_text(p, "path", scan->problems[i].path, err) &&
            codec_json_set_text(p, "backup_id", scan->problems[i].backup_id, err) &&
            codec_json_set_text(p, "error", err_short(&scan->problems[i].error), err) &&
            codec_json_set_text(p, "details", scan->problems[i].error.details, err);
        ok = codec_json_push(problems, p, err) && ok;
    }
    for (size_t i = 0; ok && i < scan->orphans_len; i++)
        ok = in_use(jobs, jobs_len, scan->orphans[i]) || in_use(kept, kept_len, scan->orphans[i]) ||
            codec_json_push(orphans, json_string(scan->orphans[i]), err);
    ok = ok && codec_json_set_text(o, "repository_id", id, err) && codec_json_set_u64(o, "added", counts->added, err) &&
        codec_json_set_u64(o, "unchanged", counts->unchanged, err);
    ok = codec_json_set(o, "missing", json_incref(counts->missing), err) && ok;
    ok = codec_json_set(o, "problems", problems, err) && ok;
    ok = codec_json_set(o, "orphans", orphans, err) && ok;
    if (!ok) {
        json_decref(o);
        return false;
    }
    *ret = o;
    return true;
}

bool hub_repository_scan(Hub *h, const char *repository, json_t **ret, Err *err)
{
    StoreRepository cleanup_repository r = {0};
    Repo cleanup_repo repo = {0};
    RepoScan scan = {0};
    StoreBackup *jobs = NULL, *kept = NULL; // kept: to be gone on from
    size_t jobs_len = 0, kept_len = 0;
    ScanCounts counts = {.missing = json_array(), .refused = json_array()};
    bool ok = ((counts.missing && counts.refused) || err_no_memory(err)) &&
        store_repository_find(h->store, repository, &r, err) && hub_repo_open(h, &r, &repo, err) &&
        repo_scan(&repo, &scan, err) && hub_catalogue_update(h, &r, &repo, &scan, &counts, err) &&
        store_backup_active(h->store, &jobs, &jobs_len, err) &&
        store_backup_resumable(h->store, &kept, &kept_len, err) &&
        scan_answer(&r, &scan, jobs, jobs_len, kept, kept_len, &counts, ret, err);
    STORE_LIST_FREE(jobs, jobs_len, store_backup_clear);
    STORE_LIST_FREE(kept, kept_len, store_backup_clear);
    repo_scan_clear(&scan);
    json_decref(counts.missing);
    json_decref(counts.refused);
    return ok;
}
