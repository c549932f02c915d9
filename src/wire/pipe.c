#include "wire/pipe.h"

#include "base/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define PIECE ((size_t)256 << 10) // measured: larger ones gain nothing
#define LINGER_MS 2000
#define STALLED_MS 60000 // for an outer that takes nothing of what an inner that is gone has left
#define STACK ((size_t)128 << 10)
#define ALIVE_IDLE_S 60 // then a silent peer is asked
#define ALIVE_EVERY_S 10
#define ALIVE_TIMES 6

// What a descriptor is known to be ready for, until it says otherwise.
typedef struct Ready {
    bool read, write;
} Ready;

struct Pipe {
    PipeSpec spec; // inner: of the start
    SSL *ssl;
    BIO *sealed; // the records that are to be sent; NULL without TLS
    int inner;   // now
    _Atomic int next;
    int cut;              // eventfd
    Ready out, in;        // outer, inner
    char *up, *down;      // outer to inner; inner to outer, without TLS
    size_t up_at, up_len; // [at, len) is not passed on
    size_t down_at, down_len;
    bool outer_ended, inner_ended; // will send no more
    bool told_inner, told_outer;   // and the other side knows
    bool inner_gone;               // it hung up; some of what it sent may not be read
    bool failed;
    int64_t moved_ms; // when something was, last
};

// ---- one side, read or written until it has no more to say

static bool would_block(void)
{
    return errno == EAGAIN || errno == EWOULDBLOCK;
}

// Bytes of a recv(); 0: none, and ready, ended or failed says why.
static size_t take(Pipe *p, int fd, char *to, size_t room, bool *ready, bool *ended)
{
    ssize_t n = recv(fd, to, room, 0);
    if (n > 0)
        return (size_t)n;
    if (n == 0)
        *ended = true;
    else if (would_block())
        *ready = false;
    else if (errno != EINTR)
        p->failed = true;
    return 0;
}

static size_t give(Pipe *p, int fd, const char *from, size_t len, bool *ready)
{
    ssize_t n = send(fd, from, len, MSG_NOSIGNAL);
    if (n > 0)
        return (size_t)n;
    if (would_block())
        *ready = false;
    else if (errno != EINTR)
        p->failed = true;
    return 0;
}

// The handshake is made on the way, by the first of these.
static size_t open_records(Pipe *p, char *to, size_t room)
{
    ERR_clear_error();
    int n = SSL_read(p->ssl, to, (int)room);
    if (n > 0)
        return (size_t)n;
    switch (SSL_get_error(p->ssl, n)) {
    case SSL_ERROR_WANT_READ: p->out.read = false; break;
    case SSL_ERROR_ZERO_RETURN: p->outer_ended = true; break;
    default:
        // A peer that goes without a word; what the protocol inside has not heard the end of it knows for itself
        p->outer_ended = true;
        p->failed = !SSL_is_init_finished(p->ssl);
    }
    return 0;
}

static bool fill_up(Pipe *p)
{
    bool some = false;
    while (p->out.read && !p->outer_ended && !p->failed && p->up_len < PIECE) {
        char *to = p->up + p->up_len;
        size_t room = PIECE - p->up_len;
        size_t n = p->ssl ? open_records(p, to, room) : take(p, p->spec.outer, to, room, &p->out.read, &p->outer_ended);
        p->up_len += n;
        some = some || n > 0;
        if (!p->ssl)
            break;
    }
    return some;
}

static bool empty_up(Pipe *p)
{
    bool some = p->up_len > 0;
    if (p->inner_ended) // nobody is there to take it
        p->up_at = p->up_len;
    while (p->up_at < p->up_len && p->in.write && !p->failed)
        p->up_at += give(p, p->inner, p->up + p->up_at, p->up_len - p->up_at, &p->in.write);
    if (p->up_at < p->up_len)
        return false;
    p->up_at = p->up_len = 0;
    if (p->outer_ended && !p->told_inner) {
        (void)shutdown(p->inner, SHUT_WR); // fails only where the peer is gone
        p->told_inner = true;
    }
    return some;
}

static bool has_down(const Pipe *p)
{
    return p->ssl ? (size_t)BIO_pending(p->sealed) > p->down_at : p->down_at < p->down_len;
}

