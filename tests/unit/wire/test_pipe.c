#include "unit.h"

#include "base/clock.h"
#include "base/file.h"
#include "wire/pipe.h"
#include "wire/tls_server.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/sslerr.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define BIG ((size_t)8 << 20) // much more than all buffers on the way
#define WAIT_MS unit_patience(20000)

// peer ↔ outer | pipe | inner ↔ side
typedef struct Fixture {
    int peer, side;
    Pipe *pipe;
    atomic_int ended;
    TlsServer *server; // NULL: without TLS
    void *ssl;         // the pipe's
    SSL_CTX *client_ctx;
    SSL *client;
    Err err;
} Fixture;

static void on_end(void *ctx)
{
    Fixture *f = ctx;
    tls_server_end(f->ssl);
    atomic_fetch_add(&f->ended, 1);
}

static void set_up(void **state, Fixture *f, bool tls)
{
    int outer[2], inner[2];
    memset(f, 0, sizeof(*f));
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, outer), 0);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, inner), 0);
    if (tls) {
        const char *path = unit_path(state, "key.pem");
        (void)unlink(path);
        assert_ok(tls_server_make(path, &f->err), &f->err);
        assert_ok(tls_server_load(path, path, &f->server, &f->err), &f->err);
        f->ssl = tls_server_accept(f->server);
        assert_non_null(f->ssl);
        f->client_ctx = SSL_CTX_new(TLS_client_method());
        f->client = SSL_new(f->client_ctx);
        SSL_set_fd(f->client, outer[0]);
        SSL_set_connect_state(f->client);
    }
    f->peer = outer[0];
    f->side = inner[0];
    PipeSpec spec = {.outer = outer[1], .inner = inner[1], .ssl = f->ssl, .ended = on_end, .ctx = f};
    assert_ok(pipe_start(&spec, &f->pipe, &f->err), &f->err);
}

static void wait_end(Fixture *f)
{
    int64_t until = clock_mono_ms() + WAIT_MS;
    while (atomic_load(&f->ended) == 0 && clock_mono_ms() < until)
        (void)poll(NULL, 0, 5);
    assert_int_equal(atomic_load(&f->ended), 1);
}

static void tear_down(Fixture *f)
{
    SSL_free(f->client);
    SSL_CTX_free(f->client_ctx);
    if (f->peer >= 0)
        (void)close(f->peer);
    if (f->side >= 0)
        (void)close(f->side);
    wait_end(f);
    tls_server_free(f->server);
}

static unsigned char byte_at(size_t i)
{
    return (unsigned char)(i * 7 + i / 251);
}

typedef struct Flow {
    Fixture *f;
    bool from_peer;
    size_t n;
    size_t piece; // 0: some
} Flow;

static void *write_all(void *ctx)
{
    Flow *w = ctx;
    static unsigned char piece[300000];
    for (size_t at = 0; at < w->n;) {
        size_t n = MIN(w->piece ? w->piece : 10007, w->n - at);
        for (size_t i = 0; i < n; i++)
            piece[i] = byte_at(at + i);
        ssize_t sent = w->from_peer && w->f->client
            ? SSL_write(w->f->client, piece, (int)n)
            : send(w->from_peer ? w->f->peer : w->f->side, piece, n, MSG_NOSIGNAL);
        if (sent <= 0)
            return NULL;
        at += (size_t)sent;
    }
    return w;
}

static size_t receive(Fixture *f, bool at_peer, unsigned char *p, size_t n)
{
    ssize_t got = at_peer && f->client ? SSL_read(f->client, p, (int)n) : recv(at_peer ? f->peer : f->side, p, n, 0);
    return got > 0 ? (size_t)got : 0;
}

static void read_all(Fixture *f, bool at_peer, size_t n)
{
    unsigned char piece[65536];
    for (size_t at = 0; at < n;) {
        size_t got = receive(f, at_peer, piece, MIN(sizeof(piece), n - at));
        assert_true(got > 0);
        for (size_t i = 0; i < got; i++)
            assert_int_equal(piece[i], byte_at(at + i));
        at += got;
    }
}

// A send that took only part of what was there once left the pipe waiting for the other side, for ever; and so did the
// rest of a record, of which OpenSSL had the beginning.
static void flow(void **state, bool tls, bool from_peer, size_t piece)
{
    Fixture f;
    pthread_t thread;
    void *well;
    set_up(state, &f, tls);
    Flow w = {.f = &f, .from_peer = from_peer, .n = BIG, .piece = piece};
    if (tls)
        assert_int_equal(SSL_do_handshake(f.client), 1);
    assert_int_equal(pthread_create(&thread, NULL, write_all, &w), 0);
    read_all(&f, !from_peer, BIG);
    (void)pthread_join(thread, &well);
    assert_non_null(well);
    tear_down(&f);
}

