// Completion: the moment a restore point comes to be (safety rules 14 and 15).
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "service/hub/internal.h"

#define SEAL_TIMEOUT_MS (60 * 60 * 1000) // tables of a huge disk onto a slow share; the client repeats meanwhile

static const CompletionDisk *said_of(const Completion *c, uint64_t disk_id)
{
    for (size_t i = 0; i < c->disks_len; i++)
        if (c->disks[i].disk_id == disk_id)
            return &c->disks[i];
    return NULL;
}

// What the client says of each disk, laid over what was announced.
static bool take_change_ids(const Completion *c, StoreDisk *disks, size_t n, Err *err)
{
    for (size_t i = 0; i < c->disks_len; i++) {
        bool known = false;
        for (size_t k = 0; k < n; k++)
            known = known || disks[k].disk_id == c->disks[i].disk_id;
        if (!known)
            return err_set(err, ERR_INVALID, "disk %llu is not of this job", (unsigned long long)c->disks[i].disk_id);
    }
    for (size_t i = 0; i < n; i++) {
        const CompletionDisk *said = said_of(c, disks[i].disk_id);
        const char *id = said ? said->change_id : (i == 0 ? c->change_id : disks[i].change_id);
        if (!id || (c->disks_len > 0 && !said))
            return err_set(err, ERR_INVALID, "disk %llu has no change ID", (unsigned long long)disks[i].disk_id);
        if (i == 0 && said && strcmp(said->change_id, c->change_id) != 0)
            return err_set(err, ERR_INVALID, "change_id is not the first disk's");
        if (!mem_replace(&disks[i].change_id, id, err) ||
            (said && said->tracking && !mem_replace(&disks[i].tracking, said->tracking, err)))
            return false;
        if (said) {
            disks[i].areas = said->areas;
            disks[i].area_bytes = said->area_bytes;
            disks[i].read_bytes = MIN(said->read_bytes, HUB_BYTES_MAX);
            disks[i].kept_bytes = MIN(said->kept_bytes, disks[i].size);
        }
        if (said && said->bytes_transferred)
            disks[i].transferred_bytes = MIN(said->bytes_transferred, HUB_BYTES_MAX);
        else if (n == 1 && c->bytes_transferred)
            disks[i].transferred_bytes = MIN(c->bytes_transferred, HUB_BYTES_MAX);
    }
    return true;
}

// Seals one image: coverage is checked first, and nothing changes where it does not fit. One that is sealed already
// (a repeated call) tells what it sealed.
static bool seal(const StoreDisk *d, const CompletionDisk *said, const atomic_bool *stop, EngineAnswer *ret, Err *err)
{
    EngineAnswer answer;
    if (!d->control)
        return err_set(err, ERR_CONFLICT, "disk %s has no exporter", d->disk_key);
    // an earlier hub's seal may be under way: its answer comes first
    if (!exporter_call_until(d->control, &(EngineRequest){.op = ENGINE_STATUS}, SEAL_TIMEOUT_MS, stop, &answer, err))
        return false;
    EngineRequest req = {.op = ENGINE_SEAL};
    if (said && said->have_coverage) {
        req.have_expect = true;
        req.extents = said->extents;
        req.bytes = said->covered_bytes;
        req.digest = said->digest;
    }
    // sealed already, it says what it sealed, and refuses other numbers than it was given then
    if (!exporter_call_until(d->control, &req, SEAL_TIMEOUT_MS, stop, &answer, err))
        return false;
    *ret = answer;
    return true;
}

