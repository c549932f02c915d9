#include "wire/pipe.h"

#include "base/clock.h"
#include "wire/byte_queue.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <unistd.h>

#define PIECE ((size_t)256 << 10)    // measured: larger ones gain nothing
#define SEALED_MAX ((size_t)1 << 20) // a piece and a little; who has more answered to than he reads is up to no good
#define LINGER_MS 2000
#define STALLED_MS 60000       // for an outer that takes nothing of what an inner that is gone has left
#define SOCKET_BYTES (1 << 20) // what the system gives holds less than a piece: each took two rounds
#define STACK ((size_t)128 << 10)
#define ALIVE_IDLE_S 60 // then a silent peer is asked
#define ALIVE_EVERY_S 10
#define ALIVE_TIMES 6
#define UNANSWERED_MS 120000 // bytes that nobody acknowledges

// What a descriptor is known to be ready for, until it says otherwise.
typedef struct Ready {
    bool read, write;
} Ready;

struct Pipe {
    PipeSpec spec; // inner: of the start
    SSL *ssl;
    ByteQueue arrived; // that were not opened yet; empty without TLS
    ByteQueue sealed;  // that are to be sent; without TLS: what came from inner
    int inner;         // now
    _Atomic int next;
    atomic_bool cut;
    Ready out, in;                 // outer, inner
    ByteQueue up;                  // outer to inner
    char *down;                    // inner to outer, before it is sealed; NULL without TLS
    bool outer_ended, inner_ended; // will send no more
    bool inner_deaf;               // takes no more
    bool told_inner, told_outer;   // that the other side sends no more
    bool inner_gone;               // it hung up; some of what it sent may not be read
    bool broken;                   // what came is no TLS: an alert is sent, as far as that works at once
    bool failed;
    int64_t moved_ms; // when something was, last
};

// ---- one side, read or written until it has no more to say

static bool would_block(void)
{
    return errno == EAGAIN || errno == EWOULDBLOCK;
}

// Bytes of a recv(); 0: none, and ready or ended says why. A connection that is broken has ended.
static size_t take(int fd, char *to, size_t room, bool *ready, bool *ended)
{
    ssize_t n = recv(fd, to, room, 0);
    if (n > 0)
        return (size_t)n;
    if (n < 0 && would_block())
        *ready = false;
    else if (n == 0 || errno != EINTR)
        *ended = true;
    return 0;
}

static size_t take_into(ByteQueue *q, int fd, bool *ready, bool *ended)
{
    size_t n = take(fd, byte_queue_end(q), byte_queue_room(q), ready, ended);
    q->len += n;
    return n;
}

static void give(int fd, ByteQueue *q, bool *ready, bool *deaf)
{
    ssize_t n = send(fd, q->bytes + q->at, byte_queue_pending(q), MSG_NOSIGNAL);
    if (n > 0)
        byte_queue_drop(q, (size_t)n);
    else if (would_block())
        *ready = false;
    else if (errno != EINTR)
        *deaf = true;
}

// So much at a time: OpenSSL opens records that carry nothing (key updates) for as long as it finds any, and all that
// it finds is what was put there.
static bool fetch_records(Pipe *p)
{
    if (byte_queue_pending(&p->arrived) > 0 || !p->out.read || p->outer_ended)
        return false;
    return take_into(&p->arrived, p->spec.outer, &p->out.read, &p->outer_ended) > 0;
}

// Does OpenSSL have some that was not passed on: records, or the rest of an opened one?
static bool has_records(const Pipe *p)
{
    return p->ssl && !p->broken && (byte_queue_pending(&p->arrived) > 0 || SSL_pending(p->ssl) > 0);
}