// During the handshake nothing of inner's can be passed on: whatever it has to say (it ends, or refuses) is the end.
static bool waits_for_handshake(Pipe *p)
{
    char byte;
    if (!p->ssl || SSL_is_init_finished(p->ssl))
        return false;
    if (p->in.read && recv(p->inner, &byte, 1, MSG_PEEK) < 0 && would_block())
        p->in.read = false;
    p->failed = p->failed || p->in.read;
    return true;
}

static bool fill_down(Pipe *p)
{
    if (!p->in.read || p->inner_ended || has_down(p) || waits_for_handshake(p))
        return false;
    size_t n = take(p, p->inner, p->down, PIECE, &p->in.read, &p->inner_ended);
    p->down_len = n;
    if (n > 0 && p->ssl) {
        ERR_clear_error();
        p->failed = SSL_write(p->ssl, p->down, (int)n) != (int)n || p->failed; // into memory: it all fits
    }
    return n > 0;
}

static bool empty_down(Pipe *p)
{
    const char *from = p->down;
    size_t len = p->down_len;
    if (p->ssl) {
        char *sealed = NULL;
        long n = BIO_get_mem_data(p->sealed, &sealed);
        from = sealed;
        len = n > 0 ? (size_t)n : 0;
    }
    if (p->down_at == len)
        return false;
    while (p->down_at < len && p->out.write && !p->failed)
        p->down_at += give(p, p->spec.outer, from + p->down_at, len - p->down_at, &p->out.write);
    if (p->down_at < len)
        return false;
    p->down_at = p->down_len = 0;
    if (p->ssl)
        (void)BIO_reset(p->sealed); // memory that may be written to
    return true;
}

// ---- the whole

static bool set_nonblocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    return flags >= 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0;
}

// Inner has ended: is there another one?
static bool follow(Pipe *p)
{
    int next = atomic_exchange(&p->next, -1);
    if (next < 0)
        return false;
    (void)close(p->inner);
    p->inner = next;
    p->inner_ended = p->inner_gone = p->told_inner = false;
    p->up_at = p->up_len = 0;
    p->in = (Ready){true, true};
    return true;
}

static void tell_outer(Pipe *p)
{
    p->told_outer = true;
    if (p->ssl)
        (void)SSL_shutdown(p->ssl); // into memory
}

// What is not waited for is not looked at: its end would wake this up again and again.
static struct pollfd look_for(int fd, bool reading, bool writing)
{
    short events = (short)((reading ? POLLIN : 0) | (writing ? POLLOUT : 0));
    return (struct pollfd){.fd = events ? fd : -1, .events = events};
}

static void note_ready(struct pollfd fd, Ready *ready)
{
    if (!fd.revents)
        return;
    ready->read = ready->write = true; // an error as well: the next call says which
}

static void wait_for(Pipe *p)
{
    bool down = has_down(p);
    struct pollfd fds[3] = {
        look_for(p->spec.outer, p->up_len < PIECE && !p->outer_ended && !p->out.read, down && !p->out.write),
        look_for(p->inner, !down && !p->inner_ended && !p->in.read, p->up_at < p->up_len && !p->in.write),
        {.fd = p->cut, .events = POLLIN},
    };
    // Who waits for outer alone has to learn that inner is gone: then it does not wait for ever
    if (fds[1].fd < 0 && !p->inner_ended && !p->inner_gone)
        fds[1].fd = p->inner;
    int64_t left = p->inner_gone ? MAX(p->moved_ms + STALLED_MS - clock_mono_ms(), 0) : -1;
    int n = poll(fds, ARRAY_LEN(fds), (int)left);
    if (n < 0 && errno != EINTR)
        p->failed = true;
    if (n <= 0) {
        p->failed = p->failed || n == 0;
        return;
    }
    note_ready(fds[0], &p->out);
    note_ready(fds[1], &p->in);
    p->inner_gone = p->inner_gone || (fds[1].revents & (POLLHUP | POLLERR));
    p->failed = p->failed || fds[2].revents;
}

// Both directions, as long as there is something to pass on or to wait for.
static void pump(Pipe *p)
{
    while (!p->failed) {
        bool moved = fill_up(p);
        moved = empty_up(p) || moved;
        moved = fill_down(p) || moved;
        moved = empty_down(p) || moved;
        if (p->inner_ended && !has_down(p) && follow(p))
            continue;
        if (p->inner_ended && !has_down(p) && !p->told_outer) {
            tell_outer(p);
            continue;
        }
        if (p->told_outer && !has_down(p))
            return;
        if (moved)
            p->moved_ms = clock_mono_ms();
        else if (!p->failed)
            wait_for(p);
    }
}