static bool seal_disks(const Completion *c, StoreDisk *disks, size_t n, const atomic_bool *stop, Err *err)
{
    for (size_t i = 0; i < n; i++) {
        EngineAnswer a;
        const CompletionDisk *said = said_of(c, disks[i].disk_id);
        // to its exporter a disk whose audit failed is a tracked one still
        if (disks[i].wrong_blocks > 0 &&
            !(said && said->have_coverage && said->covered_bytes == disks[i].size && said->kept_bytes == 0))
            return err_set(err, ERR_CONFLICT, "disk %s: its audit failed, and not all of it was sent",
                           disks[i].disk_key);
        if (!seal(&disks[i], said, stop, &a, err))
            return err_context(err, "disk %s", disks[i].disk_key);
        disks[i].image_bytes = a.image_bytes;
        disks[i].stored_bytes = a.image_bytes;
        disks[i].done_bytes = disks[i].size;
        if (disks[i].transferred_bytes == 0)
            disks[i].transferred_bytes = a.received_data;
        if (!mem_replace(&disks[i].root, a.root, err) || !mem_replace(&disks[i].metadata, a.metadata, err) ||
            !mem_replace(&disks[i].hashes_digest, a.hashes_digest, err))
            return false;
    }
    return true;
}

// The conditional step to committing, with all that recovery needs to go on without the client or the exporters.
static bool step_in(Hub *h, const StoreBackup *b, const StoreDisk *disks, size_t n, Err *err)
{
    bool done = false;
    bool ok = store_backup_step(h->store, b->id, "running", "committing", &done, err);
    for (size_t i = 0; ok && done && i < n; i++)
        ok = store_disk_set_sealed(h->store, &disks[i], err);
    return ok && (done || err_set(err, ERR_CONFLICT, "backup %s is not running any more", b->id));
}

static bool step_to_committing(Hub *h, const StoreBackup *b, const StoreDisk *disks, size_t n, Err *err)
{
    StoreTurn t = STORE_TURN_BESIDE(h->store);
    while (store_turn(&t, err))
        t.ok = step_in(h, b, disks, n, err);
    return t.ok;
}

static bool note_completed(Hub *h, const StoreBackup *b, const StoreDisk *disks, size_t len, Err *err)
{
    StoreTurn t = STORE_TURN(h->store);
    while (store_turn(&t, err))
        t.ok = store_backup_complete(h->store, b, err) && store_disk_forget_exporters(h->store, b->id, err) &&
            hub_inherit_damage(h, b->id, disks, len, err) &&
            store_backup_forget_interrupted(h->store, b->repository_id, b->vm_id, err);
    if (!t.ok)
        return false;
    hub_count_end(h, b, "completed");
    hub_count_disks(h, b, disks, len);
    return true;
}

// *ret_files: it is the files that failed, before the point existed.
static bool commit(Hub *h, Running *r, bool *ret_files, Err *err)
{
    const char *id = r->id;
    StoreBackup cleanup_backup b = {0};
    StoreRepository cleanup_repository row = {0};
    Repo cleanup_repo repo = {0};
    StoreVm cleanup_vm vm = {0};
    StoreDisk *disks = NULL;
    size_t len = 0;
    Record rec = {0};
    Err no_vm = ERR_INIT;
    const char *source_type = "unknown";
    json_t *source = NULL;
    if (!store_backup_get(h->store, id, &b, err) || !store_repository_get(h->store, b.repository_id, &row, err) ||
        !hub_repo_open(h, &row, &repo, err) || !store_disk_list(h->store, id, &disks, &len, err))
        return false;
    if (store_vm_find(h->store, b.vm_id, &vm, &no_vm) &&
        codec_json_parse(vm.source, strlen(vm.source), 1u << 20, &source, &no_vm))
        source_type = json_string_value(json_object_get(source, "type"));
    b.completed_us = clock_utc_us();
    b.bytes_transferred = b.stored_bytes = 0;
    for (size_t i = 0; i < len; i++) {
        b.bytes_transferred += disks[i].transferred_bytes;
        b.stored_bytes += disks[i].stored_bytes;
    }
    bool ok = len > 0 ? mem_replace(&b.change_id, disks[0].change_id, err)
                      : err_set(err, ERR_INTERNAL, "backup %s has no disks", id);
    ok = ok && hub_record_from_rows(&b, disks, len, source_type, &repo, &rec, err) &&
        repo_commit(&repo, &rec, b.stem, b.attempt, err);
    *ret_files = !ok;
    // now the point exists; the database follows, and what is on record no more ends
    if (ok) {
        hub_exporting(h);
        ok = note_completed(h, &b, disks, len, err);
        if (ok)
            hub_running_stop_exporters(r);
        hub_exporting_done(h);
    }
    record_clear(&rec);
    json_decref(source);
    STORE_LIST_FREE(disks, len, store_disk_clear);
    return ok;
}

