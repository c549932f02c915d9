#include "http/door.h"

#include "base/clock.h"
#include "http/guard.h"
#include "http/server.h"

#include <errno.h>
#include <limits.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/queue.h>
#include <unistd.h>

#define TICK_MS 500   // how late a deadline may be noticed
#define LEAVE_MS 2000 // so long, and so much, is read away after a refusal
#define LEAVE_MAX (UINT64_C(64) << 20)
#define FULL_MS 100 // pause when the process has no descriptor left
#define EVENTS 64
#define TLS_HANDSHAKE 0x16 // the first byte of a ClientHello's record; no method's name begins like that
#define PEEK_MAX (HTTP_URI_MAX + HTTP_HEADERS_MAX + 1024) // above it the guard has refused already

typedef struct Guest {
    int fd;
    bool leaving; // was answered
    bool begun;   // its first byte was looked at
    int64_t deadline_ms;
    uint64_t wasted; // bytes read away
    struct sockaddr_storage addr;
    socklen_t addr_len;
    TAILQ_ENTRY(Guest) link;
} Guest;

struct HttpDoor {
    HttpDoorConfig config;
    int epoll_fd;
    int stop_fd;
    pthread_t thread;
    unsigned waiting;
    TAILQ_HEAD(GuestList, Guest) guests;
    char own_name[HOST_NAME_MAX + 1];
    char peeked[PEEK_MAX];
};

static void forget(HttpDoor *d, Guest *g)
{
    TAILQ_REMOVE(&d->guests, g, link);
    d->waiting--;
    free(g);
}

static void send_away(HttpDoor *d, Guest *g)
{
    (void)close(g->fd); // nothing was promised to the peer
    forget(d, g);
}

static void await(HttpDoor *d, Guest *g)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.ptr = g};
    if (epoll_ctl(d->epoll_fd, EPOLL_CTL_ADD, g->fd, &event) != 0)
        send_away(d, g);
}

static const char *reason(int status)
{
    switch (status) {
    case 403: return "Forbidden";
    case 408: return "Request Timeout";
    case 413: return "Content Too Large";
    case 414: return "URI Too Long";
    case 431: return "Request Header Fields Too Large";
    case 500: return "Internal Server Error";
    case 503: return "Service Unavailable";
    default: return "Bad Request";
    }
}

// Reads away what came for a guest that was answered; ends it when there will be no more.
static void waste(HttpDoor *d, Guest *g)
{
    ssize_t n;
    while ((n = recv(g->fd, d->peeked, sizeof(d->peeked), MSG_DONTWAIT)) > 0) {
        g->wasted += (uint64_t)n;
        if (g->wasted > LEAVE_MAX)
            break;
    }
    if (n >= 0 || (errno != EAGAIN && errno != EINTR))
        send_away(d, g);
}

// Answers, and lets the peer go (the guest may be freed). Closing a socket with unread bytes resets
// the connection, and the peer may lose the answer: so what it still sends is read away, for a while.
static void refuse(HttpDoor *d, Guest *g, HttpSlice method, int status, const Err *err)
{
    char name[33] = "";
    cleanup_free char *text = http_answer_error_text(err);
    char head[256];
    if (method.len < sizeof(name) && method.len > 0)
        memcpy(name, method.s, method.len);
    if (d->config.refused)
        d->config.refused(d->config.ctx, (const struct sockaddr *)&g->addr, name, status, err);
    int n = snprintf(head, sizeof(head),
                     "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nCache-Control: no-store\r\n"
                     "X-Content-Type-Options: nosniff\r\nConnection: close\r\nContent-Length: %zu\r\n\r\n",
                     status, reason(status), text ? strlen(text) : 0);
    // It fits into an empty socket buffer; where it does not go out, the peer sees the connection end
    (void)!send(g->fd, head, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT | MSG_MORE);
    if (text)
        (void)!send(g->fd, text, strlen(text), MSG_NOSIGNAL | MSG_DONTWAIT);
    (void)shutdown(g->fd, SHUT_WR); // fails only where the peer is gone
    g->leaving = true;
    g->deadline_ms = clock_mono_ms() + LEAVE_MS;
    waste(d, g);
}

static void admit(HttpDoor *d, Guest *g, HttpSlice method)
{
    (void)epoll_ctl(d->epoll_fd, EPOLL_CTL_DEL, g->fd, NULL); // it is in there
    if (d->config.admit(d->config.ctx, g->fd, (const struct sockaddr *)&g->addr, g->addr_len)) {
        forget(d, g);
        return;
    }
    Err err = ERR_INIT;
    err_set(&err, ERR_UNAVAILABLE, "too many connections are open; try again later");
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.ptr = g};
    (void)epoll_ctl(d->epoll_fd, EPOLL_CTL_ADD, g->fd,
                    &event); // where it fails, the deadline ends the guest
    refuse(d, g, method, 503, &err);
}

