#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/num.h"
#include "base/str.h"
#include "domain/name.h"
#include "service/hub/internal.h"

#include <stdio.h>

// repository_id: a string or a number.
static bool read_repository(const json_t *body, char out[NAME_MAX_BYTES + 1], Err *err)
{
    const json_t *v = json_object_get(body, "repository_id");
    if (json_is_integer(v))
        (void)snprintf(out, NAME_MAX_BYTES + 1, "%lld", (long long)json_integer_value(v));
    else if (json_is_string(v) && json_string_length(v) > 0 && json_string_length(v) <= NAME_MAX_BYTES)
        (void)snprintf(out, NAME_MAX_BYTES + 1, "%s", json_string_value(v));
    else
        return err_set(err, ERR_INVALID, "repository_id is the number, or the name, of a repository");
    return true;
}

typedef struct StartRequest {
    const char *vm_name;
    char repository[NAME_MAX_BYTES + 1];
    bool type_given, start_client;
    BackupType type;
} StartRequest;

static bool read_request(const json_t *body, StartRequest *ret, Err *err)
{
    const char *type;
    if (!codec_json_text(body, "vm_name", NAME_MAX_BYTES, &ret->vm_name, err) ||
        !name_check("vm_name", ret->vm_name, err) || !read_repository(body, ret->repository, err) ||
        !codec_json_text_opt(body, "backup_type", 32, &type, err) ||
        !codec_json_bool_opt(body, "start_client", true, &ret->start_client, err))
        return false;
    ret->type_given = type != NULL;
    return !type || backup_type_parse(type, &ret->type, err);
}

// The parent is the VM's newest completed point in this repository, or none: never an older one (safety rule 3).
static bool choose_parent(Hub *h, const StartRequest *req, StoreBackup *b, Err *err)
{
    StoreBackup cleanup_backup parent = {0};
    StoreDisk *disks = NULL;
    size_t len = 0;
    bool found;
    uint64_t longest = 0;
    if (!store_backup_newest(h->store, b->repository_id, b->vm_id, &parent, &found, err) ||
        (found && !store_disk_list(h->store, parent.id, &disks, &len, err)))
        return false;
    for (size_t i = 0; i < len; i++)
        longest = MAX(longest, disks[i].chain_length);
    STORE_LIST_FREE(disks, len, store_disk_clear);

    bool full = req->type_given && req->type == BACKUP_FULL;
    if (found && parent.deleting && !full)
        return err_set(err, ERR_BUSY, "the VM's newest point, %s, is being deleted; try again when that is done",
                       parent.id);
    ChainReason reason = CHAIN_NONE;
    if (full)
        reason = CHAIN_REQUESTED;
    else if (!found)
        reason = CHAIN_FIRST;
    else if (longest >= h->chain_limit)
        reason = CHAIN_LIMIT;
    BackupType type = reason == CHAIN_NONE ? BACKUP_INCREMENTAL : BACKUP_FULL;
    // absent: incremental if there is a parent, else full
    BackupType requested = req->type_given ? req->type : (found ? BACKUP_INCREMENTAL : BACKUP_FULL);
    return mem_replace(&b->backup_type, backup_type_name(type), err) &&
        mem_replace(&b->requested_type, backup_type_name(requested), err) &&
        mem_replace(&b->reason, chain_reason_name(reason), err) &&
        mem_replace(&b->reason_text, reason == CHAIN_NONE ? "" : chain_reason_text(reason), err) &&
        (type == BACKUP_FULL || mem_replace(&b->parent_id, parent.id, err)) &&
        store_backup_sequence_next(h->store, b->repository_id, b->vm_id, &b->sequence, err);
}