static void test_carries_both_ways(void **state)
{
    int fds = unit_open_fds();
    static const size_t pieces[] = {1000, 10007, 65536, 300000};
    for (size_t i = 0; i < 4 * ARRAY_LEN(pieces); i++)
        flow(state, i & 1, i & 2, pieces[i / 4]);
    int64_t until = clock_mono_ms() + WAIT_MS; // the thread closes its last ones behind ended()
    while (unit_open_fds() != fds && clock_mono_ms() < until)
        (void)poll(NULL, 0, 5);
    assert_int_equal(unit_open_fds(), fds);
}

// All that was sent before the end arrives, and then the end.
static void test_passes_the_end_on(void **state)
{
    for (int tls = 0; tls < 2; tls++) {
        Fixture f;
        unsigned char byte;
        set_up(state, &f, tls);
        if (tls)
            assert_int_equal(SSL_do_handshake(f.client), 1);
        Flow w = {.f = &f, .from_peer = false, .n = 100000};
        assert_non_null(write_all(&w));
        (void)close(f.side);
        f.side = -1;
        read_all(&f, true, 100000);
        assert_int_equal(receive(&f, true, &byte, 1), 0);
        if (tls) // said by the protocol, not only by the connection: nobody on the way can cut an answer short
            assert_int_equal(SSL_get_error(f.client, 0), SSL_ERROR_ZERO_RETURN);
        tear_down(&f);

        set_up(state, &f, tls);
        w = (Flow){.f = &f, .from_peer = true, .n = 100000};
        assert_non_null(write_all(&w));
        if (tls)
            (void)SSL_shutdown(f.client);
        (void)shutdown(f.peer, SHUT_WR);
        read_all(&f, false, 100000);
        assert_int_equal(receive(&f, false, &byte, 1), 0);
        w = (Flow){.f = &f, .from_peer = false, .n = 1000}; // the other direction is open still
        assert_non_null(write_all(&w));
        read_all(&f, true, 1000);
        tear_down(&f);
    }
}

static void test_goes_on_with_another(void **state)
{
    for (int tls = 0; tls < 2; tls++) {
        Fixture f;
        int other[2];
        char text[8] = "";
        set_up(state, &f, tls);
        if (tls)
            assert_int_equal(SSL_do_handshake(f.client), 1);
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, other), 0);
        assert_int_equal(send(f.side, "abc", 3, 0), 3);
        pipe_follow(f.pipe, other[1]);
        assert_int_equal(send(f.side, "def", 3, 0), 3);
        (void)close(f.side);
        assert_int_equal(send(other[0], "g", 1, 0), 1);
        for (size_t n = 0; n < 7;) {
            size_t got = receive(&f, true, (unsigned char *)text + n, 7 - n);
            assert_true(got > 0);
            n += got;
        }
        assert_string_equal(text, "abcdefg");
        f.side = other[0];
        Flow w = {.f = &f, .from_peer = true, .n = 50000};
        assert_non_null(write_all(&w));
        read_all(&f, false, 50000);
        tear_down(&f);
    }
}

// Also one that waits for a peer who takes nothing.
static void test_is_cut(void **state)
{
    for (int stalled = 0; stalled < 2; stalled++) {
        Fixture f;
        set_up(state, &f, false);
        if (stalled) {
            char piece[4096] = "";
            struct pollfd full = {.fd = f.side, .events = POLLOUT};
            while (poll(&full, 1, 200) == 1)
                assert_true(send(f.side, piece, sizeof(piece), MSG_DONTWAIT) > 0 || errno == EAGAIN);
        }
        pipe_cut(f.pipe);
        wait_end(&f);
        tear_down(&f);
    }
}

// What a peer sends once inner takes no more once threw away what inner had said, and cut the connection.
static void test_answers_who_still_talks(void **state)
{
    for (int tls = 0; tls < 2; tls++) {
        Fixture f;
        char text[8] = "";
        set_up(state, &f, tls);
        if (tls)
            assert_int_equal(SSL_do_handshake(f.client), 1);
        assert_int_equal(send(f.side, "answer", 6, 0), 6);
        (void)close(f.side);
        f.side = -1;
        if (tls)
            assert_int_equal(SSL_write(f.client, "more", 4), 4);
        else
            assert_int_equal(send(f.peer, "more", 4, 0), 4);
        for (size_t n = 0, got; n < 6; n += got) {
            got = receive(&f, true, (unsigned char *)text + n, 6 - n);
            assert_true(got > 0);
        }
        assert_string_equal(text, "answer");
        assert_int_equal(receive(&f, true, (unsigned char *)text, 1), 0);
        tear_down(&f);
    }
}

