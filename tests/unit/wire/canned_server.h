// An HTTP server on the loopback that answers connection after connection with what it was given, and keeps what it
// was asked. One request a connection.
#pragma once

#include "unit.h"

#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <unistd.h>

#define CANNED_MAX 16

typedef struct Canned {
    const char *answer; // NULL: the connection is closed; "": nothing is ever said
    int close_after;    // bytes of the answer after which the connection is cut; 0: all are sent
} Canned;

typedef struct CannedServer {
    int fd;
    char url[64];
    Canned answers[CANNED_MAX]; // the last one is repeated
    size_t answers_len;
    char requests[CANNED_MAX][4096];
    atomic_uint served;
    atomic_bool end;
    pthread_t thread;
} CannedServer;

static bool canned_complete(const char *request, size_t n)
{
    const char *body = strstr(request, "\r\n\r\n");
    const char *length = strcasestr(request, "\r\nContent-Length: ");
    if (!body)
        return false;
    return !length || request + n >= body + 4 + strtoul(length + 18, NULL, 10);
}

static void canned_serve(CannedServer *s, int fd)
{
    unsigned i = atomic_load(&s->served);
    char *request = s->requests[i % CANNED_MAX];
    size_t n = 0;
    while (n + 1 < sizeof(s->requests[0])) {
        ssize_t got = recv(fd, request + n, sizeof(s->requests[0]) - 1 - n, 0);
        if (got <= 0)
            break;
        n += (size_t)got;
        request[n] = '\0';
        if (canned_complete(request, n))
            break;
    }
    const Canned *c = &s->answers[i < s->answers_len ? i : s->answers_len - 1];
    atomic_store(&s->served, i + 1);
    while (c->answer && *c->answer == '\0' && !atomic_load(&s->end))
        (void)poll(NULL, 0, 10);
    size_t len = c->answer ? strlen(c->answer) : 0;
    if (c->close_after)
        len = (size_t)c->close_after;
    if (len > 0)
        (void)!send(fd, c->answer, len, MSG_NOSIGNAL);
}

static void *canned_thread(void *ctx)
{
    CannedServer *s = ctx;
    while (!atomic_load(&s->end)) {
        struct pollfd p = {.fd = s->fd, .events = POLLIN};
        if (poll(&p, 1, 20) <= 0)
            continue;
        int fd = accept(s->fd, NULL, NULL);
        if (fd < 0)
            continue;
        canned_serve(s, fd);
        (void)close(fd);
    }
    return NULL;
}

static CannedServer *canned_start(const Canned *answers, size_t n)
{
    CannedServer *s = calloc(1, sizeof(*s));
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(a);
    assert_non_null(s);
    memcpy(s->answers, answers, n * sizeof(*answers));
    s->answers_len = n;
    s->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(s->fd, (struct sockaddr *)&a, sizeof(a)), 0);
    assert_int_equal(listen(s->fd, 8), 0);
    assert_int_equal(getsockname(s->fd, (struct sockaddr *)&a, &len), 0);
    (void)snprintf(s->url, sizeof(s->url), "http://127.0.0.1:%u", ntohs(a.sin_port));
    assert_int_equal(pthread_create(&s->thread, NULL, canned_thread, s), 0);
    return s;
}

static void canned_stop(CannedServer *s)
{
    atomic_store(&s->end, true);
    assert_int_equal(pthread_join(s->thread, NULL), 0);
    (void)close(s->fd);
    free(s);
}