// backup-<vm>-<unix time>; where the second is taken, or was a removed point's, the next free one: files are named
// after it, and a hub that comes back late may yet remove that point's.
static bool free_id(Hub *h, StoreBackup *b, Err *err)
{
    char id[NAME_BACKUP_ID];
    int64_t second = b->created_us / 1000000, from;
    bool taken = true;
    if (!store_id_free_from(h->store, b->vm_name, &from, err))
        return false;
    second = MAX(second, from);
    while (taken) {
        if (!name_backup_id(b->vm_name, second++, id, err) || !store_backup_exists(h->store, id, &taken, err))
            return false;
    }
    return mem_replace(&b->id, id, err);
}

static bool insert(Hub *h, const StartRequest *req, StoreBackup *b, const Secret *token, Err *err)
{
    StoreVm cleanup_vm vm = {0};
    StoreRepository cleanup_repository repository = {0};
    char digest[SECRET_DIGEST_TEXT];
    b->created_us = clock_utc_us();
    b->start_client = req->start_client;
    if (!store_vm_find(h->store, req->vm_name, &vm, err) ||
        !store_repository_find(h->store, req->repository, &repository, err) || !hub_not_stale(h, repository.id, err) ||
        !secret_digest(secret_reveal(token), digest, err))
        return false;
    b->repository_id = repository.id;
    return mem_replace(&b->vm_id, vm.id, err) && mem_replace(&b->active_vm, vm.id, err) &&
        mem_replace(&b->vm_name, vm.name, err) && mem_replace(&b->status, job_state_name(JOB_PENDING), err) &&
        mem_replace(&b->phase, "waiting for a client", err) && mem_replace(&b->token_digest, digest, err) &&
        choose_parent(h, req, b, err) && free_id(h, b, err) && store_backup_add(h->store, b, err);
}

// Before the transaction: a share that hangs must not hold the database, and with it everybody else.
static bool repository_is_there(Hub *h, const StartRequest *req, Err *err)
{
    StoreVm cleanup_vm vm = {0};
    StoreRepository cleanup_repository repository = {0};
    Repo cleanup_repo repo = {0};
    return store_vm_find(h->store, req->vm_name, &vm, err) &&
        store_repository_find(h->store, req->repository, &repository, err) && hub_repo_open(h, &repository, &repo, err);
}

// Of a COMMIT whose answer was lost: it is this call's, by its token.
static bool was_added(Hub *h, const StoreBackup *b, Err *err)
{
    StoreBackup cleanup_backup row = {0};
    Err looking = ERR_INIT;
    if (err->code != ERR_UNAVAILABLE || !b->id || !store_backup_get(h->store, b->id, &row, &looking) ||
        !row.token_digest || strcmp(row.token_digest, b->token_digest) != 0)
        return false;
    err_clear(err);
    return true;
}

bool hub_backup_start(Hub *h, const json_t *body, json_t **ret, Err *err)
{
    StartRequest req = {0};
    StoreBackup cleanup_backup b = {0};
    Secret token = {0};
    if (!read_request(body, &req, err) || !repository_is_there(h, &req, err) ||
        !hub_source_of_vm(h, req.vm_name, err) || !secret_random(&token, err))
        return false;
    StoreTurn t = STORE_TURN(h->store);
    while (store_turn(&t, err)) {
        store_backup_clear(&b);
        t.ok = insert(h, &req, &b, &token, err);
    }
    bool ok = t.ok || was_added(h, &b, err);
    json_t *o = NULL;
    ok = ok && hub_view_backup(h, &b, 0, true, &o, err) &&
        (req.start_client || codec_json_set_text(o, "job_token", secret_reveal(&token), err));
    secret_clear(&token);
    if (!ok) {
        json_decref(o);
        return false;
    }
    log_info("backup requested", LOG_STR("job", b.id), LOG_STR("type", b.backup_type), LOG_STR("reason", b.reason));
    hub_wake(h);
    *ret = o;
    return true;
}

// ---- places in a listing: "<created_at>,<sequence>,<id>"; callers are to look at none of it