// To close a socket with unread bytes resets the connection, and the peer may lose what it was sent last.
static void linger(Pipe *p)
{
    int64_t until = clock_mono_ms() + LINGER_MS, left;
    (void)shutdown(p->spec.outer, SHUT_WR); // fails only where the peer is gone
    while (!p->failed && (left = until - clock_mono_ms()) > 0) {
        struct pollfd fd = {.fd = p->spec.outer, .events = POLLIN};
        bool ended = false, ready = true;
        if (poll(&fd, 1, (int)left) <= 0)
            continue;
        if (take(p, p->spec.outer, p->up, PIECE, &ready, &ended) == 0 && ended)
            return;
    }
}

static void release(Pipe *p)
{
    mem_cleanup_close(&p->cut);
    free(p->up);
    free(p->down);
    free(p);
}

static void *pipe_main(void *ctx)
{
    Pipe *p = ctx;
    pump(p);
    (void)close(p->inner);
    linger(p);
    p->spec.ended(p->spec.ctx); // before the descriptor is anybody else's: the ssl may still read from it
    (void)close(p->spec.outer);
    int next = atomic_exchange(&p->next, -1);
    if (next >= 0)
        (void)close(next);
    release(p);
    return NULL;
}

static bool take_over_ssl(Pipe *p, Err *err)
{
    p->sealed = BIO_new(BIO_s_mem());
    BIO *socket = p->sealed ? BIO_new_socket(p->spec.outer, BIO_NOCLOSE) : NULL;
    if (!socket) {
        BIO_free(p->sealed);
        p->sealed = NULL;
        return err_no_memory(err);
    }
    p->ssl = p->spec.ssl;
    SSL_set0_rbio(p->ssl, socket);
    SSL_set0_wbio(p->ssl, p->sealed);
    // Many records in one read
    (void)SSL_free_buffers(p->ssl); // one that is in use stays as it is
    SSL_set_default_read_buffer_len(p->ssl, PIECE);
    SSL_set_read_ahead(p->ssl, 1);
    return true;
}

// A peer whose machine is gone is found out; small messages do not wait for others. Where outer is no TCP socket, or
// the system refuses, it goes without.
static void set_tcp(int fd)
{
    int yes = 1, idle = ALIVE_IDLE_S, every = ALIVE_EVERY_S, times = ALIVE_TIMES;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &yes, sizeof(yes));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &every, sizeof(every));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &times, sizeof(times));
}

static bool start_thread(Pipe *p, Err *err)
{
    pthread_attr_t attr;
    pthread_t thread;
    pthread_attr_init(&attr);
    (void)pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED); // valid values
    (void)pthread_attr_setstacksize(&attr, STACK);
    int e = pthread_create(&thread, &attr, pipe_main, p);
    pthread_attr_destroy(&attr);
    return e == 0 || err_errno(err, e, "starting a thread for a connection");
}

bool pipe_start(const PipeSpec *spec, Pipe **ret, Err *err)
{
    Pipe *p = mem_calloc(1, sizeof(*p), err);
    if (!p)
        return false;
    p->spec = *spec;
    p->inner = spec->inner;
    atomic_init(&p->next, -1);
    p->out = p->in = (Ready){true, true};
    p->up = malloc(PIECE);
    p->down = malloc(PIECE);
    p->cut = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    p->moved_ms = clock_mono_ms();
    bool ok = (p->up && p->down) || err_no_memory(err);
    ok = ok && (p->cut >= 0 || err_errno(err, errno, "eventfd"));
    ok = ok && ((set_nonblocking(spec->outer) && set_nonblocking(spec->inner)) || err_errno(err, errno, "fcntl"));
    set_tcp(spec->outer);
    Pipe *started = p; // the thread may be over, and p gone, before start_thread() returns
    if (ok && (!spec->ssl || take_over_ssl(p, err)) && start_thread(p, err)) {
        *ret = started;
        return true;
    }
    release(p);
    return false;
}

void pipe_follow(Pipe *p, int inner)
{
    (void)set_nonblocking(inner); // a valid descriptor
    atomic_store(&p->next, inner);
}

void pipe_cut(Pipe *p)
{
    (void)eventfd_write(p->cut, 1); // fails only where it is set
}
