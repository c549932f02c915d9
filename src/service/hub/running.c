#include "base/clock.h"
#include "base/log.h"
#include "base/str.h"
#include "service/hub/internal.h"

#include <signal.h>

// The entry of a job, made where there is none. The caller holds h->lock.
static Running *entry(Hub *h, const char *id, Err *err)
{
    for (Running *r = h->running; r; r = r->next)
        if (strcmp(r->id, id) == 0)
            return r;
    Running *r = mem_calloc(1, sizeof(*r), err);
    if (r)
        r->id = mem_strdup(id, err);
    if (!r || !r->id) {
        free(r);
        return NULL;
    }
    r->client = PROC_NONE;
    r->next = h->running;
    h->running = r;
    return r;
}

static bool lock(Hub *h, const char *id, bool wait, Running **ret, Err *err)
{
    (void)pthread_mutex_lock(&h->lock);
    Running *r = entry(h, id, err);
    bool ok = r != NULL;
    if (ok && r->locked && !wait) {
        r = NULL; // somebody is at work on it
    } else if (ok) {
        r->users++;
        while (r->locked)
            (void)pthread_cond_wait(&h->changed, &h->lock);
        r->locked = true;
        atomic_store(&r->interrupted, false); // meant for the holder before
    }
    (void)pthread_mutex_unlock(&h->lock);
    if (ok)
        *ret = r;
    return ok;
}

bool hub_running_lock(Hub *h, const char *id, Running **ret, Err *err)
{
    return lock(h, id, true, ret, err);
}

bool hub_running_try(Hub *h, const char *id, Running **ret, Err *err)
{
    return lock(h, id, false, ret, err);
}

void hub_running_interrupt(Hub *h, const char *id)
{
    (void)pthread_mutex_lock(&h->lock);
    for (Running *r = h->running; r; r = r->next)
        if (r->locked && strcmp(r->id, id) == 0)
            atomic_store(&r->interrupted, true);
    (void)pthread_mutex_unlock(&h->lock);
}

void hub_quiesce(Hub *h)
{
    atomic_store(&h->closing, true);
    atomic_store(&h->dump_stop, true);
    atomic_store(&h->look_stop, true);
    (void)pthread_mutex_lock(&h->lock);
    for (Running *r = h->running; r; r = r->next)
        if (atomic_load(&r->sealing))
            atomic_store(&r->interrupted, true);
    (void)pthread_mutex_unlock(&h->lock);
}

void hub_running_unlock(Hub *h, Running *r)
{
    if (!r)
        return;
    (void)pthread_mutex_lock(&h->lock);
    r->locked = false;
    r->users--;
    if (r->users == 0 && r->exporters_len == 0 && r->client.pid == 0 && r->cancel_ms == 0 && r->silent_ms == 0) {
        Running **link = &h->running;
        while (*link != r)
            link = &(*link)->next;
        *link = r->next;
        free(r->id);
        free(r);
    }
    (void)pthread_cond_broadcast(&h->changed);
    (void)pthread_mutex_unlock(&h->lock);
}

void hub_wake(Hub *h)
{
    (void)pthread_mutex_lock(&h->lock);
    (void)pthread_cond_broadcast(&h->changed);
    (void)pthread_mutex_unlock(&h->lock);
}

void hub_running_stop_exporters(Running *r)
{
    for (size_t i = 0; i < r->exporters_len; i++)
        exporter_stop(&r->exporters[i]);
    free(r->exporters);
    r->exporters = NULL;
    r->exporters_len = 0;
}

#define CANCEL_GRACE_MS 3000
#define CANCEL_GRACE_VCENTER_MS 10000 // which may take seconds for each of a few calls

void hub_running_ask_to_end(Hub *h, Running *r, const StoreBackup *b)
{
    StoreVm cleanup_vm vm = {0};
    Err unknown = ERR_INIT;
    if (r->cancel_ms > 0)
        return;
    proc_signal(&r->client, SIGTERM);
    bool vcenter = !store_vm_find(h->store, b->vm_id, &vm, &unknown) || vm.source_id;
    r->grace_ms = vcenter ? CANCEL_GRACE_VCENTER_MS : CANCEL_GRACE_MS;
    r->cancel_ms = clock_mono_ms();
    r->cancel_seen_us = b->last_seen_us;
}

