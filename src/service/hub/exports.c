#include "base/clock.h"
#include "base/log.h"
#include "base/num.h"
#include "base/str.h"
#include "base/uuid.h"
#include "domain/name.h"
#include "service/hub/internal.h"

#include <stdio.h>

#define CONNECT_MS 5000

// by_number: what a user calls a disk; else its key alone, as it is on record.
static bool find_disk(Hub *h, const char *id, const char *disk, bool by_number, StoreDisk *ret, Err *err)
{
    StoreDisk *disks = NULL;
    size_t len = 0;
    Err not_a_number = ERR_INIT;
    uint64_t no = UINT64_MAX;
    bool numeric = by_number && num_u64(disk, 0, UINT32_MAX, &no, &not_a_number);
    if (!store_disk_list(h->store, id, &disks, &len, err))
        return false;
    size_t hit = len;
    // its folder's number first, then its key, then the hypervisor's number
    for (size_t i = 0; hit == len && numeric && i < len; i++)
        if (disks[i].disk_no == no)
            hit = i;
    for (size_t i = 0; hit == len && i < len; i++)
        if (strcmp(disks[i].disk_key, disk) == 0)
            hit = i;
    for (size_t i = 0; hit == len && numeric && i < len; i++)
        if (disks[i].disk_id == no)
            hit = i;
    bool found = hit < len;
    if (found) {
        *ret = disks[hit];
        disks[hit] = (StoreDisk){0};
    }
    STORE_LIST_FREE(disks, len, store_disk_clear);
    return found || err_set(err, ERR_NOT_FOUND, "backup %s has no disk \"%s\"; see its disks by showing it", id, disk);
}

static bool view(Hub *h, const StoreExport *e, json_t **ret, Err *err)
{
    StoreBackup cleanup_backup b = {0};
    StoreRepository cleanup_repository r = {0};
    Repo cleanup_repo repo = {0};
    StoreDisk d = {0};
    json_t *o = json_object();
    cleanup_free char *uri = NULL;
    Err away = ERR_INIT;
    bool ok = (o != NULL || err_no_memory(err)) && store_backup_get(h->store, e->backup_id, &b, err) &&
        store_repository_get(h->store, b.repository_id, &r, err) &&
        find_disk(h, e->backup_id, e->disk_key, false, &d, err) &&
        (uri = exporter_uri(e->socket, e->export_name, err)) && codec_json_set_text(o, "export_id", e->id, err) &&
        codec_json_set_text(o, "backup_id", e->backup_id, err) && codec_json_set_u64(o, "disk_id", d.disk_id, err) &&
        codec_json_set_text(o, "disk_key", d.disk_key, err) && codec_json_set_u64(o, "disk_no", d.disk_no, err) &&
        codec_json_set_text(o, "purpose", e->purpose, err) && codec_json_set_text(o, "uri", uri, err) &&
        codec_json_set_u64(o, "size", d.size, err) && codec_json_set_u64(o, "cluster_size", r.cluster_size, err) &&
        codec_json_set_text(o, "hash_algorithm", r.hash_algorithm, err) &&
        codec_json_set_text(o, "root", d.root, err) && codec_json_set_bool(o, "suspect", b.suspect, err) &&
        codec_json_set_time(o, "created_at", e->created_us, err) &&
        codec_json_set_hex64(o, "hash_seed", hub_repo_open(h, &r, &repo, &away) ? repo.info.hash.seed : 0, err);
    store_disk_clear(&d);
    if (!ok) {
        json_decref(o);
        return false;
    }
    *ret = o;
    return true;
}

