// The client's calls, but for the announcement (announce.c) and the completion (complete.c).
#include "base/clock.h"
#include "base/log.h"
#include "service/hub/internal.h"

#define AUDIT_PERCENT 3 // of a disk's time

bool hub_job_check_token(Hub *h, const char *id, const Secret *token, bool required, Err *err)
{
    if (!secret_is_set(token) && required)
        return err_set(err, ERR_UNAUTHORIZED, "this call needs the job's token: Authorization: Bearer TOKEN");
    if (!secret_is_set(token))
        return true;
    StoreBackup cleanup_backup b = {0};
    char digest[SECRET_DIGEST_TEXT];
    if (!store_backup_get(h->store, id, &b, err) || !secret_digest(secret_reveal(token), digest, err))
        return false;
    // digests are compared, not secrets: how far they agree tells nothing about the token
    if (!b.token_digest || strcmp(b.token_digest, digest) != 0)
        return err_set(err, ERR_FORBIDDEN, "the token is not this job's");
    return true;
}

// ---- claim

static bool parent_disks(Hub *h, const char *parent_id, WorkOrder *w, Err *err)
{
    StoreDisk *rows = NULL;
    size_t len = 0;
    if (!store_disk_list(h->store, parent_id, &rows, &len, err))
        return false;
    bool ok = (w->parent_disks = mem_calloc(len, sizeof(*w->parent_disks), err)) != NULL;
    for (size_t i = 0; ok && i < len; i++) {
        WorkParentDisk *d = &w->parent_disks[w->parent_disks_len++];
        d->disk_id = rows[i].disk_id;
        d->size = rows[i].size;
        d->tracking = rows[i].tracking && strcmp(rows[i].tracking, "none") != 0;
        ok = mem_replace(&d->disk_key, rows[i].disk_key, err) && mem_replace(&d->change_id, rows[i].change_id, err) &&
            mem_replace(&d->backing_identity, rows[i].backing_identity ? rows[i].backing_identity : "", err);
    }
    STORE_LIST_FREE(rows, len, store_disk_clear);
    return ok;
}

static bool excluded_disks(const char *json_list, WorkOrder *w, Err *err)
{
    json_t *list = NULL, *key;
    size_t i;
    if (!hub_view_strings(json_list, &list, err))
        return false;
    bool ok = (w->excluded_disks = mem_calloc(json_array_size(list), sizeof(char *), err)) != NULL;
    json_array_foreach(list, i, key)
    {
        ok = ok && (w->excluded_disks[w->excluded_disks_len] = mem_strdup(json_string_value(key), err));
        w->excluded_disks_len += ok;
    }
    json_decref(list);
    return ok;
}

static bool order(Hub *h, const StoreBackup *b, WorkOrder *ret, Err *err)
{
    StoreVm cleanup_vm vm = {0};
    StoreRepository cleanup_repository repository = {0};
    WorkOrder w = {.lease_seconds = h->lease_s};
    bool ok = store_vm_find(h->store, b->vm_id, &vm, err) &&
        store_repository_get(h->store, b->repository_id, &repository, err) && mem_replace(&w.job_id, b->id, err) &&
        mem_replace(&w.vm_id, b->vm_id, err) && mem_replace(&w.vm_name, b->vm_name, err) &&
        mem_replace(&w.repository_uuid, repository.uuid, err) && mem_replace(&w.parent_backup_id, b->parent_id, err) &&
        backup_type_parse(b->backup_type, &w.backup_type, err) &&
        codec_json_parse(vm.source, strlen(vm.source), 1u << 20, &w.source, err) &&
        excluded_disks(vm.excluded, &w, err) && (!b->parent_id || parent_disks(h, b->parent_id, &w, err)) &&
        hub_resume_order(h, b, &w, err) && (!vm.source_id || hub_source_order(h, vm.source_id, &w.vcenter, err));
    w.cluster_size = (uint32_t)repository.cluster_size;
    w.audit_blocks = vm.audit_blocks >= 0 ? (uint64_t)vm.audit_blocks : h->audit_blocks;
    w.audit_percent = vm.audit_blocks >= 0 ? 0 : AUDIT_PERCENT; // asked for, it is done
    if (!ok) {
        work_order_clear(&w);
        return false;
    }
    *ret = w;
    return true;
}

// One transaction: two that claim at once do not both find the last place free.
static bool take_claim(Hub *h, const char *id, const char *claim, bool *ret_done, Err *err)
{
    StoreBackup cleanup_backup b = {0};
    uint64_t running;
    if (!store_backup_get(h->store, id, &b, err) || !store_backup_count_running(h->store, &running, err))
        return false;
    // clients that the hub starts have had their turn given; one that comes by itself is told to wait
    if (!b.start_client && strcmp(b.status, "pending") == 0 && running >= h->max_jobs)
        return err_set(err, ERR_BUSY, "%u jobs run already, this hub's limit; claim again later", h->max_jobs);
    if (strcmp(b.status, "pending") == 0 && hub_vm_is_held(h, b.vm_id))
        return err_set(err, ERR_BUSY, "what earlier backups left in this VM is being looked for; claim again later");
    return store_backup_claim(h->store, id, claim, clock_utc_us(), ret_done, err);
}

