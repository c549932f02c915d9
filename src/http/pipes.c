#include "http/pipes.h"

#include "wire/pipe.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define ANSWERS_S 3 // at a stop, for what was answered to reach its peer

typedef struct HttpPipe {
    HttpPipes *owner;
    Pipe *pipe;
    void *ssl;
    uint64_t clear; // the end in the clear, by the kernel's number for it: a descriptor's is given anew; 0: none
    bool relay;
    LIST_ENTRY(HttpPipe) link;
} HttpPipe;

// The kernel's number for a socket, never given twice; 0 where it has none.
static uint64_t number_of(int fd)
{
    uint64_t cookie = 0;
    socklen_t n = sizeof(cookie);
    return getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &n) == 0 ? cookie : 0;
}

void http_pipes_init(HttpPipes *p, TlsServer *tls, unsigned max)
{
    *p = (HttpPipes){.tls = tls, .max = max};
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->changed, NULL);
    LIST_INIT(&p->pipes);
}

// PipeSpec's ended
static void on_end(void *ctx)
{
    HttpPipe *one = ctx;
    HttpPipes *p = one->owner;
    tls_server_end(one->ssl); // NULL is fine
    pthread_mutex_lock(&p->lock);
    LIST_REMOVE(one, link);
    p->relays -= one->relay;
    p->count--;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
    free(one);
}

// Holds the lock: on_end() comes after this, however short the connection lives.
static bool add(HttpPipes *p, const HttpPipe *proto, int outer, int inner, Err *err)
{
    if (p->closing || p->count >= p->max)
        return err_set(err, ERR_UNAVAILABLE, p->closing ? "the server stops" : "too many connections are open");
    HttpPipe *one = mem_calloc(1, sizeof(*one), err);
    if (!one)
        return false;
    *one = *proto;
    one->owner = p;
    PipeSpec spec = {.outer = outer, .inner = inner, .ssl = one->ssl, .ended = on_end, .ctx = one};
    if (!pipe_start(&spec, &one->pipe, err)) {
        free(one);
        return false;
    }
    LIST_INSERT_HEAD(&p->pipes, one, link);
    p->count++;
    return true;
}

bool http_pipes_unwrap(HttpPipes *p, int fd, int *ret, Err *err)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) != 0)
        return err_errno(err, errno, "cannot take a connection with TLS");
    HttpPipe proto = {.ssl = tls_server_accept(p->tls), .clear = number_of(pair[0])};
    pthread_mutex_lock(&p->lock);
    bool ok = (proto.ssl || err_no_memory(err)) && add(p, &proto, fd, pair[1], err);
    pthread_mutex_unlock(&p->lock);
    if (ok) {
        *ret = pair[0];
        return true;
    }
    tls_server_end(proto.ssl);
    (void)close(pair[0]);
    (void)close(pair[1]);
    return false;
}

// Holds the lock.
static HttpPipe *find(HttpPipes *p, int fd)
{
    HttpPipe *one;
    uint64_t number = number_of(fd);
    LIST_FOREACH(one, &p->pipes, link)
    {
        if (number && one->clear == number)
            return one;
    }
    return NULL;
}

bool http_pipes_encrypted(HttpPipes *p, int fd)
{
    pthread_mutex_lock(&p->lock);
    bool found = find(p, fd) != NULL;
    pthread_mutex_unlock(&p->lock);
    return found;
}

bool http_pipes_reserve(HttpPipes *p, Err *err)
{
    pthread_mutex_lock(&p->lock);
    bool ok = p->relays < HTTP_RELAYS_MAX;
    p->relays += ok;
    pthread_mutex_unlock(&p->lock);
    return ok || err_set(err, ERR_UNAVAILABLE, "%d connections are relayed already; try again later", HTTP_RELAYS_MAX);
}

void http_pipes_unreserve(HttpPipes *p)
{
    pthread_mutex_lock(&p->lock);
    p->relays--;
    pthread_mutex_unlock(&p->lock);
}

// Holds the lock. A connection without TLS gets a pipe of its own.
static bool relay(HttpPipes *p, int fd, int to, Err *err)
{
    HttpPipe *one = find(p, fd);
    if (one && !one->relay && !p->closing) {
        one->relay = true;
        pipe_follow(one->pipe, to);
        return true;
    }
    int outer = one ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (outer < 0)
        return err_errno(err, errno, "cannot relay a connection");
    if (add(p, &(HttpPipe){.relay = true}, outer, to, err))
        return true;
    (void)close(outer);
    return false;
}

bool http_pipes_relay(HttpPipes *p, int fd, int to, Err *err)
{
    pthread_mutex_lock(&p->lock);
    bool ok = relay(p, fd, to, err);
    p->relays -= !ok;
    pthread_mutex_unlock(&p->lock);
    if (!ok)
        (void)close(to);
    return ok;
}

// Holds the lock.
static void cut(HttpPipes *p, bool only_relays)
{
    HttpPipe *one;
    LIST_FOREACH(one, &p->pipes, link)
    {
        if (one->relay || !only_relays)
            pipe_cut(one->pipe);
    }
}

// Until one has ended. False: it is later than that.
static bool wait_until(HttpPipes *p, const struct timespec *until)
{
    return pthread_cond_timedwait(&p->changed, &p->lock, until) != ETIMEDOUT;
}

void http_pipes_close(HttpPipes *p)
{
    struct timespec until;
    (void)clock_gettime(CLOCK_REALTIME, &until); // cannot fail for this clock
    until.tv_sec += ANSWERS_S;
    pthread_mutex_lock(&p->lock);
    p->closing = true;
    cut(p, true);
    while (!LIST_EMPTY(&p->pipes) && wait_until(p, &until))
        ;
    cut(p, false);
    while (!LIST_EMPTY(&p->pipes))
        pthread_cond_wait(&p->changed, &p->lock);
    pthread_mutex_unlock(&p->lock);
    pthread_cond_destroy(&p->changed);
    pthread_mutex_destroy(&p->lock);
}
