#include "hub/notify.h"

#include "base/clock.h"
#include "base/log.h"

#include <pthread.h>
#include <systemd/sd-daemon.h>
#include <time.h>

// Whether the manager has heard us changes nothing in what we do: results are not looked at.

void notify_starting(void)
{
    (void)sd_notify(0, "STATUS=Opening the database; finishing what an earlier hub began");
}

void notify_ready(const char *url)
{
    if (url)
        (void)sd_notifyf(0, "READY=1\nSTATUS=Listening at %s", url);
    else
        (void)sd_notify(0, "READY=1");
}

void notify_reloading(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now); // cannot fail on Linux
    (void)sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%lld", (long long)now.tv_sec * 1000000 + now.tv_nsec / 1000);
}

void notify_stopping(void)
{
    (void)sd_notify(0, "STOPPING=1\nSTATUS=Stopping; what runs goes on for the next hub");
}

static struct {
    Hub *hub;
    int64_t period_ms;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool running, stopping;
} watchdog;

static bool wait_period(void)
{
    struct timespec until;
    (void)clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += watchdog.period_ms / 1000;
    until.tv_nsec += watchdog.period_ms % 1000 * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000L;
    until.tv_nsec %= 1000000000L;
    (void)pthread_mutex_lock(&watchdog.lock);
    int rc = 0;
    while (!watchdog.stopping && rc == 0)
        rc = pthread_cond_timedwait(&watchdog.changed, &watchdog.lock, &until);
    bool go_on = !watchdog.stopping;
    (void)pthread_mutex_unlock(&watchdog.lock);
    return go_on;
}

static void *watch(void *unused)
{
    bool well = true;
    do {
        Err err = ERR_INIT;
        bool now = hub_pulse(watchdog.hub, watchdog.period_ms, &err);
        if (now)
            (void)sd_notify(0, "WATCHDOG=1");
        else if (well)
            log_error("the hub does not work; the service manager will start it anew", LOG_ERR(&err));
        if (now && !well)
            log_info("the hub works again");
        well = now;
    } while (wait_period());
    return unused;
}

bool notify_watchdog_start(Hub *hub, Err *err)
{
    uint64_t usec = 0;
    if (sd_watchdog_enabled(0, &usec) <= 0)
        return true; // none is wanted, or it is another process that is watched
    watchdog.hub = hub;
    watchdog.period_ms = (int64_t)MIN(MAX(usec / 2000, UINT64_C(10)), UINT64_C(86400000));
    pthread_condattr_t attr;
    (void)pthread_condattr_init(&attr); // cannot fail on Linux
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&watchdog.changed, &attr);
    (void)pthread_condattr_destroy(&attr);
    (void)pthread_mutex_init(&watchdog.lock, NULL);
    int rc = pthread_create(&watchdog.thread, NULL, watch, NULL);
    if (rc != 0)
        return err_errno(err, rc, "cannot start the watchdog's thread");
    (void)pthread_setname_np(watchdog.thread, "watchdog"); // for whoever looks at the threads
    watchdog.running = true;
    return true;
}

void notify_watchdog_stop(void)
{
    if (!watchdog.running)
        return;
    (void)pthread_mutex_lock(&watchdog.lock);
    watchdog.stopping = true;
    (void)pthread_cond_signal(&watchdog.changed);
    (void)pthread_mutex_unlock(&watchdog.lock);
    (void)pthread_join(watchdog.thread, NULL);
    watchdog.running = false;
}
