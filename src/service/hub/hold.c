// What keeps cleaning up away from what is just coming to be, or going. docs/internals/clean.md.
#include "base/clock.h"
#include "base/str.h"
#include "service/hub/internal.h"

#include <errno.h>
#include <time.h>

#define STOP_S 20 // an exporter's start takes less

typedef struct HubHold {
    char *vm_id;
    struct HubHold *next;
} HubHold;

// ---- exporters

void hub_exporting(Hub *h)
{
    (void)pthread_rwlock_rdlock(&h->exporting); // cannot fail: it is not held for writing by us
}

void hub_exporting_done(Hub *h)
{
    (void)pthread_rwlock_unlock(&h->exporting);
}

bool hub_exporting_stop(Hub *h, Err *err)
{
    struct timespec until;
    (void)clock_gettime(CLOCK_REALTIME, &until); // what the function counts by
    until.tv_sec += STOP_S;
    int rc = pthread_rwlock_timedwrlock(&h->exporting, &until);
    if (rc == ETIMEDOUT)
        return err_set(err, ERR_BUSY, "exporters are being started, and have been for %d s; try again", STOP_S);
    return rc == 0 || err_errno(err, rc, "the exporters' lock");
}

// ---- VMs

// The caller holds h->lock.
static HubHold **find(Hub *h, const char *vm_id)
{
    HubHold **link = &h->holds;
    while (*link && !str_eq((*link)->vm_id, vm_id))
        link = &(*link)->next;
    return link;
}

bool hub_vm_is_held(Hub *h, const char *vm_id)
{
    (void)pthread_mutex_lock(&h->lock);
    bool held = *find(h, vm_id) != NULL;
    (void)pthread_mutex_unlock(&h->lock);
    return held;
}

static bool put_down(Hub *h, const char *vm_id, Err *err)
{
    HubHold *hold = mem_calloc(1, sizeof(*hold), err);
    if (!hold || !(hold->vm_id = mem_strdup(vm_id, err))) {
        free(hold);
        return false;
    }
    (void)pthread_mutex_lock(&h->lock);
    HubHold **link = find(h, vm_id);
    bool taken = *link != NULL;
    if (!taken)
        *link = hold;
    (void)pthread_mutex_unlock(&h->lock);
    if (!taken)
        return true;
    free(hold->vm_id);
    free(hold);
    return err_set(err, ERR_BUSY, "somebody else cleans this VM up");
}

void hub_vm_release(Hub *h, const char *vm_id)
{
    (void)pthread_mutex_lock(&h->lock);
    HubHold **link = find(h, vm_id), *hold = *link;
    if (hold)
        *link = hold->next;
    (void)pthread_cond_broadcast(&h->changed); // clients that waited
    (void)pthread_mutex_unlock(&h->lock);
    if (hold)
        free(hold->vm_id);
    free(hold);
}

static bool no_active_job(Hub *h, const char *vm_id, Err *err)
{
    StoreBackup *jobs = NULL;
    size_t len = 0;
    if (!store_backup_active(h->store, &jobs, &len, err))
        return false;
    bool ok = true;
    for (size_t i = 0; ok && i < len; i++)
        if (str_eq(jobs[i].vm_id, vm_id))
            ok = err_set(err, ERR_BUSY, "backup %s is %s", jobs[i].id, jobs[i].status);
    STORE_LIST_FREE(jobs, len, store_backup_clear);
    return ok;
}

// The n-th job whose client lives, or that somebody is at work on; NULL if there are not so many.
static char *at_work(Hub *h, size_t n, Err *err)
{
    char *id = NULL;
    (void)pthread_mutex_lock(&h->lock);
    for (Running *r = h->running; r && !id && err->code == ERR_NONE; r = r->next)
        if ((r->locked || r->users > 0 || (r->client.pid > 0 && proc_alive(&r->client))) && n-- == 0)
            id = mem_strdup(r->id, err);
    (void)pthread_mutex_unlock(&h->lock);
    return id;
}

// A point is complete before its client has closed the source.
static bool no_client(Hub *h, const char *vm_id, Err *err)
{
    for (size_t n = 0;; n++) {
        StoreBackup cleanup_backup b = {0};
        Err deleted = ERR_INIT;
        cleanup_free char *id = at_work(h, n, err);
        if (!id)
            return err->code == ERR_NONE;
        if (!store_backup_get(h->store, id, &b, &deleted)) {
            if (deleted.code == ERR_NOT_FOUND)
                continue;
            *err = deleted;
            return false;
        }
        if (str_eq(b.vm_id, vm_id))
            return err_set(err, ERR_BUSY, "the client of backup %s is still at work", id);
    }
}

bool hub_vm_hold(Hub *h, const char *vm_id, Err *err)
{
    // the hold first: a client starts only after its job was made, so either we see the job, or it sees the hold
    if (!put_down(h, vm_id, err))
        return false;
    if (no_active_job(h, vm_id, err) && no_client(h, vm_id, err))
        return true;
    hub_vm_release(h, vm_id);
    return false;
}
