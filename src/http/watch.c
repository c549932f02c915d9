#include "http/watch.h"

#include "base/clock.h"

#include <sys/socket.h>
#include <time.h>

#define TICK_MS 500 // how late a cut may come

// Waits for `changed` at most ms. Spurious returns are the callers' business. Holds the lock.
static void wait_changed(HttpWatch *w, int64_t ms)
{
    struct timespec until;
    (void)clock_gettime(CLOCK_MONOTONIC, &until); // cannot fail for this clock
    int64_t ns = until.tv_nsec + (ms % 1000) * 1000000;
    until.tv_sec += ms / 1000 + ns / 1000000000;
    until.tv_nsec = ns % 1000000000;
    (void)pthread_cond_timedwait(&w->changed, &w->lock,
                                 &until); // the callers look at the clock themselves
}

// The library then reads the end of the stream, and closes. Holds the lock.
static void cut(HttpConn *conn)
{
    (void)shutdown(conn->fd, SHUT_RDWR); // fails only where the peer was faster
    conn->deadline_ms = INT64_MAX;
}

static void *watch_main(void *arg)
{
    HttpWatch *w = arg;
    pthread_mutex_lock(&w->lock);
    while (!w->stopping) {
        wait_changed(w, TICK_MS);
        int64_t now = clock_mono_ms();
        HttpConn *conn;
        TAILQ_FOREACH(conn, &w->conns, link)
        {
            if (conn->deadline_ms <= now)
                cut(conn);
        }
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

bool http_watch_start(HttpWatch *w, const int64_t limit_ms[HTTP_PHASES], Err *err)
{
    *w = (HttpWatch){0};
    memcpy(w->limit_ms, limit_ms, sizeof(w->limit_ms));
    TAILQ_INIT(&w->conns);
    pthread_mutex_init(&w->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&w->changed, &attr);
    pthread_condattr_destroy(&attr);
    int rc = pthread_create(&w->thread, NULL, watch_main, w);
    if (rc != 0) {
        pthread_cond_destroy(&w->changed);
        pthread_mutex_destroy(&w->lock);
        return err_errno(err, rc, "cannot start a thread");
    }
    return true;
}

// Holds the lock
static void enter(const HttpWatch *w, HttpConn *conn, HttpPhase phase)
{
    int64_t limit = w->limit_ms[phase];
    conn->phase = phase;
    conn->deadline_ms = limit > 0 ? clock_mono_ms() + limit : INT64_MAX;
}

HttpConn *http_watch_add(HttpWatch *w, int fd)
{
    HttpConn *conn = calloc(1, sizeof(*conn));
    if (!conn)
        return NULL;
    conn->fd = fd;
    pthread_mutex_lock(&w->lock);
    enter(w, conn, HTTP_READING);
    TAILQ_INSERT_TAIL(&w->conns, conn, link);
    w->count++;
    pthread_mutex_unlock(&w->lock);
    return conn;
}

void http_watch_remove(HttpWatch *w, HttpConn *conn)
{
    pthread_mutex_lock(&w->lock);
    TAILQ_REMOVE(&w->conns, conn, link);
    w->count -= !conn->given_up;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
    free(conn);
}

void http_watch_phase(HttpWatch *w, HttpConn *conn, HttpPhase phase)
{
    pthread_mutex_lock(&w->lock);
    enter(w, conn, phase);
    if (phase == HTTP_ANSWERED && w->stopping)
        pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

// Holds the lock
static void make_room(HttpWatch *w, int64_t stale_ms)
{
    int64_t begun_by = clock_mono_ms() - stale_ms;
    HttpConn *conn;
    TAILQ_FOREACH(conn, &w->conns, link)
    {
        if (conn->phase == HTTP_READING && conn->deadline_ms != INT64_MAX) // that one is cut already
            break;
    }
    if (!conn || conn->deadline_ms - w->limit_ms[HTTP_READING] > begun_by)
        return;
    cut(conn);
    conn->given_up = true;
    w->count--;
}

bool http_watch_has_room(HttpWatch *w, unsigned most, int64_t stale_ms)
{
    pthread_mutex_lock(&w->lock);
    if (w->count >= most)
        make_room(w, stale_ms);
    bool room = w->count < most;
    pthread_mutex_unlock(&w->lock);
    return room;
}

bool http_watch_stopping(HttpWatch *w)
{
    pthread_mutex_lock(&w->lock);
    bool stopping = w->stopping;
    pthread_mutex_unlock(&w->lock);
    return stopping;
}

bool http_watch_sleep(HttpWatch *w, int ms)
{
    int64_t until = clock_mono_ms() + ms;
    pthread_mutex_lock(&w->lock);
    int64_t now;
    while (!w->stopping && (now = clock_mono_ms()) < until)
        wait_changed(w, until - now);
    bool going_on = !w->stopping;
    pthread_mutex_unlock(&w->lock);
    return going_on;
}

// Cuts the answered connections, or all; are any others left? Holds the lock.
static bool cut_all(HttpWatch *w, bool only_answered)
{
    bool left = false;
    HttpConn *conn;
    TAILQ_FOREACH(conn, &w->conns, link)
    {
        if (conn->phase == HTTP_ANSWERED || !only_answered)
            cut(conn);
        else
            left = true;
    }
    return left;
}

void http_watch_drain(HttpWatch *w, int deadline_ms)
{
    int64_t until = clock_mono_ms() + deadline_ms;
    pthread_mutex_lock(&w->lock);
    w->stopping = true;
    pthread_cond_broadcast(&w->changed);
    int64_t now;
    while (cut_all(w, true) && (now = clock_mono_ms()) < until)
        wait_changed(w, until - now);
    (void)cut_all(w, false);
    pthread_mutex_unlock(&w->lock);
    pthread_join(w->thread, NULL);
}

void http_watch_clear(HttpWatch *w)
{
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
}