bool hub_point_stands(Hub *h, const char *id, bool *ret_stands, Err *err)
{
    StoreBackup cleanup_backup b = {0};
    StoreRepository cleanup_repository row = {0};
    Repo cleanup_repo repo = {0};
    cleanup_free char *path = NULL;
    if (!store_backup_get(h->store, id, &b, err) || !store_repository_get(h->store, b.repository_id, &row, err) ||
        !hub_repo_open(h, &row, &repo, err) || !(path = repo_path_record(&repo, b.context, b.stem, err)))
        return false;
    *ret_stands = file_exists(path);
    return true;
}

// Of no use to try again: what was sealed is gone, or is not what was sealed, and the repository is there to tell; or
// another hub has committed a point of this name.
static bool is_hopeless(Hub *h, const char *id, const Err *why)
{
    Err looking = ERR_INIT;
    bool stands = true;
    if (why->code == ERR_EXISTS)
        return true;
    bool lasting = why->code == ERR_NOT_FOUND || why->code == ERR_DAMAGED || why->code == ERR_INVALID ||
        why->code == ERR_TOO_LARGE;
    return lasting && hub_point_stands(h, id, &stands, &looking) && !stands;
}

bool hub_commit(Hub *h, Running *r, Err *err)
{
    bool files = false;
    if (commit(h, r, &files, err)) {
        r->cancel_ms = r->silent_ms = 0;
        log_info("backup completed", LOG_STR("job", r->id));
        return true;
    }
    Err ending = ERR_INIT;
    if (files && is_hopeless(h, r->id, err) &&
        !hub_job_end(h, r, "failed", "commit failed", err->details, true, &ending))
        log_error("a failed job could not be ended", LOG_STR("job", r->id), LOG_ERR(&ending));
    return false;
}

static bool answer(const char *id, const char *change_id, json_t **ret, Err *err)
{
    json_t *o = json_object();
    bool ok = (o != NULL || err_no_memory(err)) && codec_json_set_text(o, "status", "completed", err) &&
        codec_json_set_text(o, "backup_id", id, err) && codec_json_set_text(o, "change_id", change_id, err) &&
        codec_json_set_text(o, "message", "Backup completed successfully, change_id recorded", err) &&
        hub_set_now(o, "timestamp", err);
    if (!ok) {
        json_decref(o);
        return false;
    }
    *ret = o;
    return true;
}

// The contract: whatever the hub failed at is 500, with these words.
static bool failed(Err *err)
{
    err->code = ERR_INTERNAL;
    return err_title(err, "failed to complete backup");
}

static bool not_completable(const StoreBackup *b, Err *err)
{
    return err_set(err, ERR_CONFLICT, "backup %s is %s; only a running one can be completed", b->id, b->status);
}