#define CLIENT_TERM_MS 4000

static void stop_client(Running *r, bool keep, int term_ms)
{
    if (r->client.pid == 0)
        return;
    Err ignored = ERR_INIT; // still there: it gets its signals below
    int status;
    if (!keep || !proc_wait(&r->client, 0, &status, &ignored)) {
        if (keep)
            return; // it is on its way out: the supervisor reaps it
        proc_stop(&r->client, term_ms);
    }
    proc_clear(&r->client);
    r->client = PROC_NONE;
}

void hub_running_drop(Running *r)
{
    if (r->exporters_len > 0 || r->client.pid > 0)
        log_warn("another hub has taken this job over; what runs for it here ends", LOG_STR("job", r->id));
    stop_client(r, false, 0);
    for (size_t i = 0; i < r->exporters_len; i++)
        exporter_kill(&r->exporters[i]);
    hub_running_stop_exporters(r);
    r->cancel_ms = r->silent_ms = 0;
}

bool hub_remove_partial(Hub *h, const StoreBackup *b, Err *err)
{
    StoreRepository cleanup_repository row = {0};
    Repo cleanup_repo repo = {0};
    return !b->context || !b->stem || !b->attempt ||
        (store_repository_get(h->store, b->repository_id, &row, err) && hub_repo_open(h, &row, &repo, err) &&
         repo_abort(&repo, b->context, b->stem, b->attempt, err));
}

bool hub_job_end(Hub *h, Running *r, const char *status, const char *error, const char *details, bool keep_client,
                 Err *err)
{
    StoreBackup cleanup_backup b = {0};
    bool ended = false;
    if (!store_backup_get(h->store, r->id, &b, err))
        return false;
    if (strcmp(b.hub_id, h->hub_id) != 0) {
        hub_running_drop(r);
        return hub_is_ours(h, b.hub_id, "backup", b.id, err);
    }
    r->cancel_ms = r->silent_ms = 0;
    stop_client(r, keep_client, b.cancel_requested ? 0 : CLIENT_TERM_MS); // a cancel has asked it already
    bool failed = strcmp(status, "failed") == 0;
    if (failed && h->keep_hours > 0)
        hub_resume_checkpoint(r);
    // nothing else of theirs is of use any more; one that hangs is not waited for
    for (size_t i = 0; i < r->exporters_len; i++)
        exporter_kill(&r->exporters[i]);
    hub_running_stop_exporters(r);

    // the partial images go before the row says so; a repository that is away now is cleaned when it is back
    Err aborting = ERR_INIT;
    // of one that was taken over another machine's exporter may still write into them
    bool keep = failed && h->keep_hours > 0 && !b.taken_over && hub_resume_is_possible(h, &b);
    if (keep && !store_backup_set_resumable(h->store, r->id, true, err))
        return false;
    bool clean = !keep && hub_remove_partial(h, &b, &aborting);
    if (!clean && !keep)
        log_warn("partial images of a job could not be removed; that is tried again", LOG_STR("job", r->id),
                 LOG_ERR(&aborting));
    // the API shows these for as long as the row is there: bytes that are no text must not get in
    cleanup_free char *title = mem_strdup(error, err), *text = title ? mem_strdup(details, err) : NULL;
    if (!text)
        return false;
    str_make_utf8(title);
    str_make_utf8(text);
    if (!store_backup_end(h->store, r->id, status, title, text, clock_utc_us(), &ended, err) ||
        (clean && !store_backup_cleaned(h->store, r->id, err)))
        return false;
    if (ended)
        hub_count_end(h, &b, status);
    if (ended)
        log_info("job ended", LOG_STR("job", r->id), LOG_STR("status", status), LOG_STR("error", error),
                 LOG_STR("details", details), LOG_STR("kept", keep ? "the next backup can go on from it" : ""));
    return true;
}
