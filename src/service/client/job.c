#include "service/client/job.h"

#include "base/clock.h"

#include <poll.h>

#define PAUSE_STEP_MS 50

bool job_init(Job *j, const ClientSpec *spec, Err *err)
{
    *j = (Job){.spec = spec, .phase = "claiming"};
    pthread_condattr_t monotonic;
    if (pthread_mutex_init(&j->lock, NULL) != 0 || pthread_condattr_init(&monotonic) != 0)
        return err_no_memory(err);
    if (pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC) != 0 || pthread_cond_init(&j->changed, &monotonic) != 0)
        return err_no_memory(err);
    (void)pthread_condattr_destroy(&monotonic); // nothing to free with glibc
    return hub_api_new(spec->hub_url, spec->token, spec->trust, &j->hub, err);
}

void job_clear(Job *j)
{
    hub_api_free(j->hub);
    work_order_clear(&j->order);
    announce_answer_clear(&j->answer);
    free(j->disks);
    (void)pthread_cond_destroy(&j->changed); // nobody waits any more
    (void)pthread_mutex_destroy(&j->lock);
}

void job_phase(Job *j, const char *phase)
{
    pthread_mutex_lock(&j->lock);
    j->phase = phase;
    pthread_cond_broadcast(&j->changed);
    pthread_mutex_unlock(&j->lock);
}

void job_fail(Job *j, const Err *why)
{
    pthread_mutex_lock(&j->lock);
    if (j->error.code == ERR_NONE)
        j->error = *why;
    atomic_store(j->spec->stop, true);
    pthread_cond_broadcast(&j->changed);
    pthread_mutex_unlock(&j->lock);
}

bool job_goes_on(Job *j, Err *err)
{
    bool asked = atomic_load(j->spec->stop); // before the error is looked at: who sets both sets the error first
    pthread_mutex_lock(&j->lock);
    Err first = j->error;
    pthread_mutex_unlock(&j->lock);
    if (first.code == ERR_NONE && !asked)
        return true;
    if (first.code == ERR_NONE)
        return err_set(err, ERR_CANCELLED, "the client was asked to stop");
    if (err->code == ERR_NONE)
        *err = first;
    return false;
}

bool job_pause(const Job *j, int ms)
{
    int64_t until = clock_mono_ms() + ms;
    while (!atomic_load(j->spec->stop)) {
        int64_t left = until - clock_mono_ms();
        if (left <= 0)
            return true;
        (void)poll(NULL, 0, (int)MIN(left, PAUSE_STEP_MS)); // only a wait; the loop looks at the clock
    }
    return false;
}