static bool check_host(const HttpDoor *d, HttpSlice host, Err *err)
{
    if (!d->config.local_only || host.len == 0 || http_guard_host_is_local(host, d->own_name))
        return true;
    err_set(err, ERR_FORBIDDEN,
            "Host is none of this machine's names: use localhost, an address in numbers, or its host name");
    return err_title(err, "host not accepted");
}

// Its bytes come in the clear from here on, on another descriptor.
static void unwrap(HttpDoor *d, Guest *g)
{
    Err err = ERR_INIT;
    int clear;
    (void)epoll_ctl(d->epoll_fd, EPOLL_CTL_DEL, g->fd, NULL); // it is in there
    if (!d->config.unwrap(d->config.ctx, g->fd, &clear, &err)) {
        if (d->config.refused)
            d->config.refused(d->config.ctx, (const struct sockaddr *)&g->addr, "", err_http(err.code), &err);
        send_away(d, g);
        return;
    }
    g->fd = clear;
    await(d, g);
}

// An IPv4 address within IPv6 is what it holds.
static bool same_address(const struct sockaddr_storage *a, const struct sockaddr_storage *b)
{
    const struct sockaddr_in6 *six_a = (const void *)a, *six_b = (const void *)b;
    const struct sockaddr_in *four_a = (const void *)a, *four_b = (const void *)b;
    if (a->ss_family != b->ss_family)
        return false;
    return a->ss_family == AF_INET ? four_a->sin_addr.s_addr == four_b->sin_addr.s_addr
                                   : IN6_ARE_ADDR_EQUAL(&six_a->sin6_addr, &six_b->sin6_addr);
}

bool http_door_is_here(int fd, const struct sockaddr *peer)
{
    struct sockaddr_storage called = {0}, caller = {0};
    socklen_t n = sizeof(called);
    const struct sockaddr_in6 *six = (const void *)&caller;
    const struct sockaddr_in *four = (const void *)&caller;
    if (peer->sa_family != AF_INET && peer->sa_family != AF_INET6)
        return false;
    memcpy(&caller, peer, peer->sa_family == AF_INET ? sizeof(*four) : sizeof(*six));
    bool loopback = peer->sa_family == AF_INET ? ntohl(four->sin_addr.s_addr) >> 24 == IN_LOOPBACKNET
                                               : IN6_IS_ADDR_LOOPBACK(&six->sin6_addr) ||
            (IN6_IS_ADDR_V4MAPPED(&six->sin6_addr) && six->sin6_addr.s6_addr[12] == IN_LOOPBACKNET);
    return loopback || (getsockname(fd, (struct sockaddr *)&called, &n) == 0 && same_address(&called, &caller));
}

// The first byte tells what is spoken. False: the guest is not to be looked at any more, and may be gone.
static bool begin(HttpDoor *d, Guest *g)
{
    if (g->begun || !d->config.tls)
        return true;
    g->begun = true;
    if (d->peeked[0] == TLS_HANDSHAKE) {
        unwrap(d, g);
        return false;
    }
    if (http_door_is_here(g->fd, (const struct sockaddr *)&g->addr))
        return true;
    Err err = ERR_INIT;
    err_set(&err, ERR_FORBIDDEN, "from another machine this port takes https:// only");
    (void)err_title(&err, "not encrypted");
    refuse(d, g, (HttpSlice){"", 0}, err_http(err.code), &err);
    return false;
}

// Something arrived for a guest that waits. It stays in the socket: the library will read it.
static void look(HttpDoor *d, Guest *g)
{
    ssize_t n = recv(g->fd, d->peeked, sizeof(d->peeked), MSG_PEEK | MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        send_away(d, g);
        return;
    }
    if (!begin(d, g))
        return;
    HttpHead head;
    size_t len;
    int status;
    Err err = ERR_INIT;
    if (!http_guard_check(d->peeked, (size_t)n, &head, &len, &status, &err))
        refuse(d, g, head.method, status, &err);
    else if (len > 0 && !check_host(d, head.host, &err))
        refuse(d, g, head.method, err_http(err.code), &err);
    else if (len > 0)
        admit(d, g, head.method);
}