bool hub_job_claim(Hub *h, const char *id, const char *claim, WorkOrder *ret, Err *err)
{
    StoreBackup cleanup_backup b = {0};
    bool done = false;
    StoreTurn t = STORE_TURN_BESIDE(h->store);
    while (store_turn(&t, err)) {
        store_backup_clear(&b);
        t.ok = take_claim(h, id, claim, &done, err) && store_backup_get(h->store, id, &b, err);
    }
    if (!t.ok)
        return false;
    if (!done && strcmp(b.status, "pending") == 0)
        return hub_is_ours(h, b.hub_id, "backup", id, err);
    // the same claim again: its answer was lost on the way
    if (!done && !(strcmp(b.status, "running") == 0 && b.claim && strcmp(b.claim, claim) == 0))
        return err_set(err, ERR_CONFLICT, "backup %s is %s: another client has it, or it is over", id, b.status);
    if (done)
        log_info("backup claimed", LOG_STR("job", id));
    return order(h, &b, ret, err);
}

// ---- progress and failure

// The disks' rows and the job's sums in one transaction, which the caller has open: nobody sees one without the other.
static bool note_progress(Hub *h, const StoreBackup *b, const WorkProgress *progress, Err *err)
{
    for (size_t i = 0; i < progress->disks_len; i++) {
        const WorkProgressDisk *d = &progress->disks[i];
        StoreDisk row = {.backup_id = b->id,
                         .disk_id = d->disk_id,
                         .done_bytes = MIN(d->done_bytes, HUB_BYTES_MAX),
                         .transferred_bytes = MIN(d->transferred_bytes, HUB_BYTES_MAX),
                         .zero_bytes = MIN(d->zero_bytes, HUB_BYTES_MAX),
                         .changed_bytes = MIN(d->changed_bytes, HUB_BYTES_MAX),
                         .kept_bytes = MIN(d->kept_bytes, HUB_BYTES_MAX)};
        if (!store_disk_set_progress(h->store, &row, err))
            return false;
    }
    return store_backup_seen(h->store, b->id, progress->phase, clock_utc_us(), err) &&
        (progress->disks_len == 0 || store_backup_set_progress(h->store, b->id, err));
}

// A database that is full or away for longer than the lease makes no living client a silent one.
static bool heard(Hub *h, const char *id, const Err *err)
{
    (void)pthread_mutex_lock(&h->lock);
    for (Running *r = h->running; r && err_retryable(err->code); r = r->next)
        if (strcmp(r->id, id) == 0)
            atomic_store(&r->heard_ms, clock_mono_ms());
    (void)pthread_mutex_unlock(&h->lock);
    return false;
}

bool hub_job_progress(Hub *h, const char *id, const WorkProgress *progress, WorkProgressAnswer *ret, Err *err)
{
    StoreBackup cleanup_backup b = {0};
    JobState state;
    if (!store_backup_get(h->store, id, &b, err) || !job_state_parse(b.status, &state, err))
        return false;
    if (state == JOB_PENDING)
        return err_set(err, ERR_CONFLICT, "backup %s was not claimed", id);
    if (job_state_is_final(state))
        return err_set(err, ERR_CONFLICT, "backup %s is %s", id, b.status);
    StoreTurn t = STORE_TURN_BESIDE(h->store);
    while (store_turn(&t, err))
        t.ok = note_progress(h, &b, progress, err);
    if (!t.ok)
        return heard(h, id, err);
    *ret = (WorkProgressAnswer){.cancel = b.cancel_requested, .status = state};
    return true;
}

bool hub_job_fail(Hub *h, const char *id, const WorkFailure *f, json_t **ret, Err *err)
{
    Running *r;
    StoreBackup cleanup_backup b = {0};
    JobState state;
    if (!hub_running_lock(h, id, &r, err))
        return false;
    bool ok = store_backup_get(h->store, id, &b, err) && job_state_parse(b.status, &state, err);
    if (ok && (job_state_is_final(state) || state == JOB_COMMITTING))
        ok = err_set(err, ERR_CONFLICT, "backup %s is %s", id, b.status);
    ok = ok && hub_is_ours(h, b.hub_id, "backup", id, err);
    const char *status = f->cancelled || b.cancel_requested ? "cancelled" : "failed";
    ok = ok && hub_job_end(h, r, status, f->error, f->details, true, err);
    hub_running_unlock(h, r);
    if (!ok)
        return false;
    json_t *o = json_object();
    ok = (o != NULL || err_no_memory(err)) && codec_json_set_text(o, "status", status, err) &&
        codec_json_set_text(o, "backup_id", id, err);
    *ret = o;
    return ok;
}
