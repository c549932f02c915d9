// The session at the vCenter while nothing is asked in it: a full's questions are over before it reads, for hours.
#include "base/num.h"
#include "source/vsphere/parts.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>

#define SECONDS_DEFAULT 240 // vCenter ends a session after 30 minutes, unless somebody has set less
#define SECONDS_MAX 86400

static bool read_setting(uint64_t *ret_seconds, Err *err)
{
    static const char name[] = "SENDENSE_VSPHERE_KEEP_ALIVE";
    const char *text = getenv(name);
    *ret_seconds = SECONDS_DEFAULT;
    return !text || !*text || num_u64(text, 1, SECONDS_MAX, ret_seconds, err) || err_context(err, "%s", name);
}

static struct timespec in_ms(int64_t ms)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t); // cannot fail with this clock
    t.tv_sec += ms / 1000;
    t.tv_nsec += ms % 1000 * 1000000;
    t.tv_sec += t.tv_nsec / 1000000000;
    t.tv_nsec %= 1000000000;
    return t;
}

// Looks four times in the time after which it asks.
static void *alive_thread(void *ctx)
{
    VsphereSource *v = ctx;
    pthread_mutex_lock(&v->lock);
    while (!v->alive_over) {
        struct timespec until = in_ms(v->alive_ms / 4);
        int waited = 0;
        while (!v->alive_over && waited != ETIMEDOUT)
            waited = pthread_cond_timedwait(&v->alive_ends, &v->lock, &until);
        if (!v->alive_over)
            vim_keep_alive(v->vim, v->alive_ms);
    }
    pthread_mutex_unlock(&v->lock);
    return NULL;
}

bool vsphere_alive_start(VsphereSource *v, Err *err)
{
    uint64_t seconds;
    pthread_condattr_t attr;
    if (!read_setting(&seconds, err))
        return false;
    v->alive_ms = (int)seconds * 1000;
    (void)pthread_condattr_init(&attr); // these cannot fail with glibc
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&v->alive_ends, &attr);
    (void)pthread_condattr_destroy(&attr);
    sigset_t all, before;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before); // signals are for the program's own threads
    int e = pthread_create(&v->alive, NULL, alive_thread, v);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (e != 0) {
        (void)pthread_cond_destroy(&v->alive_ends);
        return err_errno(err, e, "a thread that keeps the session");
    }
    v->alive_runs = true;
    return true;
}

void vsphere_alive_stop(VsphereSource *v)
{
    if (!v->alive_runs)
        return;
    pthread_mutex_lock(&v->lock);
    v->alive_over = true;
    pthread_cond_broadcast(&v->alive_ends);
    pthread_mutex_unlock(&v->lock);
    (void)pthread_join(v->alive, NULL); // joinable, and joined once
    (void)pthread_cond_destroy(&v->alive_ends);
    v->alive_runs = false;
}