static void *update_keys(void *ctx)
{
    Fixture *f = ctx;
    while (SSL_key_update(f->client, SSL_KEY_UPDATE_REQUESTED) == 1 && SSL_do_handshake(f->client) == 1)
        ;
    return NULL;
}

// Records that carry nothing once kept a thread for as long as they came, whatever else there was to see.
static void test_a_peer_that_only_updates_keys(void **state)
{
    Fixture f;
    pthread_t thread;
    set_up(state, &f, true);
    assert_int_equal(SSL_do_handshake(f.client), 1);
    assert_int_equal(pthread_create(&thread, NULL, update_keys, &f), 0);
    (void)poll(NULL, 0, 200);
    pipe_cut(f.pipe);
    wait_end(&f);
    (void)pthread_join(thread, NULL);
    tear_down(&f);
}

// Who speaks an old version is told so.
static void test_says_why_a_handshake_failed(void **state)
{
    Fixture f;
    set_up(state, &f, true);
    SSL_set_security_level(f.client, 0);
    assert_int_equal(SSL_set_max_proto_version(f.client, TLS1_1_VERSION), 1);
    assert_int_not_equal(SSL_do_handshake(f.client), 1);
    assert_int_equal(ERR_GET_REASON(ERR_peek_error()), SSL_R_TLSV1_ALERT_PROTOCOL_VERSION);
    ERR_clear_error();
    tear_down(&f);
}

// A handshake that is none, one that never comes, and one whose other side has gone meanwhile: an end, and no spinning.
static void test_handshakes_that_fail(void **state)
{
    Fixture f;
    unsigned char byte;
    set_up(state, &f, true);
    assert_int_equal(send(f.peer, "GET / HTTP/1.1\r\n\r\n", 18, 0), 18);
    assert_int_equal(recv(f.side, &byte, 1, 0), 0);
    tear_down(&f);

    set_up(state, &f, true);
    assert_int_equal(send(f.peer, "\x16\x03\x01", 3, 0), 3);
    (void)close(f.side);
    f.side = -1;
    wait_end(&f);
    tear_down(&f);

    set_up(state, &f, true);
    (void)close(f.peer);
    f.peer = -1;
    assert_int_equal(recv(f.side, &byte, 1, 0), 0);
    tear_down(&f);
}

static void test_a_certificate_of_its_own(void **state)
{
    Err err = ERR_INIT;
    TlsServer *s;
    TlsCertificate a, b;
    struct stat st;
    const char *path = unit_path(state, "own.pem"), *other = unit_path(state, "other.pem");
    assert_ok(tls_server_make(path, &err), &err);
    assert_fails(tls_server_make(path, &err), &err, ERR_EXISTS);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0600);
    assert_ok(tls_server_load(path, path, &s, &err), &err);
    tls_server_certificate(s, &a);
    assert_true(a.not_before_us < clock_utc_us() && a.not_after_us > clock_utc_us());
    assert_ok(tls_server_make(other, &err), &err);

    // a renewed one is shown from the reload on; one that is no good changes nothing
    assert_ok(file_rename(other, path, &err), &err);
    assert_ok(tls_server_reload(s, &err), &err);
    tls_server_certificate(s, &b);
    assert_string_not_equal(a.sha256, b.sha256);
    assert_int_equal(truncate(path, 100), 0);
    assert_fails(tls_server_reload(s, &err), &err, ERR_INVALID);
    tls_server_certificate(s, &a);
    assert_string_equal(a.sha256, b.sha256);
    tls_server_free(s);

    // another's key; one that everybody can read; none
    assert_ok(file_unlink(path, &err), &err);
    assert_ok(tls_server_make(path, &err), &err);
    assert_ok(tls_server_make(other, &err), &err);
    assert_fails(tls_server_load(path, other, &s, &err), &err, ERR_INVALID);
    assert_int_equal(chmod(path, 0644), 0);
    assert_fails(tls_server_load(path, path, &s, &err), &err, ERR_FORBIDDEN);
    assert_int_equal(unlink(path), 0);
    assert_fails(tls_server_load(path, path, &s, &err), &err, ERR_NOT_FOUND);
}

int main(void)
{
    (void)signal(SIGPIPE, SIG_IGN); // OpenSSL writes to a socket as if it were a file
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_carries_both_ways),           cmocka_unit_test(test_passes_the_end_on),
        cmocka_unit_test(test_goes_on_with_another),        cmocka_unit_test(test_is_cut),
        cmocka_unit_test(test_answers_who_still_talks),     cmocka_unit_test(test_a_peer_that_only_updates_keys),
        cmocka_unit_test(test_says_why_a_handshake_failed), cmocka_unit_test(test_handshakes_that_fail),
        cmocka_unit_test(test_a_certificate_of_its_own),
    };
    return cmocka_run_group_tests(tests, unit_folder_setup, unit_folder_teardown);
}