static bool place_parse(const char *text, char *copy, size_t size, StoreBackupPlace *ret, Err *err)
{
    char *rest = copy;
    Err bad = ERR_INIT;
    int n = snprintf(copy, size, "%s", text);
    const char *created = strsep(&rest, ","), *sequence = strsep(&rest, ",");
    if (n < 0 || (size_t)n >= size || !rest || !rest[0] || !clock_parse(created, &ret->created_us, &bad) ||
        !num_u64(sequence, 0, INT64_MAX, &ret->sequence, &bad))
        return err_set(err, ERR_INVALID, "after is none of what \"next\" has been in an answer; begin without it");
    ret->id = rest;
    return true;
}

static bool set_next(json_t *o, const StoreBackup *last, Err *err)
{
    char created[CLOCK_TEXT];
    if (!last)
        return codec_json_set_text(o, "next", NULL, err);
    clock_format(last->created_us, created);
    cleanup_free char *text = mem_printf(err, "%s,%llu,%s", created, (unsigned long long)last->sequence, last->id);
    return text && codec_json_set_text(o, "next", text, err);
}

bool hub_backup_list(Hub *h, const StoreBackupFilter *filter, const char *repository, const char *after, json_t **ret,
                     Err *err)
{
    char copy[NAME_BACKUP_ID + 64];
    StoreBackupPlace place;
    StoreBackupFilter f = *filter;
    StoreBackup *rows = NULL;
    size_t len = 0;
    uint64_t total = 0;
    JobState state;
    if ((f.status && !job_state_parse(f.status, &state, err)) ||
        (after && !place_parse(after, copy, sizeof(copy), &place, err)))
        return false;
    if (after)
        f.behind = &place;
    if (repository) {
        StoreRepository cleanup_repository r = {0};
        if (!store_repository_find(h->store, repository, &r, err))
            return false;
        f.repository_id = r.id;
    }
    if (!store_backup_list(h->store, &f, &rows, &len, &total, err))
        return false;
    cleanup_free uint64_t *dependents = mem_calloc(MAX(len, (size_t)1), sizeof(*dependents), err);
    json_t *o = json_object(), *list = json_array();
    bool ok = ((o && list) || err_no_memory(err)) && dependents &&
        store_backup_count_dependents(h->store, rows, len, dependents, err);
    for (size_t i = 0; ok && i < len; i++) {
        json_t *item = NULL;
        ok = hub_view_backup(h, &rows[i], dependents[i], false, &item, err) && codec_json_push(list, item, err);
    }
    ok = ok && set_next(o, len == f.limit && len > 0 ? &rows[len - 1] : NULL, err);
    STORE_LIST_FREE(rows, len, store_backup_clear);
    ok = codec_json_set(o, "backups", list, err) && ok &&
        codec_json_set_u64(o, "total", MIN(total, (uint64_t)STORE_COUNT_MAX), err) &&
        codec_json_set_bool(o, "more_than_total", total > STORE_COUNT_MAX, err) &&
        codec_json_set_u64(o, "limit", f.limit, err) && codec_json_set_u64(o, "offset", f.offset, err);
    if (!ok) {
        json_decref(o);
        return false;
    }
    *ret = o;
    return true;
}

bool hub_backup_show(Hub *h, const char *id, json_t **ret, Err *err)
{
    return hub_view_backup_id(h, id, ret, err);
}

bool hub_backup_is_final(Hub *h, const char *id, bool *ret, Err *err)
{
    StoreBackup cleanup_backup b = {0};
    JobState state;
    if (!store_backup_get(h->store, id, &b, err) || !job_state_parse(b.status, &state, err))
        return false;
    *ret = job_state_is_final(state);
    return true;
}

// A commit that waits for its repository is no end: it is tried once more, and then the job has failed. Should the
// record stand all the same, the next scan finds the point.
static bool give_up_commit(Hub *h, Running *r, Err *err)
{
    Err why = ERR_INIT, away = ERR_INIT;
    bool stands = false;
    if (hub_commit(h, r, &why) || (hub_point_stands(h, r->id, &stands, &away) && stands))
        return err_set(err, ERR_CONFLICT, "the point of backup %s is there by now: there is nothing left to cancel",
                       r->id);
    return hub_job_end(h, r, "failed", "cancelled", why.details, false, err);
}