// The handshake is made on the way. More is fetched once, and only when all of what there was is used up: the rest of a
// record may be what is missing.
static bool open_records(Pipe *p)
{
    bool some = false, fetched = false;
    while (byte_queue_room(&p->up) > 0 && !p->failed && !p->broken) {
        ERR_clear_error();
        int n = SSL_read(p->ssl, byte_queue_end(&p->up), (int)byte_queue_room(&p->up));
        int why = n > 0 ? SSL_ERROR_NONE : SSL_get_error(p->ssl, n);
        if (n > 0) {
            p->up.len += (size_t)n;
            some = true;
        } else if (why == SSL_ERROR_WANT_READ) {
            if (fetched || !fetch_records(p))
                break;
            fetched = true;
        } else {
            p->outer_ended = true;
            p->broken = why != SSL_ERROR_ZERO_RETURN;
            break;
        }
    }
    // A peer that goes without a word; what the protocol inside has not heard the end of it knows for itself
    p->outer_ended = p->outer_ended || p->broken;
    p->failed = p->failed || (p->outer_ended && !SSL_is_init_finished(p->ssl) && !p->broken);
    return some || fetched;
}

static bool fill_up(Pipe *p)
{
    if (p->failed || p->broken || byte_queue_room(&p->up) == 0 || (!has_records(p) && (!p->out.read || p->outer_ended)))
        return false;
    if (p->ssl)
        return open_records(p);
    return take_into(&p->up, p->spec.outer, &p->out.read, &p->outer_ended) > 0;
}

static bool empty_up(Pipe *p)
{
    bool some = byte_queue_pending(&p->up) > 0;
    while (byte_queue_pending(&p->up) > 0 && p->in.write && !p->inner_deaf)
        give(p->inner, &p->up, &p->in.write, &p->inner_deaf);
    if (p->inner_ended || p->inner_deaf) // nobody is there to take it
        byte_queue_drop(&p->up, byte_queue_pending(&p->up));
    if (byte_queue_pending(&p->up) > 0)
        return false;
    if (p->outer_ended && !has_records(p) && !p->told_inner) {
        (void)shutdown(p->inner, SHUT_WR); // fails only where the peer is gone
        p->told_inner = true;
    }
    return some;
}

static bool has_down(const Pipe *p)
{
    return byte_queue_pending(&p->sealed) > 0;
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
    if (!p->in.read || p->inner_ended || p->broken || has_down(p) || waits_for_handshake(p))
        return false;
    size_t n = p->ssl ? take(p->inner, p->down, PIECE, &p->in.read, &p->inner_ended)
                      : take_into(&p->sealed, p->inner, &p->in.read, &p->inner_ended);
    if (n > 0 && p->ssl) {
        ERR_clear_error();
        p->failed = SSL_write(p->ssl, p->down, (int)n) != (int)n || p->failed; // into memory: it all fits
    }
    return n > 0 || p->inner_ended;
}

static bool empty_down(Pipe *p)
{
    size_t before = byte_queue_pending(&p->sealed);
    while (has_down(p) && p->out.write && !p->failed)
        give(p->spec.outer, &p->sealed, &p->out.write, &p->failed);
    return byte_queue_pending(&p->sealed) < before;
}

// ---- the whole

static bool set_nonblocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    return flags >= 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0;
}

void pipe_widen(int fd)
{
    int bytes = SOCKET_BYTES;
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes)); // slower without
}

// Inner has ended: is there another one?
static bool follow(Pipe *p)
{
    int next = atomic_exchange(&p->next, -1);
    if (next < 0)
        return false;
    (void)close(p->inner);
    p->inner = next;
    pipe_widen(next);
    p->inner_ended = p->inner_gone = p->inner_deaf = p->told_inner = false;
    byte_queue_drop(&p->up, byte_queue_pending(&p->up));
    p->in = (Ready){true, true};
    return true;
}

static void tell_outer(Pipe *p)
{
    p->told_outer = true;
    if (p->ssl)
        (void)SSL_shutdown(p->ssl); // into memory
}

// What is not waited for is looked at only while that can tell something new: its end would wake this up all the time.
static struct pollfd look_for(int fd, bool reading, bool writing, bool at_all)
{
    short events = (short)((reading ? POLLIN : 0) | (writing ? POLLOUT : 0));
    return (struct pollfd){.fd = events || at_all ? fd : -1, .events = events};
}