// A door full of those that never end their heads is open to others all the same. None of the events that were taken
// may be left to look at: the guest is freed.
static void make_room(HttpDoor *d)
{
    Guest *oldest = TAILQ_FIRST(&d->guests);
    int64_t since_ms = oldest ? oldest->deadline_ms - (oldest->leaving ? LEAVE_MS : d->config.head_ms) : 0;
    if (d->waiting >= d->config.max_waiting && oldest && clock_mono_ms() - since_ms > HTTP_DOOR_STALE_MS)
        send_away(d, oldest);
}

// False when the process has no descriptors left
static bool take_one(HttpDoor *d)
{
    struct sockaddr_storage addr = {0};
    socklen_t addr_len = sizeof(addr);
    int fd = accept4(d->config.listen_fd, (struct sockaddr *)&addr, &addr_len, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0)
        return errno != EMFILE && errno != ENFILE && errno != ENOBUFS && errno != ENOMEM;
    make_room(d);
    Guest *g = d->waiting < d->config.max_waiting ? calloc(1, sizeof(*g)) : NULL;
    if (!g) {
        (void)close(fd);
        return true;
    }
    *g = (Guest){.fd = fd, .deadline_ms = clock_mono_ms() + d->config.head_ms, .addr = addr, .addr_len = addr_len};
    TAILQ_INSERT_TAIL(&d->guests, g, link);
    d->waiting++;
    await(d, g);
    return true;
}

static void look_at_clock(HttpDoor *d)
{
    int64_t now = clock_mono_ms();
    for (Guest *g = TAILQ_FIRST(&d->guests), *next; g; g = next) {
        next = TAILQ_NEXT(g, link);
        if (g->deadline_ms > now)
            continue;
        char byte;
        if (g->leaving || recv(g->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) != 1) {
            send_away(d, g);
            continue;
        }
        Err err = ERR_INIT;
        err_set(&err, ERR_TIMEOUT, "the request did not arrive within %d s", (int)(d->config.head_ms / 1000));
        refuse(d, g, (HttpSlice){0}, 408, &err);
    }
}

static void *door_main(void *arg)
{
    HttpDoor *d = arg;
    for (;;) {
        struct epoll_event events[EVENTS];
        bool knocked = false;
        int n = epoll_wait(d->epoll_fd, events, EVENTS, TICK_MS);
        for (int i = 0; i < n; i++) {
            if (events[i].data.ptr == &d->stop_fd)
                return NULL;
            if (events[i].data.ptr == &d->config) {
                knocked = true;
                continue;
            }
            // A guest is in the list of events once, so that nobody has freed it
            Guest *g = events[i].data.ptr;
            if (g->leaving)
                waste(d, g);
            else
                look(d, g);
        }
        struct pollfd stop = {.fd = d->stop_fd, .events = POLLIN};
        if (knocked && !take_one(d))
            (void)poll(&stop, 1, FULL_MS); // or the loop would turn for nothing
        look_at_clock(d);
    }
}

static bool watch(HttpDoor *d, int fd, void *mark, Err *err)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = mark};
    if (epoll_ctl(d->epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0)
        return err_errno(err, errno, "cannot wait for connections");
    return true;
}

static void free_door(HttpDoor *d)
{
    while (!TAILQ_EMPTY(&d->guests))
        send_away(d, TAILQ_FIRST(&d->guests));
    mem_cleanup_close(&d->epoll_fd);
    mem_cleanup_close(&d->stop_fd);
    free(d);
}

bool http_door_open(const HttpDoorConfig *config, HttpDoor **ret, Err *err)
{
    HttpDoor *d = mem_calloc(1, sizeof(*d), err);
    if (!d)
        return false;
    d->config = *config;
    (void)gethostname(d->own_name, sizeof(d->own_name) - 1); // without a name there is one less
    TAILQ_INIT(&d->guests);
    d->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    d->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    bool ok = (d->epoll_fd >= 0 && d->stop_fd >= 0) || err_errno(err, errno, "cannot wait for connections");
    ok = ok && watch(d, d->stop_fd, &d->stop_fd, err) && watch(d, config->listen_fd, &d->config, err);
    if (ok) {
        int rc = pthread_create(&d->thread, NULL, door_main, d);
        ok = rc == 0 || err_errno(err, rc, "cannot start a thread");
    }
    if (!ok) {
        free_door(d);
        return false;
    }
    *ret = d;
    return true;
}

void http_door_close(HttpDoor *door)
{
    if (!door)
        return;
    uint64_t one = 1;
    (void)!write(door->stop_fd, &one, sizeof(one)); // an eventfd takes it, always
    pthread_join(door->thread, NULL);
    free_door(door);
}