// Damage that is met on the way in: the points that rest on it are suspect from here on, and named.
static bool report_damage(Hub *h, const char *layer_id, const char *disk_key, Err *err)
{
    StoreBackup cleanup_backup layer = {0};
    Err looking = ERR_INIT;
    json_t *ids = NULL;
    char names[400] = "";
    if (layer_id && store_backup_get(h->store, layer_id, &layer, &looking) &&
        hub_mark_damaged(h, &layer, disk_key, &ids, &looking)) {
        size_t i;
        json_t *id;
        json_array_foreach(ids, i, id)
        {
            size_t n = strlen(names);
            (void)snprintf(names + n, sizeof(names) - n, "%s%s", i ? ", " : "", json_string_value(id));
        }
    }
    json_decref(ids);
    Err damage = *err;
    *err = ERR_INIT;
    return err_set(err, ERR_DAMAGED, "%s; points that rest on it: %s", damage.details, names);
}

// A point that was deleted while its exporter started is not exported; from here on the row keeps it (safety rule 16).
static bool add_in(Hub *h, const StoreExport *e, Err *err)
{
    StoreBackup cleanup_backup b = {0};
    return store_backup_get(h->store, e->backup_id, &b, err) &&
        (!b.deleting || err_set(err, ERR_BUSY, "backup %s is being deleted", b.id)) &&
        store_export_add(h->store, e, err);
}

static bool add(Hub *h, const StoreExport *e, Err *err)
{
    StoreTurn t = STORE_TURN(h->store);
    while (store_turn(&t, err))
        t.ok = add_in(h, e, err);
    return t.ok;
}

static bool start(Hub *h, const StoreBackup *b, const StoreDisk *d, const char *purpose, StoreExport *ret, Err *err)
{
    StoreRepository cleanup_repository row = {0};
    Repo cleanup_repo repo = {0};
    RepoChain chain = {0};
    EngineConfig config = {.role = ENGINE_SERVE};
    Exporter x = EXPORTER_NONE;
    cleanup_free char *layer_id = NULL;
    char id[UUID_TEXT];
    if (!store_repository_get(h->store, b->repository_id, &row, err) || !hub_repo_open(h, &row, &repo, err))
        return false;
    Points points = {.hub = h, .repo = &repo};
    RepoCheckDepth depth = strcmp(purpose, "verify") == 0 ? REPO_CHECK_FILES : REPO_CHECK_HASHES;
    bool ok = hub_chain_open(&points, b->id, d->disk_key, depth, &chain, &layer_id, err);
    config.cluster_size = repo.info.cluster_size;
    config.hash_seed = repo.info.hash.seed;
    config.size = d->size;
    hub_exporting(h);
    ok = ok && mem_replace(&config.hash_algorithm, hash_algorithm_name(repo.info.hash.algorithm), err) &&
        hub_engine_layers(&chain, &config, err) && exporter_start(h->run_dir, h->plugin, "point", &config, &x, err) &&
        uuid_new(id, err);
    StoreExport e = {.pid = x.proc.pid, .start = x.proc.start_time, .created_us = clock_utc_us()};
    e.used_us = e.created_us;
    ok = ok && mem_replace(&e.id, id, err) && mem_replace(&e.backup_id, b->id, err) &&
        mem_replace(&e.disk_key, d->disk_key, err) && mem_replace(&e.purpose, purpose, err) &&
        mem_replace(&e.socket, x.socket, err) && mem_replace(&e.control, x.control, err) &&
        mem_replace(&e.export_name, x.export_name, err) && add(h, &e, err);
    if (ok)
        exporter_clear(&x); // found again by its record
    else
        exporter_stop(&x);
    hub_exporting_done(h);
    if (!ok && err->code == ERR_DAMAGED) {
        // what the engine met at its opening is looked for more closely, to name the file's point
        RepoChain closer = {0};
        Err looking = ERR_INIT;
        if (!layer_id && hub_chain_open(&points, b->id, d->disk_key, REPO_CHECK_FILES, &closer, &layer_id, &looking))
            repo_chain_clear(&closer);
        (void)report_damage(h, layer_id ? layer_id : b->id, d->disk_key, err);
    }
    repo_chain_clear(&chain);
    engine_config_clear(&config);
    hub_points_clear(&points);
    if (!ok)
        store_export_clear(&e);
    else
        *ret = e;
    return ok;
}