// Its own hub sees it within half a second.
static bool ask_its_hub(Hub *h, const StoreBackup *b, JobState state, Err *err)
{
    return state == JOB_COMMITTING ? hub_is_ours(h, b->hub_id, "backup", b->id, err)
                                   : store_backup_request_cancel(h->store, b->id, err);
}

// The entry of a job that is to end. *ret_at_work: somebody was at work on it, and was told to give way.
static bool take_to_end(Hub *h, const char *id, Running **ret, bool *ret_at_work, Err *err)
{
    Running *r;
    if (!hub_running_try(h, id, &r, err))
        return false;
    *ret_at_work = !r; // it announces, or seals, which may take long, or hang with its exporter
    if (!r) {
        if (!store_backup_request_cancel(h->store, id, err))
            return false;
        hub_running_interrupt(h, id);
        if (!hub_running_lock(h, id, &r, err))
            return false;
    }
    *ret = r;
    return true;
}

bool hub_backup_end(Hub *h, const char *id, const char *why, Err *err)
{
    Running *r;
    StoreBackup cleanup_backup b = {0};
    JobState state;
    bool at_work;
    if (!take_to_end(h, id, &r, &at_work, err))
        return false;
    bool ok = store_backup_get(h->store, id, &b, err) && job_state_parse(b.status, &state, err);
    if (ok && state == JOB_COMPLETED)
        ok = err_set(err, ERR_CONFLICT, "backup %s was completed meanwhile", id);
    else if (ok && state == JOB_COMMITTING)
        ok = give_up_commit(h, r, err);
    else if (ok && !job_state_is_final(state))
        ok = hub_job_end(h, r, "cancelled", "cancelled", why, false, err);
    hub_running_unlock(h, r);
    return ok;
}

bool hub_backup_cancel(Hub *h, const char *id, json_t **ret, Err *err)
{
    Running *r;
    StoreBackup cleanup_backup b = {0};
    JobState state;
    bool at_work;
    if (!take_to_end(h, id, &r, &at_work, err))
        return false;
    bool ok = store_backup_get(h->store, id, &b, err) && job_state_parse(b.status, &state, err);
    if (ok && at_work && state == JOB_CANCELLED)
        ok = true; // it gave way
    else if (ok && !job_state_is_final(state) && strcmp(b.hub_id, h->hub_id) != 0)
        ok = ask_its_hub(h, &b, state, err);
    else if (ok && state == JOB_PENDING)
        ok = hub_job_end(h, r, "cancelled", "cancelled", "cancelled before a client had claimed it", false, err);
    else if (ok && state == JOB_RUNNING) {
        ok = store_backup_request_cancel(h->store, id, err);
        if (ok)
            hub_running_ask_to_end(h, r, &b);
    } else if (ok && state == JOB_COMMITTING)
        ok = give_up_commit(h, r, err);
    else if (ok)
        ok = err_set(err, ERR_CONFLICT, "backup %s is %s: there is nothing left to cancel", id, b.status);
    hub_running_unlock(h, r);
    return ok && hub_view_backup_id(h, id, ret, err);
}

// ---- what a verify found

static bool find_disk(Hub *h, const char *id, uint64_t disk_id, char **ret_key, Err *err)
{
    StoreDisk *disks = NULL;
    size_t len = 0;
    if (!store_disk_list(h->store, id, &disks, &len, err))
        return false;
    bool found = false, ok = true;
    for (size_t i = 0; i < len && !found; i++)
        if (disks[i].disk_id == disk_id) {
            found = true;
            ok = mem_replace(ret_key, disks[i].disk_key, err);
        }
    STORE_LIST_FREE(disks, len, store_disk_clear);
    if (!found)
        return err_set(err, ERR_NOT_FOUND, "backup %s has no disk %llu", id, (unsigned long long)disk_id);
    return ok;
}

