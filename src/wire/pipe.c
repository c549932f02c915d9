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
#include <sys/socket.h>
#include <unistd.h>

#define PIECE ((size_t)256 << 10)    // measured: larger ones gain nothing
#define SEALED_MAX ((size_t)1 << 20) // a piece and a little; who has more answered to than he reads is up to no good
#define LINGER_MS 2000
#define STALLED_MS 60000 // for an outer that takes nothing of what an inner that is gone has left
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
    BIO *arrived; // records that were not opened yet; NULL without TLS
    BIO *sealed;  // records that are to be sent
    int inner;    // now
    _Atomic int next;
    atomic_bool cut;
    Ready out, in;        // outer, inner
    char *up, *down;      // outer to inner; inner to outer, before it is sealed
    char *raw;            // just arrived; NULL without TLS
    size_t up_at, up_len; // [at, len) is not passed on
    size_t down_at, down_len;
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

static size_t give(int fd, const char *from, size_t len, bool *ready, bool *deaf)
{
    ssize_t n = send(fd, from, len, MSG_NOSIGNAL);
    if (n > 0)
        return (size_t)n;
    if (would_block())
        *ready = false;
    else if (errno != EINTR)
        *deaf = true;
    return 0;
}

// So much at a time: OpenSSL opens records that carry nothing (key updates) for as long as it finds any, and all that
// it finds is what was put there.
static bool fetch_records(Pipe *p)
{
    if (BIO_pending(p->arrived) > 0 || !p->out.read || p->outer_ended)
        return false;
    size_t n = take(p->spec.outer, p->raw, PIECE, &p->out.read, &p->outer_ended);
    p->failed = p->failed || (n > 0 && BIO_write(p->arrived, p->raw, (int)n) != (int)n);
    return n > 0;
}

// Does OpenSSL have some that was not passed on: records, or the rest of an opened one?
static bool has_records(const Pipe *p)
{
    return p->ssl && !p->broken && (BIO_pending(p->arrived) > 0 || SSL_pending(p->ssl) > 0);
}

// The handshake is made on the way. More is fetched once, and only when all of what there was is used up: the rest of a
// record may be what is missing.
static bool open_records(Pipe *p)
{
    bool some = false, fetched = false;
    while (p->up_len < PIECE && !p->failed && !p->broken) {
        ERR_clear_error();
        int n = SSL_read(p->ssl, p->up + p->up_len, (int)(PIECE - p->up_len));
        int why = n > 0 ? SSL_ERROR_NONE : SSL_get_error(p->ssl, n);
        if (n > 0) {
            p->up_len += (size_t)n;
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
    p->failed = p->failed || (p->outer_ended && !SSL_is_init_finished(p->ssl) && !p->broken) ||
        (size_t)BIO_pending(p->sealed) > SEALED_MAX;
    return some || fetched;
}

static bool fill_up(Pipe *p)
{
    if (p->failed || p->broken || p->up_len == PIECE || (!has_records(p) && (!p->out.read || p->outer_ended)))
        return false;
    if (p->ssl)
        return open_records(p);
    size_t n = take(p->spec.outer, p->up + p->up_len, PIECE - p->up_len, &p->out.read, &p->outer_ended);
    p->up_len += n;
    return n > 0;
}

static bool empty_up(Pipe *p)
{
    bool some = p->up_len > 0;
    while (p->up_at < p->up_len && p->in.write && !p->inner_deaf)
        p->up_at += give(p->inner, p->up + p->up_at, p->up_len - p->up_at, &p->in.write, &p->inner_deaf);
    if (p->inner_ended || p->inner_deaf) // nobody is there to take it
        p->up_at = p->up_len;
    if (p->up_at < p->up_len)
        return false;
    p->up_at = p->up_len = 0;
    if (p->outer_ended && !has_records(p) && !p->told_inner) {
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
    if (!p->in.read || p->inner_ended || p->broken || has_down(p) || waits_for_handshake(p))
        return false;
    size_t n = take(p->inner, p->down, PIECE, &p->in.read, &p->inner_ended);
    p->down_len = n;
    if (n > 0 && p->ssl) {
        ERR_clear_error();
        p->failed = SSL_write(p->ssl, p->down, (int)n) != (int)n || p->failed; // into memory: it all fits
    }
    return n > 0 || p->inner_ended;
}

static bool empty_down(Pipe *p)
{
    const char *from = p->down;
    size_t len = p->down_len, before = p->down_at;
    if (p->ssl) {
        char *sealed = NULL;
        long n = BIO_get_mem_data(p->sealed, &sealed);
        from = sealed;
        len = n > 0 ? (size_t)n : 0;
    }
    while (p->down_at < len && p->out.write && !p->failed)
        p->down_at += give(p->spec.outer, from + p->down_at, len - p->down_at, &p->out.write, &p->failed);
    bool some = p->down_at > before;
    if (p->down_at < len)
        return some;
    p->down_at = p->down_len = 0;
    if (p->ssl)
        (void)BIO_reset(p->sealed); // memory that may be written to
    return some;
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
    p->inner_ended = p->inner_gone = p->inner_deaf = p->told_inner = false;
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
        look_for(p->spec.outer, p->up_len < PIECE && !p->outer_ended && !p->out.read, down && !p->out.write, true),
        // who waits for outer alone has to learn that inner is gone: then it does not wait for ever
        look_for(p->inner, !down && !p->inner_ended && !p->in.read, p->up_at < p->up_len && !p->in.write,
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
        if (take(p->spec.outer, p->up, PIECE, &ready, &ended) == 0 && ended)
            return;
    }
}

static void release(Pipe *p)
{
    free(p->up);
    free(p->down);
    free(p->raw);
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
    p->raw = malloc(PIECE);
    p->sealed = BIO_new(BIO_s_mem());
    p->arrived = BIO_new(BIO_s_mem());
    if (!p->raw || !p->sealed || !p->arrived) {
        BIO_free(p->sealed);
        BIO_free(p->arrived);
        return err_no_memory(err);
    }
    (void)BIO_set_mem_eof_return(p->arrived, -1); // empty: there may be more
    p->ssl = p->spec.ssl;
    SSL_set0_rbio(p->ssl, p->arrived);
    SSL_set0_wbio(p->ssl, p->sealed);
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
    p->up = malloc(PIECE);
    p->down = malloc(PIECE);
    p->moved_ms = clock_mono_ms();
    bool ok = (p->up && p->down) || err_no_memory(err);
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
    atomic_store(&p->cut, true);
    (void)shutdown(p->spec.outer, SHUT_RDWR); // wakes it up; fails only where the peer is gone
}