bool hub_export_start(Hub *h, const json_t *body, json_t **ret, Err *err)
{
    StoreBackup cleanup_backup b = {0};
    StoreDisk d = {0};
    StoreExport e = {0};
    const char *id, *disk, *purpose;
    if (!codec_json_text(body, "backup_id", NAME_BACKUP_ID - 1, &id, err) ||
        !codec_json_text(body, "disk", NAME_MAX_BYTES, &disk, err) ||
        !codec_json_text(body, "purpose", 16, &purpose, err))
        return false;
    if (strcmp(purpose, "restore") != 0 && strcmp(purpose, "verify") != 0)
        return err_set(err, ERR_INVALID, "purpose is \"restore\" or \"verify\"");
    if (!store_backup_get(h->store, id, &b, err))
        return false;
    if (strcmp(b.status, "completed") != 0)
        return err_set(err, ERR_CONFLICT, "backup %s is %s: no restore point", id, b.status);
    if (b.deleting) // missing files are no damage then
        return err_set(err, ERR_BUSY, "backup %s is being deleted", id);
    bool ok = find_disk(h, id, disk, true, &d, err) && start(h, &b, &d, purpose, &e, err) && view(h, &e, ret, err);
    if (ok)
        log_info("export started", LOG_STR("export", e.id), LOG_STR("job", id), LOG_STR("disk", d.disk_key),
                 LOG_STR("purpose", purpose));
    store_disk_clear(&d);
    store_export_clear(&e);
    return ok;
}

// ---- NBD through the hub's port

bool hub_export_connect(Hub *h, const char *id, int *ret_fd, Err *err)
{
    StoreExport e = {0};
    bool ok = store_export_get(h->store, id, &e, err) && hub_is_ours(h, e.hub_id, "export", id, err) &&
        exporter_connect(e.socket, CONNECT_MS, ret_fd, err);
    store_export_clear(&e);
    return ok;
}

bool hub_job_disk_connect(Hub *h, const char *id, const char *disk_key, int *ret_fd, Err *err)
{
    StoreBackup cleanup_backup b = {0};
    StoreDisk d = {0};
    if (!store_backup_get(h->store, id, &b, err))
        return false;
    if (strcmp(b.status, "running") != 0)
        return err_set(err, ERR_CONFLICT, "backup %s is %s, not running", id, b.status);
    if (!hub_is_ours(h, b.hub_id, "backup", id, err))
        return false;
    bool ok = find_disk(h, id, disk_key, false, &d, err) &&
        (d.socket || err_set(err, ERR_CONFLICT, "disk %s of backup %s is not written to", disk_key, id)) &&
        exporter_connect(d.socket, CONNECT_MS, ret_fd, err);
    store_disk_clear(&d);
    return ok;
}

bool hub_export_list(Hub *h, json_t **ret, Err *err)
{
    StoreExport *rows = NULL;
    size_t len = 0;
    json_t *list = json_array();
    bool ok = store_export_list(h->store, &rows, &len, err);
    for (size_t i = 0; ok && i < len; i++) {
        json_t *item = NULL;
        ok = view(h, &rows[i], &item, err) && codec_json_push(list, item, err);
    }
    STORE_LIST_FREE(rows, len, store_export_clear);
    return codec_json_wrap(ok, "exports", list, ret, err);
}

bool hub_export_end(Hub *h, const char *id, json_t **ret, Err *err)
{
    StoreExport e = {0};
    if (!store_export_get(h->store, id, &e, err))
        return false;
    if (!hub_is_ours(h, e.hub_id, "export", id, err)) {
        store_export_clear(&e);
        return false;
    }
    exporter_stop_recorded(e.pid, e.start, e.socket, e.control);
    bool ok = store_export_remove(h->store, id, err);
    store_export_clear(&e);
    if (!ok)
        return false;
    log_info("export ended", LOG_STR("export", id));
    json_t *o = json_object();
    ok = (o != NULL || err_no_memory(err)) && codec_json_set_text(o, "status", "ended", err) &&
        codec_json_set_text(o, "export_id", id, err);
    *ret = o;
    return ok;
}