// Whose files hold the damaged cluster: its layer's point. Where even that cannot be told, the point itself.
static bool damaged_layer(Hub *h, const StoreBackup *b, const char *disk_key, bool have_offset, uint64_t offset,
                          StoreBackup *ret_layer, char **ret_file, Err *err)
{
    StoreRepository cleanup_repository row = {0};
    Repo cleanup_repo repo = {0};
    Err looking = ERR_INIT;
    RepoChain chain = {0};
    Reader *reader = NULL;
    uint8_t layer = 0;
    const char *id = b->id;
    if (!store_repository_get(h->store, b->repository_id, &row, err) || !hub_repo_open(h, &row, &repo, err))
        return false;
    Points points = {.hub = h, .repo = &repo};
    bool found = have_offset && hub_chain_open(&points, b->id, disk_key, REPO_CHECK_HASHES, &chain, NULL, &looking) &&
        reader_open(chain.layers, chain.len, &repo.geo, &reader, &looking) &&
        reader_layer_at(reader, offset, &layer, &looking) && layer < chain.len;
    bool ok = true;
    if (found) {
        id = chain.records[layer]->backup_id;
        *ret_file = mem_printf(err, "%s/disk-%u/%s", chain.records[layer]->context, chain.disks[layer]->disk_no,
                               chain.disks[layer]->image);
        ok = *ret_file != NULL;
    }
    ok = ok && store_backup_get(h->store, id, ret_layer, err);
    reader_free(reader);
    repo_chain_clear(&chain);
    hub_points_clear(&points);
    return ok;
}

static bool record_damage(Hub *h, const StoreBackup *b, const json_t *body, json_t *o, Err *err)
{
    uint64_t disk_id, offset = 0;
    bool have_offset;
    cleanup_free char *key = NULL, *file = NULL;
    StoreBackup cleanup_backup layer = {0};
    json_t *ids = NULL;
    bool ok = codec_json_u64(body, "disk_id", INT64_MAX, &disk_id, err) &&
        codec_json_u64_opt(body, "offset", DISK_SIZE_MAX, &offset, &have_offset, err) &&
        find_disk(h, b->id, disk_id, &key, err) && damaged_layer(h, b, key, have_offset, offset, &layer, &file, err) &&
        hub_mark_damaged(h, &layer, key, &ids, err);
    if (ok)
        log_error("damage found", LOG_STR("job", b->id), LOG_STR("file", file ? file : ""),
                  LOG_NUM("affected", json_array_size(ids)));
    if (ok)
        ok = codec_json_set(o, "affected", mem_take(ids), err);
    json_decref(ids);
    return ok && codec_json_set_text(o, "file", file, err);
}

bool hub_backup_verification(Hub *h, const char *id, const json_t *body, json_t **ret, Err *err)
{
    StoreBackup cleanup_backup b = {0};
    const char *result;
    if (!codec_json_text(body, "result", 16, &result, err) || !store_backup_get(h->store, id, &b, err))
        return false;
    if (strcmp(b.status, "completed") != 0)
        return err_set(err, ERR_CONFLICT, "backup %s is %s: no restore point", id, b.status);
    bool damaged = strcmp(result, "damaged") == 0, good = strcmp(result, "ok") == 0;
    if (!damaged && !good && strcmp(result, "failed") != 0)
        return err_set(err, ERR_INVALID, "result is \"ok\", \"damaged\" or \"failed\"");
    json_t *o = json_object();
    bool ok = (o != NULL || err_no_memory(err)) && codec_json_set_text(o, "backup_id", id, err) &&
        codec_json_set_text(o, "result", result, err);
    if (ok && damaged)
        ok = record_damage(h, &b, body, o, err);
    else
        ok = ok && codec_json_set(o, "affected", json_array(), err) && codec_json_set_text(o, "file", NULL, err) &&
            store_backup_set_verified(h->store, id, result, clock_utc_us(), err) &&
            (!good || store_backup_set_suspect(h->store, id, false, false, err));
    if (!ok) {
        json_decref(o);
        return false;
    }
    *ret = o;
    return true;
}