static void note_ready(struct pollfd fd, Ready *ready)
{
    if (fd.revents)
        ready->read = ready->write = true; // an error as well: the next call says which
}

// Outer is always looked at: a cut, and a peer that is wholly gone, show there.
static void wait_for(Pipe *p)
{
    bool down = has_down(p);
    struct pollfd fds[2] = {
        look_for(p->spec.outer, byte_queue_room(&p->up) > 0 && !p->outer_ended && !p->out.read, down && !p->out.write,
                 true),
        // who waits for outer alone has to learn that inner is gone: then it does not wait for ever
        look_for(p->inner, !down && !p->inner_ended && !p->in.read, byte_queue_pending(&p->up) > 0 && !p->in.write,
                 !p->inner_ended && !p->inner_gone),
    };
    bool last = p->inner_gone || p->inner_ended;
    int64_t left = last ? MAX(p->moved_ms + STALLED_MS - clock_mono_ms(), 0) : -1;
    int n = poll(fds, ARRAY_LEN(fds), (int)left);
    if (n <= 0) {
        p->failed = p->failed || n == 0 || errno != EINTR;
        return;
    }
    note_ready(fds[0], &p->out);
    note_ready(fds[1], &p->in);
    p->inner_gone = p->inner_gone || (fds[1].revents & (POLLHUP | POLLERR));
    p->failed = p->failed || (!fds[0].events && fds[0].revents);
}

// Both directions, as long as there is something to pass on or to wait for.
static void pump(Pipe *p)
{
    while (!p->failed && !atomic_load(&p->cut)) {
        bool moved = fill_up(p);
        moved = empty_up(p) || moved;
        moved = fill_down(p) || moved;
        moved = empty_down(p) || moved;
        if (p->broken)
            return; // what could be said is said
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
    p->failed = true;
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
        if (take(p->spec.outer, p->up.bytes, PIECE, &ready, &ended) == 0 && ended)
            return;
    }
}

static void release(Pipe *p)
{
    byte_queue_clear(&p->arrived);
    byte_queue_clear(&p->up);
    byte_queue_clear(&p->sealed);
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
    BIO *arrived = NULL, *sealed = NULL;
    p->down = malloc(PIECE);
    if (!(p->down || err_no_memory(err)) || !byte_queue_init(&p->arrived, PIECE, err) ||
        !byte_queue_bio(&p->arrived, &arrived, err) || !byte_queue_bio(&p->sealed, &sealed, err)) {
        BIO_free(arrived);
        return false;
    }
    p->ssl = p->spec.ssl;
    SSL_set0_rbio(p->ssl, arrived);
    SSL_set0_wbio(p->ssl, sealed);
    return true;
}

// A peer whose machine is gone is found out; small messages do not wait for others. Where outer is no TCP socket, or
// the system refuses, it goes without.
static void set_tcp(int fd)
{
    int yes = 1, idle = ALIVE_IDLE_S, every = ALIVE_EVERY_S, times = ALIVE_TIMES, unanswered = UNANSWERED_MS;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &yes, sizeof(yes));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &every, sizeof(every));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &times, sizeof(times));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &unanswered, sizeof(unanswered));
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
    atomic_init(&p->cut, false);
    p->out = p->in = (Ready){true, true};
    p->moved_ms = clock_mono_ms();
    bool ok = byte_queue_init(&p->up, PIECE, err) && byte_queue_init(&p->sealed, spec->ssl ? SEALED_MAX : PIECE, err);
    ok = ok && ((set_nonblocking(spec->outer) && set_nonblocking(spec->inner)) || err_errno(err, errno, "fcntl"));
    set_tcp(spec->outer);
    pipe_widen(spec->inner);
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
    atomic_store(&p->cut, true);
    (void)shutdown(p->spec.outer, SHUT_RDWR); // wakes it up; fails only where the peer is gone
}