// Running: seal, then step. What the client got wrong (409, 400) changes nothing; what broke ends the job.
static bool seal_and_step(Hub *h, Running *r, const StoreBackup *b, const Completion *c, Err *err)
{
    StoreDisk *disks = NULL;
    size_t len = 0;
    if (!store_disk_list(h->store, b->id, &disks, &len, err))
        return failed(err);
    bool ok = len > 0 || err_set(err, ERR_CONFLICT, "no disk of backup %s was announced: nothing was backed up", b->id);
    atomic_store(&r->sealing, true);
    ok = ok && (!atomic_load(&h->closing) || err_set(err, ERR_CANCELLED, "the hub is stopping; repeat the call")) &&
        take_change_ids(c, disks, len, err) && seal_disks(c, disks, len, &r->interrupted, err);
    atomic_store(&r->sealing, false);
    bool sealed = ok;
    ok = ok && step_to_committing(h, b, disks, len, err);
    STORE_LIST_FREE(disks, len, store_disk_clear);
    if (ok || err->code == ERR_CONFLICT || err->code == ERR_INVALID)
        return ok;
    if (err->code == ERR_CANCELLED && atomic_load(&h->closing)) // the next hub joins the seal
        return failed(err);
    // What may pass (a database that is locked, or whose disk is full) is left to a repeated call, and an exporter that
    // died to the supervisor
    Err ending = ERR_INIT;
    bool cancelled = err->code == ERR_CANCELLED;
    bool passes = err->code == ERR_UNAVAILABLE || (sealed && err->code == ERR_NO_SPACE);
    if (!passes &&
        !hub_job_end(h, r, cancelled ? "cancelled" : "failed", cancelled ? "cancelled" : "sealing failed", err->details,
                     true, &ending))
        log_error("a failed job could not be ended", LOG_STR("job", b->id), LOG_ERR(&ending));
    return failed(err);
}

// Does the call say what is on record? Each disk that it names counts.
static bool same_change_ids(Hub *h, const StoreBackup *b, const Completion *c, bool *ret_same, Err *err)
{
    StoreDisk *disks = NULL;
    size_t len = 0, named = 0;
    if (!store_disk_list(h->store, b->id, &disks, &len, err))
        return false;
    bool same = len > 0 && disks[0].change_id && strcmp(disks[0].change_id, c->change_id) == 0;
    for (size_t i = 0; same && i < len; i++) {
        const CompletionDisk *said = said_of(c, disks[i].disk_id);
        named += said != NULL;
        same = !said || (disks[i].change_id && strcmp(disks[i].change_id, said->change_id) == 0);
    }
    *ret_same = same && named == c->disks_len;
    STORE_LIST_FREE(disks, len, store_disk_clear);
    return true;
}

static bool complete(Hub *h, Running *r, const Completion *c, Err *err)
{
    StoreBackup cleanup_backup b = {0};
    JobState state;
    bool same = true;
    if (!store_backup_get(h->store, r->id, &b, err))
        return err->code == ERR_NOT_FOUND ? false : failed(err);
    if (!job_state_parse(b.status, &state, err))
        return failed(err);
    if (state == JOB_PENDING || state == JOB_FAILED || state == JOB_CANCELLED)
        return not_completable(&b, err);
    if (state != JOB_COMPLETED && !hub_is_ours(h, b.hub_id, "backup", b.id, err))
        return false;
    if (state == JOB_RUNNING && b.cancel_requested) { // while this call waited for another that gave way
        Err ending = ERR_INIT;
        if (!hub_job_end(h, r, "cancelled", "cancelled", "cancelled before it was complete", true, &ending))
            log_error("a cancelled job could not be ended", LOG_STR("job", b.id), LOG_ERR(&ending));
        return err_set(err, ERR_CONFLICT, "backup %s was cancelled", b.id);
    }
    if (state == JOB_RUNNING) {
        if (!seal_and_step(h, r, &b, c, err))
            return false;
    } else if (!same_change_ids(h, &b, c, &same, err)) {
        return failed(err);
    } else if (!same) {
        return err_set(err, ERR_CONFLICT, "backup %s is %s with another change ID, %s; nothing was changed", b.id,
                       b.status, b.change_id ? b.change_id : "not recorded yet");
    } else if (state == JOB_COMPLETED) {
        hub_running_stop_exporters(r); // where the answer of the last commit was lost, they still run
        return true;
    }
    if (hub_commit(h, r, err))
        return true;
    log_error("commit failed", LOG_STR("job", r->id), LOG_ERR(err));
    return failed(err);
}

bool hub_job_complete(Hub *h, const char *id, const Completion *c, json_t **ret, Err *err)
{
    Running *r;
    if (!hub_running_lock(h, id, &r, err)) // a call that runs already is joined here: it is waited for
        return failed(err);
    bool ok = complete(h, r, c, err);
    hub_running_unlock(h, r);
    return ok && answer(id, c->change_id, ret, err);
}
