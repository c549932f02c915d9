// A unix socket that plays QEMU's monitor, or the guest agent: one function serves each connection, on a thread.
#pragma once

#include "unit.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define GREETING "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 0, \"minor\": 2, \"major\": 7}, \"package\": \"\"}, " \
                 "\"capabilities\": []}}\r\n"

typedef struct FakeMonitor {
    char path[100];
    int listener;
    pthread_t thread;
    void (*serve)(int fd);
    atomic_bool stop;
} FakeMonitor;

static void *fake_main(void *ctx)
{
    FakeMonitor *m = ctx;
    int fd;
    while ((fd = accept(m->listener, NULL, NULL)) >= 0) {
        if (!atomic_load(&m->stop))
            m->serve(fd);
        (void)close(fd);
        if (atomic_load(&m->stop))
            break;
    }
    return NULL;
}

static inline void fake_start(FakeMonitor *m, void **state, void (*serve)(int fd))
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    (void)snprintf(m->path, sizeof(m->path), "%s", unit_path(state, "monitor"));
    (void)snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", m->path);
    m->serve = serve;
    atomic_store(&m->stop, false);
    m->listener = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(m->listener, (struct sockaddr *)&sa, sizeof(sa)), 0);
    assert_int_equal(listen(m->listener, 5), 0);
    assert_int_equal(pthread_create(&m->thread, NULL, fake_main, m), 0);
}

static inline void fake_stop(FakeMonitor *m)
{
    atomic_store(&m->stop, true);
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    (void)snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", m->path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    (void)connect(fd, (struct sockaddr *)&sa, sizeof(sa)); // out of accept()
    assert_int_equal(pthread_join(m->thread, NULL), 0);
    (void)close(fd);
    (void)close(m->listener);
}

static inline void fake_say(int fd, const char *text)
{
    for (size_t n = strlen(text); n > 0;) {
        ssize_t r = send(fd, text, n, MSG_NOSIGNAL);
        if (r <= 0)
            return;
        text += r;
        n -= (size_t)r;
    }
}

// Until the end of an object, whose texts have no braces; false when the client is gone.
static inline bool fake_hear(int fd, char *line, size_t size)
{
    size_t n = 0;
    unsigned open = 0;
    char c;
    while (read(fd, &c, 1) == 1) {
        if (n + 1 < size)
            line[n++] = c;
        line[n] = '\0';
        open += c == '{';
        if (c == '}' && --open == 0)
            return true;
    }
    return false;
}

static inline void fake_drain(int fd)
{
    char buf[4096];
    while (read(fd, buf, sizeof(buf)) > 0)
        ;
}
